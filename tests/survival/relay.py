# SPDX-License-Identifier: GPL-2.0-or-later
"""Stands between source and destination, and does what networks do."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import select
import socket
import ssl
import struct
import sys
import termios
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from pathlib import Path
from typing import Optional

from machine import LOOPBACK
from wire import HEADER_SIZE, LAST_WORDS, VERDICTS, Peer, end_of_conversation, fill_backlog

SPEAKERS = ("source", "destination")
LAST = {"source": LAST_WORDS, "destination": VERDICTS}
PIECE = 1 << 16
LINGER = 5.0


def other_than(speaker: str) -> str:
    return SPEAKERS[1 - SPEAKERS.index(speaker)]


@contextlib.contextmanager
def while_open(end: socket.socket) -> Iterator[None]:
    """Who is there may go at any time, and a test may close the line while it is in use."""
    try:
        yield
    except OSError as err:
        if not isinstance(err, ConnectionError) and end.fileno() >= 0:
            raise


class Line:
    """One connection of the source, and ours to the destination once there is one."""

    def __init__(self, relay: Relay, number: int, source: socket.socket):
        self.relay = relay
        self.number = number
        self._ends = {"source": source}
        self.said = {speaker: bytearray() for speaker in SPEAKERS}  # what has come
        self.passed = {speaker: 0 for speaker in SPEAKERS}          # and gone on
        self.over: dict[str, float] = {}    # when a part of the handshake was

    async def reach(self) -> None:
        """Connect to the destination, unless that has been done."""
        if "destination" in self._ends:
            return
        target = self.relay.target
        remote = isinstance(target, int)
        sock = socket.socket(socket.AF_INET if remote else socket.AF_UNIX)
        sock.setblocking(False)
        self._ends["destination"] = sock
        await asyncio.get_running_loop().sock_connect(
            sock, (LOOPBACK, target) if remote else str(target))
        for one in self._ends.values():
            if one.family == socket.AF_INET:
                one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def conversation(self, speaker: str) -> Optional[int]:
        """How many bytes the speaker's part of the handshake has, if that is known."""
        return end_of_conversation(self.said[speaker], LAST[speaker])

    async def hear(self, speaker: str) -> bool:
        """Wait for more; False at the end."""
        data = await self._receive(speaker)
        self.said[speaker] += data
        if not self.number and speaker not in self.over:
            if self.conversation(speaker) is not None:
                self.over[speaker] = time.monotonic()
        return bool(data)

    async def _receive(self, speaker: str) -> bytes:
        await asyncio.sleep(0)      # or who sends fast enough keeps all others waiting
        end = self._ends[speaker]
        with while_open(end):
            return await asyncio.get_running_loop().sock_recv(end, PIECE)
        return b""

    async def tell(self, speaker: str, count: int) -> None:
        """Let the other one have `count` bytes in all."""
        data = bytes(self.said[speaker][self.passed[speaker]:count])
        self.passed[speaker] += len(data)
        end = self._ends[other_than(speaker)]
        with while_open(end):
            await asyncio.get_running_loop().sock_sendall(end, data)

    async def pass_on(self, speaker: str) -> None:
        """All that one of them says, but not that it ends."""
        await self.tell(speaker, len(self.said[speaker]))
        while await self.hear(speaker):
            await self.tell(speaker, len(self.said[speaker]))

    async def carry(self, speaker: str) -> None:
        """All that one of them says, and its end."""
        await self.pass_on(speaker)
        self.shut(speaker)

    async def insert(self, speaker: str, data: bytes) -> None:
        """Say what the speaker did not, behind all that it has said so far."""
        while (self.passed[speaker] < len(self.said[speaker])
               or select.select([self._ends[speaker]], [], [], 0)[0]):
            await asyncio.sleep(0.001)
        await self.say(speaker, data)

    async def say(self, speaker: str, data: bytes) -> None:
        """Say what the speaker did not, behind what was passed on."""
        await asyncio.get_running_loop().sock_sendall(self._ends[other_than(speaker)], data)

    def unheard(self, speaker: str) -> int:
        """How many bytes have come that nobody has heard yet."""
        count = fcntl.ioctl(self._ends[speaker], termios.FIONREAD, bytes(4))
        return int.from_bytes(count, sys.byteorder)

    def shut(self, speaker: str) -> None:
        """Tell the other one that no more will come."""
        with contextlib.suppress(OSError):
            self._ends[other_than(speaker)].shutdown(socket.SHUT_WR)

    async def carry_both(self) -> None:
        await self.reach()
        await asyncio.gather(*map(self.carry, SPEAKERS))

    async def carry_late(self, delay: float) -> None:
        """As over a line that is so long, one way; to connect takes a round trip."""
        await asyncio.sleep(2 * delay)
        await self.reach()
        await asyncio.gather(*(self._carry_late(speaker, delay) for speaker in SPEAKERS))

    async def _carry_late(self, speaker: str, delay: float) -> None:
        pieces: asyncio.Queue[tuple[float, int]] = asyncio.Queue()

        async def hear() -> None:
            more = True
            while more:
                more = await self.hear(speaker)
                count = len(self.said[speaker]) if more else 0
                pieces.put_nowait((time.monotonic() + delay, count))

        async with asyncio.TaskGroup() as group:
            group.create_task(hear())
            while True:
                due, count = await pieces.get()
                await asyncio.sleep(due - time.monotonic())
                if not count:
                    break
                await self.tell(speaker, count)
            self.shut(speaker)

    @contextlib.asynccontextmanager
    async def answer(self, tls: Optional[ssl.SSLContext] = None) -> AsyncIterator[Peer]:
        """Speak with the source, in place of the destination."""
        peer = await Peer.on(self._ends["source"].dup(), tls)
        try:
            yield peer
        finally:
            peer.close()

    async def carry_part(self, speaker: str, count: int, beyond: bool = False) -> None:
        """All that the other one says, and `count` bytes of what the speaker says.

        Unless it may go `beyond` the handshake, that is never the whole of a
        source's part, after which there is no way back. If it is nothing of a
        destination's part, the source has said all that it has to say first.
        """
        await self.reach()
        answers = asyncio.create_task(self.carry(other_than(speaker)))
        try:
            if speaker == "destination" and not count:
                await self.hear(speaker)
            while (self.passed[speaker] < self._bound(speaker, count, beyond)
                   and await self.hear(speaker)):
                await self.tell(speaker, self._bound(speaker, count, beyond))
        finally:
            answers.cancel()
            await asyncio.gather(answers, return_exceptions=True)

    def _bound(self, speaker: str, count: int, beyond: bool) -> int:
        whole = self.conversation(speaker)
        if beyond or whole is None:
            return count
        return min(count, whole - 1 if speaker == "source" else whole)

    async def trickle(self, speaker: str) -> None:
        """The handshake, or the header, one byte at a time."""
        while await self.hear(speaker):
            while self.passed[speaker] < len(self.said[speaker]):
                slow = HEADER_SIZE if self.number else self.conversation(speaker)
                if slow is not None and self.passed[speaker] >= slow:
                    return await self.carry(speaker)
                await self.tell(speaker, self.passed[speaker] + 1)
                await asyncio.sleep(0.0005)

    async def trickle_both(self) -> None:
        await self.reach()
        await asyncio.gather(*map(self.trickle, SPEAKERS))

    async def end_with_either(self) -> None:
        """Pass nothing on any more, but the end of either."""
        await self.reach()
        ends = [asyncio.create_task(self.drain(speaker)) for speaker in SPEAKERS]
        try:
            await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for end in ends:
                end.cancel()
            await asyncio.gather(*ends, return_exceptions=True)
        self.close()

    async def cut(self) -> None:
        """End both directions properly, and see that the two do so as well."""
        for speaker in SPEAKERS:
            self.shut(speaker)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(asyncio.gather(*map(self.drain, self._ends)), LINGER)
        self.close()

    async def drain(self, speaker: str) -> None:
        """Hear all that one of them still says, for nobody."""
        while await self._receive(speaker):
            pass

    def reset(self) -> None:
        """Of a UNIX socket it is an end, or a reset for those who have not read all."""
        for end in self._ends.values():
            end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close()

    def close(self) -> None:
        for end in self._ends.values():
            end.close()


Treatment = Callable[[Line], Coroutine[None, None, None]]


class Relay:
    """A port that leads to another one, or to a UNIX socket, by way of a treatment of each
    connection. It may be a UNIX socket itself, at `path`.

    They are numbered in the order in which they come, the main channel first.
    """

    def __init__(self, port: int | Path, treatment: Treatment = Line.carry_both,
                 path: Optional[Path] = None):
        self.target = port
        self._treatment = treatment
        self._listener = socket.socket(socket.AF_UNIX if path else socket.AF_INET)
        self._listener.setblocking(False)
        self._listener.bind(str(path) if path else (LOOPBACK, 0))
        self.port: int = 0 if path else self._listener.getsockname()[1]
        self.lines: list[Line] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self._accepting: Optional[asyncio.Task[None]] = None
        self._fillers: list[socket.socket] = []

    async def __aenter__(self) -> Relay:
        self._listener.listen(512)
        self._accepting = self._start(self._accept())
        return self

    async def __aexit__(self, kind: Optional[type], *_: object) -> None:
        results = await self._stop()
        if kind is None:
            for result in results:
                if isinstance(result, Exception):
                    raise result

    async def _stop(self) -> list[BaseException | None]:
        for task in self._tasks:
            task.cancel()
        results = await asyncio.gather(*self._tasks, return_exceptions=True)
        for one in (self._listener, *self._fillers, *self.lines):
            one.close()
        return results

    async def refuse(self) -> None:
        """From now on nobody can connect any more."""
        await self._stop_accepting()
        self._listener.close()

    async def drop(self) -> None:
        """From now on nobody can connect any more, nor finds out."""
        await self._stop_accepting()
        self._listener.listen(0)
        self._fillers = await fill_backlog(self._listener)

    async def hang_up(self) -> None:
        """End all connections, as the host of somebody who has died does."""
        await self._stop()

    async def quiet(self) -> None:
        """Wait until all treatments are over."""
        await asyncio.gather(*(task for task in self._tasks if task is not self._accepting))

    async def _stop_accepting(self) -> None:
        assert self._accepting
        self._accepting.cancel()
        await asyncio.wait([self._accepting])

    def _start(self, work: Coroutine[None, None, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        return task

    async def _accept(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            source, _ = await loop.sock_accept(self._listener)
            source.setblocking(False)
            line = Line(self, len(self.lines), source)
            self.lines.append(line)
            self._start(self._treat(line))

    async def _treat(self, line: Line) -> None:
        try:
            await self._treatment(line)
        except ConnectionRefusedError:
            line.close()                # as a forwarder does
