/*
 * Migration handshake: query-migrate, the event, HMP
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "migration/handshake.h"
#include "migration/migration.h"
#include "migration/options.h"
#include "monitor/monitor.h"
#include "qapi/clone-visitor.h"
#include "qapi/qapi-builtin-visit.h"
#include "qapi/qapi-events-migration-handshake.h"
#include "qapi/qapi-visit-migration-handshake.h"
#include "qemu/timer.h"
#include "conversation.h"
#include "settings.h"

MigrationHandshakeInfo *handshake_info_new(MigrationHandshakeRole role,
                                           bool check_only)
{
    MigrationHandshakeInfo *info = g_new0(MigrationHandshakeInfo, 1);

    info->role = role;
    info->status = MIGRATION_HANDSHAKE_STATUS_IN_PROGRESS;
    info->check_only = check_only;
    return info;
}

void handshake_info_set_verdict(MigrationHandshakeInfo *info,
                                const HandshakeVerdict *verdict, bool agreed)
{
    const MigrationHandshakeVerdict *message = verdict->message;

    info->has_protocol_version = message->version != 0;
    info->protocol_version = message->version;

    qapi_free_strList(info->features);
    info->features = QAPI_CLONE(strList, message->features);

    qapi_free_MigrationHandshakeIssueList(info->issues);
    info->issues = QAPI_CLONE(MigrationHandshakeIssueList,
                              verdict->issues.list);
    info->has_issues_omitted = verdict->issues.omitted != 0;
    info->issues_omitted = verdict->issues.omitted;

    g_clear_pointer(&info->capabilities, qapi_free_strList);
    g_clear_pointer(&info->declined, qapi_free_MigrationHandshakeDeclinedList);
    g_clear_pointer(&info->parameters, qapi_free_MigrationHandshakeEffective);
    if (agreed) {
        info->capabilities = QAPI_CLONE(strList, message->capabilities);
        info->declined = QAPI_CLONE(MigrationHandshakeDeclinedList,
                                    message->declined);
        info->parameters = handshake_policy_effective(message->capabilities,
                                                      message->parameters);
    }
}

void handshake_info_publish(const MigrationHandshakeInfo *info)
{
    struct MigrationHandshake *handshake = migrate_get_current()->handshake;

    qapi_free_MigrationHandshakeInfo(handshake->info);
    handshake->info = QAPI_CLONE(MigrationHandshakeInfo, info);
}

/*
 * An unauthenticated peer can be refused, or ask, as often as it likes.
 * Refusals have one event a second; all else has 60 at once, and then one a
 * second.
 */
static bool info_may_send_event(HandshakeEventLimit *limit,
                                MigrationHandshakeStatus status)
{
    bool refused = status == MIGRATION_HANDSHAKE_STATUS_REJECTED;
    int64_t *due_ms = refused ? &limit->refusals_ms : &limit->others_ms;
    int64_t early_ms = refused ? 0 : 59 * 1000;
    int64_t now_ms = qemu_clock_get_ms(QEMU_CLOCK_REALTIME);

    if (now_ms < *due_ms - early_ms) {
        return false;
    }
    *due_ms = MAX(*due_ms, now_ms) + 1000;
    return true;
}

void handshake_info_end(const MigrationHandshakeInfo *info,
                        const HandshakeIssues *issues,
                        HandshakeEventLimit *limit)
{
    handshake_info_publish(info);
    if (migrate_events() &&
        (!limit || info_may_send_event(limit, info->status))) {
        qapi_event_send_migration_handshake(info->role, info->status,
                                            info->check_only, info->session,
                                            issues ? issues->errors : 0,
                                            issues ? issues->warnings : 0,
                                            info->message);
    }
}

MigrationHandshakeInfo *migration_handshake_info(void)
{
    MigrationHandshake *handshake = migrate_get_current()->handshake;

    if (handshake->end) {
        handshake_end_show_issues(handshake->end, handshake->info);
    }
    return QAPI_CLONE(MigrationHandshakeInfo, handshake->info);
}

static void print_peer(Monitor *mon, const MigrationHandshakePeer *peer)
{
    monitor_printf(mon, "handshake peer: QEMU %s%s%s%s, machine %s, %s\n",
                   peer->qemu_version ?: "?",
                   peer->package ? " (" : "", peer->package ?: "",
                   peer->package ? ")" : "",
                   peer->machine ?: "?", peer->arch ?: "?");
}

static void print_issue(Monitor *mon, const MigrationHandshakeIssue *issue)
{
    monitor_printf(mon, "handshake %s: %s: %s\n",
                   issue->severity, issue->code, issue->message);
    if (issue->source || issue->destination) {
        monitor_printf(mon, "  %s%ssource: %s, destination: %s\n",
                       issue->subject ?: "", issue->subject ? ": " : "",
                       issue->source ?: "-", issue->destination ?: "-");
    } else if (issue->subject) {
        monitor_printf(mon, "  %s\n", issue->subject);
    }
}

void migration_handshake_print(Monitor *mon, const MigrationHandshakeInfo *info)
{
    const MigrationHandshakeDeclinedList *d;
    const MigrationHandshakeIssueList *i;
    const strList *c;

    if (!info) {
        return;
    }
    monitor_printf(mon, "Migration handshake (%s%s): %s%s%s\n",
                   MigrationHandshakeRole_str(info->role),
                   info->check_only ? ", check only" : "",
                   MigrationHandshakeStatus_str(info->status),
                   info->message ? ": " : "", info->message ?: "");
    if (info->peer) {
        print_peer(mon, info->peer);
    }
    if (info->capabilities) {
        monitor_printf(mon, "handshake capabilities:");
        for (c = info->capabilities; c; c = c->next) {
            monitor_printf(mon, " %s", c->value);
        }
        monitor_printf(mon, "\n");
    }
    for (d = info->declined; d; d = d->next) {
        monitor_printf(mon, "handshake declined: %s: %s\n",
                       d->value->capability, d->value->reason);
    }
    for (i = info->issues; i; i = i->next) {
        print_issue(mon, i->value);
    }
    if (info->has_issues_omitted) {
        monitor_printf(mon, "handshake: and %u more\n", info->issues_omitted);
    }
}
