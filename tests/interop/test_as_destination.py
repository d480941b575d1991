# SPDX-License-Identifier: GPL-2.0-or-later
"""A destination that is not QEMU, and what a source that is QEMU makes of it.

Numbers are those of the specification's "Conformance checklist", B for both
sides and S for a source.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import uuid
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any, Optional

import pytest
from machine import Machine, NotSeen, until
from processes import (NO_MULTIFD, Json, Lab, Options, begin, end, inet, pc_lab, require_refused,
                       set_channels, small_lab, start_source)
from qmhs import grease
from qmhs.frames import (ABORT, ACCEPT, COMMIT, HELLO, LAST_WORD, NO_SESSION, REJECT, Frame,
                         Header, digest, message)
from qmhs.messages import Commit, Hello, Parameter
from qmhs.strictjson import Object, compose, parse
from talk import FEATURES, LIMIT, Listener, Talk, Words, changed, multifd, raw
from test_qmhs import BAD_JSON, GOOD_ISSUE, GOOD_JSON, LAX_JSON

SESSION = uuid.UUID("01234567-89ab-4def-8123-456789abcdef")
HEADER = Header(SESSION.bytes)
MINIMUM: Object = {"version": 1, "capabilities": ["return-path"]}
UNKNOWN = 0x1234
SKIPPED = Frame(UNKNOWN, b"\xff\0 no JSON", 0)
CHECK_ONLY: Options = {"check-only": True}
SILENCE = 0.1


@dataclass
class Call:
    """A source that has said HELLO, and waits."""

    source: Machine
    talk: Talk
    listener: Listener
    hello: Hello
    offer: Object           # its HELLO, as it stood there

    async def answer(self, kind: int, value: Any, *before: Words) -> None:
        await self.talk.say(*(before or (HEADER,)), Frame(kind, raw(value)))

    async def accept(self, **members: Any) -> None:
        await self.answer(ACCEPT, changed(MINIMUM, **members))

    async def commit(self, *without: str) -> Commit:
        """It agrees, with the right digest, and the stream follows."""
        heard = self.talk.inbox.read
        commit = Commit.read(await self.talk.message(COMMIT))
        assert commit.digest == digest(heard, self.talk.said)
        assert [item.capability for item in commit.without] == list(without)
        assert await self.talk.hear(4) == b"QEVM"
        return commit

    async def accept_multifd(self, **members: Any) -> None:
        await self.accept(capabilities=["return-path", "multifd"], features=FEATURES,
                          parameters=[item.write() for item in self.hello.profile.parameters],
                          **members)

    async def next_channel(self, answered: bool = True) -> tuple[Talk, Header]:
        """Another one, with its header."""
        talk = await self.listener.next()
        header = await talk.any_header()
        assert header == Header(SESSION.bytes, header.name, header.index) and not talk.inbox.rest
        if answered:
            await talk.say(header)
        return talk, header

    async def last_word(self, value: Any, *before: bytes) -> None:
        """On the return path."""
        await self.talk.say(*before, Frame(LAST_WORD, raw(value)))

    async def abort(self) -> Object:
        """It does not agree, says so, and is gone."""
        value = await self.talk.message(ABORT)
        assert isinstance(value["message"], str) and value["message"]
        assert list(grease.find(value)) == [""]
        assert await self.talk.rest() == b""
        return value

    async def gone(self) -> None:
        """It does not say anything more."""
        assert await self.talk.rest() == b""

    async def failed(self, *words: str) -> Json:
        return await require_refused(self.source, *words)


@contextlib.asynccontextmanager
async def calling(options: Optional[Options] = None, lab: Optional[Lab] = None,
                  channels: int = 2, capabilities: tuple[str, ...] = (),
                  parameters: Optional[Json] = None) -> AsyncIterator[Call]:
    """In the end its guest runs, and it can migrate again."""
    async with lab or small_lab() as lab, Listener() as listener:
        source = await start_source(lab)
        await set_channels(source, channels)
        await source.execute("migrate-set-parameters", parameters or {})
        await source.execute("migrate-set-capabilities", {"capabilities": [
            {"capability": name, "state": True} for name in capabilities]})
        await begin(source, inet(listener.port), options)
        talk = await listener.next()
        assert await talk.header() == Header()
        offer = await talk.message(HELLO)
        yield Call(source, talk, listener, Hello.read(offer), offer)
        talk.close()
        with contextlib.suppress(NotSeen):
            await source.execute("migrate_cancel")
        await until("the guest to run", 10, source.is_running)
        await require_can_migrate(source, listener)


async def require_can_migrate(source: Machine, listener: Listener) -> None:
    async def over() -> bool:
        info = await source.migration()
        return info.get("status", "failed") in ("failed", "cancelled", "completed")

    await until("the attempt to be over", 10, over, every=0.002)
    while listener.waiting:
        (await listener.next()).close()
    await begin(source, inet(listener.port), {**NO_MULTIFD, **CHECK_ONLY})
    talk = await listener.next()
    await talk.header()
    await talk.message(HELLO)
    await talk.say(HEADER, message(REJECT, {"message": "not now"}))
    assert await talk.rest() == b""


async def test_accepted() -> None:
    """S5, S9. Silence up to the verdict; then COMMIT and the stream at once."""
    async with calling(NO_MULTIFD) as call:
        await asyncio.sleep(SILENCE)
        assert await call.talk.is_silent()
        await call.accept()
        await call.commit()
        info = await call.source.handshake()
        assert info["session"] == str(SESSION) and info["status"] == "accepted"
        assert (info["protocol-version"], info["capabilities"]) == (1, ["return-path"])
        call.talk.close()
        await call.failed()


async def test_s5_channels_before_commit() -> None:
    """S5. All of them, once, at once, with nothing but a header; COMMIT when all are answered."""
    async with calling(channels=5) as call:
        await asyncio.sleep(SILENCE)
        assert not call.listener.waiting
        await call.accept_multifd()
        lines = [await call.next_channel(answered=False) for _ in range(5)]
        assert sorted((header.name, header.index) for _, header in lines) == [
            ("multifd", index) for index in range(5)]
        for talk, header in lines:
            assert await call.talk.is_silent() and await talk.is_silent()
            await talk.say(Header(header.session, header.name, header.index, b"later", 7))
        await call.commit()
        assert not call.listener.waiting
        info = await call.source.handshake()
        assert info["parameters"] == {"multifd-channels": 5, "multifd-compression": "none"}


async def test_s5_255_channels() -> None:
    """S5. However many it opens at a time."""
    async with calling(channels=255) as call:
        await call.accept_multifd()
        come = [(await call.next_channel())[1].index for _ in range(255)]
        assert sorted(come) == list(range(255))
        await call.commit()
        assert not call.listener.waiting


async def test_s5_an_answer_by_the_byte() -> None:
    async with calling(channels=1) as call:
        await call.accept_multifd()
        talk, header = await call.next_channel(answered=False)
        for byte in header.encode()[:-1]:
            await talk.say(bytes([byte]))
            await asyncio.sleep(0)
        assert await call.talk.is_silent()
        await talk.say(header.encode()[-1:])
        await call.commit()


async def test_s5_preempt() -> None:
    """S5. Both kinds, before COMMIT; what has channels is negotiated like the rest."""
    capabilities = ("postcopy-ram", "postcopy-preempt")
    async with calling(NO_MULTIFD, pc_lab(), capabilities=capabilities) as call:
        await call.accept(capabilities=["return-path", *capabilities], features=FEATURES)
        _, header = await call.next_channel()
        assert (header.name, header.index) == ("preempt", 0)
        await call.commit()
        assert not call.listener.waiting


WRONG_ANSWERS: dict[str, Any] = {
    "end": None, "SSH": b"SSH-2.0-OpenSSH_9.2p1\r\n", "stream": b"QEVM\0\0\0\3",
    "63": b"QMHS\0\0\0\x3f", "no name": Header(SESSION.bytes).encode()[:24] + bytes(40),
    "half": Header(SESSION.bytes, "multifd", 1).encode()[:63],
    "main": Header(SESSION.bytes), "other index": Header(SESSION.bytes, "multifd", 0),
    "other name": Header(SESSION.bytes, "preempt", 1),
    "other session": Header(uuid.uuid4().bytes, "multifd", 1),
    "no session": Header(NO_SESSION, "multifd", 1),
}


@pytest.mark.parametrize("required", [False, True], ids=["optional", "required"])
@pytest.mark.parametrize("answer", WRONG_ANSWERS.values(), ids=WRONG_ANSWERS)
async def test_s7_what_does_not_get_through(answer: Any, required: bool) -> None:
    """S7. One of three; all of them are closed, and it goes on without, or says why not."""
    capabilities = ("multifd",) if required else ()
    async with calling(channels=3, capabilities=capabilities) as call:
        await call.accept_multifd()
        lines = [await call.next_channel(answered=False) for _ in range(3)]
        for talk, header in lines:
            if header.index != 1:
                await talk.say(header)
            elif answer:
                await talk.say(answer)
        for talk, header in lines:
            if header.index == 1:
                talk.end()
        if required:
            value = await call.abort()
            assert "multifd" in value["message"]
            await call.failed(value["message"])
            assert (await call.source.handshake())["status"] == "failed"
        else:
            commit = await call.commit("multifd")
            reason = commit.without[0].reason
            assert "'multifd' 1" in reason and str(call.listener.port) in reason
            info = await call.source.handshake()
            assert {"capability": "multifd", "reason": reason} in info["declined"]
            assert info["capabilities"] == ["return-path"] and info["parameters"] == {}
        for talk, _ in lines:
            assert await talk.rest() == b""


@pytest.mark.parametrize("count, answered", [(2, 1), (3, 0)])
async def test_s7_silence(count: int, answered: int) -> None:
    """S7, B10. 5 seconds after the last step that one of them has made."""
    async with calling(channels=count) as call:
        loop = asyncio.get_running_loop()
        before = loop.time()
        await call.accept_multifd()
        lines = [await call.next_channel(answered=False) for _ in range(count)]
        after = loop.time()
        await asyncio.sleep(1)
        for talk, header in lines[:answered]:
            before = loop.time()
            await talk.say(header)
            after = loop.time()
        commit = await call.commit("multifd")
        assert loop.time() - before > 5 - 0.1
        # Not the 20 of those who make steps
        assert loop.time() - after < 5 + 4
        assert "no answer" in commit.without[0].reason
        for talk, _ in lines:
            assert await talk.rest() == b""


async def test_s7_preempt_is_dropped_alone() -> None:
    """S7. The others stay, and what does not need them."""
    async with calling({"optional-capabilities": ["postcopy-preempt", "switchover-ack"]}, pc_lab(),
                       capabilities=("postcopy-ram",)) as call:
        await call.accept(
            capabilities=["return-path", "postcopy-ram", "postcopy-preempt", "switchover-ack"],
            features=FEATURES)
        talk, _ = await call.next_channel(answered=False)
        talk.close()
        await call.commit("postcopy-preempt")
        info = await call.source.handshake()
        assert sorted(info["capabilities"]) == ["postcopy-ram", "return-path", "switchover-ack"]


GOOD_WORD: Object = {"message": "no memory", "guest": "not-started", "issues": [
    {**GOOD_ISSUE, "code": "x-late"}, {"code": "half"}], "issues-omitted": 2}
PONG = b"\0\2\0\4\0\0\0\1"          # another message of the return path
WORDS: dict[str, tuple[Any, list[bytes], tuple[str, ...]]] = {
    "full": (GOOD_WORD, [], ("no memory",)),
    "grease before": (GOOD_WORD, [Frame(0x0a0a, b"{", 0).encode(), PONG] * 16, ("no memory",)),
    "no JSON": (b"no JSON", [], ()), "empty": (b"", [], ()), "nothing in it": ({}, [], ()),
    "wrong types": ({"message": 7, "issues": 7, "issues-omitted": "x", "guest": 7}, [], ()),
    "as long as it may be": (compose({"message": "long"}) + b" " * (16384 - 18), [], ("long",)),
}


@pytest.mark.parametrize("value, before, words", WORDS.values(), ids=WORDS)
async def test_s12_last_word(value: Any, before: list[bytes], words: tuple[str, ...]) -> None:
    """S12, B7. It ends the migration at once, and is shown."""
    async with calling(NO_MULTIFD) as call:
        await call.accept(features=FEATURES)
        await call.commit()
        await call.last_word(value, *before)
        info = await call.failed("the destination could not load the guest", *words)
        assert not words or info["error-desc"].startswith(words[0])
        if value is GOOD_WORD:
            info = info["handshake"]
            assert [issue["code"] for issue in info["issues"]] == ["x-late"]
            assert info["issues-omitted"] == 3 and info["status"] == "accepted"


async def test_s12_control_characters() -> None:
    """S12. What is shown cannot do anything to a terminal, nor be taken for two lines."""
    async with calling(NO_MULTIFD) as call:
        await call.accept(features=FEATURES)
        await call.commit()
        await call.last_word({"message": "no\x1b[2J\r\nmem\x00\x7f\x9bory", "guest": "\x07"})
        info = await call.failed("could not load the guest")
        assert all(" " <= char and not "\x7f" <= char < "\xa0" for char in info["error-desc"])
        assert "mem" in info["error-desc"]


@pytest.mark.parametrize("pause", [0, 0.002], ids=["at once", "by the byte"])
async def test_s12_a_second_one(pause: float) -> None:
    """S12. The first one counts, however slowly it comes; nobody reads on."""
    async with calling(NO_MULTIFD) as call:
        await call.accept(features=FEATURES)
        await call.commit()
        words = b"".join(Frame(LAST_WORD, compose({**GOOD_WORD, "message": text})).encode()
                         for text in ("the first", "the second"))
        with contextlib.suppress(ConnectionError):
            for at in range(0, len(words), 1 if pause else len(words)):
                await call.talk.say(words[at:at + (1 if pause else len(words))])
                await asyncio.sleep(pause)
        info = await call.failed()
        assert info["error-desc"].startswith("the first (")


async def test_s12_a_last_word_while_the_stream_flows() -> None:
    """S12. Nobody reads the stream any more; the reason is read all the same."""
    async with calling(NO_MULTIFD, pc_lab()) as call:
        await call.accept(features=FEATURES)
        await call.commit()
        await call.last_word(GOOD_WORD)
        call.talk.end()
        await call.failed("no memory")


NO_WORDS: dict[str, list[bytes]] = {
    "critical": [Frame(11, b"{}").encode()],
    "17th": [Frame(0x0a0a, b"{}", 0).encode()] * 17,
    "too long": [Frame(LAST_WORD, bytes(16385)).encode()],
    "half": [Frame(LAST_WORD, b'{"message":"no memory"}').encode()[:-1]],
}


@pytest.mark.parametrize("words", NO_WORDS.values(), ids=NO_WORDS)
async def test_s12_what_is_no_last_word(words: list[bytes]) -> None:
    """S12. The migration fails, without a reason of the destination's."""
    async with calling(NO_MULTIFD) as call:
        await call.accept(features=FEATURES)
        await call.commit()
        await call.talk.say(*words)
        call.talk.end()
        info = await call.failed()
        assert "no memory" not in info["error-desc"]


async def test_s12_not_without_the_feature() -> None:
    """S12. Then it is an invalid message, as ever."""
    async with calling(NO_MULTIFD) as call:
        await call.accept(features=["named-channels"])
        await call.commit()
        await call.last_word(GOOD_WORD)
        info = await call.failed("invalid message")
        assert "no memory" not in info["error-desc"]


async def test_s1_s2_what_is_set_is_required() -> None:
    """S1, S2. All that is negotiable, nothing else; parameters of what is wanted."""
    async with calling(channels=7, capabilities=("dirty-bitmaps", "multifd", "auto-converge",
                                                 "pause-before-switchover")) as call:
        profile = call.hello.profile
        assert sorted(profile.required_capabilities) == ["dirty-bitmaps", "multifd"]
        assert set(profile.capabilities) >= {"dirty-bitmaps", "multifd", "auto-converge",
                                             "pause-before-switchover"}
        assert profile.parameters == [Parameter("multifd", "multifd-channels", "7")]
        assert "multifd" not in call.hello.optional_capabilities
        assert call.hello.features[:len(FEATURES)] == FEATURES and call.hello.required == []


async def test_s2_what_goes_without_saying() -> None:
    """S2. Values of the table are not sent."""
    for channels, sent in ((2, []), (3, [Parameter("multifd", "multifd-channels", "3")])):
        async with calling(channels=channels) as call:
            assert call.hello.profile.parameters == sent


async def test_s2_no_parameters_without_their_capability() -> None:
    async with calling(NO_MULTIFD, channels=7) as call:
        assert call.hello.profile.parameters == []
        assert call.hello.optional_capabilities == []


BAD_ANSWERS: dict[str, list[Words]] = {
    "nothing": [],
    "half a header": [HEADER.encode()[:40]],
    "header alone": [HEADER],
    "half a frame": [HEADER, message(ACCEPT, MINIMUM).encode()[:20]],
    "SSH": [b"SSH-2.0-OpenSSH_9.2p1 Debian-2\r\n"],
    "HTTP": [b"HTTP/1.1 400 Bad Request\r\n\r\n"],
    "stream": [b"QEVM\0\0\0\x03"],
    "TLS alert": [bytes.fromhex("15030300020228") + bytes.fromhex("15030300020100")],
    "63": [HEADER.encode()[:6] + b"\0\x3f" + HEADER.encode()[8:]],
    "4097": [HEADER.encode()[:6] + b"\x10\x01" + HEADER.encode()[8:], bytes(4033)],
    "no name": [HEADER.encode()[:24] + bytes(40), message(ACCEPT, MINIMUM)],
    "malformed name": [Header(SESSION.bytes, "ma n").encode(), message(ACCEPT, MINIMUM)],
    "other name": [Header(SESSION.bytes, "multifd"), message(ACCEPT, MINIMUM)],
    "other index": [Header(SESSION.bytes, "main", 1), message(ACCEPT, MINIMUM)],
    "critical frame": [HEADER, Frame(UNKNOWN, b"{}"), message(ACCEPT, MINIMUM)],
    "17th unknown frame": [HEADER, *[SKIPPED] * 17, message(ACCEPT, MINIMUM)],
    "frame too long": [HEADER, Frame(UNKNOWN, bytes(131073), 0).encode()[:8]],
    "LAST WORD": [HEADER, message(LAST_WORD, {"message": "no"})],
    "ACCEPT too long": [HEADER, Frame(ACCEPT, bytes(131073)).encode()[:8]],
    "REJECT too long": [HEADER, Frame(REJECT, bytes(131073)).encode()[:8]],
    "HELLO": [HEADER, message(HELLO, {"versions": [1], "purpose": "migrate", "required": []})],
    "COMMIT": [HEADER, message(COMMIT, {"digest": "0" * 64})],
    "ABORT": [HEADER, message(ABORT, {"message": "no"})],
}
UNFINISHED = ("nothing", "half a header", "header alone", "half a frame")


@pytest.mark.parametrize("name", BAD_ANSWERS)
async def test_violations(name: str) -> None:
    """S10, B2. It closes without a last word, and at once if it can tell."""
    async with calling(NO_MULTIFD) as call:
        await call.talk.say(*BAD_ANSWERS[name])
        if name in UNFINISHED:
            assert await call.talk.is_silent()
            call.talk.end()
        await call.gone()
        await call.failed()
        assert (await call.source.handshake())["status"] == "failed"


@pytest.mark.parametrize("name, words", [
    ("nothing", ["without an answer"]), ("SSH", ["SSH"]), ("HTTP", ["HTTP"]),
    ("TLS alert", ["TLS"]), ("critical frame", ["critical", f"0x{UNKNOWN:04x}"])])
async def test_it_says_what_it_met(name: str, words: list[str]) -> None:
    async with calling(NO_MULTIFD) as call:
        await call.talk.say(*BAD_ANSWERS[name])
        call.talk.end()
        await call.failed(*words)


@pytest.mark.parametrize("payload", BAD_JSON.values(), ids=BAD_JSON)
async def test_b4_json(payload: bytes) -> None:
    """B4. Also in a member of ACCEPT that nobody knows."""
    if payload.startswith(b'{"') and payload.endswith(b"}"):
        payload = compose(MINIMUM)[:-1] + b"," + payload[1:]
    async with calling(NO_MULTIFD) as call:
        await call.answer(ACCEPT, payload)
        await call.gone()
        await call.failed()


async def test_b4_what_may_be_taken() -> None:
    """B4. As a destination does."""
    for payload in LAX_JSON.values():
        async with calling(NO_MULTIFD) as call:
            await call.answer(ACCEPT, compose(MINIMUM)[:-1] + b"," + payload[1:])
            await call.commit()


@pytest.mark.parametrize("payload", GOOD_JSON.values(), ids=GOOD_JSON)
async def test_b4_good_json(payload: bytes) -> None:
    """B4, B5, B9."""
    if payload in (GOOD_JSON["256 members"], GOOD_JSON["8192 objects"]):
        payload = payload.replace(b'"0":0,"1":1,', b"").replace(b"{},", b"", 1)
    inner = payload.strip()[1:]
    core = compose(MINIMUM)[:-1]
    async with calling(NO_MULTIFD) as call:
        await call.answer(ACCEPT, b" \n" + core + (b"}" if inner == b"}" else b"," + inner) + b"\t")
        await call.commit()


MALFORMED: dict[str, list[Any]] = {
    "version": ["1", None, True, -1, 1 << 32], "capabilities": ["return-path", None, {},
                                                                ["return-path", 1]],
    "parameters": [None, {}, 0, [7], [{"capability": "multifd", "name": "x", "value": 1}]],
    "features": [None, "x", ["named-channels", 7]], "not-understood": [None, [7]],
    "peer": [None, [], {"machine": 7}, {"package": None}],
    "declined": [None, {}, ["multifd"], [{"capability": "multifd"}], [{"reason": "x"}]],
    "issues": [None, {}, [7], [{}], *[[{**GOOD_ISSUE, name: 7}] for name in (
        "code", "severity", "message", "subject", "source", "destination")],
        [{name: GOOD_ISSUE[name] for name in ("code", "message")}]],
    "issues-omitted": [None, "1", -1, 1 << 32], "message": [None, 7],
}


@pytest.mark.parametrize("members", [{name: wrong} for name, all_ in MALFORMED.items()
                                     for wrong in all_], ids=str)
async def test_b6_accept_is_read_strictly(members: Object) -> None:
    """B6. Malformed: it closes, without ABORT."""
    async with calling(NO_MULTIFD) as call:
        await call.answer(ACCEPT, {**MINIMUM, **members})
        await call.gone()
        await call.failed()
        assert (await call.source.handshake())["status"] == "failed"


ALL = ["multifd", "dirty-bitmaps", "return-path"]
BAD_ACCEPTS: dict[str, Object] = {
    "no version": {"version": None}, "version 0": {"version": 0}, "version 2": {"version": 2},
    "large version": {"version": (1 << 32) - 1},
    "no capabilities": {"capabilities": None},
    "empty capabilities": {"capabilities": []},
    "no return-path": {"capabilities": ALL[:2]},
    "without what is required": {"capabilities": ["return-path", "multifd"]},
    "not offered": {"capabilities": [*ALL, "postcopy-ram"]},
    "unheard of": {"capabilities": [*ALL, "x-new"]},
    "twice": {"capabilities": [*ALL, "multifd"]},
    "side-local": {"capabilities": [*ALL, "auto-converge"]},
    "grease": {"capabilities": [*ALL, "grease-00c0ffee"]},
    "no features": {"features": None}, "other features": {"features": ["x", "late-error"]},
    "no parameters": {"parameters": None}, "none": {"parameters": []},
    "another value": {"parameters": multifd(4)},
    "another order": {"parameters": multifd(3, "zlib")[::-1]},
    "one less": {"parameters": multifd(3)},
    "one more": {"parameters": [*multifd(3, "zlib"),
                                Parameter("multifd", "x", "1").write()]},
    "the same twice": {"parameters": multifd(3, "zlib") * 2},
    "of another capability": {"parameters": [
        {**item, "capability": "dirty-bitmaps"} for item in multifd(3, "zlib")]},
}


@pytest.mark.parametrize("members", [{}, *BAD_ACCEPTS.values()], ids=["good", *BAD_ACCEPTS])
async def test_s4_accept_is_checked(members: Object) -> None:
    """S4. ABORT, with the reason, and nothing has begun. One of them is right."""
    async with calling(channels=3, capabilities=("dirty-bitmaps",),
                       parameters={"multifd-compression": "zlib"}) as call:
        right = {"version": 1, "capabilities": ALL, "features": ["named-channels"],
                 "parameters": multifd(3, "zlib")}
        await call.answer(ACCEPT, changed(right, **members))
        if not members:
            for _ in range(3):
                await call.next_channel()
            await call.commit()
            return
        value = await call.abort()
        info = await call.failed()
        assert value["message"] in info["error-desc"]
        # It is no verdict that says whether the guest fits.
        assert (await call.source.handshake())["status"] == "failed"
        assert not call.listener.waiting


async def test_s4_parameters_without_capability() -> None:
    """S4. What is declined has none."""
    async with calling(channels=3) as call:
        await call.accept(parameters=multifd(3), features=["named-channels"])
        await call.abort()


async def test_s4_no_session() -> None:
    """S4. All zeros."""
    async with calling(NO_MULTIFD) as call:
        await call.answer(ACCEPT, MINIMUM, Header(NO_SESSION))
        await call.abort()


async def test_s4_grease_is_no_version() -> None:
    """S4. A number that it has sent, and cannot speak."""
    async with calling(NO_MULTIFD) as call:
        odd = [number for number in call.offer["versions"] if number != 1]
        assert len(odd) == 1 and odd[0] in grease.NUMBERS
        await call.accept(version=odd[0])
        await call.abort()


@pytest.mark.parametrize("severity, is_fine", [("error", False), ("warning", False),
                                               ("info", True), ("fatal", False), ("", False)])
async def test_s4_warnings_as_errors(severity: str, is_fine: bool) -> None:
    """S4. An unknown severity counts as a warning."""
    issue = {"code": "uuid", "message": "text", "severity": severity}
    async with calling({**NO_MULTIFD, "warnings-as-errors": True}) as call:
        assert call.hello.warnings_as_errors
        await call.accept(issues=[issue])
        await (call.commit() if is_fine else call.abort())


@pytest.mark.parametrize("code, subject, severity, is_fine", [
    ("uuid", "uuid", "warning", True), ("uuid", "other", "warning", False),
    ("uuid", None, "warning", False), ("arch", None, "warning", True),
    ("arch", "arch", "error", False), ("cpu", "uuid", "warning", False),
    ("x-new", "arch", "warning", False)])
async def test_s4_what_is_ignored(code: str, subject: Optional[str], severity: str,
                                  is_fine: bool) -> None:
    """S4. It goes by its own words, and not by a text that says so."""
    issue = {"code": code, "severity": severity, "message": "text (ignored)"}
    if subject:
        issue["subject"] = subject
    words = ["arch", "uuid:uuid"]
    async with calling({**NO_MULTIFD, "warnings-as-errors": True,
                        "ignore-issues": words}) as call:
        assert call.hello.ignore == words
        await call.accept(issues=[issue])
        await (call.commit() if is_fine else call.abort())


async def test_what_can_be_ignored_is_said_before_anything_else() -> None:
    """Nobody is connected to."""
    async with pc_lab() as lab:
        source = await start_source(lab)
        with pytest.raises(NotSeen, match="'machine-type' cannot be ignored"):
            await begin(source, inet(1), {"ignore-issues": ["uuid", "machine-type"]})
        with pytest.raises(NotSeen, match="At most 64"):
            await begin(source, inet(1), {"ignore-issues": ["uuid"] * 65})
        assert "handshake" not in await source.migration()


@pytest.mark.parametrize("severity", ["error", "warning", "info", "fatal"])
async def test_s6_the_frame_is_the_verdict(severity: str) -> None:
    """S6. It goes on after an ACCEPT with errors, and not after a REJECT without."""
    issues = [{"code": "x-new", "severity": severity, "message": "text"}]
    async with calling(NO_MULTIFD) as call:
        await call.accept(issues=issues)
        await call.commit()
    async with calling(NO_MULTIFD) as call:
        await call.answer(REJECT, {"message": "no", "issues": issues})
        await call.gone()
        await call.failed("no")


@pytest.mark.parametrize("header", [
    Header(SESSION.bytes, extension=bytes(1)), Header(SESSION.bytes, extension=b"\xff" * 4032),
    Header(SESSION.bytes, reserved=0xffff, reserved_end=b"\xff" * 20)],
    ids=["65", "4096", "reserved"])
async def test_b1_b9_headers(header: Header) -> None:
    """B1, B9. They count for the digest."""
    async with calling(NO_MULTIFD) as call:
        await call.answer(ACCEPT, MINIMUM, header)
        await call.commit()


async def test_b3_16_unknown_frames() -> None:
    """B3, B9."""
    async with calling(NO_MULTIFD) as call:
        frames = [SKIPPED, Frame(0, b"", 0), Frame(0xffff, bytes(131072), 0xfffe),
                  Frame(0x0a0a, b"{", 0)] * 4
        await call.answer(ACCEPT, MINIMUM, HEADER, *frames)
        await call.commit()


async def test_b11_one_byte_at_a_time() -> None:
    async with calling(NO_MULTIFD) as call:
        for byte in HEADER.encode() + SKIPPED.encode() + message(ACCEPT, MINIMUM).encode():
            await call.talk.say(bytes([byte]))
            await asyncio.sleep(0)
        await call.commit()


NO_LIST_NOR_TEXT: list[Any] = [None, 7, "x", {}, [None, 7, [], {}]]

REJECTS: dict[str, Any] = {
    "empty": {}, "no JSON": b"no JSON", "nothing": b"", "list": b"[]",
    "same name": b'{"message":"a","message":"b"}', "too deep": BAD_JSON["17 deep"],
    **{f"all {wrong!r}": {name: wrong for name in (
        "message", "issues", "issues-omitted", "version", "features", "not-understood", "peer")}
       for wrong in NO_LIST_NOR_TEXT},
}


@pytest.mark.parametrize("payload", REJECTS.values(), ids=REJECTS)
async def test_s7_whatever_a_reject_says(payload: Any) -> None:
    """S7. It is one, be it malformed or not."""
    async with calling(NO_MULTIFD) as call:
        await call.answer(REJECT, payload)
        await call.gone()
        await call.failed()
        assert (await call.source.handshake())["status"] == "rejected"


async def test_s8_codes() -> None:
    """S8, B7. Those that nobody knows arrive with their text; what is malformed is counted."""
    issues: list[Any] = [
        {"code": "x-not-known", "severity": "error", "subject": "a", "source": "1",
         "destination": "2", "message": "one", "new": {"x": []}},
        {"code": "machine-type", "severity": "grave", "message": "two"},
        {"message": "three"}, 7, None, {"code": 5, "severity": 5, "message": 5}, [issue_of("x")],
        {"code": "section-extra", "severity": "info", "message": "four"}]
    async with calling(NO_MULTIFD) as call:
        await call.answer(REJECT, {"message": "5 problems: one", "issues": issues,
                                   "issues-omitted": 9, "version": 1})
        await call.failed("one")
        info = await call.source.handshake()
        assert info["issues-omitted"] == 9 + 5
        told = info["issues"]
        assert told[0] == {name: value for name, value in issues[0].items() if name != "new"}
        assert [(issue["message"], issue["severity"]) for issue in told] == [
            ("one", "error"), ("two", "warning"), ("four", "info")]


def issue_of(code: str, severity: str = "error") -> Object:
    return {**GOOD_ISSUE, "code": code, "severity": severity}


@pytest.mark.parametrize("name, wrong", [
    (name, wrong) for name in ("message", "version", "features", "peer", "not-understood",
                               "issues-omitted", "declined", "capabilities")
    for wrong in (None, -1, "x", [7], {"machine": 7})
    if not isinstance(wrong, str) or name != "message"], ids=str)
async def test_b7_nothing_else_is_lost(name: str, wrong: Any) -> None:
    """B7. One bad member, and all the reasons are there."""
    async with calling(NO_MULTIFD) as call:
        await call.answer(REJECT, {"message": "for a reason", "issues": [issue_of("busy")],
                                   name: wrong})
        await call.failed(*([] if name == "message" else ["for a reason"]))
        info = await call.source.handshake()
        assert info["status"] == "rejected"
        assert [issue["code"] for issue in info["issues"]] == ["busy"]


@pytest.mark.parametrize("version", [0, 2, 7, (1 << 64) - 1])
async def test_a_reject_of_any_version_is_read(version: int) -> None:
    async with calling(NO_MULTIFD) as call:
        await call.answer(REJECT, {"message": "for a reason", "version": version,
                                   "issues": [issue_of("purpose")]},
                          Header(NO_SESSION))
        await call.failed("for a reason")
        assert [issue["code"] for issue in (await call.source.handshake())["issues"]] == [
            "purpose"]


async def test_what_follows_a_verdict_is_not_read() -> None:
    """B2. Bytes behind REJECT, even of a frame, change nothing."""
    async with calling(NO_MULTIFD) as call:
        await call.answer(REJECT, {"message": "first"})
        await call.answer(REJECT, {"message": "second"})
        await call.failed("first")


async def test_s11_check_accepted() -> None:
    """S11. It leaves without a word."""
    async with calling({**CHECK_ONLY}) as call:
        assert call.hello.purpose == "check"
        await call.accept()
        await call.gone()
        info = await call.source.migration()
        assert "status" not in info and "error-desc" not in info
        assert info["handshake"]["status"] == "accepted" and info["handshake"]["check-only"]
        assert not call.listener.waiting


@pytest.mark.parametrize("kind, value, status", [
    (REJECT, {"message": "no", "issues": [{**GOOD_ISSUE, "code": "busy"}]}, "rejected"),
    (ACCEPT, {**MINIMUM, "version": 7}, "failed"),
    (ACCEPT, {"version": 1, "capabilities": [1]}, "failed"),
    (COMMIT, {"digest": ""}, "failed")], ids=["reject", "unfit", "malformed", "commit"])
async def test_s11_check_not_accepted(kind: int, value: Object, status: str) -> None:
    """S11. Neither ABORT nor an effect on anything."""
    async with calling({**NO_MULTIFD, **CHECK_ONLY}) as call:
        await call.answer(kind, value)
        await call.gone()

        async def over() -> bool:
            return (await call.source.handshake())["status"] != "in-progress"

        await until("the end", 10, over, every=0.002)
        info = await call.source.migration()
        assert "status" not in info
        assert info["handshake"]["status"] == status


async def test_b10_a_silent_destination() -> None:
    """B10. As long as the user says."""
    async with calling({**NO_MULTIFD, "timeout": 1}) as call:
        await call.talk.say(HEADER)
        await call.gone()
        await call.failed()


async def test_b9_commit_is_a_frame_of_its_own() -> None:
    """B8. Its grease is a member, and the text of the digest has 64 digits."""
    async with calling(NO_MULTIFD) as call:
        await call.accept()
        value = parse((await call.talk.frame()).payload)
        assert list(grease.find(value)) == [""] and len(value) == 2
        assert len(value["digest"]) == 64 and set(value["digest"]) <= set("0123456789abcdef")


async def test_s3_no_channels_without_an_address() -> None:
    """S3. A connection that somebody else has made is the only one."""
    ours, theirs = socket.socketpair()
    async with pc_lab() as lab:
        source = await start_source(lab)
        with theirs:
            await source.give(theirs.fileno(), "peer")
        await begin(source, {"transport": "socket", "type": "fd", "str": "peer"})
        talk = Talk(*await asyncio.open_connection(sock=ours))
        await talk.header()
        hello = Hello.read(await talk.message(HELLO))
        assert "multifd" not in hello.optional_capabilities
        assert hello.profile.parameters == [] == hello.profile.required_capabilities
        await talk.say(HEADER, message(REJECT, {"message": "enough"}))
        assert "enough" in (await end(source))["error-desc"]
        talk.close()


async def test_a_hello_that_is_not_read_to_its_end() -> None:
    """A destination that has too many others drops it: the source says what that may be."""
    ours, theirs = socket.socketpair()
    async with pc_lab() as lab:
        source = await start_source(lab)
        with theirs:
            # HELLO does not fit in.
            theirs.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1)
            await source.give(theirs.fileno(), "peer")
        await begin(source, {"transport": "socket", "type": "fd", "str": "peer"})
        with ours:
            ours.setblocking(False)
            assert await asyncio.get_running_loop().sock_recv(ours, len(HEADER.encode()))
        info = await require_refused(source, "ended the connection before it had all of HELLO",
                                     "too many connections")
        assert "Broken pipe" in info["error-desc"]
        await until("the guest to run", LIMIT, source.is_running)
