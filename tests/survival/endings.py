# SPDX-License-Identifier: GPL-2.0-or-later
"""Migrations that end in all ways and at all moments, and who runs the guest then."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import random
import socket
import struct
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Optional

from machine import LOOPBACK, Json, Lab, Machine, NotSeen, until
from processes import (PATIENCE, UNDER, Address, channels, inet, pc_lab, set_capabilities,
                       set_psk, unix)
from qemu.qmp import EventListener

TRANSPORTS = ("tcp", "unix", "tls")
MODES = ("precopy", "multifd", "postcopy")
ENDINGS = ("cancel", "yank source", "yank destination", "reset", "kill source",
           "kill destination")
MOMENTS = ("any time", "near the end")

ANY_TIME = 0.120        # after `migrate`
NEAR = 0.005            # after the source has stopped its guest
SLOW = 1 << 20          # bytes a second: it takes 100 ms until something is left, or nothing
STUCK = 30.0

GIVEN = "the destination was told to start the guest, and the connection ended before it said"
TOO_LATE = "it is too late to cancel"
OVER = ("completed", "failed", "cancelled", "postcopy-paused")


class Case(NamedTuple):
    """What is done to one migration, and when."""

    number: int
    transport: str
    mode: str
    paused: bool            # the destination was started with -S
    exits: bool             # ... exits if it cannot load
    slow: bool
    ending: str
    moment: str
    delay: float

    def __str__(self) -> str:
        notes = [name for name in ("paused", "exits", "slow") if getattr(self, name)]
        after = "`migrate`" if self.moment == MOMENTS[0] else "the guest has stopped"
        return (f"case {self.number}: {', '.join([self.transport, self.mode, *notes])}: "
                f"{self.ending} {self.delay * 1000:.2f} ms after {after}")


def cases(seed: int) -> Iterator[Case]:
    """Without end; each number is the same case for ever. All kinds come equally often."""
    kinds = list(itertools.product(TRANSPORTS, MODES, (False, True), ENDINGS, MOMENTS))
    for lap in itertools.count():
        order = random.Random(f"{seed}/{lap}")
        order.shuffle(kinds)
        for place, (transport, mode, paused, ending, moment) in enumerate(kinds):
            number = lap * len(kinds) + place
            draw = random.Random(f"{seed}/case {number}")
            delay = draw.uniform(0, ANY_TIME if moment == MOMENTS[0] else NEAR)
            exits, slow = draw.random() < 0.5, draw.random() < 0.5
            yield Case(number, transport, mode, paused, exits, slow or mode == "postcopy", ending,
                       moment, delay)


@dataclass
class Said:
    """What one side says in the end."""

    status: str
    runstate: str
    error: str = ""

    def __str__(self) -> str:
        return f"{self.status}, {self.runstate}" if self.runstate else self.status


class Side:
    """One QEMU of a pair, and when the guest ran there."""

    def __init__(self, machine: Machine, events: EventListener, runs: bool):
        self.machine = machine
        self._events = events
        self._began = 0.0 if runs else None
        self._killed: Optional[float] = None
        self._waiters: list[tuple[str, Optional[str], asyncio.Event]] = []
        self._seen: list[Json] = []
        self._reading = asyncio.create_task(self._read())

    async def _read(self) -> None:
        while True:
            event = await self._events.get()
            self._seen.append(event)
            for name, status, waiter in self._waiters:
                if self._is(event, name, status):
                    waiter.set()

    @staticmethod
    def _is(event: Json, name: str, status: Optional[str]) -> bool:
        return bool(event["event"] == name
                    and status in (None, event.get("data", {}).get("status")))

    async def event(self, name: str, status: Optional[str] = None) -> None:
        """Wait until there has been one."""
        waiter = asyncio.Event()
        self._waiters.append((name, status, waiter))
        if any(self._is(event, name, status) for event in self._seen):
            waiter.set()
        await waiter.wait()

    def has_seen(self, name: str) -> bool:
        return any(event["event"] == name for event in self._seen)

    def kill(self) -> None:
        self._killed = time.time()
        self.machine.kill()

    @property
    def killed(self) -> bool:
        return self._killed is not None

    @property
    def dead(self) -> bool:
        return self.killed or self.machine.exit_status is not None

    def runs(self) -> list[tuple[float, float]]:
        """From when to when; by what its QEMU has told, in its own time."""
        end = self._killed if self._killed is not None else float("inf")
        if not self.killed and self.dead:
            end = max([_time(event) for event in self._seen], default=0.0)
        found, began = [], self._began
        for event in self._seen:
            if event["event"] == "RESUME" and began is None:
                began = _time(event)
            elif event["event"] == "STOP" and began is not None:
                found.append((began, _time(event)))
                began = None
        if began is not None:
            found.append((began, max(began, end)))
        return [(start, stop) for start, stop in found if start < end]

    def close(self) -> None:
        self._reading.cancel()

    async def said(self) -> Said:
        if self.killed:
            return Said("killed", "")
        if not self.dead:
            with contextlib.suppress(NotSeen):
                info = await self.machine.migration()
                state = await self.machine.execute("query-status")
                return Said(info.get("status", "none"), state["status"],
                            info.get("error-desc", ""))
        await self.machine.heard()
        return Said(f"exited with {self.machine.exit_status}", "")

    async def is_running(self) -> bool:
        if self.dead:
            return False
        with contextlib.suppress(NotSeen):
            return await self.machine.is_running()
        return False


def _time(event: Json) -> float:
    stamp = event["timestamp"]
    return float(stamp["seconds"] + stamp["microseconds"] / 1e6)


class Wire:
    """Carries each connection, until it resets them all."""

    def __init__(self, there: Address, here: Address):
        self._there, self._here = there, here
        self._writers: list[asyncio.StreamWriter] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self._server: Optional[asyncio.Server] = None
        self.address: Address = {}

    async def __aenter__(self) -> Wire:
        if self._here["type"] == "unix":
            self._server = await asyncio.start_unix_server(self._accept, self._here["path"])
            self.address = self._here
        else:
            self._server = await asyncio.start_server(self._accept, LOOPBACK, 0)
            self.address = inet(self._server.sockets[0].getsockname()[1])
        return self

    async def __aexit__(self, *_: object) -> None:
        self.reset()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def reset(self) -> None:
        assert self._server
        self._server.close()
        for writer in self._writers:
            sock = writer.get_extra_info("socket")
            if sock is not None:
                with contextlib.suppress(OSError):
                    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            writer.transport.abort()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._tasks.add(asyncio.current_task())  # type: ignore[arg-type]
        self._writers.append(writer)
        with contextlib.suppress(OSError):
            if self._there["type"] == "unix":
                far = await asyncio.open_unix_connection(self._there["path"])
            else:
                far = await asyncio.open_connection(LOOPBACK, int(self._there["port"]))
            self._writers.append(far[1])
            await asyncio.gather(self._carry(reader, far[1]), self._carry(far[0], writer))

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(1 << 16):
                writer.write(data)
                await writer.drain()
        with contextlib.suppress(OSError):
            writer.write_eof()


class Pair:
    """A source whose guest runs, and a destination."""

    def __init__(self, lab: Lab, case: Case, directory: Path):
        self._lab = lab
        self.case = case
        self._directory = directory
        self.source: Side
        self.destination: Side
        self.late = False       # a cancel came too late, and was told so
        self._stack = contextlib.AsyncExitStack()
        self._tasks: list[asyncio.Task[None]] = []
        self._wire: Optional[Wire] = None
        self._address: Address = {}

    async def __aenter__(self) -> Pair:
        case = self.case
        paused = ["-S"] if case.paused else []
        source, destination = await asyncio.gather(
            self._lab.start("source", under=UNDER),
            self._lab.start("destination", "-incoming", "defer", *paused, under=UNDER))
        names = ("STOP", "RESUME", "MIGRATION")
        self.source = Side(source, self._stack.enter_context(source.events(*names)), True)
        self.destination = Side(destination, self._stack.enter_context(
            destination.events(*names)), False)
        await set_capabilities(source, "events")
        if case.transport == "tls":
            await asyncio.gather(set_psk(source, "client", self._directory),
                                 set_psk(destination, "server", self._directory))
        if case.mode == "postcopy":
            await set_capabilities(source, "postcopy-ram")
            # Or precopy may end before postcopy has begun.
            await source.execute("migrate-set-parameters", {"downtime-limit": 1})
        if case.slow:
            await source.execute("migrate-set-parameters", {"max-bandwidth": SLOW})
        self._address = await self._listen(destination)
        if case.ending == "reset":
            here = unix(self._directory / "wire") if case.transport == "unix" else inet(0)
            self._wire = await self._stack.enter_async_context(Wire(self._address, here))
            self._address = self._wire.address
        return self

    async def __aexit__(self, *_: object) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self.source.close()
        self.destination.close()
        await self._stack.aclose()

    async def _listen(self, destination: Machine) -> Address:
        address = (unix(self._directory / "destination") if self.case.transport == "unix"
                   else inet(0))
        await destination.execute("migrate-incoming", {
            "exit-on-error": self.case.exits, **channels("handshake", address)})
        if self.case.transport == "unix":
            return address
        return inet(int((await destination.migration())["socket-address"][0]["port"]))

    async def migrate(self) -> None:
        """Begin, and do then what management does."""
        capabilities = ["multifd"] if self.case.mode == "multifd" else []
        await self.source.machine.execute("migrate", {
            **channels("handshake", self._address),
            "handshake": {"optional-capabilities": capabilities}})
        if self.case.mode == "postcopy":
            self._tasks.append(asyncio.create_task(self._start_postcopy()))
        if self.case.paused:
            self._tasks.append(asyncio.create_task(self._manage()))

    async def _start_postcopy(self) -> None:
        await self.source.event("MIGRATION", "active")
        with contextlib.suppress(NotSeen):
            await self.source.machine.execute("migrate-start-postcopy")

    async def _manage(self) -> None:
        """With -S: `cont` there when the *source* has completed, and not before."""
        await self.source.event("MIGRATION", "completed")
        with contextlib.suppress(NotSeen):
            await self.destination.machine.execute("cont")

    async def end(self) -> None:
        """At its moment, and in its way."""
        if self.case.moment != MOMENTS[0]:
            await asyncio.wait_for(self.source.event("STOP"), STUCK)
        await asyncio.sleep(self.case.delay)
        source, destination = self.source, self.destination
        ways = {"cancel": self._cancel,
                "yank source": lambda: self._yank(source.machine),
                "yank destination": lambda: self._yank(destination.machine),
                "reset": self._reset,
                "kill source": lambda: self._kill(source),
                "kill destination": lambda: self._kill(destination)}
        await ways[self.case.ending]()

    async def _cancel(self) -> None:
        try:
            await self.source.machine.execute("migrate_cancel")
        except NotSeen as error:
            self.late = TOO_LATE in str(error)
            if not self.late and "ostcopy" not in str(error):
                raise

    @staticmethod
    async def _yank(machine: Machine) -> None:
        # Where nothing is left to yank, or nobody.
        with contextlib.suppress(NotSeen):
            await machine.execute("yank", {"instances": [{"type": "migration"}]})

    async def _reset(self) -> None:
        assert self._wire
        self._wire.reset()

    @staticmethod
    async def _kill(side: Side) -> None:
        side.kill()

    async def settle(self) -> None:
        """Wait until neither side will do anything more by itself."""
        if self.source.killed:
            await self.source.machine.heard()
        else:
            await until("the source to end", STUCK, self._source_over, every=0.005)
        if self.destination.killed:
            await self.destination.machine.heard()
        else:
            await until("the destination to settle", STUCK, self._destination_over, every=0.005)
        if self.case.paused and not self.source.killed and not self.destination.dead:
            if (await self.source.said()).status == "completed":
                await until("`cont` to work", STUCK, self.destination.is_running, every=0.005)

    async def _source_over(self) -> bool:
        said = await self.source.said()
        if said.status not in OVER or said.runstate == "finish-migrate":
            return said.status == "postcopy-paused"
        return True

    async def _destination_over(self) -> bool:
        if self.destination.dead:
            await self.destination.machine.heard()
            return True
        try:
            info = await self.destination.machine.migration()
        except NotSeen:
            return False        # on its way out
        if info.get("status") == "setup":
            return bool(info.get("handshake", {}).get("status") not in ("in-progress", "accepted"))
        return bool(info.get("status") in OVER)


class Outcome(NamedTuple):
    """Who runs the guest, what both say, and what is wrong with that."""

    case: Case
    who: str
    source: Said
    destination: Said
    late: bool
    faults: list[str]

    def __str__(self) -> str:
        return (f"{self.case}: runs on {self.who}; source {self.source} {self.source.error!r}; "
                f"destination {self.destination} {self.destination.error!r}")


def overlaps(source: Side, destination: Side) -> bool:
    return any(max(a, c) < min(b, d)
               for (a, b), (c, d) in itertools.product(source.runs(), destination.runs()))


async def judge(pair: Pair) -> Outcome:
    source, destination = pair.source, pair.destination
    here, there = await source.is_running(), await destination.is_running()
    said, said_there = await source.said(), await destination.said()
    who = {(True, False): "source", (False, True): "destination", (True, True): "both",
           (False, False): "nobody"}[here, there]
    faults = []
    if here and there:
        faults.append("the guest runs on both sides")
    elif overlaps(source, destination):
        faults.append(f"the guest has run on both sides: source {source.runs()}, "
                      f"destination {destination.runs()}")
    in_doubt = (said.status == "failed" and said.runstate == "postmigrate"
                and GIVEN in said.error)
    if source.killed:
        pass                    # a guest may die with its QEMU
    elif said.status == "completed":
        # In postcopy one thread says SHUT, and another one starts the guest.
        lost = destination.dead and (pair.case.paused or pair.case.mode == "postcopy")
        if not there and not destination.has_seen("RESUME") and not lost:
            faults.append("the source has completed, and the guest never ran there")
    elif said.status == "postcopy-paused" or in_doubt:
        # It may run there, or nowhere, and the source says which is not known.
        if in_doubt and not here and not there:
            faults += await continue_here(pair)
    elif not here:
        faults.append("the guest runs nowhere, and the source does not say why")
    if said.status == "cancelled" and not here:
        faults.append("it is cancelled, and does not run on")
    if pair.late and said.status == "cancelled":
        faults.append("the cancel came too late, and has cancelled")
    return Outcome(pair.case, who, said, said_there, pair.late, faults)


async def continue_here(pair: Pair) -> list[str]:
    """As the source's error says, where the guest does not run there, and never will."""
    if not pair.destination.dead and (await pair.destination.said()).status != "failed":
        return ["in doubt, and the destination is neither dead nor has it failed"]
    await pair.source.machine.execute("cont")
    if not await pair.source.is_running():
        return ["`cont` on the source does not help"]
    return []


@contextlib.contextmanager
def directory() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="endings-") as name:
        yield Path(name)


@contextlib.asynccontextmanager
async def pair_for(case: Case) -> AsyncIterator[Pair]:
    with directory() as path:
        async with pc_lab() as lab, Pair(lab, case, path) as pair:
            yield pair


async def play(case: Case) -> Outcome:
    async with pair_for(case) as pair:
        await pair.migrate()
        await pair.end()
        await pair.settle()
        return await judge(pair)


async def play_all(some: list[Case], beside: int) -> list[Outcome]:
    """So many at a time."""
    todo = iter(some)
    outcomes: list[Outcome] = []

    async def work() -> None:
        for case in todo:
            try:
                outcomes.append(await asyncio.wait_for(play(case), 4 * STUCK))
            except (NotSeen, TimeoutError) as error:
                outcomes.append(Outcome(case, "?", Said("?", ""), Said("?", ""), False,
                                        [f"{error or 'hangs'}"]))

    await asyncio.gather(*(work() for _ in range(beside)))
    return sorted(outcomes, key=lambda outcome: outcome.case.number)


def table(outcomes: list[Outcome]) -> list[tuple[str, str, str, str, int]]:
    """Kind of end, who runs the guest, what both say, how often."""
    counts: dict[tuple[str, str, str, str], int] = {}
    for one in outcomes:
        ending = one.case.ending + (" (too late)" if one.late else "")
        key = (ending, one.who, str(one.source), str(one.destination))
        counts[key] = counts.get(key, 0) + 1
    places = {ending: place for place, ending in enumerate(ENDINGS)}
    return sorted(((*key, count) for key, count in counts.items()),
                  key=lambda row: (places[row[0].removesuffix(" (too late)")], row[0], row[1],
                                   -row[4], row))
