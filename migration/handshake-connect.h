/*
 * Migration handshake: further connections on their way
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef QEMU_MIGRATION_HANDSHAKE_CONNECT_H
#define QEMU_MIGRATION_HANDSHAKE_CONNECT_H

#include "io/channel-socket.h"
#include "io/task.h"

/**
 * handshake_connect: open a further connection of a migration
 * @ioc: a new socket channel, whose reference @func gets
 * @addr: where to; it is copied
 * @func: called once, in the main thread with the BQL held, unless the
 *        migration is over before
 * @opaque: for @func
 *
 * As qio_channel_socket_connect_async(), but yank and a failed migration end
 * it: then @func gets an error and another channel, and whatever comes of @ioc
 * is closed.
 *
 * Any thread.
 */
void handshake_connect(QIOChannelSocket *ioc, SocketAddress *addr,
                       QIOTaskFunc func, void *opaque);

/**
 * handshake_connect_tls_begin: a further channel is about to negotiate TLS
 * @ioc: the TLS channel, which lives until handshake_connect_tls_end()
 *
 * Can be yanked from now on.  Called in the main thread with the BQL held.
 */
void handshake_connect_tls_begin(QIOChannel *ioc);

/**
 * handshake_connect_tls_end: TLS has come to an end, be it good or bad
 * @ioc: the TLS channel
 *
 * Called in the main thread with the BQL held.
 *
 * Returns: false if the migration that it belongs to is over, and nothing but
 *          the channel is to be closed
 */
bool handshake_connect_tls_end(QIOChannel *ioc);

/**
 * handshake_connect_abandon: end all that is on its way, in TLS or before
 *
 * Whoever waits for it gets an error.  It happens soon, in the main loop.  Any
 * thread.
 */
void handshake_connect_abandon(void);

/**
 * handshake_connect_forget: the migration is over
 *
 * Nobody waits any more for what is still on its way, and nobody is told.
 * Called in the main thread with the BQL held.
 */
void handshake_connect_forget(void);

#endif
