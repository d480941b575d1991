/*
 * QTest testcases for the migration handshake: what the machines of other
 * architectures than x86 have promised
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "qobject/qjson.h"
#include "qobject/qlist.h"
#include "libqtest.h"
#include "migration/framework.h"
#include "migration/handshake-util.h"
#include "migration/migration-qmp.h"
#include "migration/migration-util.h"

/* A promise that the destination cannot keep, with patterns of * and ? */
typedef struct ArchTest {
    const char *name;
    const char *code;
    bool warning;
    const char *source;
    const char *destination;
    const char *message;
    const char *from;
    const char *to;
} ArchTest;

/* What differs, and is no reason to refuse */
typedef struct ArchAccepted {
    const char *name;
    const char *source;
    const char *destination;
} ArchAccepted;

typedef struct Arch {
    const char *name;
    const char *machine;        /* of which all tests are */
    bool root_ports;            /* devices can be plugged into these alone */
    const ArchTest *tests;
    const ArchAccepted *accepted;
} Arch;

static const ArchTest arm_tests[] = {
    {
        .name = "registers", .code = "cpu", .source = "*",
        .destination = "missing",
        .message = "registers of the guest's CPU differ: * on the source, "
                   "missing on the destination",
        .from = "-cpu neoverse-n1", .to = "-cpu cortex-a57",
    }, {
        .name = "register-values", .code = "cpu",
        .source = "ID_MMFR0=0x10101105", .destination = "ID_MMFR0=0x10201105",
        .message = "registers of the guest's CPU differ: ID_MMFR0=0x10101105 "
                   "on the source, ID_MMFR0=0x10201105 on the destination",
        .from = "-cpu cortex-a57", .to = "-cpu cortex-a72",
    }, {
        .name = "cpu-model", .code = "cpu", .warning = true,
        .source = "cortex-a57-*", .destination = "max-*",
        .message = "the guest's CPU is a cortex-a57-* and a max-*",
        .from = "-cpu cortex-a57", .to = "-cpu max",
    },
    { }
};

static const ArchTest s390x_tests[] = {
    {
        .name = "cpu-features", .code = "cpu", .source = "*",
        .destination = "missing", .message = "the guest's CPU has *",
        .from = "-cpu qemu", .to = "-cpu qemu,msa4=off",
    },
    { }
};

static const ArchAccepted s390x_accepted[] = {
    { "more-features", "-cpu qemu,msa4=off", "-cpu qemu" },
    { }
};

static const ArchTest ppc64_tests[] = {
    {
        .name = "machine-capabilities", .code = "device", .source = "2",
        .destination = "1",
        .message = "capability 'cfpc' of the guest's machine is at level 2 on "
                   "the source, and at 1 on the destination",
        .from = "-machine cap-cfpc=fixed",
        .to = "-machine cap-cfpc=workaround",
    }, {
        .name = "machine-defaults", .code = "device", .source = "1",
        .destination = "0",
        .message = "capability 'cfpc' of the guest's machine is at least at "
                   "its default (1) on the source, and is not (0) on the "
                   "destination",
        .from = "-machine cap-cfpc=workaround",
        .to = "-machine cap-cfpc=broken",
    }, {
        /* Neither has it, but the loader takes the destination's default */
        .name = "machine-default-there", .code = "device", .source = "1",
        .destination = "0", .message = "capability 'ail-mode-3' *",
        .from = "-cpu power7 -machine max-cpu-compat=power7,cap-ibs=workaround",
        .to = "-cpu power8 -machine cap-cfpc=workaround,cap-ibs=workaround,"
              "cap-ail-mode-3=off",
    }, {
        .name = "cpu-mode", .code = "cpu", .source = "power9*",
        .destination = "missing",
        .message = "the guest's CPU works as power9*, which *",
        .from = "-cpu power9", .to = "-cpu power8",
    }, {
        .name = "cpu-mode-there", .code = "cpu", .source = "power10*",
        .destination = "missing",
        .message = "the guest's CPU works as power10*, which *",
        .from = "-cpu power10",
        .to = "-cpu power10 -machine max-cpu-compat=power9",
    },
    { }
};

static const ArchAccepted ppc64_accepted[] = {
    {
        "higher-capability", "-machine cap-cfpc=broken",
        "-machine cap-cfpc=workaround",
    }, {
        "mode", "-cpu power10 -machine max-cpu-compat=power9", "-cpu power9",
    }, {
        "mode-there", "-cpu power9", "-cpu power10 "
        "-machine max-cpu-compat=power9",
    }, {
        "mode-left", "-cpu power9 -machine max-cpu-compat=power8",
        "-cpu power9",
    },
    { }
};

static const ArchAccepted none[] = { { } };

static const Arch archs[] = {
    { "aarch64", "-machine virt,gic-version=3 ", true, arm_tests, none },
    {
        "s390x", "-machine s390-ccw-virtio ", false, s390x_tests,
        s390x_accepted
    },
    {
        "ppc64", "-machine pseries,vsmt=8 "
        "-machine cap-cfpc=broken,cap-sbbc=broken,cap-ibs=broken,"
        "cap-ccf-assist=off ", false, ppc64_tests, ppc64_accepted
    },
};

static const Arch *arch;

static QTestState *start(const char *opts, bool incoming)
{
    QTestState *who = qtest_initf("%s -m 256 -nodefaults %s %s", arch->machine,
                                  incoming ? "-incoming defer" : "", opts);

    if (incoming) {
        listen_for_handshake(who);
    }
    return who;
}

static bool matches(const QDict *issue, const char *member, const char *pattern)
{
    return g_pattern_match_simple(pattern,
                                  qdict_get_try_str(issue, member) ?: "");
}

/* Takes @info */
static void assert_issue(QDict *info, const ArchTest *t)
{
    const QListEntry *entry;
    bool found = false;

    QLIST_FOREACH_ENTRY(qdict_get_qlist(info, "issues"), entry) {
        const QDict *issue = qobject_to(QDict, qlist_entry_obj(entry));

        found |= matches(issue, "code", t->code) &&
            matches(issue, "severity", t->warning ? "warning" : "error") &&
            matches(issue, "source", t->source) &&
            matches(issue, "destination", t->destination) &&
            matches(issue, "message", t->message);
    }
    if (!found) {
        g_test_message("%s", qobject_to_json_pretty(QOBJECT(info), true)->str);
        g_assert_not_reached();
    }
    qobject_unref(info);
}

/* Takes @info */
static void assert_no_issue(QDict *info)
{
    if (!qlist_empty(qdict_get_qlist(info, "issues"))) {
        g_test_message("%s", qobject_to_json_pretty(QOBJECT(info), true)->str);
        g_assert_not_reached();
    }
    qobject_unref(info);
}

static void test_promise(const void *opaque)
{
    const ArchTest *t = opaque;
    QTestState *to = start(t->to, true);
    QTestState *from = start(t->from, false);
    QDict *rsp, *ram;

    assert_issue(check_to(from, to, NULL), t);
    assert_issue(check_profile(to, query_profile(from), NULL), t);
    migrate_to(from, to, "{ 'warnings-as-errors': true }");
    rsp = wait_status(from, "failed");
    ram = qdict_get_qdict(rsp, "ram");
    g_assert_true(!ram || qdict_get_int(ram, "transferred") == 0);
    qobject_unref(rsp);
    g_assert_true(is_running(from));
    assert_issue(wait_handshake(from, "rejected"), t);
    assert_issue(wait_handshake(to, "rejected"), t);
    assert_listening(to);
    stop_both(from, to);
}

/* It is for that one difference */
static void test_same(const void *opaque)
{
    const char *opts = opaque;
    QTestState *to = start(opts, true);
    QTestState *from = start(opts, false);

    assert_no_issue(check_to(from, to, NULL));
    migrate_to(from, to, "{ 'warnings-as-errors': true }");
    wait_completed(from, to);
    stop_both(from, to);
}

/* Takes @info */
static void assert_no_error(QDict *info)
{
    const QListEntry *entry;

    QLIST_FOREACH_ENTRY(qdict_get_qlist(info, "issues"), entry) {
        const QDict *issue = qobject_to(QDict, qlist_entry_obj(entry));

        if (matches(issue, "severity", "error")) {
            g_test_message("%s", qdict_get_str(issue, "message"));
            g_assert_not_reached();
        }
    }
    qobject_unref(info);
}

static void assert_accepted(QTestState *from, QTestState *to)
{
    assert_no_error(check_to(from, to, NULL));
    migrate_to(from, to, NULL);
    wait_completed(from, to);
    stop_both(from, to);
}

static void test_accepted(const void *opaque)
{
    const ArchAccepted *t = opaque;
    QTestState *to = start(t->destination, true);

    assert_accepted(start(t->source, false), to);
}

/*
 * A guest that knows nothing newer has its CPUs in the mode of an older one,
 * and a machine with capabilities by default that the older CPU does not have.
 */
static void test_ppc64_guest_mode(void)
{
    QTestState *to = start("-cpu power7 -machine cap-sbbc=workaround,"
                           "cap-ibs=workaround", true);
    QTestState *from = start("-cpu power8 -machine cap-cfpc=workaround,"
                             "cap-ibs=workaround", false);

    qtest_qmp_assert_success(from,
        "{ 'execute': 'qom-set', 'arguments': { 'path': '/machine',"
        "  'property': 'max-cpu-compat', 'value': 'power7' } }");
    qtest_system_reset(from);
    assert_accepted(from, to);
}

/* Devices that stand in one machine */
#define TWINS_MAX   16

static QTestState *start_twin(bool incoming)
{
    g_autoptr(GString) ports = g_string_new("");

    for (int i = 0; arch->root_ports && i < TWINS_MAX; i++) {
        g_string_append_printf(ports, "-device pcie-root-port,id=port%d,"
                               "chassis=%d ", i, i + 1);
    }
    return start(ports->str, incoming);
}

/* Each device that there is, against its like: there is nothing to be said */
static void test_twins(void)
{
    QTestState *to = start_twin(true);
    QTestState *from = start_twin(false);
    QDict *types = types_of(from, "device");
    const QDictEntry *entry;
    int added = 0, all = 0;

    for (entry = qdict_first(types); entry; entry = qdict_next(types, entry)) {
        const char *type = qdict_entry_key(entry);
        bool there = add_twin(from, type, added, arch->root_ports);

        g_assert_true(add_twin(to, type, added, arch->root_ports) == there);
        all += there;
        added += there;
        if (added == TWINS_MAX) {
            assert_twins(from, to);
            stop_both(from, to);
            to = start_twin(true);
            from = start_twin(false);
            added = 0;
        }
    }
    assert_twins(from, to);
    stop_both(from, to);
    g_test_message("%d devices", all);
    g_assert_cmpint(all, >, 10);
    qobject_unref(types);
}

void migration_test_add_handshake_arch(MigrationTestEnv *env)
{
    for (int i = 0; i < ARRAY_SIZE(archs); i++) {
        if (!strcmp(env->arch, archs[i].name)) {
            arch = &archs[i];
        }
    }
    for (const ArchTest *t = arch ? arch->tests : NULL; t && t->name; t++) {
        g_autofree char *path =
            g_strdup_printf("/migration/handshake/arch/%s", t->name);
        g_autofree char *same = g_strdup_printf("%s/same", path);

        qtest_add_data_func(path, t, test_promise);
        qtest_add_data_func(same, t->from, test_same);
    }
    for (const ArchAccepted *t = arch ? arch->accepted : none; t->name; t++) {
        g_autofree char *path =
            g_strdup_printf("/migration/handshake/arch/%s", t->name);

        qtest_add_data_func(path, t, test_accepted);
    }
    if (arch) {
        handshake_test_add("/migration/handshake/arch/twins", test_twins);
    }
    if (arch && !strcmp(arch->name, "ppc64")) {
        handshake_test_add("/migration/handshake/arch/guest-mode",
                           test_ppc64_guest_mode);
    }
}
