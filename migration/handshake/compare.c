/*
 * Migration handshake: two profiles in, a list of issues out
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "qapi/error.h"
#include "migration/savevm.h"
#include "machine.h"

/* What is compared, and where to note what differs */
typedef struct Comparison {
    const MigrationProfile *src;
    const MigrationProfile *dst;
    GHashTable *dst_blocks;     /* by name */
    HandshakeIssues *issues;
} Comparison;

/*
 * Architectures whose QEMU binaries share machines and CPUs: there it depends
 * on the guest whether its state fits, so that only a warning is justified.
 */
static const char *const arch_families[][5] = {
    { "i386", "x86_64" },
    { "arm", "aarch64" },
    { "ppc", "ppc64" },
    { "riscv32", "riscv64" },
    { "mips", "mipsel", "mips64", "mips64el" },
    { "sparc", "sparc64" },
};

static bool arch_related(const char *a, const char *b)
{
    for (int i = 0; i < ARRAY_SIZE(arch_families); i++) {
        if (g_strv_contains(arch_families[i], a) &&
            g_strv_contains(arch_families[i], b)) {
            return true;
        }
    }
    return false;
}

static void compare_arch(const Comparison *c)
{
    const char *a = c->src->arch;
    const char *b = c->dst->arch;
    bool related;

    if (a && b && strcmp(a, b)) {
        related = arch_related(a, b);
        handshake_issue_add(c->issues, "arch",
                            related ? HANDSHAKE_WARNING : HANDSHAKE_ERROR,
                            "arch", a, b,
                            "a guest of qemu-system-%s %s run in "
                            "qemu-system-%s",
                            a, related ? "may not" : "cannot", b);
    }
}

static void compare_machine(const Comparison *c)
{
    const char *a = c->src->machine;
    const char *b = c->dst->machine;

    if (a && b && strcmp(a, b)) {
        handshake_issue_add(c->issues, "machine-type", HANDSHAKE_ERROR,
                            "machine", a, b,
                            "machine type is '%s' on the source and '%s' on "
                            "the destination", a, b);
    }
}

static void compare_page_size(const Comparison *c)
{
    g_autofree char *a = g_strdup_printf("%" PRIu64, c->src->page_size);
    g_autofree char *b = g_strdup_printf("%" PRIu64, c->dst->page_size);

    if (c->src->page_size && c->dst->page_size && strcmp(a, b)) {
        handshake_issue_add(c->issues, "page-size", HANDSHAKE_ERROR,
                            "page-size", a, b,
                            "target page size is %s bytes on the source and "
                            "%s bytes on the destination", a, b);
    }
}

static void compare_uuid(const Comparison *c)
{
    const char *a = c->src->uuid;
    const char *b = c->dst->uuid;
    bool strict = handshake_has_name(c->src->capabilities, "validate-uuid");

    if (a && b && g_ascii_strcasecmp(a, b)) {
        handshake_issue_add(c->issues, "uuid",
                            strict ? HANDSHAKE_ERROR : HANDSHAKE_WARNING,
                            "uuid", a, b,
                            "UUID is %s on the source and %s on the "
                            "destination", a, b);
    }
}

#define STREAM_PROPERTY(name, member, capability) \
    { name, capability, offsetof(MigrationProfileStream, has_ ## member), \
      offsetof(MigrationProfileStream, member) }

/*
 * Properties that shape the stream without being in it.  They belong to the
 * machine type, but -global can set them, too.
 */
static const struct {
    const char *name;
    const char *capability;     /* without which it does not matter, if any */
    size_t has;
    size_t value;
} stream_properties[] = {
    /* The loader takes the next section for something else */
    STREAM_PROPERTY("send-configuration", send_configuration, NULL),
    STREAM_PROPERTY("send-section-footer", send_section_footer, NULL),
    /* The two sides wait for each other at different places */
    STREAM_PROPERTY("multifd-flush-after-each-section",
                    multifd_flush_after_each_section, "multifd"),
    STREAM_PROPERTY("x-preempt-pre-7-2", x_preempt_pre_7_2,
                    "postcopy-preempt"),
    /* The source waits for more than is sent, or for less */
    STREAM_PROPERTY("switchover-ack-legacy", switchover_ack_legacy,
                    "switchover-ack"),
    /*
     * A loader that wants a description of the device state waits for it for
     * ever, and the source for the loader.  One that does not want it leaves it
     * unread, so that closing resets the connection, maybe before the source
     * knows that all is well: then the guest runs on both sides.
     */
    STREAM_PROPERTY("suppress-vmdesc", suppress_vmdesc, NULL),
    /*
     * Not listed, because any reader copes with either value of the writer's:
     * store-global-state, send-switchover-start,
     * multifd-clean-tls-termination.
     */
};

static bool stream_bool(const MigrationProfileStream *stream, size_t offset)
{
    return stream && *(const bool *)((const char *)stream + offset);
}

/* Those properties that matter with @capability; NULL: in any case */
static void compare_stream(const Comparison *c, const char *capability)
{
    static const char *const texts[] = { "false", "true" };

    for (int i = 0; i < ARRAY_SIZE(stream_properties); i++) {
        const char *name = stream_properties[i].name;
        size_t has = stream_properties[i].has;
        bool a = stream_bool(c->src->stream, stream_properties[i].value);
        bool b = stream_bool(c->dst->stream, stream_properties[i].value);

        if (a != b && stream_bool(c->src->stream, has) &&
            stream_bool(c->dst->stream, has) &&
            !g_strcmp0(stream_properties[i].capability, capability)) {
            handshake_issue_add(c->issues, "stream-format", HANDSHAKE_ERROR,
                                name, texts[a], texts[b],
                                "stream property '%s' is %s on the source and "
                                "%s on the destination",
                                name, texts[a], texts[b]);
        }
    }
}

/* What may not be sent after all is no reason to refuse */
static HandshakeSeverity part_severity(bool conditional)
{
    return conditional ? HANDSHAKE_WARNING : HANDSHAKE_ERROR;
}

static void part_missing(const Comparison *c, const char *code,
                         const char *what, const char *name,
                         bool conditional, const char *value)
{
    handshake_issue_add(c->issues, code, part_severity(conditional), name,
                        value, "missing",
                        "the source %s send %s '%s', which the destination "
                        "does not have",
                        conditional ? "may" : "will", what, name);
}

static const uint32List *section_instances(const MigrationProfileSection *s)
{
    static const uint32List zero_alone = { .value = 0 };

    return s->has_instances ? s->instances : &zero_alone;
}

char *handshake_section_key(const char *name, uint32_t instance)
{
    return g_strdup_printf("%s %" PRIu32, name, instance);
}

/* By handshake_section_key() */
static GHashTable *index_sections(const MigrationProfileSectionList *l)
{
    GHashTable *index = g_hash_table_new_full(g_str_hash, g_str_equal, g_free,
                                              NULL);
    const uint32List *i;

    for (; l; l = l->next) {
        for (i = section_instances(l->value); i; i = i->next) {
            g_hash_table_insert(index,
                                handshake_section_key(l->value->name, i->value),
                                l->value);
        }
    }
    return index;
}

/*
 * The section of the destination that loads one of the source's, or NULL.  One
 * of another name is rare, and is looked up the loader's way; @vain bounds how
 * often a peer can make us do so for nothing.
 */
static const MigrationProfileSection *
section_find(GHashTable *index, GHashTable *matched, const char *name,
             uint32_t instance, unsigned *vain)
{
    g_autofree char *key = handshake_section_key(name, instance);
    const MigrationProfileSection *section = g_hash_table_lookup(index, key);

    if (!section && *vain < HANDSHAKE_ISSUES_MAX &&
        qemu_savevm_resolve_section(&name, &instance)) {
        g_free(key);
        key = handshake_section_key(name, instance);
        section = g_hash_table_lookup(index, key);
    }
    if (!section || !g_hash_table_add(matched, g_steal_pointer(&key))) {
        (*vain)++;
    }
    return section;
}

/* As the loader's messages have it */
static char *section_text(const MigrationProfileSection *section,
                          uint32_t instance)
{
    return instance ? handshake_section_key(section->name, instance)
                    : g_strdup(section->name);
}

static void compare_version(const Comparison *c,
                            const MigrationProfileSection *src,
                            const MigrationProfileSection *dst,
                            const char *subject)
{
    g_autofree char *version = NULL;
    g_autofree char *range = NULL;

    if (src->version >= dst->minimum_version && src->version <= dst->version) {
        return;
    }
    version = g_strdup_printf("%" PRIu32, src->version);
    range = dst->minimum_version < dst->version
        ? g_strdup_printf("%" PRIu32 " to %" PRIu32, dst->minimum_version,
                          dst->version)
        : g_strdup_printf("%" PRIu32, dst->version);
    handshake_issue_add(c->issues, "section-version",
                        part_severity(src->conditional),
                        subject, version, range,
                        "the source has version %s of the state of '%s', and "
                        "the destination reads %s", version, subject, range);
}

static void compare_section(const Comparison *c,
                            const MigrationProfileSection *src,
                            const MigrationProfileSection *dst,
                            uint32_t instance)
{
    g_autofree char *subject = section_text(src, instance);
    g_autofree char *version = g_strdup_printf("version %" PRIu32,
                                               src->version);

    if (dst) {
        compare_version(c, src, dst, subject);
    } else {
        part_missing(c, "section-missing", "the state of", subject,
                     src->conditional, version);
    }
}

static void compare_sections(const Comparison *c)
{
    g_autoptr(GHashTable) index = NULL;
    g_autoptr(GHashTable) matched = NULL;
    const MigrationProfileSectionList *l;
    const uint32List *i;
    unsigned vain = 0;

    if (!c->src->sections || !c->dst->has_sections) {
        return;
    }
    index = index_sections(c->dst->sections);
    matched = g_hash_table_new_full(g_str_hash, g_str_equal, g_free, NULL);
    for (l = c->src->sections; l; l = l->next) {
        for (i = section_instances(l->value); i; i = i->next) {
            compare_section(c, l->value,
                            section_find(index, matched, l->value->name,
                                         i->value, &vain),
                            i->value);
        }
    }
    for (l = c->dst->sections; l; l = l->next) {
        for (i = section_instances(l->value); i && !l->value->conditional;
             i = i->next) {
            g_autofree char *key = handshake_section_key(l->value->name,
                                                         i->value);
            g_autofree char *subject = section_text(l->value, i->value);

            if (!g_hash_table_contains(matched, key)) {
                handshake_issue_add(c->issues, "section-extra",
                                    HANDSHAKE_WARNING, subject,
                                    "missing", "present",
                                    "only the destination has '%s', whose "
                                    "state the source will not send", subject);
            }
        }
    }
}

/* By name; the blocks belong to @profile */
static GHashTable *index_blocks(const MigrationProfile *profile)
{
    GHashTable *index = g_hash_table_new(g_str_hash, g_str_equal);
    const MigrationProfileRAMBlockList *l;

    for (l = profile->ram_blocks; l; l = l->next) {
        g_hash_table_insert(index, l->value->name, l->value);
    }
    return index;
}

/* As qemu_ram_resize() aligns it, and takes it or not */
static void compare_block_size(const Comparison *c,
                               const MigrationProfileRAMBlock *src,
                               const MigrationProfileRAMBlock *dst)
{
    uint64_t align = MAX(MAX(c->dst->page_size, c->dst->host_page_size), 1);
    uint64_t size = src->size > UINT64_MAX - align
        ? src->size : QEMU_ALIGN_UP(src->size, align);
    uint64_t max_size = dst->has_max_size ? dst->max_size : dst->size;
    g_autofree char *a = NULL;
    g_autofree char *b = NULL;

    if (size == dst->size || (dst->resizeable && size <= max_size)) {
        return;
    }
    a = g_strdup_printf("%" PRIu64, src->size);
    b = dst->resizeable ? g_strdup_printf("at most %" PRIu64, max_size)
                        : g_strdup_printf("%" PRIu64, dst->size);
    handshake_issue_add(c->issues, "ram-block-size", HANDSHAKE_ERROR,
                        src->name, a, b,
                        "RAM block '%s' has %s bytes on the source and %s on "
                        "the destination", src->name, a, b);
}

/* Whether the byte at @offset, which @a has, stands where @a has it */
static bool mapping_has(const MigrationProfileMappingList *l,
                        const MigrationProfileMapping *a, uint64_t offset)
{
    for (; l; l = l->next) {
        if (offset - l->value->offset < l->value->size &&
            l->value->address - l->value->offset == a->address - a->offset) {
            return true;
        }
    }
    return false;
}

/*
 * Whether any byte that both have mapped stands in another place.  It is enough
 * to look where parts begin: then there is a first such byte.
 */
static const MigrationProfileMapping *
mapping_moved(const MigrationProfileRAMBlock *src,
              const MigrationProfileRAMBlock *dst, uint64_t *address)
{
    const MigrationProfileMappingList *l, *m;

    for (l = src->mapped; l; l = l->next) {
        const MigrationProfileMapping *a = l->value;

        for (m = dst->mapped; m; m = m->next) {
            const MigrationProfileMapping *b = m->value;
            uint64_t offset = MAX(a->offset, b->offset);

            if (offset - a->offset < a->size && offset - b->offset < b->size &&
                !mapping_has(dst->mapped, a, offset)) {
                *address = b->address + (a->offset - b->offset);
                return a;
            }
        }
    }
    return NULL;
}

static void compare_block_address(const Comparison *c,
                                  const MigrationProfileRAMBlock *src,
                                  const MigrationProfileRAMBlock *dst)
{
    uint64_t address;
    const MigrationProfileMapping *moved = mapping_moved(src, dst, &address);
    g_autofree char *a = NULL;
    g_autofree char *b = NULL;

    if (moved) {
        a = g_strdup_printf("0x%" PRIx64, moved->address);
        b = g_strdup_printf("0x%" PRIx64, address);
        handshake_issue_add(c->issues, "ram-block-address", HANDSHAKE_ERROR,
                            src->name, a, b,
                            "memory '%s' is at %s on the source and at %s on "
                            "the destination", src->name, a, b);
    }
}

static void compare_blocks(const Comparison *c)
{
    g_autoptr(GHashTable) src_blocks = index_blocks(c->src);
    const MigrationProfileRAMBlockList *l;

    if (!c->src->ram_blocks || !c->dst->has_ram_blocks) {
        return;
    }
    for (l = c->src->ram_blocks; l; l = l->next) {
        const MigrationProfileRAMBlock *a = l->value;
        const MigrationProfileRAMBlock *b = g_hash_table_lookup(c->dst_blocks,
                                                                a->name);
        g_autofree char *size = g_strdup_printf("%" PRIu64, a->size);

        if (b) {
            compare_block_size(c, a, b);
            compare_block_address(c, a, b);
        } else if (a->conditional) {
            /* The list of blocks goes out before the device does */
            handshake_issue_add(c->issues, "ram-block-missing", HANDSHAKE_ERROR,
                                a->name, size, "missing",
                                "the source will send RAM block '%s' before "
                                "its device is unplugged, and the destination "
                                "does not have it; give the device 'romfile=' "
                                "on both sides", a->name);
        } else {
            part_missing(c, "ram-block-missing", "RAM block", a->name, false,
                         size);
        }
    }
    for (l = c->dst->ram_blocks; l; l = l->next) {
        const MigrationProfileRAMBlock *b = l->value;
        g_autofree char *size = g_strdup_printf("%" PRIu64, b->size);

        if (!g_hash_table_contains(src_blocks, b->name)) {
            handshake_issue_add(c->issues, "ram-block-extra",
                                HANDSHAKE_WARNING, b->name, "missing", size,
                                "only the destination has RAM block '%s'",
                                b->name);
        }
    }
}

/* All page sizes of a machine in one number, as in postcopy; 0: unknown */
static uint64_t page_size_summary(const MigrationProfileRAMBlockList *l)
{
    uint64_t summary = 0;

    for (; l; l = l->next) {
        if (!l->value->page_size) {
            return 0;
        }
        summary |= l->value->page_size;
    }
    return summary;
}

/* Returns whether they are alike; one that is not known counts as such */
static bool compare_block_pages(const Comparison *c, const char *name,
                                uint64_t src, uint64_t dst)
{
    g_autofree char *a = g_strdup_printf("%" PRIu64, src);
    g_autofree char *b = g_strdup_printf("%" PRIu64, dst);

    if (!src || !dst || src == dst) {
        return true;
    }
    handshake_issue_add(c->issues, "ram-block-page-size", HANDSHAKE_ERROR,
                        name, a, b,
                        "postcopy needs the same pages on both sides, and "
                        "those of '%s' have %s bytes on the source and %s on "
                        "the destination", name, a, b);
    return false;
}

/* Postcopy places whole pages of the memory behind a block */
static void compare_postcopy(const Comparison *c)
{
    const MigrationProfileRAMBlockList *l;
    bool alike = true;

    for (l = c->src->ram_blocks; l; l = l->next) {
        const MigrationProfileRAMBlock *b =
            g_hash_table_lookup(c->dst_blocks, l->value->name);

        if (b && !compare_block_pages(c, b->name, l->value->page_size,
                                      b->page_size)) {
            alike = false;
        }
    }
    /* It compares the summaries, too, and blocks of one side count there */
    if (alike) {
        compare_block_pages(c, "all RAM blocks",
                            page_size_summary(c->src->ram_blocks),
                            page_size_summary(c->dst->ram_blocks));
    }
}

static void sharing_differs(const Comparison *c, const char *name,
                            HandshakeSeverity severity,
                            const char *a, const char *b)
{
    handshake_issue_add(c->issues, "capability-unsupported", severity,
                        "x-ignore-shared", a, b,
                        "capability 'x-ignore-shared' needs the same shared "
                        "RAM on both sides, and block '%s' is %s on the source "
                        "and %s on the destination", name, a, b);
}

/*
 * The contents of what only the source shares get lost; but those of a device's
 * memory, whose name begins with its path, may be elsewhere on purpose
 */
static HandshakeSeverity sharing_severity(const MigrationProfileRAMBlock *src)
{
    return part_severity(src->shared_file && src->name[0] != '/' &&
                         strchr(src->name, '/'));
}

/* With x-ignore-shared, the contents of shared files are not sent */
static void compare_sharing(const Comparison *c)
{
    static const char *const texts[] = { "not a shared file", "a shared file" };
    const MigrationProfileRAMBlockList *l;

    for (l = c->src->ram_blocks; l; l = l->next) {
        const MigrationProfileRAMBlock *a = l->value;
        const MigrationProfileRAMBlock *b = g_hash_table_lookup(c->dst_blocks,
                                                                a->name);

        if (b && a->shared_file != b->shared_file) {
            sharing_differs(c, a->name, sharing_severity(a),
                            texts[a->shared_file], texts[b->shared_file]);
        } else if (b && a->has_address && b->has_address &&
                   a->address != b->address) {
            g_autofree char *at = g_strdup_printf("at 0x%" PRIx64, a->address);
            g_autofree char *to = g_strdup_printf("at 0x%" PRIx64, b->address);

            sharing_differs(c, a->name, HANDSHAKE_ERROR, at, to);
        }
    }
}

/* Whether the loader finds @bitmap's node, and what to call it there */
static bool bitmap_is_found(const Comparison *c,
                            const MigrationProfileBitmap *bitmap,
                            bool *node_found)
{
    const MigrationProfileBitmapList *l;

    *node_found = false;
    for (l = c->dst->bitmaps; l; l = l->next) {
        const MigrationProfileBitmap *b = l->value;

        if (!strcmp(b->node, bitmap->node)) {
            *node_found = true;
            if (!b->name || !bitmap->name || !strcmp(b->name, bitmap->name)) {
                return true;
            }
        }
    }
    return false;
}

/* One that it does not find makes the loader drop all bitmaps, and go on */
static void compare_bitmaps(const Comparison *c)
{
    const MigrationProfileBitmapList *l;

    if (!c->dst->has_bitmaps) {
        return;
    }
    for (l = c->src->bitmaps; l; l = l->next) {
        const MigrationProfileBitmap *b = l->value;
        const char *name = b->name ?: "?";
        bool node_found;

        if (bitmap_is_found(c, b, &node_found)) {
            continue;
        }
        handshake_issue_add(c->issues, "bitmap-missing", HANDSHAKE_ERROR,
                            b->node, name, "missing",
                            node_found
                            ? "dirty bitmaps would be lost: "
                              "'block-bitmap-mapping' on the destination names "
                              "node '%s', and not its bitmap '%s'"
                            : "dirty bitmaps would be lost: the destination "
                              "does not have node '%s', whose bitmap '%s' the "
                              "source will send", b->node, name);
    }
}

/* What matters only because of @capability */
static void compare_for(const Comparison *c, const char *capability)
{
    compare_stream(c, capability);
    if (!strcmp(capability, "dirty-bitmaps")) {
        compare_bitmaps(c);
    }
    if (!c->src->ram_blocks || !c->dst->ram_blocks) {
        return;
    }
    if (!strcmp(capability, "postcopy-ram")) {
        compare_postcopy(c);
    } else if (!strcmp(capability, "x-ignore-shared")) {
        compare_sharing(c);
    }
}

static void compare_unmigratable(const Comparison *c)
{
    const strList *l;

    for (l = c->src->unmigratable; l; l = l->next) {
        handshake_issue_add(c->issues, "unmigratable", HANDSHAKE_ERROR,
                            l->value, "not migratable", NULL,
                            "the state of '%s' on the source cannot be "
                            "migrated", l->value);
    }
    for (l = c->src->blockers; l; l = l->next) {
        handshake_issue_add(c->issues, "unmigratable", HANDSHAKE_ERROR,
                            NULL, "blocked", NULL,
                            "the source cannot migrate now: %s", l->value);
    }
    for (l = c->dst->unmigratable; l; l = l->next) {
        handshake_issue_add(c->issues, "unmigratable", HANDSHAKE_ERROR,
                            l->value, NULL, "not migratable",
                            "'%s' on the destination cannot be migrated, so "
                            "that nothing can be migrated to it", l->value);
    }
}

bool handshake_compare_capability(const MigrationProfile *source,
                                  const MigrationProfile *destination,
                                  const char *capability, Error **errp)
{
    g_autoptr(GHashTable) blocks = index_blocks(destination);
    HandshakeIssues issues = { 0 };
    Comparison c = { source, destination, blocks, &issues };
    bool ok;

    compare_for(&c, capability);
    ok = !issues.errors;
    if (!ok) {
        /* Errors come first */
        error_setg(errp, "%s", issues.list->value->message);
    }
    handshake_issues_free(&issues);
    return ok;
}

void handshake_compare(const MigrationProfile *source,
                       const MigrationProfile *destination,
                       const strList *effective, HandshakeIssues *issues)
{
    g_autoptr(GHashTable) blocks = index_blocks(destination);
    Comparison c = { source, destination, blocks, issues };

    compare_arch(&c);
    compare_machine(&c);
    compare_page_size(&c);
    compare_uuid(&c);
    compare_stream(&c, NULL);
    for (; effective; effective = effective->next) {
        compare_for(&c, effective->value);
    }
    compare_unmigratable(&c);
    compare_sections(&c);
    compare_blocks(&c);
}

static void no_return(const Comparison *c, const char *subject, const char *a,
                      const char *b, const char *reason)
{
    handshake_issue_add(c->issues, "no-return", HANDSHAKE_INFO, subject, a, b,
                        "the guest could not come back: %s", reason);
}

/* @src: NULL if the source does not have it */
static void section_stays(const Comparison *c,
                          const MigrationProfileSection *src,
                          const MigrationProfileSection *dst, uint32_t instance)
{
    g_autofree char *subject = section_text(dst, instance);
    g_autofree char *sent = g_strdup_printf("version %" PRIu32, dst->version);
    g_autofree char *read = src ? g_strdup_printf("version %" PRIu32,
                                                  src->version) : NULL;
    g_autofree char *reason = g_strdup_printf(
        "the destination would send %s of the state of '%s', %s%s", sent,
        subject, read ? "and the source reads no more than "
                      : "which the source does not have", read ?: "");

    no_return(c, subject, read ?: "missing", sent, reason);
}

/* Returns whether the source reads what the destination would send */
static bool section_may_return(const Comparison *c,
                               const MigrationProfileSection *src,
                               const MigrationProfileSection *dst,
                               uint32_t instance)
{
    /* Nobody knows what becomes of one that may not be sent */
    if (src->conditional || dst->conditional) {
        return true;
    }
    if (dst->version > src->version) {
        section_stays(c, src, dst, instance);
        return false;
    }
    return true;
}

void handshake_compare_return(const MigrationProfile *source,
                              const MigrationProfile *destination,
                              const MigrationHandshakeIssue *back,
                              HandshakeIssues *issues)
{
    Comparison c = { source, destination, NULL, issues };
    g_autoptr(GHashTable) index = NULL;
    g_autoptr(GHashTable) matched = NULL;
    const MigrationProfileSectionList *l;
    const uint32List *i;
    unsigned vain = 0;

    if (!source->sections || !destination->has_sections) {
        return;
    }
    index = index_sections(destination->sections);
    matched = g_hash_table_new_full(g_str_hash, g_str_equal, g_free, NULL);
    for (l = source->sections; l; l = l->next) {
        for (i = section_instances(l->value); i; i = i->next) {
            const MigrationProfileSection *dst =
                section_find(index, matched, l->value->name, i->value, &vain);

            if (dst && !section_may_return(&c, l->value, dst, i->value)) {
                return;
            }
        }
    }
    for (l = destination->sections; l; l = l->next) {
        for (i = section_instances(l->value); i && !l->value->conditional;
             i = i->next) {
            g_autofree char *key = handshake_section_key(l->value->name,
                                                         i->value);

            if (!g_hash_table_contains(matched, key)) {
                section_stays(&c, NULL, l->value, i->value);
                return;
            }
        }
    }
    if (back) {
        no_return(&c, back->subject, back->source, back->destination,
                  back->message);
    }
}
