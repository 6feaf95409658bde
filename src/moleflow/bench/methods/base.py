"""What every method of the bench is: two calls, on the same cached features, and a state that can be kept."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from ...config import LineConfig, with_layers
from ...features.extractor import Features
from ...learning.product import Altered
from ...packing import numbers_in
from ...routing.gaussian import DescriptorStatistics, describe
from ...routing.router import Router
from ...verdict.judgement import Decision
from ...verdict.maps import image_scores, smooth

if TYPE_CHECKING:
    from ..reuse import Memory

ReadImage = Callable[[int, tuple[int, int]], np.ndarray]


@dataclass(frozen=True, eq=False)
class Pictures:
    """Images of one product as a method meets them.

    Attributes:
        product: its name; what a method is told when it learns, and may be asked about later.
        features: (N, h, w, D) float16 of the frozen backbone on the run's device; memory-mapped where that is
            the processor: take what is needed at a time.
        pooled: (N, E), each picture as a whole; (N, 0) where nobody computed it.
        altered: a few of them as decoding and the sensor alone might have changed them.
        read: image i at a size (h, w), uint8 (h, w, 3) RGB; for methods that need pixels.
        file_bytes: of the images' files; None where they come from none.
        key: what names just these images in a run; empty for images chosen on the way.
    """

    product: str
    features: Tensor
    read: ReadImage = field(repr=False)
    file_bytes: tuple[int, ...] | None = field(default=None, repr=False)
    pooled: Tensor = field(default_factory=lambda: torch.empty(0, 0), repr=False)
    altered: Altered | None = field(default=None, repr=False)
    key: str = ""

    def __post_init__(self) -> None:
        if not len(self.pooled):
            object.__setattr__(self, "pooled", torch.empty(len(self.features), 0))

    @property
    def seen(self) -> Features:
        """Both kinds of features."""
        return Features(self.features, self.pooled)

    def seen_of(self, image: int) -> Features:
        """Both kinds of features of one image, float32."""
        one = slice(image, image + 1)
        return Features(self.features[one].float(), self.pooled[one])

    def __len__(self) -> int:
        return len(self.features)

    @cached_property
    def descriptors(self) -> Tensor:
        """The router's view of every image, (N, D) float64."""
        parts = [describe(part.float()) for part in self.features.split(32)]
        return torch.cat(parts) if parts else torch.empty(0, self.features.shape[-1], dtype=torch.float64)

    def take(self, images: Sequence[int], *, product: str | None = None) -> Pictures:
        """The pictures at these positions, perhaps under another name."""
        chosen, read = list(images), self.read
        file_bytes = None if self.file_bytes is None else tuple(self.file_bytes[i] for i in chosen)
        return Pictures(
            product or self.product,
            self.features[chosen],
            lambda i, size: read(chosen[i], size),
            file_bytes,
            self.pooled[chosen],
        )


@dataclass(frozen=True, eq=False)
class Inspection:
    """What a method says about one image.

    Attributes:
        task: the product the image was judged as; None where the method knows no products.
        known: False when it looks like no product; None where the method cannot say.
        score: image score, higher is more anomalous.
        patch_map: scores of the patches (h, w) float32; None where the method gives an image score only.
        threshold: score from which the method calls an image defective; None where it has none.
    """

    task: str | None
    known: bool | None
    score: float
    patch_map: np.ndarray | None
    threshold: float | None = None

    @property
    def alarm(self) -> bool | None:
        """Whether the method calls the image defective; None where it has no threshold."""
        return None if self.threshold is None else self.score > self.threshold


@dataclass(frozen=True)
class Setting:
    """What all methods of a run share.

    Attributes:
        grid, channels: of the cached features.
        image_size: (h, w) in pixels of the images they were taken from.
        seed: fixes everything random.
        config: the flow, its training, scoring and routing; rivals take from it what they have in common.
        backbone: name of the backbone, for methods that need one of their own kind.
        weights: local weights of it, "random", or None.
        weights_hash: of the features' backbone, by which a base that comes with the library is found.
        widths: of `channels`, those of each layer side by side; all as of one layer where it is empty.
        device: where pictures lie, and where methods learn and score. States are always on the processor,
            and so are the router's statistics and what is drawn at random.
    """

    grid: tuple[int, int]
    channels: int
    image_size: tuple[int, int]
    seed: int = 0
    config: LineConfig = field(default_factory=LineConfig)
    backbone: str = "efficientnet_lite0"
    weights: str | None = None
    weights_hash: str = ""
    widths: tuple[int, ...] = ()
    device: torch.device | str = "cpu"

    def __post_init__(self) -> None:
        # As a line does when it begins.
        object.__setattr__(self, "config", with_layers(self.config, self.widths or (self.channels,)))


@dataclass(frozen=True, eq=False)
class State:
    """All a method has learned: what it would have to keep on disk, and so what it costs.

    Names of tensors are "shared/..." or "<product>/...".
    """

    tensors: dict[str, Tensor]
    notes: dict[str, Any] = field(default_factory=dict)  # plain JSON

    def bytes_of(self, owner: str | None = None) -> int:
        """Bytes of all tensors and of what products note of themselves, such as scores that calibrate.

        Of one owner ("shared" or a product) those of the tensors alone.
        """
        # Seconds are no two times the same, and say nothing of an image.
        notes = [
            {key: value for key, value in own.items() if key != "seconds"}
            for own in (_noted(self.notes) if owner is None else ())
        ]
        return len(json.dumps(notes)) * bool(notes) + sum(t.nbytes for t in self._of(owner).values())

    def numbers_of(self, owner: str | None = None) -> int:
        """How many numbers the tensors hold."""
        return sum(numbers_in(name, t) for name, t in self._of(owner).items())

    def named(self, prefix: str) -> dict[str, Tensor]:
        """The tensors whose names begin so, without it."""
        return {k.removeprefix(prefix): v for k, v in self.tensors.items() if k.startswith(prefix)}

    def of(self, product: str) -> State:
        """What of a `PerProduct` method's state belongs to one product."""
        tensors = {name: tensor for name, tensor in self.tensors.items() if name.startswith(f"{product}/")}
        return State(tensors, {"products": {product: self.notes["products"][product]}})

    def _of(self, owner: str | None) -> dict[str, Tensor]:
        return {n: t for n, t in self.tensors.items() if owner is None or n.startswith(f"{owner}/")}


def _noted(notes: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What products note of themselves, and what they note with a method inside."""
    products = notes.get("products")
    own = list(products.values()) if isinstance(products, dict) else []
    return own + _noted(notes["inner"]) if "inner" in notes else own


class Method(ABC):
    """A way to learn products one after another and to inspect images of any of them.

    Attributes:
        name: as on the command line.
        title: as in tables.
        source: the paper it comes from.
        routes: whether it chooses a product for every image.
        localises: whether it gives maps.
        keeps_images: whether it learns from the images of earlier tasks again.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    source: ClassVar[str]
    routes: ClassVar[bool] = False
    localises: ClassVar[bool] = True
    keeps_images: ClassVar[bool] = False

    def __init__(self, setting: Setting) -> None:
        self.setting = setting
        self.remembered: Memory | None = None  # of a run, where there is one

    @property
    def notes(self) -> tuple[str, ...]:
        """What a report has to say beside the figures: how this run departs from the paper."""
        return ()

    @abstractmethod
    def learn(self, products: Sequence[Pictures]) -> None:
        """Learns one task: good images of one product, or of several."""

    def remember(self, memory: Memory) -> None:
        """From now on takes from a run's memory what was found before."""
        self.remembered = memory

    def remind(self, pictures: Sequence[Pictures]) -> None:  # noqa: B027  # most have nothing to do
        """Hands back the images of all earlier tasks after a `restore`, to a method that `keeps_images`."""

    @abstractmethod
    def inspect(self, pictures: Pictures, task: str | None = None) -> Iterator[Inspection]:
        """One result per picture, in order; `task` names the product where it is given away.

        What is said of an image must not depend on the images beside it.
        """

    @abstractmethod
    def state(self) -> State:
        """Everything learned so far."""

    @abstractmethod
    def restore(self, state: State) -> None:
        """Takes up a state, to the bit, in a method made with the same setting."""


class PerProduct(Method):
    """A method with one part for every product, behind the line's own router.

    Subclasses learn and score one product; names, routing and keeping are done here.

    Attributes:
        rejects: whether it can call an image unknown.
    """

    routes = True
    rejects: ClassVar[bool] = True

    def __init__(self, setting: Setting) -> None:
        super().__init__(setting)
        self.parts: dict[str, Any] = {}
        self.statistics: dict[str, DescriptorStatistics] = {}
        self._router: Router | None = None

    @abstractmethod
    def learn_part(self, pictures: Pictures) -> Any:
        """What is learned of one product; it may not depend on other products."""

    @abstractmethod
    def inspect_part(self, part: Any, seen: Features) -> Inspection:
        """One image's features float32 judged as this product; `task` is filled in later."""

    @abstractmethod
    def part_state(self, part: Any) -> State:
        """A part's tensors and notes, names without an owner; names with "router." are the router's."""

    @abstractmethod
    def part_from(self, state: State) -> Any:
        """The inverse of `part_state`."""

    def learn(self, products: Sequence[Pictures]) -> None:
        """Learns every product of the task by itself, or takes from memory what follows from it alone."""
        for pictures in products:
            if self.remembered is None or not pictures.key or self._tied:
                self._learn_product(pictures)
            else:
                part = self.remembered.part(self, pictures, partial(self._learned_product, pictures))
                self._restore_products(part)
        self._router = None

    @property
    def _tied(self) -> bool:
        """Whether parts may depend on each other: so with a method that learns or keeps more than parts."""
        return (type(self).learn, type(self).state) != (PerProduct.learn, PerProduct.state)

    def _learn_product(self, pictures: Pictures) -> None:
        self.parts[pictures.product] = self.learn_part(pictures)
        statistics = self.describe_product(pictures)
        if statistics is not None:
            self.statistics[pictures.product] = statistics

    def _learned_product(self, pictures: Pictures) -> State:
        self._learn_product(pictures)
        return self.state().of(pictures.product)

    def describe_product(self, pictures: Pictures) -> DescriptorStatistics | None:
        """The router's statistics, from the same split as the line's; None where the method needs none."""
        learn, folds, _ = split(len(pictures), self.setting.config, self.setting.seed)
        held = [i for fold in folds for i in fold]
        return DescriptorStatistics.fit(
            pictures.descriptors[learn], pictures.descriptors[held], rank=self.setting.config.router.rank
        )

    @property
    def router(self) -> Router:
        """Over the products learned so far."""
        if self._router is None:
            self._router = Router(self.statistics, self.setting.config.router)
        return self._router

    def decide(self, pictures: Pictures, image: int) -> Decision:
        """Which product one image shows."""
        return self.router.decide(pictures.descriptors[image : image + 1])[0]

    @torch.no_grad()
    def inspect(self, pictures: Pictures, task: str | None = None) -> Iterator[Inspection]:
        """Routes where the product is not given, then asks the product's part."""
        for i in range(len(pictures)):
            decision = self.decide(pictures, i) if task is None else None
            chosen = task or decision.task  # type: ignore[union-attr]
            found = self._asked(chosen, pictures, i)
            known = None if decision is None else self.is_known(decision, found)
            yield Inspection(chosen, known, found.score, found.patch_map, found.threshold)

    def _asked(self, product: str, pictures: Pictures, image: int) -> Inspection:
        """What the product's part says of an image; taken from memory where it was said before."""
        if self.remembered is not None and pictures.key:
            return self.remembered.said(self, product, pictures, image)
        return self.inspect_part(self.parts[product], pictures.seen_of(image))

    def common(self) -> State:
        """What all parts share and a part's own state leaves out; both decide what is said of an image."""
        own = self.state()
        return State({name: t for name, t in own.tensors.items() if name.startswith("shared/")})

    def is_known(self, decision: Decision, found: Inspection) -> bool | None:
        """Whether the image looks like the product it was sent to; None where the method cannot say."""
        return decision.distance <= self.router.limits[decision.task]

    def recognised(self, pictures: Pictures) -> Iterator[bool]:
        """Whether each picture looks like any product at all: what `inspect` calls known.

        Where the router alone decides, no part is asked.
        """
        if type(self).is_known is PerProduct.is_known:
            for decision in self.router.decide(pictures.descriptors):
                yield decision.distance <= self.router.limits[decision.task]
        else:
            yield from (bool(found.known) for found in self.inspect(pictures))

    def state(self) -> State:
        """All parts and the router's statistics."""
        tensors: dict[str, Tensor] = {}
        notes: dict[str, Any] = {}
        for name, part in self.parts.items():
            own = self.part_state(part)
            tensors |= {f"{name}/{key}": value for key, value in own.tensors.items()}
            if name in self.statistics:
                tensors |= {f"{name}/router.{k}": v for k, v in self.statistics[name].tensors().items()}
            notes[name] = own.notes
        return State(tensors, {"products": notes})

    def restore(self, state: State) -> None:
        """Takes the parts apart again."""
        self.parts, self.statistics, self._router = {}, {}, None
        self._restore_products(state)

    def _restore_products(self, state: State) -> None:
        for name, notes in state.notes["products"].items():
            own = {k[len(name) + 1 :]: v for k, v in state.tensors.items() if k.startswith(f"{name}/")}
            router = {k.removeprefix("router."): v for k, v in own.items() if k.startswith("router.")}
            self.parts[name] = self.part_from(State(own, notes))
            if router:
                self.statistics[name] = DescriptorStatistics.from_tensors(router)

    def without(self, product: str) -> PerProduct:
        """The same method as if this product had never been taught; shared parts stay."""
        other = type(self)(self.setting)
        other.__dict__.update(self.__dict__)
        other.parts = {k: v for k, v in self.parts.items() if k != product}
        other.statistics = {k: v for k, v in self.statistics.items() if k != product}
        other._router = None
        return other


class OwnRouter(PerProduct):
    """A method that finds an image's product by a rule of its own, and calls no image unknown."""

    rejects = False

    @abstractmethod
    def distance(self, part: Any, pictures: Pictures, image: int) -> float:
        """How far one image lies from a product; the nearest is meant."""

    def describe_product(self, pictures: Pictures) -> None:
        """The line's router has no part in it."""

    def decide(self, pictures: Pictures, image: int) -> Decision:
        """The nearest product; of several as near, the one learned first."""
        distances = {name: self.distance(part, pictures, image) for name, part in self.parts.items()}
        first, *rest = sorted(distances, key=lambda name: distances[name])
        least = distances[first]
        margin = distances[rest[0]] / max(least, 1e-12) if rest else float("inf")
        return Decision(first, least, margin, distances)

    def is_known(self, decision: Decision, found: Inspection) -> bool | None:
        """None: its rule says which product is nearest and not whether it is near."""
        return None


def judged(maps: Tensor, setting: Setting) -> tuple[float, np.ndarray]:
    """Image score and map of raw patch scores (1, h, w), smoothed and pooled as the line does it."""
    scoring = setting.config.scoring
    smoothed = smooth(maps, scoring.smoothing)
    return float(image_scores(smoothed, scoring)[0]), smoothed[0].cpu().numpy()


def split(count: int, config: LineConfig, seed: int) -> tuple[list[int], list[list[int]], str]:
    """Images to learn from, the groups that calibrate, and how: for the bench's rivals that hold out.

    With enough images a share of them is held out. With few, every image calibrates in turn: for each fold
    a density is learned from the others.
    """
    scoring = config.scoring
    order = np.random.default_rng(seed).permutation(count).tolist()
    if count == 1:
        return order, [order], "in-sample"
    if count < scoring.cross_fit_below:
        folds = min(scoring.folds, count)
        return sorted(order), [sorted(order[i::folds]) for i in range(folds)], "cross-fitted"
    held = min(max(scoring.holdout_least, round(scoring.holdout * count)), count // 2)
    return sorted(order[held:]), [sorted(order[:held])], "held-out"
