# SPDX-License-Identifier: GPL-2.0-or-later
"""QEMU as it is, without the series: build/BASE-stock, or BASE-stock below
QMHS_STOCK_BUILDS; scripts/build-stock makes it."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from conftest import TOP

STOCK_BUILDS = os.environ.get("QMHS_STOCK_BUILDS")
VERSION_LIMIT = 30.0


def stock_path(base: str, name: str) -> Path:
    """Where that binary is, if it has been built."""
    return Path(STOCK_BUILDS or TOP / "build") / f"{base}-stock" / name


def version(binary: Path) -> str:
    done = subprocess.run([binary, "--version"], stdin=subprocess.DEVNULL, check=True,
                          capture_output=True, text=True, timeout=VERSION_LIMIT)
    return done.stdout.splitlines()[0]
