/*
 * A model of the migration handshake, for spin.
 *
 * It has the conversation of docs/interop/migration-handshake.rst: one
 * destination, one or two sources that try more than once, the further channels
 * of each attempt, a hostile peer, and a network, a user and timers that strike
 * at any moment.  test_model.py says in which bounded worlds spin looks at all
 * states.
 *
 * Abstractions:
 *
 * - A message comes as a whole or not at all.  One of which a part has come is
 *   like an end of the stream before it.
 * - A configuration is a set of two capabilities.  MULTIFD has CHANNELS further
 *   channels, PREEMPT has one.  Nothing else of HELLO and ACCEPT is there.
 *   Without CHANNELS, MULTIFD is a capability that has no channels.
 * - The source opens its further channels in one step, and an answer is read at
 *   once or never: one that is slow is a header that is slow.  A channel that has
 *   been answered does not break before the migration has been delivered.
 * - A digest is what its sender has seen: HELLO and ACCEPT.  A proxy alters
 *   these; one that could alter COMMIT could make its digest right, too.
 * - Sessions are numbered by connection, and never repeat.
 * - A timer may run out at any moment.  So a message that comes too late is one
 *   that is still in its queue then.  Where timers are TIMELY, only the source's
 *   5 s without progress run out.
 * - The stream is one message, sent when the source has stopped its guest.  SHUT
 *   is what ends the return path when it has been loaded.
 * - Both sides have the feature for a LAST WORD.
 *
 * Left out: TLS, versions, features, profiles, grease, malformed bytes other
 * than a hostile peer's, the bound on unauthenticated connections, postcopy
 * (where the source does not own the guest to the end) and its recovery, and a
 * peer that lies well: without TLS, whoever speaks the protocol is a source.
 * What follows the point of no return ends with SHUT or in failure, and the
 * destination is not used again; who has the guest then is for end.pml.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

/* The bounds of a run */
#ifndef SOURCES
#define SOURCES 1           /* 1 or 2 */
#endif
#ifndef ATTEMPTS
#define ATTEMPTS 2          /* of the first source: 1 or 2 */
#endif
#ifndef ATTEMPTS2
#define ATTEMPTS2 2         /* of the second one, likewise */
#endif
#ifndef CHANNELS
#define CHANNELS 0          /* of multifd: 0 to 2 */
#endif
#ifndef PLAIN
#define PLAIN 0             /* 1: sources require and offer nothing */
#endif
#ifndef CHECKS
#define CHECKS 0            /* 1: sources may also check */
#endif
#ifndef TOO_LONGS
#define TOO_LONGS 0         /* 1: a HELLO may be refused before its end */
#endif
#ifndef HOSTILES
#define HOSTILES 0          /* 0 or 1 */
#endif
#ifndef CHANGES
#define CHANGES 0           /* how often QMP changes what the destination can */
#endif
#ifndef ALTERS
#define ALTERS 0            /* how many messages a proxy alters */
#endif
#ifndef FAULTS
#define FAULTS 2            /* how many main channels the network breaks at most */
#endif
#ifndef TIMELY
#define TIMELY 0            /* 1: nobody is so slow that a long timer runs out */
#endif

/*
 * A mistake that spin has to find, see test_model.py; 0: none.  With ANY_MISTAKE
 * it is the environment of the search that has BROKEN, so that one verifier does
 * for many.
 */
#ifndef BROKEN
#define BROKEN 0
#endif
#ifdef ANY_MISTAKE
hidden byte broken;
#define MISTAKE(n) (broken == n)
#else
#define MISTAKE(n) (BROKEN == n)
#endif

/*
 * 1: the destination starts the guest by itself as soon as it has loaded it, as
 * it does without feature one-owner.  If the connection breaks, or the user
 * cancels, while SHUT is on the way, the guest runs twice.  end.pml is what mends
 * that.  0: nobody starts it without being told: by the source, or by management
 * that has seen the source complete.
 */
#ifndef AUTOSTART
#define AUTOSTART 0
#endif

#define FIRST(i) ((i) * ATTEMPTS)       /* connection of source i */
#define OWNER(c) ((c) >= ATTEMPTS)
#if SOURCES == 1
#define HOSTILE ATTEMPTS                /* the connection after all of these */
#else
#define HOSTILE (ATTEMPTS + ATTEMPTS2)
#endif
#define LAST(i) ((i) == 0 -> ATTEMPTS : HOSTILE)      /* and one more */
#define CONNECTIONS (HOSTILE + HOSTILES)
#define SLOTS (CHANNELS + 1)            /* multifd, then preempt */

#define MULTIFD 1
#define PREEMPT 2
#define NOTHING 255                     /* no configuration, not even {} */
#if CHANNELS
#define WITH_CHANNELS (MULTIFD | PREEMPT)
#else
#define WITH_CHANNELS PREEMPT
#endif
#define CAPABILITY(k) ((k) < CHANNELS -> MULTIFD : PREEMPT)

/* HELLO in a byte, and COMMIT: what its sender has seen of ACCEPT, `without` */
#define OFFER(check, required, optional) ((check) * 16 + (required) * 4 + (optional))
#define IS_CHECK(h) ((h) / 16)
#define REQUIRED(h) (((h) / 4) & 3)
#define OPTIONAL(h) ((h) & 3)
#define COMMITS(effective, without) ((effective) * 4 + (without))
#define ACCEPTED(x) ((x) / 4)
#define WITHOUT(x) ((x) & 3)
#define WITHIN(a, b) (((a) & ~(b)) == 0)

mtype:message = { HELLO, COMMIT, ABORT, STREAM, NONSENSE, TOO_LONG, REST,
                  ACCEPT, REJECT, LAST_WORD, SHUT };
mtype:reason = { BUSY, UNABLE, BAD };

/* A connection: what is on its way, what the network does, who has closed */
chan to_dst[CONNECTIONS] = [3] of { mtype:message, byte, byte };
chan to_src[CONNECTIONS] = [2] of { mtype:message, byte, byte };
mtype:net = { INTACT, CUT, RESET, SILENT };
mtype:net net[CONNECTIONS] = INTACT;
bool src_closed[CONNECTIONS];
bool dst_shut[CONNECTIONS];             /* nothing more to send, still reads */
bool dst_closed[CONNECTIONS];

/* The destination.  DECIDING: COMMIT has been read, and neither is the set with
   the loader nor the session over; what is never to be seen. */
mtype:stage = { NOBODY, HEADER, COMMITTING, DECIDING, LOADING, DRAINING, GONE };
mtype:stage stage[CONNECTIONS] = NOBODY;
byte session;                           /* connection + 1, 0: free */
byte agreed;                            /* what its ACCEPT said */
byte slot[SLOTS];                       /* the channels of which session */
byte loader[SLOTS];                     /* the same, once given to the loader */
byte can = MULTIFD | PREEMPT;
byte applied = NOTHING;
bool delivered;                         /* no way back */
bool listening = true;
byte loaded;                            /* whose guest: source + 1 */
byte loaded_with = NOTHING;             /* in which configuration */
byte runs_there;                        /* likewise */
bool said[CONNECTIONS];                 /* REJECT or LAST WORD has gone out */

/* The sources */
mtype:phase = { IDLE, CONNECTING, WAITING, OPENING, SENDING, LEAVING, ENDED };
mtype:phase phase[SOURCES] = IDLE;
mtype:outcome = { NONE, COMPLETED, FAILED, CANCELLED, REFUSED, CHECKED };
mtype:outcome outcome[SOURCES] = NONE;  /* of the last attempt */
mtype:cause = { UNEXPLAINED, UNREACHABLE, CONNECTION_LOST, TIME_OUT, DISAGREEMENT,
                NO_CHANNEL, ITS_LAST_WORD };
byte current[SOURCES];                  /* connection */
byte src_applied[SOURCES] = NOTHING;
bool runs_here[SOURCES] = true;
bool owns[SOURCES] = true;
bool was_busy[SOURCES];
byte offer[CONNECTIONS];
byte committed[CONNECTIONS] = NOTHING;  /* ACCEPT's set, less `without` */

/* Further channels of a connection's session.  NOWHERE: no answer will come. */
mtype:flight = { UNOPENED, ON_ITS_WAY, NOWHERE, ANSWERED };
typedef Flights { mtype:flight at[SLOTS] = UNOPENED };
Flights flight[CONNECTIONS];

/* Those capabilities of a set of which a channel has not been answered */
#define UNANSWERED_AT(c, k) (flight[c].at[k] != ANSWERED -> CAPABILITY(k) : 0)
#if CHANNELS == 0
#define UNANSWERED(c, set) ((set) & UNANSWERED_AT(c, 0))
#elif CHANNELS == 1
#define UNANSWERED(c, set) ((set) & (UNANSWERED_AT(c, 0) | UNANSWERED_AT(c, 1)))
#else
#define UNANSWERED(c, set) \
    ((set) & (UNANSWERED_AT(c, 0) | UNANSWERED_AT(c, 1) | UNANSWERED_AT(c, 2)))
#endif

/* Environment */
byte faults;
bool cancels;                           /* whether the user ever does */
byte changes = CHANGES;
byte alters = ALTERS;

/*
 * Properties.  Each holds in every state; Watch looks.
 *
 * What is set by whoever finds a violation on the spot: */
bool dishonest;                         /* a peer met what no honest one sends */
bool unheard;                           /* what was said, or due, got lost */
bool unexplained;                       /* an attempt failed without a reason */
bool needless;                          /* one failed for what was optional */

/* The configuration that a destination applies is the one that the source of
   its session has sent COMMIT for, and has itself. */
#define AGREEMENT \
    (applied == NOTHING || (session != 0 && committed[session - 1] == applied))
#define SAME_AT_SOURCE(i) \
    (applied == NOTHING || session != current[i] + 1 || \
     (phase[i] != SENDING && phase[i] != LEAVING) || src_applied[i] == applied)

/* A source commits to nothing that it has not offered, and to all it needs, */
#define WITHIN_OFFER(c) \
    (committed[c] == NOTHING || \
     (WITHIN(committed[c], REQUIRED(offer[c]) | OPTIONAL(offer[c])) && \
      WITHIN(REQUIRED(offer[c]), committed[c])))
/* and to nothing that it has not seen working. */
#define PROVEN(i) \
    ((phase[i] != SENDING && phase[i] != LEAVING) || \
     UNANSWERED(current[i], committed[current[i]]) == 0)

/* A guest never runs on both sides, */
#define ONE_OWNER(i) (!(runs_here[i] && runs_there == i + 1))
/* a source never gives away a guest that the destination has not got, */
#define NOT_LOST(i) (owns[i] || loaded == i + 1)
/* and it runs on at the source until that has sent COMMIT and then all of it,
   and again when the attempt ends in another way than completed. */
#define RUNS_ON(i) \
    (runs_here[i] || outcome[i] == COMPLETED || \
     (phase[i] == LEAVING && committed[current[i]] != NOTHING))

/* A session is of a conversation that goes on, or of the migration; */
#define SESSION_ALIVE \
    (session == 0 || \
     stage[session - 1] == COMMITTING || stage[session - 1] == DECIDING || \
     stage[session - 1] == LOADING)
/* there is one at most; */
#define ONE_SESSION(c) \
    ((stage[c] != COMMITTING && stage[c] != LOADING) || session == c + 1)
/* what is loaded has it; */
#define SESSION_LOADS \
    (applied == NOTHING || (session != 0 && stage[session - 1] == LOADING))
/* and none begins when the guest has come, or is lost on its way. */
#define NONE_TOO_LATE (session == 0 || listening)

/* After COMMIT the destination waits for nothing. */
#define DECIDES_AT_ONCE(c) (stage[c] != DECIDING)

/* Nothing that a peer does before a migration is delivered ends the listener, */
#define LISTENS (listening || delivered)
/* and nothing is applied for a COMMIT that is none. */
#define LAWFUL (HOSTILES == 0 || applied == NOTHING || session != HOSTILE + 1)

/* A check has no session, opens no further channel, applies nothing on either
   side, and says nothing more. */
#define CHECK_HARMLESS(c) \
    (!IS_CHECK(offer[c]) || \
     (session != c + 1 && committed[c] == NOTHING && flight[c].at[0] == UNOPENED))

/* A session has no channel of another one, and no more has the loader, */
#define OWN_CHANNEL(k) \
    ((slot[k] == 0 || slot[k] == session) && (loader[k] == 0 || loader[k] == session))
/* which gets all that it needs before anything else, */
#define CHANNEL_THERE(k) \
    (applied == NOTHING || !(applied & CAPABILITY(k)) || loader[k] != 0)
/* and none that it does not need. */
#define NO_CHANNEL_MORE(k) \
    (loader[k] == 0 || (applied != NOTHING && (applied & CAPABILITY(k))))

/* The destination applies only what it can do then, */
#define ABLE (applied == NOTHING || WITHIN(applied, can))
/* and has its own settings whenever no migration is being loaded; */
#define DST_RESTORES (applied == NOTHING || delivered)
/* so has a source between attempts. */
#define SRC_RESTORES(i) \
    (phase[i] == SENDING || phase[i] == LEAVING || src_applied[i] == NOTHING)

/* Where the network does no harm, nobody meets what the protocol forbids, */
#define HONEST (!dishonest)
/* and a source that is refused, or whose COMMIT is, learns why. */
#define HEARD (!unheard)
/* A source that fails knows why, */
#define EXPLAINED (!unexplained)
/* and does not for what was only optional. */
#define OPTIONAL_IS_OPTIONAL (!needless)

/*
 * Everything ends, whatever is lost, if timers run out: no state but that of a
 * process at its `end` is one in which nothing more happens, which spin looks at
 * by itself.  That it does not go round in circles:
 */
#define ENDED_ALL (phase[0] == ENDED && phase[SOURCES - 1] == ENDED)
#define IN_CONVERSATION(c) (stage[c] != NOBODY && stage[c] != GONE)
ltl attempts_end { <> ENDED_ALL }
ltl conversations_end {
    [] ((IN_CONVERSATION(0) -> <> !IN_CONVERSATION(0)) &&
        (IN_CONVERSATION(CONNECTIONS - 1) -> <> !IN_CONVERSATION(CONNECTIONS - 1)))
}
ltl session_is_free_again { [] (session != 0 -> <> (session == 0)) }

/*
 * A model in which nothing can happen would have all of these properties.  So
 * test_model.py expects spin to refute the following ones.
 */
ltl never_with_channels { [] !(!owns[0] && loaded_with == (MULTIFD | PREEMPT)) }
ltl never_without_channels { [] !(!owns[0] && loaded_with == 0) }
ltl never_without_one { [] !(!owns[0] && loaded_with == PREEMPT) }
ltl never_too_late { [] !(stage[0] == LOADING && flight[0].at[0] == ON_ITS_WAY) }
ltl never_there_in_vain {
    [] !(slot[0] == 1 && phase[0] == SENDING && src_applied[0] == PREEMPT)
}
ltl never_of_an_old_session {
    [] !(session == 2 && flight[0].at[0] == ON_ITS_WAY && flight[1].at[0] == ON_ITS_WAY)
}
ltl never_at_second_attempt { [] !(!owns[0] && current[0] == 1) }
ltl never_after_a_last_word {
    [] !(stage[0] == DRAINING && committed[0] != NOTHING && stage[1] == LOADING)
}
ltl never_after_busy { [] !(was_busy[SOURCES - 1] && !owns[SOURCES - 1]) }
ltl never_after_a_hostile {
    [] !(was_busy[0] && !owns[0] && stage[CONNECTIONS - 1] == GONE)
}
ltl never_ends_in_vain { [] !(ENDED_ALL && listening && runs_here[0]) }
ltl never_without_shut { [] !(ENDED_ALL && loaded == 1 && runs_here[0]) }

/* --- Connections ------------------------------------------------------- */

#define RESET_BY_PEER(c) (net[c] == CUT || net[c] == RESET)

/*
 * The network may end a connection at any moment, which shows when somebody
 * looks; the other one may still read what has been sent by then, or not.  It
 * may let it fall silent, which shows by what does not come any more: a message
 * or the end of the stream.
 */
#define MAY_BREAK(c) (net[c] == INTACT && faults > 0)

#define SRC_CAN_READ(c) (net[c] != SILENT && nempty(to_src[c]))
#define DST_CAN_READ(c) (net[c] != SILENT && nempty(to_dst[c]))
#define SRC_SEES_END(c) \
    (RESET_BY_PEER(c) || \
     (net[c] == INTACT && (dst_shut[c] || dst_closed[c]) && empty(to_src[c])))
#define DST_SEES_END(c) \
    (RESET_BY_PEER(c) || (net[c] == INTACT && src_closed[c] && empty(to_dst[c])))
/* By the state of the connection, without reading: POLLRDHUP */
#define DST_SEES_GONE(c) (RESET_BY_PEER(c) || (net[c] == INTACT && src_closed[c]))

inline break_off(c, how)
{
    net[c] = how;
    faults--
}

inline discard(queue)
{
    do
    :: nempty(queue) -> queue ? _, _, _
    :: empty(queue) -> break
    od
}

/* Who sends to somebody who has closed gets a reset */
inline src_send(c, m, x, y)
{
    if
    :: net[c] == INTACT && !dst_closed[c] -> to_dst[c] ! m, x, y
    :: net[c] == INTACT && dst_closed[c] -> net[c] = RESET
    :: net[c] != INTACT -> skip
    :: MAY_BREAK(c) -> break_off(c, SILENT)
    fi
}

inline dst_send(c, m, x, y)
{
    if
    :: net[c] == INTACT && !src_closed[c] -> to_src[c] ! m, x, y
    :: net[c] == INTACT && src_closed[c] -> net[c] = RESET
    :: net[c] != INTACT -> skip
    :: MAY_BREAK(c) -> break_off(c, SILENT)
    fi
}

/* Who closes with something unread resets the connection */
inline src_close(c)
{
    src_closed[c] = true;
    if
    :: net[c] == INTACT && nempty(to_src[c]) -> net[c] = RESET
    :: net[c] != INTACT || empty(to_src[c]) -> skip
    :: MAY_BREAK(c) && !dst_closed[c] -> break_off(c, SILENT)
    fi;
    discard(to_src[c]);
    forget(c)
}

inline dst_close(c)
{
    dst_closed[c] = true;
    if
    :: net[c] == INTACT && nempty(to_dst[c]) -> net[c] = RESET
    :: net[c] != INTACT || empty(to_dst[c]) -> skip
    :: MAY_BREAK(c) && !src_closed[c] -> break_off(c, SILENT)
    fi;
    discard(to_dst[c]);
    forget(c)
}

/* Fewer states: nobody looks at it any more */
inline forget(c)
{
    if
    :: src_closed[c] && dst_closed[c] ->
       net[c] = INTACT;
       dst_shut[c] = false;
       said[c] = false;
       offer[c] = 0;
       committed[c] = NOTHING
    :: else -> skip
    fi
}

/* --- The destination --------------------------------------------------- */

inline session_end()
{
    session = 0;
    agreed = 0;
    for (k : 0 .. SLOTS - 1) {          /* its channels are closed */
        slot[k] = (MISTAKE(19) -> slot[k] : 0)
    }
}

inline session_drop(c)
{
    if
    :: session == c + 1 && !(MISTAKE(2) && stage[c] == COMMITTING) -> session_end()
    :: else -> skip
    fi
}

/* The last thing that it says; it is to be heard before this side closes */
inline say(c, m, why)
{
    if
    :: net[c] == INTACT && !src_closed[c] -> said[c] = true
    :: else -> skip
    fi;
    dst_send(c, m, why, 0);
    stage[c] = DRAINING
}

/* What COMMIT may leave out */
#define MAY_BE_LEFT_OUT(without, hello, eff) \
    ((WITHIN(without, eff) || MISTAKE(32)) && \
     (WITHIN(without, ~REQUIRED(hello)) || MISTAKE(31)) && \
     (WITHIN(without, WITH_CHANNELS) || MISTAKE(33)) && \
     ((without) == 0 || !MISTAKE(40)))

#define MISSING_AT(k, eff) (((eff) & CAPABILITY(k)) && slot[k] == 0)
#if CHANNELS == 0
#define MISSING(eff) MISSING_AT(0, eff)
#elif CHANNELS == 1
#define MISSING(eff) (MISSING_AT(0, eff) || MISSING_AT(1, eff))
#else
#define MISSING(eff) (MISSING_AT(0, eff) || MISSING_AT(1, eff) || MISSING_AT(2, eff))
#endif

/* A COMMIT of an honest source, for this very ACCEPT */
#define IS_RIGHT(x, y) \
    ((MISTAKE(3) || ((x) == hello && ACCEPTED(y) == eff)) && \
     MAY_BE_LEFT_OUT(WITHOUT(y), hello, eff) && \
     (MISTAKE(8) || !MISSING(eff & ~WITHOUT(y))))

/*
 * One connection whose header is for "main": a coroutine in QEMU.  Between HELLO
 * and its verdict others may have their turn; that is as if HELLO came later.
 */
proctype Conversation(byte c)
{
    mtype:message m;
    byte x, y, k;
    byte hello, eff, without;

end:
    stage[c] == HEADER;

    /* The channel header and HELLO, and the verdict */
    atomic {
        if
        :: !listening && !MISTAKE(20) -> goto over
        :: (listening || MISTAKE(20)) && DST_CAN_READ(c) ->
           to_dst[c] ? m, hello, _;
           if
           :: m == HELLO -> skip
           :: m == TOO_LONG -> say(c, REJECT, BAD); goto drain
           :: m != HELLO && m != TOO_LONG ->
              dishonest = dishonest || c != HOSTILE;
              listening = listening && !MISTAKE(16);
              goto over
           fi
        :: DST_SEES_END(c) -> goto over
        :: MAY_BREAK(c) -> break_off(c, CUT); goto over
        :: !TIMELY -> goto over                         /* HELLO timer */
        fi;

        if
        :: session != 0 && !MISTAKE(15) -> say(c, REJECT, BUSY); goto drain
        :: session == 0 || MISTAKE(15) -> skip
        fi;
        if
        :: !WITHIN(REQUIRED(hello), can) -> say(c, REJECT, UNABLE); goto drain
        :: WITHIN(REQUIRED(hello), can) -> eff = REQUIRED(hello) | (OPTIONAL(hello) & can)
        fi;
        if
        :: !IS_CHECK(hello) || MISTAKE(5) -> session = c + 1; agreed = eff
        :: IS_CHECK(hello) && !MISTAKE(5) -> skip
        fi;
        if
        :: dst_send(c, ACCEPT, c + 1, eff)
        :: alters > 0 -> alters--; dst_send(c, ACCEPT, c + 1, eff ^ PREEMPT)
        :: alters > 0 -> alters--; dst_send(c, ACCEPT, c + 1, eff ^ MULTIFD)
        fi;
        if
        :: IS_CHECK(hello) -> stage[c] = DRAINING; goto drain
        :: !IS_CHECK(hello) -> stage[c] = COMMITTING
        fi
    };

    /* Channels take their places meanwhile, see below; each restarts the timer */
    atomic {
        if
        :: DST_CAN_READ(c) && !MISTAKE(1) ->
           to_dst[c] ? m, x, y;
           if
           :: m == COMMIT -> stage[c] = DECIDING
           :: m == ABORT -> goto over
           :: m != COMMIT && m != ABORT ->
              dishonest = dishonest || c != HOSTILE;
              goto over
           fi
        :: MISTAKE(1) -> stage[c] = DECIDING; x = hello; y = COMMITS(eff, 0)
        :: DST_SEES_END(c) -> goto over
        :: MAY_BREAK(c) -> break_off(c, CUT); goto over
        :: !TIMELY && !MISTAKE(6) -> goto over          /* COMMIT timer */
        fi;

        /* What comes on this one now is the stream */
        without = WITHOUT(y);
        if
        :: IS_RIGHT(x, y) -> skip
        :: MISTAKE(10) && !IS_RIGHT(x, y) && DST_SEES_GONE(c) -> goto over
        :: !IS_RIGHT(x, y) && !MISTAKE(10) ->
           dishonest = dishonest || (ALTERS == 0 && c != HOSTILE);
           goto unable
        fi;
        eff = (MISTAKE(28) -> eff : eff & ~without);
        for (k : 0 .. SLOTS - 1) {      /* channels that are not needed are closed */
            slot[k] = ((eff & CAPABILITY(k)) || MISTAKE(29) -> slot[k] : 0)
        }

        /* QMP may have changed something: the last chance to fail */
        if
        :: WITHIN(eff, can) || MISTAKE(12) ->
           applied = eff;
           if
           :: delivered = true
           :: applied = (MISTAKE(13) -> applied : NOTHING); goto unable /* prepare */
           fi
        :: !WITHIN(eff, can) && !MISTAKE(12) -> goto unable
        fi;
        stage[c] = LOADING;
        for (k : 0 .. SLOTS - 1) {
            loader[k] = slot[k]
        }
    };

    /*
     * No way back: as without a handshake.  A loader that waits for a source
     * that has fallen silent is ended by TCP, or by whoever manages it.
     */
    atomic {
        if
        :: DST_CAN_READ(c) ->
           to_dst[c] ? m, x, y;
           dishonest = dishonest || m != STREAM;
           if
           :: m == STREAM ->
              loaded = OWNER(c) + 1;
              loaded_with = applied;
              runs_there = (AUTOSTART -> loaded : 0);
              dst_send(c, SHUT, 0, 0)
           :: else -> skip
           fi
        :: true -> skip                                 /* it fails */
        fi;
        listening = false;
        applied = NOTHING;
        session_end();
        for (k : 0 .. SLOTS - 1) {
            loader[k] = 0
        };
        goto over
    };

    atomic {
        skip;
unable:
        if
        :: MISTAKE(36) -> goto over
        :: !MISTAKE(36) -> skip
        fi;
        if
        :: !MISTAKE(37) -> session_drop(c)
        :: MISTAKE(37) -> skip
        fi;
        listening = listening && !MISTAKE(35);
        say(c, LAST_WORD, UNABLE)
    };

drain:
    if
    :: MISTAKE(11) -> goto over
    :: else -> dst_shut[c] = true
    fi;
    do
    :: atomic { DST_CAN_READ(c) -> to_dst[c] ? m, _, _ }
    :: atomic { DST_SEES_END(c) -> break }
    :: atomic { MAY_BREAK(c) -> break_off(c, CUT); break }
    /* It is long enough for whoever is there to read what was said */
    :: atomic { net[c] == SILENT || c == HOSTILE -> break }
    :: atomic { !listening -> said[c] = false; break }
    od;

    atomic {
        skip;
over:
        /* It has read COMMIT, could not go on, and said nothing */
        unheard = unheard || (stage[c] == DECIDING && c != HOSTILE);
        session_drop(c);
        dst_close(c);
        stage[c] = GONE;
        m = 0; x = 0; y = 0; k = 0;     /* fewer states: nobody looks at them */
        hello = 0; eff = 0; without = 0;
        goto end
    }
}

/*
 * A connection whose header names another channel.  It gets a place and is
 * answered, which may get lost; or it is dropped alone.
 */
#define HAS_PLACE(c, k) \
    (session != 0 && (session == c + 1 || MISTAKE(7)) && slot[k] == 0 && \
     WITHIN(CAPABILITY(k), agreed) && \
     (stage[session - 1] == COMMITTING || MISTAKE(30)))

inline arrive(c, k)
{
    if
    :: HAS_PLACE(c, k) ->
       slot[k] = c + 1;
       if
       :: stage[session - 1] == LOADING -> loader[k] = slot[k]  /* MISTAKE(30) */
       :: else -> skip
       fi;
       if
       :: flight[c].at[k] = ANSWERED
       :: flight[c].at[k] = NOWHERE
       fi
    :: !HAS_PLACE(c, k) -> flight[c].at[k] = NOWHERE
    fi;
    flight[c].at[k] = (src_closed[c] -> UNOPENED : flight[c].at[k])
}

#define ARRIVE_AT(c, k) \
    :: atomic { flight[c].at[k] == ON_ITS_WAY -> arrive(c, k) }
#if CHANNELS == 0
#define ARRIVE(c) ARRIVE_AT(c, 0)
#elif CHANNELS == 1
#define ARRIVE(c) ARRIVE_AT(c, 0) ARRIVE_AT(c, 1)
#else
#define ARRIVE(c) ARRIVE_AT(c, 0) ARRIVE_AT(c, 1) ARRIVE_AT(c, 2)
#endif

active proctype Others()
{
end:
    do
    ARRIVE(0)
#if HOSTILE > 1
    ARRIVE(1)
#endif
#if HOSTILE > 2
    ARRIVE(2)
#endif
#if HOSTILE > 3
    ARRIVE(3)
#endif
    od
}

#if CHANGES
/* What is negotiated cannot be set while it is applied */
active proctype Qmp()
{
end:
    do
    :: d_step { changes > 0 && applied == NOTHING -> changes--; can = can ^ MULTIFD }
    :: d_step { changes > 0 && applied == NOTHING -> changes--; can = can ^ PREEMPT }
    od
}
#endif

/* Says `cont` when it has seen the source complete */
active proctype Management()
{
end:
    do
    :: d_step {
           loaded != 0 && runs_there == 0 && outcome[loaded - 1] == COMPLETED ->
           runs_there = loaded
       }
    od
}

/* --- The source -------------------------------------------------------- */

inline say_hello(c, h)
{
    if
    :: src_send(c, HELLO, h, 0)
    :: alters > 0 -> alters--; src_send(c, HELLO, h ^ OFFER(0, 0, PREEMPT), 0)
    fi
}

#define AGREES(h, eff) \
    (MISTAKE(9) || \
     (WITHIN(eff, REQUIRED(h) | OPTIONAL(h)) && WITHIN(REQUIRED(h), eff)))

/* Each way in which a channel may not get through, and the one in which it may */
inline open(c, k)
{
    if
    :: !WITHIN(CAPABILITY(k), eff) -> skip
    :: WITHIN(CAPABILITY(k), eff) ->
       if
       :: flight[c].at[k] = ON_ITS_WAY
       :: flight[c].at[k] = NOWHERE                     /* swallowed */
       :: flight[c].at[k] = NOWHERE;                    /* refused */
          without = without | CAPABILITY(k)
       :: flight[c].at[k] = (MISTAKE(23) -> ANSWERED : NOWHERE);    /* not by it */
          without = without | (MISTAKE(23) -> 0 : CAPABILITY(k))
       fi
    fi
}

inline fail(why)
{
    outcome[i] = FAILED;
    cause = why
}

proctype Source(byte i)
{
    mtype:message m;
    mtype:cause cause = UNEXPLAINED;
    byte x, k, eff, hello, without;
    byte c = FIRST(i);

    do
    :: atomic { c == LAST(i) || outcome[i] == COMPLETED -> break }
    :: atomic {
           c < LAST(i) && outcome[i] != COMPLETED ->
           current[i] = c;
           phase[i] = CONNECTING;
           if
           :: !listening -> fail(UNREACHABLE); goto over
           :: cancels -> outcome[i] = CANCELLED; goto over
           :: listening -> stage[c] = HEADER
           fi;
           if
           :: PLAIN -> hello = OFFER(0, 0, 0)
           :: !PLAIN -> hello = OFFER(0, 0, MULTIFD | PREEMPT)
           :: !PLAIN -> hello = OFFER(0, MULTIFD, PREEMPT)
           :: !PLAIN -> hello = OFFER(0, PREEMPT, MULTIFD)
           :: CHECKS -> hello = OFFER(1, 0, MULTIFD | PREEMPT)
           fi;
           offer[c] = hello;
           phase[i] = WAITING;
           if
           :: say_hello(c, hello)
           :: TOO_LONGS -> src_send(c, TOO_LONG, 0, 0); src_send(c, REST, 0, 0)
           fi;
           if
           :: MISTAKE(4) -> src_send(c, STREAM, 0, 0)
           :: !MISTAKE(4) -> skip
           fi
       };

       atomic {
           if
           :: SRC_CAN_READ(c) ->
              to_src[c] ? m, x, eff;
              if
              :: m == ACCEPT && IS_CHECK(hello) && !MISTAKE(39) ->
                 outcome[i] = CHECKED;
                 goto over
              :: m == ACCEPT && (!IS_CHECK(hello) || MISTAKE(39)) && AGREES(hello, eff) ->
                 skip
              :: m == ACCEPT && !IS_CHECK(hello) && !AGREES(hello, eff) ->
                 /* Or it can itself no longer do what it said */
                 src_send(c, ABORT, 0, 0);
                 fail(DISAGREEMENT);
                 goto over
              :: m == REJECT ->
                 was_busy[i] = was_busy[i] || x == BUSY;
                 outcome[i] = REFUSED;
                 goto over
              :: m != ACCEPT && m != REJECT -> dishonest = true; goto over
              fi
           :: SRC_SEES_END(c) ->
              unheard = unheard || (net[c] == RESET && said[c]);
              fail(CONNECTION_LOST);
              goto over
           :: MAY_BREAK(c) -> break_off(c, CUT); fail(CONNECTION_LOST); goto over
           :: !TIMELY && !MISTAKE(17) -> fail(TIME_OUT); goto over
           :: cancels -> outcome[i] = CANCELLED; goto over
           fi;
           phase[i] = OPENING;
           runs_here[i] = !MISTAKE(34);
#if CHANNELS > 0
           open(c, 0);
#endif
#if CHANNELS > 1
           open(c, 1);
#endif
           open(c, CHANNELS)
       };

       /* COMMIT, once each channel has been answered or does not count */
       atomic {
           if
           :: UNANSWERED(c, eff & ~without) == 0 || (REQUIRED(hello) & without) -> skip
           :: UNANSWERED(c, eff & ~without) != 0 && !MISTAKE(22) ->
              without = without | UNANSWERED(c, eff)    /* 5 s without progress */
           :: MISTAKE(21) -> skip
           :: SRC_SEES_END(c) -> fail(CONNECTION_LOST); goto over
           :: MAY_BREAK(c) -> break_off(c, CUT); fail(CONNECTION_LOST); goto over
           :: !TIMELY -> fail(TIME_OUT); goto over          /* the user's own */
           :: cancels -> outcome[i] = CANCELLED; goto over
           fi;
           if
           :: (REQUIRED(hello) & without) && !MISTAKE(24) ->
              src_send(c, ABORT, 0, 0);
              fail(NO_CHANNEL);
              cause = (MISTAKE(26) -> UNEXPLAINED : cause);
              goto over
           :: MISTAKE(25) && without != 0 -> fail(NO_CHANNEL); goto over
           :: else -> skip
           fi;
           committed[c] = eff & ~without;
           src_applied[i] = (MISTAKE(27) -> eff : committed[c]);
           src_send(c, COMMIT, hello, COMMITS(eff, without));
           phase[i] = SENDING
       };

       /* The guest runs until its memory has been sent */
       atomic {
           if
           :: src_send(c, STREAM, 0, 0)
           :: SRC_CAN_READ(c) -> goto answer
           :: SRC_SEES_END(c) ->
              unheard = unheard || (net[c] == RESET && said[c]);
              fail(CONNECTION_LOST);
              goto over
           :: MAY_BREAK(c) -> break_off(c, CUT); fail(CONNECTION_LOST); goto over
           :: cancels -> outcome[i] = CANCELLED; goto over
           fi;
           runs_here[i] = false;
           phase[i] = LEAVING
       };

       atomic {
           if
           :: SRC_CAN_READ(c) ->
answer:
              to_src[c] ? m, _, _;
              if
              :: m == LAST_WORD && !MISTAKE(38) -> fail(ITS_LAST_WORD)
              :: m == SHUT || (m == LAST_WORD && MISTAKE(38)) ->
                 outcome[i] = COMPLETED;
                 owns[i] = false
              :: m != LAST_WORD && m != SHUT -> dishonest = true
              fi
           :: MISTAKE(14) -> outcome[i] = COMPLETED; owns[i] = false
           :: SRC_SEES_END(c) ->
              unheard = unheard || (net[c] == RESET && said[c]);
              fail(CONNECTION_LOST)
           :: MAY_BREAK(c) -> break_off(c, CUT); fail(CONNECTION_LOST)
           :: net[c] == SILENT -> fail(TIME_OUT)                    /* TCP's timer */
           :: cancels -> outcome[i] = CANCELLED
           fi;
over:
           unexplained = unexplained || (outcome[i] == FAILED && cause == UNEXPLAINED);
           needless = needless ||
               (outcome[i] == FAILED && committed[c] == NOTHING &&
                !(REQUIRED(hello) & without) &&
                (cause == NO_CHANNEL || (TIMELY && listening)));
           if
           :: stage[c] != NOBODY -> src_close(c)
           :: stage[c] == NOBODY -> skip
           fi;
           for (k : 0 .. SLOTS - 1) {
               if
               :: flight[c].at[k] != ON_ITS_WAY -> flight[c].at[k] = UNOPENED
               :: flight[c].at[k] == ON_ITS_WAY -> skip
               fi
           };
           runs_here[i] = owns[i];
           src_applied[i] = (MISTAKE(18) -> src_applied[i] : NOTHING);
           outcome[i] = (outcome[i] == COMPLETED -> COMPLETED : NONE);
           m = 0; cause = UNEXPLAINED; x = 0; k = 0;
           eff = 0; hello = 0; without = 0;
           phase[i] = IDLE;
           c++
       }
    od;
    phase[i] = ENDED
}

#if HOSTILES
/*
 * Says nothing, nonsense, or HELLO and nothing more, or something that is not
 * COMMIT, or is one that leaves out what it must not, or that comes too early;
 * stays or goes.
 */
active proctype Hostile()
{
    byte hello, eff, without;

end:
    atomic { listening -> stage[HOSTILE] = HEADER };
    atomic {
        if
        :: goto said_it
        :: src_send(HOSTILE, NONSENSE, 0, 0); goto said_it
        :: without = MULTIFD                            /* is not effective */
        :: hello = OFFER(0, MULTIFD, 0);
           eff = MULTIFD;
           without = MULTIFD                            /* is required */
        :: hello = OFFER(0, 0, MULTIFD);
           eff = MULTIFD;
           without = (CHANNELS > 0 -> 0 : MULTIFD)      /* is missing; has none */
        fi;
        src_send(HOSTILE, HELLO, hello, 0);
        if
        :: skip
        :: src_send(HOSTILE, STREAM, 0, 0)
        :: src_send(HOSTILE, COMMIT, hello, NOTHING)
        :: committed[HOSTILE] = eff & ~without;
           src_send(HOSTILE, COMMIT, hello, COMMITS(eff, without))
        fi;
        hello = 0; eff = 0; without = 0
    };
said_it:
    if
    :: atomic { src_close(HOSTILE) }
    :: skip
    fi
}
#endif

init
{
    byte j;

    /* Faults and cancellations may happen; nobody may depend on them to go on */
    atomic {
#ifdef ANY_MISTAKE
        c_code { broken = atoi(getenv("BROKEN")); };
#endif
        select(faults : 0 .. FAULTS);
        select(j : 0 .. 1);
        cancels = j;
        for (j : 0 .. CONNECTIONS - 1) {
            run Conversation(j)
        };
        for (j : 0 .. SOURCES - 1) {
            run Source(j)
        };
        run Watch()                     /* the last one is the first to look */
    }
}

/* --- Watching ---------------------------------------------------------- */

/* Not part of the state; spin prints the name of the one that fails */
hidden byte agreement = true;
hidden byte within_offer = true;
hidden byte proven = true;
hidden byte one_owner = true;
hidden byte not_lost = true;
hidden byte runs_on = true;
hidden byte session_alive = true;
hidden byte one_session = true;
hidden byte session_loads = true;
hidden byte none_too_late = true;
hidden byte decides_at_once = true;
hidden byte listens = true;
hidden byte lawful = true;
hidden byte check_harmless = true;
hidden byte own_channels = true;
hidden byte all_channels = true;
hidden byte only_agreed = true;
hidden byte able = true;
hidden byte restored = true;
hidden byte honest = true;
hidden byte heard = true;
hidden byte explained = true;
hidden byte optional_is_optional = true;

#if SOURCES == 1
#define EACH_SOURCE(p) (p(0))
#else
#define EACH_SOURCE(p) (p(0) && p(1))
#endif
#if HOSTILE == 1
#define EACH_ATTEMPT(p) (p(0))
#elif HOSTILE == 2
#define EACH_ATTEMPT(p) (p(0) && p(1))
#elif HOSTILE == 3
#define EACH_ATTEMPT(p) (p(0) && p(1) && p(2))
#else
#define EACH_ATTEMPT(p) (p(0) && p(1) && p(2) && p(3))
#endif
#if HOSTILES
#define EACH_CONNECTION(p) (EACH_ATTEMPT(p) && p(HOSTILE))
#else
#define EACH_CONNECTION(p) EACH_ATTEMPT(p)
#endif
#if CHANNELS == 0
#define EACH_SLOT(p) (p(0))
#elif CHANNELS == 1
#define EACH_SLOT(p) (p(0) && p(1))
#else
#define EACH_SLOT(p) (p(0) && p(1) && p(2))
#endif

proctype Watch()
{
end:
    atomic {
        !(EACH_ATTEMPT(CHECK_HARMLESS) &&
          SESSION_ALIVE &&
          EACH_CONNECTION(ONE_SESSION) &&
          SESSION_LOADS &&
          DST_RESTORES && EACH_SOURCE(SRC_RESTORES) &&
          EACH_CONNECTION(DECIDES_AT_ONCE) &&
          AGREEMENT && EACH_SOURCE(SAME_AT_SOURCE) &&
          EACH_ATTEMPT(WITHIN_OFFER) &&
          EACH_SOURCE(PROVEN) &&
          EACH_SOURCE(ONE_OWNER) &&
          EACH_SOURCE(NOT_LOST) &&
          EACH_SOURCE(RUNS_ON) &&
          NONE_TOO_LATE &&
          LISTENS &&
          EACH_SLOT(OWN_CHANNEL) &&
          EACH_SLOT(CHANNEL_THERE) &&
          EACH_SLOT(NO_CHANNEL_MORE) &&
          LAWFUL &&
          ABLE &&
          HONEST &&
          HEARD &&
          EXPLAINED &&
          OPTIONAL_IS_OPTIONAL) ->
        if
        :: !EACH_ATTEMPT(CHECK_HARMLESS) -> check_harmless = false; assert(check_harmless)
        :: !SESSION_ALIVE -> session_alive = false; assert(session_alive)
        :: !EACH_CONNECTION(ONE_SESSION) -> one_session = false; assert(one_session)
        :: !SESSION_LOADS -> session_loads = false; assert(session_loads)
        :: !(DST_RESTORES && EACH_SOURCE(SRC_RESTORES)) -> restored = false; assert(restored)
        :: !EACH_CONNECTION(DECIDES_AT_ONCE) -> decides_at_once = false; assert(decides_at_once)
        :: !(AGREEMENT && EACH_SOURCE(SAME_AT_SOURCE)) -> agreement = false; assert(agreement)
        :: !EACH_ATTEMPT(WITHIN_OFFER) -> within_offer = false; assert(within_offer)
        :: !EACH_SOURCE(PROVEN) -> proven = false; assert(proven)
        :: !EACH_SOURCE(ONE_OWNER) -> one_owner = false; assert(one_owner)
        :: !EACH_SOURCE(NOT_LOST) -> not_lost = false; assert(not_lost)
        :: !EACH_SOURCE(RUNS_ON) -> runs_on = false; assert(runs_on)
        :: !NONE_TOO_LATE -> none_too_late = false; assert(none_too_late)
        :: !LISTENS -> listens = false; assert(listens)
        :: !EACH_SLOT(OWN_CHANNEL) -> own_channels = false; assert(own_channels)
        :: !EACH_SLOT(CHANNEL_THERE) -> all_channels = false; assert(all_channels)
        :: !EACH_SLOT(NO_CHANNEL_MORE) -> only_agreed = false; assert(only_agreed)
        :: !LAWFUL -> lawful = false; assert(lawful)
        :: !ABLE -> able = false; assert(able)
        :: !HONEST -> honest = false; assert(honest)
        :: !HEARD -> heard = false; assert(heard)
        :: !EXPLAINED -> explained = false; assert(explained)
        :: !OPTIONAL_IS_OPTIONAL -> optional_is_optional = false; assert(optional_is_optional)
        fi
    }
}
