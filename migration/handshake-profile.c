/*
 * Migration handshake: what this machine is
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "qemu-version.h"
#include "exec/target_page.h"
#include "hw/boards.h"
#include "hw/qdev-core.h"
#include "qapi/error.h"
#include "qapi/qapi-commands-machine.h"
#include "qapi/qapi-types-machine.h"
#include "qemu/uuid.h"
#include "qom/object.h"
#include "system/system.h"
#include "handshake-profile.h"
#include "migration.h"

/* They follow from the machine type and -global, not from QMP; see savevm.c */
static const char *const migration_properties[] = {
    "send-configuration",
    "send-section-footer",
    "send-switchover-start",
    "store-global-state",
    "multifd-flush-after-each-section",
    "multifd-clean-tls-termination",
    "x-preempt-pre-7-2",
};

static void put_bool_property(QDict *dict, Object *obj, const char *name)
{
    /* A later QEMU may have dropped it: then it is not compared */
    if (object_property_find(obj, name)) {
        qdict_put_bool(dict, name,
                       object_property_get_bool(obj, name, &error_abort));
    }
}

static QDict *collect_stream(void)
{
    Object *migration = OBJECT(migrate_get_current());
    QDict *stream = qdict_new();

    for (int i = 0; i < ARRAY_SIZE(migration_properties); i++) {
        put_bool_property(stream, migration, migration_properties[i]);
    }
    put_bool_property(stream, qdev_get_machine(), "suppress-vmdesc");
    return stream;
}

void handshake_profile_collect(HandshakeProfile *profile)
{
    g_autoptr(TargetInfo) target = qmp_query_target(&error_abort);

    profile->qemu_version = g_strdup(QEMU_VERSION);
    if (*QEMU_PKGVERSION) {
        profile->package = g_strdup(QEMU_PKGVERSION);
    }
    profile->arch = g_strdup(SysEmuTarget_str(target->arch));
    profile->machine =
        g_strdup(MACHINE_GET_CLASS(qdev_get_machine())->name);
    profile->page_size = qemu_target_page_size();
    if (qemu_uuid_set) {
        profile->uuid = qemu_uuid_unparse_strdup(&qemu_uuid);
    }
    profile->name = g_strdup(qemu_get_vm_name());
    profile->stream = collect_stream();
}

MigrationHandshakePeer *handshake_profile_peer(const HandshakeProfile *profile)
{
    MigrationHandshakePeer *peer = g_new0(MigrationHandshakePeer, 1);

    peer->qemu_version = handshake_text(profile->qemu_version);
    peer->package = handshake_text(profile->package);
    peer->machine = handshake_text(profile->machine);
    peer->arch = handshake_text(profile->arch);
    return peer;
}
