/*
 * Migration handshake: channels that are opened, and their places in a session
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef QEMU_MIGRATION_HANDSHAKE_CHANNEL_H
#define QEMU_MIGRATION_HANDSHAKE_CHANNEL_H

#include "io/channel-socket.h"
#include "io/channel-tls.h"
#include "qapi/qapi-types-sockets.h"
#include "wire.h"

/*
 * One channel that a source opens: connect, TLS if it is configured, and for
 * all but the main one a header and its answer.  Main thread, BQL.  All waiting
 * can be interrupted; the error says what the destination has not done by then,
 * and the caller what has interrupted it.
 */
typedef struct HandshakeChannel HandshakeChannel;

/* Called after each step that the channel has made */
typedef void HandshakeChannelProgress(void *opaque);

/**
 * handshake_channel_new: a channel that is about to be opened
 * @name: HANDSHAKE_CHANNEL_*
 * @index: which one of that name
 * @progress: called after each step: connected, TLS done, answered; may
 *            interrupt this channel or others, but free none
 * @opaque: for @progress
 *
 * Returns: to be freed by handshake_channel_free()
 */
HandshakeChannel *handshake_channel_new(const char *name, uint32_t index,
                                        HandshakeChannelProgress *progress,
                                        void *opaque);

/**
 * handshake_channel_free: close it, unless it was taken
 * @channel: one that no coroutine is opening; may be NULL
 */
void handshake_channel_free(HandshakeChannel *channel);

/**
 * handshake_channel_connect: connect, and negotiate TLS if it is configured
 * @channel: a new one
 * @addr: where to, unless @ioc is given; not copied
 * @ioc: a stream socket that is connected already, or NULL
 *
 * connect() may take minutes to fail, and nothing can interrupt it: if it is
 * given up, its result only closes its socket, whenever it may come.
 *
 * The channel is non-blocking afterwards, and does not delay small writes.
 * TCP looks whether the peer is still there, unless @addr says something else.
 *
 * Returns: true on success, false with @errp set, which says what may be wrong
 *          with the use of TLS
 */
bool coroutine_fn handshake_channel_connect(HandshakeChannel *channel,
                                            SocketAddress *addr,
                                            QIOChannel *ioc, Error **errp);

/**
 * handshake_channel_greet: send the header, and wait for its answer
 * @channel: one that is connected, but not the main one
 * @session: the session that it belongs to
 *
 * Returns: true if the destination has answered with the same name, index and
 *          session; false with @errp set
 */
bool coroutine_fn handshake_channel_greet(HandshakeChannel *channel,
                                          const QemuUUID *session,
                                          Error **errp);

/**
 * handshake_channel_interrupt: whatever it waits for ends at once, in failure
 * @channel: the channel, at any point of its life
 *
 * The coroutine does not go on before this has returned, but soon after.  Any
 * thread, with the BQL held.
 */
void handshake_channel_interrupt(HandshakeChannel *channel);

/**
 * handshake_channel_ioc: what migration uses
 * @channel: one that is connected
 *
 * Returns: the channel after TLS; it belongs to @channel
 */
QIOChannel *handshake_channel_ioc(HandshakeChannel *channel);

/**
 * handshake_ioc_interrupt: whoever waits for this channel goes on at once
 * @ioc: the channel, TLS or not; it is shut down
 *
 * Any thread, with the BQL held.
 */
void handshake_ioc_interrupt(QIOChannel *ioc);

/**
 * handshake_ioc_keep_alive: let TCP notice that the peer is gone
 * @ioc: a socket; nothing is done unless it is TCP's
 * @addr: where it was connected to or accepted, or NULL.  What the user has
 *        said about keep-alive there, or has set on a socket, stays.
 *
 * A peer that is gone without a word is noticed 90 s after its last sign of
 * life.  One that is alive and does not read is left alone.  Any thread.
 */
void handshake_ioc_keep_alive(QIOChannel *ioc, const SocketAddress *addr);

/**
 * handshake_tls_negotiate: TLS on either side, in a coroutine
 * @ioc: a new TLS channel over a non-blocking one
 *
 * Returns: true on success, false with @errp set
 */
bool coroutine_fn handshake_tls_negotiate(QIOChannelTLS *ioc, Error **errp);

/*
 * The channels of a session besides the main one: which there are to be, and
 * which of them stand.  One thread at a time.
 */
typedef struct HandshakePlaces HandshakePlaces;

/**
 * handshake_places_new: places for a session's channels
 * @session: what is in the headers of these channels
 * @multifd: how many multifd channels there will be
 * @preempt: whether there will be a postcopy preempt channel
 *
 * Returns: the places, all of them free
 */
HandshakePlaces *handshake_places_new(const QemuUUID *session,
                                      unsigned multifd, bool preempt);
void handshake_places_free(HandshakePlaces *places);
G_DEFINE_AUTOPTR_CLEANUP_FUNC(HandshakePlaces, handshake_places_free)

/**
 * handshake_places_add: give a channel its place
 * @places: the session's places
 * @header: what the channel has begun with
 * @ioc: the channel; a reference is taken on success
 *
 * Fails if the channel is none of this session, has a name or an index that
 * this session has no place for, or comes a second time.
 *
 * Returns: true on success, false with @errp set
 */
bool handshake_places_add(HandshakePlaces *places,
                          const HandshakeHeader *header, QIOChannel *ioc,
                          Error **errp);

/**
 * handshake_places_drop: the session does without these channels
 * @places: the session's places
 * @name: HANDSHAKE_CHANNEL_*
 *
 * Those that have come are closed.
 */
void handshake_places_drop(HandshakePlaces *places, const char *name);

/**
 * handshake_places_missing: how many channels are still to come
 * @places: the session's places
 *
 * Returns: their number
 */
unsigned handshake_places_missing(const HandshakePlaces *places);

/**
 * handshake_places_take: take a channel out of its place
 * @places: the session's places, or NULL
 * @name: the channel's name
 * @index: its index
 *
 * The channel still counts as come.
 *
 * Returns: the channel, whose reference goes to the caller; NULL if there is no
 *          such channel, it has not come, or was taken before
 */
QIOChannel *handshake_places_take(HandshakePlaces *places, const char *name,
                                  uint32_t index);

#endif
