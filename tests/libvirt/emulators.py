# SPDX-License-Identifier: GPL-2.0-or-later
"""QEMU with the handshake, and without it."""

from __future__ import annotations

import functools
from pathlib import Path

import pytest
from conftest import QEMU
from stock import stock_path, version

STOCK, PATCHED = "stock", "patched"


@functools.lru_cache(maxsize=None)
def emulator(kind: str) -> Path:
    """Of the same version, or a comparison would mean nothing."""
    if kind == PATCHED:
        return QEMU.resolve()
    found = stock_path(QEMU.resolve().parent.name, QEMU.name)
    if not found.exists():
        pytest.skip(f"there is no stock QEMU, {found.parent.name}; scripts/build-stock makes it")
    assert version(found) == version(QEMU)
    return found.resolve()
