/*
 * Migration handshake: the messages, from and to JSON
 *
 * Messages are read member by member, so that what a later version adds is
 * ignored; QAPI's input visitors refuse what they do not know.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef QEMU_MIGRATION_HANDSHAKE_MESSAGE_H
#define QEMU_MIGRATION_HANDSHAKE_MESSAGE_H

#include "qapi/qapi-types-migration-handshake.h"
#include "qobject/qdict.h"

/* The only version of the protocol so far */
#define HANDSHAKE_VERSION           1

/* What a HELLO is for */
#define HANDSHAKE_PURPOSE_MIGRATE   "migrate"
#define HANDSHAKE_PURPOSE_CHECK     "check"

/* More issues than this are counted, not listed */
#define HANDSHAKE_ISSUES_MAX        256

/* A name in a migration stream: its length is a byte there */
#define HANDSHAKE_STREAM_NAME_MAX   255

/*
 * Sections and RAM blocks of a profile.  A machine that has more does not list
 * them; who sends more makes a malformed HELLO.
 */
#define HANDSHAKE_SECTIONS_MAX      16384
#define HANDSHAKE_RAM_BLOCKS_MAX    2048

/* A section of the migration stream */
typedef struct HandshakeSection {
    char *name;
    uint32_t instance;
    uint32_t version;
    bool conditional;           /* whether it is sent may still change */
    /* About this machine alone, never on the wire: */
    uint32_t minimum;           /* the oldest version that it reads */
    bool idle;                  /* as things are, it does not send it */
} HandshakeSection;

/* A block of guest memory that migrates; sizes in bytes */
typedef struct HandshakeRAMBlock {
    char *name;
    uint64_t size;              /* in use */
    uint64_t max_size;          /* @size unless it is resizeable */
    uint64_t page_size;         /* of the memory behind it; 0 if absent */
    bool resizeable;
    bool conditional;           /* whether it is sent may still change */
    bool shared_file;           /* x-ignore-shared leaves its contents out */
    bool has_address;           /* told only of a @shared_file */
    uint64_t address;           /* within the memory region that contains it */
} HandshakeRAMBlock;

/* What a machine is, as far as a migration cares; any member may be absent */
typedef struct HandshakeProfile {
    char *qemu_version;
    char *package;
    char *arch;                 /* as in qemu-system-ARCH */
    char *machine;              /* exact type, aliases resolved */
    uint64_t page_size;         /* of the target, in bytes; 0 if absent */
    uint64_t host_page_size;    /* in bytes; 0 if absent */
    char *uuid;                 /* only when one was set */
    char *name;
    strList *capabilities;      /* enabled, the purely local ones aside */
    strList *required;          /* those that the destination must honour */
    QDict *parameters;          /* capability -> parameter -> value */
    QDict *stream;              /* hidden property of the stream -> value */
    GPtrArray *sections;        /* of HandshakeSection; NULL if absent */
    GPtrArray *ram_blocks;      /* of HandshakeRAMBlock; NULL if absent */
    strList *unmigratable;      /* devices that can only stay where they are */
    strList *blockers;          /* why the guest cannot leave now, as text */
} HandshakeProfile;

/* What choosing one optional capability does to another one on the source */
typedef struct HandshakeCombination {
    char *capability;
    char *with;                 /* if this one is chosen, too */
    char *reason;               /* why it is impossible then; NULL: it is not */
} HandshakeCombination;

/* Source to destination: what I am and what I want */
typedef struct HandshakeHello {
    uint32List *versions;       /* in order of preference */
    char *purpose;
    strList *required;          /* features that the destination must know */
    strList *features;          /* features that the source knows */
    strList *optional;          /* capabilities, in order of preference */
    /* In a profile in a file, not on the wire: */
    MigrationHandshakeDeclinedList *declined;   /* not possible by itself */
    GPtrArray *combinations;    /* of HandshakeCombination; NULL if absent */
    bool warnings_as_errors;
    HandshakeProfile *profile;  /* never NULL */
} HandshakeHello;

/* Each further channel begins with a header that says which one it is */
#define HANDSHAKE_FEATURE_NAMED_CHANNELS    "named-channels"

/* What was found; begin with an all-zero one */
typedef struct HandshakeIssues {
    MigrationHandshakeIssueList *list;      /* HANDSHAKE_ISSUES_MAX at most */
    MigrationHandshakeIssueList **tail;
    MigrationHandshakeIssueList **errors_tail;  /* errors come first */
    unsigned listed;
    unsigned omitted;                       /* found, but not in the list */
    unsigned errors;                        /* with those omitted here, and */
    unsigned warnings;                      /* without those a peer omitted */
} HandshakeIssues;

/* Destination to source: ACCEPT or REJECT, told apart by the frame's type */
typedef struct HandshakeVerdict {
    bool accept;
    uint32_t version;           /* the one in use */
    char *message;              /* REJECT: why, in one line */
    strList *features;          /* those that both sides know */
    strList *not_understood;    /* of the HELLO */
    MigrationHandshakePeer *peer;
    strList *capabilities;      /* ACCEPT: effective */
    MigrationHandshakeDeclinedList *declined;
    QDict *parameters;          /* ACCEPT: effective, as in the profile */
    HandshakeIssues issues;
} HandshakeVerdict;

HandshakeProfile *handshake_profile_new(void);
void handshake_profile_free(HandshakeProfile *profile);
G_DEFINE_AUTOPTR_CLEANUP_FUNC(HandshakeProfile, handshake_profile_free)

/**
 * handshake_profile_peer: what the other side is told about this QEMU
 * @profile: a profile
 *
 * Pure; any thread.
 *
 * Returns: an excerpt, to be freed by the caller
 */
MigrationHandshakePeer *handshake_profile_peer(const HandshakeProfile *profile);

/**
 * handshake_sections_new: an empty list of sections
 * handshake_ram_blocks_new: an empty list of RAM blocks
 *
 * Returns: an array of pointers, to be unreferenced by the caller
 */
GPtrArray *handshake_sections_new(void);
GPtrArray *handshake_ram_blocks_new(void);

/**
 * handshake_sections_add: put a section at the end
 * handshake_ram_blocks_add: put a RAM block at the end
 * @sections, @blocks: the list
 * @name: its name, which is copied
 *
 * Returns: the new item, which belongs to the list, to be filled in
 */
HandshakeSection *handshake_sections_add(GPtrArray *sections,
                                         const char *name);
HandshakeRAMBlock *handshake_ram_blocks_add(GPtrArray *blocks,
                                            const char *name);

HandshakeHello *handshake_hello_new(void);
void handshake_hello_free(HandshakeHello *hello);
G_DEFINE_AUTOPTR_CLEANUP_FUNC(HandshakeHello, handshake_hello_free)

HandshakeVerdict *handshake_verdict_new(void);
void handshake_verdict_free(HandshakeVerdict *verdict);
G_DEFINE_AUTOPTR_CLEANUP_FUNC(HandshakeVerdict, handshake_verdict_free)

/**
 * handshake_verdict_forget_agreement: nothing of it is in effect
 * @verdict: one that was a refusal, or that nothing came of
 */
void handshake_verdict_forget_agreement(HandshakeVerdict *verdict);

/**
 * handshake_text: a peer's text as it may be shown to people
 * @text: any text, or NULL
 *
 * Returns: the text on one line, of bounded length, and without what controls
 *          a terminal or turns text around, to be freed by the caller; NULL if
 *          @text is
 */
char *handshake_text(const char *text);

/**
 * handshake_declined_add: note that an optional capability will not be used
 * @list: where to append it
 * @capability: its name
 * @reason: why, for people
 */
void handshake_declined_add(MigrationHandshakeDeclinedList **list,
                            const char *capability, const char *reason);

/**
 * handshake_features: features that this QEMU knows
 *
 * Returns: names, to be freed by the caller
 */
strList *handshake_features(void);

/**
 * handshake_feature_known: whether this QEMU knows a handshake feature
 * @name: its name
 *
 * Returns: true if so
 */
bool handshake_feature_known(const char *name);

/**
 * handshake_features_common: features that both sides know
 * @peer: the names that the peer sent
 *
 * Returns: names, to be freed by the caller
 */
strList *handshake_features_common(const strList *peer);

/**
 * handshake_grease_name: a random reserved name
 *
 * Goes where a later version may put a name that today's peer does not know,
 * so that a peer which forgets to ignore those fails in its first test.
 *
 * Returns: the name, to be freed by the caller
 */
char *handshake_grease_name(void);

/**
 * handshake_grease_number: a random reserved frame type or version
 *
 * Returns: one of 0x0a0a, 0x1a1a, 0x2a2a, ... 0xfafa
 */
uint16_t handshake_grease_number(void);

/*
 * Messages to JSON text for a frame, to be freed by the caller.  All of them
 * carry grease.
 */
/* A machine with too many parts to fit into a frame does not list them */
char *handshake_hello_to_json(const HandshakeHello *hello);
/* A profile in a file: the same without grease */
QDict *handshake_hello_to_profile(const HandshakeHello *hello);
/* Issues that would not fit into a frame are left out and counted */
char *handshake_verdict_to_json(const HandshakeVerdict *verdict);
char *handshake_commit_to_json(const char *digest);
char *handshake_abort_to_json(const char *message,
                              const HandshakeIssues *issues);

/**
 * handshake_hello_from_json: read a HELLO
 * @text: what came in the frame
 * @len: how many bytes
 * @not_understood: names of members that were ignored are appended, a bounded
 *                  number; NULL if they don't matter
 *
 * Only the JSON and the types of the members are judged here.
 *
 * Returns: the message, or NULL with @errp set
 */
HandshakeHello *handshake_hello_from_json(const char *text, size_t len,
                                          strList **not_understood,
                                          Error **errp);

/**
 * handshake_hello_from_profile: read what handshake_hello_to_profile() made
 * @text: JSON
 * @len: how many bytes
 *
 * As strict as handshake_hello_from_json().
 *
 * Returns: the message, or NULL with @errp set
 */
HandshakeHello *handshake_hello_from_profile(const char *text, size_t len,
                                             Error **errp);

/**
 * handshake_combination_add: note that one capability changes another one
 * @hello: a profile
 * @capability: the one that changes
 * @with: the one that changes it
 * @reason: why it is impossible then, or NULL if it becomes possible
 */
void handshake_combination_add(HandshakeHello *hello, const char *capability,
                               const char *with, const char *reason);

/**
 * handshake_verdict_from_json: read an ACCEPT or a REJECT
 * @text: what came in the frame
 * @len: how many bytes
 * @accept: which of the two it is
 *
 * Returns: the message, or NULL with @errp set
 */
HandshakeVerdict *handshake_verdict_from_json(const char *text, size_t len,
                                              bool accept, Error **errp);

/**
 * handshake_commit_from_json: read a COMMIT
 * @text: what came in the frame
 * @len: how many bytes
 *
 * Returns: the digest's text, to be freed by the caller; NULL with @errp set
 */
char *handshake_commit_from_json(const char *text, size_t len, Error **errp);

/**
 * handshake_abort_from_json: read an ABORT
 * @text: what came in the frame
 * @len: how many bytes
 * @issues: the issues in it are added
 *
 * Returns: its message, to be freed by the caller; NULL with @errp set
 */
char *handshake_abort_from_json(const char *text, size_t len,
                                HandshakeIssues *issues, Error **errp);

/**
 * handshake_issue_add: put an issue at the end
 * @issues: what was found so far
 * @code: stable name, see docs/interop/migration-handshake.rst
 * @severity: how bad it is
 * @subject: what it is about, or NULL
 * @source: value on the source, or NULL
 * @destination: value on the destination, or NULL
 * @fmt: printf format of a sentence for a person
 *
 * Texts are cut to a bounded length and to one line: they may stem from a peer.
 */
void G_GNUC_PRINTF(7, 8)
handshake_issue_add(HandshakeIssues *issues, const char *code,
                    MigrationHandshakeSeverity severity, const char *subject,
                    const char *source, const char *destination,
                    const char *fmt, ...);

/**
 * handshake_issues_free: free what was found
 * @issues: becomes empty
 */
void handshake_issues_free(HandshakeIssues *issues);

/**
 * handshake_issues_summary: a refusal in one line
 * @issues: what was found
 *
 * Returns: how many problems there are and the gravest one's message, to be
 *          freed by the caller
 */
char *handshake_issues_summary(const HandshakeIssues *issues);

#endif
