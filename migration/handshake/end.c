/*
 * Migration handshake: the end of a migration in session
 *
 *   source                                   destination
 *     | ==== the stream, to its end ===========> |  loads
 *     | <=== LOADED ============================ |  if it would start the guest
 *     | ==== START ============================> |  the source has decided
 *     | <=== SHUT 0: it runs, else never will == |
 *
 * And a LAST WORD from the destination, whenever it cannot load the guest.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "qapi/error.h"
#include "qapi/qapi-commands-yank.h"
#include "qemu/coroutine.h"
#include "qemu/cutils.h"
#include "qemu/error-report.h"
#include "qemu/lockable.h"
#include "qemu/main-loop.h"
#include "qemu/timer.h"
#include "qemu/yank.h"
#include "conversation.h"
#include "migration/handshake.h"
#include "migration/migration-stats.h"
#include "migration/qemu-file.h"
#include "migration/yank_functions.h"
#include "trace.h"

/* How long a source with an error waits for the destination's reason */
#define LAST_WORD_TIMEOUT_MS    500

/* What is said of a migration that has not been active yet */
#define BEFORE_STREAM   "before the stream began: "

/* How long a destination gives the source to read it */
#define LAST_WORD_DRAIN_MS      2000

/* What is kept of what the loader reports: lines, bytes in all */
#define SAID_LINES_MAX          16
#define SAID_BYTES_MAX          1024

/* Whose guest it is once all of the stream has been sent */
typedef enum HandshakeOwner {
    OWNER_UNDECIDED,
    OWNER_KEPT,
    OWNER_GIVEN,
} HandshakeOwner;

/* The source's view of the end */
struct HandshakeEnd {
    bool late_error;            /* the destination may say a LAST WORD */
    bool one_owner;
    unsigned skipped;           /* frames that nobody knows */
    int owner;                  /* HandshakeOwner; decided once, atomically */
    bool loaded;                /* LOADED has come */
    bool started;               /* after START: the guest runs there */
    bool not_started;           /* it does not, and never will */
    bool remarked;              /* LAST WORD has come, though it has loaded */
    bool told;                  /* the destination has said why */
    bool unexplained;           /* the connection has ended, and that is all */
    bool over;                  /* nothing more comes from there */
    bool yanked;                /* atomic */
    bool gave_up;               /* it is us who end the connection */
    QemuEvent heard;            /* @loaded or @over */
    QEMUTimer *timer;           /* ends the session after an error */
    QemuMutex lock;             /* protects what follows */
    HandshakeIssues issues;     /* that were heard, and are not shown yet */
};

/* What becomes of the guest here in postcopy: decided once, by either thread */
typedef enum HandshakeFate {
    FATE_OPEN,
    FATE_STARTS,
    FATE_NEVER,                 /* so the source is told */
} HandshakeFate;

/* What the loader of a destination has to say */
struct HandshakeLoader {
    bool late_error;
    bool one_owner;
    bool loaded;                /* LOADED has been said */
    bool given;                 /* START has come */
    bool spoken;                /* the LAST WORD has been said */
    bool yanked;                /* atomic */
    HandshakeFate fate;         /* atomic */
    const char *section;        /* that is being loaded */
    QemuMutex lock;             /* protects what follows */
    HandshakeIssues said;
    size_t bytes;
};

/* Returns the payload of a frame after COMMIT, or NULL with @errp set */
static GString *coroutine_mixed_fn
end_read_frame(QEMUFile *f, uint32_t len, uint32_t max, uint16_t *type,
               uint16_t *flags, Error **errp)
{
    g_autoptr(GString) json = NULL;

    *type = qemu_get_be16(f);
    *flags = qemu_get_be16(f);
    if (qemu_file_get_error_obj(f, errp)) {
        return NULL;
    }
    if (len > max) {
        error_setg(errp, "migration handshake: frame of %u bytes after COMMIT, "
                   "at most %u are allowed", len, max);
        return NULL;
    }
    json = g_string_sized_new(len);
    g_string_set_size(json, len);
    qemu_get_buffer(f, (uint8_t *)json->str, len);
    if (qemu_file_get_error_obj(f, errp)) {
        return NULL;
    }
    return g_steal_pointer(&json);
}

/* A frame that has no meaning here.  Returns false with @errp set if it must */
static bool end_skip_frame(uint16_t type, uint16_t flags, unsigned *skipped,
                           Error **errp)
{
    if ((flags & HANDSHAKE_FRAME_CRITICAL) ||
        ++*skipped > HANDSHAKE_UNKNOWN_MAX) {
        error_setg(errp, "migration handshake: unexpected frame of type 0x%04x "
                   "(%s) after COMMIT", type, handshake_frame_type_str(type));
        return false;
    }
    return true;
}

/* Called by yank, in any thread */
static void end_yank(void *opaque)
{
    bool *yanked = opaque;

    qatomic_set(yanked, true);
}

/* Whether somebody has yanked it, and all that comes now is because of that */
static bool end_was_yanked(bool *yanked)
{
    /* A yank that goes from channel to channel has come to all by then */
    yank_unregister_function(MIGRATION_YANK_INSTANCE, end_yank, yanked);
    yank_register_function(MIGRATION_YANK_INSTANCE, end_yank, yanked);
    /* A migration that is paused by it may go on, and fail in another way */
    return qatomic_xchg(yanked, false);
}

/* The source's side */

static void end_session(MigrationState *s)
{
    YankInstanceList migration = { .value = MIGRATION_YANK_INSTANCE };
    HandshakeEnd *end = s->handshake->end;

    if (s->state == MIGRATION_STATUS_SETUP ||
        s->state == MIGRATION_STATUS_ACTIVE ||
        (migration_in_postcopy() && qatomic_read(&end->not_started))) {
        qatomic_set(&end->gave_up, true);
        qmp_yank(&migration, NULL);
    }
}

static void end_timer_cb(void *opaque)
{
    end_session(migrate_get_current());
}

/*
 * A thread of multifd may wait for the end of TLS, and a source for a word from
 * a destination that cannot speak any more.  Postcopy goes on with an error, or
 * waits for somebody to recover.
 */
static void end_session_bh(void *opaque)
{
    MigrationState *s = opaque;
    HandshakeEnd *end = s->handshake->end;

    /* After the migration QEMU may quit */
    if (end && migrate_has_error(s)) {
        if (end->late_error && !qatomic_read(&end->over)) {
            timer_mod(end->timer, qemu_clock_get_ms(QEMU_CLOCK_REALTIME) +
                                  LAST_WORD_TIMEOUT_MS);
        } else {
            end_session(s);
        }
    }
    object_unref(OBJECT(s));
}

void handshake_end_note_error(MigrationState *s, Error **errp)
{
    HandshakeEnd *end = s->handshake->end;

    if (errp && !end->told && end_was_yanked(&end->yanked)) {
        error_free(*errp);
        *errp = NULL;
        error_setg(errp, "the migration was yanked");
    } else if (s->state == MIGRATION_STATUS_SETUP && !end->told) {
        error_prepend(errp, BEFORE_STREAM);
    }
    object_ref(OBJECT(s));
    aio_bh_schedule_oneshot(iohandler_get_aio_context(), end_session_bh, s);
}

HandshakeEnd *handshake_end_new(const strList *features)
{
    HandshakeEnd *end = g_new0(HandshakeEnd, 1);

    end->late_error = handshake_has_name(features,
                                         HANDSHAKE_FEATURE_LATE_ERROR);
    end->one_owner = handshake_has_name(features, HANDSHAKE_FEATURE_ONE_OWNER);
    qemu_event_init(&end->heard, false);
    qemu_mutex_init(&end->lock);
    end->timer = timer_new_ms(QEMU_CLOCK_REALTIME, end_timer_cb, NULL);
    yank_register_function(MIGRATION_YANK_INSTANCE, end_yank, &end->yanked);
    return end;
}

void handshake_end_free(HandshakeEnd *end)
{
    yank_unregister_function(MIGRATION_YANK_INSTANCE, end_yank, &end->yanked);
    timer_free(end->timer);
    qemu_event_destroy(&end->heard);
    handshake_issues_free(&end->issues);
    qemu_mutex_destroy(&end->lock);
    g_free(end);
}

void handshake_end_resume(HandshakeEnd *end)
{
    if (end) {
        qatomic_set(&end->gave_up, false);
        qatomic_set(&end->over, false);
    }
}

void handshake_end_show_issues(HandshakeEnd *end, MigrationHandshakeInfo *info)
{
    HandshakeIssues heard;
    MigrationHandshakeIssueList **tail = &heard.list;
    unsigned count = 0;

    WITH_QEMU_LOCK_GUARD(&end->lock) {
        heard = end->issues;
        memset(&end->issues, 0, sizeof(end->issues));
    }
    if (info->role == MIGRATION_HANDSHAKE_ROLE_SOURCE && !info->check_only) {
        while (*tail) {
            tail = &(*tail)->next;
        }
        *tail = info->issues;
        info->issues = g_steal_pointer(&heard.list);
        for (tail = &info->issues; *tail && count < HANDSHAKE_ISSUES_MAX;
             tail = &(*tail)->next) {
            count++;
        }
        for (const MigrationHandshakeIssueList *l = *tail; l; l = l->next) {
            heard.omitted++;
        }
        g_clear_pointer(tail, qapi_free_MigrationHandshakeIssueList);
        info->issues_omitted += heard.omitted;
        info->has_issues_omitted = info->issues_omitted;
    }
    handshake_issues_free(&heard);
}

/* Returns what a LOADED or a LAST WORD says; its issues are kept */
static MigrationHandshakeReason *end_get_reason(HandshakeEnd *end,
                                                const GString *json)
{
    QEMU_LOCK_GUARD(&end->lock);
    return handshake_get_reason(json, &end->issues);
}

static bool end_read_last_word(HandshakeEnd *end, const GString *json,
                               Error **errp)
{
    g_autoptr(MigrationHandshakeReason) word = end_get_reason(end, json);

    trace_migration_handshake_last_word(json->str);
    if (word->loaded && !end->remarked) {
        /* It only had something to remark; SHUT follows */
        end->remarked = true;
        return true;
    }
    if (!g_strcmp0(word->guest, HANDSHAKE_GUEST_NOT_STARTED)) {
        qatomic_set(&end->not_started, true);
    }
    end->told = true;
    error_setg(errp, "%s (the destination could not load the guest)",
               word->message);
    return false;
}

static bool end_read_loaded(MigrationState *s, const GString *json,
                            Error **errp)
{
    HandshakeEnd *end = s->handshake->end;

    trace_migration_handshake_loaded(json->str);
    if (qatomic_read(&end->loaded) || s->state != MIGRATION_STATUS_DEVICE) {
        error_setg(errp, "migration handshake: LOADED at the wrong time");
        return false;
    }
    qapi_free_MigrationHandshakeReason(end_get_reason(end, json));
    qatomic_set(&end->loaded, true);
    qemu_event_set(&end->heard);
    return true;
}

bool migration_handshake_read_frame(QEMUFile *rp, uint16_t type, uint16_t len,
                                    Error **errp)
{
    MigrationState *s = migrate_get_current();
    HandshakeEnd *end = s->handshake->end;
    g_autoptr(GString) json = NULL;
    uint16_t frame_type, flags;

    if (type || !end || !(end->late_error || end->one_owner)) {
        error_setg(errp, "Received invalid message 0x%04x length 0x%04x",
                   type, len);
        if (!end) {
            migration_handshake_explain_message(type, len, errp);
        }
        return false;
    }
    json = end_read_frame(rp, len, HANDSHAKE_LATE_FRAME_MAX, &frame_type,
                          &flags, errp);
    if (!json) {
        return false;
    }
    if (frame_type == HANDSHAKE_FRAME_LAST_WORD && end->late_error) {
        return end_read_last_word(end, json, errp);
    }
    if (frame_type == HANDSHAKE_FRAME_LOADED && end->one_owner) {
        return end_read_loaded(s, json, errp);
    }
    return end_skip_frame(frame_type, flags, &end->skipped, errp);
}

bool migration_handshake_awaits_word(void)
{
    HandshakeEnd *end = migrate_get_current()->handshake->end;

    return end && end->late_error;
}

/* Of what could not be written it says no more than that */
#define SETUP_FAILED    "ram_save_setup failed: "

/* Without what has been put before it, once it was noted */
static const char *end_what_was_met(const Error *err)
{
    const char *text = error_get_pretty(err);

    strstart(text, BEFORE_STREAM, &text);
    return text;
}

/* Whether a channel has ended, and nothing else: so says who met that first */
static bool end_is_lost(const Error *err)
{
    static const char *const lost[] = {
        SETUP_FAILED,
        "Channel error: ", "Unable to read from socket: ",
        "Unable to write to socket: ", "Cannot read from TLS channel: ",
        "Cannot write to TLS channel: ", "The TLS connection was ",
    };

    for (size_t i = 0; i < ARRAY_SIZE(lost); i++) {
        if (strstart(end_what_was_met(err), lost[i], NULL)) {
            return true;
        }
    }
    return false;
}

/* Whether TCP has given up: of two threads only one is told */
static bool end_is_silence(const Error *err)
{
    const char *text = error_get_pretty(err);

    return g_str_has_suffix(text, strerror(ETIMEDOUT)) ||
           g_str_has_suffix(text, strerror(EHOSTUNREACH));
}

static void end_explain_silence(Error **errp)
{
    g_autofree char *sent = size_to_str(migration_transferred_bytes());

    error_prepend(errp, "the destination's host, or the network, does not "
                  "answer any more, after %s: ", sent);
}

/* Unless the destination has said why */
static void end_explain(MigrationState *s, const uint32_t *shut, Error **errp)
{
    ERRP_GUARD();
    const char *text = error_get_pretty(*errp);
    g_autofree char *sent = size_to_str(migration_transferred_bytes());

    if (shut && *shut) {
        error_free(*errp);
        *errp = NULL;
        error_setg(errp, "the destination could not load the guest, and did "
                   "not say why: see its log");
    } else if (shut || qatomic_read(&s->handshake->end->gave_up)) {
        /* Either all is well, or it is our doing */
    } else if (strstart(text, "MIG_RP_MSG_REQ_PAGES", NULL)) {
        error_prepend(errp, "the destination asked for memory that this guest "
                      "does not have: ");
    } else if (!end_is_lost(*errp) &&
               !qemu_file_get_error(s->rp_state.from_dst_file)) {
        error_prepend(errp, "the destination sent what does not belong on the "
                      "return path: ");
    } else if (end_is_silence(*errp)) {
        end_explain_silence(errp);
    } else {
        s->handshake->end->unexplained = true;
        error_prepend(errp, "the destination ended the connection after %s and "
                      "did not say why, see its log: ", sent);
    }
}

/* Called with error_mutex held */
static void end_set_error(MigrationState *s, Error *err)
{
    error_free(s->error);
    s->error = err;
    s->error_after_cancel = s->state == MIGRATION_STATUS_CANCELLING;
}

void migration_handshake_return_path_ended(MigrationState *s,
                                           const uint32_t *shut, Error **errp)
{
    ERRP_GUARD();
    HandshakeEnd *end = s->handshake->end;

    if (!end) {
        return;
    }
    if (shut && !*shut) {
        qatomic_set(&end->started, true);
    } else if (shut && !migration_in_postcopy()) {
        /* In postcopy it may have run, and a bitmap was lost, say */
        qatomic_set(&end->not_started, true);
    }
    /* Who has not decided by now does not give it away any more */
    qatomic_cmpxchg(&end->owner, OWNER_UNDECIDED, OWNER_KEPT);
    if (qatomic_read(&end->not_started)) {
        qatomic_set(&end->owner, OWNER_KEPT);
    }
    if (s->state != MIGRATION_STATUS_CANCELLING) {
        QEMU_LOCK_GUARD(&s->error_mutex);
        end->unexplained = false;
        if (end->told) {
            /* It knows better than whatever has happened to our channels */
            end_set_error(s, *errp ? error_copy(*errp) : NULL);
        } else if (!s->error && *errp) {
            end_explain(s, shut, errp);
            /* At once: who writes may be about to say what it has met */
            end_set_error(s, error_copy(*errp));
            handshake_end_note_error(s, &s->error);
        } else if (s->error && end_is_lost(s->error)) {
            if (*errp && (end_is_silence(*errp) ||
                          strstart(end_what_was_met(s->error), SETUP_FAILED,
                                   NULL))) {
                end_set_error(s, error_copy(*errp));
            }
            end_explain(s, shut, &s->error);
        }
    }
    trace_migration_handshake_return_path_ended(
        qatomic_read(&end->owner), end->loaded, end->started);
    qatomic_set(&end->over, true);
    qemu_event_set(&end->heard);
    handshake_end_note_error(s, NULL);
}

/* Who writes may be told what who reads was not */
static void end_note_silence(MigrationState *s)
{
    Error *err = NULL;

    QEMU_LOCK_GUARD(&s->error_mutex);
    if (s->handshake->end->unexplained &&
        qemu_file_get_error_obj(s->to_dst_file, &err) && end_is_silence(err)) {
        end_explain_silence(&err);
        end_set_error(s, g_steal_pointer(&err));
    }
    error_free(err);
}

void migration_handshake_await_last_word(MigrationState *s)
{
    HandshakeEnd *end = s->handshake->end;

    if (!end || !end->late_error || !s->rp_state.rp_thread_created ||
        s->state == MIGRATION_STATUS_CANCELLING ||
        !(migrate_has_error(s) || qemu_file_get_error(s->to_dst_file))) {
        return;
    }
    if (qemu_sem_timedwait(&s->rp_state.rp_ended, LAST_WORD_TIMEOUT_MS)) {
        qatomic_set(&end->gave_up, true);
    } else {
        /* Another wait is none */
        qemu_sem_post(&s->rp_state.rp_ended);
    }
    end_note_silence(s);
}

bool migration_handshake_hand_over(MigrationState *s)
{
    HandshakeEnd *end = s->handshake->end;
    g_autoptr(GByteArray) buf = g_byte_array_new();

    if (!end || !end->one_owner || s->state != MIGRATION_STATUS_DEVICE ||
        migrate_has_error(s) || qemu_file_get_error(s->to_dst_file)) {
        migration_handshake_await_last_word(s);
        return true;
    }
    qemu_event_wait(&end->heard);
    if (!qatomic_read(&end->loaded)) {
        /* SHUT has come, or will never */
        return true;
    }
    if (migrate_has_error(s) || qemu_file_get_error(s->to_dst_file) ||
        qatomic_cmpxchg(&end->owner, OWNER_UNDECIDED, OWNER_GIVEN) !=
        OWNER_UNDECIDED) {
        /* Who keeps it sets the state at once, and holds the BQL meanwhile */
        bql_lock();
        bql_unlock();
        return false;
    }
    trace_migration_handshake_start();
    handshake_frame_put(buf, HANDSHAKE_FRAME_START, HANDSHAKE_FRAME_CRITICAL,
                        "{}", &error_abort);
    qemu_put_buffer(s->to_dst_file, buf->data, buf->len);
    if (qemu_fflush(s->to_dst_file) < 0) {
        /* It has not got all of it, and will never start the guest */
        qatomic_set(&end->owner, OWNER_KEPT);
    }
    return true;
}

void migration_handshake_explain_doubt(MigrationState *s)
{
    /* Who could not write to the end does not know why */
    migration_handshake_await_last_word(s);
    if (!migration_handshake_given(s) || migration_handshake_started(s)) {
        return;
    }
    QEMU_LOCK_GUARD(&s->error_mutex);
    if (!s->error) {
        Error *err = NULL;

        error_setg(&err, "nothing more came");
        end_set_error(s, err);
    }
    error_prepend(&s->error, "the destination was told to start the guest, and "
                  "the connection ended before it said that it has: see there "
                  "whether the guest runs; only if it does not, end that QEMU, "
                  "and continue the guest here with 'cont': ");
}

bool migration_handshake_keep(Error **errp)
{
    HandshakeEnd *end = migrate_get_current()->handshake->end;

    /* Once all is over there is nothing to cancel, which is no error */
    if (end && migration_is_running() &&
        qatomic_cmpxchg(&end->owner, OWNER_UNDECIDED, OWNER_KEPT) ==
        OWNER_GIVEN) {
        error_setg(errp, "The guest has been handed over to the destination; "
                   "it is too late to cancel");
        return false;
    }
    return true;
}

bool migration_handshake_given(MigrationState *s)
{
    HandshakeEnd *end = s->handshake->end;

    return end && qatomic_read(&end->owner) == OWNER_GIVEN;
}

bool migration_handshake_started(MigrationState *s)
{
    return migration_handshake_given(s) &&
           qatomic_read(&s->handshake->end->started);
}

bool migration_handshake_never_started(MigrationState *s)
{
    HandshakeEnd *end = s->handshake->end;

    return end && qatomic_read(&end->not_started);
}

bool migration_handshake_may_run(MigrationState *s)
{
    HandshakeEnd *end = s->handshake->end;

    return end && end->late_error && !qatomic_read(&end->not_started);
}

/* The destination's side */

static void loader_add(HandshakeIssues *issues, HandshakeSeverity severity,
                       const char *section, const char *text)
{
    handshake_issue_add(issues, "load", severity, section, NULL, NULL, "%s",
                        text);
}

/* What somebody has met who loads, with what that means */
static char *loader_text(HandshakeLoader *loader, const char *text)
{
    QEMUFile *f = migration_incoming_get_current()->from_src_file;

    return handshake_explain_loading(text, qatomic_read(&loader->section),
                                     f ? qemu_file_position(f) : 0);
}

/* Called for each error that is reported, in a thread that loads */
static void G_GNUC_PRINTF(1, 0) loader_hear(const char *fmt, va_list ap)
{
    HandshakeLoader *loader = migration_incoming_get_current()->loader;
    g_autofree char *text = g_strdup_vprintf(fmt, ap);

    if (!loader) {
        return;
    }
    QEMU_LOCK_GUARD(&loader->lock);
    if (!loader->said.listed) {
        char *raw = g_steal_pointer(&text);

        text = loader_text(loader, raw);
        g_free(raw);
    }
    if (!loader->said.listed ||
        (loader->said.listed < SAID_LINES_MAX &&
         loader->bytes + strlen(text) <= SAID_BYTES_MAX)) {
        loader->bytes += strlen(text);
        loader_add(&loader->said, HANDSHAKE_ERROR,
                   qatomic_read(&loader->section), text);
    }
}

/* In the main thread: much else may report errors while the loader waits */
static void G_GNUC_PRINTF(1, 0) loader_hear_main(const char *fmt, va_list ap)
{
    if (qemu_in_coroutine() && qemu_coroutine_self() ==
                               migration_incoming_get_current()->loadvm_co) {
        loader_hear(fmt, ap);
    }
}

static void loader_yank_bh(void *opaque)
{
    MigrationIncomingState *mis = migration_incoming_get_current();

    if (mis->loader && mis->from_src_file && !mis->have_listen_thread) {
        handshake_ioc_interrupt(qemu_file_get_ioc(mis->from_src_file));
    }
    object_unref(OBJECT(migrate_get_current()));
}

/* Called by yank, in any thread: a loader that waits for room is not woken */
static void loader_yank(void *opaque)
{
    object_ref(OBJECT(migrate_get_current()));
    aio_bh_schedule_oneshot(iohandler_get_aio_context(), loader_yank_bh, NULL);
}

HandshakeLoader *handshake_loader_new(const strList *features)
{
    HandshakeLoader *loader = g_new0(HandshakeLoader, 1);

    loader->late_error = handshake_has_name(features,
                                            HANDSHAKE_FEATURE_LATE_ERROR);
    loader->one_owner = handshake_has_name(features,
                                           HANDSHAKE_FEATURE_ONE_OWNER);
    qemu_mutex_init(&loader->lock);
    error_report_set_listener(loader_hear_main);
    yank_register_function(MIGRATION_YANK_INSTANCE, loader_yank, loader);
    yank_register_function(MIGRATION_YANK_INSTANCE, end_yank, &loader->yanked);
    return loader;
}

void handshake_loader_free(HandshakeLoader *loader)
{
    if (loader) {
        yank_unregister_function(MIGRATION_YANK_INSTANCE, end_yank,
                                 &loader->yanked);
        yank_unregister_function(MIGRATION_YANK_INSTANCE, loader_yank, loader);
        error_report_set_listener(NULL);
        handshake_issues_free(&loader->said);
        qemu_mutex_destroy(&loader->lock);
        g_free(loader);
    }
}

void migration_handshake_loader_thread(void)
{
    if (migration_incoming_get_current()->loader) {
        error_report_set_listener(loader_hear);
    }
}

void migration_handshake_loading(const char *section)
{
    HandshakeLoader *loader = migration_incoming_get_current()->loader;

    if (loader) {
        qatomic_set(&loader->section, section);
    }
}

/*
 * Straight to the channel, since the loader may not have opened the return path
 * yet; it is the same connection.  Once there is a postcopy thread, the channel
 * blocks, others ask for pages over it, and the loader must not yield: what the
 * source does not take at once is lost then.
 */
static bool coroutine_mixed_fn loader_send(MigrationIncomingState *mis,
                                           HandshakeFrameType type,
                                           MigrationHandshakeReason *reason,
                                           const HandshakeIssues *issues)
{
    QIOChannel *ioc = qemu_file_get_ioc(mis->from_src_file);
    g_autoptr(GByteArray) buf = g_byte_array_new();
    HandshakeWire wire = { 0 };
    bool ok;

    if (!handshake_put_reason(buf, type, reason, issues, NULL)) {
        return false;
    }
    if (!qemu_in_coroutine() || mis->have_listen_thread) {
        return migrate_send_rp_at_once(mis, ioc, buf->data, buf->len);
    }
    handshake_wire_init(&wire, ioc);
    ok = handshake_wire_send(&wire, buf, NULL);
    handshake_wire_destroy(&wire);
    return ok;
}

static void loader_timer_cb(void *opaque)
{
    handshake_ioc_interrupt(opaque);
}

/*
 * What the source has not read yet must not get lost when the connection is
 * closed with bytes of the stream unread
 */
static void coroutine_fn loader_drain(MigrationIncomingState *mis)
{
    QIOChannel *ioc = qemu_file_get_ioc(mis->from_src_file);
    HandshakeWire wire = { 0 };

    handshake_wire_init(&wire, ioc);
    handshake_wire_drain(&wire);
    handshake_wire_destroy(&wire);
}

/*
 * Without what every failure says: "load of migration failed: Invalid argument"
 * is not the cause of anything
 */
static const char *loader_cause(const char *text)
{
    const char *rest;

    if (!strstart(text, "load of migration failed: ", &rest)) {
        return text;
    }
    rest = strstr(rest, ": ");
    return rest ? rest + 2 : NULL;
}

/* Adds what was heard, and forgets it */
static void loader_take_said(HandshakeLoader *loader,
                             HandshakeSeverity severity,
                             HandshakeIssues *issues)
{
    QEMU_LOCK_GUARD(&loader->lock);
    for (const MigrationHandshakeIssueList *l = loader->said.list; l;
         l = l->next) {
        loader_add(issues, severity, l->value->subject, l->value->message);
    }
    handshake_issues_free(&loader->said);
}

/* Whether the source is gone; what was heard then is but a consequence */
static bool loader_lost_source(MigrationIncomingState *mis, Error **errp)
{
    Error *err = NULL;

    if (mis->loader->loaded ||
        qemu_file_get_error_obj(mis->from_src_file, &err) != -EIO) {
        error_free(err);
        return false;
    }
    if (end_was_yanked(&mis->loader->yanked)) {
        error_setg(errp, "the migration was yanked");
    } else if (strstart(error_get_pretty(err), "Channel error", NULL)) {
        error_setg(errp, "the source ended the connection before the migration "
                   "was complete: it was cancelled there, or failed");
    } else {
        error_setg(errp, "the connection to the source broke: %s",
                   error_get_pretty(err));
    }
    error_free(err);
    return true;
}

/* Returns why loading has failed, the cause first: at least one issue */
static HandshakeIssues loader_explain(MigrationIncomingState *mis,
                                      const Error *err)
{
    MigrationState *s = migrate_get_current();
    HandshakeIssues why = { 0 };
    const char *cause = loader_cause(error_get_pretty(err));
    g_autofree char *text = NULL;
    Error *lost = NULL;

    if (migrate_has_error(s) && !mis->have_listen_thread) {
        /* Of another thread, and the first one; that of postcopy is none */
        QEMU_LOCK_GUARD(&s->error_mutex);
        loader_add(&why, HANDSHAKE_ERROR, NULL, error_get_pretty(s->error));
    } else if (loader_lost_source(mis, &lost)) {
        loader_add(&why, HANDSHAKE_ERROR, NULL, error_get_pretty(lost));
        error_free(lost);
        return why;
    }
    loader_take_said(mis->loader, HANDSHAKE_ERROR, &why);
    if (!why.listed) {
        text = loader_text(mis->loader, cause ?: error_get_pretty(err));
        loader_add(&why, HANDSHAKE_ERROR, NULL, text);
    } else if (cause) {
        loader_add(&why, HANDSHAKE_ERROR, NULL, cause);
    }
    return why;
}

void handshake_loader_note_error(HandshakeLoader *loader, Error **errp)
{
    g_autofree char *text = handshake_explain_loading(error_get_pretty(*errp),
                                                      NULL, 0);

    if (!qatomic_read(&loader->spoken)) {
        error_free(*errp);
        *errp = NULL;
        error_setg(errp, "%s", end_was_yanked(&loader->yanked)
                   ? "the migration was yanked" : text);
    }
}

bool migration_handshake_postcopy_starts(void)
{
    HandshakeLoader *loader = migration_incoming_get_current()->loader;

    return !loader || qatomic_cmpxchg(&loader->fate, FATE_OPEN, FATE_STARTS) !=
                      FATE_NEVER;
}

static void coroutine_mixed_fn loader_speak(MigrationIncomingState *mis,
                                            const HandshakeIssues *why)
{
    bool dialogue = qemu_in_coroutine() && !mis->have_listen_thread;
    MigrationHandshakeReason word = {
        .message = why->list->value->message,
    };
    QEMUTimer *timer = NULL;

    if (qatomic_cmpxchg(&mis->loader->fate, FATE_OPEN, FATE_NEVER) !=
        FATE_STARTS) {
        word.guest = (char *)HANDSHAKE_GUEST_NOT_STARTED;
    }
    if (dialogue) {
        timer = timer_new_ms(QEMU_CLOCK_REALTIME, loader_timer_cb,
                             qemu_file_get_ioc(mis->from_src_file));
        timer_mod(timer, qemu_clock_get_ms(QEMU_CLOCK_REALTIME) +
                         LAST_WORD_DRAIN_MS);
    }
    if (loader_send(mis, HANDSHAKE_FRAME_LAST_WORD, &word, why) && dialogue) {
        loader_drain(mis);
    }
    timer_free(timer);
}

void coroutine_mixed_fn migration_handshake_load_failed(Error **errp)
{
    ERRP_GUARD();
    MigrationIncomingState *mis = migration_incoming_get_current();
    MigrationState *s = migrate_get_current();
    HandshakeLoader *loader = mis->loader;
    g_autoptr(GString) text = g_string_new("load of migration failed");
    HandshakeIssues why;

    if (!loader || qatomic_xchg(&loader->spoken, true)) {
        return;
    }
    why = loader_explain(mis, *errp);
    for (const MigrationHandshakeIssueList *l = why.list; l; l = l->next) {
        g_string_append_printf(text, "%s%s", l == why.list ? ": " : "; ",
                               l->value->message);
    }
    trace_migration_handshake_load_failed(text->str);
    error_free(*errp);
    *errp = NULL;
    error_setg(errp, "%s", text->str);
    if (mis->have_listen_thread) {
        /* Before the source closes the connection, which another one meets */
        QEMU_LOCK_GUARD(&s->error_mutex);
        if (!s->error) {
            end_set_error(s, error_copy(*errp));
        }
    }
    if (loader->late_error) {
        loader_speak(mis, &why);
    }
    handshake_issues_free(&why);
}

static void loader_stop_bh(void *opaque)
{
    MigrationIncomingState *mis = migration_incoming_get_current();

    if (mis->loader && mis->loadvm_co) {
        qio_channel_shutdown(qemu_file_get_ioc(mis->from_src_file),
                             QIO_CHANNEL_SHUTDOWN_READ, NULL);
    }
    object_unref(OBJECT(migrate_get_current()));
}

void migration_handshake_stop_loading(void)
{
    if (migration_incoming_get_current()->loader) {
        object_ref(OBJECT(migrate_get_current()));
        aio_bh_schedule_oneshot(iohandler_get_aio_context(), loader_stop_bh,
                                NULL);
    }
}

/* Returns true once the source has given the guest away */
static bool coroutine_fn loader_await_start(MigrationIncomingState *mis,
                                            Error **errp)
{
    QEMUFile *f = mis->from_src_file;
    unsigned skipped = 0;

    while (true) {
        g_autoptr(GString) json = NULL;
        uint32_t len = qemu_get_be32(f);
        uint16_t type, flags;

        if (qemu_file_get_error(f)) {
            error_setg(errp, "%s had given the guest to this QEMU, which does "
                       "not start it", end_was_yanked(&mis->loader->yanked)
                       ? "the migration was yanked before the source"
                       : "the source went away before it");
            return false;
        }
        json = end_read_frame(f, len, HANDSHAKE_FRAME_MAX, &type, &flags, errp);
        if (!json) {
            return false;
        }
        if (type == HANDSHAKE_FRAME_START) {
            trace_migration_handshake_start();
            mis->loader->given = true;
            return true;
        }
        if (type == HANDSHAKE_FRAME_ABORT) {
            g_autoptr(MigrationHandshakeReason) reason =
                handshake_get_reason(json, NULL);

            error_setg(errp, "the source keeps the guest: %s", reason->message);
            return false;
        }
        if (!end_skip_frame(type, flags, &skipped, errp)) {
            return false;
        }
    }
}

bool coroutine_fn migration_handshake_loaded(bool starts, Error **errp)
{
    MigrationIncomingState *mis = migration_incoming_get_current();
    HandshakeLoader *loader = mis->loader;
    MigrationHandshakeReason word = { 0 };
    HandshakeIssues remarks = { 0 };
    bool ok = true;

    if (!loader || !mis->to_src_file) {
        return true;
    }
    loader_take_said(loader, HANDSHAKE_WARNING, &remarks);
    if (loader->one_owner && starts) {
        loader->loaded = true;
        loader_send(mis, HANDSHAKE_FRAME_LOADED, &word, &remarks);
        ok = loader_await_start(mis, errp);
    } else if (loader->late_error && remarks.listed) {
        word.has_loaded = word.loaded = true;
        loader_send(mis, HANDSHAKE_FRAME_LAST_WORD, &word, &remarks);
    }
    handshake_issues_free(&remarks);
    return ok;
}

bool migration_handshake_must_ask(void)
{
    MigrationIncomingState *mis = migration_incoming_get_current();

    return mis->loader && mis->loader->one_owner && !mis->loader->given &&
           mis->to_src_file;
}

bool migration_handshake_has_guest(void)
{
    HandshakeLoader *loader = migration_incoming_get_current()->loader;

    return loader && loader->given;
}
