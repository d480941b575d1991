/*
 * Migration handshake: what all fuzz targets share
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "qemu/bswap.h"
#include "qemu/main-loop.h"
#include "qemu/module.h"
#include "qemu/timer.h"
#include "qapi/error.h"
#include "qapi/qapi-visit-migration-handshake.h"
#include "qapi/qobject-output-visitor.h"
#include "qapi/util.h"
#include "fuzz.h"

/* As message.c bounds them */
#define TEXT_MAX        1024
#define STREAM_NAME_MAX 255
#define SECTIONS_MAX    16384
#define RAM_BLOCKS_MAX  2048
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

static void check_line(const char *text, size_t max)
{
    if (text) {
        g_assert_cmpuint(strlen(text), <=, max);
        g_assert_true(g_utf8_validate(text, -1, NULL));
        for (; *text; text++) {
            g_assert_false(g_ascii_iscntrl(*text));
        }
    }
}

void fuzz_check_text(const char *text)
{
    check_line(text, TEXT_MAX);
}

void fuzz_check_message(const char *text)
{
    check_line(text, 2 * TEXT_MAX + 256);
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
        if (g_str_equal(issue->severity, "error")) {
            /* They come first */
            g_assert_cmpuint(errors++, ==, listed);
        } else if (g_str_equal(issue->severity, "warning")) {
            warnings++;
        } else {
            g_assert_cmpstr(issue->severity, ==, "info");
        }
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

void fuzz_check_hello(const MigrationHandshakeHello *hello)
{
    const MigrationHandshakeCombinationList *c;
    const MigrationProfileSectionList *s;
    const MigrationProfileRAMBlockList *b;
    size_t count = 0;

    g_assert(hello->purpose && hello->profile);
    check_declined(hello->declined);
    for (c = hello->combinations; c; c = c->next) {
        fuzz_check_text(c->value->reason);
    }
    for (s = hello->profile->sections; s; s = s->next) {
        g_assert_cmpuint(strlen(s->value->name), <=, STREAM_NAME_MAX);
        count += QAPI_LIST_LENGTH(s->value->instances) ?: 1;
    }
    g_assert_cmpuint(count, <=, SECTIONS_MAX);
    for (b = hello->profile->ram_blocks; b; b = b->next) {
        g_assert_cmpuint(strlen(b->value->name), <=, STREAM_NAME_MAX);
    }
    g_assert_cmpuint(QAPI_LIST_LENGTH(hello->profile->ram_blocks), <=,
                     RAM_BLOCKS_MAX);
}

void fuzz_check_verdict(const HandshakeVerdict *verdict)
{
    g_autofree char *summary = handshake_issues_summary(&verdict->issues);
    const MigrationHandshakePeer *peer = verdict->message->peer;
    const strList *l;

    fuzz_check_issues(&verdict->issues);
    g_assert_null(verdict->message->issues);
    fuzz_check_text(verdict->message->message);
    check_declined(verdict->message->declined);
    for (l = verdict->message->not_understood; l; l = l->next) {
        fuzz_check_text(l->value);
    }
    /* Two texts and what stands around them */
    g_assert_cmpuint(strlen(summary), <=, 2 * TEXT_MAX + 64);
    if (peer) {
        fuzz_check_text(peer->qemu_version);
        fuzz_check_text(peer->package);
        fuzz_check_text(peer->arch);
        fuzz_check_text(peer->machine);
    }
}

void fuzz_check_info(const MigrationHandshakeInfo *info)
{
    const MigrationHandshakeIssueList *l;
    unsigned listed = 0;

    fuzz_check_message(info->message);
    for (l = info->issues; l; l = l->next) {
        fuzz_check_text(l->value->code);
        fuzz_check_text(l->value->message);
        listed++;
    }
    /* Those of a LAST WORD are behind the verdict's */
    g_assert_cmpuint(listed, <=, 2 * HANDSHAKE_ISSUES_MAX);
    g_assert(!info->has_issues_omitted == !info->issues_omitted);
    check_declined(info->declined);
    for (const strList *c = info->capabilities; c; c = c->next) {
        fuzz_check_text(c->value);
    }
}

QObject *fuzz_hello_object(const MigrationHandshakeHello *hello)
{
    MigrationHandshakeHello *obj = (MigrationHandshakeHello *)hello;
    QObject *result;
    Visitor *v = qobject_output_visitor_new(&result);

    visit_type_MigrationHandshakeHello(v, NULL, &obj, &error_abort);
    visit_complete(v, &result);
    visit_free(v);
    return result;
}

GString *fuzz_payload(GByteArray *buf, HandshakeFrameType type)
{
    GString *json;

    g_assert_cmpuint(buf->len, >=, HANDSHAKE_PREFIX_SIZE);
    g_assert_cmpuint(ldl_be_p(buf->data), ==, buf->len - HANDSHAKE_PREFIX_SIZE);
    g_assert_cmpuint(lduw_be_p(buf->data + 4), ==, type);
    json = g_string_new_len((char *)buf->data + HANDSHAKE_PREFIX_SIZE,
                            buf->len - HANDSHAKE_PREFIX_SIZE);
    g_byte_array_unref(buf);
    return json;
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
    fuzz_one(data, size);
    return 0;
}

/* All is in the main thread, where there is no lock */
bool __wrap_bql_locked(void);

bool __wrap_bql_locked(void)
{
    return true;
}
