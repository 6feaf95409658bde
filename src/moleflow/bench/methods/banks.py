"""Banks of patches that stand for good images: one per product, plain or calibrated.

Greedy selection is the costly step: every centre looks at every candidate once. What makes it affordable
is written in `Selection`: candidates are a random part of all patches, compared in a random projection.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor

from ...config import check
from ...densities.coreset import greedy_centres
from ...errors import ConfigError, TrainingError
from ...features.backbones import get_backbone
from ...features.extractor import Features
from ...features.finite import require_finite
from ...verdict.calibration import ScoreCalibration
from ...verdict.maps import PositionCalibration, smooth
from .base import Inspection, PerProduct, Pictures, Setting, State, judged, split
from .line import FALSE_ALARM_RATE

CHUNK = 16  # images read at a time
ROWS = 256  # patches compared with a bank at a time: their table of distances stays in the cache


LEFT_OUT_GROUPS = 32  # into which calibration images are parted at most


@dataclass(frozen=True)
class Selection:
    """How patches are selected.

    Greedy selection over all patches is quadratic in images. A random sample of candidates bounds it:
    of n candidates a kind of patch that makes up a share p of all good patches is missing with
    probability (1 - p)^n, which for n = 100,000 is below 1 % from p = 5e-5 on.
    """

    candidates: int = 100_000  # patches drawn at random to select from
    projection: int = 64  # dimensions in which selection compares patches

    def __post_init__(self) -> None:
        check(self, positive=("candidates", "projection"))

    def notes(self, channels: int) -> tuple[str, ...]:
        """How selection departs from the papers', for features of so many channels."""
        drawn = f"candidates: {self.candidates:,} patches at random at most"
        if channels <= self.projection:
            return (drawn,)
        return drawn, f"compared in a random projection to {self.projection} dimensions"


@dataclass(frozen=True)
class CalibratedBankOptions(Selection):
    """How large a product's bank is, and how it is selected."""

    share: float = 0.01  # of a product's patches that its bank keeps, the paper's PatchCore-1%
    least: int = 1_000  # patches kept of a product with few images, where it has as many
    most: int = 10_000  # patches kept at most

    def __post_init__(self) -> None:
        super().__post_init__()
        check(self, positive=("least", "most"), share=("share",))
        if self.least > self.most:
            name = type(self).__name__
            raise ConfigError(f"{name}.least: expected at most {self.most} (most), got {self.least}")

    def size(self, patches: int) -> int:
        """Patches kept of so many."""
        return min(self.most, max(self.least, round(self.share * patches)))


@dataclass(frozen=True)
class BankOptions(CalibratedBankOptions):
    """The same, and how an image is scored with it."""

    neighbours: int = 9  # b of the re-weighting, the patch found included

    def __post_init__(self) -> None:
        super().__post_init__()
        check(self, positive=("neighbours",))


COMMON = BankOptions()
COMMON_CALIBRATED = CalibratedBankOptions()


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


class _Coreset(PerProduct):
    """A bank of each product's patches: what it is selected from and how it is kept."""

    def __init__(self, setting: Setting, options: CalibratedBankOptions) -> None:
        super().__init__(setting)
        self.options = options

    @property
    def notes(self) -> tuple[str, ...]:
        """How this run departs from the paper."""
        own = self.options
        kept = f"{100 * own.share:g} % of the patches kept, {own.least:,} to {own.most:,}"
        return kept, *own.notes(self.setting.channels)

    def part_state(self, part: _Part) -> State:
        """The bank, float16, and its calibrations where there are some."""
        tensors = {"bank": part.bank.patches.half().cpu()}
        if part.position is None or part.calibration is None:
            return State(tensors)
        tensors |= {f"position.{k}": v for k, v in part.position.kept().items()}
        return State(tensors, {"calibration": part.calibration.to_dict()})

    def part_from(self, state: State) -> _Part:
        """The inverse of `part_state`."""
        bank = Bank(state.tensors["bank"].to(self.setting.device).float())
        if "calibration" not in state.notes:
            return _Part(bank)
        position = PositionCalibration.from_kept(state.named("position."))
        return _Part(bank, position, ScoreCalibration.from_dict(state.notes["calibration"]))

    def select(self, features: Tensor, images: Sequence[int]) -> Bank:
        """A bank of these images of features (N, h, w, D)."""
        drawn = candidates(features, images, self.setting, self.options.candidates)
        size = self.options.size(len(images) * features.shape[1] * features.shape[2])
        return select(drawn, size, self.setting, self.options)


class MemoryBank(_Coreset):
    """PatchCore: a greedy k-centre coreset of good patches per product, and distances to the nearest.

    Patches are averaged over 3x3 neighbours as in the paper; where the backbone's features come so
    already (`BackboneSpec.pool`: the convolutional ones) they are taken as they are.
    """

    name = "memory-bank"
    title = "memory bank"
    source = "PatchCore (Roth et al. 2022), one bank per product behind our router"

    def __init__(self, setting: Setting, options: BankOptions = COMMON) -> None:
        super().__init__(setting, options)
        self.neighbours = options.neighbours

    def learn_part(self, pictures: Pictures) -> _Part:
        """A bank of all images."""
        require_images(pictures)
        return _Part(self.select(pictures.features, range(len(pictures))))

    def inspect_part(self, part: _Part, seen: Features) -> Inspection:
        """The paper's score, and the smoothed map of distances."""
        return inspect_bank(part.bank, seen.patches, self.setting, self.neighbours)


class CalibratedMemoryBank(_Coreset):
    """The memory bank with distances made comparable over the image, and scored and judged as by the line.

    The calibrations are fitted on held-out images, which the bank is not of; with few images every image is
    held out in turn, against a bank of the others (`split`). The line learns from all images all the same.
    """

    name = "memory-bank-calibrated"
    title = "memory bank, calibrated"
    source = "PatchCore (Roth et al. 2022) with the position calibration of this project"

    def __init__(self, setting: Setting, options: CalibratedBankOptions = COMMON_CALIBRATED) -> None:
        super().__init__(setting, options)

    @property
    def notes(self) -> tuple[str, ...]:
        """How this run departs from the paper."""
        return *super().notes, "calibrated by place and by score on held-out images, which is not PatchCore's"

    def learn_part(self, pictures: Pictures) -> _Part:
        """A bank of the images to learn from, and its calibrations on the others."""
        require_images(pictures)
        features, setting = pictures.features, self.setting
        learn, folds, kind = split(len(pictures), setting.config, setting.seed)
        crossed = kind == "cross-fitted"
        bank = self.select(features, learn)
        maps = []
        for fold in folds:
            seen = self.select(features, sorted(set(learn) - set(fold))) if crossed else bank
            maps += [compare(seen, features[j : j + 1].float(), setting)[2] for j in fold]
        held = torch.stack(maps)
        scores = ScoreCalibration(kind, tuple(sorted(_left_out_scores(held, setting))))
        return _Part(bank, PositionCalibration.fit(held, setting.config.scoring), scores)

    def inspect_part(self, part: _Part, seen: Features) -> Inspection:
        """Standardised map and score, and the verdict at the accepted rate of false alarms."""
        position, calibration = part.position, part.calibration
        assert position is not None
        assert calibration is not None
        _, _, distances = compare(part.bank, seen.patches, self.setting)
        raw, patch_map = judged(position(distances[None]), self.setting)
        return Inspection(
            task=None,
            known=None,
            score=float(calibration.standardise(torch.tensor(raw))),
            patch_map=calibration.standardise(torch.from_numpy(patch_map)).numpy(),
            threshold=calibration.threshold(FALSE_ALARM_RATE),
        )


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
        parts.append(local_patches(features[rows].float(), setting).flatten(0, 2)[here].half())
    return torch.cat(parts)


def select(patches: Tensor, size: int, setting: Setting, options: Selection) -> Bank:
    """The bank of at most `size` of these patches (n, D) float16."""
    if len(patches) <= size:
        return Bank(patches.float())
    points = projected(patches, setting, options)
    first = int(torch.randint(len(points), (1,), generator=torch.Generator().manual_seed(setting.seed)))
    return Bank(patches[greedy_centres(points, size, [first])].float())


def projected(patches: Tensor, setting: Setting, options: Selection) -> Tensor:
    """What selection compares of patches (n, D) float16: (n, d) float32, about their mean."""
    points = patches.float()
    points = points - points.mean(0)  # smaller numbers, smaller errors of their products
    if points.shape[1] <= options.projection:
        return points
    generator = torch.Generator().manual_seed(setting.seed)
    # Gaussian, so that distances keep their ratios (Johnson and Lindenstrauss 1984).
    drawn = torch.randn(points.shape[1], options.projection, generator=generator)
    return points @ drawn.to(points.device)


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


def inspect_bank(bank: Bank, features: Tensor, setting: Setting, neighbours: int) -> Inspection:
    """PatchCore's verdict on features (1, h, w, D): re-weighted score of the raw map, smoothed map."""
    x, found, distances = compare(bank, features, setting)
    score = bank.image_score(x, found, neighbours)
    maps = smooth(distances[None], setting.config.scoring.smoothing)
    return Inspection(task=None, known=None, score=score, patch_map=maps[0].cpu().numpy())


def compare(bank: Bank, features: Tensor, setting: Setting) -> tuple[Tensor, Found, Tensor]:
    """Patches (h w, D) of features (1, h, w, D), their nearest, and the distances as a map (h, w)."""
    x = local_patches(features, setting)
    found = bank.nearest(x.flatten(0, 2))
    return x.flatten(0, 2), found, found.distance.unflatten(0, x.shape[1:3])


def local_patches(features: Tensor, setting: Setting) -> Tensor:
    """Locally aware patches: features (B, h, w, D) averaged over 3x3 unless the backbone has done so."""
    if get_backbone(setting.backbone).pool:
        return features
    maps = F.avg_pool2d(features.permute(0, 3, 1, 2), 3, stride=1, padding=1, count_include_pad=False)
    return maps.permute(0, 2, 3, 1)


def require_images(pictures: Pictures) -> None:
    """Raises TrainingError for no images, or features that are no numbers."""
    if not len(pictures):
        raise TrainingError(f"expected good images of {pictures.product!r} to learn from, got none")
    require_finite(pictures.features)
