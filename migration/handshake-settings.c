/*
 * Migration handshake: this QEMU's own capabilities and parameters
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "crypto/tlscredspsk.h"
#include "crypto/tlscredsx509.h"
#include "exec/ramlist.h"
#include "qapi/error.h"
#include "qapi/qapi-commands-migration.h"
#include "qapi/qapi-visit-migration.h"
#include "qapi/qobject-input-visitor.h"
#include "qapi/qobject-output-visitor.h"
#include "qapi/util.h"
#include "system/system.h"
#include "handshake-json.h"
#include "handshake-settings.h"
#include "migration.h"
#include "multifd.h"
#include "options.h"
#include "postcopy-ram.h"
#include "trace.h"

/* What a handshake has changed, and what it was before */
static struct {
    bool capability_taken[MIGRATION_CAPABILITY__MAX];
    bool capability_was[MIGRATION_CAPABILITY__MAX];
    QDict *parameters_taken;
    QDict *parameters_were;
} taken;

/*
 * Whether this host can do postcopy.  To find out takes time, and the more so
 * if memory is locked, and a stranger may ask for it again and again.
 */
static struct {
    bool asked;
    uint32_t ram_version;           /* of the memory that it was asked for */
    Error *err;                     /* why not */
} postcopy;

void handshake_settings_hold(void)
{
    object_ref(OBJECT(migrate_get_current()));
}

void handshake_settings_release(void)
{
    object_unref(OBJECT(migrate_get_current()));
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

strList *handshake_settings_capabilities(void)
{
    MigrationState *s = migrate_get_current();
    strList *names = NULL;
    strList **tail = &names;

    for (int i = 0; i < MIGRATION_CAPABILITY__MAX; i++) {
        if (taken.capability_taken[i] ? taken.capability_was[i]
                                      : s->capabilities[i]) {
            QAPI_LIST_APPEND(tail, g_strdup(MigrationCapability_str(i)));
        }
    }
    return names;
}

static QDict *current_parameters(void)
{
    g_autoptr(MigrationParameters) params =
        qmp_query_migrate_parameters(&error_abort);
    QObject *obj;
    Visitor *v = qobject_output_visitor_new(&obj);

    visit_type_MigrationParameters(v, NULL, &params, &error_abort);
    visit_complete(v, &obj);
    visit_free(v);
    return qobject_to(QDict, obj);
}

QDict *handshake_settings_parameters(void)
{
    QDict *params = current_parameters();
    const QDictEntry *entry;

    for (entry = taken.parameters_were ? qdict_first(taken.parameters_were)
                                       : NULL;
         entry; entry = qdict_next(taken.parameters_were, entry)) {
        qdict_put_obj(params, qdict_entry_key(entry),
                      qobject_ref(qdict_entry_value(entry)));
    }
    return params;
}

bool handshake_settings_check(Error **errp)
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

/* This QEMU's capabilities as they will be with @names as effective ones */
static void merge_capabilities(const strList *names, bool *caps)
{
    MigrationState *s = migrate_get_current();

    for (int i = 0; i < MIGRATION_CAPABILITY__MAX; i++) {
        const char *name = MigrationCapability_str(i);

        switch (handshake_policy_capability(name)) {
        case HANDSHAKE_POLICY_TAKEN:
        case HANDSHAKE_POLICY_ALWAYS:
            caps[i] = handshake_strlist_contains(names, name);
            break;
        default:
            caps[i] = s->capabilities[i];
        }
    }
}

void handshake_settings_forget_host(void)
{
    error_free(postcopy.err);
    memset(&postcopy, 0, sizeof(postcopy));
}

static bool host_has_postcopy(Error **errp)
{
    if (!postcopy.asked || postcopy.ram_version != ram_list.version) {
        handshake_settings_forget_host();
        postcopy.asked = true;
        postcopy.ram_version = ram_list.version;
        postcopy_ram_supported_by_host(migration_incoming_get_current(),
                                       &postcopy.err);
        if (should_mlock(mlock_state)) {
            /* The probe unlocks memory, and this was but a question */
            os_mlock(is_mlock_on_fault(mlock_state));
        }
    }
    if (postcopy.err) {
        error_propagate(errp, error_copy(postcopy.err));
        error_prepend(errp, "Postcopy is not supported: ");
    }
    return !postcopy.err;
}

static bool try_capabilities(const strList *names, void *opaque, Error **errp)
{
    ERRP_GUARD();
    const bool destination = opaque != NULL;
    bool caps[MIGRATION_CAPABILITY__MAX];
    bool were[MIGRATION_CAPABILITY__MAX];

    memcpy(were, migrate_get_current()->capabilities, sizeof(were));
    merge_capabilities(names, caps);
    /* It means nothing, and each question would print a warning */
    caps[MIGRATION_CAPABILITY_ZERO_BLOCKS] = false;
    for (int i = 0; i < MIGRATION_CAPABILITY__MAX; i++) {
        const char *name = MigrationCapability_str(i);

        if (destination &&
            handshake_policy_capability(name) == HANDSHAKE_POLICY_SOURCE) {
            caps[i] = false;
        }
    }
    if (destination && caps[MIGRATION_CAPABILITY_POSTCOPY_RAM] &&
        !were[MIGRATION_CAPABILITY_POSTCOPY_RAM]) {
        if (!host_has_postcopy(errp)) {
            return false;
        }
        /* So that it is not asked again */
        were[MIGRATION_CAPABILITY_POSTCOPY_RAM] = true;
    }
    return migrate_caps_check(were, caps, errp);
}

/* Whether @method works on this host: it may need hardware */
static bool probe_compression(MultiFDCompression method, bool receive,
                              Error **errp)
{
    const MultiFDMethods *ops = multifd_methods(method);
    g_autofree MultiFDRecvParams *in = g_new0(MultiFDRecvParams, 1);
    g_autofree MultiFDSendParams *out = g_new0(MultiFDSendParams, 1);

    if (receive ? ops->recv_setup(in, errp) : ops->send_setup(out, errp)) {
        return false;
    }
    if (receive) {
        ops->recv_cleanup(in);
    } else {
        ops->send_cleanup(out, NULL);
    }
    return true;
}

static bool try_parameter(const char *name, const QObject *value, void *opaque,
                          Error **errp)
{
    bool *zero_copy = &migrate_get_current()->
        capabilities[MIGRATION_CAPABILITY_ZERO_COPY_SEND];
    const bool zero_copy_was = *zero_copy;
    const bool destination = opaque != NULL;
    g_autoptr(QDict) values = qdict_new();
    g_autoptr(MigrationParameters) params = NULL;
    Visitor *v;
    bool ok;

    qdict_put_obj(values, name, qobject_ref((QObject *)value));
    v = qobject_input_visitor_new(QOBJECT(values));
    visit_type_MigrationParameters(v, NULL, &params, errp);
    visit_free(v);
    if (!params) {
        return false;
    }

    /* The check below asks for this one, which counts as off */
    *zero_copy = zero_copy_was && !destination;
    ok = migrate_params_check(params, errp);
    *zero_copy = zero_copy_was;
    if (ok && params->has_multifd_compression) {
        ok = probe_compression(params->multifd_compression, destination, errp);
    }
    return ok;
}

static const HandshakeJudge source_judge = {
    .try_capabilities = try_capabilities,
    .try_parameter = try_parameter,
    .opaque = NULL,
};

static const HandshakeJudge destination_judge = {
    .try_capabilities = try_capabilities,
    .try_parameter = try_parameter,
    .opaque = (void *)&destination_judge,
};

const HandshakeJudge *handshake_settings_source_judge(void)
{
    return &source_judge;
}

const HandshakeJudge *handshake_settings_destination_judge(void)
{
    return &destination_judge;
}

/*
 * Every parameter that handshake-policy.c lets a destination take has its line
 * here.  qmp_migrate_set_parameters() would judge them together with settings
 * that do not matter to a destination.
 */
static void set_parameters(const QDict *values)
{
    MigrationParameters *to = &migrate_get_current()->parameters;
    MigrationParameters *from = NULL;
    Visitor *v = qobject_input_visitor_new(QOBJECT(values));

    visit_type_MigrationParameters(v, NULL, &from, &error_abort);
    visit_free(v);
    if (from->has_multifd_channels) {
        to->multifd_channels = from->multifd_channels;
    }
    if (from->has_multifd_compression) {
        to->multifd_compression = from->multifd_compression;
    }
    qapi_free_MigrationParameters(from);
}

void handshake_settings_take(const strList *capabilities,
                             const QDict *parameters)
{
    MigrationState *s = migrate_get_current();
    g_autoptr(QDict) now = NULL;
    bool caps[MIGRATION_CAPABILITY__MAX];
    const QDictEntry *entry;

    handshake_settings_give_back();
    now = current_parameters();

    merge_capabilities(capabilities, caps);
    for (int i = 0; i < MIGRATION_CAPABILITY__MAX; i++) {
        const char *name = MigrationCapability_str(i);

        taken.capability_taken[i] = caps[i] != s->capabilities[i];
        taken.capability_was[i] = s->capabilities[i];
        if (taken.capability_taken[i]) {
            trace_migration_handshake_take(name, caps[i] ? "on" : "off");
            s->capabilities[i] = caps[i];
        }
    }

    taken.parameters_were = qdict_new();
    taken.parameters_taken = handshake_policy_values(capabilities, parameters);
    for (entry = qdict_first(taken.parameters_taken); entry;
         entry = qdict_next(taken.parameters_taken, entry)) {
        const char *name = qdict_entry_key(entry);
        g_autofree char *text = handshake_json_text(qdict_entry_value(entry));

        trace_migration_handshake_take(name, text);
        qdict_put_obj(taken.parameters_were, name,
                      qobject_ref(qdict_get(now, name)));
    }
    set_parameters(taken.parameters_taken);
}

bool handshake_settings_taken(const char *name)
{
    HandshakePolicy policy = handshake_policy_capability(name);

    if (policy == HANDSHAKE_POLICY_UNKNOWN) {
        policy = handshake_policy_parameter(name, NULL);
    }
    return taken.parameters_taken && (policy == HANDSHAKE_POLICY_TAKEN ||
                                      policy == HANDSHAKE_POLICY_ALWAYS);
}

bool handshake_settings_give_back_capability(MigrationCapability capability,
                                             bool state)
{
    MigrationState *s = migrate_get_current();

    if (!handshake_settings_taken(MigrationCapability_str(capability))) {
        return false;
    }
    taken.capability_taken[capability] = state != s->capabilities[capability];
    taken.capability_was[capability] = state;
    return true;
}

bool handshake_settings_give_back_parameter(const char *name, QObject *value)
{
    g_autoptr(QDict) now = NULL;

    if (!handshake_settings_taken(name)) {
        qobject_unref(value);
        return false;
    }
    if (!qdict_haskey(taken.parameters_taken, name)) {
        now = current_parameters();
        qdict_put_obj(taken.parameters_taken, name,
                      qobject_ref(qdict_get(now, name)));
    }
    qdict_put_obj(taken.parameters_were, name, value);
    return true;
}

void handshake_settings_give_back(void)
{
    MigrationState *s = migrate_get_current();
    g_autoptr(QDict) now = NULL;
    g_autoptr(QDict) back = qdict_new();
    const QDictEntry *entry;

    if (!taken.parameters_taken) {
        return;
    }

    for (int i = 0; i < MIGRATION_CAPABILITY__MAX; i++) {
        if (taken.capability_taken[i] &&
            s->capabilities[i] != taken.capability_was[i]) {
            trace_migration_handshake_give_back(MigrationCapability_str(i));
            s->capabilities[i] = taken.capability_was[i];
        }
    }

    now = current_parameters();
    for (entry = qdict_first(taken.parameters_taken); entry;
         entry = qdict_next(taken.parameters_taken, entry)) {
        const char *name = qdict_entry_key(entry);
        QObject *was = qdict_get(taken.parameters_were, name);

        if (qobject_is_equal(qdict_get(now, name), qdict_entry_value(entry)) &&
            !qobject_is_equal(was, qdict_entry_value(entry))) {
            trace_migration_handshake_give_back(name);
            qdict_put_obj(back, name, qobject_ref(was));
        }
    }
    set_parameters(back);

    qobject_unref(taken.parameters_taken);
    qobject_unref(taken.parameters_were);
    memset(&taken, 0, sizeof(taken));
}
