# SPDX-License-Identifier: GPL-2.0-or-later
"""What was said on the main channel, taken apart without a byte left over."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, field
from typing import Optional

from . import Incomplete, Malformed
from .frames import (ACCEPT, COMMIT, ENDS, HELLO, LAST_WORD, LOADED, VERDICTS, Frame, Header,
                     decode_frame, decode_header, digest)
from .messages import Accept, Commit, Hello, Reason, Verdict, read_reason, read_verdict
from .roles import ReturnPath
from .strictjson import Object, parse


@dataclass
class Part:
    """One side of it."""

    header: Header
    frames: list[Frame]
    rest: bytes             # what is not of the handshake

    def known(self, *kinds: int) -> Optional[Frame]:
        return next((frame for frame in self.frames if frame.type in kinds), None)

    def json(self, *kinds: int) -> Object:
        frame = self.known(*kinds)
        return parse(frame.payload) if frame else {}

    @property
    def unknown(self) -> list[Frame]:
        return [frame for frame in self.frames if not frame.is_known]

    @property
    def handshake(self) -> bytes:
        return self.header.encode() + b"".join(map(Frame.encode, self.frames))

    def up_to(self, kind: int) -> bytes:
        """The bytes from the first one to the end of that frame."""
        data = self.header.encode()
        for frame in self.frames:
            data += frame.encode()
            if frame.type == kind:
                return data
        raise Malformed(f"no frame of type {kind}")


@dataclass
class Conversation:
    """Both sides of it, and what it came to."""

    source: Part
    destination: Part
    hello: Hello
    verdict: Verdict
    commit: Optional[Commit] = None
    abort: Optional[Reason] = None
    digest: Optional[str] = field(default=None)     # as it has to be
    last_word: Optional[Reason] = None
    hands_over: bool = False            # there is LOADED on the return path

    @property
    def is_accepted(self) -> bool:
        return isinstance(self.verdict, Accept)


def decode(source: bytes, destination: bytes) -> Conversation:
    answered = _decode_part(destination, VERDICTS)
    accepted = answered.known(ACCEPT)
    first = _decode_part(source, (HELLO,))
    hello = Hello.read(first.json(HELLO))
    goes_on = accepted and hello.purpose != "check"
    asked = _decode_part(source, ENDS) if goes_on else first
    verdict = answered.known(*VERDICTS)
    assert verdict
    result = Conversation(asked, answered, hello, read_verdict(bool(accepted), verdict.payload))
    if goes_on and asked.known(COMMIT):
        result.commit = Commit.read(asked.json(COMMIT))
        result.digest = digest(asked.up_to(HELLO), answered.up_to(ACCEPT))
        late = _late(answered.rest)
        result.hands_over = any(frame.type == LOADED for frame in late)
        result.last_word = next((read_reason(frame.payload) for frame in late
                                 if frame.type == LAST_WORD), None)
    elif goes_on:
        result.abort = read_reason(asked.frames[-1].payload)
    return result


def _late(data: bytes) -> list[Frame]:
    """The frames on the return path, before its end."""
    path, found = ReturnPath(), []
    path.put(data)
    with contextlib.suppress(Incomplete):
        while isinstance(one := path.take(), Frame):
            found.append(one)
    return found


def _decode_part(data: bytes, last: tuple[int, ...]) -> Part:
    header, at = decode_header(data)
    frames: list[Frame] = []
    while not frames or frames[-1].type not in last:
        frame, at = decode_frame(data, at)
        frames.append(frame)
    return Part(header, frames, data[at:])
