/*
 * What a device has promised its guest of a disk
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "block/block_int-common.h"
#include "block/promises.h"
#include "system/block-backend.h"

/* As it was when somebody looked last: without I/O */
static uint64_t blk_known_size(BlockBackend *blk)
{
    BlockDriverState *bs = blk_bs(blk);

    return bs ? bs->total_sectors * BDRV_SECTOR_SIZE : 0;
}

void blk_promises(VMStatePromises *p, const char *unit, BlockBackend *blk,
                  const char *type, const char *serial, uint32_t block_size)
{
    bool fixed = blk && strcmp(type, "cd");
    bool writable = fixed && (blk_is_writable(blk) ||
                              blk_supports_write_perm(blk));
    uint64_t size;

    migration_promise_text(p, "disks", unit,
                           blk ? MIGRATION_BREACH_CHANGE
                               : MIGRATION_BREACH_LOSS, blk ? type : NULL);
    migration_promise_member(p, "disk-writable", MIGRATION_BREACH_LOSS, unit,
                             writable, writable || !blk);
    if (!fixed) {
        return;
    }
    /*
     * Until a destination activates an image, it may not have noticed that it
     * has grown on the source.
     */
    size = blk_known_size(blk);
    migration_promise_at_most(p, "disk-sizes", unit, MIGRATION_BREACH_CHANGE,
                              size, size);
    migration_promise_text(p, "disk-serials", unit, MIGRATION_BREACH_CHANGE,
                           serial && *serial ? serial : NULL);
    migration_promise_equal(p, "disk-block-sizes", unit,
                            MIGRATION_BREACH_CHANGE, block_size);
}
