"""What routes take and give, as the OpenAPI document tells it."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

MOST_PHOTOGRAPHS = 1_000_000  # far more than a lesson takes; within what JSON says exactly
BYTES = "Of all its numbers in the saved line, file headers apart."
Share = Annotated[float, Field(ge=1e-9, le=0.999, allow_inf_nan=False)]  # a threshold of it is finite
Name = Annotated[str, Field(min_length=1, max_length=80, pattern=r"^[^\x00]*$")]
Text = Annotated[str, Field(max_length=2000, pattern=r"^[^\x00]*$")]
Index = Annotated[int, Field(ge=0, le=MOST_PHOTOGRAPHS)]
Status = Literal["good", "defective", "unknown", "drifting"]
MarkKind = Literal["false_alarm", "missed", "wrong_product"]
Version = Annotated[str, Field(pattern=r"^[0-9]{4,12}$", examples=["0001"])]
JobKind = Literal["teach", "update"]
JobState = Literal["queued", "learning", "review", "live", "cancelled", "failed", "interrupted"]


class Given(BaseModel):
    """What is sent to a station: a key nobody knows is an error."""

    model_config = ConfigDict(extra="forbid")


class Error(BaseModel):
    """What went wrong."""

    code: str = Field(description="A word for programs.", examples=["not_found"])
    message: str = Field(description="One sentence for people.", examples=["there is no inspection 7"])


class ErrorBody(BaseModel):
    """Of every status but success."""

    error: Error


class Me(BaseModel):
    """Who asks."""

    role: Literal["inspect", "teach", "admin"]
    open: bool = Field(description="Nobody needs a token.")
    version: str = Field(examples=["0.1.0"])


class ProductBrief(BaseModel):
    """A product in a few numbers; of a quarantined or exported one only what is known."""

    name: str = Field(examples=["bottle"])
    version: str | None = Field(examples=["0001"])
    images: int | None
    threshold: float | None
    false_alarm_rate: float | None = Field(description="null where the threshold was set by hand.")
    bytes: int | None = Field(description=BYTES)
    seconds: float | None = Field(description="That it took to learn.")
    quarantined: bool
    reason: str | None = Field(description="Why it is quarantined.")


class LimitsTold(BaseModel):
    """What a request may bring."""

    images: int
    bytes: int
    pixels: int
    lesson_images: int
    lesson_bytes: int


class LineTold(BaseModel):
    """The line."""

    name: str = Field(examples=["line-3"])
    products: list[ProductBrief]
    image_size: list[int] | None = Field(description="[h, w] that images are brought to.")
    learning: bool = Field(description="Whether this machine can teach.")
    disk_free_bytes: int
    problem: str | None = Field(description="Why the line's folder cannot be read; the old state goes on.")
    limits: LimitsTold


class Mark(BaseModel):
    """What a person said of an inspection."""

    kind: MarkKind
    task: str | None
    note: str
    time: str


class Certainty(BaseModel):
    """How sure it is which product an image shows."""

    margin: float | None
    distance: float
    distance_limit: float | None


class Inspection(BaseModel):
    """An inspected image."""

    id: int | None = Field(description="null where the full disk left no room to record it.", examples=[17])
    recorded: bool
    time: str = Field(examples=["2030-01-31T08:15:00.000Z"])
    source: str = Field(examples=["belt-0017.png"])
    sha256: str
    task: str = Field(examples=["bottle"])
    version: str | None
    status: Status
    known: bool
    pred_score: float
    p_value: float
    threshold: float
    reason: str
    place_score: float
    whole_score: float | None
    map_threshold: float
    image_size: list[int]
    certainty: Certainty | None
    regions: list[dict[str, Any]]
    latency_ms: float
    mark: Mark | None


class Refused(BaseModel):
    """An image of which nothing can be said."""

    source: str
    error: Error


class Results(BaseModel):
    """In the order of the images."""

    results: list[Inspection | Refused]


class InspectionPage(BaseModel):
    """The newest first."""

    items: list[Inspection]
    next: int | None = Field(
        description="Pass it as `before` for the next page. Of a text there may be more behind a page with "
        "less than was asked for: it is looked for among 100,000 numbers at once."
    )


class MarkGiven(Given):
    """What a person says of an inspection."""

    kind: MarkKind
    task: Name | None = Field(None, description="The right product, where it was taken for another.")
    note: Text = ""


class Stop(BaseModel):
    """A colour of the scale."""

    at: float
    colour: str = Field(examples=["#140b46"])


class ScaleTold(BaseModel):
    """The colours of all maps."""

    stops: list[Stop]
    meaning: str


class VersionTold(BaseModel):
    """A version of a product that is on disk."""

    version: str
    current: bool


class CurvePoint(BaseModel):
    """Which score goes with which rate."""

    false_alarm_rate: float
    threshold: float


class ProductDetail(BaseModel):
    """A product in full."""

    name: str
    version: str | None
    images: int | None
    threshold: float | None
    false_alarm_rate: float | None
    bytes: int | None = Field(description=BYTES)
    quarantined: bool
    reason: str | None
    calibration: str | None
    calibration_images: int | None
    parts: dict[str, int]
    seconds: dict[str, float]
    versions: list[VersionTold]
    promise: str
    suspects: int
    curve: list[CurvePoint]
    recent: dict[Status, int]


class Past(BaseModel):
    """How verdicts of the past would be."""

    inspections: int
    to_good: int
    to_defective: int


class Preview(BaseModel):
    """What a false-alarm rate would mean."""

    threshold: float
    promise: str
    past: Past


class ThresholdGiven(Given):
    """Exactly one of the two, and the version of the product for which it is meant."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={
            "oneOf": [
                {"required": ["false_alarm_rate"], "properties": {"false_alarm_rate": {"type": "number"}}},
                {"required": ["threshold"], "properties": {"threshold": {"type": "number"}}},
            ],
            "examples": [{"false_alarm_rate": 0.01, "version": "0001"}],
        },
    )

    false_alarm_rate: Share | None = None
    threshold: Annotated[float, Field(ge=-1e9, le=1e9, allow_inf_nan=False)] | None = None
    version: Version | None = Field(
        None, description="Whose scores were looked at; refused where another one is in use by now."
    )


class VersionGiven(Given):
    """Which version to use."""

    version: Version


class Point(BaseModel):
    """One image."""

    time: str
    value: float


class Series(BaseModel):
    """One channel over time; between low and high it is as taught."""

    channel: str
    what: str
    points: list[Point]
    low: float
    high: float


class DriftTold(BaseModel):
    """Whether good images move away from those taught."""

    state: Literal["steady", "moving", "moved", "unwatched"]
    sentences: list[str]
    series: list[Series]


class SuspectTold(BaseModel):
    """A photograph that may not belong among the good ones, with the reason to look at it."""

    index: int
    source: str
    reason: str


class Flips(BaseModel):
    """Numbers of past inspections whose verdict the draft would turn."""

    inspections: int
    to_good: list[int]
    to_defective: list[int]


class Review(BaseModel):
    """What to look at before a lesson goes live."""

    suspects: list[SuspectTold]
    swallowed: list[SuspectTold] = Field(
        [], description="Those that the version in use does not call good, and the update learned as good."
    )
    unreadable: list[str]
    promise: str
    threshold: float
    false_alarm_rate: float | None = Field(description="null where the threshold was set by hand.")
    bytes: int
    flips: Flips


class JobTold(BaseModel):
    """A lesson."""

    id: int
    kind: JobKind
    name: str
    state: JobState
    stage: str = Field(examples=["learning"])
    progress: float = Field(ge=0, le=1)
    seconds_left: float | None
    images: int
    dropped: list[int]
    unreadable: list[int] = Field(description="Photographs for which a lesson failed.")
    error: str | None
    created: str
    finished: str | None
    review: Review | None


class DropGiven(Given):
    """Photographs to leave out; with any, a lesson in review is learned again and comes back to it."""

    drop: Annotated[list[Index], Field(max_length=10_000)] = []


class ChangeTold(BaseModel):
    """A change of the line."""

    id: int
    time: str
    role: str
    fingerprint: str
    address: str
    action: str
    product: str | None
    detail: dict[str, Any]
    outcome: str


class ChangePage(BaseModel):
    """The newest first."""

    items: list[ChangeTold]
    next: int | None


class Health(BaseModel):
    """Of the service."""

    status: Literal["live", "ready"]
