/*
 * Migration handshake: what "info migrate" prints of it
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "migration/handshake.h"
#include "monitor/monitor.h"

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
                   MigrationHandshakeSeverity_str(issue->severity),
                   issue->code, issue->message);
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
