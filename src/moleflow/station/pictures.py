"""Uploaded bytes become a picture to inspect and a small copy to keep; maps become something to look at."""

from __future__ import annotations

import hashlib
import io
import unicodedata
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from ..data.images import as_image, as_raw, bytes_a_pixel, size_of
from ..errors import DepthError, ImageError
from ..intake import Intake
from ..interpolation import bilinear
from ..maps.scale import STOPS, Scale, layer
from .problems import Malformed, NotAnImage, TooLarge

KEPT_SIDE = 1024  # pixels of a kept picture's longer side
QUALITY = 85
LONGEST_NAME = 200


@dataclass(frozen=True, eq=False)
class Shot:
    """One picture that is to be inspected.

    Attributes:
        source: how it is called.
        sha256: of the file, in hex.
        pixels: its numbers, as the library takes them.
        jpeg: a copy of at most `KEPT_SIDE` pixels a side, as the line sees its light.
        key: by which it is known where it is sent again; None where its sender gave none.
    """

    source: str
    sha256: str
    pixels: np.ndarray
    jpeg: bytes
    key: str | None = None


def size_in_memory(file: Path | bytes, source: str, *, most_pixels: int) -> int:
    """Bytes that decoding a file, or the bytes of one, takes; of a file only the header is read.

    Raises:
        NotAnImage: no image of a kind that is read.
        TooLarge: more pixels than allowed.
    """
    try:
        height, width = size_of(file, where=source)
        each = bytes_a_pixel(file, where=source)
    except ImageError as error:
        raise NotAnImage(_reason(error, source, file)) from error
    if height * width > most_pixels:
        found = f"{width} x {height} pixels"
        raise TooLarge(f"{found}, more than the limit of {most_pixels:,}", "too_many_pixels")
    return height * width * each


def take(data: bytes, source: str, *, intake: Intake) -> Shot:
    """Decodes a file whose size was found to be bearable.

    Raises:
        NotAnImage: it is damaged; or, with the code "wrong_depth", whole, and of another kind of numbers than
            the line's images.
    """
    decode = as_image if intake.intensity.depth == "any" else as_raw
    try:
        pixels = decode(data, where=source)
        shown = intake.shown(Path(source), pixels)
    except DepthError as error:
        raise NotAnImage(_reason(error, source, data), "wrong_depth") from error
    except ImageError as error:
        raise NotAnImage(_reason(error, source, data)) from error
    return Shot(source, hashlib.sha256(data).hexdigest(), pixels, as_jpeg(shown, KEPT_SIDE))


def as_jpeg(pixels: np.ndarray, side: int) -> bytes:
    """(H, W, 3) uint8, reduced to a longer side of at most so many pixels."""
    image = Image.fromarray(pixels)
    image.thumbnail((side, side), Image.Resampling.BILINEAR, reducing_gap=2.0)
    return _saved(image)


def reduced(file: Path | bytes, source: str, side: int) -> bytes:
    """Any file that is read, as a JPEG of at most so many pixels a side; NotAnImage where it is none."""
    try:
        return as_jpeg(as_image(file, where=source, at_least=side), side)
    except ImageError as error:
        raise NotAnImage(_reason(error, source, file)) from error


def as_kept_map(patch_map: np.ndarray) -> bytes:
    """As float16, little-endian; beyond what that holds, its largest number."""
    most = float(np.finfo(np.float16).max)
    return np.clip(patch_map, -most, most).astype("<f2").tobytes()


def map_layer(
    kept: bytes, grid: tuple[int, int], *, threshold: float, shown: tuple[int, int], side: int
) -> bytes:
    """The map alone as PNG, clear where there is nothing, of the size that the picture is shown at.

    Args:
        kept: of `as_kept_map`.
        grid: (h, w) of the map.
        threshold: score above which a place is conspicuous.
        shown: (H, W) of the kept picture.
        side: pixels of the longer side at most.
    """
    scores = np.frombuffer(kept, "<f2").reshape(grid).astype(np.float32)
    height, width = fitted(shown, side)
    levels = Scale(threshold).levels(bilinear(scores, (height, width)))
    out = io.BytesIO()
    Image.fromarray(layer(levels), "RGBA").save(out, "PNG", compress_level=1)
    return out.getvalue()


def fitted(size: tuple[int, int], side: int) -> tuple[int, int]:
    """(H, W) as Pillow's thumbnails come out."""
    height, width = size
    image = Image.new("1", (width, height))
    image.thumbnail((side, side))
    return image.height, image.width


def jpeg_size(jpeg: bytes) -> tuple[int, int]:
    """(H, W) by its header."""
    return size_of(jpeg)


def scale_stops() -> list[dict[str, object]]:
    """The colours of all maps, from the lowest score drawn to the highest."""
    last = len(STOPS) - 1
    return [{"at": i / last, "colour": "#" + bytes(stop).hex()} for i, stop in enumerate(STOPS)]


def clean_name(name: str | None, fallback: str) -> str:
    """The last part of a file's name, of printable characters; it is shown, and never a path.

    Raises:
        Malformed: it is longer than any file system's.
    """
    text = unicodedata.normalize("NFC", (name or "").replace("\\", "/").rpartition("/")[2])
    text = "".join(c if c.isprintable() else "?" for c in text.encode("utf-8", "replace").decode()).strip()
    if len(text) > 4 * LONGEST_NAME:
        raise Malformed("a file's name is longer than any file system's")
    return text[-LONGEST_NAME:] if text not in ("", ".", "..") else fallback


def _saved(image: Image.Image) -> bytes:
    out = io.BytesIO()
    image.save(out, "JPEG", quality=QUALITY)
    return out.getvalue()


def _reason(error: ImageError, source: str, file: Path | bytes) -> str:
    """Without the name, and without the path, which is nobody's business."""
    named = file if isinstance(file, Path) else source
    return str(error).removeprefix(f"{named}: ").replace(str(named), source)
