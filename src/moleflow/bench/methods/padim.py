"""PaDiM: what is normal at a place of the image is a Gaussian of its own."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ...config import check
from ...errors import TrainingError
from ...features.backbones import get_backbone
from ...features.extractor import Features
from ...features.finite import require_finite
from ...verdict.maps import smooth
from .base import Inspection, PerProduct, Pictures, Setting, State

NUMBERS = 4_000_000  # float64 numbers of features read at a time
MOST_CHANNELS = 550  # that the paper draws, of WideResNet50
LEAST_RIDGE = 1e-6  # where good images do not differ, or there is one; 16 bits hold what it leads to
PLACES = 64  # Gaussians widened to 32 bits at a time: they stay in the cache


@dataclass(frozen=True)
class GaussianOptions:
    """How the Gaussians are estimated.

    The paper adds 0.01 to every variance, whatever the scale of the features. A share of the product's mean
    variance is the same for every backbone; that of the default was chosen by the likelihood of held-out
    good images, which peaks between 0.05 and 0.1; no defective image had a part in it.

    Attributes:
        channels: d, drawn at random where features have more. None is all of them up to the paper's 550;
            the paper draws 100 of the 448 of ResNet18, which saves memory and costs accuracy.
        ridge: added to the variance of every channel, as a share of the mean variance over all places and
            channels: one number per product.
    """

    channels: int | None = None
    ridge: float = 0.1

    def __post_init__(self) -> None:
        check(self, positive=("channels", "ridge"))

    def width(self, available: int) -> int:
        """Channels drawn of so many."""
        return min(available, self.channels or MOST_CHANNELS)


COMMON = GaussianOptions()


@dataclass(frozen=True, eq=False)
class _Part:
    """Gaussians of all places, row by row.

    Attributes:
        chosen: (d,) channels in use.
        mean: (h w, d) float32.
        whitening: (h w, d, d) float16, inverse of the lower Cholesky factor of every covariance.
    """

    chosen: Tensor
    mean: Tensor
    whitening: Tensor


class PaDiM(PerProduct):
    """A full Gaussian at every place of the grid; the map is the Mahalanobis distance to it.

    With the covariance C = L L^T, the distance is |L^-1 (x - mean)|: L^-1 is kept and nothing is solved at
    inspection. It is triangular, and the state holds that half alone. With N <= d images a covariance has
    rank N - 1 at most, and the ridge stands for the rest.
    """

    name = "padim"
    title = "PaDiM"
    source = "PaDiM (Defard et al. 2021), per product behind our router"

    def __init__(self, setting: Setting, options: GaussianOptions = COMMON) -> None:
        super().__init__(setting)
        self.options = options

    @property
    def notes(self) -> tuple[str, ...]:
        """How this run departs from the paper."""
        backbone, channels = self.setting.backbone, self.setting.channels
        layers = ", ".join(map(str, get_backbone(backbone).layers))
        return (
            f"ridge {self.options.ridge:g} of a product's mean variance instead of 0.01 absolute",
            f"{self.options.width(channels)} of {channels} channels, layers {layers} of {backbone}",
        )

    def learn_part(self, pictures: Pictures) -> _Part:
        """Mean and regularised covariance of every place over all images."""
        if not len(pictures):
            raise TrainingError(f"expected good images of {pictures.product!r} to learn from, got none")
        require_finite(pictures.features)
        chosen = self._channels()
        features = pictures.features.flatten(1, 2)
        count, places, _ = features.shape
        step = max(1, NUMBERS // (max(count, len(chosen)) * len(chosen)))
        parts = [slice(start, start + step) for start in range(0, places, step)]
        mean = torch.empty(places, len(chosen), device=features.device)
        variance = torch.empty(places, len(chosen), dtype=torch.float64, device=features.device)
        for here in parts:
            x = features[:, here][..., chosen].double().transpose(0, 1)
            mean[here] = x.mean(1)
            variance[here] = (x - mean[here, None]).square().sum(1) / max(count - 1, 1)
        ridge = max(self.options.ridge * float(variance.mean()), LEAST_RIDGE)
        shape = (places, len(chosen), len(chosen))
        whitening = torch.empty(shape, dtype=torch.float16, device=features.device)
        for here in parts:
            x = features[:, here][..., chosen].double().transpose(0, 1)
            whitening[here] = _whitening(x - mean[here, None], ridge).half()
        return _Part(chosen, mean, whitening)

    def inspect_part(self, part: _Part, seen: Features) -> Inspection:
        """Smoothed map of distances, and its maximum as the image's score, as in the paper."""
        offset = seen.patches[0].flatten(0, 1)[:, part.chosen] - part.mean
        distance = torch.cat(
            [
                torch.bmm(w.float(), x[..., None])[..., 0].square().sum(1).sqrt()
                for w, x in zip(part.whitening.split(PLACES), offset.split(PLACES), strict=True)
            ]
        )
        maps = smooth(
            distance.unflatten(0, seen.patches.shape[1:3])[None], self.setting.config.scoring.smoothing
        )
        return Inspection(task=None, known=None, score=float(maps.max()), patch_map=maps[0].cpu().numpy())

    def part_state(self, part: _Part) -> State:
        """Channels, means, and the lower triangles row by row."""
        rows, columns = torch.tril_indices(len(part.chosen), len(part.chosen))
        return State(
            {
                "chosen": part.chosen.to(torch.int16),
                "mean": part.mean.cpu(),
                "whitening": part.whitening[:, rows, columns].cpu(),
            }
        )

    def part_from(self, state: State) -> _Part:
        """The inverse of `part_state`."""
        chosen, mean = state.tensors["chosen"].long(), state.tensors["mean"].to(self.setting.device)
        rows, columns = torch.tril_indices(len(chosen), len(chosen))
        whitening = torch.zeros(len(mean), len(chosen), len(chosen), dtype=torch.float16)
        whitening[:, rows, columns] = state.tensors["whitening"]
        return _Part(chosen, mean, whitening.to(self.setting.device))

    def _channels(self) -> Tensor:
        """The same for every product, in rising order."""
        generator = torch.Generator().manual_seed(self.setting.seed)
        order = torch.randperm(self.setting.channels, generator=generator)
        return order[: self.options.width(len(order))].sort().values


def _whitening(centred: Tensor, ridge: float) -> Tensor:
    """L^-1 (P, d, d) with L L^T = covariance + ridge I, for centred patches (P, N, d) float64."""
    _, count, channels = centred.shape
    identity = torch.eye(channels, dtype=centred.dtype, device=centred.device)
    covariance = centred.mT @ centred / max(count - 1, 1) + ridge * identity
    factor = torch.linalg.cholesky(covariance)
    return torch.linalg.solve_triangular(factor, identity.expand_as(factor), upper=False)
