# SPDX-License-Identifier: GPL-2.0-or-later
"""QEMU processes for the demo: their monitors, their guest's console, the wire."""

from __future__ import annotations

import asyncio
import contextlib
import re
import shutil
import socket
import tempfile
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, NamedTuple, Optional, TypeVar

from qemu.qmp import EventListener, ExecuteError, QMPClient, QMPError, Runstate

Json = dict[str, Any]
T = TypeVar("T")

LOOPBACK = "127.0.0.1"
MONITOR_LIMIT = 30.0


class NotSeen(Exception):
    """Something that the demo waits for or relies on did not happen."""


async def until(what: str, limit: float,
                probe: Callable[[], Awaitable[Optional[T]]],
                every: float = 0.02) -> T:
    """Ask again and again, until there is an answer or the time is up."""
    deadline = time.monotonic() + limit
    while not (answer := await probe()):
        if time.monotonic() > deadline:
            raise NotSeen(f"waited {limit:g} s for {what}")
        await asyncio.sleep(every)
    return answer


class Round(NamedTuple):
    """What the guest said after it checked all of its memory once."""

    number: int
    mib: int
    errors: int


class Console:
    """What a guest has printed, maybe on several machines one after the other."""

    def __init__(self, text: str):
        self.lines = text.replace("\r", "").splitlines(keepends=True)

    @property
    def said(self) -> list[str]:
        """The guest's finished lines, without the firmware's noise before them."""
        lines = [line.rstrip() for line in self.lines if line.endswith("\n")]
        start = next((i for i, line in enumerate(lines)
                      if line.startswith("guest:")), len(lines))
        return lines[start:]

    @property
    def rounds(self) -> list[Round]:
        pattern = r"guest: round (\d+), (\d+) MiB checked, errors (\d+)$"
        matches = (re.match(pattern, line) for line in self.said)
        return [Round(*map(int, match.groups())) for match in matches if match]

    @property
    def last_round(self) -> int:
        return self.rounds[-1].number if self.rounds else 0

    @property
    def is_sound(self) -> bool:
        """Every round from the first one on, in order, once, without an error.

        After the greeting there is nothing else: a complaint would be a line.
        """
        rounds = self.rounds
        return (bool(rounds)
                and [r.number for r in rounds] == list(range(1, len(rounds) + 1))
                and all(r.errors == 0 for r in rounds)
                and len(self.said) == len(rounds) + 1)


class Machine:
    """One QEMU process."""

    def __init__(self, name: str, command: list[str], directory: Path):
        self.name = name
        self._command = command
        self._console = directory / f"{name}.console"
        self._errors = directory / f"{name}.stderr"
        self._qmp = QMPClient(name)
        self._process: Optional[asyncio.subprocess.Process] = None

    async def start(self) -> None:
        # A pair of sockets needs no path and nobody has to wait for it.
        ours, theirs = socket.socketpair()
        with theirs, open(self._errors, "wb") as errors:
            self._process = await asyncio.create_subprocess_exec(
                *self._command,
                "-chardev", f"socket,id=monitor,fd={theirs.fileno()}",
                "-mon", "chardev=monitor,mode=control",
                "-serial", f"file:{self._console}",
                pass_fds=[theirs.fileno()], stdin=asyncio.subprocess.DEVNULL,
                stdout=errors, stderr=errors,
                start_new_session=True)  # Ctrl-C is the demo's, not QEMU's
        try:
            await asyncio.wait_for(self._qmp.connect(ours), MONITOR_LIMIT)
        except (QMPError, TimeoutError) as error:
            raise NotSeen(f"{self.name}: QEMU does not start") from error

    def kill(self) -> None:
        if self._process and self._process.returncode is None:
            self._process.kill()

    async def gone(self) -> None:
        if self._process:
            await self._process.wait()
        # It complains about the end that we have just seen.
        with contextlib.suppress(Exception):
            await self._qmp.disconnect()

    async def heard(self) -> None:
        """Of one that is dead: all that its monitor had still said has been read."""
        if self._process:
            await self._process.wait()
        while self._qmp.runstate == Runstate.RUNNING:
            await self._qmp.runstate_changed()

    async def stop(self) -> None:
        self.kill()
        await self.gone()

    @property
    def pid(self) -> int:
        assert self._process
        return self._process.pid

    @property
    def exit_status(self) -> Optional[int]:
        return self._process.returncode if self._process else None

    async def execute(self, command: str, arguments: Optional[Json] = None,
                      oob: bool = False) -> Any:
        """Out of band: whatever its main loop does."""
        try:
            return await asyncio.wait_for(self._qmp.execute(command, arguments, oob),
                                          MONITOR_LIMIT)
        except TimeoutError as error:
            raise NotSeen(f"{self.name}: no answer to {command} "
                          f"in {MONITOR_LIMIT:g} s") from error
        except ExecuteError as error:
            raise NotSeen(f"{self.name}: {command}: {error}") from error
        except QMPError as error:
            raise NotSeen(f"{self.name}: QEMU went away during {command}") from error

    async def give(self, fd: int, name: str) -> None:
        """For addresses of type fd."""
        self._qmp.send_fd_scm(fd)
        await self.execute("getfd", {"fdname": name})

    def events(self, *names: str) -> AbstractContextManager[EventListener]:
        return self._qmp.listener(names)

    async def is_running(self) -> bool:
        return (await self.execute("query-status"))["running"]

    async def migration(self) -> Json:
        return await self.execute("query-migrate")

    async def handshake(self) -> Json:
        try:
            return (await self.migration())["handshake"]
        except KeyError as error:
            raise NotSeen(f"{self.name}: query-migrate tells no handshake") from error

    async def machine_type(self) -> str:
        """What an alias as q35 or pc stands for."""
        path = {"path": "/machine", "property": "type"}
        return (await self.execute("qom-get", path)).removesuffix("-machine")

    @property
    def console(self) -> str:
        with contextlib.suppress(FileNotFoundError):
            return self._console.read_text(errors="replace")
        return ""

    @property
    def errors(self) -> str:
        with contextlib.suppress(FileNotFoundError):
            return self._errors.read_text(errors="replace")
        return ""


class Lab:
    """The machines of one run. Leaves no process and no file behind."""

    def __init__(self, command: list[str], accelerator: str):
        self.accelerator = accelerator
        self._command = command
        self._directory = Path(tempfile.mkdtemp(prefix="migration-handshake-"))
        self.machines: list[Machine] = []

    async def __aenter__(self) -> Lab:
        return self

    async def __aexit__(self, *_: object) -> None:
        try:
            await self.stop()
        finally:
            shutil.rmtree(self._directory)

    async def stop(self) -> None:
        for machine in self.machines:
            machine.kill()
        while self.machines:
            await self.machines.pop().gone()

    async def start(self, name: str, *options: str, under: Sequence[str] = ()) -> Machine:
        """`under` is a command that runs a command."""
        command = [*under, *self._command, "-accel", self.accelerator, *options]
        machine = Machine(name, command, self._directory)
        self.machines.append(machine)
        await machine.start()
        return machine


class Relay:
    """Stands between source and destination, and counts what goes by."""

    def __init__(self, target: int):
        self._target = target
        self._server: Optional[asyncio.Server] = None
        self.port = 0
        self.talk: list[tuple[str, int]] = []  # who spoke and how much, in order
        self._tasks: list[Optional[asyncio.Task[None]]] = []

    async def __aenter__(self) -> Relay:
        self._server = await asyncio.start_server(self._connect, LOOPBACK, 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._server
        self._server.close()

    async def _connect(self, reader: asyncio.StreamReader,
                       writer: asyncio.StreamWriter) -> None:
        self._tasks.append(asyncio.current_task())  # asyncio's own reference is weak
        far_writer = None
        try:
            far_reader, far_writer = await asyncio.open_connection(LOOPBACK, self._target)
            async with asyncio.TaskGroup() as both_ways:
                both_ways.create_task(self._carry("source", reader, far_writer))
                both_ways.create_task(self._carry("destination", far_reader, writer))
        except* OSError:
            pass  # one side is gone: the other one shall see it
        finally:
            for end in filter(None, (writer, far_writer)):
                end.close()

    async def _carry(self, speaker: str, reader: asyncio.StreamReader,
                     writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(1 << 16):
            self._note(speaker, len(data))
            writer.write(data)
            await writer.drain()
        writer.write_eof()

    def _note(self, speaker: str, size: int) -> None:
        if self.talk and self.talk[-1][0] == speaker:
            size += self.talk.pop()[1]
        self.talk.append((speaker, size))
