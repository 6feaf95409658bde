"""Pixel metrics over all test images of a product, exact, on raw float64 maps, in bounded memory.

Thousands of maps of a megapixel do not fit into memory, and a histogram would not be exact. So the
pixels are sorted outside memory: see :class:`PixelScores`.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import ndimage

from moleflow.errors import ConfigError
from moleflow.metrics.curve import (
    F1Max,
    Floats,
    PrecisionRecall,
    RocArea,
    Steps,
    check_finite,
    need_both_classes,
    starts_of_ties,
)

AUPRO_LIMIT = 0.3
AUPIMO_BOUNDS = (1e-5, 1e-4)

Codes = NDArray[np.int32]
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
    aupimo_bounds: tuple[float, float]


class PixelScores:
    """Collects maps and masks one image at a time and computes pixel metrics over all of them.

    Use it as a context manager, or call :meth:`close`, to remove what was written to disk::

        with PixelScores() as pixels:
            for anomaly_map, mask in results:
                pixels.add(anomaly_map, mask)
            print(pixels.auroc(), pixels.aupro())

    Every pixel is kept as its float64 score and an int32 code for what it counts as: 0 is background
    of a defective image, r > 0 belongs to defect region r, -g < 0 belongs to good image g. When
    ``max_pixels`` of them have come together they are sorted and written to a temporary folder as one
    run (12 bytes per pixel; ``spill_dir`` says where, default the system's). A metric then merges the
    runs from the highest score down. Each round takes the next block of every run, finds the highest
    of the blocks' last scores, and passes on everything at or above it: nothing that comes later can
    be higher. So memory holds ``max_pixels`` pixels while collecting (up to 48 bytes each while they
    are sorted) and one block per run while merging, whatever the number of images, and no score is
    rounded. AUPIMO also holds the good pixels' scores down to its upper bound.

    More images may be added after a metric was read. Not for use from several threads at once.
    """

    def __init__(self, *, max_pixels: int = 2**24, spill_dir: Path | None = None) -> None:
        if max_pixels < 1:
            raise ConfigError(f"max_pixels must be at least 1, not {max_pixels}")
        self._max_pixels = max_pixels
        self._spill_dir = spill_dir
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        self._spilled: list[_FileRun] = []
        self._pending: list[tuple[Floats, Codes]] = []
        self._pending_pixels = 0
        self._sorted = False
        self._closed = False
        # Tables that the codes point into; index 0 is never pointed at.
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
        self._spilled, self._pending, self._pending_pixels = [], [], 0
        if self._folder is not None:
            self._folder.cleanup()
            self._folder = None

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
        codes = self._codes_of_defective(regions, count) if defective else self._codes_of_good(scores.size)
        hits = int(np.count_nonzero(regions))
        self._positives += hits
        self._negatives += scores.size - hits
        self._pending.append((scores.ravel(), codes))
        self._pending_pixels += scores.size
        self._sorted = False
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
        tail = self._good_tail(bounds)
        self._sweep(tail)
        return self._aupimo_from(tail)

    def summary(
        self, *, limits: Sequence[float] = (AUPRO_LIMIT,), bounds: tuple[float, float] = AUPIMO_BOUNDS
    ) -> PixelMetrics:
        """All metrics in one pass over the sorted pixels; errors as for each of them."""
        area, curve = self._roc_area(), self._precision_recall()
        overlaps = {limit: self._region_overlap(limit) for limit in limits}
        tail = self._good_tail(bounds) if len(self._good_pixels) > 1 else None
        self._sweep(area, curve, *overlaps.values(), *([] if tail is None else [tail]))
        return PixelMetrics(
            auroc=area.result(),
            ap=curve.average_precision(),
            f1_max=curve.best,
            aupro={limit: overlap.result() for limit, overlap in overlaps.items()},
            aupimo=None if tail is None else self._aupimo_from(tail),
            aupimo_bounds=bounds,
        )

    # What each pixel counts as.

    def _codes_of_defective(self, regions: Codes, count: int) -> Codes:
        offset = len(self._region_pixels) - 1
        pixels = np.bincount(regions.ravel(), minlength=count + 1)[1:]
        self._region_pixels.extend(int(n) for n in pixels)
        if count:
            self._region_image.extend([self._defective_images] * count)
            self._defective_images += 1
        return np.where(regions > 0, regions + np.int32(offset), np.int32(0)).ravel()

    def _codes_of_good(self, pixels: int) -> Codes:
        self._good_pixels.append(pixels)
        return np.full(pixels, 1 - len(self._good_pixels), dtype=np.int32)

    def _weights(self) -> tuple[Floats, Floats]:
        """Per region 1/pixels, and per good image its pixels' share in the mean false-positive rate."""
        regions = np.asarray(self._region_pixels, dtype=np.float64)
        good = np.asarray(self._good_pixels, dtype=np.float64) * max(1, len(self._good_pixels) - 1)
        return _reciprocal(regions), _reciprocal(good)

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

    def _good_tail(self, bounds: tuple[float, float]) -> _GoodTail:
        lower, upper = bounds
        if not 0 < lower < upper <= 1:
            raise ConfigError(f"the bounds of AUPIMO must be 0 < lower < upper <= 1, not {bounds}")
        self._check_open()
        if len(self._good_pixels) == 1 or self._positives == 0:
            missing = "good images" if self._positives else "defective pixels"
            raise ConfigError(f"AUPIMO needs good images and defective pixels; there are no {missing}")
        return _GoodTail(lower, upper)

    def _aupimo_from(self, tail: _GoodTail) -> Aupimo:
        rewards = np.zeros(self._defective_images)
        region_image = np.asarray(self._region_image)
        for scores, codes in self._blocks():
            defective = codes > 0
            images = region_image[codes[defective]]
            reward = tail.reward(scores[defective])
            rewards += np.bincount(images, weights=reward, minlength=len(rewards))
        pixels = np.bincount(region_image[1:], weights=self._region_pixels[1:], minlength=len(rewards))
        values = rewards / pixels
        resolution = float(self._weights()[1][1:].min())
        return Aupimo(float(values.mean()), tuple(float(v) for v in values), resolution)

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
        stem = Path(self._folder.name) / f"run{len(self._spilled):05d}"
        self._spilled.append(_FileRun.write(stem, self._in_memory()))
        self._pending, self._pending_pixels = [], 0

    def _in_memory(self) -> _MemoryRun:
        """The pixels that are in memory as one sorted run, which is kept in their place."""
        if not self._sorted:
            scores = np.concatenate([part for part, _ in self._pending])
            codes = np.concatenate([part for _, part in self._pending])
            self._pending = []
            order = np.argsort(-scores)
            self._pending = [(scores[order], codes[order])]
            self._sorted = True
        return _MemoryRun(*self._pending[0])

    def _runs(self) -> list[_Run]:
        return [*self._spilled, self._in_memory()] if self._pending else [*self._spilled]

    def _blocks(self) -> Iterator[tuple[Floats, Codes]]:
        """All pixels in blocks, in no particular order."""
        for run in self._runs():
            for start in range(0, len(run), self._block):
                yield run.read(start, self._block)

    @property
    def _block(self) -> int:
        """Pixels per block when one run is read: smaller than a run, for the sake of temporaries."""
        return max(1, min(self._max_pixels, 2**21))

    def _sweep(self, *metrics: _Metric) -> None:
        """Feed all steps, from the highest score down, to every metric."""
        block = max(1, self._block // (len(self._spilled) + 1))
        overlap, share = self._weights()
        open_step: Steps | None = None
        for scores, codes in _merge(self._runs(), block):
            steps = _as_steps(scores, codes, region_weight=overlap, good_weight=share)
            if open_step is not None:
                steps = _joined(open_step, steps)
            # The lowest score may go on in the next round: hold it back until it is complete.
            open_step = _part(steps, slice(-1, None))
            if len(steps) > 1:
                _feed(metrics, _part(steps, slice(None, -1)))
        if open_step is not None:
            _feed(metrics, open_step)


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
    scores = np.array(anomaly_map, dtype=np.float64)
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
    """The highest scores on good images, down to the threshold of the upper false-positive rate."""

    def __init__(self, lower: float, upper: float) -> None:
        self._lower, self._upper = lower, upper
        self._scores: list[Floats] = []
        self._rates: list[Floats] = []
        self._rate = 0.0

    @cached_property
    def _curve(self) -> tuple[Floats, Floats]:
        """Falling scores (S,), and the rate above each of them and after the last (S + 1,)."""
        return np.concatenate([*self._scores, np.zeros(0)]), np.concatenate([[0.0], *self._rates])

    def update(self, steps: Steps) -> None:
        """Take the next steps, all lower than those before."""
        if self._rate > self._upper:
            return
        on_good = steps.false_share > 0
        rates = self._rate + np.cumsum(steps.false_share[on_good])
        # One step beyond the bound stays in: what lies at or below it earns nothing.
        kept = int(np.searchsorted(rates, self._upper, side="right")) + 1
        self._scores.append(steps.scores[on_good][:kept])
        self._rates.append(rates[:kept])
        if len(rates):
            self._rate = float(rates[-1])

    def reward(self, scores: Floats) -> Floats:
        """For each pixel the part of the log-spaced interval of rates at which it is detected.

        A pixel of score s is detected at rate z when the good images' rate at threshold s is at most
        z. Averaged over an image's defective pixels this is the integral of its recall.
        """
        falling, rates = self._curve
        rate = rates[np.searchsorted(-falling, -scores, side="right")]
        clipped = np.clip(rate, self._lower, self._upper)
        return np.log(self._upper / clipped) / math.log(self._upper / self._lower)


def _as_steps(scores: Floats, codes: Codes, *, region_weight: Floats, good_weight: Floats) -> Steps:
    """Reduce sorted pixels (N,), N > 0, to one step per distinct score."""
    starts = starts_of_ties(scores)
    defective = codes > 0
    positives = np.add.reduceat(defective, starts, dtype=np.int64)
    overlap = region_weight[np.where(defective, codes, 0)]
    share = good_weight[np.where(codes < 0, -codes, 0)]
    return Steps(
        scores=scores[starts],
        negatives=np.diff(starts, append=len(scores)) - positives,
        positives=positives,
        overlap=np.add.reduceat(overlap, starts),
        false_share=np.add.reduceat(share, starts),
    )


def _part(steps: Steps, part: slice) -> Steps:
    return Steps(
        steps.scores[part],
        steps.negatives[part],
        steps.positives[part],
        overlap=steps.overlap[part],
        false_share=steps.false_share[part],
    )


def _joined(first: Steps, rest: Steps) -> Steps:
    """``first`` and then ``rest``; a score that stands in both becomes one step."""
    scores = np.concatenate([first.scores, rest.scores])
    starts = starts_of_ties(scores)
    return Steps(
        scores[starts],
        np.add.reduceat(np.concatenate([first.negatives, rest.negatives]), starts),
        np.add.reduceat(np.concatenate([first.positives, rest.positives]), starts),
        overlap=np.add.reduceat(np.concatenate([first.overlap, rest.overlap]), starts),
        false_share=np.add.reduceat(np.concatenate([first.false_share, rest.false_share]), starts),
    )


class _Run(Protocol):
    """Pixels sorted by falling score."""

    def __len__(self) -> int: ...

    def read(self, start: int, count: int) -> tuple[Floats, Codes]: ...


@dataclass(frozen=True)
class _MemoryRun:
    scores: Floats
    codes: Codes

    def __len__(self) -> int:
        return len(self.scores)

    def read(self, start: int, count: int) -> tuple[Floats, Codes]:
        return self.scores[start : start + count], self.codes[start : start + count]


@dataclass(frozen=True)
class _FileRun:
    """A run in two raw files; read by position, so that no file stays open or mapped."""

    stem: Path
    pixels: int

    @classmethod
    def write(cls, stem: Path, run: _MemoryRun) -> _FileRun:
        run.scores.tofile(stem.with_suffix(".f8"))
        run.codes.tofile(stem.with_suffix(".i4"))
        return cls(stem, len(run))

    def __len__(self) -> int:
        return self.pixels

    def read(self, start: int, count: int) -> tuple[Floats, Codes]:
        scores = np.fromfile(self.stem.with_suffix(".f8"), np.float64, count=count, offset=8 * start)
        codes = np.fromfile(self.stem.with_suffix(".i4"), np.int32, count=count, offset=4 * start)
        return scores, codes


class _Cursor:
    """A place in a run, with the block from there on in memory."""

    def __init__(self, run: _Run, block: int) -> None:
        self._run, self._block_size = run, block
        self._next = 0
        self._scores: Floats = np.zeros(0)
        self._codes: Codes = np.zeros(0, dtype=np.int32)

    def refill(self) -> bool:
        """Read the next block if none is left; False when the run is exhausted."""
        if len(self._scores) == 0 and self._next < len(self._run):
            self._scores, self._codes = self._run.read(self._next, self._block_size)
            self._next += len(self._scores)
        return len(self._scores) > 0

    def unseen_below(self) -> float:
        """No score of this run that is still unread is above this one."""
        return float(self._scores[-1]) if self._next < len(self._run) else -math.inf

    def take(self, bound: float) -> tuple[Floats, Codes]:
        """Remove and return the pixels at or above ``bound``."""
        count = int(np.searchsorted(-self._scores, -bound, side="right"))
        taken = self._scores[:count], self._codes[:count]
        self._scores, self._codes = self._scores[count:], self._codes[count:]
        return taken


def _merge(runs: Iterable[_Run], block: int) -> Iterator[tuple[Floats, Codes]]:
    """Non-empty sorted blocks of all pixels, from the highest score down; a tie may span two."""
    cursors = [_Cursor(run, block) for run in runs]
    while cursors := [cursor for cursor in cursors if cursor.refill()]:
        bound = max(cursor.unseen_below() for cursor in cursors)
        parts = [cursor.take(bound) for cursor in cursors]
        scores = np.concatenate([part for part, _ in parts])
        codes = np.concatenate([part for _, part in parts])
        if len(parts) > 1:
            order = np.argsort(-scores, kind="stable")
            scores, codes = scores[order], codes[order]
        yield scores, codes
