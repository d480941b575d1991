/*
 * Migration handshake: what all fuzz targets share
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef QEMU_TESTS_FUZZ_FUZZ_H
#define QEMU_TESTS_FUZZ_FUZZ_H

#include "migration/handshake/message.h"
#include "qapi/error.h"

/**
 * fuzz_one: what a target does with one input
 * @data: bytes from the fuzzer
 * @size: how many
 *
 * Each target has its own.  Time and random numbers are the same at the
 * beginning of each call; stubs_reset() is for targets with stubs.c to call.
 */
void fuzz_one(const uint8_t *data, size_t size);

/* One that is as good as none: QEMU does not want its own to go unnoticed */
typedef Error *FuzzError;
G_DEFINE_AUTO_CLEANUP_FREE_FUNC(FuzzError, error_free, NULL)

/* What is left of an input that is read as a script; zeros follow its end */
typedef struct FuzzInput {
    const uint8_t *pos;
    const uint8_t *end;
} FuzzInput;

uint8_t fuzz_byte(FuzzInput *in);
uint16_t fuzz_u16(FuzzInput *in);
/* As many bytes as there are, at most @len, which is set to that */
const uint8_t *fuzz_bytes(FuzzInput *in, size_t *len);

/**
 * fuzz_run: run the main loop until nothing is left to be done
 *
 * Time stands still meanwhile.  Aborts if it never comes to rest.
 */
void fuzz_run(void);

/**
 * fuzz_advance: let time pass
 * @ms: how much; timers that expire run
 */
void fuzz_advance(int64_t ms);

/* Abort if something from a peer is not as the headers promise. */
void fuzz_check_text(const char *text);
/* One of our own that quotes such texts */
void fuzz_check_message(const char *text);
void fuzz_check_issues(const HandshakeIssues *issues);
void fuzz_check_hello(const MigrationHandshakeHello *hello);
void fuzz_check_verdict(const HandshakeVerdict *verdict);
void fuzz_check_info(const MigrationHandshakeInfo *info);

/* A HELLO as QMP would return it */
QObject *fuzz_hello_object(const MigrationHandshakeHello *hello);

/* The payload of the one frame in @buf, which is of type @type; consumes it */
GString *fuzz_payload(GByteArray *buf, HandshakeFrameType type);

#endif
