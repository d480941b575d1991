# SPDX-License-Identifier: GPL-2.0-or-later
"""How long libvirt takes to set up a migration, with the handshake and without.

Counts what it says to both QEMUs, and takes the time from when its job begins to when QEMU
begins the migration stream, by their own clocks. The kinds take turns, so that a machine
that gets slower is slower for all of them.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import re
import sys
from pathlib import Path
from statistics import median
from typing import NamedTuple

TOP = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(TOP / "tests"), str(TOP / "tests/libvirt")]

# pylint: disable=wrong-import-position
from daemons import Installation, fetched       # noqa: E402
from emulators import PATCHED, STOCK, emulator  # noqa: E402
from lab import P2P_TCP, PARALLEL, TLS, Lab, Way, laboratory    # noqa: E402

FILTERS = "2:qemu.qemu_monitor 1:qemu.qemu_migration"
JOB = re.compile(r"(\S+ \S+)\+0000: \d+: debug : qemuMigrationSrcPerform:")
STREAM = re.compile(r"\d+@([\d.]+):savevm_state_header")
TRACE = ("-trace", "savevm_state_header")
WAYS = (P2P_TCP, PARALLEL, TLS)


class Kind(NamedTuple):
    name: str
    libvirt: str
    qemu: str


UNCHANGED = Kind("unchanged libvirt", "unchanged", PATCHED)
FALLEN_BACK = Kind("with the series, stock QEMU", "series", STOCK)
HANDSHAKE = Kind("with the series, handshake", "series", PATCHED)
BEFORE = Kind("another build, handshake", "before", PATCHED)        # if it is asked for


class Sample(NamedTuple):
    source: int             # commands from the job's begin to the stream
    destination: int        # about the migration, before the stream
    after: int              # and after it
    spent: float            # ms, waiting for the destination's answers to those before
    migrate: float          # ms from the job's begin to 'migrate'
    stream: float           # ms to the stream


def job_begin(lab: Lab) -> float:
    """Of the last migration from A."""
    found = JOB.findall(lab.a.log.read_text(errors="replace"))
    return datetime.datetime.fromisoformat(found[-1] + "+00:00").timestamp()


def measure(lab: Lab, kind: Kind, way: Way) -> Sample:
    with lab.guest(emulator(kind.qemu), TRACE) as guest:
        result = lab.migrate(guest, way)
        assert result.ok, result
        statuses = {info and info["status"] for info in lab.handshakes(guest).values()}
        assert statuses == {"accepted" if kind in (HANDSHAKE, BEFORE) else None}, statuses
        begin = job_begin(lab)
        stream = float(STREAM.findall(lab.a.qemu_log(guest.name).read_text())[-1])
        source = [one for one in lab.conversation(guest, lab.a).commands()
                  if begin <= one.time < stream]
        about = [one for one in lab.conversation(guest, lab.b).commands_once_started()
                 if "migrat" in one.name and one.name != "query-migrate"]
        before = [one for one in about if one.time < stream]
        spent = sum(one.took or 0 for one in before)
        migrate = next(one.time for one in source if one.name == "migrate")
        return Sample(len(source), len(before), len(about) - len(before), 1000 * spent,
                      1000 * (migrate - begin), 1000 * (stream - begin))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--runs", type=int, default=11)
    parser.add_argument("--before", type=Path, metavar="DIR",
                        help="another build of the series, to compare with in the same run")
    arguments = parser.parse_args()
    kinds = [UNCHANGED, FALLEN_BACK, HANDSHAKE]
    with contextlib.ExitStack() as stack:
        labs = {"series": stack.enter_context(
                    laboratory(Installation(TOP / "build/libvirt"), filters=FILTERS)),
                "unchanged": stack.enter_context(laboratory(fetched(), filters=FILTERS))}
        if arguments.before:
            kinds.append(BEFORE)
            labs["before"] = stack.enter_context(
                laboratory(Installation(arguments.before), filters=FILTERS))
        for way in WAYS:
            samples: dict[Kind, list[Sample]] = {kind: [] for kind in kinds}
            for kind in kinds:
                measure(labs[kind.libvirt], kind, way)      # QEMU's files are in memory then
            for _ in range(arguments.runs):
                for kind in kinds:
                    samples[kind].append(measure(labs[kind.libvirt], kind, way))
            show(way, samples)


def show(way: Way, samples: dict[Kind, list[Sample]]) -> None:
    print(f"{way.name}, {len(samples[UNCHANGED])} runs each, medians\n"
          f"{'':27} {'commands on the':>26} {'ms for the':>13} {'ms until':>9} {'ms until':>10}\n"
          f"{'':27} {'source':>6} {'destination':>12} {'after':>6} {'destination':>13}"
          f" {'migrate':>9} {'the stream':>10} {'ratio':>6}")
    base = median(one.stream for one in samples[FALLEN_BACK])
    for kind, found in samples.items():
        middle = Sample(*(median(values) for values in zip(*found)))
        print(f"{kind.name:27} {middle.source:6.0f} {middle.destination:12.0f} "
              f"{middle.after:6.0f} {middle.spent:13.0f} {middle.migrate:9.0f} "
              f"{middle.stream:10.1f} {middle.stream / base:6.3f}")
    print(flush=True)


if __name__ == "__main__":
    main()
