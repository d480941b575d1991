/*
 * Migration handshake: what query-migrate shows of it
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef QEMU_MIGRATION_HANDSHAKE_INFO_H
#define QEMU_MIGRATION_HANDSHAKE_INFO_H

#include "handshake-message.h"
#include "handshake-wire.h"

/* All functions here are called with the BQL held. */

/**
 * handshake_info_new: begin to keep record of a conversation
 * @role: the side that this QEMU is on
 * @purpose: what the HELLO is for, or NULL
 *
 * Returns: the record, to be freed by the caller
 */
MigrationHandshakeInfo *handshake_info_new(MigrationHandshakeRole role,
                                           const char *purpose);

/**
 * handshake_info_set_wire: note what went over the wire
 * @info: the record
 * @wire: the conversation's channel
 */
void handshake_info_set_wire(MigrationHandshakeInfo *info,
                             const HandshakeWire *wire);

/**
 * handshake_info_set_verdict: note what was agreed on, or why not
 * @info: the record
 * @verdict: the destination's answer
 */
void handshake_info_set_verdict(MigrationHandshakeInfo *info,
                                const HandshakeVerdict *verdict);

/**
 * handshake_info_publish: show a record in query-migrate
 * @info: the record, which is copied
 */
void handshake_info_publish(const MigrationHandshakeInfo *info);

/**
 * handshake_info_connecting: a source begins to connect: show it
 * @purpose: what the conversation is for
 */
void handshake_info_connecting(const char *purpose);

/**
 * handshake_info_not_connected: there was none: show it, and tell clients
 * @purpose: what it would have been for
 * @status: FAILED or CANCELLED
 * @why: for people, in one line
 */
void handshake_info_not_connected(const char *purpose,
                                  MigrationHandshakeStatus status,
                                  const char *why);

/**
 * handshake_info_end: the conversation has ended: publish it, and tell clients
 * @info: the record, which is copied
 * @issues: what was found, or NULL
 * @trusted: false if it may be a stranger that was refused, failed, gave up
 *           or only asked; the event is rate-limited then
 */
void handshake_info_end(const MigrationHandshakeInfo *info,
                        const HandshakeIssues *issues, bool trusted);

/**
 * handshake_info_query: what was published last
 *
 * Returns: a copy, to be freed by the caller; NULL if there is nothing
 */
MigrationHandshakeInfo *handshake_info_query(void);

#endif
