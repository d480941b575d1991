/*
 * Migration handshake: capabilities and parameters, and their negotiation
 *
 * policy.c knows who decides about each, and negotiates; it is pure.
 * settings.c knows what is set in this QEMU and what is possible on this host.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef QEMU_MIGRATION_HANDSHAKE_SETTINGS_H
#define QEMU_MIGRATION_HANDSHAKE_SETTINGS_H

#include "qapi/qapi-types-migration.h"
#include "message.h"

typedef enum HandshakePolicy {
    /* Not in the table: a later QEMU's, or forgotten here */
    HANDSHAKE_POLICY_UNKNOWN = 0,
    /* It shapes the stream: the destination takes the source's */
    HANDSHAKE_POLICY_NEGOTIATED,
    /* On after every handshake */
    HANDSHAKE_POLICY_ALWAYS,
    /* The source sends it, the destination compares */
    HANDSHAKE_POLICY_COMPARED,
    /* The source's own business; on a destination it counts as off */
    HANDSHAKE_POLICY_SOURCE,
    /* Each side has its own; it never goes over the wire */
    HANDSHAKE_POLICY_LOCAL,
    /* No handshake with it */
    HANDSHAKE_POLICY_REFUSED,
} HandshakePolicy;

/* policy.c: pure but for what settings.c says below; any thread otherwise */

/**
 * handshake_policy_capability: who decides about a capability
 * @name: its name
 *
 * Returns: the policy
 */
HandshakePolicy handshake_policy_capability(const char *name);

/**
 * handshake_policy_channels: the channels that a capability opens
 * @capability: its name
 *
 * Returns: HANDSHAKE_CHANNEL_*, or NULL if it opens none
 */
const char *handshake_policy_channels(const char *capability);

/**
 * handshake_policy_offer: the source's part of the negotiation
 * @options: what the user asked for, or NULL
 * @single: whether no further connection can be made
 * @hello: its settings are filled in, from what is set in this QEMU
 * @declined: what the user would like and this side cannot do is appended
 *
 * Called with the BQL held, outside of coroutines.
 */
void handshake_policy_offer(const MigrationHandshakeOptions *options,
                            bool single, MigrationHandshakeHello *hello,
                            MigrationHandshakeDeclinedList **declined);

/**
 * handshake_policy_offer_profile: what could be said to any destination
 * @hello: its settings are filled in: capabilities that this side could do with
 *         what is set, each by itself, are optional; the others are declined,
 *         and what each does to another one is in its combinations
 *
 * Called with the BQL held, outside of coroutines.
 */
void handshake_policy_offer_profile(MigrationHandshakeHello *hello);

/**
 * handshake_policy_choose: what a user would make of a profile
 * @hello: what handshake_policy_offer_profile() has filled in, on whatever
 *         QEMU; its optional and declined capabilities become those that are
 *         wanted
 * @options: what the user wants, or NULL
 */
void handshake_policy_choose(MigrationHandshakeHello *hello,
                             const MigrationHandshakeOptions *options);

/**
 * handshake_policy_offer_holds: whether what was said is still true
 * @hello: what handshake_policy_offer() has filled in
 *
 * QMP may have changed what is set meanwhile.  Called with the BQL held.
 *
 * Returns: true if so, false with @errp set if not
 */
bool handshake_policy_offer_holds(const MigrationHandshakeHello *hello,
                                  Error **errp);

/**
 * handshake_negotiate: the destination's part of the negotiation
 * @hello: what the source requires and would like
 * @local: this machine, with which an optional capability has to go together
 * @verdict: effective capabilities and parameters, what was declined, and
 *           issues are filled in
 *
 * Every capability that the source requires and that is impossible here makes
 * an issue.  Optional ones are taken in the source's order, each if the whole
 * set still works with it; those that open channels, if it works without them
 * as well.
 *
 * Called with the BQL held, outside of coroutines.
 */
void handshake_negotiate(const MigrationHandshakeHello *hello,
                         const MigrationProfile *local,
                         HandshakeVerdict *verdict);

/**
 * handshake_policy_note_untried: note what a check does not try
 * @verdict: an acceptance; an issue is added if its capabilities open channels
 */
void handshake_policy_note_untried(HandshakeVerdict *verdict);

/**
 * handshake_policy_check_accept: whether an ACCEPT answers the HELLO
 * @hello: what was offered
 * @verdict: what came back; what was declined though it had not been offered
 *           is dropped from it
 *
 * The effective configuration must be a subset of the offer and contain all
 * that was required, with the values that were sent; what opens further
 * channels needs a peer that takes them; and this side has to be able to do
 * all of it.  Called with the BQL held, outside of coroutines.
 *
 * Returns: true if so, false with @errp set if not
 */
bool handshake_policy_check_accept(const MigrationHandshakeHello *hello,
                                   HandshakeVerdict *verdict, Error **errp);

/**
 * handshake_policy_drop: go on without optional capabilities
 * @hello: what was offered
 * @without: which of them, and why; may be NULL
 * @verdict: what was accepted.  They are moved to what it declines, and their
 *           parameters go with them.
 *
 * Returns: true on success; false with @errp set, and nothing done, unless each
 *          was optional, is effective and opens channels
 */
bool handshake_policy_drop(const MigrationHandshakeHello *hello,
                           const MigrationHandshakeDeclinedList *without,
                           HandshakeVerdict *verdict, Error **errp);

/**
 * handshake_policy_effective: the parameters that are in force
 * @capabilities: the effective capabilities
 * @parameters: the effective parameters, as they were sent
 *
 * What the source did not send has the value that it had before it could be
 * sent.  @parameters have been accepted on this side.
 *
 * Returns: to be freed by the caller
 */
MigrationHandshakeEffective *
handshake_policy_effective(const strList *capabilities,
                           const MigrationHandshakeParameterList *parameters);

/* settings.c: called with the BQL held */

/**
 * handshake_settings_capabilities: what the user has switched on
 *
 * Returns: names, to be freed by the caller
 */
strList *handshake_settings_capabilities(void);

/**
 * handshake_settings_parameter: what the user has set a parameter to
 * @parameter: one that is negotiated
 *
 * Returns: its value as text, to be freed by the caller
 */
char *handshake_settings_parameter(MigrationParameter parameter);

/**
 * handshake_settings_validate: whether a handshake is possible at all
 *
 * Some capabilities, and modes other than 'normal', exclude it.
 *
 * Returns: true if it is possible, false with @errp set if not
 */
bool handshake_settings_validate(Error **errp);

/**
 * handshake_settings_try_capabilities: whether a set of them is possible here
 * @names: the effective ones
 * @role: on a destination, those that only matter to a source count as off,
 *        and the host must be able to do postcopy, which is tried
 *
 * Nothing is changed, and how QEMU listens now does not matter.  Called outside
 * of coroutines.
 *
 * Returns: true if it is, false with @errp set if not
 */
bool handshake_settings_try_capabilities(const strList *names,
                                         MigrationHandshakeRole role,
                                         Error **errp);

/**
 * handshake_settings_try_parameter: whether a value is possible here
 * @parameter: one that is negotiated
 * @value: the value, as text of a peer
 * @role: which side this is
 *
 * A compression method is tried out, because it may need hardware.
 *
 * Returns: true if it is, false with @errp set if not
 */
bool handshake_settings_try_parameter(MigrationParameter parameter,
                                      const char *value,
                                      MigrationHandshakeRole role,
                                      Error **errp);

/**
 * handshake_settings_apply: what was negotiated is in force, whatever is set
 * @capabilities: the effective capabilities
 * @parameters: the effective parameters, which have been tried
 *
 * What users set from now on is in force after handshake_settings_restore().
 */
void handshake_settings_apply(const strList *capabilities,
                              const MigrationHandshakeEffective *parameters);

/**
 * handshake_settings_restore: what users have set is in force again
 */
void handshake_settings_restore(void);

/**
 * handshake_settings_tls_authenticates: whether TLS tells who a client is
 */
bool handshake_settings_tls_authenticates(void);

#endif
