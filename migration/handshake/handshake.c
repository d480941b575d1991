/*
 * Migration handshake: the front door
 *
 * What the rest of migration calls, and the life of a session around the
 * conversation.  See docs/devel/migration/handshake.rst.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "io/channel-socket.h"
#include "io/channel-util.h"
#include "monitor/monitor.h"
#include "qapi/clone-visitor.h"
#include "qapi/error.h"
#include "qapi/qapi-visit-sockets.h"
#include "qapi/type-helpers.h"
#include "qemu/bswap.h"
#include "qemu/main-loop.h"
#include "qemu/sockets.h"
#include "conversation.h"
#include "migration/handshake.h"
#include "migration/options.h"
#include "migration/qemu-file.h"
#include "migration/yank_functions.h"
#include "settings.h"
#include "trace.h"

/* In seconds; see MigrationHandshakeOptions */
#define TIMEOUT_MAX     3600

void migration_handshake_init(MigrationState *s)
{
    s->handshake = g_new0(MigrationHandshake, 1);
}

void migration_handshake_finalize(MigrationState *s)
{
    qapi_free_MigrationHandshakeInfo(s->handshake->info);
    handshake_places_free(s->handshake->places);
    g_clear_pointer(&s->handshake->end, handshake_end_free);
    qapi_free_SocketAddress(s->handshake->resume_addr);
    g_free(s->handshake);
}

static bool validate_transport(const MigrationAddress *addr, bool incoming,
                               Error **errp)
{
    const char *transport = MigrationAddressType_str(addr->transport);

    if (addr->transport != MIGRATION_ADDRESS_TYPE_SOCKET) {
        error_setg(errp, "Channel type 'handshake' needs a bidirectional "
                   "socket, which transport '%s' is not%s", transport,
                   addr->transport == MIGRATION_ADDRESS_TYPE_RDMA
                   ? ": it agrees on its own settings as it connects; set all "
                     "others alike on both sides, and use channel type 'main'"
                   : "");
        return false;
    }
    if (incoming && addr->u.socket.type == SOCKET_ADDRESS_TYPE_FD) {
        error_setg(errp, "Channel type 'handshake' needs an address to listen "
                   "on: after a refusal nobody could connect again to an 'fd'");
        return false;
    }
    return true;
}

bool
migration_handshake_validate_outgoing(const MigrationChannelList *channels,
                                      bool resume,
                                      const MigrationHandshakeOptions *options,
                                      Error **errp)
{
    const MigrationChannel *handshake = NULL;
    const MigrationChannelList *l;

    if (handshake_source_is_check(migrate_get_current()->handshake->source)) {
        error_setg(errp, "A check of a migration is in progress; "
                   "migrate_cancel ends it");
        return false;
    }
    for (l = channels; l; l = l->next) {
        if (l->value->channel_type == MIGRATION_CHANNEL_TYPE_HANDSHAKE) {
            handshake = l->value;
        }
    }
    if (!handshake) {
        if (options) {
            error_setg(errp, "Argument 'handshake' needs a channel of type "
                       "'handshake'");
        }
        return !options;
    }
    if (channels->next) {
        error_setg(errp, "Channel type 'handshake' must be the only entry of "
                   "the channel list");
        return false;
    }
    if (resume && !migrate_get_current()->handshake->resume_header) {
        error_setg(errp, "Channel type 'handshake' cannot resume this "
                   "migration; use channel type 'main'");
        return false;
    }
    if (resume && options) {
        error_setg(errp, "Argument 'handshake' has no meaning when a "
                   "migration is resumed");
        return false;
    }
    if (resume) {
        return validate_transport(handshake->addr, false, errp);
    }
    if (options && options->has_timeout && options->timeout > TIMEOUT_MAX) {
        error_setg(errp, "Option 'timeout' of channel type 'handshake' must "
                   "be 0 to %d seconds", TIMEOUT_MAX);
        return false;
    }
    return handshake_ignore_validate(options ? options->ignore_issues : NULL,
                                     errp) &&
           validate_transport(handshake->addr, false, errp) &&
           handshake_settings_validate(errp);
}

static bool is_stream_socket(QIOChannel *ioc)
{
    Object *socket = object_dynamic_cast(OBJECT(ioc), TYPE_QIO_CHANNEL_SOCKET);
    int type = 0;
    socklen_t len = sizeof(type);

    /* A datagram's end never comes, and shutdown() does not wake who waits */
    return socket && !getsockopt(QIO_CHANNEL_SOCKET(socket)->fd, SOL_SOCKET,
                                 SO_TYPE, &type, &len) && type == SOCK_STREAM;
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
    } else if (!is_stream_socket(ioc)) {
        error_setg(errp, "Channel type 'handshake' needs a bidirectional "
                   "socket of type stream, which this file descriptor is not");
        object_unref(OBJECT(ioc));
        ioc = NULL;
    }
    return ioc;
}

/* An earlier handshake must not be taken for that of this migration */
void migration_handshake_not_started(const Error *err)
{
    g_autoptr(MigrationHandshakeInfo) info =
        handshake_info_new(MIGRATION_HANDSHAKE_ROLE_SOURCE, false);

    info->status = MIGRATION_HANDSHAKE_STATUS_FAILED;
    info->message = g_strdup(error_get_pretty(err));
    handshake_info_end(info, NULL, NULL);
}

bool migration_handshake_start(SocketAddress *addr,
                               const MigrationHandshakeOptions *options,
                               Error **errp)
{
    ERRP_GUARD();
    bool check_only = options && options->check_only;
    g_autoptr(QIOChannel) ioc = NULL;

    if (check_only && !migration_may_start(errp)) {
        return false;
    }
    if (addr->type == SOCKET_ADDRESS_TYPE_FD) {
        ioc = channel_from_fd(addr->u.fd.str, errp);
    }
    if (!*errp) {
        handshake_source_start(addr, ioc, options);
        return true;
    }
    if (!check_only) {
        migration_handshake_not_started(*errp);
    }
    return false;
}

/* A paused migration has its main channel again, or none and @err */
static void resume_main_done(MigrationState *s, QIOChannel *ioc, Error *err)
{
    /* QEMU may be about to quit */
    if (s->state == MIGRATION_STATUS_POSTCOPY_RECOVER_SETUP) {
        if (err) {
            migration_connect_error_propagate(s, err);
        } else {
            migration_ioc_register_yank(ioc);
            migration_outgoing_setup(ioc);
            migration_start_outgoing(s);
        }
    } else {
        error_free(err);
    }
}

bool migration_handshake_resume(const MigrationAddress *addr, Error **errp)
{
    ERRP_GUARD();
    MigrationHandshake *h = migrate_get_current()->handshake;
    SocketAddress *to = NULL;
    g_autoptr(QIOChannel) ioc = NULL;

    /* RDMA has a channel of its own, in which nothing else can be sent */
    if (!h->resume_header || addr->transport == MIGRATION_ADDRESS_TYPE_RDMA) {
        return false;
    }
    if (addr->transport != MIGRATION_ADDRESS_TYPE_SOCKET) {
        /* Nobody could end the wait for an answer */
        error_setg(errp, "This migration can be resumed over a bidirectional "
                   "socket only, which transport '%s' is not",
                   MigrationAddressType_str(addr->transport));
    } else if (addr->u.socket.type == SOCKET_ADDRESS_TYPE_FD) {
        ioc = channel_from_fd(addr->u.socket.u.fd.str, errp);
    } else {
        to = (SocketAddress *)&addr->u.socket;
    }
    if (!*errp && !to && migrate_postcopy_preempt()) {
        error_setg(errp, "Capability 'postcopy-preempt' needs an address that "
                   "can be connected to twice");
    }
    if (!*errp) {
        handshake_end_resume(h->end);
        qapi_free_SocketAddress(h->resume_addr);
        h->resume_addr = QAPI_CLONE(SocketAddress, to);
        handshake_resume_open(HANDSHAKE_CHANNEL_MAIN, &h->session, to, ioc,
                              resume_main_done);
    }
    return true;
}

bool migration_handshake_resume_preempt(MigrationHandshakeOpened *done)
{
    MigrationHandshake *h = migrate_get_current()->handshake;

    if (h->resume_addr) {
        handshake_resume_open(HANDSHAKE_CHANNEL_PREEMPT, &h->session,
                              h->resume_addr, NULL, done);
    }
    return h->resume_addr;
}

bool migration_handshake_cancel(void)
{
    HandshakeSource *hs = migrate_get_current()->handshake->source;

    if (hs) {
        handshake_source_cancel(hs);
    }
    return hs && !handshake_source_is_check(hs);
}

QIOChannel *migration_handshake_take_channel(const char *name, uint32_t index)
{
    return handshake_places_take(migrate_get_current()->handshake->places,
                                 name, index);
}

static bool is_handshake(const uint8_t *magic)
{
    return ldl_be_p(magic) == HANDSHAKE_MAGIC;
}

static void explain_handshake(Error **errp)
{
    error_prepend(errp, "the destination wants a migration handshake; use "
                  "channel type 'handshake': ");
}

void migration_handshake_explain_message(uint16_t type, uint16_t len,
                                         Error **errp)
{
    uint8_t magic[4];

    stw_be_p(magic, type);
    stw_be_p(magic + 2, len);
    if (is_handshake(magic)) {
        explain_handshake(errp);
    }
}

/* Whether a channel that begins without handshake was answered with one */
static bool wants_handshake(QIOChannel *ioc)
{
    uint8_t magic[4] = { 0 };
#ifdef MSG_DONTWAIT
    Object *socket = object_dynamic_cast(OBJECT(ioc), TYPE_QIO_CHANNEL_SOCKET);

    if (socket && recv(QIO_CHANNEL_SOCKET(socket)->fd, magic, sizeof(magic),
                       MSG_PEEK | MSG_DONTWAIT) != sizeof(magic)) {
        return false;
    }
#endif
    return is_handshake(magic);
}

void migration_handshake_explain_channel(QIOChannel *ioc, Error **errp)
{
    if (ioc && !migrate_get_current()->handshake->in_session &&
        wants_handshake(ioc)) {
        explain_handshake(errp);
    }
}

void migration_handshake_note_error(MigrationState *s, Error **errp)
{
    QIOChannel *ioc = NULL;

    if (s->handshake->in_session) {
        handshake_end_note_error(s, errp);
        return;
    }
    if (migration_incoming_get_current()->loader) {
        handshake_loader_note_error(migration_incoming_get_current()->loader,
                                    errp);
        return;
    }
    /* Whoever closes the channel holds this lock, and waits for the caller's */
    if (!qemu_mutex_trylock(&s->qemu_file_lock)) {
        if (s->to_dst_file) {
            ioc = QIO_CHANNEL(object_ref(OBJECT(
                                  qemu_file_get_ioc(s->to_dst_file))));
        }
        qemu_mutex_unlock(&s->qemu_file_lock);
    }
    migration_handshake_explain_channel(ioc, errp);
    object_unref(OBJECT(ioc));
}

void migration_handshake_check_stream(QEMUFile *f)
{
    QIOChannel *ioc = qemu_file_get_ioc(f);
    Error *err = NULL;

    if (!migrate_get_current()->handshake->in_session && wants_handshake(ioc)) {
        error_setg(&err, "nobody loads the migration stream");
        qemu_file_set_error_obj(f, -EPROTO, err);
    }
}

void migration_handshake_outgoing_cleanup(void)
{
    MigrationHandshake *h = migrate_get_current()->handshake;

    if (h->in_session) {
        h->in_session = false;
        if (h->end) {
            handshake_end_show_issues(h->end, h->info);
        }
        g_clear_pointer(&h->end, handshake_end_free);
        h->resume_header = false;
        g_clear_pointer(&h->resume_addr, qapi_free_SocketAddress);
        g_clear_pointer(&h->places, handshake_places_free);
        handshake_settings_restore();
    }
}

bool migration_handshake_listen(const MigrationChannel *channel, Error **errp)
{
    MigrationIncomingState *mis = migration_incoming_get_current();
    bool handshake = channel && channel->channel_type ==
                                MIGRATION_CHANNEL_TYPE_HANDSHAKE;

    if (channel && !handshake &&
        channel->channel_type != MIGRATION_CHANNEL_TYPE_MAIN) {
        error_setg(errp, "Channel list must have only one entry, for type "
                   "'main' or 'handshake'");
        return false;
    }
    if (handshake && (!validate_transport(channel->addr, true, errp) ||
                      !handshake_settings_validate(errp))) {
        return false;
    }
    /* 'migrate-recover' comes in a later state, and without the BQL */
    if (mis->state == MIGRATION_STATUS_NONE) {
        g_clear_pointer(&mis->handshake, handshake_destination_free);
        mis->handshake =
            handshake ? handshake_destination_new(&channel->addr->u.socket)
                      : NULL;
    } else if (mis->handshake) {
        handshake_destination_relisten(mis->handshake);
    }
    return true;
}

/* Its connections belong to the main loop */
static void destination_free_bh(void *opaque)
{
    handshake_destination_free(opaque);
}

bool migration_handshake_accept(QIOChannel *ioc)
{
    MigrationIncomingState *mis = migration_incoming_get_current();

    if (!mis->handshake) {
        return false;
    }
    /* A listener of 'migrate-recover' is in a thread of its own */
    if ((mis->state == MIGRATION_STATUS_POSTCOPY_PAUSED ||
         mis->state == MIGRATION_STATUS_POSTCOPY_RECOVER || !bql_locked()) &&
        handshake_destination_resume(mis->handshake, ioc)) {
        return true;
    }
    /* Otherwise a paused migration is recovered without header */
    if (mis->state == MIGRATION_STATUS_POSTCOPY_PAUSED) {
        aio_bh_schedule_oneshot(qemu_get_aio_context(), destination_free_bh,
                                g_steal_pointer(&mis->handshake));
        return false;
    }
    if (mis->state != MIGRATION_STATUS_COMPLETED &&
        mis->state != MIGRATION_STATUS_FAILED) {
        handshake_destination_accept(mis->handshake, ioc);
    }
    return true;
}

void migration_handshake_incoming_cleanup(void)
{
    MigrationIncomingState *mis = migration_incoming_get_current();

    if (mis->handshake) {
        handshake_destination_end(mis->handshake);
    }
    g_clear_pointer(&mis->loader, handshake_loader_free);
    handshake_settings_restore();
}
