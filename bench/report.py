# SPDX-License-Identifier: GPL-2.0-or-later
"""What the samples come to: medians, and the limits that they have to keep."""

from __future__ import annotations

import math
import random
import textwrap
from statistics import median, quantiles
from typing import Optional

from before import BEFORE, NOW
from machine import Json
from show import heading, paint, say

MOST_OVER_MULTIFD = 1.05
# The verdict takes one round trip, and opening further channels two, of which the
# migration without a handshake has one as well. The rest is for noise.
LEAST_ROUND_TRIPS, NOISE = 0.9, 0.3
MOST_OVER_BEFORE = 1.05
MOST_OVER_END_BEFORE = 1.02
MOST_OVER_VERDICT_BEFORE = 1.1

# Of the guest's move: what it is called, and where it comes from.
MEASURES = {
    "wall": "from migrate to completed here and running there",
    "total-time": "query-migrate",
    "setup-time": "query-migrate",
    "downtime": "query-migrate",
    "standstill": "from the guest's stop here to its start there, by QEMU's events",
}
LONG_WAY_MEASURES = {
    "until-active": "from migrate to the event that says active",
    "until-completed": "from migrate to the event that says completed",
    "handshake": "handshake.duration of query-migrate on the source",
    "standstill": MEASURES["standstill"],
    "end": "from the guest's stop here to the event that says completed",
}
CHECK_MEASURES = {
    "duration": "of a handshake without further channels, as query-migrate tells",
    "hello-bytes": "what the source sends before the verdict, in bytes",
}
# And how many round trips the handshake may add. One more is that in which the guest is
# handed over, unless the destination has -S.
PAIRS = (("legacy", "handshake", 1, 1), ("legacy + multifd", "handshake + multifd", 2, 1),
         ("legacy -S", "handshake -S", 1, 0))

NOTE_WIDTH = 92


### Statistics

def spread(samples: list[float]) -> float:
    """The range in which the middle half of them lies."""
    if len(samples) < 2:
        return 0.0
    low, _, high = quantiles(samples, n=4, method="inclusive")
    return high - low


def noise_of_medians(samples: list[float]) -> float:
    """Two standard errors of the difference between two medians of such samples.

    The spread of normal ones is 1.349 standard deviations, and the standard
    error of their median 1.253 standard deviations by the root of their number.
    """
    return 2 * math.sqrt(2 / len(samples)) * 1.253 / 1.349 * spread(samples)


def ratio_interval(above: list[float], below: list[float]) -> list[float]:
    """Where 95 % of the ratios of medians lie if the samples are drawn again."""
    draw = random.Random(0)
    ratios = sorted(median(draw.choices(above, k=len(above))) / median(draw.choices(below, k=len(below)))
                    for _ in range(2000))
    return [ratios[50], ratios[-51]]


### Limits

def limit(what: str, measured: Optional[float], unit: str, most: float, *,
          least: Optional[float] = None, note: str = "") -> Json:
    kept = None if measured is None else measured <= most and (least is None or measured >= least)
    return {"what": what, "measured": measured, "unit": unit, "least": least, "most": most,
            "kept": kept, "note": note}


def speed_limit(near: Json) -> Json:
    walls = [near["samples"][mode]["wall"] for mode in ("handshake", "multifd by hand")]
    low, high = ratio_interval(*walls)
    return limit("the handshake's own choice takes as long as multifd set by hand",
                 median(walls[0]) / median(walls[1]), "times", MOST_OVER_MULTIFD,
                 note=f"with these samples drawn again, 95 % of the ratios are {low:.2f} to {high:.2f}")


def downtime_limit(near: Json) -> Json:
    legacy = near["samples"]["legacy"]["downtime"]
    noise = noise_of_medians(legacy)
    return limit("the guest stands still no longer than with legacy",
                 near["medians"]["handshake"]["downtime"], "ms", median(legacy) + noise,
                 note=f"legacy's median of {median(legacy):.0f} ms, and {noise:.0f} ms for noise: two"
                      f" standard errors of the difference of two medians, as legacy's own"
                      f" {len(legacy)} runs spread by {spread(legacy):.0f} ms")


def end_limit(far: Optional[Json], with_it: str, without: str, most: int,
              measured: Optional[float]) -> Json:
    """With multifd TCP may need a round trip more or less for the devices, from one run to the next."""
    noise = noise_of_medians(far["samples"][without]["end"]) / far["rtt"] if far else 0.0
    return limit(f"from the guest's stop to completed, {with_it} adds to {without}", measured,
                 "round trips", most + max(NOISE, noise),
                 note=f"{without}'s own runs spread so much that {noise:.2g} are noise: two standard errors"
                      " of the difference of two medians" if noise > NOISE else "")


def round_trip_limits(far: Optional[Json]) -> list[Json]:
    def round_trips(measure: str, mode: str, other: Optional[str] = None) -> Optional[float]:
        """How many the one takes, or takes more than the other."""
        if far is None:
            return None
        medians = far["medians"]
        return (medians[mode][measure] - (medians[other][measure] if other else 0)) / far["rtt"]

    limits = []
    for without, with_it, most, at_the_end in PAIRS:
        limits += [
            limit(f"until active, {with_it} adds to {without}",
                  round_trips("until-active", with_it, without),
                  "round trips", most + NOISE, least=LEAST_ROUND_TRIPS),
            limit(f"until completed, {with_it} adds to {without}",
                  round_trips("until-completed", with_it, without),
                  "round trips", most + at_the_end + NOISE,
                  note="less is no fault: TCP acknowledges otherwise after a conversation"),
            end_limit(far, with_it, without, at_the_end, round_trips("end", with_it, without)),
            limit(f"the duration that {with_it} tells, which is up to the verdict",
                  round_trips("handshake", with_it),
                  "round trips", 1 + NOISE, least=LEAST_ROUND_TRIPS)]
    return limits


def before_limits(data: Json) -> list[Json]:
    """Of this build beside the one before, if there is one."""
    if "before" not in data:
        return []
    moves, ends, checks = (data["before"][part] for part in ("moves", "ends", "checks"))

    def over_before(part: Json, measure: str, what: str, unit: str, most: float) -> Json:
        now, before = (part["samples"][build][measure] for build in (NOW, BEFORE))
        noise = noise_of_medians(before)
        return limit(f"{what}, beside the build before", median(now), unit,
                     most * median(before) + noise,
                     note=f"{most:g} times its median of {median(before):.4g} {unit}, and {noise:.3g} {unit}"
                          f" for noise: two standard errors of the difference of two medians")

    return [
        over_before(checks, "duration", "a handshake without further channels", "ms",
                    MOST_OVER_VERDICT_BEFORE),
        over_before(checks, "hello-bytes", "a HELLO of a q35 with ten virtio devices", "bytes", 1),
        over_before(moves, "total-time", "the migration that the handshake chooses", "ms",
                    MOST_OVER_BEFORE),
        over_before(moves, "downtime", "the guest's standstill", "ms", MOST_OVER_BEFORE),
        over_before(ends, "end", "from the guest's stop to completed, with -S", "ms",
                    MOST_OVER_END_BEFORE)]


def conclude(data: Json) -> None:
    """Adds medians, spreads, ratios and limits."""
    near, far = data["loopback"], data["long-way"]
    for part in [near, *([far] if far else []), *data.get("before", {}).values()]:
        for name, function in (("medians", median), ("spreads", spread)):
            part[name] = {mode: {measure: function(samples) for measure, samples in of.items()}
                          for mode, of in part["samples"].items()}
    walls = {mode: of["wall"] for mode, of in near["medians"].items()}
    near["handshake-to-others"] = {mode: walls["handshake"] / wall for mode, wall in walls.items()
                                   if mode != "handshake"}
    data["limits"] = [speed_limit(near), downtime_limit(near), *round_trip_limits(far),
                      *before_limits(data)]


def all_kept(data: Json) -> bool:
    """What was not measured was not missed."""
    return not data["judged"] or all(one["kept"] is not False for one in data["limits"])


### The screen

def table(part: Json, measures: dict[str, str]) -> None:
    say(f"{'':20}" + "".join(f"{measure:>16}" for measure in measures))
    for mode, medians in part["medians"].items():
        cells = (f"{medians[one]:.1f} ±{part['spreads'][mode][one] / 2:6.1f}" if one in medians else "-"
                 for one in measures)
        say(f"{mode:20}" + "".join(f"{cell:>16}" for cell in cells))
    for measure, what in measures.items():
        say(f"{measure:>16}: {what}")


def show_limit(one: Json, judged: bool) -> None:
    if one["kept"] is None or not judged:
        mark = "-     "
    else:
        mark = paint("ok    ", "32") if one["kept"] else paint("MISSED", "31;1")
    measured = "not measured" if one["kept"] is None else f"{one['measured']:.4g} {one['unit']}"
    least = "at most " if one["least"] is None else f"{one['least']:.4g} to "
    say(f"{mark}  {one['what']}: {measured} (limit: {least}{one['most']:.4g})")
    for line in textwrap.wrap(one["note"], NOTE_WIDTH):
        say(f"        {line}")


def show(data: Json) -> None:
    heading("4. Medians, in ms, ± half the range of the middle half")
    table(data["loopback"], MEASURES)
    say()
    if data["long-way"]:
        table(data["long-way"], LONG_WAY_MEASURES)
    else:
        say(f"Over a long way nothing was measured: there is {data['why-no-long-way']}.")
    say()
    if "before" in data:
        table(data["before"]["moves"], MEASURES)
        say()
        table(data["before"]["ends"], {"end": LONG_WAY_MEASURES["end"]})
        say()
        table(data["before"]["checks"], CHECK_MEASURES)
        say()
    say("Over loopback the handshake takes " + ", ".join(
        f"{ratio:.2f} of {mode}" for mode, ratio in data["loopback"]["handshake-to-others"].items()) + ".")
    say("Meanwhile others, the kernel among them, used {cores-used-by-others:.1f} of the {cores} cores.".format(**data["machine"]))
    heading("5. Limits")
    for one in data["limits"]:
        show_limit(one, data["judged"])
    measured = [one for one in data["limits"] if one["kept"] is not None]
    verdict = (f"{sum(one['kept'] for one in measured)} of {len(measured)} limits kept" if data["judged"]
               else "a trial; so few runs, or so little RAM, are not judged")
    left_out = len(data["limits"]) - len(measured)
    heading(f"bench: {verdict}" + (f"; {left_out} limits NOT MEASURED" if left_out else ""))
