# SPDX-License-Identifier: GPL-2.0-or-later
"""The page about the dissector: its filters and its examples, tried on handshakes.

In the output of an example, `...` is any number of lines, or the rest of a line.
"""

from __future__ import annotations

import asyncio
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from conftest import TOP
from machine import Json
from processes import (begin, inet, pc_lab, require_refused, require_success, start_destination,
                       start_source)
from tshark import Recording, Turn, connection, directory, tshark, write
from wire import (ABORT, ACCEPT, COMMIT, FEATURES, HELLO, LAST_WORD, REJECT, frame, header, hello,
                  parameter)

PAGE = TOP / "docs/wireshark.rst"
MORE = "..."
PROMPT = "$ tshark "
CLIENT = 10000

# What is another one each time, or on another machine.
VOLATILE = [(re.compile(pattern), name) for pattern, name in (
    (r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", "SESSION"),
    (r"\b0x([0-9a-f]a)\1\b", "GREASE"),
    (r"grease-[0-9a-f]{8}", "GREASE"),
    (r"QEMU version: \d+\.\d+\.\d+", "QEMU version: VERSION"),
    (r"^ *\d+ \d+ (source|destination):", r"\1:"),
    (r"multifd [01]\b", "multifd N"),
    (r"\d+ bytes", "N bytes"),
    (r"Length: \d+", "Length: N"),
    (r"\[(truncated|…)\]", "[truncated]"),
    (r"\t| {4}(?=\S)", " "))]


class Example(NamedTuple):
    file: str
    options: list[str]
    output: list[str]


class Captures(NamedTuple):
    place: Path
    session: str

    def shown(self, name: str, *options: str) -> list[str]:
        return tshark(self.place / f"{name}.pcapng", *options).splitlines()


def examples() -> list[Example]:
    found = []
    for block in re.findall(r"::\n\n((?:    .*\n|\n)+)", PAGE.read_text()):
        command, *output = [line[4:] for line in block.rstrip().splitlines()]
        if command.startswith(PROMPT):
            _, file, *options = shlex.split(command.removeprefix(PROMPT))
            found.append(Example(file.removesuffix(".pcapng"), options, output))
    return found


def filters() -> list[str]:
    """The first column of the table."""
    rows = PAGE.read_text().split("\n   * - Filter\n")[1].split("\nThe same without")[0]
    columns = re.findall(r"^   \* - (.*?)\n     - ", rows, re.MULTILINE | re.DOTALL)
    return [one for column in columns for one in re.findall(r"``(.*?)``", column)]


EXAMPLES, FILTERS = examples(), filters()


async def record(place: Path) -> str:
    """Returns the session of the one that was accepted."""
    async with pc_lab("pc-q35-10.0") as here, pc_lab("pc-i440fx-10.0") as there:
        source = await start_source(here)
        other, port = await start_destination(there)
        async with Recording(place, port) as recording:
            await begin(source, inet(port))
            await require_refused(source)
        recording.file.rename(place / "refused.pcapng")
        await other.stop()

        destination, port = await start_destination(here)
        async with Recording(place, port) as recording:
            await begin(source, inet(port))
            await require_success(source, destination)
        recording.file.rename(place / "accepted.pcapng")
        session: str = (await source.handshake())["session"]
        return session


def make_up(place: Path) -> None:
    """What the other two do not have."""
    profile = {"parameters": [parameter("multifd-channels", 2)],
               "bitmaps": [{"node": "disk", "name": "nightly"}]}
    question = Turn(True, header() + frame(HELLO, {**hello(2, optional=True), "profile": profile,
                                                   "ignore": ["cpu"]}))
    answer: Json = {"version": 1, "capabilities": ["return-path"], "features": FEATURES,
                    "declined": [{"capability": "multifd", "reason": "none"}],
                    "issues": [{"code": "unknown", "severity": "info", "message": "good to know"},
                               {"code": "cpu", "severity": "warning", "message": "x (ignored)"}]}
    chosen = {**answer, "capabilities": ["return-path", "multifd"]}
    without = {"digest": "0" * 64, "without": [{"capability": "multifd", "reason": "refused"}]}
    session = bytes(range(16))
    talks = [
        [(False, frame(ACCEPT, answer)), (True, frame(ABORT, {}))],
        [(False, frame(REJECT, {"message": "it is busy"}))],
        [(False, frame(ACCEPT, chosen)), (True, frame(COMMIT, without)),
         (False, frame(LAST_WORD, {"message": "no memory", "guest": "not-started"}))],
        [(False, frame(ACCEPT, chosen)), (True, frame(COMMIT, {"digest": "0" * 64}))]]
    packets = []
    for number, ((_, first), *rest) in enumerate(talks):
        turns = [question, Turn(False, header(session=session) + first),
                 *(Turn(*turn) for turn in rest)]
        packets += connection(CLIENT + number, turns)
    twice = Turn(True, header() + 2 * frame(HELLO, hello(2)))
    packets += connection(CLIENT + len(talks), [twice])
    write(place, packets).rename(place / "others.pcapng")


@pytest.fixture(name="captures", scope="module")
def _captures() -> Iterator[Captures]:
    with directory() as place:
        make_up(place)
        yield Captures(place, asyncio.run(record(place)))


def plain(line: str) -> str:
    for pattern, name in VOLATILE:
        line = pattern.sub(name, line)
    return line.rstrip()


def is_like(shown: str, told: str) -> bool:
    if told.endswith(MORE):
        return shown.startswith(told.removesuffix(MORE).rstrip())
    return shown == told


def require_in_order(shown: list[str], told: list[str]) -> None:
    """What is told begins anywhere, and leaves out only what it says."""
    at, may_skip = 0, True
    for line in told:
        if line.strip() == MORE:
            may_skip = True
            continue
        rest = range(at, len(shown) if may_skip else at + 1)
        found = next((i for i in rest if i < len(shown) and is_like(shown[i], line)), None)
        assert found is not None, f"{line!r}; there is {shown[at:at + 3]}"
        at, may_skip = found + 1, False


@pytest.mark.parametrize("number", range(len(EXAMPLES)))
def test_examples(captures: Captures, number: int) -> None:
    example = EXAMPLES[number]
    shown = [plain(line) for line in captures.shown(example.file, *example.options)]
    told = [plain(line) for line in example.output]
    assert told
    if example.file == "accepted":      # several channels, and none waits for another
        assert [line for line in told if line and line.strip() != MORE and line not in shown] == []
    else:
        require_in_order(shown, told)


def test_all_examples_are_found() -> None:
    assert [example.file for example in EXAMPLES] == ["accepted", "refused", "refused", "refused"]


@pytest.mark.parametrize("number", range(len(FILTERS)))
def test_filters(captures: Captures, number: int) -> None:
    """Each of them shows something, of a session if it is about one."""
    which = re.sub(r'(session == )".*"', rf'\1"{captures.session}"', FILTERS[number])
    shown = [captures.shown(name, "-Y", which) for name in ("accepted", "refused", "others")]
    assert any(shown), which


def test_all_filters_are_found() -> None:
    assert len(FILTERS) == len(re.findall("``(?:qmhs|json)[.]", PAGE.read_text()))
