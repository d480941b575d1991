/*
 * Migration handshake: comparing without a connection
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "migration/migration.h"
#include "qapi/error.h"
#include "qapi/qapi-commands-migration-profile.h"
#include "qapi/util.h"
#include "system/runstate.h"
#include "conversation.h"
#include "machine.h"
#include "settings.h"

MigrationHandshakeHello *qmp_query_migrate_profile(Error **errp)
{
    MigrationHandshakeHello *hello;
    Error *err = NULL;

    if (runstate_check(RUN_STATE_INMIGRATE) ||
        runstate_check(RUN_STATE_POSTMIGRATE)) {
        error_setg(errp, "There is no guest here that could migrate");
        return NULL;
    }
    hello = g_new0(MigrationHandshakeHello, 1);
    QAPI_LIST_PREPEND(hello->versions, HANDSHAKE_VERSION);
    hello->purpose = g_strdup(HANDSHAKE_PURPOSE_CHECK);
    hello->has_features = true;
    hello->features = handshake_features();
    hello->profile = handshake_profile_new(MIGRATION_HANDSHAKE_ROLE_SOURCE);
    handshake_policy_offer_profile(hello);
    if (!handshake_settings_validate(&err)) {
        hello->profile->has_blockers = true;
        QAPI_LIST_PREPEND(hello->profile->blockers,
                          g_strdup(error_get_pretty(err)));
        error_free(err);
    }
    return hello;
}

static bool profile_may_check(Error **errp)
{
    const MigrationIncomingState *mis = migration_incoming_get_current();

    if (!runstate_check(RUN_STATE_INMIGRATE)) {
        error_setg(errp, "Only a QEMU that waits for an incoming migration "
                   "(-incoming) can tell what it would accept");
        return false;
    }
    if (mis->state == MIGRATION_STATUS_FAILED) {
        error_setg(errp, "The incoming migration has failed; nothing can be "
                   "migrated to this QEMU any more");
        return false;
    }
    if ((mis->state != MIGRATION_STATUS_NONE &&
         mis->state != MIGRATION_STATUS_SETUP) ||
        handshake_destination_is_busy(mis->handshake)) {
        error_setg(errp, "There's a migration process in progress");
        return false;
    }
    return true;
}

MigrationProfileVerdict *
qmp_check_migrate_profile(QObject *profile, MigrationHandshakeOptions *options,
                          Error **errp)
{
    ERRP_GUARD();
    g_autoptr(MigrationHandshakeHello) hello = NULL;
    g_autoptr(HandshakeVerdict) verdict = NULL;
    MigrationHandshakeDeclinedList **tail;
    MigrationProfileVerdict *answer;

    if (!handshake_ignore_validate(options ? options->ignore_issues : NULL,
                                   errp) || !profile_may_check(errp)) {
        return NULL;
    }
    hello = handshake_get_profile(profile, errp);
    if (!hello) {
        error_prepend(errp, "malformed migration profile: ");
        return NULL;
    }
    handshake_policy_choose(hello, options);
    verdict = handshake_destination_verdict(hello);

    answer = g_new0(MigrationProfileVerdict, 1);
    answer->compatible = verdict->accept;
    answer->issues = g_steal_pointer(&verdict->issues.list);
    answer->has_issues_omitted = verdict->issues.omitted != 0;
    answer->issues_omitted = verdict->issues.omitted;
    answer->capabilities = g_steal_pointer(&verdict->message->capabilities);
    answer->declined = g_steal_pointer(&verdict->message->declined);
    if (answer->compatible) {
        tail = &answer->declined;
        while (*tail) {
            tail = &(*tail)->next;
        }
        *tail = g_steal_pointer(&hello->declined);
    }
    return answer;
}
