# SPDX-License-Identifier: GPL-2.0-or-later
"""Captures, recorded on the loopback device or made up, and what tshark makes of them."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import socket
import struct
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple, Optional

import pytest
from conftest import TOP
from machine import LOOPBACK, until
from processes import UNDER

DISSECTOR = TOP / "contrib/wireshark/migration-handshake.lua"
PATIENCE = 20.0
LIMIT = 100.0           # for a tshark that runs in circles
NOBODY = 65534
ADDRESS = socket.inet_aton(LOOPBACK)
SERVER = 4444           # of captures that are made up
SYN, ACK, FIN = 2, 16, 1
RAW_IP = 101
SNAPSHOT = 1 << 18

Fields = dict[str, list[str]]


class Turn(NamedTuple):
    """What one side of a connection says at a time."""

    from_source: bool
    data: bytes


@contextmanager
def directory() -> Iterator[Path]:
    """One that a tshark of nobody can read, with the dissector in it."""
    with tempfile.TemporaryDirectory(prefix="migration-handshake-") as name:
        path = Path(name)
        path.chmod(0o755)
        (path / DISSECTOR.name).write_bytes(DISSECTOR.read_bytes())
        (path / DISSECTOR.name).chmod(0o644)
        yield path


def tshark(file: Path, *options: str) -> str:
    """Its output. Nothing that the dissector meets may be too much for it."""
    # Started by root, Wireshark 4.4 runs no scripts.
    under = ([] if os.geteuid() else
             ["setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups"])
    # Neither the user's settings nor a dissector that the user has installed.
    environment = {**os.environ, "HOME": str(file.parent), "XDG_CONFIG_HOME": str(file.parent),
                   "LC_ALL": "C.UTF-8"}
    file.chmod(0o644)
    done = subprocess.run(
        [*under, "tshark", "-n", "-X", f"lua_script:{file.parent / DISSECTOR.name}",
         "-r", str(file), *options],
        env=environment, stdin=subprocess.DEVNULL, capture_output=True, check=False,
        timeout=LIMIT, text=True, errors="replace")
    assert done.returncode == 0, done.stderr
    assert "Lua" not in done.stderr, done.stderr
    assert "Lua Error" not in done.stdout, done.stdout
    return done.stdout


def decode(file: Path, fields: Sequence[str], *options: str, which: str = "qmhs") -> list[Fields]:
    """The values of these fields, for each of the packets that `which` chooses."""
    wanted = [option for field in fields for option in ("-e", field)]
    packets = json.loads(tshark(file, "-Y", which, "-T", "json", *wanted, *options))
    return [packet["_source"].get("layers", {}) for packet in packets]


def story(file: Path, *options: str, which: str = "qmhs") -> list[str]:
    """The Info column."""
    return tshark(file, "-Y", which, "-o", 'gui.column.format:"Info","%i"', *options).splitlines()


class Recording:
    """Everything that goes over the loopback device from or to one port."""

    def __init__(self, place: Path, port: int):
        self.file = place / "recording.pcapng"
        self._messages = place / "recording.messages"
        self._port = port
        self._ours: list[bytes] = []
        self._process: Optional[asyncio.subprocess.Process] = None

    async def __aenter__(self) -> Recording:
        assert shutil.which("tshark"), "the package tshark is missing"
        with self._messages.open("wb") as messages:
            self._process = await asyncio.create_subprocess_exec(
                *UNDER, "tshark", "-n", "-q", "-i", "lo", "-f", f"tcp port {self._port}",
                "-w", str(self.file), stdin=asyncio.subprocess.DEVNULL,
                stdout=messages, stderr=messages)
        try:
            await until("tshark to record", PATIENCE, self._has_ours)
        except BaseException:
            await self._stop()
            raise
        return self

    async def __aexit__(self, kind: Optional[type], *_: object) -> None:
        self._ours.clear()
        try:
            if kind is None:
                await until("tshark to write it all", PATIENCE, self._has_ours)
        finally:
            await self._stop()

    async def _has_ours(self) -> bool:
        """Whether a connection of ours is written, and so all that came before it is.

        What tshark says comes earlier than the first packet that it records. Nobody
        need listen: being turned away is worth two packets.
        """
        self._require_life()
        with socket.socket() as probe:
            probe.setblocking(False)
            probe.bind((LOOPBACK, 0))
            self._ours.append(ADDRESS + ADDRESS + struct.pack(
                ">HH", probe.getsockname()[1], self._port))
            probe.connect_ex((LOOPBACK, self._port))
            await asyncio.sleep(0.1)
        recorded = self.file.read_bytes() if self.file.exists() else b""
        return any(mark in recorded for mark in self._ours)

    def _require_life(self) -> None:
        assert self._process
        if self._process.returncode is None:
            return
        said = self._messages.read_text(errors="replace").strip()
        for line in said.splitlines():
            if "permission" in line:
                pytest.skip(f"this user may not capture packets: {line}")
        raise AssertionError(f"tshark records nothing: {said}")

    async def _stop(self) -> None:
        assert self._process
        if self._process.returncode is None:
            self._process.send_signal(signal.SIGINT)
        await asyncio.wait_for(self._process.wait(), PATIENCE)


class Connection:
    """Packets of one TCP connection that never was."""

    def __init__(self, client: int, start: int):
        self._ports = {True: client, False: SERVER}
        self._next = {True: start, False: 2 * start}
        self.packets: list[bytes] = []
        self._add(True, b"", SYN)
        self._add(False, b"", SYN | ACK)

    def say(self, turn: Turn, size: int) -> None:
        """In segments of so many bytes."""
        for at in range(0, len(turn.data), size):
            self._add(turn.from_source, turn.data[at:at + size], ACK)

    def close(self) -> None:
        for side in (True, False):
            self._add(side, b"", FIN | ACK)

    def _add(self, side: bool, data: bytes, flags: int) -> None:
        ip = struct.pack(">BBHHHBBH4s4s", 0x45, 0, 40 + len(data), 0, 0, 64, 6, 0,
                         ADDRESS, ADDRESS)
        tcp = struct.pack(">HHIIBBHHH", self._ports[side], self._ports[not side],
                          self._next[side] & 0xffffffff, self._next[not side] & 0xffffffff,
                          0x50, flags, 0xffff, 0, 0)
        self.packets.append(ip + tcp + data)
        self._next[side] += len(data) + bool(flags & (SYN | FIN))


def connection(client: int, turns: Sequence[Turn], size: int = 60000,
               start: int = 1000) -> list[bytes]:
    made = Connection(client, start)
    for turn in turns:
        made.say(turn, size)
    made.close()
    return made.packets


def connections(turns: Sequence[tuple[int, Turn]]) -> list[bytes]:
    """Of several that go on at the same time; each turn has its connection's port."""
    made: dict[int, Connection] = {}
    packets: list[bytes] = []
    for client, turn in turns:
        one = made.setdefault(client, Connection(client, 1000))
        one.say(turn, 60000)
        packets += one.packets
        one.packets.clear()
    return packets


def write(place: Path, packets: Sequence[bytes], lengths: Optional[Sequence[int]] = None) -> Path:
    """`lengths` are what the packets had on the wire, if they are not whole."""
    file = place / "made.pcap"
    with file.open("wb") as pcap:
        pcap.write(struct.pack("<IHHiIII", 0xa1b2c3d4, 2, 4, 0, 0, SNAPSHOT, RAW_IP))
        for number, (packet, length) in enumerate(zip(packets, lengths or map(len, packets))):
            pcap.write(struct.pack("<IIII", number // 1000, number % 1000 * 1000,
                                   len(packet), length) + packet)
    return file
