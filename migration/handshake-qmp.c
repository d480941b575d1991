/*
 * Migration handshake: judging without a connection
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "qapi/error.h"
#include "qapi/qapi-commands-migration-profile.h"
#include "qobject/qjson.h"
#include "system/runstate.h"
#include "handshake-destination.h"
#include "handshake-judge.h"
#include "handshake-offer.h"
#include "handshake-wire.h"
#include "migration.h"

QObject *qmp_query_migrate_profile(Error **errp)
{
    g_autoptr(HandshakeHello) hello = NULL;

    if (runstate_check(RUN_STATE_INMIGRATE) ||
        runstate_check(RUN_STATE_POSTMIGRATE)) {
        error_setg(errp, "There is no guest here that could migrate");
        return NULL;
    }
    hello = handshake_offer_profile();
    return QOBJECT(handshake_hello_to_profile(hello));
}

/* By way of the text, so that a file is read exactly as a frame is */
static HandshakeHello *read_profile(const QObject *profile, Error **errp)
{
    ERRP_GUARD();
    g_autoptr(GString) json = qobject_to_json(profile);
    HandshakeHello *hello = NULL;

    if (json->len > HANDSHAKE_HELLO_MAX) {
        error_setg(errp, "it has more than %u bytes",
                   (unsigned)HANDSHAKE_HELLO_MAX);
    } else {
        hello = handshake_hello_from_profile(json->str, json->len, errp);
    }
    if (!hello) {
        error_prepend(errp, "malformed migration profile: ");
    }
    return hello;
}

static bool may_judge(Error **errp)
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
        handshake_destination_is_busy()) {
        error_setg(errp, "There's a migration process in progress");
        return false;
    }
    return true;
}

MigrationProfileVerdict *
qmp_check_migrate_profile(QObject *profile, MigrationHandshakeOptions *options,
                          Error **errp)
{
    g_autoptr(HandshakeHello) hello = NULL;
    g_autoptr(HandshakeVerdict) verdict = NULL;
    MigrationHandshakeDeclinedList **tail;
    MigrationProfileVerdict *answer;

    if (!may_judge(errp)) {
        return NULL;
    }
    hello = read_profile(profile, errp);
    if (!hello) {
        return NULL;
    }
    handshake_offer_choose(hello, options);
    verdict = handshake_judge(hello);

    answer = g_new0(MigrationProfileVerdict, 1);
    answer->compatible = verdict->accept;
    answer->issues = g_steal_pointer(&verdict->issues.list);
    answer->has_issues_omitted = verdict->issues.omitted != 0;
    answer->issues_omitted = verdict->issues.omitted;
    answer->capabilities = g_steal_pointer(&verdict->capabilities);
    answer->declined = g_steal_pointer(&verdict->declined);
    tail = &answer->declined;
    while (*tail) {
        tail = &(*tail)->next;
    }
    *tail = g_steal_pointer(&hello->declined);
    return answer;
}
