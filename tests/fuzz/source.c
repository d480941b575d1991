/*
 * Migration handshake: fuzz the source's side of the conversation
 *
 * An input is a script.  Its first bytes say what the source wants; then come
 * operations of the peer, of a QMP client, and of time.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "qapi/error.h"
#include "qapi/util.h"
#include "qemu/cutils.h"
#include "qemu/timer.h"
#include "qobject/qjson.h"
#include "../migration/handshake-json.h"
#include "../migration/handshake-policy.h"
#include "../migration/handshake-settings.h"
#include "../migration/handshake-source.h"
#include "peer.h"
#include "stubs.h"

#define STEPS_MAX       64

/* One input's world */
static struct {
    FuzzPeer *peer;
    HandshakeSource *conversation;      /* NULL once it has ended */
    bool check_only;
    bool warnings_as_errors;
    bool cancelled;
    bool ended;
    bool agreed;
    QemuUUID session;
} world;

static bool has_capability(const strList *list, const char *name)
{
    return handshake_strlist_contains(list, name);
}

/* What is on now is what ACCEPT said, and nothing else that is negotiable */
static void check_settings(const HandshakeVerdict *verdict)
{
    g_autoptr(strList) enabled = stubs_capabilities();
    const strList *l;

    for (l = verdict->capabilities; l; l = l->next) {
        g_assert(has_capability(enabled, l->value));
    }
    for (l = enabled; l; l = l->next) {
        g_assert(handshake_policy_capability(l->value) !=
                 HANDSHAKE_POLICY_TAKEN ||
                 has_capability(verdict->capabilities, l->value));
    }
}

/* The peer has said ACCEPT, and knows that this source agrees */
static void check_agreement(void)
{
    FuzzPeer *peer = world.peer;
    g_autoptr(GString) accept = NULL;
    g_autoptr(GString) commit = NULL;
    g_autoptr(HandshakeVerdict) verdict = NULL;
    g_autoptr(GByteArray) rest = NULL;
    g_autofree char *digest = NULL;
    g_autofree char *expected = NULL;
    HandshakeHeader header;
    size_t verdict_end, hello, size;

    handshake_header_parse(peer->said->data, &header, &size, &error_abort);
    g_assert_cmpstr(header.name, ==, HANDSHAKE_CHANNEL_MAIN);
    g_assert(!qemu_uuid_is_null(&header.session));
    g_assert(qemu_uuid_is_equal(&header.session, &world.session));

    verdict_end = fuzz_find_frame(peer->said, HANDSHAKE_FRAME_ACCEPT, 0,
                                  &accept);
    g_assert(verdict_end);
    g_assert_cmpuint(verdict_end, ==,
                     fuzz_find_frame(peer->said, 0, 0, NULL));
    verdict = handshake_verdict_from_json(accept->str, accept->len, true,
                                          &error_abort);
    g_assert_cmpuint(verdict->version, ==, HANDSHAKE_VERSION);
    g_assert(!world.warnings_as_errors ||
             (!verdict->issues.warnings && !verdict->issues.errors));

    peer->deaf = false;
    fuzz_peer_listen(peer);
    if (peer->fd >= 0) {
        hello = fuzz_find_frame(peer->heard, HANDSHAKE_FRAME_HELLO, 0, NULL);
        g_assert(hello);
        size = fuzz_find_frame(peer->heard, 0, hello, &commit);
        if (world.check_only) {
            g_assert(!size);
        } else {
            g_assert_cmpuint(size, ==, peer->heard->len);
            digest = handshake_commit_from_json(commit->str, commit->len,
                                                &error_abort);
            expected = fuzz_digest(peer->heard, hello, peer->said,
                                   verdict_end);
            g_assert_cmpstr(digest, ==, expected);
        }
    }
    if (!world.check_only) {
        check_settings(verdict);
    }
    /* What follows the verdict is the return path's */
    rest = fuzz_rest(peer->ioc);
    g_assert_cmpuint(verdict_end + rest->len, ==, peer->said->len);
}

static void done(Error *err, const QemuUUID *session, void *opaque)
{
    g_assert(!world.ended);
    world.ended = true;
    world.conversation = NULL;
    world.agreed = !err;
    world.session = *session;
    if (!err) {
        check_agreement();
    }
}

static void run(void)
{
    do {
        fuzz_run();
    } while (fuzz_peer_listen(world.peer));
}

static void say(const GByteArray *buf)
{
    fuzz_peer_say(world.peer, buf->data, buf->len);
}

static void put_main_header(GByteArray *buf)
{
    HandshakeHeader header = { .name = HANDSHAKE_CHANNEL_MAIN };

    if (!world.peer->said->len) {
        header.session.data[0] = 1;
        handshake_header_put(buf, &header);
    }
}

static void op_header(FuzzInput *in)
{
    static const char *const names[] = { "main", "main", "multifd", "x" };
    const uint8_t what = fuzz_byte(in);
    HandshakeHeader header = { .index = fuzz_byte(in) };
    g_autoptr(GByteArray) buf = g_byte_array_new();

    pstrcpy(header.name, sizeof(header.name), names[what & 3]);
    header.session.data[what & 15] = what;
    handshake_header_put(buf, &header);
    say(buf);
}

static HandshakeHello *read_hello(void)
{
    g_autoptr(GString) json = NULL;

    if (!fuzz_find_frame(world.peer->heard, HANDSHAKE_FRAME_HELLO, 0, &json)) {
        return NULL;
    }
    return handshake_hello_from_json(json->str, json->len, NULL, &error_abort);
}

/* What an honest destination would say, and a little beside it */
static void op_accept(FuzzInput *in)
{
    const uint8_t what = fuzz_byte(in);
    g_autoptr(HandshakeHello) hello = read_hello();
    g_autoptr(HandshakeVerdict) verdict = handshake_verdict_new();
    strList **tail = &verdict->capabilities;
    g_autoptr(GByteArray) buf = g_byte_array_new();
    g_autofree char *json = NULL;
    const strList *l;

    if (!hello) {
        return;
    }
    verdict->accept = true;
    verdict->version = what & 1 ? fuzz_byte(in) : HANDSHAKE_VERSION;
    verdict->features = handshake_features();
    if (!(what & 2)) {
        QAPI_LIST_APPEND(tail, g_strdup("return-path"));
    }
    for (l = hello->profile->required; l; l = l->next) {
        QAPI_LIST_APPEND(tail, g_strdup(l->value));
    }
    for (l = hello->optional; l; l = l->next) {
        if (what & 4 || fuzz_byte(in) & 1) {
            QAPI_LIST_APPEND(tail, g_strdup(l->value));
        }
    }
    if (what & 8) {
        QAPI_LIST_APPEND(tail, g_strdup(MigrationCapability_str(
            fuzz_byte(in) % MIGRATION_CAPABILITY__MAX)));
    }
    if (!(what & 16)) {
        verdict->parameters = qdict_new();
        for (l = verdict->capabilities; l; l = l->next) {
            QObject *group = qdict_get(hello->profile->parameters, l->value);

            if (group) {
                qdict_put_obj(verdict->parameters, l->value,
                              qobject_ref(group));
            }
        }
    }
    if (what & 32) {
        handshake_issue_add(&verdict->issues, "uuid",
                            MIGRATION_HANDSHAKE_SEVERITY_WARNING, NULL, NULL,
                            NULL, "it differs");
    }
    json = handshake_verdict_to_json(verdict);
    put_main_header(buf);
    fuzz_put_json(buf, HANDSHAKE_FRAME_ACCEPT, json);
    say(buf);
}

static void op_reject(FuzzInput *in)
{
    g_autoptr(HandshakeVerdict) verdict = handshake_verdict_new();
    g_autoptr(GByteArray) buf = g_byte_array_new();
    g_autofree char *json = NULL;

    for (int n = fuzz_byte(in) * 2; n > 0; n--) {
        handshake_issue_add(&verdict->issues, "section-missing",
                            n % 3, "ram", NULL, NULL, "there is none");
    }
    json = handshake_verdict_to_json(verdict);
    put_main_header(buf);
    fuzz_put_json(buf, HANDSHAKE_FRAME_REJECT, json);
    say(buf);
}

static void op_own_verdict(FuzzInput *in)
{
    const bool accept = fuzz_byte(in) & 1;
    size_t len = fuzz_u16(in);
    const uint8_t *bytes = fuzz_bytes(in, &len);
    g_autoptr(GByteArray) buf = g_byte_array_new();

    put_main_header(buf);
    fuzz_put_frame(buf, accept ? HANDSHAKE_FRAME_ACCEPT
                               : HANDSHAKE_FRAME_REJECT,
                   HANDSHAKE_FRAME_CRITICAL, bytes, len);
    say(buf);
}

static void op_frame(FuzzInput *in)
{
    g_autoptr(GByteArray) buf = g_byte_array_new();

    put_main_header(buf);
    fuzz_put_any_frame(buf, in);
    say(buf);
}

static void op_grease(FuzzInput *in)
{
    g_autoptr(GByteArray) buf = g_byte_array_new();

    put_main_header(buf);
    fuzz_put_grease(buf, in);
    say(buf);
}

static void op_bytes(FuzzInput *in)
{
    size_t len = fuzz_byte(in);
    const uint8_t *bytes = fuzz_bytes(in, &len);

    fuzz_peer_say(world.peer, bytes, len);
}

static void op_close(FuzzInput *in)
{
    fuzz_peer_close(world.peer);
}

static void op_finish(FuzzInput *in)
{
    fuzz_peer_finish(world.peer);
}

static void op_deaf(FuzzInput *in)
{
    world.peer->deaf = !world.peer->deaf;
}

static void op_wait(FuzzInput *in)
{
    fuzz_advance(fuzz_byte(in) * 500);
}

static void op_turn(FuzzInput *in)
{
    for (int n = fuzz_byte(in) % 8; n >= 0; n--) {
        g_main_context_iteration(NULL, false);
    }
}

static void op_cancel(FuzzInput *in)
{
    if (world.conversation) {
        world.cancelled = true;
        handshake_source_cancel(world.conversation);
    }
}

static void op_set(FuzzInput *in)
{
    const uint8_t what = fuzz_byte(in);

    stubs_set_capability(what >> 1, what & 1);
}

static void op_set_channels(FuzzInput *in)
{
    stubs_set_multifd_channels(fuzz_byte(in));
}

static void (*const ops[])(FuzzInput *in) = {
    op_accept, op_reject, op_own_verdict, op_header, op_frame, op_grease,
    op_bytes, op_close, op_finish, op_deaf, op_wait, op_turn, op_cancel,
    op_set, op_set_channels,
};

static void begin(FuzzInput *in)
{
    const uint8_t what = fuzz_byte(in);
    g_autoptr(MigrationHandshakeOptions) options =
        g_new0(MigrationHandshakeOptions, 1);
    MigrationCapabilityList **tail = &options->optional_capabilities;

    options->has_check_only = true;
    options->check_only = world.check_only = what & 1;
    options->has_warnings_as_errors = true;
    options->warnings_as_errors = world.warnings_as_errors = what & 2;
    options->has_timeout = what & 4;
    options->timeout = what & 4 ? fuzz_byte(in) : 0;
    options->has_optional_capabilities = what & 8;
    for (int n = what & 8 ? fuzz_byte(in) % 8 : 0; n > 0; n--) {
        MigrationCapability capability =
            fuzz_byte(in) % MIGRATION_CAPABILITY__MAX;

        QAPI_LIST_APPEND(tail, capability);
    }
    if (what & 16) {
        op_set(in);
        op_set(in);
    }
    world.conversation =
        handshake_source_start(world.peer->ioc, what & 32,
                               qemu_clock_get_ms(QEMU_CLOCK_REALTIME),
                               what & 64 ? NULL : options, done, NULL);
    if (what & 64) {
        world.check_only = world.warnings_as_errors = false;
    }
}

void fuzz_one(const uint8_t *data, size_t size)
{
    FuzzInput in = { data, data + size };

    memset(&world, 0, sizeof(world));
    stubs.small_machine = true;
    world.peer = fuzz_peer_new();
    begin(&in);
    for (int step = 0; in.pos < in.end && step < STEPS_MAX; step++) {
        const uint8_t op = fuzz_byte(&in);

        ops[(op & 127) % ARRAY_SIZE(ops)](&in);
        if (op < 128) {
            run();
        }
    }
    run();
    op_close(NULL);
    fuzz_run();

    g_assert(world.ended);
    /* As migration_handshake_source_cleanup(), whatever came of it */
    handshake_settings_give_back();
    stubs_check_settings();
    fuzz_advance(4000 * 1000);
    fuzz_peer_free(world.peer);
}
