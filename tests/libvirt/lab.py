# SPDX-License-Identifier: GPL-2.0-or-later
"""Guests that libvirt migrates from one host to the other."""

from __future__ import annotations

import contextlib
import ctypes
import itertools
import json
import os
import time
import xml.etree.ElementTree as ET
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Optional
from xml.sax.saxutils import quoteattr

from daemons import (FILTERS, HERE, LIMIT, Failed, Host, Installation, Pair, Result, Running,
                     hosts, run)
from journal import Conversation, Journal, Json

MACHINE = "pc-i440fx-10.0"
MEMORY_MIB = 64
BOOT_LIMIT = 90.0
MIGRATION_LIMIT = 120.0
STATE = 0x100040        # see guest.S
MAGIC = int.from_bytes(b"DESK", "little")
USERFAULTFD = 323       # the system call, on x86-64

QEMU_NAMESPACE = "http://libvirt.org/schemas/domain/qemu/1.0"
ET.register_namespace("qemu", QEMU_NAMESPACE)

DOMAIN = """
<domain type='qemu' xmlns:qemu='{namespace}'>
  <name>{name}</name>
  <memory unit='MiB'>{memory}</memory>
  <vcpu>1</vcpu>
  <os>
    <type arch='x86_64' machine={machine}>hvm</type>
    <kernel>{kernel}</kernel>
  </os>
  <features><acpi/></features>
  {more}
  <devices>
    <emulator>{emulator}</emulator>
    <controller type='usb' model='none'/>
    <memballoon model='none'/>
    {devices}
  </devices>
  <qemu:commandline>{arguments}</qemu:commandline>
</domain>
"""


class Way(NamedTuple):
    """How virsh is asked to migrate."""

    name: str
    transport: Optional[str] = None     # unix, tcp; None: the connection of the daemons
    options: tuple[str, ...] = ()
    p2p: bool = True
    switch: bool = False                # to postcopy, as soon as it is active


DIRECT_UNIX = Way("direct, unix", "unix", p2p=False)
DIRECT_TCP = Way("direct, tcp", "tcp", p2p=False)
P2P_UNIX = Way("p2p, unix", "unix")
P2P_TCP = Way("p2p, tcp", "tcp")
PARALLEL = Way("parallel", "tcp", ("--parallel", "--parallel-connections", "3"))
# For what is to be done meanwhile: precopy takes ten seconds.
SLOW = Way("slow", "tcp", ("--bandwidth", "3"))
POSTCOPY = Way("postcopy", "tcp", ("--postcopy", *SLOW.options), switch=True)
TLS = Way("TLS", "tcp", ("--tls",))
TUNNELLED = Way("tunnelled", None, ("--tunnelled",))
WAYS = (DIRECT_UNIX, DIRECT_TCP, P2P_UNIX, P2P_TCP, PARALLEL, POSTCOPY, TLS, TUNNELLED)


class State(NamedTuple):
    """What the guest knows of itself."""

    magic: int
    passes: int         # over all of what it writes
    errors: int
    rounds: int         # through all of what it only reads


class Guest:
    """One that has been started. What it was started with goes where it goes."""

    def __init__(self, name: str, host: Host, emulator: Path) -> None:
        self.name = name
        self.host = host
        self.emulator = emulator
        self.known = 0      # how much QEMU had told of migrations before the last one

    def state(self) -> State:
        return State(*peek(self.host, self.name))

    def wait(self, what: str, condition: Callable[[State], bool],
             limit: float = BOOT_LIMIT) -> State:
        deadline = time.monotonic() + limit
        while True:
            state = self.state()
            if state.magic == MAGIC and condition(state):
                return state
            if time.monotonic() > deadline:
                raise Failed(f"{self.name} on {self.host.name}: waited {limit:g} s {what}: {state}")
            time.sleep(0.05)

    def qmp(self, command: str, **arguments: Any) -> Any:
        """What QEMU returns. For names with a dash: **{"a-b": 1}."""
        return qmp(self.host, self.name, command, **arguments)


def peek(host: Host, name: str) -> list[int]:
    said = host.ask("qemu-monitor-command", name, "--hmp", f"xp /4wx {STATE:#x}")
    return [int(word, 16) for word in said.split(":", 1)[1].split()]


def qmp(host: Host, name: str, command: str, **arguments: Any) -> Any:
    said = json.loads(host.ask("qemu-monitor-command", name, json.dumps(
        {"execute": command, "arguments": arguments})))
    if "error" in said:
        raise Failed(f"{name} on {host.name}: {command}: {said['error']['desc']}")
    return said["return"]


class Lab:
    """Two hosts, and the guests on them."""

    def __init__(self, pair: Pair) -> None:
        self.a = pair.a
        self.b = pair.b
        self.more = pair.more
        self.directory = pair.directory
        self._start = pair.start
        self._journals = {host.name: Journal(host.name, host.log) for host in (self.a, self.b)}
        self._numbers = itertools.count(1)
        self.kernel = assemble(self.directory)

    def path(self, suffix: str) -> Path:
        """Of a file that is not there yet."""
        return self.directory / f"{next(self._numbers)}{suffix}"

    def run(self, command: Sequence[Any]) -> None:
        """Something beside the hosts, until they are gone; from when it says something."""
        output = self.path(".output")
        self._start(command, output)
        deadline = time.monotonic() + LIMIT
        while not (output.exists() and output.stat().st_size):
            if time.monotonic() > deadline:
                raise Failed(f"{command[0]} says nothing")
            time.sleep(0.02)

    @property
    def nowhere(self) -> str:
        """The URI of a host that is not there."""
        return f"qemu+unix:///system?mode=direct&socket={self.directory}/nowhere"

    def other(self, host: Host) -> Host:
        return self.b if host is self.a else self.a

    # Guests

    def start(self, emulator: Path, arguments: Sequence[str] = (), machine: str = MACHINE,
              host: Optional[Host] = None, devices: str = "", name: str = "",
              more: str = "") -> Guest:
        """A new one, on A unless told otherwise, once it works."""
        host = host or self.a
        guest = Guest(name or f"guest-{next(self._numbers)}", host, emulator)
        definition = self.path(".xml")
        definition.write_text(DOMAIN.format(
            namespace=QEMU_NAMESPACE, name=guest.name, memory=MEMORY_MIB, kernel=self.kernel,
            machine=quoteattr(machine), emulator=emulator, devices=devices, more=more,
            arguments="".join(f"<qemu:arg value={quoteattr(one)}/>" for one in arguments)))
        host.ask("define", definition)
        host.ask("start", guest.name)
        guest.wait("for its first passes", lambda state: state.passes > 1)
        return guest

    def remove(self, guest: Guest) -> None:
        """Wherever it is, and whatever happens to it there."""
        for host in self.known_on(guest):
            host.virsh("destroy", guest.name)
            host.virsh("undefine", "--managed-save", guest.name)
        if left := self.known_on(guest):
            raise Failed(f"{guest.name} cannot be removed from {left[0].name}")

    def known_on(self, guest: Guest) -> list[Host]:
        """Where it runs, or might be started."""
        return [host for host in (self.a, self.b)
                if guest.name in host.ask("list", "--all", "--name").split()]

    @contextlib.contextmanager
    def guest(self, *arguments: Any, **options: Any) -> Iterator[Guest]:
        """As start() starts it, and gone at the end."""
        guest = self.start(*arguments, **options)
        try:
            yield guest
        finally:
            self.remove(guest)

    # Migrations

    def definition(self, text: str, emulator: Path) -> Path:
        """The file of one that differs in its emulator."""
        domain = ET.fromstring(text)
        element = domain.find("devices/emulator")
        assert element is not None
        element.text = str(emulator)
        result = self.path(".xml")
        result.write_text(ET.tostring(domain, encoding="unicode"))
        return result

    def passing(self, guest: Guest, *arguments: str, machine: str = "") -> Path:
        """Of the same guest, but for what libvirt passes on without understanding it."""
        domain = ET.fromstring(guest.host.ask("dumpxml", "--migratable", guest.name))
        if machine:
            kind = domain.find("os/type")
            assert kind is not None
            kind.set("machine", machine)
        for old in domain.findall(f"{{{QEMU_NAMESPACE}}}commandline"):
            domain.remove(old)
        new = ET.SubElement(domain, f"{{{QEMU_NAMESPACE}}}commandline")
        for value in arguments:
            ET.SubElement(new, f"{{{QEMU_NAMESPACE}}}arg", {"value": value})
        result = self.path(".xml")
        result.write_text(ET.tostring(domain, encoding="unicode"))
        return result

    def begin(self, guest: Guest, way: Way, emulator: Optional[Path] = None,
              *more: Any) -> Running:
        """A migration to the other host, and maybe another emulator."""
        source, destination = guest.host, self.other(guest.host)
        command = ["migrate", "--live", "--persistent", "--undefinesource", *way.options,
                   *map(str, more)]
        if way.p2p:
            command += ["--p2p"]
        if emulator and emulator != guest.emulator:
            live = self.definition(source.ask("dumpxml", "--migratable", guest.name), emulator)
            kept = self.definition(source.ask("dumpxml", "--inactive", guest.name), emulator)
            command += ["--xml", str(live), "--persistent-xml", str(kept)]
        command += [guest.name, destination.uri]
        if way.transport == "unix":
            command += [f"unix://{self.path('.sock')}"]
        elif way.transport == "tcp":
            command += ["tcp://127.0.0.1"]      # libvirt chooses the port
        guest.known = len(self.conversation(guest, source).statuses())
        return source.begin(*command)

    def wait_status(self, guest: Guest, status: str, migration: Running) -> bool:
        """Until QEMU has told it to the source, in vain if the migration ends before."""
        while True:
            over = migration.over
            if status in self.conversation(guest, guest.host).statuses()[guest.known:]:
                return True
            if over:
                return False
            time.sleep(0.02)

    def migrate(self, guest: Guest, way: Way, emulator: Optional[Path] = None,
                limit: float = MIGRATION_LIMIT) -> Result:
        """May fail; then the guest is believed to be where it was."""
        migration = self.begin(guest, way, emulator)
        try:
            if way.switch and self.wait_status(guest, "active", migration):
                guest.host.ask("migrate-postcopy", guest.name)
        finally:
            result = migration.result(limit)
        if result.ok:
            guest.host, guest.emulator = self.other(guest.host), emulator or guest.emulator
        return result

    def begin_check(self, guest: Guest, way: Way, *more: Any,
                    emulator: Optional[Path] = None) -> Running:
        """Whether it could migrate."""
        return self.begin(guest, way, emulator, "--check-only", *more)

    def check(self, guest: Guest, way: Way, *more: Any, emulator: Optional[Path] = None,
              limit: float = MIGRATION_LIMIT) -> Result:
        return self.begin_check(guest, way, *more, emulator=emulator).result(limit)

    def cancel(self, guest: Guest, way: Way, emulator: Optional[Path] = None,
               limit: float = MIGRATION_LIMIT) -> Result:
        """Of a migration that has begun to send memory."""
        migration = self.begin(guest, way, emulator)
        try:
            if self.wait_status(guest, "active", migration):
                guest.host.ask("domjobabort", guest.name)
        finally:
            result = migration.result(limit)
        return result

    def save(self, guest: Guest, host: Optional[Host] = None,
             emulator: Optional[Path] = None) -> None:
        """To a file and back, maybe on the other host and with another emulator."""
        saved = self.path(".save")
        guest.host.ask("save", guest.name, saved)
        if host not in (None, guest.host):
            guest.host.ask("undefine", guest.name)
        guest.host, guest.emulator = host or guest.host, emulator or guest.emulator
        changed = self.definition(guest.host.ask("save-image-dumpxml", saved), guest.emulator)
        guest.host.ask("restore", saved, "--xml", changed)

    def managed_save(self, guest: Guest, emulator: Optional[Path] = None) -> None:
        """To a file that libvirt keeps, and back by starting it."""
        guest.emulator = emulator or guest.emulator
        guest.host.ask("managedsave", guest.name)
        changed = self.definition(guest.host.ask("managedsave-dumpxml", guest.name), guest.emulator)
        guest.host.ask("managedsave-define", guest.name, changed)
        guest.host.ask("start", guest.name)

    # What was seen

    def require_well(self, guest: Guest, before: State) -> State:
        """It runs on, is where it is said to be and nowhere else, and its memory is intact."""
        assert self.known_on(guest) == [guest.host], [one.name for one in self.known_on(guest)]
        assert guest.host.ask("domstate", guest.name).strip() == "running"
        first = guest.state()
        assert first.magic == MAGIC and first.passes >= before.passes, (before, first)
        later = guest.wait("for it to go on", lambda state: state.passes > first.passes)
        assert later.errors == 0, later
        return later

    def conversations(self, guest: Guest, host: Host) -> list[Conversation]:
        """One for each process that this guest has had there."""
        return self._journals[host.name].conversations(guest.name)

    def conversation(self, guest: Guest, host: Host) -> Conversation:
        """With the last one of them."""
        found = self.conversations(guest, host)
        if not found:
            raise Failed(f"{guest.name} has never been on {host.name}")
        return found[-1]

    def last_commands(self, guest: Guest) -> str:
        """What each of its processes was asked last, for who wonders why nothing happens."""
        said = []
        for host in (self.a, self.b):
            for number, one in enumerate(self.conversations(guest, host), 1):
                asked = [command.name + ("" if command.took is not None else " (no answer)")
                         for command in one.commands()[-3:]]
                said.append(f"{host.name}'s process {number}: {', '.join(asked)}")
        return "; ".join(said)

    def handshakes(self, guest: Guest) -> dict[str, Optional[Json]]:
        """By the name of the host: what query-migrate tells of the last handshake, or has told
        libvirt if that QEMU is gone."""
        told = {host.name: self.conversation(guest, host).handshake()
                for host in (self.a, self.b) if self.conversations(guest, host)}
        told[guest.host.name] = guest.qmp("query-migrate").get("handshake")
        return told


def has_userfaultfd() -> bool:
    """Without it a destination refuses postcopy."""
    number = ctypes.CDLL(None).syscall(USERFAULTFD, os.O_CLOEXEC)
    if number >= 0:
        os.close(number)
    return bool(number >= 0)


def assemble(directory: Path) -> Path:
    """The guest. Takes binutils only."""
    kernel, parts = directory / "guest", directory / "guest.o"
    for command in (["as", "--32", "-o", parts, HERE / "guest.S"],
                    ["ld", "-m", "elf_i386", "-n", "-Ttext=0x100000", "-o", kernel, parts]):
        done = run(command)
        if not done.ok:
            raise Failed(f"{command[0]}: {done.stderr.strip()}")
    return kernel


@contextlib.contextmanager
def laboratory(a: Installation, b: Optional[Installation] = None, filters: str = FILTERS,
               **options: Any) -> Iterator[Lab]:
    """B's libvirt may be another one than A's. Skips the test where there can be none."""
    with hosts(a, b, filters, **options) as pair:
        yield Lab(pair)
