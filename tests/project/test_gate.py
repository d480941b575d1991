# SPDX-License-Identifier: GPL-2.0-or-later
"""What scripts/check leaves out: each time for a reason, and of something that exists."""

from __future__ import annotations

import os
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
    assert not re.search("^ERROR ", result.stdout, re.M), result.stdout
    return len(re.findall(r"^tests/.*::", result.stdout, re.M))


def test_each_has_a_reason() -> None:
    assert LEFT_OUT
    for suite, where, test, why in LEFT_OUT:
        assert suite in SUITES
        assert where in ("all", "further", "others")
        assert test and why.endswith(".")


# Their names would be left out with what they are about.
@pytest.mark.parametrize("expression", PYTHON, ids=map(str, range(len(PYTHON))))
def test_tests_in_python_exist(expression: str) -> None:
    assert collected(expression) > 0


def test_most_is_not_left_out() -> None:
    """But for a table, which says itself how many of its rows are in the gate."""
    everything = collected("", without="promises")
    gate = collected(" and ".join(f"not ({one})" for one in PYTHON), without="promises")
    assert gate > 0.9 * everything > 0


def function(name: str) -> str:
    found = re.search(rf"^{name}\(\)\n\{{.*?^\}}\n", CHECK, re.M | re.S)
    assert found
    return found[0]


def run(script: str, *arguments: str, given: str = "", **more: str) -> subprocess.CompletedProcess[str]:
    """Something with functions of scripts/check."""
    return subprocess.run(["bash", "-c", f'. "$0/scripts/lib.sh"; {script}', TOP, *arguments],
                          capture_output=True, text=True, check=False, timeout=60, input=given,
                          env={**os.environ, **more})


@pytest.fixture(name="qtests", scope="module")
def list_qtests() -> list[str]:
    listed = run('cd "$top/build/10.0"; test_environment; list_qtests').stdout.split()
    assert len(listed) > 100
    return listed


def test_slice_for_other_architectures_exists(qtests: list[str]) -> None:
    _slice = re.search(r"^slice=\((.*?)^\)", CHECK, re.M | re.S)
    assert _slice
    script = f'slice=({_slice[1]}); machine=x86_64; {function("in_slice")} in_slice "$1"'
    tests = _slice[1].split()
    assert len(tests) > 10
    for test in tests:
        path = f"/x86_64/migration/{test}"
        assert path in qtests
        assert run(script, path).returncode == 0
        assert run(script, path.replace("x86_64", "s390x")).returncode == 1
    assert run(script, "/x86_64/migration/precopy/tcp").returncode == 1


def test_base_that_cannot_be_had_is_skipped_in_a_line(tmp_path: Path) -> None:
    (tmp_path / "scripts").mkdir()
    fetch = tmp_path / "scripts/fetch-qemu"
    script = f'top=$1; {function("can_be_had")} can_be_had 11.1 && echo had'
    for body, printed in (
            ("echo '==> asking' >&2; echo /somewhere", "had\n"),
            ("echo '==> asking' >&2; echo 'error: there is none' >&2; echo '       Try' >&2; exit 3",
             "SKIPPED: QEMU 11.1: there is none\n")):
        fetch.write_text(f"#!/bin/bash\n{body}\n")
        fetch.chmod(0o755)
        result = run(script, str(tmp_path))
        assert (result.stdout, result.stderr) == (printed, "==> asking\n")


def test_last_lines_say_what_was_covered(tmp_path: Path) -> None:
    for base, version in (("10.0", "10.0.13"), ("11.1", "11.0.50")):
        (tmp_path / base / "src").mkdir(parents=True)
        (tmp_path / base / "src/VERSION").write_text(f"{version}\n")
    end = re.search(r"^list=.*'; %s'.*\n.*\n.*\n", CHECK, re.M)
    assert end
    result = run(f"""build_of() {{ echo "{tmp_path}/$1"; }}
        covered=() missing=(10.2) passed=1 failed=0 skipped=2
        {function("covers")}
        covers 10.0 x86_64 aarch64; covers 11.1 x86_64
        {end[0]}""")
    assert result.stdout == ("bases: 10.0 (QEMU 10.0.13: x86_64, aarch64); 11.1 (QEMU 11.0.50: x86_64);"
                             " skipped: 10.2\n1 passed, 0 failed, 2 skipped\n"), result.stderr


@pytest.mark.parametrize("target, machine, left_out", [
    ("10.0", "x86_64", []), ("10.2", "x86_64", ["promises/twins/pc"]), ("10.0", "aarch64", ["bad/silence"]),
])
def test_what_is_left_out_of_ours(qtests: list[str], target: str, machine: str, left_out: list[str]) -> None:
    listed = [path for path in qtests if "/handshake/" in path]
    assert _listed
    result = run(f"""{_listed[0]}
        mode= targets=(10.0 10.2) target=$1 machine=$2
        {function("leaves_out")}
        {function("gating")}
        gating "handshake qtests" """, target, machine, given="\n".join(listed) + "\n")
    assert not result.stderr
    assert sorted(set(listed) - set(result.stdout.split())) == [
        f"/x86_64/migration/handshake/{test}" for test in left_out]


@pytest.mark.parametrize("name, moves", [
    ("precopy/tcp/plain", True), ("cancel/src/after/none", True),
    ("precopy/file", False), ("precopy/file/offset/fdset", False), ("validate_uri/channels", False),
])
def test_what_moves_to_a_handshake(name: str, moves: bool) -> None:
    result = run(f'{function("moves")} moves "$1"', f"/x86_64/migration/{name}")
    assert not result.stderr
    assert result.returncode == int(not moves)
