# SPDX-License-Identifier: GPL-2.0-or-later
"""The QEMUs of the matrix: our own of each base, and the distribution's."""

from __future__ import annotations

import asyncio
import functools
import os
import shutil
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple, Optional

import pytest
from conftest import QEMU, TOP
from machine import Lab
from processes import UNDER

STOCK = "stock"
QUERIES = ("query-version", "query-machines", "query-migrate-capabilities",
           "query-migrate-parameters", "query-qmp-schema")


class Qemu(NamedTuple):
    """A binary, and what it says of itself."""

    base: str
    version: str
    path: Path
    machines: frozenset[str]
    capabilities: frozenset[str]
    parameters: frozenset[str]
    handshake: bool

    @property
    def label(self) -> str:
        return f"stock {self.version}" if self.base == STOCK else self.version


async def ask(path: Path, commands: Sequence[str]) -> list[Any]:
    """The answers of one that has no machine."""
    bare = [str(path), "-machine", "none", "-nodefaults", "-display", "none"]
    async with Lab(bare, "tcg") as lab:      # not all have qtest
        one = await lab.start(path.name, under=UNDER)
        return [await one.execute(name) for name in commands]


def describe(base: str, path: Path) -> Qemu:
    # It is asked for in the middle of tests, where a loop runs already.
    with ThreadPoolExecutor(1) as thread:
        version, machines, capabilities, parameters, schema = thread.submit(
            asyncio.run, ask(path, QUERIES)).result()
    return Qemu(
        base, "{major}.{minor}.{micro}".format(**version["qemu"]), path,
        frozenset(one["name"] for one in machines),
        frozenset(one["capability"] for one in capabilities), frozenset(parameters),
        any("handshake" in one.get("values", ()) for one in schema))


def base_of(version: str) -> str:
    """As scripts/lib.sh has it: x.y.50 is on the way to the next release."""
    major, minor, micro = map(int, version.split("."))
    following = (major, minor + 1) if minor < 2 else (major + 1, 0)
    return "{}.{}".format(*(following if micro >= 50 else (major, minor)))


@functools.lru_cache(maxsize=None)
def under_test() -> Qemu:
    found = describe("", QEMU)
    return found._replace(base=base_of(found.version))


@functools.lru_cache(maxsize=None)
def find(base: str) -> Optional[Qemu]:
    """None if it is not there. The one under test stands for its base."""
    if base == STOCK:
        named = os.environ.get("QMHS_STOCK_QEMU") or shutil.which("qemu-system-x86_64")
        return describe(STOCK, Path(named)) if named else None
    if base == under_test().base:
        return under_test()
    path = TOP / "build" / base / "qemu-system-x86_64"
    return describe(base, path) if path.exists() else None


def need(base: str) -> Qemu:
    """Skips the test if that QEMU is not to be had."""
    found = find(base)
    if base == STOCK:
        if not found:
            pytest.skip("there is no qemu-system-x86_64 of the distribution's")
        if found.handshake:
            pytest.skip(f"{found.path} is no stock QEMU: it has the handshake")
    elif not found:
        pytest.skip(f"QEMU {base} is not built")
    assert found
    return found


def label(base: str) -> str:
    found = find(base)
    return found.label if found else base


def age(machine: str) -> tuple[int, ...]:
    """For sorting versioned machine types of one kind."""
    return tuple(int(part) for part in machine.rsplit("-", 1)[1].split("."))


def newest_q35(machines: frozenset[str]) -> str:
    return max((name for name in machines if name.startswith("pc-q35-")), key=age)
