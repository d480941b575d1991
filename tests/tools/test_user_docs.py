# SPDX-License-Identifier: GPL-2.0-or-later
"""The users' page: its examples are executed as they stand there, in order.

What an example is:

* A block of `console`: its lines that begin with `$ ` are commands of the shell. One
  that starts a QEMU has `-qmp unix:NAME.qmp,...`, and goes on in the background.
* A block of `QMP`, or of `none` with the prompt `(qemu) `: for the QEMU of the name NAME,
  where the paragraph before it ends in "on the NAME:". What follows `-> ` is sent as it
  is, what follows `<- ` has to come, an event maybe among others.

An object or a list ends in `...` if it has more than is shown; otherwise it has nothing
else. A text that ends in `...` is longer. Among lines, `...` is any number of them. In a
command, `{ ... }` is what query-migrate-profile has returned last.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple, Optional

import pytest
from conftest import QEMU, TOP

PAGE = TOP / "docs/system/migration-handshake.rst"
SPECIFICATION = TOP / "docs/interop/migration-handshake.rst"
OUR_QAPI = TOP / "qapi/migration-handshake.json"
PROFILE_QAPI = TOP / "qapi/migration-profile.json"
QEMU_QAPI = QEMU.resolve().parent / "src/qapi/migration.json"
# The page is for each base that is built.
QEMUS = sorted({QEMU.resolve(), *TOP.glob("build/10.[0-9]/qemu-system-x86_64")})

PATIENCE = 20.0
RETRY = 5.0
MORE = "..."

# What is another one each time, or on another machine, and what it looks like.
NUMBER = r"\d+"
VOLATILE = {
    "session": r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}",
    "qemu-version": r"\d+\.\d+\.\d+",
    "duration": NUMBER,
    "bytes-sent": NUMBER,
    "bytes-received": NUMBER,
    "seconds": NUMBER,
    "microseconds": NUMBER,
}
VOLATILE_TEXT = re.compile(r"\bQEMU \d+\.\d+\.\d+( \([^)]*\))?")

Json = Any


class Wrong(AssertionError):
    """The page says something else than what is."""


class Block(NamedTuple):
    """A literal block."""

    line: int
    language: str
    machine: str        # "" if none is named before it
    text: str


class Message(NamedTuple):
    """One of an example in QMP."""

    direction: str
    text: str


def indentation(line: str) -> int:
    return len(line) - len(line.lstrip())


def named_machine(before: list[str]) -> str:
    """The one that the last sentence names at its end."""
    found = re.search(r"\bon\s+the\s+([a-z]+):$", "\n".join(before).rstrip(), re.I)
    return found[1] if found else ""


def read_blocks(text: str) -> Iterator[Block]:
    lines = text.splitlines()
    for number, line in enumerate(lines):
        start = re.match(r"( *)\.\. code-block:: (\S+)$", line)
        if not start:
            continue
        end = number + 1
        while end < len(lines) and (not lines[end].strip()
                                    or indentation(lines[end]) > len(start[1])):
            end += 1
        body = lines[number + 1:end]
        margin = min(indentation(one) for one in body if one.strip())
        yield Block(number + 1, start[2], named_machine(lines[:number]),
                    "\n".join(one[margin:] for one in body).strip("\n"))


def read_messages(block: Block) -> list[Message]:
    parts = re.split(r"^(->|<-) ", block.text, flags=re.M)
    if parts[0].strip():
        raise Wrong(f"line {block.line}: neither sent nor received: {parts[0]}")
    return [Message(*pair) for pair in zip(parts[1::2], parts[2::2])]


def read_json(text: str) -> Json:
    """JSON, in which `...` becomes a member or an item of that name."""
    inside: list[str] = []

    def put(token: re.Match[str]) -> str:
        if token[0] in "{[":
            inside.append(token[0])
        elif token[0] in "}]":
            inside.pop()
        elif token[0] == MORE:
            return f'"{MORE}": 0' if inside[-1] == "{" else f'"{MORE}"'
        return token[0]

    return json.loads(re.sub(r'"(?:[^"\\]|\\.)*"|\.\.\.|[][{}]', put, text))


def compare(shown: Json, real: Json, name: str = "", where: str = "") -> None:
    """Complains about the first difference that is one."""
    if type(shown) is not type(real):
        raise Wrong(f"{where} is {real!r}, and not {shown!r}")
    if isinstance(shown, dict):
        compare_members(shown, real, where)
    elif isinstance(shown, list):
        compare_items(shown, real, where)
    elif not is_alike(shown, real, name):
        raise Wrong(f"{where} is {real!r}, and not {shown!r}")


def compare_members(shown: dict[str, Json], real: dict[str, Json], where: str) -> None:
    names = {name for name in shown if name != MORE}
    if names - set(real) or (MORE not in shown and names != set(real)):
        raise Wrong(f"{where} has the members {sorted(real)}, and not {sorted(shown)}")
    for name in names:
        compare(shown[name], real[name], name, f"{where}.{name}")


def compare_items(shown: list[Json], real: list[Json], where: str) -> None:
    more = shown[-1:] == [MORE]
    items = shown[:-1] if more else shown
    if len(items) > len(real) or (not more and len(items) != len(real)):
        raise Wrong(f"{where} has {len(real)} items, and not {len(items)}: {real}")
    for number, item in enumerate(items):
        compare(item, real[number], "", f"{where}[{number}]")


def is_alike(shown: Json, real: Json, name: str) -> bool:
    """For values of the same type that have no parts."""
    if name in VOLATILE:
        return all(re.fullmatch(VOLATILE[name], str(value)) for value in (shown, real))
    if isinstance(shown, str) and shown.endswith(MORE):
        return str(real).startswith(shown[:-len(MORE)])
    return bool(shown == real)


def compare_text(shown: str, real: str) -> None:
    """Lines, where one that is `...` stands for any number of them."""
    parts = [".*" if line == MORE else re.escape(VOLATILE_TEXT.sub("QEMU", line))
             for line in shown.strip().splitlines()]
    text = VOLATILE_TEXT.sub("QEMU", real.replace("\r", "")).strip()
    if not re.fullmatch("\n".join(parts), text, re.S):
        raise Wrong(f"shown is\n{shown}\nand real\n{text}")


class Monitor:
    """The QMP monitor of a QEMU, by its socket; nothing is added to what is said there."""

    def __init__(self, path: Path, process: subprocess.Popen[bytes]):
        self._process = process
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.settimeout(PATIENCE)
        self._connect(str(path))
        self._lines = self._socket.makefile("rb")
        self._events: list[Json] = []
        self._read()                            # the greeting
        self.execute('{"execute": "qmp_capabilities"}')

    def _connect(self, path: str) -> None:
        deadline = time.monotonic() + PATIENCE
        while True:
            try:
                return self._socket.connect(path)
            except OSError as error:
                if self._process.poll() is not None or time.monotonic() > deadline:
                    raise Wrong(f"QEMU does not start: {path}: {error}") from error
            time.sleep(0.01)

    def _read(self) -> Json:
        try:
            line = self._lines.readline()
        except socket.timeout:      # TimeoutError since Python 3.10
            raise Wrong("nothing comes") from None
        if not line:
            raise Wrong("QEMU went away")
        return json.loads(line)

    def execute(self, command: str) -> Json:
        self._socket.sendall(command.encode())
        while "event" in (answer := self._read()):
            self._events.append(answer)
        return answer

    def expect_event(self, shown: Json) -> None:
        """Others may come before it."""
        differences: list[str] = []
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline:
            try:
                event = self._events.pop(0) if self._events else self._read()
            except Wrong as error:
                raise Wrong(f"no such event: {error}; of that name: {differences}") from None
            try:
                return compare(shown, event)
            except Wrong as difference:
                if event.get("event") == shown["event"]:
                    differences.append(str(difference))
        raise Wrong(f"no such event; of that name: {differences}")

    def close(self) -> None:
        self._lines.close()
        self._socket.close()

    def wait_end(self) -> None:
        """For a QEMU that the page says has ended."""
        self._process.wait(PATIENCE)
        self.close()


class Walk:
    """All that the page lets a reader do, in a directory of its own."""

    def __init__(self, directory: Path, qemu: Path):
        self._directory = directory
        self._environment = {**os.environ, "PATH": f"{directory / 'bin'}:{os.environ['PATH']}"}
        self._processes: list[subprocess.Popen[bytes]] = []
        self._monitors: dict[str, Monitor] = {}
        self._profile: Json = None
        self.count = 0
        self._put_qemu(qemu)

    def _put_qemu(self, qemu: Path) -> None:
        """A QEMU that needs no KVM, runs no guest, and does not outlive this test."""
        script = self._directory / "bin/qemu-system-x86_64"
        script.parent.mkdir()
        script.write_text("#!/bin/sh\n"
                          f"exec setpriv --pdeathsig KILL '{qemu}' -accel qtest \"$@\"\n")
        script.chmod(0o755)

    def follow(self, block: Block) -> None:
        try:
            if block.language == "console":
                self._run_shell(block.text)
            elif block.language == "QMP":
                self._run_qmp(block)
            else:
                self._run_hmp(block)
        except Wrong as error:
            raise Wrong(f"{PAGE.name}, block in line {block.line}: {error}") from None
        self.count += 1

    def _run_shell(self, text: str) -> None:
        if not text.startswith("$ "):
            raise Wrong("no command")
        for command in re.split(r"^\$ ", text, flags=re.M)[1:]:
            name = re.search(r"-qmp unix:([a-z]+)\.qmp,", command)
            if name:
                self._start(name[1], command)
            else:
                subprocess.run(command, shell=True, cwd=self._directory, timeout=PATIENCE,
                               env=self._environment, stdin=subprocess.DEVNULL, check=True)

    def _start(self, name: str, command: str) -> None:
        if name in self._monitors:
            self._monitors.pop(name).wait_end()
        process = subprocess.Popen(["sh", "-c", f"exec {command}"], cwd=self._directory,
                                   env=self._environment, stdin=subprocess.DEVNULL)
        self._processes.append(process)
        self._monitors[name] = Monitor(self._directory / f"{name}.qmp", process)

    def _monitor(self, block: Block) -> Monitor:
        if block.machine not in self._monitors:
            raise Wrong(f"for which QEMU is it? {block.machine or 'no name before it'}")
        return self._monitors[block.machine]

    def _run_qmp(self, block: Block) -> None:
        monitor = self._monitor(block)
        answer: Optional[Json] = None
        for message in read_messages(block):
            shown = read_json(message.text)
            if message.direction == "->":
                if answer is not None:
                    raise Wrong(f"an answer is not shown: {answer}")
                answer = self._execute(monitor, message.text, shown)
            elif "event" in shown:
                monitor.expect_event(shown)
            elif answer is None:
                raise Wrong(f"an answer to nothing: {message.text}")
            else:
                compare(shown, answer)
                answer = None
        if answer is not None:
            raise Wrong(f"an answer is not shown: {answer}")

    def _execute(self, monitor: Monitor, text: str, command: Json) -> Json:
        text = re.sub(r"\{ \.\.\. \}", lambda _: json.dumps(self._profile), text)
        deadline = time.monotonic() + RETRY
        answer = monitor.execute(text)
        # A program is faster than a reader: a failed migration takes a moment to clean up.
        while "is not over yet" in str(answer.get("error")) and time.monotonic() < deadline:
            time.sleep(0.01)
            answer = monitor.execute(text)
        if command["execute"] == "query-migrate-profile":
            self._profile = answer["return"]
        return answer

    def _run_hmp(self, block: Block) -> None:
        monitor = self._monitor(block)
        for part in re.split(r"^\(qemu\) ", block.text, flags=re.M)[1:]:
            command, _, shown = part.partition("\n")
            answer = monitor.execute(json.dumps({"execute": "human-monitor-command",
                                                 "arguments": {"command-line": command}}))
            compare_text(shown, answer["return"])

    def close(self) -> None:
        for monitor in self._monitors.values():
            monitor.close()
        for process in self._processes:
            process.kill()
            process.wait()


@contextlib.contextmanager
def walking(qemu: Path = QEMU) -> Iterator[Walk]:
    with tempfile.TemporaryDirectory(prefix="user-docs-") as name:
        walk = Walk(Path(name), qemu)
        try:
            yield walk
        finally:
            walk.close()


def severities(text: str) -> frozenset[str]:
    """How bad an issue is said to be."""
    return frozenset(re.findall(r"\b(error|warning|info)\b", text))


def described_codes() -> dict[str, frozenset[str]]:
    """The definition lists of the page, whose terms are `code (severity)`."""
    section = PAGE.read_text().split("What an issue means\n---")[1].split("\n---")[0]
    terms = re.findall(r"^``([a-z-]+)`` \((.*)\)\n  ", section, re.M)
    return {code: severities(rest) for code, rest in terms}


def specified_codes() -> dict[str, frozenset[str]]:
    """The table of the specification."""
    section = SPECIFICATION.read_text().split("\nIssue codes\n---")[1].split("\n===")[0]
    rows = re.findall(r"^   \* - ``([a-z-]+)``\n     - (.*?)(?=\n   \* - |\n\n)", section,
                      re.M | re.S)
    # "error: ...", "error; warning if ...", "...  error if ..., else warning"
    return {code: severities(meaning) for code, meaning in rows}


def members(path: Path, struct: str) -> list[str]:
    text = path.read_text().split(f"{{ 'struct': '{struct}',", 1)[1].split("} }", 1)[0]
    return re.findall(r"'\*?([a-z-]+)': ", text.split("'data': {", 1)[1])


def c_text() -> str:
    """Our C code, with strings that go on in the next line in one piece."""
    files = sorted((TOP / "migration/handshake").glob("*.c"))
    return re.sub(r'"\s*\n\s*"', "", "\n".join(path.read_text() for path in files))


@pytest.mark.parametrize("qemu", QEMUS, ids=lambda path: path.parent.name)
def test_examples_do_what_they_say(qemu: Path) -> None:
    blocks = list(read_blocks(PAGE.read_text()))
    with walking(qemu) as walk:
        for block in blocks:
            walk.follow(block)
        assert walk.count == len(blocks) >= 20


@pytest.mark.parametrize("shown, real", [
    ('{"a": 1}', {"a": True}),
    ('{"a": 1}', {"a": 1, "b": 2}),
    ('{"a": 1, ...}', {"b": 2}),
    ('{"a": "b..."}', {"a": "c"}),
    ('{"a": [{"b": 1}]}', {"a": [{"b": 1}, {"b": 1}]}),
    ('{"a": [{"b": 1}, {"b": 1}, ...]}', {"a": [{"b": 1}]}),
    ('{"duration": 1}', {"duration": "1"}),
    ('{"session": "6de7beb1-8074-4629-91df-670079db5e3d"}', {"session": ""}),
])
def test_a_difference_is_found(shown: str, real: Json) -> None:
    with pytest.raises(Wrong):
        compare(read_json(shown), real)


def test_what_may_differ_does() -> None:
    shown = '{"a": [1, ...], "duration": 5, "b": "c...", "d": {...}, ...}'
    compare(read_json(shown), {"a": [1, 2], "duration": 6, "b": "cd", "d": {}, "e": 1})


def test_every_issue_code_is_explained() -> None:
    described, specified = described_codes(), specified_codes()
    assert set(described) == set(specified) and len(specified) > 20
    assert all(specified.values())
    assert described == specified


@pytest.mark.parametrize("path, struct", [
    (QEMU_QAPI, "MigrationHandshakeOptions"),
    (OUR_QAPI, "MigrationHandshakeInfo"),
    (OUR_QAPI, "MigrationHandshakePeer"),
    (OUR_QAPI, "MigrationHandshakeIssue"),
    (PROFILE_QAPI, "MigrationProfileVerdict"),
], ids=lambda value: str(getattr(value, "name", value)))
def test_every_member_is_mentioned(path: Path, struct: str) -> None:
    names = members(path, struct)
    assert len(names) >= 4
    for name in names:
        assert f"``{name}``" in PAGE.read_text(), name


def test_messages_are_those_of_the_code() -> None:
    section = PAGE.read_text().split("When there is no verdict\n~~~")[1].split("\n---")[0]
    messages = re.findall(r"^   \* - ``(.*?)``$", section, re.M | re.S)
    assert len(messages) > 5
    code = c_text()
    for message in messages:
        assert re.sub(r"\s+", " ", message) in code, message


def test_cpu_features_are_compared() -> None:
    command = "qemu-system-x86_64 -display none -nodefaults -qmp unix:{}.qmp,server=on,wait=off"
    with walking() as walk:
        for name, options in (("one", "-cpu max"), ("other", "-cpu qemu64 -incoming defer")):
            walk.follow(Block(0, "console", "", f"$ {command.format(name)} {options}"))
        walk.follow(Block(0, "QMP", "one", """\
-> { "execute": "query-migrate-profile" }
<- { "return": { ... } }"""))
        walk.follow(Block(0, "QMP", "other", """\
-> { "execute": "check-migrate-profile", "arguments": { "profile": { ... } } }
<- { "return": { "compatible": false,
                 "issues": [ { "code": "cpu", ... }, ... ], ... } }"""))
