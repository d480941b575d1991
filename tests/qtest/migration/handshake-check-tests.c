/*
 * QTest testcases for the migration handshake: asking before moving
 *
 * That the answers are those of a migration is tested with every issue, in
 * handshake-issues-tests.c.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "qapi/error.h"
#include "qobject/qjson.h"
#include "qobject/qlist.h"
#include "libqtest.h"
#include "migration/framework.h"
#include "migration/handshake-util.h"
#include "migration/migration-qmp.h"

/* Nothing but the handshake is shown, as if no migration had been thought of */
static void assert_no_migration(QTestState *from)
{
    QDict *rsp = migrate_query(from);

    g_assert_cmpint(qdict_size(rsp), ==, 1);
    g_assert_true(qdict_haskey(rsp, "handshake"));
    qobject_unref(rsp);
    g_assert_true(is_running(from));
}

/* query-migrate-capabilities or query-migrate-parameters, as text */
static char *settings(QTestState *who, const char *what)
{
    g_autofree char *command = g_strdup_printf("query-migrate-%s", what);
    QDict *rsp = qtest_qmp(who, "{ 'execute': %s }", command);
    g_autoptr(GString) json = NULL;

    g_assert_true(qdict_haskey(rsp, "return"));
    json = qobject_to_json(qdict_get(rsp, "return"));
    qobject_unref(rsp);
    return g_strdup(json->str);
}

static void assert_status(QDict *info, const char *status)
{
    g_assert_cmpstr(qdict_get_str(info, "status"), ==, status);
    qobject_unref(info);
}

/* As often as you like, and it changes nothing on either side */
static void test_again(void)
{
    QTestState *to = start_destination("");
    QTestState *from = start_source("");
    QTestState *other = start_source(handshake_machine()->other_options);
    QTestState *both[] = { from, to };
    char *were[2][2];

    for (int i = 0; i < 2; i++) {
        were[i][0] = settings(both[i], "capabilities");
        were[i][1] = settings(both[i], "parameters");
    }
    for (int i = 0; i < 50; i++) {
        assert_status(check_to(from, to, NULL), "accepted");
        assert_no_migration(from);
        assert_listening(to);
        assert_status(check_to(other, to, NULL), "rejected");
        assert_no_migration(other);
    }
    for (int i = 0; i < 2; i++) {
        g_autofree char *capabilities = settings(both[i], "capabilities");
        g_autofree char *parameters = settings(both[i], "parameters");

        g_assert_cmpstr(were[i][0], ==, capabilities);
        g_assert_cmpstr(were[i][1], ==, parameters);
        g_free(were[i][0]);
        g_free(were[i][1]);
    }
    qtest_quit(other);
    assert_good_migration(from, to);
    stop_both(from, to);
}

static void assert_event(QTestState *who, const char *role, const char *status)
{
    QDict *event = qtest_qmp_eventwait_ref(who, "MIGRATION_HANDSHAKE");
    QDict *data = qdict_get_qdict(event, "data");

    g_assert_cmpstr(qdict_get_str(data, "role"), ==, role);
    g_assert_cmpstr(qdict_get_str(data, "status"), ==, status);
    g_assert_true(qdict_get_bool(data, "check-only"));
    qobject_unref(event);
}

static void test_event(void)
{
    QTestState *to = start_destination("");
    QTestState *from = start_source("");

    migrate_set_capability(from, "events", true);
    migrate_set_capability(to, "events", true);

    assert_status(check_to(from, to, NULL), "accepted");
    assert_event(from, "source", "accepted");
    assert_event(to, "destination", "accepted");
    assert_status(check_to_port(from, "1", NULL), "failed");
    assert_event(from, "source", "failed");
    g_assert_null(qtest_qmp_event_ref(from, "MIGRATION"));
    g_assert_null(qtest_qmp_event_ref(to, "MIGRATION"));
    stop_both(from, to);
}

static void assert_busy(QTestState *from, const char *arguments)
{
    QDict *args = qobject_to(QDict, qobject_from_json(arguments, &error_abort));
    QDict *rsp = qtest_qmp(from, "{ 'execute': 'migrate',"
                           "  'arguments': %p }", args);
    QDict *error = qdict_get_qdict(rsp, "error");

    g_assert_nonnull(error);
    g_assert_nonnull(strstr(qdict_get_str(error, "desc"),
                            "check of a migration is in progress"));
    qobject_unref(rsp);
}

/* One at a time, and nothing else meanwhile */
static void test_cancel(void)
{
    QTestState *to = start_destination("");
    QTestState *from = start_source("");
    SilentPeer peer;

    silent_peer_start(&peer);
    migrate_to_port(from, "handshake", peer.port, "{ 'check-only': true }");
    silent_peer_accept(&peer);

    assert_busy(from, "{ 'uri': 'tcp:127.0.0.1:1' }");
    assert_busy(from, "{ 'channels': [ " TCP_LISTEN " ] }");
    assert_busy(from, "{ 'channels': [ " TCP_LISTEN " ],"
                      "  'handshake': { 'check-only': true } }");
    assert_status(wait_handshake(from, "in-progress"), "in-progress");
    assert_no_migration(from);

    qtest_qmp_assert_success(from, "{ 'execute': 'migrate_cancel' }");
    assert_status(wait_handshake(from, "cancelled"), "cancelled");
    assert_no_migration(from);
    silent_peer_stop(&peer);

    assert_status(check_to(from, to, NULL), "accepted");
    assert_good_migration(from, to);
    stop_both(from, to);
}

static void test_timeout(void)
{
    QTestState *from = start_source("");
    SilentPeer peer;
    QDict *info;

    silent_peer_start(&peer);
    info = check_to_port(from, peer.port, "'timeout': 1");
    g_assert_nonnull(strstr(qdict_get_str(info, "message"),
                            "within 1 seconds"));
    assert_status(info, "failed");
    assert_no_migration(from);
    silent_peer_stop(&peer);
    qtest_quit(from);
}

static void assert_blocked(const QDict *answer)
{
    const QListEntry *entry;

    QLIST_FOREACH_ENTRY(qdict_get_qlist(answer, "issues"), entry) {
        QDict *issue = qobject_to(QDict, qlist_entry_obj(entry));

        if (!strcmp(qdict_get_str(issue, "code"), "unmigratable")) {
            g_assert_cmpstr(qdict_get_str(issue, "severity"), ==, "error");
            g_assert_nonnull(strstr(qdict_get_str(issue, "message"),
                                    "peer mode"));
            return;
        }
    }
    g_assert_not_reached();
}

/* Where a migration would not even begin, the reason is one of the answers */
static void test_blocker(void)
{
    const char *opts = "-object memory-backend-ram,id=mem,size=1M,share=on "
                       "-device ivshmem-plain,memdev=mem,master=off,addr=1";
    QTestState *to, *from;
    QDict *rsp;

    if (!qtest_has_device("ivshmem-plain")) {
        g_test_skip("a device is not in this build");
        return;
    }
    to = start_destination(opts);
    from = start_source(opts);
    rsp = check_to(from, to, NULL);
    assert_blocked(rsp);
    assert_status(rsp, "rejected");
    rsp = check_profile(to, query_profile(from), NULL);
    assert_blocked(rsp);
    g_assert_false(qdict_get_bool(rsp, "compatible"));
    qobject_unref(rsp);
    stop_both(from, to);
}

static void assert_no_answer(QTestState *who, const char *profile,
                             const char *reason)
{
    QObject *obj = qobject_from_json(profile, &error_abort);
    QDict *rsp = qtest_qmp(who, "{ 'execute': 'check-migrate-profile',"
                           "  'arguments': { 'profile': %p } }", obj);
    QDict *error = qdict_get_qdict(rsp, "error");

    g_assert_nonnull(error);
    if (!strstr(qdict_get_str(error, "desc"), reason)) {
        g_error("%s: %s", profile, qdict_get_str(error, "desc"));
    }
    qobject_unref(rsp);
}

#define CORE    "'versions': [1], 'purpose': 'check', 'required': []"

static void test_malformed(void)
{
    static const char *const malformed[] = {
        "null", "[]", "3", "'profile'", "{}",
        "{ 'versions': [1], 'purpose': 'check' }",
        "{ 'versions': 1, 'purpose': 'check', 'required': [] }",
        "{ 'versions': [1], 'purpose': [], 'required': [] }",
        "{ " CORE ", 'profile': [] }",
        "{ " CORE ", 'profile': { 'machine': 7 } }",
        "{ " CORE ", 'profile': { 'page-size': -1 } }",
        "{ " CORE ", 'profile': { 'page-size': 1e300 } }",
        "{ " CORE ", 'profile': { 'sections': [ { 'name': 'ram' } ] } }",
        "{ " CORE ", 'profile': { 'ram-blocks': [ { 'name': 'a',"
        "                                           'size': '' } ] } }",
    };
    const HandshakeMachine *m = handshake_machine();
    QTestState *to = start_destination("");
    QTestState *from = start_source("");
    QDict *rsp;

    for (int i = 0; i < ARRAY_SIZE(malformed); i++) {
        assert_no_answer(to, malformed[i], "malformed migration profile");
    }
    /* What a later version adds is none of our business */
    rsp = check_profile(to, qdict_from_jsonf_nofail(
        "{ " CORE ", 'colour': 1, 'features': [ 'warp' ],"
        "  'profile': { 'shape': {}, 'stream': { 'x': null },"
        "               'ram-blocks': [ { 'name': %s, 'x': [ 1 ],"
        "                                 'size': %" PRId64 " } ] } }",
        m->memory, (int64_t)m->size * 1024 * 1024), NULL);
    g_assert_true(qdict_get_bool(rsp, "compatible"));
    qobject_unref(rsp);

    assert_no_answer(from, "{ " CORE " }", "waits for an incoming migration");
    stop_both(from, to);
}

/* It would be refused there, and what is probed belongs to somebody */
static void test_busy(void)
{
    QTestState *to = start_destination("");
    QTestState *from = start_source("");
    g_autofree char *port = destination_port(to);
    ScriptedSource other;
    QDict *info;

    source_claim_session(&other, port, GOOD_HELLO);
    assert_no_answer(to, "{ " CORE " }", "migration process in progress");
    info = check_to(from, to, NULL);
    g_assert_nonnull(find_issue(info, "busy"));
    assert_status(info, "rejected");
    /* The other one has noticed nothing */
    assert_status(wait_handshake(to, "in-progress"), "in-progress");
    source_close(&other);
    assert_status(wait_handshake(to, "cancelled"), "cancelled");
    assert_status(check_to(from, to, NULL), "accepted");
    stop_both(from, to);
}

void migration_test_add_handshake_check(MigrationTestEnv *env)
{
    if (!handshake_machine_or_null()) {
        return;
    }
    handshake_test_add("/migration/handshake/check/again", test_again);
    handshake_test_add("/migration/handshake/check/event", test_event);
    handshake_test_add("/migration/handshake/check/cancel", test_cancel);
    handshake_test_add("/migration/handshake/check/timeout", test_timeout);
    handshake_test_add("/migration/handshake/check/blocker", test_blocker);
    handshake_test_add("/migration/handshake/check/malformed", test_malformed);
    handshake_test_add("/migration/handshake/check/busy", test_busy);
}
