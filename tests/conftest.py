# SPDX-License-Identifier: GPL-2.0-or-later
"""Lets tests be coroutines, and finds what they import."""

from __future__ import annotations

import asyncio
import inspect
import os
import subprocess
import sys
from pathlib import Path
from typing import Optional

import pytest

TOP = Path(__file__).resolve().parents[1]
QEMU = Path(os.environ.get("QTEST_QEMU_BINARY", TOP / "build/10.0/qemu-system-x86_64"))
# Those that there are patches for, the oldest first
BASES = sorted(path.name for path in (TOP / "patches").glob("[0-9]*"))
LIMIT = 400.0


def _qmp_library() -> Path:
    """QEMU's own for its monitor; from 11.0 on its configure installs it."""
    done = subprocess.run(["bash", "-c", '. "$0/scripts/lib.sh"; qmp_path "$1"', TOP,
                           QEMU.resolve().parent], stdout=subprocess.PIPE, text=True, check=False)
    return Path(done.stdout.rstrip() or QEMU.resolve().parent / "src/python")


# What tests share, the machines of the demo, and that library.
QMP_LIBRARY = _qmp_library()
sys.path[:0] = [str(TOP / "tests/lib"), str(TOP / "scripts/demo-guest"), str(QMP_LIBRARY)]


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "gate: of a table, what gates a change")


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> Optional[bool]:
    """Run a test that is a coroutine; if it hangs, its machines are cleaned up."""
    if not inspect.iscoroutinefunction(pyfuncitem.obj):
        return None
    names = inspect.signature(pyfuncitem.obj).parameters
    arguments = {name: pyfuncitem.funcargs[name] for name in names}
    asyncio.run(asyncio.wait_for(pyfuncitem.obj(**arguments), LIMIT))
    return True
