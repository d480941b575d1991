# SPDX-License-Identifier: GPL-2.0-or-later
"""The implementation itself, against the words and the bytes of the specification."""

from __future__ import annotations

import re
import uuid
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
from conftest import TOP
from qmhs import Incomplete, Malformed, grease
from qmhs.frames import (ACCEPT, COMMIT, HELLO, REJECT, Frame, Header, decode_frame,
                         decode_header, digest, message)
from qmhs.messages import (Abort, Accept, Commit, Hello, Issue, Peer, Profile, RamBlock, Reject,
                           Section, read_verdict)
from qmhs.negotiation import Here, Judgement, Reader, judge, objections
from qmhs.roles import Destination, Source
from qmhs.strictjson import compose, parse
from qmhs.transcript import decode

SPECIFICATION = TOP / "docs/interop/migration-handshake.rst"
SESSION = uuid.UUID("7d0f3b5e-2c9a-4e81-b6d4-925a1f08c3e7").bytes


def dumps() -> list[bytes]:
    """The four dumps of section "Test vector"."""
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
    hello, accept, commit, multifd = dumps()
    source = Source(Hello(), with_grease=False)
    assert source.begin() == hello
    destination = Destination(Here(), with_grease=False)
    destination.session = SESSION
    assert destination.receive(hello) == accept
    assert source.receive(accept) == commit
    assert destination.receive(commit + b"QEVM") == b""
    assert (source.state, destination.state) == ("committed", "committed")
    assert source.session == SESSION and destination.stream == b"QEVM"
    assert Header(SESSION, "multifd", 1).encode() == multifd
    assert decode_header(multifd) == (Header(SESSION, "multifd", 1), 64)


def test_vector_by_the_byte() -> None:
    """As far as one has come, more is wanted, and nothing is said."""
    hello, accept, commit, _ = dumps()
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
    "256 members": compose({str(i): i for i in range(256)}),
    "8192 objects": compose({"a": [{}] * 8191}),
    "pair of surrogates": b'{"a":"\\ud83d\\ude00"}',
    "same name elsewhere": b'{"a":{"a":1},"b":{"a":1}}',
    "U+FFFC, DEL": '{"a":"\ufffc\x7f"}'.encode(),
}

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
    "too large": b'{"a":18446744073709551616}',
    "too small": b'{"a":-9223372036854775809}',
    "very many digits": b'{"a":' + b"1" * 10000 + b"}",
    "name of 256 bytes": b'{"' + "ä".encode() * 128 + b'":1}',
    "name of 256 bytes, escaped": b'{"' + b"\\u00e4" * 128 + b'":1}',
    "257 members": compose({str(i): i for i in range(257)}),
    "257 members, deep": compose({"a": [{str(i): i for i in range(257)}]}),
    "8193 objects": compose({"a": [{}] * 8192}),
    "U+0000, escaped": b'{"a":"\\u0000"}',
    "U+0000": b'{"a":"\0"}',
    "U+0000 in a name": b'{"\\u0000":1}',
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


@pytest.mark.parametrize("payload", GOOD_JSON.values(), ids=GOOD_JSON)
def test_json_good(payload: bytes) -> None:
    assert parse(compose(parse(payload))) == parse(payload)


@pytest.mark.parametrize("payload", BAD_JSON.values(), ids=BAD_JSON)
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
                                           (0x0a0a, 131072), (0, 131072), (0xffff, 131072)])
def test_frame_bounds(kind: int, longest: int) -> None:
    frame = Frame(kind, bytes(longest), 0xfffe)
    assert decode_frame(b"??" + frame.encode() + b"!", 2) == (frame, 2 + 8 + longest)
    assert not frame.is_critical and replace(frame, flags=0xffff).is_critical
    with pytest.raises(Malformed):
        decode_frame(Frame(kind, bytes(longest + 1)).encode()[:8])
    with pytest.raises(Incomplete):
        decode_frame(frame.encode()[:-1])


FULL_HELLO = Hello([3, 1], "check", ["a"], ["b"], ["multifd"], True, Profile(
    Peer("1", "2", "x86_64", "pc"), 4096, 8192, "u", "n", ["events"], ["dirty-bitmaps"],
    {"multifd": {"multifd-channels": 4}}, {"suppress-vmdesc": False},
    [Section("s", 4, [0, 7], True)],
    [RamBlock("r", 1, 2, 3, True, True, True, 9)], ["device"], ["why"]))
FULL_ISSUE = Issue("code", "info", "subject", "1", "2", "text")


@pytest.mark.parametrize("value", [
    FULL_HELLO, Hello(), Commit("0" * 64), Abort("why", [FULL_ISSUE], 3),
    Accept(["f"], ["x"], Peer("1"), [FULL_ISSUE], 2, 1, ["return-path"], {"multifd": {}}),
    Reject(["f"], ["x"], Peer("1"), [FULL_ISSUE], 2, "why", 1), Reject()],
    ids=lambda value: type(value).__name__)
def test_messages_are_read_as_written(value: Any) -> None:
    assert type(value).read(parse(compose(value.write()))) == value


WRONG: list[Any] = [None, True, -1, "x", [], {}]


def other_types(right: Any) -> list[Any]:
    """Values of all types that the specification tells apart."""
    return [value for value in WRONG if type(value) is not type(right)
            or isinstance(right, int) and value == -1]


@pytest.mark.parametrize("path", [(name,) for name in FULL_HELLO.write()]
                         + [("profile", name) for name in FULL_HELLO.write()["profile"]],
                         ids=".".join)
def test_hello_is_read_strictly(path: tuple[str, ...]) -> None:
    for wrong in other_types(member(FULL_HELLO.write(), path)):
        value = FULL_HELLO.write()
        member(value, path[:-1])[path[-1]] = wrong
        with pytest.raises(Malformed):
            Hello.read(value)


def member(value: Any, path: tuple[str, ...]) -> Any:
    for name in path:
        value = value[name]
    return value


@pytest.mark.parametrize("kind, item", [("sections", {"name": "s", "version": 1}),
                                        ("ram-blocks", {"name": "s", "size": 1})])
def test_items_of_the_profile(kind: str, item: dict[str, Any]) -> None:
    """Without a name: of a later version. With one, all the rest has to be right."""
    def read(items: list[Any]) -> Any:
        profile = Hello.read({**Hello().write(), "profile": {kind: items}}).profile
        return profile.sections if kind == "sections" else profile.ram_blocks

    assert read([]) is None and read([1, "x", None, [], {}, {"version": 7}]) is None
    assert [found.name for found in read([{}, item, 5])] == ["s"]
    assert read([{**item, "new": [1]}]) == read([item])
    for wrong in ({"name": "s"}, {**item, "name": 1}, {**item, list(item)[1]: -1},
                  {**item, list(item)[1]: None}, {**item, "conditional": 1},
                  {**item, "name": "n" * 256}):
        with pytest.raises(Malformed):
            read([wrong])


def test_version_of_a_section_has_32_bits() -> None:
    assert Section.read({"name": "s", "version": 0xffffffff}) == Section("s", 0xffffffff)
    with pytest.raises(Malformed):
        Section.read({"name": "s", "version": 1 << 32})


@pytest.mark.parametrize("kind, most", [("sections", 16384), ("ram-blocks", 2048)])
def test_bounds_of_the_profile(kind: str, most: int) -> None:
    items = ([{"name": "s", "version": 1, "instances": list(range(most - 1))}] if kind == "sections"
             else [{"name": "s", "size": 1}] * (most - 1))
    last = {"name": "t", "version": 1, "size": 1}
    Hello.read({**Hello().write(), "profile": {kind: [*items, last]}})
    with pytest.raises(Malformed):
        Hello.read({**Hello().write(), "profile": {kind: [*items, last, last]}})


def test_lists() -> None:
    """Foreign items are skipped, but not where nothing can be ignored."""
    base = Hello().write()
    foreign: list[Any] = [None, True, -1, {}, [], "x", 2]
    hello = Hello.read({**base, "versions": [*foreign, 1 << 32, 1], "features": foreign,
                        "optional-capabilities": foreign, "declined": 7})
    assert hello.versions == [2, 1]
    assert hello.features == hello.optional_capabilities == ["x"]
    refused: list[dict[str, Any]] = [{"required": ["x", 1]},
                                     {"profile": {"required-capabilities": [{}]}}]
    for wrong in refused:
        with pytest.raises(Malformed):
            Hello.read({**base, **wrong})
    with pytest.raises(Malformed):
        Accept.read({"capabilities": ["return-path", None]})
    for name in ("versions", "purpose", "required"):
        with pytest.raises(Malformed):
            Hello.read({key: base[key] for key in base if key != name})


def test_verdicts_are_read_leniently() -> None:
    for wrong in WRONG:
        value = {name: wrong for name in ("message", "issues", "issues-omitted", "version",
                                          "features", "not-understood", "peer")}
        reject = Reject.read(value)
        assert reject.issues == [] and reject.issues_omitted == 0 and reject.peer == Peer()
        value = {"version": 1, "capabilities": ["return-path"], **{
            name: wrong for name in ("features", "not-understood", "peer", "declined", "issues",
                                     "issues-omitted")}}
        assert Accept.read(value).version == 1
        for name in ("version", "capabilities", "parameters"):
            right = {"version": 1, "capabilities": [], "parameters": {}}[name]
            if wrong in other_types(right):
                with pytest.raises(Malformed):
                    Accept.read({name: wrong})
    assert read_verdict(False, b"no JSON") == Reject()
    assert Issue.read({"code": 1, "severity": "fatal", "new": 1}) == Issue(severity="warning")
    with pytest.raises(Malformed):
        Commit.read({"digest": None})


def test_not_understood() -> None:
    hello = Hello.read({**Hello().write(), "x": 1, "profile": {"y": {"z": 1}}})
    assert sorted(hello.not_understood) == ["profile.y", "x"]


def works(capabilities: Any) -> bool:
    names = set(capabilities)
    return (not {"multifd", "postcopy-ram"} <= names
            and not ("postcopy-preempt" in names and "postcopy-ram" not in names)
            and "x-ignore-shared" not in names)


def asked(required: Sequence[str], optional: Sequence[str] = (),
          features: Sequence[str] = ("named-channels",), **parameters: Any) -> Judgement:
    profile = Profile(required_capabilities=list(required), parameters=parameters)
    return judge(Hello(features=list(features), optional_capabilities=list(optional),
                       profile=profile), Here(works=works))


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
    assert codes(asked(["multifd"], multifd={"new": 1, "multifd-channels": 256,
                                             "multifd-compression": 0})) == [
        ("parameter-unknown", "new"), ("parameter-value", "multifd-channels"),
        ("parameter-value", "multifd-compression")]
    assert codes(asked(["multifd"], multifd=[])) == [("parameter-unknown", "multifd")]
    group: Any = {"dirty-bitmaps": {"x": 1}}
    assert codes(asked(["dirty-bitmaps"], **group)) == [
        ("parameter-unknown", "x")]


def test_optional_capabilities() -> None:
    group: Any = {"return-path": {}}
    result = asked(["dirty-bitmaps"], ["return-path", "postcopy-preempt", "postcopy-ram",
                                       "multifd", "events", "new", "postcopy-ram"],
                   multifd={"multifd-channels": 3}, new={"a": 1}, **group)
    assert result.is_accepted and not result.issues and result.parameters == {}
    assert result.capabilities == ["return-path", "dirty-bitmaps", "postcopy-ram"]
    assert [item.capability for item in result.declined] == ["postcopy-preempt", "multifd",
                                                             "events", "new"]
    result = asked([], ["multifd"], multifd={"multifd-channels": 3})
    assert result.parameters == {"multifd": {"multifd-channels": 3}}
    assert asked([], ["multifd"], features=[]).declined[0].capability == "multifd"
    assert asked([], ["multifd"], multifd=7).declined[0].capability == "multifd"


def test_versions() -> None:
    assert judge(Hello([3, 2, 1]), Here(versions=(1, 2))).version == 2
    assert judge(Hello([1, 2]), Here(versions=(1, 2))).version == 1
    result = judge(Hello([9], "resume", ["late-error", "named-channels"]), Here())
    assert codes(result) == [("protocol-version", "versions"), ("purpose", "resume"),
                             ("required-feature", "late-error")]


HERE = Here(Peer(arch="x86_64", machine="pc"), page_size=4096, uuid="AB",
            stream={"suppress-vmdesc": False, "multifd-flush-after-each-section": False},
            sections={("a", 0): Reader(3, 2), ("b", 0): Reader(1, 1, False)},
            ram_blocks=[RamBlock("r", 8192, page_size=4096), RamBlock("s", 4096, 65536,
                                                                      resizeable=True)])
A, R, S = Section("a", 3), RamBlock("r", 8000, page_size=4096), RamBlock("s", 60000)


@pytest.mark.parametrize("profile, expected", [
    (Profile(), []),
    (Profile(Peer(arch="x86_64", machine="pc"), 4096, uuid="ab", sections=[A],
             ram_blocks=[R, S]), []),
    (Profile(Peer(arch="i386", machine="pc-1"), 8192),
     ["error machine-type", "warning arch", "error page-size"]),
    (Profile(Peer(arch="s390x"), 0, uuid="cd"), ["error arch", "warning uuid"]),
    (Profile(uuid="cd", capabilities=["validate-uuid"]), ["error uuid"]),
    (Profile(stream={"suppress-vmdesc": 0, "send-configuration": False, "new": True}),
     ["error stream-format"]),
    (Profile(stream={"multifd-flush-after-each-section": True}), []),
    (Profile(stream={"multifd-flush-after-each-section": True},
             required_capabilities=["multifd"]), ["error stream-format"]),
    (Profile(sections=[Section("a", 4), Section("c", 1, [0, 1]), Section("d", 1, [], True)]),
     ["error section-version", "error section-missing", "error section-missing",
      "warning section-missing"]),
    (Profile(sections=[Section("b", 1), Section("a", 1, [], True)]), ["warning section-version"]),
    (Profile(sections=[Section("b", 1)]), ["warning section-extra"]),
    (Profile(ram_blocks=[RamBlock("r", 8193), RamBlock("t", 1, conditional=True)]),
     ["error ram-block-size", "warning ram-block-missing", "warning ram-block-extra"]),
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
    assert strict.is_accepted == (not expected)


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


OFFER = Hello(features=["named-channels"], optional_capabilities=["multifd"], profile=Profile(
    required_capabilities=["dirty-bitmaps"],
    parameters={"multifd": {"multifd-channels": 1}, "events": {}}))
FINE = Accept(["named-channels", "new"], version=1,
              capabilities=["multifd", "dirty-bitmaps", "return-path"],
              parameters={"multifd": {"multifd-channels": 1}})


def test_source_checks() -> None:
    assert objections(OFFER, SESSION, FINE) == []
    assert objections(OFFER, SESSION, replace(FINE, capabilities=["return-path", "dirty-bitmaps"],
                                              parameters={})) == []
    strict = replace(OFFER, warnings_as_errors=True)
    assert objections(strict, SESSION, replace(FINE, issues=[Issue(severity="info")])) == []
    bad = [(OFFER, bytes(16), FINE), (strict, SESSION, replace(FINE, issues=[Issue()])),
           (replace(OFFER, features=[]), SESSION, FINE)]
    bad += [(OFFER, SESSION, replace(FINE, **change)) for change in BAD_ACCEPTS]
    for case in bad:
        assert len(objections(*case)) == 1, case


BAD_ACCEPTS: list[dict[str, Any]] = [
    {"version": 2}, {"version": None}, {"features": []}, {"parameters": {}},
    {"parameters": {"multifd": {"multifd-channels": True}}},
    {"parameters": {"multifd": {"multifd-channels": 2}}},
    {"parameters": {"multifd": {"multifd-channels": 1, "multifd-compression": "none"}}},
    {"parameters": {"multifd": {"multifd-channels": 1}, "events": {}}},
    {"capabilities": ["multifd", "dirty-bitmaps"]}, {"capabilities": ["multifd", "return-path"]},
    {"capabilities": ["multifd", "dirty-bitmaps", "return-path", "postcopy-ram"]}]


def test_grease() -> None:
    """Where the specification wants it, and known by nobody."""
    assert grease.NUMBERS[0] == 0x0a0a and grease.NUMBERS[-1] == 0xfafa
    assert {grease.number() for _ in range(500)} == set(grease.NUMBERS)
    assert list(grease.find({"grease-00000000": 1, "a": [{"grease-0123abcd": 2}],
                             "versions": [2570], "b": {"c": "grease-ffffffff"}})) == [
                                 "", "a[]", "versions[]", "b.c"]
    assert not list(grease.find({"grease-0": 1, "grease-0000000G": 2, "features": [2570]}))
    # A capability with such a name is like any other unknown one.
    assert codes(asked(["grease-00000000"])) == [("capability-unknown", "grease-00000000")]


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
    answer = destination.receive(source.begin())
    assert not destination.receive(source.receive(answer) + b"QEVM")
    assert (source.state, destination.state) == ends
    assert destination.stream == (b"QEVM" if ends[0] == "committed" else b"")
    assert bool(source.verdict and source.verdict.not_understood) == with_grease


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
    word = source.receive(destination.receive(bytes(heard)))
    destination.receive(word)
    assert source.state == "committed" if spoil in (0, 5, 44) else source.state != "waiting"
    assert destination.state != "committed"


def test_unknown_frames() -> None:
    """16 are skipped, in two places; not the 17th, nor a critical one."""
    for count, critical, state in ((16, 0, "committed"), (17, 0, "failed"), (1, 1, "failed")):
        source, destination = Source(OFFER, False), Destination(Here())
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
    source, destination = Source(OFFER), Destination(Here())
    junk = Frame(0x2a2a, b"", 0).encode()
    destination.receive(source.receive(destination.receive(source.begin() + junk)))
    assert destination.state == "committed"


@pytest.mark.parametrize("here", [Here(Peer("1")), Here(Peer("1"), versions=[2])],
                         ids=["accept", "reject"])
def test_grease_of_ours(here: Here) -> None:
    """It goes where the specification says, and nowhere else."""
    source, destination = Source(OFFER), Destination(here)
    begin = source.begin()
    answer = destination.receive(begin)
    talk = decode(begin + source.receive(answer) + b"QEVM", answer)
    for part in (talk.source, talk.destination):
        assert [frame.type in grease.NUMBERS for frame in part.frames] == [True] + [False] * (
            len(part.frames) - 1)
        assert not part.frames[0].is_critical
    assert sorted(grease.find(talk.source.json(HELLO))) == [
        "", "features[]", "profile.", "versions[]"]
    verdict = talk.destination.json(ACCEPT, REJECT)
    assert len(verdict.pop("not-understood")) == 2
    assert sorted(grease.find(verdict)) == ["", "features[]", "peer."]
    if talk.commit:
        assert list(grease.find(talk.source.json(COMMIT))) == [""]


def test_digest_is_of_bytes() -> None:
    hello, accept, commit, _ = dumps()
    assert message(COMMIT, Commit(digest(hello, accept)).write()).encode() == commit
    assert digest(hello + b" ", accept) != digest(hello, accept)
