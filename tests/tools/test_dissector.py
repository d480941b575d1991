# SPDX-License-Identifier: GPL-2.0-or-later
"""Wireshark's view of handshakes that took place, and of some that went wrong."""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import struct
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from machine import Json
from processes import (begin, check, inet, pc_lab, require_refused, require_success, set_channels,
                       small_lab, start_destination, start_source)
from tshark import (SERVER, Fields, Recording, Turn, connection, connections, decode, directory,
                    story, tshark, write)
from wire import (ABORT, ACCEPT, COMMIT, CRITICAL, FEATURES, FRAME_MAX, HEADER_SIZE, HELLO,
                  HELLO_MAX, LAST_WORD, PREFIX_SIZE, REJECT, SESSION, STREAM, FakeDestination,
                  Peer, frame, header, hello, parameter, prefix)

KIND = "qmhs.frame.type"
PAYLOAD = "qmhs.frame.payload"
FRAMES = (KIND, "qmhs.role")
CHANNEL = ("qmhs.header.name", "qmhs.header.index", "qmhs.header.session")
DATA = ("qmhs.stream", "qmhs.return_path", "qmhs.data")
GREASE = tuple(number * 0x101 for number in range(0x0A, 0x100, 0x10))

# What the dissector may have to say of a packet; TCP has words of its own.
EXPERTS = tuple(f"qmhs.expert.{name}" for name in (
    "no_header", "header_length", "channel_name", "too_long", "unknown", "critical", "too_many",
    "unexpected", "json", "large", "reject", "abort", "last_word", "place", "answer", "unanswered",
    "without", "early", "after", "missing"))
ODD = " || ".join(EXPERTS)

CLIENT = 10000
HEADER_MAX = 4096
IP_TCP = 40             # bytes before what is said
SESSION_TEXT = str(uuid.UUID(bytes=SESSION))
UNASSIGNED = 99
MEMORY = STREAM + bytes(200)
RETURN_PATH = b"\0\1\0\4\0\0\0\0"
LATE_MAX = 16384


@pytest.fixture(name="place")
def _place() -> Iterator[Path]:
    with directory() as path:
        yield path


def values(packets: list[Fields], field: str) -> list[str]:
    return [value for packet in packets for value in packet.get(field, [])]


def frames(packets: list[Fields]) -> list[tuple[str, int]]:
    """Who has sent which frames."""
    return [(packet["qmhs.role"][0], int(kind)) for packet in packets
            for kind in packet.get(KIND, [])]


def only_known(kinds: list[tuple[str, int]]) -> list[tuple[str, int]]:
    return [one for one in kinds if one[1] not in GREASE]


# Handshakes that took place.

async def test_accepted_with_multifd(place: Path) -> None:
    async with pc_lab() as lab:
        source = await start_source(lab)
        destination, port = await start_destination(lab)
        await set_channels(source, 3)
        async with Recording(place, port) as recording:
            await begin(source, inet(port))
            await require_success(source, destination)
        told = await source.handshake()
        assert told["session"] == (await destination.handshake())["session"]
        machine = await source.machine_type()

    file = recording.file
    packets = decode(file, (*FRAMES, *CHANNEL, *DATA, "qmhs.hello.purpose", "qmhs.machine",
                            "qmhs.accept.capability", "qmhs.parameter", "json.key"))
    kinds = frames(packets)
    assert only_known(kinds) == [("source", HELLO), ("destination", ACCEPT), ("source", COMMIT),
                                 ("destination", LOADED), ("source", START)]
    assert {role for role, kind in kinds if kind in GREASE} == {"source", "destination"}
    assert values(packets, "qmhs.hello.purpose") == ["migrate"]
    assert values(packets, "qmhs.machine") == [machine, machine]
    assert values(packets, "qmhs.accept.capability") == told["capabilities"]
    assert "multifd" in told["capabilities"]
    assert values(packets, "qmhs.parameter") == 2 * ["multifd-channels=3"]
    assert {"purpose", "ram-blocks", "digest"} < set(values(packets, "json.key"))

    channels = [(role, name, int(index), session) for packet in packets
                for role, name, index, session
                in zip(*(packet.get(field, []) for field in ("qmhs.role", *CHANNEL)))]
    assert len(channels) == 8
    assert set(channels) == {
        ("source", "main", 0, str(uuid.UUID(int=0))), ("destination", "main", 0, told["session"]),
        *((role, "multifd", index, told["session"])
          for role in ("source", "destination") for index in range(3))}
    assert bytes.fromhex(values(packets, "qmhs.stream")[0]).startswith(b"QEVM")
    assert values(packets, "qmhs.return_path") and values(packets, "qmhs.data")

    of_multifd = f'qmhs.session == "{told["session"]}" && qmhs.channel == "multifd"'
    assert set(values(decode(file, ("qmhs.channel.index",), which=of_multifd),
                      "qmhs.channel.index")) == {"0", "1", "2"}

    assert not decode(file, FRAMES, which=ODD)
    said = story(file)
    assert any("migration stream begins (QEVM)" in line for line in said)
    assert any(f"ACCEPT session {told['session']} caps=return-path" in line for line in said)
    commit, = [place for place, line in enumerate(said) if "COMMIT" in line]
    for index in range(3):
        asked, answered = (said.index(f"{who} channel multifd {index}")
                           for who in ("source:", "destination: answer for"))
        assert asked < answered < commit
    assert story(file, "-2") == said


async def test_refused(place: Path) -> None:
    async with pc_lab("pc") as here, pc_lab("q35") as there:
        source = await start_source(here)
        destination, port = await start_destination(there)
        async with Recording(place, port) as recording:
            await begin(source, inet(port))
            info = await require_refused(source, "machine type")
        machines = [await source.machine_type(), await destination.machine_type()]

    packets = decode(recording.file, (*FRAMES, "qmhs.machine", "qmhs.message", "qmhs.issue.code"))
    assert only_known(frames(packets)) == [("source", HELLO), ("destination", REJECT)]
    assert values(packets, "qmhs.machine") == machines
    message, = values(packets, "qmhs.message")
    assert message in info["error-desc"]
    issues = info["handshake"]["issues"]
    assert values(packets, "qmhs.issue.code") == [issue["code"] for issue in issues]
    assert "machine-type" in values(packets, "qmhs.issue.code")
    assert any(f"REJECT: {message[:100]}" in line for line in story(recording.file))
    assert len(decode(recording.file, FRAMES, which="qmhs.expert.reject")) == 1
    assert len(decode(recording.file, FRAMES, which=ODD)) == 1


async def test_aborted(place: Path) -> None:
    async with small_lab() as lab, FakeDestination() as destination:
        source = await start_source(lab)
        async with Recording(place, destination.port) as recording:
            await begin(source, inet(destination.port))
            message = await accept_too_much(destination)
            await require_refused(source)

    packets = decode(recording.file, (*FRAMES, "qmhs.message"))
    assert only_known(frames(packets)) == [("source", HELLO), ("destination", ACCEPT),
                                           ("source", ABORT)]
    assert values(packets, "qmhs.message") == [message]
    assert any(f"source: ABORT: {message}" in line for line in story(recording.file))


async def test_went_without(place: Path) -> None:
    """Its channels met somebody who did not answer."""
    async with pc_lab() as lab, FakeDestination() as destination:
        source = await start_source(lab)
        async with Recording(place, destination.port) as recording:
            await begin(source, inet(destination.port))
            peer = await first_source(destination)
            _, asked = await peer.read_frame(HELLO)
            await peer.send(header(session=SESSION) + frame(ACCEPT, {
                "version": 1, "capabilities": ["return-path", "multifd"], "features": FEATURES,
                "parameters": asked["profile"].get("parameters", [])}))
            for _ in range(2):
                (await destination.next()).close()
            _, said = await peer.read_frame(COMMIT)

    packets = decode(recording.file, (*FRAMES, "qmhs.commit.without",
                                      "qmhs.commit.without_reason"))
    assert only_known(frames(packets))[-1] == ("source", COMMIT)
    assert values(packets, "qmhs.commit.without") == ["multifd"]
    assert values(packets, "qmhs.commit.without_reason") == [said["without"][0]["reason"]]
    assert any("source: COMMIT without multifd" in line for line in story(recording.file))
    assert not decode(recording.file, FRAMES, which=ODD)


async def test_last_word(place: Path) -> None:
    """To a source that has not opened its channel."""
    async with pc_lab() as lab:
        _, port = await start_destination(lab)
        async with Recording(place, port) as recording:
            peer = await Peer.connect(port)
            await peer.hold_session(multifd=1)
            await peer.commit()
            kind, said = await peer.read_late_frame()
            peer.close()
    assert kind == LAST_WORD

    file = recording.file
    packets = decode(file, (*FRAMES, "qmhs.message", "qmhs.last_word.guest", "qmhs.feature"))
    assert only_known(frames(packets)) == [("source", HELLO), ("destination", ACCEPT),
                                           ("source", COMMIT), ("destination", LAST_WORD)]
    assert values(packets, "qmhs.message") == [said["message"]]
    assert values(packets, "qmhs.last_word.guest") == ["not-started"]
    assert {"named-channels", "late-error"} < set(values(packets, "qmhs.feature"))
    assert f"destination: LAST WORD: {said['message']}" in story(file)
    for which in ("last_word", "unanswered"):
        assert len(decode(file, FRAMES, which=f"qmhs.expert.{which}")) == 1
    assert len(decode(file, FRAMES, which=ODD)) == 2


async def test_check(place: Path) -> None:
    async with pc_lab() as lab:
        source = await start_source(lab)
        destination, port = await start_destination(lab)
        async with Recording(place, port) as recording:
            told = await check(source, inet(port))
            await destination.execute("query-status")
    assert told["status"] == "accepted"

    issue = ("qmhs.issue.code", "qmhs.issue.severity", "qmhs.issue.subject")
    packets = decode(recording.file, (*FRAMES, *issue, "qmhs.hello.purpose", "qmhs.header.name"))
    assert only_known(frames(packets)) == [("source", HELLO), ("destination", ACCEPT)]
    assert values(packets, "qmhs.hello.purpose") == ["check"]
    assert [values(packets, field) for field in issue] == [
        ["channels-untried"], ["info"], ["multifd"]]
    assert values(packets, "qmhs.header.name") == ["main", "main"]
    assert not decode(recording.file, FRAMES, which=ODD)


def test_what_a_source_adds(place: Path) -> None:
    """Lists that may be of a later version, or of a peer that is no good."""
    question = {**hello(), "ignore": ["cpu", 1, "disk:0000:00:03.0/virtio-blk"],
                "profile": {"bitmaps": [{"node": "disk", "name": "b0"}, {"node": "vda"}, 7]}}
    asked = [Turn(True, header() + frame(HELLO, {**hello(), "ignore": "cpu", "profile": {
        "bitmaps": {"node": "disk"}}}))]
    file = write(place, [*connection(CLIENT, [Turn(True, header() + frame(HELLO, question))]),
                         *connection(CLIENT + 1, asked)])
    packets = decode(file, (*FRAMES, "qmhs.hello.ignore", "qmhs.hello.bitmap"))
    assert values(packets, "qmhs.hello.ignore") == ["cpu", "disk:0000:00:03.0/virtio-blk"]
    assert values(packets, "qmhs.hello.bitmap") == ["disk/b0", "vda/?"]


async def first_source(destination: FakeDestination) -> Peer:
    """The first one that says something: the recording's own connections do not."""
    while True:
        peer = await destination.next()
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            await peer.read_header()
            return peer


async def accept_too_much(destination: FakeDestination) -> str:
    """What the source says to a capability that it has not offered."""
    peer = await first_source(destination)
    await peer.read_frame(HELLO)
    await peer.send(header(session=SESSION) + frame(ACCEPT, {
        "version": 1, "capabilities": ["return-path", "auto-converge"]}))
    _, said = await peer.read_frame(ABORT)
    return said["message"]


# Handshakes that are made up.

def skipped(kind: int = GREASE[3], payload: bytes = b"?", flags: int = 0) -> bytes:
    return prefix(kind, len(payload), flags) + payload


def accepted() -> list[Turn]:
    answer: Json = {"version": 1, "capabilities": ["return-path"], "peer": {"machine": "there"}}
    question = {**hello(), "profile": {"machine": "here"}}
    return [Turn(True, header() + skipped() + frame(HELLO, question)),
            Turn(False, header(session=SESSION) + skipped() + frame(ACCEPT, answer)),
            Turn(True, skipped() + frame(COMMIT, {"digest": "0" * 64}) + MEMORY),
            Turn(False, RETURN_PATH)]


def seen_whole(packets: list[Fields]) -> None:
    """All of accepted(), and nothing else."""
    assert frames(packets) == [("source", GREASE[3]), ("source", HELLO),
                               ("destination", GREASE[3]), ("destination", ACCEPT),
                               ("source", GREASE[3]), ("source", COMMIT)]
    assert values(packets, "qmhs.machine") == ["here", "there"]
    assert values(packets, "qmhs.header.session") == [str(uuid.UUID(int=0)), SESSION_TEXT]
    assert bytes.fromhex("".join(values(packets, "qmhs.stream"))) == MEMORY
    assert bytes.fromhex("".join(values(packets, "qmhs.return_path"))) == RETURN_PATH
    assert not values(packets, "qmhs.data")


WHOLE = (*FRAMES, *DATA, "qmhs.machine", "qmhs.header.session")


@pytest.mark.parametrize("passes", [(), ("-2",)], ids=["one-pass", "two-passes"])
@pytest.mark.parametrize("size", [4, 5, 7, 11, 29, 64, 100, 60000])
def test_segments_of_any_size(place: Path, size: int, passes: tuple[str, ...]) -> None:
    seen_whole(decode(write(place, connection(CLIENT, accepted(), size)), WHOLE, *passes))


def test_story(place: Path) -> None:
    assert story(write(place, connection(CLIENT, accepted()))) == [
        "source: channel main 0; grease 0x3a3a, unknown (skipped); HELLO purpose=migrate here",
        f"destination: channel main 0; grease 0x3a3a, unknown (skipped); "
        f"ACCEPT session {SESSION_TEXT} caps=return-path",
        "source: grease 0x3a3a, unknown (skipped); COMMIT; "
        f"migration stream begins (QEVM), {len(MEMORY)} bytes",
        f"destination: return path, {len(RETURN_PATH)} bytes"]


def test_same_ports_again(place: Path) -> None:
    packets = decode(write(place, connection(CLIENT, accepted())
                           + connection(CLIENT, accepted(), 50, start=1 << 31)), WHOLE, "-2")
    half = next(i for i, packet in enumerate(packets[1:], 1)
                if packet.get("qmhs.header.session") == [str(uuid.UUID(int=0))])
    seen_whole(packets[:half])
    seen_whole(packets[half:])


def test_largest_of_all(place: Path) -> None:
    extension = bytes(HEADER_MAX - HEADER_SIZE)
    question = frame(HELLO, padded({**hello(), "profile": {"machine": "large"}}, HELLO_MAX))
    answer = frame(REJECT, padded({"message": "no"}, FRAME_MAX))
    grease = b"".join(skipped(kind) for kind in GREASE)
    file = write(place, connection(CLIENT, [
        Turn(True, with_length(HEADER_MAX) + extension + grease + question),
        Turn(False, with_length(HEADER_MAX) + extension + grease + answer)], 1400))
    packets = decode(file, (*WHOLE, "qmhs.message"))
    assert only_known(frames(packets)) == [("source", HELLO), ("destination", REJECT)]
    assert len(frames(packets)) == 2 * (len(GREASE) + 1)
    assert values(packets, "qmhs.machine") == ["large"]
    assert values(packets, "qmhs.message") == ["no"]
    assert len(decode(file, FRAMES, which=ODD)) == 1        # that it was refused


def padded(message: Json, size: int) -> bytes:
    text = json.dumps(message).encode()
    return text + b" " * (size - len(text))


def with_length(length: int) -> bytes:
    whole = header()
    return whole[:6] + struct.pack(">H", length) + whole[8:]


def test_somebody_else(place: Path) -> None:
    """The magic in the middle of something is none, unless the user says so."""
    turns = [Turn(True, b"\0 no handshake"), Turn(True, accepted()[0].data)]
    file = write(place, connection(CLIENT, turns))
    assert not decode(file, FRAMES)
    forced = decode(file, FRAMES, "-d", f"tcp.port=={SERVER},qmhs", which="qmhs.expert.no_header")
    assert len(forced) == 1


def test_port_of_another_protocol(place: Path) -> None:
    file = write(place, connection(80, accepted()))
    seen_whole(decode(file, WHOLE, "-o", "tcp.try_heuristic_first:TRUE"))


def test_legacy_source(place: Path) -> None:
    """The answer tells that the destination wants a handshake."""
    turns = [Turn(True, MEMORY), Turn(False, header()), Turn(True, MEMORY)]
    assert story(write(place, connection(CLIENT, turns))) == [
        "destination: channel main 0", f"source: data, not parsed, {len(MEMORY)} bytes"]


def test_begins_after_the_source(place: Path) -> None:
    """Who spoke first in the recording is not the source if it has a session."""
    packets = decode(write(place, connection(CLIENT, accepted()[1:])), (*FRAMES, *DATA))
    roles = [packet["qmhs.role"] for packet in packets]
    assert roles == [["destination"], ["source"], ["destination"]]
    assert frames(packets) == [("destination", GREASE[3]), ("destination", ACCEPT)]


def test_overtaken(place: Path) -> None:
    """Recorded on two interfaces, a question can come behind its answer."""
    question, answer, *rest = accepted()
    packets = decode(write(place, connection(CLIENT, [answer, question, *rest])), FRAMES)
    assert frames(packets)[:4] == [("destination", GREASE[3]), ("destination", ACCEPT),
                                   ("source", GREASE[3]), ("source", HELLO)]
    assert not decode(place / "made.pcap", FRAMES, which=ODD)


def test_header_without_a_zero(place: Path) -> None:
    whole = header("sixteen-letters-", 0x01010101, SESSION)
    said = whole[:4] + b"\1\1" + whole[6:HEADER_SIZE - 20] + b"\1" * 20 + b"\1"
    packet, = decode(write(place, connection(CLIENT, [Turn(True, said)])), CHANNEL)
    assert packet["qmhs.header.name"] == ["sixteen-letters-"]
    require_recognized(place / "made.pcap", 1, ())
    named = decode(place / "made.pcap", CHANNEL, which='qmhs.header.name == "sixteen-letters-"')
    assert named == [packet]


GOOD_JSON = [
    b' {"a" : [1 , {} , [] ] }\r\n\t', b'{"\x7f":"\x7f"}', b'{"a":-0}',
    b'{"a":[18446744073709551615,-9223372036854775808,true,false,null]}',
    rb'{"a":"\"\\\/\b\f\n\r\t\u00e9\ud83d\ude00"}', '{"é€😀":"\U0010fffd"}'.encode(),
    json.dumps({f"{n:0255}": n for n in range(256)}).encode(),
    b'{"a":[' + b",".join([b"{}"] * 8191) + b"]}", b'{"a":' * 16 + b"0" + b"}" * 16]


def test_good_json(place: Path) -> None:
    packets = [packet for number, payload in enumerate(GOOD_JSON) for packet
               in connection(CLIENT + number, [Turn(True, header() + frame(HELLO, payload))])]
    file = write(place, packets)
    assert len(decode(file, FRAMES, which=f"{KIND} == {HELLO}")) == len(GOOD_JSON)
    assert not decode(file, FRAMES, which=ODD)


def test_escapes(place: Path) -> None:
    """What is shown, and can be filtered, is what they stand for."""
    answer = frame(REJECT, rb'{"message":"\u0041\u00e9\u20ac\ud83d\ude00\/\"\\\n."}')
    packets = decode(write(place, connection(CLIENT, [QUESTION, Turn(False, header() + answer)])),
                     ["qmhs.message"])
    assert values(packets, "qmhs.message") == ['Aé€😀/"\\ .']


def test_more_than_the_tree_has_room_for(place: Path) -> None:
    many = b'{"a":[' + b"1," * 250000 + b"1]}"
    turns = [Turn(True, header() + frame(HELLO, many)), ANSWER]
    file = write(place, connection(CLIENT, turns))
    packets = decode(file, FRAMES, which=ODD)
    assert frames(packets) == [("source", HELLO)]
    assert len(decode(file, FRAMES, which="qmhs.expert.large")) == 1
    assert "Dissector bug" not in tshark(file, "-V")


QUESTION, ANSWER, *_ = accepted()
ASKED = QUESTION.data
DEEP = b'{"a":' * 17 + b"0" + b"}" * 17


class Mistake(NamedTuple):
    expert: str         # the only one that says something
    name: str
    said: bytes
    by_source: bool = True

    @property
    def turns(self) -> list[Turn]:
        said = Turn(self.by_source, self.said)
        return [said] if self.by_source else [QUESTION, said]


def wrong_json(number: int, payload: bytes) -> Mistake:
    return Mistake("json", f"JSON-{number}", header() + frame(HELLO, payload))


def wrong_length(length: int) -> Mistake:
    return Mistake("header_length", f"header-of-{length}", with_length(length) + MEMORY)


MISTAKES = [
    Mistake("too_long", "4-GiB", header() + prefix(HELLO, 0xffffffff) + MEMORY),
    Mistake("too_long", "long-HELLO", header() + prefix(HELLO, HELLO_MAX + 1) + MEMORY),
    Mistake("too_long", "long-grease", header() + prefix(GREASE[0], FRAME_MAX + 1, 0)),
    Mistake("too_long", "long-ACCEPT", header() + prefix(ACCEPT, FRAME_MAX + 1), False),
    *map(wrong_length, (0, HEADER_SIZE - 1, HEADER_MAX + 1, 0xffff)),
    Mistake("channel_name", "no-name", header(name="")),
    Mistake("channel_name", "space-in-name", header(name="ma in")),
    Mistake("unknown", "unassigned", header() + skipped(UNASSIGNED)),
    Mistake("critical", "critical", header() + skipped(UNASSIGNED, flags=CRITICAL)),
    Mistake("too_many", "17-unknown", header() + 17 * skipped()),
    Mistake("unexpected", "COMMIT-first", header() + frame(COMMIT, {})),
    Mistake("unexpected", "COMMIT-of-a-check", header() + frame(HELLO, hello(purpose="check"))
            + frame(COMMIT, {"digest": "0" * 64})),
    Mistake("unexpected", "two-HELLOs", header() + 2 * frame(HELLO, hello())),
    Mistake("unexpected", "ACCEPT-from-source", ASKED + frame(ACCEPT, {})),
    Mistake("unexpected", "HELLO-back", header() + frame(HELLO, hello()), False),
    *(wrong_json(*payload) for payload in enumerate((
        b"", b"[]", b"{", b'{"a"', b'{"a":1,"a":1}', b'{"a":1}}', b'{"a":"\n"}', b'{"\\',
        b'{"a":1.5}', b"\xff\0", DEEP, b"{}\0{}", b'{"a":01}', b'{"a":18446744073709551616}',
        b'{"a":-9223372036854775809}', b'{"a":"\\u0000"}', b'{"a":"\\x"}', b'{"a":"\\ud83d"}',
        b'{"a":"\\ude00\\ud83d"}', b'{"a":"\\uffff"}', b'{"a":"\xff"}', b'{"a":"\xef\xb7\x90"}',
        b'{"a":"\xed\xa0\x80"}', b'{"a":1,"\\u0061":1}', b'{"' + b"a" * 256 + b'":1}',
        json.dumps({str(n): n for n in range(257)}).encode(),
        b'{"a":[' + b",".join([b"{}"] * 8192) + b"]}"))),
    Mistake("reject", "REJECT", header() + frame(REJECT, {}), False),
    Mistake("abort", "ABORT", ASKED + frame(ABORT, {})),
    Mistake("answer", "answer-for-another-name", header("multifd", session=SESSION), False),
    Mistake("answer", "answer-for-another-index", header(index=1, session=SESSION), False),
    Mistake("place", "channel-of-no-session", header("multifd")),
    Mistake("critical", "LAST-WORD-as-verdict", header() + frame(LAST_WORD, {}), False),
    Mistake("unknown", "reserved", header() + skipped(8)),
]


@pytest.fixture(name="found", scope="module")
def _found() -> Iterator[list[Fields]]:
    with directory() as place:
        file = write(place, [packet for number, mistake in enumerate(MISTAKES)
                             for packet in connection(CLIENT + number, mistake.turns)])
        yield decode(file, ("tcp.port", *EXPERTS))


@pytest.mark.parametrize("number", range(len(MISTAKES)), ids=[one.name for one in MISTAKES])
def test_mistakes(found: list[Fields], number: int) -> None:
    said = [expert.rsplit(".", 1)[1] for packet in found for expert in EXPERTS
            if expert in packet and str(CLIENT + number) in packet["tcp.port"]]
    assert said == [MISTAKES[number].expert]


# Sessions of several connections.

MAIN, FIRST, SECOND, THIRD = range(CLIENT, CLIENT + 4)
Turns = list[tuple[int, Turn]]


def channel(client: int, index: int, name: str = "multifd", session: bytes = SESSION) -> Turns:
    """It comes, and is answered."""
    said = header(name, index, session)
    return [(client, Turn(True, said)), (client, Turn(False, said))]


def main(optional: bool = False, without: tuple[str, ...] = (),
         capabilities: tuple[str, ...] = ("return-path", "multifd")) -> Turns:
    """HELLO, ACCEPT, COMMIT with the stream, the return path."""
    answer = {"version": 1, "capabilities": capabilities, "features": FEATURES}
    commit: Json = {"digest": "0" * 64}
    if without:
        commit["without"] = [{"capability": name, "reason": "none"} for name in without]
    return [(MAIN, turn) for turn in (
        Turn(True, header() + frame(HELLO, hello(2, optional=optional))),
        Turn(False, header(session=SESSION) + frame(ACCEPT, answer)),
        Turn(True, frame(COMMIT, commit) + MEMORY), Turn(False, RETURN_PATH))]


def late(said: bytes, features: list[str] = FEATURES, before: bytes = b"") -> Turns:
    """What a destination says instead of a return path, and before the verdict."""
    turns = main(capabilities=("return-path",))
    answer = {"version": 1, "capabilities": ["return-path"], "features": features}
    turns[1] = MAIN, Turn(False, header(session=SESSION) + before + frame(ACCEPT, answer))
    return [*turns[:3], (MAIN, Turn(False, said))]


HELLO_TURN, ACCEPT_TURN, COMMIT_TURN, BACK_TURN = main()
BOTH = [*channel(FIRST, 0), *channel(SECOND, 1)]
BEGUN, AGREED = [HELLO_TURN, ACCEPT_TURN], [COMMIT_TURN, BACK_TURN]
WHOLE_SESSION = [*BEGUN, *BOTH, *AGREED, (FIRST, Turn(True, MEMORY))]
LAST = frame(LAST_WORD, {"message": "no memory", "guest": "not-started"})
REMARKS = frame(LAST_WORD, {"loaded": True, "issues": []})
LOADED, START = 8, 9
ASKS, GIVES = frame(LOADED, {}), frame(START, {})
SHUT = b"\0\1\0\4\0\0\0\0"


def owner(*said: bytes, asks: bytes = ASKS) -> Turns:
    """LOADED, and what the two say in turns after that, the source first."""
    return [*late(RETURN_PATH + asks),
            *((MAIN, Turn(not number % 2, words)) for number, words in enumerate(said))]



GOOD_SESSIONS: dict[str, Turns] = {
    "multifd": WHOLE_SESSION,
    "channels-cross": [*BEGUN, BOTH[2], BOTH[0], BOTH[1], BOTH[3], *AGREED],
    "preempt": [*main(capabilities=("return-path", "postcopy-preempt"))[:2],
                *channel(FIRST, 0, "preempt"), *AGREED],
    "resumed": [*main(capabilities=("return-path", "postcopy-preempt"))[:2],
                *channel(FIRST, 0, "preempt"), *AGREED, *channel(SECOND, 0, "main"),
                (SECOND, Turn(True, MEMORY)), *channel(THIRD, 0, "preempt"),
                (SECOND, Turn(False, RETURN_PATH))],
    "without": main(True, ("multifd",)),
    "without-half-of-it": [*main(True)[:2], *channel(FIRST, 0), *main(True, ("multifd",))[2:]],
    "grease-on-the-return-path": late(RETURN_PATH + skipped() + RETURN_PATH),
    "handed-over": owner(GIVES, SHUT),
    "handed-over-with-grease": owner(skipped() + GIVES, SHUT, asks=skipped() + ASKS),
    "remarks": late(RETURN_PATH + REMARKS + SHUT),
    "16-unknown-and-16-late": late(16 * skipped(), before=16 * skipped()),
}


@pytest.mark.parametrize("name", GOOD_SESSIONS)
def test_good_sessions(place: Path, name: str) -> None:
    file = write(place, connections(GOOD_SESSIONS[name]))
    assert not decode(file, FRAMES, which=ODD)
    assert not decode(file, FRAMES, "-2", which=ODD)


BAD_SESSIONS: dict[str, tuple[Turns, list[str]]] = {
    "no-answer": ([*BEGUN, *BOTH[:3], *AGREED], ["unanswered"]),
    "no-channel": ([*BEGUN, *BOTH[:2], *AGREED], ["unanswered"]),
    "COMMIT-before-an-answer": ([*BEGUN, *BOTH[:3], *AGREED, BOTH[3]], ["unanswered"]),
    "answer-of-another-index": (
        [*BEGUN, *BOTH[:3], (SECOND, Turn(False, BOTH[0][1].data)), *AGREED],
        ["answer", "unanswered"]),
    "answer-of-another-session": (
        [*BEGUN, *BOTH[:3], (SECOND, Turn(False, header("multifd", 1, bytes(16)))), *AGREED],
        ["answer", "unanswered"]),
    "index-too-large": ([*BEGUN, *BOTH, channel(THIRD, 2)[0], *AGREED], ["place"]),
    "name-unknown": ([*BEGUN, *BOTH, channel(THIRD, 0, "preempt")[0], *AGREED], ["place"]),
    "second-time": ([*BEGUN, *BOTH, channel(THIRD, 1)[0], *AGREED], ["place"]),
    "after-COMMIT": ([*main(True, ("multifd",)), channel(FIRST, 0)[0]], ["place"]),
    "resumed-elsewhere": (
        [*main(capabilities=("return-path",)), channel(FIRST, 0, "main")[0],
         (FIRST, Turn(False, header()))], ["answer"]),
    "without-required": (main(False, ("multifd",)), ["without", "unanswered"]),
    "without-no-channels": ([*BEGUN, *BOTH, *main(True, ("return-path",))[2:]], ["without"]),
    "early-data": ([*BEGUN, *BOTH, (FIRST, Turn(True, MEMORY)), *AGREED], ["early"]),
    "early-return-path": ([*BEGUN, *BOTH, BACK_TURN, COMMIT_TURN], ["early"]),
    "LAST-WORD": (late(LAST), ["last_word"]),
    "LAST-WORD-behind-messages": (late(3 * RETURN_PATH + LAST), ["last_word"]),
    "LAST-WORD-without-late-error": (late(LAST, []), ["last_word", "unexpected"]),
    "LOADED-without-one-owner": (late(ASKS, ["late-error"]), ["unexpected"]),
    "LOADED-twice": (owner(asks=2 * ASKS), ["unexpected"]),
    "kept": (owner(frame(ABORT, {"message": "no"})), ["abort"]),
    "LAST-WORD-after-START": (owner(GIVES, LAST), ["last_word"]),
    "LOADED-in-place-of-START": (owner(ASKS), ["critical"]),
    "data-after-START": (owner(GIVES + MEMORY), ["after"]),
    "data-after-LAST-WORD": (late(LAST + RETURN_PATH), ["last_word", "after"]),
    "ACCEPT-on-the-return-path": (late(frame(ACCEPT, {})), ["critical"]),
    "17-late-unknown": (late(17 * skipped()), ["too_many"]),
    "long-late-frame": (late(prefix(LAST_WORD, LATE_MAX + 1)), ["too_long"]),
}


@pytest.mark.parametrize("passes", [(), ("-2",)], ids=["one-pass", "two-passes"])
@pytest.mark.parametrize("name", BAD_SESSIONS)
def test_bad_sessions(place: Path, name: str, passes: tuple[str, ...]) -> None:
    turns, expected = BAD_SESSIONS[name]
    found = decode(write(place, connections(turns)), EXPERTS, *passes)
    assert sorted(expert.rsplit(".", 1)[1] for packet in found for expert in packet) == sorted(
        expected)


def test_story_of_a_session(place: Path) -> None:
    said = story(write(place, connections(WHOLE_SESSION)))
    assert said[2:6] == [f"{who} channel multifd {index}" for index in range(2)
                         for who in ("source:", "destination: answer for")]
    of_one = 'qmhs.channel == "multifd" && qmhs.channel.index == 0'
    packets = decode(place / "made.pcap", DATA, which=of_one)
    assert bytes.fromhex("".join(values(packets, "qmhs.data"))) == MEMORY


@pytest.mark.parametrize("passes", [(), ("-2",)], ids=["one-pass", "two-passes"])
def test_story_of_a_hand_over(place: Path, passes: tuple[str, ...]) -> None:
    """The stream is the stream until LOADED has come."""
    turns = owner(GIVES, SHUT)
    turns[3:3] = [(MAIN, Turn(True, MEMORY))]
    packets = decode(write(place, connections(turns)), (*FRAMES, *DATA), *passes)
    assert frames(packets)[-2:] == [("destination", LOADED), ("source", START)]
    assert len(values(packets, "qmhs.stream")) == 2


@pytest.mark.parametrize("size", [1, 3, 4, 7, 8, 9, 60000])
def test_return_path_in_segments_of_any_size(place: Path, size: int) -> None:
    """Messages of any length, and whole ones before the last word is."""
    messages = RETURN_PATH + b"\0\7\0\0" + b"\0\3\1\4" + bytes(260)
    *turns, (_, said) = late(messages + LAST)
    pieces = [(MAIN, Turn(False, said.data[at:at + size])) for at in range(0, len(said.data), size)]
    packets = decode(write(place, connections([*turns, *pieces])), (*WHOLE, "qmhs.message"))
    assert frames(packets)[-1] == ("destination", LAST_WORD)
    assert bytes.fromhex("".join(values(packets, "qmhs.return_path"))) == messages
    assert values(packets, "qmhs.message") == ["no memory"]


def test_no_return_path(place: Path) -> None:
    """What cannot be one is not looked at any more, frames within it included."""
    said = b"\0\4\2\1" + bytes(600) + LAST
    file = write(place, connections(late(said)))
    packets = decode(file, (*FRAMES, *DATA))
    assert frames(packets)[-1] == ("source", COMMIT)
    assert bytes.fromhex("".join(values(packets, "qmhs.return_path"))) == said


def test_data_after_refusal(place: Path) -> None:
    turns = [QUESTION, Turn(False, header() + frame(REJECT, {})), Turn(False, MEMORY)]
    file = write(place, connection(CLIENT, turns))
    assert len(decode(file, FRAMES, which="qmhs.expert.after")) == 1


def test_good_ones_are_no_mistakes(place: Path) -> None:
    turns = accepted()
    turns[2:2] = [Turn(True, skipped() * 15)]       # 17 with the ones before and behind it
    assert not decode(write(place, connection(CLIENT, accepted())), FRAMES, which=ODD)
    assert decode(write(place, connection(CLIENT, turns)), FRAMES, which="qmhs.expert.too_many")
    turns[2:3] = [Turn(True, skipped() * 14)]
    assert not decode(write(place, connection(CLIENT, turns)), FRAMES, which=ODD)


def test_flood(place: Path) -> None:
    """Empty frames take eight bytes on the wire, and far more in a tree."""
    turns = [Turn(True, header() + 5000 * skipped(payload=b""))]
    packets = decode(write(place, connection(CLIENT, turns)), (*FRAMES, *DATA))
    assert len(frames(packets)) == 17
    assert len(bytes.fromhex("".join(values(packets, "qmhs.data")))) == 4983 * PREFIX_SIZE


# Garbage. tshark() itself looks for errors of Lua, and for an end.

MODES = {
    "one-pass": (),
    "two-passes": ("-2",),
    "no-reassembly": ("-o", "tcp.desegment_tcp_streams:FALSE"),
    "out-of-order": ("-o", "tcp.no_subdissector_on_error:FALSE",
                     "-o", "tcp.reassemble_out_of_order:TRUE"),
}


@pytest.fixture(name="mode", params=MODES.values(), ids=list(MODES))
def _mode(request: pytest.FixtureRequest) -> tuple[str, ...]:
    return request.param


def require_recognized(file: Path, times: int, mode: tuple[str, ...]) -> None:
    shown = tshark(file, "-V", *mode)
    assert shown.count("\nQEMU migration handshake\n") >= times


def test_ends_everywhere(place: Path, mode: tuple[str, ...]) -> None:
    packets: list[bytes] = []
    size = len(ASKED)
    for end in range(size):
        turns = [Turn(True, ASKED[:end]), ANSWER]
        packets += connection(CLIENT + end, turns)
    require_recognized(write(place, packets), size, mode)


def test_packets_cut_short(place: Path, mode: tuple[str, ...]) -> None:
    packets: list[bytes] = []
    lengths: list[int] = []
    snapshots = range(IP_TCP + len(b"QMHS"), 500)
    for number, snapshot in enumerate(snapshots):
        whole = connection(CLIENT + number, accepted(), 450)
        packets += [packet[:snapshot] for packet in whole]
        lengths += map(len, whole)
    require_recognized(write(place, packets, lengths), len(snapshots), mode)


def test_random(place: Path, mode: tuple[str, ...]) -> None:
    chance = random.Random(1)
    packets: list[bytes] = []
    ended = [turn for _, turn in late(RETURN_PATH + LAST)]
    for number in range(300):
        packets += shuffled(chance, connection(
            CLIENT + number, [damaged(chance, turn) for turn in (accepted(), ended)[number % 2]],
            chance.choice((4, 30, 200, 60000))))
    require_recognized(write(place, packets), 300, mode)


def damaged(chance: random.Random, turn: Turn) -> Turn:
    """With the magic as it was, most of the time."""
    data = bytearray(turn.data)
    for _ in range(chance.randrange(6)):
        at = chance.randrange(4, len(data)) if len(data) > 4 else 0
        data[at:at + chance.randrange(9)] = chance.randbytes(chance.randrange(9))
    return Turn(turn.from_source, bytes(data))


def shuffled(chance: random.Random, packets: list[bytes]) -> list[bytes]:
    """Some lost, some twice, some too late."""
    packets = [packet for packet in packets for _ in range(chance.choice((1,) * 30 + (0, 2)))]
    for at in range(1, len(packets)):
        if chance.random() < 0.03:
            packets[at - 1:at + 1] = packets[at], packets[at - 1]
    return packets
