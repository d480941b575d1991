/*
 * What a local APIC has promised its guest
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "hw/core/boards.h"
#include "hw/i386/apic_internal.h"
#include "hw/i386/x86.h"
#include "hw/intc/apic-promises.h"
#include "system/hw_accel.h"

static bool machine_lacks_pic(void)
{
    Object *machine = object_dynamic_cast(qdev_get_machine(), TYPE_X86_MACHINE);

    return machine && X86_MACHINE(machine)->pic == ON_OFF_AUTO_OFF;
}

/* Whether it would let the interrupt of an i8259 through, to an exception */
static bool apic_would_crash(APICCommonState *s)
{
    cpu_synchronize_state(CPU(s->cpu));
    return s->cpu->env.cr[0] & CR0_PG_MASK &&
           (!(s->apicbase & MSR_IA32_APICBASE_ENABLE) ||
            !(s->lvt[APIC_LVT_LINT0] & APIC_LVT_MASKED));
}

void apic_promises(VMStatePromises *p, void *opaque)
{
    bool lacks = machine_lacks_pic();

    migration_promise_flag(p, "no-pic", MIGRATION_BREACH_LOSS,
                           lacks && apic_would_crash(opaque), lacks);
}
