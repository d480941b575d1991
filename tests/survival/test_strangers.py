# SPDX-License-Identifier: GPL-2.0-or-later
"""Who else may connect to a destination that listens, and what that costs it."""

from __future__ import annotations

import asyncio
import contextlib
import socket

import pytest
import strangers
from machine import LOOPBACK, until
from processes import (NO_MULTIFD, PATIENCE, Watch, begin, inet, pc_lab, require_good_migration,
                       require_listening, require_refused, require_success,
                       set_channels, start_destination, start_source)
from relay import Line, Relay
from strangers import (CONNECTIONS_MAX, CROWD, FEW, IDLE, MEMORY, Attack, join,
                       require_only_the_last, say, under)
from wire import HEADER_SIZE, HELLO, frame, header, hello

MULTIFD_CHANNELS = 8
SLOW_CHANNELS = 32      # as many as a source opens at once

ATTACKS: list[Attack] = [
    strangers.connect_and_close, strangers.garbage, strangers.http, strangers.tls,
    strangers.legacy_stream, strangers.header_and_silence, strangers.channel_of_nobody,
    strangers.too_long, strangers.nested_json, strangers.large_hellos, strangers.idle,
    strangers.one_byte_at_a_time]
by_name = pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.__name__)


@by_name
@pytest.mark.parametrize("multifd", [False, True], ids=["alone", "multifd"])
async def test_strangers_disturb_nobody(attack: Attack, multifd: bool) -> None:
    """The monitor answers, and a good migration comes through."""
    async with pc_lab() as lab:
        source = await start_source(lab)
        destination, port = await start_destination(lab)
        await set_channels(source, MULTIFD_CHANNELS)
        async with Watch(destination, MEMORY, CONNECTIONS_MAX + 2 * MULTIFD_CHANNELS):
            async with under(attack, port):
                await require_good_migration(source, destination, port,
                                             None if multifd else NO_MULTIFD)


@by_name
async def test_strangers_do_not_disturb_a_session(attack: Attack) -> None:
    """They come while it waits for channels, which take their time, one after the other."""
    may_go_on = asyncio.Semaphore(0)

    async def treat(line: Line) -> None:
        if line.number:
            await may_go_on.acquire()
        await line.carry_both()

    async def let_one_go_on() -> None:
        # A source that sees none of them go on gives up after 5 seconds.
        for _ in range(SLOW_CHANNELS - 1):
            may_go_on.release()
            await asyncio.sleep(1)

    async with pc_lab() as lab:
        source = await start_source(lab)
        destination, port = await start_destination(lab)
        await set_channels(source, SLOW_CHANNELS)
        async with Watch(destination, MEMORY, CONNECTIONS_MAX + 2 * SLOW_CHANNELS):
            async with Relay(port, treat) as relay:
                await begin(source, inet(relay.port))

                async def waits() -> bool:
                    info = await destination.migration()
                    return (len(relay.lines) == 1 + SLOW_CHANNELS
                            and info.get("handshake", {}).get("status") == "in-progress")

                await until("the session", 10, waits)
                going_on = asyncio.create_task(let_one_go_on())
                async with under(attack, port):
                    assert (await source.handshake())["status"] == "in-progress"
                    going_on.cancel()
                    for _ in range(SLOW_CHANNELS):
                        may_go_on.release()
                    await require_success(source, destination)
        for machine in (source, destination):
            assert "multifd" in (await machine.handshake())["capabilities"]


async def test_64_connections_at_most() -> None:
    """The oldest go; those that are left, and their descriptors, are counted."""
    async with pc_lab() as lab:
        destination, port = await start_destination(lab)
        # The one that comes and the one that goes meet for a moment.
        async with (Watch(destination, MEMORY, CONNECTIONS_MAX + 1),
                    contextlib.AsyncExitStack() as stack):
            peers = [await join(port, stack) for _ in range(IDLE)]
            await require_only_the_last(peers)
        await require_listening(destination)


async def test_who_was_refused_makes_room() -> None:
    """64 that read nothing of their REJECT keep nobody out."""
    async with pc_lab() as lab:
        source = await start_source(lab)
        destination, port = await start_destination(lab)
        async with Watch(destination, MEMORY), contextlib.AsyncExitStack() as stack:
            for _ in range(CROWD):
                await say(port, stack, header() + frame(HELLO, b"{}"))
            await require_good_migration(source, destination, port)


async def test_who_was_refused_goes_first() -> None:
    """They have had their answer, and somebody who has not said all yet has not."""
    async with pc_lab() as lab:
        destination, port = await start_destination(lab)
        async with Watch(destination, MEMORY), contextlib.AsyncExitStack() as stack:
            for _ in range(CROWD):
                await say(port, stack, header() + frame(HELLO, hello() | {"versions": [2]}))
            slow = await say(port, stack, header()[:32])
            await join(port, stack)
            assert not await slow.ended(0.1)


class Deaf:
    """Somebody who asks for a long answer, and reads nothing of it, but that it comes."""

    # Names as long as they may be, of which each makes an issue with a text
    _SECTIONS = [{"name": f"{number}".ljust(255, "x"), "version": 1} for number in range(300)]
    QUESTION = header() + frame(HELLO, hello() | {"profile": {"sections": _SECTIONS}})

    def __init__(self) -> None:
        self._sock = socket.socket()
        self._sock.setblocking(False)
        # With more, or in large segments, the answer would go into buffers of kernels.
        self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
        self._sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG, 536)

    async def ask(self, port: int) -> bool:
        """Returns whether there is an answer."""
        loop = asyncio.get_running_loop()
        await loop.sock_connect(self._sock, (LOOPBACK, port))
        with contextlib.suppress(ConnectionError):
            await loop.sock_sendall(self._sock, self.QUESTION)
            return bool(await asyncio.wait_for(loop.sock_recv(self._sock, 1), PATIENCE))
        return False

    def close(self) -> None:
        self._sock.close()


async def test_deaf_connections_make_room() -> None:
    """They have their verdict, and the one goes that had the most time to take it."""
    async with pc_lab() as lab, contextlib.AsyncExitStack() as stack:
        source = await start_source(lab)
        destination, port = await start_destination(lab)
        async with Watch(destination, MEMORY, CONNECTIONS_MAX + 1):
            for _ in range(CONNECTIONS_MAX + FEW):
                one = Deaf()
                stack.callback(one.close)
                assert await one.ask(port)
            # With multifd, a session would be given room for its channels besides.
            await require_good_migration(source, destination, port, NO_MULTIFD)


async def test_who_speaks_slowly_learns_why_it_goes() -> None:
    """A source whose HELLO is still on its way when others take all the room."""
    held = asyncio.Event()

    async def treat(line: Line) -> None:
        await line.reach()
        async with asyncio.TaskGroup() as group:
            group.create_task(line.carry("destination"))
            while await line.hear("source"):
                await line.tell("source", HEADER_SIZE + 1)
                if line.passed["source"] > HEADER_SIZE:
                    held.set()

    async with pc_lab() as lab, contextlib.AsyncExitStack() as stack:
        source = await start_source(lab)
        destination, port = await start_destination(lab)
        async with Watch(destination, MEMORY, CONNECTIONS_MAX + 2):
            async with Relay(port, treat) as relay:
                await begin(source, inet(relay.port), NO_MULTIFD)
                await asyncio.wait_for(held.wait(), PATIENCE)
                await asyncio.sleep(0.1)
                for _ in range(CONNECTIONS_MAX):
                    await join(port, stack)
                await require_refused(source, "the destination refused the migration: "
                                              "too many connections")
            await stack.aclose()
            await require_good_migration(source, destination, port)
