# SPDX-License-Identifier: GPL-2.0-or-later
"""spin searches all states of the model of the handshake, and finds what is broken on purpose.

handshake.pml explains the model and its properties. By hand, in a directory of its own:

    spin -a -DCHANNELS=1 .../handshake.pml && cc -DSAFETY -DNOCLAIM -o pan pan.c && ./pan
    spin -t -p -g -DCHANNELS=1 .../handshake.pml        # how it got to what it has found
"""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import NamedTuple

import pytest

MODEL = Path(__file__).with_name("handshake.pml")
DEPTH = 20000
MEMORY = 2000       # MB
LIMIT = 200         # seconds; the longest search takes less than ten where nothing else runs

# The worlds that are searched in full. Together they have all that the model knows; one that
# had everything at once would be too large.
WORLDS = {
    "channels": "-DCHANNELS=2 -DCHANGES=1",
    "proxy": "-DALTERS=1 -DTOO_LONGS=1 -DCHECKS=1 -DCHANGES=1 -DFAULTS=1",
    "stranger": "-DSTRANGERS=1 -DPLAIN=1 -DFAULTS=1",
    "sources": "-DSOURCES=2 -DATTEMPTS=1 -DATTEMPTS2=2 -DPLAIN=1 -DFAULTS=1",
    "checks": "-DSOURCES=2 -DATTEMPTS=1 -DATTEMPTS2=1 -DPLAIN=1 -DCHECKS=1",
}
ONE = "-DPLAIN=1"
CHANNEL = "-DCHANNELS=1"
TWO = "-DSOURCES=2 -DATTEMPTS=1 -DATTEMPTS2=1 -DPLAIN=1"
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
    Mistake(3, "does not compare the digest", "-DALTERS=1", "agreement"),
    Mistake(4, "sends the stream before COMMIT", ONE, "honest"),
    Mistake(5, "gives the session to a check", "-DCHECKS=1", "check_harmless"),
    Mistake(6, "has no timer for COMMIT", ONE, STUCK),
    Mistake(7, "takes a channel of another session", CHANNEL, "own_channels"),
    Mistake(8, "does not wait for multifd channels", CHANNEL, "all_channels"),
    Mistake(9, "does not compare ACCEPT with the offer", "-DALTERS=1", "within_offer"),
    Mistake(10, "has no timer for channels", CHANNEL, STUCK),
    Mistake(11, "closes without draining", "-DTOO_LONGS=1", "told_why"),
    Mistake(12, "does not look again before it applies", "-DCHANGES=1", "able"),
    Mistake(13, "keeps settings when it cannot prepare", ONE, "session_loads"),
    Mistake(14, "completes without the last word", ONE, "not_lost"),
    Mistake(15, "is never busy", TWO, "session_loads"),
    Mistake(16, "exits when a stranger talks nonsense", "-DSTRANGERS=1 -DPLAIN=1", "listens"),
    Mistake(17, "has no timer for the verdict", ONE, STUCK),
    Mistake(18, "keeps settings when it has failed", ONE, "gives_back"),
    Mistake(19, "keeps the channels of a session that is over", CHANNEL, "own_channels"),
    Mistake(20, "judges a HELLO when the migration is over", TWO, "none_too_late"),
]

# What can happen, and the world in which spin finds it soon.
POSSIBLE = {
    "never_with_channels": CHANNEL,
    "never_overtakes": CHANNEL,
    "never_of_an_old_session": CHANNEL,
    "never_at_second_attempt": CHANNEL,
    "never_ends_in_vain": CHANNEL,
    "never_without_the_last_word": CHANNEL,
    "never_without_channels": ONE,
    "never_after_a_stranger": "-DSTRANGERS=1 -DPLAIN=1 -DFAULTS=0",
    "never_after_busy": "-DSOURCES=2 -DATTEMPTS=1 -DATTEMPTS2=2 -DPLAIN=1 -DFAULTS=0",
}


class Verifier:
    """What spin and the compiler make of the model in one world."""

    def __init__(self, directory: Path, options: str, *flags: str) -> None:
        self.directory = directory
        # Without merging of statements, the list of unreached ones has all of them.
        self.run("spin", "-a", "-o3", *options.split(), str(MODEL))
        self.run("cc", "-w", *flags, "-DCOLLAPSE", "-DVECTORSZ=1024", f"-DMEMLIM={MEMORY}",
                 "-o", "pan", "pan.c")

    def run(self, *command: str) -> str:
        result = subprocess.run(command, cwd=self.directory, stdin=subprocess.DEVNULL,
                                stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                                timeout=LIMIT, check=False)
        assert result.returncode == 0, result.stdout
        return result.stdout

    def search(self, *options: str) -> str:
        return self.run("./pan", f"-m{DEPTH}", "-w22", *options)


def safety(directory: Path, options: str, optimize: str = "-O0") -> str:
    """Look at all states: assertions, and ends where something should still happen."""
    return Verifier(directory, options, optimize, "-DSAFETY", "-DNOCLAIM").search()


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
def search_all_worlds(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return {name: safety(tmp_path_factory.mktemp(name), options, "-O2")
            for name, options in WORLDS.items()}


@pytest.mark.parametrize("world", WORLDS)
def test_no_state_violates_a_property(reports: dict[str, str], world: str) -> None:
    report = reports[world]
    require_complete(report)
    assert re.search(r"^\s*assertion violations\t\+$", report, re.M), report
    assert re.search(r"^\s*invalid end states\t\+$", report, re.M), report
    states = re.search(r"^\s*(\d+) states, stored$", report, re.M)
    assert states and int(states[1]) > 100_000, report


def test_all_of_the_model_takes_place(reports: dict[str, str]) -> None:
    """Each cancellation, timer, refusal... happens in one world at least."""
    never: dict[str, set[Statement]] = {}
    for report in reports.values():
        processes, statements = unreached(report)
        for process in processes:
            mine = {statement for statement in statements if statement.process == process}
            never[process] = never.get(process, mine) & mine
    assert {"Source", "Conversation", "Others", "Stranger", "Qmp"} <= set(never)
    assert never.pop("Watch")

    lines = MODEL.read_text(encoding="utf-8").splitlines()
    helpers = inlines(lines)
    surprising = {lines[line - 1].strip() for statements in never.values()
                  for _, line, text in statements if text != "-end-" and line not in helpers}
    assert all("MISTAKE(" in line or "dishonest = true" in line for line in surprising), surprising


@pytest.mark.parametrize("options", [f"{CHANNEL} -DFAULTS=1", f"{TWO} -DFAULTS=1"])
def test_everything_ends(tmp_path: Path, options: str) -> None:
    verifier = Verifier(tmp_path, options, "-O2")
    for claim in ("attempts_end", "conversations_end", "session_is_free_again"):
        report = verifier.search("-a", "-N", claim)
        require_complete(report)
        assert f"({claim})" in report


@pytest.mark.parametrize("claim, mistake", [
    ("attempts_end", 17), ("conversations_end", 6), ("session_is_free_again", 6)])
def test_what_does_not_end_is_found(tmp_path: Path, claim: str, mistake: int) -> None:
    report = Verifier(tmp_path, f"{ONE} -DBROKEN={mistake}", "-O0").search("-a", "-N", claim)
    assert errors(report) == 1
    assert "acceptance cycle" in report


@pytest.mark.parametrize("options", dict.fromkeys(POSSIBLE.values()))
def test_things_can_happen(tmp_path: Path, options: str) -> None:
    verifier = Verifier(tmp_path, options, "-O1")
    for claim in [claim for claim, world in POSSIBLE.items() if world == options]:
        report = verifier.search("-a", "-N", claim)
        assert errors(report) == 1, claim
        assert "assertion violated" in report and f"({claim})" in report


@pytest.mark.parametrize("mistake", MISTAKES, ids=[mistake.what for mistake in MISTAKES])
def test_mistake_is_found(tmp_path: Path, mistake: Mistake) -> None:
    report = safety(tmp_path, f"{mistake.world} -DBROKEN={mistake.number}")
    finding = mistake.finding if mistake.finding == STUCK else f"violated {mistake.finding}"
    assert errors(report) == 1, report
    assert re.search(rf"^pan:1: .*{finding} \(at depth", report, re.M), report


def test_each_mistake_of_the_model_is_tried() -> None:
    text = MODEL.read_text(encoding="utf-8")
    numbers = {int(number) for number in re.findall(r"MISTAKE\((\d+)\)", text)}
    assert numbers == {mistake.number for mistake in MISTAKES}


def test_limit_of_a_return_path_is_known(tmp_path: Path) -> None:
    """A guest that starts by itself may run twice; see AUTOSTART in the model."""
    report = safety(tmp_path, f"{ONE} -DAUTOSTART=1")
    assert errors(report) == 1
    assert "violated one_owner" in report
