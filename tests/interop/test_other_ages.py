# SPDX-License-Identifier: GPL-2.0-or-later
"""Peers that are older than QEMU, and peers that know more than it does.

Section "Growing": what is missing is coped with, what is unknown is ignored,
declined or refused by name.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import pytest
from processes import NO_MULTIFD, pc_lab, set_channels, start_destination, start_source
from qmhs import grease
from qmhs.frames import ACCEPT, COMMIT, HELLO, REJECT, Frame, Header, digest, message
from qmhs.messages import Accept, Combination, Hello, Parameter
from qmhs.strictjson import Object
from talk import (CAN_ALL, CHECK, FEATURES, MINIMUM, accepted, ask, call, changed, codes,
                  committed, loading_destination, multifd, qemu_destination, refused,
                  require_free, require_loading, session_of)
from test_as_destination import GOOD_WORD, SESSION, calling

FUTURE_FRAMES = [Frame(0x0100 + number, bytes(number), 2 * number) for number in range(16)]
STRANGE: list[Any] = [None, True, -1, {"later": [{}]}, [], [["later"]]]


def future_header(session: bytes = bytes(16)) -> Header:
    return Header(session, extension=b"later " * 672, reserved=0xbeef, reserved_end=b"\xee" * 20)


async def real_hello(machine: str = "pc") -> Object:
    """What a QEMU would say today."""
    async with pc_lab(machine) as lab:
        source = await start_source(lab)
        profile = await source.execute("query-migrate-profile")
    hello: Object = changed(profile, declined=None, combinations=None,
                            optional_capabilities=["multifd", "switchover-ack"])
    assert hello["profile"]["sections"] and hello["profile"]["ram-blocks"]
    return hello


def optional_members(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """All that an older source would not have said: what is not marked "always"."""
    if isinstance(value, dict):
        for name, inner in value.items():
            if name not in (*MINIMUM, "name", "version", "size", "capability", "value"):
                yield (*path, name)
            yield from optional_members(inner, (*path, name))
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from optional_members(item, (*path, index))


def without(value: Object, path: tuple[Any, ...]) -> Object:
    value = copy.deepcopy(value)
    inner: Any = value
    for step in path[:-1]:
        inner = inner[step]
    del inner[path[-1]]
    return value


async def test_an_older_source_lacks_something() -> None:
    """Every member that may be absent, one after the other."""
    hello = await real_hello()
    async with qemu_destination(pc_lab()) as (_, port):
        whole = await accepted(port, hello)
        assert sorted(whole.capabilities) == ["multifd", "return-path", "switchover-ack"]
        assert [issue.code for issue in whole.issues] == ["channels-untried"]
        lacking = 0
        for path in optional_members(hello):
            if "mapped" in path[:-1] or path[-1] in ("resizeable", "conditional", "instances", "sections", "ram-blocks"):
                continue        # these mean something else if they are absent
            accept = await accepted(port, without(hello, path))
            expected: dict[tuple[Any, ...], list[str]] = {
                ("features",): ["return-path", "switchover-ack"],
                ("optional-capabilities",): ["return-path"]}
            assert accept.capabilities == expected.get(path, whole.capabilities), path
            # What one of the same version would have told is missing on the way back.
            issues = [issue for issue in accept.issues if issue.code != "no-return"]
            assert issues == ([] if path in expected else whole.issues), path
            lacking += 1
        assert lacking > 20


async def test_the_oldest_source() -> None:
    """It says the least that it may, and migrates."""
    async with loading_destination() as (destination, port), ask(port, MINIMUM) as talk:
        await committed(talk)
        await require_loading(destination)
        info = await destination.handshake()
        assert info["peer"] == {} and info["capabilities"] == ["return-path"]
        assert info["features"] == [] and info["issues"] == []


async def test_an_older_source_has_no_named_channels() -> None:
    async with qemu_destination() as (_, port):
        accept = await accepted(port, changed(CHECK, optional_capabilities=[
            "multifd", "postcopy-preempt", "switchover-ack"]))
        assert accept.capabilities == ["return-path", "switchover-ack"]
        assert [item.capability for item in accept.declined] == ["multifd", "postcopy-preempt"]
        reject = await refused(port, changed(CHECK, profile={
            "required-capabilities": ["dirty-bitmaps", "multifd"]}))
        assert codes(reject) == [("transport", "multifd")]


async def test_an_older_source_compares_less() -> None:
    """Shorter lists: what only the destination has is no error."""
    hello = await real_hello()
    for name in ("sections", "ram-blocks"):
        del hello["profile"][name][1:]
    async with qemu_destination(pc_lab()) as (_, port):
        accept = await accepted(port, hello)
        assert {(issue.code, issue.severity) for issue in accept.issues} == {
            ("section-extra", "warning"), ("ram-block-extra", "warning"), ("no-return", "info"),
            ("channels-untried", "info")}


async def test_the_oldest_destination_accepts() -> None:
    """Neither features nor parameters, nor a word on what it declines."""
    async with calling() as call_:
        assert call_.hello.optional_capabilities == ["multifd", "switchover-ack"]
        await call_.accept()
        await call_.commit()
        assert not call_.listener.waiting
        info = await call_.source.handshake()
        assert info["capabilities"] == ["return-path"] and "peer" not in info
        assert info["features"] == [] and info["issues"] == []


@pytest.mark.parametrize("value", [
    {"message": "capability 'multifd' is not known here"}, {"message": "no", "issues": []},
    {"message": "no", "issues": [{"code": "transport", "severity": "error", "message": "text"}]}])
async def test_the_oldest_destination_refuses(value: Object) -> None:
    async with calling(capabilities=("multifd",)) as call_:
        assert call_.hello.profile.required_capabilities == ["multifd"]
        await call_.answer(REJECT, value)
        await call_.failed(value["message"])
        info = await call_.source.handshake()
        assert info["status"] == "rejected"
        assert [(issue.get("code"), issue["severity"]) for issue in info["issues"]] == [
            (issue["code"], "error") for issue in value.get("issues", [])]


async def test_an_older_destination_knows_less() -> None:
    """It has the feature and takes one of two; the other one is not used."""
    async with calling(channels=2) as call_:
        await call_.accept(capabilities=["return-path", "switchover-ack"],
                           features=["named-channels"],
                           declined=[{"capability": "multifd", "reason": "not built in"}])
        await call_.commit()
        info = await call_.source.handshake()
        assert info["declined"] == [{"capability": "multifd", "reason": "not built in"}]
        assert not call_.listener.waiting


def from_the_future(value: Any) -> Any:
    """With unknown members in every object, of all types."""
    if isinstance(value, dict):
        inner = {key: from_the_future(item) for key, item in value.items()}
        return {"x-before": STRANGE, **inner, "later": {"later": {"name": -1}}}
    if isinstance(value, list):
        return [from_the_future(item) for item in value]
    return value


async def test_a_source_from_the_future() -> None:
    """All at once: it is understood as if it were of today."""
    today = await real_hello()
    later = from_the_future(today)
    later["versions"] = [7, 65535, *later["versions"]]
    later["features"] = ["x-new-owner", "x-new", *later["features"]]
    later["optional-capabilities"] += ["x-new", "grease-00c0ffee"]
    later["profile"]["capabilities"] = ["x-new"]
    later["profile"]["parameters"] = [Parameter("x-new", "x-new-level", "7").write(),
                                      *from_the_future(multifd(3, "zlib"))]
    today["profile"]["parameters"] = multifd(3, "zlib")
    async with qemu_destination(pc_lab()) as (destination, port):
        plain = await accepted(port, today)
        accept = await accepted(port, later, future_header(), *FUTURE_FRAMES)
        assert accept.version == 1 and accept.issues == plain.issues
        assert accept.capabilities == plain.capabilities
        assert [item.write() for item in accept.parameters] == multifd(3, "zlib")
        assert [item.capability for item in accept.declined] == ["x-new", "grease-00c0ffee"]
        assert {name for name in accept.features if not grease.is_name(name)} == set(FEATURES)
        assert len(accept.not_understood) == 64
        # What a device has promised is data to the other implementation.
        ignored = {name for name in accept.not_understood
                   if ".promises." not in name and ".mapped[" not in name}
        assert ignored and ignored <= set(Hello.read(later).not_understood)
        info = await destination.handshake()
        assert info["features"] == FEATURES and info["protocol-version"] == 1
        assert [item["capability"] for item in info["declined"]] == ["x-new", "grease-00c0ffee"]
        assert info["peer"]["machine"] == today["profile"]["machine"]


async def test_a_source_from_the_future_migrates() -> None:
    """The digest is of its long header and its strange frames, too, and of those before HELLO."""
    later = from_the_future(CAN_ALL)
    async with loading_destination() as (destination, port), call(port) as talk:
        await talk.say(future_header(), *FUTURE_FRAMES[:9], message(HELLO, later))
        begin = talk.said
        assert isinstance(await talk.verdict(), Accept)
        commit = {"later": [1], "digest": digest(begin, talk.inbox.read), "grease-00000000": {}}
        await talk.say(*FUTURE_FRAMES[9:], Frame(COMMIT, message(COMMIT, commit).payload, 0xffff))
        await require_loading(destination)


FUTURE_DEMANDS: dict[str, tuple[Object, list[tuple[str, str]]]] = {
    "versions": ({"versions": [7, 8]}, [("protocol-version", "7")]),
    "feature": ({"required": ["x-new-owner"]}, [("required-feature", "x-new-owner")]),
    "grease as a feature": ({"required": ["grease-00c0ffee"]},
                            [("required-feature", "grease-00c0ffee")]),
    "purpose": ({"purpose": "resume"}, [("purpose", "resume")]),
    "capability": ({"profile": {"required-capabilities": ["x-new"]}},
                   [("capability-unknown", "x-new")]),
    "capability with parameters": (
        {"profile": {"required-capabilities": ["x-new"],
                     "parameters": [Parameter("x-new", "level", "1").write()]}},
        [("capability-unknown", "x-new")]),
    "parameter": ({"profile": {"required-capabilities": ["multifd"],
                               "parameters": [
                                   Parameter("multifd", "multifd-qatzip-level", "3").write()]}},
                  [("parameter-unknown", "multifd-qatzip-level")]),
    "parameter of one without": (
        {"profile": {"required-capabilities": ["dirty-bitmaps"],
                     "parameters": [Parameter("dirty-bitmaps", "alias", "x").write()]}},
        [("parameter-unknown", "alias")]),
}


@pytest.mark.parametrize("members, expected", FUTURE_DEMANDS.values(), ids=FUTURE_DEMANDS)
async def test_what_a_source_from_the_future_needs(members: Object,
                                                   expected: list[tuple[str, str]]) -> None:
    """It is refused, and told what is not known here."""
    async with qemu_destination() as (destination, port):
        async with ask(port, {**CAN_ALL, **members}) as talk:
            reject = await talk.verdict()
        assert [code for code, _ in codes(reject)] == [code for code, _ in expected]
        for issue, (_, word) in zip(reject.issues, expected):
            assert word in f"{issue.subject} {issue.source} {issue.message}"
        info = await destination.handshake()
        assert [issue["code"] for issue in info["issues"]] == [code for code, _ in expected]
        assert info["status"] == "rejected"


async def test_channels_from_the_future() -> None:
    """What an effective capability does not call for is dropped; the session goes on."""
    hello = changed(CAN_ALL, optional_capabilities=["multifd"])
    async with qemu_destination() as (destination, port), ask(port, hello) as talk:
        session = await session_of(talk)
        for name, index in (("rdma", 0), ("main", 7), ("multifd", 2), ("x" * 16, 0)):
            async with call(port) as other:
                await other.say(Header(session, name, index))
                assert await other.rest() == b""
        async with call(port) as other:
            await other.say(Header(session, "multifd", 1, b"later " * 672, 7, b"\xee" * 20))
            assert await other.is_answered()
            assert await other.is_silent() and await talk.is_silent()
            talk.close()
            await require_free(destination, port)


FUTURE_ISSUES: list[Any] = [
    {"code": "x-new", "severity": "fatal", "subject": "s", "message": "one", "later": {}},
    {"code": "uuid", "severity": "info", "message": "two", "later": []}]


async def test_a_destination_from_the_future_accepts() -> None:
    """It is bound to what the source knows; the rest is said to nobody."""
    async with calling(channels=2) as call_:
        later = from_the_future({
            "version": 1, "features": ["x-new-owner", "named-channels"],
            "peer": {"qemu-version": "23.1.4", "arch": "x86_64", "machine": "pc-i440fx-23.1"},
            "declined": [{"capability": "multifd", "reason": "text", "code": 7},
                         {"capability": "x-new", "reason": "text"}],
            "not-understood": ["versions"], "issues": FUTURE_ISSUES, "issues-omitted": 2})
        later["capabilities"] = ["return-path", "switchover-ack"]
        await call_.answer(ACCEPT, later, future_header(SESSION.bytes), *FUTURE_FRAMES)
        await call_.commit()
        info = await call_.source.handshake()
        assert info["features"] == ["named-channels"]
        assert info["peer"] == {"qemu-version": "23.1.4", "arch": "x86_64",
                                "machine": "pc-i440fx-23.1"}
        assert info["capabilities"] == ["return-path", "switchover-ack"]
        assert [item["capability"] for item in info["declined"]] == ["multifd"]
        seen = [(issue.get("code"), issue["severity"], issue.get("message"))
                for issue in info["issues"]]
        assert ("x-new", "warning", "one") in seen and ("uuid", "info", "two") in seen
        assert info["issues-omitted"] == 2


async def test_a_destination_from_the_future_refuses() -> None:
    async with calling(NO_MULTIFD) as call_:
        later = from_the_future({"message": "for reasons to come", "version": 9,
                                 "issues": FUTURE_ISSUES, "features": ["x-new"],
                                 "peer": {"machine": "pc-i440fx-23.1"}})
        await call_.answer(REJECT, later, future_header(SESSION.bytes), *FUTURE_FRAMES)
        info = await call_.failed("for reasons to come")
        told = info["handshake"]
        assert told["status"] == "rejected" and told["session"] == str(SESSION)
        assert told["peer"] == {"machine": "pc-i440fx-23.1"} and told["features"] == []
        assert [issue["code"] for issue in told["issues"]] == ["x-new", "uuid"]


async def test_a_last_word_from_the_future() -> None:
    async with calling(NO_MULTIFD) as call_:
        await call_.accept(features=FEATURES)
        await call_.commit()
        await call_.last_word({**from_the_future(GOOD_WORD), "guest": "stuck"},
                              *[Frame(11 + number, b"", 0).encode() for number in range(2)])
        await call_.failed("no memory")


@pytest.mark.parametrize("members", [
    {"version": 7}, {"capabilities": ["return-path", "x-new"]},
    {"parameters": [Parameter("x-new", "level", "1").write()]}], ids=str)
async def test_a_destination_from_the_future_asks_too_much(members: Object) -> None:
    """Nothing can be ignored there."""
    async with calling(NO_MULTIFD) as call_:
        await call_.accept(**members)
        await call_.abort()


async def test_profiles_in_files() -> None:
    """A HELLO without grease; one of another age is judged as it would be on the wire."""
    async with pc_lab() as lab:
        source = await start_source(lab)
        await set_channels(source, 9)
        today = await source.execute("query-migrate-profile")
        hello = Hello.read(today)
        assert hello.purpose == "check" and not hello.not_understood
        assert Combination("postcopy-preempt", "postcopy-ram") in hello.combinations
        assert "postcopy-preempt" in [item.capability for item in hello.declined]
        assert not list(grease.find(today))
        assert hello.profile.parameters == [Parameter("multifd", "multifd-channels", "9")]
        destination, _ = await start_destination(lab)
        for profile in (today, from_the_future(today), MINIMUM):
            judgement = await destination.execute("check-migrate-profile", {"profile": profile})
            assert judgement["compatible"]
            assert {issue["code"] for issue in judgement["issues"]} <= {"channels-untried"}
        for name, value, code in (("required", ["x-new"], "required-feature"),
                                  ("versions", [7], "protocol-version")):
            judgement = await destination.execute("check-migrate-profile",
                                                  {"profile": {**today, name: value}})
            assert not judgement["compatible"]
            assert [issue["code"] for issue in judgement["issues"]] == [code]
