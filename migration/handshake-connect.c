/*
 * Migration handshake: further connections on their way
 *
 * connect() may take minutes to fail, and nothing can interrupt it.  So who
 * waits for it is told that it failed, and its result, whenever it may come,
 * only closes its socket.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "block/aio.h"
#include "qapi/clone-visitor.h"
#include "qapi/error.h"
#include "qapi/qapi-visit-sockets.h"
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
    QLIST_ENTRY(HandshakeConnect) next;
} HandshakeConnect;

/* Those that somebody waits for; BQL */
static QLIST_HEAD(, HandshakeConnect) connects =
    QLIST_HEAD_INITIALIZER(connects);

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
}

static void abandon_bh(void *opaque)
{
    HandshakeConnect *c, *next;

    QLIST_FOREACH_SAFE(c, &connects, next, next) {
        connect_abandon(c);
    }
}

void handshake_connect_abandon(void)
{
    aio_bh_schedule_oneshot(qemu_get_aio_context(), abandon_bh, NULL);
}

void handshake_connect_forget(void)
{
    HandshakeConnect *c, *next;

    QLIST_FOREACH_SAFE(c, &connects, next, next) {
        connect_end(c);
    }
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
    aio_bh_schedule_oneshot(qemu_get_aio_context(), connect_bh, c);
}
