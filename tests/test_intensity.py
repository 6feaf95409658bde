"""One range of numbers for a line: what files and arrays hold, how it is chosen, what a line makes of it."""

import io
import json
import struct
import tracemalloc
import zlib
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from moleflow import Detector
from moleflow.data import deep
from moleflow.data.images import as_image, as_raw, has_8_bits, read_image, read_raw
from moleflow.data.intensity import (
    BITS,
    FULL,
    Intensity,
    choose_intensity,
    levels_of,
    levels_of_8_bits,
    parse_intensity,
)
from moleflow.errors import ConfigError, ImageError, LineError
from moleflow.intake import Intake
from saying import write_index

RNG = np.random.default_rng(0)
DEEP = RNG.integers(0, 65536, (6, 8, 3), dtype=np.uint16)
GREY = DEEP[:, :, 0].copy()


# Files of more than 8 bits, written by hand: Pillow writes no 16-bit colour


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def filtered(row, above, kind, step):
    """A line of a PNG under one of its five filters."""
    left = np.concatenate([np.zeros(step, np.int64), row[:-step]])
    corner = np.concatenate([np.zeros(step, np.int64), above[:-step]])
    estimate = left + above - corner
    near = [abs(estimate - side) for side in (left, above, corner)]
    paeth = np.where(
        (near[0] <= near[1]) & (near[0] <= near[2]), left, np.where(near[1] <= near[2], above, corner)
    )
    guess = (0, left, above, (left + above) // 2, paeth)[kind]
    return bytes([kind]) + ((row - guess) % 256).astype(np.uint8).tobytes()


def png(pixels, *, extra=b"", keep=1.0):
    """A 16-bit PNG, a line in each filter by turns."""
    height, width = pixels.shape[:2]
    channels = pixels.shape[2] if pixels.ndim == 3 else 1
    rows = pixels.astype(">u2").reshape(height, -1).view(np.uint8).astype(np.int64)
    above = np.vstack([np.zeros_like(rows[:1]), rows[:-1]])
    lines = [
        filtered(row, up, i % 5, 2 * channels) for i, (row, up) in enumerate(zip(rows, above, strict=True))
    ]
    data = zlib.compress(b"".join(lines))
    header = struct.pack(">IIBBBBB", width, height, 16, {1: 0, 2: 4, 3: 2, 4: 6}[channels], 0, 0, 0)
    body = (
        chunk(b"IHDR", header) + extra + chunk(b"IDAT", data[: int(len(data) * keep)]) + chunk(b"IEND", b"")
    )
    return b"\x89PNG\r\n\x1a\n" + body


ADAM7 = ((0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1))


def interlaced_png(pixels):
    """A 16-bit colour PNG in seven passes."""
    height, width = pixels.shape[:2]
    passes = [pixels[y::dy, x::dx].astype(">u2") for y, x, dy, dx in ADAM7]
    lines = [b"\0" + row.tobytes() for part in passes if part.size for row in part]
    header = struct.pack(">IIBBBBB", width, height, 16, 2, 0, 0, 1)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"".join(lines))) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def tiff(pixels, *, order="<", compression=1, predictor=1, planes=1, sample_format=1, extra=None):
    """A TIFF of one strip, plain or deflated, of whole numbers or floats."""
    height, width = pixels.shape[:2]
    channels = pixels.shape[2] if pixels.ndim == 3 else 1
    kind = pixels.dtype.newbyteorder(order)
    shaped = pixels.reshape(height, width, channels)
    if predictor == 2:
        shaped = np.concatenate([shaped[:, :1], shaped[:, 1:] - shaped[:, :-1]], axis=1)
    data = (shaped.transpose(2, 0, 1) if planes == 2 else shaped).astype(kind).tobytes()
    data = zlib.compress(data) if compression == 8 else data
    tags = [(256, 3, [width]), (257, 3, [height]), (258, 3, [8 * kind.itemsize] * channels)]
    tags += [(259, 3, [compression]), (262, 3, [1 if channels == 1 else 2]), (277, 3, [channels])]
    tags += [(278, 3, [height]), (279, 4, [len(data)]), (284, 3, [planes]), (317, 3, [predictor])]
    tags += [(339, 3, [sample_format] * channels)] + ([(338, 3, [extra])] if extra is not None else [])
    strips = [8 + i * (len(data) // channels) for i in range(channels)] if planes == 2 else [8]
    if planes == 2:
        tags = [(279, 4, [len(data) // channels] * channels) if tag[0] == 279 else tag for tag in tags]
    tags = sorted([*tags, (273, 4, strips)])
    at = 8 + len(data)
    spare, entries = b"", b""
    for tag, kind_of, values in tags:
        packed = struct.pack(order + ("H" if kind_of == 3 else "I") * len(values), *values)
        if len(packed) > 4:
            place = at + 2 + 12 * len(tags) + 4 + len(spare)
            spare, packed = spare + packed, struct.pack(order + "I", place)
        entries += struct.pack(order + "HHI", tag, kind_of, len(values)) + packed.ljust(4, b"\0")
    start = {"<": b"II*\0", ">": b"MM\0*"}[order] + struct.pack(order + "I", at)
    return start + data + struct.pack(order + "H", len(tags)) + entries + b"\0\0\0\0" + spare


def lzw_tiff(pixels):
    """A 16-bit colour TIFF in LZW: an 8-bit one of twice the width has the same bytes, all but the header."""
    height, width = pixels.shape[:2]
    twice = np.frombuffer(pixels.astype("<u2").tobytes(), np.uint8).reshape(height, 2 * width, 3)
    file = io.BytesIO()
    Image.fromarray(twice).save(file, "TIFF", compression="tiff_lzw")
    data = bytearray(file.getvalue())
    at = struct.unpack_from("<I", data, 4)[0]
    for entry in range(at + 2, at + 2 + 12 * struct.unpack_from("<H", data, at)[0], 12):
        tag, kind = struct.unpack_from("<HH", data, entry)
        if tag == 256:
            struct.pack_into("<I" if kind == 4 else "<H", data, entry + 8, width)
        if tag == 258:
            struct.pack_into("<HHH", data, struct.unpack_from("<I", data, entry + 8)[0], 16, 16, 16)
    return bytes(data)


def written(folder, content, name="a.png"):
    path = folder / name
    path.write_bytes(content)
    return path


ALPHA = np.full((6, 8, 1), 65535, np.uint16)

COLOUR = {
    "png": lambda: png(DEEP),
    "png-rgba": lambda: png(np.dstack([DEEP, ALPHA])),
    "png-interlaced": lambda: interlaced_png(DEEP),
    "tiff": lambda: tiff(DEEP),
    "tiff-big-endian": lambda: tiff(DEEP, order=">"),
    "tiff-deflate": lambda: tiff(DEEP, compression=8),
    "tiff-deflate-big-endian": lambda: tiff(DEEP, compression=8, order=">"),
    "tiff-deflate-predictor": lambda: tiff(DEEP, compression=8, predictor=2),
    "tiff-lzw": lambda: lzw_tiff(DEEP),
    "tiff-rgba": lambda: tiff(np.dstack([DEEP, ALPHA]), extra=2),
    "tiff-rgbx": lambda: tiff(np.dstack([DEEP, ALPHA]), extra=0),
    "ppm": lambda: b"P6 8 6 65535\n" + DEEP.astype(">u2").tobytes(),
}


@pytest.mark.parametrize("kind", COLOUR)
def test_16_bit_colour_keeps_both_bytes(tmp_path, kind):
    path = written(tmp_path, COLOUR[kind]())
    raw = read_raw(path)
    assert raw.dtype == np.uint16
    np.testing.assert_array_equal(raw, DEEP)
    assert not has_8_bits(path)
    # What is read without a range stays what it was.
    np.testing.assert_allclose(read_image(path), DEEP / 257, atol=1)


@pytest.mark.parametrize("bits", BITS[1:])
@pytest.mark.parametrize("kind", ["png", "tiff", "tiff-deflate", "tiff-big-endian", "pgm"])
def test_grey_keeps_its_numbers(tmp_path, bits, kind):
    grey = (GREY >> (16 - bits)).astype(np.uint16)
    content = {
        "png": lambda: png(grey),
        "tiff": lambda: tiff(grey),
        "tiff-deflate": lambda: tiff(grey, compression=8),
        "tiff-big-endian": lambda: tiff(grey, order=">"),
        "pgm": lambda: b"P5\n# a camera\n8 6 %d\n" % (2**bits - 1) + grey.astype(">u2").tobytes(),
    }[kind]()
    path = written(tmp_path, content)
    np.testing.assert_array_equal(read_raw(path), grey)
    assert not has_8_bits(path)


def test_floats_and_signed_numbers_are_taken_in_counts(tmp_path):
    kelvin = RNG.normal(300, 3, (6, 8)).astype(np.float32)
    np.testing.assert_array_equal(read_raw(written(tmp_path, tiff(kelvin, sample_format=3))), kelvin)
    signed = RNG.integers(-400, 400, (6, 8)).astype(np.int16)
    np.testing.assert_array_equal(read_raw(written(tmp_path, tiff(signed, sample_format=2))), signed)
    large = RNG.integers(0, 1 << 24, (6, 8)).astype(np.int32)
    np.testing.assert_array_equal(read_raw(written(tmp_path, tiff(large, sample_format=2))), large)
    kelvin[2, 3] = np.nan
    with pytest.raises(ImageError, match=r"a\.png: expected finite values"):
        read_raw(written(tmp_path, tiff(kelvin, sample_format=3)))


def test_transparent_deep_pixels_are_black(tmp_path):
    alpha = ALPHA.copy()
    alpha[0, 0], alpha[0, 1] = 0, 32768
    expected = DEEP.copy()
    expected[0, 0], expected[0, 1] = 0, np.rint(DEEP[0, 1] * (32768 / 65535))
    np.testing.assert_array_equal(read_raw(written(tmp_path, png(np.dstack([DEEP, alpha])))), expected)
    np.testing.assert_array_equal(as_raw(np.dstack([DEEP, alpha])), expected)
    grey = read_raw(written(tmp_path, png(np.dstack([GREY, alpha[:, :, 0]]))))
    np.testing.assert_array_equal(grey, expected[:, :, 0])
    key = chunk(b"tRNS", DEEP[2, 2].astype(">u2").tobytes())
    keyed = read_raw(written(tmp_path, png(DEEP, extra=key)))
    assert not keyed[2, 2].any()
    np.testing.assert_array_equal(keyed[3:], DEEP[3:])


@pytest.mark.parametrize("orientation", range(1, 9))
def test_deep_images_stand_upright(tmp_path, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    tag = chunk(b"eXIf", exif.tobytes()[6:])
    plain = Image.fromarray((DEEP >> 8).astype(np.uint8))
    plain.save(tmp_path / "plain.png", exif=exif)
    turned = read_raw(written(tmp_path, png(DEEP, extra=tag)))
    np.testing.assert_array_equal(turned >> 8, read_image(tmp_path / "plain.png"))
    np.testing.assert_array_equal(read_raw(written(tmp_path, png(GREY, extra=tag))), turned[:, :, 0])


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.tif", "a.bmp", "a.gif", "a.webp", "a.ppm"])
@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_8_bit_files_are_what_they_were_to_the_bit(tmp_path, name, mode):
    picture = Image.fromarray((DEEP >> 8).astype(np.uint8)).convert(mode)
    picture.save(tmp_path / name)
    assert has_8_bits(tmp_path / name)
    np.testing.assert_array_equal(read_raw(tmp_path / name), read_image(tmp_path / name))


def test_the_tiles_of_older_pillows_are_plain_tuples():
    image = SimpleNamespace(tile=[("raw", (0, 0, 8, 6), 8, ("RGB;16L", 0, 1))], format="TIFF", mode="RGB")
    assert deep.lower_layout(image, "a") == "RGB;16B"
    deep.relay(image, "RGB;16B")
    assert image.tile == [("raw", (0, 0, 8, 6), 8, ("RGB;16B", 0, 1))]


# Hostile files


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
@pytest.mark.parametrize("kind", [*COLOUR, "pgm"])
def test_truncated_and_garbled_deep_files_give_a_named_error(tmp_path, kind):
    data = COLOUR[kind]() if kind in COLOUR else b"P5 8 6 4095\n" + GREY.astype(">u2").tobytes()
    for size in (3, 20, len(data) // 2, len(data) - 40):
        with pytest.raises(ImageError, match=r"cut\.bin: "):
            read_raw(written(tmp_path, data[:size], "cut.bin"))
    for _ in range(40):
        garbled = bytearray(data)
        for at in RNG.integers(0, len(data), 3):
            garbled[at] = RNG.integers(0, 256)
        try:
            raw = read_raw(written(tmp_path, bytes(garbled), "garbled.bin"))
        except ImageError:
            continue
        assert raw.dtype in (np.uint8, np.uint16, np.int32, np.float32)


@pytest.mark.parametrize(
    "content", [b"P6 60000 60000 65535\n", b"P5 60000 60000 4095\n", b"P6 9000 9000 4095\n"]
)
def test_a_large_promise_costs_no_memory(tmp_path, content):
    path = written(tmp_path, content)
    tracemalloc.start()
    with pytest.raises(ImageError, match=r"limit|truncated"):
        read_raw(path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 1 << 20


def test_a_16_bit_bomb_is_refused_by_its_header(tmp_path):
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 60_000, 60_000, 16, 2, 0, 0, 0))
    data = b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")
    for read in (read_raw, has_8_bits):
        with pytest.raises(ImageError, match="more than the limit"):
            read(written(tmp_path, data))


def test_layouts_of_deep_colour_that_are_not_read_say_so(tmp_path):
    with pytest.raises(ImageError, match="a plane a colour"):
        read_raw(written(tmp_path, tiff(DEEP, planes=2)))
    with pytest.raises(ImageError, match="multiplied by their opacity"):
        read_raw(written(tmp_path, tiff(np.dstack([DEEP, ALPHA]), extra=1)))


# Arrays and tensors


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (GREY, GREY),
        (GREY[:, :, None], GREY),
        (GREY.astype(">u2"), GREY),
        (DEEP[::-1, ::2], DEEP[::-1, ::2]),
        (GREY.astype(np.int32), GREY),
        ((GREY >> 2).astype(np.int16), GREY >> 2),
        (GREY.astype(np.float64), GREY),
        (torch.from_numpy(GREY.astype(np.int32)), GREY),
        (torch.from_numpy(DEEP.astype(np.float32)).permute(2, 0, 1), DEEP),
        (torch.from_numpy(DEEP).permute(2, 0, 1), DEEP),
        (Image.fromarray(GREY), GREY),
    ],
)
def test_values_keep_their_numbers(value, expected):
    raw = as_raw(value)
    assert raw.dtype in (np.uint16, np.int32, np.float32)
    assert raw.dtype.isnative
    np.testing.assert_array_equal(raw, expected)


@pytest.mark.parametrize("value", [np.uint8(DEEP >> 8), DEEP > 99, torch.zeros(4, 4, dtype=torch.uint8)])
def test_8_bit_values_are_what_they_were(value):
    np.testing.assert_array_equal(as_raw(value), as_image(value))


@pytest.mark.parametrize(
    "value",
    [
        None,
        GREY.astype(np.int64),
        np.full((2, 2), np.inf),
        np.full((2, 2), 1e300),
        np.zeros((0, 2), np.uint16),
        np.zeros((4, 2, 2), np.uint16),
        np.full((2, 2, 4), 7.0),
        np.zeros((2, 2, 4), np.int32),
    ],
)
def test_values_that_have_no_numbers_to_keep(value):
    with pytest.raises(ImageError, match=r"image 7: "):
        as_raw(value, where="image 7")


# The range

NUMBERS = st.floats(-1e6, 1e6, width=32)


@given(st.tuples(NUMBERS, NUMBERS).filter(lambda ends: ends[0] < ends[1]), st.lists(NUMBERS, min_size=1))
def test_larger_is_never_darker_and_an_image_does_not_depend_on_its_own_numbers(ends, numbers):
    intensity = Intensity(*ends, "float")
    raw = np.sort(np.array([numbers], np.float32))
    levels = intensity.apply(raw)[0, :, 0]
    assert (np.diff(levels.astype(int)) >= 0).all()
    assert (levels[raw[0] <= ends[0]] == 0).all()
    assert (levels[raw[0] >= ends[1]] == 255).all()
    alone = [intensity.apply(raw[:, i : i + 1])[0, 0, 0] for i in range(raw.shape[1])]
    np.testing.assert_array_equal(levels, alone)
    beyond = np.mean((raw < ends[0]) | (raw > ends[1]))
    assert intensity.clipped(raw) == pytest.approx(beyond)


@pytest.mark.parametrize("bits", BITS[1:])
def test_a_depth_uses_all_grey_levels_and_types_agree(bits):
    intensity = Intensity(0, 2**bits - 1, "integer")
    every = np.arange(2**bits, dtype=np.uint16).reshape(8, -1)
    levels = intensity.apply(every)
    assert np.unique(levels).size == 256
    np.testing.assert_array_equal(levels, intensity.apply(every.astype(np.int32)))
    np.testing.assert_array_equal(levels, np.rint(every / (2**bits - 1) * 255)[:, :, None].repeat(3, axis=2))
    assert intensity.clipped(every) == 0
    if bits == 16:
        np.testing.assert_array_equal(levels, as_image(every))


def test_full_is_the_range_of_the_type():
    for raw in (GREY, (DEEP >> 8).astype(np.uint8), RNG.random((4, 4)).astype(np.float32)):
        np.testing.assert_array_equal(FULL.apply(raw), as_image(raw))


def test_a_pixel_is_beyond_the_range_when_one_of_its_colours_is():
    raw = np.full((600, 2, 3), 100, np.uint16)
    raw[0, 0, 1], raw[599, 1, 2] = 5000, 5
    assert Intensity(10, 4000, "integer").clipped(raw) == pytest.approx(2 / 1200)
    assert FULL.clipped(raw) == 0


def test_mapping_needs_no_wide_copy_of_a_large_image():
    raw = np.full((4000, 1000), 300.5, np.float32)
    intensity = Intensity(280, 320, "float")
    tracemalloc.start()
    intensity.apply(raw)
    intensity.clipped(raw)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 5 * raw.size  # the result has three bytes a pixel, and was one while grey


@pytest.mark.parametrize(
    ("asked", "text"),
    [
        ("auto", "auto"),
        (" Full", "full"),
        (12, "12"),
        ("0:4095", "12"),
        ((6800, 7600), "6800:7600"),
        ("-40:120.5", "-40:120.5"),
        ("1e3:2e3", "1000:2000"),
    ],
)
def test_what_is_asked_for_has_one_way_of_writing(asked, text):
    assert parse_intensity(asked) == text
    assert parse_intensity(text) == text


@pytest.mark.parametrize(
    "asked", ["", "11", "9:3", "3:3", "a:b", "nan:1", "0:inf", "1:2:3", "0:1e99", None, ()]
)
def test_what_cannot_be_asked_for(asked):
    with pytest.raises(ConfigError, match="expected an intensity of auto, full, 8, 10, 12, 14, 16"):
        parse_intensity(asked)


@pytest.mark.parametrize(
    "values",
    [(1, 1, "integer"), (2, 1, "integer"), (0, float("nan"), "float"), (0, "9", "float"), (0, 1, "odd")],
)
def test_no_range_is_no_intensity(values):
    with pytest.raises(ConfigError):
        Intensity(*values)


# The choice


def chosen(*raws, wish="auto"):
    return choose_intensity(wish, [levels_of(raw, f"image {i}") for i, raw in enumerate(raws)])


@pytest.mark.parametrize("bits", BITS)
def test_auto_finds_the_depth_of_a_camera(bits):
    raws = [RNG.integers(0, 2**bits, (40, 40)).astype(np.uint16) for _ in range(3)]
    assert (chosen(*raws).low, chosen(*raws).high) == (0, 2**bits - 1)
    assert str(chosen(*raws)) == f"{bits}-bit, 0..{2**bits - 1}"


@pytest.mark.parametrize("kind", [np.uint16, np.int32, np.float32])
@pytest.mark.parametrize(("level", "spread"), [(7200, 60), (7200, 300), (60000, 200), (900, 150)])
def test_a_narrow_band_gets_half_of_the_grey_levels_and_headroom(kind, level, spread):
    raws = [RNG.normal(level, spread, (64, 64)).clip(0, 65535).round().astype(kind) for _ in range(4)]
    found = chosen(*raws)
    low, high = (np.quantile(np.stack(raws), share) for share in (0.001, 0.999))
    assert found.low <= max(0, low - 0.4 * (high - low))
    assert found.high >= min(65535, high + 0.4 * (high - low))
    assert 100 <= np.ptp(found.apply(raws[0])[:, :, 0]) <= 200


def test_dead_pixels_and_a_stray_image_do_not_set_the_band():
    raws = [RNG.normal(300, 2, (64, 64)).astype(np.float32) for _ in range(40)]
    clean = chosen(*raws)
    for raw in raws:
        raw[3, 3], raw[5, 5] = 0, 4000
    raws[7][:] = 0
    found = chosen(*raws)
    assert abs(found.low - clean.low) < 1
    assert abs(found.high - clean.high) < 1
    assert found.clipped(raws[0]) == pytest.approx(2 / 4096, abs=1e-3)


def test_one_count_is_never_more_than_one_grey_level():
    for level in (3, 500, 4094, 65530):
        raw = RNG.integers(level, level + 4, (30, 30)).astype(np.uint16)
        found = chosen(raw)
        assert found.high - found.low >= 255
        assert np.unique(found.apply(raw)).size == 4


@pytest.mark.parametrize(
    "value", [np.uint16(0), np.uint16(700), np.float32(300), np.float32(-1e-3), np.int32(-9)]
)
def test_one_coloured_images_have_a_range(value):
    found = chosen(np.full((8, 8), value))
    assert found.low <= value <= found.high


def test_8_bits_and_floats_to_one_are_taken_as_they_are():
    eight, unit = np.zeros((4, 4, 3), np.uint8), RNG.random((4, 4)).astype(np.float32)
    for raws in ([eight], [unit], [eight, unit]):
        assert (chosen(*raws).low, chosen(*raws).high, chosen(*raws).depth) == (0, 255, "8-bit")
        assert chosen(*raws, wish="8").plain
    assert chosen(unit, wish="0.2:0.8").depth == "float"


def test_the_choice_is_the_same_each_time():
    raws = [RNG.normal(7200, 60, (64, 64)).round().astype(np.uint16) for _ in range(5)]
    assert chosen(*raws) == chosen(*raws) == chosen(*[raw.copy() for raw in raws])


@pytest.mark.parametrize(
    ("raws", "wish", "error"),
    [
        (
            [np.zeros((4, 4, 3), np.uint8), GREY],
            "auto",
            "8-bit values in image 0 and whole numbers.* in image 1",
        ),
        (
            [GREY, GREY * np.float32(1)],
            "auto",
            "more than 8 bits in image 0 and float values in counts in image 1",
        ),
        (
            [np.zeros((4, 4, 3), np.uint8), np.full((2, 2), 300.0)],
            "auto",
            "8-bit values in image 0 and float",
        ),
        ([np.zeros((4, 4, 3), np.uint8)], "12", "12-bit, 0..4095, but the images .image 0, .*8-bit values"),
        ([np.full((4, 4), 300.0)], "12", "12-bit.*float values in counts, 300..300"),
        ([np.full((4, 4), 300.0)], "400:500", "float band, 400..500.*300..300"),
        ([np.full((4, 4), 9000, np.uint16)], "12", "12-bit.*9000..9000"),
    ],
)
def test_a_choice_that_cannot_be_made_names_both_sides(raws, wish, error):
    with pytest.raises((ImageError, ConfigError), match=error):
        chosen(*raws, wish=wish)


def test_mixed_depths_pass_when_full_is_asked_for():
    assert chosen(np.zeros((4, 4, 3), np.uint8), GREY, wish="full") == FULL
    assert choose_intensity("auto", [levels_of_8_bits("a")]).plain


# A line


@pytest.fixture(scope="module")
def twelve(pictures):
    """Photographs of a 12-bit camera: grey uint16 of 0..4095 with numbers between the 8-bit ones."""
    noise = np.random.default_rng(1)

    def take(count, *, first=0):
        grey = [p.mean(axis=2) / 255 * 4000 for p in pictures("gear", count, first=first)]
        return [(g + noise.normal(30, 8, g.shape)).clip(0, 4095).round().astype(np.uint16) for g in grey]

    return take


@pytest.mark.long
def test_a_12_bit_line_sees_hundreds_of_grey_levels(new_line, twelve, tmp_path):
    photos = tmp_path / "good"
    photos.mkdir()
    for i, raw in enumerate(twelve(6)):
        Image.fromarray(raw).save(photos / f"{i}.{'png' if i % 2 else 'tif'}")
    line = new_line()
    line.add_task("gear", photos)
    assert str(line.intake.intensity) == "12-bit, 0..4095"
    seen = line.intake.read(photos / "0.tif", photos / "0.tif")
    assert np.unique(seen.pixels).size >= 200
    assert np.unique(as_image(photos / "0.tif")).size <= 17  # of which the line saw no more before
    assert seen.clipped == 0
    glare = twelve(1)[0]
    glare[:16] = 20_000
    assert line.intake.read(0, glare).clipped == pytest.approx(0.25)
    line.predict(glare)


@pytest.mark.long
@pytest.mark.parametrize("kind", ["uint16", "int32 tensor", "float kelvin", "uint16 colour"])
def test_a_saved_line_keeps_its_range(new_line, twelve, tmp_path, kind):
    convert = {
        "uint16": lambda raw: raw,
        "int32 tensor": lambda raw: torch.from_numpy(raw.astype(np.int32)),
        "float kelvin": lambda raw: (290 + raw / np.float32(300)).astype(np.float32),
        "uint16 colour": lambda raw: np.dstack([raw, raw // 2, raw // 3]),
    }[kind]
    line = new_line()
    line.add_task("gear", [convert(raw) for raw in twelve(4)])
    line.save(tmp_path / "line")
    again = Detector.load(tmp_path / "line", device="cpu")
    assert again.intake == line.intake
    probes = [convert(raw) for raw in twelve(2, first=100)]
    assert [p.pred_score for p in again.predict(probes)] == [p.pred_score for p in line.predict(probes)]
    again.add_task("dark", [convert(raw // 4) for raw in twelve(4)])
    assert again.intake == line.intake
    again.remove_task("gear")
    assert again.intake == line.intake
    with pytest.raises(ImageError, match=r"image 0: expected .* as in this line's first images, got 8-bit"):
        again.predict(np.zeros((64, 64, 3), np.uint8))


def test_an_8_bit_line_is_what_it_was(line, saved, pictures):
    stored = json.loads((saved / "line.json").read_text())
    assert stored["settings"]["intake"]["intensity"] == {
        "low": 0,
        "high": 255,
        "depth": "8-bit",
        "source": "auto",
    }
    shown = pictures("gear", 1, first=700)[0]
    picture, plain = line.intake.read(0, shown), Intake((64, 64)).read(0, shown)
    np.testing.assert_array_equal(picture.pixels, plain.pixels)
    assert picture.clipped == 0.0
    unit = torch.from_numpy(shown / 255).permute(2, 0, 1)
    np.testing.assert_array_equal(line.intake.read(0, unit).pixels, picture.pixels)
    with pytest.raises(ImageError, match=r"image 0: expected 8-bit values .* got whole numbers"):
        line.predict(shown.astype(np.uint16) * 257)
    with pytest.raises(ImageError, match=r"image 0: expected float values in \[0, 1\]"):
        line.predict(shown.astype(np.float32))


def test_a_line_from_before_the_range_says_what_it_said(new_line, pictures, tmp_path, probe):
    line, saved = new_line(base="learn"), tmp_path / "line"  # a base of its own, as every line had then
    line.add_task("gear", pictures("gear", 8))
    line.save(saved)
    document = json.loads((saved / "line.json").read_text())
    del document["settings"]["intake"]
    write_index(saved / "line.json", document)
    old = Detector.load(saved, device="cpu")
    assert old.intake.intensity == FULL
    assert [p.pred_score for p in old.predict(probe)] == [p.pred_score for p in line.predict(probe)]
    deep = [
        image.astype(np.uint16) * 257 for image in probe
    ]  # such a line maps every depth by its full range
    assert [p.pred_score for p in old.predict(deep)] == [p.pred_score for p in line.predict(probe)]


@pytest.mark.parametrize(
    "broken",
    [
        7,
        [],
        {},
        {"intensity": None},
        {"intensity": {"low": 3, "high": 1, "depth": "float", "source": "auto"}},
        {"intensity": {"low": 0, "high": 1, "depth": "float", "gamma": 2}},
    ],
)
def test_a_line_with_a_broken_range_is_refused(saved, broken):
    document = json.loads((saved / "line.json").read_text())
    document["settings"]["intake"] = broken
    write_index(saved / "line.json", document)
    with pytest.raises((LineError, ConfigError)):
        Detector.load(saved, device="cpu")


def test_a_lesson_that_fails_settles_nothing(new_line, twelve):
    line = new_line()
    with pytest.raises(ImageError):
        line.add_task("gear", [*twelve(2), np.zeros((64, 64, 3), np.uint8)])
    assert line.intake.intensity == FULL
    with pytest.raises(ImageError, match=r"gone\.png"):
        line.add_task("gear", ["gone.png"])
    line.add_task("gear", twelve(2))
    assert line.intake.intensity.wish == "12"


def test_a_range_that_was_given_holds(new_line, twelve):
    line = new_line(intensity=(0, 8191))
    line.add_task("gear", twelve(2))
    assert (line.intake.intensity.wish, line.intake.intensity.source) == ("0:8191", "given")
    with pytest.raises(ConfigError, match="expected an intensity of auto"):
        new_line(intensity="bright")


def test_the_sample_is_bounded_and_spread_over_the_images(monkeypatch):
    looked = []

    def note(value, *, where):
        looked.append(where)
        return np.full((4, 4), 100 + 10 * value, np.uint16)

    monkeypatch.setattr("moleflow.intake.as_raw", note)
    settled = Intake((8, 8)).settled("auto", [(i, i) for i in range(1000)])
    assert len(looked) == 64
    assert (looked[0], looked[-1]) == ("image 0", "image 999")
    assert settled.intensity.high >= 9500


def test_an_unreadable_image_does_not_stop_the_choice(tmp_path, twelve):
    (tmp_path / "bad.png").write_bytes(b"no image")
    sources = [(tmp_path / "bad.png", tmp_path / "bad.png"), (1, twelve(1)[0])]
    assert Intake((8, 8)).settled("auto", sources).intensity.wish == "12"
    with pytest.raises(ImageError, match=r"bad\.png"):
        Intake((8, 8)).settled("auto", sources[:1])


def test_many_8_bit_files_are_not_decoded_for_the_choice(tmp_path, monkeypatch):
    for i in range(3):
        Image.fromarray((DEEP >> 8).astype(np.uint8)).save(tmp_path / f"{i}.png")
    monkeypatch.setattr("moleflow.intake.as_raw", lambda *a, **k: pytest.fail("decoded"))
    paths = sorted(tmp_path.iterdir())
    assert Intake((8, 8)).settled("auto", [(path, path) for path in paths]).intensity.plain
