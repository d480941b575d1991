# SPDX-License-Identifier: GPL-2.0-or-later
"""What a guest was promised and the destination cannot keep is found before it moves.

Each row of the table is a single difference, with a guest that uses what it has: what the
handshake says of it, and, since a refusal has to be right, what comes of it over main.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Coroutine, Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import QEMU
from differences import BASES, ROWS, Row
from witness import Host, build_guest, can_tap
from findings import KINDS, YES, Report, told, words
from stock import stock_path, version

LIMIT = 600.0
BASE = "10.0"
STOCK = stock_path(BASE, "qemu-system-x86_64")

report = Report()


def mark(row: Row) -> Any:
    return pytest.param(row, id=row.name, marks=[pytest.mark.gate] if row.gate else [])


each_row = pytest.mark.parametrize("row", [mark(row) for row in ROWS])


@pytest.fixture(scope="module", autouse=True)
def _show(request: pytest.FixtureRequest) -> None:
    """At the end of it all."""
    request.config.pluginmanager.register(report)


class Place:
    """One guest at a time, which outlives the tests that it is used by."""

    def __init__(self, qemu: Path):
        self._loop = asyncio.new_event_loop()
        self.host = Host(qemu, build_guest())

    def run(self, work: Coroutine[Any, Any, Any]) -> Any:
        return self._loop.run_until_complete(asyncio.wait_for(work, LIMIT))

    def close(self) -> None:
        self._loop.run_until_complete(self.host.close())
        self._loop.close()


@pytest.fixture(scope="module")
def ours() -> Iterator[Place]:
    place = Place(QEMU)
    report.versions["handshake"] = version(QEMU)
    yield place
    place.close()


@pytest.fixture(scope="module")
def legacy() -> Iterator[Place]:
    """QEMU as it is, if it has been built; else ours, whose main is the same."""
    qemu = STOCK if STOCK.exists() else QEMU
    place = Place(qemu)
    report.versions["stock"] = version(qemu)
    yield place
    place.close()


@pytest.fixture(scope="session")
def tap_works() -> bool:
    return can_tap()


@pytest.fixture(autouse=True)
def _possible(request: pytest.FixtureRequest) -> None:
    if "row" in request.fixturenames and BASES[request.getfixturevalue("row").base].tap \
            and not request.getfixturevalue("tap_works"):
        pytest.skip("there are no tap devices for this user")


@each_row
def test_verdict(ours: Place, row: Row) -> None:
    """An error is a refusal, of which the guest knows nothing; so of a check."""
    finding = report.finding(row)
    said = ours.run(ours.host.judge(row))
    finding.set_verdict(said["issues"])
    issues, expected = finding.issues, row.expected
    if not expected.severity:
        assert not issues
        return
    assert finding.severity == expected.severity, issues
    assert said["status"] == ("rejected" if expected.severity == "error" else "accepted")
    about = [one for one in issues or [] if one["code"] in expected.codes
             and one["severity"] == expected.severity]
    assert about, issues
    assert any(told(words(one), expected) == YES for one in about), about


@each_row
def test_over_main(legacy: Place, row: Row) -> None:
    """No refusal that would not be right, no silence that would not be."""
    outcome = legacy.run(legacy.host.move(row))
    report.finding(row).set_main(outcome.kind, outcome.text)
    assert KINDS[outcome.kind] in row.main, outcome.text


def test_table() -> None:
    """Each name is one row, and what is to be looked for is a regular expression."""
    assert len({row.name for row in ROWS}) == len(ROWS)
    assert sum(row.gate for row in ROWS) == 13
    for row in ROWS:
        re.compile(row.expected.device), re.compile(row.expected.cause)
        assert (row.source, row.os) != (row.destination, False) or row.name.endswith("the same")
