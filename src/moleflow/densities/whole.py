"""A Gaussian over the picture as a whole: what is wrong everywhere a little is wrong at no single place."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..config import Whole
from ..packing import CODES, packed, unpacked

LEAST_SPREAD = 0.03
"""Smallest believable spread of a number, as a share of the typical number's: one that held still must not
turn its first move into a scream. None of the default backbone's 1024 is as small in ten products of 8 to 60
images, the smallest is 0.036; a tenth would blunt those of the first stage where the light is steady."""


@dataclass(frozen=True, eq=False)
class WholeGaussian:
    """Ledoit-Wolf Gaussian of pooled features, each in its own spread (Rippel 2020; Ledoit and Wolf 2004).

    The covariance keeps its strongest directions, and everything else counts as noise of variance rho:

        squared_mahalanobis(x) = (sum_i c_i^2 / lambda_i + (|z|^2 - sum_i c_i^2) / rho) / E

    with z the standardised x and c_i = u_i . z.

    Attributes:
        mean, spread: (E,) of the pooled features.
        directions: (r, E), the u_i.
        variances: (r,), the lambda_i.
        noise: rho.
        bits: a number of the directions is kept in.
    """

    mean: Tensor
    spread: Tensor
    directions: Tensor
    variances: Tensor
    noise: float
    bits: int = 8

    @classmethod
    def fit(cls, pooled: Tensor, config: Whole) -> WholeGaussian:
        """From pooled features (N, E) of good images; what is stored in fewer bits is rounded at once."""
        x = pooled.cpu().double().numpy()
        mean, spread = x.mean(0), x.std(0)
        typical = float(np.median(spread))
        spread = np.maximum(spread, max(LEAST_SPREAD * typical, 1e-6 * float(np.abs(mean).mean()), 1e-9))
        mean, spread = mean.astype(np.float32).astype(float), spread.astype(np.float32).astype(float)
        values, vectors = _spectrum((x - mean) / spread, min(config.rank, len(x) - 1))
        level = float((((x - mean) / spread) ** 2).sum(1).mean()) / x.shape[1]
        shrink = _shrinkage((x - mean) / spread, level)
        values = (1 - shrink) * values + shrink * level
        rest = (x.shape[1] * level - values.sum()) / max(x.shape[1] - len(values), 1)
        directions = torch.from_numpy(np.ascontiguousarray(vectors, np.float32))
        return cls(
            torch.from_numpy(mean.astype(np.float32)),
            torch.from_numpy(spread.astype(np.float32)),
            unpacked(_kept(directions, config.bits))["directions"],
            torch.from_numpy(np.maximum(values, 1e-9).astype(np.float32)),
            float(np.float32(max(rest, 1e-9))),
            config.bits,
        )

    def __call__(self, pooled: Tensor) -> Tensor:
        """Mahalanobis distance per number, (B,) float64, of pooled features (B, E)."""
        z = (pooled.cpu().double() - self.mean) / self.spread
        along = (z @ self.directions.double().T).square()
        outside = (z.square().sum(1) - along.sum(1)).clamp_min(0)
        return (((along / self.variances).sum(1) + outside / self.noise) / z.shape[1]).sqrt()

    @torch.no_grad()
    def sample(self, count: int, generator: torch.Generator) -> Tensor:
        """Pooled features (count, E) drawn from the Gaussian: what the product used to look like."""
        noise = torch.randn(count, len(self.mean), generator=generator) * self.noise**0.5
        noise -= (noise @ self.directions.T) @ self.directions
        along = torch.randn(count, len(self.variances), generator=generator) * self.variances.sqrt()
        return self.mean + self.spread * (noise + along @ self.directions)

    def tensors(self) -> dict[str, Tensor]:
        """What a saved line keeps."""
        return {
            "mean": self.mean,
            "spread": self.spread,
            **_kept(self.directions, self.bits),
            "variances": self.variances,
            "noise": torch.tensor([self.noise]),
        }

    @classmethod
    def from_tensors(cls, tensors: dict[str, Tensor]) -> WholeGaussian:
        """The inverse of `tensors`, to the bit."""
        own = unpacked(tensors)
        return cls(
            own["mean"],
            own["spread"],
            own["directions"],
            own["variances"],
            float(own["noise"][0]),
            16 if "directions" in tensors else 8 if "directions" + CODES in tensors else 4,
        )


def _kept(directions: Tensor, bits: int) -> dict[str, Tensor]:
    """Directions as a saved line keeps them."""
    if bits == 16:
        return {"directions": directions.half()}
    return packed("directions", directions, bits, lengths=True)


def _spectrum(z: NDArray[np.float64], rank: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The strongest variances (r,) and directions (r, E) of centred rows, by the smaller matrix."""
    count, channels = z.shape
    rank = min(rank, channels - 1)
    if rank < 1:
        return np.zeros(0), np.zeros((0, channels))
    if count < channels:
        values, vectors = _eigh(z @ z.T / count)
        values, vectors = values[-rank:], vectors[:, -rank:]
        directions = (z.T @ vectors / np.sqrt(count * np.maximum(values, 1e-12))).T
    else:
        values, found = _eigh(z.T @ z / count)
        values, directions = values[-rank:], found[:, -rank:].T
    return np.maximum(values, 0.0), directions


def _eigh(symmetric: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Eigenvalues, ascending, and -vectors; by torch, which keeps to the number of threads asked for."""
    values, vectors = torch.linalg.eigh(torch.from_numpy(symmetric))
    return values.numpy(), vectors.numpy()


def _shrinkage(z: NDArray[np.float64], level: float) -> float:
    """Ledoit and Wolf's weight of the identity, from rows (N, E) of mean zero."""
    count, channels = z.shape
    gram = z @ z.T if count < channels else z.T @ z
    squared = float((gram**2).sum()) / count**2  # of the sample covariance's entries
    distance = squared - channels * level**2
    error = (float(((z**2).sum(1) ** 2).mean()) - squared) / count
    return float(np.clip(error / distance, 0, 1)) if distance > 0 else 1.0
