#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""Who runs a guest in the end if a daemon or a QEMU is killed while it is handed over.

Usage: libvirt_owner.py [--runs N]. Takes root, and what bench-libvirt builds.

The moments are those of Finish and Confirm, once with a handshake and once without. A daemon that
was killed is started again. This is a record and no test: what libvirt makes of it depends on
how far it had got, and it does not promise that there is one owner, unless a lock manager is used.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import os
import signal
import sys
import time
from pathlib import Path
from typing import NamedTuple, Optional

TOP = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(TOP / "tests"), str(TOP / "tests/libvirt")]

# pylint: disable=wrong-import-position
import conftest  # noqa: E402,F401  pylint: disable=unused-import
from daemons import LIMIT, Failed, Host, Installation  # noqa: E402
from emulators import PATCHED, STOCK, emulator  # noqa: E402
from journal import Conversation  # noqa: E402
from lab import P2P_TCP, Guest, Lab, laboratory, qmp  # noqa: E402


class Moment(NamedTuple):
    """When the QEMU of a host was sent a command."""

    host: str
    command: str


MOMENTS = {
    "handing over": Moment("A", "migrate-continue"),
    "finish": Moment("B", "cont"),
}
VICTIMS = ("daemon A", "daemon B", "QEMU A", "QEMU B")


def host_of(lab: Lab, name: str) -> Host:
    return lab.a if name == "A" else lab.b


def said(lab: Lab, guest: Guest, moment: Moment) -> bool:
    conversations: list[Conversation] = lab.conversations(guest, host_of(lab, moment.host))
    return bool(conversations and conversations[-1].commands(moment.command))


def kill(lab: Lab, guest: Guest, victim: str) -> None:
    what, name = victim.split()
    host = host_of(lab, name)
    for pid in host.daemon if what == "daemon" else host.qemu(guest.name):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def revive(lab: Lab) -> None:
    for host in (lab.a, lab.b):
        if not host.daemon:
            host.start()


def running(host: Host, guest: Guest) -> Optional[str]:
    """The state in QEMU's own words, if there is one."""
    if not host.qemu(guest.name):
        return None
    try:
        return str(qmp(host, guest.name, "query-status")["status"])
    except Failed:
        return None


def settled(lab: Lab, guest: Guest) -> dict[str, Optional[str]]:
    """What has become of it, once that does not change any more."""
    deadline, last, since = time.monotonic() + LIMIT, None, 0.0
    while True:
        states = {host.name: running(host, guest) for host in (lab.a, lab.b)}
        if list(states.values()).count("running") == 2:
            return states
        if states != last:
            last, since = states, time.monotonic()
        elif time.monotonic() - since > 1:
            return states
        assert time.monotonic() < deadline, states
        time.sleep(0.1)


def outcome(lab: Lab, moment: Moment, victim: str, kind: str) -> str:
    with lab.guest(emulator(kind)) as guest:
        migration = lab.begin(guest, P2P_TCP)
        while not said(lab, guest, moment) and not migration.over:
            time.sleep(0.005)
        kill(lab, guest, victim)
        migration.result(LIMIT)
        revive(lab)
        states = settled(lab, guest)
    return ", ".join(f"{state} on {name}" for name, state in states.items() if state) or "lost"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--runs", type=int, default=3)
    runs = parser.parse_args().runs
    with laboratory(Installation(TOP / "build/libvirt")) as lab:
        for name, moment in MOMENTS.items():
            for victim in VICTIMS:
                for kind in (PATCHED, STOCK):
                    found = collections.Counter(outcome(lab, moment, victim, kind)
                                                for _ in range(runs))
                    print(f"{name}, {victim} killed, {kind} QEMU: " + "; ".join(
                        f"{text} ({number})" for text, number in found.most_common()), flush=True)


if __name__ == "__main__":
    main()
