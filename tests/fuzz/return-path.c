/*
 * Migration handshake: fuzz the reader of frames on the return path
 *
 * The first byte says whether there was a handshake at all, which features were
 * agreed on, and whether the stream is over; what a destination sends follows.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "io/channel-buffer.h"
#include "migration/handshake.h"
#include "migration/qemu-file.h"
#include "migration/yank_functions.h"
#include "qapi/error.h"
#include "qapi/util.h"
#include "qemu/yank.h"
#include "../../migration/handshake/conversation.h"
#include "fuzz.h"
#include "stubs.h"

void fuzz_one(const uint8_t *data, size_t size)
{
    FuzzInput in = { data, data + size };
    const uint8_t what = fuzz_byte(&in);
    size_t len = size;
    const uint8_t *bytes = fuzz_bytes(&in, &len);
    QIOChannelBuffer *ioc = qio_channel_buffer_new(len);
    g_autoptr(MigrationHandshakeInfo) info = NULL;
    g_autoptr(strList) features = NULL;
    MigrationState *s = migrate_get_current();
    MigrationHandshake *h;
    QEMUFile *rp;

    stubs_reset();
    info = handshake_info_new(MIGRATION_HANDSHAKE_ROLE_SOURCE, false);
    handshake_info_publish(info);
    h = s->handshake;
    s->state = what & 8 ? MIGRATION_STATUS_ACTIVE : MIGRATION_STATUS_DEVICE;
    yank_register_instance(MIGRATION_YANK_INSTANCE, &error_abort);
    if (!(what & 2)) {
        QAPI_LIST_PREPEND(features, g_strdup(HANDSHAKE_FEATURE_LATE_ERROR));
    }
    if (!(what & 4)) {
        QAPI_LIST_PREPEND(features, g_strdup(HANDSHAKE_FEATURE_ONE_OWNER));
    }
    if (!(what & 1)) {
        h->in_session = true;
        h->end = handshake_end_new(features);
    }

    if (len) {
        memcpy(ioc->data, bytes, len);
    }
    ioc->usage = len;
    rp = qemu_file_new_input(QIO_CHANNEL(ioc));
    object_unref(OBJECT(ioc));
    stubs_read_return_path(rp);
    qemu_fclose(rp);
    fuzz_run();
    fuzz_check_info(h->info);

    s->state = MIGRATION_STATUS_NONE;
    migration_handshake_outgoing_cleanup();
    yank_unregister_instance(MIGRATION_YANK_INSTANCE);
    stubs_check_idle();
}
