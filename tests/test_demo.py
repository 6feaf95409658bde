"""The demo runs, measures what it says and leaves a page that needs nothing else; its blocks escape text."""

import base64
import io
import json
import math
import re

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from moleflow import demo, report
from moleflow.config import LineConfig, TrainingConfig
from moleflow.demo.figures import _same
from moleflow.errors import ConfigError, MoleFlowError
from moleflow.results import Prediction

TINY = demo.Sizes(
    taught=2,
    train=6,
    good=3,
    defective=4,
    pixels=64,
    image_size=96,
    config=LineConfig(training=TrainingConfig(steps=4, base_steps=4, patches=256)),
)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    out = tmp_path_factory.mktemp("demo") / "out"
    stream = io.StringIO()
    path = demo._run(out, TINY, seed=3, console=Console(file=stream, width=200))
    return path, stream.getvalue()


@pytest.fixture(scope="module")
def results(finished):
    return json.loads((finished[0].parent / "results.json").read_text(encoding="utf-8"))


def numbers(value):
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list):
        return [number for part in value for number in numbers(part)]
    return [value] if isinstance(value, int | float) else []


def test_leaves_a_report_the_figures_the_line_and_the_images(finished):
    path, _ = finished
    assert path.name == "report.html"
    assert {part.name for part in path.parent.iterdir()} == set(demo._PARTS)
    assert any((path.parent / "line").iterdir())
    assert len(list((path.parent / "images").iterdir())) == TINY.taught + 1


def test_figures_are_finite_and_nothing_is_forgotten(results):
    figures = results["figures"]
    assert results["finished"]
    assert all(math.isfinite(number) for number in numbers(results))
    assert figures["forgetting_oracle"] == 0
    assert figures["unchanged"]
    assert figures["reloaded_identical"]
    assert [product["name"] for product in figures["products"]] == list(demo.PRODUCTS[: TINY.taught])


def test_result_matrices_cover_what_was_known_at_each_step(results):
    for name in ("oracle", "routed"):
        rows = results["figures"][name]
        known = [[value is not None for value in row] for row in rows]
        assert known == np.tri(TINY.taught, dtype=bool).tolist()


def test_report_refers_to_nothing_outside_itself(finished):
    text = finished[0].read_text(encoding="utf-8")
    markup = re.sub(r"base64,[A-Za-z0-9+/=]+", "", text)
    assert not re.search(r"https?:|//|@import|url\(|<script|<link", markup)
    sources = re.findall(r'src="([^"]{0,30})', text)
    assert sources
    assert all(source.startswith("data:image/") for source in sources)


def test_report_says_that_the_images_are_drawn(finished):
    assert "say nothing about how well it would do on real products" in finished[0].read_text("utf-8")


def test_report_names_no_place_on_this_machine(finished):
    assert str(finished[0].parent.parent) not in finished[0].read_text(encoding="utf-8")


def test_console_has_a_line_per_product_and_the_report(finished):
    path, text = finished
    for number, name in enumerate(demo.PRODUCTS[: TINY.taught], start=1):
        assert f"{number}/{TINY.taught}  {name}" in text
    assert str(path) in text


def test_product_comparison_sees_a_single_bit():
    prediction = _prediction(np.zeros((2, 2), np.float32))
    changed = np.zeros((2, 2), np.float32)
    changed[1, 1] = -0.0
    assert _same([prediction], [_prediction(np.zeros((2, 2), np.float32))])
    assert not _same([prediction], [_prediction(changed)])
    assert not _same([prediction], [])


def _prediction(patch_map):
    return Prediction(0, "gear", True, 1.0, 0.5, 2.0, False, 1.0, None, patch_map, 2.0, (4, 4))


def test_replaces_an_earlier_demo_and_nothing_else(tmp_path):
    out = tmp_path / "out"
    demo._make_room(out)
    (out / "line").mkdir()
    (out / "report.html").write_text("old")
    (out / "notes.txt").write_text("mine")
    demo._make_room(out)
    assert {part.name for part in out.iterdir()} == {"notes.txt", "results.json"}


@pytest.mark.parametrize("content", ["", "[]", '{"made_by": "somebody"}'])
def test_refuses_a_folder_that_is_not_a_demo(tmp_path, content):
    (tmp_path / "results.json").write_text(content)
    with pytest.raises(ConfigError, match="not an earlier demo"):
        demo.run(tmp_path, quick=True)
    assert (tmp_path / "results.json").read_text() == content


def test_refuses_a_file_and_a_place_it_cannot_write(tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(ConfigError, match="expected a folder"):
        demo.run(tmp_path / "file")
    with pytest.raises(MoleFlowError, match="file"):
        demo.run(tmp_path / "file" / "below")


# Blocks


NASTY = '<b onclick="x">&amp;'


@pytest.mark.parametrize(
    "block",
    [
        report.paragraph(NASTY),
        report.notice(NASTY),
        report.section(NASTY, NASTY),
        report.folded(NASTY, NASTY),
        report.columns(NASTY),
        report.key_figures([(NASTY, NASTY, NASTY)]),
        report.table([NASTY], [[NASTY, NASTY]], caption=NASTY),
        report.settings([(NASTY, NASTY)], caption=NASTY),
        report.matrix([[0.5]], [NASTY], [NASTY], caption=NASTY),
        report.gallery([report.Card(NASTY, NASTY, (report.Picture(NASTY, NASTY),), tone=NASTY)]),
        report.page(NASTY, NASTY),
    ],
    ids=lambda block: block[:12],
)
def test_every_block_escapes_text(block):
    assert "<b onclick" not in block
    assert 'onclick="' not in block
    assert "&lt;b onclick=&quot;x&quot;&gt;&amp;amp;" in block


def test_blocks_are_not_escaped_twice():
    assert "<p>a &amp; b</p>" in report.section("title", report.paragraph("a & b"))


def test_matrix_colours_between_its_ends_and_leaves_nan_empty():
    text = report.matrix([[0.5, 1.0], [float("nan"), 0.75]], ["a", "b"], ["c", "d"])
    strengths = [float(value) for value in re.findall(r"/ ([\d.]+)\)", text)]
    assert strengths[0] < strengths[2] < strengths[1]
    assert text.count("<td></td>") == 1


@pytest.mark.parametrize(
    ("value", "text"),
    [(None, "–"), (float("nan"), "–"), (float("inf"), "∞"), (0.12345, "0.123"), (-2.0, "-2.000")],
)
def test_numbers(value, text):
    assert report.number(value) == text


@pytest.mark.parametrize(
    ("value", "text"), [(999, "999 bytes"), (1500, "1.5 kB"), (2_340_000, "2.34 MB"), (7 * 10**10, "70 GB")]
)
def test_amounts(value, text):
    assert report.amount(value) == text


def test_pictures_are_data_and_no_larger_than_asked():
    uri = report.mask_uri(np.eye(300, 200, dtype=bool), side=100)
    kind, data = uri.split(",")
    assert kind == "data:image/png;base64"
    assert Image.open(io.BytesIO(base64.b64decode(data))).size == (67, 100)
