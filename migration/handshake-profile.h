/*
 * Migration handshake: what this machine is
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef QEMU_MIGRATION_HANDSHAKE_PROFILE_H
#define QEMU_MIGRATION_HANDSHAKE_PROFILE_H

#include "handshake-message.h"

/**
 * handshake_profile_identify: say what this machine is, and not what it has
 * @profile: filled in
 *
 * Called with the BQL held.
 */
void handshake_profile_identify(HandshakeProfile *profile);

/**
 * handshake_profile_collect: describe this machine
 * @profile: facts about the machine are filled in, settings are not
 *
 * Called with the BQL held, outside of coroutines.
 */
void handshake_profile_collect(HandshakeProfile *profile);

#endif
