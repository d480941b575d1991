/*
 * Helpers for tests of the migration handshake
 *
 * Most of these tests need no running guest: they start QEMU with the qtest
 * accelerator, which takes a fraction of a second.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef TEST_HANDSHAKE_UTIL_H
#define TEST_HANDSHAKE_UTIL_H

#include "qobject/qdict.h"
#include "libqtest.h"
#include "migration/framework.h"

/* A bare machine of the architecture under test, and what is its own in it */
typedef struct HandshakeMachine {
    const char *archs[3];       /* as qtest_get_arch() has them */
    const char *options;
    const char *type;           /* how the name of its type begins */
    const char *other_options;  /* of another type, after the first ones */
    const char *other_type;
    const char *memory;         /* its RAM block */
    const char *first;          /* the path of what is in its first PCI slot */
    uint64_t memory_start;      /* where its guest has it */
    unsigned size, more;        /* MiB: its memory, and another size of it */
} HandshakeMachine;

/* NULL: there is none for this architecture, or it is not in this build */
const HandshakeMachine *handshake_machine_or_null(void);
const HandshakeMachine *handshake_machine(void);

/* With more options from a format */
QTestState *start_machine(const char *format, ...) G_GNUC_PRINTF(1, 2);

/* Memory of the machine's size, as a backend of that type with more options */
char *memory_options(const char *type, const char *more);

/* Where the guest of start_source() has something in its memory */
uint64_t used_memory(void);

#define TCP_LISTEN  "{ 'channel-type': 'handshake'," \
                    "  'addr': { 'transport': 'socket', 'type': 'inet'," \
                    "            'host': '127.0.0.1', 'port': '0' } }"

/* Milliseconds; what is waited for takes a few of them */
#define PATIENCE    30000

/*
 * Microseconds; what takes effect at once does so in less, even on a machine
 * that is busy.  Who is silent is waited for longer: 2 seconds, or more.
 */
#define PROMPT      (1800 * 1000)

/*
 * As migration_test_add(), which differs from QEMU to QEMU.  With a suffix, @fn
 * gets the whole path.
 */
void handshake_test_add(const char *path, void (*fn)(void));
void handshake_test_add_data(const char *path, const char *suffix,
                             void (*fn)(const void *));

/* Lets one that was started with '-incoming defer' listen */
void listen_for_handshake(QTestState *to);

/* A destination that listens on a handshake channel */
QTestState *start_destination(const char *opts);

QTestState *start_source(const char *opts);

char *destination_port(QTestState *to);

/* 'migrate' with one channel of a type, and more arguments from a format */
void migrate_to_port(QTestState *from, const char *type,
                     const char *port, const char *options);

void migrate_to(QTestState *from, QTestState *to, const char *options);

void migrate_to_unix(QTestState *from, const char *path);

bool is_running(QTestState *who);

/* Of a source that has failed when its guest was stopped; it says so first */
void wait_running(QTestState *who);

/* query-migrate once 'status' is as given; to be unreferenced by the caller */
QDict *wait_status(QTestState *who, const char *status);

/* The 'handshake' of query-migrate once its 'status' is as given */
QDict *wait_handshake(QTestState *who, const char *status);

QDict *find_issue(QDict *handshake, const char *code);

bool list_contains(QDict *dict, const char *member, const char *item);

bool capability_is_on(QTestState *who, const char *capability);

void wait_completed(QTestState *from, QTestState *to);

/*
 * What a check says of channels that it does not try, if a migration would: not
 * what a migration says
 */
void drop_untried(QDict *answer);

/*
 * A check that no migration follows, with options as for migrate_to_port().
 * Returns what query-migrate shows of it on the source.
 */
QDict *check_to_port(QTestState *from, const char *port, const char *options);
QDict *check_to(QTestState *from, QTestState *to, const char *options);

/* What check-migrate-profile returns; @profile and @options are consumed */
QDict *check_profile(QTestState *to, QDict *profile, QDict *options);

/* What query-migrate-profile returns */
QDict *query_profile(QTestState *from);

void assert_good_migration(QTestState *from, QTestState *to);

/* The destination shows no trace of it all, and takes the next migration */
void assert_listening(QTestState *to);

void stop_both(QTestState *from, QTestState *to);

const char *declined_reason(QDict *handshake, const char *capability);

int connect_to(const char *port);

/* A peer that accepts and says nothing */
typedef struct SilentPeer {
    int listener;
    int fd;
    char *port;
} SilentPeer;

void silent_peer_start(SilentPeer *peer);

/* Returns when HELLO has begun to come */
void silent_peer_accept(SilentPeer *peer);

/* Returns when somebody has connected besides */
void silent_peer_wait_others(SilentPeer *peer);

void silent_peer_stop(SilentPeer *peer);

#define FRAME_HELLO     1
#define FRAME_ACCEPT    2
#define FRAME_REJECT    3
#define FRAME_COMMIT    4
#define FRAME_ABORT     5
#define FRAME_LAST_WORD 10

#define GOOD_HELLO \
    "{ \"versions\": [1], \"purpose\": \"migrate\", \"required\": [] }"

/* What may be sent to a QEMU */
void put_header(GByteArray *buf, const char *name);
void put_named_header(GByteArray *buf, const uint8_t *session,
                      const char *name, uint32_t index);
void put_frame(GByteArray *buf, uint16_t type, const char *json);
void send_all(int fd, const void *buf, size_t len);

/* All that comes until the peer closes */
GByteArray *read_to_end(int fd);

/* The verdict's text, after header and frames of other types */
QDict *parse_answer(const GByteArray *buf, uint16_t *type);

/* The text of the only frame in @buf, which must be of that type */
QDict *parse_frame(const GByteArray *buf, uint16_t type);

/* A source that goes as far as you like */
typedef struct ScriptedSource {
    int fd;
    uint8_t session[16];
    GChecksum *transcript;
} ScriptedSource;

void source_say_hello(ScriptedSource *source, const char *port,
                      const char *hello);

/* To be unreferenced by the caller */
QDict *source_read_verdict(ScriptedSource *source, uint16_t *type);

/* Says HELLO and reads an ACCEPT */
void source_claim_session(ScriptedSource *source, const char *port,
                          const char *hello);

void source_say_commit(ScriptedSource *source);
void source_say_commit_without(ScriptedSource *source, const char *capability,
                               const char *reason);

void source_close(ScriptedSource *source);

/* The names of all types that are not abstract */
QDict *types_of(QTestState *who, const char *implements);

/* Whether it can be plugged in; if @on_port, into "port" and that number */
bool add_twin(QTestState *who, const char *type, int n, bool on_port);

/* Between devices and their like there is nothing to be said */
void assert_twins(QTestState *from, QTestState *to);

#endif
