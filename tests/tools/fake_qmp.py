# SPDX-License-Identifier: GPL-2.0-or-later
"""A QMP server that answers what a test wants, whatever it is asked."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, Optional, Union

Json = dict[str, Any]
Answer = Union[Json, bytes, None]

GREETING = (b'{"QMP": {"version": {"qemu": {"micro": 0, "minor": 0, "major": 10}, "package": ""},'
            b' "capabilities": ["oob"]}}\r\n')

CLOSE = b""                         # instead of an answer
HANG = None


def error(text: str, kind: str = "GenericError") -> Json:
    return {"error": {"class": kind, "desc": text}}


def returned(value: Any) -> Json:
    return {"return": value}


async def messages(reader: asyncio.StreamReader) -> AsyncIterator[Json]:
    """QMP does not ask for anything between them, such as an end of line."""
    text = b""
    while data := await reader.read(1 << 20):
        text += data
        with contextlib.suppress(ValueError):       # it is not complete yet
            while text.strip():
                message, end = json.JSONDecoder().raw_decode(text.decode().lstrip())
                text = text.decode().lstrip()[end:].encode()
                yield message


class FakeQmp:
    """Serves any number of clients, until the end of an async with.

    Each command has its answers, which are given one after the other; the last
    one goes on for ever. `after` has others for when a command has come. An answer is a message without id, bytes, CLOSE or HANG;
    bytes without an end of line end the connection.
    """

    def __init__(self, answers: dict[str, list[Answer]], greeting: Answer = GREETING,
                 after: Optional[dict[str, dict[str, list[Answer]]]] = None):
        self._after = after or {}
        self._answers: dict[str, list[Answer]] = {
            "qmp_capabilities": [returned({})],
            **{command: list(given) for command, given in answers.items()}}
        self._greeting = greeting
        self._server: Optional[asyncio.Server] = None
        self._clients: set[asyncio.StreamWriter] = set()
        self._asked: list[tuple[str, Json]] = []
        self.address = ""

    async def listen(self, path: Optional[Path] = None) -> FakeQmp:
        """On TCP, if there is no path."""
        if path:
            self._server = await asyncio.start_unix_server(self._serve, path)
            self.address = str(path)
        else:
            self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
            self.address = f"127.0.0.1:{self._server.sockets[0].getsockname()[1]}"
        return self

    async def __aenter__(self) -> FakeQmp:
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._server
        self._server.close()
        for client in self._clients:
            client.close()

    @property
    def asked(self) -> list[str]:
        """All commands but the one that every client begins with."""
        return [command for command, _ in self._asked if command != "qmp_capabilities"]

    def arguments(self, command: str) -> Json:
        """Of the only time that it came."""
        found = [arguments for asked, arguments in self._asked if asked == command]
        assert len(found) == 1, self._asked
        return found[0]

    async def wait_asked(self, command: str, times: int = 1) -> None:
        while self.asked.count(command) < times:
            await asyncio.sleep(0.01)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._clients.add(writer)
        try:
            if self._say(writer, self._greeting):
                async for message in messages(reader):
                    command = message["execute"]
                    self._asked.append((command, message.get("arguments", {})))
                    self._answers.update(self._after.get(command, {}))
                    if not self._say(writer, self._next(command), message.get("id")):
                        break
        except ConnectionError:
            pass
        finally:
            writer.close()
            self._clients.discard(writer)

    def _next(self, command: str) -> Answer:
        answers = self._answers.get(command)
        if answers is None:
            return error(f"The command {command} has not been found", "CommandNotFound")
        return answers[0] if len(answers) == 1 else answers.pop(0)

    def _say(self, writer: asyncio.StreamWriter, answer: Answer, number: Any = None) -> bool:
        """Whether the conversation goes on."""
        if answer is HANG:
            return True
        if isinstance(answer, dict):
            answer = {**answer, "id": number} if number is not None else answer
            answer = json.dumps(answer).encode() + b"\r\n"
        writer.write(answer)
        return answer.endswith(b"\n")
