/*
 * QTest testcases for the migration handshake: what is said of two machines
 *
 * Every issue code that there is, provoked by two QEMUs where a command line
 * can do it, and by a scripted source where a QEMU would not say such a thing.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "qemu/units.h"
#include "qapi/error.h"
#include "qobject/qjson.h"
#include "qobject/qlist.h"
#include "libqtest.h"
#include "libqos/malloc-pc.h"
#include "libqos/pci-pc.h"
#include "libqos/virtio-pci.h"
#include "hw/pci/pci.h"
#include "standard-headers/linux/virtio_net.h"
#include "migration/framework.h"
#include "migration/handshake-util.h"
#include "migration/migration-qmp.h"
#include "migration/migration-util.h"

#define UUID_A  "6d696772-6174-696f-6e20-68616e647368"
#define UUID_B  "616b6520-7465-7374-2075-756964206262"

/* Those of docs/interop/migration-handshake.rst that QEMU emits */
static const char *const codes[] = {
    "protocol-version", "purpose", "required-feature", "busy", "machine-type",
    "arch", "page-size", "uuid", "stream-format", "capability-unknown",
    "capability-unsupported", "capability-conflict", "parameter-unknown",
    "parameter-value", "transport", "section-missing", "section-version",
    "section-extra", "ram-block-missing", "ram-block-size",
    "ram-block-page-size", "ram-block-extra", "bitmap-missing", "unmigratable",
};

#define GOOD_CORE   "'versions': [1], 'purpose': 'migrate', 'required': []"

/*
 * One issue, and how to get it.  Texts that are to be found are patterns with
 * * and ?; NULL: there must be none.  What is between two @ is the machine's:
 * see fill_in().
 */
typedef struct IssueTest {
    const char *code;
    const char *variant;        /* if there is more than one of that code */
    bool warning;
    const char *subject;
    const char *source;
    const char *destination;

    /* Two QEMUs: the options in which they differ */
    const char *from;
    const char *to;
    const char *capability;     /* set on the source */
    const char *unplug;         /* what to take from @to to make it good */
    const char *good;           /* options of a good source, if not @to */
    bool held;                  /* by another source */
    const char *device;         /* which the two binaries need to have */

    /* Or a scripted source: JSON, with ' for " */
    const char *core;           /* NULL: GOOD_CORE and features */
    const char *profile;
    bool needs_uffd;
    bool x86;                   /* of its machines only */
} IssueTest;

#define SCRIPTED(json)  .profile = json
#define REQUIRED(names) "'required-capabilities': [ " names " ]"

static const IssueTest tests[] = {
    {
        .code = "protocol-version", .subject = "versions",
        .source = "2, 3", .destination = "1",
        .core = "'versions': [2, 3], 'purpose': 'migrate', 'required': []",
        SCRIPTED(""),
    }, {
        .code = "purpose", .subject = "purpose",
        .source = "dance", .destination = "migrate, check",
        .core = "'versions': [1], 'purpose': 'dance', 'required': []",
        SCRIPTED(""),
    }, {
        .code = "required-feature", .subject = "warp-drive",
        .source = "required", .destination = "unknown",
        .core = "'versions': [1], 'purpose': 'migrate',"
                "'required': [ 'warp-drive', 'named-channels' ]",
        SCRIPTED(""),
    }, {
        .code = "busy", .subject = "session",
        .source = "a second one", .destination = "held by another source",
        .from = "", .to = "", .held = true,
    }, {
        .code = "machine-type", .subject = "machine",
        .source = "@other-type@*", .destination = "@type@*",
        .from = "@other-options@", .to = "",
    }, {
        .code = "arch", .subject = "arch",
        .source = "alpha", .destination = "@arch@",
        SCRIPTED("'arch': 'alpha'"),
    }, {
        .code = "page-size", .subject = "page-size",
        .source = "65536", .destination = "4096",
        SCRIPTED("'page-size': 65536"),
    }, {
        .code = "uuid", .warning = true, .subject = "uuid",
        .source = UUID_A, .destination = UUID_B,
        .from = "-uuid " UUID_A, .to = "-uuid " UUID_B,
    }, {
        .code = "uuid", .variant = "validated", .subject = "uuid",
        .source = UUID_A, .destination = UUID_B,
        .from = "-uuid " UUID_A, .to = "-uuid " UUID_B,
        .capability = "validate-uuid",
    }, {
        .code = "stream-format", .subject = "send-configuration",
        .source = "false", .destination = "true",
        .from = "-global migration.send-configuration=off", .to = "",
    }, {
        .code = "stream-format", .variant = "vmdesc",
        .subject = "suppress-vmdesc",
        .source = "false", .destination = "true",
        .from = "", .to = "-machine suppress-vmdesc=on",
    }, {
        .code = "stream-format", .variant = "no-vmdesc",
        .subject = "suppress-vmdesc",
        .source = "true", .destination = "false",
        .from = "-machine suppress-vmdesc=on", .to = "",
    }, {
        .code = "stream-format", .variant = "multifd",
        .subject = "multifd-flush-after-each-section",
        .source = "true", .destination = "false",
        .from = "-global migration.multifd-flush-after-each-section=on",
        .to = "", .capability = "multifd",
    }, {
        .code = "capability-unknown", .subject = "warp-drive",
        .source = "required", .destination = "unknown",
        SCRIPTED(REQUIRED("'warp-drive'")),
    }, {
        .code = "capability-unsupported", .subject = "x-colo",
        .source = "required", .destination = "not negotiable",
        SCRIPTED(REQUIRED("'x-colo'")),
    }, {
        .code = "capability-unsupported", .variant = "shared",
        .subject = "x-ignore-shared",
        .source = "a shared file", .destination = "not a shared file",
        SCRIPTED(REQUIRED("'x-ignore-shared'") ", 'ram-blocks': ["
                 "{ 'name': '@memory@', 'size': @size@, 'page-size': 4096,"
                 "  'shared-file': true, 'address': @start@ } ]"),
    }, {
        .code = "capability-conflict", .subject = "postcopy-ram",
        .source = "required", .destination = "conflict",
        SCRIPTED(REQUIRED("'x-ignore-shared', 'postcopy-ram'")),
        .needs_uffd = true,
    }, {
        .code = "parameter-unknown", .subject = "multifd-warp",
        .source = "9", .destination = "unknown",
        SCRIPTED(REQUIRED("'multifd'") ", 'parameters': [ {"
                 "  'capability': 'multifd', 'name': 'multifd-warp',"
                 "  'value': '9' } ]"),
    }, {
        .code = "parameter-value", .subject = "multifd-channels",
        .source = "0", .destination = "not possible",
        SCRIPTED(REQUIRED("'multifd'") ", 'parameters': [ {"
                 "  'capability': 'multifd', 'name': 'multifd-channels',"
                 "  'value': '0' } ]"),
    }, {
        .code = "transport", .subject = "multifd",
        .source = "needs further channels",
        .destination = "takes named ones only",
        .core = GOOD_CORE,
        SCRIPTED(REQUIRED("'multifd'")),
    }, {
        .code = "section-missing",
        .subject = "@first@/i6300esb_wdt",
        .source = "version *", .destination = "missing",
        .from = "-device i6300esb,addr=1", .to = "", .device = "i6300esb",
    }, {
        /* A CPU more */
        .code = "section-missing", .variant = "instance",
        .subject = "cpu 1", .source = "version *", .destination = "missing",
        .from = "-smp 2", .to = "",
    }, {
        .code = "section-missing", .variant = "conditional", .warning = true,
        .subject = "0000:00:01.0/warp 3",
        .source = "version 7", .destination = "missing",
        SCRIPTED("'sections': [ { 'name': '0000:00:01.0/warp', 'version': 7,"
                 "  'instances': [ 3 ], 'conditional': true } ]"),
    }, {
        .code = "section-version", .subject = "ram",
        .source = "5", .destination = "4",
        SCRIPTED("'sections': [ { 'name': 'ram', 'version': 5 } ]"),
    }, {
        .code = "section-version", .variant = "old", .subject = "ram",
        .source = "3", .destination = "4",
        SCRIPTED("'sections': [ { 'name': 'ram', 'version': 3 } ]"),
    }, {
        .code = "section-version", .variant = "range", .subject = "timer",
        .source = "9", .destination = "1 to 2",
        SCRIPTED("'sections': [ { 'name': 'timer', 'version': 9 } ]"),
    }, {
        .code = "section-extra", .warning = true,
        .subject = "@first@/i6300esb_wdt",
        .source = "missing", .destination = "present",
        .from = "", .to = "-device i6300esb,addr=1", .device = "i6300esb",
    }, {
        .code = "ram-block-missing", .subject = "@first@/vga.vram",
        .source = "16777216", .destination = "missing",
        .from = "-device VGA,addr=1,romfile=", .to = "", .device = "VGA",
    }, {
        .code = "ram-block-size", .subject = "@memory@",
        .source = "@more@", .destination = "@size@",
        .from = "-m @more@b", .to = "",
    }, {
        .code = "ram-block-size", .variant = "resizeable",
        .subject = "/rom@etc/acpi/tables", .x86 = true,
        .source = "4194304", .destination = "at most 2097152",
        SCRIPTED("'ram-blocks': [ { 'name': '/rom@etc/acpi/tables',"
                 "  'size': 4194304, 'resizeable': true } ]"),
    }, {
        .code = "ram-block-page-size", .subject = "@memory@",
        .source = "2097152", .destination = "4096",
        SCRIPTED(REQUIRED("'postcopy-ram'") ", 'ram-blocks': ["
                 "{ 'name': '@memory@', 'size': @size@,"
                 "  'page-size': 2097152 } ]"),
        .needs_uffd = true,
    }, {
        .code = "ram-block-extra", .warning = true,
        .subject = "@first@/vga.vram",
        .source = "missing", .destination = "16777216",
        .from = "", .to = "-device VGA,addr=1,romfile=", .device = "VGA",
    }, {
        .code = "bitmap-missing", .subject = "drive0",
        .source = "nightly", .destination = "missing",
        SCRIPTED(REQUIRED("'dirty-bitmaps'") ", 'bitmaps': [ {"
                 "  'node': 'drive0', 'name': 'nightly' } ]"),
    }, {
        .code = "unmigratable", .subject = "@first@*usb-wacom*",
        .destination = "not migratable",
        .from = "-device qemu-xhci,addr=1",
        .to = "-device qemu-xhci,addr=1 -device usb-wacom-tablet,id=tablet",
        .unplug = "tablet", .good = "-device qemu-xhci,addr=1",
        .device = "usb-wacom-tablet",
    }, {
        .code = "unmigratable", .variant = "source",
        .subject = "0000:00:01.0/nvme",
        .source = "not migratable",
        SCRIPTED("'unmigratable': [ '0000:00:01.0/nvme' ]"),
    },
};

static bool has_uffd;
static bool is_x86;

static char *fill_in(const char *text)
{
    const HandshakeMachine *m = handshake_machine();
    const struct {
        const char *word;
        char *value;
    } words[] = {
        { "@arch@", g_strdup(qtest_get_arch()) },
        { "@type@", g_strdup(m->type) },
        { "@other-type@", g_strdup(m->other_type) },
        { "@other-options@", g_strdup(m->other_options) },
        { "@memory@", g_strdup(m->memory) },
        { "@first@", g_strdup(m->first) },
        { "@size@", g_strdup_printf("%" PRIu64, m->size * MiB) },
        { "@more@", g_strdup_printf("%" PRIu64, m->more * MiB) },
        { "@start@", g_strdup_printf("%" PRIu64, m->memory_start) },
    };
    char *filled = g_strdup(text);

    for (int i = 0; i < ARRAY_SIZE(words); i++) {
        g_auto(GStrv) parts = g_strsplit(filled, words[i].word, -1);

        g_free(filled);
        filled = g_strjoinv(words[i].value, parts);
        g_free(words[i].value);
    }
    return filled;
}

static void assert_match(const QDict *issue, const char *member,
                         const char *pattern)
{
    const char *text = qdict_get_try_str(issue, member);
    g_autofree char *filled = pattern ? fill_in(pattern) : NULL;

    if (!pattern) {
        g_assert_null(text);
    } else if (!text || !g_pattern_match_simple(filled, text)) {
        g_error("'%s' is '%s', not '%s'", member, text, filled);
    }
}

/* @from is query-migrate's handshake, or a verdict */
static void assert_issue(const QDict *from, const IssueTest *t)
{
    g_autofree char *subject = fill_in(t->subject);
    const QListEntry *entry;

    QLIST_FOREACH_ENTRY(qdict_get_qlist(from, "issues"), entry) {
        QDict *issue = qobject_to(QDict, qlist_entry_obj(entry));

        if (strcmp(qdict_get_str(issue, "code"), t->code) ||
            !g_pattern_match_simple(subject,
                                    qdict_get_str(issue, "subject"))) {
            continue;
        }
        g_test_message("%s", qdict_get_str(issue, "message"));
        g_assert_cmpstr(qdict_get_str(issue, "severity"), ==,
                        t->warning ? "warning" : "error");
        assert_match(issue, "source", t->source);
        assert_match(issue, "destination", t->destination);
        g_assert_cmpstr(qdict_get_str(issue, "message"), !=, "");
        return;
    }
    g_error("no issue '%s' about '%s'", t->code, subject);
}

/* What was found is shown, or remains shown, by @who */
static void assert_shown(QTestState *who, const char *status,
                         const IssueTest *t)
{
    QDict *info = wait_handshake(who, status);

    assert_issue(info, t);
    qobject_unref(info);
}

/* A refusal has cost nothing */
static void assert_unharmed(QTestState *from)
{
    QDict *rsp = migrate_query(from);
    QDict *ram = qdict_get_qdict(rsp, "ram");

    g_assert_true(!ram || qdict_get_int(ram, "transferred") == 0);
    qobject_unref(rsp);
    g_assert_true(is_running(from));
    g_assert_false(capability_is_on(from, "return-path"));
}

static void assert_same(const QDict *a, const QDict *b, const char *member)
{
    QObject *in_a = qdict_get(a, member);
    QObject *in_b = qdict_get(b, member);

    if (!qobject_is_equal(in_a, in_b)) {
        g_autoptr(GString) text_a = qobject_to_json(in_a);
        g_autoptr(GString) text_b = qobject_to_json(in_b);

        g_error("'%s' is %s in one answer and %s in another", member,
                text_a->str, text_b->str);
    }
}

static QDict *strictly(bool strict)
{
    QDict *options = qdict_new();

    qdict_put_bool(options, "warnings-as-errors", strict);
    return options;
}

/* What is said before anybody tries to migrate */
typedef struct Forecast {
    QDict *checked;             /* over the wire */
    QDict *judged;              /* of a profile */
} Forecast;

static Forecast ask(QTestState *from, QTestState *to, bool strict)
{
    Forecast f = {
        .checked = check_to(from, to,
                            strict ? "'warnings-as-errors': true" : NULL),
        .judged = check_profile(to, query_profile(from), strictly(strict)),
    };

    assert_listening(to);
    return f;
}

/* Who tried was told the same; that is what @from shows.  Frees @f. */
static void assert_foretold(QTestState *from, Forecast *f)
{
    static const char *const members[] = {
        "capabilities", "declined", "issues"
    };
    QDict *rsp = migrate_query(from);
    const QDict *tried = qdict_get_qdict(rsp, "handshake");

    g_assert_false(qdict_get_bool(tried, "check-only"));
    for (int i = 0; i < ARRAY_SIZE(members); i++) {
        assert_same(tried, f->checked, members[i]);
        assert_same(tried, f->judged, members[i]);
    }
    assert_same(tried, f->checked, "status");
    g_assert_cmpstr(qdict_get_try_str(tried, "message"), ==,
                    qdict_get_try_str(f->checked, "message"));
    g_assert_cmpint(qdict_get_bool(f->judged, "compatible"), ==,
                    !strcmp(qdict_get_str(tried, "status"), "accepted"));
    qobject_unref(rsp);
    qobject_unref(f->judged);
    qobject_unref(f->checked);
}

static void assert_good_source(QTestState *to, const char *opts)
{
    QTestState *from = start_source(opts);

    assert_good_migration(from, to);
    qtest_quit(from);
}

static void assert_refused(QTestState *from, QTestState *to,
                           const IssueTest *t)
{
    Forecast forecast = { NULL };
    QDict *rsp;

    if (!t->held) {
        forecast = ask(from, to, t->warning);
    }
    migrate_to(from, to, t->warning ? "{ 'warnings-as-errors': true }" : NULL);
    rsp = wait_status(from, "failed");
    g_assert_nonnull(strstr(qdict_get_str(rsp, "error-desc"), "refused"));
    qobject_unref(rsp);
    assert_unharmed(from);
    assert_shown(from, "rejected", t);
    if (!t->held) {
        assert_shown(to, "rejected", t);
    }
    assert_listening(to);
    g_assert_false(capability_is_on(to, "return-path"));
    if (!t->held) {
        assert_foretold(from, &forecast);
    }
}

static void assert_warned(QTestState *from, QTestState *to, const IssueTest *t)
{
    Forecast forecast = ask(from, to, false);

    migrate_to(from, to, NULL);
    wait_completed(from, to);
    g_assert_true(is_running(to));
    assert_foretold(from, &forecast);
    assert_shown(from, "accepted", t);
    assert_shown(to, "accepted", t);
}

static void test_two_machines(const IssueTest *t)
{
    g_autofree char *opts = fill_in(t->from);
    QTestState *to = start_destination(t->to);
    QTestState *from = start_source(opts);
    ScriptedSource other;

    if (t->capability) {
        migrate_set_capability(from, t->capability, true);
    }
    if (t->held) {
        g_autofree char *port = destination_port(to);

        source_claim_session(&other, port, GOOD_HELLO);
    }
    /* As often as you like */
    assert_refused(from, to, t);
    assert_refused(from, to, t);
    if (t->held) {
        /* It is the other one that is shown on the destination */
        qobject_unref(wait_handshake(to, "in-progress"));
        source_close(&other);
        qobject_unref(wait_handshake(to, "cancelled"));
    }

    if (t->warning) {
        assert_warned(from, to, t);
    } else if (t->held) {
        assert_good_migration(from, to);
    } else {
        if (t->unplug) {
            qtest_qmp_device_del(to, t->unplug);
        }
        assert_good_source(to, t->good ?: t->to);
    }
    stop_both(from, to);
}

static char *make_hello(const IssueTest *t, bool strict)
{
    g_autofree char *profile = fill_in(t->profile);
    char *hello =
        g_strdup_printf("{ %s, 'warnings-as-errors': %s,"
                        "  'profile': { %s } }",
                        t->core ?: GOOD_CORE
                                   ", 'features': [ 'named-channels' ]",
                        strict ? "true" : "false", profile);

    return g_strdelimit(hello, "'", '"');
}

/* Says HELLO and returns the answer */
static QDict *scripted_hello(ScriptedSource *source, const char *port,
                             const IssueTest *t, bool strict, uint16_t *type)
{
    g_autofree char *hello = make_hello(t, strict);

    source_say_hello(source, port, hello);
    return source_read_verdict(source, type);
}

/* A HELLO is a profile as well; @answer is what came over the wire */
static void assert_same_profile(QTestState *to, const IssueTest *t, bool strict,
                                const QDict *answer)
{
    g_autofree char *hello = make_hello(t, strict);
    QDict *profile = qobject_to(QDict, qobject_from_json(hello, &error_abort));
    QDict *judged = check_profile(to, profile, strictly(strict));

    assert_same(answer, judged, "issues");
    g_assert_cmpint(qdict_get_bool(judged, "compatible"), ==,
                    t->warning && !strict);
    qobject_unref(judged);
}

static void test_scripted_source(const IssueTest *t)
{
    QTestState *to = start_destination("");
    g_autofree char *port = destination_port(to);
    ScriptedSource source;
    uint16_t type;
    QDict *answer;

    answer = scripted_hello(&source, port, t, t->warning, &type);
    g_assert_cmpint(type, ==, FRAME_REJECT);
    g_assert_cmpstr(qdict_get_str(answer, "message"), !=, "");
    assert_issue(answer, t);
    assert_same_profile(to, t, t->warning, answer);
    qobject_unref(answer);
    source_close(&source);
    assert_shown(to, "rejected", t);
    assert_listening(to);
    g_assert_false(capability_is_on(to, "return-path"));

    if (t->warning) {
        answer = scripted_hello(&source, port, t, false, &type);
        g_assert_cmpint(type, ==, FRAME_ACCEPT);
        assert_issue(answer, t);
        assert_shown(to, "in-progress", t);
        source_close(&source);
        assert_shown(to, "cancelled", t);
        assert_same_profile(to, t, false, answer);
        qobject_unref(answer);
    }
    assert_good_source(to, "");
    qtest_quit(to);
}

/* The name of the test that goes with tests[@i] */
static char *test_name(int i)
{
    return g_strdup_printf("%s%s%s", tests[i].code, tests[i].variant ? "-" : "",
                           tests[i].variant ?: "");
}

#define ISSUE_PATH  "/migration/handshake/issue/"

static void test_issue(const void *opaque)
{
    const char *path = opaque;
    const IssueTest *t = NULL;

    for (int i = 0; i < ARRAY_SIZE(tests); i++) {
        g_autofree char *name = test_name(i);

        if (!strcmp(path + strlen(ISSUE_PATH), name)) {
            t = &tests[i];
        }
    }
    if (t->needs_uffd && !has_uffd) {
        g_test_skip("no postcopy here");
    } else if (t->x86 && !is_x86) {
        g_test_skip("it is about a PC's own hardware");
    } else if (t->device && !qtest_has_device(t->device)) {
        g_test_skip("a device is not in this build");
    } else if (t->device && !strcmp(handshake_machine()->first, "none")) {
        g_test_skip("zpci keeps a machine with PCI devices from migrating");
    } else if (t->profile) {
        test_scripted_source(t);
    } else {
        test_two_machines(t);
    }
}

/* A code that nobody has provoked may not work */
static void test_coverage(void)
{
    unsigned used[ARRAY_SIZE(codes)] = { 0 };

    for (int i = 0; i < ARRAY_SIZE(tests); i++) {
        int j = 0;

        while (strcmp(codes[j], tests[i].code)) {
            j++;
            g_assert_cmpint(j, <, ARRAY_SIZE(codes));
        }
        used[j]++;
    }
    for (int j = 0; j < ARRAY_SIZE(codes); j++) {
        g_test_message("%s: %u", codes[j], used[j]);
        g_assert_cmpuint(used[j], >, 0);
    }
}

/* Several problems are all reported at once; the gravest is in error-desc */
static void test_all(void)
{
    static const IssueTest found[] = {
        {
            .code = "uuid", .subject = "uuid",
            .source = UUID_A, .destination = UUID_B,
        }, {
            .code = "stream-format", .subject = "send-configuration",
            .source = "false", .destination = "true",
        }, {
            .code = "section-missing", .subject = "@first@/i6300esb_wdt",
            .source = "version *", .destination = "missing",
        }, {
            .code = "ram-block-size", .subject = "@memory@",
            .source = "@more@", .destination = "@size@",
        }, {
            .code = "section-extra", .subject = "*:02.0/vga",
            .source = "missing", .destination = "present", .warning = true,
        }, {
            .code = "ram-block-extra", .subject = "*:02.0/vga.vram",
            .source = "missing", .destination = "16777216", .warning = true,
        },
    };
    g_autofree char *opts = NULL;
    QTestState *to, *from;
    QDict *rsp;

    if (!qtest_has_device("i6300esb") || !qtest_has_device("VGA")) {
        g_test_skip("a device is not in this build");
        return;
    }
    to = start_destination("-uuid " UUID_B " -device VGA,addr=2,romfile=");
    opts = fill_in("-uuid " UUID_A " -device i6300esb,addr=1 -m @more@b "
                   "-global migration.send-configuration=off");
    from = start_source(opts);
    migrate_set_capability(from, "validate-uuid", true);
    migrate_to(from, to, NULL);
    rsp = wait_status(from, "failed");
    g_assert_nonnull(strstr(qdict_get_str(rsp, "error-desc"),
                            "4 problems and 2 warnings"));
    qobject_unref(rsp);
    assert_unharmed(from);
    for (int i = 0; i < ARRAY_SIZE(found); i++) {
        assert_shown(from, "rejected", &found[i]);
        assert_shown(to, "rejected", &found[i]);
    }
    rsp = wait_handshake(from, "rejected");
    g_assert_cmpint(qlist_size(qdict_get_qlist(rsp, "issues")), ==,
                    ARRAY_SIZE(found));
    qobject_unref(rsp);
    assert_listening(to);
    assert_good_source(to, "-uuid " UUID_B " -device VGA,addr=2,romfile=");
    stop_both(from, to);
}

/* Nothing at all was found on either side; returns what the source shows */
static QDict *assert_agreed(QTestState *from, QTestState *to)
{
    for (int side = 0; ; side++) {
        QDict *info = wait_handshake(side ? from : to, "accepted");
        QList *issues;

        if (qdict_get_bool(info, "check-only")) {
            drop_untried(info);
        }
        issues = qdict_get_qlist(info, "issues");
        if (!qlist_empty(issues)) {
            g_autoptr(GString) json = qobject_to_json(QOBJECT(issues));

            g_error("unexpected issues: %s", json->str);
        }
        if (side) {
            return info;
        }
        qobject_unref(info);
    }
}

/* What somebody who knows better has ignored */

#define DISK(node)  "-blockdev null-co,size=1048576,node-name=" node

static QTestState *start_source_with_bitmap(void)
{
    QTestState *from = start_source(DISK("disk"));

    qtest_qmp_assert_success(from, "{ 'execute': 'block-dirty-bitmap-add',"
                             "  'arguments': { 'node': 'disk',"
                             "                 'name': 'nightly' } }");
    migrate_set_capability(from, "dirty-bitmaps", true);
    return from;
}

/* @words: a JSON list */
static QDict *ignoring(const char *words, bool strict)
{
    QDict *options = strictly(strict);

    qdict_put_obj(options, "ignore-issues",
                  qobject_from_json(words, &error_abort));
    return options;
}

/* Returns whether a check, over the wire and of a profile, is passed */
static bool may_migrate(QTestState *from, QTestState *to, const char *words,
                        bool strict)
{
    g_autofree char *options =
        g_strdup_printf("'ignore-issues': %s, 'warnings-as-errors': %s", words,
                        strict ? "true" : "false");
    QDict *checked = check_to(from, to, options);
    QDict *judged = check_profile(to, query_profile(from),
                                  ignoring(words, strict));
    bool ok = !strcmp(qdict_get_str(checked, "status"), "accepted");

    g_assert_true(qdict_get_bool(judged, "compatible") == ok);
    assert_same(checked, judged, "issues");
    qobject_unref(checked);
    qobject_unref(judged);
    assert_listening(to);
    return ok;
}

static void assert_ignored(QTestState *who, const char *code, bool ignored)
{
    QDict *info = wait_handshake(who, "accepted");
    QDict *issue = find_issue(info, code);

    g_assert_nonnull(issue);
    g_assert_cmpstr(qdict_get_str(issue, "severity"), ==, "warning");
    g_assert_true(g_str_has_suffix(qdict_get_str(issue, "message"),
                                   " (ignored)") == ignored);
    qobject_unref(info);
}

static void test_ignored(void)
{
    QTestState *to = start_destination("-uuid " UUID_B " " DISK("other"));
    QTestState *from = start_source_with_bitmap();
    g_autofree char *text = NULL;

    g_assert_false(may_migrate(from, to, "[]", false));
    g_assert_false(may_migrate(from, to, "[ 'uuid', 'disk' ]", false));
    g_assert_false(may_migrate(from, to, "[ 'bitmap-missing:other' ]", false));
    g_assert_true(may_migrate(from, to, "[ 'bitmap-missing' ]", false));
    g_assert_true(may_migrate(from, to, "[ 'bitmap-missing' ]", true));
    g_assert_true(may_migrate(from, to, "[ 'bitmap-missing:disk' ]", true));

    migrate_to(from, to, "{ 'ignore-issues': [ 'bitmap-missing:disk' ],"
                         "  'warnings-as-errors': true }");
    wait_completed(from, to);
    for (int side = 0; side < 2; side++) {
        QTestState *who = side ? to : from;

        assert_ignored(who, "bitmap-missing", true);
        g_free(text);
        text = qtest_hmp(who, "info migrate");
        g_assert_nonnull(strstr(text, "handshake warning: bitmap-missing: "));
        g_assert_nonnull(strstr(text, " (ignored)"));
    }
    stop_both(from, to);
}

/* A warning is one for warnings-as-errors, unless it is ignored, too */
static void test_ignored_warning(void)
{
    g_autofree char *words = NULL;
    QTestState *to, *from;

    if (!qtest_has_device("i6300esb")) {
        g_test_skip("a device is not in this build");
        return;
    }
    to = start_destination("-uuid " UUID_B);
    from = start_source("-uuid " UUID_A " -device i6300esb,addr=1");
    g_assert_false(may_migrate(from, to, "[ 'uuid' ]", true));
    g_assert_false(may_migrate(from, to, "[ 'section-missing' ]", true));
    g_assert_true(may_migrate(from, to, "[ 'section-missing' ]", false));
    qobject_unref(check_to(from, to, "'ignore-issues': [ 'section-missing' ]"));
    assert_ignored(to, "section-missing", true);
    assert_ignored(to, "uuid", false);
    g_assert_true(may_migrate(from, to, "[ 'section-missing', 'uuid' ]", true));
    words = fill_in("[ 'uuid:uuid', 'section-missing:"
                    "@first@/i6300esb_wdt' ]");
    g_assert_true(may_migrate(from, to, words, true));
    assert_ignored(from, "uuid", true);
    assert_ignored(to, "section-missing", true);
    stop_both(from, to);
}

/* Whoever mistypes is told so, before anything has begun */
static void test_ignored_words(void)
{
    static const char *const words[] = {
        "busy", "machine-type", "section-mising", "cpu:", "no-return", "all",
    };
    QTestState *to = start_destination("");
    QTestState *from = start_source("");

    for (int i = 0; i < ARRAY_SIZE(words); i++) {
        g_autofree char *json = g_strdup_printf("[ 'cpu', '%s' ]", words[i]);
        g_autofree char *expected = g_strdup_printf("'%s' cannot be ignored",
                                                    words[i]);

        for (int ask = 0; ask < 2; ask++) {
            QTestState *who = ask ? to : from;
            QDict *err;
            QDict *rsp;

            if (ask) {
                err = qtest_qmp_assert_failure_ref(
                    to, "{ 'execute': 'check-migrate-profile',"
                    "  'arguments': { 'profile': %p, 'options': %p } }",
                    query_profile(from), ignoring(json, false));
            } else {
                err = qtest_qmp_assert_failure_ref(
                    from, "{ 'execute': 'migrate', 'arguments': {"
                    "  'channels': [ " TCP_LISTEN " ], 'handshake': %p } }",
                    ignoring(json, false));
            }
            g_assert_true(g_str_has_prefix(qdict_get_str(err, "desc"),
                                           expected));
            qobject_unref(err);
            rsp = migrate_query(who);
            g_assert_false(qdict_haskey(rsp, "handshake"));
            qobject_unref(rsp);
        }
    }
    stop_both(from, to);
}

/* A source of another mind gets no further than a user of QEMU does */
static void test_ignored_anyway(void)
{
    static const char *const hello =
        "{ \"versions\": [1], \"purpose\": \"check\", \"required\": [],"
        "  \"ignore\": [ \"machine-type\", \"busy\", \"of-a-later-version\" ],"
        "  \"profile\": { \"machine\": \"warp-drive\" } }";
    QTestState *to = start_destination("");
    g_autofree char *port = destination_port(to);
    ScriptedSource source;
    uint16_t type;
    QDict *answer, *issue;

    source_say_hello(&source, port, hello);
    answer = source_read_verdict(&source, &type);
    g_assert_cmpint(type, ==, FRAME_REJECT);
    issue = find_issue(answer, "machine-type");
    g_assert_cmpstr(qdict_get_str(issue, "severity"), ==, "error");
    g_assert_null(strstr(qdict_get_str(issue, "message"), "ignored"));
    qobject_unref(answer);
    source_close(&source);
    qtest_quit(to);
}

/* Whether the guest could come back */

static void assert_no_return(QTestState *who, const char *subject)
{
    QDict *info = wait_handshake(who, "accepted");
    QDict *issue = find_issue(info, "no-return");

    if (subject) {
        g_assert_nonnull(issue);
        g_assert_cmpstr(qdict_get_str(issue, "severity"), ==, "info");
        assert_match(issue, "subject", subject);
        g_test_message("%s", qdict_get_str(issue, "message"));
    } else {
        g_assert_null(issue);
    }
    qobject_unref(info);
}

static void test_no_return(void)
{
    static const IssueTest missing = {
        .code = "section-missing", .subject = "@first@/i6300esb_wdt",
        .source = "version *", .destination = "missing",
    };
    QTestState *to, *from;
    g_autofree char *text = NULL;
    QDict *info;

    if (!qtest_has_device("i6300esb") || !qtest_has_device("VGA")) {
        g_test_skip("a device is not in this build");
        return;
    }
    to = start_destination("-device VGA,addr=2,romfile= "
                           "-device i6300esb,addr=1");
    from = start_source("-device VGA,addr=2,romfile=");

    /* It is not worth a word where the guest does not even get there */
    info = check_to(from, to, "'warnings-as-errors': true");
    g_assert_cmpstr(qdict_get_str(info, "status"), ==, "rejected");
    g_assert_nonnull(find_issue(info, "section-extra"));
    g_assert_null(find_issue(info, "no-return"));
    qobject_unref(info);

    /* It is no reason to refuse, be it alone */
    info = check_to(from, to, "'warnings-as-errors': true,"
                    "'ignore-issues': [ 'section-extra' ]");
    g_assert_cmpstr(qdict_get_str(info, "status"), ==, "accepted");
    g_assert_nonnull(find_issue(info, "no-return"));
    qobject_unref(info);

    migrate_to(from, to, NULL);
    wait_completed(from, to);
    assert_no_return(from, missing.subject);
    assert_no_return(to, missing.subject);
    text = qtest_hmp(from, "info migrate");
    g_assert_nonnull(strstr(text, "handshake info: no-return: "));

    /* So it is */
    qtest_quit(from);
    from = start_destination("-device VGA,addr=2,romfile=");
    migrate_to(to, from, NULL);
    qobject_unref(wait_status(to, "failed"));
    assert_shown(to, "rejected", &missing);
    assert_shown(from, "rejected", &missing);

    /* And without that device it can go, and come back */
    qtest_quit(to);
    to = start_source("-device VGA,addr=2,romfile=");
    migrate_to(to, from, NULL);
    wait_completed(to, from);
    assert_no_return(to, NULL);
    assert_no_return(from, NULL);
    stop_both(from, to);
}

/* An older QEMU's sections, and some that may not be sent */
static void test_no_return_version(void)
{
    static const struct {
        const char *section;
        bool newer;             /* the destination's */
    } cases[] = {
        { "'name': 'timer', 'version': 1", true },
        { "'name': 'timer', 'version': 1, 'conditional': true", false },
        { "'name': 'timer', 'version': 2", false },
    };
    QTestState *to = start_destination("");
    g_autofree char *port = destination_port(to);

    for (int i = 0; i < ARRAY_SIZE(cases); i++) {
        g_autofree char *hello = g_strdup_printf(
            "{ " GOOD_CORE ", 'profile': { 'sections': [ { %s } ] } }",
            cases[i].section);
        bool newer = cases[i].newer;
        ScriptedSource source;
        uint16_t type;
        QDict *answer, *issue;

        g_strdelimit(hello, "'", '"');
        source_say_hello(&source, port, hello);
        answer = source_read_verdict(&source, &type);
        g_assert_cmpint(type, ==, FRAME_ACCEPT);
        issue = find_issue(answer, "no-return");
        g_assert_nonnull(issue);
        /* Else it is another section, which this source does not have */
        g_assert_true(!strcmp(qdict_get_str(issue, "subject"), "timer") ==
                      newer);
        g_assert_cmpstr(qdict_get_str(issue, "source"), ==,
                        newer ? "version 1" : "missing");
        qobject_unref(answer);
        source_close(&source);
        qobject_unref(wait_handshake(to, "cancelled"));
    }
    qtest_quit(to);
}

/* Dirty bitmaps, which are lost if their nodes are not there */

static bool has_bitmap(QTestState *who, const char *node, const char *name)
{
    QDict *rsp = qtest_qmp(who, "{ 'execute': 'query-named-block-nodes' }");
    const QListEntry *entry, *item;
    bool found = false;

    QLIST_FOREACH_ENTRY(qdict_get_qlist(rsp, "return"), entry) {
        QDict *info = qobject_to(QDict, qlist_entry_obj(entry));
        QList *bitmaps = qdict_get_qlist(info, "dirty-bitmaps");

        if (bitmaps && !strcmp(qdict_get_str(info, "node-name"), node)) {
            QLIST_FOREACH_ENTRY(bitmaps, item) {
                QDict *bitmap = qobject_to(QDict, qlist_entry_obj(item));

                found |= !strcmp(qdict_get_str(bitmap, "name"), name) &&
                         !qdict_get_bool(bitmap, "busy");
            }
        }
    }
    qobject_unref(rsp);
    return found;
}

static void map_bitmap(QTestState *who, const char *node, const char *alias,
                       const char *name, const char *bitmap_alias)
{
    qtest_qmp_assert_success(
        who, "{ 'execute': 'migrate-set-parameters', 'arguments': {"
        "  'block-bitmap-mapping': [ { 'node-name': %s, 'alias': %s,"
        "    'bitmaps': [ { 'name': %s, 'alias': %s } ] } ] } }",
        node, alias, name, bitmap_alias);
}

/* Both sides show the same issue, or none, and a migration ends accordingly */
static void assert_bitmap(QTestState *from, QTestState *to, const char *node,
                          const char *name, bool fits)
{
    IssueTest missing = {
        .code = "bitmap-missing", .subject = node,
        .source = name, .destination = "missing",
    };

    g_assert_true(may_migrate(from, to, "[]", true) == fits);
    if (!fits) {
        assert_shown(from, "rejected", &missing);
        assert_shown(to, "rejected", &missing);
        migrate_to(from, to, NULL);
        qobject_unref(wait_status(from, "failed"));
        assert_shown(from, "rejected", &missing);
        assert_unharmed(from);
    }
}

static void assert_told(QTestState *from, const char *node, const char *name)
{
    QDict *profile = query_profile(from);
    QList *bitmaps = qdict_get_qlist(qdict_get_qdict(profile, "profile"),
                                     "bitmaps");

    if (node) {
        QDict *bitmap;

        g_assert_nonnull(bitmaps);
        bitmap = qobject_to(QDict, qlist_peek(bitmaps));
        g_assert_cmpint(qlist_size(bitmaps), ==, 1);
        g_assert_cmpstr(qdict_get_str(bitmap, "node"), ==, node);
        g_assert_cmpstr(qdict_get_str(bitmap, "name"), ==, name);
    } else {
        g_assert_null(bitmaps);
    }
    qobject_unref(profile);
    /* It has only been looked at */
    g_assert_true(has_bitmap(from, "disk", "nightly"));
}

static void test_bitmap(void)
{
    QTestState *to = start_destination(DISK("other"));
    QTestState *from = start_source_with_bitmap();
    QDict *info;

    assert_told(from, "disk", "nightly");
    assert_bitmap(from, to, "disk", "nightly", false);

    /* Where it is only wished for, it is done without */
    migrate_set_capability(from, "dirty-bitmaps", false);
    info = check_to(from, to, "'optional-capabilities': [ 'dirty-bitmaps' ]");
    g_assert_cmpstr(qdict_get_str(info, "status"), ==, "accepted");
    g_assert_nonnull(strstr(declined_reason(info, "dirty-bitmaps"),
                            "does not have node 'disk'"));
    g_assert_null(find_issue(info, "bitmap-missing"));
    qobject_unref(info);
    g_assert_true(may_migrate(from, to, "[]", true));
    migrate_set_capability(from, "dirty-bitmaps", true);

    /* A node that comes later is good as well */
    qtest_qmp_assert_success(to, "{ 'execute': 'blockdev-add', 'arguments': {"
                             "  'driver': 'null-co', 'node-name': 'disk',"
                             "  'size': 1048576 } }");
    assert_bitmap(from, to, "disk", "nightly", true);
    migrate_to(from, to, NULL);
    wait_completed(from, to);
    g_assert_true(has_bitmap(to, "disk", "nightly"));
    stop_both(from, to);
}

static void test_bitmap_alias(void)
{
    QTestState *to = start_destination(DISK("other"));
    QTestState *from = start_source_with_bitmap();

    /* The source has names of its own for the wire */
    map_bitmap(from, "disk", "vda", "nightly", "b0");
    assert_told(from, "vda", "b0");
    assert_bitmap(from, to, "vda", "b0", false);

    /* The destination has others; a node is not enough */
    map_bitmap(to, "gone", "vda", "mine", "b0");
    assert_bitmap(from, to, "vda", "b0", false);
    map_bitmap(to, "other", "disk", "mine", "b0");
    assert_bitmap(from, to, "vda", "b0", false);
    map_bitmap(to, "other", "vda", "mine", "b1");
    assert_bitmap(from, to, "vda", "b0", false);
    map_bitmap(to, "other", "vda", "mine", "b0");
    assert_bitmap(from, to, "vda", "b0", true);

    /* What the source does not map stays there */
    map_bitmap(from, "else", "vdb", "nightly", "b0");
    assert_told(from, NULL, NULL);
    assert_bitmap(from, to, NULL, NULL, true);

    map_bitmap(from, "disk", "vda", "nightly", "b0");
    migrate_to(from, to, NULL);
    wait_completed(from, to);
    g_assert_true(has_bitmap(to, "other", "mine"));
    stop_both(from, to);
}

/* A device's name is as good as that of its node */
static void test_bitmap_device(void)
{
    QTestState *to = start_destination(
        "-drive if=none,id=drive0,driver=null-co,size=1048576");
    QTestState *from = start_source(
        "-drive if=none,id=drive0,driver=null-co,size=1048576");

    qtest_qmp_assert_success(from, "{ 'execute': 'block-dirty-bitmap-add',"
                             "  'arguments': { 'node': 'drive0',"
                             "                 'name': 'nightly' } }");
    migrate_set_capability(from, "dirty-bitmaps", true);
    assert_bitmap(from, to, "drive0", "nightly", true);
    migrate_to(from, to, NULL);
    wait_completed(from, to);
    stop_both(from, to);
}

/* A device whose state does not migrate is nobody's business */
static void test_idle(void)
{
    QTestState *to, *from;

    if (!qtest_has_device("ramfb")) {
        g_test_skip("a device is not in this build");
        return;
    }
    to = start_destination("");
    from = start_source("-device ramfb,x-migrate=off");
    assert_good_migration(from, to);
    qobject_unref(assert_agreed(from, to));
    stop_both(from, to);
}

/* A machine goes together with its like, of whatever version it is */

static unsigned tested_machines;

static void test_machine(const char *machine)
{
    const HandshakeMachine *m = handshake_machine();
    g_autofree char *opts = NULL;
    QTestState *to, *from;

    /* Those of the other type too, where that is not but an older one */
    if (!g_str_has_prefix(machine, m->type) &&
        !g_str_has_prefix(machine, m->other_type)) {
        return;
    }
    opts = g_strdup_printf("-machine %s -smp 2 -device virtio-rng "
                           "-device virtio-balloon%s%s", machine,
                           qtest_has_device("VGA")
                           ? " -device VGA,romfile=" : "",
                           qtest_has_device("e1000")
                           ? " -device e1000,romfile=" : "");
    g_test_message("%s", machine);
    to = start_destination(opts);
    from = start_source(opts);
    assert_good_migration(from, to);
    qobject_unref(assert_agreed(from, to));
    stop_both(from, to);
    tested_machines++;
}

static void test_every_machine(void)
{
    tested_machines = 0;
    qtest_cb_for_every_machine(test_machine, false);
    g_test_message("%u machine types", tested_machines);
    g_assert_cmpuint(tested_machines, >, 0);
}

/* Most of what is told is names, and it fits into TCP's first window */
static void test_length(void)
{
    const char *opts =
        "-blockdev null-co,size=1048576,node-name=disk "
        "-device virtio-blk,drive=disk -device virtio-scsi "
        "-device virtio-rng -device virtio-balloon "
        "-device virtio-serial -device virtio-gpu "
        "-device virtio-keyboard -device virtio-tablet "
        "-device virtio-mouse -device virtio-net";
    QTestState *to, *from;
    QDict *info;

    if (!qtest_has_device("virtio-gpu-device")) {
        g_test_skip("a device is not in this build");
        return;
    }
    to = start_destination(opts);
    from = start_source(opts);
    assert_good_migration(from, to);
    info = assert_agreed(from, to);
    g_test_message("ten virtio devices: %" PRId64 " bytes",
                   qdict_get_int(info, "bytes-sent"));
    /* Ten segments */
    g_assert_cmpint(qdict_get_int(info, "bytes-sent"), <, 14600);
    qobject_unref(info);
    stop_both(from, to);
}

/*
 * A machine of that many devices.  PCI devices take a minute to be made, since
 * each of them lays out the address space anew.
 */
static char *many_devices(unsigned count)
{
    g_autoptr(GString) opts = g_string_new("-device virtio-scsi,id=scsi");

    for (unsigned i = 0; i < count; i++) {
        g_string_append_printf(opts, " -device scsi-cd,bus=scsi.0,scsi-id=%u,"
                               "lun=%u", i / 2, i % 2);
    }
    return g_strdup(opts->str);
}

/* Microseconds that both sides may take for many devices */
#ifdef QEMU_SANITIZE_ADDRESS
#define MANY_DEVICES_TIME   INT64_MAX
#else
#define MANY_DEVICES_TIME   (50 * 1000)
#endif

/* The destination judges in its main loop: that must not take long */
static void test_many_devices(void)
{
    g_autofree char *opts = many_devices(500);
    QTestState *from = start_source(opts);
    int64_t best[2] = { INT64_MAX, INT64_MAX };

    /* Machines are busy, and it is not the scheduler that is measured */
    for (int i = 0; i < 4 || (i < 20 && MAX(best[0], best[1]) >=
                                        MANY_DEVICES_TIME); i++) {
        QTestState *to = start_destination(opts);

        assert_good_migration(from, to);
        for (int side = 0; side < 2; side++) {
            QDict *info = wait_handshake(side ? to : from, "accepted");
            int64_t time = qdict_get_int(info, "duration");

            best[side] = MIN(best[side], time);
            qobject_unref(info);
        }
        qobject_unref(assert_agreed(from, to));
        qtest_quit(from);
        from = to;
    }
    g_test_message("500 devices: %" PRId64 " us on the source, %" PRId64
                   " us on the destination", best[0], best[1]);
    g_assert_cmpint(best[0], <, MANY_DEVICES_TIME);
    g_assert_cmpint(best[1], <, MANY_DEVICES_TIME);
    qtest_quit(from);
}

/* A pair of cards, of which the primary one leaves before the guest moves */

#define FAILOVER \
    "-device pcie-root-port,id=root0,addr=1,chassis=1 " \
    "-device pcie-root-port,id=root1,addr=2,chassis=2 " \
    "-device virtio-net-pci,bus=root0,id=standby,failover=on,romfile= " \
    "-device virtio-net-pci,bus=root1,id=primary,failover_pair_id=standby"

#define ACPI_PCIHP_EJECT    (0x0cc0 + 8)

/* What a guest's driver does: without it there is no primary card */
static QVirtioPCIDevice *start_standby(QTestState *from, QPCIBus *bus)
{
    QPCIAddress addr = { .devfn = QPCI_DEVFN(1 << 5, 0) };
    QVirtioPCIDevice *card;
    uint64_t features;

    g_assert_cmpint(qpci_secondary_buses_init(bus), ==, 2);
    for (int slot = 1; slot <= 2; slot++) {
        QPCIDevice *port = qpci_device_find(bus, QPCI_DEVFN(slot, 0));

        g_assert_nonnull(port);
        qpci_device_enable(port);
        qpci_iomap(port, 4, NULL);
        g_free(port);
    }

    card = virtio_pci_new(bus, &addr);
    g_assert_nonnull(card);
    qvirtio_pci_device_enable(card);
    qvirtio_start_device(&card->vdev);
    features = qvirtio_get_features(&card->vdev);
    g_assert_true(features & (1ull << VIRTIO_NET_F_STANDBY));
    qvirtio_set_features(&card->vdev, features & ~QVIRTIO_F_BAD_FEATURE);
    qvirtio_set_driver_ok(&card->vdev);
    qtest_qmp_eventwait(from, "FAILOVER_NEGOTIATED");
    return card;
}

/* With more options for the primary card; @agrees: it need not be there */
static void do_test_failover(const char *primary, bool agrees)
{
    static const IssueTest missing = {
        .code = "ram-block-missing",
        .subject = "0000:00:02.0:00.0/virtio-net-pci.rom",
        .source = "*", .destination = "missing",
    };
    g_autofree char *opts = g_strconcat(FAILOVER, primary, NULL);
    QTestState *to, *from;
    QGuestAllocator alloc;
    QVirtioPCIDevice *card;
    QPCIBus *bus;

    if (!is_x86 || !qtest_has_device("pcie-root-port")) {
        g_test_skip("it is about a PC's own hardware");
        return;
    }
    to = start_destination(opts);
    from = start_source(opts);
    pc_alloc_init(&alloc, from, 0);
    bus = qpci_new_pc(from, &alloc);
    card = start_standby(from, bus);

    if (agrees) {
        /* A check is no migration: nobody is told to leave */
        qobject_unref(check_to(from, to, NULL));
        g_assert_null(qtest_qmp_event_ref(from, "UNPLUG_PRIMARY"));
        migrate_to(from, to, NULL);
        qobject_unref(assert_agreed(from, to));
        qtest_qmp_eventwait(from, "UNPLUG_PRIMARY");
        qobject_unref(wait_status(from, "wait-unplug"));
        qtest_outl(from, ACPI_PCIHP_EJECT, 1);
        wait_completed(from, to);
        qtest_qmp_eventwait(to, "FAILOVER_NEGOTIATED");
    } else {
        assert_refused(from, to, &missing);
    }

    qos_object_destroy((QOSGraphObject *)card);
    qpci_free_pc(bus);
    alloc_destroy(&alloc);
    stop_both(from, to);
}

static void test_failover(void)
{
    do_test_failover(",romfile=", true);
}

/* Its RAM is listed before it has left */
static void test_failover_rom(void)
{
    do_test_failover("", false);
}

/* What the two machines cannot do with each other is refused, or declined */
static void test_machine_property(void)
{
    QTestState *to = start_destination("");
    QTestState *from = start_source(
        "-global migration.multifd-flush-after-each-section=on");
    QDict *info;

    migrate_set_capability(from, "multifd", true);
    migrate_to(from, to, NULL);
    qobject_unref(wait_status(from, "failed"));
    info = wait_handshake(from, "rejected");
    g_assert_nonnull(find_issue(info, "stream-format"));
    qobject_unref(info);
    migrate_set_capability(from, "multifd", false);

    assert_good_migration(from, to);
    info = wait_handshake(from, "accepted");
    g_assert_nonnull(strstr(declined_reason(info, "multifd"),
                            "multifd-flush-after-each-section"));
    g_assert_null(find_issue(info, "stream-format"));
    qobject_unref(info);
    stop_both(from, to);
}

void migration_test_add_handshake_issues(MigrationTestEnv *env)
{
    if (!handshake_machine_or_null()) {
        return;
    }
    handshake_test_add("/migration/handshake/issues/machine-property",
                       test_machine_property);
    has_uffd = env->has_uffd;
    is_x86 = env->is_x86;

    for (int i = 0; i < ARRAY_SIZE(tests); i++) {
        g_autofree char *name = test_name(i);

        handshake_test_add_data(ISSUE_PATH, name, test_issue);
    }
    handshake_test_add("/migration/handshake/issues/coverage", test_coverage);
    handshake_test_add("/migration/handshake/issues/all", test_all);
    handshake_test_add("/migration/handshake/issues/ignored", test_ignored);
    handshake_test_add("/migration/handshake/issues/ignored-warning",
                       test_ignored_warning);
    handshake_test_add("/migration/handshake/issues/ignored-words",
                       test_ignored_words);
    handshake_test_add("/migration/handshake/issues/ignored-anyway",
                       test_ignored_anyway);
    handshake_test_add("/migration/handshake/issues/no-return", test_no_return);
    handshake_test_add("/migration/handshake/issues/no-return-version",
                       test_no_return_version);
    handshake_test_add("/migration/handshake/issues/bitmap", test_bitmap);
    handshake_test_add("/migration/handshake/issues/bitmap-alias",
                       test_bitmap_alias);
    handshake_test_add("/migration/handshake/issues/bitmap-device",
                       test_bitmap_device);
    handshake_test_add("/migration/handshake/issues/idle", test_idle);
    handshake_test_add("/migration/handshake/issues/machines",
                       test_every_machine);
    handshake_test_add("/migration/handshake/issues/length", test_length);
    handshake_test_add("/migration/handshake/issues/many-devices",
                       test_many_devices);
    handshake_test_add("/migration/handshake/issues/failover", test_failover);
    handshake_test_add("/migration/handshake/issues/failover-rom",
                       test_failover_rom);
}
