"""What the router remembers of a product: mean and covariance of its image descriptors, kept small."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ..packing import pack, packed, unpack, unpacked

LEAST_SPREAD = 0.02
"""Smallest believable standard deviation of a descriptor, as a share of its size: a few near-identical
images must not make a metric that calls every other image foreign."""

WITNESSES = 32
"""Descriptors kept per product, to measure what later products change. They are of images that it was learned
from, as far from their mean as ones would lie that had no part in it: no photograph had exactly these."""


def describe(features: Tensor) -> Tensor:
    """Image descriptor (B, D) float64: spatial mean of raw patch features (B, h, w, D)."""
    # On the processor before it becomes float64: not every accelerator has that type. Image by image: that
    # fits the processor's cache, and a descriptor does not depend on its neighbours in the batch. By numpy,
    # in half of the time, and torch would wake its threads for it: where another process has their processor
    # that took 10 ms.
    patches = features.detach().cpu().flatten(1, 2)
    means = [image.numpy().mean(0, dtype=np.float64) for image in patches]
    return torch.from_numpy(np.stack(means)) if means else patches.new_empty(0, patches.shape[-1]).double()


@dataclass(frozen=True, eq=False)
class DescriptorStatistics:
    """Mean and shrunk covariance of one product's descriptors.

    The covariance is factor.T @ factor + noise * I: the strongest directions of a Ledoit-Wolf estimate
    and, for the rest, their average. It belongs to the product alone and never changes; metrics shared
    by several products are sums of these, in any order of learning.

    Attributes:
        mean: (D,).
        factor: (r, D).
        noise: variance in every direction outside the factor.
        witnesses: (n, D) descriptors that stand for good images it did not see; see `WITNESSES`.
        bits: that a file keeps a number of the factor in: 8, or 16 in lines of earlier libraries.
    """

    mean: Tensor
    factor: Tensor
    noise: float
    witnesses: Tensor
    bits: int = 8

    @classmethod
    def fit(
        cls,
        descriptors: Tensor,
        witnesses: Tensor,
        *,
        rank: int,
        earlier: tuple[DescriptorStatistics, int] | None = None,
    ) -> DescriptorStatistics:
        """From descriptors (N, D) learned from and witnesses (n, D), rounded to what is stored.

        Args:
            descriptors, witnesses: of these images.
            rank: at most so many directions are kept.
            earlier: what was learned from earlier images, and how many these were. Moments are pooled: a few
                witnesses instead of the images would make a metric that knows them by heart.
        """
        mean, count = descriptors.mean(0), len(descriptors)
        covariance = ledoit_wolf(descriptors - mean)
        if earlier is not None:
            before, images = earlier
            share = images / (images + count)
            gap = before.mean - mean
            covariance = share * before.covariance() + (1 - share) * covariance
            covariance += share * (1 - share) * torch.outer(gap, gap)
            mean, count = mean + share * gap, count + images
        values, vectors = torch.linalg.eigh(covariance)
        rank = min(rank, count - 1, len(mean) - 1)
        floor = (LEAST_SPREAD**2) * float(mean.square().mean())
        rest = values[: len(values) - rank]
        noise = max(float(rest.mean()), floor, 1e-12)
        top = (values[len(values) - rank :] - noise).clamp_min(0)
        factor = (vectors[:, len(values) - rank :] * top.sqrt()).T
        return cls(
            mean.float().double(),
            unpack(*pack(factor.float())).double(),
            float(torch.tensor(noise).float()),
            _kept(witnesses[:WITNESSES], rounded=True).double(),
        )

    def covariance(self) -> Tensor:
        """(D, D) float64."""
        return self.factor.T @ self.factor + self.noise * torch.eye(len(self.mean), dtype=torch.float64)

    def tensors(self) -> dict[str, Tensor]:
        """What a saved line keeps."""
        factor = self.factor.float()
        return {
            "mean": self.mean.float(),
            **({"factor": factor.half()} if self.bits == 16 else packed("factor", factor)),
            "noise": torch.tensor([self.noise]),
            "witnesses": _kept(self.witnesses),
        }

    @classmethod
    def from_tensors(cls, tensors: dict[str, Tensor]) -> DescriptorStatistics:
        """The inverse of `tensors`, to the bit."""
        return cls(
            tensors["mean"].double(),
            unpacked(tensors)["factor"].double(),
            float(tensors["noise"][0]),
            tensors["witnesses"].double(),
            bits=16 if "factor" in tensors else 8,
        )


def _kept(descriptors: Tensor, *, rounded: bool = False) -> Tensor:
    """In 16 bits where these hold them, or may round them; else in 32."""
    half = descriptors.half()
    held = torch.isfinite(half).all() if rounded else torch.equal(half.double(), descriptors.double())
    return half if held else descriptors.float()


def ledoit_wolf(centred: Tensor) -> Tensor:
    """Covariance (D, D) of centred rows (N, D), shrunk towards a multiple of the identity.

    The weight is Ledoit and Wolf's (2004) estimate; a single row gives zeros.
    """
    count, channels = centred.shape
    sample = centred.T @ centred / count
    level = sample.diagonal().mean()
    target = level * torch.eye(channels, dtype=centred.dtype)
    spread = (sample - target).square().sum()
    if float(spread) <= 0:
        return target
    norms = centred.square().sum(1)
    error = (norms.square().sum() / count - sample.square().sum()) / count
    weight = float((error / spread).clamp(0, 1))
    return (1 - weight) * sample + weight * target
