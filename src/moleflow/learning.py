"""One lesson: good images of a product become a line that knows it, and all others as before."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from .archive import fingerprint_of
from .config import LineConfig
from .data.images import camera_of
from .data.sources import Errors, Source, list_sources, name_of
from .errors import ConfigError
from .features.extractor import Extractor
from .flow.expert import Base
from .intake import Intake, Picture, check_readable, pictures_in, readable
from .lesson import Lesson, review
from .line import Line, rerouted_by
from .product import Product, learn_product, split
from .results import Failure
from .suspects import Photo, facts_of
from .training import learn_base

Progress = Callable[[str, float], None]
"""Told the stage ("backbone", "base", "learning", "calibration") and the share of it that is done."""

Sources = Sequence[tuple[Source, Any]]

EXTRACT_BATCH = 8


@dataclass(frozen=True)
class LessonOptions:
    """Which of the images teach, and together with which.

    Attributes:
        groups: a label for each image, shared by those that belong together; None where nobody says.
        strict: refuse any unreadable image instead of leaving a few out.
        drop_suspicious: leave out images that something speaks against.
    """

    groups: Sequence[str] | None = None
    strict: bool = False
    drop_suspicious: bool = False

    @property
    def errors(self) -> Errors:
        """What an unreadable image does."""
        return "raise" if self.strict else "yield"


@dataclass(frozen=True, eq=False)
class Material:
    """What there is to learn from.

    Attributes:
        features: (N, h, w, D) in 16 bits of the images that teach, computed once and reused by every step.
        groups: for each of them its label; None where nobody says.
        lesson: what their photographs are worth.
        unreadable: images that were left out because they could not be read, each with the reason.
    """

    features: Tensor
    groups: Sequence[str] | None
    lesson: Lesson
    unreadable: tuple[str, ...]


def learn(
    line: Line,
    name: str,
    images: Any,
    *,
    extractor: Extractor,
    config: LineConfig,
    seed: int,
    intensity: str,
    options: LessonOptions,
    progress: Progress,
) -> Line:
    """The line with a product of this name, learned from good images; `line` itself does not change.

    A product that is known learns more: its new images beside features like its earlier ones. The first
    product of a line also settles which numbers of the camera are black and white, and trains the base.

    Args:
        line: what is known so far.
        name: of the product, as `check_task_name` returns it.
        images: see `list_sources`.
        extractor: the line's backbone.
        config: the line's options.
        seed: fixes everything random.
        intensity: the wish by which the first product settles the intake.
        options: which of the images teach.
        progress: told the stage and the share of it that is done.

    Raises:
        ImageError: too many images are unreadable, or there is none, or none is left.
        ConfigError: there are not as many group labels as images.
        TrainingError: learning did not stay finite.
    """
    started = time.perf_counter()
    sources = _sources_of(images, options)
    if line.base is None:
        line = replace(line, intake=line.intake.settled(intensity, sources))
    material = _gather(sources, line.intake, extractor, options=options, tell=progress)
    seconds = {"backbone": time.perf_counter() - started}
    base = line.base
    if base is None:
        started = time.perf_counter()
        base = _first_base(material.features, config, seed, tell=progress)
        line = replace(line, base=base, base_hash=fingerprint_of(base, extractor, config))
        seconds["base"] = time.perf_counter() - started
    product = learn_product(
        base,
        material.features,
        config,
        seed=seed,
        progress=progress,
        previous=line.products.get(name),
        groups=material.groups,
    )
    product = replace(product, seconds=seconds | product.seconds)
    return _with_product(line, name, product, material=material, config=config)


def features_of(extractor: Extractor, pictures: Sequence[Picture]) -> Tensor:
    """Features (B, h, w, D) of a batch of pictures, in one pass of the backbone."""
    return extractor.features(extractor.stack([picture.pixels for picture in pictures]))


def _sources_of(images: Any, options: LessonOptions) -> Sources:
    sources, groups = list_sources(images, errors=options.errors), options.groups
    if groups is not None and len(groups) != len(sources):
        raise ConfigError(f"expected a group label for each of {len(sources)} images, got {len(groups)}")
    return sources


def _gather(
    sources: Sources, intake: Intake, extractor: Extractor, *, options: LessonOptions, tell: Progress
) -> Material:
    """Looks at all images, and leaves out what cannot be read and, on demand, what is suspicious."""
    features, photos, failures = _extract(sources, intake, extractor, errors=options.errors, tell=tell)
    reviewed = review(photos, drop_suspicious=options.drop_suspicious)
    if reviewed.lesson.dropped:
        features = features[reviewed.kept]
    groups = options.groups
    if groups is not None:
        seen = [label for i, label in enumerate(groups) if i not in failures]
        groups = [seen[i] for i in reviewed.kept]
    unreadable = tuple(failure.error for failure in failures.values())
    return Material(features, groups, reviewed.lesson, unreadable)


def _extract(
    sources: Sources, intake: Intake, extractor: Extractor, *, errors: Errors, tell: Progress
) -> tuple[Tensor, list[Photo], dict[int, Failure]]:
    """Features of all readable images, what each looks like, and by position those that are not."""
    parts, photos = [], []
    failures: dict[int, Failure] = {}
    done = 0
    for batch in intake.batches(sources, EXTRACT_BATCH, errors=errors):
        failures |= {done + i: one for i, one in enumerate(batch) if isinstance(one, Failure)}
        pictures = pictures_in(batch)
        if pictures and readable(len(failures), len(sources)):
            photos += [_facts(picture) for picture in pictures]
            parts.append(features_of(extractor, pictures).half())
        done += len(batch)
        tell("backbone", done / len(sources))
    check_readable(list(failures.values()), len(sources))
    return torch.cat(parts), photos, failures


def _facts(picture: Picture) -> Photo:
    source = picture.source
    return facts_of(name_of(source), picture.pixels, picture.size, camera=camera_of(source))


def _first_base(features: Tensor, config: LineConfig, seed: int, *, tell: Progress) -> Base:
    # What is held out to calibrate the first product must be unseen by the base as well.
    learned, _, _ = split(len(features), config, seed)
    return learn_base(
        features[learned],
        config.flow,
        config.training,
        seed=seed,
        progress=lambda share: tell("base", share),
    )


def _with_product(
    before: Line, name: str, product: Product, *, material: Material, config: LineConfig
) -> Line:
    overrides = dict(before.overrides)
    if "threshold" in overrides.get(name, {}):  # scores have a new scale
        del overrides[name]
    after = before.with_products(
        before.products | {name: product},
        config.router,
        overrides=overrides,
        unreadable=before.unreadable | {name: material.unreadable},
        lessons=before.lessons | {name: material.lesson},
    )
    return replace(after, rerouted=before.rerouted | {name: rerouted_by(name, before, after)})
