"""Pixel metrics over all test images of a product, exact, on raw maps, in bounded memory.

Thousands of maps of a megapixel do not fit into memory, and a histogram would not be exact. So the
pixels are sorted outside memory: see :class:`PixelScores`.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import ndimage

from moleflow.errors import ConfigError
from moleflow.metrics.curve import (
    Counts,
    F1Max,
    Floats,
    PrecisionRecall,
    RocArea,
    Steps,
    check_finite,
    need_both_classes,
    starts_of_ties,
)
from moleflow.metrics.runs import Codes, Ranking, Scraps, Tally, falling

AUPRO_LIMIT = 0.3
AUPIMO_BOUNDS = (1e-5, 1e-4)

_EIGHT_NEIGHBOURS = np.ones((3, 3), dtype=bool)


@dataclass(frozen=True)
class Aupimo:
    """AUPIMO of every defective image and their mean, all 0 to 1.

    ``per_image`` is in the order in which the defective images were added. ``resolution`` is the
    smallest false-positive rate above 0 that the good images can show; above the lower bound of the
    integration it says that too few good pixels were given to measure so low a rate.
    """

    mean: float
    per_image: tuple[float, ...]
    resolution: float


@dataclass(frozen=True)
class PixelMetrics:
    """All pixel metrics of a product at once.

    ``aupro`` is by the limit it goes up to; ``aupimo`` is None without good images.
    """

    auroc: float
    ap: float
    f1_max: F1Max
    aupro: dict[float, float]
    aupimo: Aupimo | None


class PixelScores:
    """Collects maps and masks one image at a time and computes pixel metrics over all of them.

    Use it as a context manager, or call :meth:`close`, to remove what was written to disk::

        with PixelScores() as pixels:
            for anomaly_map, mask in results:
                pixels.add(anomaly_map, mask)
            print(pixels.auroc(), pixels.aupro())

    Most pixels are background, and all that a metric asks of them is how many score above a defect pixel.
    So background is kept as sorted scores that answer by bisection (:class:`Tally`), good images and
    defective ones apart, and only defect pixels carry a code, the number of their region, and are merged
    from the highest score down (:class:`Ranking`). Good images are also kept as they came: AUPIMO looks
    for their few highest pixels once more. Scores of 32-bit maps stay in 32 bits, all others in 64, so none
    is rounded.

    When ``max_pixels`` have come together they are moved to a temporary folder (``spill_dir`` says where,
    default the system's; up to 16 bytes per pixel). So memory holds ``max_pixels`` pixels while collecting,
    up to 32 bytes each, and one block of defect pixels while merging, whatever the number of images.
    AUPIMO also holds the good pixels' scores down to its upper bound.

    More images may be added after a metric was read. Not for use from several threads at once.
    """

    def __init__(self, *, max_pixels: int = 2**24, spill_dir: Path | None = None) -> None:
        if max_pixels < 1:
            raise ConfigError(f"max_pixels must be at least 1, not {max_pixels}")
        self._max_pixels = max_pixels
        self._spill_dir = spill_dir
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        self._spills = 0
        self._pending_pixels = 0
        self._closed = False
        self._forget()
        # Tables that codes and numbers of images point into; index 0 is never pointed at.
        self._region_pixels: list[int] = [0]
        self._region_image: list[int] = [0]
        self._good_pixels: list[int] = [0]
        self._defective_images = 0
        self._negatives = 0
        self._positives = 0

    def __enter__(self) -> PixelScores:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Forget everything and remove the temporary folder; harmless when repeated."""
        self._closed = True
        self._forget()
        if self._folder is not None:
            self._folder.cleanup()
            self._folder = None

    def _forget(self) -> None:
        self._good, self._background, self._defects = Tally(), Tally(), Ranking()
        self._good_images = Scraps()

    def add(self, anomaly_map: ArrayLike, mask: ArrayLike, *, defective: bool | None = None) -> None:
        """Take one image: ``anomaly_map`` (H, W) of scores and ``mask`` (H, W), non-zero = defective.

        ``defective`` says what the image is; left out, it is defective when its mask has a pixel.
        Give it where masks are shrunk, since a thin defect may vanish: the image then still does not
        count among the good ones that AUPIMO measures false positives on.

        Raises ConfigError for a non-finite score, another shape, or a good image with defect pixels.
        """
        self._check_open()
        scores, regions, count = _checked(anomaly_map, mask)
        if defective is None:
            defective = count > 0
        if count and not defective:
            raise ConfigError("the image is said to be good, but its mask has defective pixels")
        hits = 0
        if defective:
            marked = regions > 0
            self._background.add(scores[~marked])
            self._defects.add(scores[marked], self._codes(regions[marked], count))
            hits = int(np.count_nonzero(marked))
        else:
            self._good_pixels.append(scores.size)
            self._good.add(scores.ravel())
            self._good_images.add(len(self._good_pixels) - 1, scores.ravel())
        self._positives += hits
        self._negatives += scores.size - hits
        self._pending_pixels += scores.size
        if self._pending_pixels >= self._max_pixels:
            self._spill()

    def auroc(self) -> float:
        """Pixel AUROC: all pixels of all images pooled; ConfigError where a class is absent."""
        area = self._roc_area()
        self._sweep(area)
        return area.result()

    def ap(self) -> float:
        """Pixel average precision: all pixels of all images pooled; errors as for AUROC."""
        curve = self._precision_recall()
        self._sweep(curve)
        return curve.average_precision()

    def f1_max(self) -> F1Max:
        """Best pixel F1 over all thresholds, an oracle; errors as for AUROC."""
        curve = self._precision_recall()
        self._sweep(curve)
        return curve.best

    def aupro(self, limit: float = AUPRO_LIMIT) -> float:
        """Area under the per-region overlap up to a false-positive rate of ``limit``, divided by it.

        Regions are 8-connected and weigh the same whatever their size; every background pixel of
        every image counts for the false-positive rate (Bergmann et al. 2021). The curve
        runs from (0, 0) to (1, 1), has one point per distinct score, and is linear in between, at
        ``limit`` too. Errors as for AUROC; ConfigError for a limit outside (0, 1].
        """
        area = self._region_overlap(limit)
        self._sweep(area)
        return area.result()

    def aupimo(self, bounds: tuple[float, float] = AUPIMO_BOUNDS) -> Aupimo:
        """Area under the per-image overlap between two false-positive rates on good images only.

        For a defective image i and a false-positive rate z, let T_i(z) be the largest recall of its
        defective pixels among thresholds whose false-positive rate on the good images, averaged per
        image, is at most z. Its AUPIMO is the mean of T_i over log z from the lower to the upper
        bound (Bertoldo et al. 2024). T_i is a staircase and is integrated as such, without a
        grid of thresholds. Images without any mask pixel have no value.

        Raises ConfigError without good images or defect pixels, or for bounds that are not
        0 < lower < upper <= 1.
        """
        self._check_bounds(bounds)
        return self._aupimo(bounds)

    def summary(
        self, *, limits: Sequence[float] = (AUPRO_LIMIT,), bounds: tuple[float, float] = AUPIMO_BOUNDS
    ) -> PixelMetrics:
        """All metrics in one pass over the sorted pixels; errors as for each of them."""
        area, curve = self._roc_area(), self._precision_recall()
        overlaps = {limit: self._region_overlap(limit) for limit in limits}
        good = len(self._good_pixels) > 1
        if good:
            self._check_bounds(bounds)
        self._sweep(area, curve, *overlaps.values())
        return PixelMetrics(
            auroc=area.result(),
            ap=curve.average_precision(),
            f1_max=curve.best,
            aupro={limit: overlap.result() for limit, overlap in overlaps.items()},
            aupimo=self._aupimo(bounds) if good else None,
        )

    def _codes(self, regions: Codes, count: int) -> Codes:
        """Numbers of one image's regions (N,), from 1 to `count`, as numbers over all images."""
        offset = len(self._region_pixels) - 1
        pixels = np.bincount(regions, minlength=count + 1)[1:]
        self._region_pixels.extend(int(n) for n in pixels)
        if count:
            self._region_image.extend([self._defective_images] * count)
            self._defective_images += 1
        return regions + np.int32(offset)

    def _shares(self) -> Floats:
        """Per good image its pixels' share in the mean false-positive rate."""
        pixels = np.asarray(self._good_pixels, dtype=np.float64)
        return _reciprocal(pixels * max(1, len(pixels) - 1))

    # The metrics, checked and ready for a sweep.

    def _roc_area(self) -> RocArea:
        self._check_classes()
        return RocArea(self._negatives, self._positives)

    def _precision_recall(self) -> PrecisionRecall:
        self._check_classes()
        return PrecisionRecall(self._positives)

    def _region_overlap(self, limit: float) -> _RegionOverlap:
        if not 0 < limit <= 1:
            raise ConfigError(f"the limit of AUPRO must lie in (0, 1], not {limit}")
        self._check_classes()
        return _RegionOverlap(limit, self._negatives, len(self._region_pixels) - 1)

    def _check_bounds(self, bounds: tuple[float, float]) -> None:
        lower, upper = bounds
        if not 0 < lower < upper <= 1:
            raise ConfigError(f"the bounds of AUPIMO must be 0 < lower < upper <= 1, not {bounds}")
        self._check_open()
        if len(self._good_pixels) == 1 or self._positives == 0:
            missing = "good images" if self._positives else "defective pixels"
            raise ConfigError(f"AUPIMO needs good images and defective pixels; there are no {missing}")

    def _aupimo(self, bounds: tuple[float, float]) -> Aupimo:
        tail = self._good_tail(bounds)
        rewards = np.zeros(self._defective_images)
        region_image = np.asarray(self._region_image)
        for scores, codes in self._defects.blocks(self._block):
            rewards += np.bincount(region_image[codes], weights=tail.reward(scores), minlength=len(rewards))
        pixels = np.bincount(region_image[1:], weights=self._region_pixels[1:], minlength=len(rewards))
        values = rewards / pixels
        resolution = float(self._shares()[1:].min())
        return Aupimo(float(values.mean()), tuple(float(v) for v in values), resolution)

    def _good_tail(self, bounds: tuple[float, float]) -> _GoodTail:
        """The highest scores on good images, down to the threshold of the upper false-positive rate."""
        shares = self._shares()
        # So many pixels exceed the upper rate, however small their shares.
        enough = math.floor(bounds[1] / float(shares[1:].min())) + 2
        lowest = self._good.highest(enough).min()
        above = [(number, scores[scores >= lowest]) for number, scores in self._good_images]
        numbers = [np.full(len(scores), number, dtype=np.int32) for number, scores in above]
        scores, images = falling(np.concatenate([scores for _, scores in above]), np.concatenate(numbers))
        starts = starts_of_ties(scores)
        return _GoodTail(scores[starts], np.add.reduceat(shares[images], starts), bounds)

    # Storage and merging.

    def _check_open(self) -> None:
        if self._closed:
            raise ConfigError("this collection of pixel scores is closed")

    def _check_classes(self) -> None:
        self._check_open()
        need_both_classes(self._negatives, self._positives, "pixels")

    def _spill(self) -> None:
        if self._folder is None:
            self._folder = tempfile.TemporaryDirectory(prefix="moleflow-pixels-", dir=self._spill_dir)
        for name in ("good", "background", "defects", "good_images"):
            part: Tally | Ranking | Scraps = getattr(self, f"_{name}")
            part.spill(Path(self._folder.name) / f"{name}-{self._spills:05d}")
        self._spills += 1
        self._pending_pixels = 0

    @property
    def _block(self) -> int:
        """Defect pixels looked at together: fewer than memory holds, for the sake of temporaries."""
        return max(1, min(self._max_pixels, 2**21))

    def _sweep(self, *metrics: _Metric) -> None:
        """Feed all steps, from the highest score down, to every metric."""
        weight = _reciprocal(np.asarray(self._region_pixels, dtype=np.float64))
        passed = 0  # background pixels in the steps so far
        for scores, positives, overlap in _complete_ties(self._defects.falling(self._block), weight):
            steps = self._with_background(scores, positives, overlap, passed)
            passed += int(steps.negatives.sum())
            _feed(metrics, steps)
        rest = np.array([self._negatives - passed])
        if rest[0]:
            _feed(metrics, Steps(np.array([-np.inf]), rest, np.zeros_like(rest), overlap=np.zeros(1)))

    def _with_background(self, scores: Floats, positives: Counts, overlap: Floats, passed: int) -> Steps:
        """Steps of defect scores, falling and distinct, and of the background at and between them.

        All background between two defect scores makes one step, in the place of its lowest: within it
        nothing but the number of false alarms rises, so no metric is any different for it.
        """
        at_or_above, above = (
            a + b for a, b in zip(self._good.counts(scores), self._background.counts(scores), strict=True)
        )
        between = above - np.concatenate([[passed], at_or_above[:-1]])
        nothing = np.zeros(len(scores), dtype=np.int64)
        every = Steps(
            np.repeat(scores, 2),
            _alternating(between, at_or_above - above),
            _alternating(nothing, positives),
            overlap=_alternating(nothing.astype(np.float64), overlap),
        )
        return every.part(every.negatives + every.positives > 0)


def pixel_auroc(maps: Iterable[ArrayLike], masks: Iterable[ArrayLike]) -> float:
    """Pixel AUROC of N maps and N masks, each (H, W); see :meth:`PixelScores.auroc`."""
    with _collected(maps, masks) as pixels:
        return pixels.auroc()


def pixel_ap(maps: Iterable[ArrayLike], masks: Iterable[ArrayLike]) -> float:
    """Pixel average precision of N maps and N masks, each (H, W); see :meth:`PixelScores.ap`."""
    with _collected(maps, masks) as pixels:
        return pixels.ap()


def pixel_f1_max(maps: Iterable[ArrayLike], masks: Iterable[ArrayLike]) -> F1Max:
    """Best pixel F1, an oracle, of N maps and N masks, each (H, W)."""
    with _collected(maps, masks) as pixels:
        return pixels.f1_max()


def aupro(maps: Iterable[ArrayLike], masks: Iterable[ArrayLike], *, limit: float = AUPRO_LIMIT) -> float:
    """AUPRO of N maps and N masks, each (H, W); see :meth:`PixelScores.aupro`."""
    with _collected(maps, masks) as pixels:
        return pixels.aupro(limit)


def aupimo(
    maps: Iterable[ArrayLike],
    masks: Iterable[ArrayLike],
    *,
    bounds: tuple[float, float] = AUPIMO_BOUNDS,
) -> Aupimo:
    """AUPIMO of N maps and N masks, each (H, W); see :meth:`PixelScores.aupimo`."""
    with _collected(maps, masks) as pixels:
        return pixels.aupimo(bounds)


def _collected(maps: Iterable[ArrayLike], masks: Iterable[ArrayLike]) -> PixelScores:
    pixels = PixelScores()
    try:
        for index, (anomaly_map, mask) in enumerate(_pairs(maps, masks)):
            try:
                pixels.add(anomaly_map, mask)
            except ConfigError as error:
                raise ConfigError(f"image {index}: {error}") from error
    except BaseException:
        pixels.close()
        raise
    return pixels


def _pairs(maps: Iterable[ArrayLike], masks: Iterable[ArrayLike]) -> Iterator[tuple[ArrayLike, ArrayLike]]:
    missing = object()
    left, right = iter(maps), iter(masks)
    while True:
        anomaly_map, mask = next(left, missing), next(right, missing)
        if anomaly_map is missing and mask is missing:
            return
        if anomaly_map is missing or mask is missing:
            raise ConfigError("there must be as many masks as maps")
        yield anomaly_map, mask  # type: ignore[misc]


def _checked(anomaly_map: ArrayLike, mask: ArrayLike) -> tuple[Floats, Codes, int]:
    """A private copy of the scores, the regions' numbers (H, W) from 1, and how many regions."""
    as_they_are = np.float32 if np.asarray(anomaly_map).dtype == np.float32 else np.float64
    scores: Floats = np.array(anomaly_map, dtype=as_they_are)
    marks = np.asarray(mask) != 0
    if scores.ndim != 2 or scores.size == 0 or scores.shape != marks.shape:
        raise ConfigError(f"map and mask must have one shape (H, W), not {scores.shape} and {marks.shape}")
    check_finite(scores, "anomaly maps")
    regions = np.zeros(marks.shape, dtype=np.int32)
    count = ndimage.label(marks, structure=_EIGHT_NEIGHBOURS, output=regions)
    return scores, regions, int(count)


def _reciprocal(values: Floats) -> Floats:
    return np.divide(1.0, values, out=np.zeros_like(values), where=values > 0)


class _Metric(Protocol):
    def update(self, steps: Steps) -> None: ...


def _feed(metrics: Iterable[_Metric], steps: Steps) -> None:
    for metric in metrics:
        metric.update(steps)


class _RegionOverlap:
    """Area under (false-positive rate, mean overlap of the regions), up to ``limit``."""

    def __init__(self, limit: float, negatives: int, regions: int) -> None:
        self._limit = limit
        self._negatives, self._regions = negatives, regions
        self._alarms = 0
        self._overlap = 0.0
        self._area = 0.0

    def update(self, steps: Steps) -> None:
        """Take the next steps, all lower than those before."""
        alarms = self._alarms + np.concatenate([[0], np.cumsum(steps.negatives)])
        overlap = self._overlap + np.concatenate([[0.0], np.cumsum(steps.overlap)])
        self._area += _area_up_to(self._limit, alarms / self._negatives, overlap / self._regions)
        self._alarms, self._overlap = int(alarms[-1]), float(overlap[-1])

    def result(self) -> float:
        """The area divided by the limit, 0 to 1."""
        return self._area / self._limit


def _area_up_to(limit: float, x: Floats, y: Floats) -> float:
    """Trapezoids under the points (x, y), x rising, left of ``limit``; linear at the limit."""
    inside = int(np.searchsorted(x, limit, side="right"))
    if inside == 0:
        return 0.0
    area = float(np.sum(np.diff(x[:inside]) * (y[1:inside] + y[: inside - 1]) / 2))
    if inside < len(x):
        left, right = inside - 1, inside
        width = limit - x[left]
        at_limit = y[left] + (y[right] - y[left]) * width / (x[right] - x[left])
        area += float(width * (y[left] + at_limit) / 2)
    return area


class _GoodTail:
    """At which false-positive rate on good images a score is first detected.

    Args:
        scores: of good pixels, falling and distinct, (S,).
        shares: what the pixels of each add to the rate, (S,).
        bounds: the lower and upper rate that count.
    """

    def __init__(self, scores: Floats, shares: Floats, bounds: tuple[float, float]) -> None:
        self._scores, self._bounds = scores, bounds
        self._rates = np.concatenate([[0.0], np.cumsum(shares)])  # above each score, and after the last

    def reward(self, scores: Floats) -> Floats:
        """For each pixel the part of the log-spaced interval of rates at which it is detected.

        A pixel of score s is detected at rate z when the good images' rate at threshold s is at most
        z. Averaged over an image's defective pixels this is the integral of its recall.
        """
        lower, upper = self._bounds
        rate = self._rates[np.searchsorted(-self._scores, -scores, side="right")]
        return np.log(upper / np.clip(rate, lower, upper)) / math.log(upper / lower)


def _complete_ties(
    blocks: Iterable[tuple[Floats, Codes]], weight: Floats
) -> Iterator[tuple[Floats, Counts, Floats]]:
    """Distinct scores with their pixels and overlap, each (S,), from falling blocks of scores and regions."""
    held: tuple[Floats, Counts, Floats] | None = None
    for scores, codes in blocks:
        found = scores, np.ones(len(scores), dtype=np.int64), weight[codes]
        if held is not None:
            found = tuple(np.concatenate(pair) for pair in zip(held, found, strict=True))  # type: ignore[assignment]
        starts = starts_of_ties(found[0])
        found = found[0][starts], np.add.reduceat(found[1], starts), np.add.reduceat(found[2], starts)
        # The lowest score may go on in the next block: it is held back until it is complete.
        held = found[0][-1:], found[1][-1:], found[2][-1:]
        if len(found[0]) > 1:
            yield found[0][:-1], found[1][:-1], found[2][:-1]
    if held is not None:
        yield held


def _alternating(first: NDArray[Any], second: NDArray[Any]) -> NDArray[Any]:
    """first[0], second[0], first[1], ..., (2 N,)."""
    return np.stack([first, second], axis=1).ravel()
