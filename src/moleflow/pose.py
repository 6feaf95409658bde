"""How an object lies in its picture, found against a small mean picture of the product, and undone.

A picture is compared as a thumbnail of local contrast, so that light and its slope count for nothing. The
search is a correlation by FFT over shifts and a table of angles, refined by least squares (Baker and
Matthews 2004, inverse compositional).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from scipy import ndimage
from torch import Tensor

SIDE = 96  # pixels of a thumbnail
STEP = 6.0  # degrees between the angles of the first search
NEAR = 12.0  # degrees an object that always lies much the same is turned by at most
MOST_SHIFT = 0.3  # of the longer side; an object moved farther has left its picture in part
_PADDED = 64  # half a thumbnail and the largest shift: nothing wraps around
_BEGINNINGS = 3  # angles that are refined
_STEPS = 4  # of the refinement, on each of two sizes
_ROWS = 512  # of a map turned back at a time, so that a large one needs little memory beside itself
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
        self, pixels: np.ndarray, size: tuple[int, int], *, window: Tensor | None = None
    ) -> np.ndarray:
        """Pixels (h, w, 3) uint8 of an image of `size` (H, W), with its object lying as the mean does.

        What lies outside of the image, or of the `window` (SIDE, SIDE) where there is one, has the colour of
        most of the image's border, so that a background goes on.
        """
        image = torch.from_numpy(np.array(pixels)).permute(2, 0, 1)[None].float()
        colour = torch.from_numpy(_border_colour(pixels))[None, :, None, None]
        grid = F.affine_grid(self._to_image(size)[None], list(image.shape), align_corners=False)
        turned = F.grid_sample(image - colour, grid, mode="bilinear", align_corners=False)
        if window is not None:
            turned = turned * _stretched(window, size, image.shape[-2:])
        return (turned + colour)[0].round().clamp(0, 255).byte().permute(1, 2, 0).contiguous().numpy()

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
        grid = torch.from_numpy(patch_map)[None, None]
        theta = self._to_aligned(image_size)
        x = (torch.arange(size[1]) * 2 + 1) / size[1] - 1
        y = (torch.arange(size[0]) * 2 + 1) / size[0] - 1
        out = np.empty(size, np.float32)
        for start in range(0, size[0], _ROWS):
            rows = y[start : start + _ROWS, None]
            places = torch.stack([theta[i, 0] * x + theta[i, 1] * rows + theta[i, 2] for i in (0, 1)], -1)
            scores = F.grid_sample(grid, places[None], padding_mode="border", align_corners=False)[0, 0]
            out[start : start + _ROWS] = scores * (places.abs().amax(-1) <= 1)
        return out

    def _turn(self, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
        """Rotation (2, 2) and shift (2) in coordinates from -1 to 1 across a picture of `size`."""
        angle = math.radians(self.angle)
        turn = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
        stretch = max(size) / np.array([size[1], size[0]], float)
        return turn * stretch[:, None] / stretch, 2 * stretch * np.array(self.shift)

    def _to_image(self, size: tuple[int, int]) -> Tensor:
        turn, shift = self._turn(size)
        return torch.from_numpy(np.column_stack([turn, shift])).float()

    def _to_aligned(self, size: tuple[int, int]) -> Tensor:
        turn, shift = self._turn(size)
        back = np.linalg.inv(turn)
        return torch.from_numpy(np.column_stack([back, -back @ shift])).float()


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
    template: Tensor | None = None
    window: Tensor | None = None
    reach: float = 180.0
    least: float = 0.0

    def place(self, pixels: np.ndarray, size: tuple[int, int]) -> Placement | None:
        """How the object lies in an image of `size` (H, W), given at any size.

        None where it is left as it is: the product is not aligned, or the image matches too badly.
        """
        if self.template is None:
            return None
        placement = find(self.template.float(), thumbnail(pixels, size)[None], self.reach)[0]
        return placement if placement.match >= self.least else None

    def tensors(self) -> dict[str, Tensor]:
        """What a saved line keeps."""
        if self.template is None or self.window is None:
            return {}
        return {"template": self.template, "window": self.window}

    def info(self) -> dict[str, Any]:
        """The rest, as plain JSON."""
        return {"report": asdict(self.report), "reach": self.reach, "least": self.least}

    @classmethod
    def from_saved(cls, tensors: dict[str, Tensor], info: dict[str, Any]) -> Pose:
        """The inverse of `tensors` and `info`, to the bit."""
        return cls(
            PoseReport(**info["report"]),
            template=tensors.get("template"),
            window=tensors.get("window"),
            reach=info["reach"],
            least=info["least"],
        )


def _border_colour(pixels: np.ndarray) -> np.ndarray:
    edges = [pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]]
    return np.median(np.concatenate(edges), axis=0).astype(np.float32)


def _stretched(window: Tensor, size: tuple[int, int], shape: tuple[int, ...]) -> Tensor:
    """The part of a thumbnail that an image of `size` fills, at (h, w) pixels."""
    (rows, columns), (top, left) = _inner(size)
    inner = window[None, None, top : top + rows, left : left + columns].float()
    return F.interpolate(inner, size=tuple(shape), mode="bilinear", align_corners=False)


def _inner(size: tuple[int, int]) -> tuple[list[int], list[int]]:
    """Rows and columns of a thumbnail that an image of `size` (H, W) fills, and where they begin."""
    sides = [max(1, round(SIDE * length / max(size))) for length in size]
    return sides, [(SIDE - side) // 2 for side in sides]


def thumbnail(pixels: np.ndarray, size: tuple[int, int]) -> Tensor:
    """Local contrast (3, SIDE, SIDE) of pixels (h, w, 3) uint8 that show an image of `size` (H, W).

    The image keeps its own shape; what is beside it is 0.
    """
    small, (top, left) = _inner(size)
    image = torch.from_numpy(np.array(pixels)).permute(2, 0, 1)[None].float() / 255
    image = F.interpolate(image, size=small, mode="bilinear", antialias=True, align_corners=False)[0]
    surroundings = ndimage.gaussian_filter(image.numpy(), (0, SIDE / 10, SIDE / 10), mode="nearest")
    contrast = image - torch.from_numpy(surroundings)
    contrast = (contrast / contrast.std().clamp_min(_LEAST_CONTRAST)).clamp(-3, 3)
    return F.pad(contrast, (left, SIDE - small[1] - left, top, SIDE - small[0] - top))


def find(template: Tensor, thumbnails: Tensor, reach: float) -> list[Placement]:
    """How the object of `template` (3, SIDE, SIDE) lies in each of `thumbnails` (B, 3, SIDE, SIDE).

    Args:
        template: the mean's thumbnail.
        thumbnails: of the images.
        reach: largest angle that is searched, in degrees.
    """
    bank = _Bank.of(template, reach)
    return [_find(template, image, bank) for image in thumbnails]


def turned(thumbnails: Tensor, placements: Sequence[Placement]) -> tuple[Tensor, Tensor]:
    """Thumbnails (B, 3, SIDE, SIDE) as they look aligned, and where they show anything (B, 1, SIDE, SIDE)."""
    states = torch.tensor([[math.radians(p.angle), *p.shift] for p in placements])
    return _warp(thumbnails, states)


@dataclass(frozen=True, eq=False)
class _Bank:
    """The template at every angle of the first search, as spectra of half its size."""

    angles: Tensor
    spectra: Tensor

    @classmethod
    def of(cls, template: Tensor, reach: float) -> _Bank:
        count = int(reach // STEP)
        steps = torch.arange(-count, count if reach >= 180 else count + 1)
        angles = torch.deg2rad(steps * STEP)
        half = F.avg_pool2d(template[None], 2).expand(len(angles), -1, -1, -1)
        views, _ = _warp(half, torch.stack([-angles, *torch.zeros(2, len(angles))], 1))
        views = views / views.flatten(1).norm(dim=1).clamp_min(1e-6)[:, None, None, None]
        return cls(angles, torch.fft.rfft2(views, s=(_PADDED, _PADDED)).conj())


def _find(template: Tensor, image: Tensor, bank: _Bank) -> Placement:
    states = _refined(template, image, _beginnings(image, bank))
    matches = _matches(template, image, states)
    best = int(matches.argmax())
    angle, x, y = states[best].tolist()
    angle = -math.remainder(-math.degrees(angle), 360.0)
    return Placement(angle, (x, y), float(matches[best]))


def _beginnings(image: Tensor, bank: _Bank) -> Tensor:
    """States (K, 3) of angle, x and y at the highest of the correlation over shifts, at the best angles."""
    small = F.avg_pool2d(image[None], 2)[0]
    spectrum = torch.fft.rfft2(small, s=(_PADDED, _PADDED))
    found = torch.fft.irfft2((spectrum * bank.spectra).sum(1), s=(_PADDED, _PADDED))
    most = int(MOST_SHIFT * SIDE / 2)
    found = torch.roll(found, (most, most), (1, 2))[:, : 2 * most + 1, : 2 * most + 1]
    peaks, places = found.flatten(1).max(1)
    left, right = peaks.roll(1), peaks.roll(-1)
    if len(peaks) < 2 * int(180 // STEP):  # no full circle: the ends have one neighbour
        left[0] = right[-1] = -math.inf
    summits = torch.where((peaks >= left) & (peaks >= right), peaks, -math.inf)
    chosen = summits.topk(min(_BEGINNINGS, len(peaks))).indices
    chosen = chosen[torch.isfinite(summits[chosen])]
    rows, columns = places[chosen] // (2 * most + 1) - most, places[chosen] % (2 * most + 1) - most
    return torch.stack([bank.angles[chosen], columns / (SIDE / 2), rows / (SIDE / 2)], 1)


def _refined(template: Tensor, image: Tensor, states: Tensor) -> Tensor:
    for reduction in (2, 1):
        wanted, seen = (F.avg_pool2d(t[None], reduction)[0] for t in (template, image))
        jacobian = _jacobian(wanted)
        normal = jacobian @ jacobian.T
        solve = torch.linalg.inv(normal + 1e-4 * torch.diag(normal.diagonal()) + 1e-6 * torch.eye(3))
        for _ in range(_STEPS):
            views, shown = _warp(seen.expand(len(states), -1, -1, -1), states)
            size = views.square().sum((1, 2, 3), keepdim=True).clamp_min(1e-6)
            gain = (views * wanted).sum((1, 2, 3), keepdim=True) / size
            error = ((gain * views - wanted) * shown).flatten(1)
            states = _stepped(states, error @ jacobian.T @ solve)
    return states


def _stepped(states: Tensor, steps: Tensor) -> Tensor:
    """States with the inverse of small turns and shifts of the template put before them."""
    limits = torch.tensor([math.radians(STEP), 0.03, 0.03])
    turn, x, y = steps.clamp(-limits, limits).unbind(1)
    angle = states[:, 0] - turn
    cos, sin = angle.cos(), angle.sin()
    moved = states[:, 1:] - torch.stack([cos * x - sin * y, sin * x + cos * y], 1)
    return torch.cat([angle[:, None], moved.clamp(-MOST_SHIFT, MOST_SHIFT)], 1)


def _jacobian(template: Tensor) -> Tensor:
    """How the template changes with a turn and shifts of it, (3, 3 * S * S)."""
    side = template.shape[-1]
    down, right = torch.gradient(template, dim=(1, 2))
    place = (torch.arange(side) + 0.5) / side - 0.5
    about = right * -place[:, None] + down * place
    return torch.stack([about, right, down]).flatten(1) * side


def _matches(template: Tensor, image: Tensor, states: Tensor) -> Tensor:
    views, _ = _warp(image.expand(len(states), -1, -1, -1), states)
    sizes = views.flatten(1).norm(dim=1) * template.norm()
    return (views * template).sum((1, 2, 3)) / sizes.clamp_min(1e-6)


def _warp(images: Tensor, states: Tensor) -> tuple[Tensor, Tensor]:
    """Square images (B, C, S, S) sampled at R p + shift, 0 outside, and where they show anything."""
    cos, sin = states[:, 0].cos(), states[:, 0].sin()
    rows = [torch.stack([cos, -sin, 2 * states[:, 1]], 1), torch.stack([sin, cos, 2 * states[:, 2]], 1)]
    grid = F.affine_grid(torch.stack(rows, 1), list(images.shape), align_corners=False)
    shown = (grid.abs().amax(-1) <= 1).float()[:, None]
    return F.grid_sample(images, grid, mode="bilinear", align_corners=False), shown
