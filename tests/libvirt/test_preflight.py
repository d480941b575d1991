# SPDX-License-Identifier: GPL-2.0-or-later
"""The example of docs/libvirt-preflight.rst asks three hosts, and picks the right one."""

from __future__ import annotations

import json
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import TOP
from daemons import LIMIT, Setup, run
from emulators import PATCHED, emulator
from lab import Lab, laboratory
from series import series

PAGE = TOP / "docs/libvirt-preflight.rst"
RNG = "virtio-rng-pci,addr=0x10"
BALLOON = "virtio-balloon-pci,addr=0x11"

# What is to run on a host differs from what was asked for: in B's case so that it cannot, in
# C's case so that people should know.
ARGUMENT = "<qemu:arg value='{}'/>"
FILTERS = {
    "B": f"s/{RNG}/{BALLOON}/",
    "C": f"s#{ARGUMENT.format(RNG)}#&{ARGUMENT.format('-device')}{ARGUMENT.format(BALLOON)}#",
}
HOOK = """#!/bin/sh
if [ "$2" = migrate ]; then sed "{}"; else cat >/dev/null; fi
"""


def set_up(name: str, _: Path) -> Setup:
    return Setup(hook=HOOK.format(FILTERS[name]) if name in FILTERS else "")


@pytest.fixture(name="lab", scope="module")
def make_lab() -> Iterator[Lab]:
    pytest.importorskip("libvirt", reason="there is no libvirt-python")
    with laboratory(series(), setup=set_up, more=("C", "D")) as lab:
        yield lab


def example() -> str:
    """As it stands on the page."""
    lines = PAGE.read_text(encoding="utf-8").splitlines()
    begin = lines.index("    #!/usr/bin/python3")
    return textwrap.dedent("\n".join(lines[begin:]))


def test_three_hosts(lab: Lab) -> None:
    program = lab.path(".py")
    program.write_text(example())
    candidates = [lab.b, *lab.more]
    with lab.guest(emulator(PATCHED), ["-device", RNG]) as guest:
        before = guest.state()
        result = run([*lab.a.installation.environment, sys.executable, program, lab.a.uri,
                      guest.name, *(host.uri for host in candidates), lab.nowhere], LIMIT)
        assert result.ok, result
        text, chosen = result.stdout.rsplit("}", 1)
        found = json.loads(text + "}")
        assert chosen.strip() == candidates[2].uri
        assert [found[host.uri]["overallResult"] for host in candidates] == [
            "Fail", "Warning", "Pass"]
        missing, extra = found[candidates[0].uri]["checks"]
        assert missing["category"] == "section-missing" and missing["result"] == "Fail"
        assert missing["details"] == ["0000:00:10.0/virtio-rng", "version 1", "missing"]
        assert "virtio-rng" in missing["message"]
        assert extra["category"] == "section-extra" and extra["result"] == "Warning"
        assert "error" not in found[candidates[0].uri]
        assert "Warning" in [one["result"] for one in found[candidates[1].uri]["checks"]]
        assert not found[candidates[2].uri]["checks"]
        assert found[lab.nowhere]["overallResult"] == "Fail"
        assert "Failed to connect socket" in found[lab.nowhere]["error"]
        lab.require_well(guest, before)
        for host in candidates:
            assert guest.name not in host.ask("list", "--all", "--name")
