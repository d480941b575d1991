# SPDX-License-Identifier: GPL-2.0-or-later
"""What was seen of each difference, and the table of it in reStructuredText."""

from __future__ import annotations

import json
import os
import re
import time
from pathlib import Path
from typing import Any, Optional

from conftest import TOP
from differences import EARLY, HARM, LATE, LIVES, MOVED, ROWS, Expected, Row
from machine import Json

# Where the table goes; scripts/promises lets it be the one in docs. What was seen stands
# in a file beside it, if one is named, so that rows can be looked at in several runs.
PATH = Path(os.environ.get("QMHS_PROMISES", TOP / "build/promises.rst"))
SEEN = os.environ.get("QMHS_PROMISES_SEEN")

KINDS = {"early": EARLY, "late": LATE, "harm": HARM, "lives": LIVES, "moved": MOVED}
FATAL = (EARLY, LATE, HARM)
YES, NO, PARTLY, NOTHING = "yes", "no", "device only", "-"

HEAD = """\
.. SPDX-License-Identifier: GPL-2.0-or-later
.. Written by scripts/promises, from what it has seen; not to be edited.

What is found before a guest moves
==================================

Each row is one thing that is other on the destination than on the source, in machines
that are otherwise the same: q35 with two CPUs (``-cpu max``), Linux, two virtio-net behind
a hub or one with two queues on a tap device, virtio-blk, virtio-scsi, virtio-serial,
virtio-rng, virtio-balloon, or a pc; ``tests/promises`` has all command lines. The guest
writes and reads its disks, sends frames, uses what its CPUs say that they have, and checks
all of it, all the time. It was migrated once to a destination of each row over
channel type ``main`` with QEMU as it is, which has the return path on, and once with
the handshake.

*Over main* says what came of it: the migration fails before RAM has been sent, or after it
(the destination has exited, the guest runs on at the source); or it completes, and
the guest lives, or is harmed. *Found* says whether it was known before RAM is sent:
``yes``, ``warning``, or ``no``. *Named* says whether what one can read about it,
on either side, names the device and what differs; of PCI configuration, which part or
capability of it. A feature of a CPU that this guest happens
not to use is refused: another one may use it at any moment.

"""


def told(text: str, expected: Expected) -> str:
    """Whether these words name the device, and the cause."""
    if not re.search(expected.device, text):
        return NO
    return YES if re.search(expected.cause, text, re.IGNORECASE) else PARTLY


def words(issue: Json) -> str:
    return " ".join(str(issue.get(key, "")) for key in ("subject", "source", "destination", "message"))


class Finding:
    """What is known of one row; what was not looked at is None."""

    def __init__(self, row: Row):
        self.row = row
        self.issues: Optional[list[Json]] = None
        self.main: Optional[str] = None
        self.main_text = ""

    def set_verdict(self, issues: list[Json]) -> None:
        self.issues = [one for one in issues if one["severity"] != "info"]

    def set_main(self, kind: str, text: str) -> None:
        self.main, self.main_text = KINDS[kind], text

    @property
    def severity(self) -> str:
        found = {one["severity"] for one in self.issues or []}
        return "error" if "error" in found else "warning" if found else ""

    @property
    def words(self) -> str:
        expected = self.row.expected
        results = [told(words(one), expected) for one in self.issues or []
                   if one["code"] in expected.codes]
        return next((kind for kind in (YES, PARTLY) if kind in results), NO)

    @property
    def main_words(self) -> str:
        return told(self.main_text, self.row.expected) if self.main in (EARLY, LATE) else NO

    @property
    def cells(self) -> list[str]:
        over = self.main or "not tried"
        if self.main == HARM:
            over = f"{over}: {self.main_text}"
        fatal = self.main in FATAL
        found = {EARLY: YES, LATE: NO, HARM: NO}.get(self.main or "", NOTHING)
        ours = {"error": YES, "warning": "warning", "": NO}[self.severity]
        if self.issues is None:
            ours = "not tried"
        elif not self.severity and not fatal:
            ours = NOTHING
        return [self.row.name, over, found,
                self.main_words if fatal else NOTHING,
                ours, self.words if self.severity else NOTHING]


class Report:
    """All rows; a plugin that writes them when all tests are over."""

    COLUMNS = ("Difference", "Over main", "Stock: found", "Stock: named", "Handshake: found",
               "Handshake: named")

    def __init__(self) -> None:
        self.findings: dict[str, Finding] = {}
        self.versions = {"stock": "", "handshake": ""}

    def finding(self, row: Row) -> Finding:
        return self.findings.setdefault(row.name, Finding(row))

    def remember(self, path: Path) -> None:
        """What other runs have seen of rows that there are, and for others what this one has."""
        seen = json.loads(path.read_text()) if path.exists() else {}
        rows: Json = seen.setdefault("rows", {})
        seen["versions"] = self.versions = {**seen.get("versions", {}),
                                            **{k: v for k, v in self.versions.items() if v}}
        for name, one in self.findings.items():
            new = {"issues": one.issues, "main": one.main and [one.main, one.main_text]}
            rows.setdefault(name, {}).update({k: v for k, v in new.items() if v is not None})
        path.write_text(json.dumps(seen, indent=1))
        for row in ROWS:
            if row.name in rows:
                one = self.findings[row.name] = Finding(row)
                one.issues = rows[row.name].get("issues")
                one.main, one.main_text = rows[row.name].get("main") or (None, "")

    def text(self) -> str:
        order = {row.name: i for i, row in enumerate(ROWS)}
        findings = sorted(self.findings.values(), key=lambda one: order[one.row.name])
        lines = [HEAD + f"Seen on {time.strftime('%Y-%m-%d')}; over main: "
                 f"{self.versions.get('stock') or 'not tried'}; with the handshake: "
                 f"{self.versions.get('handshake') or 'not tried'}.", "", *self._summary(), "",
                 ".. list-table::", "   :header-rows: 1", "   :widths: 30 26 10 12 11 11", ""]
        for cells in (self.COLUMNS, *(one.cells for one in findings)):
            lines += [("   * - " if i == 0 else "     - ") + cell for i, cell in enumerate(cells)]
        return "\n".join(lines) + "\n"

    def _summary(self) -> list[str]:
        fatal = [one for one in self.findings.values() if one.main in FATAL]
        if not fatal:
            return []
        def count(column: int, *values: str) -> int:
            return sum(one.cells[column] in values for one in fatal)
        return [
            f"Of {len(self.findings)} differences {len(fatal)} end a migration or harm the guest over "
            f"main. Of these stock QEMU finds {count(2, YES)} before RAM is sent, and names device and "
            f"cause of {count(3, YES)}; with the handshake {count(4, YES)} are refused and "
            f"{count(4, 'warning')} warned about, and {count(5, YES)} are named."]

    def pytest_terminal_summary(self, terminalreporter: Any) -> None:
        if SEEN:
            self.remember(Path(SEEN))
        if not self.findings:
            return
        terminalreporter.section("promises")
        for one in self.findings.values():
            terminalreporter.write_line(" | ".join(one.cells))
        for line in self._summary():
            terminalreporter.write_line(line)
        PATH.parent.mkdir(parents=True, exist_ok=True)
        PATH.write_text(self.text())
