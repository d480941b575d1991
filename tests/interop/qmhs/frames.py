# SPDX-License-Identifier: GPL-2.0-or-later
"""Sections "Channel header" and "Frames", and the digest, which is of their bytes."""

from __future__ import annotations

import hashlib
import struct
from dataclasses import dataclass
from typing import Union

from . import Incomplete, Malformed
from .strictjson import Object, compose

MAGIC = b"QMHS"
HEADER_MIN = 64
HEADER_MAX = 4096
NAME_SIZE = 16
NO_SESSION = bytes(16)

_HEADER = struct.Struct(">4sHH16s16sI20s")
_PREFIX = struct.Struct(">IHH")
PREFIX_SIZE = _PREFIX.size

HELLO, ACCEPT, REJECT, COMMIT, ABORT = range(1, 6)
LOADED, START, LAST_WORD = 8, 9, 10
NAMES = {HELLO: "HELLO", ACCEPT: "ACCEPT", REJECT: "REJECT", COMMIT: "COMMIT", ABORT: "ABORT",
         LOADED: "LOADED", START: "START", LAST_WORD: "LAST WORD"}
VERDICTS = (ACCEPT, REJECT)
ENDS = (COMMIT, ABORT)      # of the source's part
CRITICAL = 1
SHUT = 1                    # a message of the return path, not a frame

HELLO_MAX = 524288
LATE_MAX = 16384
PAYLOAD_MAX = 131072
UNKNOWN_MAX = 16


@dataclass(frozen=True)
class Header:
    """Reserved fields are kept, so that what is decoded encodes to the same bytes."""

    session: bytes = NO_SESSION
    name: str = "main"
    index: int = 0
    extension: bytes = b""
    reserved: int = 0
    reserved_end: bytes = bytes(20)

    def encode(self) -> bytes:
        return _HEADER.pack(MAGIC, self.reserved, HEADER_MIN + len(self.extension), self.session,
                            self.name.encode("ascii"), self.index,
                            self.reserved_end) + self.extension

    @property
    def is_main(self) -> bool:
        return (self.name, self.index) == ("main", 0)


@dataclass(frozen=True)
class Frame:
    """One frame."""

    type: int
    payload: bytes
    flags: int = CRITICAL

    def encode(self) -> bytes:
        return _PREFIX.pack(len(self.payload), self.type, self.flags) + self.payload

    @property
    def is_known(self) -> bool:
        """On the main channel, before COMMIT."""
        return HELLO <= self.type <= ABORT

    @property
    def is_critical(self) -> bool:
        return bool(self.flags & CRITICAL)

    def __str__(self) -> str:
        return NAMES.get(self.type, f"frame of type {self.type:#06x}")


def message(kind: int, value: Object) -> Frame:
    return Frame(kind, compose(value))


def longest(kind: int) -> int:
    return {HELLO: HELLO_MAX, LOADED: LATE_MAX, LAST_WORD: LATE_MAX}.get(kind, PAYLOAD_MAX)


def decode_header(data: bytes, at: int = 0) -> tuple[Header, int]:
    """The header, and where it ends. Says as early as it can that it is none."""
    if data[at:at + 4] != MAGIC[:len(data) - at]:
        raise Malformed("no channel header")
    if len(data) < at + 8:
        raise Incomplete
    length = int.from_bytes(data[at + 6:at + 8], "big")
    if not HEADER_MIN <= length <= HEADER_MAX:
        raise Malformed(f"a channel header of {length} bytes")
    if len(data) < at + length:
        raise Incomplete
    _, reserved, _, session, name, index, reserved_end = _HEADER.unpack_from(data, at)
    return Header(session, _decode_name(name), index, bytes(data[at + HEADER_MIN:at + length]),
                  reserved, reserved_end), at + length


def _decode_name(field: bytes) -> str:
    name = field.rstrip(b"\0")
    if not name or not all(0x21 <= byte <= 0x7e for byte in name):
        raise Malformed(f"a channel named {field!r}")
    return name.decode("ascii")


def decode_frame(data: bytes, at: int = 0) -> tuple[Frame, int]:
    """The frame, and where it ends. Its length is judged before its payload is there."""
    if len(data) < at + PREFIX_SIZE:
        raise Incomplete
    length, kind, flags = _PREFIX.unpack_from(data, at)
    if length > longest(kind):
        raise Malformed(f"a frame of type {kind:#06x} with {length} bytes")
    end = at + PREFIX_SIZE + length
    if len(data) < end:
        raise Incomplete
    return Frame(kind, bytes(data[at + PREFIX_SIZE:end]), flags), end


@dataclass(frozen=True)
class Message:
    """One of the return path that is no frame."""

    type: int
    payload: bytes

    def encode(self) -> bytes:
        return struct.pack(">HH", self.type, len(self.payload)) + self.payload

    def __str__(self) -> str:
        return "SHUT" if self.type == SHUT else f"message {self.type} of the return path"


def shut(value: int) -> Message:
    return Message(SHUT, struct.pack(">I", value))


def decode_late(data: bytes, at: int = 0) -> tuple[Union[Frame, Message], int]:
    """What comes next on the return path, and where it ends."""
    if len(data) < at + 4:
        raise Incomplete
    kind, length = struct.unpack_from(">HH", data, at)
    if kind == 0:
        if length > LATE_MAX:
            raise Malformed(f"a late frame of {length} bytes")
        return decode_frame(data, at)
    if len(data) < at + 4 + length:
        raise Incomplete
    return Message(kind, bytes(data[at + 4:at + 4 + length])), at + 4 + length


def digest(source: bytes, destination: bytes) -> str:
    """Of all up to HELLO, and all up to ACCEPT, as they were on the wire."""
    return hashlib.sha256(source + destination).hexdigest()
