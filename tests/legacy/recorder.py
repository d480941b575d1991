# SPDX-License-Identifier: GPL-2.0-or-later
"""Listens for a source, and keeps all that it says, and all that it is told."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Optional

from machine import LOOPBACK

LIMIT = 20.0
PIECE = 1 << 16

Accept = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


class Connection:
    """In the order in which they came."""

    def __init__(self) -> None:
        self.said = bytearray()         # by the source
        self.answered = bytearray()
        self.ended = asyncio.Event()


class Recorder:
    """A port that leads to another one; or a unix socket that leads to nobody.

    Connections are made in the order in which they come, so that the main channel
    stays the first one.
    """

    def __init__(self, target: Optional[int] = None, path: Optional[Path] = None):
        self._target = target
        self._path = path
        self._server: Optional[asyncio.AbstractServer] = None
        self.port = 0
        self.connections: list[Connection] = []
        self._reaching = asyncio.Lock()
        self._tasks: list[Optional[asyncio.Task[None]]] = []

    async def __aenter__(self) -> Recorder:
        if self._path:
            self._server = await asyncio.start_unix_server(self._connect, self._path)
        else:
            server = await asyncio.start_server(self._connect, LOOPBACK, 0)
            self._server = server
            self.port = server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._server
        self._server.close()

    async def all_said(self) -> list[Connection]:
        """Once all connections have ended."""
        for connection in self.connections:
            await asyncio.wait_for(connection.ended.wait(), LIMIT)
        return self.connections

    async def _connect(self, reader: asyncio.StreamReader,
                       writer: asyncio.StreamWriter) -> None:
        self._tasks.append(asyncio.current_task())  # asyncio's own reference is weak
        connection = Connection()
        self.connections.append(connection)
        far: Optional[asyncio.StreamWriter] = None
        try:
            if self._target is None:
                await _carry(reader, None, connection.said)
            else:
                async with self._reaching:
                    answers, far = await asyncio.open_connection(LOOPBACK, self._target)
                await asyncio.gather(_carry(reader, far, connection.said),
                                     _carry(answers, writer, connection.answered))
        finally:
            for end in filter(None, (writer, far)):
                end.close()
            connection.ended.set()


async def _carry(reader: asyncio.StreamReader, writer: Optional[asyncio.StreamWriter],
                 record: bytearray) -> None:
    try:
        while data := await reader.read(PIECE):
            record += data
            if writer:
                writer.write(data)
                await writer.drain()
        if writer:
            writer.write_eof()
    except ConnectionError:
        if writer:
            writer.close()      # who is left shall see it
