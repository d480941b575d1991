#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""How long it takes to ask libvirt whether a guest can migrate, and what of that is libvirt's own
Prepare and Finish.

Usage: libvirt_check.py [--runs N]. Takes root, and what bench-libvirt builds.
"""

from __future__ import annotations

import argparse
import datetime
import re
import statistics
import sys
import time
from pathlib import Path

TOP = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(TOP / "tests"), str(TOP / "tests/libvirt")]

# pylint: disable=wrong-import-position
import conftest  # noqa: E402,F401  pylint: disable=unused-import
from daemons import Installation  # noqa: E402
from emulators import PATCHED, emulator  # noqa: E402
from lab import P2P_TCP, Lab, laboratory  # noqa: E402

FILTERS = "2:qemu.qemu_monitor 1:qemu.qemu_migration"
PHASE = re.compile(r"^(\S+ \S+)\+0000: .*qemuMigrationSrcPerformPeer2Peer3:\d+ : "
                   r"(Prepare|Perform|Finish|Confirm)3 ")
DEVICES = [word for number in range(10) for word in ("-device", f"virtio-rng-pci,id=r{number}")]


def phases(log: Path) -> dict[str, float]:
    """When each phase of the last one began."""
    found = {}
    for line in log.read_text(errors="replace").splitlines():
        if parts := PHASE.match(line):
            found[parts[2]] = datetime.datetime.fromisoformat(parts[1]).timestamp()
    return found


def measure(lab: Lab, runs: int) -> None:
    totals, own, ratios = [], [], []
    with lab.guest(emulator(PATCHED), DEVICES) as guest:
        for run in range(runs + 1):
            begin = time.monotonic()
            assert lab.check(guest, P2P_TCP).ok
            total = time.monotonic() - begin
            at = phases(lab.a.log)
            phase = at["Perform"] - at["Prepare"] + at["Confirm"] - at["Finish"]
            inside = at["Confirm"] - at["Prepare"]
            if run:         # after one for the files
                totals.append(total)
                own.append(phase)
                ratios.append(inside / phase)
    print(f"ten devices, p2p, tcp, {runs} runs, medians: virsh {statistics.median(totals):.3f} s, "
          f"Prepare and Finish {statistics.median(own):.3f} s, the whole check is "
          f"{statistics.median(ratios):.3f} times of that")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--runs", type=int, default=9)
    with laboratory(Installation(TOP / "build/libvirt"), filters=FILTERS) as lab:
        measure(lab, parser.parse_args().runs)


if __name__ == "__main__":
    main()
