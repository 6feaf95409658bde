"""Every patch method with the image-level Gaussian beside it: the larger of the two speaks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

import torch

from ...densities.whole import WholeGaussian
from ...verdict.calibration import Voice
from .base import Inspection, Method, PerProduct, Pictures, Setting, State, split
from .gaussians import COMMON, fit_whole

if TYPE_CHECKING:
    from ..reuse import Memory


@dataclass(frozen=True, eq=False)
class _Beside:
    """The Gaussian of a product, and what good images that neither side saw score with each."""

    whole: WholeGaussian
    patches: Voice
    image: Voice

    def state(self) -> State:
        notes = {"patches": list(self.patches.scores), "image": list(self.image.scores)}
        return State(self.whole.tensors(), notes)

    @classmethod
    def read(cls, state: State) -> _Beside:
        voices = (Voice(tuple(state.notes[side])) for side in ("patches", "image"))
        return cls(WholeGaussian.from_tensors(state.tensors), *voices)


class WithImage(Method):
    """A patch method and a Gaussian over whole pictures; the larger score counts, in good images' units.

    Units come from the images that the bench's rivals hold out, judged by both sides without having seen
    them; both then learn from all images, so the map and everything else is the patch method's own.
    """

    kind: ClassVar[type[PerProduct]]
    routes = True

    def __init__(self, setting: Setting, **options: Any) -> None:
        super().__init__(setting)
        self.inner = self.kind(setting, **options)
        self.beside: dict[str, _Beside] = {}

    @property
    def notes(self) -> tuple[str, ...]:
        """The patch method's, and how the two are joined."""
        return (
            *self.inner.notes,
            "the larger of its score and the image level's, in good images' units",
        )

    def remember(self, memory: Memory) -> None:
        """The patch method has it too: what it learns and says by itself is not found again."""
        super().remember(memory)
        self.inner.remember(memory)

    def learn(self, products: Sequence[Pictures]) -> None:
        """Both sides of every product; errors as of the patch method and of `ImageGaussian`."""
        beside = {pictures.product: self._taught_beside(pictures) for pictures in products}
        self.inner.learn(products)
        self.beside |= beside

    @torch.no_grad()
    def inspect(self, pictures: Pictures, task: str | None = None) -> Iterator[Inspection]:
        """What the patch method says, with the fused score and no threshold."""
        for i, found in enumerate(self.inner.inspect(pictures, task)):
            assert found.task is not None
            part = self.beside[found.task]
            whole = float(part.whole(pictures.pooled[i : i + 1])[0])
            score = max(part.patches.units(found.score), part.image.units(whole))
            yield replace(found, score=score, threshold=None)

    def state(self) -> State:
        """The patch method's, and every Gaussian."""
        own = self.inner.state()
        tensors, notes = dict(own.tensors), {}
        for name, part in self.beside.items():
            beside = part.state()
            tensors |= {f"{name}/image.{key}": value for key, value in beside.tensors.items()}
            notes[name] = beside.notes
        return State(tensors, {"inner": own.notes, "products": notes})

    def restore(self, state: State) -> None:
        """The inverse of `state`."""
        self.beside = {}
        inner = {k: v for k, v in state.tensors.items() if "/image." not in k}
        self.inner.restore(State(inner, state.notes["inner"]))
        for name, notes in state.notes["products"].items():
            prefix = f"{name}/image."
            own = {k.removeprefix(prefix): v for k, v in state.tensors.items() if k.startswith(prefix)}
            self.beside[name] = _Beside.read(State(own, notes))

    def _taught_beside(self, pictures: Pictures) -> _Beside:
        """As learned, or from a run's memory."""
        if self.remembered is None or not pictures.key:
            return self._learn_beside(pictures)
        kept = self.remembered.part(self, pictures, lambda: self._learn_beside(pictures).state())
        return _Beside.read(kept)

    @torch.no_grad()
    def _learn_beside(self, pictures: Pictures) -> _Beside:
        """The Gaussian of all images, and both sides' scores of held-out ones."""
        learn, folds, kind = split(len(pictures), self.setting.config, self.setting.seed)
        patches, image = [], []
        for fold in folds:
            rest = pictures.take(learn if kind != "cross-fitted" else sorted(set(learn) - set(fold)))
            part, whole = self.inner.learn_part(rest), fit_whole(rest, COMMON)
            patches += [self.inner.inspect_part(part, pictures.seen_of(i)).score for i in fold]
            image += whole(pictures.pooled[fold]).tolist()
        return _Beside(fit_whole(pictures, COMMON), Voice(tuple(patches)), Voice(tuple(image)))


def with_image(method: type[PerProduct]) -> type[WithImage]:
    """A patch method with the image-level Gaussian beside it, as a method of its own."""
    return type(
        f"{method.__name__}WithImage",
        (WithImage,),
        {
            "__doc__": f"{method.title} with the image-level Gaussian beside it.",
            "kind": method,
            "name": f"{method.name}-with-image",
            "title": f"{method.title}, with image level",
            "source": f"{method.source}; Rippel et al. 2020",
            "localises": method.localises,
        },
    )
