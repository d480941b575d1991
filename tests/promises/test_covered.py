# SPDX-License-Identifier: GPL-2.0-or-later
"""Every device with a state is covered, or stands in docs/promises-devices.rst with the reason."""

from __future__ import annotations

import json
import re
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from conftest import QEMU, TOP
from devices import known
from machine import Lab, Machine

PAGE = TOP / "docs/promises-devices.rst"
COMPARED = ("by numbers", "disks", "type", "nothing more", "refused")

# One of each kind that the table calls "by numbers", and its section.
BY_NUMBERS = {
    "hpet": "hpet", "vmmouse": "vmmouse", "isa-fdc": "fdc", "isa-vga": "vga",
    "virtio-vga": "virtio-vga", "sdhci-pci": "sdhci",
}
# And of those that it calls "type".
BY_TYPE = ("usb-kbd", "usb-mouse", "usb-tablet", "usb-hub", "usb-ccid", "hda-duplex", "isa-serial",
           "isa-parallel", "ne2k_isa", "ib700", "sb16", "gus", "cs4231a", "sd-card", "ipoctal232",
           "isa-cirrus-vga")
MORE = {"hda-duplex": ",audiodev=audio", "isa-parallel": ",chardev=null", "sb16": ",audiodev=audio",
        "gus": ",audiodev=audio", "cs4231a": ",audiodev=audio"}

Q35 = ("-machine q35 -device isa-fdc -device sdhci-pci -device virtio-vga -device virtio-scsi-pci"
       " -device scsi-cd -device qemu-xhci,p2=15 -device intel-hda -device tpci200"
       " -audiodev none,id=audio -chardev null,id=null")
PC = "-machine pc -device isa-vga"


def listed() -> Mapping[str, str]:
    """The devices of the table, and what it says is compared."""
    rows = re.findall(r"^   \* - (``.*?)\n     - (.*?)\n     - (\S.*?)(?=^   \* - |\Z)",
                      PAGE.read_text(), re.MULTILINE | re.DOTALL)
    found: dict[str, str] = {}
    for devices, compared, reason in rows:
        assert compared in COMPARED and reason.strip()
        for name in re.findall(r"``([^`]+)``", devices):
            assert name not in found, f"{name} is listed twice"
            found[name] = compared
    return found


def states() -> Mapping[str, Any]:
    """The devices of the binary that have a state, and its description."""
    with tempfile.TemporaryDirectory(prefix="migration-handshake-states-") as directory:
        path = Path(directory) / "states"
        subprocess.run([QEMU, "-machine", "q35", "-accel", "tcg", "-display", "none",
                        "-dump-vmstate", path], stdin=subprocess.DEVNULL, check=True)
        found: dict[str, Any] = json.loads(path.read_text())
    del found["vmschkmachine"]
    return found


def has_part(state: Any, name: str) -> bool:
    """Whether something in it is described by that name."""
    if isinstance(state, dict):
        return state.get("name") == name or any(has_part(part, name) for part in state.values())
    return isinstance(state, list) and any(has_part(part, name) for part in state)


def has_field(state: Any, name: str) -> bool:
    return any(field["field"] == name for field in state["Description"].get("Fields", []))


async def types(machine: Machine, parent: str) -> set[str]:
    return {one["name"] for one in await machine.execute(
        "qom-list-types", {"implements": parent, "abstract": True})}


@pytest.fixture(scope="module")
def described() -> Mapping[str, Any]:
    return states()


async def test_every_device(described: Mapping[str, Any]) -> None:
    """By the bus it stands on, or by a reason that somebody has written down."""
    async with Lab([str(QEMU), "-display", "none", "-machine", "none"], "tcg") as lab:
        machine = await lab.start("source", "-S")
        of_pci, of_virtio = await types(machine, "pci-device"), await types(machine, "virtio-device")
    assert len(described) > 150 and len(of_pci & set(described)) > 50
    covered = {name for name, state in described.items()
               if name in of_pci and has_part(state, "PCIDevice")
               or name in of_virtio and has_field(state, "virtio")}
    assert len(covered & of_virtio) > 10
    table = set(listed())
    assert not set(described) - covered - table, "they are neither covered nor listed"
    assert not covered & table, "they need no reason"


async def promises(lab: Lab, name: str, *options: str) -> list[tuple[str, Any]]:
    """Of each section, by the last part of its name."""
    machine = await lab.start(name, "-S", *options)
    profile = (await machine.execute("query-migrate-profile"))["profile"]
    return [(one["name"].split("/")[-1], one.get("promises", {})) for one in profile["sections"]]


async def test_table_is_true() -> None:
    """What it says is compared is, and where it says that nothing is, nothing is counted."""
    table = listed()
    there = [one for one in BY_TYPE if one in known(QEMU) and one != "isa-cirrus-vga"]
    devices = [word for one in there for word in ("-device", one + MORE.get(one, ""))]
    async with Lab([str(QEMU), "-nodefaults", "-display", "none"], "tcg") as lab:
        found = [*await promises(lab, "pc", *PC.split()),
                 *await promises(lab, "cirrus", "-machine", "pc", "-device", "isa-cirrus-vga"),
                 *await promises(lab, "q35", *Q35.split(), *devices)]
    for device, section in BY_NUMBERS.items():
        assert table[device] == "by numbers"
        assert any(name == section and {"counts", "values"} & set(one) for name, one in found), \
            f"nothing of {device} is counted"
    assert any(name == "scsi-disk" and one["disks"] for name, one in found)
    kinds = [(one["device-type"], set(one)) for _, one in found if "device-type" in one]
    told = {device for device, _ in kinds} | {section for section, _ in found}
    for device in (*there, "isa-cirrus-vga"):
        assert table[device] == "type" and device in told
    assert not [name for name, one in kinds
                if table.get(name) in ("type", "nothing more") and {"counts", "values"} & one]
