# SPDX-License-Identifier: GPL-2.0-or-later
"""Each fix has a test that proves it. That it is red without, make mutate-fixes sees."""

from __future__ import annotations

import email
import importlib.machinery
import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import BASES, TOP

LOADER = importlib.machinery.SourceFileLoader("mutate_fixes", str(TOP / "scripts/mutate-fixes"))
SPEC = importlib.util.spec_from_loader("mutate_fixes", LOADER)
assert SPEC
tool = importlib.util.module_from_spec(SPEC)
sys.modules["mutate_fixes"] = tool
LOADER.exec_module(tool)


def subjects(base: str) -> list[str]:
    return [email.message_from_string(path.read_text(encoding="utf-8"))["Subject"]
            .replace("\n", "").removeprefix("[PATCH] ")
            for path in sorted((TOP / "patches" / base / "1-fixes").glob("*.patch"))]


@pytest.mark.parametrize("base", BASES)
def test_each_fix_has_a_line(base: str) -> None:
    proofs = tool.read_table(base)
    assert set(proofs) <= set(subjects(base))
    # Those before are backports, of which no test shows some for sure.
    assert not base.startswith("11.") or len(proofs) == len(subjects(base))
    for proof in proofs.values():
        assert proof.says != "." and re.compile(proof.says)


def test_mutations_are_those_of_the_table() -> None:
    named = {proof.undo for base in BASES for proof in tool.read_table(base).values()}
    assert named - {None} == {path.stem for path in tool.TABLE.parent.glob("*.patch")}


def test_tests_in_python_exist() -> None:
    names = {test.split()[1] for base in BASES for proof in tool.read_table(base).values()
             for test in proof.tests if test.startswith("pytest ")}
    done = subprocess.run([sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-q",
                           "--collect-only", *sorted(names)], cwd=TOP, capture_output=True,
                          text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stdout
    assert len([line for line in done.stdout.splitlines() if "::" in line]) == len(names)


@pytest.mark.parametrize("line, words", [
    ("qtest a | says | subject\nqtest b | says | subject", "two lines of 'subject'"),
    ("qtest a | subject", "is no line of it"),
])
def test_bad_table(line: str, words: str, tmp_path: Path,
                   monkeypatch: pytest.MonkeyPatch) -> None:
    table = tmp_path / "table"
    table.write_text(line, encoding="utf-8")
    monkeypatch.setattr(tool, "TABLE", table)
    with pytest.raises(tool.Broken, match=words):
        tool.read_table("11.1")
