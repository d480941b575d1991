# SPDX-License-Identifier: GPL-2.0-or-later
"""libvirt with the series of contrib/libvirt."""

from __future__ import annotations

import os
from pathlib import Path

from conftest import TOP
from daemons import Installation, fetched, run

BUILD_LIMIT = 580.0


def series() -> Installation:
    """Built, if it is not yet; skips the test if there is no source. QMHS_LIBVIRT is one that was
    changed, see scripts/mutate-libvirt."""
    if "QMHS_LIBVIRT" in os.environ:
        return Installation(Path(os.environ["QMHS_LIBVIRT"]))
    fetched("source")
    done = run([TOP / "scripts/build-libvirt"], BUILD_LIMIT)
    assert done.ok, done.stderr
    return Installation(TOP / "build/libvirt")
