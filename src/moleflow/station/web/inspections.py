"""Routes: inspect, find inspections again, look at their pictures and maps, mark them."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterator
from datetime import datetime, timezone
from typing import Annotated, Any, Literal

from anyio import CapacityLimiter, to_thread
from fastapi import APIRouter, Depends, Header, Path, Query, Request
from fastapi.responses import Response, StreamingResponse

from ... import __version__
from .. import pictures
from ..history import Filters
from ..history.inspections import MOST_ID, as_json
from ..history.table import as_csv
from ..problems import Malformed, Missing, Problem, Unready, Unusable
from ..service import Upload
from . import errors, schemas
from .parts import WITH_BODY, Inspector, Serving, can_fail
from .uploads import Bounds, Form, read_form

router = APIRouter(prefix="/api/v1", tags=["inspections"])

AT_ONCE = CapacityLimiter(64)  # requests that inspect; the others have threads of their own
ANEW = "private, no-cache"  # a number names another picture in another database: who keeps one asks first
LONGEST_KEY = 64
KEY = (
    "Of this request, another one for every other: a UUID. Where only the answer was lost, the same request "
    "is sent again with the same key, and what was recorded of its images is answered instead of being "
    "recorded twice; 409 `key_taken` where an image is another than the one in its place the first time."
)
FORM = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "additionalProperties": False,
                    "required": ["images"],
                    "properties": {
                        "images": {
                            "type": "array",
                            "minItems": 1,
                            "items": {"type": "string", "format": "binary"},
                            "description": "PNG, JPEG, TIFF, BMP, WebP, GIF or PNM files.",
                        },
                        "task": {"type": "string", "description": "The product, where it is known."},
                        "key": {
                            "type": "string",
                            "minLength": 1,
                            "maxLength": LONGEST_KEY,
                            "description": KEY,
                            "example": "7f0c2b7e-3a55-4c1e-9d7a-5b1f6f7f2c11",
                        },
                    },
                }
            }
        },
    }
}
Id = Annotated[int, Path(ge=1, le=MOST_ID, examples=[17])]
Side = Annotated[int, Query(ge=16, le=pictures.KEPT_SIDE, description="Pixels of the longer side.")]
Held = Annotated[str | None, Header(alias="If-None-Match", description="ETag of what is there already.")]
UNCHANGED: dict[int | str, dict[str, Any]] = {304: {"description": "what is there already is the same"}}


@router.post(
    "/inspections",
    response_model=schemas.Results,
    responses=can_fail(*WITH_BODY, 404, 409, 415, 422),
    openapi_extra=FORM,
)
async def inspect(request: Request, service: Serving, who: Inspector) -> Any:
    """Inspects images. One of which nothing can be said is a result of its own, unless all are."""
    limits = service.station.settings.limits
    with service.held.counting() as count:
        bounds = Bounds(limits.images, limits.bytes, limits.bytes)
        form = await read_form(
            request, bounds, file_field="images", sink=lambda index: io.BytesIO(), count=count
        )
        unknown = form.fields.keys() - {"task", "key"}
        if unknown:
            raise Malformed(f"expected the fields images, task and key, got {min(unknown)[:40]!r}")
        if not form.files:
            raise Malformed("expected at least one file under images, got none", "no_images")
        uploads = _uploads(form)
        task = form.fields.get("task") or None
        found = await to_thread.run_sync(service.station.inspect, uploads, task, limiter=AT_ONCE)
    problems = [one for one in found if isinstance(one, Problem)]
    if len(problems) == len(found):
        # Where some might be sent again, this is what is to be known.
        raise next((one for one in problems if isinstance(one, Missing | Unready)), problems[0])
    return {
        "results": [
            {"source": upload.source, "error": errors.told(one)} if isinstance(one, Problem) else one
            for upload, one in zip(uploads, found, strict=True)
        ]
    }


def _uploads(form: Form) -> list[Upload]:
    key = form.fields.get("key")
    if key is not None and not (0 < len(key) <= LONGEST_KEY and key.isprintable()):
        raise Unusable(f"key: expected 1 to {LONGEST_KEY} printable characters, got {key[:80]!r}")
    return [
        Upload(called, sink.getvalue(), None if key is None else f"{key}/{place}")  # type: ignore[attr-defined]
        for place, (called, sink) in enumerate(form.files)
    ]


def _filters(
    product: Annotated[schemas.Name | None, Query()] = None,
    status: Annotated[schemas.Status | None, Query()] = None,
    mark: Annotated[Literal["any"] | schemas.MarkKind | None, Query()] = None,
    since: Annotated[datetime | None, Query(description="ISO 8601; UTC without a zone.")] = None,
    until: Annotated[datetime | None, Query()] = None,
    sha256: Annotated[str | None, Query(pattern="^[0-9a-fA-F]{64}$")] = None,
    text: Annotated[
        str | None,
        Query(max_length=200, pattern=r"^[^\x00]*$", description="Part of name, reason or note."),
    ] = None,
) -> Filters:
    return Filters(
        product=product,
        status=status,
        mark=mark,
        since=_seconds(since),
        until=_seconds(until),
        sha256=sha256,
        text=text,
    )


Wanted = Annotated[Filters, Depends(_filters)]


@router.get("/inspections", response_model=schemas.InspectionPage, responses=can_fail(422))
def find(
    service: Serving,
    who: Inspector,
    filters: Wanted,
    before: Annotated[int | None, Query(ge=1, le=MOST_ID)] = None,
    limit: Annotated[int, Query(ge=1, le=500)] = 50,
) -> Any:
    """Inspections, the newest first."""
    rows, more = service.station.inspections.page(filters, before=before, limit=limit)
    return {"items": [as_json(row) for row in rows], "next": more}


@router.get(
    "/inspections.csv",
    response_class=StreamingResponse,
    responses=can_fail(422) | {200: {"content": {"text/csv": {"schema": {"type": "string"}}}}},
)
def export(service: Serving, who: Inspector, filters: Wanted) -> StreamingResponse:
    """The same as CSV, all of them."""
    rows = service.station.inspections.all(filters)
    named = {"Content-Disposition": 'attachment; filename="inspections.csv"'}
    return StreamingResponse(_encoded(as_csv(rows)), media_type="text/csv", headers=named)


@router.get("/inspections/{id}", response_model=schemas.Inspection, responses=can_fail(404, 422))
def get(id: Id, service: Serving, who: Inspector) -> Any:
    """One inspection."""
    return as_json(service.station.inspections.get(id))


@router.get(
    "/inspections/{id}/image",
    response_class=Response,
    responses=can_fail(404, 422) | UNCHANGED | {200: {"content": {"image/jpeg": {}}}},
)
def image(
    id: Id, service: Serving, who: Inspector, side: Side = pictures.KEPT_SIDE, held: Held = None
) -> Response:
    """Its picture as JPEG; 404 once retention took it."""
    jpeg = service.station.inspections.picture(id).jpeg
    headers = _tagged(jpeg, side)
    if _is_held(headers, held):
        return Response(status_code=304, headers=headers)
    if max(pictures.jpeg_size(jpeg)) > side:
        jpeg = pictures.reduced(jpeg, "picture", side)
    return Response(jpeg, media_type="image/jpeg", headers=headers)


@router.get(
    "/inspections/{id}/map",
    response_class=Response,
    responses=can_fail(404, 422) | UNCHANGED | {200: {"content": {"image/png": {}}}},
)
def map_(
    id: Id, service: Serving, who: Inspector, side: Side = pictures.KEPT_SIDE, held: Held = None
) -> Response:
    """Its anomaly map alone as PNG, clear where there is nothing, of the size of its picture."""
    row, kept = service.station.inspections.get(id), service.station.inspections.picture(id)
    grid, shown = (kept.map_height, kept.map_width), pictures.jpeg_size(kept.jpeg)
    headers = _tagged(kept.map, grid, row.map_threshold, shown, side)
    if _is_held(headers, held):
        return Response(status_code=304, headers=headers)
    drawn = pictures.map_layer(kept.map, grid, threshold=row.map_threshold, shown=shown, side=side)
    return Response(drawn, media_type="image/png", headers=headers)


@router.put(
    "/inspections/{id}/mark",
    response_model=schemas.Inspection,
    responses=can_fail(*WITH_BODY, 404, 422),
)
def mark(id: Id, given: schemas.MarkGiven, service: Serving, who: Inspector) -> Any:
    """Says that a verdict was wrong."""
    task = None if given.task is None else service.station.products.check(given.task)
    row = service.station.inspections.mark(id, given.kind, task=task, note=given.note)
    return as_json(row)


@router.delete(
    "/inspections/{id}/mark", response_model=schemas.Inspection, responses=can_fail(*WITH_BODY, 404, 422)
)
def unmark(id: Id, service: Serving, who: Inspector) -> Any:
    """Takes that back."""
    return as_json(service.station.inspections.mark(id, None))


def _tagged(content: bytes, *drawn: object) -> dict[str, str]:
    """Headers by which an answer is known again: of what was kept, how it is drawn, and who draws."""
    digest = hashlib.sha256(content)
    digest.update(repr((__version__, *drawn)).encode())
    return {"Cache-Control": ANEW, "ETag": f'"{digest.hexdigest()[:32]}"'}


def _is_held(headers: dict[str, str], held: str | None) -> bool:
    tags = [tag.strip().removeprefix("W/") for tag in (held or "").split(",")]
    return headers["ETag"] in tags or tags == ["*"]


def _seconds(moment: datetime | None) -> float | None:
    if moment is None:
        return None
    return (moment if moment.tzinfo else moment.replace(tzinfo=timezone.utc)).timestamp()


def _encoded(pieces: Iterator[str]) -> Iterator[bytes]:
    for piece in pieces:
        yield piece.encode("utf-8", "replace")
