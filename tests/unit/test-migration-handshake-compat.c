/*
 * Migration handshake: what is said of two profiles
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "qapi/error.h"
#include "qapi/util.h"
#include "qapi/qapi-builtin-types.h"
#include "qobject/qjson.h"
#include "qobject/qlist.h"
#include "../migration/handshake-compat.h"

static const char *const stream_names[] = {
    "send-configuration", "send-section-footer", "suppress-vmdesc",
    "multifd-flush-after-each-section", "x-preempt-pre-7-2",
    "store-global-state", "send-switchover-start",
    "multifd-clean-tls-termination", "x-clear-bitmap-shift",
};

static HandshakeProfile *profile_new(void)
{
    HandshakeProfile *profile = handshake_profile_new();

    profile->qemu_version = g_strdup("10.0.0");
    profile->package = g_strdup("Debian 1:10.0.0+ds-1");
    profile->arch = g_strdup("x86_64");
    profile->machine = g_strdup("pc-q35-10.0");
    profile->page_size = 4096;
    profile->uuid = g_strdup("00112233-4455-6677-8899-aabbccddeeff");
    profile->name = g_strdup("guest");
    QAPI_LIST_PREPEND(profile->capabilities, g_strdup("events"));
    profile->parameters = qdict_new();
    profile->stream = qdict_new();
    for (int i = 0; i < ARRAY_SIZE(stream_names); i++) {
        qdict_put_bool(profile->stream, stream_names[i], true);
    }
    return profile;
}

static void set_str(char **to, const char *value)
{
    g_free(*to);
    *to = g_strdup(value);
}

typedef struct Pair {
    HandshakeProfile *src;
    HandshakeProfile *dst;
    strList *effective;
    HandshakeIssues issues;
} Pair;

static void pair_init(Pair *pair)
{
    *pair = (Pair) { .src = profile_new(), .dst = profile_new() };
}

static void pair_compare_with(Pair *pair, HandshakeResolveSection *resolve)
{
    handshake_issues_free(&pair->issues);
    handshake_compare(pair->src, pair->dst, resolve, pair->effective,
                      &pair->issues);
}

static void pair_compare(Pair *pair)
{
    pair_compare_with(pair, NULL);
}

static void pair_destroy(Pair *pair)
{
    handshake_profile_free(pair->src);
    handshake_profile_free(pair->dst);
    qapi_free_strList(pair->effective);
    handshake_issues_free(&pair->issues);
}

static void assert_issue(const MigrationHandshakeIssue *issue,
                         const char *code, const char *subject,
                         MigrationHandshakeSeverity severity,
                         const char *source, const char *destination)
{
    g_assert_cmpstr(issue->code, ==, code);
    g_assert_cmpstr(issue->subject, ==, subject);
    g_assert_cmpint(issue->severity, ==, severity);
    g_assert_cmpstr(issue->source, ==, source);
    g_assert_cmpstr(issue->destination, ==, destination);
}

/* The one thing that was found; returns the sentence about it */
static const char *assert_found(const Pair *pair, const char *code,
                                const char *subject,
                                MigrationHandshakeSeverity severity,
                                const char *source, const char *destination)
{
    bool error = severity == MIGRATION_HANDSHAKE_SEVERITY_ERROR;

    g_assert_cmpuint(pair->issues.listed, ==, 1);
    g_assert_cmpuint(pair->issues.errors, ==, error);
    g_assert_cmpuint(pair->issues.warnings, ==, !error);
    assert_issue(pair->issues.list->value, code, subject, severity,
                 source, destination);
    return pair->issues.list->value->message;
}

/* The one thing that is wrong */
static void assert_only(Pair *pair, const char *code, const char *subject,
                        MigrationHandshakeSeverity severity,
                        const char *source, const char *destination)
{
    const char *message;

    pair_compare(pair);
    message = assert_found(pair, code, subject, severity, source, destination);
    /* A person must find both in the sentence */
    g_assert_nonnull(strstr(message, source));
    g_assert_nonnull(strstr(message, destination));
}

/* The one part of the machine that is wrong */
static void assert_part(Pair *pair, const char *code, const char *part,
                        MigrationHandshakeSeverity severity,
                        const char *source, const char *destination)
{
    const char *message;

    pair_compare(pair);
    message = assert_found(pair, code, part, severity, source, destination);
    g_assert_nonnull(strstr(message, part));
}

static void assert_none_with(Pair *pair, HandshakeResolveSection *resolve)
{
    pair_compare_with(pair, resolve);
    if (pair->issues.list) {
        g_error("unexpected issue: %s", pair->issues.list->value->message);
    }
    g_assert_cmpuint(pair->issues.errors, ==, 0);
    g_assert_cmpuint(pair->issues.warnings, ==, 0);
}

static void assert_none(Pair *pair)
{
    assert_none_with(pair, NULL);
}

static void swap_sides(Pair *pair)
{
    HandshakeProfile *profile = pair->src;

    pair->src = pair->dst;
    pair->dst = profile;
}

static void test_same(void)
{
    Pair pair;

    pair_init(&pair);
    assert_none(&pair);

    QAPI_LIST_PREPEND(pair.src->capabilities, g_strdup("validate-uuid"));
    QAPI_LIST_PREPEND(pair.effective, g_strdup("multifd"));
    QAPI_LIST_PREPEND(pair.effective, g_strdup("postcopy-preempt"));
    assert_none(&pair);
    /* With itself, too */
    handshake_compare(pair.src, pair.src, NULL, pair.effective, &pair.issues);
    g_assert_null(pair.issues.list);
    pair_destroy(&pair);
}

/* They are told, but nothing depends on them */
static void test_irrelevant(void)
{
    Pair pair;

    pair_init(&pair);
    set_str(&pair.dst->qemu_version, "11.1.0");
    set_str(&pair.dst->package, "qemu-kvm-11");
    set_str(&pair.dst->name, "other");
    QAPI_LIST_PREPEND(pair.dst->capabilities, g_strdup("xbzrle"));
    QAPI_LIST_PREPEND(pair.dst->required, g_strdup("multifd"));
    qdict_put_int(pair.dst->parameters, "a", 1);
    qdict_put_bool(pair.dst->stream, "of-a-later-version", true);
    qdict_put_bool(pair.src->stream, "of-a-later-version", false);
    assert_none(&pair);
    pair_destroy(&pair);
}

static void test_arch(void)
{
    static const struct {
        const char *a, *b;
        bool related;
    } archs[] = {
        { "x86_64", "i386", true },
        { "aarch64", "arm", true },
        { "ppc64", "ppc", true },
        { "riscv64", "riscv32", true },
        { "mips", "mipsel", true },
        { "mips64", "mips64el", true },
        { "mips", "mips64el", true },
        { "sparc", "sparc64", true },
        { "x86_64", "aarch64", false },
        { "x86_64", "arm", false },
        { "i386", "ppc", false },
        { "s390x", "x86_64", false },
        { "microblaze", "microblazeel", false },
        { "mips", "sparc", false },
        { "x86_64", "x86", false },
        { "x86_64", "X86_64", false },
        { "x86_64", "", false },
        { "what", "ever", false },
    };

    for (int i = 0; i < ARRAY_SIZE(archs); i++) {
        MigrationHandshakeSeverity severity =
            archs[i].related ? MIGRATION_HANDSHAKE_SEVERITY_WARNING
                             : MIGRATION_HANDSHAKE_SEVERITY_ERROR;
        Pair pair;

        pair_init(&pair);
        set_str(&pair.src->arch, archs[i].a);
        set_str(&pair.dst->arch, archs[i].b);
        assert_only(&pair, "arch", "arch", severity, archs[i].a, archs[i].b);
        swap_sides(&pair);
        assert_only(&pair, "arch", "arch", severity, archs[i].b, archs[i].a);
        /* Alike, even if nobody here has heard of it */
        set_str(&pair.src->arch, archs[i].a);
        set_str(&pair.dst->arch, archs[i].a);
        assert_none(&pair);
        pair_destroy(&pair);
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
        { "pc-i440fx-focal", "pc-i440fx-focal-hpb" },
    };

    for (int i = 0; i < ARRAY_SIZE(machines); i++) {
        Pair pair;

        pair_init(&pair);
        set_str(&pair.src->machine, machines[i][0]);
        set_str(&pair.dst->machine, machines[i][1]);
        assert_only(&pair, "machine-type", "machine",
                    MIGRATION_HANDSHAKE_SEVERITY_ERROR,
                    machines[i][0], machines[i][1]);
        swap_sides(&pair);
        assert_only(&pair, "machine-type", "machine",
                    MIGRATION_HANDSHAKE_SEVERITY_ERROR,
                    machines[i][1], machines[i][0]);
        pair_destroy(&pair);
    }
}

static void test_page_size(void)
{
    Pair pair;

    pair_init(&pair);
    pair.dst->page_size = 65536;
    assert_only(&pair, "page-size", "page-size",
                MIGRATION_HANDSHAKE_SEVERITY_ERROR, "4096", "65536");
    swap_sides(&pair);
    assert_only(&pair, "page-size", "page-size",
                MIGRATION_HANDSHAKE_SEVERITY_ERROR, "65536", "4096");
    pair.dst->page_size = UINT64_MAX;
    assert_only(&pair, "page-size", "page-size",
                MIGRATION_HANDSHAKE_SEVERITY_ERROR, "65536",
                "18446744073709551615");
    pair_destroy(&pair);
}

#define OTHER_UUID "ffeeddcc-bbaa-9988-7766-554433221100"

static void test_uuid(void)
{
    Pair pair;

    pair_init(&pair);
    set_str(&pair.dst->uuid, OTHER_UUID);
    assert_only(&pair, "uuid", "uuid", MIGRATION_HANDSHAKE_SEVERITY_WARNING,
                pair.src->uuid, OTHER_UUID);

    /* The source's word counts: it is the one that puts it into the stream */
    QAPI_LIST_PREPEND(pair.dst->capabilities, g_strdup("validate-uuid"));
    assert_only(&pair, "uuid", "uuid", MIGRATION_HANDSHAKE_SEVERITY_WARNING,
                pair.src->uuid, OTHER_UUID);
    QAPI_LIST_PREPEND(pair.src->capabilities, g_strdup("validate-uuid"));
    assert_only(&pair, "uuid", "uuid", MIGRATION_HANDSHAKE_SEVERITY_ERROR,
                pair.src->uuid, OTHER_UUID);

    /* Where none was set there is nothing to compare */
    set_str(&pair.dst->uuid, NULL);
    assert_none(&pair);
    swap_sides(&pair);
    assert_none(&pair);
    set_str(&pair.dst->uuid, NULL);
    assert_none(&pair);

    /* The case of the digits is no difference */
    set_str(&pair.src->uuid, OTHER_UUID);
    set_str(&pair.dst->uuid, "FFEEDDCC-BBAA-9988-7766-554433221100");
    assert_none(&pair);
    pair_destroy(&pair);
}

/* @property bars @capability, if there is one, and nothing else */
static void assert_bars(const Pair *pair, const char *capability,
                        const char *property)
{
    static const char *const names[] = {
        "multifd", "postcopy-preempt", "postcopy-ram", "return-path",
        "of-a-later-version", "",
    };

    for (int i = 0; i < ARRAY_SIZE(names); i++) {
        g_autoptr(Error) err = NULL;
        bool ok = handshake_compare_capability(pair->src, pair->dst, names[i],
                                               &err);

        g_assert(ok == !err);
        g_assert(ok == !!g_strcmp0(names[i], capability));
        if (err) {
            g_assert_nonnull(strstr(error_get_pretty(err), property));
        }
    }
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
    };

    for (int i = 0; i < ARRAY_SIZE(properties); i++) {
        const char *name = properties[i].name;
        Pair pair;

        pair_init(&pair);
        qdict_put_bool(pair.dst->stream, name, false);
        if (properties[i].capability) {
            assert_none(&pair);
            /* Neither another one ... */
            QAPI_LIST_PREPEND(pair.effective, g_strdup("postcopy-ram"));
            assert_none(&pair);
            /* ... nor one that is enabled without being effective */
            QAPI_LIST_PREPEND(pair.src->capabilities,
                              g_strdup(properties[i].capability));
            QAPI_LIST_PREPEND(pair.dst->capabilities,
                              g_strdup(properties[i].capability));
            assert_none(&pair);
            QAPI_LIST_PREPEND(pair.effective,
                              g_strdup(properties[i].capability));
        }
        assert_only(&pair, "stream-format", name,
                    MIGRATION_HANDSHAKE_SEVERITY_ERROR, "true", "false");
        g_assert_nonnull(strstr(pair.issues.list->value->message, name));
        assert_bars(&pair, properties[i].capability, name);
        swap_sides(&pair);
        assert_only(&pair, "stream-format", name,
                    MIGRATION_HANDSHAKE_SEVERITY_ERROR, "false", "true");
        assert_bars(&pair, properties[i].capability, name);

        /* Absent on one side, the other, both */
        qdict_del(pair.src->stream, name);
        assert_none(&pair);
        swap_sides(&pair);
        assert_none(&pair);
        assert_bars(&pair, NULL, name);
        qdict_del(pair.src->stream, name);
        assert_none(&pair);
        assert_bars(&pair, NULL, name);

        /* What is sent is not necessarily what this version would send */
        qdict_put_bool(pair.dst->stream, name, false);
        qdict_put_str(pair.src->stream, name, "of late");
        assert_only(&pair, "stream-format", name,
                    MIGRATION_HANDSHAKE_SEVERITY_ERROR, "of late", "false");
        pair_destroy(&pair);
    }
}

/* A reader that copes with either is not asked */
static void test_stream_tolerated(void)
{
    Pair pair;

    pair_init(&pair);
    QAPI_LIST_PREPEND(pair.effective, g_strdup("multifd"));
    QAPI_LIST_PREPEND(pair.effective, g_strdup("postcopy-ram"));
    QAPI_LIST_PREPEND(pair.effective, g_strdup("postcopy-preempt"));
    qdict_put_bool(pair.dst->stream, "store-global-state", false);
    qdict_put_bool(pair.dst->stream, "send-switchover-start", false);
    qdict_put_bool(pair.dst->stream, "multifd-clean-tls-termination", false);
    qdict_put_int(pair.dst->stream, "x-clear-bitmap-shift", 3);
    assert_none(&pair);
    swap_sides(&pair);
    assert_none(&pair);
    pair_destroy(&pair);
}

/* Two profiles that differ in everything but one member that @side lacks */
static void test_absent(void)
{
    static const char *const codes[] = {
        "arch", "machine-type", "page-size", "uuid", "stream-format"
    };

    for (int i = 0; i < 2 * ARRAY_SIZE(codes); i++) {
        const char *absent = codes[i / 2];
        const MigrationHandshakeIssueList *l;
        HandshakeProfile *side;
        Pair pair;

        pair_init(&pair);
        set_str(&pair.dst->arch, "s390x");
        set_str(&pair.dst->machine, "s390-ccw-virtio-10.0");
        pair.dst->page_size = 8192;
        set_str(&pair.dst->uuid, OTHER_UUID);
        qdict_put_bool(pair.dst->stream, "send-configuration", false);

        side = i % 2 ? pair.dst : pair.src;
        switch (i / 2) {
        case 0:
            set_str(&side->arch, NULL);
            break;
        case 1:
            set_str(&side->machine, NULL);
            break;
        case 2:
            side->page_size = 0;
            break;
        case 3:
            set_str(&side->uuid, NULL);
            break;
        case 4:
            qobject_unref(side->stream);
            side->stream = NULL;
            break;
        }
        pair_compare(&pair);
        g_assert_cmpuint(pair.issues.listed, ==, ARRAY_SIZE(codes) - 1);
        for (l = pair.issues.list; l; l = l->next) {
            g_assert_cmpstr(l->value->code, !=, absent);
        }
        pair_destroy(&pair);
    }
}

/* A peer of whom nothing is known */
static void test_empty(void)
{
    Pair pair;

    pair_init(&pair);
    handshake_profile_free(pair.src);
    pair.src = handshake_profile_new();
    assert_none(&pair);
    swap_sides(&pair);
    assert_none(&pair);
    handshake_profile_free(pair.src);
    pair.src = handshake_profile_new();
    assert_none(&pair);
    pair_destroy(&pair);
}

/* One that sends nothing does not list anything */
static void test_no_parts(void)
{
    Pair pair;

    pair_init(&pair);
    pair.src->sections = handshake_sections_new();
    pair.src->ram_blocks = handshake_ram_blocks_new();
    pair.dst->sections = handshake_sections_new();
    pair.dst->ram_blocks = handshake_ram_blocks_new();
    handshake_sections_add(pair.dst->sections, "ram");
    handshake_ram_blocks_add(pair.dst->ram_blocks, "pc.ram");
    assert_none(&pair);
    handshake_sections_add(pair.src->sections, "idle")->idle = true;
    assert_none(&pair);
    handshake_sections_add(pair.src->sections, "ram");
    handshake_ram_blocks_add(pair.src->ram_blocks, "pc.ram");
    assert_none(&pair);
    pair_destroy(&pair);
}

static void test_all(void)
{
    static const char *const codes[] = {
        "arch", "machine-type", "page-size",
        "stream-format", "stream-format", "stream-format", "stream-format",
        "stream-format",
        "uuid",         /* a warning */
    };
    const MigrationHandshakeIssueList *l;
    int i = 0;
    Pair pair;

    pair_init(&pair);
    set_str(&pair.dst->arch, "s390x");
    set_str(&pair.dst->machine, "s390-ccw-virtio-10.0");
    pair.dst->page_size = 8192;
    set_str(&pair.dst->uuid, OTHER_UUID);
    for (int j = 0; j < ARRAY_SIZE(stream_names); j++) {
        qdict_put_bool(pair.dst->stream, stream_names[j], false);
    }
    QAPI_LIST_PREPEND(pair.effective, g_strdup("multifd"));
    QAPI_LIST_PREPEND(pair.effective, g_strdup("postcopy-preempt"));

    pair_compare(&pair);
    for (l = pair.issues.list; l; l = l->next) {
        g_assert_cmpint(i, <, ARRAY_SIZE(codes));
        g_assert_cmpstr(l->value->code, ==, codes[i++]);
    }
    g_assert_cmpint(i, ==, ARRAY_SIZE(codes));
    g_assert_cmpuint(pair.issues.errors, ==, 8);
    g_assert_cmpuint(pair.issues.warnings, ==, 1);

    /* They are added to what was there */
    handshake_compare(pair.src, pair.dst, NULL, pair.effective, &pair.issues);
    g_assert_cmpuint(pair.issues.listed, ==, 2 * ARRAY_SIZE(codes));
    pair_destroy(&pair);
}

/* What a hostile peer says of itself does not get far */
static void test_hostile(void)
{
    const MigrationHandshakeIssueList *l;
    Pair pair;

    pair_init(&pair);
    g_free(pair.src->machine);
    pair.src->machine = g_strnfill(400000, 'm');
    set_str(&pair.src->arch, "x86\n64\033[2J");
    qdict_put(pair.src->stream, "send-configuration", qlist_new());
    qdict_put(pair.src->stream, "send-section-footer", qdict_new());
    pair_compare(&pair);
    g_assert_cmpuint(pair.issues.listed, ==, 4);
    for (l = pair.issues.list; l; l = l->next) {
        g_assert_cmpuint(strlen(l->value->source), <=, 1024);
        g_assert_cmpuint(strlen(l->value->message), <=, 1024);
        g_assert_null(strpbrk(l->value->source, "\n\033"));
        g_assert_null(strpbrk(l->value->message, "\n\033"));
    }
    pair_destroy(&pair);
}

#define ERROR MIGRATION_HANDSHAKE_SEVERITY_ERROR
#define WARNING MIGRATION_HANDSHAKE_SEVERITY_WARNING

static HandshakeSection *add_section(HandshakeProfile *profile,
                                     const char *name, uint32_t instance,
                                     uint32_t version)
{
    HandshakeSection *section;

    profile->sections = profile->sections ?: handshake_sections_new();
    section = handshake_sections_add(profile->sections, name);
    section->instance = instance;
    section->version = version;
    section->minimum = version;
    return section;
}

static HandshakeRAMBlock *add_block(HandshakeProfile *profile,
                                    const char *name, uint64_t size)
{
    HandshakeRAMBlock *block;

    profile->ram_blocks = profile->ram_blocks ?: handshake_ram_blocks_new();
    block = handshake_ram_blocks_add(profile->ram_blocks, name);
    block->size = size;
    block->max_size = size;
    block->page_size = 4096;
    return block;
}

/* Both have what every machine has */
static void pair_init_parts(Pair *pair)
{
    pair_init(pair);
    add_section(pair->src, "timer", 0, 2);
    add_section(pair->dst, "timer", 0, 2);
    add_block(pair->src, "pc.ram", 1 << 20);
    add_block(pair->dst, "pc.ram", 1 << 20);
    assert_none(pair);
}

static void test_section_missing(void)
{
    HandshakeSection *section;
    Pair pair;

    pair_init_parts(&pair);
    section = add_section(pair.src, "0000:00:02.0/virtio-net", 0, 11);
    assert_part(&pair, "section-missing", "0000:00:02.0/virtio-net", ERROR,
                "version 11", "missing");
    section->conditional = true;
    assert_part(&pair, "section-missing", "0000:00:02.0/virtio-net", WARNING,
                "version 11", "missing");
    /* Of what is not sent, nothing can be missing */
    section->idle = true;
    assert_none(&pair);
    section->conditional = false;
    assert_none(&pair);

    /* It is there if it would read, whether or not it would write */
    section->idle = false;
    section = add_section(pair.dst, "0000:00:02.0/virtio-net", 0, 11);
    assert_none(&pair);
    section->idle = true;
    assert_none(&pair);
    section->conditional = true;
    assert_none(&pair);
    pair_destroy(&pair);
}

/* One CPU more */
static void test_section_instances(void)
{
    Pair pair;

    pair_init_parts(&pair);
    for (int i = 0; i < 4; i++) {
        add_section(pair.src, "cpu", i, 12);
        add_section(pair.dst, "cpu", 3 - i, 12);
    }
    assert_none(&pair);

    add_section(pair.src, "cpu", 4, 12);
    assert_part(&pair, "section-missing", "cpu 4", ERROR, "version 12",
                "missing");
    swap_sides(&pair);
    assert_part(&pair, "section-extra", "cpu 4", WARNING, "missing",
                "present");
    add_section(pair.src, "cpu", UINT32_MAX, 12);
    pair_compare(&pair);
    g_assert_cmpuint(pair.issues.listed, ==, 2);
    assert_issue(pair.issues.list->value, "section-missing", "cpu 4294967295",
                 ERROR, "version 12", "missing");
    pair_destroy(&pair);
}

static void test_section_version(void)
{
    static const struct {
        uint32_t sent, minimum, version;
        const char *range;      /* that is read; NULL if it fits */
    } cases[] = {
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

    for (int i = 0; i < ARRAY_SIZE(cases); i++) {
        g_autofree char *sent = g_strdup_printf("%" PRIu32, cases[i].sent);
        HandshakeSection *src, *dst;
        Pair pair;

        pair_init_parts(&pair);
        src = add_section(pair.src, "apic", 0, cases[i].sent);
        dst = add_section(pair.dst, "apic", 0, cases[i].version);
        /* What the source itself would read does not matter */
        src->minimum = cases[i].sent / 2;
        dst->minimum = cases[i].minimum;
        if (cases[i].range) {
            assert_only(&pair, "section-version", "apic", ERROR, sent,
                        cases[i].range);
            src->conditional = true;
            assert_only(&pair, "section-version", "apic", WARNING, sent,
                        cases[i].range);
            src->idle = true;
            /* That section is as if it were not there */
            pair_compare(&pair);
            assert_found(&pair, "section-extra", "apic", WARNING, "missing",
                         "present");
        } else {
            assert_none(&pair);
        }
        pair_destroy(&pair);
    }
}

static void test_section_extra(void)
{
    HandshakeSection *section;
    Pair pair;

    pair_init_parts(&pair);
    section = add_section(pair.dst, "0000:00:02.0/e1000e", 0, 1);
    assert_part(&pair, "section-extra", "0000:00:02.0/e1000e", WARNING,
                "missing", "present");
    /* The source may have it as well, and not send it either */
    section->conditional = true;
    assert_none(&pair);
    section->conditional = false;
    section->idle = true;
    assert_none(&pair);
    pair_destroy(&pair);
}

/* As qemu_savevm_resolve_section(), for a few names */
static bool fake_resolve(const char **name, uint32_t *instance)
{
    if (!strcmp(*name, "0000:00:03.0/virtio-net")) {
        *name = "virtio-net";               /* an alias */
        *instance = *instance == 3 ? 0 : 9;
        return true;
    }
    if (!strcmp(*name, "slirp")) {
        *name = "net-user";                 /* its former name */
        return true;
    }
    return strcmp(*name, "unheard-of");
}

static void test_section_resolved(void)
{
    Pair pair;

    pair_init_parts(&pair);
    add_section(pair.src, "0000:00:03.0/virtio-net", 3, 11);
    add_section(pair.dst, "virtio-net", 0, 11);
    add_section(pair.src, "slirp", 0, 4);
    add_section(pair.dst, "net-user", 0, 4);
    assert_none_with(&pair, fake_resolve);
    /* They differ without it */
    pair_compare(&pair);
    g_assert_cmpuint(pair.issues.errors, ==, 2);
    g_assert_cmpuint(pair.issues.warnings, ==, 2);

    /* People know the name that the source has for it */
    add_section(pair.src, "0000:00:03.0/virtio-net", 5, 11);
    pair_compare_with(&pair, fake_resolve);
    assert_found(&pair, "section-missing", "0000:00:03.0/virtio-net 5", ERROR,
                 "version 11", "missing");
    add_section(pair.dst, "virtio-net", 9, 10);
    pair_compare_with(&pair, fake_resolve);
    assert_found(&pair, "section-version", "0000:00:03.0/virtio-net 5", ERROR,
                 "11", "10");
    pair_destroy(&pair);

    /* What is resolved may not be in the profile */
    pair_init_parts(&pair);
    add_section(pair.src, "here-and-gone", 0, 1);
    pair_compare_with(&pair, fake_resolve);
    assert_found(&pair, "section-missing", "here-and-gone", ERROR,
                 "version 1", "missing");
    pair_destroy(&pair);
    /* Where the names are the same, nobody is asked: it takes time */
    pair_init_parts(&pair);
    add_section(pair.src, "unheard-of", 0, 1);
    add_section(pair.dst, "unheard-of", 0, 1);
    assert_none_with(&pair, fake_resolve);
    pair_destroy(&pair);
}

static unsigned resolve_count;

static bool counting_resolve(const char **name, uint32_t *instance)
{
    resolve_count++;
    return false;
}

/* A stranger's list may be long, and each look-up takes the loader's time */
static void test_section_flood(void)
{
    Pair pair;

    pair_init_parts(&pair);
    for (int i = 0; i < HANDSHAKE_SECTIONS_MAX; i++) {
        add_section(pair.src, "warp", i, 1);
    }
    resolve_count = 0;
    pair_compare_with(&pair, counting_resolve);
    g_assert_cmpuint(resolve_count, ==, HANDSHAKE_ISSUES_MAX);
    g_assert_cmpuint(pair.issues.errors, ==, HANDSHAKE_SECTIONS_MAX);
    g_assert_cmpuint(pair.issues.listed, ==, HANDSHAKE_ISSUES_MAX);
    g_assert_cmpuint(pair.issues.omitted, ==,
                     HANDSHAKE_SECTIONS_MAX - HANDSHAKE_ISSUES_MAX);
    pair_destroy(&pair);
}

static void test_ram_missing(void)
{
    Pair pair;

    pair_init_parts(&pair);
    add_block(pair.src, "0000:00:01.0/vga.vram", 16777216);
    assert_part(&pair, "ram-block-missing", "0000:00:01.0/vga.vram", ERROR,
                "16777216", "missing");
    swap_sides(&pair);
    assert_part(&pair, "ram-block-extra", "0000:00:01.0/vga.vram", WARNING,
                "missing", "16777216");
    add_block(pair.src, "0000:00:01.0/vga.vram", 16777216);
    assert_none(&pair);
    pair_destroy(&pair);

    /* That of a device which is on its way out may be gone in time */
    pair_init_parts(&pair);
    add_block(pair.src, "0000:00:01.0/nic.rom", 262144)->conditional = true;
    assert_part(&pair, "ram-block-missing", "0000:00:01.0/nic.rom", WARNING,
                "262144", "missing");
    pair_destroy(&pair);
}

static void test_ram_size(void)
{
    static const struct {
        uint64_t sent;
        uint64_t size, max;     /* here; max 0: it is not resizeable */
        uint64_t target, host;  /* page sizes here; 0: unknown */
        const char *text;       /* what is here; NULL if it fits */
    } cases[] = {
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

    for (int i = 0; i < ARRAY_SIZE(cases); i++) {
        g_autofree char *sent = g_strdup_printf("%" PRIu64, cases[i].sent);
        HandshakeRAMBlock *block;
        Pair pair;

        pair_init_parts(&pair);
        pair.dst->page_size = cases[i].target;
        pair.src->page_size = cases[i].target;
        pair.dst->host_page_size = cases[i].host;
        /* It is the destination that puts it into its memory */
        pair.src->host_page_size = 1 << 20;
        block = add_block(pair.src, "block", cases[i].sent);
        block->resizeable = i & 1;
        block->max_size = UINT64_MAX;
        block = add_block(pair.dst, "block", cases[i].size);
        block->resizeable = cases[i].max;
        block->max_size = cases[i].max ?: cases[i].size;
        if (cases[i].text) {
            assert_only(&pair, "ram-block-size", "block", ERROR, sent,
                        cases[i].text);
        } else {
            assert_none(&pair);
        }
        pair_destroy(&pair);
    }
}

/* Whether @capability is barred, in the words of @reason */
static void assert_barred(const Pair *pair, const char *capability,
                          const char *reason)
{
    g_autoptr(Error) err = NULL;

    g_assert_false(handshake_compare_capability(pair->src, pair->dst,
                                                capability, &err));
    g_assert_nonnull(strstr(error_get_pretty(err), reason));
}

static void assert_not_barred(const Pair *pair, const char *capability)
{
    g_assert_true(handshake_compare_capability(pair->src, pair->dst,
                                               capability, &error_abort));
}

#define HUGE_PAGE   (2 << 20)

static void test_ram_page_size(void)
{
    HandshakeRAMBlock *block, *other;
    Pair pair;

    pair_init_parts(&pair);
    block = add_block(pair.src, "hugepages", 4 * HUGE_PAGE);
    block->page_size = HUGE_PAGE;
    other = add_block(pair.dst, "hugepages", 4 * HUGE_PAGE);

    /* Precopy does not care, and nobody has to know it in advance */
    assert_none(&pair);
    QAPI_LIST_PREPEND(pair.src->capabilities, g_strdup("postcopy-ram"));
    QAPI_LIST_PREPEND(pair.dst->capabilities, g_strdup("postcopy-ram"));
    QAPI_LIST_PREPEND(pair.effective, g_strdup("multifd"));
    assert_none(&pair);
    assert_barred(&pair, "postcopy-ram", "'hugepages'");
    assert_not_barred(&pair, "postcopy-preempt");

    QAPI_LIST_PREPEND(pair.effective, g_strdup("postcopy-ram"));
    assert_only(&pair, "ram-block-page-size", "hugepages", ERROR, "2097152",
                "4096");
    swap_sides(&pair);
    assert_only(&pair, "ram-block-page-size", "hugepages", ERROR, "4096",
                "2097152");
    assert_barred(&pair, "postcopy-ram", "'hugepages'");

    /* It may not be known */
    block->page_size = 0;
    assert_none(&pair);
    assert_not_barred(&pair, "postcopy-ram");
    swap_sides(&pair);
    assert_none(&pair);
    block->page_size = other->page_size;
    assert_none(&pair);
    pair_destroy(&pair);
}

/* Postcopy tells all page sizes in one number, and wants it to be the same */
static void test_ram_page_size_summary(void)
{
    HandshakeRAMBlock *block;
    Pair pair;

    pair_init_parts(&pair);
    block = add_block(pair.dst, "of-one-side", 4 * HUGE_PAGE);
    block->page_size = HUGE_PAGE;
    assert_part(&pair, "ram-block-extra", "of-one-side", WARNING, "missing",
                "8388608");

    QAPI_LIST_PREPEND(pair.effective, g_strdup("postcopy-ram"));
    pair_compare(&pair);
    g_assert_cmpuint(pair.issues.listed, ==, 2);
    assert_issue(pair.issues.list->value, "ram-block-page-size",
                 "all RAM blocks", ERROR, "4096", "2101248");
    assert_barred(&pair, "postcopy-ram", "2101248");

    /* Pages that others have as well */
    block->page_size = 4096;
    assert_part(&pair, "ram-block-extra", "of-one-side", WARNING, "missing",
                "8388608");
    assert_not_barred(&pair, "postcopy-ram");

    /* Where one is not known, so is the sum */
    block->page_size = 0;
    assert_part(&pair, "ram-block-extra", "of-one-side", WARNING, "missing",
                "8388608");

    /* Each single one is alike, and the sums are not: said once */
    block->page_size = HUGE_PAGE;
    block = add_block(pair.src, "of-one-side", 4 * HUGE_PAGE);
    block->page_size = 4096;
    assert_only(&pair, "ram-block-page-size", "of-one-side", ERROR, "4096",
                "2097152");
    block->page_size = 0;
    assert_none(&pair);
    pair_destroy(&pair);
}

static void test_ignore_shared(void)
{
    HandshakeRAMBlock *src, *dst;
    Pair pair;

    pair_init_parts(&pair);
    src = add_block(pair.src, "file", 1 << 20);
    dst = add_block(pair.dst, "file", 1 << 20);
    src->shared_file = true;
    src->has_address = true;
    src->address = 0x100000000;

    /* Only that capability takes the contents of a file for granted */
    assert_none(&pair);
    QAPI_LIST_PREPEND(pair.effective, g_strdup("postcopy-ram"));
    assert_none(&pair);
    assert_barred(&pair, "x-ignore-shared", "'file'");
    assert_not_barred(&pair, "postcopy-ram");

    QAPI_LIST_PREPEND(pair.effective, g_strdup("x-ignore-shared"));
    assert_only(&pair, "capability-unsupported", "x-ignore-shared", ERROR,
                "a shared file", "not a shared file");
    g_assert_nonnull(strstr(pair.issues.list->value->message, "'file'"));
    swap_sides(&pair);
    assert_only(&pair, "capability-unsupported", "x-ignore-shared", ERROR,
                "not a shared file", "a shared file");
    swap_sides(&pair);

    /* A device's memory may have its contents elsewhere: ivshmem */
    g_free(src->name);
    g_free(dst->name);
    src->name = g_strdup("0000:00:04.0/ivshmem");
    dst->name = g_strdup("0000:00:04.0/ivshmem");
    assert_only(&pair, "capability-unsupported", "x-ignore-shared", WARNING,
                "a shared file", "not a shared file");
    assert_not_barred(&pair, "x-ignore-shared");
    swap_sides(&pair);
    assert_only(&pair, "capability-unsupported", "x-ignore-shared", ERROR,
                "not a shared file", "a shared file");
    swap_sides(&pair);
    g_free(src->name);
    g_free(dst->name);
    src->name = g_strdup("/objects/file");      /* an older machine's RAM */
    dst->name = g_strdup("/objects/file");
    assert_only(&pair, "capability-unsupported", "x-ignore-shared", ERROR,
                "a shared file", "not a shared file");

    /* It must be at the same place */
    dst->shared_file = true;
    dst->has_address = true;
    assert_only(&pair, "capability-unsupported", "x-ignore-shared", ERROR,
                "at 0x100000000", "at 0x0");
    assert_barred(&pair, "x-ignore-shared", "0x100000000");
    dst->address = 0x100000000;
    assert_none(&pair);
    assert_not_barred(&pair, "x-ignore-shared");
    dst->has_address = false;
    assert_none(&pair);

    /* What one side has alone is not about the capability */
    add_block(pair.src, "mine", 1 << 20)->shared_file = true;
    assert_part(&pair, "ram-block-missing", "mine", ERROR, "1048576",
                "missing");
    assert_not_barred(&pair, "x-ignore-shared");
    pair_destroy(&pair);
}

static void test_unmigratable(void)
{
    Pair pair;

    pair_init_parts(&pair);
    QAPI_LIST_PREPEND(pair.src->unmigratable, g_strdup("0000:00:02.0/nvme"));
    assert_part(&pair, "unmigratable", "0000:00:02.0/nvme", ERROR,
                "not migratable", NULL);
    swap_sides(&pair);
    assert_part(&pair, "unmigratable", "0000:00:02.0/nvme", ERROR,
                NULL, "not migratable");

    /* All of them */
    QAPI_LIST_PREPEND(pair.dst->unmigratable, g_strdup("b"));
    QAPI_LIST_PREPEND(pair.src->unmigratable, g_strdup("c"));
    pair_compare(&pair);
    g_assert_cmpuint(pair.issues.errors, ==, 3);
    pair_destroy(&pair);
}

/* What blocks the source keeps it there; a destination's does not matter */
static void test_blockers(void)
{
    const MigrationHandshakeIssue *issue;
    Pair pair;

    pair_init_parts(&pair);
    QAPI_LIST_PREPEND(pair.src->blockers, g_strdup("the disk is in use"));
    QAPI_LIST_PREPEND(pair.src->blockers, g_strdup("not today"));
    pair_compare(&pair);
    g_assert_cmpuint(pair.issues.errors, ==, 2);
    g_assert_cmpuint(pair.issues.warnings, ==, 0);
    issue = pair.issues.list->value;
    g_assert_cmpstr(issue->code, ==, "unmigratable");
    g_assert_cmpstr(issue->source, ==, "blocked");
    g_assert_null(issue->destination);
    g_assert_nonnull(strstr(issue->message, "not today"));
    issue = pair.issues.list->next->value;
    g_assert_nonnull(strstr(issue->message, "the disk is in use"));

    swap_sides(&pair);
    pair_compare(&pair);
    g_assert_cmpuint(pair.issues.errors, ==, 0);
    pair_destroy(&pair);
}

/* A source that says nothing of its parts is of an earlier version */
static void test_parts_absent(void)
{
    Pair pair;

    pair_init_parts(&pair);
    QAPI_LIST_PREPEND(pair.effective, g_strdup("postcopy-ram"));
    QAPI_LIST_PREPEND(pair.effective, g_strdup("x-ignore-shared"));
    add_section(pair.dst, "extra", 0, 1);
    add_block(pair.dst, "extra", 4096)->shared_file = true;
    for (int i = 0; i < 2; i++) {
        g_clear_pointer(&pair.src->sections, g_ptr_array_unref);
        pair_compare(&pair);
        g_assert_cmpuint(pair.issues.listed, ==, 1);
        g_assert_cmpstr(pair.issues.list->value->subject, ==, "extra");
        g_assert_true(g_str_has_prefix(pair.issues.list->value->code,
                                       "ram-block-"));
        g_clear_pointer(&pair.src->ram_blocks, g_ptr_array_unref);
        assert_none(&pair);
        assert_not_barred(&pair, "postcopy-ram");
        assert_not_barred(&pair, "x-ignore-shared");
        swap_sides(&pair);
        assert_none(&pair);
        assert_not_barred(&pair, "postcopy-ram");
        assert_not_barred(&pair, "x-ignore-shared");

        add_section(pair.dst, "extra", 0, 1);
        add_block(pair.dst, "extra", 4096);
        g_clear_pointer(&pair.src->sections, g_ptr_array_unref);
        g_clear_pointer(&pair.src->ram_blocks, g_ptr_array_unref);
        add_block(pair.src, "pc.ram", 1 << 20);
        add_block(pair.dst, "pc.ram", 1 << 20);
    }
    pair_destroy(&pair);
}

/* Properties that hold whatever two machines are like */

#define ROUNDS 3000

static bool coin(void)
{
    return g_test_rand_bit();
}

/* Small numbers, which meet each other, and those at the ends */
static uint32_t random_number(void)
{
    static const uint32_t ends[] = { UINT32_MAX, INT32_MAX, 1u << 31 };

    return g_test_rand_int_range(0, 20)
        ? g_test_rand_int_range(0, 6)
        : ends[g_test_rand_int_range(0, ARRAY_SIZE(ends))];
}

static const char *const random_names[] = {
    "ram", "timer", "cpu", "apic", "0000:00:01.0/vga", "0000:00:02.0/virtio",
    "pc.ram", "pc.bios", "0000:00:01.0/vga.vram", "/rom@etc/acpi/tables", "",
    "\xc3\xa4",
};

static const char *random_name(void)
{
    return random_names[g_test_rand_int_range(0, ARRAY_SIZE(random_names))];
}

static bool has_section(const HandshakeProfile *profile, const char *name,
                        uint32_t instance)
{
    for (guint i = 0; i < profile->sections->len; i++) {
        HandshakeSection *section = g_ptr_array_index(profile->sections, i);

        if (section->instance == instance && !strcmp(section->name, name)) {
            return true;
        }
    }
    return false;
}

static bool has_block(const HandshakeProfile *profile, const char *name)
{
    for (guint i = 0; i < profile->ram_blocks->len; i++) {
        HandshakeRAMBlock *block = g_ptr_array_index(profile->ram_blocks, i);

        if (!strcmp(block->name, name)) {
            return true;
        }
    }
    return false;
}

/* One that @profile has not got yet, if it is a @sane machine */
static void random_section(HandshakeProfile *profile, bool sane)
{
    const char *name = random_name();
    uint32_t instance = random_number();
    HandshakeSection *section;

    if (sane && has_section(profile, name, instance)) {
        return;
    }
    section = add_section(profile, name, instance, random_number());
    section->minimum = sane ? MIN(section->version, random_number())
                            : random_number();
    section->conditional = coin();
    section->idle = coin();
}

static void random_block(HandshakeProfile *profile, bool sane)
{
    uint64_t page_size = coin() ? 4096 : coin() ? HUGE_PAGE : 0;
    /* As the one of a machine is */
    uint64_t unit = sane ? 65536 : 1000;
    const char *name = random_name();
    HandshakeRAMBlock *block;

    if (sane && has_block(profile, name)) {
        return;
    }
    block = add_block(profile, name, random_number() * unit);
    block->max_size = block->size + random_number() * unit;
    block->resizeable = coin();
    block->page_size = page_size;
    block->shared_file = coin();
    block->has_address = coin();
    block->address = random_number();
}

/* With a member more or less, and a part more or less */
static HandshakeProfile *random_profile(bool sane)
{
    HandshakeProfile *profile = profile_new();
    int sections = g_test_rand_int_range(0, 12);
    int blocks = g_test_rand_int_range(0, 6);

    profile->host_page_size = coin() ? 4096 : coin() ? 65536 : 0;
    if (coin()) {
        set_str(&profile->arch, coin() ? "aarch64" : coin() ? "i386" : NULL);
        set_str(&profile->machine, coin() ? "virt" : NULL);
        set_str(&profile->uuid, coin() ? OTHER_UUID : NULL);
        profile->page_size = coin() ? 65536 : 0;
    }
    for (int i = 0; i < ARRAY_SIZE(stream_names); i++) {
        if (coin()) {
            qdict_put_bool(profile->stream, stream_names[i], coin());
        } else if (coin()) {
            qdict_del(profile->stream, stream_names[i]);
        }
    }
    if (coin()) {
        QAPI_LIST_PREPEND(profile->capabilities, g_strdup("validate-uuid"));
    }
    if (!sane && coin()) {
        QAPI_LIST_PREPEND(profile->unmigratable, g_strdup(random_name()));
    }
    if (g_test_rand_int_range(0, 10)) {
        profile->sections = handshake_sections_new();
        profile->ram_blocks = handshake_ram_blocks_new();
        while (sections--) {
            random_section(profile, sane);
        }
        while (blocks--) {
            random_block(profile, sane);
        }
    }
    return profile;
}

static strList *random_capabilities(void)
{
    static const char *const names[] = {
        "return-path", "multifd", "postcopy-ram", "postcopy-preempt",
        "x-ignore-shared", "dirty-bitmaps", "switchover-ack",
    };
    strList *list = NULL;

    for (int i = 0; i < ARRAY_SIZE(names); i++) {
        if (coin()) {
            QAPI_LIST_PREPEND(list, g_strdup(names[i]));
        }
    }
    return list;
}

static Pair random_pair(bool sane)
{
    return (Pair) {
        .src = random_profile(sane),
        .dst = random_profile(sane),
        .effective = random_capabilities(),
    };
}

/* A machine can always take its own guest, or one of a twin's */
static void test_random_same(void)
{
    for (int i = 0; i < ROUNDS; i++) {
        Pair pair = random_pair(true);

        handshake_profile_free(pair.dst);
        pair.dst = pair.src;
        assert_none(&pair);
        for (strList *l = pair.effective; l; l = l->next) {
            assert_not_barred(&pair, l->value);
        }
        pair.dst = NULL;
        pair_destroy(&pair);
    }
}

/* As far as a profile is told to the other side, idle sections aside */
static HandshakeProfile *tell(const HandshakeProfile *profile)
{
    HandshakeHello hello = {
        .purpose = (char *)"migrate",
        .profile = (HandshakeProfile *)profile,
    };
    g_autofree char *text = handshake_hello_to_json(&hello);
    g_autoptr(HandshakeHello) heard =
        handshake_hello_from_json(text, strlen(text), NULL, &error_abort);

    return g_steal_pointer(&heard->profile);
}

/* What a destination has besides may be worth a word, and nothing more */
static void test_random_extra(void)
{
    for (int i = 0; i < ROUNDS; i++) {
        Pair pair = random_pair(true);
        HandshakeProfile *dst = pair.src;
        guint sections, blocks;

        handshake_profile_free(pair.dst);
        pair.dst = dst;
        pair.src = tell(dst);
        dst->sections = dst->sections ?: handshake_sections_new();
        dst->ram_blocks = dst->ram_blocks ?: handshake_ram_blocks_new();
        sections = dst->sections->len;
        blocks = dst->ram_blocks->len;
        for (int j = g_test_rand_int_range(0, 8); j; j--) {
            random_section(dst, true);
            random_block(dst, true);
        }
        for (guint j = blocks; j < dst->ram_blocks->len; j++) {
            HandshakeRAMBlock *block = g_ptr_array_index(dst->ram_blocks, j);
            HandshakeRAMBlock *like = g_ptr_array_index(dst->ram_blocks, 0);

            block->page_size = like->page_size;
        }

        pair_compare(&pair);
        g_assert_cmpuint(pair.issues.errors, ==, 0);
        g_assert_cmpuint(pair.issues.warnings, <=,
                         dst->sections->len - sections +
                         dst->ram_blocks->len - blocks);
        pair_destroy(&pair);
    }
}

static char *issue_text(const MigrationHandshakeIssue *issue)
{
    return g_strdup_printf("%s|%d|%s|%s|%s|%s", issue->code, issue->severity,
                           issue->subject, issue->source ?: "(none)",
                           issue->destination ?: "(none)", issue->message);
}

static int compare_texts(gconstpointer a, gconstpointer b)
{
    return strcmp(*(const char *const *)a, *(const char *const *)b);
}

/* All of it, in the order of an alphabet */
static char *sorted_issues(const HandshakeIssues *issues)
{
    g_autoptr(GPtrArray) texts = g_ptr_array_new_with_free_func(g_free);

    for (MigrationHandshakeIssueList *l = issues->list; l; l = l->next) {
        g_ptr_array_add(texts, issue_text(l->value));
    }
    g_ptr_array_sort(texts, compare_texts);
    g_ptr_array_add(texts, NULL);
    return g_strjoinv("\n", (char **)texts->pdata);
}

/* Any two, whatever is wrong with each of them */
static void test_random_pairs(void)
{
    for (int i = 0; i < ROUNDS; i++) {
        Pair pair = random_pair(false);
        g_autofree char *issues = NULL;
        unsigned errors;

        pair_compare(&pair);
        errors = pair.issues.errors;
        g_assert_cmpuint(pair.issues.errors + pair.issues.warnings, ==,
                         pair.issues.listed);
        issues = sorted_issues(&pair.issues);
        for (MigrationHandshakeIssueList *l = pair.issues.list; l;
             l = l->next) {
            g_assert_nonnull(l->value->subject);
            g_assert_cmpstr(l->value->message, !=, "");
        }

        /* Again, and then with what the destination would have been told */
        for (int j = 0; j < 2; j++) {
            g_autofree char *again = NULL;

            pair_compare(&pair);
            again = sorted_issues(&pair.issues);
            g_assert_cmpstr(again, ==, issues);
            if (!j) {
                HandshakeProfile *told = tell(pair.src);

                handshake_profile_free(pair.src);
                pair.src = told;
            }
        }

        /* A capability more does not make anything better */
        for (strList *l = pair.effective; l; l = l->next) {
            g_autoptr(Error) err = NULL;

            if (!handshake_compare_capability(pair.src, pair.dst, l->value,
                                              &err)) {
                g_assert_cmpuint(errors, >, 0);
                g_assert_nonnull(strstr(issues, error_get_pretty(err)));
            }
        }
        pair_destroy(&pair);
    }
}

/* A large machine: what the handshake of two such costs them */
static HandshakeProfile *large_profile(void)
{
    HandshakeProfile *profile = profile_new();

    for (int i = 0; i < 1000; i++) {
        g_autofree char *name =
            g_strdup_printf("0000:%02x:%02x.%d/virtio-net", i / 256,
                            i / 8 % 32, i % 8);

        add_section(profile, name, 0, 11)->conditional = i % 7 == 0;
    }
    for (int i = 0; i < 200; i++) {
        g_autofree char *name = g_strdup_printf("/objects/ram%d", i);

        add_block(profile, name, 1 << 30);
    }
    return profile;
}

static void test_speed(void)
{
    g_autoptr(HandshakeProfile) dst = large_profile();
    clock_t best = 0;
    size_t len = 0;

    for (int i = 0; i < 10; i++) {
        g_autoptr(HandshakeVerdict) verdict = handshake_verdict_new();
        g_autoptr(HandshakeVerdict) answer = NULL;
        g_autoptr(HandshakeHello) hello = handshake_hello_new();
        g_autoptr(HandshakeHello) heard = NULL;
        g_autofree char *text = NULL;
        g_autofree char *reply = NULL;
        clock_t time;

        hello->purpose = g_strdup("migrate");
        handshake_profile_free(hello->profile);
        hello->profile = large_profile();
        QAPI_LIST_PREPEND(verdict->capabilities, g_strdup("postcopy-ram"));

        time = clock();
        text = handshake_hello_to_json(hello);
        heard = handshake_hello_from_json(text, strlen(text), NULL,
                                          &error_abort);
        handshake_compare(heard->profile, dst, NULL, verdict->capabilities,
                          &verdict->issues);
        verdict->accept = true;
        reply = handshake_verdict_to_json(verdict);
        answer = handshake_verdict_from_json(reply, strlen(reply), true,
                                             &error_abort);
        time = clock() - time;

        g_assert_null(answer->issues.list);
        len = strlen(text);
        best = i ? MIN(best, time) : time;
    }
    g_test_message("1000 sections and 200 RAM blocks: %zu bytes, "
                   "%.2f ms of CPU time", len, best * 1000.0 / CLOCKS_PER_SEC);
#ifndef QEMU_SANITIZE_ADDRESS
    g_assert_cmpint(best, <, CLOCKS_PER_SEC / 20);
#endif
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);

    g_test_add_func("/migration/handshake/compat/same", test_same);
    g_test_add_func("/migration/handshake/compat/irrelevant", test_irrelevant);
    g_test_add_func("/migration/handshake/compat/arch", test_arch);
    g_test_add_func("/migration/handshake/compat/machine", test_machine);
    g_test_add_func("/migration/handshake/compat/page-size", test_page_size);
    g_test_add_func("/migration/handshake/compat/uuid", test_uuid);
    g_test_add_func("/migration/handshake/compat/stream", test_stream);
    g_test_add_func("/migration/handshake/compat/stream/tolerated",
                    test_stream_tolerated);
    g_test_add_func("/migration/handshake/compat/absent", test_absent);
    g_test_add_func("/migration/handshake/compat/empty", test_empty);
    g_test_add_func("/migration/handshake/compat/no-parts", test_no_parts);
    g_test_add_func("/migration/handshake/compat/all", test_all);
    g_test_add_func("/migration/handshake/compat/hostile", test_hostile);
    g_test_add_func("/migration/handshake/compat/section/missing",
                    test_section_missing);
    g_test_add_func("/migration/handshake/compat/section/instances",
                    test_section_instances);
    g_test_add_func("/migration/handshake/compat/section/version",
                    test_section_version);
    g_test_add_func("/migration/handshake/compat/section/extra",
                    test_section_extra);
    g_test_add_func("/migration/handshake/compat/section/resolved",
                    test_section_resolved);
    g_test_add_func("/migration/handshake/compat/ram/missing",
                    test_ram_missing);
    g_test_add_func("/migration/handshake/compat/ram/size", test_ram_size);
    g_test_add_func("/migration/handshake/compat/ram/page-size",
                    test_ram_page_size);
    g_test_add_func("/migration/handshake/compat/ram/page-size/summary",
                    test_ram_page_size_summary);
    g_test_add_func("/migration/handshake/compat/section/flood",
                    test_section_flood);
    g_test_add_func("/migration/handshake/compat/ram/ignore-shared",
                    test_ignore_shared);
    g_test_add_func("/migration/handshake/compat/unmigratable",
                    test_unmigratable);
    g_test_add_func("/migration/handshake/compat/blockers", test_blockers);
    g_test_add_func("/migration/handshake/compat/parts-absent",
                    test_parts_absent);
    g_test_add_func("/migration/handshake/compat/random/same",
                    test_random_same);
    g_test_add_func("/migration/handshake/compat/random/extra",
                    test_random_extra);
    g_test_add_func("/migration/handshake/compat/random/pairs",
                    test_random_pairs);
    g_test_add_func("/migration/handshake/compat/speed", test_speed);

    return g_test_run();
}
