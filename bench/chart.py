# SPDX-License-Identifier: GPL-2.0-or-later
"""Keeps the data of a run, and draws them.

Usage: chart.py FILE.json draws FILE.svg anew.
"""

from __future__ import annotations

import json
import re
import sys
import textwrap
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("svg")
matplotlib.rcParams.update({
    "svg.hashsalt": "bench", "svg.fonttype": "none",  # the same data, the same file
    "font.size": 9, "axes.spines.top": False, "axes.spines.right": False})

from matplotlib import pyplot  # noqa: E402, after the choice of the back end

LEGACY, HANDSHAKE = "#777777", "#d1495b"


def rounded(value: Any) -> Any:
    """Microseconds are fine enough for a record."""
    if isinstance(value, dict):
        return {name: rounded(member) for name, member in value.items()}
    if isinstance(value, list):
        return [rounded(member) for member in value]
    return round(value, 3) if isinstance(value, float) else value


def dots(axes: Any, part: dict[str, Any], measure: str, title: str) -> None:
    """A column of dots for each mode, in the order of the runs, and its median."""
    modes = list(part["samples"])
    for place, mode in enumerate(modes):
        samples = part["samples"][mode][measure]
        width = 0.5 / max(len(samples) - 1, 1)
        color = HANDSHAKE if mode.startswith("handshake") else LEGACY
        axes.plot([place - 0.25 + i * width for i in range(len(samples))], samples,
                  "o", markersize=4, alpha=0.6, color=color, markeredgewidth=0)
        middle = part["medians"][mode][measure]
        axes.hlines(middle, place - 0.36, place + 0.36, color=color, linewidth=2)
        axes.annotate(f"{middle:.0f}", (place + 0.38, middle), va="center", color=color)
    axes.set_xticks(range(len(modes)), [mode.replace(" ", "\n") for mode in modes])
    axes.set_xlim(-0.6, len(modes) - 0.2)
    axes.set_ylim(bottom=0)
    axes.set_ylabel("ms")
    axes.set_title(title, loc="left", fontweight="bold")
    axes.grid(axis="y", alpha=0.3)


def draw(data: dict[str, Any], path: Path) -> None:
    near, far, machine = data["loopback"], data["long-way"], data["machine"]
    figure, (wall, downtime, active) = pyplot.subplots(1, 3, figsize=(13, 5), layout="constrained")
    dots(wall, near, "wall", f"{near['ram-mib']} MiB of random RAM, loopback:\nfrom migrate to running there")
    dots(downtime, near, "downtime", "The same moves:\ndowntime, as query-migrate tells")
    if far:
        dots(active, far, "until-active", f"A round trip of {far['rtt']} ms ({far['link']}):\nfrom migrate to active")
        active.axhline(far["rtt"], linestyle=":", color="black")
        active.annotate("one round trip", (-0.55, far["rtt"]), va="top")
    else:
        active.set_axis_off()
        active.set_title("A long way:\nnot measured", loc="left", fontweight="bold")
        active.text(0, 1, textwrap.fill(f"There is {data['why-no-long-way']}.", 48), va="top")
    figure.supxlabel(
        f"QEMU {near['qemu']}, {near['accelerator']}; {machine['cores']} cores, {machine['cpu']}, "
        f"Linux {machine['kernel']}; {data['date']}. Dots are the runs in their order, bars the medians.",
        fontsize=8)
    figure.savefig(path, metadata={"Date": None, "Creator": None})


def keep(data: dict[str, Any], stem: Path) -> None:
    stem.parent.mkdir(parents=True, exist_ok=True)
    data = rounded(data)
    # A list of numbers or names is one line.
    text = re.sub(r"\[[^][{}]+\]", lambda found: " ".join(found[0].split()), json.dumps(data, indent=1))
    stem.with_name(f"{stem.name}.json").write_text(text + "\n")
    draw(data, stem.with_name(f"{stem.name}.svg"))


if __name__ == "__main__":
    source = Path(sys.argv[1])
    draw(json.loads(source.read_text()), source.with_suffix(".svg"))
