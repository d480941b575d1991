/*
 * Migration handshake: the destination's side of the conversation
 *
 * Every connection is a coroutine in the main loop:
 *
 *   channel header, HELLO  ->  verdict  ->  wait for COMMIT
 *                          ->  wait for the other channels  ->  deliver
 *
 * Nothing in this QEMU changes before they have all come.  One connection at a
 * time can have got ACCEPT: it holds the session.  A channel that belongs to
 * the session has nothing but a header.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#ifndef _WIN32
#include <poll.h>
#endif
#include "block/aio.h"
#include "io/channel-tls.h"
#include "qapi/error.h"
#include "qapi/util.h"
#include "qemu/coroutine.h"
#include "qemu/lockable.h"
#include "qemu/main-loop.h"
#include "qemu/timer.h"
#include "handshake-channels.h"
#include "handshake-destination.h"
#include "handshake-info.h"
#include "handshake-json.h"
#include "handshake-judge.h"
#include "handshake-message.h"
#include "handshake-policy.h"
#include "handshake-settings.h"
#include "handshake-wire.h"
#include "trace.h"

/*
 * Connections at a time, the one that holds the session included; besides
 * those that the session waits for
 */
#define CONNECTIONS_MAX         64

/* Seconds */
#define HELLO_TIMEOUT           30
#define COMMIT_TIMEOUT          30
#define CHANNELS_TIMEOUT        30
#define DRAIN_TIMEOUT           5

typedef struct HandshakeConn {
    HandshakeWire wire;
    const HandshakeSink *sink;
    Coroutine *co;                  /* NULL while TLS negotiates on the wire */
    QEMUTimer *timer;
    bool timed_out;
    bool collecting;                /* waits for the session's channels */
    bool answered;                  /* the last word has been sent */
    bool violated;                  /* after ACCEPT: no honest source */
    int64_t start_ns;               /* 0 before the header */
    QemuUUID id;                    /* drawn with the verdict */
    GString *hello;                 /* complete, and not looked at yet */
    Error *malformed;               /* what is wrong with it as a message */
    HandshakeVerdict *verdict;      /* NULL before HELLO has been judged */
    MigrationHandshakeInfo *info;   /* NULL if it is not to be shown */
    QTAILQ_ENTRY(HandshakeConn) next;
} HandshakeConn;

static QTAILQ_HEAD(, HandshakeConn) conns =
    QTAILQ_HEAD_INITIALIZER(conns);
static unsigned conn_count;

/*
 * Only one HELLO is looked at at a time, and in each turn of the main loop: it
 * costs time and memory, and a stranger may ask for it.
 */
static CoMutex judging;

static struct {
    QemuUUID id;
    HandshakeConn *conn;            /* NULL once it has been delivered */
    HandshakeChannels *channels;    /* NULL if there is no session */
} session;

static void session_begin(HandshakeConn *conn, unsigned multifd, bool preempt)
{
    session.id = conn->id;
    session.conn = conn;
    session.channels = handshake_channels_new(&session.id, multifd, preempt);
}

static void session_end(void)
{
    session.conn = NULL;
    g_clear_pointer(&session.channels, handshake_channels_free);
}

/* Nothing is read while channels are collected, so it has to be woken */
static void conn_wake(HandshakeConn *conn)
{
    if (conn->collecting) {
        conn->collecting = false;
        aio_co_wake(conn->co);
    }
}

static void conn_free(HandshakeConn *conn)
{
    QTAILQ_REMOVE(&conns, conn, next);
    conn_count--;
    timer_free(conn->timer);
    handshake_wire_destroy(&conn->wire);
    if (conn->hello) {
        g_string_free(conn->hello, true);
    }
    error_free(conn->malformed);
    handshake_verdict_free(conn->verdict);
    qapi_free_MigrationHandshakeInfo(conn->info);
    g_free(conn);
    handshake_settings_release();
}

static void conn_timer_cb(void *opaque)
{
    HandshakeConn *conn = opaque;

    conn->timed_out = true;
    qio_channel_shutdown(conn->wire.ioc, QIO_CHANNEL_SHUTDOWN_BOTH, NULL);
    if (!conn->co) {
        /* TLS will see the end by itself */
        trace_migration_handshake_destination_end(conn->wire.ioc, "timed out");
        conn_free(conn);
        return;
    }
    conn_wake(conn);
}

static void conn_set_timer(HandshakeConn *conn, int seconds)
{
    timer_mod(conn->timer, qemu_clock_get_ms(QEMU_CLOCK_REALTIME) +
                           seconds * 1000);
}

static bool is_tls(QIOChannel *ioc)
{
    return object_dynamic_cast(OBJECT(ioc), TYPE_QIO_CHANNEL_TLS);
}

/* @status is known, and @message says why if it is bad */
static void publish(HandshakeConn *conn, MigrationHandshakeStatus status,
                    const char *message)
{
    bool trusted;

    /* Nor is a stranger shown that reads slowly while another one migrates */
    if (!conn->info || (session.channels && session.conn != conn)) {
        return;
    }
    conn->info->status = status;
    g_free(conn->info->message);
    conn->info->message = g_strdup(message);
    handshake_info_set_wire(conn->info, &conn->wire);
    if (status == MIGRATION_HANDSHAKE_STATUS_FAILED ||
        status == MIGRATION_HANDSHAKE_STATUS_CANCELLED) {
        handshake_verdict_forget_agreement(conn->verdict);
        handshake_info_set_verdict(conn->info, conn->verdict);
    }
    if (status == MIGRATION_HANDSHAKE_STATUS_IN_PROGRESS) {
        handshake_info_publish(conn->info);
        return;
    }
    trusted = (status == MIGRATION_HANDSHAKE_STATUS_ACCEPTED &&
               !conn->info->check_only) ||
              (is_tls(conn->wire.ioc) &&
               handshake_settings_tls_authenticates());
    handshake_info_end(conn->info, &conn->verdict->issues, trusted);
}

/* How many there will be; the parameter has been judged */
static unsigned multifd_channels(const HandshakeVerdict *verdict)
{
    g_autoptr(QDict) values = handshake_policy_values(verdict->capabilities,
                                                      verdict->parameters);

    return qdict_get_try_int(values, "multifd-channels", 0);
}

static void look_at_hello(HandshakeConn *conn)
{
    g_autoptr(HandshakeHello) hello = NULL;
    g_autoptr(strList) not_understood = NULL;
    HandshakeVerdict *verdict;

    hello = handshake_hello_from_json(conn->hello->str, conn->hello->len,
                                      &not_understood, &conn->malformed);
    if (!hello) {
        return;
    }
    verdict = handshake_judge(hello);
    verdict->not_understood = g_steal_pointer(&not_understood);
    conn->verdict = verdict;
    qemu_uuid_generate(&conn->id);
    conn->info = handshake_info_new(MIGRATION_HANDSHAKE_ROLE_DESTINATION,
                                    hello->purpose);
    conn->info->peer = handshake_profile_peer(hello->profile);

    if (verdict->accept && !conn->info->check_only) {
        session_begin(conn, multifd_channels(verdict),
                      handshake_strlist_contains(verdict->capabilities,
                                                 "postcopy-preempt"));
    }
}

/* In the main loop: judging probes the host, which must not yield */
static void judge_bh(void *opaque)
{
    HandshakeConn *conn = opaque;

    if (conn->timed_out) {
        error_setg(&conn->malformed, "it came too late");
    } else if (handshake_destination_is_busy()) {
        conn->verdict = handshake_judge_busy();
        qemu_uuid_generate(&conn->id);
    } else {
        look_at_hello(conn);
    }
    /* It may be large, and whoever was refused has time to read why */
    g_string_free(g_steal_pointer(&conn->hello), true);
    aio_co_wake(conn->co);
}

/* Header, a frame that nobody knows, and the verdict, in one piece */
static bool coroutine_fn send_verdict(HandshakeConn *conn,
                                      const HandshakeVerdict *verdict,
                                      Error **errp)
{
    g_autoptr(GByteArray) buf = g_byte_array_new();
    g_autofree char *json = handshake_verdict_to_json(verdict);
    HandshakeFrameType type = verdict->accept ? HANDSHAKE_FRAME_ACCEPT
                                              : HANDSHAKE_FRAME_REJECT;
    HandshakeHeader header = {
        .name = HANDSHAKE_CHANNEL_MAIN,
        .session = conn->id,
    };

    trace_migration_handshake_destination_verdict(
        conn->wire.ioc, handshake_frame_type_str(type), json);
    handshake_header_put(buf, &header);
    return handshake_frame_put(buf, handshake_grease_number(), 0, "{}",
                               errp) &&
           handshake_frame_put(buf, type, HANDSHAKE_FRAME_CRITICAL, json,
                               errp) &&
           handshake_wire_send(&conn->wire, buf, errp);
}

/* The peer speaks our language, but what it said is no good */
static void coroutine_fn refuse_malformed(HandshakeConn *conn, const Error *err)
{
    g_autoptr(HandshakeVerdict) verdict = handshake_verdict_new();

    verdict->message = g_strdup_printf("no valid HELLO: %s",
                                       error_get_pretty(err));
    conn->answered = send_verdict(conn, verdict, NULL);
}

static bool coroutine_fn read_header(HandshakeConn *conn,
                                     HandshakeHeader *header, Error **errp)
{
    int ret = handshake_wire_read_header(&conn->wire, header, errp);

    if (ret == 0) {
        /* libvirt, for one, connects before it knows whether it migrates */
        error_setg(errp, "connection closed without a byte");
    }
    if (ret <= 0) {
        return false;
    }
    conn->start_ns = qemu_clock_get_ns(QEMU_CLOCK_REALTIME);
    return true;
}

/* To the loader, if it has come */
static void deliver_preempt(const HandshakeSink *sink)
{
    QIOChannel *ioc = handshake_channels_take(session.channels,
                                              HANDSHAKE_CHANNEL_PREEMPT, 0);

    if (ioc) {
        sink->preempt(ioc);
        object_unref(OBJECT(ioc));
    }
}

/*
 * A channel other than the main one.  Returns true if the session has taken
 * it; if not, it is dropped alone, whoever it may come from.
 */
static bool add_channel(HandshakeConn *conn, const HandshakeHeader *header,
                        Error **errp)
{
    if (!session.channels) {
        error_setg(errp, "channel '%s' %" PRIu32 " without a session",
                   header->name, header->index);
        return false;
    }
    if (!handshake_channels_add(session.channels, header, conn->wire.ioc,
                                errp)) {
        return false;
    }
    trace_migration_handshake_destination_channel(
        conn->wire.ioc, header->name, header->index,
        handshake_channels_missing(session.channels, true));
    if (!session.conn) {
        deliver_preempt(conn->sink);
    } else if (!handshake_channels_missing(session.channels, false)) {
        conn_wake(session.conn);
    }
    return true;
}

/* Returns false with @errp set unless conn->hello has come */
static bool coroutine_fn read_hello(HandshakeConn *conn, Error **errp)
{
    ERRP_GUARD();
    g_autoptr(GString) json = NULL;
    HandshakeFrameType type;

    if (!handshake_wire_read_frame(&conn->wire, &type, &json, errp)) {
        if (!conn->wire.broken) {
            refuse_malformed(conn, *errp);
        }
        return false;
    }
    if (type != HANDSHAKE_FRAME_HELLO) {
        error_setg(errp, "%s instead of HELLO", handshake_frame_type_str(type));
        refuse_malformed(conn, *errp);
        return false;
    }
    trace_migration_handshake_destination_hello(conn->wire.ioc, json->str);
    conn->hello = g_steal_pointer(&json);
    return true;
}

/* Returns true if the source was told ACCEPT, and may go on */
static bool coroutine_fn answer(HandshakeConn *conn, Error **errp)
{
    const HandshakeVerdict *verdict;
    bool sent;

    WITH_QEMU_LOCK_GUARD(&judging) {
        aio_bh_schedule_oneshot(qemu_get_aio_context(), judge_bh, conn);
        qemu_coroutine_yield();
    }

    if (!conn->verdict) {
        refuse_malformed(conn, conn->malformed);
        error_propagate(errp, g_steal_pointer(&conn->malformed));
        return false;
    }
    verdict = conn->verdict;
    /* None of one that found us busy; that is always a refusal */
    if (conn->info) {
        conn->info->session = qemu_uuid_unparse_strdup(&conn->id);
        conn->info->duration = (qemu_clock_get_ns(QEMU_CLOCK_REALTIME) -
                                conn->start_ns) / SCALE_US;
        handshake_info_set_verdict(conn->info, verdict);
    }
    sent = send_verdict(conn, verdict, errp);
    if (!sent) {
        /* Who was sent away before it had read the verdict is a stranger */
        if (!conn->timed_out) {
            publish(conn, MIGRATION_HANDSHAKE_STATUS_CANCELLED,
                    "the source was gone before the verdict");
        }
        return false;
    }
    if (verdict->accept && !conn->info->check_only) {
        publish(conn, MIGRATION_HANDSHAKE_STATUS_IN_PROGRESS, NULL);
        return true;
    }
    conn->answered = true;
    publish(conn, verdict->accept ? MIGRATION_HANDSHAKE_STATUS_ACCEPTED
                                  : MIGRATION_HANDSHAKE_STATUS_REJECTED,
            verdict->message);
    error_setg(errp, "%s", verdict->message ?: "it was a check");
    return false;
}

/* Returns true if the source agrees and saw what we saw */
static bool coroutine_fn read_commit(HandshakeConn *conn, Error **errp)
{
    ERRP_GUARD();
    g_autofree char *expected = handshake_wire_digest(&conn->wire);
    g_autofree char *digest = NULL;
    g_autoptr(GString) json = NULL;
    HandshakeIssues issues = { 0 };
    HandshakeFrameType type;

    if (!handshake_wire_read_frame(&conn->wire, &type, &json, errp)) {
        conn->violated = !conn->wire.broken;
        return false;
    }
    if (type == HANDSHAKE_FRAME_ABORT) {
        g_autofree char *message =
            handshake_abort_from_json(json->str, json->len, &issues, errp);

        handshake_issues_free(&issues);
        if (message) {
            error_setg(errp, "the source gave up: %s", message);
        }
        return false;
    }
    conn->violated = true;
    if (type != HANDSHAKE_FRAME_COMMIT) {
        error_setg(errp, "%s instead of COMMIT",
                   handshake_frame_type_str(type));
        return false;
    }
    digest = handshake_commit_from_json(json->str, json->len, errp);
    if (!digest) {
        error_prepend(errp, "malformed COMMIT: ");
        return false;
    }
    if (strcmp(digest, expected)) {
        error_setg(errp, "the two sides saw different conversations");
        return false;
    }
    return true;
}

static gboolean gone_cb(QIOChannel *ioc, GIOCondition condition,
                        gpointer opaque)
{
    conn_wake(opaque);
    return G_SOURCE_CONTINUE;
}

/*
 * Returns true once all channels are there that the stream cannot do without.
 * The main channel may have bytes of the stream by now, which are not ours, so
 * a source that gives up can only be seen by the state of its connection.
 */
static bool coroutine_fn collect_channels(HandshakeConn *conn, Error **errp)
{
#ifdef POLLRDHUP
    const GIOCondition gone = G_IO_HUP | POLLRDHUP;
#else
    const GIOCondition gone = G_IO_HUP;
#endif
    unsigned missing = handshake_channels_missing(session.channels, false);
    GSource *watch;

    trace_migration_handshake_destination_commit(conn->wire.ioc, missing);
    if (!missing) {
        return true;
    }
    conn_set_timer(conn, CHANNELS_TIMEOUT);
    watch = qio_channel_add_watch_source(conn->wire.ioc, gone, gone_cb, conn,
                                         NULL, NULL);
    conn->collecting = true;
    qemu_coroutine_yield();
    g_source_destroy(watch);
    g_source_unref(watch);

    missing = handshake_channels_missing(session.channels, false);
    if (missing) {
        error_setg(errp, "%s while %u of %u multifd channels were missing",
                   conn->timed_out ? "time was up" : "the source gave up",
                   missing, handshake_channels_multifd(session.channels));
        return false;
    }
    return true;
}

/* The last chance to fail: QMP may have changed something since ACCEPT */
static bool prepare(HandshakeConn *conn, Error **errp)
{
    const HandshakeJudge *judge = handshake_settings_destination_judge();
    HandshakeVerdict *verdict = conn->verdict;

    handshake_settings_forget_host();
    if (!handshake_settings_check(errp) ||
        !judge->try_capabilities(verdict->capabilities, judge->opaque, errp)) {
        return false;
    }
    handshake_settings_take(verdict->capabilities, verdict->parameters);
    if (!conn->sink->prepare(errp)) {
        handshake_settings_give_back();
        return false;
    }
    return true;
}

/* All channels to the loader: from here on, there is no way back */
static void deliver(HandshakeConn *conn)
{
    QIOChannel *ioc = QIO_CHANNEL(object_ref(OBJECT(conn->wire.ioc)));
    const HandshakeSink *sink = conn->sink;

    for (unsigned i = 0; i < handshake_channels_multifd(session.channels);
         i++) {
        QIOChannel *channel =
            handshake_channels_take(session.channels,
                                    HANDSHAKE_CHANNEL_MULTIFD, i);

        sink->multifd(channel, i);
        object_unref(OBJECT(channel));
    }
    deliver_preempt(sink);
    session.conn = NULL;
    conn_free(conn);

    sink->start(ioc);
    object_unref(OBJECT(ioc));
}

static void deliver_bh(void *opaque)
{
    HandshakeConn *conn = opaque;
    g_autoptr(Error) err = NULL;

    if (prepare(conn, &err)) {
        trace_migration_handshake_destination_end(conn->wire.ioc, "agreed");
        publish(conn, MIGRATION_HANDSHAKE_STATUS_ACCEPTED, NULL);
        deliver(conn);
    } else {
        trace_migration_handshake_destination_end(conn->wire.ioc,
                                                  error_get_pretty(err));
        publish(conn, MIGRATION_HANDSHAKE_STATUS_FAILED,
                error_get_pretty(err));
        session_end();
        conn_free(conn);
    }
}

/* Returns true if a migration is to be delivered */
static bool coroutine_fn converse(HandshakeConn *conn, Error **errp)
{
    ERRP_GUARD();

    if (!read_hello(conn, errp) || !answer(conn, errp)) {
        return false;
    }
    conn_set_timer(conn, COMMIT_TIMEOUT);
    if (!read_commit(conn, errp) || conn->timed_out) {
        publish(conn, conn->violated ? MIGRATION_HANDSHAKE_STATUS_FAILED
                                     : MIGRATION_HANDSHAKE_STATUS_CANCELLED,
                conn->timed_out ? "no COMMIT came in time"
                                : error_get_pretty(*errp));
        return false;
    }
    if (!collect_channels(conn, errp)) {
        publish(conn, MIGRATION_HANDSHAKE_STATUS_CANCELLED,
                error_get_pretty(*errp));
        return false;
    }
    return true;
}

/* Says one thing to somebody who does not speak our language */
static void coroutine_fn tell_stranger(HandshakeConn *conn, GByteArray *words)
{
    conn->answered = handshake_wire_send(&conn->wire, words, NULL);
}

/* Who sends a stream may find this on the way back, and can tell a user */
static void coroutine_fn tell_legacy_source(HandshakeConn *conn)
{
    g_autoptr(GByteArray) buf = g_byte_array_new();
    HandshakeHeader header = { .name = HANDSHAKE_CHANNEL_MAIN };

    handshake_header_put(buf, &header);
    tell_stranger(conn, buf);
}

/* Closes a connection that leads to nothing, once the peer could read */
static void coroutine_fn conn_end(HandshakeConn *conn)
{
    if (conn->answered) {
        conn_set_timer(conn, DRAIN_TIMEOUT);
        handshake_wire_drain(&conn->wire);
    }
    conn_free(conn);
}

static void coroutine_fn conn_co(void *opaque)
{
    HandshakeConn *conn = opaque;
    g_autoptr(Error) err = NULL;
    HandshakeHeader header;

    if (!read_header(conn, &header, &err)) {
        if (conn->wire.legacy) {
            tell_legacy_source(conn);
        }
    } else if (strcmp(header.name, HANDSHAKE_CHANNEL_MAIN) || header.index) {
        if (add_channel(conn, &header, &err)) {
            conn_free(conn);
            return;
        }
    } else if (converse(conn, &err)) {
        timer_del(conn->timer);
        aio_bh_schedule_oneshot(qemu_get_aio_context(), deliver_bh, conn);
        return;
    }
    timer_del(conn->timer);

    if (session.conn == conn) {
        session_end();
    }
    trace_migration_handshake_destination_end(
        conn->wire.ioc,
        conn->timed_out ? "timed out" : error_get_pretty(err));
    conn_end(conn);
}

/*
 * When strangers take all the room, the one goes that had the most time to read
 * our answer, else the one that had the most time for its HELLO, else the last
 * one of those that wait for an answer
 */
static HandshakeConn *find_dispensable(void)
{
    HandshakeConn *conn;

    QTAILQ_FOREACH(conn, &conns, next) {
        if (conn->answered && !conn->timed_out) {
            return conn;
        }
    }
    QTAILQ_FOREACH(conn, &conns, next) {
        if (!conn->hello && !conn->verdict && !conn->timed_out) {
            return conn;
        }
    }
    QTAILQ_FOREACH_REVERSE(conn, &conns, next) {
        if (conn->hello && !conn->timed_out) {
            return conn;
        }
    }
    return NULL;
}

static void make_room(void)
{
    unsigned max = CONNECTIONS_MAX;
    HandshakeConn *conn;

    if (session.channels) {
        max += handshake_channels_missing(session.channels, true);
    }
    conn = conn_count < max ? NULL : find_dispensable();
    if (conn) {
        trace_migration_handshake_destination_evict(conn->wire.ioc);
        conn_timer_cb(conn);
    }
}

static HandshakeConn *conn_new(QIOChannel *ioc)
{
    HandshakeConn *conn = g_new0(HandshakeConn, 1);

    handshake_settings_hold();
    make_room();
    trace_migration_handshake_destination_accept(ioc);
    handshake_wire_init(&conn->wire, ioc);
    conn->timer = timer_new_ms(QEMU_CLOCK_REALTIME, conn_timer_cb, conn);
    conn_set_timer(conn, HELLO_TIMEOUT);
    QTAILQ_INSERT_TAIL(&conns, conn, next);
    conn_count++;
    return conn;
}

/* The one whose TLS negotiates on @ioc, or below it; NULL if there is none */
static HandshakeConn *find_tls(QIOChannel *ioc)
{
    const QIOChannel *raw = is_tls(ioc) ? QIO_CHANNEL_TLS(ioc)->master : ioc;
    HandshakeConn *conn;

    QTAILQ_FOREACH(conn, &conns, next) {
        if (!conn->co && conn->wire.ioc == raw) {
            return conn;
        }
    }
    return NULL;
}

void handshake_destination_before_tls(QIOChannel *ioc)
{
    conn_new(ioc);
}

static void coroutine_fn tls_failed_co(void *opaque)
{
    /*
     * Alerts of TLS 1.2: handshake_failure, close_notify.  A peer that expects
     * a channel header reads eight bytes before it judges them.
     */
    static const uint8_t alert[] = {
        0x15, 3, 3, 0, 2, 2, 40,
        0x15, 3, 3, 0, 2, 1, 0,
    };
    g_autoptr(GByteArray) buf = g_byte_array_new();
    HandshakeConn *conn = opaque;

    g_byte_array_append(buf, alert, sizeof(alert));
    tell_stranger(conn, buf);
    conn_end(conn);
}

void handshake_destination_tls_failed(QIOChannel *ioc)
{
    HandshakeConn *conn = find_tls(ioc);

    if (conn) {
        trace_migration_handshake_destination_end(ioc, "TLS failed");
        conn->co = qemu_coroutine_create(tls_failed_co, conn);
        qemu_coroutine_enter(conn->co);
    }
}

void handshake_destination_accept(QIOChannel *ioc, const HandshakeSink *sink)
{
    HandshakeConn *conn = find_tls(ioc);

    if (conn) {
        handshake_wire_destroy(&conn->wire);
        handshake_wire_init(&conn->wire, ioc);
    } else {
        conn = conn_new(ioc);
    }
    qio_channel_set_blocking(ioc, false, NULL);
    qio_channel_set_delay(ioc, false);
    conn->sink = sink;

    conn->co = qemu_coroutine_create(conn_co, conn);
    qemu_coroutine_enter(conn->co);
}

bool handshake_destination_is_busy(void)
{
    return session.channels != NULL;
}

void handshake_destination_too_late(QIOChannel *ioc)
{
    HandshakeConn *conn = find_tls(ioc);

    if (conn) {
        conn_free(conn);
    }
}

void handshake_destination_end(void)
{
    HandshakeConn *conn;

    if (!session.conn) {
        session_end();
    }
    QTAILQ_FOREACH(conn, &conns, next) {
        /* What has come already must not be judged: the guest may run here */
        conn->timed_out = true;
        qio_channel_shutdown(conn->wire.ioc, QIO_CHANNEL_SHUTDOWN_BOTH, NULL);
    }
}
