/*
 * Migration handshake: two profiles in, a list of issues out
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "qapi/error.h"
#include "handshake-compat.h"
#include "handshake-json.h"

/*
 * Architectures whose QEMU binaries share machines and CPUs: there it depends
 * on the guest whether its state fits, so that only a warning is justified.
 */
static const char *const arch_families[][7] = {
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

static void compare_arch(const HandshakeProfile *src,
                         const HandshakeProfile *dst, HandshakeIssues *issues)
{
    bool related;

    if (!src->arch || !dst->arch || !strcmp(src->arch, dst->arch)) {
        return;
    }
    related = arch_related(src->arch, dst->arch);
    handshake_issue_add(issues, "arch",
                        related ? MIGRATION_HANDSHAKE_SEVERITY_WARNING
                                : MIGRATION_HANDSHAKE_SEVERITY_ERROR,
                        "arch", src->arch, dst->arch,
                        "a guest of qemu-system-%s %s run in qemu-system-%s",
                        src->arch, related ? "may not" : "cannot", dst->arch);
}

static void compare_machine(const HandshakeProfile *src,
                            const HandshakeProfile *dst,
                            HandshakeIssues *issues)
{
    if (src->machine && dst->machine && strcmp(src->machine, dst->machine)) {
        handshake_issue_add(issues, "machine-type",
                            MIGRATION_HANDSHAKE_SEVERITY_ERROR, "machine",
                            src->machine, dst->machine,
                            "machine type is '%s' on the source and '%s' on "
                            "the destination", src->machine, dst->machine);
    }
}

static void compare_page_size(const HandshakeProfile *src,
                              const HandshakeProfile *dst,
                              HandshakeIssues *issues)
{
    g_autofree char *a = g_strdup_printf("%" PRIu64, src->page_size);
    g_autofree char *b = g_strdup_printf("%" PRIu64, dst->page_size);

    if (src->page_size && dst->page_size && src->page_size != dst->page_size) {
        handshake_issue_add(issues, "page-size",
                            MIGRATION_HANDSHAKE_SEVERITY_ERROR, "page-size",
                            a, b,
                            "target page size is %s bytes on the source and "
                            "%s bytes on the destination", a, b);
    }
}

static void compare_uuid(const HandshakeProfile *src,
                         const HandshakeProfile *dst, HandshakeIssues *issues)
{
    bool strict = handshake_strlist_contains(src->capabilities,
                                             "validate-uuid");

    if (!src->uuid || !dst->uuid || !g_ascii_strcasecmp(src->uuid, dst->uuid)) {
        return;
    }
    handshake_issue_add(issues, "uuid",
                        strict ? MIGRATION_HANDSHAKE_SEVERITY_ERROR
                               : MIGRATION_HANDSHAKE_SEVERITY_WARNING,
                        "uuid", src->uuid, dst->uuid,
                        "UUID is %s on the source and %s on the destination",
                        src->uuid, dst->uuid);
}

/*
 * Properties that shape the stream without being in it.  They belong to the
 * machine type, but -global can set them, too.
 */
static const struct {
    const char *name;
    /* the capability without which it does not matter, if any */
    const char *capability;
} stream_properties[] = {
    /* The loader takes the next section for something else */
    { "send-configuration" },
    { "send-section-footer" },
    /* The two sides wait for each other at different places */
    { "multifd-flush-after-each-section", "multifd" },
    { "x-preempt-pre-7-2", "postcopy-preempt" },
    /*
     * A loader that wants a description of the device state waits for it for
     * ever, and the source for the loader.  One that does not want it leaves it
     * unread, so that closing resets the connection, maybe before the source
     * knows that all is well: then the guest runs on both sides.
     */
    { "suppress-vmdesc" },
    /*
     * Not listed, because any reader copes with either value of the writer's:
     * store-global-state, send-switchover-start,
     * multifd-clean-tls-termination, x-clear-bitmap-shift.
     */
};

/* Whether both sides have stream_properties[@i], and not the same */
static bool stream_differs(const HandshakeProfile *src,
                           const HandshakeProfile *dst, int i)
{
    const char *name = stream_properties[i].name;
    const QObject *a = src->stream ? qdict_get(src->stream, name) : NULL;
    const QObject *b = dst->stream ? qdict_get(dst->stream, name) : NULL;

    return a && b && !qobject_is_equal(a, b);
}

/* Those properties that matter with @capability; NULL: in any case */
static void compare_stream(const HandshakeProfile *src,
                           const HandshakeProfile *dst,
                           const char *capability, HandshakeIssues *issues)
{
    for (int i = 0; i < ARRAY_SIZE(stream_properties); i++) {
        const char *name = stream_properties[i].name;
        g_autofree char *a_text = NULL;
        g_autofree char *b_text = NULL;

        if (g_strcmp0(stream_properties[i].capability, capability) ||
            !stream_differs(src, dst, i)) {
            continue;
        }
        a_text = handshake_json_text(qdict_get(src->stream, name));
        b_text = handshake_json_text(qdict_get(dst->stream, name));
        handshake_issue_add(issues, "stream-format",
                            MIGRATION_HANDSHAKE_SEVERITY_ERROR, name,
                            a_text, b_text,
                            "stream property '%s' is %s on the source and %s "
                            "on the destination", name, a_text, b_text);
    }
}

/* On the wire, a list without an item is an absent one */
static bool sends_sections(const HandshakeProfile *src)
{
    for (guint i = 0; src->sections && i < src->sections->len; i++) {
        const HandshakeSection *section = g_ptr_array_index(src->sections, i);

        if (!section->idle) {
            return true;
        }
    }
    return false;
}

static bool sends_ram_blocks(const HandshakeProfile *src)
{
    return src->ram_blocks && src->ram_blocks->len;
}

static guint section_hash(gconstpointer p)
{
    const HandshakeSection *section = p;

    return g_str_hash(section->name) + section->instance;
}

static gboolean section_equal(gconstpointer p, gconstpointer q)
{
    const HandshakeSection *a = p;
    const HandshakeSection *b = q;

    return a->instance == b->instance && !strcmp(a->name, b->name);
}

/* As the loader's messages have it */
static char *section_text(const HandshakeSection *section)
{
    return section->instance
        ? g_strdup_printf("%s %" PRIu32, section->name, section->instance)
        : g_strdup(section->name);
}

/* What may not be sent after all is no reason to refuse */
static MigrationHandshakeSeverity part_severity(bool conditional)
{
    return conditional ? MIGRATION_HANDSHAKE_SEVERITY_WARNING
                       : MIGRATION_HANDSHAKE_SEVERITY_ERROR;
}

static void section_missing(const HandshakeSection *src,
                            HandshakeIssues *issues)
{
    g_autofree char *subject = section_text(src);
    g_autofree char *version = g_strdup_printf("version %" PRIu32,
                                               src->version);

    handshake_issue_add(issues, "section-missing",
                        part_severity(src->conditional),
                        subject, version, "missing",
                        "the source %s send the state of '%s', which the "
                        "destination does not have",
                        src->conditional ? "may" : "will", subject);
}

static void compare_version(const HandshakeSection *src,
                            const HandshakeSection *dst,
                            HandshakeIssues *issues)
{
    g_autofree char *subject = NULL;
    g_autofree char *version = NULL;
    g_autofree char *range = NULL;

    if (src->version >= dst->minimum && src->version <= dst->version) {
        return;
    }
    subject = section_text(src);
    version = g_strdup_printf("%" PRIu32, src->version);
    range = dst->minimum < dst->version
        ? g_strdup_printf("%" PRIu32 " to %" PRIu32, dst->minimum,
                          dst->version)
        : g_strdup_printf("%" PRIu32, dst->version);
    handshake_issue_add(issues, "section-version",
                        part_severity(src->conditional),
                        subject, version, range,
                        "the source has version %s of the state of '%s', and "
                        "the destination reads %s", version, subject, range);
}

static void compare_sections(const HandshakeProfile *src,
                             const HandshakeProfile *dst,
                             HandshakeResolveSection *resolve,
                             HandshakeIssues *issues)
{
    g_autoptr(GHashTable) local = g_hash_table_new(section_hash,
                                                   section_equal);
    g_autoptr(GHashTable) matched = g_hash_table_new(NULL, NULL);
    unsigned missing = 0;

    if (!sends_sections(src) || !dst->sections) {
        return;
    }
    for (guint i = 0; i < dst->sections->len; i++) {
        g_hash_table_add(local, g_ptr_array_index(dst->sections, i));
    }

    for (guint i = 0; i < src->sections->len; i++) {
        HandshakeSection *a = g_ptr_array_index(src->sections, i);
        const char *name = a->name;
        HandshakeSection key = { .instance = a->instance };
        HandshakeSection *b = g_hash_table_lookup(local, a);

        if (a->idle) {
            continue;
        }
        /* One of another name is rare, and takes the loader's way */
        if (!b && resolve && missing < HANDSHAKE_ISSUES_MAX &&
            resolve(&name, &key.instance)) {
            key.name = (char *)name;
            b = g_hash_table_lookup(local, &key);
        }
        if (b) {
            g_hash_table_add(matched, b);
            compare_version(a, b, issues);
        } else {
            section_missing(a, issues);
            missing++;
        }
    }

    for (guint i = 0; i < dst->sections->len; i++) {
        HandshakeSection *b = g_ptr_array_index(dst->sections, i);
        g_autofree char *subject = NULL;

        if (b->idle || b->conditional || g_hash_table_contains(matched, b)) {
            continue;
        }
        subject = section_text(b);
        handshake_issue_add(issues, "section-extra",
                            MIGRATION_HANDSHAKE_SEVERITY_WARNING, subject,
                            "missing", "present",
                            "only the destination has '%s', whose state the "
                            "source will not send", subject);
    }
}

/* As qemu_ram_resize() aligns it */
static uint64_t aligned_size(uint64_t size, const HandshakeProfile *dst)
{
    uint64_t align = MAX(MAX(dst->page_size, dst->host_page_size), 1);

    return size > UINT64_MAX - align ? size : QEMU_ALIGN_UP(size, align);
}

/* As qemu_ram_resize() judges it */
static void compare_ram_size(const HandshakeRAMBlock *a,
                             const HandshakeRAMBlock *b,
                             const HandshakeProfile *dst,
                             HandshakeIssues *issues)
{
    uint64_t size = aligned_size(a->size, dst);
    g_autofree char *source = NULL;
    g_autofree char *destination = NULL;

    if (size == b->size || (b->resizeable && size <= b->max_size)) {
        return;
    }
    source = g_strdup_printf("%" PRIu64, a->size);
    destination = b->resizeable
        ? g_strdup_printf("at most %" PRIu64, b->max_size)
        : g_strdup_printf("%" PRIu64, b->size);
    handshake_issue_add(issues, "ram-block-size",
                        MIGRATION_HANDSHAKE_SEVERITY_ERROR, a->name, source,
                        destination,
                        "RAM block '%s' has %s bytes on the source and %s on "
                        "the destination", a->name, source, destination);
}

/* By name; the blocks belong to the profile */
static GHashTable *index_ram_blocks(const HandshakeProfile *profile)
{
    GHashTable *index = g_hash_table_new(g_str_hash, g_str_equal);

    for (guint i = 0; i < profile->ram_blocks->len; i++) {
        HandshakeRAMBlock *block = g_ptr_array_index(profile->ram_blocks, i);

        g_hash_table_insert(index, block->name, block);
    }
    return index;
}

static void compare_ram(const HandshakeProfile *src,
                        const HandshakeProfile *dst, HandshakeIssues *issues)
{
    g_autoptr(GHashTable) remote = NULL;
    g_autoptr(GHashTable) local = NULL;

    if (!sends_ram_blocks(src) || !dst->ram_blocks) {
        return;
    }
    remote = index_ram_blocks(src);
    local = index_ram_blocks(dst);
    for (guint i = 0; i < src->ram_blocks->len; i++) {
        const HandshakeRAMBlock *a = g_ptr_array_index(src->ram_blocks, i);
        const HandshakeRAMBlock *b = g_hash_table_lookup(local, a->name);

        if (b) {
            compare_ram_size(a, b, dst, issues);
        } else {
            g_autofree char *size = g_strdup_printf("%" PRIu64, a->size);

            handshake_issue_add(issues, "ram-block-missing",
                                part_severity(a->conditional), a->name,
                                size, "missing",
                                "the source %s send RAM block '%s', which "
                                "the destination does not have",
                                a->conditional ? "may" : "will", a->name);
        }
    }
    for (guint i = 0; i < dst->ram_blocks->len; i++) {
        const HandshakeRAMBlock *b = g_ptr_array_index(dst->ram_blocks, i);

        if (!g_hash_table_contains(remote, b->name)) {
            g_autofree char *size = g_strdup_printf("%" PRIu64, b->size);

            handshake_issue_add(issues, "ram-block-extra",
                                MIGRATION_HANDSHAKE_SEVERITY_WARNING, b->name,
                                "missing", size,
                                "only the destination has RAM block '%s'",
                                b->name);
        }
    }
}

/* All page sizes of a machine in one number, as in postcopy; 0: unknown */
static uint64_t page_size_summary(const GPtrArray *blocks)
{
    uint64_t summary = 0;

    for (guint i = 0; i < blocks->len; i++) {
        const HandshakeRAMBlock *block = g_ptr_array_index(blocks, i);

        if (!block->page_size) {
            return 0;
        }
        summary |= block->page_size;
    }
    return summary;
}

/* Returns whether they are alike; one that is not known counts as such */
static bool compare_page_size_of(const char *name, uint64_t a, uint64_t b,
                                 HandshakeIssues *issues)
{
    g_autofree char *source = g_strdup_printf("%" PRIu64, a);
    g_autofree char *destination = g_strdup_printf("%" PRIu64, b);

    if (!a || !b || a == b) {
        return true;
    }
    handshake_issue_add(issues, "ram-block-page-size",
                        MIGRATION_HANDSHAKE_SEVERITY_ERROR, name, source,
                        destination,
                        "postcopy needs the same pages on both sides, and "
                        "those of '%s' have %s bytes on the source and %s on "
                        "the destination", name, source, destination);
    return false;
}

/* Postcopy places whole pages of the memory behind a block */
static void compare_ram_page_sizes(const HandshakeProfile *src,
                                   const HandshakeProfile *dst,
                                   HandshakeIssues *issues)
{
    g_autoptr(GHashTable) local = index_ram_blocks(dst);
    bool alike = true;

    for (guint i = 0; i < src->ram_blocks->len; i++) {
        const HandshakeRAMBlock *a = g_ptr_array_index(src->ram_blocks, i);
        const HandshakeRAMBlock *b = g_hash_table_lookup(local, a->name);

        if (b && !compare_page_size_of(a->name, a->page_size, b->page_size,
                                       issues)) {
            alike = false;
        }
    }
    /* It compares the summaries, too, and blocks of one side count there */
    if (alike) {
        compare_page_size_of("all RAM blocks",
                             page_size_summary(src->ram_blocks),
                             page_size_summary(dst->ram_blocks), issues);
    }
}

/*
 * The contents of what only the source shares get lost; but those of a device's
 * memory, whose name begins with its path, may be elsewhere on purpose
 */
static MigrationHandshakeSeverity
sharing_severity(const HandshakeRAMBlock *src, const HandshakeRAMBlock *dst)
{
    return src->shared_file && !dst->shared_file && src->name[0] != '/' &&
           strchr(src->name, '/') ? MIGRATION_HANDSHAKE_SEVERITY_WARNING
                                  : MIGRATION_HANDSHAKE_SEVERITY_ERROR;
}

static void sharing_differs(const char *name,
                            MigrationHandshakeSeverity severity,
                            const char *source, const char *destination,
                            HandshakeIssues *issues)
{
    handshake_issue_add(issues, "capability-unsupported", severity,
                        "x-ignore-shared",
                        source, destination,
                        "capability 'x-ignore-shared' needs the same shared "
                        "RAM on both sides, and block '%s' is %s on the source "
                        "and %s on the destination", name, source, destination);
}

/* With x-ignore-shared, the contents of shared files are not sent */
static void compare_sharing(const HandshakeProfile *src,
                            const HandshakeProfile *dst,
                            HandshakeIssues *issues)
{
    static const char *const texts[] = { "not a shared file", "a shared file" };
    g_autoptr(GHashTable) local = index_ram_blocks(dst);

    for (guint i = 0; i < src->ram_blocks->len; i++) {
        const HandshakeRAMBlock *a = g_ptr_array_index(src->ram_blocks, i);
        const HandshakeRAMBlock *b = g_hash_table_lookup(local, a->name);

        if (b && a->shared_file != b->shared_file) {
            sharing_differs(a->name, sharing_severity(a, b),
                            texts[a->shared_file], texts[b->shared_file],
                            issues);
        } else if (b && a->has_address && b->has_address &&
                   a->address != b->address) {
            g_autofree char *source = g_strdup_printf("at 0x%" PRIx64,
                                                      a->address);
            g_autofree char *destination = g_strdup_printf("at 0x%" PRIx64,
                                                           b->address);

            sharing_differs(a->name, MIGRATION_HANDSHAKE_SEVERITY_ERROR,
                            source, destination, issues);
        }
    }
}

/* What matters only because of @capability */
static void compare_for(const HandshakeProfile *src,
                        const HandshakeProfile *dst, const char *capability,
                        HandshakeIssues *issues)
{
    compare_stream(src, dst, capability, issues);
    if (!src->ram_blocks || !dst->ram_blocks) {
        return;
    }
    if (!strcmp(capability, "postcopy-ram")) {
        compare_ram_page_sizes(src, dst, issues);
    } else if (!strcmp(capability, "x-ignore-shared")) {
        compare_sharing(src, dst, issues);
    }
}

static void compare_unmigratable(const HandshakeProfile *src,
                                 const HandshakeProfile *dst,
                                 HandshakeIssues *issues)
{
    const strList *l;

    for (l = src->unmigratable; l; l = l->next) {
        handshake_issue_add(issues, "unmigratable",
                            MIGRATION_HANDSHAKE_SEVERITY_ERROR, l->value,
                            "not migratable", NULL,
                            "the state of '%s' on the source cannot be "
                            "migrated", l->value);
    }
    for (l = src->blockers; l; l = l->next) {
        handshake_issue_add(issues, "unmigratable",
                            MIGRATION_HANDSHAKE_SEVERITY_ERROR, NULL,
                            "blocked", NULL,
                            "the source cannot migrate now: %s", l->value);
    }
    for (l = dst->unmigratable; l; l = l->next) {
        handshake_issue_add(issues, "unmigratable",
                            MIGRATION_HANDSHAKE_SEVERITY_ERROR, l->value,
                            NULL, "not migratable",
                            "'%s' on the destination cannot be migrated, so "
                            "that nothing can be migrated to it", l->value);
    }
}

bool handshake_compare_capability(const HandshakeProfile *source,
                                  const HandshakeProfile *destination,
                                  const char *capability, Error **errp)
{
    HandshakeIssues issues = { 0 };
    const MigrationHandshakeIssueList *l;
    bool ok = true;

    compare_for(source, destination, capability, &issues);
    for (l = issues.list; l && ok; l = l->next) {
        if (l->value->severity == MIGRATION_HANDSHAKE_SEVERITY_ERROR) {
            error_setg(errp, "%s", l->value->message);
            ok = false;
        }
    }
    handshake_issues_free(&issues);
    return ok;
}

void handshake_compare(const HandshakeProfile *source,
                       const HandshakeProfile *destination,
                       HandshakeResolveSection *resolve,
                       const strList *effective, HandshakeIssues *issues)
{
    compare_arch(source, destination, issues);
    compare_machine(source, destination, issues);
    compare_page_size(source, destination, issues);
    compare_uuid(source, destination, issues);
    compare_stream(source, destination, NULL, issues);
    for (const strList *l = effective; l; l = l->next) {
        compare_for(source, destination, l->value, issues);
    }
    compare_unmigratable(source, destination, issues);
    compare_sections(source, destination, resolve, issues);
    compare_ram(source, destination, issues);
}
