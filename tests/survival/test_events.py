# SPDX-License-Identifier: GPL-2.0-or-later
"""What is told of a handshake: how often in events, and what stays in query-migrate."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from machine import Json, Machine, NotSeen, until
from processes import (PROMPT, STRICTLY, UUIDS, begin, check, end, inet, migrate, pc_lab,
                       require_good_migration, require_listening, set_capabilities, set_psk,
                       set_tls, start_destination, start_source, unix)
from qemu.qmp import EventListener
from wire import HELLO, FakeDestination, FullListener, Peer, frame, header, hello

BURST = 60              # events about strangers that were not refused
MANY = 100
A_FEW = 10


async def told(destination: Machine, listener: EventListener) -> list[str]:
    """The statuses of all events that have come."""
    await destination.execute("query-status")       # none could be behind that
    return [event["data"]["status"] for event in listener.clear()]


async def refuse(port: int) -> None:
    peer = await Peer.connect(port)
    message = hello()
    message["profile"] = {"machine": "none of yours"}
    await peer.ask(message)
    peer.close()


async def ask(port: int) -> None:
    peer = await Peer.connect(port)
    await peer.ask(hello(purpose="check"))
    peer.close()


async def claim(port: int) -> None:
    peer = await Peer.connect(port)
    await peer.hold_session()
    peer.finish()
    await peer.ended(PROMPT)
    peer.close()


async def claim_and_lie(port: int) -> None:
    peer = await Peer.connect(port)
    await peer.hold_session()
    await peer.send(bytes(200))
    await peer.ended(PROMPT)
    peer.close()


@pytest.mark.parametrize("attack, most", [(refuse, 1), (ask, BURST), (claim, BURST),
                                          (claim_and_lie, BURST)])
async def test_strangers_are_not_told_of_for_ever(attack: Any, most: int) -> None:
    """But who migrates is, and who is refused after others have asked."""
    async with pc_lab() as lab:
        source = await start_source(lab)
        destination, port = await start_destination(lab)
        await set_capabilities(destination, "events")
        with destination.events("MIGRATION_HANDSHAKE") as listener:
            started = asyncio.get_running_loop().time()
            for _ in range(MANY):
                await attack(port)
            await require_listening(destination)
            passed = asyncio.get_running_loop().time() - started
            statuses = await told(destination, listener)
            assert most <= len(statuses) <= most + passed + 1, statuses
            if attack is not refuse:
                await refuse(port)
                assert await told(destination, listener) == ["rejected"]
            await require_good_migration(source, destination, port)
            assert await told(destination, listener) == ["accepted"]


@pytest.mark.parametrize("known", [False, True], ids=["anonymous", "key"])
async def test_tls_shows_who_it_is_or_not(known: bool, tmp_path: Path) -> None:
    async with pc_lab() as lab:
        source = await start_source(lab, options=UUIDS[0])
        destination, port = await start_destination(lab, options=UUIDS[1])
        for machine, endpoint in ((source, "client"), (destination, "server")):
            if known:
                await set_psk(machine, endpoint, tmp_path)
            else:
                await set_tls(machine, endpoint)
        await set_capabilities(destination, "events")
        with destination.events("MIGRATION_HANDSHAKE") as listener:
            started = asyncio.get_running_loop().time()
            for _ in range(A_FEW):
                assert (await check(source, inet(port), STRICTLY))["status"] == "rejected"
            passed = asyncio.get_running_loop().time() - started
            count = len(await told(destination, listener))
        assert count == A_FEW if known else count <= 1 + passed < A_FEW


def require_nothing_agreed(info: Json) -> None:
    assert info["protocol-version"] == 1
    assert info["capabilities"] == []
    assert not info.get("parameters"), info


async def test_refused_is_not_agreed() -> None:
    async with pc_lab() as lab:
        source = await start_source(lab, options=UUIDS[0])
        destination, port = await start_destination(lab, options=UUIDS[1])
        options = {**STRICTLY, "optional-capabilities": ["multifd", "postcopy-ram"]}
        await migrate(source, port, options)
        infos = [await machine.handshake() for machine in (source, destination)]
        for info in infos:
            assert info["status"] == "rejected"
            require_nothing_agreed(info)
        assert infos[0]["session"] == infos[1]["session"]
        assert infos[0]["issues"] == infos[1]["issues"]


@pytest.mark.parametrize("leave, status", [(claim, "cancelled"), (claim_and_lie, "failed")])
async def test_given_up_is_not_agreed(leave: Any, status: str) -> None:
    async with pc_lab() as lab:
        destination, port = await start_destination(lab)
        await leave(port)

        async def known() -> bool:
            return bool((await destination.handshake())["status"] == status)

        await until(status, PROMPT, known, every=0.001)
        require_nothing_agreed(await destination.handshake())


# Each begins a migration that gets no conversation, and tells what became of it.
NoConversation = Callable[[Machine, Path], Awaitable[str]]


async def nobody_listens(source: Machine, directory: Path) -> str:
    await begin(source, unix(directory / "nobody"))
    return "failed"


async def no_such_fd(source: Machine, _: Path) -> str:
    with pytest.raises(NotSeen, match="has not been found"):
        await begin(source, {"transport": "socket", "type": "fd", "str": "none"})
    return "failed"


async def no_credentials(source: Machine, _: Path) -> str:
    await source.execute("migrate-set-parameters", {"tls-creds": "none"})
    async with FakeDestination() as fake:
        await begin(source, inet(fake.port))
        await end(source)
    return "failed"


async def require_in_progress(source: Machine) -> None:
    info = await source.handshake()
    assert (info["status"], info["check-only"]) == ("in-progress", False)
    require_blank(info)


async def cancelled_in_connect(source: Machine, directory: Path) -> str:
    async with FullListener.unix(directory / "full"):
        await begin(source, unix(directory / "full"))
        await require_in_progress(source)
        await source.execute("migrate_cancel")
    return "cancelled"


async def yanked_in_connect(source: Machine, directory: Path) -> str:
    async with FullListener.unix(directory / "full"):
        await begin(source, unix(directory / "full"))
        await require_in_progress(source)
        await source.execute("yank", {"instances": [{"type": "migration"}]})
    return "failed"


async def cancelled_in_tls(source: Machine, _: Path) -> str:
    await set_tls(source, "client")
    async with FakeDestination() as silent:
        await begin(source, inet(silent.port))
        await (await silent.next()).read(1)
        await require_in_progress(source)
        await source.execute("migrate_cancel")
        await end(source)
    return "cancelled"


async def nobody_answers_to_tls(source: Machine, _: Path) -> str:
    await set_tls(source, "client")
    async with FakeDestination() as silent:
        await begin(source, inet(silent.port), {"timeout": 1})
        await require_in_progress(source)
        await end(source)
    return "failed"


def require_blank(info: Json) -> None:
    """Nothing is left of a handshake that there was before."""
    assert not {"peer", "session", "protocol-version"} & set(info), info
    assert not info["issues"] and not info["capabilities"], info


@pytest.mark.parametrize("happen", [
    nobody_listens, no_such_fd, no_credentials, cancelled_in_connect, yanked_in_connect,
    cancelled_in_tls, nobody_answers_to_tls], ids=lambda one: one.__name__)
async def test_no_conversation(happen: NoConversation, tmp_path: Path) -> None:
    """It is told of like any other, and does not look like the one before."""
    async with pc_lab() as lab:
        source = await start_source(lab, options=UUIDS[0])
        destination, port = await start_destination(lab, options=UUIDS[1])
        before = await check(source, inet(port))
        assert before["status"] == "accepted" and before["issues"]
        await set_capabilities(source, "events")
        with source.events("MIGRATION_HANDSHAKE", "MIGRATION") as listener:
            status = await happen(source, tmp_path)
            migration = await end(source)
            await source.execute("query-status")        # no event could be behind that
            # QEMU 11 says that it is failing before it has failed.
            *others, event, last = (one for one in listener.clear()
                                    if one["data"]["status"] != "failing")
        # The migration's end is the last word, as after a conversation.
        assert event["event"] == "MIGRATION_HANDSHAKE"
        assert {other["event"] for other in (*others, last)} == {"MIGRATION"}
        assert last["data"] == {"status": status}
        info = migration["handshake"]
        assert migration["status"] == info["status"] == status
        assert info["role"] == "source" and not info["check-only"]
        require_blank(info)
        if status == "failed":
            assert info["message"] == migration["error-desc"]
        assert event["data"] == {"role": "source", "status": status, "check-only": False,
                                 "errors": 0, "warnings": 0, "message": info["message"]}
        await source.execute("migrate-set-parameters", {"tls-creds": ""})
        await require_good_migration(source, destination, port)


async def test_gone_without_an_answer() -> None:
    """It had a valid HELLO, so it is the last one."""
    async with pc_lab() as lab:
        source = await start_source(lab)
        destination, port = await start_destination(lab)
        assert (await check(source, inet(port)))["status"] == "accepted"
        peer = await Peer.connect(port)
        message = hello()
        message["profile"] = {"machine": "gone"}
        await peer.send(header() + frame(HELLO, message))
        peer.abort()

        async def seen() -> bool:
            return bool((await destination.handshake())["peer"].get("machine") == "gone")

        await until("the last handshake", PROMPT, seen, every=0.001)
        info = await destination.handshake()
        assert info["status"] in ("rejected", "cancelled")
        require_nothing_agreed(info)
        await begin(source, inet(port))
        assert (await end(source))["status"] == "completed"
