"""One lesson: good images of a product become a line that knows it, and all others as before."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from ..bases.shipped import shipped_base
from ..config import Cells, LineConfig, to_dict
from ..data.images import camera_of
from ..data.sources import Errors, Source, evenly, list_sources, name_of
from ..densities.correction import Defects
from ..errors import CalibrationError, ConfigError, ImageError
from ..features.extractor import Extractor, Features
from ..flow.expert import Base
from ..intake import Intake, Picture, check_readable, pictures_in, readable
from ..line.archive import fingerprint_of
from ..line.beginning import see, see_each
from ..line.product import Product
from ..line.record import Line, rerouted_by
from ..photographs.review import Lesson, review
from ..photographs.sensor import sensor_floor
from ..photographs.suspects import Photo, facts_of
from ..pose import Floats, Placement, Pose, thumbnail
from ..results import Failure
from ..routing.gaussian import describe
from ..verdict.calibration import TwoVoices
from .blocks import make_blocks
from .changes import Note, changes_of, note_of, reference_of
from .known_defects import KnownDefects
from .left_out import FirstBase, learn_first_base
from .pose import Wish, settle_pose
from .product import Altered, learn_product
from .sight import Sight, in_32_bits

Progress = Callable[[str, float], None]
"""Told the stage ("backbone", "pose", "base", "learning", "calibration") and the share of it that is done."""

Sources = Sequence[tuple[Source, Any]]

EXTRACT_BATCH = 8
ALTERED_IMAGES = 2  # taken in several ways, to see what decoding and the sensor alone make of a score
LEAST_NEW = 4  # independent images that a threshold follows from, where it followed from as many before


@dataclass(frozen=True)
class LessonOptions:
    """Which of the images teach, and together with which.

    Attributes:
        groups: a label for each image, shared by those that belong together; None where nobody says.
        strict: refuse any unreadable image instead of leaving a few out.
        drop_suspicious: leave out images that something speaks against.
        pose: whether a new product's images are aligned; one that is known stays as it is.
    """

    groups: Sequence[str] | None = None
    strict: bool = False
    drop_suspicious: bool = False
    pose: Wish = "auto"

    @property
    def errors(self) -> Errors:
        """What an unreadable image does."""
        return "raise" if self.strict else "yield"


@dataclass(frozen=True, eq=False)
class Material:
    """What there is to learn from.

    Attributes:
        sources: of the images that teach.
        features: of them, patches in 16 bits, computed once and reused by every step; of the aligned
            images where the product is aligned.
        photos: what each looks like.
        notes: under which conditions each was taken, and what was said of it before.
        groups: for each its label; None where nobody says.
        copies: for each the number of its group of near-copies.
        lesson: what the photographs are worth.
        unreadable: images that were left out because they could not be read, each with the reason.
        pose: how they were aligned; None where nobody asked.
        routed: descriptors (N, 1, 1, D) of the images as they came; None where they were not aligned.
    """

    sources: Sources
    features: Features
    photos: Sequence[Photo]
    notes: Sequence[Note]
    groups: Sequence[str] | None
    copies: Sequence[int]
    lesson: Lesson
    unreadable: tuple[str, ...]
    pose: Pose | None = None
    routed: Tensor | None = None

    def take(self, kept: Sequence[int], lesson: Lesson, copies: Sequence[int]) -> Material:
        """What is left of it, in the light of another lesson."""
        return replace(
            self,
            sources=[self.sources[i] for i in kept],
            features=self.features.take(kept),
            photos=[self.photos[i] for i in kept],
            notes=[self.notes[i] for i in kept],
            groups=None if self.groups is None else [self.groups[i] for i in kept],
            copies=copies,
            lesson=lesson,
            routed=None if self.routed is None else self.routed[list(kept)],
        )


def learn(
    line: Line,
    name: str,
    sources: Sources,
    *,
    sight: Sight,
    config: LineConfig,
    seed: int,
    options: LessonOptions,
    progress: Progress,
    remembered: Sequence[Path] = (),
    known_defects: KnownDefects | None = None,
) -> Line:
    """The line with a product of this name, learned from good images; `line` itself does not change.

    A product that is known learns more: its new images beside features like its earlier ones. Where the
    library has no base for the backbone, or it is not wanted, the first product of a line also trains one.

    Args:
        line: what is known so far; its intake is settled.
        name: of the product, as `check_task_name` returns it.
        sources: the images, as `sources_of` lists them.
        sight: the line's backbone, which remembers what it was shown until the caller has it forget.
        config: the line's options.
        seed: fixes everything random.
        options: which of the images teach.
        progress: told the stage and the share of it that is done.
        remembered: inspected images of the product, of which `Line.changes` tells what is said anew.
        known_defects: what a known product shall find. It is then learned anew, from `sources` alone: nothing
            of what it was before is drawn from.

    Raises:
        ConfigError: known defects for a product without cells, or fewer good images than half of those that
            it was taught from.
        ImageError: too many images are unreadable, or none is left.
        CalibrationError: a known product's threshold would follow from fewer than `LEAST_NEW` independent
            images, and from fewer than it does now.
        TrainingError: learning did not stay finite.
    """
    started = time.perf_counter()
    before, extractor = line, sight.extractor
    known = line.products.get(name)
    if known is not None and known_defects is not None and 2 * len(sources) < known.images:
        raise ConfigError(
            f"{name!r} was taught from {known.images} good images and is learned anew with what it missed: "
            f"expected them again, got {len(sources)}"
        )
    defects = None  # seen before all else: a mask that is missing shows at once
    if known is not None and known_defects is not None:
        defects = known_defects.seen(known.pose, line.intake, extractor)
    previous = line.lessons.get(name) if known is not None and known_defects is None else None
    material = _gather(line, name, sources, sight, options=options, tell=progress, previous=previous)
    _require_enough(name, known, material, given=len(sources))
    if known is None:
        _tell_of_taught(name, material, line.lessons)
    seconds = {"backbone": time.perf_counter() - started}
    started = time.perf_counter()
    pose = known.pose if known else None
    if known is None:
        pose = _settled_pose(material, line.intake, sight, config, wish=options.pose, tell=progress)
    material = _aligned(material, pose, line.intake, sight, tell=progress)
    if pose is not None and pose.report.degrees is not None:
        seconds["pose"] = time.perf_counter() - started
    earlier = None if known_defects is not None else known
    taught = partial(
        _taught,
        line,
        earlier,
        sight=sight,
        config=config,
        seed=seed,
        tell=progress,
        defects=defects,
        taught_base=known is not None and known.taught_base,
    )
    line, product = taught(material)
    judged = _accused_by_scores(material, product, drop_suspicious=options.drop_suspicious)
    if len(judged.sources) < len(material.sources):
        _require_enough(name, known, judged, given=len(sources))
        line, product = taught(judged)
    material = judged
    product = _with_reference(product, material, config, known=earlier)
    product = replace(product, pose=pose, seconds=seconds | product.seconds)
    marks = (previous.marks if previous else "") + "".join(photo.mark for photo in material.photos)
    material = replace(material, lesson=replace(material.lesson, marks=marks))
    after = _with_product(line, name, product, material=material, config=config)
    return after if known is None else _with_changes(before, after, name, material, remembered, extractor)


def _taught(
    line: Line,
    previous: Product | None,
    material: Material,
    *,
    sight: Sight,
    config: LineConfig,
    seed: int,
    tell: Progress,
    defects: Defects | None,
    taught_base: bool,
) -> tuple[Line, Product]:
    """The product of this material, and the line with a base for it; its first product may teach that.

    One that taught the base and is learned anew (`previous` is None) is calibrated with bases that
    have not seen half of its images, as it was the first time.
    """
    started, seconds = time.perf_counter(), {}
    first = None
    if line.base is None or (taught_base and previous is None):
        first = _first_base(line, material, sight.extractor, config, seed=seed, tell=tell)
        taught_base = first.learned
    if first is not None and line.base is None:
        line = _with_base(line, first.final, sight.extractor, config)
    if first is not None and first.learned:
        seconds["base"] = time.perf_counter() - started
    assert line.base is not None
    product = learn_product(
        line.base,
        material.features,
        config,
        seed=seed,
        progress=tell,
        previous=previous,
        groups=material.groups,
        copies=material.copies,
        altered=_altered(material, line.intake, sight),
        routed=material.routed,
        without=None if first is None else first.without,
        defects=defects,
    )
    return line, replace(product, seconds=seconds | product.seconds, taught_base=taught_base)


def _first_base(
    line: Line, material: Material, extractor: Extractor, config: LineConfig, *, seed: int, tell: Progress
) -> FirstBase:
    """The library's own base where the line may have it, or one that is learned from this material."""
    if line.base is None and config.training.base == "auto":
        shipped = shipped_base(extractor.weights_hash, extractor.grid, extractor.dim, config.flow)
        if shipped is not None:
            return FirstBase(shipped, None, learned=False)
    return learn_first_base(
        material.features.patches,
        config,
        seed=seed,
        progress=lambda share: tell("base", share),
        groups=material.groups,
        copies=material.copies,
    )


def _with_base(line: Line, base: Base, extractor: Extractor, config: LineConfig) -> Line:
    """The line on this base."""
    base = base.to(extractor.device)
    told = fingerprint_of(base, extractor.describe(), to_dict(config), line.intake.settings())
    return replace(line, base=base, base_hash=told)


def sources_of(images: Any, options: LessonOptions, *more: Any) -> Sources:
    """Every image of a lesson with its source, those of `more` behind the others; see `list_sources`.

    Raises:
        ImageError: there is none.
        ConfigError: there are not as many group labels as images.
    """
    sources, groups = list_sources(images, errors=options.errors), options.groups
    for further in more:
        listed = list_sources(further, errors=options.errors)
        # What has no name has a number, which none of those before it has.
        sources += [(len(sources) + i if isinstance(s, int) else s, v) for i, (s, v) in enumerate(listed)]
    if groups is not None and len(groups) != len(sources):
        raise ConfigError(f"expected a group label for each of {len(sources)} images, got {len(groups)}")
    return sources


def _settled_pose(
    material: Material, intake: Intake, sight: Sight, config: LineConfig, *, wish: Wish, tell: Progress
) -> Pose:
    """Whether the product is aligned, and to what, by its good images: the first half of the stage."""

    def thumbnails(numbers: Sequence[int]) -> Floats:
        pictures = (intake.read(*material.sources[number]) for number in numbers)
        return np.stack([thumbnail(picture.own, picture.size) for picture in pictures])

    def seen(numbers: Sequence[int], placements: Sequence[Placement], window: np.ndarray) -> Tensor:
        chosen = [material.sources[number] for number in numbers]
        given = iter(placements)
        return _features_of(
            chosen, intake, sight, change=lambda picture: picture.aligned(next(given), window)
        ).patches

    cells = config.flow.cells or config.scoring.cells or Cells()
    looked = False

    def looking(share: float) -> None:
        nonlocal looked
        looked = True
        tell("pose", share / 2)

    pose = settle_pose(
        wish, material.features.patches, cells=cells, thumbnails=thumbnails, see=seen, progress=looking
    )
    if looked and pose.template is None:
        tell("pose", 1.0)
    return pose


def _aligned(
    material: Material, pose: Pose | None, intake: Intake, sight: Sight, *, tell: Progress
) -> Material:
    """The material with features of the aligned images, where the product is aligned."""
    if pose is None or pose.template is None:
        return replace(material, pose=pose)
    features = _features_of(
        material.sources,
        intake,
        sight,
        change=partial(_laid_as, pose),
        tell=lambda share: tell("pose", (1 + share) / 2),
    )
    routed = describe(material.features.patches)[:, None, None]  # the router meets images as they come
    return replace(material, features=features, pose=pose, routed=routed)


def _features_of(
    sources: Sources,
    intake: Intake,
    sight: Sight,
    *,
    change: Callable[[Picture], Picture],
    tell: Callable[[float], None] = lambda share: None,
) -> Features:
    """Features of images that were readable before, each changed in its turn, patches in 16 bits."""
    parts = []
    for start in range(0, len(sources), EXTRACT_BATCH):
        chunk = sources[start : start + EXTRACT_BATCH]
        pictures = [change(intake.read(source, value)) for source, value in chunk]
        parts.append(sight.see(pictures))
        tell(min(1.0, (start + len(chunk)) / len(sources)))
    return Features.of(parts)


def _laid_as(pose: Pose | None, picture: Picture) -> Picture:
    """The picture as an inspection of the product judges it."""
    return picture if pose is None else picture.aligned(pose.place(picture.own, picture.size), pose.window)


def _with_reference(
    product: Product, material: Material, config: LineConfig, *, known: Product | None
) -> Product:
    """The product with the conditions that its good images were taken under."""
    blocks = make_blocks(
        len(material.sources), config.scoring, groups=material.groups, copies=material.copies
    )
    earlier = None if known is None else known.reference
    return replace(product, reference=reference_of(material.notes, product, blocks, earlier=earlier))


def _with_changes(
    before: Line,
    after: Line,
    name: str,
    material: Material,
    remembered: Sequence[Path],
    extractor: Extractor,
) -> Line:
    """The line after an update, with what that changed in what was said of images."""
    pictures = _still_there(remembered, after.intake, extractor)
    look = partial(see_each, extractor)
    changes = changes_of(material.notes, name, before, after, remembered=pictures, see=look)
    return replace(after, changes=before.changes | {name: changes})


def _still_there(
    paths: Sequence[Path], intake: Intake, extractor: Extractor
) -> Iterator[tuple[Picture, Features]]:
    """Pictures of files, with their features."""
    for path in paths:
        with suppress(ImageError):  # moved, deleted or no image any more: nothing can be said of it
            picture = intake.read(path, path)
            yield picture, see(extractor, [picture])


def _altered(material: Material, intake: Intake, sight: Sight) -> Altered:
    """A few of the images, aligned, as decoding and the sensor alone might have made them."""
    chosen = evenly(list(range(len(material.sources))), ALTERED_IMAGES)
    taken = [_taken_again(_laid_as(material.pose, intake.read(*material.sources[i]))) for i in chosen]
    seen = [sight.see(pictures) for pictures in taken]
    originals = [i for i, pictures in zip(chosen, taken, strict=True) for _ in pictures]
    return Altered(tuple(originals), Features.of(seen))


def _taken_again(picture: Picture) -> list[Picture]:
    return [replace(picture, pixels=pixels) for pixels in sensor_floor(picture.pixels)]


def _accused_by_scores(material: Material, product: Product, *, drop_suspicious: bool) -> Material:
    """The material in the light of left-out scores: one of the good images may be a defective one."""
    calibration = product.calibration
    if not isinstance(calibration, TwoVoices):
        return material
    scores = np.full(len(material.sources), np.nan)
    first = [material.copies.index(group) for group in dict.fromkeys(material.copies)]
    scores[first] = calibration.scores_of_good()
    reviewed = review(material.photos, drop_suspicious=drop_suspicious, scores=scores)
    before, now = material.lesson, reviewed.lesson
    dropped = (*before.dropped, *now.dropped)
    earlier = [s for s in before.suspects if s.source in before.dropped]
    lesson = replace(now, suspects=(*earlier, *now.suspects), dropped=dropped)
    return material.take(reviewed.kept, lesson, reviewed.groups)


def _gather(
    before: Line,
    name: str,
    sources: Sources,
    sight: Sight,
    *,
    options: LessonOptions,
    tell: Progress,
    previous: Lesson | None,
) -> Material:
    """Looks at all images, and leaves out what cannot be read and, on demand, what is suspicious.

    Left out as well is what taught the product in the lessons before (`previous`, where it learns more). What
    is remembered of an image has it look more ordinary than the next one will, and the threshold too low.
    """
    found = _extract(before, name, sources, sight, errors=options.errors, tell=tell)
    failures, groups = found.failures, options.groups
    if groups is not None:
        groups = [label for i, label in enumerate(groups) if i not in failures]
    material = Material(
        sources=[source for i, source in enumerate(sources) if i not in failures],
        features=found.features,
        photos=found.photos,
        notes=found.notes,
        groups=groups,
        copies=(),
        lesson=Lesson(len(found.photos), len(found.photos)),
        unreadable=tuple(failure.error for failure in failures.values()),
    )
    if previous is not None:
        material = _without_known(material, previous, name)
    reviewed = review(material.photos, drop_suspicious=options.drop_suspicious)
    return material.take(reviewed.kept, reviewed.lesson, reviewed.groups)


def _without_known(material: Material, previous: Lesson, name: str) -> Material:
    """The material without photographs that taught the product before; ImageError where no other is left."""
    again = previous.taught_by(material.photos)
    if all(again):
        raise ImageError(
            f"all {len(again)} images taught {name!r} before: expected new ones, or teach it anew under "
            "another name"
        )
    told = [
        f"{material.photos[i].source}: it taught {name!r} before" for i, known in enumerate(again) if known
    ]
    kept = [i for i, known in enumerate(again) if not known]
    return replace(material.take(kept, material.lesson, ()), unreadable=(*material.unreadable, *told))


def _tell_of_taught(name: str, material: Material, lessons: Mapping[str, Lesson]) -> None:
    """Warns, before minutes are spent, where most photographs of a new product taught another one."""
    count = len(material.photos)
    for other, lesson in lessons.items():
        again = sum(lesson.taught_by(material.photos))
        if 2 * again > count:
            warnings.warn(
                f"{name!r}: {again} of {count} photographs taught {other!r} before; images of one will be "
                "taken for the other",
                stacklevel=2,
            )


def _require_enough(name: str, known: Product | None, material: Material, *, given: int) -> None:
    """CalibrationError where so few images would set a known product's threshold that it went blind.

    What is remembered of earlier images calibrates nothing, and a threshold of one or two images lies beyond
    any defect.
    """
    if known is None:
        return
    before, found = known.calibration.images, material.lesson.independent
    least = min(LEAST_NEW, before)
    if found >= least:
        return
    left_out = given - len(material.sources)
    raise CalibrationError(
        f"{name!r} has its threshold from {before} independent good images and would have it from these "
        f"alone: expected at least {least} independent ones, near-copies counting as one, got {found} among "
        f"{given} images" + (f", of which {left_out} were left out" if left_out else "") + "; nothing changed"
    )


@dataclass(frozen=True, eq=False)
class _Extracted:
    """Of all readable images what `Material` has, and by position those that are not."""

    features: Features
    photos: list[Photo]
    notes: list[Note]
    failures: dict[int, Failure]


def _extract(
    before: Line, name: str, sources: Sources, sight: Sight, *, errors: Errors, tell: Progress
) -> _Extracted:
    parts, photos, notes = [], [], []
    failures: dict[int, Failure] = {}
    done = 0
    for batch in before.intake.batches(sources, EXTRACT_BATCH, errors=errors):
        failures |= {done + i: one for i, one in enumerate(batch) if isinstance(one, Failure)}
        pictures = pictures_in(batch)
        if pictures and readable(len(failures), len(sources)):
            seen = sight.see(pictures)
            photos += [_facts(picture) for picture in pictures]
            notes += [
                note_of(before, name, picture, own, see=sight.see_each)
                for picture, own in zip(pictures, in_32_bits(seen).split(), strict=True)
            ]
            parts.append(seen)
        done += len(batch)
        tell("backbone", done / len(sources))
    check_readable(list(failures.values()), len(sources))
    return _Extracted(Features.of(parts), photos, notes, failures)


def _facts(picture: Picture) -> Photo:
    source = picture.source
    return facts_of(name_of(source), picture.own, picture.size, camera=camera_of(source))


def _with_product(
    before: Line, name: str, product: Product, *, material: Material, config: LineConfig
) -> Line:
    overrides = dict(before.overrides)
    # Scores have a new scale; and a product that is new begins with nobody's wishes.
    if name not in before.products or "threshold" in overrides.get(name, {}):
        overrides.pop(name, None)
    after = before.with_products(
        before.products.with_product(name, product),
        config.router,
        overrides=overrides,
        unreadable=before.unreadable | {name: material.unreadable},
        lessons=before.lessons | {name: material.lesson},
    )
    return replace(after, rerouted=before.rerouted | {name: rerouted_by(name, before, after)})
