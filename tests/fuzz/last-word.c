/*
 * Migration handshake: fuzz the readers of COMMIT and ABORT
 *
 * The first byte says which one it is.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "qapi/error.h"
#include "../migration/handshake-message.h"
#include "../migration/handshake-wire.h"
#include "fuzz.h"

static void read_commit(const char *text, size_t len)
{
    g_autoptr(Error) err = NULL;
    g_autofree char *digest = handshake_commit_from_json(text, len, &err);
    g_autofree char *json = NULL;
    g_autofree char *again = NULL;

    g_assert(!digest == !!err);
    if (digest) {
        json = handshake_commit_to_json(digest);
        again = handshake_commit_from_json(json, strlen(json), &error_abort);
        g_assert_cmpstr(again, ==, digest);
    }
}

static void read_abort(const char *text, size_t len)
{
    HandshakeIssues issues = { 0 };
    g_autoptr(Error) err = NULL;
    g_autofree char *message = handshake_abort_from_json(text, len, &issues,
                                                         &err);
    g_autofree char *json = NULL;
    g_autofree char *again = NULL;

    g_assert(!message == !!err);
    fuzz_check_text(message);
    fuzz_check_issues(&issues);
    if (message) {
        HandshakeIssues more = { 0 };

        json = handshake_abort_to_json(message, &issues);
        g_assert_cmpuint(strlen(json), <=, HANDSHAKE_FRAME_MAX);
        again = handshake_abort_from_json(json, strlen(json), &more,
                                          &error_abort);
        g_assert_cmpstr(again, ==, message);
        g_assert_cmpuint(more.listed + more.omitted, ==,
                         issues.listed + issues.omitted);
        handshake_issues_free(&more);
    }
    handshake_issues_free(&issues);
}

void fuzz_one(const uint8_t *data, size_t size)
{
    FuzzInput in = { data, data + size };
    const bool commit = fuzz_byte(&in) & 1;
    const char *text = (const char *)in.pos;

    if (commit) {
        read_commit(text, in.end - in.pos);
    } else {
        read_abort(text, in.end - in.pos);
    }
}
