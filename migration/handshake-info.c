/*
 * Migration handshake: what query-migrate shows of it
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "qapi/clone-visitor.h"
#include "qapi/qapi-builtin-visit.h"
#include "qapi/qapi-events-migration-handshake.h"
#include "qapi/qapi-types-migration.h"
#include "qapi/qapi-visit-migration-handshake.h"
#include "qemu/timer.h"
#include "handshake-info.h"
#include "handshake-policy.h"
#include "options.h"

/* The conversation in progress, else the last one */
static MigrationHandshakeInfo *current;

MigrationHandshakeInfo *handshake_info_new(MigrationHandshakeRole role,
                                           const char *purpose)
{
    MigrationHandshakeInfo *info = g_new0(MigrationHandshakeInfo, 1);

    info->role = role;
    info->status = MIGRATION_HANDSHAKE_STATUS_IN_PROGRESS;
    info->check_only = purpose && !strcmp(purpose, HANDSHAKE_PURPOSE_CHECK);
    return info;
}

void handshake_info_set_wire(MigrationHandshakeInfo *info,
                             const HandshakeWire *wire)
{
    info->bytes_sent = wire->bytes_sent;
    info->bytes_received = wire->bytes_received;
}

void handshake_info_set_verdict(MigrationHandshakeInfo *info,
                                const HandshakeVerdict *verdict)
{
    info->has_protocol_version = verdict->version != 0;
    info->protocol_version = verdict->version;

    qapi_free_strList(info->features);
    info->features = QAPI_CLONE(strList, verdict->features);

    qapi_free_strList(info->capabilities);
    info->capabilities = QAPI_CLONE(strList, verdict->capabilities);

    qapi_free_MigrationHandshakeDeclinedList(info->declined);
    info->declined = QAPI_CLONE(MigrationHandshakeDeclinedList,
                                verdict->declined);

    qobject_unref(info->parameters);
    info->parameters =
        QOBJECT(handshake_policy_values(verdict->capabilities,
                                        verdict->parameters));

    qapi_free_MigrationHandshakeIssueList(info->issues);
    info->issues = QAPI_CLONE(MigrationHandshakeIssueList,
                              verdict->issues.list);
    info->has_issues_omitted = verdict->issues.omitted != 0;
    info->issues_omitted = verdict->issues.omitted;
}

/* QAPI_CLONE() does not know the type of @parameters */
static MigrationHandshakeInfo *info_clone(const MigrationHandshakeInfo *info)
{
    MigrationHandshakeInfo shallow = *info;
    MigrationHandshakeInfo *clone;

    shallow.parameters = NULL;
    clone = QAPI_CLONE(MigrationHandshakeInfo, &shallow);
    clone->parameters = qobject_ref(info->parameters);
    return clone;
}

void handshake_info_publish(const MigrationHandshakeInfo *info)
{
    qapi_free_MigrationHandshakeInfo(current);
    current = info_clone(info);
}

void handshake_info_connecting(const char *purpose)
{
    g_autoptr(MigrationHandshakeInfo) info =
        handshake_info_new(MIGRATION_HANDSHAKE_ROLE_SOURCE, purpose);

    handshake_info_publish(info);
}

/*
 * A stranger can be refused, or ask, as often as it likes.  Refusals have one
 * event a second; all else has 60 at once, and then one a second.
 */
static bool may_tell_of_stranger(MigrationHandshakeStatus status)
{
    static int64_t refusals_ms, others_ms;
    bool refused = status == MIGRATION_HANDSHAKE_STATUS_REJECTED;
    int64_t *due_ms = refused ? &refusals_ms : &others_ms;
    int64_t early_ms = refused ? 0 : 59 * 1000;
    int64_t now_ms = qemu_clock_get_ms(QEMU_CLOCK_REALTIME);

    if (now_ms < *due_ms - early_ms) {
        return false;
    }
    *due_ms = MAX(*due_ms, now_ms) + 1000;
    return true;
}

void handshake_info_end(const MigrationHandshakeInfo *info,
                        const HandshakeIssues *issues, bool trusted)
{
    handshake_info_publish(info);
    if (!migrate_events() ||
        (!trusted && !may_tell_of_stranger(info->status))) {
        return;
    }
    qapi_event_send_migration_handshake(info->role, info->status,
                                        info->check_only, info->session,
                                        issues ? issues->errors : 0,
                                        issues ? issues->warnings : 0,
                                        info->message);
}

void handshake_info_not_connected(const char *purpose,
                                  MigrationHandshakeStatus status,
                                  const char *why)
{
    g_autoptr(MigrationHandshakeInfo) info =
        handshake_info_new(MIGRATION_HANDSHAKE_ROLE_SOURCE, purpose);

    info->status = status;
    info->message = g_strdup(why);
    handshake_info_end(info, NULL, true);
}

MigrationHandshakeInfo *handshake_info_query(void)
{
    return current ? info_clone(current) : NULL;
}
