# SPDX-License-Identifier: GPL-2.0-or-later
"""Source or destination dies, at any moment of the handshake or after it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import time
from collections.abc import AsyncIterator
from typing import NamedTuple

import pytest
from endings import GIVEN
from machine import Lab, Machine, NotSeen, until
from processes import (PATIENCE, begin, channels, end, inet, pc_lab,
                       require_good_migration, require_listening, require_refused, set_channels,
                       start_destination, start_source)
from relay import SPEAKERS, Line, Relay
from wire import HEADER_SIZE

RECOVERY = 4.0      # nobody waits for a timer, which takes 5 seconds
STOPPED = 0.2
MULTIFD_CHANNELS = 2


class Moment(NamedTuple):
    """When `speaker` has got this much of its part through, on this connection."""

    speaker: str
    size: int
    line: int = 0
    beyond: bool = False


# More than there is means all of ACCEPT, or COMMIT without its last byte.
HANDSHAKE = {
    "connected": Moment("source", 0),
    "in the header": Moment("source", 40),
    "behind the header": Moment("source", HEADER_SIZE),
    "in HELLO": Moment("source", 300),
    "judged": Moment("destination", 0),
    "in the answer's header": Moment("destination", 40),
    "in ACCEPT": Moment("destination", 200),
    "behind ACCEPT": Moment("destination", 1 << 20),
    "in COMMIT": Moment("source", 1 << 20),
}
CHANNELS = {
    "first channel connects": Moment("source", 0, 1),
    "in the first channel's header": Moment("source", 30, 1),
    "last channel connects": Moment("source", 0, MULTIFD_CHANNELS),
    "in the last channel's header": Moment("source", HEADER_SIZE - 1, MULTIFD_CHANNELS),
}
STREAM = {f"{kib} KiB after the handshake": Moment("source", kib << 10, 0, True)
          for kib in (3, 8, 16, 30)}


def parametrize(moments: dict[str, Moment]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("moment", moments.values(), ids=moments.keys())


by_signal = pytest.mark.parametrize("stopped", [False, True], ids=["killed", "stopped-killed"])


@contextlib.asynccontextmanager
async def held_at(moment: Moment, port: int) -> AsyncIterator[tuple[Relay, asyncio.Event]]:
    """A relay that stops at the moment; the event is set then."""
    reached = asyncio.Event()

    async def treat(line: Line) -> None:
        if line.number == moment.line:
            await line.carry_part(moment.speaker, moment.size, moment.beyond)
            reached.set()
            await asyncio.Event().wait()
        else:
            await line.carry_both()

    async with Relay(port, treat) as relay:
        yield relay, reached


async def die(machine: Machine, stopped: bool) -> None:
    if stopped:
        os.kill(machine.pid, signal.SIGSTOP)
        await asyncio.sleep(STOPPED)
    machine.kill()
    await machine.heard()       # with the events that it had still sent
    await machine.gone()


async def another_destination(lab: Lab, source: Machine) -> None:
    other, port = await start_destination(lab, "other destination")
    await require_good_migration(source, other, port)


async def lose_destination(moment: Moment, stopped: bool) -> tuple[str, int]:
    """Returns what the source says, and how often its guest was stopped."""
    async with pc_lab() as lab:
        source = await start_source(lab)
        await set_channels(source, MULTIFD_CHANNELS)
        destination, port = await start_destination(lab)
        with source.events("STOP") as stops:
            async with held_at(moment, port) as (relay, reached):
                await begin(source, inet(relay.port))
                await asyncio.wait_for(reached.wait(), PATIENCE)
                dying = asyncio.create_task(die(destination, stopped))
                assert (await source.migration())["status"] not in ("completed", "cancelled")
                await dying
                await relay.hang_up()
                start = time.monotonic()
                info = await end(source)
                assert info["status"] == "failed", info
                assert time.monotonic() - start < RECOVERY
                await until("the guest to run", RECOVERY, source.is_running)
            seen = 0
            while not stops.empty():
                await stops.get()
                seen += 1
        await another_destination(lab, source)
        return info["error-desc"], seen


@by_signal
@parametrize(HANDSHAKE)
async def test_destination_dies_in_the_handshake(moment: Moment, stopped: bool) -> None:
    error, stops = await lose_destination(moment, stopped)
    assert error
    # With COMMIT, the migration begins on the source.
    assert stops == 0 or moment in (HANDSHAKE["behind ACCEPT"], HANDSHAKE["in COMMIT"])


@by_signal
@parametrize({**CHANNELS, **STREAM})
async def test_destination_dies_after_it(moment: Moment, stopped: bool) -> None:
    error, _ = await lose_destination(moment, stopped)
    assert error


@by_signal
@parametrize({**HANDSHAKE, **CHANNELS})
async def test_source_dies(moment: Moment, stopped: bool) -> None:
    """The destination is free for the next source, and was not before."""
    async with pc_lab() as lab:
        source = await start_source(lab)
        await set_channels(source, MULTIFD_CHANNELS)
        other = await start_source(lab, "other source")
        destination, port = await start_destination(lab)
        async with held_at(moment, port) as (relay, reached):
            await begin(source, inet(relay.port))
            await asyncio.wait_for(reached.wait(), PATIENCE)
            if await holds_session(destination):
                await begin(other, inet(port))
                await require_refused(other, "another migration")
            await die(source, stopped)
            await relay.hang_up()
            await require_listening(destination, RECOVERY)
        await require_good_migration(other, destination, port)


async def holds_session(destination: Machine) -> bool:
    info = await destination.migration()
    return info.get("handshake", {}).get("status") == "in-progress"


async def test_source_dies_in_the_stream() -> None:
    """No handshake any more: the destination fails, and does not run half a guest."""
    async with pc_lab() as lab:
        source = await start_source(lab)
        destination = await lab.start("destination", "-incoming", "defer")
        await destination.execute("migrate-incoming", {"exit-on-error": False,
                                                       **channels("handshake", inet(0))})
        port = int((await destination.migration())["socket-address"][0]["port"])
        async with held_at(STREAM["8 KiB after the handshake"], port) as (relay, reached):
            await begin(source, inet(relay.port))
            await asyncio.wait_for(reached.wait(), PATIENCE)
            await die(source, False)
            await relay.hang_up()
            info = await end(destination, RECOVERY)
            assert info["status"] == "failed"
            assert not await destination.is_running()


@pytest.mark.parametrize("victim", SPEAKERS)
async def test_death_at_any_time(victim: str) -> None:
    """Without a relay, some time after `migrate`: one of the two is left to run the guest."""
    async with pc_lab() as lab:
        for step in range(25):
            source = await start_source(lab, f"source {step}")
            destination, port = await start_destination(lab, f"destination {step}")
            pair = {"source": source, "destination": destination}
            with destination.events("RESUME") as resumed:
                await begin(source, inet(port))
                await asyncio.sleep(step * 0.001)
                await die(pair[victim], bool(step % 2))
                if victim == "destination":
                    await check_source(source, started=not resumed.empty())
                else:
                    await check_destination(destination)
            await source.stop()
            await destination.stop()


async def check_source(source: Machine, started: bool) -> None:
    info = await end(source, RECOVERY)
    if info["status"] == "completed":
        assert started
        return
    assert info["status"] == "failed"
    if info["error-desc"].startswith(GIVEN):
        assert not await source.is_running()    # nobody here can know whether it runs there
    else:
        await until("the guest to run", RECOVERY, source.is_running)


async def check_destination(destination: Machine) -> None:
    """It listens, or runs the guest, or is gone: but it does not hang."""
    async def settled() -> bool:
        try:
            status = (await destination.migration())["status"]
            if status == "completed":
                return await destination.is_running()
            return status == "setup" and not await holds_session(destination)
        except NotSeen:
            return True     # a part of the stream is a reason to exit

    await until("the destination to settle", RECOVERY, settled)
