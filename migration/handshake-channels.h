/*
 * Migration handshake: the named channels of a session
 *
 * Which channels follow the main one, and which of them have come.  This layer
 * knows nothing of migration, and has no global state.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef QEMU_MIGRATION_HANDSHAKE_CHANNELS_H
#define QEMU_MIGRATION_HANDSHAKE_CHANNELS_H

#include "handshake-wire.h"

typedef struct HandshakeChannels HandshakeChannels;

/**
 * handshake_channels_new: begin a session's collection
 * @session: what the session's channels have in their headers
 * @multifd: how many multifd channels there will be
 * @preempt: whether there will be a postcopy preempt channel
 *
 * Used by one thread at a time, like all functions here.
 *
 * Returns: the collection, without channels
 */
HandshakeChannels *handshake_channels_new(const QemuUUID *session,
                                          unsigned multifd, bool preempt);

/**
 * handshake_channels_free: end the collection, and drop what is in it
 * @channels: the collection, or NULL
 */
void handshake_channels_free(HandshakeChannels *channels);

/**
 * handshake_channels_add: find the place of a channel that has come
 * @channels: the session's collection
 * @header: what the channel began with
 * @ioc: the channel; a reference is taken on success
 *
 * Fails if the channel is none of this session, has a name or an index that
 * this session has no place for, or comes a second time.
 *
 * Returns: true on success, false with @errp set
 */
bool handshake_channels_add(HandshakeChannels *channels,
                            const HandshakeHeader *header, QIOChannel *ioc,
                            Error **errp);

/**
 * handshake_channels_multifd: how many multifd channels there will be
 * @channels: the collection
 *
 * Returns: the number that the collection was made with
 */
unsigned handshake_channels_multifd(const HandshakeChannels *channels);

/**
 * handshake_channels_missing: how many channels are still to come
 * @channels: the collection
 * @all: whether to count those, too, that may come when the migration already
 *       runs (preempt)
 *
 * Returns: their number
 */
unsigned handshake_channels_missing(const HandshakeChannels *channels,
                                    bool all);

/**
 * handshake_channels_take: take a channel out of the collection
 * @channels: the collection
 * @name: the channel's name
 * @index: its index
 *
 * The channel still counts as come.
 *
 * Returns: the channel, whose reference goes to the caller; NULL if there is no
 *          such channel, it has not come, or was taken before
 */
QIOChannel *handshake_channels_take(HandshakeChannels *channels,
                                    const char *name, uint32_t index);

G_DEFINE_AUTOPTR_CLEANUP_FUNC(HandshakeChannels, handshake_channels_free)

#endif
