/*
 * Migration handshake: what this machine is
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "qemu-version.h"
#include "exec/cpu-common.h"
#include "exec/target_page.h"
#include "hw/boards.h"
#include "hw/qdev-core.h"
#include "qapi/error.h"
#include "qapi/qapi-commands-machine.h"
#include "qapi/util.h"
#include "qemu/rcu.h"
#include "qemu/uuid.h"
#include "qom/object.h"
#include "system/kvm.h"
#include "system/runstate.h"
#include "system/system.h"
#include "handshake-profile.h"
#include "migration.h"
#include "migration/vmstate.h"
#include "ram.h"
#include "savevm-sections.h"

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

/* Where to collect, and what to leave out */
typedef struct Collection {
    HandshakeProfile *profile;
    GPtrArray *leaving;         /* prefixes of names */
} Collection;

/*
 * A device that may be unplugged while a migration runs will be, before any of
 * its state is sent: the primary one of a failover pair.
 */
static int note_leaving(Object *obj, void *opaque)
{
    DeviceState *dev = (DeviceState *)object_dynamic_cast(obj, TYPE_DEVICE);
    GPtrArray *leaving = opaque;
    g_autofree char *path = NULL;

    if (dev && dev->realized && dev->allow_unplug_during_migration) {
        path = qdev_get_dev_path(dev);
    }
    if (path) {
        g_ptr_array_add(leaving, g_strconcat(path, "/", NULL));
    }
    return 0;
}

static bool is_leaving(const Collection *c, const char *name)
{
    for (guint i = 0; i < c->leaving->len; i++) {
        if (g_str_has_prefix(name, g_ptr_array_index(c->leaving, i))) {
            return true;
        }
    }
    return false;
}

static bool is_conditional(const SaveVMSection *section)
{
    return section->vmsd ? section->vmsd->needed != NULL
                         : section->ops->is_active != NULL;
}

/* Whether qemu_savevm_state_setup() or vmstate_save() would send it now */
static bool is_sent(const SaveVMSection *section)
{
    const SaveVMHandlers *ops = section->ops;

    if (section->vmsd && section->vmsd->unmigratable) {
        return false;
    }
    /* Nothing is sent from here, and devices may not know what to say yet */
    if (is_conditional(section) && runstate_check(RUN_STATE_INMIGRATE)) {
        return false;
    }
    if (section->vmsd) {
        return vmstate_section_needed(section->vmsd, section->opaque);
    }
    return ops->save_state ||
           (ops->save_setup &&
            (!ops->is_active || ops->is_active(section->opaque)));
}

static void collect_section(const SaveVMSection *section, void *opaque)
{
    Collection *c = opaque;
    HandshakeSection *to;

    if (is_leaving(c, section->idstr)) {
        return;
    }
    to = handshake_sections_add(c->profile->sections, section->idstr);
    to->instance = section->instance_id;
    to->version = section->version_id;
    to->conditional = is_conditional(section);
    to->idle = !is_sent(section);
    if (section->vmsd) {
        to->minimum = section->vmsd->minimum_version_id;
    } else if (!strcmp(section->idstr, "ram")) {
        /* ram_load() wants its own version; others say nothing in advance */
        to->minimum = section->version_id;
    }
    if (section->vmsd && section->vmsd->unmigratable) {
        QAPI_LIST_PREPEND(c->profile->unmigratable,
                          g_strdup(section->idstr));
    }
}

static void collect_ram_block(const Collection *c, RAMBlock *rb)
{
    const char *name = qemu_ram_get_idstr(rb);
    HandshakeRAMBlock *to = handshake_ram_blocks_add(c->profile->ram_blocks,
                                                     name);

    /* The list of blocks is sent at the beginning: will it be gone by then? */
    to->conditional = is_leaving(c, name);
    to->size = qemu_ram_get_used_length(rb);
    to->max_size = qemu_ram_get_max_length(rb);
    to->page_size = qemu_ram_pagesize(rb);
    to->resizeable = rb->flags & RAM_RESIZEABLE;
    to->shared_file = qemu_ram_is_shared(rb) && qemu_ram_is_named_file(rb);
    if (to->shared_file) {
        to->has_address = true;
        to->address = rb->mr->addr;
    }
}

static void collect_parts(HandshakeProfile *profile)
{
    Collection c = {
        .profile = profile,
        .leaving = g_ptr_array_new_with_free_func(g_free),
    };
    RAMBlock *rb;

    object_child_foreach_recursive(object_get_root(), note_leaving, c.leaving);
    profile->sections = handshake_sections_new();
    qemu_savevm_foreach_section(collect_section, &c);
    profile->ram_blocks = handshake_ram_blocks_new();
    WITH_RCU_READ_LOCK_GUARD() {
        RAMBLOCK_FOREACH_MIGRATABLE(rb) {
            collect_ram_block(&c, rb);
        }
    }
    g_ptr_array_unref(c.leaving);
}

/* For a migration that begins there are none; but anybody may ask before */
static strList *collect_blockers(void)
{
    const GSList *l = migration_blockers_of(MIG_MODE_NORMAL);
    strList *blockers = NULL;
    strList **tail = &blockers;

    for (; l; l = l->next) {
        QAPI_LIST_APPEND(tail, g_strdup(error_get_pretty(l->data)));
    }
    if (kvm_hwpoisoned_mem()) {
        QAPI_LIST_APPEND(tail, g_strdup("the guest has poisoned memory"));
    }
    return blockers;
}

/* By way of QMP, because the names of the type and of its file vary */
static char *target_arch_name(void)
{
    g_autoptr(QDict) arguments = qdict_new();
    QObject *answer = NULL;
    char *arch;

    qmp_marshal_query_target(arguments, &answer, &error_abort);
    arch = g_strdup(qdict_get_str(qobject_to(QDict, answer), "arch"));
    qobject_unref(answer);
    return arch;
}

void handshake_profile_identify(HandshakeProfile *profile)
{
    profile->qemu_version = g_strdup(QEMU_VERSION);
    if (*QEMU_PKGVERSION) {
        profile->package = g_strdup(QEMU_PKGVERSION);
    }
    profile->arch = target_arch_name();
    profile->machine =
        g_strdup(MACHINE_GET_CLASS(qdev_get_machine())->name);
}

void handshake_profile_collect(HandshakeProfile *profile)
{
    handshake_profile_identify(profile);
    profile->page_size = qemu_target_page_size();
    profile->host_page_size = qemu_real_host_page_size();
    if (qemu_uuid_set) {
        profile->uuid = qemu_uuid_unparse_strdup(&qemu_uuid);
    }
    profile->name = g_strdup(qemu_get_vm_name());
    profile->stream = collect_stream();
    profile->blockers = collect_blockers();
    collect_parts(profile);
}
