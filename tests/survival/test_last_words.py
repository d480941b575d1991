# SPDX-License-Identifier: GPL-2.0-or-later
"""What one side says last reaches the other."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import NamedTuple

import pytest
from machine import Json, Machine
from processes import (PROMPT, Options, begin, end, inet, pc_lab, require_good_migration,
                       require_listening, require_refused, set_capabilities, small_lab,
                       start_destination, start_source, wait_running)
from relay import Line, Relay
from wire import (ABORT, ACCEPT, HELLO, PATIENCE, REJECT, SESSION, FakeDestination, Peer, frame,
                  header, hello, message_of, prefix)

UNKNOWN = 0x7777


@pytest.mark.parametrize("said, verdict", [
    ({"versions": [1], "purpose": "dance", "required": []}, REJECT),
    (b"{", REJECT),
    (hello(purpose="check"), ACCEPT),
], ids=["reject", "malformed", "check"])
async def test_verdict_before_unread_data(said: bytes | Json, verdict: int) -> None:
    """Whoever closes with unread data resets the connection, and may take back the verdict."""
    async with small_lab() as lab:
        destination, port = await start_destination(lab)
        peer = await Peer.connect(port)
        # One that may be skipped may come before the verdict, which does not wait for it.
        await peer.send(header() + frame(HELLO, said)
                        + prefix(UNKNOWN, 16 << 10, 0) + bytes(16 << 10))
        peer.finish()
        assert message_of(await peer.read_to_end(PATIENCE), verdict) is not None
        peer.close()
        await require_listening(destination)


WARNING = {"code": "section-extra", "severity": "warning", "subject": "x",
           "message": "only the destination has 'x'"}


@pytest.mark.parametrize("answer, options, words", [
    ({"capabilities": []}, {}, "without return-path"),
    ({"capabilities": ["return-path", "x-colo"]}, {}, "not offered"),
    # A destination that does not know the option accepts.
    ({"capabilities": ["return-path"], "issues": [WARNING]}, {"warnings-as-errors": True},
     "only the destination has 'x'"),
], ids=["less", "more", "warning"])
async def test_source_says_why_it_does_not_agree(answer: Json, options: Options,
                                                 words: str) -> None:
    async with pc_lab() as lab:
        source = await start_source(lab)
        destination, port = await start_destination(lab)
        async with FakeDestination() as fake:
            await begin(source, inet(fake.port), options)
            peer = await fake.next()
            await peer.read_hello()
            await peer.send(header(session=SESSION) + frame(ACCEPT, {"version": 1, **answer}))
            _, message = await peer.read_frame(ABORT)
            assert words in message["message"]
            assert await peer.ended(PATIENCE)
            await require_refused(source, words)
        await require_good_migration(source, destination, port)


# What may happen on a destination between ACCEPT and COMMIT


async def exclude_handshakes(destination: Machine) -> None:
    await set_capabilities(destination, "mapped-ram")


async def allow_handshakes(destination: Machine) -> None:
    await set_capabilities(destination, "mapped-ram", state=False)


async def unplug(destination: Machine) -> None:
    await destination.execute("device_del", {"id": "tablet"})


async def plug(destination: Machine) -> None:
    await destination.execute("device_add", {"driver": "usb-tablet", "id": "tablet", "port": "1"})


async def plug_what_cannot_migrate(destination: Machine) -> None:
    await destination.execute("device_add", {"driver": "usb-wacom-tablet", "id": "wacom"})


async def unplug_it(destination: Machine) -> None:
    await destination.execute("device_del", {"id": "wacom"})


class Change(NamedTuple):
    """What happens, how it is undone, and what is told of it."""

    happen: Callable[[Machine], Awaitable[None]]
    undo: Callable[[Machine], Awaitable[None]]
    code: str
    word: str


CHANGES = {
    "setting": Change(exclude_handshakes, allow_handshakes, "capability-conflict", "mapped-ram"),
    "removed": Change(unplug, plug, "section-missing", "usb-ptr"),
    "added": Change(plug_what_cannot_migrate, unplug_it, "unmigratable", "wacom"),
}


@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
async def test_destination_that_has_changed(change: Change, tls: bool) -> None:
    """It says so when COMMIT comes, in words that the source's user can read there."""
    held, go_on = asyncio.Event(), asyncio.Event()

    async def treat(line: Line) -> None:
        if line.number == 1:
            held.set()
            await go_on.wait()
        await line.carry_both()

    usb = ["-device", "qemu-xhci", "-device", "usb-tablet,id=tablet,port=1"]
    async with pc_lab() as lab:
        source = await start_source(lab, tls=tls, options=usb)
        destination, port = await start_destination(lab, tls=tls, options=usb)
        async with Relay(port, treat) as relay:
            await begin(source, inet(relay.port))
            await asyncio.wait_for(held.wait(), PATIENCE)
            assert (await destination.handshake())["status"] == "in-progress"
            await change.happen(destination)
            go_on.set()
            info = await end(source)
        told = await destination.handshake()
        assert (info["status"], info["handshake"]["status"]) == ("failed", "accepted")
        assert told["status"] == "failed" and change.word in told["message"]
        assert info["error-desc"] == f"{told['message']} (the destination could not load the guest)"
        for side in (info["handshake"], told):
            assert change.code in {issue["code"] for issue in side["issues"]}
        await wait_running(source)
        await require_listening(destination, PROMPT)
        await change.undo(destination)
        await require_good_migration(source, destination, port)
