# SPDX-License-Identifier: GPL-2.0-or-later
"""No false refusal of a guest that has been through something since it was started."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest
from conftest import QEMU
from differences import LIVES, NOTHING, SPARE, Row
from machine import Json, Machine, until
from processes import (NO_MULTIFD, begin, check, channels, differences,
                       require_success)
from witness import LIFE_LIMIT, Host, build_guest, wait_well

BACKEND = {"driver": "raw", "node-name": "hot", "file": {"driver": "file"}}
GROWN = 16 << 20
HOT = Row("with a place for a device", {}, NOTHING, LIVES, here={"spare": SPARE})
HOT_PLUGGED = HOT._replace(there={
    "hot-medium": "-blockdev driver=raw,node-name=hot,file.driver=file,file.filename=DIR/hda.img",
    "hot": "-device virtio-blk-pci,id=hot,bus=spare,drive=hot"})


@pytest.fixture(scope="module")
def loop() -> Iterator[asyncio.AbstractEventLoop]:
    one = asyncio.new_event_loop()
    yield one
    one.close()


@pytest.fixture(scope="module")
def host(loop: asyncio.AbstractEventLoop) -> Iterator[Host]:
    """With one guest, which the tests share in their order."""
    one = Host(QEMU, build_guest())
    yield one
    loop.run_until_complete(one.close())


async def listening(host: Host, row: Row) -> Machine:
    destination = await host.destination(row)
    await destination.execute("migrate-incoming",
                              channels("handshake", host.address(destination)))
    return destination


async def issues(host: Host, row: Row) -> list[Json]:
    """What the handshake has to say now, with a destination that has just been started."""
    source, destination = await host.source(row), await listening(host, row)
    said = await check(source, host.address(destination), NO_MULTIFD)
    await host.forget(destination)
    await wait_well(source)
    return differences(said)


async def driver_works(machine: Machine, node: str) -> None:
    """The guest has read what is on the disk; 11.1 aborts when asked for a virtio status."""
    async def read() -> bool:
        return any(disk["stats"]["rd_operations"]
                   for disk in await machine.execute("query-blockstats")
                   if disk.get("node-name") == node)

    await until(f"the guest to use {node}", LIFE_LIMIT, read)


def test_hotplug(loop: asyncio.AbstractEventLoop, host: Host) -> None:
    """The destination has on its command line what was plugged; then it is gone again."""
    async def scene() -> None:
        source = await host.source(HOT)
        assert not await issues(host, HOT)
        await source.execute("blockdev-add", {**BACKEND, "file": {
            "driver": "file", "filename": f"{host.disks}/hda.img"}})
        await source.execute("device_add", {"driver": "virtio-blk-pci", "id": "hot", "bus": "spare",
                                            "drive": "hot"})
        await driver_works(source, "hot")
        assert not await issues(host, HOT_PLUGGED)

    loop.run_until_complete(scene())


def test_block_resize(loop: asyncio.AbstractEventLoop, host: Host) -> None:
    """The destination knows the size of when it was started: a warning at most."""
    async def scene() -> None:
        source, destination = await host.source(HOT), await listening(host, HOT_PLUGGED)
        await source.execute("block_resize", {"node-name": "hot", "size": GROWN})
        said = await check(source, host.address(destination), NO_MULTIFD)
        await host.forget(destination)
        assert said["status"] == "accepted", said["issues"]
        assert all(one["code"] == "disk" for one in differences(said)), said["issues"]
        assert not await issues(host, HOT_PLUGGED)

    loop.run_until_complete(scene())


def test_unplug(loop: asyncio.AbstractEventLoop, host: Host) -> None:
    async def scene() -> None:
        source = await host.source(HOT)
        with source.events("DEVICE_DELETED") as deleted:
            await source.execute("device_del", {"id": "hot"})
            while (await asyncio.wait_for(deleted.get(), LIFE_LIMIT))["data"].get("device") != "hot":
                pass
        await source.execute("blockdev-del", {"node-name": "hot"})
        assert not await issues(host, HOT)

    loop.run_until_complete(scene())


def test_migrated_here(loop: asyncio.AbstractEventLoop, host: Host) -> None:
    """Twice, and what is started for a third time finds nothing."""
    async def scene() -> None:
        for _ in range(2):
            source, destination = await host.source(HOT), await listening(host, HOT)
            await begin(source, host.address(destination), NO_MULTIFD)
            await require_success(source, destination)
            await wait_well(destination)
            await host.moved(destination)
        assert not await issues(host, HOT)

    loop.run_until_complete(scene())
