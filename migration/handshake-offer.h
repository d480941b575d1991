/*
 * Migration handshake: what this QEMU says as a source
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef QEMU_MIGRATION_HANDSHAKE_OFFER_H
#define QEMU_MIGRATION_HANDSHAKE_OFFER_H

#include "handshake-message.h"
#include "qapi/qapi-types-migration.h"

/* All functions here are called with the BQL held, outside of coroutines. */

/**
 * handshake_offer_new: what to say to a destination
 * @single: whether no further connection can be made
 * @options: what the user asked for, or NULL
 * @declined: what the user would like and this side cannot do is appended
 *
 * Returns: the message, to be freed by the caller
 */
HandshakeHello *
handshake_offer_new(bool single, const MigrationHandshakeOptions *options,
                    MigrationHandshakeDeclinedList **declined);

/**
 * handshake_offer_profile: what could be said to any destination
 *
 * Its optional capabilities are those that this side could do with what is set,
 * each by itself; the others are in its list of declined ones, and what each
 * does to another one is in its list of combinations.
 *
 * Returns: the message, to be freed by the caller
 */
HandshakeHello *handshake_offer_profile(void);

/**
 * handshake_offer_choose: what a user would make of a profile
 * @hello: what handshake_offer_profile() said, on whatever QEMU; its optional
 *         and its declined capabilities become those that are wanted
 * @options: what the user wants, or NULL
 */
void handshake_offer_choose(HandshakeHello *hello,
                            const MigrationHandshakeOptions *options);

/**
 * handshake_offer_holds: whether what was said is still true
 * @hello: what handshake_offer_new() said
 *
 * QMP may have changed parameters, and during a check capabilities, too.
 *
 * Returns: true if so, false with @errp set if not
 */
bool handshake_offer_holds(const HandshakeHello *hello, Error **errp);

#endif
