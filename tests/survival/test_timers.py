# SPDX-License-Identifier: GPL-2.0-or-later
"""A destination gets rid of who says nothing more: by its timers, if it has to.

Since that takes half a minute, all cases wait at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable

from machine import Lab, Machine
from processes import (EARLY, LATE, NO_MULTIFD, PATIENCE, TIMEOUT, Watch, begin, end, inet, migrate,
                       pc_lab, require_good_migration, require_listening, require_timeout,
                       start_destination, start_source, wait_running)
from relay import Line, Relay
from strangers import join, join_tls, say, tls_hello
from wire import COMMIT, HELLO, Peer, frame, header, hello, prefix


async def keep_sending(peer: Peer, data: bytes, pause: float) -> None:
    with contextlib.suppress(ConnectionError):
        await peer.send_slowly(data, pause)


async def silent_strangers() -> None:
    """Whatever they have said before they fell silent, or however slowly they speak."""
    said = {
        "nothing": b"",
        "half a header": header()[:32],
        "a header": header(),
        "half of a prefix": header() + prefix(HELLO, 100)[:4],
        "half of HELLO": header() + frame(HELLO, hello())[:-10],
        "a long HELLO, without its end": header() + prefix(HELLO, 1 << 19) + b" " * 1000,
        "frames of unknown types": header() + 16 * prefix(0x1a1a, 0, 0),
        "a part of another channel's header": header("multifd")[:40],
    }
    async with pc_lab() as lab:
        source = await start_source(lab)
        destination, port = await start_destination(lab)
        async with Watch(destination), contextlib.AsyncExitStack() as stack:
            start = time.monotonic()
            peers = {}
            for what, words in said.items():
                peers[what] = await Peer.connect(port)
                stack.callback(peers[what].close)
                await peers[what].send(words)
            slow = await Peer.connect(port)
            stack.callback(slow.close)
            speaking = asyncio.create_task(keep_sending(slow, header() + header(), 0.5))
            peers["one byte every half second"] = slow
            await asyncio.gather(*(require_timeout(what, peer.ended, start)
                                   for what, peer in peers.items()))
            speaking.cancel()
        await require_good_migration(source, destination, port)


async def silent_strangers_with_tls() -> None:
    """Before TLS, within it, and after it."""
    async with pc_lab() as lab:
        source = await start_source(lab, tls=True)
        destination, port = await start_destination(lab, tls=True)
        async with Watch(destination), contextlib.AsyncExitStack() as stack:
            start = time.monotonic()
            peers = {
                "nothing": await join(port, stack),
                "half of a TLS hello": await say(port, stack, tls_hello()[:100]),
                "a TLS hello, and no more": await say(port, stack, tls_hello()),
                "a header without TLS": await say(port, stack, header()[:4]),
                "nothing after TLS": await join_tls(port, stack),
                "a header after TLS": await join_tls(port, stack),
            }
            await peers["a header after TLS"].send(header())
            await asyncio.gather(*(require_timeout(what, peer.ended, start)
                                   for what, peer in peers.items()))
        await require_good_migration(source, destination, port)


# A source that has got the session, and is heard of no more

# Each returns a time when its own, which is waited for, had not begun.

async def no_commit(peer: Peer, _: int, __: contextlib.AsyncExitStack) -> float:
    start = time.monotonic()
    await peer.hold_session()
    return start


async def half_a_commit(peer: Peer, _: int, __: contextlib.AsyncExitStack) -> float:
    start = time.monotonic()
    await peer.hold_session()
    await peer.send(prefix(COMMIT, 100) + b'{"digest"')
    return start


async def no_channels(peer: Peer, _: int, __: contextlib.AsyncExitStack) -> float:
    start = time.monotonic()
    await peer.hold_session(multifd=2)
    return start


async def a_late_channel(peer: Peer, port: int, stack: contextlib.AsyncExitStack) -> float:
    """With each channel, the time begins anew; those that have no place do not count."""
    session = await peer.hold_session(multifd=2)
    await asyncio.sleep(TIMEOUT / 3)
    start = time.monotonic()
    channel = await say(port, stack, header("multifd", 1, session))
    assert (await channel.read_header()).number == 1
    return start


async def channels_without_a_place(peer: Peer, port: int,
                                   stack: contextlib.AsyncExitStack) -> float:
    async def go_on(session: bytes) -> None:
        with contextlib.suppress(ConnectionError):      # until nobody listens any more
            while True:
                await say(port, stack, header("multifd", 2, session))
                await asyncio.sleep(TIMEOUT / 10)

    start = time.monotonic()
    session = await peer.hold_session(multifd=2)
    going_on = asyncio.create_task(go_on(session))
    stack.callback(going_on.cancel)
    return start


GONE = [no_commit, half_a_commit, no_channels, a_late_channel, channels_without_a_place]


async def is_free_in(destination: Machine, limit: float) -> bool:
    await require_listening(destination, limit)
    return True


async def outlive(lab: Lab, number: int,
                  leave: Callable[[Peer, int, contextlib.AsyncExitStack],
                                  Awaitable[float]]) -> None:
    """The second source is told `busy` all the while; then its migration succeeds."""
    source = await start_source(lab, f"source {number}")
    destination, port = await start_destination(lab, f"destination {number}")
    async with contextlib.AsyncExitStack() as stack:
        first = await join(port, stack)
        async with Watch(destination):
            start = await leave(first, port, stack)
            busy = await migrate(source, port)
            assert busy["status"] == "failed"
            assert "another migration" in busy["error-desc"]
            await require_timeout(leave.__name__,
                                  lambda limit: is_free_in(destination, limit), start)
            assert await first.ended(PATIENCE)
            await require_good_migration(source, destination, port)


async def outlive_a_qemu(lab: Lab, number: int, held: int) -> None:
    """A real source dies behind something that does not tell; `held` channels never arrive."""
    async def treat(line: Line) -> None:
        if line.number >= 1 + held:
            await asyncio.Event().wait()
        await line.reach()
        # Only what the source says gets through, and never its end.
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.gather(line.pass_on("source"), line.pass_on("destination"))

    first = await start_source(lab, f"first source {number}")
    source = await start_source(lab, f"source {number}")
    destination, port = await start_destination(lab, f"destination {number}")
    async with Relay(port, treat) as relay:
        start = time.monotonic()
        await begin(first, inet(relay.port))
        while not (await destination.migration()).get("handshake"):
            await asyncio.sleep(0.01)
        first.kill()
        busy = await migrate(source, port)
        assert "another migration" in busy["error-desc"]
        await require_timeout(f"a source with {held} channels",
                              lambda limit: is_free_in(destination, limit), start)
        await require_good_migration(source, destination, port)


async def dead_sources() -> None:
    """No end of stream tells that they are gone."""
    async with pc_lab() as lab:
        await asyncio.gather(*(outlive(lab, number, leave) for number, leave in enumerate(GONE)),
                             *(outlive_a_qemu(lab, len(GONE) + held, held) for held in (0, 1)))


# What comes too late

BEFORE_HELLO = 1500     # what a source says for TLS is less, and HELLO more


async def late(tls: bool, multifd: bool) -> None:
    """The verdict, by more than a destination waits for its answer: which says so."""
    async def treat(line: Line) -> None:
        await line.reach()
        if line.number:
            return await line.carry_both()
        async with asyncio.TaskGroup() as group:
            group.create_task(line.carry("source"))
            while await line.hear("destination"):
                # What it says before HELLO is TLS.
                if len(line.said["source"]) < BEFORE_HELLO:
                    await line.tell("destination", len(line.said["destination"]))
            await line.carry("destination")

    async with pc_lab() as lab:
        source = await start_source(lab, tls=tls)
        destination, port = await start_destination(lab, tls=tls)
        async with Relay(port, treat) as relay:
            start = time.monotonic()
            await begin(source, inet(relay.port), None if multifd else NO_MULTIFD)
            info = await end(source, TIMEOUT + LATE)
            assert time.monotonic() - start > TIMEOUT - EARLY
        words = f"no COMMIT came within {TIMEOUT:.0f} seconds"
        assert info["status"] == "failed" and info["error-desc"].startswith(words), info
        assert (await destination.handshake())["message"] == words
        await wait_running(source)
        await require_good_migration(source, destination, port)


async def late_verdicts() -> None:
    await asyncio.gather(*(late(tls, multifd) for tls in (False, True)
                           for multifd in (False, True)))


async def late_hello() -> None:
    """The source's side of it: it does not know, and says what may be."""
    async def treat(line: Line) -> None:
        await line.reach()
        async with asyncio.TaskGroup() as group:
            group.create_task(line.carry("destination"))
            while await line.hear("source"):
                pass

    async with pc_lab() as lab:
        source = await start_source(lab)
        destination, port = await start_destination(lab)
        async with Relay(port, treat) as relay:
            await begin(source, inet(relay.port))
            info = await end(source, TIMEOUT + LATE)
        assert "ended without an answer" in info["error-desc"], info
        assert "it has waited too long" in info["error-desc"]
        await require_good_migration(source, destination, port)


async def test_timers() -> None:
    """All who wait for half a minute."""
    async with asyncio.TaskGroup() as group:
        for wait in (silent_strangers, silent_strangers_with_tls, dead_sources, late_verdicts,
                     late_hello):
            group.create_task(wait())
