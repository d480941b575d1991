# SPDX-License-Identifier: GPL-2.0-or-later
"""Compares this build with an earlier one, side by side.

Each of the two has its own source and destination, since builds that differ in
the handshake's wire format need not understand each other.  They take turns.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import NamedTuple, Optional

from links import Loopback
from machine import Json, Lab, Machine, NotSeen, until
from measure import Mode, Shuttle
from migrations import channels, listen

NOW, BEFORE = "now", "before"

CHECKS_PER_RUN = 20
ENDS_PER_RUN = 5
CHECK_LIMIT = 10.0
# A machine that is well equipped; the names of its devices are most of a HELLO.
DEVICES = tuple(word for number, kind in enumerate(
    5 * ("virtio-rng-pci",) + ("virtio-scsi-pci", "virtio-serial-pci", "virtio-balloon-pci",
                               "virtio-net-pci", "virtio-keyboard-pci"))
    for word in ("-device", f"{kind},id=device-{number}"))
EQUIPPED = ("-S", "-machine", "q35", *DEVICES)

Take = Callable[[], Awaitable[Json]]


class Pair(NamedTuple):
    """A source that checks over and over whether it could migrate."""

    source: Machine
    port: int

    @classmethod
    async def start(cls, lab: Lab) -> Pair:
        source = await lab.start("source", *EQUIPPED)
        destination = await lab.start("destination", *EQUIPPED, "-incoming", "defer")
        return cls(source, await listen(destination, "handshake"))

    async def check(self) -> Json:
        arguments = channels("handshake", self.port)
        arguments["handshake"] = {"check-only": True, "optional-capabilities": []}
        await self.source.execute("migrate", arguments)

        async def over() -> Optional[Json]:
            told = await self.source.handshake()
            return None if told["status"] == "in-progress" else told

        told = await until("a check to end", CHECK_LIMIT, over, every=0.001)
        if told["status"] != "accepted":
            raise NotSeen(f"{self.source.name}: a check that is {told['status']}")
        return {"duration": told["duration"] / 1000, "hello-bytes": told["bytes-sent"]}


async def tiny_shuttle(lab: Lab) -> Shuttle:
    home = await lab.start("home-0", "-machine", "q35")
    await home.execute("stop")
    return Shuttle(lab, Loopback(), home, "-machine", "q35")


def moves(shuttles: dict[str, Shuttle], mode: Mode) -> dict[str, Take]:
    """Of two guests of which one runs at a time, or they would be in each other's way."""
    def take(shuttle: Shuttle) -> Take:
        async def move() -> Json:
            await shuttle.homes[-1].execute("cont")
            sample = await shuttle.move(mode)
            await shuttle.homes[-1].execute("stop")
            return sample
        return move

    return {build: take(shuttle) for build, shuttle in shuttles.items()}


async def checks(labs: dict[str, Lab]) -> dict[str, Take]:
    """Handshakes without further channels, between machines that stay."""
    return {build: (await Pair.start(lab)).check for build, lab in labs.items()}
