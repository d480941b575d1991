/*
 * Migration handshake: TLS with the destination, before the conversation
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "qapi/error.h"
#include "qemu/timer.h"
#include "handshake-tls.h"
#include "trace.h"

struct HandshakeTls {
    QIOChannel *raw;
    uint32_t timeout;               /* in seconds, 0 = none */
    int64_t since_ms;
    QEMUTimer *timer;
    bool timed_out;
    bool given_up;                  /* by this side, for whatever reason */
};

static void timer_cb(void *opaque)
{
    HandshakeTls *tls = opaque;

    trace_migration_handshake_source_tls_timeout(tls->raw);
    tls->timed_out = true;
    handshake_tls_cancel(tls);
}

HandshakeTls *handshake_tls_begin(QIOChannel *ioc, uint32_t timeout)
{
    HandshakeTls *tls = g_new0(HandshakeTls, 1);

    trace_migration_handshake_source_tls(ioc, timeout);
    /* It must not wait for the peer in the main loop */
    qio_channel_set_blocking(ioc, false, NULL);
    tls->raw = QIO_CHANNEL(object_ref(OBJECT(ioc)));
    tls->timeout = timeout;
    tls->since_ms = qemu_clock_get_ms(QEMU_CLOCK_REALTIME);
    tls->timer = timer_new_ms(QEMU_CLOCK_REALTIME, timer_cb, tls);
    if (timeout) {
        timer_mod(tls->timer, tls->since_ms + timeout * 1000);
    }
    return tls;
}

int64_t handshake_tls_since(const HandshakeTls *tls)
{
    return tls->since_ms;
}

void handshake_tls_cancel(HandshakeTls *tls)
{
    tls->given_up = true;
    qio_channel_shutdown(tls->raw, QIO_CHANNEL_SHUTDOWN_BOTH, NULL);
}

void handshake_tls_explain(const HandshakeTls *tls, Error **errp)
{
    if (tls->timed_out) {
        error_free(*errp);
        *errp = NULL;
        error_setg(errp, "no answer to TLS within %" PRIu32 " seconds; does "
                   "the destination have 'tls-creds' set?", tls->timeout);
    } else if (tls->given_up) {
        error_free(*errp);
        *errp = NULL;
        error_setg(errp, "TLS with the destination was interrupted");
    } else {
        error_prepend(errp, "TLS with the destination failed (set 'tls-creds' "
                      "on both sides or on none): ");
    }
}

void handshake_tls_end(HandshakeTls *tls)
{
    if (tls) {
        timer_free(tls->timer);
        object_unref(OBJECT(tls->raw));
        g_free(tls);
    }
}
