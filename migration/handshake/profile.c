/*
 * Migration handshake: what this machine is
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "qemu-version.h"
#include "exec/cpu-common.h"
#include "exec/target_page.h"
#include "hw/core/cpu.h"
#include "hw/core/sysbus.h"
#include "migration/migration.h"
#include "migration/ram.h"
#include "migration/register.h"
#include "migration/savevm.h"
#include "migration/vmstate.h"
#include "qapi/error.h"
#include "qapi/qapi-visit-migration-handshake.h"
#include "qapi/qobject-input-visitor.h"
#include "qapi/util.h"
#include "qemu/rcu.h"
#include "qemu/uuid.h"
#include "qom/object.h"
#include "system/dma.h"
#include "system/kvm.h"
#include "system/runstate.h"
#include "system/system.h"
#include "machine.h"
#include "promises.h"

/* How deep memory regions may be nested */
#define MAPPED_DEPTH_MAX    16

#define STREAM_PROPERTY(name, member) \
    { name, offsetof(MigrationProfileStream, has_ ## member), \
      offsetof(MigrationProfileStream, member) }

/* They follow from the machine type and -global, not from QMP */
static const struct {
    const char *name;
    size_t has;
    size_t value;
} stream_properties[] = {
    STREAM_PROPERTY("send-configuration", send_configuration),
    STREAM_PROPERTY("send-section-footer", send_section_footer),
    STREAM_PROPERTY("send-switchover-start", send_switchover_start),
    STREAM_PROPERTY("store-global-state", store_global_state),
    STREAM_PROPERTY("multifd-flush-after-each-section",
                    multifd_flush_after_each_section),
    STREAM_PROPERTY("multifd-clean-tls-termination",
                    multifd_clean_tls_termination),
    STREAM_PROPERTY("x-preempt-pre-7-2", x_preempt_pre_7_2),
    STREAM_PROPERTY("suppress-vmdesc", suppress_vmdesc),
    STREAM_PROPERTY("switchover-ack-legacy", switchover_ack_legacy),
};

static MigrationProfileStream *profile_stream(void)
{
    Object *const owners[] = {
        OBJECT(migrate_get_current()), qdev_get_machine(),
    };
    MigrationProfileStream *stream = g_new0(MigrationProfileStream, 1);

    for (int i = 0; i < ARRAY_SIZE(stream_properties); i++) {
        const char *name = stream_properties[i].name;

        for (int j = 0; j < ARRAY_SIZE(owners); j++) {
            /* An earlier QEMU lacks it, a later one may have dropped it */
            if (object_property_find(owners[j], name)) {
                *(bool *)((char *)stream + stream_properties[i].has) = true;
                *(bool *)((char *)stream + stream_properties[i].value) =
                    object_property_get_bool(owners[j], name, &error_abort);
            }
        }
    }
    return stream;
}

/* Sections that differ in their instance alone */
typedef struct ProfileGroup {
    MigrationProfileSection *section;
    QDict *promises;                /* as in the section; may be NULL */
    uint32List **tail;              /* of its instances */
} ProfileGroup;

typedef struct ProfileParts {
    MigrationHandshakeRole role;
    MigrationProfile *profile;
    MigrationProfileSectionList **tail;
    GHashTable *groups;             /* the last one of each name */
    GPtrArray *leaving;             /* prefixes of names */
    GHashTable *devices;            /* all on a bus, by DeviceState */
    GArray *memory;                 /* of ProfilePart: all that is mapped */
} ProfileParts;

/* A part of a RAM block in the guest's memory */
typedef struct ProfilePart {
    const RAMBlock *block;
    MigrationProfileMapping at;
} ProfilePart;

/*
 * A device that may be unplugged while a migration runs will be, before any of
 * its state is sent: the primary one of a failover pair.
 */
static int profile_note_device(DeviceState *dev, void *opaque)
{
    ProfileParts *parts = opaque;
    g_autofree char *path = NULL;

    g_hash_table_add(parts->devices, dev);
    if (dev->realized && dev->allow_unplug_during_migration) {
        path = qdev_get_dev_path(dev);
    }
    if (path) {
        g_ptr_array_add(parts->leaving, g_strconcat(path, "/", NULL));
    }
    return 0;
}

static bool profile_is_leaving(const ProfileParts *parts, const char *name)
{
    for (guint i = 0; i < parts->leaving->len; i++) {
        if (g_str_has_prefix(name, g_ptr_array_index(parts->leaving, i))) {
            return true;
        }
    }
    return false;
}

static bool section_is_unmigratable(const SaveVMSection *section)
{
    return section->vmsd && section->vmsd->unmigratable;
}

static bool section_is_conditional(const SaveVMSection *section)
{
    return section->vmsd ? section->vmsd->needed != NULL
                         : section->ops->is_active != NULL;
}

/* Whether qemu_savevm_state_setup() or vmstate_save() would send it now */
static bool section_is_sent(const SaveVMSection *section)
{
    const SaveVMHandlers *ops = section->ops;

    if (section->vmsd) {
        return !section->vmsd->unmigratable &&
               vmstate_section_needed(section->vmsd, section->opaque);
    }
    return ops->save_state ||
           (ops->save_setup &&
            (!ops->is_active || ops->is_active(section->opaque)));
}

/* As it is in the profile, but for its instances */
static MigrationProfileSection section_describe(const SaveVMSection *from,
                                                MigrationHandshakeRole role)
{
    MigrationProfileSection to = {
        .name = (char *)from->idstr,
        .version = from->version_id,
        .conditional = section_is_conditional(from),
    };

    if (role == MIGRATION_HANDSHAKE_ROLE_DESTINATION) {
        /* Devices may not know yet what they would send */
        to.conditional = to.conditional || !section_is_sent(from);
        if (from->vmsd) {
            to.has_minimum_version = true;
            to.minimum_version = from->vmsd->minimum_version_id;
        } else if (!strcmp(from->idstr, "ram")) {
            /* ram_load() wants its own version; others do not say */
            to.has_minimum_version = true;
            to.minimum_version = from->version_id;
        }
    }
    to.has_conditional = to.conditional;
    return to;
}

/* The type of its device, if it is one's own section */
static const char *section_type(const SaveVMSection *section,
                                GHashTable *devices)
{
    if (!g_hash_table_contains(devices, section->opaque) ||
        qdev_get_vmsd(section->opaque) != section->vmsd) {
        return NULL;
    }
    return object_get_typename(OBJECT(section->opaque));
}

static MigrationPromises *promises_from_dict(const QDict *dict)
{
    Visitor *v = qobject_input_visitor_new(QOBJECT(dict));
    MigrationPromises *promises = NULL;

    /* A name that fails here has no member of its own in the schema */
    visit_type_MigrationPromises(v, NULL, &promises, &error_abort);
    visit_free(v);
    return promises;
}

static ProfileGroup *profile_group(ProfileParts *parts,
                                   const MigrationProfileSection *like,
                                   QDict *promises)
{
    ProfileGroup *group = g_hash_table_lookup(parts->groups, like->name);

    if (!group || group->section->version != like->version ||
        group->section->minimum_version != like->minimum_version ||
        group->section->conditional != like->conditional ||
        !qobject_is_equal(QOBJECT(group->promises), QOBJECT(promises))) {
        group = g_new0(ProfileGroup, 1);
        group->section = g_memdup2(like, sizeof(*like));
        group->section->name = g_strdup(like->name);
        if (promises) {
            group->promises = qobject_ref(promises);
            group->section->promises = promises_from_dict(promises);
        }
        group->tail = &group->section->instances;
        QAPI_LIST_APPEND(parts->tail, group->section);
        g_hash_table_replace(parts->groups, group->section->name, group);
    }
    return group;
}

static void profile_group_free(void *opaque)
{
    ProfileGroup *group = opaque;

    qobject_unref(group->promises);
    g_free(group);
}

static void profile_add_section(const SaveVMSection *section, void *opaque)
{
    ProfileParts *parts = opaque;
    g_autoptr(QDict) promises = NULL;
    MigrationProfileSection like;
    ProfileGroup *group;

    if (profile_is_leaving(parts, section->idstr)) {
        return;
    }
    if (section_is_unmigratable(section)) {
        parts->profile->has_unmigratable = true;
        QAPI_LIST_PREPEND(parts->profile->unmigratable,
                          g_strdup(section->idstr));
    }
    if (parts->role == MIGRATION_HANDSHAKE_ROLE_SOURCE &&
        !section_is_sent(section)) {
        return;
    }
    like = section_describe(section, parts->role);
    /* A destination's own are its limits */
    if (parts->role == MIGRATION_HANDSHAKE_ROLE_SOURCE && section->vmsd) {
        promises = handshake_promises_collect(
            section->vmsd, section->opaque, section->version_id,
            section_type(section, parts->devices));
    }
    group = profile_group(parts, &like, promises);
    QAPI_LIST_APPEND(group->tail, section->instance_id);
    /* 0 alone goes without saying */
    group->section->has_instances = group->section->instances->next ||
                                    section->instance_id;
}

static void profile_add_part(ProfileParts *parts, const RAMBlock *block,
                             uint64_t offset, uint64_t address, uint64_t size)
{
    ProfilePart part = { block, { offset, address, size } };

    g_array_append_val(parts->memory, part);
}

/*
 * Where the guest sees RAM that neither it nor its firmware can move: what has
 * a place of its own, priority 0.  BARs, and what may cover RAM for a time, are
 * laid over that.
 */
static void profile_map(ProfileParts *parts, const MemoryRegion *mr,
                        uint64_t address, uint64_t offset, uint64_t size,
                        int depth)
{
    const MemoryRegion *sub;

    if (!mr->enabled || depth == MAPPED_DEPTH_MAX) {
        return;
    }
    if (mr->alias) {
        profile_map(parts, mr->alias, address, mr->alias_offset + offset, size,
                    depth + 1);
    } else if (mr->ram_block) {
        profile_add_part(parts, mr->ram_block, offset, address, size);
    }
    QTAILQ_FOREACH(sub, &mr->subregions, subregions_link) {
        uint64_t sub_size = memory_region_size((MemoryRegion *)sub);
        uint64_t begin = MAX(sub->addr, offset);

        if (!sub->priority && begin - offset < size &&
            begin - sub->addr < sub_size) {
            profile_map(parts, sub, address + (begin - offset),
                        begin - sub->addr,
                        MIN(size - (begin - offset),
                            sub_size - (begin - sub->addr)), depth + 1);
        }
    }
}

static int profile_part_order(const void *a, const void *b)
{
    const ProfilePart *x = a;
    const ProfilePart *y = b;

    return x->at.offset < y->at.offset ? -1 :
           x->at.offset > y->at.offset ? 1 :
           x->at.address < y->at.address ? -1 : x->at.address > y->at.address;
}

static void profile_add_mapped(const ProfileParts *parts, const RAMBlock *rb,
                               MigrationProfileRAMBlock *to)
{
    MigrationProfileMappingList **tail = &to->mapped;
    int n = 0;

    for (guint i = 0; i < parts->memory->len; i++) {
        const ProfilePart *part = &g_array_index(parts->memory, ProfilePart, i);

        if (part->block == rb && n++ < HANDSHAKE_MAPPED_MAX) {
            QAPI_LIST_APPEND(tail, g_memdup2(&part->at, sizeof(part->at)));
        }
    }
    to->has_mapped = to->mapped != NULL;
}

static MigrationProfileRAMBlock *profile_ram_block(const ProfileParts *parts,
                                                   RAMBlock *rb)
{
    MigrationProfileRAMBlock *to = g_new0(MigrationProfileRAMBlock, 1);

    to->name = g_strdup(qemu_ram_get_idstr(rb));
    to->size = qemu_ram_get_used_length(rb);
    to->max_size = qemu_ram_get_max_length(rb);
    to->has_max_size = to->max_size != to->size;
    to->has_page_size = true;
    to->page_size = qemu_ram_pagesize(rb);
    to->has_resizeable = to->resizeable = rb->flags & RAM_RESIZEABLE;
    /* The list of blocks is sent at the beginning: will it be gone by then? */
    to->has_conditional = to->conditional =
        profile_is_leaving(parts, to->name);
    to->has_shared_file = to->shared_file =
        qemu_ram_is_shared(rb) && qemu_ram_is_named_file(rb);
    to->has_address = to->shared_file;
    to->address = to->shared_file ? rb->mr->addr : 0;
    profile_add_mapped(parts, rb, to);
    return to;
}

static void profile_add_parts(MigrationProfile *profile,
                              MigrationHandshakeRole role)
{
    ProfileParts parts = {
        .role = role,
        .profile = profile,
        .tail = &profile->sections,
        .groups = g_hash_table_new_full(g_str_hash, g_str_equal, NULL,
                                        profile_group_free),
        .leaving = g_ptr_array_new_with_free_func(g_free),
        .devices = g_hash_table_new(NULL, NULL),
        .memory = g_array_new(false, false, sizeof(ProfilePart)),
    };
    MigrationProfileRAMBlockList **tail = &profile->ram_blocks;
    MigrationProfileSectionList *l;
    RAMBlock *rb;

    qbus_walk_children(sysbus_get_default(), profile_note_device, NULL, NULL,
                       NULL, &parts);
    profile_map(&parts, get_system_memory(), 0, 0, UINT64_MAX, 0);
    g_array_sort(parts.memory, profile_part_order);
    qemu_savevm_foreach_section(profile_add_section, &parts);
    for (l = profile->sections; l; l = l->next) {
        if (!l->value->has_instances) {
            g_clear_pointer(&l->value->instances, qapi_free_uint32List);
        }
    }
    profile->has_sections = true;
    WITH_RCU_READ_LOCK_GUARD() {
        RAMBLOCK_FOREACH_MIGRATABLE(rb) {
            QAPI_LIST_APPEND(tail, profile_ram_block(&parts, rb));
        }
    }
    profile->has_ram_blocks = true;
    g_hash_table_unref(parts.groups);
    g_ptr_array_unref(parts.leaving);
    g_hash_table_unref(parts.devices);
    g_array_unref(parts.memory);
}

static int limits_note_device(DeviceState *dev, void *opaque)
{
    g_hash_table_add(opaque, dev);
    return 0;
}

typedef struct LimitParts {
    GHashTable *devices;
    GHashTable *limits;
} LimitParts;

static void limits_add_section(const SaveVMSection *section, void *opaque)
{
    LimitParts *parts = opaque;

    if (section->vmsd && !section->vmsd->unmigratable) {
        g_hash_table_insert(
            parts->limits,
            handshake_section_key(section->idstr, section->instance_id),
            handshake_limits_collect(section->vmsd, section->opaque,
                                     section->version_id,
                                     section_type(section, parts->devices)));
    }
}

GHashTable *handshake_limits_new(void)
{
    LimitParts parts = {
        .devices = g_hash_table_new(NULL, NULL),
        .limits = g_hash_table_new_full(g_str_hash, g_str_equal, g_free,
                                        (GDestroyNotify)g_ptr_array_unref),
    };

    qbus_walk_children(sysbus_get_default(), limits_note_device, NULL, NULL,
                       NULL, parts.devices);
    qemu_savevm_foreach_section(limits_add_section, &parts);
    g_hash_table_unref(parts.devices);
    return parts.limits;
}

/* For a migration that begins there are none; but anybody may ask before */
static void profile_add_blockers(MigrationProfile *profile)
{
    const GSList *l = migration_blockers_of(MIG_MODE_NORMAL);
    strList **tail = &profile->blockers;

    for (; l; l = l->next) {
        QAPI_LIST_APPEND(tail, g_strdup(error_get_pretty(l->data)));
    }
    if (kvm_hwpoisoned_mem()) {
        QAPI_LIST_APPEND(tail, g_strdup("the guest has poisoned memory"));
    }
    profile->has_blockers = profile->blockers != NULL;
}

static void profile_identify(MigrationProfile *profile)
{
    const char *machine = object_get_typename(qdev_get_machine());

    /* As the user has named it, without TYPE_MACHINE_SUFFIX */
    profile->qemu_version = g_strdup(QEMU_VERSION);
    if (*QEMU_PKGVERSION) {
        profile->package = g_strdup(QEMU_PKGVERSION);
    }
    profile->arch = g_strdup(target_name());
    profile->machine = g_strndup(machine, strlen(machine) - strlen("-machine"));
}

MigrationProfile *handshake_profile_new(MigrationHandshakeRole role)
{
    MigrationProfile *profile = g_new0(MigrationProfile, 1);

    profile_identify(profile);
    profile->has_page_size = true;
    profile->page_size = qemu_target_page_size();
    profile->has_host_page_size = true;
    profile->host_page_size = qemu_real_host_page_size();
    if (qemu_uuid_set) {
        profile->uuid = qemu_uuid_unparse_strdup(&qemu_uuid);
    }
    profile->name = g_strdup(qemu_get_vm_name());
    profile->stream = profile_stream();
    profile_add_blockers(profile);
    profile_add_parts(profile, role);
    handshake_profile_add_bitmaps(profile, role);
    return profile;
}

MigrationHandshakePeer *handshake_peer_new(const MigrationProfile *profile)
{
    MigrationHandshakePeer *peer = g_new0(MigrationHandshakePeer, 1);
    g_autoptr(MigrationProfile) local = NULL;

    if (!profile) {
        local = g_new0(MigrationProfile, 1);
        profile_identify(local);
        profile = local;
    }
    peer->qemu_version = handshake_text(profile->qemu_version);
    peer->package = handshake_text(profile->package);
    peer->machine = handshake_text(profile->machine);
    peer->arch = handshake_text(profile->arch);
    return peer;
}
