# SPDX-License-Identifier: GPL-2.0-or-later
"""A postcopy migration that was interrupted goes on at its own destination."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import re
import socket
import time
import uuid
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import NamedTuple, Optional

import pytest
from machine import LOOPBACK, Json, Lab, Machine, NotSeen, until
from processes import (EARLY, LATE, PATIENCE, PROMPT, UNDER, begin, channels, filled_memory, inet,
                       pc_lab, require_success, set_capabilities, start_destination, start_source,
                       wait_status)
from relay import SPEAKERS, Line, Relay
from strangers import join_tls
from test_dead_lines import OURS as KEPT_ALIVE
from test_dead_lines import kept_alive
from test_own_faults import make_library
from wire import (HEADER_SIZE, HELLO, STREAM, FakeDestination, Header,
                  Peer, frame, frames, header, hello)

SLOW = 4 << 10          # bytes a second: it must not be over before it is interrupted
SILENCE = 5.0           # of a connection that a paused destination bears
READERS = 8             # how many of them
ANSWER = 30.0           # how long a source waits
QUICK = 1 << 23         # bytes a second

RESUME = "resume-header"
PAUSED = "postcopy-paused"
ANOTHER = "this destination is paused in another migration"
NOBODY = "is it paused in this very migration"
LOST = "the destination ended the connection after "


class Pair(NamedTuple):
    """The two sides of a migration."""

    source: Machine
    destination: Machine

    async def session(self) -> bytes:
        """As both show it."""
        here, there = [(await one.handshake())["session"] for one in self]
        assert here == there
        return uuid.UUID(here).bytes

    async def require_paused(self) -> None:
        assert [(await one.migration())["status"] for one in self] == [PAUSED, PAUSED]

    async def require_recovered(self) -> None:
        """Waits for the end of a migration that goes on."""
        await self.source.execute("migrate-set-parameters", {"max-postcopy-bandwidth": 0})
        await require_success(*self)


async def begin_postcopy(source: Machine, port: int, *capabilities: str) -> None:
    await set_capabilities(source, "postcopy-ram", *capabilities)
    await source.execute("migrate-set-parameters", {"max-bandwidth": SLOW,
                                                    "max-postcopy-bandwidth": SLOW})
    await begin(source, inet(port), {"optional-capabilities": []})
    await wait_status(source, "active")
    await source.execute("migrate-start-postcopy")
    # Without a limit, what is sent in one turn could be all that there is.
    await source.execute("migrate-set-parameters", {"max-bandwidth": QUICK})
    await wait_status(source, "postcopy-active")


async def interrupted(lab: Lab, *capabilities: str, name: str = "", tls: bool = False,
                      treatment=Line.carry_both, under: Sequence[str] = UNDER) -> Pair:
    """A migration that has lost its connections."""
    with filled_memory() as memory:
        source = await start_source(lab, f"source{name}", tls, memory)
    # Threads have names.
    destination, port = await start_destination(lab, f"destination{name}", tls, under=under,
                                                options=("-name", "debug-threads=on"))
    pair = Pair(source, destination)
    async with Relay(port, treatment) as relay:
        await begin_postcopy(source, relay.port, *capabilities)
        await interrupt(pair, relay)
    return pair


async def interrupt(pair: Pair, relay: Relay) -> None:
    """Both have to be in postcopy, or it is an error that nobody recovers from."""
    for one in pair:
        await wait_status(one, "postcopy-active")
    await relay.hang_up()
    for one in pair:
        await wait_status(one, PAUSED)


async def listen_again(destination: Machine) -> int:
    """In the monitor's own thread."""
    await destination.execute("migrate-recover", {"uri": f"tcp:{LOOPBACK}:0"}, oob=True)
    return int((await destination.migration())["socket-address"][0]["port"])


async def resume(source: Machine, port: int) -> None:
    await source.execute("migrate", {"uri": f"tcp:{LOOPBACK}:{port}", "resume": True})


async def require_turned_away(source: Machine, words: str, limit: float = PATIENCE) -> None:
    """Back where it was, and it says why."""
    async def back() -> Optional[Json]:
        info = await source.migration()
        return info if info["status"] == PAUSED else None

    info = await until(f"{source.name} to pause again", limit, back)
    assert words in info["error-desc"], info
    assert not await source.is_running()


@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
@pytest.mark.parametrize("preempt", [(), ("postcopy-preempt",)], ids=["main", "preempt"])
async def test_each_channel_begins_with_a_header(preempt: Sequence[str], tls: bool) -> None:
    """And is answered with the same."""
    async with pc_lab() as lab:
        pair = await interrupted(lab, *preempt, tls=tls)
        session = await pair.session()
        for machine in pair:
            assert RESUME in (await machine.handshake())["features"]
        async with Relay(await listen_again(pair.destination)) as relay:
            await resume(pair.source, relay.port)
            await pair.require_recovered()
        assert len(relay.lines) == 1 + len(preempt)
        for line, name in zip(relay.lines, ("main", "preempt")):
            for speaker in SPEAKERS:
                assert tls or line.said[speaker].startswith(header(name, 0, session))
        assert await pair.session() == session


async def test_channels_are_kept_alive() -> None:
    """By both sides, as those before the pause."""
    async with pc_lab() as lab:
        pair = await interrupted(lab, "postcopy-preempt")
        await resume(pair.source, await listen_again(pair.destination))
        for one in pair:
            await wait_status(one, "postcopy-active")
        assert kept_alive(pair.source) == kept_alive(pair.destination) == [KEPT_ALIVE] * 2
        await pair.require_recovered()


@pytest.mark.parametrize("machine", ["pc-i440fx-7.2"])
async def test_preempt_channel_of_old_machines(machine: str) -> None:
    """They open it earlier."""
    async with pc_lab(machine) as lab:
        pair = await interrupted(lab, "postcopy-preempt")
        await resume(pair.source, await listen_again(pair.destination))
        await pair.require_recovered()


@pytest.mark.parametrize("kind", ["main", "handshake"])
async def test_any_channel_type(kind: str) -> None:
    async with pc_lab() as lab:
        pair = await interrupted(lab)
        address = channels(kind, inet(await listen_again(pair.destination)))
        if kind == "handshake":
            with pytest.raises(NotSeen, match="no meaning when a migration is resumed"):
                await pair.source.execute("migrate", {**address, "resume": True,
                                                      "handshake": {"timeout": 1}})
            await pair.require_paused()
        await pair.source.execute("migrate", {**address, "resume": True})
        await pair.require_recovered()


async def test_port_of_the_handshake() -> None:
    """Nobody has to call migrate-recover."""
    async with pc_lab() as lab:
        pair = await interrupted(lab)
        address = (await pair.destination.migration())["socket-address"][0]
        await resume(pair.source, int(address["port"]))
        await pair.require_recovered()


@pytest.mark.parametrize("kind, address, words", [
    ("handshake", {"transport": "rdma", "host": "192.0.2.1", "port": "1"},
     "transport 'rdma' is not: it agrees on its own settings"),
    ("handshake", {"transport": "exec", "args": ["/bin/sleep", "60"]},
     "transport 'exec' is not"),
    ("main", {"transport": "exec", "args": ["/bin/sleep", "60"]},
     "over a bidirectional socket only, which transport 'exec' is not"),
    ("main", {"transport": "file", "filename": "/dev/null", "offset": 0},
     "over a bidirectional socket only, which transport 'file' is not"),
])
async def test_what_nobody_can_resume_over(kind: str, address: Json, words: str) -> None:
    async with pc_lab() as lab:
        pair = await interrupted(lab)
        with pytest.raises(NotSeen, match=re.escape(words)):
            await pair.source.execute("migrate", {**channels(kind, address), "resume": True})
        await pair.require_paused()
        await resume(pair.source, await listen_again(pair.destination))
        await pair.require_recovered()


async def test_it_can_be_interrupted_again() -> None:
    """And says so in words each time."""
    async with pc_lab() as lab:
        pair = await interrupted(lab, "postcopy-preempt")
        for _ in range(3):
            assert LOST in (await pair.source.migration())["error-desc"]
            async with Relay(await listen_again(pair.destination)) as relay:
                await resume(pair.source, relay.port)
                await interrupt(pair, relay)
        assert LOST in (await pair.source.migration())["error-desc"]
        await resume(pair.source, await listen_again(pair.destination))
        await pair.require_recovered()


async def test_preempt_thread_that_is_slow(tmp_path: Path) -> None:
    """Its channel is there, and gone again before it has the lock."""
    library = make_library(tmp_path, "slow_preempt")
    async with pc_lab() as lab:
        pair = await interrupted(lab, "postcopy-preempt",
                                 under=(*UNDER, "env", f"LD_PRELOAD={library}"))
        await asyncio.sleep(1)      # until it waits
        async with Relay(await listen_again(pair.destination)) as relay:
            await resume(pair.source, relay.port)
            await interrupt(pair, relay)
        await asyncio.sleep(1)      # until it has the lock
        await resume(pair.source, await listen_again(pair.destination))
        await pair.require_recovered()


@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
async def test_wrong_destination(tls: bool) -> None:
    """Two guests of the same shape were interrupted; each finds its own destination."""
    async with pc_lab() as lab:
        one, other = [await interrupted(lab, name=name, tls=tls) for name in ("", "-other")]
        assert await one.session() != await other.session()
        ports = [await listen_again(pair.destination) for pair in (one, other)]
        for pair, port in ((one, ports[1]), (other, ports[0])):
            await resume(pair.source, port)
            await require_turned_away(pair.source, ANOTHER)
        for pair in (one, other):
            await pair.require_paused()
        for pair, port in zip((one, other), ports):
            await resume(pair.source, port)
            await pair.require_recovered()


async def test_destination_that_does_not_wait() -> None:
    """It listens for somebody who begins."""
    async with pc_lab() as lab:
        pair = await interrupted(lab)
        fresh, port = await start_destination(lab, "fresh")
        await resume(pair.source, port)
        await require_turned_away(pair.source, NOBODY)
        assert (await fresh.migration())["status"] == "setup"
        await resume(pair.source, await listen_again(pair.destination))
        await pair.require_recovered()


STRANGERS = {
    "nothing": b"",
    "one byte": b"Q",
    "stream": STREAM,
    "command": b"\x08",
    "garbage": b"GET / HTTP/1.1\r\n\r\n",
    "half a header": header()[:63],
    "source": header() + frame(HELLO, hello()),
    "another session": header("main", 0, bytes(range(16))),
    "preempt of another": header("preempt", 0, bytes(range(16))),
}


@contextlib.asynccontextmanager
async def stranger(port: int, said: bytes, tls: bool = False) -> AsyncIterator[Peer]:
    async with contextlib.AsyncExitStack() as stack:
        peer = await (join_tls(port, stack) if tls else Peer.connect(port))
        await peer.send(said)
        try:
            yield peer
        finally:
            peer.close()


@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
async def test_strangers(tls: bool) -> None:
    """They neither take part nor stand in the way, and go after a while."""
    async with pc_lab() as lab:
        pair = await interrupted(lab, "postcopy-preempt", tls=tls)
        session = await pair.session()
        port = await listen_again(pair.destination)
        # All that names the right session: what is out of place.
        out_of_place = [header("preempt", 0, session), header("multifd", 0, session),
                        header("main", 1, session)]
        start = time.monotonic()
        for said in (*STRANGERS.values(), *out_of_place):
            async with stranger(port, said, tls) as peer:
                answers = said[:4] == b"QMHS" and len(said) >= HEADER_SIZE
                if answers and said not in out_of_place:
                    name = "preempt" if b"preempt" in said else "main"
                    assert await peer.read_header() == Header(bytes(16), name, 0)
                    if not tls:
                        peer.finish()
                    else:
                        peer.close()
                    assert await peer.ended(PROMPT)
                elif said in out_of_place or len(said) >= 8 and said[:4] != b"QMHS":
                    assert await peer.ended(PROMPT)
                else:
                    assert await peer.ended(SILENCE + LATE)
        print(f"{time.monotonic() - start:.1f} s")
        await pair.require_paused()
        await resume(pair.source, port)
        await pair.require_recovered()


@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
@pytest.mark.parametrize("said", ["nothing", "half a header"])
async def test_silent_crowd(said: str, tls: bool) -> None:
    """At most 8 of them wait; the oldest have to go, and the source gets through at once."""
    async with pc_lab() as lab:
        pair = await interrupted(lab, tls=tls)
        port = await listen_again(pair.destination)
        async with contextlib.AsyncExitStack() as stack:
            crowd = [await stack.enter_async_context(stranger(port, STRANGERS[said]))
                     for _ in range(3 * READERS)]
            for peer in crowd[:-READERS]:
                assert await peer.ended(PROMPT)
            start = time.monotonic()
            await resume(pair.source, port)
            await wait_status(pair.source, "postcopy-active")
            assert time.monotonic() - start < SILENCE
            await pair.require_recovered()
            for peer in crowd:
                assert await peer.ended(SILENCE + LATE)


async def test_header_that_is_late() -> None:
    """A stranger's, and that of the right source, which is told and tries again."""
    async def all_but_one_byte(line: Line) -> None:
        await line.reach()
        await line.hear("source")
        await line.tell("source", HEADER_SIZE - 1)
        await line.drain("destination")
        await line.carry_both()

    async with pc_lab() as lab:
        pair = await interrupted(lab)
        port = await listen_again(pair.destination)
        start = time.monotonic()
        async with stranger(port, header()[:-1]) as peer, Relay(port, all_but_one_byte) as relay:
            await resume(pair.source, relay.port)
            assert await peer.ended(SILENCE + LATE)
            await require_turned_away(pair.source, NOBODY, LATE)
        assert time.monotonic() - start > SILENCE - EARLY
        await pair.require_paused()
        await resume(pair.source, port)
        await pair.require_recovered()


async def test_header_byte_by_byte() -> None:
    """Nothing happens before the last one."""
    async with pc_lab() as lab:
        pair = await interrupted(lab)
        good = header("main", 0, await pair.session())
        port = await listen_again(pair.destination)
        async with stranger(port, b"") as peer:
            for byte in good[:-1]:
                await peer.send(bytes([byte]))
                assert (await pair.destination.migration())["status"] == PAUSED
            await peer.send(good[-1:])
            assert await peer.read(HEADER_SIZE) == good
            await wait_status(pair.destination, "postcopy-recover")
        await wait_status(pair.destination, PAUSED)
        await resume(pair.source, await listen_again(pair.destination))
        await pair.require_recovered()


async def test_longer_header() -> None:
    """Of a later version."""
    async with pc_lab() as lab:
        pair = await interrupted(lab)
        good = header("main", 0, await pair.session())
        longer = good[:6] + b"\x10\x00" + good[8:] + bytes(4096 - HEADER_SIZE)
        port = await listen_again(pair.destination)
        async with stranger(port, longer) as peer:
            assert await peer.read(HEADER_SIZE) == good
            await wait_status(pair.destination, "postcopy-recover")
        await wait_status(pair.destination, PAUSED)
        await resume(pair.source, await listen_again(pair.destination))
        await pair.require_recovered()


async def test_two_at_once() -> None:
    """The first one that has said all is the one; the other is not answered."""
    async with pc_lab() as lab:
        pair = await interrupted(lab, "postcopy-preempt")
        session = await pair.session()
        main, preempt = [header(name, 0, session) for name in ("main", "preempt")]
        port = await listen_again(pair.destination)
        async with stranger(port, main[:-1]) as late, stranger(port, main) as first:
            assert await first.read(HEADER_SIZE) == main
            await late.send(main[-1:])
            assert await late.read_to_end(PROMPT) == b""
            async with stranger(port, preempt) as one, stranger(port, b"") as two:
                assert await one.read(HEADER_SIZE) == preempt
                await two.send(preempt)
                assert await two.read_to_end(PROMPT) == b""
            assert (await pair.destination.migration())["status"] == "postcopy-recover"
        await wait_status(pair.destination, PAUSED)
        await resume(pair.source, await listen_again(pair.destination))
        await pair.require_recovered()


async def test_main_loop_that_waits_for_a_page(tmp_path: Path) -> None:
    """It holds the big lock until the migration goes on, and strangers are there, too."""
    async with pc_lab() as lab:
        pair = await interrupted(lab, "postcopy-preempt")
        reading = asyncio.create_task(pair.destination.execute(
            "human-monitor-command", {"command-line": "xp /1bx 0xd00000"}))
        status = asyncio.create_task(pair.destination.execute("query-status"))
        await asyncio.sleep(1)
        assert not reading.done() and not status.done()
        path = str(tmp_path / "recover")
        await pair.destination.execute("migrate-recover", {"uri": f"unix:{path}"}, oob=True)
        peers = []
        for said in ("nothing", "half a header", "stream", "another session"):
            reader, writer = await asyncio.open_unix_connection(path)
            writer.write(STRANGERS[said])
            peers.append((reader, writer))
        assert await asyncio.wait_for(peers[2][0].read(), PROMPT) == b""
        assert await asyncio.wait_for(peers[3][0].read(), PROMPT) == header()
        assert not reading.done()
        await pair.source.execute("migrate", {"uri": f"unix:{path}", "resume": True})
        await pair.require_recovered()
        assert "d00000: 0x" in await reading
        await status
        for _, writer in peers:
            writer.close()


# A peer that does not know it


def strike(name: str):
    """Stand in between so that the destination does not see that feature in HELLO."""
    async def treatment(line: Line) -> None:
        await line.reach()
        if line.number:
            return await line.carry_both()
        source, destination = (line.said[speaker] for speaker in SPEAKERS)
        while not _complete(source, HELLO):
            await line.hear("source")
        seen = bytes(source)
        source[:] = seen.replace(name.encode(), name.upper().encode())
        assert source != seen
        await line.tell("source", len(source))
        while line.conversation("destination") is None:
            await line.hear("destination")
        await line.tell("destination", len(destination))
        begun = len(source)
        while (end := line.conversation("source")) is None or len(source) < end:
            await line.hear("source")
        said, answered = (hashlib.sha256(one + destination).hexdigest().encode()
                          for one in (seen, source[:begun]))
        assert said in source
        source[begun:end] = source[begun:end].replace(said, answered)
        await asyncio.gather(*map(line.carry, SPEAKERS))

    return treatment


def _complete(said: bytearray, kind: int) -> bool:
    return any(one == kind and end <= len(said) for one, _, end in frames(said))


@pytest.mark.parametrize("preempt", [(), ("postcopy-preempt",)], ids=["main", "preempt"])
async def test_without_the_feature(preempt: Sequence[str]) -> None:
    """No header, as ever."""
    async with pc_lab() as lab:
        pair = await interrupted(lab, *preempt, treatment=strike(RESUME))
        assert RESUME not in (await pair.destination.handshake())["features"]
        assert RESUME not in (await pair.source.handshake())["features"]
        port = await listen_again(pair.destination)
        with pytest.raises(NotSeen, match="cannot resume"):
            await pair.source.execute("migrate", {**channels("handshake", inet(port)),
                                                  "resume": True})
        async with Relay(port) as relay:
            await resume(pair.source, relay.port)
            await pair.require_recovered()
        assert not relay.lines[0].said["source"].startswith(b"QMHS")


# A destination that does not answer as it should


@pytest.mark.parametrize("answer, words", [
    (None, NOBODY),
    (b"", NOBODY),
    (STREAM * 8, "a migration stream without handshake"),
    (header(), ANOTHER),
    (header("main", 0, bytes(range(16))), "for another channel"),
    (header("main", 1, b"*" * 16), "for another channel"),
], ids=["end", "reset", "stream", "zeros", "another", "index"])
async def test_answer_that_is_none(answer: Optional[bytes], words: str) -> None:
    async with pc_lab() as lab:
        pair = await interrupted(lab)
        session = await pair.session()
        async with FakeDestination() as fake:
            await resume(pair.source, fake.port)
            peer = await fake.next()
            assert await peer.read(HEADER_SIZE) == header("main", 0, session)
            if answer is None:
                peer.finish()
            elif answer:
                await peer.send(answer.replace(b"*" * 16, session))
            else:
                peer.abort()
            await require_turned_away(pair.source, words)
            assert answer == b"" or await peer.ended(PROMPT)
        await pair.require_paused()
        await resume(pair.source, await listen_again(pair.destination))
        await pair.require_recovered()


async def test_answer_that_is_late() -> None:
    """Its last byte comes when the source does not wait any more."""
    async with pc_lab() as lab:
        pair = await interrupted(lab)
        async with FakeDestination() as fake:
            await resume(pair.source, fake.port)
            peer = await fake.next()
            answer = await peer.read(HEADER_SIZE)
            await peer.send(answer[:-1])
            await pair.source.execute("yank", {"instances": [{"type": "migration"}]}, oob=True)
            await require_turned_away(pair.source, "yanked")
            with contextlib.suppress(ConnectionError):
                await peer.send(answer[-1:])
            assert await peer.ended(PROMPT)
            await pair.require_paused()
            # To the next question it is none either.
            await resume(pair.source, fake.port)
            peer = await fake.next()
            assert await peer.read(HEADER_SIZE) == answer
            peer.finish()
            await require_turned_away(pair.source, NOBODY)
        await pair.require_paused()
        await resume(pair.source, await listen_again(pair.destination))
        await pair.require_recovered()


async def test_nobody_listens() -> None:
    async with pc_lab() as lab:
        pair = await interrupted(lab)
        with socket.socket() as nobody:         # keeps the port, and does not listen
            nobody.bind((LOOPBACK, 0))
            await resume(pair.source, nobody.getsockname()[1])
            await require_turned_away(pair.source, "refused")
        await resume(pair.source, await listen_again(pair.destination))
        await pair.require_recovered()


@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
async def test_silent_destination(tls: bool) -> None:
    """Its source gives up, or is yanked."""
    async with pc_lab() as lab:
        pair = await interrupted(lab, tls=tls)
        async with FakeDestination() as fake:
            await resume(pair.source, fake.port)
            await fake.next()
            assert (await pair.source.migration())["status"] == "postcopy-recover-setup"
            await pair.source.execute("yank", {"instances": [{"type": "migration"}]}, oob=True)
            await require_turned_away(pair.source, "yanked", PROMPT)
            start = time.monotonic()
            await resume(pair.source, fake.port)
            await require_turned_away(pair.source, "within 30 seconds", ANSWER + LATE)
            assert time.monotonic() - start > ANSWER - EARLY
        await resume(pair.source, await listen_again(pair.destination))
        await pair.require_recovered()


async def test_preempt_that_is_not_answered() -> None:
    """Both pause again."""
    async with pc_lab() as lab:
        pair = await interrupted(lab, "postcopy-preempt")

        async def only_main(line: Line) -> None:
            if line.number:
                line.close()
            else:
                await line.carry_both()

        async with Relay(await listen_again(pair.destination), only_main) as relay:
            await resume(pair.source, relay.port)
            await require_turned_away(pair.source, "")
            await wait_status(pair.destination, PAUSED)
            assert len(relay.lines) == 2
        await resume(pair.source, await listen_again(pair.destination))
        await pair.require_recovered()
