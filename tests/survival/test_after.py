# SPDX-License-Identifier: GPL-2.0-or-later
"""What was negotiated ends with its migration."""

from __future__ import annotations

from processes import (PROMPT, begin, inet, pc_lab, require_success, start_destination,
                       start_source, wait_status)

SLOW = 1000


async def test_next_migration_without_a_handshake() -> None:
    """A cancelled one leaves nothing behind, such as multifd, that a plain one would use."""
    async with pc_lab() as lab:
        source = await start_source(lab)
        destination, port = await start_destination(lab)
        await source.execute("migrate-set-parameters", {"max-bandwidth": SLOW})
        await begin(source, inet(port))
        await wait_status(source, "active")
        assert "multifd" in (await source.handshake())["capabilities"]
        await source.execute("migrate_cancel")
        await wait_status(source, "cancelled")
        await source.execute("migrate-set-parameters", {"max-bandwidth": 0})
        plain, port = await start_destination(lab, "plain destination", kind="main")
        await begin(source, inet(port), kind="main", patience=PROMPT)
        await require_success(source, plain)
