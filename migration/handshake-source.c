/*
 * Migration handshake: the source's side of the conversation
 *
 * It runs as a coroutine in the main loop:
 *
 *   channel header, HELLO  ->  wait for the verdict  ->  COMMIT or ABORT
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "block/aio.h"
#include "io/channel-socket.h"
#include "qapi/error.h"
#include "qemu/main-loop.h"
#include "qemu/sockets.h"
#include "qemu/timer.h"
#include "handshake-info.h"
#include "handshake-message.h"
#include "handshake-offer.h"
#include "handshake-policy.h"
#include "handshake-settings.h"
#include "handshake-source.h"
#include "handshake-wire.h"
#include "trace.h"

/* Seconds to wait for the verdict unless the user says otherwise */
#define TIMEOUT_DEFAULT     60

struct HandshakeSource {
    HandshakeWire wire;
    HandshakeHello *hello;
    HandshakeVerdict *verdict;          /* NULL before it has come */
    MigrationHandshakeInfo *info;
    MigrationHandshakeDeclinedList *declined;   /* for reasons of our own */
    QEMUTimer *timer;                   /* NULL if the user wants none */
    uint32_t timeout;                   /* in seconds, 0 = none */
    int64_t since_ms;                   /* when the connection stood */
    bool timed_out;
    bool cancelled;
    int64_t start_ns;
    QemuUUID session;
    Error *err;
    HandshakeSourceDone *done;
    void *opaque;
};

static bool coroutine_fn send_hello(HandshakeSource *hs, Error **errp)
{
    g_autoptr(GByteArray) buf = g_byte_array_new();
    g_autofree char *json = handshake_hello_to_json(hs->hello);
    HandshakeHeader header = { .name = HANDSHAKE_CHANNEL_MAIN };

    handshake_header_put(buf, &header);
    if (!handshake_frame_put(buf, handshake_grease_number(), 0, "{}", errp) ||
        !handshake_frame_put(buf, HANDSHAKE_FRAME_HELLO,
                             HANDSHAKE_FRAME_CRITICAL, json, errp)) {
        return false;
    }
    trace_migration_handshake_source_hello(json);
    hs->start_ns = qemu_clock_get_ns(QEMU_CLOCK_REALTIME);
    return handshake_wire_send(&hs->wire, buf, errp);
}

/* On success, hs->verdict is set, for better or worse */
static bool coroutine_fn read_verdict(HandshakeSource *hs, Error **errp)
{
    ERRP_GUARD();
    g_autoptr(GString) json = NULL;
    HandshakeFrameType type;
    HandshakeHeader header;
    int ret;

    ret = handshake_wire_read_header(&hs->wire, &header, errp);
    if (ret <= 0 && hs->wire.broken && !hs->wire.bytes_received) {
        /* Whether it ended or was reset depends on who was faster */
        error_free(*errp);
        *errp = NULL;
        error_setg(errp, "the connection ended without an answer to the "
                   "migration handshake; does the destination listen on a "
                   "channel of type 'handshake', with the same use of TLS?");
    }
    if (ret > 0 &&
        (strcmp(header.name, HANDSHAKE_CHANNEL_MAIN) || header.index != 0)) {
        error_setg(errp, "migration handshake: the destination took the "
                   "channel for '%s' %" PRIu32, header.name, header.index);
        return false;
    }
    if (ret <= 0) {
        return false;
    }
    if (!handshake_wire_read_frame(&hs->wire, &type, &json, errp)) {
        if (hs->wire.broken) {
            error_prepend(errp, "the connection ended before the verdict of "
                          "the migration handshake: ");
        }
        return false;
    }
    if (type != HANDSHAKE_FRAME_ACCEPT && type != HANDSHAKE_FRAME_REJECT) {
        error_setg(errp, "migration handshake: the destination sent %s "
                   "instead of a verdict", handshake_frame_type_str(type));
        return false;
    }
    trace_migration_handshake_source_verdict(handshake_frame_type_str(type),
                                             json->str);
    hs->verdict = handshake_verdict_from_json(json->str, json->len,
                                              type == HANDSHAKE_FRAME_ACCEPT,
                                              errp);
    if (!hs->verdict && type == HANDSHAKE_FRAME_REJECT) {
        /* The verdict is the frame's type, and this one is clear enough */
        hs->verdict = handshake_verdict_new();
        hs->verdict->message = g_strdup_printf("its reason is malformed: %s",
                                               error_get_pretty(*errp));
        error_free(*errp);
        *errp = NULL;
    }
    if (!hs->verdict) {
        error_prepend(errp, "migration handshake: malformed verdict: ");
        return false;
    }
    hs->session = header.session;
    hs->info->duration =
        (qemu_clock_get_ns(QEMU_CLOCK_REALTIME) - hs->start_ns) / SCALE_US;
    return true;
}

/* Whether this side can do what it has to do, whoever asked for it */
static bool can_do(const HandshakeVerdict *verdict, Error **errp)
{
    const HandshakeJudge *judge = handshake_settings_source_judge();
    g_autoptr(QDict) values = handshake_policy_values(verdict->capabilities,
                                                      verdict->parameters);
    const QDictEntry *entry;

    for (entry = qdict_first(values); entry;
         entry = qdict_next(values, entry)) {
        if (!judge->try_parameter(qdict_entry_key(entry),
                                  qdict_entry_value(entry), judge->opaque,
                                  errp)) {
            return false;
        }
    }
    return judge->try_capabilities(verdict->capabilities, judge->opaque, errp);
}

static bool is_offered(const HandshakeSource *hs, uint32_t version)
{
    const uint32List *v;

    for (v = hs->hello->versions; v; v = v->next) {
        if (v->value == version) {
            return true;
        }
    }
    return false;
}

/* Whether an ACCEPT answers our offer, which has to stand as it was made */
static bool is_valid(const HandshakeSource *hs, Error **errp)
{
    HandshakeVerdict *verdict = hs->verdict;

    if (!is_offered(hs, verdict->version)) {
        error_setg(errp, "the destination chose protocol version %" PRIu32
                   ", which was not offered", verdict->version);
        return false;
    }
    if (qemu_uuid_is_null(&hs->session)) {
        error_setg(errp, "the destination accepted without a session");
        return false;
    }
    return handshake_settings_check(errp) &&
           handshake_policy_check_accept(hs->hello, verdict, errp) &&
           handshake_offer_holds(hs->hello, errp);
}

/* Whether this side agrees to what the destination found and chose */
static bool agree(const HandshakeSource *hs, Error **errp)
{
    const HandshakeVerdict *verdict = hs->verdict;

    if (hs->hello->warnings_as_errors &&
        (verdict->issues.warnings || verdict->issues.errors)) {
        g_autofree char *summary = handshake_issues_summary(&verdict->issues);

        error_setg(errp, "%s", summary);
        return false;
    }
    return can_do(verdict, errp);
}

static bool coroutine_fn send_commit(HandshakeSource *hs, Error **errp)
{
    g_autoptr(GByteArray) buf = g_byte_array_new();
    g_autofree char *digest = handshake_wire_digest(&hs->wire);
    g_autofree char *json = handshake_commit_to_json(digest);

    trace_migration_handshake_source_commit(digest);
    return handshake_frame_put(buf, HANDSHAKE_FRAME_COMMIT,
                               HANDSHAKE_FRAME_CRITICAL, json, errp) &&
           handshake_wire_send(&hs->wire, buf, errp);
}

/* A courtesy: the destination learns why; it would see the end anyway */
static void coroutine_fn send_abort(HandshakeSource *hs, const char *message)
{
    static const HandshakeIssues none;
    g_autoptr(GByteArray) buf = g_byte_array_new();
    g_autofree char *json = handshake_abort_to_json(message, &none);

    trace_migration_handshake_source_abort(message);
    if (handshake_frame_put(buf, HANDSHAKE_FRAME_ABORT,
                            HANDSHAKE_FRAME_CRITICAL, json, NULL)) {
        handshake_wire_send(&hs->wire, buf, NULL);
    }
}

/*
 * Puts what went wrong on the way into words that help on the source.  Returns
 * @status, unless it is the user who did not want to go on.
 */
static MigrationHandshakeStatus explain_failure(HandshakeSource *hs,
                                                MigrationHandshakeStatus status,
                                                Error **errp)
{
    if (hs->cancelled) {
        error_free(*errp);
        *errp = NULL;
        error_setg(errp, "the migration handshake was cancelled");
        return MIGRATION_HANDSHAKE_STATUS_CANCELLED;
    }
    if (hs->timed_out && !hs->verdict) {
        error_free(*errp);
        *errp = NULL;
        error_setg(errp, "no answer to the migration handshake within %"
                   PRIu32 " seconds; does the destination listen on a channel "
                   "of type 'handshake', with the same use of TLS?",
                   hs->timeout);
    }
    return status;
}

/* What came of the verdict, with our own part */
static void note_verdict(HandshakeSource *hs)
{
    MigrationHandshakeDeclinedList **tail;

    if (hs->info->status != MIGRATION_HANDSHAKE_STATUS_ACCEPTED) {
        handshake_verdict_forget_agreement(hs->verdict);
    }
    if (!is_offered(hs, hs->verdict->version)) {
        hs->verdict->version = 0;
    }
    hs->info->peer = g_steal_pointer(&hs->verdict->peer);
    if (!qemu_uuid_is_null(&hs->session)) {
        hs->info->session = qemu_uuid_unparse_strdup(&hs->session);
    }
    tail = &hs->verdict->declined;
    while (*tail) {
        tail = &(*tail)->next;
    }
    *tail = g_steal_pointer(&hs->declined);
    handshake_info_set_verdict(hs->info, hs->verdict);
}

/* Returns what became of it; @errp is set unless that is ACCEPTED */
static MigrationHandshakeStatus coroutine_fn converse(HandshakeSource *hs,
                                                      Error **errp)
{
    ERRP_GUARD();
    MigrationHandshakeStatus status = MIGRATION_HANDSHAKE_STATUS_ACCEPTED;

    if (!send_hello(hs, errp) || !read_verdict(hs, errp)) {
        return explain_failure(hs, MIGRATION_HANDSHAKE_STATUS_FAILED, errp);
    }

    if (!hs->verdict->accept) {
        g_autofree char *reason = hs->verdict->message
            ? g_strdup(hs->verdict->message)
            : handshake_issues_summary(&hs->verdict->issues);

        error_setg(errp, "the destination refused the migration: %s", reason);
        return MIGRATION_HANDSHAKE_STATUS_REJECTED;
    }

    if (hs->cancelled || !is_valid(hs, errp)) {
        status = explain_failure(hs, MIGRATION_HANDSHAKE_STATUS_FAILED, errp);
    } else if (!agree(hs, errp)) {
        status = explain_failure(hs, MIGRATION_HANDSHAKE_STATUS_REJECTED, errp);
    }
    if (hs->info->check_only) {
        /* Nobody waits for our answer */
        return status;
    }
    if (status != MIGRATION_HANDSHAKE_STATUS_ACCEPTED) {
        send_abort(hs, error_get_pretty(*errp));
        return status;
    }

    handshake_settings_take(hs->verdict->capabilities,
                            hs->verdict->parameters);
    if (!send_commit(hs, errp)) {
        status = explain_failure(hs, MIGRATION_HANDSHAKE_STATUS_FAILED, errp);
    }
    return status;
}

static void source_free(HandshakeSource *hs)
{
    timer_free(hs->timer);
    handshake_wire_destroy(&hs->wire);
    handshake_hello_free(hs->hello);
    handshake_verdict_free(hs->verdict);
    qapi_free_MigrationHandshakeDeclinedList(hs->declined);
    qapi_free_MigrationHandshakeInfo(hs->info);
    error_free(hs->err);
    g_free(hs);
    handshake_settings_release();
}

static void report(HandshakeSource *hs)
{
    handshake_info_end(hs->info, hs->verdict ? &hs->verdict->issues : NULL,
                       true);
}

/* Outside of the coroutine, because the whole migration starts from here */
static void source_finish_bh(void *opaque)
{
    HandshakeSource *hs = opaque;

    trace_migration_handshake_source_end(
        hs->err ? error_get_pretty(hs->err) : "agreed");
    if (hs->info->check_only) {
        /* Who hears that it is over must be able to begin something else */
        hs->done(hs->err, &hs->session, hs->opaque);
        report(hs);
    } else {
        report(hs);
        hs->done(hs->err, &hs->session, hs->opaque);
    }
    source_free(hs);
}

static void coroutine_fn source_co(void *opaque)
{
    HandshakeSource *hs = opaque;

    hs->info->status = converse(hs, &hs->err);
    if (hs->verdict) {
        note_verdict(hs);
    }
    if (hs->timer) {
        timer_del(hs->timer);
    }
    if (hs->err) {
        hs->info->message = g_strdup(error_get_pretty(hs->err));
    }
    handshake_info_set_wire(hs->info, &hs->wire);
    aio_bh_schedule_oneshot(qemu_get_aio_context(), source_finish_bh, hs);
}

static void source_timer_cb(void *opaque)
{
    HandshakeSource *hs = opaque;

    hs->timed_out = true;
    qio_channel_shutdown(hs->wire.ioc, QIO_CHANNEL_SHUTDOWN_BOTH, NULL);
}

static void source_start_bh(void *opaque)
{
    HandshakeSource *hs = opaque;

    if (hs->timeout) {
        hs->timer = timer_new_ms(QEMU_CLOCK_REALTIME, source_timer_cb, hs);
        timer_mod(hs->timer, hs->since_ms + hs->timeout * 1000);
    }
    qemu_coroutine_enter(qemu_coroutine_create(source_co, hs));
}

uint32_t handshake_source_timeout(const MigrationHandshakeOptions *options)
{
    return options && options->has_timeout ? options->timeout
                                           : TIMEOUT_DEFAULT;
}

bool handshake_source_check_channel(QIOChannel *ioc, Error **errp)
{
    Object *socket = object_dynamic_cast(OBJECT(ioc), TYPE_QIO_CHANNEL_SOCKET);
    int type = 0;
    socklen_t len = sizeof(type);

    /* A datagram's end never comes, and shutdown() does not wake who waits */
    if (!socket || getsockopt(QIO_CHANNEL_SOCKET(socket)->fd, SOL_SOCKET,
                              SO_TYPE, &type, &len) || type != SOCK_STREAM) {
        error_setg(errp, "Channel type 'handshake' needs a bidirectional "
                   "socket of type stream, which this file descriptor is not");
        return false;
    }
    return true;
}

HandshakeSource *
handshake_source_start(QIOChannel *ioc, bool single, int64_t since_ms,
                       const MigrationHandshakeOptions *options,
                       HandshakeSourceDone *done, void *opaque)
{
    HandshakeSource *hs = g_new0(HandshakeSource, 1);

    handshake_settings_hold();
    /* One that came as fd: may be in any mode */
    qio_channel_set_blocking(ioc, false, NULL);
    /*
     * A peer that has been talked with acknowledges late, as in a dialogue, and
     * small writes would wait for that, those of the stream included
     */
    qio_channel_set_delay(ioc, false);
    handshake_wire_init(&hs->wire, ioc);
    hs->timeout = handshake_source_timeout(options);
    hs->since_ms = since_ms;
    hs->done = done;
    hs->opaque = opaque;
    hs->hello = handshake_offer_new(single, options, &hs->declined);
    hs->info = handshake_info_new(MIGRATION_HANDSHAKE_ROLE_SOURCE,
                                  hs->hello->purpose);
    handshake_info_publish(hs->info);

    /* An fd: transport gets here inside the QMP command */
    aio_bh_schedule_oneshot(qemu_get_aio_context(), source_start_bh, hs);
    return hs;
}

void handshake_source_cancel(HandshakeSource *hs)
{
    hs->cancelled = true;
    qio_channel_shutdown(hs->wire.ioc, QIO_CHANNEL_SHUTDOWN_BOTH, NULL);
}
