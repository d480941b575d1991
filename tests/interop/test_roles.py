# SPDX-License-Identifier: GPL-2.0-or-later
"""Both roles of the implementation, each against QEMU in the other one."""

from __future__ import annotations

import contextlib
import copy
import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
from conftest import QEMU
from machine import Machine
from processes import (NO_MULTIFD, Lab, begin, inet, pc_lab, require_refused, set_channels,
                       start_source)
from qmhs import Malformed
from qmhs.frames import ABORT, ACCEPT, COMMIT, HELLO, Header, message
from qmhs.messages import NOT_STARTED, Accept, Hello, Parameter, Peer, Profile
from qmhs.negotiation import Here, objections, other_channels
from qmhs.roles import Destination, Place, Source
from qmhs.strictjson import Object, compose, parse
from talk import (FEATURES, Listener, Talk, call, loading_destination, qemu_destination,
                  require_loading)
from test_as_destination import SESSION

MULTIFD = Hello(features=FEATURES, optional_capabilities=["multifd", "x-new"],
                profile=Profile(required_capabilities=["dirty-bitmaps"],
                                parameters=[Parameter("multifd", "multifd-channels", "3")]))
TRIES = 60
MACHINE = "pc-i440fx-10.0"      # all bases have it


async def converse(talk: Talk, role: Any) -> None:
    """Carry what comes to the role, and what that says to QEMU, until it is over."""
    while role.state in ("waiting", "accepted"):
        data = await talk.read()
        if not data:
            return
        await talk.say(role.receive(data))


async def open_channels(source: Source, port: int, stack: contextlib.AsyncExitStack,
                        refused: Sequence[Place] = ()) -> bytes:
    """What the source says then."""
    assert source.state == "opening", source.problem
    failed = {}
    for place in source.channels:
        opening = source.opening(place)
        if place in refused:
            failed[place] = "nobody can connect"
            continue
        talk = await stack.enter_async_context(call(port))
        await talk.say(opening.begin())
        while opening.state == "waiting":
            opening.receive(await talk.read())
        assert opening.state == "open" and not opening.beyond
    return source.opened(failed)


@pytest.mark.parametrize("with_grease", [False, True], ids=["plain", "grease"])
async def test_our_source_migrates(with_grease: bool) -> None:
    async with loading_destination() as (destination, port), call(port) as talk:
        source = Source(replace(MULTIFD, optional_capabilities=["switchover-ack"]), with_grease)
        await talk.say(source.begin())
        await converse(talk, source)
        assert source.state == "committed", source.problem
        await require_loading(destination)
        info = await destination.handshake()
        assert sorted(info["capabilities"]) == ["dirty-bitmaps", "return-path", "switchover-ack"]


@pytest.mark.parametrize("with_grease", [False, True], ids=["plain", "grease"])
@pytest.mark.parametrize("refused", [[], [("multifd", 1)]], ids=["all", "one is missing"])
async def test_our_source_has_channels(refused: list[Place], with_grease: bool) -> None:
    async with loading_destination() as (destination, port), call(port) as talk, \
            contextlib.AsyncExitStack() as stack:
        source = Source(MULTIFD, with_grease)
        await talk.say(source.begin())
        await converse(talk, source)
        await talk.say(await open_channels(source, port, stack, refused))
        assert source.state == "committed", source.problem
        await require_loading(destination)
        info = await destination.handshake()
        assert ("multifd" in info["capabilities"]) == (not refused)
        assert {item["capability"] for item in info["declined"]} == {
            "x-new", *(["multifd"] if refused else [])}


async def test_our_source_reads_a_last_word() -> None:
    """Of a destination that cannot go on, since a channel is missing."""
    async with qemu_destination() as (_, port), call(port) as talk:
        source = Source(MULTIFD)
        await talk.say(source.begin())
        await converse(talk, source)
        await talk.say(source.opened({}))
        while source.state == "committed" and (data := await talk.read()):
            source.receive(data)
        assert source.state == "failed" and "channels" in source.problem
        assert source.last_word and source.last_word.guest == NOT_STARTED


@pytest.mark.parametrize("hello, state", [
    (replace(MULTIFD, purpose="check"), "checked"), (replace(MULTIFD, required=["x"]), "refused"),
    (replace(MULTIFD, purpose="check", profile=Profile(Peer(machine="pc-q35-9.0"))), "refused")])
async def test_our_source_is_judged(hello: Hello, state: str) -> None:
    async with qemu_destination(pc_lab()) as (_, port), call(port) as talk:
        source = Source(hello)
        await talk.say(source.begin())
        await converse(talk, source)
        assert source.state == state, source.problem
        talk.end()
        assert await talk.rest() == b"" == source.beyond
        assert source.verdict and source.verdict.not_understood
        if isinstance(source.verdict, Accept):
            assert [item.capability for item in source.verdict.declined] == ["x-new"]


OTHER = Here(Peer("23.1.0", "ours", "x86_64", MACHINE))
OUR_DESTINATIONS: dict[str, tuple[Here, str]] = {
    "can all": (OTHER, "committed"), "older": (Here(features=[]), "committed"),
    "oldest": (Here(negotiable=[], others=[]), "committed"),
    "cannot multifd": (replace(OTHER, possible=lambda names: "multifd" not in names), "committed"),
    "another machine": (Here(Peer(machine="pc-q35-9.0")), "refused"),
    "another version": (replace(OTHER, versions=[2]), "refused"),
    "other purposes": (replace(OTHER, purposes=["resume"]), "refused"),
}


@pytest.mark.parametrize("here, state", OUR_DESTINATIONS.values(), ids=OUR_DESTINATIONS)
async def test_our_destination(here: Here, state: str) -> None:
    async with pc_lab(MACHINE) as lab, Listener() as listener:
        source = await start_source(lab)
        await begin(source, inet(listener.port))
        talk = await listener.next()
        destination = Destination(here)
        while destination.state == "waiting":
            await talk.say(destination.receive(await talk.read()))
        for _ in destination.channels if destination.state == "accepted" else []:
            await take_channel(destination, listener)
        await converse(talk, destination)
        assert destination.state == state, destination.problem
        if state == "committed":
            while not destination.stream.startswith(b"QEVM"):
                destination.receive(await talk.read())
        talk.close()
        info = await require_refused(source)
        await require_told(source, destination)
        if state == "refused":
            assert destination.problem in info["error-desc"]


async def take_channel(destination: Destination, listener: Listener) -> None:
    talk = await listener.next()
    answer = destination.take(await talk.any_header())
    assert answer
    await talk.say(answer)


async def test_our_destination_cannot_go_on() -> None:
    """QEMU tells its last word."""
    async with pc_lab(MACHINE) as lab, Listener() as listener:
        source = await start_source(lab)
        await begin(source, inet(listener.port), NO_MULTIFD)
        talk = await listener.next()
        destination = Destination(OTHER)
        await converse(talk, destination)
        assert destination.state == "committed", destination.problem
        await talk.say(destination.cannot_go_on("the cellar is full"))
        await require_refused(source, "the cellar is full")


async def require_told(source: Machine, destination: Destination) -> None:
    """The source shows what ours has said."""
    info = await source.handshake()
    judgement = destination.judgement
    assert info["features"] == judgement.features
    assert [issue["code"] for issue in info["issues"]] == [
        issue.code for issue in judgement.issues]
    if judgement.is_accepted:
        assert sorted(info["capabilities"]) == sorted(judgement.capabilities)
        assert {item["capability"] for item in info["declined"]} == {
            item.capability for item in judgement.declined}


async def test_our_destination_aborted() -> None:
    """QEMU's last word is read, whichever it is."""
    async with pc_lab(MACHINE) as lab, Listener() as listener:
        await begin(await start_source(lab), inet(listener.port))
        talk = await listener.next()
        destination = Destination(OTHER)
        destination.session = bytes(16)
        await converse(talk, destination)
        assert destination.state == "aborted"


class Spoiler:
    """Changes an ACCEPT here and there."""

    def __init__(self, seed: int):
        self._random = random.Random(seed)

    def spoil(self, accept: Object) -> Object:
        value = copy.deepcopy(accept)
        for change in self._random.choices(CHANGES, k=self._random.choice([0, 1, 1, 2])):
            change(value, self._random)
        return value


def _drop(value: Object, dice: random.Random) -> None:
    value.pop(dice.choice(sorted(value)))


def _retype(value: Object, dice: random.Random) -> None:
    value[dice.choice(sorted(value))] = dice.choice([None, True, 7, "x", [], {}, [7], {"x": 1}])


def _more_capabilities(value: Object, dice: random.Random) -> None:
    names = ["switchover-ack", "multifd", "postcopy-ram", "return-path", "x-new", "events"]
    if isinstance(value.get("capabilities"), list):
        value["capabilities"].insert(dice.randint(0, 1), dice.choice(names))


def _fewer_capabilities(value: Object, dice: random.Random) -> None:
    if isinstance(value.get("capabilities"), list) and value["capabilities"]:
        value["capabilities"].pop(dice.randrange(len(value["capabilities"])))


def _parameter(value: Object, dice: random.Random) -> None:
    items = value.get("parameters")
    if isinstance(items, list) and items and isinstance(items[0], dict):
        items[0][dice.choice(["capability", "name", "value", "x-new"])] = dice.choice(
            ["multifd", "multifd-channels", "3", "4", 3, None])


def _version(value: Object, dice: random.Random) -> None:
    value["version"] = dice.choice([0, 2, 1 << 31, (1 << 32) + 1, (1 << 63) + 1])


def _issue(value: Object, dice: random.Random) -> None:
    value["issues"] = [{"code": "uuid", "severity": dice.choice(["error", "info", "x", 7]),
                        "message": "text"}]


def _harmless(value: Object, dice: random.Random) -> None:
    value[f"x-{dice.random()}"] = value.get("version")


CHANGES: list[Callable[[Object, random.Random], None]] = [
    _drop, _retype, _more_capabilities, _fewer_capabilities, _parameter, _version, _issue,
    _harmless]


def expected(hello: Hello, accept: Object, session: bytes) -> int:
    """What the source has to say. 0: nothing."""
    try:
        return ABORT if objections(hello, session, Accept.read(parse(compose(accept)))) else COMMIT
    except Malformed:
        return 0


@pytest.mark.parametrize("strict", [False, True], ids=["lax", "warnings-as-errors"])
async def test_source_agrees_with_our_checks(strict: bool) -> None:
    """Random ACCEPTs: it commits, aborts or closes as the specification says."""
    spoiler = Spoiler(int(strict))
    said: set[int] = set()
    channels = 3            # it says so, since it is not what goes without saying
    async with Lab([str(QEMU), "-nodefaults", "-display", "none", "-machine", "none"],
                   "qtest") as lab:
        source = await start_source(lab)
        await source.execute("migrate-set-capabilities", {"capabilities": [
            {"capability": "dirty-bitmaps", "state": True}]})
        await set_channels(source, channels)
        for _ in range(TRIES):
            async with Listener() as listener:
                await begin(source, inet(listener.port), {"warnings-as-errors": strict})
                talk = await listener.next()
                said.add(await answer(talk, listener, spoiler))
            await require_refused(source)
    assert said == {0, ABORT, COMMIT}


async def answer(talk: Talk, listener: Listener, spoiler: Spoiler) -> int:
    await talk.header()
    hello = Hello.read(await talk.message(HELLO))
    accept = spoiler.spoil({
        "version": 1, "capabilities": ["return-path", "dirty-bitmaps", "multifd"],
        "features": ["named-channels"],
        "parameters": [item.write() for item in hello.profile.parameters]})
    header = Header(SESSION.bytes)
    await talk.say(header, message(ACCEPT, accept))
    kind = expected(hello, accept, header.session)
    if kind == COMMIT:
        for _ in other_channels(accept["capabilities"], hello.profile.parameters):
            other = await listener.next()
            await other.say(await other.any_header())
    if kind:
        frame = await talk.frame()
        assert frame.type == kind, (frame, accept)
    else:
        assert await talk.rest() == b"", accept
    return kind
