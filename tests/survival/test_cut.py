# SPDX-License-Identifier: GPL-2.0-or-later
"""The connection breaks, or trickles, at every byte of the handshake."""

from __future__ import annotations

import asyncio
import time

import pytest
from machine import Lab, Machine, NotSeen
from processes import (NO_MULTIFD, Options, begin, end, inet, require_good_migration,
                       require_listening, small_lab, start_destination, start_source, wait_running)
from relay import SPEAKERS, Line, Relay

# The source sees the end at once; the rest is for a busy machine. Whoever waits for a timer
# takes 5 seconds.
LIMIT = 4.0
OPTIONS: dict[str, Options | None] = {"default": None, "alone": NO_MULTIFD}


async def lengths(lab: Lab, options: Options | None) -> dict[str, int]:
    """How long the two parts of a whole handshake are.

    Grease makes them vary by some bytes. A relay cuts where a byte is, and
    never behind the last word of a source, so the last one is met anyway.
    """
    source = await start_source(lab, "first source")
    destination, port = await start_destination(lab, "first destination")
    async with Relay(port) as relay:
        await require_good_migration(source, destination, relay.port, options)
        line = relay.lines[0]
        found = {speaker: line.conversation(speaker) or 0 for speaker in SPEAKERS}
    await source.stop()
    await destination.stop()
    assert all(300 < length < 20000 for length in found.values()), found
    return found


async def attempt_and_cut(source: Machine, destination: Machine, port: int,
                          options: Options | None, speaker: str, count: int,
                          how: str) -> None:
    """One migration whose main channel breaks after `count` bytes."""
    async def treat(line: Line) -> None:
        if line.number:
            return await line.carry_both()
        await line.carry_part(speaker, count)
        if how == "FIN":
            await line.cut()
        else:
            line.reset()

    async with Relay(port, treat) as relay:
        start = time.monotonic()
        await begin(source, inet(relay.port), options)
        info = await end(source)
        assert time.monotonic() - start < LIMIT
        assert info["status"] == "failed", info
        assert info["error-desc"], info
        # Nobody can have got further than to hold the session.
        assert "another migration" not in info["error-desc"]
        line = relay.lines[0]
        whole = line.conversation(speaker)
        if whole is not None:
            assert line.passed[speaker] == min(count, whole - (speaker == "source"))
        await asyncio.wait_for(relay.quiet(), LIMIT)
    await wait_running(source, LIMIT)
    await require_listening(destination)


async def cut_everywhere(speaker: str, how: str, options: Options | None) -> None:
    async with small_lab() as lab:
        length = (await lengths(lab, options))[speaker]
        source = await start_source(lab)
        destination, port = await start_destination(lab)
        with source.events("STOP") as stops:
            for count in range(length + 1):
                try:
                    await attempt_and_cut(source, destination, port, options, speaker, count, how)
                except (AssertionError, NotSeen) as error:
                    raise AssertionError(f"cut after {count} of {length} bytes") from error
                # With COMMIT the source may come as far as to stop its guest.
                if stops.clear():
                    assert (await source.handshake())["status"] == "accepted"
        await require_good_migration(source, destination, port, options)


@pytest.mark.parametrize("speaker", SPEAKERS)
@pytest.mark.parametrize("how", ["FIN", "RST"])
@pytest.mark.parametrize("options", OPTIONS)
async def test_cut_after_every_byte(options: str, how: str, speaker: str) -> None:
    await cut_everywhere(speaker, how, OPTIONS[options])


@pytest.mark.parametrize("capability", [[], ["switchover-ack"], ["multifd"]],
                         ids=["alone", "switchover-ack", "multifd"])
async def test_return_path_ends(capability: list[str]) -> None:
    """The destination's direction alone ends, behind ACCEPT; the other one leads nowhere."""
    async def treat(line: Line) -> None:
        if line.number:
            return await line.carry_both()
        await line.carry_part("destination", 1 << 20)
        line.shut("destination")
        await line.drain("source")

    async with small_lab() as lab:
        source = await start_source(lab)
        destination, port = await start_destination(lab)
        async with Relay(port, treat) as relay:
            await begin(source, inet(relay.port), {"optional-capabilities": capability})
            info = await end(source, LIMIT)
            assert info["status"] == "failed"
            assert info["error-desc"]
        # It may have come as far as to stop its guest, here as well.
        await wait_running(source, LIMIT)
        await require_listening(destination)
        await require_good_migration(source, destination, port)


@pytest.mark.parametrize("options", OPTIONS)
async def test_one_byte_at_a_time(options: str) -> None:
    async with small_lab() as lab:
        source = await start_source(lab)
        destination, port = await start_destination(lab)
        async with Relay(port, Line.trickle_both) as relay:
            await require_good_migration(source, destination, relay.port, OPTIONS[options])
        said = await source.handshake()
        assert said["status"] == (await destination.handshake())["status"] == "accepted"
        assert ("multifd" in said["capabilities"]) == (options == "default")
