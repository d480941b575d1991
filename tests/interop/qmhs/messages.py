# SPDX-License-Identifier: GPL-2.0-or-later
"""Sections "HELLO" to "Issues": the five messages, read and written member by member."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Optional

from . import Malformed
from .strictjson import Object, is_integer, parse

VERSION_MAX = (1 << 32) - 1
SECTIONS_MAX = 16384
RAM_BLOCKS_MAX = 2048
NAME_MAX = 255          # of a section, and of a RAM block
SEVERITIES = ("error", "warning", "info")

_IS: dict[str, Callable[[Any], bool]] = {
    "integer": is_integer,
    "string": lambda value: isinstance(value, str),
    "boolean": lambda value: isinstance(value, bool),
    "object": lambda value: isinstance(value, dict),
    "list": lambda value: isinstance(value, list),
}


class Members:
    """The members of an object. Those that nobody has asked for are not understood."""

    def __init__(self, value: Object, strict: bool):
        self._value = value
        self._strict = strict
        self._asked: set[str] = set()

    def take(self, name: str, kind: str, strict: Optional[bool] = None,
             always: bool = False) -> Any:
        """None if it is absent, or counts as absent."""
        self._asked.add(name)
        if name not in self._value:
            if always:
                raise Malformed(f"there is no '{name}'")
            return None
        value = self._value[name]
        if _IS[kind](value):
            return value
        if self._strict if strict is None else strict:
            raise Malformed(f"'{name}' is no {kind}")
        return None

    def items(self, name: str, kind: str, strict: Optional[bool] = None, always: bool = False,
              strict_items: bool = False) -> list[Any]:
        """Without the items of another type, unless these have to be refused."""
        items = self.take(name, "list", strict, always) or []
        good = [item for item in items if _IS[kind](item)]
        if strict_items and len(good) < len(items):
            raise Malformed(f"'{name}' has an item that is no {kind}")
        return good

    @property
    def unknown(self) -> list[str]:
        return [name for name in self._value if name not in self._asked]


def _written(**members: Any) -> Object:
    """Names with hyphens; absent where there is nothing to say."""
    return {name.replace("_", "-"): value for name, value in members.items()
            if value not in (None, [], {})}


@dataclass
class Peer:
    """What a side is. The profile has the same members."""

    qemu_version: Optional[str] = None
    package: Optional[str] = None
    arch: Optional[str] = None
    machine: Optional[str] = None

    @classmethod
    def read(cls, value: Object) -> Peer:
        members = Members(value, strict=False)
        return cls(*(members.take(name, "string")
                     for name in ("qemu-version", "package", "arch", "machine")))

    def write(self) -> Object:
        return _written(**vars(self))


@dataclass
class Issue:
    """One difference that bears on the migration."""

    code: Optional[str] = None
    severity: str = "warning"
    subject: Optional[str] = None
    source: Optional[str] = None
    destination: Optional[str] = None
    message: Optional[str] = None

    @classmethod
    def read(cls, value: Object) -> Issue:
        members = Members(value, strict=False)
        issue = cls(*(members.take(name, "string") for name in
                      ("code", "severity", "subject", "source", "destination", "message")))
        if issue.severity not in SEVERITIES:
            issue.severity = "warning"
        return issue

    def write(self) -> Object:
        return _written(**vars(self))


@dataclass
class Declined:
    """An optional capability that is not effective."""

    capability: Optional[str] = None
    reason: Optional[str] = None

    @classmethod
    def read(cls, value: Object) -> Declined:
        members = Members(value, strict=False)
        return cls(members.take("capability", "string"), members.take("reason", "string"))

    def write(self) -> Object:
        return _written(**vars(self))


def _take_name(members: Members) -> str:
    name: str = members.take("name", "string")
    if len(name.encode()) > NAME_MAX:
        raise Malformed(f"a name of {len(name.encode())} bytes")
    return name


@dataclass
class Section:
    """Instances that differ in nothing else."""

    name: str
    version: int
    instances: list[int] = field(default_factory=list)
    conditional: bool = False

    @classmethod
    def read(cls, value: Object) -> Optional[Section]:
        if "name" not in value:
            return None
        members = Members(value, strict=True)
        version = members.take("version", "integer", always=True)
        if version > VERSION_MAX:
            raise Malformed(f"a section of version {version}")
        return cls(_take_name(members), version,
                   members.items("instances", "integer"),
                   members.take("conditional", "boolean") or False)

    @property
    def every_instance(self) -> list[int]:
        return self.instances or [0]

    def write(self) -> Object:
        return _written(name=self.name, version=self.version, instances=self.instances,
                        conditional=self.conditional or None)


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

    @classmethod
    def read(cls, value: Object) -> Optional[RamBlock]:
        if "name" not in value:
            return None
        members = Members(value, strict=True)
        return cls(_take_name(members), members.take("size", "integer", always=True),
                   members.take("max-size", "integer"), members.take("page-size", "integer"),
                   members.take("resizeable", "boolean") or False,
                   members.take("conditional", "boolean") or False,
                   members.take("shared-file", "boolean") or False,
                   members.take("address", "integer"))

    def write(self) -> Object:
        return _written(**{**vars(self), **{name: getattr(self, name) or None for name in
                                            ("resizeable", "conditional", "shared_file")}})


@dataclass
class Profile:
    """What a source is. A list that is None is not compared."""

    peer: Peer = field(default_factory=Peer)
    page_size: Optional[int] = None
    host_page_size: Optional[int] = None
    uuid: Optional[str] = None
    name: Optional[str] = None
    capabilities: list[str] = field(default_factory=list)
    required_capabilities: list[str] = field(default_factory=list)
    parameters: Object = field(default_factory=dict)
    stream: Object = field(default_factory=dict)
    sections: Optional[list[Section]] = None
    ram_blocks: Optional[list[RamBlock]] = None
    unmigratable: list[str] = field(default_factory=list)
    blockers: list[str] = field(default_factory=list)
    unknown: list[str] = field(default_factory=list)

    @classmethod
    def read(cls, value: Object) -> Profile:
        members = Members(value, strict=True)
        peer = Peer(*(members.take(name, "string")
                      for name in ("qemu-version", "package", "arch", "machine")))
        sections = [Section.read(item) for item in members.items("sections", "object")]
        ram_blocks = [RamBlock.read(item) for item in members.items("ram-blocks", "object")]
        profile = cls(
            peer, members.take("page-size", "integer"), members.take("host-page-size", "integer"),
            members.take("uuid", "string"), members.take("name", "string"),
            members.items("capabilities", "string"),
            members.items("required-capabilities", "string", strict_items=True),
            members.take("parameters", "object") or {}, members.take("stream", "object") or {},
            [item for item in sections if item] or None,
            [item for item in ram_blocks if item] or None,
            members.items("unmigratable", "string"), members.items("blockers", "string"))
        profile.unknown = members.unknown
        profile.check_bounds()
        return profile

    def check_bounds(self) -> None:
        if sum(len(item.every_instance) for item in self.sections or []) > SECTIONS_MAX:
            raise Malformed(f"more than {SECTIONS_MAX} sections")
        if len(self.ram_blocks or []) > RAM_BLOCKS_MAX:
            raise Malformed(f"more than {RAM_BLOCKS_MAX} RAM blocks")

    def write(self) -> Object:
        members = {name: value for name, value in vars(self).items()
                   if name not in ("peer", "sections", "ram_blocks", "unknown")}
        for name in ("sections", "ram_blocks"):
            items = getattr(self, name)
            members[name] = None if items is None else [item.write() for item in items]
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
    profile: Profile = field(default_factory=Profile)
    declined: list[Declined] = field(default_factory=list)      # in files only
    combinations: list[Object] = field(default_factory=list)    # likewise
    not_understood: list[str] = field(default_factory=list)

    @classmethod
    def read(cls, value: Object, from_file: bool = False) -> Hello:
        members = Members(value, strict=True)
        hello = cls(
            [number for number in members.items("versions", "integer", always=True)
             if number <= VERSION_MAX],
            members.take("purpose", "string", always=True),
            members.items("required", "string", always=True, strict_items=True),
            members.items("features", "string"), members.items("optional-capabilities", "string"),
            members.take("warnings-as-errors", "boolean") or False,
            Profile.read(members.take("profile", "object") or {}))
        if from_file:
            hello.declined = [Declined.read(item) for item
                              in members.items("declined", "object", strict=False)]
            hello.combinations = members.items("combinations", "object", strict=False)
        hello.not_understood = ([f"profile.{name}" for name in hello.profile.unknown]
                                + members.unknown)
        return hello

    def write(self) -> Object:
        frozen = {"versions": self.versions, "purpose": self.purpose, "required": self.required}
        return {**frozen, **_written(
            features=self.features, optional_capabilities=self.optional_capabilities,
            warnings_as_errors=self.warnings_as_errors or None,
            profile=self.profile.write() or None)}


@dataclass
class Verdict:
    """What ACCEPT and REJECT have in common, all of it read leniently."""

    features: list[str] = field(default_factory=list)
    not_understood: list[str] = field(default_factory=list)
    peer: Peer = field(default_factory=Peer)
    issues: list[Issue] = field(default_factory=list)
    issues_omitted: int = 0

    def take(self, members: Members) -> None:
        self.features = members.items("features", "string", strict=False)
        self.not_understood = members.items("not-understood", "string", strict=False)
        self.peer = Peer.read(members.take("peer", "object", strict=False) or {})
        self.issues, self.issues_omitted = _read_issues(members)

    def has(self, *severities: str) -> bool:
        return any(issue.severity in severities for issue in self.issues)

    def write_verdict(self) -> Object:
        return _written(features=self.features, not_understood=self.not_understood,
                        peer=self.peer.write() or None,
                        issues=[issue.write() for issue in self.issues],
                        issues_omitted=self.issues_omitted or None)


def _read_issues(members: Members) -> tuple[list[Issue], int]:
    issues = [Issue.read(item) for item in members.items("issues", "object", strict=False)]
    return issues, members.take("issues-omitted", "integer", strict=False) or 0


@dataclass
class Accept(Verdict):
    """The version and the capabilities are None if they were absent."""

    version: Optional[int] = None
    capabilities: Optional[list[str]] = None
    parameters: Object = field(default_factory=dict)
    declined: list[Declined] = field(default_factory=list)

    @classmethod
    def read(cls, value: Object) -> Accept:
        members = Members(value, strict=True)
        accept = cls(version=members.take("version", "integer"),
                     capabilities=members.items("capabilities", "string", strict_items=True),
                     parameters=members.take("parameters", "object") or {},
                     declined=[Declined.read(item) for item
                               in members.items("declined", "object", strict=False)])
        accept.take(members)
        return accept

    def write(self) -> Object:
        return {**_written(version=self.version, capabilities=self.capabilities,
                           parameters=self.parameters or None,
                           declined=[item.write() for item in self.declined]),
                **self.write_verdict()}


@dataclass
class Reject(Verdict):
    """Nothing in it can be malformed."""

    message: Optional[str] = None
    version: int = 0

    @classmethod
    def read(cls, value: Object) -> Reject:
        members = Members(value, strict=False)
        reject = cls(message=members.take("message", "string"),
                     version=members.take("version", "integer") or 0)
        reject.take(members)
        return reject

    def write(self) -> Object:
        return {**_written(message=self.message, version=self.version or None),
                **self.write_verdict()}


@dataclass
class Commit:
    """The source agrees."""

    digest: str

    @classmethod
    def read(cls, value: Object) -> Commit:
        return cls(Members(value, strict=True).take("digest", "string", always=True))

    def write(self) -> Object:
        return _written(digest=self.digest)


@dataclass
class Abort:
    """The source does not agree."""

    message: Optional[str] = None
    issues: list[Issue] = field(default_factory=list)
    issues_omitted: int = 0

    @classmethod
    def read(cls, value: Object) -> Abort:
        members = Members(value, strict=False)
        return cls(members.take("message", "string"), *_read_issues(members))

    def write(self) -> Object:
        return _written(message=self.message, issues=[issue.write() for issue in self.issues],
                        issues_omitted=self.issues_omitted or None)


def read_verdict(accepted: bool, payload: bytes) -> Verdict:
    """A REJECT that cannot be read is one, too."""
    if accepted:
        return Accept.read(parse(payload))
    try:
        return Reject.read(parse(payload))
    except Malformed:
        return Reject()
