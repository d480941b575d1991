/*
 * Migration handshake: the source's promises, held against what is possible
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "qemu/host-utils.h"
#include "qapi/qapi-types-migration-handshake.h"
#include "migration/savevm.h"
#include "machine.h"
#include "promises.h"

/* Of a set, so many are listed */
#define LISTED_MAX  8

/* What the source has promised; which of them depends on the kind */
typedef struct Value {
    bool present;
    uint64_t number;            /* also of a flag */
    const char *text;
    const strList *set;
} Value;

/* One section's promises and limits */
typedef struct Judgement {
    const MigrationProfile *src;
    const MigrationProfile *dst;
    const MigrationProfileSection *section;
    const char *subject;
    const MigrationPromises *promised;
    const GPtrArray *limits;
    GHashTable *told;           /* messages: all CPUs may be alike */
    HandshakeIssues *issues;
    MigrationHandshakeIssue **back;
} Judgement;

/* How a promise stands in MigrationPromises */
typedef enum PromiseKind {
    PROMISE_FLAG,
    PROMISE_NUMBER,
    PROMISE_TEXT,
    PROMISE_SET,
    PROMISE_NUMBERS,
    PROMISE_TEXTS,
} PromiseKind;

#define PROMISE(kind, name, member, code, message) \
    { name, kind, offsetof(MigrationPromises, member), code, message }

/* A flag or a number, of which there is always one in the structure */
#define SIMPLE(kind, name, member, code, message) \
    { name, kind, offsetof(MigrationPromises, member), code, message, \
      offsetof(MigrationPromises, has_ ## member) }

/*
 * All that there is, in the schema's order, and what people read.  $S: the
 * section, $I: the item, $A: value on the source, $B: on the destination.
 */
static const struct Promise {
    const char *name;
    PromiseKind kind;
    size_t value;
    const char *code;
    const char *message;
    size_t has;
} promises[] = {
    PROMISE(PROMISE_NUMBERS, "counts", counts, "section-schema",
      "the state of '$S' has $A '$I' on the source and $B on the destination"),
    PROMISE(PROMISE_NUMBERS, "values", values, "section-schema",
      "in the state of '$S', '$I' is $A on the source and $B on the "
      "destination"),
    SIMPLE(PROMISE_NUMBER, "bytes", bytes, "section-schema",
      "the state of '$S' has $A bytes on the source and $B on the "
      "destination"),
    PROMISE(PROMISE_SET, "subsections", subsections, "section-schema",
      "the source would send '$A' as a part of '$S', which the destination "
      "does not know"),
    PROMISE(PROMISE_TEXT, "device-type", device_type, "device",
      "'$S' is a $A on the source and a $B on the destination"),
    PROMISE(PROMISE_TEXT, "pci-config", pci_config, "device",
      "'$S': PCI configuration differs at $I: $A on the source, $B on the "
      "destination"),
    PROMISE(PROMISE_TEXT, "pci-status", pci_status, "device",
      "'$S': PCI status differs at $I: $A on the source, $B on the "
      "destination"),
    PROMISE(PROMISE_TEXT, "virtio-features", virtio_features, "device",
      "'$S': the guest uses $A, which the destination does not offer"),
    SIMPLE(PROMISE_NUMBER, "virtio-queues", virtio_queues, "device",
      "'$S': the guest uses $A queues, and the destination has $B"),
    SIMPLE(PROMISE_FLAG, "vnet-hdr", vnet_hdr, "device",
      "'$S': whether packets have virtio headers (vnet_hdr): $A on the source, "
      "$B on the destination"),
    SIMPLE(PROMISE_FLAG, "no-pic", no_pic, "device",
      "the guest of '$S' runs without i8259 interrupt controllers, and those "
      "of the destination would crash it; give its machine 'pic=off'"),
    PROMISE(PROMISE_TEXT, "ports", ports, "device",
      "'$S' has port $A on the source and $B on the destination"),
    PROMISE(PROMISE_TEXT, "cpu-model", cpu_model, "cpu",
      "the guest's CPU is a $A on the source and a $B on the destination"),
    PROMISE(PROMISE_SET, "cpu-features", cpu_features, "cpu",
      "the guest's CPU has $A, which CPUs of the destination do not have"),
    PROMISE(PROMISE_TEXTS, "cpu", cpu, "cpu",
      "the $I of the guest's CPU is $A on the source and $B on the "
      "destination"),
    PROMISE(PROMISE_SET, "cpu-mode", cpu_mode, "cpu",
      "the guest's CPU works as $A, which CPUs of the destination cannot do"),
    PROMISE(PROMISE_TEXT, "cpu-registers", cpu_registers, "cpu",
      "registers of the guest's CPU differ: $A on the source, $B on the "
      "destination"),
    PROMISE(PROMISE_NUMBERS, "machine-capabilities", machine_capabilities,
      "device",
      "capability '$I' of the guest's machine is at level $A on the source, "
      "and at $B on the destination"),
    PROMISE(PROMISE_NUMBERS, "machine-defaults", machine_defaults, "device",
      "capability '$I' of the guest's machine is at least at its default ($A) "
      "on the source, and is not ($B) on the destination"),
    PROMISE(PROMISE_TEXTS, "disks", disks, "disk",
      "disk $I of '$S' is a $A on the source and $B on the destination"),
    PROMISE(PROMISE_NUMBERS, "disk-sizes", disk_sizes, "disk",
      "disk $I of '$S' has $A bytes on the source and $B on the destination"),
    PROMISE(PROMISE_SET, "disk-writable", disk_writable, "disk",
      "disk $A of '$S' can be written on the source, and not on the "
      "destination"),
    PROMISE(PROMISE_TEXTS, "disk-serials", disk_serials, "disk",
      "disk $I of '$S' has serial number $A on the source and $B on the "
      "destination"),
    PROMISE(PROMISE_NUMBERS, "disk-block-sizes", disk_block_sizes, "disk",
      "disk $I of '$S' has blocks of $A bytes on the source and of $B on the "
      "destination"),
};

static const struct Promise *promise_find(const char *name)
{
    for (int i = 0; i < ARRAY_SIZE(promises); i++) {
        if (!strcmp(promises[i].name, name)) {
            return &promises[i];
        }
    }
    /* It has no member in the schema, so that no source can make it */
    return NULL;
}

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

static char *issue_text(const Judgement *j, const HandshakeLimit *limit,
                        const char *item, const char *a, const char *b,
                        const char **code)
{
    const struct Promise *promise = promise_find(limit->name);

    *code = promise->code;
    return fill_in(promise->message, j->subject,
                   item ?: limit->item ?: limit->name, a, b);
}

static void broken(const Judgement *j, const HandshakeLimit *limit,
                   MigrationPromiseBreach breach, const char *item,
                   const char *a, const char *b)
{
    bool harmless = breach == MIGRATION_BREACH_CHANGE ||
                    j->section->conditional;
    const char *code;
    g_autofree char *message = issue_text(j, limit, item, a, b, &code);

    if (g_hash_table_contains(j->told, message)) {
        return;
    }
    handshake_issue_add(j->issues, code,
                        harmless ? HANDSHAKE_WARNING : HANDSHAKE_ERROR,
                        j->subject, a, b, "%s", message);
    if (g_hash_table_size(j->told) < HANDSHAKE_ISSUES_MAX) {
        g_hash_table_add(j->told, g_steal_pointer(&message));
    }
}

static void judge_number(const Judgement *j, const HandshakeLimit *limit,
                         uint64_t number)
{
    if (limit->rule == HANDSHAKE_RULE_EQUAL ? number != limit->number
                                            : number > limit->number) {
        g_autofree char *a = g_strdup_printf("%" PRIu64, number);
        g_autofree char *b = g_strdup_printf("%" PRIu64, limit->number);

        broken(j, limit, limit->breach, NULL, a, b);
    }
}

static bool cpu_model_is_same(const Judgement *j)
{
    const char *model = j->promised->cpu_model;

    for (guint i = 0; i < j->limits->len; i++) {
        const HandshakeLimit *limit = g_ptr_array_index(j->limits, i);

        if (!strcmp(limit->name, "cpu-model")) {
            return !model || !g_strcmp0(limit->text, model);
        }
    }
    return true;
}

static void judge_text(const Judgement *j, const HandshakeLimit *limit,
                       const char *text)
{
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

/* Returns: what is listed, or NULL, to be freed by the caller */
static char *listing_take(Listing *listing)
{
    if (listing->n > LISTED_MAX) {
        g_string_append_printf(listing->text, " and %u more",
                               listing->n - LISTED_MAX);
    }
    return g_string_free(listing->text, !listing->n);
}

/* What is on only one side, or other things that are on each */
static void listing_judge(const Judgement *j, const HandshakeLimit *limit,
                          MigrationPromiseBreach breach, Listing *there,
                          Listing *here)
{
    g_autofree char *a = there ? listing_take(there) : NULL;
    g_autofree char *b = here ? listing_take(here) : NULL;

    if (a || b) {
        broken(j, limit, breach, NULL, a ?: "missing", b ?: "missing");
    }
}

/* Asked for whatever there is, each version of QEMU has its own */
static bool cpu_is_whatever(const Judgement *j)
{
    const char *model = j->promised->cpu_model;

    return model && cpu_model_is_same(j) &&
           (g_str_has_prefix(model, "host-") ||
            g_str_has_prefix(model, "max-")) &&
           g_strcmp0(j->src->qemu_version, j->dst->qemu_version);
}

static void judge_set(const Judgement *j, const HandshakeLimit *limit,
                      const strList *set)
{
    bool is_cpu = !strcmp(limit->name, "cpu-features");
    bool whatever = is_cpu && cpu_is_whatever(j);
    Listing lost = { g_string_new(NULL) };
    Listing changed = { g_string_new(NULL) };

    for (; set; set = set->next) {
        const char *item = set->value;
        void *member = NULL;
        bool known = g_hash_table_lookup_extended(limit->set, item, NULL,
                                                  &member);

        /*
         * What nested guests can do is no reason to refuse; nor is a name that
         * is not known here, which may be that of something known
         */
        if (!(GPOINTER_TO_INT(member) & HANDSHAKE_MEMBER_HERE)) {
            listing_add(whatever ||
                        (is_cpu && (!known || g_str_has_prefix(item, "vmx-")))
                        ? &changed : &lost, item);
        }
    }
    listing_judge(j, limit, limit->breach, &lost, NULL);
    listing_judge(j, limit, MIGRATION_BREACH_CHANGE, &changed, NULL);
}

static char *bit_name(const HandshakeLimit *limit, unsigned bit)
{
    /* Of what stands behind all that there is here, nobody knows the name */
    return limit->describe && bit < 8 * limit->bytes->len
        ? limit->describe(limit->opaque, bit)
        : g_strdup_printf("feature bit %u", bit);
}

static void judge_bits(const Judgement *j, const HandshakeLimit *limit,
                       const char *text)
{
    g_autoptr(GArray) bits = handshake_bits_from_text(text);
    const uint64_t *here = (const uint64_t *)limit->bytes->data;
    unsigned words = limit->bytes->len / sizeof(uint64_t);
    Listing listing = { g_string_new(NULL) };

    for (guint i = 0; bits && i < bits->len; i++) {
        uint64_t missing = g_array_index(bits, uint64_t, i) &
                           ~(i < words ? here[i] : 0);

        for (; missing; missing &= missing - 1) {
            g_autofree char *name = NULL;

            /* A peer may have so many that naming them takes minutes */
            if (listing.n < LISTED_MAX) {
                name = bit_name(limit, i * 64 + ctz64(missing));
            }
            listing_add(&listing, name);
        }
    }
    listing_judge(j, limit, limit->breach, &listing, NULL);
}

/* The first difference is told: those that follow are often its consequences */
static void judge_masked(const Judgement *j, const HandshakeLimit *limit,
                         const char *text)
{
    g_autoptr(GByteArray) bytes = handshake_bytes_from_text(text);
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

/*
 * @r: of the source; @own: of this machine; one of them may be NULL
 * @listed: what has been listed, as one register may be sent as two, that of
 *          AArch32 and that of AArch64
 */
static void register_add(const HandshakeLimit *limit, GHashTable *listed,
                         Listing *there, Listing *here,
                         const MigrationRegister *r,
                         const MigrationRegister *own)
{
    g_autofree char *name = limit->describe_register(limit->opaque,
                                                     (r ?: own)->number);
    g_autofree char *a = g_strdup_printf("%s=0x%" PRIx64, name,
                                         r ? r->value : 0);
    g_autofree char *b = g_strdup_printf("%s=0x%" PRIx64, name,
                                         own ? own->value : 0);

    if (!g_hash_table_add(listed, g_strdup_printf("%s %s", r ? a : "",
                                                  own ? b : ""))) {
        return;
    }
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
                            const char *text)
{
    g_autoptr(GArray) registers = handshake_registers_from_text(text);
    g_autoptr(GHashTable) listed =
        g_hash_table_new_full(g_str_hash, g_str_equal, g_free, NULL);
    Listing lost = { g_string_new(NULL) };
    Listing there = { g_string_new(NULL) };
    Listing here = { g_string_new(NULL) };
    Listing more = { g_string_new(NULL) };

    for (guint i = 0; registers && i < registers->len; i++) {
        const MigrationRegister *r =
            &g_array_index(registers, MigrationRegister, i);
        const MigrationRegister *own = register_find(limit->registers, r);

        if (!own) {
            register_add(limit, listed, &lost, NULL, r, NULL);
        } else if (r->fixed && own->fixed && r->value != own->value) {
            register_add(limit, listed, &there, &here, r, own);
        }
    }
    for (guint i = 0; registers && i < limit->registers->len; i++) {
        const MigrationRegister *own =
            &g_array_index(limit->registers, MigrationRegister, i);

        if (own->fixed && own->value && !register_find(registers, own)) {
            register_add(limit, listed, NULL, &more, NULL, own);
        }
    }
    listing_judge(j, limit, limit->breach, &lost, NULL);
    listing_judge(j, limit, limit->breach, &there, &here);
    listing_judge(j, limit, limit->breach, NULL, &more);
}

static void judge(const Judgement *j, const HandshakeLimit *limit,
                  const Value *value)
{
    switch (limit->rule) {
    case HANDSHAKE_RULE_EQUAL:
    case HANDSHAKE_RULE_AT_MOST:
        judge_number(j, limit, value->number);
        break;
    case HANDSHAKE_RULE_FLAG:
        if (value->number && !limit->number) {
            broken(j, limit, limit->breach, NULL, "yes", "no");
        }
        break;
    case HANDSHAKE_RULE_TEXT:
        judge_text(j, limit, value->text);
        break;
    case HANDSHAKE_RULE_SET:
        judge_set(j, limit, value->set);
        break;
    case HANDSHAKE_RULE_BITS:
        judge_bits(j, limit, value->text);
        break;
    case HANDSHAKE_RULE_MASKED:
        judge_masked(j, limit, value->text);
        break;
    case HANDSHAKE_RULE_REGISTERS:
        judge_registers(j, limit, value->text);
        break;
    }
}

/* Of one reason why the guest could not come back; takes @text */
static void cannot_return(const Judgement *j, const char *a, const char *b,
                          char *text)
{
    MigrationHandshakeIssue *issue = g_new0(MigrationHandshakeIssue, 1);

    issue->subject = g_strdup(j->subject);
    issue->source = g_strdup(a);
    issue->destination = g_strdup(b);
    issue->message = text;
    *j->back = issue;
}

/* What the guest would have from here, and the source does not have */
static void judge_gain(const Judgement *j, const HandshakeLimit *limit,
                       const char *gain)
{
    bool set = limit->rule == HANDSHAKE_RULE_SET;

    cannot_return(j, "missing", gain,
                  g_strdup_printf("'%s' has %s%s%s%s on the destination alone",
                                  j->subject, gain, set ? " (" : "",
                                  set ? limit->name : "", set ? ")" : ""));
}

static int name_order(const void *a, const void *b)
{
    return strcmp(*(const char *const *)a, *(const char *const *)b);
}

static void judge_set_return(const Judgement *j, const HandshakeLimit *limit,
                             const strList *there)
{
    g_autoptr(GHashTable) theirs = g_hash_table_new(g_str_hash, g_str_equal);
    guint n;
    g_autofree gpointer *names = g_hash_table_get_keys_as_array(limit->set, &n);
    Listing gain = { g_string_new(NULL) };
    g_autofree char *text = NULL;

    for (; there; there = there->next) {
        g_hash_table_add(theirs, there->value);
    }
    qsort(names, n, sizeof(*names), name_order);
    for (guint i = 0; i < n; i++) {
        void *member = g_hash_table_lookup(limit->set, names[i]);

        if (GPOINTER_TO_INT(member) & HANDSHAKE_MEMBER_PROMISED &&
            !g_str_has_prefix(names[i], "vmx-") &&
            !g_hash_table_contains(theirs, names[i])) {
            listing_add(&gain, names[i]);
        }
    }
    text = listing_take(&gain);
    if (text) {
        judge_gain(j, limit, text);
    }
}

static void judge_equal_return(const Judgement *j, const HandshakeLimit *limit,
                               const Value *value)
{
    bool number = limit->rule == HANDSHAKE_RULE_EQUAL;
    g_autofree char *a = number ? g_strdup_printf("%" PRIu64, value->number)
                                : g_strdup(value->text);
    g_autofree char *b = number ? g_strdup_printf("%" PRIu64, limit->number)
                                : g_strdup(limit->text);
    const char *code;

    if (strcmp(a, b)) {
        cannot_return(j, a, b, issue_text(j, limit, NULL, a, b, &code));
    }
}

/*
 * What this machine would promise the guest by itself, held against the source.
 * Of limits of the source nothing is known but what it has promised.  One of
 * the same version would have told what it has.
 */
static void judge_return(const Judgement *j, const HandshakeLimit *limit,
                         const Value *value)
{
    bool tells = !g_strcmp0(j->src->qemu_version, j->dst->qemu_version);

    if (*j->back || limit->breach == MIGRATION_BREACH_CHANGE ||
        j->section->conditional) {
        return;
    }
    switch (limit->rule) {
    case HANDSHAKE_RULE_EQUAL:
    case HANDSHAKE_RULE_TEXT:
        if (value->present && limit->promised) {
            judge_equal_return(j, limit, value);
        }
        break;
    case HANDSHAKE_RULE_FLAG:
        if (tells && limit->promised && !value->number) {
            judge_gain(j, limit, limit->name);
        }
        break;
    case HANDSHAKE_RULE_SET:
        /* What a CPU works as comes with the guest */
        if (tells && strcmp(limit->name, "cpu-mode")) {
            judge_set_return(j, limit, value->set);
        }
        break;
    case HANDSHAKE_RULE_AT_MOST:
    case HANDSHAKE_RULE_BITS:
    case HANDSHAKE_RULE_MASKED:
    case HANDSHAKE_RULE_REGISTERS:
        /* The guest may use no more than now; what the source has is unknown */
        break;
    }
}

static Value text_value(const char *text)
{
    return (Value) { text != NULL, .text = text };
}

static Value set_value(const strList *set)
{
    return (Value) { set != NULL, .set = set };
}

static Value number_of(const MigrationPromiseNumberList *l, const char *item)
{
    for (; l; l = l->next) {
        if (!g_strcmp0(l->value->name, item)) {
            return (Value) { true, .number = l->value->value };
        }
    }
    return (Value) { false };
}

static Value text_of(const MigrationPromiseTextList *l, const char *item)
{
    for (; l; l = l->next) {
        if (!g_strcmp0(l->value->name, item)) {
            return text_value(l->value->value);
        }
    }
    return (Value) { false };
}

static Value promised_value(const MigrationPromises *promised,
                            const HandshakeLimit *limit)
{
    const struct Promise *promise = promise_find(limit->name);
    const char *at = (const char *)promised;

    if (!promise || (promise->has && !*(const bool *)(at + promise->has))) {
        return (Value) { false };
    }
    at += promise->value;
    switch (promise->kind) {
    case PROMISE_FLAG:
        return (Value) { true, .number = *(const bool *)at };
    case PROMISE_NUMBER:
        return (Value) { true, .number = *(const uint64_t *)at };
    case PROMISE_TEXT:
        return text_value(*(char *const *)at);
    case PROMISE_SET:
        return set_value(*(strList *const *)at);
    case PROMISE_NUMBERS:
        return number_of(*(MigrationPromiseNumberList *const *)at, limit->item);
    case PROMISE_TEXTS:
        return text_of(*(MigrationPromiseTextList *const *)at, limit->item);
    }
    g_assert_not_reached();
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
                                GHashTable *limits, HandshakeIssues *issues,
                                MigrationHandshakeIssue **back)
{
    g_autoptr(GHashTable) told = g_hash_table_new_full(g_str_hash, g_str_equal,
                                                       g_free, NULL);
    g_autoptr(GHashTable) judged = g_hash_table_new(NULL, NULL);
    static const uint32List zero_alone = { .value = 0 };
    const MigrationProfileSectionList *l;
    unsigned vain = 0;

    *back = NULL;
    for (l = source->sections; l; l = l->next) {
        const MigrationProfileSection *section = l->value;
        const uint32List *i = section->has_instances ? section->instances
                                                     : &zero_alone;

        if (!section->promises) {
            continue;
        }
        for (; i; i = i->next) {
            g_autofree char *subject = i->value
                ? handshake_section_key(section->name, i->value)
                : g_strdup(section->name);
            Judgement j = {
                source, destination, section, subject, section->promises,
                limits_find(limits, section->name, i->value, &vain), told,
                issues, back,
            };

            /* A peer may name a section as often as it likes */
            if (!j.limits || !g_hash_table_add(judged, (void *)j.limits)) {
                continue;
            }
            for (guint n = 0; n < j.limits->len; n++) {
                const HandshakeLimit *limit = g_ptr_array_index(j.limits, n);
                Value value = promised_value(section->promises, limit);

                if (value.present) {
                    judge(&j, limit, &value);
                }
                judge_return(&j, limit, &value);
            }
        }
    }
}
