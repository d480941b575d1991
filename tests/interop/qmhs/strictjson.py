# SPDX-License-Identifier: GPL-2.0-or-later
"""Section "JSON": what Python's parser takes and the specification does not."""

from __future__ import annotations

import json
import re
from typing import Any

from . import Malformed

Object = dict[str, Any]

DEPTH_MAX = 16
NAME_MAX = 255
MEMBERS_MAX = 256
OBJECTS_MAX = 8192
INTEGER_MIN = -(1 << 63)
INTEGER_MAX = (1 << 64) - 1
DIGITS_MAX = 20         # of INTEGER_MAX, and of INTEGER_MIN with its sign

_STRING = re.compile(r'"((?:[^"\\]|\\.)*)"([ \t\r\n]*:)?', re.DOTALL)


def parse(payload: bytes) -> Object:
    """One object, or Malformed."""
    try:
        text = payload.decode("utf-8")
    except UnicodeDecodeError as error:
        raise Malformed(f"not UTF-8: {error.reason}") from error
    if text.startswith("\ufeff"):
        raise Malformed("a byte order mark")
    _check_shape(text)
    try:
        value = json.loads(text, object_pairs_hook=_object, parse_int=_integer,
                           parse_float=_no_number, parse_constant=_no_number)
    except ValueError as error:
        raise Malformed(f"no JSON: {error}") from error
    if not isinstance(value, dict):
        raise Malformed("no object")
    return value


def compose(value: Object) -> bytes:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()


def is_integer(value: Any) -> bool:
    """What the specification's tables call an integer. A boolean is none."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _check_shape(text: str) -> None:
    """Names, depth, number of objects, before the parser spends anything on them."""
    for content, colon in _STRING.findall(text):
        if colon and len(content.encode()) > NAME_MAX:
            raise Malformed(f"a name of more than {NAME_MAX} bytes")
    depth = objects = 0
    for char in _STRING.sub("", text):
        if char in "[{":
            depth += 1
            objects += char == "{"
        elif char in "]}":
            depth -= 1
        if depth > DEPTH_MAX:
            raise Malformed(f"nested more than {DEPTH_MAX} deep")
        if objects > OBJECTS_MAX:
            raise Malformed(f"more than {OBJECTS_MAX} objects")


def _object(pairs: list[tuple[str, Any]]) -> Object:
    if len(pairs) > MEMBERS_MAX:
        raise Malformed(f"more than {MEMBERS_MAX} members")
    result: Object = {}
    for name, value in pairs:
        _check_text(name)
        if name in result:
            raise Malformed(f"two members '{name}'")
        _check_value(value)
        result[name] = value
    return result


def _check_value(value: Any) -> None:
    """Strings, also those in lists. Objects in lists have been here on their own."""
    if isinstance(value, str):
        _check_text(value)
    elif isinstance(value, list):
        for item in value:
            _check_value(item)


def _check_text(text: str) -> None:
    for char in text:
        code = ord(char)
        if code == 0:
            raise Malformed("U+0000")
        if 0xd800 <= code <= 0xdfff:
            raise Malformed("a lone surrogate")
        if 0xfdd0 <= code <= 0xfdef or code & 0xfffe == 0xfffe:
            raise Malformed("a noncharacter")


def _integer(text: str) -> int:
    if len(text) <= DIGITS_MAX and INTEGER_MIN <= (value := int(text)) <= INTEGER_MAX:
        return value
    raise Malformed("an integer out of range")


def _no_number(text: str) -> None:
    raise Malformed(f"{text[:20]} is no integer")
