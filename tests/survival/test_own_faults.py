# SPDX-License-Identifier: GPL-2.0-or-later
"""How migrations end: faults of QEMU's own, which a handshake is not needed for."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import fcntl
import os
import re
import struct
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple, Optional

import pytest
from machine import LOOPBACK, Json, Lab, Machine, NotSeen, until
from processes import (NO_MULTIFD, PATIENCE, UNDER, begin, channels, each_base, end, inet, listen,
                       pc_lab, set_capabilities, set_channels, set_psk, start_source, wait_running,
                       wait_status)
from relay import Line, Relay
from test_owner import SLOWER, disk, make_disk

KINDS = ["main", "handshake"]
MULTIFD_CHANNELS = 2
SLOW = 64 << 10     # bytes a second: there has to be something left for postcopy

# In the stream
DEVICES = b"\x05timer"                                  # the first section after RAM
PACKAGED = struct.pack(">BHH", 8, 7, 4)                 # and the length of the package
END = re.compile(rb"\x7e\x00\x00\x00.\x00\Z", re.S)     # the last footer, and EOF


async def start_incoming(lab: Lab, kind: str, *capabilities: str,
                         there: tuple[str, ...] = ()) -> tuple[Machine, int]:
    """A destination that is to outlive a failure, and its port."""
    destination = await lab.start("destination", "-incoming", "defer", *there, under=UNDER)
    if kind == "main":
        await set_capabilities(destination, "return-path", *capabilities)
    if "multifd" in capabilities:
        await set_channels(destination, MULTIFD_CHANNELS)
    await destination.execute("migrate-incoming", {"exit-on-error": False,
                                                   **channels(kind, inet(0))})
    return destination, int((await destination.migration())["socket-address"][0]["port"])


async def start_pair(lab: Lab, kind: str, *capabilities: str,
                     there: tuple[str, ...] = ()) -> tuple[Machine, Machine, int]:
    source = await start_source(lab)
    await set_capabilities(source, "return-path", *capabilities)
    if "multifd" in capabilities:
        await set_channels(source, MULTIFD_CHANNELS)
    return source, *await start_incoming(lab, kind, *capabilities, there=there)


class Hold:
    """Lets the main channel through up to a place in the stream, and waits there."""

    def __init__(self, mark: bytes) -> None:
        self._mark = mark
        self.reached = asyncio.Event()
        self.go_on = asyncio.Event()
        self.lines: list[Line] = []

    def _bound(self, said: bytearray) -> Optional[int]:
        """Where to wait, if that is known."""
        at = said.find(self._mark)
        return None if at < 0 else at

    def _safe(self, said: bytearray) -> int:
        """What cannot be behind that place, if it is not known."""
        return next(len(said) - size for size in range(len(self._mark) - 1, -1, -1)
                    if said.endswith(self._mark[:size]))

    async def treat(self, line: Line) -> None:
        self.lines.append(line)
        if line.number:
            return await line.carry_both()
        await line.reach()
        async with asyncio.TaskGroup() as group:
            group.create_task(line.carry("destination"))
            said = line.said["source"]
            while (bound := self._bound(said)) is None or len(said) < bound:
                await line.tell("source", min(bound or self._safe(said), len(said)))
                if not await line.hear("source"):
                    return line.shut("source")
            await line.tell("source", bound)
            self.reached.set()
            hearing = group.create_task(self._hear(line))
            await self.go_on.wait()
            hearing.cancel()
            await line.carry("source")

    async def _hear(self, line: Line) -> None:
        """What comes meanwhile, so that nobody waits for room."""
        while await line.hear("source"):
            pass


class HoldPackage(Hold):
    """Lets all of the package of postcopy through, and nothing behind it."""

    def __init__(self) -> None:
        super().__init__(PACKAGED)

    def _bound(self, said: bytearray) -> Optional[int]:
        at = said.find(PACKAGED) + len(PACKAGED)
        if at < len(PACKAGED) or len(said) < at + 4:
            return None
        length, = struct.unpack_from(">I", said, at)
        return at + 4 + length


class HalfPackage(HoldPackage):
    """Lets half of what postcopy begins with through."""

    def _bound(self, said: bytearray) -> Optional[int]:
        whole = super()._bound(said)
        return None if whole is None else (said.find(PACKAGED) + whole) // 2


@each_base
@pytest.mark.parametrize("kind", KINDS)
async def test_failure_beside_the_file(base: str, kind: str) -> None:
    """A multifd channel fails when RAM is complete: the source must not say `completed`."""
    async with pc_lab(base=base) as lab:
        source, destination, port = await start_pair(lab, kind, "multifd")
        hold = Hold(DEVICES)
        async with Relay(port, hold.treat) as relay:
            await begin(source, inet(relay.port), kind=kind)
            await asyncio.wait_for(hold.reached.wait(), PATIENCE)
            # A thread that has read SYNC reads on when the loader has seen that.
            await relay.lines[1].insert("source", b"nonsense" * 8)

            async def has_met_it() -> bool:
                return "error-desc" in await destination.migration()

            await until("the destination to meet nonsense", PATIENCE, has_met_it)
            hold.go_on.set()
            info = await end(source)
            assert info["status"] == "failed", info
            await wait_running(source)
            assert (await end(destination))["status"] == "failed"
            assert not await destination.is_running()


def make_library(directory: Path, name: str) -> Path:
    """For LD_PRELOAD, of one of the C files beside this one."""
    library = directory / f"{name}.so"
    subprocess.run(["cc", "-shared", "-fPIC", "-O1", "-o", library,
                    Path(__file__).with_name(f"{name}.c"), "-ldl"], check=True)
    return library


async def begin_postcopy(source: Machine, port: int, kind: str) -> None:
    """Up to the point where there is something left for it."""
    await source.execute("migrate-set-parameters", {"max-bandwidth": SLOW, "downtime-limit": 1})
    # A handshake finds out about devices before.
    anyway = {"ignore-issues": ["section-schema"]} if kind == "handshake" else None
    await begin(source, inet(port), anyway, kind=kind)
    await wait_status(source, "active")
    await source.execute("migrate-start-postcopy")


async def recover(source: Machine, destination: Machine) -> Json:
    await destination.execute("migrate-recover", {"uri": "tcp:127.0.0.1:0"})
    port = int((await destination.migration())["socket-address"][0]["port"])
    await source.execute("migrate", {**channels("main", inet(port)), "resume": True})
    return await end(source)


@each_base
@pytest.mark.parametrize("kind", KINDS)
async def test_postcopy_that_cannot_complete(base: str, kind: str) -> None:
    """All has been sent, and the connection ends before the destination has it."""
    async with pc_lab(base=base) as lab:
        source, destination, port = await start_pair(lab, kind, "postcopy-ram")
        hold = HoldPackage()
        async with Relay(port, hold.treat) as relay:
            await begin_postcopy(source, relay.port, kind)
            await asyncio.wait_for(hold.reached.wait(), PATIENCE)
            await wait_running(destination)
            line = relay.lines[0]

            async def all_is_sent() -> bool:
                return bool(END.search(line.said["source"], len(line.said["source"]) - 6))

            await until("the source to send all", PATIENCE, all_is_sent)
            await wait_status(source, "postcopy-active")
            line.reset()
            await wait_status(source, "postcopy-paused")
            await wait_status(destination, "postcopy-paused")
            assert await destination.is_running() and not await source.is_running()
        for side in (source, destination):
            said, = (line for line in side.errors.splitlines() if "Migration paused" in line)
            assert "Unable to shutdown socket" not in side.errors, side.errors
            assert all(word in said for word in ("migrate-recover", "'resume'")), said
            assert re.search(r"\): \w.*(Input/output error|reset by peer|Broken pipe)$", said), said
        info = await recover(source, destination)
        assert info["status"] == "completed", info
        assert (await end(destination))["status"] == "completed"
        assert await destination.is_running() and not await source.is_running()


@each_base
@pytest.mark.parametrize("kind", KINDS)
async def test_devices_that_cannot_be_loaded_in_postcopy(base: str, kind: str) -> None:
    """The guest has never run there: it runs on here, and nobody waits, or crashes."""
    async with pc_lab(base=base) as lab:
        source, destination, port = await start_pair(
            lab, kind, "postcopy-ram", there=("-global", "hpet.timers=5"))
        await begin_postcopy(source, port, kind)
        info = await end(source)
        assert info["status"] == "failed", info
        await wait_running(source)
        await settled_failure(destination)


class HeldTrace:
    """Whoever traces an event may have to wait, when there is no room for what it says of it."""

    ROOM = 4096

    def __init__(self, directory: Path, event: str) -> None:
        pipe = directory / "trace"
        os.mkfifo(pipe)
        self._event = event
        self._pipe = os.open(pipe, os.O_RDWR | os.O_NONBLOCK)
        fcntl.fcntl(self._pipe, fcntl.F_SETPIPE_SZ, self.ROOM)
        self.options = ("-D", str(pipe), "-trace", event)

    def __enter__(self) -> HeldTrace:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._pipe)

    async def hold(self, behind: str = "") -> None:
        """From now on, when it has said that."""
        said, held = b"", False
        while not held:
            with contextlib.suppress(BlockingIOError):
                said += os.read(self._pipe, self.ROOM)
            with contextlib.suppress(BlockingIOError):      # something more has come
                held = behind.encode() in said and bool(os.write(self._pipe, bytes(self.ROOM)))
            await asyncio.sleep(0.001)

    def let_go(self) -> None:
        assert os.read(self._pipe, self.ROOM) == bytes(self.ROOM)

    async def pass_by(self) -> None:
        """Until it is said, which may be after others have seen what it is about."""
        async def has_passed() -> bool:
            with contextlib.suppress(BlockingIOError):
                return self._event.encode() in os.read(self._pipe, self.ROOM)
            return False

        await until(self._event, PATIENCE, has_passed)


@each_base
async def test_multifd_channel_that_fails_late(base: str, tmp_path: Path) -> None:
    """Nobody waits for one that never came to be, however slowly its failure is noted."""
    library = make_library(tmp_path, "slow_handshake")
    begun = asyncio.Event()

    async def treat(line: Line) -> None:
        if not line.number:
            return await line.carry_both()
        # The thread that does TLS fails by itself, without the main loop.
        await line.say("destination", b"nonsense" * 8)
        while await line.hear("source"):
            begun.set()

    with HeldTrace(tmp_path, "multifd_new_send_channel_async_error") as held:
        # What comes after what it traces of the failure has to wait, too.
        await held.hold()
        async with pc_lab(base=base) as lab:
            source = await lab.start("source", *held.options,
                                     under=(*UNDER, "env", f"LD_PRELOAD={library}"))
            destination = await lab.start("destination", "-incoming", "defer", under=UNDER)
            await set_psk(source, "client", tmp_path)
            await set_psk(destination, "server", tmp_path)
            for machine in (source, destination):
                await set_capabilities(machine, "multifd")
                await set_channels(machine, 1)
            async with Relay(await listen(destination, "main"), treat) as relay:
                await begin(source, inet(relay.port), kind="main")
                await asyncio.wait_for(begun.wait(), PATIENCE)
                await asyncio.sleep(2)
                held.let_go()
                info = await end(source)
                assert info["status"] == "failed" and "TLS" in info["error-desc"], info
                await held.pass_by()
                await wait_running(source)


@each_base
@pytest.mark.parametrize("kind", KINDS)
async def test_failure_that_is_not_over(base: str, kind: str, tmp_path: Path) -> None:
    """Whoever tries again at once is told to do so later, when it works."""
    with HeldTrace(tmp_path, "migration_thread_after_loop") as held:
        await held.hold()
        async with pc_lab(base=base) as lab:
            source = await lab.start("source", *held.options, under=UNDER)
            await set_capabilities(source, "return-path")
            await source.execute("migrate-set-parameters", {"max-bandwidth": SLOW})
            first, port = await start_incoming(lab, kind)
            await begin(source, inet(port), kind=kind)
            await wait_status(source, "active")
            first.kill()
            await first.heard()
            second, port = await start_incoming(lab, kind)
            # From 11.0 on it has not failed before that is over.
            failed, words = (("failed", "is not over yet: try again in a moment")
                             if base.startswith("10.") else ("failing", "in progress"))
            await wait_status(source, failed)
            with pytest.raises(NotSeen, match=words):
                await begin(source, inet(port), kind=kind, patience=0)
            held.let_go()
            await wait_status(source, "failed")
            await wait_running(source)
            await source.execute("migrate-set-parameters", {"max-bandwidth": 0})
            await begin(source, inet(port), kind=kind)
            assert (await end(source))["status"] == "completed"
            await wait_running(second)
            await held.pass_by()


@each_base
@pytest.mark.parametrize("kind", KINDS)
async def test_cancel_is_no_failure(base: str, kind: str, tmp_path: Path) -> None:
    """Whoever cancels shuts down channels, and others may see that at once."""
    library = make_library(tmp_path, "slow_shutdown")
    async with pc_lab(base=base) as lab:
        source = await lab.start("source", under=(*UNDER, "env", f"LD_PRELOAD={library}"))
        _, port = await start_incoming(lab, kind)
        await set_capabilities(source, "return-path")
        await source.execute("migrate-set-parameters", {"max-bandwidth": SLOW})
        await begin(source, inet(port), kind=kind)
        await wait_status(source, "active")
        await source.execute("migrate_cancel")
        info = await end(source)
        assert info["status"] == "cancelled" and "error-desc" not in info, info
        await wait_running(source)


async def settled_failure(destination: Machine) -> None:
    """It says that it has failed, or has left as those do that cannot load."""
    async def settled() -> bool:
        try:
            assert not await destination.is_running()
            return (await destination.migration())["status"] == "failed"
        except NotSeen:
            await destination.gone()        # QEMU 10.0 exits, some time after that
            return True

    await until("the destination to fail", PATIENCE, settled)
    assert destination.exit_status in (None, 1), destination.errors


# Words


NOT_WORTH_A_LINE = ("Channel error", "Unable to shutdown socket: Transport endpoint",
                    "failed to save SaveStateEntry", "Unable to write to socket",
                    "Unable to read from socket")


class Failure(NamedTuple):
    """What is in use, up to where it goes well, and what is said then."""

    words: str
    capabilities: tuple[str, ...] = ()
    kind: str = "handshake"
    hold: Optional[Callable[[], Hold]] = None


TIMERS = "hpet: there are 3 timers on the source, and 5 here"
FAILURES = {
    "killed": Failure("the destination ended the connection after "),
    "multifd": Failure("the destination ended the connection after ", ("multifd",)),
    "loader": Failure(TIMERS, hold=lambda: Hold(DEVICES)),
    "postcopy": Failure(TIMERS, ("postcopy-ram",), hold=HalfPackage),
    "preempt": Failure("the preempt channel cannot be opened: ",
                       ("postcopy-ram", "postcopy-preempt"), "main"),
}


@each_base
@pytest.mark.parametrize("failure", FAILURES.values(), ids=FAILURES)
async def test_who_sees_a_failure_sees_why(base: str, failure: Failure, tmp_path: Path) -> None:
    """At once: whoever has set the status can do nothing more before it is looked at."""
    hold = failure.hold() if failure.hold else None
    options = {**NO_MULTIFD, "ignore-issues": ["section-schema"]}
    with HeldTrace(tmp_path, "migrate_set_state") as held:
        async with pc_lab(base=base) as lab:
            source = await lab.start("source", *held.options, under=UNDER)
            await set_capabilities(source, "return-path", *failure.capabilities)
            await set_channels(source, MULTIFD_CHANNELS)
            await source.execute("migrate-set-parameters", {"max-bandwidth": SLOW,
                                                            "downtime-limit": 1})
            destination, port = await start_incoming(
                lab, failure.kind, *failure.capabilities,
                there=("-global", "hpet.timers=5") if hold else ())
            async with Relay(port, hold.treat if hold else Line.carry_both) as relay:
                await begin(source, inet(relay.port),
                            options if failure.kind == "handshake" else None, kind=failure.kind)
                goes_on = "active"
                await wait_status(source, goes_on)
                if hold:
                    if "postcopy-ram" in failure.capabilities:
                        await source.execute("migrate-start-postcopy")
                        goes_on = "postcopy-active" if base == "10.0" else "postcopy-device"
                    else:
                        await source.execute("migrate-set-parameters", {"max-bandwidth": 0})
                        goes_on = "device"
                    await asyncio.wait_for(hold.reached.wait(), PATIENCE)
                await asyncio.wait_for(held.hold(f"state {goes_on}\n"), PATIENCE)
                if hold:
                    hold.go_on.set()
                elif "postcopy-ram" in failure.capabilities:
                    await relay.refuse()
                    await source.execute("migrate-start-postcopy")
                else:
                    destination.kill()

                async def has_failed() -> Optional[Json]:
                    info = await source.migration()
                    return info if info["status"] in ("failing", "failed") else None

                info = await until("the failure", PATIENCE, has_failed, every=0.001)
                assert info.get("error-desc", "").startswith(failure.words), info
                held.let_go()
                assert (await end(source))["error-desc"] == info["error-desc"]
                await held.pass_by()
                await wait_running(source)


@pytest.mark.parametrize("capability", [(), ("multifd",), ("postcopy-ram",)],
                         ids=lambda names: "".join(names) or "plain")
@each_base
@pytest.mark.parametrize("kind", KINDS)
async def test_cancel_says_nothing_about_sockets(base: str, kind: str,
                                                 capability: tuple[str, ...]) -> None:
    async with pc_lab(base=base) as lab:
        source, _, port = await start_pair(lab, kind, *capability)
        await source.execute("migrate-set-parameters", {"max-bandwidth": SLOW})
        await begin(source, inet(port), kind=kind)
        await wait_status(source, "active")
        await source.execute("migrate_cancel")
        info = await end(source)
        assert info["status"] == "cancelled"
        assert "error-desc" not in info
        await wait_running(source)
        assert not [word for word in NOT_WORTH_A_LINE if word in source.errors], source.errors


@each_base
@pytest.mark.parametrize("kind", KINDS)
async def test_failure_before_a_cancel_is_told(base: str, kind: str) -> None:
    """A cancellation hides what it causes, and nothing else."""
    async with pc_lab(base=base) as lab:
        source, destination, port = await start_pair(lab, kind)
        await source.execute("migrate-set-parameters", {"max-bandwidth": SLOW})
        await begin(source, inet(port), kind=kind)
        await wait_status(source, "active")
        destination.kill()
        info = await end(source)
        assert info["status"] == "failed" and info["error-desc"]
        await source.execute("migrate_cancel")
        assert (await source.migration())["error-desc"] == info["error-desc"]


@each_base
@pytest.mark.parametrize("kind", KINDS)
async def test_broken_connection_is_told_once(base: str, kind: str) -> None:
    async with pc_lab(base=base) as lab:
        source, destination, port = await start_pair(lab, kind)
        await source.execute("migrate-set-parameters", {"max-bandwidth": SLOWER})
        await begin(source, inet(port), kind=kind)
        await wait_status(source, "active")
        destination.kill()
        info = await end(source)
        assert info["status"] == "failed"
        await wait_running(source)

        async def told() -> bool:
            return info["error-desc"] in source.errors

        await until("the error", PATIENCE, told)
        assert len(source.errors.splitlines()) == 1, source.errors


class DiskFault(NamedTuple):
    """When it comes, which one it is, and what is said of it."""

    event: str
    errno: int
    words: str


DISK_FAULTS = {
    "flush": DiskFault("flush_to_disk", errno.EIO, "Failed to stop the VM: Input/output error"),
    "bitmap": DiskFault("cluster_alloc", errno.ENOSPC, "Block inactivate failed during "
                        "switchover: Lost persistent bitmaps during inactivation of node 'disk': "
                        "Failed to allocate clusters for bitmap 'nightly': No space left on "
                        "device"),
}


@each_base
@pytest.mark.parametrize("how", ["precopy", "postcopy"])
@pytest.mark.parametrize("fault", DISK_FAULTS.values(), ids=DISK_FAULTS)
@pytest.mark.parametrize("kind", KINDS)
async def test_disk_that_fails(base: str, kind: str, fault: DiskFault, how: str,
                               tmp_path: Path) -> None:
    """It is not the network whose input or output fails, nor has anybody else the disk."""
    image = make_disk(tmp_path / "disk")
    device = "virtio-blk,drive=disk,share-rw=on"
    async with pc_lab(base=base) as lab:
        source = await lab.start(
            "source", "-blockdev", "driver=qcow2,node-name=disk,file.driver=blkdebug,"
            f"file.image.driver=file,file.image.filename={image},"
            f"file.inject-error.0.event={fault.event},file.inject-error.0.errno={fault.errno},"
            "file.inject-error.0.once=off", "-device", device, under=UNDER)
        options = [*disk(image)[:-1], device]
        destination, port = await start_incoming(
            lab, kind, *(["postcopy-ram"] if how == "postcopy" else []), there=tuple(options))
        if fault.event == "flush_to_disk":
            # Or there is nothing to be flushed.
            await source.execute("human-monitor-command",
                                 {"command-line": 'qemu-io disk "write 0 4096"'})
        else:
            await source.execute("block-dirty-bitmap-add", {
                "node": "disk", "name": "nightly", "persistent": True})
        if how == "postcopy":
            await set_capabilities(source, "return-path", "postcopy-ram")
            await begin_postcopy(source, port, kind)
        else:
            await begin(source, inet(port), kind=kind)
        info = await end(source)
        assert info["status"] == "failed"
        assert info["error-desc"].endswith(fault.words), info
        await wait_running(source)
        assert not await destination.is_running()


@each_base
@pytest.mark.parametrize("kind", KINDS)
async def test_preempt_channel_that_is_refused(base: str, kind: str) -> None:
    """The main channel goes to the same place, so that this does not say which one it is."""
    async def only_main(line: Line) -> None:
        await line.relay.refuse()
        await line.carry_both()

    async with pc_lab(base=base) as lab:
        source, destination, port = await start_pair(lab, kind, "postcopy-ram", "postcopy-preempt")
        async with Relay(port, only_main) as relay:
            if kind == "main":
                await begin_postcopy(source, relay.port, kind)
            else:
                await begin(source, inet(relay.port))
            info = await end(source)
            words = {"main": "the preempt channel cannot be opened: ",
                     "handshake": "capability 'postcopy-preempt' is set, and connection 'preempt' "
                                  f"0 to tcp:{LOOPBACK}:{relay.port} does not get through: "}[kind]
            words += f"Failed to connect to '{LOOPBACK}:{relay.port}': Connection refused"
            assert (info["status"], info["error-desc"]) == ("failed", words)
            await wait_running(source)
        if kind == "main":
            assert (await end(destination))["status"] == "failed"
        else:
            assert (await destination.handshake())["message"] == f"the source gave up: {words}"
        assert not await destination.is_running()


@each_base
@pytest.mark.parametrize("kind", KINDS)
async def test_export_that_is_open(base: str, kind: str, tmp_path: Path) -> None:
    """A guest whose disk has come by NBD goes on to somewhere else: who still writes there?"""
    def shared(name: str) -> list[str]:
        """A disk on which the device lets others write."""
        *options, device = disk(make_disk(tmp_path / name))
        return [*options, f"{device},share-rw=on"]

    async def go_on(source: Machine, destination: Machine) -> Json:
        await destination.execute("migrate-incoming", channels(kind, inet(0)))
        port = int((await destination.migration())["socket-address"][0]["port"])
        await begin(source, inet(port), kind=kind)
        return await end(source)

    async with pc_lab(base=base) as lab:
        first = await lab.start("first", *shared("1"), under=UNDER)
        second, third, fourth = [await lab.start(name, *shared(name), "-incoming", "defer",
                                                 under=UNDER) for name in ("2", "3", "4")]
        await second.execute("nbd-server-start", {
            "addr": {"type": "unix", "data": {"path": str(tmp_path / "nbd")}}})
        await second.execute("block-export-add", {"type": "nbd", "id": "copy", "node-name": "disk",
                                                  "writable": True})
        assert (await go_on(first, second))["status"] == "completed"
        await wait_running(second)
        info = await go_on(second, third)
        assert info["status"] == "failed"
        assert "these block exports are still open: 'copy' of node 'disk'" in info["error-desc"]
        await wait_running(second)
        await second.execute("block-export-del", {"id": "copy"})
        assert (await go_on(second, fourth))["status"] == "completed"
        await wait_running(fourth)


@each_base
@pytest.mark.parametrize("kind", KINDS)
async def test_connection_that_ends_behind_the_package(base: str, kind: str,
                                                       tmp_path: Path) -> None:
    """The guest runs there, whatever cannot be written any more."""
    if base != "10.0" and kind == "main":
        pytest.skip("whether the source has heard that it is loaded is chance: a known limit")
    library = make_library(tmp_path, "lose_ping")
    async with pc_lab(base=base) as lab:
        source = await lab.start("source", under=(
            *UNDER, "env", f"LD_PRELOAD={library}", f"LOSE_PING_WHEN={tmp_path}/running"))
        destination, port = await start_incoming(lab, kind, "postcopy-ram")
        await set_capabilities(source, "postcopy-ram", "return-path")
        await begin_postcopy(source, port, kind)
        await wait_running(destination)
        (tmp_path / "running").touch()
        await wait_status(source, "postcopy-paused")
        await wait_status(destination, "postcopy-paused")
        assert await destination.is_running() and not await source.is_running()
        info = await recover(source, destination)
        assert info["status"] == "completed", info
        assert await destination.is_running() and not await source.is_running()


# What a guest has written


# It counts in a byte of each of 16 pages, for ever.
#   mov ax, 0x1000; mov ds, ax; xor bx, bx; next: inc byte [bx]; add bx, 0x1000; jmp next
WRITER = bytes.fromhex("b80010 8ed8 31db fe07 81c30010 ebf8").ljust(510, b"\0") + b"\x55\xaa"
WRITTEN = (0x10000, 0x10000)


async def written(machine: Machine, path: Path) -> bytes:
    await machine.execute("pmemsave", {"val": WRITTEN[0], "size": WRITTEN[1],
                                       "filename": str(path)})
    return path.read_bytes()


@each_base
@pytest.mark.parametrize("first", [1, 32], ids=["smaller", "larger"])
async def test_memory_that_is_not_the_first_block(base: str, first: int, tmp_path: Path) -> None:
    """TCG's CPUs are told about another block: one of 1 MiB, or of more than all of RAM."""
    async with pc_lab(base=base) as lab:
        lab.accelerator = "tcg"
        machines = []
        for name, *options in (("source",), ("destination", "-S", "-incoming", "defer")):
            boot = tmp_path / name
            boot.write_bytes(WRITER)
            machines.append(await lab.start(
                name, "-object", f"memory-backend-ram,id=first,size={first}M",
                "-drive", f"if=ide,format=raw,file={boot}", *options, under=UNDER))
        source, destination = machines

        async def writes() -> bool:
            return any((await written(source, tmp_path / "memory"))[::4096])

        await until("the guest to write", PATIENCE, writes)
        port = await listen(destination, "main")
        # So slow that its pages are sent more than once while it runs
        await source.execute("migrate-set-parameters", {"max-bandwidth": 512 << 10,
                                                        "downtime-limit": 1})
        await begin(source, inet(port), kind="main")

        async def is_sent_anew() -> bool:
            info = await source.migration()
            return (info["status"] == "completed"
                    or info.get("ram", {}).get("dirty-sync-count", 0) > 4)

        await until("some passes", PATIENCE, is_sent_anew)
        await source.execute("migrate-set-parameters", {"max-bandwidth": 0, "downtime-limit": 300})
        info = await end(source)
        assert info["status"] == "completed", info
        await wait_status(destination, "completed")
        had, has = [await written(machine, tmp_path / "memory") for machine in machines]
        assert had == has
