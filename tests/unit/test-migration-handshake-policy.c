/*
 * Migration handshake: who decides about each capability, and negotiation
 *
 * What is set and what is possible on this host comes from the stubs below.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "qapi/error.h"
#include "qapi/util.h"
#include "qapi/qapi-builtin-types.h"
#include "migration/handshake/machine.h"
#include "migration/handshake/settings.h"

#define FEATURES "grease-00000000 named-channels later"

/* A host on which some things do not work, and a QEMU with some settings */
static struct {
    const char *impossible;     /* does not work at all */
    const char *rivals[2];      /* do not work together */
    const char *needs[2];       /* the first one needs the second one */
    const char *mismatch;       /* what the two machines cannot do */
    const char *enabled;
    const char *channels;
    const char *compression;
    MigrationHandshakeRole role;        /* whose capabilities are tried */
    unsigned capabilities_tried;
    unsigned parameters_tried;
} host;

static void host_reset(void)
{
    memset(&host, 0, sizeof(host));
    host.enabled = "";
    host.channels = "2";
    host.compression = "none";
    host.role = MIGRATION_HANDSHAKE_ROLE_DESTINATION;
}

static strList *names_from(const char *text)
{
    g_auto(GStrv) split = g_strsplit(text, " ", 0);
    strList *list = NULL;
    strList **tail = &list;

    for (char **name = split; *name; name++) {
        QAPI_LIST_APPEND(tail, g_strdup(*name));
    }
    return list;
}

static strList *many_names(int count, const char *prefix)
{
    strList *list = NULL;

    for (int i = 0; i < count; i++) {
        QAPI_LIST_PREPEND(list, g_strdup_printf("%s%d", prefix, i));
    }
    return list;
}

static unsigned count_names(const strList *list)
{
    unsigned count = 0;

    for (; list; list = list->next) {
        count++;
    }
    return count;
}

/* In this order */
static void assert_list(const strList *list, const char *expected)
{
    g_autoptr(GString) text = g_string_new(NULL);

    for (; list; list = list->next) {
        g_string_append_printf(text, "%s%s", text->len ? " " : "", list->value);
    }
    g_assert_cmpstr(text->str, ==, expected);
}

/* In any order */
static void assert_set(const strList *list, const char *expected)
{
    g_autoptr(strList) names = names_from(expected);

    for (const strList *l = names; l; l = l->next) {
        if (!handshake_has_name(list, l->value)) {
            g_error("'%s' is missing", l->value);
        }
    }
    g_assert_cmpuint(count_names(list), ==, count_names(names));
}

/* Words "capability:name=value" */
static MigrationHandshakeParameterList *parameters_from(const char *text)
{
    g_autoptr(strList) words = names_from(text);
    MigrationHandshakeParameterList *list = NULL;
    MigrationHandshakeParameterList **tail = &list;

    for (strList *l = words; l; l = l->next) {
        g_auto(GStrv) parts = g_strsplit_set(l->value, ":=", 3);
        MigrationHandshakeParameter *p =
            g_new0(MigrationHandshakeParameter, 1);

        p->capability = g_strdup(parts[0]);
        p->name = g_strdup(parts[1]);
        p->value = g_strdup(parts[2]);
        QAPI_LIST_APPEND(tail, p);
    }
    return list;
}

static void assert_parameters(const MigrationHandshakeParameterList *list,
                              const char *expected)
{
    g_autoptr(GString) text = g_string_new(NULL);

    for (; list; list = list->next) {
        const MigrationHandshakeParameter *p = list->value;

        g_string_append_printf(text, "%s%s:%s=%s", text->len ? " " : "",
                               p->capability, p->name, p->value);
    }
    g_assert_cmpstr(text->str, ==, expected);
}

strList *handshake_settings_capabilities(void)
{
    return names_from(host.enabled);
}

char *handshake_settings_parameter(MigrationParameter parameter)
{
    return g_strdup(parameter == MIGRATION_PARAMETER_MULTIFD_CHANNELS
                    ? host.channels : host.compression);
}

bool handshake_settings_try_capabilities(const strList *names,
                                         MigrationHandshakeRole role,
                                         Error **errp)
{
    static const char *const needs[][2] = {
        { "postcopy-preempt", "postcopy-ram" },
    };

    host.capabilities_tried++;
    g_assert_cmpint(role, ==, host.role);
    g_assert_true(handshake_has_name(names, "return-path"));
    for (const strList *l = names; l; l = l->next) {
        HandshakePolicy policy = handshake_policy_capability(l->value);

        /* Nothing but what is to be tried, and each once */
        g_assert_true(policy == HANDSHAKE_POLICY_NEGOTIATED ||
                      policy == HANDSHAKE_POLICY_ALWAYS);
        g_assert_false(handshake_has_name(l->next, l->value));
    }
    if (host.impossible && handshake_has_name(names, host.impossible)) {
        error_setg(errp, "this host has no %s", host.impossible);
        return false;
    }
    if (host.rivals[0] && handshake_has_name(names, host.rivals[0]) &&
        handshake_has_name(names, host.rivals[1])) {
        error_setg(errp, "%s does not go with %s", host.rivals[0],
                   host.rivals[1]);
        return false;
    }
    for (int i = 0; i < 2; i++) {
        const char *const *pair = i ? host.needs : needs[0];

        if (pair[0] && handshake_has_name(names, pair[0]) &&
            !handshake_has_name(names, pair[1])) {
            error_setg(errp, "%s requires %s", pair[0], pair[1]);
            return false;
        }
    }
    return true;
}

bool handshake_settings_try_parameter(MigrationParameter parameter,
                                      const char *value,
                                      MigrationHandshakeRole role,
                                      Error **errp)
{
    host.parameters_tried++;
    g_assert_cmpint(role, ==, host.role);
    if (strcmp(value, parameter == MIGRATION_PARAMETER_MULTIFD_CHANNELS
                      ? "4" : "zstd")) {
        error_setg(errp, "no value '%s' here", value);
        return false;
    }
    return true;
}

bool handshake_compare_capability(const MigrationProfile *source,
                                  const MigrationProfile *destination,
                                  const char *capability, Error **errp)
{
    g_assert_nonnull(source);
    g_assert_nonnull(destination);
    if (host.mismatch && !strcmp(capability, host.mismatch)) {
        error_setg(errp, "the machines differ in %s", capability);
        return false;
    }
    return true;
}

static MigrationHandshakeHello *hello_new(const char *required,
                                          const char *optional,
                                          const char *parameters)
{
    MigrationHandshakeHello *hello = g_new0(MigrationHandshakeHello, 1);

    hello->purpose = g_strdup(HANDSHAKE_PURPOSE_MIGRATE);
    hello->has_features = true;
    hello->features = names_from(FEATURES);
    hello->has_optional_capabilities = true;
    hello->optional_capabilities = names_from(optional);
    hello->profile = g_new0(MigrationProfile, 1);
    hello->profile->has_required_capabilities = true;
    hello->profile->required_capabilities = names_from(required);
    hello->profile->has_parameters = true;
    hello->profile->parameters = parameters_from(parameters);
    return hello;
}

static HandshakeVerdict *answer(const MigrationHandshakeHello *hello)
{
    static const MigrationProfile local;
    HandshakeVerdict *verdict = handshake_verdict_new(true);

    handshake_negotiate(hello, &local, verdict);
    verdict->message->has_features = true;
    verdict->message->features = names_from("named-channels");
    return verdict;
}

static HandshakeVerdict *negotiate(const char *required, const char *optional,
                                   const char *parameters)
{
    g_autoptr(MigrationHandshakeHello) hello =
        hello_new(required, optional, parameters);

    return answer(hello);
}

static const MigrationHandshakeIssue *
find_issue(const HandshakeVerdict *verdict, const char *code,
           const char *subject)
{
    const MigrationHandshakeIssueList *l;

    for (l = verdict->issues.list; l; l = l->next) {
        if (!strcmp(l->value->code, code) &&
            !g_strcmp0(l->value->subject, subject)) {
            return l->value;
        }
    }
    g_error("no issue '%s' about '%s'", code, subject);
}

/* The only thing that is wrong */
static void assert_issue(const HandshakeVerdict *verdict, const char *code,
                         const char *subject, const char *text)
{
    const MigrationHandshakeIssue *issue = find_issue(verdict, code, subject);

    g_assert_cmpuint(verdict->issues.errors, ==, 1);
    g_assert_nonnull(issue->source);
    g_assert_nonnull(issue->destination);
    if (!strstr(issue->message, text)) {
        g_error("expected '%s' in '%s'", text, issue->message);
    }
}

/* @text is part of the reason; NULL if @name was not declined */
static void assert_declined(const MigrationHandshakeDeclinedList *declined,
                            const char *name, const char *text)
{
    const char *reason = NULL;

    for (; declined; declined = declined->next) {
        if (!strcmp(declined->value->capability, name)) {
            g_assert_null(reason);
            reason = declined->value->reason;
        }
    }
    if (text ? !reason || !strstr(reason, text) : reason != NULL) {
        g_error("%s: expected '%s', not '%s'", name, text, reason);
    }
}

/*
 * If one of these two fails, this QEMU has a capability or a parameter that
 * policy.c may not know of.  Decide who decides about it.  If it is negotiated,
 * see settings.c and MigrationNegotiated as well.
 */
static void test_all_capabilities(void)
{
    static const char *const policies[] = {
        [HANDSHAKE_POLICY_NEGOTIATED] =
            "postcopy-ram multifd dirty-bitmaps x-ignore-shared "
            "postcopy-preempt switchover-ack",
        [HANDSHAKE_POLICY_ALWAYS] = "return-path",
        [HANDSHAKE_POLICY_COMPARED] = "validate-uuid",
        [HANDSHAKE_POLICY_SOURCE] =
            "xbzrle rdma-pin-all auto-converge release-ram "
            "pause-before-switchover zero-copy-send dirty-limit",
        [HANDSHAKE_POLICY_LOCAL] =
            "zero-blocks events postcopy-blocktime late-block-activate",
        [HANDSHAKE_POLICY_REFUSED] = "x-colo background-snapshot mapped-ram",
    };
    unsigned count = 0;

    for (int policy = 1; policy < ARRAY_SIZE(policies); policy++) {
        g_autoptr(strList) names = names_from(policies[policy]);

        for (strList *l = names; l; l = l->next) {
            /* QEMU 11.0 has it no more */
            if (!strcmp(l->value, "zero-blocks") &&
                qapi_enum_parse(&MigrationCapability_lookup, l->value, -1,
                                NULL) < 0) {
                continue;
            }
            g_assert_cmpint(handshake_policy_capability(l->value), ==, policy);
            count++;
        }
    }
    g_assert_cmpuint(count, ==, MIGRATION_CAPABILITY__MAX);
}

static void test_all_parameters(void)
{
    g_autoptr(strList) considered = names_from(
        "announce-initial announce-max announce-rounds announce-step "
        "throttle-trigger-threshold cpu-throttle-initial "
        "cpu-throttle-increment cpu-throttle-tailslow max-cpu-throttle "
        "tls-creds tls-hostname tls-authz max-bandwidth "
        "avail-switchover-bandwidth downtime-limit max-postcopy-bandwidth "
        "x-checkpoint-delay multifd-channels multifd-compression "
        "multifd-zlib-level multifd-qatzip-level multifd-zstd-level "
        "xbzrle-cache-size block-bitmap-mapping x-vcpu-dirty-limit-period "
        "vcpu-dirty-limit mode zero-page-detection direct-io "
        "cpr-exec-command x-rdma-chunk-size");

    for (int i = 0; i < MIGRATION_PARAMETER__MAX; i++) {
        if (!handshake_has_name(considered, MigrationParameter_str(i))) {
            g_error("who decides about '%s'?", MigrationParameter_str(i));
        }
    }
}

static void test_unknown(void)
{
    static const char *const names[] = {
        "", "multifd ", "Multifd", "multifd-channels", "grease-00000000",
    };

    for (int i = 0; i < ARRAY_SIZE(names); i++) {
        g_assert_cmpint(handshake_policy_capability(names[i]), ==,
                        HANDSHAKE_POLICY_UNKNOWN);
        g_assert_null(handshake_policy_channels(names[i]));
    }
}

static void test_channels(void)
{
    for (int i = 0; i < MIGRATION_CAPABILITY__MAX; i++) {
        const char *channels =
            handshake_policy_channels(MigrationCapability_str(i));

        g_assert_cmpstr(channels, ==,
                        i == MIGRATION_CAPABILITY_MULTIFD ? "multifd" :
                        i == MIGRATION_CAPABILITY_POSTCOPY_PREEMPT ? "preempt"
                        : NULL);
    }
}

static void test_required(void)
{
    static const char *const cases[][2] = {
        { "", "return-path" },
        { "return-path", "return-path" },
        { "postcopy-ram return-path postcopy-ram", "return-path postcopy-ram" },
        { "postcopy-ram postcopy-preempt",
          "return-path postcopy-ram postcopy-preempt" },
        /* It needs one that comes later */
        { "postcopy-preempt dirty-bitmaps postcopy-ram",
          "return-path dirty-bitmaps postcopy-ram postcopy-preempt" },
    };

    for (int i = 0; i < ARRAY_SIZE(cases); i++) {
        g_autoptr(HandshakeVerdict) verdict = NULL;

        host_reset();
        verdict = negotiate(cases[i][0], "", "");
        g_assert_null(verdict->issues.list);
        g_assert_null(verdict->message->declined);
        assert_set(verdict->message->capabilities, cases[i][1]);
        assert_parameters(verdict->message->parameters, "");
    }
}

/* A source may be silent about itself */
static void test_no_profile(void)
{
    g_autoptr(MigrationHandshakeHello) hello = hello_new("", "multifd", "");
    g_autoptr(HandshakeVerdict) verdict = NULL;

    host_reset();
    g_clear_pointer(&hello->profile, qapi_free_MigrationProfile);
    verdict = answer(hello);
    assert_set(verdict->message->capabilities, "return-path multifd");
}

/* What shapes no stream cannot be asked of a destination */
static void test_required_not_negotiable(void)
{
    for (int i = 0; i < MIGRATION_CAPABILITY__MAX; i++) {
        const char *name = MigrationCapability_str(i);
        HandshakePolicy policy = handshake_policy_capability(name);
        g_autoptr(HandshakeVerdict) verdict = NULL;

        if (policy == HANDSHAKE_POLICY_NEGOTIATED ||
            policy == HANDSHAKE_POLICY_ALWAYS) {
            continue;
        }
        host_reset();
        verdict = negotiate(name, name, "");
        assert_issue(verdict, "capability-unsupported", name, name);
        assert_declined(verdict->message->declined, name,
                        "cannot be negotiated");
        assert_set(verdict->message->capabilities, "return-path");
    }
}

/* All that is wrong, each with its code */
static void test_required_everything(void)
{
    g_autoptr(HandshakeVerdict) verdict = NULL;
    const MigrationHandshakeIssue *issue;

    host_reset();
    host.impossible = "postcopy-ram";
    host.rivals[0] = "dirty-bitmaps";
    host.rivals[1] = "x-ignore-shared";
    verdict = negotiate("events nonsense postcopy-ram x-ignore-shared "
                        "dirty-bitmaps postcopy-preempt", "", "");
    find_issue(verdict, "capability-unsupported", "events");
    find_issue(verdict, "capability-unknown", "nonsense");
    find_issue(verdict, "capability-unsupported", "postcopy-preempt");
    issue = find_issue(verdict, "capability-unsupported", "postcopy-ram");
    g_assert_nonnull(strstr(issue->message, "this host has no postcopy-ram"));
    /* The later one of the two is the one that does not fit in */
    issue = find_issue(verdict, "capability-conflict", "dirty-bitmaps");
    g_assert_nonnull(strstr(issue->message, "not go with x-ignore-shared"));
    g_assert_cmpuint(verdict->issues.errors, ==, 5);
    assert_set(verdict->message->capabilities, "return-path x-ignore-shared");
}

/* An optional one is no help */
static void test_required_dependency(void)
{
    g_autoptr(HandshakeVerdict) verdict = NULL;

    host_reset();
    verdict = negotiate("postcopy-preempt", "postcopy-ram", "");
    assert_issue(verdict, "capability-unsupported", "postcopy-preempt",
                 "requires postcopy-ram");
}

static void test_required_parameters(void)
{
    g_autoptr(HandshakeVerdict) good = NULL;
    g_autoptr(HandshakeVerdict) bad = NULL;
    g_autoptr(HandshakeVerdict) twice = NULL;
    const MigrationHandshakeIssue *issue;

    host_reset();
    good = negotiate("multifd", "", "multifd:multifd-channels=4 "
                     "multifd:multifd-compression=zstd postcopy-ram:later=1 "
                     "return-path:tls-creds=evil");
    g_assert_null(good->issues.list);
    assert_set(good->message->capabilities, "return-path multifd");
    assert_parameters(good->message->parameters, "multifd:multifd-channels=4 "
                      "multifd:multifd-compression=zstd");
    g_assert_cmpuint(host.parameters_tried, ==, 2);

    bad = negotiate("multifd", "", "multifd:multifd-channels=255 "
                    "multifd:multifd-compression=lzma multifd:later=7");
    issue = find_issue(bad, "parameter-value", "multifd-channels");
    g_assert_cmpstr(issue->source, ==, "255");
    issue = find_issue(bad, "parameter-value", "multifd-compression");
    g_assert_nonnull(strstr(issue->message, "no value 'lzma' here"));
    issue = find_issue(bad, "parameter-unknown", "later");
    g_assert_cmpstr(issue->source, ==, "7");
    g_assert_cmpuint(bad->issues.errors, ==, 3);
    assert_set(bad->message->capabilities, "return-path");
    assert_parameters(bad->message->parameters, "");

    twice = negotiate("multifd", "", "multifd:multifd-channels=4 "
                      "multifd:multifd-channels=4");
    assert_issue(twice, "parameter-value", "multifd-channels", "two values");
}

static void test_optional_parameters(void)
{
    static const struct {
        const char *parameters;
        const char *reason;     /* NULL if it is taken */
    } cases[] = {
        { "", NULL },
        { "multifd:multifd-channels=4", NULL },
        { "multifd:multifd-channels=4 multifd:multifd-compression=zstd", NULL },
        { "multifd:multifd-channels=5", "'5'" },
        { "multifd:multifd-compression=lzma", "'lzma'" },
        { "multifd:multifd-channels=4 multifd:later=1", "'later'" },
        { "multifd:multifd-channels=4 multifd:multifd-channels=4",
          "two values" },
        /* It belongs to another one */
        { "multifd:tls-creds=evil", "'tls-creds'" },
    };

    for (int i = 0; i < ARRAY_SIZE(cases); i++) {
        g_autoptr(HandshakeVerdict) verdict = NULL;

        host_reset();
        verdict = negotiate("", "multifd postcopy-ram", cases[i].parameters);
        g_assert_null(verdict->issues.list);
        assert_declined(verdict->message->declined, "multifd", cases[i].reason);
        if (cases[i].reason) {
            assert_set(verdict->message->capabilities,
                       "return-path postcopy-ram");
            assert_parameters(verdict->message->parameters, "");
        } else {
            assert_set(verdict->message->capabilities,
                       "return-path postcopy-ram multifd");
            assert_parameters(verdict->message->parameters,
                              cases[i].parameters);
        }
    }
}

/* Every parameter that is not to be taken, wherever a hostile HELLO puts it */
static void test_hostile_parameters(void)
{
    g_autoptr(strList) owners = names_from("multifd return-path events later");

    for (strList *l = owners; l; l = l->next) {
        for (int i = 0; i < MIGRATION_PARAMETER__MAX; i++) {
            g_autofree char *text =
                g_strdup_printf("%s:%s=evil", l->value,
                                MigrationParameter_str(i));
            g_autoptr(HandshakeVerdict) required = NULL;
            g_autoptr(HandshakeVerdict) optional = NULL;

            host_reset();
            required = negotiate(l->value, "", text);
            optional = negotiate("", l->value, text);
            assert_parameters(required->message->parameters, "");
            assert_parameters(optional->message->parameters, "");
        }
    }
}

static void test_optional(void)
{
    static const struct {
        const char *required;
        const char *optional;
        const char *effective;
        const char *declined;
        const char *reason;
    } cases[] = {
        { "", "return-path", "return-path" },
        { "postcopy-ram", "postcopy-ram", "return-path postcopy-ram" },
        { "", "postcopy-ram postcopy-ram", "return-path postcopy-ram" },
        /* In the source's order */
        { "", "x-ignore-shared dirty-bitmaps", "return-path x-ignore-shared",
          "dirty-bitmaps", "does not go with x-ignore-shared" },
        { "", "dirty-bitmaps x-ignore-shared postcopy-ram",
          "return-path dirty-bitmaps postcopy-ram",
          "x-ignore-shared", "does not go with x-ignore-shared" },
        { "x-ignore-shared", "dirty-bitmaps", "return-path x-ignore-shared",
          "dirty-bitmaps", "does not go with x-ignore-shared" },
        { "", "postcopy-ram postcopy-preempt",
          "return-path postcopy-ram postcopy-preempt" },
        { "", "postcopy-preempt postcopy-ram", "return-path postcopy-ram",
          "postcopy-preempt", "requires postcopy-ram" },
        { "", "warp-drive postcopy-ram", "return-path postcopy-ram",
          "warp-drive", "not known" },
        { "", "switchover-ack", "return-path", "switchover-ack",
          "this host has no switchover-ack" },
    };

    for (int i = 0; i < ARRAY_SIZE(cases); i++) {
        g_autoptr(HandshakeVerdict) verdict = NULL;

        host_reset();
        host.impossible = "switchover-ack";
        host.rivals[0] = "dirty-bitmaps";
        host.rivals[1] = "x-ignore-shared";
        verdict = negotiate(cases[i].required, cases[i].optional, "");
        g_assert_null(verdict->issues.list);
        assert_set(verdict->message->capabilities, cases[i].effective);
        if (cases[i].declined) {
            assert_declined(verdict->message->declined, cases[i].declined,
                            cases[i].reason);
            g_assert_null(verdict->message->declined->next);
        } else {
            g_assert_null(verdict->message->declined);
        }
    }
}

/* The reduced sets: an optional one's channels may not get through */
static void test_reduced(void)
{
    static const struct {
        const char *needs[2];
        const char *rivals[2];
        const char *required;
        const char *optional;
        const char *effective;
        const char *declined;   /* with @reason */
        const char *reason;
    } cases[] = {
        { { "switchover-ack", "multifd" }, { NULL },
          "", "multifd switchover-ack", "return-path multifd",
          "switchover-ack", "without 'multifd'" },
        /* Nobody will do without this one */
        { { "switchover-ack", "multifd" }, { NULL },
          "multifd", "switchover-ack", "return-path multifd switchover-ack" },
        /* This one has no channels */
        { { "switchover-ack", "dirty-bitmaps" }, { NULL },
          "", "dirty-bitmaps switchover-ack",
          "return-path dirty-bitmaps switchover-ack" },
        /* The second one of two, the first one of two */
        { { "switchover-ack", "postcopy-preempt" }, { NULL }, "postcopy-ram",
          "multifd postcopy-preempt switchover-ack",
          "return-path postcopy-ram multifd postcopy-preempt",
          "switchover-ack", "without 'postcopy-preempt'" },
        { { "switchover-ack", "multifd" }, { NULL }, "postcopy-ram",
          "multifd postcopy-preempt switchover-ack",
          "return-path postcopy-ram multifd postcopy-preempt",
          "switchover-ack", "without 'multifd'" },
        /* One with channels may need another one with channels, or not */
        { { "postcopy-preempt", "multifd" }, { NULL }, "postcopy-ram",
          "multifd postcopy-preempt", "return-path postcopy-ram multifd",
          "postcopy-preempt", "without 'multifd'" },
        { { NULL }, { "multifd", "postcopy-ram" }, "",
          "multifd postcopy-ram", "return-path multifd",
          "postcopy-ram", "multifd does not go with postcopy-ram" },
        { { "dirty-bitmaps", "postcopy-preempt" }, { NULL },
          "postcopy-ram dirty-bitmaps postcopy-preempt", "multifd",
          "return-path postcopy-ram dirty-bitmaps postcopy-preempt multifd" },
    };

    for (int i = 0; i < ARRAY_SIZE(cases); i++) {
        g_autoptr(HandshakeVerdict) verdict = NULL;

        host_reset();
        memcpy(host.needs, cases[i].needs, sizeof(host.needs));
        memcpy(host.rivals, cases[i].rivals, sizeof(host.rivals));
        verdict = negotiate(cases[i].required, cases[i].optional, "");
        g_assert_null(verdict->issues.list);
        assert_set(verdict->message->capabilities, cases[i].effective);
        if (cases[i].declined) {
            assert_declined(verdict->message->declined, cases[i].declined,
                            cases[i].reason);
        } else {
            g_assert_null(verdict->message->declined);
        }
    }
}

/* What the two machines cannot do with each other is no reason to refuse */
static void test_machines(void)
{
    g_autoptr(HandshakeVerdict) optional = NULL;
    g_autoptr(HandshakeVerdict) required = NULL;

    host_reset();
    host.mismatch = "multifd";
    optional = negotiate("", "multifd dirty-bitmaps", "");
    assert_declined(optional->message->declined, "multifd",
                    "the machines differ in multifd");
    g_assert_null(optional->issues.list);
    assert_set(optional->message->capabilities, "return-path dirty-bitmaps");

    /* It is handshake_compare() that refuses */
    required = negotiate("multifd", "", "");
    g_assert_null(required->issues.list);
    assert_set(required->message->capabilities, "return-path multifd");
}

/* What a peer may say that cannot open named channels */
static const char *const no_channels[] = {
    "", "grease-00000000", "named-channel", "named-channels2",
    "Named-Channels", "multifd postcopy-preempt",
};

static void test_no_channels(void)
{
    for (int i = 0; i < ARRAY_SIZE(no_channels); i++) {
        g_autoptr(MigrationHandshakeHello) hello =
            hello_new("multifd postcopy-ram", "postcopy-preempt dirty-bitmaps",
                      "multifd:multifd-channels=255 multifd:later=7");
        g_autoptr(HandshakeVerdict) verdict = NULL;
        const MigrationHandshakeIssue *issue;

        host_reset();
        qapi_free_strList(hello->features);
        hello->features = names_from(no_channels[i]);
        /* That the destination must know it does not say that the source has */
        hello->required = names_from("named-channels");
        verdict = answer(hello);
        assert_issue(verdict, "transport", "multifd", "'named-channels'");
        issue = find_issue(verdict, "transport", "multifd");
        g_assert_cmpstr(issue->destination, ==, "takes named ones only");
        assert_declined(verdict->message->declined, "postcopy-preempt",
                        "'named-channels'");
        assert_set(verdict->message->capabilities,
                   "return-path postcopy-ram dirty-bitmaps");
        g_assert_cmpuint(host.parameters_tried, ==, 0);
    }
}

static void test_untried(void)
{
    g_autoptr(MigrationHandshakeHello) hello =
        hello_new("multifd postcopy-ram", "postcopy-preempt", "");
    g_autoptr(MigrationHandshakeHello) none =
        hello_new("postcopy-ram", "dirty-bitmaps", "");
    g_autoptr(HandshakeVerdict) migration = NULL;
    g_autoptr(HandshakeVerdict) check = NULL;
    g_autoptr(HandshakeVerdict) nothing = NULL;

    host_reset();
    migration = answer(hello);
    g_assert_null(migration->issues.list);

    g_free(hello->purpose);
    hello->purpose = g_strdup(HANDSHAKE_PURPOSE_CHECK);
    check = answer(hello);
    handshake_policy_note_untried(check);
    g_assert_cmpstr(find_issue(check, "channels-untried",
                               "multifd, postcopy-preempt")->severity, ==,
                    "info");
    g_assert_null(check->issues.list->next);

    g_free(none->purpose);
    none->purpose = g_strdup(HANDSHAKE_PURPOSE_CHECK);
    nothing = answer(none);
    handshake_policy_note_untried(nothing);
    g_assert_null(nothing->issues.list);
}

#define MANY 100000

/* Nobody can make this QEMU work, or answer, without bounds */
static void test_many(void)
{
    g_autoptr(MigrationHandshakeHello) hello = hello_new("", "", "");
    g_autoptr(HandshakeVerdict) unknown = NULL;
    g_autoptr(HandshakeVerdict) repeated = NULL;
    unsigned declined = 0;

    host_reset();
    hello->profile->required_capabilities = many_names(MANY, "r");
    hello->optional_capabilities = many_names(MANY, "o");
    unknown = answer(hello);
    g_assert_cmpuint(unknown->issues.errors, ==, MANY);
    g_assert_cmpuint(unknown->issues.listed, ==, HANDSHAKE_ISSUES_MAX);
    for (MigrationHandshakeDeclinedList *l = unknown->message->declined; l;
         l = l->next) {
        declined++;
    }
    g_assert_cmpuint(declined, ==, 64);
    g_assert_cmpuint(host.capabilities_tried, ==, 0);

    host.impossible = "x-ignore-shared";
    qapi_free_strList(hello->profile->required_capabilities);
    hello->profile->required_capabilities = NULL;
    qapi_free_strList(hello->optional_capabilities);
    hello->optional_capabilities = NULL;
    for (int i = 0; i < MANY; i++) {
        static const char *const names[] = {
            "postcopy-ram", "x-ignore-shared", "return-path", "dirty-bitmaps"
        };
        const char *name = names[i % ARRAY_SIZE(names)];

        QAPI_LIST_PREPEND(hello->profile->required_capabilities,
                          g_strdup(name));
        QAPI_LIST_PREPEND(hello->optional_capabilities, g_strdup(name));
    }
    repeated = answer(hello);
    assert_issue(repeated, "capability-unsupported", "x-ignore-shared", "");
    assert_set(repeated->message->capabilities,
               "return-path postcopy-ram dirty-bitmaps");
    assert_declined(repeated->message->declined, "x-ignore-shared", "no x-");
    g_assert_cmpuint(host.capabilities_tried, <, 50);
}

/* The source chose the name, but it is shown here as well */
static void test_hostile_name(void)
{
    g_autoptr(MigrationHandshakeHello) hello = hello_new("", "", "");
    g_autoptr(HandshakeVerdict) verdict = NULL;
    char *name = g_strnfill(100000, 'x');

    host_reset();
    name[1] = '\n';
    QAPI_LIST_PREPEND(hello->optional_capabilities, name);
    verdict = answer(hello);
    name = verdict->message->declined->value->capability;
    g_assert_true(g_str_has_prefix(name, "x xxx"));
    g_assert_cmpuint(strlen(name), <=, 1024);
    g_assert_cmpuint(strlen(verdict->message->declined->value->reason), <=,
                     1024);
}

static MigrationHandshakeOptions *options_from(const char *optional)
{
    MigrationHandshakeOptions *options = g_new0(MigrationHandshakeOptions, 1);
    g_autoptr(strList) names = names_from(optional);
    MigrationCapabilityList **tail = &options->optional_capabilities;

    options->has_optional_capabilities = true;
    for (strList *l = names; l; l = l->next) {
        QAPI_LIST_APPEND(tail, qapi_enum_parse(&MigrationCapability_lookup,
                                               l->value, -1, &error_abort));
    }
    return options;
}

static MigrationHandshakeHello *
offer(const MigrationHandshakeOptions *options, bool single,
      MigrationHandshakeDeclinedList **declined)
{
    MigrationHandshakeHello *hello = g_new0(MigrationHandshakeHello, 1);

    hello->profile = g_new0(MigrationProfile, 1);
    hello->features = names_from(FEATURES);
    hello->purpose = g_strdup(HANDSHAKE_PURPOSE_MIGRATE);
    host.role = MIGRATION_HANDSHAKE_ROLE_SOURCE;
    handshake_policy_offer(options, single, hello, declined);
    return hello;
}

static void test_offer(void)
{
    g_autoptr(MigrationHandshakeOptions) options =
        options_from("multifd postcopy-ram switchover-ack multifd "
                     "postcopy-preempt xbzrle x-ignore-shared");
    g_autoptr(MigrationHandshakeDeclinedList) declined = NULL;
    g_autoptr(MigrationHandshakeHello) hello = NULL;

    host_reset();
    host.enabled = "xbzrle events postcopy-ram validate-uuid return-path "
                   "zero-copy-send dirty-bitmaps";
    host.rivals[0] = "x-ignore-shared";
    host.rivals[1] = "postcopy-ram";
    options->has_warnings_as_errors = true;
    options->warnings_as_errors = true;
    options->has_ignore_issues = true;
    options->ignore_issues = names_from("cpu disk:x");
    hello = offer(options, false, &declined);

    /* Without those that are nobody else's business */
    assert_list(hello->profile->capabilities, "xbzrle postcopy-ram "
                "validate-uuid return-path zero-copy-send dirty-bitmaps");
    assert_list(hello->profile->required_capabilities,
                "postcopy-ram dirty-bitmaps");
    /* Each once, none that is required already, and none that is impossible */
    assert_list(hello->optional_capabilities,
                "multifd switchover-ack postcopy-preempt");
    assert_declined(declined, "x-ignore-shared", "does not go with");
    assert_declined(declined, "xbzrle", "cannot be negotiated");
    g_assert_true(hello->has_optional_capabilities &&
                  hello->profile->has_capabilities &&
                  hello->profile->has_required_capabilities);
    g_assert_true(hello->has_warnings_as_errors && hello->warnings_as_errors);
    g_assert_true(hello->has_ignore);
    assert_list(hello->ignore, "cpu disk:x");
}

static void test_offer_defaults(void)
{
    g_autoptr(MigrationHandshakeDeclinedList) declined = NULL;
    g_autoptr(MigrationHandshakeDeclinedList) single = NULL;
    g_autoptr(MigrationHandshakeOptions) nothing = options_from("");
    g_autoptr(MigrationHandshakeHello) hello = NULL;

    host_reset();
    hello = offer(NULL, false, &declined);
    assert_list(hello->optional_capabilities, "multifd switchover-ack");
    g_assert_null(declined);
    g_assert_false(hello->has_warnings_as_errors);
    g_assert_false(hello->has_ignore);
    g_assert_false(hello->profile->has_capabilities);
    g_assert_false(hello->profile->has_parameters);
    qapi_free_MigrationHandshakeHello(hello);

    hello = offer(nothing, false, &declined);
    g_assert_false(hello->has_optional_capabilities);
    g_assert_null(declined);
    qapi_free_MigrationHandshakeHello(hello);

    hello = offer(NULL, true, &single);
    assert_list(hello->optional_capabilities, "switchover-ack");
    assert_declined(single, "multifd", "carries a single connection");
}

static void test_offer_parameters(void)
{
    static const struct {
        const char *enabled;
        const char *channels;
        const char *compression;
        const char *parameters;
    } cases[] = {
        /* What a value was before it could be sent is not sent */
        { "multifd", "2", "none", "" },
        { "multifd", "4", "none", "multifd:multifd-channels=4" },
        { "multifd", "2", "zstd", "multifd:multifd-compression=zstd" },
        { "multifd", "4", "zstd", "multifd:multifd-channels=4 "
          "multifd:multifd-compression=zstd" },
        /* Optional by default */
        { "", "4", "zstd", "multifd:multifd-channels=4 "
          "multifd:multifd-compression=zstd" },
        /* What is not possible here is not offered, nor are its parameters */
        { "", "5", "zstd", "" },
    };

    for (int i = 0; i < ARRAY_SIZE(cases); i++) {
        g_autoptr(MigrationHandshakeDeclinedList) declined = NULL;
        g_autoptr(MigrationHandshakeHello) hello = NULL;

        host_reset();
        host.enabled = cases[i].enabled;
        host.channels = cases[i].channels;
        host.compression = cases[i].compression;
        hello = offer(NULL, false, &declined);
        assert_parameters(hello->profile->parameters, cases[i].parameters);
        g_assert_true(hello->profile->has_parameters ==
                      !!strlen(cases[i].parameters));
    }
}

static void test_offer_holds(void)
{
    g_autoptr(MigrationHandshakeDeclinedList) declined = NULL;
    g_autoptr(MigrationHandshakeHello) hello = NULL;
    Error *err = NULL;

    host_reset();
    host.enabled = "postcopy-ram";
    host.channels = "4";
    hello = offer(NULL, false, &declined);
    g_assert_true(handshake_policy_offer_holds(hello, &error_abort));
    /* Nobody else's business */
    host.enabled = "events postcopy-ram xbzrle";
    g_assert_true(handshake_policy_offer_holds(hello, &error_abort));

    for (int i = 0; i < 4; i++) {
        host.enabled = i == 0 ? "" : i == 1 ? "postcopy-ram dirty-bitmaps"
                                            : "postcopy-ram";
        host.channels = i == 2 ? "2" : "4";
        host.compression = i == 3 ? "zstd" : "none";
        g_assert_false(handshake_policy_offer_holds(hello, &err));
        g_assert_nonnull(strstr(error_get_pretty(err), "were changed"));
        g_clear_pointer(&err, error_free);
    }
}

/* What a user would get from a profile is what 'migrate' would offer */
static void test_profile(void)
{
    static const char *const wishes[] = {
        "", "multifd", "postcopy-ram multifd", "multifd postcopy-ram",
        "postcopy-preempt postcopy-ram", "postcopy-ram postcopy-preempt",
        "postcopy-ram multifd postcopy-preempt switchover-ack",
        "switchover-ack x-ignore-shared dirty-bitmaps return-path",
        "dirty-bitmaps dirty-bitmaps x-ignore-shared xbzrle",
    };
    static const char *const enabled[] = {
        "", "postcopy-ram", "multifd events", "dirty-bitmaps xbzrle",
    };

    for (int i = 0; i < ARRAY_SIZE(wishes) * ARRAY_SIZE(enabled); i++) {
        g_autoptr(MigrationHandshakeOptions) options =
            options_from(wishes[i % ARRAY_SIZE(wishes)]);
        g_autoptr(MigrationHandshakeHello) profile =
            g_new0(MigrationHandshakeHello, 1);
        g_autoptr(MigrationHandshakeDeclinedList) declined = NULL;
        g_autoptr(MigrationHandshakeHello) hello = NULL;
        g_autoptr(GString) text = g_string_new(NULL);

        host_reset();
        host.enabled = enabled[i / ARRAY_SIZE(wishes)];
        host.channels = "4";
        host.impossible = "switchover-ack";
        host.rivals[0] = "multifd";
        host.rivals[1] = "postcopy-ram";
        hello = offer(options, false, &declined);

        profile->profile = g_new0(MigrationProfile, 1);
        handshake_policy_offer_profile(profile);
        assert_parameters(profile->profile->parameters,
                          "multifd:multifd-channels=4");
        assert_declined(profile->declined, "switchover-ack", "this host has");
        /* Whatever is set where it is looked at */
        host_reset();
        handshake_policy_choose(profile, options);

        for (strList *l = hello->optional_capabilities; l; l = l->next) {
            g_string_append_printf(text, "%s%s", text->len ? " " : "",
                                   l->value);
        }
        assert_list(profile->optional_capabilities, text->str);
        for (MigrationHandshakeDeclinedList *l = declined; l; l = l->next) {
            assert_declined(profile->declined, l->value->capability, "");
        }
    }
}

static void test_profile_combinations(void)
{
    g_autoptr(MigrationHandshakeHello) profile =
        g_new0(MigrationHandshakeHello, 1);
    bool impossible = false;
    bool possible = false;

    host_reset();
    host.role = MIGRATION_HANDSHAKE_ROLE_SOURCE;
    host.rivals[0] = "multifd";
    host.rivals[1] = "postcopy-ram";
    profile->profile = g_new0(MigrationProfile, 1);
    handshake_policy_offer_profile(profile);
    assert_declined(profile->declined, "postcopy-preempt", "requires");
    for (MigrationHandshakeCombinationList *l = profile->combinations; l;
         l = l->next) {
        const MigrationHandshakeCombination *c = l->value;

        if (!strcmp(c->capability, "postcopy-ram")) {
            g_assert_cmpstr(c->with, ==, "multifd");
            g_assert_nonnull(strstr(c->reason, "does not go with"));
            impossible = true;
        } else if (!strcmp(c->capability, "postcopy-preempt")) {
            g_assert_cmpstr(c->with, ==, "postcopy-ram");
            g_assert_null(c->reason);
            possible = true;
        }
    }
    g_assert_true(impossible && possible);
}

static void add_combination(MigrationHandshakeHello *profile,
                            const char *name, const char *with,
                            const char *reason)
{
    MigrationHandshakeCombination *c = g_new0(MigrationHandshakeCombination, 1);

    c->capability = g_strdup(name);
    c->with = g_strdup(with);
    c->reason = g_strdup(reason);
    QAPI_LIST_PREPEND(profile->combinations, c);
}

/* One that another QEMU has, or does not know */
static void test_choose_foreign(void)
{
    g_autoptr(MigrationHandshakeOptions) options =
        options_from("multifd dirty-bitmaps xbzrle postcopy-ram "
                     "switchover-ack");
    g_autoptr(MigrationHandshakeHello) profile =
        hello_new("warp-drive", "multifd time-travel postcopy-ram "
                  "switchover-ack", "");

    host_reset();
    /* One reason against it is enough, and one that is not chosen is none */
    for (int i = 0; i < 3; i++) {
        add_combination(profile, "switchover-ack", "multifd",
                        i == 1 ? "not with multifd" : NULL);
    }
    add_combination(profile, "postcopy-ram", "time-travel", "not with it");
    /* Who asks says what is ignored, and not the file */
    profile->has_ignore = true;
    profile->ignore = names_from("cpu");
    handshake_policy_choose(profile, options);
    g_assert_false(profile->has_ignore || profile->ignore);
    assert_list(profile->optional_capabilities, "multifd postcopy-ram");
    assert_declined(profile->declined, "switchover-ack", "not with multifd");
    assert_declined(profile->declined, "dirty-bitmaps",
                    "not known on the source");
    assert_declined(profile->declined, "xbzrle", "cannot be negotiated");
}

/* @expected is part of the error, NULL if the ACCEPT is good */
static void check_accept(const MigrationHandshakeHello *hello,
                         const char *effective, const char *features,
                         const char *parameters, const char *expected)
{
    g_autoptr(HandshakeVerdict) verdict = handshake_verdict_new(true);
    Error *err = NULL;

    host.role = MIGRATION_HANDSHAKE_ROLE_SOURCE;
    verdict->message->features = names_from(features);
    verdict->message->capabilities = names_from(effective);
    verdict->message->parameters = parameters_from(parameters);
    if (handshake_policy_check_accept(hello, verdict, &err)) {
        g_assert_null(err);
        if (expected) {
            g_error("accepted '%s' '%s'", effective, parameters);
        }
        return;
    }
    if (!expected || !strstr(error_get_pretty(err), expected)) {
        g_error("expected '%s', not '%s'", expected, error_get_pretty(err));
    }
    g_assert_cmpuint(strlen(error_get_pretty(err)), <, 1024);
    error_free(err);
}

static void test_accept_capabilities(void)
{
    static const char *const cases[][2] = {
        { "return-path postcopy-ram", NULL },
        { "postcopy-ram return-path", NULL },
        { "switchover-ack return-path postcopy-ram dirty-bitmaps", NULL },
        { "return-path", "without postcopy-ram" },
        { "return-path dirty-bitmaps", "without postcopy-ram" },
        { "postcopy-ram dirty-bitmaps", "without return-path" },
        { "return-path postcopy-ram multifd", "not offered" },
        { "return-path postcopy-ram events", "not offered" },
        { "return-path postcopy-ram x-colo", "not offered" },
        { "return-path postcopy-ra", "not offered" },
        { "return-path postcopy-ram grease-00000000", "not offered" },
        { "return-path postcopy-ram postcopy-ram", "twice" },
        { "return-path postcopy-ram return-path", "twice" },
    };
    g_autoptr(MigrationHandshakeHello) hello =
        hello_new("postcopy-ram", "dirty-bitmaps switchover-ack", "");
    g_autoptr(HandshakeVerdict) verdict = handshake_verdict_new(true);

    host_reset();
    for (int i = 0; i < ARRAY_SIZE(cases); i++) {
        check_accept(hello, cases[i][0], "", "", cases[i][1]);
    }
    verdict->message->capabilities = many_names(MANY, "a");
    g_assert_false(handshake_policy_check_accept(hello, verdict, NULL));
}

static void test_accept_parameters(void)
{
#define FOUR    "multifd:multifd-channels=4"
    static const char changed[] = "changed the parameters";
    static const char *const cases[][3] = {
        { "return-path multifd", FOUR, NULL },
        { "return-path", "", NULL },
        { "return-path", FOUR, changed },
        { "return-path multifd", "", changed },
        { "return-path multifd", "multifd:multifd-channels=5", changed },
        /* The value that it would have anyway, one that was not sent */
        { "return-path multifd", FOUR " multifd:multifd-compression=none",
          changed },
        { "return-path multifd", FOUR " multifd:tls-creds=evil", changed },
        { "return-path multifd", FOUR " " FOUR, changed },
        { "return-path multifd", "return-path:multifd-channels=4", changed },
    };
    g_autoptr(MigrationHandshakeHello) hello = hello_new("", "multifd", FOUR);

    host_reset();
    for (int i = 0; i < ARRAY_SIZE(cases); i++) {
        check_accept(hello, cases[i][0], FEATURES, cases[i][1], cases[i][2]);
    }
}

static void test_accept_channels(void)
{
    for (int i = 0; i < ARRAY_SIZE(no_channels); i++) {
        g_autoptr(MigrationHandshakeHello) required =
            hello_new("multifd", "postcopy-ram", "");
        g_autoptr(MigrationHandshakeHello) optional =
            hello_new("", "multifd postcopy-ram postcopy-preempt", "");

        host_reset();
        check_accept(required, "return-path multifd", no_channels[i], "",
                     "'named-channels'");
        check_accept(optional, "return-path postcopy-ram postcopy-preempt",
                     no_channels[i], "", "'named-channels'");
        check_accept(optional, "return-path postcopy-ram", no_channels[i], "",
                     NULL);
        check_accept(optional, "return-path postcopy-ram postcopy-preempt",
                     FEATURES, "", NULL);
    }
}

/* This side must be able to do it, whatever of it gets through */
static void test_accept_possible(void)
{
    g_autoptr(MigrationHandshakeHello) hello =
        hello_new("", "postcopy-ram postcopy-preempt multifd switchover-ack",
                  "");

    host_reset();
    check_accept(hello, "return-path postcopy-preempt", FEATURES, "",
                 "not possible here: postcopy-preempt requires postcopy-ram");
    host.needs[0] = "switchover-ack";
    host.needs[1] = "multifd";
    check_accept(hello, "return-path switchover-ack multifd", FEATURES, "",
                 "not possible here: without 'multifd'");
}

static void test_accept_declined(void)
{
    static const char *const names[] = { "x", "dirty-bitmaps", "y", "z",
                                         "switchover-ack", "x" };
    g_autoptr(MigrationHandshakeHello) hello =
        hello_new("", "switchover-ack dirty-bitmaps", "");
    g_autoptr(HandshakeVerdict) verdict = handshake_verdict_new(true);
    MigrationHandshakeVerdict *message = verdict->message;

    host_reset();
    host.role = MIGRATION_HANDSHAKE_ROLE_SOURCE;
    message->capabilities = names_from("return-path");
    for (int i = 0; i < ARRAY_SIZE(names); i++) {
        handshake_declined_add(&message->declined, names[i], names[i]);
    }
    g_assert_true(handshake_policy_check_accept(hello, verdict, &error_abort));
    g_assert_cmpstr(message->declined->value->reason, ==, "dirty-bitmaps");
    g_assert_cmpstr(message->declined->next->value->reason, ==,
                    "switchover-ack");
    g_assert_null(message->declined->next->next);
}

static void check_drop(const char *without, const char *expected,
                       const char *effective, const char *parameters)
{
    static const char offered[] =
        FOUR " multifd:multifd-compression=zstd";
    g_autoptr(MigrationHandshakeHello) hello =
        hello_new("postcopy-ram multifd", "multifd postcopy-preempt "
                  "dirty-bitmaps switchover-ack", offered);
    g_autoptr(MigrationHandshakeHello) optional =
        hello_new("postcopy-ram", "multifd postcopy-preempt dirty-bitmaps",
                  offered);
    bool required = g_str_has_prefix(without, "required ");
    g_autoptr(strList) names = names_from(without + (required ? 9 : 0));
    g_autoptr(MigrationHandshakeDeclinedList) list = NULL;
    g_autoptr(HandshakeVerdict) verdict = NULL;
    Error *err = NULL;
    bool ok;

    host_reset();
    host.impossible = "switchover-ack";
    verdict = answer(required ? hello : optional);
    for (strList *l = names; l; l = l->next) {
        handshake_declined_add(&list, l->value, "connection refused");
    }
    ok = handshake_policy_drop(required ? hello : optional, list, verdict,
                               &err);
    g_assert_true(ok == !expected);
    if (expected) {
        g_assert_nonnull(strstr(error_get_pretty(err), expected));
        error_free(err);
    } else {
        for (strList *l = names; l; l = l->next) {
            assert_declined(verdict->message->declined, l->value,
                            "connection refused");
        }
    }
    assert_set(verdict->message->capabilities, effective);
    assert_parameters(verdict->message->parameters, parameters);
    g_assert_true(verdict->message->has_parameters == !!strlen(parameters));
}

static void test_drop(void)
{
#define ALL     "return-path postcopy-ram dirty-bitmaps multifd " \
                "postcopy-preempt"
#define BOTH    FOUR " multifd:multifd-compression=zstd"
    /* Violations leave all as it is */
    static const char *const violations[] = {
        "warp-drive", "return-path", "postcopy-ram", "dirty-bitmaps",
        "switchover-ack", "events", "multifd multifd",
        "multifd dirty-bitmaps", "postcopy-preempt multifd warp-drive",
        "required multifd", "required postcopy-preempt multifd",
    };

    check_drop("", NULL, ALL, BOTH);
    check_drop("multifd", NULL,
               "return-path postcopy-ram dirty-bitmaps postcopy-preempt", "");
    check_drop("postcopy-preempt", NULL,
               "return-path postcopy-ram dirty-bitmaps multifd", BOTH);
    check_drop("postcopy-preempt multifd", NULL,
               "return-path postcopy-ram dirty-bitmaps", "");
    check_drop("required postcopy-preempt", NULL,
               "return-path postcopy-ram dirty-bitmaps multifd", BOTH);
    for (int i = 0; i < ARRAY_SIZE(violations); i++) {
        check_drop(violations[i], "cannot be left out", ALL, BOTH);
    }
}

/* What is left out already */
static void test_drop_declined(void)
{
    g_autoptr(MigrationHandshakeHello) hello = hello_new("", "multifd", FOUR);
    g_autoptr(HandshakeVerdict) verdict = NULL;

    host_reset();
    host.impossible = "multifd";
    verdict = answer(hello);
    g_assert_false(handshake_policy_drop(hello, verdict->message->declined,
                                         verdict, NULL));
    g_assert_true(handshake_policy_drop(hello, NULL, verdict, &error_abort));
    g_assert_null(verdict->message->declined->next);
}

static void test_effective(void)
{
    static const struct {
        const char *capabilities;
        const char *parameters;
        unsigned channels;          /* 0 if there are none */
        const char *compression;
    } cases[] = {
        { "return-path multifd", "", 2, "none" },
        { "return-path multifd", FOUR, 4, "none" },
        { "return-path multifd", "multifd:multifd-compression=zstd", 2,
          "zstd" },
        { "multifd", "multifd:multifd-channels=255 "
          "multifd:multifd-compression=zlib", 255, "zlib" },
        { "return-path", FOUR, 0, NULL },
        { "return-path multifd2", FOUR, 0, NULL },
        /* Another one's */
        { "return-path multifd", "return-path:multifd-channels=4 "
          "multifd:tls-creds=evil", 2, "none" },
    };

    for (int i = 0; i < ARRAY_SIZE(cases); i++) {
        g_autoptr(strList) names = names_from(cases[i].capabilities);
        g_autoptr(MigrationHandshakeParameterList) sent =
            parameters_from(cases[i].parameters);
        g_autoptr(MigrationHandshakeEffective) effective =
            handshake_policy_effective(names, sent);

        g_assert_true(effective->has_multifd_channels == !!cases[i].channels);
        g_assert_cmpuint(effective->multifd_channels, ==, cases[i].channels);
        g_assert_cmpstr(effective->multifd_compression, ==,
                        cases[i].compression);
    }
}

/* Whatever a destination of ours accepts satisfies a source of ours */
static void test_both_sides(void)
{
    static const char *const enabled[] = {
        "", "multifd", "events xbzrle return-path dirty-bitmaps",
        "postcopy-preempt postcopy-ram", "multifd postcopy-ram validate-uuid",
    };
    static const char *const optional[] = {
        "", "multifd", "dirty-bitmaps multifd", "postcopy-preempt postcopy-ram",
        "postcopy-ram postcopy-preempt multifd",
        "events switchover-ack multifd x-ignore-shared return-path",
    };

    for (int i = 0; i < ARRAY_SIZE(enabled) * ARRAY_SIZE(optional); i++) {
        g_autoptr(MigrationHandshakeOptions) options =
            options_from(optional[i / ARRAY_SIZE(enabled)]);
        g_autoptr(MigrationHandshakeDeclinedList) declined = NULL;
        g_autoptr(MigrationHandshakeHello) hello = NULL;
        g_autoptr(HandshakeVerdict) verdict = NULL;

        host_reset();
        host.enabled = enabled[i % ARRAY_SIZE(enabled)];
        host.channels = "4";
        host.compression = "zstd";
        hello = offer(options, false, &declined);
        /* On the destination more is possible, or less */
        host.rivals[0] = "x-ignore-shared";
        host.rivals[1] = i & 1 ? "multifd" : "dirty-bitmaps";
        host.role = MIGRATION_HANDSHAKE_ROLE_DESTINATION;
        verdict = answer(hello);
        g_assert_null(verdict->issues.list);
        host.role = MIGRATION_HANDSHAKE_ROLE_SOURCE;
        memset(host.rivals, 0, sizeof(host.rivals));
        g_assert_true(handshake_policy_check_accept(hello, verdict,
                                                    &error_abort));
        g_assert_true(handshake_policy_offer_holds(hello, &error_abort));
    }
}

int main(int argc, char **argv)
{
    static const struct {
        const char *name;
        void (*run)(void);
    } tests[] = {
        { "all-capabilities", test_all_capabilities },
        { "all-parameters", test_all_parameters },
        { "unknown", test_unknown },
        { "channels", test_channels },
        { "required", test_required },
        { "required/no-profile", test_no_profile },
        { "required/not-negotiable", test_required_not_negotiable },
        { "required/everything", test_required_everything },
        { "required/dependency", test_required_dependency },
        { "required/parameters", test_required_parameters },
        { "optional", test_optional },
        { "optional/parameters", test_optional_parameters },
        { "optional/reduced", test_reduced },
        { "optional/machines", test_machines },
        { "no-channels", test_no_channels },
        { "untried", test_untried },
        { "hostile/parameters", test_hostile_parameters },
        { "hostile/many", test_many },
        { "hostile/name", test_hostile_name },
        { "offer", test_offer },
        { "offer/defaults", test_offer_defaults },
        { "offer/parameters", test_offer_parameters },
        { "offer/holds", test_offer_holds },
        { "profile", test_profile },
        { "profile/combinations", test_profile_combinations },
        { "profile/foreign", test_choose_foreign },
        { "accept/capabilities", test_accept_capabilities },
        { "accept/parameters", test_accept_parameters },
        { "accept/channels", test_accept_channels },
        { "accept/possible", test_accept_possible },
        { "accept/declined", test_accept_declined },
        { "drop", test_drop },
        { "drop/declined", test_drop_declined },
        { "effective", test_effective },
        { "both-sides", test_both_sides },
    };

    g_test_init(&argc, &argv, NULL);
    for (int i = 0; i < ARRAY_SIZE(tests); i++) {
        g_autofree char *path =
            g_strdup_printf("/migration/handshake/policy/%s", tests[i].name);

        g_test_add_func(path, tests[i].run);
    }
    return g_test_run();
}
