# SPDX-License-Identifier: GPL-2.0-or-later
"""The two sides of a conversation: bytes in, bytes out."""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from typing import Optional, Union

from . import Incomplete, Malformed, grease
from .frames import (ABORT, ACCEPT, COMMIT, HELLO, LAST_WORD, LOADED, NO_SESSION, REJECT, SHUT,
                     START, UNKNOWN_MAX, VERDICTS, Frame, Header, Message, decode_frame,
                     decode_header, decode_late, digest, message, shut)
from .messages import (NOT_STARTED, Accept, Commit, Declined, Hello, Issue, Reason, Reject,
                       Verdict, read_reason, read_verdict)
from .negotiation import (CHANNELS, LATE_ERROR, ONE_OWNER, Here, Judgement, judge, may_drop,
                          objections, other_channels)
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

    def take(self, frames: bool = True) -> Union[Frame, Message]:
        """LOADED, LAST WORD or SHUT; all else is dropped. Unless agreed on, there is no frame."""
        while True:
            one, end = decode_late(self._data)
            del self._data[:end]
            if isinstance(one, Frame) and not frames:
                raise Malformed(f"a {one} that was not agreed on")
            if isinstance(one, Message):
                if one.type == SHUT:
                    return one
            elif one.type in (LOADED, LAST_WORD):
                return one
            else:
                self._unknown += 1
                if one.is_critical or self._unknown > UNKNOWN_MAX:
                    raise Malformed(f"a {one} on the return path")

    def take_last_word(self) -> Reason:
        """All messages before it are dropped."""
        while True:
            one = self.take()
            if isinstance(one, Frame) and one.type == LAST_WORD:
                return read_reason(one.payload)


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
    When it has committed, somebody else writes the stream, and says when that was all. Then
    it is completed, or failed; or it has given the guest away, and is completed, failed or in
    doubt. Unless it has completed or is in doubt, the guest is its own.
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
        self.remarks: list[Issue] = []      # of a destination that has loaded all the same
        self._remarked = False
        self._all_sent = False
        self._loaded = False

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
        if self.state in ("committed", "given"):
            return self._hear_late(data)
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

    def all_sent(self) -> None:
        """The last byte of the stream has been written."""
        self._all_sent = True

    def keep(self) -> bool:
        """The user cancels, say. False: it is too late."""
        if self.state in ("given", "completed", "in doubt"):
            return False
        self.state, self.problem = "failed", "cancelled"
        return True

    def _has(self, feature: str) -> bool:
        return bool(self.verdict and feature in self.verdict.features
                    and feature in self._hello.features)

    def _hear_late(self, data: bytes) -> bytes:
        """The empty one is the end."""
        self._late.put(data)
        answer = b""
        try:
            while self.state in ("committed", "given"):
                answer += self._hear_one(self._late.take(
                    self._has(LATE_ERROR) or self._has(ONE_OWNER)))
        except Incomplete:
            if not data:
                self._end("the connection has ended")
        except Malformed as error:
            self._end(str(error))
        return answer

    def _hear_one(self, one: Union[Frame, Message]) -> bytes:
        if isinstance(one, Message):
            value = int.from_bytes(one.payload, "big")
            if value:
                self.state, self.problem = "failed", self.problem or f"SHUT {value}"
            else:
                self.state = "completed"
        elif one.type == LAST_WORD and self._has(LATE_ERROR):
            self._hear_last_word(read_reason(one.payload))
        elif one.type == LOADED and self._has(ONE_OWNER):
            return self._hear_loaded(read_reason(one.payload))
        else:
            raise Malformed(f"a {one} without its feature")
        return b""

    def _hear_last_word(self, word: Reason) -> None:
        if word.loaded:
            if self._remarked:
                raise Malformed("a second LAST WORD with 'loaded'")
            self._remarked = True
            self.remarks += word.issues
            return
        self.last_word, why = word, word.message or "no reason"
        if word.gives_back:
            self.state, self.problem = "failed", why
        else:
            self._end(why)

    def _hear_loaded(self, word: Reason) -> bytes:
        if not self._all_sent or self._loaded:
            raise Malformed("LOADED at the wrong time")
        self._loaded = True
        self.remarks += word.issues
        self.state = "given"
        return self._message(START, {}).encode()

    def _end(self, why: str) -> None:
        """It will hear no more of the destination."""
        self.state, self.problem = "in doubt" if self.state == "given" else "failed", why


class Destination:
    """States: waiting; accepted; then committed, aborted. Or: refused, checked, failed.

    When it has committed, somebody else loads the stream, and says when and how that was over.
    Then it has started the guest, or left it paused; or it asks, and has started it or failed.
    """

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
        self.obstacle = ""      # why it cannot start the guest, though it has been loaded
        self._stream_size = 0
        self._unknown = 0

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
        if self.state == "asking":
            return self._hear_start(bool(data))
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
        word = Reason(why, guest=NOT_STARTED)
        return self._message(LAST_WORD, word.write()).encode()

    def loaded(self, size: int, starts: bool = True, remarks: Sequence[Issue] = ()) -> bytes:
        """So many bytes were the stream. Whether it would start the guest by itself."""
        assert self.state == "committed"
        self._stream_size = size
        word = Reason(issues=list(remarks))
        if not starts or ONE_OWNER not in self.judgement.features:
            self.state = "started" if starts else "paused"
            word.loaded = True
            said = LATE_ERROR in self.judgement.features and remarks
            return (self._message(LAST_WORD, word.write()).encode() if said else b"") + (
                shut(0).encode())
        self.state = "asking"
        return self._message(LOADED, word.write()).encode() + self._hear_start(True)

    def _hear_start(self, more: bool) -> bytes:
        """What to say then. It starts the guest at once, so that nobody hears of it too early."""
        try:
            while True:
                frame, end = decode_frame(self._inbox.rest, self._stream_size)
                self._stream_size = end
                if frame.type == START:
                    return self._start()
                if frame.type == ABORT:
                    return self._cannot_start(read_reason(frame.payload).message or "aborted")
                self._unknown += 1
                if frame.is_critical or self._unknown > UNKNOWN_MAX:
                    return self._cannot_start(f"a {frame} in place of START")
        except Incomplete:
            return b"" if more else self._cannot_start("the source is gone")
        except Malformed as error:
            return self._cannot_start(str(error))

    def _start(self) -> bytes:
        if self.obstacle:
            return self._cannot_start(self.obstacle)
        self.state = "started"
        return shut(0).encode()

    def _cannot_start(self, why: str) -> bytes:
        """It never will, and gives the guest back."""
        return self.cannot_go_on(why) + shut(1).encode()


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
