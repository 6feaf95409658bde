"""The methods by their names on the command line, and the options that are theirs alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ...config import from_dict
from ...errors import ConfigError
from .banks import BankOptions, CalibratedBankOptions, CalibratedMemoryBank, MemoryBank
from .base import Method, PerProduct, Setting
from .dne import DNE, DneOptions
from .gaussians import DescriptorGaussian, ImageGaussian, ImageOptions, SharedGaussian
from .line import CellsAlone, DeCoFlow, MoleFlow, TaskSeparated
from .padim import GaussianOptions, PaDiM
from .projection import ProjectionBanks, ProjectionOptions
from .prototypes import GCR, DINOSaur, PlaceOptions, PrototypeOptions
from .shared import SharedBankOptions, SharedCoreset
from .single import EWC, Consolidation, Distillation, FineTuning, Joint, LwF, Rehearsal, Replay
from .ucad import UCAD, UcadOptions
from .with_cells import EWCWithCells, FineTuningWithCells, JointWithCells, LwFWithCells, ReplayWithCells
from .with_image import with_image

PATCH_METHODS: tuple[type[PerProduct], ...] = (
    CellsAlone,
    MemoryBank,
    CalibratedMemoryBank,
    PaDiM,
    GCR,
    DINOSaur,
    ProjectionBanks,
)

BY_ITSELF: tuple[type[Method], ...] = (
    MoleFlow,
    CellsAlone,
    DeCoFlow,
    FineTuning,
    EWC,
    LwF,
    Replay,
    Joint,
    TaskSeparated,
    DNE,
    UCAD,
    MemoryBank,
    CalibratedMemoryBank,
    PaDiM,
    GCR,
    DINOSaur,
    ProjectionBanks,
    SharedCoreset,
    ImageGaussian,
    DescriptorGaussian,
    SharedGaussian,
)

WITH_CELLS: tuple[type[Method], ...] = (
    FineTuningWithCells,
    EWCWithCells,
    LwFWithCells,
    ReplayWithCells,
    JointWithCells,
)

METHODS: dict[str, type[Method]] = {
    method.name: method for method in (*BY_ITSELF, *WITH_CELLS, *map(with_image, PATCH_METHODS))
}

OPTIONS: dict[str, type] = {
    EWC.name: Consolidation,
    EWCWithCells.name: Consolidation,
    LwF.name: Distillation,
    LwFWithCells.name: Distillation,
    Replay.name: Rehearsal,
    ReplayWithCells.name: Rehearsal,
    DNE.name: DneOptions,
    UCAD.name: UcadOptions,
    MemoryBank.name: BankOptions,
    CalibratedMemoryBank.name: CalibratedBankOptions,
    SharedCoreset.name: SharedBankOptions,
    PaDiM.name: GaussianOptions,
    GCR.name: PrototypeOptions,
    DINOSaur.name: PlaceOptions,
    ProjectionBanks.name: ProjectionOptions,
    ImageGaussian.name: ImageOptions,
}
OPTIONS |= {f"{m.name}-with-image": OPTIONS[m.name] for m in PATCH_METHODS if m.name in OPTIONS}

TABLES: Mapping[str, tuple[str, ...]] = {
    "all": tuple(method.name for method in BY_ITSELF),
    "with-cells": (
        MoleFlow.name,
        TaskSeparated.name,
        CellsAlone.name,
        *(method.name for method in WITH_CELLS),
    ),
    "with-image": tuple(name for name in METHODS if name.endswith("-with-image")),
}
"""What `--methods` takes for several methods: each by itself, and with something put beside it."""


def options_of(method: str, table: Mapping[str, Any], *, default: bool = False) -> Any:
    """A method's own options from a plain table; None for an empty one.

    With `default` an empty one gives the options as they are, where the method has any.

    Raises ConfigError for an unknown or impossible option, or a method without options of its own.
    """
    if not table:
        return OPTIONS[method]() if default and method in OPTIONS else None
    if method not in OPTIONS:
        raise ConfigError(f"{method} has no options of its own, got {', '.join(table)}")
    return from_dict(OPTIONS[method], dict(table))


def make(method: str, setting: Setting, table: Mapping[str, Any]) -> Method:
    """A method that has learned nothing yet; errors as for `options_of`."""
    own = options_of(method, table)
    made: Any = METHODS[method]
    result: Method = made(setting) if own is None else made(setting, options=own)
    return result
