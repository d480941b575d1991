# SPDX-License-Identifier: GPL-2.0-or-later
"""The commands that the README gives, as a new user would type them."""

import os
import re
import subprocess
from pathlib import Path

import pytest

TOP = Path(__file__).resolve().parents[2]


def make(*arguments: str, limit: int = 60) -> subprocess.CompletedProcess[str]:
    """Run make without what an outer make has left in the environment."""
    environment = {name: value for name, value in os.environ.items()
                   if not name.startswith(("MAKE", "MFLAGS", "QEMU_SRC"))}
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
])
def test_what_cannot_be_built_is_said_in_one_message(
        arguments: list[str], message: str) -> None:
    result = make(*arguments)
    errors = [line for line in result.stdout.splitlines()
              if line.startswith("error: ")]
    assert result.returncode != 0
    assert len(errors) == 1, result.stdout
    assert message in errors[0]


def test_binaries_stand_where_other_programs_look_for_them() -> None:
    for name in ("qemu-system-x86_64", "qemu-img"):
        result = subprocess.run([TOP / "build/10.0" / name, "--version"],
                                capture_output=True, text=True, check=True)
        assert "version 10.0" in result.stdout
    assert (TOP / "build/10.0/src/migration/handshake/handshake.c").is_symlink()


def test_demo_sees_all_that_it_is_about() -> None:
    result = make("demo", limit=540)
    assert result.returncode == 0, result.stdout
    seen = re.search(r"^demo: (\d+) of (\d+) things seen$", result.stdout, re.M)
    assert seen and seen[1] == seen[2], result.stdout
    assert "(machine-type)" in result.stdout
