# SPDX-License-Identifier: GPL-2.0-or-later
"""Compares what two QEMUs tell of QMP, where names of types mean nothing."""

from __future__ import annotations

from typing import Any

Json = dict[str, Any]


def losses(old: list[Json], new: list[Json]) -> list[str]:
    """What somebody who knows the old one would miss in the new one."""
    return _Comparison(old, new).run()


def _by_name(entries: list[Json]) -> dict[str, Json]:
    return {entry["name"]: entry for entry in entries}


class _Comparison:
    def __init__(self, old: list[Json], new: list[Json]):
        self._old = _by_name(old)
        self._new = _by_name(new)
        self._seen: set[tuple[str, str, bool]] = set()
        self._losses: list[str] = []

    def run(self) -> list[str]:
        for name, old in self._old.items():
            if old["meta-type"] in ("command", "event"):
                self._entry(name, old, self._new.get(name))
        return self._losses

    def _miss(self, path: str, what: str) -> None:
        self._losses.append(f"{path}: {what}")

    def _same(self, path: str, old: Json, new: Json, *members: str) -> None:
        for member in members:
            if old.get(member) != new.get(member):
                self._miss(path, f"{member} {old.get(member)} is {new.get(member)}")

    def _entry(self, name: str, old: Json, new: Json | None) -> None:
        if new is None:
            self._miss(name, "is gone")
            return
        self._same(name, old, new, "meta-type", "features", "allow-oob")
        asks = old["meta-type"] == "command"
        self._type(name, old["arg-type"], new["arg-type"], asks)
        if asks:
            self._type(f"{name}, result", old["ret-type"], new["ret-type"], False)

    def _type(self, path: str, old_name: str, new_name: str, asks: bool) -> None:
        """`asks`: it is the user who sends it."""
        if (old_name, new_name, asks) in self._seen:
            return
        self._seen.add((old_name, new_name, asks))
        old, new = self._old[old_name], self._new[new_name]
        self._same(path, old, new, "meta-type", "features", "json-type", "tag")
        kind = old["meta-type"]
        if kind != new["meta-type"]:
            return
        if kind == "array":
            self._type(f"{path}[]", old["element-type"], new["element-type"], asks)
        elif kind == "enum":
            self._enum(path, old, new)
        elif kind == "object":
            self._object(path, old, new, asks)
        elif kind == "alternate":
            self._alternate(path, old, new, asks)

    def _enum(self, path: str, old: Json, new: Json) -> None:
        theirs = _by_name(new["members"])
        for member in old["members"]:
            if member != theirs.get(member["name"]):
                self._miss(path, f"value {member['name']}")

    def _object(self, path: str, old: Json, new: Json, asks: bool) -> None:
        mine, theirs = _by_name(old["members"]), _by_name(new["members"])
        for name, member in mine.items():
            if name not in theirs:
                self._miss(path, f"member {name} is gone")
                continue
            where = f"{path}.{name}"
            self._same(where, member, theirs[name], "features")
            if ("default" in member) != ("default" in theirs[name]):
                self._miss(where, "optional on one side only")
            self._type(where, member["type"], theirs[name]["type"], asks)
        for name in theirs.keys() - mine.keys():
            if asks and "default" not in theirs[name]:
                self._miss(path, f"{name} has to be given")
        cases = {case["case"]: case["type"] for case in new.get("variants", [])}
        for case in old.get("variants", []):
            if case["case"] not in cases:
                self._miss(path, f"case {case['case']} is gone")
            else:
                self._type(f"{path}:{case['case']}", case["type"], cases[case["case"]], asks)

    def _alternate(self, path: str, old: Json, new: Json, asks: bool) -> None:
        if len(old["members"]) != len(new["members"]):
            self._miss(path, "other alternatives")
        for mine, theirs in zip(old["members"], new["members"]):
            self._type(path, mine["type"], theirs["type"], asks)
