/*
 * QTest testcases for the migration handshake: scripted peers
 *
 * One QEMU, and a peer that says what no QEMU would say, or nothing at all.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "qemu/bswap.h"
#include "qemu/cutils.h"
#include "qemu/sockets.h"
#include "qapi/error.h"
#include "qobject/qjson.h"
#include "qobject/qlist.h"
#include "libqtest.h"
#include "migration/framework.h"
#include "migration/handshake-util.h"
#include "migration/migration-qmp.h"
#include "migration/migration-util.h"

static char *tmpfs;

static void do_test_interrupt(const char *command, const char *arguments,
                              const char *status)
{
    SilentPeer peer;
    QTestState *to = start_destination("");
    QTestState *from = start_source("");
    QDict *rsp;

    silent_peer_start(&peer);
    for (int i = 0; i < 3; i++) {
        gint64 start;

        migrate_to_port(from, "handshake", peer.port, NULL);
        silent_peer_accept(&peer);
        rsp = wait_status(from, "setup");
        g_assert_cmpstr(qdict_get_str(qdict_get_qdict(rsp, "handshake"),
                                      "status"), ==, "in-progress");
        qobject_unref(rsp);

        start = g_get_monotonic_time();
        qtest_qmp_assert_success(from, "{ 'execute': %s, 'arguments': %p }",
                                 command, qobject_from_json(arguments,
                                                            &error_abort));
        qobject_unref(wait_status(from, status));
        g_assert_cmpint(g_get_monotonic_time() - start, <, PROMPT);
        g_assert_true(is_running(from));
        close(peer.fd);
    }
    silent_peer_stop(&peer);

    assert_good_migration(from, to);
    stop_both(from, to);
}

static void test_cancel(void)
{
    do_test_interrupt("migrate_cancel", "{}", "cancelled");
}

static void test_yank(void)
{
    do_test_interrupt("yank",
                      "{ 'instances': [ { 'type': 'migration' } ] }",
                      "failed");
}

/*
 * While the connection is made: a full backlog keeps connect() waiting.  That
 * must not keep the next migration waiting, and the late connection must not
 * carry one that nobody wants any more.
 */
static void test_cancel_connecting(void)
{
    g_autofree char *path = g_strdup_printf("%s/full", tmpfs);
    struct sockaddr_un addr = { .sun_family = AF_UNIX };
    QTestState *to = start_destination("");
    QTestState *from = start_source("");
    int listener = qemu_socket(AF_UNIX, SOCK_STREAM, 0);
    int first = qemu_socket(AF_UNIX, SOCK_STREAM, 0);
    uint8_t byte;

    pstrcpy(addr.sun_path, sizeof(addr.sun_path), path);
    g_assert_cmpint(bind(listener, (struct sockaddr *)&addr, sizeof(addr)),
                    ==, 0);
    g_assert_cmpint(listen(listener, 0), ==, 0);
    g_assert_cmpint(connect(first, (struct sockaddr *)&addr, sizeof(addr)),
                    ==, 0);

    for (int i = 0; i < 2; i++) {
        gint64 start;

        migrate_to_unix(from, path);
        qobject_unref(wait_handshake(from, "in-progress"));
        start = g_get_monotonic_time();
        migrate_cancel(from);
        qobject_unref(wait_status(from, "cancelled"));
        qobject_unref(wait_handshake(from, "cancelled"));
        g_assert_cmpint(g_get_monotonic_time() - start, <, PROMPT);
        g_assert_true(is_running(from));
    }

    /* A migration that takes its time, and meanwhile the others come through */
    migrate_set_parameter_int(from, "max-bandwidth", 1024 * 1024);
    migrate_to(from, to, NULL);
    qobject_unref(wait_status(from, "active"));
    close(qemu_accept(listener, NULL, NULL));
    for (int i = 0; i < 2; i++) {
        int fd = qemu_accept(listener, NULL, NULL);

        g_assert_cmpint(recv(fd, &byte, 1, 0), ==, 0);
        close(fd);
    }
    close(first);
    close(listener);
    unlink(path);

    migrate_set_parameter_int(from, "max-bandwidth", 0);
    wait_completed(from, to);
    stop_both(from, to);
}

#ifdef CONFIG_GNUTLS
/* TLS with somebody who says nothing */
static void test_cancel_tls(void)
{
    g_autofree char *keys = g_strdup_printf("%s/keys.psk", tmpfs);
    QTestState *to = start_destination("");
    QTestState *from = start_source("");
    SilentPeer peer;

    g_assert_true(g_file_set_contents(keys, "qemu:00112233445566778899\n", -1,
                                      NULL));
    qtest_qmp_assert_success(from, "{ 'execute': 'object-add',"
                             "  'arguments': { 'qom-type': 'tls-creds-psk',"
                             "    'id': 'creds', 'endpoint': 'client',"
                             "    'dir': %s } }", tmpfs);
    silent_peer_start(&peer);
    for (int i = 0; i < 3; i++) {
        uint8_t record[5];
        gint64 start;

        migrate_set_parameter_str(from, "tls-creds", "creds");
        migrate_to_port(from, "handshake", peer.port, NULL);
        peer.fd = qemu_accept(peer.listener, NULL, NULL);
        g_assert_cmpint(recv(peer.fd, record, 5, MSG_WAITALL), ==, 5);
        g_assert_cmpint(record[0], ==, 0x16);

        qobject_unref(wait_handshake(from, "in-progress"));
        start = g_get_monotonic_time();
        migrate_cancel(from);
        qobject_unref(wait_status(from, "cancelled"));
        qobject_unref(wait_handshake(from, "cancelled"));
        g_assert_cmpint(g_get_monotonic_time() - start, <, PROMPT);
        g_assert_true(is_running(from));
        close(peer.fd);
    }
    silent_peer_stop(&peer);
    unlink(keys);

    migrate_set_parameter_str(from, "tls-creds", "");
    assert_good_migration(from, to);
    stop_both(from, to);
}
#endif

/* What was agreed on before is not what became of this migration */
static void test_not_connected(void)
{
    g_autofree char *path = g_strdup_printf("%s/nobody", tmpfs);
    QTestState *to = start_destination("");
    QTestState *from = start_source("");
    QDict *rsp, *info;

    qobject_unref(check_to(from, to, NULL));
    migrate_to_unix(from, path);
    rsp = wait_status(from, "failed");
    info = qdict_get_qdict(rsp, "handshake");
    g_assert_cmpstr(qdict_get_str(info, "role"), ==, "source");
    g_assert_cmpstr(qdict_get_str(info, "status"), ==, "failed");
    g_assert_false(qdict_get_bool(info, "check-only"));
    g_assert_cmpstr(qdict_get_str(info, "message"), ==,
                    qdict_get_str(rsp, "error-desc"));
    g_assert_false(qdict_haskey(info, "session"));
    qobject_unref(rsp);
    assert_good_migration(from, to);
    stop_both(from, to);
}

static void test_timeout(void)
{
    SilentPeer peer;
    QTestState *from = start_source("");
    QDict *rsp;

    silent_peer_start(&peer);
    migrate_to_port(from, "handshake", peer.port, "{ 'timeout': 1 }");
    silent_peer_accept(&peer);
    rsp = wait_status(from, "failed");
    g_assert_nonnull(strstr(qdict_get_str(rsp, "error-desc"),
                            "within 1 seconds"));
    qobject_unref(rsp);
    g_assert_true(is_running(from));
    silent_peer_stop(&peer);
    qtest_quit(from);
}

/* Bytes that the source cannot make sense of */
static void test_bad_answer(void)
{
    static const char *const answers[] = {
        "HTTP/1.1 400 Bad Request\r\n\r\n",
        "SSH-2.0-OpenSSH\r\n",
        "\x15\x03\x01\x00\x02\x02\x46.......",
    };
    SilentPeer peer;
    QTestState *from = start_source("");

    silent_peer_start(&peer);
    for (int i = 0; i < ARRAY_SIZE(answers); i++) {
        QDict *rsp;

        migrate_to_port(from, "handshake", peer.port, NULL);
        silent_peer_accept(&peer);
        g_assert_cmpint(send(peer.fd, answers[i], 14, 0), ==, 14);
        rsp = wait_status(from, "failed");
        g_assert_nonnull(strstr(qdict_get_str(rsp, "error-desc"),
                                "not a migration handshake"));
        qobject_unref(rsp);
        g_assert_true(is_running(from));
        close(peer.fd);
    }
    silent_peer_stop(&peer);
    qtest_quit(from);
}

static const struct {
    const char *hello;
    const char *code;       /* of the first issue, or NULL */
    const char *message;
} unacceptable[] = {
    { "{ \"versions\": [2, 3], \"purpose\": \"migrate\", \"required\": [] }",
      "protocol-version", "no common version" },
    { "{ \"versions\": [1], \"purpose\": \"dance\", \"required\": [] }",
      "purpose", "dance" },
    { "{ \"versions\": [1], \"purpose\": \"migrate\","
      "  \"required\": [\"warp-drive\"] }",
      "required-feature", "warp-drive" },
    { "{ \"versions\": [1], \"purpose\": \"migrate\", \"required\": [],"
      "  \"profile\": { \"arch\": \"alpha\" } }",
      "arch", "alpha" },
    { "{ \"versions\": [1], \"purpose\": \"migrate\", \"required\": [],"
      "  \"profile\": { \"page-size\": 65536 } }",
      "page-size", "65536" },
    { "{ \"versions\": [1], \"purpose\": \"migrate\", \"required\": [],"
      "  \"profile\": { \"required-capabilities\": [ \"warp-drive\" ] } }",
      "capability-unknown", "warp-drive" },
    { "{ \"versions\": [1], \"purpose\": \"migrate\", \"required\": [],"
      "  \"profile\": { \"required-capabilities\": [ \"x-colo\" ] } }",
      "capability-unsupported", "x-colo" },
    /* Not even a HELLO, but in a proper frame */
    { "{", NULL, "JSON parse error" },
    { "[]", NULL, "JSON error" },
    { "{ 'versions': [1] }", NULL, "JSON" },
    { "{ \"a\": 1, \"a\": 2 }", NULL, "duplicate" },
    { "{ \"a\": 1.5 }", NULL, "not an integer" },
    { "{ \"a\": [[[[[[[[[[[[[[[[]]]]]]]]]]]]]]]] }", NULL, "nested" },
    { "{}", NULL, "missing" },
    { "{ \"versions\": 1, \"purpose\": \"migrate\", \"required\": [] }",
      NULL, "'versions', expected: array" },
    { "{ \"versions\": [1], \"purpose\": \"migrate\", \"required\": [],"
      "  \"profile\": { \"machine\": [] } }",
      NULL, "'profile.machine', expected: string" },
};

/* Says @buf to @to, which refuses and listens on; returns what it answers */
static QDict *assert_refused_by(QTestState *to, const char *port,
                                const GByteArray *buf, const char *message)
{
    g_autoptr(GByteArray) rsp = NULL;
    int fd = connect_to(port);
    uint16_t type;
    QDict *answer;

    send_all(fd, buf->data, buf->len);
    rsp = read_to_end(fd);
    close(fd);

    answer = parse_answer(rsp, &type);
    g_assert_cmpint(type, ==, FRAME_REJECT);
    g_assert_nonnull(strstr(qdict_get_str(answer, "message"), message));
    assert_listening(to);
    return answer;
}

static void assert_unacceptable(QTestState *to, const char *port, int i)
{
    g_autoptr(GByteArray) buf = g_byte_array_new();
    QDict *answer;

    put_header(buf, "main");
    put_frame(buf, FRAME_HELLO, unacceptable[i].hello);
    answer = assert_refused_by(to, port, buf, unacceptable[i].message);
    if (unacceptable[i].code) {
        g_assert_nonnull(find_issue(answer, unacceptable[i].code));
    }
    qobject_unref(answer);
}

static void test_unacceptable_hello(void)
{
    QTestState *to = start_destination("");
    QTestState *from = start_source("");
    g_autofree char *port = destination_port(to);

    for (int i = 0; i < ARRAY_SIZE(unacceptable); i++) {
        g_test_message("%s", unacceptable[i].hello);
        assert_unacceptable(to, port, i);
    }
    assert_good_migration(from, to);
    stop_both(from, to);
}

static void assert_unknown_frame(int fd)
{
    uint8_t prefix[8];
    uint16_t type;

    g_assert_cmpint(recv(fd, prefix, sizeof(prefix), MSG_WAITALL), ==,
                    sizeof(prefix));
    type = lduw_be_p(prefix + 4);
    g_assert_cmphex(type & 0x0f0f, ==, 0x0a0a);
    g_assert_cmphex(type & 0xf0, ==, type >> 8 & 0xf0);
    g_assert_cmphex(lduw_be_p(prefix + 6) & 1, ==, 0);
}

/*
 * Both sides begin with a frame of a type that is reserved for that, so that a
 * peer which cannot skip it fails today, and not when there are new types
 */
static void test_grease(void)
{
    QTestState *to = start_destination("");
    QTestState *from = start_source("");
    g_autofree char *port = destination_port(to);
    ScriptedSource source;
    SilentPeer peer;
    uint8_t header[64];

    source_say_hello(&source, port, GOOD_HELLO);
    g_assert_cmpint(recv(source.fd, header, sizeof(header), MSG_WAITALL), ==,
                    sizeof(header));
    assert_unknown_frame(source.fd);
    source_close(&source);

    silent_peer_start(&peer);
    migrate_to_port(from, "handshake", peer.port, NULL);
    silent_peer_accept(&peer);
    assert_unknown_frame(peer.fd);
    silent_peer_stop(&peer);
    qobject_unref(wait_status(from, "failed"));
    stop_both(from, to);
}

/* However many are refused, the destination listens, and nothing piles up */
static void test_refused_many(void)
{
    QTestState *to = start_destination("");
    QTestState *bad = start_source(handshake_machine()->other_options);
    QTestState *good;
    g_autofree char *port = destination_port(to);

    for (int i = 0; i < 200; i++) {
        QDict *rsp;

        assert_unacceptable(to, port, i % ARRAY_SIZE(unacceptable));

        migrate_to(bad, to, NULL);
        rsp = wait_status(bad, "failed");
        g_assert_nonnull(strstr(qdict_get_str(rsp, "error-desc"),
                                "machine-type"));
        qobject_unref(rsp);
        assert_listening(to);
        rsp = wait_handshake(to, "rejected");
        g_assert_nonnull(find_issue(rsp, "machine-type"));
        qobject_unref(rsp);
    }
    g_assert_true(is_running(bad));
    qtest_quit(bad);

    good = start_source("");
    assert_good_migration(good, to);
    stop_both(good, to);
}

/* Frames that make no sense are answered: the peer speaks the protocol */
static void test_bad_frame(void)
{
    static const struct {
        uint8_t prefix[8];
        int times;
        const char *message;
    } frames[] = {
        { { 0, 8, 0, 1, 0, 1, 0, 0 }, 1, "at most 524288" },
        { { 0xff, 0xff, 0xff, 0xff, 0, 1, 0, 0 }, 1, "at most 524288" },
        { { 0, 2, 0, 1, 0, 4, 0, 0 }, 1, "at most 131072" },
        { { 0, 0, 0, 0, 0x77, 0x77, 0, 1 }, 1, "type 0x7777 is critical" },
        { { 0, 0, 0, 0, 0x77, 0x77, 0, 0 }, 17, "more than 16 frames" },
        { { 0, 0, 0, 0, 0, FRAME_COMMIT, 0, 0 }, 1, "COMMIT instead of HELLO" },
    };
    QTestState *to = start_destination("");
    QTestState *from = start_source("");
    g_autofree char *port = destination_port(to);

    for (int i = 0; i < ARRAY_SIZE(frames); i++) {
        g_autoptr(GByteArray) buf = g_byte_array_new();

        put_header(buf, "main");
        for (int j = 0; j < frames[i].times; j++) {
            g_byte_array_append(buf, frames[i].prefix, 8);
        }
        qobject_unref(assert_refused_by(to, port, buf, frames[i].message));
    }
    assert_good_migration(from, to);
    stop_both(from, to);
}

/*
 * What is no conversation ends without an answer, and hurts nobody.  But who
 * sends a stream finds a header behind which there is nothing: its return path
 * can tell its user from that what the destination wants.
 */
static void test_strangers(void)
{
    QTestState *to = start_destination("");
    QTestState *from = start_source("");
    g_autofree char *port = destination_port(to);
    g_autoptr(GPtrArray) speeches =
        g_ptr_array_new_with_free_func((GDestroyNotify)g_byte_array_unref);
    g_autoptr(GByteArray) header = g_byte_array_new();
    GByteArray *buf;
    int silent[20];

    /* Nothing at all, and then it goes */
    g_ptr_array_add(speeches, g_byte_array_new());
    for (int i = 0; i < 5; i++) {
        static const char *const texts[] = {
            "GET / HTTP/1.1\r\nHost: localhost\r\n\r\n",
            "QEVM\x00\x00\x00\x03",
            "\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
            "SSH-2.0-OpenSSH_9.2\r\n",
            "QMHS",
        };
        static const int lengths[] = { 35, 8, 11, 21, 4 };

        buf = g_byte_array_new();
        g_byte_array_append(buf, (const uint8_t *)texts[i], lengths[i]);
        g_ptr_array_add(speeches, buf);
    }
    /* A header alone; one for a channel of no session */
    buf = g_byte_array_new();
    put_header(buf, "main");
    g_ptr_array_add(speeches, buf);
    buf = g_byte_array_new();
    put_header(buf, "multifd");
    g_ptr_array_add(speeches, buf);
    /* A frame cut off in the middle */
    buf = g_byte_array_new();
    put_header(buf, "main");
    put_frame(buf, FRAME_HELLO, GOOD_HELLO);
    g_byte_array_set_size(buf, buf->len - 10);
    g_ptr_array_add(speeches, buf);

    for (int i = 0; i < ARRAY_SIZE(silent); i++) {
        silent[i] = connect_to(port);
    }
    for (int i = 0; i < speeches->len; i++) {
        g_autoptr(GByteArray) rsp = NULL;
        int fd = connect_to(port);

        buf = g_ptr_array_index(speeches, i);
        send_all(fd, buf->data, buf->len);
        shutdown(fd, SHUT_WR);
        rsp = read_to_end(fd);
        if (buf->len >= 4 && !memcmp(buf->data, "QEVM", 4)) {
            put_header(header, "main");
            g_assert_cmpmem(rsp->data, rsp->len, header->data, header->len);
        } else {
            g_assert_cmpint(rsp->len, ==, 0);
        }
        close(fd);
        assert_listening(to);
    }

    assert_good_migration(from, to);
    for (int i = 0; i < ARRAY_SIZE(silent); i++) {
        close(silent[i]);
    }
    stop_both(from, to);
}

/* One source at a time, and nothing changes before it has said COMMIT */
static void test_busy(void)
{
    QTestState *to = start_destination("");
    QTestState *from = start_source("");
    g_autofree char *port = destination_port(to);
    ScriptedSource other;
    QDict *rsp;

    source_claim_session(&other, port, GOOD_HELLO);
    g_assert_false(capability_is_on(to, "return-path"));
    migrate_to(from, to, NULL);
    rsp = wait_status(from, "failed");
    g_assert_nonnull(strstr(qdict_get_str(rsp, "error-desc"), "busy"));
    qobject_unref(rsp);
    rsp = wait_handshake(from, "rejected");
    g_assert_nonnull(find_issue(rsp, "busy"));
    qobject_unref(rsp);

    /* It is the other one that is shown on the destination */
    qobject_unref(wait_handshake(to, "in-progress"));
    source_close(&other);
    qobject_unref(wait_handshake(to, "cancelled"));

    assert_good_migration(from, to);
    stop_both(from, to);
}

/* After ACCEPT */
static void test_bad_commit(void)
{
    static const struct {
        uint16_t type;
        const char *json;
        const char *status;
        const char *message;
    } ends[] = {
        { FRAME_ABORT, "{ \"message\": \"second thoughts\" }", "cancelled",
          "second thoughts" },
        { FRAME_COMMIT, "{ \"digest\": \"00\" }", "failed",
          "different conversations" },
        { FRAME_COMMIT, "{}", "failed", "digest" },
        { FRAME_COMMIT, "{", "failed", "JSON parse error" },
        { FRAME_HELLO, GOOD_HELLO, "failed", "HELLO instead of COMMIT" },
    };
    QTestState *to = start_destination("");
    QTestState *from = start_source("");
    g_autofree char *port = destination_port(to);

    for (int i = 0; i < ARRAY_SIZE(ends); i++) {
        g_autoptr(GByteArray) buf = g_byte_array_new();
        g_autoptr(GByteArray) rest = NULL;
        ScriptedSource source;
        QDict *rsp;

        source_claim_session(&source, port, GOOD_HELLO);
        put_frame(buf, ends[i].type, ends[i].json);
        send_all(source.fd, buf->data, buf->len);
        rest = read_to_end(source.fd);
        g_assert_cmpint(rest->len, ==, 0);
        source_close(&source);
        rsp = wait_handshake(to, ends[i].status);
        g_assert_nonnull(strstr(qdict_get_str(rsp, "message"),
                                ends[i].message));
        qobject_unref(rsp);
        assert_listening(to);
        g_assert_false(capability_is_on(to, "return-path"));
    }
    assert_good_migration(from, to);
    stop_both(from, to);
}

/* Whoever says nothing any more is not waited for, with or without a session */
static void test_silence(void)
{
    QTestState *to = start_destination("");
    QTestState *from = start_source("");
    g_autofree char *port = destination_port(to);
    g_autoptr(GByteArray) header = g_byte_array_new();
    ScriptedSource source;
    int fds[3];
    QDict *rsp;

    put_header(header, "main");
    fds[0] = connect_to(port);
    fds[1] = connect_to(port);
    send_all(fds[1], header->data, header->len);
    source_claim_session(&source, port, GOOD_HELLO);
    fds[2] = source.fd;

    for (int i = 0; i < ARRAY_SIZE(fds); i++) {
        struct timeval limit = { .tv_sec = 40 };
        uint8_t byte;

        setsockopt(fds[i], SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof(limit));
        g_assert_cmpint(recv(fds[i], &byte, 1, 0), ==, 0);
    }
    close(fds[0]);
    close(fds[1]);
    source_close(&source);
    rsp = wait_handshake(to, "cancelled");
    g_assert_nonnull(strstr(qdict_get_str(rsp, "message"),
                            "no COMMIT came within 30 seconds"));
    qobject_unref(rsp);

    assert_listening(to);
    assert_good_migration(from, to);
    stop_both(from, to);
}

void migration_test_add_handshake_peer(MigrationTestEnv *env)
{
    if (!handshake_machine_or_null()) {
        return;
    }
    tmpfs = env->tmpfs;

    handshake_test_add("/migration/handshake/cancel", test_cancel);
    handshake_test_add("/migration/handshake/cancel-connecting",
                       test_cancel_connecting);
#ifdef CONFIG_GNUTLS
    handshake_test_add("/migration/handshake/cancel-tls", test_cancel_tls);
#endif
    handshake_test_add("/migration/handshake/yank", test_yank);
    handshake_test_add("/migration/handshake/not-connected",
                       test_not_connected);
    handshake_test_add("/migration/handshake/timeout", test_timeout);
    handshake_test_add("/migration/handshake/grease", test_grease);
    handshake_test_add("/migration/handshake/bad/answer", test_bad_answer);
    handshake_test_add("/migration/handshake/bad/hello",
                       test_unacceptable_hello);
    handshake_test_add("/migration/handshake/bad/frame", test_bad_frame);
    handshake_test_add("/migration/handshake/bad/strangers", test_strangers);
    handshake_test_add("/migration/handshake/bad/commit", test_bad_commit);
    handshake_test_add("/migration/handshake/bad/silence", test_silence);
    handshake_test_add("/migration/handshake/busy", test_busy);
    handshake_test_add("/migration/handshake/refused/many", test_refused_many);
}
