/*
 * Migration handshake: the named channels of a session
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "qapi/error.h"
#include "handshake-channels.h"

/* The place of one channel */
typedef struct HandshakeSlot {
    bool has_come;
    QIOChannel *ioc;        /* NULL before it has come, and once it was taken */
} HandshakeSlot;

struct HandshakeChannels {
    QemuUUID session;
    unsigned multifd_count;
    unsigned multifd_missing;
    bool preempt_wanted;
    HandshakeSlot preempt;
    HandshakeSlot *multifd;
};

HandshakeChannels *handshake_channels_new(const QemuUUID *session,
                                          unsigned multifd, bool preempt)
{
    HandshakeChannels *channels = g_new0(HandshakeChannels, 1);

    channels->session = *session;
    channels->multifd_count = multifd;
    channels->multifd_missing = multifd;
    channels->multifd = g_new0(HandshakeSlot, multifd);
    channels->preempt_wanted = preempt;
    return channels;
}

void handshake_channels_free(HandshakeChannels *channels)
{
    if (!channels) {
        return;
    }
    for (unsigned i = 0; i < channels->multifd_count; i++) {
        object_unref(OBJECT(channels->multifd[i].ioc));
    }
    object_unref(OBJECT(channels->preempt.ioc));
    g_free(channels->multifd);
    g_free(channels);
}

/* NULL if this session has no such channel */
static HandshakeSlot *find_slot(HandshakeChannels *channels, const char *name,
                                uint32_t index)
{
    if (!strcmp(name, HANDSHAKE_CHANNEL_MULTIFD)) {
        return index < channels->multifd_count ? &channels->multifd[index]
                                               : NULL;
    }
    if (!strcmp(name, HANDSHAKE_CHANNEL_PREEMPT)) {
        return channels->preempt_wanted && index == 0 ? &channels->preempt
                                                      : NULL;
    }
    return NULL;
}

bool handshake_channels_add(HandshakeChannels *channels,
                            const HandshakeHeader *header, QIOChannel *ioc,
                            Error **errp)
{
    HandshakeSlot *slot = find_slot(channels, header->name, header->index);

    if (!qemu_uuid_is_equal(&header->session, &channels->session)) {
        error_setg(errp, "channel '%s' %" PRIu32 " is of another session",
                   header->name, header->index);
        return false;
    }
    if (!slot) {
        error_setg(errp, "this session has no channel '%s' %" PRIu32,
                   header->name, header->index);
        return false;
    }
    if (slot->has_come) {
        error_setg(errp, "channel '%s' %" PRIu32 " comes a second time",
                   header->name, header->index);
        return false;
    }
    slot->has_come = true;
    slot->ioc = QIO_CHANNEL(object_ref(OBJECT(ioc)));
    if (slot != &channels->preempt) {
        channels->multifd_missing--;
    }
    return true;
}

unsigned handshake_channels_multifd(const HandshakeChannels *channels)
{
    return channels->multifd_count;
}

unsigned handshake_channels_missing(const HandshakeChannels *channels,
                                    bool all)
{
    return channels->multifd_missing +
           (all && channels->preempt_wanted && !channels->preempt.has_come);
}

QIOChannel *handshake_channels_take(HandshakeChannels *channels,
                                    const char *name, uint32_t index)
{
    HandshakeSlot *slot = find_slot(channels, name, index);

    return slot ? g_steal_pointer(&slot->ioc) : NULL;
}
