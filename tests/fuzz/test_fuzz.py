# SPDX-License-Identifier: GPL-2.0-or-later
"""A few seconds of fuzzing for each target, and what it says when it finds something."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import NamedTuple

import pytest

TOP = Path(__file__).resolve().parents[2]
FUZZ = TOP / "build/10.0-fuzz/fuzz"
NO_CLANG = 77

BUILD = 540.0       # seconds, when nothing is there
RUN = 240.0         # of all targets, on a busy machine
ENOUGH = 100        # executions, of the slowest target


class Row(NamedTuple):
    executions: int
    coverage: str
    findings: str


def fuzz(*arguments: str, limit: float) -> subprocess.CompletedProcess[str]:
    result = subprocess.run([TOP / "scripts/fuzz", "10.0", *arguments], timeout=limit,
                            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                            stderr=subprocess.STDOUT, text=True, check=False)
    if result.returncode == NO_CLANG:
        pytest.skip("there is no clang")
    return result


def table(output: str) -> dict[str, Row]:
    rows = re.findall(r"^((?:fuzz|planted)-\S+) +(\d+) +\d+ +(\S+) +\d+  (.+)$", output, re.M)
    return {name: Row(int(executions), coverage, findings)
            for name, executions, coverage, findings in rows}


def names(variable: str) -> set[str]:
    found = re.search(rf"^{variable} := (.+)$", (TOP / "tests/fuzz/targets.mk").read_text(), re.M)
    assert found
    return set(found[1].split())


def test_nothing_is_found_but_what_was_planted() -> None:
    result = fuzz("smoke", limit=BUILD + RUN)
    assert result.returncode == 0, result.stdout
    rows = table(result.stdout)
    targets = {f"fuzz-{name}" for name in names("TARGETS")}
    planted = {f"planted-{name}" for name in names("PLANTED")}
    assert len(targets) >= 10 and planted
    assert rows.keys() == targets | planted, result.stdout
    for name in targets:
        assert rows[name].executions >= ENOUGH, result.stdout
        assert int(rows[name].coverage) > 0, result.stdout
        assert rows[name].findings == "0", result.stdout
    for name in planted:
        assert rows[name].findings.startswith("found"), result.stdout


def test_a_finding_fails_and_can_be_repeated() -> None:
    result = fuzz("120", "planted-hello", limit=BUILD + RUN)      # until it is found
    assert result.returncode == 1, result.stdout
    assert table(result.stdout)["planted-hello"].findings == "1", result.stdout
    assert "heap-buffer-overflow" in result.stdout
    reproducer = re.search(r"^ +(build/\S+/findings/planted-hello-crash-\S+)$",
                           result.stdout, re.M)
    assert reproducer, result.stdout
    path = TOP / reproducer[1]
    try:
        again = subprocess.run([FUZZ / "planted-hello", path], timeout=60.0,
                               stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                               stderr=subprocess.PIPE, text=True, check=False)
        assert again.returncode != 0
        assert "planted_bug" in again.stderr
    finally:
        path.unlink()


def test_every_target_has_seeds() -> None:
    for name in names("TARGETS"):
        seeds = list((TOP / "tests/fuzz/seeds" / name).iterdir())
        assert len(seeds) >= 3, name


def test_every_promise_has_words_and_seeds() -> None:
    """One that can be kept, one that cannot, and a word that leads to more of them."""
    schema = (TOP / "qapi/migration-handshake.json").read_text()
    struct = re.search(r"'struct': 'MigrationPromises',\n  'data': \{(.+?)\} \}", schema, re.S)
    assert struct
    promises = re.findall(r"'\*([a-z-]+)':", struct[1])
    assert len(promises) > 20
    words = (TOP / "tests/fuzz/handshake.dict").read_text()
    assert not [name for name in promises if f'"\\"{name}\\""' not in words]
    for target in ("hello", "compare", "destination", "profile"):
        for kind in ("promises", "promises-broken"):
            seeds = (TOP / "tests/fuzz/seeds" / target).glob(f"{kind}*")
            seed = next(one for one in seeds if one.name in (kind, f"{kind}-hello")).read_bytes()
            assert not [name for name in promises if f'"{name}":'.encode() not in seed], target
