# SPDX-License-Identifier: GPL-2.0-or-later
"""virsh migrate --check-only says whether a guest could migrate, and nothing else happens.

The hosts have a directory in common that libvirt believes to be on shared storage, and give what
guests use to a group of their own: so it shows whether a check changes owners. Others remember
whose it was, which libvirt allows only if the new owner is the same on both.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple, Optional

import pytest
from conftest import QEMU
from daemons import LIMIT, Failed, Host, Result, Running, Setup, fetched, run
from emulators import PATCHED, STOCK, emulator
from lab import (DIRECT_TCP, DIRECT_UNIX, MEMORY_MIB, MIGRATION_LIMIT, P2P_TCP, PARALLEL,
                 POSTCOPY, SLOW, TLS, TUNNELLED, WAYS, Guest, Lab, State, Way, laboratory)
from series import series

ALL_AT_ONCE = Way("TLS, parallel", "tcp", (*TLS.options, *PARALLEL.options))
AGREED = {
    PARALLEL.name: "return-path,multifd,switchover-ack",
    ALL_AT_ONCE.name: "return-path,multifd,switchover-ack",
    POSTCOPY.name: "return-path,postcopy-ram,switchover-ack,postcopy-preempt",
}
OTHERS = "return-path,switchover-ack"
CHECKED = [way._replace(switch=False) for way in WAYS if way != TUNNELLED]
BOTH = [P2P_TCP, DIRECT_TCP]

RNG = ("-device", "virtio-rng-pci,addr=0x10")
BALLOON = ("-device", "virtio-balloon-pci")
DISK = ("<disk type='file' device='disk'><driver name='qemu' type='{}'/>"
        "<source file='{}'/><target dev='vda' bus='virtio'/></disk>")
DATA = ("<source file='{}'><dataStore type='file'><format type='raw'/><source file='{}'/>"
        "</dataStore></source>")
CONSOLE = "<serial type='file'><source path='{}'/></serial>"
PIPE = "<serial type='pipe'><source path='{}'/></serial>"
SOCKET = "<serial type='unix'><source mode='bind' path='{}'/></serial>"
SOUND = "<sound model='ac97'/><audio id='1' type='file' path='{}'/>"
NVDIMM = ("<memory model='nvdimm' access='shared'><source><path>{}</path></source>"
          "<target><size unit='MiB'>{}</size><node>0</node></target></memory>")
NVDIMM_MIB = 16
SLOTS = f"""
  <maxMemory slots='2' unit='MiB'>512</maxMemory>
  <cpu><numa><cell id='0' cpus='0' memory='{MEMORY_MIB}' unit='MiB'/></numa></cpu>
"""
PSTORE = "<pstore backend='acpi-erst'><path>{}</path><size unit='KiB'>64</size></pstore>"
SIZE = 8 << 20

GROUPS = {"A": 64055, "B": 64056}

# Says what happens, and waits as long as there is a file that says what for.
HOOK = """#!/bin/sh
[ "$1 $2" != "refused migrate" ] || exit 1
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
    return Setup(conf={"group": f"+{GROUPS[name]}", "dynamic_ownership": 1,
                       "shared_filesystems": [str(shared)]},
                 hook=HOOK.format(directory=directory, name=name))


def set_up_to_remember(_: str, directory: Path) -> Setup:
    return set_up("A", directory)._replace(
        conf={**set_up("A", directory).conf, "remember_owner": 1}, hook="")


@pytest.fixture(name="lab", scope="module")
def make_lab() -> Iterator[Lab]:
    with laboratory(series(), setup=set_up) as lab:
        yield lab


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


def parameters(guest: Guest, of: str = "--handshake") -> dict[str, str]:
    """The result as programs get it."""
    said = guest.host.ask("domjobinfo", of, "--rawstats", guest.name)
    return dict(line.split(": ", 1) for line in said.splitlines() if ": " in line)


def complaints(host: Host) -> list[str]:
    """What the daemon believes to be errors; that a client goes is one of them, as ever."""
    return [line for line in host.log.read_text(errors="replace").splitlines()
            if ": error :" in line and " virNetSocketReadWire:" not in line]


@pytest.mark.parametrize("way", CHECKED, ids=lambda way: way.name)
def test_yes(lab: Lab, way: Way) -> None:
    with lab.guest(emulator(PATCHED), [*RNG, *BALLOON]) as guest:
        known = {host.name: complaints(host) for host in (lab.a, lab.b)}
        with nothing_happens(lab, guest):
            require_yes(lab.check(guest, way), AGREED.get(way.name, OTHERS))
        for host in (lab.a, lab.b):
            assert complaints(host) == known[host.name]
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


@pytest.mark.parametrize("way", [DIRECT_UNIX, P2P_TCP, PARALLEL, POSTCOPY, TLS],
                         ids=lambda way: way.name)
def test_no(lab: Lab, way: Way) -> None:
    """Every reason, with both values, for people and for programs; and warnings."""
    with lab.guest(emulator(PATCHED), [*RNG, "-device", "virtio-serial-pci"]) as guest:
        other = lab.passing(guest, "-machine", "pc-i440fx-9.2", *RNG, *BALLOON)
        with nothing_happens(lab, guest):
            result = lab.check(guest, way, "--xml", other)
            require_no(result, "machine type is 'pc-i440fx-10.0' on the source and "
                               "'pc-i440fx-9.2' on the destination",
                       "virtio-console")
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


# Storage

class Image(NamedTuple):
    """What nobody else may change of a file."""

    owner: tuple[int, int, int]
    remembered: dict[str, bytes]
    changed: int
    content: str


def image(path: Path) -> Image:
    found = path.stat()
    return Image((found.st_uid, found.st_gid, found.st_mode),
                 {name: os.getxattr(path, name) for name in os.listxattr(path)},
                 found.st_mtime_ns,
                 hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "")


def make_image(path: Path, size: int = SIZE, backing: Optional[Path] = None,
               data: Optional[Path] = None) -> Path:
    tool = QEMU.resolve().parent / "qemu-img"
    more = ["-b", str(backing), "-F", "qcow2"] if backing else []
    more += ["-o", f"data_file={data}"] if data else []
    assert run([tool, "create", "-q", "-f", "qcow2", *more, path, str(size)]).ok
    return path


def require_kept(lab: Lab, way: Way, *more: Path, devices: str = "") -> None:
    """What is on shared storage, and belongs to the source's QEMU now."""
    def shared(kind: str) -> Path:
        return lab.directory / "shared" / f"{way.transport}-{way.p2p}.{kind}"

    base, pstore, nvdimm = (shared(kind) for kind in ("base", "pstore", "nvdimm"))
    data = lab.path(".data")        # libvirt may not know what is shared
    make_image(base)
    disk = make_image(shared("disk"), backing=base, data=data)
    nvdimm.write_bytes(bytes(NVDIMM_MIB << 20))
    devices += (DISK.format("qcow2", disk).replace(f"<source file='{disk}'/>",
                                                   DATA.format(disk, data))
                + PSTORE.format(pstore)
                + NVDIMM.format(nvdimm, NVDIMM_MIB))
    with lab.guest(emulator(PATCHED), RNG, devices=devices, more=SLOTS) as guest:
        paths = (base, data, disk, pstore, nvdimm, lab.kernel, *more)
        for path in more:
            if path.is_file():
                path.write_text("It has said something.")
        before = [image(path) for path in paths]
        for path in (data, disk, pstore, nvdimm, lab.kernel):
            assert image(path).owner[1] == GROUPS["A"]
        there = sorted(disk.parent.iterdir())
        with nothing_happens(lab, guest):
            require_yes(lab.check(guest, way))
            assert [image(path) for path in paths] == before
            other = lab.passing(guest)
            other.write_text(other.read_text().replace(str(pstore), f"{pstore}.new"))
            require_no(lab.check(guest, way, "--xml", other), "virtio-rng")
        assert [image(path) for path in paths] == before
        assert sorted(disk.parent.iterdir()) == there
        # A migration does what a check must not do.
        assert lab.migrate(guest, way).ok
        assert image(disk) != before[2] and image(nvdimm) != before[4]


@pytest.mark.parametrize("way", BOTH, ids=lambda way: way.name)
def test_shared_storage(lab: Lab, way: Way) -> None:
    """The images keep owner and label, whatever the other host would give them."""
    console, pipe, socket, sound = (
        lab.directory / "shared" / f"{way.transport}-{way.p2p}.{kind}"
        for kind in ("console", "pipe", "socket", "sound"))
    os.mkfifo(pipe)
    require_kept(lab, way, console, pipe, socket, sound,
                 devices=CONSOLE.format(console) + PIPE.format(pipe) + SOCKET.format(socket)
                 + SOUND.format(sound))


def test_remembered_owners(tmp_path: Path) -> None:
    """And so do those whose owner libvirt remembers, and how many have asked it to."""
    probe = tmp_path / "probe"
    probe.touch()
    try:
        os.setxattr(probe, "trusted.probe", b"")
    except OSError:
        pytest.skip("files have no room for what libvirt remembers")
    with laboratory(series(), setup=set_up_to_remember) as lab:
        with lab.guest(emulator(PATCHED)):
            assert image(lab.kernel).remembered
        require_kept(lab, P2P_TCP)


def test_memory_that_does_not_fit(lab: Lab) -> None:
    """What stands in place of a file does not hide that the real one would not do."""
    here, small = lab.path(".nvdimm"), lab.path(".nvdimm")
    here.write_bytes(bytes(NVDIMM_MIB << 20))
    small.write_bytes(bytes(NVDIMM_MIB << 19))
    with lab.guest(emulator(PATCHED), devices=NVDIMM.format(here, NVDIMM_MIB),
                   more=SLOTS) as guest, nothing_happens(lab, guest):
        def checked(there: Path) -> Result:
            other = lab.passing(guest)
            other.write_text(other.read_text().replace(str(here), str(there)))
            return lab.check(guest, P2P_TCP, "--xml", other)

        require_yes(checked(here))
        result = checked(small)
        assert result.status == 1 and lines(result)["Can migrate"] == "no", result
        assert f"does not fit into '{small}' of {NVDIMM_MIB << 19} bytes" in result.stderr, result
        missing = lab.path(".nvdimm")
        result = checked(missing)
        assert result.status == 1 and f"unable to stat '{missing}'" in result.stderr, result
        assert not missing.exists() and small.stat().st_size == NVDIMM_MIB << 19


def copied(lab: Lab, guest: Guest, here: Path, there: Path, *arguments: str) -> list[str]:
    """Options to copy a disk to another place."""
    path = lab.passing(guest, *arguments)
    path.write_text(path.read_text().replace(str(here), str(there)))
    return ["--copy-storage-all", "--xml", str(path)]


@pytest.mark.parametrize("way", [*BOTH, ALL_AT_ONCE], ids=lambda way: way.name)
def test_copied_storage(lab: Lab, way: Way) -> None:
    """Nothing is copied, and what is there is looked at only."""
    here, there = make_image(lab.path(".here")), make_image(lab.path(".there"))
    small = make_image(lab.path(".small"), SIZE // 2)
    with lab.guest(emulator(PATCHED), RNG, devices=DISK.format("qcow2", here)) as guest:
        before = [image(path) for path in (there, small)]
        with nothing_happens(lab, guest):
            result = lab.check(guest, way, *copied(lab, guest, here, there, *RNG))
            require_yes(result, AGREED.get(way.name, OTHERS))
            assert "Would create" not in result.stdout and ".create." not in str(parameters(guest))
            require_no(lab.check(guest, way, *copied(lab, guest, here, there)), "virtio-rng")
            result = lab.check(guest, way, *copied(lab, guest, here, small, *RNG))
            assert result.status == 1 and lines(result)["Can migrate"] == "no"
            assert f"disk 'vda' has {SIZE} bytes on the source and {SIZE // 2} bytes in" in (
                result.stderr)
        assert [image(path) for path in (there, small)] == before
        for host in (lab.a, lab.b):
            for conversation in lab.conversations(guest, host):
                assert not conversation.commands("nbd-server-start")
                assert not conversation.commands("blockdev-mirror")


@pytest.mark.parametrize("way", BOTH, ids=lambda way: way.name)
def test_missing_storage(lab: Lab, way: Way) -> None:
    """It is not created. Without a pool, it could not be either."""
    here, missing = make_image(lab.path(".here")), lab.path(".missing")
    with lab.guest(emulator(PATCHED), devices=DISK.format("qcow2", here)) as guest:
        with nothing_happens(lab, guest):
            result = lab.check(guest, way, *copied(lab, guest, here, missing))
            assert result.status == 1 and "Can migrate" not in result.stdout
        assert not missing.exists()


@pytest.fixture(name="images", scope="module")
def make_pool(lab: Lab) -> Path:
    """A directory in which B may create disks."""
    place = lab.directory / "images"
    place.mkdir()
    lab.b.ask("pool-create-as", "here", "dir", "--target", place)
    return place


@pytest.mark.parametrize("way", BOTH, ids=lambda way: way.name)
def test_created_storage(lab: Lab, images: Path, way: Way) -> None:
    """What is not there would be created, which is told to whoever asks, and is done by a
    migration only."""
    here, missing = lab.path(".here"), images / f"{way.p2p}.img"
    here.write_bytes(bytes(SIZE))
    line = (f"Would create:     volume '{missing.name}' of {SIZE} bytes in pool 'here' for disk "
            "'vda'\n")
    with lab.guest(emulator(PATCHED), RNG, devices=DISK.format("raw", here)) as guest:
        with nothing_happens(lab, guest):
            options = copied(lab, guest, here, missing, *RNG)
            result = lab.check(guest, way, *options)
            require_yes(result)
            assert line in result.stdout, result
            told = parameters(guest)
            created = {key: value for key, value in told.items() if ".create." in key}
            assert created == {
                "handshake.create.count": "1", "handshake.create.0.disk": "vda",
                "handshake.create.0.pool": "here", "handshake.create.0.volume": missing.name,
                "handshake.create.0.capacity": str(SIZE)}
            result = lab.check(guest, way, *copied(lab, guest, here, missing))
            require_no(result, "virtio-rng")
            assert line in result.stdout, result
        assert not missing.exists()
        before = guest.state()
        result = lab.begin(guest, way, None, *options).result(LIMIT)
        assert result.ok, result
        assert missing.stat().st_size == SIZE
        guest.host = lab.b
        lab.require_well(guest, before)
        assert not [key for key in parameters(guest) if ".create." in key]


def test_before_disks_are_copied(lab: Lab) -> None:
    """A refusal comes before a byte has been copied."""
    here, there = make_image(lab.path(".here")), make_image(lab.path(".there"))
    with lab.guest(emulator(PATCHED), RNG, devices=DISK.format("qcow2", here)) as guest:
        before, empty = guest.state(), image(there).content
        told = len(lab.conversation(guest, lab.a).messages)
        result = lab.begin(guest, P2P_TCP, None, *copied(lab, guest, here, there)).result(LIMIT)
        assert not result.ok and "0000:00:10.0/virtio-rng" in result.stderr, result
        assert "section-missing" in result.stderr
        assert image(there).content == empty
        conversation = lab.conversation(guest, lab.a)
        names = [one.body["execute"] for one in conversation.messages[told:]
                 if one.kind == "command"]
        assert "migrate" in names and "blockdev-mirror" not in names
        assert not conversation.events("BLOCK_JOB_READY")
        lab.require_well(guest, before)
        # With the device it goes, and is asked before and after.
        told = len(conversation.messages)
        options = copied(lab, guest, here, there, *RNG)
        result = lab.begin(guest, P2P_TCP, None, *options).result(LIMIT)
        assert result.ok, result
        conversation = lab.conversation(guest, lab.a)
        names = [one.body["execute"] for one in conversation.messages[told:]
                 if one.kind == "command"]
        order = [name for name in names if name in ("migrate", "blockdev-mirror")]
        assert order == ["migrate", "blockdev-mirror", "migrate"]
        guest.host = lab.b
        lab.require_well(guest, before)


# Ignored

def raw_disk(path: Path, writable: bool) -> tuple[str, ...]:
    readonly = "off" if writable else "on"
    return ("-drive", f"if=none,id=raw,file={path},format=raw,readonly={readonly}",
            "-device", "virtio-blk-pci,drive=raw")


def logged(host: Host, level: str, *words: str) -> bool:
    return any(f": {level} :" in line and all(word in line for word in words)
               for line in host.log.read_text(errors="replace").splitlines())


@pytest.mark.parametrize("way", [*BOTH, PARALLEL], ids=lambda way: way.name)
def test_ignored(lab: Lab, way: Way) -> None:
    """It is a warning then: of a check, and of the migration, on either host."""
    disk = lab.path(".raw")
    disk.write_bytes(bytes(1 << 20))
    reason = "can be written on the source, and not on the destination"
    agreed = AGREED.get(way.name, OTHERS)
    with lab.guest(emulator(PATCHED), raw_disk(disk, True)) as guest:
        other = lab.passing(guest, *raw_disk(disk, False))
        before = guest.state()
        with nothing_happens(lab, guest):
            require_no(lab.check(guest, way, "--xml", other), reason)
            require_no(lab.check(guest, way, "--xml", other, "--ignore-issues", "cpu,device"),
                       reason)
            result = lab.check(guest, way, "--xml", other, "--ignore-issues", "cpu,disk")
            require_yes(result, agreed)
            assert "\nwarning: disk: " in result.stdout and "(ignored)" in result.stdout
            result = lab.check(guest, way, "--ignore-issues", "machine-type")
            assert result.status == 1 and "machine-type" in result.stderr, result
        result = lab.begin(guest, way, None, "--xml", other).result(LIMIT)
        assert not result.ok and reason in result.stderr, result
        result = lab.begin(guest, way, None, "--xml", other, "--ignore-issues", "disk"
                           ).result(LIMIT)
        assert result.ok, result
        guest.host = lab.b
        lab.require_well(guest, before)
        told = parameters(guest)
        assert told["handshake.status"] == "accepted" and told["handshake.check_only"] == "0"
        assert told["handshake.issue.0.severity"] == "warning"
        assert set(told["handshake.capabilities"].split(",")) == set(agreed.split(","))
        said = parameters(guest, "--completed")
        assert said["handshake.status"] == "accepted" and int(said["handshake.duration"]) > 0
        assert said["handshake.capabilities"] == told["handshake.capabilities"]
        for host in (lab.a, lab.b):
            assert logged(host, "warning", f"{guest.name}: disk 0 of")


@pytest.mark.parametrize("way", BOTH, ids=lambda way: way.name)
def test_warnings(lab: Lab, way: Way) -> None:
    """What does not keep a guest from migrating is told nevertheless: a warning as one, in the log
    as well, and that there is no way back for those who want to know."""
    with lab.guest(emulator(PATCHED)) as guest:
        other = lab.passing(guest, *RNG)
        before = guest.state()
        with nothing_happens(lab, guest):
            result = lab.check(guest, way, "--xml", other)
            require_yes(result)
            assert "\nwarning: section-extra: " in result.stdout
            assert "\ninfo: no-return: " in result.stdout
        result = lab.begin(guest, way, None, "--xml", other).result(LIMIT)
        assert result.ok, result
        guest.host = lab.b
        lab.require_well(guest, before)
        told = parameters(guest)
        assert {told[f"handshake.issue.{number}.code"]
                for number in range(int(told["handshake.issue.count"]))} == {
                    "section-extra", "no-return"}
        for host in (lab.a, lab.b):
            said = f"Migration of domain {guest.name}: "
            assert logged(host, "warning", said, "(section-extra)")
            assert logged(host, "info", f"{said}info: ", "(no-return)")
            assert not logged(host, "warning", said, "(no-return)")
            assert not logged(host, "error", said)


# Carries one connection only.
NARROW = """
import select, socket
listener = socket.create_server(("127.0.0.2", {0}))
print("ready", flush=True)
near = listener.accept()[0]
listener.close()
far = socket.create_connection(("127.0.0.1", {0}))
while True:
    for one, other in ((near, far), (far, near)):
        if select.select([one], [], [], 0.01)[0]:
            other.sendall(one.recv(1 << 20) or exit())
"""
NARROW_PORT = 49901


@pytest.mark.parametrize("way", BOTH, ids=lambda way: way.name)
def test_declined(lab: Lab, way: Way) -> None:
    """What was optional and is not used is told, and why."""
    lab.run([sys.executable, "-c", NARROW.format(NARROW_PORT + way.p2p)])
    options = ["migrate", "--live", "--postcopy", "--persistent", "--undefinesource",
               *(["--p2p"] if way.p2p else [])]
    with lab.guest(emulator(PATCHED)) as guest:
        before = guest.state()
        result = lab.a.virsh(*options, guest.name, lab.b.uri,
                             f"tcp://127.0.0.2:{NARROW_PORT + way.p2p}",
                             "--listen-address", "127.0.0.1", limit=MIGRATION_LIMIT)
        assert result.ok, result
        guest.host = lab.b
        lab.require_well(guest, before)
        told = parameters(guest)
        assert told["handshake.declined.count"] == "1"
        assert told["handshake.declined.0.capability"] == "postcopy-preempt"
        reason = told["handshake.declined.0.reason"]
        assert f"\nNot used:         postcopy-preempt: {reason}\n" in lab.b.ask(
            "domjobinfo", "--handshake", guest.name)
        said = parameters(guest, "--completed")
        assert set(said["handshake.capabilities"].split(",")) == {
            "return-path", "postcopy-ram", "switchover-ack"}
        line = f"Migration of domain {guest.name}: 'postcopy-preempt' is not used: "
        for host in (lab.a, lab.b):
            assert logged(host, "info", line, reason)
            assert not logged(host, "warning", line) and not logged(host, "error", line)


def test_last_words(lab: Lab) -> None:
    """Why the destination could not load what it was not to refuse."""
    with lab.guest(emulator(PATCHED), RNG) as guest:
        before = guest.state()
        result = lab.begin(guest, P2P_TCP, None, "--xml", lab.passing(guest),
                           "--ignore-issues", "section-missing").result(LIMIT)
        assert not result.ok, result
        told = parameters(guest)
        words = [told[f"handshake.issue.{number}.message"]
                 for number in range(int(told["handshake.issue.count"]))
                 if told[f"handshake.issue.{number}.code"] == "load"]
        assert words and all(one in result.stderr for one in words), (words, result)
        lab.require_well(guest, before)


# In the middle of it

@contextlib.contextmanager
def holding(lab: Lab, host: Host, what: str) -> Iterator[Callable[[Running], None]]:
    """The host's hook waits when that happens to a guest there, until the end. What is given
    returns once it waits in the middle of what is running."""
    hold, mark = (lab.directory / f"{host.name}.{word}" for word in ("hold", "held"))
    mark.unlink(missing_ok=True)        # of one that was just leaving
    hold.write_text(what)

    def wait(running: Running) -> None:
        deadline = time.monotonic() + LIMIT
        while not mark.exists():
            if running.over or time.monotonic() > deadline:
                raise Failed(f"{host.name} is not held: {running.result(0)}")
            time.sleep(0.02)
    try:
        yield wait
    finally:
        hold.unlink(missing_ok=True)
        mark.unlink(missing_ok=True)


BUSY = "another migration job is already running"


def test_meanwhile(lab: Lab) -> None:
    """It is a job, and can be cancelled as one."""
    with lab.guest(emulator(PATCHED)) as guest, nothing_happens(lab, guest):
        with holding(lab, lab.b, "start") as wait:
            checking = lab.begin_check(guest, P2P_TCP)
            wait(checking)
            said = lab.a.ask("domjobinfo", "--anystats", guest.name)
            assert "Migration check" in said and "Memory" not in said
            for way in BOTH:
                result = lab.check(guest, way)
                assert result.status == 1 and BUSY in result.stderr, result
                result = lab.migrate(guest, way)
                assert result.status == 1 and BUSY in result.stderr, result
            lab.a.ask("domjobabort", guest.name)
        result = checking.result(LIMIT)
        assert result.status == 1 and "canceled by client" in result.stderr, result
        require_yes(lab.check(guest, P2P_TCP))


@pytest.mark.parametrize("way", BOTH, ids=lambda way: way.name)
def test_during_migration(lab: Lab, way: Way) -> None:
    with lab.guest(emulator(PATCHED)) as guest:
        before = guest.state()
        migration = lab.begin(guest, SLOW)
        assert lab.wait_status(guest, "active", migration)
        result = lab.check(guest, way)
        assert result.status == 1 and BUSY in result.stderr, result
        lab.a.ask("domjobabort", guest.name)
        assert "canceled by client" in migration.result(LIMIT).stderr
        lab.require_well(guest, before)


def test_client_gone(lab: Lab) -> None:
    """Whoever asked has died, and has taken along the connection to the destination."""
    with lab.guest(emulator(PATCHED)) as guest, nothing_happens(lab, guest):
        with holding(lab, lab.b, "started") as wait:
            checking = lab.begin_check(guest, DIRECT_TCP)
            wait(checking)
            checking.end()
        deadline = time.monotonic() + LIMIT
        while guest.name in lab.b.ask("list", "--all", "--name"):
            assert time.monotonic() < deadline
            time.sleep(0.05)
        require_yes(lab.check(guest, DIRECT_TCP))


def kill(pids: list[int]) -> None:
    assert pids
    for pid in pids:
        os.kill(pid, signal.SIGKILL)


def require_as_before(lab: Lab, guest: Guest, before: Seen, state: State) -> None:
    """Though somebody has died: no QEMU is left over, and it can be asked again."""
    deadline = time.monotonic() + LIMIT
    while lab.b.qemu(guest.name) or guest.name in lab.b.ask("list", "--all", "--name"):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    # A daemon that has come back has to find out first how the guest is doing.
    guest.qmp("query-status")
    after = seen(lab, guest)
    assert after._replace(status=None, xml="") == before._replace(status=None, xml="")
    assert after.status and "<job " not in after.status
    lab.require_well(guest, state)
    require_yes(lab.check(guest, P2P_TCP))


@pytest.mark.parametrize("victim", ["source", "destination", "QEMU"])
def test_dies_meanwhile(lab: Lab, victim: str) -> None:
    """A daemon, which then comes back, or the destination's QEMU: no QEMU is left over, and
    nothing of it in the guest's."""
    with lab.guest(emulator(PATCHED)) as guest:
        before, state = seen(lab, guest), guest.state()
        with holding(lab, lab.b, "started") as wait:
            checking = lab.begin_check(guest, P2P_TCP)
            wait(checking)
            if victim == "QEMU":
                kill(lab.b.qemu(guest.name))
            else:
                host = lab.a if victim == "source" else lab.b
                kill(host.daemon)
                result = checking.result(LIMIT)
                host.start()
        result = checking.result(LIMIT) if victim == "QEMU" else result
        assert result.status == 1 and "Can migrate" not in result.stdout, result
        require_as_before(lab, guest, before, state)


# Takes all connections, and answers none.
SILENT = """
import socket
listener = socket.create_server(("127.0.0.2", {}))
print("ready", flush=True)
taken = []
while True:
    taken.append(listener.accept())
"""
PORT = 49900


@pytest.fixture(name="silent", scope="module")
def make_silent(lab: Lab) -> list[str]:
    """What makes the source's QEMU wait for an answer that does not come. The destination's
    listens on the same port of another address."""
    lab.run([sys.executable, "-c", SILENT.format(PORT)])
    return [f"tcp://127.0.0.2:{PORT}", "--listen-address", "127.0.0.1"]


def begin_waiting(lab: Lab, guest: Guest, way: Way, silent: list[str]) -> Running:
    """A check, once the source's QEMU waits for the other one."""
    asked = len(lab.conversation(guest, lab.a).commands("migrate"))
    checking = lab.a.begin("migrate", "--live", "--check-only", *(["--p2p"] if way.p2p else []),
                           guest.name, lab.b.uri, *silent)
    deadline = time.monotonic() + LIMIT
    while len(lab.conversation(guest, lab.a).commands("migrate")) == asked:
        if checking.over or time.monotonic() > deadline:
            raise Failed(f"no check: {checking.result(0)}; {lab.last_commands(guest)}")
        time.sleep(0.02)
    return checking


@pytest.mark.parametrize("way", BOTH, ids=lambda way: way.name)
def test_cancelled_while_asking(lab: Lab, silent: list[str], way: Way) -> None:
    """It ends at once, not when QEMU gives up."""
    with lab.guest(emulator(PATCHED)) as guest, nothing_happens(lab, guest):
        checking = begin_waiting(lab, guest, way, silent)
        begin = time.monotonic()
        lab.a.ask("domjobabort", guest.name)
        result = checking.result(LIMIT)
        assert result.status == 1 and "canceled by client" in result.stderr, result
        assert "Can migrate" not in result.stdout
        assert time.monotonic() - begin < 10
        assert not lab.b.qemu(guest.name)
        require_yes(lab.check(guest, way))


@pytest.mark.parametrize("victim", ["source", "destination"])
def test_dies_while_asking(lab: Lab, silent: list[str], victim: str) -> None:
    """A daemon, which then comes back. The guest's QEMU does not go on asking."""
    with lab.guest(emulator(PATCHED)) as guest:
        before, state = seen(lab, guest), guest.state()
        checking = begin_waiting(lab, guest, P2P_TCP, silent)
        host = lab.a if victim == "source" else lab.b
        kill(host.daemon)
        result = checking.result(LIMIT)
        host.start()
        assert result.status == 1 and "Can migrate" not in result.stdout, result
        require_as_before(lab, guest, before, state)


def test_guest_dies_while_asking(lab: Lab, silent: list[str]) -> None:
    """Its QEMU, that is. The other host does not keep what it was asked with."""
    with lab.guest(emulator(PATCHED)) as guest:
        checking = begin_waiting(lab, guest, P2P_TCP, silent)
        kill(lab.a.qemu(guest.name))
        result = checking.result(LIMIT)
        assert result.status == 1 and "Can migrate" not in result.stdout, result
        assert result.stderr.strip(), result
        assert not lab.b.qemu(guest.name) and not lab.a.qemu(guest.name)
        assert guest.name not in lab.b.ask("list", "--all", "--name")


def test_hooks(lab: Lab) -> None:
    """They are called on the destination, as for a migration that fails."""
    with lab.guest(emulator(PATCHED)) as guest:
        for host in (lab.a, lab.b):
            (lab.directory / f"{host.name}.hooks").write_text("")
        require_yes(lab.check(guest, P2P_TCP))
        assert (lab.directory / "A.hooks").read_text() == ""
        assert (lab.directory / "B.hooks").read_text().splitlines() == [
            "migrate begin", "prepare begin", "start begin", "started begin", "stopped end",
            "release end"]


# It cannot be asked

@pytest.mark.parametrize("way", BOTH, ids=lambda way: way.name)
def test_nobody_there(lab: Lab, way: Way) -> None:
    with (lab.guest(emulator(PATCHED), name="refused") as refused,
          nothing_happens(lab, refused)):
        result = lab.check(refused, way)
        assert result.status == 1 and "Hook script execution failed" in result.stderr, result
    with lab.guest(emulator(PATCHED)) as guest, nothing_happens(lab, guest):
        command = ["migrate", "--live", "--check-only", *(["--p2p"] if way.p2p else []), guest.name]
        result = lab.a.virsh(*command, f"qemu+unix:///system?socket={lab.path('.sock')}")
        assert result.status == 1 and "Failed to connect socket" in result.stderr, result
        # The destination listens, but is said to be where nobody does.
        result = lab.a.virsh(*command, lab.b.uri, "tcp://127.0.0.2", "--listen-address",
                             "127.0.0.1")
        assert result.status == 1 and "onnection refused" in result.stderr, result
        result = lab.check(guest, way, "--tls", "--tls-destination", "somewhere.else")
        assert result.status == 1 and "Can migrate" not in result.stdout, result
        require_yes(lab.check(guest, way))


def test_busy_destination(lab: Lab) -> None:
    """It has a guest of that name, which does not notice either."""
    with lab.guest(emulator(PATCHED)) as guest:
        twin = lab.start(emulator(PATCHED), host=lab.b, name=guest.name)
        before = [(one, seen(lab, one), one.state()) for one in (guest, twin)]
        result = lab.check(guest, P2P_TCP)
        assert result.status == 1 and "Can migrate" not in result.stdout, result
        assert f"domain '{guest.name}' already exists with uuid" in result.stderr, result
        for one, known, state in before:
            assert seen(lab, one) == known
            one.wait("for it to go on", lambda now, state=state: now.passes > state.passes)
        assert len(lab.b.qemu(guest.name)) == 1


@pytest.fixture(name="half", scope="module")
def make_half() -> Iterator[Lab]:
    """B insists on TLS, and has lost its keys."""
    def keyless(name: str, directory: Path) -> Setup:
        nothing = directory / "nothing"
        nothing.mkdir(exist_ok=True)
        return Setup(conf={"migrate_tls_force": 1, "migrate_tls_x509_cert_dir": str(nothing)}
                     if name == "B" else {})
    with laboratory(series(), setup=keyless) as lab:
        yield lab


@pytest.mark.parametrize(("side", "way"), [("source", DIRECT_TCP), ("destination", P2P_TCP)],
                         ids=["source", "destination"])
def test_tls_on_one_side(half: Lab, side: str, way: Way) -> None:
    host = half.a if side == "destination" else half.b
    with half.guest(emulator(PATCHED), host=host) as guest, nothing_happens(half, guest):
        result = half.check(guest, way)
        assert result.status == 1 and "only with VIR_MIGRATE_TLS flag" in result.stderr, result
        result = half.check(guest, way, "--tls")
        assert result.status == 1 and "Can migrate" not in result.stdout, result
        assert "ca-cert.pem" in result.stderr, result
        assert not half.other(host).qemu(guest.name)


@pytest.mark.parametrize("options", [("--tunnelled", "--p2p"), ("--offline",),
                                     ("--postcopy", "--postcopy-resume")], ids=" ".join)
def test_not_with(lab: Lab, options: tuple[str, ...]) -> None:
    with lab.guest(emulator(PATCHED)) as guest, nothing_happens(lab, guest):
        result = lab.a.virsh("migrate", "--check-only", *options, guest.name, lab.b.uri)
        assert result.status == 1 and "mutually exclusive" in result.stderr, result


def require_nobody(lab: Lab, guest: Guest, result: Result, what: str, side: str) -> None:
    """It says on which side who cannot, and there was no QEMU to be asked."""
    assert result.status == 1, result
    assert f"{what} on the {side} host does not support checking" in result.stderr, result
    assert not lab.conversations(guest, lab.b)


@pytest.mark.parametrize("way", BOTH, ids=lambda way: way.name)
@pytest.mark.parametrize("side", ["source", "destination"])
def test_stock_qemu(lab: Lab, side: str, way: Way) -> None:
    kinds = (STOCK, PATCHED) if side == "source" else (PATCHED, STOCK)
    with lab.guest(emulator(kinds[0])) as guest, nothing_happens(lab, guest):
        result = lab.check(guest, way, emulator=emulator(kinds[1]))
        require_nobody(lab, guest, result, "QEMU", side)


@pytest.mark.parametrize("side", ["source", "destination"])
def test_unchanged_libvirt(side: str) -> None:
    changed, unchanged = series(), fetched()
    pair = (unchanged, changed) if side == "source" else (changed, unchanged)
    with laboratory(*pair, setup=set_up) as lab, lab.guest(emulator(PATCHED)) as guest:
        with nothing_happens(lab, guest):
            for options in ([], ["--p2p"]):
                result = run([*changed.virsh, "-c", lab.a.uri, "migrate", "--live", "--check-only",
                              *options, guest.name, lab.b.uri, "tcp://127.0.0.1"])
                require_nobody(lab, guest, result, "libvirt", side)
