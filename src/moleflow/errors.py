"""Every error this package raises on purpose.

MoleFlowError
 |- ConfigError      an option has an impossible value, or a key nobody knows
 |- ImageError       an image cannot be read or used
 |   |- DepthError        its numbers are of another kind than the line's
 |   `- OnlyFoldersError  a folder holds no images itself, only folders
 |- DatasetError     a folder does not hold what its layout promises
 |- BackboneError    weights are missing, of another kind, or another model's
 |- TaskError        a product's name is unusable, taken or unknown
 |- TrainingError    learning did not stay finite
 |- CalibrationError good images do not suffice for what was asked
 |- ExportError      a line cannot be exported, or the export would say something else
 |- BenchError       a benchmark's folder holds another run, or a damaged one
 `- LineError        a saved line cannot be read or written
     |- LineBusyError   another process holds it
     `- NoLineError     there is none, and one could be begun
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path


class MoleFlowError(Exception):
    """Base of all errors raised on purpose; its text says what was expected and what came."""


class ConfigError(MoleFlowError):
    """An option has an impossible value, or a key nobody knows."""


class ImageError(MoleFlowError):
    """An image cannot be read or used; the text carries its path or position."""


class DepthError(ImageError):
    """An image holds numbers of another kind than the line's: of more bits, of fewer, or floats."""


class OnlyFoldersError(ImageError):
    """A folder holds no images itself, but folders that may hold some."""


class DatasetError(MoleFlowError):
    """A folder does not hold what its layout promises."""


class BackboneError(MoleFlowError):
    """Backbone weights are missing, of another kind, or another model's."""


class TaskError(MoleFlowError):
    """A product's name is unusable, already taken, or unknown to this line."""


class TrainingError(MoleFlowError):
    """Learning did not stay finite; the line is as it was before."""


class CalibrationError(MoleFlowError):
    """The good images do not suffice for the calibration that was asked for."""


class ExportError(MoleFlowError):
    """A line cannot be exported, or the export would say something else."""


class BenchError(MoleFlowError):
    """A benchmark's folder holds another run or a damaged file, or a unit of it failed."""


class LineError(MoleFlowError):
    """A saved line cannot be read or written; what was on disk is untouched."""


class LineBusyError(LineError):
    """Another process is writing to this line and did not finish in time."""


class NoLineError(LineError):
    """There is no line in a folder where one could be begun; `line` is its path as it was given."""

    def __init__(self, text: str, line: Path | None = None) -> None:  # pickle gives it later
        super().__init__(text)
        self.line = line


LEARNING = ("torch", "timm")  # what the extra `learn` brings


def without_learning(missing: str) -> str:
    """What to say where a library for learning is not installed."""
    return f"this needs {missing}, which is not installed: pip install 'moleflow[learn]'"


def reason_of(error: BaseException) -> str:
    """Why, in the system's words."""
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return text.strip().rstrip(".") or type(error).__name__
