"""The methods by their names on the command line, and the options that are theirs alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ...config import from_dict
from ...errors import ConfigError
from .banks import BankOptions, CalibratedMemoryBank, MemoryBank, SharedCoreset
from .base import Method, Setting
from .dne import DNE
from .line import MoleFlow, TaskSeparated
from .padim import GaussianOptions, PaDiM
from .single import EWC, Consolidation, Distillation, FineTuning, Joint, LwF, Rehearsal, Replay
from .ucad import UCAD, UcadOptions

METHODS: dict[str, type[Method]] = {
    method.name: method
    for method in (
        MoleFlow,
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
        SharedCoreset,
    )
}

OPTIONS: dict[str, type] = {
    EWC.name: Consolidation,
    LwF.name: Distillation,
    Replay.name: Rehearsal,
    UCAD.name: UcadOptions,
    MemoryBank.name: BankOptions,
    CalibratedMemoryBank.name: BankOptions,
    SharedCoreset.name: BankOptions,
    PaDiM.name: GaussianOptions,
}


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
