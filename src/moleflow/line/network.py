"""What a product says of an image's patches, as one network that takes the product's own numbers as inputs.

What all products share is part of the network, so one serves every product of a kind, known or to come.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..compiling import exported
from ..config import LineConfig
from ..densities.coreset import Frame, distances, distances_along
from ..flow.expert import Base
from ..flow.start import CellWhitening
from ..runtime.arrays import Arrays, network_inputs
from ..verdict.maps import PositionCalibration, smooth
from .product import Product, combine, density_map

PATCHES, OUTPUTS = "patches", ["map", "ordinary"]
COUNTED = ("coreset.patches", "coreset.points", "coreset.norms")  # inputs whose first length is left open


def mean_side_of(config: LineConfig) -> int:
    """At most so many rows and columns the mean of the cells is kept at; 1 without cells."""
    cells = config.flow.cells or config.scoring.cells
    return 1 if cells is None else cells.mean_side


def given_of(product: Product, grid: tuple[int, int]) -> Arrays:
    """What the network takes of a product, as an inspection without torch makes it of the product's file."""
    tensors = {name: tensor.numpy() for name, tensor in product.tensors().items()}
    correction = product.densities.correction
    weight = 0.0 if correction is None else correction.weight
    side = mean_side_of(product.config)
    return network_inputs(tensors, grid, mean_side=side, correction_weight=weight)


def ordinary(base: Base, product: Product, count: int) -> Tensor:
    """Patches (count, h, w, D) as images of a product might have them, drawn from its cells, else noise."""
    chance = torch.Generator().manual_seed(0)
    gaussians = product.densities.gaussians
    if gaussians is None:
        return torch.randn(count, *base.position.shape[:2], base.channels, generator=chance)
    return gaussians.sample(count, chance)


def density_network(base: Base, product: Product, given: Arrays) -> bytes:
    """The network of products like this one, in ONNX; whatever torch raises is raised.

    Args:
        base: the frozen base, part of the network.
        product: any of them; none of its numbers is.
        given: what it takes of a product, as of `given_of`.

    The inputs are "patches" (1, h, w, D) and all that is given, by name, the outputs those of `Product.maps`.
    """
    grid = base.position.shape[:2]
    patches = torch.randn(1, *grid, base.channels, generator=torch.Generator().manual_seed(0))
    names = sorted(given)
    values = [torch.from_numpy(np.ascontiguousarray(given[key])) for key in names]
    return exported(
        _Density(base, product, names).eval(),
        (patches, *values),
        inputs=[PATCHES, *names],
        outputs=OUTPUTS,
        axes={key: {0: "count"} for key in names if key in COUNTED},
    )


class _Density(nn.Module):
    """What a product says of an image's patches (1, h, w, D): its map, and that of how familiar they are.

    Args:
        base: the frozen base, part of the network.
        product: one like those that are to be given.
        names: of what is given of a product, in their order.
    """

    def __init__(self, base: Base, product: Product, names: Sequence[str]) -> None:
        super().__init__()
        config = product.config
        self.base, self.scoring, self.names = base, config.scoring, names
        # In a pair, so that neither is a part of this module: their numbers come from outside.
        self.like = copy.deepcopy(product.densities.expert), product.densities.gaussians
        self.begins_with_cells = config.flow.cells is not None
        for name in names:
            if name.startswith("flow."):
                owner, last = _owner(self.like[0], name[5:])
                owner._parameters.pop(last, None)
                owner._buffers.pop(last, None)
        self.densities = 1 + (config.scoring.cells is not None)
        self.layers = () if config.scoring.coreset is None else config.scoring.coreset.compared

    def forward(self, patches: Tensor, *values: Tensor) -> tuple[Tensor, Tensor]:
        given = dict(zip(self.names, values, strict=True))
        expert, gaussians = self.like
        cells = None if gaussians is None else _GivenCells(gaussians, given)
        for name, value in given.items():
            if name.startswith("flow."):
                owner, last = _owner(expert, name[5:])
                object.__setattr__(owner, last, value)
        if self.begins_with_cells:
            assert cells is not None
            expert._modules["start_cells"] = CellWhitening(cells)  # type: ignore[arg-type]
        scores = [self.base.score(expert, self.base.prepare(patches))]
        if self.densities == 2:
            assert cells is not None
            scores.append(cells(patches))
        if "coreset.patches" in given:
            scores.append(distances(patches, given["coreset.patches"], self.layers))
        if "coreset.points" in given:
            frame = Frame(given["coreset.centre"], given["coreset.axes"])
            points, norms = given["coreset.points"], given["coreset.norms"]
            scores.append(distances_along(patches, points, norms, frame, self.layers))
        positions = [
            PositionCalibration(given[f"position.{i}.level"], given[f"position.{i}.spread"])  # type: ignore[arg-type]
            for i in range(len(scores))
        ]
        found = combine(scores, positions, self.scoring)
        if "correction.direction" in given:
            assert cells is not None
            along = cells.whiten(patches)[0] @ given["correction.direction"] - given["correction.level"]
            found = found + given["correction.weight"] * along
        return smooth(found, self.scoring.smoothing), density_map(scores, positions, self.scoring)


def _owner(module: nn.Module, name: str) -> tuple[nn.Module, str]:
    """The part of a module that has a number of this name, and what it is called there."""
    *path, last = name.split(".")
    for step in path:
        module = getattr(module, step)
    return module, last


class _GivenCells(nn.Module):
    """Cells whose numbers are given; see `CellGaussians.whiten`."""

    def __init__(self, like: Any, given: dict[str, Tensor]) -> None:
        super().__init__()
        self.grid, self.members, self.owners = like.grid, like._members, like._cell_of
        self.given = {name[6:]: value for name, value in given.items() if name.startswith("cells.")}

    def whiten(self, features: Tensor, patches: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Raw features of a whole grid to white ones, and the log-determinant per patch."""
        own = self.given
        x = (features - own["mean"]).flatten(1, 2)
        gathered = x[:, self.members]
        # Products of matrices: what engines make of an Einsum takes four times as long.
        along = gathered @ own["axes"].transpose(1, 2) * own["shrink"][:, None]
        white = (gathered + along @ own["axes"]).flatten(1, 2)
        y = white[:, self.slots].unflatten(1, self.grid) / own["root"]
        return y, own["log_dets"][self.owners].view(1, *self.grid)

    @property
    def slots(self) -> Tensor:
        """Where each patch stands among the cells' members, (h w,)."""
        slots = torch.empty(self.grid[0] * self.grid[1], dtype=torch.long)
        flat = self.members.flatten()
        slots[flat.flip(0)] = torch.arange(len(flat)).flip(0)
        return slots

    def forward(self, features: Tensor) -> Tensor:
        """Mahalanobis distance of every patch."""
        return self.whiten(features)[0].norm(dim=-1)
