/*
 * Migration handshake: the destination's side of the conversation
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef QEMU_MIGRATION_HANDSHAKE_DESTINATION_H
#define QEMU_MIGRATION_HANDSHAKE_DESTINATION_H

#include "io/channel.h"

/**
 * HandshakeDeliver: takes the main channel when both sides have agreed
 * @ioc: the channel; the next byte to be read is the first one of the stream
 *
 * Called in the main loop, outside of coroutines, with the BQL held.  The
 * effective settings have been taken.
 */
typedef void HandshakeDeliver(QIOChannel *ioc);

/**
 * handshake_destination_accept: hold a conversation with whoever connected
 * @ioc: the channel, after TLS; a reference is taken
 * @deliver: called if it leads to a migration
 *
 * Whatever the peer does, a failure ends this connection and nothing else.
 *
 * Called in the main thread with the BQL held.
 */
void handshake_destination_accept(QIOChannel *ioc, HandshakeDeliver *deliver);

/**
 * handshake_destination_end: the migration that was agreed on is over
 *
 * Closes connections that are still talking, because nobody listens any more.
 * Called with the BQL held, from any thread.
 */
void handshake_destination_end(void);

#endif
