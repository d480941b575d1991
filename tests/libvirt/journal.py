# SPDX-License-Identifier: GPL-2.0-or-later
"""What a libvirtd and its QEMUs have said to each other, from its log."""

from __future__ import annotations

import datetime
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple, Optional

Json = dict[str, Any]

LINE = re.compile(r"(\d+-\d+-\d+ \d+:\d+:\d+\.\d+)\+0000: (\d+): \w+ : [^ ]+ : (.*)")
GUEST = re.compile(r"Domain id=\d+ name='([^']*)' uuid=[^ ]+ is tainted: high-privileges")
NEW = re.compile(r"QEMU_MONITOR_NEW: mon=(\S+)")
MESSAGE = re.compile(r"QEMU_MONITOR_(SEND_MSG|RECV_REPLY|RECV_EVENT): mon=(\S+) \w+=(\{.*)")
KINDS = {"SEND_MSG": "command", "RECV_REPLY": "reply", "RECV_EVENT": "event"}

# What people ask, and tests, and not libvirt by itself.
FOREIGN = "human-monitor-command"


class Message(NamedTuple):
    time: float             # seconds since the epoch
    host: str
    kind: str               # one of KINDS
    body: Json


class Command(NamedTuple):
    time: float
    name: str
    arguments: Json
    answer: Any             # what it returned; None as long as there is none
    error: Optional[str]
    took: Optional[float]   # seconds


class Conversation:
    """With one QEMU process, from its begin to its end. That has no guest if libvirt has
    started it to ask what it can do."""

    def __init__(self, host: str, guest: Optional[str]) -> None:
        self.host = host
        self.guest = guest
        self.messages: list[Message] = []

    def commands(self, name: Optional[str] = None) -> list[Command]:
        replies = {one.body.get("id"): one for one in self.messages if one.kind == "reply"}
        found = []
        for one in self.messages:
            if one.kind != "command":
                continue
            said = one.body["execute"]
            if said != FOREIGN and name in (None, said):
                reply = replies.get(one.body["id"])
                body = reply.body if reply else {}
                found.append(Command(one.time, said, one.body.get("arguments", {}),
                                     body.get("return"), body.get("error", {}).get("desc"),
                                     reply.time - one.time if reply else None))
        return found

    def commands_once_started(self) -> list[Command]:
        """Without those that any guest's QEMU hears of at its start; the last one of them
        switches 'events' on."""
        commands = self.commands()
        names = [one.name for one in commands]
        return commands[names.index("query-migrate-capabilities") + 2:]

    def events(self, name: str) -> list[Json]:
        return [one.body.get("data", {}) for one in self.messages
                if one.kind == "event" and one.body["event"] == name]

    def statuses(self) -> list[str]:
        """Of the migration, as events have told them."""
        return [data["status"] for data in self.events("MIGRATION")]

    def errors(self) -> list[tuple[str, str]]:
        return [(one.name, one.error) for one in self.commands() if one.error]

    def handshake(self) -> Optional[Json]:
        """The last that libvirt was told of one."""
        told = [one.answer["handshake"] for one in self.commands("query-migrate")
                if one.answer and "handshake" in one.answer]
        return told[-1] if told else None


class Journal:
    """Of one host. The log is read as far as it has been written."""

    def __init__(self, host: str, log: Path) -> None:
        self._host = host
        self._log = log
        self._offset = 0
        self._open: dict[str, Conversation] = {}    # by the address of libvirt's monitor
        self._starting: dict[str, str] = {}         # the guest, by the thread that starts it
        self._all: list[Conversation] = []

    def conversations(self, guest: str) -> list[Conversation]:
        for time, thread, text in self._lines():
            self._read(time, thread, text)
        return [one for one in self._all if one.guest == guest]

    def _lines(self) -> Iterator[tuple[float, str, str]]:
        with open(self._log, "rb") as file:
            file.seek(self._offset)
            for line in file:
                if not line.endswith(b"\n"):
                    break
                self._offset += len(line)
                parts = LINE.match(line.decode(errors="replace"))
                if parts:
                    stamp = datetime.datetime.fromisoformat(parts[1] + "+00:00")
                    yield stamp.timestamp(), parts[2], parts[3]

    def _read(self, time: float, thread: str, text: str) -> None:
        if found := GUEST.match(text):
            # Which each guest is said to be that is run by root, before there is a monitor.
            self._starting[thread] = found[1]
        elif found := NEW.match(text):
            one = Conversation(self._host, self._starting.pop(thread, None))
            self._open[found[1]] = one
            self._all.append(one)
        elif found := MESSAGE.match(text):
            body = json.loads(found[3])
            self._open[found[2]].messages.append(
                Message(time, self._host, KINDS[found[1]], body))
