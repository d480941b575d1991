/*
 * A model of the end of a migration, for spin: who owns the guest.
 *
 *   source                                     destination
 *     | ==== STREAM (to its end) ================> |  loads
 *     | <=== LOADED ============================== |  if it would start the guest
 *     | ==== START ==============================> |  the source has decided
 *     | <=== SHUT0 (it runs here) ================ |
 *     | <=== NOT_STARTED, SHUT1 (it never will) == |  or this
 *
 * This is what follows the conversation of handshake.pml; see feature one-owner
 * in docs/interop/migration-handshake.rst.  In postcopy there is neither LOADED
 * nor START: the last byte of the package with the devices' state gives the
 * guest away.
 *
 * Abstractions:
 *
 * - A message comes as a whole or not at all.  When a connection breaks, what
 *   has been sent comes up to some point, which is for each side to find.
 * - A source that has decided to keep its guest closes; ABORT would say no more.
 * - What is in doubt stays so until a human looks, who sees right.
 * - There is one attempt.  Both sides are honest.
 *
 * Left out: how long anything takes, other channels, recovery of postcopy.
 *
 * SPDX-License-Identifier: GPL-2.0-or-later
 */

#ifndef ONE_OWNER
#define ONE_OWNER 1         /* 0: without the rule, as over "main" */
#endif
#ifndef POSTCOPY
#define POSTCOPY 0          /* 1: the migration ends in postcopy */
#endif
#ifndef AUTOSTART
#define AUTOSTART 1         /* 0: -S; management says `cont` */
#endif
#ifndef HASTY
#define HASTY 0             /* 1: it does so when the *destination* completes */
#endif

/* A mistake that spin has to find, see test_model.py; 0: none.  ANY_MISTAKE is as
   in handshake.pml. */
#ifndef BROKEN
#define BROKEN 0
#endif
#ifdef ANY_MISTAKE
hidden byte broken;
#define MISTAKE(n) (broken == n)
#else
#define MISTAKE(n) (BROKEN == n)
#endif

#define PRECOPY (!POSTCOPY)
#define ASKS (ONE_OWNER && PRECOPY)     /* LOADED and START */

/* NOT_STARTED is LAST_WORD with that member */
mtype:message = { STREAM, LOADED, START, LAST_WORD, NOT_STARTED, SHUT0, SHUT1 };
chan to_dst = [2] of { mtype:message };
chan to_src = [3] of { mtype:message };

bool up = true;                         /* the connection; once down, for ever */
bool src_closed, dst_closed;            /* has said all that it had to say */
bool src_dead, dst_dead;                /* the process */

/* What is left in a queue when the connection is down may come, or not */
#define SRC_SEES_END (!up || (dst_closed && empty(to_src)))
#define DST_SEES_END (!up || (src_closed && empty(to_dst)))

/* The source.  UNDECIDED becomes KEPT or GIVEN, at once and in one place. */
mtype:owner = { UNDECIDED, KEPT, GIVEN };
mtype:owner owner = UNDECIDED;
mtype:status = { ACTIVE, DEVICE, COMPLETED, FAILED, CANCELLED };
mtype:status status = ACTIVE;
bool runs_here = true, images_here = true;
bool heard_loaded, heard_last_word, heard_shut0;
bool return_path_over;
bool gave;                              /* all of START, or of the package, went out */
bool cancels, refused;                  /* what the user heard */
bool src_done;

/* The destination */
mtype:status dst_status = ACTIVE;
bool runs_there, images_there;
bool autostart = AUTOSTART;
bool may_start;                         /* START has come */
bool dst_done;

bool by_hand;                           /* a human has continued it on the source */

#define NOT_TAKEN (ONE_OWNER && status != COMPLETED && owner == GIVEN)
#define IN_DOUBT (src_done && NOT_TAKEN)

/* --- The source -------------------------------------------------------- */

/* The thread of the return path */
proctype Reader()
{
    mtype:message m;

    {
        do
        :: atomic { nempty(to_src) ->
               to_src ? m;
               if
               :: m == LOADED -> heard_loaded = true
               :: m == LAST_WORD ->
                  heard_last_word = true;
                  owner = (MISTAKE(13) || owner == UNDECIDED -> KEPT : owner)
               :: m == NOT_STARTED ->
                  heard_last_word = true;
                  owner = (MISTAKE(14) -> owner : KEPT)
               :: m == SHUT0 -> heard_shut0 = true; break
               :: m == SHUT1 -> owner = (MISTAKE(14) -> owner : KEPT); break
               fi;
               m = 0
           }
        :: atomic { SRC_SEES_END -> break }
        od;
        atomic {
            /* Not given, so never to be */
            owner = (!heard_shut0 && owner == UNDECIDED -> KEPT : owner);
            return_path_over = true
        }
    } unless { src_dead }
}

/*
 * The state of a migration changes once from what goes on to what it ended with.
 * With START sent, SHUT0 is completed whatever else has failed.
 */
inline finish()
{
    if
    :: heard_shut0 && !cancels && !heard_last_word -> status = COMPLETED
    :: MISTAKE(11) && gave && !heard_last_word && owner == GIVEN -> status = COMPLETED
    :: else -> status = (cancels -> CANCELLED : FAILED)
    fi;
    if
    :: status == COMPLETED -> skip
    :: NOT_TAKEN && !MISTAKE(3) -> skip
    :: MISTAKE(17) && gave && owner == KEPT -> skip
    :: else -> images_here = true; runs_here = true
    fi;
    src_closed = true;
    src_done = true
}

/* The migration thread */
proctype Mover()
{
    {
        atomic {
            if
            :: cancels || !up -> finish(); goto over
            :: else ->
               runs_here = false;
               images_here = false;
               status = DEVICE;
               to_dst ! STREAM;
               if
               :: PRECOPY -> skip
               :: POSTCOPY -> gave = true; owner = (owner == UNDECIDED -> GIVEN : owner)
               fi
            fi
        };
        if
        :: !ASKS -> skip
        :: ASKS ->
           if
           :: heard_loaded || (return_path_over && !MISTAKE(18))
           :: MISTAKE(4)
           fi;
           atomic {
               if
               :: MISTAKE(5) && heard_loaded -> owner = GIVEN
               :: owner == UNDECIDED && (heard_loaded || MISTAKE(4)) -> owner = GIVEN
               :: else -> skip
               fi
           };
           atomic {
               if
               :: owner == GIVEN && up && !dst_closed -> to_dst ! START; gave = true
               :: owner == GIVEN && (!up || dst_closed) ->
                  if
                  :: owner = (MISTAKE(9) -> GIVEN : KEPT)   /* cannot write it */
                  :: gave = true                            /* the system takes it for nobody */
                  fi
               :: owner != GIVEN -> skip
               fi
           }
        fi;
        atomic { return_path_over -> finish() }
    } unless { src_dead };
over:
    src_done = true
}

/* migrate_cancel, in the main thread, at any moment, once */
proctype User()
{
end:
    if
    :: atomic { !src_done && !src_dead ->
           refused = (ONE_OWNER && owner == GIVEN && !MISTAKE(1)) ||
                     (POSTCOPY && gave);                    /* as ever */
           if
           :: refused && !MISTAKE(16) -> skip
           :: else ->
              owner = (MISTAKE(2) -> owner : KEPT);
              cancels = true;
              up = false
           fi
       }
    :: skip
    fi
}

/* --- The destination --------------------------------------------------- */

inline say(m)
{
    if
    :: up && !src_closed -> to_src ! m
    :: else -> skip
    fi
}

#define MUST_ASK (ASKS && autostart && !may_start)

/* The coroutine of the loader, and the bottom half that starts the guest */
proctype Destination()
{
    mtype:message m;

    {
        atomic {
            if
            :: nempty(to_dst) -> to_dst ? m
            :: DST_SEES_END -> goto failed
            fi
        };
        atomic {
            if
            :: skip
            :: goto failed                          /* dies of it without a word */
            :: say(NOT_STARTED); goto last_shut     /* cannot load it */
            fi
        };
loaded:
        atomic {
            if
            :: MUST_ASK -> say(LOADED)
            :: else -> goto start
            fi
        };
        atomic {
            if
            :: nempty(to_dst) -> to_dst ? m; may_start = true
            :: DST_SEES_END && !MISTAKE(7) -> goto failed
            :: DST_SEES_END && MISTAKE(7) -> may_start = true
            :: MISTAKE(6) -> may_start = true       /* has waited long enough */
            fi
        };
start:
        atomic {
            if
            :: MUST_ASK && !MISTAKE(12) -> goto loaded      /* `cont` came meanwhile */
            :: !MUST_ASK || MISTAKE(12) ->
               if
               :: autostart -> images_there = true; runs_there = true
               :: !autostart -> skip
               fi;
               dst_status = COMPLETED;
               if
               :: say(SHUT0)
               :: runs_there -> say(LAST_WORD)      /* fails, and the guest runs on here */
               fi;
               goto over
            :: autostart && (!MUST_ASK || MISTAKE(12)) ->   /* an image is locked */
               images_there = MISTAKE(8) || MISTAKE(15);
               runs_there = MISTAKE(10);
               say(NOT_STARTED)
            fi
        };
        atomic { images_there = MISTAKE(8) };
last_shut:
        atomic { say(SHUT1) };
failed:
        dst_status = FAILED
    } unless { dst_dead };
over:
    atomic { dst_closed = true; dst_done = true }
}

/* `cont` or `stop` there while it is loaded: says what is to happen then */
proctype Monitor()
{
end:
    if
    :: atomic { dst_status == ACTIVE && !dst_dead -> autostart = !autostart }
    :: skip
    fi
}

/* --- Around them ------------------------------------------------------- */

/* Reset, yank on either side, network */
proctype Net()
{
end:
    if
    :: up = false
    :: skip
    fi
}

/* Either process dies, at any moment; the system closes its end */
proctype Death()
{
end:
    if
    :: atomic { !src_dead ->
           src_dead = true; src_closed = true; up = false;
           runs_here = false; images_here = false }
    :: atomic { !dst_dead ->
           dst_dead = true; dst_closed = true; up = false;
           runs_there = false; images_there = false }
    :: skip
    fi
}

/* `cont` on a destination that has been left paused */
proctype Management()
{
end:
    atomic { dst_status == COMPLETED && !runs_there && !dst_dead &&
             (HASTY || (status == COMPLETED && !src_dead)) ->
             images_there = true; runs_there = true }
}

/* Who reads the error: `cont` on the source, if it does not run there */
proctype Human()
{
end:
    atomic { IN_DOUBT && !src_dead && !runs_there && (dst_dead || dst_status == FAILED) ->
             images_here = true; runs_here = true; by_hand = true }
}

/* --- Watching ---------------------------------------------------------- */

/* Not part of the state; spin prints the name of the one that fails */
hidden byte one_owner = true;
hidden byte one_image = true;
hidden byte refusal = true;
hidden byte cancelled = true;
hidden byte kept = true;
hidden byte given_back = true;
hidden byte somebody = true;
hidden byte completed = true;
hidden byte early = true;

#define OVER (src_done && dst_done)
/* What the source knows of the destination has come from there */
#define TOLD_NEVER (dst_done && dst_status == FAILED && !dst_dead && !runs_there)

proctype Watch()
{
end:
    atomic {
        if
        /* A guest never runs twice, and nobody writes to the images of another */
        :: runs_here && runs_there -> one_owner = false; assert(one_owner)
        :: images_here && images_there -> one_image = false; assert(one_image)
        /* A cancellation that was refused does not cancel */
        :: refused && status == CANCELLED -> refusal = false; assert(refusal)
        /* One that was not leaves the guest here */
        :: src_done && !src_dead && cancels && !runs_here ->
           cancelled = false; assert(cancelled)
        /* So does all that happens before it has been given away */
        :: ONE_OWNER && src_done && !src_dead && !gave && status != COMPLETED && !runs_here ->
           kept = false; assert(kept)
        /* Nobody runs it only if the source does not know, and says so */
        :: OVER && !src_dead && !runs_here && !runs_there && status != COMPLETED && !IN_DOUBT ->
           somebody = false; assert(somebody)
        /* The destination's "never" gives it back */
        :: ONE_OWNER && src_done && !src_dead && heard_last_word && TOLD_NEVER &&
           !runs_here && !by_hand -> given_back = false; assert(given_back)
        /* Completed is what runs there, or is ready to */
        :: status == COMPLETED && !dst_dead && dst_status != COMPLETED ->
           completed = false; assert(completed)
        /* It is not given away before it has been loaded */
        :: ASKS && gave && !heard_loaded -> early = false; assert(early)
        fi
    }
}

init
{
    atomic {
#ifdef ANY_MISTAKE
        c_code { broken = atoi(getenv("BROKEN")); };
#endif
        run Reader();
        run Mover();
        run User();
        run Destination();
        run Monitor();
        run Net();
        run Death();
        run Management();
        run Human();
        run Watch()                     /* the last one is the first to look */
    }
}

/* To be found violated: what has to be possible */
ltl never_completes { [] !(status == COMPLETED && runs_there) }
ltl never_refuses { [] !(refused && status == COMPLETED) }
ltl never_in_doubt_and_there { [] !(IN_DOUBT && dst_done && runs_there) }
ltl never_in_doubt_and_nowhere { [] !(IN_DOUBT && dst_done && !runs_there && !by_hand) }
ltl never_by_hand { [] !by_hand }
ltl never_given_back { [] !(src_done && gave && owner == KEPT && runs_here) }
ltl never_cancelled_when_loaded { [] !(status == CANCELLED && heard_loaded && runs_here) }
ltl never_told_to_start_and_paused { [] !(gave && status == COMPLETED && !runs_there && !dst_dead) }
/* To hold */
ltl all_ends { <> OVER }
