/*
 * Migration handshake: two profiles in, a list of issues out
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef QEMU_MIGRATION_HANDSHAKE_COMPAT_H
#define QEMU_MIGRATION_HANDSHAKE_COMPAT_H

#include "handshake-message.h"

/**
 * HandshakeResolveSection: which section here loads one of a source's
 * @name: what the source calls it; set to what it is called here
 * @instance: its instance on the source; set to the one here
 *
 * Sections have aliases and former names.
 *
 * Returns: false if there is none
 */
typedef bool HandshakeResolveSection(const char **name, uint32_t *instance);

/**
 * handshake_compare: whether a guest can move from one machine to another
 * @source: the profile of the machine that the guest runs on
 * @destination: the profile of the machine that it is to run on
 * @resolve: how the destination finds a section; if NULL, sections have the
 *           same name on both sides
 * @effective: capabilities that the migration would use
 * @issues: everything that differs and matters is added
 *
 * A member that either profile lacks is not compared.  An error is given only
 * where the migration stream would provably fail or lose the guest.
 *
 * As pure as @resolve is; with NULL, any thread.
 */
void handshake_compare(const HandshakeProfile *source,
                       const HandshakeProfile *destination,
                       HandshakeResolveSection *resolve,
                       const strList *effective, HandshakeIssues *issues);

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
bool handshake_compare_capability(const HandshakeProfile *source,
                                  const HandshakeProfile *destination,
                                  const char *capability, Error **errp);

#endif
