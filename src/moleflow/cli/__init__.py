"""The command line: `moleflow COMMAND ...`.

torch and the models are imported inside the commands that need them: a help text should not wait for them.
"""

from . import (  # noqa: F401  # they add their commands
    adding,
    benchmark,
    demo,
    drift,
    export,
    inspection,
    products,
    station,
    teaching,
)
from .app import app, main

__all__ = ["app", "main"]
