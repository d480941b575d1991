/*
 * What a virtio device has promised its guest
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "hw/virtio/virtio-bus.h"
#include "hw/virtio/virtio-mem.h"
#include "hw/virtio/virtio-promises.h"
#include "hw/virtio/virtio-qmp.h"
#include "hw/virtio/virtio-serial.h"

static char *virtio_feature_text(void *opaque, unsigned bit)
{
    VirtIODevice *vdev = opaque;
    VirtioDeviceFeatures *features = virtio_decode_feature(vdev, bit);
    strList *name = features->transports ?: features->dev_features;
    char *text = name ? g_strndup(name->value, strcspn(name->value, ":"))
                      : g_strdup_printf("feature bit %u", bit);

    qapi_free_VirtioDeviceFeatures(features);
    return text;
}

/*
 * How many queues the guest uses.  A driver may set up more than it uses.  With
 * a vhost backend some may be missed, since it is the one that knows.
 */
static int virtio_queues_used(VirtIODevice *vdev, int queues)
{
    /* With packed rings, other bits say which way round they are */
    unsigned mask = virtio_vdev_has_feature(vdev, VIRTIO_F_RING_PACKED)
        ? 0x7fff7fff : UINT_MAX;

    while (queues > 0 && (!virtio_queue_get_addr(vdev, queues - 1) ||
                          !(virtio_queue_get_last_avail_idx(vdev, queues - 1) &
                            mask))) {
        queues--;
    }
    return queues;
}

void virtio_promises(VMStatePromises *p, VirtIODevice *vdev,
                     const uint64_t *guest, const uint64_t *host, int words)
{
    VirtioDeviceClass *vdc = VIRTIO_DEVICE_GET_CLASS(vdev);
    BusState *qbus = qdev_get_parent_bus(DEVICE(vdev));
    VirtioBusClass *k = VIRTIO_BUS_GET_CLASS(qbus);
    int queues = virtio_get_num_queues(vdev);

    if (k->promises) {
        k->promises(qbus->parent, p);
    }
    migration_promise_bits(p, "virtio-features", MIGRATION_BREACH_LOAD, guest,
                           host, words, virtio_feature_text, vdev);
    /* Nothing says no to more of them, but nobody looks into them */
    migration_promise_at_most(p, "virtio-queues", NULL, MIGRATION_BREACH_LOSS,
                              virtio_queues_used(vdev, queues),
                              vdc->pre_load_queues ? UINT64_MAX : queues);
    if (vdc->vmsd) {
        migration_promises_vmsd(p, vdc->vmsd, vdev);
    }
}

static bool has_port(const VirtIOSerial *s, uint32_t id)
{
    const VirtIOSerialPort *port;

    QTAILQ_FOREACH(port, &s->ports, next) {
        if (port->id == id) {
            return true;
        }
    }
    return false;
}

void virtio_serial_promises(VMStatePromises *p, void *opaque)
{
    const VirtIOSerial *s = opaque;
    unsigned words = DIV_ROUND_UP(s->serial.max_virtserial_ports, 32);
    g_autoptr(GString) ports = g_string_new(NULL);

    for (unsigned i = 0; i < words * 32; i++) {
        /* Port 0 is reserved, be it there or not */
        if (has_port(s, i)) {
            g_string_append_printf(ports, "%s%u", ports->len ? "," : "", i);
        }
    }
    migration_promise_text(p, "ports", NULL, MIGRATION_BREACH_LOAD,
                           ports->len ? ports->str : "none");
    migration_promise_value(p, "ports_map", words);
}

void virtio_mem_promises(VMStatePromises *p, void *opaque)
{
    VirtIOMEM *vmem = opaque;

    migration_promise_value(p, "addr", vmem->addr);
    migration_promise_value(p, "region_size",
                            memory_region_size(&vmem->memdev->mr));
    migration_promise_value(p, "block_size", vmem->block_size);
    migration_promise_value(p, "node", vmem->node);
}
