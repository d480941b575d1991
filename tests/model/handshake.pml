/*
 * A model of the migration handshake, for spin.
 *
 * It has the conversation of docs/interop/migration-handshake.rst in the way in
 * which migration/handshake-source.c and handshake-destination.c hold it: one
 * destination, one or two sources that try more than once, a stranger, and a
 * network, a user and timers that strike at any moment.  test_model.py says in
 * which bounded worlds spin looks at all states.
 *
 * Abstractions:
 *
 * - A message comes as a whole or not at all.  One of which a part has come is
 *   like an end of the stream before it.
 * - A configuration is a set of two capabilities.  MULTIFD needs CHANNELS
 *   channels before the stream can be loaded; PREEMPT has one that may come at
 *   any time.  Nothing else of HELLO and ACCEPT is there.
 * - A digest is what its sender has seen: HELLO and ACCEPT.
 * - Sessions are numbered by connection, and never repeat.
 * - A timer may run out at any moment.  So a message that comes too late is one
 *   that is still in its queue then.
 * - The stream is one message, sent when the source has stopped its guest.
 *
 * - Without CHANNELS, MULTIFD has none to wait for.
 *
 * Left out: TLS, versions, features, profiles, grease, malformed bytes other
 * than a stranger's, the bound on strangers, postcopy (where the source does not
 * own the guest to the end) and its recovery, and a peer that lies well: without
 * TLS, whoever speaks the protocol is a source.  What follows the point of no
 * return is a migration without handshake: it ends with the last word on the
 * return path or in failure, and the destination is not used again.
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
#ifndef STRANGERS
#define STRANGERS 0         /* 0 or 1 */
#endif
#ifndef CHANGES
#define CHANGES 0           /* how often QMP changes what the destination can */
#endif
#ifndef ALTERS
#define ALTERS 0            /* how many messages a proxy alters */
#endif
#ifndef FAULTS
#define FAULTS 2            /* how many connections the network breaks at most */
#endif

/* A mistake that spin has to find, see test_model.py; 0: none */
#ifndef BROKEN
#define BROKEN 0
#endif
#define MISTAKE(n) (BROKEN == n)

/*
 * 1: the destination starts the guest by itself as soon as it has loaded it.  If
 * the connection breaks, or the user cancels, while its last word is on the way,
 * the guest runs twice.  That is so wherever there is a return path; no
 * handshake can mend it, since somebody always has the last word.  0: management
 * starts it with `cont` when it has seen the source complete.
 */
#ifndef AUTOSTART
#define AUTOSTART 0
#endif

#define FIRST(i) ((i) * ATTEMPTS)       /* connection of source i */
#define OWNER(c) ((c) >= ATTEMPTS)
#if SOURCES == 1
#define STRANGER ATTEMPTS               /* the connection after all of these */
#else
#define STRANGER (ATTEMPTS + ATTEMPTS2)
#endif
#define LAST(i) ((i) == 0 -> ATTEMPTS : STRANGER)     /* and one more */
#define CONNECTIONS (STRANGER + STRANGERS)
#define SLOTS (CHANNELS + 1)            /* multifd, then preempt */

#define MULTIFD 1
#define PREEMPT 2
#define NOTHING 255                     /* no configuration, not even {} */

/* HELLO in a byte */
#define OFFER(check, required, optional) ((check) * 16 + (required) * 4 + (optional))
#define IS_CHECK(h) ((h) / 16)
#define REQUIRED(h) (((h) / 4) & 3)
#define OPTIONAL(h) ((h) & 3)
#define WITHIN(a, b) (((a) & ~(b)) == 0)

mtype:message = { HELLO, COMMIT, ABORT, STREAM, NONSENSE, TOO_LONG, REST,
                  ACCEPT, REJECT, LAST_WORD };
mtype:reason = { BUSY, UNABLE, BAD };

/* A connection: what is on its way, what the network does, who has closed */
chan to_dst[CONNECTIONS] = [3] of { mtype:message, byte, byte };
chan to_src[CONNECTIONS] = [2] of { mtype:message, byte, byte };
mtype:net = { INTACT, CUT, RESET, SILENT };
mtype:net net[CONNECTIONS] = INTACT;
bool src_closed[CONNECTIONS];
bool dst_shut[CONNECTIONS];             /* nothing more to send, still reads */
bool dst_closed[CONNECTIONS];

/* The destination */
mtype:stage = { NOBODY, HEADER, COMMITTING, COLLECTING,
                LOADING, DRAINING, GONE };
mtype:stage stage[CONNECTIONS] = NOBODY;
byte session;                           /* connection + 1, 0: free */
byte agreed;                            /* its configuration */
byte slot[SLOTS];                       /* the channels of which session */
byte loader[SLOTS];                     /* the same, once given to the loader */
byte can = MULTIFD | PREEMPT;
byte applied = NOTHING;
bool delivered;                         /* no way back */
bool listening = true;
byte loaded;                            /* whose guest: source + 1 */
byte loaded_with = NOTHING;             /* in which configuration */
byte runs_there;                        /* likewise */
bool told[CONNECTIONS];                 /* REJECT has gone out */

/* The sources */
mtype:phase = { IDLE, CONNECTING, WAITING, OPENING, LEAVING, ENDED };
mtype:phase phase[SOURCES] = IDLE;
mtype:outcome = { NONE, COMPLETED, FAILED, CANCELLED, REFUSED, CHECKED };
mtype:outcome outcome[SOURCES] = NONE;  /* of the last attempt */
byte current[SOURCES];                  /* connection */
byte src_applied[SOURCES] = NOTHING;
bool runs_here[SOURCES] = true;
bool owns[SOURCES] = true;
bool was_busy[SOURCES];
byte offer[CONNECTIONS];
byte committed[CONNECTIONS] = NOTHING;

/* Other channels of a connection's session */
mtype:flight = { UNOPENED, ON_ITS_WAY, OPENED };
typedef Flights { mtype:flight at[SLOTS] = UNOPENED };
Flights flight[CONNECTIONS];

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
bool untold;                            /* a refusal got lost on its way */

/* The configuration that a destination applies is the one that the source of
   its session has sent COMMIT for, and has itself. */
#define AGREEMENT \
    (applied == NOTHING || (session != 0 && committed[session - 1] == applied))
#define SAME_AT_SOURCE(i) \
    (applied == NOTHING || session != current[i] + 1 || \
     (phase[i] != OPENING && phase[i] != LEAVING) || src_applied[i] == applied)

/* A source commits to nothing that it has not offered, and to all it needs. */
#define WITHIN_OFFER(c) \
    (committed[c] == NOTHING || \
     (WITHIN(committed[c], REQUIRED(offer[c]) | OPTIONAL(offer[c])) && \
      WITHIN(REQUIRED(offer[c]), committed[c])))

/* A guest never runs on both sides, */
#define ONE_OWNER(i) (!(runs_here[i] && runs_there == i + 1))
/* a source never gives away a guest that the destination has not got, */
#define NOT_LOST(i) (owns[i] || loaded == i + 1)
/* and it runs on at the source until that has sent all of it, and again when the
   attempt ends in another way than completed. */
#define RUNS_ON(i) (phase[i] == LEAVING || outcome[i] == COMPLETED || runs_here[i])

/* The session is held by a conversation that goes on, or by the migration. */
#define SESSION_ALIVE \
    (session == 0 || \
     stage[session - 1] == COMMITTING || stage[session - 1] == COLLECTING || \
     stage[session - 1] == LOADING)
/* What is loaded has the session. */
#define SESSION_LOADS \
    (applied == NOTHING || (session != 0 && stage[session - 1] == LOADING))

/* None begins when the guest has come, or is lost on its way. */
#define NONE_TOO_LATE (session == 0 || listening)

/* Nothing that a peer does before a migration is delivered ends the listener. */
#define LISTENS (listening || delivered)

/* A check has no session, applies nothing on either side, and says nothing
   more. */
#define CHECK_HARMLESS(c) \
    (!IS_CHECK(offer[c]) || (session != c + 1 && committed[c] == NOTHING))

/* The loader gets no channel of another session, */
#define OWN_CHANNEL(k) (loader[k] == 0 || loader[k] == session)
/* and all of multifd's before anything else. */
#define CHANNEL_THERE(k) \
    (applied == NOTHING || !(applied & MULTIFD) || loader[k] != 0)

/* The destination applies only what it can do then, */
#define ABLE (applied == NOTHING || WITHIN(applied, can))
/* and has its own settings whenever no migration is being loaded; */
#define DST_GIVES_BACK (applied == NOTHING || delivered)
/* so has a source between attempts. */
#define SRC_GIVES_BACK(i) \
    (phase[i] == OPENING || phase[i] == LEAVING || src_applied[i] == NOTHING)

/* Where the network does no harm, nobody meets what the protocol forbids, */
#define HONEST (!dishonest)
/* and a refused source learns why. */
#define TOLD (!untold)

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
ltl never_overtakes { [] !(slot[0] != 0 && stage[session - 1] == COMMITTING) }
ltl never_of_an_old_session {
    [] !(session == 2 && flight[0].at[0] == ON_ITS_WAY && flight[1].at[0] == ON_ITS_WAY)
}
ltl never_at_second_attempt { [] !(!owns[0] && current[0] == 1) }
ltl never_after_busy { [] !(was_busy[SOURCES - 1] && !owns[SOURCES - 1]) }
ltl never_after_a_stranger {
    [] !(was_busy[0] && !owns[0] && stage[CONNECTIONS - 1] == GONE)
}
ltl never_ends_in_vain { [] !(ENDED_ALL && listening && runs_here[0]) }
ltl never_without_the_last_word { [] !(ENDED_ALL && loaded == 1 && runs_here[0]) }

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
       told[c] = false;
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

inline reject(c, why)
{
    if
    :: net[c] == INTACT && !src_closed[c] -> told[c] = true
    :: else -> skip
    fi;
    dst_send(c, REJECT, why, 0);
    stage[c] = DRAINING
}

#define ALL_CHANNELS(eff) \
    (!((eff) & MULTIFD) || CHANNELS == 0 || MISTAKE(8) || \
     (slot[0] != 0 && (CHANNELS < 2 || slot[CHANNELS - 1] != 0)))

/*
 * One connection whose header is for "main": a coroutine in QEMU.  Between HELLO
 * and its verdict others may have their turn; that is as if HELLO came later.
 */
proctype Conversation(byte c)
{
    mtype:message m;
    byte x, y, k;
    byte hello, eff;

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
           :: m == TOO_LONG -> reject(c, BAD); goto drain
           :: m != HELLO && m != TOO_LONG ->
              dishonest = dishonest || c != STRANGER;
              listening = listening && !MISTAKE(16);
              goto over
           fi
        :: DST_SEES_END(c) -> goto over
        :: MAY_BREAK(c) -> break_off(c, CUT); goto over
        :: true -> goto over                            /* HELLO timer */
        fi;

        if
        :: session != 0 && !MISTAKE(15) -> reject(c, BUSY); goto drain
        :: session == 0 || MISTAKE(15) -> skip
        fi;
        if
        :: !WITHIN(REQUIRED(hello), can) -> reject(c, UNABLE); goto drain
        :: WITHIN(REQUIRED(hello), can) -> eff = REQUIRED(hello) | (OPTIONAL(hello) & can)
        fi;
        if
        :: !IS_CHECK(hello) || MISTAKE(5) -> session = c + 1; agreed = eff
        :: IS_CHECK(hello) && !MISTAKE(5) -> skip
        fi;
        if
        :: dst_send(c, ACCEPT, c + 1, eff)
        :: alters > 0 -> alters--; dst_send(c, ACCEPT, c + 1, eff ^ PREEMPT)
        fi;
        if
        :: IS_CHECK(hello) -> stage[c] = DRAINING; goto drain
        :: !IS_CHECK(hello) -> stage[c] = COMMITTING
        fi
    };

    /* COMMIT or ABORT */
    atomic {
        if
        :: DST_CAN_READ(c) && !MISTAKE(1) ->
           to_dst[c] ? m, x, y;
           if
           :: m == COMMIT && (MISTAKE(3) || (x == hello && y == eff)) ->
              stage[c] = COLLECTING
           :: m == COMMIT && !MISTAKE(3) && (x != hello || y != eff) ->
              dishonest = dishonest || (ALTERS == 0 && c != STRANGER);
              goto over
           :: m == ABORT -> goto over
           :: m != COMMIT && m != ABORT ->
              dishonest = dishonest || c != STRANGER;
              goto over
           fi
        :: MISTAKE(1) -> stage[c] = COLLECTING
        :: DST_SEES_END(c) -> goto over
        :: MAY_BREAK(c) -> break_off(c, CUT); goto over
        :: !MISTAKE(6) -> goto over                     /* COMMIT timer */
        fi;

        /* Other channels; what comes on this one now is the stream */
        if
        :: ALL_CHANNELS(eff) -> skip
        :: !ALL_CHANNELS(eff) && DST_SEES_GONE(c) -> goto over
        :: !ALL_CHANNELS(eff) && MAY_BREAK(c) -> break_off(c, CUT); goto over
        :: !ALL_CHANNELS(eff) && !MISTAKE(10) -> goto over      /* timer */
        fi;

        /* QMP may have changed something: the last chance to fail */
        if
        :: WITHIN(eff, can) || MISTAKE(12) ->
           applied = eff;
           if
           :: delivered = true
           :: applied = (MISTAKE(13) -> applied : NOTHING); goto over /* prepare */
           fi
        :: !WITHIN(eff, can) && !MISTAKE(12) -> goto over
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
              dst_send(c, LAST_WORD, 0, 0)
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
    :: atomic { net[c] == SILENT || c == STRANGER -> break }
    :: atomic { !listening -> told[c] = false; break }
    od;

    atomic {
        skip;
over:
        session_drop(c);
        dst_close(c);
        stage[c] = GONE;
        goto end
    }
}

/* A connection whose header names another channel; it is dropped alone */
inline arrive(c, k)
{
    flight[c].at[k] = (src_closed[c] -> UNOPENED : OPENED);
    if
    :: session != 0 && (session == c + 1 || MISTAKE(7)) && slot[k] == 0 &&
       WITHIN((k < CHANNELS -> MULTIFD : PREEMPT), agreed) ->
       slot[k] = c + 1;
       if
       :: stage[session - 1] == LOADING -> loader[k] = slot[k]
       :: else -> skip
       fi
    :: else -> skip
    fi
}

#define ARRIVE_AT(c, k) \
    :: d_step { flight[c].at[k] == ON_ITS_WAY -> arrive(c, k) }
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
#if STRANGER > 1
    ARRIVE(1)
#endif
#if STRANGER > 2
    ARRIVE(2)
#endif
#if STRANGER > 3
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

inline open(c, k)
{
    if
    :: flight[c].at[k] = ON_ITS_WAY
    :: flight[c].at[k] = OPENED         /* it leads nowhere */
    fi
}

#define TO_OPEN(c, k) (src_applied[i] & (k < CHANNELS -> MULTIFD : PREEMPT) && \
                       flight[c].at[k] == UNOPENED)

proctype Source(byte i)
{
    mtype:message m;
    byte x, k, eff, hello;
    byte c = FIRST(i);

    do
    :: atomic { c == LAST(i) || outcome[i] == COMPLETED -> break }
    :: atomic {
           c < LAST(i) && outcome[i] != COMPLETED ->
           current[i] = c;
           phase[i] = CONNECTING;
           if
           :: !listening -> outcome[i] = FAILED; goto over
           :: cancels -> outcome[i] = CANCELLED; goto over
           :: listening -> stage[c] = HEADER
           fi;
           if
           :: PLAIN -> hello = OFFER(0, 0, 0)
           :: !PLAIN -> hello = OFFER(0, 0, MULTIFD | PREEMPT)
           :: !PLAIN -> hello = OFFER(0, MULTIFD, 0)
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
              :: m == ACCEPT && IS_CHECK(hello) -> outcome[i] = CHECKED; goto over
              :: m == ACCEPT && !IS_CHECK(hello) && AGREES(hello, eff) -> skip
              :: m == ACCEPT && !IS_CHECK(hello) ->
                 /* It does not agree, or can itself no longer do what it said */
                 src_send(c, ABORT, 0, 0);
                 outcome[i] = FAILED;
                 goto over
              :: m == REJECT ->
                 was_busy[i] = was_busy[i] || x == BUSY;
                 outcome[i] = REFUSED;
                 goto over
              :: m != ACCEPT && m != REJECT -> dishonest = true; goto over
              fi
           :: SRC_SEES_END(c) ->
              untold = untold || (net[c] == RESET && told[c]);
              outcome[i] = FAILED;
              goto over
           :: MAY_BREAK(c) -> break_off(c, CUT); outcome[i] = FAILED; goto over
           :: !MISTAKE(17) -> outcome[i] = FAILED; goto over        /* timer */
           :: cancels -> outcome[i] = CANCELLED; goto over
           fi;
           src_applied[i] = eff;
           committed[c] = eff;
           src_send(c, COMMIT, hello, eff);
           phase[i] = OPENING
       };

       do
       :: atomic { TO_OPEN(c, 0) -> open(c, 0) }
#if CHANNELS > 0
       :: atomic { TO_OPEN(c, 1) -> open(c, 1) }
#endif
#if CHANNELS > 1
       :: atomic { TO_OPEN(c, 2) -> open(c, 2) }
#endif
       :: atomic {
              CHANNELS == 0 ||
              !(TO_OPEN(c, 0) || (CHANNELS == 2 && TO_OPEN(c, 1))) ->
              src_send(c, STREAM, 0, 0);
              runs_here[i] = false;
              phase[i] = LEAVING;
              break
          }
       :: atomic { SRC_SEES_END(c) -> outcome[i] = FAILED; goto over }
       :: atomic { MAY_BREAK(c) -> break_off(c, CUT); outcome[i] = FAILED; goto over }
       :: atomic { cancels -> outcome[i] = CANCELLED; goto over }
       od;

       atomic {
           if
           :: SRC_CAN_READ(c) ->
              to_src[c] ? m, _, _;
              dishonest = dishonest || m != LAST_WORD;
              outcome[i] = COMPLETED;
              owns[i] = false
           :: MISTAKE(14) -> outcome[i] = COMPLETED; owns[i] = false
           :: SRC_SEES_END(c) -> outcome[i] = FAILED
           :: MAY_BREAK(c) -> break_off(c, CUT); outcome[i] = FAILED
           :: net[c] == SILENT -> outcome[i] = FAILED               /* TCP's timer */
           :: cancels -> outcome[i] = CANCELLED
           fi;
over:
           if
           :: stage[c] != NOBODY -> src_close(c)
           :: stage[c] == NOBODY -> skip
           fi;
           for (k : 0 .. SLOTS - 1) {
               if
               :: flight[c].at[k] == OPENED -> flight[c].at[k] = UNOPENED
               :: flight[c].at[k] != OPENED -> skip
               fi
           };
           runs_here[i] = owns[i];
           src_applied[i] = (MISTAKE(18) -> src_applied[i] : NOTHING);
           outcome[i] = (outcome[i] == COMPLETED -> COMPLETED : NONE);
           phase[i] = IDLE;
           c++
       }
    od;
    phase[i] = ENDED
}

#if STRANGERS
/* Says nothing, nonsense, or HELLO and something that is not COMMIT; stays */
active proctype Stranger()
{
end:
    atomic { listening -> stage[STRANGER] = HEADER };
    atomic {
        if
        :: skip
        :: src_send(STRANGER, NONSENSE, 0, 0)
        :: src_send(STRANGER, HELLO, OFFER(0, 0, MULTIFD), 0)
        fi
    };
    atomic {
        if
        :: skip
        :: src_send(STRANGER, COMMIT, 0, NOTHING)
        :: src_send(STRANGER, STREAM, 0, 0)
        fi
    };
    if
    :: atomic { src_close(STRANGER) }
    :: skip
    fi
}
#endif

init
{
    byte j;

    /* Faults and cancellations may happen; nobody may depend on them to go on */
    atomic {
        select(faults : 0 .. FAULTS);
        select(j : 0 .. 1);
        cancels = j;
        for (j : 0 .. CONNECTIONS - 1) {
            run Conversation(j)
        };
        for (j : 0 .. SOURCES - 1) {
            run Source(j)
        }
    }
}

/* --- Watching ---------------------------------------------------------- */

/* Not part of the state; spin prints the name of the one that fails */
hidden byte agreement = true;
hidden byte within_offer = true;
hidden byte one_owner = true;
hidden byte not_lost = true;
hidden byte runs_on = true;
hidden byte session_alive = true;
hidden byte session_loads = true;
hidden byte none_too_late = true;
hidden byte listens = true;
hidden byte check_harmless = true;
hidden byte own_channels = true;
hidden byte all_channels = true;
hidden byte able = true;
hidden byte gives_back = true;
hidden byte honest = true;
hidden byte told_why = true;

#if SOURCES == 1
#define EACH_SOURCE(p) (p(0))
#else
#define EACH_SOURCE(p) (p(0) && p(1))
#endif
#if STRANGER == 1
#define EACH_ATTEMPT(p) (p(0))
#elif STRANGER == 2
#define EACH_ATTEMPT(p) (p(0) && p(1))
#elif STRANGER == 3
#define EACH_ATTEMPT(p) (p(0) && p(1) && p(2))
#else
#define EACH_ATTEMPT(p) (p(0) && p(1) && p(2) && p(3))
#endif
#if CHANNELS == 0
#define EACH_MULTIFD(p) true
#define EACH_SLOT(p) (p(0))
#elif CHANNELS == 1
#define EACH_MULTIFD(p) (p(0))
#define EACH_SLOT(p) (p(0) && p(1))
#else
#define EACH_MULTIFD(p) (p(0) && p(1))
#define EACH_SLOT(p) (p(0) && p(1) && p(2))
#endif

active proctype Watch()
{
end:
    do
    :: atomic {
           !EACH_ATTEMPT(CHECK_HARMLESS) ->
           check_harmless = false; assert(check_harmless)
       }
    :: atomic {
           !SESSION_ALIVE ->
           session_alive = false; assert(session_alive)
       }
    :: atomic {
           !SESSION_LOADS ->
           session_loads = false; assert(session_loads)
       }
    :: atomic {
           !(DST_GIVES_BACK && EACH_SOURCE(SRC_GIVES_BACK)) ->
           gives_back = false; assert(gives_back)
       }
    :: atomic {
           !(AGREEMENT && EACH_SOURCE(SAME_AT_SOURCE)) ->
           agreement = false; assert(agreement)
       }
    :: atomic {
           !EACH_ATTEMPT(WITHIN_OFFER) ->
           within_offer = false; assert(within_offer)
       }
    :: atomic {
           !EACH_SOURCE(ONE_OWNER) ->
           one_owner = false; assert(one_owner)
       }
    :: atomic {
           !EACH_SOURCE(NOT_LOST) ->
           not_lost = false; assert(not_lost)
       }
    :: atomic {
           !EACH_SOURCE(RUNS_ON) ->
           runs_on = false; assert(runs_on)
       }
    :: atomic {
           !NONE_TOO_LATE ->
           none_too_late = false; assert(none_too_late)
       }
    :: atomic {
           !LISTENS ->
           listens = false; assert(listens)
       }
    :: atomic {
           !EACH_SLOT(OWN_CHANNEL) ->
           own_channels = false; assert(own_channels)
       }
    :: atomic {
           !EACH_MULTIFD(CHANNEL_THERE) ->
           all_channels = false; assert(all_channels)
       }
    :: atomic {
           !ABLE ->
           able = false; assert(able)
       }
    :: atomic {
           !HONEST ->
           honest = false; assert(honest)
       }
    :: atomic {
           !TOLD ->
           told_why = false; assert(told_why)
       }
    od
}
