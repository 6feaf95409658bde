"""The inspection station: a service beside the belt, on the library's public names alone.

`service.Station` puts the rooms together and knows nothing of HTTP; `web` knows HTTP and `Station`.
"""

from .service import Station
from .settings import Limits, Settings

__all__ = ["Limits", "Settings", "Station"]
