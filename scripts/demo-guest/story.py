# SPDX-License-Identifier: GPL-2.0-or-later
"""Migrate a running guest with the handshake, for a person to watch.

Usage: story.py QEMU ACCELERATOR KERNEL INITRAMFS

A Linux guest that keeps writing memory, and knows what it wrote, moves to
another QEMU; then somebody chooses a wrong machine type for the next move, once
without and once with the handshake. The exit status is 0 if everything that
the demo is about was seen to happen.
"""

from __future__ import annotations

import asyncio
import re
import sys
from collections.abc import Callable

import show
from guest import Board, board_of, has_moved, life_of_guest, qemu_command, rounds_more, run, working_guest
from machine import LOOPBACK, Console, Json, Lab, Machine, Relay
from migrations import (FACTS, PROMISED_BYTES, PROMISED_MS, Handshake, Refusal, check,
                        handshake_of, listen, migrate, require_completed)
from show import LABEL_WIDTH, Checklist, heading, mib, row, say, title_row

CHECKS = {
    "boot": "the guest runs and finds its memory as it wrote it",
    "agreed": "both sides accepted, and tell the same of it",
    "moved": "the guest stopped here and runs there",
    "intact": "no round was lost or played twice, no page is wrong",
    "legacy": "without: the source fails, the destination is gone",
    "refused": "with: refused as machine-type, with both values, before any stream",
    "listening": "with: the destination lives and listens",
    "undisturbed": "neither refusal stopped the guest",
    "retried": "the corrected retry moves the guest at once",
    "whole": "from boot to here: one guest, every round once, no page wrong",
    "fast": "the handshake kept its promises",
}
MEMORY_MIB = 512
CHECKS_MAX = 200
# So slow that a person can watch, yet faster than the guest writes.
WATCHABLE_BANDWIDTH = 40 << 20


def progress_printer() -> Callable[[float, Json], None]:
    """Shows a line about every half a second."""
    shown = 0.0
    say(f"{'time':>6}   {'status':10} {'sent':>11} {'left':>11} {'guest writes':>14}")

    def watch(seconds: float, info: Json) -> None:
        nonlocal shown
        ram = info.get("ram")
        if ram and (seconds >= shown + 0.5 or info["status"] == "completed"):
            shown = seconds
            # Known from the second pass over memory on.
            rate = ram["dirty-pages-rate"] * ram["page-size"]
            writes = mib(rate) + "/s" if rate else "-"
            say(f"{seconds:5.1f}s   {info['status']:10} {mib(ram['transferred']):>11} "
                f"{mib(ram['remaining']):>11} {writes:>14}")

    return watch


def raw_lines(machine: Machine) -> list[str]:
    """The console as it is: a move may cut a line in two."""
    return machine.console.replace("\r", "").splitlines()


### A mistake

async def accepts_connections(port: int) -> bool:
    try:
        _, writer = await asyncio.open_connection(LOOPBACK, port)
    except OSError:
        return False
    writer.close()
    return True


def complaints(stderr: str) -> str:
    lines = [re.sub(r"^[^ ]*qemu-system-[^ ]*: ", "", line) for line in stderr.splitlines()]
    return "; ".join(line for line in lines if not line.startswith("warning:"))


async def choose_wrong_machine(lab: Lab, source: Machine, kind: str, wrong: str) -> Refusal:
    destination = await lab.start(f"wrong-{kind}", "-machine", wrong, "-incoming", "defer")
    types = await source.machine_type(), await destination.machine_type()
    port = await listen(destination, kind)
    before = Console(source.console).last_round
    async with Relay(port) as wire:
        answer = await migrate(source, kind, wire.port)
    # What is bound to happen to the destination, or to the guest, has happened by then.
    await rounds_more(source, 2)
    refusal = Refusal(
        answer=answer, talk=wire.talk, types=types,
        rounds=(before, Console(source.console).last_round),
        guest_runs=await source.is_running(),
        listening=await accepts_connections(port),
        destination_exit=destination.exit_status,
        destination_stderr=complaints(destination.errors),
        handshake=await source.handshake() if kind == "handshake" else None)
    await destination.stop()
    return refusal


### The story

class Demo:
    def __init__(self, lab: Lab, checks: Checklist, board: Board):
        self.lab = lab
        self.board = board
        self.checks = checks
        self.handshakes: dict[str, Handshake] = {}

    async def tell(self) -> None:
        first = await self.boot()
        second = await self.move(first)
        await self.mistake(second)
        third = await self.retry(second)
        self.checks.record("whole", life_of_guest(first, second, third).is_sound)
        await self.speed(third)

    async def boot(self) -> Machine:
        heading("1. A guest that knows what its memory has to be")
        source = await working_guest(self.lab, "-machine", self.board.machine)
        version = (await source.execute("query-version"))["qemu"]
        say("QEMU {major}.{minor}.{micro}".format(**version)
            + f" ({self.lab.accelerator}), {await source.machine_type()}, {MEMORY_MIB} MiB."
              " Each second the guest")
        say("checks 64 MiB, every word of it, and writes a quarter of them anew.")
        lines = Console(source.console).said
        show.console(lines[:1] + lines[-2:])
        self.checks.record("boot", Console(source.console).is_sound)
        return source

    async def move(self, source: Machine) -> Machine:
        heading("2. It moves. The destination was given an address, and nothing else.")
        destination = await self.lab.start("destination", "-machine", self.board.machine,
                                           "-incoming", "defer")
        port = await listen(destination, "handshake")
        await source.execute("migrate-set-parameters", {"max-bandwidth": WATCHABLE_BANDWIDTH})
        answer = await migrate(source, "handshake", port, progress_printer())
        require_completed(answer)
        say(f"The guest stood still for {answer.info['downtime']} ms.")

        heading("   What the two said to each other before the first byte of the stream")
        handshake = await handshake_of(source, destination)
        self.handshakes["first move"] = handshake
        title_row("the source tells", "the destination tells")
        for label, fact in FACTS.items():
            row(label, fact(handshake.source), fact(handshake.destination))
        types = await source.machine_type(), await destination.machine_type()
        peers = (handshake.destination["peer"]["machine"], handshake.source["peer"]["machine"])
        self.checks.record("agreed", handshake.is_agreed and peers == types)

        heading("   The guest's console: the last of the source, the first of the destination")
        moved = await has_moved(source, destination)
        await rounds_more(destination, 3)
        show.console(raw_lines(source)[-3:])
        say("--")
        show.console(raw_lines(destination)[:3])
        self.checks.record("moved", moved)
        self.checks.record("intact", life_of_guest(source, destination).is_sound)
        await source.stop()
        return destination

    async def mistake(self, source: Machine) -> None:
        machine, other = self.board.machine, self.board.other
        heading(f"3. It shall move on, and somebody takes a {other} for the destination, not a {machine}.")
        without = await choose_wrong_machine(self.lab, source, "main", other)
        wrong = await choose_wrong_machine(self.lab, source, "handshake", other)
        title_row("as today (main)", "with the handshake")
        told = wrong.describe()
        for label, text in without.describe().items():
            row(label, text, told[label])
        self.checks.record("legacy", without.answer.status == "failed"
                           and without.destination_exit is not None)
        self.checks.record("refused", wrong.is_told)
        self.checks.record("listening", wrong.listening and wrong.destination_exit is None)
        self.checks.record("undisturbed", without.guest_runs and wrong.guest_runs)

    async def retry(self, source: Machine) -> Machine:
        heading(f"4. The mistake is corrected: a {self.board.machine} again, and full speed.")
        destination = await self.lab.start("corrected", "-machine", self.board.machine,
                                           "-incoming", "defer")
        answer = await migrate(source, "handshake", await listen(destination, "handshake"))
        require_completed(answer)
        moved = await has_moved(source, destination)
        await rounds_more(destination, 2)
        self.handshakes["corrected move"] = await handshake_of(source, destination)
        info = answer.info
        say(f"{mib(info['ram']['transferred'])} in {info['total-time'] / 1000:.1f} s, "
            f"the guest stood still for {info['downtime']} ms.")
        show.console(raw_lines(destination)[-2:])
        self.checks.record("retried", moved and self.handshakes["corrected move"].is_agreed)
        return destination

    async def ask(self, source: Machine) -> list[Handshake]:
        """Until one of them was quick."""
        destination = await self.lab.start("asked", "-machine", self.board.machine,
                                           "-incoming", "defer")
        port = await listen(destination, "handshake")
        asked: list[Handshake] = []
        while len(asked) < CHECKS_MAX and not (asked and asked[-1].is_quick):
            asked.append(await check(source, destination, port))
        return asked

    async def speed(self, source: Machine) -> None:
        heading("5. What the handshake cost")
        # One that had to wait for a processor says nothing about the handshake.
        if not any(one.is_quick for one in self.handshakes.values()):
            asked = await self.ask(source)
            self.handshakes[f"best of {len(asked)} checks"] = min(
                asked, key=lambda one: one.duration)
        say(f"{'':{LABEL_WIDTH}}{'at source':>12}{'at destination':>17}{'both ways':>16}")
        for name, one in self.handshakes.items():
            times = [f"{side['duration'] / 1000:.2f} ms" for side in one]
            say(f"{name:{LABEL_WIDTH}}{times[0]:>12}{times[1]:>17}{one.size:>10,} bytes")
        limits = f"< {PROMISED_MS} ms", f"< {PROMISED_MS} ms", f"< {PROMISED_BYTES:,} bytes"
        say(f"{'promised':{LABEL_WIDTH}}{limits[0]:>12}{limits[1]:>17}{limits[2]:>16}")
        self.checks.record("fast", any(one.is_quick for one in self.handshakes.values())
                           and all(one.is_small for one in self.handshakes.values()))


### Running it

def main(qemu: str, accelerator: str, kernel: str, initramfs: str) -> int:
    checks = Checklist(CHECKS)
    command = qemu_command(qemu, kernel, initramfs, MEMORY_MIB)
    told = run("demo", command, accelerator, lambda lab: Demo(lab, checks, board_of(qemu)).tell())
    return 0 if checks.conclude() and told else 1


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
