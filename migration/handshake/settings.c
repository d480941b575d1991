/*
 * Migration handshake: what is set in this QEMU, and what is possible here
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "qemu/cutils.h"
#include "qemu/timer.h"
#include "crypto/tlscredspsk.h"
#include "crypto/tlscredsx509.h"
#include "qapi/error.h"
#include "qapi/util.h"
#include "system/system.h"
#include "conversation.h"
#include "settings.h"
#include "migration/migration.h"
#include "migration/multifd.h"
#include "migration/options.h"
#include "migration/postcopy-ram.h"
#include "trace.h"

/* How long postcopy is taken to be possible: a peer may ask again and again */
#define POSTCOPY_PROBE_MS   1000

strList *handshake_settings_capabilities(void)
{
    MigrationState *s = migrate_get_current();
    strList *names = NULL;
    strList **tail = &names;

    for (int i = 0; i < MIGRATION_CAPABILITY__MAX; i++) {
        if (s->capabilities[i]) {
            QAPI_LIST_APPEND(tail, g_strdup(MigrationCapability_str(i)));
        }
    }
    return names;
}

char *handshake_settings_parameter(MigrationParameter parameter)
{
    MigrationParameters *params = &migrate_get_current()->parameters;

    switch (parameter) {
    case MIGRATION_PARAMETER_MULTIFD_CHANNELS:
        return g_strdup_printf("%u", params->multifd_channels);
    case MIGRATION_PARAMETER_MULTIFD_COMPRESSION:
        return g_strdup(MultiFDCompression_str(params->multifd_compression));
    default:
        g_assert_not_reached();
    }
}

bool handshake_settings_validate(Error **errp)
{
    MigrationState *s = migrate_get_current();

    for (int i = 0; i < MIGRATION_CAPABILITY__MAX; i++) {
        const char *name = MigrationCapability_str(i);

        if (s->capabilities[i] &&
            handshake_policy_capability(name) == HANDSHAKE_POLICY_REFUSED) {
            error_setg(errp, "Channel type 'handshake' cannot be used with "
                       "capability '%s'", name);
            return false;
        }
    }
    if (migrate_mode() != MIG_MODE_NORMAL) {
        error_setg(errp, "Channel type 'handshake' cannot be used with "
                   "migration mode '%s'", MigMode_str(migrate_mode()));
        return false;
    }
    return true;
}

/* All of this QEMU's capabilities, with @names as the negotiated ones */
static void settings_merge(const strList *names, MigrationHandshakeRole role,
                           bool *caps)
{
    MigrationState *s = migrate_get_current();

    for (int i = 0; i < MIGRATION_CAPABILITY__MAX; i++) {
        const char *name = MigrationCapability_str(i);

        switch (handshake_policy_capability(name)) {
        case HANDSHAKE_POLICY_NEGOTIATED:
        case HANDSHAKE_POLICY_ALWAYS:
            caps[i] = handshake_has_name(names, name);
            break;
        case HANDSHAKE_POLICY_SOURCE:
            caps[i] = s->capabilities[i] &&
                      role == MIGRATION_HANDSHAKE_ROLE_SOURCE;
            break;
        default:
            caps[i] = s->capabilities[i];
        }
    }
}

/* What the host's administrator can do about it is said, too */
static void settings_explain_postcopy(Error **errp)
{
    ERRP_GUARD();
    g_autofree char *text = g_strdup(error_get_pretty(*errp));
    const char *hint = "";

    if (strstr(text, "serfaultfd not available") &&
        g_str_has_suffix(text, strerror(EPERM))) {
        hint = ": either let QEMU open /dev/userfaultfd, or set sysctl "
               "vm.unprivileged_userfaultfd to 1";
    }
    error_free(*errp);
    *errp = NULL;
    error_setg(errp, "Postcopy is not supported: %s%s", text, hint);
}

/*
 * To find out takes time, and the more so if memory is locked.  An error is not
 * remembered: whoever reads it may do something about it.
 */
static bool settings_probe_postcopy(Error **errp)
{
    ERRP_GUARD();
    struct MigrationHandshake *handshake = migrate_get_current()->handshake;
    int64_t now = qemu_clock_get_ms(QEMU_CLOCK_REALTIME);
    bool ok;

    if (now < handshake->postcopy_until_ms &&
        ram_list.version == handshake->postcopy_ram_version) {
        return true;
    }
    ok = postcopy_ram_supported_by_host(migration_incoming_get_current(), errp);
    if (should_mlock(mlock_state)) {
        /* The probe unlocks memory, and this was but a question */
        os_mlock(is_mlock_on_fault(mlock_state));
    }
    if (!ok) {
        settings_explain_postcopy(errp);
    }
    handshake->postcopy_until_ms = ok ? now + POSTCOPY_PROBE_MS : 0;
    handshake->postcopy_ram_version = ram_list.version;
    return ok;
}

bool handshake_settings_try_capabilities(const strList *names,
                                         MigrationHandshakeRole role,
                                         Error **errp)
{
    bool caps[MIGRATION_CAPABILITY__MAX];
    /* QEMU 11.0 has it no more */
    int zero_blocks = qapi_enum_parse(&MigrationCapability_lookup,
                                      "zero-blocks", -1, NULL);

    settings_merge(names, role, caps);
    if (zero_blocks >= 0) {
        /* It means nothing, and each question would print a warning */
        caps[zero_blocks] = false;
    }
    if (role == MIGRATION_HANDSHAKE_ROLE_DESTINATION &&
        caps[MIGRATION_CAPABILITY_POSTCOPY_RAM] &&
        !settings_probe_postcopy(errp)) {
        return false;
    }
    /* None of them is new: this does not depend on how QEMU listens now */
    return migrate_caps_check(caps, caps, errp);
}

bool handshake_settings_try_parameter(MigrationParameter parameter,
                                      const char *value,
                                      MigrationHandshakeRole role,
                                      Error **errp)
{
    unsigned channels;
    int method;

    switch (parameter) {
    case MIGRATION_PARAMETER_MULTIFD_CHANNELS:
        /* In no other way than a source writes it */
        if (value[0] >= '1' && value[0] <= '9' &&
            !qemu_strtoui(value, NULL, 10, &channels) &&
            channels <= UINT8_MAX) {
            return true;
        }
        break;
    case MIGRATION_PARAMETER_MULTIFD_COMPRESSION:
        method = qapi_enum_parse(&MultiFDCompression_lookup, value, -1, NULL);
        if (method >= 0) {
            return multifd_probe(method,
                                 role == MIGRATION_HANDSHAKE_ROLE_DESTINATION,
                                 errp);
        }
        break;
    default:
        break;
    }
    error_setg(errp, "Parameter '%s' does not accept value '%s'",
               MigrationParameter_str(parameter), value);
    return false;
}

void handshake_settings_apply(const strList *capabilities,
                              const MigrationHandshakeEffective *parameters)
{
    MigrationState *s = migrate_get_current();
    MigrationNegotiated *negotiated = &s->negotiated;

    for (int i = 0; i < MIGRATION_CAPABILITY__MAX; i++) {
        const char *name = MigrationCapability_str(i);

        negotiated->capabilities[i] = handshake_has_name(capabilities, name);
        if (negotiated->capabilities[i]) {
            trace_migration_handshake_apply(name, "on");
        }
    }
    negotiated->multifd_channels = parameters->has_multifd_channels
        ? parameters->multifd_channels : s->parameters.multifd_channels;
    negotiated->multifd_compression =
        qapi_enum_parse(&MultiFDCompression_lookup,
                        parameters->multifd_compression,
                        s->parameters.multifd_compression, NULL);
    trace_migration_handshake_apply("multifd-compression",
        MultiFDCompression_str(negotiated->multifd_compression));
    negotiated->active = true;
}

void handshake_settings_restore(void)
{
    MigrationState *s = migrate_get_current();

    if (s->negotiated.active) {
        trace_migration_handshake_restore();
        s->negotiated.active = false;
    }
}

bool handshake_settings_tls_authenticates(void)
{
    const char *id = migrate_tls_creds();
    Object *creds = id ? object_resolve_path_component(
                             object_get_objects_root(), id)
                       : NULL;

    return creds &&
           (object_dynamic_cast(creds, TYPE_QCRYPTO_TLS_CREDS_PSK) ||
            (object_dynamic_cast(creds, TYPE_QCRYPTO_TLS_CREDS_X509) &&
             object_property_get_bool(creds, "verify-peer", NULL)));
}
