/*
 * Migration handshake: TLS with the destination, before the conversation
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef QEMU_MIGRATION_HANDSHAKE_TLS_H
#define QEMU_MIGRATION_HANDSHAKE_TLS_H

#include "io/channel.h"

/* All functions here are called in the main thread with the BQL held. */

typedef struct HandshakeTls HandshakeTls;

/**
 * handshake_tls_begin: a connection stands, and TLS is about to be negotiated
 * @ioc: the connection itself, below TLS; it is non-blocking afterwards
 * @timeout: in seconds, 0 = none; when it is over, @ioc is shut down
 *
 * Returns: what handshake_tls_end() frees
 */
HandshakeTls *handshake_tls_begin(QIOChannel *ioc, uint32_t timeout);

/**
 * handshake_tls_since: when the connection stood
 * @tls: what handshake_tls_begin() returned
 *
 * Returns: milliseconds of QEMU_CLOCK_REALTIME
 */
int64_t handshake_tls_since(const HandshakeTls *tls);

/**
 * handshake_tls_cancel: give up
 * @tls: what handshake_tls_begin() returned
 *
 * The negotiation fails soon after.
 */
void handshake_tls_cancel(HandshakeTls *tls);

/**
 * handshake_tls_explain: why there is no conversation
 * @tls: what handshake_tls_begin() returned
 * @errp: how TLS has failed; it becomes something that helps a user
 */
void handshake_tls_explain(const HandshakeTls *tls, Error **errp);

/**
 * handshake_tls_end: TLS has come to an end, be it good or bad
 * @tls: it is freed; may be NULL
 */
void handshake_tls_end(HandshakeTls *tls);

#endif
