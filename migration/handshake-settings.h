/*
 * Migration handshake: this QEMU's own capabilities and parameters
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef QEMU_MIGRATION_HANDSHAKE_SETTINGS_H
#define QEMU_MIGRATION_HANDSHAKE_SETTINGS_H

#include "qapi/qapi-types-migration.h"
#include "handshake-policy.h"

/* All functions here are called with the BQL held. */

/**
 * handshake_settings_capabilities: what is switched on
 *
 * What was taken for a migration that is running does not count.
 *
 * Returns: names, to be freed by the caller
 */
strList *handshake_settings_capabilities(void);

/**
 * handshake_settings_parameters: all parameters
 *
 * As with capabilities, those of the user.
 *
 * Returns: name -> value
 */
QDict *handshake_settings_parameters(void);

/**
 * handshake_settings_check: whether a handshake is possible at all
 *
 * Some capabilities, and modes other than 'normal', exclude it.
 *
 * Returns: true if it is possible, false with @errp set if not
 */
bool handshake_settings_check(Error **errp);

/**
 * handshake_settings_source_judge: what is possible here, as a source
 * handshake_settings_destination_judge: the same, as a destination
 *
 * On a destination, capabilities that only matter to a source count as off.
 * A compression method is tried out, because it may need hardware.  The
 * postcopy probe of a destination locks and unlocks memory, and must not run in
 * a coroutine; its answer is kept until the memory changes.
 *
 * Returns: a judge for handshake_negotiate()
 */
const HandshakeJudge *handshake_settings_source_judge(void);
const HandshakeJudge *handshake_settings_destination_judge(void);

/**
 * handshake_settings_hold: keep this QEMU's settings for a conversation
 *
 * QEMU may quit while somebody talks, and bottom halves that are scheduled
 * already run then, while it waits for disks.  handshake_settings_release()
 * ends it.  Both are called in the main thread with the BQL held.
 */
void handshake_settings_hold(void);

/**
 * handshake_settings_release: end what handshake_settings_hold() began
 */
void handshake_settings_release(void);

/**
 * handshake_settings_tls_authenticates: whether TLS shows who somebody is
 *
 * Returns: false if 'tls-creds' let in everybody, or are not set
 */
bool handshake_settings_tls_authenticates(void);

/**
 * handshake_settings_forget_host: ask the host again what it can do
 */
void handshake_settings_forget_host(void);

/**
 * handshake_settings_take: set what was negotiated, for one migration
 * @capabilities: effective capabilities; others that are negotiable go off
 * @parameters: effective parameters, capability -> parameter -> value
 *
 * The caller has tried all of them with the judge before.  What was taken
 * before and not given back is given back first.
 */
void handshake_settings_take(const strList *capabilities,
                             const QDict *parameters);

/**
 * handshake_settings_taken: whether a setting belongs to a migration
 * @name: a capability or parameter
 *
 * Returns: true if it is negotiable, and handshake_settings_take() has been
 *          called and not undone yet
 */
bool handshake_settings_taken(const char *name);

/**
 * handshake_settings_give_back_capability: another value to give back
 * handshake_settings_give_back_parameter: the same for a parameter
 * @capability: a capability
 * @state: what it is to be when it is given back
 * @name: a parameter
 * @value: what it is to be then; this function takes the reference
 *
 * Returns: true if so, false if it belongs to no migration
 */
bool handshake_settings_give_back_capability(MigrationCapability capability,
                                             bool state);
bool handshake_settings_give_back_parameter(const char *name, QObject *value);

/**
 * handshake_settings_give_back: undo handshake_settings_take()
 *
 * A setting that is no longer what was taken stays: somebody else set it.
 */
void handshake_settings_give_back(void);

#endif
