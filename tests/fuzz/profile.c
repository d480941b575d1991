/*
 * Migration handshake: fuzz check-migrate-profile
 *
 * The first bytes say which options there are, and whose profile it is: this
 * QEMU's own, or what follows, which comes as QMP, whose JSON is laxer than
 * that of a peer.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "qapi/error.h"
#include "qapi/qapi-commands-migration-profile.h"
#include "qapi/util.h"
#include "qobject/qjson.h"
#include "qobject/qobject.h"
#include "fuzz.h"
#include "stubs.h"

static MigrationHandshakeOptions *get_options(FuzzInput *in)
{
    const uint8_t what = fuzz_byte(in);
    MigrationHandshakeOptions *options = NULL;
    MigrationCapabilityList **tail;

    if (what & 1) {
        options = g_new0(MigrationHandshakeOptions, 1);
        options->has_warnings_as_errors = what & 2;
        options->warnings_as_errors = what & 4;
        options->has_optional_capabilities = what & 8;
        tail = &options->optional_capabilities;
        for (int i = 0; what & 8 && i < what >> 6; i++) {
            MigrationCapability capability =
                fuzz_byte(in) % MIGRATION_CAPABILITY__MAX;

            QAPI_LIST_APPEND(tail, capability);
        }
    }
    return options;
}

/* As a QMP client would send it.  NULL if it cannot. */
static QObject *get_profile(FuzzInput *in)
{
    g_autofree char *text = g_strndup((const char *)in->pos,
                                      in->end - in->pos);
    g_autoptr(GString) strict = NULL;
    QObject *lax;
    QObject *again;

    lax = qobject_from_json(text, NULL);
    if (!lax) {
        return NULL;
    }
    strict = qobject_to_json(lax);
    again = qobject_from_json(strict->str, NULL);
    if (!again) {
        /* It has a number like 1e999, which QEMU reads and writes as inf */
        return lax;
    }
    qobject_unref(lax);
    return again;
}

/* Whatever is set here, this QEMU can read what it says of itself */
static void check_own(FuzzInput *in, MigrationHandshakeOptions *options)
{
    g_autoptr(MigrationHandshakeHello) own = NULL;
    g_autoptr(MigrationProfileVerdict) verdict = NULL;
    QObject *profile;

    stubs_set_capability(fuzz_byte(in), true);
    stubs_set_capability(fuzz_byte(in), true);
    stubs_set_multifd_channels(fuzz_byte(in));
    own = qmp_query_migrate_profile(&error_abort);
    profile = fuzz_hello_object(own);
    stubs.incoming = true;
    verdict = qmp_check_migrate_profile(profile, options, &error_abort);
    stubs_check_idle();
    qobject_unref(profile);
}

/* The file that query-migrate-profile would have written of the same */
static void check_file(const QObject *profile,
                       MigrationHandshakeOptions *options,
                       const MigrationProfileVerdict *verdict)
{
    g_autoptr(MigrationHandshakeHello) hello =
        handshake_get_profile(profile, &error_abort);
    QObject *written = fuzz_hello_object(hello);
    g_autoptr(MigrationProfileVerdict) again =
        qmp_check_migrate_profile(written, options, &error_abort);

    g_assert_cmpint(again->compatible, ==, verdict->compatible);
    qobject_unref(written);
}

void fuzz_one(const uint8_t *data, size_t size)
{
    FuzzInput in = { data, data + size };
    g_autoptr(MigrationHandshakeOptions) options = get_options(&in);
    g_autoptr(MigrationProfileVerdict) verdict = NULL;
    g_auto(FuzzError) err = NULL;
    QObject *profile;

    stubs_reset();
    if (fuzz_byte(&in) & 1) {
        check_own(&in, options);
        return;
    }
    stubs.incoming = true;
    profile = get_profile(&in);
    if (!profile) {
        return;
    }
    verdict = qmp_check_migrate_profile(profile, options, &err);
    g_assert(!verdict == !!err);
    if (verdict) {
        MigrationHandshakeIssueList *l;

        for (l = verdict->issues; l; l = l->next) {
            fuzz_check_text(l->value->message);
        }
        check_file(profile, options, verdict);
    }
    stubs_check_idle();
    qobject_unref(profile);
}
