# SPDX-License-Identifier: GPL-2.0-or-later
"""The channel of postcopy preemption."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest
from machine import until
from processes import (NO_MULTIFD, PROMPT, begin, inet, pc_lab, require_good_migration,
                       require_success, set_capabilities, start_destination, start_source, unix,
                       verdict, wait_status)
from relay import SPEAKERS, Relay
from wire import HEADER_SIZE, FullListener

SLOW = 64 << 10     # bytes a second: there has to be something left for postcopy


@pytest.mark.parametrize("postcopy", [False, True], ids=["precopy", "postcopy"])
@pytest.mark.parametrize("machine", ["pc", "pc-i440fx-7.2"])
async def test_it_stands_before_the_stream(machine: str, postcopy: bool) -> None:
    """Whenever it may be needed, and if it never is."""
    async with pc_lab(machine) as lab:
        source = await start_source(lab)
        destination, port = await start_destination(lab)
        await set_capabilities(source, "postcopy-ram", "postcopy-preempt")
        await source.execute("migrate-set-parameters", {"max-bandwidth": SLOW})
        async with Relay(port) as relay:
            await begin(source, inet(relay.port), NO_MULTIFD)
            info = await verdict(source, PROMPT)
            assert info["status"] == "accepted"
            assert "postcopy-preempt" in info["capabilities"]
            _, preempt = relay.lines
            assert all(len(preempt.said[speaker]) >= HEADER_SIZE for speaker in SPEAKERS)
            await wait_status(source, "active")
            if postcopy:
                await source.execute("migrate-start-postcopy")
            else:
                await source.execute("migrate-set-parameters", {"max-bandwidth": 0})
            await require_success(source, destination)


async def test_failure_that_comes_in_the_next_migration(tmp_path: Path) -> None:
    """It is none of that one's, whose handshake goes on."""
    async with pc_lab("pc-i440fx-7.2") as lab:
        source = await start_source(lab)
        destination, port = await start_destination(lab)
        await set_capabilities(source, "postcopy-ram", "postcopy-preempt")
        # Nobody reads there: QEMU must not be at the end, where it would wait with the BQL.
        await source.execute("migrate-set-parameters", {"max-bandwidth": SLOW})
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(tmp_path / "one"))
            listener.listen(0)      # has room for the main channel
            await begin(source, unix(tmp_path / "one"), kind="main")
            await wait_status(source, "active")
            await source.execute("migrate_cancel")
            await wait_status(source, "cancelled")
            await set_capabilities(source, "postcopy-ram", "postcopy-preempt", state=False)
            await source.execute("migrate-set-parameters", {"max-bandwidth": 0})
            async with FullListener.unix(tmp_path / "full"):
                await begin(source, unix(tmp_path / "full"))
                listener.close()

                async def has_failed() -> bool:
                    return "error-desc" in await source.migration()

                await until("the failure", PROMPT, has_failed, every=0.001)
                assert (await source.migration())["status"] == "setup"
                assert (await source.handshake())["status"] == "in-progress"
                await source.execute("migrate_cancel")
                assert (await verdict(source, PROMPT))["status"] == "cancelled"
        await require_good_migration(source, destination, port)
