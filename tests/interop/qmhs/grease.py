# SPDX-License-Identifier: GPL-2.0-or-later
"""Section "Grease": made when sending. Receivers do not know it; tests look for it."""

from __future__ import annotations

import random
import re
from collections.abc import Iterator
from typing import Any

from .frames import Frame
from .strictjson import Object

NUMBERS = tuple(0x0101 * (16 * digit + 0x0a) for digit in range(16))
_NAME = re.compile(r"grease-[0-9a-f]{8}")


def name() -> str:
    return f"grease-{random.getrandbits(32):08x}"


def number() -> int:
    return random.choice(NUMBERS)


def frame() -> Frame:
    return Frame(number(), b"{}", 0)


def member() -> Object:
    return {name(): random.getrandbits(32)}


def is_name(value: Any) -> bool:
    return isinstance(value, str) and _NAME.fullmatch(value) is not None


def find(value: Any, path: str = "") -> Iterator[str]:
    """Where it is in a message: "profile." for a member there, "features[]" for an item."""
    if isinstance(value, dict):
        for key, inner in value.items():
            if is_name(key):
                yield path
            yield from find(inner, f"{path}{key}." if isinstance(inner, dict) else path + key)
    elif isinstance(value, list):
        for item in value:
            if isinstance(item, (dict, list)):
                yield from find(item, path + "[]")
            elif is_name(item) or path == "versions" and item in NUMBERS:
                yield path + "[]"
    elif is_name(value):
        yield path
