"""Files, arrays and tensors become one kind of image, (H, W, 3) uint8, RGB, upright; or the camera's numbers.

Nothing global is touched: neither Pillow's limits nor the interpreter's warning filters, so decoding is
safe on many threads and leaves a host program's settings alone.
"""

import glob
import io
import os
import re
import stat
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePath
from typing import IO, Any, cast

import numpy as np

# Imported for what they register: the decoders of the kinds below, and no others.
from PIL import (
    BmpImagePlugin,  # noqa: F401
    GifImagePlugin,  # noqa: F401
    Image,
    JpegImagePlugin,  # noqa: F401
    MpoImagePlugin,  # noqa: F401
    PngImagePlugin,
    PpmImagePlugin,  # noqa: F401
    TiffImagePlugin,  # noqa: F401
    WebPImagePlugin,  # noqa: F401
)

from moleflow.data import deep
from moleflow.data.lists import Entry, Missing, is_list, read_list
from moleflow.errors import ImageError, OnlyFoldersError, reason_of

MAX_PIXELS = 178_000_000
"""Largest width times height that is decoded; a little below the size at which Pillow's decoders give up."""

MAX_SCANS = 100
"""Most scans of a JPEG that is decoded, also for libtiff of one in a TIFF; encoders write about ten."""

EXTENSIONS = frozenset(
    {".bmp", ".gif", ".jfif", ".jpe", ".jpeg", ".jpg", ".pbm", ".pgm", ".png", ".pnm", ".ppm", ".tif"}
    | {".tiff", ".webp"}
)
"""Endings (lower case) that mark a file in a folder as an image; the content decides how it is read."""

_FORMATS = ("PNG", "JPEG", "TIFF", "BMP", "WEBP", "GIF", "PPM")
_ORIENTATION, _MAKE, _MODEL, _WIDTH, _HEIGHT = 0x0112, 0x010F, 0x0110, 0x0100, 0x0101
_LONGEST_NAME = 80
_ROWS = 256  # copied or laid over black at a time, so that a large image is not held more often than it takes
_ROUNDING = 1e-6  # a float image may leave [0, 1] by the rounding of its own arithmetic, no further
_LARGEST = float(np.finfo(np.float32).max)
_SEGMENT = re.compile(rb"\xff[\xc0-\xcf\xd9-\xfe]")  # the markers of a JPEG that a length stands behind
_SCAN, _END = 0xDA, 0xD9
_MAX_SEGMENTS = 10_000  # 650 MB of what cameras write beside the pixels
_PIECE = 1 << 16
_PNG = b"\x89PNG\r\n\x1a\n"
_TELLING = {b"eXIf", b"tEXt", b"zTXt", b"iTXt"}  # chunks that may hold an orientation
_MAX_READS = 100_000  # of a header; a segment takes three or four
_MAX_READS_BEHIND = 1_000_000  # of the rest; the largest PNG in pieces of 8 kB takes half as many

# Bytes a pixel at the peak of decoding, as measured of 12 megapixels of every kind: grey and RGB; opacity,
# palettes, CMYK, progressive JPEG; WebP and more than 8 bits; those with opacity.
_PLAIN, _LAYERED, _WIDE, _WIDEST = 10, 17, 20, 44

_UPRIGHT: dict[int, Callable[[np.ndarray], np.ndarray]] = {
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: a[::-1, ::-1].swapaxes(0, 1),
    8: lambda a: np.rot90(a, 1),
}


# Finding files


def find_entries(
    source: str | Path | Sequence[str | Path], *, recursive: bool = False, missing: Missing = "raise"
) -> list[Entry]:
    """List the image files that `source` names, with the columns of CSV lists.

    `source` is a folder (its direct children with a known extension, in any case), a glob pattern (`**`
    descends), a list of images in a `.txt` or `.csv` file, any other single file (taken whatever its
    extension), or a sequence of those. Within a folder or a pattern the order is natural (`img2` before
    `img10`) and hidden files are left out; a sequence or a list keeps its own order and its repetitions.

    `recursive` searches the subfolders of folders too, except hidden ones; links to folders are followed, but
    every folder is searched once, so that a link to a folder above it does no harm. `missing` images of lists
    as for `read_list`.

    Raises `ImageError` if anything named holds no image.
    """
    if isinstance(source, (str, os.PathLike)):
        return _expand(source, recursive, missing)
    if not isinstance(source, Iterable):
        raise ImageError(
            f"expected a folder, a file, a pattern or a list of them, got {type(source).__name__}"
        )
    found = [entry for item in source for entry in _expand(item, recursive, missing)]
    if not found:
        raise ImageError("no images: the list of files is empty")
    return found


def _expand(item: Any, recursive: bool, missing: Missing) -> list[Entry]:
    if not isinstance(item, (str, os.PathLike)) or not str(item):
        raise ImageError(f"expected the path of a folder or an image, got {item!r}")
    path = Path(item)
    try:
        mode = path.stat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        return [Entry(found) for found in _glob(str(item))]
    except (OSError, ValueError) as error:
        raise ImageError(f"{path}: cannot be looked at: {reason_of(error)}") from error
    if stat.S_ISDIR(mode):
        return [Entry(found) for found in (_descendants(path) if recursive else _children(path))]
    return read_list(path, missing=missing) if is_list(path) and stat.S_ISREG(mode) else [Entry(path)]


def _listed(folder: Path) -> tuple[list[Path], list[Path]]:
    """The files directly in a folder, and the folders."""
    try:
        with os.scandir(folder) as entries:
            # A broken link stays in the list, so that reading it fails by name instead of going unnoticed.
            named = [(Path(entry.path), _is_folder(entry)) for entry in entries]
    except OSError as error:
        raise ImageError(f"{folder}: cannot be listed: {reason_of(error)}") from error
    return [path for path, is_folder in named if not is_folder], [path for path, is_it in named if is_it]


def _is_folder(entry: os.DirEntry[str]) -> bool:
    """False for what cannot be looked at, such as a link to itself: reading it fails by name."""
    try:
        return entry.is_dir()
    except OSError:
        return False


def subfolders(folder: Path) -> list[Path]:
    """The folders directly in `folder` that are not hidden, in natural order; ImageError where it is none."""
    return _visible(_listed(folder)[1])


def _visible(folders: Iterable[Path]) -> list[Path]:
    return sorted((path for path in folders if not path.name.startswith(".")), key=natural_key)


def _children(folder: Path) -> list[Path]:
    files, folders = _listed(folder)
    images = _select(files)
    if images:
        return images
    holds = f"it holds {len(files)} other files and {len(folders)} folders"
    found = f"{folder}: no images directly inside ({holds}; looked for {_known_extensions()})"
    if folders:
        raise OnlyFoldersError(f"{found}; --recursive, or in Python a pattern with **, searches those too")
    raise ImageError(found)


def _descendants(folder: Path) -> list[Path]:
    found: list[Path] = []
    seen: set[tuple[int, int]] = set()
    waiting = [folder]
    while waiting:
        current = waiting.pop()
        try:
            status = current.stat()
        except OSError as error:
            raise ImageError(f"{current}: cannot be listed: {reason_of(error)}") from error
        if (status.st_dev, status.st_ino) not in seen:
            seen.add((status.st_dev, status.st_ino))
            files, folders = _listed(current)
            found += files
            waiting += reversed(_visible(folders))
    images = _select(found)
    if not images:
        searched = f"no images in it and its {len(seen) - 1} folders"
        raise ImageError(f"{folder}: {searched} (looked for {_known_extensions()})")
    return images


def _glob(pattern: str) -> list[Path]:
    if not glob.has_magic(pattern):
        raise ImageError(f"{pattern}: no such file or folder")
    matches = [Path(match) for match in glob.glob(pattern, recursive=True)]
    images = _select(path for path in matches if not os.path.isdir(path))
    if not images:
        matched = f"{len(matches)} matches, none of them an image" if matches else "nothing matches"
        raise ImageError(f"{pattern}: {matched} (looked for {_known_extensions()})")
    return images


def _select(paths: Iterable[Path]) -> list[Path]:
    images = (path for path in paths if path.suffix.lower() in EXTENSIONS and not path.name.startswith("."))
    return sorted(images, key=natural_key)


def natural_key(path: PurePath) -> tuple[list[list[tuple[int, int, str]]], str]:
    """A sorting key by which 2 comes before 10, folder by folder, whatever the case of letters."""

    def split(part: str) -> list[tuple[int, int, str]]:
        pieces = re.split(r"([0-9]+)", part.casefold())
        return [(0, int(piece), "") if piece.isdecimal() else (1, 0, piece) for piece in pieces if piece]

    return [split(part) for part in path.parts], str(path)


def _known_extensions() -> str:
    return " ".join(sorted(EXTENSIONS))


# Reading files


def read_image(path: str | Path | bytes, *, at_least: int | None = None, where: str = "image") -> np.ndarray:
    """Decode one file, or the bytes of one, to (H, W, 3) uint8, RGB, with its EXIF orientation applied.

    Grey, 1-bit, palette and CMYK images become RGB; of several frames the first is taken. 16-bit grey maps
    0..65535 to 0..255 and float grey 0..1 to 0..255, the same for every image: never stretched by the image's
    own extremes. Transparent pixels are laid over black, so that colours hidden under full transparency,
    which nobody sees, do not count.

    `at_least` lets a JPEG be decoded at 1/2, 1/4 or 1/8 of its size, as long as its shorter side keeps that
    many pixels: for callers that only make the image smaller afterwards. Other kinds are decoded in full.

    Raises `ImageError`, with the path (`where` for bytes), for anything that is not a whole image of at most
    `MAX_PIXELS` pixels, and of a JPEG of at most `MAX_SCANS` scans; both are judged before decoding.
    """
    held = _held(path)
    with _opened(held, where) as (image, _):
        if at_least is not None:
            image.draft(None, (max(1, at_least), max(1, at_least)))
        return _decode(image, _named(held, where))


def read_raw(path: str | Path | bytes, *, where: str = "image") -> np.ndarray:
    """Decode one file, or the bytes of one, to the numbers that are in it, where they have more than 8 bits.

    Grey of more than 8 bits is (H, W), colour (H, W, 3); uint16, int32 or float32 as the file has them, in
    counts, transparent pixels as black. All else is (H, W, 3) uint8, to the bit as `read_image` gives it.
    Orientation, frames, limits and errors are those of `read_image`, but finite values of any size are taken.
    """
    held = _held(path)
    name = _named(held, where)
    with _opened(held, where) as (image, file):
        pixels = deep.read_deep_ppm(file, image, name)
        if pixels is not None:
            return pixels
        layout = deep.lower_layout(image, name)
        if layout is None:
            return _decode(image, name, _to_raw)
        higher, key = _decode(image, name, _bytes_of), image.info.get("transparency")
    with _opened(held, where) as (image, _):
        deep.relay(image, layout)
        lower = _decode(image, name, _bytes_of)
    if higher.shape != lower.shape:
        raise ImageError(f"{name}: changed while it was read")
    return deep.joined(higher, lower, layout=layout, key=key)


def read_values(path: str | Path) -> np.ndarray:
    """Decode one file to numbers that mean something but light, as those of a mask do.

    (H, W) as the file has them where they are bits or grey, else (H, W, 3) uint8: colours and palettes count
    by what they look like, transparency not at all. Orientation, limits and errors are those of `read_image`.
    """
    held = Path(path)
    with _opened(held) as (image, _):
        return _decode(image, held, _to_values)


def has_8_bits(path: str | Path) -> bool:
    """Whether `read_raw` gives uint8, judged by the header alone; its errors are those of `read_image`."""
    held = Path(path)
    with _opened(held) as (image, _):
        return not _is_deep_grey(image) and not deep.is_deep_colour(image, held)


def bytes_a_pixel(path: str | Path | bytes, *, where: str = "image") -> int:
    """Bytes of memory a pixel that reading takes at most, judged by the header; errors as of `read_image`."""
    held = _held(path)
    with _opened(held, where) as (image, _):
        opacity = image.has_transparency_data
        if deep.is_deep_colour(image, _named(held, where)):
            return _WIDEST if opacity else _WIDE
        if _is_deep_grey(image) or image.format == "WEBP":
            return _WIDE
        plain = image.mode in ("L", "RGB") and not opacity and not image.info.get("progressive")
        return _PLAIN if plain else _LAYERED


def size_of(value: Any, *, where: str = "image") -> tuple[int, int]:
    """(H, W) of an image, upright, of anything that `as_image` takes; a file is judged by its header alone.

    Raises `ImageError` as `as_image` does, but a file's pixels may still be damaged.
    """
    if isinstance(value, (str, os.PathLike, bytes)):
        with _opened(_held(value), where) as (image, _):
            return _upright_size(image)
    if isinstance(value, Image.Image):
        return _upright_size(value)
    array = _as_array(value, where)
    _check_shape(array, where)
    return array.shape[0], array.shape[1]


def _upright_size(image: Image.Image) -> tuple[int, int]:
    width, height = image.size
    stored = getattr(image, "tag_v2", {})
    turned = (stored.get(_HEIGHT), stored.get(_WIDTH)) == (width, height)  # by Pillow, as it opened a TIFF
    return (width, height) if _orientation(image) >= 5 and not turned else (height, width)


def _held(value: str | os.PathLike[str] | bytes) -> Path | bytes:
    return value if isinstance(value, bytes) else Path(value)


def _named(held: Path | bytes, where: object) -> object:
    """How an error names what is decoded."""
    return where if isinstance(held, bytes) else held


@contextmanager
def _opened(held: Path | bytes, where: object = "image") -> Iterator[tuple[Image.Image, IO[bytes]]]:
    """The image, of which the header was read and found to be of a known kind and size, and its file."""
    name = _named(held, where)
    if isinstance(held, Path):
        _require_file(held)
    elif not held:
        raise ImageError(f"{name}: expected an image file, this one is empty (0 bytes)")
    try:
        with (
            io.BytesIO(held) if isinstance(held, bytes) else open(held, "rb") as file,
            _identify(file, name) as image,
        ):
            _check_size(image, name)
            yield image, file
    except OSError as error:
        raise ImageError(f"{name}: cannot be read: {reason_of(error)}") from error


def _require_file(path: Path) -> None:
    """Refuse what must not be opened: opening a named pipe, for one, would wait for ever."""
    try:
        status = path.stat()
    except FileNotFoundError as error:
        raise ImageError(f"{path}: no such file") from error
    except (OSError, ValueError) as error:
        raise ImageError(f"{path}: cannot be read: {reason_of(error)}") from error
    if stat.S_ISDIR(status.st_mode):
        raise ImageError(f"{path}: expected an image file, this is a folder")
    if not stat.S_ISREG(status.st_mode):
        raise ImageError(f"{path}: expected an image file, this is not a regular file")
    if status.st_size == 0:
        raise ImageError(f"{path}: expected an image file, this one is empty (0 bytes)")


def _identify(file: IO[bytes], path: object) -> Image.Image:
    """Read the header only.

    `Image.open` would compare the size with a process-wide limit and warn or fail by the host's settings,
    and would try every kind Pillow knows; the registered decoders are asked directly instead.
    """
    prefix = file.read(16)
    for name in _FORMATS:
        factory, accept = Image.OPEN[name]
        if accept is None or accept(prefix.ljust(16, b"\0")) is True:
            file.seek(0)
            pieces = _Pieces(file)
            try:
                # Without a name, for Pillow would map a named TIFF into memory and turn it by half.
                image = factory(cast(IO[bytes], pieces), "")
                pieces.allow(_MAX_READS_BEHIND)
                return image
            except Exception as error:  # hostile bytes make decoders raise nearly anything
                raise ImageError(f"{path}: damaged {name} header: {reason_of(error)}") from error
    kinds = ", ".join(_FORMATS)
    raise ImageError(
        f"{path}: not an image of a known kind (expected {kinds}; it begins with {prefix[:8]!r})"
    )


class _Pieces:
    """A file that is read in so many pieces at most: millions, of a few bytes each, would take minutes."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self.allow(_MAX_READS)

    def allow(self, limit: int) -> None:
        """From now on."""
        self._limit, self._count = limit, 0

    def read(self, size: int = -1) -> bytes:
        self._count += 1
        if self._count > self._limit:
            raise ValueError(f"more than the limit of {self._limit:,} pieces")
        return self._file.read(size)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)


def _check_size(image: Image.Image, where: object) -> None:
    width, height = image.size
    if width * height > MAX_PIXELS:
        raise ImageError(f"{where}: {width} x {height} pixels, more than the limit of {MAX_PIXELS:,}")


def _check_scans(image: Image.Image, where: object) -> None:
    """Refuse a JPEG that goes over all its pixels thousands of times, for a few bytes each time."""
    tiles, file = getattr(image, "tile", ()), getattr(image, "fp", None)
    if not tiles or file is None or tiles[0][0] != "jpeg":
        return
    file.seek(tiles[0][2])  # behind zero in a file of several frames
    scans = 0
    for count, code in enumerate(_segments(file), 1):
        scans += code == _SCAN
        if scans > MAX_SCANS or count > _MAX_SEGMENTS:
            limits = f"{MAX_SCANS} scans and {_MAX_SEGMENTS:,} segments"
            raise ImageError(f"{where}: a JPEG of more than the limit of {limits}")


def _segments(file: IO[bytes]) -> Iterator[int]:
    """Which kinds of segments the JPEG has that begins where the file stands, found as libjpeg finds them.

    They are skipped by their length, for a small picture within one has scans of its own. Between them, in
    the pixels, nothing can be mistaken for one: 00 stands behind every FF that begins no marker.
    """
    at, start, held = file.tell(), 0, b""
    while True:
        marker = _SEGMENT.search(held, at - start)
        if marker is None or marker.end() + 2 > len(held):  # it may stand in the next piece
            at = max(at, start + (len(held) - 1 if marker is None else marker.start()))
            file.seek(at)
            start, held = at, file.read(_PIECE)
            if len(held) < 4:
                return
            continue
        code, length = held[marker.end() - 1], held[marker.end() : marker.end() + 2]
        if code == _END:
            return
        yield code
        at = start + marker.end() + max(2, int.from_bytes(length, "big"))


def _decode(
    image: Image.Image, where: object, pixels_of: Callable[[Image.Image, object], np.ndarray] | None = None
) -> np.ndarray:
    try:
        _check_scans(image, where)
        image.load()
        pixels = (pixels_of or _to_rgb)(image, where)
    except ImageError:
        raise
    except MemoryError as error:
        width, height = image.size
        raise ImageError(f"{where}: not enough memory for {width} x {height} pixels") from error
    except Exception as error:  # hostile bytes make decoders raise nearly anything
        raise ImageError(f"{where}: damaged, truncated or of an unknown kind: {reason_of(error)}") from error
    turn = _UPRIGHT.get(_orientation(image))
    return pixels if turn is None else np.ascontiguousarray(turn(pixels))


def _orientation(image: Image.Image) -> int:
    """Return the EXIF orientation, 1 (upright) where there is none.

    Asked after loading, because Pillow already turns TIFF images upright while it loads them.
    """
    try:
        # Of a PNG, Pillow decodes every pixel to look behind them, whether anything stands there or not.
        is_unread_png = isinstance(image, PngImagePlugin.PngImageFile) and image.png is not None
        file = getattr(image, "fp", None) if is_unread_png else None
        exif = image.getexif() if file is None or _tells_behind(file) else Image.Image.getexif(image)
        value = exif.get(_ORIENTATION, 1)
    except (
        Exception
    ):  # a garbled EXIF block says nothing about the pixels; viewers show such images as they are
        return 1
    return value if isinstance(value, int) else 1


def _tells_behind(file: IO[bytes]) -> bool:
    """Whether a PNG says anything behind its first pixels, of which the file has just told the length."""
    start = file.tell()
    try:
        file.seek(len(_PNG))
        pixels = False
        while len(header := file.read(8)) == 8:
            length, kind = int.from_bytes(header[:4], "big"), header[4:]
            if kind == b"IEND" or not kind.isalpha():
                return False  # what follows is no part of the picture, however long it is
            pixels |= kind == b"IDAT"
            if pixels and kind in _TELLING:
                return True
            file.seek(length + 4, os.SEEK_CUR)
        return False
    finally:
        file.seek(start)


def _is_deep_grey(image: Image.Image) -> bool:
    return image.mode in ("I", "F") or image.mode.startswith("I;16")


def _bytes_of(image: Image.Image, where: object) -> np.ndarray:
    return np.asarray(image)


def _to_values(image: Image.Image, where: object) -> np.ndarray:
    return np.array(image if image.mode in ("1", "L") or _is_deep_grey(image) else image.convert("RGB"))


def _to_raw(image: Image.Image, where: object) -> np.ndarray:
    return _native(np.asarray(image), where) if _is_deep_grey(image) else _to_rgb(image, where)


def camera_of(source: object) -> str | None:
    """Maker and model of the camera that a JPEG or TIFF file names; None where there is none, or no file."""
    if not isinstance(source, (str, os.PathLike)):
        return None
    path = Path(source)
    try:
        with open(path, "rb") as file, _identify(file, path) as image:
            # Not of a PNG, see `_orientation`.
            exif = image.getexif() if image.format in ("JPEG", "MPO", "TIFF") else {}
            named = [str(exif.get(tag, "")).strip(" \0") for tag in (_MAKE, _MODEL)]
    except Exception:  # a garbled EXIF block says nothing; that the image can be read is seen elsewhere
        return None
    text = " ".join(part for part in named if part)
    return "".join(c for c in text if c.isprintable())[:_LONGEST_NAME] or None


def _to_rgb(image: Image.Image, where: object) -> np.ndarray:
    if image.mode == "I" or image.mode.startswith("I;16"):
        return _grey_to_rgb(_from_16_bit(np.asarray(image), where))
    if image.mode == "F":
        return _grey_to_rgb(_from_float(np.asarray(image), where))
    if image.has_transparency_data:
        return _over_black(np.asarray(image if image.mode == "RGBA" else image.convert("RGBA")))
    if image.mode == "L":
        return _grey_to_rgb(np.asarray(image))
    return _copied(image if image.mode == "RGB" else image.convert("RGB"))


def _copied(image: Image.Image) -> np.ndarray:
    """The pixels of an RGB image; at once, Pillow would hold all of them three times."""
    width, height = image.size
    pixels = np.empty((height, width, 3), np.uint8)
    for top in range(0, height, _ROWS):
        bottom = min(top + _ROWS, height)
        pixels[top:bottom] = np.asarray(image.crop((0, top, width, bottom)))
    return pixels


# Arrays and tensors


def as_image(value: Any, *, where: str = "image", at_least: int | None = None) -> np.ndarray:
    """Turn a path, a file's bytes, a PIL image, an array or a tensor into (H, W, 3) uint8.

    Arrays are (H, W) or (H, W, C), torch tensors (H, W) or (C, H, W), with C = 1 (grey), 3 (RGB) or 4 (RGBA,
    laid over black); uint8, uint16 (0..65535), bool, or float in [0, 1]. The result may share memory with a
    uint8 array. `where` names the image in errors; `at_least` is passed to `read_image`.

    Raises `ImageError` that says what was expected and what came.
    """
    if isinstance(value, (str, os.PathLike, bytes)):
        return read_image(_held(value), at_least=at_least, where=where)
    if isinstance(value, Image.Image):
        _check_size(value, where)
        return _decode(value, where)
    return _from_array(_as_array(value, where), where)


def as_raw(value: Any, *, where: str = "image") -> np.ndarray:
    """Turn a path, a file's bytes, a PIL image, an array or a tensor into its numbers, as `read_raw` does.

    Arrays and tensors have the shapes that `as_image` takes. uint16, int16, int32 and floats keep their
    numbers (floats as float32); a fourth channel of uint16 or float is opacity, 0..65535 or 0..1, and is laid
    over black. uint8 and bool become (H, W, 3) uint8 as from `as_image`. The result may share memory with an
    array. An open PIL image has no more than 8 bits a colour: pass its path for those. Raises `ImageError`.
    """
    if isinstance(value, (str, os.PathLike, bytes)):
        return read_raw(_held(value), where=where)
    if isinstance(value, Image.Image):
        _check_size(value, where)
        return _decode(value, where, _to_raw)
    array = _as_array(value, where)
    if array.dtype in (np.uint8, np.bool_):
        return _from_array(array, where)
    _check_shape(array, where)
    pixels = _native(array, where)
    if pixels.ndim == 2 or pixels.shape[2] == 1:
        return pixels.reshape(pixels.shape[:2])
    return _raw_over_black(pixels, where) if pixels.shape[2] == 4 else pixels


def _native(array: np.ndarray, where: object) -> np.ndarray:
    """Numbers in this machine's order of bytes: uint16, int32 or finite float32."""
    if np.issubdtype(array.dtype, np.floating):
        low, high = float(array.min()), float(array.max())  # NaN anywhere makes both NaN
        if not (np.isfinite(low) and np.isfinite(high)):
            raise ImageError(f"{where}: expected finite values, got NaN or infinity")
        if max(-low, high) > _LARGEST:
            raise ImageError(f"{where}: expected values that 32-bit floats hold, got {low:.6g}..{high:.6g}")
        return array.astype(np.float32, copy=False)
    kind = array.dtype.newbyteorder("=")
    if kind == np.uint16:
        return array.astype(np.uint16, copy=False)
    if kind in (np.int16, np.int32):
        return array.astype(np.int32, copy=False)
    raise ImageError(
        f"{where}: expected uint8, uint16, int16, int32, bool or float values, got {array.dtype}"
    )


def _raw_over_black(pixels: np.ndarray, where: object) -> np.ndarray:
    if pixels.dtype == np.uint16:
        return deep.over_black(pixels)
    opacity = pixels[:, :, 3:]
    if pixels.dtype != np.float32 or opacity.min() < 0 or opacity.max() > 1:
        raise ImageError(f"{where}: expected opacity as uint16 or as float in [0, 1], got {pixels.dtype}")
    return pixels[:, :, :3] * opacity


def _as_array(value: Any, where: str) -> np.ndarray:
    if isinstance(value, np.ndarray):
        return value
    # A tensor can only have come if torch is imported, so this module need not import it.
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(value, torch.Tensor):
        return _array_of(value, where, torch)
    raise ImageError(
        f"{where}: expected a path, a PIL image, an array or a tensor, got {type(value).__name__}"
    )


def _array_of(value: Any, where: str, torch: Any) -> np.ndarray:
    if value.ndim not in (2, 3) or (value.ndim == 3 and value.shape[0] not in (1, 3, 4)):
        raise ImageError(f"{where}: expected a tensor of (H, W) or (1|3|4, H, W), got {tuple(value.shape)}")
    value = value.detach().cpu()
    if value.dtype == torch.bfloat16:  # numpy has no such type
        value = value.float()
    array: np.ndarray = value.numpy()
    return array if array.ndim == 2 else array.transpose(1, 2, 0)


def _check_shape(array: np.ndarray, where: str) -> None:
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] not in (1, 3, 4)):
        raise ImageError(f"{where}: expected an array of (H, W) or (H, W, 1|3|4), got {array.shape}")
    if array.size == 0:
        raise ImageError(f"{where}: expected at least one pixel, got an array of {array.shape}")


def _from_array(array: np.ndarray, where: str) -> np.ndarray:
    _check_shape(array, where)
    pixels = _to_uint8(array, where)
    if pixels.ndim == 2 or pixels.shape[2] == 1:
        return _grey_to_rgb(pixels.reshape(pixels.shape[:2]))
    if pixels.shape[2] == 4:
        return _over_black(pixels)
    return np.ascontiguousarray(pixels)


def _to_uint8(array: np.ndarray, where: object) -> np.ndarray:
    if array.dtype == np.uint8:
        return array
    if array.dtype == np.bool_:
        return array.astype(np.uint8) * np.uint8(255)
    if array.dtype == np.uint16:
        return _from_16_bit(array, where)
    if np.issubdtype(array.dtype, np.floating):
        return _from_float(array, where)
    raise ImageError(f"{where}: expected uint8, uint16, bool or float values, got {array.dtype}")


def _from_16_bit(array: np.ndarray, where: object) -> np.ndarray:
    low, high = int(array.min()), int(array.max())
    if low < 0 or high > 65535:
        raise ImageError(f"{where}: expected 16-bit values in 0..65535, got {low}..{high}")
    return ((array.astype(np.uint32) * 255 + 32767) // 65535).astype(np.uint8)


def _from_float(array: np.ndarray, where: object) -> np.ndarray:
    low, high = float(array.min()), float(array.max())  # NaN anywhere makes both NaN
    if not (np.isfinite(low) and np.isfinite(high)):
        raise ImageError(f"{where}: expected float values in [0, 1], got NaN or infinity")
    if low < -_ROUNDING or high > 1 + _ROUNDING:
        raise ImageError(f"{where}: expected float values in [0, 1], got {low:.6g}..{high:.6g}")
    scaled = array.astype(np.float32) * 255
    return np.clip(np.rint(scaled), 0, 255).astype(np.uint8)


def _grey_to_rgb(grey: np.ndarray) -> np.ndarray:
    return np.repeat(grey[:, :, None], 3, axis=2)


def _over_black(rgba: np.ndarray) -> np.ndarray:
    rgb, alpha = rgba[:, :, :3], rgba[:, :, 3:]
    if alpha.min() == 255:
        return np.ascontiguousarray(rgb)
    laid = np.empty(rgb.shape, np.uint8)
    for start in range(0, len(rgb), _ROWS):
        rows = slice(start, start + _ROWS)
        laid[rows] = (rgb[rows].astype(np.uint16) * alpha[rows] + 127) // 255
    return laid


def resize(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Scale (H, W, 3) uint8 to `size` = (h, w): antialiased, nothing cropped, the aspect ratio may change."""
    height, width = size
    if image.shape[:2] == (height, width):
        return image
    scaled = Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR, reducing_gap=3.0)
    return np.array(scaled)
