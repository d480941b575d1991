/*
 * Migration handshake: who decides about each capability, and negotiation
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "qapi/error.h"
#include "qapi/clone-visitor.h"
#include "qapi/qapi-builtin-visit.h"
#include "qapi/qapi-visit-migration-handshake.h"
#include "qapi/util.h"
#include "machine.h"
#include "settings.h"

/* More names than that are not looked at: a source has no use for them */
#define OPTIONAL_MAX    64

/* Sets of capabilities that are known here have a bit for each */
QEMU_BUILD_BUG_ON(MIGRATION_CAPABILITY__MAX > 64);
#define RETURN_PATH     BIT_ULL(MIGRATION_CAPABILITY_RETURN_PATH)

#define NOT_NEGOTIABLE  "capability '%s' cannot be negotiated"
#define NO_NAMED_CHANNELS \
    "the other side does not have handshake feature '" \
    HANDSHAKE_FEATURE_NAMED_CHANNELS "', which its channels need"

static const struct {
    HandshakePolicy policy;
    const char *channels;   /* those that it opens, if any */
} policy_capabilities[MIGRATION_CAPABILITY__MAX] = {
    /* The destination decodes it in any case */
    [MIGRATION_CAPABILITY_XBZRLE] = { HANDSHAKE_POLICY_SOURCE },
    [MIGRATION_CAPABILITY_RDMA_PIN_ALL] = { HANDSHAKE_POLICY_SOURCE },
    [MIGRATION_CAPABILITY_AUTO_CONVERGE] = { HANDSHAKE_POLICY_SOURCE },
    /* Whether a QEMU sends QMP events is between it and its client */
    [MIGRATION_CAPABILITY_EVENTS] = { HANDSHAKE_POLICY_LOCAL },
    [MIGRATION_CAPABILITY_POSTCOPY_RAM] = { HANDSHAKE_POLICY_NEGOTIATED },
    /* Both sides need block replication, which only a client can set up */
    [MIGRATION_CAPABILITY_X_COLO] = { HANDSHAKE_POLICY_REFUSED },
    [MIGRATION_CAPABILITY_RELEASE_RAM] = { HANDSHAKE_POLICY_SOURCE },
    [MIGRATION_CAPABILITY_RETURN_PATH] = { HANDSHAKE_POLICY_ALWAYS },
    [MIGRATION_CAPABILITY_PAUSE_BEFORE_SWITCHOVER] = {
        HANDSHAKE_POLICY_SOURCE },
    [MIGRATION_CAPABILITY_MULTIFD] = { HANDSHAKE_POLICY_NEGOTIATED,
                                       HANDSHAKE_CHANNEL_MULTIFD },
    [MIGRATION_CAPABILITY_DIRTY_BITMAPS] = { HANDSHAKE_POLICY_NEGOTIATED },
    [MIGRATION_CAPABILITY_POSTCOPY_BLOCKTIME] = { HANDSHAKE_POLICY_LOCAL },
    [MIGRATION_CAPABILITY_LATE_BLOCK_ACTIVATE] = { HANDSHAKE_POLICY_LOCAL },
    [MIGRATION_CAPABILITY_X_IGNORE_SHARED] = { HANDSHAKE_POLICY_NEGOTIATED },
    [MIGRATION_CAPABILITY_VALIDATE_UUID] = { HANDSHAKE_POLICY_COMPARED },
    /* It excludes return-path */
    [MIGRATION_CAPABILITY_BACKGROUND_SNAPSHOT] = { HANDSHAKE_POLICY_REFUSED },
    [MIGRATION_CAPABILITY_ZERO_COPY_SEND] = { HANDSHAKE_POLICY_SOURCE },
    [MIGRATION_CAPABILITY_POSTCOPY_PREEMPT] = { HANDSHAKE_POLICY_NEGOTIATED,
                                                HANDSHAKE_CHANNEL_PREEMPT },
    [MIGRATION_CAPABILITY_SWITCHOVER_ACK] = { HANDSHAKE_POLICY_NEGOTIATED },
    [MIGRATION_CAPABILITY_DIRTY_LIMIT] = { HANDSHAKE_POLICY_SOURCE },
    /* It needs a file */
    [MIGRATION_CAPABILITY_MAPPED_RAM] = { HANDSHAKE_POLICY_REFUSED },
};

/*
 * The parameters that are negotiated.  All others are one side's business:
 * they are neither sent nor taken from a peer.  Only x-rdma-chunk-size has to
 * be the same on both sides besides, and over RDMA there is no handshake.
 */
static const struct PolicyParameter {
    MigrationParameter parameter;
    MigrationCapability capability;     /* that it matters with */
    const char *absent;                 /* the value if a source sends none */
} policy_negotiated[] = {
    { MIGRATION_PARAMETER_MULTIFD_CHANNELS, MIGRATION_CAPABILITY_MULTIFD,
      "2" },
    { MIGRATION_PARAMETER_MULTIFD_COMPRESSION, MIGRATION_CAPABILITY_MULTIFD,
      "none" },
};

/* Its number, or -1 if it is not known here */
static int policy_parse(const char *name)
{
    return qapi_enum_parse(&MigrationCapability_lookup, name, -1, NULL);
}

HandshakePolicy handshake_policy_capability(const char *name)
{
    int i = policy_parse(name);

    if (i < 0) {
        return HANDSHAKE_POLICY_UNKNOWN;
    }
    /* Without effect since QEMU 2.11, and gone in 11.0 */
    if (!strcmp(name, "zero-blocks")) {
        return HANDSHAKE_POLICY_LOCAL;
    }
    return policy_capabilities[i].policy;
}

const char *handshake_policy_channels(const char *capability)
{
    int i = policy_parse(capability);

    return i < 0 ? NULL : policy_capabilities[i].channels;
}

/* 0 if it is not known here */
static uint64_t policy_bit(const char *name)
{
    int i = policy_parse(name);

    return i < 0 ? 0 : BIT_ULL(i);
}

/* Those of @names that are known here */
static uint64_t policy_set(const strList *names)
{
    uint64_t set = 0;

    for (; names; names = names->next) {
        set |= policy_bit(names->value);
    }
    return set;
}

static strList *policy_names(uint64_t set)
{
    strList *names = NULL;
    strList **tail = &names;

    for (int i = 0; i < MIGRATION_CAPABILITY__MAX; i++) {
        if (set & BIT_ULL(i)) {
            QAPI_LIST_APPEND(tail, g_strdup(MigrationCapability_str(i)));
        }
    }
    return names;
}

/* Those of @set that open channels */
static uint64_t policy_with_channels(uint64_t set)
{
    for (int i = 0; i < MIGRATION_CAPABILITY__MAX; i++) {
        if (!policy_capabilities[i].channels) {
            set &= ~BIT_ULL(i);
        }
    }
    return set;
}

static uint64_t policy_required(const MigrationHandshakeHello *hello)
{
    return hello->profile ? policy_set(hello->profile->required_capabilities)
                          : 0;
}

static const MigrationHandshakeParameterList *
policy_parameters(const MigrationHandshakeHello *hello)
{
    return hello->profile ? hello->profile->parameters : NULL;
}

static MigrationHandshakeHello *policy_hello_new(void)
{
    MigrationHandshakeHello *hello = g_new0(MigrationHandshakeHello, 1);

    hello->profile = g_new0(MigrationProfile, 1);
    return hello;
}

/* NULL if it is no parameter of @capability that is negotiated */
static const struct PolicyParameter *
policy_find_parameter(const MigrationHandshakeParameter *parameter)
{
    for (int i = 0; i < ARRAY_SIZE(policy_negotiated); i++) {
        const struct PolicyParameter *p = &policy_negotiated[i];

        if (!strcmp(MigrationCapability_str(p->capability),
                    parameter->capability) &&
            !strcmp(MigrationParameter_str(p->parameter), parameter->name)) {
            return p;
        }
    }
    return NULL;
}

/* What of @list matters with the capabilities in @effective */
static MigrationHandshakeParameterList *
policy_effective_parameters(const MigrationHandshakeParameterList *list,
                            uint64_t effective)
{
    MigrationHandshakeParameterList *result = NULL;
    MigrationHandshakeParameterList **tail = &result;

    for (; list; list = list->next) {
        const struct PolicyParameter *p = policy_find_parameter(list->value);

        if (p && effective & BIT_ULL(p->capability)) {
            QAPI_LIST_APPEND(tail, QAPI_CLONE(MigrationHandshakeParameter,
                                              list->value));
        }
    }
    return result;
}

static bool policy_same_parameters(const MigrationHandshakeParameterList *a,
                                   const MigrationHandshakeParameterList *b)
{
    while (a && b && !strcmp(a->value->capability, b->value->capability) &&
           !strcmp(a->value->name, b->value->name) &&
           !strcmp(a->value->value, b->value->value)) {
        a = a->next;
        b = b->next;
    }
    return !a && !b;
}

/*
 * Whether the capabilities in @set work here, and do so without any of
 * @droppable: nobody knows yet whether their channels get through
 */
static bool policy_works(uint64_t set, uint64_t droppable,
                         MigrationHandshakeRole role, Error **errp)
{
    ERRP_GUARD();
    g_autoptr(strList) names = policy_names(set);
    int first = ctz64(droppable);

    if (!droppable) {
        return handshake_settings_try_capabilities(names, role, errp);
    }
    droppable &= ~BIT_ULL(first);
    if (!policy_works(set, droppable, role, errp)) {
        return false;
    }
    if (!policy_works(set & ~BIT_ULL(first), droppable, role, errp)) {
        error_prepend(errp, "without '%s', whose channels may not get "
                      "through: ", MigrationCapability_str(first));
        return false;
    }
    return true;
}

typedef struct PolicyNegotiation {
    const MigrationHandshakeHello *hello;
    const MigrationProfile *local;      /* NULL on the source */
    MigrationHandshakeRole role;
    const strList *features;            /* that both sides have */
    const char *no_channels;            /* why, unless NAMED_CHANNELS is one */
    HandshakeIssues *issues;
    MigrationHandshakeDeclinedList **declined;
    uint64_t effective;
    uint64_t droppable;                 /* those that COMMIT may leave out */
} PolicyNegotiation;

/* Adds a capability to the effective ones if the whole set works with it */
static bool policy_add(PolicyNegotiation *n, const char *name, Error **errp)
{
    uint64_t set = n->effective | policy_bit(name);

    if (!policy_works(set, n->droppable, n->role, errp)) {
        return false;
    }
    n->effective = set;
    return true;
}

/* Whether all parameters that came along with a capability can be taken */
static bool policy_check_parameters(const PolicyNegotiation *n,
                                    const char *capability,
                                    HandshakeIssues *issues)
{
    const MigrationHandshakeParameterList *l = policy_parameters(n->hello);
    uint64_t seen = 0;
    bool ok = true;

    for (; l; l = l->next) {
        const MigrationHandshakeParameter *p = l->value;
        const struct PolicyParameter *known = policy_find_parameter(p);
        const uint64_t bit = known ? BIT_ULL(known->parameter) : 0;
        Error *err = NULL;

        if (strcmp(p->capability, capability)) {
            continue;
        }
        if (!known) {
            error_setg(&err, "parameter '%s' of capability '%s' is not known "
                       "on the destination", p->name, capability);
        } else if (seen & bit) {
            error_setg(&err, "parameter '%s' has two values", p->name);
        } else {
            handshake_settings_try_parameter(known->parameter, p->value,
                                             n->role, &err);
        }
        seen |= bit;
        if (err) {
            ok = false;
            handshake_issue_add(issues, known ? "parameter-value"
                                              : "parameter-unknown",
                                HANDSHAKE_ERROR, p->name, p->value,
                                known ? "not possible" : "unknown", "%s",
                                error_get_pretty(err));
            error_free(err);
        }
    }
    return ok;
}

/* Whether a capability is possible as such; what is not makes issues */
static bool policy_check_capability(const PolicyNegotiation *n,
                                    const char *name, HandshakeIssues *issues)
{
    switch (handshake_policy_capability(name)) {
    case HANDSHAKE_POLICY_NEGOTIATED:
        break;
    case HANDSHAKE_POLICY_UNKNOWN:
        handshake_issue_add(issues, "capability-unknown", HANDSHAKE_ERROR,
                            name, "required", "unknown", "capability '%s' is "
                            "not known on the destination", name);
        return false;
    default:
        handshake_issue_add(issues, "capability-unsupported", HANDSHAKE_ERROR,
                            name, "required", "not negotiable", "capability "
                            "'%s' cannot be negotiated", name);
        return false;
    }
    if (handshake_policy_channels(name) &&
        !handshake_has_name(n->features, HANDSHAKE_FEATURE_NAMED_CHANNELS)) {
        handshake_issue_add(issues, "transport", HANDSHAKE_ERROR, name,
                            "needs further channels", "takes named ones only",
                            "%s", n->no_channels);
        return false;
    }
    return policy_check_parameters(n, name, issues);
}

static void policy_add_required(PolicyNegotiation *n)
{
    const MigrationProfile *profile = n->hello->profile;
    const char *pending[MIGRATION_CAPABILITY__MAX];
    uint64_t seen = n->effective;
    unsigned count = 0;

    for (const strList *l = profile ? profile->required_capabilities : NULL; l;
         l = l->next) {
        uint64_t bit = policy_bit(l->value);

        if (!(seen & bit) &&
            policy_check_capability(n, l->value, n->issues) &&
            !policy_add(n, l->value, NULL)) {
            pending[count++] = l->value;
        }
        seen |= bit;
    }

    /* They may have needed one that came later in the list */
    for (int i = 0; i < count; i++) {
        Error *err = NULL;

        if (!policy_add(n, pending[i], &err)) {
            bool alone = policy_works(RETURN_PATH | policy_bit(pending[i]), 0,
                                      n->role, NULL);

            handshake_issue_add(n->issues, alone ? "capability-conflict"
                                                 : "capability-unsupported",
                                HANDSHAKE_ERROR, pending[i], "required",
                                alone ? "conflict" : "not possible",
                                "capability '%s' is set on the source and not "
                                "possible on the destination: %s", pending[i],
                                error_get_pretty(err));
            error_free(err);
        }
    }
}

static void policy_add_optional(PolicyNegotiation *n, const char *name)
{
    HandshakeIssues issues = { 0 };
    Error *err = NULL;

    if (!policy_check_capability(n, name, &issues)) {
        error_setg(&err, "%s", issues.list->value->message);
        handshake_issues_free(&issues);
    } else if (!n->local || !n->hello->profile ||
               handshake_compare_capability(n->hello->profile, n->local, name,
                                            &err)) {
        policy_add(n, name, &err);
    }
    if (err) {
        handshake_declined_add(n->declined, name, error_get_pretty(err));
        error_free(err);
    } else {
        n->droppable |= policy_with_channels(policy_bit(name));
    }
}

static void policy_negotiate(PolicyNegotiation *n)
{
    const strList *l = n->hello->optional_capabilities;
    uint64_t seen;

    n->effective = RETURN_PATH;
    policy_add_required(n);

    seen = n->effective;
    for (int count = 0; l && count < OPTIONAL_MAX; l = l->next, count++) {
        /* Trying is not cheap, and an unauthenticated peer may ask for it */
        if (!(seen & policy_bit(l->value))) {
            policy_add_optional(n, l->value);
        }
        seen |= policy_bit(l->value);
    }
}

void handshake_negotiate(const MigrationHandshakeHello *hello,
                         const MigrationProfile *local,
                         HandshakeVerdict *verdict)
{
    MigrationHandshakeVerdict *message = verdict->message;
    PolicyNegotiation n = {
        .hello = hello,
        .local = local,
        .role = MIGRATION_HANDSHAKE_ROLE_DESTINATION,
        .features = hello->features,
        .no_channels = NO_NAMED_CHANNELS,
        .issues = &verdict->issues,
        .declined = &message->declined,
    };

    policy_negotiate(&n);
    message->has_declined = message->declined;
    message->has_capabilities = true;
    message->capabilities = policy_names(n.effective);
    message->parameters =
        policy_effective_parameters(policy_parameters(hello), n.effective);
    message->has_parameters = message->parameters;
}

void handshake_policy_note_untried(HandshakeVerdict *verdict)
{
    uint64_t effective = policy_set(verdict->message->capabilities);
    g_autoptr(strList) names = policy_names(policy_with_channels(effective));
    g_autoptr(GString) text = g_string_new(NULL);

    for (const strList *l = names; l; l = l->next) {
        g_string_append_printf(text, "%s%s", text->len ? ", " : "", l->value);
    }
    if (names) {
        handshake_issue_add(&verdict->issues, "channels-untried",
                            HANDSHAKE_INFO, text->str, NULL, NULL,
                            "a migration would try whether the channels of %s "
                            "get through, and a check does not", text->str);
    }
}

/* What the user wants, in order of preference; to be freed by the caller */
static strList *policy_wanted(const MigrationHandshakeOptions *options)
{
    strList *wanted = NULL;
    strList **tail = &wanted;

    if (!options || !options->has_optional_capabilities) {
        QAPI_LIST_APPEND(tail, g_strdup("multifd"));
        QAPI_LIST_APPEND(tail, g_strdup("switchover-ack"));
        return wanted;
    }
    for (const MigrationCapabilityList *l = options->optional_capabilities; l;
         l = l->next) {
        QAPI_LIST_APPEND(tail, g_strdup(MigrationCapability_str(l->value)));
    }
    return wanted;
}

/* Fills in what is set here, and as optional those of @wanted in @possible */
static void policy_fill(MigrationHandshakeHello *hello, const strList *wanted,
                        uint64_t possible)
{
    g_autoptr(strList) enabled = handshake_settings_capabilities();
    MigrationProfile *profile = hello->profile;
    strList **capabilities = &profile->capabilities;
    strList **required = &profile->required_capabilities;
    strList **optional = &hello->optional_capabilities;
    MigrationHandshakeParameterList **parameters = &profile->parameters;
    uint64_t set;

    for (const strList *l = enabled; l; l = l->next) {
        HandshakePolicy policy = handshake_policy_capability(l->value);

        if (policy != HANDSHAKE_POLICY_LOCAL) {
            QAPI_LIST_APPEND(capabilities, g_strdup(l->value));
        }
        if (policy == HANDSHAKE_POLICY_NEGOTIATED) {
            QAPI_LIST_APPEND(required, g_strdup(l->value));
        }
    }
    set = policy_required(hello) | RETURN_PATH;
    for (const strList *l = wanted; l; l = l->next) {
        uint64_t bit = policy_bit(l->value);

        if (bit & possible & ~set) {
            QAPI_LIST_APPEND(optional, g_strdup(l->value));
            set |= bit;
        }
    }
    for (int i = 0; i < ARRAY_SIZE(policy_negotiated); i++) {
        const struct PolicyParameter *p = &policy_negotiated[i];
        g_autofree char *value = handshake_settings_parameter(p->parameter);
        MigrationHandshakeParameter *item;

        if (set & BIT_ULL(p->capability) && strcmp(value, p->absent)) {
            item = g_new0(MigrationHandshakeParameter, 1);
            item->capability = g_strdup(MigrationCapability_str(p->capability));
            item->name = g_strdup(MigrationParameter_str(p->parameter));
            item->value = g_steal_pointer(&value);
            QAPI_LIST_APPEND(parameters, item);
        }
    }
    profile->has_capabilities = profile->capabilities;
    profile->has_required_capabilities = profile->required_capabilities;
    profile->has_parameters = profile->parameters;
    hello->has_optional_capabilities = hello->optional_capabilities;
}

/*
 * What of @wanted goes with all that is set here: this side negotiates with
 * itself first, and offers no more than that
 */
static uint64_t policy_possible(const strList *wanted, bool single,
                                MigrationHandshakeDeclinedList **declined)
{
    g_autoptr(MigrationHandshakeHello) wish = policy_hello_new();
    g_autoptr(strList) known = handshake_features();
    HandshakeIssues issues = { 0 };
    PolicyNegotiation n = {
        .hello = wish,
        .role = MIGRATION_HANDSHAKE_ROLE_SOURCE,
        .features = single ? NULL : known,
        .no_channels = "this transport carries a single connection",
        .issues = &issues,
        .declined = declined,
    };

    policy_fill(wish, wanted, UINT64_MAX);
    policy_negotiate(&n);
    handshake_issues_free(&issues);
    return n.effective;
}

static void policy_set_options(MigrationHandshakeHello *hello,
                               const MigrationHandshakeOptions *options)
{
    hello->warnings_as_errors = options && options->warnings_as_errors;
    hello->has_warnings_as_errors = hello->warnings_as_errors;
    qapi_free_strList(hello->ignore);
    hello->ignore = options ? QAPI_CLONE(strList, options->ignore_issues)
                            : NULL;
    hello->has_ignore = hello->ignore;
}

void handshake_policy_offer(const MigrationHandshakeOptions *options,
                            bool single, MigrationHandshakeHello *hello,
                            MigrationHandshakeDeclinedList **declined)
{
    g_autoptr(strList) wanted = policy_wanted(options);

    policy_fill(hello, wanted, policy_possible(wanted, single, declined));
    policy_set_options(hello, options);
}

/* NULL if @name is not in @declined */
static const char *
policy_why_declined(const MigrationHandshakeDeclinedList *declined,
                    const char *name)
{
    for (; declined; declined = declined->next) {
        if (!strcmp(declined->value->capability, name)) {
            return declined->value->reason;
        }
    }
    return NULL;
}

/*
 * Why @name does not go with what is set, after @first if that is not NULL;
 * to be freed by the caller, NULL if it does
 */
static char *policy_why_impossible(const char *first, const char *name)
{
    strList last = { .value = (char *)name };
    strList both = { .value = (char *)first, .next = &last };
    g_autoptr(MigrationHandshakeDeclinedList) declined = NULL;

    policy_possible(first ? &both : &last, false, &declined);
    return g_strdup(policy_why_declined(declined, name));
}

/* What each of @others does to @name if it is chosen before */
static void policy_add_combinations(MigrationHandshakeHello *hello,
                                    const char *name, const char *alone,
                                    const strList *others)
{
    for (; others; others = others->next) {
        g_autofree char *reason = NULL;
        MigrationHandshakeCombination *item;

        if (!strcmp(others->value, name)) {
            continue;
        }
        reason = policy_why_impossible(others->value, name);
        if (g_strcmp0(reason, alone)) {
            item = g_new0(MigrationHandshakeCombination, 1);
            item->capability = g_strdup(name);
            item->with = g_strdup(others->value);
            item->reason = g_steal_pointer(&reason);
            QAPI_LIST_PREPEND(hello->combinations, item);
        }
    }
}

void handshake_policy_offer_profile(MigrationHandshakeHello *hello)
{
    g_autoptr(strList) all = NULL;
    g_autoptr(strList) others = NULL;
    strList **optional = &hello->optional_capabilities;
    strList **tail = &all;

    for (int i = 0; i < MIGRATION_CAPABILITY__MAX; i++) {
        if (policy_capabilities[i].policy == HANDSHAKE_POLICY_NEGOTIATED) {
            QAPI_LIST_APPEND(tail, g_strdup(MigrationCapability_str(i)));
        }
    }
    /* All that are not required, so that their parameters are told */
    policy_fill(hello, all, UINT64_MAX);
    others = g_steal_pointer(optional);
    for (const strList *l = others; l; l = l->next) {
        g_autofree char *reason = policy_why_impossible(NULL, l->value);

        if (reason) {
            handshake_declined_add(&hello->declined, l->value, reason);
        } else {
            QAPI_LIST_APPEND(optional, g_strdup(l->value));
        }
        policy_add_combinations(hello, l->value, reason, others);
    }
    hello->has_optional_capabilities = hello->optional_capabilities;
    hello->has_declined = hello->declined;
    hello->has_combinations = hello->combinations;
}

/*
 * Why the source would not offer @name after @chosen, NULL if it would; to be
 * freed by the caller
 */
static char *policy_why_not_offered(const MigrationHandshakeHello *hello,
                                    const char *name, const strList *chosen)
{
    const MigrationHandshakeCombinationList *l;
    const char *reason = policy_why_declined(hello->declined, name);

    if (handshake_policy_capability(name) != HANDSHAKE_POLICY_NEGOTIATED) {
        return g_strdup_printf(NOT_NEGOTIABLE, name);
    }
    if (!reason && !handshake_has_name(hello->optional_capabilities, name)) {
        return g_strdup("not known on the source");
    }
    for (l = hello->combinations; l; l = l->next) {
        const MigrationHandshakeCombination *c = l->value;

        if (!strcmp(c->capability, name) &&
            handshake_has_name(chosen, c->with)) {
            reason = c->reason;
            if (reason) {
                break;
            }
        }
    }
    return g_strdup(reason);
}

void handshake_policy_choose(MigrationHandshakeHello *hello,
                             const MigrationHandshakeOptions *options)
{
    g_autoptr(strList) wanted = policy_wanted(options);
    uint64_t seen = policy_required(hello) |
                    RETURN_PATH;
    MigrationHandshakeDeclinedList *declined = NULL;
    strList *chosen = NULL;
    strList **tail = &chosen;

    for (const strList *l = wanted; l; l = l->next) {
        uint64_t bit = policy_bit(l->value);
        g_autofree char *reason = NULL;

        if (seen & bit) {
            continue;
        }
        seen |= bit;
        reason = policy_why_not_offered(hello, l->value, chosen);
        if (reason) {
            handshake_declined_add(&declined, l->value, reason);
        } else {
            QAPI_LIST_APPEND(tail, g_strdup(l->value));
        }
    }
    qapi_free_strList(hello->optional_capabilities);
    hello->optional_capabilities = chosen;
    hello->has_optional_capabilities = chosen;
    qapi_free_MigrationHandshakeDeclinedList(hello->declined);
    hello->declined = declined;
    hello->has_declined = declined;
    policy_set_options(hello, options);
}

bool handshake_policy_offer_holds(const MigrationHandshakeHello *hello,
                                  Error **errp)
{
    g_autoptr(MigrationHandshakeHello) now = policy_hello_new();

    policy_fill(now, hello->optional_capabilities, UINT64_MAX);
    if (policy_required(now) != policy_required(hello) ||
        !policy_same_parameters(policy_parameters(now),
                                policy_parameters(hello))) {
        error_setg(errp, "capabilities or parameters were changed during the "
                   "migration handshake");
        return false;
    }
    return true;
}

/* Whether an ACCEPT has nothing but what was offered, once, and all required */
static bool policy_check_effective(const MigrationHandshakeHello *hello,
                                   const MigrationHandshakeVerdict *message,
                                   Error **errp)
{
    uint64_t missing = policy_required(hello) |
                       RETURN_PATH;
    uint64_t offered = missing | policy_set(hello->optional_capabilities);

    for (const strList *l = message->capabilities; l; l = l->next) {
        uint64_t bit = policy_bit(l->value);

        if (!(offered & bit)) {
            error_setg(errp, "the destination wants a capability that was not "
                       "offered, or wants one twice");
            return false;
        }
        if (handshake_policy_channels(l->value) &&
            !handshake_has_name(message->features,
                                HANDSHAKE_FEATURE_NAMED_CHANNELS)) {
            error_setg(errp, "capability '%s': " NO_NAMED_CHANNELS, l->value);
            return false;
        }
        offered &= ~bit;
        missing &= ~bit;
    }
    if (missing) {
        error_setg(errp, "the destination accepted without %s, which is "
                   "required", MigrationCapability_str(ctz64(missing)));
        return false;
    }
    return true;
}

bool handshake_policy_check_accept(const MigrationHandshakeHello *hello,
                                   HandshakeVerdict *verdict, Error **errp)
{
    ERRP_GUARD();
    MigrationHandshakeVerdict *message = verdict->message;
    MigrationHandshakeDeclinedList **link = &message->declined;
    uint64_t effective = policy_set(message->capabilities);
    uint64_t optional = policy_set(hello->optional_capabilities);
    g_autoptr(MigrationHandshakeParameterList) expected =
        policy_effective_parameters(policy_parameters(hello), effective);

    if (!policy_check_effective(hello, message, errp)) {
        return false;
    }
    if (!policy_same_parameters(message->parameters, expected)) {
        error_setg(errp, "the destination changed the parameters");
        return false;
    }
    if (!policy_works(effective, policy_with_channels(effective & optional),
                      MIGRATION_HANDSHAKE_ROLE_SOURCE, errp)) {
        error_prepend(errp, "the destination wants capabilities that are not "
                      "possible here: ");
        return false;
    }
    while (*link) {
        MigrationHandshakeDeclinedList *item = *link;

        if (handshake_has_name(hello->optional_capabilities,
                               item->value->capability)) {
            link = &item->next;
        } else {
            *link = g_steal_pointer(&item->next);
            qapi_free_MigrationHandshakeDeclinedList(item);
        }
    }
    message->has_declined = message->declined;
    return true;
}

bool handshake_policy_drop(const MigrationHandshakeHello *hello,
                           const MigrationHandshakeDeclinedList *without,
                           HandshakeVerdict *verdict, Error **errp)
{
    MigrationHandshakeVerdict *message = verdict->message;
    uint64_t effective = policy_set(message->capabilities);
    uint64_t droppable =
        policy_with_channels(effective & ~policy_required(hello) &
                             policy_set(hello->optional_capabilities));
    MigrationHandshakeParameterList *parameters;

    for (const MigrationHandshakeDeclinedList *l = without; l; l = l->next) {
        uint64_t bit = policy_bit(l->value->capability);

        if (!(droppable & bit)) {
            g_autofree char *name = handshake_text(l->value->capability);

            error_setg(errp, "capability '%s' cannot be left out", name);
            return false;
        }
        droppable &= ~bit;
        effective &= ~bit;
    }
    for (const MigrationHandshakeDeclinedList *l = without; l; l = l->next) {
        handshake_declined_add(&message->declined, l->value->capability,
                               l->value->reason);
    }
    message->has_declined = message->declined;
    qapi_free_strList(message->capabilities);
    message->capabilities = policy_names(effective);
    parameters = policy_effective_parameters(message->parameters, effective);
    qapi_free_MigrationHandshakeParameterList(message->parameters);
    message->parameters = parameters;
    message->has_parameters = parameters;
    return true;
}

/* What a source has sent, or what it means if it has not */
static const char *policy_value(const MigrationHandshakeParameterList *sent,
                                MigrationParameter parameter)
{
    const struct PolicyParameter *p = policy_negotiated;

    while (p->parameter != parameter) {
        p++;
    }
    for (; sent; sent = sent->next) {
        if (policy_find_parameter(sent->value) == p) {
            return sent->value->value;
        }
    }
    return p->absent;
}

MigrationHandshakeEffective *
handshake_policy_effective(const strList *capabilities,
                           const MigrationHandshakeParameterList *parameters)
{
    MigrationHandshakeEffective *effective =
        g_new0(MigrationHandshakeEffective, 1);

    if (handshake_has_name(capabilities, "multifd")) {
        effective->has_multifd_channels = true;
        effective->multifd_channels =
            atoi(policy_value(parameters,
                              MIGRATION_PARAMETER_MULTIFD_CHANNELS));
        effective->multifd_compression =
            g_strdup(policy_value(parameters,
                                  MIGRATION_PARAMETER_MULTIFD_COMPRESSION));
    }
    return effective;
}
