/*
 * Migration handshake: who decides about each capability and parameter
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef QEMU_MIGRATION_HANDSHAKE_POLICY_H
#define QEMU_MIGRATION_HANDSHAKE_POLICY_H

#include "handshake-message.h"

typedef enum HandshakePolicy {
    /* Not in the table: a later QEMU's, or forgotten here */
    HANDSHAKE_POLICY_UNKNOWN = 0,
    /* It shapes the stream: the destination takes the source's */
    HANDSHAKE_POLICY_TAKEN,
    /* On after every handshake */
    HANDSHAKE_POLICY_ALWAYS,
    /* The source tells it, the destination judges by it */
    HANDSHAKE_POLICY_COMPARED,
    /* The source's own business; on a destination it counts as off */
    HANDSHAKE_POLICY_SOURCE,
    /* Each side has its own; it never goes over the wire */
    HANDSHAKE_POLICY_LOCAL,
    /* No handshake with it */
    HANDSHAKE_POLICY_REFUSED,
} HandshakePolicy;

/* What this QEMU can do, for handshake_negotiate() */
typedef struct HandshakeJudge {
    /*
     * Whether this set of capabilities works here, as an effective one.
     * Returns: false with @errp set if not
     */
    bool (*try_capabilities)(const strList *capabilities, void *opaque,
                             Error **errp);
    /*
     * Whether this parameter, which is one to be taken, can have this value.
     * Returns: false with @errp set if not
     */
    bool (*try_parameter)(const char *name, const QObject *value, void *opaque,
                          Error **errp);
    void *opaque;
} HandshakeJudge;

/**
 * handshake_policy_capability: who decides about a capability
 * @name: its name
 *
 * Pure; any thread.
 *
 * Returns: the policy
 */
HandshakePolicy handshake_policy_capability(const char *name);

/**
 * handshake_policy_negotiable: capabilities that can be optional
 *
 * Pure; any thread.
 *
 * Returns: their names, to be freed by the caller
 */
strList *handshake_policy_negotiable(void);

/**
 * handshake_policy_needs_channels: whether a capability opens channels
 * @name: its name
 *
 * Pure; any thread.
 *
 * Returns: true if a migration with it has more channels than the main one
 */
bool handshake_policy_needs_channels(const char *name);

/**
 * handshake_policy_parameter: who decides about a parameter
 * @name: its name
 * @capability: if not NULL, set to the capability that it belongs to, or to
 *              NULL if there is none
 *
 * Pure; any thread.
 *
 * Returns: the policy
 */
HandshakePolicy handshake_policy_parameter(const char *name,
                                           const char **capability);

/**
 * handshake_policy_offer: the source's part of the negotiation
 * @enabled: capabilities that are set on the source
 * @optional: capabilities that are wanted besides, in order of preference
 * @parameters: the source's parameters, name -> value
 * @hello: its settings are filled in
 *
 * Pure; any thread.
 */
void handshake_policy_offer(const strList *enabled, const strList *optional,
                            const QDict *parameters, HandshakeHello *hello);

/**
 * handshake_negotiate: the destination's part of the negotiation
 * @hello: what the source requires and would like
 * @local: the profile of this machine, with which an optional capability has
 *         to go together; NULL if the source asks itself
 * @judge: what this QEMU can do
 * @verdict: effective capabilities and parameters, what was declined, and
 *           issues are filled in
 *
 * Every capability that the source requires and that is impossible here makes
 * an issue.  Optional ones are taken in the source's order, each if the whole
 * set still works with it.
 *
 * Any thread that @judge can be called in.
 */
void handshake_negotiate(const HandshakeHello *hello,
                         const HandshakeProfile *local,
                         const HandshakeJudge *judge,
                         HandshakeVerdict *verdict);

/**
 * handshake_policy_check_accept: whether an ACCEPT answers the HELLO
 * @hello: what was offered
 * @verdict: what came back; what was declined though it had not been offered
 *           is dropped from it
 *
 * The effective configuration must be a subset of the offer and contain all
 * that was required, with the values that were sent; and what needs further
 * channels needs a peer that takes them.
 *
 * Pure; any thread.
 *
 * Returns: true if so, false with @errp set if not
 */
bool handshake_policy_check_accept(const HandshakeHello *hello,
                                   HandshakeVerdict *verdict, Error **errp);

/**
 * handshake_policy_values: the parameters to be taken
 * @effective: the effective capabilities
 * @groups: effective parameters, capability -> parameter -> value, or NULL
 *
 * What the source did not send has the value that it had before it could be
 * sent.  Pure; any thread.
 *
 * Returns: parameter -> value, for all parameters of effective capabilities;
 *          the caller owns it
 */
QDict *handshake_policy_values(const strList *effective, const QDict *groups);

#endif
