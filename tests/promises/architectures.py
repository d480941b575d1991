# SPDX-License-Identifier: GPL-2.0-or-later
"""Machines of other architectures than x86, and single differences between two of them.

There is no operating system in them: the CPUs of two run a loop, that of s390x has not
been started. What a loader refuses, it refuses all the same.
"""

from __future__ import annotations

import re
import struct
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, Optional

from conftest import QEMU, TOP
from machine import Json

# Where the table goes; docs/architectures.rst is one of these.
PATH = TOP / "build/architectures.rst"

LATE = "fails after RAM"
LIVES = "completes"
SEVERITIES = ("nothing", "warning", "error")

# add x0, x0, #1; b .-4
ARM_LOOP = struct.pack("<2I", 0x91000400, 0x17ffffff)
# The same, where the machine's firmware begins.
PPC_LOOP = bytes(0x100) + struct.pack(">2I", 0x38630001, 0x4bfffffc)


class Architecture(NamedTuple):
    """A machine of it, and how its CPU gets something to do."""

    name: str
    machine: str
    program: bytes = b""
    run: str = "-S"         # FILE is where the program is

    @property
    def qemu(self) -> Path:
        return QEMU.with_name(f"qemu-system-{self.name}")

    def command(self) -> list[str]:
        return [str(self.qemu), "-nodefaults", "-display", "none", *self.machine.split()]

    def options(self, directory: Path) -> list[str]:
        path = directory / "program"
        path.write_bytes(self.program)
        return self.run.replace("FILE", str(path)).split()


ARM = Architecture("aarch64", "-machine virt,gic-version=3 -m 64", ARM_LOOP,
                   "-device loader,file=FILE,addr=0x40080000,cpu-num=0,force-raw=on")
S390X = Architecture("s390x", "-machine s390-ccw-virtio -m 64")
PPC64 = Architecture("ppc64", "-machine pseries,vsmt=8 -m 256 -machine cap-cfpc=broken,"
                     "cap-sbbc=broken,cap-ibs=broken,cap-ccf-assist=off", PPC_LOOP, "-bios FILE")
ARCHITECTURES = (ARM, S390X, PPC64)


class Difference(NamedTuple):
    """What is other on the destination, what the handshake says of it, and what comes of it."""

    architecture: Architecture
    source: str
    destination: str
    severity: str           # "" if there is nothing to be said
    code: str
    words: str              # a regular expression
    main: str


ROWS: Sequence[Difference] = ()


class Seen:
    """Of one row; what was not looked at is None."""

    issues: Optional[list[Json]] = None
    main: Optional[str] = None
    main_text = ""


HEAD = """\
.. SPDX-License-Identifier: GPL-2.0-or-later
.. Written by tests/promises/test_architectures.py, from what it has seen; not to be edited.

What is found on other architectures
====================================

Each row is one thing that is other on the destination than on the source, in machines
that are otherwise the same and emulated by TCG: ``virt`` of aarch64, ``s390-ccw-virtio``,
``pseries`` of ppc64. No operating system runs in them: CPUs of aarch64 and ppc64 run a loop,
that of s390x has not been started. *Over main* says whether the loader takes what comes, not
what a guest would make of it: one that uses a feature of its CPU that is gone dies later, as
on x86 (see ``promises.rst``). *Handshake* is what it says before RAM is sent.

"""


def write_table(found: dict[Difference, Seen]) -> None:
    """Of those that both tests have looked at."""
    whole = [(row, found[row]) for row in ROWS if row in found and found[row].issues is not None
             and found[row].main]
    lines = [HEAD + f"Seen on {time.strftime('%Y-%m-%d')}.", "",
             ".. list-table::", "   :header-rows: 1", "   :widths: 8 18 18 12 10 34", ""]
    for cells in (("Machine", "Source", "Destination", "Over main", "Handshake", "Its words"),
                  *(_cells(row, seen) for row, seen in whole)):
        lines += [("   * - " if i == 0 else "     - ") + cell for i, cell in enumerate(cells)]
    PATH.parent.mkdir(parents=True, exist_ok=True)
    PATH.write_text("\n".join(lines) + "\n")


def _cells(row: Difference, seen: Seen) -> tuple[str, ...]:
    issues = seen.issues or []
    told = [one for one in issues if one["code"] == row.code and re.search(row.words, one["message"])]
    severity = max((one["severity"] for one in issues), default="nothing", key=SEVERITIES.index)
    return (row.architecture.name, f"``{row.source or '-'}``", f"``{row.destination or '-'}``",
            seen.main or "", severity, told[0]["message"] if told else "-")
