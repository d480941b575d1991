/*
 * Migration handshake: what is found in two profiles
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "qapi/error.h"
#include "qapi/qapi-visit-migration-handshake.h"
#include "qapi/qobject-input-visitor.h"
#include "qapi/util.h"
#include "qobject/qdict.h"
#include "qobject/qjson.h"
#include "qobject/qlist.h"
#include "migration/handshake/machine.h"
#include "migration/handshake/promises.h"
#include "migration/savevm.h"

/* A machine that all others are variations of */
static const char base[] =
    "{ 'qemu-version': '10.0.0', 'package': 'Debian', 'name': 'guest',"
    "  'arch': 'x86_64', 'machine': 'pc-q35-10.0',"
    "  'page-size': 4096, 'host-page-size': 4096,"
    "  'uuid': '00112233-4455-6677-8899-aabbccddeeff',"
    "  'capabilities': [ 'events' ],"
    "  'stream': { 'send-configuration': true, 'send-section-footer': true,"
    "              'suppress-vmdesc': true, 'store-global-state': true,"
    "              'multifd-flush-after-each-section': true,"
    "              'x-preempt-pre-7-2': true, 'send-switchover-start': true,"
    "              'switchover-ack-legacy': true,"
    "              'multifd-clean-tls-termination': true },"
    "  'sections': [ { 'name': 'timer', 'version': 2,"
    "                  'minimum-version': 2 } ],"
    "  'ram-blocks': [ { 'name': 'pc.ram', 'size': 1048576,"
    "                    'page-size': 4096 } ] }";

static const char *const capabilities[] = {
    "return-path", "multifd", "postcopy-ram", "postcopy-preempt",
    "x-ignore-shared", "switchover-ack", "dirty-bitmaps",
    "of-a-later-version", "",
};

static unsigned resolve_count;

/* A few names that this machine has for something else */
bool qemu_savevm_resolve_section(const char **name, uint32_t *instance)
{
    resolve_count++;
    if (!strcmp(*name, "0000:00:03.0/virtio-net")) {
        *name = "virtio-net";               /* an alias */
        *instance = *instance == 3 ? 0 : 9;
        return true;
    }
    if (!strcmp(*name, "slirp")) {
        *name = "net-user";                 /* its former name */
        return true;
    }
    /* What is found may not be in the profile */
    return !strcmp(*name, "here-and-gone");
}

/* Objects are merged, lists are appended, null takes a member away */
static void vary(QDict *to, const QDict *from)
{
    const QDictEntry *e;

    for (e = qdict_first(from); e; e = qdict_next(from, e)) {
        const char *key = qdict_entry_key(e);
        QObject *value = qdict_entry_value(e);
        QObject *old = qdict_get(to, key);
        const QListEntry *item;

        if (qobject_type(value) == QTYPE_QNULL) {
            qdict_del(to, key);
        } else if (old && qobject_type(value) == QTYPE_QDICT) {
            vary(qobject_to(QDict, old), qobject_to(QDict, value));
        } else if (old && qobject_type(value) == QTYPE_QLIST) {
            QLIST_FOREACH_ENTRY(qobject_to(QList, value), item) {
                qlist_append_obj(qobject_to(QList, old),
                                 qobject_ref(qlist_entry_obj(item)));
            }
        } else {
            qdict_put_obj(to, key, qobject_ref(value));
        }
    }
}

static QDict *dict_from(const char *json)
{
    return qobject_to(QDict, qobject_from_json(json, &error_abort));
}

/* @base with up to two variations */
static MigrationProfile *profile_from(const char *one, const char *two)
{
    const char *const variations[] = { one, two };
    g_autoptr(QDict) dict = dict_from(base);
    MigrationProfile *profile;
    Visitor *v;

    for (int i = 0; i < ARRAY_SIZE(variations); i++) {
        if (variations[i]) {
            g_autoptr(QDict) other = dict_from(variations[i]);

            vary(dict, other);
        }
    }
    v = qobject_input_visitor_new(QOBJECT(dict));
    visit_type_MigrationProfile(v, NULL, &profile, &error_abort);
    visit_free(v);
    return profile;
}

static strList *names_from(const char *text)
{
    g_auto(GStrv) names = g_strsplit(text ?: "", ",", -1);
    strList *list = NULL;
    strList **tail = &list;

    for (int i = 0; names[i]; i++) {
        QAPI_LIST_APPEND(tail, g_strdup(names[i]));
    }
    return list;
}

/* A person must find in the sentence what it is about */
static void check_sentence(const MigrationHandshakeIssue *issue)
{
    if (g_str_equal(issue->code, "cpu")) {
        /* Which one it is does not matter */
        g_assert_nonnull(strstr(issue->message, issue->source));
    } else if (!g_strcmp0(issue->source, "missing") ||
        !g_strcmp0(issue->destination, "missing") ||
        !issue->source || !issue->destination) {
        g_assert(!issue->subject || strstr(issue->message, issue->subject));
    } else {
        g_assert_nonnull(strstr(issue->message, issue->source));
        g_assert_nonnull(strstr(issue->message, issue->destination));
    }
    g_assert_cmpstr(issue->message, !=, "");
}

/* One a line: severity code subject: source -> destination */
static char *issues_text(const HandshakeIssues *issues)
{
    g_autoptr(GString) text = g_string_new(NULL);
    const MigrationHandshakeIssueList *l;

    for (l = issues->list; l; l = l->next) {
        const MigrationHandshakeIssue *issue = l->value;

        g_string_append_printf(text, "%s %s %s: %s -> %s\n",
                               issue->severity, issue->code,
                               issue->subject ?: "-", issue->source ?: "-",
                               issue->destination ?: "-");
        check_sentence(issue);
    }
    return g_strdup(text->str);
}

static unsigned count_errors(const MigrationProfile *src,
                             const MigrationProfile *dst,
                             const strList *effective)
{
    HandshakeIssues issues = { 0 };
    unsigned errors;

    handshake_compare(src, dst, effective, &issues);
    errors = issues.errors;
    handshake_issues_free(&issues);
    return errors;
}

/* A capability is in the way exactly if it makes an error more */
static void check_capabilities(const MigrationProfile *src,
                               const MigrationProfile *dst)
{
    unsigned errors = count_errors(src, dst, NULL);

    for (int i = 0; i < ARRAY_SIZE(capabilities); i++) {
        strList one = { .value = (char *)capabilities[i] };
        unsigned with = count_errors(src, dst, &one);
        Error *err = NULL;
        bool ok = handshake_compare_capability(src, dst, capabilities[i],
                                               &err);

        g_assert_cmpuint(with, >=, errors);
        g_assert(ok == (with == errors));
        g_assert(ok == !err);
        error_free(err);
    }
}

/* There is one reason at most, which refuses nothing */
static void check_return(const char *src, const char *dst,
                         const char *expected)
{
    g_autoptr(MigrationProfile) a = profile_from(src, NULL);
    g_autoptr(MigrationProfile) b = profile_from(dst, NULL);
    HandshakeIssues issues = { 0 };
    g_autofree char *text = NULL;

    handshake_compare_return(a, b, NULL, &issues);
    text = issues_text(&issues);
    g_assert_cmpstr(text, ==, expected ?: "");
    g_assert_cmpuint(issues.listed, ==, expected ? 1 : 0);
    g_assert_false(handshake_issues_refuse(&issues, true));
    handshake_issues_free(&issues);
}

static void check_profiles(const MigrationProfile *src,
                           const MigrationProfile *dst, const char *effective,
                           const char *expected)
{
    g_autoptr(strList) names = names_from(effective);
    HandshakeIssues issues = { 0 };
    g_autofree char *text = NULL;

    handshake_compare(src, dst, names, &issues);
    text = issues_text(&issues);
    g_assert_cmpstr(text, ==, expected ?: "");
    g_assert_cmpuint(issues.listed, ==, issues.errors + issues.warnings);
    handshake_issues_free(&issues);
    check_capabilities(src, dst);
}

/* The profiles are variations of @base; NULL: nothing is different, or found */
static void check(const char *src, const char *dst, const char *effective,
                  const char *expected)
{
    g_autoptr(MigrationProfile) a = profile_from(src, NULL);
    g_autoptr(MigrationProfile) b = profile_from(dst, NULL);

    check_profiles(a, b, effective, expected);
}

/* One member with another value, on either side */
static void check_value(const char *member, const char *a, const char *b,
                        const char *issue)
{
    g_autofree char *src = g_strdup_printf("{ '%s': '%s' }", member, a);
    g_autofree char *dst = g_strdup_printf("{ '%s': '%s' }", member, b);
    g_autofree char *there = g_strdup_printf("%s: %s -> %s\n", issue, a, b);
    g_autofree char *back = g_strdup_printf("%s: %s -> %s\n", issue, b, a);

    check(src, dst, NULL, there);
    check(dst, src, NULL, back);
    check(src, src, NULL, NULL);
    check(dst, dst, NULL, NULL);
}

static void test_same(void)
{
    check(NULL, NULL, NULL, NULL);
    check("{ 'capabilities': [ 'validate-uuid' ] }", NULL,
          "multifd,postcopy-ram,postcopy-preempt,x-ignore-shared", NULL);
    /* Nothing depends on these */
    check(NULL, "{ 'qemu-version': '11.1.0', 'package': 'qemu-kvm-11',"
                "  'name': 'other', 'host-page-size': 65536,"
                "  'capabilities': [ 'xbzrle' ],"
                "  'required-capabilities': [ 'multifd' ] }", NULL, NULL);
}

static void test_arch(void)
{
    static const char *const related[][2] = {
        { "x86_64", "i386" }, { "aarch64", "arm" }, { "ppc64", "ppc" },
        { "riscv64", "riscv32" }, { "mips", "mipsel" },
        { "mips64", "mips64el" }, { "mips", "mips64el" },
        { "sparc", "sparc64" },
    };
    static const char *const foreign[][2] = {
        { "x86_64", "aarch64" }, { "x86_64", "arm" }, { "i386", "ppc" },
        { "s390x", "x86_64" }, { "microblaze", "microblazeel" },
        { "mips", "sparc" }, { "x86_64", "x86" }, { "x86_64", "X86_64" },
        { "x86_64", "" }, { "what", "ever" },
    };

    for (int i = 0; i < ARRAY_SIZE(related); i++) {
        check_value("arch", related[i][0], related[i][1],
                    "warning arch arch");
    }
    for (int i = 0; i < ARRAY_SIZE(foreign); i++) {
        check_value("arch", foreign[i][0], foreign[i][1], "error arch arch");
    }
}

static void test_machine(void)
{
    static const char *const machines[][2] = {
        { "pc-q35-10.0", "pc-i440fx-10.0" },
        { "pc-q35-10.0", "pc-q35-9.2" },
        /* The stream's own check stops at the shorter one's end */
        { "pc-q35-4.0", "pc-q35-4.0.1" },
        { "pc-q35-1", "pc-q35-10.0" },
        { "pc-q35-10.0", "" },
        { "none", "None" },
    };

    for (int i = 0; i < ARRAY_SIZE(machines); i++) {
        check_value("machine", machines[i][0], machines[i][1],
                    "error machine-type machine");
    }
}

static void test_page_size(void)
{
    check(NULL, "{ 'page-size': 65536 }", NULL,
          "error page-size page-size: 4096 -> 65536\n");
    check("{ 'page-size': 18446744073709551615 }", NULL, NULL,
          "error page-size page-size: 18446744073709551615 -> 4096\n");
}

#define THIS_UUID   "00112233-4455-6677-8899-aabbccddeeff"
#define OTHER_UUID  "ffeeddcc-bbaa-9988-7766-554433221100"

static void test_uuid(void)
{
    check_value("uuid", THIS_UUID, OTHER_UUID, "warning uuid uuid");
    /* The source is the one that puts it into the stream */
    check(NULL, "{ 'uuid': '" OTHER_UUID "',"
                "  'capabilities': [ 'validate-uuid' ] }", NULL,
          "warning uuid uuid: " THIS_UUID " -> " OTHER_UUID "\n");
    check("{ 'uuid': '" OTHER_UUID "',"
          "  'capabilities': [ 'validate-uuid' ] }", NULL, NULL,
          "error uuid uuid: " OTHER_UUID " -> " THIS_UUID "\n");
    /* Where none was set there is nothing to compare */
    check("{ 'capabilities': [ 'validate-uuid' ] }", "{ 'uuid': null }",
          NULL, NULL);
    check("{ 'capabilities': [ 'validate-uuid' ], 'uuid': null }", NULL,
          NULL, NULL);
    /* The case of the digits is no difference */
    check("{ 'uuid': '00112233-4455-6677-8899-AABBCCDDEEFF' }", NULL,
          NULL, NULL);
}

static void test_stream(void)
{
    static const struct {
        const char *name;
        const char *capability;
    } properties[] = {
        { "send-configuration" },
        { "send-section-footer" },
        { "suppress-vmdesc" },
        { "multifd-flush-after-each-section", "multifd" },
        { "x-preempt-pre-7-2", "postcopy-preempt" },
        { "switchover-ack-legacy", "switchover-ack" },
    };

    for (int i = 0; i < ARRAY_SIZE(properties); i++) {
        const char *name = properties[i].name;
        const char *capability = properties[i].capability;
        g_autofree char *off = g_strdup_printf(
            "{ 'stream': { '%s': false }, 'capabilities': [ '%s' ] }", name,
            capability ?: "return-path");
        g_autofree char *absent = g_strdup_printf(
            "{ 'stream': { '%s': null } }", name);
        g_autofree char *there = g_strdup_printf(
            "error stream-format %s: true -> false\n", name);
        g_autofree char *back = g_strdup_printf(
            "error stream-format %s: false -> true\n", name);

        check(NULL, off, capability, there);
        check(off, NULL, capability, back);
        if (capability) {
            /* Neither without one, nor with another one */
            check(NULL, off, NULL, NULL);
            check(off, NULL, "postcopy-ram", NULL);
        }
        check(absent, off, capability, NULL);
        check(off, absent, capability, NULL);
        check(off, "{ 'stream': null }", capability, NULL);
        check(off, off, capability, NULL);
    }
}

/* A reader that copes with either is not asked */
static void test_stream_tolerated(void)
{
    const char *off = "{ 'stream': { 'store-global-state': false,"
                      "              'send-switchover-start': false,"
                      "              'multifd-clean-tls-termination': false }"
                      "}";

    check(NULL, off, "multifd,postcopy-ram,postcopy-preempt", NULL);
    check(off, NULL, "multifd,postcopy-ram,postcopy-preempt", NULL);
}

/* Two profiles that differ in everything but one member that a side lacks */
static void test_absent(void)
{
    static const struct {
        const char *member;
        const char *issue;
    } members[] = {
        { "arch", "error arch arch: x86_64 -> s390x\n" },
        { "machine", "error machine-type machine: pc-q35-10.0 -> virt\n" },
        { "page-size", "error page-size page-size: 4096 -> 8192\n" },
        { "stream", "error stream-format send-configuration: true -> false\n" },
        { "uuid", "warning uuid uuid: " THIS_UUID " -> " OTHER_UUID "\n" },
        { "sections", "warning section-extra extra: missing -> present\n" },
        { "ram-blocks", "warning ram-block-extra more: missing -> 4096\n" },
        { "name", "" },
    };
    const char *other =
        "{ 'arch': 's390x', 'machine': 'virt', 'page-size': 8192,"
        "  'uuid': '" OTHER_UUID "', 'name': 'other',"
        "  'stream': { 'send-configuration': false },"
        "  'sections': [ { 'name': 'extra', 'version': 1 } ],"
        "  'ram-blocks': [ { 'name': 'more', 'size': 4096,"
        "                    'page-size': 4096 } ] }";

    for (int i = 0; i < ARRAY_SIZE(members); i++) {
        g_autofree char *without = g_strdup_printf("{ '%s': null }",
                                                   members[i].member);
        g_autoptr(MigrationProfile) src = profile_from(without, NULL);
        g_autoptr(MigrationProfile) dst = profile_from(other, NULL);
        g_autoptr(MigrationProfile) same = profile_from(NULL, NULL);
        g_autoptr(MigrationProfile) less = profile_from(other, without);
        g_autoptr(GString) expected = g_string_new(NULL);

        for (int j = 0; j < ARRAY_SIZE(members); j++) {
            g_string_append(expected, i == j ? "" : members[j].issue);
        }
        check_profiles(src, dst, NULL, expected->str);
        check_profiles(same, less, NULL, expected->str);
    }
}

/* A peer of whom nothing is known, and one that lists nothing */
static void test_empty(void)
{
    g_autoptr(MigrationProfile) nothing = g_new0(MigrationProfile, 1);
    g_autoptr(MigrationProfile) machine = profile_from(NULL, NULL);
    const char *all = "multifd,postcopy-ram,postcopy-preempt,x-ignore-shared";

    check_profiles(nothing, nothing, all, NULL);
    check_profiles(nothing, machine, all, NULL);
    check_profiles(machine, nothing, all, NULL);
    nothing->has_sections = true;
    nothing->has_ram_blocks = true;
    check_profiles(nothing, machine, all, NULL);
    check_profiles(machine, nothing, NULL,
                   "error section-missing timer: version 2 -> missing\n"
                   "error ram-block-missing pc.ram: 1048576 -> missing\n");
}

/* All of it, errors first; and it is added to what was there */
static void test_all(void)
{
    g_autoptr(MigrationProfile) src = profile_from(NULL, NULL);
    g_autoptr(MigrationProfile) dst = profile_from(
        "{ 'uuid': '" OTHER_UUID "', 'arch': 'i386', 'machine': 'virt' }",
        NULL);
    HandshakeIssues issues = { 0 };

    for (int i = 1; i <= 2; i++) {
        handshake_compare(src, dst, NULL, &issues);
        g_assert_cmpuint(issues.errors, ==, i);
        g_assert_cmpuint(issues.warnings, ==, 2 * i);
        g_assert_cmpstr(issues.list->value->code, ==, "machine-type");
    }
    handshake_issues_free(&issues);
}

/* What a hostile peer says of itself does not get far */
static void test_hostile(void)
{
    g_autoptr(MigrationProfile) src = profile_from(NULL, NULL);
    g_autoptr(MigrationProfile) dst = profile_from(NULL, NULL);
    const MigrationHandshakeIssueList *l;
    HandshakeIssues issues = { 0 };

    g_free(src->machine);
    src->machine = g_strnfill(400000, 'm');
    g_free(src->arch);
    src->arch = g_strdup("x86\n64\033[2J");
    handshake_compare(src, dst, NULL, &issues);
    g_assert_cmpuint(issues.listed, ==, 2);
    for (l = issues.list; l; l = l->next) {
        g_assert_cmpuint(strlen(l->value->source), <=, 1024);
        g_assert_cmpuint(strlen(l->value->message), <=, 1024);
        g_assert_null(strpbrk(l->value->source, "\n\033"));
        g_assert_null(strpbrk(l->value->message, "\n\033"));
    }
    handshake_issues_free(&issues);
}

#define SECTION(more)   "{ 'sections': [ { 'name': 'apic', " more " } ] }"

static void test_section_missing(void)
{
    check(SECTION("'version': 11"), NULL, NULL,
          "error section-missing apic: version 11 -> missing\n");
    check(SECTION("'version': 11, 'conditional': true"), NULL, NULL,
          "warning section-missing apic: version 11 -> missing\n");
    /* It is there if it would read, whether or not it would write */
    check(SECTION("'version': 11"), SECTION("'version': 11"), NULL, NULL);
    check(SECTION("'version': 11"),
          SECTION("'version': 11, 'conditional': true"), NULL, NULL);
}

static void test_section_extra(void)
{
    check(NULL, SECTION("'version': 1"), NULL,
          "warning section-extra apic: missing -> present\n");
    /* The source may have it as well, and not send it either */
    check(NULL, SECTION("'version': 1, 'conditional': true"), NULL, NULL);
}

static void test_section_instances(void)
{
    check(SECTION("'version': 1, 'instances': [ 0, 1, 2, 3 ]"),
          SECTION("'version': 1, 'instances': [ 3, 2, 1, 0 ]"), NULL, NULL);
    /* No list is instance 0; an empty one is none */
    check(SECTION("'version': 1"), SECTION("'version': 1, 'instances': [ 0 ]"),
          NULL, NULL);
    check(SECTION("'version': 1, 'instances': []"), NULL, NULL, NULL);
    /* They need not be grouped in the same way */
    check(SECTION("'version': 1, 'instances': [ 0, 1, 2 ]"),
          "{ 'sections': [ { 'name': 'apic', 'version': 1 },"
          "  { 'name': 'apic', 'version': 1, 'instances': [ 1, 2 ],"
          "    'conditional': true } ] }", NULL, NULL);

    /* One CPU more */
    check(SECTION("'version': 1, 'instances': [ 0, 1, 4294967295 ]"),
          SECTION("'version': 1, 'instances': [ 0, 1 ]"), NULL,
          "error section-missing apic 4294967295: version 1 -> missing\n");
    check(SECTION("'version': 1, 'instances': [ 0, 1 ]"),
          SECTION("'version': 1, 'instances': [ 0, 1, 2 ]"), NULL,
          "warning section-extra apic 2: missing -> present\n");
    check(SECTION("'version': 1, 'instances': [ 0, 1 ]"),
          SECTION("'version': 2, 'minimum-version': 2,"
                  "'instances': [ 0, 1 ]"), NULL,
          "error section-version apic: 1 -> 2\n"
          "error section-version apic 1: 1 -> 2\n");
    /* Names may look like it */
    check("{ 'sections': [ { 'name': 'cpu 1', 'version': 1 } ] }",
          "{ 'sections': [ { 'name': 'cpu', 'version': 1,"
          "                  'instances': [ 1 ] } ] }", NULL,
          "error section-missing cpu 1: version 1 -> missing\n"
          "warning section-extra cpu 1: missing -> present\n");
}

static void test_section_version(void)
{
    static const struct {
        uint32_t sent, minimum, version;
        const char *range;      /* that is read; NULL if it fits */
    } table[] = {
        { 3, 3, 3, NULL },
        { 3, 1, 3, NULL },
        { 1, 1, 3, NULL },
        { 2, 1, 3, NULL },
        { 0, 0, 0, NULL },
        { UINT32_MAX, 0, UINT32_MAX, NULL },
        { 4, 3, 3, "3" },
        { 4, 1, 3, "1 to 3" },
        { 2, 3, 3, "3" },
        { 1, 2, 3, "2 to 3" },
        { 0, 1, 1, "1" },
        { UINT32_MAX, 0, 1, "0 to 1" },
        { 0, 1, UINT32_MAX, "1 to 4294967295" },
    };

    for (int i = 0; i < ARRAY_SIZE(table); i++) {
        g_autofree char *src = g_strdup_printf(
            SECTION("'version': %u, 'minimum-version': %u"),
            table[i].sent, table[i].sent / 2);
        g_autofree char *maybe = g_strdup_printf(
            SECTION("'version': %u, 'conditional': true"), table[i].sent);
        g_autofree char *dst = g_strdup_printf(
            SECTION("'version': %u, 'minimum-version': %u"),
            table[i].version, table[i].minimum);
        g_autofree char *error = g_strdup_printf(
            "error section-version apic: %u -> %s\n",
            table[i].sent, table[i].range);
        g_autofree char *warning = g_strdup_printf(
            "warning section-version apic: %u -> %s\n",
            table[i].sent, table[i].range);

        check(src, dst, NULL, table[i].range ? error : NULL);
        check(maybe, dst, NULL, table[i].range ? warning : NULL);
    }
    /* Who does not say how old it may be takes any */
    check(SECTION("'version': 0"), SECTION("'version': 9"), NULL, NULL);
}

static void test_section_resolved(void)
{
    const char *src =
        "{ 'sections': [ { 'name': '0000:00:03.0/virtio-net', 'version': 11,"
        "                  'instances': [ 3, 5 ] },"
        "                { 'name': 'slirp', 'version': 4 } ] }";
    const char *dst =
        "{ 'sections': [ { 'name': 'virtio-net', 'version': 11 },"
        "                { 'name': 'net-user', 'version': 4 } ] }";

    /* People know the name that the source has for it */
    check(src, dst, NULL, "error section-missing 0000:00:03.0/virtio-net 5: "
          "version 11 -> missing\n");
    check(src, "{ 'sections': [ { 'name': 'virtio-net', 'version': 11 },"
               "  { 'name': 'virtio-net', 'version': 10,"
               "    'instances': [ 9 ] },"
               "  { 'name': 'net-user', 'version': 4 } ] }", NULL,
          "error section-version 0000:00:03.0/virtio-net 5: 11 -> 0 to 10\n");
    check("{ 'sections': [ { 'name': 'here-and-gone', 'version': 1 } ] }",
          NULL, NULL,
          "error section-missing here-and-gone: version 1 -> missing\n");

    /* Where the names are the same, nobody is asked: it takes time */
    resolve_count = 0;
    check(src, src, NULL, NULL);
    g_assert_cmpuint(resolve_count, ==, 0);
}

static void test_return(void)
{
    const char *two = "{ 'sections': [ { 'name': 'hpet', 'version': 2 } ] }";
    const char *lacks = "info no-return apic: missing -> version 2\n";

    check_return(NULL, NULL, NULL);
    check_return(SECTION("'version': 2"), SECTION("'version': 2"), NULL);

    /* A version that the source does not know */
    check_return(SECTION("'version': 1"), SECTION("'version': 2"),
                 "info no-return apic: version 1 -> version 2\n");
    check_return(SECTION("'version': 2"), SECTION("'version': 1"), NULL);
    check_return(SECTION("'version': 1, 'instances': [ 0, 7 ]"),
                 "{ 'sections': [ { 'name': 'apic', 'version': 1 },"
                 "  { 'name': 'apic', 'version': 2, 'instances': [ 7 ] } ] }",
                 "info no-return apic 7: version 1 -> version 2\n");

    /* A section that it does not have */
    check_return(NULL, SECTION("'version': 2"), lacks);
    check_return(two, SECTION("'version': 2"), lacks);
    check_return(SECTION("'version': 2"), NULL, NULL);
    check_return(SECTION("'version': 2, 'instances': [ 0, 1 ]"),
                 SECTION("'version': 2, 'instances': [ 1, 2, 3 ]"),
                 "info no-return apic 2: missing -> version 2\n");

    /* What may not be sent promises nothing, on either side */
    check_return(NULL, SECTION("'version': 2, 'conditional': true"), NULL);
    check_return(SECTION("'version': 1"),
                 SECTION("'version': 2, 'conditional': true"), NULL);
    check_return(SECTION("'version': 1, 'conditional': true"),
                 SECTION("'version': 2"), NULL);

    /* Nor does what is not told */
    check_return("{ 'sections': null }", SECTION("'version': 2"), NULL);
    check_return(SECTION("'version': 2"), "{ 'sections': null }", NULL);

    /* The source may know another name as well as the loader here does */
    check_return("{ 'sections': [ { 'name': 'slirp', 'version': 4 } ] }",
                 "{ 'sections': [ { 'name': 'net-user', 'version': 4 } ] }",
                 NULL);
    check_return("{ 'sections': [ { 'name': 'slirp', 'version': 4 } ] }",
                 "{ 'sections': [ { 'name': 'net-user', 'version': 5 } ] }",
                 "info no-return net-user: version 4 -> version 5\n");
}

#define BITMAPS(list)   "{ 'bitmaps': [ " list " ] }"
#define DISK_B0         "{ 'node': 'disk', 'name': 'b0' }"
#define DISK_B1         "{ 'node': 'disk', 'name': 'b1' }"

static void test_bitmaps(void)
{
    static const char *const fine[] = {
        BITMAPS("{ 'node': 'disk' }"), BITMAPS(DISK_B0),
        BITMAPS("{ 'node': 'x' }, { 'node': 'disk', 'name': 'y' }, " DISK_B0),
        /* Nobody has looked */
        NULL,
    };
    const char *b0 = "error bitmap-missing disk: b0 -> missing\n";
    const char *b1 = "error bitmap-missing disk: b1 -> missing\n";

    for (int i = 0; i < ARRAY_SIZE(fine); i++) {
        check(BITMAPS(DISK_B0), fine[i], "multifd,dirty-bitmaps", NULL);
        check(NULL, fine[i], "dirty-bitmaps", NULL);
    }
    check(BITMAPS("{ 'node': 'disk' }"), BITMAPS(DISK_B1), "dirty-bitmaps",
          NULL);

    /* It matters with the capability only */
    check(BITMAPS(DISK_B0), BITMAPS(""), "dirty-bitmaps", b0);
    check(BITMAPS(DISK_B0), BITMAPS(""), "multifd", NULL);
    check(BITMAPS(DISK_B0), BITMAPS("{ 'node': 'b0' }"), "dirty-bitmaps", b0);
    check(BITMAPS(DISK_B0 ", " DISK_B1),
          BITMAPS(DISK_B0 ", { 'node': 'x', 'name': 'b1' }"), "dirty-bitmaps",
          b1);
    check(BITMAPS("{ 'node': 'disk' }"), BITMAPS(""), "dirty-bitmaps",
          "error bitmap-missing disk: ? -> missing\n");
}

/* @count instances of a section that does not exist */
static MigrationProfile *flood(const char *name, int count, bool same)
{
    MigrationProfile *profile = profile_from(NULL, NULL);
    MigrationProfileSection *section = g_new0(MigrationProfileSection, 1);

    section->name = g_strdup(name);
    section->version = 1;
    section->has_instances = true;
    for (int i = 0; i < count; i++) {
        QAPI_LIST_PREPEND(section->instances, same ? 3 : i);
    }
    QAPI_LIST_PREPEND(profile->sections, section);
    return profile;
}

#define FLOOD   16384

/* A peer's list may be long, and each look-up takes the loader's time */
static void test_section_flood(void)
{
    static const char *const names[] = { "warp", "0000:00:03.0/virtio-net" };
    g_autoptr(MigrationProfile) dst = profile_from(
        "{ 'sections': [ { 'name': 'virtio-net', 'version': 1 } ] }", NULL);

    for (int i = 0; i < ARRAY_SIZE(names); i++) {
        g_autoptr(MigrationProfile) src = flood(names[i], FLOOD, i);
        HandshakeIssues issues = { 0 };

        resolve_count = 0;
        handshake_compare(src, dst, NULL, &issues);
        g_assert_cmpuint(resolve_count, <=, HANDSHAKE_ISSUES_MAX + 1);
        g_assert_cmpuint(issues.listed, ==, HANDSHAKE_ISSUES_MAX);
        g_assert_cmpuint(issues.errors + issues.warnings, ==,
                         issues.listed + issues.omitted);
        handshake_issues_free(&issues);
    }
}

/* That time grows no faster than a machine does */
static void test_speed(void)
{
    g_autoptr(MigrationProfile) src = flood("apic", FLOOD, false);
    g_autoptr(MigrationProfile) dst = flood("apic", FLOOD, false);
    clock_t best = 0;

    for (int i = 0; i < 2048; i++) {
        MigrationProfileRAMBlock *a = g_new0(MigrationProfileRAMBlock, 1);
        MigrationProfileRAMBlock *b = g_new0(MigrationProfileRAMBlock, 1);

        a->name = g_strdup_printf("ram%d", i);
        b->name = g_strdup(a->name);
        QAPI_LIST_PREPEND(src->ram_blocks, a);
        QAPI_LIST_PREPEND(dst->ram_blocks, b);
    }
    for (int i = 0; i < 10; i++) {
        g_autoptr(strList) effective = names_from("postcopy-ram");
        HandshakeIssues issues = { 0 };
        clock_t time = clock();

        handshake_compare(src, dst, effective, &issues);
        time = clock() - time;
        g_assert_null(issues.list);
        best = i ? MIN(best, time) : time;
    }
    g_test_message("%d sections and 2048 RAM blocks: %.2f ms of CPU time",
                   FLOOD, best * 1000.0 / CLOCKS_PER_SEC);
#ifndef QEMU_SANITIZE_ADDRESS
    g_assert_cmpint(best, <, CLOCKS_PER_SEC / 10);
#endif
}

#define BLOCK(name, more) \
    "{ 'ram-blocks': [ { 'name': '" name "', 'page-size': 4096, " more " } ] }"

static void test_ram_missing(void)
{
    check(BLOCK("vram", "'size': 16777216"), NULL, NULL,
          "error ram-block-missing vram: 16777216 -> missing\n");
    check(NULL, BLOCK("vram", "'size': 16777216"), NULL,
          "warning ram-block-extra vram: missing -> 16777216\n");
    /* That of a device which is on its way out has not left by then */
    check(BLOCK("rom", "'size': 262144, 'conditional': true"), NULL, NULL,
          "error ram-block-missing rom: 262144 -> missing\n");
}

static void test_ram_size(void)
{
    static const struct {
        uint64_t sent;
        uint64_t size, max;     /* here; max 0: it is not resizeable */
        uint64_t target, host;  /* page sizes here; 0: unknown */
        const char *text;       /* what is here; NULL if it fits */
    } table[] = {
        { 8192, 8192, 0, 4096, 4096, NULL },
        { 0, 0, 0, 4096, 4096, NULL },
        { 8192, 4096, 0, 4096, 4096, "4096" },
        { 4096, 8192, 0, 4096, 4096, "8192" },
        /* One of smaller pages is enlarged ... */
        { 4097, 8192, 0, 4096, 4096, NULL },
        { 5000, 65536, 0, 4096, 65536, NULL },
        { 5000, 65536, 0, 65536, 4096, NULL },
        { 5000, 8192, 0, 4096, 0, NULL },
        /* ... no further than that */
        { 5000, 65536, 0, 4096, 4096, "65536" },
        { 65537, 65536, 0, 4096, 65536, "65536" },
        { 5000, 8192, 0, 0, 0, "8192" },
        { 5000, 5000, 0, 0, 0, NULL },
        /* One that may grow or shrink */
        { 4096, 8192, 65536, 4096, 4096, NULL },
        { 65536, 8192, 65536, 4096, 4096, NULL },
        { 61441, 8192, 65536, 4096, 4096, NULL },
        { 0, 8192, 65536, 4096, 4096, NULL },
        { 65537, 8192, 65536, 4096, 4096, "at most 65536" },
        { 65536 + 4096, 8192, 65536, 4096, 65536, "at most 65536" },
        { UINT64_MAX, 8192, UINT64_MAX, 4096, 4096, NULL },
        { UINT64_MAX, 8192, 65536, 4096, 4096, "at most 65536" },
        { UINT64_MAX, 8192, 0, 4096, 4096, "8192" },
        { UINT64_MAX - 4094, 0, 0, 4096, 4096, "0" },
    };

    for (int i = 0; i < ARRAY_SIZE(table); i++) {
        /* It is the destination that puts it into its memory */
        g_autofree char *src = g_strdup_printf(
            "{ 'page-size': %" PRIu64 ", 'host-page-size': 1048576,"
            "  'ram-blocks': [ { 'name': 'rom', 'size': %" PRIu64 ","
            "  'resizeable': true, 'max-size': 18446744073709551615 } ] }",
            table[i].target, table[i].sent);
        g_autofree char *dst = g_strdup_printf(
            "{ 'page-size': %" PRIu64 ", 'host-page-size': %" PRIu64 ","
            "  'ram-blocks': [ { 'name': 'rom', 'size': %" PRIu64 ","
            "  'resizeable': %s, 'max-size': %" PRIu64 " } ] }",
            table[i].target, table[i].host, table[i].size,
            table[i].max ? "true" : "false", table[i].max ?: table[i].size);
        g_autofree char *issue = g_strdup_printf(
            "error ram-block-size rom: %" PRIu64 " -> %s\n",
            table[i].sent, table[i].text);

        check(src, dst, NULL, table[i].text ? issue : NULL);
    }
    /* Who does not say how large it can be cannot be larger */
    check(BLOCK("rom", "'size': 8192"),
          BLOCK("rom", "'size': 4096, 'resizeable': true"), NULL,
          "error ram-block-size rom: 8192 -> at most 4096\n");
}

static void test_ram_page_size(void)
{
    const char *large = "{ 'ram-blocks': [ { 'name': 'dimm', 'size': 8388608,"
                        "                    'page-size': 2097152 } ] }";
    const char *small = BLOCK("dimm", "'size': 8388608");
    const char *unknown = "{ 'ram-blocks': [ { 'name': 'dimm',"
                          "                    'size': 8388608 } ] }";

    /* Precopy does not care */
    check(large, small, "multifd", NULL);
    check(large, small, "postcopy-ram",
          "error ram-block-page-size dimm: 2097152 -> 4096\n");
    check(small, large, "multifd,postcopy-ram",
          "error ram-block-page-size dimm: 4096 -> 2097152\n");
    check(large, unknown, "postcopy-ram", NULL);
    check(unknown, large, "postcopy-ram", NULL);
    check(large, large, "postcopy-ram", NULL);

    /* It has all sizes in one number, which has to be the same */
    check(NULL, large, "postcopy-ram",
          "error ram-block-page-size all RAM blocks: 4096 -> 2101248\n"
          "warning ram-block-extra dimm: missing -> 8388608\n");
    check(NULL, small, "postcopy-ram",
          "warning ram-block-extra dimm: missing -> 8388608\n");
    check(NULL, unknown, "postcopy-ram",
          "warning ram-block-extra dimm: missing -> 8388608\n");
}

#define SHARED  "'size': 4096, 'shared-file': true"

static void test_ignore_shared(void)
{
    check(BLOCK("file", SHARED), BLOCK("file", "'size': 4096"),
          "postcopy-ram", NULL);
    check(BLOCK("file", SHARED), BLOCK("file", "'size': 4096"),
          "x-ignore-shared", "error capability-unsupported x-ignore-shared: "
          "a shared file -> not a shared file\n");
    check(BLOCK("file", "'size': 4096"), BLOCK("file", SHARED),
          "x-ignore-shared", "error capability-unsupported x-ignore-shared: "
          "not a shared file -> a shared file\n");

    /* A device's memory may have its contents elsewhere: ivshmem */
    check(BLOCK("0000:00:04.0/shm", SHARED),
          BLOCK("0000:00:04.0/shm", "'size': 4096"),
          "x-ignore-shared", "warning capability-unsupported "
          "x-ignore-shared: a shared file -> not a shared file\n");
    check(BLOCK("0000:00:04.0/shm", "'size': 4096"),
          BLOCK("0000:00:04.0/shm", SHARED),
          "x-ignore-shared", "error capability-unsupported "
          "x-ignore-shared: not a shared file -> a shared file\n");
    /* This is the RAM of an older machine */
    check(BLOCK("/objects/ram", SHARED), BLOCK("/objects/ram", "'size': 4096"),
          "x-ignore-shared", "error capability-unsupported x-ignore-shared: "
          "a shared file -> not a shared file\n");

    /* It must be at the same place */
    check(BLOCK("file", SHARED ", 'address': 4294967296"),
          BLOCK("file", SHARED ", 'address': 0"), "x-ignore-shared",
          "error capability-unsupported x-ignore-shared: "
          "at 0x100000000 -> at 0x0\n");
    check(BLOCK("file", SHARED ", 'address': 4096"),
          BLOCK("file", SHARED ", 'address': 4096"), "x-ignore-shared", NULL);
    check(BLOCK("file", SHARED ", 'address': 4096"),
          BLOCK("file", SHARED), "x-ignore-shared", NULL);

    /* What one side has alone is not about the capability */
    check(BLOCK("file", SHARED), NULL, "x-ignore-shared",
          "error ram-block-missing file: 4096 -> missing\n");
}

/* Why not, in so many words */
static void test_capability(void)
{
    g_autoptr(MigrationProfile) src = profile_from(
        BLOCK("file", SHARED), "{ 'stream': { 'x-preempt-pre-7-2': false } }");
    g_autoptr(MigrationProfile) dst = profile_from(
        "{ 'ram-blocks': [ { 'name': 'file', 'size': 4096,"
        "                    'page-size': 65536 } ] }", NULL);
    static const char *const reasons[][2] = {
        { "postcopy-ram", "those of 'file' have 4096 bytes" },
        { "postcopy-preempt", "'x-preempt-pre-7-2' is false on the source" },
        { "x-ignore-shared", "block 'file' is a shared file on the source" },
    };

    for (int i = 0; i < ARRAY_SIZE(reasons); i++) {
        Error *err = NULL;

        g_assert_false(handshake_compare_capability(src, dst, reasons[i][0],
                                                    &err));
        g_assert_nonnull(strstr(error_get_pretty(err), reasons[i][1]));
        error_free(err);
    }
    g_assert_true(handshake_compare_capability(src, dst, "multifd",
                                               &error_abort));
}

static void test_unmigratable(void)
{
    check("{ 'unmigratable': [ 'nvme', 'b' ] }", NULL, NULL,
          "error unmigratable nvme: not migratable -> -\n"
          "error unmigratable b: not migratable -> -\n");
    check(NULL, "{ 'unmigratable': [ 'nvme' ] }", NULL,
          "error unmigratable nvme: - -> not migratable\n");
    /* What blocks the source keeps it there; here it does not matter */
    check("{ 'blockers': [ 'not today', 'nor tomorrow' ] }", NULL, NULL,
          "error unmigratable -: blocked -> -\n"
          "error unmigratable -: blocked -> -\n");
    check(NULL, "{ 'blockers': [ 'not today' ] }", NULL, NULL);
}

static bool coin(void)
{
    return g_test_rand_bit();
}

/* Small numbers meet each other; and those at the ends */
static uint32_t random_number(void)
{
    return g_test_rand_int_range(0, 20) ? g_test_rand_int_range(0, 6)
                                        : UINT32_MAX;
}

static char *random_name(void)
{
    static const char *const names[] = {
        "ram", "timer", "cpu", "slirp", "0000:00:03.0/virtio-net", "\xc3\xa4",
    };

    return g_strdup(names[g_test_rand_int_range(0, ARRAY_SIZE(names))]);
}

static MigrationProfileSection *random_section(void)
{
    MigrationProfileSection *section = g_new0(MigrationProfileSection, 1);

    section->name = random_name();
    section->version = random_number();
    section->minimum_version = random_number();
    section->conditional = coin();
    section->has_instances = coin();
    while (section->has_instances && coin()) {
        QAPI_LIST_PREPEND(section->instances, random_number());
    }
    return section;
}

static MigrationProfileRAMBlock *random_block(void)
{
    MigrationProfileRAMBlock *block = g_new0(MigrationProfileRAMBlock, 1);

    block->name = random_name();
    block->size = random_number();
    block->page_size = random_number() * 4096;
    block->resizeable = coin();
    block->has_max_size = coin();
    block->max_size = random_number();
    block->conditional = coin();
    block->shared_file = coin();
    block->has_address = coin();
    block->address = random_number();
    return block;
}

static MigrationProfileBitmap *random_bitmap(void)
{
    MigrationProfileBitmap *bitmap = g_new0(MigrationProfileBitmap, 1);

    bitmap->node = random_name();
    bitmap->name = coin() ? random_name() : NULL;
    return bitmap;
}

static MigrationProfile *random_profile(void)
{
    MigrationProfile *profile = profile_from(
        coin() ? "{ 'uuid': null }" : "{ 'capabilities': [ 'multifd' ] }",
        coin() ? "{ 'page-size': 65536, 'arch': 'arm' }"
               : "{ 'stream': { 'suppress-vmdesc': false } }");

    while (g_test_rand_int_range(0, 6)) {
        QAPI_LIST_PREPEND(profile->sections, random_section());
        QAPI_LIST_PREPEND(profile->ram_blocks, random_block());
    }
    profile->has_bitmaps = coin();
    while (profile->has_bitmaps && coin()) {
        QAPI_LIST_PREPEND(profile->bitmaps, random_bitmap());
    }
    return profile;
}

/* Whatever two machines are like, the answer is the same, and well-formed */
static void test_random(void)
{
    for (int i = 0; i < 2000; i++) {
        g_autoptr(MigrationProfile) src = random_profile();
        g_autoptr(MigrationProfile) dst = random_profile();
        g_autoptr(strList) effective =
            names_from(coin() ? "postcopy-ram,x-ignore-shared"
                              : "dirty-bitmaps");
        HandshakeIssues issues = { 0 };
        g_autofree char *text = NULL;

        handshake_compare(src, dst, effective, &issues);
        text = issues_text(&issues);
        handshake_issues_free(&issues);
        check_profiles(src, dst,
                       effective->next ? "postcopy-ram,x-ignore-shared"
                                       : "dirty-bitmaps", text);
        handshake_compare_return(src, dst, NULL, &issues);
        g_assert_cmpuint(issues.listed, <=, 1);
        handshake_issues_free(&issues);
    }
}

/* Memory is where the guest has it, or the guest is lost */
#define MAPPED(parts) \
    "{ 'ram-blocks': [ { 'name': 'm0', 'size': 1048576, 'mapped': [" \
    parts "] } ] }"
#define PART(offset, address, size) \
    "{ 'offset': " offset ", 'address': " address ", 'size': " size " }"

static void test_ram_address(void)
{
    static const char low[] = MAPPED(PART("0", "0", "1048576"));
    static const char high[] = MAPPED(PART("0", "4096", "1048576"));
    static const char split[] = MAPPED(PART("0", "0", "524288") ","
                                       PART("524288", "1048576", "524288"));
    static const char nowhere[] = MAPPED("");
    static const char head[] = MAPPED(PART("0", "0", "4096"));
    static const char tail[] = MAPPED(PART("524288", "0", "4096"));
    static const char twice[] = MAPPED(PART("0", "0", "4096") ","
                                       PART("0", "8192", "4096"));
    static const char far[] = MAPPED(
        PART("0", "18446744073709551615", "18446744073709551615"));

    check(low, low, NULL, NULL);
    check(split, split, NULL, NULL);
    check(twice, twice, NULL, NULL);
    check(far, far, NULL, NULL);
    check(low, nowhere, NULL, NULL);
    check(nowhere, low, NULL, NULL);
    /* What only one of them has says nothing */
    check(head, tail, NULL, NULL);
    check(head, split, NULL, NULL);
    check(head, twice, NULL, NULL);
    check(low, high, NULL, "error ram-block-address m0: 0x0 -> 0x1000\n");
    check(high, low, NULL, "error ram-block-address m0: 0x1000 -> 0x0\n");
    check(low, split, NULL, "error ram-block-address m0: 0x0 -> 0x80000\n");
    check(split, low, NULL,
          "error ram-block-address m0: 0x100000 -> 0x80000\n");
}

static unsigned described;

static char *describe(void *opaque, unsigned index)
{
    described++;
    return g_strdup_printf("%s%u", (const char *)opaque, index);
}

static void limits_add(GPtrArray *limits, HandshakeLimit limit)
{
    g_ptr_array_add(limits, g_memdup2(&limit, sizeof(limit)));
}

static GHashTable *set_from(const char *has, const char *lacks)
{
    GHashTable *set = g_hash_table_new_full(g_str_hash, g_str_equal, g_free,
                                            NULL);
    g_autoptr(strList) names = names_from(has);
    g_autoptr(strList) others = names_from(lacks);
    const strList *l;

    for (l = names; l; l = l->next) {
        g_hash_table_insert(set, g_strdup(l->value), GINT_TO_POINTER(
            HANDSHAKE_MEMBER_HERE | HANDSHAKE_MEMBER_PROMISED));
    }
    for (l = others; l; l = l->next) {
        g_hash_table_insert(set, g_strdup(l->value), NULL);
    }
    return set;
}

static GByteArray *byte_array(const void *bytes, size_t size)
{
    return g_byte_array_append(g_byte_array_new(), bytes, size);
}

static GArray *register_array(const MigrationRegister *registers, guint n)
{
    return g_array_append_vals(g_array_new(false, false, sizeof(*registers)),
                               registers, n);
}

static char *describe_register(void *opaque, uint64_t number)
{
    return g_strdup_printf("%s%" PRIu64, (const char *)opaque, number);
}

/* What a section "dev" could keep */
static GPtrArray *dev_limits_new(void)
{
    static const uint64_t words[] = { 0x10, 0x1 };
    static const uint8_t bytes[] = { 0x12, 0x34, 0, 0xff };
    static const uint8_t mask[] = { 0xff, 0x0f, 0xff, 0 };
    static const uint8_t soft[] = { 0, 0, 0, 0xf0 };
    static const MigrationRegister registers[] = {
        { 0x10, 0xa, true }, { 0x12 }, { 0x20, UINT64_MAX, true },
        { 0x30, 0, true },
    };
    GPtrArray *limits = g_ptr_array_new_with_free_func(g_free);

    limits_add(limits, (HandshakeLimit) {
        "counts", (char *)"a.n", HANDSHAKE_RULE_EQUAL, MIGRATION_BREACH_LOAD,
        .promised = true, .number = 8 });
    limits_add(limits, (HandshakeLimit) {
        "values", (char *)"a.v", HANDSHAKE_RULE_EQUAL, MIGRATION_BREACH_LOAD,
        .number = UINT64_MAX });
    limits_add(limits, (HandshakeLimit) {
        "bytes", NULL, HANDSHAKE_RULE_EQUAL, MIGRATION_BREACH_CHANGE,
        .number = 360 });
    limits_add(limits, (HandshakeLimit) {
        "virtio-queues", NULL, HANDSHAKE_RULE_AT_MOST, MIGRATION_BREACH_LOSS,
        .number = 3 });
    limits_add(limits, (HandshakeLimit) {
        "vnet-hdr", NULL, HANDSHAKE_RULE_FLAG, MIGRATION_BREACH_LOAD });
    limits_add(limits, (HandshakeLimit) {
        "device-type", NULL, HANDSHAKE_RULE_TEXT, MIGRATION_BREACH_CHANGE,
        .promised = true, .text = (char *)"scsi-cd" });
    limits_add(limits, (HandshakeLimit) {
        "disk-serials", (char *)"0", HANDSHAKE_RULE_TEXT,
        MIGRATION_BREACH_CHANGE });
    limits_add(limits, (HandshakeLimit) {
        "disk-writable", NULL, HANDSHAKE_RULE_SET, MIGRATION_BREACH_LOSS,
        .set = set_from("0", "1") });
    limits_add(limits, (HandshakeLimit) {
        "pci-config", NULL, HANDSHAKE_RULE_MASKED, MIGRATION_BREACH_CHANGE,
        .bytes = byte_array(bytes, sizeof(bytes)),
        .mask = byte_array(soft, sizeof(soft)) });
    limits_add(limits, (HandshakeLimit) {
        "subsections", NULL, HANDSHAKE_RULE_SET, MIGRATION_BREACH_CHANGE,
        .set = set_from("dev/known", NULL) });
    limits_add(limits, (HandshakeLimit) {
        "virtio-features", NULL, HANDSHAKE_RULE_BITS, MIGRATION_BREACH_LOAD,
        .bytes = byte_array(words, sizeof(words)), .describe = describe,
        .opaque = (void *)"F_" });
    limits_add(limits, (HandshakeLimit) {
        "pci-config", NULL, HANDSHAKE_RULE_MASKED, MIGRATION_BREACH_LOAD,
        .bytes = byte_array(bytes, sizeof(bytes)),
        .mask = byte_array(mask, sizeof(mask)), .describe = describe,
        .opaque = (void *)"capability" });
    limits_add(limits, (HandshakeLimit) {
        "cpu-model", NULL, HANDSHAKE_RULE_TEXT, MIGRATION_BREACH_CHANGE,
        .text = (char *)"max-x86_64-cpu" });
    limits_add(limits, (HandshakeLimit) {
        "cpu-features", NULL, HANDSHAKE_RULE_SET, MIGRATION_BREACH_LOSS,
        .set = set_from("sse,sse2", "avx,avx2,vmx-ept,"
                        "f1,f2,f3,f4,f5,f6,f7,f8,f9,f10") });
    limits_add(limits, (HandshakeLimit) {
        "cpu-registers", NULL, HANDSHAKE_RULE_REGISTERS, MIGRATION_BREACH_LOAD,
        .registers = register_array(registers, ARRAY_SIZE(registers)),
        .describe_register = describe_register, .opaque = (void *)"R" });
    limits_add(limits, (HandshakeLimit) {
        "cpu-mode", NULL, HANDSHAKE_RULE_SET, MIGRATION_BREACH_LOAD,
        .set = set_from("power8,power9", NULL) });
    limits_add(limits, (HandshakeLimit) {
        "machine-capabilities", (char *)"htm", HANDSHAKE_RULE_AT_MOST,
        MIGRATION_BREACH_LOAD, .number = 1 });
    return limits;
}

/* What sections "dev", "dev 1" and "net-user" could keep */
static GHashTable *limits_new(void)
{
    GHashTable *all = g_hash_table_new_full(g_str_hash, g_str_equal, g_free,
                                            (GDestroyNotify)g_ptr_array_unref);
    GPtrArray *few = g_ptr_array_new_with_free_func(g_free);

    limits_add(few, (HandshakeLimit) {
        "virtio-queues", NULL, HANDSHAKE_RULE_AT_MOST, MIGRATION_BREACH_LOSS,
        .promised = true, .number = 1 });
    limits_add(few, (HandshakeLimit) {
        "no-pic", NULL, HANDSHAKE_RULE_FLAG, MIGRATION_BREACH_LOSS,
        .number = 1 });
    limits_add(few, (HandshakeLimit) {
        "vnet-hdr", NULL, HANDSHAKE_RULE_FLAG, MIGRATION_BREACH_LOAD,
        .promised = true, .number = 1 });
    limits_add(few, (HandshakeLimit) {
        "ports", NULL, HANDSHAKE_RULE_TEXT, MIGRATION_BREACH_LOAD,
        .promised = true, .text = (char *)"1" });
    limits_add(few, (HandshakeLimit) {
        "disk-writable", NULL, HANDSHAKE_RULE_SET, MIGRATION_BREACH_LOSS,
        .set = set_from("0", NULL) });
    g_hash_table_insert(all, g_strdup("dev 0"), dev_limits_new());
    g_hash_table_insert(all, g_strdup("dev 1"), dev_limits_new());
    g_hash_table_insert(all, g_strdup("net-user 0"), few);
    return all;
}

static void check_promises(const char *section, const char *qemu_version,
                           const char *expected)
{
    g_autofree char *json = g_strdup_printf(
        "{ 'sections': [ { 'version': 1, %s } ], 'qemu-version': '%s' }",
        section, qemu_version);
    g_autoptr(MigrationProfile) src = profile_from(json, NULL);
    g_autoptr(MigrationProfile) dst = profile_from(NULL, NULL);
    g_autoptr(GHashTable) limits = limits_new();
    g_autoptr(MigrationHandshakeIssue) back = NULL;
    HandshakeIssues issues = { 0 };
    g_autofree char *text = NULL;

    handshake_compare_promises(src, dst, limits, &issues, &back);
    text = issues_text(&issues);
    g_assert_cmpstr(text, ==, expected ?: "");
    handshake_issues_free(&issues);
}

static void check_promise(const char *promise, const char *expected)
{
    g_autofree char *section = g_strdup_printf(
        "'name': 'dev', 'promises': { %s }", promise);

    check_promises(section, "10.0.0", expected);
}

static void test_promise_numbers(void)
{
    check_promise("", NULL);
    check_promise("'counts': [ { 'name': 'a.n', 'value': 8 } ]", NULL);
    check_promise("'counts': [ { 'name': 'other', 'value': 9 } ]", NULL);
    check_promise("'counts': [ { 'name': 'other', 'value': 1 },"
                  "            { 'name': 'a.n', 'value': 9 } ]",
                  "error section-schema dev: 9 -> 8\n");
    check_promise("'counts': [ { 'name': 'a.n', 'value': 0 } ]",
                  "error section-schema dev: 0 -> 8\n");
    check_promise("'values': [ { 'name': 'a.v',"
                  "              'value': 18446744073709551615 } ]", NULL);
    check_promise("'values': [ { 'name': 'a.v', 'value': 1 } ]",
                  "error section-schema dev: 1 -> 18446744073709551615\n");
    check_promise("'bytes': 360", NULL);
    check_promise("'bytes': 368",
                  "warning section-schema dev: 368 -> 360\n");
    check_promise("'virtio-queues': 0", NULL);
    check_promise("'virtio-queues': 3", NULL);
    check_promise("'virtio-queues': 4", "error device dev: 4 -> 3\n");
    check_promise("'vnet-hdr': false", NULL);
    check_promise("'vnet-hdr': true", "error device dev: yes -> no\n");
}

/* However long a list is, and however often the same section is named */
static void test_promise_repeated(void)
{
    g_autoptr(GString) section = g_string_new(NULL);

    g_string_printf(section, "'name': 'dev', 'instances': [ 0");
    for (int i = 0; i < 1000; i++) {
        g_string_append(section, ", 1, 0");
    }
    g_string_append_printf(section, " ], 'promises': { "
                           "'virtio-features': '%032d%032d' }", 0, 0);
    for (char *c = strstr(section->str, "000000"); *c == '0'; c++) {
        *c = 'f';
    }
    described = 0;
    check_promises(section->str, "10.0.0",
                   "error device dev: F_0, F_1, F_2, F_3, F_5, F_6, F_7, F_8 "
                   "and 246 more -> missing\n"
                   "error device dev 1: F_0, F_1, F_2, F_3, F_5, F_6, F_7, F_8 "
                   "and 246 more -> missing\n");
    g_assert_cmpuint(described, ==, 2 * 8);
}

static void test_promise_texts(void)
{
    check_promise("'device-type': 'scsi-cd'", NULL);
    check_promise("'device-type': 'scsi-hd'",
                  "warning device dev: scsi-hd -> scsi-cd\n");
    check_promise("'device-type': ''", "warning device dev:  -> scsi-cd\n");
    check_promise("'disk-serials': [ { 'name': '1', 'value': 'x' } ]", NULL);
    check_promise("'disk-serials': [ { 'name': '0', 'value': 'x' } ]",
                  "warning disk dev: x -> missing\n");
    check_promise("'disk-writable': [ '0' ]", NULL);
    check_promise("'disk-writable': [ '0', '1', '2' ]",
                  "error disk dev: 1, 2 -> missing\n");
    check_promise("'subsections': [ 'dev/known' ]", NULL);
    check_promise("'subsections': [ 'dev/later' ]",
                  "warning section-schema dev: dev/later -> missing\n");
}

static void test_promise_bits(void)
{
    check_promise("'virtio-features': '0'", NULL);
    check_promise("'virtio-features': '10000000000000010'", NULL);
    check_promise("'virtio-features': '00000000000000000000000000000000010'",
                  NULL);
    check_promise("'virtio-features': '31'",
                  "error device dev: F_0, F_5 -> missing\n");
    check_promise("'virtio-features': '20000000000000000'",
                  "error device dev: F_65 -> missing\n");
    /* What nobody here has a name for */
    check_promise("'virtio-features': '100000000000000000000000000000000'",
                  "error device dev: feature bit 128 -> missing\n");
    check_promise("'virtio-features': 'fffffffff'",
                  "error device dev: F_0, F_1, F_2, F_3, F_5, F_6, F_7, F_8 "
                  "and 27 more -> missing\n");
}

static void test_promise_masked(void)
{
    check_promise("'pci-config': '0:123400f0'", NULL);
    /* None of that counts */
    check_promise("'pci-config': '0:12f400fa'", NULL);
    check_promise("'pci-config': '0:123400ef'",
                  "warning device dev: ef -> ff\n");
    check_promise("'pci-config': '0:123500f0,fff:ff'",
                  "error device dev: 35 -> 34\n");
    check_promise("'pci-config': '1:3400f0'", "error device dev: 00 -> 12\n");
    check_promise("'pci-config': ''", "error device dev: 00 -> 12\n"
                  "warning device dev: 00 -> ff\n");
    check_promise("'pci-config': '0:123401f0'",
                  "error device dev: 01 -> 00\n");
}

static void test_promise_registers(void)
{
    check_promise("'cpu-registers': '10=a,2,e=ffffffffffffffff,10=0'", NULL);
    /* What can be set on one of the sides, or need not be sent */
    check_promise("'cpu-registers': '10,2=5,e'", NULL);
    check_promise("'cpu-registers': '10,10'", NULL);
    check_promise("'cpu-registers': '10=b,10'",
                  "error cpu dev: R16=0xb -> R16=0xa\n");
    check_promise("'cpu-registers': '10=b,10=0,10=1'",
                  "error cpu dev: R16=0xb, R32=0x0, R48=0x1 -> "
                  "R16=0xa, R32=0xffffffffffffffff, R48=0x0\n");
    check_promise("'cpu-registers': 'f=1,1=a,1,1,e,ffffffffffffffdf'",
                  "error cpu dev: R15, R17, R18446744073709551615 "
                  "-> missing\n");
    check_promise("'cpu-registers': '12'", "error cpu dev: missing -> "
                  "R16=0xa, R32=0xffffffffffffffff\n");
    check_promise("'cpu-registers': 'f,1=0'",
                  "error cpu dev: R15 -> missing\n"
                  "error cpu dev: R16=0x0 -> R16=0xa\n"
                  "error cpu dev: missing -> R32=0xffffffffffffffff\n");
    check_promise("'cpu-registers': '0,1,1,1,1,1,1,1,1,1,7,10'",
                  "error cpu dev: R0, R1, R2, R3, R4, R5, R6, R7 and 2 more "
                  "-> missing\n");
}

static void test_promise_machine(void)
{
    check_promise("'cpu-mode': [ 'power9' ]", NULL);
    check_promise("'cpu-mode': [ 'power10' ]",
                  "error cpu dev: power10 -> missing\n");
    check_promise("'machine-capabilities': [ { 'name': 'htm', 'value': 1 },"
                  " { 'name': 'later', 'value': 2 } ]", NULL);
    check_promise("'machine-capabilities': [ { 'name': 'htm', 'value': 2 } ]",
                  "error device dev: 2 -> 1\n");
}

static void test_promise_cpu(void)
{
    static const char max[] = "'name': 'dev', 'promises': {"
        "'cpu-model': 'max-x86_64-cpu', 'cpu-features': [ 'avx', 'sse' ] }";
    static const char other[] = "'name': 'dev', 'promises': {"
        "'cpu-model': 'host-x86_64-cpu', 'cpu-features': [ 'avx', 'sse' ] }";

    check_promise("'cpu-features': [ 'sse', 'sse2' ]", NULL);
    check_promise("'cpu-features': [ 'sse', 'avx2', 'avx' ]",
                  "error cpu dev: avx2, avx -> missing\n");
    /* Neither is a reason to refuse */
    check_promise("'cpu-features': [ 'vmx-ept', 'of-a-later-version' ]",
                  "warning cpu dev: vmx-ept, of-a-later-version -> missing\n");
    check_promise("'cpu-features': [ 'vmx-ept', 'avx' ]",
                  "error cpu dev: avx -> missing\n"
                  "warning cpu dev: vmx-ept -> missing\n");
    check_promise("'cpu-features': [ 'f1', 'f2', 'f3', 'f4', 'f5', 'f6', 'f7',"
                  "                  'f8', 'f9', 'f10' ]",
                  "error cpu dev: f1, f2, f3, f4, f5, f6, f7, f8 and 2 more "
                  "-> missing\n");
    /* Whatever there is: that depends on the version */
    check_promises(max, "10.0.0", "error cpu dev: avx -> missing\n");
    check_promises(max, "10.2.0", "warning cpu dev: avx -> missing\n");
    check_promises(other, "10.2.0",
                   "error cpu dev: avx -> missing\n"
                   "warning cpu dev: host-x86_64-cpu -> max-x86_64-cpu\n");
    /* All of them are alike */
    check_promises("'name': 'dev', 'instances': [ 0, 1 ], 'promises': {"
                   "'cpu-features': [ 'avx' ] }", "10.0.0",
                   "error cpu dev: avx -> missing\n");
}

static void test_promise_sections(void)
{
    check_promises("'name': 'dev', 'conditional': true,"
                   "'promises': { 'virtio-queues': 4 }", "10.0.0",
                   "warning device dev: 4 -> 3\n");
    check_promises("'name': 'dev', 'instances': [ 0, 1, 2 ],"
                   "'promises': { 'virtio-queues': 4 }", "10.0.0",
                   "error device dev: 4 -> 3\n"
                   "error device dev 1: 4 -> 3\n");
    /* Its former name */
    check_promises("'name': 'slirp', 'promises': { 'virtio-queues': 4 }",
                   "10.0.0", "error device slirp: 4 -> 1\n");
    check_promises("'name': 'elsewhere', 'promises': { 'virtio-queues': 4 }",
                   "10.0.0", NULL);
}

/* What would keep a guest that has got here from coming back */
static void check_back(const char *section, const char *qemu_version,
                       const char *expected)
{
    g_autofree char *json = g_strdup_printf(
        "{ 'sections': [ { 'name': 'apic', 'version': 2 },"
        "  { 'version': 1, %s } ], 'qemu-version': '%s' }", section,
        qemu_version);
    g_autoptr(MigrationProfile) src = profile_from(json, NULL);
    g_autoptr(MigrationProfile) dst = profile_from(NULL, NULL);
    g_autoptr(GHashTable) limits = limits_new();
    g_autoptr(MigrationHandshakeIssue) back = NULL;
    HandshakeIssues forth = { 0 };
    HandshakeIssues issues = { 0 };
    g_autofree char *text = NULL;

    handshake_compare_promises(src, dst, limits, &forth, &back);
    handshake_issues_free(&forth);
    handshake_compare_return(src, dst, back, &issues);
    text = issues_text(&issues);
    g_assert_cmpstr(text, ==, expected ?: "");
    g_assert_false(handshake_issues_refuse(&issues, true));
    handshake_issues_free(&issues);
}

static void test_promise_return(void)
{
#define HAS_ALL     "'cpu-features': [ 'sse', 'sse2' ], " \
                    "'disk-writable': [ '0' ]"
#define DEV(more)   "'name': 'dev', 'promises': { " more " }"
#define NET(more)   "'name': 'net-user', 'promises': { 'vnet-hdr': true, " \
                    "'disk-writable': [ '0' ] " more " }"
    const char *sse = "info no-return dev: missing -> sse, sse2\n";

    check_back(DEV(HAS_ALL), "10.0.0", NULL);
    check_back("'name': 'dev'", "10.0.0", NULL);

    /* What it would have here, and never there */
    check_back(DEV("'disk-writable': [ '0' ]"), "10.0.0", sse);
    check_back(DEV("'cpu-features': [ 'sse2' ], 'disk-writable': [ '0' ]"),
               "10.0.0", "info no-return dev: missing -> sse\n");
    check_back(DEV("'cpu-features': [ 'sse', 'sse2' ]"), "10.0.0",
               "info no-return dev: missing -> 0\n");
    check_back("'name': 'net-user', 'promises': { 'ports': '1' }", "10.0.0",
               "info no-return net-user: missing -> vnet-hdr\n");
    check_back(NET(", 'ports': '1'"), "10.0.0", NULL);

    /* Another version may have what it does not speak of */
    check_back(DEV("'disk-writable': [ '0' ]"), "10.2.0", NULL);
    check_back("'name': 'net-user', 'promises': { 'ports': '1' }", "10.2.0",
               NULL);

    /* What would be refused on the way there, if nobody had ignored it */
    check_back(DEV(HAS_ALL ", 'counts': [ { 'name': 'a.n', 'value': 8 } ]"),
               "10.0.0", NULL);
    check_back(DEV(HAS_ALL ", 'counts': [ { 'name': 'a.n', 'value': 9 } ]"),
               "10.2.0", "info no-return dev: 9 -> 8\n");
    check_back(NET(", 'ports': '2'"), "10.2.0",
               "info no-return net-user: 2 -> 1\n");

    /* What is no reason to refuse is none to stay, nor is what may change */
    check_back(DEV(HAS_ALL ", 'device-type': 'scsi-hd'"), "10.0.0", NULL);
    check_back(DEV(HAS_ALL ", 'values': [ { 'name': 'a.v', 'value': 1 } ]"),
               "10.0.0", NULL);
    check_back(NET(", 'virtio-queues': 2"), "10.0.0", NULL);
    check_back(DEV("'cpu-model': 'max-x86_64-cpu'") ", 'conditional': true",
               "10.0.0", NULL);

    /* One reason is enough */
    check_back(DEV("'cpu-features': [ 'sse2' ], 'counts': ["
                   "  { 'name': 'a.n', 'value': 9 } ]"), "10.0.0",
               "info no-return dev: 9 -> 8\n");
}

#define DEVICES     500

/* As many devices as anybody has, each of which promises what it can */
static void test_promise_speed(void)
{
    g_autoptr(GString) json = g_string_new("{ 'qemu-version': '10.0.0',"
                                           "  'sections': [ ");
    g_autoptr(MigrationProfile) src = NULL;
    g_autoptr(MigrationProfile) dst = profile_from(NULL, NULL);
    g_autoptr(GHashTable) limits = limits_new();
    GPtrArray *one = g_hash_table_lookup(limits, "dev 0");
    clock_t best = 0;

    for (int i = 0; i < DEVICES; i++) {
        g_string_append_printf(json, "%s{ 'name': 'dev%d', 'version': 1,"
            "'promises': { 'counts': [ { 'name': 'a.n', 'value': 8 } ],"
            "  'values': [ { 'name': 'a.v', 'value': 18446744073709551615 } ],"
            "  'bytes': 360, 'virtio-queues': 2, 'device-type': 'scsi-cd',"
            "  'disk-writable': [ '0' ], 'pci-config': '0:123400f0',"
            "  'virtio-features': '10', 'cpu-features': [ 'sse', 'sse2' ] } }",
            i ? ", " : "", i);
        g_hash_table_insert(limits, g_strdup_printf("dev%d 0", i),
                            g_ptr_array_ref(one));
    }
    g_string_append(json, " ] }");
    src = profile_from(json->str, NULL);
    for (int i = 0; i < 10; i++) {
        g_autoptr(MigrationHandshakeIssue) back = NULL;
        HandshakeIssues issues = { 0 };
        clock_t time = clock();

        handshake_compare_promises(src, dst, limits, &issues, &back);
        time = clock() - time;
        g_assert_null(issues.list);
        g_assert_null(back);
        best = i ? MIN(best, time) : time;
    }
    g_test_message("%d devices: %.2f ms of CPU time", DEVICES,
                   best * 1000.0 / CLOCKS_PER_SEC);
#ifndef QEMU_SANITIZE_ADDRESS
    g_assert_cmpint(best, <, CLOCKS_PER_SEC / 50);
#endif
}

int main(int argc, char **argv)
{
    static const struct {
        const char *name;
        void (*func)(void);
    } tests[] = {
        { "same", test_same },
        { "arch", test_arch },
        { "machine", test_machine },
        { "page-size", test_page_size },
        { "uuid", test_uuid },
        { "stream", test_stream },
        { "stream/tolerated", test_stream_tolerated },
        { "absent", test_absent },
        { "empty", test_empty },
        { "all", test_all },
        { "hostile", test_hostile },
        { "section/missing", test_section_missing },
        { "section/extra", test_section_extra },
        { "section/instances", test_section_instances },
        { "section/version", test_section_version },
        { "section/resolved", test_section_resolved },
        { "section/flood", test_section_flood },
        { "return", test_return },
        { "bitmaps", test_bitmaps },
        { "ram/missing", test_ram_missing },
        { "ram/size", test_ram_size },
        { "ram/page-size", test_ram_page_size },
        { "ram/ignore-shared", test_ignore_shared },
        { "ram/address", test_ram_address },
        { "promise/numbers", test_promise_numbers },
        { "promise/repeated", test_promise_repeated },
        { "promise/texts", test_promise_texts },
        { "promise/bits", test_promise_bits },
        { "promise/masked", test_promise_masked },
        { "promise/cpu", test_promise_cpu },
        { "promise/registers", test_promise_registers },
        { "promise/machine", test_promise_machine },
        { "promise/sections", test_promise_sections },
        { "promise/return", test_promise_return },
        { "promise/speed", test_promise_speed },
        { "capability", test_capability },
        { "unmigratable", test_unmigratable },
        { "random", test_random },
        { "speed", test_speed },
    };

    g_test_init(&argc, &argv, NULL);
    for (int i = 0; i < ARRAY_SIZE(tests); i++) {
        g_autofree char *path =
            g_strdup_printf("/migration/handshake/compare/%s", tests[i].name);

        g_test_add_func(path, tests[i].func);
    }
    return g_test_run();
}
