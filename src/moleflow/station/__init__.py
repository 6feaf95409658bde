"""The inspection station: a service beside the belt, on the library's public names alone.

`service.Station` puts the rooms together and knows nothing of HTTP; `web` knows HTTP and `Station`.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from .settings import Limits, Settings

if TYPE_CHECKING:
    from .service import Station

__all__ = ["Limits", "Settings", "Station"]


def __getattr__(name: str) -> Any:
    if name == "Station":  # it brings a database; `moleflow watch` and a lesson do without
        return import_module(".service", __name__).Station
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
