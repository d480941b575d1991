/*
 * Migration handshake: what all fuzz targets share
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "qapi/error.h"
#include "qemu/main-loop.h"
#include "qemu/module.h"
#include "qemu/timer.h"
#include "qobject/qjson.h"
#include "../migration/handshake-wire.h"
#include "fuzz.h"
#include "stubs.h"

/* As handshake_text() cuts it */
#define TEXT_MAX        1024
/* Far more turns than any input takes */
#define TURNS_MAX       100000

int LLVMFuzzerInitialize(int *argc, char ***argv);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/*
 * The linker puts these in the place of the real ones, so that an input does
 * the same each time.
 */
int __wrap_clock_gettime(clockid_t id, struct timespec *ts);
void __wrap_qemu_guest_getrandom_nofail(void *buf, size_t len);

static int64_t now_ns = NANOSECONDS_PER_SECOND;

int __wrap_clock_gettime(clockid_t id, struct timespec *ts)
{
    ts->tv_sec = now_ns / NANOSECONDS_PER_SECOND;
    ts->tv_nsec = now_ns % NANOSECONDS_PER_SECOND;
    return 0;
}

void __wrap_qemu_guest_getrandom_nofail(void *buf, size_t len)
{
    for (size_t i = 0; i < len; i++) {
        ((uint8_t *)buf)[i] = g_random_int();
    }
}

uint8_t fuzz_byte(FuzzInput *in)
{
    return in->pos < in->end ? *in->pos++ : 0;
}

uint16_t fuzz_u16(FuzzInput *in)
{
    uint16_t high = fuzz_byte(in);

    return high << 8 | fuzz_byte(in);
}

const uint8_t *fuzz_bytes(FuzzInput *in, size_t *len)
{
    const uint8_t *bytes = in->pos;

    *len = MIN(*len, in->end - in->pos);
    in->pos += *len;
    return bytes;
}

void fuzz_run(void)
{
    int turns = 0;

    while (g_main_context_iteration(NULL, false)) {
        g_assert_cmpint(turns++, <, TURNS_MAX);
    }
}

void fuzz_advance(int64_t ms)
{
    now_ns += ms * SCALE_MS;
    qemu_clock_run_all_timers();
    fuzz_run();
}

void fuzz_check_text(const char *text)
{
    if (text) {
        g_assert_cmpuint(strlen(text), <=, TEXT_MAX);
        g_assert_true(g_utf8_validate(text, -1, NULL));
        for (; *text; text++) {
            g_assert_false(g_ascii_iscntrl(*text));
        }
    }
}

void fuzz_check_issues(const HandshakeIssues *issues)
{
    const MigrationHandshakeIssueList *l;
    unsigned listed = 0;
    unsigned errors = 0;
    unsigned warnings = 0;

    for (l = issues->list; l; l = l->next) {
        const MigrationHandshakeIssue *issue = l->value;

        g_assert(issue->code && issue->message);
        fuzz_check_text(issue->code);
        fuzz_check_text(issue->subject);
        fuzz_check_text(issue->source);
        fuzz_check_text(issue->destination);
        fuzz_check_text(issue->message);
        errors += issue->severity == MIGRATION_HANDSHAKE_SEVERITY_ERROR;
        warnings += issue->severity == MIGRATION_HANDSHAKE_SEVERITY_WARNING;
        listed++;
    }
    g_assert_cmpuint(listed, ==, issues->listed);
    g_assert_cmpuint(listed, <=, HANDSHAKE_ISSUES_MAX);
    g_assert_cmpuint(issues->errors, >=, errors);
    g_assert_cmpuint(issues->warnings, >=, warnings);
    g_assert_cmpuint(issues->errors - errors + issues->warnings - warnings, <=,
                     issues->omitted);
}

static void check_declined(const MigrationHandshakeDeclinedList *l)
{
    for (; l; l = l->next) {
        g_assert(l->value->capability && l->value->reason);
        fuzz_check_text(l->value->capability);
        fuzz_check_text(l->value->reason);
    }
}

void fuzz_check_hello(const HandshakeHello *hello)
{
    const HandshakeProfile *profile = hello->profile;
    const GPtrArray *sections = profile->sections;
    const GPtrArray *blocks = profile->ram_blocks;

    g_assert(hello->purpose);
    check_declined(hello->declined);
    if (sections) {
        g_assert_cmpuint(sections->len, <=, HANDSHAKE_SECTIONS_MAX);
        for (guint i = 0; i < sections->len; i++) {
            const HandshakeSection *s = g_ptr_array_index(sections, i);

            g_assert_cmpuint(strlen(s->name), <=, HANDSHAKE_STREAM_NAME_MAX);
            g_assert(!s->minimum && !s->idle);
        }
    }
    if (blocks) {
        g_assert_cmpuint(blocks->len, <=, HANDSHAKE_RAM_BLOCKS_MAX);
        for (guint i = 0; i < blocks->len; i++) {
            const HandshakeRAMBlock *b = g_ptr_array_index(blocks, i);

            g_assert_cmpuint(strlen(b->name), <=, HANDSHAKE_STREAM_NAME_MAX);
        }
    }
}

void fuzz_check_verdict(const HandshakeVerdict *verdict)
{
    g_autofree char *summary = handshake_issues_summary(&verdict->issues);
    const MigrationHandshakePeer *peer = verdict->peer;

    fuzz_check_issues(&verdict->issues);
    check_declined(verdict->declined);
    /* Two texts and what stands around them */
    g_assert_cmpuint(strlen(summary), <=, 2 * TEXT_MAX + 64);
    if (peer) {
        fuzz_check_text(peer->qemu_version);
        fuzz_check_text(peer->package);
        fuzz_check_text(peer->arch);
        fuzz_check_text(peer->machine);
    }
}

char *fuzz_json(QDict *dict)
{
    g_autoptr(GString) json = qobject_to_json(QOBJECT(dict));

    qobject_unref(dict);
    return g_strdup(json->str);
}

int LLVMFuzzerInitialize(int *argc, char ***argv)
{
    sigset_t set;

    /* As QEMU does */
    signal(SIGPIPE, SIG_IGN);
    module_call_init(MODULE_INIT_QOM);
    qemu_init_main_loop(&error_abort);
    /* It blocks the signal that tells libFuzzer of an input that hangs */
    sigemptyset(&set);
    sigaddset(&set, SIGALRM);
    pthread_sigmask(SIG_UNBLOCK, &set, NULL);
    return 0;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    g_random_set_seed(1);
    /* What is limited to one a second is so within an input */
    fuzz_advance(2000);
    stubs_reset();
    fuzz_one(data, size);
    return 0;
}
