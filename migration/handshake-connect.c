/*
 * Migration handshake: further connections on their way
 *
 * connect() may take minutes to fail, and nothing can interrupt it.  So who
 * waits for it is told that it failed, and its result, whenever it may come,
 * only closes its socket.  TLS can be interrupted, but its end comes later, and
 * must do no harm when the migration is over by then.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "block/aio.h"
#include "qapi/clone-visitor.h"
#include "qapi/error.h"
#include "qapi/qapi-visit-sockets.h"
#include "qemu/atomic.h"
#include "qemu/main-loop.h"
#include "qemu/yank.h"
#include "handshake-connect.h"
#include "migration.h"
#include "trace.h"
#include "yank_functions.h"

typedef struct HandshakeConnect {
    QIOChannelSocket *ioc;
    SocketAddress *addr;
    QIOTaskFunc func;               /* NULL once it was abandoned */
    void *opaque;
    unsigned migration;             /* which one it belongs to */
    QLIST_ENTRY(HandshakeConnect) next;
} HandshakeConnect;

/* Those that somebody waits for; BQL */
static QLIST_HEAD(, HandshakeConnect) connects =
    QLIST_HEAD_INITIALIZER(connects);

typedef struct HandshakeNegotiation {
    QIOChannel *ioc;                /* alive until its TLS has ended */
    bool over;                      /* the migration that it belongs to is */
    QLIST_ENTRY(HandshakeNegotiation) next;
} HandshakeNegotiation;

/* Channels in TLS, also those that nobody waits for any more; BQL */
static QLIST_HEAD(, HandshakeNegotiation) negotiations =
    QLIST_HEAD_INITIALIZER(negotiations);

/* How many migrations are over; written with the BQL, read without it, too */
static unsigned migration;

static void connect_free(HandshakeConnect *c)
{
    qapi_free_SocketAddress(c->addr);
    g_free(c);
}

/* Called by yank, in any thread */
static void connect_yank(void *opaque)
{
    handshake_connect_abandon();
}

/* No yank and no error reaches it any more */
static QIOTaskFunc connect_end(HandshakeConnect *c)
{
    QLIST_REMOVE(c, next);
    yank_unregister_function(MIGRATION_YANK_INSTANCE, connect_yank, c);
    return g_steal_pointer(&c->func);
}

static void connect_abandon(HandshakeConnect *c)
{
    QIOChannelSocket *ioc = qio_channel_socket_new();
    QIOTaskFunc func = connect_end(c);
    QIOTask *task = qio_task_new(OBJECT(ioc), func, c->opaque, NULL);
    Error *err = NULL;

    trace_migration_handshake_connect_abandon(c->ioc);
    error_setg(&err, "the connection was given up");
    qio_task_set_error(task, err);
    qio_task_complete(task);
    qio_task_free(task);
}

static void abandon_bh(void *opaque)
{
    HandshakeConnect *c, *next;
    HandshakeNegotiation *n;

    QLIST_FOREACH_SAFE(c, &connects, next, next) {
        connect_abandon(c);
    }
    QLIST_FOREACH(n, &negotiations, next) {
        if (!n->over) {
            qio_channel_shutdown(n->ioc, QIO_CHANNEL_SHUTDOWN_BOTH, NULL);
        }
    }
}

void handshake_connect_abandon(void)
{
    aio_bh_schedule_oneshot(qemu_get_aio_context(), abandon_bh, NULL);
}

void handshake_connect_forget(void)
{
    HandshakeConnect *c, *next;
    HandshakeNegotiation *n;

    qatomic_set(&migration, migration + 1);
    QLIST_FOREACH_SAFE(c, &connects, next, next) {
        connect_end(c);
    }
    QLIST_FOREACH(n, &negotiations, next) {
        if (!n->over) {
            n->over = true;
            migration_ioc_unregister_yank(n->ioc);
            qio_channel_shutdown(n->ioc, QIO_CHANNEL_SHUTDOWN_BOTH, NULL);
        }
    }
}

void handshake_connect_tls_begin(QIOChannel *ioc)
{
    HandshakeNegotiation *n = g_new0(HandshakeNegotiation, 1);

    n->ioc = ioc;
    migration_ioc_register_yank(ioc);
    QLIST_INSERT_HEAD(&negotiations, n, next);
}

bool handshake_connect_tls_end(QIOChannel *ioc)
{
    HandshakeNegotiation *n;
    bool over = false;

    QLIST_FOREACH(n, &negotiations, next) {
        if (n->ioc == ioc) {
            over = n->over;
            if (!over) {
                migration_ioc_unregister_yank(ioc);
            }
            QLIST_REMOVE(n, next);
            g_free(n);
            break;
        }
    }
    return !over;
}

static void connected(QIOTask *task, void *opaque)
{
    HandshakeConnect *c = opaque;

    if (c->func) {
        connect_end(c)(task, c->opaque);
    } else {
        object_unref(OBJECT(c->ioc));
    }
    connect_free(c);
}

static void connect_bh(void *opaque)
{
    HandshakeConnect *c = opaque;
    MigrationState *s = migrate_get_current();

    if (c->migration != migration) {
        object_unref(OBJECT(c->ioc));
        connect_free(c);
        return;
    }
    QLIST_INSERT_HEAD(&connects, c, next);
    yank_register_function(MIGRATION_YANK_INSTANCE, connect_yank, c);
    if (s->state == MIGRATION_STATUS_CANCELLING || migrate_has_error(s)) {
        /* Whoever has abandoned the others did not see this one */
        connect_abandon(c);
        object_unref(OBJECT(c->ioc));
        connect_free(c);
        return;
    }
    qio_channel_socket_connect_async(c->ioc, c->addr, connected, c, NULL,
                                     NULL);
}

void handshake_connect(QIOChannelSocket *ioc, SocketAddress *addr,
                       QIOTaskFunc func, void *opaque)
{
    HandshakeConnect *c = g_new0(HandshakeConnect, 1);

    c->ioc = ioc;
    c->addr = QAPI_CLONE(SocketAddress, addr);
    c->func = func;
    c->opaque = opaque;
    c->migration = qatomic_read(&migration);
    aio_bh_schedule_oneshot(qemu_get_aio_context(), connect_bh, c);
}
