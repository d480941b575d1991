# SPDX-License-Identifier: GPL-2.0-or-later
"""Which QEMU migrates to which other one, how, and what is said where it cannot be.

A guest goes from cell to cell: the destination of one migration is the source of the
next one, so that it comes back to where it has been, over and over.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Coroutine, Iterator
from typing import Any, Optional

import binaries
import pytest
from binaries import STOCK, Qemu, need
from conftest import BASES
from journey import (KINDS, LEGACY_KINDS, PRECOPY, Journey, Kind, RealGuest, Still,
                     address_of, prepare, restore)
from machine import LOOPBACK, Json, Lab, Machine, NotSeen, until
from outcomes import Cell, Report, Table
from processes import (NO_MULTIFD, PATIENCE, UNDER, begin, begin_check, channels, differences, end,
                       inet, require_listening, set_capabilities, settings, verdict)

LIMIT = 400.0
OLDER, NEWER = "10.0", "10.2"

# In an order in which the guest is where the next migration begins.
_stops = [stop for i, base in enumerate(BASES)
          for stop in (base, *(two for other in BASES[i + 1:] for two in (base, other)))]
PAIRS = list(zip(_stops, _stops[1:] + _stops[:1]))
STOCK_PAIRS = [pair for base, after in zip(BASES, BASES[1:] + BASES[:1])
               for pair in ((base, STOCK), (STOCK, after))]
MACHINE = "pc-q35-10.0"
OTHER_MACHINES = ("pc-q35-9.2", "pc-i440fx-10.0", "pc-q35-7.2")

report = Report()
guests = report.table(f"A running guest that checks its memory, {MACHINE}")
still = {machine: report.table(f"Devices, {machine}") for machine in OTHER_MACHINES}
stock = report.table("With the distribution's QEMU: over main as ever; where one side only "
                     "has the handshake")
newest = report.table("Devices, the newest pc-q35-* that both know")
every = report.table("A profile of each machine type that both know, and a destination of it")
strangers = report.table("What the other one does not have")

each_pair = pytest.mark.parametrize(("source", "destination"), PAIRS)
each_stock_pair = pytest.mark.parametrize(("source", "destination"), STOCK_PAIRS)
both_ways = pytest.mark.parametrize(("source", "destination"), [(OLDER, NEWER), (NEWER, OLDER)])


@pytest.fixture(scope="module", autouse=True)
def _show(request: pytest.FixtureRequest) -> None:
    """At the end of it all."""
    request.config.pluginmanager.register(report)


class Road:
    """One guest at a time, which outlives the tests that let it move."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._name: Any = None
        self._journey: Optional[Journey] = None

    def run(self, work: Coroutine[Any, Any, None]) -> None:
        self._loop.run_until_complete(asyncio.wait_for(work, LIMIT))

    async def guest(self, kind: type[Journey], machine: str, where: Qemu) -> Journey:
        if self._name != (kind, machine) or not self._journey:
            await self._leave()
            self._name, self._journey = (kind, machine), kind(machine)
        await self._journey.be_at(where)
        return self._journey

    async def _leave(self) -> None:
        if self._journey:
            await self._journey.close()

    def close(self) -> None:
        self._loop.run_until_complete(self._leave())
        self._loop.close()


@pytest.fixture(scope="module")
def road() -> Iterator[Road]:
    one = Road()
    yield one
    one.close()


# Both have the handshake


@each_pair
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_running_guest(road: Road, kind: Kind, source: str, destination: str) -> None:
    async def cross(cell: Cell) -> None:
        guest = await road.guest(RealGuest, MACHINE, need(source))
        await guest.go(need(destination), kind)
        cell.ok()

    with guests.cell(source, destination, kind.name) as cell:
        road.run(cross(cell))


BOTH = Kind("both required", required=("postcopy-ram", "multifd"))
POSTCOPY_WISH = Kind("postcopy, multifd optional", required=("postcopy-ram",),
                     options={"optional-capabilities": ["multifd"]})
MULTIFD_WISH = Kind("multifd, postcopy optional", required=("multifd",),
                    options={"optional-capabilities": ["postcopy-ram"]})
EXCLUSIVE = "Postcopy is not yet compatible with multifd"


@each_pair
def test_multifd_and_postcopy_required(road: Road, source: str, destination: str) -> None:
    """Only the newer one can do both at once."""
    async def cross(cell: Cell) -> None:
        guest = await road.guest(RealGuest, MACHINE, need(source))
        there = need(destination)
        if source == OLDER:
            with pytest.raises(NotSeen, match=EXCLUSIVE) as reason:
                await set_capabilities(guest.home, *BOTH.required)
            cell.impossible(str(reason.value).rsplit(": ", 1)[1])
        elif destination != OLDER:
            await guest.go(there, BOTH)
            cell.ok()
        else:
            info = await guest.refused(there, BOTH)
            issue, = info["handshake"]["issues"]
            assert (issue["code"], issue["severity"]) == ("capability-conflict", "error")
            assert issue["subject"] == "multifd"
            assert EXCLUSIVE in issue["message"] and EXCLUSIVE in info["error-desc"]
            cell.refused(issue["code"], issue["message"])

    with guests.cell(source, destination, "postcopy + multifd, required") as cell:
        road.run(cross(cell))


@each_pair
@pytest.mark.parametrize(("kind", "wish"), [(POSTCOPY_WISH, "multifd"),
                                            (MULTIFD_WISH, "postcopy-ram")],
                         ids=["multifd", "postcopy"])
def test_one_of_them_optional(road: Road, kind: Kind, wish: str, source: str,
                              destination: str) -> None:
    async def cross(cell: Cell) -> None:
        guest = await road.guest(RealGuest, MACHINE, need(source))
        both = OLDER not in (source, destination)
        info = await guest.go(need(destination), kind._replace(agreed=(wish,)) if both
                              else kind._replace(declined=(wish,)))
        if both:
            return cell.ok()
        declined, = info["handshake"]["declined"]
        assert EXCLUSIVE in declined["reason"]
        return cell.declined(wish, declined["reason"])

    with guests.cell(source, destination, kind.name) as cell:
        road.run(cross(cell))


@each_pair
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
@pytest.mark.parametrize("machine", OTHER_MACHINES)
def test_machine_type(road: Road, machine: str, kind: Kind, source: str,
                      destination: str) -> None:
    async def cross(cell: Cell) -> None:
        guest = await road.guest(Still, machine, need(source))
        await guest.go(need(destination), kind)
        cell.ok()

    with still[machine].cell(source, destination, kind.name) as cell:
        road.run(cross(cell))


def common_machine(one: Qemu, other: Qemu) -> str:
    return binaries.newest_q35(one.machines & other.machines)


def go_on_newest(road: Road, table: Table, what: type[Journey], kind: Kind, source: str,
                 destination: str) -> None:
    async def cross(cell: Cell) -> None:
        here, there = need(source), need(destination)
        guest = await road.guest(what, common_machine(here, there), here)
        await guest.go(there, kind)
        cell.ok()

    with table.cell(source, destination, kind.name) as cell:
        road.run(cross(cell))


@each_pair
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_newest_machine_type(road: Road, kind: Kind, source: str, destination: str) -> None:
    go_on_newest(road, newest, Still, kind, source, destination)


# One of them is as the distribution has it


@each_stock_pair
@pytest.mark.parametrize("kind", LEGACY_KINDS, ids=lambda kind: kind.name)
def test_stock(road: Road, kind: Kind, source: str, destination: str) -> None:
    go_on_newest(road, stock, RealGuest, kind, source, destination)


async def wait_exit(machine: Machine) -> int:
    async def status() -> Optional[tuple[int]]:
        return None if machine.exit_status is None else (machine.exit_status,)

    return (await until(f"{machine.name} to exit", PATIENCE, status))[0]


@pytest.mark.parametrize("source", BASES)
def test_stock_destination(road: Road, source: str) -> None:
    """It takes a handshake for a broken stream, and exits; the source says what it is."""
    async def cross(cell: Cell) -> None:
        here, there = need(source), need(STOCK)
        guest = await road.guest(RealGuest, common_machine(here, there), here)
        destination = await guest.destination(there, LEGACY_KINDS[0])
        await begin(guest.home, await address_of(destination))
        info = await end(guest.home)
        assert info["status"] == "failed"
        assert info["handshake"]["status"] == "failed"
        assert "without an answer to the migration handshake" in info["error-desc"]
        assert await wait_exit(destination) != 0
        await guest.require_well()
        cell.refused("no handshake there", info["error-desc"])

    with stock.cell(source, STOCK, "handshake") as cell:
        road.run(cross(cell))


@pytest.mark.parametrize("destination", BASES)
@pytest.mark.parametrize("kind", LEGACY_KINDS, ids=lambda kind: kind.name)
def test_stock_source(road: Road, kind: Kind, destination: str) -> None:
    """It cannot know what that is; the destination does, lives, and goes on listening."""
    async def cross(cell: Cell) -> None:
        here, there = need(STOCK), need(destination)
        machine = common_machine(here, there)
        guest = await road.guest(RealGuest, machine, here)
        listening = await guest.destination(there, PRECOPY, "-trace",
                                            "migration_handshake_destination_end")
        await prepare(guest.home, kind)
        port = (await address_of(listening))["port"]
        await guest.home.execute("migrate", {"uri": f"tcp:{LOOPBACK}:{port}"})
        info = await end(guest.home)
        assert info["status"] == "failed", info
        await guest.require_well()
        await require_listening(listening)
        assert "a migration stream without handshake" in listening.errors
        await listening.stop()
        await restore(guest.home, kind)
        cell.refused("no handshake here", f"the source says: {info['error-desc']}; the "
                     "destination traces: a migration stream without handshake")

    with stock.cell(STOCK, destination, f"{kind.name}, to a handshake") as cell:
        road.run(cross(cell))


# What one base has, and the other one lacks


def lab_of(qemu: Qemu, machine: str) -> Lab:
    return Lab([str(qemu.path), "-nodefaults", "-display", "none", "-machine", machine,
                *Still.devices], "qtest")


async def judge(candidate: Machine, profile: Any) -> Json:
    return await candidate.execute("check-migrate-profile", {"profile": profile})


async def candidate_of(lab: Lab) -> Machine:
    return await lab.start("candidate", "-S", "-incoming", "defer", under=UNDER)


NEW_PARAMETERS = {"cpr-exec-command"}


async def test_new_names() -> None:
    """All that is to be thought of; each has a test here, or a reason not to have one."""
    older, newer = need(OLDER), need(NEWER)
    assert newer.capabilities == older.capabilities
    assert newer.parameters - older.parameters == NEW_PARAMETERS
    assert older.parameters <= newer.parameters


# What the stream of one of them may have besides, and says so.
NEW_PROPERTIES = {"switchover-ack-legacy"}


@each_pair
@pytest.mark.parametrize("family", ["pc-q35", "pc-i440fx"])
async def test_profiles(family: str, source: str, destination: str) -> None:
    """On no machine type that both know is anything in the way of a migration."""
    with every.cell(source, destination, f"{family}-*") as cell:
        here, there = need(source), need(destination)
        machines = sorted(name for name in here.machines & there.machines
                          if name.startswith(f"{family}-"))
        assert MACHINE in machines or family != "pc-q35"
        found = {}
        for name in machines:
            async with lab_of(here, name) as one, lab_of(there, name) as other:
                first, second, candidate = await asyncio.gather(
                    one.start("first", "-S", under=UNDER),
                    other.start("second", "-S", under=UNDER), candidate_of(other))
                profile, own = [await machine.execute("query-migrate-profile")
                                for machine in (first, second)]
                judged = await judge(candidate, profile)
                if not judged["compatible"] or differences(judged):
                    found[name] = judged["issues"]
                # A property that one of them lacks would not be compared.
                mine, other_one = (said["profile"]["stream"].items() for said in (profile, own))
                assert {name for name, _ in mine ^ other_one} <= NEW_PROPERTIES
        assert not found
        cell.ok()


WHATEVER = "max"                # each version of QEMU has its own
CPUS = (WHATEVER, "qemu64", "Skylake-Client", "EPYC-Rome", "SapphireRapids")


def lab_with_cpu(qemu: Qemu, machine: str, model: str) -> Lab:
    return Lab([str(qemu.path), "-nodefaults", "-display", "none", "-machine", machine, "-m", "16",
                "-cpu", model], "tcg")


@each_pair
@pytest.mark.parametrize("machine", [MACHINE, *OTHER_MACHINES[:1]])
async def test_cpu_models(machine: str, source: str, destination: str) -> None:
    """The same model is the same for a guest, be it of one version or of the other."""
    for model in CPUS:
        async with lab_with_cpu(need(source), machine, model) as one, \
                lab_with_cpu(need(destination), machine, model) as other:
            guest = await one.start("source", under=UNDER)
            candidate = await candidate_of(other)
            judged = await judge(candidate, await guest.execute("query-migrate-profile"))
            assert judged["compatible"], (model, judged["issues"])
            said = {(issue["code"], issue["severity"]) for issue in differences(judged)}
            assert said <= ({("cpu", "warning")} if model == WHATEVER else set()), judged["issues"]
            await candidate.execute("migrate-incoming", channels("handshake", inet(0)))
            await begin(guest, await address_of(candidate))
            assert (await end(guest))["status"] == "completed"


def only_known_to(one: Qemu, other: Qemu) -> str:
    return binaries.newest_q35(one.machines - other.machines)


async def cannot_start(qemu: Qemu, machine: str) -> None:
    async with lab_of(qemu, machine) as lab:
        with pytest.raises(NotSeen, match="does not start"):
            await candidate_of(lab)
        assert "unsupported machine type" in lab.machines[-1].errors


@both_ways
async def test_unknown_machine_type(source: str, destination: str) -> None:
    """A destination of another type is all that can be had, and it says so."""
    with strangers.cell(source, destination, "machine type") as cell:
        here, there = need(source), need(destination)
        machine = only_known_to(here, there)
        await cannot_start(there, machine)
        async with lab_of(here, machine) as one, lab_of(there, MACHINE) as other:
            source_machine = await one.start("source", under=UNDER)
            candidate = await candidate_of(other)
            await candidate.execute("migrate-incoming", channels("handshake", inet(0)))
            judged = await judge(candidate, await source_machine.execute("query-migrate-profile"))
            await begin(source_machine, await address_of(candidate))
            info = await end(source_machine)
            assert info["status"] == "failed"
            assert await source_machine.is_running()
            await require_listening(candidate)
            for said in (judged, info["handshake"]):
                issue = said["issues"][0]
                assert (issue["code"], issue["severity"], issue["source"],
                        issue["destination"]) == ("machine-type", "error", machine, MACHINE)
            assert not judged["compatible"]
            assert machine in info["error-desc"] and MACHINE in info["error-desc"]
            cell.refused(issue["code"], issue["message"])


@pytest.mark.parametrize("purpose", ["migration", "check"])
async def test_mode_that_only_one_has(purpose: str) -> None:
    """Of a user's who has set it for another migration; nobody is asked."""
    with strangers.cell(NEWER, OLDER, f"mode cpr-exec, {purpose}") as cell:
        here, there = need(NEWER), need(OLDER)
        async with lab_of(here, MACHINE) as one, lab_of(there, MACHINE) as other:
            source = await one.start("source", under=UNDER)
            destination = await other.start("destination", "-incoming", "defer", under=UNDER)
            await destination.execute("migrate-incoming", channels("handshake", inet(0)))
            await source.execute("migrate-set-parameters",
                                 {"mode": "cpr-exec", "cpr-exec-command": ["false"]})
            with pytest.raises(NotSeen, match="mode") as reason:
                await begin(source, await address_of(destination),
                            {"check-only": purpose == "check"})
            assert await source.is_running()
            await require_listening(destination)
            assert "handshake" not in await destination.migration()
            cell.refused("at once", str(reason.value).split(": ", 2)[2])


async def test_parameter_that_only_one_has() -> None:
    """A command line for the source's host stays there."""
    with strangers.cell(NEWER, OLDER, "cpr-exec-command") as cell:
        here, there = need(NEWER), need(OLDER)
        async with lab_of(here, MACHINE) as one, lab_of(there, MACHINE) as other:
            source = await one.start("source", under=UNDER)
            destination = await other.start("destination", "-incoming", "defer", under=UNDER)
            await destination.execute("migrate-incoming", channels("handshake", inet(0)))
            await source.execute("migrate-set-parameters", {"cpr-exec-command": ["secret"]})
            before = await settings(destination)
            assert "secret" not in json.dumps(await source.execute("query-migrate-profile"))
            await begin(source, await address_of(destination))
            assert (await end(source))["status"] == "completed"
            assert await settings(destination) == before
            cell.ok()


async def profile_with(source: Machine, *required: str) -> Any:
    await set_capabilities(source, *required)
    try:
        return await source.execute("query-migrate-profile")
    finally:
        await set_capabilities(source, *required, state=False)


async def test_profile_that_only_one_can_honour() -> None:
    """Judged as the wire judges it."""
    with strangers.cell(NEWER, OLDER, "profile, postcopy + multifd") as cell:
        here, there = need(NEWER), need(OLDER)
        async with lab_of(here, MACHINE) as one, lab_of(there, MACHINE) as other:
            source = await one.start("source", under=UNDER)
            candidate = await candidate_of(other)
            await candidate.execute("migrate-incoming", channels("handshake", inet(0)))
            judged = await judge(candidate, await profile_with(source, *BOTH.required))
            await set_capabilities(source, *BOTH.required)
            await begin_check(source, await address_of(candidate), NO_MULTIFD)
            said = await verdict(source)
            assert said["status"] == "rejected" and not judged["compatible"]
            assert judged["issues"] == said["issues"]
            issue, = said["issues"]
            assert issue["code"] == "capability-conflict"
            assert EXCLUSIVE in issue["message"]
            cell.refused(issue["code"], issue["message"])
