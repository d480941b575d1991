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

/* Negotiable, if only some day */
static bool shapes_stream(const char *name)
{
    HandshakePolicy policy = handshake_policy_capability(name);

    return policy == HANDSHAKE_POLICY_TAKEN || policy == HANDSHAKE_POLICY_OFF;
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
            g_assert_true(shapes_stream(capability));
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
    g_autoptr(strList) shaping =
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

        g_assert_true(shapes_stream(name) ==
                      handshake_strlist_contains(shaping, name));
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
    /* Like postcopy-preempt, which may not be there yet */
    if (handshake_strlist_contains(list, "switchover-ack") &&
        !handshake_strlist_contains(list, "postcopy-ram")) {
        error_setg(errp, "switchover-ack requires postcopy-ram");
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

static HandshakeHello *hello_new(const char *required, const char *optional,
                                 const char *params)
{
    HandshakeHello *hello = handshake_hello_new();

    hello->profile->required = strlist(required);
    hello->optional = strlist(optional);
    if (params) {
        hello->profile->parameters = dict_from(params);
    }
    return hello;
}

static HandshakeVerdict *negotiate_with(FakeJudge *fake,
                                        const HandshakeHello *hello)
{
    HandshakeVerdict *verdict = handshake_verdict_new();

    fake->judge = (HandshakeJudge) {
        .try_capabilities = fake_try_capabilities,
        .try_parameter = fake_try_parameter,
        .opaque = fake,
    };
    handshake_negotiate(hello, &fake->judge, verdict);
    /* Nothing but issues decides whether it is accepted */
    g_assert_cmpuint(verdict->issues.warnings, ==, 0);
    return verdict;
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
        { "postcopy-ram switchover-ack",
          "return-path postcopy-ram switchover-ack" },
        /* It needs one that comes later */
        { "switchover-ack postcopy-ram",
          "return-path postcopy-ram switchover-ack" },
        { "switchover-ack dirty-bitmaps postcopy-ram x-ignore-shared",
          "return-path dirty-bitmaps postcopy-ram x-ignore-shared "
          "switchover-ack" },
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
        negotiate(&fake, "switchover-ack", "postcopy-ram", NULL);

    assert_issue(verdict, "capability-unsupported", "switchover-ack",
                 "switchover-ack requires postcopy-ram");
}

static void test_required_conflict(void)
{
    static const char *const orders[] = {
        "x-ignore-shared dirty-bitmaps", "dirty-bitmaps x-ignore-shared",
        "postcopy-ram x-ignore-shared switchover-ack dirty-bitmaps",
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
                  "dirty-bitmaps switchover-ack", "", NULL);

    find_issue(verdict, "capability-unsupported", "events");
    find_issue(verdict, "capability-unknown", "nonsense");
    find_issue(verdict, "capability-unsupported", "postcopy-ram");
    find_issue(verdict, "capability-conflict", "dirty-bitmaps");
    find_issue(verdict, "capability-unsupported", "switchover-ack");
    g_assert_cmpuint(verdict->issues.errors, ==, 5);
}

/* As long as multifd is off, there is no parameter that could be taken */
static bool skip_parameters(void)
{
    if (handshake_policy_capability("multifd") == HANDSHAKE_POLICY_TAKEN) {
        return false;
    }
    g_test_skip("multifd is not negotiated yet");
    return true;
}

static void do_test_required_parameters(void)
{
    FakeJudge fake = { 0 };
    g_autoptr(HandshakeVerdict) verdict =
        negotiate(&fake, "multifd", "",
                  "{\"multifd\": {\"multifd-channels\": 4,"
                  " \"multifd-compression\": \"zstd\"},"
                  " \"postcopy-ram\": {\"later\": 1}}");

    g_assert_null(verdict->issues.list);
    assert_strlist(verdict->capabilities, "return-path multifd");
    /* Without those of what is not effective */
    assert_dict(verdict->parameters,
                "{\"multifd\": {\"multifd-channels\": 4,"
                " \"multifd-compression\": \"zstd\"}}");
    g_assert_cmpuint(fake.parameters_tried, ==, 2);
}

static void test_required_parameters(void)
{
    if (!skip_parameters()) {
        do_test_required_parameters();
    }
}

static void do_test_required_parameter_bad(void)
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

static void test_required_parameter_bad(void)
{
    if (!skip_parameters()) {
        do_test_required_parameter_bad();
    }
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
        { "", "postcopy-ram switchover-ack",
          "return-path postcopy-ram switchover-ack" },
        { "", "switchover-ack postcopy-ram", "return-path postcopy-ram",
          "switchover-ack", "requires postcopy-ram" },
        { "postcopy-ram", "switchover-ack",
          "return-path postcopy-ram switchover-ack" },
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
        negotiate(&fake, "", "postcopy-ram dirty-bitmaps switchover-ack", NULL);

    g_assert_null(verdict->issues.list);
    assert_strlist(verdict->capabilities, "return-path dirty-bitmaps");
    assert_declined(verdict, "postcopy-ram", "this host has no postcopy-ram");
    assert_declined(verdict, "switchover-ack", "requires postcopy-ram");
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

static void do_test_optional_parameters(void)
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

static void test_optional_parameters(void)
{
    if (!skip_parameters()) {
        do_test_optional_parameters();
    }
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
                QDict *flat = handshake_policy_flatten(verdict->parameters);

                /* A value that is not possible is not there, either */
                if (qdict_size(flat)) {
                    g_error("%s came through (%d)", params, how);
                }
                qobject_unref(flat);
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

    for (int i = 0; i < ARRAY_SIZE(values); i++) {
        g_autofree char *params = g_strdup_printf("{\"postcopy-ram\": %s}",
                                                  values[i]);
        FakeJudge fake = { 0 };
        g_autoptr(HandshakeVerdict) required =
            negotiate(&fake, "postcopy-ram", "", params);
        g_autoptr(HandshakeVerdict) optional =
            negotiate(&fake, "", "postcopy-ram", params);
        g_autoptr(HandshakeVerdict) other =
            negotiate(&fake, "dirty-bitmaps", "", params);

        assert_issue(required, "parameter-unknown", "postcopy-ram", "");
        assert_dict(required->parameters, "{}");
        assert_declined(optional, "postcopy-ram", "postcopy-ram");
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
    bool multifd = handshake_policy_capability("multifd") ==
                   HANDSHAKE_POLICY_TAKEN;

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
    if (multifd) {
        assert_dict(hello->profile->parameters,
                    "{\"multifd\": {\"multifd-channels\": 4,"
                    " \"multifd-compression\": \"value\"}}");
    }
    g_assert_false(qdict_haskey(hello->profile->parameters, "postcopy-ram"));
    g_assert_cmpuint(qdict_size(hello->profile->parameters), <=, 1);
    qobject_unref(values);
}

/* Parameters go along with what may be switched on, and only with that */
static void do_test_offer_parameters(void)
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

static void test_offer_parameters(void)
{
    if (!skip_parameters()) {
        do_test_offer_parameters();
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

/* What a source sent: the names do not matter here */
#define CHANNELS "{\"postcopy-ram\": {\"channels\": 4}}"

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

static void test_accept_parameters(void)
{
    static const char changed[] = "changed the parameters";
    static const struct {
        const char *effective;
        const char *params;
        const char *error;
    } cases[] = {
        { "return-path postcopy-ram", CHANNELS, NULL },
        { "return-path postcopy-ram dirty-bitmaps", CHANNELS, NULL },
        { "return-path postcopy-ram", "{\"postcopy-ram\": {\"channels\": 5}}",
          changed },
        { "return-path postcopy-ram",
          "{\"postcopy-ram\": {\"channels\": \"4\"}}", changed },
        { "return-path postcopy-ram",
          "{\"postcopy-ram\": {\"channels\": null}}", changed },
        { "return-path postcopy-ram", "{\"postcopy-ram\": {}}", changed },
        { "return-path postcopy-ram", "{}", changed },
        { "return-path postcopy-ram", NULL, changed },
        { "return-path postcopy-ram", "{\"postcopy-ram\": 4}", changed },
        { "return-path postcopy-ram", "{\"postcopy-ram\": {\"channels\": 4,"
          " \"compression\": \"zlib\"}}", changed },
        { "return-path postcopy-ram", "{\"postcopy-ram\": {\"channels\": 4,"
          " \"tls-creds\": \"evil\"}}", changed },
        { "return-path postcopy-ram", "{\"postcopy-ram\": {\"channels\": 4},"
          " \"dirty-bitmaps\": {}}", changed },
        { "return-path postcopy-ram", "{\"postcopy-ram\": {\"channels\": 4},"
          " \"return-path\": {\"tls-creds\": \"evil\"}}", changed },
    };
    g_autoptr(HandshakeHello) hello =
        hello_new("postcopy-ram", "dirty-bitmaps", CHANNELS);
    g_autoptr(HandshakeHello) optional =
        hello_new("", "postcopy-ram", CHANNELS);
    g_autoptr(HandshakeHello) plain = hello_new("", "postcopy-ram", NULL);

    for (int i = 0; i < ARRAY_SIZE(cases); i++) {
        check_accept(hello, cases[i].effective, cases[i].params, NULL,
                     cases[i].error);
    }

    /* Those of a capability that was declined are not effective */
    check_accept(optional, "return-path", "{}", "postcopy-ram", NULL);
    check_accept(optional, "return-path", CHANNELS, "postcopy-ram", changed);
    check_accept(optional, "return-path postcopy-ram", CHANNELS, NULL, NULL);
    check_accept(optional, "return-path postcopy-ram", "{}", NULL, changed);

    check_accept(plain, "return-path postcopy-ram", "{}", NULL, NULL);
    check_accept(plain, "return-path postcopy-ram", NULL, NULL, NULL);
    check_accept(plain, "return-path postcopy-ram", CHANNELS, NULL, changed);
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

    verdict->capabilities = strlist("return-path multifd");
    verdict->capabilities->next->next = many_names(MANY, "a");
    g_assert_false(handshake_policy_check_accept(hello, verdict, &err));
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
    g_assert_cmpuint(strlen(error_get_pretty(err)), <, 1024);
    error_free(err);
}

/* Whatever a destination of ours accepts satisfies a source of ours */
static void test_both_sides(void)
{
    static const char *const enabled[] = {
        "", "multifd", "events xbzrle return-path",
        "postcopy-preempt postcopy-ram", "multifd postcopy-ram validate-uuid",
    };
    static const char *const optional[] = {
        "", "multifd", "dirty-bitmaps multifd", "postcopy-preempt postcopy-ram",
        "warp-drive events switchover-ack multifd x-ignore-shared return-path",
    };

    for (int i = 0; i < ARRAY_SIZE(enabled) * ARRAY_SIZE(optional); i++) {
        FakeJudge fake = {
            .impossible = "x-ignore-shared", .rival = "dirty-bitmaps"
        };
        g_autoptr(HandshakeHello) hello = handshake_hello_new();
        g_autoptr(strList) on = strlist(enabled[i % ARRAY_SIZE(enabled)]);
        g_autoptr(strList) wanted = strlist(optional[i / ARRAY_SIZE(enabled)]);
        g_autoptr(HandshakeHello) arrived = NULL;
        g_autoptr(HandshakeVerdict) verdict = NULL;
        g_autoptr(HandshakeVerdict) answer = NULL;
        g_autofree char *request = NULL;
        g_autofree char *reply = NULL;
        QDict *values = dict_from("{\"multifd-channels\": 4,"
                                  " \"multifd-compression\": \"zstd\","
                                  " \"tls-creds\": \"tls0\"}");

        hello->purpose = g_strdup("migrate");
        handshake_policy_offer(on, wanted, values, hello);
        qobject_unref(values);
        request = handshake_hello_to_json(hello);
        arrived = handshake_hello_from_json(request, strlen(request), NULL,
                                            &error_abort);
        verdict = negotiate_with(&fake, arrived);
        g_assert_null(verdict->issues.list);
        verdict->accept = true;
        reply = handshake_verdict_to_json(verdict);
        answer = handshake_verdict_from_json(reply, strlen(reply), true,
                                             &error_abort);
        g_assert_true(handshake_policy_check_accept(hello, answer,
                                                    &error_abort));
        for (MigrationHandshakeDeclinedList *l = answer->declined; l;
             l = l->next) {
            g_assert_true(handshake_strlist_contains(wanted,
                                                     l->value->capability));
        }
    }
}

static void test_flatten(void)
{
    static const struct {
        const char *groups;
        const char *flat;
    } cases[] = {
        { "{}", "{}" },
        { "{\"a\": {}}", "{}" },
        { "{\"a\": {\"x\": 1, \"y\": \"z\"}}", "{\"x\": 1, \"y\": \"z\"}" },
        { "{\"a\": {\"x\": 1}, \"b\": {\"y\": 2}}", "{\"x\": 1, \"y\": 2}" },
        { "{\"a\": 1, \"b\": null, \"c\": [], \"d\": {\"x\": {}}}",
          "{\"x\": {}}" },
    };
    QDict *flat = handshake_policy_flatten(NULL);

    assert_dict(flat, "{}");
    qobject_unref(flat);
    for (int i = 0; i < ARRAY_SIZE(cases); i++) {
        QDict *groups = dict_from(cases[i].groups);

        flat = handshake_policy_flatten(groups);
        assert_dict(flat, cases[i].flat);
        qobject_unref(flat);
        qobject_unref(groups);
    }
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
    g_test_add_func("/migration/handshake/policy/parameter-misplaced",
                    test_parameter_misplaced);
    g_test_add_func("/migration/handshake/policy/optional", test_optional);
    g_test_add_func("/migration/handshake/policy/optional/impossible",
                    test_optional_impossible);
    g_test_add_func("/migration/handshake/policy/optional/hostile",
                    test_optional_hostile);
    g_test_add_func("/migration/handshake/policy/optional/parameters",
                    test_optional_parameters);
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
    g_test_add_func("/migration/handshake/policy/accept/declined",
                    test_accept_declined);
    g_test_add_func("/migration/handshake/policy/accept/declined-kept",
                    test_accept_declined_kept);
    g_test_add_func("/migration/handshake/policy/accept/many",
                    test_accept_many);
    g_test_add_func("/migration/handshake/policy/both-sides", test_both_sides);
    g_test_add_func("/migration/handshake/policy/flatten", test_flatten);

    return g_test_run();
}
