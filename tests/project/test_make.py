# SPDX-License-Identifier: GPL-2.0-or-later
"""The commands that the README gives, as a new user would type them."""

import os
import re
import subprocess
from pathlib import Path

import pytest
from conftest import BASES

TOP = Path(__file__).resolve().parents[2]


def make(*arguments: str, limit: int = 60) -> subprocess.CompletedProcess[str]:
    """Run make without what an outer make has left in the environment."""
    environment = {name: value for name, value in os.environ.items()
                   if not name.startswith(("MAKE", "MFLAGS", "QEMU_SRC", "QMHS_TARGETS", "TARGET"))}
    return subprocess.run(["make", *arguments], cwd=TOP, env=environment,
                          stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                          stderr=subprocess.STDOUT, text=True, timeout=limit,
                          check=False)


def test_help_lists_what_the_readme_gives() -> None:
    result = make("help")
    assert result.returncode == 0
    commands = set(re.findall(r"\bmake [a-z][a-z-]+", (TOP / "README.md").read_text()))
    assert len(commands) >= 5
    for command in commands:
        assert command in result.stdout


@pytest.mark.parametrize("arguments, message", [
    (["BASE=9.9"], "9.9"),
    (["QEMU_SRC=/nowhere"], "/nowhere"),
    ([f"QEMU_SRC={TOP}"], "QEMU"),
    (["TARGETS=aarch64,z80"], "'z80'"),
    (["TARGETS=aarch64-softmmu"], "'aarch64-softmmu'"),
])
def test_what_cannot_be_built_is_said_in_one_message(
        arguments: list[str], message: str) -> None:
    result = make(*arguments)
    errors = [line for line in result.stdout.splitlines()
              if line.startswith("error: ")]
    assert result.returncode != 0
    assert len(errors) == 1, result.stdout
    assert message in errors[0]


@pytest.mark.parametrize("arguments, command", [
    ([], "build 10.0"), (["BASE=11.1"], "build 11.1"), (["BASE=11.1", "QEMU_SRC=/x"], "build custom"),
    (["check", "BASE=10.2"], "check 10.2"), (["check", "QEMU_SRC=/x"], "check custom"),
    (["check"], "check 10.0,10.2"), (["check-full"], "check 10.0,10.2 full"),
    (["matrix"], "matrix 10.0,10.2"), (["check", "QMHS_TREES=/x"], f"check {','.join(BASES)}"),
    (["demo", "TARGET=aarch64"], "demo 10.0 aarch64"), (["series", "QEMU_SRC=/x"], "series custom"),
])
def test_what_make_runs(arguments: list[str], command: str) -> None:
    result = make("-n", *arguments)
    assert result.stdout.split() == f"scripts/{command}".split()


def test_targets_that_were_built_are_built_again(tmp_path: Path) -> None:
    def targets(asked: str) -> list[str]:
        return subprocess.run(
            ["bash", "-c", '. "$0/scripts/lib.sh"; targets_of "$1"', TOP, tmp_path], check=True,
            env={**os.environ, "QMHS_TARGETS": asked}, capture_output=True, text=True).stdout.split()

    assert targets("") == ["x86_64"]
    assert targets("aarch64,s390x") == ["x86_64", "aarch64", "s390x"]
    (tmp_path / ".targets").write_text("x86_64\naarch64\n")
    assert targets("") == ["x86_64", "aarch64"]
    assert targets("ppc64 aarch64") == ["x86_64", "aarch64", "ppc64"]


def test_binaries_stand_where_other_programs_look_for_them() -> None:
    for name in ("qemu-system-x86_64", "qemu-img"):
        result = subprocess.run([TOP / "build/10.0" / name, "--version"],
                                capture_output=True, text=True, check=True)
        assert "version 10.0" in result.stdout
    assert (TOP / "build/10.0/src/migration/handshake/handshake.c").is_symlink()


def test_demo_sees_all_that_it_is_about() -> None:
    require_all_seen(make("demo", limit=540))


def test_demo_of_another_architecture() -> None:
    result = make("demo", "TARGET=aarch64", limit=890)
    require_all_seen(result)
    assert re.search(r"virt-\d+\.\d+, aarch64 ", result.stdout), result.stdout


def test_demo_of_an_unknown_architecture() -> None:
    result = make("demo", "TARGET=s390x")
    assert result.returncode != 0 and "error: there is no demo for s390x" in result.stdout


def require_all_seen(result: subprocess.CompletedProcess[str]) -> None:
    assert result.returncode == 0, result.stdout
    seen = re.search(r"^demo: (\d+) of (\d+) things seen$", result.stdout, re.M)
    assert seen and seen[1] == seen[2], result.stdout
    assert "(machine-type)" in result.stdout
