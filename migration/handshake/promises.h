/*
 * Migration handshake: the promises of devices, collected and kept
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef QEMU_MIGRATION_HANDSHAKE_PROMISES_H
#define QEMU_MIGRATION_HANDSHAKE_PROMISES_H

#include "migration/promises.h"
#include "qobject/qdict.h"

/* Promises of a name for different items count as one */
#define HANDSHAKE_PROMISE_NAMES_MAX     64
/* Bytes of a text, and of what stands for bytes */
#define HANDSHAKE_PROMISE_TEXT_MAX      (32 * 1024)
/* Items of a list */
#define HANDSHAKE_PROMISE_ITEMS_MAX     4096
/* Bytes that can be compared in part: a PCI Express configuration */
#define HANDSHAKE_PROMISE_BYTES_MAX     4096

/* How a promise is judged */
typedef enum HandshakeRule {
    HANDSHAKE_RULE_EQUAL,
    HANDSHAKE_RULE_AT_MOST,
    HANDSHAKE_RULE_FLAG,
    HANDSHAKE_RULE_TEXT,
    HANDSHAKE_RULE_SET,
    HANDSHAKE_RULE_BITS,
    HANDSHAKE_RULE_MASKED,
    HANDSHAKE_RULE_REGISTERS,
} HandshakeRule;

/* Of what is known, and may not be here */
typedef enum HandshakeMember {
    HANDSHAKE_MEMBER_HERE = 1,
    HANDSHAKE_MEMBER_PROMISED = 2,  /* on the way back, for sure */
} HandshakeMember;

/*
 * What this machine makes of a promise of the other one.  Never on the wire:
 * only who has the device can judge.
 */
typedef struct HandshakeLimit {
    const char *name;
    char *item;             /* if @name is a list, but for sets */
    HandshakeRule rule;
    MigrationPromiseBreach breach;
    bool promised;          /* EQUAL, TEXT, FLAG: on the way back, for sure */
    uint64_t number;        /* EQUAL, AT_MOST, FLAG */
    char *text;             /* TEXT; may be NULL */
    GHashTable *set;        /* SET: what is known, as HandshakeMember */
    GByteArray *bytes;      /* BITS: words; MASKED: the values, */
    GByteArray *mask;       /* and which bits of these count */
    GArray *registers;      /* REGISTERS: of MigrationRegister */
    char *(*describe)(void *opaque, unsigned index);
    char *(*describe_register)(void *opaque, uint64_t number);
    void *opaque;
} HandshakeLimit;

/**
 * handshake_promises_collect: what a section promises
 * @vmsd: describes its state
 * @opaque: its state
 * @version: its version
 * @type: of its device, if it has one
 *
 * Called with the BQL held, outside of coroutines.
 *
 * Returns: the promises, as in MigrationPromises, to be unreferenced by the
 *          caller; NULL if there are none
 */
QDict *handshake_promises_collect(const VMStateDescription *vmsd, void *opaque,
                                  int version, const char *type);

/**
 * handshake_limits_collect: what a section could keep
 *
 * As handshake_promises_collect(), for a machine whose state has not been
 * loaded.
 *
 * Returns: of HandshakeLimit, to be unreferenced by the caller; valid as long
 *          as the BQL is held
 */
GPtrArray *handshake_limits_collect(const VMStateDescription *vmsd,
                                    void *opaque, int version,
                                    const char *type);

/**
 * handshake_bytes_to_text: as they are told
 * @bytes: what is to be told
 * @size: how many these are
 *
 * "offset:bytes" for each run of bytes that are not all zero, separated by
 * commas, in lower-case hexadecimal.
 *
 * Returns: to be freed by the caller
 */
char *handshake_bytes_to_text(const uint8_t *bytes, size_t size);

/**
 * handshake_bytes_from_text: the way back
 * @text: what a peer has told
 *
 * Returns: HANDSHAKE_PROMISE_BYTES_MAX of them, NULL if @text is malformed
 */
GByteArray *handshake_bytes_from_text(const char *text);

/**
 * handshake_bits_from_text: a number of any length in hexadecimal
 * @text: what a peer has told
 *
 * Returns: words of 64 bits, bit 0 first, NULL if @text is malformed
 */
GArray *handshake_bits_from_text(const char *text);

/**
 * handshake_registers_to_text: as they are told
 * @registers: in ascending order
 * @n: how many these are, no more than HANDSHAKE_PROMISE_ITEMS_MAX
 *
 * Of each register its distance from the one before, and "=value" if that
 * cannot be changed, separated by commas, in lower-case hexadecimal.
 *
 * Returns: to be freed by the caller
 */
char *handshake_registers_to_text(const MigrationRegister *registers, size_t n);

/**
 * handshake_registers_from_text: the way back
 * @text: what a peer has told
 *
 * Returns: of MigrationRegister, in ascending order, no more than
 *          HANDSHAKE_PROMISE_ITEMS_MAX, NULL if @text is malformed
 */
GArray *handshake_registers_from_text(const char *text);

#endif
