/*
 * Migration handshake: what this QEMU says as a source
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "qapi/error.h"
#include "qapi/util.h"
#include "handshake-json.h"
#include "handshake-offer.h"
#include "handshake-policy.h"
#include "handshake-profile.h"
#include "handshake-settings.h"

/* What the user wants, in order of preference; to be freed by the caller */
static strList *wanted_capabilities(const MigrationHandshakeOptions *options)
{
    static const MigrationCapability defaults[] = {
        MIGRATION_CAPABILITY_MULTIFD,
        MIGRATION_CAPABILITY_SWITCHOVER_ACK,
    };
    strList *wanted = NULL;
    strList **tail = &wanted;

    if (options && options->has_optional_capabilities) {
        for (MigrationCapabilityList *l = options->optional_capabilities; l;
             l = l->next) {
            QAPI_LIST_APPEND(tail, g_strdup(MigrationCapability_str(l->value)));
        }
    } else {
        for (int i = 0; i < ARRAY_SIZE(defaults); i++) {
            QAPI_LIST_APPEND(tail,
                             g_strdup(MigrationCapability_str(defaults[i])));
        }
    }
    return wanted;
}

/*
 * Moves what needs further connections from @wanted to @declined.  Where such
 * a capability is set, 'migrate' has refused already.
 */
static void decline_channels(strList **wanted,
                             MigrationHandshakeDeclinedList **declined)
{
    while (*wanted) {
        strList *item = *wanted;

        if (handshake_policy_needs_channels(item->value)) {
            handshake_declined_add(declined, item->value,
                                   "this transport carries a single "
                                   "connection");
            *wanted = g_steal_pointer(&item->next);
            qapi_free_strList(item);
        } else {
            wanted = &item->next;
        }
    }
}

/*
 * What of @wanted goes with all that is set here: this side negotiates with
 * itself first, and offers no more than that.
 */
static strList *possible_capabilities(const strList *enabled,
                                      const strList *wanted,
                                      const QDict *parameters,
                                      MigrationHandshakeDeclinedList **declined)
{
    g_autoptr(HandshakeHello) wish = handshake_hello_new();
    g_autoptr(HandshakeVerdict) own = handshake_verdict_new();
    strList *possible = NULL;
    strList **tail = &possible;
    const strList *l;

    wish->features = handshake_features();
    handshake_policy_offer(enabled, wanted, parameters, wish);
    own->declined = g_steal_pointer(declined);
    handshake_negotiate(wish, NULL, handshake_settings_source_judge(), own);
    *declined = g_steal_pointer(&own->declined);
    for (l = wish->optional; l; l = l->next) {
        if (handshake_strlist_contains(own->capabilities, l->value)) {
            QAPI_LIST_APPEND(tail, g_strdup(l->value));
        }
    }
    return possible;
}

static HandshakeHello *hello_new(const char *purpose, const strList *enabled,
                                 const strList *optional,
                                 const QDict *parameters)
{
    HandshakeHello *hello = handshake_hello_new();

    hello->features = handshake_features();
    QAPI_LIST_PREPEND(hello->versions, HANDSHAKE_VERSION);
    hello->purpose = g_strdup(purpose);
    handshake_profile_collect(hello->profile);
    handshake_policy_offer(enabled, optional, parameters, hello);
    return hello;
}

HandshakeHello *
handshake_offer_new(bool single, const MigrationHandshakeOptions *options,
                    MigrationHandshakeDeclinedList **declined)
{
    g_autoptr(strList) enabled = handshake_settings_capabilities();
    g_autoptr(strList) wanted = wanted_capabilities(options);
    g_autoptr(QDict) parameters = handshake_settings_parameters();
    g_autoptr(strList) possible = NULL;
    const char *purpose = options && options->check_only
        ? HANDSHAKE_PURPOSE_CHECK : HANDSHAKE_PURPOSE_MIGRATE;
    HandshakeHello *hello;

    if (single) {
        decline_channels(&wanted, declined);
    }
    possible = possible_capabilities(enabled, wanted, parameters, declined);
    hello = hello_new(purpose, enabled, possible, parameters);
    hello->warnings_as_errors = options && options->warnings_as_errors;
    return hello;
}

/* NULL if @name is not in @declined */
static const char *
why_declined(const MigrationHandshakeDeclinedList *declined, const char *name)
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
static char *why_impossible(const char *first, const char *name,
                            const strList *enabled, const QDict *parameters)
{
    strList last = { .value = (char *)name };
    strList both = { .value = (char *)first, .next = &last };
    g_autoptr(MigrationHandshakeDeclinedList) declined = NULL;

    qapi_free_strList(possible_capabilities(enabled, first ? &both : &last,
                                            parameters, &declined));
    return g_strdup(why_declined(declined, name));
}

/* What each does to @name if it is chosen before */
static void add_combinations(HandshakeHello *hello, const char *name,
                             const strList *negotiable, const char *alone,
                             const strList *enabled, const QDict *parameters)
{
    for (; negotiable; negotiable = negotiable->next) {
        const char *with = negotiable->value;
        g_autofree char *reason = NULL;

        if (!strcmp(with, name) ||
            handshake_strlist_contains(hello->profile->required, with)) {
            continue;
        }
        reason = why_impossible(with, name, enabled, parameters);
        if (g_strcmp0(reason, alone)) {
            handshake_combination_add(hello, name, with, reason);
        }
    }
}

HandshakeHello *handshake_offer_profile(void)
{
    g_autoptr(strList) enabled = handshake_settings_capabilities();
    g_autoptr(strList) negotiable = handshake_policy_negotiable();
    g_autoptr(QDict) parameters = handshake_settings_parameters();
    g_autoptr(Error) err = NULL;
    /* It offers all of them, so that their parameters are told */
    HandshakeHello *hello = hello_new(HANDSHAKE_PURPOSE_CHECK, enabled,
                                      negotiable, parameters);
    strList **tail = &hello->optional;
    const strList *l;

    qapi_free_strList(hello->optional);
    hello->optional = NULL;
    for (l = negotiable; l; l = l->next) {
        g_autofree char *reason = NULL;

        if (handshake_strlist_contains(hello->profile->required, l->value)) {
            continue;
        }
        reason = why_impossible(NULL, l->value, enabled, parameters);
        if (reason) {
            handshake_declined_add(&hello->declined, l->value, reason);
        } else {
            QAPI_LIST_APPEND(tail, g_strdup(l->value));
        }
        add_combinations(hello, l->value, negotiable, reason, enabled,
                         parameters);
    }
    if (!handshake_settings_check(&err)) {
        QAPI_LIST_PREPEND(hello->profile->blockers,
                          g_strdup(error_get_pretty(err)));
    }
    return hello;
}

/* Why the source would not offer @name after @chosen; NULL if it would */
static const char *why_not_offered(const HandshakeHello *hello,
                                   const char *name, const strList *chosen)
{
    const GPtrArray *combinations = hello->combinations;
    const char *reason = why_declined(hello->declined, name);

    if (handshake_policy_capability(name) != HANDSHAKE_POLICY_TAKEN) {
        return "cannot be negotiated";
    }
    if (!reason && !handshake_strlist_contains(hello->optional, name)) {
        return "not known on the source";
    }
    for (guint i = 0; combinations && i < combinations->len; i++) {
        const HandshakeCombination *c = g_ptr_array_index(combinations, i);

        if (!strcmp(c->capability, name) &&
            handshake_strlist_contains(chosen, c->with)) {
            reason = c->reason;
            if (reason) {
                break;
            }
        }
    }
    return reason;
}

void handshake_offer_choose(HandshakeHello *hello,
                            const MigrationHandshakeOptions *options)
{
    g_autoptr(strList) wanted = wanted_capabilities(options);
    MigrationHandshakeDeclinedList *declined = NULL;
    strList *chosen = NULL;
    strList **tail = &chosen;
    const strList *l;

    for (l = wanted; l; l = l->next) {
        const char *reason;

        if (handshake_policy_capability(l->value) ==
            HANDSHAKE_POLICY_ALWAYS ||
            handshake_strlist_contains(hello->profile->required, l->value) ||
            handshake_strlist_contains(chosen, l->value) ||
            why_declined(declined, l->value)) {
            continue;
        }
        reason = why_not_offered(hello, l->value, chosen);
        if (reason) {
            handshake_declined_add(&declined, l->value, reason);
        } else {
            QAPI_LIST_APPEND(tail, g_strdup(l->value));
        }
    }
    qapi_free_strList(hello->optional);
    hello->optional = chosen;
    qapi_free_MigrationHandshakeDeclinedList(hello->declined);
    hello->declined = declined;
    hello->warnings_as_errors = options && options->warnings_as_errors;
}

static bool same_names(const strList *a, const strList *b)
{
    while (a && b && !strcmp(a->value, b->value)) {
        a = a->next;
        b = b->next;
    }
    return !a && !b;
}

bool handshake_offer_holds(const HandshakeHello *hello, Error **errp)
{
    g_autoptr(strList) enabled = handshake_settings_capabilities();
    g_autoptr(QDict) parameters = handshake_settings_parameters();
    g_autoptr(HandshakeHello) now = handshake_hello_new();

    handshake_policy_offer(enabled, hello->optional, parameters, now);
    if (!same_names(now->profile->required, hello->profile->required) ||
        !qobject_is_equal(QOBJECT(now->profile->parameters),
                          QOBJECT(hello->profile->parameters))) {
        error_setg(errp, "capabilities or parameters were changed during the "
                   "migration handshake");
        return false;
    }
    return true;
}
