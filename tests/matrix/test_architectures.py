# SPDX-License-Identifier: GPL-2.0-or-later
"""A guest of one architecture, and a QEMU of another: refused by name, both ways."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
from conftest import QEMU
from machine import Lab
from processes import UNDER, begin, begin_check, end, inet, listen, require_listening, verdict

# The option that makes machines of one kind of it all, as far as there is one.
BARE = ("-machine", "none")
OTHERS = ("aarch64", "s390x", "ppc64")


def lab(qemu: Path, machine: Sequence[str] = BARE) -> Lab:
    return Lab([str(qemu), "-nodefaults", "-display", "none", *machine], "qtest")


def need(architecture: str) -> Path:
    path = QEMU.with_name(f"qemu-system-{architecture}")
    if not path.exists():
        pytest.skip(f"qemu-system-{architecture} is not built")
    return path


@pytest.mark.parametrize("there", [True, False], ids=["there", "back"])
@pytest.mark.parametrize("architecture", OTHERS)
async def test_other_architecture_is_refused_by_name(architecture: str, there: bool) -> None:
    pair = [("x86_64", QEMU), (architecture, need(architecture))]
    (a, source_qemu), (b, destination_qemu) = pair if there else reversed(pair)
    async with lab(source_qemu) as sources, lab(destination_qemu) as destinations:
        source = await sources.start("source", under=UNDER)
        destination = await destinations.start("destination", "-incoming", "defer", under=UNDER)
        address = inet(await listen(destination))
        await begin_check(source, address)
        checked = await verdict(source)
        await begin(source, address)
        info = await end(source)
        assert info["status"] == "failed"
        assert f"a guest of qemu-system-{a} cannot run in qemu-system-{b} (arch)" in info["error-desc"]
        for told in (checked, info["handshake"], await destination.handshake()):
            assert told["status"] == "rejected"
            issue, = (one for one in told["issues"] if one["code"] == "arch")
            assert (issue["severity"], issue["source"], issue["destination"]) == ("error", a, b)
        assert (await source.execute("query-status"))["running"]
        await require_listening(destination)


async def test_related_architecture_is_a_warning() -> None:
    """Some guests can do with the other one."""
    async with lab(QEMU) as sources, lab(need("i386")) as destinations:
        source = await sources.start("source", under=UNDER)
        destination = await destinations.start("destination", "-incoming", "defer", under=UNDER)
        await begin_check(source, inet(await listen(destination)))
        issue, = (one for one in (await verdict(source))["issues"] if one["code"] == "arch")
        assert (issue["severity"], issue["source"], issue["destination"]) == ("warning", "x86_64", "i386")
