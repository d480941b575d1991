/*
 * Migration handshake: who decides about each capability and parameter
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "qapi/error.h"
#include "qapi/util.h"
#include "qapi/qapi-builtin-types.h"
#include "qobject/qjson.h"
#include "handshake-compat.h"
#include "handshake-json.h"
#include "handshake-policy.h"

/* More names than that are not looked at: a source has no use for them */
#define OPTIONAL_MAX    64

static const struct CapabilityPolicy {
    const char *name;
    HandshakePolicy policy;
    bool channels;          /* it opens channels of its own */
} capabilities[] = {
    /* The destination decodes it in any case */
    { "xbzrle", HANDSHAKE_POLICY_SOURCE },
    { "rdma-pin-all", HANDSHAKE_POLICY_SOURCE },
    { "auto-converge", HANDSHAKE_POLICY_SOURCE },
    /* Without effect since QEMU 2.11 */
    { "zero-blocks", HANDSHAKE_POLICY_LOCAL },
    /* Whether a QEMU sends QMP events is between it and its client */
    { "events", HANDSHAKE_POLICY_LOCAL },
    { "postcopy-ram", HANDSHAKE_POLICY_TAKEN },
    /* Both sides need block replication, which only a client can set up */
    { "x-colo", HANDSHAKE_POLICY_REFUSED },
    { "release-ram", HANDSHAKE_POLICY_SOURCE },
    { "return-path", HANDSHAKE_POLICY_ALWAYS },
    { "pause-before-switchover", HANDSHAKE_POLICY_SOURCE },
    { "multifd", HANDSHAKE_POLICY_TAKEN, .channels = true },
    { "dirty-bitmaps", HANDSHAKE_POLICY_TAKEN },
    { "postcopy-blocktime", HANDSHAKE_POLICY_LOCAL },
    { "late-block-activate", HANDSHAKE_POLICY_LOCAL },
    { "x-ignore-shared", HANDSHAKE_POLICY_TAKEN },
    { "validate-uuid", HANDSHAKE_POLICY_COMPARED },
    /* It excludes return-path */
    { "background-snapshot", HANDSHAKE_POLICY_REFUSED },
    { "zero-copy-send", HANDSHAKE_POLICY_SOURCE },
    { "postcopy-preempt", HANDSHAKE_POLICY_TAKEN, .channels = true },
    { "switchover-ack", HANDSHAKE_POLICY_TAKEN },
    { "dirty-limit", HANDSHAKE_POLICY_SOURCE },
    /* It needs a file */
    { "mapped-ram", HANDSHAKE_POLICY_REFUSED },
};

static const struct {
    const char *name;
    HandshakePolicy policy;
    const char *capability;
    const char *absent;     /* JSON: the value if a source does not send it */
} parameters[] = {
    { "announce-initial", HANDSHAKE_POLICY_LOCAL },
    { "announce-max", HANDSHAKE_POLICY_LOCAL },
    { "announce-rounds", HANDSHAKE_POLICY_LOCAL },
    { "announce-step", HANDSHAKE_POLICY_LOCAL },
    { "throttle-trigger-threshold", HANDSHAKE_POLICY_SOURCE },
    { "cpu-throttle-initial", HANDSHAKE_POLICY_SOURCE },
    { "cpu-throttle-increment", HANDSHAKE_POLICY_SOURCE },
    { "cpu-throttle-tailslow", HANDSHAKE_POLICY_SOURCE },
    { "max-cpu-throttle", HANDSHAKE_POLICY_SOURCE },
    /* Names of local objects, and local security policy */
    { "tls-creds", HANDSHAKE_POLICY_LOCAL },
    { "tls-hostname", HANDSHAKE_POLICY_LOCAL },
    { "tls-authz", HANDSHAKE_POLICY_LOCAL },
    { "max-bandwidth", HANDSHAKE_POLICY_SOURCE },
    { "avail-switchover-bandwidth", HANDSHAKE_POLICY_SOURCE },
    { "downtime-limit", HANDSHAKE_POLICY_SOURCE },
    { "max-postcopy-bandwidth", HANDSHAKE_POLICY_SOURCE },
    { "x-checkpoint-delay", HANDSHAKE_POLICY_SOURCE },
    { "multifd-channels", HANDSHAKE_POLICY_TAKEN, "multifd", "2" },
    { "multifd-compression", HANDSHAKE_POLICY_TAKEN, "multifd", "\"none\"" },
    { "multifd-zlib-level", HANDSHAKE_POLICY_SOURCE },
    { "multifd-qatzip-level", HANDSHAKE_POLICY_SOURCE },
    { "multifd-zstd-level", HANDSHAKE_POLICY_SOURCE },
    { "xbzrle-cache-size", HANDSHAKE_POLICY_SOURCE },
    /* Node names are local, and differ by design */
    { "block-bitmap-mapping", HANDSHAKE_POLICY_LOCAL },
    { "x-vcpu-dirty-limit-period", HANDSHAKE_POLICY_SOURCE },
    { "vcpu-dirty-limit", HANDSHAKE_POLICY_SOURCE },
    /* Anything but "normal" is refused before the conversation */
    { "mode", HANDSHAKE_POLICY_REFUSED },
    /* Any QEMU with a handshake reads all that the source may choose */
    { "zero-page-detection", HANDSHAKE_POLICY_SOURCE },
    { "direct-io", HANDSHAKE_POLICY_LOCAL },
    /* A command line for the source's host */
    { "cpr-exec-command", HANDSHAKE_POLICY_LOCAL },
};

/* NULL if it is not in the table */
static const struct CapabilityPolicy *find_capability(const char *name)
{
    for (int i = 0; i < ARRAY_SIZE(capabilities); i++) {
        if (!strcmp(capabilities[i].name, name)) {
            return &capabilities[i];
        }
    }
    return NULL;
}

HandshakePolicy handshake_policy_capability(const char *name)
{
    const struct CapabilityPolicy *capability = find_capability(name);

    return capability ? capability->policy : HANDSHAKE_POLICY_UNKNOWN;
}

strList *handshake_policy_negotiable(void)
{
    strList *names = NULL;
    strList **tail = &names;

    for (int i = 0; i < ARRAY_SIZE(capabilities); i++) {
        if (capabilities[i].policy == HANDSHAKE_POLICY_TAKEN) {
            QAPI_LIST_APPEND(tail, g_strdup(capabilities[i].name));
        }
    }
    return names;
}

bool handshake_policy_needs_channels(const char *name)
{
    const struct CapabilityPolicy *capability = find_capability(name);

    return capability && capability->channels;
}

HandshakePolicy handshake_policy_parameter(const char *name,
                                           const char **capability)
{
    for (int i = 0; i < ARRAY_SIZE(parameters); i++) {
        if (!strcmp(parameters[i].name, name)) {
            if (capability) {
                *capability = parameters[i].capability;
            }
            return parameters[i].policy;
        }
    }
    if (capability) {
        *capability = NULL;
    }
    return HANDSHAKE_POLICY_UNKNOWN;
}

/* The parameters that go with @capability; NULL if none does */
static QDict *parameters_of(const char *capability, const QDict *values)
{
    QDict *group = NULL;

    for (int i = 0; i < ARRAY_SIZE(parameters); i++) {
        QObject *value = qdict_get(values, parameters[i].name);

        if (parameters[i].policy == HANDSHAKE_POLICY_TAKEN && value &&
            !strcmp(parameters[i].capability, capability)) {
            group = group ?: qdict_new();
            qdict_put_obj(group, parameters[i].name, qobject_ref(value));
        }
    }
    return group;
}

void handshake_policy_offer(const strList *enabled, const strList *optional,
                            const QDict *values, HandshakeHello *hello)
{
    HandshakeProfile *profile = hello->profile;
    strList **capabilities_tail = &profile->capabilities;
    strList **required_tail = &profile->required;
    strList **optional_tail = &hello->optional;
    const strList *l;

    profile->parameters = qdict_new();

    for (l = enabled; l; l = l->next) {
        HandshakePolicy policy = handshake_policy_capability(l->value);

        if (policy != HANDSHAKE_POLICY_LOCAL) {
            QAPI_LIST_APPEND(capabilities_tail, g_strdup(l->value));
        }
        if (policy == HANDSHAKE_POLICY_TAKEN) {
            QAPI_LIST_APPEND(required_tail, g_strdup(l->value));
        }
    }
    for (l = optional; l; l = l->next) {
        if (!handshake_strlist_contains(profile->required, l->value) &&
            !handshake_strlist_contains(hello->optional, l->value)) {
            QAPI_LIST_APPEND(optional_tail, g_strdup(l->value));
        }
    }

    for (int i = 0; i < ARRAY_SIZE(capabilities); i++) {
        const char *name = capabilities[i].name;

        if (handshake_strlist_contains(profile->required, name) ||
            handshake_strlist_contains(hello->optional, name)) {
            QDict *group = parameters_of(name, values);

            if (group) {
                qdict_put(profile->parameters, name, group);
            }
        }
    }
}

/*
 * Whether the channels that @capability needs can be opened, if both sides
 * have these @features
 */
static bool check_channels(const char *capability, const strList *features,
                           Error **errp)
{
    if (handshake_policy_needs_channels(capability) &&
        !handshake_strlist_contains(features,
                                    HANDSHAKE_FEATURE_NAMED_CHANNELS)) {
        error_setg(errp, "capability '%s' needs handshake feature '%s', which "
                   "the other side does not have", capability,
                   HANDSHAKE_FEATURE_NAMED_CHANNELS);
        return false;
    }
    return true;
}

/* What the source sent along with @capability; NULL if nothing */
static QDict *group_of(const QDict *groups, const char *capability)
{
    return groups ? qobject_to(QDict, qdict_get(groups, capability)) : NULL;
}

/*
 * Those of @groups whose capability is in @effective.  What is on after every
 * handshake has none, so that nobody has looked at what a peer says of it.
 */
static QDict *effective_parameters(const QDict *groups,
                                   const strList *effective)
{
    QDict *result = qdict_new();

    for (; effective; effective = effective->next) {
        QDict *group = group_of(groups, effective->value);

        if (group && handshake_policy_capability(effective->value) ==
                     HANDSHAKE_POLICY_TAKEN) {
            qdict_put(result, effective->value, qobject_ref(group));
        }
    }
    return result;
}

typedef struct Negotiation {
    const HandshakeHello *hello;
    const HandshakeProfile *local;
    const HandshakeJudge *judge;
    HandshakeVerdict *verdict;
    strList **tail;             /* of verdict->capabilities */
} Negotiation;

/* Adds @name to the effective capabilities if the whole set works with it */
static bool try_to_add(Negotiation *n, const char *name, Error **errp)
{
    g_autofree strList *item = g_new0(strList, 1);
    bool ok;

    item->value = (char *)name;
    *n->tail = item;
    ok = n->judge->try_capabilities(n->verdict->capabilities,
                                    n->judge->opaque, errp);
    *n->tail = NULL;
    if (ok) {
        QAPI_LIST_APPEND(n->tail, g_strdup(name));
    }
    return ok;
}

/* Whether the two machines go together with @name; a single one always does */
static bool check_machines(Negotiation *n, const char *name, Error **errp)
{
    return !n->local ||
           handshake_compare_capability(n->hello->profile, n->local, name,
                                        errp);
}

/* Whether @name works here when nothing else that is negotiated is on */
static bool works_alone(Negotiation *n, const char *name)
{
    strList capability = { .value = (char *)name };
    strList return_path = {
        .next = &capability,
        .value = (char *)"return-path",
    };

    return n->judge->try_capabilities(&return_path, n->judge->opaque, NULL);
}

/*
 * Whether all parameters that came along with a capability can be taken.
 * What is wrong makes issues, or only the first @errp if @issues is NULL.
 */
static bool check_parameters(Negotiation *n, const char *capability,
                             HandshakeIssues *issues, Error **errp)
{
    const QDict *groups = n->hello->profile->parameters;
    const QDict *group = group_of(groups, capability);
    const QDictEntry *entry;
    bool ok = true;

    if (!groups || !qdict_haskey(groups, capability)) {
        return true;
    }
    if (!group) {
        error_setg(errp, "parameters of capability '%s' make no sense",
                   capability);
        if (issues) {
            handshake_issue_add(issues, "parameter-unknown",
                                MIGRATION_HANDSHAKE_SEVERITY_ERROR, capability,
                                "not an object", "unknown",
                                "parameters of capability '%s' make no sense",
                                capability);
        }
        return false;
    }
    for (entry = qdict_first(group); entry; entry = qdict_next(group, entry)) {
        const char *name = qdict_entry_key(entry);
        const QObject *value = qdict_entry_value(entry);
        g_autofree char *text = handshake_json_text(value);
        g_autoptr(Error) err = NULL;
        const char *owner;
        bool known;

        known = handshake_policy_parameter(name, &owner) ==
                HANDSHAKE_POLICY_TAKEN && !strcmp(owner, capability);
        if (!known) {
            error_setg(&err, "parameter '%s' of capability '%s' is not known "
                       "on the destination", name, capability);
        } else if (n->judge->try_parameter(name, value, n->judge->opaque,
                                           &err)) {
            continue;
        }
        ok = false;
        if (!issues) {
            error_propagate(errp, g_steal_pointer(&err));
            break;
        }
        handshake_issue_add(issues,
                            known ? "parameter-value" : "parameter-unknown",
                            MIGRATION_HANDSHAKE_SEVERITY_ERROR, name, text,
                            known ? "not possible" : "unknown", "%s",
                            error_get_pretty(err));
    }
    return ok;
}

/* Names the capabilities that are impossible as such, and keeps the others */
static strList *known_required(Negotiation *n)
{
    HandshakeIssues *issues = &n->verdict->issues;
    g_autoptr(strList) seen = NULL;
    strList *possible = NULL;
    strList **tail = &possible;

    for (strList *l = n->hello->profile->required; l; l = l->next) {
        g_autoptr(Error) err = NULL;

        switch (handshake_policy_capability(l->value)) {
        case HANDSHAKE_POLICY_ALWAYS:
            break;
        case HANDSHAKE_POLICY_TAKEN:
            if (handshake_strlist_contains(seen, l->value)) {
                break;
            }
            QAPI_LIST_PREPEND(seen, g_strdup(l->value));
            if (!check_channels(l->value, n->hello->features, &err)) {
                handshake_issue_add(issues, "transport",
                                    MIGRATION_HANDSHAKE_SEVERITY_ERROR,
                                    l->value, "needs further channels",
                                    "takes named ones only", "%s",
                                    error_get_pretty(err));
            } else if (check_parameters(n, l->value, issues, NULL)) {
                QAPI_LIST_APPEND(tail, g_strdup(l->value));
            }
            break;
        case HANDSHAKE_POLICY_UNKNOWN:
            handshake_issue_add(issues, "capability-unknown",
                                MIGRATION_HANDSHAKE_SEVERITY_ERROR, l->value,
                                "required", "unknown",
                                "capability '%s' is set on the source and not "
                                "known on the destination", l->value);
            break;
        default:
            handshake_issue_add(issues, "capability-unsupported",
                                MIGRATION_HANDSHAKE_SEVERITY_ERROR, l->value,
                                "required", "not negotiable",
                                "capability '%s' cannot be used with a "
                                "migration handshake", l->value);
        }
    }
    return possible;
}

static void add_required(Negotiation *n)
{
    g_autoptr(strList) pending = known_required(n);
    bool progress = true;

    /* One may need another one that comes later in the list */
    while (pending && progress) {
        strList **link = &pending;

        progress = false;
        while (*link) {
            if (try_to_add(n, (*link)->value, NULL)) {
                strList *done = *link;

                *link = done->next;
                done->next = NULL;
                qapi_free_strList(done);
                progress = true;
            } else {
                link = &(*link)->next;
            }
        }
    }

    for (strList *l = pending; l; l = l->next) {
        g_autoptr(Error) err = NULL;
        bool conflict = works_alone(n, l->value);

        try_to_add(n, l->value, &err);
        handshake_issue_add(&n->verdict->issues,
                            conflict ? "capability-conflict"
                                     : "capability-unsupported",
                            MIGRATION_HANDSHAKE_SEVERITY_ERROR, l->value,
                            "required", conflict ? "conflict" : "not possible",
                            "capability '%s' is set on the source and not "
                            "possible on the destination: %s", l->value,
                            err ? error_get_pretty(err) : "");
    }
}

/* Whether the name in @item has come earlier in @list */
static bool is_repeated(const strList *list, const strList *item)
{
    for (; list != item; list = list->next) {
        if (!strcmp(list->value, item->value)) {
            return true;
        }
    }
    return false;
}

static void add_optional(Negotiation *n)
{
    int count = 0;

    for (strList *l = n->hello->optional; l && count < OPTIONAL_MAX;
         l = l->next, count++) {
        g_autoptr(Error) err = NULL;

        /* Trying is not cheap, and a stranger may ask for it */
        if (is_repeated(n->hello->optional, l) ||
            handshake_strlist_contains(n->verdict->capabilities, l->value)) {
            continue;
        }
        switch (handshake_policy_capability(l->value)) {
        case HANDSHAKE_POLICY_TAKEN:
            if (check_channels(l->value, n->hello->features, &err) &&
                check_machines(n, l->value, &err) &&
                check_parameters(n, l->value, NULL, &err)) {
                try_to_add(n, l->value, &err);
            }
            break;
        case HANDSHAKE_POLICY_UNKNOWN:
            error_setg(&err, "not known on the destination");
            break;
        default:
            error_setg(&err, "cannot be negotiated");
        }
        if (err) {
            handshake_declined_add(&n->verdict->declined, l->value,
                                   error_get_pretty(err));
        }
    }
}

void handshake_negotiate(const HandshakeHello *hello,
                         const HandshakeProfile *local,
                         const HandshakeJudge *judge,
                         HandshakeVerdict *verdict)
{
    Negotiation n = {
        .hello = hello,
        .local = local,
        .judge = judge,
        .verdict = verdict,
        .tail = &verdict->capabilities,
    };

    QAPI_LIST_APPEND(n.tail, g_strdup("return-path"));
    add_required(&n);
    add_optional(&n);

    verdict->parameters = effective_parameters(hello->profile->parameters,
                                               verdict->capabilities);
}

static void drop_foreign_declined(const HandshakeHello *hello,
                                  HandshakeVerdict *verdict)
{
    MigrationHandshakeDeclinedList **link = &verdict->declined;

    while (*link) {
        MigrationHandshakeDeclinedList *item = *link;

        if (handshake_strlist_contains(hello->optional,
                                       item->value->capability)) {
            link = &item->next;
        } else {
            *link = item->next;
            item->next = NULL;
            qapi_free_MigrationHandshakeDeclinedList(item);
        }
    }
}

bool handshake_policy_check_accept(const HandshakeHello *hello,
                                   HandshakeVerdict *verdict, Error **errp)
{
    const strList *effective = verdict->capabilities;
    g_autoptr(QDict) expected =
        effective_parameters(hello->profile->parameters, effective);
    const strList *l;

    for (l = hello->profile->required; l; l = l->next) {
        if (!handshake_strlist_contains(effective, l->value)) {
            error_setg(errp, "the destination accepted without the required "
                       "capability '%s'", l->value);
            return false;
        }
    }
    if (!handshake_strlist_contains(effective, "return-path")) {
        error_setg(errp, "the destination accepted without return-path");
        return false;
    }
    for (l = effective; l; l = l->next) {
        if (!strcmp(l->value, "return-path")) {
            continue;
        }
        if (!handshake_strlist_contains(hello->profile->required, l->value) &&
            !handshake_strlist_contains(hello->optional, l->value)) {
            error_setg(errp, "the destination wants a capability that was not "
                       "offered");
            return false;
        }
        if (!check_channels(l->value, verdict->features, errp)) {
            return false;
        }
    }
    if (verdict->parameters ? !qobject_is_equal(QOBJECT(expected),
                                                QOBJECT(verdict->parameters))
                            : qdict_size(expected) != 0) {
        error_setg(errp, "the destination changed the parameters");
        return false;
    }
    drop_foreign_declined(hello, verdict);
    return true;
}

QDict *handshake_policy_values(const strList *effective, const QDict *groups)
{
    QDict *values = qdict_new();

    for (int i = 0; i < ARRAY_SIZE(parameters); i++) {
        const char *name = parameters[i].name;
        const QDict *group;
        QObject *value;

        if (parameters[i].policy != HANDSHAKE_POLICY_TAKEN ||
            !handshake_strlist_contains(effective, parameters[i].capability)) {
            continue;
        }
        group = group_of(groups, parameters[i].capability);
        value = group ? qdict_get(group, name) : NULL;
        qdict_put_obj(values, name,
                      value ? qobject_ref(value)
                            : qobject_from_json(parameters[i].absent,
                                                &error_abort));
    }
    return values;
}
