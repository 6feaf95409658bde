"""Reports as HTML that opens anywhere, offline: of a benchmark and of a sweep, from their plain JSON."""

from .page import Gallery, build, write_report
from .sweep import write_sweep_report

__all__ = ["Gallery", "build", "write_report", "write_sweep_report"]
