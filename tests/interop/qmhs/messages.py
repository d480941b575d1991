# SPDX-License-Identifier: GPL-2.0-or-later
"""Sections "Types" and "HELLO" to "Issues": the messages, read and written member by member."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, Optional, TypeVar

from . import Malformed
from .strictjson import Object, is_integer, parse

SECTIONS_MAX = 16384
RAM_BLOCKS_MAX = 2048
BITMAPS_MAX = 1024
IGNORE_MAX = 64
NAME_MAX = 255          # of a section, and of a RAM block
SEVERITIES = ("error", "warning", "info")
NOT_STARTED = "not-started"
PROPERTIES = ("send-configuration", "send-section-footer", "send-switchover-start",
              "store-global-state", "multifd-flush-after-each-section",
              "multifd-clean-tls-termination", "x-preempt-pre-7-2", "suppress-vmdesc",
              "switchover-ack-legacy")

_IS: dict[str, Callable[[Any], bool]] = {
    "integer": is_integer,
    "integer of 32 bits": lambda value: is_integer(value) and value < 1 << 32,
    "string": lambda value: isinstance(value, str),
    "boolean": lambda value: isinstance(value, bool),
    "object": lambda value: isinstance(value, dict),
    "list": lambda value: isinstance(value, list),
}
INTEGER, INTEGER32, STRING, BOOLEAN, OBJECT, LIST = _IS

T = TypeVar("T")


class Members:
    """The members of an object. Those that nobody has asked for are ignored, and listed."""

    def __init__(self, value: Object, path: str = "", ignored: Optional[list[str]] = None):
        self._value = value
        self._path = path
        self.ignored: list[str] = [] if ignored is None else ignored
        self._asked: set[str] = set()

    def take(self, name: str, kind: str, always: bool = False) -> Any:
        """None if it is absent."""
        self._asked.add(name)
        if name not in self._value:
            if always:
                raise Malformed(f"there is no '{self._path}{name}'")
            return None
        value = self._value[name]
        if not _IS[kind](value):
            raise Malformed(f"'{self._path}{name}' is no {kind}")
        return value

    def strings(self, *names: str, always: bool = False) -> list[Any]:
        return [self.take(name, STRING, always) for name in names]

    def items(self, name: str, kind: str, always: bool = False) -> list[Any]:
        items = self.take(name, LIST, always) or []
        if not all(map(_IS[kind], items)):
            raise Malformed(f"'{self._path}{name}' has an item that is no {kind}")
        return items

    def object(self, name: str, read: Callable[[Members], T]) -> Optional[T]:
        value = self.take(name, OBJECT)
        return None if value is None else self._inner(value, name, read)

    def objects(self, name: str, read: Callable[[Members], T]) -> list[T]:
        return [self._inner(item, f"{name}[{index}]", read)
                for index, item in enumerate(self.items(name, OBJECT))]

    def _inner(self, value: Object, name: str, read: Callable[[Members], T]) -> T:
        inner = Members(value, f"{self._path}{name}.", self.ignored)
        result = read(inner)
        inner.end()
        return result

    def end(self) -> None:
        self.ignored += [self._path + name for name in self._value if name not in self._asked]


def _written(**members: Any) -> Object:
    """Names with hyphens; absent where there is nothing to say."""
    return {name.replace("_", "-"): value for name, value in members.items()
            if value not in (None, [], {})}


def _all_written(items: Iterable[Any]) -> list[Object]:
    return [item.write() for item in items]


@dataclass
class Peer:
    """What a side is. The profile has the same members."""

    qemu_version: Optional[str] = None
    package: Optional[str] = None
    arch: Optional[str] = None
    machine: Optional[str] = None

    @classmethod
    def read(cls, members: Members) -> Peer:
        return cls(*members.strings("qemu-version", "package", "arch", "machine"))

    def write(self) -> Object:
        return _written(**vars(self))


@dataclass
class Issue:
    """One difference that bears on the migration."""

    code: str
    severity: str
    message: str
    subject: Optional[str] = None
    source: Optional[str] = None
    destination: Optional[str] = None

    @classmethod
    def read(cls, members: Members) -> Issue:
        issue = cls(*members.strings("code", "severity", "message", always=True),
                    *members.strings("subject", "source", "destination"))
        if issue.severity not in SEVERITIES:
            issue.severity = "warning"
        return issue

    def write(self) -> Object:
        return _written(**vars(self))


@dataclass
class Declined:
    """An optional capability that is not effective."""

    capability: str
    reason: str

    @classmethod
    def read(cls, members: Members) -> Declined:
        return cls(*members.strings("capability", "reason", always=True))

    def write(self) -> Object:
        return dict(vars(self))


@dataclass(frozen=True)
class Parameter:
    """Of a capability."""

    capability: str
    name: str
    value: str

    @classmethod
    def read(cls, members: Members) -> Parameter:
        return cls(*members.strings("capability", "name", "value", always=True))

    def write(self) -> Object:
        return dict(vars(self))


@dataclass
class Combination:
    """What one optional capability does to another one; in files only."""

    capability: str
    with_: str
    reason: Optional[str] = None

    @classmethod
    def read(cls, members: Members) -> Combination:
        return cls(*members.strings("capability", "with", always=True),
                   *members.strings("reason"))

    def write(self) -> Object:
        return {"capability": self.capability, "with": self.with_, **_written(reason=self.reason)}


def _take_name(members: Members) -> str:
    name: str = members.take("name", STRING, always=True)
    if len(name.encode()) > NAME_MAX:
        raise Malformed(f"a name of {len(name.encode())} bytes")
    return name


@dataclass
class Section:
    """Instances that differ in nothing else. None: instance 0 alone."""

    name: str
    version: int
    instances: Optional[list[int]] = None
    conditional: bool = False
    promises: Optional[Object] = None       # data: only who has the device knows what they mean

    @classmethod
    def read(cls, members: Members) -> Section:
        section = cls(_take_name(members), members.take("version", INTEGER32, always=True),
                      conditional=members.take("conditional", BOOLEAN) or False,
                      promises=members.take("promises", OBJECT))
        if members.take("instances", LIST) is not None:
            section.instances = members.items("instances", INTEGER32)
        members.take("minimum-version", INTEGER32)
        return section

    @property
    def every_instance(self) -> list[int]:
        return [0] if self.instances is None else self.instances

    def write(self) -> Object:
        return _written(name=self.name, version=self.version, instances=self.instances,
                        conditional=self.conditional or None, promises=self.promises)


@dataclass
class RamBlock:
    """A piece of the guest's memory."""

    name: str
    size: int
    max_size: Optional[int] = None
    page_size: Optional[int] = None
    resizeable: bool = False
    conditional: bool = False
    shared_file: bool = False
    address: Optional[int] = None
    mapped: Optional[list[Object]] = None   # data

    @classmethod
    def read(cls, members: Members) -> RamBlock:
        return cls(_take_name(members), members.take("size", INTEGER, always=True),
                   members.take("max-size", INTEGER), members.take("page-size", INTEGER),
                   members.take("resizeable", BOOLEAN) or False,
                   members.take("conditional", BOOLEAN) or False,
                   members.take("shared-file", BOOLEAN) or False,
                   members.take("address", INTEGER), members.take("mapped", LIST))

    def write(self) -> Object:
        return _written(**{**vars(self), **{name: getattr(self, name) or None for name in
                                            ("resizeable", "conditional", "shared_file")}})


@dataclass(frozen=True)
class Bitmap:
    """A dirty bitmap, and the node that it belongs to. No name, on a destination: any."""

    node: str
    name: Optional[str] = None

    @classmethod
    def read(cls, members: Members) -> Bitmap:
        node, name = members.take("node", STRING, always=True), members.take("name", STRING)
        if max(len(text.encode()) for text in (node, name or "")) > NAME_MAX:
            raise Malformed("a long name of a bitmap")
        return cls(node, name)

    def write(self) -> Object:
        return _written(**vars(self))


def _read_stream(members: Members) -> dict[str, bool]:
    values = {name: members.take(name, BOOLEAN) for name in PROPERTIES}
    return {name: value for name, value in values.items() if value is not None}


@dataclass
class Profile:
    """What a source is. A list that is empty is not compared."""

    peer: Peer = field(default_factory=Peer)
    page_size: Optional[int] = None
    host_page_size: Optional[int] = None
    uuid: Optional[str] = None
    name: Optional[str] = None
    capabilities: list[str] = field(default_factory=list)
    required_capabilities: list[str] = field(default_factory=list)
    parameters: list[Parameter] = field(default_factory=list)
    stream: dict[str, bool] = field(default_factory=dict)
    sections: list[Section] = field(default_factory=list)
    ram_blocks: list[RamBlock] = field(default_factory=list)
    bitmaps: list[Bitmap] = field(default_factory=list)
    unmigratable: list[str] = field(default_factory=list)
    blockers: list[str] = field(default_factory=list)

    @classmethod
    def read(cls, members: Members) -> Profile:
        profile = cls(
            Peer.read(members),
            members.take("page-size", INTEGER), members.take("host-page-size", INTEGER),
            *members.strings("uuid", "name"),
            members.items("capabilities", STRING), members.items("required-capabilities", STRING),
            members.objects("parameters", Parameter.read),
            members.object("stream", _read_stream) or {},
            members.objects("sections", Section.read),
            members.objects("ram-blocks", RamBlock.read),
            members.objects("bitmaps", Bitmap.read),
            members.items("unmigratable", STRING), members.items("blockers", STRING))
        profile.check_bounds()
        return profile

    def check_bounds(self) -> None:
        if sum(len(item.every_instance) or 1 for item in self.sections) > SECTIONS_MAX:
            raise Malformed(f"more than {SECTIONS_MAX} sections")
        if len(self.ram_blocks) > RAM_BLOCKS_MAX:
            raise Malformed(f"more than {RAM_BLOCKS_MAX} RAM blocks")
        if len(self.bitmaps) > BITMAPS_MAX:
            raise Malformed(f"more than {BITMAPS_MAX} dirty bitmaps")

    def write(self) -> Object:
        members = {name: value for name, value in vars(self).items() if name != "peer"}
        for name in ("parameters", "sections", "ram_blocks", "bitmaps"):
            members[name] = _all_written(members[name])
        return {**self.peer.write(), **_written(**members)}


@dataclass
class Hello:
    """What a source begins with."""

    versions: list[int] = field(default_factory=lambda: [1])
    purpose: str = "migrate"
    required: list[str] = field(default_factory=list)
    features: list[str] = field(default_factory=list)
    optional_capabilities: list[str] = field(default_factory=list)
    warnings_as_errors: bool = False
    ignore: list[str] = field(default_factory=list)
    profile: Profile = field(default_factory=Profile)
    declined: list[Declined] = field(default_factory=list)              # in files only
    combinations: list[Combination] = field(default_factory=list)       # likewise
    not_understood: list[str] = field(default_factory=list)

    @classmethod
    def read(cls, value: Object) -> Hello:
        members = Members(value)
        hello = cls(
            members.items("versions", INTEGER32, always=True),
            members.take("purpose", STRING, always=True),
            members.items("required", STRING, always=True),
            members.items("features", STRING), members.items("optional-capabilities", STRING),
            members.take("warnings-as-errors", BOOLEAN) or False,
            members.items("ignore", STRING),
            members.object("profile", Profile.read) or Profile(),
            members.objects("declined", Declined.read),
            members.objects("combinations", Combination.read))
        members.end()
        if len(hello.ignore) > IGNORE_MAX:
            raise Malformed(f"more than {IGNORE_MAX} issues to be ignored")
        hello.not_understood = members.ignored
        return hello

    def write(self) -> Object:
        frozen = {"versions": self.versions, "purpose": self.purpose, "required": self.required}
        return {**frozen, **_written(
            features=self.features, optional_capabilities=self.optional_capabilities,
            warnings_as_errors=self.warnings_as_errors or None, ignore=self.ignore,
            profile=self.profile.write() or None, declined=_all_written(self.declined),
            combinations=_all_written(self.combinations))}


@dataclass
class Verdict:
    """What ACCEPT and REJECT have in common: they know the same members."""

    features: list[str] = field(default_factory=list)
    not_understood: list[str] = field(default_factory=list)
    peer: Peer = field(default_factory=Peer)
    issues: list[Issue] = field(default_factory=list)
    issues_omitted: int = 0
    message: Optional[str] = None
    version: int = 0
    capabilities: list[str] = field(default_factory=list)
    parameters: list[Parameter] = field(default_factory=list)
    declined: list[Declined] = field(default_factory=list)

    def take(self, members: Members) -> None:
        self.features = members.items("features", STRING)
        self.not_understood = members.items("not-understood", STRING)
        self.peer = members.object("peer", Peer.read) or Peer()
        self.issues = members.objects("issues", Issue.read)
        self.issues_omitted = members.take("issues-omitted", INTEGER32) or 0
        self.message = members.take("message", STRING)
        self.version = members.take("version", INTEGER32) or 0
        self.capabilities = members.items("capabilities", STRING)
        self.parameters = members.objects("parameters", Parameter.read)
        self.declined = members.objects("declined", Declined.read)

    def write(self) -> Object:
        return _written(version=self.version or None, message=self.message,
                        capabilities=self.capabilities,
                        parameters=_all_written(self.parameters),
                        declined=_all_written(self.declined), features=self.features,
                        not_understood=self.not_understood, peer=self.peer.write() or None,
                        issues=_all_written(self.issues),
                        issues_omitted=self.issues_omitted or None)


class Accept(Verdict):
    """Read strictly."""

    @classmethod
    def read(cls, value: Object) -> Accept:
        accept = cls()
        accept.take(Members(value))
        return accept


class Reject(Verdict):
    """Nothing in it can be malformed."""

    @classmethod
    def read(cls, value: Object) -> Reject:
        reject = cls()
        try:
            reject.take(Members(value))
        except Malformed:
            reject = cls()
            reject.message, reject.issues, reject.issues_omitted = _salvaged(value)
        return reject


def _salvaged(value: Object) -> tuple[Optional[str], list[Issue], int]:
    """What is good in a message that counts by its type."""
    message, items, omitted = (value.get(name) for name in ("message", "issues", "issues-omitted"))
    issues, lost = [], 0
    for item in items if isinstance(items, list) else []:
        try:
            issues.append(Issue.read(Members(item if isinstance(item, dict) else {})))
        except Malformed:
            lost += 1
    return (message if isinstance(message, str) else None, issues,
            lost + (omitted if is_integer(omitted) else 0))


@dataclass
class Commit:
    """The source agrees."""

    digest: str
    without: list[Declined] = field(default_factory=list)

    @classmethod
    def read(cls, value: Object) -> Commit:
        members = Members(value)
        return cls(members.take("digest", STRING, always=True),
                   members.objects("without", Declined.read))

    def write(self) -> Object:
        return _written(digest=self.digest, without=_all_written(self.without))


@dataclass
class Reason:
    """ABORT, LOADED or LAST WORD. Nothing in it can be malformed."""

    message: Optional[str] = None
    issues: list[Issue] = field(default_factory=list)
    issues_omitted: int = 0
    guest: Optional[str] = None
    loaded: bool = False

    @classmethod
    def read(cls, value: Object) -> Reason:
        """What is said of the guest counts by itself, as each issue does."""
        members = Members(value)
        try:
            return cls(members.take("message", STRING), members.objects("issues", Issue.read),
                       members.take("issues-omitted", INTEGER32) or 0,
                       members.take("guest", STRING), value.get("loaded") is True)
        except Malformed:
            guest = value.get("guest")
            return cls(*_salvaged(value), guest if isinstance(guest, str) else None,
                       value.get("loaded") is True)

    @property
    def gives_back(self) -> bool:
        return self.guest == NOT_STARTED and not self.loaded

    def write(self) -> Object:
        return _written(message=self.message, issues=_all_written(self.issues),
                        issues_omitted=self.issues_omitted or None, guest=self.guest,
                        loaded=self.loaded or None)


def read_verdict(accepted: bool, payload: bytes) -> Verdict:
    """A REJECT that cannot be read is one, too."""
    if accepted:
        return Accept.read(parse(payload))
    try:
        return Reject.read(parse(payload))
    except Malformed:
        return Reject()


def read_reason(payload: bytes) -> Reason:
    try:
        return Reason.read(parse(payload))
    except Malformed:
        return Reason()
