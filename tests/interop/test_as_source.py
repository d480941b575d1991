# SPDX-License-Identifier: GPL-2.0-or-later
"""A source that is not QEMU, and what a destination that is QEMU makes of it.

Numbers are those of the specification's "Conformance checklist", B for both
sides and D for a destination.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import Callable
from typing import Any, Optional

import pytest
from machine import Machine
from processes import pc_lab, set_capabilities, set_channels
from qmhs.frames import (ABORT, ACCEPT, COMMIT, HELLO, LAST_WORD, NO_SESSION, REJECT, Frame,
                         Header, digest, message)
from qmhs.messages import NOT_STARTED, Accept, Parameter, Reason, Reject
from qmhs.strictjson import Object, compose
from talk import (CAN_ALL, CHECK, MINIMUM, Talk, Words, accepted, ask, call, changed, codes,
                  commit, committed, join, joined, judged, loading_destination, multifd,
                  qemu_destination, refused, require_free, require_loading, session_of)
from test_qmhs import BAD_JSON, GOOD_ISSUE, GOOD_JSON, LAX_JSON

UNKNOWN = 0x1234
SKIPPED = Frame(UNKNOWN, b"\xff\0 no JSON", 0)
LEGACY = (b"QEVM\0\0\0\x03" + bytes(100), b"\x11\x22\x33\x44\0\0\0\x01" + bytes(100))
MULTIFD: Object = {**CAN_ALL, "optional-capabilities": ["multifd"]}


def hello_frame(**members: Any) -> Frame:
    return message(HELLO, changed(MINIMUM, **members))


def profile(**members: Any) -> Object:
    return changed(CAN_ALL, profile=changed({}, **members))


def with_field(at: int, field: bytes, data: bytes = Header().encode()) -> bytes:
    return data[:at] + field + data[at + len(field):]


async def hear_nothing(talk: Talk) -> None:
    """The connection ends, soon, without a word."""
    assert await talk.rest() == b""


async def test_accepted_up_to_commit() -> None:
    """Who says nothing more leaves a destination that listens."""
    async with qemu_destination() as (destination, port):
        for _ in range(3):
            async with ask(port, CAN_ALL) as talk:
                assert isinstance(await talk.verdict(), Accept)
            await require_free(destination, port)


async def test_committed() -> None:
    """Without other channels it loads at once; from there on it is as without a handshake."""
    async with loading_destination() as (destination, port), ask(port, CAN_ALL) as talk:
        await committed(talk)
        await require_loading(destination)
        assert await talk.is_silent()


@pytest.mark.parametrize("hello", [
    MINIMUM, CAN_ALL, MULTIFD, CHECK, changed(CHECK, versions=[2]),
    changed(MINIMUM, required=["x"])],
    ids=["minimum", "features", "multifd", "check", "refused check", "refused"])
async def test_b11_one_byte_at_a_time(hello: Object) -> None:
    """B11. The answer is the same."""
    async with qemu_destination() as (_, port), call(port) as talk:
        whole = type(await judged(port, changed(hello, purpose="check")))
        for byte in Header().encode() + message(HELLO, hello).encode():
            await talk.say(bytes([byte]))
            await asyncio.sleep(0)
        assert isinstance(await talk.verdict(), whole)


async def test_b11_an_end_at_every_byte() -> None:
    """B11. It is silence that answers, until HELLO is there as a whole."""
    data = Header().encode() + hello_frame(purpose="check").encode()
    async with qemu_destination() as (_, port):
        for count in range(len(data)):
            async with call(port) as talk:
                await talk.say(data[:count])
                talk.end()
                await hear_nothing(talk)


@pytest.mark.parametrize("header", [
    Header(extension=bytes(1)), Header(extension=random.randbytes(4032)), Header(reserved=0xffff),
    Header(reserved_end=b"\xff" * 20), Header(random.randbytes(16))],
    ids=["65", "4096", "reserved", "reserved end", "session"])
async def test_b1_headers(header: Header) -> None:
    """B1. Longer ones, reserved bytes, a session that a source should not have."""
    async with loading_destination() as (destination, port):
        await accepted(port, CHECK, header)
        async with ask(port, MINIMUM, header) as talk:
            await committed(talk)
            await require_loading(destination)


@pytest.mark.parametrize("data", [
    b"SSH-2.0-OpenSSH_9.2\r\n", b"GET / HTTP/1.1\r\n\r\n", b"\x16\x03\x01\x02\0\x01\0\x01",
    b"QMHT" + bytes(60), bytes(64), with_field(6, b"\0\x3f"), with_field(6, b"\x10\x01"),
    with_field(6, b"\xff\xff"), with_field(24, bytes(16)), with_field(24, b"ma in\0"),
    with_field(24, b"main\0x"), with_field(24, b"m\xe4in"), with_field(24, b"\x7f"),
    Header(index=1).encode(), Header(name="Main").encode(), Header(name="mainx").encode(),
    Header(name="grease-0badcafe").encode(), Header(name="cpr").encode(),
    Header(name="multifd").encode()],
    ids=["ssh", "http", "tls", "magic", "zeros", "63", "4097", "65535", "no name", "space",
         "after zero", "latin", "delete", "index", "capital", "longer", "grease", "cpr",
         "multifd"])
async def test_what_is_no_main_channel_is_closed(data: bytes) -> None:
    async with qemu_destination() as (_, port), call(port) as talk:
        await talk.say(data, message(HELLO, CHECK))
        await hear_nothing(talk)


@pytest.mark.parametrize("data", [b"QMHT\0\0\0\x40", b"SSH-2.0-",
                                  with_field(6, b"\0\x3f")[:8], with_field(6, b"\x10\x01")[:8]])
async def test_headers_are_judged_early(data: bytes) -> None:
    """It does not wait for more of what is no header."""
    async with qemu_destination() as (_, port), call(port) as talk:
        await talk.say(data)
        await hear_nothing(talk)


@pytest.mark.parametrize("data", LEGACY, ids=["stream", "multifd"])
async def test_legacy_peers_are_told(data: bytes) -> None:
    """A header for main with a session of zeros, and nothing else."""
    async with qemu_destination() as (_, port), call(port) as talk:
        await talk.say(data)
        header = await talk.header()
        assert (header.name, header.index, header.session) == ("main", 0, NO_SESSION)
        await hear_nothing(talk)


UNKNOWN_FRAMES = [SKIPPED, Frame(0, b"", 0), Frame(0xffff, bytes(131072), 0xfffe),
                  Frame(0x0a0a, b"{", 0)] * 4


@pytest.mark.parametrize("before", [0, 7, 16])
async def test_b3_16_unknown_frames(before: int) -> None:
    """B3. Skipped before HELLO and after it, whatever is in them."""
    first, later = UNKNOWN_FRAMES[:before], UNKNOWN_FRAMES[before:]
    async with loading_destination() as (destination, port):
        async with ask(port, MINIMUM, Header(), *first) as talk:
            begin = talk.said
            await talk.say(*later[:4])      # the verdict has not been read yet
            assert isinstance(await talk.verdict(), Accept)
            word = message(COMMIT, {"digest": digest(begin, talk.inbox.read)})
            await talk.say(*later[4:], word)
            await require_loading(destination)


@pytest.mark.parametrize("flags", [1, 0xffff], ids=["critical", "all flags"])
async def test_b3_a_critical_frame_is_refused_by_type(flags: int) -> None:
    """B3. The message names the type."""
    async with qemu_destination() as (_, port):
        reject = await refused(port, MINIMUM, Header(), Frame(UNKNOWN, b"", flags))
        assert "1234" in str(reject.message) or str(UNKNOWN) in str(reject.message)


VIOLATIONS: dict[str, list[Words]] = {
    "17th unknown frame": [SKIPPED] * 17,
    "HELLO too long": [Frame(HELLO, b" " * 524287 + b"{}").encode()[:8]],
    "unknown frame too long": [Frame(UNKNOWN, bytes(131073), 0).encode()[:8]],
    "longest of all": [b"\xff\xff\xff\xff\x12\x34\0\0"],
    "ACCEPT": [message(ACCEPT, {"version": 1, "capabilities": ["return-path"]})],
    "ACCEPT, not critical": [Frame(ACCEPT, b"{}", 0)],
    "REJECT": [message(REJECT, {"message": "no"})],
    "COMMIT": [message(COMMIT, {"digest": "0" * 64})],
    "ABORT": [message(ABORT, {"message": "no"})],
    "empty HELLO": [Frame(HELLO, b"")],
}


@pytest.mark.parametrize("words", VIOLATIONS.values(), ids=VIOLATIONS)
async def test_d24_violations_before_the_verdict(words: list[Words]) -> None:
    """D24, B2. REJECT to whatever is wrong, as soon as that can be seen."""
    async with qemu_destination() as (_, port), call(port) as talk:
        await talk.say(Header(), *words)
        reject = await talk.verdict()
        assert isinstance(reject, Reject) and reject.message and not reject.issues
        talk.end()
        await hear_nothing(talk)
        assert not talk.was_reset


@pytest.mark.parametrize("payload", BAD_JSON.values(), ids=BAD_JSON)
async def test_b4_json(payload: bytes) -> None:
    """B4. Also somewhere inside of a member that nobody knows."""
    async with qemu_destination() as (_, port):
        await refused(port, payload)
        if payload.startswith(b'{"') and payload.endswith(b"}"):
            await refused(port, compose(CHECK)[:-1] + b"," + payload[1:])


async def test_b4_what_may_be_taken() -> None:
    """B4. It may be refused as well, and does no harm; QEMU takes it, as the text says."""
    async with qemu_destination() as (_, port):
        for payload in LAX_JSON.values():
            await accepted(port, compose(CHECK)[:-1] + b"," + payload[1:])


@pytest.mark.parametrize("payload", GOOD_JSON.values(), ids=GOOD_JSON)
async def test_b4_good_json(payload: bytes) -> None:
    """B4, B5. What is allowed, in a member that nobody knows."""
    async with qemu_destination() as (_, port):
        core = compose(CHECK)[:-1]
        if payload in (GOOD_JSON["256 members"], GOOD_JSON["8192 objects"]):
            payload = payload.replace(b'"0":0,"1":1,"2":2,', b"").replace(b"{},", b"", 1)
        inner = payload.strip()[1:]
        await accepted(port, core + (b"}" if inner == b"}" else b"," + inner))


NO_LIST: list[Any] = [None, {}, "x"]
NO_OBJECT: list[Any] = [None, [], True]

STRICT: dict[str, Object] = {
    "versions": {"versions": 1}, "purpose": {"purpose": ["migrate"]}, "required": {"required": {}},
    "versions null": {"versions": None}, "features": {"features": "x"},
    "optional-capabilities": {"optional-capabilities": {}},
    "warnings-as-errors": {"warnings-as-errors": 1}, "profile": {"profile": []},
    **{f"{name}, {wrong!r}": {"profile": {name: wrong}}
       for name in ("qemu-version", "package", "arch", "machine", "uuid", "name")
       for wrong in (7, None)},
    **{f"{name}, {wrong!r}": {"profile": {name: wrong}}
       for name in ("page-size", "host-page-size") for wrong in (-1, "4096", True)},
    **{f"{name}, {wrong!r}": {"profile": {name: wrong}}
       for name in ("capabilities", "required-capabilities", "sections", "ram-blocks",
                    "unmigratable", "blockers", "parameters") for wrong in NO_LIST},
    **{f"{name} {item}": {name: [item]} for name in ("declined", "combinations")
       for item in ({}, {"capability": "x"}, {"capability": 1, "reason": "x", "with": "y"})},
    **{f"{name}, {wrong!r}": {"profile": {name: wrong}}
       for name in ("stream",) for wrong in NO_OBJECT},
    **{f"{name} in stream, {wrong!r}": {"profile": {"stream": {name: wrong}}}
       for name in ("suppress-vmdesc", "x-preempt-pre-7-2") for wrong in (None, 0, "true")},
    **{f"{name}, item {wrong!r}": {"profile": {name: [wrong]}}
       for name in ("sections", "ram-blocks", "parameters") for wrong in (None, 7, "x", [], {})},
    **{f"{name}, item {wrong!r}": {"profile": {name: ["x", wrong]}}
       for name in ("capabilities", "required-capabilities", "unmigratable", "blockers")
       for wrong in (None, 7, {})},
    **{f"{name}, item {wrong!r}": {name: [1 if name == "versions" else "x", wrong]}
       for name in ("versions", "required", "features", "optional-capabilities")
       for wrong in (None, True, -1, {}, 1 << 32)},
    **{f"parameters {item}": {"profile": {"parameters": [item]}} for item in (
        {"name": "multifd-channels", "value": "2"}, {"capability": "multifd", "value": "2"},
        {"capability": "multifd", "name": "multifd-channels"},
        {"capability": "multifd", "name": "multifd-channels", "value": 2},
        {"capability": "multifd", "name": "multifd-channels", "value": None})},
    **{f"sections {item}": {"profile": {"sections": [item]}} for item in (
        {"name": "x"}, {"version": 1}, {"name": 1, "version": 1}, {"name": "x", "version": -1},
        {"name": "x", "version": 1 << 32}, {"name": "n" * 256, "version": 1},
        {"name": "x", "version": None}, {"name": "x", "version": 1, "instances": 1},
        {"name": "x", "version": 1, "instances": [0, "1"]},
        {"name": "x", "version": 1, "instances": [-1]},
        {"name": "x", "version": 1, "instances": [1 << 32]},
        {"name": "x", "version": 1, "minimum-version": "1"},
        {"name": "x", "version": 1, "conditional": 0})},
    **{f"ram-blocks {item}": {"profile": {"ram-blocks": [item]}} for item in (
        {"name": "x"}, {"size": 1}, {"name": 1, "size": 1}, {"name": "x", "size": -1},
        {"name": "x", "size": 1 << 64}, {"name": "n" * 256, "size": 1},
        {"name": "x", "size": 1, "max-size": "1"}, {"name": "x", "size": 1, "page-size": None},
        {"name": "x", "size": 1, "resizeable": 0}, {"name": "x", "size": 1, "conditional": []},
        {"name": "x", "size": 1, "shared-file": ""}, {"name": "x", "size": 1, "address": -1})},
    "16385 sections": {"profile": {"sections": [
        {"name": "x", "version": 1, "instances": list(range(16384))},
        {"name": "y", "version": 1}]}},
    "2049 RAM blocks": {"profile": {"ram-blocks": [{"name": "x", "size": 0}] * 2049}},
}


@pytest.mark.parametrize("members", STRICT.values(), ids=STRICT)
async def test_b6_hello_is_read_strictly(members: Object) -> None:
    """B6. Malformed: there are no issues then."""
    async with qemu_destination() as (_, port):
        reject = await refused(port, {**CHECK, **members})
        assert reject.issues == []


@pytest.mark.parametrize("name", MINIMUM)
async def test_frozen_core(name: str) -> None:
    async with qemu_destination() as (_, port):
        reject = await refused(port, {key: CHECK[key] for key in CHECK if key != name})
        assert name in str(reject.message) and reject.issues == []


async def test_d1_the_first_version() -> None:
    """D1. Not the highest."""
    async with qemu_destination() as (_, port):
        for versions in ([1], [9, 1, 8], [(1 << 32) - 1, 65535, 1, 1]):
            assert (await accepted(port, changed(CHECK, versions=versions))).version == 1
        for versions in ([], [0, 2], [257], [(1 << 31) + 1]):
            reject = await refused(port, changed(CHECK, versions=versions))
            assert [code for code, _ in codes(reject)] == ["protocol-version"]
            assert reject.version == 0


async def test_d2_what_is_refused_by_name() -> None:
    """D2, D5. All at once."""
    async with qemu_destination() as (_, port):
        reject = await refused(port, {**CAN_ALL, "versions": [7], "purpose": "resume",
                                      "required": ["x-new-owner", "named-channels", "late-error",
                                                   "x-new"],
                                      "profile": {"required-capabilities": [
                                          "x-unheard-of", "auto-converge", "return-path"]}})
        assert sorted(code for code, _ in codes(reject)) == [
            "capability-unknown", "capability-unsupported", "protocol-version", "purpose",
            "required-feature", "required-feature"]
        text = " ".join(f"{issue.subject} {issue.source} {issue.message}"
                        for issue in reject.issues)
        for name in ("resume", "x-new-owner", "x-new", "x-unheard-of", "auto-converge"):
            assert name in text
        assert str(reject.message).startswith("6 ")


def of_multifd(name: str, value: str) -> Object:
    return Parameter("multifd", name, value).write()


BAD_PARAMETERS: list[tuple[list[Object], str]] = [
    ([*multifd(4), of_multifd("new-parameter", "1")], "parameter-unknown"),
    *[(multifd(count), "parameter-value") for count in
      (0, 256, "", "x", "-1", "4x", "0x4", "4.0", (1 << 32) + 2, (1 << 64) - 1)],
    ([*multifd(4), *multifd(4)], "parameter-value"),
    (multifd(2, "brotli"), "parameter-value"), (multifd(2, ""), "parameter-value"),
    ([of_multifd("multifd-zlib-level", "1")], "parameter-unknown"),
    ([of_multifd("tls-creds", "x")], "parameter-unknown")]


@pytest.mark.parametrize("parameters, code", BAD_PARAMETERS, ids=lambda value: str(value)[-30:])
async def test_d3_parameters(parameters: list[Object], code: str) -> None:
    """D3. One that cannot be taken declines what is optional, refuses what is required."""
    async with qemu_destination() as (_, port):
        accept = await accepted(port, changed(MULTIFD, purpose="check",
                                              profile={"parameters": parameters}))
        assert accept.capabilities == ["return-path"] and accept.parameters == []
        assert [item.capability for item in accept.declined] == ["multifd"]
        assert accept.declined[0].reason and not accept.issues
        reject = await refused(port, profile(parameters=parameters,
                                             required_capabilities=["multifd"]))
        assert [issue for issue, _ in codes(reject)] == [code]
        # Nobody asked for it.
        accept = await accepted(port, changed(CHECK, profile={"parameters": parameters}))
        assert accept.parameters == [] == accept.declined


@pytest.mark.parametrize("count", ["+4", " 4", "04", "-4294967292"])
async def test_d3_how_numbers_are_written(count: str) -> None:
    """D3. Digits, and nothing else."""
    async with qemu_destination() as (_, port):
        reject = await refused(port, profile(parameters=multifd(count),
                                             required_capabilities=["multifd"]))
        assert [issue for issue, _ in codes(reject)] == ["parameter-value"]


FEATURES_OF_OTHERS: list[Any] = [None, [], ["named-channel", "late-error"]]


async def test_d4_named_channels() -> None:
    """D4. Their parameters are not looked at either."""
    async with qemu_destination() as (_, port):
        for name in ("multifd", "postcopy-preempt"):
            for features in FEATURES_OF_OTHERS:
                hello = changed(CHECK, features=features, optional_capabilities=[name],
                                profile={"parameters": [Parameter(name, "x", "1").write()]})
                accept = await accepted(port, hello)
                assert [item.capability for item in accept.declined] == [name]
                assert accept.capabilities == ["return-path"]
                assert "named-channels" not in accept.features
                reject = await refused(port, changed(hello, profile={
                    "parameters": multifd(0), "required-capabilities": [name]}))
                assert codes(reject) == [("transport", name)]


async def test_d11_the_answer() -> None:
    """D11, B8. Exactly the parameters that are effective, as they were sent and in that order."""
    parameters = [of_multifd("multifd-compression", "none"), *multifd(7),
                  Parameter("return-path", "x", "1").write(), Parameter("new", "x", "1").write(),
                  Parameter("postcopy-ram", "x", "1").write()]
    async with qemu_destination() as (destination, port):
        accept = await accepted(port, changed(
            CHECK, features=["x", "named-channels"],
            optional_capabilities=["return-path", "multifd", "multifd", "new", "events"],
            profile={"parameters": parameters, "required-capabilities": ["dirty-bitmaps"] * 2}))
        assert sorted(accept.capabilities) == ["dirty-bitmaps", "multifd", "return-path"]
        assert [item.write() for item in accept.parameters] == parameters[:2]
        assert {item.capability for item in accept.declined} == {"new", "events"}
        assert [issue.code for issue in accept.issues] == ["channels-untried"]
        info = await destination.handshake()
        assert info["features"] == ["named-channels"]
        assert info["capabilities"] == accept.capabilities
        assert info["parameters"] == {"multifd-channels": 7, "multifd-compression": "none"}
        assert (info["check-only"], info["status"]) == (True, "accepted")


async def test_d9_what_is_not_compared() -> None:
    """D9. Lists that are absent or empty; instances that are none."""
    async with qemu_destination(pc_lab()) as (_, port):
        for lists in ({}, {"sections": [], "ram-blocks": []}):
            assert (await accepted(port, changed(CHECK, profile=lists))).issues == []
        known: Object = {"sections": [{"name": "timer", "version": 2}],
                         "ram-blocks": [{"name": "pc.ram", "size": 16 << 20}]}
        none = {**known, "sections": [*known["sections"], {
            "name": "nobody", "version": 1, "instances": []}]}
        assert (await accepted(port, changed(CHECK, profile=known))).issues == (
            await accepted(port, changed(CHECK, profile=none))).issues != []


async def test_d5_d6_all_issues_of_a_machine() -> None:
    """D5, D6. Each with both values, where there are two."""
    async with qemu_destination(pc_lab("pc-i440fx-10.0")) as (_, port):
        reject = await refused(port, {**MINIMUM, "profile": {
            "machine": "pc-q35-9.0", "arch": "s390x", "page-size": 65536,
            "stream": {"suppress-vmdesc": True, "send-configuration": False, "x-later": 7,
                       "send-switchover-start": False, "x-preempt-pre-7-2": True},
            "sections": [{"name": "timer", "version": 3}, {"name": "nobody", "version": 1},
                         {"name": "perhaps", "version": 1, "conditional": True},
                         {"name": "ram", "version": 4, "instances": [0, 1]}],
            "ram-blocks": [{"name": "pc.ram", "size": 1 << 20}, {"name": "x", "size": 1},
                           {"name": "/rom@etc/acpi/tables", "size": 1 << 20},
                           {"name": "y", "size": 1, "conditional": True}]}})
        found = {(issue.code, issue.subject, issue.severity) for issue in reject.issues}
        subjects = {(code, severity) for code, _, severity in found}
        assert {("machine-type", "error"), ("arch", "error"), ("page-size", "error"),
                ("section-extra", "warning"), ("ram-block-extra", "warning")} <= subjects
        assert {("stream-format", "suppress-vmdesc", "error"),
                ("stream-format", "send-configuration", "error"),
                ("section-version", "timer", "error"), ("section-missing", "nobody", "error"),
                ("section-missing", "perhaps", "warning"), ("section-missing", "ram 1", "error"),
                ("ram-block-size", "pc.ram", "error"), ("ram-block-missing", "x", "error"),
                ("ram-block-missing", "y", "error")} <= found
        assert {subject for code, subject, _ in found if code == "stream-format"} == {
            "suppress-vmdesc", "send-configuration"}
        assert ("ram-block-size", "/rom@etc/acpi/tables", "error") not in found
        machine = next(issue for issue in reject.issues if issue.code == "machine-type")
        assert (machine.source, machine.destination) == ("pc-q35-9.0", "pc-i440fx-10.0")


async def test_many_issues_are_counted() -> None:
    async with qemu_destination(pc_lab()) as (_, port):
        sections = [{"name": f"nobody-{number}", "version": 1} for number in range(1000)]
        reject = await refused(port, changed(CHECK, profile={"sections": sections}))
        assert len(reject.issues) <= 256
        assert len(reject.issues) + reject.issues_omitted > 1000


async def test_long_issues_fit_into_the_frame() -> None:
    """Fewer are listed than could be, so that the frame is no longer than it may be."""
    async with qemu_destination() as (_, port):
        sections = [{"name": f"{number:04}" + "n" * 250, "version": 1} for number in range(1500)]
        reject = await refused(port, changed(CHECK, profile={"sections": sections}))
        assert 100 < len(reject.issues) < 256
        assert len(reject.issues) + reject.issues_omitted >= 1500


async def test_64_optional_capabilities_are_looked_at() -> None:
    async with qemu_destination() as (_, port):
        names = [f"x-new-{number}" for number in range(63)] + ["switchover-ack"]
        accept = await accepted(port, changed(CHECK, optional_capabilities=names))
        assert accept.capabilities == ["return-path", "switchover-ack"]
        assert [item.capability for item in accept.declined] == names[:63]


async def test_warnings_as_errors() -> None:
    async with qemu_destination(pc_lab()) as (_, port):
        hello = changed(CHECK, profile={"arch": "i386"})
        accept = await accepted(port, hello)
        assert [(issue.code, issue.severity) for issue in accept.issues] == [("arch", "warning")]
        reject = await refused(port, changed(hello, warnings_as_errors=True))
        assert [issue.code for issue in reject.issues] == ["arch"]
        await accepted(port, changed(hello, warnings_as_errors=False))


async def test_d22_busy() -> None:
    """D22, D23. Nobody disturbs a session, and a check does not get around it."""
    async with qemu_destination() as (_, port):
        async with ask(port, MINIMUM) as first:
            assert isinstance(await first.verdict(), Accept)
            for hello in (MINIMUM, CHECK, changed(CHECK, versions=[9])):
                reject = await refused(port, hello)
                assert [issue.code for issue in reject.issues] == ["busy"]
            async with call(port) as stranger:
                await stranger.say(b"SSH-2.0\r\n")
                await hear_nothing(stranger)
            assert await first.is_silent()


async def test_d23_checks() -> None:
    """D23, D25. It has no session; whatever the source still says is ignored."""
    async with qemu_destination() as (destination, port):
        async with ask(port, CHECK) as check, ask(port, CHECK) as other:
            assert isinstance(await check.verdict(), Accept)
            assert isinstance(await other.verdict(), Accept)
            assert check.inbox.header and check.inbox.header.session != NO_SESSION
            assert check.inbox.header != other.inbox.header
            async with ask(port, MINIMUM) as migration:
                assert isinstance(await migration.verdict(), Accept)
                await check.say(message(COMMIT, {"digest": digest(check.said, check.inbox.read)}),
                                b"QEVM", bytes(100000))
                await hear_nothing(check)       # its direction is closed, at once
                assert not check.was_reset
                assert await migration.is_silent()
        info = await destination.migration()
        assert info["status"] == "setup"


@pytest.mark.parametrize("hello", [changed(MINIMUM, required=["x"]), CHECK],
                         ids=["refused", "check"])
async def test_d25_it_drains(hello: Object) -> None:
    """D25. Its direction ends at once; what still comes is read, so that no reset eats the end."""
    async with qemu_destination() as (_, port), ask(port, hello) as talk:
        await talk.say(*[SKIPPED] * 10, bytes(100000))
        await talk.verdict()
        await hear_nothing(talk)
        for _ in range(5):
            await talk.say(bytes(10000))
            await asyncio.sleep(0.02)
        assert not talk.was_reset


LATE: dict[str, list[Words]] = {
    "frame too long": [Frame(UNKNOWN, bytes(131073), 0).encode()[:8]],
    "COMMIT too long": [Frame(COMMIT, bytes(131073)).encode()[:8]],
    "LAST WORD too long": [Frame(LAST_WORD, bytes(16385), 0).encode()[:8]],
    "LAST WORD": [message(LAST_WORD, {"message": "no"})],
    "critical frame": [Frame(UNKNOWN, b"")],
    "17th unknown frame": [SKIPPED] * 17,
    "HELLO": [message(HELLO, MINIMUM)],
    "ACCEPT": [message(ACCEPT, {"version": 1, "capabilities": ["return-path"]})],
    "REJECT": [message(REJECT, {"message": "no"})],
    "the stream": list(LEGACY),
    "header": [Header()],
    "an end": [],
    "half a COMMIT": [message(COMMIT, {"digest": "0" * 64}).encode()[:50]],
}


@pytest.mark.parametrize("words", LATE.values(), ids=LATE)
async def test_violations_after_accept(words: list[Words]) -> None:
    """Closes without a word; the session is over, and nothing is applied."""
    async with qemu_destination() as (destination, port), ask(port, MULTIFD) as talk:
        session = await session_of(talk)
        async with joined(port, session) as others:
            await talk.say(*words, b"" if words in (LATE["an end"], LATE["half a COMMIT"])
                           else b"QEVM")
            if words in (LATE["an end"], LATE["half a COMMIT"]):
                talk.end()
            await hear_nothing(talk)
            for other in others:
                await hear_nothing(other)
            await require_untouched(destination)


def leaving_out(*names: Any) -> Callable[[str], list[Words]]:
    return lambda right: [message(COMMIT, {"digest": right, "without": [
        {"capability": name, "reason": "why"} for name in names]})]


def other_digest(right: str) -> str:
    return right[:-1] + ("0" if right[-1] == "f" else "f")


BAD_COMMITS: dict[str, Callable[[str], list[Words]]] = {
    "no JSON": lambda right: [Frame(COMMIT, b"digest " + right.encode())],
    "empty": lambda _: [Frame(COMMIT, b"")],
    "no digest": lambda _: [message(COMMIT, {})],
    "digest null": lambda _: [message(COMMIT, {"digest": None})],
    "wrong digest": lambda right: [message(COMMIT, {"digest": other_digest(right)})],
    "short digest": lambda right: [message(COMMIT, {"digest": right[:-1]})],
    "long digest": lambda right: [message(COMMIT, {"digest": right + "0"})],
    "capital digest": lambda right: [message(COMMIT, {"digest": right.upper()})],
    "two digests": lambda right: [Frame(COMMIT, f'{{"digest":"{right}","digest":"{right}"}}'
                                        .encode())],
    "without no list": lambda right: [message(COMMIT, {"digest": right, "without": {}})],
    "without text": lambda right: [message(COMMIT, {"digest": right, "without": ["multifd"]})],
    "without a reason": lambda right: [message(COMMIT, {"digest": right, "without": [
        {"capability": "multifd"}]})],
    "without what is required": leaving_out("dirty-bitmaps"),
    "without what has no channels": leaving_out("switchover-ack"),
    "without return-path": leaving_out("return-path"),
    "without what is not effective": leaving_out("postcopy-preempt"),
    "without what nobody knows": leaving_out("x-new"),
    "without it twice": leaving_out("multifd", "multifd"),
    "without it and more": leaving_out("multifd", "switchover-ack"),
}
COMMITTING = changed(MULTIFD, optional_capabilities=["multifd", "switchover-ack"],
                     profile={"required-capabilities": ["dirty-bitmaps"]})


@pytest.mark.parametrize("late", [True, False], ids=["late-error", "silent"])
@pytest.mark.parametrize("words", BAD_COMMITS.values(), ids=BAD_COMMITS)
async def test_d15_d17_bad_commits(words: Callable[[str], list[Words]], late: bool) -> None:
    """D15, D17, D25. A last word, if both know it; nothing is applied, and it listens."""
    hello = COMMITTING if late else changed(COMMITTING, features=["named-channels"])
    async with qemu_destination() as (destination, port), ask(port, hello) as talk:
        session = await session_of(talk)
        async with joined(port, session) as others:
            await talk.say(*words(digest(talk.said, talk.inbox.read)), b"QEVM", bytes(100000))
            await require_last_word(talk, late)
            for other in others:
                await hear_nothing(other)
            await require_untouched(destination)
            assert (await destination.handshake())["status"] == "failed"


async def require_last_word(talk: Talk, late: bool = True, *words: str) -> Optional[Reason]:
    if not late:
        await hear_nothing(talk)
        return None
    word = await talk.last_word()
    assert word.guest == NOT_STARTED and word.message and "\n" not in word.message
    for text in words:
        assert text in word.message
    assert not talk.was_reset
    return word


@pytest.mark.parametrize("come, words", [(0, "2 channels"), (1, "1 channel")])
async def test_d15_channels_are_missing(come: int, words: str) -> None:
    """D15. COMMIT comes when all are there, and not before."""
    async with qemu_destination() as (destination, port), ask(port, MULTIFD) as talk:
        async with joined(port, await session_of(talk), come):
            await commit(talk)
            await require_last_word(talk, True, words)
            await require_untouched(destination)


async def test_d17_what_has_changed_since_accept() -> None:
    """D17. It looks again, and tells all the reasons, but for those that ACCEPT had."""
    hello = changed(MULTIFD, profile={"arch": "i386"})
    async with qemu_destination(pc_lab()) as (destination, port), ask(port, hello) as talk:
        accept = await talk.verdict()
        assert isinstance(accept, Accept)
        assert [issue.code for issue in accept.issues] == ["arch"] and talk.inbox.header
        async with joined(port, talk.inbox.header.session):
            await set_capabilities(destination, "mapped-ram")
            await commit(talk)
            word = await require_last_word(talk, True, "mapped-ram")
            assert word and [(issue.code, issue.severity) for issue in word.issues] == [
                ("capability-conflict", "error")]
        await set_capabilities(destination, "mapped-ram", state=False)


@pytest.mark.parametrize("come", [0, 1, 2])
async def test_d15_without_multifd(come: int) -> None:
    """D15. What has come of it is closed, and it goes on without."""
    hello = changed(COMMITTING, profile={"parameters": multifd(2, "zlib")})
    async with loading_destination() as (destination, port), ask(port, hello) as talk:
        async with joined(port, await session_of(talk), come) as others:
            await commit(talk, "multifd")
            await require_loading(destination)
            for other in others:
                await hear_nothing(other)
            info = await destination.handshake()
            assert sorted(info["capabilities"]) == ["return-path", "switchover-ack"]
            assert info["declined"] == [{"capability": "multifd", "reason": "why"}]
            assert info["parameters"] == {}
            assert await talk.is_silent()


async def require_untouched(destination: Machine) -> None:
    for item in await destination.execute("query-migrate-capabilities"):
        assert not item["state"], item
    assert (await destination.execute("query-migrate-parameters"))["multifd-channels"] == 2


@pytest.mark.parametrize("payload", [
    b'{"message":"why"}', b"{}", b"no JSON", b"", b'{"message":1,"issues":[7,{}]}',
    compose({"issues": [GOOD_ISSUE, 7], "issues-omitted": -1})])
async def test_abort_is_always_one(payload: bytes) -> None:
    async with qemu_destination() as (destination, port), ask(port, MULTIFD) as talk:
        assert isinstance(await talk.verdict(), Accept)
        await talk.say(Frame(ABORT, payload))
        await hear_nothing(talk)
        await require_untouched(destination)
        assert (await destination.handshake())["status"] == "cancelled"


async def test_b9_digest_is_of_bytes() -> None:
    """B9. White space, escapes, an extension, unknown frames: all count as they are."""
    hello = b' { "versions" : [\t1 ] ,"purpose":"\\u006digrate","required":[],"x":"\\u00e4"}\n'
    async with loading_destination() as (destination, port):
        header = Header(NO_SESSION, extension=b"extension", reserved=7)
        async with ask(port, hello, header, SKIPPED, SKIPPED) as talk:
            await committed(talk)
            await require_loading(destination)


async def test_d13_channels_after_accept() -> None:
    """D13, D16, D21. In any order, each answered at once; nothing is applied before COMMIT."""
    hello = changed(MULTIFD, profile={"parameters": multifd(3)})
    async with loading_destination() as (destination, port), ask(port, hello) as talk:
        session = await session_of(talk)
        async with join(port, channel(session, index=2)) as third, \
                join(port, Header(session, "multifd", 0, bytes(4032), 7)) as first, \
                call(port) as slow:
            for byte in channel(session, index=1).encode():
                assert not slow.inbox.everything
                await slow.say(bytes([byte]))
            assert await slow.is_answered()
            for line in (first, slow, third, talk):
                assert await line.is_silent()
            await require_untouched(destination)
            assert (await destination.handshake())["status"] == "in-progress"
            await commit(talk)
            await require_loading(destination)
            info = await destination.handshake()
            assert info["parameters"]["multifd-channels"] == 3 and not info["declined"]


def channel(session: bytes, name: str = "multifd", index: int = 0) -> Header:
    return Header(session, name, index)


BAD_CHANNELS: dict[str, Callable[[bytes], bytes]] = {
    "wrong session": lambda session: channel(bytes([session[0] ^ 1]) + session[1:]).encode(),
    "no session": lambda _: channel(NO_SESSION).encode(),
    "unknown name": lambda session: channel(session, "grease-00000000").encode(),
    "capital": lambda session: channel(session, "Multifd").encode(),
    "preempt is not effective": lambda session: channel(session, "preempt").encode(),
    "index out of range": lambda session: channel(session, index=2).encode(),
    "highest index": lambda session: channel(session, index=0xffffffff).encode(),
    "index of main": lambda session: channel(session, "main", 1).encode(),
    "second time": lambda session: channel(session, index=0).encode(),
    "too short": lambda session: channel(session, index=1).encode()[:63],
    "length": lambda session: with_field(6, b"\0\x3f", channel(session, index=1).encode()),
}


@pytest.mark.parametrize("bad", BAD_CHANNELS.values(), ids=BAD_CHANNELS)
async def test_d14_bad_channels_are_dropped_alone(bad: Callable[[bytes], bytes]) -> None:
    """D14. Without a byte; those that have come stay, and the session goes on to load."""
    async with loading_destination() as (destination, port), ask(port, MULTIFD) as talk:
        session = await session_of(talk)
        async with join(port, channel(session)) as good, call(port) as stranger:
            await stranger.say(bad(session))
            stranger.end()
            await hear_nothing(stranger)
            assert await good.is_silent() and await talk.is_silent()
            await require_untouched(destination)
            async with join(port, channel(session, index=1)):
                await commit(talk)
                await require_loading(destination)


async def test_d14_no_channel_after_commit() -> None:
    async with loading_destination() as (destination, port), ask(port, MULTIFD) as talk:
        session = await session_of(talk)
        async with joined(port, session) as others:
            await commit(talk)
            await require_loading(destination)
            async with call(port) as late:
                await late.say(channel(session))
                assert not await late.is_answered()
            for line in (*others, talk):
                assert await line.is_silent()


async def test_d12_parameters_have_the_values_of_the_table() -> None:
    """D12, D11. Not those of the destination: two channels, though it is set to eight."""
    async with loading_destination() as (destination, port):
        await set_channels(destination, 8)
        async with ask(port, MULTIFD) as talk:
            accept = await talk.verdict()
            assert isinstance(accept, Accept) and accept.parameters == []
            assert sorted(accept.capabilities) == ["multifd", "return-path"]
            assert talk.inbox.header
            session = talk.inbox.header.session
            async with joined(port, session), call(port) as third:
                await third.say(channel(session, index=2))
                assert not await third.is_answered()
                await commit(talk)
                await require_loading(destination)
                assert (await destination.handshake())["parameters"] == {
                    "multifd-channels": 2, "multifd-compression": "none"}
                # It is the user's own that is shown.
                own = await destination.execute("query-migrate-parameters")
                assert own["multifd-channels"] == 8


async def test_d21_255_channels() -> None:
    """D21, D13. The last one first, with strangers in between."""
    hello = changed(MULTIFD, profile={"parameters": multifd(255)})
    async with loading_destination() as (destination, port), contextlib.AsyncExitStack() as stack:
        for _ in range(40):
            await stack.enter_async_context(call(port))
        talk = await stack.enter_async_context(ask(port, hello))
        session = await session_of(talk)
        for index in reversed(range(255)):
            await stack.enter_async_context(join(port, channel(session, index=index)))
        assert (await destination.handshake())["status"] == "in-progress"
        await commit(talk)
        await require_loading(destination)


async def test_d15_the_source_goes_while_channels_are_there() -> None:
    """D15, D25. That ends the session, and its channels."""
    async with qemu_destination() as (destination, port), ask(port, MULTIFD) as talk:
        session = await session_of(talk)
        async with join(port, channel(session)) as other:
            talk.end()
            await hear_nothing(other)
            await hear_nothing(talk)
            await require_untouched(destination)
