# SPDX-License-Identifier: GPL-2.0-or-later
"""An unchanged libvirt does not notice that its QEMU has the handshake.

It sends what it sends to stock QEMU, has the same answers refused and the same progress told, and
its guests get where they are to go: between two QEMUs with the handshake, and between one with and
one without. The measure is a pair of stock QEMUs: build/BASE-stock, or BASE-stock below
QMHS_STOCK_BUILDS; scripts/build-stock makes it.
"""

from __future__ import annotations

import functools
import re
import xml.etree.ElementTree as ET
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple, Optional

import pytest
from daemons import Host, fetched
from emulators import PATCHED, STOCK, emulator
from journal import Conversation
from lab import POSTCOPY, SLOW, WAYS, Guest, Lab, Way, has_userfaultfd, laboratory

PAIRS = [(PATCHED, PATCHED), (PATCHED, STOCK), (STOCK, PATCHED)]

CANCEL, SAVE, MANAGED_SAVE = "cancelled", "save, restore", "managed save"
MODES = (*(way.name for way in WAYS), CANCEL, SAVE, MANAGED_SAVE)

# As often as there is something to ask, which depends on the time that things take.
POLLS = ("query-migrate",)

# What is another one each time.
NAMES = (
    (re.compile(r"libvirt-lab-\w+/\d+\."), "LAB/FILE."),
    (re.compile(r"domain-\d+-guest-\d+"), "DOMAIN"),
    (re.compile(r"guest-\d+"), "GUEST"),
    (re.compile(r"^tcp:(.*):\d+$"), r"tcp:\1:PORT"),
    (re.compile(r"^fd:\d+$"), "fd:FD"),
)


class Talk(NamedTuple):
    """What was said to one process: commands in their order, errors, changes of the state."""

    commands: list[tuple[str, Any]]
    polled: set[str]
    errors: list[tuple[str, str]]
    statuses: list[str]


@pytest.fixture(name="lab", scope="module")
def make_lab() -> Iterator[Lab]:
    with laboratory(fetched()) as lab:
        yield lab


def named(text: str) -> str:
    for pattern, name in NAMES:
        text = pattern.sub(name, text)
    return text


def normalised(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: normalised(one) for key, one in value.items()}
    if isinstance(value, list):
        return [normalised(one) for one in value]
    return named(value) if isinstance(value, str) else value


def talk(conversation: Conversation) -> Talk:
    commands = conversation.commands()
    return Talk(
        [(one.name, normalised(one.arguments)) for one in commands if one.name not in POLLS],
        {one.name for one in commands if one.name in POLLS},
        [(name, named(text)) for name, text in conversation.errors()],
        conversation.statuses())


def talks(lab: Lab, guest: Guest) -> dict[str, list[Talk]]:
    """With all processes that this guest has had on each host."""
    return {host.name: [talk(one) for one in lab.conversations(guest, host)]
            for host in (lab.a, lab.b)}


def running(guest: Guest) -> Optional[Path]:
    """The binary that it has ended up in, as its definition has it."""
    domain = ET.fromstring(guest.host.ask("dumpxml", guest.name))
    return Path(domain.findtext("devices/emulator", ""))


def move(way: Way, lab: Lab, guest: Guest, binary: Path) -> None:
    result = lab.migrate(guest, way, binary)
    assert result.ok, f"{result}\n{lab.a.complaints()}\n{lab.b.complaints()}"
    assert guest.host is lab.b and guest.emulator == running(guest) == binary


def save(lab: Lab, guest: Guest, binary: Path) -> None:
    lab.save(guest, lab.b, binary)
    assert running(guest) == binary


def managed_save(lab: Lab, guest: Guest, binary: Path) -> None:
    lab.managed_save(guest, binary)
    assert running(guest) == binary


def cancel(lab: Lab, guest: Guest, binary: Path) -> None:
    result = lab.cancel(guest, SLOW, binary)
    assert not result.ok and "cancel" in result.stderr, result
    assert guest.host is lab.a


TRIPS: dict[str, Callable[[Lab, Guest, Path], None]] = {
    **{way.name: functools.partial(move, way) for way in WAYS},
    CANCEL: cancel,
    SAVE: save,
    MANAGED_SAVE: managed_save,
}


def travel(lab: Lab, mode: str, source: str, destination: str) -> dict[str, list[Talk]]:
    """There, in good order; returns what was said."""
    if mode == POSTCOPY.name and not has_userfaultfd():
        pytest.skip("there is no userfaultfd, which postcopy takes")
    binary = emulator(destination)
    with lab.guest(emulator(source)) as guest:
        before = guest.state()
        TRIPS[mode](lab, guest, binary)
        lab.require_well(guest, before)
        assert set(lab.handshakes(guest).values()) == {None}
        return talks(lab, guest)


class Measure:
    """What is said among stock QEMUs; each mode is looked at once."""

    def __init__(self, lab: Lab) -> None:
        self._lab = lab
        self._known: dict[str, dict[str, list[Talk]]] = {}

    def of(self, mode: str) -> dict[str, list[Talk]]:
        if mode not in self._known:
            self._known[mode] = travel(self._lab, mode, STOCK, STOCK)
        return self._known[mode]


@pytest.fixture(name="measure", scope="module")
def make_measure(lab: Lab) -> Measure:
    return Measure(lab)


def sent(found: list[Talk], name: str) -> list[Any]:
    return [arguments for one in found for said, arguments in one.commands if said == name]


@pytest.mark.parametrize("mode", MODES)
def test_measure(measure: Measure, mode: str) -> None:
    """Among stock QEMUs it is what the mode is called, or nothing would be compared."""
    found = measure.of(mode)
    source, destination = found["A"], found["A" if mode == MANAGED_SAVE else "B"]
    migrate, = sent(source, "migrate")
    incoming, = sent(destination, "migrate-incoming")
    if mode == "parallel":
        assert migrate["uri"].startswith("tcp:"), migrate
        assert any({"capability": "multifd", "state": True} in one["capabilities"]
                   for one in sent(source, "migrate-set-capabilities"))
    elif mode == POSTCOPY.name:
        assert migrate["uri"].startswith("tcp:"), migrate
        assert sent(source, "migrate-start-postcopy")
        assert "postcopy-active" in source[0].statuses
        assert "postcopy-active" in destination[0].statuses
    elif mode == CANCEL:
        assert source[0].statuses[-1] == "cancelled", source[0].statuses
    elif mode in (SAVE, MANAGED_SAVE):
        assert migrate["uri"].startswith(("fd:", "file:")), migrate
    else:
        assert migrate["uri"] == "fd:migrate", migrate
        transport = mode.rsplit(" ", 1)[-1].replace("TLS", "tcp").replace("tunnelled", "fd")
        assert incoming["uri"].startswith(f"{transport}:"), incoming
    for side in (source, destination):
        tls = [one for one in sent(side, "object-add") if one["qom-type"] == "tls-creds-x509"]
        assert len(tls) == (mode == "TLS"), tls


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(("source", "destination"), PAIRS)
def test_same(lab: Lab, measure: Measure, source: str, destination: str, mode: str) -> None:
    """The guest arrives, and on either side libvirt has said and heard what it always has."""
    found = travel(lab, mode, source, destination)
    measured = measure.of(mode)
    for side, expected in measured.items():
        assert len(found[side]) == len(expected)
        for ours, theirs in zip(found[side], expected):
            assert ours.commands == theirs.commands
            assert ours.polled == theirs.polled
            assert ours.errors == theirs.errors
            assert ours.statuses == theirs.statuses


def flags(host: Host) -> dict[str, list[str]]:
    """What libvirt has found out about each emulator, by its name."""
    found = {}
    for path in (host.cache / "qemu/capabilities").glob("*.xml"):
        known = ET.parse(path).getroot()
        found[known.findtext("emulator", "")] = [one.get("name", "") for one in known.iter("flag")]
    return found


def test_capabilities(lab: Lab) -> None:
    """libvirt believes that both can do the same."""
    said = {}
    for kind in (PATCHED, STOCK):
        binary = str(emulator(kind))
        said[kind] = lab.a.ask("domcapabilities", "--emulatorbin", binary, "--virttype", "qemu"
                               ).replace(binary, "EMULATOR")
    assert "EMULATOR" in said[STOCK] and said[PATCHED] == said[STOCK]
    known = flags(lab.a)
    assert known[str(emulator(STOCK))]
    assert known[str(emulator(PATCHED))] == known[str(emulator(STOCK))]
