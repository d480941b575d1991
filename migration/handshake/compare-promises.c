/*
 * Migration handshake: the source's promises, held against what is possible
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "qemu/host-utils.h"
#include "qapi/error.h"
#include "migration/savevm.h"
#include "qapi/qapi-visit-migration-handshake.h"
#include "qapi/qobject-output-visitor.h"
#include "qobject/qbool.h"
#include "qobject/qlist.h"
#include "qobject/qnum.h"
#include "qobject/qstring.h"
#include "machine.h"
#include "promises.h"

/* Of a set, so many are listed */
#define LISTED_MAX  8

/* One section's promises and limits */
typedef struct Judgement {
    const MigrationProfile *src;
    const MigrationProfile *dst;
    const MigrationProfileSection *section;
    const char *subject;
    QDict *promised;
    const GPtrArray *limits;
    GHashTable *told;           /* messages: all CPUs may be alike */
    HandshakeIssues *issues;
} Judgement;

/*
 * What people read; of a promise that is not here the names speak.  $S: the
 * section, $I: the item, $A: value on the source, $B: on the destination.
 */
static const struct {
    const char *name;
    const char *code;
    const char *message;
} texts[] = {
    { "counts", "section-schema",
      "the state of '$S' has $A '$I' on the source and $B on the destination" },
    { "values", "section-schema",
      "in the state of '$S', '$I' is $A on the source and $B on the "
      "destination" },
    { "bytes", "section-schema",
      "the state of '$S' has $A bytes on the source and $B on the "
      "destination" },
    { "subsections", "section-schema",
      "the source would send '$A' as a part of '$S', which the destination "
      "does not know" },
    { "device-type", "device",
      "'$S' is a $A on the source and a $B on the destination" },
    { "pci-config", "device",
      "'$S': PCI configuration differs at $I: $A on the source, $B on the "
      "destination" },
    { "pci-status", "device",
      "'$S': PCI status differs at $I: $A on the source, $B on the "
      "destination" },
    { "virtio-features", "device",
      "'$S': the guest uses $A, which the destination does not offer" },
    { "virtio-queues", "device",
      "'$S': the guest uses $A queues, and the destination has $B" },
    { "vnet-hdr", "device",
      "'$S': whether packets have virtio headers (vnet_hdr): $A on the source, "
      "$B on the destination" },
    { "ports", "device",
      "'$S' has port $A on the source and $B on the destination" },
    { "cpu-model", "cpu",
      "the guest's CPU is a $A on the source and a $B on the destination" },
    { "cpu-features", "cpu",
      "the guest's CPU has $A, which CPUs of the destination do not have" },
    { "cpu", "cpu",
      "the $I of the guest's CPU is $A on the source and $B on the "
      "destination" },
    { "cpu-mode", "cpu",
      "the guest's CPU works as $A, which CPUs of the destination cannot do" },
    { "cpu-registers", "cpu",
      "registers of the guest's CPU differ: $A on the source, $B on the "
      "destination" },
    { "machine-capabilities", "device",
      "capability '$I' of the guest's machine is at level $A on the source, "
      "and at $B on the destination" },
    { "disks", "disk",
      "disk $I of '$S' is a $A on the source and $B on the destination" },
    { "disk-sizes", "disk",
      "disk $I of '$S' has $A bytes on the source and $B on the destination" },
    { "disk-writable", "disk",
      "disk $A of '$S' can be written on the source, and not on the "
      "destination" },
    { "disk-serials", "disk",
      "disk $I of '$S' has serial number $A on the source and $B on the "
      "destination" },
    { "disk-block-sizes", "disk",
      "disk $I of '$S' has blocks of $A bytes on the source and of $B on the "
      "destination" },
    { NULL, "device",
      "'$S': $I is $A on the source and $B on the destination" },
};

static char *fill_in(const char *message, const char *subject,
                     const char *item, const char *a, const char *b)
{
    GString *text = g_string_new(NULL);

    for (const char *p = message; *p; p++) {
        if (*p != '$') {
            g_string_append_c(text, *p);
            continue;
        }
        p++;
        g_string_append(text, *p == 'S' ? subject : *p == 'I' ? item :
                              *p == 'A' ? a : b);
    }
    return g_string_free(text, FALSE);
}

static void broken(const Judgement *j, const HandshakeLimit *limit,
                   MigrationPromiseBreach breach, const char *item,
                   const char *a, const char *b)
{
    bool harmless = breach == MIGRATION_BREACH_CHANGE ||
                    j->section->conditional;
    g_autofree char *message = NULL;
    int i = 0;

    while (texts[i].name && strcmp(texts[i].name, limit->name)) {
        i++;
    }
    item = item ?: limit->item ?: limit->name;
    message = fill_in(texts[i].message, j->subject, item, a, b);
    if (g_hash_table_contains(j->told, message)) {
        return;
    }
    handshake_issue_add(j->issues, texts[i].code,
                        harmless ? HANDSHAKE_WARNING : HANDSHAKE_ERROR,
                        j->subject, a, b, "%s", message);
    if (g_hash_table_size(j->told) < HANDSHAKE_ISSUES_MAX) {
        g_hash_table_add(j->told, g_steal_pointer(&message));
    }
}

static void judge_number(const Judgement *j, const HandshakeLimit *limit,
                         const QObject *value)
{
    uint64_t number;

    if (!qnum_get_try_uint(qobject_to(QNum, value), &number)) {
        return;
    }
    if (limit->rule == HANDSHAKE_RULE_EQUAL ? number != limit->number
                                            : number > limit->number) {
        g_autofree char *a = g_strdup_printf("%" PRIu64, number);
        g_autofree char *b = g_strdup_printf("%" PRIu64, limit->number);

        broken(j, limit, limit->breach, NULL, a, b);
    }
}

static bool cpu_model_is_same(const Judgement *j)
{
    const char *model = qdict_get_try_str(j->promised, "cpu-model");

    for (guint i = 0; i < j->limits->len; i++) {
        const HandshakeLimit *limit = g_ptr_array_index(j->limits, i);

        if (!strcmp(limit->name, "cpu-model")) {
            return !model || !g_strcmp0(limit->text, model);
        }
    }
    return true;
}

static void judge_text(const Judgement *j, const HandshakeLimit *limit,
                       const QObject *value)
{
    const char *text = qstring_get_str(qobject_to(QString, value));

    if (!strcmp(limit->name, "cpu") && !cpu_model_is_same(j)) {
        /* It goes without saying */
        return;
    }
    if (g_strcmp0(text, limit->text)) {
        broken(j, limit, limit->breach, NULL, text,
               limit->text ?: "missing");
    }
}

/* Names in one line, but not all of a great many */
typedef struct Listing {
    GString *text;
    unsigned n;
} Listing;

static void listing_add(Listing *listing, const char *name)
{
    if (++listing->n <= LISTED_MAX) {
        g_string_append_printf(listing->text, "%s%s",
                               listing->n > 1 ? ", " : "", name);
    }
}

/* What is on only one side, or other things that are on each */
static void listing_judge(const Judgement *j, const HandshakeLimit *limit,
                          MigrationPromiseBreach breach, Listing *there,
                          Listing *here)
{
    Listing *both[] = { there, here };

    for (int i = 0; i < ARRAY_SIZE(both); i++) {
        if (both[i] && both[i]->n > LISTED_MAX) {
            g_string_append_printf(both[i]->text, " and %u more",
                                   both[i]->n - LISTED_MAX);
        }
    }
    if ((there && there->n) || (here && here->n)) {
        broken(j, limit, breach, NULL, there ? there->text->str : "missing",
               here ? here->text->str : "missing");
    }
    for (int i = 0; i < ARRAY_SIZE(both); i++) {
        if (both[i]) {
            g_string_free(both[i]->text, TRUE);
        }
    }
}

/* Asked for whatever there is, each version of QEMU has its own */
static bool cpu_is_whatever(const Judgement *j)
{
    const char *model = qdict_get_try_str(j->promised, "cpu-model");

    return model && cpu_model_is_same(j) &&
           (g_str_has_prefix(model, "host-") ||
            g_str_has_prefix(model, "max-")) &&
           g_strcmp0(j->src->qemu_version, j->dst->qemu_version);
}

static void judge_set(const Judgement *j, const HandshakeLimit *limit,
                      const QObject *value)
{
    bool is_cpu = !strcmp(limit->name, "cpu-features");
    bool whatever = is_cpu && cpu_is_whatever(j);
    Listing lost = { g_string_new(NULL) };
    Listing changed = { g_string_new(NULL) };
    const QListEntry *entry;

    QLIST_FOREACH_ENTRY(qobject_to(QList, value), entry) {
        const char *item =
            qstring_get_str(qobject_to(QString, qlist_entry_obj(entry)));
        void *here = NULL;
        bool known = g_hash_table_lookup_extended(limit->set, item, NULL,
                                                  &here);

        /*
         * What nested guests can do is no reason to refuse; nor is a name that
         * is not known here, which may be that of something known
         */
        if (!here) {
            listing_add(whatever ||
                        (is_cpu && (!known || g_str_has_prefix(item, "vmx-")))
                        ? &changed : &lost, item);
        }
    }
    listing_judge(j, limit, limit->breach, &lost, NULL);
    listing_judge(j, limit, MIGRATION_BREACH_CHANGE, &changed, NULL);
}

static void judge_bits(const Judgement *j, const HandshakeLimit *limit,
                       const QObject *value)
{
    g_autoptr(GArray) bits =
        handshake_bits_from_text(qstring_get_str(qobject_to(QString, value)));
    const uint64_t *here = (const uint64_t *)limit->bytes->data;
    unsigned words = limit->bytes->len / sizeof(uint64_t);
    Listing listing = { g_string_new(NULL) };

    for (guint i = 0; bits && i < bits->len; i++) {
        uint64_t missing = g_array_index(bits, uint64_t, i) &
                           ~(i < words ? here[i] : 0);

        for (; missing; missing &= missing - 1) {
            unsigned bit = i * 64 + ctz64(missing);
            g_autofree char *name = i < words && limit->describe
                ? limit->describe(limit->opaque, bit)
                : g_strdup_printf("feature bit %u", bit);

            listing_add(&listing, name);
        }
    }
    listing_judge(j, limit, limit->breach, &listing, NULL);
}

/* The first difference is told: those that follow are often its consequences */
static void judge_masked(const Judgement *j, const HandshakeLimit *limit,
                         const QObject *value)
{
    g_autoptr(GByteArray) bytes =
        handshake_bytes_from_text(qstring_get_str(qobject_to(QString, value)));
    guint size = bytes ? MIN(bytes->len, limit->bytes->len) : 0;
    const uint8_t *here = limit->bytes->data;
    guint i = 0;

    while (i < size && !((bytes->data[i] ^ here[i]) & limit->mask->data[i])) {
        i++;
    }
    if (i < size) {
        g_autofree char *what = limit->describe
            ? limit->describe(limit->opaque, i) : NULL;
        g_autofree char *at = g_strdup_printf("0x%x%s%s%s", i,
                                              what ? " (" : "", what ?: "",
                                              what ? ")" : "");
        g_autofree char *a = g_strdup_printf("%02x", bytes->data[i]);
        g_autofree char *b = g_strdup_printf("%02x", here[i]);

        broken(j, limit, limit->breach, at, a, b);
    }
}

static gint register_order(gconstpointer a, gconstpointer b)
{
    uint64_t x = ((const MigrationRegister *)a)->number;
    uint64_t y = ((const MigrationRegister *)b)->number;

    return x < y ? -1 : x > y;
}

static const MigrationRegister *register_find(const GArray *registers,
                                              const MigrationRegister *like)
{
    return bsearch(like, registers->data, registers->len, sizeof(*like),
                   register_order);
}

/* @r: of the source; @own: of this machine; one of them may be NULL */
static void register_add(const HandshakeLimit *limit, Listing *there,
                         Listing *here, const MigrationRegister *r,
                         const MigrationRegister *own)
{
    g_autofree char *name = limit->describe_register(limit->opaque,
                                                     (r ?: own)->number);
    g_autofree char *a = g_strdup_printf("%s=0x%" PRIx64, name,
                                         r ? r->value : 0);
    g_autofree char *b = g_strdup_printf("%s=0x%" PRIx64, name,
                                         own ? own->value : 0);

    if (r) {
        listing_add(there, own ? a : name);
    }
    if (own) {
        listing_add(here, b);
    }
}

/*
 * Those that are missing here, those of another value, and those that would
 * have to be set to the value that they have and are not sent.  What can be
 * changed on either side is no promise, nor is there a loader that compares it.
 */
static void judge_registers(const Judgement *j, const HandshakeLimit *limit,
                            const QObject *value)
{
    g_autoptr(GArray) registers =
        handshake_registers_from_text(
            qstring_get_str(qobject_to(QString, value)));
    Listing lost = { g_string_new(NULL) };
    Listing there = { g_string_new(NULL) };
    Listing here = { g_string_new(NULL) };
    Listing more = { g_string_new(NULL) };

    for (guint i = 0; registers && i < registers->len; i++) {
        const MigrationRegister *r =
            &g_array_index(registers, MigrationRegister, i);
        const MigrationRegister *own = register_find(limit->registers, r);

        if (!own) {
            register_add(limit, &lost, NULL, r, NULL);
        } else if (r->fixed && own->fixed && r->value != own->value) {
            register_add(limit, &there, &here, r, own);
        }
    }
    for (guint i = 0; registers && i < limit->registers->len; i++) {
        const MigrationRegister *own =
            &g_array_index(limit->registers, MigrationRegister, i);

        if (own->fixed && own->value && !register_find(registers, own)) {
            register_add(limit, NULL, &more, NULL, own);
        }
    }
    listing_judge(j, limit, limit->breach, &lost, NULL);
    listing_judge(j, limit, limit->breach, &there, &here);
    listing_judge(j, limit, limit->breach, NULL, &more);
}

static void judge(const Judgement *j, const HandshakeLimit *limit,
                  const QObject *value)
{
    switch (limit->rule) {
    case HANDSHAKE_RULE_EQUAL:
    case HANDSHAKE_RULE_AT_MOST:
        judge_number(j, limit, value);
        break;
    case HANDSHAKE_RULE_FLAG:
        if (qbool_get_bool(qobject_to(QBool, value)) && !limit->number) {
            broken(j, limit, limit->breach, NULL, "yes", "no");
        }
        break;
    case HANDSHAKE_RULE_TEXT:
        judge_text(j, limit, value);
        break;
    case HANDSHAKE_RULE_SET:
        judge_set(j, limit, value);
        break;
    case HANDSHAKE_RULE_BITS:
        judge_bits(j, limit, value);
        break;
    case HANDSHAKE_RULE_MASKED:
        judge_masked(j, limit, value);
        break;
    case HANDSHAKE_RULE_REGISTERS:
        judge_registers(j, limit, value);
        break;
    }
}

/* Returns: the source's value, or NULL if it has not promised it */
static const QObject *promised_value(const QDict *promised,
                                     const HandshakeLimit *limit)
{
    const QObject *value = qdict_get(promised, limit->name);
    const QList *list = qobject_to(QList, value);
    const QListEntry *entry;

    if (!limit->item) {
        return value;
    }
    for (entry = list ? qlist_first(list) : NULL; entry;
         entry = qlist_next(entry)) {
        QDict *dict = qobject_to(QDict, qlist_entry_obj(entry));

        if (!strcmp(qdict_get_str(dict, "name"), limit->item)) {
            return qdict_get(dict, "value");
        }
    }
    return NULL;
}

static QDict *promises_to_dict(MigrationPromises *promises)
{
    QObject *result = NULL;
    Visitor *v = qobject_output_visitor_new(&result);

    visit_type_MigrationPromises(v, NULL, &promises, &error_abort);
    visit_complete(v, &result);
    visit_free(v);
    return qobject_to(QDict, result);
}

/* What is there for the source's section, or NULL; @vain as in compare.c */
static const GPtrArray *limits_find(GHashTable *limits, const char *name,
                                    uint32_t instance, unsigned *vain)
{
    g_autofree char *key = handshake_section_key(name, instance);
    const GPtrArray *found = g_hash_table_lookup(limits, key);

    if (!found && *vain < HANDSHAKE_ISSUES_MAX &&
        qemu_savevm_resolve_section(&name, &instance)) {
        g_autofree char *resolved = handshake_section_key(name, instance);

        found = g_hash_table_lookup(limits, resolved);
    }
    *vain += !found;
    return found;
}

void handshake_compare_promises(const MigrationProfile *source,
                                const MigrationProfile *destination,
                                GHashTable *limits, HandshakeIssues *issues)
{
    g_autoptr(GHashTable) told = g_hash_table_new_full(g_str_hash, g_str_equal,
                                                       g_free, NULL);
    static const uint32List zero_alone = { .value = 0 };
    const MigrationProfileSectionList *l;
    unsigned vain = 0;

    for (l = source->sections; l; l = l->next) {
        const MigrationProfileSection *section = l->value;
        const uint32List *i = section->has_instances ? section->instances
                                                     : &zero_alone;
        g_autoptr(QDict) promised = NULL;

        if (!section->promises) {
            continue;
        }
        promised = promises_to_dict(section->promises);
        for (; i; i = i->next) {
            g_autofree char *subject = i->value
                ? handshake_section_key(section->name, i->value)
                : g_strdup(section->name);
            Judgement j = {
                source, destination, section, subject, promised,
                limits_find(limits, section->name, i->value, &vain), told,
                issues,
            };

            for (guint n = 0; j.limits && n < j.limits->len; n++) {
                const HandshakeLimit *limit = g_ptr_array_index(j.limits, n);
                const QObject *value = promised_value(promised, limit);

                if (value) {
                    judge(&j, limit, value);
                }
            }
        }
    }
}
