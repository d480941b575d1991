/*
 * Migration handshake: what machines are, and whether a guest can move
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef QEMU_MIGRATION_HANDSHAKE_MACHINE_H
#define QEMU_MIGRATION_HANDSHAKE_MACHINE_H

#include "message.h"

/**
 * handshake_profile_new: what this machine is
 * @role: as a source, what it will send; as a destination, what it can read
 *
 * Facts about the machine are in it, settings are not.
 *
 * Called with the BQL held, outside of coroutines.
 *
 * Returns: the profile, to be freed by the caller
 */
MigrationProfile *handshake_profile_new(MigrationHandshakeRole role);

/**
 * handshake_profile_add_bitmaps: the dirty bitmaps in what a machine is
 * @profile: they are added; none if there are too many
 * @role: as a source, what it would send; as a destination, what it could load
 *
 * Called with the BQL held, outside of coroutines.
 */
void handshake_profile_add_bitmaps(MigrationProfile *profile,
                                   MigrationHandshakeRole role);

/**
 * handshake_limits_new: which promises this machine could keep
 *
 * Called with the BQL held, outside of coroutines.
 *
 * Returns: by handshake_section_key(), arrays of HandshakeLimit, to be
 *          unreferenced by the caller before the BQL is released
 */
GHashTable *handshake_limits_new(void);

/**
 * handshake_section_key: how a section is found
 * @name: its name
 * @instance: its instance
 *
 * Returns: to be freed by the caller
 */
char *handshake_section_key(const char *name, uint32_t instance);

/**
 * handshake_peer_new: how a machine describes itself to the other side
 * @profile: a machine's profile, be it of a peer; if NULL, this machine
 *
 * Called with the BQL held.
 *
 * Returns: texts as they may be shown to people, to be freed by the caller
 */
MigrationHandshakePeer *handshake_peer_new(const MigrationProfile *profile);

/**
 * handshake_compare: whether a guest can move from one machine to another
 * @source: the profile of the machine that the guest runs on
 * @destination: this machine, as handshake_profile_new() has described it
 * @effective: capabilities that the migration would use
 * @issues: everything that differs and matters is added
 *
 * A member that either profile lacks is not compared.  An error is given only
 * where the migration stream would provably fail or lose the guest.
 *
 * Called with the BQL held, since sections are looked up by
 * qemu_savevm_resolve_section(); pure otherwise.
 */
void handshake_compare(const MigrationProfile *source,
                       const MigrationProfile *destination,
                       const strList *effective, HandshakeIssues *issues);

/**
 * handshake_compare_return: whether the guest could come back
 * @source: the profile of the machine that the guest runs on
 * @destination: this machine, as handshake_profile_new() has described it
 * @back: what handshake_compare_promises() has found, or NULL
 * @issues: the first reason why it could not is added
 *
 * For guests that may move: what would be refused need not be asked about.
 * Only what is certain is told, so that nothing found promises nothing.
 *
 * Called with the BQL held, as handshake_compare().
 */
void handshake_compare_return(const MigrationProfile *source,
                              const MigrationProfile *destination,
                              const MigrationHandshakeIssue *back,
                              HandshakeIssues *issues);

/**
 * handshake_compare_promises: whether a guest finds what it was promised
 * @source: the profile of the machine that the guest runs on
 * @destination: this machine's profile
 * @limits: what this machine could keep
 * @issues: a promise that would be broken is added, at most one issue for each
 * @back: for handshake_compare_return(): set to what would keep the guest from
 *        coming back, to be freed by the caller, or to NULL
 *
 * A promise that either side does not make is not compared.
 *
 * Called with the BQL held, since sections are looked up by
 * qemu_savevm_resolve_section(), and devices say what their bits mean; pure
 * otherwise.
 */
void handshake_compare_promises(const MigrationProfile *source,
                                const MigrationProfile *destination,
                                GHashTable *limits, HandshakeIssues *issues,
                                MigrationHandshakeIssue **back);

/**
 * handshake_compare_capability: whether two machines go together with a
 *                               capability
 * @source: the profile of the machine that the guest runs on
 * @destination: the profile of the machine that it is to run on
 * @capability: its name
 *
 * What handshake_compare() would give as an error only because of @capability
 * is no reason to refuse a migration that can do without it.
 *
 * Pure; any thread.
 *
 * Returns: true if they do, false with @errp set if not
 */
bool handshake_compare_capability(const MigrationProfile *source,
                                  const MigrationProfile *destination,
                                  const char *capability, Error **errp);

#endif
