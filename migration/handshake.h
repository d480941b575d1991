/*
 * Migration handshake: what the rest of migration calls
 *
 * Before a migration over a channel of type 'handshake', source and
 * destination talk; see docs/devel/migration/handshake.rst.
 *
 * All functions are called in the main thread with the BQL held unless they
 * say otherwise.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef QEMU_MIGRATION_HANDSHAKE_H
#define QEMU_MIGRATION_HANDSHAKE_H

#include "migration.h"
#include "qapi/qapi-types-migration.h"

/**
 * migration_handshake_init: get ready for handshakes
 * migration_handshake_finalize: free what that has made
 * @s: the migration state that it hangs on
 */
void migration_handshake_init(MigrationState *s);
void migration_handshake_finalize(MigrationState *s);

/* The outgoing side */

/**
 * migration_handshake_validate_outgoing: validate the arguments of 'migrate'
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
migration_handshake_validate_outgoing(const MigrationChannelList *channels,
                                      bool resume,
                                      const MigrationHandshakeOptions *options,
                                      Error **errp);

/**
 * migration_handshake_start: connect and shake hands
 * @addr: the address of the channel of type 'handshake'
 * @options: the argument 'handshake' of 'migrate', or NULL
 *
 * Both have been validated.  Unless it is a check, a migration has been
 * prepared, and migration_start_outgoing() is called at the end, or
 * migration_connect_error_propagate().
 *
 * Returns: true if it has begun, false with @errp set if not
 */
bool migration_handshake_start(SocketAddress *addr,
                               const MigrationHandshakeOptions *options,
                               Error **errp);

/**
 * migration_handshake_not_started: what query-migrate shows if it has not
 * @err: why
 */
void migration_handshake_not_started(const Error *err);

/**
 * migration_handshake_resume: connect again after a pause
 * @addr: where to
 * @errp: set if that cannot begin
 *
 * If the session knows headers there, each new channel begins with one, and is
 * answered.  What has begun has ended within 30 seconds, as above.
 *
 * Returns: whether it takes care of it, well or with @errp set
 */
bool migration_handshake_resume(const MigrationAddress *addr, Error **errp);

/* What becomes of a channel; @ioc is the caller's, @err is to be freed */
typedef void MigrationHandshakeOpened(MigrationState *s, QIOChannel *ioc,
                                      Error *err);

/**
 * migration_handshake_resume_preempt: open the preempt channel after a pause
 * @done: called in the main thread once it stands, or has failed, within 30
 *        seconds
 *
 * Any thread.
 *
 * Returns: false if the migration was not resumed with headers
 */
bool migration_handshake_resume_preempt(MigrationHandshakeOpened *done);

/**
 * migration_handshake_cancel: end the handshake in progress, if there is one
 *
 * Any thread with the BQL held.
 *
 * Returns: whether there is one that belongs to a migration; its end, which
 *          comes soon, completes the cancellation
 */
bool migration_handshake_cancel(void);

/**
 * migration_handshake_take_channel: a channel that the handshake has opened
 * @name: what it is for, "multifd" or "preempt"
 * @index: which one of that name
 *
 * Called on a source by any thread of a migration that is running.  The channel
 * is non-blocking, and its next byte is the first one of its contents.
 *
 * Returns: a reference to it; NULL without a handshake, or if it was taken
 */
QIOChannel *migration_handshake_take_channel(const char *name, uint32_t index);

/**
 * migration_handshake_explain_message: explain a message that is none
 * @type: what stood where its type stands on the return path
 * @len: and where its length does
 * @errp: the error; advice is added if it is the beginning of a handshake
 *
 * Any thread.
 */
void migration_handshake_explain_message(uint16_t type, uint16_t len,
                                         Error **errp);

/**
 * migration_handshake_read_frame: read what is no message of the return path
 * @rp: the return path
 * @type: the message's type, which is not one
 * @len: its length
 *
 * After a handshake, a message of type 0 is a frame: the destination has
 * loaded, or says why it cannot.  Called by the return path's thread.
 *
 * Returns: true if more may come; false with @errp set
 */
bool migration_handshake_read_frame(QEMUFile *rp, uint16_t type, uint16_t len,
                                    Error **errp);

/**
 * migration_handshake_awaits_word: whether to go on reading the return path
 *                                  of a migration that has failed
 *
 * Any thread of a migration that is running.
 */
bool migration_handshake_awaits_word(void);

/**
 * migration_handshake_return_path_ended: nothing more comes from there
 * @s: the migration
 * @shut: what SHUT has said, NULL if there was none: 0 is loaded, and started
 *        if that was asked for, anything else not started and never to be
 * @errp: why it has ended, NULL in it if there is no error; made such that it
 *        says who ended it and what to do, and then stands in place of what the
 *        migration has failed with so far
 *
 * Called by the return path's thread, before the error is noted.
 */
void migration_handshake_return_path_ended(MigrationState *s,
                                           const uint32_t *shut, Error **errp);

/**
 * migration_handshake_await_last_word: let the destination say why
 * @s: a migration; nothing happens unless it has failed
 *
 * Waits 500 ms at most.  Called by the migration thread, without the BQL.
 */
void migration_handshake_await_last_word(MigrationState *s);

/**
 * migration_handshake_hand_over: all of the stream has been sent
 * @s: the migration
 *
 * If the destination is to start the guest by itself, waits until it has loaded
 * it, decides whose guest it is from now on, and says so.  Called by the
 * migration thread, without the BQL.
 *
 * Returns: false if the guest stays here though it has been loaded there
 */
bool migration_handshake_hand_over(MigrationState *s);

/**
 * migration_handshake_keep: the guest of an outgoing migration is to stay here
 *
 * Called with the BQL held, by somebody who then cancels the migration.
 *
 * Returns: true if it does, false with @errp set if it has been given away
 */
bool migration_handshake_keep(Error **errp);

/**
 * migration_handshake_given: whether the destination was told to start it
 * migration_handshake_started: and has said that it has
 * migration_handshake_never_started: whether it has said that it never will
 * migration_handshake_may_run: whether it would have said that it never will
 * @s: the migration
 *
 * Any thread of a migration that is running, or the main thread.
 */
bool migration_handshake_given(MigrationState *s);
bool migration_handshake_started(MigrationState *s);
bool migration_handshake_never_started(MigrationState *s);
bool migration_handshake_may_run(MigrationState *s);

/**
 * migration_handshake_explain_doubt: say so if nobody knows who has the guest
 * @s: a migration that has failed
 *
 * Called by the migration thread when nothing more comes from the destination.
 */
void migration_handshake_explain_doubt(MigrationState *s);

/**
 * migration_handshake_note_error: the outgoing migration has its first error
 * @s: the migration
 * @errp: the error; advice is added if the destination does not take the stream
 *        because it wants a handshake
 *
 * After a handshake all channels are shut down, unless postcopy has begun: some
 * thread may wait for a destination that cannot answer any more.  Any thread.
 */
void migration_handshake_note_error(MigrationState *s, Error **errp);

/**
 * migration_handshake_explain_channel: explain why a channel has failed
 * @ioc: a channel of an outgoing migration
 * @errp: the error; advice is added if there was no handshake and the
 *        destination wants one
 *
 * Any thread.
 */
void migration_handshake_explain_channel(QIOChannel *ioc, Error **errp);

/**
 * migration_handshake_check_stream: before a stream counts as loaded
 * @f: the main channel
 *
 * Without a return path, all of a small stream may have been sent before the
 * connection breaks.  Makes @f fail if there was no handshake and the
 * destination wants one.  Called in the migration thread.
 */
void migration_handshake_check_stream(QEMUFile *f);

/**
 * migration_handshake_outgoing_cleanup: the outgoing migration is over
 *
 * What was negotiated for it is no longer in force.
 */
void migration_handshake_outgoing_cleanup(void);

/* The incoming side */

/**
 * migration_handshake_listen: say how incoming connections begin
 * @channel: the channel that is about to be listened on; NULL if there was no
 *           channel list, as for 'migrate-recover', which runs out of band
 *
 * Returns: true if it will do, false with @errp set if not
 */
bool migration_handshake_listen(const MigrationChannel *channel, Error **errp);

/**
 * migration_handshake_accept: take a connection from a listener
 * @ioc: the connection, before TLS
 *
 * Returns: true if it begins with a handshake, which takes care of it
 */
bool migration_handshake_accept(QIOChannel *ioc);

/**
 * migration_handshake_loader_thread: what this thread reports is about loading
 *
 * Called at the beginning of a thread that loads.
 */
void migration_handshake_loader_thread(void);

/**
 * migration_handshake_loading: what is being loaded from now on
 * @section: its name, which stays valid
 *
 * Any thread that loads.
 */
void migration_handshake_loading(const char *section);

/**
 * migration_handshake_stop_loading: a thread has failed to load its part
 *
 * The loader, which may wait for more of the stream, notices soon, and tells
 * the source.  Any thread.
 */
void migration_handshake_stop_loading(void);

/**
 * migration_handshake_loaded: all of a stream of precopy has been loaded
 * @starts: whether the guest is about to be started
 *
 * Waits for the source to decide that it is, if it was agreed on that.  Called
 * by the loader.
 *
 * Returns: true if so; false with @errp set if it must not be started
 */
bool coroutine_fn migration_handshake_loaded(bool starts, Error **errp);

/**
 * migration_handshake_must_ask: whether the source has not decided yet that the
 *                               guest may be started
 *
 * If it is to be, migration_handshake_loaded() comes first, once more.
 */
bool migration_handshake_must_ask(void);

/**
 * migration_handshake_has_guest: whether the source has given the guest away
 *
 * If it cannot be started it has to be said, for then the source takes it back.
 */
bool migration_handshake_has_guest(void);

/**
 * migration_handshake_postcopy_starts: whether the guest may start in postcopy
 *
 * Not if the source has been told by another thread that it never will.  Once
 * this has returned true, no thread tells it that.
 *
 * Called by the loader, without lock.
 */
bool migration_handshake_postcopy_starts(void);

/**
 * migration_handshake_load_failed: the guest cannot be loaded, or started
 * @errp: why; what the loader has reported is added
 *
 * Tells the source.  Called by the loader, a thread of it, or, with the BQL
 * held, in the main thread.
 */
void coroutine_mixed_fn migration_handshake_load_failed(Error **errp);

/**
 * migration_handshake_incoming_cleanup: the incoming migration is over
 *
 * What was negotiated for it is no longer in force.  Any thread with the BQL
 * held.
 */
void migration_handshake_incoming_cleanup(void);

/* What people see */

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
