# SPDX-License-Identifier: GPL-2.0-or-later
"""libvirt with the series of contrib/libvirt lets QEMUs shake hands, and users read why not.

The proof of a handshake is what both QEMUs say of it in query-migrate. Where one side cannot,
be it libvirt or QEMU, the migration is the one that it has always been.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Optional

import pytest
from conftest import QEMU, TOP
from daemons import LIMIT, fetched, run
from emulators import PATCHED, STOCK, emulator
from journal import Conversation
from lab import (DIRECT_UNIX, MACHINE, P2P_TCP, PARALLEL, POSTCOPY, SLOW, TLS,
                 TUNNELLED, WAYS, Guest, Lab, Way, laboratory)
from series import series

SERIES, UNCHANGED = "series", "unchanged"

# What the two QEMUs are to agree on, besides the return path.
AGREED = {
    PARALLEL.name: {"multifd", "switchover-ack"},
    POSTCOPY.name: {"postcopy-ram", "postcopy-preempt", "switchover-ack"},
}
OTHERS = {"switchover-ack"}
CHANNELS = int(PARALLEL.options[-1])
OPTIONAL = {"switchover-ack", "postcopy-preempt"}

# Of the destination, between its start and the stream, and after that.
SETTING = {"query-migrate-parameters", "migrate-set-capabilities", "migrate-set-parameters"}

DISK = ("<disk type='file' device='disk'><driver name='qemu' type='qcow2'/>"
        "<source file='{}'/><target dev='vda' bus='virtio'/></disk>")
RNG = ("-device", "virtio-rng-pci")
BALLOON = ("-device", "virtio-balloon-pci")
OTHER_MACHINE = "pc-i440fx-9.2"


@pytest.fixture(name="lab", scope="module")
def make_lab() -> Iterator[Lab]:
    with laboratory(series()) as lab:
        yield lab


def channel_type(conversation: Conversation, command: str) -> Optional[str]:
    """None if it was sent an URI. The last one counts."""
    arguments = conversation.commands(command)[-1].arguments
    assert ("uri" in arguments) != ("channels" in arguments)
    return arguments["channels"][0]["channel-type"] if "channels" in arguments else None


def require_handshake(lab: Lab, guest: Guest, capabilities: set[str]) -> None:
    """Both QEMUs tell of the same one."""
    told = lab.handshakes(guest)
    assert set(told) == {"A", "B"}
    for info in told.values():
        assert info and info["status"] == "accepted", told
        assert set(info["capabilities"]) == {"return-path", *capabilities}
        assert not info["issues"], info["issues"]
    assert len({info["session"] for info in told.values() if info}) == 1
    assert {info["role"] for info in told.values() if info} == {"source", "destination"}


def require_none(lab: Lab, guest: Guest) -> None:
    """Neither asked for, nor done."""
    assert set(lab.handshakes(guest).values()) == {None}
    assert channel_type(lab.conversation(guest, lab.a), "migrate") is None
    assert channel_type(lab.conversation(guest, lab.b), "migrate-incoming") is None


def arrive(lab: Lab, guest: Guest, way: Way, binary: Optional[Path] = None) -> None:
    before = guest.state()
    destination = lab.other(guest.host)
    result = lab.migrate(guest, way, binary)
    assert result.ok, f"{result}\n{lab.a.complaints()}\n{lab.b.complaints()}"
    assert guest.host is destination
    lab.require_well(guest, before)


def capabilities_set(conversation: Conversation) -> list[set[str]]:
    return [{item["capability"] for item in command.arguments["capabilities"] if item["state"]}
            for command in conversation.commands("migrate-set-capabilities")]


def require_own_only(conversation: Conversation, tls: bool) -> None:
    """The destination is told to set what is its own, the rest is for the QEMUs to agree on."""
    wanted = capabilities_set(conversation)
    assert wanted == [{"events"}, {"late-block-activate"}, set()], wanted
    parameters = [set(command.arguments)
                  for command in conversation.commands("migrate-set-parameters")]
    assert parameters == (2 * [{"tls-creds", "tls-hostname"}] if tls else []), parameters


def switched_on(guest: Guest) -> set[str]:
    return {item["capability"] for item in guest.qmp("query-migrate-capabilities")
            if item["state"]}


@pytest.mark.parametrize("way", [way for way in WAYS if way != TUNNELLED], ids=lambda way: way.name)
def test_handshake(lab: Lab, way: Way) -> None:
    """In every mode that allows it; what is set stays as it is, so the way back is the same."""
    with lab.guest(emulator(PATCHED)) as guest:
        parameters = guest.qmp("query-migrate-parameters")
        arrive(lab, guest, way)
        require_handshake(lab, guest, AGREED.get(way.name, OTHERS))
        if way == PARALLEL:
            for told in lab.handshakes(guest).values():
                assert told and told["parameters"]["multifd-channels"] == CHANNELS, told
        assert channel_type(lab.conversation(guest, lab.a), "migrate") == "handshake"
        assert channel_type(lab.conversation(guest, lab.b), "migrate-incoming") == "handshake"
        require_own_only(lab.conversation(guest, lab.b), way == TLS)
        # What is optional is for the QEMUs to agree on.
        assert not OPTIONAL & set().union(*capabilities_set(lab.conversation(guest, lab.a)))
        assert switched_on(guest) == {"events"}
        assert guest.qmp("query-migrate-parameters") == parameters
        arrive(lab, guest, way)
        require_handshake(lab, guest, AGREED.get(way.name, OTHERS))


def test_only_what_was_asked_for(lab: Lab) -> None:
    """QEMU would agree on multifd, for which nobody has opened a firewall."""
    # As if QEMU connects by itself, so that multifd was possible.
    way = Way("postcopy, never switched", "tcp", ("--postcopy",))
    with lab.guest(emulator(PATCHED)) as guest:
        arrive(lab, guest, way)
        require_handshake(lab, guest, AGREED[POSTCOPY.name])


@pytest.mark.parametrize("way", [DIRECT_UNIX, PARALLEL, TLS], ids=lambda way: way.name)
def test_two_versions(lab: Lab, way: Way) -> None:
    newer = TOP / "build/10.2" / QEMU.name
    if QEMU.resolve().parent.name != "10.0" or not newer.exists():
        pytest.skip("there are no QEMU 10.0 and 10.2")
    with lab.guest(emulator(PATCHED)) as guest:
        arrive(lab, guest, way, newer.resolve())
        require_handshake(lab, guest, AGREED.get(way.name, OTHERS))
        arrive(lab, guest, way, emulator(PATCHED))
        require_handshake(lab, guest, AGREED.get(way.name, OTHERS))


def test_tunnelled(lab: Lab) -> None:
    with lab.guest(emulator(PATCHED)) as guest:
        arrive(lab, guest, TUNNELLED)
        require_none(lab, guest)


def test_save(lab: Lab) -> None:
    with lab.guest(emulator(PATCHED)) as guest:
        before = guest.state()
        lab.save(guest, lab.b)
        lab.require_well(guest, before)
        require_none(lab, guest)


def test_managed_save(lab: Lab) -> None:
    with lab.guest(emulator(PATCHED)) as guest:
        before = guest.state()
        lab.managed_save(guest)
        lab.require_well(guest, before)
        saved, started = lab.conversations(guest, lab.a)
        assert channel_type(saved, "migrate") is None
        assert channel_type(started, "migrate-incoming") is None


def wait_until_paused(lab: Lab, guest: Guest) -> None:
    """Both QEMUs: libvirt says so when it has heard of one."""
    deadline = time.monotonic() + LIMIT
    while not all("postcopy-paused" in lab.conversation(guest, host).statuses()
                  for host in (lab.a, lab.b)):
        assert time.monotonic() < deadline, guest.qmp("query-migrate")
        time.sleep(0.05)


def test_resume(lab: Lab) -> None:
    """A postcopy that was interrupted goes on over an URI: migrate-recover knows nothing else."""
    with lab.guest(emulator(PATCHED)) as guest:
        before = guest.state()
        # Slow after the switch as well, or it might end before it is interrupted.
        way = POSTCOPY._replace(options=(*POSTCOPY.options, "--postcopy-bandwidth", "1"))
        migration = lab.begin(guest, way)
        assert lab.wait_status(guest, "active", migration)
        lab.a.ask("migrate-postcopy", guest.name)
        assert lab.wait_status(guest, "postcopy-active", migration)
        lab.a.ask("domjobabort", "--postcopy", guest.name)
        assert not migration.result().ok
        wait_until_paused(lab, guest)
        lab.a.ask("migrate", "--live", "--p2p", "--persistent", "--undefinesource", "--postcopy",
                  "--postcopy-resume", guest.name, lab.b.uri, "tcp://127.0.0.1")
        guest.host = lab.b
        lab.require_well(guest, before)
        first, second = [command.arguments for command in
                         lab.conversation(guest, lab.a).commands("migrate")]
        assert first["channels"][0]["channel-type"] == "handshake" and not first["resume"]
        assert second["uri"].startswith("tcp:") and second["resume"]


def make_image(path: Path, *bitmaps: str) -> Path:
    image = QEMU.resolve().parent / "qemu-img"
    assert run([image, "create", "-q", "-f", "qcow2", path, "8M"]).ok
    for name in bitmaps:
        assert run([image, "bitmap", "--add", path, name]).ok
    return path


def test_copied_disk(lab: Lab) -> None:
    """That takes hours, so the QEMUs talk before it as well, and Prepare need not find out what
    the destination cannot do."""
    here, there = make_image(lab.path(".here"), "kept"), make_image(lab.path(".there"))
    with lab.guest(emulator(PATCHED), devices=DISK.format(here)) as guest:
        options = ["--copy-storage-all"]
        for option, kind in (("--xml", "--migratable"), ("--persistent-xml", "--inactive")):
            path = lab.path(".xml")
            path.write_text(lab.a.ask("dumpxml", kind, guest.name).replace(str(here), str(there)))
            options += [option, str(path)]
        arrive(lab, guest, P2P_TCP._replace(options=tuple(options)))
        require_handshake(lab, guest, OTHERS | {"dirty-bitmaps"})
        assert capabilities_set(lab.conversation(guest, lab.b))[1] == {
            "late-block-activate", "dirty-bitmaps"}
        nodes = guest.qmp("query-named-block-nodes")
        assert ["kept"] in [[one["name"] for one in node.get("dirty-bitmaps", [])]
                            for node in nodes]


def test_cancel(lab: Lab) -> None:
    with lab.guest(emulator(PATCHED)) as guest:
        before = guest.state()
        result = lab.cancel(guest, SLOW)
        assert not result.ok and "canceled" in result.stderr, result
        assert guest.host is lab.a
        lab.require_well(guest, before)
        assert switched_on(guest) == {"events"}
        arrive(lab, guest, P2P_TCP)
        require_handshake(lab, guest, OTHERS)


# Refused

REFUSED = {
    "device": ((), ["the state of '0000:00:02.0/virtio-rng', which the destination does not"]),
    "machine": (("-machine", OTHER_MACHINE, *RNG, *BALLOON),
                [f"machine type is '{MACHINE}' on the source and '{OTHER_MACHINE}' on the"]),
    "many": (("-machine", OTHER_MACHINE),
             [f"machine type is '{MACHINE}' on the source and '{OTHER_MACHINE}' on the",
              "0000:00:02.0/virtio-rng", "0000:00:03.0/virtio-balloon"]),
}


@pytest.mark.parametrize("direct", [False, True], ids=["p2p", "direct"])
@pytest.mark.parametrize("case", REFUSED)
def test_refused(lab: Lab, case: str, direct: bool) -> None:
    """virsh prints all of the destination's reasons, and nothing has happened to the guest."""
    arguments, reasons = REFUSED[case]
    with lab.guest(emulator(PATCHED), [*RNG, *BALLOON]) as guest:
        before = guest.state()
        settings = guest.qmp("query-migrate-parameters")
        way = P2P_TCP._replace(options=("--xml", str(lab.passing(guest, *arguments))),
                               p2p=not direct)
        result = lab.migrate(guest, way)
        assert not result.ok
        assert "the destination refused the migration: " in result.stderr
        for reason in reasons:
            assert reason in result.stderr, result.stderr
        assert result.stderr.count("machine type is") <= 1
        lab.require_well(guest, before)
        assert switched_on(guest) == {"events"}
        assert guest.qmp("query-migrate-parameters") == settings
        told = lab.handshakes(guest)["A"]
        assert told and told["status"] == "rejected"
        assert not lab.conversation(guest, lab.a).events("STOP")
        # With what it is told to be, it moves.
        arrive(lab, guest, P2P_TCP)
        require_handshake(lab, guest, OTHERS)


def test_machine_type_of_libvirt(lab: Lab) -> None:
    """What libvirt itself can see it refuses itself, as ever."""
    with lab.guest(emulator(PATCHED)) as guest:
        before = guest.state()
        other = lab.passing(guest, machine=OTHER_MACHINE)
        result = lab.migrate(guest, P2P_TCP._replace(options=("--xml", str(other))))
        assert not result.ok
        assert OTHER_MACHINE in result.stderr and MACHINE in result.stderr
        lab.require_well(guest, before)


# Whoever cannot

MIXES = [(a, b) for a in ((SERIES, PATCHED), (SERIES, STOCK), (UNCHANGED, PATCHED),
                          (UNCHANGED, STOCK))
         for b in ((SERIES, PATCHED), (SERIES, STOCK), (UNCHANGED, PATCHED), (UNCHANGED, STOCK))]


@pytest.fixture(name="mixed", scope="module")
def make_mixed(lab: Lab) -> Iterator[dict[tuple[str, str], Lab]]:
    unchanged, changed = fetched(), lab.a.installation
    with (laboratory(changed, unchanged) as first, laboratory(unchanged, changed) as second,
          laboratory(unchanged) as third):
        yield {(SERIES, SERIES): lab, (SERIES, UNCHANGED): first,
               (UNCHANGED, SERIES): second, (UNCHANGED, UNCHANGED): third}


@pytest.mark.parametrize("way", [DIRECT_UNIX, PARALLEL], ids=lambda way: way.name)
@pytest.mark.parametrize(("a", "b"), MIXES, ids=lambda side: "-".join(side))
def test_mix(mixed: dict[tuple[str, str], Lab], a: tuple[str, str], b: tuple[str, str],
             way: Way) -> None:
    """libvirt and QEMU of both sides: a handshake if all four can, a migration always."""
    lab = mixed[a[0], b[0]]
    with lab.guest(emulator(a[1])) as guest:
        arrive(lab, guest, way, emulator(b[1]))
        if a == b == (SERIES, PATCHED):
            require_handshake(lab, guest, AGREED.get(way.name, OTHERS))
        else:
            require_none(lab, guest)


# Less to say

def told_to_set(conversation: Conversation) -> list[str]:
    """What the destination was asked and told about settings, from when it waits for a guest."""
    return [command.name for command in conversation.commands_once_started()
            if command.name in SETTING]


def test_fewer_commands(mixed: dict[tuple[str, str], Lab]) -> None:
    found: dict[str, list[str]] = {}
    source: dict[str, list[str]] = {}
    for kind in (SERIES, UNCHANGED):
        lab = mixed[kind, kind]
        with lab.guest(emulator(PATCHED)) as guest:
            arrive(lab, guest, P2P_TCP)
            found[kind] = told_to_set(lab.conversation(guest, lab.b))
            source[kind] = [command.name for command in lab.conversation(guest, lab.a).commands()
                            if command.name in SETTING]
    assert found[UNCHANGED] == ["query-migrate-parameters", "migrate-set-capabilities",
                                "migrate-set-parameters", "migrate-set-capabilities",
                                "migrate-set-parameters"]
    assert found[SERIES] == ["migrate-set-capabilities", "migrate-set-capabilities"]
    assert source[SERIES] == source[UNCHANGED]
