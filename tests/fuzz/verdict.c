/*
 * Migration handshake: fuzz the reader of ACCEPT and REJECT
 *
 * The first byte says which one it is.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#include "qemu/osdep.h"
#include "qapi/error.h"
#include "../migration/handshake-info.h"
#include "../migration/handshake-message.h"
#include "../migration/handshake-offer.h"
#include "../migration/handshake-policy.h"
#include "fuzz.h"

/* What a source does with it */
static void use(HandshakeVerdict *verdict)
{
    MigrationHandshakeDeclinedList *declined = NULL;
    g_autoptr(HandshakeHello) hello = handshake_offer_new(false, NULL,
                                                          &declined);
    g_autoptr(MigrationHandshakeInfo) info =
        handshake_info_new(MIGRATION_HANDSHAKE_ROLE_SOURCE, hello->purpose);
    g_autoptr(MigrationHandshakeInfo) shown = NULL;
    const strList *l;

    if (verdict->accept && handshake_policy_check_accept(hello, verdict,
                                                         NULL)) {
        for (l = verdict->capabilities; l; l = l->next) {
            HandshakePolicy policy = handshake_policy_capability(l->value);

            g_assert(policy == HANDSHAKE_POLICY_TAKEN ||
                     policy == HANDSHAKE_POLICY_ALWAYS);
        }
    }
    handshake_info_set_verdict(info, verdict);
    handshake_info_end(info, &verdict->issues, true);
    shown = handshake_info_query();
    g_assert(shown);
    qapi_free_MigrationHandshakeDeclinedList(declined);
}

void fuzz_one(const uint8_t *data, size_t size)
{
    FuzzInput in = { data, data + size };
    const bool accept = fuzz_byte(&in) & 1;
    g_autoptr(Error) err = NULL;
    g_autoptr(HandshakeVerdict) verdict =
        handshake_verdict_from_json((const char *)in.pos, in.end - in.pos,
                                    accept, &err);
    g_autoptr(HandshakeVerdict) again = NULL;
    g_autofree char *json = NULL;

    if (!verdict) {
        g_assert(err);
        return;
    }
    g_assert(verdict->accept == accept);
    g_assert(accept || (!verdict->capabilities && !verdict->parameters));
    fuzz_check_verdict(verdict);

    json = handshake_verdict_to_json(verdict);
    again = handshake_verdict_from_json(json, strlen(json), accept,
                                        &error_abort);
    fuzz_check_verdict(again);
    g_assert_cmpuint(again->issues.listed + again->issues.omitted, ==,
                     verdict->issues.listed + verdict->issues.omitted);
    use(verdict);
}
