# SPDX-License-Identifier: GPL-2.0-or-later
"""What lies between source and destination: nothing, or a long way."""

from __future__ import annotations

import fcntl
import io
import os
import select
import struct
import subprocess
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from threading import Thread

from machine import LOOPBACK

DELAY_MS = 50
RTT_MS = 2 * DELAY_MS

TUN = "/dev/net/tun"
TUNSETIFF, IFF_TUN, IFF_NO_PI = 0x400454CA, 0x0001, 0x1000  # of linux/if_tun.h
IFREQ = "16sH22x"
MOST_BYTES = 1 << 16


class NoLongWay(Exception):
    """This machine has none. Says why."""


class Loopback:
    """The two sides are 0 and 1, and take turns at being the source."""

    name = "loopback"
    what = "TCP over loopback"

    def under(self, _side: int) -> Sequence[str]:
        """The command under which the QEMU of that side runs."""
        return ()

    def host(self, _side: int) -> str:
        return LOOPBACK


class Namespaces(Loopback):
    """One for each side, where it has a device: end0 or end1."""

    def __init__(self, stack: ExitStack):
        self._names = [f"handshake-bench-{os.getpid()}-{side}" for side in (0, 1)]
        for name in self._names:
            ip("netns", "add", name)
            stack.callback(ip, "netns", "delete", name)

    def _set_up(self) -> None:
        for side, name in enumerate(self._names):
            ip("-n", name, "address", "add", f"{self.host(side)}/30", "dev", f"end{side}")
            ip("-n", name, "link", "set", f"end{side}", "up")

    def under(self, side: int) -> Sequence[str]:
        return "ip", "netns", "exec", self._names[side]

    def host(self, side: int) -> str:
        return f"192.0.2.{side + 1}"


class Netem(Namespaces):
    name = "netem"
    what = f"two network namespaces, a veth pair, netem delay {DELAY_MS} ms at both ends"

    def __init__(self, stack: ExitStack):
        super().__init__(stack)
        ip("link", "add", "end0", "netns", self._names[0],
           "type", "veth", "peer", "end1", "netns", self._names[1])
        self._set_up()
        for side, name in enumerate(self._names):
            call("tc", "-n", name, "qdisc", "add", "dev", f"end{side}", "root",
                 "netem", "delay", f"{DELAY_MS}ms")


class Tun(Namespaces):
    name = "tun"
    what = (f"two network namespaces, a tun device in each, and a thread that carries the packets"
            f" between them, each after {DELAY_MS} ms")

    def __init__(self, stack: ExitStack):
        super().__init__(stack)
        ends = [self._end(stack, side) for side in (0, 1)]
        self._set_up()
        stop, running = os.pipe()
        carrier = Thread(target=carry, args=(*ends, stop), daemon=True)
        carrier.start()
        # The last one is called first.
        stack.callback(os.close, stop)
        stack.callback(carrier.join)
        stack.callback(os.close, running)

    def _end(self, stack: ExitStack, side: int) -> io.FileIO:
        """The device goes where its side is, its file stays here; with the file it ends."""
        tun = stack.enter_context(open(TUN, "r+b", buffering=0))
        try:
            request = struct.pack(IFREQ, b"handshake%d", IFF_TUN | IFF_NO_PI)
            name, _ = struct.unpack(IFREQ, fcntl.ioctl(tun, TUNSETIFF, request))
        except OSError as error:
            raise OSError(error.errno, error.strerror, TUN) from error
        ip("link", "set", name.rstrip(b"\0").decode(), "netns", self._names[side], "name", f"end{side}")
        return tun


def carry(one: io.FileIO, other: io.FileIO, stop: int) -> None:
    """Packets both ways, in their order, until `stop` comes to its end."""
    under_way: deque[tuple[float, io.FileIO, bytes]] = deque()
    while True:
        wait = max(0.0, under_way[0][0] - time.monotonic()) if under_way else None
        ready, _, _ = select.select([one, other, stop], [], [], wait)
        if stop in ready:
            return
        for here, there in (one, other), (other, one):
            if here in ready:
                due = time.monotonic() + DELAY_MS / 1000
                under_way.append((due, there, here.read(MOST_BYTES)))
        while under_way and under_way[0][0] <= time.monotonic():
            _, there, packet = under_way.popleft()
            there.write(packet)


def call(*command: str) -> None:
    # Ctrl-C is the bench's, not theirs: they clean up.
    subprocess.run(command, check=True, stdin=subprocess.DEVNULL, capture_output=True, text=True,
                   start_new_session=True)


def ip(*arguments: str) -> None:
    call("ip", *arguments)


@contextmanager
def long_way() -> Iterator[tuple[Loopback, str]]:
    """The best that this machine has, and why it is not netem."""
    why_not: dict[str, str] = {}
    with ExitStack() as stack:
        for kind in Netem, Tun:
            try:
                link = kind(stack)
            except (OSError, subprocess.CalledProcessError) as error:
                told = getattr(error, "stderr", "") or str(error)
                why_not[kind.name] = told.strip().splitlines()[0]
                stack.close()
            else:
                yield link, why_not.get(Netem.name, "")
                return
    raise NoLongWay(" and ".join(f"no {name} ({why})" for name, why in why_not.items()))
