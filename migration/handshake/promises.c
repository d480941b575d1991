/*
 * Migration handshake: what devices have promised, collected
 *
 * It walks the description of a section's state as the saver does, and calls
 * the hooks on its way.  What is in the stream is none of its business, but
 * what is not: the loader relies on the same being there.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "promises.h"
#include "qobject/qbool.h"
#include "qobject/qlist.h"
#include "qobject/qnum.h"
#include "qobject/qstring.h"

/* How deep descriptions may be nested */
#define DEPTH_MAX       16
/* Of an array; those beyond are like the others */
#define ELEMENTS_MAX    256
/* Bytes in the name of an item */
#define ITEM_NAME_MAX   255

struct VMStatePromises {
    QDict *promised;        /* on the source; on a destination NULL */
    GPtrArray *limits;      /* on a destination; on the source NULL */
    GString *path;          /* of the field, within the section */
    GArray *loaded;         /* of Range: what comes in the stream */
    unsigned items;
    uint64_t bytes;         /* that are always sent */
    bool bytes_unsure;
    int depth;
    int unsure;             /* within what pre_load() may yet set up */
    int idle;               /* within what would not be sent now */
    int apart;              /* within what does not count for @bytes */
    int repeated;           /* within an element that is not the first */
};

/* Not qemu/range.h's: these are addresses */
typedef struct Loaded {
    const char *begin;
    const char *end;
} Loaded;

static bool promise_fits(VMStatePromises *p, const char *item)
{
    return p->items < HANDSHAKE_PROMISE_ITEMS_MAX &&
           (!item || strlen(item) <= ITEM_NAME_MAX);
}

static bool list_has(const QList *list, const char *item)
{
    const QListEntry *entry = list ? qlist_first(list) : NULL;

    for (; entry; entry = qlist_next(entry)) {
        QDict *dict = qobject_to(QDict, qlist_entry_obj(entry));

        if (!strcmp(qdict_get_str(dict, "name"), item)) {
            return true;
        }
    }
    return false;
}

/* Takes @value.  The first one of a name counts. */
static void promise_put(VMStatePromises *p, const char *name, const char *item,
                        QObject *value)
{
    QList *list = qdict_get_qlist(p->promised, name);
    QDict *dict;

    if (!promise_fits(p, item) ||
        (item ? list_has(list, item) : qdict_haskey(p->promised, name))) {
        qobject_unref(value);
        return;
    }
    if (!item) {
        qdict_put_obj(p->promised, name, value);
        return;
    }
    if (!list) {
        list = qlist_new();
        qdict_put(p->promised, name, list);
    }
    dict = qdict_new();
    qdict_put_str(dict, "name", item);
    qdict_put_obj(dict, "value", value);
    qlist_append(list, dict);
    p->items++;
}

static HandshakeLimit *limit_find(VMStatePromises *p, const char *name,
                                  const char *item)
{
    for (guint i = p->limits->len; i > 0; i--) {
        HandshakeLimit *limit = g_ptr_array_index(p->limits, i - 1);

        if (!strcmp(limit->name, name) && !g_strcmp0(limit->item, item)) {
            return limit;
        }
    }
    return NULL;
}

/* Returns: NULL if there is no room */
static HandshakeLimit *limit_add(VMStatePromises *p, const char *name,
                                 const char *item, HandshakeRule rule,
                                 MigrationPromiseBreach breach)
{
    HandshakeLimit *limit;

    if (!promise_fits(p, item)) {
        return NULL;
    }
    p->items += item != NULL;
    limit = g_new0(HandshakeLimit, 1);
    limit->name = name;
    limit->item = g_strdup(item);
    limit->rule = rule;
    limit->breach = breach;
    g_ptr_array_add(p->limits, limit);
    return limit;
}

/* Returns: NULL if there is one already, which counts */
static HandshakeLimit *limit_new(VMStatePromises *p, const char *name,
                                 const char *item, HandshakeRule rule,
                                 MigrationPromiseBreach breach)
{
    return limit_find(p, name, item) ? NULL
                                     : limit_add(p, name, item, rule, breach);
}

static void limit_free(void *opaque)
{
    HandshakeLimit *limit = opaque;

    g_free(limit->item);
    g_free(limit->text);
    g_clear_pointer(&limit->set, g_hash_table_unref);
    g_clear_pointer(&limit->bytes, g_byte_array_unref);
    g_clear_pointer(&limit->mask, g_byte_array_unref);
    g_clear_pointer(&limit->registers, g_array_unref);
    g_free(limit);
}

static void promise_number(VMStatePromises *p, const char *name,
                           const char *item, HandshakeRule rule,
                           MigrationPromiseBreach breach, uint64_t promised,
                           uint64_t number)
{
    HandshakeLimit *limit;

    if (p->promised) {
        /* No less is possible */
        if (promised || rule != HANDSHAKE_RULE_AT_MOST) {
            promise_put(p, name, item, QOBJECT(qnum_from_uint(promised)));
        }
        return;
    }
    limit = limit_new(p, name, item, rule, breach);
    if (limit) {
        limit->number = number;
        limit->promised = !p->idle;
    }
}

void migration_promise_equal(VMStatePromises *p, const char *name,
                             const char *item, MigrationPromiseBreach breach,
                             uint64_t value)
{
    promise_number(p, name, item, HANDSHAKE_RULE_EQUAL, breach, value, value);
}

void migration_promise_at_most(VMStatePromises *p, const char *name,
                               const char *item, MigrationPromiseBreach breach,
                               uint64_t promised, uint64_t limit)
{
    promise_number(p, name, item, HANDSHAKE_RULE_AT_MOST, breach, promised,
                   limit);
}

void migration_promise_flag(VMStatePromises *p, const char *name,
                            MigrationPromiseBreach breach, bool promised,
                            bool limit)
{
    HandshakeLimit *l;

    if (p->promised) {
        if (promised) {
            promise_put(p, name, NULL, QOBJECT(qbool_from_bool(true)));
        }
        return;
    }
    l = limit_new(p, name, NULL, HANDSHAKE_RULE_FLAG, breach);
    if (l) {
        l->number = limit;
        l->promised = promised && !p->idle;
    }
}

void migration_promise_text(VMStatePromises *p, const char *name,
                            const char *item, MigrationPromiseBreach breach,
                            const char *value)
{
    HandshakeLimit *limit;

    if (value && strlen(value) > HANDSHAKE_PROMISE_TEXT_MAX) {
        return;
    }
    if (p->promised) {
        if (value) {
            promise_put(p, name, item, QOBJECT(qstring_from_str(value)));
        }
        return;
    }
    limit = limit_new(p, name, item, HANDSHAKE_RULE_TEXT, breach);
    if (limit) {
        limit->text = g_strdup(value);
        limit->promised = value && !p->idle;
    }
}

void migration_promise_member(VMStatePromises *p, const char *name,
                              MigrationPromiseBreach breach, const char *item,
                              bool promised, bool limit)
{
    HandshakeLimit *l;
    QList *list;

    if (!promise_fits(p, item)) {
        return;
    }
    if (p->promised) {
        list = qdict_get_qlist(p->promised, name);
        if (item && promised && !list) {
            list = qlist_new();
            qdict_put(p->promised, name, list);
        }
        if (item && promised) {
            qlist_append_str(list, item);
            p->items++;
        }
        return;
    }
    l = limit_find(p, name, NULL) ?:
        limit_new(p, name, NULL, HANDSHAKE_RULE_SET, breach);
    if (!l->set) {
        l->set = g_hash_table_new_full(g_str_hash, g_str_equal, g_free, NULL);
    }
    if (item) {
        promised = promised && !p->idle;
        g_hash_table_insert(l->set, g_strdup(item), GINT_TO_POINTER(
            (limit ? HANDSHAKE_MEMBER_HERE : 0) |
            (promised ? HANDSHAKE_MEMBER_PROMISED : 0)));
        p->items++;
    }
}

void migration_promise_bits(VMStatePromises *p, const char *name,
                            MigrationPromiseBreach breach,
                            const uint64_t *promised, const uint64_t *limit,
                            int words,
                            char *(*describe)(void *opaque, unsigned bit),
                            void *opaque)
{
    HandshakeLimit *l;

    if (p->promised) {
        GString *text = g_string_new(NULL);

        for (int i = words - 1; i >= 0; i--) {
            if (text->len) {
                g_string_append_printf(text, "%016" PRIx64, promised[i]);
            } else if (promised[i]) {
                g_string_append_printf(text, "%" PRIx64, promised[i]);
            }
        }
        if (text->len) {
            promise_put(p, name, NULL, QOBJECT(qstring_from_str(text->str)));
        }
        g_string_free(text, TRUE);
        return;
    }
    l = limit_new(p, name, NULL, HANDSHAKE_RULE_BITS, breach);
    if (l) {
        l->bytes = g_byte_array_new();
        g_byte_array_append(l->bytes, (const uint8_t *)limit,
                            words * sizeof(*limit));
        l->describe = describe;
        l->opaque = opaque;
    }
}

void migration_promise_masked(VMStatePromises *p, const char *name,
                              MigrationPromiseBreach breach,
                              const uint8_t *value, const uint8_t *mask,
                              size_t size,
                              char *(*describe)(void *opaque, unsigned offset),
                              void *opaque)
{
    HandshakeLimit *l;

    size = MIN(size, HANDSHAKE_PROMISE_BYTES_MAX);
    if (p->promised) {
        g_autofree char *text = handshake_bytes_to_text(value, size);

        if (*text) {
            promise_put(p, name, NULL, QOBJECT(qstring_from_str(text)));
        }
        return;
    }
    /* Some of the bytes may matter more than others */
    l = limit_add(p, name, NULL, HANDSHAKE_RULE_MASKED, breach);
    if (l) {
        l->bytes = g_byte_array_new();
        g_byte_array_append(l->bytes, value, size);
        l->mask = g_byte_array_new();
        g_byte_array_append(l->mask, mask, size);
        l->describe = describe;
        l->opaque = opaque;
    }
}

void migration_promise_registers(VMStatePromises *p, const char *name,
                                 MigrationPromiseBreach breach,
                                 const MigrationRegister *registers, size_t n,
                                 char *(*describe)(void *opaque,
                                                   uint64_t number),
                                 void *opaque)
{
    HandshakeLimit *l;

    if (!n || n > HANDSHAKE_PROMISE_ITEMS_MAX) {
        return;
    }
    if (p->promised) {
        g_autofree char *text = handshake_registers_to_text(registers, n);

        if (strlen(text) <= HANDSHAKE_PROMISE_TEXT_MAX) {
            promise_put(p, name, NULL, QOBJECT(qstring_from_str(text)));
        }
        return;
    }
    l = limit_new(p, name, NULL, HANDSHAKE_RULE_REGISTERS, breach);
    if (l) {
        l->registers = g_array_sized_new(false, false, sizeof(*registers), n);
        g_array_append_vals(l->registers, registers, n);
        l->describe_register = describe;
        l->opaque = opaque;
    }
}

void migration_promise_spare_register(VMStatePromises *p, const char *name,
                                      uint64_t number)
{
    const MigrationRegister spare = { number };
    HandshakeLimit *l = p->promised ? NULL : limit_find(p, name, NULL);
    guint i = 0;

    if (!l || !l->registers) {
        return;
    }
    while (i < l->registers->len &&
           g_array_index(l->registers, MigrationRegister, i).number < number) {
        i++;
    }
    if (i == l->registers->len ||
        g_array_index(l->registers, MigrationRegister, i).number > number) {
        g_array_insert_val(l->registers, i, spare);
    }
}

/* It is the device's own, whatever it is made of */
static const char *path_text(const VMStatePromises *p)
{
    static const char parent[] = "parent_obj.";
    const char *path = p->path->str;

    while (g_str_has_prefix(path, parent)) {
        path += strlen(parent);
    }
    return path;
}

static void path_descend(VMStatePromises *p)
{
    if (p->path->len && !strchr(".:", p->path->str[p->path->len - 1])) {
        g_string_append_c(p->path, '.');
    }
}

void migration_promise_value(VMStatePromises *p, const char *name,
                             uint64_t value)
{
    gsize len = p->path->len;

    path_descend(p);
    g_string_append(p->path, name);
    migration_promise_equal(p, "values", path_text(p), MIGRATION_BREACH_LOAD,
                            value);
    g_string_truncate(p->path, len);
}

void migration_promise_field(VMStatePromises *p, void *pv, size_t size,
                             const VMStateField *field)
{
    uint64_t value;

    switch (size) {
    case 1:
        value = *(uint8_t *)pv;
        break;
    case 2:
        value = *(uint16_t *)pv;
        break;
    case 4:
        value = *(uint32_t *)pv;
        break;
    case 8:
        value = *(uint64_t *)pv;
        break;
    default:
        return;
    }
    if (!p->unsure) {
        migration_promise_equal(p, "values", path_text(p),
                                MIGRATION_BREACH_LOAD, value);
    }
}

static void walk(VMStatePromises *p, const VMStateDescription *vmsd,
                 void *opaque, int version, uint64_t times);

/* As the loader sees it */
static bool field_exists(const VMStateField *field, void *opaque, int version)
{
    return field->field_exists ? field->field_exists(opaque, version)
                               : field->version_id <= version;
}

/* Returns: how many elements there are; @at is set to where that stands */
static uint64_t field_elements(const VMStateField *field, char *opaque,
                               const char **at)
{
    const char *number = opaque + field->num_offset;
    uint64_t n = 1;

    *at = number;
    /* Where the number is in the state, @num is what it is multiplied by */
    if (field->flags & VMS_VARRAY_INT32) {
        n = MAX(*(int32_t *)number, 0);
    } else if (field->flags & VMS_VARRAY_UINT32) {
        n = *(uint32_t *)number;
    } else if (field->flags & VMS_VARRAY_UINT16) {
        n = *(uint16_t *)number;
    } else if (field->flags & VMS_VARRAY_UINT8) {
        n = *(uint8_t *)number;
    } else {
        *at = NULL;
        return field->flags & VMS_ARRAY ? field->num : 1;
    }
    return n * MAX(field->num, 1);
}

static uint64_t field_size(const VMStateField *field, char *opaque,
                           const char **at)
{
    uint64_t size;

    *at = NULL;
    if (!(field->flags & VMS_VBUFFER)) {
        return field->flags & VMS_ARRAY_OF_POINTER ? sizeof(void *)
                                                   : field->size;
    }
    *at = opaque + field->size_offset;
    size = MAX(*(int32_t *)*at, 0);
    return field->flags & VMS_MULTIPLY ? size * field->size : size;
}

static bool was_loaded(const VMStatePromises *p, const char *at)
{
    for (guint i = 0; i < p->loaded->len; i++) {
        const Loaded *range = &g_array_index(p->loaded, Loaded, i);

        if (at >= range->begin && at < range->end) {
            return true;
        }
    }
    return false;
}

/* What the loader takes from its own device, and not from the stream */
static void promise_count(VMStatePromises *p, const VMStateField *field,
                          const char *at, uint64_t count)
{
    if (at && !p->unsure && !p->repeated && !(field->flags & VMS_ALLOC) &&
        !was_loaded(p, at)) {
        migration_promise_equal(p, "counts", path_text(p),
                                MIGRATION_BREACH_LOAD, count);
    }
}

/*
 * Whether a single field is there often depends on the state.  What says
 * whether a structure beside it is there as well is about the machine.
 */
static bool depends_on_state(const VMStateDescription *vmsd,
                             const VMStateField *field)
{
    const VMStateField *other;

    for (other = vmsd->fields; field->field_exists && other->name; other++) {
        if (other->field_exists == field->field_exists &&
            other->flags & (VMS_STRUCT | VMS_VSTRUCT)) {
            return false;
        }
    }
    return field->field_exists;
}

/* In the stream; 0 if only its own code knows */
static uint64_t leaf_bytes(const VMStateField *field, uint64_t size)
{
    static const VMStateInfo *const plain[] = {
        &vmstate_info_bool, &vmstate_info_int8, &vmstate_info_int16,
        &vmstate_info_int32, &vmstate_info_int64, &vmstate_info_uint8,
        &vmstate_info_uint16, &vmstate_info_uint32, &vmstate_info_uint64,
        &vmstate_info_uint8_equal, &vmstate_info_uint16_equal,
        &vmstate_info_int32_equal, &vmstate_info_uint32_equal,
        &vmstate_info_uint64_equal, &vmstate_info_int32_le,
        &vmstate_info_buffer, &vmstate_info_unused_buffer,
    };

    for (int i = 0; i < ARRAY_SIZE(plain); i++) {
        if (field->info == plain[i]) {
            return size;
        }
    }
    return 0;
}

static bool has_hooks(const VMStateDescription *vmsd, int depth)
{
    const VMStateField *field;

    if (vmsd->promises) {
        return true;
    }
    for (field = vmsd->fields; field && field->name; field++) {
        bool nested = field->flags & (VMS_STRUCT | VMS_VSTRUCT);

        if (nested ? depth < DEPTH_MAX && has_hooks(field->vmsd, depth + 1)
                   : field->info && field->info->promises) {
            return true;
        }
    }
    for (int i = 0; vmsd->subsections && vmsd->subsections[i]; i++) {
        if (depth < DEPTH_MAX && has_hooks(vmsd->subsections[i], depth + 1)) {
            return true;
        }
    }
    return false;
}

static void walk_element(VMStatePromises *p, const VMStateField *field,
                         char *element, uint64_t size, uint64_t times)
{
    if (field->flags & (VMS_STRUCT | VMS_VSTRUCT)) {
        path_descend(p);
        walk(p, field->vmsd, element,
             field->flags & VMS_STRUCT ? field->vmsd->version_id
                                       : field->struct_version_id, times);
    } else {
        field->info->promises(p, element, size, field);
    }
}

static void walk_elements(VMStatePromises *p, const VMStateField *field,
                          char *first, uint64_t n, uint64_t size,
                          uint64_t times)
{
    gsize len = p->path->len;

    for (uint64_t i = 0; i < MIN(n, ELEMENTS_MAX); i++) {
        char *element = first + size * i;

        if (field->flags & VMS_ARRAY_OF_POINTER) {
            element = *(char **)element;
        }
        if (!element) {
            continue;
        }
        if (i) {
            g_string_append_printf(p->path, "[%" PRIu64 "]", i);
        }
        p->repeated += i > 0;
        walk_element(p, field, element, size, times * n);
        p->repeated -= i > 0;
        g_string_truncate(p->path, len);
    }
}

static void walk_leaf(VMStatePromises *p, const VMStateDescription *vmsd,
                      const VMStateField *field, char *first, uint64_t n,
                      uint64_t size, uint64_t times)
{
    Loaded range = { first, first + size * n };

    if (!p->apart && !p->repeated && !depends_on_state(vmsd, field)) {
        p->bytes += leaf_bytes(field, size) * n * times;
    }
    /* Of the others, what is there is not what is loaded */
    if (!p->repeated && !field->vmsd &&
        !(field->flags & VMS_ARRAY_OF_POINTER) &&
        (field->info == &vmstate_info_buffer || !(field->flags & VMS_BUFFER))) {
        g_array_append_val(p->loaded, range);
    }
    if (field->info && field->info->promises) {
        walk_elements(p, field, first, n, size, times);
    }
}

static void walk_field(VMStatePromises *p, const VMStateDescription *vmsd,
                       const VMStateField *field, char *opaque, uint64_t times)
{
    const char *n_at, *size_at;
    uint64_t n = field_elements(field, opaque, &n_at);
    uint64_t size = field_size(field, opaque, &size_at);
    char *first = opaque + field->offset;

    promise_count(p, field, n_at, n);
    promise_count(p, field, size_at, size);
    if (field->flags & VMS_POINTER) {
        first = *(char **)first;
    }
    if (!first || !n || field->flags & VMS_ALLOC) {
        return;
    }
    if (!(field->flags & (VMS_STRUCT | VMS_VSTRUCT))) {
        bool told = (n_at && was_loaded(p, n_at)) ||
                    (size_at && was_loaded(p, size_at));

        p->apart += told;
        walk_leaf(p, vmsd, field, first, n, size, times);
        p->apart -= told;
    } else if (n > 1 && !has_hooks(field->vmsd, 0)) {
        /* One of them is as good as all */
        walk_elements(p, field, first, 1, size, times * n);
    } else {
        walk_elements(p, field, first, n, size, times);
    }
}

static void walk_subsection(VMStatePromises *p, const VMStateDescription *vmsd,
                            void *opaque)
{
    bool needed = !vmsd->needed || vmsd->needed(opaque);
    gsize len = p->path->len;

    if (!p->repeated) {
        migration_promise_member(p, "subsections", MIGRATION_BREACH_CHANGE,
                                 vmsd->name, needed, true);
    }
    if (p->promised && !needed) {
        return;
    }
    g_string_append_printf(p->path, "%s:", vmsd->name);
    p->unsure += !needed;
    p->idle += !needed;
    p->apart++;
    walk(p, vmsd, opaque, vmsd->version_id, 1);
    p->apart--;
    p->idle -= !needed;
    p->unsure -= !needed;
    g_string_truncate(p->path, len);
}

static void walk(VMStatePromises *p, const VMStateDescription *vmsd,
                 void *opaque, int version, uint64_t times)
{
    bool unsure = p->limits && vmstate_has_pre_load(vmsd);
    gsize len = p->path->len;
    const VMStateField *field;

    if (p->depth == DEPTH_MAX) {
        return;
    }
    p->depth++;
    p->unsure += unsure;
    /* Nor is what pre_save() sets up known before somebody has saved */
    p->bytes_unsure |= (unsure || vmsd->pre_save) && !p->apart;
    if (vmsd->promises) {
        vmsd->promises(p, opaque);
    }
    for (field = vmsd->fields; field && field->name; field++) {
        if (field_exists(field, opaque, version)) {
            g_string_append(p->path, field->name);
            walk_field(p, vmsd, field, opaque, times);
            g_string_truncate(p->path, len);
        }
    }
    for (int i = 0; vmsd->subsections && vmsd->subsections[i]; i++) {
        walk_subsection(p, vmsd->subsections[i], opaque);
    }
    p->unsure -= unsure;
    p->depth--;
}

void migration_promises_vmsd(VMStatePromises *p, const VMStateDescription *vmsd,
                             void *opaque)
{
    gsize len = p->path->len;

    path_descend(p);
    /* What exists may depend on what the state is */
    p->apart++;
    walk(p, vmsd, opaque, vmsd->version_id, 1);
    p->apart--;
    g_string_truncate(p->path, len);
}

/* Whether something else tells what the device is, such as the name of @vmsd */
static bool tells_type(VMStatePromises *p, const VMStateDescription *vmsd,
                       const char *type)
{
    static const char *const names[] = {
        "pci-config", "virtio-features", "cpu-model", "disks",
    };

    for (int i = 0; i < ARRAY_SIZE(names); i++) {
        if (p->promised ? qdict_haskey(p->promised, names[i])
                        : limit_find(p, names[i], NULL) != NULL) {
            return true;
        }
    }
    return p->promised && !strcmp(vmsd->name, type);
}

static void collect(VMStatePromises *p, const VMStateDescription *vmsd,
                    void *opaque, int version, const char *type)
{
    /* Nobody knows what becomes of one that may not be sent */
    p->idle = vmsd->needed != NULL;
    p->path = g_string_new(NULL);
    p->loaded = g_array_new(false, false, sizeof(Loaded));
    walk(p, vmsd, opaque, version, 1);
    if (p->bytes && !p->bytes_unsure) {
        migration_promise_equal(p, "bytes", NULL, MIGRATION_BREACH_CHANGE,
                                p->bytes);
    }
    if (type && !tells_type(p, vmsd, type)) {
        migration_promise_text(p, "device-type", NULL, MIGRATION_BREACH_CHANGE,
                               type);
    }
    g_string_free(p->path, TRUE);
    g_array_unref(p->loaded);
}

QDict *handshake_promises_collect(const VMStateDescription *vmsd, void *opaque,
                                  int version, const char *type)
{
    VMStatePromises p = { .promised = qdict_new() };

    collect(&p, vmsd, opaque, version, type);
    if (!qdict_size(p.promised)) {
        qobject_unref(p.promised);
        return NULL;
    }
    return p.promised;
}

GPtrArray *handshake_limits_collect(const VMStateDescription *vmsd,
                                    void *opaque, int version,
                                    const char *type)
{
    VMStatePromises p = {
        .limits = g_ptr_array_new_with_free_func(limit_free),
    };

    collect(&p, vmsd, opaque, version, type);
    return p.limits;
}
