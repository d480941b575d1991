/*
 * What a device has promised its guest, for those who compare two machines
 * before a migration
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef QEMU_MIGRATION_PROMISES_H
#define QEMU_MIGRATION_PROMISES_H

#include "migration/vmstate.h"

/*
 * A hook, VMStateInfo.promises or VMStateDescription.promises, tells what holds
 * of its device: on the source, what the guest has been promised so far; on a
 * destination, what a guest that comes here could have.  It is called with the
 * BQL held, outside of coroutines, on a machine that runs as well as on one
 * whose state has not been loaded yet.  It must change nothing, and do no I/O.
 * It never sees the other side, whose promises are held against its own by the
 * migration handshake.
 *
 * Each promise has a name, a member of MigrationPromises in
 * qapi/migration-handshake.json.  Where that is a list, the promise is for one
 * item of it, @item; otherwise that is NULL.  A promise counts only if both
 * sides make it.
 */

/* What becomes of a promise that the destination cannot keep */
typedef enum MigrationPromiseBreach {
    MIGRATION_BREACH_LOAD,      /* the loader refuses the state: an error */
    MIGRATION_BREACH_LOSS,      /* the guest loses what it uses: an error */
    MIGRATION_BREACH_CHANGE,    /* the guest may see a change: a warning */
} MigrationPromiseBreach;

/**
 * migration_promise_equal: a number is the same on both sides
 * @p: the promises of a section
 * @name: of the promise
 * @item: what the number belongs to, if @name is a list
 * @breach: what becomes of it if not
 * @value: the number
 */
void migration_promise_equal(VMStatePromises *p, const char *name,
                             const char *item, MigrationPromiseBreach breach,
                             uint64_t value);

/**
 * migration_promise_at_most: a number is no more than what is possible
 * @p: the promises of a section
 * @name: of the promise
 * @item: what the number belongs to, if @name is a list
 * @breach: what becomes of it if not
 * @promised: what the guest uses
 * @limit: how much of it there is here
 */
void migration_promise_at_most(VMStatePromises *p, const char *name,
                               const char *item, MigrationPromiseBreach breach,
                               uint64_t promised, uint64_t limit);

/**
 * migration_promise_flag: something is there
 * @p: the promises of a section
 * @name: of the promise
 * @breach: what becomes of it if not
 * @promised: whether the guest uses it
 * @limit: whether it could
 */
void migration_promise_flag(VMStatePromises *p, const char *name,
                            MigrationPromiseBreach breach, bool promised,
                            bool limit);

/**
 * migration_promise_text: a text is the same on both sides
 * @p: the promises of a section
 * @name: of the promise
 * @item: what the text belongs to, if @name is a list
 * @breach: what becomes of it if not
 * @value: the text; NULL: nothing is promised
 */
void migration_promise_text(VMStatePromises *p, const char *name,
                            const char *item, MigrationPromiseBreach breach,
                            const char *value);

/**
 * migration_promise_member: something is one of those that there are
 * @p: the promises of a section
 * @name: of the set, a list of strings
 * @breach: what becomes of it if the other side does not have it
 * @item: what it is; NULL: there are none
 * @promised: whether the guest uses it
 * @limit: whether it could
 */
void migration_promise_member(VMStatePromises *p, const char *name,
                              MigrationPromiseBreach breach, const char *item,
                              bool promised, bool limit);

/**
 * migration_promise_bits: no other bits are set than are possible
 * @p: the promises of a section
 * @name: of the promise
 * @breach: what becomes of it if not
 * @promised: those that the guest uses, bit 0 first
 * @limit: those that it could use
 * @words: how many words of 64 bits these are
 * @describe: the name of a bit, to be freed by the caller; may be NULL
 * @opaque: for @describe, which is called while the device lives
 */
void migration_promise_bits(VMStatePromises *p, const char *name,
                            MigrationPromiseBreach breach,
                            const uint64_t *promised, const uint64_t *limit,
                            int words,
                            char *(*describe)(void *opaque, unsigned bit),
                            void *opaque);

/**
 * migration_promise_masked: bytes are the same, in part
 * @p: the promises of a section
 * @name: of the promise
 * @breach: what becomes of it if not
 * @value: the bytes
 * @mask: the bits that matter, as judged by the destination
 * @size: how many bytes these are, at most 4096; those beyond are zero
 * @describe: what stands at an offset, to be freed by the caller; may be NULL
 * @opaque: for @describe, which is called while the device lives
 */
void migration_promise_masked(VMStatePromises *p, const char *name,
                              MigrationPromiseBreach breach,
                              const uint8_t *value, const uint8_t *mask,
                              size_t size,
                              char *(*describe)(void *opaque, unsigned offset),
                              void *opaque);

/* One of those that have numbers, as registers of a CPU do */
typedef struct MigrationRegister {
    uint64_t number;
    uint64_t value;         /* if it is @fixed */
    bool fixed;             /* it cannot be set to any other value */
} MigrationRegister;

/**
 * migration_promise_registers: no other registers are sent than there are,
 *                              and what cannot be set is sent as it is here
 * @p: the promises of a section
 * @name: of the promise
 * @breach: what becomes of it if not
 * @registers: those that there are, in ascending order of their numbers
 * @n: how many these are, at most 4096; of more nothing is promised
 * @describe: the name of a register, which may be one that only the other side
 *            has, to be freed by the caller
 * @opaque: for @describe, which is called while the device lives
 */
void migration_promise_registers(VMStatePromises *p, const char *name,
                                 MigrationPromiseBreach breach,
                                 const MigrationRegister *registers, size_t n,
                                 char *(*describe)(void *opaque,
                                                   uint64_t number),
                                 void *opaque);

/**
 * migration_promise_spare_register: a register that may be sent, and that the
 *                                   loader can do without
 * @p: the promises of a section
 * @name: of the promise, which has been made
 * @number: of the register
 *
 * Nothing is promised by that.
 */
void migration_promise_spare_register(VMStatePromises *p, const char *name,
                                      uint64_t number);

/**
 * migration_promise_value: the loader wants a number to be the one that is here
 * @p: the promises of a section
 * @name: of the number, within the state
 * @value: the number
 *
 * As VMSTATE_UINT64_EQUAL() does by itself, for those who check by hand.
 */
void migration_promise_value(VMStatePromises *p, const char *name,
                             uint64_t value);

/**
 * migration_promise_field: a hook for a VMStateInfo whose get() wants the
 *                          number in the stream to be the one that is here
 */
void migration_promise_field(VMStatePromises *p, void *pv, size_t size,
                             const VMStateField *field);

/**
 * migration_promises_vmsd: what a VMStateDescription promises
 * @p: the promises of a section
 * @vmsd: describes a state that is saved by hand, as a part of the section's
 * @opaque: the state
 *
 * As if it were a field of the section.
 */
void migration_promises_vmsd(VMStatePromises *p, const VMStateDescription *vmsd,
                             void *opaque);

/* Whether a state may get another shape before it is loaded */
bool vmstate_has_pre_load(const VMStateDescription *vmsd);

#endif
