# SPDX-License-Identifier: GPL-2.0-or-later
"""What the demo looks like: headings, tables, the guest's console, a checklist."""

from __future__ import annotations

import os
import sys
import textwrap
from collections.abc import Iterable

LABEL_WIDTH, CELL_WIDTH = 17, 37


def paint(text: str, code: str) -> str:
    fancy = sys.stdout.isatty() and not os.environ.get("NO_COLOR")
    return f"\033[{code}m{text}\033[0m" if fancy else text


def heading(text: str) -> None:
    print("\n" + paint(text, "1"), flush=True)


def say(text: str = "") -> None:
    print(f"  {text}".rstrip(), flush=True)


def row(label: str, left: str, right: str) -> None:
    """Three columns; what is too long for its column goes on below."""
    left_lines, right_lines = (textwrap.wrap(text, CELL_WIDTH) or [""] for text in (left, right))
    for i in range(max(len(left_lines), len(right_lines))):
        a, b = ("".join(lines[i:i + 1]) for lines in (left_lines, right_lines))
        say(f"{label if i == 0 else '':{LABEL_WIDTH}}{a:{CELL_WIDTH + 2}}{b}")


def title_row(left: str, right: str) -> None:
    row("", left, right)
    say("-" * (LABEL_WIDTH + 2 * CELL_WIDTH + 2))


def mib(size: float) -> str:
    return f"{size / (1 << 20):.1f} MiB"


def console(lines: Iterable[str]) -> None:
    for line in lines:
        say(paint("| " + line, "36"))


class Checklist:
    """What was seen of all that has to be seen."""

    def __init__(self, checks: dict[str, str]):
        self._checks = checks
        self._seen: set[str] = set()

    def record(self, check: str, seen: bool) -> None:
        if seen:
            self._seen.add(check)
        mark = paint("ok    ", "32") if seen else paint("FAILED", "31;1")
        say(f"{mark}  {self._checks[check]}")

    def conclude(self) -> bool:
        heading(f"demo: {len(self._seen)} of {len(self._checks)} things seen")
        for check, text in self._checks.items():
            if check not in self._seen:
                say(f"not seen: {text}")
        return len(self._seen) == len(self._checks)
