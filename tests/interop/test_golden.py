# SPDX-License-Identifier: GPL-2.0-or-later
"""What was once said is understood for ever: golden/*.hex, read, and said again to QEMU.

transcripts.py says how these files come about.
"""

from __future__ import annotations

import contextlib

import pytest
from machine import Machine, until
from processes import (begin, end, inet, require_refused, start_destination, start_source,
                       wait_running)
from qmhs import grease
from qmhs.frames import COMMIT, HELLO, LOADED, START, Frame, Header, digest, shut
from qmhs.messages import Accept, Reject, Verdict
from qmhs.negotiation import CHANNELS, objections, other_channels
from qmhs.transcript import Conversation, decode
from talk import Listener, Talk, call, end_of_stream, require_free, require_loading
from test_as_destination import Call
from test_qmhs import dumps
from transcripts import RECIPES, Transcript, golden

GOLDEN = golden()
every = pytest.mark.parametrize("name", GOLDEN)


def test_there_are_some() -> None:
    assert {"vector", *(f"10.0-{name}" for name in RECIPES)} <= set(GOLDEN)


def test_vector_is_that_of_the_specification() -> None:
    hello, accept, commit, *_ = dumps()
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
        header = Header(session, other.name, other.index).encode()
        assert header == other.source == other.destination
    if not talk.last_word and talk.commit and isinstance(talk.verdict, Accept):
        dropped = {item.capability for item in talk.commit.without}
        assert sorted((other.name, other.index) for other in transcript.channels[1:]) == (
            other_channels(set(talk.verdict.capabilities) - dropped, talk.verdict.parameters))


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
                    if recorded.last_word:
                        assert await talk.last_word() == recorded.last_word
                        return await require_free(destination, port)
                    if recorded.hands_over:
                        return await require_taken(destination, talk, recorded)
                    return await require_loading(destination)
            await talk.say(*recorded.source.frames[-1:] if recorded.abort else ())
            talk.end()
            assert await talk.rest() == b""
            await require_free(destination, port)


async def require_taken(destination: Machine, talk: Talk, recorded: Conversation) -> None:
    """It asks, and starts the guest when it hears what was said then."""
    size = end_of_stream(recorded.source.rest)
    await talk.say(recorded.source.rest[:size])
    word = await talk.late()
    assert isinstance(word, Frame) and word.type == LOADED
    assert not await destination.is_running()
    await talk.say(recorded.source.rest[size:])
    assert await talk.late() == shut(0)
    await wait_running(destination)


async def commit_again(transcript: Transcript, talk: Talk, port: int,
                       lines: contextlib.AsyncExitStack) -> None:
    recorded = decode(transcript.main.source, transcript.main.destination)
    frames = recorded.source.frames
    after = frames[[frame.type for frame in frames].index(HELLO) + 1:]
    assert recorded.commit and talk.inbox.header
    for other in transcript.channels[1:]:
        session = recorded.destination.header.session
        line = await lines.enter_async_context(call(port))
        await line.say(other.source.replace(session, talk.inbox.header.session))
        assert await line.is_answered()
    old, new = recorded.commit.digest, digest(talk.said, talk.inbox.read)
    await talk.say(*(frame if frame.type != COMMIT else Frame(
        COMMIT, frame.payload.replace(old.encode(), new.encode()), frame.flags)
        for frame in after))


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
            return await require_commit(transcript, one)
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


async def require_given(one: Call, recorded: Conversation) -> None:
    """It says START when it hears LOADED as it was said, and has completed with SHUT."""
    stream = await one.talk.stream()
    rest = recorded.destination.rest
    last = len(shut(0).encode())
    assert rest.endswith(shut(0).encode())
    await one.talk.say(rest[:-last])
    said = (await one.talk.hear(len(stream) + 8))[len(stream):]
    assert Frame(START, b"").encode()[4:] == said[4:8]
    await one.talk.say(rest[-last:])
    assert (await end(one.source))["status"] == "completed"


async def require_commit(transcript: Transcript, one: Call) -> None:
    """After the same channels, with the session that was recorded; what was refused still is."""
    recorded = decode(transcript.main.source, transcript.main.destination)
    assert recorded.commit and isinstance(recorded.verdict, Accept)
    dropped = [item.capability for item in recorded.commit.without]
    kept = {(other.name, other.index): other for other in transcript.channels[1:]}
    for _ in other_channels(recorded.verdict.capabilities, recorded.verdict.parameters):
        line = await one.listener.next()
        header = await line.any_header()
        other = kept.get((header.name, header.index))
        if other:
            assert line.inbox.everything == other.source
        if any(CHANNELS[name] == header.name for name in dropped):
            line.close()
            break                   # the others may not even have come
        await line.say(other.destination if other else header)
    await one.commit(*dropped)
    if recorded.hands_over:
        return await require_given(one, recorded)
    if recorded.last_word:
        await one.talk.say(recorded.destination.rest)
        await require_refused(one.source, recorded.last_word.message or "")
