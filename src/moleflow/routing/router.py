"""Which product an image shows: the nearest mean in a metric that fits all products at once."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from ..config import RouterConfig
from ..verdict.calibration import upper_limit
from ..verdict.judgement import Decision, nearest
from .gaussian import DescriptorStatistics

LEAST_TYPICAL = 0.1  # a good image is on average 1 away in its own metric; near 0 means too few images
MOST_LOG = 50.0  # beyond this a limit from a handful of images is no limit


class Router:
    """Mahalanobis distance to every product's mean; the nearest is meant.

    The shared metric is the inverse of the average within-product covariance (linear discriminant
    analysis, Fisher 1936). Products enter the average with equal weight and in the order of their
    names, so the metric is the same to the bit whatever the order of learning. With
    `metric="product"` every product is judged by its own covariance and its log-determinant, the
    form of the original method, for comparison.

    Args:
        products: statistics by name; at least one.
        config: which metric.
    """

    def __init__(self, products: Mapping[str, DescriptorStatistics], config: RouterConfig) -> None:
        self.config: RouterConfig = config
        self.names: list[str] = sorted(products)
        self._whiten, self._log_dets = _metrics([products[name] for name in self.names], config)
        self._means = torch.stack(
            [_apply(w, products[name].mean) for w, name in zip(self._whiten, self.names, strict=True)]
        )
        own = {name: self._own_distances(name, products[name]) for name in self.names}
        self.typical = {name: max(float(d.median()), LEAST_TYPICAL) for name, d in own.items()}
        self.limits = {name: self._limit(d / self.typical[name]) for name, d in own.items()}

    def tensors(self) -> dict[str, Tensor]:
        """All that it computed from its products; see `from_tensors`."""
        told = {"typical": self.typical, "limits": self.limits}
        values = {
            key: torch.tensor([own[n] for n in self.names], dtype=torch.float64) for key, own in told.items()
        }
        return self.arrays() | values

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor], names: list[str], config: RouterConfig) -> Router:
        """The router that `tensors` are of, to the bit, without its products; `names` sorted."""
        router = cls.__new__(cls)
        router.config, router.names = config, names
        own = list(tensors["whiten"])
        router._whiten = own * len(names) if config.metric == "shared" else own
        router._means, router._log_dets = tensors["means"], tensors["log_dets"]
        router.typical = dict(zip(names, tensors["typical"].tolist(), strict=True))
        router.limits = dict(zip(names, tensors["limits"].tolist(), strict=True))
        return router

    def arrays(self) -> dict[str, Tensor]:
        """What `distances` is computed from: whitening matrices, whitened means, log-determinants, float64.

        Of the shared metric one matrix (1, D, D), else one for each product (T, D, D).
        """
        own = self._whiten[:1] if self.config.metric == "shared" else self._whiten
        return {"whiten": torch.stack(own), "means": self._means, "log_dets": self._log_dets}

    def decide(self, descriptors: Tensor) -> list[Decision]:
        """One decision per row of descriptors (B, D)."""
        distances = self.distances(descriptors)
        order = self._cost(distances).argsort(dim=1, stable=True)
        return [
            nearest(self.names, row, rank, self.typical)
            for row, rank in zip(distances.tolist(), order.tolist(), strict=True)
        ]

    def nearest(self, descriptors: Tensor) -> list[str]:
        """The product that each row of descriptors (B, D) is taken for; faster than `decide` for many."""
        if self.config.metric == "shared":
            rows = _apply(self._whiten[0], descriptors)
            best = (self._means.square().sum(1) - 2 * rows @ self._means.T).argmin(1)
        else:
            best = self._cost(self.distances(descriptors)).argmin(1)
        return [self.names[position] for position in best.tolist()]

    def distances(self, descriptors: Tensor) -> Tensor:
        """Mahalanobis distance per channel, (B, T), columns in the order of `names`."""
        if self.config.metric == "shared":
            rows = _apply(self._whiten[0], descriptors)
            gaps = (rows[:, None] - self._means).square().sum(-1)
        else:
            whitened = torch.stack([_apply(w, descriptors) for w in self._whiten], dim=1)
            gaps = (whitened - self._means).square().sum(-1)
        return (gaps / descriptors.shape[1]).sqrt()

    def _cost(self, distances: Tensor) -> Tensor:
        if self.config.metric == "shared":
            return distances
        return distances.square() + self._log_dets

    def _own_distances(self, name: str, product: DescriptorStatistics) -> Tensor:
        """Distances of the product's calibration images from its own mean."""
        at = self.names.index(name)
        gaps = (_apply(self._whiten[at], product.witnesses) - self._means[at]).square().sum(-1)
        return (gaps / product.witnesses.shape[1]).sqrt()

    def _limit(self, scaled: Tensor) -> float:
        """Distance, in typical ones, that a good image exceeds at the accepted rate of false rejections."""
        logs = scaled.clamp_min(1e-6).log().tolist()
        limit = upper_limit(logs, self.config.false_rejection_rate)
        return max(self.config.least_distance, math.exp(limit)) if limit < MOST_LOG else math.inf


def _metrics(products: list[DescriptorStatistics], config: RouterConfig) -> tuple[list[Tensor], Tensor]:
    """A whitening matrix (D, D) for every product and log|covariance| / D."""
    if config.metric == "shared":
        covariances = [_mean(products)]
    else:
        covariances = [product.covariance() for product in products]
    factors = [torch.linalg.cholesky(c) for c in covariances]
    eye = torch.eye(factors[0].shape[0], dtype=torch.float64)
    # Contiguous, as they come from a file: products of another layout may round differently.
    whiten = [torch.linalg.solve_triangular(f, eye, upper=False).contiguous() for f in factors]
    log_dets = torch.stack([2 * f.diagonal().log().mean() for f in factors])
    if config.metric == "shared":
        whiten = whiten * len(products)
    return whiten, log_dets


def _mean(products: list[DescriptorStatistics]) -> Tensor:
    # One after the other: stacking two hundred of them would take gigabytes with a wide backbone.
    total = torch.zeros_like(products[0].covariance())
    for product in products:
        total += product.covariance()
    return total / len(products)


def _apply(whiten: Tensor, rows: Tensor) -> Tensor:
    return rows @ whiten.T
