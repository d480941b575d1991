# SPDX-License-Identifier: GPL-2.0-or-later
"""Migrations of the demo, and what QEMU tells of them."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, Optional

from machine import LOOPBACK, Json, Machine, NotSeen, until

PROMISED_MS = 5
PROMISED_BYTES = 16 * 1024
MOVE_LIMIT = 300.0
CHECK_LIMIT = 30.0


def channels(kind: str, port: int, host: str = LOOPBACK) -> Json:
    address = {"transport": "socket", "type": "inet", "host": host, "port": str(port)}
    return {"channels": [{"channel-type": kind, "addr": address}]}


async def listen(destination: Machine, kind: str, host: str = LOOPBACK) -> int:
    """Lets it wait for a migration; returns the port."""
    await destination.execute("migrate-incoming", channels(kind, 0, host))
    return int((await destination.migration())["socket-address"][0]["port"])


class Answer(NamedTuple):
    """How a migration ended, on the source."""

    status: str
    error: str
    seconds: float
    info: Json


async def migrate(source: Machine, kind: str, port: int,
                  watch: Callable[[float, Json], None] = lambda *_: None) -> Answer:
    start = time.monotonic()

    async def ended() -> Optional[Answer]:
        info = await source.migration()
        seconds = time.monotonic() - start
        watch(seconds, info)
        if info["status"] not in ("completed", "failed", "cancelled"):
            return None
        return Answer(info["status"], info.get("error-desc", ""), seconds, info)

    await source.execute("migrate", channels(kind, port))
    return await until(f"{source.name} to end its migration", MOVE_LIMIT, ended, every=0.001)


def require_completed(answer: Answer) -> None:
    if answer.status != "completed":
        raise NotSeen(f"the migration {answer.status}: {answer.error}")


def listed(names: list[str]) -> str:
    return ", ".join(names) or "none"


def peer_version(said: Json) -> str:
    peer = said["peer"]
    return f"QEMU {peer['qemu-version']} {peer.get('package', '')}".strip()


FACTS: dict[str, Callable[[Json], str]] = {
    "role": lambda said: said["role"],
    "verdict": lambda said: said["status"],
    "protocol version": lambda said: str(said["protocol-version"]),
    "features": lambda said: listed(said.get("features", [])),
    "the other one": peer_version,
    "... its machine": lambda said: "{machine}, {arch}".format(**said["peer"]),
    "session": lambda said: said["session"],
    "capabilities": lambda said: listed(said.get("capabilities", [])),
    "declined": lambda said: listed([f"{one['capability']} ({one['reason']})"
                                     for one in said.get("declined", [])]),
    "issues": lambda said: listed([f"{one['code']} ({one['severity']})"
                                   for one in said.get("issues", [])]),
    "sent, received": lambda said: f"{said['bytes-sent']:,} and {said['bytes-received']:,} bytes",
    "took": lambda said: f"{said['duration'] / 1000:.2f} ms",
}


class Handshake(NamedTuple):
    """What query-migrate tells of it on either side."""

    source: Json
    destination: Json

    @property
    def is_agreed(self) -> bool:
        same = ("session", "protocol-version", "features", "capabilities")
        return (self.source["status"] == self.destination["status"] == "accepted"
                and (self.source["role"], self.destination["role"]) == ("source", "destination")
                and all(self.source.get(fact) == self.destination.get(fact) for fact in same))

    @property
    def size(self) -> int:
        return self.source["bytes-sent"] + self.source["bytes-received"]

    @property
    def is_small(self) -> bool:
        return self.size < PROMISED_BYTES

    @property
    def duration(self) -> int:
        """In microseconds, on the side where it took longer."""
        return max(side["duration"] for side in self)

    @property
    def is_quick(self) -> bool:
        return self.duration < PROMISED_MS * 1000


async def handshake_of(source: Machine, destination: Machine) -> Handshake:
    return Handshake(await source.handshake(), await destination.handshake())


async def check(source: Machine, destination: Machine, port: int) -> Handshake:
    """A handshake that no migration follows."""
    async def over() -> bool:
        return (await source.handshake())["status"] != "in-progress"

    await source.execute("migrate", {**channels("handshake", port),
                                     "handshake": {"check-only": True}})
    await until(f"the check of {source.name} to end", CHECK_LIMIT, over, every=0.001)
    return await handshake_of(source, destination)


@dataclass
class Refusal:
    """What became of a migration to a wrong machine type."""

    answer: Answer
    talk: list[tuple[str, int]]
    types: tuple[str, str]
    rounds: tuple[int, int]
    guest_runs: bool
    listening: bool
    destination_exit: Optional[int]
    destination_stderr: str
    handshake: Optional[Json]

    @property
    def stream_bytes(self) -> int:
        sent = sum(size for speaker, size in self.talk if speaker == "source")
        return sent - (self.handshake["bytes-sent"] if self.handshake else 0)

    @property
    def was_one_round_trip(self) -> bool:
        return [speaker for speaker, _ in self.talk] == ["source", "destination"]

    @property
    def told_issues(self) -> str:
        """The first one whole, and how many of each kind follow from it."""
        if not self.issues:
            return "-"
        first, others = self.issues[0], Counter(one["code"] for one in self.issues[1:])
        told = "{code}: source {source}, destination {destination}".format(**first)
        more = ", ".join(f"{count} {code}" for code, count in others.items())
        return f"{told}; and {more}" if more else told

    @property
    def issues(self) -> list[Json]:
        return self.handshake.get("issues", []) if self.handshake else []

    @property
    def is_told(self) -> bool:
        """The source knows what is wrong, and sent nothing of the guest."""
        told = [(one["code"], one.get("source"), one.get("destination")) for one in self.issues]
        return (self.answer.status == "failed"
                and self.was_one_round_trip and self.stream_bytes == 0
                and ("machine-type", *self.types) in told
                and all(name in self.answer.error for name in self.types))

    def describe(self) -> dict[str, str]:
        gone = self.destination_exit is not None
        return {
            "source": self.answer.status,
            "error-desc": self.answer.error,
            "issues": self.told_issues,
            "answer after": f"{self.answer.seconds * 1000:.0f} ms",
            "on the wire": ", then ".join(f"{speaker} {size:,} bytes"
                                          for speaker, size in self.talk),
            "... of the guest": f"{self.stream_bytes:,} bytes",
            "destination": f"exited with status {self.destination_exit}" if gone else
                           "lives and listens" if self.listening else "lives, but does not listen",
            "... its stderr": self.destination_stderr or "nothing",
            "guest": "{}, round {} to {}".format(
                "runs on at the source" if self.guest_runs else "stopped", *self.rounds),
        }
