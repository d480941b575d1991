/*
 * Migration handshake: TLS without cryptography, for the fuzz targets
 *
 * A peer gets through with one byte; what follows is in clear.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "io/channel-tls.h"
#include "io/task.h"
#include "migration/tls.h"
#include "qapi/error.h"
#include "peer.h"
#include "stubs.h"

#define TYPE_FUZZ_TLS   "fuzz-tls"

static const TypeInfo fuzz_tls_info = {
    .parent = TYPE_QIO_CHANNEL_TLS,
    .name = TYPE_FUZZ_TLS,
};

static void fuzz_tls_register_types(void)
{
    type_register_static(&fuzz_tls_info);
}

type_init(fuzz_tls_register_types);

static ssize_t tls_readv(QIOChannel *ioc, const struct iovec *iov, size_t niov,
                         int **fds, size_t *nfds, int flags, Error **errp)
{
    return qio_channel_readv(QIO_CHANNEL_TLS(ioc)->master, iov, niov, errp);
}

static ssize_t tls_writev(QIOChannel *ioc, const struct iovec *iov, size_t niov,
                          int *fds, size_t nfds, int flags, Error **errp)
{
    return qio_channel_writev(QIO_CHANNEL_TLS(ioc)->master, iov, niov, errp);
}

static GSource *tls_create_watch(QIOChannel *ioc, GIOCondition condition)
{
    return qio_channel_create_watch(QIO_CHANNEL_TLS(ioc)->master, condition);
}

static QIOChannelTLS *tls_create(QIOChannel *ioc, Error **errp)
{
    QIOChannelTLS *tls;
    QIOChannelClass *class;

    if (stubs.bad_credentials) {
        error_setg(errp, "no credentials");
        return NULL;
    }
    tls = QIO_CHANNEL_TLS(object_new(TYPE_FUZZ_TLS));
    tls->master = QIO_CHANNEL(object_ref(OBJECT(ioc)));
    qio_channel_set_feature(QIO_CHANNEL(tls), QIO_CHANNEL_FEATURE_SHUTDOWN);
    class = QIO_CHANNEL_GET_CLASS(tls);
    class->io_readv = tls_readv;
    class->io_writev = tls_writev;
    class->io_create_watch = tls_create_watch;
    return tls;
}

QIOChannelTLS *migration_tls_server_create(QIOChannel *ioc, Error **errp)
{
    return tls_create(ioc, errp);
}

QIOChannelTLS *migration_tls_client_create_for(QIOChannel *ioc,
                                               const char *hostname,
                                               Error **errp)
{
    return tls_create(ioc, errp);
}

static gboolean tls_negotiate(QIOChannel *master, GIOCondition condition,
                              gpointer opaque)
{
    QIOTask *task = opaque;
    char byte = 0;
    ssize_t len = qio_channel_read(master, &byte, 1, NULL);
    Error *err = NULL;

    if (len == QIO_CHANNEL_ERR_BLOCK) {
        return G_SOURCE_CONTINUE;
    }
    QIO_CHANNEL_TLS(qio_task_get_source(task))->hs_ioc_tag = 0;
    if (len != 1 || byte != FUZZ_TLS) {
        error_setg(&err, "that is no TLS");
        qio_task_set_error(task, err);
    }
    qio_task_complete(task);
    qio_task_free(task);
    return G_SOURCE_REMOVE;
}

/* The linker puts it in the place of the real one */
void __wrap_qio_channel_tls_handshake(QIOChannelTLS *ioc, QIOTaskFunc func,
                                      gpointer opaque, GDestroyNotify destroy,
                                      GMainContext *context);

void __wrap_qio_channel_tls_handshake(QIOChannelTLS *ioc, QIOTaskFunc func,
                                      gpointer opaque, GDestroyNotify destroy,
                                      GMainContext *context)
{
    QIOTask *task = qio_task_new(OBJECT(ioc), func, opaque, destroy);

    /* It may have come already */
    if (tls_negotiate(ioc->master, G_IO_IN, task) == G_SOURCE_CONTINUE) {
        ioc->hs_ioc_tag = qio_channel_add_watch(ioc->master,
                                                G_IO_IN | G_IO_HUP,
                                                tls_negotiate, task, NULL);
    }
}
