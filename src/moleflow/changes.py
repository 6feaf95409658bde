"""While a product is learned: facts of its images, and what an update changes in what was said of images."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace

from torch import Tensor

from .inspection import inspect
from .intake import Picture
from .line import Line
from .monitor import verdict_of
from .results import Prediction
from .verdict.changes import Changes, Flip
from .verdict.drift import LEAST_TAUGHT, Facts, Reference, facts_of
from .verdict.watch import GOOD


@dataclass
class Looks:
    """Notes taken of the images of a lesson, one after the other, while their features are at hand.

    Attributes:
        before: the line before the lesson.
        name: the product that is taught.
        facts: of every image.
        swallowed: images that the line so far does not call good, where it knows the product.
    """

    before: Line
    name: str
    facts: list[Facts] = field(default_factory=list)
    swallowed: list[Flip] = field(default_factory=list)

    def add(self, picture: Picture, features: Tensor) -> None:
        """One picture with its features (1, h, w, D)."""
        self.facts.append(facts_of(picture.pixels, clipped=picture.clipped, size=picture.size))
        if self.name in self.before.products:
            said = in_words(inspect(self.before, picture, features), self.name)
            if said != GOOD:
                self.swallowed.append(Flip(str(picture.source), said, GOOD))

    def reference(self, places: dict[int, float]) -> Reference:
        """Conditions the images were taken under; `places` by position, of those that calibrated.

        Too few images to judge by leave an earlier reference of the product in place.
        """
        known = self.before.products.get(self.name)
        if known is not None and known.reference is not None and len(self.facts) < LEAST_TAUGHT:
            return known.reference
        return Reference.fit([replace(fact, place=places.get(i)) for i, fact in enumerate(self.facts)])

    def changes(self, after: Line, remembered: Iterator[tuple[Picture, Tensor]]) -> Changes:
        """What is said anew, also of remembered pictures with their features (1, h, w, D)."""
        checked, flipped = 0, []
        for picture, features in remembered:
            said = [in_words(inspect(line, picture, features), self.name) for line in (self.before, after)]
            checked += 1
            if said[0] != said[1]:
                flipped.append(Flip(str(picture.source), *said))
        return Changes(len(self.facts), tuple(self.swallowed), checked, tuple(flipped))


def in_words(prediction: Prediction, name: str) -> str:
    """A verdict on an image of the product `name`."""
    said = verdict_of(prediction)
    return said if prediction.task == name or not prediction.known else f"taken for {prediction.task}"
