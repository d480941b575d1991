/*
 * What a PCI device has promised its guest
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "hw/pci/msi.h"
#include "hw/pci/pci_bridge.h"
#include "hw/pci/pci_device.h"
#include "hw/pci/pci-promises.h"
#include "hw/pci/pcie.h"

typedef struct CapabilityName {
    unsigned id;
    const char *name;
} CapabilityName;

static const CapabilityName capabilities[] = {
    { PCI_CAP_ID_PM, "power management capability" },
    { PCI_CAP_ID_VPD, "vital product data capability" },
    { PCI_CAP_ID_SLOTID, "slot identification capability" },
    { PCI_CAP_ID_MSI, "MSI capability" },
    { PCI_CAP_ID_PCIX, "PCI-X capability" },
    { PCI_CAP_ID_VNDR, "vendor-specific capability" },
    { PCI_CAP_ID_SHPC, "hot-plug controller capability" },
    { PCI_CAP_ID_SSVID, "subsystem capability" },
    { PCI_CAP_ID_EXP, "PCI Express capability" },
    { PCI_CAP_ID_MSIX, "MSI-X capability" },
    { PCI_CAP_ID_SATA, "SATA capability" },
    { PCI_CAP_ID_AF, "advanced features capability" },
};

static const CapabilityName extended[] = {
    { PCI_EXT_CAP_ID_ERR, "AER capability" },
    { PCI_EXT_CAP_ID_DSN, "serial number capability" },
    { PCI_EXT_CAP_ID_ACS, "ACS capability" },
    { PCI_EXT_CAP_ID_ARI, "ARI capability" },
    { PCI_EXT_CAP_ID_ATS, "ATS capability" },
    { PCI_EXT_CAP_ID_SRIOV, "SR-IOV capability" },
    { PCI_EXT_CAP_ID_PRI, "PRI capability" },
    { PCI_EXT_CAP_ID_PASID, "PASID capability" },
    { PCI_EXT_CAP_ID_DPC, "DPC capability" },
};

static char *capability_text(const CapabilityName *names, int n, unsigned id)
{
    for (int i = 0; i < n; i++) {
        if (names[i].id == id) {
            return g_strdup(names[i].name);
        }
    }
    return g_strdup_printf("capability 0x%x", id);
}

/* Drivers look at it, and loaders do not */
static bool is_subsystem(PCIDevice *d, unsigned offset)
{
    return offset >= PCI_SUBSYSTEM_VENDOR_ID &&
           offset < PCI_SUBSYSTEM_ID + 2 && !IS_PCI_BRIDGE(d);
}

/* Capabilities have no common length: the last one that begins before it */
static char *pci_offset_text(void *opaque, unsigned offset)
{
    PCIDevice *d = opaque;
    uint16_t at, found = 0;
    int left = PCIE_CONFIG_SPACE_SIZE / 4;      /* should a list be a circle */

    if (offset < PCI_CONFIG_HEADER_SIZE) {
        return g_strdup(is_subsystem(d, offset) ? "subsystem" : "header");
    }
    if (offset < PCI_CONFIG_SPACE_SIZE) {
        for (at = d->config[PCI_CAPABILITY_LIST]; at && left--;
             at = d->config[at + PCI_CAP_LIST_NEXT]) {
            at = MIN(at & ~3, PCI_CONFIG_SPACE_SIZE - 4);
            found = at <= offset && at > found ? at : found;
        }
        return found ? capability_text(capabilities, ARRAY_SIZE(capabilities),
                                       d->config[found + PCI_CAP_LIST_ID])
                     : g_strdup("no capability");
    }
    if (!pci_is_express(d)) {
        return g_strdup("no capability");
    }
    for (at = PCI_CONFIG_SPACE_SIZE; at && left--;
         at = PCI_EXT_CAP_NEXT(pci_get_long(d->config + at))) {
        at = MIN(at & ~3, PCIE_CONFIG_SPACE_SIZE - 4);
        found = at <= offset && at > found ? at : found;
    }
    return capability_text(extended, ARRAY_SIZE(extended),
                           PCI_EXT_CAP_ID(pci_get_long(d->config + found)));
}

/*
 * What the device itself changes, at any time, and its guest cannot: the loader
 * compares that, too, but a moment later it may be alike.
 */
static void pci_mark_status(PCIDevice *d, uint8_t *bits)
{
    uint16_t at = d->msi_cap;
    uint16_t flags = at ? pci_get_word(d->config + at + PCI_MSI_FLAGS) : 0;

    if (flags & PCI_MSI_FLAGS_MASKBIT) {
        at += flags & PCI_MSI_FLAGS_64BIT ? PCI_MSI_PENDING_64
                                          : PCI_MSI_PENDING_32;
        pci_set_long(bits + at, UINT32_MAX);
    }
    if (!pci_is_express(d)) {
        return;
    }
    pci_set_word(bits + d->exp.exp_cap + PCI_EXP_SLTSTA, UINT16_MAX);
    at = d->exp.aer_cap;
    if (at) {
        bits[at + PCI_ERR_CAP] = PCI_ERR_CAP_FEP(0xff);
        memset(bits + at + PCI_ERR_HEADER_LOG, 0xff, 16);
        if (pcie_cap_get_type(d) == PCI_EXP_TYPE_ROOT_PORT) {
            /* And where the errors come from, which is right behind */
            memset(bits + at + PCI_ERR_ROOT_STATUS, 0xff, 8);
        }
    }
}

void pci_config_promises(VMStatePromises *p, void *pv, size_t size,
                         const VMStateField *field)
{
    PCIDevice *d = container_of(pv, PCIDevice, config);
    g_autofree uint8_t *value = g_malloc0(pci_config_size(d));
    g_autofree uint8_t *mask = g_malloc0(pci_config_size(d));
    g_autofree uint8_t *status = g_malloc0(pci_config_size(d));

    size = MIN(size, pci_config_size(d));
    pci_mark_status(d, status);
    for (size_t i = 0; i < size; i++) {
        mask[i] = d->cmask[i] & ~d->wmask[i] & ~d->w1cmask[i];
        value[i] = d->config[i] & ~status[i];
        if (i < PCI_CONFIG_HEADER_SIZE && !is_subsystem(d, i)) {
            /* No loader compares a command, or a bridge's windows */
            value[i] &= d->cmask[i];
        }
        status[i] &= mask[i];
        mask[i] &= ~status[i];
    }
    migration_promise_masked(p, "pci-config", MIGRATION_BREACH_LOAD, value,
                             mask, size, pci_offset_text, d);
    for (size_t i = 0; i < size; i++) {
        mask[i] = is_subsystem(d, i) ? 0xff : 0;
    }
    migration_promise_masked(p, "pci-config", MIGRATION_BREACH_CHANGE, value,
                             mask, size, pci_offset_text, d);
    for (size_t i = 0; i < size; i++) {
        value[i] = d->config[i] & status[i];
    }
    migration_promise_masked(p, "pci-status", MIGRATION_BREACH_CHANGE, value,
                             status, size, pci_offset_text, d);
}
