"""Visual inspection that learns a new product every week and forgets none."""

from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from . import errors
from .config import (
    Cells,
    Context,
    Coreset,
    Dia,
    FlowConfig,
    LineConfig,
    Lora,
    Mixer,
    RouterConfig,
    ScoringConfig,
    TrainingConfig,
    Whitening,
    Whole,
)
from .errors import MoleFlowError

if TYPE_CHECKING:
    from .detector import Detector
    from .results import Failure, Prediction, Routing, TaskInfo
    from .verdict.changes import Changes
    from .verdict.drift import Facts, Finding
    from .verdict.regions import Region
    from .verdict.watch import Report

# These bring torch or scipy, which take seconds; `moleflow --help` should not.
_HEAVY = {
    "Changes": "verdict.changes",
    "Detector": "detector",
    "Facts": "verdict.drift",
    "Finding": "verdict.drift",
    "Region": "verdict.regions",
    "Report": "verdict.watch",
} | dict.fromkeys(("Failure", "Prediction", "Routing", "TaskInfo"), "results")

__version__ = version("moleflow")

__all__ = [
    "Cells",
    "Changes",
    "Context",
    "Coreset",
    "Detector",
    "Dia",
    "Facts",
    "Failure",
    "Finding",
    "FlowConfig",
    "LineConfig",
    "Lora",
    "Mixer",
    "MoleFlowError",
    "Prediction",
    "Region",
    "Report",
    "RouterConfig",
    "Routing",
    "ScoringConfig",
    "TaskInfo",
    "TrainingConfig",
    "Whitening",
    "Whole",
    "__version__",
    "errors",
]


def __getattr__(name: str) -> Any:
    if name in _HEAVY:
        try:
            return getattr(import_module(f".{_HEAVY[name]}", __name__), name)
        except ModuleNotFoundError as error:
            if error.name in errors.LEARNING:
                raise ImportError(errors.without_learning(error.name), name=error.name) from error
            raise
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
