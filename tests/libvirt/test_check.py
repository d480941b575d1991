# SPDX-License-Identifier: GPL-2.0-or-later
"""virsh migrate --check-only says whether a guest could migrate, and nothing else happens.

The hosts have a directory in common that libvirt believes to be on shared storage, and give what
guests use to a group of their own: so it shows whether a check changes owners.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import time
import xml.etree.ElementTree as ET
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple, Optional

import pytest
from conftest import QEMU
from daemons import LIMIT, Failed, Host, Result, Running, Setup, fetched, run
from emulators import PATCHED, STOCK, emulator
from lab import (DIRECT_TCP, DIRECT_UNIX, P2P_TCP, PARALLEL, POSTCOPY, QEMU_NAMESPACE, SLOW, TLS,
                 TUNNELLED, WAYS, Guest, Lab, Way, laboratory)
from series import series

AGREED = {
    PARALLEL.name: "return-path,multifd,switchover-ack",
    POSTCOPY.name: "return-path,postcopy-ram,switchover-ack,postcopy-preempt",
}
OTHERS = "return-path,switchover-ack"
CHECKED = [way._replace(switch=False) for way in WAYS if way != TUNNELLED]
BOTH = [P2P_TCP, DIRECT_TCP]

RNG = ("-device", "virtio-rng-pci")
BALLOON = ("-device", "virtio-balloon-pci")
DISK = ("<disk type='file' device='disk'><driver name='qemu' type='{}'/>"
        "<source file='{}'/><target dev='vda' bus='virtio'/></disk>")
CONSOLE = "<serial type='file'><source path='{}'/></serial>"
SIZE = 8 << 20

GROUPS = {"A": 64055, "B": 64056}

# Says what happens, and waits as long as there is a file that says what for.
HOOK = """#!/bin/sh
[ "$1" != refused ] || exit 1
echo "$2 $3" >>{directory}/{name}.hooks
cat >/dev/null
while [ "$2" = "$(cat {directory}/{name}.hold 2>/dev/null)" ]; do
    touch {directory}/{name}.held
    sleep 0.05
done
"""


def set_up(name: str, directory: Path) -> Setup:
    shared = directory / "shared"
    shared.mkdir(exist_ok=True)
    return Setup(conf={"group": f"+{GROUPS[name]}", "dynamic_ownership": 1, "remember_owner": 1,
                       "shared_filesystems": [str(shared)]},
                 hook=HOOK.format(directory=directory, name=name))


@pytest.fixture(name="lab", scope="module")
def make_lab() -> Iterator[Lab]:
    with laboratory(series(), setup=set_up) as lab:
        yield lab


@pytest.fixture(name="plain", scope="module")
def make_plain() -> Iterator[Lab]:
    """Hosts with an unchanged libvirt."""
    with laboratory(fetched(), setup=set_up) as plain:
        yield plain


# Nothing has happened

class Events:
    """What libvirt tells everybody of on a host, from now on."""

    MARK = "mark"

    def __init__(self, lab: Lab, host: Host) -> None:
        self._host = host
        self._output = lab.path(".events")
        self._mark = lab.path(".xml")
        self._mark.write_text(f"<domain type='qemu'><name>{self.MARK}</name>"
                              "<memory unit='MiB'>1</memory>"
                              "<os><type arch='x86_64'>hvm</type></os></domain>")
        self._running = Running(["sh", "-c", f'exec "$@" >{self._output}', "sh",
                                 *host.installation.virsh, "-c", host.uri, "event", "--all",
                                 "--loop"])
        self._begin = self._marked(0)

    def _lines(self) -> list[str]:
        text = self._output.read_text() if self._output.exists() else ""
        return [line for line in text.split("\n")[:-1] if line]

    def _marked(self, begin: int) -> int:
        """Returns how many lines there were when all had been told that had happened."""
        deadline = time.monotonic() + LIMIT
        while not any(self.MARK in line for line in self._lines()[begin:]):
            if self._running.over or time.monotonic() > deadline:
                raise Failed(f"no events of {self._host.name}: {self._running.result(0)}")
            self._host.ask("define", self._mark)
            self._host.ask("undefine", self.MARK)
            time.sleep(0.02)
        return len(self._lines())

    def end(self) -> list[str]:
        self._marked(len(self._lines()))
        self._running.end()
        return [line for line in self._lines()[self._begin:] if self.MARK not in line]


class Seen(NamedTuple):
    """What a check must leave as it is."""

    status: Optional[str]
    completed: str
    capabilities: Any
    parameters: Any
    migration: Any
    xml: str
    jobs: list[Any]
    guests: str


def without_handshake(migration: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in migration.items() if key != "handshake"}


def seen(lab: Lab, guest: Guest) -> Seen:
    host = guest.host
    status = host.status / f"{guest.name}.xml"
    return Seen(
        status.read_text() if status.exists() else None,
        host.ask("domjobinfo", "--completed", "--keep-completed", "--rawstats", guest.name),
        guest.qmp("query-migrate-capabilities"), guest.qmp("query-migrate-parameters"),
        without_handshake(guest.qmp("query-migrate")),
        host.ask("dumpxml", guest.name), guest.qmp("query-block-jobs"),
        lab.other(host).ask("list", "--all", "--name"))


@contextlib.contextmanager
def nothing_happens(lab: Lab, guest: Guest) -> Iterator[None]:
    """To the guest, and on either host."""
    before, state = seen(lab, guest), guest.state()
    told = len(lab.conversation(guest, guest.host).messages)
    events = [Events(lab, host) for host in (lab.a, lab.b)]
    yield
    assert [one.end() for one in events] == [[], []]
    assert seen(lab, guest) == before
    assert before.status and "<job " not in before.status
    other = lab.other(guest.host)
    assert not (other.status / f"{guest.name}.xml").exists()
    messages = lab.conversation(guest, guest.host).messages[told:]
    assert {one.body["event"] for one in messages if one.kind == "event"} <= {
        "MIGRATION_HANDSHAKE"}
    lab.require_well(guest, state)


def lines(result: Result) -> dict[str, str]:
    """What virsh says for each word that stands before a colon at the begin of a line."""
    parts = (line.split(":", 1) for line in result.stdout.splitlines() if ":" in line)
    return {key: value.strip() for key, value in parts}


def require_yes(result: Result, capabilities: str = OTHERS) -> None:
    assert result.ok, result
    said = lines(result)
    assert said["Can migrate"] == "yes" and said["Handshake"] == "accepted", result
    assert set(said["Agreed on"].split(",")) == set(capabilities.split(",")), result


def require_no(result: Result, *reasons: str) -> None:
    assert result.status == 1, result
    assert lines(result)["Can migrate"] == "no", result
    for reason in reasons:
        assert reason in result.stdout and reason in result.stderr, result


def parameters(guest: Guest) -> dict[str, str]:
    """The result as programs get it."""
    said = guest.host.ask("domjobinfo", "--handshake", "--rawstats", guest.name)
    return dict(line.split(": ", 1) for line in said.splitlines() if ": " in line)


@pytest.mark.parametrize("way", CHECKED, ids=lambda way: way.name)
def test_yes(lab: Lab, way: Way) -> None:
    with lab.guest(emulator(PATCHED), [*RNG, *BALLOON]) as guest:
        with nothing_happens(lab, guest):
            require_yes(lab.check(guest, way), AGREED.get(way.name, OTHERS))
        told = parameters(guest)
        assert told["handshake.status"] == "accepted" and told["handshake.check_only"] == "1"
        assert told["handshake.peer.machine"] == "pc-i440fx-10.0"
        # What it said is so.
        before = guest.state()
        assert lab.migrate(guest, way).ok
        lab.require_well(guest, before)
        # Statistics of that are kept, and the guest is at home on the other host as well.
        with nothing_happens(lab, guest):
            require_yes(lab.check(guest, way), AGREED.get(way.name, OTHERS))


def definition(lab: Lab, guest: Guest, *arguments: str) -> Path:
    """Of the same guest, but for what libvirt passes on without understanding it."""
    domain = ET.fromstring(guest.host.ask("dumpxml", "--migratable", guest.name))
    for old in domain.findall(f"{{{QEMU_NAMESPACE}}}commandline"):
        domain.remove(old)
    new = ET.SubElement(domain, f"{{{QEMU_NAMESPACE}}}commandline")
    for value in arguments:
        ET.SubElement(new, f"{{{QEMU_NAMESPACE}}}arg", {"value": value})
    result = lab.path(".xml")
    result.write_text(ET.tostring(domain, encoding="unicode"))
    return result


@pytest.mark.parametrize("way", [DIRECT_UNIX, P2P_TCP, PARALLEL, POSTCOPY, TLS],
                         ids=lambda way: way.name)
def test_no(lab: Lab, way: Way) -> None:
    """Every reason, with both values, for people and for programs; and warnings."""
    with lab.guest(emulator(PATCHED), [*RNG, "-device", "virtio-serial-pci"]) as guest:
        other = definition(lab, guest, "-machine", "pc-i440fx-9.2", *RNG, *BALLOON)
        with nothing_happens(lab, guest):
            result = lab.check(guest, way, "--xml", other)
            require_no(result, "machine type is 'pc-i440fx-10.0' on the source and "
                               "'pc-i440fx-9.2' on the destination",
                       "0000:00:03.0/virtio-console")
            assert "\nwarning: section-extra: " in result.stdout
            assert "    source: pc-i440fx-10.0\n    destination: pc-i440fx-9.2\n" in result.stdout
        told = parameters(guest)
        assert told["Job type"] == "4" and told["handshake.status"] == "rejected"
        issues = [{key: told.get(f"handshake.issue.{number}.{key}")
                   for key in ("code", "severity", "source", "destination")}
                  for number in range(int(told["handshake.issue.count"]))]
        assert {"code": "machine-type", "severity": "error", "source": "pc-i440fx-10.0",
                "destination": "pc-i440fx-9.2"} in issues
        assert {"section-missing", "section-extra"} <= {one["code"] for one in issues}
        # It is only about what was asked.
        require_yes(lab.check(guest, way), AGREED.get(way.name, OTHERS))
