#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""Who runs a guest in the end if a daemon or a QEMU is killed while it is handed over.

Usage: libvirt_owner.py [--runs N] [--moment NAME]. Takes root, and what bench-libvirt builds.

There are sixteen cases: Finish, Confirm and a moment before each, and two daemons and two QEMUs;
once with a handshake and once without. A daemon that was killed is started again. This is a record
and no test: what libvirt makes of it depends on how far it had got, and it does not promise that
there is one owner, unless a lock manager is used. tests/libvirt/test_killed.py has what is certain.
"""

from __future__ import annotations

import argparse
import collections
import sys
from pathlib import Path

TOP = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(TOP / "tests"), str(TOP / "tests/libvirt")]

# pylint: disable=wrong-import-position
import conftest  # noqa: E402,F401  pylint: disable=unused-import
from daemons import Installation  # noqa: E402
from emulators import PATCHED, STOCK  # noqa: E402
from lab import Lab, laboratory  # noqa: E402
from owner import FILTERS, MOMENTS, VICTIMS, Moment, owners  # noqa: E402


def outcome(lab: Lab, moment: Moment, victim: str, kind: str) -> str:
    states = owners(lab, moment, victim, kind)
    return ", ".join(f"{state} on {name}" for name, state in states.items() if state) or "lost"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--moment", choices=MOMENTS, help="only this one")
    arguments = parser.parse_args()
    with laboratory(Installation(TOP / "build/libvirt"), filters=FILTERS) as lab:
        for name, moment in MOMENTS.items():
            if arguments.moment not in (None, name):
                continue
            for victim in VICTIMS:
                for kind in (PATCHED, STOCK):
                    found = collections.Counter(outcome(lab, moment, victim, kind)
                                                for _ in range(arguments.runs))
                    print(f"{name}, {victim} killed, {kind} QEMU: " + "; ".join(
                        f"{text} ({number})" for text, number in found.most_common()), flush=True)


if __name__ == "__main__":
    main()
