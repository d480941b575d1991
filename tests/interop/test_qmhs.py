# SPDX-License-Identifier: GPL-2.0-or-later
"""The implementation itself, against the words and the bytes of the specification."""

from __future__ import annotations

import copy
import re
import uuid
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
from conftest import TOP
from qmhs import Incomplete, Malformed, grease
from qmhs.frames import (ABORT, ACCEPT, COMMIT, HELLO, LAST_WORD, LOADED, REJECT, START, Frame,
                         Header, Message, decode_frame, decode_header, decode_late, digest,
                         message, shut)
from qmhs.messages import (NOT_STARTED, Accept, Bitmap, Combination, Commit, Declined, Hello,
                           Issue, Members, Parameter, Peer, Profile, RamBlock, Reason, Reject,
                           Section, read_reason, read_verdict)
from qmhs.negotiation import Here, Judgement, Reader, judge, objections, other_channels
from qmhs.roles import Destination, Opening, ReturnPath, Source
from qmhs.strictjson import Object, compose, parse
from qmhs.transcript import decode

SPECIFICATION = TOP / "docs/interop/migration-handshake.rst"
SESSION = uuid.UUID("7d0f3b5e-2c9a-4e81-b6d4-925a1f08c3e7").bytes


def dumps() -> list[bytes]:
    """The five dumps of section "Test vector"."""
    text = SPECIFICATION.read_text().split("\nTest vector\n")[1].split("\nFeatures by version\n")[0]
    found: list[bytearray] = []
    for offset, line in re.findall(r"^   ([0-9a-f]{4})  ((?:[0-9a-f]{2} ){1,15}[0-9a-f]{2})", text,
                                   re.MULTILINE):
        if int(offset, 16) == 0:
            found.append(bytearray())
        assert len(found[-1]) == int(offset, 16)
        found[-1] += bytes.fromhex(line)
    return [bytes(dump) for dump in found]


def test_vector() -> None:
    """Both roles write it, byte for byte, and read it."""
    hello, accept, commit, multifd, last_word = dumps()
    source = Source(Hello(), with_grease=False)
    assert source.begin() == hello
    destination = Destination(Here(), with_grease=False)
    destination.session = SESSION
    assert destination.receive(hello) == accept
    assert source.receive(accept) == commit
    assert destination.receive(commit + b"QEVM") == b""
    assert (source.state, destination.state) == ("committed", "committed")
    assert source.session == SESSION and destination.stream == b"QEVM"
    assert source.opening(("multifd", 1)).begin() == multifd
    assert decode_header(multifd) == (Header(SESSION, "multifd", 1), 64)
    word = Reason("no memory", guest=NOT_STARTED)
    assert message(LAST_WORD, word.write()).encode() == last_word
    path = ReturnPath()
    path.put(last_word)
    assert path.take_last_word() == word


def test_vector_by_the_byte() -> None:
    """As far as one has come, more is wanted, and nothing is said."""
    hello, accept, commit, *_ = dumps()
    source, destination = Source(Hello(), False), Destination(Here(), with_grease=False)
    source.begin()
    destination.session = SESSION
    said = b"".join(destination.receive(bytes([byte])) for byte in hello)
    assert said == accept
    assert b"".join(source.receive(bytes([byte])) for byte in said) == commit
    for byte in commit:
        assert destination.state == "accepted"
        destination.receive(bytes([byte]))
    assert destination.state == "committed"


def nested(depth: int) -> bytes:
    return b'{"a":' + b"[" * (depth - 1) + b"]" * (depth - 1) + b"}"


GOOD_JSON = {
    "empty": b"{}",
    "white space": b' \t\r\n{"a" :\n1}\n ',
    "integers": b'{"a":[-9223372036854775808,18446744073709551615,0]}',
    "16 deep": nested(16),
    "braces in a string": b'{"a":"' + b"[{" * 40 + b'\\"{"}',
    "name of 255 bytes": b'{"' + b"n" * 255 + b'":1}',
    "long strings": b'{"a":["' + b"n" * 300 + b'"]}',
    "256 members": compose({str(i): i for i in range(256)}),
    "8192 objects": compose({"a": [{}] * 8191}),
    "pair of surrogates": b'{"a":"\\ud83d\\ude00"}',
    "same name elsewhere": b'{"a":{"a":1},"b":{"a":1}}',
    "U+FFFC, DEL": '{"a":"\ufffc\x7f"}'.encode(),
}

# All that nobody sends, and everybody refuses.
BAD_JSON = {
    "nothing": b"",
    "a list": b"[]",
    "null": b"null",
    "two objects": b"{}{}",
    "zero byte at the end": b"{}\0",
    "byte order mark": b"\xef\xbb\xbf{}",
    "no-break space": b"\xc2\xa0{}",
    "form feed": b"\x0c{}",
    "vertical tab": b"{\x0b}",
    "single quotes": b"{'a':1}",
    "comma at the end": b'{"a":1,}',
    "comment": b"{}//",
    "17 deep": nested(17),
    "very deep": b'{"a":' + b"[" * 100000,
    "same name": b'{"a":1,"a":1}',
    "same name, escaped": b'{"a":1,"\\u0061":1}',
    "same name, deep": b'{"b":[{"a":1,"a":2}]}',
    "fraction": b'{"a":1.0}',
    "exponent": b'{"a":1e2}',
    "leading zero": b'{"a":01}',
    "plus": b'{"a":+1}',
    "NaN": b'{"a":NaN}',
    "Infinity": b'{"a":-Infinity}',
    "name of 256 bytes": b'{"' + "ä".encode() * 128 + b'":1}',
    "name of 256 bytes, escaped": b'{"' + b"\\u00e4" * 42 + b'nnnn":1}',
    "name of 256 bytes, deep": b'{"a":[{"' + b"n" * 256 + b'" : 1}]}',
    "257 members": compose({str(i): i for i in range(257)}),
    "257 members, deep": compose({"a": [{str(i): i for i in range(257)}]}),
    "8193 objects": compose({"a": [{}] * 8192}),
    "U+0000": b'{"a":"\0"}',
    "control character": b'{"a":"\x01"}',
    "line break": b'{"a":"\n"}',
    "lone surrogate": b'{"a":"\\ud800"}',
    "lone low surrogate": b'{"a":"\\udc00"}',
    "surrogates the wrong way": b'{"a":"\\ude00\\ud83d"}',
    "surrogate as it is": b'{"a":"\xed\xa0\x80"}',
    "surrogate in a name": b'{"\\udfff":1}',
    "surrogate in a list": b'{"a":[["\\ud800"]]}',
    "U+FFFE, escaped": b'{"a":"\\ufffe"}',
    "U+FFFF": '{"a":"\uffff"}'.encode(),
    "U+FDD0": '{"a":"\ufdd0"}'.encode(),
    "U+10FFFF, escaped": b'{"a":"\\udbff\\udfff"}',
    "U+1FFFE in a name": '{"\U0001fffe":1}'.encode(),
    "overlong": b'{"a":"\xc0\xaf"}',
    "beyond Unicode": b'{"a":"\xf4\x90\x80\x80"}',
    "not UTF-8": b'{"a":"\xff"}',
    "unknown escape": b'{"a":"\\x41"}',
    "short escape": b'{"a":"\\u41"}',
    "unterminated": b'{"a":"',
}

# All that nobody sends, and somebody may take.
LAX_JSON = {
    "too large": b'{"a":18446744073709551616}',
    "too small": b'{"a":-9223372036854775809}',
    "very many digits": b'{"a":' + b"1" * 10000 + b"}",
    "U+0000, escaped": b'{"a":"\\u0000"}',
    "U+0000 in a name": b'{"\\u0000":1}',
    "apostrophe, escaped": b"{\"a\":\"\\'\"}",
}


@pytest.mark.parametrize("payload", GOOD_JSON.values(), ids=GOOD_JSON)
def test_json_good(payload: bytes) -> None:
    assert parse(compose(parse(payload))) == parse(payload)


@pytest.mark.parametrize("payload", [*BAD_JSON.values(), *LAX_JSON.values()],
                         ids=[*BAD_JSON, *LAX_JSON])
def test_json_bad(payload: bytes) -> None:
    with pytest.raises(Malformed):
        parse(payload)


@pytest.mark.parametrize("header", [
    Header(), Header(SESSION, "preempt"), Header(SESSION, "multifd", 0xffffffff),
    Header(name="!" * 16), Header(extension=bytes(range(256)) * 15 + bytes(192)),
    Header(reserved=0xffff, reserved_end=b"\xff" * 20)])
def test_header_good(header: Header) -> None:
    data = header.encode() + b"QEVM"
    assert decode_header(data) == (header, len(data) - 4)
    assert 64 <= len(data) - 4 <= 4096
    for end in range(len(data) - 4):
        with pytest.raises(Incomplete):
            decode_header(data[:end])


@pytest.mark.parametrize("at, field, needed", [
    (0, b"QEVM", 2), (0, b"\x11", 1), (3, b"X", 4), (6, b"\0\x3f", 8), (6, b"\x10\x01", 8),
    (24, bytes(16), 64), (24, b"a b", 64), (24, b"\x7f", 64), (24, b"\xe4", 64),
    (25, b"\0", 64), (24, b"\0", 64)])
def test_header_bad(at: int, field: bytes, needed: int) -> None:
    data = bytearray(Header().encode())
    data[at:at + len(field)] = field
    for end in range(needed):
        with pytest.raises(Incomplete):
            decode_header(bytes(data[:end]))
    with pytest.raises(Malformed):
        decode_header(bytes(data[:needed]))


@pytest.mark.parametrize("kind, longest", [(HELLO, 524288), (ACCEPT, 131072), (COMMIT, 131072),
                                           (0x0a0a, 131072), (0, 131072), (0xffff, 131072),
                                           (LAST_WORD, 16384)])
def test_frame_bounds(kind: int, longest: int) -> None:
    frame = Frame(kind, bytes(longest), 0xfffe)
    assert decode_frame(b"??" + frame.encode() + b"!", 2) == (frame, 2 + 8 + longest)
    assert not frame.is_critical and replace(frame, flags=0xffff).is_critical
    with pytest.raises(Malformed):
        decode_frame(Frame(kind, bytes(longest + 1)).encode()[:8])
    with pytest.raises(Incomplete):
        decode_frame(frame.encode()[:-1])


FULL_HELLO = Hello([3, 1], "check", ["a"], ["b"], ["multifd"], True, ["cpu", "disk:d"], Profile(
    Peer("1", "2", "x86_64", "pc"), 4096, 8192, "u", "n", ["events"], ["dirty-bitmaps"],
    [Parameter("multifd", "multifd-channels", "4")], {"suppress-vmdesc": False},
    [Section("s", 4, [0, 7], True)],
    [RamBlock("r", 1, 2, 3, True, True, True, 9)], [Bitmap("d", "b0"), Bitmap("e")], ["device"],
    ["why"]),
    [Declined("x", "y")], [Combination("x", "z", "w")])
FULL_ISSUE = Issue("code", "info", "text", "subject", "1", "2")
FULL_VERDICT: dict[str, Any] = {
    "features": ["f"], "not_understood": ["x"], "peer": Peer("1"), "issues": [FULL_ISSUE],
    "issues_omitted": 2, "version": 1}


@pytest.mark.parametrize("value", [
    FULL_HELLO, Hello(), Commit("0" * 64), Commit("1", [Declined("x", "y")]),
    Reason("why", [FULL_ISSUE], 3), Reason(guest=NOT_STARTED),
    Accept(**FULL_VERDICT, capabilities=["return-path"], parameters=[Parameter("a", "b", "c")],
           declined=[Declined("x", "y")]),
    Reject(**FULL_VERDICT, message="why"), Reject()],
    ids=lambda value: type(value).__name__)
def test_messages_are_read_as_written(value: Any) -> None:
    assert type(value).read(parse(compose(value.write()))) == value


WRONG: list[Any] = [None, True, -1, "x", [], {}]


def other_types(right: Any) -> list[Any]:
    """Values of all types that the specification tells apart."""
    return [value for value in WRONG if type(value) is not type(right)
            or isinstance(right, int) and value == -1]


Path = tuple[Any, ...]


def paths(value: Any, path: Path = ()) -> list[Path]:
    """Of all members, at any depth."""
    found: list[Path] = []
    for step, inner in (value.items() if isinstance(value, dict) else
                        enumerate(value) if isinstance(value, list) else ()):
        found += [(*path, step), *paths(inner, (*path, step))]
    return found


def spoilt(value: Any, path: Path, wrong: Any) -> Any:
    value = copy.deepcopy(value)
    member(value, path[:-1])[path[-1]] = wrong
    return value


FULL_ACCEPT = Accept(**FULL_VERDICT, capabilities=["return-path"], message="m",
                     parameters=[Parameter("a", "b", "c")], declined=[Declined("x", "y")])
FULL = {**{("HELLO", *path): (FULL_HELLO, path) for path in paths(FULL_HELLO.write())},
        **{("ACCEPT", *path): (FULL_ACCEPT, path) for path in paths(FULL_ACCEPT.write())},
        ("COMMIT", "digest"): (Commit("1"), ("digest",)),
        ("COMMIT", "without"): (Commit("1", [Declined("x", "y")]), ("without", 0, "reason"))}


@pytest.mark.parametrize("message_, path", FULL.values(),
                         ids=[".".join(map(str, path)) for path in FULL])
def test_types(message_: Any, path: Path) -> None:
    """Everything that is known has its type, at any depth, in items as well."""
    value = message_.write()
    for wrong in other_types(member(value, path)):
        with pytest.raises(Malformed):
            type(message_).read(spoilt(value, path, wrong))


def member(value: Any, path: Path) -> Any:
    for name in path:
        value = value[name]
    return value


ALWAYS = [("versions",), ("purpose",), ("required",),
          *[("profile", "parameters", 0, name) for name in ("capability", "name", "value")],
          *[("profile", "sections", 0, name) for name in ("name", "version")],
          *[("profile", "ram-blocks", 0, name) for name in ("name", "size")],
          *[("profile", "bitmaps", index, "node") for index in (0, 1)],
          *[("declined", 0, name) for name in ("capability", "reason")],
          *[("combinations", 0, name) for name in ("capability", "with")]]


@pytest.mark.parametrize("path", paths(FULL_HELLO.write()), ids=lambda path: ".".join(
    map(str, path)))
def test_what_is_always_there(path: Path) -> None:
    value = FULL_HELLO.write()
    if isinstance(path[-1], int):
        return
    del member(value, path[:-1])[path[-1]]
    if path in ALWAYS:
        with pytest.raises(Malformed):
            Hello.read(value)
    else:
        Hello.read(value)


def test_bounds_of_numbers_and_names() -> None:
    """32 bits; names of 255 bytes."""
    value = FULL_HELLO.write()
    for path, most in ((("versions", 0), (1 << 32) - 1),
                       (("profile", "sections", 0, "version"), (1 << 32) - 1),
                       (("profile", "sections", 0, "instances", 1), (1 << 32) - 1),
                       (("profile", "ram-blocks", 0, "size"), (1 << 64) - 1),
                       (("profile", "page-size"), (1 << 64) - 1)):
        Hello.read(spoilt(value, path, most))
        if most < 1 << 32:
            with pytest.raises(Malformed):
                Hello.read(spoilt(value, path, most + 1))
    for kind in ("sections", "ram-blocks"):
        Hello.read(spoilt(value, ("profile", kind, 0, "name"), "n" * 255))
        with pytest.raises(Malformed):
            Hello.read(spoilt(value, ("profile", kind, 0, "name"), "ä" * 128))
    with pytest.raises(Malformed):
        Accept.read({"version": 1 << 32})


def test_instances() -> None:
    """Absent, empty, some."""
    def every(**members: Any) -> list[int]:
        return Section.read(Members({"name": "s", "version": 1, **members})).every_instance

    assert (every(), every(instances=[]), every(instances=[2, 1])) == ([0], [], [2, 1])


@pytest.mark.parametrize("kind, most", [("sections", 16384), ("ram-blocks", 2048),
                                        ("bitmaps", 1024)])
def test_bounds_of_the_profile(kind: str, most: int) -> None:
    items = ([{"name": "s", "version": 1, "instances": list(range(most - 1))}] if kind == "sections"
             else [{"name": "s", "size": 1, "node": "n"}] * (most - 1))
    last = {"name": "t", "version": 1, "size": 1, "node": "n"}
    Hello.read({**Hello().write(), "profile": {kind: [*items, last]}})
    with pytest.raises(Malformed):
        Hello.read({**Hello().write(), "profile": {kind: [*items, last, last]}})


def test_bound_of_what_is_ignored() -> None:
    assert Hello.read({**Hello().write(), "ignore": ["x-new"] * 64}).ignore == ["x-new"] * 64
    with pytest.raises(Malformed):
        Hello.read({**Hello().write(), "ignore": ["cpu"] * 65})


GOOD_ISSUE = {"code": "a", "severity": "error", "message": "b"}
BAD_ISSUES: list[Any] = [None, 7, "x", [], {}, {**GOOD_ISSUE, "code": 1},
                         {**GOOD_ISSUE, "subject": None}, {"code": "a", "message": "b"}]


def test_what_counts_by_its_type_is_never_malformed() -> None:
    """What is good in it is not lost."""
    for wrong in WRONG:
        value = {name: wrong for name in ("message", "issues", "issues-omitted", "version",
                                          "features", "not-understood", "peer", "guest")}
        for read in (Reject.read, Reason.read):
            assert read(value).issues == [] and read(value).issues_omitted == 0
    for name in ("features", "peer", "issues-omitted", "version", "message"):
        reject = Reject.read({"message": "why", "issues": [GOOD_ISSUE], name: 1.5})
        assert [issue.code for issue in reject.issues] == ["a"]
        assert reject.message == (None if name == "message" else "why")
    value = {"message": "why", "issues": [GOOD_ISSUE, *BAD_ISSUES, GOOD_ISSUE],
             "issues-omitted": 3}
    for read in (Reject.read, Reason.read):
        assert len(read(value).issues) == 2
        assert read(value).issues_omitted == 3 + len(BAD_ISSUES)
        assert read(value).message == "why"
    assert read_verdict(False, b"no JSON") == Reject() and read_reason(b"") == Reason()
    with pytest.raises(Malformed):
        read_verdict(True, compose({"version": 1, "issues": BAD_ISSUES[:1]}))


def test_severities() -> None:
    value = {**GOOD_ISSUE, "severity": "fatal", "new": 1}
    assert Accept.read({"issues": [value]}).issues == [Issue("a", "warning", "b")]


def test_not_understood() -> None:
    hello = Hello.read({**Hello().write(), "x": 1, "profile": {
        "y": {"z": 1}, "stream": {"w": 0}, "sections": [{"name": "s", "version": 1},
                                                       {"name": "t", "version": 1, "v": 2}]}})
    assert sorted(hello.not_understood) == ["profile.sections[1].v", "profile.stream.w",
                                            "profile.y", "x"]


def possible(capabilities: Any) -> bool:
    names = set(capabilities)
    return (not {"multifd", "postcopy-ram"} <= names
            and not ("postcopy-preempt" in names and "postcopy-ram" not in names)
            and "x-ignore-shared" not in names)


def channels(value: object) -> Parameter:
    return Parameter("multifd", "multifd-channels", str(value))


def asked(required: Sequence[str], optional: Sequence[str] = (),
          features: Sequence[str] = ("named-channels",), parameters: Sequence[Parameter] = (),
          here: Here = Here(possible=possible), purpose: str = "migrate") -> Judgement:
    profile = Profile(required_capabilities=list(required), parameters=list(parameters))
    return judge(Hello(purpose=purpose, features=list(features),
                       optional_capabilities=list(optional), profile=profile), here)


def codes(result: Judgement) -> list[tuple[str, str]]:
    return [(issue.code or "", issue.subject or "") for issue in result.issues]


def test_required_capabilities() -> None:
    assert asked(["postcopy-preempt", "postcopy-ram"]).capabilities == [
        "return-path", "postcopy-ram", "postcopy-preempt"]
    assert codes(asked(["events", "new", "x-ignore-shared", "return-path"])) == [
        ("capability-unsupported", "events"), ("capability-unknown", "new"),
        ("capability-unsupported", "x-ignore-shared")]
    assert codes(asked(["multifd", "postcopy-ram"])) == [("capability-conflict", "postcopy-ram")]
    assert codes(asked(["multifd", "dirty-bitmaps"], features=[])) == [("transport", "multifd")]
    assert codes(asked(["multifd"], parameters=[
        Parameter("multifd", "new", "1"), channels(256),
        Parameter("multifd", "multifd-compression", "brotli")])) == [
            ("parameter-unknown", "new"), ("parameter-value", "multifd-channels"),
            ("parameter-value", "multifd-compression")]
    assert codes(asked(["multifd"], parameters=[channels(2), channels(2)])) == [
        ("parameter-value", "multifd-channels")]
    assert codes(asked(["dirty-bitmaps"], parameters=[
        Parameter("dirty-bitmaps", "multifd-channels", "2"), channels(0)])) == [
            ("parameter-unknown", "multifd-channels")]
    for value in ("", "0", "02", "+2", "-2", " 2", "2 ", "0x2", "2.0", "256", "1000", "two"):
        assert codes(asked(["multifd"], parameters=[channels(value)])), value
    for value in ("1", "9", "255"):
        assert not codes(asked(["multifd"], parameters=[channels(value)])), value


def test_optional_capabilities() -> None:
    result = asked(["dirty-bitmaps"], ["return-path", "postcopy-preempt", "postcopy-ram",
                                       "multifd", "events", "new", "postcopy-ram"],
                   parameters=[channels(3), Parameter("new", "a", "1"),
                               Parameter("return-path", "a", "1")])
    assert result.is_accepted and not result.issues
    assert result.parameters == []
    assert result.capabilities == ["return-path", "dirty-bitmaps", "postcopy-ram"]
    assert [item.capability for item in result.declined] == ["postcopy-preempt", "multifd",
                                                             "events", "new"]
    assert asked([], ["multifd"], parameters=[channels(3)]).parameters == [channels(3)]
    assert asked([], ["multifd"], features=[]).declined[0].capability == "multifd"
    assert asked([], ["multifd"], parameters=[channels(0)]).declined[0].capability == "multifd"


def test_what_needs_channels_may_be_dropped() -> None:
    """So nothing becomes effective that is impossible without it."""
    here = Here(possible=lambda names: "switchover-ack" not in names or "multifd" in names)
    result = asked([], ["multifd", "switchover-ack"], here=here)
    assert result.capabilities == ["return-path", "multifd"]
    result = asked(["multifd"], ["switchover-ack"], here=here)
    assert result.capabilities == ["return-path", "multifd", "switchover-ack"]


def test_channels_are_not_tried_in_a_check() -> None:
    for purpose, expected in (("migrate", []), ("check", [("channels-untried", "multifd")])):
        result = asked([], ["multifd", "switchover-ack"], purpose=purpose)
        assert codes(result) == expected and result.is_accepted
    assert not codes(asked([], ["switchover-ack"], purpose="check"))
    assert codes(asked(["x-new"], ["multifd"], purpose="check")) == [
        ("capability-unknown", "x-new")]


def test_versions() -> None:
    assert judge(Hello([3, 2, 1]), Here(versions=(1, 2))).version == 2
    assert judge(Hello([1, 2]), Here(versions=(1, 2))).version == 1
    result = judge(Hello([9], "resume", ["x-new-owner", "named-channels"]), Here())
    assert codes(result) == [("protocol-version", "versions"), ("purpose", "resume"),
                             ("required-feature", "x-new-owner")]


HERE = Here(Peer(arch="x86_64", machine="pc"), page_size=4096, uuid="AB",
            stream={"suppress-vmdesc": False, "multifd-flush-after-each-section": False},
            sections={("a", 0): Reader(3, 2), ("b", 0): Reader(1, 1, False)},
            ram_blocks=[RamBlock("r", 8192, page_size=4096), RamBlock("s", 4096, 65536,
                                                                      resizeable=True)],
            bitmaps=[Bitmap("disk"), Bitmap("alias", "b0")])
A, R, S = Section("a", 3), RamBlock("r", 8000, page_size=4096), RamBlock("s", 60000)


@pytest.mark.parametrize("profile, expected", [
    (Profile(), []),
    (Profile(Peer(arch="x86_64", machine="pc"), 4096, uuid="ab", sections=[A],
             ram_blocks=[R, S]), []),
    (Profile(Peer(arch="i386", machine="pc-1"), 8192),
     ["error machine-type", "warning arch", "error page-size"]),
    (Profile(Peer(arch="s390x"), 0, uuid="cd"), ["error arch", "warning uuid"]),
    (Profile(uuid="cd", capabilities=["validate-uuid"]), ["error uuid"]),
    (Profile(stream={"suppress-vmdesc": True, "send-configuration": False}),
     ["error stream-format"]),
    (Profile(stream={"multifd-flush-after-each-section": True}), []),
    (Profile(stream={"multifd-flush-after-each-section": True},
             required_capabilities=["multifd"]), ["error stream-format"]),
    (Profile(sections=[Section("a", 4), Section("c", 1, [0, 1]), Section("d", 1, [], True)]),
     ["error section-version", "error section-missing", "error section-missing"]),
    (Profile(sections=[Section("a", 3), Section("d", 1, None, True)]),
     ["warning section-missing"]),
    (Profile(sections=[Section("b", 1), Section("a", 1, None, True)]),
     ["warning section-version"]),
    (Profile(sections=[Section("b", 1)]), ["warning section-extra", "info no-return"]),
    (Profile(sections=[Section("a", 2)]), ["info no-return"]),
    (Profile(sections=[Section("a", 2, None, True)]), []),
    (Profile(bitmaps=[Bitmap("disk", "b0"), Bitmap("gone", "b0")]), []),
    (Profile(bitmaps=[Bitmap("disk", "b0"), Bitmap("gone", "b0"), Bitmap("alias", "b1")],
             required_capabilities=["dirty-bitmaps"]), ["error bitmap-missing"] * 2),
    (Profile(bitmaps=[Bitmap("disk", "b0"), Bitmap("alias", "b0")],
             required_capabilities=["dirty-bitmaps"]), []),
    (Profile(ram_blocks=[RamBlock("r", 8193), RamBlock("t", 1, conditional=True)]),
     ["error ram-block-size", "error ram-block-missing", "warning ram-block-extra"]),
    (Profile(ram_blocks=[R, RamBlock("s", 65537)]), ["error ram-block-size"]),
    (Profile(ram_blocks=[replace(R, page_size=2 << 20), S]), []),
    (Profile(ram_blocks=[replace(R, page_size=2 << 20), S],
             required_capabilities=["postcopy-ram"]), ["error ram-block-page-size"]),
    (Profile(unmigratable=["d"], blockers=["b"]), ["error unmigratable"] * 2)])
def test_comparison(profile: Profile, expected: list[str]) -> None:
    hello = Hello(features=["named-channels"], profile=profile)
    result = judge(hello, HERE)
    assert [f"{issue.severity} {issue.code}" for issue in result.issues] == expected
    assert result.is_accepted == ("error" not in " ".join(expected))
    strict = judge(replace(hello, warnings_as_errors=True), HERE)
    assert strict.is_accepted == all(text.startswith("info") for text in expected)


PROMISED: Object = {"cpu-features": ["sse", "sse2"], "disk-writable": ["0"], "vnet-hdr": True}


@pytest.mark.parametrize("change, stays", [
    ({}, False), ({"cpu-features": ["sse"]}, True), ({"disk-writable": []}, True),
    ({"vnet-hdr": False}, True), ({"cpu-features": ["sse2", "sse", "avx"]}, False),
    ({"pci-config": "0:01"}, False)])
def test_promises_on_the_way_back(change: Object, stays: bool) -> None:
    """What it would get here, and a source of the same version does not speak of."""
    own = {**PROMISED, "cpu-features": ["sse", "sse2", "vmx-ept"]}
    promises = {**PROMISED, **change}
    here = Here(Peer("10.0.0"), sections={("a", 0): Reader(1, promises=own)})

    def is_kept(version: str, section: Section) -> bool:
        result = judge(Hello(profile=Profile(Peer(version), sections=[section])), here)
        assert result.is_accepted
        return [(issue.severity, issue.code) for issue in result.issues] == [("info", "no-return")]

    assert is_kept("10.0.0", Section("a", 1, promises=promises)) == stays
    assert not is_kept("10.2.0", Section("a", 1, promises=promises))
    assert not is_kept("10.0.0", Section("a", 1, None, True, promises))
    assert not is_kept("10.0.0", Section("a", 1))


@pytest.mark.parametrize("ignore, severity", [
    (["section-missing"], "warning"), (["uuid", "section-missing:c 1"], "warning"),
    (["section-missing:c"], "error"), (["section-missing:"], "error"), (["cpu"], "error"),
    (["unmigratable"], "error"), (["x-new"], "error")])
def test_what_is_ignored(ignore: list[str], severity: str) -> None:
    profile = Profile(sections=[A, Section("c", 1, [1])])
    for strict in (False, True):
        hello = Hello(ignore=ignore, profile=profile, warnings_as_errors=strict)
        result = judge(Hello.read(hello.write()), HERE)
        issue, = result.issues
        assert issue.severity == severity and result.is_accepted == (severity == "warning")
        assert issue.message.endswith(" (ignored)") == (severity == "warning")
        assert bool(objections(hello, SESSION, Accept(
            version=1, capabilities=["return-path"], issues=[issue]))) == (
                strict and severity == "error")
    twice = replace(profile, unmigratable=["d"])
    assert not judge(Hello(ignore=["section-missing", "unmigratable"], profile=twice),
                     HERE).is_accepted


def test_what_is_not_shared_here() -> None:
    """An error, unless the block is a device's: its contents may be elsewhere."""
    here = replace(HERE, ram_blocks=[RamBlock("r", 4096), RamBlock("0000:00:02.0/vram", 4096)])
    for name, severity in (("r", "error"), ("0000:00:02.0/vram", "warning")):
        blocks = [replace(block, shared_file=block.name == name)
                  for block in here.ram_blocks or []]
        profile = Profile(ram_blocks=blocks, required_capabilities=["x-ignore-shared"])
        found = judge(Hello(profile=profile), here).issues
        assert [(issue.code, issue.severity) for issue in found] == [
            ("capability-unsupported", severity)]
        optional = judge(Hello(optional_capabilities=["x-ignore-shared"],
                               profile=Profile(ram_blocks=blocks)), here)
        assert ("x-ignore-shared" in optional.capabilities) == (severity == "warning")


def test_barred_capabilities_are_declined() -> None:
    profile = Profile(stream={"multifd-flush-after-each-section": True},
                      ram_blocks=[replace(R, page_size=2 << 20), replace(S, shared_file=True)])
    result = judge(Hello(features=["named-channels"], profile=profile, optional_capabilities=[
        "multifd", "postcopy-ram", "x-ignore-shared", "dirty-bitmaps"]), HERE)
    assert result.is_accepted and result.capabilities == ["return-path", "dirty-bitmaps"]
    result = judge(Hello(optional_capabilities=["dirty-bitmaps"],
                         profile=Profile(bitmaps=[Bitmap("gone", "b0")])), HERE)
    assert result.is_accepted and not result.issues and result.capabilities == ["return-path"]


OFFER = Hello(features=["named-channels", "late-error"], optional_capabilities=["multifd"],
              profile=Profile(required_capabilities=["dirty-bitmaps"], parameters=[
                  channels(1), Parameter("events", "x", "y")]))
FINE = Accept(["named-channels", "new"], version=1,
              capabilities=["multifd", "dirty-bitmaps", "return-path"], parameters=[channels(1)])


def test_source_checks() -> None:
    assert objections(OFFER, SESSION, FINE) == []
    assert objections(OFFER, SESSION, replace(FINE, capabilities=["return-path", "dirty-bitmaps"],
                                              parameters=[])) == []
    strict = replace(OFFER, warnings_as_errors=True)
    assert objections(strict, SESSION, replace(FINE, issues=[Issue("a", "info", "b")])) == []
    bad = [(OFFER, bytes(16), FINE),
           (strict, SESSION, replace(FINE, issues=[Issue("a", "warning", "b")])),
           (replace(OFFER, features=[]), SESSION, FINE)]
    bad += [(OFFER, SESSION, replace(FINE, **change)) for change in BAD_ACCEPTS]
    for case in bad:
        assert len(objections(*case)) == 1, case


BAD_ACCEPTS: list[dict[str, Any]] = [
    {"version": 2}, {"version": 0}, {"features": []}, {"parameters": []},
    {"parameters": [channels(2)]}, {"parameters": [channels(1), channels(1)]},
    {"parameters": [channels(1), Parameter("multifd", "multifd-compression", "none")]},
    {"parameters": OFFER.profile.parameters},
    {"capabilities": ["multifd", "dirty-bitmaps"]}, {"capabilities": ["multifd", "return-path"]},
    {"capabilities": ["multifd", "multifd", "dirty-bitmaps", "return-path"]},
    {"capabilities": ["multifd", "dirty-bitmaps", "return-path", "postcopy-ram"]}]


def test_grease() -> None:
    """Where the specification wants it, and known by nobody."""
    assert grease.NUMBERS[0] == 0x0a0a and grease.NUMBERS[-1] == 0xfafa
    assert {grease.number() for _ in range(500)} == set(grease.NUMBERS)
    assert list(grease.find({"grease-00000000": 1, "a": [{"grease-0123abcd": 2}],
                             "versions": [2570], "b": {"c": "grease-ffffffff"}})) == [
                                 "", "a[0].", "versions[]", "b.c"]
    assert not list(grease.find({"grease-0": 1, "grease-0000000G": 2, "features": [2570]}))
    # A capability with such a name is like any other unknown one.
    assert codes(asked(["grease-00000000"])) == [("capability-unknown", "grease-00000000")]


def conversation(source: Source, destination: Destination, begin: bytes = b"",
                 refused: Sequence[tuple[str, int]] = ()) -> bytes:
    """Up to COMMIT; returns what the destination says to it."""
    word = source.receive(destination.receive(begin or source.begin()))
    if source.state == "opening":
        failed = {}
        for place in source.channels:
            opening = source.opening(place)
            header, _ = decode_header(opening.begin())
            opening.receive(b"" if place in refused else destination.take(header))
            if opening.state != "open":
                failed[place] = "refused"
        word = source.opened(failed)
    return destination.receive(word + b"QEVM")


@pytest.mark.parametrize("with_grease", [False, True], ids=["plain", "grease"])
@pytest.mark.parametrize("hello, here, ends", [
    (OFFER, Here(), ("committed", "committed")),
    (replace(OFFER, purpose="check"), Here(), ("checked", "checked")),
    (replace(OFFER, versions=[2]), Here(), ("refused", "refused")),
    (OFFER, Here(negotiable=["multifd"]), ("refused", "refused")),
    (OFFER, Here(features=[]), ("committed", "committed")),
    (Hello(profile=Profile(uuid="x")), HERE, ("committed", "committed")),
    (Hello(warnings_as_errors=True, profile=Profile(uuid="x")), HERE, ("refused", "refused"))],
    ids=["accept", "check", "version", "capability", "older", "warning", "strict"])
def test_each_other(hello: Hello, here: Here, ends: tuple[str, str], with_grease: bool) -> None:
    source = Source(hello, with_grease)
    destination = Destination(here, with_grease=with_grease)
    assert not conversation(source, destination)
    assert (source.state, destination.state) == ends
    assert destination.stream == (b"QEVM" if ends[0] == "committed" else b"")
    assert bool(source.verdict and source.verdict.not_understood) == with_grease


BOTH = Hello(features=["named-channels", "late-error"],
             optional_capabilities=["multifd", "postcopy-ram", "postcopy-preempt"],
             profile=Profile(parameters=[channels(3)]))


@pytest.mark.parametrize("refused, without", [
    ([], []), ([("multifd", 2)], ["multifd"]), ([("preempt", 0)], ["postcopy-preempt"]),
    ([("multifd", 0), ("multifd", 1), ("preempt", 0)], ["multifd", "postcopy-preempt"])])
def test_what_does_not_get_through(refused: list[tuple[str, int]], without: list[str]) -> None:
    source, destination = Source(BOTH), Destination(Here())
    assert not conversation(source, destination, refused=refused)
    assert source.state == destination.state == "committed"
    assert [item.capability for item in source.without] == without
    assert [item.capability for item in destination.judgement.declined] == without
    assert set(destination.judgement.capabilities) == {
        "return-path", "multifd", "postcopy-ram", "postcopy-preempt"} - set(without)
    assert destination.judgement.parameters == ([] if "multifd" in without else [channels(3)])


def test_what_is_required_has_to_get_through() -> None:
    hello = replace(OFFER, optional_capabilities=[], profile=replace(
        OFFER.profile, required_capabilities=["multifd"]))
    source, destination = Source(hello), Destination(Here())
    conversation(source, destination, refused=[("multifd", 0)])
    assert source.state == destination.state == "aborted"
    assert source.problem == destination.problem == "refused"


def accepting(hello: Hello = BOTH, here: Here = Here()) -> tuple[Source, Destination]:
    source, destination = Source(hello), Destination(here)
    source.receive(destination.receive(source.begin()))
    assert (source.state, destination.state) == ("opening", "accepted")
    return source, destination


def test_places() -> None:
    """Those of the session, each once, and none after COMMIT."""
    source, destination = accepting()
    assert source.channels == destination.channels == [
        ("multifd", 0), ("multifd", 1), ("multifd", 2), ("preempt", 0)]
    for bad in (Header(SESSION, "multifd"), Header(destination.session, "multifd", 3),
                Header(destination.session, "preempt", 1), Header(destination.session, "main", 1),
                Header(destination.session, "cpr"), Header(name="multifd")):
        assert destination.take(bad) == b""
    for place in reversed(source.channels):
        header = Header(destination.session, *place)
        assert destination.take(replace(header, extension=b"later", reserved=7)) == header.encode()
        assert destination.take(header) == b""
    assert not destination.receive(source.opened({})) and destination.state == "committed"
    assert destination.take(Header(destination.session, "multifd", 0)) == b""


def test_defaults_of_the_table() -> None:
    assert other_channels(["multifd"], []) == [("multifd", 0), ("multifd", 1)]
    assert other_channels(["return-path"], [channels(4)]) == []


@pytest.mark.parametrize("answer, state", [
    (Header(SESSION, "multifd", 1), "open"), (Header(SESSION, "multifd", 0), "failed"),
    (Header(SESSION, "multifd", 1, b"later" * 9, 7), "open"), (Header(SESSION), "failed"),
    (Header(bytes(16), "multifd", 1), "failed"), (Header(SESSION, "preempt", 1), "failed"),
    (b"SSH-", "failed"), (b"", "failed")])
def test_answers(answer: Any, state: str) -> None:
    data = answer if isinstance(answer, bytes) else answer.encode()
    opening = Opening(Header(SESSION, "multifd", 1))
    for byte in data[:-1]:
        if opening.state == "waiting":
            opening.receive(bytes([byte]))
    assert opening.state in ("waiting", state)
    if opening.state == "waiting":
        opening.receive(data[-1:])
    assert opening.state == state and (opening.beyond == b"" or state == "failed")


BAD_COMMITS: dict[str, Any] = {
    "digest": lambda right: {"digest": right[::-1]}, "none": lambda _: {},
    "missing": lambda right: {"digest": right},
    "type": lambda right: {"digest": right, "without": ["multifd"]},
    "no reason": lambda right: {"digest": right, "without": [{"capability": "multifd"}]},
    **{f"without {names}": lambda right, names=names: {"digest": right, "without": [
        {"capability": name, "reason": "x"} for name in names]}
       for names in (["postcopy-ram"], ["return-path"], ["switchover-ack"], ["x-new"],
                     ["multifd"], ["postcopy-preempt", "postcopy-preempt", "multifd"])},
}


@pytest.mark.parametrize("features, said", [(["named-channels", "late-error"], True),
                                            (["named-channels"], False)])
@pytest.mark.parametrize("commit", BAD_COMMITS.values(), ids=BAD_COMMITS)
def test_bad_commits(commit: Any, features: list[str], said: bool) -> None:
    """The destination applies nothing, and says so if it can; the source reads it."""
    source, destination = accepting(replace(BOTH, features=features))
    frame, _ = decode_frame(source.opened({}))
    right = parse(frame.payload)["digest"]
    answer = destination.receive(message(COMMIT, commit(right)).encode() + b"QEVM")
    assert destination.state == "failed" and bool(answer) == said
    source.receive(Message(2, bytes(4)).encode() + answer)
    assert source.state == ("failed" if said else "committed")
    if said:
        assert source.last_word and source.last_word.guest == NOT_STARTED
        assert source.last_word.message == destination.problem


def test_required_ones_cannot_be_left_out() -> None:
    hello = replace(BOTH, profile=Profile(required_capabilities=["multifd"]))
    source, destination = accepting(hello)
    source.without = [Declined("multifd", "x")]
    assert destination.receive(source.opened({})) and destination.state == "failed"


def test_the_return_path() -> None:
    """Byte by byte; other messages, 16 unknown frames, and not one more."""
    word = message(LAST_WORD, Reason("why").write()).encode()
    assert word[:2] == b"\0\0" and decode_late(word)[1] == len(word)
    others = b"\0\2\0\4\0\0\0\1" + Frame(0x0a0a, b"{", 0).encode() * 16
    for data, fine in ((others + word, True), (others + others + word, False),
                       (Frame(11, b"").encode() + word, False),
                       (Frame(0x0a0a, bytes(16385), 0).encode(), False)):
        path = ReturnPath()
        for byte in data[:-1]:
            path.put(bytes([byte]))
        if fine:
            with pytest.raises(Incomplete):
                path.take_last_word()
            path.put(data[-1:])
            assert path.take_last_word().message == "why"
        else:
            with pytest.raises(Malformed):
                path.take_last_word()


STREAM = b"QEVM and all the rest"
OWNERS = Hello(features=["late-error", "one-owner"])
NEVER = message(LAST_WORD, Reason("no disk", guest=NOT_STARTED).write()).encode()
DOUBTFUL = message(LAST_WORD, Reason("no disk").write()).encode()
ASKS = message(LOADED, {}).encode()
GIVES = message(START, {}).encode()
REMARK = Issue("load", "warning", "no bitmap")


def loading(hello: Hello = OWNERS, here: Here = Here(),
            with_grease: bool = True) -> tuple[Source, Destination]:
    """The whole stream has been sent, and read."""
    source, destination = Source(hello, with_grease), Destination(here, with_grease=with_grease)
    destination.receive(source.receive(destination.receive(source.begin())) + STREAM)
    assert destination.stream == STREAM
    source.all_sent()
    return source, destination


@pytest.mark.parametrize("with_grease", [False, True], ids=["plain", "grease"])
def test_hand_over(with_grease: bool) -> None:
    source, destination = loading(with_grease=with_grease)
    asks = destination.loaded(len(STREAM), remarks=[REMARK])
    assert destination.state == "asking" and decode_late(asks)[0].type == LOADED
    gives = source.receive(asks)
    assert source.state == "given" and decode_frame(gives)[0].type == START
    assert not source.keep() and source.remarks == [REMARK]
    if not with_grease:
        assert gives == GIVES
    assert [destination.receive(gives[at:at + 1]) for at in range(len(gives))][-1] == (
        shut(0).encode())
    assert destination.state == "started"
    source.receive(shut(0).encode())
    assert source.state == "completed" and not source.keep()


def test_start_may_come_early() -> None:
    """A destination reads it whenever it comes."""
    _, destination = loading()
    destination.receive(GIVES)
    assert destination.loaded(len(STREAM)).endswith(shut(0).encode())
    assert destination.state == "started"


@pytest.mark.parametrize("hello, here, starts", [
    (OWNERS, Here(), False), (replace(OWNERS, features=["late-error"]), Here(), True),
    (OWNERS, Here(features=["late-error"]), True), (OWNERS, Here(features=[]), True),
    (Hello(), Here(), True)], ids=["paused", "older source", "older", "oldest", "oldest source"])
def test_nobody_asks(hello: Hello, here: Here, starts: bool) -> None:
    source, destination = loading(hello, here)
    said = destination.loaded(len(STREAM), starts, [REMARK])
    assert destination.state == ("started" if starts else "paused")
    late = "late-error" in hello.features and "late-error" in here.features
    assert (said != shut(0).encode()) == late
    assert source.receive(said) == b"" and source.state == "completed"
    assert source.remarks == ([REMARK] if late else [])


# What a source hears after all of the stream, and what it makes of it: "" is the end.
HEARD: dict[str, tuple[list[bytes], str]] = {
    "nothing": ([b""], "failed"), "gone": ([ASKS, b""], "in doubt"),
    "half of LOADED": ([ASKS[:-1], b""], "failed"),
    "never": ([NEVER, b""], "failed"), "never, after START": ([ASKS, NEVER, b""], "failed"),
    "doubtful": ([DOUBTFUL, b""], "failed"),
    "doubtful, after START": ([ASKS, DOUBTFUL, b""], "in doubt"),
    "half of a word": ([ASKS, NEVER[:-1], b""], "in doubt"),
    "SHUT 1": ([shut(1).encode()], "failed"),
    "SHUT 1, after START": ([ASKS, shut(1).encode()], "failed"),
    "LOADED twice": ([ASKS, ASKS], "in doubt"), "twice at once": ([ASKS + ASKS], "in doubt"),
    "START": ([GIVES], "failed"), "START, after START": ([ASKS, GIVES], "in doubt"),
    "an unknown one": ([ASKS, Frame(11, b"", 0).encode(), shut(0).encode()], "completed"),
    "a word of another time": ([ASKS, message(LAST_WORD, {
        "message": 7, "guest": "not-started"}).encode()], "failed"),
}


@pytest.mark.parametrize("words, state", HEARD.values(), ids=HEARD)
@pytest.mark.parametrize("slowly", [False, True], ids=["at once", "by the byte"])
def test_what_a_source_hears(words: list[bytes], state: str, slowly: bool) -> None:
    source, _ = loading()
    for word in words:
        for at in range(len(word)) if slowly else []:
            source.receive(word[at:at + 1])
        if not (word and slowly):
            source.receive(word)
    assert source.state == state, source.problem
    assert source.keep() == (state == "failed")


def test_loaded_too_early() -> None:
    """Before the stream's last byte has been written; or without the feature."""
    for features, sent in ((OWNERS.features, False), (["late-error"], True)):
        source, _ = loading(replace(OWNERS, features=features))
        if not sent:
            source = Source(OWNERS)
            source.receive(Destination(Here()).receive(source.begin()))
        source.receive(ASKS)
        assert source.state == "failed" and source.keep()


def test_kept() -> None:
    """What comes then is of no use."""
    source, destination = loading()
    assert source.keep()
    assert source.receive(destination.loaded(len(STREAM))) == b"" and source.state == "failed"


UNKNOWN = Frame(0x3a3a, b"", 0).encode()
IN_PLACE: dict[str, tuple[bytes, str]] = {
    "nothing": (b"", "failed"), "half": (GIVES[:-1], "failed"), "START": (GIVES, "started"),
    "ABORT": (message(ABORT, {"message": "changed my mind"}).encode(), "failed"),
    "16 others": (UNKNOWN * 16 + GIVES, "started"), "17": (UNKNOWN * 17 + GIVES, "failed"),
    "a critical one": (Frame(11, b"").encode() + GIVES, "failed"),
    "LOADED": (ASKS + GIVES, "failed"), "more of the stream": (b"\6\0\0\0\1{" + GIVES, "failed"),
    "as long as it may be": (Frame(START, b"{}" + b" " * 131070).encode(), "started"),
    "too long": (Frame(START, b"{}" + b" " * 131071).encode(), "failed"),
}


@pytest.mark.parametrize("words, state", IN_PLACE.values(), ids=IN_PLACE)
def test_in_place_of_start(words: bytes, state: str) -> None:
    """Whoever has not read all of it never starts the guest, and says so."""
    source, destination = loading()
    source.receive(destination.loaded(len(STREAM)))
    said = destination.receive(words) or destination.receive(b"")
    assert destination.state == state, destination.problem
    source.receive(said)
    assert source.state == ("completed" if state == "started" else "failed")
    assert bool(source.last_word and source.last_word.gives_back) == (state == "failed")


def test_cannot_start() -> None:
    """Though it has been given the guest: so it gives that back."""
    source, destination = loading()
    destination.obstacle = "the image is locked"
    said = destination.receive(source.receive(destination.loaded(len(STREAM))))
    assert destination.state == "failed" and said.endswith(shut(1).encode())
    source.receive(said)
    assert source.state == "failed" and source.problem == "the image is locked"


def test_busy() -> None:
    source, destination = Source(OFFER), Destination(Here(), busy=True)
    source.receive(destination.receive(source.begin()))
    assert source.state == destination.state == "refused"
    assert isinstance(source.verdict, Reject) and source.verdict.issues[0].code == "busy"


@pytest.mark.parametrize("spoil", [0, 5, 44, 70, 90, 150])
def test_a_changed_byte_changes_the_digest(spoil: int) -> None:
    """Somebody in between: the destination sees another conversation than the source."""
    source, destination = Source(OFFER, False), Destination(Here(), with_grease=False)
    heard = bytearray(source.begin())
    if spoil == 0:
        heard = bytearray(heard[:64] + Frame(0x1a1a, b"", 0).encode() + heard[64:])
    else:
        heard[spoil] ^= 0x40 if spoil in (90, 150) else 1
    conversation(source, destination, bytes(heard))
    assert source.state == "committed" if spoil in (0, 5, 44) else source.state != "waiting"
    assert destination.state != "committed"


def test_unknown_frames() -> None:
    """16 are skipped, in two places; not the 17th, nor a critical one."""
    for count, critical, state in ((16, 0, "committed"), (17, 0, "failed"), (1, 1, "failed")):
        source, destination = Source(Hello(), False), Destination(Here())
        junk = Frame(0x2a2a, b"\xff", critical).encode()
        word = source.receive(destination.receive(source.begin()))
        destination.receive(junk * count + word)
        assert destination.state == state
        begin = source.begin()
        answer = Destination(Here()).receive(begin[:64] + junk * count + begin[64:])
        kind = decode_frame(answer, decode_frame(answer, 64)[1])[0].type
        assert kind == (ACCEPT if state == "committed" else REJECT)


def test_digest_ends_with_hello() -> None:
    """What comes behind HELLO does not count, though it came along with it."""
    source, destination = Source(Hello()), Destination(Here())
    junk = Frame(0x2a2a, b"", 0).encode()
    destination.receive(source.receive(destination.receive(source.begin() + junk)))
    assert destination.state == "committed"


HERE_PROFILE = Profile(stream={"suppress-vmdesc": False}, sections=[A, A], ram_blocks=[R, S])


@pytest.mark.parametrize("here", [Here(Peer("1")), Here(Peer("1"), versions=[2])],
                         ids=["accept", "reject"])
def test_grease_of_ours(here: Here) -> None:
    """It goes where the specification says, and nowhere else."""
    hello = replace(OFFER, optional_capabilities=["multifd", "x-new"], profile=replace(
        HERE_PROFILE, parameters=[channels(1)]))
    source, destination = Source(hello), Destination(here)
    begin = source.begin()
    answer = destination.receive(begin)
    word = source.receive(answer)
    if source.state == "opening":
        word = source.opened({("multifd", 0): "refused"})
    talk = decode(begin + word + b"QEVM", answer)
    for part in (talk.source, talk.destination):
        assert [frame.type in grease.NUMBERS for frame in part.frames] == [True] + [False] * (
            len(part.frames) - 1)
        assert not part.frames[0].is_critical
    assert sorted(grease.find(talk.source.json(HELLO))) == [
        "", "features[]", "profile.", "profile.parameters[0].", "profile.ram-blocks[0].",
        "profile.sections[0].", "profile.stream.", "versions[]"]
    verdict = talk.destination.json(ACCEPT, REJECT)
    assert len(verdict.pop("not-understood")) == 6
    rest = ["declined[0].", "parameters[0]."] if talk.is_accepted else ["issues[0]."]
    assert sorted(grease.find(verdict)) == sorted(["", "features[]", "peer.", *rest])
    if talk.commit:
        assert sorted(grease.find(talk.source.json(COMMIT))) == ["", "without[0]."]
    word = destination.cannot_go_on("why")
    if word:
        late = parse(decode_frame(word)[0].payload)
        assert list(grease.find({**late, "issues": []})) == [""]


def test_digest_is_of_bytes() -> None:
    hello, accept, commit, *_ = dumps()
    assert message(COMMIT, Commit(digest(hello, accept)).write()).encode() == commit
    assert digest(hello + b" ", accept) != digest(hello, accept)
