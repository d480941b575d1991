/*
 * What a CPU has promised its guest
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef HW_CORE_CPU_PROMISES_H
#define HW_CORE_CPU_PROMISES_H

#include "migration/promises.h"

/**
 * cpu_promises: a hook for the state that all CPUs have
 * @p: the promises of a section
 * @opaque: the CPU
 *
 * Of its properties, those that say what the guest can see.
 */
void cpu_promises(VMStatePromises *p, void *opaque);

/**
 * cpu_is_first_of_type: whether a CPU is to speak for all of its type
 * @cpu: the CPU
 *
 * As a rule, all of a type are alike, and there may be hundreds.
 */
bool cpu_is_first_of_type(CPUState *cpu);

/**
 * possible_cpus_promises: a hook for a controller that CPUs are plugged with
 * @p: the promises of a section
 * @opaque: its state, which has as many parts as there may be CPUs
 */
void possible_cpus_promises(VMStatePromises *p, void *opaque);

#endif
