"""Facts of a picture that say under which conditions it was taken, and what good images taught about them.

Numbers only, no networks. A defect covers part of a picture; light, sharpness and what even ordinary places
look like belong to the whole of it, so that these tell a camera that moved from a part that is bad.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy.special import ndtri

from .calibration import student_limit

IMAGE_RATE = 0.001  # share of good images, taken as those taught, that exceed any limit
FINDING_RATE = 0.01  # the same where it only matters of images that alarm anyway
BLOCKS = 8  # into which good images in file order are parted, where nobody says which belong together
LEAST_BLOCK = 4  # images of such a block
LEAST_TAUGHT = 4  # good images below which nothing is said
EXTREMES = 3  # lowest and highest values that are kept
BEYOND_TAUGHT = (
    2.0  # times as far from the typical good image as the second most extreme one: tails are not normal
)
TAILS = 8.0  # facts of single images are at best as tame as Student's t of so many degrees of freedom
INNER = (0.05, 0.95)  # the quantiles a spread is taken from: a few odd images among the good do not set it
INNER_WORTH = 0.65  # of a standard deviation's statistical efficiency
PRIOR_BETWEEN, PRIOR_WORTH = 0.5, 4  # sessions differ by half a spread, believed as if seen in so many blocks
SMALL = 48  # pixels of the shorter side of the picture that colour and pose are taken from
LUMA = np.array([0.299, 0.587, 0.114])
EDGE = 2.0  # mean edges: the most that a single one counts for
NO_EDGE = 0.005  # of the mean grey: what all of the picture counts for
DIGITS = 5  # of what is kept


@dataclass(frozen=True)
class Facts:
    """One picture in a few numbers.

    Attributes:
        light: mean grey level, 0 to 255.
        contrast: standard deviation of grey as a share of `light`; more or less light leaves it alone.
        sharpness: strength of fine detail as a share of all there is; more or less light leaves it alone.
        clipped: share of pixels beyond the line's intensity, 0 to 1.
        aspect: width to height of the image as it came.
        warmth, tint: mean red to mean blue, and mean green to the geometric mean of both: 1 of a grey
            picture, and more or less light leaves them alone.
        across, down: centre of what is drawn in the picture, its edges, as shares of width and height.
        extent: how far edges lie from their centre, in the same shares.
        turn: how the edges as a whole lie, 1 along the diagonal that falls to the right, -1 along the other.
        lean: the same of the direction of each edge.
        place: how strange even its ordinary places are, in spreads of good patches; None where not known.
        whole: how strange the picture as a whole is; None where not known.
    """

    light: float
    contrast: float
    sharpness: float
    clipped: float = 0.0
    aspect: float = 1.0
    warmth: float | None = None
    tint: float | None = None
    across: float | None = None
    down: float | None = None
    extent: float | None = None
    turn: float | None = None
    lean: float | None = None
    place: float | None = None
    whole: float | None = None

    def to_dict(self) -> dict[str, float | None]:
        """Plain JSON-able values."""
        return dataclasses.asdict(self)


def facts_of(
    pixels: NDArray[np.uint8], *, clipped: float = 0.0, size: tuple[int, int] | None = None
) -> Facts:
    """What pixels alone say.

    Args:
        pixels: (h, w, 3) RGB at the line's size.
        clipped: share of pixels beyond the line's intensity.
        size: (H, W) of the image as it came; that of `pixels` by default.
    """
    height, width = size or pixels.shape[:2]
    picture = Image.fromarray(pixels)
    grey = np.asarray(picture.convert("L"))
    small = np.asarray(picture.reduce(max(1, min(pixels.shape[:2]) // SMALL)), np.float64)
    wide = grey.astype(np.float32)
    light, variance = float(wide.mean()), float(wide.var())
    return Facts(
        light=light,
        contrast=math.sqrt(variance) / max(light, 1.0),
        sharpness=math.sqrt(_fine_detail(grey) / (variance + 1.0)),  # + a grey level's worth of noise
        clipped=float(clipped),
        aspect=width / height,
        **_cast(small),
        **_pose(small @ LUMA),
    )


def _cast(small: NDArray[np.float64]) -> dict[str, float]:
    """`warmth` and `tint` of a small RGB picture."""
    red, green, blue = (small.reshape(-1, 3).mean(0) + 1.0).tolist()  # so that black is grey
    return {"warmth": red / blue, "tint": green / math.sqrt(red * blue)}


def _pose(grey: NDArray[np.float64]) -> dict[str, float]:
    """Moments of where edges are, and their direction as the structure tensor has it (Bigun 1987).

    No edge counts for more than `EDGE` mean ones, and all of the picture for a little: a scratch on a plain
    part must not look like a part that lies elsewhere.
    """
    if min(grey.shape) < 3:
        return {}
    down = grey[2:, 1:-1] - grey[:-2, 1:-1]
    right = grey[1:-1, 2:] - grey[1:-1, :-2]
    strength = np.hypot(down, right)
    nothing = NO_EDGE * max(float(grey.mean()), 1.0)
    weight = np.minimum(strength, EDGE * strength.mean()) + nothing
    weight /= weight.sum()
    y, x = ((np.arange(1, side - 1) + 0.5) / side for side in grey.shape)
    rows, columns = weight.sum(1), weight.sum(0)
    across, below = float(columns @ x), float(rows @ y)
    x, y = x - across, y - below
    spread = float(columns @ x**2 + rows @ y**2)
    slopes = down * right / (strength**2 + nothing**2)
    return {
        "across": across,
        "down": below,
        "extent": math.sqrt(spread),
        "turn": 2 * float(y @ weight @ x) / spread,
        "lean": 2 * float((weight * slopes).sum()),
    }


def _fine_detail(grey: NDArray[np.uint8]) -> float:
    """Mean square of the Laplacian, in grey levels squared."""
    if min(grey.shape) < 3:
        return 0.0
    levels = grey.astype(np.int16)  # holds four times 255, and is six times as fast as floats
    around = levels[:-2, 1:-1] + levels[2:, 1:-1]
    around += levels[1:-1, :-2]
    around += levels[1:-1, 2:]
    around -= levels[1:-1, 1:-1] << 2
    flat = around.astype(np.float32).ravel()
    return float(flat @ flat) / flat.size


@dataclass(frozen=True)
class Channel:
    """How a fact is compared and spoken of.

    Attributes:
        name: of the fact.
        floor: least believable spread, on the scale of comparison: what a sensor does by itself.
        what: the quantity in words; form: how its values are written.
        lower, higher: what a picture is that has too little or too much of it; None: no concern.
        least: values are compared by their logarithm from this one up; None: as they are.
    """

    name: str
    floor: float
    what: str
    form: str
    lower: str | None
    higher: str | None
    least: float | None = None

    def scaled(self, value: float) -> float:
        """A value on the scale of comparison."""
        return value if self.least is None else math.log(max(value, self.least))

    def shown(self, value: float) -> str:
        """A value as it is written."""
        return format(value, self.form)


CHANNELS = {
    channel.name: channel
    for channel in (
        Channel("light", 1.0, "mean grey", ".0f", "darker", "brighter"),
        Channel("contrast", 0.02, "contrast", ".2f", "flatter", "harder in contrast", 0.01),
        Channel("sharpness", 0.03, "sharpness", ".2f", "less sharp", "sharper or noisier", 0.01),
        Channel("clipped", 0.002, "share beyond the line's intensity", ".1%", None, "more out of range"),
        Channel("aspect", 0.01, "width to height", ".2f", "narrower", "wider", 0.01),
        Channel("warmth", 0.01, "red to blue", ".2f", "colder in colour", "warmer in colour", 0.01),
        Channel("tint", 0.01, "green to red and blue", ".2f", "more purple", "greener", 0.01),
        Channel("across", 0.004, "middle of the edges", ".2f", "farther left", "farther right"),
        Channel("down", 0.004, "middle of the edges", ".2f", "higher up", "lower down"),
        Channel("extent", 0.004, "reach of the edges", ".2f", "smaller", "larger"),
        Channel("turn", 0.01, "lie of the whole", ".2f", "lying otherwise", "lying otherwise"),
        Channel("lean", 0.01, "lean of the edges", ".2f", "leaning otherwise", "leaning otherwise"),
        Channel("place", 0.05, "score of ordinary places", ".1f", None, "stranger in ordinary places"),
        Channel("whole", 0.05, "score of the whole", ".1f", None, "stranger as a whole"),
    )
}
"""By name, causes before effects."""

CONDITIONS = ("light", "contrast", "sharpness", "clipped", "warmth", "tint")
"""Channels that camera and lamp set: an image beyond the good ones in one of them may look like anything."""


@dataclass(frozen=True)
class Norm:
    """What good images taught about one fact, on its channel's scale of comparison.

    A new image lies about `centre` with the spread of its session (`between`) and its own (`within`).

    Attributes:
        centre: median of all.
        within, between: standard deviations; both have floors.
        count, blocks: images, and sessions or blocks they came in.
        low, high: the lowest and highest few values as they are, ascending.
    """

    centre: float
    within: float
    between: float
    count: int
    blocks: int
    low: tuple[float, ...]
    high: tuple[float, ...]

    @cached_property
    def spread(self) -> float:
        """Of a single new image."""
        return math.hypot(self.within, self.between)

    def spread_of_median(self, images: int) -> float:
        """Of the median of so many new images of one session, against the centre."""
        sampling = math.pi / 2 * self.within**2 * (1 / images + 1 / self.count)
        return math.sqrt(self.between**2 * (1 + 1 / self.blocks) + sampling)

    def limit(self, rate: float, *, images: int | None = None) -> float:
        """Spreads that a good image, or the median of so many, exceeds at `rate`, on either side.

        The spreads are themselves estimates from few images and fewer sessions: Student's t with
        Satterthwaite's degrees of freedom. Single images have heavier tails than medians, see `TAILS`.
        """
        if self.count < LEAST_TAUGHT:
            return math.inf
        share = 1.0 if images is None else math.pi / 2 / images
        own, session = share * self.within**2, self.between**2
        freedom = (own + session) ** 2 / (
            own**2 / (INNER_WORTH * (self.count - 1)) + session**2 / (PRIOR_WORTH + self.blocks - 1)
        )
        freedom = min(freedom, TAILS) if images is None else freedom
        return student_limit(rate / 2, freedom)

    @classmethod
    def fit(cls, channel: Channel, values: NDArray[np.float64], blocks: NDArray[np.int64]) -> Norm:
        """From the values of good images and the block each belongs to; at least one."""
        scaled = np.array([channel.scaled(value) for value in values])
        total = max(_spread(scaled), channel.floor)
        medians = np.array([np.median(scaled[blocks == block]) for block in np.unique(blocks)])
        between = _between(medians, total, len(scaled))
        ordered = sorted(rounded(value) for value in values)
        return cls(
            centre=rounded(float(np.median(scaled))),
            within=rounded(math.sqrt(max(total**2 - between**2, channel.floor**2))),
            between=rounded(between),
            count=len(scaled),
            blocks=len(medians),
            low=tuple(ordered[:EXTREMES]),
            high=tuple(ordered[-EXTREMES:]),
        )


def _spread(values: NDArray[np.float64]) -> float:
    """Standard deviation from the inner nine tenths, right on average for normal values of any number."""
    if len(values) < 2:
        return 0.0
    normal = ndtri((np.arange(1, len(values) + 1) - 0.375) / (len(values) + 0.25))
    low, high = np.quantile(values, INNER)
    expected = np.quantile(normal, INNER)
    return float((high - low) / (expected[1] - expected[0]))


def _between(medians: NDArray[np.float64], total: float, count: int) -> float:
    """Standard deviation of sessions: what blocks' medians vary by beyond chance, drawn towards the prior."""
    found = 0.0
    if len(medians) > 1:
        variance = float(medians.var(ddof=1))
        chance = math.pi / 2 * max(total**2 - variance, 0.0) * len(medians) / count
        found = max(variance - chance, 0.0)
    seen = len(medians) - 1
    prior = (PRIOR_BETWEEN * total) ** 2
    return math.sqrt((PRIOR_WORTH * prior + seen * found) / (PRIOR_WORTH + seen))


@dataclass(frozen=True)
class Reference:
    """What a product's good images taught about the conditions they were taken under.

    Attributes:
        images: how many there were.
        norms: by channel; a fact that was not known of them is missing.
    """

    images: int
    norms: dict[str, Norm]

    def rate(self, together: float) -> float:
        """Of each channel, so that all of them together have a rate (Bonferroni)."""
        return together / max(len(self.norms), 1)

    @classmethod
    def fit(cls, facts: Sequence[Facts], blocks: Sequence[int] | None = None) -> Reference:
        """From the facts of the good images.

        Args:
            facts: one record an image, in the order of the files; a fact may be None for some.
            blocks: session or lot of each; by default eight blocks of neighbours, fewer of few images.
        """
        where = np.asarray(_neighbours(len(facts)) if blocks is None else blocks, np.int64)
        norms = {}
        for name, channel in CHANNELS.items():
            values = [getattr(fact, name) for fact in facts]
            known = np.array([value is not None and math.isfinite(value) for value in values], bool)
            if known.any():
                taken = np.array([value for value, kept in zip(values, known, strict=True) if kept], float)
                norms[name] = Norm.fit(channel, taken, where[known])
        return cls(len(facts), norms)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON, less than 2 kB without white space."""
        return {
            "images": self.images,
            "norms": {name: list(dataclasses.astuple(norm)) for name, norm in self.norms.items()},
        }

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Reference:
        """The inverse of `to_dict`, to the bit; channels of a later library are left out."""
        norms = {
            name: Norm(centre, within, between, count, blocks, tuple(low), tuple(high))
            for name, (centre, within, between, count, blocks, low, high) in values["norms"].items()
            if name in CHANNELS
        }
        return cls(int(values["images"]), norms)


def _neighbours(count: int) -> list[int]:
    blocks = max(1, min(BLOCKS, count // LEAST_BLOCK))
    return [index * blocks // count for index in range(count)]


def rounded(value: float) -> float:
    """To as many digits as are kept."""
    return float(f"{value:.{DIGITS}g}")


@dataclass(frozen=True)
class Finding:
    """A fact that lies beyond what good images taught.

    Attributes:
        channel: the fact.
        spreads: how far from the typical good image, in spreads of good ones; negative: below it.
        direction: "lower" or "higher".
        sentence: the same in words.
    """

    channel: str
    spreads: float
    direction: str
    sentence: str


def channels_beyond(facts: Facts, reference: Reference, *, rate: float = IMAGE_RATE) -> tuple[Finding, ...]:
    """In which facts one image lies beyond the good ones, causes before effects; mostly none.

    A good image taken under the conditions of those taught exceeds any of the limits with probability
    `rate` where facts have the tails of `TAILS`, within and between sessions. A value must also lie twice
    as far from the typical good image as the second most extreme one does.
    """
    found = []
    for name, norm in reference.norms.items():
        value = getattr(facts, name)
        if value is None or not math.isfinite(value):
            continue
        channel = CHANNELS[name]
        spreads = (channel.scaled(value) - norm.centre) / norm.spread
        words = channel.lower if spreads < 0 else channel.higher
        far = abs(spreads) > BEYOND_TAUGHT * _reach(channel, norm, spreads)
        if words and far and abs(spreads) > norm.limit(reference.rate(rate)):
            found.append(finding(channel, norm, value, spreads))
    return tuple(found)


def _reach(channel: Channel, norm: Norm, side: float) -> float:
    """How far the second most extreme good image lies out on a side, in spreads; one alone may be odd."""
    kept = norm.low if side < 0 else norm.high[::-1]
    return abs(channel.scaled(kept[min(1, len(kept) - 1)]) - norm.centre) / norm.spread


def outside(norm: Norm, value: float) -> int:
    """How many of the good images' kept extremes lie farther out than a value, on its side."""
    above = sum(value <= kept for kept in norm.high)
    below = sum(value >= kept for kept in norm.low)
    return min(above, below)


def finding(channel: Channel, norm: Norm, value: float, spreads: float) -> Finding:
    """A value's place in spreads and in words."""
    words = (channel.lower if spreads < 0 else channel.higher) or "different"
    farther = outside(norm, value)
    than = "every good image" if not farther else "nearly all good images"
    taught = f"{channel.shown(norm.low[0])} to {channel.shown(norm.high[-1])}"
    sentence = f"{words} than {than} taught: {channel.what} {channel.shown(value)}, taught {taught}"
    return Finding(channel.name, spreads, "lower" if spreads < 0 else "higher", sentence)
