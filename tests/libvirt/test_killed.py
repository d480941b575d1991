# SPDX-License-Identifier: GPL-2.0-or-later
"""Somebody is killed when the destination is about to run the guest. What becomes of it at other
moments, and of other victims, bench/libvirt_owner.py tells, and docs/libvirt.rst has the table: it
depends on the millisecond, so there is nothing to be required of it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from emulators import PATCHED
from lab import Lab, laboratory
from owner import FILTERS, MOMENTS, owners
from series import series


@pytest.fixture(name="lab", scope="module")
def make_lab() -> Iterator[Lab]:
    with laboratory(series(), filters=FILTERS) as lab:
        yield lab


@pytest.mark.parametrize("victim", ["daemon A", "QEMU A"])
def test_source_dies(lab: Lab, victim: str) -> None:
    """The destination has been told to finish, and does."""
    states = owners(lab, MOMENTS["Finish"], victim, PATCHED)
    assert states["B"] == "running" and states["A"] != "running", states


def test_destination_dies(lab: Lab) -> None:
    """Its QEMU, that is: the guest is lost if it ran there, and runs on at the source if not."""
    states = owners(lab, MOMENTS["Finish"], "QEMU B", PATCHED)
    assert states["B"] is None and states["A"] in ("running", None), states
