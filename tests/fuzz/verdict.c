/*
 * Migration handshake: fuzz the reader of ACCEPT and REJECT
 *
 * The first byte says which one it is.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "qapi/error.h"
#include "fuzz.h"

void fuzz_one(const uint8_t *data, size_t size)
{
    FuzzInput in = { data, data + size };
    const bool accept = fuzz_byte(&in) & 1;
    g_autoptr(GString) json = g_string_new_len((const char *)in.pos,
                                               in.end - in.pos);
    GByteArray *buf;
    g_auto(FuzzError) err = NULL;
    g_autoptr(HandshakeVerdict) verdict =
        handshake_get_verdict(json, accept, &err);
    g_autoptr(HandshakeVerdict) again = NULL;
    g_autoptr(GString) copy = NULL;

    g_assert(!verdict == !!err);
    if (!verdict) {
        g_assert(accept);
        return;
    }
    g_assert(verdict->accept == accept);
    fuzz_check_verdict(verdict);

    buf = g_byte_array_new();
    g_assert_true(handshake_put_verdict(buf, verdict, &error_abort));
    copy = fuzz_payload(buf, accept ? HANDSHAKE_FRAME_ACCEPT
                                    : HANDSHAKE_FRAME_REJECT);
    again = handshake_get_verdict(copy, accept, &error_abort);
    fuzz_check_verdict(again);
    g_assert_cmpstr(again->message->message, ==, verdict->message->message);
    g_assert_cmpuint(again->issues.listed + again->issues.omitted, ==,
                     verdict->issues.listed + verdict->issues.omitted);
}
