/*
 * Migration handshake: who decides about each capability and parameter
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "qapi/error.h"
#include "qapi/util.h"
#include "qapi/qapi-builtin-types.h"
#include "qapi/qapi-types-migration.h"
#include "qobject/qjson.h"
#include "../migration/handshake-json.h"
#include "../migration/handshake-policy.h"

static strList *strlist(const char *names)
{
    g_auto(GStrv) split = g_strsplit(names, " ", 0);
    strList *list = NULL;
    strList **tail = &list;

    for (char **name = split; *name; name++) {
        QAPI_LIST_APPEND(tail, g_strdup(*name));
    }
    return list;
}

static char *strlist_text(const strList *list)
{
    GString *text = g_string_new(NULL);

    for (; list; list = list->next) {
        g_string_append_printf(text, "%s%s", text->len ? " " : "",
                               list->value);
    }
    return g_string_free(text, false);
}

static void assert_strlist(const strList *list, const char *names)
{
    g_autofree char *text = strlist_text(list);

    g_assert_cmpstr(text, ==, names);
}

static QDict *dict_from(const char *text)
{
    return qobject_to(QDict, qobject_from_json(text, &error_abort));
}

static void assert_dict(const QDict *dict, const char *text)
{
    QDict *expected = dict_from(text);
    g_autoptr(GString) json = qobject_to_json(QOBJECT(dict));

    if (!qobject_is_equal(QOBJECT(dict), QOBJECT(expected))) {
        g_error("expected %s, not %s", text, json->str);
    }
    qobject_unref(expected);
}

/*
 * When one of these two fails, QEMU has got a capability or a parameter that
 * handshake-policy.c does not know.  Decide who decides about it, add it there,
 * and if it is to be taken, see set_parameters() in handshake-settings.c.
 */
static void test_all_capabilities(void)
{
    for (int i = 0; i < MIGRATION_CAPABILITY__MAX; i++) {
        const char *name = MigrationCapability_str(i);

        if (handshake_policy_capability(name) == HANDSHAKE_POLICY_UNKNOWN) {
            g_error("capability '%s' is not in handshake-policy.c", name);
        }
    }
}

static void test_all_parameters(void)
{
    for (int i = 0; i < MIGRATION_PARAMETER__MAX; i++) {
        const char *name = MigrationParameter_str(i);

        if (handshake_policy_parameter(name, NULL) ==
            HANDSHAKE_POLICY_UNKNOWN) {
            g_error("parameter '%s' is not in handshake-policy.c", name);
        }
    }
}

/* What is taken goes with a capability, nothing else does */
static void test_parameter_owners(void)
{
    for (int i = 0; i < MIGRATION_PARAMETER__MAX; i++) {
        const char *name = MigrationParameter_str(i);
        const char *capability = "none";
        HandshakePolicy policy = handshake_policy_parameter(name, &capability);

        g_assert_cmpint(handshake_policy_parameter(name, NULL), ==, policy);
        if (policy == HANDSHAKE_POLICY_TAKEN) {
            g_assert_nonnull(capability);
            g_assert_cmpint(handshake_policy_capability(capability), ==,
                            HANDSHAKE_POLICY_TAKEN);
        } else {
            g_assert_null(capability);
        }
    }
}

/* The second of two lines about the same name would be dead */
static void test_each_once(void)
{
    g_autofree char *path =
        g_test_build_filename(G_TEST_DIST, "..", "..", "migration",
                              "handshake-policy.c", NULL);
    g_autoptr(GHashTable) seen = g_hash_table_new_full(g_str_hash, g_str_equal,
                                                       g_free, NULL);
    g_autofree char *text = NULL;
    g_auto(GStrv) lines = NULL;

    if (!g_file_get_contents(path, &text, NULL, NULL)) {
        g_test_skip("the source is not there");
        return;
    }
    lines = g_strsplit(text, "\n", 0);
    for (char **line = lines; *line; line++) {
        if (g_str_has_prefix(*line, "    { \"")) {
            char *name = g_strndup(*line + 7, strcspn(*line + 7, "\""));

            if (!g_hash_table_add(seen, name)) {
                g_error("'%s' is there twice", name);
            }
        }
    }
    g_assert_cmpuint(g_hash_table_size(seen), >=,
                     MIGRATION_CAPABILITY__MAX + MIGRATION_PARAMETER__MAX);
}

static void test_unknown(void)
{
    static const char *const names[] = {
        "", "multifd ", "Multifd", "multifd-channel", "grease-00000000"
    };

    for (int i = 0; i < ARRAY_SIZE(names); i++) {
        const char *capability = "none";

        g_assert_cmpint(handshake_policy_capability(names[i]), ==,
                        HANDSHAKE_POLICY_UNKNOWN);
        g_assert_cmpint(handshake_policy_parameter(names[i], &capability), ==,
                        HANDSHAKE_POLICY_UNKNOWN);
        g_assert_null(capability);
        g_assert_cmpint(handshake_policy_parameter(names[i], NULL), ==,
                        HANDSHAKE_POLICY_UNKNOWN);
    }
    /* A capability is no parameter, nor the other way round */
    g_assert_cmpint(handshake_policy_parameter("multifd", NULL), ==,
                    HANDSHAKE_POLICY_UNKNOWN);
    g_assert_cmpint(handshake_policy_capability("multifd-channels"), ==,
                    HANDSHAKE_POLICY_UNKNOWN);
}

/* Whoever moves one of these to another policy had better mean it */
static void test_policies(void)
{
    g_autoptr(strList) negotiable =
        strlist("postcopy-ram multifd dirty-bitmaps x-ignore-shared "
                "postcopy-preempt switchover-ack");
    g_autoptr(strList) refused = strlist("x-colo background-snapshot "
                                         "mapped-ram");
    g_autoptr(strList) local =
        strlist("tls-creds tls-hostname tls-authz block-bitmap-mapping "
                "cpr-exec-command direct-io");
    g_autoptr(strList) taken = strlist("multifd-channels multifd-compression");

    for (int i = 0; i < MIGRATION_CAPABILITY__MAX; i++) {
        const char *name = MigrationCapability_str(i);
        HandshakePolicy policy = handshake_policy_capability(name);

        g_assert_true((policy == HANDSHAKE_POLICY_TAKEN) ==
                      handshake_strlist_contains(negotiable, name));
        g_assert_true((policy == HANDSHAKE_POLICY_REFUSED) ==
                      handshake_strlist_contains(refused, name));
        g_assert_true((policy == HANDSHAKE_POLICY_ALWAYS) ==
                      !strcmp(name, "return-path"));
    }
    g_assert_cmpint(handshake_policy_capability("events"), ==,
                    HANDSHAKE_POLICY_LOCAL);

    for (int i = 0; i < MIGRATION_PARAMETER__MAX; i++) {
        const char *name = MigrationParameter_str(i);

        g_assert_true((handshake_policy_parameter(name, NULL) ==
                       HANDSHAKE_POLICY_TAKEN) ==
                      handshake_strlist_contains(taken, name));
    }
    for (strList *l = local; l; l = l->next) {
        g_assert_cmpint(handshake_policy_parameter(l->value, NULL), ==,
                        HANDSHAKE_POLICY_LOCAL);
    }
}

static void test_needs_channels(void)
{
    static const char *const others[] = {
        "", "multifd ", "Multifd", "multifd-channels", "preempt", "main",
        "grease-00000000",
    };
    g_autoptr(strList) channels = strlist("multifd postcopy-preempt");

    for (int i = 0; i < MIGRATION_CAPABILITY__MAX; i++) {
        const char *name = MigrationCapability_str(i);
        bool needs = handshake_policy_needs_channels(name);

        g_assert_true(needs == handshake_strlist_contains(channels, name));
        /* Whether there can be channels is asked for no other policy */
        g_assert_true(!needs || handshake_policy_capability(name) ==
                                HANDSHAKE_POLICY_TAKEN);
    }
    for (int i = 0; i < ARRAY_SIZE(others); i++) {
        g_assert_false(handshake_policy_needs_channels(others[i]));
    }
}

static void test_negotiable(void)
{
    g_autoptr(strList) names = handshake_policy_negotiable();
    unsigned count = 0;

    for (int i = 0; i < MIGRATION_CAPABILITY__MAX; i++) {
        const char *name = MigrationCapability_str(i);
        bool taken = handshake_policy_capability(name) ==
                     HANDSHAKE_POLICY_TAKEN;

        g_assert_true(handshake_strlist_contains(names, name) == taken);
        count += taken;
    }
    g_assert_cmpuint(count, >, 0);
    for (const strList *l = names; l; l = l->next) {
        count--;
    }
    g_assert_cmpuint(count, ==, 0);
}

/* A destination on which some things do not work */
typedef struct FakeJudge {
    HandshakeJudge judge;
    const char *impossible;     /* does not work at all */
    const char *rival;          /* does not work with x-ignore-shared */
    unsigned capabilities_tried;
    unsigned parameters_tried;
} FakeJudge;

static bool fake_try_capabilities(const strList *list, void *opaque,
                                  Error **errp)
{
    FakeJudge *fake = opaque;

    fake->capabilities_tried++;
    /* The set always begins with it, and has nothing that need not be judged */
    g_assert_cmpstr(list->value, ==, "return-path");
    for (const strList *l = list; l; l = l->next) {
        HandshakePolicy policy = handshake_policy_capability(l->value);

        g_assert_true(policy == HANDSHAKE_POLICY_TAKEN ||
                      policy == HANDSHAKE_POLICY_ALWAYS);
        /* Each once */
        g_assert_false(handshake_strlist_contains(l->next, l->value));
    }

    if (fake->impossible &&
        handshake_strlist_contains(list, fake->impossible)) {
        error_setg(errp, "this host has no %s", fake->impossible);
        return false;
    }
    if (fake->rival && handshake_strlist_contains(list, fake->rival) &&
        handshake_strlist_contains(list, "x-ignore-shared")) {
        error_setg(errp, "%s does not go with x-ignore-shared", fake->rival);
        return false;
    }
    if (handshake_strlist_contains(list, "postcopy-preempt") &&
        !handshake_strlist_contains(list, "postcopy-ram")) {
        error_setg(errp, "postcopy-preempt requires postcopy-ram");
        return false;
    }
    return true;
}

static bool fake_try_parameter(const char *name, const QObject *value,
                               void *opaque, Error **errp)
{
    FakeJudge *fake = opaque;
    g_autofree char *text = handshake_json_text(value);

    fake->parameters_tried++;
    g_assert_cmpint(handshake_policy_parameter(name, NULL), ==,
                    HANDSHAKE_POLICY_TAKEN);
    if (!strcmp(name, "multifd-channels") && strcmp(text, "4")) {
        error_setg(errp, "'%s' channels are not possible", text);
        return false;
    }
    if (!strcmp(name, "multifd-compression") && strcmp(text, "zstd")) {
        error_setg(errp, "unknown method '%s'", text);
        return false;
    }
    return true;
}

static void set_strlist(strList **list, const char *names)
{
    qapi_free_strList(*list);
    *list = strlist(names);
}

/* The one feature that there is, at a place where it has to be looked for */
#define FEATURES "grease-00000000 named-channels later"

static HandshakeHello *hello_new(const char *required, const char *optional,
                                 const char *params)
{
    HandshakeHello *hello = handshake_hello_new();

    hello->profile->required = strlist(required);
    hello->optional = strlist(optional);
    hello->features = strlist(FEATURES);
    if (params) {
        hello->profile->parameters = dict_from(params);
    }
    return hello;
}

static HandshakeVerdict *negotiate_on(const HandshakeProfile *local,
                                      FakeJudge *fake,
                                      const HandshakeHello *hello)
{
    HandshakeVerdict *verdict = handshake_verdict_new();

    fake->judge = (HandshakeJudge) {
        .try_capabilities = fake_try_capabilities,
        .try_parameter = fake_try_parameter,
        .opaque = fake,
    };
    handshake_negotiate(hello, local, &fake->judge, verdict);
    /* Nothing but issues decides whether it is accepted */
    g_assert_cmpuint(verdict->issues.warnings, ==, 0);
    return verdict;
}

static HandshakeVerdict *negotiate_with(FakeJudge *fake,
                                        const HandshakeHello *hello)
{
    return negotiate_on(NULL, fake, hello);
}

static HandshakeVerdict *negotiate(FakeJudge *fake, const char *required,
                                   const char *optional, const char *params)
{
    g_autoptr(HandshakeHello) hello = hello_new(required, optional, params);

    return negotiate_with(fake, hello);
}

static const MigrationHandshakeIssue *
find_issue(const HandshakeVerdict *verdict, const char *code,
           const char *subject)
{
    const MigrationHandshakeIssueList *l;

    for (l = verdict->issues.list; l; l = l->next) {
        if (!strcmp(l->value->code, code) &&
            !g_strcmp0(l->value->subject, subject)) {
            g_assert_cmpint(l->value->severity, ==,
                            MIGRATION_HANDSHAKE_SEVERITY_ERROR);
            g_assert_nonnull(l->value->source);
            g_assert_nonnull(l->value->destination);
            return l->value;
        }
    }
    g_error("no issue '%s' about '%s'", code, subject);
}

/* The one thing that is wrong */
static void assert_issue(const HandshakeVerdict *verdict, const char *code,
                         const char *subject, const char *text)
{
    const MigrationHandshakeIssue *issue = find_issue(verdict, code, subject);

    g_assert_cmpuint(verdict->issues.errors, ==, 1);
    if (!strstr(issue->message, text)) {
        g_error("expected '%s' in '%s'", text, issue->message);
    }
}

/* Whether @name was declined, and why: @text is part of the reason */
static void assert_declined(const HandshakeVerdict *verdict, const char *name,
                            const char *text)
{
    const MigrationHandshakeDeclinedList *l;

    g_assert_false(handshake_strlist_contains(verdict->capabilities, name));
    for (l = verdict->declined; l; l = l->next) {
        if (!strcmp(l->value->capability, name)) {
            if (!strstr(l->value->reason, text)) {
                g_error("expected '%s' in '%s'", text, l->value->reason);
            }
            return;
        }
    }
    g_error("'%s' was not declined", name);
}

static void test_required(void)
{
    static const struct {
        const char *required;
        const char *effective;
    } cases[] = {
        { "", "return-path" },
        { "return-path", "return-path" },
        { "postcopy-ram", "return-path postcopy-ram" },
        { "postcopy-ram return-path postcopy-ram",
          "return-path postcopy-ram" },
        { "postcopy-ram postcopy-preempt",
          "return-path postcopy-ram postcopy-preempt" },
        /* It needs one that comes later */
        { "postcopy-preempt postcopy-ram",
          "return-path postcopy-ram postcopy-preempt" },
        { "postcopy-preempt dirty-bitmaps postcopy-ram x-ignore-shared",
          "return-path dirty-bitmaps postcopy-ram x-ignore-shared "
          "postcopy-preempt" },
    };

    for (int i = 0; i < ARRAY_SIZE(cases); i++) {
        FakeJudge fake = { 0 };
        g_autoptr(HandshakeVerdict) verdict =
            negotiate(&fake, cases[i].required, "", NULL);

        g_assert_null(verdict->issues.list);
        assert_strlist(verdict->capabilities, cases[i].effective);
        assert_dict(verdict->parameters, "{}");
        g_assert_null(verdict->declined);
    }
}

static void test_required_unknown(void)
{
    FakeJudge fake = { 0 };
    g_autoptr(HandshakeVerdict) verdict =
        negotiate(&fake, "postcopy-ram warp-drive time-travel", "", NULL);

    find_issue(verdict, "capability-unknown", "warp-drive");
    find_issue(verdict, "capability-unknown", "time-travel");
    g_assert_cmpuint(verdict->issues.errors, ==, 2);
    assert_strlist(verdict->capabilities, "return-path postcopy-ram");
}

/* What shapes no stream cannot be asked of a destination */
static void test_required_not_negotiable(void)
{
    for (int i = 0; i < MIGRATION_CAPABILITY__MAX; i++) {
        const char *name = MigrationCapability_str(i);
        HandshakePolicy policy = handshake_policy_capability(name);
        FakeJudge fake = { 0 };
        g_autoptr(HandshakeVerdict) verdict = NULL;

        if (policy == HANDSHAKE_POLICY_TAKEN ||
            policy == HANDSHAKE_POLICY_ALWAYS) {
            continue;
        }
        verdict = negotiate(&fake, name, "", NULL);
        assert_issue(verdict, "capability-unsupported", name, name);
        assert_strlist(verdict->capabilities, "return-path");
    }
}

static void test_required_impossible(void)
{
    FakeJudge fake = { .impossible = "postcopy-ram" };
    g_autoptr(HandshakeVerdict) verdict =
        negotiate(&fake, "postcopy-ram dirty-bitmaps", "", NULL);

    assert_issue(verdict, "capability-unsupported", "postcopy-ram",
                 "this host has no postcopy-ram");
    assert_strlist(verdict->capabilities, "return-path dirty-bitmaps");
}

/* The one it needs is not there */
static void test_required_dependency(void)
{
    FakeJudge fake = { 0 };
    g_autoptr(HandshakeVerdict) verdict =
        negotiate(&fake, "postcopy-preempt", "postcopy-ram", NULL);

    assert_issue(verdict, "capability-unsupported", "postcopy-preempt",
                 "postcopy-preempt requires postcopy-ram");
}

static void test_required_conflict(void)
{
    static const char *const orders[] = {
        "x-ignore-shared dirty-bitmaps", "dirty-bitmaps x-ignore-shared",
        "postcopy-ram x-ignore-shared postcopy-preempt dirty-bitmaps",
    };

    for (int i = 0; i < ARRAY_SIZE(orders); i++) {
        FakeJudge fake = { .rival = "dirty-bitmaps" };
        g_autoptr(HandshakeVerdict) verdict =
            negotiate(&fake, orders[i], "", NULL);
        /* The later one is the one that does not fit in */
        const char *name = i == 1 ? "x-ignore-shared" : "dirty-bitmaps";

        assert_issue(verdict, "capability-conflict", name,
                     "dirty-bitmaps does not go with x-ignore-shared");
    }
}

static void test_required_everything(void)
{
    FakeJudge fake = {
        .impossible = "postcopy-ram", .rival = "dirty-bitmaps"
    };
    g_autoptr(HandshakeVerdict) verdict =
        negotiate(&fake, "events nonsense postcopy-ram x-ignore-shared "
                  "dirty-bitmaps postcopy-preempt", "", NULL);

    find_issue(verdict, "capability-unsupported", "events");
    find_issue(verdict, "capability-unknown", "nonsense");
    find_issue(verdict, "capability-unsupported", "postcopy-ram");
    find_issue(verdict, "capability-conflict", "dirty-bitmaps");
    find_issue(verdict, "capability-unsupported", "postcopy-preempt");
    g_assert_cmpuint(verdict->issues.errors, ==, 5);
}

static void test_required_parameters(void)
{
    FakeJudge fake = { 0 };
    g_autoptr(HandshakeVerdict) verdict =
        negotiate(&fake, "multifd", "",
                  "{\"multifd\": {\"multifd-channels\": 4,"
                  " \"multifd-compression\": \"zstd\"},"
                  " \"postcopy-ram\": {\"later\": 1}}");

    g_assert_null(verdict->issues.list);
    g_assert_null(verdict->declined);
    assert_strlist(verdict->capabilities, "return-path multifd");
    /* Without those of what is not effective */
    assert_dict(verdict->parameters,
                "{\"multifd\": {\"multifd-channels\": 4,"
                " \"multifd-compression\": \"zstd\"}}");
    g_assert_cmpuint(fake.parameters_tried, ==, 2);
}

static void test_required_parameter_bad(void)
{
    FakeJudge fake = { 0 };
    g_autoptr(HandshakeVerdict) verdict =
        negotiate(&fake, "multifd", "",
                  "{\"multifd\": {\"multifd-channels\": 255,"
                  " \"multifd-compression\": \"lzma\", \"later\": 7}}");
    const MigrationHandshakeIssue *issue;

    issue = find_issue(verdict, "parameter-value", "multifd-channels");
    g_assert_cmpstr(issue->source, ==, "255");
    issue = find_issue(verdict, "parameter-value", "multifd-compression");
    g_assert_cmpstr(issue->source, ==, "lzma");
    g_assert_nonnull(strstr(issue->message, "unknown method 'lzma'"));
    issue = find_issue(verdict, "parameter-unknown", "later");
    g_assert_cmpstr(issue->source, ==, "7");
    g_assert_cmpuint(verdict->issues.errors, ==, 3);
    assert_strlist(verdict->capabilities, "return-path");
    assert_dict(verdict->parameters, "{}");
}

/* What a source may say that cannot open named channels */
static const char *const no_channels[] = {
    "", "grease-00000000", "named-channel", "named-channels2",
    "Named-Channels", "named_channels", "multifd postcopy-preempt",
};

static void test_required_channels(void)
{
    static const struct {
        const char *required;
        const char *name;           /* the one that is not possible */
        const char *effective;
    } cases[] = {
        { "multifd", "multifd", "return-path" },
        { "multifd multifd", "multifd", "return-path" },
        { "multifd dirty-bitmaps", "multifd", "return-path dirty-bitmaps" },
        { "dirty-bitmaps multifd", "multifd", "return-path dirty-bitmaps" },
        { "postcopy-ram postcopy-preempt", "postcopy-preempt",
          "return-path postcopy-ram" },
        { "postcopy-preempt postcopy-ram", "postcopy-preempt",
          "return-path postcopy-ram" },
    };

    for (int i = 0; i < ARRAY_SIZE(cases); i++) {
        g_autoptr(HandshakeHello) hello =
            hello_new(cases[i].required, "", "{}");
        FakeJudge fake = { 0 };
        g_autoptr(HandshakeVerdict) able = negotiate_with(&fake, hello);

        g_assert_null(able->issues.list);
        g_assert_true(handshake_strlist_contains(able->capabilities,
                                                 cases[i].name));

        for (int j = 0; j < ARRAY_SIZE(no_channels); j++) {
            g_autoptr(HandshakeVerdict) verdict = NULL;
            const MigrationHandshakeIssue *issue;

            set_strlist(&hello->features, no_channels[j]);
            verdict = negotiate_with(&fake, hello);
            assert_issue(verdict, "transport", cases[i].name, cases[i].name);
            issue = verdict->issues.list->value;
            g_assert_nonnull(strstr(issue->message, "'named-channels'"));
            g_assert_cmpstr(issue->source, ==, "needs further channels");
            g_assert_cmpstr(issue->destination, ==, "takes named ones only");
            /* The others are none the worse for it */
            assert_strlist(verdict->capabilities, cases[i].effective);
            assert_dict(verdict->parameters, "{}");
            g_assert_null(verdict->declined);
        }
    }
}

/* Everything that is wrong is said, the parameters of what cannot be aside */
static void test_required_channels_all(void)
{
    FakeJudge fake = { .impossible = "multifd" };
    g_autoptr(HandshakeHello) hello =
        hello_new("multifd warp-drive postcopy-preempt postcopy-ram",
                  "multifd postcopy-preempt",
                  "{\"multifd\": {\"multifd-channels\": 255, \"later\": 7},"
                  " \"postcopy-preempt\": 4}");
    g_autoptr(HandshakeVerdict) verdict = NULL;
    const MigrationHandshakeIssue *issue;

    set_strlist(&hello->features, "later");
    verdict = negotiate_with(&fake, hello);
    find_issue(verdict, "capability-unknown", "warp-drive");
    /* The feature is the reason, whatever else would be one */
    issue = find_issue(verdict, "transport", "multifd");
    g_assert_nonnull(strstr(issue->message, "'named-channels'"));
    issue = find_issue(verdict, "transport", "postcopy-preempt");
    g_assert_nonnull(strstr(issue->message, "'named-channels'"));
    g_assert_cmpuint(verdict->issues.errors, ==, 3);
    assert_strlist(verdict->capabilities, "return-path postcopy-ram");
    assert_dict(verdict->parameters, "{}");
    assert_declined(verdict, "multifd", "'named-channels'");
    assert_declined(verdict, "postcopy-preempt", "'named-channels'");
    /* Only postcopy-ram was worth a try */
    g_assert_cmpuint(fake.capabilities_tried, ==, 1);
    g_assert_cmpuint(fake.parameters_tried, ==, 0);
}

/*
 * That the destination must know a feature does not say that the source has
 * it: a source which has one says so in the other list.
 */
static void test_required_channels_feature(void)
{
    FakeJudge fake = { 0 };
    g_autoptr(HandshakeHello) hello = hello_new("multifd", "", NULL);
    g_autoptr(HandshakeVerdict) verdict = NULL;

    set_strlist(&hello->required, "named-channels");
    set_strlist(&hello->features, "");
    verdict = negotiate_with(&fake, hello);
    assert_issue(verdict, "transport", "multifd", "'named-channels'");
}

/* A parameter that is known, but belongs to another capability */
static void test_parameter_misplaced(void)
{
    static const char params[] =
        "{\"postcopy-ram\": {\"multifd-channels\": 4}}";
    FakeJudge fake = { 0 };
    g_autoptr(HandshakeVerdict) required =
        negotiate(&fake, "postcopy-ram", "", params);
    g_autoptr(HandshakeVerdict) optional =
        negotiate(&fake, "", "postcopy-ram", params);

    assert_issue(required, "parameter-unknown", "multifd-channels",
                 "postcopy-ram");
    assert_dict(required->parameters, "{}");
    assert_declined(optional, "postcopy-ram", "multifd-channels");
    assert_dict(optional->parameters, "{}");
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
        { "", "", "return-path" },
        { "", "return-path", "return-path" },
        { "", "postcopy-ram", "return-path postcopy-ram" },
        { "postcopy-ram", "postcopy-ram", "return-path postcopy-ram" },
        { "", "postcopy-ram postcopy-ram", "return-path postcopy-ram" },
        /* In the source's order */
        { "", "x-ignore-shared dirty-bitmaps", "return-path x-ignore-shared",
          "dirty-bitmaps", "does not go with x-ignore-shared" },
        { "", "dirty-bitmaps x-ignore-shared", "return-path dirty-bitmaps",
          "x-ignore-shared", "does not go with x-ignore-shared" },
        { "", "dirty-bitmaps x-ignore-shared postcopy-ram",
          "return-path dirty-bitmaps postcopy-ram",
          "x-ignore-shared", "does not go with x-ignore-shared" },
        { "x-ignore-shared", "dirty-bitmaps", "return-path x-ignore-shared",
          "dirty-bitmaps", "does not go with x-ignore-shared" },
        /* The order is the source's business */
        { "", "postcopy-ram postcopy-preempt",
          "return-path postcopy-ram postcopy-preempt" },
        { "", "postcopy-preempt postcopy-ram", "return-path postcopy-ram",
          "postcopy-preempt", "requires postcopy-ram" },
        { "postcopy-ram", "postcopy-preempt",
          "return-path postcopy-ram postcopy-preempt" },
        /* Not for this, not known */
        { "", "xbzrle postcopy-ram", "return-path postcopy-ram",
          "xbzrle", "cannot be negotiated" },
        { "", "events", "return-path", "events", "cannot be negotiated" },
        { "", "mapped-ram", "return-path",
          "mapped-ram", "cannot be negotiated" },
        { "", "validate-uuid", "return-path",
          "validate-uuid", "cannot be negotiated" },
        { "", "warp-drive postcopy-ram", "return-path postcopy-ram",
          "warp-drive", "not known" },
    };

    for (int i = 0; i < ARRAY_SIZE(cases); i++) {
        FakeJudge fake = { .rival = "dirty-bitmaps" };
        g_autoptr(HandshakeVerdict) verdict =
            negotiate(&fake, cases[i].required, cases[i].optional, NULL);

        g_assert_null(verdict->issues.list);
        assert_strlist(verdict->capabilities, cases[i].effective);
        if (cases[i].declined) {
            assert_declined(verdict, cases[i].declined, cases[i].reason);
            g_assert_null(verdict->declined->next);
        } else {
            g_assert_null(verdict->declined);
        }
    }
}

static void test_optional_impossible(void)
{
    FakeJudge fake = { .impossible = "postcopy-ram" };
    g_autoptr(HandshakeVerdict) verdict =
        negotiate(&fake, "", "postcopy-ram dirty-bitmaps postcopy-preempt",
                  NULL);

    g_assert_null(verdict->issues.list);
    assert_strlist(verdict->capabilities, "return-path dirty-bitmaps");
    assert_declined(verdict, "postcopy-ram", "this host has no postcopy-ram");
    assert_declined(verdict, "postcopy-preempt", "requires postcopy-ram");
}

/* The source chose the name, but it is shown here as well */
static void test_optional_hostile(void)
{
    FakeJudge fake = { 0 };
    g_autofree char *name = g_strnfill(100000, 'x');
    g_autoptr(HandshakeHello) hello = hello_new("", "", NULL);
    g_autoptr(HandshakeVerdict) verdict = NULL;
    const MigrationHandshakeDeclined *declined;

    name[1] = '\n';
    qapi_free_strList(hello->optional);
    hello->optional = NULL;
    QAPI_LIST_PREPEND(hello->optional, g_strdup(name));
    verdict = negotiate_with(&fake, hello);
    declined = verdict->declined->value;
    g_assert_true(g_str_has_prefix(declined->capability, "x xxx"));
    g_assert_cmpuint(strlen(declined->capability), <=, 1024);
    g_assert_cmpuint(strlen(declined->reason), <=, 1024);
}

static void test_optional_parameters(void)
{
    static const struct {
        const char *params;
        const char *reason;     /* NULL if it is taken */
    } cases[] = {
        { "{}", NULL },
        { "{\"multifd\": {}}", NULL },
        { "{\"multifd\": {\"multifd-channels\": 4}}", NULL },
        { "{\"multifd\": {\"multifd-channels\": 4,"
          " \"multifd-compression\": \"zstd\"}}", NULL },
        { "{\"multifd\": {\"multifd-channels\": 5}}", "'5' channels" },
        { "{\"multifd\": {\"multifd-compression\": \"lzma\"}}", "'lzma'" },
        { "{\"multifd\": {\"multifd-channels\": \"many\"}}", "'many'" },
        { "{\"multifd\": {\"later\": 1}}", "'later'" },
        { "{\"multifd\": {\"multifd-channels\": 4, \"later\": 1}}", "'later'" },
    };

    for (int i = 0; i < ARRAY_SIZE(cases); i++) {
        FakeJudge fake = { 0 };
        g_autoptr(HandshakeVerdict) verdict =
            negotiate(&fake, "", "multifd postcopy-ram", cases[i].params);

        g_assert_null(verdict->issues.list);
        if (cases[i].reason) {
            assert_declined(verdict, "multifd", cases[i].reason);
            assert_strlist(verdict->capabilities, "return-path postcopy-ram");
            assert_dict(verdict->parameters, "{}");
        } else {
            g_assert_null(verdict->declined);
            assert_dict(verdict->parameters, cases[i].params);
        }
    }
}

static void test_optional_channels(void)
{
    static const char params[] =
        "{\"multifd\": {\"multifd-channels\": 4}}";
    g_autoptr(HandshakeHello) hello =
        hello_new("", "multifd postcopy-ram postcopy-preempt", params);
    FakeJudge fake = { 0 };
    g_autoptr(HandshakeVerdict) able = negotiate_with(&fake, hello);

    g_assert_null(able->issues.list);
    g_assert_null(able->declined);
    assert_strlist(able->capabilities,
                   "return-path multifd postcopy-ram postcopy-preempt");
    assert_dict(able->parameters, params);

    for (int i = 0; i < ARRAY_SIZE(no_channels); i++) {
        FakeJudge idle = { 0 };
        g_autoptr(HandshakeVerdict) verdict = NULL;

        set_strlist(&hello->features, no_channels[i]);
        verdict = negotiate_with(&idle, hello);
        g_assert_null(verdict->issues.list);
        assert_strlist(verdict->capabilities, "return-path postcopy-ram");
        assert_dict(verdict->parameters, "{}");
        assert_declined(verdict, "multifd", "'multifd'");
        assert_declined(verdict, "multifd", "'named-channels'");
        assert_declined(verdict, "postcopy-preempt", "'postcopy-preempt'");
        assert_declined(verdict, "postcopy-preempt", "'named-channels'");
        g_assert_null(verdict->declined->next->next);
        /* Trying is not cheap, and there would be no use in it */
        g_assert_cmpuint(idle.capabilities_tried, ==, 1);
        g_assert_cmpuint(idle.parameters_tried, ==, 0);
    }
}

/* What the two machines cannot do with each other is no reason to refuse */
static void test_optional_machines(void)
{
    static const char *const names[] = { "multifd", "postcopy-preempt" };
    static const char *const properties[] = {
        "multifd-flush-after-each-section", "x-preempt-pre-7-2",
    };

    for (int i = 0; i < ARRAY_SIZE(names); i++) {
        g_autoptr(HandshakeHello) hello =
            hello_new("", "multifd postcopy-ram postcopy-preempt", "{}");
        g_autoptr(HandshakeHello) required =
            hello_new("multifd postcopy-ram postcopy-preempt", "", "{}");
        g_autoptr(HandshakeProfile) local = handshake_profile_new();
        FakeJudge fake = { 0 };
        g_autoptr(HandshakeVerdict) same = NULL;
        g_autoptr(HandshakeVerdict) other = NULL;
        g_autoptr(HandshakeVerdict) must = NULL;

        qobject_unref(hello->profile->stream);
        hello->profile->stream = qdict_new();
        qdict_put_bool(hello->profile->stream, properties[i], true);
        qobject_unref(required->profile->stream);
        required->profile->stream = qobject_ref(hello->profile->stream);
        qobject_unref(local->stream);
        local->stream = qdict_new();

        /* One that does not know the property, and one that has it alike */
        same = negotiate_on(local, &fake, hello);
        g_assert_null(same->declined);
        handshake_verdict_free(g_steal_pointer(&same));
        qdict_put_bool(local->stream, properties[i], true);
        same = negotiate_on(local, &fake, hello);
        g_assert_null(same->declined);

        qdict_put_bool(local->stream, properties[i], false);
        other = negotiate_on(local, &fake, hello);
        assert_declined(other, names[i], properties[i]);
        g_assert_null(other->declined->next);
        g_assert_null(other->issues.list);
        g_assert_false(handshake_strlist_contains(other->capabilities,
                                                  names[i]));

        /* It is handshake_compare() that refuses */
        must = negotiate_on(local, &fake, required);
        g_assert_null(must->issues.list);
        g_assert_true(handshake_strlist_contains(must->capabilities,
                                                 names[i]));
    }
}

/* Required and wanted ones do not get into each other's way */
static void test_optional_channels_mixed(void)
{
    g_autoptr(HandshakeHello) hello =
        hello_new("multifd", "postcopy-ram postcopy-preempt multifd", "{}");
    FakeJudge fake = { 0 };
    g_autoptr(HandshakeVerdict) able = negotiate_with(&fake, hello);
    g_autoptr(HandshakeVerdict) unable = NULL;

    g_assert_null(able->issues.list);
    g_assert_null(able->declined);
    assert_strlist(able->capabilities,
                   "return-path multifd postcopy-ram postcopy-preempt");

    set_strlist(&hello->features, "");
    unable = negotiate_with(&fake, hello);
    assert_issue(unable, "transport", "multifd",
                 "'named-channels'");
    assert_declined(unable, "postcopy-preempt", "'named-channels'");
    assert_strlist(unable->capabilities, "return-path postcopy-ram");
}

/* Every parameter that is not to be taken, wherever a hostile HELLO puts it */
static void test_hostile_parameters(void)
{
    static const char *const more[] = { "cpr-exec-command", "later", "" };
    g_autoptr(GPtrArray) groups = g_ptr_array_new();

    for (int i = 0; i < MIGRATION_CAPABILITY__MAX; i++) {
        g_ptr_array_add(groups, (char *)MigrationCapability_str(i));
    }
    g_ptr_array_add(groups, (char *)"");
    g_ptr_array_add(groups, (char *)"warp-drive");
    g_ptr_array_add(groups, (char *)"tls-creds");

    for (int g = 0; g < groups->len; g++) {
        const char *group = g_ptr_array_index(groups, g);

        for (int i = 0; i < MIGRATION_PARAMETER__MAX + ARRAY_SIZE(more); i++) {
            const char *name = i < MIGRATION_PARAMETER__MAX
                               ? MigrationParameter_str(i)
                               : more[i - MIGRATION_PARAMETER__MAX];
            g_autofree char *params =
                g_strdup_printf("{\"%s\": {\"%s\": \"evil\"}}", group, name);

            for (int how = 0; how < 4; how++) {
                FakeJudge fake = { 0 };
                g_autoptr(HandshakeVerdict) verdict =
                    negotiate(&fake, how & 1 ? group : "return-path",
                              how & 2 ? group : "return-path", params);

                /* A value that is not possible is not there, either */
                if (qdict_size(verdict->parameters)) {
                    g_error("%s came through (%d)", params, how);
                }
            }
        }
    }
}

/* Values that are not even objects cannot be understood */
static void test_hostile_groups(void)
{
    static const char *const values[] = {
        "null", "4", "[4]", "\"multifd-channels\"", "true",
    };

    /* With one that has no parameters, and with one that has some */
    static const char *const names[] = { "postcopy-ram", "multifd" };

    for (int i = 0; i < ARRAY_SIZE(values) * ARRAY_SIZE(names); i++) {
        const char *name = names[i % ARRAY_SIZE(names)];
        g_autofree char *params =
            g_strdup_printf("{\"%s\": %s}", name,
                            values[i / ARRAY_SIZE(names)]);
        FakeJudge fake = { 0 };
        g_autoptr(HandshakeVerdict) required =
            negotiate(&fake, name, "", params);
        g_autoptr(HandshakeVerdict) optional =
            negotiate(&fake, "", name, params);
        g_autoptr(HandshakeVerdict) other =
            negotiate(&fake, "dirty-bitmaps", "", params);

        assert_issue(required, "parameter-unknown", name, "");
        assert_dict(required->parameters, "{}");
        assert_declined(optional, name, name);
        assert_dict(optional->parameters, "{}");
        /* Nobody cares if nobody asked for it */
        g_assert_null(other->issues.list);
        assert_dict(other->parameters, "{}");
    }
}

static strList *many_names(int count, const char *format)
{
    strList *list = NULL;

    for (int i = 0; i < count; i++) {
        g_autofree char *number = g_strdup_printf("%d", i);

        QAPI_LIST_PREPEND(list, g_strconcat(format, number, NULL));
    }
    return list;
}

#define MANY 100000

static void test_many_unknown(void)
{
    FakeJudge fake = { 0 };
    g_autoptr(HandshakeHello) hello = hello_new("", "", NULL);
    g_autoptr(HandshakeVerdict) verdict = NULL;
    unsigned declined = 0;

    qapi_free_strList(hello->profile->required);
    qapi_free_strList(hello->optional);
    hello->profile->required = many_names(MANY, "r");
    hello->optional = many_names(MANY, "o");
    verdict = negotiate_with(&fake, hello);

    g_assert_cmpuint(verdict->issues.errors, ==, MANY);
    g_assert_cmpuint(verdict->issues.listed, ==, HANDSHAKE_ISSUES_MAX);
    g_assert_cmpuint(verdict->issues.listed + verdict->issues.omitted, ==,
                     MANY);
    for (MigrationHandshakeDeclinedList *l = verdict->declined; l;
         l = l->next) {
        declined++;
    }
    /* A destination need not look at more than 64 */
    g_assert_cmpuint(declined, >=, 64);
    g_assert_cmpuint(declined, <=, 256);
    g_assert_cmpuint(fake.capabilities_tried, ==, 0);
}

/* The same names over and over, with parameters that are wrong */
static void test_many_repeated(void)
{
    FakeJudge fake = { .impossible = "x-ignore-shared" };
    g_autoptr(HandshakeHello) hello = hello_new("", "", "{}");
    g_autoptr(HandshakeVerdict) verdict = NULL;
    QDict *group = qdict_new();

    qapi_free_strList(hello->profile->required);
    qapi_free_strList(hello->optional);
    hello->profile->required = NULL;
    hello->optional = NULL;
    for (int i = 0; i < MANY; i++) {
        static const char *const names[] = {
            "postcopy-ram", "x-ignore-shared", "return-path", "dirty-bitmaps"
        };
        const char *name = names[i % ARRAY_SIZE(names)];

        QAPI_LIST_PREPEND(hello->profile->required, g_strdup(name));
        QAPI_LIST_PREPEND(hello->optional, g_strdup(name));
    }
    for (int i = 0; i < MANY; i++) {
        g_autofree char *name = g_strdup_printf("p%d", i);

        qdict_put_int(group, name, i);
    }
    qdict_put(hello->profile->parameters, "postcopy-ram", group);
    verdict = negotiate_with(&fake, hello);

    /* Each parameter once, and x-ignore-shared */
    g_assert_cmpuint(verdict->issues.errors, ==, MANY + 1);
    find_issue(verdict, "parameter-unknown",
               qdict_entry_key(qdict_first(group)));
    assert_strlist(verdict->capabilities, "return-path dirty-bitmaps");
    g_assert_cmpuint(fake.capabilities_tried, <, 100);
}

static void test_offer(void)
{
    g_autoptr(HandshakeHello) hello = handshake_hello_new();
    g_autoptr(strList) enabled =
        strlist("xbzrle events postcopy-ram validate-uuid return-path "
                "zero-copy-send dirty-bitmaps");
    g_autoptr(strList) optional =
        strlist("multifd postcopy-ram switchover-ack multifd");
    QDict *values = qdict_new();

    for (int i = 0; i < MIGRATION_PARAMETER__MAX; i++) {
        qdict_put_str(values, MigrationParameter_str(i), "value");
    }
    qdict_put_int(values, "multifd-channels", 4);
    qdict_put_str(values, "later", "value");
    handshake_policy_offer(enabled, optional, values, hello);

    /* Without those that are nobody else's business */
    assert_strlist(hello->profile->capabilities,
                   "xbzrle postcopy-ram validate-uuid return-path "
                   "zero-copy-send dirty-bitmaps");
    assert_strlist(hello->profile->required, "postcopy-ram dirty-bitmaps");
    /* Each once, and none that is required already */
    assert_strlist(hello->optional, "multifd switchover-ack");
    /* Nothing that does not shape the stream leaves this host */
    assert_dict(hello->profile->parameters,
                "{\"multifd\": {\"multifd-channels\": 4,"
                " \"multifd-compression\": \"value\"}}");
    qobject_unref(values);
}

/* Parameters go along with what may be switched on, and only with that */
static void test_offer_parameters(void)
{
    static const struct {
        const char *enabled;
        const char *optional;
        const char *values;
        const char *params;
    } cases[] = {
        { "", "", "{\"multifd-channels\": 4}", "{}" },
        { "postcopy-ram", "dirty-bitmaps", "{\"multifd-channels\": 4}", "{}" },
        { "multifd", "", "{\"multifd-channels\": 4}",
          "{\"multifd\": {\"multifd-channels\": 4}}" },
        { "", "multifd", "{\"multifd-channels\": 4}",
          "{\"multifd\": {\"multifd-channels\": 4}}" },
        { "multifd", "", "{\"multifd-compression\": \"zstd\"}",
          "{\"multifd\": {\"multifd-compression\": \"zstd\"}}" },
        { "postcopy-ram multifd postcopy-preempt", "",
          "{\"multifd-compression\": \"zstd\", \"multifd-channels\": 4}",
          "{\"multifd\": {\"multifd-channels\": 4,"
          " \"multifd-compression\": \"zstd\"}}" },
        { "postcopy-ram", "postcopy-preempt", "{\"multifd-channels\": 4}",
          "{}" },
        { "multifd", "", "{}", "{}" },
        { "multifd", "", "{\"tls-creds\": \"tls0\"}", "{}" },
    };

    for (int i = 0; i < ARRAY_SIZE(cases); i++) {
        g_autoptr(HandshakeHello) hello = handshake_hello_new();
        g_autoptr(strList) enabled = strlist(cases[i].enabled);
        g_autoptr(strList) optional = strlist(cases[i].optional);
        QDict *values = dict_from(cases[i].values);

        handshake_policy_offer(enabled, optional, values, hello);
        assert_dict(hello->profile->parameters, cases[i].params);
        qobject_unref(values);
    }
}

/* @declined may be NULL; @expected is part of the error, NULL if none */
static void check_accept(const HandshakeHello *hello, const char *effective,
                         const char *params, const char *declined,
                         const char *expected)
{
    g_autoptr(HandshakeVerdict) verdict = handshake_verdict_new();
    g_autoptr(strList) names = strlist(declined ?: "");
    MigrationHandshakeDeclinedList **tail = &verdict->declined;
    Error *err = NULL;

    verdict->accept = true;
    verdict->features = strlist("named-channels");
    verdict->capabilities = strlist(effective);
    verdict->parameters = params ? dict_from(params) : NULL;
    for (strList *l = names; l; l = l->next) {
        MigrationHandshakeDeclined *item =
            g_new0(MigrationHandshakeDeclined, 1);

        item->capability = g_strdup(l->value);
        item->reason = g_strdup("no");
        QAPI_LIST_APPEND(tail, item);
    }

    if (handshake_policy_check_accept(hello, verdict, &err)) {
        if (expected) {
            g_error("accepted '%s' %s, but expected '%s'", effective, params,
                    expected);
        }
        g_assert_null(err);
        for (MigrationHandshakeDeclinedList *l = verdict->declined; l;
             l = l->next) {
            g_assert_true(handshake_strlist_contains(hello->optional,
                                                     l->value->capability));
        }
        return;
    }
    g_assert_nonnull(err);
    if (!expected || !strstr(error_get_pretty(err), expected)) {
        g_error("expected '%s', not '%s'", expected ?: "no error",
                error_get_pretty(err));
    }
    error_free(err);
}

static void test_accept_capabilities(void)
{
    static const struct {
        const char *effective;
        const char *error;
    } cases[] = {
        { "return-path postcopy-ram", NULL },
        { "postcopy-ram return-path", NULL },
        { "return-path postcopy-ram dirty-bitmaps", NULL },
        { "return-path postcopy-ram dirty-bitmaps switchover-ack", NULL },
        { "return-path", "without the required capability 'postcopy-ram'" },
        { "return-path dirty-bitmaps", "'postcopy-ram'" },
        { "return-path postcopy-ra", "'postcopy-ram'" },
        { "", "'postcopy-ram'" },
        { "postcopy-ram", "without return-path" },
        { "postcopy-ram dirty-bitmaps", "without return-path" },
        { "return-path postcopy-ram multifd", "not offered" },
        { "return-path postcopy-ram events", "not offered" },
        { "return-path postcopy-ram x-colo", "not offered" },
        { "return-path postcopy-ram warp-drive", "not offered" },
        { "return-path postcopy-ram grease-00000000", "not offered" },
    };
    g_autoptr(HandshakeHello) hello =
        hello_new("postcopy-ram", "dirty-bitmaps switchover-ack", "{}");

    for (int i = 0; i < ARRAY_SIZE(cases); i++) {
        check_accept(hello, cases[i].effective, "{}", NULL, cases[i].error);
        check_accept(hello, cases[i].effective, NULL, NULL, cases[i].error);
    }
}

/* What a source sent */
#define CHANNELS "{\"multifd\": {\"multifd-channels\": 4}}"

static void test_accept_parameters(void)
{
    static const char changed[] = "changed the parameters";
    static const struct {
        const char *effective;
        const char *params;
        const char *error;
    } cases[] = {
        { "return-path multifd", CHANNELS, NULL },
        { "return-path multifd dirty-bitmaps", CHANNELS, NULL },
        { "return-path multifd", "{\"multifd\": {\"multifd-channels\": 5}}",
          changed },
        { "return-path multifd",
          "{\"multifd\": {\"multifd-channels\": \"4\"}}", changed },
        { "return-path multifd",
          "{\"multifd\": {\"multifd-channels\": null}}", changed },
        { "return-path multifd", "{\"multifd\": {}}", changed },
        { "return-path multifd", "{}", changed },
        { "return-path multifd", NULL, changed },
        { "return-path multifd", "{\"multifd\": 4}", changed },
        /* Not even the value that it would have anyway */
        { "return-path multifd", "{\"multifd\": {\"multifd-channels\": 4,"
          " \"multifd-compression\": \"none\"}}", changed },
        { "return-path multifd", "{\"multifd\": {\"multifd-channels\": 4,"
          " \"tls-creds\": \"evil\"}}", changed },
        { "return-path multifd", "{\"multifd\": {\"multifd-channels\": 4},"
          " \"dirty-bitmaps\": {}}", changed },
        { "return-path multifd", "{\"multifd\": {\"multifd-channels\": 4},"
          " \"return-path\": {\"tls-creds\": \"evil\"}}", changed },
    };
    g_autoptr(HandshakeHello) hello =
        hello_new("multifd", "dirty-bitmaps", CHANNELS);
    g_autoptr(HandshakeHello) optional = hello_new("", "multifd", CHANNELS);
    g_autoptr(HandshakeHello) plain = hello_new("", "multifd", NULL);

    for (int i = 0; i < ARRAY_SIZE(cases); i++) {
        check_accept(hello, cases[i].effective, cases[i].params, NULL,
                     cases[i].error);
    }

    /* Those of a capability that was declined are not effective */
    check_accept(optional, "return-path", "{}", "multifd", NULL);
    check_accept(optional, "return-path", CHANNELS, "multifd", changed);
    check_accept(optional, "return-path multifd", CHANNELS, NULL, NULL);
    check_accept(optional, "return-path multifd", "{}", NULL, changed);

    check_accept(plain, "return-path multifd", "{}", NULL, NULL);
    check_accept(plain, "return-path multifd", NULL, NULL, NULL);
    check_accept(plain, "return-path multifd", CHANNELS, NULL, changed);
}

/* @name: what a destination with these @features cannot do; NULL if nothing */
static void check_accept_channels(const HandshakeHello *hello,
                                  const char *effective, const char *features,
                                  const char *name)
{
    g_autoptr(HandshakeVerdict) verdict = handshake_verdict_new();
    g_autoptr(Error) err = NULL;

    verdict->accept = true;
    verdict->features = strlist(features);
    verdict->capabilities = strlist(effective);
    if (!name) {
        g_assert_true(handshake_policy_check_accept(hello, verdict,
                                                    &error_abort));
        return;
    }
    if (handshake_policy_check_accept(hello, verdict, &err)) {
        g_error("accepted '%s' with '%s'", effective, features);
    }
    g_assert_nonnull(strstr(error_get_pretty(err), name));
    g_assert_nonnull(strstr(error_get_pretty(err), "'named-channels'"));
}

/* A destination that cannot take the channels, and would get them */
static void test_accept_channels(void)
{
    static const struct {
        const char *effective;
        const char *name;           /* what cannot be; NULL if all can */
    } cases[] = {
        { "return-path", NULL },
        { "return-path postcopy-ram", NULL },
        { "return-path multifd", "'multifd'" },
        { "multifd return-path", "'multifd'" },
        { "return-path postcopy-ram postcopy-preempt", "'postcopy-preempt'" },
        { "return-path postcopy-preempt postcopy-ram", "'postcopy-preempt'" },
        { "return-path multifd postcopy-ram postcopy-preempt", "'multifd'" },
    };

    for (int i = 0; i < ARRAY_SIZE(cases); i++) {
        const char *effective = cases[i].effective;
        g_autoptr(HandshakeHello) required = hello_new(effective, "", NULL);
        g_autoptr(HandshakeHello) optional = hello_new("", effective, NULL);

        check_accept_channels(required, effective, FEATURES, NULL);
        check_accept_channels(optional, effective, FEATURES, NULL);
        for (int j = 0; j < ARRAY_SIZE(no_channels); j++) {
            check_accept_channels(required, effective, no_channels[j],
                                  cases[i].name);
            check_accept_channels(optional, effective, no_channels[j],
                                  cases[i].name);
        }
    }
}

/* What was declined for that reason is no problem of the source's */
static void test_accept_channels_declined(void)
{
    g_autoptr(HandshakeHello) hello =
        hello_new("dirty-bitmaps", "multifd postcopy-ram", CHANNELS);
    g_autoptr(HandshakeVerdict) verdict = handshake_verdict_new();
    MigrationHandshakeDeclined *item = g_new0(MigrationHandshakeDeclined, 1);

    item->capability = g_strdup("multifd");
    item->reason = g_strdup("no");
    QAPI_LIST_PREPEND(verdict->declined, item);
    verdict->accept = true;
    verdict->capabilities = strlist("return-path dirty-bitmaps postcopy-ram");
    g_assert_true(handshake_policy_check_accept(hello, verdict, &error_abort));
    g_assert_cmpstr(verdict->declined->value->capability, ==, "multifd");
}

static void test_accept_declined(void)
{
    g_autoptr(HandshakeHello) hello =
        hello_new("postcopy-ram", "switchover-ack dirty-bitmaps", NULL);

    for (int i = 0; i < 8; i++) {
        g_autofree char *declined =
            g_strdup_printf("%s%s%s%s", i & 1 ? "grease-12345678 " : "",
                            "switchover-ack", i & 2 ? " warp-drive" : "",
                            i & 4 ? " dirty-bitmaps postcopy-ram" : "");

        check_accept(hello, "return-path postcopy-ram", "{}", declined, NULL);
    }
}

static void test_accept_declined_kept(void)
{
    g_autoptr(HandshakeHello) hello = hello_new("", "a b", NULL);
    g_autoptr(HandshakeVerdict) verdict = handshake_verdict_new();
    static const char *const names[] = { "x", "a", "y", "z", "b", "x" };
    MigrationHandshakeDeclinedList **tail = &verdict->declined;

    verdict->capabilities = strlist("return-path");
    for (int i = 0; i < ARRAY_SIZE(names); i++) {
        MigrationHandshakeDeclined *item =
            g_new0(MigrationHandshakeDeclined, 1);

        item->capability = g_strdup(names[i]);
        item->reason = g_strdup_printf("reason %d", i);
        QAPI_LIST_APPEND(tail, item);
    }
    g_assert_true(handshake_policy_check_accept(hello, verdict, &error_abort));
    g_assert_cmpstr(verdict->declined->value->capability, ==, "a");
    g_assert_cmpstr(verdict->declined->value->reason, ==, "reason 1");
    g_assert_cmpstr(verdict->declined->next->value->capability, ==, "b");
    g_assert_cmpstr(verdict->declined->next->value->reason, ==, "reason 4");
    g_assert_null(verdict->declined->next->next);
}

static void test_accept_many(void)
{
    g_autoptr(HandshakeHello) hello = hello_new("multifd", "a b c", NULL);
    g_autoptr(HandshakeVerdict) verdict = handshake_verdict_new();
    Error *err = NULL;

    verdict->features = strlist("named-channels");
    verdict->capabilities = strlist("return-path multifd");
    verdict->capabilities->next->next = many_names(MANY, "a");
    g_assert_false(handshake_policy_check_accept(hello, verdict, &err));
    g_assert_nonnull(strstr(error_get_pretty(err), "not offered"));
    g_assert_cmpuint(strlen(error_get_pretty(err)), <, 1024);
    error_free(err);

    /* A name that is too long for a message */
    qapi_free_strList(verdict->capabilities->next->next);
    verdict->capabilities->next->next = NULL;
    g_free(verdict->capabilities->next->value);
    verdict->capabilities->next->value = g_strnfill(100000, 'x');
    QAPI_LIST_PREPEND(verdict->capabilities, g_strdup("multifd"));
    err = NULL;
    g_assert_false(handshake_policy_check_accept(hello, verdict, &err));
    g_assert_nonnull(strstr(error_get_pretty(err), "not offered"));
    g_assert_cmpuint(strlen(error_get_pretty(err)), <, 1024);
    error_free(err);
}

/*
 * Whatever a destination of ours accepts satisfies a source of ours.
 * @features: what the older one of them knows
 */
static void check_both_sides(const char *enabled, const char *optional,
                             const char *features)
{
    FakeJudge fake = {
        .impossible = "x-ignore-shared", .rival = "dirty-bitmaps"
    };
    g_autoptr(HandshakeHello) hello = handshake_hello_new();
    g_autoptr(strList) on = strlist(enabled);
    g_autoptr(strList) wanted = strlist(optional);
    g_autoptr(HandshakeHello) arrived = NULL;
    g_autoptr(HandshakeVerdict) verdict = NULL;
    g_autoptr(HandshakeVerdict) answer = NULL;
    g_autofree char *request = NULL;
    g_autofree char *reply = NULL;
    bool able = strlen(features);
    unsigned impossible = 0;
    QDict *values = dict_from("{\"multifd-channels\": 4,"
                              " \"multifd-compression\": \"zstd\","
                              " \"tls-creds\": \"tls0\"}");

    hello->purpose = g_strdup("migrate");
    hello->features = strlist(features);
    handshake_policy_offer(on, wanted, values, hello);
    qobject_unref(values);
    request = handshake_hello_to_json(hello);
    arrived = handshake_hello_from_json(request, strlen(request), NULL,
                                        &error_abort);
    verdict = negotiate_with(&fake, arrived);
    for (strList *l = on; l; l = l->next) {
        if (!able && handshake_policy_needs_channels(l->value)) {
            find_issue(verdict, "transport", l->value);
            impossible++;
        }
    }
    g_assert_cmpuint(verdict->issues.errors, ==, impossible);
    if (impossible) {
        return;
    }

    verdict->accept = true;
    verdict->features = handshake_features_common(arrived->features);
    reply = handshake_verdict_to_json(verdict);
    answer = handshake_verdict_from_json(reply, strlen(reply), true,
                                         &error_abort);
    g_assert_true(handshake_policy_check_accept(hello, answer, &error_abort));
    for (MigrationHandshakeDeclinedList *l = answer->declined; l;
         l = l->next) {
        g_assert_true(handshake_strlist_contains(wanted,
                                                 l->value->capability));
    }
    for (strList *l = answer->capabilities; l; l = l->next) {
        g_assert_true(able || !handshake_policy_needs_channels(l->value));
    }

    /* Both get to the same values, from what each of them has at hand */
    values = handshake_policy_values(answer->capabilities, answer->parameters);
    assert_dict(values,
                handshake_strlist_contains(verdict->capabilities, "multifd")
                ? "{\"multifd-channels\": 4, \"multifd-compression\": \"zstd\"}"
                : "{}");
    qobject_unref(values);
}

static void test_both_sides(void)
{
    static const char *const enabled[] = {
        "", "multifd", "events xbzrle return-path",
        "postcopy-preempt postcopy-ram", "multifd postcopy-ram validate-uuid",
    };
    static const char *const optional[] = {
        "", "multifd", "dirty-bitmaps multifd", "postcopy-preempt postcopy-ram",
        "postcopy-ram postcopy-preempt",
        "warp-drive events switchover-ack multifd x-ignore-shared return-path",
    };

    for (int i = 0; i < ARRAY_SIZE(enabled); i++) {
        for (int j = 0; j < ARRAY_SIZE(optional); j++) {
            check_both_sides(enabled[i], optional[j], "named-channels");
            check_both_sides(enabled[i], optional[j], "");
        }
    }
}

#define ALL "return-path postcopy-ram multifd postcopy-preempt switchover-ack"
#define DEFAULTS "{\"multifd-channels\": 2, \"multifd-compression\": \"none\"}"

static void assert_values(const char *effective, const char *groups,
                          const char *expected)
{
    g_autoptr(strList) capabilities = strlist(effective);
    QDict *from = groups ? dict_from(groups) : NULL;
    QDict *values = handshake_policy_values(capabilities, from);

    assert_dict(values, expected);
    qobject_unref(values);
    if (from) {
        /* It was only looked at */
        assert_dict(from, groups);
        qobject_unref(from);
    }
}

static void test_values(void)
{
    static const struct {
        const char *effective;
        const char *groups;
        const char *values;
    } cases[] = {
        /* Nothing was sent */
        { "return-path multifd", NULL, DEFAULTS },
        { "return-path multifd", "{}", DEFAULTS },
        { "return-path multifd", "{\"multifd\": {}}", DEFAULTS },
        { "multifd", NULL, DEFAULTS },
        { ALL, NULL, DEFAULTS },
        { ALL, "{\"postcopy-preempt\": {}}", DEFAULTS },
        /* One of them, both of them */
        { "return-path multifd", "{\"multifd\": {\"multifd-channels\": 4}}",
          "{\"multifd-channels\": 4, \"multifd-compression\": \"none\"}" },
        { "return-path multifd",
          "{\"multifd\": {\"multifd-compression\": \"zstd\"}}",
          "{\"multifd-channels\": 2, \"multifd-compression\": \"zstd\"}" },
        { "return-path multifd",
          "{\"multifd\": {\"multifd-channels\": 255,"
          " \"multifd-compression\": \"zlib\"}}",
          "{\"multifd-channels\": 255, \"multifd-compression\": \"zlib\"}" },
        { ALL, "{\"postcopy-ram\": {}, \"multifd\": {\"multifd-channels\": 1}}",
          "{\"multifd-channels\": 1, \"multifd-compression\": \"none\"}" },
        /* What is there is not replaced, whatever it is like */
        { "return-path multifd", "{\"multifd\": {\"multifd-channels\": 0,"
          " \"multifd-compression\": \"\"}}",
          "{\"multifd-channels\": 0, \"multifd-compression\": \"\"}" },
        /* Not effective */
        { "", NULL, "{}" },
        { "return-path", NULL, "{}" },
        { "return-path", "{\"multifd\": {\"multifd-channels\": 4}}", "{}" },
        { "return-path postcopy-ram postcopy-preempt switchover-ack",
          "{\"multifd\": {\"multifd-channels\": 4}}", "{}" },
        { "return-path multifd2", "{\"multifd\": {\"multifd-channels\": 4}}",
          "{}" },
        /* In another one's group */
        { ALL, "{\"postcopy-ram\": {\"multifd-channels\": 4},"
          " \"return-path\": {\"multifd-compression\": \"zstd\"}}", DEFAULTS },
        { ALL, "{\"multifd-channels\": 4}", DEFAULTS },
        /* Groups that are none */
        { "return-path multifd", "{\"multifd\": null}", DEFAULTS },
        { "return-path multifd", "{\"multifd\": 4}", DEFAULTS },
        { "return-path multifd", "{\"multifd\": [4]}", DEFAULTS },
        { "return-path multifd", "{\"multifd\": \"multifd-channels\"}",
          DEFAULTS },
    };
    QDict *none = handshake_policy_values(NULL, NULL);

    assert_dict(none, "{}");
    qobject_unref(none);
    for (int i = 0; i < ARRAY_SIZE(cases); i++) {
        assert_values(cases[i].effective, cases[i].groups, cases[i].values);
    }
}

/* They are set one by one: what is not to be taken must not be among them */
static void test_values_hostile(void)
{
    for (int i = 0; i < MIGRATION_PARAMETER__MAX; i++) {
        const char *name = MigrationParameter_str(i);
        g_autofree char *groups =
            g_strdup_printf("{\"multifd\": {\"%s\": \"evil\", \"later\": 1},"
                            " \"postcopy-ram\": {\"%s\": \"evil\"},"
                            " \"return-path\": {\"%s\": \"evil\"},"
                            " \"%s\": {\"%s\": \"evil\"}}",
                            name, name, name, name, name);

        if (handshake_policy_parameter(name, NULL) != HANDSHAKE_POLICY_TAKEN) {
            assert_values(ALL, groups, DEFAULTS);
        }
    }
}

/*
 * A parameter to be taken has a value even if nobody sent it: the next one must
 * not be forgotten in the table.
 */
static void test_values_complete(void)
{
    strList *effective = NULL;
    unsigned count = 0;
    QDict *values;

    for (int i = 0; i < MIGRATION_CAPABILITY__MAX; i++) {
        QAPI_LIST_PREPEND(effective, g_strdup(MigrationCapability_str(i)));
    }
    values = handshake_policy_values(effective, NULL);
    for (int i = 0; i < MIGRATION_PARAMETER__MAX; i++) {
        const char *name = MigrationParameter_str(i);
        bool taken = handshake_policy_parameter(name, NULL) ==
                     HANDSHAKE_POLICY_TAKEN;

        g_assert_true(qdict_haskey(values, name) == taken);
        count += taken;
    }
    g_assert_cmpuint(qdict_size(values), ==, count);
    g_assert_cmpint(qdict_get_int(values, "multifd-channels"), ==, 2);
    g_assert_cmpstr(qdict_get_str(values, "multifd-compression"), ==, "none");
    qobject_unref(values);
    qapi_free_strList(effective);
}

/* The caller may keep them, and may change them */
static void test_values_owned(void)
{
    g_autoptr(strList) effective = strlist("return-path multifd");
    QDict *groups = dict_from("{\"multifd\": {\"multifd-channels\": 4,"
                              " \"multifd-compression\": \"zstd\"}}");
    QDict *values = handshake_policy_values(effective, groups);

    qdict_put_int(values, "multifd-channels", 8);
    assert_dict(groups, "{\"multifd\": {\"multifd-channels\": 4,"
                        " \"multifd-compression\": \"zstd\"}}");
    qobject_unref(groups);
    assert_dict(values, "{\"multifd-channels\": 8,"
                        " \"multifd-compression\": \"zstd\"}");
    qobject_unref(values);
    /* Nor did that change what the next one gets */
    assert_values("return-path multifd", NULL, DEFAULTS);
}

int main(int argc, char **argv)
{
    g_test_init(&argc, &argv, NULL);

    g_test_add_func("/migration/handshake/policy/all-capabilities",
                    test_all_capabilities);
    g_test_add_func("/migration/handshake/policy/all-parameters",
                    test_all_parameters);
    g_test_add_func("/migration/handshake/policy/parameter-owners",
                    test_parameter_owners);
    g_test_add_func("/migration/handshake/policy/each-once", test_each_once);
    g_test_add_func("/migration/handshake/policy/unknown", test_unknown);
    g_test_add_func("/migration/handshake/policy/policies", test_policies);
    g_test_add_func("/migration/handshake/policy/needs-channels",
                    test_needs_channels);
    g_test_add_func("/migration/handshake/policy/negotiable", test_negotiable);
    g_test_add_func("/migration/handshake/policy/required", test_required);
    g_test_add_func("/migration/handshake/policy/required/unknown",
                    test_required_unknown);
    g_test_add_func("/migration/handshake/policy/required/not-negotiable",
                    test_required_not_negotiable);
    g_test_add_func("/migration/handshake/policy/required/impossible",
                    test_required_impossible);
    g_test_add_func("/migration/handshake/policy/required/dependency",
                    test_required_dependency);
    g_test_add_func("/migration/handshake/policy/required/conflict",
                    test_required_conflict);
    g_test_add_func("/migration/handshake/policy/required/everything",
                    test_required_everything);
    g_test_add_func("/migration/handshake/policy/required/parameters",
                    test_required_parameters);
    g_test_add_func("/migration/handshake/policy/required/parameter-bad",
                    test_required_parameter_bad);
    g_test_add_func("/migration/handshake/policy/required/channels",
                    test_required_channels);
    g_test_add_func("/migration/handshake/policy/required/channels-all",
                    test_required_channels_all);
    g_test_add_func("/migration/handshake/policy/required/channels-feature",
                    test_required_channels_feature);
    g_test_add_func("/migration/handshake/policy/parameter-misplaced",
                    test_parameter_misplaced);
    g_test_add_func("/migration/handshake/policy/optional", test_optional);
    g_test_add_func("/migration/handshake/policy/optional/impossible",
                    test_optional_impossible);
    g_test_add_func("/migration/handshake/policy/optional/hostile",
                    test_optional_hostile);
    g_test_add_func("/migration/handshake/policy/optional/parameters",
                    test_optional_parameters);
    g_test_add_func("/migration/handshake/policy/optional/channels",
                    test_optional_channels);
    g_test_add_func("/migration/handshake/policy/optional/machines",
                    test_optional_machines);
    g_test_add_func("/migration/handshake/policy/optional/channels-mixed",
                    test_optional_channels_mixed);
    g_test_add_func("/migration/handshake/policy/hostile/parameters",
                    test_hostile_parameters);
    g_test_add_func("/migration/handshake/policy/hostile/groups",
                    test_hostile_groups);
    g_test_add_func("/migration/handshake/policy/many/unknown",
                    test_many_unknown);
    g_test_add_func("/migration/handshake/policy/many/repeated",
                    test_many_repeated);
    g_test_add_func("/migration/handshake/policy/offer", test_offer);
    g_test_add_func("/migration/handshake/policy/offer/parameters",
                    test_offer_parameters);
    g_test_add_func("/migration/handshake/policy/accept/capabilities",
                    test_accept_capabilities);
    g_test_add_func("/migration/handshake/policy/accept/parameters",
                    test_accept_parameters);
    g_test_add_func("/migration/handshake/policy/accept/channels",
                    test_accept_channels);
    g_test_add_func("/migration/handshake/policy/accept/channels-declined",
                    test_accept_channels_declined);
    g_test_add_func("/migration/handshake/policy/accept/declined",
                    test_accept_declined);
    g_test_add_func("/migration/handshake/policy/accept/declined-kept",
                    test_accept_declined_kept);
    g_test_add_func("/migration/handshake/policy/accept/many",
                    test_accept_many);
    g_test_add_func("/migration/handshake/policy/both-sides", test_both_sides);
    g_test_add_func("/migration/handshake/policy/values", test_values);
    g_test_add_func("/migration/handshake/policy/values/hostile",
                    test_values_hostile);
    g_test_add_func("/migration/handshake/policy/values/complete",
                    test_values_complete);
    g_test_add_func("/migration/handshake/policy/values/owned",
                    test_values_owned);

    return g_test_run();
}
