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

strList *handshake_offer_wanted(const MigrationHandshakeOptions *options)
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
 * What of @wanted goes with all that is @enabled: a source negotiates with
 * itself first, and offers no more than that.
 */
static strList *possible_capabilities(const HandshakeJudge *judge,
                                      const strList *enabled,
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
    handshake_negotiate(wish, NULL, judge, own);
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
    g_autoptr(strList) wanted = handshake_offer_wanted(options);
    g_autoptr(QDict) parameters = handshake_settings_parameters();
    g_autoptr(strList) possible = NULL;
    const char *purpose = options && options->check_only
        ? HANDSHAKE_PURPOSE_CHECK : HANDSHAKE_PURPOSE_MIGRATE;
    HandshakeHello *hello;

    if (single) {
        decline_channels(&wanted, declined);
    }
    possible = possible_capabilities(handshake_settings_source_judge(),
                                     enabled, wanted, parameters, declined);
    hello = hello_new(purpose, enabled, possible, parameters);
    hello->warnings_as_errors = options && options->warnings_as_errors;
    return hello;
}

/* Whether @name goes with what is set, maybe only after @first */
static bool is_possible(const char *first, const char *name,
                        const strList *enabled, const QDict *parameters,
                        MigrationHandshakeDeclinedList **declined)
{
    strList last = { .value = (char *)name };
    strList both = { .value = (char *)first, .next = &last };
    g_autoptr(strList) possible =
        possible_capabilities(handshake_settings_source_judge(), enabled,
                              first ? &both : &last, parameters, declined);

    return handshake_strlist_contains(possible, name);
}

HandshakeHello *handshake_offer_profile(void)
{
    g_autoptr(strList) enabled = handshake_settings_capabilities();
    g_autoptr(strList) negotiable = handshake_policy_negotiable();
    g_autoptr(QDict) parameters = handshake_settings_parameters();
    MigrationHandshakeDeclinedList *declined = NULL;
    g_autoptr(strList) optional = NULL;
    strList **tail = &optional;
    g_autoptr(Error) err = NULL;
    HandshakeHello *hello;
    const strList *l, *first;

    for (l = negotiable; l; l = l->next) {
        g_autoptr(MigrationHandshakeDeclinedList) why = NULL;
        g_autoptr(MigrationHandshakeDeclinedList) ignored = NULL;
        bool possible = is_possible(NULL, l->value, enabled, parameters, &why);

        for (first = negotiable; first && !possible; first = first->next) {
            possible = is_possible(first->value, l->value, enabled, parameters,
                                   &ignored);
        }
        if (possible) {
            QAPI_LIST_APPEND(tail, g_strdup(l->value));
        } else if (why) {
            handshake_declined_add(&declined, l->value, why->value->reason);
        }
    }
    hello = hello_new(HANDSHAKE_PURPOSE_CHECK, enabled, optional, parameters);
    hello->declined = declined;
    if (!handshake_settings_check(&err)) {
        QAPI_LIST_PREPEND(hello->profile->blockers,
                          g_strdup(error_get_pretty(err)));
    }
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

/* Whether 'migrate' would ask for @name, or else why it cannot */
static bool can_be_chosen(const HandshakeHello *hello, const char *name,
                          const char **reason)
{
    *reason = why_declined(hello->declined, name);
    if (handshake_strlist_contains(hello->optional, name)) {
        return true;
    }
    switch (handshake_policy_capability(name)) {
    case HANDSHAKE_POLICY_ALWAYS:
        return true;
    case HANDSHAKE_POLICY_TAKEN:
        *reason = *reason ?: "not known on the source";
        return false;
    default:
        *reason = "cannot be negotiated";
        return false;
    }
}

/* What @hello leaves of @wanted if each is looked at alone */
static strList *choose_each(const HandshakeHello *hello, const strList *wanted)
{
    strList *chosen = NULL;
    strList **tail = &chosen;
    const char *ignored;

    for (; wanted; wanted = wanted->next) {
        if (can_be_chosen(hello, wanted->value, &ignored)) {
            QAPI_LIST_APPEND(tail, g_strdup(wanted->value));
        }
    }
    return chosen;
}

void handshake_offer_choose(HandshakeHello *hello,
                            const MigrationHandshakeOptions *options)
{
    g_autoptr(strList) wanted = handshake_offer_wanted(options);
    g_autoptr(strList) each = choose_each(hello, wanted);
    g_autoptr(MigrationHandshakeDeclinedList) conflicts = NULL;
    g_autoptr(QDict) none = qdict_new();
    MigrationHandshakeDeclinedList *declined = NULL;
    strList *chosen;
    const strList *l;

    /* What the source would find out by itself; any QEMU can */
    chosen = possible_capabilities(handshake_settings_destination_judge(),
                                   hello->profile->required, each, none,
                                   &conflicts);
    for (l = wanted; l; l = l->next) {
        const char *reason;

        if (handshake_strlist_contains(hello->profile->required, l->value) ||
            why_declined(declined, l->value)) {
            continue;
        }
        if (can_be_chosen(hello, l->value, &reason)) {
            reason = why_declined(conflicts, l->value);
        }
        if (reason) {
            handshake_declined_add(&declined, l->value, reason);
        }
    }
    qapi_free_strList(hello->optional);
    hello->optional = chosen;
    qapi_free_MigrationHandshakeDeclinedList(hello->declined);
    hello->declined = declined;
    hello->warnings_as_errors = options && options->warnings_as_errors;
}

bool handshake_offer_holds(const HandshakeHello *hello, Error **errp)
{
    g_autoptr(strList) enabled = handshake_settings_capabilities();
    g_autoptr(QDict) parameters = handshake_settings_parameters();
    g_autoptr(HandshakeHello) now = handshake_hello_new();

    handshake_policy_offer(enabled, hello->optional, parameters, now);
    if (!qobject_is_equal(QOBJECT(now->profile->parameters),
                          QOBJECT(hello->profile->parameters))) {
        error_setg(errp, "migration parameters were changed during the "
                   "migration handshake");
        return false;
    }
    return true;
}
