/*
 * Migration handshake: what the rest of QEMU calls
 *
 * Before a migration over a channel of type 'handshake', source and
 * destination talk; see docs/devel/migration/handshake.rst.
 *
 * All functions are called with the BQL held unless they say otherwise.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef MIGRATION_HANDSHAKE_H
#define MIGRATION_HANDSHAKE_H

#include "io/channel-socket.h"
#include "io/task.h"
#include "qapi/qapi-types-migration.h"

/**
 * migration_handshake_check_outgoing: judge the arguments of 'migrate'
 * @channels: the channel list, or NULL
 * @resume: whether a paused migration is to be resumed
 * @options: the argument 'handshake', or NULL
 *
 * Lists without a channel of type 'handshake' are none of our business, unless
 * @options are given, or a check is running.
 *
 * Returns: true if they are good, false with @errp set if not
 */
bool
migration_handshake_check_outgoing(const MigrationChannelList *channels,
                                   bool resume,
                                   const MigrationHandshakeOptions *options,
                                   Error **errp);

/**
 * migration_handshake_start_check: hold a handshake that no migration follows
 * @channel: the channel of type 'handshake'
 * @options: the argument 'handshake' of 'migrate'
 *
 * Both have passed migration_handshake_check_outgoing().  If the check cannot
 * even begin, @errp is set.
 */
void
migration_handshake_start_check(const MigrationChannel *channel,
                               const MigrationHandshakeOptions *options,
                               Error **errp);

/**
 * migration_handshake_cancel_check: end such a handshake
 *
 * Returns: whether there was one; then there is no migration to cancel
 */
bool migration_handshake_cancel_check(void);

/**
 * migration_handshake_check_incoming: judge the channel to listen on
 * @channel: the only entry of the channel list
 *
 * Returns: true if it is good, false with @errp set if not
 */
bool migration_handshake_check_incoming(const MigrationChannel *channel,
                                        Error **errp);

/**
 * migration_handshake_arm: say how the next main channel begins
 * @channel: the channel of type 'handshake', NULL if there is none
 * @options: the argument 'handshake' of 'migrate', or NULL
 *
 * Called once a migration is certain to be attempted.  query-migrate shows that
 * a handshake is in progress from then on.
 */
void migration_handshake_arm(const MigrationChannel *channel,
                             const MigrationHandshakeOptions *options);

/**
 * migration_handshake_listen: say how incoming connections begin
 * @channel: the channel that is listened on
 *
 * 'migrate-recover' gets here out of band, without the BQL, with a channel of
 * type 'main'.
 */
void migration_handshake_listen(const MigrationChannel *channel);

/**
 * migration_handshake_listening: how incoming connections begin
 *
 * Returns: whether they begin with a handshake
 */
bool migration_handshake_listening(void);

/**
 * migration_handshake_check_channel: whether a channel will do
 * @ioc: a channel made from a file descriptor
 *
 * Returns: true if so, or if no handshake is wanted; false with @errp set if
 *          the channel is not bidirectional
 */
bool migration_handshake_check_channel(QIOChannel *ioc, Error **errp);

/**
 * migration_handshake_attempt: an attempt to connect begins
 *
 * Until it has ended it can be yanked, as it can be cancelled.
 *
 * Returns: a number for migration_handshake_abandoned()
 */
unsigned migration_handshake_attempt(void);

/**
 * migration_handshake_abandoned: whether an attempt to connect was cancelled
 * @attempt: what migration_handshake_attempt() said when it began
 *
 * Returns: true if nobody waits for it any more; then its connection, or its
 *          failure, must not touch the migration that may have begun since
 */
bool migration_handshake_abandoned(unsigned attempt);

/**
 * migration_handshake_before_tls: a channel is about to negotiate TLS
 * @ioc: the channel, before TLS
 * @incoming: whether the peer connected to us
 *
 * TLS must not wait for the peer with the BQL held, as it does on a blocking
 * socket.  On a source it must be possible to cancel and to yank, and take no
 * longer than the user's timeout; on a destination it is part of the time that
 * a stranger has.  Without a handshake, nothing changes.
 */
void migration_handshake_before_tls(QIOChannel *ioc, bool incoming);

/**
 * migration_handshake_wanted: how the outgoing main channel begins
 *
 * After a handshake there is a return path, whatever is set now.  QEMU 10.2
 * needs to know that before it negotiates TLS.
 *
 * Returns: whether it begins with a handshake
 */
bool migration_handshake_wanted(void);

/**
 * migration_handshake_connect_failed: there is no main channel
 * @errp: why; what may be wrong with the use of TLS is added
 *
 * Without a handshake, nothing changes.
 */
void migration_handshake_connect_failed(Error **errp);

/**
 * migration_handshake_not_connected: an attempt ends before its stream
 * @err: why; NULL, or not used, if it was cancelled
 *
 * Called before the state shows it.  If there was no conversation that has told
 * clients why, they are told now.
 */
void migration_handshake_not_connected(const Error *err);

/**
 * migration_handshake_tls_failed: who connected to us does not get through TLS
 * @ioc: the channel, before TLS or after
 *
 * Returns: whether incoming connections begin with a handshake; then nothing
 *          else is to be done
 */
bool migration_handshake_tls_failed(QIOChannel *ioc);

/**
 * migration_handshake_is_over: whether a channel had its handshake
 * @ioc: the channel that migration_channel_connect() was called for
 *
 * Returns: true if only the stream may follow, whatever was set meanwhile
 */
bool migration_handshake_is_over(const QIOChannel *ioc);

/**
 * migration_handshake_connected: the main channel stands
 * @ioc: the channel, after TLS
 *
 * Called in the main thread.  When a handshake is wanted it is held now, and
 * migration_channel_connect() is called again, for the same channel, when it
 * has ended.
 *
 * Returns: true if the caller has nothing more to do for now
 */
bool migration_handshake_connected(QIOChannel *ioc);

/**
 * migration_handshake_cancel: end the conversation, if there is one
 *
 * An attempt to connect is abandoned at once: its end may be minutes away.
 *
 * Returns: whether there is a conversation, or TLS on the way to it; its end
 *          completes the cancellation
 */
bool migration_handshake_cancel(void);

/**
 * migration_handshake_in_session: how further channels begin
 *
 * Called on a source, by any thread of a migration that is running.
 *
 * Returns: whether they begin with migration_handshake_send_header()
 */
bool migration_handshake_in_session(void);

/**
 * migration_handshake_send_header: say which channel this is
 * @ioc: a further channel of a migration in session, after TLS
 * @name: what it is for, "multifd" or "preempt"
 * @index: which one of that name
 *
 * Yields in a coroutine, blocks elsewhere; a new connection has room for it.
 * Called on a source, by any thread of a migration that is running.
 *
 * Returns: 0 on success, -1 with @errp set
 */
int coroutine_mixed_fn
migration_handshake_send_header(QIOChannel *ioc, const char *name,
                                uint32_t index, Error **errp);

/**
 * migration_handshake_connect_channel: open a further connection
 * @ioc: a new channel, whose reference @func gets
 * @addr: where to
 * @func: called once, in the main thread, unless the migration is over before
 * @opaque: for @func
 *
 * As qio_channel_socket_connect_async().  In session, a connection on its way
 * ends by yank, and when the migration fails; @func gets another channel then.
 * Called on a source, by any thread of a migration that is running.
 */
void migration_handshake_connect_channel(QIOChannelSocket *ioc,
                                         SocketAddress *addr,
                                         QIOTaskFunc func, void *opaque);

/**
 * migration_handshake_begin_tls: a further channel is about to negotiate TLS
 * @ioc: the TLS channel
 *
 * In session it does so without blocking, and ends by yank, and when the
 * migration fails.  Otherwise nothing changes.  Called in the main thread.
 */
void migration_handshake_begin_tls(QIOChannel *ioc);

/**
 * migration_handshake_end_tls: TLS of a further channel has come to an end
 * @ioc: the TLS channel
 *
 * Called in the main thread.
 *
 * Returns: false if the migration that it belongs to is over
 */
bool migration_handshake_end_tls(QIOChannel *ioc);

/**
 * migration_handshake_note_error: the outgoing migration has its first error
 * @errp: the error; advice is added if the destination does not take the stream
 *        because it wants a handshake
 *
 * In session, connections on their way end, because the migration would wait
 * for them; and all channels are shut down, unless postcopy has begun.  Any
 * thread.
 */
void migration_handshake_note_error(Error **errp);

/**
 * migration_handshake_explain_channel: explain why a channel has failed
 * @ioc: any channel of an outgoing migration, or NULL
 * @errp: the error; advice is added if the destination wants a handshake
 *
 * Any thread.
 */
void migration_handshake_explain_channel(QIOChannel *ioc, Error **errp);

/**
 * migration_handshake_check_stream: before a stream counts as taken
 * @f: the main channel of a migration without handshake
 *
 * Without a return path, all of a small stream may have been sent before the
 * connection breaks.  Makes @f fail if the destination wants a handshake.
 *
 * Called in the migration thread.
 */
void migration_handshake_check_stream(QEMUFile *f);

/**
 * migration_handshake_explain_magic: explain why the return path makes no sense
 * @magic: what came on it
 * @errp: the error; advice is added if the destination wants a handshake
 *
 * Any thread.
 */
void migration_handshake_explain_magic(uint32_t magic, Error **errp);

/**
 * migration_handshake_channel_failed: explain why multifd has no connection
 * @errp: what went wrong; advice is added if multifd came from a handshake
 *
 * The user may never have asked for more than one connection.
 */
void migration_handshake_channel_failed(Error **errp);

/**
 * migration_handshake_may_set: whether a user may change a setting
 * @name: a capability or parameter
 *
 * All that can be negotiated stays as both sides have agreed, be it on or off,
 * until the migration is over.
 *
 * Returns: true if so, false with @errp set if not
 */
bool migration_handshake_may_set(const char *name, Error **errp);

/**
 * migration_handshake_set_capability_later: when it is given back
 * @capability: what a user sets, and may set
 * @state: whether it is to be on
 *
 * A client that sees a migration end resets its settings at once, while what
 * was negotiated is still needed to clean up.
 *
 * Returns: true if it is to be set later, false if now
 */
bool migration_handshake_set_capability_later(MigrationCapability capability,
                                              bool state);

/**
 * migration_handshake_set_multifd_later: the same for parameters
 * @has_channels: whether a user sets 'multifd-channels'; false after that if
 *                it is to be set later
 * @channels: to this
 * @has_compression: whether a user sets 'multifd-compression'; likewise
 * @compression: to this
 */
void migration_handshake_set_multifd_later(bool *has_channels,
                                           uint8_t channels,
                                           bool *has_compression,
                                           MultiFDCompression compression);

/**
 * migration_handshake_accept: take a connection from a listener
 * @ioc: the channel, after TLS
 *
 * Called in the main thread.
 *
 * Returns: true if it begins with a handshake, which takes care of it
 */
bool migration_handshake_accept(QIOChannel *ioc);

/**
 * migration_handshake_source_cleanup: the outgoing migration is over
 * migration_handshake_incoming_cleanup: the incoming migration is over
 *
 * Settings that were taken for it alone are given back.
 */
void migration_handshake_source_cleanup(void);
void migration_handshake_incoming_cleanup(void);

/**
 * migration_handshake_info: what query-migrate shows
 *
 * Returns: to be freed by the caller; NULL if there was no handshake
 */
MigrationHandshakeInfo *migration_handshake_info(void);

/**
 * migration_handshake_print: what "info migrate" prints of a handshake
 * @mon: the monitor to print to
 * @info: what query-migrate shows of it, or NULL
 */
void migration_handshake_print(Monitor *mon,
                               const MigrationHandshakeInfo *info);

#endif
