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
#include "../migration/handshake-json.h"
#include "../migration/handshake-judge.h"
#include "../migration/handshake-policy.h"
#include "../migration/handshake-wire.h"
#include "fuzz.h"
#include "stubs.h"

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
static void multiply(HandshakeProfile *profile, unsigned times)
{
    const guint sections = profile->sections ? profile->sections->len : 0;
    const guint blocks = profile->ram_blocks ? profile->ram_blocks->len : 0;

    for (guint i = 0; i < sections * times &&
                      profile->sections->len < HANDSHAKE_SECTIONS_MAX; i++) {
        HandshakeSection *from = g_ptr_array_index(profile->sections,
                                                   i % sections);
        HandshakeSection *to = handshake_sections_add(profile->sections,
                                                      from->name);

        to->instance = from->instance + 1 + i / sections;
        to->version = from->version;
        to->conditional = from->conditional;
    }
    for (guint i = 0; i < blocks * times &&
                      profile->ram_blocks->len < HANDSHAKE_RAM_BLOCKS_MAX;
         i++) {
        HandshakeRAMBlock *from = g_ptr_array_index(profile->ram_blocks,
                                                    i % blocks);
        g_autofree char *name = g_strdup_printf("%.200s-%u", from->name, i);
        HandshakeRAMBlock *to = handshake_ram_blocks_add(profile->ram_blocks,
                                                         name);

        *to = (HandshakeRAMBlock) {
            .name = to->name,
            .size = from->size,
            .max_size = from->max_size,
            .page_size = from->page_size,
        };
    }
}

static void check_effective(const HandshakeHello *hello,
                            const HandshakeVerdict *verdict)
{
    const strList *l;

    if (!verdict->accept) {
        g_assert(!verdict->capabilities && !verdict->declined &&
                 !verdict->parameters);
        return;
    }
    g_assert(handshake_strlist_contains(verdict->capabilities, "return-path"));
    for (l = verdict->capabilities; l; l = l->next) {
        g_assert(!handshake_strlist_contains(l->next, l->value));
        g_assert(!strcmp(l->value, "return-path") ||
                 handshake_strlist_contains(hello->profile->required,
                                            l->value) ||
                 handshake_strlist_contains(hello->optional, l->value));
    }
}

/* What this destination says, this source would agree to */
static void check_answer(const HandshakeHello *hello,
                         HandshakeVerdict *verdict)
{
    g_autofree char *json = handshake_verdict_to_json(verdict);
    g_autoptr(HandshakeVerdict) read = NULL;

    /* The effective parameters are the source's own, and may be large */
    g_assert(strlen(json) <= HANDSHAKE_FRAME_MAX || verdict->parameters);
    read = handshake_verdict_from_json(json, strlen(json), verdict->accept,
                                       &error_abort);
    fuzz_check_verdict(read);
    if (verdict->accept) {
        handshake_policy_check_accept(hello, read, &error_abort);
    }
}

void fuzz_one(const uint8_t *data, size_t size)
{
    FuzzInput in = { data, data + size };
    g_autoptr(HandshakeHello) hello = NULL;
    g_autoptr(HandshakeVerdict) verdict = NULL;
    unsigned times;

    set_destination(&in);
    times = fuzz_byte(&in);
    hello = handshake_hello_from_json((const char *)in.pos, in.end - in.pos,
                                      NULL, NULL);
    if (!hello) {
        return;
    }
    if (times >= 128) {
        multiply(hello->profile, times - 128);
    }

    verdict = handshake_judge(hello);
    fuzz_check_verdict(verdict);
    g_assert_cmpint(verdict->accept, ==,
                    !verdict->issues.errors &&
                    !(hello->warnings_as_errors && verdict->issues.warnings));
    g_assert(!verdict->accept == !!verdict->message);
    check_effective(hello, verdict);
    check_answer(hello, verdict);
    stubs_check_settings();
}
