/*
 * Migration handshake: the front door
 *
 * What the migration core calls, and the life of a session around the
 * conversation.  See docs/devel/migration/handshake.rst.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "qapi/clone-visitor.h"
#include "qapi/error.h"
#include "qapi/qapi-visit-migration.h"
#include "qemu/cutils.h"
#include "qemu/timer.h"
#include "qemu/yank.h"
#include "channel.h"
#include "handshake-destination.h"
#include "handshake-info.h"
#include "handshake-settings.h"
#include "handshake-source.h"
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

/* The outgoing migration */
static struct {
    bool wanted;                        /* and not yet held */
    bool single;                        /* no further connection is possible */
    MigrationHandshakeOptions *options;
    unsigned attempt;                   /* to connect */
    QIOChannel *tls;                    /* raw channel while TLS negotiates */
    QEMUTimer *tls_timer;
    HandshakeSource *conversation;
    QIOChannel *ioc;                    /* of the conversation */
    const QIOChannel *over;             /* its handshake is over */
    bool in_session;                    /* further channels need a header */
    QemuUUID session;
} source;

/* Whether incoming connections begin with a handshake */
static bool listening;

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

void migration_handshake_arm(const MigrationChannel *channel,
                             const MigrationHandshakeOptions *options)
{
    qapi_free_MigrationHandshakeOptions(source.options);
    source.options = QAPI_CLONE(MigrationHandshakeOptions, options);
    source.wanted = channel;
    source.single = channel && channel->addr->u.socket.type ==
                               SOCKET_ADDRESS_TYPE_FD;
    source.in_session = false;
}

void migration_handshake_listen(const MigrationChannel *channel)
{
    listening = channel->channel_type == MIGRATION_CHANNEL_TYPE_HANDSHAKE;
}

bool migration_handshake_listening(void)
{
    return listening;
}

unsigned migration_handshake_attempt(void)
{
    return source.attempt;
}

bool migration_handshake_abandoned(unsigned attempt)
{
    return attempt != source.attempt;
}

static void tls_timer_cb(void *opaque)
{
    qio_channel_shutdown(source.tls, QIO_CHANNEL_SHUTDOWN_BOTH, NULL);
}

static void tls_end(void)
{
    if (source.tls) {
        g_clear_pointer(&source.tls_timer, timer_free);
        object_unref(OBJECT(source.tls));
        source.tls = NULL;
    }
}

void migration_handshake_before_tls(QIOChannel *ioc, bool incoming)
{
    uint32_t timeout;

    if (incoming ? !listening : !source.wanted) {
        return;
    }
    qio_channel_set_blocking(ioc, false, NULL);
    if (incoming) {
        return;
    }

    tls_end();
    source.tls = QIO_CHANNEL(object_ref(OBJECT(ioc)));
    timeout = handshake_source_timeout(source.options);
    source.tls_timer = timer_new_ms(QEMU_CLOCK_REALTIME, tls_timer_cb, NULL);
    if (timeout) {
        timer_mod(source.tls_timer, qemu_clock_get_ms(QEMU_CLOCK_REALTIME) +
                                    timeout * 1000);
    }
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
        error_setg(&local_err, "the migration was cancelled");
    }
    if (!local_err) {
        source.session = *session;
        source.in_session = true;
    }
    source.over = ioc;
    migration_channel_connect(s, ioc, NULL, g_steal_pointer(&local_err));
    source.over = NULL;
    object_unref(OBJECT(ioc));
    object_unref(OBJECT(s));
}

bool migration_handshake_check_channel(QIOChannel *ioc, Error **errp)
{
    if (source.wanted &&
        !qio_channel_has_feature(ioc, QIO_CHANNEL_FEATURE_SHUTDOWN)) {
        error_setg(errp, "Channel type 'handshake' needs a bidirectional "
                   "socket, which this file descriptor is not");
        return false;
    }
    return true;
}

bool migration_handshake_connected(QIOChannel *ioc)
{
    MigrationState *s = migrate_get_current();

    if (!source.wanted) {
        return false;
    }
    source.wanted = false;
    tls_end();

    /* Cancelled at the last moment of TLS: what is left is to clean up */
    if (s->state != MIGRATION_STATUS_SETUP) {
        g_autoptr(Error) err = NULL;

        error_setg(&err, "the migration was cancelled");
        migration_connect(s, err);
        return true;
    }

    object_ref(OBJECT(s));
    source.ioc = QIO_CHANNEL(object_ref(OBJECT(ioc)));
    migration_ioc_register_yank(ioc);
    source.conversation = handshake_source_start(ioc, source.single,
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
        qio_channel_shutdown(source.tls, QIO_CHANNEL_SHUTDOWN_BOTH, NULL);
        return true;
    }
    if (source.wanted) {
        source.wanted = false;
        source.attempt++;
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
    }
    return listening;
}

void migration_handshake_source_cleanup(void)
{
    source.wanted = false;
    source.in_session = false;
    tls_end();
    handshake_settings_give_back();
}

void migration_handshake_incoming_cleanup(void)
{
    handshake_destination_end();
    handshake_settings_give_back();
}

bool migration_handshake_may_set(const char *name, Error **errp)
{
    if (handshake_settings_taken(name)) {
        error_setg(errp, "'%s' was negotiated for the migration in progress",
                   name);
        return false;
    }
    return true;
}

MigrationHandshakeInfo *migration_handshake_info(void)
{
    return handshake_info_query();
}
