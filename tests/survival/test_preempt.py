# SPDX-License-Identifier: GPL-2.0-or-later
"""The channel of postcopy preemption, whose TLS nobody may ever answer."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator
from pathlib import Path

from machine import Lab, Machine, NotSeen, until
from processes import (PROMPT, begin, end, inet, pc_lab, require_good_migration, require_success,
                       set_capabilities, start_destination, start_source, unix, wait_status)
from relay import Line, Relay
from wire import FullListener

SLOW = 64 << 10     # bytes a second: there has to be something left for postcopy


class Preempting:
    """A migration whose preempt channel leads to somebody who is silent."""

    def __init__(self, source: Machine, destination: Machine):
        self.source = source
        self.destination = destination
        self.has_come = asyncio.Event()
        self.main: Line | None = None

    async def treat(self, line: Line) -> None:
        if line.number:
            self.has_come.set()
            await line.drain("source")
        else:
            self.main = line
            await line.carry_both()


@contextlib.asynccontextmanager
async def preempting(lab: Lab) -> AsyncIterator[Preempting]:
    source = await start_source(lab, tls=True)
    destination, port = await start_destination(lab, tls=True)
    migration = Preempting(source, destination)
    await source.execute("migrate-set-capabilities", {"capabilities": [
        {"capability": name, "state": True} for name in ("postcopy-ram", "postcopy-preempt")]})
    async with Relay(port, migration.treat) as relay:
        await source.execute("migrate-set-parameters", {"max-bandwidth": SLOW})
        await begin(source, inet(relay.port))
        yield migration


async def test_precopy_is_over_before_it_stands() -> None:
    """Machines up to 7.2 open it at the beginning, and wait for it only when they need it."""
    async with pc_lab("pc-i440fx-7.2") as lab, preempting(lab) as migration:
        await asyncio.wait_for(migration.has_come.wait(), 10)
        await migration.source.execute("migrate-set-parameters", {"max-bandwidth": 0})
        await require_success(migration.source, migration.destination)
        # A late end of it must not hurt either.
        await asyncio.sleep(0.1)
        assert not await migration.source.is_running()


async def test_main_channel_ends_meanwhile() -> None:
    async with pc_lab() as lab, preempting(lab) as migration:
        source = migration.source
        await wait_status(source, "active")
        await source.execute("migrate-start-postcopy")
        await asyncio.wait_for(migration.has_come.wait(), 10)
        assert migration.main
        await migration.main.cut()
        info = await end(source, 2 * PROMPT)
        assert info["status"] == "failed"
        assert info["error-desc"]
        assert await source.is_running()
        # The stream had begun, so that the destination goes as it does today.
        with contextlib.suppress(NotSeen):
            assert not await migration.destination.is_running()


async def test_failure_that_comes_in_the_next_migration(tmp_path: Path) -> None:
    """It is none of that one's, whose handshake goes on."""
    async with pc_lab("pc-i440fx-7.2") as lab:
        source = await start_source(lab)
        destination, port = await start_destination(lab)
        await set_capabilities(source, "postcopy-ram", "postcopy-preempt")
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(tmp_path / "one"))
            listener.listen(0)      # has room for the main channel
            await begin(source, unix(tmp_path / "one"), kind="main")
            await wait_status(source, "active")
            await source.execute("migrate_cancel")
            await wait_status(source, "cancelled")
            await set_capabilities(source, "postcopy-ram", "postcopy-preempt", state=False)
            async with FullListener.unix(tmp_path / "full"):
                await begin(source, unix(tmp_path / "full"))
                listener.close()

                async def has_failed() -> bool:
                    return "error-desc" in await source.migration()

                await until("the failure", PROMPT, has_failed, every=0.001)
                assert (await source.migration())["status"] == "setup"
                assert (await source.handshake())["status"] == "in-progress"
                await source.execute("migrate_cancel")
                assert (await source.handshake())["status"] == "cancelled"
        await require_good_migration(source, destination, port)
