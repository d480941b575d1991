/*
 * Migration handshake: a check that no migration follows
 *
 *   connect  ->  TLS, if configured  ->  the source's conversation
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "block/aio.h"
#include "io/channel-socket.h"
#include "io/channel-tls.h"
#include "io/channel-util.h"
#include "monitor/monitor.h"
#include "qapi/clone-visitor.h"
#include "qapi/error.h"
#include "qapi/qapi-visit-migration.h"
#include "qemu/main-loop.h"
#include "qemu/sockets.h"
#include "qemu/timer.h"
#include "handshake-check.h"
#include "handshake-info.h"
#include "handshake-message.h"
#include "handshake-settings.h"
#include "handshake-source.h"
#include "handshake-tls.h"
#include "migration.h"
#include "options.h"
#include "tls.h"
#include "trace.h"

typedef struct HandshakeCheck {
    MigrationHandshakeOptions *options;
    char *hostname;                 /* for TLS; NULL if there is none */
    bool single;                    /* no further connection is possible */
    QIOChannel *fd;                 /* one that is connected already */
    HandshakeTls *tls;              /* while TLS negotiates */
    bool cancelled;
    HandshakeSource *conversation;
} HandshakeCheck;

/* The one that is running; BQL */
static HandshakeCheck *current;

static void check_free(HandshakeCheck *check)
{
    if (current == check) {
        current = NULL;
    }
    handshake_tls_end(check->tls);
    qapi_free_MigrationHandshakeOptions(check->options);
    g_free(check->hostname);
    g_free(check);
    handshake_settings_release();
}

/* There was no conversation that could tell what came of it */
static void report_failure(const HandshakeCheck *check, const Error *err)
{
    const char *why = check->cancelled ? "the check was cancelled"
                                       : error_get_pretty(err);

    trace_migration_handshake_check_end(why);
    handshake_info_not_connected(HANDSHAKE_PURPOSE_CHECK, check->cancelled
                                 ? MIGRATION_HANDSHAKE_STATUS_CANCELLED
                                 : MIGRATION_HANDSHAKE_STATUS_FAILED, why);
}

static void conversation_done(Error *err, const QemuUUID *session,
                              void *opaque)
{
    trace_migration_handshake_check_end(err ? error_get_pretty(err) : "agreed");
    check_free(opaque);
}

static void converse(HandshakeCheck *check, QIOChannel *ioc, int64_t since_ms)
{
    check->conversation = handshake_source_start(ioc, check->single, since_ms,
                                                 check->options,
                                                 conversation_done, check);
}

static void tls_done(QIOTask *task, void *opaque)
{
    QIOChannel *ioc = QIO_CHANNEL(qio_task_get_source(task));
    HandshakeCheck *check = opaque;
    Error *err = NULL;

    if (qio_task_propagate_error(task, &err) || check->cancelled) {
        if (!check->cancelled) {
            handshake_tls_explain(check->tls, &err);
        }
        report_failure(check, err);
        error_free(err);
        check_free(check);
    } else {
        converse(check, ioc, handshake_tls_since(check->tls));
        g_clear_pointer(&check->tls, handshake_tls_end);
    }
    object_unref(OBJECT(ioc));
}

static bool tls_begin(HandshakeCheck *check, QIOChannel *ioc, Error **errp)
{
    QIOChannelTLS *tls = migration_tls_client_create(ioc, check->hostname,
                                                     errp);

    if (!tls) {
        return false;
    }
    qio_channel_set_name(QIO_CHANNEL(tls), "migration-check-tls");
    check->tls = handshake_tls_begin(ioc,
                                     handshake_source_timeout(check->options));
    qio_channel_tls_handshake(tls, tls_done, check, NULL, NULL);
    return true;
}

/* The connection stands */
static void begin(HandshakeCheck *check, QIOChannel *ioc)
{
    g_autoptr(Error) err = NULL;

    if (!migrate_channel_requires_tls_upgrade(ioc)) {
        converse(check, ioc, qemu_clock_get_ms(QEMU_CLOCK_REALTIME));
    } else if (!tls_begin(check, ioc, &err)) {
        report_failure(check, err);
        check_free(check);
    }
}

/* What socket.c asks of a connection that it has made */
static bool has_zero_copy(QIOChannel *ioc, Error **errp)
{
    if (migrate_zero_copy_send() &&
        !qio_channel_has_feature(ioc, QIO_CHANNEL_FEATURE_WRITE_ZERO_COPY)) {
        error_setg(errp, "Zero copy send feature not detected in host kernel");
        return false;
    }
    return true;
}

static void connected(QIOTask *task, void *opaque)
{
    QIOChannel *ioc = QIO_CHANNEL(qio_task_get_source(task));
    HandshakeCheck *check = opaque;
    g_autoptr(Error) err = NULL;

    if (current != check) {
        /* It was cancelled, and reported, maybe minutes ago */
        check_free(check);
    } else if (qio_task_propagate_error(task, &err) ||
               !has_zero_copy(ioc, &err)) {
        report_failure(check, err);
        check_free(check);
    } else {
        begin(check, ioc);
    }
    object_unref(OBJECT(ioc));
}

/* As late as any other connection, so that the command has returned */
static void fd_bh(void *opaque)
{
    HandshakeCheck *check = opaque;
    QIOChannel *ioc = g_steal_pointer(&check->fd);

    if (current == check) {
        begin(check, ioc);
    } else {
        check_free(check);
    }
    object_unref(OBJECT(ioc));
}

/* Returns a channel made of what a client has sent over the monitor's socket */
static QIOChannel *channel_from_fd(const char *name, Error **errp)
{
    int fd = monitor_get_fd(monitor_cur(), name, errp);
    QIOChannel *ioc;

    if (fd == -1) {
        return NULL;
    }
    ioc = qio_channel_new_fd(fd, errp);
    if (!ioc) {
        close(fd);
    } else if (!handshake_source_check_channel(ioc, errp)) {
        object_unref(OBJECT(ioc));
        ioc = NULL;
    }
    return ioc;
}

static void connect_to(HandshakeCheck *check, SocketAddress *addr)
{
    QIOChannelSocket *ioc = qio_channel_socket_new();

    if (addr->type == SOCKET_ADDRESS_TYPE_INET) {
        check->hostname = g_strdup(addr->u.inet.host);
    }
    qio_channel_set_name(QIO_CHANNEL(ioc), "migration-check");
    qio_channel_socket_connect_async(ioc, addr, connected, check, NULL, NULL);
}

bool handshake_check_start(SocketAddress *addr,
                           const MigrationHandshakeOptions *options,
                           Error **errp)
{
    g_autofree char *uri = socket_uri(addr);
    QIOChannel *ioc = NULL;
    HandshakeCheck *check;

    if (!migration_may_start(errp)) {
        return false;
    }
    if (addr->type == SOCKET_ADDRESS_TYPE_FD) {
        ioc = channel_from_fd(addr->u.fd.str, errp);
        if (!ioc) {
            return false;
        }
    }

    check = g_new0(HandshakeCheck, 1);
    check->options = QAPI_CLONE(MigrationHandshakeOptions, options);
    handshake_settings_hold();
    check->single = ioc != NULL;
    check->fd = ioc;
    trace_migration_handshake_check_start(uri);
    handshake_info_connecting(HANDSHAKE_PURPOSE_CHECK);
    current = check;
    if (ioc) {
        aio_bh_schedule_oneshot(qemu_get_aio_context(), fd_bh, check);
    } else {
        connect_to(check, addr);
    }
    return true;
}

bool handshake_check_is_running(void)
{
    return current != NULL;
}

bool handshake_check_cancel(void)
{
    HandshakeCheck *check = current;

    if (!check) {
        return false;
    }
    check->cancelled = true;
    if (check->conversation) {
        handshake_source_cancel(check->conversation);
    } else if (check->tls) {
        handshake_tls_cancel(check->tls);
    } else {
        /* connect() may take minutes to end; whoever sees its end frees it */
        report_failure(check, NULL);
        current = NULL;
    }
    return true;
}
