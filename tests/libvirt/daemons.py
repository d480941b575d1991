# SPDX-License-Identifier: GPL-2.0-or-later
"""Two libvirtd on one machine, each of which believes that it has a host of its own.

Nothing of the machine is touched, nothing is installed, and there is no port that is in use
anywhere else: see keeper.py and the script libvirtd. They share a network.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Optional

import pytest
from conftest import TOP
from keys import make_keys

HERE = Path(__file__).resolve().parent
LIMIT = 60.0            # for what should be quick, on a machine that is not
START_LIMIT = 90.0
FETCH_LIMIT = 300
NAMESPACES = ("unshare", "--pid", "--fork", "--kill-child", "--mount", "--mount-proc", "--net",
              "--propagation", "private")

LIBVIRTD_CONF = """
host_uuid = "{uuid}"
auth_unix_ro = "none"
auth_unix_rw = "none"
log_level = 3
log_filters = "{filters}"
log_outputs = "1:file:{log}"
"""

# As root, since there is nothing to be protected from these guests.
QEMU_CONF: dict[str, Any] = {
    "user": "root",
    "group": "root",
    "dynamic_ownership": 0,
    "remember_owner": 0,
    "security_driver": "none",
    "namespaces": [],
    "cgroup_controllers": [],
    "stdio_handler": "file",
}

COMPLAINT = re.compile(r": (error|warning) :(?!.*/dev/kvm)")

# QMP is told at the level of information.
FILTERS = "2:qemu.qemu_monitor 2:qemu.qemu_migration"


class Failed(Exception):
    """What was to work did not."""


class Result(NamedTuple):
    status: Optional[int]       # None: it took too long
    stdout: str
    stderr: str

    @property
    def ok(self) -> bool:
        return self.status == 0


class Installation(NamedTuple):
    """A libvirt laid out below a directory as it would be below /."""

    root: Path

    def _find(self, name: str) -> Path:
        found = next((self.root / "usr").glob(f"lib*/**/{name}"), None)
        if not found:
            raise Failed(f"{self.root} is no libvirt: it has no {name}")
        return found

    @property
    def environment(self) -> list[str]:
        """Of its clients, and of other programs that are to use it."""
        return ["env", f"LD_LIBRARY_PATH={self._find('libvirt.so.0').parent}"]

    @property
    def virsh(self) -> list[str]:
        return [*self.environment, str(self.root / "usr/bin/virsh"), "-q"]

    @property
    def drivers(self) -> Path:
        return self._find("libvirt_driver_qemu.so").parent

    @property
    def version(self) -> str:
        return run([*self.virsh, "--version"]).stdout.strip()


class Running:
    """A command that is not waited for yet."""

    def __init__(self, command: Sequence[Any]) -> None:
        self._process = subprocess.Popen(  # pylint: disable=consider-using-with
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            text=True, errors="replace")

    @property
    def over(self) -> bool:
        return self._process.poll() is not None

    def result(self, limit: float = LIMIT) -> Result:
        """It is killed if it takes longer."""
        try:
            stdout, stderr = self._process.communicate(timeout=limit)
            return Result(self._process.returncode, stdout, stderr)
        except subprocess.TimeoutExpired:
            return Result(None, *self._kill())
        except BaseException:
            self._kill()
            raise

    def end(self) -> None:
        """Of what would not end by itself."""
        self._kill()

    def _kill(self) -> tuple[str, str]:
        self._process.kill()
        return self._process.communicate()


def run(command: Sequence[Any], limit: float = LIMIT) -> Result:
    return Running(command).result(limit)


def fetched(kind: str = "package") -> Installation:
    """Debian's own, or what else scripts/fetch-libvirt knows; skips the test if it cannot."""
    if platform.machine() != "x86_64":
        pytest.skip("the guest is one for x86-64")
    done = run(["timeout", str(FETCH_LIMIT), TOP / "scripts/fetch-libvirt", kind], FETCH_LIMIT + 10)
    if not done.ok:
        said = [line for line in done.stderr.splitlines() if not line.startswith("==>")]
        pytest.skip("there is no libvirt: " + (" ".join(" ".join(said).split()) or "too slow"))
    return Installation(Path(done.stdout.strip()))


class Keeper:
    """The namespaces, and a directory that is gone when they are."""

    def __init__(self) -> None:
        """Skips the test where there can be none."""
        if os.geteuid() != 0:
            pytest.skip("namespaces and libvirtd take root")
        self.directory = Path(tempfile.mkdtemp(prefix="libvirt-lab-"))
        self._errors = tempfile.TemporaryFile("w+")  # pylint: disable=consider-using-with
        self._process = subprocess.Popen(  # pylint: disable=consider-using-with
            [*NAMESPACES, sys.executable, HERE / "keeper.py", self.directory],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._errors, text=True,
            start_new_session=True)     # Ctrl-C is for the tests
        assert self._process.stdout
        if self._process.stdout.readline() != "ready\n":
            self.close()
            self._errors.seek(0)
            said = self._errors.read().strip().splitlines()
            pytest.skip(f"no hosts in namespaces here: {said[0] if said else 'unshare fails'}")

    def start(self, argv: Sequence[Any], output: Path) -> None:
        assert self._process.stdin
        line = json.dumps({"argv": [str(one) for one in argv], "output": str(output)})
        self._process.stdin.write(line + "\n")
        self._process.stdin.flush()

    def close(self) -> None:
        """Once it has ended, so has all that it started."""
        assert self._process.stdin
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        try:
            self._process.wait(LIMIT)
        finally:
            self._process.kill()        # and its child with it
            shutil.rmtree(self.directory, ignore_errors=True)


class Setup(NamedTuple):
    """What a host has that others do not."""

    filters: str = FILTERS
    conf: Mapping[str, Any] = {}    # of QEMU's driver
    hook: str = ""                  # a script, called for what happens to guests


class Host:
    """A libvirtd, and what is below its directory."""

    def __init__(self, name: str, keeper: Keeper, installation: Installation,
                 setup: Setup = Setup()) -> None:
        self.name = name
        self.installation = installation
        self._keeper = keeper
        self._directory = keeper.directory / name
        self.log = self._directory / "log/libvirtd.log"
        self._configure(setup)
        self.start()

    def start(self) -> None:
        """Once more, if it has been killed."""
        self._keeper.start(
            ["env", "-i", "PATH=/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL=C",
             f"LIBVIRT_DRIVER_DIR={self.installation.drivers}",
             "unshare", "--mount", "--uts", "--propagation", "private",
             HERE / "libvirtd", self.name, self._directory, self.installation.root],
            self._directory / "output")
        self._wait()

    def processes(self, *words: str) -> list[int]:
        """Those that have all the words in their command line, and belong to this host."""
        own, found = f"{self._directory}/", []
        for place in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                command = (place / "cmdline").read_text(errors="replace").split("\0")
                mounts = (place / "mountinfo").read_text(errors="replace")
                # What is bound to /run tells whose mounts these are.
                if all(word in command for word in words) and f" {own}run /run " in mounts:
                    found.append(int(place.name))
        return found

    @property
    def daemon(self) -> list[int]:
        return self.processes("/usr/sbin/libvirtd")

    def qemu(self, guest: str) -> list[int]:
        return self.processes(f"guest={guest},debug-threads=on")

    @property
    def cache(self) -> Path:
        return self._directory / "cache"

    @property
    def status(self) -> Path:
        """Where libvirt notes what its guests are doing."""
        return self._directory / "run/libvirt/qemu"

    def _configure(self, setup: Setup) -> None:
        for place in ("etc", "log"):
            (self._directory / place).mkdir(parents=True)
        # What QEMUs can do is known to all that have the same libvirt.
        known = hash(self.installation.root)
        cache = self._keeper.directory / f"cache-{self.installation.version}-{known:x}"
        cache.mkdir(exist_ok=True)
        self.cache.symlink_to(cache)
        (self._directory / "etc/libvirtd.conf").write_text(LIBVIRTD_CONF.format(
            uuid=uuid.uuid4(), filters=setup.filters, log=self.log))
        keys = str(self._keeper.directory / "keys")
        conf = {**QEMU_CONF, "default_tls_x509_cert_dir": keys, "migrate_tls_x509_cert_dir": keys,
                **setup.conf}
        (self._directory / "etc/qemu.conf").write_text(
            "".join(f"{key} = {json.dumps(value)}\n" for key, value in conf.items()))
        if setup.hook:
            hook = self._directory / "etc/hooks/qemu"
            hook.parent.mkdir()
            hook.write_text(setup.hook)
            hook.chmod(0o755)

    def _wait(self) -> None:
        deadline = time.monotonic() + START_LIMIT
        socket = self._directory / "run/libvirt/libvirt-sock"
        while not (socket.exists() and self.virsh("uri", limit=20).ok):
            if time.monotonic() > deadline:
                raise Failed(f"libvirtd {self.name} does not answer: {self.complaints()}")
            time.sleep(0.05)

    def complaints(self) -> str:
        """What it, and the QEMU of its last guest, have said that is of interest after a
        failure."""
        logs = sorted((self._directory / "log/qemu").glob("*.log"),
                      key=lambda path: path.stat().st_mtime)
        said = []
        for path in (self._directory / "output", self.log, *logs[-1:]):
            lines = path.read_text(errors="replace").splitlines() if path.exists() else []
            if path == self.log:
                lines = [line for line in lines if COMPLAINT.search(line)]
            said += [f"{self.name}: {path.name}: {line}" for line in lines[-6:]]
        return "\n".join(said)

    def qemu_log(self, guest: str) -> Path:
        """What the QEMUs of a guest have printed."""
        return self._directory / "log/qemu" / f"{guest}.log"

    @property
    def uri(self) -> str:
        return f"qemu+unix:///system?mode=direct&socket={self._directory}/run/libvirt/libvirt-sock"

    def begin(self, *arguments: Any) -> Running:
        return Running([*self.installation.virsh, "-c", self.uri, *map(str, arguments)])

    def virsh(self, *arguments: Any, limit: float = LIMIT) -> Result:
        return self.begin(*arguments).result(limit)

    def ask(self, *arguments: Any, limit: float = LIMIT) -> str:
        """What has to succeed."""
        result = self.virsh(*arguments, limit=limit)
        if not result.ok:
            took = f"not done in {limit:g} s" if result.status is None else result.stderr.strip()
            raise Failed(f"{self.name}: virsh {' '.join(map(str, arguments))}: {took}\n"
                         f"{self.complaints()}")
        return result.stdout


class Pair(NamedTuple):
    a: Host
    b: Host
    directory: Path
    start: Callable[[Sequence[Any], Path], None]    # beside them; where to its output goes
    more: tuple[Host, ...] = ()


@contextlib.contextmanager
def hosts(a: Installation, b: Optional[Installation] = None, filters: str = FILTERS,
          setup: Callable[[str, Path], Setup] = lambda name, directory: Setup(),
          more: Sequence[str] = ()) -> Iterator[Pair]:
    """What is set up may depend on the host's name, and on the directory that all share. There
    may be more than two."""
    keeper = Keeper()
    try:
        make_keys(keeper.directory / "keys")
        first, second, *others = (
            Host(name, keeper, b if b and name == "B" else a,
                 setup(name, keeper.directory)._replace(filters=filters))
            for name in ("A", "B", *more))
        yield Pair(first, second, keeper.directory, keeper.start, tuple(others))
    finally:
        keeper.close()
