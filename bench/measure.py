# SPDX-License-Identifier: GPL-2.0-or-later
"""Migrates a machine to and fro, in several modes by turns, and takes the times."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator, Sequence
from typing import NamedTuple, Optional

from guest import LIMIT, has_moved
from links import Loopback
from machine import Json, Lab, Machine, NotSeen
from migrations import MOVE_LIMIT, channels, handshake_of, listen

NEGOTIABLE = {"return-path", "multifd", "switchover-ack"}


class Mode(NamedTuple):
    """A way to migrate: the type of the channel, and the capabilities."""

    kind: str
    set_by_hand: frozenset[str] = frozenset()  # on both sides
    agreed: frozenset[str] = frozenset()  # what the handshake has to come to
    optional: Optional[Sequence[str]] = None  # what it is told to try
    paused: bool = False    # the destination has -S, and `cont` comes when the source has completed


def by_turns(modes: Sequence[str], rounds: int) -> Iterator[list[str]]:
    """An order for each round, so that everyone comes after everyone else equally often.

    That is a Williams design, if the number of modes is even.
    """
    count = len(modes)
    zigzag = [i // 2 if i % 2 == 0 else count - 1 - i // 2 for i in range(count)]
    for turn in range(rounds):
        yield [modes[(i + turn) % count] for i in zigzag]


async def set_capabilities(machine: Machine, **states: bool) -> None:
    await machine.execute("migrate-set-capabilities", {"capabilities": [
        {"capability": name, "state": state} for name, state in states.items()]})


class Shuttle:
    """One machine, and the moves that it makes."""

    def __init__(self, lab: Lab, link: Loopback, home: Machine, *options: str):
        self.homes = [home]
        self._lab = lab
        self._link = link
        self._options = options

    async def move(self, mode: Mode) -> Json:
        source = self.homes[-1]
        side = len(self.homes) % 2
        destination = await self._lab.start(
            f"home-{len(self.homes)}", *self._options, "-incoming", "defer",
            *(["-S"] if mode.paused else []), under=self._link.under(side))
        await self._set_up(mode, source, destination)
        host = self._link.host(side)
        arguments = channels(mode.kind, await listen(destination, mode.kind, host), host)
        if mode.optional is not None:
            arguments["handshake"] = {"optional-capabilities": list(mode.optional)}
        sample = await timed_migration(source, destination, arguments, mode.paused)
        if not await has_moved(source, destination):
            raise NotSeen("the guest runs twice")
        if mode.kind == "handshake":
            sample["handshake"] = await verdict_time(mode, source, destination)
        await source.stop()
        self.homes.append(destination)
        return sample

    async def _set_up(self, mode: Mode, source: Machine, destination: Machine) -> None:
        # What the source still has from the time when it was a destination goes.
        wanted = {name: name in mode.set_by_hand for name in sorted(NEGOTIABLE)}
        await set_capabilities(source, events=True, **wanted)
        await source.execute("migrate-set-parameters", {"max-bandwidth": 0})
        if mode.set_by_hand:
            await set_capabilities(destination, **dict.fromkeys(mode.set_by_hand, True))


async def verdict_time(mode: Mode, source: Machine, destination: Machine) -> float:
    handshake = await handshake_of(source, destination)
    if not handshake.is_agreed or set(handshake.source["capabilities"]) != mode.agreed:
        raise NotSeen(f"the two to agree on {sorted(mode.agreed)}, not on {handshake}")
    return handshake.source["duration"] / 1000


async def timed_migration(source: Machine, destination: Machine, arguments: Json,
                          paused: bool) -> Json:
    """All times in milliseconds."""
    with source.events("MIGRATION", "STOP") as here, destination.events("RESUME") as there:
        begin = time.time()
        await source.execute("migrate", arguments)
        times: dict[str, float] = {}
        try:
            async with asyncio.timeout(MOVE_LIMIT):
                while not times.keys() & {"completed", "failed", "cancelled"}:
                    event = await here.get()
                    name = event.get("data", {}).get("status", "stop")
                    times.setdefault(name, stamp(event) - begin)
        except TimeoutError as error:
            raise NotSeen(f"{source.name}: the migration is at {list(times)} "
                          f"after {MOVE_LIMIT:g} s") from error
        info = await source.migration()
        if "completed" not in times:
            raise NotSeen(f"the migration {info['status']}: {info.get('error-desc', '')}")
        if paused:
            await destination.execute("cont")
        try:
            event = await asyncio.wait_for(there.get(), LIMIT)
        except TimeoutError as error:
            raise NotSeen(f"{destination.name}: the guest does not run") from error
    ms = {name: 1000 * seconds for name, seconds in times.items()}
    resumed = 1000 * (stamp(event) - begin)
    ram = info["ram"]
    return {
        "wall": max(ms["completed"], resumed),
        "until-active": ms["active"],
        "until-completed": ms["completed"],
        "total-time": info["total-time"],
        "setup-time": info["setup-time"],
        "downtime": info["downtime"],
        "standstill": resumed - ms["stop"],
        "end": ms["completed"] - ms["stop"],
        "transferred-mib": ram["transferred"] / (1 << 20),
        "zero-mib": ram["duplicate"] * ram["page-size"] / (1 << 20),
        "passes": ram["dirty-sync-count"],
    }


def stamp(event: Json) -> float:
    """QEMU's own clock, which is this machine's."""
    when = event["timestamp"]
    return when["seconds"] + when["microseconds"] / 1e6
