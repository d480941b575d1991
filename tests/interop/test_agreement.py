# SPDX-License-Identifier: GPL-2.0-or-later
"""Two implementations, one verdict: random HELLOs, judged by QEMU and by ours."""

from __future__ import annotations

import random
from collections.abc import Collection, Sequence
from itertools import combinations
from typing import Any, Optional, Union

import pytest
from conftest import QEMU
from machine import Machine
from processes import Lab, start_destination, start_source
from qmhs import grease
from qmhs.messages import Accept, Bitmap, Hello, Parameter, RamBlock, Section, Verdict
from qmhs.negotiation import (COMPRESSIONS, NEGOTIABLE, RETURN_PATH, Here, Judgement, Reader, judge)
from qmhs.strictjson import Object
from talk import CHECK, changed, judged, multifd

UUID = "6a2f1f0e-52c3-4b8e-9d0c-1d3f5a7b9c11"
LOCAL = ("auto-converge", "xbzrle", "events", "pause-before-switchover")
COUNT = 150
# Codes whose subject is a name in HELLO.
NAMED = ("capability-unknown", "capability-unsupported", "capability-conflict", "transport",
         "parameter-unknown", "parameter-value", "stream-format", "required-feature",
         "ram-block-missing", "ram-block-size", "ram-block-page-size", "bitmap-missing")
NODE = ("-blockdev", "null-co,node-name=disk")
IGNORED = ("uuid", "arch", "section-missing", "section-missing:nobody", "section-version",
           "ram-block-size", "ram-block-missing:nobody", "bitmap-missing:gone", "section-extra",
           "ram-block-extra", "bitmap-missing", "machine-type", "unmigratable", "x-new", "uuid:uuid")


async def learn(source: Machine, port: int) -> Here:
    """What a machine is, from its twin; and what works on it, by asking one by one.

    "How it finds out is its own business": these answers are taken for granted.
    All that follows from them is not.
    """
    hello = Hello.read(await source.execute("query-migrate-profile"))
    profile = hello.profile
    found = set()
    for size in range(len(NEGOTIABLE) + 1):
        for names in combinations(NEGOTIABLE, size):
            if isinstance(await judged(port, wanting(names)), Accept):
                found.add(frozenset(names))
    compressions = [name for name in COMPRESSIONS if isinstance(
        await judged(port, wanting(["multifd"], multifd(2, name, everything=True))), Accept)]
    assert frozenset(["multifd"]) in found and "none" in compressions
    assert frozenset(NEGOTIABLE) not in found

    def possible(capabilities: Collection[str]) -> bool:
        return frozenset(capabilities) - {RETURN_PATH} in found

    return Here(profile.peer, others=LOCAL, possible=possible, compressions=compressions,
                page_size=profile.page_size, host_page_size=profile.host_page_size or 4096,
                uuid=UUID, stream=profile.stream, ram_blocks=profile.ram_blocks,
                bitmaps=[Bitmap("disk")],
                sections={(item.name, instance): Reader(item.version, 0, not item.conditional,
                                                        item.promises)
                          for item in profile.sections for instance in item.every_instance})


def wanting(names: Sequence[str], parameters: Optional[list[Object]] = None) -> Object:
    return changed(CHECK, features=["named-channels"], profile=changed(
        {"required-capabilities": list(names)}, parameters=parameters))


class Dice:
    """HELLOs of any kind, for the same machine or nearly so."""

    def __init__(self, seed: int, here: Here):
        self._random = random.Random(seed)
        self._here = here

    def hello(self) -> Object:
        dice = self._random
        return {
            "versions": self._some([1, 1, 7, 2570, (1 << 32) - 1], 3) or [1],
            "purpose": dice.choice(["check"] * 9 + ["resume"]),
            "required": self._some(["named-channels", "late-error"] * 5 + ["x-new-owner"], 1),
            "features": self._some(["named-channels"] * 4 + ["late-error", "x-new"], 3),
            "optional-capabilities": self._capabilities(5),
            "warnings-as-errors": dice.random() < 0.2,
            "ignore": self._some(IGNORED, 6) if dice.random() < 0.4 else [],
            "profile": self._profile(), **grease.member()}

    def _some(self, items: Sequence[Any], most: int) -> list[Any]:
        return [self._random.choice(items) for _ in range(self._random.randint(0, most))]

    def _capabilities(self, most: int) -> list[Any]:
        return self._some([*NEGOTIABLE * 3, RETURN_PATH, *LOCAL, "x-new"], most)

    def _profile(self) -> Object:
        profile: Object = {"required-capabilities": self._capabilities(3),
                           "capabilities": self._some(["validate-uuid", "events", "x-new"], 2),
                           "parameters": self._parameters(), "stream": self._stream()}
        peer = self._here.peer
        choices: dict[str, list[Any]] = {
            "qemu-version": [peer.qemu_version] * 3 + ["7.1.0"],
            "machine": [peer.machine] * 9 + ["pc-q35-9.0"],
            "arch": [peer.arch] * 9 + ["i386", "s390x"],
            "page-size": [4096] * 9 + [0, 8192], "uuid": [UUID.upper()] * 4 + ["another"],
            "sections": [self._sections()] * 2, "ram-blocks": [self._ram_blocks()] * 2,
            "bitmaps": [self._bitmaps()]}
        for name, values in choices.items():
            if self._random.random() < 0.5:
                profile[name] = self._random.choice(values)
        return profile

    def _parameters(self) -> list[Object]:
        dice = self._random
        items: list[Object] = []
        if dice.random() < 0.5:
            items += multifd(dice.choice([1, 2, 255, 2, 2, 0, 256, "x", ""]), everything=True)[:1]
        if dice.random() < 0.5:
            items += multifd(compression=dice.choice([*COMPRESSIONS, "none", "none", "x"]),
                             everything=True)[1:]
        items += self._some([Parameter(name, "x", "1").write() for name in (
            "multifd", "dirty-bitmaps", RETURN_PATH, RETURN_PATH, "x-new", "x-new")], 1)
        if items and dice.random() < 0.1:
            items.append(dice.choice(items))
        dice.shuffle(items)
        return items

    def _stream(self) -> Object:
        values = {name: value if self._random.random() < 0.95 else not value
                  for name, value in self._here.stream.items()}
        return {**values, "x-new": 1}

    def _sections(self) -> list[Any]:
        dice = self._random
        items: list[Any] = []
        for (name, instance), reader in (self._here.sections or {}).items():
            newer = dice.random() < 0.01
            if dice.random() > 0.02:
                items.append(Section(name, reader.version + newer, [instance],
                                     dice.random() < 0.3, self._promises(reader)).write())
        return items + self._some([Section("nobody", 1).write(),
                                   {"name": "none", "version": 1, "instances": []},
                                   Section("perhaps", 1, None, True).write()], 2)

    def _promises(self, reader: Reader) -> Optional[Object]:
        """Of a guest that has been promised no more than it would get here, and maybe less."""
        dice = self._random
        if not reader.promises or dice.random() < 0.3:
            return None
        promises = {name: value for name, value in reader.promises.items() if dice.random() > 0.02}
        features = promises.get("cpu-features")
        if features and dice.random() < 0.3:
            promises["cpu-features"] = [name for name in features if dice.random() > 0.05]
        return promises

    def _bitmaps(self) -> list[Any]:
        return self._some([Bitmap(node, name).write() for node in ("disk", "disk", "gone")
                           for name in ("b0", "b1")], 2)

    def _ram_blocks(self) -> list[Any]:
        dice = self._random
        items: list[Any] = []
        for block in self._here.ram_blocks or []:
            size = block.size + dice.choice([0] * 18 + [-1, 1 << 16])
            page = dice.choice([4096] * 20 + [2 << 20, 0])
            if dice.random() > 0.02:
                items.append(RamBlock(block.name, size, page_size=page,
                                      shared_file=dice.random() < 0.02).write())
        return items + self._some([RamBlock("nobody", 1, page_size=1 << 20).write(),
                                   RamBlock("perhaps", 1, conditional=True).write()], 1)


def told(verdict: Union[Verdict, Judgement]) -> set[tuple[Any, Any, Any]]:
    """What is named twice may be complained about twice."""
    return {(issue.code, issue.severity, issue.subject if issue.code in NAMED else "")
            for issue in verdict.issues}


def require_same(hello: Object, verdict: Verdict, ours: Judgement) -> None:
    assert isinstance(verdict, Accept) == ours.is_accepted, hello
    assert told(verdict) == told(ours), hello
    assert sorted(name for name in verdict.features if not grease.is_name(name)) == sorted(
        set(ours.features)), hello
    if isinstance(verdict, Accept):
        assert verdict.version == ours.version
        assert sorted(verdict.capabilities) == sorted(ours.capabilities), hello
        assert verdict.parameters == ours.parameters, hello
        assert {item.capability for item in verdict.declined} == {
            item.capability for item in ours.declined}, hello


@pytest.mark.parametrize("seed", [1, 2, 3, 4])
async def test_same_verdict(seed: int) -> None:
    """Verdict, issues, effective capabilities, parameters in their order, what is declined."""
    async with Lab([str(QEMU), "-nodefaults", "-display", "none", "-machine", "pc", "-m", "16",
                    "-uuid", UUID, *NODE], "qtest") as lab:
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
