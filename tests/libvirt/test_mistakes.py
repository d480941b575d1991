# SPDX-License-Identifier: GPL-2.0-or-later
"""The mutations of libvirt's series are true to it. make mutate-libvirt tells what notices them."""

from __future__ import annotations

from conftest import TOP
from daemons import LIMIT, run
from series import series


def test_all_apply_and_name_tests_that_exist() -> None:
    series()
    result = run([TOP / "scripts/mutate-libvirt", "--check"], LIMIT)
    count = len(list((TOP / "tests/libvirt/mutation").glob("*.patch")))
    assert result.ok and result.stdout == f"{count} mutations apply\n", result
    assert count >= 10
