# SPDX-License-Identifier: GPL-2.0-or-later
"""A source that reads nothing of what a destination says, and has left no room for more."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from machine import Lab, Machine, until
from processes import (NO_MULTIFD, PATIENCE, UNDER, Options, Watch, begin, channels, each_base, end,
                       inet, pc_lab, set_capabilities, start_source, unix)
from relay import Line, Relay
from test_own_faults import KINDS, SLOW, Hold, settled_failure

# In the stream: each PING is answered, with so many bytes.
FIRST_PING = struct.pack(">BHHI", 8, 2, 4, 1)
PING = struct.pack(">BHHI", 8, 2, 4, 0)
PONG = 8


def room() -> int:
    """How many messages of that size a UNIX socket takes that nobody reads."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.setblocking(False)
        count = 0
        with contextlib.suppress(BlockingIOError):
            while ours.send(bytes(PONG)):
                count += 1
    return count


class Deaf(Hold):
    """Asks for so many answers that there is no room left when the source's own have come."""

    def __init__(self, own_answers: int) -> None:
        super().__init__(FIRST_PING)
        self._own = own_answers
        self._room = room()

    async def treat(self, line: Line) -> None:
        await line.reach()
        answers = asyncio.create_task(line.carry("destination"))
        said = line.said["source"]
        while (bound := self._bound(said)) is None:
            await line.tell("source", self._safe(said))
            await line.hear("source")
        await line.tell("source", bound)
        answers.cancel()
        await asyncio.gather(answers, return_exceptions=True)
        await line.say("source", PING * (self._room - self._own))

        async def answered() -> bool:
            return line.unheard("destination") == (self._room - self._own) * PONG

        await until("answers", PATIENCE, answered)
        self.lines.append(line)
        self.reached.set()
        await line.carry("source")

    async def require_no_room(self) -> None:
        """There was none: all that has come is what was asked for."""
        assert self.lines[0].unheard("destination") == self._room * PONG


@contextlib.asynccontextmanager
async def deaf_pair(lab: Lab, deaf: Deaf, directory: Path, kind: str,
                    there: tuple[str, ...] = ()) -> AsyncIterator[tuple[Machine, Machine, int]]:
    """Source, destination, and the port of what stands between."""
    source = await start_source(lab)
    destination = await lab.start("destination", "-S", "-incoming", "defer", *there, under=UNDER)
    if kind == "main":
        await set_capabilities(source, "return-path")
        await set_capabilities(destination, "return-path")
    address = unix(directory / "socket")
    await destination.execute("migrate-incoming", {**channels(kind, address),
                                                   "exit-on-error": False})
    async with Relay(directory / "socket", deaf.treat) as relay:
        yield source, destination, relay.port


def options(kind: str, *ignored: str) -> Options | None:
    return None if kind == "main" else {**NO_MULTIFD, "ignore-issues": list(ignored)}


async def has_ended(destination: Machine) -> None:
    async with Watch(destination):
        await end(destination)


@each_base
@pytest.mark.parametrize("kind", KINDS)
async def test_last_message(base: str, kind: str, tmp_path: Path) -> None:
    """SHUT is said with the BQL held: it is lost, and the monitor answers."""
    deaf = Deaf(own_answers=1)
    async with pc_lab(base=base) as lab:
        async with deaf_pair(lab, deaf, tmp_path, kind) as (source, destination, port):
            await begin(source, inet(port), options(kind), kind=kind)
            await asyncio.wait_for(deaf.reached.wait(), PATIENCE)
            await asyncio.wait_for(has_ended(destination), PATIENCE)
            assert (await destination.migration())["status"] == "completed"
            await deaf.require_no_room()


async def begin_postcopy(source: Machine, port: int, deaf: Deaf) -> None:
    """When there is room for no more than what comes before the package."""
    await set_capabilities(source, "postcopy-ram")
    await source.execute("migrate-set-parameters", {"max-bandwidth": SLOW, "downtime-limit": 1})
    await begin(source, inet(port), options("handshake", "section-schema"))
    await asyncio.wait_for(deaf.reached.wait(), PATIENCE)
    await source.execute("migrate-start-postcopy")


async def loaded(destination: Machine) -> None:
    """The main thread has answered the package, and left the guest as it was told to."""
    async def paused() -> bool:
        return (await destination.execute("query-status"))["status"] == "paused"

    async with Watch(destination):
        await until("the package to be loaded", PATIENCE, paused)


@each_base
async def test_answer_in_postcopy(base: str, tmp_path: Path) -> None:
    """The main thread answers the PING in the package: it does not wait to be heard."""
    deaf = Deaf(own_answers=2)
    async with pc_lab(base=base) as lab:
        async with deaf_pair(lab, deaf, tmp_path, "handshake") as (source, destination, port):
            await begin_postcopy(source, port, deaf)
            await asyncio.wait_for(loaded(destination), PATIENCE)
            await deaf.require_no_room()


@each_base
async def test_last_word_in_postcopy(base: str, tmp_path: Path) -> None:
    """The main thread says why it cannot load the devices: it does not wait to be heard."""
    deaf = Deaf(own_answers=2)
    async with pc_lab(base=base) as lab:
        async with deaf_pair(lab, deaf, tmp_path, "handshake",
                             ("-global", "hpet.timers=5")) as (source, destination, port):
            await begin_postcopy(source, port, deaf)
            await asyncio.wait_for(settled_failure(destination), PATIENCE)
            await deaf.require_no_room()
