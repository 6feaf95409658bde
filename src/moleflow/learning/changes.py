"""While a product is learned: facts of its images, and what an update changes in what was said of images."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

from ..features.extractor import Features
from ..inspection import inspect
from ..intake import Picture
from ..line.product import Product
from ..line.record import Line
from ..results import Prediction
from ..verdict.calibration import TwoVoices
from ..verdict.changes import Changes, Flip
from ..verdict.drift import LEAST_TAUGHT, Facts, Reference, facts_of
from ..verdict.watch import GOOD
from .blocks import Blocks

See = Callable[[Sequence[Picture]], Sequence[Features]]


@dataclass(frozen=True)
class Note:
    """Taken of an image of a lesson, while its features are at hand.

    Attributes:
        source: its path or position.
        facts: under which conditions it was taken.
        said: of it by the line before the lesson; None where that does not know the product.
    """

    source: str
    facts: Facts
    said: str | None


def note_of(before: Line, name: str, picture: Picture, features: Features, *, see: See) -> Note:
    """Of one picture of the product `name`, with its features; `see` as for `inspect`."""
    said = None
    if name in before.products:
        said = in_words(inspect(before, picture, features, see=see), name)
    facts = facts_of(picture.own, clipped=picture.clipped, size=picture.size)
    return Note(str(picture.source), facts, said)


def reference_of(
    notes: Sequence[Note], product: Product, blocks: Blocks, *, earlier: Reference | None
) -> Reference:
    """Conditions a product's good images were taken under, one of each group of near-copies.

    What places and the whole look like is what densities without an image's block say of it, in the units in
    which an inspection tells them. Too few images to judge by leave an earlier reference in place.
    """
    if earlier is not None and len(blocks.first) < LEAST_TAUGHT:
        return earlier
    calibration = product.calibration
    assert isinstance(calibration, TwoVoices)
    facts = [
        replace(notes[image].facts, place=place)
        for image, place in zip(blocks.first, product.familiarity.values, strict=True)
    ]
    if calibration.whole is not None:
        units = [calibration.whole.units(raw) for raw in calibration.whole.scores]
        facts = [replace(fact, whole=whole) for fact, whole in zip(facts, units, strict=True)]
    return Reference.fit(facts, blocks.sessions)


def changes_of(
    notes: Sequence[Note],
    name: str,
    before: Line,
    after: Line,
    *,
    remembered: Iterable[tuple[Picture, Features]],
    see: See,
) -> Changes:
    """What an update makes good of its images, and says anew of remembered pictures with their features."""
    swallowed = tuple(
        Flip(note.source, note.said, GOOD) for note in notes if note.said is not None and note.said != GOOD
    )
    checked, flipped = 0, []
    for picture, features in remembered:
        said = [in_words(inspect(line, picture, features, see=see), name) for line in (before, after)]
        checked += 1
        if said[0] != said[1]:
            flipped.append(Flip(str(picture.source), *said))
    return Changes(len(notes), swallowed, checked, tuple(flipped))


def in_words(prediction: Prediction, name: str) -> str:
    """A verdict on an image of the product `name`."""
    if prediction.task == name or not prediction.known:
        return prediction.status
    return f"taken for {prediction.task}"
