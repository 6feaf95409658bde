"""How an object lies in its picture, found against a small mean picture of the product, and undone.

A picture is compared as a thumbnail of local contrast, so that light and its slope count for nothing. The
search is a correlation by FFT over shifts and a table of angles, refined by least squares (Baker and
Matthews 2004, inverse compositional).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import fft, ndimage

from .interpolation import bilinear

Floats = NDArray[np.float32]

SIDE = 96  # pixels of a thumbnail
STEP = 6.0  # degrees between the angles of the first search
NEAR = 12.0  # degrees an object that always lies much the same is turned by at most
MOST_SHIFT = 0.3  # of the longer side; an object moved farther has left its picture in part
_PADDED = 64  # half a thumbnail and the largest shift: nothing wraps around
_BEGINNINGS = 3  # angles that are refined
_STEPS = 4  # of the refinement, on each of two sizes
_LEAST_CONTRAST = 0.01  # of white; a blank picture must not become one of noise


@dataclass(frozen=True)
class Placement:
    """How an object lies: turned about the middle of the picture, then moved.

    What is at p in the aligned picture is at R(angle) p + shift in the image, both from the middle and in
    units of the image's longer side, x to the right and y down.

    Attributes:
        angle: degrees, clockwise as seen, above -180 and up to 180.
        shift: (x, y) as shares of the image's longer side.
        match: likeness to the product's mean, at most 1.
    """

    angle: float
    shift: tuple[float, float]
    match: float = 1.0

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON-able values."""
        return asdict(self)

    def aligned(
        self, pixels: np.ndarray, size: tuple[int, int], *, window: np.ndarray | None = None
    ) -> np.ndarray:
        """Pixels (h, w, 3) uint8 of an image of `size` (H, W), with its object lying as the mean does.

        What lies outside of the image, or of the `window` (SIDE, SIDE) where there is one, has the colour of
        most of the image's border, so that a background goes on.
        """
        height, width = pixels.shape[:2]
        turn, shift = self._turn(size)
        half = np.array([width, height]) / 2
        matrix = turn * half[:, None] / half
        offset = half * (shift + 1) - matrix @ half + 1  # behind the border
        colour = _border_colour(pixels)
        # A border of nothing, which Pillow mixes with the edge and goes on with beyond it.
        channels = np.zeros((3, height + 2, width + 2), np.float32)
        channels[:, 1:-1, 1:-1] = pixels.transpose(2, 0, 1) - colour[:, None, None]
        given = (width, height), Image.Transform.AFFINE, tuple(np.column_stack([matrix, offset]).ravel())
        turned = [Image.fromarray(c).transform(*given, Image.Resampling.BILINEAR) for c in channels]
        out = np.stack([np.asarray(channel) for channel in turned], -1)
        if window is not None:
            out *= _stretched(window, size, (height, width))[..., None]
        found: np.ndarray = (out + colour).round().clip(0, 255).astype(np.uint8)
        return found

    def map_back(
        self, patch_map: np.ndarray, size: tuple[int, int], *, image_size: tuple[int, int]
    ) -> np.ndarray:
        """Scores (h, w) over the aligned picture as a map (H, W) float32 in the image's own coordinates.

        Args:
            patch_map: scores of the aligned picture's patches.
            size: (H, W) of the map.
            image_size: of the image, whose shape says what a turn is.

        What the aligned picture does not show is 0, as a typical good image is.
        """
        turn, shift = self._turn(image_size)
        back = np.linalg.inv(turn)[::-1, ::-1]  # rows before columns, as arrays have them
        centre = -(back @ shift[::-1])
        grid, shape = np.array(patch_map.shape) / 2, np.array(size) / 2
        matrix = back * grid[:, None] / shape
        offset = grid * (centre + 1) - matrix @ (shape - 0.5) - 0.5  # the middle of cell i lies at i + 0.5
        scores = np.asarray(patch_map, np.float32)
        out = ndimage.affine_transform(scores, matrix, offset, size, np.float32, order=1, mode="nearest")
        rows, columns = ((np.arange(length) * 2 + 1) / length - 1 for length in size)
        for axis in (0, 1):
            place = back[axis, 0] * rows[:, None] + (back[axis, 1] * columns + centre[axis])
            out[np.abs(place) > 1] = 0
        found: np.ndarray = out
        return found

    def _turn(self, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
        """Rotation (2, 2) and shift (2) in coordinates from -1 to 1 across a picture of `size`."""
        angle = math.radians(self.angle)
        turn = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
        stretch = max(size) / np.array([size[1], size[0]], float)
        return turn * stretch[:, None] / stretch, 2 * stretch * np.array(self.shift)


@dataclass(frozen=True)
class PoseReport:
    """What was found about the pose of a product when it was learned.

    Attributes:
        aligned: whether its images are aligned.
        reason: "helps", "asked for", "lies still", "does not match", "it would not help", "too few images" or
            "switched off".
        degrees: how far good images are turned from the mean, the nineteenth of twenty; None where unknown.
        shift: how far they are moved, as a share of the longer side, the nineteenth of twenty.
        before, after: mean score of left-out good images as they are and aligned, in one unit; None where
            it was not asked.
    """

    aligned: bool
    reason: str
    degrees: float | None = None
    shift: float | None = None
    before: float | None = None
    after: float | None = None

    def __str__(self) -> str:
        scores = ""
        if self.before is not None and self.after is not None:
            scores = f"left-out scores {self.before:.2f} -> {self.after:.2f}"
        if self.aligned:
            varies = (
                f"varies by up to {self.degrees:.0f} degrees and {self.shift:.0%} of the picture; aligned"
            )
            return f"{varies} ({scores or self.reason})"
        return f"not aligned: {self.reason}" + (f" ({scores})" if scores else "")


@dataclass(frozen=True, eq=False)
class Pose:
    """A product's mean picture, against which its images are aligned.

    Attributes:
        report: what was found when it was learned.
        template: (3, SIDE, SIDE) float16, local contrast of the mean; None where images are not aligned.
        window: (SIDE, SIDE) bool, what of the aligned picture nearly every good image shows.
        reach: largest angle that is searched, in degrees.
        least: match below which an image is left as it is.
    """

    report: PoseReport
    template: NDArray[np.float16] | None = None
    window: NDArray[np.bool_] | None = None
    reach: float = 180.0
    least: float = 0.0

    def place(self, pixels: np.ndarray, size: tuple[int, int]) -> Placement | None:
        """How the object lies in an image of `size` (H, W), given at any size.

        None where it is left as it is: the product is not aligned, or the image matches too badly.
        """
        if self.template is None:
            return None
        placement = self._search(local_contrast(pixels, size))
        return placement if placement.match >= self.least else None

    @cached_property
    def _search(self) -> _Search:
        assert self.template is not None
        return _Search(self.template.astype(np.float32), self.reach)

    def arrays(self) -> dict[str, np.ndarray]:
        """What a saved line keeps."""
        if self.template is None or self.window is None:
            return {}
        return {"template": self.template, "window": self.window}

    def info(self) -> dict[str, Any]:
        """The rest, as plain JSON."""
        return {"report": asdict(self.report), "reach": self.reach, "least": self.least}

    @classmethod
    def from_saved(cls, arrays: Mapping[str, np.ndarray], info: Mapping[str, Any]) -> Pose:
        """The inverse of `arrays` and `info`, to the bit."""
        return cls(
            PoseReport(**info["report"]),
            template=arrays.get("template"),
            window=arrays.get("window"),
            reach=info["reach"],
            least=info["least"],
        )


def _border_colour(pixels: np.ndarray) -> Floats:
    edges = [pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]]
    return np.median(np.concatenate(edges), axis=0).astype(np.float32)


def _stretched(window: np.ndarray, size: tuple[int, int], shape: tuple[int, int]) -> Floats:
    """The part of a thumbnail that an image of `size` fills, at (h, w) pixels."""
    (rows, columns), (top, left) = _inner(size)
    inner = window[top : top + rows, left : left + columns].astype(np.float32)
    return bilinear(inner, shape)


def _inner(size: tuple[int, int]) -> tuple[list[int], list[int]]:
    """Rows and columns of a thumbnail that an image of `size` (H, W) fills, and where they begin."""
    sides = [max(1, round(SIDE * length / max(size))) for length in size]
    return sides, [(SIDE - side) // 2 for side in sides]


def thumbnail(pixels: np.ndarray, size: tuple[int, int]) -> Floats:
    """An image made small, (4, SIDE, SIDE): its `local_contrast`, and 1 where the image is, 0 beside it.

    The contrast alone does not tell: a plain part of an image is 0 as well.
    """
    (rows, columns), (top, left) = _inner(size)
    own = np.zeros((1, SIDE, SIDE), np.float32)
    own[:, top : top + rows, left : left + columns] = 1
    return np.concatenate([local_contrast(pixels, size), own])


def local_contrast(pixels: np.ndarray, size: tuple[int, int]) -> Floats:
    """Local contrast (3, SIDE, SIDE) of pixels (h, w, 3) uint8 that show an image of `size` (H, W).

    The image keeps its own shape; what is beside it is 0.
    """
    (rows, columns), (top, left) = _inner(size)
    channels = np.asarray(pixels, np.float32).transpose(2, 0, 1) / 255
    resized = [Image.fromarray(c).resize((columns, rows), Image.Resampling.BILINEAR) for c in channels]
    image = np.stack([np.asarray(channel) for channel in resized])
    contrast = image - ndimage.gaussian_filter(image, (0, SIDE / 10, SIDE / 10), mode="nearest")
    contrast = (contrast / max(float(contrast.std(ddof=1)), _LEAST_CONTRAST)).clip(-3, 3)
    out = np.zeros((3, SIDE, SIDE), np.float32)
    out[:, top : top + rows, left : left + columns] = contrast
    return out


def find(template: Floats, contrasts: Floats, reach: float) -> list[Placement]:
    """How the object of `template` (3, SIDE, SIDE) lies in each of `contrasts` (B, 3, SIDE, SIDE).

    Args:
        template: local contrast of the mean.
        contrasts: of the images.
        reach: largest angle that is searched, in degrees.
    """
    search = _Search(template, reach)
    return [search(image) for image in contrasts]


def turned(contrasts: Floats, placements: Sequence[Placement]) -> tuple[Floats, Floats]:
    """Contrasts (B, 3, SIDE, SIDE) as they look aligned, and where they reach (B, 1, SIDE, SIDE).

    What is beside an oblong image is reached too; see `shown`.
    """
    return _warp(contrasts, _states(placements))


def shown(thumbnails: Floats, placements: Sequence[Placement]) -> Floats:
    """1 where a place of the aligned pictures shows something of the image, else 0, (B, 1, SIDE, SIDE).

    Args:
        thumbnails: (B, 4, SIDE, SIDE) of the images as they are.
        placements: of the images.

    What a thumbnail has beside an oblong image shows nothing of it.
    """
    x, y = _sampled(_states(placements), SIDE)
    reached = _within(x, y)
    # A place belongs to the pixel that it lies in, so the image ends where its outermost pixels do.
    columns, rows = (((at + 1) * (SIDE / 2)).clip(0, SIDE - 1).astype(np.int32) for at in (x, y))
    own = thumbnails[np.arange(len(thumbnails))[:, None, None], 3, rows, columns]
    return reached * own[:, None]


class _Search:
    """Finds one template in thumbnails; what follows from the template alone is worked out once.

    Args:
        template: (3, SIDE, SIDE).
        reach: largest angle that is searched, in degrees.
    """

    def __init__(self, template: Floats, reach: float) -> None:
        self.template = template
        count = int(reach // STEP)
        steps = np.arange(-count, count if reach >= 180 else count + 1)
        self.angles = np.deg2rad(steps * STEP).astype(np.float32)
        half = np.broadcast_to(_pooled(template, 2), (len(steps), 3, SIDE // 2, SIDE // 2))
        states = np.zeros((len(steps), 3), np.float32)
        states[:, 0] = -self.angles
        views, _ = _warp(half, states)
        views /= np.maximum(_norm(views), np.float32(1e-6))[:, None, None, None]
        self.spectra = fft.rfft2(views, s=(_PADDED, _PADDED)).conj()
        self.levels = [_Level.of(_pooled(template, reduction)) for reduction in (2, 1)]

    def __call__(self, image: Floats) -> Placement:
        """How the object lies in an image of local contrast (3, SIDE, SIDE)."""
        states = self._beginnings(image)
        for level, reduction in zip(self.levels, (2, 1), strict=True):
            states = level.refined(_pooled(image, reduction), states)
        matches = self._matches(image, states)
        best = int(matches.argmax())
        angle, x, y = states[best].tolist()
        angle = -math.remainder(-math.degrees(angle), 360.0)
        return Placement(angle, (x, y), float(matches[best]))

    def _beginnings(self, image: Floats) -> Floats:
        """States (K, 3) of angle, x and y where the correlation is highest, at the best of the angles."""
        spectrum = fft.rfft2(_pooled(image, 2), s=(_PADDED, _PADDED))
        found = fft.irfft2((spectrum * self.spectra).sum(1), s=(_PADDED, _PADDED))
        most = int(MOST_SHIFT * SIDE / 2)
        found = np.roll(found, (most, most), (1, 2))[:, : 2 * most + 1, : 2 * most + 1].reshape(
            len(found), -1
        )
        peaks, places = found.max(1), found.argmax(1)
        left, right = np.roll(peaks, 1), np.roll(peaks, -1)
        if len(peaks) < 2 * int(180 // STEP):  # no full circle: the ends have one neighbour
            left[0] = right[-1] = -math.inf
        summits = np.where((peaks >= left) & (peaks >= right), peaks, -math.inf)
        chosen = np.argsort(-summits, kind="stable")[:_BEGINNINGS]
        chosen = chosen[np.isfinite(summits[chosen])]
        rows, columns = places[chosen] // (2 * most + 1) - most, places[chosen] % (2 * most + 1) - most
        states = np.column_stack([self.angles[chosen], columns / (SIDE / 2), rows / (SIDE / 2)])
        return states.astype(np.float32)

    def _matches(self, image: Floats, states: Floats) -> Floats:
        views, _ = _warp(np.broadcast_to(image, (len(states), *image.shape)), states)
        sizes = np.maximum(_norm(views) * _norm(self.template[None]), 1e-6)
        likeness: Floats = (views * self.template).sum((1, 2, 3)) / sizes
        return likeness


@dataclass(frozen=True, eq=False)
class _Level:
    """The template at one size, and how it changes with a turn and shifts."""

    wanted: Floats
    jacobian: Floats
    solve: Floats

    @classmethod
    def of(cls, wanted: Floats) -> _Level:
        jacobian = _jacobian(wanted)
        normal = jacobian @ jacobian.T
        damped = normal + 1e-4 * np.diag(normal.diagonal()) + 1e-6 * np.eye(3, dtype=np.float32)
        return cls(wanted, jacobian, np.linalg.inv(damped).astype(np.float32))

    def refined(self, seen: Floats, states: Floats) -> Floats:
        """States (K, 3) after some steps of least squares."""
        for _ in range(_STEPS):
            views, reached = _warp(np.broadcast_to(seen, (len(states), *seen.shape)), states)
            size = np.maximum(np.square(views).sum((1, 2, 3), keepdims=True), 1e-6)
            gain = (views * self.wanted).sum((1, 2, 3), keepdims=True) / size
            error = ((gain * views - self.wanted) * reached).reshape(len(states), -1)
            states = _stepped(states, error @ self.jacobian.T @ self.solve)
        return states


def _stepped(states: Floats, steps: Floats) -> Floats:
    """States with the inverse of small turns and shifts of the template put before them."""
    limits = np.array([math.radians(STEP), 0.03, 0.03], np.float32)
    turn, x, y = steps.clip(-limits, limits).T
    angle = states[:, 0] - turn
    cos, sin = np.cos(angle), np.sin(angle)
    moved = states[:, 1:] - np.stack([cos * x - sin * y, sin * x + cos * y], 1)
    return np.column_stack([angle, moved.clip(-MOST_SHIFT, MOST_SHIFT)]).astype(np.float32)


def _jacobian(template: Floats) -> Floats:
    """How the template changes with a turn and shifts of it, (3, 3 * S * S)."""
    side = template.shape[-1]
    down, right = np.gradient(template, axis=(1, 2))
    place = ((np.arange(side) + 0.5) / side - 0.5).astype(np.float32)
    about = right * -place[:, None] + down * place
    return np.stack([about, right, down]).reshape(3, -1) * np.float32(side)


def _pooled(images: Floats, reduction: int) -> Floats:
    """Means over squares of `reduction` pixels, of images (…, S, S)."""
    if reduction == 1:
        return images
    side = images.shape[-1] // reduction
    squares = images.reshape(*images.shape[:-2], side, reduction, side, reduction)
    means: Floats = squares.mean((-3, -1), dtype=np.float32)
    return means


def _norm(images: Floats) -> Floats:
    """Length of each image (B, …)."""
    lengths: Floats = np.linalg.norm(images.reshape(len(images), -1), axis=1)
    return lengths


def _states(placements: Sequence[Placement]) -> Floats:
    """Angle in radians, x and y of each placement, (B, 3)."""
    return np.array([[math.radians(p.angle), *p.shift] for p in placements], np.float32)


def _sampled(states: Floats, side: int) -> tuple[Floats, Floats]:
    """Where R p + shift lies for each pixel p of a square: x and y (B, S, S), from -1 to 1 within it."""
    place = ((np.arange(side, dtype=np.float32) * 2 + 1) / side - 1).astype(np.float32)
    cos, sin = (f(states[:, 0])[:, None, None] for f in (np.cos, np.sin))
    right, down = (np.float32(2) * states[:, axis, None, None] for axis in (1, 2))
    x: Floats = cos * place - sin * place[:, None] + right
    y: Floats = sin * place + cos * place[:, None] + down
    return x, y


def _within(x: Floats, y: Floats) -> Floats:
    """1 where places (B, S, S) are of the square, else 0, (B, 1, S, S)."""
    within: Floats = ((np.abs(x) <= 1) & (np.abs(y) <= 1)).astype(np.float32)[:, None]
    return within


def _warp(images: Floats, states: Floats) -> tuple[Floats, Floats]:
    """Square images (B, C, S, S) sampled at R p + shift, 0 outside, and where they reach (B, 1, S, S)."""
    count, channels, side = images.shape[:3]
    x, y = _sampled(states, side)
    # A border of zeros: what is outside, and what it is mixed with at the edge.
    padded = np.zeros((count, channels, side + 2, side + 2), np.float32)
    padded[:, :, 1:-1, 1:-1] = images
    columns, rows = (((at + 1) * (side / 2) + 0.5).clip(0, side + 1 - 1e-3) for at in (x, y))
    left, top = columns.astype(np.int32), rows.astype(np.int32)
    right_part, lower_part = columns - left, rows - top
    flat = padded.reshape(count, channels, -1)
    corner = (top * (side + 2) + left).reshape(count, 1, -1)
    parts = zip(
        (0, 1, side + 2, side + 3),
        (
            (1 - right_part) * (1 - lower_part),
            right_part * (1 - lower_part),
            (1 - right_part) * lower_part,
            right_part * lower_part,
        ),
        strict=True,
    )
    out = np.zeros((count, channels, side * side), np.float32)
    for step, weight in parts:
        out += np.take_along_axis(flat, corner + step, 2) * weight.reshape(count, 1, -1).astype(np.float32)
    return out.reshape(count, channels, side, side), _within(x, y)
