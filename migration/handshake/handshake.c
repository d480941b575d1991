/*
 * Migration handshake: the front door
 *
 * What the rest of migration calls, and the life of a session around the
 * conversation.  See docs/devel/migration/handshake.rst.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "block/aio.h"
#include "io/channel-socket.h"
#include "io/channel-util.h"
#include "monitor/monitor.h"
#include "qapi/error.h"
#include "qapi/qapi-commands-yank.h"
#include "qemu/bswap.h"
#include "qemu/main-loop.h"
#include "qemu/sockets.h"
#include "qemu/yank.h"
#include "conversation.h"
#include "migration/handshake.h"
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
    g_free(s->handshake);
}

static bool validate_transport(const MigrationAddress *addr, bool incoming,
                               Error **errp)
{
    const char *transport = MigrationAddressType_str(addr->transport);

    if (addr->transport != MIGRATION_ADDRESS_TYPE_SOCKET) {
        error_setg(errp, "Channel type 'handshake' needs a bidirectional "
                   "socket, which transport '%s' is not", transport);
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
    if (resume) {
        error_setg(errp, "Channel type 'handshake' cannot resume a migration; "
                   "use channel type 'main'");
        return false;
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
static void report_no_handshake(const Error *err)
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
    if (!*errp &&
        (check_only || yank_register_instance(MIGRATION_YANK_INSTANCE, errp))) {
        handshake_source_start(addr, ioc, options);
        return true;
    }
    if (!check_only) {
        report_no_handshake(*errp);
    }
    return false;
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

/* query-migrate shows the reasons before what was found in the handshake */
static void last_word_bh(void *opaque)
{
    HandshakeIssues *issues = opaque;
    MigrationState *s = migrate_get_current();
    MigrationHandshakeInfo *info = s->handshake->info;
    MigrationHandshakeIssueList **tail = &issues->list;
    unsigned count = 0;

    if (info->role == MIGRATION_HANDSHAKE_ROLE_SOURCE && !info->check_only) {
        while (*tail) {
            tail = &(*tail)->next;
        }
        *tail = info->issues;
        info->issues = g_steal_pointer(&issues->list);
        for (tail = &info->issues; *tail && count < HANDSHAKE_ISSUES_MAX;
             tail = &(*tail)->next) {
            count++;
        }
        for (const MigrationHandshakeIssueList *l = *tail; l; l = l->next) {
            issues->omitted++;
        }
        g_clear_pointer(tail, qapi_free_MigrationHandshakeIssueList);
        info->issues_omitted += issues->omitted;
        info->has_issues_omitted = info->issues_omitted;
    }
    handshake_issues_free(issues);
    g_free(issues);
    object_unref(OBJECT(s));
}

static void read_last_word(const GString *json, Error **errp)
{
    HandshakeIssues *issues = g_new0(HandshakeIssues, 1);
    g_autofree char *message = handshake_get_reason(json, issues);

    trace_migration_handshake_last_word(json->str);
    error_setg(errp, "the destination cannot load the migration: %s", message);
    object_ref(OBJECT(migrate_get_current()));
    aio_bh_schedule_oneshot(iohandler_get_aio_context(), last_word_bh, issues);
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

bool migration_handshake_read_frame(QEMUFile *rp, uint16_t type, uint16_t len,
                                    Error **errp)
{
    MigrationHandshake *h = migrate_get_current()->handshake;
    g_autoptr(GString) json = NULL;
    uint16_t frame_type, flags;

    if (type || !h->late_error) {
        uint8_t magic[4];

        stw_be_p(magic, type);
        stw_be_p(magic + 2, len);
        error_setg(errp, "Received invalid message 0x%04x length 0x%04x",
                   type, len);
        if (is_handshake(magic) && !h->in_session) {
            explain_handshake(errp);
        }
        return false;
    }
    frame_type = qemu_get_be16(rp);
    flags = qemu_get_be16(rp);
    if (len > HANDSHAKE_LATE_FRAME_MAX) {
        error_setg(errp, "migration handshake: frame of %u bytes on the return "
                   "path, at most %u are allowed", len,
                   (unsigned)HANDSHAKE_LATE_FRAME_MAX);
        return false;
    }
    json = g_string_sized_new(len);
    g_string_set_size(json, len);
    qemu_get_buffer(rp, (uint8_t *)json->str, len);
    if (qemu_file_get_error_obj(rp, errp)) {
        return false;
    }
    if (frame_type == HANDSHAKE_FRAME_LAST_WORD) {
        read_last_word(json, errp);
        return false;
    }
    if ((flags & HANDSHAKE_FRAME_CRITICAL) ||
        ++h->unknown_frames > HANDSHAKE_UNKNOWN_MAX) {
        error_setg(errp, "migration handshake: frame of unknown type 0x%04x on "
                   "the return path", frame_type);
        return false;
    }
    return true;
}

/*
 * A thread of multifd may wait for the end of TLS, and a source for a word from
 * a destination that cannot speak any more.  Postcopy goes on with an error, or
 * waits for somebody to recover.
 */
static void end_session_bh(void *opaque)
{
    YankInstanceList migration = { .value = MIGRATION_YANK_INSTANCE };
    MigrationState *s = opaque;

    /* After the migration QEMU may quit */
    if (s->handshake->in_session && (s->state == MIGRATION_STATUS_SETUP ||
                                     s->state == MIGRATION_STATUS_ACTIVE)) {
        qmp_yank(&migration, NULL);
    }
    object_unref(OBJECT(s));
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
        if (s->state == MIGRATION_STATUS_SETUP) {
            error_prepend(errp, "before the stream began: ");
        }
        object_ref(OBJECT(s));
        aio_bh_schedule_oneshot(iohandler_get_aio_context(), end_session_bh, s);
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
        h->late_error = false;
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
        mis->handshake = handshake ? handshake_destination_new() : NULL;
    }
    return true;
}

bool migration_handshake_accept(QIOChannel *ioc)
{
    MigrationIncomingState *mis = migration_incoming_get_current();

    if (!mis->handshake) {
        return false;
    }
    /* A paused postcopy migration is recovered without handshake */
    if (mis->state == MIGRATION_STATUS_POSTCOPY_PAUSED) {
        g_clear_pointer(&mis->handshake, handshake_destination_free);
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
    handshake_settings_restore();
}
