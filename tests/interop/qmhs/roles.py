# SPDX-License-Identifier: GPL-2.0-or-later
"""The two sides of a conversation: bytes in, bytes out."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from typing import Optional

from . import Incomplete, Malformed, grease
from .frames import (ABORT, ACCEPT, COMMIT, HELLO, LAST_WORD, NO_SESSION, REJECT, UNKNOWN_MAX,
                     VERDICTS, Frame, Header, decode_frame, decode_header, decode_late, digest,
                     message)
from .messages import (NOT_STARTED, Accept, Commit, Declined, Hello, Issue, Reason, Reject,
                       Verdict, read_reason, read_verdict)
from .negotiation import (CHANNELS, LATE_ERROR, Here, Judgement, judge, may_drop, objections,
                          other_channels)
from .strictjson import Object, parse

Place = tuple[str, int]             # name and index of a channel
MAIN: Place = ("main", 0)
PREEMPT: Place = ("preempt", 0)


class Inbox:
    """What has come from the other side. It tells where a message ends."""

    def __init__(self) -> None:
        self._data = bytearray()
        self._at = 0
        self._unknown = 0
        self.header: Optional[Header] = None

    def put(self, data: bytes) -> None:
        self._data += data

    @property
    def read(self) -> bytes:
        """All bytes up to the end of the last message."""
        return bytes(self._data[:self._at])

    @property
    def rest(self) -> bytes:
        """What does not belong to the handshake, once that is over."""
        return bytes(self._data[self._at:])

    @property
    def everything(self) -> bytes:
        return bytes(self._data)

    def take_header(self) -> Header:
        """Of the main channel."""
        header = self.take_any_header()
        if not header.is_main:
            raise Malformed(f"a channel '{header.name}', {header.index}")
        return header

    def take_any_header(self) -> Header:
        self.header, self._at = decode_header(self._data, self._at)
        return self.header

    def take_frame(self) -> Frame:
        """The next one of a known type."""
        while True:
            frame, end = decode_frame(self._data, self._at)
            if not frame.is_known:
                self._unknown += 1
                if frame.is_critical or self._unknown > UNKNOWN_MAX:
                    raise Malformed(f"a {frame}")
            self._at = end
            if frame.is_known:
                return frame


class ReturnPath:
    """What a destination says after COMMIT."""

    def __init__(self) -> None:
        self._data = bytearray()
        self._unknown = 0

    def put(self, data: bytes) -> None:
        self._data += data

    def take_last_word(self) -> Reason:
        """All messages before it are dropped."""
        while True:
            frame, end = decode_late(self._data)
            del self._data[:end]
            if frame and frame.type == LAST_WORD:
                return read_reason(frame.payload)
            if frame:
                self._unknown += 1
                if frame.is_critical or self._unknown > UNKNOWN_MAX:
                    raise Malformed(f"a {frame} on the return path")


class Opening:
    """One of a source's other channels. States: waiting; then open or failed."""

    def __init__(self, header: Header):
        self._header = header
        self._inbox = Inbox()
        self.state = "waiting"

    def begin(self) -> bytes:
        return self._header.encode()

    @property
    def beyond(self) -> bytes:
        return self._inbox.rest

    def receive(self, data: bytes) -> None:
        """The empty one is the end."""
        self._inbox.put(data)
        try:
            header = self._inbox.take_any_header()
            fits = (header.name, header.index, header.session) == (
                self._header.name, self._header.index, self._header.session)
            self.state = "open" if fits else "failed"
        except Incomplete:
            self.state = "waiting" if data else "failed"
        except Malformed:
            self.state = "failed"


class Source:
    """States: waiting; opening; then committed, aborted or checked. Or: refused, failed.

    While it is opening, somebody else has to open `channels`, and says how that went.
    """

    def __init__(self, hello: Hello, with_grease: bool = True):
        self._hello = hello
        self._grease = with_grease
        self._inbox = Inbox()
        self._late = ReturnPath()
        self._sent = b""
        self.state = "waiting"
        self.problem = ""
        self.verdict: Optional[Verdict] = None
        self.channels: list[Place] = []
        self.without: list[Declined] = []
        self.last_word: Optional[Reason] = None

    def begin(self) -> bytes:
        frames = [self._message(HELLO, self._hello.write())]
        if self._grease:
            frames.insert(0, grease.frame())
        self._sent = Header().encode() + b"".join(map(Frame.encode, frames))
        return self._sent

    @property
    def session(self) -> bytes:
        return self._inbox.header.session if self._inbox.header else NO_SESSION

    @property
    def heard(self) -> bytes:
        """Up to the verdict."""
        return self._inbox.read

    @property
    def beyond(self) -> bytes:
        return self._inbox.rest

    def receive(self, data: bytes) -> bytes:
        """What to say to it."""
        if self.state == "committed":
            self._hear_late(data)
            return b""
        self._inbox.put(data)
        if self.state != "waiting":
            return b""
        try:
            if not self._inbox.header:
                self._inbox.take_header()
            frame = self._inbox.take_frame()
            if frame.type not in VERDICTS:
                raise Malformed(f"{frame} in place of a verdict")
            self.verdict = read_verdict(frame.type == ACCEPT, frame.payload)
        except Incomplete:
            return b""
        except Malformed as error:
            self.state, self.problem = "failed", str(error)
            return b""
        return self._answer(self.verdict)

    def _answer(self, verdict: Verdict) -> bytes:
        if not isinstance(verdict, Accept):
            self.state = "refused"
            return b""
        problems = objections(self._hello, self.session, verdict)
        self.problem = "; ".join(problems)
        if self._hello.purpose == "check":
            self.state = "failed" if problems else "checked"
            return b""
        if problems:
            return self._abort()
        self.channels = other_channels(verdict.capabilities, verdict.parameters)
        self.state = "opening"
        return b"" if self.channels else self.opened({})

    def opening(self, place: Place) -> Opening:
        return Opening(Header(self.session, *place))

    def opened(self, failed: Mapping[Place, str]) -> bytes:
        """All channels have been answered but for these. What to say then."""
        assert self.state == "opening" and self.verdict
        for capability, name in CHANNELS.items():
            reasons = [reason for place, reason in failed.items() if place[0] == name]
            if reasons and capability in self._hello.profile.required_capabilities:
                self.problem = reasons[0]
                return self._abort()
            if reasons:
                self.without.append(Declined(capability, reasons[0]))
        self.state = "committed"
        commit = Commit(digest(self._sent, self._inbox.read), self.without)
        return self._message(COMMIT, commit.write()).encode()

    def _abort(self) -> bytes:
        self.state = "aborted"
        return self._message(ABORT, Reason(self.problem).write()).encode()

    def _message(self, kind: int, value: Object) -> Frame:
        return message(kind, grease.greased(value) if self._grease else value)

    def _hear_late(self, data: bytes) -> None:
        self._late.put(data)
        if not self.verdict or LATE_ERROR not in self.verdict.features or (
                LATE_ERROR not in self._hello.features):
            return
        try:
            self.last_word = self._late.take_last_word()
            self.state, self.problem = "failed", self.last_word.message or "no reason"
        except Incomplete:
            pass
        except Malformed as error:
            self.state, self.problem = "failed", str(error)


class Destination:
    """States: waiting; accepted; then committed, aborted. Or: refused, checked, failed."""

    def __init__(self, here: Here, busy: bool = False, with_grease: bool = True):
        self._here = here
        self._busy = busy
        self._grease = with_grease
        self._inbox = Inbox()
        self._heard = b""
        self._sent = b""
        self._come: set[Place] = set()
        self.state = "waiting"
        self.problem = ""
        self.session = uuid.uuid4().bytes
        self.hello: Optional[Hello] = None
        self.judgement = Judgement()

    @property
    def stream(self) -> bytes:
        return self._inbox.rest if self.state == "committed" else b""

    def receive(self, data: bytes) -> bytes:
        """What to say to it."""
        self._inbox.put(data)
        if self.state == "waiting":
            return self._hear_hello()
        if self.state == "accepted":
            return self._hear_end()
        return b""

    @property
    def channels(self) -> list[Place]:
        return other_channels(self.judgement.capabilities, self.judgement.parameters)

    def take(self, header: Header) -> bytes:
        """What to say on another channel that begins like this; nothing: it is dropped."""
        place = header.name, header.index
        if (self.state != "accepted" or header.session != self.session
                or place not in self.channels or place in self._come):
            return b""
        self._come.add(place)
        return Header(self.session, *place).encode()

    def _hear_hello(self) -> bytes:
        try:
            if not self._inbox.header:
                self._inbox.take_header()
        except Incomplete:
            return b""
        except Malformed as error:
            self.state, self.problem = "failed", str(error)
            return b""
        try:
            frame = self._inbox.take_frame()
            if frame.type != HELLO:
                raise Malformed(f"{frame} in place of HELLO")
            if self._busy:
                return self._reject("another session exists",
                                    [Issue("busy", "error", "another session exists")])
            self.hello = Hello.read(parse(frame.payload))
        except Incomplete:
            return b""
        except Malformed as error:
            return self._reject(str(error), [])
        return self._answer(self.hello)

    def _answer(self, hello: Hello) -> bytes:
        self.judgement = judge(hello, self._here)
        if not self.judgement.is_accepted:
            return self._reject(f"{len(self.judgement.issues)} problems", self.judgement.issues)
        self.state = "checked" if hello.purpose == "check" else "accepted"
        self._heard = self._inbox.read
        accept = Accept(version=self.judgement.version, capabilities=self.judgement.capabilities,
                        parameters=self.judgement.parameters, declined=self.judgement.declined,
                        issues=self.judgement.issues)
        return self._say(ACCEPT, accept)

    def _reject(self, why: str, issues: list[Issue]) -> bytes:
        self.state, self.problem = "refused", why
        return self._say(REJECT, Reject(message=why, version=self.judgement.version,
                                        issues=issues))

    def _say(self, kind: int, verdict: Verdict) -> bytes:
        if self.hello:
            verdict.features = self.judgement.features
            verdict.not_understood = self.hello.not_understood
        verdict.peer = self._here.peer
        frames = [self._message(kind, verdict.write())]
        if self._grease:
            frames.insert(0, grease.frame())
        self._sent = Header(self.session).encode() + b"".join(map(Frame.encode, frames))
        return self._sent

    def _message(self, kind: int, value: Object) -> Frame:
        return message(kind, grease.greased(value) if self._grease else value)

    def _hear_end(self) -> bytes:
        try:
            frame = self._inbox.take_frame()
            if frame.type == ABORT:
                self.state, self.problem = "aborted", read_reason(frame.payload).message or ""
                return b""
            if frame.type != COMMIT:
                raise Malformed(f"{frame} in place of COMMIT")
        except Incomplete:
            return b""
        except Malformed as error:
            self.state, self.problem = "failed", str(error)
            return b""
        try:
            self._take_commit(Commit.read(parse(frame.payload)))
        except Malformed as error:
            return self.cannot_go_on(str(error))
        self.state = "committed"
        return b""

    def _take_commit(self, commit: Commit) -> None:
        assert self.hello
        judgement = self.judgement
        if commit.digest != digest(self._heard, self._sent):
            raise Malformed("another digest")
        if not may_drop(self.hello, judgement.capabilities, commit.without):
            raise Malformed("it leaves out what it may not")
        dropped = [item.capability for item in commit.without]
        judgement.declined += commit.without
        judgement.capabilities = [name for name in judgement.capabilities if name not in dropped]
        judgement.parameters = [item for item in judgement.parameters
                                if item.capability not in dropped]
        missing = set(self.channels) - self._come
        if missing:
            raise Malformed(f"{len(missing)} channels are missing")

    def cannot_go_on(self, why: str) -> bytes:
        """After COMMIT. What to say: a last word, if the source understands it."""
        self.state, self.problem = "failed", why
        if LATE_ERROR not in self.judgement.features:
            return b""
        word = Reason(why, self.judgement.issues, guest=NOT_STARTED)
        return self._message(LAST_WORD, word.write()).encode()


class Paused:
    """A destination that waits for its migration to go on: "Channels after a pause"."""

    def __init__(self, session: bytes, preempt: bool = False):
        self._session = session
        self._preempt = preempt
        self._wanted = [MAIN]

    @property
    def is_paused(self) -> bool:
        return MAIN in self._wanted

    def take(self, header: Header) -> Optional[bytes]:
        """What it answers; without an answer it closes, and so it does after one of no session."""
        if header.session != self._session:
            return Header(NO_SESSION, header.name, header.index).encode()
        place = (header.name, header.index)
        if place not in self._wanted:
            return None
        self._wanted = [PREEMPT] if place == MAIN and self._preempt else []
        return Header(self._session, *place).encode()

    def broken(self) -> None:
        """The main channel has ended."""
        self._wanted = [MAIN]
