# SPDX-License-Identifier: GPL-2.0-or-later
"""The demo's guest, and the run of a program that shows something with it."""

from __future__ import annotations

import asyncio
import logging
import signal
import sys
from collections.abc import Awaitable, Callable
from typing import NamedTuple

from machine import Console, Lab, Machine, NotSeen, until
from show import heading, paint, say

# There are machines where KVM runs a boot sector, and Linux not: it gets no more
# time than Linux needs where it works.
BOOT_LIMITS = {"kvm": 30.0, "tcg": 300.0}
LIMIT = 60.0


class Board(NamedTuple):
    """What a guest of an architecture runs on."""

    machine: str
    other: str                  # that somebody may take for it
    console: str
    options: tuple[str, ...]


BOARDS = {
    "x86_64": Board("q35", "pc", "ttyS0", ("-vga", "std")),
    "aarch64": Board("virt", "virt-9.2", "ttyAMA0", ("-cpu", "cortex-a57")),
}


def board_of(qemu: str) -> Board:
    return BOARDS.get(qemu.rsplit("-", 1)[-1], BOARDS["x86_64"])


def qemu_command(qemu: str, kernel: str, initramfs: str, memory_mib: int) -> list[str]:
    """A default machine, but no CD-ROM drive: Debian 12's SeaBIOS waits 30 s for its medium."""
    board = board_of(qemu)
    return [qemu, "-nodefaults", "-display", "none", *board.options, "-device", "e1000e",
            "-m", f"{memory_mib}M",
            "-kernel", kernel, "-initrd", initramfs,
            "-append", f"console={board.console} quiet panic=-1", "-no-reboot"]


async def working_guest(lab: Lab, *options: str) -> Machine:
    """Boots it, with the accelerator that is of use."""
    try:
        return await boot(lab, *options)
    except NotSeen as problem:
        if lab.accelerator == "tcg":
            raise
        say(f"{problem}: {lab.accelerator} is of no use here.")
        await lab.stop()
        lab.accelerator = "tcg"
        return await boot(lab, *options)


async def boot(lab: Lab, *options: str) -> Machine:
    source = await lab.start("source", *options)

    async def works() -> bool:
        return Console(source.console).last_round >= 3

    await until(f"the guest to work with {lab.accelerator}", BOOT_LIMITS[lab.accelerator], works)
    return source


async def has_moved(source: Machine, destination: Machine) -> bool:
    await until(f"the guest to run at {destination.name}", LIMIT, destination.is_running)
    return not await source.is_running()


async def rounds_more(machine: Machine, count: int) -> None:
    """Waits until the guest has played so many whole rounds more over there."""
    goal = len(Console(machine.console).rounds) + count

    async def played() -> bool:
        return len(Console(machine.console).rounds) >= goal

    await until(f"the guest to go on at {machine.name}", LIMIT, played)


def life_of_guest(*homes: Machine) -> Console:
    return Console("".join(home.console for home in homes))


### Running it

Story = Callable[[Lab], Awaitable[None]]


def show_tails(machines: list[Machine]) -> None:
    """The last words of everybody, for whoever has to find out."""
    for machine in machines:
        end = machine.exit_status
        say(f"{machine.name}: {'runs' if end is None else f'ended with {end}'}")
        for stream, text in (("stderr", machine.errors), ("console", machine.console)):
            for line in text.replace("\r", "").splitlines()[-5:]:
                say(f"  {stream}: {line}")


async def perform(command: list[str], accelerator: str, story: Story) -> bool:
    this = asyncio.current_task()
    assert this
    for reason in (signal.SIGTERM, signal.SIGHUP):
        asyncio.get_running_loop().add_signal_handler(reason, this.cancel)
    async with Lab(command, accelerator) as lab:
        try:
            await story(lab)
        except (NotSeen, KeyError) as problem:
            nature = "QEMU's answer has no " if isinstance(problem, KeyError) else ""
            heading(paint(f"FAILED: {nature}{problem}", "31;1"))
            show_tails(lab.machines)
            return False
    return True


def run(name: str, command: list[str], accelerator: str, story: Story) -> bool:
    """Whether the story came to its end."""
    # The end of a QEMU's monitor is a surprise to the library only.
    logging.disable(logging.CRITICAL)
    try:
        return asyncio.run(perform(command, accelerator, story))
    except (KeyboardInterrupt, asyncio.CancelledError):
        print(f"\n{name}: stopped", file=sys.stderr)
        sys.exit(130)
