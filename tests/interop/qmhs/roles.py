# SPDX-License-Identifier: GPL-2.0-or-later
"""The two sides of a conversation: bytes in, bytes out."""

from __future__ import annotations

import uuid
from typing import Optional, Union

from . import Incomplete, Malformed, grease
from .frames import (ABORT, ACCEPT, COMMIT, HELLO, NO_SESSION, REJECT, UNKNOWN_MAX, VERDICTS,
                     Frame, Header, decode_frame, decode_header, digest, message)
from .messages import Accept, Commit, Hello, Issue, Reject, Verdict, read_verdict
from .negotiation import Here, Judgement, judge, objections
from .strictjson import Object, parse


def greased(value: Object, *inner: str) -> Object:
    """With one more member, and one more in each of the members named."""
    value = {**value, **{name: {**value[name], **grease.member()}
                         for name in inner if name in value}}
    return {**value, **grease.member()}


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
        self.header, self._at = decode_header(self._data, self._at)
        if not self.header.is_main:
            raise Malformed(f"a channel '{self.header.name}', {self.header.index}")
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


class Source:
    """States: waiting; accepted; then committed, aborted or checked. Or: refused, failed."""

    def __init__(self, hello: Hello, with_grease: bool = True):
        self._hello = hello
        self._grease = with_grease
        self._inbox = Inbox()
        self._sent = b""
        self.state = "waiting"
        self.problem = ""
        self.verdict: Optional[Verdict] = None

    def begin(self) -> bytes:
        value = self._hello.write()
        frames = [message(HELLO, value)]
        if self._grease:
            value["versions"] = [*value["versions"], grease.number()]
            value["features"] = [*value.get("features", []), grease.name()]
            frames = [grease.frame(), message(HELLO, greased(value, "profile"))]
        self._sent = Header().encode() + b"".join(map(Frame.encode, frames))
        return self._sent

    @property
    def session(self) -> bytes:
        return self._inbox.header.session if self._inbox.header else NO_SESSION

    @property
    def beyond(self) -> bytes:
        return self._inbox.rest

    def receive(self, data: bytes) -> bytes:
        """What to say to it."""
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
            self.state = "aborted"
            return self._say(ABORT, {"message": self.problem})
        self.state = "committed"
        return self._say(COMMIT, Commit(digest(self._sent, self._inbox.read)).write())

    def _say(self, kind: int, value: Object) -> bytes:
        return message(kind, greased(value) if self._grease else value).encode()


class Destination:
    """States: waiting; accepted; then committed, aborted. Or: refused, checked, failed."""

    def __init__(self, here: Here, busy: bool = False, with_grease: bool = True):
        self._here = here
        self._busy = busy
        self._grease = with_grease
        self._inbox = Inbox()
        self._heard = b""
        self._sent = b""
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
            self._hear_last_word()
        return b""

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
                return self._reject("another session exists", [Issue("busy", "error")])
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
                        parameters=self.judgement.parameters, declined=self.judgement.declined)
        return self._say(ACCEPT, accept)

    def _reject(self, why: str, issues: list[Issue]) -> bytes:
        self.state, self.problem = "refused", why
        reject = Reject(message=why, version=self.judgement.version)
        reject.issues = issues
        return self._say(REJECT, reject)

    def _say(self, kind: int, verdict: Union[Accept, Reject]) -> bytes:
        if self.hello:
            verdict.features = self.judgement.features
            verdict.not_understood = self.hello.not_understood
        verdict.peer = self._here.peer
        if isinstance(verdict, Accept):
            verdict.issues = self.judgement.issues
        value = verdict.write()
        frames = [message(kind, value)]
        if self._grease:
            value["features"] = [*verdict.features, grease.name()]
            frames = [grease.frame(), message(kind, greased(value, "peer"))]
        self._sent = Header(self.session).encode() + b"".join(map(Frame.encode, frames))
        return self._sent

    def _hear_last_word(self) -> None:
        try:
            frame = self._inbox.take_frame()
            if frame.type == ABORT:
                self.state = "aborted"
                return
            if frame.type != COMMIT:
                raise Malformed(f"{frame} in place of COMMIT")
            if Commit.read(parse(frame.payload)).digest != digest(self._heard, self._sent):
                raise Malformed("another digest")
            self.state = "committed"
        except Incomplete:
            pass
        except Malformed as error:
            self.state, self.problem = "failed", str(error)
