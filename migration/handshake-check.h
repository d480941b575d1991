/*
 * Migration handshake: a check that no migration follows
 *
 * It goes the way that a migration would go, beside MigrationState: nothing of
 * a migration notices.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef QEMU_MIGRATION_HANDSHAKE_CHECK_H
#define QEMU_MIGRATION_HANDSHAKE_CHECK_H

#include "qapi/qapi-types-migration.h"

/* All functions here are called in the main thread with the BQL held. */

/**
 * handshake_check_start: ask a destination whether the guest could move there
 * @addr: where it listens
 * @options: what the user asked for
 *
 * query-migrate and event MIGRATION_HANDSHAKE tell what comes of it.  There is
 * no yank function: nobody waits for it, and handshake_check_cancel() ends it.
 *
 * Returns: true if it has begun, false with @errp set if not
 */
bool handshake_check_start(SocketAddress *addr,
                           const MigrationHandshakeOptions *options,
                           Error **errp);

/**
 * handshake_check_is_running: whether one has begun and not ended
 */
bool handshake_check_is_running(void);

/**
 * handshake_check_cancel: end the one that is running
 *
 * Returns: whether there was one
 */
bool handshake_check_cancel(void);

#endif
