"""Whether a product's images are aligned, and to what: left-out good images say."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import fft
from torch import Tensor

from ..config import Cells
from ..flow.cells import CellGaussians
from ..pose import NEAR, SIDE, Floats, Placement, Pose, PoseReport, find, shown, turned

Wish = Literal["auto", "on", "off"]
WISHES: tuple[Wish, ...] = ("auto", "on", "off")
Look = Callable[[Sequence[int]], Floats]
See = Callable[[Sequence[int], Sequence[Placement], np.ndarray], Tensor]

LEAST_IMAGES = 12  # below, two halves say too little to change anything by
LEAST_HALVED = 4  # below, there are no halves
SAMPLE = 16  # images looked at most: the check should cost little where the answer is no
ROUNDS = 3  # of aligning and averaging
LEAST_MATCH = 0.5  # of the typical left-out image: below, the mean shows nothing they share
BELIEVED = 0.5  # share of the typical match below which an image is left as it is
STILL_DEGREES, STILL_SHIFT = 3.0, 0.02  # an object that moves less is learned as it lies
ENOUGH_MATCH = 0.95  # with little freedom to turn: more would add next to nothing
FREE_GAIN = 0.02  # by how much better pictures must match before a full circle is searched
MARGIN = 0.1  # by which alignment must lower left-out scores; the blur of turning alone lowers them a little
SHOWN = 0.9  # share of the images that show a place which is inspected
TOP = 0.05  # share of the patches whose mean is an image's score here


@dataclass(frozen=True, eq=False)
class _Halves:
    """Templates of two halves of a sample, each with where every image of the sample lies by it."""

    reach: float
    parts: tuple[list[int], list[int]]
    placements: tuple[list[Placement], list[Placement]]

    def left_out(self) -> tuple[list[Placement], list[Placement]]:
        """Of every image, by the template it had no part in; the two templates lie differently."""
        (even, odd), (by_even, by_odd) = self.parts, self.placements
        return [by_even[i] for i in odd], [by_odd[i] for i in even]

    def matches(self) -> list[float]:
        return [placement.match for half in self.left_out() for placement in half]

    def match(self) -> float:
        """Of the typical left-out image."""
        return float(np.median(self.matches()))


def settle_pose(
    wish: Wish,
    features: Tensor,
    *,
    cells: Cells,
    thumbnails: Look,
    see: See,
    progress: Callable[[float], None] = lambda share: None,
) -> Pose:
    """Decides on good images whether aligning them helps, and learns the mean they are aligned to.

    Args:
        wish: "auto" asks the images, "on" and "off" do not.
        features: of all images as they are, (N, h, w, D).
        cells: the density that judges.
        thumbnails: (n, 4, SIDE, SIDE) of the images of these numbers.
        see: features (n, h, w, D) of the images of these numbers, aligned by these placements, of what a
            window (SIDE, SIDE) shows.
        progress: told the share done, where images are looked at at all.
    """
    if wish == "off":
        return Pose(PoseReport(False, "switched off"))
    if wish == "auto" and len(features) < LEAST_IMAGES:
        return Pose(PoseReport(False, "too few images"))
    progress(0.0)
    pose = _settled(wish, features, cells=cells, thumbnails=thumbnails, see=see, progress=progress)
    progress(1.0)
    return pose


def _settled(
    wish: Wish,
    features: Tensor,
    *,
    cells: Cells,
    thumbnails: Look,
    see: See,
    progress: Callable[[float], None],
) -> Pose:
    sample = np.linspace(0, len(features) - 1, min(len(features), SAMPLE)).round().astype(int).tolist()
    looks = thumbnails(sample)
    if len(sample) < LEAST_HALVED:
        return _aligning(PoseReport(True, "asked for"), looks, 180.0, None)
    halves = _halved(looks[:, :3])
    progress(0.5)
    report = _varies(halves)
    if wish == "on":
        report = replace(report, aligned=True, reason="asked for")
    elif not report.reason:
        report = _judged(report, halves, looks, features[sample], see=partial(see, sample), cells=cells)
    if not report.aligned:
        return Pose(report)
    return _aligning(report, looks, halves.reach, halves)


def mean_template(contrasts: Floats, reach: float) -> Floats:
    """The mean (3, SIDE, SIDE) of contrasts (N, 3, SIDE, SIDE) aligned to it, lying midway between them."""
    template = contrasts[_typical(contrasts)]
    for _ in range(ROUNDS):
        placements = _centred(find(template, contrasts, reach))
        # What is beside an oblong image counts, as 0: images are matched with it, and a mean that is weaker
        # where few of them show anything matches them better, at the same placements.
        views, reached = turned(contrasts, placements)
        matches = [max(placement.match, 0.01) for placement in placements]
        weights = np.array(matches, np.float32)[:, None, None, None]
        template = (views * weights).sum(0) / np.maximum((reached * weights).sum(0), weights.sum() / 4)
    return template.astype(np.float16).astype(np.float32)


def _aligning(report: PoseReport, thumbnails: Floats, reach: float, halves: _Halves | None) -> Pose:
    contrasts = thumbnails[:, :3]
    template = mean_template(contrasts, reach)
    placements = find(template, contrasts, reach)
    if halves is None:
        least = 0.0
        degrees, shift = _spread([placements])
        report = replace(report, degrees=degrees, shift=shift)
    else:
        matches = halves.matches()
        # A plain defect matches worse than any good image and must be aligned all the same, to be shown
        # where it is; another product comes to a quarter of the typical match at most.
        typical = float(np.median(matches))
        least = max(0.0, min(BELIEVED * typical, 2 * min(matches) - typical))
    return Pose(report, template.astype(np.float16), _window(thumbnails, placements), reach, least)


def _window(thumbnails: Floats, placements: Sequence[Placement]) -> NDArray[np.bool_]:
    """What of the aligned picture nearly all images show, (SIDE, SIDE) bool.

    Beside it good images differ by where their own borders came to lie, and that would be all one sees.
    """
    found: NDArray[np.bool_] = shown(thumbnails, placements).mean((0, 1)) >= SHOWN
    return found


def _halved(contrasts: Floats) -> _Halves:
    """Halves with as little freedom to turn as the images ask for.

    An object that always lies much the same is not turned far: where it looks alike from several sides a
    full circle would only add mistakes.
    """
    near = _halves(contrasts, NEAR)
    if near.match() >= ENOUGH_MATCH:
        return near
    free = _halves(contrasts, 180.0)
    return free if free.match() > near.match() + FREE_GAIN else near


def _halves(contrasts: Floats, reach: float) -> _Halves:
    numbers = list(range(len(contrasts)))
    parts = numbers[::2], numbers[1::2]
    even, odd = (find(mean_template(contrasts[part], reach), contrasts, reach) for part in parts)
    return _Halves(reach, parts, (even, odd))


def _varies(halves: _Halves) -> PoseReport:
    """How far the images lie apart; with a reason where that settles the matter already."""
    degrees, shift = _spread(halves.left_out())
    reason = ""
    if halves.match() < LEAST_MATCH:
        reason = "does not match"
    elif degrees < STILL_DEGREES and shift < STILL_SHIFT:
        reason = "lies still"
    return PoseReport(False, reason, degrees, shift)


def _judged(
    report: PoseReport,
    halves: _Halves,
    looks: Floats,
    plain: Tensor,
    *,
    see: Callable[[Sequence[Placement], np.ndarray], Tensor],
    cells: Cells,
) -> PoseReport:
    """Asks the left-out images of one half, and of the other if the first says yes."""
    before, after = [], []
    for (learn, judge), placements in zip((halves.parts, halves.parts[::-1]), halves.placements, strict=True):
        density = CellGaussians.of(plain[learn], cells)
        before.append(_score(density, plain[judge]))
        moved = see(placements, _window(looks, placements))
        after.append(_score(CellGaussians.of(moved[learn], cells), moved[judge]))
        if after[-1] > (1 - MARGIN) * before[-1]:
            break
    helps = after[-1] <= (1 - MARGIN) * before[-1]
    return replace(
        report,
        aligned=helps,
        reason="helps" if helps else "it would not help",
        before=float(np.mean(before)),
        after=float(np.mean(after)),
    )


@torch.no_grad()
def _score(density: CellGaussians, features: Tensor) -> float:
    """Mean over images of their strangest patches' distance, as a share of what patches that belong elsewhere
    in these pictures have at the same place.

    Distances of two densities have no common unit, and one that allows for much hides defects as well: a
    misplaced patch is the defect that is at hand, and that both must tell from what is good.
    """
    generator = torch.Generator().manual_seed(0)
    patches = features.flatten(1, 2)
    mixed = [image[torch.randperm(len(image), generator=generator)] for image in patches]
    foreign = _distances(density, torch.stack(mixed).reshape(features.shape)).mean(0)
    shares = (_distances(density, features) / foreign.clamp_min(1e-6)).flatten(1)
    return float(shares.topk(max(1, round(TOP * shares.shape[1]))).values.mean())


def _distances(density: CellGaussians, features: Tensor) -> Tensor:
    return torch.cat([density(image) for image in features.split(1)])


def _typical(contrasts: Floats) -> int:
    """The image whose spectrum by frequency alone is nearest to the median: no turn or shift changes it."""
    frequency = fft.fftfreq(SIDE) * SIDE
    rings = np.hypot(frequency[:, None], frequency).round().astype(int).clip(max=SIDE // 2).ravel()
    power = np.square(np.abs(fft.fft2(contrasts))).sum(1).reshape(len(contrasts), -1)
    spectrum = np.stack([np.bincount(rings, own, SIDE // 2 + 1) for own in power])
    spectrum = np.log(np.maximum(spectrum, 1e-6))
    return int(np.square(spectrum - np.median(spectrum, 0)).sum(1).argmin())


def _centred(placements: Sequence[Placement]) -> list[Placement]:
    """The same placements by a template that lies in their middle: the template's own pose is arbitrary."""
    angles = np.deg2rad([p.angle for p in placements])
    shifts = np.array([complex(*p.shift) for p in placements])
    move = -np.mean(shifts * np.exp(-1j * angles))
    middle = np.mean(np.exp(1j * angles))
    turn = np.angle(middle) if abs(middle) > 0.5 else 0.0  # all around the circle there is no middle
    shifts = shifts + move * np.exp(1j * angles)
    return [
        Placement(math.degrees(angle - turn), (float(shift.real), float(shift.imag)), p.match)
        for angle, shift, p in zip(angles, shifts, placements, strict=True)
    ]


def _spread(groups: Sequence[Sequence[Placement]]) -> tuple[float, float]:
    """Degrees and shift from the middle of an image's group, of the nineteenth of twenty images."""
    turns, moves = [], []
    for group in groups:
        ways = np.exp(1j * np.deg2rad([p.angle for p in group]))
        shifts = np.array([p.shift for p in group])
        turns.append(np.abs(np.angle(ways * np.conj(ways.mean()))))
        moves.append(np.linalg.norm(shifts - np.median(shifts, 0), axis=1))
    degrees = np.rad2deg(np.quantile(np.concatenate(turns), 0.95))
    return float(degrees), float(np.quantile(np.concatenate(moves), 0.95))
