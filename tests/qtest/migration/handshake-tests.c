/*
 * QTest testcases for the migration handshake
 *
 * Most of them need no running guest: they start QEMU with the qtest
 * accelerator, which takes a fraction of a second.
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
#include "qobject/qstring.h"
#include "libqtest.h"
#include "migration/framework.h"
#include "migration/migration-qmp.h"
#include "migration/migration-util.h"

#define MACHINE     "-machine q35 -m 64 -nodefaults "
#define TCP_LISTEN  "{ 'channel-type': 'handshake'," \
                    "  'addr': { 'transport': 'socket', 'type': 'inet'," \
                    "            'host': '127.0.0.1', 'port': '0' } }"

/* Milliseconds; what is waited for takes a few of them */
#define PATIENCE    30000

static char *tmpfs;

/* A destination that listens on a handshake channel */
static QTestState *start_destination(const char *opts)
{
    QTestState *to = qtest_initf(MACHINE "-incoming defer %s", opts);

    qtest_qmp_assert_success(to, "{ 'execute': 'migrate-incoming',"
                             "  'arguments': { 'exit-on-error': false,"
                             "    'channels': [ " TCP_LISTEN " ] } }");
    return to;
}

static QTestState *start_source(const char *opts)
{
    QTestState *from = qtest_initf(MACHINE "%s", opts);

    /* Something that takes a while if the bandwidth is low */
    qtest_memset(from, 16 * 1024 * 1024, 0x5a, 16 * 1024 * 1024);
    return from;
}

static char *destination_port(QTestState *to)
{
    QDict *rsp = migrate_query(to);
    QList *list = qdict_get_qlist(rsp, "socket-address");
    QDict *addr = qobject_to(QDict, qlist_peek(list));
    char *port = g_strdup(qdict_get_str(addr, "port"));

    qobject_unref(rsp);
    return port;
}

/* 'migrate' with one channel of a type, and more arguments from a format */
static void migrate_to_port(QTestState *from, const char *type,
                            const char *port, const char *options)
{
    QDict *args = qdict_from_jsonf_nofail(
        "{ 'channels': [ { 'channel-type': %s,"
        "    'addr': { 'transport': 'socket', 'type': 'inet',"
        "              'host': '127.0.0.1', 'port': %s } } ] }", type, port);

    if (options) {
        qdict_put_obj(args, "handshake", qobject_from_json(options,
                                                           &error_abort));
    }
    qtest_qmp_assert_success(from, "{ 'execute': 'migrate',"
                             "  'arguments': %p }", args);
}

static void migrate_to(QTestState *from, QTestState *to, const char *options)
{
    g_autofree char *port = destination_port(to);

    migrate_to_port(from, "handshake", port, options);
}

static bool is_running(QTestState *who)
{
    QDict *rsp = qtest_qmp_assert_success_ref(who,
                                              "{ 'execute': 'query-status' }");
    bool running = qdict_get_bool(rsp, "running");

    qobject_unref(rsp);
    return running;
}

/* query-migrate once 'status' is as given; to be unreferenced by the caller */
static QDict *wait_status(QTestState *who, const char *status)
{
    for (int i = 0; i < PATIENCE / 10; i++) {
        QDict *rsp = migrate_query(who);
        const char *now = qdict_get_try_str(rsp, "status");

        if (now && !strcmp(now, status)) {
            return rsp;
        }
        if (i == PATIENCE / 10 - 1) {
            g_test_message("status is '%s', not '%s'", now, status);
        }
        qobject_unref(rsp);
        g_usleep(10 * 1000);
    }
    g_assert_not_reached();
}

/* The 'handshake' of query-migrate once its 'status' is as given */
static QDict *wait_handshake(QTestState *who, const char *status)
{
    for (int i = 0; i < PATIENCE / 10; i++) {
        QDict *rsp = migrate_query(who);
        QDict *handshake = qdict_get_qdict(rsp, "handshake");

        if (handshake && !strcmp(qdict_get_str(handshake, "status"), status)) {
            handshake = qobject_ref(handshake);
            qobject_unref(rsp);
            return handshake;
        }
        qobject_unref(rsp);
        g_usleep(10 * 1000);
    }
    g_assert_not_reached();
}

static QDict *find_issue(QDict *handshake, const char *code)
{
    QList *issues = qdict_get_qlist(handshake, "issues");
    const QListEntry *entry;

    QLIST_FOREACH_ENTRY(issues, entry) {
        QDict *issue = qobject_to(QDict, qlist_entry_obj(entry));

        if (!strcmp(qdict_get_str(issue, "code"), code)) {
            return issue;
        }
    }
    return NULL;
}

static bool list_contains(QDict *dict, const char *member, const char *item)
{
    QList *list = qdict_get_qlist(dict, member);
    const QListEntry *entry;

    QLIST_FOREACH_ENTRY(list, entry) {
        QString *str = qobject_to(QString, qlist_entry_obj(entry));

        if (str && !strcmp(qstring_get_str(str), item)) {
            return true;
        }
    }
    return false;
}

static bool capability_is_on(QTestState *who, const char *capability)
{
    QDict *rsp = qtest_qmp(who, "{ 'execute': 'query-migrate-capabilities' }");
    const QListEntry *entry;
    bool on = false;

    QLIST_FOREACH_ENTRY(qdict_get_qlist(rsp, "return"), entry) {
        QDict *item = qobject_to(QDict, qlist_entry_obj(entry));

        if (!strcmp(qdict_get_str(item, "capability"), capability)) {
            on = qdict_get_bool(item, "state");
        }
    }
    qobject_unref(rsp);
    return on;
}

static void assert_good_migration(QTestState *from, QTestState *to)
{
    migrate_to(from, to, NULL);
    qobject_unref(wait_status(from, "completed"));
    qobject_unref(wait_status(to, "completed"));
    g_assert_true(is_running(to));
    g_assert_false(is_running(from));
}

/* The destination shows no trace of it all, and takes the next migration */
static void assert_listening(QTestState *to)
{
    QDict *rsp = migrate_query(to);

    g_assert_cmpstr(qdict_get_str(rsp, "status"), ==, "setup");
    g_assert_false(qdict_haskey(rsp, "error-desc"));
    qobject_unref(rsp);
}

static void stop_both(QTestState *from, QTestState *to)
{
    qtest_quit(from);
    qtest_quit(to);
}

/* Migrations that work */

static void *hook_start_defer(QTestState *from, QTestState *to)
{
    qtest_qmp_assert_success(to, "{ 'execute': 'migrate-incoming',"
                             "  'arguments': { 'exit-on-error': false,"
                             "    'channels': [ " TCP_LISTEN " ] } }");
    return NULL;
}

static void hook_end_agreed(QTestState *from, QTestState *to, void *opaque)
{
    QDict *a = wait_handshake(from, "accepted");
    QDict *b = wait_handshake(to, "accepted");

    g_assert_cmpstr(qdict_get_str(a, "session"), ==,
                    qdict_get_str(b, "session"));
    qobject_unref(a);
    qobject_unref(b);
}

#define CONNECT_CHANNELS \
    "[ { 'channel-type': 'handshake'," \
    "    'addr': { 'transport': 'socket', 'type': 'inet'," \
    "              'host': '127.0.0.1', 'port': '0' } } ]"

/* A running guest that checks its memory, as in the other migration tests */
static void test_precopy_live(void)
{
    MigrateCommon args = {
        .listen_uri = "defer",
        .connect_channels = CONNECT_CHANNELS,
        .start_hook = hook_start_defer,
        .end_hook = hook_end_agreed,
        .live = true,
    };

    test_precopy_common(&args);
}

/* Nothing but the source knows of postcopy */
static void *hook_start_postcopy(QTestState *from, QTestState *to)
{
    hook_start_defer(from, to);
    migrate_set_capability(from, "postcopy-ram", true);
    migrate_set_capability(from, "x-ignore-shared", false);
    return NULL;
}

static void test_source_capability(void)
{
    MigrateCommon args = {
        .listen_uri = "defer",
        .connect_channels = CONNECT_CHANNELS,
        .start_hook = hook_start_postcopy,
        .end_hook = hook_end_agreed,
    };

    test_precopy_common(&args);
}

static void check_info(QDict *info, const char *role)
{
    QDict *peer = qdict_get_qdict(info, "peer");

    g_assert_cmpstr(qdict_get_str(info, "role"), ==, role);
    g_assert_cmpstr(qdict_get_str(info, "status"), ==, "accepted");
    g_assert_false(qdict_get_bool(info, "check-only"));
    g_assert_cmpint(qdict_get_int(info, "protocol-version"), ==, 1);
    g_assert_true(qlist_empty(qdict_get_qlist(info, "features")));
    g_assert_true(list_contains(info, "capabilities", "return-path"));
    g_assert_true(list_contains(info, "capabilities", "switchover-ack"));
    g_assert_true(qlist_empty(qdict_get_qlist(info, "issues")));
    g_assert_true(qlist_empty(qdict_get_qlist(info, "declined")));
    g_assert_true(g_str_has_prefix(qdict_get_str(peer, "machine"),
                                   "pc-q35-"));
    g_assert_nonnull(qdict_get_try_str(peer, "qemu-version"));
    g_assert_nonnull(qdict_get_try_str(peer, "arch"));
    g_assert_cmpint(strlen(qdict_get_str(info, "session")), ==, 36);
    g_assert_cmpint(qdict_get_int(info, "duration"), >, 0);
    g_assert_cmpint(qdict_get_int(info, "duration"), <, PATIENCE * 1000);
    g_assert_cmpint(qdict_get_int(info, "bytes-sent"), >, 64);
    g_assert_cmpint(qdict_get_int(info, "bytes-sent"), <, 16 * 1024);
    g_assert_cmpint(qdict_get_int(info, "bytes-received"), >, 64);
}

/* What query-migrate shows, and that nothing stays switched on */
static void test_info(void)
{
    QTestState *to = start_destination("");
    QTestState *from = start_source("");
    QDict *a, *b;

    a = migrate_query(from);
    g_assert_false(qdict_haskey(a, "handshake"));
    qobject_unref(a);

    assert_good_migration(from, to);

    a = wait_handshake(from, "accepted");
    b = wait_handshake(to, "accepted");
    check_info(a, "source");
    check_info(b, "destination");
    g_assert_cmpstr(qdict_get_str(a, "session"), ==,
                    qdict_get_str(b, "session"));
    g_assert_cmpint(qdict_get_int(a, "bytes-sent"), ==,
                    qdict_get_int(b, "bytes-received"));
    g_assert_cmpint(qdict_get_int(b, "bytes-sent"), ==,
                    qdict_get_int(a, "bytes-received"));
    qobject_unref(a);
    qobject_unref(b);

    g_assert_false(capability_is_on(from, "return-path"));
    g_assert_false(capability_is_on(to, "return-path"));
    g_assert_false(capability_is_on(to, "switchover-ack"));
    stop_both(from, to);
}

static const char *declined_reason(QDict *handshake, const char *capability)
{
    const QListEntry *entry;

    QLIST_FOREACH_ENTRY(qdict_get_qlist(handshake, "declined"), entry) {
        QDict *item = qobject_to(QDict, qlist_entry_obj(entry));

        if (!strcmp(qdict_get_str(item, "capability"), capability)) {
            return qdict_get_str(item, "reason");
        }
    }
    return NULL;
}

/*
 * What is set is required, and the destination takes it.  What is wanted
 * besides is used if it can be, for this migration only.
 */
static void test_settings(void)
{
    QTestState *to = start_destination("");
    QTestState *from = start_source("");
    QDict *info;

    migrate_set_capability(from, "x-ignore-shared", true);
    migrate_to(from, to, "{ 'optional-capabilities':"
               "  [ 'multifd', 'postcopy-ram', 'dirty-bitmaps' ] }");
    qobject_unref(wait_status(from, "completed"));
    qobject_unref(wait_status(to, "completed"));

    info = wait_handshake(from, "accepted");
    g_assert_true(list_contains(info, "capabilities", "return-path"));
    g_assert_true(list_contains(info, "capabilities", "x-ignore-shared"));
    g_assert_true(list_contains(info, "capabilities", "dirty-bitmaps"));
    g_assert_cmpint(qlist_size(qdict_get_qlist(info, "capabilities")), ==, 3);
    g_assert_cmpint(qlist_size(qdict_get_qlist(info, "declined")), ==, 2);
    g_assert_cmpstr(declined_reason(info, "multifd"), ==,
                    "cannot be negotiated");
    g_assert_cmpstr(declined_reason(info, "postcopy-ram"), ==,
                    "Postcopy is not compatible with ignore-shared");
    qobject_unref(info);

    g_assert_true(capability_is_on(from, "x-ignore-shared"));
    g_assert_false(capability_is_on(from, "dirty-bitmaps"));
    g_assert_false(capability_is_on(to, "x-ignore-shared"));
    g_assert_false(capability_is_on(to, "dirty-bitmaps"));
    stop_both(from, to);
}

static void test_unix_incoming_json(void)
{
    g_autofree char *path = g_strdup_printf("%s/handshake", tmpfs);
    g_autofree char *opts = g_strdup_printf(
        "-incoming '{\"channel-type\": \"handshake\", \"addr\": {"
        " \"transport\": \"socket\", \"type\": \"unix\","
        " \"path\": \"%s\"}}'", path);
    QTestState *to = qtest_initf(MACHINE "%s", opts);
    QTestState *from = start_source("");

    qtest_qmp_assert_success(from, "{ 'execute': 'migrate', 'arguments': {"
                             "  'channels': [ { 'channel-type': 'handshake',"
                             "    'addr': { 'transport': 'socket',"
                             "      'type': 'unix', 'path': %s } } ] } }",
                             path);
    qobject_unref(wait_status(from, "completed"));
    qobject_unref(wait_status(to, "completed"));
    stop_both(from, to);
    unlink(path);
}

static int connect_to(const char *port)
{
    struct sockaddr_in addr = {
        .sin_family = AF_INET,
        .sin_addr.s_addr = htonl(INADDR_LOOPBACK),
        .sin_port = htons(atoi(port)),
    };
    int fd = qemu_socket(AF_INET, SOCK_STREAM, 0);

    g_assert_cmpint(connect(fd, (struct sockaddr *)&addr, sizeof(addr)), ==,
                    0);
    return fd;
}

/* As libvirt does: a connected socket, in blocking mode */
static void test_fd(void)
{
    QTestState *to = start_destination("");
    QTestState *from = start_source("");
    g_autofree char *port = destination_port(to);
    int fd = connect_to(port);

    g_assert_true(g_unix_set_fd_nonblocking(fd, FALSE, NULL));
    qtest_qmp_fds_assert_success(from, &fd, 1,
                                 "{ 'execute': 'getfd',"
                                 "  'arguments': { 'fdname': 'mig' }}");
    close(fd);
    qtest_qmp_assert_success(from, "{ 'execute': 'migrate', 'arguments': {"
                             "  'channels': [ { 'channel-type': 'handshake',"
                             "    'addr': { 'transport': 'socket',"
                             "      'type': 'fd', 'str': 'mig' } } ] } }");
    qobject_unref(wait_status(from, "completed"));
    qobject_unref(wait_status(to, "completed"));
    stop_both(from, to);
}

/* Commands that are refused at once */

#define ADDR_TCP    "'addr': { 'transport': 'socket', 'type': 'inet'," \
                    "          'host': '127.0.0.1', 'port': '1' }"
#define ADDR_FD     "'addr': { 'transport': 'socket', 'type': 'fd'," \
                    "          'str': 'mig' }"
#define ADDR_FILE   "'addr': { 'transport': 'file', 'filename': '/dev/null'," \
                    "          'offset': 0 }"
#define ADDR_EXEC   "'addr': { 'transport': 'exec', 'args': [ '/bin/true' ] }"
#define HANDSHAKE(addr) "{ 'channel-type': 'handshake', " addr " }"
#define MAIN(addr)      "{ 'channel-type': 'main', " addr " }"
#define CPR(addr)       "{ 'channel-type': 'cpr', " addr " }"

static const struct {
    const char *arguments;
    const char *error;
} refused_outgoing[] = {
    { "{ 'channels': [ " CPR(ADDR_TCP) " ] }", "no main entry" },
    { "{ 'channels': [ " HANDSHAKE(ADDR_TCP) ", " MAIN(ADDR_TCP) " ] }",
      "Channel type 'handshake' must be the only entry" },
    { "{ 'channels': [ " CPR(ADDR_TCP) ", " HANDSHAKE(ADDR_TCP) " ] }",
      "Channel type 'handshake' must be the only entry" },
    { "{ 'channels': [ " HANDSHAKE(ADDR_TCP) ", " HANDSHAKE(ADDR_TCP) " ] }",
      "Channel type 'handshake' must be the only entry" },
    { "{ 'channels': [ " HANDSHAKE(ADDR_FILE) " ] }",
      "Channel type 'handshake' needs a bidirectional socket, which "
      "transport 'file' is not" },
    { "{ 'channels': [ " HANDSHAKE(ADDR_EXEC) " ] }", "'exec' is not" },
    { "{ 'channels': [ " HANDSHAKE(ADDR_TCP) " ], 'resume': true }",
      "Channel type 'handshake' cannot resume" },
    { "{ 'channels': [ " MAIN(ADDR_TCP) " ], 'handshake': {} }",
      "needs a channel of type 'handshake'" },
    { "{ 'uri': 'tcp:127.0.0.1:1', 'handshake': {} }",
      "needs a channel of type 'handshake'" },
    { "{ 'channels': [ " HANDSHAKE(ADDR_TCP) " ],"
      "  'handshake': { 'timeout': 3601 } }", "0 to 3600 seconds" },
};

static const struct {
    const char *arguments;
    const char *error;
} refused_incoming[] = {
    { "{ 'channels': [ " CPR(ADDR_TCP) " ] }",
      "for type 'main' or 'handshake'" },
    { "{ 'channels': [ " HANDSHAKE(ADDR_TCP) ", " MAIN(ADDR_TCP) " ] }",
      "must have only one entry" },
    { "{ 'channels': [ " HANDSHAKE(ADDR_FILE) " ] }", "'file' is not" },
    { "{ 'channels': [ " HANDSHAKE(ADDR_EXEC) " ] }", "'exec' is not" },
    { "{ 'channels': [ " HANDSHAKE(ADDR_FD) " ] }",
      "Channel type 'handshake' needs an address to listen on" },
};

static void assert_refused(QTestState *who, const char *command,
                           const char *arguments, const char *error)
{
    QObject *args = qobject_from_json(arguments, &error_abort);
    QDict *rsp = qtest_qmp_assert_failure_ref(
        who, "{ 'execute': %s, 'arguments': %p }", command, args);

    g_test_message("%s: %s", arguments, qdict_get_str(rsp, "desc"));
    g_assert_nonnull(strstr(qdict_get_str(rsp, "desc"), error));
    qobject_unref(rsp);
}

static void test_refused_outgoing(void)
{
    static const char *const excluded[] = { "mapped-ram", "multifd" };
    QTestState *from = qtest_init(MACHINE);
    QDict *rsp;

    for (int i = 0; i < ARRAY_SIZE(refused_outgoing); i++) {
        assert_refused(from, "migrate", refused_outgoing[i].arguments,
                       refused_outgoing[i].error);
        rsp = migrate_query(from);
        g_assert_false(qdict_haskey(rsp, "status"));
        qobject_unref(rsp);
    }

    for (int i = 0; i < ARRAY_SIZE(excluded); i++) {
        migrate_set_capability(from, excluded[i], true);
        assert_refused(from, "migrate",
                       "{ 'channels': [ " HANDSHAKE(ADDR_TCP) " ] }",
                       excluded[i]);
        migrate_set_capability(from, excluded[i], false);
    }
    migrate_set_parameter_str(from, "mode", "cpr-reboot");
    assert_refused(from, "migrate",
                   "{ 'channels': [ " HANDSHAKE(ADDR_TCP) " ] }",
                   "cpr-reboot");
    g_assert_true(is_running(from));
    qtest_quit(from);
}

/* Not every host or build can switch these on */
static void test_refused_capability(void)
{
    static const char *const excluded[] = { "x-colo", "background-snapshot" };
    QTestState *from = qtest_init(MACHINE);
    int tried = 0;

    for (int i = 0; i < ARRAY_SIZE(excluded); i++) {
        QDict *rsp = qtest_qmp(from, "{ 'execute': 'migrate-set-capabilities',"
                               "  'arguments': { 'capabilities': [ {"
                               "    'capability': %s, 'state': true } ] } }",
                               excluded[i]);
        bool set = qdict_haskey(rsp, "return");

        qobject_unref(rsp);
        if (set) {
            assert_refused(from, "migrate",
                           "{ 'channels': [ " HANDSHAKE(ADDR_TCP) " ] }",
                           excluded[i]);
            migrate_set_capability(from, excluded[i], false);
            tried++;
        }
    }
    qtest_quit(from);
    if (!tried) {
        g_test_skip("neither x-colo nor background-snapshot can be set here");
    }
}

static void test_refused_incoming(void)
{
    QTestState *to = qtest_init(MACHINE "-incoming defer");

    for (int i = 0; i < ARRAY_SIZE(refused_incoming); i++) {
        assert_refused(to, "migrate-incoming", refused_incoming[i].arguments,
                       refused_incoming[i].error);
    }
    migrate_set_capability(to, "mapped-ram", true);
    assert_refused(to, "migrate-incoming",
                   "{ 'channels': [ " HANDSHAKE(ADDR_TCP) " ] }",
                   "mapped-ram");
    migrate_set_capability(to, "mapped-ram", false);

    /* None of that spoiled it */
    qtest_qmp_assert_success(to, "{ 'execute': 'migrate-incoming',"
                             "  'arguments': {"
                             "    'channels': [ " TCP_LISTEN " ] } }");
    qtest_quit(to);
}

/* A pipe and a file as fd: on the source */
static void test_refused_fd(void)
{
    QTestState *to = start_destination("");
    QTestState *from = start_source("");
    int fds[2];

    g_assert_true(g_unix_open_pipe(fds, FD_CLOEXEC, NULL));
    qtest_qmp_fds_assert_success(from, &fds[1], 1,
                                 "{ 'execute': 'getfd',"
                                 "  'arguments': { 'fdname': 'mig' }}");
    close(fds[0]);
    close(fds[1]);
    assert_refused(from, "migrate",
                   "{ 'channels': [ " HANDSHAKE(ADDR_FD) " ] }",
                   "Channel type 'handshake' needs a bidirectional socket");

    fds[0] = open("/dev/null", O_RDWR);
    g_assert_cmpint(fds[0], >=, 0);
    qtest_qmp_fds_assert_success(from, fds, 1,
                                 "{ 'execute': 'getfd',"
                                 "  'arguments': { 'fdname': 'mig' }}");
    close(fds[0]);
    assert_refused(from, "migrate",
                   "{ 'channels': [ " HANDSHAKE(ADDR_FD) " ] }",
                   "Channel type 'handshake' needs a bidirectional socket");

    assert_good_migration(from, to);
    stop_both(from, to);
}

static void test_schema(void)
{
    QTestState *qts = qtest_init(MACHINE);
    QDict *rsp = qtest_qmp(qts, "{ 'execute': 'query-qmp-schema' }");
    g_autoptr(GString) json = qobject_to_json(QOBJECT(rsp));

    g_assert_nonnull(strstr(json->str,
                            "[\"main\", \"cpr\", \"handshake\"]"));
    qobject_unref(rsp);
    qtest_quit(qts);
}

/* Migrations that the destination refuses */

/*
 * @bad_opts make the source unfit; without them it is not.  Everything about
 * the refusal must be known on the source, and the same listener must take
 * the next one.
 */
static void test_mismatch(const char *bad_opts, const char *code,
                          const char *subject, const char *source_value,
                          const char *destination_value)
{
    QTestState *to = start_destination("");
    QTestState *bad = start_source(bad_opts);
    QTestState *good;

    /* As often as you like */
    for (int i = 0; i < 3; i++) {
        QDict *rsp, *sides[2];

        migrate_to(bad, to, NULL);
        rsp = wait_status(bad, "failed");
        g_assert_nonnull(strstr(qdict_get_str(rsp, "error-desc"), code));
        qobject_unref(rsp);
        g_assert_true(is_running(bad));
        assert_listening(to);

        sides[0] = wait_handshake(bad, "rejected");
        sides[1] = wait_handshake(to, "rejected");
        for (int side = 0; side < 2; side++) {
            QDict *issue = find_issue(sides[side], code);

            g_assert_nonnull(issue);
            g_assert_cmpstr(qdict_get_str(issue, "severity"), ==, "error");
            g_assert_cmpstr(qdict_get_str(issue, "subject"), ==, subject);
            g_assert_nonnull(strstr(qdict_get_str(issue, "source"),
                                    source_value));
            g_assert_nonnull(strstr(qdict_get_str(issue, "destination"),
                                    destination_value));
            qobject_unref(sides[side]);
        }
        g_assert_false(capability_is_on(bad, "return-path"));
        g_assert_false(capability_is_on(to, "return-path"));
    }
    qtest_quit(bad);

    good = start_source("");
    assert_good_migration(good, to);
    stop_both(good, to);
}

static void test_mismatch_machine(void)
{
    test_mismatch("-machine pc", "machine-type", "machine", "pc-i440fx-",
                  "pc-q35-");
}

static void test_mismatch_configuration(void)
{
    test_mismatch("-global migration.send-configuration=off", "stream-format",
                  "send-configuration", "false", "true");
}

static void test_mismatch_footer(void)
{
    test_mismatch("-global migration.send-section-footer=off", "stream-format",
                  "send-section-footer", "false", "true");
}

/* It does not bear on a migration without postcopy-preempt */
static void test_no_mismatch(void)
{
    QTestState *to = start_destination("");
    QTestState *from = start_source("-global migration.x-preempt-pre-7-2=on");

    assert_good_migration(from, to);
    stop_both(from, to);
}

/* Several problems are all reported; the first of them is in error-desc */
static void test_mismatch_all(void)
{
    QTestState *to = start_destination("");
    QTestState *from = start_source("-machine pc "
                                    "-global migration.send-configuration=off "
                                    "-global migration.send-section-footer=off");
    QDict *rsp;

    migrate_to(from, to, NULL);
    rsp = wait_status(from, "failed");
    g_assert_nonnull(strstr(qdict_get_str(rsp, "error-desc"), "3 problems"));
    qobject_unref(rsp);
    rsp = wait_handshake(from, "rejected");
    g_assert_cmpint(qlist_size(qdict_get_qlist(rsp, "issues")), ==, 3);
    qobject_unref(rsp);
    stop_both(from, to);
}

#define UUID_A  "6d696772-6174-696f-6e20-68616e647368"
#define UUID_B  "616b6520-7465-7374-2075-756964206262"

/* A warning only, unless the user wants it otherwise */
static void test_warning(void)
{
    QTestState *to = start_destination("-uuid " UUID_B);
    QTestState *from = start_source("-uuid " UUID_A);
    QDict *rsp;

    migrate_to(from, to, "{ 'warnings-as-errors': true }");
    qobject_unref(wait_status(from, "failed"));
    g_assert_true(is_running(from));
    rsp = wait_handshake(from, "rejected");
    g_assert_nonnull(find_issue(rsp, "uuid"));
    qobject_unref(rsp);

    migrate_set_capability(from, "validate-uuid", true);
    migrate_to(from, to, NULL);
    qobject_unref(wait_status(from, "failed"));
    migrate_set_capability(from, "validate-uuid", false);

    assert_good_migration(from, to);
    rsp = wait_handshake(from, "accepted");
    g_assert_cmpstr(qdict_get_str(find_issue(rsp, "uuid"), "severity"), ==,
                    "warning");
    qobject_unref(rsp);
    stop_both(from, to);
}

/* Whatever the destination has set for its own sake */
static void test_conflict_on_destination(void)
{
    QTestState *to = start_destination("");
    QTestState *from = start_source("");
    QDict *rsp;

    migrate_set_parameter_str(to, "mode", "cpr-reboot");
    migrate_to(from, to, NULL);
    qobject_unref(wait_status(from, "failed"));
    rsp = wait_handshake(from, "rejected");
    g_assert_nonnull(find_issue(rsp, "capability-conflict"));
    qobject_unref(rsp);

    migrate_set_parameter_str(to, "mode", "normal");
    /* That is a source's business, and no obstacle */
    migrate_set_capability(to, "xbzrle", true);
    migrate_set_capability(to, "auto-converge", true);
    assert_good_migration(from, to);
    g_assert_true(capability_is_on(to, "xbzrle"));
    g_assert_true(capability_is_on(to, "auto-converge"));
    stop_both(from, to);
}

/* What a destination has set for its own next migration is not in the way */
static void test_multifd_on_destination(void)
{
    QTestState *to = qtest_init(MACHINE "-incoming defer");
    QTestState *from = start_source("");

    migrate_set_capability(to, "multifd", true);
    qtest_qmp_assert_success(to, "{ 'execute': 'migrate-incoming',"
                             "  'arguments': { 'exit-on-error': false,"
                             "    'channels': [ " TCP_LISTEN " ] } }");
    assert_good_migration(from, to);
    g_assert_true(capability_is_on(to, "multifd"));
    stop_both(from, to);
}

/* Peers that do not speak the handshake */

static void test_legacy_destination(void)
{
    QTestState *to = qtest_init(MACHINE "-incoming defer");
    QTestState *from = start_source("");
    g_autofree char *port = NULL;
    QDict *rsp;

    qtest_qmp_assert_success(to, "{ 'execute': 'migrate-incoming',"
                             "  'arguments': { 'exit-on-error': false,"
                             "    'uri': 'tcp:127.0.0.1:0' } }");
    port = destination_port(to);
    migrate_to_port(from, "handshake", port, NULL);
    rsp = wait_status(from, "failed");
    g_assert_nonnull(strstr(qdict_get_str(rsp, "error-desc"),
                            "listen on a channel of type 'handshake'"));
    qobject_unref(rsp);
    g_assert_true(is_running(from));
    qobject_unref(wait_handshake(from, "failed"));
    stop_both(from, to);
}

static void test_legacy_source(void)
{
    QTestState *to = start_destination("");
    QTestState *from = start_source("");
    g_autofree char *port = destination_port(to);

    migrate_set_capability(from, "return-path", true);
    migrate_to_port(from, "main", port, NULL);
    qobject_unref(wait_status(from, "failed"));
    g_assert_true(is_running(from));
    migrate_set_capability(from, "return-path", false);

    assert_listening(to);
    assert_good_migration(from, to);
    stop_both(from, to);
}

/* A peer that accepts and says nothing */
typedef struct SilentPeer {
    int listener;
    int fd;
    char *port;
} SilentPeer;

static void silent_peer_start(SilentPeer *peer)
{
    struct sockaddr_in addr = {
        .sin_family = AF_INET,
        .sin_addr.s_addr = htonl(INADDR_LOOPBACK),
    };
    socklen_t len = sizeof(addr);

    peer->listener = qemu_socket(AF_INET, SOCK_STREAM, 0);
    g_assert_cmpint(bind(peer->listener, (struct sockaddr *)&addr, len), ==, 0);
    g_assert_cmpint(listen(peer->listener, 1), ==, 0);
    g_assert_cmpint(getsockname(peer->listener, (struct sockaddr *)&addr,
                                &len), ==, 0);
    peer->port = g_strdup_printf("%d", ntohs(addr.sin_port));
}

/* Returns when HELLO has begun to come */
static void silent_peer_accept(SilentPeer *peer)
{
    uint8_t header[64];

    peer->fd = qemu_accept(peer->listener, NULL, NULL);
    g_assert_cmpint(peer->fd, >=, 0);
    g_assert_cmpint(recv(peer->fd, header, sizeof(header), MSG_WAITALL), ==,
                    sizeof(header));
    g_assert_cmpint(ldl_be_p(header), ==, 0x514d4853);
}

static void silent_peer_stop(SilentPeer *peer)
{
    close(peer->fd);
    close(peer->listener);
    g_free(peer->port);
}

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
        g_assert_cmpint(g_get_monotonic_time() - start, <, G_USEC_PER_SEC);
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

        qtest_qmp_assert_success(from, "{ 'execute': 'migrate', 'arguments': {"
                                 "  'channels': [ {"
                                 "    'channel-type': 'handshake',"
                                 "    'addr': { 'transport': 'socket',"
                                 "      'type': 'unix', 'path': %s } } ] } }",
                                 path);
        start = g_get_monotonic_time();
        migrate_cancel(from);
        qobject_unref(wait_status(from, "cancelled"));
        g_assert_cmpint(g_get_monotonic_time() - start, <, G_USEC_PER_SEC);
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
    qobject_unref(wait_status(from, "completed"));
    qobject_unref(wait_status(to, "completed"));
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
        "\x15\x03\x01\x00\x02\x02\x46....",
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

/* What a destination may be sent */

static void put_header(GByteArray *buf, const char *name)
{
    uint8_t header[64] = { 0 };

    stl_be_p(header, 0x514d4853);
    stw_be_p(header + 6, sizeof(header));
    memcpy(header + 24, name, strlen(name));
    g_byte_array_append(buf, header, sizeof(header));
}

static void put_frame(GByteArray *buf, uint16_t type, const char *json)
{
    uint8_t prefix[8] = { 0 };

    stl_be_p(prefix, strlen(json));
    stw_be_p(prefix + 4, type);
    g_byte_array_append(buf, prefix, sizeof(prefix));
    g_byte_array_append(buf, (const uint8_t *)json, strlen(json));
}

static void send_all(int fd, const void *buf, size_t len)
{
    g_assert_cmpint(send(fd, buf, len, MSG_NOSIGNAL), ==, len);
}

/* All that comes until the peer closes */
static GByteArray *read_to_end(int fd)
{
    GByteArray *buf = g_byte_array_new();
    struct timeval limit = { .tv_sec = PATIENCE / 1000 };
    uint8_t chunk[4096];
    ssize_t len;

    setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof(limit));
    while ((len = recv(fd, chunk, sizeof(chunk), 0)) > 0) {
        g_byte_array_append(buf, chunk, len);
    }
    /* 0 is the end; a reset will do for those who are not answered */
    g_assert_true(len == 0 || errno == ECONNRESET);
    return buf;
}

/* The verdict's text, after header and frames of other types */
static QDict *parse_answer(const GByteArray *buf, uint16_t *type)
{
    size_t pos = lduw_be_p(buf->data + 6);

    g_assert_cmpint(buf->len, >, 64);
    g_assert_cmpint(ldl_be_p(buf->data), ==, 0x514d4853);
    for (;;) {
        uint32_t length = ldl_be_p(buf->data + pos);

        g_assert_cmpint(pos + 8 + length, <=, buf->len);
        *type = lduw_be_p(buf->data + pos + 4);
        pos += 8;
        if (*type <= 5) {
            g_autofree char *json = g_strndup((char *)buf->data + pos, length);

            g_assert_cmpint(pos + length, ==, buf->len);
            return qobject_to(QDict, qobject_from_json(json, &error_abort));
        }
        pos += length;
    }
}

#define FRAME_HELLO     1
#define FRAME_ACCEPT    2
#define FRAME_REJECT    3
#define FRAME_COMMIT    4
#define FRAME_ABORT     5

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
      "  \"profile\": { \"arch\": \"s390x\" } }",
      "arch", "s390x" },
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
    { "{", NULL, "JSON error" },
    { "[]", NULL, "JSON error" },
    { "{ 'versions': [1] }", NULL, "JSON error" },
    { "{ \"a\": 1, \"a\": 2 }", NULL, "duplicate" },
    { "{ \"a\": 1.5 }", NULL, "fraction" },
    { "{ \"a\": 18446744073709551616 }", NULL, "out of range" },
    { "{ \"a\": [[[[[[[[[[[[[[[[]]]]]]]]]]]]]]]] }", NULL, "nested" },
    { "{}", NULL, "missing" },
    { "{ \"versions\": 1, \"purpose\": \"migrate\", \"required\": [] }",
      NULL, "'versions' is not a list" },
    { "{ \"versions\": [1], \"purpose\": \"migrate\", \"required\": [],"
      "  \"profile\": { \"machine\": [] } }",
      NULL, "'machine' is not a string" },
};

static void test_unacceptable_hello(void)
{
    QTestState *to = start_destination("");
    QTestState *from = start_source("");
    g_autofree char *port = destination_port(to);

    for (int i = 0; i < ARRAY_SIZE(unacceptable); i++) {
        g_autoptr(GByteArray) buf = g_byte_array_new();
        g_autoptr(GByteArray) rsp = NULL;
        int fd = connect_to(port);
        uint16_t type;
        QDict *answer;

        g_test_message("%s", unacceptable[i].hello);
        put_header(buf, "main");
        put_frame(buf, FRAME_HELLO, unacceptable[i].hello);
        send_all(fd, buf->data, buf->len);
        rsp = read_to_end(fd);
        close(fd);

        answer = parse_answer(rsp, &type);
        g_assert_cmpint(type, ==, FRAME_REJECT);
        g_assert_nonnull(strstr(qdict_get_str(answer, "message"),
                                unacceptable[i].message));
        if (unacceptable[i].code) {
            g_assert_nonnull(find_issue(answer, unacceptable[i].code));
        }
        qobject_unref(answer);
        assert_listening(to);
    }
    assert_good_migration(from, to);
    stop_both(from, to);
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
        { { 0, 0, 0, 0, 0x77, 0x77, 0, 1 }, 1, "type 30583 is critical" },
        { { 0, 0, 0, 0, 0x77, 0x77, 0, 0 }, 17, "more than 16 frames" },
        { { 0, 0, 0, 0, 0, FRAME_COMMIT, 0, 0 }, 1, "COMMIT instead of HELLO" },
    };
    QTestState *to = start_destination("");
    QTestState *from = start_source("");
    g_autofree char *port = destination_port(to);

    for (int i = 0; i < ARRAY_SIZE(frames); i++) {
        g_autoptr(GByteArray) buf = g_byte_array_new();
        g_autoptr(GByteArray) rsp = NULL;
        int fd = connect_to(port);
        uint16_t type;
        QDict *answer;

        put_header(buf, "main");
        for (int j = 0; j < frames[i].times; j++) {
            g_byte_array_append(buf, frames[i].prefix, 8);
        }
        send_all(fd, buf->data, buf->len);
        rsp = read_to_end(fd);
        close(fd);
        answer = parse_answer(rsp, &type);
        g_assert_cmpint(type, ==, FRAME_REJECT);
        g_assert_nonnull(strstr(qdict_get_str(answer, "message"),
                                frames[i].message));
        qobject_unref(answer);
        assert_listening(to);
    }
    assert_good_migration(from, to);
    stop_both(from, to);
}

#define GOOD_HELLO \
    "{ \"versions\": [1], \"purpose\": \"migrate\", \"required\": [] }"

/* What is no conversation ends without an answer, and hurts nobody */
static void test_strangers(void)
{
    QTestState *to = start_destination("");
    QTestState *from = start_source("");
    g_autofree char *port = destination_port(to);
    g_autoptr(GPtrArray) speeches =
        g_ptr_array_new_with_free_func((GDestroyNotify)g_byte_array_unref);
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
        g_assert_cmpint(rsp->len, ==, 0);
        close(fd);
        assert_listening(to);
    }

    assert_good_migration(from, to);
    for (int i = 0; i < ARRAY_SIZE(silent); i++) {
        close(silent[i]);
    }
    stop_both(from, to);
}

/* Says HELLO as a source would, and reads the verdict; the rest is up to you */
static int claim_session(const char *port)
{
    g_autoptr(GByteArray) buf = g_byte_array_new();
    uint8_t header[64];
    uint16_t type;
    int fd = connect_to(port);

    put_header(buf, "main");
    put_frame(buf, FRAME_HELLO, GOOD_HELLO);
    send_all(fd, buf->data, buf->len);
    g_assert_cmpint(recv(fd, header, sizeof(header), MSG_WAITALL), ==,
                    sizeof(header));
    do {
        uint8_t prefix[8];
        g_autofree char *json = NULL;
        uint32_t length;

        g_assert_cmpint(recv(fd, prefix, 8, MSG_WAITALL), ==, 8);
        length = ldl_be_p(prefix);
        type = lduw_be_p(prefix + 4);
        json = g_malloc(length);
        g_assert_cmpint(recv(fd, json, length, MSG_WAITALL), ==, length);
    } while (type > 5);
    g_assert_cmpint(type, ==, FRAME_ACCEPT);
    return fd;
}

/* One source at a time, and nothing changes before it has said COMMIT */
static void test_busy(void)
{
    QTestState *to = start_destination("");
    QTestState *from = start_source("");
    g_autofree char *port = destination_port(to);
    int fd = claim_session(port);
    QDict *rsp;

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
    close(fd);
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
        { FRAME_COMMIT, "{", "failed", "JSON error" },
        { FRAME_HELLO, GOOD_HELLO, "failed", "HELLO instead of COMMIT" },
    };
    QTestState *to = start_destination("");
    QTestState *from = start_source("");
    g_autofree char *port = destination_port(to);

    for (int i = 0; i < ARRAY_SIZE(ends); i++) {
        g_autoptr(GByteArray) buf = g_byte_array_new();
        g_autoptr(GByteArray) rest = NULL;
        int fd = claim_session(port);
        QDict *rsp;

        put_frame(buf, ends[i].type, ends[i].json);
        send_all(fd, buf->data, buf->len);
        rest = read_to_end(fd);
        g_assert_cmpint(rest->len, ==, 0);
        close(fd);
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
    int fds[3];
    QDict *rsp;

    put_header(header, "main");
    fds[0] = connect_to(port);
    fds[1] = connect_to(port);
    send_all(fds[1], header->data, header->len);
    fds[2] = claim_session(port);

    for (int i = 0; i < ARRAY_SIZE(fds); i++) {
        struct timeval limit = { .tv_sec = 40 };
        uint8_t byte;

        setsockopt(fds[i], SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof(limit));
        g_assert_cmpint(recv(fds[i], &byte, 1, 0), ==, 0);
        close(fds[i]);
    }
    rsp = wait_handshake(to, "cancelled");
    g_assert_nonnull(strstr(qdict_get_str(rsp, "message"), "in time"));
    qobject_unref(rsp);

    assert_listening(to);
    assert_good_migration(from, to);
    stop_both(from, to);
}

/* After the handshake: return-path is always on */

static void test_kill_destination(void)
{
    QTestState *to = start_destination("");
    QTestState *from = start_source("");

    migrate_set_parameter_int(from, "max-bandwidth", 1024 * 1024);
    migrate_to(from, to, NULL);
    qobject_unref(wait_status(from, "active"));
    qobject_unref(wait_status(to, "active"));
    qtest_quit(to);
    qobject_unref(wait_status(from, "failed"));
    g_assert_true(is_running(from));
    g_assert_false(capability_is_on(from, "return-path"));
    qtest_quit(from);
}

/*
 * The destination has nobody who could read the source's last sections.  That
 * shows when all of RAM has moved and the guest stands still.
 */
static void test_late_failure(void)
{
    QTestState *to = start_destination("");
    QTestState *from = start_source("-device i6300esb");
    QDict *rsp;

    migrate_to(from, to, NULL);
    qobject_unref(wait_status(from, "failed"));
    g_assert_true(is_running(from));
    rsp = wait_status(to, "failed");
    qobject_unref(rsp);
    g_assert_false(capability_is_on(to, "return-path"));
    stop_both(from, to);
}

void migration_test_add_handshake(MigrationTestEnv *env)
{
    tmpfs = env->tmpfs;

    if (!env->is_x86) {
        return;
    }
    migration_test_add("/migration/handshake/precopy/live", test_precopy_live);
    if (env->has_uffd) {
        migration_test_add("/migration/handshake/precopy/source-capability",
                           test_source_capability);
    }
    migration_test_add("/migration/handshake/info", test_info);
    migration_test_add("/migration/handshake/settings", test_settings);
    migration_test_add("/migration/handshake/unix/incoming-json",
                       test_unix_incoming_json);
    migration_test_add("/migration/handshake/fd", test_fd);
    migration_test_add("/migration/handshake/schema", test_schema);
    migration_test_add("/migration/handshake/refused/outgoing",
                       test_refused_outgoing);
    migration_test_add("/migration/handshake/refused/incoming",
                       test_refused_incoming);
    migration_test_add("/migration/handshake/refused/capability",
                       test_refused_capability);
    migration_test_add("/migration/handshake/refused/fd", test_refused_fd);
    migration_test_add("/migration/handshake/mismatch/machine",
                       test_mismatch_machine);
    migration_test_add("/migration/handshake/mismatch/configuration",
                       test_mismatch_configuration);
    migration_test_add("/migration/handshake/mismatch/footer",
                       test_mismatch_footer);
    migration_test_add("/migration/handshake/mismatch/none", test_no_mismatch);
    migration_test_add("/migration/handshake/mismatch/all", test_mismatch_all);
    migration_test_add("/migration/handshake/mismatch/warning", test_warning);
    migration_test_add("/migration/handshake/mismatch/destination",
                       test_conflict_on_destination);
    migration_test_add("/migration/handshake/mismatch/multifd",
                       test_multifd_on_destination);
    migration_test_add("/migration/handshake/legacy/destination",
                       test_legacy_destination);
    migration_test_add("/migration/handshake/legacy/source",
                       test_legacy_source);
    migration_test_add("/migration/handshake/cancel", test_cancel);
    migration_test_add("/migration/handshake/cancel-connecting",
                       test_cancel_connecting);
    migration_test_add("/migration/handshake/yank", test_yank);
    migration_test_add("/migration/handshake/timeout", test_timeout);
    migration_test_add("/migration/handshake/bad/answer", test_bad_answer);
    migration_test_add("/migration/handshake/bad/hello",
                       test_unacceptable_hello);
    migration_test_add("/migration/handshake/bad/frame", test_bad_frame);
    migration_test_add("/migration/handshake/bad/strangers", test_strangers);
    migration_test_add("/migration/handshake/bad/commit", test_bad_commit);
    migration_test_add("/migration/handshake/bad/silence", test_silence);
    migration_test_add("/migration/handshake/busy", test_busy);
    migration_test_add("/migration/handshake/kill-destination",
                       test_kill_destination);
    migration_test_add("/migration/handshake/late-failure",
                       test_late_failure);
}
