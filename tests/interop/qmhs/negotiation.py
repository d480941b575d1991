# SPDX-License-Identifier: GPL-2.0-or-later
"""What a destination decides, and what a source thinks of that."""

from __future__ import annotations

import functools
import operator
import re
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from itertools import chain, combinations
from typing import Any, Optional

from .frames import NO_SESSION
from .messages import (Accept, Bitmap, Declined, Hello, Issue, Parameter, Peer, Profile, RamBlock,
                       Section)
from .strictjson import Object

RETURN_PATH = "return-path"
NAMED_CHANNELS = "named-channels"
LATE_ERROR = "late-error"
ONE_OWNER = "one-owner"
RESUME_HEADER = "resume-header"
CHANNELS = {"multifd": "multifd", "postcopy-preempt": "preempt"}    # that a capability needs
NEGOTIABLE = ("postcopy-ram", "dirty-bitmaps", "x-ignore-shared", "switchover-ack", *CHANNELS)
DEFAULTS = {"multifd-channels": "2", "multifd-compression": "none"}

# A capability that both sides have to agree on; None: the difference is an error anyway.
STREAM_PROPERTIES: dict[str, Optional[str]] = {
    "send-configuration": None,
    "send-section-footer": None,
    "suppress-vmdesc": None,
    "multifd-flush-after-each-section": "multifd",
    "x-preempt-pre-7-2": "postcopy-preempt",
    "switchover-ack-legacy": "switchover-ack",
}

RELATED_ARCHS = (("i386", "x86_64"), ("arm", "aarch64"), ("ppc", "ppc64"),
                 ("riscv32", "riscv64"), ("mips", "mipsel", "mips64", "mips64el"),
                 ("sparc", "sparc64"))

IGNORABLE = ("cpu", "device", "disk", "section-missing", "section-version", "section-extra",
             "section-schema", "ram-block-missing", "ram-block-size", "ram-block-address",
             "ram-block-page-size", "ram-block-extra", "bitmap-missing", "uuid", "arch")
IGNORED = " (ignored)"

COMPRESSIONS = ("none", "zlib", "zstd", "qatzip", "qpl", "uadk")

Possible = Callable[[Collection[str]], bool]


def is_channels(value: str) -> bool:
    return re.fullmatch("[1-9][0-9]{0,2}", value) is not None and int(value) <= 255


def value_of(parameters: Sequence[Parameter], name: str) -> str:
    """What was sent, or what it means that nothing was."""
    sent = [item.value for item in parameters if item.name == name]
    return sent[0] if sent else DEFAULTS[name]


def other_channels(capabilities: Collection[str],
                   parameters: Sequence[Parameter]) -> list[tuple[str, int]]:
    """Names and indices."""
    found = []
    if "multifd" in capabilities:
        count = int(value_of(parameters, "multifd-channels"))
        found += [("multifd", index) for index in range(count)]
    if "postcopy-preempt" in capabilities:
        found.append(("preempt", 0))
    return found


def is_ignored(hello: Hello, issue: Issue) -> bool:
    """Whether it is no reason to refuse, because the source says so."""
    return (issue.severity in ("error", "warning") and issue.code in IGNORABLE
            and bool({issue.code, f"{issue.code}:{issue.subject}"} & set(hello.ignore)))


def has_reason(hello: Hello, issues: Sequence[Issue]) -> bool:
    """Whether one of them is a reason not to go on."""
    bad = ("error", "warning") if hello.warnings_as_errors else ("error",)
    return any(issue.severity in bad and not is_ignored(hello, issue) for issue in issues)


def section_text(name: str, instance: int) -> str:
    return f"{name} {instance}" if instance else name


@dataclass(frozen=True)
class Reader:
    """What a destination loads a section with."""

    version: int
    minimum: int = 0
    is_always_sent: bool = True
    promises: Optional[Object] = None       # to a guest that nobody has told anything yet


@dataclass
class Here:
    """What a destination is, and what it can do."""

    peer: Peer = field(default_factory=Peer)
    versions: Sequence[int] = (1,)
    purposes: Sequence[str] = ("migrate", "check")
    features: Sequence[str] = (NAMED_CHANNELS, LATE_ERROR, ONE_OWNER, RESUME_HEADER)
    negotiable: Sequence[str] = NEGOTIABLE
    others: Collection[str] = ("auto-converge", "xbzrle", "events")  # known, and nothing more
    possible: Possible = lambda capabilities: True
    compressions: Sequence[str] = ("none", "zlib")
    page_size: Optional[int] = None
    host_page_size: int = 4096
    uuid: Optional[str] = None
    stream: dict[str, bool] = field(default_factory=dict)
    sections: Optional[dict[tuple[str, int], Reader]] = None
    ram_blocks: Optional[list[RamBlock]] = None
    bitmaps: Optional[list[Bitmap]] = None      # that it could load


@dataclass
class Judgement:
    """All that a verdict says."""

    version: int = 0
    features: list[str] = field(default_factory=list)
    capabilities: list[str] = field(default_factory=lambda: [RETURN_PATH])
    parameters: list[Parameter] = field(default_factory=list)
    declined: list[Declined] = field(default_factory=list)
    issues: list[Issue] = field(default_factory=list)
    is_accepted: bool = False


def judge(hello: Hello, here: Here) -> Judgement:
    return _Judge(hello, here).judge()


class _Judge:
    """One HELLO, and one machine.

    What bears on a capability is an issue if that is effective because it is
    required, and bars it from becoming effective because it is wanted.
    """

    def __init__(self, hello: Hello, here: Here):
        self._hello = hello
        self._there = hello.profile
        self._here = here
        self._result = Judgement()
        self._barred: dict[str, str] = {}       # optional capabilities, and why
        self._not_shared_here: list[str] = []   # blocks whose contents may be elsewhere
        self._droppable: list[str] = []         # optional ones that have channels

    def judge(self) -> Judgement:
        self._choose()
        self._compare_identity()
        self._compare_sections()
        self._require()
        self._compare_stream()
        self._compare_ram_blocks()
        self._compare_bitmaps()
        self._wish()
        self._warn_of_what_is_not_shared()
        self._result.parameters = [item for item in self._there.parameters
                                   if item.capability in self._result.capabilities
                                   and item.capability in self._negotiable]
        self._result.is_accepted = not has_reason(self._hello, self._result.issues)
        if self._result.is_accepted:
            self._look_at_the_way_back()
            if self._hello.purpose == "check":
                self._note_what_is_untried()
        return self._result

    @property
    def _negotiable(self) -> list[str]:
        """Without those that need channels which the two cannot have."""
        return [name for name in self._here.negotiable
                if NAMED_CHANNELS in self._result.features or name not in CHANNELS]

    def _issue(self, code: str, subject: str, severity: str = "error", source: Any = None,
               destination: Any = None) -> None:
        theirs, ours = (None if value is None else str(value) for value in (source, destination))
        issue = Issue(code, severity, f"{subject}: {code}, {theirs} on the source, {ours} here",
                      subject, theirs, ours)
        if is_ignored(self._hello, issue):
            issue.severity = "warning"
            issue.message += IGNORED
        self._result.issues.append(issue)

    def _choose(self) -> None:
        hello, here = self._hello, self._here
        self._result.features = [name for name in hello.features if name in here.features]
        common = [number for number in hello.versions if number in here.versions]
        if common:
            self._result.version = common[0]
        else:
            self._issue("protocol-version", "versions", source=hello.versions,
                        destination=list(here.versions))
        if hello.purpose not in here.purposes:
            self._issue("purpose", hello.purpose)
        for name in hello.required:
            if name not in here.features:
                self._issue("required-feature", name)

    def _compare_identity(self) -> None:
        there, here = self._there, self._here
        self._compare("machine-type", "machine", there.peer.machine, here.peer.machine)
        related = any(there.peer.arch in group and here.peer.arch in group
                      for group in RELATED_ARCHS)
        self._compare("arch", "arch", there.peer.arch, here.peer.arch,
                      "warning" if related else "error")
        self._compare("page-size", "page-size", there.page_size or None, here.page_size)
        validate = "validate-uuid" in there.capabilities
        self._compare("uuid", "uuid", there.uuid and there.uuid.lower(),
                      here.uuid and here.uuid.lower(), "error" if validate else "warning")
        for reason in [*there.unmigratable, *there.blockers]:
            self._issue("unmigratable", reason)

    def _compare(self, code: str, subject: str, source: Any, destination: Any,
                 severity: str = "error") -> None:
        if source is not None and destination is not None and source != destination:
            self._issue(code, subject, severity, source, destination)

    def _compare_stream(self) -> None:
        there, here = self._there.stream, self._here.stream
        for name, capability in STREAM_PROPERTIES.items():
            if name not in there or name not in here:
                continue
            if there[name] == here[name]:
                continue
            if capability is None or capability in self._result.capabilities:
                self._issue("stream-format", name, source=there[name], destination=here[name])
            else:
                self._barred[capability] = f"stream property {name} differs"

    def _compare_sections(self) -> None:
        there, here = self._there.sections, self._here.sections
        if not there or not here:
            return
        seen = set()
        for item in there:
            severity = "warning" if item.conditional else "error"
            for instance in item.every_instance:
                reader = here.get((item.name, instance))
                subject = section_text(item.name, instance)
                seen.add((item.name, instance))
                if not reader:
                    self._issue("section-missing", subject, severity)
                elif not reader.minimum <= item.version <= reader.version:
                    self._issue("section-version", subject, severity, item.version,
                                reader.version)
        for (name, instance), reader in here.items():
            if reader.is_always_sent and (name, instance) not in seen:
                self._issue("section-extra", section_text(name, instance), "warning")

    def _look_at_the_way_back(self) -> None:
        """One reason is enough why the source could not load what this side would send."""
        there, here = self._there.sections, self._here.sections
        if not there or not here:
            return
        sent = {(item.name, instance): item for item in there for instance in item.every_instance}
        for missing in (False, True):
            for key, reader in here.items():
                item = sent.get(key)
                if reader.is_always_sent and (
                        not item if missing
                        else item and not item.conditional and item.version < reader.version):
                    self._issue("no-return", section_text(*key), "info",
                                item and item.version, reader.version)
                    return
        for key, reader in here.items():
            item = sent.get(key)
            if item and reader.is_always_sent and self._would_gain(item, reader):
                self._issue("no-return", section_text(*key), "info")
                return

    def _would_gain(self, there: Section, here: Reader) -> bool:
        """Whether a guest would be promised what a source of this version would speak of."""
        theirs, ours = there.promises, here.promises
        if not theirs or not ours or there.conditional or (
                self._there.peer.qemu_version != self._here.peer.qemu_version):
            return False
        gains = {name for member in ("cpu-features", "disk-writable")
                 for name in set(ours.get(member, [])) - set(theirs.get(member, []))}
        return any(not name.startswith("vmx-") for name in gains) or (
            bool(ours.get("vnet-hdr")) and not theirs.get("vnet-hdr"))

    def _compare_ram_blocks(self) -> None:
        if not self._there.ram_blocks or not self._here.ram_blocks:
            return
        there = {block.name: block for block in self._there.ram_blocks}
        here = {block.name: block for block in self._here.ram_blocks}
        for name, block in there.items():
            if name not in here:
                # The loader reads the list before it can know what is left out.
                self._issue("ram-block-missing", name, "error")
            elif not self._has_room(block, here[name]):
                self._issue("ram-block-size", name, source=block.size,
                            destination=here[name].size)
        for name in here.keys() - there.keys():
            self._issue("ram-block-extra", name, "warning")
        self._compare_page_sizes(there, here)
        self._compare_shared(there, here)

    def _has_room(self, there: RamBlock, here: RamBlock) -> bool:
        page = max(self._here.page_size or 1, self._here.host_page_size)
        size = -(-there.size // page) * page
        return size == here.size or here.resizeable and size <= (here.max_size or here.size)

    def _compare_page_sizes(self, there: dict[str, RamBlock], here: dict[str, RamBlock]) -> None:
        differ = [name for name in there.keys() & here.keys()
                  if there[name].page_size and here[name].page_size
                  and there[name].page_size != here[name].page_size]
        theirs, ours = _summary(there.values()), _summary(here.values())
        if not differ and theirs and ours and theirs != ours:
            differ = ["all RAM blocks"]
        for name in differ:
            if "postcopy-ram" in self._result.capabilities:
                self._issue("ram-block-page-size", name)
            else:
                self._barred["postcopy-ram"] = f"page size of {name} differs"

    def _compare_shared(self, there: dict[str, RamBlock], here: dict[str, RamBlock]) -> None:
        for name in there.keys() & here.keys():
            ours, theirs = here[name], there[name]
            moved = (theirs.shared_file and None not in (ours.address, theirs.address)
                     and ours.address != theirs.address)
            if ours.shared_file == theirs.shared_file and not moved:
                continue
            if theirs.shared_file and not ours.shared_file and _is_of_a_device(name):
                self._not_shared_here.append(name)
            elif "x-ignore-shared" in self._result.capabilities:
                self._issue("capability-unsupported", "x-ignore-shared")
            else:
                self._barred["x-ignore-shared"] = f"{name} is not shared in the same way"

    def _compare_bitmaps(self) -> None:
        if self._here.bitmaps is None:
            return
        for one in self._there.bitmaps:
            if any(one.node == ours.node and (None in (one.name, ours.name)
                                              or one.name == ours.name)
                   for ours in self._here.bitmaps):
                continue
            if "dirty-bitmaps" in self._result.capabilities:
                self._issue("bitmap-missing", one.node, source=one.name)
            else:
                self._barred["dirty-bitmaps"] = f"there is no node {one.node}"

    def _warn_of_what_is_not_shared(self) -> None:
        if self._not_shared_here and "x-ignore-shared" in self._result.capabilities:
            self._issue("capability-unsupported", "x-ignore-shared", "warning",
                        self._not_shared_here)

    def _note_what_is_untried(self) -> None:
        untried = [name for name in CHANNELS if name in self._result.capabilities]
        if untried:
            self._issue("channels-untried", ", ".join(untried), "info")

    def _require(self) -> None:
        pending: list[str] = []
        for name in dict.fromkeys(self._there.required_capabilities):
            if name == RETURN_PATH:
                continue
            if name in self._negotiable:
                issues = self._parameter_issues(name)
                for code, subject in issues:
                    self._issue(code, subject)
                if not issues:
                    pending.append(name)
            elif name in CHANNELS and name in self._here.negotiable:
                self._issue("transport", name)
            elif name in self._here.others:
                self._issue("capability-unsupported", name)
            else:
                self._issue("capability-unknown", name)
        for name in self._settle(pending):
            alone = self._here.possible([RETURN_PATH, name])
            self._issue("capability-conflict" if alone else "capability-unsupported", name)

    def _settle(self, pending: list[str]) -> list[str]:
        """Returns those that do not work even when the others are there."""
        effective = self._result.capabilities
        for name in pending * 2:
            if name not in effective and self._here.possible([*effective, name]):
                effective.append(name)
        return [name for name in pending if name not in effective]

    def _parameter_issues(self, capability: str) -> list[tuple[str, str]]:
        issues = []
        seen = set()
        for item in self._there.parameters:
            if item.capability != capability:
                continue
            if capability != "multifd" or item.name not in DEFAULTS:
                issues.append(("parameter-unknown", item.name))
            elif item.name in seen or not self._can_take(item):
                issues.append(("parameter-value", item.name))
            seen.add(item.name)
        return issues

    def _can_take(self, item: Parameter) -> bool:
        return (is_channels(item.value) if item.name == "multifd-channels"
                else item.value in self._here.compressions)

    def _wish(self) -> None:
        for name in self._hello.optional_capabilities:
            if name in self._result.capabilities:
                continue
            reason = self._reason_to_decline(name)
            if reason:
                self._result.declined.append(Declined(name, reason))
            else:
                self._result.capabilities.append(name)
                self._droppable += [name] if name in CHANNELS else []

    def _reason_to_decline(self, name: str) -> Optional[str]:
        if name not in self._negotiable:
            return "it is not negotiable here"
        if name in self._barred:
            return self._barred[name]
        for _, subject in self._parameter_issues(name):
            return f"parameter {subject}"
        if not self._works({*self._result.capabilities, name}):
            return "it does not work with the others"
        return None

    def _works(self, capabilities: set[str]) -> bool:
        """Also if the channels of what is optional do not get through."""
        droppable = self._droppable
        subsets = chain.from_iterable(combinations(droppable, size)
                                      for size in range(len(droppable) + 1))
        return all(self._here.possible(capabilities - set(subset)) for subset in subsets)


def _summary(blocks: Collection[RamBlock]) -> int:
    """All page sizes in one number; 0 if one is missing."""
    sizes = [block.page_size or 0 for block in blocks]
    return functools.reduce(operator.or_, sizes) if all(sizes) else 0


def _is_of_a_device(ram_block: str) -> bool:
    return "/" in ram_block and not ram_block.startswith("/")


def objections(hello: Hello, session: bytes, accept: Accept) -> list[str]:
    """Section "What the source checks": why the source has to abort."""
    profile: Profile = hello.profile
    capabilities = accept.capabilities
    offered = [RETURN_PATH, *profile.required_capabilities, *hello.optional_capabilities]
    found = []
    if accept.version != 1 or 1 not in hello.versions:
        found.append(f"version {accept.version}")
    if session == NO_SESSION:
        found.append("no session")
    found += [f"{name} is missing" for name in [RETURN_PATH, *profile.required_capabilities]
              if name not in capabilities]
    found += [f"{name} was not asked for" for name in capabilities
              if name not in offered]
    found += [f"{name} comes twice" for name in set(capabilities)
              if capabilities.count(name) > 1]
    if set(capabilities) & set(CHANNELS) and not (
            NAMED_CHANNELS in hello.features and NAMED_CHANNELS in accept.features):
        found.append(f"other channels without {NAMED_CHANNELS}")
    if accept.parameters != [item for item in profile.parameters
                             if item.capability in capabilities]:
        found.append("other parameters")
    if hello.warnings_as_errors and (
            any(issue.severity == "error" for issue in accept.issues)
            or has_reason(hello, accept.issues)):
        found.append("warnings")
    return found


def may_drop(hello: Hello, effective: Sequence[str], without: Sequence[Declined]) -> bool:
    """Whether COMMIT may go on without these."""
    names = [item.capability for item in without]
    return len(names) == len(set(names)) and all(
        name in CHANNELS and name in effective and name in hello.optional_capabilities
        and name not in hello.profile.required_capabilities for name in names)
