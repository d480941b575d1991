/*
 * Migration handshake: channels that are opened, and their places in a session
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "io/channel-tls.h"
#include "io/task.h"
#include "qapi/error.h"
#include "qapi/qapi-types-migration.h"
#include "qemu/atomic.h"
#include "qemu/coroutine.h"
#include "qemu/cutils.h"
#include "qemu/main-loop.h"
#include "qemu/sockets.h"
#include "qemu/timer.h"
#include "migration/options.h"
#include "migration/tls.h"
#include "trace.h"
#include "channel.h"

/* A connect() on its way, which nothing can end */
typedef struct HandshakeConnect {
    HandshakeChannel *channel;      /* NULL once it was given up */
} HandshakeConnect;

struct HandshakeChannel {
    const char *name;
    uint32_t index;
    HandshakeChannelProgress *progress;
    void *opaque;
    int64_t since_ms;
    bool interrupted;
    HandshakeConnect *connect;      /* the one that the coroutine waits for */
    Coroutine *co;                  /* which waits for it */
    Error *err;                     /* what came of it */
    QIOChannel *raw;                /* below TLS; NULL until connected */
    QIOChannel *ioc;                /* what migration uses */
};

HandshakeChannel *handshake_channel_new(const char *name, uint32_t index,
                                        HandshakeChannelProgress *progress,
                                        void *opaque)
{
    HandshakeChannel *channel = g_new0(HandshakeChannel, 1);

    channel->name = name;
    channel->index = index;
    channel->progress = progress;
    channel->opaque = opaque;
    return channel;
}

void handshake_channel_free(HandshakeChannel *channel)
{
    if (!channel) {
        return;
    }
    assert(!channel->connect);
    object_unref(OBJECT(channel->ioc));
    object_unref(OBJECT(channel->raw));
    g_free(channel);
}

/* Advice about the use of TLS fits the first channel alone */
static bool channel_is_main(const HandshakeChannel *channel)
{
    return !strcmp(channel->name, HANDSHAKE_CHANNEL_MAIN);
}

QIOChannel *handshake_channel_ioc(HandshakeChannel *channel)
{
    return channel->ioc;
}

static void channel_wake_writer_bh(void *opaque)
{
    g_autoptr(QIOChannel) ioc = opaque;
    Coroutine *co = qatomic_xchg(&ioc->write_coroutine, NULL);

    if (co) {
        aio_co_wake(co);
    }
}

void handshake_ioc_interrupt(QIOChannel *ioc)
{
    qio_channel_shutdown(ioc, QIO_CHANNEL_SHUTDOWN_BOTH, NULL);
    /* A UNIX socket that is full does not become writable by that */
    aio_bh_schedule_oneshot(iohandler_get_aio_context(),
                            channel_wake_writer_bh, object_ref(OBJECT(ioc)));
}

static bool socket_is_tcp(const QIOChannelSocket *socket)
{
    return socket->localAddr.ss_family == AF_INET ||
           socket->localAddr.ss_family == AF_INET6;
}

void handshake_ioc_keep_alive(QIOChannel *ioc, const SocketAddress *addr)
{
    static const int on = 1, idle_s = 30, interval_s = 10, count = 6;
    Object *object = object_dynamic_cast(OBJECT(ioc), TYPE_QIO_CHANNEL_SOCKET);
    int fd, set = 0;
    socklen_t size = sizeof(set);

    if (!object || !socket_is_tcp(QIO_CHANNEL_SOCKET(object)) ||
        (addr && addr->type == SOCKET_ADDRESS_TYPE_INET &&
         addr->u.inet.has_keep_alive && !addr->u.inet.keep_alive)) {
        return;
    }
    fd = QIO_CHANNEL_SOCKET(object)->fd;
    if (getsockopt(fd, SOL_SOCKET, SO_KEEPALIVE, &set, &size) < 0 || set) {
        return;
    }
#ifdef TCP_KEEPIDLE
    setsockopt(fd, IPPROTO_TCP, TCP_KEEPIDLE, &idle_s, sizeof(idle_s));
#endif
#ifdef TCP_KEEPINTVL
    setsockopt(fd, IPPROTO_TCP, TCP_KEEPINTVL, &interval_s, sizeof(interval_s));
#endif
#ifdef TCP_KEEPCNT
    setsockopt(fd, IPPROTO_TCP, TCP_KEEPCNT, &count, sizeof(count));
#endif
    setsockopt(fd, SOL_SOCKET, SO_KEEPALIVE, &on, sizeof(on));
}

/*
 * Not aio_co_wake() at once: the caller may be in another coroutine or thread,
 * and must not find the channel freed when this returns.
 */
static void channel_wake_bh(void *opaque)
{
    aio_co_wake(opaque);
}

void handshake_channel_interrupt(HandshakeChannel *channel)
{
    trace_migration_handshake_channel_interrupt(channel);
    channel->interrupted = true;
    if (channel->connect) {
        channel->connect->channel = NULL;
        channel->connect = NULL;
        aio_bh_schedule_oneshot(iohandler_get_aio_context(), channel_wake_bh,
                                channel->co);
    } else if (channel->raw) {
        handshake_ioc_interrupt(channel->ioc ?: channel->raw);
    }
}

/*
 * A step has ended, well or with @errp set.  If the channel was interrupted, it
 * did not end well, and what counts is what the channel was waiting for.
 */
static bool channel_step_done(HandshakeChannel *channel, bool ok,
                              const char *missing, Error **errp)
{
    ERRP_GUARD();

    if (ok && !channel->interrupted) {
        channel->progress(channel->opaque);
    }
    if (channel->interrupted) {
        error_free(*errp);
        *errp = NULL;
        error_setg(errp, "%s", missing);
        return false;
    }
    return ok;
}

static void channel_connected(QIOTask *task, void *opaque)
{
    HandshakeConnect *connect = opaque;
    HandshakeChannel *channel = connect->channel;

    /* If it was given up, the socket goes with its task */
    if (channel) {
        channel->connect = NULL;
        if (!qio_task_propagate_error(task, &channel->err)) {
            channel->raw = QIO_CHANNEL(object_ref(qio_task_get_source(task)));
        }
        aio_co_wake(channel->co);
    }
}

static bool coroutine_fn channel_connect_socket(HandshakeChannel *channel,
                                                SocketAddress *addr,
                                                Error **errp)
{
    QIOChannelSocket *ioc = qio_channel_socket_new();

    qio_channel_set_name(QIO_CHANNEL(ioc), "migration-socket-outgoing");
    channel->connect = g_new0(HandshakeConnect, 1);
    channel->connect->channel = channel;
    channel->co = qemu_coroutine_self();
    qio_channel_socket_connect_async(ioc, addr, channel_connected,
                                     channel->connect, g_free, NULL);
    object_unref(OBJECT(ioc));
    qemu_coroutine_yield();

    if (!channel->raw) {
        error_propagate(errp, g_steal_pointer(&channel->err));
        return false;
    }
    if (migrate_zero_copy_send() &&
        !qio_channel_has_feature(channel->raw,
                                 QIO_CHANNEL_FEATURE_WRITE_ZERO_COPY)) {
        error_setg(errp, "Zero copy send feature not detected in host kernel");
        return false;
    }
    return true;
}

typedef struct HandshakeTLS {
    Coroutine *co;                  /* NULL unless it waits */
    bool done;
    Error *err;
} HandshakeTLS;

static void channel_tls_done(QIOTask *task, void *opaque)
{
    HandshakeTLS *tls = opaque;

    qio_task_propagate_error(task, &tls->err);
    tls->done = true;
    if (tls->co) {
        aio_co_wake(tls->co);
    }
}

bool coroutine_fn handshake_tls_negotiate(QIOChannelTLS *ioc, Error **errp)
{
    HandshakeTLS tls = { 0 };

    qio_channel_tls_handshake(ioc, channel_tls_done, &tls, NULL, NULL);
    if (!tls.done) {
        tls.co = qemu_coroutine_self();
        qemu_coroutine_yield();
        assert(tls.done);
    }
    if (tls.err) {
        error_propagate(errp, tls.err);
        return false;
    }
    return true;
}

static bool coroutine_fn channel_negotiate_tls(HandshakeChannel *channel,
                                               const char *hostname,
                                               Error **errp)
{
    ERRP_GUARD();
    QIOChannelTLS *tls = migration_tls_client_create_for(channel->raw,
                                                         hostname, errp);

    if (!tls) {
        return false;
    }
    trace_migration_handshake_channel_tls(channel);
    qio_channel_set_name(QIO_CHANNEL(tls), "migration-tls-outgoing");
#if QEMU_VERSION_MAJOR > 10 || QEMU_VERSION_MINOR >= 1
    /* A session may have a return path, whatever is set now */
    qio_channel_set_feature(QIO_CHANNEL(tls),
                            QIO_CHANNEL_FEATURE_CONCURRENT_IO);
#endif
    if (!handshake_tls_negotiate(tls, errp)) {
        if (!strstart(error_get_pretty(*errp), "TLS handshake failed", NULL)) {
            /* Both speak TLS */
            error_prepend(errp, "the destination's TLS credentials are not "
                          "accepted here: ");
        } else if (channel_is_main(channel)) {
            error_prepend(errp, "TLS with the destination failed (set "
                          "'tls-creds' on both sides or on none): ");
        } else {
            error_prepend(errp, "TLS failed: ");
        }
        object_unref(OBJECT(tls));
        return false;
    }
    channel->ioc = QIO_CHANNEL(tls);
    return true;
}

bool coroutine_fn handshake_channel_connect(HandshakeChannel *channel,
                                            SocketAddress *addr,
                                            QIOChannel *ioc, Error **errp)
{
    const char *hostname = NULL;
    bool ok = true;

    trace_migration_handshake_channel_connect(channel, channel->name,
                                              channel->index);
    channel->since_ms = qemu_clock_get_ms(QEMU_CLOCK_REALTIME);
    if (ioc) {
        channel->raw = QIO_CHANNEL(object_ref(OBJECT(ioc)));
    } else if (!channel->interrupted) {
        ok = channel_connect_socket(channel, addr, errp);
        if (addr->type == SOCKET_ADDRESS_TYPE_INET) {
            hostname = addr->u.inet.host;
        }
    }
    if (!channel_step_done(channel, ok, "the destination has not taken the "
                           "connection", errp)) {
        return false;
    }

    /* It must not wait for the peer in the main loop */
    qio_channel_set_blocking(channel->raw, false, NULL);
    qio_channel_set_delay(channel->raw, false);
    handshake_ioc_keep_alive(channel->raw, ioc ? NULL : addr);
    if (!migrate_tls()) {
        channel->ioc = QIO_CHANNEL(object_ref(OBJECT(channel->raw)));
        return true;
    }
    ok = channel_negotiate_tls(channel, hostname, errp);
    return channel_step_done(channel, ok, channel_is_main(channel)
                             ? "no answer to TLS; does the destination have "
                               "'tls-creds' set?" : "no answer to TLS", errp);
}

/* It shows that the destination has a place for this very channel */
static bool coroutine_fn channel_read_answer(HandshakeWire *wire,
                                             const HandshakeHeader *sent,
                                             Error **errp)
{
    HandshakeHeader header;
    int ret = handshake_wire_read_header(wire, &header, errp);

    if (ret == 0) {
        error_setg(errp, "the destination closed it without an answer");
    }
    if (ret <= 0) {
        return false;
    }
    if (strcmp(header.name, sent->name) || header.index != sent->index) {
        error_setg(errp, "the destination took it for channel '%s' %" PRIu32,
                   header.name, header.index);
        return false;
    }
    if (!qemu_uuid_is_equal(&header.session, &sent->session)) {
        g_autofree char *session = qemu_uuid_unparse_strdup(&header.session);

        error_setg(errp, "the destination took it for one of session %s",
                   session);
        return false;
    }
    return true;
}

bool coroutine_fn handshake_channel_greet(HandshakeChannel *channel,
                                          const QemuUUID *session,
                                          Error **errp)
{
    HandshakeHeader header = { .session = *session, .index = channel->index };
    g_autoptr(GByteArray) buf = g_byte_array_new();
    HandshakeWire wire;
    bool ok;

    trace_migration_handshake_channel_greet(channel);
    pstrcpy(header.name, sizeof(header.name), channel->name);
    handshake_header_put(buf, &header);
    handshake_wire_init(&wire, channel->ioc);
    ok = handshake_wire_send(&wire, buf, errp) &&
         channel_read_answer(&wire, &header, errp);
    handshake_wire_destroy(&wire);

    if (!channel_step_done(channel, ok, "no answer to its header", errp)) {
        return false;
    }
    trace_migration_handshake_channel_open(
        channel, qemu_clock_get_ms(QEMU_CLOCK_REALTIME) - channel->since_ms);
    return true;
}

typedef struct HandshakePlace {
    bool has_come;
    QIOChannel *ioc;        /* NULL before it has come, and once it was taken */
} HandshakePlace;

/* The channels of one name */
typedef struct HandshakePlaceGroup {
    const char *name;
    unsigned count;
    HandshakePlace *places;
} HandshakePlaceGroup;

struct HandshakePlaces {
    QemuUUID session;
    HandshakePlaceGroup groups[2];
};

HandshakePlaces *handshake_places_new(const QemuUUID *session,
                                      unsigned multifd, bool preempt)
{
    HandshakePlaces *places = g_new0(HandshakePlaces, 1);

    places->session = *session;
    places->groups[0].name = HANDSHAKE_CHANNEL_MULTIFD;
    places->groups[0].count = multifd;
    places->groups[1].name = HANDSHAKE_CHANNEL_PREEMPT;
    places->groups[1].count = preempt ? 1 : 0;
    for (int i = 0; i < ARRAY_SIZE(places->groups); i++) {
        HandshakePlaceGroup *group = &places->groups[i];

        group->places = g_new0(HandshakePlace, group->count);
    }
    return places;
}

void handshake_places_drop(HandshakePlaces *places, const char *name)
{
    for (int i = 0; i < ARRAY_SIZE(places->groups); i++) {
        HandshakePlaceGroup *group = &places->groups[i];

        if (!strcmp(group->name, name)) {
            while (group->count) {
                object_unref(OBJECT(group->places[--group->count].ioc));
            }
            g_clear_pointer(&group->places, g_free);
        }
    }
}

void handshake_places_free(HandshakePlaces *places)
{
    if (places) {
        handshake_places_drop(places, HANDSHAKE_CHANNEL_MULTIFD);
        handshake_places_drop(places, HANDSHAKE_CHANNEL_PREEMPT);
        g_free(places);
    }
}

/* NULL if this session has no such channel */
static HandshakePlace *places_find(HandshakePlaces *places, const char *name,
                                   uint32_t index)
{
    for (int i = 0; i < ARRAY_SIZE(places->groups); i++) {
        HandshakePlaceGroup *group = &places->groups[i];

        if (!strcmp(group->name, name)) {
            return index < group->count ? &group->places[index] : NULL;
        }
    }
    return NULL;
}

bool handshake_places_add(HandshakePlaces *places,
                          const HandshakeHeader *header, QIOChannel *ioc,
                          Error **errp)
{
    HandshakePlace *place = places_find(places, header->name, header->index);

    if (!qemu_uuid_is_equal(&header->session, &places->session)) {
        error_setg(errp, "channel '%s' %" PRIu32 " is of another session",
                   header->name, header->index);
        return false;
    }
    if (!place) {
        error_setg(errp, "this session has no channel '%s' %" PRIu32,
                   header->name, header->index);
        return false;
    }
    if (place->has_come) {
        error_setg(errp, "channel '%s' %" PRIu32 " comes a second time",
                   header->name, header->index);
        return false;
    }
    place->has_come = true;
    place->ioc = QIO_CHANNEL(object_ref(OBJECT(ioc)));
    return true;
}

unsigned handshake_places_missing(const HandshakePlaces *places)
{
    unsigned missing = 0;

    for (int i = 0; i < ARRAY_SIZE(places->groups); i++) {
        const HandshakePlaceGroup *group = &places->groups[i];

        for (unsigned j = 0; j < group->count; j++) {
            missing += !group->places[j].has_come;
        }
    }
    return missing;
}

QIOChannel *handshake_places_take(HandshakePlaces *places, const char *name,
                                  uint32_t index)
{
    HandshakePlace *place = places ? places_find(places, name, index) : NULL;

    return place ? g_steal_pointer(&place->ioc) : NULL;
}
