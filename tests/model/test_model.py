# SPDX-License-Identifier: GPL-2.0-or-later
"""spin searches all states of the model of the handshake, and finds what is broken on purpose.

handshake.pml explains the model and its properties. By hand, in a directory of its own:

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

MODEL = Path(__file__).with_name("handshake.pml")
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


class Verifier:
    """What spin and the compiler make of the model in one world."""

    def __init__(self, directory: Path, options: str, *flags: str) -> None:
        self.directory = directory
        # Without merging of statements, the list of unreached ones has all of them. To optimize
        # takes longer than the searches do.
        self.run("spin", "-a", "-o3", *options.split(), str(MODEL))
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
    verifiers: dict[tuple[str, ...], Verifier] = {}

    def build(options: str, *flags: str) -> Verifier:
        key = (options, *flags)
        if key not in verifiers:
            verifiers[key] = Verifier(tmp_path_factory.mktemp("model"), *key)
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
        entry = re.match(r'\s+\S*handshake\.pml:(\d+), state \d+, "(.*)"$', line)
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


@pytest.mark.parametrize("world", WORLDS)
def test_no_state_violates_a_property(reports: dict[str, str], world: str) -> None:
    report = reports[world]
    require_complete(report)
    assert re.search(r"^\s*assertion violations\t\+$", report, re.M), report
    assert re.search(r"^\s*invalid end states\t\+$", report, re.M), report
    states = re.search(r"^\s*(\d+) states, stored$", report, re.M)
    assert states and int(states[1]) > 10_000, report


def test_all_of_the_model_takes_place(reports: dict[str, str]) -> None:
    """Each cancellation, timer, refusal... happens in one world at least."""
    never: dict[str, set[Statement]] = {}
    for report in reports.values():
        processes, statements = unreached(report)
        for process in processes:
            mine = {statement for statement in statements if statement.process == process}
            never[process] = never.get(process, mine) & mine
    assert {"Source", "Conversation", "Others", "Hostile", "Qmp"} <= set(never)
    assert never.pop("Watch")

    lines = MODEL.read_text(encoding="utf-8").splitlines()
    helpers = inlines(lines)
    surprising = {lines[line - 1].strip() for statements in never.values()
                  for _, line, text in statements if text != "-end-" and line not in helpers}
    assert all("MISTAKE(" in line or "dishonest = true" in line for line in surprising), surprising


@pytest.mark.parametrize("options", [f"{CHANNEL} -DFAULTS=1", f"{TWO} -DFAULTS=0"])
def test_everything_ends(build: Build, options: str) -> None:
    for claim in ("attempts_end", "conversations_end", "session_is_free_again"):
        report = build(options).search("-a", "-N", claim)
        require_complete(report)
        assert f"({claim})" in report


@pytest.mark.parametrize("claim, mistake", [
    ("attempts_end", 17), ("conversations_end", 6), ("session_is_free_again", 6)])
def test_what_does_not_end_is_found(build: Build, claim: str, mistake: int) -> None:
    report = build(f"{ONE} -DANY_MISTAKE").search("-a", "-N", claim, mistake=mistake)
    assert errors(report) == 1
    assert "acceptance cycle" in report


@pytest.mark.parametrize("claim", POSSIBLE)
def test_things_can_happen(build: Build, claim: str) -> None:
    report = build(POSSIBLE[claim]).search("-a", "-N", claim)
    assert errors(report) == 1, claim
    assert "assertion violated" in report and f"({claim})" in report


@pytest.mark.parametrize("mistake", MISTAKES, ids=[mistake.what for mistake in MISTAKES])
def test_mistake_is_found(build: Build, mistake: Mistake) -> None:
    verifier = build(f"{mistake.world} -DANY_MISTAKE", *SAFETY)
    report = verifier.search(mistake=mistake.number)
    finding = mistake.finding if mistake.finding == STUCK else f"violated {mistake.finding}"
    assert errors(report) == 1, report
    assert re.search(rf"^pan:1: .*{finding} \(at depth", report, re.M), report


def test_each_mistake_of_the_model_is_tried() -> None:
    text = MODEL.read_text(encoding="utf-8")
    numbers = {int(number) for number in re.findall(r"MISTAKE\((\d+)\)", text)}
    assert numbers == {mistake.number for mistake in MISTAKES}


def test_each_property_is_violated_by_a_mistake() -> None:
    properties = set(re.findall(r"assert\((\w+)\)", MODEL.read_text(encoding="utf-8")))
    assert properties == {mistake.finding for mistake in MISTAKES} - {STUCK} | {"one_owner"}


def test_limit_of_a_return_path_is_known(build: Build) -> None:
    """A guest that starts by itself may run twice; see AUTOSTART in the model."""
    report = build(f"{ONE} -DAUTOSTART=1", *SAFETY).search()
    assert errors(report) == 1
    assert "violated one_owner" in report
