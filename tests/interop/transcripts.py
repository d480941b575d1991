#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""Conversations that have to be understood for ever, in golden/*.hex.

Usage: transcripts.py NAME...

records them with the QEMU that QTEST_QEMU_BINARY names, or that has been built
here, and writes golden/VERSION-NAME.hex. A NAME is one of RECIPES; "all" is all of
them. What has once been written is kept: a new version of QEMU gets new files.

A file has lines of these kinds:

  # text                    for people
  key: value                the command line of either side, what migrate was told
  channel NAME INDEX        what follows was said on that channel
  > 0000  51 4d  |QM|       bytes of the source
  < 0000  51 4d  |QM|       bytes of the destination
"""

from __future__ import annotations

import asyncio
import json
import re
import sys
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from itertools import takewhile
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from conftest import QEMU  # noqa: E402
from machine import Machine, until  # noqa: E402
from processes import (NO_MULTIFD, Lab, Options, begin, end, inet, require_success,  # noqa: E402
                       start_destination, start_source)
from qmhs.frames import (ACCEPT, HELLO, Header, decode_header, decode_late,  # noqa: E402
                         message)
from qmhs.messages import Hello  # noqa: E402
from qmhs.roles import Source  # noqa: E402
from qmhs.transcript import Part, decode  # noqa: E402
from talk import FEATURES, Listener, Recorder, call, end_of_stream  # noqa: E402

GOLDEN = Path(__file__).resolve().parent / "golden"
PC = "-machine pc-i440fx-10.0 -m 16"
Q35 = "-machine pc-q35-10.0 -m 16"
NONE = "-machine none"
CHECK: Options = {"check-only": True}
STREAM = 8              # bytes of it that are kept; they show where it begins
WIDTH = 16

_BYTES = re.compile(r"([<>]) ([0-9a-f]{4,})  ((?:[0-9a-f]{2} )*[0-9a-f]{2})  \|")


@dataclass
class Said:
    """On one channel."""

    name: str
    index: int
    source: bytes = b""
    destination: bytes = b""


@dataclass
class Transcript:
    """One attempt to migrate."""

    comment: str
    source: str             # the command line
    destination: str
    options: Options = field(default_factory=dict)
    channels: list[Said] = field(default_factory=list)

    def source_lab(self) -> Lab:
        return lab_of(self.source)

    def destination_lab(self) -> Lab:
        return lab_of(self.destination)

    @property
    def main(self) -> Said:
        return self.channels[0]

    def write(self) -> str:
        lines = ["# SPDX-License-Identifier: GPL-2.0-or-later",
                 *(f"# {line}" for line in self.comment.splitlines()),
                 f"source: {self.source}", f"destination: {self.destination}",
                 f"options: {json.dumps(self.options)}"]
        for said in self.channels:
            lines += [f"channel {said.name} {said.index}", *_described(said)]
        return "\n".join(lines) + "\n"

    @classmethod
    def read(cls, text: str) -> Transcript:
        lines = text.splitlines()
        comment = "\n".join(line[2:] for line in takewhile(lambda line: line[0] == "#", lines[1:]))
        keys = dict(line.split(": ", 1) for line in lines if re.match("[a-z]+: ", line))
        result = cls(comment, keys["source"], keys["destination"], json.loads(keys["options"]))
        for line in lines:
            if line.startswith("channel "):
                _, name, index = line.split()
                result.channels.append(Said(name, int(index)))
            elif line[:1] in ("<", ">"):
                _read_bytes(line, result.channels[-1])
        return result


def lab_of(command: str) -> Lab:
    return Lab([str(QEMU), "-nodefaults", "-display", "none", *command.split()], "qtest")


def golden() -> dict[str, Transcript]:
    return {path.stem: Transcript.read(path.read_text())
            for path in sorted(GOLDEN.glob("*.hex"))}


def _read_bytes(line: str, said: Said) -> None:
    match = _BYTES.match(line)
    if not match:
        raise ValueError(f"not a line of a transcript: {line}")
    data = said.source if match[1] == ">" else said.destination
    if len(data) != int(match[2], 16):
        raise ValueError(f"bytes are missing before: {line}")
    data += bytes.fromhex(match[3])
    if match[1] == ">":
        said.source = data
    else:
        said.destination = data


def _described(said: Said) -> Iterator[str]:
    """Piece by piece, with a comment on each."""
    if said.name != "main":
        yield "# the channel header and its answer, and nothing else of the handshake"
        yield from _dump(">", 0, said.source)
        yield from _dump("<", 0, said.destination)
        return
    talk = decode(said.source, said.destination)
    yield from _described_part(">", "the source's", talk.source)
    yield from _described_part("<", "the destination's", talk.destination)


def _described_part(mark: str, whose: str, part: Part) -> Iterator[str]:
    pieces = [(f"{whose} channel header", part.header.encode())]
    pieces += [(str(frame), frame.encode()) for frame in part.frames]
    pieces += _stream(part.rest) if mark == ">" else _return_path(part.rest)
    at = 0
    for text, data in pieces:
        yield f"# {text}"
        yield from _dump(mark, at, data)
        at += len(data)


def _stream(data: bytes) -> list[tuple[str, bytes]]:
    size = end_of_stream(data) or len(data)
    pieces = [("the migration stream", data[:size]), ("START", data[size:])]
    return [piece for piece in pieces if piece[1]]


def _return_path(data: bytes) -> list[tuple[str, bytes]]:
    pieces, at = [], 0
    while at < len(data):
        one, end = decode_late(data, at)
        pieces.append((str(one), data[at:end]))
        at = end
    return pieces


def _dump(mark: str, at: int, data: bytes) -> Iterator[str]:
    for start in range(0, len(data), WIDTH):
        piece = data[start:start + WIDTH]
        text = "".join(chr(byte) if 0x20 <= byte < 0x7f else "." for byte in piece)
        yield f"{mark} {at + start:04x}  {piece.hex(' ')}  |{text}|"


async def _record(transcript: Transcript, over: Callable[[Machine, Machine], Awaitable[None]],
                  most: int = 1 << 10, to_the_end: bool = False) -> None:
    async with transcript.source_lab() as lab, transcript.destination_lab() as other:
        source = await start_source(lab)
        destination, port = await start_destination(other)
        async with Recorder(port, most) as recorder:
            await begin(source, inet(recorder.port), transcript.options)
            await over(source, destination)
            for line in recorder.lines:
                header, at = decode_header(bytes(line.source))
                if not header.is_main:
                    transcript.channels.append(Said(header.name, header.index,
                                                    bytes(line.source[:at]),
                                                    bytes(line.destination)))
                    continue
                if to_the_end:
                    transcript.channels.append(Said("main", 0, bytes(line.source),
                                                    bytes(line.destination)))
                    continue
                talk = decode(bytes(line.source), bytes(line.destination))
                transcript.channels.append(
                    Said("main", 0, talk.source.handshake + talk.source.rest[:STREAM],
                         talk.destination.handshake))
    transcript.channels.sort(key=lambda said: (said.name, said.index))


async def _failed(source: Machine, _: Machine) -> None:
    assert (await end(source))["status"] == "failed"


async def _checked(source: Machine, _: Machine) -> None:
    async def told() -> bool:
        return (await source.handshake())["status"] == "accepted"

    await until("the verdict", 10, told)


async def accept() -> Transcript:
    transcript = Transcript("Accepted, on the main channel alone.", PC, PC, NO_MULTIFD)
    await _record(transcript, require_success)
    return transcript


async def multifd() -> Transcript:
    transcript = Transcript("Accepted, with multifd, which both sides can do, on two channels.",
                            PC, PC)
    await _record(transcript, require_success)
    return transcript


async def without() -> Transcript:
    transcript = Transcript("Accepted, and committed without multifd: a single connection got "
                            "through.", PC, PC)
    await _record(transcript, require_success, most=1)
    return transcript


async def last_word() -> Transcript:
    """What QEMU's sources make of a missing channel is another transcript."""
    transcript = Transcript(
        "Accepted, and committed while channels were missing: the last word says so.\n"
        "The source was none of QEMU's.", PC, PC)
    async with transcript.destination_lab() as lab:
        _, port = await start_destination(lab)
        async with call(port) as talk:
            source = Source(Hello(features=FEATURES,
                                  optional_capabilities=["multifd", "switchover-ack"]))
            await talk.say(source.begin())
            while source.state == "waiting":
                await talk.say(source.receive(await talk.read()))
            heard = source.heard
            await talk.say(source.opened({}), b"QEVM")
            transcript.channels = [Said("main", 0, talk.said, heard + await talk.rest())]
    return transcript


async def hand_over() -> Transcript:
    transcript = Transcript("To the end: LOADED, START and SHUT. There is no machine, so that all of "
                            "the\nstream can be kept.", NONE, NONE, NO_MULTIFD)
    await _record(transcript, require_success, to_the_end=True)
    return transcript


async def reject() -> Transcript:
    transcript = Transcript("Refused, for many reasons: the destination is another machine.",
                            PC, Q35)
    await _record(transcript, _failed)
    return transcript


async def check() -> Transcript:
    transcript = Transcript("A check, accepted. The source has no last word.", PC, PC, CHECK)
    await _record(transcript, _checked)
    return transcript


async def abort() -> Transcript:
    """QEMU's destinations give no reason for that."""
    transcript = Transcript(
        "Aborted: ACCEPT has a capability that the source has not offered.\n"
        "The destination was none of QEMU's.", PC, PC, NO_MULTIFD)
    async with transcript.source_lab() as lab, Listener() as listener:
        source = await start_source(lab)
        await begin(source, inet(listener.port), transcript.options)
        talk = await listener.next()
        await talk.header()
        await talk.message(HELLO)
        await talk.say(Header(bytes(range(1, 17))), message(
            ACCEPT, {"version": 1, "capabilities": ["return-path", "dirty-bitmaps"]}))
        await talk.rest()
        transcript.channels = [Said("main", 0, talk.inbox.everything, talk.said)]
    return transcript


RECIPES = {recipe.__name__.replace("_", "-"): recipe for recipe in (
    accept, multifd, without, last_word, hand_over, reject, check, abort)}


async def _version() -> str:
    async with lab_of(NONE) as lab:
        qemu = (await (await start_source(lab)).execute("query-version"))["qemu"]
    return f"{qemu['major']}.{qemu['minor']}"


async def main(names: list[str]) -> None:
    version = await _version()
    for name in RECIPES if names == ["all"] else names:
        transcript = await RECIPES[name]()
        transcript.comment = f"QEMU {version}. {transcript.comment}"
        path = GOLDEN / f"{version}-{name}.hex"
        if path.exists():
            raise SystemExit(f"{path} exists, and is kept")
        path.write_text(transcript.write())
        print(path)


if __name__ == "__main__":
    if not sys.argv[1:] or not set(sys.argv[1:]) <= {*RECIPES, "all"}:
        raise SystemExit(f"{__doc__}\nRECIPES: {', '.join(RECIPES)}")
    asyncio.run(main(sys.argv[1:]))
