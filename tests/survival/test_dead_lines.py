# SPDX-License-Identifier: GPL-2.0-or-later
"""A connection that carries nothing any more, and says nothing of it."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import itertools
import os
import signal
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any, Optional

import pytest
from machine import Machine, until
from processes import (NO_MULTIFD, PATIENCE, PROMPT, Watch, begin, channels, each_base, end, inet,
                       pc_lab, require_success, set_capabilities, set_channels, start_destination,
                       start_source, wait_running, wait_status)
from relay import Line, Relay, Treatment
from test_own_faults import KINDS, MULTIFD_CHANNELS, start_pair
from wire import HEADER_SIZE

OPENED = HEADER_SIZE    # or as many bytes that say which channel it is
IDLE, INTERVAL, COUNT = 30, 10, 6       # of TCP's keep-alive, in a session
GIVES_UP = 30.0                         # after the end of the source: 5 to 10, and a busy machine
SILENCE = 100.0                         # if nobody says that it has ended
AWAY = 33.0                             # a network, for a while

Ending = Callable[[Machine, Machine], Awaitable[None]]


# One connection of multifd carries nothing


async def let_open(line: Line) -> None:
    """Nothing of what comes then."""
    while line.passed["source"] < OPENED and await line.hear("source"):
        await line.tell("source", OPENED)


class BlackHole:
    """Lets a channel of multifd be opened, and nothing through that comes then."""

    def __init__(self) -> None:
        self.lines: list[Line] = []
        self.dead = False               # the way is for all, and says no end

    async def treat(self, line: Line) -> None:
        self.lines.append(line)
        await line.reach()
        if line.number == 1:
            async with asyncio.TaskGroup() as group:
                group.create_task(line.pass_on("destination"))
                await let_open(line)
                await line.drain("source")
        else:
            async with asyncio.TaskGroup() as group:
                for speaker in line.said:
                    group.create_task(self._carry(line, speaker))

    async def _carry(self, line: Line, speaker: str) -> None:
        await line.pass_on(speaker)
        if not self.dead:
            line.shut(speaker)


async def kill_source(source: Machine, _: Machine) -> None:
    source.kill()


async def cancel(source: Machine, _: Machine) -> None:
    await source.execute("migrate_cancel")
    info = await end(source, PROMPT)
    assert info["status"] == "cancelled"
    await wait_running(source)


async def yank(_: Machine, destination: Machine) -> None:
    await destination.execute("yank", {"instances": [{"type": "migration"}]})
    assert (await end(destination, PROMPT))["status"] == "failed"


async def terminate(_: Machine, destination: Machine) -> None:
    os.kill(destination.pid, signal.SIGTERM)
    await asyncio.wait_for(destination.gone(), 2 * PROMPT)


async def start_and_lose_one(source: Machine, relay: Relay, kind: str) -> None:
    """Up to where the source has said all, and the destination waits for the lost part."""
    await begin(source, inet(relay.port), kind=kind)
    await wait_status(source, "device")


@each_base
@pytest.mark.parametrize("kind, ending", [("main", kill_source), ("handshake", cancel),
                                          *itertools.product(KINDS, (yank, terminate))])
async def test_multifd_connection_is_dead(base: str, kind: str, ending: Ending) -> None:
    """The destination's monitor answers all the while, and it ends if somebody ends it."""
    async with pc_lab(base=base) as lab:
        source, destination, port = await start_pair(lab, kind, "multifd")
        hole = BlackHole()
        async with Relay(port, hole.treat) as relay:
            async with Watch(destination) as watch:
                await start_and_lose_one(source, relay, kind)
                asked = watch.questions

                async def more() -> bool:
                    return watch.questions > asked + 20

                await until("answers", PATIENCE, more)
                await wait_status(destination, "active")
            if ending in (kill_source, cancel):
                async with Watch(destination):
                    await ending(source, destination)
                    info = await end(destination, GIVES_UP)
                    assert info["status"] == "failed"
                    # Its end may not be seen behind what is not read yet, but elsewhere.
                    assert "the source went away" in info["error-desc"], info
                assert not await destination.is_running()
            else:
                await ending(source, destination)


@contextlib.asynccontextmanager
async def one_lost(treatment: Treatment) -> AsyncIterator[tuple[Machine, Machine]]:
    """Source and destination of a session that waits for what has got lost."""
    async with pc_lab() as lab:
        source, destination, port = await start_pair(lab, "handshake", "multifd")
        async with Relay(port, treatment) as relay:
            await start_and_lose_one(source, relay, "handshake")
            yield source, destination


async def test_way_is_dead() -> None:
    """Nobody says that the source is gone: the loader does not wait for ever."""
    hole = BlackHole()
    async with one_lost(hole.treat) as (source, destination):
        hole.dead = True
        source.kill()
        began = time.monotonic()
        async with Watch(destination):
            info = await end(destination, SILENCE + GIVES_UP)
        assert info["status"] == "failed"
        assert f"nothing has come on it for {SILENCE:.0f} s" in info["error-desc"]
        assert time.monotonic() - began > SILENCE - 2 * PATIENCE
        assert not await destination.is_running()


class Away:
    """Lets nothing of a channel of multifd through for a while, once it has been opened."""

    def __init__(self) -> None:
        self.back = asyncio.Event()

    async def treat(self, line: Line) -> None:
        if line.number != 1:
            return await line.carry_both()
        await line.reach()
        async with asyncio.TaskGroup() as group:
            group.create_task(line.carry("destination"))
            await let_open(line)
            await self.back.wait()
            await line.carry("source")


async def test_way_is_away_for_a_while() -> None:
    """TCP goes on when it is back, and so does the loader, which has waited."""
    away = Away()
    async with one_lost(away.treat) as (source, destination), Watch(destination):
        await asyncio.sleep(AWAY)
        assert (await destination.migration())["status"] == "active"
        away.back.set()
        await require_success(source, destination)


# Keep-alive


def tcp_sockets(machine: Machine) -> list[socket.socket]:
    """What this process is connected to, to be looked at from here."""
    libc = ctypes.CDLL(None, use_errno=True)
    found = []
    process = os.pidfd_open(machine.pid)
    try:
        for link in Path(f"/proc/{machine.pid}/fd").iterdir():
            if not os.readlink(link).startswith("socket:"):
                continue
            fd = libc.syscall(438, process, int(link.name), 0)      # pidfd_getfd()
            if fd < 0:
                raise OSError(ctypes.get_errno(), "pidfd_getfd")
            one = socket.socket(fileno=fd)
            try:
                one.getpeername()
                if one.family != socket.AF_INET:
                    raise OSError
                found.append(one)
            except OSError:
                one.close()
    finally:
        os.close(process)
    return found


def keep_alive(one: socket.socket) -> Optional[tuple[int, int, int]]:
    """Idle time, interval and count, or None if it is off."""
    if not one.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE):
        return None
    idle, interval, count = (one.getsockopt(socket.IPPROTO_TCP, option) for option in (
        socket.TCP_KEEPIDLE, socket.TCP_KEEPINTVL, socket.TCP_KEEPCNT))
    return idle, interval, count


def kept_alive(machine: Machine) -> list[Optional[tuple[int, int, int]]]:
    sockets = tcp_sockets(machine)
    try:
        for one in sockets:
            assert not one.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT)
        return [keep_alive(one) for one in sockets]
    finally:
        for one in sockets:
            one.close()


def system_keep_alive() -> tuple[int, ...]:
    return tuple(int(Path(f"/proc/sys/net/ipv4/tcp_keepalive_{name}").read_text())
                 for name in ("time", "intvl", "probes"))


OURS = (IDLE, INTERVAL, COUNT)


@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
@pytest.mark.parametrize("capability, count", [("multifd", 1 + MULTIFD_CHANNELS),
                                               ("postcopy-preempt", 2)])
async def test_keep_alive(capability: str, count: int, tls: bool) -> None:
    """On every channel of a session, on both sides."""
    async with pc_lab() as lab:
        source = await start_source(lab, tls=tls)
        destination, port = await start_destination(lab, tls=tls)
        if capability == "multifd":
            await set_channels(source, MULTIFD_CHANNELS)
        else:
            await set_capabilities(source, "postcopy-ram", capability)
        await source.execute("migrate-set-parameters", {"max-bandwidth": 1 << 16})
        async with Relay(port) as relay:
            await begin(source, inet(relay.port),
                        None if capability == "multifd" else NO_MULTIFD)
            await wait_status(source, "active")
            assert kept_alive(source) == kept_alive(destination) == [OURS] * count
            await source.execute("migrate-set-parameters", {"max-bandwidth": 0})
            await require_success(source, destination)


@pytest.mark.parametrize("setting", [False, True])
async def test_keep_alive_of_the_address(setting: bool) -> None:
    """The user has said what it is to be."""
    def told(port: int) -> dict[str, Any]:
        return {**inet(port), "keep-alive": setting}

    async with pc_lab() as lab:
        source = await start_source(lab)
        await set_channels(source, MULTIFD_CHANNELS)
        destination = await lab.start("destination", "-incoming", "defer")
        await destination.execute("migrate-incoming", channels("handshake", told(0)))
        port = int((await destination.migration())["socket-address"][0]["port"])
        await source.execute("migrate-set-parameters", {"max-bandwidth": 1 << 16})
        await begin(source, told(port))
        await wait_status(source, "active")
        assert set(kept_alive(source)) <= ({None} if not setting else {system_keep_alive()})
        # A listener of QEMU 10.0 does not pass it on.
        assert set(kept_alive(destination)) <= ({None} if not setting
                                                else {system_keep_alive(), OURS})
        await source.execute("migrate-set-parameters", {"max-bandwidth": 0})
        await require_success(source, destination)


@pytest.mark.parametrize("seconds", [20, 120])
async def test_destination_that_does_not_read(seconds: int, tmp_path: Path) -> None:
    """It is alive, so the source waits, whatever it cannot get rid of meanwhile."""
    (tmp_path / "ram").write_bytes(os.urandom(24 << 20))
    much = ["-m", "64"]
    async with pc_lab() as lab:
        source = await start_source(
            lab, options=[*much, "-device", f"loader,file={tmp_path}/ram,addr=0x1000000,"
                                            "force-raw=on"])
        await set_channels(source, MULTIFD_CHANNELS)
        destination, port = await start_destination(lab, options=much)
        await source.execute("migrate-set-parameters", {"max-bandwidth": 1 << 16})
        await begin(source, inet(port))
        await wait_status(source, "active")
        os.kill(destination.pid, signal.SIGSTOP)
        try:
            await source.execute("migrate-set-parameters", {"max-bandwidth": 0})
            await asyncio.sleep(seconds)
            info = await source.migration()
            assert info["status"] == "active" and info["ram"]["remaining"] > 0, info
        finally:
            os.kill(destination.pid, signal.SIGCONT)
        await require_success(source, destination)
