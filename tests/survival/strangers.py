# SPDX-License-Identifier: GPL-2.0-or-later
"""Who else may connect to a destination that listens."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

from machine import LOOPBACK
from processes import MIB, PATIENCE
from wire import FRAME_MAX, HELLO, HELLO_MAX, REJECT, STREAM, Peer, frame, header, hello, prefix

CONNECTIONS_MAX = 64
IDLE = 300
CROWD = 80              # more than there is room for
FEW = 20                # less than that
# Each of those who have a place may have sent a whole HELLO. The rest is for one
# that is being parsed, a migration's threads, and what the allocator keeps.
MEMORY = CONNECTIONS_MAX * HELLO_MAX + 64 * MIB

# The group of RFC 7919
FFDHE2048 = """-----BEGIN DH PARAMETERS-----
MIIBCAKCAQEA//////////+t+FRYortKmq/cViAnPTzx2LnFg84tNpWp4TZBFGQz
+8yTnc4kmz75fS/jY2MMddj2gbICrsRhetPfHtXV/WVhJDP1H18GbtCFY2VVPe0a
87VXE15/V8k1mE8McODmi3fipona8+/och3xWKE2rec1MKzKT0g6eXq8CrGCsyT7
YdEIqUuyyOP7uWrat2DX9GgdT0Kj3jlN9K5W7edjcrsZCwenyO4KbXCeAvzhzffi
7MA0BM0oNC9hkXL+nOmFg/+OTxIy7vKBg8P+OxtMb61zO7X8vC7CIAXFjvGDfRaD
ssbzSibBsu/6iGtCOGEoXJf//////////wIBAg==
-----END DH PARAMETERS-----
"""

Attack = Callable[[int, contextlib.AsyncExitStack, int], Awaitable[None]]


async def join(port: int, stack: contextlib.AsyncExitStack) -> Peer:
    """One more connection, closed at the end of the test."""
    peer = await Peer.connect(port)
    stack.callback(peer.close)
    return peer


async def require_only_the_last(peers: list[Peer]) -> None:
    """Of more than there is room for, the oldest go, soon if the machine is not busy."""
    assert all([await peer.ended(PATIENCE) for peer in peers[:-CONNECTIONS_MAX]])
    assert not any([await peer.ended(0.002) for peer in peers[-CONNECTIONS_MAX:]])


async def join_tls(port: int, stack: contextlib.AsyncExitStack) -> Peer:
    """Somebody who completes TLS."""
    peer = Peer(*await asyncio.open_connection(LOOPBACK, port, ssl=anonymous()))
    stack.callback(peer.close)
    return peer


async def say(port: int, stack: contextlib.AsyncExitStack, *words: bytes) -> Peer:
    """A stranger who says something, and does not mind to be cut off."""
    peer = await join(port, stack)
    with contextlib.suppress(ConnectionError):
        for word in words:
            await peer.send(word)
    return peer


async def connect_and_close(port: int, _stack: contextlib.AsyncExitStack, crowd: int) -> None:
    for number in range(crowd):
        peer = await Peer.connect(port)
        if number % 2:
            peer.close()
        else:
            peer.abort()


async def garbage(port: int, stack: contextlib.AsyncExitStack, _: int) -> None:
    for size in (1, 4, 7, 8, 9, 64, 4096, 1 << 20):
        await say(port, stack, os.urandom(size))


async def http(port: int, stack: contextlib.AsyncExitStack, _: int) -> None:
    for verb in (b"GET", b"POST", b"HEAD", b"OPTIONS"):
        await say(port, stack, verb + b" / HTTP/1.1\r\nHost: destination\r\n\r\n")


def anonymous() -> ssl.SSLContext:
    """For TLS with the credentials that the machines of these tests have."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    context.set_ciphers("aNULL:@SECLEVEL=0")
    return context


def anonymous_server(directory: Path) -> ssl.SSLContext:
    """The other end of that."""
    group = directory / "dh.pem"
    group.write_text(FFDHE2048)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    context.set_ciphers("ADH:@SECLEVEL=0")
    context.load_dh_params(str(group))
    return context


def tls_hello() -> bytes:
    """What a TLS client begins with."""
    outgoing = ssl.MemoryBIO()
    client = anonymous().wrap_bio(ssl.MemoryBIO(), outgoing)
    with contextlib.suppress(ssl.SSLWantReadError):
        client.do_handshake()
    return outgoing.read()


async def tls(port: int, stack: contextlib.AsyncExitStack, _: int) -> None:
    for _ in range(4):
        await say(port, stack, tls_hello())


async def legacy_stream(port: int, stack: contextlib.AsyncExitStack, _: int) -> None:
    await say(port, stack, STREAM[:4])
    await say(port, stack, STREAM)
    await say(port, stack, STREAM + os.urandom(1 << 20))


async def header_and_silence(port: int, stack: contextlib.AsyncExitStack, crowd: int) -> None:
    for _ in range(crowd):
        await say(port, stack, header())


async def channel_of_nobody(port: int, stack: contextlib.AsyncExitStack, _: int) -> None:
    for name in ("multifd", "preempt", "main", "else"):
        await say(port, stack, header(name, 1, os.urandom(16)))


async def too_long(port: int, stack: contextlib.AsyncExitStack, _: int) -> None:
    long_header = bytearray(header())
    long_header[6:8] = b"\xff\xff"
    await say(port, stack, long_header + bytes(65535))
    for kind, length in ((HELLO, HELLO_MAX + 1), (HELLO, 0xffffffff), (HELLO, 0x80000000),
                         (REJECT, FRAME_MAX + 1), (0x7777, FRAME_MAX + 1)):
        await say(port, stack, header() + prefix(kind, length) + bytes(FRAME_MAX))
        peer = await join(port, stack)
        await peer.send(header() + prefix(kind, length))
        await peer.read_header()
        _, answer = await peer.read_frame(REJECT)
        assert "bytes" in answer["message"]


async def nested_json(port: int, stack: contextlib.AsyncExitStack, _: int) -> None:
    for text in (b"[" * HELLO_MAX, b'{"a":' * (HELLO_MAX // 5),
                 b'{"a":' + b"[" * 17 + b"]" * 17 + b"}"):
        peer = await say(port, stack, header() + frame(HELLO, text))
        await peer.read_header()
        _, answer = await peer.read_frame(REJECT)
        assert answer["message"]


async def large_hellos(port: int, stack: contextlib.AsyncExitStack, crowd: int) -> None:
    """All at once, and each as expensive as its length allows."""
    empty = b"{}," * 8000
    refused = json.dumps(hello() | {"versions": [2]}).encode().rstrip(b"}")
    text = (refused + b', "x": [' + empty + b"0]}").ljust(HELLO_MAX)
    await asyncio.gather(*(say(port, stack, header() + frame(HELLO, text)) for _ in range(crowd)))


async def plain_hello(port: int, stack: contextlib.AsyncExitStack, crowd: int) -> None:
    for _ in range(crowd):
        await say(port, stack, header() + frame(HELLO, hello()))


async def half_of_tls(port: int, stack: contextlib.AsyncExitStack, crowd: int) -> None:
    for _ in range(crowd):
        await say(port, stack, tls_hello()[:100])


async def idle(port: int, stack: contextlib.AsyncExitStack, crowd: int) -> None:
    for _ in range(crowd):
        await join(port, stack)


async def one_byte_at_a_time(port: int, stack: contextlib.AsyncExitStack, crowd: int) -> None:
    async def trickle() -> None:
        peer = await join(port, stack)
        with contextlib.suppress(ConnectionError):
            await peer.send_slowly(header() + frame(HELLO, {"versions": [2], "required": [],
                                                            "purpose": "migrate"}), 0.002)

    await asyncio.gather(*(trickle() for _ in range(crowd)))


@contextlib.asynccontextmanager
async def under(attack: Attack, port: int) -> AsyncIterator[None]:
    """A crowd has attacked, and keeps open what it can; some more come meanwhile.

    They are so few that they push out others of their kind, and not somebody
    whose first bytes are still on their way.
    """
    async def go_on() -> None:
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            await attack(port, stack, FEW)      # nobody listens after the migration

    async with contextlib.AsyncExitStack() as stack:
        await attack(port, stack, IDLE if attack is idle else CROWD)
        meanwhile = asyncio.create_task(go_on())
        await asyncio.sleep(0)
        yield
        await meanwhile
