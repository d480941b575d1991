# SPDX-License-Identifier: GPL-2.0-or-later
"""Traces: `-trace 'migration_handshake_*'` tells the story of a conversation, on either side."""

from __future__ import annotations

import contextlib
import re
from pathlib import Path

import pytest
from machine import Lab, Machine, until
from processes import (PROMPT, STRICTLY, UUIDS, Options, begin, begin_check, check, end, inet,
                       migrate, pc_lab, require_listening, start_destination, start_source, verdict)
from strangers import CONNECTIONS_MAX
from wire import ACCEPT, SESSION, FakeDestination, Peer, frame, header

PREFIX = "migration_handshake_"
TWO_CHANNELS: Options = {"optional-capabilities": ["multifd"]}
PLAIN: Options = {"optional-capabilities": []}


def traced(log: Path) -> list[str]:
    return ["-D", str(log), "-trace", f"{PREFIX}*"]


def told(log: Path) -> list[tuple[str, str]]:
    """Events and what they say."""
    return re.findall(rf"^{PREFIX}(\w+) ?(.*)$", log.read_text(), re.M)


def story(log: Path) -> list[str]:
    """The steps. Others come in any number, or in any order."""
    return [name for name, _ in told(log)
            if name not in ("frame_received", "message_sent", "apply", "restore",
                            "destination_channel", "channel_greet", "channel_open",
                            "channel_interrupt")]


def sent(log: Path) -> list[str]:
    """Messages as they were sent, which is their type and JSON."""
    return [what for name, what in told(log) if name == "message_sent"]


def heard(log: Path, name: str) -> list[str]:
    """What the other side has sent, as it came."""
    return [what.partition(" ")[2] for event, what in told(log) if event == name]


async def require_story(log: Path, expected: list[str]) -> None:
    """It may be that the last steps are about to come."""
    async def whole() -> bool:
        return len(story(log)) >= len(expected)

    await until(expected[-1], PROMPT, whole, every=0.001)
    assert story(log) == expected


async def require_restored(log: Path) -> None:
    """What was agreed on took effect for the session alone."""
    async def restored() -> bool:
        return "restore" in [name for name, _ in told(log)]

    assert "return-path" in [what.partition("=")[0] for name, what in told(log) if name == "apply"]
    await until("settings to be restored", PROMPT, restored, every=0.001)


class Pair:
    """Two machines that write down what happens."""

    def __init__(self, lab: Lab, directory: Path):
        self._lab = lab
        self.here, self.there = directory / "source", directory / "destination"
        self.port = 0

    async def start(self, tls: bool = False) -> tuple[Machine, Machine]:
        source = await start_source(self._lab, tls=tls, options=[*UUIDS[0], *traced(self.here)])
        destination, self.port = await start_destination(
            self._lab, tls=tls, options=[*UUIDS[1], *traced(self.there)])
        return source, destination


AGREED = ["source_hello", "source_verdict", "source_commit", "source_end"]


def began(tls: bool = False) -> list[str]:
    return ["source_start", "channel_connect", *["channel_tls"][:tls]]


TAKEN = ["destination_accept", "destination_hello", "destination_verdict", "destination_commit",
         "destination_end"]
ASKED = TAKEN[:3] + TAKEN[4:]


@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
async def test_migration(tls: bool, tmp_path: Path) -> None:
    async with pc_lab() as lab:
        pair = Pair(lab, tmp_path)
        source, _ = await pair.start(tls)
        assert (await migrate(source, pair.port, PLAIN))["status"] == "completed"
        await require_story(pair.here, [*began(tls), *AGREED, "loaded", "start",
                                        "return_path_ended"])
        await require_story(pair.there, [*TAKEN, "start"])
        for log in (pair.here, pair.there):
            await require_restored(log)
        verdict, loaded = sent(pair.there)
        assert [verdict] == heard(pair.here, "source_verdict")
        assert loaded.startswith("LOADED {")
        assert [f"{kind} {text}" for kind, text in zip(
            ("HELLO", "COMMIT"), heard(pair.there, "destination_hello")
            + heard(pair.there, "destination_commit"))] == sent(pair.here)


async def test_channels(tmp_path: Path) -> None:
    async with pc_lab() as lab:
        pair = Pair(lab, tmp_path)
        source, _ = await pair.start()
        assert (await migrate(source, pair.port, TWO_CHANNELS))["status"] == "completed"
        for log, name in ((pair.here, "channel_connect"), (pair.there, "destination_channel")):
            words = [" ".join(what.split()[1:3]) for event, what in told(log) if event == name]
            assert sorted(words[-2:]) == ["multifd 0", "multifd 1"], words
        names = [name for name, _ in told(pair.here)]
        for step in ("channel_greet", "channel_open"):
            assert names.count(step) == 2
            assert names.index("source_verdict") < names.index(step) < names.index("source_commit")


async def test_check(tmp_path: Path) -> None:
    async with pc_lab() as lab:
        pair = Pair(lab, tmp_path)
        source, destination = await pair.start()
        assert (await check(source, inet(pair.port)))["status"] == "accepted"
        await require_listening(destination)
        await require_story(pair.here, [*began(), "source_hello", "source_verdict", "source_end"])
        await require_story(pair.there, ASKED)


async def test_refusal(tmp_path: Path) -> None:
    """By the destination; both say why."""
    async with pc_lab() as lab:
        pair = Pair(lab, tmp_path)
        source, destination = await pair.start()
        assert (await migrate(source, pair.port, STRICTLY))["status"] == "failed"
        await require_listening(destination)
        await require_story(pair.here, [*began(), "source_hello", "source_verdict", "source_end"])
        await require_story(pair.there, ASKED)
        for log in (pair.here, pair.there):
            name, reason = told(log)[-1]
            assert name.endswith("_end") and "UUID" in reason, reason


async def test_nobody_answers(tmp_path: Path) -> None:
    log = tmp_path / "source"
    async with pc_lab() as lab, FakeDestination() as silent:
        source = await start_source(lab, options=traced(log))
        await begin(source, inet(silent.port), {"timeout": 1})
        await (await silent.next()).read_hello()
        await end(source)
        await require_story(log, [*began(), "source_hello", "source_end"])
        assert "within 1 seconds" in told(log)[-1][1]


async def test_acceptance_that_is_none(tmp_path: Path) -> None:
    """The source says so, and why."""
    log = tmp_path / "source"
    async with pc_lab() as lab, FakeDestination() as other:
        source = await start_source(lab, options=traced(log))
        await begin(source, inet(other.port), PLAIN)
        peer = await other.next()
        await peer.read_hello()
        await peer.send(header(session=SESSION)
                        + frame(ACCEPT, {"version": 7, "capabilities": ["return-path"]}))
        await end(source)
        await require_story(log, [*began(), "source_hello", "source_verdict",
                                  "source_abort", "source_end"])
        for name, reason in told(log)[-2:]:
            assert "version 7" in reason, name


async def test_too_many_connections(tmp_path: Path) -> None:
    """Who has said nothing for the longest time makes room."""
    log = tmp_path / "destination"
    async with pc_lab() as lab, contextlib.AsyncExitStack() as stack:
        _, port = await start_destination(lab, options=traced(log))
        for _ in range(CONNECTIONS_MAX + 1):
            peer = await Peer.connect(port)
            stack.callback(peer.close)

        async def evicted() -> bool:
            return "destination_evict" in story(log)

        await until("one to go", PROMPT, evicted, every=0.01)
        assert story(log).count("destination_accept") == CONNECTIONS_MAX + 1
        assert story(log).count("destination_evict") == 1


async def test_cancelled_check(tmp_path: Path) -> None:
    log = tmp_path / "source"
    async with pc_lab() as lab, FakeDestination() as silent:
        source = await start_source(lab, options=traced(log))
        await begin_check(source, inet(silent.port))
        await (await silent.next()).read_hello()
        await source.execute("migrate_cancel")
        await verdict(source)
        await require_story(log, [*began(), "source_hello", "source_end"])
        assert "cancelled" in told(log)[-1][1]


async def test_nobody_answers_to_tls(tmp_path: Path) -> None:
    log = tmp_path / "source"
    async with pc_lab() as lab, FakeDestination() as silent:
        source = await start_source(lab, tls=True, options=traced(log))
        await begin(source, inet(silent.port), {"timeout": 1})
        await end(source)
        await require_story(log, [*began(tls=True), "source_end"])
        assert "within 1 seconds" in told(log)[-1][1]
