/*
 * Migration handshake: fuzz the source's side of the conversation
 *
 * An input is a script.  Its first bytes say what the source wants; then come
 * pairs of bytes, an operation and which connection it is for, and what the
 * operation takes.  The peer answers, or does not; a QMP client changes its
 * mind; the network is slow; and time passes.
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
#include "qemu/lockable.h"
#include "qemu/yank.h"
#include "../../migration/handshake/conversation.h"
#include "../../migration/handshake/settings.h"
#include "peer.h"
#include "stubs.h"

#define STEPS_MAX       64
#define PEERS_MAX       100

typedef struct Connecting {
    QIOChannelSocket *ioc;
    QIOTask *task;
} Connecting;

/* One input's world */
static struct {
    GPtrArray *peers;           /* of FuzzPeer; the first is the main one */
    GQueue connecting;          /* of Connecting */
    bool slow;                  /* only op_connected() ends a connect() */
    bool check_only;
    bool warnings_as_errors;
    bool ended;                 /* the migration was started or has failed, */
    bool agreed;                /* ... without an error */
} world;

static FuzzPeer *get_peer(unsigned slot)
{
    return world.peers->len
        ? g_ptr_array_index(world.peers, slot % world.peers->len) : NULL;
}

static void connect_later(QIOChannelSocket *ioc, QIOTask *task)
{
    Connecting *connecting = g_new0(Connecting, 1);

    connecting->ioc = ioc;
    connecting->task = task;
    g_queue_push_tail(&world.connecting, connecting);
}

/* Returns whether there was one */
static bool complete_connect(bool ok)
{
    Connecting *connecting = g_queue_pop_head(&world.connecting);
    Error *err = NULL;

    if (!connecting) {
        return false;
    }
    if (ok && world.peers->len < PEERS_MAX) {
        g_ptr_array_add(world.peers, fuzz_peer_accept(connecting->ioc));
    } else {
        error_setg(&err, "nobody is there");
        qio_task_set_error(connecting->task, err);
    }
    qio_task_complete(connecting->task);
    qio_task_free(connecting->task);
    g_free(connecting);
    return true;
}

/* Until nobody has anything to say */
static void run(void)
{
    bool more;

    do {
        fuzz_run();
        more = !world.slow && complete_connect(true);
        for (guint i = 0; i < world.peers->len; i++) {
            more |= fuzz_peer_listen(g_ptr_array_index(world.peers, i));
        }
    } while (more);
}

/* What this source goes without, as its COMMIT says it */
static void check_commit(FuzzPeer *peer, size_t accept_end,
                         HandshakeVerdict *verdict)
{
    g_autoptr(GString) hello_json = NULL;
    g_autoptr(GString) commit_json = NULL;
    g_autoptr(MigrationHandshakeHello) hello = NULL;
    g_autoptr(MigrationHandshakeCommit) commit = NULL;
    g_autofree char *digest = NULL;
    size_t hello_end = fuzz_find_frame(peer->heard, HANDSHAKE_FRAME_HELLO, 0,
                                       &hello_json);
    size_t commit_end = fuzz_find_frame(peer->heard, 0, hello_end,
                                        &commit_json);

    g_assert(hello_end && commit_end);
    g_assert_cmpuint(commit_end, ==, peer->heard->len);
    hello = handshake_get_hello(hello_json, NULL, &error_abort);
    commit = handshake_get_commit(commit_json, &error_abort);
    digest = fuzz_digest(peer->heard, hello_end, peer->said, accept_end);
    g_assert_cmpstr(commit->digest, ==, digest);
    handshake_policy_drop(hello, commit->without, verdict, &error_abort);
}

/* It was answered with its own header, and nothing behind that was read */
static void check_channel(const char *name, unsigned index,
                          const HandshakeHeader *main)
{
    g_autoptr(QIOChannel) ioc = migration_handshake_take_channel(name, index);
    HandshakeHeader header;
    const FuzzPeer *peer;
    size_t size;

    g_assert(ioc && !migration_handshake_take_channel(name, index));
    peer = fuzz_peer_find(world.peers, ioc);
    size = fuzz_get_header(peer->said, &header);
    g_assert_cmpstr(header.name, ==, name);
    g_assert_cmpuint(header.index, ==, index);
    g_assert(qemu_uuid_is_equal(&header.session, &main->session));
    g_assert_cmpuint(size + fuzz_peer_unread(peer), ==, peer->said->len);
}

/* What both sides have agreed on is in force, and all of its channels stand */
static void check_agreed(const MigrationHandshakeVerdict *message,
                         const HandshakeHeader *main)
{
    const MigrationState *s = migrate_get_current();
    const bool preempt = handshake_has_name(message->capabilities,
                                            "postcopy-preempt");
    g_autoptr(MigrationHandshakeEffective) effective =
        handshake_policy_effective(message->capabilities, message->parameters);

    g_assert_true(s->negotiated.active);
    for (int i = 0; i < MIGRATION_CAPABILITY__MAX; i++) {
        g_assert_cmpint(s->negotiated.capabilities[i], ==,
                        handshake_has_name(message->capabilities,
                                           MigrationCapability_str(i)));
    }
    for (unsigned i = 0; i < effective->multifd_channels; i++) {
        check_channel(HANDSHAKE_CHANNEL_MULTIFD, i, main);
    }
    if (preempt) {
        check_channel(HANDSHAKE_CHANNEL_PREEMPT, 0, main);
    }
    g_assert_null(migration_handshake_take_channel(
                      HANDSHAKE_CHANNEL_MULTIFD, effective->multifd_channels));
    g_assert_null(migration_handshake_take_channel(HANDSHAKE_CHANNEL_PREEMPT,
                                                   preempt));
}

/* The peer has said ACCEPT, and knows that this source agrees */
static void check_conversation(FuzzPeer *peer)
{
    g_autoptr(GString) json = NULL;
    g_autoptr(HandshakeVerdict) verdict = NULL;
    HandshakeHeader header;
    size_t accept_end;

    fuzz_get_header(peer->said, &header);
    g_assert_cmpstr(header.name, ==, HANDSHAKE_CHANNEL_MAIN);
    g_assert(!qemu_uuid_is_null(&header.session));

    accept_end = fuzz_find_frame(peer->said, HANDSHAKE_FRAME_ACCEPT, 0, &json);
    g_assert(accept_end);
    g_assert_cmpuint(accept_end, ==, fuzz_find_frame(peer->said, 0, 0, NULL));
    verdict = handshake_get_verdict(json, true, &error_abort);
    g_assert_cmpuint(verdict->message->version, ==, HANDSHAKE_VERSION);
    g_assert(!world.warnings_as_errors ||
             (!verdict->issues.warnings && !verdict->issues.errors));
    if (world.check_only) {
        return;
    }
    /* What follows the verdict is the return path's */
    g_assert_cmpuint(accept_end + fuzz_peer_unread(peer), ==, peer->said->len);
    peer->deaf = false;
    fuzz_peer_listen(peer);
    if (peer->fd >= 0) {
        check_commit(peer, accept_end, verdict);
        check_agreed(verdict->message, &header);
    }
}

static void connected(MigrationState *s, Error *err)
{
    g_assert(!world.ended && !world.check_only && !s->handshake->source);
    world.ended = true;
    world.agreed = !err;
    if (world.agreed) {
        g_assert(s->handshake->in_session && s->to_dst_file);
        check_conversation(fuzz_peer_find(world.peers,
                                          qemu_file_get_ioc(s->to_dst_file)));
    } else {
        g_assert(!s->handshake->in_session && !s->to_dst_file);
    }
}

static void say(FuzzPeer *peer, const GByteArray *buf)
{
    fuzz_peer_say(peer, buf->data, buf->len);
}

static void put_main_header(GByteArray *buf, const FuzzPeer *peer)
{
    HandshakeHeader header = { .name = HANDSHAKE_CHANNEL_MAIN };

    if (!peer->said->len) {
        header.session.data[0] = 1;
        handshake_header_put(buf, &header);
    }
}

static void op_header(FuzzInput *in, FuzzPeer *peer)
{
    static const char *const names[] = {
        HANDSHAKE_CHANNEL_MAIN, HANDSHAKE_CHANNEL_MAIN,
        HANDSHAKE_CHANNEL_MULTIFD, HANDSHAKE_CHANNEL_PREEMPT,
    };
    const uint8_t what = fuzz_byte(in);
    HandshakeHeader header = { .index = fuzz_byte(in) };
    g_autoptr(GByteArray) buf = g_byte_array_new();

    pstrcpy(header.name, sizeof(header.name), names[what & 3]);
    header.session.data[what >> 4] = what;
    handshake_header_put(buf, &header);
    say(peer, buf);
}

/* As an honest destination answers a channel other than the main one */
static void answer(FuzzPeer *peer)
{
    const size_t size = MIN(peer->heard->len, HANDSHAKE_HEADER_SIZE);

    if (!peer->said->len) {
        fuzz_peer_say(peer, peer->heard->data, size);
    }
}

static void op_answer(FuzzInput *in, FuzzPeer *peer)
{
    answer(peer);
}

static void op_answer_all(FuzzInput *in, FuzzPeer *peer)
{
    for (guint i = 1; i < world.peers->len; i++) {
        answer(g_ptr_array_index(world.peers, i));
    }
}

static MigrationHandshakeHello *read_hello(const FuzzPeer *peer)
{
    g_autoptr(GString) json = NULL;

    if (!fuzz_find_frame(peer->heard, HANDSHAKE_FRAME_HELLO, 0, &json)) {
        return NULL;
    }
    return handshake_get_hello(json, NULL, &error_abort);
}

static void choose_capabilities(FuzzInput *in, uint8_t what,
                                const MigrationHandshakeHello *hello,
                                strList **tail)
{
    const strList *l;

    if (!(what & 2)) {
        QAPI_LIST_APPEND(tail, g_strdup("return-path"));
    }
    for (l = hello->profile->required_capabilities; l; l = l->next) {
        QAPI_LIST_APPEND(tail, g_strdup(l->value));
    }
    for (l = hello->optional_capabilities; l; l = l->next) {
        if (what & 4 || fuzz_byte(in) & 1) {
            QAPI_LIST_APPEND(tail, g_strdup(l->value));
        }
    }
    if (what & 8) {
        QAPI_LIST_APPEND(tail, g_strdup(MigrationCapability_str(
            fuzz_byte(in) % MIGRATION_CAPABILITY__MAX)));
    }
}

static void choose_parameters(const MigrationHandshakeHello *hello,
                              MigrationHandshakeVerdict *message)
{
    MigrationHandshakeParameterList **tail = &message->parameters;
    const MigrationHandshakeParameterList *l;

    for (l = hello->profile->parameters; l; l = l->next) {
        if (handshake_has_name(message->capabilities, l->value->capability)) {
            MigrationHandshakeParameter *to =
                g_new0(MigrationHandshakeParameter, 1);

            to->capability = g_strdup(l->value->capability);
            to->name = g_strdup(l->value->name);
            to->value = g_strdup(l->value->value);
            QAPI_LIST_APPEND(tail, to);
        }
    }
    message->has_parameters = message->parameters != NULL;
}

/* What an honest destination would say, and a little beside it */
static void op_accept(FuzzInput *in, FuzzPeer *peer)
{
    const uint8_t what = fuzz_byte(in);
    g_autoptr(MigrationHandshakeHello) hello = read_hello(peer);
    g_autoptr(HandshakeVerdict) verdict = handshake_verdict_new(true);
    MigrationHandshakeVerdict *message = verdict->message;
    g_autoptr(GByteArray) buf = g_byte_array_new();

    if (!hello) {
        return;
    }
    message->has_version = true;
    message->version = what & 1 ? fuzz_byte(in) : HANDSHAKE_VERSION;
    message->has_features = true;
    message->features = handshake_features();
    message->has_capabilities = true;
    choose_capabilities(in, what, hello, &message->capabilities);
    if (!(what & 16)) {
        choose_parameters(hello, message);
    }
    if (what & 32) {
        handshake_issue_add(&verdict->issues, "uuid", HANDSHAKE_WARNING, NULL,
                            NULL, NULL, "it differs");
    }
    put_main_header(buf, peer);
    handshake_put_verdict(buf, verdict, &error_abort);
    say(peer, buf);
}

/* Now and then more than a list takes, which takes its time */
static int how_many_issues(FuzzInput *in)
{
    const uint8_t count = fuzz_byte(in);

    return count < 250 ? count % 8 : 2 * count;
}

static void op_reject(FuzzInput *in, FuzzPeer *peer)
{
    g_autoptr(HandshakeVerdict) verdict = handshake_verdict_new(false);
    g_autoptr(GByteArray) buf = g_byte_array_new();

    for (int n = how_many_issues(in); n > 0; n--) {
        handshake_issue_add(&verdict->issues, "section-missing",
                            n % 3, "ram", NULL, NULL, "there is none");
    }
    put_main_header(buf, peer);
    handshake_put_verdict(buf, verdict, &error_abort);
    say(peer, buf);
}

static void op_own_verdict(FuzzInput *in, FuzzPeer *peer)
{
    const bool accept = fuzz_byte(in) & 1;
    size_t len = fuzz_u16(in);
    const uint8_t *bytes = fuzz_bytes(in, &len);
    g_autoptr(GByteArray) buf = g_byte_array_new();

    put_main_header(buf, peer);
    fuzz_put_frame(buf, accept ? HANDSHAKE_FRAME_ACCEPT
                               : HANDSHAKE_FRAME_REJECT,
                   HANDSHAKE_FRAME_CRITICAL, bytes, len);
    say(peer, buf);
}

/* As a destination that cannot load says it, on the return path */
static void op_last_word(FuzzInput *in, FuzzPeer *peer)
{
    const MigrationHandshakeReason word = {
        .message = (char *)"not with me",
        .guest = (char *)HANDSHAKE_GUEST_NOT_STARTED,
    };
    HandshakeIssues issues = { 0 };
    g_autoptr(GByteArray) buf = g_byte_array_new();

    for (int n = how_many_issues(in); n > 0; n--) {
        handshake_issue_add(&issues, "ram-block-size", HANDSHAKE_ERROR,
                            "pc.ram", "1", "2", "its size differs");
    }
    handshake_put_reason(buf, HANDSHAKE_FRAME_LAST_WORD, &word, &issues,
                         &error_abort);
    handshake_issues_free(&issues);
    say(peer, buf);
}

static void op_frame(FuzzInput *in, FuzzPeer *peer)
{
    g_autoptr(GByteArray) buf = g_byte_array_new();

    put_main_header(buf, peer);
    fuzz_put_any_frame(buf, in);
    say(peer, buf);
}

static void op_grease(FuzzInput *in, FuzzPeer *peer)
{
    g_autoptr(GByteArray) buf = g_byte_array_new();

    put_main_header(buf, peer);
    fuzz_put_grease(buf, in);
    say(peer, buf);
}

static void op_bytes(FuzzInput *in, FuzzPeer *peer)
{
    size_t len = fuzz_byte(in);
    const uint8_t *bytes = fuzz_bytes(in, &len);

    fuzz_peer_say(peer, bytes, len);
}

static void op_close(FuzzInput *in, FuzzPeer *peer)
{
    fuzz_peer_close(peer);
}

static void op_finish(FuzzInput *in, FuzzPeer *peer)
{
    fuzz_peer_finish(peer);
}

static void op_deaf(FuzzInput *in, FuzzPeer *peer)
{
    peer->deaf = !peer->deaf;
}

static void op_wait(FuzzInput *in, FuzzPeer *peer)
{
    fuzz_advance(fuzz_byte(in) * 500);
}

static void op_turn(FuzzInput *in, FuzzPeer *peer)
{
    for (int n = fuzz_byte(in) % 8; n >= 0; n--) {
        g_main_context_iteration(NULL, false);
    }
}

static void op_slow(FuzzInput *in, FuzzPeer *peer)
{
    world.slow = !world.slow;
}

static void op_connected(FuzzInput *in, FuzzPeer *peer)
{
    complete_connect(fuzz_byte(in) & 1);
}

static void yank(void)
{
    YankInstanceList migration = { .value = MIGRATION_YANK_INSTANCE };

    qmp_yank(&migration, &error_abort);
}

static void op_yank(FuzzInput *in, FuzzPeer *peer)
{
    yank();
}

/* As migration_cancel() */
static void op_cancel(FuzzInput *in, FuzzPeer *peer)
{
    MigrationState *s = migrate_get_current();
    bool handshake = migration_handshake_cancel();

    g_assert(handshake == (s->handshake->source && !world.check_only));
    if (!world.check_only) {
        s->state = MIGRATION_STATUS_CANCELLING;
        if (s->to_dst_file) {
            qemu_file_shutdown(s->to_dst_file);
        }
        yank();
    }
}

/* As migrate_set_error() */
static void op_error(FuzzInput *in, FuzzPeer *peer)
{
    Error *err = NULL;

    error_setg(&err, "the disk is gone");
    migration_handshake_note_error(migrate_get_current(), &err);
    error_free(err);
}

static void op_set(FuzzInput *in, FuzzPeer *peer)
{
    const uint8_t what = fuzz_byte(in);

    stubs_set_capability(what >> 1, what & 1);
}

static void op_set_channels(FuzzInput *in, FuzzPeer *peer)
{
    stubs_set_multifd_channels(fuzz_byte(in));
}

static void op_tls(FuzzInput *in, FuzzPeer *peer)
{
    const uint8_t what = fuzz_byte(in);

    stubs_set_tls(what & 1);
    stubs.bad_credentials = what & 2;
}

static void op_begin_tls(FuzzInput *in, FuzzPeer *peer)
{
    fuzz_peer_begin_tls(peer);
}

/* Those of the peer need one */
static const struct {
    void (*func)(FuzzInput *in, FuzzPeer *peer);
    bool alone;
} ops[] = {
    { op_accept }, { op_reject }, { op_own_verdict }, { op_header },
    { op_frame }, { op_grease }, { op_bytes }, { op_close }, { op_finish },
    { op_deaf }, { op_wait, true }, { op_turn, true }, { op_cancel, true },
    { op_set, true }, { op_set_channels, true }, { op_answer },
    { op_answer_all }, { op_last_word }, { op_slow, true },
    { op_connected, true }, { op_yank, true }, { op_error, true },
    { op_tls, true }, { op_begin_tls },
};

static MigrationHandshakeOptions *get_options(FuzzInput *in, uint8_t what)
{
    MigrationHandshakeOptions *options = g_new0(MigrationHandshakeOptions, 1);
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
    return options;
}

/* As qmp_migrate() and migration_handshake_start() */
static void begin(FuzzInput *in)
{
    const uint8_t what = fuzz_byte(in);
    SocketAddress addr = {
        .type = SOCKET_ADDRESS_TYPE_INET,
        .u.inet = { .host = (char *)"dst", .port = (char *)"4444" },
    };
    g_autoptr(MigrationHandshakeOptions) options =
        what & 64 ? NULL : get_options(in, what);
    FuzzPeer *peer = NULL;

    if (what & 16) {
        op_set(in, NULL);
        op_set(in, NULL);
    }
    world.slow = what & 128;
    if (what & 32) {
        peer = fuzz_peer_new();
        g_ptr_array_add(world.peers, peer);
    }
    migrate_get_current()->state = world.check_only ? MIGRATION_STATUS_NONE
                                                    : MIGRATION_STATUS_SETUP;
    handshake_source_start(&addr, peer ? peer->ioc : NULL, options);
}

static void close_all(void)
{
    for (guint i = 0; i < world.peers->len; i++) {
        fuzz_peer_close(g_ptr_array_index(world.peers, i));
    }
    do {
        fuzz_run();
    } while (complete_connect(false));
}

/* As migration_cleanup(), behind the end of the return path's thread */
static void clean_up(MigrationState *s)
{
    QEMUFile *f = s->to_dst_file;
    QEMUFile *rp;

    g_assert(world.agreed == (f != NULL));
    if (f) {
        fuzz_peer_finish(fuzz_peer_find(world.peers, qemu_file_get_ioc(f)));
        rp = qemu_file_get_return_path(f);
        stubs_read_return_path(rp);
        qemu_fclose(rp);
        s->to_dst_file = NULL;
        migration_ioc_unregister_yank_from_file(f);
        qemu_fclose(f);
    }
    migration_handshake_outgoing_cleanup();
    fuzz_run();
}

static void end(void)
{
    MigrationState *s = migrate_get_current();
    const MigrationHandshakeInfo *info;

    run();
    if (world.agreed) {
        clean_up(s);
    }
    close_all();

    /* There is nothing that it could still wait for */
    g_assert(!s->handshake->source && world.ended == !world.check_only);
    info = s->handshake->info;
    g_assert_cmpint(info->status, !=, MIGRATION_HANDSHAKE_STATUS_IN_PROGRESS);
    g_assert(!world.agreed ||
             info->status == MIGRATION_HANDSHAKE_STATUS_ACCEPTED);
    g_assert_cmpint(info->check_only, ==, world.check_only);
    if (world.check_only &&
        info->status == MIGRATION_HANDSHAKE_STATUS_ACCEPTED) {
        check_conversation(get_peer(0));
    }
    fuzz_check_info(info);
    migration_handshake_print(NULL, info);
    stubs_check_idle();
    yank_unregister_instance(MIGRATION_YANK_INSTANCE);
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
    stubs_reset();
    stubs.small_machine = true;
    stubs.connect = connect_later;
    stubs.connected = connected;
    yank_register_instance(MIGRATION_YANK_INSTANCE, &error_abort);
    begin(&in);
    run();
    for (int step = 0; in.pos < in.end && step < STEPS_MAX; step++) {
        const unsigned op = fuzz_byte(&in) % ARRAY_SIZE(ops);
        const uint8_t slot = fuzz_byte(&in);
        FuzzPeer *peer = get_peer(slot % 128);

        if (peer || ops[op].alone) {
            ops[op].func(&in, peer);
        }
        /* Several may be on their way before QEMU sees the first */
        if (slot < 128) {
            run();
        }
    }
    end();
}
