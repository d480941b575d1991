# SPDX-License-Identifier: GPL-2.0-or-later
"""What agreeing on the owner costs: from the guest's stop to completed.

    ends.py QEMU [QEMU-BEFORE] [--runs N] [--round-trip MS]

Of an idle guest with 16 MiB, on this machine, with and without -S on the destination: over
channel type main with return-path, over a handshake, and over one with an earlier QEMU. They
take turns. A relay delays what is said, half of the round trip in each direction. Unlike bench.py
this needs no root, and a busy machine will do: what counts is how the medians stand to each other.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import statistics
import time
from pathlib import Path
from typing import Any, NamedTuple, Optional

from machine import LOOPBACK, Lab, Machine, NotSeen
from migrations import channels, listen

LIMIT = 30.0
PIECE = 1 << 16


class Far:
    """A relay to a port, so far away."""

    def __init__(self, port: int, one_way: float):
        self._port = port
        self._one_way = one_way
        self._server: Optional[asyncio.Server] = None
        self._tasks: set[asyncio.Task[Any]] = set()

    async def __aenter__(self) -> int:
        self._server = await asyncio.start_server(self._accept, LOOPBACK, 0)
        return int(self._server.sockets[0].getsockname()[1])

    async def __aexit__(self, *_: object) -> None:
        assert self._server
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._tasks.add(asyncio.current_task())  # type: ignore[arg-type]
        far = await asyncio.open_connection(LOOPBACK, self._port)
        await asyncio.gather(self._carry(reader, far[1]), self._carry(far[0], writer))

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Each piece on its own way, in order."""
        ways: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue()

        async def arrive() -> None:
            data = b"x"
            while data:
                when, data = await ways.get()
                await asyncio.sleep(when - time.monotonic())
                with contextlib.suppress(ConnectionError):
                    writer.write(data)
            writer.close()

        arriving = asyncio.create_task(arrive())
        data = b"x"
        while data:
            try:
                data = await reader.read(PIECE)
            except ConnectionError:
                data = b""
            ways.put_nowait((time.monotonic() + self._one_way, data))
        await arriving


class Mode(NamedTuple):
    """One way to migrate."""

    name: str
    qemu: Path
    kind: str
    paused: bool


class Sample(NamedTuple):
    """In milliseconds."""

    end: float
    downtime: float
    total: float


async def prepare(source: Machine, destination: Machine, kind: str) -> None:
    names = ["events"] + (["return-path"] if kind == "main" else [])
    for machine in (source, destination):
        await machine.execute("migrate-set-capabilities", {
            "capabilities": [{"capability": name, "state": True} for name in names]})


async def take(mode: Mode, one_way: float) -> Sample:
    command = [str(mode.qemu), "-nodefaults", "-display", "none", "-machine", "pc", "-m", "16"]
    async with Lab(command, "qtest") as lab:
        source = await lab.start("source")
        destination = await lab.start("destination", "-incoming", "defer",
                                      *(["-S"] if mode.paused else []))
        await prepare(source, destination, mode.kind)
        async with Far(await listen(destination, mode.kind), one_way) as port:
            arguments = channels(mode.kind, port)
            if mode.kind == "handshake":
                arguments["handshake"] = {"optional-capabilities": []}
            with source.events("MIGRATION", "STOP") as events:
                await source.execute("migrate", arguments)
                times: dict[str, float] = {}
                while not times.keys() & {"completed", "failed"}:
                    event = await asyncio.wait_for(events.get(), LIMIT)
                    stamp = event["timestamp"]
                    times.setdefault(event.get("data", {}).get("status", "stop"),
                                     stamp["seconds"] + stamp["microseconds"] / 1e6)
            info = await source.migration()
            if info["status"] != "completed":
                raise NotSeen(f"{mode.name}: {info}")
    return Sample(1000 * (times["completed"] - times["stop"]), info["downtime"],
                  info["total-time"])


async def measure(modes: list[Mode], runs: int, one_way: float) -> dict[str, list[Sample]]:
    samples: dict[str, list[Sample]] = {mode.name: [] for mode in modes}
    for run in range(runs + 1):
        for mode in modes if run % 2 else modes[::-1]:
            sample = await take(mode, one_way)
            if run:                     # the first one warms up
                samples[mode.name].append(sample)
    return samples


def show(samples: dict[str, list[Sample]], runs: int, round_trip: float) -> None:
    print(f"{round_trip:g} ms round trip, medians of {runs} in ms, ± half of what the middle"
          " half spans")
    for name, of in samples.items():
        cells = []
        for values in zip(*of):
            quarters = statistics.quantiles(values, n=4)
            cells.append(f"{statistics.median(values):8.2f} ±{(quarters[2] - quarters[0]) / 2:6.2f}")
        print(f"{name:24}" + "  ".join(cells))


def main() -> None:
    parser = argparse.ArgumentParser(description="What agreeing on the owner costs.")
    parser.add_argument("qemu", type=Path)
    parser.add_argument("before", type=Path, nargs="?")
    parser.add_argument("--runs", type=int, default=15)
    parser.add_argument("--round-trip", type=float, default=0, metavar="MS")
    options = parser.parse_args()
    modes = []
    for paused in (False, True):
        mark = " -S" if paused else ""
        modes += [Mode(f"main{mark}", options.qemu, "main", paused),
                  Mode(f"handshake{mark}", options.qemu, "handshake", paused)]
        if options.before:
            modes.append(Mode(f"handshake before{mark}", options.before, "handshake", paused))
    show(asyncio.run(measure(modes, options.runs, options.round_trip / 2000)), options.runs,
         options.round_trip)


if __name__ == "__main__":
    main()
