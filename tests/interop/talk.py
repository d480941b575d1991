# SPDX-License-Identifier: GPL-2.0-or-later
"""Connections on which one side, or both, is QEMU."""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, Optional, TypeVar, Union

from machine import LOOPBACK, Machine, until
from processes import Lab, small_lab, start_destination
from qmhs import Incomplete
from qmhs.frames import (ACCEPT, COMMIT, HELLO, VERDICTS, Frame, Header, Message, decode_header,
                         digest, message)
from qmhs.messages import Accept, Parameter, Reason, Reject, Verdict, read_verdict
from qmhs.roles import Inbox, ReturnPath
from qmhs.strictjson import Object, compose, parse

Words = Union[bytes, Header, Frame, Message]

LIMIT = 10.0            # for what should be quick
SILENCE = 0.05          # after which nothing more is expected
PIECE = 1 << 16
MINIMUM: Object = {"versions": [1], "purpose": "migrate", "required": []}
CHECK: Object = {**MINIMUM, "purpose": "check"}
FEATURES = ["named-channels", "late-error", "one-owner", "resume-header"]
CAN_ALL: Object = {**MINIMUM, "features": FEATURES}


def changed(value: Object, **members: Any) -> Object:
    """None takes a member away."""
    members = {name.replace("_", "-"): new for name, new in members.items()}
    return {name: new for name, new in {**value, **members}.items() if new is not None}


def multifd(count: object = 2, compression: str = "none", everything: bool = False) -> list[Object]:
    """Parameters; without those that go without saying, unless everything is wanted."""
    values = {"multifd-channels": (str(count), "2"), "multifd-compression": (compression, "none")}
    return [Parameter("multifd", name, value).write()
            for name, (value, usual) in values.items() if everything or value != usual]


def raw(value: Any) -> bytes:
    return value if isinstance(value, bytes) else compose(value)


def end_of_stream(said: bytes) -> Optional[int]:
    """It ends with its own description, which is JSON."""
    for found in re.finditer(rb"\x06(....)\{", said, re.DOTALL):
        end = found.end() - 1 + int.from_bytes(found[1], "big")
        if end <= len(said) and said[end - 2:end] == b"]}":
            return end
    return None


class Talk:
    """One connection. What has been said is kept for the digest."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter):
        self._reader = reader
        self._writer = writer
        self.inbox = Inbox()
        self.said = b""
        self.was_reset = False
        self._path: Optional[ReturnPath] = None

    async def say(self, *words: Words) -> None:
        data = b"".join(word if isinstance(word, bytes) else word.encode() for word in words)
        self.said += data
        try:
            self._writer.write(data)
            await self._writer.drain()
        except ConnectionError:
            self.was_reset = True

    async def header(self) -> Header:
        while True:
            with contextlib.suppress(Incomplete):
                return self.inbox.take_header()
            await self._more()

    async def frame(self) -> Frame:
        """The next one of a known type."""
        while True:
            with contextlib.suppress(Incomplete):
                return self.inbox.take_frame()
            await self._more()

    async def message(self, kind: int) -> Object:
        frame = await self.frame()
        assert frame.type == kind, f"{frame}: {frame.payload!r}"
        assert frame.is_critical
        return parse(frame.payload)

    async def verdict(self) -> Verdict:
        await self.header()
        frame = await self.frame()
        assert frame.type in VERDICTS and frame.is_critical, frame
        return read_verdict(frame.type == ACCEPT, frame.payload)

    async def _more(self) -> None:
        data = await self._hear()
        assert data, "the connection has ended"
        self.inbox.put(data)

    async def _hear(self) -> bytes:
        try:
            return await asyncio.wait_for(self._reader.read(PIECE), LIMIT)
        except ConnectionError:
            self.was_reset = True
            return b""

    async def read(self) -> bytes:
        """For somebody who takes it apart on his own. Empty at the end."""
        return await self._hear()

    async def hear(self, count: int) -> bytes:
        """So many bytes behind the last message."""
        while len(self.inbox.rest) < count:
            await self._more()
        return self.inbox.rest[:count]

    async def rest(self) -> bytes:
        """All that comes behind the last message, up to the end."""
        while data := await self._hear():
            self.inbox.put(data)
        return self.inbox.rest

    async def last_word(self) -> Reason:
        """It is the last one: the end follows."""
        path = ReturnPath()
        path.put(await self.rest())
        return path.take_last_word()

    async def stream(self) -> bytes:
        """All of it."""
        while not (end := end_of_stream(self.inbox.rest)):
            await self._more()
        return self.inbox.rest[:end]

    async def late(self) -> Union[Frame, Message]:
        """The next LOADED, LAST WORD or SHUT of a destination that has read COMMIT."""
        if not self._path:
            self._path = ReturnPath()
            self._path.put(self.inbox.rest)
        while True:
            with contextlib.suppress(Incomplete):
                return self._path.take()
            data = await self._hear()
            assert data, "the connection has ended"
            self._path.put(data)

    async def any_header(self) -> Header:
        """Of another channel."""
        while True:
            with contextlib.suppress(Incomplete):
                return self.inbox.take_any_header()
            await self._more()

    async def is_answered(self) -> bool:
        """Another channel: with its own header, and not a byte more. Or it ends without one."""
        data = await self._hear()
        if not data:
            return False
        self.inbox.put(data)
        header = await self.any_header()
        said, _ = decode_header(self.said)
        assert (header.session, header.name, header.index) == (
            said.session, said.name, said.index) and not self.inbox.rest
        return True

    async def is_silent(self) -> bool:
        """Neither a byte nor an end."""
        try:
            data = await asyncio.wait_for(self._reader.read(PIECE), SILENCE)
            self.inbox.put(data)
            return False
        except asyncio.TimeoutError:
            return not self.inbox.rest

    def end(self) -> None:
        """No more will be said."""
        with contextlib.suppress(OSError):
            self._writer.write_eof()

    def close(self) -> None:
        self._writer.close()

    async def closed(self) -> None:
        self.close()
        with contextlib.suppress(ConnectionError):
            await self._writer.wait_closed()


@contextlib.asynccontextmanager
async def call(port: int) -> AsyncIterator[Talk]:
    talk = Talk(*await asyncio.open_connection(LOOPBACK, port))
    try:
        yield talk
    finally:
        talk.close()


@contextlib.asynccontextmanager
async def ask(port: int, hello: Any, *before: Words) -> AsyncIterator[Talk]:
    """A source that has said HELLO."""
    async with call(port) as talk:
        await talk.say(*(before or (Header(),)), Frame(HELLO, raw(hello)))
        yield talk


async def judged(port: int, hello: Any, *before: Words) -> Verdict:
    """What a destination says to it, which then lets it go."""
    async with ask(port, hello, *before) as talk:
        verdict = await talk.verdict()
        talk.end()
        assert await talk.rest() == b"" and not talk.was_reset
        return verdict


async def accepted(port: int, hello: Any, *before: Words) -> Accept:
    verdict = await judged(port, hello, *before)
    assert isinstance(verdict, Accept), verdict
    return verdict


async def refused(port: int, hello: Any, *before: Words) -> Reject:
    verdict = await judged(port, hello, *before)
    assert isinstance(verdict, Reject), verdict
    assert verdict.message and "\n" not in verdict.message
    return verdict


def codes(verdict: Verdict) -> list[tuple[str, str]]:
    """Of the errors, with what they are about."""
    return [(issue.code or "", issue.subject or "") for issue in verdict.issues
            if issue.severity == "error"]


async def session_of(talk: Talk) -> bytes:
    """Read ACCEPT. Returns the session."""
    accept = await talk.verdict()
    assert isinstance(accept, Accept), accept
    assert talk.inbox.header
    return talk.inbox.header.session


async def commit(talk: Talk, *without: str) -> None:
    await talk.say(message(COMMIT, changed(
        {"digest": digest(talk.said, talk.inbox.read)},
        without=[{"capability": name, "reason": "why"} for name in without] or None)))


async def committed(talk: Talk, *without: str) -> None:
    """Agree with a destination, without any other channel."""
    await session_of(talk)
    await commit(talk, *without)


@contextlib.asynccontextmanager
async def join(port: int, header: Header) -> AsyncIterator[Talk]:
    """Another channel, which has got its place."""
    async with call(port) as talk:
        await talk.say(header)
        assert await talk.is_answered()
        yield talk


@contextlib.asynccontextmanager
async def joined(port: int, session: bytes, count: int = 2) -> AsyncIterator[list[Talk]]:
    """All multifd channels."""
    async with contextlib.AsyncExitStack() as stack:
        yield [await stack.enter_async_context(join(port, Header(session, "multifd", index)))
               for index in range(count)]


@contextlib.asynccontextmanager
async def qemu_destination(lab: Optional[Lab] = None) -> AsyncIterator[tuple[Machine, int]]:
    """Whatever was done to it, it listens in the end, and is as good as new."""
    async with lab or small_lab() as lab:
        destination, port = await start_destination(lab)
        yield destination, port
        await require_free(destination, port)


async def require_free(destination: Machine, port: int) -> None:
    """It accepts the next one, once it has noticed that the last one is gone."""
    async def is_free() -> bool:
        verdict = await judged(port, CHECK)
        assert isinstance(verdict, Accept) or [issue.code for issue in verdict.issues] == ["busy"]
        return isinstance(verdict, Accept)

    await until(f"{destination.name} to be free again", LIMIT, is_free, every=0.002)
    info = await destination.migration()
    assert info["status"] == "setup" and info["socket-address"]
    assert (await destination.execute("query-status"))["status"] == "inmigrate"


async def require_loading(destination: Machine) -> None:
    """It has believed COMMIT, and waits for more of the stream."""
    async def is_loading() -> bool:
        return bool((await destination.migration())["status"] == "active")

    await until(f"{destination.name} to load", LIMIT, is_loading, every=0.002)
    assert (await destination.handshake())["status"] == "accepted"


@contextlib.asynccontextmanager
async def loading_destination() -> AsyncIterator[tuple[Machine, int]]:
    """One that will have begun to load in the end, and may do what it likes then."""
    async with small_lab() as lab:
        yield await start_destination(lab)


P = TypeVar("P", bound="Port")


class Port:
    """Takes connections on a port that is free."""

    def __init__(self) -> None:
        self._server: Optional[asyncio.Server] = None
        self.port = 0

    async def __aenter__(self: P) -> P:
        self._server = await asyncio.start_server(self._accept, LOOPBACK, 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._server
        self._server.close()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        raise NotImplementedError


class Listener(Port):
    """Somewhere for a source to connect to."""

    def __init__(self) -> None:
        super().__init__()
        self._calls: asyncio.Queue[Talk] = asyncio.Queue()
        self._talks: list[Talk] = []

    async def __aexit__(self, *_: object) -> None:
        await super().__aexit__()
        for talk in self._talks:
            talk.close()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        talk = Talk(reader, writer)
        self._talks.append(talk)
        await self._calls.put(talk)

    async def next(self) -> Talk:
        return await asyncio.wait_for(self._calls.get(), LIMIT)

    @property
    def waiting(self) -> int:
        return self._calls.qsize()


class UnixListener(Listener):
    """Likewise, at a path."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path

    async def __aenter__(self) -> UnixListener:
        self._server = await asyncio.start_unix_server(self._accept, self.path)
        return self


class Line:
    """What went by on one connection."""

    def __init__(self) -> None:
        self.source = bytearray()
        self.destination = bytearray()


class Recorder(Port):
    """Stands between two QEMUs and keeps all that they say, up to a bound.

    It may carry so many connections and no more, as some forwarders do.
    """

    KEPT = 1 << 20

    def __init__(self, target: int, most: int = 1 << 10):
        super().__init__()
        self._target = target
        self._most = most
        self._tasks: list[Optional[asyncio.Task[None]]] = []
        self.lines: list[Line] = []

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if len(self.lines) == self._most:
            writer.close()
            return
        self._tasks.append(asyncio.current_task())  # asyncio's own reference is weak
        line = Line()
        self.lines.append(line)
        far_reader, far_writer = await asyncio.open_connection(LOOPBACK, self._target)
        await asyncio.gather(self._carry(reader, far_writer, line.source),
                             self._carry(far_reader, writer, line.destination))
        writer.close()
        far_writer.close()

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter,
                     kept: bytearray) -> None:
        with contextlib.suppress(ConnectionError):
            while data := await reader.read(PIECE):
                kept += data[:self.KEPT - len(kept)]
                writer.write(data)
                await writer.drain()
        with contextlib.suppress(OSError):
            writer.write_eof()
