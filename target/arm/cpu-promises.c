/*
 * What an Arm CPU has promised its guest
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "qemu/bitops.h"
#include "cpu.h"
#include "cpregs.h"
#include "kvm-consts.h"
#include "hw/core/cpu-promises.h"
#include "system/kvm.h"
#include "cpu-promises.h"

#define FIELD_OF(id, name)  (((id) & CP_REG_ARM64_SYSREG_##name##_MASK) >> \
                             CP_REG_ARM64_SYSREG_##name##_SHIFT)

/* Of a register that is not here, what the architecture calls it */
static char *register_text(void *opaque, uint64_t id)
{
    ARMCPU *cpu = opaque;
    const ARMCPRegInfo *ri = get_arm_cp_reginfo(cpu->cp_regs,
                                                kvm_to_cpreg_id(id));
    unsigned coprocessor = extract64(id, CP_REG_ARM_COPROC_SHIFT, 12);

    if (ri) {
        return g_strdup(ri->name);
    }
    if ((id & CP_REG_ARCH_MASK) == CP_REG_ARM64 &&
        (id & CP_REG_ARM_COPROC_MASK) == CP_REG_ARM64_SYSREG) {
        return g_strdup_printf("S%d_%d_C%d_C%d_%d", (int)FIELD_OF(id, OP0),
                               (int)FIELD_OF(id, OP1), (int)FIELD_OF(id, CRN),
                               (int)FIELD_OF(id, CRM), (int)FIELD_OF(id, OP2));
    }
    if ((id & (CP_REG_ARCH_MASK | CP_REG_SIZE_MASK)) ==
        (CP_REG_ARM | CP_REG_SIZE_U32) && coprocessor < 16) {
        /* As ENCODE_CP_REG() has it */
        return g_strdup_printf("p%u_%d_c%d_c%d_%d", coprocessor,
                               (int)extract64(id, 3, 4),
                               (int)extract64(id, 11, 4),
                               (int)extract64(id, 7, 4),
                               (int)extract64(id, 0, 3));
    }
    return g_strdup_printf("0x%" PRIx64, id);
}

/*
 * cpu_post_load() wants to know each register that comes, and then it wants
 * each of them to be what has come.  Only KVM knows what that says to.
 */
void arm_cpu_promises(VMStatePromises *p, void *opaque)
{
    ARMCPU *cpu = opaque;
    g_autofree MigrationRegister *registers = NULL;

    if (!cpu_is_first_of_type(CPU(cpu))) {
        return;
    }
    registers = g_new0(MigrationRegister, cpu->cpreg_array_len);
    for (int i = 0; i < cpu->cpreg_array_len; i++) {
        uint64_t id = cpu->cpreg_indexes[i];
        const ARMCPRegInfo *ri = get_arm_cp_reginfo(cpu->cp_regs,
                                                    kvm_to_cpreg_id(id));

        registers[i].number = id;
        if (!kvm_enabled() && ri && ri->type & ARM_CP_CONST) {
            registers[i].fixed = true;
            registers[i].value = ri->resetvalue;
        }
    }
    migration_promise_registers(p, "cpu-registers", MIGRATION_BREACH_LOAD,
                                registers, cpu->cpreg_array_len,
                                register_text, cpu);
}
