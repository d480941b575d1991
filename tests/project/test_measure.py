# SPDX-License-Identifier: GPL-2.0-or-later
"""scripts/measure counts what it says."""

from __future__ import annotations

import importlib.util
import subprocess
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import ModuleType

import pytest

TOP = Path(__file__).resolve().parents[2]

SOURCE = '''\
/*
 * A comment; static int no_variable;
 */
#include "qemu/osdep.h"

#define MACRO(x) do { \\
        static int none_either; \\
    } while (0)

typedef struct Thing {
    int member;
    void (*callback)(void);
} Thing;

static int counter;
static const char *text = "a; {";
static const char *const names[] = { "a", "b" };
static const Thing constant = { .member = 1 };
static QLIST_HEAD(, Thing) things = QLIST_HEAD_INITIALIZER(things);
static struct {
    bool on;
} state;
static void (*hook)(int);
static bool declared(const Thing *thing, int);

static bool coroutine_fn
declared(const Thing *thing, int n)
{
    static unsigned calls;
    static const int limits[] = { 1, 2 };

    return n < limits[0] ? thing->member : calls++;
}

int public_one(void)
{
    if (counter) {
        return '}';
    }
    return declared(NULL, 0);
}

Thing *public_two(Thing *thing)
{
    return thing;
}
'''

PATCH = '''\
From: someone

Adds public_one() to what public_two() does.
---
New-file: migration/{folder}one.c

diff --git a/migration/core.c b/migration/core.c
--- a/migration/core.c
+++ b/migration/core.c
@@ -1,1 +1,3 @@
 {{
-    public_two(NULL);
+    if (public_one() && public_two(x)) {{
+        not_public_one();
diff --git a/tests/unit/test-core.c b/tests/unit/test-core.c
--- a/tests/unit/test-core.c
+++ b/tests/unit/test-core.c
@@ -1,1 +1,3 @@
+    public_one();
+    public_one();
+    public_one();
diff --git a/migration/{folder}one.c b/migration/{folder}one.c
--- a/migration/{folder}one.c
+++ b/migration/{folder}one.c
@@ -1,1 +1,3 @@
+    public_one();
'''


@pytest.fixture(name="measure", scope="module")
def _measure() -> ModuleType:
    loader = SourceFileLoader("measure", str(TOP / "scripts/measure"))
    spec = importlib.util.spec_from_loader("measure", loader)
    assert spec
    module = importlib.util.module_from_spec(spec)
    loader.exec_module(module)
    return module


@pytest.fixture(name="tree", params=["handshake-", "handshake/"])
def _tree(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """With files beside each other, and in a directory of their own."""
    folder = request.param
    source = tmp_path / f"migration/{folder}one.c"
    source.parent.mkdir(parents=True)
    source.write_text(SOURCE)
    source.with_suffix(".h").write_text("int public_one(void);\n")
    for base in ("10.0", "10.2"):
        for part in ("1-fixes", "2-channels"):
            patch = tmp_path / f"patches/{base}/{part}/0001-core.patch"
            patch.parent.mkdir(parents=True)
            patch.write_text(PATCH.format(folder=folder))
    return tmp_path


def test_functions_are_told_from_what_looks_like_them(measure: ModuleType) -> None:
    assert measure.functions(SOURCE) == [
        ("declared", False, 8), ("public_one", True, 7), ("public_two", True, 4)]


def test_variables_are_those_that_change(measure: ModuleType) -> None:
    assert measure.variables(SOURCE) == ["counter", "text", "things", "state", "hook", "calls"]


@pytest.mark.parametrize("declaration, names", [
    ("int a, *b = NULL, c[3]", ["a", "b", "c"]),
    ("static const int a = 1, b = 2", []),
    ("struct Thing", []),
    ("enum { A, B }", []),
    ("struct Thing *thing", ["thing"]),
    ("extern int a", []),
    ("typedef int A", []),
    ("int f(int a, int *b)", []),
    ("static CoMutex lock", ["lock"]),
])
def test_declaration(measure: ModuleType, declaration: str, names: list[str]) -> None:
    assert measure.variables_of(declaration) == names


def test_table(measure: ModuleType, tree: Path) -> None:
    table = {one.name: one.now for one in measure.measures(tree)}
    assert list(table.values()) == [
        SOURCE.count("\n") + 1,     # lines
        2,                          # functions
        2,                          # calls
        2,                          # lines added
        5,                          # ... with tests
        6,                          # variables
        8]                          # largest function


def test_strict_fails_when_something_is_too_much(tree: Path) -> None:
    for options, status in (((), 0), (("--strict",), 1)):
        result = subprocess.run([TOP / "scripts/measure", "--top", tree, *options],
                                capture_output=True, text=True, check=False, timeout=60)
        assert result.returncode == status
        assert "6        0  too many\n    counter in migration/" in result.stdout
    source, = tree.glob("migration/**/*.c")
    source.write_text("int f(void)\n{\n}\n")
    subprocess.run([TOP / "scripts/measure", "--top", tree, "--strict"], check=True, timeout=60)


def test_nothing_of_ours_is_overlooked(measure: ModuleType) -> None:
    """The reader of C finds as many functions as there are braces in the first column."""
    for path in (TOP / "migration").rglob("*.c"):
        text = path.read_text()
        assert len(measure.functions(text)) == text.count("\n{\n"), path
