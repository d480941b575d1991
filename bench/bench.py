# SPDX-License-Identifier: GPL-2.0-or-later
"""Measure what the handshake gains and what it costs.

A running guest with random RAM is migrated over loopback, in several modes by
turns; then a tiny one over a way that is long; and on demand all of that is done
by an earlier build as well. All samples, and what is made of them, go to a JSON
file, and from there to the screen and into a chart.
"""

from __future__ import annotations

import argparse
import os
import platform
import resource
import shutil
import sys
import tempfile
import time
from datetime import datetime, timezone
from functools import partial
from pathlib import Path
from typing import Optional

import before
import chart
import report
from guest import life_of_guest, qemu_command, run, working_guest
from links import RTT_MS, Loopback, NoLongWay, long_way
from machine import Json, Lab, Machine, NotSeen
from measure import Mode, Shuttle, by_turns
from show import heading, say

RUNS, FEWEST_RUNS, RAM_MIB, TINY_MIB = 20, 7, 1024, 16
# Linux zeroes the little that it uses, and video RAM is empty.
MOST_ZERO_MIB = 100

RETURN_PATH = frozenset({"return-path"})
MULTIFD = frozenset({"multifd"})

LOOPBACK_MODES = {
    "legacy": Mode("main"),
    "legacy + return-path": Mode("main", RETURN_PATH),
    "multifd by hand": Mode("main", MULTIFD),
    "handshake": Mode("handshake", agreed=RETURN_PATH | MULTIFD | {"switchover-ack"}),
}
LONG_WAY_MODES = {
    "legacy": Mode("main", RETURN_PATH),
    "handshake": Mode("handshake", agreed=RETURN_PATH, optional=()),
    "legacy + multifd": Mode("main", RETURN_PATH | MULTIFD),
    "handshake + multifd": Mode("handshake", agreed=RETURN_PATH | MULTIFD, optional=("multifd",)),
    "legacy -S": Mode("main", RETURN_PATH, paused=True),
    "handshake -S": Mode("handshake", agreed=RETURN_PATH, optional=(), paused=True),
}


async def take_turns(modes: dict[str, before.Take], runs: int, shown: str = "") -> Json:
    """The samples, as a list for each mode and measure. The first round warms up.

    Shows one of the measures as it comes, if any.
    """
    if shown:
        say(f"{'round':8}" + "".join(f"{name:>21}" for name in modes))
    rounds: list[Json] = []
    for order in by_turns(list(modes), runs + 1):
        samples = {name: await modes[name]() for name in order}
        rounds.append({"order": order, "samples": samples})
        if shown:
            say(f"{len(rounds) - 1 or 'warm-up':<8}"
                + "".join(f"{samples[name][shown]:18.0f} ms" for name in modes))
    return {"orders": [one["order"] for one in rounds], "warm-up": rounds[0]["samples"],
            "samples": {name: {measure: [one["samples"][name][measure] for one in rounds[1:]]
                               for measure in rounds[0]["samples"][name]} for name in modes}}


### One guest, no distance

def random_file(directory: str, mib: int) -> str:
    path = os.path.join(directory, "ram")
    with open(path, "wb") as ram:
        for _ in range(mib):
            ram.write(os.urandom(1 << 20))
    return path


def room_for(mib: int) -> Optional[str]:
    """Memory, if there is room; if there is not, where temporary files go."""
    shm = "/dev/shm"
    return shm if os.path.isdir(shm) and shutil.disk_usage(shm).free > 2 * mib << 20 else None


def moves(shuttle: Shuttle, modes: dict[str, Mode]) -> dict[str, before.Take]:
    return {name: partial(shuttle.move, mode) for name, mode in modes.items()}


async def busy_shuttle(lab: Lab, ram_mib: int) -> Shuttle:
    """Of a guest that runs. The RAM of its destinations is allocated before it moves there.

    Page faults are most of the noise, above all in a virtual machine that gives memory back
    to its host.
    """
    machine = ("-machine", "q35,memory-backend=ram", "-object")
    size = f"id=ram,size={ram_mib}M"
    with tempfile.TemporaryDirectory(prefix="handshake-bench-", dir=room_for(ram_mib)) as directory:
        path = random_file(directory, ram_mib)
        home = await working_guest(lab, *machine, f"memory-backend-file,{size},share=off,mem-path={path}")
    return Shuttle(lab, Loopback(), home, *machine, f"memory-backend-ram,prealloc=on,{size}")


def require_sound(shuttle: Shuttle) -> None:
    if not life_of_guest(*shuttle.homes).is_sound:
        raise NotSeen("the guest's memory is not what it was")
    say(f"The guest moved {len(shuttle.homes) - 1} times, and finds its memory as it wrote it.")


async def qemu_version(machine: Machine) -> str:
    version = await machine.execute("query-version")
    return "{major}.{minor}.{micro}".format(**version["qemu"]) + version["package"]


async def measure_loopback(lab: Lab, runs: int, ram_mib: int) -> Json:
    heading(f"1. A guest with {ram_mib} MiB of random RAM, over loopback: from `migrate` to"
            " completed and running there")
    shuttle = await busy_shuttle(lab, ram_mib)
    say("It runs, and moves to and fro. The destination's RAM is allocated before.")
    data = await take_turns(moves(shuttle, LOOPBACK_MODES), runs, "wall")
    require_sound(shuttle)
    zero = max(max(samples["zero-mib"]) for samples in data["samples"].values())
    say(f"At most {zero:.0f} MiB of it were zero pages.")
    if zero > MOST_ZERO_MIB:
        raise NotSeen(f"RAM that is random: {zero:.0f} MiB of it are zero pages")
    return {**data, "ram-mib": ram_mib, "destination-ram": "preallocated", "accelerator": lab.accelerator,
            "qemu": await qemu_version(shuttle.homes[-1])}


### A tiny one, a long way

async def measure_long_way(lab: Lab, runs: int) -> Json:
    heading(f"2. A tiny guest, over a round trip of {RTT_MS} ms: from `migrate` to active")
    machine = ("-machine", "q35")
    with long_way() as (link, why_not_netem):
        if why_not_netem:
            say(f"There is no netem here ({why_not_netem}).")
        say(f"The way is {link.what}.")
        home = await lab.start("home-0", *machine, under=link.under(0))
        data = await take_turns(moves(Shuttle(lab, link, home, *machine), LONG_WAY_MODES), runs,
                                "until-active")
    return {**data, "ram-mib": TINY_MIB, "rtt": RTT_MS, "link": link.name, "way": link.what,
            "why-not-netem": why_not_netem}


### The build before

async def measure_moves_before(labs: dict[str, Lab], runs: int, ram_mib: int) -> Json:
    heading(f"3. Beside the build before: the guest with {ram_mib} MiB, as the handshake chooses")
    shuttles = {}
    for build, lab in labs.items():
        shuttles[build] = await busy_shuttle(lab, ram_mib)
        await shuttles[build].homes[-1].execute("stop")
    data = await take_turns(before.moves(shuttles, LOOPBACK_MODES["handshake"]), runs, "total-time")
    for shuttle in shuttles.values():
        require_sound(shuttle)
    return {**data, "qemu": await qemu_version(shuttles[before.BEFORE].homes[-1])}


async def measure_ends_before(labs: dict[str, Lab], runs: int) -> Json:
    count = runs * before.ENDS_PER_RUN
    say(f"{count} moves of a tiny guest to a destination with -S")
    shuttles = {build: await before.tiny_shuttle(lab) for build, lab in labs.items()}
    data = await take_turns(before.moves(shuttles, LONG_WAY_MODES["handshake -S"]), count)
    del data["orders"]
    return data


async def measure_checks_before(labs: dict[str, Lab], runs: int) -> Json:
    count = runs * before.CHECKS_PER_RUN
    say(f"{count} handshakes without further channels, of a q35 with ten virtio devices")
    data = await take_turns(await before.checks(labs), count)
    del data["orders"]      # a great many, and one like the other
    return data


### All of it

def machine_facts() -> Json:
    cpu = [line.split(":", 1)[1].strip()
           for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {"cores": len(os.sched_getaffinity(0)), "cpu": cpu[0] if cpu else platform.machine(),
            "memory-mib": memory >> 20, "kernel": platform.release()}


def processor_seconds() -> tuple[float, float]:
    """Of the whole machine, what its host took away included; and of ours."""
    ticks = [int(field) for field in Path("/proc/stat").read_text().split(maxsplit=9)[1:9]]
    busy = sum(ticks) - sum(ticks[3:5])  # idle, and idle with I/O under way
    ours = sum(sum(resource.getrusage(whose)[:2])
               for whose in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return busy / os.sysconf("SC_CLK_TCK"), ours


def main() -> int:
    parser = argparse.ArgumentParser(prog="bench", description=__doc__)
    parser.add_argument("-n", "--runs", type=int, default=RUNS, metavar="N",
                        help=f"of each mode; {RUNS} by default")
    parser.add_argument("--ram", type=int, default=RAM_MIB, metavar="MIB",
                        help=f"of the guest; {RAM_MIB} MiB by default")
    parser.add_argument("--before", metavar="FILE",
                        help="an earlier qemu-system-x86_64, to be compared with")
    parser.add_argument("--base", required=True, help=argparse.SUPPRESS)
    parser.add_argument("--record", type=Path, required=True, help=argparse.SUPPRESS)
    parser.add_argument("--trial", type=Path, required=True, help=argparse.SUPPRESS)
    for name in ("qemu", "accelerator", "kernel", "initramfs"):
        parser.add_argument(name, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.runs < 1 or options.ram < 256:
        parser.error("it takes at least 1 run and 256 MiB")

    data: Json = {"base": options.base, "date": f"{datetime.now(timezone.utc):%Y-%m-%d}",
                  "runs": options.runs, "judged": options.runs >= FEWEST_RUNS and options.ram >= RAM_MIB,
                  "machine": machine_facts()}

    async def near(lab: Lab) -> None:
        data["loopback"] = await measure_loopback(lab, options.runs, options.ram)

    async def far(lab: Lab) -> None:
        try:
            data["long-way"] = await measure_long_way(lab, options.runs)
        except NoLongWay as why:
            say(f"There is {why}: this part is skipped.")
            data.update({"long-way": None, "why-no-long-way": str(why)})

    def guest(qemu: str) -> list[str]:
        return qemu_command(qemu, options.kernel, options.initramfs, options.ram)

    def tiny(qemu: str) -> list[str]:
        return [qemu, "-nodefaults", "-display", "none", "-m", f"{TINY_MIB}M"]

    async def moves_before(lab: Lab) -> None:
        async with Lab(guest(options.before), lab.accelerator) as other:
            data["before"] = {"moves": await measure_moves_before(
                {before.NOW: lab, before.BEFORE: other}, options.runs, options.ram)}

    async def checks_before(lab: Lab) -> None:
        async with Lab(tiny(options.before), lab.accelerator) as other:
            labs = {before.NOW: lab, before.BEFORE: other}
            data["before"]["ends"] = await measure_ends_before(labs, options.runs)
            data["before"]["checks"] = await measure_checks_before(labs, options.runs)

    begin, (busy, ours) = time.monotonic(), processor_seconds()
    parts = [(guest, near), (tiny, far)]
    if options.before:
        parts += [(guest, moves_before), (tiny, checks_before)]
    for command, part in parts:
        accelerator = data.get("loopback", {}).get("accelerator", options.accelerator)
        if not run("bench", command(options.qemu), accelerator, part):
            return 1
    busy_then, ours_then = processor_seconds()
    data["machine"]["cores-used-by-others"] = max(
        0, (busy_then - busy - ours_then + ours) / (time.monotonic() - begin))
    report.conclude(data)
    report.show(data)
    where = options.record if data["judged"] else options.trial
    chart.keep(data, where / options.base)
    return 0 if report.all_kept(data) else 1


if __name__ == "__main__":
    sys.exit(main())
