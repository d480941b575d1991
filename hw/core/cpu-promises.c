/*
 * What a CPU has promised its guest
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "hw/core/boards.h"
#include "hw/core/cpu.h"
#include "hw/core/cpu-promises.h"
#include "hw/core/qdev-properties.h"
#include "qom/object.h"

/* They are true or false, and no features */
static const char *const others[] = {
    "realized", "hotplugged", "hotpluggable", "migration-safe", "static",
    /* It depends on the accelerator and on QEMU's version */
    "pmu",
    /* How KVM keeps the time is no feature */
    "kvm-no-adjvtime",
    /* They follow from the topology */
    "ht", "cmp-legacy",
    NULL
};

/* Where the architecture has it */
static const char *const identity[] = {
    "family", "model", "stepping", "vendor", "model-id", "phys-bits", "level",
    "xlevel",
};

/* A switch of QEMU's, rather than a feature: these are not in the class */
static bool is_qdev_property(Object *obj, const char *name)
{
    ObjectClass *device = object_class_by_name(TYPE_DEVICE);
    ObjectClass *class = object_get_class(obj);

    for (; class && class != device; class = object_class_get_parent(class)) {
        const DeviceClass *dc = DEVICE_CLASS(class);

        for (int i = 0; i < dc->props_count_; i++) {
            if (!strcmp(dc->props_[i].name, name)) {
                return true;
            }
        }
    }
    return false;
}

/* Of the architecture's code nothing is needed: it has a property for each */
static void cpu_feature_promises(VMStatePromises *p, Object *obj)
{
    ObjectPropertyIterator iter;
    ObjectProperty *prop;

    object_property_iter_init(&iter, obj);
    while ((prop = object_property_iter_next(&iter))) {
        bool set;

        if (strcmp(prop->type, "bool") || !prop->get || prop->resolve ||
            g_str_has_prefix(prop->name, "x-") ||
            g_strv_contains(others, prop->name)) {
            continue;
        }
        set = object_property_get_bool(obj, prop->name, NULL);
        migration_promise_member(p, "cpu-features", MIGRATION_BREACH_LOSS,
                                 prop->name,
                                 set && !is_qdev_property(obj, prop->name),
                                 set);
    }
}

bool cpu_is_first_of_type(CPUState *cpu)
{
    CPUState *other;

    CPU_FOREACH(other) {
        if (object_get_class(OBJECT(other)) == object_get_class(OBJECT(cpu))) {
            return other == cpu;
        }
    }
    return true;
}

void cpu_promises(VMStatePromises *p, void *opaque)
{
    Object *obj = OBJECT(CPU(opaque));

    migration_promise_text(p, "cpu-model", NULL, MIGRATION_BREACH_CHANGE,
                           object_get_typename(obj));
    if (!cpu_is_first_of_type(opaque)) {
        return;
    }
    cpu_feature_promises(p, obj);
    for (int i = 0; i < ARRAY_SIZE(identity); i++) {
        if (object_property_find(obj, identity[i])) {
            g_autofree char *value =
                object_property_print(obj, identity[i], false, NULL);

            migration_promise_text(p, "cpu", identity[i],
                                   MIGRATION_BREACH_CHANGE, value);
        }
    }
}

void possible_cpus_promises(VMStatePromises *p, void *opaque)
{
    const MachineState *ms = MACHINE(qdev_get_machine());

    /* pre_load() makes room for them, if the state has them */
    migration_promise_value(p, "possible_cpus", ms->possible_cpus->len);
}
