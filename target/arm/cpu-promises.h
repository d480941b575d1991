/*
 * What an Arm CPU has promised its guest
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef TARGET_ARM_CPU_PROMISES_H
#define TARGET_ARM_CPU_PROMISES_H

#include "migration/promises.h"

/**
 * arm_cpu_promises: a hook for the state of an Arm CPU
 * @p: the promises of a section
 * @opaque: the CPU
 *
 * Its system registers.
 */
void arm_cpu_promises(VMStatePromises *p, void *opaque);

#endif
