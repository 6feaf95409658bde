"""Gaussians over whole pictures: of all stages' pooled features, and of the descriptors that nobody trained.

The simplest rivals there are. Where a method that learns falls behind them, learning has cost something.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ...config import Whole, check
from ...densities.whole import WholeGaussian
from ...errors import ConfigError, TaskError, TrainingError
from ...features.extractor import Features
from ...routing.gaussian import describe, ledoit_wolf
from .base import Inspection, Method, PerProduct, Pictures, Setting, State

RIDGE = 1e-4  # added to a covariance, as a share of its average variance


@dataclass(frozen=True)
class ImageOptions:
    """Options of the Gaussian over whole pictures.

    Attributes:
        rank: directions of the covariance that are kept; None for all that the images span.
    """

    rank: int | None = None

    def __post_init__(self) -> None:
        check(self, positive=("rank",))


COMMON = ImageOptions()


class ImageGaussian(PerProduct):
    """A Gaussian per product over the pooled means of all stages (Rippel et al. 2020); no map.

    The score is the Mahalanobis distance, the covariance Ledoit and Wolf's (2004). What differs from the
    paper: channels are standardised before the covariance is shrunk, all stages make one Gaussian where the
    paper adds one distance a stage, and the network is the bench's. Without a limit on the rank this is the
    full estimate; the line keeps its `scoring.whole` of fewer directions.
    """

    name = "image-gaussian"
    title = "image-level Gaussian"
    source = "Rippel et al., Modeling the Distribution of Normal Data in Pre-Trained Deep Features, ICPR 2020"
    localises = False

    def __init__(self, setting: Setting, options: ImageOptions = COMMON) -> None:
        super().__init__(setting)
        self.options = options

    @property
    def notes(self) -> tuple[str, ...]:
        """How this run departs from the paper."""
        return ("one Gaussian over all stages, standardised by channel", "image score only")

    def learn_part(self, pictures: Pictures) -> WholeGaussian:
        """The Gaussian, in closed form.

        Raises:
            ConfigError: nobody computed pooled features.
            TrainingError: no images, or features that are no numbers.
        """
        return fit_whole(pictures, self.options)

    def inspect_part(self, part: WholeGaussian, seen: Features) -> Inspection:
        """The distance of one picture."""
        return Inspection(task=None, known=None, score=float(part(seen.pooled)[0]), patch_map=None)

    def part_state(self, part: WholeGaussian) -> State:
        """Mean, spreads, directions and their variances."""
        return State(part.tensors())

    def part_from(self, state: State) -> WholeGaussian:
        """The inverse of `part_state`."""
        return WholeGaussian.from_tensors(state.tensors)


def fit_whole(pictures: Pictures, options: ImageOptions) -> WholeGaussian:
    """The Gaussian over whole pictures of one product; errors as of `ImageGaussian.learn_part`."""
    if not len(pictures):
        raise TrainingError(f"expected good images of {pictures.product!r} to learn from, got none")
    count, numbers = pictures.pooled.shape
    if not numbers:
        raise ConfigError(f"expected pooled features of {pictures.product!r}, nobody computed any")
    if not torch.isfinite(pictures.pooled).all():
        raise TrainingError(f"expected finite features of {pictures.product!r}, but some are not")
    return WholeGaussian.fit(pictures.pooled, Whole(rank=options.rank or max(count, numbers), bits=16))


@dataclass(frozen=True, eq=False)
class Gaussian:
    """Descriptors of one product, or of several: mean (D,), covariance (D, D) float64, how many images."""

    mean: Tensor
    covariance: Tensor
    images: int

    @classmethod
    def fit(cls, pictures: Pictures) -> Gaussian:
        """From the descriptors of good images; kept in 32 bits.

        Raises TrainingError for no images, or features that are no numbers.
        """
        rows = pictures.descriptors
        if not len(rows) or not torch.isfinite(rows).all():
            raise TrainingError(f"expected good images of {pictures.product!r} with finite features")
        mean = rows.mean(0)
        covariance = ledoit_wolf(rows - mean)
        ridge = max(RIDGE * float(covariance.diagonal().mean()), 1e-12)
        covariance = covariance + ridge * torch.eye(len(mean), dtype=rows.dtype)
        return cls(mean.float().double(), covariance.float().double(), len(rows))

    @classmethod
    def merged(cls, parts: Sequence[Gaussian]) -> Gaussian:
        """Moments of the mixture of several, each as heavy as it has images."""
        images = sum(part.images for part in parts)
        shares = [part.images / images for part in parts]
        mean = torch.stack([share * part.mean for share, part in zip(shares, parts, strict=True)]).sum(0)
        covariance = torch.zeros_like(parts[0].covariance)
        for share, part in zip(shares, parts, strict=True):
            covariance += share * (part.covariance + torch.outer(part.mean - mean, part.mean - mean))
        return cls(mean, covariance, images)

    def root(self) -> Tensor:
        """Lower Cholesky factor of the covariance."""
        return torch.linalg.cholesky(self.covariance)

    def state(self) -> State:
        """Both moments in 32 bits."""
        moments = {"mean": self.mean.float(), "covariance": self.covariance.float()}
        return State(moments, {"images": self.images})

    @classmethod
    def from_state(cls, state: State) -> Gaussian:
        """The inverse of `state`."""
        mean, covariance = state.tensors["mean"].double(), state.tensors["covariance"].double()
        return cls(mean, covariance, state.notes["images"])


def mahalanobis(root: Tensor, centred: Tensor) -> float:
    """Distance of one centred descriptor (D,) in the metric of a Cholesky factor (D, D)."""
    return float(torch.linalg.solve_triangular(root, centred[:, None], upper=False).norm())


@dataclass(frozen=True, eq=False)
class _Rooted:
    gaussian: Gaussian
    root: Tensor

    @classmethod
    def of(cls, gaussian: Gaussian) -> _Rooted:
        return cls(gaussian, gaussian.root())

    def distance(self, descriptor: Tensor) -> float:
        return mahalanobis(self.root, descriptor - self.gaussian.mean)


class DescriptorGaussian(PerProduct):
    """A Gaussian per product over untrained descriptors: the spatial mean of the patch features; no map."""

    name = "descriptor-gaussian"
    title = "descriptor Gaussian per product"
    source = "DNE's density (Li et al. 2022) without DNE's training, one per product behind our router"
    localises = False

    def learn_part(self, pictures: Pictures) -> _Rooted:
        """Both moments; errors as of `Gaussian.fit`."""
        return _Rooted.of(Gaussian.fit(pictures))

    def inspect_part(self, part: _Rooted, seen: Features) -> Inspection:
        """The Mahalanobis distance of one picture."""
        score = part.distance(describe(seen.patches)[0])
        return Inspection(task=None, known=None, score=score, patch_map=None)

    def part_state(self, part: _Rooted) -> State:
        """Both moments."""
        return part.gaussian.state()

    def part_from(self, state: State) -> _Rooted:
        """The inverse of `part_state`."""
        return _Rooted.of(Gaussian.from_state(state))


class SharedGaussian(Method):
    """One Gaussian over the untrained descriptors of all products: what DNE comes to without training.

    Moments add up exactly, so the order of products makes no difference but for rounding, and what is
    forgotten is what one Gaussian cannot hold.
    """

    name = "descriptor-gaussian-shared"
    title = "descriptor Gaussian, shared"
    source = "DNE's density (Li et al. 2022) without DNE's training"
    localises = False

    def __init__(self, setting: Setting) -> None:
        super().__init__(setting)
        self.merged: _Rooted | None = None

    def learn(self, products: Sequence[Pictures]) -> None:
        """Adds the moments of every product; errors as of `Gaussian.fit`."""
        known = [] if self.merged is None else [self.merged.gaussian]
        merged = Gaussian.merged([*known, *(Gaussian.fit(pictures) for pictures in products)])
        # As it comes back from a state: what is saved between two products learns on to the same bit.
        self.merged = _Rooted.of(Gaussian.from_state(merged.state()))

    def inspect(self, pictures: Pictures, task: str | None = None) -> Iterator[Inspection]:
        """A score per picture; the product makes no difference, given or not.

        Raises:
            TaskError: nothing was learned yet.
        """
        if self.merged is None:
            raise TaskError(f"{self.name}: expected at least one task to be learned first, got none")
        for descriptor in pictures.descriptors:
            yield Inspection(None, None, self.merged.distance(descriptor), None)

    def state(self) -> State:
        """Both moments."""
        if self.merged is None:
            return State({})
        own = self.merged.gaussian.state()
        return State({f"shared/{name}": tensor for name, tensor in own.tensors.items()}, own.notes)

    def restore(self, state: State) -> None:
        """The inverse of `state`."""
        moments = {name.removeprefix("shared/"): tensor for name, tensor in state.tensors.items()}
        self.merged = _Rooted.of(Gaussian.from_state(State(moments, state.notes))) if moments else None
