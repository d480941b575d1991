# SPDX-License-Identifier: GPL-2.0-or-later
"""What was once said is understood for ever: golden/*.hex, read, and said again to QEMU.

transcripts.py says how these files come about.
"""

from __future__ import annotations

import contextlib

import pytest
from machine import until
from processes import begin, inet, require_refused, start_destination, start_source
from qmhs import grease
from qmhs.frames import COMMIT, HELLO, Frame, Header, digest
from qmhs.messages import Accept, Reject, Verdict
from qmhs.negotiation import objections
from qmhs.transcript import decode
from talk import Listener, Talk, call, require_free, require_loading
from test_as_destination import Call
from test_qmhs import dumps
from transcripts import Transcript, golden

GOLDEN = golden()
every = pytest.mark.parametrize("name", GOLDEN)


def test_there_are_some() -> None:
    assert {"vector", "10.0-accept", "10.0-multifd", "10.0-reject", "10.0-check",
            "10.0-abort"} <= set(GOLDEN)


def test_vector_is_that_of_the_specification() -> None:
    hello, accept, commit, _ = dumps()
    main = GOLDEN["vector"].main
    assert (main.source, main.destination) == (hello + commit + b"QEVM", accept)


@every
def test_it_is_read_in_full(name: str) -> None:
    transcript = GOLDEN[name]
    assert Transcript.read(transcript.write()) == transcript
    main = transcript.main
    talk = decode(main.source, main.destination)
    assert talk.source.handshake + talk.source.rest == main.source
    assert talk.destination.handshake + talk.destination.rest == main.destination
    session = talk.destination.header.session
    if isinstance(talk.verdict, Accept):
        found = objections(talk.hello, session, talk.verdict)
        assert bool(found) == bool(talk.abort), found
    else:
        assert isinstance(talk.verdict, Reject) and talk.verdict.message
        assert len(talk.verdict.issues) > 1
    if talk.commit:
        assert talk.commit.digest == talk.digest and talk.source.rest.startswith(b"QEVM")
    if talk.abort:
        assert talk.abort.message
    for other in transcript.channels[1:]:
        assert Header(session, other.name, other.index).encode() == other.source


@every
async def test_a_destination_understands_its_source(name: str) -> None:
    """The same verdict; for COMMIT and the channels, what has been drawn at random differs."""
    transcript = GOLDEN[name]
    recorded = decode(transcript.main.source, transcript.main.destination)
    async with transcript.destination_lab() as lab:
        destination, port = await start_destination(lab)
        async with call(port) as talk:
            await talk.say(recorded.source.up_to(HELLO))
            verdict = await talk.verdict()
            if not recorded.abort:
                require_same_verdict(verdict, recorded.verdict)
            assert isinstance(verdict, Accept) == recorded.is_accepted
            if recorded.commit:
                async with contextlib.AsyncExitStack() as lines:
                    await commit_again(transcript, talk, port, lines)
                    return await require_loading(destination)
            await talk.say(*recorded.source.frames[-1:] if recorded.abort else ())
            talk.end()
            assert await talk.rest() == b""
            await require_free(destination, port)


async def commit_again(transcript: Transcript, talk: Talk, port: int,
                       lines: contextlib.AsyncExitStack) -> None:
    recorded = decode(transcript.main.source, transcript.main.destination)
    frames = recorded.source.frames
    after = frames[[frame.type for frame in frames].index(HELLO) + 1:]
    assert recorded.commit and talk.inbox.header
    old, new = recorded.commit.digest, digest(talk.said, talk.inbox.read)
    await talk.say(*(frame if frame.type != COMMIT else Frame(
        COMMIT, frame.payload.replace(old.encode(), new.encode()), frame.flags)
        for frame in after))
    for other in transcript.channels[1:]:
        session = recorded.destination.header.session
        line = await lines.enter_async_context(call(port))
        await line.say(other.source.replace(session, talk.inbox.header.session))


def require_same_verdict(verdict: Verdict, recorded: Verdict) -> None:
    """Errors are there for ever; a later QEMU may find more worth a warning."""
    assert type(verdict) is type(recorded)
    errors = [{(issue.code, issue.subject, issue.source) for issue in one.issues
               if issue.severity == "error"} for one in (verdict, recorded)]
    assert errors[0] == errors[1]
    features = [[name for name in one.features if not grease.is_name(name)]
                for one in (verdict, recorded)]
    assert features[0] == features[1]
    if isinstance(verdict, Accept) and isinstance(recorded, Accept):
        assert verdict.version == recorded.version
        assert verdict.capabilities == recorded.capabilities
        assert verdict.parameters == recorded.parameters
        assert verdict.declined == recorded.declined


@every
async def test_a_source_understands_its_destination(name: str) -> None:
    """It goes on, aborts or tells all the reasons as it did."""
    transcript = GOLDEN[name]
    recorded = decode(transcript.main.source, transcript.main.destination)
    async with transcript.source_lab() as lab, Listener() as listener:
        source = await start_source(lab)
        await begin(source, inet(listener.port), transcript.options)
        talk = await listener.next()
        await talk.header()
        offer = await talk.message(HELLO)
        hello = recorded.hello.read(offer)
        assert hello.optional_capabilities == recorded.hello.optional_capabilities
        one = Call(source, talk, listener, hello, offer)
        await talk.say(recorded.destination.handshake)
        if recorded.commit:
            await one.commit()
            return await require_channels(transcript, listener)
        if recorded.abort:
            await one.abort()
            return None
        assert await talk.rest() == b""
        if recorded.is_accepted:
            async def told() -> bool:
                return (await source.handshake())["status"] == "accepted"
            await until("the verdict", 10, told)
            return None
        assert isinstance(recorded.verdict, Reject) and recorded.verdict.message
        await require_refused(source, recorded.verdict.message)
        info = await source.handshake()
        assert [(issue["code"], issue["severity"], issue["message"])
                for issue in info["issues"]] == [
            (issue.code, issue.severity, issue.message) for issue in recorded.verdict.issues]


async def require_channels(transcript: Transcript, listener: Listener) -> None:
    """The same ones, with the session that was recorded."""
    headers = {await (await listener.next()).hear(64) for _ in transcript.channels[1:]}
    assert headers == {other.source for other in transcript.channels[1:]}
    assert not listener.waiting
