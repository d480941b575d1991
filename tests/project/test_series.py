# SPDX-License-Identifier: GPL-2.0-or-later
"""The parts of the series: how patches/ is laid out, and what the scripts make of it."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

TOP = Path(__file__).resolve().parents[2]
PATCHES = TOP / "patches"
BASES = sorted(path for path in PATCHES.iterdir() if path.name[0].isdigit())
COVERS = sorted((PATCHES / "cover").iterdir())


def lib(script: str, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Run something with scripts/lib.sh."""
    return subprocess.run(["bash", "-c", f'. "$0/scripts/lib.sh"; {script}', TOP, *arguments],
                          capture_output=True, text=True, check=False, timeout=60)


@pytest.mark.parametrize("base", BASES, ids=lambda base: base.name)
def test_every_base_has_every_part(base: Path) -> None:
    assert [path.stem for path in COVERS] == sorted(path.name for path in base.iterdir())
    for part in base.iterdir():
        numbers = sorted(int(path.name[:4]) for path in part.glob("*.patch"))
        assert numbers == list(range(1, len(numbers) + 1)) != []


@pytest.mark.parametrize("cover", COVERS, ids=lambda cover: cover.stem)
def test_cover_letter_is_fit_for_mail(cover: Path) -> None:
    subject, empty, *text = cover.read_text().splitlines()
    assert re.fullmatch(r"migration: [A-Z].{,60}[^.]", subject)
    assert not empty and text[0] and text[-1]
    assert max(map(len, text)) <= 72


def test_cover_letters_say_what_comes_before_and_after() -> None:
    texts = [" ".join(cover.read_text().split()) for cover in COVERS]
    for before, text in zip(COVERS, texts[1:]):
        assert f'on top of "{before.read_text().splitlines()[0]}"' in text
    for text in texts[:-1]:
        assert "What comes next " in text


def test_patches_are_read_in_order() -> None:
    result = lib('read_parts "$1"; echo "${parts[@]}"; printf "%s\\n" "${patches[@]}"', BASES[0])
    parts, *patches = result.stdout.splitlines()
    assert parts.split() == [cover.stem for cover in COVERS]
    assert patches == [str(path) for path in sorted(BASES[0].glob("*/*.patch"))]


@pytest.mark.parametrize("name, message", [
    ("0001-stray.patch", "0001-stray.patch belongs to no part"),
    ("6-more/0001-one.patch", "patches/cover/6-more.txt is missing"),
])
def test_patch_without_a_part_is_not_lost(tmp_path: Path, name: str, message: str) -> None:
    for path in ("1-fixes/0001-one.patch", name):
        (tmp_path / path).parent.mkdir(exist_ok=True)
        (tmp_path / path).write_text("")
    result = lib('read_parts "$1"; echo read', tmp_path)
    assert result.returncode == 1 and "read" not in result.stdout
    assert message in result.stderr


def test_what_changes_a_file_of_ours_is_told_from_the_rest(tmp_path: Path) -> None:
    (tmp_path / "patch").write_text("".join(
        f"diff --git a/{name} b/{name}\n--- a/{name}\n+++ b/{name}\n@@ -1,1 +1,1 @@\n-a\n+{name}\n"
        for name in ("theirs.c", "ours.c", "ours.c.c")))
    (tmp_path / "list").write_text("ours.c\n")
    for option, names in (("", ["ours.c"]), ("-v", ["theirs.c", "ours.c.c"])):
        result = lib(f'diffs_of {option} "$1/list" "$1/patch"', tmp_path)
        assert re.findall(r"^\+(\w.*)$", result.stdout, re.M) == names


@pytest.mark.parametrize("base", BASES, ids=lambda base: base.name)
def test_every_fix_says_what_it_fixes(base: Path) -> None:
    for patch in (base / "1-fixes").iterdir():
        message = patch.read_text().split("\n---\n")[0]
        assert re.search(r'\n\nFixes: [0-9a-f]{12} \(".+"\)\n(Fixes: .*\n)*Signed-off-by: ', message), patch
        assert "QEMU's master" in message, patch
