# SPDX-License-Identifier: GPL-2.0-or-later
"""Profiles: what a source would say, judged by destinations that it never talks to."""

from __future__ import annotations

import asyncio
import contextlib
import copy
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Any, NamedTuple, Optional

import pytest
from machine import Json, Lab, Machine, NotSeen
from processes import (MIB, UNDER, UUIDS, Options, begin, bytes_of, check, differences, end, fds,
                       inet, locked_memory, main_thread_time, pc_lab, require_listening,
                       require_refused, require_success, set_capabilities, set_channels, settings,
                       small_lab, start_destination, start_source, verdict, wait_cleaned_up,
                       wait_status)
from relay import Line, Relay
from wire import HELLO, Peer, message_of, parameter, without_grease

SLOW = 64 << 10         # bytes a second
FAST = 0.02             # what the commands may take of a CPU's time, in seconds


async def profile_of(source: Machine) -> Any:
    """As it is when a file has been in between."""
    return json.loads(json.dumps(await source.execute("query-migrate-profile")))


async def judge(destination: Machine, profile: Any, options: Optional[Options] = None) -> Any:
    arguments: Json = {"profile": profile}
    if options is not None:
        arguments["options"] = options
    return await destination.execute("check-migrate-profile", arguments)


async def start_candidate(lab: Lab, *options: str) -> Machine:
    """As a scheduler has it: it listens nowhere."""
    return await lab.start("candidate", "-S", "-incoming", "defer", *options, under=UNDER)


@contextlib.asynccontextmanager
async def unchanged(*machines: Machine) -> AsyncIterator[None]:
    """Nothing that could be seen of them."""
    async def state() -> list[Any]:
        return [(await machine.migration(), await settings(machine),
                 await machine.execute("query-status"), await machine.execute("query-yank"),
                 locked_memory(machine) > 0) for machine in machines]

    before = await state()
    yield
    assert await state() == before


# What it says


@pytest.mark.parametrize("options", [
    (), ("-name", "guest \u00fc,process=qemu", *UUIDS[0]), ("-smp", "3"), ("-S",),
    ("-device", "qemu-xhci", "-device", "usb-wacom-tablet"),
    ("-device", "VGA,romfile=", "-device", "i6300esb", "-m", "32")],
    ids=["plain", "name", "smp", "prelaunch", "unmigratable", "devices"])
@pytest.mark.parametrize("required", [(), ("validate-uuid", "dirty-bitmaps"), ("multifd",),
                                      ("postcopy-ram", "postcopy-preempt"), ("auto-converge",)],
                         ids=lambda names: "-".join(names) or "none")
async def test_it_is_what_the_wire_says(options: tuple[str, ...],
                                        required: tuple[str, ...]) -> None:
    """Of a check and, where that may begin, of a migration; with all that could be optional."""
    async with pc_lab() as lab:
        source = await start_source(lab, options=options)
        destination, port = await start_destination(lab, options=["-smp", "2"])
        await set_capabilities(source, *required)
        await set_channels(source, 3)
        async with unchanged(source):
            profile = await source.execute("query-migrate-profile")
        async with Relay(port) as relay:
            info = await check(source, inet(relay.port))
            if not any(issue["code"] == "unmigratable" for issue in info["issues"]):
                await begin(source, inet(relay.port))
                await end(source)
            said = [without_grease(one) for one in
                    (message_of(line.said["source"], HELLO) for line in relay.lines) if one]
        assert [one.pop("purpose") for one in said] == ["check", "migrate"][:len(said)]
        require_same(profile, said, required)
        assert destination.exit_status is None


def require_same(profile: Json, said: list[Json], required: tuple[str, ...]) -> None:
    expected = copy.deepcopy(profile)
    assert expected.pop("purpose") == "check"
    optional = expected.pop("optional-capabilities")
    expected.pop("declined", None)
    possible = {*optional, *(c["capability"] for c in expected.pop("combinations", [])
                             if "reason" not in c)}
    parameters = expected["profile"].pop("parameters")
    for hello in said:
        asked = hello.pop("optional-capabilities")
        assert set(asked) <= possible
        assert hello["profile"].pop("parameters", []) == [
            one for one in parameters if one["capability"] in {*asked, *required}]
        hello["versions"] = [number for number in hello["versions"] if number & 0x0f0f != 0x0a0a]
        assert hello == expected


# Whether the verdicts are alike


class Pair(NamedTuple):
    """A source and a destination that differ in something."""

    source: tuple[str, ...] = ()
    destination: tuple[str, ...] = ()
    required: tuple[str, ...] = ()
    codes: frozenset[str] = frozenset()


def pair(source: str = "", destination: str = "", required: str = "", codes: str = "") -> Pair:
    return Pair(tuple(source.split()), tuple(destination.split()), tuple(required.split()),
                frozenset(codes.split()))


# Each CPU that could be plugged may have a state: as many, whoever has one more.
ONE_CPU = ["-smp", "1,maxcpus=2"]
BOTH_UUIDS = [" ".join(options) for options in UUIDS]
PAIRS = {
    "alike": pair(),
    "machine": pair("", "-machine q35", "", "machine-type section-missing section-extra section-schema"
                    " device"),
    "version": pair("-machine pc-i440fx-9.0", "-machine pc-i440fx-10.0", "",
                    "machine-type"),
    "memory": pair("-m 16", "-m 32", "", "ram-block-size"),
    "missing": pair("-device i6300esb -device VGA,romfile=", "", "",
                    "section-missing ram-block-missing"),
    "extra": pair("", "-device i6300esb -device VGA,romfile=", "",
                  "section-extra ram-block-extra"),
    "more-cpus": pair("-smp 2", " ".join(ONE_CPU), "", "section-missing"),
    "fewer-cpus": pair(" ".join(ONE_CPU), "-smp 2", "", "section-extra"),
    "uuid": pair(*BOTH_UUIDS, "", "uuid"),
    "uuid-validated": pair(*BOTH_UUIDS, "validate-uuid", "uuid"),
    "blocked": pair("-object memory-backend-ram,id=m,size=1M,share=on "
                    "-device ivshmem-plain,memdev=m", "", "", "unmigratable section-missing "
                    "ram-block-missing"),
    "unmigratable": pair("", "-device qemu-xhci -device usb-wacom-tablet", "",
                         "unmigratable section-extra"),
    "multifd": pair("", "", "multifd"),
    "postcopy": pair("", "", "postcopy-ram"),
    "postcopy-preempt": pair("", "", "postcopy-preempt postcopy-ram"),
    "ignore-shared": pair("", "", "x-ignore-shared"),
    "source-only": pair("", "", "xbzrle auto-converge events pause-before-switchover"),
    "no-multifd-there": pair("", "-global migration.multifd-flush-after-each-section=on"),
    "multifd-required": pair("", "-global migration.multifd-flush-after-each-section=on",
                             "multifd", "stream-format"),
    "stream": pair("-global migration.send-section-footer=off", "", "", "stream-format"),
}
WISHES: dict[str, Optional[list[str]]] = {
    "default": None,
    "none": [],
    "postcopy": ["postcopy-ram", "postcopy-preempt"],
    "multifd": ["multifd"],
    "twice": ["switchover-ack", "multifd", "switchover-ack", "multifd"],
    "return-path": ["return-path", "multifd"],
    "not-negotiable": ["multifd", "xbzrle", "events", "validate-uuid", "auto-converge",
                       "mapped-ram", "x-colo", "release-ram"],
    "all-that-go-together": ["dirty-bitmaps", "multifd", "x-ignore-shared", "switchover-ack"],
}
# A source offers only what goes together; what it leaves out stays out, even if the
# destination declines what excludes it.
CONFLICTS: dict[str, Optional[list[str]]] = {
    "alone": ["postcopy-preempt"],
    "postcopy-first": ["postcopy-ram", "multifd"],
    "multifd-first": ["multifd", "postcopy-ram"],
    "mixed": ["xbzrle", "multifd", "postcopy-ram", "events", "x-ignore-shared"],
}
SAME = ("capabilities", "declined")


async def attempt(source: Machine, port: int, options: Options) -> Json:
    """A handshake for a migration that gets no further: the last byte of COMMIT is lost."""
    async def treat(line: Line) -> None:
        if line.number:
            return await line.carry_both()
        await line.carry_part("source", 1 << 30)
        await line.end_with_either()

    async with Relay(port, treat) as relay:
        await begin(source, inet(relay.port), options)
        info = await verdict(source)
        with contextlib.suppress(NotSeen):
            await source.execute("migrate_cancel")
        await end(source)
    return info


async def require_agreement(two: Pair, wishes: dict[str, Optional[list[str]]]) -> None:
    blocked = "-device ivshmem-plain" in " ".join(two.source)
    async with pc_lab() as lab:
        source = await start_source(lab, options=two.source)
        destination, port = await start_destination(lab, options=two.destination)
        await set_capabilities(source, *two.required)
        await set_channels(source, 3)
        profile = await profile_of(source)
        candidate = await start_candidate(lab, *two.destination)
        for wish in wishes.values():
            for strict in (False, True):
                options: Options = {"warnings-as-errors": strict}
                if wish is not None:
                    options["optional-capabilities"] = wish
                async with unchanged(destination, candidate):
                    foretold = [await judge(one, profile, options)
                                for one in (destination, candidate)]
                said = [await check(source, inet(port), options)]
                if not blocked:
                    said.append(await attempt(source, port, options))
                    await require_listening(destination)
                for one in foretold:
                    assert {issue["code"] for issue in differences(one)} == two.codes
                    assert one["issues"] == said[0]["issues"]
                    for info in said:
                        assert one["compatible"] == (info["status"] == "accepted"), info
                        assert differences(one) == differences(info)
                        for member in SAME:
                            assert one[member] == info[member], (member, options)


@pytest.mark.parametrize("two", PAIRS.values(), ids=PAIRS)
async def test_verdicts_are_alike(two: Pair) -> None:
    await require_agreement(two, WISHES)


@pytest.mark.parametrize("two", ["alike", "memory", "no-multifd-there", "postcopy"])
async def test_verdicts_are_alike_in_conflicts(two: str) -> None:
    await require_agreement(PAIRS[two], CONFLICTS)


async def test_blockers_are_told() -> None:
    """What `migrate` would say at once, in its words."""
    blocked = ("-object", "memory-backend-ram,id=m,size=1M,share=on",
               "-device", "ivshmem-plain,memdev=m")
    async with pc_lab() as lab:
        source = await start_source(lab, options=blocked)
        candidate = await start_candidate(lab)
        await source.execute("migrate-set-parameters", {"mode": "cpr-reboot"})
        found = await judge(candidate, await profile_of(source))
        with pytest.raises(NotSeen) as refusal:
            await begin(source, inet(1))
        blockers = [issue["message"] for issue in found["issues"]
                    if issue["code"] == "unmigratable"]
        assert any("cpr-reboot" in one and one.split(": ", 1)[1] in str(refusal.value)
                   for one in blockers)
        await source.execute("migrate-set-parameters", {"mode": "normal"})
        with pytest.raises(NotSeen) as refusal:
            await begin(source, inet(1))
        assert any(one.split(": ", 1)[1] in str(refusal.value) for one in blockers)


# Later versions, and garbage


def objects(value: Any) -> Iterator[Json]:
    """All objects in it."""
    if isinstance(value, dict):
        yield value
        for one in value.values():
            yield from objects(one)
    elif isinstance(value, list):
        for one in value:
            yield from objects(one)


async def test_what_is_not_known_is_ignored() -> None:
    news: Json = {"later": {"deep": [1, "two", {"three": None}]}}
    async with pc_lab() as lab:
        source = await start_source(lab, options=[*UUIDS[0], *ONE_CPU])
        candidate = await start_candidate(lab, *UUIDS[1], "-smp", "2")
        profile = await profile_of(source)
        good = await judge(candidate, profile)
        assert {issue["code"] for issue in differences(good)} == {"uuid", "section-extra"}
        later = copy.deepcopy(profile)
        for one in list(objects(later)):
            one.update(copy.deepcopy(news))
        later["versions"] = [9, *later["versions"], 10]
        later["features"].append("later")
        assert await judge(candidate, later) == good


@pytest.mark.parametrize("missing", [
    "qemu-version", "arch", "machine", "page-size", "host-page-size", "uuid", "capabilities",
    "required-capabilities", "parameters", "stream", "sections", "ram-blocks"])
async def test_what_is_absent_is_not_compared(missing: str) -> None:
    async with pc_lab() as lab:
        source = await start_source(lab, options=[*UUIDS[0], *ONE_CPU])
        candidate = await start_candidate(lab, *UUIDS[1], "-smp", "2")
        await set_capabilities(source, "dirty-bitmaps")
        await set_channels(source, 3)
        profile = await profile_of(source)
        good = await judge(candidate, profile)
        assert {"dirty-bitmaps", "multifd"} <= set(good["capabilities"])
        del profile["profile"][missing]
        gone = {"uuid": ["uuid"], "sections": ["section-extra", "no-return"],
                "required-capabilities": ["dirty-bitmaps"]}.get(missing, [])
        judged = await judge(candidate, profile)
        assert judged["issues"] == [issue for issue in good["issues"] if issue["code"] not in gone]
        assert judged["capabilities"] == [name for name in good["capabilities"]
                                          if name not in gone]


def deep(levels: int) -> Any:
    value: Any = 1
    for _ in range(levels):
        value = [value]
    return value


BAD_VALUES: list[Any] = [
    None, True, 0, -1, 1 << 31, 1 << 32, (1 << 63) - 1, 1 << 63, (1 << 64) - 1, 1 << 64, 1 << 80,
    -(1 << 63), 1.5, -0.0, 1e300, "", "x", "%s%n", "\u0000", "\U0001f600", "x" * 2000,
    [], {}, [None], [[]], [{}], {"": None}, ["x"] * 300, [{"name": "x"}],
    [{"name": "x", "size": 1, "version": 1}], {"name": {"name": {}}}, deep(15), deep(20),
    deep(900), [1 << 64, -1, 1.5], [parameter("multifd-channels", 1 << 64)],
    [parameter("multifd-channels", -1), parameter("multifd-channels", 2)],
    [parameter("multifd-compression", "none", "x")],
]

SHARE = 3       # one place gets each third of them, another one the next


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """All that can be replaced; of a list, its first and its last item."""
    yield path
    if isinstance(value, dict):
        for name, one in value.items():
            yield from places(one, (*path, name))
    elif isinstance(value, list) and value:
        for index in sorted({0, len(value) - 1}):
            yield from places(value[index], (*path, index))


def replaced(value: Any, path: tuple[Any, ...], new: Any) -> Any:
    if not path:
        return new
    result = copy.copy(value)
    result[path[0]] = replaced(value[path[0]], path[1:], new)
    return result


async def test_garbage() -> None:
    """Everything in the place of everything: an error or a verdict, and nothing else."""
    verdicts = errors = 0
    async with pc_lab() as lab:
        source = await start_source(lab, options=[*UUIDS[0], "-name", "guest"])
        candidate = await start_candidate(lab)
        await set_capabilities(source, "dirty-bitmaps", "multifd")
        await set_channels(source, 3)
        profile = await profile_of(source)
        for parts in ("sections", "ram-blocks"):        # that is enough, and quicker
            del profile["profile"][parts][2:]
        good = await judge(candidate, profile)
        assert good["compatible"] and good["issues"]
        async with unchanged(candidate):
            for number, path in enumerate(places(profile)):
                for new in BAD_VALUES[number % SHARE::SHARE]:
                    try:
                        judged = await judge(candidate, replaced(profile, path, new))
                        assert {"compatible", "issues", *SAME} <= set(judged)
                        verdicts += 1
                    except NotSeen as error:
                        assert "malformed migration profile" in str(error), (path, error)
                        errors += 1
                assert await judge(candidate, profile) == good
        print(f"{verdicts} verdicts, {errors} errors")
        assert verdicts > 50 and errors > 500


# A machine that promises what there is on x86, and what only others do.
PROMISING = ("-device", "virtio-net", "-device", "virtio-serial", "-device", "usb-ehci",
             "-blockdev", "null-co,size=1048576,read-zeroes=on,node-name=a",
             "-blockdev", "null-co,size=1048576,read-zeroes=on,node-name=b",
             "-device", "virtio-blk,drive=a,serial=1", "-device", "ide-hd,drive=b")
ELSEWHERE: Json = {
    "virtio-features": "130000054", "virtio-queues": 1, "vnet-hdr": True, "no-pic": True,
    "cpu-mode": ["power9"], "cpu-registers": "1=0,1,3f=7", "pci-status": "70:01",
    "machine-capabilities": [{"name": "htm", "value": 1}],
    "machine-defaults": [{"name": "vsx", "value": 1}]}
# Of hexadecimal, and of runs of it: digits, order, ends, lengths.
ODD_TEXTS = [
    "0:f", "0:", ":00", "0x0:00", "G:00", "0:0G", "0:00,", ",0:00", "4:00,0:00", "0:0000,1:00",
    "1000:00", "fff:0000", "ffffffffffffffffffff:00", "0:" + "ff" * 4096, "0:" + "00" * 4097,
    "0x1", "01", "F", "f" * 4000, "1,0", "1=,2", "1=0=0", "1,ffffffffffffffff,1", "-1", " 1",
    ",".join(["1"] * 4097)]
MANY = 10000


async def test_garbage_of_promises() -> None:
    """The same for all that a guest may have been promised; and bounds are kept."""
    verdicts = errors = 0
    async with pc_lab() as lab:
        source = await start_source(lab, options=PROMISING)
        candidate = await start_candidate(lab, *PROMISING)
        profile = await profile_of(source)
        sections: list[Json] = []
        known: set[str] = set()
        for one in profile["profile"]["sections"]:
            new = {name: value for name, value in one.get("promises", {}).items()
                   if name not in known}
            if new:
                known.update(new)
                sections.append({**one, "promises": new})
        sections.append({**sections[0], "promises": ELSEWHERE})
        assert len(known | set(ELSEWHERE)) >= 20
        profile["profile"]["sections"] = sections
        del profile["profile"]["ram-blocks"][1:]
        good = await judge(candidate, profile)

        async def judged_as(path: tuple[Any, ...], new: Any) -> Optional[Json]:
            """None: it is malformed."""
            nonlocal verdicts, errors
            try:
                judged: Json = await judge(candidate, replaced(profile, path, new))
                assert {"compatible", "issues", *SAME} <= set(judged)
                verdicts += 1
                return judged
            except NotSeen as error:
                assert "malformed migration profile" in str(error), (path, error)
                errors += 1
                return None

        many = [f"n{i}" for i in range(MANY)]
        tried: set[type] = set()
        async with unchanged(candidate):
            for index, section in enumerate(sections):
                here: tuple[Any, ...] = ("profile", "sections", index, "promises")
                for name, value in section["promises"].items():
                    for number, path in enumerate(places(value, (*here, name))):
                        for new in BAD_VALUES[number % SHARE::SHARE]:
                            await judged_as(path, new)
                    if isinstance(value, str):
                        for text in ODD_TEXTS:
                            await judged_as((*here, name), text)
                        assert not await judged_as((*here, name), "x" * ((32 << 10) + 1))
                    if isinstance(value, list):
                        def named(*names: str, like: Any = value[0]) -> Any:
                            return [{**like, "name": one} if isinstance(like, dict) else one
                                    for one in names]

                        assert not await judged_as((*here, name), named("n" * 256))
                        assert await judged_as((*here, name), named("n" * 255))
                        kind = type(value[0]["value"] if isinstance(value[0], dict) else None)
                        if kind not in tried:
                            tried.add(kind)
                            for count in (MANY, 4097):
                                assert not await judged_as((*here, name), named(*many[:count]))
                            assert await judged_as((*here, name), named(*many[:4096]))
                more = {f"later-{i}": i for i in range(65)}
                assert not await judged_as(here, more)
                assert await judged_as(here, dict(list(more.items())[:64]))
                # Names that are almost ours are nobody's
                assert await judged_as(here, {f"{name}s": value for name, value
                                              in section["promises"].items()})
            assert await judge(candidate, profile) == good
        print(f"{verdicts} verdicts, {errors} errors")
        assert verdicts > 50 and errors > 500


WRONG: dict[str, Any] = {
    "null": None, "string": "profile", "number": 1, "list": [], "empty": {},
    "inside-only": {"machine": "pc"},
}


@pytest.mark.parametrize("profile", WRONG.values(), ids=WRONG)
async def test_no_profile_at_all(profile: Any) -> None:
    async with pc_lab() as lab:
        candidate = await start_candidate(lab)
        with pytest.raises(NotSeen, match="malformed migration profile"):
            await judge(candidate, profile)


async def test_too_long() -> None:
    """As on the wire: half a MiB, and 256 issues; the rest is counted."""
    async with pc_lab() as lab:
        source = await start_source(lab)
        candidate = await start_candidate(lab)
        profile = await profile_of(source)
        sections = [{"name": f"section {number}", "version": 1} for number in range(5000)]
        judged = await judge(candidate, replaced(profile, ("profile", "sections"), sections))
        assert not judged["compatible"]
        assert len(judged["issues"]) == 256
        assert judged["issues-omitted"] >= 5000 - 256
        with pytest.raises(NotSeen, match="more than 524288 bytes"):
            await judge(candidate, {**profile, "later": "x" * (1 << 19)})


# When


async def require_error(machine: Machine, profile: Json, words: str) -> None:
    async with unchanged(machine):
        with pytest.raises(NotSeen, match=words):
            await judge(machine, profile)


async def test_only_while_waiting() -> None:
    async with pc_lab() as lab:
        source = await start_source(lab)
        prelaunch = await start_source(lab, "prelaunch", options=["-S"])
        destination, port = await start_destination(lab)
        profile = await profile_of(source)
        good = await judge(destination, profile)
        for machine in (source, prelaunch):
            await require_error(machine, profile, "-incoming")

        await source.execute("migrate-set-parameters", {"max-bandwidth": SLOW})
        await begin(source, inet(port))
        await wait_status(source, "active")
        await wait_status(destination, "active")    # a moment later
        await require_error(destination, profile, "migration process in progress")
        moving = await profile_of(source)
        assert moving["profile"]["sections"] == profile["profile"]["sections"]
        await source.execute("migrate-set-parameters", {"max-bandwidth": 0})
        await require_success(source, destination)
        await require_error(destination, profile, "-incoming")
        await wait_cleaned_up(source)
        await require_error(source, profile, "-incoming")
        assert good["compatible"]

        # Where it has been, and where it is
        with contextlib.suppress(NotSeen):
            await profile_of(source)
        assert not await source.is_running()
        there = await profile_of(destination)
        assert there["profile"]["sections"] == profile["profile"]["sections"]
        assert there["profile"]["ram-blocks"] == profile["profile"]["ram-blocks"]


async def test_while_another_one_holds_the_session() -> None:
    """It would be told `busy`."""
    async with pc_lab() as lab:
        source = await start_source(lab)
        destination, port = await start_destination(lab)
        profile = await profile_of(source)
        peer = await Peer.connect(port)
        await peer.hold_session()
        await require_error(destination, profile, "in progress")
        peer.close()
        await require_listening(destination)
        assert (await judge(destination, profile))["compatible"]


async def test_after_a_refusal() -> None:
    async with pc_lab() as lab:
        source = await start_source(lab, options=["-smp", "2"])
        destination, port = await start_destination(lab, options=ONE_CPU)
        await begin(source, inet(port))
        await require_refused(source)
        judged = await judge(destination, await profile_of(source))
        assert {issue["code"] for issue in differences(judged)} == {"section-missing"}


async def test_of_one_that_waits() -> None:
    """A candidate has no guest, and could not say what it would send."""
    async with pc_lab() as lab:
        candidate = await start_candidate(lab)
        async with unchanged(candidate):
            with pytest.raises(NotSeen, match="no guest here"):
                await profile_of(candidate)


async def test_machine_without_anything() -> None:
    async with small_lab() as lab:
        source = await start_source(lab)
        candidate = await start_candidate(lab)
        assert (await judge(candidate, await profile_of(source)))["compatible"]


async def test_what_was_negotiated_is_not_told() -> None:
    """It is for one migration; the next one begins with what the user has set."""
    async with pc_lab() as lab:
        source = await start_source(lab)
        _, port = await start_destination(lab)
        await set_channels(source, 3)
        before = await source.execute("query-migrate-profile")
        await source.execute("migrate-set-parameters", {"max-bandwidth": SLOW})
        await begin(source, inet(port))
        await wait_status(source, "active")
        assert "multifd" in (await source.handshake())["capabilities"]
        now = await source.execute("query-migrate-profile")
        assert without_grease(now) == without_grease(before)
        assert "multifd" in now["optional-capabilities"]


# How often, and how long


async def test_nothing_grows() -> None:
    options: Options = {"optional-capabilities": ["postcopy-ram", "postcopy-preempt", "xbzrle"]}
    async with pc_lab() as lab:
        source = await start_source(lab)
        candidate = await start_candidate(lab, "-overcommit", "mem-lock=on")

        async def repeat(count: int) -> list[Any]:
            for number in range(count):
                profile = await profile_of(source)
                judged = await judge(candidate, profile, None if number % 8 else options)
                assert judged["compatible"]
            return [(fds(machine), bytes_of(machine, "RssAnon"), locked_memory(machine))
                    for machine in (source, candidate)]

        async with unchanged(source, candidate):
            before = await repeat(50)
            after = await repeat(200)
        for (fds_before, memory_before, locked), (fds_after, memory_after, locked_after) in zip(
                before, after):
            assert (fds_after, locked_after) == (fds_before, locked)
            assert memory_after - memory_before < MIB


async def quickest(machine: Machine, work: Callable[[], Awaitable[Any]], times: int = 7) -> float:
    """Of its main loop, which others wait for. The monitor's own thread reads, and parses."""
    best = float("inf")
    for _ in range(times):
        start = main_thread_time(machine)
        await work()
        best = min(best, main_thread_time(machine) - start)
    return best


FIFTY = [word for number in range(50) for word in (
    "-device", f"virtio-net-pci,romfile=,multifunction=on,addr={2 + number // 8:x}."
               f"{number % 8},id=card{number}")]


async def test_fifty_devices() -> None:
    async with pc_lab("q35") as lab:
        source = await start_source(lab, options=FIFTY)
        candidate = await start_candidate(lab, *FIFTY)
        profile = await source.execute("query-migrate-profile")
        assert sum("virtio-net" in one["name"] for one in profile["profile"]["sections"]) == 50
        idle = await quickest(source, lambda: source.execute("query-status"))
        taken = await quickest(source, lambda: source.execute("query-migrate-profile"))
        judged = await quickest(candidate, lambda: judge(candidate, profile))
        print(f"query-status {idle * 1000:.1f} ms, query-migrate-profile {taken * 1000:.1f} ms, "
              f"check-migrate-profile {judged * 1000:.1f} ms")
        assert 0 < taken < FAST and 0 < judged < FAST


async def test_guest_is_not_disturbed() -> None:
    """Not paused, and no event."""
    async with pc_lab() as lab:
        source = await start_source(lab)
        await set_capabilities(source, "events")
        with source.events() as listener:
            for _ in range(20):
                await profile_of(source)
            assert await source.is_running()
            await asyncio.sleep(0)
            assert not listener.clear()
