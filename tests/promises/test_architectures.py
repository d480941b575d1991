# SPDX-License-Identifier: GPL-2.0-or-later
"""Arm, s390x and POWER: what differs is found before RAM is sent, and what does not is not.

Each row is one difference: what the handshake says of it, and what comes of it over main.
Those whose QEMU has not been built are skipped.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from architectures import (ARCHITECTURES, LATE, LIVES, ROWS, Architecture, Difference, Seen,
                           write_table)
from conftest import QEMU
from machine import Json, Lab, Machine, NotSeen
from processes import (NO_MULTIFD, UNDER, begin, channels, check, differences, end,
                       require_listening, unix)

CPUS_PER_TEST = 25

each_row = pytest.mark.parametrize("row", [
    pytest.param(row, id=f"{row.architecture.name}: {row.source} -> {row.destination}")
    for row in ROWS])
each_architecture = pytest.mark.parametrize(
    "architecture", [pytest.param(one, id=one.name) for one in ARCHITECTURES])


@pytest.fixture(scope="module")
def seen() -> Iterator[dict[Difference, Seen]]:
    """What has been seen of rows; in the end there is a table of it."""
    found: dict[Difference, Seen] = {}
    yield found
    write_table(found)


@pytest.fixture
def directory() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="migration-handshake-architectures-") as name:
        yield Path(name)


def lab(architecture: Architecture) -> Lab:
    if not architecture.qemu.exists():
        pytest.skip(f"{architecture.qemu.name} has not been built")
    return Lab(architecture.command(), "tcg")


async def start(there: Lab, architecture: Architecture, directory: Path, name: str,
                *options: str) -> Machine:
    try:
        return await there.start(name, *architecture.options(directory), *options, under=UNDER)
    except NotSeen as problem:
        raise NotSeen(f"{problem}: {there.machines[-1].errors}") from problem


async def start_listening(there: Lab, architecture: Architecture, directory: Path, kind: str,
                          *options: str) -> Machine:
    machine = await start(there, architecture, directory, "destination", "-incoming", "defer",
                          *options)
    await machine.execute("migrate-incoming", {**channels(kind, unix(directory / "way")),
                                               "exit-on-error": False})
    return machine


async def compare(architecture: Architecture, directory: Path, source_options: str,
                  destination_options: str) -> Json:
    async with lab(architecture) as there:
        source = await start(there, architecture, directory, "source", *source_options.split())
        destination = await start_listening(there, architecture, directory, "handshake",
                                            *destination_options.split())
        said = await check(source, unix(directory / "way"), NO_MULTIFD)
        await require_listening(destination)
        return said


@each_row
async def test_verdict(row: Difference, directory: Path, seen: dict[Difference, Seen]) -> None:
    said = await compare(row.architecture, directory, row.source, row.destination)
    found = differences(said)
    seen.setdefault(row, Seen()).issues = found
    if not row.severity:
        assert not found
        return
    worst = "error" if any(one["severity"] == "error" for one in found) else "warning"
    assert (worst, said["status"]) == (row.severity, "rejected" if row.severity == "error"
                                       else "accepted"), found
    assert any(one["code"] == row.code and one["severity"] == row.severity
               and re.search(row.words, one["message"]) for one in found), found


@each_row
async def test_over_main(row: Difference, directory: Path, seen: dict[Difference, Seen]) -> None:
    """A refusal has to be right."""
    architecture = row.architecture
    async with lab(architecture) as there:
        source = await start(there, architecture, directory, "source", *row.source.split())
        destination = await start_listening(there, architecture, directory, "main",
                                            *row.destination.split())
        await begin(source, unix(directory / "way"), kind="main")
        await end(source)
        info = await end(destination)
        outcome = LIVES if info["status"] == "completed" else LATE
        seen.setdefault(row, Seen()).main = outcome
        seen[row].main_text = info.get("error-desc", "")
        assert outcome == row.main, info


@each_architecture
async def test_twin(architecture: Architecture, directory: Path) -> None:
    """One that runs and its like that waits; and it moves."""
    async with lab(architecture) as there:
        source = await start(there, architecture, directory, "source", "-smp", "2")
        destination = await start_listening(there, architecture, directory, "handshake",
                                            "-smp", "2")
        assert not differences(await check(source, unix(directory / "way"), NO_MULTIFD))
        await begin(source, unix(directory / "way"), {"warnings-as-errors": True})
        info = await end(source)
        assert info["status"] == "completed", info
        assert (await end(destination))["status"] == "completed"


def models(architecture: Architecture) -> list[str]:
    """The CPUs that it could have; none if it has not been built."""
    if not architecture.qemu.exists():
        return []
    done = subprocess.run([*architecture.command(), "-cpu", "help"], stdin=subprocess.DEVNULL,
                          capture_output=True, text=True, check=True)
    lines = (line.removeprefix("PowerPC ").removeprefix("s390 ").split()
             for line in done.stdout.splitlines() if line.startswith(("  ", "PowerPC ", "s390 ")))
    return list(dict.fromkeys(words[0] for words in lines))


@pytest.mark.parametrize(("architecture", "first"), [
    pytest.param(one, first, id=f"{one.name}, {first}")
    for one in ARCHITECTURES for first in range(0, len(models(one)), CPUS_PER_TEST)])
async def test_cpu_models(architecture: Architecture, first: int, directory: Path) -> None:
    """Two of each model, as far as it can be had in this machine."""
    found = {}
    for name in models(architecture)[first:first + CPUS_PER_TEST]:
        try:
            said = await compare(architecture, directory, f"-S -cpu {name}", f"-cpu {name}")
        except NotSeen as problem:
            if "does not start" not in str(problem):
                raise
            continue
        if differences(said):
            found[name] = differences(said)
    assert not found


@each_architecture
async def test_other_architecture(architecture: Architecture, directory: Path) -> None:
    """It is refused by name, whichever way."""
    async with lab(architecture) as there, Lab(
            [str(QEMU), "-nodefaults", "-display", "none", "-machine", "q35", "-m", "64"],
            "qtest") as elsewhere:
        one = await start(there, architecture, directory, "source")
        other = await elsewhere.start("source", under=UNDER)
        for source, to in ((one, elsewhere), (other, there)):
            if to is there:
                destination = await start_listening(there, architecture, directory, "handshake")
            else:
                destination = await elsewhere.start("destination", "-incoming", "defer", under=UNDER)
                await destination.execute("migrate-incoming",
                                          channels("handshake", unix(directory / "way")))
            await begin(source, unix(directory / "way"))
            info = await end(source)
            said = info["handshake"]
            assert (info["status"], said["status"]) == ("failed", "rejected"), info
            issues = [issue for issue in said["issues"] if issue["code"] == "arch"]
            assert [issue["severity"] for issue in issues] == ["error"], said["issues"]
            assert "cannot run in qemu-system-" in info["error-desc"], info["error-desc"]
            await require_listening(destination)
            await destination.stop()
