# SPDX-License-Identifier: GPL-2.0-or-later
"""Our pages, as Sphinx makes QEMU's manual of them."""

from __future__ import annotations

import ast
import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import QEMU, TOP

QEMU_DOCS = QEMU.resolve().parent / "src/docs"
PAGES = ("system/migration-handshake", "tools/migration-handshake",
         "interop/migration-handshake", "devel/migration/handshake")
CITED = ("system/tls",)     # of QEMU
MANUAL = ("tools/migration-handshake", "migration-handshake")
SPHINX = ("/usr/bin/python3", "-m", "sphinx", "-q", "-E", "-n", "-W", "--keep-going")
LIMIT = 120.0


def man_pages() -> Iterator[tuple[str, str, str, list[str], int]]:
    """What QEMU's configuration of Sphinx says of our manual."""
    listed = re.search(r"^man_pages = (\[.*?^\])", (QEMU_DOCS / "conf.py").read_text(),
                       re.M | re.S)
    assert listed
    for page in ast.literal_eval(listed[1]):
        if page[:2] == MANUAL:
            yield page


@pytest.fixture(name="docs")
def _docs(tmp_path: Path) -> Path:
    """A manual that has nothing but our pages, and what they refer to."""
    for top, pages in ((TOP / "docs", PAGES), (QEMU_DOCS, CITED)):
        for page in pages:
            (tmp_path / page).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / f"{page}.rst").symlink_to(top / f"{page}.rst")
    (tmp_path / "index.rst").write_text(
        "Manual\n======\n\n.. toctree::\n\n" + "".join(f"   {page}\n" for page in (*PAGES, *CITED)))
    (tmp_path / "conf.py").write_text(
        f"import sys\nsys.path.insert(0, {str(QEMU_DOCS / 'sphinx')!r})\n"
        f"project = 'QEMU'\nextensions = ['qmp_lexer']\nman_pages = {list(man_pages())!r}\n"
        f"rst_epilog = {(QEMU_DOCS / 'defs.rst.inc').read_text()!r}\n")
    return tmp_path


def build(docs: Path, builder: str) -> Path:
    output = docs / "_build" / builder
    done = subprocess.run([*SPHINX, "-b", builder, docs, output], capture_output=True, text=True,
                          check=False, timeout=LIMIT)
    assert done.returncode == 0 and not done.stderr, done.stderr
    return output


def test_pages_are_sound(docs: Path) -> None:
    """Markup, QMP and references."""
    output = build(docs, "html")
    for page in PAGES:
        assert (output / f"{page}.html").exists()


def test_tool_has_a_man_page(docs: Path) -> None:
    page = (build(docs, "man") / "migration-handshake.1").read_text()
    assert re.search(r'^\.TH "MIGRATION-HANDSHAKE" "1" ', page, re.M)
    assert re.search(r"^migration-handshake \\- .*\bmigrat", page, re.M)
    headings = re.findall(r'^\.SH "?([A-Z ]+)', page, re.M)
    assert [h for h in headings if h in ("NAME", "SYNOPSIS", "DESCRIPTION", "OPTIONS",
                                         "EXIT STATUS", "EXAMPLES", "SEE ALSO")] == [
        "NAME", "SYNOPSIS", "DESCRIPTION", "OPTIONS", "EXIT STATUS", "EXAMPLES", "SEE ALSO"]
    assert ":Manual" not in page
    # Meson has to be told what Sphinx makes.
    assert "'migration-handshake.1':" in (QEMU_DOCS / "meson.build").read_text()
    formatted = subprocess.run(["man", "--warnings", "-l", "-"], input=page, text=True,
                               env={**os.environ, "LC_ALL": "C.UTF-8"},
                               capture_output=True, check=True, timeout=LIMIT)
    assert not formatted.stderr, formatted.stderr
