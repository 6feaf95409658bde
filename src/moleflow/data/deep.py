"""16-bit colour. Pillow decodes it, and keeps the higher byte of every number only.

The same decoder, told that the bytes come in the other order, keeps the lower ones. So two passes through it,
with all its checks of hostile files, give the whole numbers, and no decoder is written anew.
"""

import math
import os
import sys
from typing import IO, Any

import numpy as np
from PIL import Image

from moleflow.errors import ImageError

_NATIVE = "16B" if sys.byteorder == "little" else "16L"  # the order that fetches the lower byte of "16N"
_OTHER = {"16B": "16L", "16L": "16B", "16N": _NATIVE}
_BITS_PER_SAMPLE, _PLANAR_CONFIGURATION, _SEPARATE = 258, 284, 2  # of TIFF


def lower_layout(image: Image.Image, where: object) -> str | None:
    """The layout of bytes that makes the decoder keep what it drops; None where it drops nothing.

    To be asked before the image is loaded. Raises ImageError for layouts of 16-bit colour that are not read.
    """
    if _has_planes(image):
        raise ImageError(f"{where}: 16-bit colour is read pixel by pixel, this file has a plane a colour")
    colours, _, order = _layout(image).partition(";")
    if order not in _OTHER or colours not in ("RGB", "RGBX", "RGBA", "RGBa", "LA"):
        return None
    if colours == "RGBa":
        raise ImageError(
            f"{where}: 16-bit colours are read as they are, these are multiplied by their opacity"
        )
    # Grey with opacity has four bytes a pixel, as 8-bit RGBA has: one pass fetches all of them.
    return "RGBA" if colours == "LA" else f"{colours};{_OTHER[order]}"


def is_deep_colour(image: Image.Image, where: object) -> bool:
    """Whether an image that is not loaded yet has more than 8 bits a colour."""
    return _is_deep_ppm(image) or lower_layout(image, where) is not None


def relay(image: Image.Image, layout: str) -> None:
    """Tells an image that is not loaded yet to decode by another layout of bytes."""
    image.tile = [_laid(tile, layout) for tile in _tiles(image)]  # type: ignore[attr-defined]


def joined(higher: np.ndarray, lower: np.ndarray, *, layout: str, key: object = None) -> np.ndarray:
    """Both bytes of every number as (H, W) or (H, W, 3) uint16, transparent pixels laid over black.

    Args:
        higher, lower: (H, W, 3 or 4) uint8, of the two passes.
        layout: of the second pass.
        key: the one colour that is transparent, as three 16-bit numbers, where there is one.
    """
    if layout == "RGBA":
        pairs = lower.astype(np.uint16)
        return over_black((pairs[..., 0:4:2] << 8) | pairs[..., 1:4:2])[..., 0]
    wide = higher.astype(np.uint16)
    wide <<= 8
    wide |= lower
    if layout.startswith("RGBX"):
        wide = wide[..., :3]
    if isinstance(key, tuple) and wide.shape[2] == len(key) == 3:
        wide[(wide == np.array(key)).all(axis=2)] = 0
    return over_black(wide) if wide.shape[2] == 4 else np.ascontiguousarray(wide)


def over_black(pixels: np.ndarray) -> np.ndarray:
    """Colours (H, W, C) uint16 whose last one is the opacity, laid over black: (H, W, C - 1)."""
    colours, opacity = pixels[..., :-1], pixels[..., -1:]
    if opacity.min() == 65535:
        return np.ascontiguousarray(colours)
    return ((colours.astype(np.uint32) * opacity + 32767) // 65535).astype(np.uint16)


def read_deep_ppm(file: IO[bytes], image: Image.Image, where: object) -> np.ndarray | None:
    """The numbers of a binary PNM file of more than 8 bits, uint16 (H, W) or (H, W, 3); None for others."""
    if not _is_deep_ppm(image):
        return None
    _, _, offset, args = _tiles(image)[0]
    most = args[1] if isinstance(args, tuple) else 65535
    shape = (image.height, image.width, 3) if image.mode == "RGB" else (image.height, image.width)
    wanted, held = 2 * math.prod(shape), file.seek(0, os.SEEK_END) - offset
    if held < wanted:
        raise ImageError(f"{where}: damaged or truncated: expected {wanted:,} bytes of pixels, got {held:,}")
    file.seek(offset)
    data = file.read(wanted)
    return np.minimum(np.frombuffer(data, ">u2").reshape(shape), most).astype(np.uint16)


def _has_planes(image: Image.Image) -> bool:
    """Whether this is a TIFF whose 16-bit colours lie in planes; Pillow would take their bytes for pixels."""
    tags = getattr(image, "tag_v2", {})
    bits = tags.get(_BITS_PER_SAMPLE)
    deep = isinstance(bits, tuple) and len(bits) > 1 and max(bits) > 8
    return deep and tags.get(_PLANAR_CONFIGURATION) == _SEPARATE


def _is_deep_ppm(image: Image.Image) -> bool:
    if image.format != "PPM" or not _tiles(image):
        return False
    codec, _, _, args = _tiles(image)[0]
    return _layout(image) == "I;16B" if codec == "raw" else codec == "ppm" and args[1] > 255


def _tiles(image: Image.Image) -> list[Any]:
    """What is to be decoded, by part: codec, place, offset, arguments; tuples, from Pillow 11 on named."""
    return list(getattr(image, "tile", ()))


def _laid(tile: Any, layout: str) -> Any:
    args = layout if isinstance(tile[3], str) else (layout, *tile[3][1:])
    return tile._replace(args=args) if hasattr(tile, "_replace") else (*tile[:3], args)


def _layout(image: Image.Image) -> str:
    """How the decoder is told that the bytes lie; empty where there is nothing to decode."""
    args = next((tile[3] for tile in _tiles(image)), "")
    first = args[0] if isinstance(args, tuple) and args else args
    return first if isinstance(first, str) else ""
