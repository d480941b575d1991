# SPDX-License-Identifier: GPL-2.0-or-later
"""Which QEMU gets which patches, where one comes from, and trees that nobody can use."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Optional

import pytest

TOP = Path(__file__).resolve().parents[2]
SCRIPTS = ("lib.sh", "prepare-tree", "series", "refresh-patches", "fetch-qemu")
SOURCE = "".join(f"line_{number}(void)\n" for number in range(12))
OURS = "migration/handshake/ours.c"


def diff(name: str, number: int, context: int, word: str = "new") -> str:
    """A hunk that puts a line after the one of that number, counted from 0."""
    lines = SOURCE.splitlines()
    before = lines[number + 1 - context:number + 1]
    after = lines[number + 1:number + 1 + context]
    above = lines[number - context] if number >= context else ""
    return "\n".join([
        f"diff --git a/{name} b/{name}", f"--- a/{name}", f"+++ b/{name}",
        f"@@ -{number + 2 - context},{2 * context} +{number + 2 - context},{2 * context + 1} @@ {above}",
        *(f" {line}" for line in before), f"+    {word};", *(f" {line}" for line in after), ""])


def patch(subject: str, *diffs: str, brings: str = "") -> str:
    return "\n".join([
        "From 0000000000000000000000000000000000000000 Mon Sep 17 00:00:00 2001",
        "From: A Developer <a@developer.example>", "Date: Mon, 30 Nov 2026 13:00:00 +0000",
        f"Subject: [PATCH] {subject}", "", "Why.", "", "---",
        *([f"New-file: {brings}"] if brings else []), "", *diffs])


class World:
    """A project with patches of two lines for 10.0 and 11.1, and trees for them."""

    def __init__(self, place: Path):
        self.top = place / "project"
        self._place = place
        (self.top / "scripts").mkdir(parents=True)
        for script in SCRIPTS:
            shutil.copy(TOP / "scripts" / script, self.top / "scripts")
        self.write(OURS, "/* ours */\n")
        self.write("patches/cover/1-only.txt", "migration: All\n\nText.\n")
        for base, context in (("10.0", 2), ("11.1", 1)):
            for number, (line, brings) in enumerate([(3, ""), (7, OURS)], 1):
                self.write(f"patches/{base}/1-only/000{number}-p{number}.patch", patch(
                    f"p{number}", diff("migration/a.c", line, context, f"of_{number}"),
                    brings=brings))

    def write(self, name: str, text: str) -> None:
        (self.top / name).parent.mkdir(parents=True, exist_ok=True)
        (self.top / name).write_text(text)

    def tree(self, version: str, source: str = SOURCE, name: str = "qemu") -> Path:
        tree = self._place / name
        shutil.rmtree(tree, ignore_errors=True)
        for path, text in (("VERSION", f"{version}\n"), ("configure", ""), ("README", ""),
                           ("migration/a.c", source), ("scripts/checkpatch.pl", "")):
            (tree / path).parent.mkdir(parents=True, exist_ok=True)
            (tree / path).write_text(text)
        return tree

    def run(self, script: str, *arguments: str, **more: str) -> subprocess.CompletedProcess[str]:
        kept = {name: value for name, value in os.environ.items()
                if not name.startswith(("QEMU_SRC", "QMHS_", "REFRESH", "GIT_"))}
        return subprocess.run(
            [self.top / "scripts" / script, *arguments], stdin=subprocess.DEVNULL,
            capture_output=True, text=True, check=False, timeout=120,
            env={**kept, "QMHS_NO_INSTALL": "1", "QMHS_CACHE": str(self._place / "cache"), **more})

    def prepare(self, tree: Path) -> subprocess.CompletedProcess[str]:
        return self.run("prepare-tree", "custom", QEMU_SRC=str(tree))

    @property
    def prepared(self) -> Path:
        return self.top / "build/src/custom"


@pytest.fixture(name="world")
def _world(tmp_path: Path) -> World:
    return World(tmp_path)


def one_error(result: subprocess.CompletedProcess[str], *texts: str) -> None:
    """Fails unless it has failed with one message, which has all of that."""
    assert result.returncode != 0
    errors = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1, result.stderr
    told = result.stderr[result.stderr.index("error: "):]
    for text in texts:
        assert text in told
    assert all(line.startswith(("error: ", "       ")) for line in told.splitlines()), told


@pytest.mark.parametrize("version, base", [
    ("10.0.13", "10.0"), ("10.2.2", "10.2"), ("10.2.50", "11.0"), ("11.0.0", "11.0"),
    ("11.0.50", "11.1"), ("11.0.92", "11.1"), ("11.1.49", "11.1"), ("11.1.50", "11.2"),
    ("11.2.94", "12.0"), ("11.1.2+ds", "11.1"),
])
def test_base_of_a_tree(world: World, version: str, base: str) -> None:
    tree = world.tree(version)
    result = subprocess.run(["bash", "-c", '. "$0/scripts/lib.sh"; base_of "$1"', TOP, tree],
                            capture_output=True, text=True, check=False, timeout=60)
    assert (result.stdout, result.stderr) == (f"{base}\n", "")


@pytest.mark.parametrize("script", ["prepare-tree", "series"])
@pytest.mark.parametrize("version, texts", [
    ("9.1.0", ["QEMU 9.1", "9.1.0", "10.0 11.1"]), ("11.1.50", ["QEMU 11.2", "11.1.50", "10.0 11.1"]),
    ("v11", ["'v11'", "no version"]), ("", ["''", "no version"]),
])
def test_tree_of_an_unknown_version(world: World, script: str, version: str, texts: list[str]) -> None:
    tree = world.tree(version)
    one_error(world.run(script, "custom", QEMU_SRC=str(tree)), str(tree), *texts)
    assert not world.prepared.exists()
    assert not (world.top / "build/series/custom-tree").exists()


@pytest.mark.parametrize("version, context", [("10.0.3", 2), ("11.0.50", 1), ("11.1.2", 1)])
def test_tree_gets_the_patches_of_its_base(world: World, version: str, context: int) -> None:
    tree = world.tree(version)
    result = world.prepare(tree)
    assert result.returncode == 0, result.stderr
    text = (world.prepared / "migration/a.c").read_text()
    assert "    of_1;\n" in text and "    of_2;\n" in text
    assert (world.prepared / OURS).is_symlink()
    assert (tree / "migration/a.c").read_text() == SOURCE
    # And back again, with as many lines of context
    result = world.run("series", "custom", QEMU_SRC=str(tree))
    assert result.returncode == 0, result.stdout + result.stderr
    (base,) = (path for path in (world.top / "patches").iterdir()
               if path.name == ("10.0" if context == 2 else "11.1"))
    before = {path.name: path.read_text() for path in base.glob("*/*.patch")}
    result = world.run("refresh-patches", "custom", QEMU_SRC=str(tree))
    assert result.returncode == 0, result.stderr
    after = {path.name: path.read_text() for path in base.glob("*/*.patch")}
    assert set(after) == set(before)
    for text in after.values():
        hunk = text[text.index("\n@@ "):]
        assert len(re.findall(r"^ ", hunk, re.M)) == 2 * context


def spoil(text: str, *more: tuple[str, str]) -> str:
    for old, new in more:
        assert old in text
        text = text.replace(old, new)
    return text


HALF = SOURCE.replace("line_3(void)\n", "line_3(void)\n    of_1;\n")
OTHER = SOURCE.replace("line_8(void)", "line_8(int)")
# Another function stands where the patch goes; the line before it is there twice
MOVED = "\n" + spoil(SOURCE, ("line_6(void)\n", ""))


def have_ours(tree: Path) -> None:
    (tree / OURS).parent.mkdir(parents=True)
    (tree / OURS).write_text("/* another */\n")


@pytest.mark.parametrize("script", ["prepare-tree", "series"])
@pytest.mark.parametrize("version, source, change, texts", [
    ("10.0.3", HALF, None, ["p1.patch", "migration/a.c", "has patches/10.0/1-only/0001-p1.patch already"]),
    ("11.1.0", HALF, None, ["p1.patch", "migration/a.c", "has patches/11.1/1-only/0001-p1.patch already"]),
    ("10.0.3", SOURCE, have_ours, ["p2.patch", OURS, "one without"]),
    ("11.1.0", SOURCE, have_ours, ["p2.patch", OURS, "one without"]),
    ("11.1.0", OTHER, None, ["p2.patch", "migration/a.c: Hunk #1 FAILED", "context"]),
    ("10.0.3", SOURCE.replace("line_8", "line_x").replace("line_7", "x"), None,
     ["p2.patch", "migration/a.c: Hunk #1 FAILED", "context"]),
    ("11.1.0", MOVED, None, ["p2.patch", 'migration/a.c: Hunk #1 is in "line_5(void)" there',
                             'not in "line_6(void)"']),
])
def test_tree_that_the_series_does_not_fit(
        world: World, script: str, version: str, source: str,
        change: Optional[Callable[[Path], None]], texts: list[str]) -> None:
    good = world.tree(version, name="good")
    assert world.prepare(good).returncode == 0
    prepared = {path: path.read_bytes() for path in world.prepared.rglob("*") if path.is_file()}
    tree = world.tree(version, source)
    if change:
        change(tree)
    told = world.run(script, "custom", QEMU_SRC=str(tree))
    one_error(told, str(tree), *texts)
    assert (tree / "migration/a.c").read_text() == source
    # Nothing half done: what was good is as it was, and is so again.
    assert prepared == {path: path.read_bytes() for path in world.prepared.rglob("*") if path.is_file()}
    result = world.run("refresh-patches", "custom", QEMU_SRC=str(tree))
    one_error(result)
    assert len(list((world.top / "patches").glob("1*/*/*.patch"))) == 4
    assert world.prepare(good).returncode == 0
    shutil.rmtree(world.top / "build")
    one_error(world.prepare(tree), *texts)
    assert not world.prepared.exists()


def test_offset_is_no_matter(world: World) -> None:
    tree = world.tree("11.1.0", "static int more;\n\n" + SOURCE)
    result = world.prepare(tree)
    assert result.returncode == 0, result.stderr
    assert "line_7(void)\n    of_2;\nline_8" in (world.prepared / "migration/a.c").read_text()


# Where a base comes from

APT_GET = """#!/bin/sh
echo "apt-get $*" >>"$APT/asked"
suite=$(echo "$*" | sed 's,.*/apt/\\([^/]*\\)/.*,\\1,')
case "$*" in
*indextargets*) echo "http://mirror.example/debian/|bookworm|main" ;;
*update*)       [ -e "$APT/$suite" ] || { echo "E: no $suite"; exit 100; } ;;
*source*)       version=${*##*qemu=}
                [ ! -e "$APT/lost-$version" ] || { echo "E: Failed to fetch http://x  404  Not Found"; exit 100; }
                echo "$version" >qemu_1.dsc ;;
esac
"""
APT_CACHE = """#!/bin/sh
suite=$(echo "$*" | sed 's,.*/apt/\\([^/]*\\)/.*,\\1,')
sed 's/^/Version: /' "$APT/$suite"
"""
DPKG_SOURCE = """#!/bin/sh
mkdir "$4" && cp "$3" "$4/VERSION"
"""


class Mirror:
    """A stand-in for apt, whose suites are files with the versions that they have."""

    def __init__(self, world: World, place: Path):
        self._world, self.place = world, place
        tools = place / "bin"
        tools.mkdir(parents=True)
        for name, text in (("apt-get", APT_GET), ("apt-cache", APT_CACHE), ("dpkg-source", DPKG_SOURCE)):
            (tools / name).write_text(text)
            (tools / name).chmod(0o755)
        self._path = f"{tools}:{os.environ['PATH']}"

    def suites(self, **versions: str) -> None:
        for suite in ("stable-backports", "testing", "sid", "trixie"):
            (self.place / suite).unlink(missing_ok=True)
        for name, version in versions.items():
            (self.place / name.replace("_", "-")).write_text(version)

    def fetch(self, base: str, **more: str) -> subprocess.CompletedProcess[str]:
        (self.place / "asked").write_text("")
        return self._world.run("fetch-qemu", base, APT=str(self.place), PATH=self._path, **more)

    @property
    def asked(self) -> bool:
        return bool((self.place / "asked").read_text())


@pytest.fixture(name="mirror")
def _mirror(world: World, tmp_path: Path) -> Iterator[Mirror]:
    if not Path("/etc/debian_version").exists():
        pytest.skip("not on Debian")
    yield Mirror(world, tmp_path / "apt")


@pytest.mark.parametrize("suites, lost, version", [
    ({"stable_backports": "1:11.1.2+ds-3~bpo13+4\n", "testing": "1:11.1.2+ds-3\n"}, "",
     "11.1.2+ds-3~bpo13+4"),
    ({"stable_backports": "", "testing": "1:11.1.2+ds-3\n", "sid": "1:11.1.3+ds-1\n"}, "", "11.1.2+ds-3"),
    ({"testing": "1:10.2.2+ds-1\n", "sid": "1:10.2.2+ds-1\n1:11.1.3+ds-1\n"}, "", "11.1.3+ds-1"),
    ({"testing": "1:11.1.2+ds-3\n", "sid": "1:11.1.3+ds-1\n"}, "1:11.1.2+ds-3", "11.1.3+ds-1"),
    ({"sid": "1:11.10.0+ds-1\n1:11.1.0~rc2+ds-1\n"}, "", "11.1.0~rc2+ds-1"),
])
def test_first_suite_that_has_it(mirror: Mirror, suites: dict[str, str], lost: str, version: str) -> None:
    mirror.suites(**suites)
    if lost:
        (mirror.place / f"lost-{lost}").write_text("")
    result = mirror.fetch("11.1")
    assert result.returncode == 0, result.stderr
    tree = Path(result.stdout.rstrip())
    assert tree.name == f"qemu-{version}" and (tree / "VERSION").read_text() == f"1:{version}\n"
    assert mirror.asked
    # It stays in the cache.
    result = mirror.fetch("11.1")
    assert Path(result.stdout.rstrip()) == tree and not mirror.asked


def test_base_that_no_suite_has(mirror: Mirror) -> None:
    mirror.suites(stable_backports="1:10.2.1+ds-1\n", sid="1:12.0.0+ds-1\n")
    for asked in (True, False):     # a mirror is asked once a day
        result = mirror.fetch("11.1")
        one_error(result, "no QEMU 11.1", "stable-backports has 10.2.1+ds-1", "sid has 12.0.0+ds-1",
                  "QEMU_SRC=DIR")
        assert result.returncode == 3 and mirror.asked == asked
    mirror.suites(sid="1:11.1.9+ds-1\n")
    assert mirror.fetch("11.1").returncode == 3
    assert mirror.fetch("11.1", REFRESH="1").stdout.endswith("/qemu-11.1.9+ds-1\n")


def test_mirror_that_does_not_answer(mirror: Mirror) -> None:
    mirror.suites()
    for _ in range(2):
        result = mirror.fetch("11.1")
        one_error(result, "11.1", "no sid", "network")
        assert result.returncode == 1 and mirror.asked
    mirror.suites(testing="1:11.1.0+ds-1\n")
    tree = mirror.fetch("11.1").stdout
    mirror.suites()
    assert tree and mirror.fetch("11.1", REFRESH="1").stdout == tree


def test_base_is_what_there_are_patches_for(mirror: Mirror) -> None:
    for base in ("9.9", "cover", "../patches/11.1"):
        one_error(mirror.fetch(base), f"QEMU {base} is not a base")


def test_trees_of_ones_own(world: World, mirror: Mirror) -> None:
    old, new = world.tree("10.0.1", name="old"), world.tree("11.0.50", name="new")
    for base, tree in (("10.0", old), ("11.1", new)):
        assert mirror.fetch(base, QMHS_TREES=f"{old} {new}").stdout == f"{tree}\n"
        assert not mirror.asked
    one_error(mirror.fetch("11.1", QMHS_TREES=f"{old} /nowhere"), "/nowhere")
