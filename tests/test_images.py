"""Whatever comes as an image leaves as (H, W, 3) uint8, or as an error that says why not."""

import contextlib
import io
import os
import struct
import subprocess
import sys
import threading
import warnings
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageFile, ImageOps

from moleflow.data import images
from moleflow.data.images import (
    EXTENSIONS,
    MAX_PIXELS,
    MAX_SCANS,
    as_image,
    as_raw,
    bytes_a_pixel,
    find_entries,
    read_image,
    read_raw,
    read_values,
    resize,
    size_of,
)
from moleflow.errors import ImageError
from trees import find_images

RNG = np.random.default_rng(0)
RGB = RNG.integers(0, 256, (6, 8, 3), dtype=np.uint8)
GREY = RGB[:, :, 0].copy()
RAMP16 = np.linspace(0, 65535, 48).round().astype(np.uint16).reshape(6, 8)


def save(folder, name, image, **options):
    path = Path(folder) / name
    (Image.fromarray(image) if isinstance(image, np.ndarray) else image).save(path, **options)
    return path


def same(path, expected):
    result = read_image(path)
    assert result.dtype == np.uint8
    assert result.flags.writeable
    assert result.flags.c_contiguous
    np.testing.assert_array_equal(result, expected)


def three(grey):
    return np.repeat(grey[:, :, None], 3, axis=2)


# Finding


def touch(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()


@pytest.mark.parametrize("name", ["①", "10²", "٣"])
def test_digits_of_any_script_and_kind_may_stand_in_names(tmp_path, name):
    touch(tmp_path, f"{name}/{name}.png", f"{name}/a.png")
    assert len(find_images(tmp_path / name)) == 2


def test_a_folder_gives_its_images_in_natural_order(tmp_path):
    touch(
        tmp_path,
        "img10.png",
        "img2.PNG",
        "Img1.jpeg",
        "b.TIFF",
        ".hidden.png",
        "._img2.png",
        "notes.txt",
        "x.png.bak",
    )
    touch(tmp_path, "deeper/c.png", "folder.png/d.png")
    assert [path.name for path in find_images(tmp_path)] == ["b.TIFF", "Img1.jpeg", "img2.PNG", "img10.png"]
    assert find_images(str(tmp_path)) == find_images(tmp_path)


def test_patterns(tmp_path):
    touch(tmp_path, "a/2.png", "a/10.png", "b/1.png", "b/1.txt", "b/.x.png", "top.png")
    relative = lambda found: [str(path.relative_to(tmp_path)) for path in found]  # noqa: E731
    assert relative(find_images(f"{tmp_path}/*/*")) == ["a/2.png", "a/10.png", "b/1.png"]
    assert relative(find_images(tmp_path / "**" / "*.png")) == ["a/2.png", "a/10.png", "b/1.png", "top.png"]


def test_a_name_with_magic_characters_is_first_of_all_a_name(tmp_path):
    touch(tmp_path, "set [1]/a.png", "b[1].png")
    assert len(find_images(tmp_path / "set [1]")) == 1
    assert find_images(tmp_path / "b[1].png") == [tmp_path / "b[1].png"]


def test_rows_of_a_list_are_images(tmp_path):
    (tmp_path / "belt").mkdir()
    (tmp_path / "more.txt").write_text("a.png")
    (tmp_path / "a.png").write_bytes(b"")
    for row, found in (("belt", "a folder"), ("more.txt", "a list"), ("belt/*.png", "a pattern")):
        (tmp_path / "list.txt").write_text(f"a.png\n{row}\n")
        with pytest.raises(ImageError, match=f"line 2: .*expected an image, this is {found}"):
            find_entries(tmp_path / "list.txt")
    (tmp_path / "b[1].png").write_bytes(b"")
    (tmp_path / "list.txt").write_text("b[1].png")
    assert [entry.path.name for entry in find_entries(tmp_path / "list.txt")] == ["b[1].png"]


def test_a_link_to_itself_is_one_image_that_cannot_be_read(tmp_path):
    (tmp_path / "a.png").symlink_to("a.png")
    (tmp_path / "b.png").write_bytes(b"")
    assert [entry.path.name for entry in find_entries(tmp_path)] == ["a.png", "b.png"]


def test_lists_keep_their_order_and_single_files_any_extension(tmp_path):
    touch(tmp_path, "b.png", "a.png", "raw.dat", "sub/1.png")
    wanted = [
        tmp_path / "raw.dat",
        tmp_path / "sub",
        tmp_path / "b.png",
        tmp_path / "b.png",
        f"{tmp_path}/a*.png",
    ]
    found = find_images(wanted)
    assert [path.name for path in found] == ["raw.dat", "1.png", "b.png", "b.png", "a.png"]
    assert find_images(tuple(map(str, wanted))) == found


def test_finding_nothing_says_what_was_looked_for(tmp_path):
    touch(tmp_path, "sub/1.png", "notes.txt")
    with pytest.raises(ImageError, match=r"no images directly inside.*1 other files and 1 folders.*\.png"):
        find_images(tmp_path)
    with pytest.raises(ImageError, match="nothing matches"):
        find_images(tmp_path / "*.png")
    with pytest.raises(ImageError, match="1 matches, none of them an image"):
        find_images(tmp_path / "*.txt")
    with pytest.raises(ImageError, match=r"gone\.png: no such file or folder"):
        find_images([tmp_path / "sub", tmp_path / "gone.png"])
    with pytest.raises(ImageError, match="list of files is empty"):
        find_images([])


@pytest.mark.parametrize("source", ["", None, 3, [None], [""], "a\0b", [["x"]], b"x"])
def test_what_is_no_path_is_refused(source):
    with pytest.raises(ImageError):
        find_images(source)


def test_a_broken_link_is_not_passed_over(tmp_path):
    touch(tmp_path, "a.png")
    try:
        (tmp_path / "b.png").symlink_to(tmp_path / "gone")
    except OSError:
        pytest.skip("no links here")
    assert len(find_images(tmp_path)) == 2
    with pytest.raises(ImageError, match=r"b\.png: no such file"):
        read_image(tmp_path / "b.png")


# Kinds of files


@pytest.mark.parametrize("name", ["a.png", "a.bmp", "a.tif", "a.ppm", "b.tiff", "a.dat.png"])
def test_lossless_kinds(tmp_path, name):
    same(save(tmp_path, name, RGB), RGB)
    same(save(tmp_path, "grey-" + name, GREY), three(GREY))


def test_lossy_kinds_agree_with_pillow(tmp_path):
    for name in ("a.jpg", "a.webp", "a.gif"):
        path = save(tmp_path, name, RGB)
        same(path, np.asarray(Image.open(path).convert("RGB")))


def test_every_extension_has_a_decoder():
    registered = Image.registered_extensions()
    assert {registered.get(extension) for extension in EXTENSIONS} <= {*images._FORMATS, "MPO"}


def test_content_decides_not_the_name(tmp_path):
    save(tmp_path, "a.png", RGB).rename(tmp_path / "a.jpg")
    same(tmp_path / "a.jpg", RGB)


def test_one_bit_palette_and_cmyk(tmp_path):
    bits = GREY > 127
    same(save(tmp_path, "bits.png", Image.fromarray(bits)), three(bits.astype(np.uint8) * 255))
    palette = Image.fromarray(RGB).quantize(16)
    same(save(tmp_path, "p.png", palette), np.asarray(palette.convert("RGB")))
    cmyk = Image.fromarray(RGB).convert("CMYK")
    same(save(tmp_path, "cmyk.tif", cmyk), RGB)
    path = save(tmp_path, "cmyk.jpg", cmyk)
    same(path, np.asarray(Image.open(path).convert("RGB")))


@pytest.mark.parametrize("name", ["a.png", "a.tif", "a.pgm"])
def test_16_bit_grey_is_never_stretched(tmp_path, name):
    same(save(tmp_path, name, RAMP16), three(np.rint(RAMP16 / 257).astype(np.uint8)))
    dark = (RAMP16 // 16).astype(np.uint16)
    assert read_image(save(tmp_path, "dark-" + name, dark)).max() == 16


def test_32_bit_integer_and_float_grey(tmp_path):
    same(save(tmp_path, "i.tif", Image.fromarray(RAMP16.astype(np.int32))), three(np.rint(RAMP16 / 257)))
    unit = np.linspace(0, 1, 48, dtype=np.float32).reshape(6, 8)
    same(save(tmp_path, "f.tif", Image.fromarray(unit)), three(np.rint(unit * 255)))
    with pytest.raises(ImageError, match=r"big\.tif: expected 16-bit values.*70000"):
        read_image(save(tmp_path, "big.tif", Image.fromarray(np.full((2, 2), 70000, np.int32))))
    with pytest.raises(ImageError, match=r"far\.tif: expected float values in \[0, 1\].*200"):
        read_image(save(tmp_path, "far.tif", Image.fromarray(np.full((2, 2), 200, np.float32))))


def test_transparency_is_laid_over_black(tmp_path):
    rgba = np.dstack([RGB, np.full(RGB.shape[:2], 255, np.uint8)])
    same(save(tmp_path, "opaque.png", rgba), RGB)
    rgba[0, 0, 3], rgba[0, 1] = 0, (200, 100, 50, 128)
    expected = RGB.copy()
    expected[0, 0], expected[0, 1] = 0, (100, 50, 25)
    same(save(tmp_path, "rgba.png", rgba), expected)
    la = Image.fromarray(np.dstack([GREY, rgba[:, :, 3]]), mode=None)
    same(save(tmp_path, "la.png", la), as_image(la))
    assert not as_image(la)[0, 0].any()


def test_transparent_colours_of_palettes_and_chunks(tmp_path):
    palette = Image.new("P", (2, 1))
    palette.putpalette([10, 20, 30, 40, 50, 60])
    palette.putpixel((1, 0), 1)
    for transparency in (0, b"\x00\xff"):
        same(save(tmp_path, "p.png", palette, transparency=transparency), [[[0, 0, 0], [40, 50, 60]]])
    two = np.uint8([[[10, 20, 30], [40, 50, 60]]])
    same(save(tmp_path, "rgb.png", two, transparency=(10, 20, 30)), [[[0, 0, 0], [40, 50, 60]]])


def test_the_first_frame_is_taken(tmp_path):
    frames = [Image.fromarray(RGB), Image.fromarray(255 - RGB)]
    same(save(tmp_path, "a.tif", frames[0], save_all=True, append_images=frames[1:]), RGB)
    same(save(tmp_path, "a.png", frames[0], save_all=True, append_images=frames[1:]), RGB)
    path = save(tmp_path, "a.gif", frames[0], save_all=True, append_images=frames[1:])
    same(path, np.asarray(Image.open(path).convert("RGB")))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("name", ["a.png", "a.tif", "a.jpg"])
def test_exif_orientation_is_applied_once(tmp_path, name, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = save(tmp_path, name, RGB, exif=exif)
    with Image.open(path) as image:
        expected = np.asarray(ImageOps.exif_transpose(image).convert("RGB"))
    same(path, expected)
    with Image.open(path) as image:
        np.testing.assert_array_equal(as_image(image), expected)
        np.testing.assert_array_equal(as_image(image), expected)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "I;16"])
@pytest.mark.parametrize("compression", ["raw", "tiff_lzw"])
def test_a_tiff_is_upright_from_its_path_and_its_bytes_and_by_its_header(
    tmp_path, mode, compression, orientation
):
    rng = np.random.default_rng(0)
    counts = rng.integers(0, 60_000, (60, 100)).astype(np.uint16)
    pixels = (
        counts
        if mode == "I;16"
        else np.asarray(Image.fromarray((counts >> 8).astype(np.uint8)).convert(mode))
    )
    path = tmp_path / "a.tif"
    Image.fromarray(pixels).save(path, compression=compression, tiffinfo={0x0112: orientation})
    plain = tmp_path / "plain.tif"
    Image.fromarray(pixels).save(plain, compression=compression)
    expected = UPRIGHT[orientation](read_raw(plain))
    for held in (path, path.read_bytes()):
        np.testing.assert_array_equal(read_raw(held), expected)
        assert size_of(held) == expected.shape[:2]


UPRIGHT = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: a[::-1, ::-1].swapaxes(0, 1),
    8: lambda a: np.rot90(a, 1),
}


@pytest.mark.parametrize("behind", [False, True])
def test_the_size_of_a_png_is_told_without_decoding_it(tmp_path, monkeypatch, behind):
    exif = Image.Exif()
    exif[0x0112] = 6
    path = save(tmp_path, "a.png", RGB[:, : RGB.shape[1] // 2], exif=exif)
    data = path.read_bytes()
    if behind:  # the chunk moves to where Pillow finds it only by decoding
        at = data.index(b"eXIf") - 4
        end = at + 12 + int.from_bytes(data[at : at + 4], "big")
        data = data[:at] + data[end:-12] + data[at:end] + data[-12:]
    decoded = []
    load = ImageFile.ImageFile.load
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda self: decoded.append(1) or load(self))
    size = size_of(data)
    assert bool(decoded) == behind
    assert size == read_image(data).shape[:2] == (RGB.shape[1] // 2, RGB.shape[0])


def test_what_lies_behind_the_end_of_a_png_is_not_walked_through(tmp_path):
    """A hole reads as a million chunks of nothing."""
    read, data = [], save(tmp_path, "a.png", RGB).read_bytes()

    class Counting(io.BytesIO):
        def read(self, size=-1):
            read.append(size)
            return super().read(size)

    assert not images._tells_behind(Counting(data + bytes(100_000)))
    assert not images._tells_behind(Counting(data[:-12] + bytes(100_000)))
    assert len(read) < 20


def test_impossible_orientations_and_garbled_exif_leave_the_image_as_it_is(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 77
    same(save(tmp_path, "a.png", RGB, exif=exif), RGB)
    same(save(tmp_path, "b.png", RGB, exif=b"Exif\x00\x00MM\x00*\xff\xff"), RGB)


def test_one_pixel(tmp_path):
    same(save(tmp_path, "one.png", RGB[:1, :1]), RGB[:1, :1])


def test_a_large_jpeg_can_be_decoded_smaller(tmp_path):
    smooth = np.asarray(Image.fromarray(RGB).resize((1600, 800), Image.Resampling.BICUBIC))
    exif = Image.Exif()
    exif[0x0112] = 6
    path = save(tmp_path, "a.jpg", smooth, quality=95, exif=exif)
    assert read_image(path).shape == (1600, 800, 3)
    assert read_image(path, at_least=200).shape == (400, 200, 3)
    assert read_image(path, at_least=201).shape == (800, 400, 3)
    assert read_image(path, at_least=5000).shape == (1600, 800, 3)
    assert as_image(path, at_least=0).shape == (200, 100, 3)
    full, fast = (resize(read_image(path, at_least=n), (200, 100)) for n in (None, 200))
    assert np.abs(full.astype(int) - fast).mean() < 2
    assert read_image(save(tmp_path, "a.png", RGB), at_least=1).shape == RGB.shape


# Files that are no images


def png_header(width, height):
    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(b""))
        + chunk(b"IEND", b"")
    )


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.tif", "a.bmp", "a.webp", "a.gif", "a.ppm"])
def test_truncated_files_never_pass(tmp_path, name):
    noise = RNG.integers(0, 256, (40, 40, 3), dtype=np.uint8)
    data = save(tmp_path, name, noise).read_bytes()
    for size in (1, 5, 12, 30, len(data) // 2, int(len(data) * 0.9)):
        path = tmp_path / f"cut-{size}-{name}"
        path.write_bytes(data[:size])
        with pytest.raises(ImageError, match=f"{path.name}: "):
            read_image(path)


def test_garbled_files_never_raise_anything_else(tmp_path):
    path = tmp_path / "garbled"
    for name in ("a.png", "a.jpg", "a.tif", "a.bmp", "a.webp", "a.gif", "a.ppm"):
        data = save(
            tmp_path, name, RGB, **({"compression": "tiff_lzw"} if name == "a.tif" else {})
        ).read_bytes()
        for _ in range(60):
            garbled = bytearray(data)
            for at in RNG.integers(0, len(data), 4):
                garbled[at] = RNG.integers(0, 256)
            path.write_bytes(garbled)
            with warnings.catch_warnings(), contextlib.suppress(ImageError):
                warnings.simplefilter("ignore")
                assert read_image(path).dtype == np.uint8


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "empty"),
        (b"hello, I am text", "known kind.*hello"),
        (b"P", "known kind"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n", "known kind"),
        (b"<svg xmlns=''/>", "known kind"),
        (b"BMW is a make of cars", "damaged BMP header"),
        (b"\xff\xd8\xff\xe0", "JPEG"),
    ],
)
def test_other_files(tmp_path, content, message):
    (tmp_path / "x.png").write_bytes(content)
    with pytest.raises(ImageError, match=rf"x\.png: .*{message}"):
        read_image(tmp_path / "x.png")


def test_missing_files_folders_and_odd_paths(tmp_path):
    (tmp_path / "x.png").mkdir()
    with pytest.raises(ImageError, match=r"x\.png: .*folder"):
        read_image(tmp_path / "x.png")
    with pytest.raises(ImageError, match=r"gone\.png: no such file"):
        read_image(str(tmp_path / "gone.png"))
    with pytest.raises(ImageError, match="cannot be read"):
        read_image("a\0b.png")
    with pytest.raises(ImageError, match="cannot be read"):
        read_image("a" * 5000)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes here")
def test_a_named_pipe_does_not_hang(tmp_path):
    os.mkfifo(tmp_path / "x.png")
    with pytest.raises(ImageError, match="regular file"):
        read_image(tmp_path / "x.png")


def test_permission_denied(tmp_path, monkeypatch):
    path = save(tmp_path, "a.png", RGB)

    def refuse(*args):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(images, "open", refuse, raising=False)
    with pytest.raises(ImageError, match=r"a\.png: cannot be read: Permission denied"):
        read_image(path)


@pytest.mark.parametrize("size", [(60_000, 60_000), (MAX_PIXELS + 1, 1)])
def test_a_decompression_bomb_is_refused_by_its_header(tmp_path, size):
    (tmp_path / "bomb.png").write_bytes(png_header(*size))
    with pytest.raises(ImageError, match=r"bomb\.png: .*pixels, more than the limit of 178,000,000"):
        read_image(tmp_path / "bomb.png")


def jpeg_of_scans(count, *, side=400, beside=b"", behind=b""):
    """A progressive JPEG of so many scans, with segments before the first and bytes behind the last."""
    out = io.BytesIO()
    Image.fromarray(RGB).save(out, "JPEG", progressive=True)
    data = out.getvalue()
    size, last = data.find(b"\xff\xc2") + 5, data.rfind(b"\xff\xda")
    repeated = data[last:-2] * (count - data.count(b"\xff\xda"))
    shape = struct.pack(">HH", side, side)
    return b"\xff\xd8" + beside + data[2:size] + shape + data[size + 4 : -2] + repeated + b"\xff\xd9" + behind


def jpeg_in_tiff(data, side):
    tags = [(256, side), (257, side), (258, 8), (259, 7), (262, 6), (273, 134), (277, 3), (278, side)]
    tags += [(279, len(data)), (284, 1)]
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags)
    return b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + struct.pack("<I", 0) + data


def test_a_jpeg_of_thousands_of_scans_is_refused(tmp_path):
    data = jpeg_of_scans(MAX_SCANS + 1)
    path = tmp_path / "a.jpg"
    path.write_bytes(data)
    assert size_of(path) == size_of(data) == (400, 400)
    for read in (
        lambda: read_image(path),
        lambda: read_image(path, at_least=50),
        lambda: read_values(path),
        lambda: as_raw(path),
        lambda: as_image(data, where="a.jpg"),
        lambda: as_raw(data, where="a.jpg"),
        lambda: as_image(Image.open(path), where="a.jpg"),
    ):
        with pytest.raises(ImageError, match=r"a\.jpg: a JPEG of more than the limit of 100 scans"):
            read()
    assert as_image(jpeg_of_scans(MAX_SCANS)).shape == (400, 400, 3)


def test_a_jpeg_of_thousands_of_segments_is_refused():
    most = images._MAX_SEGMENTS
    assert as_image(jpeg_of_scans(10, beside=b"\xff\xfe\0\2" * (most - 100))).shape == (400, 400, 3)
    with pytest.raises(ImageError, match=r"more than the limit of .* 10,000 segments"):
        as_image(jpeg_of_scans(10, beside=b"\xff\xfe\0\2" * most))


def test_a_file_of_millions_of_pieces_is_given_up(monkeypatch):
    files = io.BytesIO(), io.BytesIO()
    for file, kind in zip(files, ("JPEG", "PNG"), strict=True):
        Image.new("RGB", (8, 8)).save(file, kind)
    jpeg, png = (file.getvalue() for file in files)
    chunk = b"\0\0\0\0abCd" + struct.pack(">I", zlib.crc32(b"abCd"))
    for begun, piece, rest in ((jpeg[:2], b"\xff\xfe\0\2", jpeg[2:]), (png[:33], chunk, png[33:])):
        assert size_of(begun + 1_000 * piece + rest) == (8, 8)
        with pytest.raises(ImageError, match="header: more than the limit of 100,000 pieces"):
            size_of(begun + 100_000 * piece + rest)
    assert read_image(png[:-12] + 1_000 * chunk + png[-12:]).shape == (8, 8, 3)
    monkeypatch.setattr(images, "_MAX_READS_BEHIND", 10_000)
    with pytest.raises(ImageError, match="more than the limit of 10,000 pieces"):
        read_image(png[:-12] + 10_000 * chunk + png[-12:])


def test_a_jpeg_of_thousands_of_scans_in_a_tiff_is_refused():
    """By libtiff."""
    good, bad = (jpeg_in_tiff(jpeg_of_scans(count), 400) for count in (10, MAX_SCANS + 10))
    assert as_image(good).shape == (400, 400, 3)
    with pytest.raises(ImageError, match="damaged"):
        as_image(bad)


def test_scans_are_those_of_the_picture_alone():
    """Not of a small picture within a segment, and not of what stands behind the end."""
    many = b"\xff\xda\0\2" * 1000
    beside = b"\xff\xe1" + struct.pack(">H", len(many) + 2) + many
    plain = as_image(jpeg_of_scans(10))
    np.testing.assert_array_equal(as_image(jpeg_of_scans(10, beside=beside, behind=many)), plain)


@pytest.mark.parametrize("piece", [4, 5, 6, 7, 8, 13, 100])
def test_segments_are_found_wherever_the_file_is_cut(monkeypatch, piece):
    file = io.BytesIO(b"before" + jpeg_of_scans(20, beside=b"\xff\xff\xff\xe5\0\4\xff\xda"))
    file.seek(6)
    whole = list(images._segments(file))
    assert whole.count(0xDA) == 20
    assert whole[0] == 0xE5
    monkeypatch.setattr(images, "_PIECE", piece)
    file.seek(6)
    assert list(images._segments(file)) == whole


PEAKS = [
    ("PNG", "RGB", {}, 10),
    ("PNG", "L", {}, 10),
    ("JPEG", "RGB", {}, 10),
    ("BMP", "RGB", {}, 10),
    ("TIFF", "RGB", {"compression": "jpeg"}, 10),
    ("JPEG", "RGB", {"progressive": True}, 17),
    ("JPEG", "CMYK", {"progressive": True}, 17),
    ("PNG", "RGBA", {}, 17),
    ("PNG", "LA", {}, 17),
    ("PNG", "P", {}, 17),
    ("PNG", "RGB", {"transparency": (1, 2, 3)}, 17),
    ("GIF", "P", {}, 17),
    ("TIFF", "CMYK", {}, 17),
    ("PNG", "I;16", {}, 20),
    ("TIFF", "F", {}, 20),
    ("WEBP", "RGBA", {}, 20),
]


def of_mode(mode, shape):
    """Of every value, opacity as well."""
    y, x = np.indices(shape)
    grey = ((x // 16 + y // 16) % 256).astype(np.uint8)
    if mode in ("I;16", "F"):
        return Image.fromarray(grey * np.uint16(257) if mode == "I;16" else grey.astype(np.float32) / 255)
    image = Image.fromarray(np.dstack([grey, 255 - grey, grey // 2, grey]))
    return image.convert("RGB").convert(mode) if mode in ("P", "CMYK") else image.convert(mode)


@pytest.mark.parametrize(("kind", "mode", "options", "expected"), PEAKS)
def test_memory_is_judged_by_the_header(tmp_path, kind, mode, options, expected):
    path = save(tmp_path, "a", of_mode(mode, (40, 30)), format=kind, **options)
    assert bytes_a_pixel(path) == bytes_a_pixel(path.read_bytes()) == expected


MEASURE = """
import sys
from pathlib import Path
from moleflow.data.images import as_image, as_raw

def kilobytes(name):
    return int(Path("/proc/self/status").read_text().split(name)[1].split()[0])

data, small = (Path(path).read_bytes() for path in sys.argv[1:])
for read in (as_image, as_raw):
    read(small)
    Path("/proc/self/clear_refs").write_text("5")
    before = kilobytes("VmRSS:")
    read(data)
    print((kilobytes("VmHWM:") - before) * 1024)
"""


@pytest.mark.slow
@pytest.mark.skipif(not os.path.exists("/proc/self/clear_refs"), reason="no peak of memory is told here")
@pytest.mark.parametrize(("kind", "mode", "options", "expected"), PEAKS)
def test_memory_is_what_was_judged(tmp_path, kind, mode, options, expected):
    paths = [
        save(tmp_path, str(side), of_mode(mode, (side, side)), format=kind, **options) for side in (8, 3000)
    ]
    command = [sys.executable, "-c", MEASURE, paths[1], paths[0]]
    told = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    for peak in told.split():
        assert int(peak) < (expected + 0.5) * 3000 * 3000


@pytest.mark.parametrize("host_limit", [None, 1, 89_478_485])
def test_the_hosts_limits_and_warning_filters_play_no_part(tmp_path, monkeypatch, host_limit):
    path = save(tmp_path, "a.png", RGB)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", host_limit)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        same(path, RGB)
    assert host_limit == Image.MAX_IMAGE_PIXELS
    assert ImageFile.LOAD_TRUNCATED_IMAGES is False


@pytest.mark.slow
def test_108_megapixels(tmp_path):
    path = save(tmp_path, "a.png", Image.new("1", (12_000, 9_000), 1))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        image = read_image(path)
    assert image.shape == (9_000, 12_000, 3)
    assert image[::1000, ::1000].min() == 255


def test_many_threads(tmp_path):
    paths = [save(tmp_path, f"{i}.png", np.roll(RGB, i, axis=0)) for i in range(8)]
    filters = list(warnings.filters)
    with ThreadPoolExecutor(8) as pool:
        results = list(pool.map(read_image, paths * 10))
    for i, result in enumerate(results):
        np.testing.assert_array_equal(result, np.roll(RGB, i % 8, axis=0))
    assert list(warnings.filters) == filters
    assert threading.active_count() < 50


# Arrays, tensors, PIL images

UNIT = RGB / 255.0


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (RGB, RGB),
        (GREY, three(GREY)),
        (GREY[:, :, None], three(GREY)),
        (RGB[::-1, ::2], RGB[::-1, ::2]),
        (RGB.astype(np.uint16) * 257, RGB),
        (GREY > 100, three((GREY > 100).astype(np.uint8) * 255)),
        (UNIT, RGB),
        (UNIT.astype(np.float32), RGB),
        ((GREY / 255).astype(np.float16), three(GREY)),
        (np.dstack([UNIT, np.ones(GREY.shape)]), RGB),
        (np.dstack([RGB, np.zeros_like(GREY)]), np.zeros_like(RGB)),
        (np.full((1, 1), 1 + 1e-9), np.full((1, 1, 3), 255)),
        (torch.from_numpy(RGB).permute(2, 0, 1), RGB),
        (torch.from_numpy(UNIT).permute(2, 0, 1).requires_grad_(), RGB),
        (torch.from_numpy(GREY), three(GREY)),
        (torch.from_numpy(GREY)[None], three(GREY)),
        (torch.ones(3, 2, 2, dtype=torch.bfloat16), np.full((2, 2, 3), 255)),
        (torch.from_numpy(GREY > 9), three((GREY > 9).astype(np.uint8) * 255)),
        (Image.fromarray(RGB), RGB),
        (Image.fromarray(GREY), three(GREY)),
        (Image.fromarray(RAMP16), three(np.rint(RAMP16 / 257))),
    ],
)
def test_values(value, expected):
    result = as_image(value)
    assert result.dtype == np.uint8
    assert result.flags.c_contiguous
    np.testing.assert_array_equal(result, expected)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (np.full((2, 2), np.nan), "NaN"),
        (np.full((2, 2), np.inf), "infinity"),
        (np.array([[0.0, np.nan]]), "NaN"),
        (np.full((2, 2), 1.01), r"\[0, 1\], got 1\.01"),
        (np.full((2, 2), -0.1), r"got -0\.1"),
        (RGB.astype(np.float32), r"\[0, 1\]"),
        (RGB.astype(np.int64), "uint8, uint16, bool or float values, got int64"),
        (RGB.astype(np.complex64), "complex64"),
        (np.full((2, 2), None), "object"),
        (np.zeros((3, 8, 9), np.uint8), r"\(H, W, 1\|3\|4\), got \(3, 8, 9\)"),
        (np.zeros((1, 8, 8, 3), np.uint8), r"got \(1, 8, 8, 3\)"),
        (np.zeros(3, np.uint8), r"got \(3,\)"),
        (np.zeros((0, 4, 3), np.uint8), "at least one pixel"),
        (torch.zeros(8, 9, 3), r"\(1\|3\|4, H, W\), got \(8, 9, 3\)"),
        (torch.zeros(1, 3, 8, 8), r"got \(1, 3, 8, 8\)"),
        (torch.full((3, 2, 2), 2.0), r"got 2\.\.2"),
        (torch.zeros(2, 2, dtype=torch.int64), "int64"),
        (None, "got NoneType"),
        ([[0, 1], [1, 0]], "got list"),
        (b"bytes", "not an image of a known kind"),
        (b"", "this one is empty"),
        (bytearray(b"bytes"), "got bytearray"),
    ],
)
def test_values_that_are_no_image(value, message):
    with pytest.raises(ImageError, match=f"image 7: .*{message}"):
        as_image(value, where="image 7")


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.tiff"])
def test_the_bytes_of_a_file_are_the_file(tmp_path, name):
    path = save(tmp_path, name, RGB)
    np.testing.assert_array_equal(as_image(path.read_bytes()), as_image(path))
    np.testing.assert_array_equal(as_raw(path.read_bytes()), as_raw(path))
    assert size_of(path.read_bytes()) == size_of(path)


def test_the_bytes_of_a_deep_file_are_the_file(tmp_path):
    deep = np.arange(12, dtype=np.uint16).reshape(3, 4) * 5000
    Image.fromarray(deep).save(tmp_path / "a.png")
    (tmp_path / "a.ppm").write_bytes(b"P6 2 1 65535\n" + bytes(range(12)))
    for path in (tmp_path / "a.png", tmp_path / "a.ppm"):
        np.testing.assert_array_equal(as_raw(path.read_bytes()), as_raw(path))
    with pytest.raises(ImageError, match=r"photo: .*truncated"):
        as_raw(b"P6 9 9 65535\n" + bytes(range(12)), where="photo")


def test_paths_and_open_pil_images(tmp_path):
    path = save(tmp_path, "a.png", RGB)
    np.testing.assert_array_equal(as_image(path), RGB)
    np.testing.assert_array_equal(as_image(str(path)), RGB)
    broken = Image.open(io.BytesIO(path.read_bytes()[:-30]))
    with pytest.raises(ImageError, match="image 3: damaged"):
        as_image(broken, where="image 3")


# Resizing


def test_resize_is_antialiased_and_keeps_constants():
    checker = np.indices((64, 64)).sum(0) % 2 * 255
    small = resize(three(checker.astype(np.uint8)), (8, 16))
    assert small.shape == (8, 16, 3)
    assert np.abs(small.astype(int) - 127).max() <= 2
    assert (resize(np.full((5, 7, 3), 93, np.uint8), (11, 3)) == 93).all()
    assert resize(RGB[:1, :1], (4, 5)).shape == (4, 5, 3)
    np.testing.assert_array_equal(resize(RGB, (6, 8)), RGB)
    assert resize(RGB[:, ::-1], (3, 4)).flags.writeable


def test_resize_keeps_positions():
    image = np.zeros((900, 900, 3), np.uint8)
    image[600:, :300] = 255
    small = resize(image, (30, 30))
    assert small[21:, :9].min() == 255
    assert small[:19].max() == 0
    assert small[:, 11:].max() == 0
