# SPDX-License-Identifier: GPL-2.0-or-later
"""A relay that knows the frames after COMMIT, and holds one of them back."""

from __future__ import annotations

import asyncio
import struct
from collections.abc import Iterator
from typing import NamedTuple, Optional

from relay import SPEAKERS, Line, Relay
from wire import PREFIX_SIZE

LOADED, START, LAST_WORD = 8, 9, 10
SHUT = "SHUT"
NAMES = {LOADED: "LOADED", START: "START", LAST_WORD: "LAST WORD"}
RP_SHUT = 1
NOTHING_HELD = 1 << 62


class Late(NamedTuple):
    """A message of the return path, or START."""

    kind: int | str         # of a frame; SHUT; or the number of another message
    begin: int
    end: int
    payload: bytes


def late_messages(said: bytes | bytearray, at: int) -> Iterator[Late]:
    """Those on the return path that have come as a whole; it begins `at`."""
    while len(said) >= at + 4:
        number, length = struct.unpack_from(">HH", said, at)
        begin, kind = at, SHUT if number == RP_SHUT else number
        at += 4 + length
        if number == 0:
            at += PREFIX_SIZE - 4
            if len(said) < begin + PREFIX_SIZE:
                return
            kind = struct.unpack_from(">H", said, begin + 4)[0]
        if len(said) < at:
            return
        yield Late(kind, begin, at, bytes(said[at - length:at]))


class Gate(Relay):
    """Lets everything pass up to the first message of one kind.

    That one and all behind it wait for open(). Who ends is gone for the other one, too,
    but for a destination that has said SHUT: it is done, and its end waits as well.
    """

    def __init__(self, port: int, held: Optional[int | str]):
        super().__init__(port, self._treat_line)
        self._held = held
        self._bound = {speaker: NOTHING_HELD for speaker in SPEAKERS}
        self._ended = {speaker: False for speaker in SPEAKERS}
        self.reached = asyncio.Event()
        self.seen: list[int | str] = []         # of LOADED, START, LAST WORD and SHUT

    @property
    def main(self) -> Line:
        return self.lines[0]

    async def open(self) -> None:
        self._held = None
        for speaker in SPEAKERS:
            self._bound[speaker] = NOTHING_HELD
            await self._tell(speaker)

    async def hold(self, speaker: str) -> None:
        """Nothing more of what it says gets through."""
        self._bound[speaker] = self.main.passed[speaker]

    async def half(self) -> None:
        """Of what is held, the first half. The rest will never come."""
        for speaker in SPEAKERS:
            self._bound[speaker] = (self._bound[speaker] + len(self.main.said[speaker])) // 2
            await self._tell(speaker)

    def end_of(self, speaker: str) -> None:
        """What is held will never come, and the other one is told."""
        self.main.shut(speaker)

    async def cut(self) -> None:
        """Both are told."""
        await self._over()
        await self.main.cut()

    async def reset(self) -> None:
        await self._over()
        self.main.reset()

    async def _treat_line(self, line: Line) -> None:
        if line.number:
            return await line.carry_both()
        await line.reach()
        await asyncio.gather(*(self._carry(line, speaker) for speaker in SPEAKERS))

    async def _carry(self, line: Line, speaker: str) -> None:
        look = self._look_back if speaker == "destination" else self._look_ahead
        while await line.hear(speaker):
            look(line)
            await self._tell(speaker)
        self._ended[speaker] = True
        await self._tell(speaker)

    async def _tell(self, speaker: str) -> None:
        await self.main.tell(speaker, min(self._bound[speaker], len(self.main.said[speaker])))
        waits = self._held == SHUT and speaker == "destination"
        if self._ended[speaker] and not waits:
            self.main.shut(speaker)

    def _look_back(self, line: Line) -> None:
        at = line.conversation("destination")
        some = [] if at is None else list(late_messages(line.said["destination"], at))
        known = [one for one in some if one.kind in (SHUT, *NAMES)]
        for one in known[len([kind for kind in self.seen if kind != START]):]:
            self._see(one.kind, "destination", one.begin)

    def _look_ahead(self, line: Line) -> None:
        """Behind LOADED there is nothing but START."""
        if LOADED in self.seen and START not in self.seen:
            self._see(START, "source", line.passed["source"])

    def _see(self, kind: int | str, speaker: str, begin: int) -> None:
        self.seen.append(kind)
        if kind == self._held:
            self._bound[speaker] = begin
            self.reached.set()

    async def _over(self) -> None:
        """Nothing is carried any more."""
        for task in self._tasks:
            if task is not self._accepting:
                task.cancel()
        await asyncio.sleep(0)
