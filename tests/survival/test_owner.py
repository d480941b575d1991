# SPDX-License-Identifier: GPL-2.0-or-later
"""Who has the guest when what gives it away is held up, and something happens meanwhile.

test_endings.py has the same at random, and tests/model/end.pml in theory.
"""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from pathlib import Path
from typing import NamedTuple, Optional

import pytest
from conftest import QEMU
from endings import GIVEN, TOO_LATE
from frames import LAST_WORD, LOADED, SHUT, START, Gate
from machine import LOOPBACK, Json, Machine, NotSeen, until
from processes import (NO_MULTIFD, PATIENCE, UNDER, begin, channels, end, inet, listen, pc_lab,
                       require_success, set_capabilities, wait_running, wait_status)

NOT_GIVEN = ("the source went away before it had given the guest to this QEMU, "
             "which does not start it")
YANKED = "the migration was yanked before the source had given the guest to this QEMU"
SLOW = 64 << 10         # bytes a second, or precopy is over before postcopy begins
SLOWER = 4096           # ... or postcopy before it is looked at
CARD = ["-device", "virtio-net-pci,romfile="]
ANNOUNCEMENT = "qemu_announce_self_iter"
TIMES = 20              # it is a race
SETTLE = 0.1            # for what must not happen


class Held:
    """A migration in which one message does not get through."""

    def __init__(self, source: Machine, destination: Machine, gate: Gate):
        self.source = source
        self.destination = destination
        self.gate = gate

    async def end(self) -> Json:
        return await end(self.source)

    # What happens

    async def cancel(self) -> None:
        await self.source.execute("migrate_cancel")

    async def cancel_too_late(self) -> None:
        with pytest.raises(NotSeen, match=TOO_LATE):
            await self.source.execute("migrate_cancel")
        assert (await self.source.migration())["status"] == "device"

    async def yank_source(self) -> None:
        await self.source.execute("yank", {"instances": [{"type": "migration"}]})

    async def yank_destination(self) -> None:
        await self.destination.execute("yank", {"instances": [{"type": "migration"}]})

    async def cut(self) -> None:
        await self.gate.cut()

    async def reset(self) -> None:
        await self.gate.reset()

    async def kill_source(self) -> None:
        self.source.kill()
        await self.source.heard()

    async def kill_destination(self) -> None:
        self.destination.kill()
        await self.destination.heard()
        self.gate.end_of("destination")

    async def quit_source(self) -> None:
        await self._quit(self.source)

    async def quit_destination(self) -> None:
        await self._quit(self.destination)
        self.gate.end_of("destination")

    @staticmethod
    async def _quit(machine: Machine) -> None:
        with contextlib.suppress(NotSeen):
            await machine.execute("quit")
        await machine.heard()

    # What comes of it

    async def source_runs(self, status: str) -> None:
        info = await self.end()
        assert info["status"] == status, info
        await wait_running(self.source)
        assert GIVEN not in info.get("error-desc", "")
        await self.source_is_active()

    async def source_is_active(self) -> None:
        """Its images are its own again."""
        for node in await self.source.execute("query-named-block-nodes"):
            assert node["active"], node

    async def in_doubt(self) -> None:
        """It says so, and its guest waits for somebody to look."""
        info = await self.end()
        assert info["status"] == "failed" and info["error-desc"].startswith(GIVEN), info
        assert "only if it does not, end that QEMU" in info["error-desc"]
        await self.source_stands()
        for node in await self.source.execute("query-named-block-nodes"):
            assert not node["active"], node
        with pytest.raises(NotSeen, match="migrate"):
            await self.source.execute("migrate", channels("handshake", inet(1)))

    async def destination_failed(self) -> None:
        """Without having started the guest; nor does it ever."""
        info = await end(self.destination)
        assert info["status"] == "failed", info
        await self.destination.execute("cont")
        assert (await self.destination.execute("query-status"))["status"] == "inmigrate"
        for node in await self.destination.execute("query-named-block-nodes"):
            # Below one that could not be activated, its file stays as it is, and unlocked.
            assert not node["active"] or node["drv"] == "file", node

    async def destination_not_given(self) -> None:
        await self.destination_failed()
        assert NOT_GIVEN in (await self.destination.migration())["error-desc"]

    async def destination_yanked(self) -> None:
        """It is this side that has ended the connection, and not the source."""
        await self.destination_failed()
        assert YANKED in (await self.destination.migration())["error-desc"]

    async def destination_runs(self) -> None:
        await wait_running(self.destination)
        for node in await self.destination.execute("query-named-block-nodes"):
            assert node["active"], node

    async def source_stands(self) -> None:
        """Which it does a moment after it has said how it ended."""
        async def waits() -> bool:
            return (await self.source.execute("query-status"))["status"] == "postmigrate"

        await until("the source's guest to stand", PATIENCE, waits)

    async def continue_here(self) -> None:
        """As the source's error says."""
        await self.source_stands()
        await self.source.execute("cont")
        assert await self.source.is_running()
        await self.source_is_active()


def make_disk(path: Path) -> Path:
    subprocess.run([QEMU.parent / "qemu-img", "create", "-q", "-f", "qcow2", path, "1M"],
                   check=True)
    return path


def disk(path: Path, name: str = "disk") -> list[str]:
    return ["-blockdev", f"driver=qcow2,node-name={name},file.driver=file,file.filename={path}",
            "-device", f"virtio-blk,drive={name}"]


@contextlib.asynccontextmanager
async def held(what: Optional[int | str], directory: Path, paused: bool = False,
               there: Sequence[str] = ()) -> AsyncIterator[Held]:
    """Both use one image, as on shared storage, and have a network card."""
    image = make_disk(directory / "disk.qcow2")
    async with pc_lab() as lab:
        source = await lab.start("source", *disk(image), *CARD, under=UNDER)
        destination = await lab.start("destination", "-incoming", "defer", *disk(image), *CARD,
                                      *(["-S"] if paused else []), *there, under=UNDER)
        await destination.execute("migrate-incoming", {
            "exit-on-error": False, **channels("handshake", inet(0))})
        port = int((await destination.migration())["socket-address"][0]["port"])
        async with Gate(port, what) as gate:
            one = Held(source, destination, gate)
            await begin(source, inet(gate.port), NO_MULTIFD)
            if what is not None:
                await asyncio.wait_for(gate.reached.wait(), PATIENCE)
                await wait_status(source, "device")
            yield one


async def require_nobody(one: Held) -> None:
    """As long as neither has the guest, nobody touches it or its images."""
    for machine in (one.source, one.destination):
        assert not await machine.is_running()
        for node in await machine.execute("query-named-block-nodes"):
            assert not node["active"], (machine.name, node)
    assert (await one.destination.migration())["status"] == "active"


Step = Callable[[Held], Awaitable[None]]


class Ending(NamedTuple):
    """What happens, and what the two come to, one after the other."""

    what: Step
    then: tuple[Step, ...]


def parametrize(**endings: Ending) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("ending", endings.values(), ids=endings)


async def cancelled(one: Held) -> None:
    await one.source_runs("cancelled")


async def failed(one: Held) -> None:
    await one.source_runs("failed")


async def play(one: Held, ending: Ending) -> None:
    await ending.what(one)
    for step in ending.then:
        await step(one)


NEVER = Held.destination_not_given
FAILED = Held.destination_failed
WAS_YANKED = Held.destination_yanked
RUNS = Held.destination_runs
DOUBT = Held.in_doubt
HERE = Held.continue_here


@parametrize(
    cancel=Ending(Held.cancel, (cancelled, NEVER)),
    yank_source=Ending(Held.yank_source, (failed, NEVER)),
    yank_destination=Ending(Held.yank_destination, (failed, WAS_YANKED)),
    cut=Ending(Held.cut, (failed, NEVER)),
    reset=Ending(Held.reset, (failed, FAILED)),
    kill_source=Ending(Held.kill_source, (NEVER,)),
    kill_destination=Ending(Held.kill_destination, (failed,)),
    quit_source=Ending(Held.quit_source, (NEVER,)),
    quit_destination=Ending(Held.quit_destination, (failed,)),
)
async def test_before_the_source_knows_that_it_is_loaded(ending: Ending, tmp_path: Path) -> None:
    """LOADED is on its way: the guest is the source's."""
    async with held(LOADED, tmp_path) as one:
        await require_nobody(one)
        await play(one, ending)
        assert START not in one.gate.seen


@parametrize(
    yank_source=Ending(Held.yank_source, (DOUBT, NEVER, HERE)),
    yank_destination=Ending(Held.yank_destination, (DOUBT, WAS_YANKED, HERE)),
    cut=Ending(Held.cut, (DOUBT, NEVER, HERE)),
    reset=Ending(Held.reset, (DOUBT, FAILED, HERE)),
    kill_source=Ending(Held.kill_source, (NEVER,)),
    kill_destination=Ending(Held.kill_destination, (DOUBT, HERE)),
    quit_source=Ending(Held.quit_source, (NEVER,)),
    quit_destination=Ending(Held.quit_destination, (DOUBT, HERE)),
)
async def test_between_the_two(ending: Ending, tmp_path: Path) -> None:
    """START is on its way: nobody runs the guest, and the source cannot know that."""
    async with held(START, tmp_path) as one:
        await one.cancel_too_late()
        await require_nobody(one)
        await play(one, ending)


@parametrize(
    yank_source=Ending(Held.yank_source, (DOUBT, RUNS)),
    cut=Ending(Held.cut, (DOUBT, RUNS)),
    reset=Ending(Held.reset, (DOUBT, RUNS)),
    kill_source=Ending(Held.kill_source, (RUNS,)),
    kill_destination=Ending(Held.kill_destination, (DOUBT, HERE)),
    quit_source=Ending(Held.quit_source, (RUNS,)),
    quit_destination=Ending(Held.quit_destination, (DOUBT, HERE)),
)
async def test_before_the_source_knows_that_it_runs_there(ending: Ending,
                                                          tmp_path: Path) -> None:
    """SHUT is on its way: the guest is the destination's."""
    async with held(SHUT, tmp_path) as one:
        await one.destination_runs()
        await one.cancel_too_late()
        assert not await one.source.is_running()
        await play(one, ending)


async def test_image_that_the_other_one_has(tmp_path: Path) -> None:
    """Who says `cont` in doubt, and has not looked, is refused by the image."""
    async with held(SHUT, tmp_path) as one:
        await one.cut()
        await one.in_doubt()
        await one.destination_runs()
        with pytest.raises(NotSeen, match="lock"):
            await one.source.execute("cont")
        assert not await one.source.is_running()


@pytest.mark.parametrize("what", [LOADED, START, SHUT], ids=["LOADED", "START", "SHUT"])
async def test_late_is_not_lost(what: int | str, tmp_path: Path) -> None:
    """However long it takes."""
    async with held(what, tmp_path) as one:
        if what != LOADED:
            await one.cancel_too_late()
        await one.gate.open()
        await require_success(one.source, one.destination)
        assert one.gate.seen == [LOADED, START, SHUT]
        assert one.gate.main.conversation("destination")
        # Now there is nothing to cancel, which is no error.
        await one.cancel()
        assert (await one.source.migration())["status"] == "completed"
        await one.source_stands()
        await one.destination_runs()


async def test_announced_when_it_runs(tmp_path: Path) -> None:
    """No switch is told of a guest that may yet go back."""
    async with held(START, tmp_path, there=["-trace", ANNOUNCEMENT]) as one:
        await require_nobody(one)
        assert ANNOUNCEMENT not in one.destination.errors
        await one.gate.open()
        await require_success(one.source, one.destination)
        assert ANNOUNCEMENT in one.destination.errors


async def test_taken_back(tmp_path: Path) -> None:
    """START never comes; the destination can still say that it will never start the guest."""
    async with held(START, tmp_path) as one:
        one.gate.end_of("source")
        await one.source_runs("failed")
        await one.destination_not_given()
        assert NOT_GIVEN in (await one.source.migration())["error-desc"]
        assert one.gate.seen[:3] == [LOADED, START, LAST_WORD]


async def test_half_of_start(tmp_path: Path) -> None:
    """Is none."""
    async with held(START, tmp_path) as one:
        await one.gate.half()
        await asyncio.sleep(SETTLE)
        await require_nobody(one)
        one.gate.end_of("source")
        await one.source_runs("failed")
        await one.destination_failed()


async def test_cannot_be_continued_on_either_side_meanwhile(tmp_path: Path) -> None:
    """The source refuses; on the destination it is what will happen anyway."""
    async with held(LOADED, tmp_path) as one:
        with pytest.raises(NotSeen, match="not finalized"):
            await one.source.execute("cont")
        await one.destination.execute("cont")
        await one.source.execute("stop")
        await asyncio.sleep(SETTLE)
        await require_nobody(one)
        await one.gate.open()
        await require_success(one.source, one.destination)


@pytest.mark.parametrize("what", [LOADED, START], ids=["LOADED", "START"])
async def test_stopped_there_meanwhile(what: int, tmp_path: Path) -> None:
    """The guest is the destination's all the same, and stands there until `cont`."""
    async with held(what, tmp_path) as one:
        await one.destination.execute("stop")
        await one.gate.open()
        assert (await one.end())["status"] == "completed"
        assert (await end(one.destination))["status"] == "completed"
        assert not await one.destination.is_running()
        await one.destination.execute("cont")
        await one.destination_runs()


async def test_nobody_is_asked_with_s(tmp_path: Path) -> None:
    """A destination that leaves the guest paused says SHUT as ever, without a round trip more."""
    async with held(SHUT, tmp_path, paused=True) as one:
        assert one.gate.seen == [SHUT]
        assert (await end(one.destination))["status"] == "completed"
        await one.gate.open()
        assert (await one.end())["status"] == "completed"
        assert not await one.destination.is_running()
        await one.destination.execute("cont")
        await one.destination_runs()


@contextlib.asynccontextmanager
async def waiting(*options: str) -> AsyncIterator[tuple[Machine, Machine, int]]:
    """A source, and a destination that listens."""
    async with pc_lab() as lab:
        source = await lab.start("source", under=UNDER)
        destination = await lab.start("destination", "-incoming", "defer", *options, under=UNDER)
        yield source, destination, await listen(destination)


@pytest.mark.parametrize("where", ["source", "destination"])
async def test_nobody_is_asked_who_was_stopped(where: str) -> None:
    """Before it was loaded: likewise."""
    async with waiting() as (source, destination, port):
        await {"source": source, "destination": destination}[where].execute("stop")
        async with Gate(port, None) as gate:
            await begin(source, inet(gate.port), NO_MULTIFD)
            assert (await end(source))["status"] == "completed"
            assert gate.seen == [SHUT]
        assert not await destination.is_running()
        await destination.execute("cont")
        assert await destination.is_running()


async def test_paused_there_and_cancelled(tmp_path: Path) -> None:
    """With -S the source decides to the end, and its client says `cont` there after that."""
    async with held(SHUT, tmp_path, paused=True) as one:
        assert (await end(one.destination))["status"] == "completed"
        await one.cancel()
        await one.source_runs("cancelled")
        assert not await one.destination.is_running()


async def test_continued_there_before_it_is_loaded() -> None:
    """`cont` on a destination with -S means that it starts the guest: so it has to ask."""
    async with waiting("-S") as (source, destination, port):
        await destination.execute("cont")
        async with Gate(port, START) as gate:
            await begin(source, inet(gate.port), NO_MULTIFD)
            await asyncio.wait_for(gate.reached.wait(), PATIENCE)
            assert not await destination.is_running()
            await gate.open()
            await require_success(source, destination)
            assert gate.seen == [LOADED, START, SHUT]


@contextlib.asynccontextmanager
async def restless(path: Path) -> AsyncIterator[None]:
    """A client that says `stop` and `cont` in turns, faster than they are carried out."""
    reader, writer = await asyncio.open_unix_connection(path)
    writer.write(b'{"execute": "qmp_capabilities"}')

    async def say() -> None:
        while True:
            writer.write(b'{"execute": "stop"}{"execute": "cont"}' * 16)
            await writer.drain()

    async def hear() -> None:
        while await reader.read(1 << 16):
            pass

    tasks = [asyncio.create_task(say()), asyncio.create_task(hear())]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        writer.close()


async def test_restless_client(tmp_path: Path) -> None:
    """Whatever the destination is told, and when: loading never ends in a start without START."""
    for number in range(TIMES):
        path = tmp_path / str(number)
        async with waiting("-qmp", f"unix:{path},server=on,wait=off") as (
                source, destination, port):
            await set_capabilities(destination, "events")
            with destination.events("RESUME", "MIGRATION") as events:
                async with Gate(port, None) as gate, restless(path):
                    await begin(source, inet(gate.port), NO_MULTIFD)
                    assert (await end(source))["status"] == "completed"
                    started = False
                    while (event := await events.get())["event"] == "RESUME" or (
                            event["data"]["status"] != "completed"):
                        started = started or event["event"] == "RESUME"
                assert START in gate.seen or not started, gate.seen


@pytest.mark.parametrize("paused", [False, True], ids=["starts", "-S"])
async def test_image_that_somebody_else_has(paused: bool, tmp_path: Path) -> None:
    """One of two of the destination: the guest goes back, with the reason, and so does the other.

    The one is shared, the other has a copy on each side.
    """
    shared, here, there = (make_disk(tmp_path / name) for name in ("shared", "here", "there"))
    async with pc_lab() as lab, pc_lab() as elsewhere:
        await elsewhere.start("other", *disk(there), under=UNDER)
        # The first one is activated when the second one turns out to be locked.
        source = await lab.start("source", *disk(shared), *disk(here, "copy"), *CARD,
                                 under=UNDER)
        destination = await lab.start("destination", "-incoming", "defer", *disk(shared),
                                      *disk(there, "copy"), *(["-S"] if paused else []),
                                      *CARD, "-trace", ANNOUNCEMENT, under=UNDER)
        await destination.execute("migrate-incoming", {
            "exit-on-error": False, **channels("handshake", inet(0))})
        port = int((await destination.migration())["socket-address"][0]["port"])
        async with Gate(port, None) as gate:
            one = Held(source, destination, gate)
            await begin(source, inet(gate.port), NO_MULTIFD)
            if paused:
                # It is the client who is told, and who can go back when that QEMU has ended.
                assert (await one.end())["status"] == "completed"
                with pytest.raises(NotSeen, match="lock"):
                    await destination.execute("cont")
                await one.kill_destination()
                return await one.continue_here()
            await one.source_runs("failed")
            await one.destination_failed()
            for side in (source, destination):
                assert "lock" in (await side.migration())["error-desc"]
            assert gate.seen == [LOADED, START, LAST_WORD, SHUT]
            assert ANNOUNCEMENT not in destination.errors


@pytest.mark.parametrize("what", [LOADED, START], ids=["kept", "continued"])
async def test_next_migration(what: int, tmp_path: Path) -> None:
    """Who has kept the guest, or has gone on with it in doubt, can migrate it again."""
    async with held(what, tmp_path) as one:
        if what == LOADED:
            await one.cancel()
            await one.source_runs("cancelled")
        await one.kill_destination()
        if what == START:
            await one.in_doubt()
            await one.continue_here()
        async with pc_lab() as lab:
            other = await lab.start("other", "-incoming", "defer",
                                    *disk(tmp_path / "disk.qcow2"), *CARD, under=UNDER)
            async with Gate(await listen(other), None) as gate:
                await begin(one.source, inet(gate.port))
                await require_success(one.source, other)
                assert gate.seen == [LOADED, START, SHUT]


@pytest.mark.parametrize("multifd", [False, True], ids=["alone", "multifd"])
async def test_yank_is_said(multifd: bool) -> None:
    """It is this side that has ended the connection, and not the destination."""
    for _ in range(TIMES):
        async with waiting() as (source, _, port):
            await source.execute("migrate-set-parameters", {"max-bandwidth": SLOWER})
            await begin(source, inet(port), None if multifd else NO_MULTIFD)
            await wait_status(source, "active")
            await source.execute("yank", {"instances": [{"type": "migration"}]})
            info = await end(source)
            assert (info["status"], info["error-desc"]) == ("failed", "the migration was yanked")
            await wait_running(source)


# Postcopy. The guest is given away with the last byte of its devices' state.


@contextlib.asynccontextmanager
async def postcopy(what: Optional[int | str]) -> AsyncIterator[Held]:
    """It runs there, and something does not get through any more."""
    async with waiting() as (source, destination, port):
        await set_capabilities(source, "postcopy-ram")
        await source.execute("migrate-set-parameters", {
            "max-bandwidth": SLOW, "max-postcopy-bandwidth": SLOWER, "downtime-limit": 1})
        async with Gate(port, what) as gate:
            await begin(source, inet(gate.port), NO_MULTIFD)
            await wait_status(source, "active")
            await source.execute("migrate-start-postcopy")
            await wait_running(destination)
            if what is None:
                await gate.hold("source")
            await source.execute("migrate-set-parameters", {"max-postcopy-bandwidth": 0})
            yield Held(source, destination, gate)


async def test_end_of_postcopy_that_nobody_hears_of() -> None:
    """The destination is done. The source does not know that, and lets its guest stand."""
    async with postcopy(SHUT) as one:
        await asyncio.wait_for(one.gate.reached.wait(), PATIENCE)
        assert (await end(one.destination))["status"] == "completed"
        await one.gate.cut()
        await wait_status(one.source, "postcopy-paused")
        assert not await one.source.is_running()
        assert await one.destination.is_running()
        assert LOADED not in one.gate.seen


@pytest.mark.parametrize("how", ["cut", "reset", "yank_source", "yank_destination"])
async def test_end_of_postcopy_that_does_not_come(how: str) -> None:
    """The source has sent all, and the destination has not got it: both wait to be recovered."""
    async with postcopy(None) as one:
        async def all_sent() -> bool:
            info = await one.source.migration()
            return bool(info["ram"]["remaining"] == 0)

        await until("all to be sent", PATIENCE, all_sent, every=0.002)
        with pytest.raises(NotSeen, match="ostcopy"):
            await one.source.execute("migrate_cancel")
        await {"cut": one.cut, "reset": one.reset, "yank_source": one.yank_source,
               "yank_destination": one.yank_destination}[how]()
        for machine in (one.source, one.destination):
            await wait_status(machine, "postcopy-paused")
        assert not await one.source.is_running()
        assert await one.destination.is_running()
        await one.destination.execute("migrate-recover", {"uri": f"tcp:{LOOPBACK}:0"})
        address = (await one.destination.migration())["socket-address"][-1]
        await one.source.execute("migrate", {"resume": True,
                                             "uri": f"tcp:{LOOPBACK}:{address['port']}"})
        await require_success(one.source, one.destination)
