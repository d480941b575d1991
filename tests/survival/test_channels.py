# SPDX-License-Identifier: GPL-2.0-or-later
"""Every channel is opened by the handshake, answered, and complete before COMMIT."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import re
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import NamedTuple, Optional

import pytest
from machine import LOOPBACK, Json, Lab, Machine, until
from processes import (ENDED, NO_MULTIFD, PATIENCE, PROMPT, STRICTLY, Options, begin, check, end,
                       fds, inet, pc_lab, require_good_migration, require_listening,
                       require_success, set_capabilities, set_channels, small_lab,
                       start_destination, start_source, verdict, wait_running)
from relay import Line, Relay, Treatment
from strangers import anonymous_server, join, join_tls
from wire import (ABORT, ACCEPT, COMMIT, FEATURES, HEADER_SIZE, LAST_WORD, SESSION,
                  FakeDestination, Header, Peer, frame, header, hello, message_of, without_grease)

# From ACCEPT to COMMIT, when nobody answers any more: 5 seconds, and less than the 20 that
# those have who make steps
LIMIT = 10.0
AT_ONCE = 4.0           # when it is plain that there will be no answer
PAUSE = 2.4             # two of them are less than 5 seconds, and three are more
CHANNELS = 3
TIMEOUT = 4             # less than 5
DELAY = 0.05            # one way
MANY = 40               # more than are opened at a time
SLOW = 64 << 10         # bytes a second
MARGIN = 4              # files that have nothing to do with channels


class Case(NamedTuple):
    """What a source would like, or has to have."""

    capability: str
    channel: str
    optional: Optional[Options]     # the argument for the one
    required: list[str]             # what is set for the other


MULTIFD = Case("multifd", "multifd", None, ["multifd"])
PREEMPT = Case("postcopy-preempt", "preempt",
               {"optional-capabilities": ["postcopy-ram", "postcopy-preempt"]},
               ["postcopy-ram", "postcopy-preempt"])


# Networks that let the main channel through, and what becomes of the others

class Network(NamedTuple):
    """`others` is called with each further connection, `first` with the main one."""

    reason: str                     # what a user has to be told, a regular expression
    silent: bool = False            # the source has to find out by itself
    tls: bool = False
    first: Optional[Callable[[Relay], Awaitable[None]]] = None
    others: Optional[Callable[[Line, Path], Awaitable[None]]] = None

    def treatment(self, directory: Path, through: int = 0) -> Treatment:
        """That many others get through as well."""
        async def treat(line: Line) -> None:
            if not line.number and self.first:
                await self.first(line.relay)
            if line.number <= through:
                await line.carry_both()
            elif self.others:
                await self.others(line, directory)

        return treat


async def swallow(line: Line, _: Path) -> None:
    while await line.hear("source"):
        pass


async def hang_up(line: Line, _: Path) -> None:
    line.close()


async def reset(line: Line, _: Path) -> None:
    line.reset()


def say(words: bytes) -> Callable[[Line, Path], Awaitable[None]]:
    async def others(line: Line, _: Path) -> None:
        with contextlib.suppress(OSError):
            async with line.answer() as peer:
                await peer.send(words)
                await peer.ended(PATIENCE)

    return others


def answer(change: Callable[[Header], bytes],
           tls: bool) -> Callable[[Line, Path], Awaitable[None]]:
    """Somebody who knows handshakes, behind TLS or not."""
    async def others(line: Line, directory: Path) -> None:
        # What another one was answered may be the end of this one.
        with contextlib.suppress(OSError, EOFError):
            async with line.answer(anonymous_server(directory) if tls else None) as peer:
                asked = await peer.read_header()
                line.said["source"] += peer.received
                await peer.send(change(asked))
                await peer.ended(PATIENCE)

    return others


def nothing(_: Header) -> bytes:
    return b""


def other_session(asked: Header) -> bytes:
    return header(asked.name, asked.number, os.urandom(16))


def other_name(asked: Header) -> bytes:
    return header("main", asked.number, asked.session)


def other_index(asked: Header) -> bytes:
    return header(asked.name, asked.number + 1, asked.session)


HTTP = b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n"
SSH = b"SSH-2.0-OpenSSH_9.2p1\r\n"
ENDED_WORDS = "closed|reset|[Bb]roken pipe"
FOREIGN = "not a migration handshake"
ANOTHER = "took it for"
LATE = "5 seconds"

NETWORKS = {
    "refused": Network("refused", first=Relay.refuse),
    "hung-up": Network(ENDED_WORDS, others=hang_up),
    "reset": Network(ENDED_WORDS, others=reset),
    "http": Network(FOREIGN, others=say(HTTP)),
    "ssh": Network(FOREIGN, others=say(SSH)),
    "other-session": Network(ANOTHER, others=answer(other_session, False)),
    "other-name": Network(ANOTHER, others=answer(other_name, False)),
    "other-index": Network(ANOTHER, others=answer(other_index, False)),
    "refused-tls": Network("refused", tls=True, first=Relay.refuse),
    "hung-up-tls": Network("TLS", tls=True, others=hang_up),
    "http-tls": Network("TLS", tls=True, others=say(HTTP)),
    "other-session-tls": Network(ANOTHER, tls=True, others=answer(other_session, True)),
    "other-name-tls": Network(ANOTHER, tls=True, others=answer(other_name, True)),
    "other-index-tls": Network(ANOTHER, tls=True, others=answer(other_index, True)),
    "dropped": Network(LATE, True, first=Relay.drop),
    "swallowed": Network(LATE, True, others=swallow),
    "dropped-tls": Network(LATE, True, True, first=Relay.drop),
    "swallowed-tls": Network(f"TLS.*{LATE}", True, True, others=swallow),
    "swallowed-in-tls": Network(LATE, True, True, others=answer(nothing, True)),
}
PROMPT_ONES = [name for name, network in NETWORKS.items() if not network.silent]
SILENT_ONES = [name for name, network in NETWORKS.items() if network.silent]


class Attempt:
    """Source, network and destination, and what becomes of a migration between them."""

    def __init__(self, network: str, case: Case, through: int, directory: Path):
        self.name = f"{network}, {case.capability}, {through} through"
        self._network = NETWORKS[network]
        self._case = case
        self._through = through
        self._directory = directory
        self._seconds = LIMIT if self._network.silent else AT_ONCE
        self._lab = pc_lab()

    async def __aenter__(self) -> Attempt:
        await self._lab.__aenter__()
        self._source = await start_source(self._lab, tls=self._network.tls)
        self._destination, self._port = await start_destination(self._lab, tls=self._network.tls)
        # So that it can be seen that a guest stops after COMMIT only.
        await set_capabilities(self._source, "events")
        await set_channels(self._source, CHANNELS)
        return self

    async def __aexit__(self, *reason: object) -> None:
        await self._lab.__aexit__(*reason)

    def _relay(self) -> Relay:
        return Relay(self._port, self._network.treatment(self._directory, self._through))

    async def optional(self) -> None:
        """It goes on without, and both sides say why."""
        with self._source.events("STOP", "MIGRATION_HANDSHAKE") as events:
            async with self._relay() as relay:
                await begin(self._source, inet(relay.port), self._case.optional)
                accepted = await self._accepted()
                await agree(self._source, PATIENCE)
                await self._require_in_time(relay.lines[0], accepted, COMMIT)
                await require_success(self._source, self._destination)
            assert [event["event"] for event in events.clear()] == ["MIGRATION_HANDSHAKE", "STOP"]
        here, there = [await machine.handshake() for machine in (self._source, self._destination)]
        assert here["status"] == there["status"] == "accepted"
        assert here["declined"] == there["declined"]
        reasons = {one["capability"]: one["reason"] for one in here["declined"]}
        assert list(reasons) == [self._case.capability]
        self._require_reason(reasons[self._case.capability], relay)
        for info in (here, there):
            assert "return-path" in info["capabilities"]
            assert self._case.capability not in info["capabilities"]
            assert not info.get("parameters")
        if not self._network.tls:
            said = message_of(relay.lines[0].said["source"], COMMIT)
            assert said and without_grease(said["without"]) == here["declined"]

    async def required(self) -> None:
        """It fails and says why, and nobody has noticed."""
        await set_capabilities(self._source, *self._case.required)
        with self._source.events("STOP") as stops:
            async with self._relay() as relay:
                await begin(self._source, inet(relay.port))
                accepted = await self._accepted()
                info = await end(self._source)
                await self._require_in_time(relay.lines[0], accepted, ABORT)
            assert not stops.clear()
        assert info["status"] == info["handshake"]["status"] == "failed"
        self._require_reason(info["error-desc"], relay)
        assert info["handshake"]["message"] in info["error-desc"]
        assert await self._source.is_running()
        await require_listening(self._destination, PROMPT)
        await require_good_migration(self._source, self._destination, self._port)
        assert self._case.capability in (await self._destination.handshake())["capabilities"]

    async def interrupted(self, command: str) -> None:
        """Within a second; then the destination is free, and a good migration succeeds."""
        execute, arguments, status, words = COMMANDS[command]
        options = {**(self._case.optional or {}), "timeout": 60 if execute else TIMEOUT}
        with self._source.events("STOP") as stops:
            async with self._relay() as relay:
                start = time.monotonic()
                await begin(self._source, inet(relay.port), options)
                await self._wait_until_stuck(relay)
                for machine in (self._source, self._destination):
                    assert (await machine.handshake())["status"] == "in-progress"
                if execute:
                    start = time.monotonic()
                    await self._source.execute(execute, arguments)
                else:
                    start += TIMEOUT
                info = await end(self._source)
                assert time.monotonic() - start < PROMPT
                await require_listening(self._destination, PROMPT)
            assert not stops.clear()
        assert info["status"] == info["handshake"]["status"] == status
        assert words in info.get("error-desc", "")
        assert not execute or "tls-creds" not in info.get("error-desc", "")
        assert await self._source.is_running()
        await require_good_migration(self._source, self._destination, self._port)

    async def _wait_until_stuck(self, relay: Relay) -> None:
        """All channels have come as far as they will."""
        count = CHANNELS if self._case is MULTIFD else 1
        said = 1 if self._network is NETWORKS["swallowed-tls"] else HEADER_SIZE

        async def is_stuck() -> bool:
            if self._network.first:
                return connecting(relay.port) == count + 1      # one of which fills the queue
            others = relay.lines[1:]
            return len(others) == count and all(len(line.said["source"]) >= said
                                                for line in others)

        await until("all channels to be stuck", PATIENCE, is_stuck, every=0.002)

    async def _accepted(self) -> float:
        async def told() -> bool:
            return "handshake" in await self._destination.migration()

        await until("ACCEPT", PATIENCE, told, every=0.002)
        return time.monotonic()

    async def _require_in_time(self, main: Line, accepted: float, last: int) -> None:
        """TLS hides when words are said, but not when the two sides know them."""
        over = time.monotonic()
        if not self._network.tls:
            async def heard() -> bool:
                return "source" in main.over

            await until("the source's last word", PROMPT, heard, every=0.001)
            accepted, over = main.over["destination"], main.over["source"]
            assert message_of(main.said["source"], last) is not None
        assert over - accepted < self._seconds

    def _require_reason(self, reason: str, relay: Relay) -> None:
        """Which channel did not get where, and why."""
        for word in (f"'{self._case.channel}'", f"{LOOPBACK}:{relay.port}"):
            assert word in reason, reason
        assert re.search(self._network.reason, reason), reason


def connecting(port: int) -> int:
    """How many wait for an answer to their SYN to a port."""
    wanted = f"0100007F:{port:04X} 02"
    return sum(wanted in line for line in Path("/proc/net/tcp").read_text().splitlines())


async def agree(source: Machine, limit: float) -> None:
    """Up to COMMIT, and the guest runs all the while."""
    async def agreed() -> bool:
        running = await source.is_running()
        info = await source.migration()
        if info["handshake"]["status"] != "in-progress":
            return True
        assert running and info["status"] not in ENDED
        return False

    await until("COMMIT", limit, agreed, every=0.005)


by_need = pytest.mark.parametrize("required", [False, True], ids=["optional", "required"])


@by_need
@pytest.mark.parametrize("network, case, through", [
    *((name, MULTIFD, 0) for name in PROMPT_ONES), ("other-index", MULTIFD, 1),
    ("refused", PREEMPT, 0), ("other-session", PREEMPT, 0), ("other-name-tls", PREEMPT, 0)],
    ids=lambda one: getattr(one, "capability", None))
async def test_no_channel(network: str, case: Case, through: int, required: bool,
                          tmp_path: Path) -> None:
    async with Attempt(network, case, through, tmp_path) as attempt:
        await (attempt.required() if required else attempt.optional())


async def all_at_once(attempts: list[Attempt],
                      run: Callable[[Attempt], Awaitable[None]]) -> None:
    """Those who have to wait do so together, once all machines are there."""
    ready = asyncio.Barrier(len(attempts))

    async def one(attempt: Attempt) -> None:
        async with attempt:
            await ready.wait()
            try:
                await run(attempt)
            except Exception as error:
                error.add_note(attempt.name)
                raise

    async with asyncio.TaskGroup() as group:
        for attempt in attempts:
            group.create_task(one(attempt))


SILENCE = [*((name, MULTIFD, 0) for name in SILENT_ONES),
           ("swallowed", MULTIFD, 2), ("dropped", PREEMPT, 0), ("swallowed-tls", PREEMPT, 0)]


@by_need
async def test_silence(required: bool, tmp_path: Path) -> None:
    attempts = [Attempt(*one, tmp_path) for one in SILENCE]
    await all_at_once(attempts, Attempt.required if required else Attempt.optional)


async def test_a_check_opens_no_channel(tmp_path: Path) -> None:
    """It says so, and what would be tried."""
    async with pc_lab() as lab:
        source = await start_source(lab)
        destination, port = await start_destination(lab)
        async with Relay(port, NETWORKS["refused"].treatment(tmp_path)) as relay:
            info = await check(source, inet(relay.port))
            assert len(relay.lines) == 1
        assert info["status"] == "accepted"
        assert "multifd" in info["capabilities"]
        assert [issue["severity"] for issue in info["issues"]
                if issue["code"] == "channels-untried"] == ["info"]
        await require_listening(destination)
        # There is nothing to be tried here.
        info = await check(source, inet(port), NO_MULTIFD)
        assert info["status"] == "accepted"
        assert "channels-untried" not in [issue["code"] for issue in info["issues"]]


# Many channels

@pytest.mark.parametrize("far", [False, True], ids=["near", "far"])
@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
@pytest.mark.parametrize("count", [16, 255])
async def test_many_channels(count: int, tls: bool, far: bool) -> None:
    """They all get through, and not one after the other."""
    async def treat(line: Line) -> None:
        await (line.carry_late(DELAY) if far else line.carry_both())

    async with pc_lab() as lab:
        source = await start_source(lab, tls=tls)
        destination, port = await start_destination(lab, tls=tls)
        await set_capabilities(source, "events")
        await set_channels(source, count)
        with source.events("STOP", "MIGRATION_HANDSHAKE") as events:
            async with Relay(port, treat) as relay:
                await begin(source, inet(relay.port))
                await agree(source, PATIENCE)
                assert len(relay.lines) == 1 + count
                main = relay.lines[0]
                if not tls:
                    # For each of them: connect, header, answer.
                    assert main.over["source"] - main.over["destination"] < count * 4 * DELAY / 2
                await require_success(source, destination)
            assert [event["event"] for event in events.clear()] == ["MIGRATION_HANDSHAKE", "STOP"]
        for machine in (source, destination):
            info = await machine.handshake()
            assert info["status"] == "accepted"
            assert not info["declined"], info["declined"]
            assert "multifd" in info["capabilities"]
            assert info["parameters"]["multifd-channels"] == count


async def test_required_many() -> None:
    """Without anything in between, and with what the user has set."""
    async with pc_lab() as lab:
        source = await start_source(lab)
        destination, port = await start_destination(lab)
        await set_channels(source, 255)
        await set_capabilities(source, "multifd")
        await require_good_migration(source, destination, port)
        assert "multifd" in (await destination.handshake())["capabilities"]


# Nobody has to wait for channels that are being opened

COMMANDS: dict[str, tuple[Optional[str], Json, str, str]] = {
    "cancel": ("migrate_cancel", {}, "cancelled", ""),
    "yank": ("yank", {"instances": [{"type": "migration"}]}, "failed", "yank"),
    "timeout": (None, {}, "failed", f"{TIMEOUT} seconds"),
}
STUCK = [*((name, MULTIFD) for name in SILENT_ONES),
         ("dropped", PREEMPT), ("swallowed", PREEMPT), ("swallowed-in-tls", PREEMPT)]


@pytest.mark.parametrize("command", COMMANDS)
async def test_interrupted(command: str, tmp_path: Path) -> None:
    """While they connect, in TLS, and while they wait for an answer."""
    attempts = [Attempt(name, case, 0, tmp_path) for name, case in STUCK]
    await all_at_once(attempts, lambda attempt: attempt.interrupted(command))


@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
@pytest.mark.parametrize("command", ["cancel", "yank"])
async def test_interrupted_at_any_time(command: str, tls: bool) -> None:
    """Up to COMMIT, and nothing is left of any attempt."""
    execute, arguments, status, _ = COMMANDS[command]
    assert execute
    async with pc_lab() as lab:
        source = await start_source(lab, tls=tls)
        destination, port = await start_destination(lab, tls=tls)
        await set_channels(source, MANY)
        await source.execute("migrate-set-parameters", {"max-bandwidth": SLOW})
        async with Relay(port, lambda line: line.carry_late(DELAY / 5)) as relay:
            before = {machine: fds(machine) for machine in (source, destination)}

            async def nothing_left() -> bool:
                return all(fds(machine) <= count + MARGIN for machine, count in before.items())

            for step in itertools.count():
                await begin(source, inet(relay.port))
                await asyncio.sleep(0.002 * 1.4 ** step)
                if (await source.handshake())["status"] != "in-progress":
                    break
                await source.execute(execute, arguments)
                info = await end(source, PROMPT)
                if info["handshake"]["status"] == "accepted":
                    break
                assert info["status"] == info["handshake"]["status"] == status
                assert await source.is_running()
                await require_listening(destination, PROMPT)
                await until("all files to be closed", PROMPT, nothing_left)
        assert step > 5


# Sources that are not QEMU

class Scripted:
    """A source that has got the session, and the destination that it is of."""

    def __init__(self, destination: Machine, port: int, tls: bool, stack: AsyncExitStack):
        self.destination = destination
        self.port = port
        self._join = join_tls if tls else join
        self._stack = stack

    async def ask(self, said: Json) -> None:
        self.main = await self._join(self.port, self._stack)
        answer, kind, self.answer = await self.main.ask(said)
        assert kind == ACCEPT, self.answer
        self.session = answer.session

    async def say(self, words: bytes) -> Peer:
        """On a further connection."""
        peer = await self._join(self.port, self._stack)
        await peer.send(words)
        return peer

    def header(self, index: int, name: str = "multifd") -> bytes:
        return header(name, index, self.session)

    async def open(self, index: int, name: str = "multifd") -> Peer:
        peer = await self._join(self.port, self._stack)
        await asyncio.wait_for(peer.join(self.session, name, index), PROMPT)
        return peer

    async def require_answer(self, peer: Peer, index: int) -> None:
        answer = await asyncio.wait_for(peer.read_header(), PROMPT)
        assert answer == (self.session, "multifd", index)

    async def require_committed(self) -> Json:
        """The loader has the session now, and waits for the stream."""
        info = await verdict(self.destination, PROMPT)
        assert info["status"] == "accepted", info

        async def loads() -> bool:
            return (await self.destination.migration())["status"] == "active"

        await until("the loader", PROMPT, loads, every=0.002)
        return info

    async def require_failed(self, last_word: bool) -> str:
        """In words, if the source can read them, and the destination listens on."""
        if last_word:
            _, said = await asyncio.wait_for(self.main.read_frame(LAST_WORD), PROMPT)
            assert said["message"].strip()
            assert said["guest"] == "not-started"
            assert isinstance(said.get("issues", []), list)
        assert not await self.main.read_to_end(PROMPT)
        await require_listening(self.destination, PROMPT)
        info = await self.destination.handshake()
        assert info["status"] == "failed", info
        assert info["message"].strip()
        assert not last_word or said["message"] == info["message"]
        return info["message"]


@contextlib.asynccontextmanager
async def scripted(lab: Lab, said: Json, tls: bool = False) -> AsyncIterator[Scripted]:
    destination, port = await start_destination(lab, tls=tls)
    async with AsyncExitStack() as stack:
        source = Scripted(destination, port, tls, stack)
        await source.ask(said)
        yield source


async def require_dropped(peer: Peer) -> None:
    """Without an answer; there may be a reset, as something is left unread."""
    with contextlib.suppress(ConnectionError):
        assert not await peer.read_to_end(PROMPT)


REQUIRED = hello(multifd=2)
OPTIONAL = hello(multifd=2, optional=True) | {
    "optional-capabilities": ["multifd", "switchover-ack"]}

# What comes on a connection that is none of the two that are missing.
BAD: dict[str, Callable[[Scripted], bytes]] = {
    "another session": lambda source: header("multifd", 1, os.urandom(16)),
    "no session": lambda source: header("multifd", 1),
    "another name": lambda source: source.header(1, "else"),
    "a name that is none": lambda source: source.header(1, "multi fd"),
    "a channel of another capability": lambda source: source.header(0, "preempt"),
    "main with another index": lambda source: source.header(1, "main"),
    "an index out of range": lambda source: source.header(0xffffffff),
    "a duplicate": lambda source: source.header(0),
    "one too many": lambda source: source.header(2),
    "a header that is too short": lambda source: long_header(source.header(1), 63),
    "a header that is too long": lambda source: long_header(source.header(1), 4097),
    "HTTP": lambda source: b"GET / HTTP/1.1\r\n\r\n",
    "a stream": lambda source: b"QEVM" + bytes(60),
}


def long_header(usual: bytes, size: int) -> bytes:
    """With an extension that nobody knows yet."""
    return (usual[:6] + size.to_bytes(2, "big") + usual[8:]).ljust(size, b"\xa5")


@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
async def test_bad_channels_are_dropped_alone(tls: bool) -> None:
    async with small_lab() as lab, scripted(lab, REQUIRED, tls) as source:
        first = await source.open(0)
        for words in (b"", source.header(1)[:40]):
            await source.say(words)
        for what, words in BAD.items():
            try:
                peer = await source.say(words(source))
                # The two that others have been sent before are answered by words.
                if what not in ("HTTP", "a stream"):
                    await require_dropped(peer)
            except Exception as error:
                error.add_note(what)
                raise
        assert (await source.destination.handshake())["status"] == "in-progress"
        second = await source.open(1)
        await source.main.commit()
        info = await source.require_committed()
        assert "multifd" in info["capabilities"]
        for peer in (first, second, source.main):
            assert not await peer.ended(0.01)


async def test_bad_channels_in_a_real_migration() -> None:
    """They come while one of the source's own is on its way."""
    go_on = asyncio.Event()

    async def treat(line: Line) -> None:
        if line.number == 2:
            await go_on.wait()
        await line.carry_both()

    async with pc_lab() as lab, AsyncExitStack() as stack:
        source = await start_source(lab)
        destination, port = await start_destination(lab)
        bad = Scripted(destination, port, False, stack)
        async with Relay(port, treat) as relay:
            await begin(source, inet(relay.port))

            async def all_there() -> bool:
                return len(relay.lines) == 3

            await until("all channels", PATIENCE, all_there, every=0.002)
            bad.session = bytes(relay.lines[0].said["destination"][8:24])
            for what, words in BAD.items():
                if what != "a duplicate":       # maybe the other one is on its way
                    await bad.say(words(bad))
            assert (await destination.handshake())["status"] == "in-progress"
            go_on.set()
            await require_success(source, destination)
        assert "multifd" in (await source.handshake())["capabilities"]


@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
async def test_unusual_headers(tls: bool) -> None:
    """In any order, one byte at a time, and longer than they are today."""
    async with small_lab() as lab, scripted(lab, REQUIRED, tls) as source:
        slow = await source.say(b"")
        await slow.send_slowly(long_header(source.header(1), 70), 0.001)
        await source.require_answer(slow, 1)
        # Nothing that comes behind the header is the handshake's.
        long = await source.say(long_header(source.header(0), 4096) + b"later")
        await source.require_answer(long, 0)
        await source.main.commit()
        await source.require_committed()


async def test_channels_go_with_their_session() -> None:
    async with small_lab() as lab, scripted(lab, REQUIRED) as source:
        channels = [await source.open(index) for index in (0, 1)]
        source.main.finish()
        for peer in channels:
            assert await peer.ended(PROMPT)
        await require_listening(source.destination, PROMPT)
        await require_dropped(await source.say(source.header(0)))
        old = source.session
        await source.ask(REQUIRED)
        assert source.session != old
        await require_dropped(await source.say(header("multifd", 0, old)))
        for index in (0, 1):
            await source.open(index)
        await source.main.commit()
        await source.require_committed()


async def good_migration(lab: Lab, source: Scripted) -> None:
    """The next one, of a QEMU, with all channels."""
    good = await start_source(lab)
    await require_good_migration(good, source.destination, source.port)
    assert "multifd" in (await good.handshake())["capabilities"]


@pytest.mark.parametrize("features", [FEATURES, ["named-channels"]], ids=["late-error", "mute"])
@pytest.mark.parametrize("said", [REQUIRED, OPTIONAL], ids=["required", "optional"])
@pytest.mark.parametrize("count", [0, 1])
async def test_commit_too_early(count: int, said: Json, features: list[str]) -> None:
    said = {**said, "features": features}
    async with small_lab() as lab, scripted(lab, said) as source:
        assert sorted(without_grease(source.answer["features"])) == sorted(said["features"])
        channels = [await source.open(index) for index in range(count)]
        await source.main.commit()
        message = await source.require_failed("late-error" in features)
        assert "missing" in message
        for peer in channels:
            assert await peer.ended(PROMPT)
        await good_migration(lab, source)


@pytest.mark.parametrize("count", [0, 1, 2])
async def test_without(count: int) -> None:
    """Its channels are let go, if there are some; nothing else is."""
    reason = "only one connection gets through\tto \u202etcp:1.2.3.4:5: connection refused"
    async with small_lab() as lab, scripted(lab, OPTIONAL) as source:
        channels = [await source.open(index) for index in range(count)]
        await source.main.commit(more={"without": [
            {"capability": "multifd", "reason": reason, "grease-00000000": 0}]})
        info = await source.require_committed()
        assert sorted(info["capabilities"]) == ["return-path", "switchover-ack"]
        assert info["declined"] == [{"capability": "multifd", "reason": re.sub(
            "[\t\u202e]", " ", reason)}]
        assert not info.get("parameters")
        for peer in channels:
            assert await peer.ended(PROMPT)


def give_up(*names: str) -> list[Json]:
    return [{"capability": name, "reason": "no way"} for name in names]


WRONG_WORDS: dict[str, tuple[Json, object]] = {
    "required": (REQUIRED, give_up("multifd")),
    "not-offered": (REQUIRED, give_up("switchover-ack")),
    "not-effective": (REQUIRED, give_up("postcopy-preempt")),
    "no-channels": (OPTIONAL, give_up("switchover-ack")),
    "one-has-no-channels": (OPTIONAL, give_up("multifd", "switchover-ack")),
    "return-path": (OPTIONAL, give_up("return-path")),
    "unknown": (OPTIONAL, give_up("else")),
    "no-capability": (OPTIONAL, [{"reason": "no way"}]),
    "capability-is-no-string": (OPTIONAL, [{"capability": 7, "reason": "no way"}]),
    "reason-is-no-string": (OPTIONAL, [{"capability": "multifd", "reason": None}]),
    "object": (OPTIONAL, {"multifd": "no way"}),
    "null": (OPTIONAL, None),
}


@pytest.mark.parametrize("words", WRONG_WORDS)
async def test_without_what_is_needed(words: str) -> None:
    """All channels are there, but something is wrong with COMMIT."""
    said, without = WRONG_WORDS[words]
    async with small_lab() as lab, scripted(lab, said) as source:
        for index in range(2):
            await source.open(index)
        await source.main.commit(more={"without": without})
        await source.require_failed(True)
        await good_migration(lab, source)


# A destination may change its mind

async def exclude_handshakes(destination: Machine) -> None:
    await set_capabilities(destination, "mapped-ram")


async def add_a_device(destination: Machine) -> None:
    await destination.execute("device_add", {"driver": "e1000", "addr": "1d.0"})


@pytest.mark.parametrize("change, word", [(exclude_handshakes, "mapped-ram"),
                                          (add_a_device, "1d.0/e1000")],
                         ids=["setting", "device"])
async def test_destination_that_cannot_go_on(
        change: Callable[[Machine], Awaitable[None]], word: str) -> None:
    """It finds that when COMMIT comes, and tells the source, whose guest runs on."""
    held, go_on = asyncio.Event(), asyncio.Event()

    async def treat(line: Line) -> None:
        if not line.number:
            await line.carry_part("source", 1 << 20)
            held.set()
            await go_on.wait()
        await line.carry_both()

    async with pc_lab() as lab:
        source = await start_source(lab)
        destination, port = await start_destination(lab)
        async with Relay(port, treat) as relay:
            await begin(source, inet(relay.port), STRICTLY)
            await asyncio.wait_for(held.wait(), PATIENCE)
            await change(destination)
            go_on.set()
            info = await end(source)
        there = await destination.handshake()
        assert info["status"] == there["status"] == "failed"
        assert there["message"] in info["error-desc"]
        assert word in there["message"]
        await wait_running(source)
        await require_listening(destination, PROMPT)


# Destinations that are not QEMU

class Fake:
    """A destination up to ACCEPT, and the source that it is of."""

    def __init__(self, source: Machine, listener: FakeDestination):
        self.source = source
        self.listener = listener

    async def accept(self) -> list[tuple[Peer, Header]]:
        """Returns the channels that were opened then, and what they are, in order."""
        await begin(self.source, inet(self.listener.port))
        self.main = await self.listener.next()
        said = await self.main.read_hello()
        assert without_grease(said["features"]) == FEATURES
        assert not self.listener.has_next()
        await self.main.answer_hello(said, multifd=True)
        channels = []
        for _ in range(CHANNELS):
            peer = await self.listener.next()
            channels.append((peer, await peer.read_header()))
        channels.sort(key=lambda channel: channel[1])
        assert [asked for _, asked in channels] == [
            (SESSION, "multifd", index) for index in range(CHANNELS)]
        return channels

    async def commit(self, limit: float = PROMPT) -> Json:
        _, said = await asyncio.wait_for(self.main.read_frame(COMMIT), limit)
        assert (await verdict(self.source, PROMPT))["status"] == "accepted"
        return without_grease(said)


@contextlib.asynccontextmanager
async def fake_destination(lab: Lab, directory: Path, tls: bool = False) -> AsyncIterator[Fake]:
    source = await start_source(lab, tls=tls)
    await set_channels(source, CHANNELS)
    async with FakeDestination(anonymous_server(directory) if tls else None) as listener:
        yield Fake(source, listener)


def usual(asked: Header) -> bytes:
    return header(asked.name, asked.number, asked.session)


@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
async def test_commit_waits_for_the_last_answer(tls: bool, tmp_path: Path) -> None:
    async with small_lab() as lab, fake_destination(lab, tmp_path, tls) as fake:
        channels = await fake.accept()
        commit = asyncio.create_task(fake.commit())
        for peer, asked in reversed(channels):
            await asyncio.wait([commit], timeout=0.05)
            assert not commit.done()
            assert (await fake.source.handshake())["status"] == "in-progress"
            await peer.send(usual(asked))
        assert "without" not in await commit


async def test_slow_answers(tmp_path: Path) -> None:
    """The time that a source waits begins anew with each of them."""
    async with small_lab() as lab, fake_destination(lab, tmp_path) as fake:
        for peer, asked in await fake.accept():
            assert not await peer.ended(PAUSE)
            await peer.send(usual(asked))
        assert "without" not in await fake.commit()


GOOD_ANSWERS: dict[str, Callable[[Header], list[bytes]]] = {
    "longer": lambda asked: [long_header(usual(asked), 70)],
    "longest": lambda asked: [long_header(usual(asked), 4096)],
    "reserved": lambda asked: [usual(asked)[:44] + 20 * b"\xff"],
    "single-bytes": lambda asked: [bytes([byte]) for byte in usual(asked)],
}
BAD_ANSWERS: dict[str, Callable[[Header], bytes]] = {
    "other-session": other_session,
    "other-name": other_name,
    "other-index": other_index,
    "no-session": lambda asked: header(asked.name, asked.number),
    "garbage": lambda asked: os.urandom(8),
    "too-short": lambda asked: long_header(usual(asked), 63),
    "too-long": lambda asked: long_header(usual(asked), 4097),
    "half": lambda asked: usual(asked)[:32],
    "end": nothing,
}


@pytest.mark.parametrize("answers", GOOD_ANSWERS)
async def test_good_answers(answers: str, tmp_path: Path) -> None:
    async with small_lab() as lab, fake_destination(lab, tmp_path) as fake:
        for peer, asked in await fake.accept():
            for words in GOOD_ANSWERS[answers](asked):
                await peer.send(words)
                await asyncio.sleep(0.001)
        assert "without" not in await fake.commit()


@pytest.mark.parametrize("which", ["first", "last"])
@pytest.mark.parametrize("answer_is", BAD_ANSWERS)
async def test_bad_answers(answer_is: str, which: str, tmp_path: Path) -> None:
    """From one; the channels of the others are closed."""
    async with small_lab() as lab, fake_destination(lab, tmp_path) as fake:
        good = await fake.accept()
        bad, asked = good.pop(0 if which == "first" else -1)
        for peer, one in good if which == "last" else []:
            await peer.send(usual(one))
        await bad.send(BAD_ANSWERS[answer_is](asked))
        if answer_is in ("half", "end"):
            bad.finish()
        said = await fake.commit()
        assert [one["capability"] for one in said["without"]] == ["multifd"]
        assert "'multifd'" in said["without"][0]["reason"]
        for peer, _ in [*good, (bad, asked)]:
            assert await peer.ended(PROMPT)
        assert (await fake.source.handshake())["declined"] == said["without"]


LAST_WORDS: dict[str, tuple[bytes | Json, str]] = {
    "whole": ({"message": "the disk is gone", "guest": "not-started",
               "issues": [{"code": "device", "severity": "error", "message": "no disk"}]},
              "the disk is gone"),
    "just-a-message": ({"message": "the\ndisk is gone"}, "the disk is gone"),
    "odd": ({"message": "the disk is gone", "guest": 7, "issues": [7, {"code": 7}],
             "issues-omitted": "many", "else": None}, "the disk is gone"),
    "no-message": ({"message": 7}, ""),
    "empty": ({}, ""),
    "no-json": (b"{", ""),
}


@pytest.mark.parametrize("words", LAST_WORDS)
async def test_last_word(words: str, tmp_path: Path) -> None:
    """The source passes on what it can read of it, and its guest runs."""
    said, expected = LAST_WORDS[words]
    async with small_lab() as lab, fake_destination(lab, tmp_path) as fake:
        for peer, asked in await fake.accept():
            await peer.send(usual(asked))
        await fake.commit()
        await fake.main.send(frame(LAST_WORD, said))
        fake.main.finish()
        info = await end(fake.source, 2 * PROMPT)
        assert info["status"] == "failed"
        assert info["error-desc"].strip() and expected in info["error-desc"]
        await wait_running(fake.source)
        if words == "whole":
            assert "no disk" in [issue["message"] for issue in info["handshake"]["issues"]]
