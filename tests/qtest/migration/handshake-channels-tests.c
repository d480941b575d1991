/*
 * QTest testcases for the migration handshake: named channels
 *
 * Most of these tests need no running guest, see handshake-util.h.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include <sys/resource.h>
#include "qapi/error.h"
#include "qemu/units.h"
#include "qemu/uuid.h"
#include "qobject/qjson.h"
#include "qobject/qlist.h"
#include "libqtest.h"
#include "migration/framework.h"
#include "migration/handshake-util.h"
#include "migration/migration-qmp.h"
#include "migration/migration-util.h"

static char *tmpfs;

static int64_t parameter_int(QTestState *who, const char *name)
{
    QDict *rsp = qtest_qmp_assert_success_ref(
        who, "{ 'execute': 'query-migrate-parameters' }");
    int64_t value = qdict_get_int(rsp, name);

    qobject_unref(rsp);
    return value;
}

static char *parameter_str(QTestState *who, const char *name)
{
    QDict *rsp = qtest_qmp_assert_success_ref(
        who, "{ 'execute': 'query-migrate-parameters' }");
    char *value = g_strdup(qdict_get_str(rsp, name));

    qobject_unref(rsp);
    return value;
}

/* A line of /proc/PID/status in KiB; 0 where there is no such file */
static int64_t memory_of(QTestState *who, const char *line)
{
    g_autofree char *path = g_strdup_printf("/proc/%d/status",
                                            (int)qtest_pid(who));
    g_autofree char *text = NULL;
    const char *value;

    if (!g_file_get_contents(path, &text, NULL, NULL)) {
        return 0;
    }
    value = strstr(text, line);
    g_assert_nonnull(value);
    return g_ascii_strtoll(value + strlen(line), NULL, 10);
}

/*
 * Multifd with that many channels, which the destination has not been told:
 * it has settings of its own, and has them again afterwards.
 */
static void do_test_multifd(int channels, const char *compression)
{
    QTestState *to = start_destination("");
    QTestState *from = start_source("");
    int64_t memory = memory_of(to, "VmHWM:");
    g_autofree char *method = NULL;

    migrate_set_parameter_int(to, "multifd-channels", 7);
    migrate_set_parameter_str(to, "multifd-compression", "zlib");
    migrate_set_capability(from, "multifd", true);
    migrate_set_parameter_int(from, "multifd-channels", channels);
    migrate_set_parameter_str(from, "multifd-compression", compression);

    assert_good_migration(from, to);
    for (int i = 0; i < 2; i++) {
        QDict *info = wait_handshake(i ? to : from, "accepted");
        QDict *params = qdict_get_qdict(info, "parameters");

        g_assert_true(list_contains(info, "capabilities", "multifd"));
        g_assert_cmpint(qdict_get_int(params, "multifd-channels"), ==,
                        channels);
        g_assert_cmpstr(qdict_get_str(params, "multifd-compression"), ==,
                        compression);
        qobject_unref(info);
    }

    g_assert_true(capability_is_on(from, "multifd"));
    g_assert_false(capability_is_on(to, "multifd"));
    g_assert_cmpint(parameter_int(to, "multifd-channels"), ==, 7);
    method = parameter_str(to, "multifd-compression");
    g_assert_cmpstr(method, ==, "zlib");

    /* The guest has 64 MiB, and zlib takes 1 MiB for each channel */
    g_assert_cmpint(memory_of(to, "VmHWM:") - memory, <, 400 * 1024);
    stop_both(from, to);
}

static void test_multifd_1(void)
{
    do_test_multifd(1, "none");
}

static void test_multifd_2(void)
{
    do_test_multifd(2, "none");
}

static void test_multifd_16(void)
{
    do_test_multifd(16, "none");
}

/* As many as there can be: more than others may have */
static void test_multifd_255(void)
{
    do_test_multifd(255, "zlib");
}

/* What a destination has set for its own next migration is not in the way */
static void test_set_on_destination(void)
{
    QTestState *to = start_machine("-incoming defer");
    QTestState *from = start_source("");

    migrate_set_capability(to, "multifd", true);
    migrate_set_parameter_int(to, "multifd-channels", 5);
    listen_for_handshake(to);
    migrate_to(from, to, "{ 'optional-capabilities': [] }");
    wait_completed(from, to);
    g_assert_true(capability_is_on(to, "multifd"));
    g_assert_cmpint(parameter_int(to, "multifd-channels"), ==, 5);
    stop_both(from, to);
}

/*
 * Optional ones are taken in order, as long as they go together, and those
 * that do not are listed; with what is set they do not go together either.
 */
static void test_declined(void)
{
    QTestState *to = start_destination("");
    QTestState *from = start_source("");
    QDict *info;

    migrate_set_capability(from, "xbzrle", true);
    migrate_to(from, to, NULL);
    wait_completed(from, to);
    info = wait_handshake(from, "accepted");
    g_assert_cmpstr(declined_reason(info, "multifd"), ==,
                    "Multifd is not compatible with xbzrle");
    g_assert_true(list_contains(info, "capabilities", "switchover-ack"));
    qobject_unref(info);
    stop_both(from, to);
}

/* Why this QEMU cannot do both at once, as QEMU 10.0; NULL if it can */
static char *why_not_multifd_postcopy(QTestState *who)
{
    QDict *rsp = qtest_qmp(who, "{ 'execute': 'migrate-set-capabilities',"
                           "  'arguments': { 'capabilities': ["
                           "    { 'capability': 'multifd', 'state': true },"
                           "    { 'capability': 'postcopy-ram',"
                           "      'state': true } ] } }");
    QDict *error = qdict_get_qdict(rsp, "error");
    char *reason = error ? g_strdup(qdict_get_str(error, "desc")) : NULL;

    qobject_unref(rsp);
    return reason;
}

static void test_multifd_postcopy(void)
{
    QTestState *to = start_destination("");
    QTestState *from = start_source("");
    g_autofree char *reason = why_not_multifd_postcopy(from);
    QDict *info;

    migrate_set_capability(from, "multifd", false);
    migrate_set_capability(from, "postcopy-ram", true);
    assert_good_migration(from, to);
    info = wait_handshake(from, "accepted");
    g_assert_cmpstr(declined_reason(info, "multifd"), ==, reason);
    g_assert_true(list_contains(info, "capabilities", "multifd") == !reason);
    g_assert_true(list_contains(info, "capabilities", "postcopy-ram"));
    qobject_unref(info);
    g_assert_false(capability_is_on(to, "postcopy-ram"));
    stop_both(from, to);
}

#define HELLO(rest) \
    "{ \"versions\": [1], \"purpose\": \"migrate\", \"required\": [], " rest "}"
#define NAMED_CHANNELS  "\"features\": [ \"named-channels\" ], "
#define PARAMETER(capability, name, value) \
    "{ \"capability\": \"" capability "\", \"name\": \"" name "\"," \
    "  \"value\": \"" value "\" }"
#define MULTIFD_PROFILE(name, value) \
    "\"profile\": { \"required-capabilities\": [ \"multifd\" ]," \
    "  \"parameters\": [ " PARAMETER("multifd", name, value) " ] }"
#define MULTIFD_HELLO(n) \
    HELLO(NAMED_CHANNELS MULTIFD_PROFILE("multifd-channels", n))

/* Opens a channel, and returns whether the destination has taken it */
static bool channel_is_taken(const char *port, const uint8_t *session,
                             const char *name, uint32_t index, int *fd)
{
    g_autoptr(GByteArray) buf = g_byte_array_new();
    struct timeval limit = { .tv_sec = PATIENCE / 1000 };
    uint8_t answer[64];
    ssize_t len;

    *fd = connect_to(port);
    put_named_header(buf, session, name, index);
    send_all(*fd, buf->data, buf->len);
    setsockopt(*fd, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof(limit));
    len = recv(*fd, answer, sizeof(answer), MSG_WAITALL);
    if (len == sizeof(answer)) {
        /* The same header comes back */
        g_assert_cmpmem(answer, sizeof(answer), buf->data, sizeof(answer));
        return true;
    }
    g_assert_cmpint(len, ==, 0);
    return false;
}

static void assert_dropped(const char *port, const uint8_t *session,
                           const char *name, uint32_t index)
{
    int fd;

    g_assert_false(channel_is_taken(port, session, name, index, &fd));
    close(fd);
}

/*
 * A source that opens its channels: what does not belong is dropped alone, and
 * when the source goes the next one can come at once.
 */
static void test_routing(void)
{
    static const uint8_t no_session[16];
    QTestState *to = start_destination("");
    QTestState *from = start_source("");
    g_autofree char *port = destination_port(to);
    ScriptedSource source;
    uint8_t wrong[16];
    int fds[2];

    assert_dropped(port, no_session, "multifd", 0);

    source_claim_session(&source, port, MULTIFD_HELLO("3"));
    memcpy(wrong, source.session, sizeof(wrong));
    wrong[15] ^= 1;

    for (int i = 0; i < ARRAY_SIZE(fds); i++) {
        assert_dropped(port, wrong, "multifd", 0);
        assert_dropped(port, no_session, "multifd", 0);
        assert_dropped(port, source.session, "multifd", 3);
        assert_dropped(port, source.session, "multifd", UINT32_MAX);
        assert_dropped(port, source.session, "preempt", 0);
        assert_dropped(port, source.session, "main", 1);
        assert_dropped(port, source.session, "cpr", 0);

        /* Not in order */
        g_assert_true(channel_is_taken(port, source.session, "multifd", 2 - i,
                                       &fds[i]));
        assert_dropped(port, source.session, "multifd", 2 - i);
    }
    qobject_unref(wait_handshake(to, "in-progress"));

    source_close(&source);
    qobject_unref(wait_handshake(to, "cancelled"));
    for (int i = 0; i < ARRAY_SIZE(fds); i++) {
        g_autoptr(GByteArray) rest = read_to_end(fds[i]);

        g_assert_cmpint(rest->len, ==, 0);
        close(fds[i]);
    }
    assert_dropped(port, source.session, "multifd", 0);
    assert_listening(to);
    assert_good_migration(from, to);
    stop_both(from, to);
}

/* A source that agrees before its channels are there: it is told so */
static void test_commit_too_early(void)
{
    static const char *const features[] = {
        NAMED_CHANNELS,
        "\"features\": [ \"named-channels\", \"late-error\" ], ",
    };
    QTestState *to = start_destination("");
    QTestState *from = start_source("");
    g_autofree char *port = destination_port(to);

    for (int i = 0; i < ARRAY_SIZE(features); i++) {
        g_autofree char *hello = g_strdup_printf(
            HELLO("%s" MULTIFD_PROFILE("multifd-channels", "3")), features[i]);
        g_autoptr(GByteArray) rest = NULL;
        ScriptedSource source;
        QDict *rsp;
        int fd;

        source_claim_session(&source, port, hello);
        g_assert_true(channel_is_taken(port, source.session, "multifd", 1,
                                       &fd));
        source_say_commit(&source);
        /* A stream may be on its way */
        send_all(source.fd, "QEVM\0\0\0\3", 8);
        rest = read_to_end(source.fd);
        rsp = wait_handshake(to, "failed");
        g_assert_cmpstr(qdict_get_str(rsp, "message"), ==,
                        "COMMIT came while 2 channels were missing");
        qobject_unref(rsp);
        if (i == 0) {
            g_assert_cmpint(rest->len, ==, 0);
        } else {
            rsp = parse_frame(rest, FRAME_LAST_WORD);
            g_assert_cmpstr(qdict_get_str(rsp, "message"), ==,
                            "COMMIT came while 2 channels were missing");
            g_assert_cmpstr(qdict_get_str(rsp, "guest"), ==, "not-started");
            qobject_unref(rsp);
        }
        close(fd);
        source_close(&source);
        assert_listening(to);
    }
    assert_good_migration(from, to);
    stop_both(from, to);
}

/* What a source says it goes without, and must not */
static void test_without(void)
{
    static const struct {
        const char *hello;
        const char *without;
        bool good;
    } commits[] = {
        { HELLO(NAMED_CHANNELS "\"optional-capabilities\":"
                " [ \"multifd\", \"switchover-ack\" ]"), "multifd", true },
        { HELLO(NAMED_CHANNELS "\"optional-capabilities\":"
                " [ \"multifd\", \"switchover-ack\" ]"), "switchover-ack" },
        { HELLO(NAMED_CHANNELS "\"optional-capabilities\":"
                " [ \"switchover-ack\" ]"), "multifd" },
        { MULTIFD_HELLO("3"), "multifd" },
        { HELLO(NAMED_CHANNELS "\"optional-capabilities\":"
                " [ \"multifd\" ]"), "return-path" },
        { HELLO(NAMED_CHANNELS "\"optional-capabilities\":"
                " [ \"multifd\" ]"), "from-the-future" },
    };

    for (int i = 0; i < ARRAY_SIZE(commits); i++) {
        QTestState *to = start_destination("");
        g_autofree char *port = destination_port(to);
        ScriptedSource source;
        QDict *rsp;
        int fd;

        source_claim_session(&source, port, commits[i].hello);
        if (commits[i].good) {
            /* One got through, and goes with the others */
            g_assert_true(channel_is_taken(port, source.session, "multifd", 1,
                                           &fd));
        }
        source_say_commit_without(&source, commits[i].without, "no way");
        rsp = wait_handshake(to, commits[i].good ? "accepted" : "failed");
        if (commits[i].good) {
            g_autoptr(GByteArray) rest = read_to_end(fd);

            g_assert_cmpint(rest->len, ==, 0);
            close(fd);
            g_assert_false(list_contains(rsp, "capabilities", "multifd"));
            g_assert_true(list_contains(rsp, "capabilities",
                                        "switchover-ack"));
            g_assert_cmpstr(declined_reason(rsp, "multifd"), ==, "no way");
        } else {
            g_test_message("%s", qdict_get_str(rsp, "message"));
            g_assert_nonnull(strstr(qdict_get_str(rsp, "message"),
                                    commits[i].without));
            assert_listening(to);
        }
        qobject_unref(rsp);
        source_close(&source);
        qtest_quit(to);
    }
}

#ifdef CONFIG_LINUX
/*
 * All channels have come, and there is not enough memory for them.  Nothing of
 * the attempt is left, and the next migration has other settings.
 */
static void test_no_memory(void)
{
    enum { CHANNELS = 255 };
    QTestState *to = start_destination("");
    QTestState *from = start_source("");
    g_autofree char *port = destination_port(to);
    struct rlimit limit = { RLIM_INFINITY, RLIM_INFINITY };
    ScriptedSource source;
    int fds[CHANNELS];
    int64_t size;
    QDict *rsp;

    source_claim_session(
        &source, port,
        HELLO(NAMED_CHANNELS "\"profile\": {"
              "  \"required-capabilities\": [ \"multifd\" ],"
              "  \"parameters\": ["
              PARAMETER("multifd", "multifd-channels", "255") ", "
              PARAMETER("multifd", "multifd-compression", "zlib") " ] }"));
    for (int i = 0; i < CHANNELS; i++) {
        g_assert_true(channel_is_taken(port, source.session, "multifd", i,
                                       &fds[i]));
    }
    /* Enough for everything else */
    size = memory_of(to, "VmSize:") * 1024;
    if (size > 1024 * GiB) {
        g_test_skip("address space is not memory here");
        source_close(&source);
        stop_both(from, to);
        return;
    }
    limit.rlim_cur = size + 20 * MiB;
    g_assert_cmpint(prlimit(qtest_pid(to), RLIMIT_AS, &limit, NULL), ==, 0);
    source_say_commit(&source);
    rsp = wait_handshake(to, "failed");
    g_test_message("%s", qdict_get_str(rsp, "message"));
    g_assert_true(g_str_has_prefix(qdict_get_str(rsp, "message"), "multifd "));
    qobject_unref(rsp);
    limit.rlim_cur = RLIM_INFINITY;
    g_assert_cmpint(prlimit(qtest_pid(to), RLIMIT_AS, &limit, NULL), ==, 0);
    for (int i = 0; i < CHANNELS; i++) {
        close(fds[i]);
    }
    source_close(&source);

    assert_listening(to);
    /* What a failed attempt has left behind would not do for this one */
    migrate_set_parameter_int(from, "multifd-channels", 9);
    migrate_set_parameter_str(from, "multifd-compression", "none");
    assert_good_migration(from, to);
    stop_both(from, to);
}
#endif

/* Whoever knows the session cannot disturb a migration that runs */
static void test_others_meanwhile(void)
{
    QTestState *to = start_destination("");
    QTestState *from = start_source("");
    g_autofree char *port = destination_port(to);
    int silent[100];
    QemuUUID session;
    QDict *info;

    migrate_set_parameter_int(from, "max-bandwidth", 1024 * 1024);
    migrate_to(from, to, NULL);
    qobject_unref(wait_status(from, "active"));
    info = wait_handshake(to, "accepted");
    g_assert_cmpint(qemu_uuid_parse(qdict_get_str(info, "session"), &session),
                    ==, 0);
    qobject_unref(info);

    for (int i = 0; i < ARRAY_SIZE(silent); i++) {
        silent[i] = connect_to(port);
    }
    assert_dropped(port, session.data, "multifd", 0);
    assert_dropped(port, session.data, "multifd", 1);
    assert_dropped(port, session.data, "multifd", 2);
    assert_dropped(port, session.data, "preempt", 0);
    assert_dropped(port, session.data, "main", 1);

    migrate_set_parameter_int(from, "max-bandwidth", 0);
    wait_completed(from, to);
    g_assert_true(is_running(to));
    for (int i = 0; i < ARRAY_SIZE(silent); i++) {
        close(silent[i]);
    }
    stop_both(from, to);
}

/* HELLOs that want too much, or what they must not want */
static const struct {
    const char *hello;
    uint16_t verdict;
    const char *code;           /* of an issue; with ACCEPT: what is declined */
    const char *message;
} hellos[] = {
    /* An older source: no channel of its has a name */
    { HELLO("\"profile\": { \"required-capabilities\": [ \"multifd\" ] }"),
      FRAME_REJECT, "transport", "named-channels" },
    { HELLO("\"optional-capabilities\": [ \"multifd\" ]"),
      FRAME_ACCEPT, "multifd", "named-channels" },
    { HELLO("\"profile\": { \"required-capabilities\":"
            "  [ \"postcopy-ram\", \"postcopy-preempt\" ] }"),
      FRAME_REJECT, "transport", "named-channels" },
    { MULTIFD_HELLO("0"), FRAME_REJECT, "parameter-value",
      "multifd-channels" },
    { MULTIFD_HELLO("256"), FRAME_REJECT, "parameter-value",
      "multifd-channels" },
    { MULTIFD_HELLO("-1"), FRAME_REJECT, "parameter-value",
      "multifd-channels" },
    { MULTIFD_HELLO("18446744073709551615"), FRAME_REJECT, "parameter-value",
      "multifd-channels" },
    { MULTIFD_HELLO("two"), FRAME_REJECT, "parameter-value",
      "multifd-channels" },
    { MULTIFD_HELLO(""), FRAME_REJECT, "parameter-value",
      "multifd-channels" },
    { HELLO(NAMED_CHANNELS MULTIFD_PROFILE("multifd-compression",
                                           "from-the-future")),
      FRAME_REJECT, "parameter-value", "from-the-future" },
    { HELLO(NAMED_CHANNELS "\"optional-capabilities\": [ \"multifd\" ],"
            "\"profile\": { \"parameters\": ["
            PARAMETER("multifd", "multifd-compression", "from-the-future")
            " ] }"),
      FRAME_ACCEPT, "multifd", "from-the-future" },
    { HELLO(NAMED_CHANNELS "\"optional-capabilities\": [ \"multifd\" ],"
            "\"profile\": { \"parameters\": ["
            PARAMETER("multifd", "multifd-warp", "9") " ] }"),
      FRAME_ACCEPT, "multifd", "multifd-warp" },
    /* Two that exclude each other */
    { HELLO(NAMED_CHANNELS "\"profile\": { \"required-capabilities\":"
            "  [ \"x-ignore-shared\", \"postcopy-ram\" ] }"),
      FRAME_REJECT, "capability-conflict",
      "Postcopy is not compatible with ignore-shared" },
    /* Nobody's business but the destination's */
    { HELLO(NAMED_CHANNELS MULTIFD_PROFILE("tls-creds", "stolen")),
      FRAME_REJECT, "parameter-unknown", "tls-creds" },
    { HELLO(NAMED_CHANNELS MULTIFD_PROFILE("cpr-exec-command", "/bin/sh")),
      FRAME_REJECT, "parameter-unknown", "cpr-exec-command" },
    { HELLO(NAMED_CHANNELS "\"profile\": {"
            "  \"required-capabilities\": [ \"dirty-bitmaps\" ],"
            "  \"parameters\": ["
            PARAMETER("dirty-bitmaps", "block-bitmap-mapping", "[]") " ] }"),
      FRAME_REJECT, "parameter-unknown", "block-bitmap-mapping" },
    { HELLO("\"profile\": { \"required-capabilities\": [ \"events\" ] }"),
      FRAME_REJECT, "capability-unsupported", "events" },
    { HELLO("\"profile\": { \"required-capabilities\": [ \"mapped-ram\" ] }"),
      FRAME_REJECT, "capability-unsupported", "mapped-ram" },
};

static void test_hellos(void)
{
    QTestState *to = start_destination("");
    QTestState *from = start_source("");
    g_autofree char *port = destination_port(to);

    for (int i = 0; i < ARRAY_SIZE(hellos); i++) {
        ScriptedSource source;
        const char *text;
        uint16_t type;
        QDict *answer;

        g_test_message("%s", hellos[i].hello);
        source_say_hello(&source, port, hellos[i].hello);
        answer = source_read_verdict(&source, &type);
        source_close(&source);
        g_assert_cmpint(type, ==, hellos[i].verdict);
        if (type == FRAME_REJECT) {
            QDict *issue = find_issue(answer, hellos[i].code);

            g_assert_nonnull(issue);
            text = qdict_get_str(issue, "message");
        } else {
            g_assert_false(list_contains(answer, "capabilities",
                                         hellos[i].code));
            text = declined_reason(answer, hellos[i].code);
            qobject_unref(wait_handshake(to, "cancelled"));
        }
        g_test_message("%s", text);
        g_assert_nonnull(strstr(text, hellos[i].message));
        qobject_unref(answer);
        assert_listening(to);
    }
    assert_good_migration(from, to);
    stop_both(from, to);
}

/*
 * What has no capability that it could belong to is not even looked at, let
 * alone applied, when the rest is agreed on
 */
static void test_ignored_parameters(void)
{
    QTestState *to = start_destination("");
    g_autofree char *port = destination_port(to);
    g_autofree char *creds = NULL;
    ScriptedSource source;
    QDict *info;

    source_claim_session(
        &source, port,
        HELLO("\"profile\": { \"parameters\": ["
              PARAMETER("return-path", "tls-creds", "stolen") ","
              PARAMETER("return-path", "announce-rounds", "77") ","
              PARAMETER("multifd", "multifd-channels", "77") ","
              PARAMETER("tls-creds", "tls-creds", "stolen") ","
              PARAMETER("announce-rounds", "announce-rounds", "77") " ] }"));
    source_say_commit(&source);
    info = wait_handshake(to, "accepted");

    /* Nothing has come of the stream yet */
    g_assert_true(list_contains(info, "capabilities", "return-path"));
    g_assert_false(qdict_haskey(qdict_get_qdict(info, "parameters"),
                                "multifd-channels"));
    qobject_unref(info);
    creds = parameter_str(to, "tls-creds");
    g_assert_cmpstr(creds, ==, "");
    g_assert_cmpint(parameter_int(to, "announce-rounds"), !=, 77);
    g_assert_cmpint(parameter_int(to, "multifd-channels"), ==, 2);
    source_close(&source);
    qobject_unref(wait_status(to, "failed"));
    qtest_quit(to);
}

/* What a destination may say, and a source does not put up with */
static const struct {
    const char *accept;         /* the members after "version" */
    const char *error;
} accepts[] = {
    { "\"capabilities\": [ \"switchover-ack\" ]", "without return-path" },
    { "\"capabilities\": [ \"return-path\", \"multifd\" ]",
      "named-channels" },
    { "\"features\": [ \"named-channels\" ],"
      "\"capabilities\": [ \"return-path\", \"multifd\" ],"
      "\"parameters\": [ " PARAMETER("multifd", "multifd-channels", "16")
      " ]", "changed the parameters" },
    { "\"capabilities\": [ \"return-path\", \"postcopy-ram\" ]",
      "not offered" },
};

#define ACCEPT_MULTIFD \
    "\"features\": [ \"named-channels\" ]," \
    "\"capabilities\": [ \"return-path\", \"multifd\" ]"

static void say_accept(SilentPeer *peer, const char *accept)
{
    static const uint8_t session[16] = { 1 };
    g_autoptr(GByteArray) buf = g_byte_array_new();
    g_autofree char *json = g_strdup_printf("{ \"version\": 1, %s }", accept);

    put_named_header(buf, session, "main", 0);
    put_frame(buf, FRAME_ACCEPT, json);
    send_all(peer->fd, buf->data, buf->len);
}

static void test_accepts(void)
{
    QTestState *from = start_source("");
    SilentPeer peer;
    QDict *rsp;

    silent_peer_start(&peer);
    for (int i = 0; i < ARRAY_SIZE(accepts); i++) {
        migrate_to_port(from, "handshake", peer.port, NULL);
        silent_peer_accept(&peer);
        say_accept(&peer, accepts[i].accept);
        rsp = wait_status(from, "failed");
        g_test_message("%s", qdict_get_str(rsp, "error-desc"));
        g_assert_nonnull(strstr(qdict_get_str(rsp, "error-desc"),
                                accepts[i].error));
        qobject_unref(rsp);
        g_assert_true(is_running(from));
        close(peer.fd);
    }

    /* Somebody changes what HELLO has said, before the answer is there */
    migrate_to_port(from, "handshake", peer.port, NULL);
    silent_peer_accept(&peer);
    migrate_set_parameter_int(from, "multifd-channels", 4);
    say_accept(&peer, ACCEPT_MULTIFD);
    rsp = wait_status(from, "failed");
    g_assert_nonnull(strstr(qdict_get_str(rsp, "error-desc"),
                            "parameters were changed"));
    qobject_unref(rsp);
    g_assert_cmpint(parameter_int(from, "multifd-channels"), ==, 4);
    silent_peer_stop(&peer);
    qtest_quit(from);
}

/*
 * A destination that agrees, and does nothing about the channels: cancelling
 * ends it at once, and the next migration works.
 */
static void test_cancel_channels(void)
{
    QTestState *to = start_destination("");
    QTestState *from = start_source("");
    SilentPeer peer;

    for (int i = 0; i < 3; i++) {
        QDict *info;
        gint64 start;

        /* Each time at another port: some may connect after the cancellation */
        silent_peer_start(&peer);
        migrate_to_port(from, "handshake", peer.port, NULL);
        silent_peer_accept(&peer);
        say_accept(&peer, ACCEPT_MULTIFD);
        silent_peer_wait_others(&peer);

        start = g_get_monotonic_time();
        migrate_cancel(from);
        qobject_unref(wait_status(from, "cancelled"));
        g_assert_cmpint(g_get_monotonic_time() - start, <, PROMPT);
        info = wait_handshake(from, "cancelled");
        g_assert_cmpstr(qdict_get_str(info, "message"), ==,
                        "the migration was cancelled");
        qobject_unref(info);
        g_assert_true(is_running(from));
        silent_peer_stop(&peer);
    }

    assert_good_migration(from, to);
    stop_both(from, to);
}

/* Something on the way carries one connection, and no more */
static void test_single_forwarder(void)
{
    QTestState *from = start_source("");
    SilentPeer peer;
    QDict *rsp;

    for (int required = 0; required < 2; required++) {
        silent_peer_start(&peer);
        migrate_set_capability(from, "multifd", required);
        migrate_to_port(from, "handshake", peer.port, NULL);
        silent_peer_accept(&peer);
        close(peer.listener);
        say_accept(&peer, ACCEPT_MULTIFD);
        if (required) {
            rsp = wait_status(from, "failed");
            g_assert_true(g_str_has_prefix(
                qdict_get_str(rsp, "error-desc"),
                "capability 'multifd' is set, and connection 'multifd' "));
        } else {
            rsp = wait_handshake(from, "accepted");
            g_assert_false(list_contains(rsp, "capabilities", "multifd"));
            g_assert_nonnull(strstr(declined_reason(rsp, "multifd"),
                                    "does not get through: "));
            migrate_cancel(from);
            qobject_unref(wait_status(from, "cancelled"));
        }
        qobject_unref(rsp);
        g_assert_true(is_running(from));
        close(peer.fd);
        g_free(peer.port);
    }
    qtest_quit(from);
}

/* Faster than TCP: more of the moments are those between two steps */
static QTestState *start_unix_destination(const char *path)
{
    QTestState *to = start_machine("-incoming defer");

    qtest_qmp_assert_success(to, "{ 'execute': 'migrate-incoming',"
                             "  'arguments': { 'exit-on-error': false,"
                             "    'channels': [ {"
                             "      'channel-type': 'handshake',"
                             "      'addr': { 'transport': 'socket',"
                             "        'type': 'unix', 'path': %s } } ] } }",
                             path);
    return to;
}

/*
 * At any moment: the source ends cancelled, and soon; the destination listens,
 * or has failed if the stream had begun.
 */
static void test_cancel_any_moment(void)
{
    g_autofree char *path = g_strdup_printf("%s/cancel", tmpfs);
    QTestState *to = start_unix_destination(path);
    QTestState *from = start_source("");

    migrate_set_capability(from, "pause-before-switchover", true);
    for (int i = 0; i < 100; i++) {
        g_autofree char *status = NULL;
        gint64 start;

        migrate_to_unix(from, path);
        g_usleep(g_test_rand_int_range(0, g_test_rand_int_range(1, 10000)));
        start = g_get_monotonic_time();
        migrate_cancel(from);
        qobject_unref(wait_status(from, "cancelled"));
        g_assert_cmpint(g_get_monotonic_time() - start, <, PROMPT);
        g_assert_true(is_running(from));

        /* It may have yet to see that the source is gone */
        for (;;) {
            QDict *rsp = migrate_query(to);
            QDict *handshake = qdict_get_qdict(rsp, "handshake");
            bool busy = handshake &&
                (!strcmp(qdict_get_str(handshake, "status"), "in-progress") ||
                 !strcmp(qdict_get_str(handshake, "status"), "accepted"));

            g_free(status);
            status = g_strdup(qdict_get_str(rsp, "status"));
            qobject_unref(rsp);
            if (!strcmp(status, "failed") ||
                (!strcmp(status, "setup") && !busy)) {
                break;
            }
            g_assert_cmpint(g_get_monotonic_time() - start, <,
                            PATIENCE * 1000);
            g_usleep(1000);
        }
        if (!strcmp(status, "failed")) {
            qtest_quit(to);
            to = start_unix_destination(path);
        }
    }
    migrate_set_capability(from, "pause-before-switchover", false);
    migrate_to_unix(from, path);
    wait_completed(from, to);
    stop_both(from, to);
    unlink(path);
}

/* A destination that is there and does not read: all channels are full */
static void test_cancel_stopped(void)
{
    QTestState *to = start_destination("");
    QTestState *from = start_source("");
    gint64 start;
    int status;

    migrate_set_parameter_int(from, "max-bandwidth", 1024 * 1024);
    migrate_to(from, to, NULL);
    qobject_unref(wait_status(from, "active"));
    g_assert_cmpint(kill(qtest_pid(to), SIGSTOP), ==, 0);
    /* All of its threads */
    g_assert_cmpint(waitpid(qtest_pid(to), &status, WUNTRACED), ==,
                    qtest_pid(to));
    g_assert_true(WIFSTOPPED(status));
    migrate_set_parameter_int(from, "max-bandwidth", 0);
    g_usleep(200 * 1000);

    start = g_get_monotonic_time();
    migrate_cancel(from);
    qobject_unref(wait_status(from, "cancelled"));
    g_assert_cmpint(g_get_monotonic_time() - start, <, PROMPT);
    g_assert_true(is_running(from));
    g_assert_cmpint(kill(qtest_pid(to), SIGCONT), ==, 0);
    stop_both(from, to);
}

/*
 * Channels that end before they have given a sync: the loader must not wait
 * for them, with the BQL held.
 */
static void test_channels_end(void)
{
    /* The head of a stream, the RAM section, and a request to synchronize */
    static const uint8_t stream[] = {
        'Q', 'E', 'V', 'M', 0, 0, 0, 3,
        1, 0, 0, 0, 1, 3, 'r', 'a', 'm', 0, 0, 0, 0, 0, 0, 0, 4,
        0, 0, 0, 0, 0, 0, 2, 0,
    };
    QTestState *to =
        start_destination("-global migration.send-configuration=off");
    g_autofree char *port = destination_port(to);
    ScriptedSource source;
    int fds[2];
    gint64 start;

    source_claim_session(&source, port, MULTIFD_HELLO("2"));
    for (int i = 0; i < ARRAY_SIZE(fds); i++) {
        g_assert_true(channel_is_taken(port, source.session, "multifd", i,
                                       &fds[i]));
    }
    source_say_commit(&source);
    qobject_unref(wait_handshake(to, "accepted"));
    for (int i = 0; i < ARRAY_SIZE(fds); i++) {
        close(fds[i]);
    }
    send_all(source.fd, stream, sizeof(stream));

    start = g_get_monotonic_time();
    qobject_unref(wait_status(to, "failed"));
    g_assert_cmpint(g_get_monotonic_time() - start, <, PROMPT);
    source_close(&source);
    qtest_quit(to);
}

/*
 * Not over a handshake: the first index that is out of range got past the check
 * and beyond the end of an array
 */
static void test_legacy_index(void)
{
    QTestState *to = start_machine("-incoming defer");
    g_autofree char *port = NULL;
    uint8_t init[64] = { 0x11, 0x22, 0x33, 0x44, 0, 0, 0, 1 };
    QDict *rsp;
    int fd;

    migrate_set_capability(to, "multifd", true);
    qtest_qmp_assert_success(to, "{ 'execute': 'migrate-incoming',"
                             "  'arguments': { 'exit-on-error': false,"
                             "    'uri': 'tcp:127.0.0.1:0' } }");
    port = destination_port(to);
    init[24] = parameter_int(to, "multifd-channels");
    fd = connect_to(port);
    send_all(fd, init, sizeof(init));
    rsp = wait_status(to, "failed");
    g_assert_nonnull(strstr(qdict_get_str(rsp, "error-desc"), "channel id"));
    qobject_unref(rsp);
    close(fd);
    qtest_quit(to);
}

void migration_test_add_handshake_channels(MigrationTestEnv *env)
{
    if (!handshake_machine_or_null()) {
        return;
    }
    tmpfs = env->tmpfs;

    if (env->has_uffd) {
        handshake_test_add("/migration/handshake/channels/multifd/postcopy",
                           test_multifd_postcopy);
    }
    handshake_test_add("/migration/handshake/channels/legacy-index",
                       test_legacy_index);
    handshake_test_add("/migration/handshake/channels/multifd/1",
                       test_multifd_1);
    handshake_test_add("/migration/handshake/channels/multifd/2",
                       test_multifd_2);
    handshake_test_add("/migration/handshake/channels/multifd/16",
                       test_multifd_16);
    handshake_test_add("/migration/handshake/channels/multifd/255",
                       test_multifd_255);
    handshake_test_add("/migration/handshake/channels/destination",
                       test_set_on_destination);
    handshake_test_add("/migration/handshake/channels/declined",
                       test_declined);
    handshake_test_add("/migration/handshake/channels/routing", test_routing);
    handshake_test_add("/migration/handshake/channels/commit-early",
                       test_commit_too_early);
    handshake_test_add("/migration/handshake/channels/without", test_without);
#ifdef CONFIG_LINUX
    handshake_test_add("/migration/handshake/channels/no-memory",
                       test_no_memory);
#endif
    handshake_test_add("/migration/handshake/channels/others",
                       test_others_meanwhile);
    handshake_test_add("/migration/handshake/channels/hellos", test_hellos);
    handshake_test_add("/migration/handshake/channels/ignored",
                       test_ignored_parameters);
    handshake_test_add("/migration/handshake/channels/accepts", test_accepts);
    handshake_test_add("/migration/handshake/channels/cancel",
                       test_cancel_channels);
    handshake_test_add("/migration/handshake/channels/cancel-any",
                       test_cancel_any_moment);
    handshake_test_add("/migration/handshake/channels/cancel-stopped",
                       test_cancel_stopped);
    handshake_test_add("/migration/handshake/channels/end",
                       test_channels_end);
    handshake_test_add("/migration/handshake/channels/forwarder",
                       test_single_forwarder);
}
