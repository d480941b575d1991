# SPDX-License-Identifier: GPL-2.0-or-later
"""Sources and destinations, migrations between them, and how they are doing."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import signal
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from pathlib import Path
from typing import Optional

import pytest
from conftest import BASES, QEMU, TOP
from machine import LOOPBACK, Json, Lab, Machine, NotSeen, until

Address = Json
Options = Json

ENDED = ("completed", "failed", "cancelled")
PATIENCE = 20.0         # for what should be quick, on a machine that is not
# What the monitor, a cancellation and a yank may take where others work, too. Those who say
# nothing are waited for longer, by any side: 2 seconds, or more.
PROMPT = 1.8
MIB = 1 << 20

TIMEOUT = 30.0          # of a destination
EARLY = 1.0             # clocks that are not the same
LATE = 10.0             # a busy machine

OWN_BASE = QEMU.resolve().parent.name
# For what the bases do each in a way of its own.
each_base = pytest.mark.parametrize("base", list(dict.fromkeys([OWN_BASE, *BASES])))

NO_MULTIFD: Options = {"optional-capabilities": []}
STRICTLY: Options = {"warnings-as-errors": True}
# Machines with these differ in something that is worth a warning.
UUIDS = [("-uuid", f"{number}0000000-0000-4000-8000-000000000000") for number in (1, 2)]

# Nobody is left when a test is killed.
UNDER = ("setpriv", "--pdeathsig", "KILL")
TLS_CREDS = "creds"


def small_lab() -> Lab:
    """Machines with next to nothing in them, so that an attempt takes 10 ms."""
    return _lab("-machine", "none")


def pc_lab(machine: str = "pc", base: Optional[str] = None) -> Lab:
    """Machines with devices and memory, without an operating system; maybe of another base."""
    return _lab("-machine", machine, "-m", "16", base=base)


def _lab(*machine: str, base: Optional[str] = None) -> Lab:
    qemu = QEMU
    if base not in (None, OWN_BASE):
        qemu = TOP / "build" / base / QEMU.name
        if not qemu.exists():
            pytest.skip(f"QEMU {base} has not been built")
    return Lab([str(qemu), "-nodefaults", "-display", "none", *machine], "qtest")


async def set_tls(machine: Machine, endpoint: str) -> None:
    # From 11.0 on a server has no group of its own for DH, and OpenSSL offers none.
    await machine.execute("object-add", {"qom-type": "tls-creds-anon", "id": TLS_CREDS,
                                         "endpoint": endpoint, "priority": "NORMAL:+ANON-ECDH"})
    await machine.execute("migrate-set-parameters", {"tls-creds": TLS_CREDS})


async def set_psk(machine: Machine, endpoint: str, directory: Path) -> None:
    """TLS that knows who it is; QEMU 10.2.2 crashes as a client with tls-creds-anon."""
    (directory / "keys.psk").write_text("qemu:6d6967726174696f6e\n")
    await machine.execute("object-add", {"qom-type": "tls-creds-psk", "id": TLS_CREDS,
                                         "endpoint": endpoint, "dir": str(directory)})
    await machine.execute("migrate-set-parameters", {"tls-creds": TLS_CREDS})


async def start_source(lab: Lab, name: str = "source", tls: bool = False,
                       options: Sequence[str] = ()) -> Machine:
    source = await lab.start(name, *options, under=UNDER)
    if tls:
        await set_tls(source, "client")
    return source


async def start_destination(lab: Lab, name: str = "destination", tls: bool = False,
                            kind: str = "handshake",
                            options: Sequence[str] = (),
                            under: Sequence[str] = UNDER) -> tuple[Machine, int]:
    """Returns the port that it listens on as well."""
    destination = await lab.start(name, "-incoming", "defer", *options, under=under)
    if tls:
        await set_tls(destination, "server")
    return destination, await listen(destination, kind)


@contextlib.contextmanager
def filled_memory() -> Iterator[list[str]]:
    """Options for a pc_lab's source: memory in which there is something to be sent."""
    with tempfile.NamedTemporaryFile() as contents:
        contents.write(random.Random(0).randbytes(12 * MIB))
        contents.flush()
        yield ["-device", f"loader,file={contents.name},addr={2 * MIB:#x},force-raw=on"]


async def set_capabilities(machine: Machine, *names: str, state: bool = True) -> None:
    await machine.execute("migrate-set-capabilities", {
        "capabilities": [{"capability": name, "state": state} for name in names]})


async def set_channels(source: Machine, count: int) -> None:
    await source.execute("migrate-set-parameters", {"multifd-channels": count})


async def listen(destination: Machine, kind: str = "handshake") -> int:
    await destination.execute("migrate-incoming", channels(kind, inet(0)))
    return int((await destination.migration())["socket-address"][0]["port"])


def inet(port: int) -> Address:
    return {"transport": "socket", "type": "inet", "host": LOOPBACK, "port": str(port)}


def unix(path: Path) -> Address:
    return {"transport": "socket", "type": "unix", "path": str(path)}


def channels(kind: str, address: Address) -> Json:
    return {"channels": [{"channel-type": kind, "addr": address}]}


async def begin(source: Machine, address: Address, options: Optional[Options] = None,
                kind: str = "handshake", patience: float = PROMPT) -> None:
    arguments = channels(kind, address)
    if options is not None:
        arguments["handshake"] = options
    deadline = time.monotonic() + patience
    while True:
        try:
            return await source.execute("migrate", arguments)
        except NotSeen as error:
            # For some milliseconds after a failure; a documented limit.
            if "is not over yet" not in str(error) or time.monotonic() > deadline:
                raise
        await asyncio.sleep(0.001)


async def begin_check(source: Machine, address: Address,
                      options: Optional[Options] = None) -> None:
    await begin(source, address, {**(options or {}), "check-only": True}, patience=0)


async def verdict(source: Machine, limit: float = PATIENCE) -> Json:
    """What query-migrate tells of a handshake, once that is over."""
    async def known() -> Optional[Json]:
        info = await source.handshake()
        return None if info["status"] == "in-progress" else info

    return await until(f"{source.name} to end its handshake", limit, known, every=0.001)


async def check(source: Machine, address: Address, options: Optional[Options] = None) -> Json:
    """From the beginning to the end."""
    await begin_check(source, address, options)
    return await verdict(source)


def differences(info: Json) -> list[Json]:
    """The issues, without what is only worth knowing."""
    return [issue for issue in info["issues"] if issue["severity"] != "info"]


async def end(source: Machine, limit: float = PATIENCE) -> Json:
    """What query-migrate tells once it is over."""
    async def over() -> Optional[Json]:
        info = await source.migration()
        return info if info.get("status") in ENDED else None

    return await until(f"{source.name} to end its migration", limit, over, every=0.001)


async def wait_status(source: Machine, status: str, limit: float = PATIENCE) -> Json:
    async def seen() -> Optional[Json]:
        info = await source.migration()
        assert info.get("status") == status or info.get("status") not in ENDED, info
        return info if info.get("status") == status else None

    return await until(f"{source.name}: {status}", limit, seen, every=0.001)


async def migrate(source: Machine, port: int, options: Optional[Options] = None) -> Json:
    await begin(source, inet(port), options)
    return await end(source)


async def wait_running(machine: Machine, limit: float = PATIENCE) -> None:
    async def running() -> bool:
        return await machine.is_running()

    await until(f"{machine.name} to run", limit, running, every=0.001)


async def wait_cleaned_up(source: Machine) -> None:
    """It says `completed` a moment before its guest's state, and what was in use, are settled."""
    async def settled() -> bool:
        return ((await source.execute("query-status"))["status"] == "postmigrate"
                and all(one["type"] != "migration"
                        for one in await source.execute("query-yank")))

    await until(f"{source.name} to clean up", PATIENCE, settled, every=0.001)


async def require_success(source: Machine, destination: Machine) -> None:
    """Waits for the end of a migration that has to succeed."""
    info = await end(source)
    assert info["status"] == "completed", info.get("error-desc", info)
    await wait_running(destination)
    assert not await source.is_running()


async def require_good_migration(source: Machine, destination: Machine, port: int,
                                 options: Optional[Options] = None) -> None:
    await begin(source, inet(port), options)
    await require_success(source, destination)


async def require_refused(source: Machine, *words: str, limit: float = PATIENCE) -> Json:
    """Waits for a failure that the guest has not noticed, and is explained."""
    info = await end(source, limit)
    assert info["status"] == "failed", info
    for word in words or ("",):
        assert word in info["error-desc"], info["error-desc"]
    assert info["error-desc"].strip()
    if info.get("handshake", {}).get("status") == "accepted":
        # The stream had begun; a guest that was stopped to move runs again soon.
        await wait_running(source)
    else:
        assert await source.is_running()
    return info


async def require_listening(destination: Machine, limit: float = PROMPT) -> None:
    """It waits for somebody to come, and nobody holds the session."""
    async def free() -> Optional[Json]:
        info = await destination.migration()
        last = info.get("handshake", {})
        busy = (last.get("status") in ("in-progress", "accepted")
                and not last.get("check-only"))
        return None if busy else info

    info = await until(f"{destination.name} to be free again", limit, free, every=0.002)
    assert info["status"] == "setup" and info["socket-address"], info
    assert (await destination.execute("query-status"))["status"] == "inmigrate"


async def require_timeout(what: str, wait: Callable[[float], Awaitable[bool]],
                          start: float) -> None:
    """A destination's patience, which began after `start`, has to end, and not too early."""
    assert await wait(TIMEOUT + LATE), what
    assert time.monotonic() - start > TIMEOUT - EARLY, f"{what}: too early"


async def stop_process(machine: Machine) -> None:
    """Returns when SIGSTOP has reached it: each thread may still run on another CPU."""
    async def stands_still() -> bool:
        return all(thread.read_text().rpartition(")")[2].split()[0] == "T"
                   for thread in Path(f"/proc/{machine.pid}/task").glob("*/stat"))

    os.kill(machine.pid, signal.SIGSTOP)
    await until(f"{machine.name} to stand still", PATIENCE, stands_still, every=0.001)


def main_thread_time(machine: Machine) -> float:
    """What its main loop has had of a CPU so far, in seconds."""
    return int(Path(f"/proc/{machine.pid}/schedstat").read_text().split()[0]) / 1e9


def fds(machine: Machine) -> int:
    return sum(1 for _ in Path(f"/proc/{machine.pid}/fd").iterdir())


async def settings(machine: Machine) -> Json:
    """All that a migration, or a handshake, might have changed for itself."""
    return {query: await machine.execute(query)
            for query in ("query-migrate-capabilities", "query-migrate-parameters")}


def bytes_of(machine: Machine, kind: str) -> int:
    """Its memory, of one of the kinds that proc(5) has."""
    for line in Path(f"/proc/{machine.pid}/status").read_text().splitlines():
        if line.startswith(f"{kind}:"):
            return int(line.split()[1]) << 10
    raise NotSeen(f"{machine.name}: no {kind}")


def peak_memory(machine: Machine) -> int:
    """The most that it has had in memory so far, in bytes."""
    return bytes_of(machine, "VmHWM")


def locked_memory(machine: Machine) -> int:
    return bytes_of(machine, "VmLck")


def unlocked_memory(machine: Machine) -> int:
    """Of one that has locked all that it has, and all that it will have."""
    return bytes_of(machine, "VmSize") - locked_memory(machine)


class Watch:
    """Asks the monitor all the while; it has to answer, and to stay small."""

    def __init__(self, machine: Machine, growth: int = 64 * MIB, more_fds: Optional[int] = None):
        self._machine = machine
        self._growth = growth
        self._more_fds = more_fds
        self._memory = 0
        self._fds = 0
        self._leaving = False
        self.slowest = 0.0
        self.most_fds = 0
        self.questions = 0

    async def __aenter__(self) -> Watch:
        self._memory = peak_memory(self._machine)
        self._fds = fds(self._machine)
        self._task = asyncio.create_task(self._ask())
        return self

    async def __aexit__(self, kind: Optional[type], *_: object) -> None:
        self._leaving = True        # with two more answers, so that none is lost
        if kind is not None:
            self._task.cancel()
        result = (await asyncio.gather(self._task, return_exceptions=True))[0]
        if kind is None:
            if result:
                raise result
            self.check()

    def check(self) -> None:
        print(f"{self._machine.name}: {self.questions} questions, the slowest {self.slowest:.3f} s;"
              f" {self.grown / MIB:.0f} MiB more; {self._fds} to {self.most_fds} descriptors")
        assert self.slowest < PROMPT
        assert self.grown < self._growth
        if self._more_fds is not None:
            assert self.most_fds <= self._fds + self._more_fds

    @property
    def grown(self) -> int:
        return peak_memory(self._machine) - self._memory

    async def _ask(self) -> None:
        left = 2
        while left:
            left -= self._leaving
            start = time.monotonic()
            await self._machine.execute("query-status")
            self.slowest = max(self.slowest, time.monotonic() - start)
            self.most_fds = max(self.most_fds, fds(self._machine))
            self.questions += 1
            await asyncio.sleep(0.01)
