/*
 * Migration handshake: this QEMU as the destination of a HELLO
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "qapi/error.h"
#include "handshake-compat.h"
#include "handshake-judge.h"
#include "handshake-policy.h"
#include "handshake-profile.h"
#include "handshake-settings.h"
#include "savevm-sections.h"

/* The version that the source likes best of those that are known here */
static uint32_t choose_version(const HandshakeHello *hello,
                               HandshakeIssues *issues)
{
    g_autoptr(GString) offered = g_string_new(NULL);
    const uint32List *v;

    for (v = hello->versions; v; v = v->next) {
        if (v->value == HANDSHAKE_VERSION) {
            return v->value;
        }
        g_string_append_printf(offered, "%s%" PRIu32,
                               offered->len ? ", " : "", v->value);
    }
    handshake_issue_add(issues, "protocol-version",
                        MIGRATION_HANDSHAKE_SEVERITY_ERROR, "versions",
                        offered->str, stringify(HANDSHAKE_VERSION),
                        "no common version of the migration handshake");
    return 0;
}

static void judge_core(const HandshakeHello *hello, HandshakeIssues *issues)
{
    const strList *l;

    if (!hello->purpose || (strcmp(hello->purpose, HANDSHAKE_PURPOSE_MIGRATE) &&
                            strcmp(hello->purpose, HANDSHAKE_PURPOSE_CHECK))) {
        handshake_issue_add(issues, "purpose",
                            MIGRATION_HANDSHAKE_SEVERITY_ERROR, "purpose",
                            hello->purpose, "migrate, check",
                            "the purpose '%s' is not known on the destination",
                            hello->purpose ?: "");
    }
    for (l = hello->required; l; l = l->next) {
        if (!handshake_feature_known(l->value)) {
            handshake_issue_add(issues, "required-feature",
                                MIGRATION_HANDSHAKE_SEVERITY_ERROR, l->value,
                                "required", "unknown",
                                "the source requires handshake feature '%s', "
                                "which is not known on the destination",
                                l->value);
        }
    }
}

HandshakeVerdict *handshake_judge(const HandshakeHello *hello)
{
    g_autoptr(HandshakeProfile) local = handshake_profile_new();
    HandshakeVerdict *verdict = handshake_verdict_new();
    HandshakeIssues *issues = &verdict->issues;
    g_autoptr(Error) err = NULL;

    handshake_profile_collect(local);
    verdict->peer = handshake_profile_peer(local);
    verdict->features = handshake_features_common(hello->features);

    verdict->version = choose_version(hello, issues);
    judge_core(hello, issues);
    if (!handshake_settings_check(&err)) {
        handshake_issue_add(issues, "capability-conflict",
                            MIGRATION_HANDSHAKE_SEVERITY_ERROR,
                            "destination", "wants a handshake", "excludes it",
                            "%s", error_get_pretty(err));
    }
    handshake_negotiate(hello, local, handshake_settings_destination_judge(),
                        verdict);
    handshake_compare(hello->profile, local, qemu_savevm_resolve_section,
                      verdict->capabilities, issues);

    verdict->accept = !issues->errors &&
                      !(hello->warnings_as_errors && issues->warnings);
    if (!verdict->accept) {
        verdict->message = handshake_issues_summary(issues);
        handshake_verdict_forget_agreement(verdict);
    }
    return verdict;
}

HandshakeVerdict *handshake_judge_busy(void)
{
    g_autoptr(HandshakeProfile) local = handshake_profile_new();
    HandshakeVerdict *verdict = handshake_verdict_new();

    handshake_profile_identify(local);
    verdict->peer = handshake_profile_peer(local);
    handshake_issue_add(&verdict->issues, "busy",
                        MIGRATION_HANDSHAKE_SEVERITY_ERROR, "session",
                        "a second one", "held by another source",
                        "another migration to this destination is in "
                        "progress; try again when it is over");
    verdict->message = handshake_issues_summary(&verdict->issues);
    return verdict;
}
