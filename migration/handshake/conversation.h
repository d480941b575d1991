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
#include "qapi/qapi-types-migration.h"

typedef struct HandshakeSource HandshakeSource;

/* What hangs on MigrationState: the outgoing side, and what QMP shows */
typedef struct MigrationHandshake {
    MigrationHandshakeInfo *info;       /* of the last handshake, either role */
    HandshakeSource *source;            /* a conversation in progress */
    unsigned attempts;                  /* how many there were */
    /* A migration in session: */
    bool in_session;
    bool late_error;                    /* the peer may say a LAST WORD */
    unsigned unknown_frames;            /* on the return path */
    HandshakePlaces *places;            /* its channels, ready to be taken */
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
 * Unless it is a check, migration_connect() is called then.
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
