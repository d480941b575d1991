/*
 * What a POWER CPU has promised its guest
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef TARGET_PPC_CPU_PROMISES_H
#define TARGET_PPC_CPU_PROMISES_H

#include "migration/promises.h"

/**
 * ppc_cpu_promises: a hook for the state of a POWER CPU
 * @p: the promises of a section
 * @opaque: the CPU
 *
 * The model that it works as.
 */
void ppc_cpu_promises(VMStatePromises *p, void *opaque);

#endif
