/*
 * Migration handshake: QEMU without a machine, for the fuzz targets
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef QEMU_TESTS_FUZZ_STUBS_H
#define QEMU_TESTS_FUZZ_STUBS_H

#include "io/channel-socket.h"
#include "io/task.h"
#include "migration/migration.h"

/* This QEMU, and what a target does in place of what is around the handshake */
extern struct Stubs {
    bool incoming;              /* it was started with -incoming */
    bool no_postcopy;           /* the host cannot do it */
    bool other_machine;         /* than the one that the seeds are from */
    bool small_machine;         /* where it is of no matter, to save time */
    bool bad_credentials;       /* for TLS, if that is on */

    /* A source connects; once that is settled, complete and free @task */
    void (*connect)(QIOChannelSocket *ioc, QIOTask *task);
    /* migration_start_outgoing(), migration_connect_error_propagate() */
    void (*connected)(MigrationState *s, Error *err);

    /* multifd_recv_setup(), multifd_recv_attach() */
    bool (*recv_setup)(Error **errp);
    void (*recv_attach)(QIOChannel *ioc, unsigned id);
    /* postcopy_preempt_new_channel(), migration_incoming_setup() */
    void (*preempt)(QEMUFile *file);
    void (*start)(QEMUFile *file);
} stubs;

/* As at the start of a QEMU */
void stubs_reset(void);

/*
 * Abort unless no handshake is left, nothing that was negotiated is in force,
 * and all that is set is what a QMP client has set
 */
void stubs_check_idle(void);

/* What a QMP client would do */
void stubs_set_capability(unsigned capability, bool on);
void stubs_set_multifd_channels(uint8_t count);
void stubs_set_tls(bool on);

/* As the return path's thread does it, but for what the messages are about */
void stubs_read_return_path(QEMUFile *rp);

#endif
