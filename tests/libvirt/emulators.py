# SPDX-License-Identifier: GPL-2.0-or-later
"""QEMU with the handshake, and stock QEMU: build/BASE-stock, or BASE-stock below
QMHS_STOCK_BUILDS; scripts/build-stock makes it."""

from __future__ import annotations

import functools
import os
import subprocess
from pathlib import Path

import pytest
from conftest import QEMU, TOP

STOCK, PATCHED = "stock", "patched"
STOCK_BUILDS = os.environ.get("QMHS_STOCK_BUILDS")


def version(binary: Path) -> str:
    done = subprocess.run([binary, "--version"], stdin=subprocess.DEVNULL, check=True,
                          capture_output=True, text=True, timeout=30)
    return done.stdout.splitlines()[0]


@functools.lru_cache(maxsize=None)
def emulator(kind: str) -> Path:
    """Of the same version, or a comparison would mean nothing."""
    if kind == PATCHED:
        return QEMU.resolve()
    name = f"{QEMU.resolve().parent.name}-stock/{QEMU.name}"
    found = Path(STOCK_BUILDS or TOP / "build", name)
    if not found.exists():
        pytest.skip(f"there is no stock QEMU, {name}; scripts/build-stock makes it")
    assert version(found) == version(QEMU)
    return found.resolve()
