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
#include "migration/handshake.h"
#include "migration/qemu-file.h"
#include "migration/yank_functions.h"
#include "qapi/error.h"
#include "qapi/qapi-commands-yank.h"
#include "qapi/util.h"
#include "qemu/cutils.h"
#include "qemu/yank.h"
#include "../../migration/handshake/conversation.h"
#include "../../migration/handshake/settings.h"
#include "peer.h"
#include "stubs.h"

#define SLOTS           8
#define PEERS_MAX       160
#define STEPS_MAX       64

/* One input's world */
static struct {
    GPtrArray *peers;           /* of FuzzPeer, also those that are gone */
    FuzzPeer *slots[SLOTS];     /* those that the script can name */
    bool crowd;                 /* peers that nobody knows took all the room */
    bool setup_fails;
    bool set_up;                /* multifd is */
    bool running;               /* a migration was handed over */
    bool over;                  /* ... and has ended */
    unsigned multifd;           /* channels that were handed over */
    GPtrArray *channels;        /* these */
    QEMUFile *preempt;          /* so was this one */
    QEMUFile *main;
} world;

/* The last one that somebody was told, be it with ACCEPT or with REJECT */
static QemuUUID current_session(void)
{
    HandshakeHeader header = { 0 };

    for (guint i = world.peers->len; i-- > 0;) {
        FuzzPeer *peer = g_ptr_array_index(world.peers, i);

        if (fuzz_get_header(peer->heard, &header) &&
            !strcmp(header.name, HANDSHAKE_CHANNEL_MAIN)) {
            return header.session;
        }
    }
    return (QemuUUID) { 0 };
}

/* The loader gets all that comes after what the handshake has read */
static void check_unread(const FuzzPeer *peer, size_t read)
{
    g_assert_cmpuint(read + fuzz_peer_unread(peer), ==, peer->said->len);
}

/* It has come with this header, was answered with it, and is no one else's */
static void check_channel(QIOChannel *ioc, const char *name, unsigned index)
{
    FuzzPeer *peer = fuzz_peer_find(world.peers, ioc);
    HandshakeHeader said, heard;
    size_t size = fuzz_get_header(peer->said, &said);

    g_assert(world.set_up && !world.running && size);
    g_assert_cmpstr(said.name, ==, name);
    g_assert_cmpuint(said.index, ==, index);
    check_unread(peer, size);

    peer->deaf = false;
    fuzz_peer_listen(peer);
    if (peer->fd >= 0) {
        g_assert_cmpuint(fuzz_get_header(peer->heard, &heard), ==,
                         peer->heard->len);
        g_assert(!memcmp(&said, &heard, sizeof(said)));
    }
}

static bool recv_setup(Error **errp)
{
    g_assert(!world.set_up && migrate_get_current()->negotiated.active);
    if (world.setup_fails) {
        error_setg(errp, "not today");
        return false;
    }
    world.set_up = true;
    return true;
}

static void recv_attach(QIOChannel *ioc, unsigned id)
{
    g_assert_cmpuint(id, ==, world.multifd);
    world.multifd++;
    check_channel(ioc, HANDSHAKE_CHANNEL_MULTIFD, id);
    g_ptr_array_add(world.channels, object_ref(OBJECT(ioc)));
}

static void preempt(QEMUFile *file)
{
    g_assert(!world.preempt);
    world.preempt = file;
    check_channel(qemu_file_get_ioc(file), HANDSHAKE_CHANNEL_PREEMPT, 0);
}

static void check_session(QIOChannel *ioc, const QemuUUID *session)
{
    HandshakeHeader header;

    fuzz_get_header(fuzz_peer_find(world.peers, ioc)->said, &header);
    g_assert(qemu_uuid_is_equal(&header.session, session));
}

/* What both sides have agreed on is in force, and all of its channels stand */
static void check_agreed(const MigrationHandshakeVerdict *message,
                         const QemuUUID *session)
{
    const MigrationNegotiated *negotiated =
        &migrate_get_current()->negotiated;
    g_autoptr(MigrationHandshakeEffective) effective =
        handshake_policy_effective(message->capabilities, message->parameters);

    g_assert_true(negotiated->active);
    for (int i = 0; i < MIGRATION_CAPABILITY__MAX; i++) {
        g_assert_cmpint(negotiated->capabilities[i], ==,
                        handshake_has_name(message->capabilities,
                                           MigrationCapability_str(i)));
    }
    g_assert_cmpuint(world.multifd, ==, effective->multifd_channels);
    g_assert_cmpint(world.preempt != NULL, ==,
                    handshake_has_name(message->capabilities,
                                       "postcopy-preempt"));
    for (guint i = 0; i < world.channels->len; i++) {
        check_session(g_ptr_array_index(world.channels, i), session);
    }
    if (world.preempt) {
        check_session(qemu_file_get_ioc(world.preempt), session);
    }
}

/* Who gets here was told ACCEPT, and has said COMMIT with the right digest */
static void check_conversation(FuzzPeer *peer)
{
    const size_t hello_end = fuzz_find_frame(peer->said, 0, 0, NULL);
    g_autoptr(GString) hello_json = NULL;
    g_autoptr(GString) accept_json = NULL;
    g_autoptr(GString) commit_json = NULL;
    g_autoptr(MigrationHandshakeHello) hello = NULL;
    g_autoptr(HandshakeVerdict) verdict = NULL;
    g_autoptr(MigrationHandshakeCommit) commit = NULL;
    g_autofree char *digest = NULL;
    HandshakeHeader header;
    size_t accept_end, commit_end;

    peer->deaf = false;
    fuzz_peer_listen(peer);
    fuzz_find_frame(peer->said, HANDSHAKE_FRAME_HELLO, 0, &hello_json);
    accept_end = fuzz_find_frame(peer->heard, HANDSHAKE_FRAME_ACCEPT, 0,
                                 &accept_json);
    commit_end = fuzz_find_frame(peer->said, 0, hello_end, &commit_json);
    g_assert(hello_end && commit_end);
    check_unread(peer, commit_end);
    if (peer->fd < 0) {
        /* What has been said to a peer that is gone, nobody knows */
        return;
    }
    g_assert_cmpuint(accept_end, ==, peer->heard->len);
    hello = handshake_get_hello(hello_json, NULL, &error_abort);
    verdict = handshake_get_verdict(accept_json, true, &error_abort);
    commit = handshake_get_commit(commit_json, &error_abort);
    digest = fuzz_digest(peer->said, hello_end, peer->heard, accept_end);
    g_assert_cmpstr(commit->digest, ==, digest);
    handshake_policy_drop(hello, commit->without, verdict, &error_abort);
    fuzz_get_header(peer->heard, &header);
    check_agreed(verdict->message, &header.session);
}

static void start(QEMUFile *file)
{
    g_assert(world.set_up && !world.running);
    check_conversation(fuzz_peer_find(world.peers, qemu_file_get_ioc(file)));
    world.running = true;
    world.main = file;
}

/* A word after ACCEPT says why COMMIT has come to nothing */
static size_t check_last_word(const GByteArray *heard, size_t accept_end)
{
    g_autoptr(GString) json = NULL;
    g_autoptr(MigrationHandshakeReason) reason = NULL;
    HandshakeIssues issues = { 0 };
    size_t end = fuzz_find_frame(heard, HANDSHAKE_FRAME_LAST_WORD, accept_end,
                                 &json);

    if (!end) {
        return accept_end;
    }
    reason = handshake_get_reason(json, &issues);
    g_assert_cmpstr(reason->message, !=, "");
    fuzz_check_issues(&issues);
    handshake_issues_free(&issues);
    return end;
}

/* All that a destination may ever say before the stream */
static void check_answer(const FuzzPeer *peer)
{
    const GByteArray *heard = peer->heard;
    g_autoptr(HandshakeVerdict) verdict = NULL;
    g_autoptr(GString) accept = NULL;
    g_autoptr(GString) reject = NULL;
    HandshakeHeader header;
    size_t end;

    if (!heard->len || heard->data[0] == 0x15) {
        /* Nothing, or an alert of TLS */
        return;
    }
    end = fuzz_get_header(heard, &header);
    g_assert_cmpuint(end, ==, HANDSHAKE_HEADER_SIZE);
    if (heard->len == end) {
        /* It was one of the other channels, or came without handshake */
        return;
    }
    g_assert_cmpstr(header.name, ==, HANDSHAKE_CHANNEL_MAIN);
    end = fuzz_find_frame(heard, HANDSHAKE_FRAME_ACCEPT, 0, &accept) ?:
          fuzz_find_frame(heard, HANDSHAKE_FRAME_REJECT, 0, &reject);
    if (end) {
        verdict = handshake_get_verdict(accept ?: reject, accept != NULL,
                                        &error_abort);
        fuzz_check_verdict(verdict);
        g_assert(accept ? !qemu_uuid_is_null(&header.session)
                        : verdict->message->message != NULL);
        if (accept) {
            end = check_last_word(heard, end);
        }
        g_assert_cmpuint(end, ==, heard->len);
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

/* Whoever does not get in is not talked with, now or later */
static void accept_peer(FuzzPeer *peer)
{
    if (!migration_handshake_accept(peer->ioc)) {
        fuzz_peer_close(peer);
    }
}

static void op_connect(FuzzInput *in, unsigned slot)
{
    if (world.peers->len < PEERS_MAX) {
        world.slots[slot] = new_peer();
        accept_peer(world.slots[slot]);
    }
}

/* What a QMP client may do while others talk */
static void op_tls(FuzzInput *in, unsigned slot)
{
    const uint8_t what = fuzz_byte(in);

    stubs_set_tls(what & 1);
    stubs.bad_credentials = what & 2;
}

static void op_begin_tls(FuzzInput *in, unsigned slot)
{
    if (world.slots[slot]) {
        fuzz_peer_begin_tls(world.slots[slot]);
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
#define HELLO(purpose, more) \
    "{\"versions\":[1],\"purpose\":\"" purpose "\",\"required\":[]" more "}"
#define CHANNELS ",\"features\":[\"named-channels\",\"late-error\"]"
#define MULTIFD(count) \
    ",\"profile\":{\"required-capabilities\":[\"multifd\"]," \
    "\"parameters\":[{\"capability\":\"multifd\"," \
    "\"name\":\"multifd-channels\",\"value\":\"" count "\"}]}"

static const char *const hellos[] = {
    HELLO("migrate", ""),
    HELLO("migrate", CHANNELS MULTIFD("1")),
    HELLO("migrate", CHANNELS
          ",\"optional-capabilities\":[\"multifd\",\"switchover-ack\"]"),
    HELLO("migrate", CHANNELS ",\"profile\":{\"required-capabilities\":"
          "[\"postcopy-preempt\",\"postcopy-ram\"]}"),
    HELLO("check", CHANNELS MULTIFD("2")),
    "{\"versions\":[2],\"purpose\":\"migrate\",\"required\":[\"x\"]}",
    HELLO("migrate", CHANNELS MULTIFD("100")),
    "{\"versions\":[1]}",
    HELLO("migrate", CHANNELS ",\"optional-capabilities\":[\"multifd\","
          "\"postcopy-ram\",\"postcopy-preempt\"]"),
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

static void say_commit(FuzzPeer *peer, MigrationHandshakeDeclinedList *without)
{
    g_autofree char *digest =
        fuzz_digest(peer->said, fuzz_find_frame(peer->said, 0, 0, NULL),
                    peer->heard, peer->heard->len);
    MigrationHandshakeCommit commit = {
        .digest = digest,
        .has_without = without != NULL,
        .without = without,
    };
    g_autoptr(GByteArray) buf = g_byte_array_new();

    handshake_put_commit(buf, &commit, &error_abort);
    fuzz_peer_say(peer, buf->data, buf->len);
}

static void op_commit(FuzzInput *in, unsigned slot)
{
    if (world.slots[slot]) {
        say_commit(world.slots[slot], NULL);
    }
}

/* What a source goes without, or may not go without */
static void op_commit_without(FuzzInput *in, unsigned slot)
{
    static const char *const names[] = {
        "multifd", "postcopy-preempt", "switchover-ack", "return-path", "x",
        "postcopy-ram",
    };
    MigrationHandshakeDeclinedList *without = NULL;
    const uint8_t which = fuzz_byte(in);

    for (int i = 0; i < ARRAY_SIZE(names); i++) {
        if (which & 1 << i) {
            handshake_declined_add(&without, names[i], "no way");
        }
    }
    if (which & 128) {
        handshake_declined_add(&without, names[0], "twice");
    }
    if (world.slots[slot]) {
        say_commit(world.slots[slot], without);
    }
    qapi_free_MigrationHandshakeDeclinedList(without);
}

/* Of another conversation, or none */
static void op_bad_commit(FuzzInput *in, unsigned slot)
{
    const uint8_t what = fuzz_byte(in);
    g_autoptr(GByteArray) buf = g_byte_array_new();

    fuzz_put_json(buf, HANDSHAKE_FRAME_COMMIT,
                  what & 1 ? "{\"digest\":\"00\"}" : "{}");
    say(slot, buf);
}

static void op_abort(FuzzInput *in, unsigned slot)
{
    static const HandshakeIssues none;
    const MigrationHandshakeReason reason = { .message = (char *)"enough" };
    g_autoptr(GByteArray) buf = g_byte_array_new();

    handshake_put_reason(buf, HANDSHAKE_FRAME_ABORT, &reason, &none,
                         &error_abort);
    say(slot, buf);
}

/* Answered, or dropped */
static void op_channel(FuzzInput *in, unsigned slot)
{
    const uint8_t what = fuzz_byte(in);
    g_autoptr(GByteArray) buf = g_byte_array_new();
    HandshakeHeader header = {
        .session = current_session(),
        .index = what >> 1,
    };

    pstrcpy(header.name, sizeof(header.name),
            what & 1 ? HANDSHAKE_CHANNEL_PREEMPT : HANDSHAKE_CHANNEL_MULTIFD);
    op_connect(in, slot);
    handshake_header_put(buf, &header);
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

/* Peers who say nothing; once, since it takes its time */
static void op_crowd(FuzzInput *in, unsigned slot)
{
    const int count = world.crowd || world.over ? 0 : 56 + fuzz_byte(in) % 16;

    for (int n = 0; n < count && world.peers->len < PEERS_MAX; n++) {
        FuzzPeer *peer = new_peer();

        peer->deaf = true;
        accept_peer(peer);
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

static void op_setup_fails(FuzzInput *in, unsigned slot)
{
    world.setup_fails = !world.setup_fails;
}

static void op_yank(FuzzInput *in, unsigned slot)
{
    YankInstanceList migration = { .value = MIGRATION_YANK_INSTANCE };

    qmp_yank(&migration, &error_abort);
}

static void close_file(QEMUFile *file)
{
    if (file) {
        migration_ioc_unregister_yank_from_file(file);
        qemu_fclose(file);
    }
}

/* As migration_incoming_state_destroy() */
static void op_migration_over(FuzzInput *in, unsigned slot)
{
    if (world.running && !world.over) {
        world.over = true;
        for (guint i = 0; i < world.channels->len; i++) {
            QIOChannel *ioc = g_ptr_array_index(world.channels, i);

            migration_ioc_unregister_yank(ioc);
            object_unref(OBJECT(ioc));
        }
        close_file(world.preempt);
        close_file(world.main);
        migration_incoming_get_current()->state = MIGRATION_STATUS_COMPLETED;
        migration_handshake_incoming_cleanup();
    }
}

/* What recovers a paused migration comes without handshake */
static void op_pause(FuzzInput *in, unsigned slot)
{
    if (world.running && !world.over) {
        migration_incoming_get_current()->state =
            MIGRATION_STATUS_POSTCOPY_PAUSED;
    }
}

static void (*const ops[])(FuzzInput *in, unsigned slot) = {
    op_connect, op_hello, op_commit, op_header, op_bytes, op_close,
    op_wait, op_abort, op_own_hello, op_frame, op_grease, op_finish, op_deaf,
    op_crowd, op_turn, op_tls, op_commit_without, op_set, op_set_channels,
    op_setup_fails, op_migration_over, op_bad_commit, op_channel, op_yank,
    op_pause, op_begin_tls,
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

static void begin(void)
{
    MigrationAddress addr = { .transport = MIGRATION_ADDRESS_TYPE_SOCKET };
    MigrationChannel channel = {
        .channel_type = MIGRATION_CHANNEL_TYPE_HANDSHAKE,
        .addr = &addr,
    };

    memset(&world, 0, sizeof(world));
    world.peers = g_ptr_array_new();
    world.channels = g_ptr_array_new();
    stubs_reset();
    stubs.incoming = true;
    stubs.recv_setup = recv_setup;
    stubs.recv_attach = recv_attach;
    stubs.preempt = preempt;
    stubs.start = start;
    /* As qmp_migrate_incoming() */
    yank_register_instance(MIGRATION_YANK_INSTANCE, &error_abort);
    migration_handshake_listen(&channel, &error_abort);
    migration_incoming_get_current()->state = MIGRATION_STATUS_SETUP;
}

static void end(void)
{
    MigrationIncomingState *mis = migration_incoming_get_current();
    const MigrationHandshakeInfo *info;

    for (guint i = 0; i < world.peers->len; i++) {
        FuzzPeer *peer = g_ptr_array_index(world.peers, i);

        peer->deaf = false;
        fuzz_peer_listen(peer);
        check_answer(peer);
        fuzz_peer_close(peer);
    }
    /* Nobody has to wait until a peer that is gone would be late */
    fuzz_run();
    op_migration_over(NULL, 0);
    fuzz_run();
    info = migrate_get_current()->handshake->info;
    if (info) {
        g_assert_cmpint(info->status, !=,
                        MIGRATION_HANDSHAKE_STATUS_IN_PROGRESS);
        fuzz_check_info(info);
    }
    stubs_check_idle();
    yank_unregister_instance(MIGRATION_YANK_INSTANCE);
    for (guint i = 0; i < world.peers->len; i++) {
        fuzz_peer_free(g_ptr_array_index(world.peers, i));
    }
    g_clear_pointer(&mis->handshake, handshake_destination_free);
    g_ptr_array_unref(world.peers);
    g_ptr_array_unref(world.channels);
}

void fuzz_one(const uint8_t *data, size_t size)
{
    FuzzInput in = { data, data + size };

    begin();
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
