# SPDX-License-Identifier: GPL-2.0-or-later
"""QEMU quits just when a handshake has ended, and waits for a disk.

Whatever is scheduled by then runs in the middle of quitting, when part of QEMU has gone.
That it looks at nothing of that is what the sanitizers see: `make check-asan`.
"""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from machine import Machine
from processes import UNDER, begin, inet, pc_lab
from qemu.qmp import QMPClient
from wire import ACCEPT, SESSION, FakeDestination, frame, header

TIMES = 3               # it is a race
SECOND = 1000000000
LIMIT = 60.0


def slow_disk(name: str, seconds: float) -> tuple[str, str]:
    return "-drive", (f"if=none,id={name},driver=null-aio,latency-ns={int(seconds * SECOND)},"
                      "read-zeroes=on,size=1M")


async def tell_disk(machine: Machine, command: str) -> None:
    await machine.execute("human-monitor-command", {"command-line": f"qemu-io {command}"})


async def quit_in_time(path: Path, check_only: bool) -> None:
    """The answer and `quit` come while the main loop waits for one disk; quitting for another."""
    async with pc_lab() as lab, FakeDestination() as destination:
        source = await lab.start("source", *slow_disk("short", 0.4), *slow_disk("long", 2),
                                 "-qmp", f"unix:{path},server=on,wait=off", under=UNDER)
        other = QMPClient("other")
        await other.connect(str(path))
        await begin(source, inet(destination.port), {"check-only": check_only})
        peer = await destination.next()
        await peer.read_hello()
        await tell_disk(source, 'long "aio_read 0 512"')
        busy = asyncio.create_task(tell_disk(source, 'short "read 0 512"'))
        await asyncio.sleep(0.1)
        leave = asyncio.create_task(other.execute("quit"))
        await peer.send(header(session=SESSION) + frame(ACCEPT, {
            "version": 1, "capabilities": ["return-path"]}))
        await asyncio.gather(busy, leave, return_exceptions=True)
        await asyncio.wait_for(source.gone(), LIMIT)
        assert source.exit_status == 0, source.errors
        await asyncio.gather(other.disconnect(), return_exceptions=True)


@pytest.mark.parametrize("check_only", [False, True], ids=["migration", "check"])
async def test_answer_and_quit_at_once(check_only: bool, tmp_path: Path) -> None:
    for number in range(TIMES):
        await quit_in_time(tmp_path / f"monitor-{number}", check_only)
