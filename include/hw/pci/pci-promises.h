/*
 * What a PCI device has promised its guest
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef HW_PCI_PROMISES_H
#define HW_PCI_PROMISES_H

#include "migration/promises.h"

/**
 * pci_config_promises: a hook for whoever loads a PCI configuration
 * @pv: PCIDevice.config
 *
 * What get_pci_config_device() compares, bit by bit.
 */
void pci_config_promises(VMStatePromises *p, void *pv, size_t size,
                         const VMStateField *field);

#endif
