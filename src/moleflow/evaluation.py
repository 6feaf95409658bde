"""A line judged on labelled images: with the product found by the line itself, and with the product given."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Container, Iterable, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .data.layouts import Dataset, Item, load_mask
from .data.layouts import Product as LabelledProduct
from .data.sources import Errors
from .errors import ConfigError, DatasetError
from .metrics import (
    AUPRO_LIMIT,
    PixelScores,
    answer_of,
    image_ap,
    image_auroc,
    image_f1_max,
    routing_shares,
)
from .results import Failure, Prediction

if TYPE_CHECKING:
    from .detector import Detector

Told = Callable[[int, int], None]
"""Told how many of how many inspections are done."""


@dataclass(frozen=True)
class Figures:
    """What was measured on one product, or the mean over products; None where it cannot be measured.

    Attributes:
        image_auroc, image_ap, image_f1_max: image scores against labels; F1-max picks its threshold by them.
        pixel_auroc, pixel_ap, aupro: all pixels of all test images pooled; AUPRO up to a false-positive rate
            of 0.3. They need masks.
        routing_good, routing_defective: share of the images sent to their own product; unknown is wrong.
        unknown_good, unknown_defective: share of the images taken for no taught product.
        false_alarms: share of the good images called defective at the stored threshold.
        detected: share of the defective images called defective at the stored threshold.
    """

    image_auroc: float | None
    image_ap: float | None
    image_f1_max: float | None
    pixel_auroc: float | None
    pixel_ap: float | None
    aupro_30: float | None
    routing_good: float | None
    routing_defective: float | None
    unknown_good: float | None
    unknown_defective: float | None
    false_alarms: float | None
    detected: float | None


@dataclass(frozen=True)
class Scores:
    """Figures by product, and their unweighted mean over the products that have each of them."""

    products: dict[str, Figures]
    mean: Figures


@dataclass(frozen=True)
class Evaluation:
    """All that was found out about a line.

    Attributes:
        routed: the line finds the product itself, as at a station.
        oracle: the product is given; None when it was not asked for.
        foreign: products of the data that the line was not taught: share of their images called unknown,
            None where none could be read.
        untested: products of the line that the data does not hold.
        images: good and defective test images by product, those that could not be read left out.
        eval_size: (H, W) at which maps and masks were compared; None: each image's own.
        unreadable: test images of which nothing could be said; they count in no figure.
    """

    routed: Scores
    oracle: Scores | None
    foreign: dict[str, float | None]
    untested: tuple[str, ...]
    images: dict[str, tuple[int, int]]
    eval_size: tuple[int, int] | None
    unreadable: tuple[Failure, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON-able values."""
        failures = [failure.to_dict() for failure in self.unreadable]
        return asdict(self) | {"aupro_limit": AUPRO_LIMIT, "unreadable": failures}


def evaluate(
    detector: Detector,
    dataset: Dataset,
    *,
    oracle: bool = False,
    eval_size: int | tuple[int, int] | None = None,
    batch_size: int = 8,
    errors: Errors = "raise",
    progress: Told | None = None,
) -> Evaluation:
    """Score `detector` on the test images of `dataset`, whose products are matched by name.

    Maps and masks are compared at each image's own size, or at `eval_size` (one number: a square).
    With `errors` "yield" a test image that cannot be read is left out of the figures and listed; with "raise"
    it is an ImageError. Raises DatasetError when the data holds no test image of a product that the line
    knows, and ConfigError for an impossible size.
    """
    size = _checked_size(eval_size)
    tested = {_name(p): p for p in dataset.products.values() if p.test}
    known = [name for name in detector.tasks if name in tested]
    if not known:
        has, holds = ", ".join(detector.tasks) or "none", ", ".join(tested) or "none"
        raise DatasetError(
            f"{dataset.root}: expected test images of the line's products ({has}), found those of: {holds}"
        )
    foreign = [name for name in tested if name not in detector.tasks]
    total = sum(len(tested[name].test) * (1 + oracle) for name in known)
    total += sum(len(tested[name].test) for name in foreign)
    run = _Run(detector, size, batch_size, errors, _Count(total, progress))
    routed = _scores({name: run.figures(tested[name], None) for name in known})
    given = _scores({name: run.figures(tested[name], name) for name in known}) if oracle else None
    shares = {name: run.unknown_share(tested[name]) for name in foreign}
    return Evaluation(
        routed=routed,
        oracle=given,
        foreign=shares,
        untested=tuple(name for name in detector.tasks if name not in tested),
        images={name: _counts(tested[name], run.unreadable) for name in known},
        eval_size=size,
        unreadable=tuple(run.unreadable.values()),
    )


@dataclass
class _Count:
    """Counts inspections and passes the count on."""

    total: int
    told: Told | None
    done: int = 0

    def step(self) -> None:
        self.done += 1
        if self.told is not None:
            self.told(self.done, self.total)


@dataclass(frozen=True)
class _Run:
    """One evaluation under way."""

    detector: Detector
    size: tuple[int, int] | None
    batch_size: int
    errors: Errors
    count: _Count
    unreadable: dict[Path, Failure] = field(default_factory=dict)

    def inspect(self, items: Sequence[Item], task: str | None) -> Iterable[tuple[Item, Prediction]]:
        """What is said of each image of which something can be said; the others are kept in mind."""
        paths = [item.path for item in items]
        results = self.detector.stream(paths, task=task, batch_size=self.batch_size, errors=self.errors)
        for item, result in zip(items, results, strict=True):
            if isinstance(result, Failure):
                self.unreadable[item.path] = result
            else:
                yield item, result
            self.count.step()

    def figures(self, product: LabelledProduct, task: str | None) -> Figures:
        """Figures of one product; without `task` the line finds the product itself."""
        seen: list[_Seen] = []
        marked = False
        with PixelScores() as pixels:
            for item, prediction in self.inspect(product.test, task):
                answer = answer_of(prediction.task, prediction.known)
                seen.append(_Seen(item.label, prediction.pred_score, prediction.pred_label, answer))
                if product.has_masks:
                    size = self.size or prediction.image_size
                    mask = load_mask(item, shape=size)
                    marked |= bool(mask.any())  # a small one may vanish at another size
                    pixels.add(prediction.map_at(size), mask, defective=bool(item.label))
            pixel = _pixel_figures(pixels) if marked else (None, None, None)
        return _figures(_name(product), seen, pixel, routed=task is None)

    def unknown_share(self, product: LabelledProduct) -> float | None:
        """How many images of a product that was never taught are recognised as such."""
        return _share(not prediction.known for _, prediction in self.inspect(product.test, None))


@dataclass(frozen=True)
class _Seen:
    """What the line said of one labelled image; `answer` is None for unknown."""

    label: int
    score: float
    alarm: bool
    answer: str | None


_PixelFigures = tuple[float | None, float | None, float | None]


def _pixel_figures(pixels: PixelScores) -> _PixelFigures:
    summary = pixels.summary()
    return summary.auroc, summary.ap, summary.aupro[AUPRO_LIMIT]


def _figures(name: str, seen: Sequence[_Seen], pixel: _PixelFigures, *, routed: bool) -> Figures:
    labels, scores = [one.label for one in seen], [one.score for one in seen]
    both = len(set(labels)) == 2
    sent = routing_shares(name, [one.answer for one in seen], labels)
    good, defective = ([one for one in seen if one.label == label] for label in (0, 1))
    return Figures(
        image_auroc=image_auroc(scores, labels) if both else None,
        image_ap=image_ap(scores, labels) if both else None,
        image_f1_max=image_f1_max(scores, labels).f1 if both else None,
        pixel_auroc=pixel[0],
        pixel_ap=pixel[1],
        aupro_30=pixel[2],
        **(sent if routed else dict.fromkeys(sent)),
        false_alarms=_share(one.alarm for one in good),
        detected=_share(one.alarm for one in defective),
    )


def _scores(products: dict[str, Figures]) -> Scores:
    mean = {f.name: _mean(getattr(one, f.name) for one in products.values()) for f in fields(Figures)}
    return Scores(products, Figures(**mean))


def _mean(values: Iterable[float | None]) -> float | None:
    present = [value for value in values if value is not None]
    return float(np.mean(present)) if present else None


def _share(marks: Iterable[bool]) -> float | None:
    return _mean(float(mark) for mark in marks)


def _counts(product: LabelledProduct, unreadable: Container[Path]) -> tuple[int, int]:
    labels = [item.label for item in product.test if item.path not in unreadable]
    return len(labels) - sum(labels), sum(labels)


def _name(product: LabelledProduct) -> str:
    """Names on a line are in this form; file systems may spell an accented letter in two."""
    return unicodedata.normalize("NFC", product.name)


def _checked_size(size: int | tuple[int, int] | None) -> tuple[int, int] | None:
    if size is None:
        return None
    pair = (size, size) if isinstance(size, int) else size
    if min(pair) < 1:
        raise ConfigError(f"expected an evaluation size of at least 1 pixel, got {pair[0]} x {pair[1]}")
    return pair
