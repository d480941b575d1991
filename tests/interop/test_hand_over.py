# SPDX-License-Identifier: GPL-2.0-or-later
"""Feature one-owner from either side, where the other one is QEMU: section "The end"."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, NamedTuple, Optional, Union

import pytest
from machine import Json, Machine, NotSeen, until
from processes import (NO_MULTIFD, Lab, begin, channels, end, inet, pc_lab, small_lab,
                       start_source, stop_process, unix, wait_running, wait_status)
from qmhs.frames import (ABORT, ACCEPT, COMMIT, HELLO, LAST_WORD, LOADED, START, Frame, Header,
                         Message, message, shut)
from qmhs.messages import NOT_STARTED, Hello, Reason, read_reason
from qmhs.negotiation import Here
from qmhs.roles import Destination, Source
from qmhs.strictjson import Object, compose, parse
from talk import (FEATURES, LIMIT, SILENCE, Listener, Talk, UnixListener, call, changed,
                  committed, end_of_stream, raw)
from test_as_destination import HEADER
from test_as_destination import MINIMUM as ACCEPTED

IN_DOUBT = "the destination was told to start the guest, and the connection ended before it said"
TOO_LATE = "it is too late to cancel"
NOT_GIVEN = "the source went away before it had given the guest to this QEMU"
NEVER = {"message": "the image is locked", "guest": NOT_STARTED}
REMARK = message(LAST_WORD, {"loaded": True})
UNKNOWN = Frame(0x3a3a, b"\xff", 0)
STRANGE = Frame(0x0b0b, b"{}")          # that is critical
SLOW = 4096                             # bytes a second
TIMES = 10                              # it is a race between two of its threads
PONG = Message(2, b"\0\0\0\1")


# A source that is QEMU


class Giving(NamedTuple):
    """One that has written all of its stream, and waits."""

    source: Machine
    talk: Talk
    stream: bytes

    async def loaded(self, value: Any = b"{}") -> None:
        await self.talk.say(Frame(LOADED, raw(value)))

    async def given(self) -> None:
        """It says START, whatever it was told with LOADED."""
        await self.loaded()
        await self.started()

    async def started(self) -> None:
        said = await self.talk.hear(len(self.stream) + 8)
        assert said[len(self.stream) + 4:][:4] == b"\0\x09\0\1"
        length = int.from_bytes(said[len(self.stream):][:4], "big")
        said = await self.talk.hear(len(self.stream) + 8 + length)
        assert isinstance(parse(said[len(self.stream) + 8:]), dict)
        assert len(self.talk.inbox.rest) == len(said)

    async def nothing_said(self) -> None:
        assert self.talk.inbox.rest == self.stream

    async def over(self, status: str, runstate: str) -> Json:
        info = await end(self.source)
        assert info["status"] == status, info

        async def settled() -> bool:
            return bool((await self.source.execute("query-status"))["status"] == runstate)

        await until(f"the source to be {runstate}", LIMIT, settled, every=0.002)
        assert (IN_DOUBT in info.get("error-desc", "")) == (runstate == "postmigrate"
                                                            and status == "failed")
        return info

    async def kept(self) -> Json:
        return await self.over("failed", "running")

    async def in_doubt(self) -> Json:
        info = await self.over("failed", "postmigrate")
        await self.source.execute("cont")
        assert await self.source.is_running()
        return info


@contextlib.asynccontextmanager
async def sending(features: list[str], lab: Optional[Lab] = None,
                  bandwidth: int = 0) -> AsyncIterator[tuple[Machine, Talk]]:
    async with lab or small_lab() as lab, Listener() as listener:
        source = await start_source(lab)
        await source.execute("migrate-set-parameters", {"max-bandwidth": bandwidth})
        await begin(source, inet(listener.port), NO_MULTIFD)
        talk = await listener.next()
        await talk.header()
        assert "one-owner" in (await talk.message(HELLO))["features"]
        await talk.say(HEADER, message(ACCEPT, changed(ACCEPTED, features=features)))
        await talk.message(COMMIT)
        yield source, talk


@contextlib.asynccontextmanager
async def giving(*left_out: str) -> AsyncIterator[Giving]:
    async with sending([name for name in FEATURES if name not in left_out]) as (source, talk):
        one = Giving(source, talk, await talk.stream())
        yield one
        talk.close()
        # It can migrate again.
        if await source.is_running():
            async with Listener() as listener:
                await begin(source, inet(listener.port), NO_MULTIFD)
                await (await listener.next()).header()


async def test_our_destination_is_given_the_guest() -> None:
    """From the first byte to the last one, by the implementation's own role."""
    async with small_lab() as lab, Listener() as listener:
        source = await start_source(lab)
        await begin(source, inet(listener.port), NO_MULTIFD)
        talk = await listener.next()
        destination = Destination(Here())
        while destination.state in ("waiting", "accepted"):
            await talk.say(destination.receive(await talk.read()))
        while not (size := end_of_stream(destination.stream)):
            destination.receive(await talk.read())
        assert len(destination.stream) == size
        await talk.say(destination.loaded(size))
        assert destination.state == "asking"
        while destination.state == "asking":
            await talk.say(destination.receive(await talk.read()))
        assert destination.state == "started", destination.problem
        assert (await end(source))["status"] == "completed"
        assert (await source.handshake())["features"] == FEATURES


@pytest.mark.parametrize("value", [
    b"{}", {"issues": []}, {"grease-00c0ffee": {"x": [1]}, "x-new": None}, b"no JSON", b"",
    {"issues": 7, "guest": 8}, compose({"x": "y"}) + b" " * (16384 - 9)],
    ids=["empty", "no issues", "grease", "no JSON", "nothing", "wrong types", "long"])
async def test_given(value: Any) -> None:
    """LOADED counts by its type. START is its answer, and then SHUT the end."""
    async with giving() as one:
        await one.loaded(value)
        await one.started()
        assert (await one.source.migration())["status"] == "device"
        with pytest.raises(NotSeen, match=TOO_LATE):
            await one.source.execute("migrate_cancel")
        await one.talk.say(shut(0))
        await one.over("completed", "postmigrate")


async def test_last_word_behind_the_end() -> None:
    """SHUT 0 is the end: what comes behind it nobody reads."""
    async with giving() as one:
        await one.given()
        await one.talk.say(shut(0), message(LAST_WORD, NEVER), Frame(LOADED, b"{}"))
        info = await one.over("completed", "postmigrate")
        assert "error-desc" not in info


async def test_loaded_twice_at_once() -> None:
    """Whether START has been said by then is a race: it is the source's, or in doubt."""
    async with giving() as one:
        await one.talk.say(Frame(LOADED, b"{}"), Frame(LOADED, b"{}"))
        one.talk.end()
        info = await end(one.source)
        assert info["status"] == "failed", info
        if IN_DOUBT in info["error-desc"]:
            await one.in_doubt()
        else:
            await one.kept()
            await one.nothing_said()


async def test_remarks() -> None:
    """What a destination remarks when it has loaded the guest is shown."""
    async with giving() as one:
        await one.loaded({"issues": [{"code": "load", "severity": "warning", "subject": "disk",
                                      "message": "a bitmap was lost"}]})
        await one.started()
        await one.talk.say(shut(0))
        await one.over("completed", "postmigrate")
        info = await one.source.handshake()
        assert [issue["message"] for issue in info["issues"]] == ["a bitmap was lost"]


@pytest.mark.parametrize("left_out", [(), ("one-owner",)], ids=["with it", "without it"])
async def test_nobody_asks(left_out: tuple[str, ...]) -> None:
    """A destination that does not start the guest by itself, or does not know the feature."""
    async with giving(*left_out) as one:
        await one.talk.say(PONG, shut(0))
        await one.over("completed", "postmigrate")
        await one.nothing_said()


# Before START
KEEPS: dict[str, list[Union[bytes, Frame, Message]]] = {
    "nothing": [], "half of LOADED": [Frame(LOADED, b"{}").encode()[:-1]],
    "SHUT 1": [shut(1)], "half of SHUT": [shut(1).encode()[:-1]], "last word": [message(LAST_WORD, NEVER)],
    "doubtful last word": [message(LAST_WORD, {"message": "x"})],
    "last word and SHUT": [message(LAST_WORD, NEVER), shut(1)],
    "too long": [Frame(LOADED, b"{}" + b" " * 16383)], "unknown": [STRANGE],
    "17 unknown": [UNKNOWN] * 17, "START": [Frame(START, b"{}")],
    "two remarks": [REMARK, REMARK], "SHUT 1 and a last word": [shut(1), message(LAST_WORD, NEVER)],
    "SHUT that is too short": [Message(1, b"\0\0")],
}


# What the source's user reads, if the destination has found no words
LEFT = "the destination ended the connection after "
SAYS = {"nothing": LEFT, "half of LOADED": LEFT, "half of SHUT": LEFT,
        "SHUT 1": "the destination could not load the guest, and did not say why: see its log"}


@pytest.mark.parametrize("what", KEEPS)
async def test_kept(what: str) -> None:
    """A source that has not said START runs its guest again, whatever it hears."""
    async with giving() as one:
        await one.talk.say(*KEEPS[what])
        one.talk.end()
        info = await one.kept()
        await one.nothing_said()
        assert info["error-desc"].startswith(SAYS.get(what, "")), info


# After START
GIVES_BACK: dict[str, list[Union[bytes, Frame, Message]]] = {
    "SHUT 1": [shut(1)], "SHUT of another kind": [shut(0x80000000)],
    "last word": [message(LAST_WORD, NEVER)],
    "both": [message(LAST_WORD, NEVER), shut(1)],
    "malformed, but for that": [Frame(LAST_WORD, compose({**NEVER, "message": 7}))],
}
DOUBTFUL: dict[str, list[Union[bytes, Frame, Message]]] = {
    "nothing": [], "half of SHUT": [shut(1).encode()[:-1]],
    "last word": [message(LAST_WORD, {"message": "the image is locked"})],
    "it has started": [message(LAST_WORD, {"message": "x", "guest": "started"})],
    "half of a last word": [message(LAST_WORD, NEVER).encode()[:-1]],
    "no JSON": [Frame(LAST_WORD, b"no JSON")], "LOADED again": [Frame(LOADED, b"{}")],
    "unknown": [STRANGE], "17 unknown": [UNKNOWN] * 17,
}


@pytest.mark.parametrize("words", GIVES_BACK.values(), ids=GIVES_BACK)
async def test_given_back(words: list[Union[bytes, Frame, Message]]) -> None:
    async with giving() as one:
        await one.given()
        await one.talk.say(UNKNOWN, *words)
        one.talk.end()
        info = await one.kept()
        if len(words) == 2:
            assert info["error-desc"].startswith(str(NEVER["message"]))


@pytest.mark.parametrize("words", DOUBTFUL.values(), ids=DOUBTFUL)
async def test_in_doubt(words: list[Union[bytes, Frame, Message]]) -> None:
    """And nobody runs it until a human says so."""
    async with giving() as one:
        await one.given()
        await one.talk.say(*words)
        one.talk.end()
        info = await one.in_doubt()
        if words and isinstance(words[0], Frame) and b"locked" in words[0].payload:
            assert "the image is locked" in info["error-desc"]


async def test_yanked_in_doubt() -> None:
    """That is how to stop waiting."""
    async with giving() as one:
        await one.given()
        await one.source.execute("yank", {"instances": [{"type": "migration"}]})
        await one.in_doubt()


async def test_start_cannot_be_written(tmp_path: Path) -> None:
    """The destination has gone when the source hears LOADED: not all of START can have come."""
    for number in range(TIMES):
        async with small_lab() as lab, UnixListener(tmp_path / str(number)) as listener:
            source = await start_source(lab)
            await begin(source, unix(listener.path), NO_MULTIFD)
            talk = await listener.next()
            await talk.header()
            await talk.message(HELLO)
            await talk.say(HEADER, message(ACCEPT, changed(ACCEPTED, features=FEATURES)))
            await talk.message(COMMIT)
            stream = await talk.stream()
            await stop_process(source)
            await talk.say(Frame(LOADED, b"{}"))
            await talk.closed()
            os.kill(source.pid, signal.SIGCONT)
            await Giving(source, talk, stream).kept()


async def test_cancelled_before_loaded() -> None:
    """What comes then comes too late."""
    async with giving() as one:
        await one.source.execute("migrate_cancel")
        await one.loaded()
        await one.over("cancelled", "running")
        await one.nothing_said()


async def test_loaded_before_the_end() -> None:
    """Nobody can have loaded what has not been sent."""
    async with sending(FEATURES, pc_lab(), SLOW) as (source, talk):
        await wait_status(source, "active")
        await talk.say(Frame(LOADED, b"{}"))
        assert (await end(source))["status"] == "failed"
        assert await source.is_running()


async def test_loaded_without_the_feature() -> None:
    async with giving("one-owner") as one:
        await one.loaded()
        one.talk.end()
        await one.kept()


# A destination that is QEMU


@pytest.fixture(scope="module", name="stream")
def record_stream() -> bytes:
    """What a source of no machine at all sends."""
    async def record() -> bytes:
        async with giving() as one:
            return one.stream
    return asyncio.run(asyncio.wait_for(record(), 4 * LIMIT))


class Taking(NamedTuple):
    """One that has got the whole stream."""

    destination: Machine
    talk: Talk
    port: int

    async def asks(self) -> Reason:
        word = await self.talk.late()
        assert isinstance(word, Frame) and word.type == LOADED, word
        assert (await self.destination.migration())["status"] == "active"
        await self.stands()
        return read_reason(word.payload)

    async def stands(self) -> None:
        assert (await self.destination.execute("query-status"))["status"] == "inmigrate"

    async def says_shut(self, value: int) -> None:
        assert await self.talk.late() == shut(value)
        assert await self.talk.read() == b""

    async def runs(self) -> None:
        await self.says_shut(0)
        await wait_running(self.destination)
        assert (await self.destination.migration())["status"] == "completed"

    async def never_starts(self, *words: str) -> None:
        """It says so, to both."""
        word = await self.talk.late()
        assert isinstance(word, Frame) and word.type == LAST_WORD, word
        reason = read_reason(word.payload)
        assert reason.gives_back and reason.message
        for text in words:
            assert text in reason.message
        self.talk.end()
        with contextlib.suppress(AssertionError):       # there need not be any more
            assert await self.talk.late() != shut(0)
        info = await end(self.destination)
        assert info["status"] == "failed" and reason.message in info["error-desc"]
        await self.destination.execute("cont")
        await self.stands()


@contextlib.asynccontextmanager
async def taking(stream: bytes, *options: str, behind: bytes = b"",
                 hello: Object = Hello(features=FEATURES).write()) -> AsyncIterator[Taking]:
    async with small_lab() as lab:
        destination = await lab.start("destination", "-incoming", "defer", *options)
        await destination.execute("migrate-incoming", {
            "exit-on-error": False, **channels("handshake", inet(0))})
        port = int((await destination.migration())["socket-address"][0]["port"])
        async with call(port) as talk:
            await talk.say(HEADER, message(HELLO, hello))
            await committed(talk)
            await talk.say(stream + behind)
            yield Taking(destination, talk, port)


async def test_our_source_gives_the_guest(stream: bytes) -> None:
    """By the implementation's own role."""
    async with small_lab() as lab:
        destination = await lab.start("destination", "-incoming", "defer")
        await destination.execute("migrate-incoming", channels("handshake", inet(0)))
        port = int((await destination.migration())["socket-address"][0]["port"])
        async with call(port) as talk:
            source = Source(Hello(features=FEATURES))
            await talk.say(source.begin())
            while source.state in ("waiting", "opening"):
                await talk.say(source.receive(await talk.read()))
            await talk.say(stream)
            source.all_sent()
            while source.state in ("committed", "given"):
                await talk.say(source.receive(await talk.read()))
            assert source.state == "completed", source.problem
            await wait_running(destination)
            assert (await destination.handshake())["features"] == FEATURES


WORDS: dict[str, bytes] = {
    "plain": message(START, {}).encode(),
    "grease": UNKNOWN.encode() + message(START, {"grease-00c0ffee": []}).encode(),
    "16 others": UNKNOWN.encode() * 16 + message(START, {}).encode(),
    "no JSON": Frame(START, b"no JSON").encode(),
    "long": Frame(START, b"{}" + b" " * 131070).encode(),
}


@pytest.mark.parametrize("words", WORDS.values(), ids=WORDS)
@pytest.mark.parametrize("when", ["then", "at once", "by the byte"])
async def test_start(stream: bytes, words: bytes, when: str) -> None:
    """It counts by its type, and whenever it comes."""
    async with taking(stream, behind=words if when == "at once" else b"") as one:
        if when == "at once":
            word = await one.talk.late()
            assert isinstance(word, Frame) and word.type == LOADED
        else:
            await one.asks()
            for at in range(0, len(words), 1 if len(words) < 1000 else 1000):
                await one.talk.say(words[at:at + (1 if len(words) < 1000 else 1000)])
                if when == "then":
                    await one.talk.say(words[at + 1:] if len(words) < 1000 else words[at + 1000:])
                    break
        await one.runs()


NO_START: dict[str, tuple[bytes, str]] = {
    "nothing": (b"", NOT_GIVEN), "half": (message(START, {}).encode()[:-1], ""),
    "half of its header": (message(START, {}).encode()[:3], ""),
    "ABORT": (message(ABORT, {"message": "not any more"}).encode(), "not any more"),
    "unknown": (STRANGE.encode() + message(START, {}).encode(), ""),
    "17 unknown": (UNKNOWN.encode() * 17 + message(START, {}).encode(), ""),
    "too long": (Frame(START, b"{}" + b" " * 131071).encode(), ""),
    "COMMIT": (message(COMMIT, {}).encode() + message(START, {}).encode(), ""),
    "more of a stream": (b"\2\0\0\0\1" + message(START, {}).encode(), ""),
}


@pytest.mark.parametrize("words, why", NO_START.values(), ids=NO_START)
async def test_no_start(stream: bytes, words: bytes, why: str) -> None:
    """Whoever has not read all of START never starts the guest."""
    async with taking(stream) as one:
        await one.asks()
        await one.talk.say(words)
        one.talk.end()
        await one.never_starts(*([why] if why else []))


@pytest.mark.parametrize("features", [None, ["named-channels", "late-error"]],
                         ids=["no features", "others"])
async def test_source_without_it(stream: bytes, features: Any) -> None:
    """Nobody is asked, and the guest starts as soon as it is loaded, as ever."""
    hello = changed(Hello(features=FEATURES).write(), features=features)
    async with taking(stream, hello=hello) as one:
        await one.runs()


async def test_destination_that_does_not_start_it(stream: bytes) -> None:
    """It has nothing to ask."""
    async with taking(stream, "-S") as one:
        await one.says_shut(0)
        assert (await end(one.destination))["status"] == "completed"
        assert not await one.destination.is_running()


async def test_start_that_nobody_has_asked_for(stream: bytes) -> None:
    """With -S the guest stands until somebody says `cont`, whatever is behind the stream."""
    async with taking(stream, "-S", behind=message(START, {}).encode()) as one:
        await one.says_shut(0)
        assert (await end(one.destination))["status"] == "completed"
        assert not await one.destination.is_running()


@pytest.mark.parametrize("header", [HEADER, b""], ids=["header", "nothing before it"])
async def test_start_of_a_stranger(stream: bytes, header: Union[bytes, Header]) -> None:
    """Only who has sent the stream gives the guest away."""
    async with taking(stream) as one:
        await one.asks()
        async with call(one.port) as stranger:
            with contextlib.suppress(ConnectionError):
                await stranger.say(header, message(START, {}))
                stranger.end()
                await stranger.closed()
        await one.stands()
        assert (await one.destination.migration())["status"] == "active"
        await one.talk.say(message(START, {}))
        await one.runs()


async def test_it_waits_as_long_as_it_takes(stream: bytes) -> None:
    """And answers its user meanwhile."""
    async with taking(stream) as one:
        await one.asks()
        await asyncio.sleep(20 * SILENCE)
        await one.stands()
        await one.talk.say(message(START, {}))
        await one.runs()
