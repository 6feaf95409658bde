"""The sweep: options searched without labels. What is tried, the runs behind it, the search, the choice."""

from .choosing import CRITERIA, sweep
from .space import Choice, Points, Range, Space, default_space, read_space

__all__ = ["CRITERIA", "Choice", "Points", "Range", "Space", "default_space", "read_space", "sweep"]
