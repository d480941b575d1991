/*
 * Migration handshake: what it means that QEMU cannot load a stream
 *
 * The loader says what it has met, in words of its code.  Both sides have
 * agreed that the machines fit, so that there is little that it may come of.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "qemu/cutils.h"
#include "conversation.h"

#define NO_STREAM   "no migration stream at this point: it is damaged, or " \
                    "another program's"
#define NEWER       "the source uses something newer, or the stream is damaged"
#define FOOTER      "saved by another version of the device, or damaged"
#define DAMAGED     "damaged or foreign stream"
#define CHANNEL     "this channel is damaged"
#define PCI         "a property of the PCI device is not the same on both sides"
#define FEATURES    "the guest uses features that the device does not have here"
#define SILENT      "the device does not say why"

/* Texts of the loader, or parts of them, in any QEMU that we know */
static const struct {
    const char *text;
    const char *meaning;
} meanings[] = {
    { "section or instance", NULL },
    { "Unknown savevm section", NO_STREAM },
    { "Unknown section", NO_STREAM },
    { "section footer", FOOTER },
    { "section id in footer", FOOTER },
    { "MIG_CMD 0x", NEWER },
    { "Ack, bad migration stream", DAMAGED },
    { "Can't find block", DAMAGED },
    { "Illegal RAM offset", DAMAGED },
    { "combination of migration flags", DAMAGED },
    { "Unexpected RAM flags", DAMAGED },
    { "Found a zero page with value", DAMAGED },
    { "Non-same host page", DAMAGED },
    { "XBZRLE page", DAMAGED },
    { "Unknown ramblock", DAMAGED },
    { "multifd: received", CHANNEL },
    { "multifd: unknown ram block", CHANNEL },
    { "multifd: offset too long", CHANNEL },
    { "flags received", CHANNEL },
    { "inflate ", CHANNEL },
    { "decompressStream ", CHANNEL },
    { "packet size received", CHANNEL },
    { "next_packet_size", CHANNEL },
    { "get_pci_config_device: Bad config data", PCI },
    { "Allowed features: 0x", FEATURES },
};

/* What users switch off and on; bits that only some devices have are numbers */
static const char *const virtio_features[64] = {
    [24] = "notify_on_empty",
    [27] = "any_layout",
    [28] = "indirect_desc",
    [29] = "event_idx",
    [32] = "VIRTIO_F_VERSION_1",
    [33] = "iommu_platform",
    [34] = "packed",
    [35] = "in_order",
    [36] = "VIRTIO_F_ORDER_PLATFORM",
    [37] = "VIRTIO_F_SR_IOV",
    [38] = "VIRTIO_F_NOTIFICATION_DATA",
    [40] = "queue_reset",
};

/* The last 64 bits of a number; there are more since QEMU 10.2 */
static uint64_t last_bits(const char *hex)
{
    size_t len = strspn(hex, "0123456789abcdef");

    return g_ascii_strtoull(hex + (len > 16 ? len - 16 : 0), NULL, 16);
}

/* Returns which of @used are not in @allowed, or NULL */
static char *name_features(const char *used, const char *allowed)
{
    uint64_t missing = last_bits(used) & ~last_bits(allowed);
    GString *names = missing ? g_string_new("") : NULL;

    for (int i = 0; i < 64; i++) {
        if (!(missing & (1ull << i))) {
            continue;
        }
        g_string_append(names, names->len ? ", " : ": ");
        if (virtio_features[i]) {
            g_string_append(names, virtio_features[i]);
        } else {
            g_string_append_printf(names, "feature bit %d", i);
        }
    }
    return names ? g_string_free(names, FALSE) : NULL;
}

/* An error that ends where the cause would stand, or in a number */
static bool is_silent(const char *text)
{
    const char *failed = strstr(text, "Failed to load ");
    const char *cause = failed ? strstr(failed, ": ") : NULL;
    int number;

    return failed && (!cause || !qemu_strtoi(cause + 2, NULL, 10, &number));
}

char *handshake_explain_loading(const char *text, const char *section,
                                uint64_t position)
{
    const char *meaning = is_silent(text) ? SILENT : NULL;
    const char *used = strstr(text, "Features 0x");
    const char *allowed = strstr(text, "Allowed features: 0x");
    g_autofree char *names = NULL;
    g_autofree char *where = NULL;

    for (size_t i = 0; i < ARRAY_SIZE(meanings); i++) {
        if (strstr(text, meanings[i].text)) {
            meaning = meanings[i].meaning;
            break;
        }
    }
    if (!meaning) {
        return g_strdup(text);
    }
    if (section) {
        where = g_strdup_printf(" (section '%s', byte %" PRIu64 ")", section,
                                position);
    } else if (position) {
        where = g_strdup_printf(" (byte %" PRIu64 ")", position);
    }
    if (used && allowed) {
        names = name_features(used + strlen("Features 0x"),
                              allowed + strlen("Allowed features: 0x"));
    }
    return g_strdup_printf("%s: %s%s%s", text, meaning, names ?: "",
                           where ?: "");
}
