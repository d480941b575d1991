# SPDX-License-Identifier: GPL-2.0-or-later
"""The mutations are true to today's code. What notices them, make mutate tells."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
from conftest import QEMU, TOP

SENTENCE = "A mistake."
TEST = "unit wire/digest"
FILE = "migration/handshake/destination.c"
LINE = "    if (strcmp(commit->digest, expected)) {"        # stands there once
TWICE = "    g_autoptr(GString) json = NULL;"


def mutate(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([TOP / "scripts/mutate", *arguments], stdin=subprocess.DEVNULL,
                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                          env={**os.environ, "QTEST_QEMU_BINARY": str(QEMU)}, timeout=120,
                          check=False)


def check(directory: Path, sentence: str = SENTENCE, test: str = TEST, file: str = FILE,
          old: str = LINE, new: str = "    if (false) {") -> tuple[int, str]:
    """What is said to one mutation."""
    (directory / "one.patch").write_text(
        f"SPDX-License-Identifier: GPL-2.0-or-later\n\n{sentence}\n\nNoticed-by: {test}\n\n"
        f"--- a/{file}\n+++ b/{file}\n@@\n-{old}\n+{new}\n")
    result = mutate("--check", "--mutations", str(directory))
    return result.returncode, result.stdout


def test_all_apply_and_name_tests_that_exist() -> None:
    result = mutate("--check")
    assert result.returncode == 0, result.stdout
    count = int(result.stdout.split()[0])
    assert count == len(list((TOP / "tests/mutation").glob("*.patch")))
    assert count >= 16


def test_one_that_is_good(tmp_path: Path) -> None:
    """What the others below differ from."""
    assert check(tmp_path) == (0, "1 mutations apply\n")


@pytest.mark.parametrize("change, words", [
    ({"old": LINE + " /* gone */"}, "does not apply"),
    ({"old": TWICE, "new": ""}, "does not apply"),
    ({"new": LINE}, "does not apply"),
    ({"file": "migration/gone.c"}, "does not apply"),
    ({"file": "hw/core/qdev.c"}, "not in migration/"),
    ({"sentence": ""}, "needs a sentence"),
    ({"test": "unit wire/gone"}, "no such tests: unit wire/gone"),
    ({"test": "unit gone"}, "no such tests: unit gone"),
    ({"test": "qtest bad/gone"}, "no such tests: qtest bad/gone"),
    ({"test": "pytest tests/survival/test_check.py::test_gone"}, "test_gone"),
    ({"test": "eyes"}, "'eyes' is no test"),
], ids=["absent", "ambiguous", "unchanged", "no-file", "not-ours", "no-sentence", "no-unit",
        "no-unit-binary", "no-qtest", "no-pytest", "no-kind"])
def test_what_is_not_true_to_the_code(tmp_path: Path, change: dict[str, str],
                                      words: str) -> None:
    status, said = check(tmp_path, **change)
    assert status == 2, said
    assert words in said


def test_a_pattern_that_fits_none() -> None:
    result = mutate("--check", "--only", "no-such-*")
    assert result.returncode == 2
    assert "no mutation 'no-such-*'" in result.stdout
