# SPDX-License-Identifier: GPL-2.0-or-later
"""Two implementations, one verdict: random HELLOs, judged by QEMU and by ours."""

from __future__ import annotations

import random
from collections.abc import Sequence
from itertools import combinations
from typing import Any, Union

import pytest
from conftest import QEMU
from machine import Machine
from processes import Lab, start_destination, start_source
from qmhs import grease
from qmhs.messages import Accept, Hello, RamBlock, Section, Verdict
from qmhs.negotiation import (COMPRESSIONS, NEGOTIABLE, RETURN_PATH, Here, Judgement, Reader, judge)
from qmhs.strictjson import Object
from talk import CHECK, changed, judged

UUID = "6a2f1f0e-52c3-4b8e-9d0c-1d3f5a7b9c11"
LOCAL = ("auto-converge", "xbzrle", "events", "pause-before-switchover")
COUNT = 150
# Codes whose subject is a name in HELLO.
NAMED = ("capability-unknown", "capability-unsupported", "capability-conflict", "transport",
         "parameter-unknown", "parameter-value", "stream-format", "required-feature",
         "ram-block-missing", "ram-block-size", "ram-block-page-size")


async def learn(source: Machine, port: int) -> Here:
    """What a machine is, from its twin; and what works on it, by asking one by one.

    "How it finds out is its own business": these answers are taken for granted.
    All that follows from them is not.
    """
    hello = Hello.read(await source.execute("query-migrate-profile"))
    profile = hello.profile
    works = set()
    for size in range(len(NEGOTIABLE) + 1):
        for names in combinations(NEGOTIABLE, size):
            if isinstance(await judged(port, wanting(names)), Accept):
                works.add(frozenset(names))
    compressions = [name for name in COMPRESSIONS if isinstance(
        await judged(port, wanting(["multifd"], {"multifd-compression": name})), Accept)]
    assert frozenset(["multifd"]) in works and "none" in compressions
    assert frozenset(NEGOTIABLE) not in works

    def work(capabilities: Sequence[str]) -> bool:
        return frozenset(capabilities) - {RETURN_PATH} in works

    return Here(profile.peer, others=LOCAL, works=work, compressions=compressions,
                page_size=profile.page_size, host_page_size=profile.host_page_size or 4096,
                uuid=UUID, stream=profile.stream, ram_blocks=profile.ram_blocks,
                sections={(item.name, instance): Reader(item.version, 0, not item.conditional)
                          for item in profile.sections or [] for instance in item.every_instance})


def wanting(names: Sequence[str], multifd: Any = None) -> Object:
    return changed(CHECK, features=["named-channels"], profile=changed(
        {"required-capabilities": list(names)},
        parameters=None if multifd is None else {"multifd": multifd}))


class Dice:
    """HELLOs of any kind, for the same machine or nearly so."""

    def __init__(self, seed: int, here: Here):
        self._random = random.Random(seed)
        self._here = here

    def hello(self) -> Object:
        dice = self._random
        return {
            "versions": self._some([1, 1, 7, 2570, "1", 1 << 40], 3) or [1],
            "purpose": dice.choice(["check"] * 9 + ["resume"]),
            "required": self._some(["named-channels"] * 9 + ["late-error"], 1),
            "features": self._some(["named-channels"] * 4 + ["x-new", 7], 3),
            "optional-capabilities": self._capabilities(5),
            "warnings-as-errors": dice.random() < 0.2,
            "profile": self._profile(), **grease.member()}

    def _some(self, items: Sequence[Any], most: int) -> list[Any]:
        return [self._random.choice(items) for _ in range(self._random.randint(0, most))]

    def _capabilities(self, most: int) -> list[Any]:
        return self._some([*NEGOTIABLE * 3, RETURN_PATH, *LOCAL, "x-new"], most)

    def _profile(self) -> Object:
        profile: Object = {"required-capabilities": self._capabilities(3),
                           "capabilities": self._some(["validate-uuid", "events", 7], 2),
                           "parameters": self._parameters(), "stream": self._stream()}
        peer = self._here.peer
        choices: dict[str, list[Any]] = {
            "machine": [peer.machine] * 9 + ["pc-q35-9.0"],
            "arch": [peer.arch] * 9 + ["i386", "s390x"],
            "page-size": [4096] * 9 + [0, 8192], "uuid": [UUID.upper()] * 4 + ["another"],
            "sections": [self._sections()] * 2, "ram-blocks": [self._ram_blocks()] * 2}
        for name, values in choices.items():
            if self._random.random() < 0.5:
                profile[name] = self._random.choice(values)
        return profile

    def _parameters(self) -> Object:
        dice = self._random
        multifd: Any = {}
        if dice.random() < 0.5:
            multifd["multifd-channels"] = dice.choice([1, 2, 255, 2, 2, 0, 256, "2", True])
        if dice.random() < 0.5:
            multifd["multifd-compression"] = dice.choice([*COMPRESSIONS, "none", "none", 7, "x"])
        if dice.random() < 0.1:
            multifd["x-new"] = None
        groups = {"multifd": dice.choice([multifd] * 9 + [[], 7]),
                  "dirty-bitmaps": dice.choice([{}, {}, {"x": 1}, None]), RETURN_PATH: {"x": 1}}
        return {name: group for name, group in groups.items() if dice.random() < 0.4}

    def _stream(self) -> Object:
        values = {name: value if self._random.random() < 0.95 else self._random.choice([
            not value, 7, None]) for name, value in self._here.stream.items()}
        return {**values, "x-new": 1}

    def _sections(self) -> list[Any]:
        dice = self._random
        items: list[Any] = []
        for (name, instance), reader in (self._here.sections or {}).items():
            newer = dice.random() < 0.01
            if dice.random() > 0.02:
                items.append(Section(name, reader.version + newer, [instance],
                                     dice.random() < 0.3).write())
        return items + self._some([Section("nobody", 1).write(), {"x": 1}, 7,
                                   Section("perhaps", 1, [], True).write()], 2)

    def _ram_blocks(self) -> list[Any]:
        dice = self._random
        items: list[Any] = []
        for block in self._here.ram_blocks or []:
            size = block.size + dice.choice([0] * 18 + [-1, 1 << 16])
            page = dice.choice([4096] * 20 + [2 << 20, 0])
            if dice.random() > 0.02:
                items.append(RamBlock(block.name, size, page_size=page,
                                      shared_file=dice.random() < 0.02).write())
        return items + self._some([RamBlock("nobody", 1).write(), {"x": 1},
                                   RamBlock("perhaps", 1, conditional=True).write()], 1)


def told(verdict: Union[Verdict, Judgement]) -> set[tuple[Any, Any, Any]]:
    """What is named twice may be complained about twice."""
    return {(issue.code, issue.severity, issue.subject if issue.code in NAMED else "")
            for issue in verdict.issues}


def require_same(hello: Object, verdict: Verdict, ours: Judgement) -> None:
    assert isinstance(verdict, Accept) == ours.is_accepted, hello
    assert told(verdict) == told(ours), hello
    assert [name for name in verdict.features if not grease.is_name(name)] == list(
        dict.fromkeys(ours.features)), hello
    if isinstance(verdict, Accept):
        assert verdict.version == ours.version
        assert verdict.capabilities == ours.capabilities, hello
        assert verdict.parameters == ours.parameters, hello
        assert {item.capability for item in verdict.declined} == {
            item.capability for item in ours.declined}, hello


@pytest.mark.parametrize("seed", [1, 2, 3, 4])
async def test_same_verdict(seed: int) -> None:
    """Verdict, issues, effective capabilities and their order, parameters, what is declined."""
    async with Lab([str(QEMU), "-nodefaults", "-display", "none", "-machine", "pc", "-m", "16",
                    "-uuid", UUID], "qtest") as lab:
        source = await start_source(lab)
        _, port = await start_destination(lab)
        here = await learn(source, port)
        dice = Dice(seed, here)
        kinds = {True: 0, False: 0}
        for _ in range(COUNT):
            hello = dice.hello()
            verdict = await judged(port, hello)
            require_same(hello, verdict, judge(Hello.read(hello), here))
            kinds[isinstance(verdict, Accept)] += 1
        assert min(kinds.values()) > COUNT // 20, kinds
