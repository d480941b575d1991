/*
 * Migration handshake: QEMU without a machine, for the fuzz targets
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef QEMU_TESTS_FUZZ_STUBS_H
#define QEMU_TESTS_FUZZ_STUBS_H

#include "qapi/qapi-types-migration.h"

/* This QEMU */
extern struct Stubs {
    bool incoming;              /* it was started with -incoming */
    bool no_postcopy;           /* the host cannot do it */
    bool other_machine;         /* than the one that the seeds are from */
    bool small_machine;         /* where it is of no matter, to save time */
} stubs;

/* Defaults, as at the start of a QEMU */
void stubs_reset(void);

/* What is on, be it set or negotiated; to be freed by the caller */
strList *stubs_capabilities(void);

/* Abort if settings are not what they were at the last stubs_set_start() */
void stubs_check_settings(void);
void stubs_set_start(void);

/* What a QMP client would do; what is not allowed has no effect */
void stubs_set_capability(unsigned capability, bool on);
void stubs_set_multifd_channels(uint8_t count);

#endif
