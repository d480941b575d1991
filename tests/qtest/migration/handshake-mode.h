/*
 * The migration tests over channels of type 'handshake'
 *
 * With QTEST_MIGRATION_HANDSHAKE set in the environment, tests that migrate
 * over a network do so over a channel of type 'handshake', and what they set on
 * the destination is set on the source only.  Its value is the member
 * 'optional-capabilities' of 'migrate', such as "[]"; "default" leaves it out.
 *
 * Without it, none of these functions does anything.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef TEST_HANDSHAKE_MODE_H
#define TEST_HANDSHAKE_MODE_H

#include "qobject/qdict.h"
#include "libqtest.h"

/* Before test @name: false if it cannot be moved, and has been skipped */
bool handshake_mode_begin(const char *name);

/* What @uri is as a value of -incoming; to be freed by the caller */
char *handshake_mode_incoming_option(const char *uri);

/* The two have been started; what is set on @to is left to the source */
void handshake_mode_start(QTestState *to);

/* The arguments of 'migrate-incoming' and of 'migrate' */
void handshake_mode_incoming(QDict *args);
void handshake_mode_outgoing(QDict *args);

/* The channel type for a destination that is told one */
const char *handshake_mode_channel_type(void);

/* Whether a capability or parameter that @who is told is for the source only */
bool handshake_mode_keeps_from(QTestState *who, const char *setting);

/*
 * Whether a destination that is waited for goes on listening instead, because
 * the handshake was over before the stream began
 */
bool handshake_mode_listens(QTestState *who, const char *status,
                            const char *goal);

/*
 * Asserts that the test has been moved, that @to lives and listens where it
 * would have exited otherwise, and that nothing that was negotiated stays on
 */
void handshake_mode_end(QTestState *to);

#endif
