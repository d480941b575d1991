# SPDX-License-Identifier: GPL-2.0-or-later
"""Measure what the handshake gains and what it costs.

A running guest with random RAM is migrated over loopback, in several modes by
turns; then a tiny one over a way that is long. All samples, and what is made of
them, go to a JSON file, and from there to the screen and into a chart.
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
from pathlib import Path
from typing import Optional

import chart
import report
from guest import life_of_guest, qemu_command, run, working_guest
from links import RTT_MS, Loopback, NoLongWay, long_way
from machine import Json, Lab, NotSeen
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
}


async def take_turns(shuttle: Shuttle, modes: dict[str, Mode], runs: int,
                     shown: str) -> Json:
    """The samples, as a list for each mode and measure. The first round warms up.

    Shows one of the measures as it comes.
    """
    say(f"{'round':8}" + "".join(f"{name:>21}" for name in modes))
    rounds: list[Json] = []
    for order in by_turns(list(modes), runs + 1):
        samples = {name: await shuttle.move(modes[name]) for name in order}
        rounds.append({"order": order, "samples": samples})
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


async def measure_loopback(lab: Lab, runs: int, ram_mib: int) -> Json:
    heading(f"1. A guest with {ram_mib} MiB of random RAM, over loopback: from `migrate` to"
            " completed and running there")
    machine = ("-machine", "q35,memory-backend=ram", "-object")
    size = f"id=ram,size={ram_mib}M"
    with tempfile.TemporaryDirectory(prefix="handshake-bench-", dir=room_for(ram_mib)) as directory:
        path = random_file(directory, ram_mib)
        home = await working_guest(lab, *machine, f"memory-backend-file,{size},share=off,mem-path={path}")
    # Page faults are most of the noise, above all in a virtual machine that gives
    # memory back to its host: the destination's RAM is there before.
    say("It runs, and moves to and fro. The destination's RAM is allocated before.")
    shuttle = Shuttle(lab, Loopback(), home, *machine, f"memory-backend-ram,prealloc=on,{size}")
    data = await take_turns(shuttle, LOOPBACK_MODES, runs, "wall")
    if not life_of_guest(*shuttle.homes).is_sound:
        raise NotSeen("the guest's memory is not what it was")
    say(f"The guest moved {len(shuttle.homes) - 1} times, and finds its memory as it wrote it.")
    zero = max(max(samples["zero-mib"]) for samples in data["samples"].values())
    say(f"At most {zero:.0f} MiB of it were zero pages.")
    if zero > MOST_ZERO_MIB:
        raise NotSeen(f"RAM that is random: {zero:.0f} MiB of it are zero pages")
    version = await shuttle.homes[-1].execute("query-version")
    return {**data, "ram-mib": ram_mib, "destination-ram": "preallocated", "accelerator": lab.accelerator,
            "qemu": "{major}.{minor}.{micro}".format(**version["qemu"]) + version["package"]}


### A tiny one, a long way

async def measure_long_way(lab: Lab, runs: int) -> Json:
    heading(f"2. A tiny guest, over a round trip of {RTT_MS} ms: from `migrate` to active")
    machine = ("-machine", "q35")
    with long_way() as (link, why_not_netem):
        if why_not_netem:
            say(f"There is no netem here ({why_not_netem}).")
        say(f"The way is {link.what}.")
        home = await lab.start("home-0", *machine, under=link.under(0))
        data = await take_turns(Shuttle(lab, link, home, *machine), LONG_WAY_MODES, runs,
                                "until-active")
    return {**data, "ram-mib": TINY_MIB, "rtt": RTT_MS, "link": link.name, "way": link.what,
            "why-not-netem": why_not_netem}


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

    begin, (busy, ours) = time.monotonic(), processor_seconds()
    guest = qemu_command(options.qemu, options.kernel, options.initramfs, options.ram)
    tiny = [options.qemu, "-nodefaults", "-display", "none", "-m", f"{TINY_MIB}M"]
    if not run("bench", guest, options.accelerator, near) or \
            not run("bench", tiny, data["loopback"]["accelerator"], far):
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
