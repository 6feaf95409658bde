"""How far apart values lie, whatever a few odd ones among them say."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def robust_spread(values: NDArray[np.float64]) -> float:
    """Median absolute deviation, scaled to the standard deviation of a normal distribution."""
    return 1.4826 * float(np.median(np.abs(values - np.median(values))))
