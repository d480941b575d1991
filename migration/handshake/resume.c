/*
 * Migration handshake: the channels of a migration that is resumed
 *
 * A postcopy migration that was paused goes on over new channels.  Each begins
 * with a header that names the session, and is answered, so that neither a
 * source that has come to the wrong destination nor a stranger takes part.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "io/channel-tls.h"
#include "qapi/clone-visitor.h"
#include "qapi/error.h"
#include "qapi/qapi-visit-sockets.h"
#include "qemu/atomic.h"
#include "qemu/coroutine.h"
#include "qemu/cutils.h"
#include "qemu/lockable.h"
#include "qemu/main-loop.h"
#include "qemu/queue.h"
#include "qemu/timer.h"
#include "qemu/yank.h"
#include "conversation.h"
#include "migration/channel.h"
#include "migration/migration.h"
#include "migration/options.h"
#include "migration/postcopy-ram.h"
#include "migration/qemu-file.h"
#include "migration/tls.h"
#include "migration/yank_functions.h"
#include "trace.h"

/* Seconds in which a channel is connected and answered, TLS included */
#define ANSWER_TIMEOUT      30
/* Seconds for TLS, for the header, and for reading what is answered */
#define HEADER_TIMEOUT      5
/* Connections that have not said yet what they are */
#define READERS_MAX         8

/*
 * The source: a coroutine in the main loop opens a channel
 */

typedef struct ResumeOpening {
    unsigned refs;                  /* atomic; yank may be late */
    SocketAddress *addr;            /* where to; NULL: @ioc */
    QIOChannel *ioc;                /* connected already, or NULL */
    HandshakeHeader header;
    MigrationHandshakeOpened *done;
    HandshakeChannel *channel;      /* NULL once it is over */
    QEMUTimer *timer;
    bool timed_out;
    bool yanked;                    /* atomic */
    Error *err;
} ResumeOpening;

static void opening_unref(ResumeOpening *opening)
{
    if (qatomic_fetch_dec(&opening->refs) == 1) {
        qapi_free_SocketAddress(opening->addr);
        object_unref(OBJECT(opening->ioc));
        timer_free(opening->timer);
        error_free(opening->err);
        g_free(opening);
        object_unref(OBJECT(migrate_get_current()));
    }
}

static void opening_timer_cb(void *opaque)
{
    ResumeOpening *opening = opaque;

    opening->timed_out = true;
    handshake_channel_interrupt(opening->channel);
}

static void opening_yank_bh(void *opaque)
{
    ResumeOpening *opening = opaque;

    if (opening->channel) {
        handshake_channel_interrupt(opening->channel);
    }
    opening_unref(opening);
}

/* Called by yank, in any thread */
static void opening_yank(void *opaque)
{
    ResumeOpening *opening = opaque;

    qatomic_set(&opening->yanked, true);
    qatomic_inc(&opening->refs);
    aio_bh_schedule_oneshot(iohandler_get_aio_context(), opening_yank_bh,
                            opening);
}

/* There is a time limit for all steps, and nobody to be told of each */
static void opening_progress(void *opaque)
{
}

static bool opening_check_answer(const HandshakeHeader *sent,
                                 const HandshakeHeader *answer, Error **errp)
{
    if (qemu_uuid_is_null(&answer->session)) {
        error_setg(errp, "this destination is paused in another migration");
        return false;
    }
    if (strcmp(answer->name, sent->name) || answer->index != sent->index ||
        !qemu_uuid_is_equal(&answer->session, &sent->session)) {
        error_setg(errp, "the destination has answered for another channel");
        return false;
    }
    return true;
}

static bool coroutine_fn opening_greet(ResumeOpening *opening, Error **errp)
{
    ERRP_GUARD();
    g_autoptr(GByteArray) buf = g_byte_array_new();
    HandshakeHeader answer;
    HandshakeWire wire;
    int ret;

    handshake_header_put(buf, &opening->header);
    handshake_wire_init(&wire, handshake_channel_ioc(opening->channel));
    ret = handshake_wire_send(&wire, buf, errp)
          ? handshake_wire_read_header(&wire, &answer, errp) : 0;
    if (ret == 0 || (ret < 0 && wire.broken)) {
        error_free(*errp);
        *errp = NULL;
        error_setg(errp, "%s; is it paused in this very migration, and does it "
                   "listen there ('migrate-recover'), with the same use of "
                   "TLS?", opening->timed_out ? "no answer from the destination"
                   : "the destination closed the connection without an answer");
    }
    handshake_wire_destroy(&wire);
    return ret > 0 && opening_check_answer(&opening->header, &answer, errp);
}

/* Outside of the coroutine, because the migration goes on from here */
static void opening_finish_bh(void *opaque)
{
    ResumeOpening *opening = opaque;
    HandshakeChannel *channel = g_steal_pointer(&opening->channel);
    Error *err = g_steal_pointer(&opening->err);
    QIOChannel *ioc = handshake_channel_ioc(channel);

    trace_migration_handshake_resume_opened(
        opening->header.name, err ? error_get_pretty(err) : "answered");
    if (err) {
        ioc = NULL;
    } else {
        qio_channel_set_blocking(ioc, true, NULL);
    }
    opening->done(migrate_get_current(), ioc, err);
    /* There is always one that a yank finds; it may come from any thread */
    yank_unregister_function(MIGRATION_YANK_INSTANCE, opening_yank, opening);
    if (ioc && qatomic_read(&opening->yanked)) {
        qio_channel_shutdown(ioc, QIO_CHANNEL_SHUTDOWN_BOTH, NULL);
    }
    handshake_channel_free(channel);
    opening_unref(opening);
}

static void coroutine_fn opening_co(void *opaque)
{
    ResumeOpening *opening = opaque;

    if (handshake_channel_connect(opening->channel, opening->addr, opening->ioc,
                                  &opening->err)) {
        opening_greet(opening, &opening->err);
    }
    timer_del(opening->timer);
    if (opening->err && qatomic_read(&opening->yanked)) {
        error_free(opening->err);
        opening->err = NULL;
        error_setg(&opening->err, "the recovery was yanked");
    } else if (opening->err && opening->timed_out) {
        error_prepend(&opening->err, "within %d seconds: ", ANSWER_TIMEOUT);
    }
    aio_bh_schedule_oneshot(iohandler_get_aio_context(), opening_finish_bh,
                            opening);
}

static void opening_start_bh(void *opaque)
{
    ResumeOpening *opening = opaque;

    opening->channel = handshake_channel_new(opening->header.name, 0,
                                             opening_progress, opening);
    opening->timer = timer_new_ms(QEMU_CLOCK_REALTIME, opening_timer_cb,
                                  opening);
    timer_mod(opening->timer, qemu_clock_get_ms(QEMU_CLOCK_REALTIME) +
                              ANSWER_TIMEOUT * 1000);
    yank_register_function(MIGRATION_YANK_INSTANCE, opening_yank, opening);
    qemu_coroutine_enter(qemu_coroutine_create(opening_co, opening));
}

void handshake_resume_open(const char *name, const QemuUUID *session,
                           SocketAddress *addr, QIOChannel *ioc,
                           MigrationHandshakeOpened *done)
{
    ResumeOpening *opening = g_new0(ResumeOpening, 1);

    /* QEMU may quit, and bottom halves that are scheduled run then */
    object_ref(OBJECT(migrate_get_current()));
    opening->refs = 1;
    opening->addr = QAPI_CLONE(SocketAddress, addr);
    opening->ioc = ioc ? QIO_CHANNEL(object_ref(OBJECT(ioc))) : NULL;
    opening->header.session = *session;
    pstrcpy(opening->header.name, sizeof(opening->header.name), name);
    opening->done = done;
    trace_migration_handshake_resume_open(name);
    aio_bh_schedule_oneshot(iohandler_get_aio_context(), opening_start_bh,
                            opening);
}

/*
 * The destination: its main loop may wait for a page of the guest, with the
 * BQL held, until the migration goes on.  So each connection is read in the
 * thread that has accepted it, which is the monitor's after 'migrate-recover':
 * no coroutine, no BQL.  The lock is never held while something is waited for.
 */

typedef struct ResumeReader {
    HandshakeResume *hr;            /* a reference */
    unsigned refs;                  /* atomic: sources, TLS, the list */
    QIOChannel *ioc;
    GMainContext *context;          /* of the thread; NULL: the main loop */
    GSource *watch;
    GSource *timer;
    uint8_t buf[HANDSHAKE_HEADER_MAX];
    size_t len;                     /* of what has come */
    size_t missing;                 /* how much more has to, at least */
    bool drains;                    /* it was turned away */
    bool gone;                      /* nothing happens with it any more */
    QTAILQ_ENTRY(ResumeReader) next;
} ResumeReader;

struct HandshakeResume {
    unsigned refs;                  /* atomic */
    QemuUUID session;
    QemuMutex lock;                 /* of what follows, and of all readers */
    bool ended;                     /* the migration is over */
    bool preempt;                   /* that channel has come since main did */
    unsigned count;
    QTAILQ_HEAD(, ResumeReader) readers;    /* the oldest first */
};

HandshakeResume *handshake_resume_new(const QemuUUID *session)
{
    HandshakeResume *hr = g_new0(HandshakeResume, 1);

    hr->refs = 1;
    hr->session = *session;
    qemu_mutex_init(&hr->lock);
    QTAILQ_INIT(&hr->readers);
    return hr;
}

void handshake_resume_unref(HandshakeResume *hr)
{
    if (hr && qatomic_fetch_dec(&hr->refs) == 1) {
        qemu_mutex_destroy(&hr->lock);
        g_free(hr);
    }
}

static void reader_unref(void *opaque)
{
    ResumeReader *reader = opaque;

    if (qatomic_fetch_dec(&reader->refs) == 1) {
        g_clear_pointer(&reader->watch, g_source_unref);
        g_clear_pointer(&reader->timer, g_source_unref);
        g_clear_pointer(&reader->context, g_main_context_unref);
        object_unref(OBJECT(reader->ioc));
        handshake_resume_unref(reader->hr);
        g_free(reader);
    }
}

/* Nothing happens with it any more; the caller sees to its channel */
static void reader_remove(ResumeReader *reader)
{
    HandshakeResume *hr = reader->hr;

    reader->gone = true;
    QTAILQ_REMOVE(&hr->readers, reader, next);
    hr->count--;
    if (reader->watch) {
        g_source_destroy(reader->watch);
    }
    if (reader->timer) {
        g_source_destroy(reader->timer);
    }
    reader_unref(reader);
}

static void reader_drop(ResumeReader *reader, const char *why)
{
    trace_migration_handshake_resume_drop(reader->ioc, why);
    qio_channel_shutdown(reader->ioc, QIO_CHANNEL_SHUTDOWN_BOTH, NULL);
    reader_remove(reader);
}

static GSource *reader_attach(ResumeReader *reader, GSource *source,
                              GSourceFunc func)
{
    qatomic_inc(&reader->refs);
    g_source_set_callback(source, func, reader, reader_unref);
    g_source_attach(source, reader->context);
    return source;
}

static gboolean reader_timeout(gpointer opaque)
{
    ResumeReader *reader = opaque;

    QEMU_LOCK_GUARD(&reader->hr->lock);
    if (!reader->gone) {
        reader_drop(reader, "timed out");
    }
    return G_SOURCE_REMOVE;
}

static void reader_set_timer(ResumeReader *reader)
{
    if (reader->timer) {
        g_source_destroy(reader->timer);
        g_source_unref(reader->timer);
    }
    reader->timer = reader_attach(reader,
                                  g_timeout_source_new(HEADER_TIMEOUT * 1000),
                                  reader_timeout);
}

/* A header fits into the buffers of a connection that has carried nothing */
static bool reader_answer(ResumeReader *reader, const HandshakeHeader *header)
{
    g_autoptr(GByteArray) buf = g_byte_array_new();

    handshake_header_put(buf, header);
    return qio_channel_write(reader->ioc, (const char *)buf->data, buf->len,
                             NULL) == buf->len;
}

/* It learns that it is wrong here, and nothing of the session that is right */
static void reader_turn_away(ResumeReader *reader, HandshakeHeader *header)
{
    memset(&header->session, 0, sizeof(header->session));
    trace_migration_handshake_resume_drop(reader->ioc, "another session");
    if (!reader_answer(reader, header) ||
        qio_channel_shutdown(reader->ioc, QIO_CHANNEL_SHUTDOWN_WRITE,
                             NULL) < 0) {
        reader_drop(reader, "cannot be answered");
        return;
    }
    reader->drains = true;
    reader->len = 0;
    reader_set_timer(reader);
}

/* It came while the migration was being paused again, which did not see it */
static void drop_late_preempt(MigrationIncomingState *mis)
{
    QEMU_LOCK_GUARD(&mis->postcopy_prio_thread_mutex);
    if (mis->postcopy_qemufile_dst) {
        migration_ioc_unregister_yank_from_file(mis->postcopy_qemufile_dst);
        qemu_fclose(mis->postcopy_qemufile_dst);
        mis->postcopy_qemufile_dst = NULL;
    }
}

static void reader_take_main(ResumeReader *reader,
                             const HandshakeHeader *header)
{
    g_autoptr(QIOChannel) ioc = NULL;

    if (migration_incoming_get_current()->state !=
        MIGRATION_STATUS_POSTCOPY_PAUSED) {
        reader_drop(reader, "not paused");
        return;
    }
    /* The source sends nothing more before it has read this */
    if (!reader_answer(reader, header)) {
        reader_drop(reader, "cannot be answered");
        return;
    }
    trace_migration_handshake_resume_take(reader->ioc, header->name);
    reader->hr->preempt = false;
    drop_late_preempt(migration_incoming_get_current());
    ioc = QIO_CHANNEL(object_ref(OBJECT(reader->ioc)));
    reader_remove(reader);
    migration_ioc_register_yank(ioc);
    if (migration_incoming_setup(ioc, CH_MAIN, NULL)) {
        migration_start_incoming();
    }
}

static void reader_take_preempt(ResumeReader *reader,
                                const HandshakeHeader *header)
{
    MigrationIncomingState *mis = migration_incoming_get_current();
    HandshakeResume *hr = reader->hr;

    if (mis->state != MIGRATION_STATUS_POSTCOPY_RECOVER ||
        !migrate_postcopy_preempt() || hr->preempt) {
        reader_drop(reader, "no such channel is waited for");
        return;
    }
    trace_migration_handshake_resume_take(reader->ioc, header->name);
    hr->preempt = true;
    migration_ioc_register_yank(reader->ioc);
    /* It has to be there when the source goes on, which is after the answer */
    postcopy_preempt_new_channel(mis, qemu_file_new_input(reader->ioc));
    if (!reader_answer(reader, header)) {
        /* The source gives up, and that ends this channel, too */
        qio_channel_shutdown(reader->ioc, QIO_CHANNEL_SHUTDOWN_BOTH, NULL);
    }
    reader_remove(reader);
}

static void reader_judge(ResumeReader *reader, HandshakeHeader *header)
{
    if (!qemu_uuid_is_equal(&header->session, &reader->hr->session)) {
        reader_turn_away(reader, header);
    } else if (!strcmp(header->name, HANDSHAKE_CHANNEL_MAIN) &&
               !header->index) {
        reader_take_main(reader, header);
    } else if (!strcmp(header->name, HANDSHAKE_CHANNEL_PREEMPT) &&
               !header->index) {
        reader_take_preempt(reader, header);
    } else {
        reader_drop(reader, "no such channel");
    }
}

static void reader_read(ResumeReader *reader)
{
    HandshakeHeader header;
    Error *err = NULL;
    ssize_t len = qio_channel_read(reader->ioc,
                                   (char *)reader->buf + reader->len,
                                   reader->missing, &err);
    int missing;

    if (len == QIO_CHANNEL_ERR_BLOCK) {
        return;
    }
    if (len <= 0) {
        reader_drop(reader, err ? error_get_pretty(err) : "closed");
        error_free(err);
        return;
    }
    reader->len += len;
    reader->missing -= len;
    if (reader->missing) {
        return;
    }
    missing = handshake_header_get(reader->buf, reader->len, &header, &err);
    if (missing < 0) {
        reader_drop(reader, error_get_pretty(err));
        error_free(err);
    } else if (missing) {
        reader->missing = missing;
    } else {
        reader_judge(reader, &header);
    }
}

/* Or a peer that has said more might lose our answer */
static void reader_drain(ResumeReader *reader)
{
    ssize_t len = qio_channel_read(reader->ioc, (char *)reader->buf,
                                   sizeof(reader->buf), NULL);

    if (len == QIO_CHANNEL_ERR_BLOCK) {
        return;
    }
    reader->len += MAX(len, 0);
    if (len <= 0 || reader->len > HANDSHAKE_DRAIN_MAX) {
        reader_drop(reader, "drained");
    }
}

static gboolean reader_ready(QIOChannel *ioc, GIOCondition condition,
                             gpointer opaque)
{
    ResumeReader *reader = opaque;

    QEMU_LOCK_GUARD(&reader->hr->lock);
    if (reader->gone) {
        return G_SOURCE_REMOVE;
    }
    if (reader->drains) {
        reader_drain(reader);
    } else {
        reader_read(reader);
    }
    return reader->gone ? G_SOURCE_REMOVE : G_SOURCE_CONTINUE;
}

static void reader_watch(ResumeReader *reader)
{
    GSource *source = qio_channel_create_watch(reader->ioc, G_IO_IN);

    reader_set_timer(reader);
    reader->watch = reader_attach(reader, source, (GSourceFunc)reader_ready);
}

static void reader_tls_done(QIOTask *task, gpointer opaque)
{
    ResumeReader *reader = opaque;
    Error *err = NULL;

    QEMU_LOCK_GUARD(&reader->hr->lock);
    if (reader->gone) {
        return;
    }
    if (qio_task_propagate_error(task, &err)) {
        reader_drop(reader, error_get_pretty(err));
        error_free(err);
    } else {
        reader_watch(reader);
    }
}

/* Without the lock: it may be over when this returns */
static void reader_negotiate_tls(ResumeReader *reader, QIOChannelTLS *tls)
{
    qio_channel_set_name(QIO_CHANNEL(tls), "migration-tls-incoming");
    qatomic_inc(&reader->refs);
    qio_channel_tls_handshake(tls, reader_tls_done, reader, reader_unref,
                              reader->context);
}

/* Returns a reference to the channel to be read, over TLS if that is used */
static QIOChannel *resume_channel(QIOChannel *ioc, Error **errp)
{
    if (migrate_tls()) {
        QIOChannelTLS *tls = migration_tls_server_create(ioc, errp);

        return tls ? QIO_CHANNEL(tls) : NULL;
    }
    return QIO_CHANNEL(object_ref(OBJECT(ioc)));
}

void handshake_resume_accept(HandshakeResume *hr, QIOChannel *ioc)
{
    Error *err = NULL;
    QIOChannel *channel;
    ResumeReader *reader;
    bool tls;

    trace_migration_handshake_resume_accept(ioc);
    qio_channel_set_blocking(ioc, false, NULL);
    qio_channel_set_delay(ioc, false);
    handshake_ioc_keep_alive(ioc, NULL);
    channel = resume_channel(ioc, &err);
    if (!channel) {
        trace_migration_handshake_resume_drop(ioc, error_get_pretty(err));
        error_free(err);
        qio_channel_shutdown(ioc, QIO_CHANNEL_SHUTDOWN_BOTH, NULL);
        return;
    }
    tls = channel != ioc;
    reader = g_new0(ResumeReader, 1);
    reader->ioc = channel;
    reader->missing = HANDSHAKE_PREFIX_SIZE;
    reader->context = g_main_context_get_thread_default();
    if (reader->context) {
        g_main_context_ref(reader->context);
    }
    qatomic_inc(&hr->refs);
    reader->hr = hr;
    reader->refs = 2;

    WITH_QEMU_LOCK_GUARD(&hr->lock) {
        if (hr->count == READERS_MAX) {
            reader_drop(QTAILQ_FIRST(&hr->readers), "others have come since");
        }
        QTAILQ_INSERT_TAIL(&hr->readers, reader, next);
        hr->count++;
        if (hr->ended) {
            reader_drop(reader, "the migration is over");
        } else if (tls) {
            reader_set_timer(reader);
        } else {
            reader_watch(reader);
        }
    }
    if (tls) {
        reader_negotiate_tls(reader, QIO_CHANNEL_TLS(channel));
    }
    reader_unref(reader);
}

static void resume_drop_readers(HandshakeResume *hr, const char *why)
{
    while (!QTAILQ_EMPTY(&hr->readers)) {
        reader_drop(QTAILQ_FIRST(&hr->readers), why);
    }
}

void handshake_resume_listen(HandshakeResume *hr)
{
    QEMU_LOCK_GUARD(&hr->lock);
    resume_drop_readers(hr, "another address is listened on");
}

void handshake_resume_end(HandshakeResume *hr)
{
    QEMU_LOCK_GUARD(&hr->lock);
    hr->ended = true;
    resume_drop_readers(hr, "the migration is over");
}
