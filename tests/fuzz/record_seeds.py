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
from wire import (ABORT, ACCEPT, COMMIT, HEADER_SIZE, HELLO, LAST_WORD,     # noqa: E402
                  PREFIX_SIZE, REJECT, SESSION, FakeDestination, Peer, frame, header, parameter)

SPOKEN = (HELLO, ACCEPT, REJECT, COMMIT, ABORT)
NAMES = {HELLO: "hello", ACCEPT: "accept", REJECT: "reject", COMMIT: "commit", ABORT: "abort",
         LAST_WORD: "last-word"}

# Places in the tables of operations in destination.c and source.c. There, a byte
# for the connection follows, with AT_ONCE if QEMU does not run before the next.
(CONNECT, CANNED_HELLO, SAY_COMMIT, SAY_HEADER, SAY_BYTES, CLOSE, WAIT, SAY_ABORT,
 SAY_HELLO) = range(9)
(SWITCH_TLS, SAY_WITHOUT, SWITCH, SET_CHANNELS, SETUP_FAILS, OVER, SAY_BAD_COMMIT, CHANNEL,
 YANK, PAUSE, BEGIN_TLS) = range(15, 26)
SAY_ACCEPT, SAY_REJECT, SAY_VERDICT, ANSWER_HEADER = range(4)
(END, WAIT_HERE, CANCEL, ANSWER, ANSWER_ALL, SAY_LAST_WORD, SLOW, CONNECTED, YANK_HERE, FAIL,
 TLS_HERE, BEGIN_TLS_HERE) = (7, 10, 12, 15, 16, 17, 18, 19, 20, 21, 22, 23)
AT_ONCE = 128
ALL, ON, BAD = 4, 1, 2          # of what was offered; a switch; credentials
# What a source wants: bits of a script's first byte
CHECK, TIMEOUT, WANTED, SWITCHES, ONE_CONNECTION, SLOWLY = 1, 4, 8, 16, 32, 128
# Places in QEMU's list of capabilities
POSTCOPY, RETURN_PATH, MULTIFD, PREEMPT = 5, 8, 10, 18
OTHERS, OWN = range(2)          # see profile.c

LAST_WORD_READERS = {COMMIT: 1, ABORT: 0, LAST_WORD: 2}     # see last-word.c

Said = dict[int, bytes]

# One of each kind that stubs.c has a limit for, and of all others: one that it could keep, and
# one that it could not.
PROMISES = {
    "counts": [[{"name": "devs", "value": number}] for number in (3, 2)],
    "values": [[{"name": "lanes", "value": number}] for number in (0, (1 << 64) - 1)],
    "bytes": [8, 4],
    "subsections": [["fdc/state"], ["fdc/later"]],
    "device-type": ["isa-fdc", "floppy"],
    "pci-config": ["0:ff,4:ff", "0:fe,2:10,fff:ff"],
    "pci-status": ["70:00", "70:01"],
    "virtio-features": ["130000054", "80000000000000010130000054"],
    "virtio-queues": [3, 4],
    "vnet-hdr": [False, True],
    "no-pic": [False, True],
    "ports": ["0,1", "none"],
    "cpu-model": ["max-x86_64-cpu", "qemu64-x86_64-cpu"],
    "cpu-features": [["sse"], ["sse", "avx", "vmx-ept"]],
    "cpu": [[{"name": "family", "value": family}] for family in ("6", "15")],
    "cpu-mode": [["power9"], ["power10"]],
    "cpu-registers": ["1=0,1,3f=7", "1=1,2=5"],
    "machine-capabilities": [[{"name": "htm", "value": level}] for level in (1, 2)],
    "machine-defaults": [[{"name": "vsx", "value": 1}], [{"name": "later", "value": 1}]],
    "disks": [[{"name": "0.0", "value": kind}] for kind in ("hd", "cd")],
    "disk-sizes": [[{"name": "0.0", "value": size}] for size in (1 << 20, 1 << 30)],
    "disk-writable": [["0.0"], ["1.1"]],
    "disk-serials": [[{"name": "0.0", "value": serial}] for serial in ("QM00001", "")],
    "disk-block-sizes": [[{"name": "0.0", "value": size}] for size in (512, 4096)],
}


def promising(which: int) -> Json:
    promises = {name: values[which] for name, values in PROMISES.items()}
    return {"profile": {"qemu-version": "10.0.13", "sections": [
        {"name": "fdc", "version": 2, "promises": promises},
        {"name": "dma", "version": 1, "instances": [0, 1], "promises": promises}]}}


# What only a few machines say, on top of the shortest HELLO.
CHANNELS = {"features": ["named-channels", "late-error"]}
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
    "ignored": {"warnings-as-errors": True, "ignore": [
        "arch", "uuid:uuid", "section-missing:gone", "busy", "x", "bitmap-missing"], "profile": {
            "arch": "i386", "uuid": "0d1b5c9e-07f4-4c55-a8b2-3f6d21e7a940", "sections": [
                {"name": "gone", "version": 1}, {"name": "dma", "version": 0}],
            "required-capabilities": ["dirty-bitmaps"], "bitmaps": [
                {"node": "disk", "name": "b0"}, {"node": "vda", "name": "b1"}]}},
    "bitmaps": {"optional-capabilities": ["dirty-bitmaps"], "profile": {"bitmaps": [
        {"node": "disk", "name": "b0"}, {"node": "vda", "name": "b0"}, {"node": "gone"}]}},
    "promises": promising(0),
    "promises-broken": promising(1),
    "promises-malformed": {"profile": {"sections": [{"name": "fdc", "version": 2, "promises": {
        "pci-config": "0:f,1000:00", "virtio-features": "0x1", "cpu-registers": "1,0"}}]}},
    "stuck": {"profile": {"unmigratable": ["ivshmem"], "blockers": ["a disk is local"]}},
    "sections": {"profile": {"sections": [
        {"name": "ide", "version": 3, "conditional": True}, {"name": "gone", "version": 1},
        {"name": "dma", "version": 2, "instances": [0, 1, 4294967295, "x"]}, {}, 1]}},
    "stream": {"optional-capabilities": ["multifd"], **CHANNELS, "profile": {"stream": {
        "send-configuration": False, "suppress-vmdesc": 1,
        "multifd-flush-after-each-section": True}}},
    "conflict": {**CHANNELS, "profile": {"required-capabilities": [
        "multifd", "postcopy-ram", "xbzrle", "return-path", "later", "multifd"],
        "parameters": [parameter("multifd-channels", 2), parameter("multifd-compression", "none"),
                       parameter("x", 1, "return-path")]}},
    "no-channels": {"optional-capabilities": ["multifd"], "profile": {
        "required-capabilities": ["postcopy-preempt"]}},
    "values": {**CHANNELS, "profile": {"required-capabilities": ["multifd"], "parameters": [
        parameter("multifd-channels", 0), parameter("multifd-compression", "zlib"),
        {"capability": "multifd", "name": "later", "value": None}]}},
    "groups": {**CHANNELS, "optional-capabilities": [
        "multifd", "later", "xbzrle", "multifd", "return-path"],
        "profile": {"parameters": [parameter("", 1)]}},
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
            write("compare", name_of_it, bytes(4) + message)
            write("destination", name_of_it,
                  bytes([CONNECT, 0, SAY_HELLO, 0]) + text(message) + bytes([SAY_COMMIT, 0]))
        elif kind in (ACCEPT, REJECT):
            accept = bytes([kind == ACCEPT])
            write("verdict", name_of_it, accept + message)
            write("source", name_of_it, bytes([0, SAY_VERDICT, 0]) + accept + text(message)
                  + bytes([ANSWER_ALL, 0]))
        else:
            write("last-word", name_of_it, bytes([LAST_WORD_READERS[kind]]) + message)
            if kind == LAST_WORD:
                write("return-path", name_of_it, bytes(1) + frame(kind, message))


def write_short_messages() -> None:
    """A fuzzer gets further with few bytes than with many."""
    write_messages("short", {
        HELLO: b'{"versions":[1],"purpose":"check","required":[],"profile":{"sections":['
               b'{"name":"ram","version":4}],"ram-blocks":[{"name":"pc.ram","size":16777216}]}}',
        ACCEPT: b'{"version":1,"capabilities":["return-path"]}',
        REJECT: b'{"message":"no","issues":[{"code":"uuid","severity":"error","message":"no"}]}',
        COMMIT: b'{"digest":"00"}',
        ABORT: b'{"message":"no"}',
        LAST_WORD: b'{"message":"no","guest":"not-started"}'})
    odd = json.dumps({"message": "line\n" * 300 + "\u00e9" * 300, "issues-omitted": 7,
                      "issues": [{}, 1, {"severity": "later", "source": "x" * 2000}],
                      "peer": {"machine": "\x7f" * 1100}}, ensure_ascii=False).encode()
    write_messages("odd", {REJECT: odd, ABORT: odd, LAST_WORD: odd})
    write_messages("without", {COMMIT: json.dumps({"digest": "0" * 64, "without": [
        {"capability": "multifd", "reason": "no way"}, {}, 1]}).encode()})
    for name, more in HELLOS.items():
        message = {"versions": [1], "purpose": "migrate", "required": [], **more}
        write_messages(name, {HELLO: json.dumps(message, separators=(",", ":")).encode()})


def write_scripts() -> None:
    """The ways that a conversation can take, in a few bytes each."""
    write_destination_scripts()
    write_source_scripts()
    # A message of QEMU's own, and what was not agreed on
    pong = struct.pack(">HHI", 2, 4, 7)
    unknown = struct.pack(">IHH", 2, 0x0a0a, 0) + b"{}"
    write("return-path", "pong", bytes(1) + pong + unknown + pong)
    write("return-path", "unknown", bytes(1) + unknown * 18)
    write("return-path", "critical", bytes(1) + frame(0x0a0a, {}))
    write("return-path", "not-agreed", bytes([2]) + frame(LAST_WORD, {}))
    write("return-path", "no-handshake", bytes([1]) + header())


def write_destination_scripts() -> None:
    def hello(number: int, slot: int = 0) -> bytes:
        return bytes([CONNECT, slot, CANNED_HELLO, slot, number])

    def channel(slot: int, index: int = 0, preempt: bool = False) -> bytes:
        return bytes([CHANNEL, slot, index << 1 | preempt])

    commit = bytes([SAY_COMMIT, 0])
    wait = bytes([WAIT, 0, 255])
    multifd = hello(1) + channel(1)
    scripts = {
        "plain": hello(0) + commit,
        "multifd": multifd + commit,
        "multifd-default": hello(2) + channel(1, 1) + channel(2) + commit,
        "preempt": hello(3) + channel(1, preempt=True) + commit,
        "all-channels": hello(8) + channel(1) + channel(2, preempt=True) + channel(3, 1) + commit,
        "stream": hello(0) + bytes([SAY_COMMIT, AT_ONCE, SAY_BYTES, 0, 8]) + b"QEVM\0\0\0\3",
        "channel-first": channel(1) + hello(1) + channel(2) + commit,
        "channel-twice": multifd + channel(2) + commit,
        "channel-of-another-session": hello(1) + bytes([CONNECT, 1, SAY_HEADER, 1, 1, 0]) + commit,
        "channel-unasked": hello(0) + channel(1, preempt=True) + commit,
        "channel-missing": hello(2) + channel(1) + commit,
        "channel-late": hello(2) + channel(1) + wait + channel(2, 1) + commit,
        "without-multifd": hello(2) + channel(1) + bytes([SAY_WITHOUT, 0, 1]),
        "without-both": hello(8) + channel(1) + bytes([SAY_WITHOUT, 0, 3]),
        "without-required": multifd + bytes([SAY_WITHOUT, 0, 1]),
        "without-other": hello(2) + bytes([SAY_WITHOUT, 0, 4]),
        "changed": hello(0) + bytes([SWITCH, 0, 0x2b]) + commit + hello(0, 1),
        "setup-fails": multifd + bytes([SETUP_FAILS, 0]) + commit + hello(0, 1),
        "over": multifd + commit + bytes([OVER, 0]) + hello(0, 1),
        "yanked": multifd + commit + bytes([YANK, 0]),
        "paused": multifd + commit + bytes([PAUSE, 0]) + hello(0, 1) + hello(0, 2),
        "check": hello(4),
        "refused": hello(5),
        "abort": hello(0) + bytes([SAY_ABORT, 0]) + hello(0, 1) + bytes([SAY_COMMIT, 1]),
        "busy": hello(0) + hello(0, 1) + commit,
        "closed": multifd + bytes([CLOSE, 0]) + hello(0, 1),
        "silent": multifd + wait + hello(0, 1),
        "legacy": bytes([CONNECT, 0, SAY_BYTES, 0, 8]) + b"QEVM\0\0\0\3",
        "other-digest": hello(0) + bytes([SAY_BAD_COMMIT, 0, 1]),
        "no-digest": multifd + bytes([SAY_BAD_COMMIT, 0, 0]),
        "tls": bytes([SWITCH_TLS, 0, ON, CONNECT, 0, BEGIN_TLS, 0, CANNED_HELLO, 0, 0]) + commit,
        "tls-failed": bytes([SWITCH_TLS, 0, ON]) + hello(0),
        "tls-late": bytes([SWITCH_TLS, 0, ON, CONNECT, 0]) + wait,
        "tls-bad": bytes([SWITCH_TLS, 0, ON | BAD]) + hello(0),
    }
    for name, script in scripts.items():
        write("destination", f"script-{name}", script)


def write_source_scripts() -> None:
    accept = bytes([SAY_ACCEPT, 0, ALL])
    answer = bytes([ANSWER_ALL, 0])
    required = bytes([SWITCHES, MULTIFD << 1 | ON, RETURN_PATH << 1 | ON])
    agreed = bytes(1) + accept + answer
    scripts = {
        "accept": agreed,
        "preempt": bytes([WANTED, 2, POSTCOPY, PREEMPT]) + accept + answer,
        "required": required + accept + answer,
        "preempt-gone": bytes([WANTED, 2, POSTCOPY, PREEMPT]) + accept + bytes([END, 1]),
        "required-gone": required + accept + bytes([ANSWER, 1, END, 2]),
        "one-gone": bytes(1) + accept + bytes([ANSWER, 1, END, 2]),
        "one-silent": bytes(1) + accept + bytes([ANSWER, 1, WAIT_HERE, 0, 20]),
        "one-wrong": bytes(1) + accept + bytes([ANSWER, 1, ANSWER_HEADER, 2, 2, 7]),
        "another-session": bytes(1) + accept + bytes([ANSWER, 1, ANSWER_HEADER, 2, 2, 1]),
        "not-all-accepted": bytes(1) + bytes([SAY_ACCEPT, 0, 0, 0, 1]) + answer,
        "no-session": bytes([0, ANSWER_HEADER, 0, 0, 0]) + accept,
        "check": bytes([CHECK]) + accept,
        "one-connection": bytes([ONE_CONNECTION]) + accept,
        "reject": bytes([0, SAY_REJECT, 0, 3]),
        "reject-much": bytes([0, SAY_REJECT, 0, 255]),
        "late": bytes([TIMEOUT, 1, WAIT_HERE, 0, 255]),
        "never": bytes([SLOWLY, WAIT_HERE, 0, 255, CANCEL, 0, CONNECTED, 0, ON]),
        "nobody": bytes([SLOWLY, CONNECTED, 0, 0]),
        "tls": bytes([SLOWLY, TLS_HERE, 0, ON, CONNECTED, 0, ON, BEGIN_TLS_HERE, 0, SLOW, 0])
               + accept + bytes([BEGIN_TLS_HERE, 1, BEGIN_TLS_HERE, 2]) + answer,
        "tls-failed": bytes([SLOWLY, TLS_HERE, 0, ON, CONNECTED, 0, ON, ANSWER_HEADER, 0, 0, 0]),
        "tls-late": bytes([SLOWLY, TLS_HERE, 0, ON, CONNECTED, 0, ON, WAIT_HERE, 0, 255]),
        "tls-bad": bytes([SLOWLY, TLS_HERE, 0, ON | BAD, CONNECTED, 0, ON]),
        "channels-slowly": bytes([0, SLOW, 0]) + accept + bytes([CONNECTED, 0, ON, ANSWER, 1,
                                                                 CONNECTED, 0, 0]),
        "cancelled": bytes([0, CANCEL, 0]),
        "cancelled-channels": bytes(1) + accept + bytes([CANCEL, AT_ONCE]) + answer,
        "yanked": bytes(1) + accept + bytes([YANK_HERE, AT_ONCE]) + answer,
        "yanked-stream": agreed + bytes([YANK_HERE, 0]),
        "failed-stream": agreed + bytes([FAIL, 0]),
        "last-word": agreed + bytes([SAY_LAST_WORD, 0, 3]),
    }
    for name, script in scripts.items():
        write("source", f"script-{name}", script)


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
        said = json.dumps(profile).encode()
        for name, options in (("default", [0]), ("strict", [0x0f]),
                              ("wanted", [0x89, MULTIFD, PREEMPT])):
            write("profile", name, bytes([*options, OTHERS]) + said)
            write("profile", f"own-{name}", bytes([*options, OWN, 7, MULTIFD, 4]))
        for name, which in (("promises", 0), ("promises-broken", 1)):
            small = json.dumps({**profile, **promising(which)}, separators=(",", ":"))
            write("profile", name, bytes([0, OTHERS]) + small.encode())
        # What QMP reads as a number, and writes as none
        write("profile", "infinity", bytes([0, OTHERS]) + said.replace(b": 4096", b": 1e999", 1))


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
