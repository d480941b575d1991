/*
 * Migration handshake: the destination's side of the conversation
 *
 * Every connection is a coroutine in the main loop:
 *
 *   TLS  ->  channel header, HELLO  ->  verdict  ->  wait for COMMIT  ->  load
 *        ->  header of another channel  ->  its place in the session
 *
 * Nothing in this QEMU changes before COMMIT, and all channels are there by
 * then.  One connection at a time can have got ACCEPT: it holds the session.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "io/channel-tls.h"
#include "qapi/error.h"
#include "qapi/qapi-visit-migration-handshake.h"
#include "qapi/qapi-visit-sockets.h"
#include "qapi/clone-visitor.h"
#include "qapi/util.h"
#include "qemu/coroutine.h"
#include "qemu/error-report.h"
#include "qemu/lockable.h"
#include "qemu/main-loop.h"
#include "qemu/timer.h"
#include "conversation.h"
#include "machine.h"
#include "migration/channel.h"
#include "migration/migration.h"
#include "migration/multifd.h"
#include "migration/options.h"
#include "migration/postcopy-ram.h"
#include "migration/qemu-file.h"
#include "migration/tls.h"
#include "migration/yank_functions.h"
#include "settings.h"
#include "trace.h"

/* Connections at a time, besides those that the session waits for */
#define CONNECTIONS_MAX         64

/* Seconds */
#define HELLO_TIMEOUT           30      /* TLS included */
#define COMMIT_TIMEOUT          30      /* since the last channel came */
#define DRAIN_TIMEOUT           5
#define RESUME_TIMEOUT          5       /* HELLO after a session's header */

#define TOO_LATE                "no COMMIT came within " \
                                stringify(COMMIT_TIMEOUT) " seconds"

typedef struct DestConn {
    HandshakeDestination *hd;
    QIOChannel *raw;                /* below TLS */
    HandshakeWire wire;
    Coroutine *co;
    QEMUTimer *timer;
    bool timed_out;                 /* shut down, for whatever reason */
    bool answered;                  /* our last frame has been sent */
    bool violated;                  /* after ACCEPT: no honest source */
    bool listens;                   /* for HELLO, header and TLS behind it */
    bool waits;                     /* for COMMIT */
    bool committed;                 /* COMMIT has come, be it good or bad */
    bool changed;                   /* the issues are not those of ACCEPT */
    int64_t start_ns;               /* 0 before the header */
    QemuUUID id;                    /* drawn with the verdict */
    GString *json;                  /* HELLO that is to be looked at */
    MigrationHandshakeHello *hello;
    Error *malformed;               /* what is wrong with it as a message */
    HandshakeVerdict *verdict;      /* NULL before HELLO was looked at */
    MigrationHandshakeInfo *info;   /* NULL if it is not to be shown */
    QTAILQ_ENTRY(DestConn) next;
} DestConn;

struct HandshakeDestination {
    SocketAddress *addr;            /* where it listens */
    QTAILQ_HEAD(, DestConn) conns;
    unsigned count;                 /* those that have not been shut down */
    unsigned total;                 /* with those that have, and end soon */
    bool ended;                     /* nobody hangs on to it any more */
    /*
     * Only one HELLO is looked at at a time, and in each turn of the main
     * loop: it costs time and memory, and anybody may send one
     */
    CoMutex looking;
    HandshakeEventLimit limit;
    int64_t report_ms;              /* when the next error may be reported */
    /* The session, if @places is not NULL */
    DestConn *conn;                 /* NULL once it has been handed over */
    HandshakePlaces *places;
    HandshakeResume *resume;        /* once it has, and if it can be resumed */
};

HandshakeDestination *handshake_destination_new(const SocketAddress *addr)
{
    HandshakeDestination *hd = g_new0(HandshakeDestination, 1);

    hd->addr = QAPI_CLONE(SocketAddress, addr);

    QTAILQ_INIT(&hd->conns);
    qemu_co_mutex_init(&hd->looking);
    return hd;
}

bool handshake_destination_is_busy(const HandshakeDestination *hd)
{
    return hd && hd->places;
}

static void dest_session_end(HandshakeDestination *hd)
{
    hd->conn = NULL;
    g_clear_pointer(&hd->places, handshake_places_free);
}

static void dest_free(HandshakeDestination *hd)
{
    dest_session_end(hd);
    handshake_resume_unref(hd->resume);
    qapi_free_SocketAddress(hd->addr);
    g_free(hd);
}

static void conn_drop_json(DestConn *conn)
{
    if (conn->json) {
        g_string_free(g_steal_pointer(&conn->json), true);
    }
}

/* Whatever it waits for ends; its coroutine sees it in the main loop */
static void conn_shutdown(DestConn *conn)
{
    if (!conn->timed_out) {
        conn->timed_out = true;
        conn->hd->count--;
        /* It may have to wait for its turn, and is not looked at then */
        conn_drop_json(conn);
        handshake_ioc_interrupt(conn->wire.ioc);
    }
}

static void conn_free(DestConn *conn)
{
    HandshakeDestination *hd = conn->hd;

    QTAILQ_REMOVE(&hd->conns, conn, next);
    hd->count -= !conn->timed_out;
    hd->total--;
    timer_free(conn->timer);
    handshake_wire_destroy(&conn->wire);
    object_unref(OBJECT(conn->raw));
    conn_drop_json(conn);
    qapi_free_MigrationHandshakeHello(conn->hello);
    error_free(conn->malformed);
    handshake_verdict_free(conn->verdict);
    qapi_free_MigrationHandshakeInfo(conn->info);
    g_free(conn);
    if (hd->ended && QTAILQ_EMPTY(&hd->conns)) {
        dest_free(hd);
    }
    object_unref(OBJECT(migrate_get_current()));
}

static void conn_set_timer(DestConn *conn, int seconds)
{
    timer_mod(conn->timer, qemu_clock_get_ms(QEMU_CLOCK_REALTIME) +
                           seconds * 1000);
}

static bool conn_trusted(const DestConn *conn)
{
    return conn->wire.ioc != conn->raw &&
           handshake_settings_tls_authenticates();
}

/* @status is known, and @message says why if it is bad */
static void conn_publish(DestConn *conn, MigrationHandshakeStatus status,
                         const char *message)
{
    HandshakeDestination *hd = conn->hd;
    bool agreed = status == MIGRATION_HANDSHAKE_STATUS_ACCEPTED ||
                  status == MIGRATION_HANDSHAKE_STATUS_IN_PROGRESS;
    bool migrates;

    /* Nor is one shown that reads slowly while another one migrates */
    if (!conn->info || (hd->places && hd->conn != conn)) {
        return;
    }
    migrates = status == MIGRATION_HANDSHAKE_STATUS_ACCEPTED &&
               !conn->info->check_only;
    conn->info->status = status;
    g_free(conn->info->message);
    conn->info->message = g_strdup(message);
    conn->info->bytes_sent = conn->wire.bytes_sent;
    conn->info->bytes_received = conn->wire.bytes_received;
    handshake_info_set_verdict(conn->info, conn->verdict, agreed);
    if (status == MIGRATION_HANDSHAKE_STATUS_IN_PROGRESS) {
        handshake_info_publish(conn->info);
    } else {
        handshake_info_end(conn->info, &conn->verdict->issues,
                           migrates || conn_trusted(conn) ? NULL : &hd->limit);
    }
}

static uint32_t dest_choose_version(const MigrationHandshakeHello *hello,
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
    handshake_issue_add(issues, "protocol-version", HANDSHAKE_ERROR, "versions",
                        offered->str, stringify(HANDSHAKE_VERSION),
                        "no common version of the migration handshake");
    return 0;
}

static void dest_check_core(const MigrationHandshakeHello *hello,
                            HandshakeIssues *issues)
{
    g_autoptr(strList) known = handshake_features();
    const strList *l;

    if (strcmp(hello->purpose, HANDSHAKE_PURPOSE_MIGRATE) &&
        strcmp(hello->purpose, HANDSHAKE_PURPOSE_CHECK)) {
        handshake_issue_add(issues, "purpose", HANDSHAKE_ERROR, "purpose",
                            hello->purpose, "migrate, check",
                            "the purpose '%s' is not known on the destination",
                            hello->purpose);
    }
    for (l = hello->required; l; l = l->next) {
        if (!handshake_has_name(known, l->value)) {
            handshake_issue_add(issues, "required-feature", HANDSHAKE_ERROR,
                                l->value, "required", "unknown",
                                "the source requires handshake feature '%s', "
                                "which is not known on the destination",
                                l->value);
        }
    }
}

/* A refusal says nothing of how it would have been */
static void dest_refuse(HandshakeVerdict *verdict)
{
    MigrationHandshakeVerdict *message = verdict->message;

    verdict->accept = false;
    message->message = handshake_issues_summary(&verdict->issues);
    g_clear_pointer(&message->capabilities, qapi_free_strList);
    g_clear_pointer(&message->declined,
                    qapi_free_MigrationHandshakeDeclinedList);
    g_clear_pointer(&message->parameters,
                    qapi_free_MigrationHandshakeParameterList);
}

HandshakeVerdict *
handshake_destination_verdict(const MigrationHandshakeHello *hello)
{
    g_autoptr(MigrationProfile) local =
        handshake_profile_new(MIGRATION_HANDSHAKE_ROLE_DESTINATION);
    g_autoptr(GHashTable) limits = handshake_limits_new();
    HandshakeVerdict *verdict = handshake_verdict_new(true);
    HandshakeIssues *issues = &verdict->issues;
    g_autoptr(MigrationHandshakeIssue) back = NULL;
    Error *err = NULL;

    verdict->message->peer = handshake_peer_new(local);
    verdict->message->has_features = true;
    verdict->message->features = handshake_features_common(hello->features);
    verdict->message->has_version = true;
    verdict->message->version = dest_choose_version(hello, issues);
    handshake_issues_ignore(issues, hello->ignore);
    dest_check_core(hello, issues);
    if (!handshake_settings_validate(&err)) {
        handshake_issue_add(issues, "capability-conflict", HANDSHAKE_ERROR,
                            "destination", "wants a handshake", "excludes it",
                            "%s", error_get_pretty(err));
        error_free(err);
    }
    handshake_negotiate(hello, local, verdict);
    handshake_compare(hello->profile, local, verdict->message->capabilities,
                      issues);
    handshake_compare_promises(hello->profile, local, limits, issues, &back);
    if (handshake_issues_refuse(issues, hello->warnings_as_errors)) {
        dest_refuse(verdict);
        return verdict;
    }
    handshake_compare_return(hello->profile, local, back, issues);
    if (!strcmp(hello->purpose, HANDSHAKE_PURPOSE_CHECK)) {
        handshake_policy_note_untried(verdict);
    }
    return verdict;
}

static HandshakeVerdict *dest_busy(void)
{
    HandshakeVerdict *verdict = handshake_verdict_new(false);

    verdict->message->peer = handshake_peer_new(NULL);
    handshake_issue_add(&verdict->issues, "busy", HANDSHAKE_ERROR, "session",
                        "a second one", "held by another source",
                        "another migration to this destination is in "
                        "progress; try again when it is over");
    dest_refuse(verdict);
    return verdict;
}

static void conn_begin_session(DestConn *conn)
{
    const MigrationHandshakeVerdict *message = conn->verdict->message;
    g_autoptr(MigrationHandshakeEffective) effective =
        handshake_policy_effective(message->capabilities, message->parameters);

    conn->hd->conn = conn;
    conn->hd->places = handshake_places_new(
        &conn->id, effective->multifd_channels,
        handshake_has_name(message->capabilities, "postcopy-preempt"));
}

static void conn_look_at_hello(DestConn *conn)
{
    g_autoptr(strList) not_understood = NULL;

    conn->hello = handshake_get_hello(conn->json, &not_understood,
                                      &conn->malformed);
    if (!conn->hello) {
        return;
    }
    conn->verdict = handshake_destination_verdict(conn->hello);
    conn->verdict->message->has_not_understood = true;
    conn->verdict->message->not_understood = g_steal_pointer(&not_understood);
    qemu_uuid_generate(&conn->id);
    conn->info = handshake_info_new(
        MIGRATION_HANDSHAKE_ROLE_DESTINATION,
        !strcmp(conn->hello->purpose, HANDSHAKE_PURPOSE_CHECK));
    conn->info->peer = handshake_peer_new(conn->hello->profile);
    conn->info->session = qemu_uuid_unparse_strdup(&conn->id);
    if (conn->verdict->accept && !conn->info->check_only) {
        conn_begin_session(conn);
    }
}

/* In the main loop: it probes the host, which must not yield */
static void conn_look_bh(void *opaque)
{
    DestConn *conn = opaque;

    if (conn->timed_out) {
        error_setg(&conn->malformed, "it came too late");
    } else if (conn->hd->places) {
        conn->verdict = dest_busy();
        qemu_uuid_generate(&conn->id);
    } else {
        conn_look_at_hello(conn);
    }
    /* It may be large, and whoever was refused has time to read why */
    conn_drop_json(conn);
    if (conn->hd->conn != conn) {
        g_clear_pointer(&conn->hello, qapi_free_MigrationHandshakeHello);
    }
    aio_co_wake(conn->co);
}

/* Header, a frame that nobody knows, and the verdict, in one piece */
static bool conn_put_verdict(DestConn *conn, GByteArray *buf,
                             const HandshakeVerdict *verdict, Error **errp)
{
    HandshakeHeader header = {
        .name = HANDSHAKE_CHANNEL_MAIN,
        .session = conn->id,
    };

    trace_migration_handshake_destination_verdict(
        conn->raw, verdict->accept ? "ACCEPT" : "REJECT");
    handshake_header_put(buf, &header);
    handshake_put_grease(buf);
    return handshake_put_verdict(buf, verdict, errp);
}

static bool coroutine_fn conn_send_verdict(DestConn *conn,
                                           const HandshakeVerdict *verdict,
                                           Error **errp)
{
    g_autoptr(GByteArray) buf = g_byte_array_new();

    return conn_put_verdict(conn, buf, verdict, errp) &&
           handshake_wire_send(&conn->wire, buf, errp);
}

/* The peer speaks our language, but what it said is no good */
static void coroutine_fn conn_refuse_malformed(DestConn *conn,
                                               const Error *err)
{
    g_autoptr(HandshakeVerdict) verdict = handshake_verdict_new(false);

    verdict->message->message = g_strdup_printf("no valid HELLO: %s",
                                                error_get_pretty(err));
    conn->answered = conn_send_verdict(conn, verdict, NULL);
}

/* A source that is still speaking learns why; nothing was sent to it before */
static void conn_evict(DestConn *conn)
{
    g_autoptr(HandshakeVerdict) verdict = handshake_verdict_new(false);
    g_autoptr(GByteArray) buf = g_byte_array_new();

    trace_migration_handshake_destination_evict(conn->raw);
    verdict->message->message = g_strdup("too many connections to the "
                                         "destination; try again");
    if (conn->listens && conn_put_verdict(conn, buf, verdict, NULL)) {
        qio_channel_write(conn->wire.ioc, (const char *)buf->data, buf->len,
                          NULL);
    }
    conn_shutdown(conn);
}

/* Returns false with @errp set unless conn->json has come */
static bool coroutine_fn conn_read_hello(DestConn *conn, Error **errp)
{
    ERRP_GUARD();
    g_autoptr(GString) json = NULL;
    HandshakeFrameType type;
    bool ok;

    conn->listens = true;
    ok = handshake_wire_read_frame(&conn->wire, &type, &json, errp);
    conn->listens = false;
    if (!ok) {
        if (!conn->wire.broken) {
            conn_refuse_malformed(conn, *errp);
        }
        return false;
    }
    if (type != HANDSHAKE_FRAME_HELLO) {
        error_setg(errp, "%s instead of HELLO", handshake_frame_type_str(type));
        conn_refuse_malformed(conn, *errp);
        return false;
    }
    trace_migration_handshake_destination_hello(conn->raw, json->str);
    conn->json = g_steal_pointer(&json);
    return true;
}

/* Returns true if the source was told ACCEPT, and may go on */
static bool coroutine_fn conn_answer(DestConn *conn, Error **errp)
{
    const HandshakeVerdict *verdict;

    WITH_QEMU_LOCK_GUARD(&conn->hd->looking) {
        aio_bh_schedule_oneshot(iohandler_get_aio_context(), conn_look_bh,
                                conn);
        qemu_coroutine_yield();
    }
    if (!conn->verdict) {
        conn_refuse_malformed(conn, conn->malformed);
        error_propagate(errp, g_steal_pointer(&conn->malformed));
        return false;
    }
    verdict = conn->verdict;
    /* None of one that found us busy; that is always a refusal */
    if (conn->info) {
        conn->info->duration = (qemu_clock_get_ns(QEMU_CLOCK_REALTIME) -
                                conn->start_ns) / SCALE_US;
    }
    if (!conn_send_verdict(conn, verdict, errp)) {
        /* Nobody is told of one that was shut down before it could read it */
        if (!conn->timed_out) {
            conn_publish(conn, MIGRATION_HANDSHAKE_STATUS_CANCELLED,
                         "the source was gone before the verdict");
        }
        return false;
    }
    if (verdict->accept && !conn->info->check_only) {
        conn_publish(conn, MIGRATION_HANDSHAKE_STATUS_IN_PROGRESS, NULL);
        return true;
    }
    conn->answered = true;
    conn_publish(conn, verdict->accept ? MIGRATION_HANDSHAKE_STATUS_ACCEPTED
                                       : MIGRATION_HANDSHAKE_STATUS_REJECTED,
                 verdict->message->message);
    error_setg(errp, "%s", verdict->message->message ?: "it was a check");
    return false;
}

/* What the source goes without, and whether all the rest is there */
static bool conn_take_commit(DestConn *conn, const GString *json,
                             const char *expected, Error **errp)
{
    ERRP_GUARD();
    g_autoptr(MigrationHandshakeCommit) commit =
        handshake_get_commit(json, errp);
    const MigrationHandshakeDeclinedList *l;
    unsigned missing;

    if (!commit) {
        error_prepend(errp, "malformed COMMIT: ");
        return false;
    }
    if (strcmp(commit->digest, expected)) {
        error_setg(errp, "the two sides saw different conversations");
        return false;
    }
    if (!handshake_policy_drop(conn->hello, commit->without, conn->verdict,
                               errp)) {
        return false;
    }
    for (l = commit->without; l; l = l->next) {
        handshake_places_drop(conn->hd->places, handshake_policy_channels(
                                                    l->value->capability));
    }
    missing = handshake_places_missing(conn->hd->places);
    if (missing) {
        error_setg(errp, "COMMIT came while %u channel%s missing", missing,
                   missing == 1 ? " was" : "s were");
        return false;
    }
    return true;
}

/* Returns true if the source agrees and saw what we saw */
static bool coroutine_fn conn_read_commit(DestConn *conn, Error **errp)
{
    g_autofree char *expected = handshake_wire_digest(&conn->wire);
    g_autoptr(GString) json = NULL;
    HandshakeFrameType type;

    if (!handshake_wire_read_frame(&conn->wire, &type, &json, errp)) {
        conn->violated = !conn->wire.broken;
        return false;
    }
    if (type == HANDSHAKE_FRAME_ABORT) {
        g_autoptr(MigrationHandshakeReason) reason =
            handshake_get_reason(json, NULL);

        error_setg(errp, "the source gave up: %s", reason->message);
        return false;
    }
    conn->violated = true;
    if (type != HANDSHAKE_FRAME_COMMIT) {
        error_setg(errp, "%s instead of COMMIT",
                   handshake_frame_type_str(type));
        return false;
    }
    conn->committed = true;
    trace_migration_handshake_destination_commit(conn->raw, json->str);
    return conn_take_commit(conn, json, expected, errp);
}

/* The rest was in ACCEPT already, or stands in nobody's way */
static void issues_keep_errors(HandshakeIssues *issues)
{
    MigrationHandshakeIssueList **tail = &issues->list;
    unsigned kept = 0;

    for (; *tail && kept < issues->errors; kept++) {
        tail = &(*tail)->next;
    }
    g_clear_pointer(tail, qapi_free_MigrationHandshakeIssueList);
    issues->omitted = issues->errors - kept;
}

/* Why this side cannot go on.  Returns false if the source would not read it */
static bool conn_put_last_word(DestConn *conn, GByteArray *buf,
                               const char *message)
{
    const HandshakeIssues none = { 0 };
    const MigrationHandshakeReason word = {
        .message = (char *)message,
        .guest = (char *)HANDSHAKE_GUEST_NOT_STARTED,
    };

    if (conn->changed && !conn->hello->warnings_as_errors) {
        issues_keep_errors(&conn->verdict->issues);
    }
    return handshake_has_name(conn->verdict->message->features,
                              HANDSHAKE_FEATURE_LATE_ERROR) &&
           handshake_put_reason(buf, HANDSHAKE_FRAME_LAST_WORD, &word,
                                conn->changed ? &conn->verdict->issues : &none,
                                NULL);
}

/* Though the stream may be on its way */
static void coroutine_fn conn_send_last_word(DestConn *conn,
                                             const char *message)
{
    g_autoptr(GByteArray) buf = g_byte_array_new();

    if (conn_put_last_word(conn, buf, message)) {
        conn->answered = handshake_wire_send(&conn->wire, buf, NULL);
    }
}

/*
 * A source whose COMMIT is still on its way learns why nobody takes it.  There
 * is room: all that was sent before is as old as its patience.
 */
static void conn_timer_cb(void *opaque)
{
    g_autoptr(GByteArray) buf = g_byte_array_new();
    DestConn *conn = opaque;

    if (conn->waits && conn_put_last_word(conn, buf, TOO_LATE)) {
        qio_channel_write(conn->wire.ioc, (const char *)buf->data, buf->len,
                          NULL);
    }
    conn_shutdown(conn);
}

/* Returns true if a migration is to be handed over */
static bool coroutine_fn conn_converse(DestConn *conn, Error **errp)
{
    ERRP_GUARD();
    bool ok;

    if (!conn_read_hello(conn, errp) || !conn_answer(conn, errp)) {
        return false;
    }
    conn_set_timer(conn, COMMIT_TIMEOUT);
    conn->waits = true;
    ok = conn_read_commit(conn, errp);
    conn->waits = false;
    if (!ok || conn->timed_out) {
        if (conn->timed_out) {
            error_free(*errp);
            *errp = NULL;
            error_setg(errp, "%s", TOO_LATE);
        }
        conn_publish(conn, conn->violated
                     ? MIGRATION_HANDSHAKE_STATUS_FAILED
                     : MIGRATION_HANDSHAKE_STATUS_CANCELLED,
                     error_get_pretty(*errp));
        dest_session_end(conn->hd);
        if (conn->committed) {
            conn_send_last_word(conn, error_get_pretty(*errp));
        }
        return false;
    }
    return true;
}

/*
 * A channel other than the main one.  Returns true if the session has it; if
 * not, it is dropped alone, whoever it may come from.
 */
static bool coroutine_fn conn_add_channel(DestConn *conn,
                                          const HandshakeHeader *header,
                                          Error **errp)
{
    HandshakeDestination *hd = conn->hd;
    g_autoptr(GByteArray) buf = g_byte_array_new();

    if (!hd->conn) {
        error_setg(errp, "channel '%s' %" PRIu32 " without a session",
                   header->name, header->index);
        return false;
    }
    if (!handshake_places_add(hd->places, header, conn->wire.ioc, errp)) {
        return false;
    }
    trace_migration_handshake_destination_channel(
        conn->raw, header->name, header->index,
        handshake_places_missing(hd->places));
    conn_set_timer(hd->conn, COMMIT_TIMEOUT);
    handshake_header_put(buf, header);
    return handshake_wire_send(&conn->wire, buf, errp);
}

/* The last chance to fail: much may have changed since ACCEPT */
static bool conn_prepare(DestConn *conn, Error **errp)
{
    const MigrationHandshakeVerdict *message = conn->verdict->message;
    g_autoptr(MigrationHandshakeEffective) effective =
        handshake_policy_effective(message->capabilities, message->parameters);
    g_autoptr(HandshakeVerdict) now =
        handshake_destination_verdict(conn->hello);

    if (!now->accept) {
        error_setg(errp, "%s", now->message->message);
        handshake_issues_free(&conn->verdict->issues);
        conn->verdict->issues = now->issues;
        memset(&now->issues, 0, sizeof(now->issues));
        conn->changed = true;
        return false;
    }
    for (const strList *l = message->capabilities; l; l = l->next) {
        if (!handshake_has_name(now->message->capabilities, l->value)) {
            error_setg(errp, "capability '%s' is not possible any more",
                       l->value);
            return false;
        }
    }
    handshake_settings_apply(message->capabilities, effective);
    if (multifd_recv_setup(errp)) {
        handshake_settings_restore();
        return false;
    }
    return true;
}

/* All channels to the loader: from here on, there is no way back */
static void dest_hand_over(HandshakeDestination *hd, QIOChannel *ioc,
                           HandshakeLoader *loader)
{
    QIOChannel *channel;

    migration_incoming_get_current()->loader = loader;

    for (unsigned i = 0;
         (channel = handshake_places_take(hd->places, HANDSHAKE_CHANNEL_MULTIFD,
                                          i)); i++) {
        /* Its thread reads it, and waits as long as it takes */
        qio_channel_set_blocking(channel, true, NULL);
        migration_ioc_register_yank(channel);
        multifd_recv_attach(channel, i);
        object_unref(OBJECT(channel));
    }
    channel = handshake_places_take(hd->places, HANDSHAKE_CHANNEL_PREEMPT, 0);
    if (channel) {
        migration_ioc_register_yank(channel);
        postcopy_preempt_new_channel(migration_incoming_get_current(),
                                     qemu_file_new_input(channel));
        object_unref(OBJECT(channel));
    }
    migration_ioc_register_yank(ioc);
    if (migration_incoming_setup(ioc, CH_MAIN, NULL)) {
        migration_start_incoming();
    }
}

/* Closes a connection that leads to nothing, once the peer could read */
static void coroutine_fn conn_end(DestConn *conn)
{
    if (conn->answered) {
        conn_set_timer(conn, DRAIN_TIMEOUT);
        handshake_wire_drain(&conn->wire);
    }
    conn_free(conn);
}

static void coroutine_fn conn_last_word_co(void *opaque)
{
    DestConn *conn = opaque;

    conn_send_last_word(conn, error_get_pretty(conn->malformed));
    conn_end(conn);
}

static void conn_deliver_bh(void *opaque)
{
    DestConn *conn = opaque;
    HandshakeDestination *hd = conn->hd;
    const char *why = "agreed";

    if (conn_prepare(conn, &conn->malformed)) {
        QIOChannel *ioc = QIO_CHANNEL(object_ref(OBJECT(conn->wire.ioc)));
        HandshakeLoader *loader =
            handshake_loader_new(conn->verdict->message->features);

        conn_publish(conn, MIGRATION_HANDSHAKE_STATUS_ACCEPTED, NULL);
        trace_migration_handshake_destination_end(conn->raw, why);
        hd->conn = NULL;
        if (handshake_has_name(conn->verdict->message->features,
                               HANDSHAKE_FEATURE_RESUME_HEADER)) {
            hd->resume = handshake_resume_new(&conn->id);
        }
        conn_free(conn);
        dest_hand_over(hd, ioc, loader);
        object_unref(OBJECT(ioc));
        return;
    }
    why = error_get_pretty(conn->malformed);
    trace_migration_handshake_destination_end(conn->raw, why);
    conn_publish(conn, MIGRATION_HANDSHAKE_STATUS_FAILED, why);
    dest_session_end(hd);
    conn_set_timer(conn, DRAIN_TIMEOUT);
    conn->co = qemu_coroutine_create(conn_last_word_co, conn);
    qemu_coroutine_enter(conn->co);
}

/* Whoever sends a stream may find this on the way back, and can say so */
static void coroutine_fn conn_answer_legacy(DestConn *conn)
{
    g_autoptr(GByteArray) buf = g_byte_array_new();
    HandshakeHeader header = { .name = HANDSHAKE_CHANNEL_MAIN };

    handshake_header_put(buf, &header);
    conn->answered = handshake_wire_send(&conn->wire, buf, NULL);
}

/*
 * Alerts of TLS 1.2: handshake_failure, close_notify.  A peer that expects a
 * channel header reads eight bytes before it looks at them.
 */
static void coroutine_fn conn_send_alert(DestConn *conn)
{
    static const uint8_t alert[] = {
        0x15, 3, 3, 0, 2, 2, 40,
        0x15, 3, 3, 0, 2, 1, 0,
    };
    g_autoptr(GByteArray) buf = g_byte_array_new();

    g_byte_array_append(buf, alert, sizeof(alert));
    conn->answered = handshake_wire_send(&conn->wire, buf, NULL);
}

/* Returns true once the peer has got through TLS, if TLS is configured */
static bool coroutine_fn conn_negotiate_tls(DestConn *conn, Error **errp)
{
    QIOChannelTLS *tls;
    bool ok;

    if (!migrate_tls()) {
        return true;
    }
    tls = migration_tls_server_create(conn->raw, errp);
    if (!tls) {
        return false;
    }
    qio_channel_set_name(QIO_CHANNEL(tls), "migration-tls-incoming");
    ok = handshake_tls_negotiate(tls, errp);
    if (ok) {
        handshake_wire_destroy(&conn->wire);
        handshake_wire_init(&conn->wire, QIO_CHANNEL(tls));
    }
    object_unref(OBJECT(tls));
    return ok;
}

/* Once a second at most: anybody may fail as often as it likes */
static void conn_report(DestConn *conn, const Error *err)
{
    int64_t now_ms = qemu_clock_get_ms(QEMU_CLOCK_REALTIME);

    if (now_ms >= conn->hd->report_ms) {
        conn->hd->report_ms = now_ms + 1000;
        error_report("%s", error_get_pretty(err));
    }
}

/* Returns true if there is something to be handed over */
static bool coroutine_fn conn_talk(DestConn *conn, bool *is_channel,
                                   Error **errp)
{
    ERRP_GUARD();
    HandshakeHeader header;
    int ret;

    if (!conn_negotiate_tls(conn, errp)) {
        conn_report(conn, *errp);
        conn_send_alert(conn);
        return false;
    }
    ret = handshake_wire_read_header(&conn->wire, &header, errp);
    if (ret == 0) {
        /* libvirt, for one, connects before it knows whether it migrates */
        error_setg(errp, "connection closed without a byte");
    }
    if (ret <= 0) {
        if (conn->wire.legacy) {
            conn_answer_legacy(conn);
        }
        return false;
    }
    conn->start_ns = qemu_clock_get_ns(QEMU_CLOCK_REALTIME);
    *is_channel = strcmp(header.name, HANDSHAKE_CHANNEL_MAIN) || header.index;
    if (!*is_channel && !qemu_uuid_is_null(&header.session)) {
        /* To be resumed, and not paused here: most likely no HELLO follows */
        conn_set_timer(conn, RESUME_TIMEOUT);
    }
    return *is_channel ? conn_add_channel(conn, &header, errp)
                       : conn_converse(conn, errp);
}

static void coroutine_fn conn_co(void *opaque)
{
    DestConn *conn = opaque;
    HandshakeDestination *hd = conn->hd;
    Error *err = NULL;
    bool is_channel = false;

    if (conn_talk(conn, &is_channel, &err)) {
        timer_del(conn->timer);
        if (is_channel) {
            conn_free(conn);
        } else {
            aio_bh_schedule_oneshot(iohandler_get_aio_context(),
                                    conn_deliver_bh, conn);
        }
        return;
    }
    timer_del(conn->timer);
    if (hd->conn == conn) {
        dest_session_end(hd);
    }
    trace_migration_handshake_destination_end(
        conn->raw, conn->timed_out ? "timed out" : error_get_pretty(err));
    error_free(err);
    conn_end(conn);
}

/*
 * When peers that nobody knows take all the room, the one goes that had the
 * most time to read our answer, else one that does not take it, else the one
 * that had the most time for its HELLO, else the last one that waits for an
 * answer
 */
static DestConn *dest_find_dispensable(HandshakeDestination *hd)
{
    DestConn *sending = NULL;
    DestConn *waiting = NULL;
    DestConn *silent = NULL;
    DestConn *conn;

    QTAILQ_FOREACH(conn, &hd->conns, next) {
        if (conn->timed_out || conn == hd->conn) {
            continue;
        }
        if (conn->answered) {
            return conn;
        }
        if (conn->json) {
            waiting = conn;
        } else if (conn->verdict) {
            sending = sending ?: conn;
        } else {
            silent = silent ?: conn;
        }
    }
    return sending ?: silent ?: waiting;
}

/* Returns whether there is room for one more connection */
static bool dest_make_room(HandshakeDestination *hd)
{
    unsigned max = CONNECTIONS_MAX;
    DestConn *conn;

    if (hd->conn) {
        max += handshake_places_missing(hd->places);
    }
    if (hd->total >= 2 * max) {
        return false;
    }
    if (hd->count < max) {
        return true;
    }
    conn = dest_find_dispensable(hd);
    if (!conn) {
        return false;
    }
    conn_evict(conn);
    return true;
}

void handshake_destination_accept(HandshakeDestination *hd, QIOChannel *ioc)
{
    DestConn *conn;

    trace_migration_handshake_destination_accept(ioc);
    if (!dest_make_room(hd)) {
        trace_migration_handshake_destination_evict(ioc);
        qio_channel_shutdown(ioc, QIO_CHANNEL_SHUTDOWN_BOTH, NULL);
        return;
    }
    /* QEMU may quit, and bottom halves that are scheduled run then */
    object_ref(OBJECT(migrate_get_current()));
    qio_channel_set_blocking(ioc, false, NULL);
    /*
     * A peer that has been talked with acknowledges late, as in a dialogue, and
     * small writes would wait for that
     */
    qio_channel_set_delay(ioc, false);
    handshake_ioc_keep_alive(ioc, hd->addr);

    conn = g_new0(DestConn, 1);
    conn->hd = hd;
    conn->raw = QIO_CHANNEL(object_ref(OBJECT(ioc)));
    handshake_wire_init(&conn->wire, ioc);
    conn->timer = timer_new_ms(QEMU_CLOCK_REALTIME, conn_timer_cb, conn);
    conn_set_timer(conn, HELLO_TIMEOUT);
    QTAILQ_INSERT_TAIL(&hd->conns, conn, next);
    hd->count++;
    hd->total++;
    conn->co = qemu_coroutine_create(conn_co, conn);
    qemu_coroutine_enter(conn->co);
}

void handshake_destination_free(HandshakeDestination *hd)
{
    handshake_destination_end(hd);
    hd->ended = true;
    if (QTAILQ_EMPTY(&hd->conns)) {
        dest_free(hd);
    }
}

bool handshake_destination_resume(HandshakeDestination *hd, QIOChannel *ioc)
{
    if (hd->resume) {
        handshake_resume_accept(hd->resume, ioc);
    }
    return hd->resume;
}

void handshake_destination_relisten(HandshakeDestination *hd)
{
    if (hd->resume) {
        handshake_resume_listen(hd->resume);
    }
}

void handshake_destination_end(HandshakeDestination *hd)
{
    DestConn *conn;

    if (hd->resume) {
        handshake_resume_end(hd->resume);
    }
    if (!hd->conn) {
        dest_session_end(hd);
    }
    QTAILQ_FOREACH(conn, &hd->conns, next) {
        /* What has come already must not be looked at: the guest may run */
        conn_shutdown(conn);
    }
}
