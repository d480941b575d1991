# SPDX-License-Identifier: GPL-2.0-or-later
"""The first process of a lab: it starts the others, and none of them outlives it.

Usage: keeper.py DIRECTORY, in new PID, mount and network namespaces.

Each line of stdin is a process to start, as JSON. When stdin ends, because the tests are over or
because they were killed, all processes are killed and DIRECTORY is removed. The mounts and the
network go with the namespaces.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import signal
import socket
import struct
import subprocess
import sys
from pathlib import Path

NODES = ("null", "zero", "full", "random", "urandom", "tty")
SIOCSIFFLAGS = 0x8914
IFF_UP = 1


def mount(*arguments: str) -> None:
    subprocess.run(["mount", *arguments], check=True, stdin=subprocess.DEVNULL)


def make_dev(place: Path) -> None:
    """Without /dev/kvm: a file without function in its place would not do. As soon as libvirt
    believes that KVM comes and goes it asks each QEMU anew what it can do, which takes seconds."""
    place.mkdir()
    mount("-t", "tmpfs", "-o", "mode=755", "tmpfs", str(place))
    for node in NODES:
        (place / node).touch()
        mount("--bind", f"/dev/{node}", str(place / node))
    for directory in ("pts", "shm"):
        (place / directory).mkdir()
    mount("--bind", "/dev/pts", str(place / "pts"))
    mount("-t", "tmpfs", "tmpfs", str(place / "shm"))
    (place / "ptmx").symlink_to("pts/ptmx")
    (place / "fd").symlink_to("/proc/self/fd")
    mount("--move", str(place), "/dev")
    place.rmdir()


def hide_cgroups() -> None:
    """So that libvirt does not make any."""
    table = Path("/proc/self/mounts").read_text(encoding="utf-8")
    mounts = [line.split() for line in table.splitlines()]
    for place in (words[1] for words in reversed(mounts) if words[2] in ("cgroup", "cgroup2")):
        subprocess.run(["umount", "--lazy", place], check=True, stdin=subprocess.DEVNULL)


def try_overlay(place: Path) -> None:
    """What each host is made of; not every kernel has it."""
    place.mkdir()
    mount("-t", "overlay", "-o", "lowerdir=/etc:/usr", "overlay", str(place))
    subprocess.run(["umount", str(place)], check=True, stdin=subprocess.DEVNULL)
    place.rmdir()


def raise_loopback() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        fcntl.ioctl(any_socket, SIOCSIFFLAGS, struct.pack("16sH22x", b"lo", IFF_UP))


def reap(*_: object) -> None:
    """libvirt waits until the process is gone of a QEMU that it ends, and is not its parent."""
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass


def start(argv: list[str], output: str) -> None:
    with open(output, "a", encoding="utf-8") as file:
        subprocess.Popen(  # pylint: disable=consider-using-with
            argv, stdin=subprocess.DEVNULL, stdout=file, stderr=file, start_new_session=True)


def end_all() -> None:
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    with contextlib.suppress(ProcessLookupError):
        os.kill(-1, signal.SIGKILL)         # of this PID namespace, but not its first process
    with contextlib.suppress(ChildProcessError):
        while True:
            os.wait()


def main(directory: Path) -> None:
    try:
        assert os.getpid() == 1, "not in a PID namespace of its own"
        try_overlay(directory / "overlay")
        make_dev(directory / "dev")
        hide_cgroups()
        raise_loopback()
        signal.signal(signal.SIGCHLD, reap)
        print("ready", flush=True)
        for line in sys.stdin:
            start(**json.loads(line))
    finally:
        if os.getpid() == 1:
            end_all()
        shutil.rmtree(directory, ignore_errors=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
