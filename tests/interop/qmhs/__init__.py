# SPDX-License-Identifier: GPL-2.0-or-later
"""The migration handshake, from docs/interop/migration-handshake.rst and nothing else.

It shares no code with QEMU, nor with the other tests, so that a mistake has to be
made twice to go unnoticed. Nothing in here opens a socket.
"""

from __future__ import annotations


class Incomplete(Exception):
    """What has come so far is fine; there has to be more."""


class Malformed(Exception):
    """Not as specified."""
