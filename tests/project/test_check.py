# SPDX-License-Identifier: GPL-2.0-or-later
"""What scripts/check leaves out: each time for a reason, and of something that exists."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

TOP = Path(__file__).resolve().parents[2]
CHECK = (TOP / "scripts/check").read_text()
SUITES = set(re.findall(r'^\s*(?:\[.*\|\| )?suite "([^"]+)"', CHECK, re.M))
_listed = re.search(r"^left_out=\(\n(.*?)^\)", CHECK, re.M | re.S)
assert _listed
LEFT_OUT = [line.strip().strip("'").split("|") for line in _listed[1].splitlines()]
PYTHON = [test for suite, _, test, _ in LEFT_OUT if suite == "Python tests"]


def collected(expression: str, without: str = "nothing") -> int:
    result = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-q", "--collect-only",
         "-k", expression, *sorted(path for path in (TOP / "tests").glob("*/test_*.py")
                                   if path.parent.name != without)],
        cwd=TOP, capture_output=True, text=True, check=False, timeout=120)
    return len(re.findall(r"^tests/.*::", result.stdout, re.M))


def test_each_has_a_reason() -> None:
    assert LEFT_OUT
    for suite, bases, test, why in LEFT_OUT:
        assert suite in SUITES
        assert bases in ("all", "further")
        assert test and why.endswith(".")


@pytest.mark.parametrize("expression", PYTHON)
def test_tests_in_python_exist(expression: str) -> None:
    assert collected(expression) > 0


def test_most_is_not_left_out() -> None:
    """But for a table, which says itself how many of its rows are in the gate."""
    everything = collected("", without="promises")
    gate = collected(" and ".join(f"not ({one})" for one in PYTHON), without="promises")
    assert gate > 0.9 * everything > 0


@pytest.mark.parametrize("name, moves", [
    ("precopy/tcp/plain", True), ("cancel/src/after/none", True),
    ("precopy/file", False), ("precopy/file/offset/fdset", False), ("validate_uri/channels", False),
])
def test_what_moves_to_a_handshake(name: str, moves: bool) -> None:
    function = re.search(r"^moves\(\)\n\{.*?^\}\n", CHECK, re.M | re.S)
    assert function
    result = subprocess.run(
        ["bash", "-c", f'. "$0/scripts/lib.sh"; {function[0]} moves "$1"', TOP,
         f"/x86_64/migration/{name}"], capture_output=True, text=True, check=False, timeout=60)
    assert not result.stderr
    assert result.returncode == int(not moves)
