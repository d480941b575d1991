# SPDX-License-Identifier: GPL-2.0-or-later
"""spin searches all states of two models, and finds what is broken on purpose.

handshake.pml is the conversation, end.pml what decides who runs the guest in the end. They
explain themselves and their properties. By hand, in a directory of its own:

    spin -a -DCHANNELS=1 -DFAULTS=0 .../handshake.pml && cc -DSAFETY -DNOCLAIM -o pan pan.c && ./pan
    spin -k handshake.pml.trail -p -g -DCHANNELS=1 -DFAULTS=0 .../handshake.pml  # what it has found

-DBROKEN=N makes the mistake of that number.
"""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path
from typing import Callable, NamedTuple

import pytest

HANDSHAKE = Path(__file__).with_name("handshake.pml")
END = Path(__file__).with_name("end.pml")
DEPTH = 20000
MEMORY = 2000       # MB
LIMIT = 200         # seconds; the longest search takes less than five where nothing else runs

# The worlds that are searched in full. Together they have all that the model knows; one that
# had everything at once would be too large.
WORLDS = {
    "channels": "-DCHANNELS=1 -DFAULTS=0",
    "fallback": "-DCHANNELS=2 -DATTEMPTS=1 -DCHANGES=1",
    "timely": "-DCHANNELS=2 -DATTEMPTS=1 -DCHANGES=1 -DFAULTS=0 -DTIMELY=1",
    "proxy": "-DCHANNELS=1 -DATTEMPTS=1 -DALTERS=1 -DTOO_LONGS=1 -DCHECKS=1 -DCHANGES=1 -DFAULTS=1",
    "hostile": "-DHOSTILES=1 -DPLAIN=1 -DATTEMPTS=1 -DCHANNELS=1 -DFAULTS=1",
    "sources": "-DSOURCES=2 -DATTEMPTS=1 -DATTEMPTS2=2 -DPLAIN=1 -DFAULTS=0",
    "checks": "-DSOURCES=2 -DATTEMPTS=1 -DATTEMPTS2=1 -DPLAIN=1 -DCHECKS=1 -DFAULTS=1",
}
ONE = "-DPLAIN=1"
CHANNEL = "-DCHANNELS=1 -DATTEMPTS=1"
TWICE = "-DCHANNELS=1 -DFAULTS=0"
TIMELY = "-DCHANNELS=1 -DATTEMPTS=1 -DFAULTS=0 -DTIMELY=1"
PROXY = "-DATTEMPTS=1 -DALTERS=1 -DTOO_LONGS=1 -DCHECKS=1 -DCHANGES=1 -DFAULTS=1"
TWO = "-DSOURCES=2 -DATTEMPTS=1 -DATTEMPTS2=1 -DPLAIN=1"
HOSTILE = "-DHOSTILES=1 -DPLAIN=1 -DATTEMPTS=1"
HOSTILE_CHANNEL = f"{HOSTILE} -DCHANNELS=1"
STUCK = "invalid end state"


class Mistake(NamedTuple):
    """Something that an implementation could get wrong."""

    number: int         # BROKEN in the model
    what: str
    world: str
    finding: str        # the property that spin has to find violated, or STUCK


MISTAKES = [
    Mistake(1, "applies without COMMIT", ONE, "agreement"),
    Mistake(2, "keeps the session of who went before COMMIT", ONE, "session_alive"),
    Mistake(3, "does not compare the digest", PROXY, "agreement"),
    Mistake(4, "sends the stream before COMMIT", ONE, "honest"),
    Mistake(5, "gives the session to a check", PROXY, "check_harmless"),
    Mistake(6, "has no timer for COMMIT", ONE, STUCK),
    Mistake(7, "takes a channel of another session", TWICE, "own_channels"),
    Mistake(8, "loads although a channel is missing", HOSTILE_CHANNEL, "all_channels"),
    Mistake(9, "does not compare ACCEPT with the offer", PROXY, "within_offer"),
    Mistake(10, "waits for channels after COMMIT", HOSTILE_CHANNEL, "decides_at_once"),
    Mistake(11, "closes without draining", PROXY, "heard"),
    Mistake(12, "does not look again before it applies", PROXY, "able"),
    Mistake(13, "keeps settings when it cannot prepare", ONE, "session_loads"),
    Mistake(14, "completes without SHUT", ONE, "not_lost"),
    Mistake(15, "is never busy", TWO, "one_session"),
    Mistake(16, "exits when somebody talks nonsense", HOSTILE, "listens"),
    Mistake(17, "has no timer for the verdict", ONE, STUCK),
    Mistake(18, "keeps settings when it has failed", ONE, "restored"),
    Mistake(19, "keeps the channels of a session that is over", TWICE, "own_channels"),
    Mistake(20, "answers a HELLO when the migration is over", TWO, "none_too_late"),
    Mistake(21, "commits before each channel is answered", CHANNEL, "proven"),
    Mistake(22, "waits for an answer for ever", TIMELY, STUCK),
    Mistake(23, "takes anybody's answer", CHANNEL, "honest"),
    Mistake(24, "goes on without what is required", CHANNEL, "within_offer"),
    Mistake(25, "fails for an optional channel", CHANNEL, "optional_is_optional"),
    Mistake(26, "says nothing of a required channel", CHANNEL, "explained"),
    Mistake(27, "itself keeps what it leaves out", CHANNEL, "agreement"),
    Mistake(28, "keeps what the source leaves out", CHANNEL, "agreement"),
    Mistake(29, "hands on a channel that is left out", CHANNEL, "only_agreed"),
    Mistake(30, "takes a channel after COMMIT", CHANNEL, "only_agreed"),
    Mistake(31, "lets what is required be left out", HOSTILE_CHANNEL, "lawful"),
    Mistake(32, "lets what is not effective be left out", HOSTILE_CHANNEL, "lawful"),
    Mistake(33, "lets what has no channels be left out", HOSTILE, "lawful"),
    Mistake(34, "stops the guest before COMMIT", CHANNEL, "runs_on"),
    Mistake(35, "exits when it cannot go on after COMMIT", ONE, "listens"),
    Mistake(36, "has no last word", ONE, "heard"),
    Mistake(37, "keeps the session when it has had its last word", ONE, "session_alive"),
    Mistake(38, "takes a last word for SHUT", ONE, "not_lost"),
    Mistake(39, "opens channels for a check", PROXY, "check_harmless"),
    Mistake(40, "lets nothing be left out", CHANNEL, "honest"),
]

# Of the end. The same for who listens with -S, where management says `cont`.
ENDS = {
    "precopy": "-DAUTOSTART=1",
    "paused": "-DAUTOSTART=0",
    "postcopy": "-DPOSTCOPY=1",
    "paused postcopy": "-DPOSTCOPY=1 -DAUTOSTART=0",
}
PRECOPY, PAUSED, POSTCOPY = ENDS["precopy"], ENDS["paused"], ENDS["postcopy"]

MISTAKES_AT_THE_END = [
    Mistake(1, "cancels after the decision", PRECOPY, "one_owner"),
    Mistake(2, "decides and has not seen the cancellation", PRECOPY, "cancelled"),
    Mistake(3, "starts again in doubt", PRECOPY, "one_owner"),
    Mistake(3, "starts again when postcopy breaks", POSTCOPY, "one_owner"),
    Mistake(4, "does not wait for LOADED", PRECOPY, "early"),
    Mistake(5, "decides twice", PRECOPY, "cancelled"),
    Mistake(6, "starts when a timer says so", PRECOPY, "one_owner"),
    Mistake(7, "starts at the end of the connection", PRECOPY, "one_owner"),
    Mistake(8, "keeps the images", PRECOPY, "one_image"),
    Mistake(9, "gives away what could not be written", PRECOPY, "kept"),
    Mistake(10, "says that it never will, and does", PRECOPY, "one_owner"),
    Mistake(11, "completes without SHUT", PRECOPY, "completed"),
    Mistake(12, "starts because of a late `cont`", PAUSED, "one_owner"),
    Mistake(13, "takes any last word for a gift", PRECOPY, "one_owner"),
    Mistake(13, "takes any last word of postcopy for a gift", POSTCOPY, "one_owner"),
    Mistake(14, "does not take the guest back", PRECOPY, "given_back"),
    Mistake(14, "does not take the guest back in postcopy", POSTCOPY, "given_back"),
    Mistake(15, "speaks before it has given the images up", PRECOPY, "one_image"),
    Mistake(16, "refuses to cancel, and cancels", PRECOPY, "refusal"),
    Mistake(17, "takes the guest back and lets it stand", PRECOPY, "somebody"),
    Mistake(18, "waits for LOADED when nobody is there any more", PRECOPY, STUCK),
]

# What can happen, and the world in which spin finds it soon.
POSSIBLE = {
    "never_with_channels": CHANNEL,
    "never_without_channels": CHANNEL,
    "never_without_one": CHANNEL,
    "never_too_late": CHANNEL,
    "never_there_in_vain": CHANNEL,
    "never_of_an_old_session": TWICE,
    "never_at_second_attempt": TWICE,
    "never_after_a_last_word": TWICE,
    "never_ends_in_vain": TWICE,
    "never_without_shut": TWICE,
    "never_after_a_hostile": "-DHOSTILES=1 -DPLAIN=1 -DFAULTS=0 -DTIMELY=1",
    "never_after_busy": "-DSOURCES=2 -DATTEMPTS=1 -DATTEMPTS2=2 -DPLAIN=1 -DFAULTS=0",
}
POSSIBLE_ENDS = [
    ("never_completes", PRECOPY),
    ("never_completes", PAUSED),
    ("never_completes", POSTCOPY),
    ("never_refuses", PRECOPY),
    ("never_in_doubt_and_there", PRECOPY),
    ("never_in_doubt_and_there", POSTCOPY),
    ("never_in_doubt_and_nowhere", PRECOPY),
    ("never_in_doubt_and_nowhere", POSTCOPY),
    ("never_by_hand", PRECOPY),
    ("never_given_back", PRECOPY),
    ("never_given_back", POSTCOPY),
    ("never_cancelled_when_loaded", PRECOPY),
    ("never_told_to_start_and_paused", PRECOPY),
]


class Verifier:
    """What spin and the compiler make of a model in one world."""

    def __init__(self, directory: Path, model: Path, options: str, *flags: str) -> None:
        self.directory = directory
        # Without merging of statements, the list of unreached ones has all of them. To optimize
        # takes longer than the searches do.
        self.run("spin", "-a", "-o3", *options.split(), str(model))
        self.run("cc", "-w", "-O0", *flags, "-DCOLLAPSE", "-DVECTORSZ=1024", f"-DMEMLIM={MEMORY}",
                 "-o", "pan", "pan.c")

    def run(self, *command: str, mistake: int = 0) -> str:
        result = subprocess.run(command, cwd=self.directory, stdin=subprocess.DEVNULL,
                                stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                                env={**os.environ, "BROKEN": str(mistake)}, timeout=LIMIT,
                                check=False)
        assert result.returncode == 0, result.stdout
        return result.stdout

    def search(self, *options: str, mistake: int = 0) -> str:
        return self.run("./pan", f"-m{DEPTH}", "-w20", *options, mistake=mistake)


# Assertions, and ends where something should still happen
SAFETY = ("-DSAFETY", "-DNOCLAIM")
Build = Callable[..., Verifier]


@pytest.fixture(scope="module", name="build")
def build_each_once(tmp_path_factory: pytest.TempPathFactory) -> Build:
    """Return Verifier() with a memory."""
    verifiers: dict[tuple[Path, str, tuple[str, ...]], Verifier] = {}

    def build(options: str, *flags: str, model: Path = HANDSHAKE) -> Verifier:
        key = (model, options, flags)
        if key not in verifiers:
            verifiers[key] = Verifier(tmp_path_factory.mktemp("model"), model, options,
                                      *flags)
        return verifiers[key]
    return build


def errors(report: str) -> int:
    found = re.search(r"^State-vector .* errors: (\d+)$", report, re.M)
    assert found, report
    return int(found[1])


def require_complete(report: str) -> None:
    """Nothing was found, and no state was left out."""
    assert errors(report) == 0, report
    for sign in ("Search not completed", "max search depth", "out of memory", "Bit statespace",
                 "hash-compact"):
        assert sign not in report, report


class Statement(NamedTuple):
    """One of the model, as spin prints it."""

    process: str
    line: int
    text: str


def unreached(report: str) -> tuple[set[str], set[Statement]]:
    """Return which processes the report tells of, and what they have never done."""
    processes, statements = set(), set()
    process = ""
    for line in report.splitlines():
        title = re.match(r"unreached in (?:proctype )?(\w+)$", line)
        entry = re.match(r'\s+\S*/\w+\.pml:(\d+), state \d+, "(.*)"$', line)
        if title:
            process = title[1]
            processes.add(process)
        elif entry:
            statements.add(Statement(process, int(entry[1]), entry[2]))
    assert processes, report
    return processes, statements


def inlines(lines: list[str]) -> set[int]:
    """Return the lines of inline functions: not each use of one has all of its branches."""
    inside, numbers = False, set()
    for number, line in enumerate(lines, 1):
        inside = inside or line.startswith("inline ")
        if inside:
            numbers.add(number)
        inside = inside and line != "}"
    return numbers


@pytest.fixture(scope="module", name="reports")
def search_all_worlds(build: Build) -> dict[str, str]:
    return {name: build(options, *SAFETY).search() for name, options in WORLDS.items()}


@pytest.fixture(scope="module", name="ends")
def search_all_ends(build: Build) -> dict[str, str]:
    return {name: build(options, *SAFETY, model=END).search() for name, options in ENDS.items()}


def require_sound(report: str) -> None:
    """Nothing is violated in what is large enough to be a search."""
    require_complete(report)
    assert re.search(r"^\s*assertion violations\t\+$", report, re.M), report
    assert re.search(r"^\s*invalid end states\t\+$", report, re.M), report
    states = re.search(r"^\s*(\d+) states, stored$", report, re.M)
    assert states and int(states[1]) > 10_000, report


@pytest.mark.parametrize("world", WORLDS)
def test_no_state_violates_a_property(reports: dict[str, str], world: str) -> None:
    require_sound(reports[world])


@pytest.mark.parametrize("world", ENDS)
def test_one_owner_in_every_state(ends: dict[str, str], world: str) -> None:
    require_sound(ends[world])


def require_all_takes_place(model: Path, reports: dict[str, str], processes: set[str],
                            *exceptions: str) -> None:
    """Each statement, in one of the worlds at least; but for those of a line with such a word."""
    never: dict[str, set[Statement]] = {}
    for report in reports.values():
        found, statements = unreached(report)
        for process in found:
            mine = {statement for statement in statements if statement.process == process}
            never[process] = never.get(process, mine) & mine
    assert processes <= set(never)
    assert never.pop("Watch")

    lines = model.read_text(encoding="utf-8").splitlines()
    helpers = inlines(lines)
    surprising = {lines[line - 1].strip() for statements in never.values()
                  for _, line, text in statements if text != "-end-" and line not in helpers}
    assert all(any(word in line for word in ("MISTAKE(", *exceptions))
               for line in surprising), surprising


def test_all_of_the_model_takes_place(reports: dict[str, str]) -> None:
    """Each cancellation, timer, refusal... happens in one world at least."""
    require_all_takes_place(HANDSHAKE, reports,
                            {"Source", "Conversation", "Others", "Hostile", "Qmp"},
                            "dishonest = true")


def test_all_of_the_end_takes_place(ends: dict[str, str]) -> None:
    require_all_takes_place(END, ends, {"Reader", "Mover", "User", "Destination", "Monitor", "Net",
                                        "Death", "Management", "Human"})


@pytest.mark.parametrize("options", [f"{CHANNEL} -DFAULTS=1", f"{TWO} -DFAULTS=0"])
def test_everything_ends(build: Build, options: str) -> None:
    for claim in ("attempts_end", "conversations_end", "session_is_free_again"):
        report = build(options).search("-a", "-N", claim)
        require_complete(report)
        assert f"({claim})" in report


@pytest.mark.parametrize("world", ENDS)
def test_every_end_comes(build: Build, world: str) -> None:
    report = build(ENDS[world], model=END).search("-a", "-N", "all_ends")
    require_complete(report)
    assert "(all_ends)" in report


@pytest.mark.parametrize("claim, mistake", [
    ("attempts_end", 17), ("conversations_end", 6), ("session_is_free_again", 6)])
def test_what_does_not_end_is_found(build: Build, claim: str, mistake: int) -> None:
    report = build(f"{ONE} -DANY_MISTAKE").search("-a", "-N", claim, mistake=mistake)
    assert errors(report) == 1
    assert "acceptance cycle" in report


def test_an_end_that_does_not_come_is_found(build: Build) -> None:
    report = build(f"{PRECOPY} -DANY_MISTAKE", model=END).search("-a", "-N", "all_ends", mistake=18)
    assert errors(report) == 1
    assert "acceptance cycle" in report


def require_possible(verifier: Verifier, claim: str) -> None:
    report = verifier.search("-a", "-N", claim)
    assert errors(report) == 1, claim
    assert "assertion violated" in report and f"({claim})" in report


@pytest.mark.parametrize("claim", POSSIBLE)
def test_things_can_happen(build: Build, claim: str) -> None:
    require_possible(build(POSSIBLE[claim]), claim)


@pytest.mark.parametrize("claim, world", POSSIBLE_ENDS)
def test_ends_can_happen(build: Build, claim: str, world: str) -> None:
    require_possible(build(world, model=END), claim)


@pytest.mark.parametrize("mistake", MISTAKES, ids=[mistake.what for mistake in MISTAKES])
def test_mistake_is_found(build: Build, mistake: Mistake) -> None:
    require_found(build(f"{mistake.world} -DANY_MISTAKE", *SAFETY), mistake)


@pytest.mark.parametrize("mistake", MISTAKES_AT_THE_END,
                         ids=[mistake.what for mistake in MISTAKES_AT_THE_END])
def test_mistake_at_the_end_is_found(build: Build, mistake: Mistake) -> None:
    require_found(build(f"{mistake.world} -DANY_MISTAKE", *SAFETY, model=END), mistake)


def require_found(verifier: Verifier, mistake: Mistake) -> None:
    report = verifier.search(mistake=mistake.number)
    finding = mistake.finding if mistake.finding == STUCK else f"violated {mistake.finding}"
    assert errors(report) == 1, report
    assert re.search(rf"^pan:1: .*{finding} \(at depth", report, re.M), report


BOTH = pytest.mark.parametrize("model, mistakes", [(HANDSHAKE, MISTAKES),
                                                   (END, MISTAKES_AT_THE_END)],
                               ids=["handshake", "end"])


@BOTH
def test_each_mistake_of_the_model_is_tried(model: Path, mistakes: list[Mistake]) -> None:
    text = model.read_text(encoding="utf-8")
    numbers = {int(number) for number in re.findall(r"MISTAKE\((\d+)\)", text)}
    assert numbers == {mistake.number for mistake in mistakes}


@BOTH
def test_each_property_is_violated_by_a_mistake(model: Path, mistakes: list[Mistake]) -> None:
    properties = set(re.findall(r"assert\((\w+)\)", model.read_text(encoding="utf-8")))
    found = {mistake.finding for mistake in mistakes} - {STUCK}
    # A conversation alone does not decide that; see AUTOSTART in the model.
    assert properties == found | ({"one_owner"} if model == HANDSHAKE else set())


TWO_OWNERS = {
    "conversation alone": (HANDSHAKE, f"{ONE} -DAUTOSTART=1"),
    "precopy": (END, f"{PRECOPY} -DONE_OWNER=0"),
    "postcopy": (END, f"{POSTCOPY} -DONE_OWNER=0"),
    "hasty management": (END, f"{PAUSED} -DHASTY=1"),
}


@pytest.mark.parametrize("model, options", TWO_OWNERS.values(), ids=TWO_OWNERS)
def test_without_the_rule_there_are_two_owners(build: Build, model: Path, options: str) -> None:
    report = build(options, *SAFETY, model=model).search()
    assert errors(report) == 1
    assert "violated one_owner" in report
