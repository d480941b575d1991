/*
 * Migration handshake: fuzz the reader of frames on the return path
 *
 * The first byte says whether a LAST WORD was agreed on, and whether there was
 * a handshake at all; what a destination sends follows.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "io/channel-buffer.h"
#include "migration/handshake.h"
#include "migration/qemu-file.h"
#include "qapi/error.h"
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
    MigrationHandshake *h;
    QEMUFile *rp;

    stubs_reset();
    info = handshake_info_new(MIGRATION_HANDSHAKE_ROLE_SOURCE, false);
    handshake_info_publish(info);
    h = migrate_get_current()->handshake;
    h->in_session = !(what & 1);
    h->late_error = h->in_session && !(what & 2);

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

    migration_handshake_outgoing_cleanup();
    stubs_check_idle();
}
