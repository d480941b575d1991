/*
 * Migration handshake: the destination's side of the conversation
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef QEMU_MIGRATION_HANDSHAKE_DESTINATION_H
#define QEMU_MIGRATION_HANDSHAKE_DESTINATION_H

#include "io/channel.h"

/*
 * Where the channels go when both sides have agreed.  All functions are called
 * in the main thread with the BQL held, when the effective settings have been
 * taken.  Each channel's next byte to be read is the first one of the stream.
 */
typedef struct HandshakeSink {
    /*
     * Get ready for the effective settings: what can still fail, fails here
     * and leaves nothing behind.
     * Returns: true on success, false with @errp set
     */
    bool (*prepare)(Error **errp);
    /* Take multifd channel @index; each is given once, before @start */
    void (*multifd)(QIOChannel *ioc, unsigned index);
    /* Take the preempt channel, before @start or while the migration runs */
    void (*preempt)(QIOChannel *ioc);
    /* Take the main channel, and load */
    void (*start)(QIOChannel *ioc);
} HandshakeSink;

/**
 * handshake_destination_before_tls: somebody connected, and is to negotiate TLS
 * @ioc: the channel, before TLS; a reference is taken
 *
 * It counts as a stranger and has a stranger's time, until
 * handshake_destination_accept() gets the TLS channel on top of it or
 * handshake_destination_tls_failed() is called.
 *
 * Called in the main thread with the BQL held.
 */
void handshake_destination_before_tls(QIOChannel *ioc);

/**
 * handshake_destination_tls_failed: TLS came to nothing
 * @ioc: the channel, before TLS or after
 *
 * Tells the peer, which may not know what TLS is.
 *
 * Called in the main thread with the BQL held.
 */
void handshake_destination_tls_failed(QIOChannel *ioc);

/**
 * handshake_destination_accept: hold a conversation with whoever connected
 * @ioc: the channel, after TLS; a reference is taken
 * @sink: what is called if it leads to a migration
 *
 * Whatever the peer does, a failure ends this connection and nothing else.
 *
 * Called in the main thread with the BQL held.
 */
void handshake_destination_accept(QIOChannel *ioc, const HandshakeSink *sink);

/**
 * handshake_destination_is_busy: whether somebody holds the session
 *
 * Called with the BQL held.
 *
 * Returns: true if so; a further source would be told that this one is busy
 */
bool handshake_destination_is_busy(void);

/**
 * handshake_destination_too_late: nobody waits for this one any more
 * @ioc: the channel, after TLS
 *
 * Called in the main thread with the BQL held.
 */
void handshake_destination_too_late(QIOChannel *ioc);

/**
 * handshake_destination_end: the migration that was agreed on is over
 *
 * Closes connections that are still talking, because nobody listens any more.
 * Called with the BQL held, from any thread.
 */
void handshake_destination_end(void);

#endif
