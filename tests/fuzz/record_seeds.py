#!/usr/bin/python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""Writes the seeds anew: what real QEMUs say to each other, and scripts that repeat it.

QTEST_QEMU_BINARY=build/10.0/qemu-system-x86_64 tests/fuzz/record_seeds.py
"""

from __future__ import annotations

import asyncio
import json
import shutil
import struct
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Optional

HERE = Path(__file__).resolve().parent
SEEDS = HERE / "seeds"
sys.path[:0] = [str(HERE.parent), str(HERE.parent / "survival")]

# pylint: disable=wrong-import-position,unused-import
import conftest                     # noqa: E402,F401  finds the others
from machine import Json, Lab, Machine                      # noqa: E402
from processes import (Options, begin, end, inet, pc_lab,   # noqa: E402
                       set_channels, start_destination, start_source)
from relay import Relay             # noqa: E402
from wire import (ABORT, ACCEPT, COMMIT, HEADER_SIZE, HELLO, PREFIX_SIZE,   # noqa: E402
                  REJECT, SESSION, FakeDestination, Peer, frame, header)

SPOKEN = (HELLO, ACCEPT, REJECT, COMMIT, ABORT)
NAMES = {HELLO: "hello", ACCEPT: "accept", REJECT: "reject", COMMIT: "commit", ABORT: "abort"}

# Places in the tables of operations in destination.c and source.c. There, a byte
# for the connection follows, with AT_ONCE if QEMU does not run before the next.
(CONNECT, CANNED_HELLO, SAY_COMMIT, SAY_HEADER, SAY_BYTES, CLOSE, WAIT, SAY_ABORT,
 SAY_HELLO) = range(9)
CONNECT_TLS, SAY_BAD_COMMIT, AT_ONCE = 15, 21, 128
MULTIFD, PREEMPT, IN_SESSION = 1, 2, 4
OTHERS, OWN = range(2)          # see profile.c
SAY_ACCEPT, SAY_REJECT, SAY_VERDICT = range(3)

Said = dict[int, bytes]

# What only a few machines say, on top of the shortest HELLO.
CHANNELS = {"features": ["named-channels"]}
MULTIFD_GROUP = {"multifd-channels": 2, "multifd-compression": "none"}
HELLOS: dict[str, Json] = {
    "shortest": {},
    "versions": {"versions": [2, 4294967295, "x"], "required": ["later"], "purpose": "resume"},
    "declined": {"declined": [{"capability": "multifd", "reason": "no"}, {}, 1]},
    "shared": {"optional-capabilities": ["x-ignore-shared"], "profile": {"ram-blocks": [
        {"name": "0000:00:02.0/shared", "size": 65536, "shared-file": True, "address": 4096},
        {"name": "pc.ram", "size": 16777216, "shared-file": True}]}},
    "shared-required": {"profile": {"required-capabilities": ["x-ignore-shared"], "ram-blocks": [
        {"name": "0000:00:02.0/shared", "size": 65536}]}},
    "pages": {"optional-capabilities": ["postcopy-ram", "postcopy-preempt"], "profile": {
        "page-size": 4096, "host-page-size": 65536, "ram-blocks": [
            {"name": "pc.ram", "size": 16777216, "page-size": 2097152, "conditional": True}]}},
    "identity": {"warnings-as-errors": True, "profile": {
        "arch": "i386", "machine": "pc", "uuid": "0d1b5c9e-07f4-4c55-a8b2-3f6d21e7a940",
        "capabilities": ["validate-uuid"], "name": "web1", "package": "Debian"}},
    "stuck": {"profile": {"unmigratable": ["ivshmem"], "blockers": ["a disk is local"]}},
    "sections": {"profile": {"sections": [
        {"name": "ide", "version": 3, "conditional": True}, {"name": "gone", "version": 1},
        {"name": "dma", "version": 2, "instances": [0, 1, 4294967295, "x"]}, {}, 1]}},
    "stream": {"optional-capabilities": ["multifd"], **CHANNELS, "profile": {"stream": {
        "send-configuration": False, "suppress-vmdesc": 1,
        "multifd-flush-after-each-section": True}}},
    "conflict": {**CHANNELS, "profile": {"required-capabilities": [
        "multifd", "postcopy-ram", "xbzrle", "return-path", "later", "multifd"],
        "parameters": {"multifd": MULTIFD_GROUP, "return-path": {"x": 1}}}},
    "no-channels": {"optional-capabilities": ["multifd"], "profile": {
        "required-capabilities": ["postcopy-preempt"]}},
    "values": {**CHANNELS, "profile": {"required-capabilities": ["multifd"], "parameters": {
        "multifd": {"multifd-channels": 0, "multifd-compression": "zlib", "later": None}}}},
    "groups": {**CHANNELS, "optional-capabilities": [
        "multifd", "later", "xbzrle", "multifd", "return-path"],
        "profile": {"parameters": {"multifd": 1}}},
}


def split(said: bytes) -> Said:
    """The frames that this version knows, by type."""
    frames = {}
    at = HEADER_SIZE
    while len(said) >= at + PREFIX_SIZE:
        length, kind = struct.unpack_from(">IH", said, at)
        at += PREFIX_SIZE + length
        if kind in SPOKEN and len(said) >= at:
            frames[kind] = said[at - length:at]
            if kind in (ACCEPT, REJECT, COMMIT, ABORT):
                break
    return frames


def write(target: str, name: str, seed: bytes) -> None:
    directory = SEEDS / target
    directory.mkdir(parents=True, exist_ok=True)
    (directory / name).write_bytes(seed)


def text(data: bytes) -> bytes:
    """With its length before it, as a script has it."""
    return struct.pack(">H", len(data)) + data


def write_messages(name: str, frames: Said) -> None:
    """Each message for the targets that read one."""
    for kind, message in frames.items():
        name_of_it = f"{name}-{NAMES[kind]}"
        write("json", name_of_it, message)
        if kind == HELLO:
            write("hello", name_of_it, message)
            write("judge", name_of_it, bytes(4) + message)
            write("destination", name_of_it,
                  bytes([CONNECT, 0, SAY_HELLO, 0]) + text(message) + bytes([SAY_COMMIT, 0]))
        elif kind in (ACCEPT, REJECT):
            accept = bytes([kind == ACCEPT])
            write("verdict", name_of_it, accept + message)
            write("source", name_of_it, bytes([0, SAY_VERDICT]) + accept + text(message))
        else:
            write("last-word", name_of_it, bytes([kind == COMMIT]) + message)


def write_short_messages() -> None:
    """A fuzzer gets further with few bytes than with many."""
    write_messages("short", {
        HELLO: b'{"versions":[1],"purpose":"check","required":[],"profile":{"sections":['
               b'{"name":"ram","version":4}],"ram-blocks":[{"name":"pc.ram","size":16777216}]}}',
        ACCEPT: b'{"version":1,"capabilities":["return-path"]}',
        REJECT: b'{"message":"no","issues":[{"code":"uuid","severity":"error","message":"no"}]}',
        COMMIT: b'{"digest":"00"}',
        ABORT: b'{"message":"no"}'})
    odd = json.dumps({"message": "line\n" * 300 + "\u00e9" * 300, "issues-omitted": 7,
                      "issues": [{}, 1, {"severity": "later", "source": "x" * 2000}],
                      "peer": {"machine": "\x7f" * 1100}}, ensure_ascii=False).encode()
    write_messages("odd", {REJECT: odd, ABORT: odd})
    for name, more in HELLOS.items():
        message = {"versions": [1], "purpose": "migrate", "required": [], **more}
        write_messages(name, {HELLO: json.dumps(message, separators=(",", ":")).encode()})


def write_scripts() -> None:
    """The ways that a conversation can take, in a few bytes each."""
    def hello(number: int, slot: int = 0) -> bytes:
        return bytes([CONNECT, slot, CANNED_HELLO, slot, number])

    def channel(slot: int, name: int, index: int = 0) -> bytes:
        return bytes([CONNECT, slot, SAY_HEADER, slot, name | IN_SESSION, index])

    commit = bytes([SAY_COMMIT, 0])
    stream = bytes([SAY_COMMIT, AT_ONCE, SAY_BYTES, 0, 8]) + b"QEVM\0\0\0\3"
    wait = bytes([WAIT, 0, 255])
    scripts = {
        "plain": hello(0) + commit,
        "multifd": hello(1) + commit + channel(1, MULTIFD),
        "multifd-default": hello(2) + commit + channel(1, MULTIFD, 1) + channel(2, MULTIFD),
        "preempt": hello(3) + commit + channel(1, PREEMPT),
        "stream": hello(0) + stream,
        "stream-multifd": hello(1) + stream + channel(1, MULTIFD),
        "preempt-unasked": hello(0) + channel(1, PREEMPT) + commit + channel(2, PREEMPT),
        "channel-first": hello(1) + channel(1, MULTIFD) + commit,
        "missing-channel": hello(2) + commit + channel(1, MULTIFD) + wait,
        "check": hello(4),
        "refused": hello(5),
        "abort": hello(0) + bytes([SAY_ABORT, 0]) + hello(0, 1) + bytes([SAY_COMMIT, 1]),
        "busy": hello(0) + hello(0, 1) + commit,
        "closed": hello(1) + bytes([CLOSE, 0]) + hello(0, 1),
        "silent": hello(1) + wait + hello(0, 1),
        "legacy": bytes([CONNECT, 0, SAY_BYTES, 0, 8]) + b"QEVM\0\0\0\3",
        "other-digest": hello(0) + bytes([SAY_BAD_COMMIT, 0, 1]),
        "no-digest": hello(1) + bytes([SAY_BAD_COMMIT, 0, 0]),
        "tls": bytes([CONNECT_TLS, 0]) + hello(0) + commit,
    }
    for name, script in scripts.items():
        write("destination", f"script-{name}", script)
    write("source", "script-no-session", bytes([0, SAY_HEADER, 0, 0, SAY_ACCEPT, 4]))
    write("source", "script-accept", bytes([0, SAY_ACCEPT, 4]))
    write("source", "script-multifd", bytes([8, 2, 10, 17, SAY_ACCEPT, 4]))
    write("source", "script-check", bytes([1, SAY_ACCEPT, 4]))
    write("source", "script-reject", bytes([0, SAY_REJECT, 9]))


async def conversation(name: str, source: Machine, port: int, options: Optional[Options]) -> None:
    async with Relay(port) as relay:
        await begin(source, inet(relay.port), options)
        if options and options.get("check-only"):
            while (await source.handshake())["status"] == "in-progress":
                await asyncio.sleep(0.01)
        else:
            await end(source)
        main = relay.lines[0]
        for speaker, said in main.said.items():
            spoken = bytes(said[:main.conversation(speaker)])
            write_messages(name, split(spoken))
            write("wire", f"{name}-{speaker}", spoken)
        for line in relay.lines[1:2]:
            write("wire", f"{name}-channel", bytes(line.said["source"][:HEADER_SIZE]))


async def set_capabilities(machine: Machine, *names: str) -> None:
    await machine.execute("migrate-set-capabilities", {
        "capabilities": [{"capability": name, "state": True} for name in names]})


Setting = Callable[[Machine], Awaitable[None]]


async def nothing(_: Machine) -> None:
    pass


async def required(source: Machine) -> None:
    await set_capabilities(source, "multifd", "dirty-bitmaps", "validate-uuid")
    await set_channels(source, 4)


async def postcopy(source: Machine) -> None:
    await set_capabilities(source, "postcopy-ram", "postcopy-preempt")


async def record(name: str, setting: Setting = nothing, options: Optional[Options] = None,
                 destination_lab: Optional[Lab] = None) -> None:
    async with pc_lab() as lab, destination_lab or pc_lab() as other:
        source = await start_source(lab)
        _, port = await start_destination(other)
        await setting(source)
        await conversation(name, source, port, options)


async def record_abort() -> None:
    """A destination that wants what it was not offered."""
    async def answer(peer: Peer) -> None:
        await peer.read_hello()
        await peer.send(header(session=SESSION)
                        + frame(ACCEPT, {"version": 1, "capabilities": ["return-path", "xbzrle"]}))
        _, message = await peer.read_frame(ABORT)
        write_messages("unwanted", {ABORT: json.dumps(message).encode()})

    async with pc_lab() as lab, FakeDestination() as fake:
        source = await start_source(lab)
        await begin(source, inet(fake.port))
        await answer(await fake.next())
        await end(source)


async def record_profile() -> None:
    async with pc_lab() as lab:
        profile: Json = await (await start_source(lab)).execute("query-migrate-profile")
        for name, options in (("default", [0]), ("strict", [0x0f]), ("wanted", [0x89, 10, 17])):
            write("profile", name, bytes([*options, OTHERS]) + json.dumps(profile).encode())
            write("profile", f"own-{name}", bytes([*options, OWN, 7, 10, 4]))


async def main() -> None:
    shutil.rmtree(SEEDS, ignore_errors=True)
    write_short_messages()
    write_scripts()
    await record("good")
    await record("required", required)
    await record("postcopy", postcopy)
    await record("check", options={"check-only": True})
    await record("refused", destination_lab=pc_lab("q35"))
    await record_abort()
    await record_profile()


if __name__ == "__main__":
    asyncio.run(main())
