/*
 * Migration handshake: fuzz the comparison and the negotiation
 *
 * Four bytes say what the destination is like, and how often the parts of the
 * source's profile are there; a HELLO follows.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "qapi/error.h"
#include "qapi/util.h"
#include "../../migration/handshake/conversation.h"
#include "../../migration/handshake/settings.h"
#include "fuzz.h"
#include "stubs.h"

/* As message.c bounds them */
#define SECTIONS_MAX    16384
#define RAM_BLOCKS_MAX  2048

static void set_destination(FuzzInput *in)
{
    const uint8_t what = fuzz_byte(in);

    stubs.incoming = true;
    stubs.no_postcopy = what & 1;
    stubs.other_machine = what & 2;
    if (what & 4) {
        stubs_set_capability(fuzz_byte(in), true);
        stubs_set_capability(fuzz_byte(in), true);
    } else {
        fuzz_u16(in);
    }
}

/* More parts than an input has room for */
static void multiply(MigrationProfile *profile, unsigned times)
{
    size_t sections = 0;
    size_t blocks = QAPI_LIST_LENGTH(profile->ram_blocks);
    size_t own = blocks;
    MigrationProfileSectionList *s;
    MigrationProfileRAMBlockList *b = profile->ram_blocks;

    for (s = profile->sections; s; s = s->next) {
        sections += QAPI_LIST_LENGTH(s->value->instances) ?: 1;
    }
    for (s = profile->sections; s; s = s->next) {
        for (unsigned i = 0; i < times && sections < SECTIONS_MAX; i++) {
            s->value->has_instances = true;
            QAPI_LIST_PREPEND(s->value->instances, i);
            sections++;
        }
    }
    for (size_t i = 0; i < own * times && blocks < RAM_BLOCKS_MAX; i++) {
        MigrationProfileRAMBlock *to = g_memdup2(b->value, sizeof(*b->value));

        to->name = g_strdup_printf("%.200s-%zu", b->value->name, i);
        QAPI_LIST_PREPEND(profile->ram_blocks, to);
        blocks++;
        b = b->next ?: profile->ram_blocks;
    }
}

static void check_effective(const MigrationHandshakeHello *hello,
                            const HandshakeVerdict *verdict)
{
    const MigrationHandshakeVerdict *message = verdict->message;
    const strList *l;

    if (!verdict->accept) {
        g_assert(!message->capabilities && !message->declined &&
                 !message->parameters);
        return;
    }
    g_assert(handshake_has_name(message->capabilities, "return-path"));
    for (l = message->capabilities; l; l = l->next) {
        g_assert(!handshake_has_name(l->next, l->value));
        g_assert(!strcmp(l->value, "return-path") ||
                 handshake_has_name(hello->profile->required_capabilities,
                                    l->value) ||
                 handshake_has_name(hello->optional_capabilities, l->value));
    }
}

/* It says so where something is ignored, and comes from the source's words */
static void check_ignored(const MigrationHandshakeHello *hello,
                          const HandshakeVerdict *verdict)
{
    const MigrationHandshakeIssueList *l;
    unsigned count = 0;

    for (l = verdict->issues.list; l; l = l->next) {
        if (g_str_has_suffix(l->value->message, " (ignored)")) {
            g_autofree char *word = g_strconcat(l->value->code, ":",
                                                l->value->subject, NULL);

            g_assert_cmpstr(l->value->severity, ==, "warning");
            g_assert(handshake_has_name(hello->ignore, l->value->code) ||
                     handshake_has_name(hello->ignore, word));
            count++;
        }
        /* The way back matters to whoever goes */
        g_assert(strcmp(l->value->code, "no-return") || verdict->accept);
    }
    g_assert_cmpuint(count, <=, verdict->issues.ignored);
    g_assert_cmpuint(verdict->issues.ignored, <=, verdict->issues.warnings);
}

/* What this destination says, a source with nothing set would agree to */
static void check_answer(const MigrationHandshakeHello *hello,
                         HandshakeVerdict *verdict)
{
    GByteArray *buf = g_byte_array_new();
    g_autoptr(HandshakeVerdict) read = NULL;
    g_autoptr(GString) json = NULL;

    handshake_put_verdict(buf, verdict, &error_abort);
    json = fuzz_payload(buf, verdict->accept ? HANDSHAKE_FRAME_ACCEPT
                                             : HANDSHAKE_FRAME_REJECT);
    read = handshake_get_verdict(json, verdict->accept, &error_abort);
    fuzz_check_verdict(read);
    if (verdict->accept) {
        stubs_reset();
        handshake_policy_check_accept(hello, read, &error_abort);
    }
}

void fuzz_one(const uint8_t *data, size_t size)
{
    FuzzInput in = { data, data + size };
    g_autoptr(MigrationHandshakeHello) hello = NULL;
    g_autoptr(HandshakeVerdict) verdict = NULL;
    g_autoptr(GString) json = NULL;
    unsigned times;

    stubs_reset();
    set_destination(&in);
    times = fuzz_byte(&in);
    json = g_string_new_len((const char *)in.pos, in.end - in.pos);
    hello = handshake_get_hello(json, NULL, NULL);
    if (!hello) {
        return;
    }
    if (times >= 128) {
        multiply(hello->profile, times - 128);
    }

    verdict = handshake_destination_verdict(hello);
    fuzz_check_verdict(verdict);
    g_assert_cmpint(verdict->accept, ==,
                    !verdict->issues.errors &&
                    !(hello->warnings_as_errors &&
                      verdict->issues.warnings > verdict->issues.ignored));
    check_ignored(hello, verdict);
    g_assert(!verdict->accept == !!verdict->message->message);
    check_effective(hello, verdict);
    stubs_check_idle();
    check_answer(hello, verdict);
}
