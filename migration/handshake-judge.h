/*
 * Migration handshake: this QEMU as the destination of a HELLO
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef QEMU_MIGRATION_HANDSHAKE_JUDGE_H
#define QEMU_MIGRATION_HANDSHAKE_JUDGE_H

#include "handshake-message.h"

/**
 * handshake_judge: whether a guest could come here, and how
 * @hello: what the source says, however it got here
 *
 * All that the answer depends on is looked at in one go, so that it cannot
 * change in between.  Nothing changes here; but the host is probed, which must
 * not happen in a coroutine, nor while a migration is in progress.
 *
 * Called in the main thread with the BQL held.
 *
 * Returns: the verdict, to be freed by the caller
 */
HandshakeVerdict *handshake_judge(const HandshakeHello *hello);

/**
 * handshake_judge_busy: the verdict for whoever comes while a session is held
 *
 * It costs next to nothing: the one who holds the session must not suffer.
 * Called with the BQL held.
 *
 * Returns: the verdict, to be freed by the caller
 */
HandshakeVerdict *handshake_judge_busy(void);

#endif
