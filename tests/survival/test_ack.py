# SPDX-License-Identifier: GPL-2.0-or-later
"""A source that waits for the switchover ack, which a handshake agrees on, waits quietly."""

from __future__ import annotations

import asyncio
import time
from typing import Optional

import pytest
from processes import (PROMPT, Options, begin, each_base, end, inet, pc_lab, require_success,
                       set_capabilities, start_destination, start_source, wait_running,
                       wait_status)
from relay import Line, Relay

DELAY = 0.2                 # one way
STEPS = 10                  # a second, in which it looks for dirty pages
MUCH = 1 << 20              # bytes: a guest that does nothing has less
CAPABILITIES = ["return-path", "switchover-ack"]
# A relay in Python would need its time for the channels of multifd.
OPTIONS: dict[str, Optional[Options]] = {"main": None,
                                         "handshake": {"optional-capabilities": ["switchover-ack"]}}


@each_base
@pytest.mark.parametrize("kind", OPTIONS)
async def test_comes_late(kind: str, base: str) -> None:
    async with pc_lab(base=base) as lab:
        source = await start_source(lab)
        destination, port = await start_destination(lab, kind=kind)
        await set_capabilities(source, "events")
        if kind == "main":
            for machine in (source, destination):
                await set_capabilities(machine, *CAPABILITIES)
        with source.events("MIGRATION_PASS") as passes:
            async with Relay(port, lambda line: line.carry_late(DELAY)) as relay:
                await begin(source, inet(relay.port), OPTIONS[kind], kind=kind)
                await require_success(source, destination)
                said = sum(len(line.said["source"]) for line in relay.lines)
            seconds = (await source.migration())["total-time"] / 1000
            count = len(passes.clear())
            assert count < STEPS * seconds + 5
        assert said < MUCH
        if kind == "handshake":
            assert "switchover-ack" in (await source.handshake())["capabilities"]


@each_base
async def test_never_comes(base: str) -> None:
    """It can be cancelled, and the guest runs all the while."""
    async def one_way(line: Line) -> None:
        await line.reach()
        await line.carry("source")

    async with pc_lab(base=base) as lab:
        source = await start_source(lab)
        destination, port = await start_destination(lab, kind="main")
        for machine in (source, destination):
            await set_capabilities(machine, *CAPABILITIES)
        await set_capabilities(source, "events")
        with source.events("MIGRATION_PASS", "STOP") as events:
            async with Relay(port, one_way) as relay:
                await begin(source, inet(relay.port), kind="main")
                await wait_status(source, "active")
                begun = time.monotonic()
                await asyncio.sleep(1)
                seen = [event["event"] for event in events.clear()]
                seconds = time.monotonic() - begun
                assert "STOP" not in seen
                assert len(seen) < STEPS * (seconds + 1)
                assert (await source.migration())["status"] == "active"
                await source.execute("migrate_cancel")
                assert (await end(source, PROMPT))["status"] == "cancelled"
                await wait_running(source)
