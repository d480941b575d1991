# SPDX-License-Identifier: GPL-2.0-or-later
"""Machines of other architectures than x86, and single differences between two of them.

There is no operating system in them: the CPUs of two run a loop, that of s390x has not
been started. What a loader refuses, it refuses all the same.
"""

from __future__ import annotations

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
