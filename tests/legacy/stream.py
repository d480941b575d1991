# SPDX-License-Identifier: GPL-2.0-or-later
"""Takes apart what a migration sends: every byte belongs to something that has a name.

As QEMU's scripts/analyze-migration.py does, and besides: commands, mapped-ram, multifd,
and where each thing stands. Whatever is not as expected is an error.
"""

from __future__ import annotations

import json
import struct
from typing import Any, NamedTuple

Json = dict[str, Any]

EOF, START, PART, END, FULL, SUBSECTION, VMDESC, CONFIGURATION, COMMAND = range(9)
FOOTER = 0x7e
OPEN_RETURN_PATH, PING, POSTCOPY_ADVISE = 1, 2, 3

RAM_VERSION = 4
RAM_ZERO, RAM_MEM_SIZE, RAM_PAGE, RAM_EOS, RAM_CONTINUE = 0x02, 0x04, 0x08, 0x10, 0x20
RAM_MULTIFD_FLUSH = 0x200
PAGE = 4096
MAPPED_RAM_ALIGNMENT = 1 << 20

MULTIFD_MAGIC, MULTIFD_VERSION, MULTIFD_SYNC = 0x11223344, 1, 1
MULTIFD_PAGES = (512 << 10) // PAGE     # that a packet has room for


class Broken(Exception):
    """A stream is not what it should be."""


class Piece(NamedTuple):
    """Some bytes, and what they are."""

    name: str
    data: bytes


class Reader:
    """Takes bytes from the front, and keeps account of them."""

    def __init__(self, data: bytes):
        self._data = data
        self.at = 0
        self.pieces: list[Piece] = []

    @property
    def left(self) -> int:
        return len(self._data) - self.at

    def take(self, name: str, size: int) -> bytes:
        if size > self.left:
            raise Broken(f"{name}: {self.left} of {size} bytes, at {self.at:#x}")
        data = self._data[self.at:self.at + size]
        self.at += size
        self.pieces.append(Piece(name, data))
        return data

    def number(self, name: str, size: int) -> int:
        return int.from_bytes(self.take(name, size), "big")

    def text(self, name: str) -> str:
        return self.take(name, self.number(f"{name}, length", 1)).decode()

    def peek(self) -> int:
        return self._data[self.at] if self.left else -1

    def forget(self, since: int) -> list[Piece]:
        gone = self.pieces[since:]
        del self.pieces[since:]
        return gone


class Stream:
    """A main channel or a file, taken apart.

    How RAM that is sent piece by piece is cut into sections is a matter of time:
    a part ends after 50 ms, and what is left may come at the end. So the pages have
    a list of their own, parts leave nothing else, and all the rest is in `pieces`.
    """

    def __init__(self, data: bytes, mapped_ram: bool = False):
        self._reader = Reader(data)
        self._mapped_ram = mapped_ram
        self._names: dict[int, str] = {}
        self.vmdesc = _vmdesc_of(data)
        self._devices = {(one["name"], one["instance_id"]): one for one in self.vmdesc["devices"]}
        if len(self._devices) != len(self.vmdesc["devices"]):
            raise Broken("vmdesc has a device twice")
        self.commands: list[int] = []
        self.pages: list[Piece] = []
        self.ram_size = 0
        self._block = ""
        self._read()

    @property
    def pieces(self) -> list[Piece]:
        return self._reader.pieces

    @property
    def shape(self) -> list[tuple[str, int]]:
        """What stands there, in order, and how long it is."""
        return [(piece.name, len(piece.data)) for piece in self.pieces + self.pages]

    def _read(self) -> None:
        reader = self._reader
        if reader.take("magic", 4) != b"QEVM" or reader.number("version", 4) != 3:
            raise Broken("no stream of version 3")
        while (kind := reader.peek()) != EOF:
            if kind == CONFIGURATION:
                reader.take("configuration", 1)
                self._fields("configuration", self.vmdesc["configuration"])
            elif kind == COMMAND:
                self._command()
            elif kind in (START, FULL, PART, END):
                self._section()
            else:
                raise Broken(f"{kind:#x} at {reader.at:#x}")
        reader.take("EOF", 1)
        if reader.number("vmdesc", 1) != VMDESC:
            raise Broken("no vmdesc")
        reader.take("vmdesc, text", reader.number("vmdesc, length", 4))
        if reader.left:
            raise Broken(f"{reader.left} bytes after the end")

    def _command(self) -> None:
        reader = self._reader
        reader.take("command", 1)
        kind = reader.number("command, kind", 2)
        self.commands.append(kind)
        reader.take(f"command {kind}", reader.number(f"command {kind}, length", 2))

    def _section(self) -> None:
        reader, since = self._reader, len(self._reader.pieces)
        kind = reader.number("section, kind", 1)
        number = reader.number("section, number", 4)
        if kind in (START, FULL):
            name = reader.text("section, name")
            instance = reader.number(f"{name}, instance", 4)
            version = reader.number(f"{name}, version", 4)
            self._names[number] = name
            if name == "ram":
                if kind != START or version != RAM_VERSION:
                    raise Broken(f"ram has kind {kind}, version {version}")
                self._ram()
            else:
                self._device(kind, name, instance, version)
        elif self._names.get(number) == "ram":
            self._ram()
        else:
            raise Broken(f"section {number} goes on")
        if reader.number("footer", 1) != FOOTER or reader.number("footer, number", 4) != number:
            raise Broken(f"no footer of section {number} before {reader.at:#x}")
        if kind == PART:
            reader.forget(since)

    def _device(self, kind: int, name: str, instance: int, version: int) -> None:
        if kind != FULL:
            raise Broken(f"{name} is no full section")
        desc = self._devices.pop((name, instance))
        if version != desc["version"]:
            raise Broken(f"{name}: version {version}, and {desc['version']} in vmdesc")
        self._fields(f"{name}.{instance}" if instance else name, desc)

    def _fields(self, path: str, desc: Json) -> None:
        """Of a section, a structure or a subsection, as vmdesc describes it."""
        for field in desc["fields"]:
            for index in range(field.get("array_len", 1)):
                name = f"{path}/{field['name']}"
                if "array_len" in field or "index" in field:
                    name += f"[{field.get('index', index)}]"
                if "struct" in field:
                    begin = self._reader.at
                    self._fields(name, field["struct"])
                    if self._reader.at - begin != field["size"]:
                        raise Broken(f"{name} has {self._reader.at - begin} bytes, "
                                     f"and {field['size']} in vmdesc")
                else:
                    self._reader.take(f"{name} ({field['type']})", field["size"])
        for subsection in desc.get("subsections", []):
            self._subsection(path, subsection)

    def _subsection(self, path: str, desc: Json) -> None:
        name = f"{path}/{desc['vmsd_name']}"
        if self._reader.number(name, 1) != SUBSECTION:
            raise Broken(f"no subsection {name}")
        if self._reader.text(f"{name}, name") != desc["vmsd_name"]:
            raise Broken(f"another subsection in the place of {name}")
        if self._reader.number(f"{name}, version", 4) != desc["version"]:
            raise Broken(f"{name} has another version in vmdesc")
        self._fields(name, desc)

    def _ram(self) -> None:
        while True:
            since = len(self._reader.pieces)
            word = self._reader.number("ram", 8)
            address, flags = word & -PAGE, word & (PAGE - 1)
            kind = flags & ~RAM_CONTINUE
            if word == RAM_EOS:
                return
            if flags == RAM_MEM_SIZE:
                self._blocks(address)
            elif word == RAM_MULTIFD_FLUSH:
                pass
            elif kind in (RAM_PAGE, RAM_ZERO):
                if not flags & RAM_CONTINUE:
                    self._block = self._reader.text("ram, block")
                self._reader.take("ram, page", PAGE if kind == RAM_PAGE else 1)
                whole = b"".join(piece.data for piece in self._reader.forget(since))
                self.pages.append(Piece(f"{self._block} {address:#x}", whole))
            else:
                raise Broken(f"ram: {word:#x}")

    def _blocks(self, total: int) -> None:
        reader = self._reader
        self.ram_size = total
        while total > 0:
            name = reader.text("ram, block")
            size = reader.number(f"{name}, size", 8)
            total -= size
            if self._mapped_ram:
                self._mapped(name, size)

    def _mapped(self, name: str, size: int) -> None:
        """A block whose pages have fixed places in a file, and a bitmap in front."""
        reader = self._reader
        version, page, bitmap_at, pages_at = struct.unpack(
            ">IQQQ", reader.take(f"{name}, mapped-ram", 28))
        bitmap = (size // PAGE + 63) // 64 * 8
        expected = (bitmap_at + bitmap + MAPPED_RAM_ALIGNMENT - 1) & -MAPPED_RAM_ALIGNMENT
        if (version, page, bitmap_at, pages_at) != (1, PAGE, reader.at, expected):
            raise Broken(f"{name}: mapped-ram {version} {page} {bitmap_at:#x} {pages_at:#x}")
        reader.take(f"{name}, bitmap", bitmap)
        reader.take(f"{name}, padding", pages_at - reader.at)
        reader.take(f"{name}, pages", size)


def _vmdesc_of(data: bytes) -> Json:
    """It is the last thing, and has no zero byte in it."""
    begin = data.find(b"{", data.rfind(b"\0"))
    if begin < 0:
        raise Broken("no vmdesc")
    result: Json = json.loads(data[begin:])
    if result["page_size"] != PAGE:
        raise Broken(f"pages of {result['page_size']} bytes")
    return result


class Packet(NamedTuple):
    """What a packet of multifd says of itself, without what depends on the time."""

    magic: int
    version: int
    flags: int
    room: int
    unused: bytes


class Multifd:
    """A channel of multifd, taken apart."""

    def __init__(self, data: bytes):
        self._reader = Reader(data)
        self.initial = self._reader.take("initial packet", 64)
        self.number = self.initial[24]
        self.packets: list[Packet] = []
        self.numbers: list[int] = []
        self.pages: dict[tuple[str, int], bytes] = {}       # those of zeros: b""
        while self._reader.left:
            self._packet()

    @property
    def syncs(self) -> int:
        return sum(packet.flags & MULTIFD_SYNC for packet in self.packets)

    def _packet(self) -> None:
        reader = self._reader
        magic, version, flags, room, normal, size, number, zero = struct.unpack(
            ">IIIIIIQI", reader.take("packet", 36))
        unused = reader.take("unused", 4 + 24)
        block = reader.take("block", 256).rstrip(b"\0").decode()
        offsets = struct.unpack(f">{MULTIFD_PAGES}Q", reader.take("offsets", MULTIFD_PAGES * 8))
        if size != normal * PAGE or normal + zero > room:
            raise Broken(f"packet {number}: {normal} and {zero} pages, {size} bytes")
        self.packets.append(Packet(magic, version, flags, room, unused))
        self.numbers.append(number)
        for offset in offsets[:normal]:
            self._page(block, offset, reader.take("page", PAGE))
        for offset in offsets[normal:normal + zero]:
            self._page(block, offset, b"")

    def _page(self, block: str, offset: int, data: bytes) -> None:
        if (block, offset) in self.pages:
            raise Broken(f"{block} {offset:#x} comes twice")
        self.pages[block, offset] = data


def is_multifd(data: bytes) -> bool:
    return data.startswith(MULTIFD_MAGIC.to_bytes(4, "big"))
