/*
 * What a local APIC has promised its guest
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef HW_INTC_APIC_PROMISES_H
#define HW_INTC_APIC_PROMISES_H

#include "migration/promises.h"

/**
 * apic_promises: a hook for the state of a local APIC
 * @p: the promises of a section
 * @opaque: the APIC
 *
 * A guest that has no i8259 has programmed none, nor masked its input of the
 * APIC.  One that it meets elsewhere sends vectors that are exceptions, once
 * the firmware has given way to somebody who uses paging.
 */
void apic_promises(VMStatePromises *p, void *opaque);

#endif
