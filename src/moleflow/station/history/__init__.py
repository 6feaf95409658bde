"""What a station remembers: inspections with their pictures, lessons, and every change of the line."""

from .database import Database
from .filters import Filters

__all__ = ["Database", "Filters"]
