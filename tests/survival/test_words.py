# SPDX-License-Identifier: GPL-2.0-or-later
"""What each side says when a migration breaks reads as if people were to read it."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import socket
import struct
import subprocess
from pathlib import Path
from typing import NamedTuple, Optional

import pytest
from machine import LOOPBACK, NotSeen
from processes import (NO_MULTIFD, PATIENCE, UNDER, Options, begin, each_base, end, inet, pc_lab,
                       set_capabilities, set_channels, start_destination, start_source,
                       wait_running, wait_status)
from relay import Line, Relay
from test_dead_lines import tcp_sockets
from test_loading import (ENDED, FAILED, KINDS, SAYS_NOTHING, Kind, listen, loads, options_of,
                          pair)
from test_own_faults import SLOW, HalfPackage, begin_postcopy, make_library, start_pair
from wire import HEADER_SIZE

# Before the stream


# Who may not use userfaultfd, not even as root: this kernel asks for more, and there is no device.
UNPRIVILEGED = (
    "unshare", "-rm", "sh", "-c", 'device=/dev/userfaultfd; [ ! -e $device ] || { mount --bind '
    '$device $device && mount -o remount,bind,nodev $device; } || exit 1; exec "$@"', "sh")
ALLOWED = Path("/proc/sys/vm/unprivileged_userfaultfd")


@each_base
async def test_postcopy_is_not_permitted(base: str) -> None:
    """What has to be done for it, and where."""
    if ALLOWED.exists() and ALLOWED.read_text(encoding="ascii").strip() != "0":
        pytest.skip("everybody may use userfaultfd here")
    if subprocess.run([*UNPRIVILEGED, "true"], stderr=subprocess.DEVNULL, check=False).returncode:
        pytest.skip("no user without privileges can be had here")
    async with pc_lab(base=base) as lab:
        source = await start_source(lab)
        destination = await lab.start("destination", "-incoming", "defer",
                                      under=[*UNPRIVILEGED, *UNDER])
        await set_capabilities(source, "postcopy-ram")
        await begin(source, await listen(destination, inet(0), True), NO_MULTIFD)
        info = await end(source)
        assert info["status"] == "failed", info
        told = [issue for issue in info["handshake"]["issues"] if issue["severity"] == "error"]
        assert [issue["code"] for issue in told] == ["capability-unsupported"]
        assert re.fullmatch(
            ".* 'postcopy-ram' .* not possible on the destination: Postcopy is not supported: "
            "Userfaultfd not available: Operation not permitted: either let QEMU open "
            "/dev/userfaultfd, or set sysctl vm.unprivileged_userfaultfd to 1",
            told[0]["message"]), told
        await wait_running(source)


# The loader


class Harm(NamedTuple):
    """The byte that is another one: the group in the first of these; and what is said of it."""

    mark: bytes
    instead: int
    words: str
    line: int = 0
    compression: str = "none"


RAM = rb"\x01...(.)\x03ram.{4}\0\0\0\x04"       # the header of its first section
PAGE = rb"\x02\0\0\0.(.).{7}\x06(p)c\.ram"       # the first one, and of which block it is
FOREIGN = r": damaged or foreign stream \(section 'ram', byte \d+\)"
HARMS = {
    "section": Harm(RAM.replace(b"(.)", b".").replace(rb"\x01", rb"(\x01)"), 0x47,
                    "type 71: no migration stream at this point: it is damaged, or another "
                    r"program's \(byte \d+\)"),
    "command": Harm(rb"\x08\0(\x01)\0\0", 0x63, "MIG_CMD 0x63 unknown .*: the source uses "
                    r"something newer, or the stream is damaged \(byte \d+\)"),
    "flags": Harm(RAM.replace(b"(.)", b".") + rb".{7}(\x04)", 0,
                  "Unknown combination of migration flags: 0x0" + FOREIGN),
    "offset": Harm(PAGE.replace(b"(p)", b"p"), 0x7f, "Illegal RAM offset 7f[0-9a-f]+" + FOREIGN),
    "block": Harm(PAGE.replace(b"(.)", b"."), 0x71, "Can't find block qc.ram" + FOREIGN),
    "footer": Harm(RAM.replace(b"(.)", b".") + rb".*?(\x7e)\0\0\0", 0x7d,
                   "Missing section footer for ram: saved by another version of the device, or "
                   r"damaged \(section 'ram', byte \d+\)"),
    "multifd": Harm(rb"(.)", 0x7f, r"multifd channel \d: multifd: received packet magic 7f223344, "
                    "expected 11223344: this channel is damaged", 1),
    # Where the data of its first pages begin
    "zlib": Harm(rb"(\x78)\x01", 0x7f, r"multifd channel (\d): multifd \1: inflate returned -3 "
                 "instead of Z_OK: this channel is damaged", 1, "zlib"),
    "zstd": Harm(rb"(\x28)\xb5\x2f\xfd", 0x7f, r"multifd channel (\d): multifd \1: decompressStream "
                 "returned Unknown frame descriptor: this channel is damaged", 1, "zstd"),
}


class Spoil:
    """Lets all through, but a byte that is another one then."""

    def __init__(self, harm: Harm) -> None:
        self._harm = harm

    async def treat(self, line: Line) -> None:
        await line.reach()
        await asyncio.gather(self._carry(line), line.carry("destination"))

    async def _carry(self, line: Line) -> None:
        said = line.said["source"]
        while line.number == self._harm.line and await line.hear("source"):
            begins = HEADER_SIZE if line.number else line.conversation("source")
            await line.tell("source", len(said) if begins is None else min(begins, len(said)))
            found = begins is not None and re.compile(self._harm.mark, re.S).search(said, begins)
            if found:
                said[found.start(1)] = self._harm.instead
                break
        await line.carry("source")


@each_base
@pytest.mark.parametrize("harm", HARMS.values(), ids=HARMS)
async def test_damaged_stream(harm: Harm, base: str, tmp_path: Path) -> None:
    async with pair(Kind(""), tmp_path, base=base) as two:
        await set_channels(two.source, 1)   # or it may be the other one that has the pages
        try:
            await two.source.execute("migrate-set-parameters",
                                     {"multifd-compression": harm.compression})
        except NotSeen:
            pytest.skip("this QEMU has been built without it")
        async with Relay(int(two.address["port"]), Spoil(harm).treat) as relay:
            await begin(two.source, inet(relay.port), None if harm.line else NO_MULTIFD)
            info = await end(two.source)
            assert info["status"] == "failed", info
            assert re.fullmatch(f".*{harm.words}", loads(info)[0]), info
            assert info["error-desc"] == loads(info)[0] + FAILED
            assert re.search(harm.words, (await end(two.destination))["error-desc"])
            await wait_running(two.source)


MEANINGS = {
    "pci": "a property of the PCI device is not the same on both sides",
    "virtio": "the guest uses features that the device does not have here: iommu_platform",
    "silent": "the device does not say why",
}


@each_base
@pytest.mark.parametrize("kind", MEANINGS)
async def test_device(kind: str, base: str, tmp_path: Path) -> None:
    async with pair(KINDS[kind], tmp_path, base=base) as two:
        await begin(two.source, two.address, options_of("tcp"))
        info = await end(two.source)
        assert info["status"] == "failed", info
        assert re.fullmatch(f".*: {MEANINGS[kind]} " + r"\(section '0000:.*', byte \d+\)",
                            loads(info)[0]), info
        assert info["error-desc"] == loads(info)[0] + FAILED


@each_base
async def test_source_is_gone_in_the_package(base: str) -> None:
    """Its length and what came of it are no news to anybody."""
    async with pc_lab(base=base) as lab:
        source, destination, port = await start_pair(lab, "handshake", "postcopy-ram")
        hold = HalfPackage()
        async with Relay(port, hold.treat) as relay:
            await begin_postcopy(source, relay.port, "handshake")
            await asyncio.wait_for(hold.reached.wait(), PATIENCE)
            await relay.hang_up()
            info = await end(destination)
        assert info["status"] == "failed"
        assert re.fullmatch("load of migration failed: (the source ended the connection before "
                            "the migration was complete: .*|the connection to the source broke: "
                            ".* reset by peer)", info["error-desc"]), info
        assert not await destination.is_running()


@each_base
async def test_connection_that_is_one_too_many(base: str) -> None:
    """Over `main`, which is told no more than that."""
    async with pc_lab(base=base) as lab:
        source = await start_source(lab)
        destination, port = await start_destination(lab, kind="main")
        await source.execute("migrate-set-parameters", {"max-bandwidth": SLOW})
        await begin(source, inet(port), kind="main")
        await wait_status(destination, "active")
        reader, writer = await asyncio.open_connection(LOOPBACK, port)
        host, own = writer.get_extra_info("sockname")
        assert await asyncio.wait_for(reader.read(), PATIENCE) == b""
        writer.close()
        assert (f"Extra incoming migration connection from tcp:{host}:{own}; ignoring"
                in destination.errors)
        await source.execute("migrate-set-parameters", {"max-bandwidth": 0})
        assert (await end(source))["status"] == "completed"


# The source


@each_base
@pytest.mark.parametrize("way", ["tcp", "multifd", "tls"])
async def test_destination_is_killed(way: str, base: str, tmp_path: Path) -> None:
    """Whoever notices first, be it the thread that reads or one of those that write."""
    async with pair(Kind(""), tmp_path, way, base=base) as two:
        await set_channels(two.source, 2)
        await two.source.execute("migrate-set-parameters", {"max-bandwidth": SLOW})
        await begin(two.source, two.address, options_of(way))
        await wait_status(two.source, "active")
        two.destination.kill()
        info = await end(two.source)
        assert info["status"] == "failed"
        assert re.fullmatch(ENDED, info["error-desc"]), info
        await wait_running(two.source)


def tell_one(directory: Path, tell: str, late: str) -> list[str]:
    """What to start a machine under, for tell_one.c."""
    return [*UNDER, "env", f"LD_PRELOAD={make_library(directory, 'tell_one')}", f"TELL={tell}",
            f"LATE={late}"]


@each_base
@pytest.mark.parametrize("options", [NO_MULTIFD, {}], ids=["single", "multifd"])
async def test_reset_before_the_stream(options: Options, base: str, tmp_path: Path) -> None:
    """Who begins to write knows no more than that it cannot, and who reads is late."""
    async def treat(line: Line) -> None:
        if line.number:
            return await line.carry_both()
        await line.reach()
        answers = asyncio.create_task(line.pass_on("destination"))
        while line.conversation("source") is None and await line.hear("source"):
            await line.tell("source", len(line.said["source"]))
        answers.cancel()
        await asyncio.gather(answers, return_exceptions=True)
        for one in line.relay.lines:
            one.reset()

    async with pc_lab(base=base) as lab:
        source = await lab.start("source", under=tell_one(tmp_path, "nobody", "recvmsg"))
        _, port = await start_destination(lab)
        async with Relay(port, treat) as relay:
            await begin(source, inet(relay.port), options)
            info = await end(source)
        assert info["status"] == "failed"
        assert re.fullmatch(SAYS_NOTHING, info["error-desc"]), info
        await wait_running(source)


# Who is told, and who says last what it has met.
TELLS = {
    "either": None,
    "reads": ("recvmsg", "sendmsg"),
    "reads-late": ("recvmsg", "recvmsg"),
    "writes": ("sendmsg", "recvmsg"),
    "writes-late": ("sendmsg", "sendmsg"),
}


@each_base
@pytest.mark.parametrize("tell", TELLS.values(), ids=TELLS)
async def test_destination_does_not_answer_any_more(tell: Optional[tuple[str, str]], base: str,
                                                    tmp_path: Path) -> None:
    """As if its host, or the network, were gone: TCP gives up, and tells one thread."""
    ram = tmp_path / "ram"
    ram.write_bytes(os.urandom(24 << 20))
    much = ["-m", "64"]
    under = tell_one(tmp_path, *tell) if tell else UNDER
    async with pc_lab(base=base) as lab:
        source = await lab.start("source", *much, "-device", f"loader,file={ram},addr=0x1000000,"
                                                             "force-raw=on", under=under)
        destination, port = await start_destination(lab, options=much)
        await source.execute("migrate-set-parameters", {"max-bandwidth": 1 << 16})
        await begin(source, inet(port), NO_MULTIFD)
        await wait_status(source, "active")
        os.kill(destination.pid, signal.SIGSTOP)
        try:
            for one in tcp_sockets(source):
                one.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 500)
                one.close()
            await source.execute("migrate-set-parameters", {"max-bandwidth": 0})
            info = await end(source)
        finally:
            os.kill(destination.pid, signal.SIGCONT)
        assert info["status"] == "failed"
        does = {"recvmsg": "read from", "sendmsg": "write to"}[tell[0]] if tell else r"\w+ \w+"
        assert re.fullmatch("the destination's host, or the network, does not answer any more, "
                            rf"after [\d.e+]+ \w+: Unable to {does} socket: Connection timed out",
                            info["error-desc"]), info
        await wait_running(source)


@each_base
async def test_failure_after_a_cancellation(base: str) -> None:
    """What is not shown of the one is shown of the other."""
    async with pc_lab(base=base) as lab:
        source = await start_source(lab, options=KINDS["pci"].source)
        _, port = await start_destination(lab, "first", options=KINDS["pci"].source)
        await source.execute("migrate-set-parameters", {"max-bandwidth": SLOW})
        await begin(source, inet(port), NO_MULTIFD)
        await wait_status(source, "active")
        await source.execute("migrate_cancel")
        info = await end(source)
        assert info["status"] == "cancelled" and "error-desc" not in info
        _, port = await start_destination(lab, "second", options=KINDS["pci"].destination)
        await source.execute("migrate-set-parameters", {"max-bandwidth": 0})
        await begin(source, inet(port), options_of("tcp"))
        info = await end(source)
        assert info["status"] == "failed"
        assert info.get("error-desc") == loads(info)[0] + FAILED


NOT_OURS = "the destination sent what does not belong on the return path: "
NONSENSE = {
    "message": (b"wxyz", NOT_OURS + "Received invalid message 0x7778 length 0x797a"),
    "length": (struct.pack(">HH", 1, 2), NOT_OURS +
               r"Received 'SHUT' message \(0x0001\) with incorrect length 2 expecting 4"),
    "pages": (struct.pack(">HHQI", 4, 12, 0, 4096),
              "the destination asked for memory that this guest does not have: "
              "MIG_RP_MSG_REQ_PAGES has no previous block"),
    "half": (struct.pack(">HHH", 1, 4, 0), ENDED),
}


@each_base
@pytest.mark.parametrize("said, words", NONSENSE.values(), ids=NONSENSE)
async def test_nonsense_on_the_return_path(said: bytes, words: str, base: str) -> None:
    async with pc_lab(base=base) as lab:
        source = await start_source(lab)
        _, port = await start_destination(lab)
        await source.execute("migrate-set-parameters", {"max-bandwidth": SLOW})
        async with Relay(port) as relay:
            await begin(source, inet(relay.port), NO_MULTIFD)
            await wait_status(source, "active")
            await relay.lines[0].insert("destination", said)
            if words == ENDED:
                relay.lines[0].shut("destination")
            info = await end(source)
        assert info["status"] == "failed"
        assert re.fullmatch(words, info["error-desc"]), info
        await wait_running(source)


REQ_PAGES_ID = 3


def request(name: bytes, start: int, size: int) -> bytes:
    return struct.pack(">HHQIB", REQ_PAGES_ID, 13 + len(name), start, size, len(name)) + name


REQUESTS = {
    "block": (request(b"nowhere", 0, 4096), "MIG_RP_MSG_REQ_PAGES has no block 'nowhere'"),
    "beyond": (request(b"pc.ram", 1 << 30, 4096), "MIG_RP_MSG_REQ_PAGES request overrun, .*"),
    "misaligned": (request(b"pc.ram", 1, 4096), "MIG_RP_MSG_REQ_PAGES: Misaligned .*"),
}


@each_base
@pytest.mark.parametrize("said, words", REQUESTS.values(), ids=REQUESTS)
async def test_request_of_what_there_is_not(said: bytes, words: str, base: str) -> None:
    async with pc_lab(base=base) as lab:
        source = await start_source(lab)
        destination, port = await start_destination(lab)
        await set_capabilities(source, "postcopy-ram")
        await source.execute("migrate-set-parameters", {
            "max-bandwidth": SLOW, "max-postcopy-bandwidth": SLOW, "downtime-limit": 1})
        async with Relay(port) as relay:
            await begin(source, inet(relay.port), NO_MULTIFD)
            await wait_status(source, "active")
            await source.execute("migrate-start-postcopy")
            await wait_status(source, "postcopy-active")
            await relay.lines[0].insert("destination", said)
            await source.execute("migrate-set-parameters", {"max-postcopy-bandwidth": 0})
            await wait_status(source, "postcopy-paused")
            told = (await source.migration())["error-desc"]
            assert re.fullmatch("the destination asked for memory that this guest does not have: "
                                + words, told), told
            assert f"'resume'): {told}" in source.errors

