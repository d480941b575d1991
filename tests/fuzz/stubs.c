/*
 * Migration handshake: QEMU without a machine, for the fuzz targets
 *
 * Settings are real (settings.c and QEMU's own options.c).  What is around them
 * is not: one machine that never runs, a host that can do all, and no migration
 * behind the handshake.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include <glib/gprintf.h>
#include "exec/target_page.h"
#include "io/channel-socket.h"
#include "io/task.h"
#include "migration/channel.h"
#include "migration/colo.h"
#include "migration/cpr.h"
#include "migration/handshake.h"
#include "migration/misc.h"
#include "migration/multifd.h"
#include "migration/options.h"
#include "migration/postcopy-ram.h"
#include "migration/qemu-file.h"
#include "migration/ram.h"
#include "migration/savevm.h"
#include "migration/yank_functions.h"
#include "monitor/monitor.h"
#include "qapi/error.h"
#include "qapi/util.h"
#include "qemu/error-report.h"
#include "qemu/units.h"
#include "qemu/yank.h"
/* Where they are from QEMU 11.0 on, and where they were */
#if __has_include("system/ramlist.h")
#define SINCE_11_0
#include "hw/core/qdev-properties-system.h"
#include "hw/core/qdev-properties.h"
#include "system/ramlist.h"
#else
#include "exec/ramlist.h"
#include "hw/qdev-properties-system.h"
#include "hw/qdev-properties.h"
#endif
#include "system/kvm.h"
#include "system/runstate.h"
#include "system/system.h"
#include "../../migration/handshake/conversation.h"
#include "../../migration/handshake/machine.h"
#include "../../migration/handshake/promises.h"
#include "../../migration/handshake/settings.h"
#include "fuzz.h"
#include "stubs.h"

/* The last type of a message on the return path that is QEMU's own */
#define RP_TYPE_MAX     7

struct Stubs stubs;

/* QEMU has one reference to it, and keeps it for as long as it runs */
static MigrationState outgoing = { .parent_obj.parent_obj.ref = 1 };
static MigrationIncomingState incoming;
static bool own_capabilities[MIGRATION_CAPABILITY__MAX];
static uint8_t own_channels;
static MultiFDCompression own_compression;

/* The profile of a small 'pc' */
static const struct {
    const char *name;
    uint32_t version;
    uint32_t minimum;
    uint32_t instance;
    bool conditional;
} sections[] = {
    { "timer", 2, 1 },
    { "ram", 4, 4 },
    { "cpu_common", 1, 1 },
    { "cpu", 12, 11 },
    { "kvm-tpr-opt", 1, 1 },
    { "apic", 3, 3 },
    { "0000:00:00.0/I440FX", 3, 3 },
    { "PCIHost", 1, 1, .conditional = true },
    { "PCIBUS", 1, 1 },
    { "fw_cfg", 2, 1 },
    { "dma", 1, 1, 0 },
    { "dma", 1, 1, 1 },
    { "mc146818rtc", 3, 1 },
    { "0000:00:01.1/ide", 3, 0 },
    { "i2c_bus", 1, 1 },
    { "0000:00:01.3/piix4_pm", 3, 3 },
    { "0000:00:01.0/PIIX3", 3, 2 },
    { "i8259", 1, 1, 0 },
    { "i8259", 1, 1, 1 },
    { "ioapic", 3, 1 },
    { "hpet", 2, 1 },
    { "i8254", 3, 2 },
    { "pcspk", 1, 1, .conditional = true },
    { "serial", 3, 2 },
    { "fdc", 2, 2 },
    { "ps2kbd", 3, 2 },
    { "ps2mouse", 2, 2 },
    { "pckbd", 3, 3 },
    { "vmmouse", 0, 0 },
    { "port92", 1, 1 },
    { "acpi_build", 1, 1 },
    { "globalstate", 1, 1, .conditional = true },
    { "dirty-bitmap", 1, 0, .conditional = true },
};

static const struct {
    const char *name;
    uint64_t size;
    uint64_t max_size;
    bool shared_file;
} ram_blocks[] = {
    { "pc.ram", 16 * MiB },
    { "/rom@etc/acpi/tables", 128 * KiB, 2 * MiB },
    { "pc.bios", 256 * KiB },
    { "pc.rom", 128 * KiB },
    { "/rom@etc/table-loader", 4 * KiB, 64 * KiB },
    { "/rom@etc/acpi/rsdp", 4 * KiB, 4 * KiB },
    { "0000:00:02.0/shared", 64 * KiB, .shared_file = true },
};

static void profile_identify(MigrationProfile *profile)
{
    profile->qemu_version = g_strdup("10.0.13");
    profile->arch = g_strdup("x86_64");
    profile->machine = g_strdup(stubs.other_machine ? "pc-q35-10.0"
                                                    : "pc-i440fx-10.0");
}

static MigrationProfileStream *profile_stream(void)
{
    MigrationProfileStream *stream = g_new0(MigrationProfileStream, 1);

    stream->has_send_configuration = stream->send_configuration = true;
    stream->has_send_section_footer = stream->send_section_footer = true;
    stream->has_send_switchover_start = stream->send_switchover_start = true;
    stream->has_store_global_state = stream->store_global_state = true;
    stream->has_multifd_clean_tls_termination = true;
    stream->multifd_clean_tls_termination = true;
    stream->has_multifd_flush_after_each_section = true;
    stream->has_x_preempt_pre_7_2 = true;
    stream->has_suppress_vmdesc = true;
    return stream;
}

static MigrationProfileSection *profile_section(int i,
                                                MigrationHandshakeRole role)
{
    MigrationProfileSection *to = g_new0(MigrationProfileSection, 1);

    to->name = g_strdup(sections[i].name);
    to->has_instances = sections[i].instance;
    if (sections[i].instance) {
        QAPI_LIST_PREPEND(to->instances, sections[i].instance);
    }
    to->version = sections[i].version;
    to->has_minimum_version = role == MIGRATION_HANDSHAKE_ROLE_DESTINATION;
    to->minimum_version = to->has_minimum_version ? sections[i].minimum : 0;
    to->has_conditional = to->conditional = sections[i].conditional;
    return to;
}

static MigrationProfileRAMBlock *profile_ram_block(int i)
{
    MigrationProfileRAMBlock *to = g_new0(MigrationProfileRAMBlock, 1);

    to->name = g_strdup(ram_blocks[i].name);
    to->size = ram_blocks[i].size;
    to->has_resizeable = to->resizeable = ram_blocks[i].max_size;
    to->has_max_size = to->resizeable;
    to->max_size = ram_blocks[i].max_size;
    to->has_page_size = true;
    to->page_size = 4 * KiB;
    to->has_shared_file = to->shared_file = ram_blocks[i].shared_file;
    to->has_address = to->shared_file;
    return to;
}

static MigrationProfileBitmap *profile_bitmap(const char *node,
                                              const char *name)
{
    MigrationProfileBitmap *to = g_new0(MigrationProfileBitmap, 1);

    to->node = g_strdup(node);
    to->name = g_strdup(name);
    return to;
}

static void limits_free(void *opaque)
{
    GPtrArray *limits = opaque;

    for (guint i = 0; i < limits->len; i++) {
        HandshakeLimit *limit = g_ptr_array_index(limits, i);

        g_clear_pointer(&limit->set, g_hash_table_unref);
        g_clear_pointer(&limit->bytes, g_byte_array_unref);
        g_clear_pointer(&limit->mask, g_byte_array_unref);
        g_clear_pointer(&limit->registers, g_array_unref);
        g_free(limit);
    }
    g_ptr_array_unref(limits);
}

static HandshakeLimit *limits_add(GPtrArray *limits, const char *name,
                                  const char *item, HandshakeRule rule)
{
    HandshakeLimit *limit = g_new0(HandshakeLimit, 1);

    limit->name = name;
    limit->item = (char *)item;
    limit->rule = rule;
    limit->number = 3;
    limit->promised = rule != HANDSHAKE_RULE_TEXT;
    g_ptr_array_add(limits, limit);
    return limit;
}

static char *register_text(void *opaque, uint64_t number)
{
    return g_strdup_printf("register %" PRIu64, number);
}

/* What each section could keep: one of each kind */
static GPtrArray *section_limits(void)
{
    static const uint64_t words[2] = { 0x130000054 };
    static const uint8_t mask[64] = { 0xff, 0xff, 0x10, 0, 0xff };
    static const MigrationRegister registers[] = {
        { 1, 0, true }, { 2 }, { 0x41, 7, true },
    };
    GPtrArray *limits = g_ptr_array_new();
    HandshakeLimit *limit;

    limits_add(limits, "counts", "devs", HANDSHAKE_RULE_EQUAL);
    limits_add(limits, "virtio-queues", NULL, HANDSHAKE_RULE_AT_MOST);
    limits_add(limits, "vnet-hdr", NULL, HANDSHAKE_RULE_FLAG)->number = 0;
    limits_add(limits, "no-pic", NULL, HANDSHAKE_RULE_FLAG)->promised = false;
    limits_add(limits, "device-type", NULL, HANDSHAKE_RULE_TEXT);
    limit = limits_add(limits, "cpu-model", NULL, HANDSHAKE_RULE_TEXT);
    limit->text = (char *)"max-x86_64-cpu";
    limit->promised = true;
    limits_add(limits, "cpu", "family", HANDSHAKE_RULE_TEXT)->text =
        (char *)"6";
    limit = limits_add(limits, "cpu-features", NULL, HANDSHAKE_RULE_SET);
    limit->set = g_hash_table_new(g_str_hash, g_str_equal);
    g_hash_table_insert(limit->set, (char *)"sse", GINT_TO_POINTER(
        HANDSHAKE_MEMBER_HERE | HANDSHAKE_MEMBER_PROMISED));
    g_hash_table_insert(limit->set, (char *)"avx", NULL);
    limit = limits_add(limits, "virtio-features", NULL, HANDSHAKE_RULE_BITS);
    limit->bytes = g_byte_array_append(g_byte_array_new(),
                                       (const uint8_t *)words, sizeof(words));
    limit = limits_add(limits, "pci-config", NULL, HANDSHAKE_RULE_MASKED);
    limit->bytes = g_byte_array_append(g_byte_array_new(), mask, sizeof(mask));
    limit->mask = g_byte_array_append(g_byte_array_new(), mask, sizeof(mask));
    limit = limits_add(limits, "cpu-registers", NULL, HANDSHAKE_RULE_REGISTERS);
    limit->registers = g_array_new(false, false, sizeof(*registers));
    g_array_append_vals(limit->registers, registers, ARRAY_SIZE(registers));
    limit->describe_register = register_text;
    return limits;
}

GHashTable *handshake_limits_new(void)
{
    GHashTable *limits = g_hash_table_new_full(g_str_hash, g_str_equal, g_free,
                                               limits_free);

    for (int i = 0; i < ARRAY_SIZE(sections); i++) {
        g_hash_table_insert(limits,
                            handshake_section_key(sections[i].name,
                                                  sections[i].instance),
                            section_limits());
    }
    return limits;
}

MigrationProfile *handshake_profile_new(MigrationHandshakeRole role)
{
    MigrationProfile *profile = g_new0(MigrationProfile, 1);
    MigrationProfileSectionList **section = &profile->sections;
    MigrationProfileRAMBlockList **block = &profile->ram_blocks;

    profile_identify(profile);
    profile->has_page_size = profile->has_host_page_size = true;
    profile->page_size = profile->host_page_size = 4 * KiB;
    profile->stream = profile_stream();
    profile->has_sections = profile->has_ram_blocks = true;
    for (int i = 0; i < (stubs.small_machine ? 2 : ARRAY_SIZE(sections)); i++) {
        QAPI_LIST_APPEND(section, profile_section(i, role));
    }
    for (int i = 0; i < (stubs.small_machine ? 1 : ARRAY_SIZE(ram_blocks));
         i++) {
        QAPI_LIST_APPEND(block, profile_ram_block(i));
    }
    if (role == MIGRATION_HANDSHAKE_ROLE_DESTINATION) {
        profile->has_bitmaps = true;
        QAPI_LIST_PREPEND(profile->bitmaps, profile_bitmap("disk", NULL));
        QAPI_LIST_PREPEND(profile->bitmaps, profile_bitmap("vda", "b0"));
    }
    if (stubs.other_machine) {
        profile->uuid = g_strdup("6a2f1f0e-52c3-4b8e-9d0c-1d3f5a7b9c11");
        profile->has_unmigratable = true;
        QAPI_LIST_PREPEND(profile->unmigratable, g_strdup("ivshmem"));
    }
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

bool qemu_savevm_resolve_section(const char **idstr, uint32_t *instance_id)
{
    /* A former name, and a section that is no longer read */
    static const char *const aliases[][2] = {
        { "ide", "0000:00:01.1/ide" },
        { "gone", "gone" },
    };

    for (int i = 0; i < ARRAY_SIZE(aliases); i++) {
        if (!strcmp(*idstr, aliases[i][0])) {
            *idstr = aliases[i][1];
            return true;
        }
    }
    return false;
}

void stubs_reset(void)
{
    MigrationParameters *parameters = &outgoing.parameters;

    stubs = (struct Stubs) { 0 };
    if (!outgoing.handshake) {
        qemu_mutex_init(&outgoing.qemu_file_lock);
        qemu_mutex_init(&outgoing.error_mutex);
        migrate_params_init(parameters);
        migration_handshake_init(&outgoing);
    }
    qapi_free_MigrationHandshakeInfo(outgoing.handshake->info);
    memset(outgoing.handshake, 0, sizeof(*outgoing.handshake));
    outgoing.state = MIGRATION_STATUS_NONE;
    incoming.state = MIGRATION_STATUS_NONE;
    stubs_set_tls(false);
    parameters->multifd_channels = 2;
    parameters->multifd_compression = MULTIFD_COMPRESSION_NONE;
    memset(outgoing.capabilities, 0, sizeof(outgoing.capabilities));
    outgoing.capabilities[MIGRATION_CAPABILITY_EVENTS] = true;
    memcpy(own_capabilities, outgoing.capabilities, sizeof(own_capabilities));
    own_channels = parameters->multifd_channels;
    own_compression = parameters->multifd_compression;
}

void stubs_check_idle(void)
{
    const MigrationHandshake *h = outgoing.handshake;

    g_assert(!h->source && !h->in_session && !h->end && !h->places);
    g_assert_false(outgoing.negotiated.active);
    g_assert_false(handshake_destination_is_busy(incoming.handshake));
    g_assert_cmpuint(OBJECT(&outgoing)->ref, ==, 1);
    g_assert(!memcmp(own_capabilities, outgoing.capabilities,
                     sizeof(own_capabilities)));
    g_assert_cmpint(own_channels, ==, outgoing.parameters.multifd_channels);
    g_assert_cmpint(own_compression, ==,
                    outgoing.parameters.multifd_compression);
}

void stubs_set_capability(unsigned capability, bool on)
{
    capability %= MIGRATION_CAPABILITY__MAX;
    outgoing.capabilities[capability] = on;
    own_capabilities[capability] = on;
}

void stubs_set_multifd_channels(uint8_t count)
{
    if (count) {
        outgoing.parameters.multifd_channels = count;
        own_channels = count;
    }
}

void stubs_set_tls(bool on)
{
    const char *creds = on ? "tls0" : "";
#ifdef SINCE_11_0
    StrOrNull *set = g_new0(StrOrNull, 1);

    set->type = QTYPE_QSTRING;
    set->u.s = g_strdup(creds);
    qapi_free_StrOrNull(outgoing.parameters.tls_creds);
#else
    char *set = g_strdup(creds);

    g_free(outgoing.parameters.tls_creds);
#endif
    outgoing.parameters.tls_creds = set;
}

void stubs_read_return_path(QEMUFile *rp)
{
    unsigned frames = 0;

    for (;;) {
        g_auto(FuzzError) err = NULL;
        uint16_t type = qemu_get_be16(rp);
        uint16_t len = qemu_get_be16(rp);

        if (qemu_file_get_error(rp)) {
            break;
        }
        if (type == 0 || type > RP_TYPE_MAX) {
            bool skipped = migration_handshake_read_frame(rp, type, len, &err);

            g_assert(skipped == !err);
            if (err) {
                break;
            }
            g_assert(type == 0 && outgoing.handshake->end);
            /* With one LOADED and one LAST WORD */
            g_assert_cmpuint(++frames, <=, HANDSHAKE_UNKNOWN_MAX + 2);
        } else {
            g_autofree uint8_t *buf = g_malloc(len);

            qemu_get_buffer(rp, buf, len);
        }
    }
    migration_handshake_return_path_ended(&outgoing, NULL, NULL);
}

MigrationState *migrate_get_current(void)
{
    return &outgoing;
}

MigrationIncomingState *migration_incoming_get_current(void)
{
    return &incoming;
}

void migration_outgoing_setup(QIOChannel *ioc)
{
    outgoing.to_dst_file = qemu_file_new_output(ioc);
}

void migration_start_outgoing(MigrationState *s)
{
    stubs.connected(s, NULL);
}

void migration_connect_error_propagate(MigrationState *s, Error *error)
{
    stubs.connected(s, error);
    error_free(error);
}

bool migration_incoming_setup(QIOChannel *ioc, uint8_t channel, Error **errp)
{
    g_assert_cmpint(channel, ==, CH_MAIN);
    stubs.start(qemu_file_new_input(ioc));
    return true;
}

void migration_start_incoming(void)
{
    /* stubs.start() has */
}

int multifd_recv_setup(Error **errp)
{
    return stubs.recv_setup(errp) ? 0 : -1;
}

void multifd_recv_attach(QIOChannel *ioc, uint8_t id)
{
    stubs.recv_attach(ioc, id);
}

void postcopy_preempt_new_channel(MigrationIncomingState *mis, QEMUFile *file)
{
    stubs.preempt(file);
}

/* Nobody reads */
bool migrate_send_rp_at_once(MigrationIncomingState *mis, QIOChannel *ioc,
                             const void *buf, size_t len)
{
    return false;
}

/* The linker puts it in the place of the one that resolves and connects */
void __wrap_qio_channel_socket_connect_async(QIOChannelSocket *ioc,
                                             SocketAddress *addr,
                                             QIOTaskFunc callback,
                                             gpointer opaque,
                                             GDestroyNotify destroy,
                                             GMainContext *context);

void __wrap_qio_channel_socket_connect_async(QIOChannelSocket *ioc,
                                             SocketAddress *addr,
                                             QIOTaskFunc callback,
                                             gpointer opaque,
                                             GDestroyNotify destroy,
                                             GMainContext *context)
{
    stubs.connect(ioc, qio_task_new(OBJECT(ioc), callback, opaque, destroy));
}

/* Nobody wants to read of each connection whose TLS has failed */
int __wrap_monitor_vprintf(Monitor *mon, const char *fmt, va_list ap);

int __wrap_monitor_vprintf(Monitor *mon, const char *fmt, va_list ap)
{
    return migrate_tls() ? 0 : -1;
}

#ifndef SINCE_11_0
int error_vprintf(const char *fmt, va_list ap)
{
    return migrate_tls() ? 0 : vfprintf(stderr, fmt, ap);
}
#endif

int monitor_printf(Monitor *mon, const char *fmt, ...)
{
    g_autofree char *text = NULL;
    va_list ap;
    int len;

    va_start(ap, fmt);
    len = g_vasprintf(&text, fmt, ap);
    va_end(ap);
    return len;
}

bool migration_may_start(Error **errp)
{
    return true;
}

bool runstate_check(RunState state)
{
    return state == (stubs.incoming ? RUN_STATE_INMIGRATE : RUN_STATE_RUNNING);
}

bool multifd_probe(MultiFDCompression method, bool receive, Error **errp)
{
    if (method == MULTIFD_COMPRESSION_ZLIB && receive) {
        error_setg(errp, "no such hardware");
        return false;
    }
    return true;
}

bool postcopy_ram_supported_by_host(MigrationIncomingState *mis, Error **errp)
{
    if (stubs.no_postcopy) {
        error_setg(errp, "no userfaultfd");
    }
    return !stubs.no_postcopy;
}

RAMList ram_list;
MlockState mlock_state;

bool should_mlock(MlockState state)
{
    return false;
}

bool is_mlock_on_fault(MlockState state)
{
    return false;
}

int os_mlock(bool on_fault)
{
    return 0;
}

const TargetPageBits target_page = {
    .decided = true,
    .bits = 12,
    .mask = -1u << 12,
};

bool kvm_allowed;

bool kvm_dirty_ring_enabled(void)
{
    return false;
}

MigMode cpr_get_incoming_mode(void)
{
    return MIG_MODE_NORMAL;
}

bool migration_is_running(void)
{
    return false;
}

bool migration_in_postcopy(void)
{
    return false;
}

PostcopyState postcopy_state_get(void)
{
    return POSTCOPY_INCOMING_NONE;
}

bool migrate_has_error(MigrationState *s)
{
    return s->error;
}

bool migration_in_colo_state(void)
{
    return false;
}

void colo_checkpoint_delay_set(void)
{
}

int xbzrle_cache_resize(uint64_t new_size, Error **errp)
{
    return 0;
}

bool ram_write_tracking_available(void)
{
    return false;
}

bool ram_write_tracking_compatible(void)
{
    return false;
}

bool check_dirty_bitmap_mig_alias_map(const BitmapMigrationNodeAliasList *bbm,
                                      Error **errp)
{
    return true;
}

/* No property is ever looked at */
const PropertyInfo qdev_prop_bool;
const PropertyInfo qdev_prop_uint8;
const PropertyInfo qdev_prop_uint32;
const PropertyInfo qdev_prop_uint64;
const PropertyInfo qdev_prop_size;
const PropertyInfo qdev_prop_string;
const PropertyInfo qdev_prop_mig_mode;
const PropertyInfo qdev_prop_multifd_compression;
const PropertyInfo qdev_prop_zero_page_detection;

void *object_field_prop_ptr(Object *obj, const Property *prop)
{
    g_assert_not_reached();
}
