# SPDX-License-Identifier: GPL-2.0-or-later
"""Checks: a handshake that no migration follows, and that nothing else may notice."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import NamedTuple, Optional

import pytest
from machine import LOOPBACK, Json, Lab, Machine, NotSeen, until
from processes import (MIB, NO_MULTIFD, PATIENCE, PROMPT, STRICTLY, UNDER, UUIDS, Options, Watch,
                       begin, begin_check, bytes_of, channels, check, differences, end, fds, inet,
                       listen, locked_memory, migrate, pc_lab, require_good_migration,
                       require_listening, require_refused, require_success, set_capabilities,
                       settings, start_destination, start_source, unix, unlocked_memory, verdict,
                       wait_running, wait_status)
from qemu.qmp import EventListener
from relay import Line, Relay, Treatment
from wire import (ACCEPT, COMMIT, HELLO, REJECT, SESSION, FakeDestination, FullListener, Peer,
                  frame, header, hello)

# A destination without TLS tells of one refusal a second.
EVENTS = 1.0
TRACED = ("migrate_set_state", "migration_cleanup")
SLOW = 64 << 10         # bytes a second


def traced(log: Path) -> list[str]:
    return ["-D", str(log), *(word for event in TRACED for word in ("-trace", event))]


async def state(machine: Machine, log: Optional[Path] = None) -> Json:
    """All that a check must leave as it is."""
    migration = await machine.migration()
    migration.pop("handshake", None)
    return {"migration": migration,
            "settings": await settings(machine),
            "status": await machine.execute("query-status"),
            "yank": await machine.execute("query-yank"),
            "memory is locked": locked_memory(machine) > 0,
            "trace": log.read_text() if log else ""}


@contextlib.asynccontextmanager
async def unchanged(*machines: Machine) -> AsyncIterator[None]:
    before = [await state(machine) for machine in machines]
    yield
    assert [await state(machine) for machine in machines] == before


@contextlib.asynccontextmanager
async def silent_peer(source: Machine, options: Optional[Options] = None) -> AsyncIterator[Peer]:
    """A check whose peer has read HELLO, and says nothing."""
    async with FakeDestination() as silent:
        await begin_check(source, inet(silent.port), options)
        peer = await silent.next()
        await peer.read_hello()
        yield peer


@contextlib.contextmanager
def closed_port() -> Iterator[int]:
    """Where nobody listens, nor begins to."""
    with socket.socket() as sock:
        sock.bind((LOOPBACK, 0))
        yield int(sock.getsockname()[1])


# What may become of a check; of a source that differs a little from the destination


async def accepted(source: Machine, port: int) -> Json:
    return await check(source, inet(port))


async def rejected(source: Machine, port: int) -> Json:
    return await check(source, inet(port), STRICTLY)


async def failed(source: Machine, _: int) -> Json:
    with closed_port() as port:
        return await check(source, inet(port))


async def timed_out(source: Machine, _: int) -> Json:
    async with silent_peer(source, {"timeout": 1}):
        return await verdict(source)


async def cancelled(source: Machine, _: int) -> Json:
    async with silent_peer(source):
        await source.execute("migrate_cancel")
        return await verdict(source)


class Outcome(NamedTuple):
    happen: Callable[[Machine, int], Awaitable[Json]]
    status: str
    heard: bool         # by the destination


OUTCOMES = [Outcome(accepted, "accepted", True), Outcome(rejected, "rejected", True),
            Outcome(failed, "failed", False), Outcome(timed_out, "failed", False),
            Outcome(cancelled, "cancelled", False)]


# What may have been before it, on the source


async def nothing(_lab: Lab, _source: Machine, _port: int) -> str:
    return ""


async def failure(_: Lab, source: Machine, port: int) -> str:
    await begin(source, inet(port), STRICTLY)
    await require_refused(source, "1 warning")
    await asyncio.sleep(EVENTS)
    return "failed"


async def cancellation(_: Lab, source: Machine, __: int) -> str:
    async with FakeDestination() as silent:
        await begin(source, inet(silent.port))
        await silent.next()
        await source.execute("migrate_cancel")
        await wait_status(source, "cancelled")
    return "cancelled"


async def arrival(lab: Lab, source: Machine, _: int) -> str:
    """It has come here by a migration itself."""
    first = await start_source(lab, "first")
    await require_good_migration(first, source, await listen(source))
    return "completed"


async def events_of(listener: EventListener, count: int, *watched: Machine) -> list[Json]:
    """All events that come, of which there should be `count`."""
    seen: list[Json] = []

    async def enough() -> bool:
        seen.extend(dict(event) for event in listener.clear())
        return len(seen) >= count

    await until("events", PROMPT, enough, every=0.001)
    for machine in watched:
        await machine.execute("query-status")       # one more could not be behind that
    await enough()
    return seen


def require_event(events: list[Json], role: str, info: Json) -> None:
    """One, of the handshake, and of that one."""
    assert [event["event"] for event in events] == ["MIGRATION_HANDSHAKE"], events
    expected = {"role": role, "status": info["status"], "check-only": True,
                "errors": 0, "warnings": len(differences(info))}
    expected |= {name: info[name] for name in ("session", "message") if name in info}
    assert events[0]["data"] == expected


@pytest.mark.parametrize("before", [nothing, failure, cancellation, arrival],
                         ids=lambda one: one.__name__)
async def test_nobody_notices(before: Callable[[Lab, Machine, int], Awaitable[str]],
                              tmp_path: Path) -> None:
    async with pc_lab() as lab:
        logs = [tmp_path / "source", tmp_path / "destination"]
        waits = ["-incoming", "defer"] if before is arrival else []
        source = await start_source(lab, options=[*UUIDS[0], *traced(logs[0]), *waits])
        destination, port = await start_destination(lab, options=[*UUIDS[1], *traced(logs[1])])
        machines = list(zip((source, destination), logs))
        for machine, _ in machines:
            await set_capabilities(machine, "events")
        status = await before(lab, source, port)
        assert (await source.migration()).get("status", "") == status
        assert any(event in logs[0].read_text() for event in TRACED) == bool(status)
        for happen, result, heard in OUTCOMES:
            old = [await state(machine, log) for machine, log in machines]
            with source.events() as here, destination.events() as there:
                info = await happen(source, port)
                assert (info["status"], info["role"]) == (result, "source")
                require_event(await events_of(here, 1, source), "source", info)
                events = await events_of(there, heard, source, destination)
                seen = await destination.handshake() if heard else {}
            if heard:
                require_event(events, "destination", seen)
                await asyncio.sleep(EVENTS)
                assert info["session"] == seen["session"]
                assert len(differences(info)) == 1 and info["issues"] == seen["issues"]
            else:
                assert not events
            assert [await state(machine, log) for machine, log in machines] == old, result
        await require_listening(destination)
        await require_good_migration(source, destination, port)
        # A real migration leaves all of these traces, which shows that a check would.
        assert all(event in logs[0].read_text() for event in TRACED)


async def test_without_capability_events() -> None:
    """As for a migration: nobody who did not ask for them gets events."""
    async with pc_lab() as lab:
        source = await start_source(lab)
        destination, port = await start_destination(lab)
        with source.events() as here, destination.events() as there:
            assert (await check(source, inet(port)))["status"] == "accepted"
            assert not await events_of(here, 0, source)
            assert not await events_of(there, 0, destination)


# The destination


async def test_destination_stays_free() -> None:
    """However often it is asked, also with what makes it probe its host."""
    options = {"optional-capabilities": ["postcopy-ram", "postcopy-preempt", "switchover-ack"]}
    async with pc_lab() as lab:
        source = await start_source(lab)
        destination, port = await start_destination(
            lab, options=["-overcommit", "mem-lock=on"])
        unlocked = unlocked_memory(destination)
        assert unlocked < MIB
        async with unchanged(source, destination), Watch(destination):
            for number in range(50):
                info = await check(source, inet(port), options if number % 2 else None)
                assert info["status"] == "accepted", info
                assert ("postcopy-ram" in info["capabilities"]) == bool(number % 2)
                assert (await destination.handshake())["session"] == info["session"]
                assert unlocked_memory(destination) == unlocked
        await require_good_migration(source, destination, port)


@pytest.mark.parametrize("required", [("multifd",), ("postcopy-ram",),
                                      ("postcopy-ram", "postcopy-preempt"), ("dirty-bitmaps",)],
                         ids="-".join)
async def test_migration_of_each_kind_after_checks(required: tuple[str, ...]) -> None:
    """The check has promised it, and has left nothing that would be in its way."""
    locked = ["-overcommit", "mem-lock=on"]
    async with pc_lab() as lab:
        source = await start_source(lab, options=locked)
        destination, port = await start_destination(lab, options=locked)
        await set_capabilities(source, *required)
        async with unchanged(source, destination):
            unlocked = [unlocked_memory(machine) for machine in (source, destination)]
            for number in range(50):
                info = await check(source, inet(port), STRICTLY if number % 2 else None)
                assert info["status"] == "accepted", info
            assert [unlocked_memory(one) for one in (source, destination)] == unlocked
        promised = info["capabilities"]
        assert set(required) <= set(promised)
        await require_good_migration(source, destination, port)
        assert (await source.handshake())["capabilities"] == promised


def taken(port: int) -> int:
    """How many connections who listens there has, and has not closed."""
    lines = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    # ESTABLISHED, CLOSE_WAIT
    return sum(words[1] == f"0100007F:{port:04X}" and words[3] in ("01", "08") for words in lines)


async def test_nothing_grows() -> None:
    async with pc_lab() as lab:
        source = await start_source(lab)
        destination, port = await start_destination(lab)

        async def none_left() -> bool:
            return not taken(port)

        async def repeat(count: int) -> list[tuple[int, int]]:
            for _ in range(count):
                await check(source, inet(port))
            # The destination closes when it sees that the source has.
            await until("all connections to be closed", PATIENCE, none_left, every=0.005)
            return [(fds(machine), bytes_of(machine, "RssAnon"))
                    for machine in (source, destination)]

        first = await repeat(50)
        last = await repeat(200)
        print(first, last)
        for (fds_before, memory_before), (fds_after, memory_after) in zip(first, last):
            assert fds_after == fds_before
            assert memory_after - memory_before < MIB


async def test_busy() -> None:
    """While another source holds the session, and while its migration runs."""
    async def require_busy() -> None:
        async with unchanged(source):
            info = await check(source, inet(port))
            assert info["status"] == "rejected"
            assert [issue["code"] for issue in info["issues"]] == ["busy"]
            assert "another migration" in info["message"]

    async with pc_lab() as lab:
        source = await start_source(lab)
        other = await start_source(lab, "other")
        destination, port = await start_destination(lab)
        holder = await Peer.connect(port)
        await holder.hold_session()
        await require_busy()
        assert not (await destination.handshake())["check-only"]
        await holder.send(b"")
        holder.close()
        await require_listening(destination)

        await other.execute("migrate-set-parameters", {"max-bandwidth": SLOW})
        await begin(other, inet(port))
        await wait_status(other, "active")
        await require_busy()
        await wait_status(destination, "active")
        await other.execute("migrate-set-parameters", {"max-bandwidth": 0})
        await require_success(other, destination)


async def test_several_at_once() -> None:
    """All get an answer, and neither of them is busy because of another one."""
    async def ask() -> str:
        peer = await Peer.connect(port)
        try:
            answer, kind, message = await peer.ask(hello(purpose="check"))
            assert kind == ACCEPT, message
            return answer.session.hex()
        finally:
            peer.close()

    async def check_one(source: Machine) -> str:
        info = await check(source, inet(port))
        assert info["status"] == "accepted"
        return str(info["session"]).replace("-", "")

    async with pc_lab() as lab:
        sources = [await start_source(lab, f"source {number}") for number in range(3)]
        destination, port = await start_destination(lab)
        async with unchanged(destination, *sources), Watch(destination):
            sessions = await asyncio.gather(*(ask() for _ in range(20)),
                                            *map(check_one, sources))
            assert len(set(sessions)) == len(sessions)
        await require_good_migration(sources[0], destination, port)


async def test_answered_peer_stays() -> None:
    """Somebody who does not go after a check keeps nobody out, whatever it sends."""
    async with pc_lab() as lab:
        source = await start_source(lab)
        destination, port = await start_destination(lab)
        async with unchanged(destination):
            peer = await Peer.connect(port)
            _, kind, _ = await peer.ask(hello(purpose="check"))
            assert kind == ACCEPT
            await peer.commit()         # it was a check: there is nothing to commit to
            await peer.send(b"QEVM" + bytes(1000))
            assert (await check(source, inet(port)))["status"] == "accepted"
        await require_good_migration(source, destination, port)
        peer.close()


# One thing at a time


async def test_second_command() -> None:
    async with pc_lab() as lab:
        source = await start_source(lab)
        destination, port = await start_destination(lab)
        commands = [
            channels("handshake", inet(port)) | {"handshake": {"check-only": True}},
            channels("handshake", inet(port)),
            channels("main", inet(port)),
            {"uri": f"tcp:{LOOPBACK}:{port}"},
        ]
        async with unchanged(source, destination), silent_peer(source) as peer:
            for arguments in commands:
                with pytest.raises(NotSeen, match="check of a migration is in progress"):
                    await source.execute("migrate", arguments)
                assert (await source.handshake())["status"] == "in-progress"
            await peer.send(header(session=SESSION)
                            + frame(ACCEPT, {"version": 1, "capabilities": ["return-path"]}))
            info = await verdict(source)
            assert (info["status"], info["capabilities"]) == ("accepted", ["return-path"])
            assert await peer.ended(PROMPT)
        await require_good_migration(source, destination, port)


async def test_during_and_after_a_migration() -> None:
    """And while one is awaited."""
    async def require_error(machine: Machine, words: str) -> None:
        async with unchanged(machine):
            shown = (await machine.migration()).get("handshake")
            with pytest.raises(NotSeen, match=words):
                await begin_check(machine, inet(port))
            assert (await machine.migration()).get("handshake") == shown

    async with pc_lab() as lab:
        source = await start_source(lab)
        destination, port = await start_destination(lab)
        async with FakeDestination() as silent:
            await begin(source, inet(silent.port))
            await silent.next()
            await require_error(source, "migration process in progress")
            assert (await source.migration())["status"] == "setup"
            await source.execute("migrate_cancel")
            await wait_status(source, "cancelled")
        await begin(source, inet(port))
        await require_success(source, destination)
        await require_error(source, "paused due to previous migration")
        other, port = await start_destination(lab, "other")
        await require_error(other, "waiting for an incoming migration")
        await require_listening(other)


@pytest.mark.parametrize("arguments, words", [
    ({"uri": f"tcp:{LOOPBACK}:1"}, "needs a channel of type 'handshake'"),
    (channels("main", inet(1)), "needs a channel of type 'handshake'"),
    (channels("handshake", inet(1)) | {"resume": True}, "cannot resume"),
    (channels("handshake", {"transport": "file", "filename": "x", "offset": 0}),
     "bidirectional socket"),
    (channels("handshake", inet(1)) | {"handshake": {"check-only": True, "timeout": 3601}},
     "0 to 3600 seconds"),
], ids=["uri", "main", "resume", "file", "timeout"])
async def test_wrong_arguments(arguments: Json, words: str) -> None:
    async with pc_lab() as lab:
        source = await start_source(lab)
        with pytest.raises(NotSeen, match=words):
            await source.execute("migrate", {"handshake": {"check-only": True}} | arguments)
        assert await source.migration() == {}


BESIDE: list[tuple[str, Json, str]] = [
    ("stop", {}, ""),
    ("cont", {}, ""),
    ("system_reset", {}, ""),
    ("device_add", {"driver": "i6300esb", "id": "watchdog"}, ""),
    ("query-migrate-profile", {}, ""),
    ("check-migrate-profile", {"profile": {}}, "-incoming"),
    ("yank", {"instances": [{"type": "migration"}]}, "not found"),
    ("migrate-pause", {}, "postcopy"),
    ("migrate-recover", {"uri": "tcp:127.0.0.1:0"}, "postcopy is paused"),
    ("migrate-start-postcopy", {}, "postcopy"),
    ("migrate-continue", {"state": "pre-switchover"}, "not in expected state"),
    ("migrate-incoming", {"uri": "tcp:127.0.0.1:0"}, "-incoming"),
]


async def test_other_commands() -> None:
    """A guest that is only asked about does all else that it does."""
    async with pc_lab() as lab:
        source = await start_source(lab)
        destination, port = await start_destination(lab)
        async with silent_peer(source) as peer:
            async with unchanged(source):
                for command, arguments, refusal in BESIDE:
                    if refusal:
                        with pytest.raises(NotSeen, match=refusal):
                            await source.execute(command, arguments)
                    else:
                        await source.execute(command, arguments)
                    assert (await source.handshake())["status"] == "in-progress", command
            await peer.send(header(session=SESSION)
                            + frame(ACCEPT, {"version": 1, "capabilities": ["return-path"]}))
            assert (await verdict(source))["status"] == "accepted"
        # It was plugged in, and the next check tells of it.
        info = await check(source, inet(port))
        assert {issue["code"] for issue in differences(info)} == {"section-missing"}
        assert destination.exit_status is None


async def test_settings_change() -> None:
    """The verdict was on something else, so it is none."""
    async with pc_lab() as lab:
        source = await start_source(lab)
        async with silent_peer(source) as peer:
            await set_capabilities(source, "postcopy-ram")
            await peer.send(header(session=SESSION)
                            + frame(ACCEPT, {"version": 1, "capabilities": ["return-path"]}))
            info = await verdict(source)
        assert info["status"] == "failed" and not info["capabilities"]
        assert "were changed" in info["message"], info["message"]


# Cancellation

# Begins a check that gets as far as a phase, and stays there.
Phase = Callable[[Machine, Path], AbstractAsyncContextManager[Optional[FullListener]]]
phase = contextlib.asynccontextmanager


@phase
async def connecting_tcp(source: Machine, _: Path) -> AsyncIterator[FullListener]:
    async with FullListener.tcp() as full:
        await begin_check(source, inet(full.port))
        yield full


@phase
async def connecting_unix(source: Machine, directory: Path) -> AsyncIterator[FullListener]:
    path = directory / "full"
    async with FullListener.unix(path) as full:
        await begin_check(source, unix(path))
        yield full


@phase
async def in_tls(source: Machine, _: Path) -> AsyncIterator[None]:
    async with FakeDestination() as silent:
        await begin_check(source, inet(silent.port))
        assert await (await silent.next()).read(1) == b"\x16"
        yield None


@phase
async def waiting(source: Machine, _: Path) -> AsyncIterator[None]:
    async with silent_peer(source):
        yield None


@phase
async def half_an_answer(source: Machine, _: Path) -> AsyncIterator[None]:
    async with silent_peer(source) as peer:
        await peer.send(header(session=SESSION) + frame(ACCEPT, b"{" * 100)[:50])
        yield None


PHASES: list[tuple[Phase, bool]] = [
    (connecting_tcp, False), (connecting_unix, False), (connecting_tcp, True), (in_tls, True),
    (waiting, False), (half_an_answer, False)]
by_phase = pytest.mark.parametrize(
    "stuck, tls", PHASES, ids=[one.__name__ + ("-tls" if tls else "") for one, tls in PHASES])


async def cancel(source: Machine) -> Json:
    """At once, and told in an event."""
    start = time.monotonic()
    with source.events() as listener:
        await source.execute("migrate_cancel")
        info = await verdict(source)
        assert time.monotonic() - start < PROMPT
        assert (info["status"], info["check-only"]) == ("cancelled", True)
        assert "cancelled" in info["message"]
        require_event(await events_of(listener, 1, source), "source", info)
    return info


@by_phase
async def test_cancelled(stuck: Phase, tls: bool, tmp_path: Path) -> None:
    """Then another check and a migration at once, while what hung may hang on."""
    async with pc_lab() as lab:
        source = await start_source(lab, tls=tls)
        destination, port = await start_destination(lab, tls=tls)
        await set_capabilities(source, "events")
        async with Watch(source), stuck(source, tmp_path):
            async with unchanged(source):
                assert (await source.handshake())["status"] == "in-progress"
                await cancel(source)
                assert (await check(source, inet(port)))["status"] == "accepted"
            await require_good_migration(source, destination, port)


@pytest.mark.parametrize("stuck", [connecting_tcp, connecting_unix],
                         ids=lambda one: one.__name__)
async def test_late_connection(stuck: Phase, tmp_path: Path) -> None:
    """Given up long ago, it comes at last: it is closed, and changes nothing."""
    async with pc_lab() as lab:
        source = await start_source(lab)
        destination, port = await start_destination(lab)
        await set_capabilities(source, "events")
        before = fds(source)
        async with stuck(source, tmp_path) as full:
            assert full

            async def has_begun() -> bool:
                return fds(source) > before

            await until("a socket", PATIENCE, has_begun, every=0.002)
            await asyncio.sleep(0.05)       # and connect() hangs
            await cancel(source)
            info = await check(source, inet(port))
            said: list[bytes] = []
            async with unchanged(source), silent_peer(source):
                with source.events() as listener:
                    assert fds(source) > before + 1
                    taking = asyncio.create_task(full.let_in(said))

                    async def closed() -> bool:
                        return fds(source) <= before + 1    # that of the silent peer

                    await until("the connection to be closed", PATIENCE, closed)
                    taking.cancel()
                    assert not await events_of(listener, 0, source)
                assert said and not any(said)
                assert (await source.handshake())["status"] == "in-progress"
                await cancel(source)
            assert info["status"] == "accepted"
        await require_good_migration(source, destination, port)


STEPS = 60


async def test_cancelled_at_any_time() -> None:
    """Some time after `migrate`, with a destination that does all that it should."""
    async with pc_lab() as lab:
        source = await start_source(lab)
        destination, port = await start_destination(lab)
        seen = set()
        async with unchanged(source, destination):
            # On, if it has always been too early: that depends on the machine.
            for step in itertools.count():
                await begin_check(source, inet(port))
                late = 1.1 ** max(0, step - STEPS)
                await asyncio.sleep(min(step, STEPS) * 0.00005 * late)
                await source.execute("migrate_cancel")
                seen.add((await verdict(source))["status"])
                assert seen <= {"cancelled", "accepted"}
                if step >= STEPS and "accepted" in seen:
                    break
        await require_good_migration(source, destination, port)


async def test_cancel_without_a_check() -> None:
    async with pc_lab() as lab:
        source = await start_source(lab)
        destination, port = await start_destination(lab)
        async with unchanged(source):
            await source.execute("migrate_cancel")
        await check(source, inet(port))
        async with unchanged(source):
            await source.execute("migrate_cancel")
            assert (await source.handshake())["status"] == "accepted"
        await source.execute("migrate-set-parameters", {"max-bandwidth": SLOW})
        await begin(source, inet(port), NO_MULTIFD)
        await wait_status(source, "active")
        await source.execute("migrate_cancel")
        assert (await end(source))["status"] == "cancelled"
        assert await source.is_running()
        assert (await source.handshake())["status"] == "accepted"
        assert destination.exit_status is None or destination.exit_status >= 0


# Time


SECONDS = 4             # an attempt's own limit
LATER = 2.5             # what comes by then is in time, and there is not so much time again
SLACK = 2.0             # for a busy machine


def tls_without_data(said: bytes | bytearray) -> int:
    """How many bytes come before the first record with data in it."""
    at = 0
    while len(said) >= at + 5 and said[at] != 0x17:
        at += 5 + int.from_bytes(said[at + 3:at + 5], "big")
    return min(at, len(said))


async def late_tls(line: Line) -> None:
    """TLS begins late; then all goes on."""
    await asyncio.sleep(LATER)
    await line.carry_both()


async def late_tls_and_silence(line: Line) -> None:
    """TLS begins late, and ends well; then the destination hears, and says, nothing."""
    await asyncio.sleep(LATER)
    await line.reach()
    answers = asyncio.create_task(line.carry("destination"))
    try:
        while await line.hear("source"):
            await line.tell("source", tls_without_data(line.said["source"]))
    finally:
        answers.cancel()
        await asyncio.gather(answers, return_exceptions=True)


async def no_tls(_: Line) -> None:
    await asyncio.sleep(60)


def require_in_time(start: float) -> None:
    """When the time is over, and not when it is over again."""
    assert SECONDS - 0.1 < time.monotonic() - start < SECONDS + SLACK


async def expect_end(source: Machine, start: float, *words: str) -> None:
    """In time, explained."""
    info = await verdict(source)
    require_in_time(start)
    assert info["status"] == "failed"
    for word in (f"within {SECONDS} seconds", *words):
        assert word in info["message"], info["message"]


async def test_silent_peer_times_out() -> None:
    async with pc_lab() as lab:
        source = await start_source(lab)
        async with unchanged(source), Watch(source):
            start = time.monotonic()
            async with silent_peer(source, {"timeout": SECONDS}):
                await expect_end(source, start, "type 'handshake'")


@pytest.mark.parametrize("treatment, word", [(no_tls, "TLS"), (late_tls_and_silence, "answer")],
                         ids=["in-tls", "after-tls"])
@pytest.mark.parametrize("only", [True, False], ids=["check", "migration"])
async def test_tls_is_part_of_the_time(treatment: Treatment, word: str, only: bool) -> None:
    async with pc_lab() as lab:
        source = await start_source(lab, tls=True)
        destination, port = await start_destination(lab, tls=True)
        async with Relay(port, treatment) as relay, Watch(source):
            start = time.monotonic()
            await begin(source, inet(relay.port), {"timeout": SECONDS, "check-only": only})
            if only:
                await expect_end(source, start, word)
            else:
                await require_refused(source, word, f"within {SECONDS} seconds")
                require_in_time(start)
        await require_good_migration(source, destination, port)


async def test_slow_tls_in_time() -> None:
    """The timer of TLS does not go off later, in the midst of what comes."""
    async with pc_lab() as lab:
        source = await start_source(lab, tls=True)
        _, port = await start_destination(lab, tls=True)
        async with Relay(port, late_tls) as relay, Watch(source):
            info = await check(source, inet(relay.port), {"timeout": SECONDS})
            assert info["status"] == "accepted"
        async with FakeDestination() as silent:
            await begin_check(source, inet(silent.port))
            await asyncio.sleep(SECONDS - LATER + 0.1)
            assert (await source.handshake())["status"] == "in-progress"


async def test_timeout_0_is_never() -> None:
    async with pc_lab() as lab:
        sources = [await start_source(lab, "plain"), await start_source(lab, "tls", tls=True)]
        async with FakeDestination() as silent, Watch(sources[0]), Watch(sources[1]):
            for source in sources:
                await begin_check(source, inet(silent.port), {"timeout": 0})
                await silent.next()
            await asyncio.sleep(2.5)
            for source in sources:
                assert (await source.handshake())["status"] == "in-progress"
                await source.execute("migrate_cancel")
                assert (await verdict(source))["status"] == "cancelled"


# Transports, and who may be there


@pytest.mark.parametrize("here, there", [(True, True), (True, False), (False, True)],
                         ids=["both", "source-only", "destination-only"])
async def test_tls(here: bool, there: bool) -> None:
    async with pc_lab() as lab:
        source = await start_source(lab, tls=here)
        destination, port = await start_destination(lab, tls=there)
        async with unchanged(source, destination):
            info = await check(source, inet(port))
            if here and there:
                assert info["status"] == "accepted"
            else:
                assert info["status"] == "failed"
                assert "'tls-creds'" in info["message"], info["message"]
        await require_listening(destination)
        await source.execute("migrate-set-parameters", {"tls-creds": ""})
        await destination.execute("migrate-set-parameters", {"tls-creds": ""})
        await require_good_migration(source, destination, port)


async def test_no_such_credentials() -> None:
    async with pc_lab() as lab:
        source = await start_source(lab)
        destination, port = await start_destination(lab)
        await source.execute("migrate-set-parameters", {"tls-creds": "absent"})
        async with unchanged(source, destination):
            info = await check(source, inet(port))
            assert info["status"] == "failed"
            assert "'absent'" in info["message"], info["message"]


async def test_unix(tmp_path: Path) -> None:
    async with pc_lab() as lab:
        source = await start_source(lab)
        destination = await lab.start("destination", "-incoming", "defer", under=UNDER)
        await destination.execute("migrate-incoming",
                                  channels("handshake", unix(tmp_path / "socket")))
        async with unchanged(source, destination):
            info = await check(source, unix(tmp_path / "socket"))
            assert info["status"] == "accepted"
            assert "multifd" in info["capabilities"]


FD = {"transport": "socket", "type": "fd", "str": "given"}


async def test_fd() -> None:
    async with pc_lab() as lab:
        source = await start_source(lab)
        destination, port = await start_destination(lab)
        before = fds(source)
        for kept in (False, True):      # whether the client keeps it open
            sock = socket.create_connection((LOOPBACK, port))
            with sock:
                await source.give(sock.fileno(), "given")
                if not kept:
                    sock.close()
                async with unchanged(source, destination):
                    info = await check(source, FD)
                assert info["status"] == "accepted", info
                assert "multifd" not in info["capabilities"]
                assert info["declined"] == [{"capability": "multifd",
                                             "reason": "this transport carries a single "
                                                       "connection"}]
        assert fds(source) == before
        await require_good_migration(source, destination, port)


async def test_fd_that_is_no_good() -> None:
    async with pc_lab() as lab:
        source = await start_source(lab)
        _, port = await start_destination(lab)
        async with unchanged(source):
            before = fds(source)
            with pytest.raises(NotSeen, match="given"):
                await begin_check(source, FD)
            datagrams = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
            for bad in (*os.pipe(), *(one.detach() for one in datagrams)):
                await source.give(bad, "given")
                os.close(bad)
                with pytest.raises(NotSeen, match="bidirectional socket"):
                    await begin_check(source, FD)
            assert fds(source) == before
            assert "handshake" not in await source.migration()
        # As for a migration: multifd is set, and there is no way for it.
        await set_capabilities(source, "multifd")
        with socket.create_connection((LOOPBACK, port)) as sock:
            await source.give(sock.fileno(), "given")
            with pytest.raises(NotSeen, match="multi-channel"):
                await begin_check(source, FD)
        assert "handshake" not in await source.migration()


async def test_fd_without_credentials() -> None:
    """It begins like any other one, and fails; the descriptor is gone."""
    async with pc_lab() as lab:
        source = await start_source(lab)
        await source.execute("migrate-set-parameters", {"tls-creds": "absent"})
        before = fds(source)
        ours, theirs = socket.socketpair()
        with ours, theirs:
            await source.give(theirs.fileno(), "given")
            async with unchanged(source):
                told = await check(source, FD)
            assert told["status"] == "failed" and "'absent'" in told["message"], told
            assert fds(source) == before
        await source.execute("migrate-set-parameters", {"tls-creds": ""})
        destination, port = await start_destination(lab)
        await require_good_migration(source, destination, port)


async def test_fd_with_a_silent_peer() -> None:
    async with pc_lab() as lab:
        source = await start_source(lab)
        await set_capabilities(source, "events")
        ours, theirs = socket.socketpair()
        with ours, theirs:
            await source.give(theirs.fileno(), "given")
            await begin_check(source, FD)
            await cancel(source)


async def test_nobody_listens(tmp_path: Path) -> None:
    async with pc_lab() as lab:
        source = await start_source(lab)
        async with unchanged(source):
            with closed_port() as port:
                told = [(await check(source, address), words) for address, words in (
                    (inet(port), "Connection refused"),
                    (unix(tmp_path / "absent"), "No such file"),
                    (inet(1) | {"host": "no.such.host.invalid"}, "invalid"))]
            for info, words in told:
                assert info["status"] == "failed"
                assert words in info["message"], info["message"]
                assert "session" not in info and not info["issues"]


async def test_legacy_destination() -> None:
    async with pc_lab() as lab:
        source = await start_source(lab)
        _, port = await start_destination(lab, kind="main")
        async with unchanged(source):
            info = await check(source, inet(port))
            assert info["status"] == "failed"
            assert "channel of type 'handshake'" in info["message"], info["message"]


@pytest.mark.parametrize("banner, words", [
    (b"SSH-2.0-OpenSSH_9.2p1\r\n", "SSH"),
    (b"HTTP/1.1 400 Bad Request\r\n\r\n", "HTTP"),
    (b"\x15\x03\x03\x00\x02\x02\x28\x15\x03", "TLS"),
    (b"220 mail ESMTP\r\n", "something else"),
    (b"", "channel of type 'handshake'"),
    (header(), "closed the connection"),
    (header("multifd"), "'multifd'"),
    (header() + frame(HELLO, {}), "HELLO"),
    (header() + frame(COMMIT, {}), "COMMIT"),
    (header() + frame(ACCEPT, b"garbage"), "malformed"),
    (header() + frame(ACCEPT, {"version": 1, "capabilities": ["return-path"]}), "session"),
    (header(session=b"x" * 16) + frame(ACCEPT, {"version": 7, "capabilities": ["return-path"]}),
     "version 7"),
    (header() + frame(REJECT, b"garbage"), "refused"),
], ids=["ssh", "http", "tls-alert", "smtp", "closes", "header", "multifd", "hello", "commit",
        "malformed", "no-session", "version", "reject"])
async def test_something_else_listens(banner: bytes, words: str) -> None:
    async with pc_lab() as lab:
        source = await start_source(lab)
        async with unchanged(source), FakeDestination() as other:
            await begin_check(source, inet(other.port))
            peer = await other.next()
            await peer.send(banner)
            await peer.read_hello()      # what is left unread would reset the connection
            peer.close()
            info = await verdict(source)
            assert info["status"] in ("failed", "rejected")
            assert (info["status"] == "rejected") == (words == "refused")
            assert words in info["message"], info["message"]


# Guests


async def pause(source: Machine) -> None:
    await source.execute("stop")


@pytest.mark.parametrize("options, run_state", [((), "running"), ((), "paused"),
                                                (("-S",), "prelaunch")],
                         ids=["running", "paused", "prelaunch"])
async def test_run_states(options: tuple[str, ...], run_state: str) -> None:
    async with pc_lab() as lab:
        source = await start_source(lab, options=options)
        destination, port = await start_destination(lab)
        if run_state == "paused":
            await pause(source)
        assert (await source.execute("query-status"))["status"] == run_state
        async with unchanged(source, destination):
            with source.events() as listener:
                assert (await check(source, inet(port)))["status"] == "accepted"
                assert not await events_of(listener, 0, source)


BLOCKED = {
    "blocker": ("-object", "memory-backend-ram,id=shared,size=1M,share=on",
                "-device", "ivshmem-plain,memdev=shared"),
    "state": ("-device", "qemu-xhci", "-device", "usb-wacom-tablet"),
}


@pytest.mark.parametrize("options", BLOCKED.values(), ids=BLOCKED)
async def test_unmigratable(options: tuple[str, ...]) -> None:
    """`migrate` would say so at once; a check says that, and all else."""
    async with pc_lab() as lab:
        source = await start_source(lab, options=options)
        destination, port = await start_destination(lab)
        with pytest.raises(NotSeen) as refusal:
            await begin(source, inet(port))
        async with unchanged(source, destination):
            info = await check(source, inet(port))
            assert info["status"] == "rejected"
            found = [issue for issue in info["issues"] if issue["code"] == "unmigratable"]
            assert len(found) == 1 and found[0]["severity"] == "error"
            reason = found[0].get("subject") or found[0]["message"].split(": ", 1)[1]
            assert reason in str(refusal.value)
            assert any(issue["code"] == "section-missing" for issue in info["issues"])


async def test_warnings_as_errors() -> None:
    """A device that only the destination has."""
    async with pc_lab() as lab:
        source = await start_source(lab)
        destination, port = await start_destination(lab, options=["-device", "i6300esb"])
        profile = await source.execute("query-migrate-profile")
        for strict in (False, True):
            options: Options = {"warnings-as-errors": strict}
            async with unchanged(source, destination):
                info = await check(source, inet(port), options)
                judged = await destination.execute("check-migrate-profile", {
                    "profile": profile, "options": options})
                assert info["status"] == ("rejected" if strict else "accepted")
                assert judged["compatible"] != strict
                assert judged["issues"] == info["issues"]
                assert [(issue["code"], issue["severity"]) for issue in differences(info)] == [
                    ("section-extra", "warning")]
        assert (await migrate(source, port, STRICTLY))["status"] == "failed"
        await require_good_migration(source, destination, port)


async def test_errors_are_not_crowded_out() -> None:
    """By the warnings about the CPUs that only the destination has."""
    async with pc_lab() as lab:
        source = await start_source(lab)
        destination, port = await start_destination(lab, options=["-smp", "100", "-m", "32"])
        profile = await source.execute("query-migrate-profile")
        async with unchanged(source, destination):
            info = await check(source, inet(port))
            told = (await destination.migration())["handshake"]
            judged = await destination.execute("check-migrate-profile", {"profile": profile})
        for answer in (info, told, judged):
            errors = [issue for issue in answer["issues"] if issue["severity"] == "error"]
            assert answer["issues"][:len(errors)] == errors
            assert (errors[0]["code"], errors[0]["subject"]) == ("ram-block-size", "pc.ram")
            # A 'pc' of QEMU 11 has state for each CPU that could be plugged.
            assert {issue["code"] for issue in errors[1:]} <= {"section-schema"}
            assert len(answer["issues"]) == 256 and answer["issues-omitted"] > 30
        assert "pc.ram" in info["message"] and info["status"] == "rejected"


# The end


async def quit_cleanly(machine: Machine) -> None:
    with contextlib.suppress(NotSeen):      # it may be faster than its answer
        await machine.execute("quit")
    await asyncio.wait_for(machine.gone(), PATIENCE)
    assert machine.exit_status == 0
    assert not machine.errors


@by_phase
async def test_source_quits(stuck: Phase, tls: bool, tmp_path: Path) -> None:
    async with pc_lab() as lab:
        source = await start_source(lab, tls=tls)
        async with stuck(source, tmp_path):
            await quit_cleanly(source)


async def test_destination_quits() -> None:
    """With checks in all phases that it can have."""
    async with pc_lab() as lab:
        destination, port = await start_destination(lab)
        async with contextlib.AsyncExitStack() as stack:
            words = header() + frame(HELLO, hello(purpose="check"))
            for said in (words[:30], words[:100], words):
                peer = await Peer.connect(port)
                stack.callback(peer.close)
                await peer.send(said)
            await peer.read_header()
            await quit_cleanly(destination)


async def test_source_dies_within_a_check() -> None:
    async with pc_lab() as lab:
        source = await start_source(lab)
        destination, port = await start_destination(lab)

        async def kill(line: Line) -> None:
            await line.reach()
            await line.hear("source")
            source.kill()
            await line.carry_both()

        async with Relay(port, kill) as relay, unchanged(destination):
            await begin_check(source, inet(relay.port))
            await source.gone()
            await relay.quiet()
        other = await start_source(lab, "other")
        await require_good_migration(other, destination, port)
        await wait_running(destination)
