"""Visual inspection that learns a new product every week and forgets none."""

from importlib.metadata import version

from . import errors
from .config import (
    Cells,
    Context,
    Dia,
    FlowConfig,
    LineConfig,
    Lora,
    Mixer,
    RouterConfig,
    ScoringConfig,
    TrainingConfig,
    Whitening,
)
from .detector import Detector
from .errors import MoleFlowError
from .results import Prediction, Routing, TaskInfo

__version__ = version("moleflow")

__all__ = [
    "Cells",
    "Context",
    "Detector",
    "Dia",
    "FlowConfig",
    "LineConfig",
    "Lora",
    "Mixer",
    "MoleFlowError",
    "Prediction",
    "RouterConfig",
    "Routing",
    "ScoringConfig",
    "TaskInfo",
    "TrainingConfig",
    "Whitening",
    "__version__",
    "errors",
]
