# SPDX-License-Identifier: GPL-2.0-or-later
"""What must never come back into the handshake's own files."""

import re
from pathlib import Path

import pytest

TOP = Path(__file__).resolve().parents[2]
SOURCES = sorted((TOP / "migration").glob("handshake/*.c"))


def test_there_are_sources() -> None:
    assert len(SOURCES) >= 8


@pytest.mark.parametrize("pattern, why", [
    # A nested event loop, say in a drain inside of a QMP command, would run them
    (r"aio_bh_schedule_oneshot\(\s*qemu_get_aio_context", "bottom halves run where QMP commands run"),
    # It is the guest's, may be seeded and recorded, and ends QEMU when it fails
    (r"qemu_guest_getrandom", "the guest's random source is the guest's"),
    (r"\bassert\(false\)|\babort\(\)", "nothing that a peer can do ends QEMU"),
    (r"\berror_fatal\b", "nothing that a peer can do ends QEMU"),
])
def test_is_not_used(pattern: str, why: str) -> None:
    found = [f"{path.name}: {match.group(0)}" for path in SOURCES
             for match in re.finditer(pattern, path.read_text())]
    assert not found, why


def test_qemu_core_calls_the_front_door_alone() -> None:
    """A patch of QEMU's own files includes migration/handshake.h, or nothing of it."""
    included = []
    for path in sorted((TOP / "patches").rglob("*.patch")):
        changed = ""
        for line in path.read_text().splitlines():
            if line.startswith("+++ b/"):
                changed = line.removeprefix("+++ b/")
            elif re.match(r'\+#include "[^"]*handshake/', line) and not (TOP / changed).exists():
                included.append(f"{path.name}: {changed}: {line}")
    assert not included
