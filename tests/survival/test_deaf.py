# SPDX-License-Identifier: GPL-2.0-or-later
"""A source that reads nothing of what a destination says, and has left no room for more."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest
from machine import Lab, Machine, until
from processes import (NO_MULTIFD, PATIENCE, PROMPT, UNDER, Options, Watch, begin, channels,
                       each_base, end, inet, pc_lab, set_capabilities, start_source, unix,
                       wait_status)
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

    def is_full(self) -> bool:
        """Whether all that has come is what was asked for."""
        return self.lines[0].unheard("destination") == self._room * PONG


PAUSED = ("-S",)


@contextlib.asynccontextmanager
async def deaf_pair(lab: Lab, deaf: Deaf, directory: Path, kind: str,
                    there: tuple[str, ...] = PAUSED
                    ) -> AsyncIterator[tuple[Machine, Machine, int]]:
    """Source, destination, and the port of what stands between."""
    source = await start_source(lab)
    destination = await lab.start("destination", "-incoming", "defer", *there, under=UNDER)
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
            assert deaf.is_full()


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


async def play_postcopy(base: str, directory: Path, seen: Callable[[Machine], Awaitable[None]],
                        *there: str) -> None:
    """The main thread of the destination has something to say, and then that is seen."""
    deaf = Deaf(own_answers=2)
    async with pc_lab(base=base) as lab:
        async with deaf_pair(lab, deaf, directory, "handshake",
                             (*PAUSED, *there)) as (source, destination, port):
            await begin_postcopy(source, port, deaf)
            await asyncio.wait_for(seen(destination), PATIENCE)
            assert deaf.is_full()


@each_base
async def test_answer_in_postcopy(base: str, tmp_path: Path) -> None:
    """The main thread answers the PING in the package: it does not wait to be heard."""
    await play_postcopy(base, tmp_path, loaded)


@each_base
async def test_last_word_in_postcopy(base: str, tmp_path: Path) -> None:
    """The main thread says why it cannot load the devices: it does not wait to be heard."""
    await play_postcopy(base, tmp_path, settled_failure, "-global", "hpet.timers=5")


@each_base
async def test_yank_of_who_is_not_heard(base: str, tmp_path: Path) -> None:
    """LOADED waits for room in the loader's coroutine; there is none, and that can be ended."""
    deaf = Deaf(own_answers=1)
    async with pc_lab(base=base) as lab:
        async with deaf_pair(lab, deaf, tmp_path, "handshake", ()) as (source, destination, port):
            await begin(source, inet(port), options("handshake"))
            await asyncio.wait_for(deaf.reached.wait(), PATIENCE)
            await wait_status(source, "device")

            async def no_room() -> bool:
                return deaf.is_full()

            await until("all to be said", PATIENCE, no_room)
            async with Watch(destination):
                await asyncio.sleep(0.5)
                assert (await destination.migration())["status"] == "active"
                await destination.execute("yank", {"instances": [{"type": "migration"}]})
                assert (await end(destination, PROMPT))["status"] == "failed"
