# SPDX-License-Identifier: GPL-2.0-or-later
"""Section "Channels after a pause": a QEMU that waits for its migration to go on."""

from __future__ import annotations

import asyncio
import random
import uuid

import pytest
from machine import LOOPBACK, Lab, Machine
from processes import (begin, filled_memory, inet, pc_lab, require_success, set_capabilities, start_destination,
                       start_source, wait_status)
from qmhs.frames import NO_SESSION, Header
from qmhs.negotiation import RESUME_HEADER
from qmhs.roles import Paused
from wire import PATIENCE, Peer

SLOW = 4 << 10      # bytes a second
QUICK = 1 << 23
COUNT = 60
SESSION = bytes(range(1, 17))
OTHER = bytes(range(2, 18))


def test_model() -> None:
    """Main, then preempt, each of them once, and anew when main is broken."""
    main, preempt = Header(SESSION), Header(SESSION, "preempt")
    paused = Paused(SESSION, preempt=True)
    assert paused.take(preempt) is None
    for _ in range(2):
        assert paused.is_paused
        assert paused.take(Header(OTHER, "preempt")) == Header(NO_SESSION, "preempt").encode()
        assert paused.take(Header()) == Header().encode()
        assert paused.take(Header(SESSION, "main", 1)) is None
        assert paused.take(main) == main.encode()
        assert not paused.is_paused
        assert paused.take(main) is None
        assert paused.take(preempt) == preempt.encode()
        assert paused.take(preempt) is None
        assert paused.take(Header(OTHER)) == Header().encode()
        paused.broken()
    without = Paused(SESSION)
    assert without.take(main) == main.encode()
    assert without.take(preempt) is None


async def pause(lab: Lab) -> tuple[Machine, Machine, bytes]:
    """A migration that was interrupted, and its session."""
    with filled_memory() as memory:
        source = await start_source(lab, options=memory)
    destination, port = await start_destination(lab)
    await set_capabilities(source, "postcopy-ram", "postcopy-preempt")
    await source.execute("migrate-set-parameters", {"max-bandwidth": SLOW,
                                                    "max-postcopy-bandwidth": SLOW})
    await begin(source, inet(port))
    await wait_status(source, "active")
    await source.execute("migrate-start-postcopy")
    # Without a limit, what is sent in one turn could be all that there is.
    await source.execute("migrate-set-parameters", {"max-bandwidth": QUICK})
    for one in (source, destination):
        await wait_status(one, "postcopy-active")
    await source.execute("migrate-pause")
    for one in (source, destination):
        await wait_status(one, "postcopy-paused")
    shown = await destination.handshake()
    assert RESUME_HEADER in shown["features"]
    return source, destination, uuid.UUID(shown["session"]).bytes


async def listen_again(destination: Machine) -> int:
    await destination.execute("migrate-recover", {"uri": f"tcp:{LOOPBACK}:0"}, oob=True)
    return int((await destination.migration())["socket-address"][0]["port"])


def roll(dice: random.Random, session: bytes) -> Header:
    return Header(dice.choice([session] * 5 + [NO_SESSION, OTHER, session[:-1] + b"\0"]),
                  dice.choice(["main"] * 3 + ["preempt"] * 2 + ["multifd", "Main", "mai"]),
                  dice.choice([0] * 6 + [1, 0xffffffff]),
                  bytes(dice.choice([0] * 4 + [1, 4032])), dice.choice([0, 7]))


@pytest.mark.parametrize("seed", range(3))
async def test_headers(seed: int) -> None:
    """It answers and refuses what the second implementation does."""
    dice = random.Random(seed)
    async with pc_lab() as lab:
        source, destination, session = await pause(lab)
        port = await listen_again(destination)
        model = Paused(session, preempt=True)
        taken: list[Peer] = []

        async def break_off() -> None:
            for peer in taken:
                peer.close()
            taken.clear()
            await wait_status(destination, "postcopy-paused")
            model.broken()

        for _ in range(COUNT):
            if taken and not dice.randrange(4):
                await break_off()
            header = roll(dice, session)
            answer = model.take(header)
            peer = await Peer.connect(port)
            await peer.send(header.encode())
            if answer is None:
                assert await peer.read_to_end(PATIENCE) == b"", header
            else:
                assert await asyncio.wait_for(peer.read(64), PATIENCE) == answer, header
            if answer and header.session == session:
                taken.append(peer)
                await wait_status(destination, "postcopy-recover")
                continue
            if answer:
                peer.finish()
                assert await peer.read_to_end(PATIENCE) == b""
            peer.close()
            shown = (await destination.migration())["status"]
            assert (shown == "postcopy-paused") == model.is_paused
        if taken:
            await break_off()
        await source.execute("migrate", {"uri": f"tcp:{LOOPBACK}:{port}", "resume": True})
        await source.execute("migrate-set-parameters", {"max-postcopy-bandwidth": 0})
        await require_success(source, destination)
