# SPDX-License-Identifier: GPL-2.0-or-later
"""Who runs a guest in the end if a daemon or a QEMU is killed while it is handed over."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from typing import NamedTuple, Optional

from daemons import LIMIT, Failed, Host
from emulators import emulator
from journal import Conversation
from lab import P2P_TCP, Guest, Lab, qmp

FILTERS = "2:qemu.qemu_monitor 1:qemu.qemu_migration"


class Moment(NamedTuple):
    """When the QEMU of a host was sent a command, or its daemon has begun with something."""

    host: str
    command: str = ""
    function: str = ""


MOMENTS = {
    "handing over": Moment("A", command="migrate-continue"),
    "Finish": Moment("B", function="qemuMigrationDstFinish"),
    "running it": Moment("B", command="cont"),
    "Confirm": Moment("A", function="qemuMigrationSrcConfirmPhase"),
}
PATIENCE = 8.0      # seconds, if nobody runs it yet; the daemon that was killed may be about to
VICTIMS = ("daemon A", "daemon B", "QEMU A", "QEMU B")


def host_of(lab: Lab, name: str) -> Host:
    return lab.a if name == "A" else lab.b


def come(lab: Lab, guest: Guest, moment: Moment, begin: int) -> bool:
    """Whether it has; what was in the host's log before is none of it."""
    host = host_of(lab, moment.host)
    if moment.function:
        with open(host.log, "rb") as log:
            log.seek(begin)
            return f": {moment.function}:".encode() in log.read()
    conversations: list[Conversation] = lab.conversations(guest, host)
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
        elif time.monotonic() - since > (1 if "running" in states.values() else PATIENCE):
            return states
        assert time.monotonic() < deadline, states
        time.sleep(0.1)


def owners(lab: Lab, moment: Moment, victim: str, kind: str) -> dict[str, Optional[str]]:
    """The states of its QEMUs once nothing changes any more, by the names of the hosts. A daemon
    that was killed is back then."""
    with lab.guest(emulator(kind)) as guest:
        begin = host_of(lab, moment.host).log.stat().st_size
        migration = lab.begin(guest, P2P_TCP)
        while not come(lab, guest, moment, begin) and not migration.over:
            time.sleep(0.005)
        kill(lab, guest, victim)
        migration.result(LIMIT)
        revive(lab)
        return settled(lab, guest)
