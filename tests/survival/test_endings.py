# SPDX-License-Identifier: GPL-2.0-or-later
"""The guest has one owner, however and whenever a migration ends.

A run is QMHS_ENDINGS migrations (200). The table of what came of them goes to
build/endings.rst, or where QMHS_ENDINGS_TABLE says; docs/endings.rst is that of a run of
2,000. QMHS_ENDINGS_SEED has other moments; with QMHS_ENDINGS_CASE all are that case of the
seed.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import subprocess
from pathlib import Path

import pytest
from conftest import QEMU, TOP
from endings import ENDINGS, Case, Outcome, cases, play_all, table

COUNT = int(os.environ.get("QMHS_ENDINGS", "200"))
SEED = int(os.environ.get("QMHS_ENDINGS_SEED", "17"))
CASE = os.environ.get("QMHS_ENDINGS_CASE")
PATH = Path(os.environ.get("QMHS_ENDINGS_TABLE", TOP / "build/endings.rst"))
BESIDE = 4              # most of the time it is one of them that works
LIMIT = 400.0           # seconds for 200 of them; it takes a tenth of that on two free cores


def chosen() -> list[Case]:
    if CASE is None:
        return list(itertools.islice(cases(SEED), COUNT))
    return [next(itertools.islice(cases(SEED), int(CASE), None))] * COUNT


PAGE = """.. SPDX-License-Identifier: GPL-2.0-or-later

====================
How migrations ended
====================

``tests/survival/test_endings.py`` has written this.  It has had QEMU {version}
migrate a guest {count} times over a handshake: over TCP, a UNIX socket and TLS; with
multifd, without it, and in postcopy; to a destination that starts the guest by
itself, and to one with ``-S``, where ``cont`` was said when the *source* had
completed.  At a random moment somebody cancelled, or yanked either side; or the
connection was reset, or either QEMU killed: up to 120 milliseconds after
``migrate``, or up to 5 after the source had stopped its guest.

{result}  Where nobody runs it, the QEMU was killed that
had it; or the source says that it has given it away and has heard no answer
(``failed, postmigrate``), and ``cont`` there went on with it; or it is in postcopy,
and paused.  A cancel that was too late was refused: the guest had been handed over.

{table}"""


def write(outcomes: list[Outcome]) -> str:
    rows = [("End", "Guest runs on", "Source says", "Destination says", "Times"),
            *((*row[:4], str(row[4])) for row in table(outcomes))]
    widths = [max(len(row[column]) for row in rows) for column in range(5)]
    rule = "  ".join("=" * width for width in widths)
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip()
             for row in rows]
    text = "\n".join([rule, lines[0], rule, *lines[1:], rule]) + "\n"
    version = subprocess.run([QEMU, "--version"], capture_output=True, text=True, check=True).stdout
    PATH.parent.mkdir(parents=True, exist_ok=True)
    bad = sum(bool(outcome.faults) for outcome in outcomes)
    result = f"{bad} of these went wrong." if bad else "The guest never ran on both sides."
    PATH.write_text(PAGE.format(result=result, count=f"{len(outcomes):,}", version=version.split()[3],
                                table=text), encoding="utf-8")
    return text


def test_one_owner() -> None:
    """At no moment on both sides; and somewhere, or the source says why not."""
    limit = LIMIT * max(1, COUNT / 200)
    outcomes = asyncio.run(asyncio.wait_for(play_all(chosen(), BESIDE), limit))
    print(write(outcomes))
    assert len(outcomes) == COUNT
    bad = [outcome for outcome in outcomes if outcome.faults]
    for outcome in bad:
        print(f"QMHS_ENDINGS_SEED={SEED} QMHS_ENDINGS_CASE={outcome.case.number}:",
              "; ".join(outcome.faults))
        print("   ", outcome)
    assert not bad, f"{len(bad)} of {COUNT}; the first: {bad[0].case}: {bad[0].faults[0]}"
    if CASE is None and COUNT >= 200:
        assert {outcome.case.ending for outcome in outcomes} == set(ENDINGS)


@pytest.mark.parametrize("seed", [SEED, SEED + 1])
def test_a_number_is_a_case(seed: int) -> None:
    """So that a failure can be run alone."""
    some = list(itertools.islice(cases(seed), 400))
    assert some == list(itertools.islice(cases(seed), 400))
    assert [case.number for case in some] == list(range(400))
    assert some != list(itertools.islice(cases(seed + 1), 400))
