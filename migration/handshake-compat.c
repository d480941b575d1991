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
    MigrationHandshakeSeverity severity;
} stream_properties[] = {
    /* The loader takes the next section for something else */
    { "send-configuration", NULL, MIGRATION_HANDSHAKE_SEVERITY_ERROR },
    { "send-section-footer", NULL, MIGRATION_HANDSHAKE_SEVERITY_ERROR },
    /* The two sides wait for each other at different places */
    { "multifd-flush-after-each-section", "multifd",
      MIGRATION_HANDSHAKE_SEVERITY_ERROR },
    { "x-preempt-pre-7-2", "postcopy-preempt",
      MIGRATION_HANDSHAKE_SEVERITY_ERROR },
    /* The loader complains about what follows the device state, and goes on */
    { "suppress-vmdesc", NULL, MIGRATION_HANDSHAKE_SEVERITY_WARNING },
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

bool handshake_compare_capability(const HandshakeProfile *source,
                                  const HandshakeProfile *destination,
                                  const char *capability, Error **errp)
{
    for (int i = 0; i < ARRAY_SIZE(stream_properties); i++) {
        if (stream_properties[i].capability &&
            !strcmp(stream_properties[i].capability, capability) &&
            stream_differs(source, destination, i)) {
            error_setg(errp, "stream property '%s' is not the same on both "
                       "sides", stream_properties[i].name);
            return false;
        }
    }
    return true;
}

static void compare_stream(const HandshakeProfile *src,
                           const HandshakeProfile *dst,
                           const strList *effective, HandshakeIssues *issues)
{
    for (int i = 0; i < ARRAY_SIZE(stream_properties); i++) {
        const char *name = stream_properties[i].name;
        const char *capability = stream_properties[i].capability;
        g_autofree char *a_text = NULL;
        g_autofree char *b_text = NULL;

        if (!stream_differs(src, dst, i) ||
            (capability &&
             !handshake_strlist_contains(effective, capability))) {
            continue;
        }
        a_text = handshake_json_text(qdict_get(src->stream, name));
        b_text = handshake_json_text(qdict_get(dst->stream, name));
        handshake_issue_add(issues, "stream-format",
                            stream_properties[i].severity, name,
                            a_text, b_text,
                            "stream property '%s' is %s on the source and %s "
                            "on the destination", name, a_text, b_text);
    }
}

void handshake_compare(const HandshakeProfile *source,
                       const HandshakeProfile *destination,
                       const strList *effective, HandshakeIssues *issues)
{
    compare_arch(source, destination, issues);
    compare_machine(source, destination, issues);
    compare_page_size(source, destination, issues);
    compare_uuid(source, destination, issues);
    compare_stream(source, destination, effective, issues);
}
