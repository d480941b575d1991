# SPDX-License-Identifier: GPL-2.0-or-later
"""What two QEMUs say to each other, byte by byte."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Optional
from uuid import UUID

import pytest
from machine import Machine, until
from processes import (NO_MULTIFD, Lab, Options, begin, end, inet, pc_lab, require_listening,
                       require_success, set_channels, small_lab, start_destination, start_source)
from qmhs import grease
from qmhs.frames import ABORT, ACCEPT, COMMIT, HELLO, REJECT, VERDICTS, decode_header
from qmhs.messages import Accept, Issue, Parameter, Reject
from qmhs.negotiation import objections
from qmhs.strictjson import Object
from qmhs.transcript import Conversation, decode
from talk import Line, Recorder

CHECK_ONLY: Options = {"check-only": True}


async def recorded(source_lab: Lab, destination_lab: Lab, options: Optional[Options] = None,
                   count: int = 2, ends: str = "completed") -> list[Line]:
    """All connections of one attempt. Both sides count the same bytes."""
    async with source_lab, destination_lab:
        source = await start_source(source_lab)
        destination, port = await start_destination(destination_lab)
        await set_channels(source, count)
        async with Recorder(port) as recorder:
            await begin(source, inet(recorder.port), options)
            if options == CHECK_ONLY:
                await checked(source)
            elif ends == "completed":
                await require_success(source, destination)
            else:
                assert (await end(source))["status"] == ends
                await require_listening(destination)
            theirs, ours = await source.handshake(), await destination.handshake()
        first = decode(bytes(recorder.lines[0].source), bytes(recorder.lines[0].destination))
        session = str(UUID(bytes=first.destination.header.session))
        assert theirs["session"] == ours["session"] == session
        assert len(first.source.handshake) == theirs["bytes-sent"] == ours["bytes-received"]
        assert len(first.destination.handshake) == ours["bytes-sent"] == theirs["bytes-received"]
        return recorder.lines


async def checked(source: Machine) -> None:
    """It is over, and there has been no migration."""
    async def over() -> bool:
        return (await source.handshake())["status"] in ("accepted", "rejected")

    await until("the verdict", 10, over, every=0.002)
    assert "status" not in await source.migration()


def require_sound(line: Line) -> Conversation:
    """Both headers as they are today, every byte of both sides, and grease."""
    talk = decode(bytes(line.source), bytes(line.destination))
    for part, data in ((talk.source, line.source), (talk.destination, line.destination)):
        assert part.handshake + part.rest == bytes(data)
        assert len(part.header.encode()) == 64 and part.header.is_main
        assert part.header.reserved == 0 and part.header.reserved_end == bytes(20)
        assert all(frame.flags == int(frame.is_known) for frame in part.frames)
        require_grease_frame(part.frames)
    assert talk.source.header.session == bytes(16)
    session = talk.destination.header.session
    assert session[6] >> 4 == 4 and session[8] >> 6 == 2      # a UUID drawn at random
    require_grease(talk)
    if isinstance(talk.verdict, Accept):
        assert not objections(talk.hello, session, talk.verdict)
    return talk


def require_grease_frame(frames: Any) -> None:
    """One, before the first known frame."""
    assert [frame.is_known for frame in frames] == [False] + [True] * (len(frames) - 1)
    assert frames[0].type in grease.NUMBERS


def places(value: Object, path: str = "") -> Iterator[str]:
    """Where it has to be, and how a member there is called."""
    yield path
    for name, inner in value.items():
        if isinstance(inner, dict):
            yield from places(inner, f"{path}{name}.")
        elif isinstance(inner, list) and inner and isinstance(inner[0], dict):
            yield from places(inner[0], f"{path}{name}[0].")
        elif name in ("features", "versions"):
            yield f"{path}{name}[]"


def require_grease(talk: Conversation) -> None:
    """Where the specification wants it, and nowhere else."""
    hello = talk.source.json(HELLO)
    assert {"", "profile.", "profile.stream.", "features[]", "versions[]"} <= set(places(hello))
    verdict = talk.destination.json(*VERDICTS)
    told = verdict.pop("not-understood")
    assert sorted(name[:-len("grease-00000000")] for name in told) == sorted(
        path for path in places(hello) if not path.endswith("[]"))
    assert all(grease.is_name(name.split(".")[-1]) for name in told)
    assert {"", "features[]", "peer."} <= set(places(verdict))
    for value in (hello, verdict, *(talk.source.json(kind) for kind in (COMMIT, ABORT)
                                    if talk.source.known(kind))):
        assert sorted(grease.find(value)) == sorted(places(value))


def require_committed(talk: Conversation) -> None:
    assert talk.commit and talk.commit.digest == talk.digest
    assert talk.source.rest.startswith(b"QEVM")


async def test_accepted() -> None:
    lines = await recorded(pc_lab(), pc_lab(), NO_MULTIFD)
    talk = require_sound(lines[0])
    require_committed(talk)
    assert len(lines) == 1
    hello, accept = talk.hello, talk.verdict
    assert isinstance(accept, Accept)
    assert hello.purpose == "migrate" and hello.required == [] and 1 in hello.versions
    assert hello.profile.sections and hello.profile.ram_blocks and hello.profile.stream
    assert hello.optional_capabilities == [] == hello.profile.parameters
    assert accept.capabilities == ["return-path"] and accept.issues == [] == accept.declined
    assert set(hello.features) > {"named-channels", "late-error"} < set(accept.features)
    assert accept.peer == hello.profile.peer
    # The destination's direction is the return path now: no frame, no header.
    assert b"QMHS" not in talk.destination.rest


async def test_multifd() -> None:
    """The header replaces MultiFDInit; every channel once, and answered."""
    lines = await recorded(pc_lab(), pc_lab(), count=3)
    talk = require_sound(lines[0])
    require_committed(talk)
    accept = talk.verdict
    assert isinstance(accept, Accept) and talk.commit and not talk.commit.without
    assert set(accept.capabilities) == {"return-path", "multifd", "switchover-ack"}
    assert accept.parameters == talk.hello.profile.parameters == [
        Parameter("multifd", "multifd-channels", "3")]
    headers = [decode_header(bytes(line.source)) for line in lines[1:]]
    assert {header.session for header, _ in headers} == {talk.destination.header.session}
    assert sorted((header.name, header.index) for header, _ in headers) == [
        ("multifd", index) for index in range(3)]
    for (header, at), line in zip(headers, lines[1:]):
        assert at == 64 and header.extension == b"" and header.reserved_end == bytes(20)
        assert line.source[at:at + 4] in (b"", b"\x11\x22\x33\x44")     # MultiFDPacket
        assert line.source[at + 4:at + 8] in (b"", b"\0\0\0\1")
        assert line.destination == header.encode()      # and nothing behind it


@pytest.mark.parametrize("options", [None, CHECK_ONLY], ids=["migrate", "check"])
async def test_refused(options: Optional[Options]) -> None:
    """Several issues, in words."""
    lines = await recorded(pc_lab(), pc_lab("q35"), options, ends="failed")
    talk = require_sound(lines[0])
    reject = talk.verdict
    assert isinstance(reject, Reject) and reject.message and reject.version == 1
    assert len(lines) == 1 and not talk.source.rest and not talk.destination.rest
    found = {issue.code for issue in reject.issues}
    assert {"machine-type", "section-missing", "section-extra"} <= found
    assert all(isinstance(issue, Issue) and issue.message and issue.severity in (
        "error", "warning") for issue in reject.issues)
    machine = next(issue for issue in reject.issues if issue.code == "machine-type")
    assert machine.source == talk.hello.profile.peer.machine != machine.destination
    assert reject.peer.machine == machine.destination
    assert talk.destination.known(REJECT)


async def test_checked() -> None:
    """The source has no last word, and neither byte nor channel follows."""
    lines = await recorded(pc_lab(), pc_lab(), CHECK_ONLY)
    talk = require_sound(lines[0])
    assert [(issue.code, issue.severity, issue.subject) for issue in talk.verdict.issues] == [
        ("channels-untried", "info", "multifd")]
    assert talk.hello.purpose == "check" and talk.destination.known(ACCEPT)
    assert len(lines) == 1 and not talk.source.rest and not talk.destination.rest


async def test_sessions_and_grease_are_drawn_anew() -> None:
    """20 conversations between the same two."""
    async with small_lab() as lab:
        source = await start_source(lab)
        _, port = await start_destination(lab)
        talks = []
        async with Recorder(port) as recorder:
            for _ in range(20):
                await begin(source, inet(recorder.port), CHECK_ONLY)
                await checked(source)
                talks.append(require_sound(recorder.lines[-1]))
    assert len({talk.destination.header.session for talk in talks}) == 20
    for parts in ([talk.source for talk in talks], [talk.destination for talk in talks]):
        assert len({part.unknown[0].type for part in parts}) > 4
        names = [name for part in parts for frame in part.frames if frame.is_known
                 for name in part.json(frame.type) if grease.is_name(name)]
        assert len(names) == len(set(names)) == 20
