"""Features that are numbers: the others are refused before anything is learned from them."""

from __future__ import annotations

import torch
from torch import Tensor

from ..errors import TrainingError


def require_finite(features: Tensor) -> None:
    """Raises TrainingError where some of features (N, h, w, D) are no numbers: drawing would miss them."""
    for i, image in enumerate(features):
        if not torch.isfinite(image).all():
            raise TrainingError(
                f"expected finite features, but those of image {i} of {len(features)} are not"
            )
