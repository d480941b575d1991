/*
 * What a virtio device has promised its guest
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef HW_VIRTIO_PROMISES_H
#define HW_VIRTIO_PROMISES_H

#include "migration/promises.h"
#include "hw/virtio/virtio.h"

/**
 * virtio_promises: what virtio_load() insists on, and what the guest uses
 * @p: the promises of a section
 * @vdev: the device
 * @guest: features that the guest uses
 * @host: features that it could use
 * @words: how many words of 64 bits these are
 */
void virtio_promises(VMStatePromises *p, VirtIODevice *vdev,
                     const uint64_t *guest, const uint64_t *host, int words);

/* Hooks: what virtio_serial_load_device() and virtio-mem's post_load() want */
void virtio_serial_promises(VMStatePromises *p, void *opaque);
void virtio_mem_promises(VMStatePromises *p, void *opaque);

#endif
