# SPDX-License-Identifier: GPL-2.0-or-later
"""What the user of the source is told about the mistakes that are easily made."""

from __future__ import annotations

import pytest
from machine import Machine
from processes import (begin, inet, pc_lab, require_good_migration, require_listening,
                       require_refused, start_destination, start_source)
from wire import FakeDestination, Peer

SECONDS = 10.0          # no side's patience is over by then
SLOW = 1 << 18          # bytes a second: it takes longer than an answer does


async def set_bandwidth(source: Machine, limit: int) -> None:
    await source.execute("migrate-set-parameters", {"max-bandwidth": limit})


async def test_tls_on_the_source_only() -> None:
    async with pc_lab() as lab:
        source = await start_source(lab, tls=True)
        destination, port = await start_destination(lab)
        await begin(source, inet(port))
        await require_refused(source, "tls-creds", limit=SECONDS)
        await require_listening(destination)
        await source.execute("migrate-set-parameters", {"tls-creds": ""})
        await require_good_migration(source, destination, port)


async def test_tls_on_the_destination_only() -> None:
    async with pc_lab() as lab:
        source = await start_source(lab)
        other = await start_source(lab, "other source", tls=True)
        destination, port = await start_destination(lab, tls=True)
        await begin(source, inet(port))
        await require_refused(source, "tls-creds", limit=SECONDS)
        await require_listening(destination)
        await require_good_migration(other, destination, port)


async def test_legacy_destination() -> None:
    async with pc_lab() as lab:
        source = await start_source(lab)
        _, port = await start_destination(lab, kind="main")
        await begin(source, inet(port))
        await require_refused(source, "handshake", limit=SECONDS)


@pytest.mark.parametrize("return_path", [False, True], ids=["one-way", "return-path"])
async def test_legacy_source(return_path: bool) -> None:
    async with pc_lab() as lab:
        source = await start_source(lab)
        destination, port = await start_destination(lab)
        await source.execute("migrate-set-capabilities", {
            "capabilities": [{"capability": "return-path", "state": return_path}]})
        # Without a return path, what fits into the buffers of the sockets is sent
        # before there can be an answer, and nobody can help that.
        await set_bandwidth(source, SLOW)
        await begin(source, inet(port), kind="main")
        await require_refused(source, "handshake", limit=SECONDS)
        await require_listening(destination)
        await set_bandwidth(source, 0)
        await require_good_migration(source, destination, port)


@pytest.mark.parametrize("return_path", [False, True], ids=["one-way", "return-path"])
async def test_legacy_source_with_multifd(return_path: bool) -> None:
    async with pc_lab() as lab:
        source = await start_source(lab)
        destination, port = await start_destination(lab)
        await source.execute("migrate-set-capabilities", {
            "capabilities": [{"capability": "return-path", "state": return_path},
                             {"capability": "multifd", "state": True}]})
        await set_bandwidth(source, SLOW)
        await begin(source, inet(port), kind="main")
        await require_refused(source, "handshake", limit=SECONDS)
        await require_listening(destination)
        await set_bandwidth(source, 0)
        await require_good_migration(source, destination, port)


async def test_busy_destination() -> None:
    async with pc_lab() as lab:
        source = await start_source(lab)
        destination, port = await start_destination(lab)
        first = await Peer.connect(port)
        await first.hold_session()
        await begin(source, inet(port))
        await require_refused(source, "another migration", limit=SECONDS)
        first.close()
        await require_listening(destination)
        await require_good_migration(source, destination, port)


@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
async def test_nobody_answers(tls: bool) -> None:
    async with pc_lab() as lab:
        source = await start_source(lab, tls=tls)
        async with FakeDestination() as silent:
            await begin(source, inet(silent.port), {"timeout": 2})
            await require_refused(source, "2 seconds", limit=SECONDS)
