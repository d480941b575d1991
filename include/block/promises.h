/*
 * What a device has promised its guest of a disk
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef BLOCK_PROMISES_H
#define BLOCK_PROMISES_H

#include "migration/promises.h"

/**
 * blk_promises: what the guest sees of a disk
 * @p: the promises of a section
 * @unit: which one of the device's disks it is
 * @blk: what is behind it; NULL: there is no such disk
 * @type: "hd", "cd", ...
 * @serial: its serial number, may be NULL
 * @block_size: bytes in a logical block
 *
 * A medium that can be changed promises less.
 */
void blk_promises(VMStatePromises *p, const char *unit, BlockBackend *blk,
                  const char *type, const char *serial, uint32_t block_size);

#endif
