# SPDX-License-Identifier: GPL-2.0-or-later
"""A client that sees a migration end resets its settings at once, as libvirt does.

It never stops trying. As in any migration a source refuses to set capabilities meanwhile;
nothing is refused for another reason, and nothing that it sends after it has heard of the end.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from machine import Json, Machine, until
from processes import (NO_MULTIFD, PATIENCE, PROMPT, begin, end, inet, migrate, pc_lab,
                       set_capabilities, set_channels, start_destination, start_source, wait_status)

SLOW = 64 << 10         # bytes a second: time to begin before the end
FAST = 1 << 30
ROUNDS = 5
IN_FLIGHT = 2
AFTER = 20              # commands, sent after the end, whose answers count
CHANNELS = 3
RESET_CHANNELS = 5
AS_EVER = "There's a migration process in progress"


# A capability, and what the user wants it to be, against what the migration uses.
MULTIFD_ON = ("multifd", True)
POSTCOPY_OFF = ("postcopy-ram", False)
Reset = tuple[str, bool]


def resets(reset: Reset) -> Iterator[Json]:
    commands = (("migrate-set-capabilities",
                 {"capabilities": [{"capability": reset[0], "state": reset[1]}]}),
                ("migrate-set-parameters", {"multifd-channels": RESET_CHANNELS}))
    for number, (command, arguments) in enumerate(itertools.cycle(commands)):
        yield {"execute": command, "arguments": arguments, "id": number}


class Client:
    """On a monitor of its own, where answers and events have an order."""

    def __init__(self, path: Path):
        self._path = path
        self._refused: asyncio.Task[list[str]]

    @property
    def option(self) -> tuple[str, str]:
        return "-qmp", f"unix:{self._path},server=on,wait=off"

    @contextlib.asynccontextmanager
    async def connected(self) -> AsyncIterator[Client]:
        self._reader, self._writer = await asyncio.open_unix_connection(str(self._path))
        try:
            await self._receive()
            self._send({"execute": "qmp_capabilities"})
            await self._receive()
            yield self
        finally:
            self._writer.close()

    def _send(self, message: Json) -> None:
        self._writer.write(json.dumps(message).encode() + b"\n")

    async def _receive(self) -> Json:
        message: Json = json.loads(await self._reader.readline())
        return message

    async def reset_until_after_the_end(self, reset: Reset) -> list[str]:
        """Returns why something was refused that should not have been."""
        commands = resets(reset)
        refused = []
        sent = answered = 0
        first = None
        while first is None or answered < first + AFTER:
            while sent - answered < IN_FLIGHT:
                self._send(next(commands))
                sent += 1
            message = await asyncio.wait_for(self._receive(), PATIENCE)
            if message.get("event") == "MIGRATION":
                if message["data"]["status"] in ("completed", "failed"):
                    first = sent
            elif "id" in message:
                answered += 1
                error = message.get("error", {}).get("desc", AS_EVER)
                if error != AS_EVER or (first is not None and message["id"] >= first
                                        and "error" in message):
                    refused.append(error)
        return refused


async def require_reset(machine: Machine, reset: Reset) -> None:
    """Soon: it may still be cleaning up."""
    async def are_reset() -> bool:
        capabilities = await machine.execute("query-migrate-capabilities")
        parameters = await machine.execute("query-migrate-parameters")
        return ({"capability": reset[0], "state": reset[1]} in capabilities
                and parameters["multifd-channels"] == RESET_CHANNELS)

    await until(f"{machine.name} to have what was set", PROMPT, are_reset)


@pytest.mark.parametrize("reset", [MULTIFD_ON, POSTCOPY_OFF], ids=["precopy", "postcopy"])
async def test_reset_when_it_is_completed(tmp_path: Path, reset: Reset) -> None:
    postcopy = reset == POSTCOPY_OFF
    for number in range(ROUNDS):
        clients = [Client(tmp_path / f"{side}{number}") for side in ("s", "d")]
        async with pc_lab() as lab:
            source = await start_source(lab, options=clients[0].option)
            destination, port = await start_destination(lab, options=clients[1].option)
            for machine in (source, destination):
                await set_capabilities(machine, "events")
            await source.execute("migrate-set-parameters", {"max-bandwidth": SLOW})
            await set_channels(source, CHANNELS)
            if postcopy:
                await set_capabilities(source, "postcopy-ram")
            await begin(source, inet(port), NO_MULTIFD if postcopy else None)
            await wait_status(source, "active")
            assert ("multifd" in (await source.handshake())["capabilities"]) == (not postcopy)
            async with clients[0].connected() as one, clients[1].connected() as other:
                both = asyncio.gather(one.reset_until_after_the_end(reset),
                                      other.reset_until_after_the_end(reset))
                if postcopy:
                    await source.execute("migrate-start-postcopy")
                await source.execute("migrate-set-parameters", {"max-bandwidth": FAST})
                assert not any(await both)
                assert (await end(source))["status"] == "completed"
                for machine in (source, destination):
                    await require_reset(machine, reset)


async def test_reset_when_it_has_failed(tmp_path: Path) -> None:
    """The source's guest runs on, and migrates with what was set."""
    client = Client(tmp_path / "s")
    async with pc_lab() as lab:
        source = await start_source(lab, options=client.option)
        await set_capabilities(source, "events")
        for number in range(ROUNDS):
            await set_capabilities(source, "multifd", state=False)
            await set_channels(source, CHANNELS)
            await source.execute("migrate-set-parameters", {"max-bandwidth": SLOW})
            destination, port = await start_destination(lab, f"destination{number}")
            await begin(source, inet(port))
            await wait_status(source, "active")
            async with client.connected() as resetting:
                refused = asyncio.create_task(resetting.reset_until_after_the_end(MULTIFD_ON))
                destination.kill()
                assert await refused == []
                await require_reset(source, MULTIFD_ON)
        await source.execute("migrate-set-parameters", {"max-bandwidth": FAST})
        _, port = await start_destination(lab)
        assert (await migrate(source, port))["status"] == "completed"
        assert "multifd" in (await source.handshake())["capabilities"]
        assert (await source.handshake())["parameters"]["multifd-channels"] == RESET_CHANNELS
