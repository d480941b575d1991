# SPDX-License-Identifier: GPL-2.0-or-later
"""A destination that wants TLS: strangers, and credentials that do not fit."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
from pathlib import Path

import pytest
import strangers
from keys import make_keys
from machine import Machine
from processes import (NO_MULTIFD, PATIENCE, TLS_CREDS, Watch, begin, channels, inet, pc_lab,
                       require_good_migration, require_listening, require_refused,
                       require_success, start_destination, start_source)
from strangers import (CONNECTIONS_MAX, CROWD, IDLE, MEMORY, Attack, join, join_tls,
                       require_only_the_last, tls_hello, under)
from wire import HELLO, Peer, frame, header, hello

# A migration's own connections, each with a thread that has something open.
MARGIN = 16


async def idle_in_tls(port: int, stack: contextlib.AsyncExitStack, crowd: int) -> None:
    for _ in range(crowd):
        await join_tls(port, stack)


async def header_in_tls(port: int, stack: contextlib.AsyncExitStack, crowd: int) -> None:
    for _ in range(crowd):
        peer = await join_tls(port, stack)
        await peer.send(header())


ATTACKS: list[Attack] = [
    strangers.connect_and_close, strangers.garbage, strangers.http, strangers.plain_hello,
    strangers.half_of_tls, strangers.idle, strangers.one_byte_at_a_time, idle_in_tls,
    header_in_tls]


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.__name__)
@pytest.mark.parametrize("multifd", [False, True], ids=["alone", "multifd"])
async def test_strangers_disturb_nobody(attack: Attack, multifd: bool) -> None:
    async with pc_lab() as lab:
        source = await start_source(lab, tls=True)
        destination, port = await start_destination(lab, tls=True)
        async with Watch(destination, MEMORY, CONNECTIONS_MAX + MARGIN):
            async with under(attack, port):
                await require_good_migration(source, destination, port,
                                             None if multifd else NO_MULTIFD)


async def test_64_connections_at_most() -> None:
    """Those whose TLS is not over are counted as well."""
    async with pc_lab() as lab:
        destination, port = await start_destination(lab, tls=True)
        # The one that comes meets those that go: TLS lets them go a little later.
        async with (Watch(destination, MEMORY, CONNECTIONS_MAX + 4),
                    contextlib.AsyncExitStack() as stack):
            peers = [await join(port, stack) for _ in range(IDLE)]
            await require_only_the_last(peers)
        await require_listening(destination)


async def test_strangers_leave_nothing_behind() -> None:
    """Descriptors of those who are refused, or go by themselves, are closed."""
    async with pc_lab() as lab:
        destination, port = await start_destination(lab, tls=True)
        async with Watch(destination, more_fds=MARGIN):
            for words in (b"", b"GET / HTTP/1.1\r\n\r\n", header() + frame(HELLO, hello()),
                          tls_hello()[:100]):
                for _ in range(CROWD):
                    peer = await Peer.connect(port)
                    with contextlib.suppress(ConnectionError):
                        await peer.send(words)
                        peer.finish()
                    await peer.ended(1)
                    peer.close()
        await require_listening(destination)


async def test_strangers_are_not_reported_for_ever() -> None:
    """Whoever does not get through TLS is worth a line, once a second."""
    async with pc_lab() as lab:
        source = await start_source(lab, tls=True)
        destination, port = await start_destination(lab, tls=True)
        loop = asyncio.get_running_loop()
        start, count = loop.time(), 0
        while loop.time() < start + 2.5 or count < 2 * CROWD:
            peer = await Peer.connect(port)
            with contextlib.suppress(ConnectionError):
                await peer.send(b"GET / HTTP/1.1\r\n\r\n")
                await peer.read_to_end(PATIENCE)
            peer.close()
            count += 1
        lines = destination.errors.splitlines()
        assert 2 <= len(lines) <= loop.time() - start + 1, lines
        assert all("TLS" in line for line in lines), lines
        await require_good_migration(source, destination, port)


@pytest.mark.parametrize("credentials", ["gone", "for-clients"])
async def test_credentials_that_are_no_good(credentials: str) -> None:
    """A mistake of the destination's user, who can correct it."""
    async with pc_lab() as lab:
        source = await start_source(lab, tls=True)
        destination, port = await start_destination(lab, tls=True)
        await destination.execute("object-add", {"qom-type": "tls-creds-anon",
                                                 "id": "for-clients", "endpoint": "client"})
        await destination.execute("migrate-set-parameters", {"tls-creds": credentials})
        for _ in range(3):
            await begin(source, inet(port))
            await require_refused(source, "TLS")
            await require_listening(destination)
        await destination.execute("migrate-set-parameters", {"tls-creds": TLS_CREDS})
        await require_good_migration(source, destination, port)


async def set_keys(machine: Machine, endpoint: str, keys: Path) -> None:
    await machine.execute("object-add", {"qom-type": "tls-creds-x509", "id": "keys",
                                         "dir": str(keys), "endpoint": endpoint})
    await machine.execute("migrate-set-parameters", {"tls-creds": "keys"})


@pytest.mark.parametrize("fault, words", [
    ("none", ""),
    ("another host", "the destination's TLS credentials are not accepted here: Certificate"
                     " does not match the hostname"),
    ("another authority", "the destination's TLS credentials are not accepted here: "),
    ("no certificate", "does the destination accept this side's TLS credentials"),
    ("denied", "does the destination accept this side's TLS credentials"),
])
async def test_certificates(tmp_path: Path, fault: str, words: str) -> None:
    """Whoever does not like the other one: the source's user can read what to look at."""
    good = make_keys(tmp_path / "good")
    server, client = good, good
    if fault == "another host":
        server = make_keys(tmp_path / "server", "DNS:elsewhere.example")
        for name in ("ca-cert.pem", "client-cert.pem", "client-key.pem"):
            shutil.copy(server / name, good / name)
    elif fault == "another authority":
        server = make_keys(tmp_path / "server")
    elif fault == "no certificate":
        client = tmp_path / "client"
        client.mkdir()
        shutil.copy(good / "ca-cert.pem", client)
    async with pc_lab() as lab:
        source = await start_source(lab)
        destination = await lab.start("destination", "-incoming", "defer")
        await set_keys(source, "client", client)
        await set_keys(destination, "server", server)
        if fault == "denied":
            await destination.execute("object-add", {"qom-type": "authz-simple", "id": "nobody",
                                                     "identity": "CN=nobody"})
            await destination.execute("migrate-set-parameters", {"tls-authz": "nobody"})
        await destination.execute("migrate-incoming", channels("handshake", inet(0)))
        port = int((await destination.migration())["socket-address"][0]["port"])
        await begin(source, inet(port))
        if words:
            await require_refused(source, words)
            await require_listening(destination)
        else:
            await require_success(source, destination)
