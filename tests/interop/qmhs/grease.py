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


def greased(value: Object) -> Object:
    """A message with all that it gets."""
    result: Object = {}
    for key, inner in value.items():
        if isinstance(inner, dict):
            inner = greased(inner)
        elif isinstance(inner, list) and inner and isinstance(inner[0], dict):
            inner = [greased(inner[0]), *inner[1:]]
        elif key == "versions":
            inner = [*inner, number()]
        elif key == "features":
            inner = [*inner, name()]
        result[key] = inner
    return {**result, **member()}


def is_name(value: Any) -> bool:
    return isinstance(value, str) and _NAME.fullmatch(value) is not None


def find(value: Any, path: str = "") -> Iterator[str]:
    """Where it is: "profile." for a member there, "sections[0]." in an item, "features[]"."""
    if isinstance(value, dict):
        for key, inner in value.items():
            if is_name(key):
                yield path
            yield from find(inner, f"{path}{key}." if isinstance(inner, dict) else path + key)
    elif isinstance(value, list):
        for index, item in enumerate(value):
            if isinstance(item, (dict, list)):
                yield from find(item, f"{path}[{index}]." if isinstance(item, dict) else path)
            elif is_name(item) or path == "versions" and item in NUMBERS:
                yield path + "[]"
    elif is_name(value):
        yield path
