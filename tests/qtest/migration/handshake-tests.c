/*
 * QTest testcases for the migration handshake: two QEMUs
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "qemu/cutils.h"
#include "qemu/sockets.h"
#include "qapi/error.h"
#include "qobject/qjson.h"
#include "qobject/qlist.h"
#include "qobject/qstring.h"
#include "libqtest.h"
#include "migration/framework.h"
#include "migration/handshake-util.h"
#include "migration/migration-qmp.h"
#include "migration/migration-util.h"

static char *tmpfs;

/* Migrations that work */

static void *hook_start_defer(QTestState *from, QTestState *to)
{
    listen_for_handshake(to);
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
    g_assert_true(list_contains(info, "features", "named-channels"));
    g_assert_true(list_contains(info, "capabilities", "return-path"));
    g_assert_true(list_contains(info, "capabilities", "multifd"));
    g_assert_true(list_contains(info, "capabilities", "switchover-ack"));
    g_assert_true(qlist_empty(qdict_get_qlist(info, "issues")));
    g_assert_true(qlist_empty(qdict_get_qlist(info, "declined")));
    g_assert_true(g_str_has_prefix(qdict_get_str(peer, "machine"),
                                   handshake_machine()->type));
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
    g_assert_false(capability_is_on(from, "multifd"));
    g_assert_false(capability_is_on(to, "multifd"));
    stop_both(from, to);
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
               "  [ 'zero-copy-send', 'postcopy-ram', 'dirty-bitmaps' ] }");
    wait_completed(from, to);

    info = wait_handshake(from, "accepted");
    g_assert_true(list_contains(info, "capabilities", "return-path"));
    g_assert_true(list_contains(info, "capabilities", "x-ignore-shared"));
    g_assert_true(list_contains(info, "capabilities", "dirty-bitmaps"));
    g_assert_cmpint(qlist_size(qdict_get_qlist(info, "capabilities")), ==, 3);
    g_assert_cmpint(qlist_size(qdict_get_qlist(info, "declined")), ==, 2);
    g_assert_cmpstr(declined_reason(info, "zero-copy-send"), ==,
                    "capability 'zero-copy-send' cannot be negotiated");
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
    QTestState *to = start_machine("%s", opts);
    QTestState *from = start_source("");

    migrate_to_unix(from, path);
    wait_completed(from, to);
    stop_both(from, to);
    unlink(path);
}

/* As libvirt does: a connected socket, in blocking mode */
static void test_fd(void)
{
    QTestState *to = start_destination("");
    QTestState *from = start_source("");
    g_autofree char *port = destination_port(to);
    int fd = connect_to(port);
    QDict *info;

    g_assert_true(g_unix_set_fd_nonblocking(fd, FALSE, NULL));
    qtest_qmp_fds_assert_success(from, &fd, 1,
                                 "{ 'execute': 'getfd',"
                                 "  'arguments': { 'fdname': 'mig' }}");
    close(fd);
    qtest_qmp_assert_success(from, "{ 'execute': 'migrate', 'arguments': {"
                             "  'channels': [ { 'channel-type': 'handshake',"
                             "    'addr': { 'transport': 'socket',"
                             "      'type': 'fd', 'str': 'mig' } } ] } }");
    wait_completed(from, to);

    /* Nobody can open a second one */
    info = wait_handshake(from, "accepted");
    g_assert_cmpstr(declined_reason(info, "multifd"), ==,
                    "this transport carries a single connection");
    g_assert_true(list_contains(info, "capabilities", "switchover-ack"));
    qobject_unref(info);
    stop_both(from, to);
}

/* What goes over it, and only the source has been told of */

static void finish_migration(QTestState *from, QTestState *to)
{
    wait_completed(from, to);
    qobject_unref(wait_handshake(from, "accepted"));
    stop_both(from, to);
}

#define DISK(node) "-blockdev null-co,size=1048576,node-name=" node " " \
                   "-device virtio-blk,drive=" node " "

/* With names of nodes that only each side itself knows */
static void test_dirty_bitmaps(void)
{
    QTestState *to = start_destination(DISK("there"));
    QTestState *from = start_source(DISK("here"));
    g_autoptr(GString) json = NULL;
    QDict *rsp;

    qtest_qmp_assert_success(from, "{ 'execute': 'block-dirty-bitmap-add',"
                             "  'arguments': { 'node': 'here',"
                             "    'name': 'changed', 'persistent': false } }");
    qtest_qmp_assert_success(from, "{ 'execute': 'migrate-set-parameters',"
                             "  'arguments': { 'block-bitmap-mapping': [ {"
                             "    'node-name': 'here', 'alias': 'disk',"
                             "    'bitmaps': [ { 'name': 'changed',"
                             "      'alias': 'bitmap' } ] } ] } }");
    qtest_qmp_assert_success(to, "{ 'execute': 'migrate-set-parameters',"
                             "  'arguments': { 'block-bitmap-mapping': [ {"
                             "    'node-name': 'there', 'alias': 'disk',"
                             "    'bitmaps': [ { 'name': 'arrived',"
                             "      'alias': 'bitmap' } ] } ] } }");
    migrate_set_capability(from, "dirty-bitmaps", true);
    migrate_to(from, to, NULL);
    qobject_unref(wait_status(to, "completed"));

    rsp = qtest_qmp(to, "{ 'execute': 'query-named-block-nodes' }");
    json = qobject_to_json(QOBJECT(rsp));
    g_assert_nonnull(strstr(json->str, "\"arrived\""));
    qobject_unref(rsp);
    g_assert_false(capability_is_on(to, "dirty-bitmaps"));
    finish_migration(from, to);
}

/* RAM that both have does not move */
static void test_ignore_shared(void)
{
    g_autofree char *path = g_strdup_printf("%s/shared", tmpfs);
    g_autofree char *more = g_strconcat(",share=on,mem-path=", path, NULL);
    g_autofree char *opts = memory_options("file", more);
    QTestState *to = start_destination(opts);
    QTestState *from = start_source(opts);
    QDict *rsp, *ram;

    migrate_set_capability(from, "x-ignore-shared", true);
    migrate_to(from, to, NULL);
    rsp = wait_status(from, "completed");
    ram = qdict_get_qdict(rsp, "ram");
    g_assert_cmpint(qdict_get_int(ram, "transferred"), <, 16 * 1024 * 1024);
    qobject_unref(rsp);
    g_assert_cmpint(qtest_readb(to, used_memory()), ==, 0x5a);
    unlink(path);
    finish_migration(from, to);
}

/* The source's own business */
static void test_source_only(void)
{
    QTestState *to = start_destination("");
    QTestState *from = start_source("");
    QDict *info;

    migrate_set_capability(from, "xbzrle", true);
    migrate_set_capability(from, "auto-converge", true);
    migrate_set_capability(from, "release-ram", true);
    migrate_set_parameter_int(from, "xbzrle-cache-size", 4 * 1024 * 1024);
    migrate_to(from, to, NULL);
    qobject_unref(wait_status(to, "completed"));
    g_assert_cmpint(qtest_readb(to, used_memory()), ==, 0x5a);
    info = wait_handshake(to, "accepted");
    g_assert_false(list_contains(info, "capabilities", "xbzrle"));
    qobject_unref(info);
    finish_migration(from, to);
}

static void test_zero_copy(void)
{
    QTestState *to = start_destination("");
    QTestState *from = start_source("");
    QDict *rsp = qtest_qmp(from, "{ 'execute': 'migrate-set-capabilities',"
                           "  'arguments': { 'capabilities': ["
                           "    { 'capability': 'multifd', 'state': true },"
                           "    { 'capability': 'zero-copy-send',"
                           "      'state': true } ] } }");
    const char *error;

    if (qdict_haskey(rsp, "error")) {
        g_test_skip("no zero-copy-send in this build");
        qobject_unref(rsp);
        stop_both(from, to);
        return;
    }
    qobject_unref(rsp);

    migrate_to(from, to, NULL);
    for (;;) {
        rsp = migrate_query(from);
        error = qdict_get_try_str(rsp, "error-desc");
        if (error && strstr(error, "not detected in host kernel")) {
            g_test_skip(error);
            qobject_unref(rsp);
            stop_both(from, to);
            return;
        }
        g_assert_null(error);
        if (!strcmp(qdict_get_str(rsp, "status"), "completed")) {
            break;
        }
        qobject_unref(rsp);
        g_usleep(10 * 1000);
    }
    qobject_unref(rsp);
    g_assert_cmpint(qtest_readb(to, used_memory()), ==, 0x5a);
    finish_migration(from, to);
}

/* A guest that has come goes on, and nothing of the first move sticks to it */
static void test_again(void)
{
    QTestState *third = start_destination("");
    QTestState *to = start_destination("");
    QTestState *from = start_source("");
    QDict *info;

    migrate_set_capability(from, "multifd", true);
    migrate_set_parameter_int(from, "multifd-channels", 4);
    migrate_set_parameter_str(from, "multifd-compression", "zlib");
    assert_good_migration(from, to);
    qtest_quit(from);

    migrate_to(to, third, "{ 'optional-capabilities': [] }");
    qobject_unref(wait_status(third, "completed"));
    info = wait_handshake(third, "accepted");
    g_assert_false(list_contains(info, "capabilities", "multifd"));
    g_assert_cmpint(qdict_size(qdict_get_qdict(info, "parameters")), ==, 0);
    qobject_unref(info);
    g_assert_cmpint(qtest_readb(third, used_memory()), ==, 0x5a);
    finish_migration(to, third);
}

/* Commands that are refused at once */

#define ADDR_TCP    "'addr': { 'transport': 'socket', 'type': 'inet'," \
                    "          'host': '127.0.0.1', 'port': '1' }"
#define ADDR_FD     "'addr': { 'transport': 'socket', 'type': 'fd'," \
                    "          'str': 'mig' }"
#define ADDR_FILE   "'addr': { 'transport': 'file', 'filename': '/dev/null'," \
                    "          'offset': 0 }"
#define ADDR_EXEC   "'addr': { 'transport': 'exec', 'args': [ '/bin/true' ] }"
#define ADDR_RDMA   "'addr': { 'transport': 'rdma', 'host': '127.0.0.1'," \
                    "          'port': '4444' }"
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
    { "{ 'channels': [ " HANDSHAKE(ADDR_RDMA) " ] }",
      "'rdma' is not: it agrees on its own settings as it connects; set all "
      "others alike on both sides, and use channel type 'main'" },
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
    { "{ 'channels': [ " CPR(ADDR_TCP) " ] }", "Channel list " },
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
    QTestState *from = start_machine("%s", "");
    QDict *rsp;

    for (int i = 0; i < ARRAY_SIZE(refused_outgoing); i++) {
        assert_refused(from, "migrate", refused_outgoing[i].arguments,
                       refused_outgoing[i].error);
        rsp = migrate_query(from);
        g_assert_false(qdict_haskey(rsp, "status"));
        qobject_unref(rsp);
    }

    migrate_set_capability(from, "mapped-ram", true);
    assert_refused(from, "migrate",
                   "{ 'channels': [ " HANDSHAKE(ADDR_TCP) " ] }",
                   "mapped-ram");
    migrate_set_capability(from, "mapped-ram", false);
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
    QTestState *from = start_machine("%s", "");
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
    QTestState *to = start_machine("-incoming defer");

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

/* @fd is closed */
static void refuse_fd(QTestState *from, int fd)
{
    qtest_qmp_fds_assert_success(from, &fd, 1,
                                 "{ 'execute': 'getfd',"
                                 "  'arguments': { 'fdname': 'mig' }}");
    close(fd);
    assert_refused(from, "migrate",
                   "{ 'channels': [ " HANDSHAKE(ADDR_FD) " ] }",
                   "Channel type 'handshake' needs a bidirectional socket");
}

/* What is no stream as fd: on the source */
static void test_refused_fd(void)
{
    QTestState *to = start_destination("");
    QTestState *from = start_source("");
    int fds[2];

    g_assert_true(g_unix_open_pipe(fds, FD_CLOEXEC, NULL));
    refuse_fd(from, fds[1]);
    close(fds[0]);

    fds[0] = open("/dev/null", O_RDWR);
    g_assert_cmpint(fds[0], >=, 0);
    refuse_fd(from, fds[0]);

    g_assert_cmpint(qemu_socketpair(AF_UNIX, SOCK_DGRAM, 0, fds), ==, 0);
    refuse_fd(from, fds[0]);
    close(fds[1]);

    assert_good_migration(from, to);
    stop_both(from, to);
}

static void test_schema(void)
{
    QTestState *qts = start_machine("%s", "");
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
    const HandshakeMachine *m = handshake_machine();

    test_mismatch(m->other_options, "machine-type", "machine", m->other_type,
                  m->type);
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

/*
 * What is required and not possible is refused in the destination's own words:
 * postcopy cannot place pages into a file on a disk.
 */
static void test_impossible(void)
{
    g_autofree char *path = g_strdup_printf("%s/on-disk", tmpfs);
    g_autofree char *more = g_strconcat(",share=on,mem-path=", path, NULL);
    g_autofree char *opts = memory_options("file", more);
    g_autofree char *ram = memory_options("ram", "");
    QTestState *to = start_destination(opts);
    QTestState *from = start_source(ram);
    QDict *rsp = qtest_qmp(to, "{ 'execute': 'migrate-set-capabilities',"
                           "  'arguments': { 'capabilities': [ {"
                           "    'capability': 'postcopy-ram',"
                           "    'state': true } ] } }");
    QDict *error = qdict_get_qdict(rsp, "error");
    const char *reason = error ? qdict_get_str(error, "desc") : NULL;
    QDict *info;

    if (!reason) {
        g_test_skip("postcopy is possible with a file here");
    } else {
        migrate_set_capability(from, "postcopy-ram", true);
        migrate_to(from, to, NULL);
        qobject_unref(wait_status(from, "failed"));
        g_assert_true(is_running(from));
        info = wait_handshake(from, "rejected");
        g_test_message("%s", qdict_get_str(info, "message"));
        g_assert_nonnull(strstr(
            qdict_get_str(find_issue(info, "capability-unsupported"),
                          "message"), reason));
        qobject_unref(info);

        /* If it is but a wish, the migration goes on without */
        migrate_set_capability(from, "postcopy-ram", false);
        migrate_to(from, to, "{ 'optional-capabilities':"
                   "  [ 'postcopy-ram' ] }");
        qobject_unref(wait_status(to, "completed"));
        qobject_unref(wait_status(from, "completed"));
        info = wait_handshake(from, "accepted");
        g_assert_cmpstr(declined_reason(info, "postcopy-ram"), ==, reason);
        qobject_unref(info);
    }
    qobject_unref(rsp);
    unlink(path);
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

/* Peers that do not speak the handshake */

static void test_legacy_destination(void)
{
    QTestState *to = start_machine("-incoming defer");
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
    wait_running(from);
    migrate_set_capability(from, "return-path", false);

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
    qtest_quit(from);
}

/*
 * Two devices of one name that are not alike in what only their state says, so
 * that the handshake has but a warning.
 * That shows when all of RAM has moved and the guest stands still.
 */
static void test_late_failure(void)
{
    QTestState *to = start_destination(
        "-machine pc "
        "-global PIIX4_PM.acpi-pci-hotplug-with-bridge-support=off");
    QTestState *from = start_source("-machine pc");
    QDict *rsp;

    migrate_to(from, to, NULL);
    qobject_unref(wait_status(from, "failed"));
    wait_running(from);
    rsp = wait_status(to, "failed");
    qobject_unref(rsp);
    g_assert_false(capability_is_on(to, "return-path"));
    stop_both(from, to);
}

/* The event that has come by now, if any; a command makes it be read */
static QDict *pending_event(QTestState *who)
{
    qobject_unref(migrate_query(who));
    return qtest_qmp_event_ref(who, "MIGRATION_HANDSHAKE");
}

/* Returns the session that the event tells, to be freed by the caller */
static char *assert_event(QTestState *who, const char *role,
                          const char *status, int errors, int warnings)
{
    QDict *event = qtest_qmp_eventwait_ref(who, "MIGRATION_HANDSHAKE");
    QDict *data = qdict_get_qdict(event, "data");
    char *session = g_strdup(qdict_get_try_str(data, "session"));

    g_assert_cmpstr(qdict_get_str(data, "role"), ==, role);
    g_assert_cmpstr(qdict_get_str(data, "status"), ==, status);
    g_assert_false(qdict_get_bool(data, "check-only"));
    g_assert_cmpint(qdict_get_int(data, "errors"), ==, errors);
    g_assert_cmpint(qdict_get_int(data, "warnings"), ==, warnings);
    g_assert_cmpint(qdict_haskey(data, "message"), ==,
                    strcmp(status, "accepted") != 0);
    qobject_unref(event);
    return session;
}

static void assert_events(QTestState *from, QTestState *to, const char *status,
                          int errors, int warnings)
{
    g_autofree char *a = assert_event(from, "source", status, errors, warnings);
    g_autofree char *b = assert_event(to, "destination", status, errors,
                                      warnings);
    QDict *info = wait_handshake(from, status);

    /* What the two say of one conversation can be found in both logs */
    g_assert_nonnull(a);
    g_assert_cmpstr(a, ==, b);
    g_assert_cmpstr(a, ==, qdict_get_str(info, "session"));
    qobject_unref(info);
}

static int count_issues(const QDict *info, const char *severity)
{
    const QListEntry *entry;
    int count = 0;

    QLIST_FOREACH_ENTRY(qdict_get_qlist(info, "issues"), entry) {
        QDict *issue = qobject_to(QDict, qlist_entry_obj(entry));

        count += !strcmp(qdict_get_str(issue, "severity"), severity);
    }
    return count;
}

static void test_event(void)
{
    QTestState *to = start_destination("-uuid " UUID_A);
    g_autofree char *opts = g_strconcat(
        handshake_machine()->other_options, " -uuid " UUID_B
        " -device virtio-rng -device virtio-balloon", NULL);
    QTestState *bad = start_source(opts);
    QTestState *from = start_source("-uuid " UUID_B);
    g_autofree char *port = destination_port(to);
    g_autofree char *session = NULL;
    int errors, warnings, seconds, told;
    QDict *info, *event;
    gint64 start;

    /* Nobody who did not ask for events gets this one */
    migrate_to(bad, to, NULL);
    qobject_unref(wait_status(bad, "failed"));
    qobject_unref(wait_handshake(to, "rejected"));
    g_assert_null(pending_event(bad));
    g_assert_null(pending_event(to));

    migrate_set_capability(bad, "events", true);
    migrate_set_capability(from, "events", true);
    migrate_set_capability(to, "events", true);

    /* Strangers cannot make a flood of it: one each second */
    start = g_get_monotonic_time();
    for (int i = 0; i < 10; i++) {
        ScriptedSource stranger;
        uint16_t type;

        source_say_hello(&stranger, port, "{ \"versions\": [99],"
                         "  \"purpose\": \"migrate\", \"required\": [] }");
        qobject_unref(source_read_verdict(&stranger, &type));
        source_close(&stranger);
    }
    session = assert_event(to, "destination", "rejected", 1, 0);
    g_assert_nonnull(session);
    for (told = 1; (event = pending_event(to)); told++) {
        qobject_unref(event);
    }
    seconds = (g_get_monotonic_time() - start) / G_USEC_PER_SEC;
    g_assert_cmpint(told, <=, 1 + seconds);

    g_usleep(G_USEC_PER_SEC * 11 / 10);
    migrate_to(bad, to, "{ 'warnings-as-errors': true }");
    qobject_unref(wait_status(bad, "failed"));
    info = wait_handshake(to, "rejected");
    errors = count_issues(info, "error");
    warnings = count_issues(info, "warning");
    qobject_unref(info);
    /* Two devices that are missing, the type, and the UUID */
    g_assert_cmpint(errors, >=, 3);
    g_assert_cmpint(warnings, >=, 1);
    assert_events(bad, to, "rejected", errors, warnings);

    migrate_to(from, to, NULL);
    assert_events(from, to, "accepted", 0, 1);
    wait_completed(from, to);
    qtest_quit(bad);
    stop_both(from, to);
}

void migration_test_add_handshake(MigrationTestEnv *env)
{
    tmpfs = env->tmpfs;

    if (!handshake_machine_or_null()) {
        return;
    }
    handshake_test_add("/migration/handshake/precopy/live", test_precopy_live);
    if (env->has_uffd) {
        handshake_test_add("/migration/handshake/precopy/source-capability",
                           test_source_capability);
    }
    handshake_test_add("/migration/handshake/info", test_info);
    handshake_test_add("/migration/handshake/event", test_event);
    handshake_test_add("/migration/handshake/settings", test_settings);
    handshake_test_add("/migration/handshake/unix/incoming-json",
                       test_unix_incoming_json);
    handshake_test_add("/migration/handshake/fd", test_fd);
    handshake_test_add("/migration/handshake/schema", test_schema);
    handshake_test_add("/migration/handshake/over/dirty-bitmaps",
                       test_dirty_bitmaps);
    handshake_test_add("/migration/handshake/over/ignore-shared",
                       test_ignore_shared);
    handshake_test_add("/migration/handshake/over/source-only",
                       test_source_only);
    handshake_test_add("/migration/handshake/over/zero-copy", test_zero_copy);
    handshake_test_add("/migration/handshake/over/again", test_again);
    handshake_test_add("/migration/handshake/mismatch/impossible",
                       test_impossible);
    handshake_test_add("/migration/handshake/refused/outgoing",
                       test_refused_outgoing);
    handshake_test_add("/migration/handshake/refused/incoming",
                       test_refused_incoming);
    handshake_test_add("/migration/handshake/refused/capability",
                       test_refused_capability);
    handshake_test_add("/migration/handshake/refused/fd", test_refused_fd);
    handshake_test_add("/migration/handshake/mismatch/machine",
                       test_mismatch_machine);
    handshake_test_add("/migration/handshake/mismatch/configuration",
                       test_mismatch_configuration);
    handshake_test_add("/migration/handshake/mismatch/footer",
                       test_mismatch_footer);
    handshake_test_add("/migration/handshake/mismatch/none", test_no_mismatch);
    handshake_test_add("/migration/handshake/mismatch/warning", test_warning);
    handshake_test_add("/migration/handshake/mismatch/destination",
                       test_conflict_on_destination);
    handshake_test_add("/migration/handshake/legacy/destination",
                       test_legacy_destination);
    handshake_test_add("/migration/handshake/legacy/source",
                       test_legacy_source);
    handshake_test_add("/migration/handshake/kill-destination",
                       test_kill_destination);
    if (env->is_x86) {
        handshake_test_add("/migration/handshake/late-failure",
                           test_late_failure);
    }
}
