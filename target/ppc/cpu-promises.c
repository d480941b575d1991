/*
 * What a POWER CPU has promised its guest
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "cpu.h"
#include "cpu-models.h"
#include "hw/core/cpu-promises.h"
#include "cpu-promises.h"

#define MODE    "cpu-mode"

#if defined(TARGET_PPC64)
static const struct {
    uint32_t pvr;
    const char *name;
} compatible[] = {
    { CPU_POWERPC_LOGICAL_2_05, "power6 (compatible)" },
    { CPU_POWERPC_LOGICAL_2_06, "power7 (compatible)" },
    { CPU_POWERPC_LOGICAL_2_06_PLUS, "power7+ (compatible)" },
    { CPU_POWERPC_LOGICAL_2_07, "power8 (compatible)" },
    { CPU_POWERPC_LOGICAL_3_00, "power9 (compatible)" },
    { CPU_POWERPC_LOGICAL_3_10, "power10 (compatible)" },
    { CPU_POWERPC_LOGICAL_3_10_P11, "power11 (compatible)" },
};

/* Returns: whether that is what the CPU works as */
static bool compatible_promises(VMStatePromises *p, PowerPCCPU *cpu)
{
    for (int i = 0; i < ARRAY_SIZE(compatible) && cpu->vhyp; i++) {
        if (ppc_check_compat(cpu, compatible[i].pvr, 0, 0)) {
            migration_promise_member(p, MODE, MIGRATION_BREACH_LOAD,
                                     compatible[i].name,
                                     compatible[i].pvr == cpu->compat_pvr,
                                     true);
        }
    }
    return cpu->compat_pvr;
}

/* Whether the mode @pvr is the newest that a CPU of @type has, or newer */
static bool is_within(const char *type, uint32_t pvr)
{
    bool seen = false;

    for (int i = ARRAY_SIZE(compatible) - 1; i >= 0; i--) {
        seen |= compatible[i].pvr == pvr;
        if (ppc_type_check_compat(type, compatible[i].pvr, 0, 0)) {
            return seen;
        }
    }
    return false;
}
#else
static bool compatible_promises(VMStatePromises *p, PowerPCCPU *cpu)
{
    return false;
}

static bool is_within(const char *type, uint32_t pvr)
{
    return false;
}
#endif

/*
 * As cpu_post_load() sees it: a CPU that works as itself takes one that is
 * alike, which its class knows; else any will do that can work as the same.
 * One that is in a mode from the start (max-cpu-compat) stays in it for a guest
 * that comes without, which must not have had more.
 * Several models may have the same PVR, and KVM one that is no model's.
 */
void ppc_cpu_promises(VMStatePromises *p, void *opaque)
{
    PowerPCCPU *cpu = opaque;
    PowerPCCPUClass *own = POWERPC_CPU_GET_CLASS(cpu);
    uint32_t pvr = cpu->env.spr[SPR_PVR];
    g_autoptr(GSList) classes = NULL;
    bool known = false;
    bool raw;

    if (!cpu_is_first_of_type(CPU(cpu))) {
        return;
    }
    raw = !compatible_promises(p, cpu);
    classes = object_class_get_list(TYPE_POWERPC_CPU, false);
    for (GSList *l = classes; l; l = l->next) {
        const PowerPCCPUClass *pcc = POWERPC_CPU_CLASS(l->data);
        const char *type = object_class_get_name(l->data);
        g_autofree char *name = g_strndup(type, strlen(type) -
                                          strlen(POWERPC_CPU_TYPE_SUFFIX));
        bool like = own->pvr_match(own, pcc->pvr, true) ||
                    own->pvr == pcc->pvr;

        if (raw ? like : is_within(type, cpu->compat_pvr)) {
            migration_promise_member(p, MODE, MIGRATION_BREACH_LOAD, name,
                                     raw && !known && pvr == pcc->pvr, true);
            known |= pvr == pcc->pvr;
        }
    }
}
