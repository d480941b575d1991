# SPDX-License-Identifier: GPL-2.0-or-later
"""Guests that use what they have been promised, and how one knows that they are well."""

from __future__ import annotations

import asyncio
import contextlib
import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, Optional

from conftest import TOP
from differences import BASES, Row
from machine import Json, Lab, Machine, NotSeen, until
from processes import (NO_MULTIFD, PATIENCE, UNDER, begin, channels, end, require_listening,
                       set_capabilities, unix, verdict, wait_running)

BOOT_LIMIT = 300.0
MOVE_LIMIT = 120.0
LIFE_LIMIT = 40.0       # to say something, in a guest that says it five times a second
DISK_SIZE = 8 << 20     # of the files: there are rows that see more or less of them
FAST = 1 << 33
PROGRESS = 2            # a device that has done so much more than it had is not lost

DEBUG_PORT = "-chardev file,id=firmware,path={} -device isa-debugcon,iobase=0x402,chardev=firmware"
FIRMWARE_DONE = "No bootable device"

# A network of its own, with a host that answers. Its way is no socket of that network.
TAP = ("unshare", "-n", "sh", "-c", "ip link set lo up && "
       "ip tuntap add dev tap0 mode tap multi_queue && ip link set tap0 up && "
       'ip addr add 10.77.0.1/24 dev tap0 && exec "$@"', "-")
TAP_ONE_QUEUE = tuple(word.replace(" multi_queue", "") for word in TAP)

# RAM has been begun to be loaded, in what the destination traces.
TRACE = "qemu_loadvm_state_section_partend"


def can_tap() -> bool:
    script = subprocess.run([*TAP, "true"], stdin=subprocess.DEVNULL, capture_output=True)
    return script.returncode == 0


class Line(NamedTuple):
    """What the witness has said: how often something was wrong, and who has come how far."""

    errors: int
    rounds: Mapping[str, int]


_LINE = re.compile(r"guest: errors (\d+), (\w+ \d+(?:, \w+ \d+)*)\n")
_COMPLAINT = re.compile(r"guest: (\w+: [a-z].*)\n")


class Testimony:
    """The console of a guest on one machine."""

    def __init__(self, machine: Machine):
        text = machine.console.replace("\r", "")
        self.lines = [Line(int(errors), {name: int(number) for name, number in (
            part.rsplit(" ", 1) for part in rounds.split(", "))})
            for errors, rounds in _LINE.findall(text)]
        self.complaints = _COMPLAINT.findall(text)
        self.panic = "Kernel panic" in text or "Oops" in text or "BUG:" in text

    def idle_since(self, first: Line) -> list[str]:
        """Who has not done anything worth the name since then."""
        last = self.lines[-1]
        return [name for name, number in last.rounds.items()
                if number < first.rounds.get(name, 0) + PROGRESS]


async def wait_well(machine: Machine, limit: float = LIFE_LIMIT) -> None:
    """From now on everything of the guest gets on, and nothing was ever wrong."""
    said = Testimony(machine).lines
    start = said[-1] if said else None

    async def well() -> bool:
        now = Testimony(machine)
        assert not now.complaints and not now.panic, now.complaints
        first = start or (now.lines[0] if now.lines else None)
        return first is not None and not now.idle_since(first)

    try:
        await until(f"the guest on {machine.name} to get on", limit, well)
    except NotSeen as late:
        raise NotSeen(f"{late}: from {start} to {Testimony(machine).lines[-1:]}") from late


async def life_of(machine: Machine, limit: float = LIFE_LIMIT) -> str:
    """"" if all is well with a guest that has come here; else what is not."""
    deadline = time.monotonic() + limit
    while True:
        gone = machine.exit_status is not None
        now = Testimony(machine)
        if now.panic:
            return "the kernel panics"
        if now.complaints:
            return now.complaints[0]
        if gone:
            return "it crashes or reboots"
        if now.lines and not now.idle_since(now.lines[0]):
            return ""
        if time.monotonic() > deadline:
            if not now.lines:
                return "it hangs"
            return f"{', '.join(now.idle_since(now.lines[0]))}: hangs"
        await asyncio.sleep(0.05)


class Outcome(NamedTuple):
    """Of a migration over main."""

    kind: str
    text: str       # what one can read about it, on either side


class Host:
    """Where a guest is started, and all that it may move to. Leaves nothing behind."""

    def __init__(self, qemu: Path, guest: Path):
        self._qemu = qemu
        self._guest = guest
        self._lab = Lab([str(qemu), "-nodefaults", "-display", "none"], "tcg")
        self._directory = Path(tempfile.mkdtemp(prefix="migration-handshake-promises-"))
        self._count = 0
        self._key: Optional[tuple[object, ...]] = None
        self._source: Optional[Machine] = None      # None: it has gone somewhere
        self.disks = self._directory / "disks"
        self._saved = self._directory / "saved"     # a guest, and its disks

    async def close(self) -> None:
        try:
            await self._lab.__aexit__()
        finally:
            shutil.rmtree(self._directory)

    # Machines

    def _options(self, row: Row, parts: Mapping[str, str], name: str) -> list[str]:
        options = " ".join(parts.values()).replace("DIR", str(self.disks)).split()
        if not row.os:
            firmware = self._directory / f"{name}.firmware"
            return [*options, *DEBUG_PORT.format(firmware).split()]
        witness = BASES[row.base].witness
        return [*options, "-kernel", f"{self._guest}/vmlinuz", "-initrd", f"{self._guest}/initramfs",
                "-append", "console=ttyS0 quiet panic=-1 no_timer_check memhp_default_state=online "
                f"witness={witness}", "-no-reboot"]

    async def _start(self, row: Row, parts: Mapping[str, str], name: str, *options: str) -> Machine:
        self._count += 1
        name = f"{self._count}-{name}"
        tap: Sequence[str] = ()
        if BASES[row.base].tap:
            tap = TAP if "queues=2" in parts["nics"] else TAP_ONE_QUEUE
        try:
            return await self._lab.start(name, *self._options(row, parts, name), *options,
                                         under=[*tap, *UNDER])
        except NotSeen as problem:
            raise NotSeen(f"{problem}: {self._lab.machines[-1].errors}") from problem

    async def destination(self, row: Row, *options: str) -> Machine:
        return await self._start(row, row.destination, "destination", "-incoming", "defer", *options)

    def address(self, machine: Machine) -> Json:
        return unix(self._directory / f"{machine.name}.sock")

    async def forget(self, machine: Machine) -> None:
        await machine.stop()
        self._lab.machines.remove(machine)

    # The source

    async def source(self, row: Row, again: bool = False) -> Machine:
        """It works, with all that it has. It is the one of the row before if it can be.
        One that will be needed `again` and again is saved, since booting takes longer."""
        key = (row.base, row.os, tuple(row.source.items()))
        if self._source and (self._key != key or self._source.exit_status is not None):
            await self._leave()
        if self._source is None:
            if self._key != key or not self._saved.exists():
                await self._boot(row)
                if again:
                    await self._save()
            if again:
                await self._restore(row)
            self._key = key
        assert self._source
        return self._source

    async def _boot(self, row: Row) -> None:
        for directory in (self.disks, self._saved):
            shutil.rmtree(directory, ignore_errors=True)
        self.disks.mkdir()
        for name in ("vda", "sda", "hda", "stick"):
            with open(self.disks / f"{name}.img", "wb") as image:
                image.truncate(DISK_SIZE)
        self._source = await self._start(row, row.source, "source")
        if row.os:
            await wait_well(self._source, BOOT_LIMIT)
        else:
            await self._wait_firmware(self._source)
        await self._wait_plugged(row)

    async def _save(self) -> None:
        source = self._source
        assert source
        # Not stopped before: a guest may have to give back a device first.
        await source.execute("migrate", {"uri": f"file:{self._directory}/state"})
        info = await end(source, MOVE_LIMIT)
        assert info["status"] == "completed", info
        await self._leave()
        shutil.copytree(self.disks, self._saved)

    async def _restore(self, row: Row) -> None:
        shutil.rmtree(self.disks)
        shutil.copytree(self._saved, self.disks)
        self._source = await self._start(row, row.source, "source",
                                         "-incoming", f"file:{self._directory}/state")
        await self._wait_loaded(self._source)
        await self._source.execute("cont")
        if row.os:
            await wait_well(self._source)
        await self._wait_plugged(row)

    async def _wait_plugged(self, row: Row) -> None:
        source, device = self._source, BASES[row.base].plugged
        assert source

        async def plugged() -> bool:
            with contextlib.suppress(NotSeen):      # there is nothing of that name yet
                return bool(await source.execute("qom-get", {
                    "path": f"/machine/peripheral/{device}", "property": "realized"}))
            return False

        if device:
            await until(f"{device} to be plugged", LIFE_LIMIT, plugged)

    async def _wait_loaded(self, machine: Machine) -> None:
        async def loaded() -> bool:
            return (await machine.execute("query-status"))["status"] != "inmigrate"

        await until(f"the guest of {machine.name} to be loaded", MOVE_LIMIT, loaded)

    async def _wait_firmware(self, machine: Machine) -> None:
        path = self._directory / f"{machine.name}.firmware"

        async def done() -> bool:
            return path.exists() and FIRMWARE_DONE in path.read_text(errors="replace")

        await until(f"the firmware of {machine.name}", BOOT_LIMIT, done)

    async def moved(self, home: Machine) -> None:
        """The guest lives there now."""
        await self._leave()
        self._source = home

    async def _leave(self) -> None:
        if self._source:
            await self.forget(self._source)
        self._source = None

    # What a row is about

    async def judge(self, row: Row) -> Json:
        """What the handshake says. The guest does not notice, be it refused or be it asked."""
        source = await self.source(row)
        destination = await self.destination(row)
        try:
            await destination.execute("migrate-incoming",
                                      channels("handshake", self.address(destination)))
            refuse = row.expected.severity == "error"
            options = {**NO_MULTIFD, "check-only": True}
            await begin(source, self.address(destination), options)
            said = await verdict(source)
            if refuse and said["status"] == "rejected":
                # The real thing.
                await begin(source, self.address(destination), NO_MULTIFD)
                info = await end(source)
                assert info["status"] == "failed", info
                assert info["handshake"]["issues"] == said["issues"]
                assert info.get("error-desc", "").strip()
            await require_listening(destination)
            assert await source.is_running()
            if row.os:
                await wait_well(source)
            return said
        finally:
            await self.forget(destination)

    async def move(self, row: Row) -> Outcome:
        """What comes of it over main, with a return path, as libvirt has it."""
        # One that has given back a device for a file may not find it again.
        base = BASES[row.base]
        source = await self.source(row, again=base.can_be_saved and not base.plugged)
        destination = await self.destination(row, "-trace", TRACE)
        try:
            for machine in (source, destination):
                await set_capabilities(machine, "return-path")
            await source.execute("migrate-set-parameters", {"max-bandwidth": FAST})
            await destination.execute("migrate-incoming",
                                      channels("main", self.address(destination)))
            await begin(source, self.address(destination), kind="main", patience=PATIENCE)
            info = await end(source, MOVE_LIMIT)
            if info["status"] == "completed":
                with contextlib.suppress(NotSeen):      # it may have died at once
                    await wait_running(destination)
                wrong = await life_of(destination) if row.os else ""
                await self._leave()
                kind = "harm" if wrong else "lives" if row.os else "moved"
                return Outcome(kind, wrong)
            assert info["status"] == "failed", info
            await wait_exit(destination)
            await wait_running(source)
            if row.os:
                await wait_well(source)
            lines = destination.errors.splitlines()
            late = any(TRACE in line for line in lines)
            text = "\n".join([info.get("error-desc", ""),
                              *(line for line in lines if TRACE not in line)])
            return Outcome("late" if late else "early", text)
        except BaseException:
            await self._leave()
            raise
        finally:
            await self.forget(destination)


async def wait_exit(machine: Machine) -> None:
    async def gone() -> bool:
        return machine.exit_status is not None

    await until(f"{machine.name} to exit", PATIENCE, gone)


def build_guest() -> Path:
    done = subprocess.run([TOP / "scripts/demo-guest/build", TOP / "tests/promises/guest"],
                          stdout=subprocess.PIPE, text=True, check=True, stdin=subprocess.DEVNULL)
    return Path(done.stdout.strip())
