/*
 * QTest testcases for the migration handshake: what users set, and what was
 * negotiated
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#ifdef CONFIG_LINUX
#include <sys/resource.h>
#endif
#include "qapi/error.h"
#include "qobject/qjson.h"
#include "libqtest.h"
#include "migration/framework.h"
#include "migration/handshake-util.h"
#include "migration/migration-qmp.h"

/* What 'migrate-set-capabilities' says against it; NULL if nothing */
static char *try_capability(QTestState *who, const char *name, bool on)
{
    QDict *rsp = qtest_qmp(who, "{ 'execute': 'migrate-set-capabilities',"
                           "  'arguments': { 'capabilities': ["
                           "    { 'capability': %s, 'state': %i } ] } }",
                           name, on);
    QDict *error = qdict_get_qdict(rsp, "error");
    char *desc = error ? g_strdup(qdict_get_str(error, "desc")) : NULL;

    qobject_unref(rsp);
    return desc;
}

/* What users have set, not what was negotiated */
static void assert_own(QTestState *who, const char *capabilities_on,
                       int channels, const char *compression)
{
    static const char *const names[] = {
        "multifd", "xbzrle", "zero-copy-send", "x-ignore-shared", "mapped-ram",
        "return-path", "switchover-ack", "auto-converge",
    };
    g_auto(GStrv) on = g_strsplit(capabilities_on, " ", 0);
    QDict *params = qtest_qmp_assert_success_ref(
        who, "{ 'execute': 'query-migrate-parameters' }");

    for (int i = 0; i < ARRAY_SIZE(names); i++) {
        bool is = capability_is_on(who, names[i]);

        if (is != g_strv_contains((const char *const *)on, names[i])) {
            g_error("%s is %s", names[i], is ? "on" : "off");
        }
    }
    g_assert_cmpint(qdict_get_int(params, "multifd-channels"), ==, channels);
    g_assert_cmpstr(qdict_get_str(params, "multifd-compression"), ==,
                    compression);
    qobject_unref(params);
}

static void assert_negotiated(QTestState *who, int channels)
{
    QDict *info = wait_handshake(who, "accepted");

    g_assert_true(list_contains(info, "capabilities", "multifd"));
    g_assert_cmpint(qdict_get_int(qdict_get_qdict(info, "parameters"),
                                  "multifd-channels"), ==, channels);
    qobject_unref(info);
}

/* A migration that is under way, with multifd, though nobody has set it */
static void migrate_slowly(QTestState *from, QTestState *to)
{
    migrate_set_parameter_int(from, "max-bandwidth", 1000);
    migrate_set_parameter_int(from, "multifd-channels", 4);
    migrate_to(from, to, NULL);
    qobject_unref(wait_status(from, "active"));
    qobject_unref(wait_status(to, "active"));
    assert_negotiated(from, 4);
    assert_negotiated(to, 4);
}

/*
 * What a destination's user sets while it loads is checked against what users
 * have set, and does nothing to the migration.
 */
static void test_destination(void)
{
    QTestState *to = start_destination("");
    QTestState *from = start_source("");
    g_autofree char *refused = NULL;

    migrate_slowly(from, to);
    assert_own(to, "", 2, "none");

    /* It needs multifd, which is in use, but which nobody has set */
    refused = try_capability(to, "zero-copy-send", true);
    g_assert_nonnull(refused);
    g_assert_nonnull(strstr(refused, "Zero copy"));
    /* These do not go with the multifd that is in use */
    migrate_set_capability(to, "mapped-ram", true);
    assert_own(to, "mapped-ram", 2, "none");
    migrate_set_capability(to, "mapped-ram", false);
    migrate_set_capability(to, "xbzrle", true);
    /* Nor would these be good for what is being loaded */
    migrate_set_capability(to, "x-ignore-shared", true);
    migrate_set_parameter_int(to, "multifd-channels", 9);
    migrate_set_parameter_str(to, "multifd-compression", "zlib");
    assert_own(to, "xbzrle x-ignore-shared", 9, "zlib");

    migrate_set_parameter_int(from, "max-bandwidth", 0);
    wait_completed(from, to);
    assert_negotiated(to, 4);
    assert_own(to, "xbzrle x-ignore-shared", 9, "zlib");
    /* It is a set that QEMU takes, and changes */
    migrate_set_capability(to, "auto-converge", true);
    assert_own(to, "xbzrle x-ignore-shared auto-converge", 9, "zlib");
    stop_both(from, to);
}

/* mapped-ram is for files; what is loaded now is none, whatever is set */
static void test_destination_refused(void)
{
    QTestState *to = start_destination("");
    QTestState *from = start_source("");

    migrate_slowly(from, to);
    migrate_set_capability(to, "mapped-ram", true);
    migrate_set_parameter_int(from, "max-bandwidth", 0);
    wait_completed(from, to);
    assert_own(to, "mapped-ram", 2, "none");
    stop_both(from, to);
}

/* The same on the source, where it is parameters that can be set meanwhile */
static void test_source(void)
{
    QTestState *to = start_destination("");
    QTestState *next = start_destination("");
    QTestState *from = start_source("");
    g_autofree char *refused = NULL;

    migrate_slowly(from, to);
    assert_own(from, "", 4, "none");
    refused = try_capability(from, "xbzrle", true);
    g_assert_nonnull(strstr(refused, "migration process in progress"));
    migrate_set_parameter_int(from, "multifd-channels", 9);
    migrate_set_parameter_str(from, "multifd-compression", "zlib");
    assert_own(from, "", 9, "zlib");
    assert_negotiated(from, 4);

    /* As soon as it is over, whether or not QEMU has cleaned up */
    qtest_qmp_assert_success(from, "{ 'execute': 'migrate_cancel' }");
    qobject_unref(wait_status(from, "cancelled"));
    migrate_set_capability(from, "xbzrle", true);
    assert_own(from, "xbzrle", 9, "zlib");
    migrate_set_capability(from, "xbzrle", false);

    migrate_set_parameter_str(from, "multifd-compression", "none");
    migrate_slowly(from, next);
    migrate_set_parameter_int(from, "multifd-channels", 3);
    migrate_set_parameter_int(from, "max-bandwidth", 0);
    qobject_unref(wait_status(from, "completed"));
    migrate_set_capability(from, "xbzrle", true);
    assert_own(from, "xbzrle", 3, "none");
    qobject_unref(wait_status(next, "completed"));
    assert_own(next, "", 2, "none");
    qtest_quit(next);
    stop_both(from, to);
}

/* How a destination listens is not what a profile asks about */
static void test_profile_of_main(void)
{
    QTestState *to = start_machine("-incoming tcp:127.0.0.1:0");
    QTestState *other = start_destination("");
    QTestState *from = start_source("");
    g_autofree char *refused = NULL;
    QDict *verdict;

    migrate_set_capability(from, "multifd", true);
    for (int i = 0; i < 2; i++) {
        verdict = check_profile(i ? other : to, query_profile(from), NULL);
        g_assert_true(qdict_get_bool(verdict, "compatible"));
        g_assert_true(list_contains(verdict, "capabilities", "multifd"));
        qobject_unref(verdict);
    }

    /* A user cannot set it where it would come too late */
    refused = try_capability(to, "multifd", true);
    g_assert_nonnull(strstr(refused, "before incoming starts"));
    migrate_set_capability(other, "multifd", true);
    qtest_quit(other);
    stop_both(from, to);
}

#ifdef CONFIG_LINUX
static void limit_files(QTestState *who, rlim_t files)
{
    struct rlimit limit;

    g_assert_cmpint(prlimit(qtest_pid(who), RLIMIT_NOFILE, NULL, &limit), ==,
                    0);
    limit.rlim_cur = MIN(files, limit.rlim_max);
    g_assert_cmpint(prlimit(qtest_pid(who), RLIMIT_NOFILE, &limit, NULL), ==,
                    0);
}

/* Why postcopy is not possible on the destination; NULL if it is */
static char *why_no_postcopy(QTestState *from, QTestState *to)
{
    QDict *verdict = check_profile(to, query_profile(from),
        qdict_from_jsonf_nofail("{ 'optional-capabilities':"
                                "  [ 'postcopy-ram' ] }"));
    char *reason = g_strdup(declined_reason(verdict, "postcopy-ram"));

    g_assert_true(qdict_get_bool(verdict, "compatible"));
    g_assert_true(list_contains(verdict, "capabilities", "postcopy-ram") ==
                  !reason);
    qobject_unref(verdict);
    return reason;
}

/*
 * Whoever has read why a host cannot do postcopy, and has done something about
 * it, is not told the same again; and what was possible may not be any more.
 */
static void test_postcopy_probe(void)
{
    QTestState *to = start_destination("");
    QTestState *from = start_source("");

    for (int i = 0; i < 2; i++) {
        g_autofree char *reason = NULL;

        limit_files(to, 3);
        for (int j = 0; !reason && j < PATIENCE / 10; j++) {
            reason = why_no_postcopy(from, to);
            g_usleep(10 * 1000);
        }
        g_assert_nonnull(reason);
        g_assert_nonnull(strstr(reason, "Userfaultfd not available"));

        limit_files(to, 1024);
        g_assert_null(why_no_postcopy(from, to));
    }
    stop_both(from, to);
}
#endif

void migration_test_add_handshake_settings(MigrationTestEnv *env)
{
    if (!handshake_machine_or_null()) {
        return;
    }
    handshake_test_add("/migration/handshake/settings/destination",
                       test_destination);
    handshake_test_add("/migration/handshake/settings/mapped-ram",
                       test_destination_refused);
    handshake_test_add("/migration/handshake/settings/source", test_source);
    handshake_test_add("/migration/handshake/settings/profile-of-main",
                       test_profile_of_main);
#ifdef CONFIG_LINUX
    if (env->has_uffd) {
        handshake_test_add("/migration/handshake/settings/postcopy-probe",
                           test_postcopy_probe);
    }
#endif
}
