/*
 * Migration handshake: the source's side of the conversation
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef QEMU_MIGRATION_HANDSHAKE_SOURCE_H
#define QEMU_MIGRATION_HANDSHAKE_SOURCE_H

#include "io/channel.h"
#include "qapi/qapi-types-migration.h"
#include "qemu/uuid.h"

typedef struct HandshakeSource HandshakeSource;

/**
 * HandshakeSourceDone: what is called when a conversation has ended
 * @err: NULL when both sides agreed and the stream may follow, else why not;
 *       it belongs to the caller
 * @session: the session's UUID when both sides agreed
 * @opaque: what handshake_source_start() was given
 *
 * Called once, in the main loop, outside of coroutines, with the BQL held.
 * The HandshakeSource is gone when it returns.
 */
typedef void HandshakeSourceDone(Error *err, const QemuUUID *session,
                                 void *opaque);

/**
 * handshake_source_start: say HELLO and see what comes of it
 * @ioc: the main channel, after TLS; it must be able to shut down.  It is
 *       non-blocking afterwards.
 * @single: whether no further connection can be made
 * @since_ms: when the connection stood, by QEMU_CLOCK_REALTIME: TLS is part of
 *            the user's timeout
 * @options: what the user asked for, or NULL
 * @done: called at the end, never before this function returns
 * @opaque: for @done
 *
 * The effective settings have been taken when @done is called without error,
 * unless it was a check; the caller gives them back after the migration, and
 * after an error, too.
 *
 * Called in the main thread with the BQL held.
 *
 * Returns: the conversation, valid until @done is called
 */
HandshakeSource *
handshake_source_start(QIOChannel *ioc, bool single, int64_t since_ms,
                       const MigrationHandshakeOptions *options,
                       HandshakeSourceDone *done, void *opaque);

/**
 * handshake_source_timeout: how long the user wants to wait for the verdict
 * @options: what the user asked for, or NULL
 *
 * Returns: seconds, 0 = for ever
 */
uint32_t handshake_source_timeout(const MigrationHandshakeOptions *options);

/**
 * handshake_source_check_channel: whether a conversation is possible
 * @ioc: a channel made from a file descriptor
 *
 * Returns: true if so, false with @errp set if it is no stream socket
 */
bool handshake_source_check_channel(QIOChannel *ioc, Error **errp);

/**
 * handshake_source_cancel: give up
 * @hs: the conversation
 *
 * @done is called soon after, with an error.  Called with the BQL held.
 */
void handshake_source_cancel(HandshakeSource *hs);

#endif
