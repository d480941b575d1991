# SPDX-License-Identifier: GPL-2.0-or-later
"""What a hostile destination says behind COMMIT: the guest runs on, and the text is text."""

from __future__ import annotations

import asyncio
import contextlib
import struct
import unicodedata
from typing import NamedTuple

import pytest
from frames import LAST_WORD, LOADED, RP_SHUT
from processes import NO_MULTIFD, PATIENCE, begin, end, inet, pc_lab, start_source, wait_running
from test_loading import FAILED
from test_words import NOT_OURS
from wire import COMMIT, FEATURES, FakeDestination, frame, prefix

LIMIT = 16 << 10        # bytes of a LAST WORD
CONTROL = ("Cc", "Cf")


def word(message: str) -> bytes:
    return frame(LAST_WORD, {"message": message, "guest": "not-started"})


def shut(value: int) -> bytes:
    return struct.pack(">HHI", RP_SHUT, 4, value)


class Case(NamedTuple):
    said: bytes
    words: str                      # which the source's error has
    without: tuple[str, ...] = ()   # features
    step: int = 0                   # so many bytes at a time


GONE = f"the disk is gone{FAILED}"
CASES = {
    "long": Case(prefix(LAST_WORD, LIMIT + 1) + bytes(LIMIT + 1),
                 NOT_OURS + f"migration handshake: frame of {LIMIT + 1} bytes"),
    "endless": Case(prefix(LAST_WORD, 0xffffffff) + bytes(LIMIT), NOT_OURS),
    "half": Case(word("the disk is gone")[:20], "the destination ended the connection after"),
    "malformed": Case(frame(LAST_WORD, b"\xff\xfe{"), "no reason was given (the destination"),
    "control": Case(word("the\r\n\x07\x1b[2J\u202edisk\x7f\x00"), "the"),
    "twice": Case(word("the disk is gone") + word("so is the other"), GONE),
    "bytes": Case(word("the disk is gone"), GONE, (), 1),
    "behind SHUT": Case(shut(1) + word("the disk is gone"),
                        "the destination could not load the guest, and did not say why"),
    "not offered": Case(word("the disk is gone"), NOT_OURS + "migration handshake: unexpected",
                        ("late-error",)),
    # Of a stream that has hardly begun. In the end nobody can know that it is not true.
    "LOADED": Case(frame(LOADED, {}), NOT_OURS + "migration handshake: LOADED at the"),
    "LOADED twice": Case(2 * frame(LOADED, {}), NOT_OURS + "migration handshake: LOADED at the"),
    "LOADED, not offered": Case(frame(LOADED, {}), NOT_OURS + "migration handshake: unexpected",
                                ("one-owner",)),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
async def test_hostile_destination(case: Case) -> None:
    async with pc_lab() as lab:
        source = await start_source(lab)
        await source.execute("migrate-set-parameters", {"max-bandwidth": 4 << 10})
        async with FakeDestination() as fake:
            await begin(source, inet(fake.port), NO_MULTIFD)
            peer = await fake.next()
            said = await peer.read_hello()
            await peer.answer_hello(said, features=[one for one in FEATURES
                                                    if one not in case.without])
            await asyncio.wait_for(peer.read_frame(COMMIT), PATIENCE)
            step = case.step or len(case.said)
            with contextlib.suppress(ConnectionError):
                for at in range(0, len(case.said), step):
                    await peer.send(case.said[at:at + step])
                    await asyncio.sleep(0.001)
                peer.finish()
                await peer.read_to_end(PATIENCE)
            info = await end(source)
        assert info["status"] == "failed", info
        assert case.words in info["error-desc"], info
        told = [info["error-desc"], *(issue["message"] for issue in info["handshake"]["issues"])]
        assert not [text for text in told if any(unicodedata.category(one) in CONTROL
                                                 for one in text)]
        await wait_running(source)
