# SPDX-License-Identifier: GPL-2.0-or-later
"""A stream that cannot be loaded: the source learns why, in the loader's own words.

Or both learn who has ended it, where nobody can say why. Each is done QMHS_LOADING times
(once). How often the words were those goes to build/loading.rst, or where QMHS_LOADING_TABLE
says, if that is more than once; docs/endings.rst has it of 40 times each.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import struct
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import NamedTuple, Optional

import pytest
from conftest import TOP
from machine import Json, Machine, NotSeen, until
from processes import (NO_MULTIFD, OWN_BASE, PATIENCE, UNDER, Address, Options, begin, channels,
                       each_base, end, filled_memory, inet, pc_lab, set_capabilities,
                       set_channels, set_psk, start_destination, start_source, unix,
                       wait_running, wait_status)
from relay import Line, Relay, Treatment
from test_own_faults import Hold, HoldPackage
from test_owner import disk, make_disk
from wire import HEADER_SIZE, LAST_WORDS, end_of_conversation

TIMES = int(os.environ.get("QMHS_LOADING", "1"))
TABLE = Path(os.environ.get("QMHS_LOADING_TABLE", TOP / "build/loading.rst"))

FAILED = " (the destination could not load the guest)"
# What a handshake would find out before.
ANYWAY: Options = {"ignore-issues": ["device", "section-schema"]}


class Kind(NamedTuple):
    """How the two differ, and what the destination's loader says of it."""

    first: str
    source: tuple[str, ...] = ()
    destination: tuple[str, ...] = ()
    firmware: bool = False      # which drives the disk, so that features are in use


SERIAL = ("-device", "virtio-serial-pci,id=vs", "-chardev", "null,id=c")


def boots(platform: str) -> tuple[str, ...]:
    """A disk that the firmware looks at."""
    return ("-blockdev", "driver=null-co,size=1048576,read-zeroes=on,node-name=disk",
            "-device", "virtio-blk-pci,id=blk,drive=disk,disable-legacy=on,"
                       f"iommu_platform={platform}")


KINDS = {
    "virtio": Kind("Features 0x", boots("on"), boots("off"), firmware=True),
    "pci": Kind("get_pci_config_device: Bad config data",
                ("-device", "virtio-rng-pci,vectors=2"), ("-device", "virtio-rng-pci,vectors=3")),
    "validate": Kind("hpet: there are 3 timers on the source, and 4 here",
                     ("-machine", "hpet=on", "-global", "hpet.timers=3"),
                     ("-machine", "hpet=on", "-global", "hpet.timers=4")),
    # Nothing says why: what there is to say is where.
    "silent": Kind("virtio-console", (*SERIAL, "-device", "virtserialport,bus=vs.0,nr=2,chardev=c"),
                   (*SERIAL, "-device", "virtserialport,bus=vs.0,nr=3,chardev=c")),
}


class Tally:
    """How often a source's error began with what the loader had said first."""

    def __init__(self) -> None:
        self._times: dict[str, dict[str, int]] = {}

    async def count(self, what: str, way: str, once: Callable[[], Awaitable[None]]) -> None:
        """All of it, whatever goes wrong meanwhile; which the test then fails with."""
        wrong: list[AssertionError] = []
        for _ in range(TIMES):
            try:
                await once()
            except AssertionError as error:
                wrong.append(error)
        self._times.setdefault(what, {})[way] = TIMES - len(wrong)
        if wrong:
            raise wrong[0]

    def write(self) -> None:
        ways = list(dict.fromkeys(way for row in self._times.values() for way in row))
        rows = [("", *ways), *((what, *(str(row.get(way, "-")) for way in ways))
                               for what, row in self._times.items())]
        widths = [max(3, *(len(row[column]) for row in rows)) for column in range(len(ways) + 1)]
        rule = "  ".join("=" * width for width in widths)
        lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip()
                 for row in rows]
        lines[0] = ".." + lines[0][2:] if lines[0].startswith("  ") else lines[0]
        TABLE.parent.mkdir(parents=True, exist_ok=True)
        TABLE.write_text("\n".join([f"QEMU {OWN_BASE}, of {TIMES} each:", "", rule, lines[0], rule,
                                    *lines[1:], rule]) + "\n", encoding="utf-8")


@pytest.fixture(scope="module", name="tally")
def tally_all() -> Iterator[Tally]:
    tally = Tally()
    yield tally
    if TIMES > 1:
        tally.write()


async def listen(destination: Machine, address: Address, stays: bool) -> Address:
    """Returns where it listens."""
    await destination.execute("migrate-incoming", {**channels("handshake", address),
                                                   "exit-on-error": not stays})
    if address["type"] == "unix":
        return address
    return inet(int((await destination.migration())["socket-address"][0]["port"]))


async def wait_features(machine: Machine) -> None:
    """The firmware reads the disk: it has said which features of it it uses."""
    async def driven() -> bool:
        return any(disk["stats"]["rd_operations"]
                   for disk in await machine.execute("query-blockstats"))

    await until("the firmware to drive the disk", 3 * PATIENCE, driven)


class Pair(NamedTuple):
    """The two, and where the destination listens."""

    source: Machine
    destination: Machine
    address: Address


@contextlib.asynccontextmanager
async def pair(kind: Kind, directory: Path, way: str = "tcp", stays: bool = True,
               base: Optional[str] = None) -> AsyncIterator[Pair]:
    with contextlib.suppress(FileNotFoundError):
        (directory / "socket").unlink()
    lab = pc_lab(base=base)
    if kind.firmware:
        lab.accelerator = "tcg"
    async with lab:
        source = await lab.start("source", *kind.source, under=UNDER)
        destination = await lab.start("destination", "-incoming", "defer", *kind.destination,
                                      under=UNDER)
        if kind.firmware:
            await wait_features(source)
        if way == "tls":
            await set_psk(source, "client", directory)
            await set_psk(destination, "server", directory)
        address = unix(directory / "socket") if way == "unix" else inet(0)
        yield Pair(source, destination, await listen(destination, address, stays))


def options_of(way: str) -> Options:
    return {**({} if way == "multifd" else NO_MULTIFD), **ANYWAY}


def loads(info: Json) -> list[str]:
    """What came of the loader."""
    return [issue["message"] for issue in info["handshake"]["issues"] if issue["code"] == "load"]


async def require_words(two: Pair, first: str, stays: bool) -> Json:
    """The source has failed, and says what the destination says; the guest runs on."""
    info = await end(two.source)
    assert info["status"] == "failed", info
    said = loads(info)
    assert said and first in said[0], info
    assert info["error-desc"] == said[0] + FAILED
    await wait_running(two.source)
    if stays:
        told = await end(two.destination)
        assert told["status"] == "failed"
        # Of a thread it is the thread's own error.
        assert told["error-desc"] in (said[0], "load of migration failed: " + "; ".join(said))
    else:
        await asyncio.wait_for(two.destination.gone(), PATIENCE)
        assert two.destination.exit_status == 1
        assert said[0] in two.destination.errors
    return info


WAYS = ["tcp", "unix", "tls", "multifd"]


def end_of(way: str, stays: bool) -> str:
    return way if stays else f"{way}, exits"


@pytest.mark.parametrize("stays", [True, False], ids=["stays", "exits"])
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("kind", KINDS)
async def test_words(tmp_path: Path, tally: Tally, kind: str, way: str, stays: bool) -> None:
    async def once() -> None:
        async with pair(KINDS[kind], tmp_path, way, stays) as two:
            await begin(two.source, two.address, options_of(way))
            info = await require_words(two, KINDS[kind].first, stays)
            assert ("multifd" in info["handshake"]["capabilities"]) == (way == "multifd")

    await tally.count(kind, end_of(way, stays), once)


@pytest.mark.parametrize("way", WAYS)
async def test_image(tmp_path: Path, tally: Tally, way: str) -> None:
    """It is loaded, and cannot be started; see test_owner.py, too."""
    here, there = (make_disk(tmp_path / name) for name in ("here", "there"))

    async def once() -> None:
        async with pc_lab() as elsewhere:
            await elsewhere.start("other", *disk(there), under=UNDER)
            kind = Kind("", tuple(disk(here)), tuple(disk(there)))
            async with pair(kind, tmp_path, way) as two:
                await begin(two.source, two.address, options_of(way))
                await require_words(two, "Failed to get", True)

    await tally.count("image", way, once)


async def damage(line: Line, offset: int, byte: int) -> None:
    """A byte of the stream, counted from COMMIT on; of another channel from its header on."""
    async def spoil() -> None:
        said = line.said["source"]
        while await line.hear("source"):
            begins = HEADER_SIZE if line.number else line.conversation("source")
            await line.tell("source", len(said) if begins is None else min(begins, len(said)))
            if begins is not None and len(said) > begins + offset:
                said[begins + offset] = byte
                break
        await line.carry("source")

    await line.reach()
    await asyncio.gather(spoil(), line.carry("destination"))


class Damage(NamedTuple):
    """Which byte of which connection, and what is said of it."""

    line: int
    offset: int
    byte: int
    words: str


DAMAGES = {
    # Before the return path is open
    "magic": Damage(0, 0, 0x7f, "Not a migration stream"),
    "version": Damage(0, 7, 9, "Unsupported migration stream version"),
    "multifd": Damage(1, 0, 0x7f, "multifd: received packet magic"),
}


@pytest.mark.parametrize("stays", [True, False], ids=["stays", "exits"])
@pytest.mark.parametrize("harm", DAMAGES)
async def test_damaged(tmp_path: Path, tally: Tally, harm: str, stays: bool) -> None:
    what = DAMAGES[harm]

    async def treat(line: Line) -> None:
        if line.number == what.line:
            await damage(line, what.offset, what.byte)
        else:
            await line.carry_both()

    async def once() -> None:
        async with pair(Kind(""), tmp_path, stays=stays) as two:
            await set_channels(two.source, 2)
            async with Relay(int(two.address["port"]), treat) as relay:
                await begin(two.source, inet(relay.port), {} if what.line else NO_MULTIFD)
                await require_words(two, what.words, stays)

    await tally.count(f"damaged: {harm}", end_of("multifd" if what.line else "tcp", stays), once)


async def require_words_in_postcopy(two: Pair, kind: str, way: str) -> Json:
    """The guest has not run there: it goes on here."""
    await set_capabilities(two.source, "postcopy-ram")
    await two.source.execute("migrate-set-parameters", {"max-bandwidth": 1 << 12})
    await begin(two.source, two.address, options_of(way))
    await wait_status(two.source, "active")
    await two.source.execute("migrate-start-postcopy")
    info = await end(two.source)
    assert info["status"] == "failed", info
    assert KINDS[kind].first in loads(info)[0]
    assert info["error-desc"] == loads(info)[0] + FAILED
    await wait_running(two.source)
    return info


@pytest.mark.parametrize("stays", [True, False], ids=["stays", "exits"])
@pytest.mark.parametrize("way", ["tcp", "unix", "tls"])
@pytest.mark.parametrize("kind", KINDS)
async def test_postcopy(tmp_path: Path, tally: Tally, kind: str, way: str, stays: bool) -> None:
    async def once() -> None:
        async with pair(KINDS[kind], tmp_path, way, stays=stays) as two:
            await require_words_in_postcopy(two, kind, way)

    await tally.count(f"{kind}, in postcopy", end_of(way, stays), once)


@each_base
@pytest.mark.parametrize("kind", ["pci", "validate", "silent"])
async def test_postcopy_while_memory_comes(kind: str, base: str, tmp_path: Path) -> None:
    """The thread that takes it finds that loading has failed, and not why: it keeps quiet."""
    with filled_memory() as memory:
        different = KINDS[kind]._replace(source=(*KINDS[kind].source, *memory))
        for _ in range(4):
            async with pair(different, tmp_path, base=base) as two:
                words = loads(await require_words_in_postcopy(two, kind, "tcp"))[0]
                if base != "10.0":      # which exits
                    told = (await end(two.destination))["error-desc"]
                    assert told.startswith(f"load of migration failed: {words}")


@each_base
@pytest.mark.parametrize("paused", [False, True], ids=["starts", "-S"])
async def test_bitmap_that_is_lost(paused: bool, base: str) -> None:
    """Since its user does not mind: all is loaded but that, as the source is told."""
    async with pc_lab(base=base) as lab:
        source = await start_source(lab, options=(
            "-blockdev", "driver=null-co,node-name=disk,size=1048576"))
        await source.execute("block-dirty-bitmap-add", {"node": "disk", "name": "nightly"})
        await set_capabilities(source, "dirty-bitmaps")
        _, port = await start_destination(lab, options=["-S"] if paused else [])
        await begin(source, inet(port), {**NO_MULTIFD, "ignore-issues": ["bitmap-missing"]})
        info = await end(source)
        assert info["status"] == "completed" and "error-desc" not in info
        told, = (issue for issue in info["handshake"]["issues"] if issue["code"] == "load")
        assert (told["severity"], told["subject"]) == ("warning", "dirty-bitmap")
        assert told["message"] == "Cannot find device='disk' nor node-name='disk'"


# Between COMMIT and the loader


@contextlib.asynccontextmanager
async def relay_to(two: Pair, directory: Path, treatment: Treatment = Line.carry_both,
                   ) -> AsyncIterator[tuple[Relay, Address]]:
    """Between them, of the kind that the destination listens on; and where it is."""
    if two.address["type"] == "unix":
        path = directory / "relay"
        path.unlink(missing_ok=True)
        async with Relay(Path(two.address["path"]), treatment, path) as relay:
            yield relay, unix(path)
    else:
        async with Relay(int(two.address["port"]), treatment) as relay:
            yield relay, inet(relay.port)


class HoldCommit(Hold):
    """Lets no more of the main channel through than COMMIT, without its last byte or with it."""

    def __init__(self, all_of_it: bool) -> None:
        super().__init__(b"")
        self._all_of_it = all_of_it

    def _bound(self, said: bytearray) -> Optional[int]:
        end_of_commit = end_of_conversation(said, LAST_WORDS)
        return None if end_of_commit is None else end_of_commit - (not self._all_of_it)

    def _safe(self, said: bytearray) -> int:
        return len(said)


class HoldChannel:
    """Lets no channel through but the main one, so that there is no COMMIT."""

    def __init__(self) -> None:
        self.reached = asyncio.Event()
        self.go_on = asyncio.Event()

    async def treat(self, line: Line) -> None:
        if line.number:
            self.reached.set()
            await self.go_on.wait()
        await line.carry_both()


@pytest.mark.parametrize("way", WAYS)
async def test_behind_commit(tmp_path: Path, tally: Tally, way: str) -> None:
    """Something has changed since ACCEPT: there is no loader that could say so."""
    async def once() -> None:
        async with pair(Kind(""), tmp_path, way) as two:
            alone = way in ("tcp", "unix")
            hold = HoldCommit(False) if alone else HoldChannel()
            async with relay_to(two, tmp_path, hold.treat) as (_, address):
                # What is seen of TLS is that another channel is opened.
                await begin(two.source, address, NO_MULTIFD if alone else {})
                await asyncio.wait_for(hold.reached.wait(), PATIENCE)
                await set_capabilities(two.destination, "mapped-ram")
                hold.go_on.set()
                info = await end(two.source)
            assert info["status"] == "failed", info
            told = await two.destination.handshake()
            assert told["status"] == "failed" and "mapped-ram" in told["message"], told
            assert info["error-desc"] == told["message"] + FAILED
            assert "capability-conflict" in [one["code"] for one in info["handshake"]["issues"]]
            await wait_running(two.source)

    await tally.count("changed since ACCEPT", way, once)


# Nobody says why: who has ended it


ENDED = (r"the destination ended the connection after [\d.e+]+ \w+ and did not say why, see its "
         r"log: \w.*")
SAYS_NOTHING = f"(before the stream began: )?{ENDED}"
YANKED = "the migration was yanked"
# What a thread has met first stands alone.
YANKED_THERE = f"(load of migration failed: )?{YANKED}"
IS_GONE = (r"multifd channel \d: \w.*|load of migration failed: (the source ended the connection "
           "before the migration was complete: it was cancelled there, or failed|the connection to "
           "the source broke: .*)")


class Loss(NamedTuple):
    """What happens, and how the errors of the two read then, if they have one."""

    happen: Callable[[Pair, Relay], Awaitable[None]]
    source: Optional[str]
    destination: Optional[str]
    status: str = "failed"


async def kill_source(two: Pair, _relay: Relay) -> None:
    two.source.kill()


async def kill_destination(two: Pair, _relay: Relay) -> None:
    two.destination.kill()


async def yank_source(two: Pair, _relay: Relay) -> None:
    await two.source.execute("yank", {"instances": [{"type": "migration"}]})


async def yank_destination(two: Pair, _relay: Relay) -> None:
    await two.destination.execute("yank", {"instances": [{"type": "migration"}]})


async def cancel(two: Pair, _relay: Relay) -> None:
    await two.source.execute("migrate_cancel")


async def cut(_two: Pair, relay: Relay) -> None:
    await relay.hang_up()


async def reset(_two: Pair, relay: Relay) -> None:
    for line in relay.lines:
        line.reset()
    await relay.hang_up()


LOSSES = {
    "destination killed": Loss(kill_destination, SAYS_NOTHING, None),
    "destination yanked": Loss(yank_destination, SAYS_NOTHING, YANKED_THERE),
    "cut": Loss(cut, SAYS_NOTHING, IS_GONE),
    "reset": Loss(reset, SAYS_NOTHING, IS_GONE),
    "source killed": Loss(kill_source, None, IS_GONE),
    "source yanked": Loss(yank_source, YANKED, IS_GONE),
    "cancelled": Loss(cancel, None, IS_GONE, "cancelled"),
}


async def require_loss(two: Pair, loss: Loss, stays: bool = True) -> None:
    if loss.happen != kill_source:
        info = await end(two.source)
        assert info["status"] == loss.status, info
        assert ("error-desc" in info) == (loss.source is not None), info
        if loss.source:
            assert re.fullmatch(loss.source, info["error-desc"]), info
        await wait_running(two.source)
    if loss.destination and not stays:
        await asyncio.wait_for(two.destination.gone(), PATIENCE)
        assert two.destination.exit_status == 1
        assert re.search(loss.destination, two.destination.errors), two.destination.errors
    elif loss.destination:
        info = await end(two.destination)
        assert info["status"] == "failed"
        assert re.fullmatch(loss.destination, info["error-desc"]), info
        assert not await two.destination.is_running()


@pytest.mark.parametrize("stays", [True, False], ids=["stays", "exits"])
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", LOSSES)
async def test_loss(tmp_path: Path, tally: Tally, name: str, way: str, stays: bool) -> None:
    """While the stream is being loaded."""
    loss = LOSSES[name]
    relayed = loss.happen in (cut, reset)
    if loss.destination is None and not stays:
        pytest.skip("it is killed")

    async def once() -> None:
        async with pair(Kind(""), tmp_path, way, stays) as two:
            await set_channels(two.source, 2)
            await two.source.execute("migrate-set-parameters", {"max-bandwidth": 1 << 16})
            async with relay_to(two, tmp_path) as (relay, address):
                await begin(two.source, address if relayed else two.address, options_of(way))
                for one in (two.source, two.destination):
                    await wait_status(one, "active")
                await loss.happen(two, relay)
                await require_loss(two, loss, stays)

    await tally.count(name, end_of(way, stays), once)


@pytest.mark.parametrize("stays", [True, False], ids=["stays", "exits"])
@pytest.mark.parametrize("way", [way for way in WAYS if way != "tls"])     # which hides COMMIT
@pytest.mark.parametrize("name", LOSSES)
async def test_loss_behind_commit(tmp_path: Path, tally: Tally, name: str, way: str,
                                  stays: bool) -> None:
    """The loader has nothing yet, and the return path is not open."""
    if LOSSES[name].destination is None and not stays:
        pytest.skip("it is killed")

    async def once() -> None:
        async with pair(Kind(""), tmp_path, way, stays) as two:
            await set_channels(two.source, 2)
            hold = HoldCommit(True)
            async with relay_to(two, tmp_path, hold.treat) as (relay, address):
                await begin(two.source, address, options_of(way))
                await asyncio.wait_for(hold.reached.wait(), PATIENCE)
                await wait_status(two.destination, "active")
                await LOSSES[name].happen(two, relay)
                if LOSSES[name].happen not in (cut, reset):
                    await relay.hang_up()
                await require_loss(two, LOSSES[name], stays)

    await tally.count(f"{name}, behind COMMIT", end_of(way, stays), once)


class SpoilBehindPackage(HoldPackage):
    """Nonsense follows the devices, which another thread reads while they are loaded."""

    def __init__(self, nonsense: bytes) -> None:
        super().__init__()
        self._nonsense = nonsense

    def _bound(self, said: bytearray) -> Optional[int]:
        bound = super()._bound(said)
        if bound is None or len(said) < bound:
            return bound
        said[bound:] = self._nonsense
        return len(said)


BEHIND_PACKAGE = {
    "no-section": (bytes([0xff]) * 64, "section type 255: no migration stream"),
    "device": (struct.pack(">BIB5sII", 4, 1, 5, b"timer", 0, 2) + bytes(64),
               "Section 'timer' 0 is not one that may come in postcopy"),
}


@pytest.mark.parametrize("stays", [True, False], ids=["stays", "exits"])
@pytest.mark.parametrize("nonsense, words", BEHIND_PACKAGE.values(), ids=BEHIND_PACKAGE)
async def test_postcopy_thread(tmp_path: Path, nonsense: bytes, words: str, stays: bool) -> None:
    """One guest runs, whichever of the destination's two threads is first."""
    devices = tuple(word for slot in range(24) for word in ("-device", "virtio-rng-pci"))
    async with pair(Kind("", devices, devices), tmp_path, stays=stays) as two:
        await set_capabilities(two.source, "postcopy-ram")
        await two.source.execute("migrate-set-parameters", {"max-bandwidth": 1 << 12})
        async with Relay(int(two.address["port"]), SpoilBehindPackage(nonsense).treat) as relay:
            await begin(two.source, inet(relay.port), NO_MULTIFD)
            await wait_status(two.source, "active")
            await two.source.execute("migrate-start-postcopy")

            async def over() -> Optional[str]:
                status = (await two.source.migration())["status"]
                return status if status in ("failed", "postcopy-paused") else None

            status = await until("the source to notice", PATIENCE, over)
            there = False
            with contextlib.suppress(NotSeen):      # it may have ended
                there = await two.destination.is_running()
            if status == "failed":
                said = (await two.source.migration())["error-desc"]
                assert words in said
                await wait_running(two.source)
                assert not there
            else:
                assert not await two.source.is_running()


async def test_source_is_gone(tmp_path: Path) -> None:
    """What is said of that is not what the loader met when it had read half of something."""
    async with pair(Kind(""), tmp_path) as two:
        await two.source.execute("migrate-set-parameters", {"max-bandwidth": 1 << 16})
        await begin(two.source, two.address, NO_MULTIFD)
        await wait_status(two.source, "active")
        await two.source.execute("migrate_cancel")
        info = await end(two.source)
        assert info["status"] == "cancelled" and "error-desc" not in info
        told = await end(two.destination)
        assert told["error-desc"] == ("load of migration failed: the source ended the connection"
                                      " before the migration was complete: it was cancelled there,"
                                      " or failed")
