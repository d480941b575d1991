# SPDX-License-Identifier: GPL-2.0-or-later
"""Without a handshake nothing has changed: `main` and `file:` against stock QEMU.

Each base with the series is compared with the same base without it, which stands in
build/BASE-stock, or in BASE-stock below QMHS_STOCK_BUILDS; scripts/build-stock makes it.

All machines here have clocks that stand still and a seed. So two runs of stock QEMU
send the same bytes, which is tried as well, and a run with the series has to.
"""

from __future__ import annotations

import asyncio
import subprocess
import sys
import tempfile
from collections.abc import Awaitable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple, TypeVar

import pytest
from conftest import BASES as ALL_BASES
from conftest import QEMU, TOP
from machine import Json, Lab, Machine, NotSeen, until
from processes import UNDER, begin, end, inet, listen, set_capabilities, set_channels
from recorder import Recorder
from schema import losses
from stock import STOCK_BUILDS, stock_path, version
from stream import (OPEN_RETURN_PATH, PAGE, PING, POSTCOPY_ADVISE, Broken, Multifd, Stream,
                    is_multifd)

T = TypeVar("T")

BASES = list(dict.fromkeys([QEMU.resolve().parent.name, *ALL_BASES]))
BUILD_LIMIT = "240"     # seconds, with a compiler cache that knows most of it
TIMED_OUT = 124
SCRIPT_LIMIT = 60.0
PATIENCE = 20.0

MULTIFD_CHANNELS = 3
UUID = "01234567-89ab-cdef-0123-456789abcdef"

STILL = ("-rtc", "base=2000-01-01,clock=vm", "-seed", "1")
HOST_CLOCK = ("-rtc", "base=utc,clock=host", "-seed", "1")
MACHINES = {
    "none": ("-machine", "none"),
    "pc": ("-machine", "pc", "-m", "16", "-uuid", UUID),
    "q35": ("-machine", "q35", "-m", "16", "-smp", "2", "-uuid", UUID,
            "-blockdev", "null-co,node-name=disk,size=1048576,read-zeroes=on",
            "-device", "virtio-blk-pci,drive=disk", "-device", "virtio-net-pci",
            "-device", "virtio-rng-pci", "-device", "virtio-serial-pci", "-device", "e1000",
            "-device", "qemu-xhci", "-device", "usb-tablet", "-device", "usb-kbd",
            "-device", "VGA"),
}
# What differs between two runs of stock QEMU whose clock is the host's: the date and
# the time of the day, when they were read last, and when the next second begins.
CLOCK = {f"mc146818rtc/{field}" for field in (
    "base_rtc (uint64)", "cmos_data (buffer)", "last_update (uint64)", "update_timer (timer)",
    "next_alarm_time (uint64)")}

# By what capabilities a migration over sockets is told apart.
WAYS: dict[str, tuple[str, ...]] = {
    "precopy": (),
    "return-path": ("return-path",),
    "multifd": ("multifd",),
    "multifd-return-path": ("multifd", "return-path"),
    "postcopy-ram": ("postcopy-ram",),
}
# Those that have answers, and the commands with which they begin.
ANSWERED = {
    "return-path": [OPEN_RETURN_PATH, PING],
    "multifd-return-path": [OPEN_RETURN_PATH, PING],
    "postcopy-ram": [OPEN_RETURN_PATH, PING, POSTCOPY_ADVISE],
}
FILES: dict[str, tuple[str, ...]] = {
    "plain": (),
    "mapped-ram": ("mapped-ram",),
    "mapped-ram-multifd": ("mapped-ram", "multifd"),
}


class Builds(NamedTuple):
    """Of one base."""

    base: str
    stock: Path
    patched: Path

    @property
    def script(self) -> Path:
        """How QEMU itself takes streams apart."""
        return self.stock.parent / "src/scripts/analyze-migration.py"


def build_stock(base: str) -> None:
    # Its compilers are stopped as well, which a signal to the script alone would not do.
    done = subprocess.run(["timeout", BUILD_LIMIT, TOP / "scripts/build-stock", base],
                          stdin=subprocess.DEVNULL, check=False, capture_output=True, text=True)
    if done.returncode == TIMED_OUT:
        pytest.skip(f"scripts/build-stock {base} takes too long here: run it by hand")
    if done.returncode:
        pytest.skip(f"scripts/build-stock {base} fails: {done.stderr.strip()[-300:]}")


@pytest.fixture(name="builds", scope="module", params=BASES)
def find_builds(request: pytest.FixtureRequest) -> Builds:
    """Of the same version, or the comparison would mean nothing."""
    base: str = request.param
    name = QEMU.name
    patched = QEMU.resolve().parents[1] / base / name
    if not patched.exists():
        pytest.skip(f"QEMU {base} is not built")
    stock = stock_path(base, name)
    if not STOCK_BUILDS and (not stock.exists() or version(stock) != version(patched)):
        build_stock(base)
    if not stock.exists():
        pytest.skip(f"there is no stock QEMU {base}")
    assert version(stock) == version(patched)
    return Builds(base, stock, patched)


@pytest.fixture(name="directory")
def make_directory() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="legacy-bytes-") as directory:
        yield Path(directory)


def lab(binary: Path, machine: str, clocks: Sequence[str] = STILL) -> Lab:
    return Lab([str(binary), "-nodefaults", "-display", "none", *clocks, *MACHINES[machine]],
               "qtest")


async def together_from(work: Iterable[Awaitable[T]]) -> list[T]:
    """All at once: most of the time something waits."""
    async def one(what: Awaitable[T]) -> T:
        return await what

    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(one(what)) for what in work]
    return [task.result() for task in tasks]


# What is compared

def differences(one: Stream, other: Stream) -> set[str]:
    """The names of what has other bytes in two streams, all else of which is the same."""
    mine, yours = one.shape, other.shape
    if mine != yours:
        at = next((at for at, (a, b) in enumerate(zip(mine, yours)) if a != b),
                  min(len(mine), len(yours)))
        pytest.fail(f"{mine[at:at + 3]} on one side, {yours[at:at + 3]} on the other")
    assert one.vmdesc == other.vmdesc
    assert one.commands == other.commands
    return {a.name for a, b in zip(one.pieces + one.pages, other.pieces + other.pages)
            if a.data != b.data}


def require_same(stock: Stream, again: Stream, patched: Stream) -> None:
    """Two runs of stock QEMU are the measure."""
    assert not differences(stock, again), "two runs of stock QEMU differ"
    assert not differences(stock, patched)


class Channels(NamedTuple):
    """All that multifd says, whichever channel says it."""

    initial: list[bytes]
    kinds: set[object]
    syncs: list[int]
    in_order: bool
    pages: dict[tuple[str, int], bytes]


def channels_of(channels: list[Multifd]) -> Channels:
    """Which channel takes which pages is a matter of time."""
    channels = sorted(channels, key=lambda channel: channel.number)
    numbers = sorted(number for channel in channels for number in channel.numbers)
    pages = {key: data for channel in channels for key, data in channel.pages.items()}
    assert len(pages) == sum(len(channel.pages) for channel in channels)
    return Channels([channel.initial for channel in channels],
                    {packet for channel in channels for packet in channel.packets},
                    [channel.syncs for channel in channels],
                    numbers == list(range(len(numbers))), pages)


def keys(value: object) -> object:
    """What is told, whatever the numbers are."""
    if isinstance(value, dict):
        return {name: keys(member) for name, member in value.items()}
    # Rates of 0 are integers.
    return float if isinstance(value, int) else type(value)


# Migrations over sockets

class Migration(NamedTuple):
    """What was heard and seen of one."""

    main: Stream
    multifd: list[Multifd]
    answers: bytes
    source: Json            # what query-migrate tells
    destination: Json


async def state(machine: Machine) -> str:
    result: str = (await machine.execute("query-status"))["status"]
    return result


async def wait_state(machine: Machine, wanted: str) -> None:
    async def seen() -> bool:
        return await state(machine) == wanted

    await until(f"{machine.name}: {wanted}", PATIENCE, seen, every=0.002)


async def prepare(machine: Machine, capabilities: Sequence[str]) -> None:
    if capabilities:
        await set_capabilities(machine, *capabilities)
    if "multifd" in capabilities:
        await set_channels(machine, MULTIFD_CHANNELS)


async def completed(machine: Machine) -> Json:
    info = await end(machine)
    assert info["status"] == "completed", info
    assert "handshake" not in info
    return info


async def start_destination(where: Lab, capabilities: Sequence[str]) -> Machine:
    destination = await where.start("destination", "-incoming", "defer", under=UNDER)
    await prepare(destination, capabilities)
    return destination


async def require_support(builds: Builds, way: str) -> None:
    """Containers may lack what postcopy needs. Stock QEMU says whether this one does."""
    if way == "postcopy-ram":
        async with lab(builds.stock, "none") as there:
            try:
                await start_destination(there, WAYS[way])
            except NotSeen as error:
                pytest.skip(str(error))


async def migrate(builds: tuple[Path, Path], machine: str, way: str,
                  wanted: str = "prelaunch") -> Migration:
    """From a source of one build to a destination of the other, that gets to run."""
    capabilities = WAYS[way]
    async with lab(builds[0], machine) as here, lab(builds[1], machine) as there:
        source = await here.start("source", *([] if wanted == "running" else ["-S"]), under=UNDER)
        if wanted == "paused":
            await source.execute("cont")
            await source.execute("stop")
        assert await state(source) == wanted
        destination = await start_destination(there, capabilities)
        await prepare(source, capabilities)
        assert await source.migration() == {}
        with (source.events("MIGRATION_HANDSHAKE") as said,
              destination.events("MIGRATION_HANDSHAKE") as answered):
            port = await listen(destination, "main")
            assert "handshake" not in await destination.migration()
            async with Recorder(port) as recorder:
                await begin(source, inet(recorder.port), kind="main")
                told = await completed(source)
                await wait_state(destination, wanted)
                heard = await recorder.all_said()
            info = await completed(destination)
            assert said.empty() and answered.empty()
        await wait_state(source, "postmigrate")
        await destination.execute("cont")
        assert await destination.is_running()
    streams = [bytes(connection.said) for connection in heard]
    main = [stream for stream in streams if not is_multifd(stream)]
    assert len(main) == 1
    return Migration(Stream(main[0]), [Multifd(one) for one in streams if is_multifd(one)],
                     b"".join(bytes(connection.answered) for connection in heard), told, info)


@pytest.mark.parametrize("machine", MACHINES)
@pytest.mark.parametrize("way", WAYS)
async def test_sockets(builds: Builds, machine: str, way: str) -> None:
    """Each loads the other's; both directions of the connections are what they were."""
    await require_support(builds, way)
    stock, received, sent, both = await together_from(
        migrate((source, destination), machine, way)
        for source in (builds.stock, builds.patched)
        for destination in (builds.stock, builds.patched))
    for one in (sent, both):
        require_same(stock.main, received.main, one.main)
    for one in (received, sent, both):
        assert stock.answers == one.answers
        assert keys(stock.source) == keys(one.source)
        assert keys(stock.destination) == keys(one.destination)
        assert channels_of(stock.multifd) == channels_of(one.multifd)
    begin_with = ANSWERED.get(way, [])
    assert stock.main.commands[:len(begin_with)] == begin_with
    assert bool(stock.answers) == bool(begin_with)
    channels = channels_of(stock.multifd)
    assert len(channels.initial) == (MULTIFD_CHANNELS if "multifd" in way else 0)
    assert channels.in_order
    # Of a guest that stands still every page comes once, one way or the other.
    assert len(channels.pages or stock.main.pages) * PAGE == stock.main.ram_size
    assert bool(stock.main.ram_size) == (machine != "none")


@pytest.mark.parametrize("wanted", ["running", "paused"])
@pytest.mark.parametrize("way", WAYS)
async def test_states(builds: Builds, way: str, wanted: str) -> None:
    """A guest that runs, and one that was stopped, arrive as such."""
    await require_support(builds, way)
    for result in await together_from(
            migrate(pair, "pc", way, wanted) for pair in ((builds.stock, builds.patched),
                                                          (builds.patched, builds.stock))):
        assert result.main.vmdesc["devices"]


# Streams that nobody answers

async def listened(binary: Path, machine: str, directory: Path,
                   clocks: Sequence[str] = STILL) -> bytes:
    """What comes to a unix socket that is named by a URI."""
    path = directory / "socket"
    async with lab(binary, machine, clocks) as here, Recorder(path=path) as recorder:
        source = await here.start("source", "-S", under=UNDER)
        await source.execute("migrate", {"uri": f"unix:{path}"})
        await completed(source)
        heard = await recorder.all_said()
    path.unlink()
    assert len(heard) == 1
    return bytes(heard[0].said)


async def saved(binary: Path, machine: str, path: Path, capabilities: Sequence[str]) -> Path:
    async with lab(binary, machine) as here:
        source = await here.start("source", "-S", under=UNDER)
        await prepare(source, capabilities)
        await source.execute("migrate", {"uri": f"file:{path}"})
        await completed(source)
    return path


async def saved_again(binary: Path, machine: str, path: Path, again: Path,
                      capabilities: Sequence[str]) -> Path:
    """What one writes that has loaded a file, and has not run since."""
    async with lab(binary, machine) as there:
        if capabilities:
            destination = await start_destination(there, capabilities)
            await destination.execute("migrate-incoming", {"uri": f"file:{path}"})
        else:
            destination = await there.start("destination", "-incoming", f"file:{path}",
                                            under=UNDER)
        await wait_state(destination, "prelaunch")
        await completed(destination)
        await destination.execute("migrate", {"uri": f"file:{again}"})
        await completed(destination)
    return again


@pytest.mark.parametrize("machine", MACHINES)
async def test_socket_of_nobody(builds: Builds, machine: str, directory: Path) -> None:
    runs = [Stream(await listened(binary, machine, directory))
            for binary in (builds.stock, builds.stock, builds.patched)]
    require_same(*runs)


@pytest.mark.parametrize("machine", ["pc", "q35"])
async def test_clocks(builds: Builds, machine: str, directory: Path) -> None:
    """With the host's clock as well, nothing but clocks differs, and not in size."""
    runs = [Stream(await listened(binary, machine, directory, HOST_CLOCK))
            for binary in (builds.stock, builds.stock, builds.patched)]
    assert differences(runs[0], runs[1]) <= CLOCK
    assert differences(runs[0], runs[2]) <= CLOCK


@pytest.mark.parametrize(("kind", "machine"), [
    ("plain", "none"), ("plain", "pc"), ("plain", "q35"), ("mapped-ram", "pc"),
    ("mapped-ram-multifd", "none"), ("mapped-ram-multifd", "pc"), ("mapped-ram-multifd", "q35")])
async def test_files(builds: Builds, machine: str, kind: str, directory: Path) -> None:
    """Each loads the other's, and writes the same again."""
    capabilities = FILES[kind]

    def read(path: Path) -> Stream:
        return Stream(path.read_bytes(), mapped_ram=bool(capabilities))

    stock, again, patched = await together_from(
        saved(binary, machine, directory / name, capabilities)
        for name, binary in (("stock", builds.stock), ("again", builds.stock),
                             ("patched", builds.patched)))
    require_same(read(stock), read(again), read(patched))
    first, *others = await together_from(
        saved_again(binary, machine, path, directory / f"{path.name}-{name}", capabilities)
        for name, binary in (("stock", builds.stock), ("patched", builds.patched))
        for path in (stock, patched))
    for other in others:
        assert not differences(read(first), read(other))


def is_noticed(good: Stream, data: bytes) -> bool:
    try:
        return bool(differences(good, Stream(data)))
    except (AssertionError, pytest.fail.Exception, Broken, KeyError, ValueError):
        return True


async def test_every_byte_counts(builds: Builds, directory: Path) -> None:
    """Nobody would notice if what takes streams apart did not look."""
    data = await listened(builds.stock, "none", directory)
    good = Stream(data)
    assert not is_noticed(good, data)
    for at in range(len(data)):
        for changed in (bytes([data[at] ^ 1]), bytes([data[at] ^ 0x80]), b"",
                        data[at:at + 1] * 2):
            assert is_noticed(good, data[:at] + changed + data[at + 1:]), f"{at:#x}"
    assert is_noticed(good, data + b" ")


async def test_every_page_counts(builds: Builds, directory: Path) -> None:
    """The last one as well."""
    data = await listened(builds.stock, "pc", directory)
    good = Stream(data)
    last = good.pages[-1].data
    before, after = data.rsplit(last, 1)
    assert not is_noticed(good, before + last + after)
    assert is_noticed(good, before + after)
    assert is_noticed(good, before + last[:-1] + bytes([last[-1] ^ 1]) + after)


def analyzed(script: Path, path: Path, what: str) -> str:
    done = subprocess.run([sys.executable, script, "-f", path, "-d", what],
                          stdin=subprocess.DEVNULL, capture_output=True, text=True,
                          check=False, timeout=SCRIPT_LIMIT)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


@pytest.mark.parametrize("machine", ["pc", "q35"])
async def test_as_qemu_reads_it(builds: Builds, machine: str, directory: Path) -> None:
    """scripts/analyze-migration.py finds the same sections, and the same in them."""
    paths = [directory / "stock", directory / "patched"]
    for binary, path in zip((builds.stock, builds.patched), paths):
        path.write_bytes(await listened(binary, machine, directory))
    for what in ("state", "desc"):
        stock, patched = (analyzed(builds.script, path, what) for path in paths)
        assert len(stock) > 1000
        assert stock == patched


# The monitor

async def asked(binary: Path, *commands: str) -> list[object]:
    async with lab(binary, "none") as here:
        machine = await here.start("machine", under=UNDER)
        return [await machine.execute(command) for command in commands]


async def test_schema(builds: Builds) -> None:
    """Whatever stock QEMU has in QMP is there, and means the same."""
    stock, = await asked(builds.stock, "query-qmp-schema")
    patched, = await asked(builds.patched, "query-qmp-schema")
    assert isinstance(stock, list) and isinstance(patched, list)
    assert not losses(stock, stock)
    assert not losses(stock, patched)
    # What it has gained is found: otherwise this would not find a loss.
    assert losses(patched, stock)


async def test_settings(builds: Builds) -> None:
    """Nobody has another capability or parameter, or another value of it."""
    commands = ("query-migrate", "query-migrate-capabilities", "query-migrate-parameters")
    assert await asked(builds.stock, *commands) == await asked(builds.patched, *commands)


def test_something_is_compared() -> None:
    """Of the bases that may be missing, one is not."""
    assert any((QEMU.resolve().parents[1] / base / QEMU.name).exists() for base in BASES)
