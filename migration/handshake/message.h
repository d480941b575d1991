/*
 * Migration handshake: the messages, from and to JSON
 *
 * Messages are QAPI types.  A sender adds grease; a receiver bounds what it is
 * sent, and ignores what it does not know.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef QEMU_MIGRATION_HANDSHAKE_MESSAGE_H
#define QEMU_MIGRATION_HANDSHAKE_MESSAGE_H

#include "qapi/qapi-types-migration-handshake.h"
#include "wire.h"

/* The only version of the protocol so far */
#define HANDSHAKE_VERSION           1

/* What a HELLO is for */
#define HANDSHAKE_PURPOSE_MIGRATE   "migrate"
#define HANDSHAKE_PURPOSE_CHECK     "check"

/*
 * Features: channels with headers, words after the handshake, who has the
 * guest, headers after a pause
 */
#define HANDSHAKE_FEATURE_NAMED_CHANNELS    "named-channels"
#define HANDSHAKE_FEATURE_LATE_ERROR        "late-error"
#define HANDSHAKE_FEATURE_ONE_OWNER         "one-owner"
#define HANDSHAKE_FEATURE_RESUME_HEADER     "resume-header"

/* What a LAST WORD says of a guest that has not run there, and never will */
#define HANDSHAKE_GUEST_NOT_STARTED         "not-started"

/* More issues than this are counted, not listed */
#define HANDSHAKE_ISSUES_MAX        256

/* Parts of a RAM block that are told apart */
#define HANDSHAKE_MAPPED_MAX        16

/* How bad an issue is, from bad to harmless */
typedef enum HandshakeSeverity {
    HANDSHAKE_ERROR,
    HANDSHAKE_WARNING,
    HANDSHAKE_INFO,
} HandshakeSeverity;

/* Dirty bitmaps of a source; if there are more, it tells none */
#define HANDSHAKE_BITMAPS_MAX       1024

/* What a source may have ignored has no more words than that */
#define HANDSHAKE_IGNORE_MAX        64

/* What was found; begin with an all-zero one */
typedef struct HandshakeIssues {
    MigrationHandshakeIssueList *list;  /* errors first; bounded */
    unsigned listed;
    unsigned omitted;                   /* found, but not in the list */
    unsigned errors;                    /* with those omitted here, and */
    unsigned warnings;                  /* without those a peer omitted */
    strList *ignore;                    /* see handshake_issues_ignore() */
    unsigned ignored;                   /* so many of the warnings */
} HandshakeIssues;

/* A destination's answer, ready to be sent, or as it was received */
typedef struct HandshakeVerdict {
    bool accept;
    MigrationHandshakeVerdict *message; /* never NULL; has no issues: */
    HandshakeIssues issues;
} HandshakeVerdict;

/**
 * handshake_verdict_new: an empty verdict
 * @accept: whether it is an acceptance
 *
 * Returns: to be freed by handshake_verdict_free()
 */
HandshakeVerdict *handshake_verdict_new(bool accept);
void handshake_verdict_free(HandshakeVerdict *verdict);
G_DEFINE_AUTOPTR_CLEANUP_FUNC(HandshakeVerdict, handshake_verdict_free)

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
 * @list: where to append it; its has_ member is the caller's business
 * @capability: its name
 * @reason: why, for people
 */
void handshake_declined_add(MigrationHandshakeDeclinedList **list,
                            const char *capability, const char *reason);

/**
 * handshake_has_name: whether a list has a name
 * @list: names, or NULL
 * @name: the name
 *
 * Returns: true if so
 */
bool handshake_has_name(const strList *list, const char *name);

/**
 * handshake_features: features of the protocol that this QEMU knows
 * handshake_features_common: those of them that the peer knows, too
 * @peer: names that the peer has sent
 *
 * Returns: names, to be freed by the caller
 */
strList *handshake_features(void);
strList *handshake_features_common(const strList *peer);

/**
 * handshake_issue_add: note an issue
 * @issues: what was found so far
 * @code: stable name, see docs/interop/migration-handshake.rst
 * @severity: how bad it is
 * @subject: what it is about, or NULL
 * @source: value on the source, or NULL
 * @destination: value on the destination, or NULL
 * @fmt: printf format of a sentence for a person
 *
 * Errors are listed before all else, and take its place if the list is full.
 * What is ignored becomes a warning that says so.
 * Texts are cut to a bounded length and to one line: they may stem from a peer.
 */
void G_GNUC_PRINTF(7, 8)
handshake_issue_add(HandshakeIssues *issues, const char *code,
                    HandshakeSeverity severity, const char *subject,
                    const char *source, const char *destination,
                    const char *fmt, ...);

/**
 * handshake_ignore_validate: whether a user's words name what can be ignored
 * @ignore: codes of issues, or CODE:SUBJECT
 *
 * Returns: true if so, false with @errp set if not
 */
bool handshake_ignore_validate(const strList *ignore, Error **errp);

/**
 * handshake_issues_ignore: say what stands in nobody's way
 * @issues: what was found so far, or received
 * @ignore: codes of issues, or CODE:SUBJECT; copied.  A word that is none, or
 *          names what cannot be ignored, has no effect.
 *
 * An error that is added from now on and ignored becomes a warning.
 */
void handshake_issues_ignore(HandshakeIssues *issues, const strList *ignore);

/**
 * handshake_issues_refuse: whether what was found is a reason to refuse
 * @issues: what was found
 * @strict: whether a warning is one, too, unless it is ignored
 *
 * Returns: true if so
 */
bool handshake_issues_refuse(const HandshakeIssues *issues, bool strict);

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

/*
 * Putting messages: each appends the frame to @buf, with grease in it.  What
 * has no room in a frame is left out: a machine with too many parts does not
 * list them, and issues are counted instead.
 *
 * A refusal says nothing of what would be in effect.
 *
 * Returns: true on success, false with @errp set
 */
bool handshake_put_hello(GByteArray *buf, const MigrationHandshakeHello *hello,
                         Error **errp);
bool handshake_put_verdict(GByteArray *buf, const HandshakeVerdict *verdict,
                           Error **errp);
bool handshake_put_commit(GByteArray *buf,
                          const MigrationHandshakeCommit *commit, Error **errp);
/* ABORT, LAST WORD or LOADED; the issues of @reason are in @issues instead */
bool handshake_put_reason(GByteArray *buf, HandshakeFrameType type,
                          const MigrationHandshakeReason *reason,
                          const HandshakeIssues *issues, Error **errp);
/* A frame that nobody knows */
void handshake_put_grease(GByteArray *buf);

/**
 * handshake_get_hello: read a HELLO
 * @json: what came in the frame
 * @not_understood: set to the names of members that were ignored, a bounded
 *                  number; may be NULL
 *
 * Returns: the message, or NULL with @errp set if it is malformed; its profile
 *          is never NULL
 */
MigrationHandshakeHello *handshake_get_hello(const GString *json,
                                             strList **not_understood,
                                             Error **errp);

/**
 * handshake_get_profile: read what query-migrate-profile has returned
 * @profile: JSON of any kind
 *
 * Exactly as what comes in a frame.
 *
 * Returns: the message, or NULL with @errp set if it is malformed
 */
MigrationHandshakeHello *handshake_get_profile(const QObject *profile,
                                               Error **errp);

/**
 * handshake_get_verdict: read an ACCEPT or a REJECT
 * @json: what came in the frame
 * @accept: which of the two it is
 *
 * A REJECT counts by its type: what is wrong in it is left out.  Texts are such
 * as may be shown to people, and features those that both sides know.
 *
 * Returns: the message, or NULL with @errp set if it is a malformed ACCEPT
 */
HandshakeVerdict *handshake_get_verdict(const GString *json, bool accept,
                                        Error **errp);

/**
 * handshake_get_commit: read a COMMIT
 * @json: what came in the frame
 *
 * Texts are such as may be shown to people.
 *
 * Returns: the message, or NULL with @errp set if it is malformed
 */
MigrationHandshakeCommit *handshake_get_commit(const GString *json,
                                               Error **errp);

/**
 * handshake_get_reason: read an ABORT, a LAST WORD or a LOADED
 * @json: what came in the frame
 * @issues: the issues in it are added, unless it is NULL
 *
 * It counts by its type: what is wrong in it is left out.
 *
 * Returns: what it says, as it may be shown to people, without issues, to be
 *          freed by the caller; its message is never NULL
 */
MigrationHandshakeReason *handshake_get_reason(const GString *json,
                                               HandshakeIssues *issues);

#endif
