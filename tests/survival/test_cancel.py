# SPDX-License-Identifier: GPL-2.0-or-later
"""A user who does not want to wait any more, in every phase of a migration."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import NamedTuple, Optional

import pytest
from endings import GIVEN, TOO_LATE
from machine import Lab, Machine, NotSeen, until
from processes import (NO_MULTIFD, PATIENCE, PROMPT, begin, end, inet, pc_lab, require_listening,
                       require_success, set_channels, start_destination, start_source,
                       stop_process, unix, verdict, wait_status)
from relay import Line, Relay
from wire import FakeDestination, FullListener, Peer

CHANNELS = 4
ROUNDS = 2
SETTLE = 0.1        # for what cannot be seen from here to happen


class Interruption(NamedTuple):
    command: str
    arguments: dict[str, object]
    status: str
    message: str            # if it was in the handshake
    patience: float         # after a failure, `migrate` may be refused for a moment


CANCEL = Interruption("migrate_cancel", {}, "cancelled", "the migration was cancelled", 0)
YANK = Interruption("yank", {"instances": [{"type": "migration"}]}, "failed",
                    "the migration was yanked", PROMPT)

# Begins a migration that gets as far as a phase, and stays there.
Phase = Callable[[Lab, Machine, Path], AbstractAsyncContextManager[None]]
phase = contextlib.asynccontextmanager


@phase
async def connecting_tcp(_: Lab, source: Machine, __: Path) -> AsyncIterator[None]:
    async with FullListener.tcp() as full:
        await begin(source, inet(full.port))
        yield


@phase
async def connecting_unix(_: Lab, source: Machine, directory: Path) -> AsyncIterator[None]:
    path = directory / "full"
    with contextlib.suppress(FileNotFoundError):
        path.unlink()
    async with FullListener.unix(path):
        await begin(source, unix(path))
        yield


@phase
async def in_tls(_: Lab, source: Machine, __: Path) -> AsyncIterator[None]:
    """Its peer has accepted, and does not speak TLS, nor anything else."""
    async with FakeDestination() as silent:
        await begin(source, inet(silent.port))
        peer = await silent.next()
        assert await peer.read(1) == b"\x16"
        yield


@phase
async def waiting(_: Lab, source: Machine, __: Path) -> AsyncIterator[None]:
    """The peer has read HELLO, and does not answer."""
    async with FakeDestination() as silent:
        await begin(source, inet(silent.port))
        peer = await silent.next()
        await peer.read_hello()
        yield


@contextlib.asynccontextmanager
async def with_relay(lab: Lab, source: Machine, speaker: str, count: int) -> AsyncIterator[Machine]:
    """A destination that gets, or says, a part of the handshake only."""
    reached = asyncio.Event()

    async def treat(line: Line) -> None:
        await line.carry_part(speaker, count)
        reached.set()
        await line.end_with_either()

    destination, port = await start_destination(lab)
    try:
        async with Relay(port, treat) as relay:
            await begin(source, inet(relay.port), NO_MULTIFD)
            await asyncio.wait_for(reached.wait(), 10)
            yield destination
            await require_listening(destination)
            peer = await Peer.connect(port)
            await peer.hold_session()
            peer.close()
    finally:
        await destination.stop()


@phase
async def in_hello(lab: Lab, source: Machine, _: Path) -> AsyncIterator[None]:
    async with with_relay(lab, source, "source", 300):
        yield


@phase
async def in_answer(lab: Lab, source: Machine, _: Path) -> AsyncIterator[None]:
    async with with_relay(lab, source, "destination", 200):
        yield


@phase
async def stopped_after_accept(lab: Lab, source: Machine, _: Path) -> AsyncIterator[None]:
    """The destination is stopped when it has said ACCEPT, and hears no COMMIT."""
    async with with_relay(lab, source, "destination", 1 << 20) as destination:
        os.kill(destination.pid, signal.SIGSTOP)
        assert (await verdict(source))["status"] == "accepted"
        await asyncio.sleep(SETTLE)
        yield
        os.kill(destination.pid, signal.SIGCONT)


@phase
async def after_accept(_: Lab, source: Machine, __: Path) -> AsyncIterator[None]:
    """The peer reads nothing of the stream, and says nothing on the return path."""
    async with FakeDestination() as fake:
        await begin(source, inet(fake.port))
        await (await fake.next()).accept()
        assert (await verdict(source))["status"] == "accepted"
        await asyncio.sleep(SETTLE)
        yield


@phase
async def end_not_confirmed(_: Lab, source: Machine, __: Path) -> AsyncIterator[None]:
    """The peer reads all of the stream, and never says that it came; the guest is stopped."""
    async with FakeDestination() as fake:
        await begin(source, inet(fake.port), NO_MULTIFD)
        peer = await fake.next()
        await peer.accept()
        reading = asyncio.create_task(peer.ended(60))

        async def is_stopped() -> bool:
            return not await source.is_running()

        await until("the guest to be stopped", 10, is_stopped)
        yield
        reading.cancel()


@phase
async def channels_in_connect(_: Lab, source: Machine, __: Path) -> AsyncIterator[None]:
    """Further connections hang in connect()."""
    async with FakeDestination() as fake:
        await begin(source, inet(fake.port))
        peer = await fake.next()
        await fake.fill()
        await peer.accept(multifd=True)
        await asyncio.sleep(SETTLE)
        assert (await source.migration())["status"] == "setup"
        yield


@phase
async def channels_not_taken(_lab: Lab, source: Machine, _path: Path) -> AsyncIterator[None]:
    """All channels connect, and nobody reads them."""
    async with FakeDestination() as fake:
        await begin(source, inet(fake.port))
        await (await fake.next()).accept(multifd=True)
        for _ in range(CHANNELS):
            await fake.next()
        await asyncio.sleep(SETTLE)
        yield


@contextlib.asynccontextmanager
async def channels_hang_in_tls(lab: Lab, source: Machine, first: int) -> AsyncIterator[None]:
    """Channels from the `first` one on are accepted, and hear nothing."""
    async def treat(line: Line) -> None:
        if line.number < first:
            await line.carry_both()

    destination, port = await start_destination(lab, tls=True)
    try:
        async with Relay(port, treat) as relay:
            await begin(source, inet(relay.port))

            async def all_there() -> bool:
                return len(relay.lines) == 1 + CHANNELS

            await until("all channels", 10, all_there)
            await asyncio.sleep(SETTLE)
            yield
            await require_listening(destination)
    finally:
        await destination.stop()


@phase
async def channels_in_tls(lab: Lab, source: Machine, _: Path) -> AsyncIterator[None]:
    async with channels_hang_in_tls(lab, source, 1):
        yield


@phase
async def last_channel_in_tls(lab: Lab, source: Machine, _: Path) -> AsyncIterator[None]:
    async with channels_hang_in_tls(lab, source, CHANNELS):
        yield


PLAIN: list[Phase] = [connecting_tcp, connecting_unix, waiting, in_hello, in_answer,
                      stopped_after_accept, after_accept, end_not_confirmed, channels_in_connect,
                      channels_not_taken]
TLS: list[Phase] = [in_tls, connecting_tcp, channels_in_tls, last_channel_in_tls]
CASES = [(one, tls) for tls, phases in ((False, PLAIN), (True, TLS)) for one in phases]
by_case = pytest.mark.parametrize(
    "stuck, tls", CASES, ids=[one.__name__ + ("-tls" if tls else "") for one, tls in CASES])
by_command = pytest.mark.parametrize("interruption", [CANCEL, YANK], ids=["cancel", "yank"])


async def interrupt(source: Machine, interruption: Interruption) -> None:
    """At once, and the guest runs."""
    before = (await source.handshake())["status"]
    assert before in ("in-progress", "accepted")
    start = time.monotonic()
    await source.execute(interruption.command, interruption.arguments)
    await wait_status(source, interruption.status, 3 * PROMPT)
    assert time.monotonic() - start < PROMPT
    migration = await source.migration()
    info = migration["handshake"]
    assert not info["check-only"]
    if before == "accepted":
        assert info["status"] == "accepted" and "message" not in info
    else:
        # Nobody else, and nobody's credentials, are to blame.
        assert (info["status"], info["message"]) == (interruption.status, interruption.message)
        assert migration.get("error-desc", info["message"]) == info["message"]
    await until("the guest to run", PROMPT, source.is_running, every=0.001)


@by_command
@by_case
async def test_interrupted(stuck: Phase, tls: bool, interruption: Interruption,
                           tmp_path: Path) -> None:
    """Twice, and then a good migration at once, while what hung may hang on."""
    async with pc_lab() as lab:
        source = await start_source(lab, tls=tls)
        await set_channels(source, CHANNELS)
        good, port = await start_destination(lab, "good destination", tls=tls)
        for _ in range(ROUNDS - 1):
            async with stuck(lab, source, tmp_path):
                await interrupt(source, interruption)
        async with stuck(lab, source, tmp_path):
            await interrupt(source, interruption)
            await begin(source, inet(port), patience=interruption.patience)
            await require_success(source, good)


# In the handshake, plain and with TLS
CLEANUP = ("migration_cleanup", "savevm_state_cleanup")
EARLY = [case for case in CASES
         if case[0] not in (after_accept, end_not_confirmed)]


def traced(log: Path, *events: str) -> list[str]:
    return ["-D", str(log), *(word for event in events for word in ("-trace", event))]


@pytest.mark.parametrize(
    "stuck, tls", EARLY, ids=[one.__name__ + ("-tls" if tls else "") for one, tls in EARLY])
async def test_both_clean_up_alike(stuck: Phase, tls: bool, tmp_path: Path) -> None:
    """What was prepared with the command is taken back, and notifiers are called."""
    async with pc_lab() as lab:
        for interruption in (CANCEL, YANK):
            log = tmp_path / interruption.command
            source = await start_source(lab, interruption.command, tls=tls,
                                        options=traced(log, *CLEANUP))
            await set_channels(source, CHANNELS)
            async with stuck(lab, source, tmp_path):
                assert not log.read_text()
                await interrupt(source, interruption)

            async def is_clean(log: Path = log) -> bool:
                return CLEANUP[-1] in log.read_text()

            # One that has failed in the stream says so before it cleans up.
            await until("the source to clean up", PATIENCE, is_clean)
            assert log.read_text().split() == list(CLEANUP), interruption.command


CHANGE_CIPHER_SPEC = 20


def before_last_flight(said: bytearray) -> Optional[int]:
    """How much of a server's TLS 1.2 comes before its last flight, once all of that is here."""
    at = 0
    while at + 5 <= len(said):
        after = at + 5 + int.from_bytes(said[at + 3:at + 5], "big")
        if said[at] == CHANGE_CIPHER_SPEC:
            return at if len(said) > after else None
        at = after
    return None


async def cancelled_in_tls(tmp_path: Path) -> list[str]:
    """What a source traces that is cancelled when all of TLS has come."""
    log, monitor = tmp_path / "log", tmp_path / "monitor"
    held, go_on, gone_on = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def treat(line: Line) -> None:
        await line.reach()
        asking = asyncio.create_task(line.carry("source"))
        end = None
        while end is None and await line.hear("destination"):
            end = before_last_flight(line.said["destination"])
            if end is None:
                await line.tell("destination", len(line.said["destination"]))
        held.set()
        await go_on.wait()
        await line.tell("destination", len(line.said["destination"]))
        gone_on.set()
        await asking

    async with pc_lab() as lab:
        # The human monitor is of the main loop, which looks at it before it looks at what is newer.
        source = await start_source(lab, tls=True, options=[
            "-chardev", f"socket,id=human,path={monitor},server=on,wait=off",
            "-mon", "chardev=human,mode=readline", "-D", str(log),
            "-trace", "migration_cancel", "-trace", "qio_channel_tls_handshake_complete",
            "-trace", "migration_handshake_*"])
        destination, port = await start_destination(lab, tls=True)
        human, hand = await asyncio.open_unix_connection(monitor)
        hand.write(b"migrate_cancel")       # it reads one byte at a time
        await human.readuntil(b"migrate_cancel")
        async with Relay(port, treat) as relay:
            await begin(source, inet(relay.port), NO_MULTIFD)
            await asyncio.wait_for(held.wait(), 10)
            await stop_process(source)
            go_on.set()
            await gone_on.wait()
            hand.write(b"\n")
            await hand.drain()
            os.kill(source.pid, signal.SIGCONT)
            await wait_status(source, "cancelled", 3 * PROMPT)
            assert (await source.handshake())["status"] == "cancelled"
        hand.close()
        story = [line.split()[0] for line in log.read_text().splitlines()]
        await begin(source, inet(port))
        await require_success(source, destination)
        return story


async def test_cancelled_at_the_last_moment_of_tls(tmp_path: Path) -> None:
    """When all of TLS has come, and nobody has looked at it yet."""
    for attempt in range(20):
        directory = tmp_path / str(attempt)
        directory.mkdir()
        story = await cancelled_in_tls(directory)
        after = story[story.index("migration_cancel") + 1:]
        # The main loop may as well look at TLS before.
        if after[0] == "qio_channel_tls_handshake_complete":
            break
    else:
        pytest.fail("that moment has never come")
    assert "migration_handshake_channel_interrupt" in after, story
    assert "migration_handshake_frame_received" not in after, story
    assert after[-1] == "migration_handshake_source_end"


@by_command
async def test_interrupted_at_any_time(interruption: Interruption) -> None:
    """Some time after `migrate`, with a destination that does all that it should."""
    async with pc_lab() as lab:
        source = await start_source(lab)
        for step in range(25):
            destination, port = await start_destination(lab, f"destination {step}")
            await begin(source, inet(port))
            await asyncio.sleep(step * 0.001)
            possible = {interruption.status, "completed"}
            try:
                await source.execute(interruption.command, interruption.arguments)
            except NotSeen as error:
                # A cancel may come too late; there is nothing to yank when it is over, and
                # only then.
                possible = {"completed"}
                if TOO_LATE not in str(error):
                    assert "Instance not found" in str(error)
                    assert (await source.migration())["status"] == "completed"
            info = await end(source)
            assert info["status"] in possible, info
            if info["status"] == "completed" or info.get("error-desc", "").startswith(GIVEN):
                # Either the guest runs there, or nobody here can know.
                assert not await source.is_running()
                await source.stop()
                source = await start_source(lab, f"source {step}")
            else:
                await until("the guest to run", PROMPT, source.is_running)
            await destination.stop()
        good, port = await start_destination(lab, "good destination")
        await begin(source, inet(port))
        await require_success(source, good)
