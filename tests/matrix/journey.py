# SPDX-License-Identifier: GPL-2.0-or-later
"""A guest that goes from one QEMU to the next, in whatever way it is told."""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, Optional

import pytest
from binaries import STOCK, Qemu
from conftest import TOP
from guest import BOOT_LIMITS, qemu_command
from machine import LOOPBACK, Console, Json, Lab, Machine, NotSeen, until
from processes import (ENDED, NO_MULTIFD, PATIENCE, TLS_CREDS, UNDER, Options, begin, channels,
                       end, inet, set_capabilities, set_channels, settings, wait_running,
                       wait_status)

GUEST_MIB = 192
ROUNDS_LIMIT = 100.0
SLOW = 64 << 10         # bytes a second: there has to be something left for postcopy
FAST = 1 << 30
DOWNTIME_LIMIT = 300    # the default
LEGACY = "main"


class Kind(NamedTuple):
    """How to migrate, and what the two have to agree on."""

    name: str
    required: tuple[str, ...] = ()
    options: Optional[Options] = NO_MULTIFD
    agreed: tuple[str, ...] = ()
    declined: tuple[str, ...] = ()
    channel: str = "handshake"
    tls: bool = False

    @property
    def postcopy(self) -> bool:
        return "postcopy-ram" in self.required

    @property
    def multifd(self) -> bool:
        return "multifd" in (*self.required, *self.agreed)

    @property
    def effective(self) -> set[str]:
        return {"return-path", *self.required, *self.agreed}


AGREED = ("multifd", "switchover-ack")
PRECOPY = Kind("precopy")
KINDS = (
    PRECOPY,
    Kind("multifd, agreed", options=None, agreed=AGREED),
    Kind("multifd, required", required=("multifd",)),
    Kind("postcopy", required=("postcopy-ram",)),
    Kind("postcopy, preempt", required=("postcopy-ram", "postcopy-preempt")),
    Kind("TLS, multifd", options=None, agreed=AGREED, tls=True),
)
LEGACY_KINDS = (
    Kind("main", channel=LEGACY),
    Kind("main, multifd", required=("multifd",), channel=LEGACY),
)
CHANNELS = 3            # not the default


async def address_of(destination: Machine) -> Json:
    return inet(int((await destination.migration())["socket-address"][0]["port"]))


async def in_postcopy(source: Machine) -> bool:
    status = (await source.migration())["status"]
    return status.startswith("postcopy-") or status in ENDED


async def need_postcopy(destination: Machine) -> None:
    """Not every host has userfaultfd for everybody. Only for one with -incoming."""
    try:
        await set_capabilities(destination, "postcopy-ram")
    except NotSeen as reason:
        pytest.skip(str(reason))
    await set_capabilities(destination, "postcopy-ram", state=False)


class Journey:
    """One guest, and all the machines that it has lived on."""

    def __init__(self, machine_type: str, *options: str):
        self._options = ["-machine", machine_type, *options]
        self._labs: dict[str, Lab] = {}
        self._count = 0
        self._homes: list[Machine] = []
        self._keys: Optional[tempfile.TemporaryDirectory[str]] = None
        self.where: Optional[Qemu] = None

    # What they are, and how one knows that it is well

    def command(self, qemu: Qemu) -> list[str]:
        raise NotImplementedError

    accelerator = "qtest"

    async def wait_born(self, machine: Machine) -> None:
        """Until the guest of the first one can travel."""
        raise NotImplementedError

    async def require_well(self) -> None:
        """Where it is now; all that it has is as it has to be."""
        raise NotImplementedError

    @property
    def homes(self) -> list[Machine]:
        return self._homes

    @property
    def home(self) -> Machine:
        return self._homes[-1]

    # Machines

    async def start(self, qemu: Qemu, *options: str) -> Machine:
        if qemu.base not in self._labs:
            self._labs[qemu.base] = Lab(self.command(qemu), self.accelerator)
        self._count += 1
        return await self._labs[qemu.base].start(
            f"{self._count}-{qemu.base}", *self._options, *options, under=UNDER)

    async def close(self) -> None:
        for lab in self._labs.values():
            await lab.__aexit__()
        self._labs.clear()
        self._homes.clear()
        if self._keys:
            self._keys.cleanup()
            self._keys = None
        self.where = None

    async def _set_tls(self, machine: Machine, endpoint: str) -> None:
        """QEMU 10.2.2 crashes as a client with the tls-creds-anon of other tests."""
        if not self._keys:
            self._keys = tempfile.TemporaryDirectory(prefix="migration-handshake-keys-")
            keys = Path(self._keys.name, "keys.psk")
            keys.write_text("qemu:00112233445566778899aabbccddeeff\n")
        await machine.execute("object-add", {"qom-type": "tls-creds-psk", "id": TLS_CREDS,
                                             "endpoint": endpoint, "dir": self._keys.name})
        await machine.execute("migrate-set-parameters", {"tls-creds": TLS_CREDS})

    async def be_at(self, qemu: Qemu) -> None:
        """By a way that does not matter."""
        if self.where == qemu:
            return
        if self.where is None:
            machine = await self.start(qemu)
            self._homes, self.where = [machine], qemu
            await self.wait_born(machine)
            return
        legacy = STOCK in (self.where.base, qemu.base)
        await self.go(qemu, LEGACY_KINDS[0] if legacy else PRECOPY)

    # Migrations

    async def destination(self, qemu: Qemu, kind: Kind, *options: str) -> Machine:
        """It was told an address, and TLS; all else only where there is no handshake."""
        destination = await self.start(qemu, "-incoming", "defer", *options)
        if kind.postcopy:
            await need_postcopy(destination)
        if kind.tls:
            await self._set_tls(destination, "server")
        if kind.channel == LEGACY:
            await configure(destination, kind)
            await destination.execute("migrate-incoming", {"uri": f"tcp:{LOOPBACK}:0"})
        else:
            await destination.execute("migrate-incoming", channels(kind.channel, inet(0)))
        return destination

    async def go(self, qemu: Qemu, kind: Kind) -> Json:
        """Returns what the source tells at the end."""
        source = self.home
        destination = await self.destination(qemu, kind)
        before = await settings(destination)
        assert self.where
        try:
            if self.where.base == STOCK:
                # QEMU 7.2 with TCG loses writes of a guest that runs meanwhile, on its
                # way to another 7.2 as well.
                await source.execute("stop")
            info = await self._move(source, destination, kind)
            if kind.channel != LEGACY:
                require_agreement(kind, info["handshake"], await destination.handshake())
                # What was taken for one migration has been given back.
                assert await settings(destination) == before
        except BaseException:
            await self.close()      # nobody knows where it is
            raise
        self._homes.append(destination)
        self.where = qemu
        await source.stop()
        await self.require_well()
        await restore(destination, kind)
        return info

    async def _move(self, source: Machine, destination: Machine, kind: Kind) -> Json:
        await prepare(source, kind)
        if kind.tls:
            await self._set_tls(source, "client")
        if kind.channel == LEGACY:
            port = (await address_of(destination))["port"]
            await source.execute("migrate", {"uri": f"tcp:{LOOPBACK}:{port}"})
        else:
            await begin(source, await address_of(destination), kind.options, kind.channel)
        if kind.postcopy:
            await wait_status(source, "active")
            await source.execute("migrate-start-postcopy")
            # Once there is little left for the bandwidth, there is no postcopy.
            await until(f"postcopy of {source.name}", PATIENCE, lambda: in_postcopy(source))
            await source.execute("migrate-set-parameters", {"max-bandwidth": FAST})
        info = await end(source)
        assert info["status"] == "completed", info
        assert (info["ram"]["postcopy-bytes"] > 0) == kind.postcopy, info["ram"]
        assert (info["ram"]["multifd-bytes"] > 0) == kind.multifd, info["ram"]
        assert not await source.is_running()
        if self.where and self.where.base == STOCK:
            # A guest that was paused is paused once it is loaded, whatever was said before.
            await end(destination)
            await destination.execute("cont")
        await wait_running(destination)
        return info

    async def refused(self, qemu: Qemu, kind: Kind) -> Json:
        """The guest runs on where it is, and the destination waits for the next one."""
        source = self.home
        destination = await self.destination(qemu, kind)
        await prepare(source, kind)
        await begin(source, await address_of(destination), kind.options)
        info = await end(source)
        assert info["status"] == "failed", info
        assert await source.is_running()
        said = await destination.migration()
        assert said["status"] == "setup" and said["socket-address"], said
        await destination.stop()
        await restore(source, kind)
        await self.require_well()
        return info


async def configure(machine: Machine, kind: Kind) -> None:
    await set_capabilities(machine, *kind.required)
    if kind.multifd:
        await set_channels(machine, CHANNELS)


async def prepare(source: Machine, kind: Kind) -> None:
    await configure(source, kind)
    # A guest with little left for the bandwidth that was measured would not wait for postcopy.
    await source.execute("migrate-set-parameters", {
        "max-bandwidth": SLOW if kind.postcopy else FAST,
        "downtime-limit": 1 if kind.postcopy else DOWNTIME_LIMIT})


async def restore(machine: Machine, kind: Kind) -> None:
    """For the next migration from here."""
    await set_capabilities(machine, *kind.required, state=False)
    if kind.tls:
        await machine.execute("migrate-set-parameters", {"tls-creds": ""})
        await machine.execute("object-del", {"id": TLS_CREDS})


def require_agreement(kind: Kind, source: Json, destination: Json) -> None:
    expected = ({"multifd-channels": CHANNELS, "multifd-compression": "none"}
                if kind.multifd else {})
    for info in (source, destination):
        assert info["status"] == "accepted", info
        assert set(info["capabilities"]) == kind.effective, info
        assert not info["issues"], info
    assert [one["capability"] for one in source["declined"]] == list(kind.declined), source
    assert destination["parameters"] == expected, destination


class RealGuest(Journey):
    """The demo's guest, which knows what each word of its memory has to be."""

    accelerator = "tcg"
    _built: Optional[str] = None

    @classmethod
    def built(cls) -> str:
        if not cls._built:
            done = subprocess.run([TOP / "scripts/demo-guest/build"], stdout=subprocess.PIPE,
                                  text=True, check=True, stdin=subprocess.DEVNULL)
            cls._built = done.stdout.strip()
        return cls._built

    def command(self, qemu: Qemu) -> list[str]:
        return qemu_command(str(qemu.path), f"{self.built()}/vmlinuz",
                            f"{self.built()}/initramfs", GUEST_MIB)

    async def wait_born(self, machine: Machine) -> None:
        await self._wait_rounds(machine, 1, BOOT_LIMITS["tcg"])

    async def require_well(self) -> None:
        """A round that began here, and all that the guest has said since it was booted."""
        await self._wait_rounds(self.home, len(Console(self.home.console).rounds) + 2,
                                ROUNDS_LIMIT)
        life = Console("".join(home.console for home in self.homes))
        assert life.is_sound, life.said

    @staticmethod
    async def _wait_rounds(machine: Machine, count: int, limit: float) -> None:
        async def played() -> bool:
            return len(Console(machine.console).rounds) >= count

        await until(f"the guest to play at {machine.name}", limit, played)


WORDS = {0x100000 + number * 0x180000: 0x5a00000000000001 * (2 * number + 1) & (1 << 64) - 1
         for number in range(4)}


class Still(Journey):
    """A machine with devices, and some words in its memory, whose processors do nothing."""

    devices: Sequence[str] = (
        "-m", "16", "-device", "VGA,romfile=", "-device", "virtio-net-pci,romfile=",
        "-device", "virtio-balloon-pci", "-device", "virtio-serial-pci",
        "-device", "virtio-scsi-pci", "-blockdev", "null-co,node-name=disk,read-zeroes=on",
        "-device", "scsi-hd,drive=disk", "-device", "e1000,romfile=",
        "-device", "nec-usb-xhci", "-device", "usb-tablet")

    def command(self, qemu: Qemu) -> list[str]:
        return [str(qemu.path), "-nodefaults", "-display", "none", *self.devices]

    async def start(self, qemu: Qemu, *options: str) -> Machine:
        # Only the first one is given what the others have to receive.
        if "-incoming" not in options:
            options = (*options, *(text for address, word in WORDS.items() for text in (
                "-device", f"loader,addr={address:#x},data={word:#x},data-len=8")))
        return await super().start(qemu, *options)

    async def wait_born(self, machine: Machine) -> None:
        await wait_running(machine)

    async def require_well(self) -> None:
        for address, word in WORDS.items():
            said = await self.home.execute("human-monitor-command",
                                           {"command-line": f"xp /1gx {address:#x}"})
            assert f"{word:#018x}" in said, said
