/*
 * Migration handshake: the front door
 *
 * What the migration core calls, and the life of a session around the
 * conversation.  See docs/devel/migration/handshake.rst.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "block/aio.h"
#include "qapi/clone-visitor.h"
#include "qapi/error.h"
#include "qapi/qapi-commands-yank.h"
#include "qapi/qapi-visit-migration.h"
#include "qobject/qnum.h"
#include "qobject/qstring.h"
#include "qemu/bswap.h"
#include "qemu/cutils.h"
#include "qemu/main-loop.h"
#include "qemu/timer.h"
#include "qemu/yank.h"
#include "channel.h"
#include "handshake-check.h"
#include "handshake-connect.h"
#include "handshake-destination.h"
#include "handshake-info.h"
#include "handshake-message.h"
#include "handshake-settings.h"
#include "handshake-source.h"
#include "handshake-tls.h"
#include "handshake-wire.h"
#include "migration.h"
#include "migration/handshake.h"
#include "multifd.h"
#include "postcopy-ram.h"
#include "qemu-file.h"
#include "trace.h"
#include "yank_functions.h"

/* In seconds; see MigrationHandshakeOptions */
#define TIMEOUT_MAX     3600

#define CANCELLED       "the migration was cancelled"

/* The outgoing migration */
static struct {
    bool wanted;                        /* and neither held nor reported yet */
    bool single;                        /* no further connection is possible */
    MigrationHandshakeOptions *options;
    unsigned attempt;                   /* to connect */
    bool connecting;
    unsigned watch;                     /* for yank before the conversation */
    bool watching;
    HandshakeTls *tls;                  /* while TLS negotiates */
    HandshakeSource *conversation;
    QIOChannel *ioc;                    /* of the conversation */
    const QIOChannel *over;             /* its handshake is over */
    bool in_session;                    /* further channels need a header */
    QemuUUID session;
    QIOChannel *legacy;                 /* main channel without handshake */
} source;

/* Whether incoming connections begin with a handshake */
static bool listening;

static void source_yank(void *opaque);

static bool check_transport(const MigrationAddress *addr, bool incoming,
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
migration_handshake_check_outgoing(const MigrationChannelList *channels,
                                   bool resume,
                                   const MigrationHandshakeOptions *options,
                                   Error **errp)
{
    const MigrationChannel *handshake = NULL;
    const MigrationChannelList *l;

    if (handshake_check_is_running()) {
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
    return check_transport(handshake->addr, false, errp) &&
           handshake_settings_check(errp);
}

bool migration_handshake_check_incoming(const MigrationChannel *channel,
                                        Error **errp)
{
    switch (channel->channel_type) {
    case MIGRATION_CHANNEL_TYPE_HANDSHAKE:
        return check_transport(channel->addr, true, errp) &&
               handshake_settings_check(errp);
    case MIGRATION_CHANNEL_TYPE_MAIN:
        return true;
    default:
        error_setg(errp, "Channel list must have only one entry, for type "
                   "'main' or 'handshake'");
        return false;
    }
}

void
migration_handshake_start_check(const MigrationChannel *channel,
                               const MigrationHandshakeOptions *options,
                               Error **errp)
{
    handshake_check_start(&channel->addr->u.socket, options, errp);
}

bool migration_handshake_cancel_check(void)
{
    return handshake_check_cancel();
}

void migration_handshake_arm(const MigrationChannel *channel,
                             const MigrationHandshakeOptions *options)
{
    qapi_free_MigrationHandshakeOptions(source.options);
    source.options = QAPI_CLONE(MigrationHandshakeOptions, options);
    source.wanted = channel;
    source.single = channel && channel->addr->u.socket.type ==
                               SOCKET_ADDRESS_TYPE_FD;
    source.in_session = false;
    if (channel) {
        handshake_info_connecting(HANDSHAKE_PURPOSE_MIGRATE);
    }
}

void migration_handshake_listen(const MigrationChannel *channel)
{
    listening = channel->channel_type == MIGRATION_CHANNEL_TYPE_HANDSHAKE;
}

bool migration_handshake_listening(void)
{
    return listening;
}

static void watch_end(void)
{
    if (source.watching) {
        source.watching = false;
        yank_unregister_function(MIGRATION_YANK_INSTANCE, source_yank,
                                 GUINT_TO_POINTER(source.watch));
    }
    source.watch++;
    source.connecting = false;
}

static void watch_begin(void)
{
    if (!source.watching) {
        source.watching = true;
        yank_register_function(MIGRATION_YANK_INSTANCE, source_yank,
                               GUINT_TO_POINTER(source.watch));
    }
}

/* Its end may be minutes away, and will only close its socket */
static void abandon_attempt(void)
{
    source.attempt++;
    watch_end();
}

static void source_yank_bh(void *opaque)
{
    if (GPOINTER_TO_UINT(opaque) != source.watch) {
        return;
    }
    if (source.tls) {
        handshake_tls_cancel(source.tls);
    } else if (source.connecting) {
        g_autoptr(Error) err = NULL;

        abandon_attempt();
        error_setg(&err, "the connection to the destination was yanked");
        migration_connect(migrate_get_current(), err);
    }
}

/* Called by yank, in any thread */
static void source_yank(void *opaque)
{
    aio_bh_schedule_oneshot(qemu_get_aio_context(), source_yank_bh, opaque);
}

unsigned migration_handshake_attempt(void)
{
    if (source.wanted) {
        trace_migration_handshake_source_connect(source.attempt);
        watch_begin();
        source.connecting = true;
    }
    return source.attempt;
}

bool migration_handshake_abandoned(unsigned attempt)
{
    return attempt != source.attempt;
}

static void tls_end(void)
{
    g_clear_pointer(&source.tls, handshake_tls_end);
}

void migration_handshake_before_tls(QIOChannel *ioc, bool incoming)
{
    if (incoming && listening) {
        qio_channel_set_blocking(ioc, false, NULL);
        handshake_destination_before_tls(ioc);
    } else if (!incoming && source.wanted) {
        tls_end();
        watch_begin();
        source.connecting = false;
        source.tls = handshake_tls_begin(
            ioc, handshake_source_timeout(source.options));
    }
}

bool migration_handshake_wanted(void)
{
    return source.wanted;
}

void migration_handshake_connect_failed(Error **errp)
{
    if (source.tls) {
        handshake_tls_explain(source.tls, errp);
    }
    tls_end();
    watch_end();
}

void migration_handshake_not_connected(const Error *err)
{
    MigrationState *s = migrate_get_current();
    bool cancelled = !err || s->state == MIGRATION_STATUS_CANCELLING;
    const char *why = cancelled ? CANCELLED : error_get_pretty(err);

    /* A conversation has told already */
    if (source.wanted) {
        source.wanted = false;
        trace_migration_handshake_source_not_connected(why);
        handshake_info_not_connected(HANDSHAKE_PURPOSE_MIGRATE, cancelled
                                     ? MIGRATION_HANDSHAKE_STATUS_CANCELLED
                                     : MIGRATION_HANDSHAKE_STATUS_FAILED,
                                     why);
    }
}

bool migration_handshake_tls_failed(QIOChannel *ioc)
{
    handshake_destination_tls_failed(ioc);
    return listening;
}

bool migration_handshake_is_over(const QIOChannel *ioc)
{
    return source.over == ioc;
}

static void source_done(Error *err, const QemuUUID *session, void *opaque)
{
    MigrationState *s = opaque;
    QIOChannel *ioc = source.ioc;
    g_autoptr(Error) local_err = err ? error_copy(err) : NULL;

    source.conversation = NULL;
    source.ioc = NULL;
    migration_ioc_unregister_yank(ioc);

    /* A cancellation may have come after the last word */
    if (!local_err && s->state != MIGRATION_STATUS_SETUP) {
        error_setg(&local_err, CANCELLED);
    }
    if (!local_err) {
        source.session = *session;
        source.in_session = true;
    }
    source.over = ioc;
    migration_channel_connect(s, ioc, NULL, g_steal_pointer(&local_err));
    source.over = NULL;
    object_unref(OBJECT(ioc));
}

bool migration_handshake_check_channel(QIOChannel *ioc, Error **errp)
{
    return !source.wanted || handshake_source_check_channel(ioc, errp);
}

bool migration_handshake_connected(QIOChannel *ioc)
{
    MigrationState *s = migrate_get_current();
    int64_t since_ms = source.tls ? handshake_tls_since(source.tls)
                                  : qemu_clock_get_ms(QEMU_CLOCK_REALTIME);

    if (!source.wanted) {
        object_unref(OBJECT(source.legacy));
        source.legacy = migration_handshake_is_over(ioc)
            ? NULL : QIO_CHANNEL(object_ref(OBJECT(ioc)));
        return false;
    }
    tls_end();
    watch_end();

    /* Cancelled at the last moment of TLS: what is left is to clean up */
    if (s->state != MIGRATION_STATUS_SETUP) {
        g_autoptr(Error) err = NULL;

        error_setg(&err, CANCELLED);
        migration_connect(s, err);
        return true;
    }

    source.wanted = false;
    source.ioc = QIO_CHANNEL(object_ref(OBJECT(ioc)));
    migration_ioc_register_yank(ioc);
    source.conversation = handshake_source_start(ioc, source.single, since_ms,
                                                 source.options, source_done,
                                                 s);
    return true;
}

bool migration_handshake_cancel(void)
{
    if (source.conversation) {
        handshake_source_cancel(source.conversation);
        return true;
    }
    if (source.tls) {
        handshake_tls_cancel(source.tls);
        return true;
    }
    if (source.wanted) {
        abandon_attempt();
        migration_handshake_not_connected(NULL);
        yank_unregister_instance(MIGRATION_YANK_INSTANCE);
    }
    return false;
}

bool migration_handshake_in_session(void)
{
    return source.in_session;
}

int coroutine_mixed_fn
migration_handshake_send_header(QIOChannel *ioc, const char *name,
                                uint32_t index, Error **errp)
{
    g_autoptr(GByteArray) buf = g_byte_array_new();
    HandshakeHeader header = { .session = source.session, .index = index };

    pstrcpy(header.name, sizeof(header.name), name);
    handshake_header_put(buf, &header);
    trace_migration_handshake_source_channel(ioc, name, index);
    return qio_channel_write_all(ioc, (char *)buf->data, buf->len, errp);
}

void migration_handshake_connect_channel(QIOChannelSocket *ioc,
                                         SocketAddress *addr,
                                         QIOTaskFunc func, void *opaque)
{
    if (source.in_session) {
        handshake_connect(ioc, addr, func, opaque);
    } else {
        qio_channel_socket_connect_async(ioc, addr, func, opaque, NULL, NULL);
    }
}

void migration_handshake_begin_tls(QIOChannel *ioc)
{
    if (source.in_session) {
        qio_channel_set_blocking(ioc, false, NULL);
        handshake_connect_tls_begin(ioc);
    }
}

bool migration_handshake_end_tls(QIOChannel *ioc)
{
    return handshake_connect_tls_end(ioc);
}

void migration_handshake_explain_magic(uint32_t magic, Error **errp)
{
    if (magic == HANDSHAKE_MAGIC) {
        error_prepend(errp, "the destination wants a migration handshake; use "
                      "channel type 'handshake': ");
    }
}

/* What has come on a channel that begins without handshake, if anything has */
static uint32_t peek_answer(QIOChannel *ioc)
{
    uint8_t magic[4] = { 0 };
#ifdef MSG_DONTWAIT
    Object *socket = ioc ? object_dynamic_cast(OBJECT(ioc),
                                               TYPE_QIO_CHANNEL_SOCKET)
                         : NULL;

    if (socket && recv(QIO_CHANNEL_SOCKET(socket)->fd, magic, sizeof(magic),
                       MSG_PEEK | MSG_DONTWAIT) != sizeof(magic)) {
        return 0;
    }
#endif
    return ldl_be_p(magic);
}

void migration_handshake_explain_channel(QIOChannel *ioc, Error **errp)
{
    if (!source.in_session) {
        migration_handshake_explain_magic(peek_answer(ioc), errp);
    }
}

void migration_handshake_check_stream(QEMUFile *f)
{
    Error *err = NULL;

    if (peek_answer(source.legacy) == HANDSHAKE_MAGIC) {
        error_setg(&err, "nobody loads the migration stream");
        qemu_file_set_error_obj(f, -EPROTO, err);
    }
}

/*
 * Multifd's TLS, which is in threads of its own, would never see the end; nor
 * would a source that waits for a word from a destination which cannot speak
 * any more.  Postcopy goes on with an error, or waits for somebody to recover.
 */
static void end_bh(void *opaque)
{
    YankInstanceList migration = { .value = MIGRATION_YANK_INSTANCE };
    int state;

    /* After the migration there may be no state any more: QEMU may quit */
    if (!source.in_session) {
        return;
    }
    state = migrate_get_current()->state;
    if (state == MIGRATION_STATUS_SETUP || state == MIGRATION_STATUS_ACTIVE) {
        qmp_yank(&migration, NULL);
    }
}

void migration_handshake_note_error(Error **errp)
{
    if (source.in_session) {
        if (migrate_get_current()->state == MIGRATION_STATUS_SETUP) {
            error_prepend(errp, "before the stream began: ");
        }
        handshake_connect_abandon();
        aio_bh_schedule_oneshot(qemu_get_aio_context(), end_bh, NULL);
    } else {
        migration_handshake_explain_channel(source.legacy, errp);
    }
}

void migration_handshake_channel_failed(Error **errp)
{
    if (source.in_session) {
        error_prepend(errp, "multifd cannot open a further connection to the "
                      "destination (if there is no way for one, migrate with "
                      "'optional-capabilities': []): ");
    }
}

static bool sink_prepare(Error **errp)
{
    return multifd_recv_setup(errp) == 0;
}

/* Its thread reads it, and waits as long as it takes */
static void sink_multifd(QIOChannel *ioc, unsigned index)
{
    qio_channel_set_blocking(ioc, true, NULL);
    migration_ioc_register_yank(ioc);
    multifd_recv_attach(ioc, index);
}

static void sink_preempt(QIOChannel *ioc)
{
    migration_ioc_register_yank(ioc);
    postcopy_preempt_new_channel(migration_incoming_get_current(),
                                 qemu_file_new_input(ioc));
}

static void sink_start(QIOChannel *ioc)
{
    migration_ioc_register_yank(ioc);
    migration_fd_process_incoming(qemu_file_new_input(ioc));
}

static const HandshakeSink sink = {
    .prepare = sink_prepare,
    .multifd = sink_multifd,
    .preempt = sink_preempt,
    .start = sink_start,
};

bool migration_handshake_accept(QIOChannel *ioc)
{
    MigrationIncomingState *mis = migration_incoming_get_current();

    /* A paused postcopy migration is recovered in the legacy way */
    if (mis->state == MIGRATION_STATUS_POSTCOPY_PAUSED) {
        listening = false;
    }
    /* Somebody whose TLS took longer than the migration comes too late */
    if (listening && mis->state != MIGRATION_STATUS_COMPLETED &&
        mis->state != MIGRATION_STATUS_FAILED) {
        handshake_destination_accept(ioc, &sink);
    } else {
        handshake_destination_too_late(ioc);
    }
    return listening;
}

void migration_handshake_source_cleanup(void)
{
    source.wanted = false;
    source.in_session = false;
    tls_end();
    watch_end();
    handshake_connect_forget();
    object_unref(OBJECT(source.legacy));
    source.legacy = NULL;
    handshake_settings_give_back();
}

void migration_handshake_incoming_cleanup(void)
{
    handshake_destination_end();
    handshake_settings_give_back();
}

/* Whether only cleaning up is left of a migration, in or out */
static bool is_over(void)
{
    MigrationStatus incoming = migration_incoming_get_current()->state;

    if (migrate_get_current()->state != MIGRATION_STATUS_NONE) {
        return !migration_is_running();
    }
    return incoming == MIGRATION_STATUS_COMPLETED ||
           incoming == MIGRATION_STATUS_FAILED;
}

bool migration_handshake_may_set(const char *name, Error **errp)
{
    if (handshake_settings_taken(name) && !is_over()) {
        error_setg(errp, "'%s' was negotiated for the migration in progress",
                   name);
        return false;
    }
    return true;
}

bool migration_handshake_set_capability_later(MigrationCapability capability,
                                              bool state)
{
    return handshake_settings_give_back_capability(capability, state);
}

void migration_handshake_set_multifd_later(bool *has_channels,
                                           uint8_t channels,
                                           bool *has_compression,
                                           MultiFDCompression compression)
{
    if (*has_channels) {
        *has_channels = !handshake_settings_give_back_parameter(
            "multifd-channels", QOBJECT(qnum_from_uint(channels)));
    }
    if (*has_compression) {
        *has_compression = !handshake_settings_give_back_parameter(
            "multifd-compression",
            QOBJECT(qstring_from_str(MultiFDCompression_str(compression))));
    }
}

MigrationHandshakeInfo *migration_handshake_info(void)
{
    return handshake_info_query();
}
