/*
 * Migration handshake: the destination's side of the conversation
 *
 * Every connection is a coroutine in the main loop:
 *
 *   channel header, HELLO  ->  verdict  ->  wait for COMMIT  ->  deliver
 *
 * Nothing in this QEMU changes before COMMIT.  One connection at a time can
 * have got ACCEPT: it holds the session.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "block/aio.h"
#include "qapi/error.h"
#include "qapi/util.h"
#include "qemu/main-loop.h"
#include "qemu/timer.h"
#include "handshake-compat.h"
#include "handshake-destination.h"
#include "handshake-info.h"
#include "handshake-json.h"
#include "handshake-message.h"
#include "handshake-policy.h"
#include "handshake-profile.h"
#include "handshake-settings.h"
#include "handshake-wire.h"
#include "trace.h"

/* Connections at a time, the one that holds the session included */
#define CONNECTIONS_MAX         64

/* Seconds */
#define HELLO_TIMEOUT           30
#define COMMIT_TIMEOUT          30
#define DRAIN_TIMEOUT           5

typedef struct HandshakeConn {
    HandshakeWire wire;
    HandshakeDeliver *deliver;
    Coroutine *co;
    QEMUTimer *timer;
    bool timed_out;
    bool refused;                   /* REJECT has been sent */
    bool violated;                  /* after ACCEPT: no honest source */
    int64_t start_ns;               /* 0 before the first byte */
    HandshakeHello *hello;          /* NULL before it was complete */
    strList *not_understood;
    HandshakeVerdict *verdict;
    MigrationHandshakeInfo *info;   /* NULL if it is not to be shown */
    QTAILQ_ENTRY(HandshakeConn) next;
} HandshakeConn;

static QTAILQ_HEAD(, HandshakeConn) conns =
    QTAILQ_HEAD_INITIALIZER(conns);
static unsigned conn_count;

/*
 * Who got ACCEPT, and whether its migration has been delivered; from then on
 * @session_conn is gone and the session lasts until the migration is over.
 */
static HandshakeConn *session_conn;
static bool session_delivered;

static void conn_timer_cb(void *opaque)
{
    HandshakeConn *conn = opaque;

    conn->timed_out = true;
    qio_channel_shutdown(conn->wire.ioc, QIO_CHANNEL_SHUTDOWN_BOTH, NULL);
}

static void conn_set_timer(HandshakeConn *conn, int seconds)
{
    timer_mod(conn->timer, qemu_clock_get_ms(QEMU_CLOCK_REALTIME) +
                           seconds * 1000);
}

static void conn_free(HandshakeConn *conn)
{
    QTAILQ_REMOVE(&conns, conn, next);
    conn_count--;
    timer_free(conn->timer);
    handshake_wire_destroy(&conn->wire);
    handshake_hello_free(conn->hello);
    handshake_verdict_free(conn->verdict);
    qapi_free_strList(conn->not_understood);
    qapi_free_MigrationHandshakeInfo(conn->info);
    g_free(conn);
}

static void publish(HandshakeConn *conn, MigrationHandshakeStatus status,
                    const char *message)
{
    if (!conn->info) {
        return;
    }
    conn->info->status = status;
    g_free(conn->info->message);
    conn->info->message = g_strdup(message);
    handshake_info_set_wire(conn->info, &conn->wire);
    handshake_info_publish(conn->info);
}

/* The version that the source likes best of those that are known here */
static uint32_t choose_version(const HandshakeHello *hello,
                               HandshakeIssues *issues)
{
    g_autoptr(GString) offered = g_string_new(NULL);
    const uint32List *v;

    for (v = hello->versions; v; v = v->next) {
        if (v->value == HANDSHAKE_VERSION) {
            return v->value;
        }
        g_string_append_printf(offered, "%s%" PRIu32,
                               offered->len ? ", " : "", v->value);
    }
    handshake_issue_add(issues, "protocol-version",
                        MIGRATION_HANDSHAKE_SEVERITY_ERROR, "versions",
                        offered->str, stringify(HANDSHAKE_VERSION),
                        "no common version of the migration handshake");
    return 0;
}

static void judge_core(const HandshakeHello *hello, HandshakeIssues *issues)
{
    if (!hello->purpose || strcmp(hello->purpose, "migrate")) {
        handshake_issue_add(issues, "purpose",
                            MIGRATION_HANDSHAKE_SEVERITY_ERROR, "purpose",
                            hello->purpose, "migrate",
                            "the purpose '%s' is not known on the destination",
                            hello->purpose ?: "");
    }
    for (strList *l = hello->required; l; l = l->next) {
        if (!handshake_feature_known(l->value)) {
            handshake_issue_add(issues, "required-feature",
                                MIGRATION_HANDSHAKE_SEVERITY_ERROR, l->value,
                                "required", "unknown",
                                "the source requires handshake feature '%s', "
                                "which is not known on the destination",
                                l->value);
        }
    }
}

/*
 * Everything that the answer depends on is looked at here, in one go with the
 * BQL held, so that it cannot change in between.
 */
static void judge(HandshakeConn *conn)
{
    g_autoptr(HandshakeProfile) local = handshake_profile_new();
    HandshakeVerdict *verdict = handshake_verdict_new();
    const HandshakeHello *hello = conn->hello;
    HandshakeIssues *issues = &verdict->issues;
    g_autoptr(Error) err = NULL;

    conn->verdict = verdict;
    handshake_profile_collect(local);
    verdict->peer = handshake_profile_peer(local);
    verdict->not_understood = g_steal_pointer(&conn->not_understood);
    verdict->features = handshake_features_common(hello->features);

    if (session_conn || session_delivered) {
        handshake_issue_add(issues, "busy", MIGRATION_HANDSHAKE_SEVERITY_ERROR,
                            "session", NULL, NULL,
                            "another migration to this destination is in "
                            "progress");
    } else {
        verdict->version = choose_version(hello, issues);
        judge_core(hello, issues);
        if (!handshake_settings_check(true, &err)) {
            handshake_issue_add(issues, "capability-conflict",
                                MIGRATION_HANDSHAKE_SEVERITY_ERROR,
                                "destination", NULL, NULL, "%s",
                                error_get_pretty(err));
        }
        handshake_negotiate(hello, handshake_settings_destination_judge(),
                            verdict);
        handshake_compare(hello->profile, local, verdict->capabilities,
                          issues);
        conn->info = handshake_info_new(MIGRATION_HANDSHAKE_ROLE_DESTINATION);
        conn->info->peer = handshake_profile_peer(hello->profile);
    }

    verdict->accept = !issues->errors &&
                      !(hello->warnings_as_errors && issues->warnings);
    if (!verdict->accept) {
        verdict->message = handshake_issues_summary(issues);
    } else {
        session_conn = conn;
    }
}

/* In the main loop: judging probes the host, which must not yield */
static void judge_bh(void *opaque)
{
    HandshakeConn *conn = opaque;

    judge(conn);
    aio_co_wake(conn->co);
}

/* Header, a frame that nobody knows, and the verdict, in one piece */
static bool coroutine_fn send_verdict(HandshakeConn *conn,
                                      const HandshakeVerdict *verdict,
                                      const QemuUUID *session, Error **errp)
{
    g_autoptr(GByteArray) buf = g_byte_array_new();
    g_autofree char *json = handshake_verdict_to_json(verdict);
    HandshakeFrameType type = verdict->accept ? HANDSHAKE_FRAME_ACCEPT
                                              : HANDSHAKE_FRAME_REJECT;
    HandshakeHeader header = { .session = *session, .name = "main" };

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
    QemuUUID session = { 0 };

    verdict->message = g_strdup_printf("no valid HELLO: %s",
                                       error_get_pretty(err));
    conn->refused = send_verdict(conn, verdict, &session, NULL);
}

/* Returns false with @errp set unless conn->hello has been filled in */
static bool coroutine_fn read_hello(HandshakeConn *conn, Error **errp)
{
    ERRP_GUARD();
    g_autoptr(GString) json = NULL;
    HandshakeFrameType type;
    HandshakeHeader header;
    int ret;

    ret = handshake_wire_read_header(&conn->wire, &header, errp);
    if (ret == 0) {
        /* libvirt, for one, connects before it knows whether it migrates */
        error_setg(errp, "connection closed without a byte");
    }
    if (ret <= 0) {
        return false;
    }
    conn->start_ns = qemu_clock_get_ns(QEMU_CLOCK_REALTIME);
    if (strcmp(header.name, "main") || header.index != 0) {
        error_setg(errp, "channel '%s' %" PRIu32 " belongs to no session here",
                   header.name, header.index);
        return false;
    }
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
    conn->hello = handshake_hello_from_json(json->str, json->len,
                                            &conn->not_understood, errp);
    if (!conn->hello) {
        refuse_malformed(conn, *errp);
        return false;
    }
    return true;
}

/* Returns true if the source was told ACCEPT */
static bool coroutine_fn answer(HandshakeConn *conn, Error **errp)
{
    QemuUUID session = { 0 };

    /* One after the other: judging costs time, and a stranger may ask for it */
    aio_bh_schedule_oneshot(qemu_get_aio_context(), judge_bh, conn);
    qemu_coroutine_yield();

    if (conn->verdict->accept) {
        qemu_uuid_generate(&session);
    }
    if (!send_verdict(conn, conn->verdict, &session, errp)) {
        return false;
    }
    if (conn->info) {
        if (conn->verdict->accept) {
            conn->info->session = qemu_uuid_unparse_strdup(&session);
        }
        conn->info->duration = (qemu_clock_get_ns(QEMU_CLOCK_REALTIME) -
                                conn->start_ns) / SCALE_US;
        handshake_info_set_verdict(conn->info, conn->verdict);
    }
    if (!conn->verdict->accept) {
        conn->refused = true;
        publish(conn, MIGRATION_HANDSHAKE_STATUS_REJECTED,
                conn->verdict->message);
        error_setg(errp, "%s", conn->verdict->message);
        return false;
    }
    publish(conn, MIGRATION_HANDSHAKE_STATUS_IN_PROGRESS, NULL);
    return true;
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

static void deliver_bh(void *opaque)
{
    HandshakeConn *conn = opaque;
    const HandshakeJudge *judge = handshake_settings_destination_judge();
    QIOChannel *ioc = QIO_CHANNEL(object_ref(OBJECT(conn->wire.ioc)));
    HandshakeDeliver *deliver = conn->deliver;
    Error *err = NULL;

    /* QMP may have changed something since ACCEPT */
    if (!handshake_settings_check(true, &err) ||
        !judge->try_capabilities(conn->verdict->capabilities, judge->opaque,
                                 &err)) {
        trace_migration_handshake_destination_end(ioc, error_get_pretty(err));
        publish(conn, MIGRATION_HANDSHAKE_STATUS_FAILED,
                error_get_pretty(err));
        error_free(err);
        session_conn = NULL;
        conn_free(conn);
    } else {
        trace_migration_handshake_destination_end(ioc, "agreed");
        publish(conn, MIGRATION_HANDSHAKE_STATUS_ACCEPTED, NULL);
        handshake_settings_take(conn->verdict->capabilities,
                                conn->verdict->parameters);
        session_conn = NULL;
        session_delivered = true;
        conn_free(conn);
        deliver(ioc);
    }
    object_unref(OBJECT(ioc));
}

static void coroutine_fn conn_co(void *opaque)
{
    HandshakeConn *conn = opaque;
    g_autoptr(Error) err = NULL;
    bool committed = false;

    if (read_hello(conn, &err) && answer(conn, &err)) {
        conn_set_timer(conn, COMMIT_TIMEOUT);
        committed = read_commit(conn, &err);
        if (!committed) {
            const char *why = conn->timed_out ? "no COMMIT came in time"
                                              : error_get_pretty(err);

            publish(conn, conn->violated ? MIGRATION_HANDSHAKE_STATUS_FAILED
                                         : MIGRATION_HANDSHAKE_STATUS_CANCELLED,
                    why);
        }
    }
    timer_del(conn->timer);

    if (committed) {
        aio_bh_schedule_oneshot(qemu_get_aio_context(), deliver_bh, conn);
        return;
    }

    if (session_conn == conn) {
        session_conn = NULL;
    }
    trace_migration_handshake_destination_end(
        conn->wire.ioc,
        conn->timed_out ? "timed out" : error_get_pretty(err));
    if (conn->refused) {
        conn_set_timer(conn, DRAIN_TIMEOUT);
        handshake_wire_drain(&conn->wire);
    }
    conn_free(conn);
}

/*
 * When strangers take all the room, the one goes that had the most time for
 * its HELLO, else the one that had the most time to read our answer
 */
static void make_room(void)
{
    HandshakeConn *conn;

    if (conn_count < CONNECTIONS_MAX) {
        return;
    }
    QTAILQ_FOREACH(conn, &conns, next) {
        if (!conn->hello && !conn->timed_out) {
            break;
        }
    }
    if (!conn) {
        QTAILQ_FOREACH(conn, &conns, next) {
            if (conn->refused && !conn->timed_out) {
                break;
            }
        }
    }
    if (conn) {
        trace_migration_handshake_destination_evict(conn->wire.ioc);
        conn_timer_cb(conn);
    }
}

void handshake_destination_accept(QIOChannel *ioc, HandshakeDeliver *deliver)
{
    HandshakeConn *conn = g_new0(HandshakeConn, 1);

    make_room();
    trace_migration_handshake_destination_accept(ioc);
    qio_channel_set_blocking(ioc, false, NULL);
    handshake_wire_init(&conn->wire, ioc);
    conn->deliver = deliver;
    conn->timer = timer_new_ms(QEMU_CLOCK_REALTIME, conn_timer_cb, conn);
    conn_set_timer(conn, HELLO_TIMEOUT);
    QTAILQ_INSERT_TAIL(&conns, conn, next);
    conn_count++;

    conn->co = qemu_coroutine_create(conn_co, conn);
    qemu_coroutine_enter(conn->co);
}

void handshake_destination_end(void)
{
    HandshakeConn *conn;

    session_delivered = false;
    QTAILQ_FOREACH(conn, &conns, next) {
        qio_channel_shutdown(conn->wire.ioc, QIO_CHANNEL_SHUTDOWN_BOTH, NULL);
    }
}
