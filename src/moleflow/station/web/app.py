"""The application: all routes, behind one guard."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from anyio import to_thread
from fastapi import Depends, FastAPI

from ... import __version__
from ..service import Station
from ..settings import Settings
from . import inspections, jobs, plain, products
from .access import Access
from .errors import handle_errors
from .guard import Guard
from .metrics import Metrics
from .parts import Service, known_parameters, refuse_unknown
from .uploads import Held

AT_A_TIME = 4  # requests of the largest size whose bodies are held in memory

ABOUT = """The station beside the belt: visual inspection that learns products one by one and forgets none.

Errors have one body, `{"error": {"code", "message"}}`. What changes anything needs the header `X-Moleflow: 1`
where the station is open to its own machine, and a token with the right role elsewhere.
"""


def create_app(settings: Settings, access: Access | None = None) -> FastAPI:
    """The application of one station, which lives as long as it.

    Raises:
        LineError, ConfigError, Unready: the station cannot begin.
    """
    access = access or Access()
    metrics = Metrics()
    station = Station(settings, told=metrics.inspected)
    metrics.watch(station)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        await to_thread.run_sync(station.close)

    app = FastAPI(
        title="MoLE-Flow station",
        version=__version__,
        description=ABOUT,
        docs_url=None,
        redoc_url=None,
        lifespan=lifespan,
        redirect_slashes=False,
        dependencies=[Depends(refuse_unknown)],
    )
    held = Held(AT_A_TIME * settings.limits.bytes)
    app.state.service = Service(station, access, metrics, held)
    for room in (inspections, products, jobs, plain):
        app.include_router(room.router)
    app.state.parameters = known_parameters(app)
    handle_errors(app)
    guarded: Any = Guard
    app.add_middleware(guarded, access=access, metrics=metrics)
    return app
