/*
 * Migration handshake: the source's side of the conversation
 *
 *   connect, TLS  ->  header, HELLO  ->  verdict  ->  all other channels
 *                 ->  COMMIT         ->  the stream
 *
 * It is one coroutine in the main loop, and up to 32 more that open the other
 * channels.  A check ends with the verdict.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "io/channel-util.h"
#include "qapi/clone-visitor.h"
#include "qapi/error.h"
#include "qapi/qapi-visit-migration.h"
#include "qapi/util.h"
#include "qemu/atomic.h"
#include "qemu/coroutine.h"
#include "qemu/cutils.h"
#include "qemu/main-loop.h"
#include "qemu/sockets.h"
#include "qemu/timer.h"
#include "qemu/yank.h"
#include "conversation.h"
#include "machine.h"
#include "migration/migration.h"
#include "migration/options.h"
#include "migration/qemu-file.h"
#include "migration/yank_functions.h"
#include "settings.h"
#include "trace.h"

/* Seconds; see MigrationHandshakeOptions */
#define TIMEOUT_DEFAULT     60
/* Seconds in which at least one of the other channels has to make a step */
#define PROGRESS_TIMEOUT    5
/* ... and to be answered: the destination, which sees no steps, has 30 */
#define ANSWER_TIMEOUT      20
/* After which an end without an answer may be one of patience */
#define LATE                1
/*
 * How many of them are opened at a time: TLS takes the CPU's time, and many at
 * once would all make their next step late
 */
#define OPENING_MAX         32

/* One of the other channels while it is opened */
typedef struct SourceOpening {
    HandshakeSource *hs;
    const char *capability;             /* that it is for */
    HandshakeHeader header;
    HandshakeChannel *channel;
    bool done;
} SourceOpening;

struct HandshakeSource {
    unsigned attempt;                   /* different for each */
    SocketAddress *addr;
    QIOChannel *fd;                     /* connected already; NULL: @addr */
    MigrationHandshakeOptions *options;
    bool check_only;
    Coroutine *co;
    HandshakeChannel *channel;          /* the main one */
    HandshakeWire wire;
    MigrationHandshakeHello *hello;
    MigrationHandshakeDeclinedList *declined;   /* by this side */
    QemuUUID session;
    HandshakeVerdict *verdict;          /* NULL before it has come */
    MigrationHandshakeInfo *info;
    int64_t start_ns;                   /* when HELLO was sent */
    QEMUTimer *timer;                   /* for all of it, once connected */
    QEMUTimer *progress;                /* for the other channels */
    int64_t answered_ms;                /* when the last one was answered */

    SourceOpening *openings;
    unsigned opening_count;
    unsigned opening_next;              /* the first that nobody opens yet */
    unsigned workers;                   /* coroutines that open them */
    bool waiting;                       /* @co, for the last of these */
    unsigned stalled_s;                 /* so long they made no progress */
    HandshakePlaces *places;
    MigrationHandshakeDeclinedList *without;    /* what had to be given up */
    char *required;                     /* why what is required is not there */

    bool cancelled;
    bool yanked;                        /* atomic */
    bool timed_out;
    Error *err;                         /* why it has failed */
};

static bool source_stopped(const HandshakeSource *hs)
{
    return hs->cancelled || hs->timed_out || qatomic_read(&hs->yanked);
}

static void source_interrupt(HandshakeSource *hs)
{
    handshake_channel_interrupt(hs->channel);
    for (unsigned i = 0; i < hs->opening_count; i++) {
        handshake_channel_interrupt(hs->openings[i].channel);
    }
}

/* The attempt may have ended since somebody wanted it to */
static void source_stop_bh(void *opaque)
{
    MigrationState *s = migrate_get_current();
    HandshakeSource *hs = s->handshake->source;

    if (hs && hs->attempt == GPOINTER_TO_UINT(opaque)) {
        source_interrupt(hs);
    }
    object_unref(OBJECT(s));
}

/* Any thread: coroutines have to be woken in the main one */
static void source_stop(HandshakeSource *hs)
{
    object_ref(OBJECT(migrate_get_current()));
    aio_bh_schedule_oneshot(iohandler_get_aio_context(), source_stop_bh,
                            GUINT_TO_POINTER(hs->attempt));
}

void handshake_source_cancel(HandshakeSource *hs)
{
    hs->cancelled = true;
    source_stop(hs);
}

/* Called by yank, in any thread */
static void source_yank(void *opaque)
{
    HandshakeSource *hs = opaque;

    qatomic_set(&hs->yanked, true);
    source_stop(hs);
}

static void source_timer_cb(void *opaque)
{
    HandshakeSource *hs = opaque;

    hs->timed_out = true;
    source_interrupt(hs);
}

static uint32_t source_timeout(const HandshakeSource *hs)
{
    return hs->options && hs->options->has_timeout ? hs->options->timeout
                                                   : TIMEOUT_DEFAULT;
}

/* The main channel has made a step; the first one is that it is connected */
static void source_connected(void *opaque)
{
    HandshakeSource *hs = opaque;

    if (source_timeout(hs) && !timer_pending(hs->timer)) {
        timer_mod(hs->timer, qemu_clock_get_ms(QEMU_CLOCK_REALTIME) +
                             (int64_t)source_timeout(hs) * 1000);
    }
}

typedef struct SourceCall {
    HandshakeSource *hs;
    bool (*func)(HandshakeSource *hs, Error **errp);
    Error **errp;
    bool ret;
} SourceCall;

static void source_call_bh(void *opaque)
{
    SourceCall *call = opaque;

    call->ret = call->func(call->hs, call->errp);
    aio_co_wake(call->hs->co);
}

/* Calls what must not run in a coroutine: it asks devices, and the host */
static bool coroutine_fn
source_call(HandshakeSource *hs, bool (*func)(HandshakeSource *, Error **),
            Error **errp)
{
    SourceCall call = { hs, func, errp };

    aio_bh_schedule_oneshot(iohandler_get_aio_context(), source_call_bh, &call);
    qemu_coroutine_yield();
    return call.ret;
}

static bool source_make_hello(HandshakeSource *hs, Error **errp)
{
    MigrationHandshakeHello *hello = g_new0(MigrationHandshakeHello, 1);

    hs->hello = hello;
    QAPI_LIST_PREPEND(hello->versions, HANDSHAKE_VERSION);
    hello->purpose = g_strdup(hs->check_only ? HANDSHAKE_PURPOSE_CHECK
                                             : HANDSHAKE_PURPOSE_MIGRATE);
    hello->has_features = true;
    hello->features = handshake_features();
    hello->profile = handshake_profile_new(MIGRATION_HANDSHAKE_ROLE_SOURCE);
    handshake_policy_offer(hs->options, hs->fd != NULL, hello, &hs->declined);
    return true;
}

/*
 * What a destination ends before it says anything may have come too late, or
 * together with many others
 */
static bool coroutine_fn source_send(HandshakeSource *hs, GByteArray *buf,
                                     const char *what, Error **errp)
{
    ERRP_GUARD();

    if (!handshake_wire_send(&hs->wire, buf, errp)) {
        error_prepend(errp, "the destination ended the connection before it "
                      "had all of %s; it may have waited too long, or have had "
                      "too many connections: ", what);
        return false;
    }
    return true;
}

/* Header, a frame that nobody knows, and HELLO, in one piece */
static bool coroutine_fn source_send_hello(HandshakeSource *hs, Error **errp)
{
    g_autoptr(GByteArray) buf = g_byte_array_new();
    HandshakeHeader header = { .name = HANDSHAKE_CHANNEL_MAIN };

    source_call(hs, source_make_hello, &error_abort);
    handshake_header_put(buf, &header);
    handshake_put_grease(buf);
    if (!handshake_put_hello(buf, hs->hello, errp)) {
        return false;
    }
    trace_migration_handshake_source_hello(hs);
    hs->start_ns = qemu_clock_get_ns(QEMU_CLOCK_REALTIME);
    return source_send(hs, buf, "HELLO", errp);
}

/* Who speaks something else, or does not like us, ends it sooner */
static bool source_late(const HandshakeSource *hs)
{
    return qemu_clock_get_ns(QEMU_CLOCK_REALTIME) - hs->start_ns >=
           LATE * NANOSECONDS_PER_SECOND;
}

/* Returns whether the destination's header has come, and is one */
static bool coroutine_fn source_read_header(HandshakeSource *hs, Error **errp)
{
    ERRP_GUARD();
    HandshakeHeader header;
    int ret = handshake_wire_read_header(&hs->wire, &header, errp);

    if (ret == 0 || (ret < 0 && hs->wire.broken)) {
        error_free(*errp);
        *errp = NULL;
        error_setg(errp, "the connection ended without an answer to the "
                   "migration handshake; does the destination %slisten on a "
                   "channel of type 'handshake'%s?%s",
                   migrate_tls() ? "accept this side's TLS credentials "
                                   "('tls-authz'), and " : "",
                   migrate_tls() ? "" : ", with the same use of TLS",
                   source_late(hs) ? " Or it has waited too long, or has had "
                                     "too many connections" : "");
        return false;
    }
    if (ret < 0) {
        return false;
    }
    if (strcmp(header.name, HANDSHAKE_CHANNEL_MAIN) || header.index) {
        error_setg(errp, "migration handshake: the destination took the "
                   "channel for '%s' %" PRIu32, header.name, header.index);
        return false;
    }
    hs->session = header.session;
    return true;
}

static bool coroutine_fn source_read_verdict(HandshakeSource *hs, Error **errp)
{
    ERRP_GUARD();
    g_autoptr(GString) json = NULL;
    HandshakeFrameType type;

    if (!source_read_header(hs, errp)) {
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
    trace_migration_handshake_source_verdict(
        hs, handshake_frame_type_str(type), json->str);
    hs->verdict = handshake_get_verdict(json, type == HANDSHAKE_FRAME_ACCEPT,
                                        errp);
    if (!hs->verdict) {
        error_prepend(errp, "migration handshake: malformed verdict: ");
        return false;
    }
    handshake_issues_ignore(&hs->verdict->issues, hs->hello->ignore);
    hs->info->duration =
        (qemu_clock_get_ns(QEMU_CLOCK_REALTIME) - hs->start_ns) / SCALE_US;
    return true;
}

static bool source_offered(const HandshakeSource *hs, uint32_t version)
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
static bool source_check_accept(HandshakeSource *hs, Error **errp)
{
    uint32_t version = hs->verdict->message->version;

    if (!source_offered(hs, version)) {
        error_setg(errp, "the destination chose protocol version %" PRIu32
                   ", which was not offered", version);
        return false;
    }
    if (qemu_uuid_is_null(&hs->session)) {
        error_setg(errp, "the destination accepted without a session");
        return false;
    }
    return handshake_settings_validate(errp) &&
           handshake_policy_check_accept(hs->hello, hs->verdict, errp) &&
           handshake_policy_offer_holds(hs->hello, errp);
}

/* Whether this side agrees to what the destination found and chose */
static bool source_agree(HandshakeSource *hs, Error **errp)
{
    const HandshakeIssues *issues = &hs->verdict->issues;

    if (hs->hello->warnings_as_errors &&
        handshake_issues_refuse(issues, true)) {
        g_autofree char *summary = handshake_issues_summary(issues);

        error_setg(errp, "%s", summary);
        return false;
    }
    return true;
}

/* A courtesy: the destination learns why; it would see the end anyway */
static void coroutine_fn source_send_abort(HandshakeSource *hs,
                                           const char *message)
{
    g_autoptr(GByteArray) buf = g_byte_array_new();
    const HandshakeIssues none = { 0 };
    const MigrationHandshakeReason reason = { .message = (char *)message };

    trace_migration_handshake_source_abort(hs, message);
    if (handshake_put_reason(buf, HANDSHAKE_FRAME_ABORT, &reason, &none,
                             NULL)) {
        handshake_wire_send(&hs->wire, buf, NULL);
    }
}

/* The channels of @capability are of no use any more */
static void source_interrupt_openings(HandshakeSource *hs,
                                      const char *capability)
{
    for (unsigned i = 0; i < hs->opening_count; i++) {
        if (!capability || !strcmp(hs->openings[i].capability, capability)) {
            handshake_channel_interrupt(hs->openings[i].channel);
        }
    }
}

/* Goes on without what @opening is for, if that is possible */
static void source_opening_failed(SourceOpening *opening, const Error *err)
{
    HandshakeSource *hs = opening->hs;
    const char *capability = opening->capability;
    const MigrationHandshakeDeclinedList *l;
    g_autofree char *uri = socket_uri(hs->addr);
    g_autofree char *reason = NULL;

    for (l = hs->without; l; l = l->next) {
        if (!strcmp(l->value->capability, capability)) {
            return;
        }
    }
    if (source_stopped(hs) || hs->required) {
        return;
    }
    reason = g_strdup_printf("connection '%s' %" PRIu32 " to %s does not get "
                             "through: %s", opening->header.name,
                             opening->header.index, uri, error_get_pretty(err));
    if (hs->stalled_s) {
        g_autofree char *why = g_steal_pointer(&reason);

        reason = g_strdup_printf("%s within %u seconds", why, hs->stalled_s);
    }
    trace_migration_handshake_source_without(hs, capability, reason);
    if (handshake_has_name(hs->hello->profile->required_capabilities,
                           capability)) {
        hs->required = g_strdup_printf("capability '%s' is set, and %s",
                                       capability, reason);
        source_interrupt_openings(hs, NULL);
    } else {
        handshake_declined_add(&hs->without, capability, reason);
        source_interrupt_openings(hs, capability);
    }
}

static void source_progress(void *opaque)
{
    HandshakeSource *hs = opaque;
    int64_t now_ms = qemu_clock_get_ms(QEMU_CLOCK_REALTIME);

    timer_mod(hs->progress, MIN(now_ms + PROGRESS_TIMEOUT * 1000,
                                hs->answered_ms + ANSWER_TIMEOUT * 1000));
}

/* The verdict is the first answer */
static void source_answered(HandshakeSource *hs)
{
    hs->answered_ms = qemu_clock_get_ms(QEMU_CLOCK_REALTIME);
    source_progress(hs);
}

static void coroutine_fn source_worker_co(void *opaque)
{
    HandshakeSource *hs = opaque;

    while (hs->opening_next < hs->opening_count) {
        SourceOpening *opening = &hs->openings[hs->opening_next++];
        HandshakeChannel *channel = opening->channel;
        Error *err = NULL;

        if (!handshake_channel_connect(channel, hs->addr, NULL, &err) ||
            !handshake_channel_greet(channel, &hs->session, &err) ||
            !handshake_places_add(hs->places, &opening->header,
                                  handshake_channel_ioc(channel), &err)) {
            source_opening_failed(opening, err);
            error_free(err);
        } else {
            source_answered(hs);
        }
        opening->done = true;
    }
    if (--hs->workers == 0 && hs->waiting) {
        aio_co_wake(hs->co);
    }
}

static void source_progress_cb(void *opaque)
{
    HandshakeSource *hs = opaque;

    hs->stalled_s = qemu_clock_get_ms(QEMU_CLOCK_REALTIME) <
                    hs->answered_ms + ANSWER_TIMEOUT * 1000
                    ? PROGRESS_TIMEOUT : ANSWER_TIMEOUT;
    for (unsigned i = 0; i < hs->opening_count; i++) {
        if (!hs->openings[i].done) {
            handshake_channel_interrupt(hs->openings[i].channel);
        }
    }
}

static void source_add_openings(HandshakeSource *hs, const char *capability,
                                unsigned count)
{
    const char *name = handshake_policy_channels(capability);

    for (unsigned i = 0; i < count; i++) {
        SourceOpening *opening = &hs->openings[hs->opening_count++];

        opening->hs = hs;
        opening->capability = capability;
        opening->header.index = i;
        opening->header.session = hs->session;
        pstrcpy(opening->header.name, sizeof(opening->header.name), name);
        opening->channel = handshake_channel_new(name, i, source_progress, hs);
    }
}

/* Takes the drop of what does not get through into account */
static bool source_go_without(HandshakeSource *hs, Error **errp)
{
    const MigrationHandshakeDeclinedList *l;

    if (source_stopped(hs)) {
        error_setg(errp, "the source gave up");
        return false;
    }
    if (hs->required) {
        error_setg(errp, "%s", hs->required);
        return false;
    }
    if (!handshake_policy_drop(hs->hello, hs->without, hs->verdict, errp)) {
        return false;
    }
    for (l = hs->without; l; l = l->next) {
        handshake_places_drop(hs->places,
                              handshake_policy_channels(l->value->capability));
    }
    return true;
}

/*
 * Opens all other channels that were agreed on.  Returns true if they stand,
 * but for those of optional capabilities, which are done without.
 */
static bool coroutine_fn source_open_channels(HandshakeSource *hs, Error **errp)
{
    const strList *caps = hs->verdict->message->capabilities;
    g_autoptr(MigrationHandshakeEffective) effective =
        handshake_policy_effective(caps, hs->verdict->message->parameters);
    unsigned multifd = effective->multifd_channels;
    bool preempt = handshake_has_name(caps, "postcopy-preempt");

    hs->places = handshake_places_new(&hs->session, multifd, preempt);
    if ((!multifd && !preempt) || source_stopped(hs)) {
        return source_go_without(hs, errp);
    }
    hs->openings = g_new0(SourceOpening, multifd + preempt);
    source_add_openings(hs, "multifd", multifd);
    source_add_openings(hs, "postcopy-preempt", preempt);
    source_answered(hs);
    hs->workers = MIN(hs->opening_count, OPENING_MAX);
    for (unsigned i = hs->workers; i; i--) {
        qemu_coroutine_enter(qemu_coroutine_create(source_worker_co, hs));
    }
    hs->waiting = true;
    while (hs->workers) {
        qemu_coroutine_yield();
    }
    timer_del(hs->progress);
    return source_go_without(hs, errp);
}

static bool coroutine_fn source_send_commit(HandshakeSource *hs, Error **errp)
{
    g_autoptr(GByteArray) buf = g_byte_array_new();
    g_autofree char *digest = handshake_wire_digest(&hs->wire);
    MigrationHandshakeCommit commit = {
        .digest = digest,
        .has_without = hs->without != NULL,
        .without = hs->without,
    };

    trace_migration_handshake_source_commit(hs, digest);
    return handshake_put_commit(buf, &commit, errp) &&
           source_send(hs, buf, "COMMIT", errp);
}

/* Returns what became of it; @errp is set unless that is ACCEPTED */
static MigrationHandshakeStatus coroutine_fn
source_converse(HandshakeSource *hs, Error **errp)
{
    ERRP_GUARD();

    if (!handshake_channel_connect(hs->channel, hs->addr, hs->fd, errp)) {
        return MIGRATION_HANDSHAKE_STATUS_FAILED;
    }
    handshake_wire_init(&hs->wire, handshake_channel_ioc(hs->channel));
    if (!source_send_hello(hs, errp) || !source_read_verdict(hs, errp)) {
        return MIGRATION_HANDSHAKE_STATUS_FAILED;
    }
    if (!hs->verdict->accept) {
        g_autofree char *reason = hs->verdict->message->message
            ? g_strdup(hs->verdict->message->message)
            : handshake_issues_summary(&hs->verdict->issues);

        error_setg(errp, "the destination refused the migration: %s", reason);
        return MIGRATION_HANDSHAKE_STATUS_REJECTED;
    }
    if (!source_call(hs, source_check_accept, errp)) {
        hs->info->status = MIGRATION_HANDSHAKE_STATUS_FAILED;
    } else if (!source_call(hs, source_agree, errp)) {
        hs->info->status = MIGRATION_HANDSHAKE_STATUS_REJECTED;
    } else if (hs->check_only) {
        return MIGRATION_HANDSHAKE_STATUS_ACCEPTED;
    } else if (!source_open_channels(hs, errp)) {
        hs->info->status = MIGRATION_HANDSHAKE_STATUS_FAILED;
    } else {
        return source_send_commit(hs, errp)
               ? MIGRATION_HANDSHAKE_STATUS_ACCEPTED
               : MIGRATION_HANDSHAKE_STATUS_FAILED;
    }
    if (!hs->check_only) {
        source_send_abort(hs, error_get_pretty(*errp));
    }
    return hs->info->status;
}

/* Whoever has stopped it on this side knows better why it has failed */
static void source_explain(HandshakeSource *hs)
{
    const char *what = hs->check_only ? "check" : "migration";

    if (hs->info->status == MIGRATION_HANDSHAKE_STATUS_ACCEPTED ||
        hs->info->status == MIGRATION_HANDSHAKE_STATUS_REJECTED ||
        !source_stopped(hs)) {
        return;
    }
    if (hs->timed_out && !hs->hello && !hs->cancelled) {
        error_prepend(&hs->err, "within %" PRIu32 " seconds: ",
                      source_timeout(hs));
        return;
    }
    error_free(hs->err);
    hs->err = NULL;
    if (hs->cancelled) {
        hs->info->status = MIGRATION_HANDSHAKE_STATUS_CANCELLED;
        error_setg(&hs->err, "the %s was cancelled", what);
    } else if (!hs->timed_out) {
        error_setg(&hs->err, "the %s was yanked", what);
    } else if (hs->verdict) {
        error_setg(&hs->err, "the channels of the migration were not open "
                   "within %" PRIu32 " seconds", source_timeout(hs));
    } else {
        error_setg(&hs->err, "no answer to the migration handshake within %"
                   PRIu32 " seconds; does the destination listen on a channel "
                   "of type 'handshake', with the same use of TLS?",
                   source_timeout(hs));
    }
}

/* What came of it goes into @info */
static void source_note(HandshakeSource *hs)
{
    MigrationHandshakeVerdict *message;

    hs->info->bytes_sent = hs->wire.bytes_sent;
    hs->info->bytes_received = hs->wire.bytes_received;
    if (hs->err) {
        hs->info->message = g_strdup(error_get_pretty(hs->err));
    }
    if (!hs->verdict) {
        return;
    }
    message = hs->verdict->message;
    if (!source_offered(hs, message->version)) {
        message->version = 0;
    }
    if (!qemu_uuid_is_null(&hs->session)) {
        hs->info->session = qemu_uuid_unparse_strdup(&hs->session);
    }
    for (const MigrationHandshakeDeclinedList *l = hs->declined; l;
         l = l->next) {
        handshake_declined_add(&message->declined, l->value->capability,
                               l->value->reason);
    }
    message->has_declined = message->declined != NULL;
    hs->info->peer = g_steal_pointer(&message->peer);
    handshake_info_set_verdict(hs->info, hs->verdict, hs->info->status ==
                               MIGRATION_HANDSHAKE_STATUS_ACCEPTED);
}

static void source_free(HandshakeSource *hs)
{
    for (unsigned i = 0; i < hs->opening_count; i++) {
        handshake_channel_free(hs->openings[i].channel);
    }
    g_free(hs->openings);
    handshake_channel_free(hs->channel);
    timer_free(hs->timer);
    timer_free(hs->progress);
    handshake_wire_destroy(&hs->wire);
    handshake_places_free(hs->places);
    qapi_free_SocketAddress(hs->addr);
    object_unref(OBJECT(hs->fd));
    qapi_free_MigrationHandshakeOptions(hs->options);
    qapi_free_MigrationHandshakeHello(hs->hello);
    qapi_free_MigrationHandshakeDeclinedList(hs->declined);
    qapi_free_MigrationHandshakeDeclinedList(hs->without);
    handshake_verdict_free(hs->verdict);
    qapi_free_MigrationHandshakeInfo(hs->info);
    g_free(hs->required);
    error_free(hs->err);
    g_free(hs);
    object_unref(OBJECT(migrate_get_current()));
}

/* Both sides have agreed: what follows is a migration as ever */
static void source_begin_stream(HandshakeSource *hs, MigrationState *s)
{
    const MigrationHandshakeVerdict *message = hs->verdict->message;
    g_autoptr(MigrationHandshakeEffective) effective =
        handshake_policy_effective(message->capabilities, message->parameters);
    QIOChannel *ioc = handshake_channel_ioc(hs->channel);

    handshake_settings_apply(message->capabilities, effective);
    s->handshake->in_session = true;
    s->handshake->end = handshake_end_new(message->features);
    s->handshake->places = g_steal_pointer(&hs->places);
    s->handshake->resume_header =
        handshake_has_name(message->features, HANDSHAKE_FEATURE_RESUME_HEADER);
    s->handshake->session = hs->session;

    /* There is always one that a yank finds; it may come from any thread */
    migration_ioc_register_yank(ioc);
    yank_unregister_function(MIGRATION_YANK_INSTANCE, source_yank, hs);
    if (qatomic_read(&hs->yanked)) {
        qio_channel_shutdown(ioc, QIO_CHANNEL_SHUTDOWN_BOTH, NULL);
    }
    migration_outgoing_setup(ioc);
    migration_start_outgoing(s);
}

/* Outside of the coroutine, because the whole migration starts from here */
static void source_finish_bh(void *opaque)
{
    HandshakeSource *hs = opaque;
    MigrationState *s = migrate_get_current();

    trace_migration_handshake_source_end(
        hs, hs->err ? error_get_pretty(hs->err) : "agreed");
    /* Who hears that it is over must be able to begin something else */
    s->handshake->source = NULL;
    handshake_info_end(hs->info, hs->verdict ? &hs->verdict->issues : NULL,
                       NULL);
    if (!hs->err && !hs->check_only &&
        (source_stopped(hs) || s->state != MIGRATION_STATUS_SETUP)) {
        /* It may come after COMMIT was sent */
        error_setg(&hs->err, "the migration was %s",
                   hs->cancelled ? "cancelled" : "yanked");
    }
    if (hs->check_only) {
        /* Nothing of a migration notices */
    } else if (hs->err) {
        yank_unregister_function(MIGRATION_YANK_INSTANCE, source_yank, hs);
        migration_connect_error_propagate(s, g_steal_pointer(&hs->err));
    } else {
        source_begin_stream(hs, s);
    }
    source_free(hs);
}

static void coroutine_fn source_co(void *opaque)
{
    HandshakeSource *hs = opaque;

    hs->info->status = source_converse(hs, &hs->err);
    timer_del(hs->timer);
    source_explain(hs);
    source_note(hs);
    aio_bh_schedule_oneshot(iohandler_get_aio_context(), source_finish_bh, hs);
}

static void source_start_bh(void *opaque)
{
    HandshakeSource *hs = opaque;

    hs->co = qemu_coroutine_create(source_co, hs);
    qemu_coroutine_enter(hs->co);
}

bool handshake_source_is_check(const HandshakeSource *hs)
{
    return hs && hs->check_only;
}

void handshake_source_start(SocketAddress *addr, QIOChannel *ioc,
                            const MigrationHandshakeOptions *options)
{
    MigrationState *s = migrate_get_current();
    HandshakeSource *hs = g_new0(HandshakeSource, 1);

    /* QEMU may quit, and bottom halves that are scheduled run then */
    object_ref(OBJECT(s));
    hs->attempt = ++s->handshake->attempts;
    hs->addr = QAPI_CLONE(SocketAddress, addr);
    hs->fd = ioc ? QIO_CHANNEL(object_ref(OBJECT(ioc))) : NULL;
    hs->options = QAPI_CLONE(MigrationHandshakeOptions, options);
    hs->check_only = options && options->check_only;
    hs->channel = handshake_channel_new(HANDSHAKE_CHANNEL_MAIN, 0,
                                        source_connected, hs);
    hs->timer = timer_new_ms(QEMU_CLOCK_REALTIME, source_timer_cb, hs);
    hs->progress = timer_new_ms(QEMU_CLOCK_REALTIME, source_progress_cb, hs);
    hs->info = handshake_info_new(MIGRATION_HANDSHAKE_ROLE_SOURCE,
                                  hs->check_only);
    handshake_info_publish(hs->info);
    s->handshake->source = hs;
    if (!hs->check_only) {
        yank_register_function(MIGRATION_YANK_INSTANCE, source_yank, hs);
    }
    trace_migration_handshake_source_start(hs, hs->check_only);
    /* The command that has started it must have returned before it can end */
    aio_bh_schedule_oneshot(iohandler_get_aio_context(), source_start_bh, hs);
}
