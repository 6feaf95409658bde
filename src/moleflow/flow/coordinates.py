"""The coordinates of layer-normalised patches: a point of a sphere has two fewer numbers than channels.

A patch brought to mean 0 and variance 1 over its D channels lies on the sphere of radius sqrt(D) in the
hyperplane of sum zero. A density over all D channels is degenerate there: it grows without bound as it
closes on the sphere. This chart gives the D - 2 numbers that are free, and what it does to volumes.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

LEAST_VARIANCE = 1e-5  # as layer normalisation's: below it a patch is rounding, and stays inside the sphere
LEAST = 1e-3  # distance from the one point that no chart of a whole sphere reaches, in radii


def sphere_chart(features: Tensor) -> Tensor:
    """Patches (…, D), whatever their mean and size, to coordinates y (…, D - 2) of where they point.

    A reflection turns the hyperplane of sum zero into the first D - 1 axes and folds the last channel evenly
    into the others. Stereographic projection along the last axis left takes the sphere to the plane:

        y = v / (1 + p / R)        R = sqrt(D), v the first D - 2 coordinates, p the last

    Near p = 0 it keeps lengths. It cannot reach a patch of one low channel among equals.
    """
    channels = features.shape[-1]
    centred = features - features.mean(-1, keepdim=True)
    radius = math.sqrt(channels)
    spread = centred.norm(dim=-1, keepdim=True) / radius
    on_sphere = centred / spread.clamp_min(math.sqrt(LEAST_VARIANCE))
    turned = on_sphere[..., :-1] + on_sphere[..., -1:] / (radius - 1)
    return turned[..., :-1] / (1 + turned[..., -1:] / radius).clamp_min(LEAST)


def sphere_log_det(y: Tensor) -> Tensor:
    """log of the volume in coordinates (…, D - 2) that a unit of the sphere's surface takes, (…,).

    Stereographic projection keeps angles, and lengths grow alike in all directions.
    """
    free = y.shape[-1]
    return free * torch.log1p(y.square().sum(-1) / (free + 2)) - free * math.log(2)
