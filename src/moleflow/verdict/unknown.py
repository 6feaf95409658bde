"""Whether a picture is of its product at all, judged by its most ordinary places: no defect moves them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from ..spreads import robust_spread
from .calibration import upper_limit

if TYPE_CHECKING:
    from torch import Tensor

ORDINARY = 0.05  # the share of the patches, the most ordinary ones, that must look like the product
REACH = 3.0  # robust spreads beyond the strangest good image


@dataclass(frozen=True)
class Familiarity:
    """How strange the ordinary places of good images look, and from where on a picture is of another product.

    A defect covers some of a picture, hardly ever all but a twentieth of it: even then the most ordinary
    places of a known product look known. In a picture of another product no place does.

    Attributes:
        quantile: which patch of a calibrated map counts.
        values: it, of the good images that calibrated.
        rate: at which a good image may be rejected, where the limit follows from a model; None where it lies
            a fixed reach beyond the strangest good image.
        floor: how far decoding and the sensor alone move a value.
        few: at which rate one more good image may be rejected at most, by a model; it counts where there are
            too few images for a fixed reach beyond the strangest of them to say.
    """

    quantile: float
    values: tuple[float, ...]
    rate: float | None = None
    floor: float = 0.0
    few: float | None = None

    def of(self, calibrated: Tensor) -> Tensor:
        """Strangeness (B,) of calibrated patch maps (B, h, w)."""
        flat = calibrated.flatten(1)
        return flat.median(1).values if self.quantile == 0.5 else flat.quantile(self.quantile, dim=1)

    def of_map(self, calibrated: np.ndarray) -> float:
        """The same of one map (h, w)."""
        if self.quantile == 0.5:  # the lower of two in the middle, as a tensor's median is
            return float(np.quantile(calibrated, 0.5, method="lower"))
        return float(np.quantile(calibrated, self.quantile))

    @cached_property
    def limit(self) -> float:
        """Strangeness from which on a picture is of no known product."""
        values = np.array(self.values)
        if self.rate is not None:
            middle = float(np.mean(values))
            return middle + 2 * (upper_limit(list(self.values), self.rate) - middle)
        if len(values) < 2:
            return float("inf")
        spread = robust_spread(values)
        limit = float(values.max()) + REACH * max(spread, self.floor)
        return limit if self.few is None else max(limit, upper_limit(list(self.values), self.few))

    def knows(self, strangeness: float, *, near: bool) -> bool:
        """Whether a picture of this strangeness is of the product.

        `near`, whether its descriptor is as near as those of good images, counts in a line's first format
        only: a defect moves it.
        """
        return strangeness <= self.limit or (self.rate is not None and near)

    @classmethod
    def from_dict(cls, values: dict[str, Any] | list[float], *, rate: float) -> Familiarity:
        """The inverse of `to_dict`; of a line's first format a list of medians, with a limit from a model."""
        if isinstance(values, list):
            return cls(0.5, tuple(values), rate=rate)
        return cls(values["quantile"], tuple(values["values"]), floor=values["floor"], few=values.get("few"))

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON."""
        told = {"quantile": self.quantile, "values": list(self.values), "floor": self.floor}
        return told if self.few is None else told | {"few": self.few}
