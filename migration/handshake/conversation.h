/*
 * Migration handshake: both sides of the conversation, and what QMP shows of it
 *
 * Everything here is called in the main thread with the BQL held unless it says
 * otherwise.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef QEMU_MIGRATION_HANDSHAKE_CONVERSATION_H
#define QEMU_MIGRATION_HANDSHAKE_CONVERSATION_H

#include "channel.h"
#include "message.h"
#include "migration/handshake.h"
#include "qapi/qapi-types-migration.h"

typedef struct HandshakeSource HandshakeSource;
typedef struct HandshakeEnd HandshakeEnd;
typedef struct HandshakeLoader HandshakeLoader;

/* What hangs on MigrationState: the outgoing side, and what QMP shows */
typedef struct MigrationHandshake {
    MigrationHandshakeInfo *info;       /* of the last handshake, either role */
    HandshakeSource *source;            /* a conversation in progress */
    unsigned attempts;                  /* how many there were */
    /* A migration in session: */
    bool in_session;
    HandshakeEnd *end;                  /* how it ends */
    HandshakePlaces *places;            /* its channels, ready to be taken */
    bool resume_header;                 /* resumed with a header on each one */
    QemuUUID session;                   /* which that names */
    SocketAddress *resume_addr;         /* where it was resumed to last */
    /* Until when this host is taken to be able to do postcopy, for what RAM */
    int64_t postcopy_until_ms;
    uint32_t postcopy_ram_version;
} MigrationHandshake;

/**
 * handshake_source_start: connect, hold the conversation, open all channels
 * @addr: where to; copied
 * @ioc: a socket that is connected already, or NULL; a reference is taken
 * @options: what the user asked for, or NULL; copied.  With check-only, nothing
 *           follows the verdict, and no migration notices.
 *
 * migrate_get_current()->handshake->source is the attempt until it has ended.
 * Unless it is a check, migration_start_outgoing() is called then, or
 * migration_connect_error_propagate().
 */
void handshake_source_start(SocketAddress *addr, QIOChannel *ioc,
                            const MigrationHandshakeOptions *options);

/**
 * handshake_source_cancel: give up
 * @hs: the attempt
 *
 * It ends soon after.  Any thread with the BQL held.
 */
void handshake_source_cancel(HandshakeSource *hs);

/**
 * handshake_source_is_check: whether an attempt is a check
 * @hs: the attempt, or NULL
 */
bool handshake_source_is_check(const HandshakeSource *hs);

/* What hangs on MigrationIncomingState while it listens for handshakes */
typedef struct HandshakeDestination HandshakeDestination;

/**
 * handshake_destination_new: somebody listens
 * @addr: where; copied
 *
 * Returns: to be freed by handshake_destination_free()
 */
HandshakeDestination *handshake_destination_new(const SocketAddress *addr);

/**
 * handshake_destination_free: nobody listens any more
 * @hd: the listener; connections that still talk are closed
 */
void handshake_destination_free(HandshakeDestination *hd);

/**
 * handshake_destination_accept: hold a conversation with whoever has connected
 * @hd: the listener
 * @ioc: the connection, before TLS; a reference is taken
 *
 * Whatever the peer does, a failure ends this connection and nothing else.
 */
void handshake_destination_accept(HandshakeDestination *hd, QIOChannel *ioc);

/**
 * handshake_destination_is_busy: whether a source holds the session
 * @hd: the listener, or NULL
 */
bool handshake_destination_is_busy(const HandshakeDestination *hd);

/**
 * handshake_destination_resume: take a channel of a migration that is resumed
 * @hd: the listener
 * @ioc: the connection, before TLS; a reference is taken
 *
 * In the thread that has accepted it, with the BQL or without.
 *
 * Returns: false if the session knows no headers there
 */
bool handshake_destination_resume(HandshakeDestination *hd, QIOChannel *ioc);

/**
 * handshake_destination_relisten: a paused one listens on another address
 * @hd: the listener
 *
 * Any thread, with the BQL or without.
 */
void handshake_destination_relisten(HandshakeDestination *hd);

/**
 * handshake_destination_end: the migration that was agreed on is over
 * @hd: the listener; connections that still talk are closed
 *
 * Any thread, with the BQL held.
 */
void handshake_destination_end(HandshakeDestination *hd);

/**
 * handshake_destination_verdict: what this QEMU says to a HELLO
 * @hello: of a source, or of a profile
 *
 * Nothing changes.  Called outside of coroutines.
 *
 * Returns: to be freed by the caller
 */
HandshakeVerdict *
handshake_destination_verdict(const MigrationHandshakeHello *hello);

/* end.c */

/**
 * handshake_end_new: a source's session begins
 * @features: those that both sides know
 *
 * Returns: to be freed by handshake_end_free(), when no thread of the migration
 *          is left; a yank instance of migration is registered until then
 */
HandshakeEnd *handshake_end_new(const strList *features);
void handshake_end_free(HandshakeEnd *end);

/**
 * handshake_end_resume: a migration that was paused goes on
 * @end: the session's, or NULL
 *
 * What is met from now on has nothing to do with how it was paused.
 *
 * Called in the main thread, before there is a return path again.
 */
void handshake_end_resume(HandshakeEnd *end);

/**
 * handshake_end_show_issues: show what the destination has said in the end
 * @end: a source's session
 * @info: what query-migrate shows; its issues come after those
 *
 * Whoever sees the migration end sees them.  Main thread, with the BQL.
 */
void handshake_end_show_issues(HandshakeEnd *end, MigrationHandshakeInfo *info);

/**
 * handshake_end_note_error: a migration in session has an error
 * @s: the migration
 * @errp: the error, to which is added what is known; or NULL
 *
 * Ends its channels when the destination has had time to say why.  Any thread.
 */
void handshake_end_note_error(MigrationState *s, Error **errp);

/**
 * handshake_loader_new: a destination's session is about to be loaded
 * @features: those that both sides know
 *
 * Hangs on MigrationIncomingState from then on.
 *
 * Returns: to be freed by handshake_loader_free()
 */
HandshakeLoader *handshake_loader_new(const strList *features);
void handshake_loader_free(HandshakeLoader *loader);

/**
 * handshake_loader_note_error: a thread that loads has the first error
 * @loader: the session
 * @errp: the error; what it means is added
 *
 * Any thread.
 */
void handshake_loader_note_error(HandshakeLoader *loader, Error **errp);

/* words.c */

/**
 * handshake_explain_loading: say what an error of the loader means
 * @text: the error
 * @section: what was being loaded, NULL if it is not known
 * @position: at which byte of the stream, 0 if that is not known
 *
 * Returns: the same text, maybe with more, to be freed by the caller
 */
char *handshake_explain_loading(const char *text, const char *section,
                                uint64_t position);

/* resume.c */

/**
 * handshake_resume_open: open a channel of a migration that is resumed
 * @name: HANDSHAKE_CHANNEL_*
 * @session: the migration's session
 * @addr: where to, unless @ioc is given; copied
 * @ioc: a channel that is connected already, or NULL; a reference is taken
 * @done: called once the destination has answered, with the channel,
 *        or once it is known why it has not, within 30 seconds;
 *        never before this has returned
 *
 * Any thread.
 */
void handshake_resume_open(const char *name, const QemuUUID *session,
                           SocketAddress *addr, QIOChannel *ioc,
                           MigrationHandshakeOpened *done);

/*
 * What a destination keeps to know the channels of its own migration by.  All
 * functions may be called in any thread, with the BQL or without.
 */
typedef struct HandshakeResume HandshakeResume;

/**
 * handshake_resume_new: a migration begins that may have to be resumed
 * @session: its session
 *
 * Returns: a reference to be dropped by handshake_resume_unref()
 */
HandshakeResume *handshake_resume_new(const QemuUUID *session);
void handshake_resume_unref(HandshakeResume *hr);

/**
 * handshake_resume_accept: find out what has connected
 * @hr: the migration
 * @ioc: the connection, before TLS; a reference is taken
 *
 * It is read in this thread's main context.  Nothing changes until it has said
 * that it is a channel of this migration, and that channel is waited for; then
 * it is answered and goes on to the loader.  All others are closed, after 5
 * seconds at most, or sooner if there are more than 8.
 */
void handshake_resume_accept(HandshakeResume *hr, QIOChannel *ioc);

/**
 * handshake_resume_listen: drop who has come to an address that was given up
 * @hr: the migration
 */
void handshake_resume_listen(HandshakeResume *hr);

/**
 * handshake_resume_end: the migration is over
 * @hr: the migration; nobody takes part in it any more
 */
void handshake_resume_end(HandshakeResume *hr);

/* query.c */

/**
 * handshake_info_new: a handshake begins
 * @role: which side this is
 * @check_only: whether it is a check
 *
 * Returns: to be freed by the caller
 */
MigrationHandshakeInfo *handshake_info_new(MigrationHandshakeRole role,
                                           bool check_only);

/**
 * handshake_info_set_verdict: show what came of it
 * @info: the handshake
 * @verdict: copied; what was agreed on is left out unless @agreed
 * @agreed: whether it is in effect, or would be
 */
void handshake_info_set_verdict(MigrationHandshakeInfo *info,
                                const HandshakeVerdict *verdict, bool agreed);

/**
 * handshake_info_publish: query-migrate shows this one from now on
 * @info: copied
 */
void handshake_info_publish(const MigrationHandshakeInfo *info);

/**
 * handshake_info_end: it is settled; event MIGRATION_HANDSHAKE
 * @info: copied, and shown by query-migrate
 * @issues: what was found, or NULL
 * @limit: bounds how many events unauthenticated peers can cause; NULL if this
 *         one always has its event
 */
typedef struct HandshakeEventLimit {
    int64_t refusals_ms;
    int64_t others_ms;
} HandshakeEventLimit;

void handshake_info_end(const MigrationHandshakeInfo *info,
                        const HandshakeIssues *issues,
                        HandshakeEventLimit *limit);

#endif
