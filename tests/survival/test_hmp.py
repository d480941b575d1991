# SPDX-License-Identifier: GPL-2.0-or-later
"""What the human monitor prints of a handshake: all that a person wants to know, on either side."""

from __future__ import annotations

from machine import Json, Machine
from processes import (begin, check, inet, migrate, pc_lab, set_capabilities, start_destination,
                       start_source, verdict)
from wire import REJECT, SESSION, FakeDestination, frame, header

WATCHDOG = ("-device", "i6300esb")
TABLET = ("-device", "qemu-xhci", "-device", "usb-tablet")


async def printed(machine: Machine) -> list[str]:
    """The lines about a handshake, as a terminal shows them."""
    answer = await machine.execute("human-monitor-command", {"command-line": "info migrate"})
    lines = str(answer).replace("\r\n", "\n").rstrip("\n").split("\n")
    start = next(number for number, line in enumerate(lines)
                 if line.startswith("Migration handshake"))
    return lines[start:]


def expected(info: Json) -> list[str]:
    """The same as query-migrate tells."""
    role = info["role"] + (", check only" if info["check-only"] else "")
    message = f": {info['message']}" if "message" in info else ""
    peer = info["peer"]
    package = f" ({peer['package']})" if "package" in peer else ""
    lines = [f"Migration handshake ({role}): {info['status']}{message}",
             f"handshake peer: QEMU {peer['qemu-version']}{package}, "
             f"machine {peer['machine']}, {peer['arch']}"]
    if info["capabilities"]:
        lines.append(f"handshake capabilities: {' '.join(info['capabilities'])}")
    lines += [f"handshake declined: {one['capability']}: {one['reason']}"
              for one in info["declined"]]
    for issue in info["issues"]:
        lines.append(f"handshake {issue['severity']}: {issue['code']}: {issue['message']}")
        subject = issue.get("subject", "")
        if "source" in issue or "destination" in issue:
            lines.append(f"  {subject}{': ' if subject else ''}source: {issue.get('source', '-')}, "
                         f"destination: {issue.get('destination', '-')}")
        elif subject:
            lines.append(f"  {subject}")
    return lines


async def require_printed(machine: Machine) -> Json:
    info = await machine.handshake()
    assert await printed(machine) == expected(info)
    return info


async def test_nothing_to_print() -> None:
    async with pc_lab() as lab:
        source = await start_source(lab)
        answer = await source.execute("human-monitor-command", {"command-line": "info migrate"})
        assert "andshake" not in answer


async def test_accepted() -> None:
    """With something declined, a warning, no way back, and channels that a check does not try."""
    options = {"optional-capabilities": ["multifd", "postcopy-preempt", "switchover-ack"]}
    async with pc_lab() as lab:
        source = await start_source(lab)
        destination, port = await start_destination(lab, options=WATCHDOG)
        info = await check(source, inet(port), options)
        assert info["status"] == "accepted" and info["declined"]
        assert [issue["code"] for issue in info["issues"]] == ["section-extra", "no-return",
                                                               "channels-untried"]
        for machine in (source, destination):
            assert (await require_printed(machine))["check-only"]
        await migrate(source, port, options)
        assert not (await require_printed(source))["check-only"]


async def test_rejected() -> None:
    """For several reasons, some of which are only warnings."""
    async with pc_lab() as lab:
        source = await start_source(lab, options=TABLET)
        destination, port = await start_destination(lab, options=[*WATCHDOG, "-m", "32"])
        await set_capabilities(source, "validate-uuid")
        await migrate(source, port)
        for machine in (source, destination):
            info = await require_printed(machine)
            assert info["status"] == "rejected"
            assert {issue["severity"] for issue in info["issues"]} == {"error", "warning"}


async def refuse(fake: FakeDestination, source: Machine, message: Json) -> Json:
    """Returns what query-migrate has of it."""
    await begin(source, inet(fake.port))
    peer = await fake.next()
    await peer.read_hello()
    await peer.send(header(session=SESSION) + frame(REJECT, message))
    info = await verdict(source)
    assert info["status"] == "rejected"
    return info


async def test_parts_of_an_issue() -> None:
    """A peer may leave out any of them."""
    whole = {"code": "weather", "severity": "info", "message": "rain", "subject": "garden",
             "source": "wet", "destination": "dry"}
    issues = [{name: value for name, value in whole.items() if name not in missing}
              for missing in (("source",), ("subject",), ("source", "destination"),
                              ("subject", "source", "destination"))]
    peer = {name: "x" for name in ("qemu-version", "package", "machine", "arch")}
    async with pc_lab() as lab, FakeDestination() as fake:
        source = await start_source(lab)
        await refuse(fake, source, {"version": 1, "peer": peer, "issues": issues})
        assert len((await require_printed(source))["issues"]) == len(issues)


async def test_what_a_peer_says() -> None:
    """Is bounded, and does nothing to a terminal."""
    issue = {"code": "weather", "severity": "dreadful",
             "message": "rain\x1b[2J\r\n\u009b1m\u202e\u2028"}
    async with pc_lab() as lab, FakeDestination() as fake:
        source = await start_source(lab)
        info = await refuse(fake, source, {"version": 1, "issues": [issue] * 300})
        assert info["issues-omitted"] == 44
        lines = await printed(source)
        assert all(line.isprintable() for line in lines), lines
        assert sum("weather" in line and "rain" in line for line in lines) == 257
        assert lines[-1] == "handshake: and 44 more"
