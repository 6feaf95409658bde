"""Every option of the method, each default written once.

A part is left out by passing None in its place and changed by passing another object:
`FlowConfig(dia=None)`, `FlowConfig(lora=Lora(rank=64))`. All of it travels as plain JSON.
"""

from __future__ import annotations

import dataclasses
import math
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Integral, Real
from typing import Any, Literal, TypeVar

from .errors import ConfigError, MoleFlowError

C = TypeVar("C")

BITS = (4, 8, 16)  # that numbers can be kept in


@dataclass(frozen=True)
class Whitening:
    """Learned scale and shift per channel after normalisation, bounded so that they stay a correction."""

    scale_limit: float = 2.0  # gamma in [1/limit, limit]
    shift_limit: float = 2.0  # beta in [-limit, limit]

    def __post_init__(self) -> None:
        check(self, positive=("scale_limit", "shift_limit"))


@dataclass(frozen=True)
class Mixer:
    """Learned spatial 3x3 mixing of each channel, invertible by construction.

    The symmetric kernel has three weights a channel, each bounded by a twelfth; the full one has nine, free
    but for a bound on their sum."""

    kernel: Literal["symmetric", "full"] = "symmetric"  # full: the published one, all nine weights
    gate_limit: float = 0.5  # how much of a patch its neighbourhood may replace at most

    def __post_init__(self) -> None:
        check(self, positive=("gate_limit",))
        _check_choice(self, "kernel", ("symmetric", "full"))
        most = 0.5 if self.kernel == "full" else 1  # beyond it the map may lose its inverse
        if self.gate_limit > most:
            raise ConfigError(f"Mixer.gate_limit: expected at most {most}, got {self.gate_limit}")


@dataclass(frozen=True)
class Context:
    """Neighbourhood seen by the scale nets: a depthwise kernel x kernel convolution times a learned gate."""

    kernel: int = 5
    gate: float = 0.1  # starting value

    def __post_init__(self) -> None:
        check(self, positive=("kernel",))
        if self.kernel % 2 == 0:
            raise ConfigError(f"Context.kernel: expected an odd side, got {self.kernel}")


@dataclass(frozen=True)
class Lora:
    """Low-rank change of every linear map of the base: (alpha / rank) B A."""

    rank: int = 16
    alpha: float = 16.0

    def __post_init__(self) -> None:
        check(self, positive=("rank", "alpha"))


@dataclass(frozen=True)
class Dia:
    """Deep invertible adapter: affine coupling blocks a product owns alone."""

    blocks: int = 2
    hidden: int = 64

    def __post_init__(self) -> None:
        check(self, positive=("hidden",), least_zero=("blocks",))


@dataclass(frozen=True)
class Cells:
    """One Gaussian per cell of a coarse grid, on features as they are."""

    side: int = 8  # cells per side
    rank: int = 16  # directions kept of each covariance
    mean_side: int = 16  # resolution of the mean
    ridge: float = 0.3  # noise variance as a share of the average variance per channel
    bits: int = 4  # a number of the directions is kept in; of the mean at least 8

    def __post_init__(self) -> None:
        check(self, positive=("side", "rank", "mean_side", "ridge"))
        _check_choice(self, "bits", BITS)


@dataclass(frozen=True)
class FlowConfig:
    """Shape of the density: what is shared (couplings, mixer) and what a product owns.

    It begins with a product's cells: mean by place and whitening by cell in closed form, so that an expert
    that has learned nothing is a Gaussian for every cell. What is learned sees where a patch lies and starts
    at the identity. Without cells it begins with normalised features, the place added to them, in the spread
    of each channel.
    """

    cells: Cells | None = field(default_factory=Cells)
    normalisation: Literal["layer", "sphere", "none"] = "none"  # sphere: in what layer leaves free
    statistics: bool = False  # start from the product's own mean and spread per channel
    position: float = 1.0  # amplitude of the 2-D sinusoidal encoding; 0 leaves it out
    whitening: Whitening | None = field(default_factory=Whitening)
    mixer: Mixer | None = field(default_factory=Mixer)
    couplings: int = 2
    hidden: int = 64
    clamp: float = 1.9
    context: Context | None = field(default_factory=Context)
    lora: Lora | None = field(default_factory=Lora)
    dia: Dia | None = field(default_factory=Dia)
    bits: int = 4  # a number of a product's own weights is kept in

    def __post_init__(self) -> None:
        check(self, positive=("hidden", "clamp"), least_zero=("position", "couplings"))
        _check_choice(self, "bits", BITS)
        _check_choice(self, "normalisation", ("layer", "sphere", "none"))
        if self.cells is not None and (self.normalisation != "none" or self.statistics):
            raise ConfigError(
                "FlowConfig: cells are the start, of features as they are; expected normalisation 'none' and "
                f"no statistics with them, got {self.normalisation!r} and {self.statistics}"
            )


@dataclass(frozen=True)
class Coreset:
    """A few remembered patches beside the density: distance from the nearest, of normalised patches."""

    patches: int = 1_800  # kept
    candidates: int = 60_000  # patches drawn at random to select them from
    weight: float = 1.0  # of these distances in the map, against that of the densities together
    bits: int = 4  # a number is kept in
    rank: int | None = 64  # axes that patches are kept along; None: every channel
    # Channels of the layers that are brought to one length each; (): patches are normalised as a whole; None:
    # those of the backbone, which a line writes down when it begins.
    layers: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        check(self, positive=("patches", "candidates", "weight", "rank"))
        _check_choice(self, "bits", (4, 8))
        if self.layers is None:
            return
        widths = tuple(self.layers) if isinstance(self.layers, list | tuple) else (None,)
        if not all(type(width) is int and width > 0 for width in widths):
            raise ConfigError(f"Coreset.layers: expected whole numbers of channels, got {self.layers!r}")
        object.__setattr__(self, "layers", widths)

    @property
    def compared(self) -> tuple[int, ...]:
        """The layers, none where patches are normalised as a whole. Raises ConfigError where nobody said."""
        if self.layers is None:
            raise ConfigError("Coreset.layers: expected those of a backbone (`with_layers`), got None")
        return self.layers


@dataclass(frozen=True)
class Whole:
    """Density of the picture as a whole, on pooled features of all stages."""

    rank: int = 24  # directions kept of its covariance
    bits: int = 4  # a number of the directions is kept in

    def __post_init__(self) -> None:
        check(self, positive=("rank",))
        _check_choice(self, "bits", BITS)


@dataclass(frozen=True)
class TrainingConfig:
    """How a flow learns from cached features."""

    base: Literal["auto", "learn"] = "auto"  # the library's own where it has one; learn: of the first product
    steps: int = 200
    base_steps: int = 200
    patches: int = 1024  # per step
    window: int = 4  # side of the patch windows a step looks at
    margin: int = 0  # patches around a window that its own look at and the loss does not count
    learning_rate: float = 2e-3
    tail_weight: float = 0.7  # lambda: share of the loss given to the hardest patches
    tail_share: float = 0.05  # rho: which share of the patches is the tail
    tail: Literal["step", "image"] = "step"  # of all patches of a step together, or of each window's own
    log_det_weight: float = 1e-4
    log_det_of: Literal["chain", "flow"] = "chain"  # flow: of couplings and DIA, nothing else
    noise: float = 1.0  # standard deviation added to what the flow begins with
    clip: float = 5.0  # largest gradient norm of a step
    early_stop: bool = True  # back to where left-out good images had the least loss

    def __post_init__(self) -> None:
        check(
            self,
            positive=("steps", "base_steps", "patches", "window", "learning_rate", "clip"),
            least_zero=("margin", "tail_weight", "log_det_weight", "noise"),
            share=("tail_share",),
        )
        _check_choice(self, "base", ("auto", "learn"))
        _check_choice(self, "tail", ("step", "image"))
        _check_choice(self, "log_det_of", ("chain", "flow"))
        if self.tail_weight > 1:
            raise ConfigError(f"TrainingConfig.tail_weight: expected at most 1, got {self.tail_weight}")


@dataclass(frozen=True)
class ScoringConfig:
    """From patch scores to a map, a score and a verdict."""

    cells: Cells | None = None  # a density of their own beside a flow that does not begin with them
    coreset: Coreset | None = field(default_factory=Coreset)
    whole: Whole | None = field(default_factory=Whole)
    flow_weight: float = 0.5  # of the flow against the cells; 0 leaves the flow out of the map
    position_calibration: bool = True
    smoothing: float = 0.5  # Gaussian sigma in patches, of map and score alike
    top_share: float = 0.01  # share of the patches whose mean is the map's score
    top_least: int = 3
    blocks: int = 8  # of images that belong together, left out in turn to calibrate
    single_up_to: int = 32  # with no more images each is a block of its own
    holdout: float = 0.15  # of the bench's rivals: share of the good images kept for calibration
    holdout_least: int = 15
    cross_fit_below: int = 40  # with fewer images every image calibrates in turn
    folds: int = 3

    def __post_init__(self) -> None:
        check(
            self,
            positive=("top_least", "blocks", "single_up_to", "holdout_least", "cross_fit_below", "folds"),
            least_zero=("flow_weight", "smoothing"),
            share=("top_share", "holdout"),
        )


@dataclass(frozen=True)
class RouterConfig:
    """How a product is recognised."""

    metric: Literal["shared", "product"] = "shared"  # "product" is the deck's own covariance per product
    rank: int = 48  # directions kept of a product's descriptor covariance
    false_rejection_rate: float = (
        0.01  # of good images: called unknown with few to learn from, beyond a distance
    )
    least_distance: float = 2.0  # in typical ones: no product's limit is nearer

    def __post_init__(self) -> None:
        check(self, positive=("rank", "least_distance"), share=("false_rejection_rate",))
        _check_choice(self, "metric", ("shared", "product"))


@dataclass(frozen=True)
class LineConfig:
    """All options of a line; stored with it and fixed from its first product on."""

    flow: FlowConfig = field(default_factory=FlowConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    scoring: ScoringConfig = field(default_factory=ScoringConfig)
    router: RouterConfig = field(default_factory=RouterConfig)

    def __post_init__(self) -> None:
        if self.flow.cells is not None and self.scoring.cells is not None:
            raise ConfigError(
                "LineConfig: the flow begins with cells, so scoring.cells would say the same again; "
                "expected one of flow.cells and scoring.cells to be left out"
            )


def a_number(value: Any, what: str, error: type[MoleFlowError] = ConfigError) -> float:
    """A finite number that somebody passed; anything else raises `error`, which names `what` it should be."""
    real = isinstance(value, Real) and not isinstance(value, bool)
    if not real or not math.isfinite(value):
        raise error(f"{what} is a finite number, got {value!r}")
    return float(value)


def a_seed(value: Any) -> int:
    """A seed that somebody passed. Raises ConfigError for what is none."""
    if isinstance(value, bool) or not isinstance(value, Integral) or not -(2**63) <= int(value) < 2**63:
        raise ConfigError(f"expected a whole number of 64 bits as seed, got {value!r}")
    return int(value)


def check(
    config: Any,
    *,
    positive: tuple[str, ...] = (),
    least_zero: tuple[str, ...] = (),
    share: tuple[str, ...] = (),
) -> None:
    """Refuses values outside of their range, and parts of a number where the field's type is int.

    None passes where the field's type allows it.
    """
    kinds = {f.name: str(f.type).split(" | ") for f in dataclasses.fields(config)}
    whole = tuple(name for name, kind in kinds.items() if kind in (["int"], ["int", "None"]))
    for names, fits, wanted in (
        (whole, lambda v: isinstance(v, int), "a whole number"),
        (positive, lambda v: v > 0, "a number above 0"),
        (least_zero, lambda v: v >= 0, "a number of at least 0"),
        (share, lambda v: 0 < v <= 1, "a share above 0 and at most 1"),
    ):
        for name in names:
            value = getattr(config, name)
            if value is None and "None" in kinds[name]:
                continue
            if isinstance(value, bool) or not isinstance(value, int | float) or not fits(value):
                raise ConfigError(f"{type(config).__name__}.{name}: expected {wanted}, got {value!r}")


def _check_choice(config: Any, name: str, choices: tuple[str | int, ...]) -> None:
    value = getattr(config, name)
    if value not in choices:
        raise ConfigError(
            f"{type(config).__name__}.{name}: expected one of {', '.join(map(str, choices))}, got {value!r}"
        )


def stored_line(values: dict[str, Any]) -> LineConfig:
    """The options of a saved line. Those of older lines go on as they were."""
    flow = {"cells": None, "bits": 16, **values["flow"]}
    scoring = dict(values["scoring"])
    if scoring.get("cells") is not None:
        scoring["cells"] = {"bits": 16, **scoring["cells"]}
    if scoring.get("whole") is not None:
        scoring["whole"] = {"bits": 16, **scoring["whole"]}
    if scoring.get("coreset") is not None:
        scoring["coreset"] = {"bits": 8, "layers": (), "rank": None, **scoring["coreset"]}
    training = {"early_stop": False, "base": "learn", **values["training"]}
    return from_dict(LineConfig, {**values, "flow": flow, "training": training, "scoring": scoring})


def with_layers(config: LineConfig, widths: Sequence[int]) -> LineConfig:
    """The same with a coreset that compares layers of these widths, unless it says which."""
    coreset = config.scoring.coreset
    if coreset is None or coreset.layers is not None:
        return config
    return override(config, {"scoring.coreset.layers": tuple(widths)})


def to_dict(config: Any) -> dict[str, Any]:
    """A config as plain JSON-able dicts."""
    return dataclasses.asdict(config)


def from_dict(kind: type[C], values: dict[str, Any]) -> C:
    """The config `kind` from the dicts of `to_dict`; an unknown key is a `ConfigError`."""
    if not isinstance(values, dict):
        raise ConfigError(f"{kind.__name__}: expected a table of options, got {values!r}")
    hints = typing.get_type_hints(kind)
    names = {f.name for f in dataclasses.fields(kind)}  # type: ignore[arg-type]
    unknown = sorted(str(key) for key in set(values) - names)
    if unknown:
        raise ConfigError(
            f"{kind.__name__}: unknown option {unknown[0]!r}; known are {', '.join(sorted(names))}"
        )
    return kind(**{name: _value(hints[name], value) for name, value in values.items()})


def _value(hint: Any, value: Any) -> Any:
    """Builds nested configs where the annotation says so; leaves plain values as they are."""
    kinds = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    for kind in kinds:
        if not dataclasses.is_dataclass(kind):
            continue
        if isinstance(value, dict):
            return from_dict(kind, value)  # type: ignore[arg-type]
        if value is not None or types.NoneType not in kinds:
            raise ConfigError(f"{kind.__name__}: expected a table of options, got {value!r}")  # type: ignore[union-attr]
    return value


def override(config: C, values: Mapping[str, Any]) -> C:
    """The config with some options changed, named by dotted paths such as "flow.lora.rank".

    A part that was left out cannot be given an option; `None` leaves a part out, and a table puts one in.
    Raises ConfigError for an unknown or impossible option.
    """
    table = to_dict(config)
    for name, value in values.items():
        *path, last = name.split(".")
        inside = table
        for step in path:
            inside = inside.get(step) if isinstance(inside, dict) else None  # type: ignore[assignment]
        if not isinstance(inside, dict) or last not in inside:
            raise ConfigError(f"no option {name!r} in {type(config).__name__}, or it is part of one left out")
        inside[last] = value
    return from_dict(type(config), table)
