# SPDX-License-Identifier: GPL-2.0-or-later
"""scripts/migration-handshake, its manual, and what it does with QEMUs good and bad."""

from __future__ import annotations

import asyncio
import contextlib
import copy
import fcntl
import json
import os
import pty
import random
import re
import runpy
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import termios
import textwrap
from collections.abc import AsyncIterator, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Optional

import pytest

from conftest import QEMU, QMP_LIBRARY, TOP
from fake_qmp import CLOSE, HANG, Answer, FakeQmp, error, returned
from machine import Json, Lab, Machine, until
from processes import PATIENCE, UNDER, listen, migrate, require_good_migration, unix

TOOL = TOP / "scripts/migration-handshake"
MANUAL = TOP / "docs/tools/migration-handshake.rst"
SPECIFICATION = TOP / "docs/interop/migration-handshake.rst"
LIMIT = 30.0

SOURCE, Q35, I440FX = "source", ("-machine", "q35"), ("-machine", "pc")
CANDIDATE = ("-S", "-incoming", "defer")

PROFILE: Json = {
    "versions": [1], "purpose": "check", "required": [], "features": ["named-channels"],
    "profile": {"qemu-version": "10.0.0", "machine": "pc-q35-10.0", "arch": "x86_64",
                "name": "W\u00fcrfel", "ram-blocks": [{"name": "pc.ram", "size": 2 ** 64 - 1}]}}

ISSUES = [
    {"code": "uuid", "severity": "warning", "subject": "uuid", "source": "6a2f",
     "destination": "0d1b", "message": "UUID is 6a2f on the source and 0d1b on the destination"},
    {"code": "section-missing", "severity": "error", "subject": "0000:00:02.0/virtio-net",
     "source": "version 11", "destination": "missing",
     "message": "the source will send the state of '0000:00:02.0/virtio-net', which the"
                " destination does not have"},
    {"code": "section-schema", "severity": "info", "subject": "timer",
     "message": "the state of 'timer' has another layout"},
    {"code": "machine-type", "severity": "error", "subject": "machine", "source": "pc-q35-10.0",
     "destination": "pc-q35-9.0", "message": "machine type is 'pc-q35-10.0' on the source and"
                                             " 'pc-q35-9.0' on the destination"},
    {"code": "section-missing", "severity": "error", "subject": "fdc", "source": "version 1",
     "destination": "missing",
     "message": "the source will send the state of 'fdc', which the destination does not have"},
    {"code": "from-the-future", "severity": "dire", "message": "nobody knows this one yet"},
]

REFUSED: Json = {
    "role": "source", "status": "rejected", "check-only": True, "features": [],
    "peer": {"qemu-version": "10.0.13", "package": "Debian", "machine": "pc-q35-9.0",
             "arch": "x86_64"},
    "session": "8f98d028-8590-4924-8d4d-c5b7fc63ef25", "capabilities": [], "issues": ISSUES,
    "declined": [{"capability": "multifd", "reason": "this transport carries a single connection"}],
    "issues-omitted": 3, "message": "the destination refused the migration: 9 problems",
    "duration": 545, "bytes-sent": 2609, "bytes-received": 3129}

ACCEPTED: Json = {
    **REFUSED, "status": "accepted", "capabilities": ["return-path", "multifd"], "declined": [],
    "issues": [], "issues-omitted": 0, "parameters": {"multifd-channels": 2}, "message": "x"}

UNTRIED = {"code": "channels-untried", "severity": "info", "subject": "multifd",
           "message": "a migration would try more than a check does"}

ASKED: Json = {**ACCEPTED, "status": "in-progress"}
OTHER: Json = {**ACCEPTED, "status": "in-progress", "check-only": False}

JUDGED: Json = {"compatible": True, "capabilities": ["return-path"], "declined": [], "issues": []}


class Ended(NamedTuple):
    """What a run of the tool has left."""

    status: int
    out: str
    err: str


def environment(**more: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items()
            if name not in ("NO_COLOR", "COLUMNS", "TERM", "PYTHONPATH")}
    return {**kept, "PYTHONPATH": str(QMP_LIBRARY), "TERM": "xterm", **more}


@contextlib.asynccontextmanager
async def running(*arguments: object, stdin: str = "", script: Path = TOOL,
                  **more: str) -> AsyncIterator[asyncio.subprocess.Process]:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-B", str(script), *map(str, arguments), env=environment(**more),
        stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE)
    try:
        assert process.stdin
        process.stdin.write(stdin.encode())
        process.stdin.close()
        yield process
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


async def ended(process: asyncio.subprocess.Process) -> Ended:
    out, err = await asyncio.wait_for(process.communicate(), LIMIT)
    assert process.returncode is not None
    return Ended(process.returncode, out.decode(), err.decode())


async def tool(*arguments: object, stdin: str = "", script: Path = TOOL, **more: str) -> Ended:
    async with running(*arguments, stdin=stdin, script=script, **more) as process:
        return await ended(process)


async def explain(thing: Any, *options: str) -> Ended:
    result = await tool("explain", *options, stdin=json.dumps(thing))
    assert not result.err
    return result


def require_failure(result: Ended, *words: str) -> None:
    """One line, for people, and not on standard output."""
    assert result.status == 2, result
    assert not result.out
    assert re.fullmatch(r"migration-handshake: .+\n", result.err), result.err
    for word in words:
        assert word in result.err


def squeezed(text: str) -> str:
    return " ".join(text.split())


@pytest.fixture(name="place")
def make_place() -> Iterator[Path]:
    """With a path that is short enough for a socket."""
    with tempfile.TemporaryDirectory(prefix="mhs-") as name:
        yield Path(name)


def written(path: Path, thing: Any) -> Path:
    path.write_text(json.dumps(thing))
    return path


async def asked(place: Path, *info: Json, cancelled: Optional[Json] = None,
                **more: list[Answer]) -> FakeQmp:
    """A source that says this when it is asked again and again, until it is cancelled."""
    return await FakeQmp({
        "migrate": [returned({})],
        "query-migrate": [returned({"handshake": each}) for each in info],
        "migrate_cancel": [returned({})], **more}, after={} if cancelled is None else {
            "migrate_cancel": {"query-migrate": [returned({"handshake": cancelled})]}}).listen(
                place / "qmp")


# What is written down

def test_each_code_of_the_specification_has_a_cure() -> None:
    chapter = SPECIFICATION.read_text().split("\nIssue codes\n-----------\n")[1]
    chapter = chapter.split("\n=====")[0]
    codes = re.findall(r"^   \* - ``([a-z-]+)``$", chapter, re.M)
    assert len(codes) == len(set(codes)) > 20
    script = runpy.run_path(str(TOOL))
    cures, cpu_cures = script["CURES"], script["CPU_CURES"]
    assert set(codes) == set(cures) > set(cpu_cures)
    for cure in (*cures.values(), *cpu_cures.values()):
        assert re.fullmatch(r"[A-Z].*[^.]\.", cure) and ". " not in cure, cure


async def test_cpus_have_a_cure_of_their_own() -> None:
    def missing(subject: str) -> Json:
        return {"code": "section-missing", "severity": "error", "subject": subject,
                "message": f"no '{subject}'"}

    result = await explain({**REFUSED, "issues": [missing(subject) for subject in (
        "cpu 1", "0000:00:02.0/cpu 1", "apic 1", "cpu", "cpu_common 12")]})
    text = squeezed(result.out)
    script = runpy.run_path(str(TOOL))
    cpus, devices = (script[name]["section-missing"] for name in ("CPU_CURES", "CURES"))
    assert text.count(f"cure {cpus}") == text.count(f"cure {devices}") == 1
    # Each after those that it is for.
    assert text.index("no 'cpu_common 12'") < text.index(cpus) < text.index("no 'cpu'")


def test_can_be_started_by_its_name() -> None:
    result = subprocess.run([TOOL, "explain", "/nowhere"], capture_output=True, text=True,
                            env=environment(), check=False, timeout=LIMIT)
    require_failure(Ended(result.returncode, result.stdout, result.stderr), "/nowhere")


async def test_manual_and_help_have_the_same_commands_and_options() -> None:
    top = await tool("--help")
    commands = set(re.findall(r"^    ([a-z]+) ", top.out, re.M))
    assert commands == {"profile", "check", "explain"}
    helps = [top] + [await tool(command, "--help") for command in sorted(commands)]
    assert all(page.status == 0 and not page.err for page in helps)
    pattern = r"(?<![\w-])--[a-z][a-z-]*"
    options = set(re.findall(pattern, "".join(page.out for page in helps)))
    manual = MANUAL.read_text()
    # Sentences and synopsis name them, too; what counts is that they are described.
    assert set(re.findall(rf"^(?:-h, )?({pattern})(?: [A-Z]+)?$", manual, re.M)) == options
    assert set(re.findall(pattern, re.sub(r"(?m)^-+$", "", manual))) == options
    assert set(re.findall(r"^``migration-handshake ([a-z]+)``", manual, re.M)) == commands


# Explaining

@pytest.mark.parametrize("wrap", [
    lambda info: info,
    lambda info: {"status": "failed", "handshake": info},
    lambda info: {"return": info},
    lambda info: {"return": {"status": "failed", "handshake": info}, "id": "libvirt-7"},
])
async def test_explains_a_refusal(wrap: Any) -> None:
    result = await explain(wrap(REFUSED))
    assert result.status == 1
    lines = result.out.splitlines()
    assert lines[0] == "not compatible: 3 errors, 2 warnings, 1 info, 3 more"
    assert "destination   QEMU 10.0.13 (Debian), pc-q35-9.0, x86_64" in lines
    assert f"session       {REFUSED['session']}" in lines
    assert "declined      multifd: this transport carries a single connection" in lines
    assert lines[-1] == "3 more, which QEMU does not list."
    assert max(map(len, lines)) <= 80
    assert "\033" not in result.out

    rows = [line.split()[:2] for line in lines
            if line.split(" ")[0] in ("error", "warning", "info")]
    assert rows == [["error", "section-missing"], ["error", "section-missing"],
                    ["error", "machine-type"], ["warning", "uuid"],
                    ["warning", "from-the-future"], ["info", "section-schema"]]
    text = squeezed(result.out)
    for issue in ISSUES:
        assert squeezed(issue["message"]) in text
        for name in ("source", "destination"):
            assert issue.get(name, "") in text
    cures = runpy.run_path(str(TOOL))["CURES"]
    for code in ("section-missing", "machine-type", "uuid", "section-schema"):
        assert text.count(f"cure {cures[code]}") == 1     # once for all of a kind
    assert text.count(" cure ") == 4                       # none for what nobody knows


async def test_explains_an_acceptance() -> None:
    info = {**ACCEPTED, "check-only": False,
            "issues": [issue for issue in ISSUES if issue["severity"] == "warning"]}
    result = await explain({"status": "failed", "error-desc": "no space", "handshake": info})
    assert result.status == 0
    lines = result.out.splitlines()
    assert lines[0] == "compatible, with 1 warning"
    assert "capabilities  return-path, multifd" in lines
    assert "parameters    multifd-channels 2" in lines
    assert "migration     failed: no space" in lines
    assert (await explain(ACCEPTED)).out.splitlines()[0] == "compatible"


async def test_what_a_check_leaves_out_is_no_difference() -> None:
    """It is told beside what the migration would use, if that is told; JSON has it all."""
    line = f"untried       {UNTRIED['message']}"
    info = {**ACCEPTED, "issues": [UNTRIED]}
    lines = (await explain(info)).out.splitlines()
    assert lines[0] == "compatible" and lines[-1] == line
    result = await explain({**info, "issues": [UNTRIED, ISSUES[0]]})
    assert result.out.splitlines()[0] == "compatible, with 1 warning" and line in result.out
    assert "channels-untried" not in result.out
    refused = await explain({**REFUSED, "issues": [UNTRIED, ISSUES[1]]})
    assert refused.out.splitlines()[0] == "not compatible: 1 error, 3 more"
    assert "untried" not in refused.out
    told = json.loads((await explain(info, "--json")).out)["issues"]
    assert {name: told[0][name] for name in UNTRIED} == UNTRIED
    # Of another severity it is something that nobody knows here.
    worse = await explain({**info, "issues": [{**UNTRIED, "severity": "error"}]})
    assert "error     channels-untried" in worse.out


@pytest.mark.parametrize("info", [ACCEPTED, REFUSED, {**ACCEPTED, "status": "failed"}])
async def test_tells_of_a_migration_that_has_failed_otherwise(info: Json) -> None:
    """One that has not come as far as its handshake leaves that of a check in place."""
    failed = {"status": "failed", "error-desc": "no route", "handshake": info}
    assert "\nmigration     failed: no route\n" in (await explain(failed)).out
    same = {**failed, "error-desc": info["message"]}
    assert "\nmigration " not in (await explain(same)).out
    assert "\nmigration " not in (await explain({**failed, "error-desc": ""})).out


@pytest.mark.parametrize("status, words", [
    ("failed", "the handshake failed"), ("cancelled", "the handshake was cancelled"),
    ("in-progress", "the handshake is still in progress"), ("odd", "the status is 'odd'"),
])
async def test_explains_that_nobody_knows(status: str, words: str) -> None:
    result = await explain({**ACCEPTED, "status": status, "message": "the cable is too short"})
    assert result.status == 2
    assert result.out.startswith(f"could not tell: {words}\n")
    assert "reason        the cable is too short" in result.out


@pytest.mark.parametrize("others, status", [([], 2), (ISSUES[:1], 2), (ISSUES[1:2], 1)])
async def test_a_busy_destination_has_compared_nothing(others: list[Json], status: int) -> None:
    busy = {"code": "busy", "severity": "error", "subject": "session", "message": "try again"}
    result = await explain({**REFUSED, "issues": [busy, *others]})
    assert result.status == status
    begin = "could not tell: the destination is busy\n" if status == 2 else "not compatible: "
    assert result.out.startswith(begin)
    assert "\nerror     busy" in result.out and "cure      Wait until" in result.out


@pytest.mark.parametrize("compatible", [True, False])
async def test_explains_a_judged_profile(compatible: bool) -> None:
    judged = {**JUDGED, "compatible": compatible, "issues": ISSUES[:1]}
    result = await explain({"return": judged})
    assert result.status == (0 if compatible else 1)
    assert result.out.startswith("compatible, with 1 warning\n" if compatible
                                 else "not compatible: 1 warning\n")
    assert "capabilities  return-path" in result.out


async def test_explains_an_event() -> None:
    data = {"role": "destination", "status": "rejected", "check-only": False,
            "session": REFUSED["session"], "errors": 2, "warnings": 1, "message": "too blue"}
    event = {"event": "MIGRATION_HANDSHAKE", "data": data,
             "timestamp": {"seconds": 1, "microseconds": 2}}
    result = await explain(event)
    assert result.status == 1
    assert result.out.startswith("not compatible: 2 errors, 1 warning\n")
    assert "too blue" in result.out and REFUSED["session"] in result.out
    require_failure(await tool("explain", stdin=json.dumps({**event, "event": "STOP"})),
                    "MIGRATION_HANDSHAKE")


async def test_prints_json_with_cures(place: Path) -> None:
    result = await explain({"return": {"handshake": REFUSED}}, "--json", "--color=always")
    assert result.status == 1
    facts = json.loads(result.out)
    cures = runpy.run_path(str(TOOL))["CURES"]
    for issue, before in zip(facts["issues"], ISSUES):
        assert issue.pop("cure", None) == cures.get(before["code"])
    assert facts == REFUSED
    # What it has printed it can explain.
    again = await tool("explain", written(place / "result.json", json.loads(result.out)))
    assert again == await explain(REFUSED)


@pytest.mark.parametrize("text, words", [
    ("", "nothing in it"), ("{", "not JSON"), ("[" * 100000, "not JSON"), ("[1]", "JSON object"),
    ("1" * 5000, "JSON"), ("{}", "no result"), ('{"return": {}}', "no result"),
    ('{"status": "completed"}', "no result"), ('{"return": "handshake"}', "no result"),
    ('{"error": {"class": "GenericError", "desc": "it is late"}}', "it is late"),
])
async def test_says_what_it_cannot_explain(text: str, words: str) -> None:
    require_failure(await tool("explain", stdin=text), words)


async def test_says_which_file_it_cannot_read(place: Path) -> None:
    require_failure(await tool("explain", place / "nothing"), str(place / "nothing"), "No such")
    require_failure(await tool("explain", place), "directory")
    (place / "latin1").write_bytes(b'{"role": "\xe4"}')
    require_failure(await tool("explain", place / "latin1"), "not JSON")


async def test_text_of_a_peer_does_nothing_to_a_terminal() -> None:
    evil = "\033]0;owned\007 \r\n\u202egnp.exe \x9b31m \u2028 \ud800 \x7f"
    thing = json.loads(json.dumps(REFUSED).replace("pc-q35", json.dumps(evil)[1:-1]))
    thing["issues"].append({name: evil * 5 for name in ISSUES[0]})
    thing["parameters"] = {evil: evil}
    thing["capabilities"] = [evil]
    result = await explain(thing)
    assert result.status == 1
    assert "\\x1b]0;owned\\x07" in result.out and "\\u202e" in result.out
    assert not re.search("[\x00-\x09\x0b-\x1f\x7f-\x9f\u2028\u202e]", result.out)
    assert max(map(len, result.out.splitlines())) <= 80


async def test_nothing_that_a_peer_sends_makes_it_stumble(place: Path) -> None:
    """Each member of another type, and absent; and long tables."""
    script = runpy.run_path(str(TOOL))
    find, page = script["Result"].find, script["Page"]
    odd: list[Any] = [None, True, -1, 2 ** 70, 0.5, "", "x" * 5000, [], [[]], ["x", 1, {}], {},
                      {"x": []}]
    wrong = 0
    for value in odd:
        for thing in mutants({"status": "failed", "handshake": REFUSED}, value):
            try:
                result = find(thing)
                shown = page(80, False)
                shown.show(result)
                assert max(map(len, shown.text.splitlines())) <= 80
                json.loads(result.as_json())
                wrong += result.status != 1
            except script["Failure"]:
                wrong += 1
    assert wrong
    many = {**REFUSED, "issues": random.Random(1).choices(ISSUES, k=256)}
    shown = await tool("explain", written(place / "many.json", many))
    assert shown.status == 1
    assert len(shown.out.splitlines()) > 512


def mutants(thing: Any, value: Any) -> Iterator[Any]:
    """All that are the same but for one member or item, at any depth."""
    for key in thing if isinstance(thing, dict) else range(len(thing)):
        changed = copy.copy(thing)
        changed[key] = value
        yield changed
        if isinstance(thing[key], (dict, list)):
            for inner in mutants(thing[key], value):
                changed = copy.copy(thing)
                changed[key] = inner
                yield changed


# Terminals, pipes

def on_terminal(columns: int, *arguments: str, **more: str) -> tuple[int, str]:
    """Run it on a terminal that is so wide."""
    ours, theirs = pty.openpty()
    try:
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
        with subprocess.Popen([sys.executable, "-B", TOOL, *arguments], stdout=theirs,
                              stdin=subprocess.DEVNULL, env=environment(**more)) as process:
            os.close(theirs)
            out = b""
            with contextlib.suppress(OSError):      # EIO is how a terminal ends
                while data := os.read(ours, 4096):
                    out += data
            return process.wait(LIMIT), out.decode().replace("\r\n", "\n")
    finally:
        os.close(ours)


def plain(text: str) -> str:
    return re.sub(r"\033\[[\d;]*m", "", text)


async def test_uses_the_width_and_the_colors_of_a_terminal(place: Path) -> None:
    path = str(written(place / "result.json", REFUSED))
    piped = await tool("explain", path)
    status, narrow = on_terminal(80, "explain", path)
    assert status == 1
    assert "\033[31;1m" in narrow and plain(narrow) == piped.out
    _, wide = on_terminal(200, "explain", path)
    assert 120 < max(map(len, plain(wide).splitlines())) <= 200
    _, tiny = on_terminal(50, "explain", path)
    assert max(map(len, plain(tiny).splitlines())) <= 50
    assert squeezed(ISSUES[0]["message"]) in squeezed(plain(tiny))
    _, tiniest = on_terminal(40, "explain", path)
    lines = plain(tiniest).splitlines()
    assert max(map(len, lines)) <= 40
    assert "error     section-missing" in lines and "          destination: missing" in lines
    assert "SEVERITY" not in tiniest


async def test_a_name_stays_in_one_piece() -> None:
    result = await explain({**ACCEPTED, "status": "failed",
                            "message": f"{'x' * 55} set 'tls-creds' on both sides"})
    assert "'tls-creds'" in result.out


@pytest.mark.parametrize("size, shown", [
    ("4096", "4 KiB"), ("536870912", "512 MiB"), ("3221225472", "3 GiB"), ("1500", "1500 bytes"),
    ("268435457", "268435457 bytes"), (str(2 ** 60), "1048576 TiB"), ("0", "0"),
    ("missing", "missing"), ("\u0661024", "\u0661024"), ("1" * 30, "1" * 30)])
async def test_sizes_of_memory_are_for_people(size: str, shown: str) -> None:
    issue = {"code": "ram-block-size", "severity": "error", "subject": "pc.ram", "source": size,
             "destination": "8192", "message": "a message"}
    result = await explain({**REFUSED, "issues": [issue]})
    row = f"error ram-block-size pc.ram {shown} 8 KiB a message"
    assert row in squeezed(result.out)
    other = await explain({**REFUSED, "issues": [{**issue, "code": "section-version"}]})
    assert " 8192 " in squeezed(other.out)


async def test_colors_are_as_wanted(place: Path) -> None:
    path = str(written(place / "result.json", REFUSED))
    for more in ({"NO_COLOR": "1"}, {"TERM": "dumb"}):
        assert "\033" not in on_terminal(80, "explain", path, **more)[1]
    assert "\033" in on_terminal(80, "explain", path, NO_COLOR="")[1]
    assert "\033" not in on_terminal(80, "explain", "--color=never", path)[1]
    assert "\033" not in on_terminal(80, "explain", "--json", path)[1]
    piped = await tool("explain", "--color", "always", path, NO_COLOR="1")
    assert "\033[31;1m" in piped.out
    assert plain(piped.out) == (await tool("explain", path)).out


def shell(command: str) -> Ended:
    function = 'tool() { "$PYTHON" -B "$TOOL" "$@"; }\n'
    result = subprocess.run(["bash", "-c", function + command], capture_output=True, text=True,
                            env=environment(PYTHON=sys.executable, TOOL=str(TOOL)), check=False,
                            stdin=subprocess.DEVNULL, timeout=LIMIT)
    return Ended(result.returncode, result.stdout, result.stderr)


def test_readers_may_stop_reading_and_disks_may_be_full(place: Path) -> None:
    path = written(place / "result.json", {**REFUSED, "issues": ISSUES * 2000})
    # The verdict counts, whoever has read it.
    assert shell(f"tool explain {path} | true; echo ${{PIPESTATUS[0]}}") == Ended(0, "1\n", "")
    require_failure(shell(f"tool explain {path} >/dev/full"), "No space left")
    require_failure(shell(f"tool explain {path} >&-"), "no standard output")
    require_failure(shell("tool explain <&-"), "no standard input")


def test_nobody_takes_an_accident_for_a_verdict(place: Path) -> None:
    """Python's own exit status is that of "not compatible"."""
    for command in ("tool explain /nowhere", "tool chekc"):
        assert shell(f"{command} 2>/dev/full") == Ended(2, "", "")
    # Where print() would put it.
    assert shell("tool explain /nowhere 2>&-") == Ended(2, "", "")
    path = written(place / "result.json", ACCEPTED)
    broken = place / "broken"
    broken.write_text(TOOL.read_text().replace("arguments.run(arguments)", "1 / 0"))
    result = shell(f"TOOL={broken}; tool explain {path}")
    assert result.status == 2 and not result.out and "ZeroDivisionError" in result.err


def test_a_locale_without_a_character_is_no_problem(place: Path) -> None:
    path = written(place / "result.json", {**REFUSED, "message": "", "session": "W\u00fcrfel"})
    result = shell(f"PYTHONIOENCODING=ascii tool explain {path}")
    assert result.status == 1 and "W\\xfcrfel" in result.out and not result.err


# Asking

async def test_prints_a_profile_as_it_is(place: Path) -> None:
    big = copy.deepcopy(PROFILE)
    big["profile"]["sections"] = [{"name": f"section {i}", "version": i} for i in range(9999)]
    for path in (place / "qmp", None):
        async with await FakeQmp({"query-migrate-profile": [returned(big)]}).listen(path) as qemu:
            result = await tool("profile", qemu.address)
            assert result.status == 0 and not result.err
            assert list(json.loads(result.out).items()) == list(big.items())
            assert qemu.asked == ["query-migrate-profile"]


@pytest.mark.parametrize("options, query", [
    ([], {}),
    (["--optional-capabilities", "", "--timeout", "5"], {"options": {"optional-capabilities": []}}),
    (["--optional-capabilities=a,b", "--warnings-as-errors"],
     {"options": {"optional-capabilities": ["a", "b"], "warnings-as-errors": True}}),
    (["--ignore-issues", "cpu, device:0000:00:03.0/virtio-blk,"],
     {"options": {"ignore-issues": ["cpu", "device:0000:00:03.0/virtio-blk"]}}),
    (["--ignore-issues="], {}),
])
async def test_has_a_profile_judged(place: Path, options: list[str], query: Json) -> None:
    for stdin, first in ((json.dumps({"return": PROFILE}), "-"),
                         ("", written(place / "profile", PROFILE))):
        async with await FakeQmp({"check-migrate-profile": [returned(JUDGED)]}).listen() as qemu:
            result = await tool("check", *options, first, qemu.address, stdin=stdin)
            assert result.status == 0 and not result.err
            assert qemu.arguments("check-migrate-profile") == {"profile": PROFILE, **query}
            assert result.out == ("compatible\n\n"
                                  "source        QEMU 10.0.0, pc-q35-10.0, x86_64\n"
                                  "capabilities  return-path\n")


async def test_has_a_profile_refused(place: Path) -> None:
    answer = {**JUDGED, "compatible": False, "capabilities": [], "issues": ISSUES}
    async with await FakeQmp({"check-migrate-profile": [returned(answer)]}).listen() as qemu:
        profile = written(place / "profile", PROFILE)
        result = await tool("check", profile, qemu.address)
        assert result.status == 1
        assert result.out.startswith("not compatible: 3 errors, 2 warnings, 1 info\n")
        result = await tool("check", "--json", profile, qemu.address)
        assert result.status == 1
        assert json.loads(result.out)["issues"][0]["cure"]


@pytest.mark.parametrize("uri, address", [
    ("tcp:host:4444", {"type": "inet", "host": "host", "port": "4444"}),
    ("tcp:[fe80::1]:1", {"type": "inet", "host": "fe80::1", "port": "1"}),
    ("unix:/run/x:y", {"type": "unix", "path": "/run/x:y"}),
    ("unix:here", {"type": "unix", "path": os.path.abspath("here")}),
    ("vsock:3:1234", {"type": "vsock", "cid": "3", "port": "1234"}),
])
async def test_asks_over_the_wire(place: Path, uri: str, address: Json) -> None:
    async with await asked(place, ASKED, ASKED, ACCEPTED) as qemu:
        result = await tool("check", qemu.address, uri)
        assert result.status == 0 and not result.err
        assert result.out.startswith("compatible\n")
        assert qemu.arguments("migrate") == {
            "channels": [{"channel-type": "handshake", "addr": {"transport": "socket", **address}}],
            "handshake": {"check-only": True}}
        assert qemu.asked == ["migrate"] + ["query-migrate"] * 3


@pytest.mark.parametrize("timeout", [0, 7])
@pytest.mark.parametrize("info, status", [
    (REFUSED, 1), ({**ACCEPTED, "status": "failed"}, 2), ({**ACCEPTED, "status": "cancelled"}, 2)])
async def test_passes_on_what_the_source_says(place: Path, info: Json, status: int,
                                              timeout: int) -> None:
    async with await asked(place, ASKED, info) as qemu:
        result = await tool("check", f"--timeout={timeout}", "--optional-capabilities=", "--json",
                            "--warnings-as-errors", "--ignore-issues=cpu,uuid", qemu.address,
                            "tcp:host:1")
        assert result.status == status and not result.err
        assert json.loads(result.out)["status"] == info["status"]
        assert qemu.arguments("migrate")["handshake"] == {
            "check-only": True, "timeout": timeout, "optional-capabilities": [],
            "warnings-as-errors": True, "ignore-issues": ["cpu", "uuid"]}


@pytest.mark.parametrize("uri", [
    "", "host:1", "tcp:", "tcp:host", "tcp::1", "tcp:::1:4444", "tcp:host:0", "tcp:host:65536",
    "tcp:host:x", "tcp:host:1,ipv4=on", "unix:", "vsock:3", "vsock:x:1", "exec:cat", "fd:3",
    "file:/x", "rdma:host:1", "tcp:host:\u0661"])
async def test_refuses_what_is_no_address(place: Path, uri: str) -> None:
    async with await asked(place, ACCEPTED) as qemu:
        require_failure(await tool("check", qemu.address, uri), f"'{uri}'", "tcp:HOST:PORT")
        assert not qemu.asked


async def test_says_what_to_do_with_two_sockets(place: Path) -> None:
    async with await asked(place, ACCEPTED) as qemu:
        require_failure(await tool("check", qemu.address, place / "qmp"), f"unix:{place}/qmp",
                        "profile")
        assert not qemu.asked


async def test_refuses_what_is_no_profile(place: Path) -> None:
    async with await FakeQmp({}).listen() as qemu:
        for thing in ({}, [], JUDGED, {"profile": 1}):
            profile = written(place / "profile", thing)
            require_failure(await tool("check", profile, qemu.address), str(profile))
        nothing = place / "nothing"
        require_failure(await tool("check", nothing, qemu.address), str(nothing), "No such")
        require_failure(await tool("check", profile, "tcp:host:1"), "QMP socket")
        assert not qemu.asked


@pytest.mark.parametrize("arguments", [
    [], ["chekc"], ["profile"], ["check", "x"], ["explain", "x", "y"],
    ["check", "--tim=1", "-", "x"],
    ["check", "--timeout=3601", "-", "x"], ["check", "--timeout=-1", "-", "x"],
    ["check", "--timeout=1.5", "-", "x"], ["explain", "--color=blue"], ["profile", "--json", "x"]])
async def test_explains_its_usage(arguments: list[str]) -> None:
    result = await tool(*arguments)
    assert result.status == 2 and not result.out
    assert result.err.startswith("usage: migration-handshake")


async def test_profile_of_something_else(place: Path) -> None:
    for address, words in ((place / "nothing", "No such file"), (place, "cannot connect"),
                           ("127.0.0.1:1", "refused"), ("x" * 200, "cannot connect")):
        require_failure(await tool("profile", address), str(address), words)


@pytest.mark.parametrize("answer, words", [
    (error("Only a\nQEMU that waits"), ["Only a QEMU that waits"]),
    (error("no such thing", "CommandNotFound"), ["too old"]),
    (returned([]), ["not an answer"]),
    ({"nothing": 1}, ["query-migrate-profile"]),
    (b"garbage\n", ["query-migrate-profile"]),
    (b"{\n", ["query-migrate-profile"]),
    (b"[]\n", ["query-migrate-profile"]),
    (b'{"error": {"class": "GenericError", "desc": "JSON parse error"}}\n',
     ["query-migrate-profile"]),
    (b'{"return"', ["query-migrate-profile"]),
    (CLOSE, ["the connection was closed"]),
])
async def test_says_what_is_wrong_with_an_answer(answer: Answer, words: list[str]) -> None:
    async with await FakeQmp({"query-migrate-profile": [answer, CLOSE]}).listen() as qemu:
        require_failure(await tool("profile", qemu.address), qemu.address, *words)


@pytest.mark.parametrize("greeting", [
    b"SSH-2.0-OpenSSH_9.2\r\n", b"\xff\xfe\n", b"{}\n", b'{"QMP": {}}\n', b"[]\n", CLOSE,
    b"x" * 100])
async def test_says_that_it_is_no_monitor(greeting: bytes) -> None:
    async with await FakeQmp({}, greeting).listen() as qemu:
        result = await tool("check", "--timeout=1", "-", qemu.address, stdin=json.dumps(PROFILE))
        require_failure(result, qemu.address)


async def test_says_that_a_monitor_refuses_everybody() -> None:
    async with await FakeQmp({"qmp_capabilities": [error("not today")]}).listen() as qemu:
        require_failure(await tool("profile", qemu.address), qemu.address, "cannot connect")


async def test_waits_for_nobody_for_ever(place: Path) -> None:
    """All at once, since each of them takes its time."""
    profile = written(place / "profile", PROFILE)
    deaf = FakeQmp({}, HANG)
    slow = FakeQmp({"check-migrate-profile": [HANG], "migrate": [HANG]})
    async with await deaf.listen(), await slow.listen(), await asked(place, ASKED) as endless:
        results = await asyncio.gather(*(tool("check", "--timeout=1", *arguments) for arguments in (
            (profile, deaf.address), (profile, slow.address), (deaf.address, "tcp:x:1"),
            (slow.address, "tcp:x:1"), (endless.address, "tcp:x:1"))))
        for result, words in zip(results, (
                "greet", "no answer to check-migrate-profile within 1 second", "greet",
                "no answer to migrate", "no verdict within 4 seconds")):
            require_failure(result, words)
        assert endless.asked.count("migrate_cancel") == 1


@pytest.mark.parametrize("info, answer, words", [
    ([ASKED], error("There's a migration process in progress"), "in progress"),
    ([OTHER], returned({}), "has a migration begun"),
    ([ASKED, OTHER], returned({}), "has a migration begun"),
    ([{}], returned({}), "has a migration begun"),
])
async def test_leaves_alone_what_it_has_not_begun(place: Path, info: Sequence[Json],
                                                  answer: Answer, words: str) -> None:
    async with await asked(place, *info, migrate=[answer]) as qemu:
        require_failure(await tool("check", qemu.address, "tcp:x:1"), words)
        assert "migrate_cancel" not in qemu.asked


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
async def test_cancels_when_it_is_interrupted(place: Path, number: signal.Signals) -> None:
    async with await asked(place, ASKED, cancelled={**ASKED, "status": "cancelled"}) as qemu:
        async with running("check", qemu.address, "tcp:x:1") as process:
            await asyncio.wait_for(qemu.wait_asked("query-migrate", 2), LIMIT)
            process.send_signal(number)
            assert await ended(process) == Ended(-number, "", "")
        assert qemu.asked[-3:] == ["query-migrate", "migrate_cancel", "query-migrate"]


@pytest.mark.parametrize("steps", range(4))
async def test_no_interruption_is_lost(steps: int) -> None:
    """Not even one that comes together with an answer."""
    within = runpy.run_path(str(TOOL))["within"]
    answer = asyncio.get_running_loop().create_future()

    async def work() -> Any:
        return await answer

    async def wait() -> None:
        await within(work(), LIMIT)
        await asyncio.sleep(LIMIT)

    task = asyncio.create_task(wait())
    for _ in range(3):
        await asyncio.sleep(0)      # until it waits
    answer.set_result(0)
    for _ in range(steps):
        await asyncio.sleep(0)
    task.cancel()
    _, pending = await asyncio.wait({task}, timeout=1)
    assert not pending and task.cancelled()


async def test_gives_up_what_takes_too_long() -> None:
    within = runpy.run_path(str(TOOL))["within"]
    left: list[str] = []

    async def work() -> None:
        try:
            await asyncio.sleep(LIMIT)
        finally:
            left.append("work")

    with pytest.raises(asyncio.TimeoutError):
        await within(work(), 0.01)
    assert left == ["work"]


async def test_ends_at_once_when_it_is_interrupted_again(place: Path) -> None:
    """Before its answer, nobody knows whether migrate has come to anything."""
    async with await asked(place, ASKED, migrate=[HANG]) as qemu:
        async with running("check", qemu.address, "tcp:x:1") as process:
            await asyncio.wait_for(qemu.wait_asked("migrate"), LIMIT)
            process.send_signal(signal.SIGINT)
            with pytest.raises(asyncio.TimeoutError):
                await asyncio.wait_for(process.wait(), 0.5)
            process.send_signal(signal.SIGINT)
            assert await asyncio.wait_for(ended(process), 5) == Ended(-signal.SIGINT, "", "")


async def test_cancels_no_migration_of_somebody_else(place: Path) -> None:
    async with await asked(place, ASKED, ASKED, OTHER) as qemu:
        async with running("check", qemu.address, "tcp:x:1") as process:
            await asyncio.wait_for(qemu.wait_asked("query-migrate", 2), LIMIT)
            process.send_signal(signal.SIGINT)
            await ended(process)
        assert qemu.asked[-1] == "query-migrate" and "migrate_cancel" not in qemu.asked


async def test_is_quiet_when_it_is_interrupted(place: Path) -> None:
    async with await FakeQmp({"query-migrate-profile": [HANG]}).listen() as qemu:
        async with running("profile", qemu.address) as process:
            await asyncio.wait_for(qemu.wait_asked("query-migrate-profile"), LIMIT)
            process.send_signal(signal.SIGINT)
            assert await ended(process) == Ended(-signal.SIGINT, "", "")
    os.mkfifo(place / "fifo")
    async with running("explain", place / "fifo") as process:
        writer = await asyncio.to_thread(lambda: open(place / "fifo", "wb"))    # once it reads
        with writer:
            process.send_signal(signal.SIGINT)
            assert await ended(process) == Ended(-signal.SIGINT, "", "")


@pytest.mark.parametrize("where", [
    "python", "build/any/src/python", "build/pyvenv/lib/python3.11/site-packages",
    "build/any/pyvenv/lib/python3.11/site-packages",
])
async def test_finds_the_library_in_its_tree(place: Path, where: str) -> None:
    (place / "scripts").mkdir()
    script = Path(shutil.copy(TOOL, place / "scripts"))
    async with await FakeQmp({"query-migrate-profile": [returned(PROFILE)]}).listen() as qemu:
        alone = await tool("profile", qemu.address, script=script, PYTHONPATH="")
        if alone.status:        # not if it is installed here
            require_failure(alone, "qemu.qmp")
            assert "python3-qemu-qmp" in alone.err and "pip install qemu.qmp" in alone.err
        explained = await tool("explain", script=script, stdin=json.dumps(REFUSED), PYTHONPATH="")
        assert explained.status == 1
        (place / where).parent.mkdir(parents=True, exist_ok=True)
        (place / where).symlink_to(QMP_LIBRARY)
        found = await tool("profile", qemu.address, script=script, PYTHONPATH="")
        assert found.status == 0 and not found.err


# With real QEMUs

class Hosts(NamedTuple):
    """QEMUs that can be asked by way of sockets in a directory."""

    lab: Lab
    place: Path

    async def start(self, name: str, *options: str) -> Machine:
        return await self.lab.start(name, "-qmp", f"unix:{self.socket(name)},server=on,wait=off",
                                    *options, under=UNDER)

    async def listening(self, name: str, *options: str, kind: str = "handshake") -> str:
        machine = await self.start(name, *options, "-incoming", "defer")
        return f"tcp:127.0.0.1:{await listen(machine, kind)}"

    def socket(self, name: str) -> Path:
        return self.place / name


def port(uri: str) -> int:
    return int(uri.rsplit(":", 1)[1])


@contextlib.asynccontextmanager
async def hosts(place: Path) -> AsyncIterator[Hosts]:
    command = [str(QEMU), "-nodefaults", "-display", "none", "-m", "16"]
    async with Lab(command, "qtest") as lab:
        yield Hosts(lab, place)


async def test_real_profiles_are_judged(place: Path) -> None:
    async with hosts(place) as real:
        await real.start(SOURCE, *Q35)
        await real.start("same", *Q35, *CANDIDATE)
        await real.start("more", *Q35, *CANDIDATE, "-device", "virtio-rng-pci")
        await real.start("other", *I440FX, *CANDIDATE)
        profile = await tool("profile", real.socket(SOURCE))
        assert profile.status == 0 and not profile.err

        async def judged(name: str, *options: str) -> Ended:
            return await tool("check", *options, "-", real.socket(name), stdin=profile.out)

        same = await judged("same")
        assert same.status == 0 and not same.err
        assert same.out.startswith("compatible\n")
        assert re.search("^capabilities  return-path, multifd, switchover-ack$", same.out, re.M)
        assert re.search("^source        QEMU 10.*, pc-q35-10.0, x86_64$", same.out, re.M)
        assert re.search("^untried       .* channels of multifd ", same.out, re.M)
        none = await judged("same", "--optional-capabilities=", "--json")
        assert json.loads(none.out)["capabilities"] == ["return-path"]

        more = await judged("more")
        assert more.status == 0
        assert re.match(r"compatible, with \d+ warnings?, 1 info\n", more.out)
        assert "section-extra" in more.out
        assert re.search(r"^info +no-return +\S+/virtio-rng +missing +version 1$", more.out, re.M)
        strict = await judged("more", "--warnings-as-errors")
        assert strict.status == 1 and strict.out.startswith("not compatible: ")
        assert "no-return" not in strict.out

        other = await judged("other")
        assert other.status == 1
        assert "machine-type" in other.out and "Start the destination with -machine" in other.out
        require_failure(await judged(SOURCE), "check-migrate-profile", "incoming")


async def test_real_issues_are_ignored(place: Path) -> None:
    """In a profile and over the wire; whoever mistypes is told so."""
    async with hosts(place) as real:
        await real.start(SOURCE, *Q35, "-uuid", "6d696772-6174-696f-6e20-68616e647368",
                         "-device", "virtio-rng-pci,addr=5")
        profile = (await tool("profile", real.socket(SOURCE))).out
        uri = await real.listening("other", *Q35, "-uuid", "616b6520-7465-7374-2075-756964206262")

        async def both(*options: str) -> Ended:
            judged = await tool("check", *options, "-", real.socket("other"), stdin=profile)
            checked = await tool("check", *options, real.socket(SOURCE), uri)
            assert judged.status == checked.status
            return judged

        assert (await both()).status == 1
        assert (await both("--ignore-issues=uuid")).status == 1
        result = await both("--ignore-issues=section-missing")
        assert result.status == 0 and re.match("compatible, with 2 warnings", result.out)
        assert len(re.findall(r"\(ignored\)", result.out)) == 1
        strict = ("--warnings-as-errors", "--ignore-issues")
        result = await both(*strict, "section-missing")
        assert result.status == 1 and result.out.startswith("not compatible: 2 warnings\n")
        result = await both(*strict, "section-missing:0000:00:05.0/virtio-rng,uuid:uuid")
        assert result.status == 0 and len(re.findall(r"\(ignored\)", result.out)) == 2
        assert (await both(*strict, "section-missing:0000:00:06.0/virtio-rng,uuid")).status == 1
        for word in ("busy", "section-mising", "cpu:"):
            result = await both(f"--ignore-issues=uuid,{word}")
            require_failure(result, f"'{word}' cannot be ignored", "section-missing")


async def test_real_cures_help(place: Path) -> None:
    """Taken literally, one after the other."""
    device = ("-device", "virtio-rng-pci,addr=5")
    async with hosts(place) as real:
        await real.start(SOURCE, *Q35, "-smp", "2", *device)
        profile = (await tool("profile", real.socket(SOURCE))).out
        tries: list[tuple[str, Sequence[str], str]] = [
            ("machine", (*I440FX, "-smp", "2", *device), "exactly the source's machine type"),
            ("memory", (*Q35, "-smp", "2", *device, "-m", "32"), "-m, the memory backend"),
            ("address", (*Q35, "-smp", "2", "-device", "virtio-rng-pci"), "the same addresses"),
            ("cpus", (*Q35, *device), "-smp"),
            ("cured", ("-machine", "pc-q35-10.0", "-smp", "2", *device), "")]
        for name, options, cure in tries:
            await real.start(name, *options, *CANDIDATE)
            result = await tool("check", "-", real.socket(name), stdin=profile)
            assert result.status == (1 if cure else 0), result
            assert cure in squeezed(result.out)


async def test_real_output_is_as_in_the_manual(place: Path) -> None:
    shown = MANUAL.read_text().split("For instance::\n\n")[1].split("\n\nLines are")[0]
    async with hosts(place) as real:
        await real.start(SOURCE, "-machine", "pc-q35-10.0")
        await real.start("large", "-machine", "pc-q35-10.0", "-m", "32", *CANDIDATE)
        profile = await tool("profile", real.socket(SOURCE))
        result = await tool("check", "-", real.socket("large"), stdin=profile.out)
    version = re.compile(r"QEMU [^,]+,")
    assert version.sub("QEMU,", result.out) == version.sub("QEMU,", textwrap.dedent(shown)) + "\n"


async def test_real_profile_and_check_in_a_shell(place: Path) -> None:
    async with hosts(place) as real:
        await real.start(SOURCE, *Q35)
        await real.start("same", *Q35, *CANDIDATE)
        ask = "tool profile {0}/source > {0}/p && tool check {0}/p {0}/same"
        result = await asyncio.to_thread(shell, ask.format(place))
        assert result.status == 0 and result.out.startswith("compatible\n") and not result.err
        pipe = "tool profile {0}/source | tool check <(cat) {0}/same | grep -q ^compatible"
        assert await asyncio.to_thread(shell, pipe.format(place)) == Ended(0, "", "")
        result = await asyncio.to_thread(shell, ask.format(place).replace("/source", "/no", 1))
        require_failure(result, "/no")


async def test_real_checks_over_the_wire(place: Path) -> None:
    async with hosts(place) as real:
        source = await real.start(SOURCE, *Q35)
        same = await real.listening("same", *Q35)
        more = await real.listening("more", *Q35, "-device", "virtio-rng-pci")
        other = await real.listening("other", *I440FX)
        old = await real.listening("old", *Q35, kind="main")

        async def checked(*arguments: str) -> Ended:
            result = await tool("check", *arguments[:-1], real.socket(SOURCE), arguments[-1])
            assert not result.err
            return result

        for _ in range(3):
            result = await checked(same)
            assert result.status == 0 and result.out.startswith("compatible\n")
            assert re.search("^destination   QEMU 10.*, pc-q35-10.0, x86_64$", result.out, re.M)
            assert re.search("^untried       .* channels of multifd ", result.out, re.M)
        result = await checked("--optional-capabilities=", "--json", same)
        facts = json.loads(result.out)
        assert facts["check-only"] is True and facts["capabilities"] == ["return-path"]
        assert (await checked(more)).status == 0
        assert (await checked("--warnings-as-errors", more)).status == 1
        result = await checked(other)
        assert result.status == 1 and "pc-i440fx-10.0" in result.out
        result = await checked(old)
        assert result.status == 2
        assert result.out.startswith("could not tell: the handshake failed\n\nreason        ")
        result = await checked(f"unix:{place}/nobody")
        assert result.status == 2 and "No such file" in result.out

        # Nobody has noticed.
        assert "status" not in await source.migration()
        for machine in real.lab.machines[1:4]:
            assert (await machine.migration())["status"] == "setup"
            assert (await machine.execute("query-status"))["status"] == "inmigrate"
        await require_good_migration(source, real.lab.machines[1], port(same))


async def test_real_check_over_unix_sockets(place: Path) -> None:
    async with hosts(place) as real:
        await real.start(SOURCE, *Q35)
        destination = await real.start("same", *Q35, "-incoming", "defer")
        await destination.execute("migrate-incoming", {"channels": [
            {"channel-type": "handshake", "addr": unix(place / "listens")}]})
        require_failure(await tool("check", "source", "unix:listens"), "QMP socket of the source")
        result = await asyncio.to_thread(
            shell, f"cd {place} && tool check source unix:listens")
        assert result.status == 0 and not result.err


@contextlib.asynccontextmanager
async def silent_listener() -> AsyncIterator[str]:
    """Somebody who takes connections, and says nothing."""
    clients: list[asyncio.StreamWriter] = []
    server = await asyncio.start_server(lambda _, writer: clients.append(writer), "127.0.0.1", 0)
    try:
        yield f"tcp:127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()
        for client in clients:
            client.close()


async def test_real_check_of_a_silent_destination(place: Path) -> None:
    async with hosts(place) as real, silent_listener() as silent:
        source = await real.start(SOURCE, *Q35)
        result = await tool("check", "--timeout=1", real.socket(SOURCE), silent)
        assert result.status == 2 and not result.err
        assert result.out.startswith("could not tell: the handshake failed\n")

        async with running("check", real.socket(SOURCE), silent) as process:
            async def begun() -> Optional[bool]:
                info = (await source.migration()).get("handshake", {})
                return info.get("status") == "in-progress" or None

            await until("the check to begin", PATIENCE, begun)
            busy = await real.listening("busy", *Q35)
            require_failure(await tool("check", "--timeout=1", real.socket(SOURCE), busy),
                            "somebody else")    # a monitor has one client
            process.send_signal(signal.SIGINT)
            assert await ended(process) == Ended(-signal.SIGINT, "", "")
        assert (await source.handshake())["status"] == "cancelled"
        assert (await tool("check", real.socket(SOURCE), busy)).status == 0


async def test_real_migrations_are_explained(place: Path) -> None:
    async with hosts(place) as real:
        source = await real.start(SOURCE, *Q35)
        other = await real.listening("other", *I440FX)
        refused = await migrate(source, port(other))
        for thing in (refused, await real.lab.machines[1].migration()):
            result = await explain(thing)
            assert result.status == 1
            assert result.out.count("\nerror ") == sum(
                issue["severity"] == "error" for issue in thing["handshake"]["issues"])
            assert "pc-i440fx-10.0" in result.out
        same = await real.listening("same", *Q35)
        await require_good_migration(source, real.lab.machines[2], port(same))
        result = await explain({"return": await source.migration()})
        assert result.status == 0
        assert "\nmigration     completed\n" in result.out
