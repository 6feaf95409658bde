"""Banks of patches that stood for good images: one per product, calibrated, and one shared by all.

Greedy selection is the costly step: every centre looks at every candidate once. What makes it affordable
is written in `BankOptions`: candidates are a random part of all patches, compared in a random projection.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor

from ...config import check
from ...errors import ConfigError, TaskError, TrainingError
from ...features.backbones import get_backbone
from ...features.extractor import Features
from ...product import split
from ...training import require_finite
from ...verdict.calibration import ScoreCalibration
from ...verdict.maps import LEAST_SPREAD, PositionCalibration, smooth
from .base import Inspection, Method, PerProduct, Pictures, Setting, State, judged
from .line import FALSE_ALARM_RATE

CHUNK = 16  # images read at a time
ROWS = 256  # patches compared with a bank at a time: their table of distances stays in the cache
ROUNDING = 1e-6  # squared distances below this share of the largest squared norm are float32's own error


LEFT_OUT_GROUPS = 32  # into which calibration images are parted at most


@dataclass(frozen=True)
class BankOptions:
    """How patches are selected and how an image is scored with them.

    Greedy selection over all patches is quadratic in images. A random sample of candidates bounds it:
    of n candidates a kind of patch that makes up a share p of all good patches is missing with
    probability (1 - p)^n, which for n = 100,000 is below 1 % from p = 5e-5 on.
    """

    share: float = 0.01  # of a product's patches that its bank keeps, the paper's PatchCore-1%
    least: int = 1_000  # patches kept of a product with few images, where it has as many
    most: int = 10_000  # patches kept at most; the size of the shared bank
    candidates: int = 100_000  # patches drawn at random to select from
    projection: int = 64  # dimensions in which selection compares patches
    neighbours: int = 9  # b of the re-weighting, the patch found included

    def __post_init__(self) -> None:
        counts = ("least", "most", "candidates", "projection", "neighbours")
        check(self, positive=counts, share=("share",))
        if self.least > self.most:
            raise ConfigError(f"BankOptions.least: expected at most {self.most} (most), got {self.least}")

    def size(self, patches: int) -> int:
        """Patches kept of so many."""
        return min(self.most, max(self.least, round(self.share * patches)))

    def notes(self, channels: int) -> tuple[str, ...]:
        """How selection departs from the papers', for features of so many channels."""
        drawn = f"candidates: {self.candidates:,} patches at random at most"
        if channels <= self.projection:
            return (drawn,)
        return drawn, f"compared in a random projection to {self.projection} dimensions"


COMMON = BankOptions()


@dataclass(frozen=True, eq=False)
class Found:
    """The patch of a bank that is nearest to each asked: Euclidean distances (n,) and indices (n,)."""

    distance: Tensor
    index: Tensor


@dataclass(frozen=True, eq=False)
class Bank:
    """Patches (m, D) of good images, float32 that 16 bits hold."""

    patches: Tensor

    @cached_property
    def squared_norms(self) -> Tensor:
        """(m,)."""
        return self.patches.square().sum(1)

    def nearest(self, x: Tensor) -> Found:
        """For patches (n, D) float32.

        The neighbour is found with a matrix product, whose error grows with the size of the features; the
        distance to it is then computed by itself and has none of it.
        """
        index = torch.cat(
            [
                torch.addmm(self.squared_norms, rows, self.patches.T, alpha=-2).argmin(1)
                for rows in x.split(ROWS)
            ]
        )
        return Found((x - self.patches[index]).square().sum(1).sqrt(), index)

    def image_score(self, x: Tensor, found: Found, neighbours: int) -> float:
        """Score of an image with patches (n, D): the largest distance s*, re-weighted (Roth 2022, eq. 7).

            s = (1 - exp|x* - m*| / sum over m in N_b(m*) of exp|x* - m|) s*

        x* is the image's strangest patch, m* the bank's nearest to it and N_b(m*) the b patches of the
        bank nearest to m*, itself among them: a patch near a lonely m* counts as stranger than one near a
        crowd. A bank of one patch has no neighbourhood and s = s*.
        """
        star = int(found.distance.argmax())
        worst = found.distance[star]
        count = min(neighbours, len(self.patches))
        if count < 2:
            return float(worst)
        centre = self.patches[found.index[star]]
        around = (self.patches - centre).square().sum(1).topk(count, largest=False).indices
        to_crowd = (x[star] - self.patches[around]).square().sum(1).sqrt()
        weight = 1 - torch.exp(worst - torch.logsumexp(to_crowd, 0)).clamp(max=1)
        return float(weight * worst)


@dataclass(frozen=True, eq=False)
class _Part:
    """A product's bank, and what makes distances comparable over an image and image scores a verdict."""

    bank: Bank
    position: PositionCalibration | None = None
    calibration: ScoreCalibration | None = None


class MemoryBank(PerProduct):
    """PatchCore: a greedy k-centre coreset of good patches per product, and distances to the nearest.

    Patches are averaged over 3x3 neighbours as in the paper; where the backbone's features come so
    already (`BackboneSpec.pool`: the convolutional ones) they are taken as they are.
    """

    name = "memory-bank"
    title = "memory bank"
    source = "PatchCore (Roth et al. 2022), one bank per product behind our router"

    def __init__(self, setting: Setting, options: BankOptions = COMMON) -> None:
        super().__init__(setting)
        self.options = options

    @property
    def notes(self) -> tuple[str, ...]:
        """How this run departs from the paper."""
        own = self.options
        kept = f"{100 * own.share:g} % of the patches kept, {own.least:,} to {own.most:,}"
        return kept, *own.notes(self.setting.channels)

    def learn_part(self, pictures: Pictures) -> _Part:
        """A bank of all images."""
        _require_images(pictures)
        return _Part(self._select(pictures.features, range(len(pictures))))

    def inspect_part(self, part: _Part, seen: Features) -> Inspection:
        """The paper's score, and the smoothed map of distances."""
        return _inspect(part.bank, seen.patches, self.setting, self.options)

    def part_state(self, part: _Part) -> State:
        """The bank, float16, and its calibrations where there are some."""
        tensors = {"bank": part.bank.patches.half().cpu()}
        if part.position is None or part.calibration is None:
            return State(tensors)
        tensors["position.level"] = torch.tensor([part.position.level])
        tensors["position.spread"] = part.position.spread.half()
        return State(tensors, {"calibration": part.calibration.to_dict()})

    def part_from(self, state: State) -> _Part:
        """The inverse of `part_state`."""
        bank = Bank(state.tensors["bank"].to(self.setting.device).float())
        if "calibration" not in state.notes:
            return _Part(bank)
        spread = state.tensors["position.spread"].float().clamp_min(LEAST_SPREAD)
        position = PositionCalibration(float(state.tensors["position.level"][0]), spread)
        return _Part(bank, position, ScoreCalibration.from_dict(state.notes["calibration"]))

    def _select(self, features: Tensor, images: Sequence[int]) -> Bank:
        """A bank of these images of features (N, h, w, D)."""
        drawn = candidates(features, images, self.setting, self.options.candidates)
        size = self.options.size(len(images) * features.shape[1] * features.shape[2])
        return select(drawn, size, self.setting, self.options)


class CalibratedMemoryBank(MemoryBank):
    """The memory bank with distances made comparable over the image, and scored and judged as by the line.

    The calibrations are fitted on the same held-out images as the line's: with few images every image is
    held out in turn, against a bank of the others (`moleflow.product.split`).
    """

    name = "memory-bank-calibrated"
    title = "memory bank, calibrated"
    source = "PatchCore (Roth et al. 2022) with the position calibration of this project"

    @property
    def notes(self) -> tuple[str, ...]:
        """How this run departs from the paper."""
        return *super().notes, "calibrated by place and by score on held-out images, which is not PatchCore's"

    def learn_part(self, pictures: Pictures) -> _Part:
        """A bank of the images to learn from, and its calibrations on the others."""
        _require_images(pictures)
        features, setting = pictures.features, self.setting
        learn, folds, kind = split(len(pictures), setting.config, setting.seed)
        crossed = kind == "cross-fitted"
        bank = self._select(features, learn)
        maps = []
        for fold in folds:
            seen = self._select(features, sorted(set(learn) - set(fold))) if crossed else bank
            maps += [_compare(seen, features[j : j + 1].float(), setting)[2] for j in fold]
        held = torch.stack(maps)
        scores = ScoreCalibration(kind, tuple(sorted(_left_out_scores(held, setting))))
        return _Part(bank, PositionCalibration.fit(held, setting.config.scoring), scores)

    def inspect_part(self, part: _Part, seen: Features) -> Inspection:
        """Standardised map and score, and the verdict at the accepted rate of false alarms."""
        position, calibration = part.position, part.calibration
        assert position is not None
        assert calibration is not None
        _, _, distances = _compare(part.bank, seen.patches, self.setting)
        raw, patch_map = judged(position(distances[None]), self.setting)
        return Inspection(
            task=None,
            known=None,
            score=float(calibration.standardise(torch.tensor(raw))),
            patch_map=calibration.standardise(torch.from_numpy(patch_map)).numpy(),
            threshold=calibration.threshold(FALSE_ALARM_RATE),
        )


class SharedCoreset(Method):
    """One bank of fixed size for all products: selected anew from itself and the patches of what is added.

    Images are not kept. The bank does not say which patch is of which product, so nothing is routed and
    an image may find its neighbours with any product; what a product keeps of the bank shrinks as others
    come. Selection and score are those of `MemoryBank`, so that only the sharing differs.
    """

    name = "shared-coreset"
    title = "shared coreset"
    source = "after CADIC (Yang et al. 2025, arXiv 2511.08634), selected by greedy k-centre"

    def __init__(self, setting: Setting, options: BankOptions = COMMON) -> None:
        super().__init__(setting)
        self.options = options
        self.bank: Bank | None = None

    @property
    def notes(self) -> tuple[str, ...]:
        """How this run departs from the paper."""
        size = f"one bank of {self.options.most:,} patches"
        return "after CADIC, but not its selection", size, *self.options.notes(self.setting.channels)

    def learn(self, products: Sequence[Pictures]) -> None:
        """Selects the bank from what it was and new candidates; products of one task share these equally."""
        pool = [] if self.bank is None else [self.bank.patches.half()]
        for pictures in products:
            _require_images(pictures)
            count = max(1, self.options.candidates // len(products))
            pool.append(candidates(pictures.features, range(len(pictures)), self.setting, count))
        self.bank = select(torch.cat(pool), self.options.most, self.setting, self.options)

    @torch.no_grad()
    def inspect(self, pictures: Pictures, task: str | None = None) -> Iterator[Inspection]:
        """Every image against the whole bank, whatever its product is."""
        if self.bank is None:
            raise TaskError("expected products to be learned before an inspection, got none")
        for i in range(len(pictures)):
            yield _inspect(self.bank, pictures.features[i : i + 1].float(), self.setting, self.options)

    def state(self) -> State:
        """The bank, float16."""
        return State({} if self.bank is None else {"shared/bank": self.bank.patches.half().cpu()})

    def restore(self, state: State) -> None:
        """The bank as it was, or none."""
        stored = state.tensors.get("shared/bank")
        self.bank = None if stored is None else Bank(stored.to(self.setting.device).float())


def candidates(features: Tensor, images: Sequence[int], setting: Setting, count: int) -> Tensor:
    """Up to `count` locally averaged patches (n, D) float16, drawn at random from images of (N, h, w, D)."""
    per_image = features.shape[1] * features.shape[2]
    order = torch.randperm(len(images) * per_image, generator=torch.Generator().manual_seed(setting.seed))
    chosen = order[:count].sort().values
    parts = []
    for start in range(0, len(images), CHUNK):
        rows = list(images[start : start + CHUNK])
        first, last = start * per_image, (start + len(rows)) * per_image
        here = chosen[(chosen >= first) & (chosen < last)] - first
        parts.append(_local(features[rows].float(), setting).flatten(0, 2)[here].half())
    return torch.cat(parts)


def select(patches: Tensor, size: int, setting: Setting, options: BankOptions) -> Bank:
    """The bank of at most `size` of these patches (n, D) float16."""
    if len(patches) <= size:
        return Bank(patches.float())
    generator = torch.Generator().manual_seed(setting.seed)
    points = patches.float()
    points = points - points.mean(0)  # smaller numbers, smaller errors of their products
    if points.shape[1] > options.projection:
        # Gaussian, so that distances keep their ratios (Johnson and Lindenstrauss 1984).
        drawn = torch.randn(points.shape[1], options.projection, generator=generator)
        points = points @ drawn.to(points.device)
    first = int(torch.randint(len(points), (1,), generator=generator))
    return Bank(patches[greedy_centres(points, size, first)].float())


def greedy_centres(points: Tensor, count: int, first: int) -> list[int]:
    """Indices of up to `count` points (n, d) float32 such that no point is far from all of them.

    Greedy k-centre (Gonzalez 1985; Sener and Savarese 2018): beginning with `first`, always the point
    farthest from those chosen; the radius that remains is at most twice the least possible. Ends early
    where every point equals a chosen one.
    """
    norms = points.square().sum(1)
    least = ROUNDING * float(norms.max())
    nearest = torch.full_like(norms, torch.inf)  # squared distance to the chosen
    chosen = [first]
    while len(chosen) < count:
        last = chosen[-1]
        distance = torch.addmv(norms, points, points[last], alpha=-2).add_(norms[last])
        torch.minimum(nearest, distance, out=nearest)
        farthest = int(nearest.argmax())
        if float(nearest[farthest]) <= least:
            break
        chosen.append(farthest)
    return chosen


def _left_out_scores(maps: Tensor, setting: Setting) -> list[float]:
    """Image scores of held-out maps (n, h, w), each calibrated by place without the image itself.

    As the line does it: its own spread would make each image look more ordinary than the next one will.
    """
    scores = torch.empty(len(maps))
    for first in range(min(len(maps), LEFT_OUT_GROUPS)):
        group = torch.arange(len(maps)) % LEFT_OUT_GROUPS == first
        rest = maps[~group] if len(maps) > 1 else maps
        position = PositionCalibration.fit(rest, setting.config.scoring)
        scores[group] = torch.tensor([judged(one[None], setting)[0] for one in position(maps[group])])
    return scores.double().tolist()


def _inspect(bank: Bank, features: Tensor, setting: Setting, options: BankOptions) -> Inspection:
    """PatchCore's verdict on features (1, h, w, D): re-weighted score of the raw map, smoothed map."""
    x, found, distances = _compare(bank, features, setting)
    score = bank.image_score(x, found, options.neighbours)
    maps = smooth(distances[None], setting.config.scoring.smoothing)
    return Inspection(task=None, known=None, score=score, patch_map=maps[0].cpu().numpy())


def _compare(bank: Bank, features: Tensor, setting: Setting) -> tuple[Tensor, Found, Tensor]:
    """Patches (h w, D) of features (1, h, w, D), their nearest, and the distances as a map (h, w)."""
    x = _local(features, setting)
    found = bank.nearest(x.flatten(0, 2))
    return x.flatten(0, 2), found, found.distance.unflatten(0, x.shape[1:3])


def _local(features: Tensor, setting: Setting) -> Tensor:
    """Locally aware patches: features (B, h, w, D) averaged over 3x3 unless the backbone has done so."""
    if get_backbone(setting.backbone).pool:
        return features
    maps = F.avg_pool2d(features.permute(0, 3, 1, 2), 3, stride=1, padding=1, count_include_pad=False)
    return maps.permute(0, 2, 3, 1)


def _require_images(pictures: Pictures) -> None:
    if not len(pictures):
        raise TrainingError(f"expected good images of {pictures.product!r} to learn from, got none")
    require_finite(pictures.features)
