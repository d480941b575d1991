/*
 * The sections that a migration stream may have
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef QEMU_MIGRATION_SAVEVM_SECTIONS_H
#define QEMU_MIGRATION_SAVEVM_SECTIONS_H

#include "migration/register.h"

/* What has been registered with savevm, either by @ops or by @vmsd */
typedef struct SaveVMSection {
    const char *idstr;
    uint32_t instance_id;
    int version_id;
    const SaveVMHandlers *ops;
    const VMStateDescription *vmsd;
    void *opaque;                   /* for @ops and @vmsd */
} SaveVMSection;

typedef void SaveVMSectionFunc(const SaveVMSection *section, void *opaque);

/**
 * qemu_savevm_foreach_section: look at all sections, in the order of the stream
 * @func: called for each; it must neither add nor remove any
 * @opaque: for @func
 *
 * Called with the BQL held.
 */
void qemu_savevm_foreach_section(SaveVMSectionFunc *func, void *opaque);

/**
 * qemu_savevm_resolve_section: find the section that loads an incoming one
 * @idstr: the name in the stream; set to the one here, which an alias or a
 *         former name may stand for
 * @instance_id: the instance in the stream; set to the one here
 *
 * Called with the BQL held.
 *
 * Returns: false if there is none
 */
bool qemu_savevm_resolve_section(const char **idstr, uint32_t *instance_id);

#endif
