/*
 * Migration handshake: fuzz the readers of COMMIT, ABORT, LOADED and LAST WORD
 *
 * The first byte says which one it is.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "qapi/error.h"
#include "fuzz.h"

static void read_commit(const GString *json)
{
    g_auto(FuzzError) err = NULL;
    g_autoptr(MigrationHandshakeCommit) commit =
        handshake_get_commit(json, &err);
    g_autoptr(MigrationHandshakeCommit) again = NULL;
    g_autoptr(GString) copy = NULL;
    const MigrationHandshakeDeclinedList *l;
    GByteArray *buf;

    g_assert(!commit == !!err);
    if (commit) {
        for (l = commit->without; l; l = l->next) {
            fuzz_check_text(l->value->capability);
            fuzz_check_text(l->value->reason);
        }
        buf = g_byte_array_new();
        g_assert_true(handshake_put_commit(buf, commit, &error_abort));
        copy = fuzz_payload(buf, HANDSHAKE_FRAME_COMMIT);
        again = handshake_get_commit(copy, &error_abort);
        g_assert_cmpstr(again->digest, ==, commit->digest);
    }
}

static void read_reason(const GString *json, HandshakeFrameType type)
{
    HandshakeIssues issues = { 0 };
    HandshakeIssues more = { 0 };
    g_autoptr(MigrationHandshakeReason) reason =
        handshake_get_reason(json, &issues);
    g_autoptr(MigrationHandshakeReason) again = NULL;
    g_autoptr(GString) copy = NULL;
    GByteArray *buf = g_byte_array_new();

    g_assert(reason->message);
    fuzz_check_text(reason->message);
    if (reason->guest) {
        fuzz_check_text(reason->guest);
    }
    fuzz_check_issues(&issues);

    g_assert_true(handshake_put_reason(buf, type, reason, &issues,
                                       &error_abort));
    copy = fuzz_payload(buf, type);
    again = handshake_get_reason(copy, &more);
    g_assert_cmpstr(again->message, ==, reason->message);
    g_assert_cmpstr(again->guest, ==, reason->guest);
    g_assert_cmpint(again->loaded, ==, reason->loaded);
    g_assert_cmpuint(more.listed + more.omitted, ==,
                     issues.listed + issues.omitted);
    handshake_issues_free(&issues);
    handshake_issues_free(&more);
}

void fuzz_one(const uint8_t *data, size_t size)
{
    FuzzInput in = { data, data + size };
    const uint8_t which = fuzz_byte(&in);
    g_autoptr(GString) json = g_string_new_len((const char *)in.pos,
                                               in.end - in.pos);

    if (which & 1) {
        read_commit(json);
    } else if (which & 4) {
        read_reason(json, HANDSHAKE_FRAME_LOADED);
    } else {
        read_reason(json, which & 2 ? HANDSHAKE_FRAME_LAST_WORD
                                    : HANDSHAKE_FRAME_ABORT);
    }
}
