"""The last images of a product as numbers, and whether its good ones are moving away from those taught.

A drift moves many images a little, all alike; a defective lot puts some of them far out and leaves the
others where they were. So the middle of the recent *good* images is compared, channel by channel.
"""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .drift import CHANNELS, LEAST_TAUGHT, Channel, Facts, Norm, Reference, finding, rounded

KEPT = 200  # images of a product
RECENT = 30  # good images whose middle is compared
LEAST = 10  # of them, for anything to be said
LEAST_GOOD = 1 / 3  # of the recent images; where fewer are called good, all of them are compared
LOT_RATE = 0.005  # of watches over steady products that are called moving
REMEMBERED = 8  # paths of alarmed and of good images
MANY_ALARMS = 0.15  # of the recent images: worth a word
CHART = 24  # points of a channel's history
CLIPPED_AT = 3.0  # spreads: one image's weight in finding when a move began
GOOD, DEFECTIVE, UNKNOWN, DRIFTING = "good", "defective", "unknown", "drifting"
FACTS = tuple(field.name for field in dataclasses.fields(Facts))


@dataclass(frozen=True)
class Seen:
    """One inspected image as numbers.

    Attributes:
        time: when, in seconds since 1970.
        verdict: "good", "defective", "unknown" or "drifting".
        score: `pred_score`.
        facts: under which conditions it was taken.
    """

    time: float
    verdict: str
    score: float
    facts: Facts

    def to_row(self) -> list[Any]:
        """Time, verdict, score, and the facts in the order of `FACTS`."""
        values = (getattr(self.facts, name) for name in FACTS)
        return [round(self.time, 1), self.verdict, _rounded(self.score), *map(_rounded, values)]


@dataclass(frozen=True)
class Monitor:
    """What is kept of a product's inspections: bounded, and numbers but for a few paths.

    Attributes:
        version: of the product; another one begins a new watch.
        began: time of the first image.
        total: images since then.
        seen: the last `KEPT` of them, the oldest first.
        remembered: (path, verdict) of the last `REMEMBERED` alarmed and as many good images from files, which
            an update inspects again.
    """

    version: str
    began: float = 0.0
    total: int = 0
    seen: tuple[Seen, ...] = ()
    remembered: tuple[tuple[str, str], ...] = ()

    def adding(self, seen: Sequence[Seen], paths: Sequence[tuple[str, str]] = ()) -> Monitor:
        """With more images, the oldest of which are dropped where there are too many."""
        if not seen:
            return self
        remembered = dict(self.remembered)
        for path, verdict in paths:
            remembered.pop(path, None)
            remembered[path] = verdict
        good = [item for item in remembered.items() if item[1] == GOOD][-REMEMBERED:]
        alarmed = [item for item in remembered.items() if item[1] != GOOD][-REMEMBERED:]
        return replace(
            self,
            began=self.began if self.total else seen[0].time,
            total=self.total + len(seen),
            seen=(*self.seen, *seen)[-KEPT:],
            remembered=(*alarmed, *good),
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON; about 35 kB at most."""
        return {
            "version": self.version,
            "began": round(self.began, 1),
            "total": self.total,
            "facts": list(FACTS),
            "seen": [seen.to_row() for seen in self.seen],
            "remembered": [list(item) for item in self.remembered],
        }

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Monitor:
        """The inverse of `to_dict`. Raises KeyError, TypeError or ValueError for anything else."""
        return cls(
            version=str(values["version"]),
            began=float(values["began"]),
            total=int(values["total"]),
            seen=tuple(_seen(row, values["facts"]) for row in values["seen"][-KEPT:]),
            remembered=tuple((str(path), str(verdict)) for path, verdict in values["remembered"]),
        )


def _seen(row: list[Any], names: list[str]) -> Seen:
    time, verdict, score, *values = row
    facts = {
        name: None if value is None else float(value)
        for name, value in zip(names, values, strict=True)
        if name in FACTS
    }
    return Seen(float(time), str(verdict), float(score), Facts(**facts))  # type: ignore[arg-type]


def _rounded(value: float | None) -> float | None:
    return rounded(value) if value is not None and math.isfinite(value) else None


# Is it moving?


@dataclass(frozen=True)
class ChannelReport:
    """One channel of a product's recent images.

    Attributes:
        channel: the fact.
        taught: lowest and highest value of the good images taught.
        recent: middle of the recent images.
        spreads: of a single good image that it lies from the typical one.
        moved: whether that is more than chance and ordinary sessions do.
        history: spreads over all images kept, the oldest first, as medians of at most `CHART` stretches.
    """

    channel: str
    taught: tuple[float, float]
    recent: float
    spreads: float
    moved: bool
    history: tuple[float, ...]


@dataclass(frozen=True)
class Report:
    """What a watch over one product says.

    Attributes:
        state: "steady"; "moving": surely, though within what was taught; "moved": most recent images lie
            beyond every good image taught; "unwatched": nothing can be said, `sentence` says why.
        channel: what moved first of all, None where nothing did.
        sentence: the same in words.
        since: time of the image with which it seems to have begun, in seconds since 1970.
        count: images it is said from.
        channels: all that are known of the recent images.
    """

    state: str
    channel: str | None
    sentence: str
    since: float | None
    count: int
    channels: tuple[ChannelReport, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON-able values."""
        return dataclasses.asdict(self)


def judge(seen: Sequence[Seen], reference: Reference | None) -> Report:
    """Whether a product's good images are moving away from those it was taught.

    Args:
        seen: its inspected images, the oldest first.
        reference: what good images taught; None for a product taught before there was such a thing.
    """
    if reference is None:
        reason = "taught before drift was watched; update the product to watch it"
        return Report("unwatched", None, reason, None, 0)
    if reference.images < LEAST_TAUGHT:
        taught = f"{reference.images} of the {LEAST_TAUGHT} images"
        reason = f"taught with {taught} needed to tell drift from chance"
        return Report("unwatched", None, reason, None, 0)
    recent = _recent(seen)
    if len(recent) < LEAST:
        reason = f"{len(seen)} images were watched, {LEAST} are needed"
        return Report("unwatched", None, reason, None, len(recent))
    mostly_bad = sum(image.verdict == GOOD for image in recent) < LEAST_GOOD * len(recent)
    channels = tuple(_channels(seen, recent, reference))
    moved = [channel for channel in channels if channel.moved]
    if mostly_bad:  # defects are what makes pictures strange as a whole
        moved = [channel for channel in moved if channel.channel != "whole"]
    if not moved:
        return Report("steady", None, _steady(seen), None, len(recent), channels)
    # Light and sharpness are causes of what places and the whole look like.
    causes = [channel for channel in moved if channel.channel not in ("place", "whole")]
    main = max(causes, key=lambda channel: abs(channel.spreads)) if causes else moved[0]
    beyond = not main.taught[0] <= main.recent <= main.taught[1]
    sentence = _moved(main, moved, recent, reference)
    since = _since(seen, main, reference.norms[main.channel])
    return Report("moved" if beyond else "moving", main.channel, sentence, since, len(recent), channels)


def _recent(seen: Sequence[Seen]) -> list[Seen]:
    """The last images called good, or the last of all where few are."""
    good = [index for index, image in enumerate(seen) if image.verdict == GOOD][-RECENT:]
    if len(good) >= LEAST and len(good) >= LEAST_GOOD * (len(seen) - good[0]):
        return [seen[index] for index in good]
    return list(seen[-RECENT:])


def _channels(seen: Sequence[Seen], recent: Sequence[Seen], reference: Reference) -> Iterable[ChannelReport]:
    for name, norm in reference.norms.items():
        values = _known(recent, name)
        if len(values) < LEAST:
            continue
        channel = CHANNELS[name]
        middle = float(np.median(values))
        shift = channel.scaled(middle) - norm.centre
        limit = norm.limit(reference.rate(LOT_RATE), images=len(values)) * norm.spread_of_median(len(values))
        concern = channel.lower if shift < 0 else channel.higher
        yield ChannelReport(
            channel=name,
            taught=(norm.low[0], norm.high[-1]),
            recent=middle,
            spreads=shift / norm.spread,
            moved=concern is not None and abs(shift) > limit,
            history=_history(seen, channel, norm),
        )


def _known(seen: Iterable[Seen], name: str) -> list[float]:
    values = (getattr(image.facts, name) for image in seen)
    return [value for value in values if value is not None]


def _history(seen: Sequence[Seen], channel: Channel, norm: Norm) -> tuple[float, ...]:
    spreads = _in_spreads(_known(seen, channel.name), channel, norm)
    stretches = np.array_split(spreads, min(CHART, len(spreads)))
    return tuple(round(float(np.median(stretch)), 2) for stretch in stretches)


def _in_spreads(values: Iterable[float], channel: Channel, norm: Norm) -> NDArray[np.float64]:
    scaled = np.array([channel.scaled(value) for value in values])
    return (scaled - norm.centre) / norm.spread


def _since(seen: Sequence[Seen], main: ChannelReport, norm: Norm) -> float:
    """Time of the likeliest beginning: where the sum of deviations from half of the way has its minimum."""
    known = [image for image in seen if getattr(image.facts, main.channel) is not None]
    spreads = _in_spreads(_known(known, main.channel), CHANNELS[main.channel], norm)
    along = np.clip(spreads * math.copysign(1, main.spreads), -CLIPPED_AT, CLIPPED_AT)
    sums = np.concatenate([[0.0], np.cumsum(along - min(abs(main.spreads), CLIPPED_AT) / 2)])
    return known[min(int(sums.argmin()), len(known) - 1)].time


# In words


def _moved(
    main: ChannelReport, moved: Sequence[ChannelReport], recent: Sequence[Seen], reference: Reference
) -> str:
    channel, norm = CHANNELS[main.channel], reference.norms[main.channel]
    who = "good images" if all(image.verdict == GOOD for image in recent) else "images"
    if main.taught[0] <= main.recent <= main.taught[1]:
        spreads = _in_spreads(_known(recent, main.channel), channel, norm)
        alike = int((spreads * main.spreads > 0).sum())
        words = channel.lower if main.spreads < 0 else channel.higher
        taught = " to ".join(map(channel.shown, main.taught))
        sentence = (
            f"{alike} of the last {len(recent)} {who} are {words} than the typical good image taught: "
            f"{channel.what} {channel.shown(main.recent)}, taught {taught}"
        )
    else:
        said = finding(channel, norm, main.recent, main.spreads).sentence
        sentence = f"most of the last {len(recent)} {who} are {said}"
    others = [channel.channel for channel in moved if channel is not main]
    if others:
        sentence += f"; also moved: {', '.join(others)}"
    elif main.channel == "place":
        sentence += "; light and sharpness are as taught, so look at pose, fixture and material"
    unknown = sum(image.verdict == UNKNOWN for image in recent)
    if unknown > len(recent) / 2:
        sentence += f"; {unknown} of them were called unknown: is it this product at all?"
    return sentence


def _steady(seen: Sequence[Seen]) -> str:
    last = seen[-RECENT:]
    counts = Counter(image.verdict for image in last)
    kinds = (DEFECTIVE, UNKNOWN, DRIFTING)
    alarms = sum(counts[kind] for kind in kinds)
    if alarms < MANY_ALARMS * len(last):
        return "the recent good images are like those taught"
    which = " and ".join(f"{counts[what]} {what}" for what in kinds if counts[what])
    if counts[DRIFTING] > alarms / 2:
        return f"of the last {len(last)} images {which}, but most are in the light and focus that were taught"
    return (
        f"of the last {len(last)} images {which}, but the conditions are as taught: "
        f"that looks like the parts, not like drift"
    )
