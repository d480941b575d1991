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

static void pair_compare(Pair *pair)
{
    handshake_issues_free(&pair->issues);
    handshake_compare(pair->src, pair->dst, NULL, pair->effective, &pair->issues);
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
    /* A person must find both in the sentence */
    g_assert_nonnull(strstr(issue->message, source));
    g_assert_nonnull(strstr(issue->message, destination));
}

/* The one thing that is wrong */
static void assert_only(Pair *pair, const char *code, const char *subject,
                        MigrationHandshakeSeverity severity,
                        const char *source, const char *destination)
{
    bool error = severity == MIGRATION_HANDSHAKE_SEVERITY_ERROR;

    pair_compare(pair);
    g_assert_cmpuint(pair->issues.listed, ==, 1);
    g_assert_cmpuint(pair->issues.errors, ==, error);
    g_assert_cmpuint(pair->issues.warnings, ==, !error);
    assert_issue(pair->issues.list->value, code, subject, severity,
                 source, destination);
}

static void assert_none(Pair *pair)
{
    pair_compare(pair);
    if (pair->issues.list) {
        g_error("unexpected issue: %s", pair->issues.list->value->message);
    }
    g_assert_cmpuint(pair->issues.errors, ==, 0);
    g_assert_cmpuint(pair->issues.warnings, ==, 0);
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
        MigrationHandshakeSeverity severity;
        const char *capability;
    } properties[] = {
        { "send-configuration", MIGRATION_HANDSHAKE_SEVERITY_ERROR },
        { "send-section-footer", MIGRATION_HANDSHAKE_SEVERITY_ERROR },
        { "suppress-vmdesc", MIGRATION_HANDSHAKE_SEVERITY_WARNING },
        { "multifd-flush-after-each-section",
          MIGRATION_HANDSHAKE_SEVERITY_ERROR, "multifd" },
        { "x-preempt-pre-7-2",
          MIGRATION_HANDSHAKE_SEVERITY_ERROR, "postcopy-preempt" },
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
        assert_only(&pair, "stream-format", name, properties[i].severity,
                    "true", "false");
        g_assert_nonnull(strstr(pair.issues.list->value->message, name));
        assert_bars(&pair, properties[i].capability, name);
        swap_sides(&pair);
        assert_only(&pair, "stream-format", name, properties[i].severity,
                    "false", "true");
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
        assert_only(&pair, "stream-format", name, properties[i].severity,
                    "of late", "false");
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

static void test_all(void)
{
    static const char *const codes[] = {
        "arch", "machine-type", "page-size", "uuid",
        "stream-format", "stream-format", "stream-format", "stream-format",
        "stream-format",
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
    g_assert_cmpuint(pair.issues.errors, ==, 7);
    g_assert_cmpuint(pair.issues.warnings, ==, 2);

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
    g_test_add_func("/migration/handshake/compat/all", test_all);
    g_test_add_func("/migration/handshake/compat/hostile", test_hostile);

    return g_test_run();
}
