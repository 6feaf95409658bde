"""Routes: lessons, from photographs to a product that is live."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractContextManager, ExitStack, asynccontextmanager
from pathlib import Path as FilePath
from typing import Annotated, Any, TypeVar

from anyio import CancelScope, to_thread
from fastapi import APIRouter, Path, Query, Request
from fastapi.responses import Response

from ..history.audit import change_as_json
from ..history.inspections import MOST_ID
from ..problems import Malformed, Unusable
from ..service import Station
from . import schemas
from .parts import WITH_BODY, Admin, Inspector, Serving, Teacher, can_fail
from .uploads import WRITING, Bounds, Form, length_of, read_form

T = TypeVar("T")

router = APIRouter(prefix="/api/v1", tags=["lessons"])

Id = Annotated[int, Path(ge=1, le=MOST_ID, examples=[1])]
FIELDS = {"kind", "name", "inspections"}
MOST_NUMBERS = 1000
FORM = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "additionalProperties": False,
                    "required": ["kind", "name"],
                    "properties": {
                        "kind": {"type": "string", "enum": ["teach", "update"]},
                        "name": {
                            "type": "string",
                            "minLength": 1,
                            "maxLength": 80,
                            "description": "Of the product: what may name a folder on any system.",
                            "example": "bottle",
                        },
                        "images": {
                            "type": "array",
                            "items": {"type": "string", "format": "binary"},
                            "description": "Photographs of good ones.",
                        },
                        "inspections": {
                            "type": "string",
                            "description": "Inspections whose kept pictures are good ones, with commas.",
                            "example": "17,23",
                        },
                    },
                }
            }
        },
    }
}


@router.post(
    "/jobs",
    response_model=schemas.JobTold,
    status_code=202,
    responses=can_fail(*WITH_BODY, 404, 409, 415, 422),
    openapi_extra=FORM,
)
async def begin(request: Request, service: Serving, who: Teacher) -> Any:
    """Begins a lesson: a new product, or more of a known one. Nothing goes live before it is accepted."""
    station = service.station
    limits = station.settings.limits
    coming = station.lessons.arriving(length_of(request))
    async with _in_threads(coming) as arriving, _in_threads(ExitStack()) as files:

        def sink(index: int) -> Any:
            files.close()  # of a thousand photographs one is open at a time
            return files.enter_context(open(arriving.folder / f"{index:05d}", "wb"))

        bounds = Bounds(limits.lesson_images, limits.lesson_bytes, limits.bytes)
        form = await read_form(
            request, bounds, file_field="images", sink=sink, count=arriving.count, to_disk=True
        )
        await to_thread.run_sync(files.close, limiter=WRITING)
        job = await to_thread.run_sync(_begun, station, who, form, arriving.folder)
    return station.lessons.as_json(job)


@asynccontextmanager
async def _in_threads(held: AbstractContextManager[T]) -> AsyncIterator[T]:
    """A context that makes or deletes files: it is entered and left where nobody waits for the disk."""
    value = await to_thread.run_sync(held.__enter__, limiter=WRITING)
    try:
        yield value
    finally:
        with CancelScope(shield=True):  # also where the sender left
            await to_thread.run_sync(held.__exit__, None, None, None, limiter=WRITING)


def _begun(station: Station, who: Any, form: Form, folder: FilePath) -> Any:
    unknown = form.fields.keys() - FIELDS
    if unknown:
        raise Malformed(f"expected the fields {', '.join(sorted(FIELDS))}, got {min(unknown)[:40]!r}")
    photos = [(called, FilePath(str(file.name))) for called, file in form.files]
    numbers = _numbers(form.fields.get("inspections", ""))
    kind, name = form.fields.get("kind", ""), form.fields.get("name", "")
    return station.lessons.begin(who, kind, name, folder=folder, photos=photos, inspections=numbers)


def _numbers(text: str) -> Sequence[int]:
    words = [word.strip() for word in text.split(",") if word.strip()]
    if len(words) > MOST_NUMBERS or not all(word.isascii() and word.isdigit() for word in words):
        raise Unusable("inspections: expected numbers with commas between them")
    return list(dict.fromkeys(min(int(word[:20]), MOST_ID) for word in words))


@router.get("/jobs", response_model=list[schemas.JobTold], responses=can_fail())
def list_(service: Serving, who: Inspector) -> Any:
    """Lessons, the newest first."""
    lessons = service.station.lessons
    return [lessons.as_json(job) for job in lessons.jobs.recent()]


@router.get("/jobs/{id}", response_model=schemas.JobTold, responses=can_fail(404, 422))
def get(id: Id, service: Serving, who: Inspector) -> Any:
    """One lesson."""
    lessons = service.station.lessons
    return lessons.as_json(lessons.jobs.get(id))


@router.get(
    "/jobs/{id}/images/{index}",
    response_class=Response,
    responses=can_fail(404, 415, 422) | {200: {"content": {"image/jpeg": {}}}},
)
def photo(
    id: Id,
    index: Annotated[int, Path(ge=0, le=MOST_ID)],
    service: Serving,
    who: Inspector,
    side: Annotated[int, Query(ge=16, le=2048)] = 512,
) -> Response:
    """A photograph of a lesson as JPEG."""
    file = service.station.lessons.teaching.photo(id, index)
    return Response(service.station.reduced(file, side), media_type="image/jpeg")


@router.post(
    "/jobs/{id}/accept", response_model=schemas.JobTold, responses=can_fail(*WITH_BODY, 404, 409, 422)
)
def accept(id: Id, service: Serving, who: Teacher, given: schemas.DropGiven | None = None) -> Any:
    """Puts what was learned on the line; with `drop` it is learned again without those photographs."""
    lessons = service.station.lessons
    return lessons.as_json(lessons.accept(who, id, given.drop if given else ()))


@router.post(
    "/jobs/{id}/cancel", response_model=schemas.JobTold, responses=can_fail(*WITH_BODY, 404, 409, 422)
)
def cancel(id: Id, service: Serving, who: Teacher) -> Any:
    """Ends a lesson."""
    lessons = service.station.lessons
    return lessons.as_json(lessons.teaching.cancel(id))


@router.post(
    "/jobs/{id}/resume", response_model=schemas.JobTold, responses=can_fail(*WITH_BODY, 404, 409, 422)
)
def resume(id: Id, service: Serving, who: Teacher, given: schemas.DropGiven | None = None) -> Any:
    """Learns again what was cancelled, failed or interrupted; with `drop` without those photographs."""
    lessons = service.station.lessons
    return lessons.as_json(lessons.resume(id, given.drop if given else ()))


@router.get("/audit", response_model=schemas.ChangePage, responses=can_fail(422), tags=["audit"])
def audit(
    service: Serving,
    who: Admin,
    before: Annotated[int | None, Query(ge=1, le=MOST_ID)] = None,
    limit: Annotated[int, Query(ge=1, le=500)] = 50,
) -> Any:
    """Every change of the line, the newest first."""
    rows, more = service.station.audit.page(before=before, limit=limit)
    return {"items": [change_as_json(row) for row in rows], "next": more}
