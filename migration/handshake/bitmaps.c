/*
 * Migration handshake: dirty bitmaps in what this machine is
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "block/block.h"
#include "migration/migration.h"
#include "migration/options.h"
#include "qapi/util.h"
#include "system/block-backend.h"
#include "machine.h"

/* @name: NULL for any; @opaque: where to append it */
static void add_bitmap(const char *node, const char *name, void *opaque)
{
    MigrationProfileBitmapList ***tail = opaque;
    MigrationProfileBitmap *bitmap = g_new0(MigrationProfileBitmap, 1);

    bitmap->node = g_strdup(node);
    bitmap->name = g_strdup(name);
    QAPI_LIST_APPEND(*tail, bitmap);
}

/* As the loader looks up what it has been told the names of */
static void add_mapped(MigrationProfileBitmapList **tail)
{
    const BitmapMigrationNodeAliasList *l = migrate_block_bitmap_mapping();

    for (; l; l = l->next) {
        const BitmapMigrationBitmapAliasList *b = l->value->bitmaps;

        for (; bdrv_find_node(l->value->node_name) && b; b = b->next) {
            add_bitmap(l->value->alias, b->value->alias, &tail);
        }
    }
}

/* As it looks up all others */
static void add_nodes(MigrationProfileBitmapList **tail)
{
    BlockDriverState *bs = NULL;
    BlockBackend *blk = NULL;

    while ((blk = blk_next(blk))) {
        if (*blk_name(blk) && blk_bs(blk)) {
            add_bitmap(blk_name(blk), NULL, &tail);
        }
    }
    while ((bs = bdrv_next_node(bs))) {
        add_bitmap(bdrv_get_node_name(bs), NULL, &tail);
    }
}

void handshake_profile_add_bitmaps(MigrationProfile *profile,
                                   MigrationHandshakeRole role)
{
    MigrationProfileBitmapList **tail = &profile->bitmaps;

    if (role == MIGRATION_HANDSHAKE_ROLE_DESTINATION) {
        profile->has_bitmaps = true;
        if (migrate_has_block_bitmap_mapping()) {
            add_mapped(tail);
        } else {
            add_nodes(tail);
        }
        return;
    }
    dirty_bitmap_mig_foreach(add_bitmap, &tail);
    if (QAPI_LIST_LENGTH(profile->bitmaps) > HANDSHAKE_BITMAPS_MAX) {
        g_clear_pointer(&profile->bitmaps,
                        qapi_free_MigrationProfileBitmapList);
    }
    profile->has_bitmaps = profile->bitmaps;
}
