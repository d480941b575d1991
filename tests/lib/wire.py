# SPDX-License-Identifier: GPL-2.0-or-later
"""The bytes of a handshake, and peers that say what a test wants them to."""

from __future__ import annotations

import asyncio
import errno
import hashlib
import json
import select
import socket
import ssl
import struct
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Optional

from machine import LOOPBACK, Json

HEADER_SIZE = 64
PREFIX_SIZE = 8
HELLO, ACCEPT, REJECT, COMMIT, ABORT = range(1, 6)
LAST_WORD = 10                     # on the return path
HELLO_MAX = 512 << 10
FRAME_MAX = 128 << 10
PATIENCE = 10.0
SESSION = bytes(range(1, 17))      # of a destination that is not QEMU
CRITICAL = 1
FEATURES = ["named-channels", "late-error", "one-owner", "resume-header"]
VERDICTS = (ACCEPT, REJECT)
LAST_WORDS = (COMMIT, ABORT)

STREAM = b"QEVM" + struct.pack(">I", 3)


def header(name: str = "main", index: int = 0, session: bytes = bytes(16)) -> bytes:
    return struct.pack(">4sHH16s16sI20x", b"QMHS", 0, HEADER_SIZE, session,
                       name.encode(), index)


def prefix(kind: int, length: int, flags: int = CRITICAL) -> bytes:
    return struct.pack(">IHH", length, kind, flags)


def frame(kind: int, payload: bytes | Json) -> bytes:
    if not isinstance(payload, bytes):
        payload = json.dumps(payload).encode()
    return prefix(kind, len(payload)) + payload


def parameter(name: str, value: object, capability: str = "multifd") -> Json:
    return {"capability": capability, "name": name, "value": str(value)}


def hello(multifd: int = 0, purpose: str = "migrate", optional: bool = False) -> Json:
    """As little as a source can say, about itself; multifd is required unless optional."""
    message: Json = {"versions": [1], "purpose": purpose, "required": []}
    if multifd:
        message["features"] = FEATURES
        message["profile"] = {"parameters": [parameter("multifd-channels", multifd)]}
        if optional:
            message["optional-capabilities"] = ["multifd"]
        else:
            message["profile"]["required-capabilities"] = ["multifd"]
    return message


def frames(said: bytes | bytearray) -> Iterator[tuple[int, int, int]]:
    """Type, begin and end of the payloads whose prefix has come."""
    if len(said) < PREFIX_SIZE:
        return
    at = struct.unpack_from(">H", said, 6)[0]
    while len(said) >= at + PREFIX_SIZE:
        length, kind = struct.unpack_from(">IH", said, at)
        begin = at + PREFIX_SIZE
        at = begin + length
        yield kind, begin, at


def end_of_conversation(said: bytes | bytearray, last: tuple[int, ...]) -> Optional[int]:
    """How many bytes it has up to a frame of a type in `last`, once that is known."""
    return next((end for kind, _, end in frames(said) if kind in last), None)


def message_of(said: bytes | bytearray, wanted: int) -> Optional[Json]:
    """The first message of that type, if there is one."""
    return next((json.loads(said[begin:end]) for kind, begin, end in frames(said)
                 if kind == wanted), None)


def without_grease(value: Any) -> Any:
    """What is left when all names are gone that mean nothing."""
    if isinstance(value, dict):
        return {name: without_grease(one) for name, one in value.items()
                if not name.startswith("grease-")}
    if isinstance(value, list):
        return [without_grease(one) for one in value if not str(one).startswith("grease-")]
    return value


class Header(NamedTuple):
    session: bytes
    name: str
    number: int


class Peer:
    """One end of a connection, as a program that is not QEMU has it."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter):
        self._reader = reader
        self._writer = writer
        self.sent = bytearray()
        self.received = b""
        sock = writer.get_extra_info("socket")
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    @classmethod
    async def connect(cls, port: int) -> Peer:
        return cls(*await asyncio.open_connection(LOOPBACK, port))

    @classmethod
    async def on(cls, sock: socket.socket, tls: Optional[ssl.SSLContext] = None) -> Peer:
        """Somebody who has connected, in TLS if it is a server's."""
        loop = asyncio.get_running_loop()
        reader = asyncio.StreamReader()
        protocol = asyncio.StreamReaderProtocol(reader)
        transport, _ = await loop.connect_accepted_socket(lambda: protocol, sock, ssl=tls)
        return cls(reader, asyncio.StreamWriter(transport, protocol, reader, loop))

    def write(self, data: bytes) -> None:
        """Without waiting for room."""
        self.sent += data
        self._writer.write(data)

    async def send(self, data: bytes) -> None:
        self.write(data)
        await self._writer.drain()

    async def send_slowly(self, data: bytes, pause: float) -> None:
        for byte in data:
            await self.send(bytes([byte]))
            await asyncio.sleep(pause)

    def finish(self) -> None:
        """Nothing more will come from here."""
        self._writer.write_eof()

    async def read(self, size: int) -> bytes:
        data = await self._reader.readexactly(size)
        self.received += data
        return data

    async def read_header(self) -> Header:
        raw = await self.read(HEADER_SIZE)
        magic, length, session, name, index = struct.unpack_from(">4sxxH16s16sI", raw)
        assert (magic, length) == (b"QMHS", HEADER_SIZE)
        return Header(session, name.rstrip(b"\0").decode(), index)

    async def read_frame(self, *kinds: int) -> tuple[int, Json]:
        """The next one of a known type, which has to be one of `kinds`."""
        while True:
            length, kind, _ = struct.unpack(">IHH", await self.read(PREFIX_SIZE))
            payload = await self.read(length)
            if kind in kinds:
                return kind, json.loads(payload)
            assert kind > ABORT

    async def read_late_frame(self) -> tuple[int, Json]:
        """On the return path, with all messages before it."""
        while True:
            kind, length = struct.unpack(">HH", await self.read(4))
            if kind:
                await self.read(length)
                continue
            frame_type, _ = struct.unpack(">HH", await self.read(4))
            return frame_type, json.loads(await self.read(length))

    async def read_to_end(self, limit: float) -> bytes:
        """All that still comes; a reset is an error."""
        data = await asyncio.wait_for(self._reader.read(), limit)
        self.received += data
        return data

    async def ended(self, limit: float) -> bool:
        """Whether the other side ends the connection in time; what it says is dropped."""
        try:
            await asyncio.wait_for(self._reader.read(), limit)
        except ConnectionError:
            return True
        except TimeoutError:
            return False
        return True

    def close(self) -> None:
        self._writer.close()

    def abort(self) -> None:
        """Close with a reset."""
        sock = self._writer.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._writer.transport.abort()

    async def ask(self, message: Json) -> tuple[Header, int, Json]:
        """The source's part up to the verdict."""
        await self.send(header() + frame(HELLO, message))
        answer = await self.read_header()
        return answer, *await self.read_frame(*VERDICTS)

    async def hold_session(self, multifd: int = 0, optional: bool = False) -> bytes:
        """Become the destination's source, up to ACCEPT. Returns the session."""
        answer, kind, message = await self.ask(hello(multifd, optional=optional))
        assert kind == ACCEPT, message
        return answer.session

    async def join(self, session: bytes, name: str = "multifd", index: int = 0) -> None:
        """Become one more channel of a session."""
        await self.send(header(name, index, session))
        assert await self.read_header() == Header(session, name, index)

    async def commit(self, without: Sequence[str] = (), more: Optional[Json] = None) -> None:
        digest = hashlib.sha256(self.sent + self.received).hexdigest()
        message: Json = {"digest": digest, **(more or {})}
        if without:
            message["without"] = [{"capability": name, "reason": "its channels do not get through"}
                                  for name in without]
        await self.send(frame(COMMIT, message))

    async def read_hello(self) -> Json:
        """All that a source says before it has an answer."""
        await self.read_header()
        _, said = await self.read_frame(HELLO)
        return said

    async def accept(self, multifd: bool = False,
                     features: Sequence[str] = FEATURES) -> Json:
        """The destination's part up to ACCEPT; returns HELLO."""
        said = await self.read_hello()
        await self.answer_hello(said, multifd, features)
        return said

    async def answer_hello(self, said: Json, multifd: bool = False,
                           features: Sequence[str] = FEATURES) -> None:
        profile = said["profile"]
        capabilities = ["return-path", *profile.get("required-capabilities", [])]
        if multifd and "multifd" not in capabilities:
            assert "multifd" in said["optional-capabilities"]
            capabilities.append("multifd")
        parameters = [one for one in profile.get("parameters", [])
                      if one["capability"] in capabilities]
        await self.send(header(session=SESSION)
                        + frame(ACCEPT, {"version": 1, "capabilities": capabilities,
                                         "parameters": parameters,
                                         "features": list(features)}))

    async def take_channel(self) -> Header:
        """The destination's part of another channel."""
        came = await self.read_header()
        await self.send(header(came.name, came.number, came.session))
        return came


class FakeDestination:
    """Listens, and does with each connection what the test does with it."""

    def __init__(self, tls: Optional[ssl.SSLContext] = None) -> None:
        self._tls = tls
        self._listener = socket.socket()
        self._listener.setblocking(False)
        self._listener.bind((LOOPBACK, 0))
        self.port: int = self._listener.getsockname()[1]
        self._peers: list[Peer] = []
        self._fillers: list[socket.socket] = []

    async def __aenter__(self) -> FakeDestination:
        self._listener.listen(64)
        return self

    async def __aexit__(self, *_: object) -> None:
        for peer in self._peers:
            peer.close()
        for one in (self._listener, *self._fillers):
            one.close()

    async def next(self) -> Peer:
        """The next connection."""
        accepting = asyncio.get_running_loop().sock_accept(self._listener)
        sock, _ = await asyncio.wait_for(accepting, PATIENCE)
        peer = await Peer.on(sock, self._tls)
        self._peers.append(peer)
        return peer

    def has_next(self) -> bool:
        """Whether there is one already."""
        return bool(select.select([self._listener], [], [], 0)[0])

    async def fill(self) -> None:
        """From now on nobody can connect any more, nor finds out."""
        self._listener.listen(0)
        self._fillers = await fill_backlog(self._listener)


class FullListener:
    """Lets nobody in any more: connect() to it does not come back."""

    def __init__(self, listener: socket.socket):
        self._listener = listener
        self._fillers: list[socket.socket] = []

    @classmethod
    def tcp(cls) -> FullListener:
        listener = socket.socket()
        listener.bind((LOOPBACK, 0))
        return cls(listener)

    @classmethod
    def unix(cls, path: Path) -> FullListener:
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(str(path))
        return cls(listener)

    @property
    def port(self) -> int:
        return self._listener.getsockname()[1]

    async def __aenter__(self) -> FullListener:
        self._listener.listen(0)
        self._fillers = await fill_backlog(self._listener)
        return self

    async def __aexit__(self, *_: object) -> None:
        for one in (*self._fillers, self._listener):
            one.close()

    async def let_in(self, said: list[bytes]) -> None:
        """From now on everybody gets in, until cancelled; `said` is what each of them says."""
        loop = asyncio.get_running_loop()
        self._listener.setblocking(False)
        for filler in self._fillers:
            filler.close()
        while True:
            sock, _ = await loop.sock_accept(self._listener)
            with sock:
                sock.setblocking(False)
                said.append(await loop.sock_recv(sock, PREFIX_SIZE))


async def fill_backlog(listener: socket.socket) -> list[socket.socket]:
    """Connects until that hangs; returns what has to be kept open."""
    fillers = []
    for _ in range(16):
        filler = socket.socket(listener.family)
        filler.setblocking(False)
        fillers.append(filler)
        error = filler.connect_ex(listener.getsockname())
        if error == errno.EAGAIN:           # AF_UNIX
            return fillers
        if error == errno.EINPROGRESS:
            await asyncio.sleep(0.1)        # on the loopback it is done at once
            if not select.select([], [filler], [], 0)[1]:
                return fillers
    raise AssertionError("the backlog is never full")
