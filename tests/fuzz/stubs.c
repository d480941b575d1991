/*
 * Migration handshake: QEMU without a machine, for the fuzz targets
 *
 * Settings are real (handshake-settings.c and QEMU's own options.c).  What is
 * below them is not: one machine that never runs, a host that can do all.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "exec/ramlist.h"
#include "exec/target_page.h"
#include "hw/qdev-properties-system.h"
#include "hw/qdev-properties.h"
#include "migration/colo.h"
#include "migration/cpr.h"
#include "migration/handshake.h"
#include "migration/misc.h"
#include "qapi/error.h"
#include "qapi/util.h"
#include "qemu/units.h"
#include "qobject/qdict.h"
#include "system/kvm.h"
#include "system/runstate.h"
#include "system/system.h"
#include "../migration/handshake-profile.h"
#include "../migration/handshake-settings.h"
#include "../migration/migration.h"
#include "../migration/multifd.h"
#include "../migration/options.h"
#include "../migration/postcopy-ram.h"
#include "../migration/ram.h"
#include "../migration/savevm-sections.h"
#include "stubs.h"

struct Stubs stubs;

/* QEMU has one reference to it, and keeps it for as long as it runs */
static MigrationState outgoing = { .parent_obj.parent_obj.ref = 1 };
static MigrationIncomingState incoming;
static bool start_capabilities[MIGRATION_CAPABILITY__MAX];
static uint8_t start_channels;
static MultiFDCompression start_compression;

/* The profile of a small 'pc' */
static const struct {
    const char *name;
    uint32_t version;
    uint32_t minimum;
    uint32_t instance;
    bool conditional;
    bool idle;
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
    { "dirty-bitmap", 1, 0, .conditional = true, .idle = true },
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

void handshake_profile_identify(HandshakeProfile *profile)
{
    profile->qemu_version = g_strdup("10.0.13");
    profile->arch = g_strdup("x86_64");
    profile->machine = g_strdup(stubs.other_machine ? "pc-q35-10.0"
                                                    : "pc-i440fx-10.0");
}

static QDict *stream_properties(void)
{
    static const char *const names[] = {
        "send-configuration", "send-section-footer", "send-switchover-start",
        "store-global-state", "multifd-flush-after-each-section",
        "multifd-clean-tls-termination", "x-preempt-pre-7-2", "suppress-vmdesc"
    };
    QDict *stream = qdict_new();

    for (int i = 0; i < ARRAY_SIZE(names); i++) {
        qdict_put_bool(stream, names[i], i < 4 || i == 5);
    }
    return stream;
}

void handshake_profile_collect(HandshakeProfile *profile)
{
    handshake_profile_identify(profile);
    profile->page_size = 4 * KiB;
    profile->host_page_size = 4 * KiB;
    profile->stream = stream_properties();
    profile->sections = handshake_sections_new();
    for (int i = 0; i < (stubs.small_machine ? 2 : ARRAY_SIZE(sections)); i++) {
        HandshakeSection *to = handshake_sections_add(profile->sections,
                                                      sections[i].name);

        to->instance = sections[i].instance;
        to->version = sections[i].version;
        to->minimum = sections[i].minimum;
        to->conditional = sections[i].conditional;
        to->idle = sections[i].idle;
    }
    profile->ram_blocks = handshake_ram_blocks_new();
    for (int i = 0; i < (stubs.small_machine ? 1 : ARRAY_SIZE(ram_blocks));
         i++) {
        HandshakeRAMBlock *to = handshake_ram_blocks_add(profile->ram_blocks,
                                                         ram_blocks[i].name);

        to->size = ram_blocks[i].size;
        to->resizeable = ram_blocks[i].max_size;
        to->max_size = ram_blocks[i].max_size ?: to->size;
        to->page_size = 4 * KiB;
        to->shared_file = to->has_address = ram_blocks[i].shared_file;
    }
    if (stubs.other_machine) {
        profile->uuid = g_strdup("6a2f1f0e-52c3-4b8e-9d0c-1d3f5a7b9c11");
        QAPI_LIST_PREPEND(profile->unmigratable, g_strdup("ivshmem"));
    }
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
    handshake_settings_forget_host();
    if (!parameters->tls_creds) {
        migrate_params_init(parameters);
    }
    parameters->multifd_channels = 2;
    parameters->multifd_compression = MULTIFD_COMPRESSION_NONE;
    memset(outgoing.capabilities, 0, sizeof(outgoing.capabilities));
    outgoing.capabilities[MIGRATION_CAPABILITY_EVENTS] = true;
    stubs_set_start();
}

strList *stubs_capabilities(void)
{
    strList *names = NULL;
    strList **tail = &names;

    for (int i = 0; i < MIGRATION_CAPABILITY__MAX; i++) {
        if (outgoing.capabilities[i]) {
            QAPI_LIST_APPEND(tail, g_strdup(MigrationCapability_str(i)));
        }
    }
    return names;
}

void stubs_set_start(void)
{
    memcpy(start_capabilities, outgoing.capabilities,
           sizeof(start_capabilities));
    start_channels = outgoing.parameters.multifd_channels;
    start_compression = outgoing.parameters.multifd_compression;
}

void stubs_check_settings(void)
{
    g_assert(!memcmp(start_capabilities, outgoing.capabilities,
                     sizeof(start_capabilities)));
    g_assert_cmpint(start_channels, ==, outgoing.parameters.multifd_channels);
    g_assert_cmpint(start_compression, ==,
                    outgoing.parameters.multifd_compression);
}

void stubs_set_capability(unsigned capability, bool on)
{
    const char *name;

    capability %= MIGRATION_CAPABILITY__MAX;
    name = MigrationCapability_str(capability);
    if (!handshake_settings_taken(name)) {
        outgoing.capabilities[capability] = on;
        start_capabilities[capability] = on;
    }
}

void stubs_set_multifd_channels(uint8_t count)
{
    if (count && !handshake_settings_taken("multifd-channels")) {
        outgoing.parameters.multifd_channels = count;
        start_channels = count;
    }
}

MigrationState *migrate_get_current(void)
{
    return &outgoing;
}

MigrationIncomingState *migration_incoming_get_current(void)
{
    return &incoming;
}

bool migration_handshake_listening(void)
{
    return stubs.incoming;
}

bool migration_handshake_may_set(const char *name, Error **errp)
{
    return !handshake_settings_taken(name);
}

bool migration_handshake_set_capability_later(MigrationCapability capability,
                                              bool state)
{
    return false;
}

void migration_handshake_set_multifd_later(bool *has_channels,
                                           uint8_t channels,
                                           bool *has_compression,
                                           MultiFDCompression compression)
{
}

bool runstate_check(RunState state)
{
    return state == (stubs.incoming ? RUN_STATE_INMIGRATE : RUN_STATE_RUNNING);
}

static int send_setup(MultiFDSendParams *p, Error **errp)
{
    return 0;
}

static void send_cleanup(MultiFDSendParams *p, Error **errp)
{
}

static int recv_setup(MultiFDRecvParams *p, Error **errp)
{
    return 0;
}

static int recv_setup_fails(MultiFDRecvParams *p, Error **errp)
{
    error_setg(errp, "no such hardware");
    return -1;
}

static void recv_cleanup(MultiFDRecvParams *p)
{
}

const MultiFDMethods *multifd_methods(MultiFDCompression method)
{
    static const MultiFDMethods works = {
        .send_setup = send_setup,
        .send_cleanup = send_cleanup,
        .recv_setup = recv_setup,
        .recv_cleanup = recv_cleanup,
    };
    static const MultiFDMethods fails = {
        .send_setup = send_setup,
        .send_cleanup = send_cleanup,
        .recv_setup = recv_setup_fails,
        .recv_cleanup = recv_cleanup,
    };

    return method == MULTIFD_COMPRESSION_ZLIB ? &fails : &works;
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
