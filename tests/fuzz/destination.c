/*
 * Migration handshake: fuzz the destination's side of the conversation
 *
 * An input is a script: pairs of bytes, an operation and which connection it is
 * for, and what the operation takes.  Connections come, talk, go silent and
 * leave in any order, and time passes.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "qapi/error.h"
#include "qemu/cutils.h"
#include "qobject/qdict.h"
#include "../migration/handshake-destination.h"
#include "../migration/handshake-json.h"
#include "../migration/handshake-policy.h"
#include "../migration/handshake-settings.h"
#include "peer.h"
#include "stubs.h"

#define SLOTS           8
#define PEERS_MAX       160
#define STEPS_MAX       64

static const HandshakeSink sink;

/* One input's world */
static struct {
    GPtrArray *peers;           /* of FuzzPeer, also those that are gone */
    FuzzPeer *slots[SLOTS];     /* those that the script can name */
    bool tls[SLOTS];            /* TLS "negotiates" */
    bool crowd;                 /* strangers took all the room */
    bool prepare_fails;
    bool prepared;
    bool running;               /* a migration was delivered */
    bool over;                  /* ... and has ended */
    unsigned multifd;           /* channels that were delivered */
    bool preempt;               /* so was this one */
    bool may_preempt;           /* what runs has one */
} world;

static FuzzPeer *find_peer(const QIOChannel *ioc)
{
    for (guint i = 0; i < world.peers->len; i++) {
        FuzzPeer *peer = g_ptr_array_index(world.peers, i);

        if (peer->ioc == ioc) {
            return peer;
        }
    }
    g_assert_not_reached();
}

/* Header and session of what the destination said; false if it said none */
static bool get_session(const FuzzPeer *peer, QemuUUID *session)
{
    HandshakeHeader header;
    size_t size;

    if (peer->heard->len < HANDSHAKE_HEADER_SIZE) {
        return false;
    }
    handshake_header_parse(peer->heard->data, &header, &size, &error_abort);
    *session = header.session;
    return true;
}

/* The last one that somebody was told, be it with ACCEPT or with REJECT */
static QemuUUID current_session(void)
{
    QemuUUID session = { 0 };

    for (guint i = world.peers->len; i-- > 0;) {
        if (get_session(g_ptr_array_index(world.peers, i), &session)) {
            break;
        }
    }
    return session;
}

static bool sink_prepare(Error **errp)
{
    g_assert(!world.prepared);
    if (world.prepare_fails) {
        error_setg(errp, "not today");
        return false;
    }
    world.prepared = true;
    return true;
}

static void check_channel(QIOChannel *ioc, const char *name, unsigned index)
{
    const FuzzPeer *peer = find_peer(ioc);
    HandshakeHeader header;
    size_t size;

    g_assert(world.prepared);
    g_assert_cmpuint(peer->said->len, >=, HANDSHAKE_HEADER_SIZE);
    handshake_header_parse(peer->said->data, &header, &size, &error_abort);
    g_assert_cmpstr(header.name, ==, name);
    g_assert_cmpuint(header.index, ==, index);
}

static void sink_multifd(QIOChannel *ioc, unsigned index)
{
    g_assert(!world.running);
    g_assert_cmpuint(index, ==, world.multifd);
    world.multifd++;
    check_channel(ioc, HANDSHAKE_CHANNEL_MULTIFD, index);
}

static void sink_preempt(QIOChannel *ioc)
{
    g_assert(!world.preempt);
    g_assert(!world.running || world.may_preempt);
    world.preempt = true;
    check_channel(ioc, HANDSHAKE_CHANNEL_PREEMPT, 0);
}

/* Who gets here was told ACCEPT, and has said COMMIT with the right digest */
static void check_conversation(FuzzPeer *peer)
{
    const size_t hello = fuzz_find_frame(peer->said, 0, 0, NULL);
    g_autoptr(GString) accept = NULL;
    g_autoptr(GString) commit = NULL;
    g_autofree char *expected = NULL;
    g_autofree char *digest = NULL;
    g_autoptr(HandshakeVerdict) verdict = NULL;
    g_autoptr(QDict) values = NULL;
    g_autoptr(GByteArray) rest = NULL;
    size_t verdict_end, commit_end;

    peer->deaf = false;
    fuzz_peer_listen(peer);
    verdict_end = fuzz_find_frame(peer->heard, HANDSHAKE_FRAME_ACCEPT, 0,
                                  &accept);
    commit_end = fuzz_find_frame(peer->said, 0, hello, &commit);
    /* What has been said to a peer that is gone, nobody knows */
    world.may_preempt = peer->fd < 0;
    if (peer->fd >= 0) {
        g_assert(hello && verdict_end && commit_end);
        g_assert_cmpuint(verdict_end, ==, peer->heard->len);
        digest = handshake_commit_from_json(commit->str, commit->len,
                                            &error_abort);
        expected = fuzz_digest(peer->said, hello, peer->heard, verdict_end);
        g_assert_cmpstr(digest, ==, expected);

        verdict = handshake_verdict_from_json(accept->str, accept->len, true,
                                              &error_abort);
        values = handshake_policy_values(verdict->capabilities,
                                         verdict->parameters);
        g_assert_cmpuint(world.multifd, ==,
                         qdict_get_try_int(values, "multifd-channels", 0));
        world.may_preempt = handshake_strlist_contains(verdict->capabilities,
                                                       "postcopy-preempt");
        g_assert(!world.preempt || world.may_preempt);
    }
    /* The loader gets all that comes after COMMIT */
    rest = fuzz_rest(peer->ioc);
    g_assert_cmpuint(commit_end + rest->len, ==, peer->said->len);
    g_assert(!rest->len || !memcmp(peer->said->data + commit_end, rest->data,
                                   rest->len));
}

static void sink_start(QIOChannel *ioc)
{
    g_assert(world.prepared && !world.running);
    check_conversation(find_peer(ioc));
    world.running = true;
}

static const HandshakeSink sink = {
    .prepare = sink_prepare,
    .multifd = sink_multifd,
    .preempt = sink_preempt,
    .start = sink_start,
};

/* All that a destination may ever say before the stream */
static void check_answer(const FuzzPeer *peer)
{
    const GByteArray *heard = peer->heard;
    g_autoptr(HandshakeVerdict) verdict = NULL;
    g_autoptr(GString) accept = NULL;
    g_autoptr(GString) reject = NULL;
    QemuUUID session;
    size_t end;

    if (!heard->len || heard->data[0] == 0x15 || !get_session(peer, &session)) {
        /* Nothing, or an alert of TLS */
        return;
    }
    end = fuzz_find_frame(heard, HANDSHAKE_FRAME_ACCEPT, 0, &accept) ?:
          fuzz_find_frame(heard, HANDSHAKE_FRAME_REJECT, 0, &reject);
    if (end) {
        g_assert_cmpuint(end, ==, heard->len);
        verdict = handshake_verdict_from_json((accept ?: reject)->str,
                                              (accept ?: reject)->len,
                                              accept != NULL, &error_abort);
        fuzz_check_verdict(verdict);
        g_assert(accept ? !qemu_uuid_is_null(&session)
                        : verdict->message != NULL);
    }
}

/* Until nobody has anything to say */
static void run(void)
{
    bool heard;

    do {
        fuzz_run();
        heard = false;
        for (guint i = 0; i < world.peers->len; i++) {
            heard |= fuzz_peer_listen(g_ptr_array_index(world.peers, i));
        }
    } while (heard);
}

static FuzzPeer *new_peer(void)
{
    FuzzPeer *peer = fuzz_peer_new();

    g_ptr_array_add(world.peers, peer);
    return peer;
}

static void op_connect(FuzzInput *in, unsigned slot)
{
    if (world.tls[slot]) {
        world.tls[slot] = false;
        if (world.over) {
            handshake_destination_too_late(world.slots[slot]->ioc);
        } else {
            handshake_destination_accept(world.slots[slot]->ioc, &sink);
        }
    } else if (world.peers->len < PEERS_MAX && !world.over) {
        world.slots[slot] = new_peer();
        handshake_destination_accept(world.slots[slot]->ioc, &sink);
    }
}

static void op_connect_tls(FuzzInput *in, unsigned slot)
{
    if (!world.tls[slot] && world.peers->len < PEERS_MAX && !world.over) {
        world.slots[slot] = new_peer();
        world.tls[slot] = true;
        /* As migration_handshake_before_tls() */
        qio_channel_set_blocking(world.slots[slot]->ioc, false, NULL);
        handshake_destination_before_tls(world.slots[slot]->ioc);
    }
}

static void op_tls_failed(FuzzInput *in, unsigned slot)
{
    if (world.tls[slot]) {
        world.tls[slot] = false;
        handshake_destination_tls_failed(world.slots[slot]->ioc);
    }
}

static void op_bytes(FuzzInput *in, unsigned slot)
{
    size_t len = fuzz_byte(in);
    const uint8_t *bytes = fuzz_bytes(in, &len);

    if (world.slots[slot]) {
        fuzz_peer_say(world.slots[slot], bytes, len);
    }
}

static void say(unsigned slot, const GByteArray *buf)
{
    if (world.slots[slot]) {
        fuzz_peer_say(world.slots[slot], buf->data, buf->len);
    }
}

static void op_header(FuzzInput *in, unsigned slot)
{
    static const char *const names[] = {
        HANDSHAKE_CHANNEL_MAIN, HANDSHAKE_CHANNEL_MULTIFD,
        HANDSHAKE_CHANNEL_PREEMPT, "other"
    };
    const uint8_t what = fuzz_byte(in);
    g_autoptr(GByteArray) buf = g_byte_array_new();
    HandshakeHeader header = { .index = fuzz_byte(in) };

    pstrcpy(header.name, sizeof(header.name), names[what & 3]);
    if (what & 4) {
        header.session = current_session();
    } else if (what & 8) {
        size_t len = sizeof(header.session);
        const uint8_t *bytes = fuzz_bytes(in, &len);

        memcpy(&header.session, bytes, len);
    }
    handshake_header_put(buf, &header);
    say(slot, buf);
}

static void put_main_header(GByteArray *buf, unsigned slot)
{
    const HandshakeHeader header = { .name = HANDSHAKE_CHANNEL_MAIN };

    if (world.slots[slot] && !world.slots[slot]->said->len) {
        handshake_header_put(buf, &header);
    }
}

/* HELLOs that lead somewhere */
static const char *const hellos[] = {
    "{\"versions\":[1],\"purpose\":\"migrate\",\"required\":[]}",
    "{\"versions\":[1],\"purpose\":\"migrate\",\"required\":[],"
    "\"features\":[\"named-channels\"],\"profile\":{"
    "\"required-capabilities\":[\"multifd\"],"
    "\"parameters\":{\"multifd\":{\"multifd-channels\":1}}}}",
    "{\"versions\":[1],\"purpose\":\"migrate\",\"required\":[],"
    "\"features\":[\"named-channels\"],"
    "\"optional-capabilities\":[\"multifd\",\"switchover-ack\"]}",
    "{\"versions\":[1],\"purpose\":\"migrate\",\"required\":[],"
    "\"features\":[\"named-channels\"],\"profile\":{"
    "\"required-capabilities\":[\"postcopy-preempt\",\"postcopy-ram\"]}}",
    "{\"versions\":[1],\"purpose\":\"check\",\"required\":[]}",
    "{\"versions\":[2],\"purpose\":\"migrate\",\"required\":[\"x\"]}",
    "{\"versions\":[1],\"purpose\":\"migrate\",\"required\":[],"
    "\"features\":[\"named-channels\"],\"profile\":{"
    "\"required-capabilities\":[\"multifd\"],"
    "\"parameters\":{\"multifd\":{\"multifd-channels\":100}}}}",
    "{\"versions\":[1]}",
};

static void op_hello(FuzzInput *in, unsigned slot)
{
    const char *hello = hellos[fuzz_byte(in) % ARRAY_SIZE(hellos)];
    g_autoptr(GByteArray) buf = g_byte_array_new();

    put_main_header(buf, slot);
    fuzz_put_json(buf, HANDSHAKE_FRAME_HELLO, hello);
    say(slot, buf);
}

static void op_own_hello(FuzzInput *in, unsigned slot)
{
    size_t len = fuzz_u16(in);
    const uint8_t *bytes = fuzz_bytes(in, &len);
    g_autoptr(GByteArray) buf = g_byte_array_new();

    put_main_header(buf, slot);
    fuzz_put_frame(buf, HANDSHAKE_FRAME_HELLO, HANDSHAKE_FRAME_CRITICAL, bytes,
                   len);
    say(slot, buf);
}

static void op_commit(FuzzInput *in, unsigned slot)
{
    FuzzPeer *peer = world.slots[slot];
    g_autofree char *digest = NULL;
    g_autofree char *json = NULL;
    g_autoptr(GByteArray) buf = g_byte_array_new();

    if (peer) {
        digest = fuzz_digest(peer->said,
                             fuzz_find_frame(peer->said, 0, 0, NULL),
                             peer->heard, peer->heard->len);
        json = handshake_commit_to_json(digest);
        fuzz_put_json(buf, HANDSHAKE_FRAME_COMMIT, json);
        say(slot, buf);
    }
}

/* Of another conversation, or none */
static void op_bad_commit(FuzzInput *in, unsigned slot)
{
    const uint8_t what = fuzz_byte(in);
    g_autofree char *json = handshake_commit_to_json("00");
    g_autoptr(GByteArray) buf = g_byte_array_new();

    fuzz_put_json(buf, HANDSHAKE_FRAME_COMMIT, what & 1 ? json : "{}");
    say(slot, buf);
}

static void op_abort(FuzzInput *in, unsigned slot)
{
    static const HandshakeIssues none;
    g_autofree char *json = handshake_abort_to_json("enough", &none);
    g_autoptr(GByteArray) buf = g_byte_array_new();

    fuzz_put_json(buf, HANDSHAKE_FRAME_ABORT, json);
    say(slot, buf);
}

static void op_frame(FuzzInput *in, unsigned slot)
{
    g_autoptr(GByteArray) buf = g_byte_array_new();

    put_main_header(buf, slot);
    fuzz_put_any_frame(buf, in);
    say(slot, buf);
}

static void op_grease(FuzzInput *in, unsigned slot)
{
    g_autoptr(GByteArray) buf = g_byte_array_new();

    put_main_header(buf, slot);
    fuzz_put_grease(buf, in);
    say(slot, buf);
}

static void op_close(FuzzInput *in, unsigned slot)
{
    if (world.slots[slot]) {
        fuzz_peer_close(world.slots[slot]);
    }
}

static void op_finish(FuzzInput *in, unsigned slot)
{
    if (world.slots[slot]) {
        fuzz_peer_finish(world.slots[slot]);
    }
}

static void op_deaf(FuzzInput *in, unsigned slot)
{
    if (world.slots[slot]) {
        world.slots[slot]->deaf = !world.slots[slot]->deaf;
    }
}

static void op_wait(FuzzInput *in, unsigned slot)
{
    fuzz_advance(fuzz_byte(in) * 200);
}

/* Strangers who say nothing; once, since it takes its time */
static void op_crowd(FuzzInput *in, unsigned slot)
{
    const int count = world.crowd || world.over ? 0 : 56 + fuzz_byte(in) % 16;

    for (int n = 0; n < count && world.peers->len < PEERS_MAX; n++) {
        FuzzPeer *peer = new_peer();

        peer->deaf = true;
        handshake_destination_accept(peer->ioc, &sink);
    }
    world.crowd |= count > 0;
}

static void op_turn(FuzzInput *in, unsigned slot)
{
    for (int n = fuzz_byte(in) % 8; n >= 0; n--) {
        g_main_context_iteration(NULL, false);
    }
}

/* What a QMP client may do */
static void op_set(FuzzInput *in, unsigned slot)
{
    const uint8_t what = fuzz_byte(in);

    stubs_set_capability(what >> 1, what & 1);
}

static void op_set_channels(FuzzInput *in, unsigned slot)
{
    stubs_set_multifd_channels(fuzz_byte(in));
}

static void op_prepare_fails(FuzzInput *in, unsigned slot)
{
    world.prepare_fails = !world.prepare_fails;
}

/* As migration_handshake_incoming_cleanup() */
static void op_migration_over(FuzzInput *in, unsigned slot)
{
    if (world.running && !world.over) {
        world.over = true;
        handshake_destination_end();
        handshake_settings_give_back();
    }
}

static void (*const ops[])(FuzzInput *in, unsigned slot) = {
    op_connect, op_hello, op_commit, op_header, op_bytes, op_close,
    op_wait, op_abort, op_own_hello, op_frame, op_grease, op_finish, op_deaf,
    op_crowd, op_turn, op_connect_tls, op_tls_failed, op_set, op_set_channels,
    op_prepare_fails, op_migration_over, op_bad_commit,
};

#ifdef PLANTED_BUG
/* A source that gives up a session for which multifd was accepted */
static void planted_bug(unsigned op, unsigned slot)
{
    const GByteArray *heard = world.slots[slot] ? world.slots[slot]->heard
                                                : NULL;
    const bool aborted = ops[op] == op_abort;

    g_assert(!aborted || !heard || !heard->len ||
             !memmem(heard->data, heard->len, "\"multifd\"", 9));
}
#endif

static void end(void)
{
    for (guint i = 0; i < world.peers->len; i++) {
        FuzzPeer *peer = g_ptr_array_index(world.peers, i);

        peer->deaf = false;
        fuzz_peer_listen(peer);
        check_answer(peer);
        fuzz_peer_close(peer);
    }
    fuzz_run();
    /* TLS sees by itself that its peer is gone; here, time does */
    fuzz_advance(60 * 1000);
    op_migration_over(NULL, 0);
    fuzz_run();
    g_assert(!handshake_destination_is_busy());
    stubs_check_settings();
    for (guint i = 0; i < world.peers->len; i++) {
        fuzz_peer_free(g_ptr_array_index(world.peers, i));
    }
    g_ptr_array_unref(world.peers);
}

void fuzz_one(const uint8_t *data, size_t size)
{
    FuzzInput in = { data, data + size };

    memset(&world, 0, sizeof(world));
    world.peers = g_ptr_array_new();
    stubs.incoming = true;
    for (int step = 0; in.pos < in.end && step < STEPS_MAX; step++) {
        const unsigned op = fuzz_byte(&in) % ARRAY_SIZE(ops);
        const uint8_t slot = fuzz_byte(&in);

        ops[op](&in, slot % SLOTS);
        /* Several may be on their way before QEMU sees the first */
        if (slot < 128) {
            run();
#ifdef PLANTED_BUG
            planted_bug(op, slot % SLOTS);
#endif
        }
    }
    run();
    end();
}
