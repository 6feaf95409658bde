"""Routes: the line, its products, and what may be changed of them."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Path, Query
from fastapi.responses import Response

from .. import pictures
from . import schemas
from .parts import WITH_BODY, Admin, Inspector, Serving, Teacher, can_fail

router = APIRouter(prefix="/api/v1", tags=["products"])

Product = Annotated[str, Path(max_length=200, examples=["bottle"])]
MEANING = "0 typical good, 0.5 threshold, 1 twice as far"


@router.get("/line", response_model=schemas.LineTold, responses=can_fail())
def line(service: Serving, who: Inspector) -> Any:
    """The line and its products."""
    station = service.station
    inspector, limits = station.line.now.inspector, station.settings.limits
    return {
        "name": station.settings.line.absolute().name,
        "products": station.products.briefs(),
        "image_size": None if inspector is None else list(inspector.intake.size),
        "learning": station.line.can_learn,
        "disk_free_bytes": station.disk_free(),
        "problem": station.line.problem,
        "limits": {name: getattr(limits, name) for name in schemas.LimitsTold.model_fields},
    }


@router.get("/scale", response_model=schemas.ScaleTold, responses=can_fail())
def scale(who: Inspector) -> Any:
    """The colours of all maps."""
    return {"stops": pictures.scale_stops(), "meaning": MEANING}


@router.get("/products/{name}", response_model=schemas.ProductDetail, responses=can_fail(404, 422))
def product(name: Product, service: Serving, who: Inspector) -> Any:
    """One product in full."""
    return service.station.products.detail(name)


@router.get("/products/{name}/threshold", response_model=schemas.Preview, responses=can_fail(404, 409, 422))
def preview(
    name: Product,
    service: Serving,
    who: Inspector,
    false_alarm_rate: Annotated[schemas.Share, Query(examples=[0.01])],
) -> Any:
    """What another false-alarm rate would mean; nothing is changed."""
    return service.station.products.preview(name, false_alarm_rate)


@router.put(
    "/products/{name}/threshold",
    response_model=schemas.ProductBrief,
    responses=can_fail(*WITH_BODY, 404, 409, 422),
)
def set_threshold(name: Product, given: schemas.ThresholdGiven, service: Serving, who: Teacher) -> Any:
    """When images of the product are called defective: by a false-alarm rate, or by hand.

    409 `other_version`, and nothing is changed, where another version than `version` is in use by now; with
    a `threshold` and no `version`, where it is another one than the station inspects with.
    """
    name = service.station.products.check(name)
    service.station.changing.set_threshold(
        who,
        name,
        false_alarm_rate=given.false_alarm_rate,
        threshold=given.threshold,
        version=given.version,
    )
    return service.station.products.brief(name)


@router.post(
    "/products/{name}/rollback",
    response_model=schemas.ProductBrief,
    responses=can_fail(*WITH_BODY, 404, 409, 422),
)
def roll_back(name: Product, given: schemas.VersionGiven, service: Serving, who: Teacher) -> Any:
    """Uses another version of the product; no version is deleted."""
    name = service.station.products.check(name)
    service.station.changing.roll_back(who, name, given.version)
    return service.station.products.brief(name)


@router.delete(
    "/products/{name}",
    status_code=204,
    response_class=Response,
    responses=can_fail(*WITH_BODY, 404, 409, 422),
)
def remove(name: Product, service: Serving, who: Admin) -> Response:
    """Takes the product and all its versions off the line, for good."""
    service.station.changing.remove(who, service.station.products.check(name))
    return Response(status_code=204)


@router.get("/products/{name}/drift", response_model=schemas.DriftTold, responses=can_fail(404, 422))
def drift(name: Product, service: Serving, who: Inspector) -> Any:
    """Whether the product's good images move away from those taught."""
    return service.station.products.drift(name)
