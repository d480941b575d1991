# SPDX-License-Identifier: GPL-2.0-or-later
"""No false refusal: a device that runs, and its like, which waits, have no difference.

The firmware has run on the one, and has set up what it found; on the other one nobody has
touched anything yet.
"""

from __future__ import annotations

import asyncio
import re
import tempfile
from pathlib import Path
from typing import Any

import pytest
from conftest import QEMU
from devices import (MACHINES, UNMIGRATABLE, UNMIGRATABLE_NEEDS, Group, cpus, groups, known, name_of,
                     without_line)
from machine import Lab, Machine, NotSeen, until
from witness import BOOT_LIMIT, DEBUG_PORT, FIRMWARE_DONE
from processes import (NO_MULTIFD, UNDER, begin_check, channels, differences, require_listening,
                       unix, verdict)

# Not on each of the machines.
pairs = [pytest.param(machine, group, id=f"{machine}, {group.name}")
         for machine in MACHINES for group in groups(QEMU) if machine in group.on]
CPUS = cpus(QEMU)
CPUS_PER_TEST = 25


async def start(lab: Lab, name: str, *options: str) -> Machine:
    try:
        return await lab.start(name, *options, under=UNDER)
    except NotSeen as problem:
        raise NotSeen(f"{problem}: {lab.machines[-1].errors}") from problem


async def wait_firmware(log: Path) -> None:
    async def done() -> bool:
        return log.exists() and FIRMWARE_DONE in log.read_text(errors="replace")

    await until("the firmware to find no disk to boot from", BOOT_LIMIT, done)


async def compare(lab: Lab, directory: Path, *options: str, run: bool = True) -> list[Any]:
    """What the handshake has to say of a machine and another one that is just the same."""
    firmware = directory / "firmware"
    same = [*options, *DEBUG_PORT.format(firmware).split()] if run else [*options, "-S"]
    source = await start(lab, "source", *same)
    if run:
        await wait_firmware(firmware)
    # It writes no log of its own.
    destination = await start(lab, "destination", *same, "-incoming", "defer")
    await destination.execute("migrate-incoming", channels("handshake", unix(directory / "way")))
    await begin_check(source, unix(directory / "way"), NO_MULTIFD)
    said = await verdict(source)
    await require_listening(destination)
    assert said["status"] == "accepted", said["issues"]
    return differences(said)


@pytest.mark.parametrize(("machine", "group"), pairs)
async def test_twin(machine: str, group: Group) -> None:
    command = [str(QEMU), "-nodefaults", "-display", "none", "-machine", f"{machine}{group.machine}"]
    if "-m " not in group.needs:
        command += ["-m", "64"]
    devices = [word for one in group.devices for word in ("-device", one)]
    with tempfile.TemporaryDirectory(prefix="migration-handshake-twins-") as directory:
        async with Lab(command, "tcg") as lab:
            assert not await compare(lab, Path(directory), "-boot", "strict=on",
                                     *group.needs.split(), *devices)


@pytest.mark.parametrize("first", range(0, len(CPUS), CPUS_PER_TEST))
async def test_cpu_models(first: int) -> None:
    """Of each model, as far as it can be had here; two at once would be of one model."""
    found, machine = {}, MACHINES[0]
    for model in CPUS[first:first + CPUS_PER_TEST]:
        command = [str(QEMU), "-nodefaults", "-display", "none", "-machine", machine, "-m", "16"]
        name = re.sub("-x86_64-cpu$", "", model)
        with tempfile.TemporaryDirectory(prefix="migration-handshake-twins-") as directory:
            async with Lab(command, "tcg") as lab:
                try:
                    issues = await compare(lab, Path(directory), "-cpu", name, run=False)
                except NotSeen as problem:
                    if "does not start" not in str(problem):
                        raise
                    issues = []
                if issues:
                    found[name] = issues
    assert not found


def test_every_device() -> None:
    """A new one has to be thought of."""
    assert not without_line(QEMU)


async def test_unmigratable() -> None:
    """That is why they have no twin; the handshake says it of each."""
    command = [str(QEMU), "-nodefaults", "-display", "none", "-machine", "q35"]
    devices = [one for one in UNMIGRATABLE if name_of(one) in known(QEMU)]
    options = [word for one in devices for word in ("-device", one)]
    async with Lab(command, "tcg") as lab:
        machine = await start(lab, "source", "-S", *UNMIGRATABLE_NEEDS.split(), *options)
        profile = (await machine.execute("query-migrate-profile"))["profile"]
        print(profile["unmigratable"])
        assert len(profile["unmigratable"]) == len(devices)
