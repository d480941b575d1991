# SPDX-License-Identifier: GPL-2.0-or-later
"""The table: what came of each kind of migration from one QEMU to another."""

from __future__ import annotations

import contextlib
import datetime
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Optional

import binaries
import pytest
from conftest import TOP

PATH = Path(os.environ.get("QMHS_MATRIX", TOP / "build/matrix.rst"))
SKIPPED = "skipped"

PAGE = """.. SPDX-License-Identifier: GPL-2.0-or-later
.. Written by scripts/matrix, from what it has seen; not to be edited.

Which QEMU migrates to which
============================

``tests/matrix`` moves one guest from QEMU to QEMU: the destination of a cell is where
the next one begins, so that it comes back to where it has been, over and over. The
destinations were told an address, and TLS; all else is agreed on. ``ok`` is a guest that
runs on there, all that it has as it has to be, an agreement that is the one expected,
and no difference reported. Where a migration is refused, or goes without what was
wished for, a note has the words.

Seen on {date}, on x86_64. A version x.y.50 is the development of the release after x.y.

{tables}"""


def plain(text: str) -> str:
    """Text that is no markup."""
    return re.sub(r"([\\*`|]|_(?!\w))", r"\\\1", text)


class Cell:
    """What one test is about; it says what it saw before it ends."""

    def __init__(self) -> None:
        self._outcome: Optional[str] = None
        self._note = ""

    def ok(self) -> None:
        self._set("ok")

    def refused(self, why: str, note: str = "") -> None:
        self._set(f"refused ({why})", note)

    def declined(self, what: str, reason: str) -> None:
        self._set(f"declined ({what})", reason)

    def impossible(self, reason: str) -> None:
        self._set("n.a.", reason)

    def _set(self, outcome: str, note: str = "") -> None:
        assert self._outcome is None, "a cell has one outcome"
        self._outcome, self._note = outcome, note

    @property
    def result(self) -> tuple[str, str]:
        assert self._outcome, "the test does not say what it saw"
        return self._outcome, self._note


class Table:
    """Rows and columns in the order in which they came."""

    def __init__(self, title: str):
        self._title = title
        self._cells: dict[tuple[str, str], tuple[str, str]] = {}

    @contextlib.contextmanager
    def cell(self, source: str, destination: str, column: str) -> Iterator[Cell]:
        """Named by their bases; a skipped or a failed test is seen as well."""
        place = (f"{binaries.label(source)} -> {binaries.label(destination)}", column)
        one = Cell()
        self._cells[place] = ("FAILED", "")
        try:
            yield one
            self._cells[place] = one.result
        except pytest.skip.Exception as reason:
            self._cells[place] = (SKIPPED, str(reason))
            raise

    def render(self, notes: list[str]) -> list[str]:
        """`notes` are numbered, and shared by all tables."""
        if not self._cells:
            return []
        rows = list(dict.fromkeys(row for row, _ in self._cells))
        columns = list(dict.fromkeys(column for _, column in self._cells))
        lines = [["source -> destination", *columns]]
        for row in rows:
            lines.append([row, *(self._text(self._cells.get((row, column), ("", "")), notes)
                                 for column in columns)])
        widths = [max(map(len, texts)) for texts in zip(*lines)]
        rule = ["=" * width for width in widths]
        lines = [rule, lines[0], rule, *lines[1:], rule]
        return [self._title, "-" * len(self._title), "", *("  ".join(
            text.ljust(width) for text, width in zip(line, widths)).rstrip() for line in lines), ""]

    @staticmethod
    def _text(result: tuple[str, str], notes: list[str]) -> str:
        outcome, note = plain(result[0]), plain(result[1])
        if not note:
            return outcome
        if note not in notes:
            notes.append(note)
        return f"{outcome} [{notes.index(note) + 1}]"


class Report:
    """All tables; a plugin that shows them when all tests are over."""

    def __init__(self) -> None:
        self._tables: list[Table] = []

    def table(self, title: str) -> Table:
        self._tables.append(Table(title))
        return self._tables[-1]

    def text(self) -> str:
        notes: list[str] = []
        lines = [line for table in self._tables for line in table.render(notes)]
        if notes:
            lines += ["Notes", "-----", ""]
        return "\n".join([*lines, *(f"* [{number}] {note}"
                                    for number, note in enumerate(notes, 1))]) + "\n"

    def pytest_terminal_summary(self, terminalreporter: Any) -> None:
        terminalreporter.section("migration matrix")
        terminalreporter.write(self.text())
        PATH.parent.mkdir(parents=True, exist_ok=True)
        PATH.write_text(PAGE.format(date=datetime.date.today(), tables=self.text()))
