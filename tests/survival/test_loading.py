# SPDX-License-Identifier: GPL-2.0-or-later
"""A stream that cannot be loaded: the source learns why, in the loader's own words."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import NamedTuple, Optional

import pytest
from machine import Json, Lab, Machine
from processes import (NO_MULTIFD, PATIENCE, Address, Options, begin, channels, end, inet, pc_lab,
                       set_capabilities, set_channels, set_tls, start_source, unix, wait_running,
                       wait_status)
from relay import Line, Relay
from wire import HEADER_SIZE

FAILED = " (the destination could not load the guest)"
# What a handshake would find out before.
ANYWAY: Options = {"ignore-issues": ["device", "section-schema"]}


class Kind(NamedTuple):
    """How the two differ, and what the destination's loader says of it."""

    first: str
    source: tuple[str, ...] = ()
    destination: tuple[str, ...] = ()


SERIAL = ("-device", "virtio-serial-pci,id=vs", "-chardev", "null,id=c")
KINDS = {
    "pci": Kind("get_pci_config_device: Bad config data",
                ("-device", "virtio-rng-pci,vectors=2"), ("-device", "virtio-rng-pci,vectors=3")),
    "validate": Kind("Input validation failed: hpet/num_timers",
                     ("-machine", "hpet=on", "-global", "hpet.timers=3"),
                     ("-machine", "hpet=on", "-global", "hpet.timers=4")),
    # Nothing says why: what there is to say is where.
    "silent": Kind("virtio-console", (*SERIAL, "-device", "virtserialport,bus=vs.0,nr=2,chardev=c"),
                   (*SERIAL, "-device", "virtserialport,bus=vs.0,nr=3,chardev=c")),
}


async def listen(destination: Machine, address: Address, stays: bool) -> Address:
    """Returns where it listens."""
    await destination.execute("migrate-incoming", {**channels("handshake", address),
                                                   "exit-on-error": not stays})
    if address["type"] == "unix":
        return address
    return inet(int((await destination.migration())["socket-address"][0]["port"]))


class Pair(NamedTuple):
    """The two, and where the destination listens."""

    source: Machine
    destination: Machine
    address: Address


@contextlib.asynccontextmanager
async def pair(kind: Kind, address: Address, tls: bool = False, stays: bool = True,
               lab: Optional[Lab] = None) -> AsyncIterator[Pair]:
    async with lab or pc_lab() as lab:
        source = await start_source(lab, tls=tls, options=kind.source)
        destination = await lab.start("destination", "-incoming", "defer", *kind.destination)
        if tls:
            await set_tls(destination, "server")
        yield Pair(source, destination, await listen(destination, address, stays))


def loads(info: Json) -> list[str]:
    """What came of the loader."""
    return [issue["message"] for issue in info["handshake"]["issues"] if issue["code"] == "load"]


async def require_words(two: Pair, first: str, stays: bool) -> Json:
    """The source has failed, and says what the destination says; the guest runs on."""
    info = await end(two.source)
    assert info["status"] == "failed", info
    said = loads(info)
    assert said and first in said[0], info
    assert info["error-desc"] == said[0] + FAILED
    await wait_running(two.source)
    if stays:
        told = await end(two.destination)
        assert told["status"] == "failed"
        # Of a thread it is the thread's own error.
        assert told["error-desc"] in (said[0], "load of migration failed: " + "; ".join(said))
    else:
        await asyncio.wait_for(two.destination.gone(), PATIENCE)
        assert two.destination.exit_status == 1
        assert said[0] in two.destination.errors
    return info


@pytest.mark.parametrize("stays", [True, False], ids=["stays", "exits"])
@pytest.mark.parametrize("way", ["tcp", "unix", "tls", "multifd"])
@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
async def test_words(tmp_path: Path, kind: Kind, way: str, stays: bool) -> None:
    options: Options = {} if way == "multifd" else NO_MULTIFD
    address = unix(tmp_path / "socket") if way == "unix" else inet(0)
    async with pair(kind, address, way == "tls", stays) as two:
        await begin(two.source, two.address, {**options, **ANYWAY})
        info = await require_words(two, kind.first, stays)
        assert ("multifd" in info["handshake"]["capabilities"]) == (way == "multifd")


async def damage(line: Line, offset: int, byte: int) -> None:
    """A byte of the stream, counted from COMMIT on; of another channel from its header on."""
    async def spoil() -> None:
        said = line.said["source"]
        while await line.hear("source"):
            begins = HEADER_SIZE if line.number else line.conversation("source")
            await line.tell("source", len(said) if begins is None else min(begins, len(said)))
            if begins is not None and len(said) > begins + offset:
                said[begins + offset] = byte
                break
        await line.carry("source")

    await line.reach()
    await asyncio.gather(spoil(), line.carry("destination"))


class Damage(NamedTuple):
    """Which byte of which connection, and what is said of it."""

    line: int
    offset: int
    byte: int
    words: str


DAMAGES = {
    # Before the return path is open
    "magic": Damage(0, 0, 0x7f, "Not a migration stream"),
    "version": Damage(0, 7, 9, "Unsupported migration stream version"),
    "multifd": Damage(1, 0, 0x7f, "multifd: received packet magic"),
}


@pytest.mark.parametrize("stays", [True, False], ids=["stays", "exits"])
@pytest.mark.parametrize("harm", DAMAGES.values(), ids=DAMAGES)
async def test_damaged(harm: Damage, stays: bool) -> None:
    async def treat(line: Line) -> None:
        if line.number == harm.line:
            await damage(line, harm.offset, harm.byte)
        else:
            await line.carry_both()

    async with pair(Kind(""), inet(0), stays=stays) as two:
        await set_channels(two.source, 2)
        async with Relay(int(two.address["port"]), treat) as relay:
            await begin(two.source, inet(relay.port), {} if harm.line else NO_MULTIFD)
            await require_words(two, harm.words, stays)


@pytest.mark.parametrize("stays", [True, False], ids=["stays", "exits"])
async def test_postcopy(stays: bool) -> None:
    """The guest has not run there: it goes on here."""
    kind = KINDS["pci"]
    async with pair(kind, inet(0), stays=stays) as two:
        await set_capabilities(two.source, "postcopy-ram")
        await two.source.execute("migrate-set-parameters", {"max-bandwidth": 1 << 16})
        await begin(two.source, two.address, {**NO_MULTIFD, **ANYWAY})
        await wait_status(two.source, "active")
        await two.source.execute("migrate-start-postcopy")
        info = await end(two.source)
        assert info["status"] == "failed", info
        assert kind.first in loads(info)[0] and info["error-desc"] == loads(info)[0] + FAILED
        await wait_running(two.source)


async def test_source_is_gone() -> None:
    """What is said of that is not what the loader met when it had read half of something."""
    async with pair(Kind(""), inet(0)) as two:
        await two.source.execute("migrate-set-parameters", {"max-bandwidth": 1 << 16})
        await begin(two.source, two.address, NO_MULTIFD)
        await wait_status(two.source, "active")
        await two.source.execute("migrate_cancel")
        info = await end(two.source)
        assert info["status"] == "cancelled" and "error-desc" not in info
        told = await end(two.destination)
        assert told["error-desc"] == ("load of migration failed: the source ended the connection"
                                      " before the migration was complete: it was cancelled there,"
                                      " or failed")
