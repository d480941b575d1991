# SPDX-License-Identifier: GPL-2.0-or-later
"""What one side says last reaches the other."""

from __future__ import annotations

import pytest
from machine import Json
from processes import (Options, begin, inet, pc_lab, require_good_migration, require_listening,
                       require_refused, small_lab, start_destination, start_source)
from wire import (ABORT, ACCEPT, HELLO, PATIENCE, REJECT, SESSION, FakeDestination, Peer, frame,
                  header, hello, message_of, prefix)

UNKNOWN = 0x7777


@pytest.mark.parametrize("said, verdict", [
    ({"versions": [1], "purpose": "dance", "required": []}, REJECT),
    (b"{", REJECT),
    (hello(purpose="check"), ACCEPT),
], ids=["reject", "malformed", "check"])
async def test_verdict_before_unread_data(said: bytes | Json, verdict: int) -> None:
    """Whoever closes with unread data resets the connection, and may take back the verdict."""
    async with small_lab() as lab:
        destination, port = await start_destination(lab)
        peer = await Peer.connect(port)
        # One that may be skipped may come before the verdict, which does not wait for it.
        await peer.send(header() + frame(HELLO, said)
                        + prefix(UNKNOWN, 16 << 10, 0) + bytes(16 << 10))
        peer.finish()
        assert message_of(await peer.read_to_end(PATIENCE), verdict) is not None
        peer.close()
        await require_listening(destination)


WARNING = {"code": "section-extra", "severity": "warning", "subject": "x",
           "message": "only the destination has 'x'"}


@pytest.mark.parametrize("answer, options, words", [
    ({"capabilities": []}, {}, "without return-path"),
    ({"capabilities": ["return-path", "x-colo"]}, {}, "not offered"),
    # A destination that does not know the option accepts.
    ({"capabilities": ["return-path"], "issues": [WARNING]}, {"warnings-as-errors": True},
     "only the destination has 'x'"),
], ids=["less", "more", "warning"])
async def test_source_says_why_it_does_not_agree(answer: Json, options: Options,
                                                 words: str) -> None:
    async with pc_lab() as lab:
        source = await start_source(lab)
        destination, port = await start_destination(lab)
        async with FakeDestination() as fake:
            await begin(source, inet(fake.port), options)
            peer = await fake.next()
            await peer.read_hello()
            await peer.send(header(session=SESSION) + frame(ACCEPT, {"version": 1, **answer}))
            _, message = await peer.read_frame(ABORT)
            assert words in message["message"]
            assert await peer.ended(PATIENCE)
            await require_refused(source, words)
        await require_good_migration(source, destination, port)
