"""What does not belong among the good photographs is listed, and left out only where that was asked for."""

import json
import re
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image, ImageFilter
from typer.testing import CliRunner

from moleflow import Detector
from moleflow.cli import app
from moleflow.config import override
from moleflow.data.factory import make_sample
from moleflow.data.images import camera_of, resize
from moleflow.errors import ImageError, MoleFlowError
from moleflow.learning import lesson
from moleflow.learning.product import learn_product
from moleflow.learning.report import histogram, write_teaching_report
from moleflow.photographs.copies import find_copies
from moleflow.photographs.review import KEPT, Lesson, review
from moleflow.photographs.suspects import KINDS, Suspect, facts_of, find_suspects

SIDE = 128


@pytest.fixture(scope="module")
def gears():
    return [make_sample("gear", seed, size=SIDE).image for seed in range(12)]


def facts(pictures):
    return [
        facts_of(str(i), resize(picture, (SIDE, SIDE)), picture.shape[:2])
        for i, picture in enumerate(pictures)
    ]


def suspects_of(pictures, scores=None):
    photos = facts(pictures)
    return find_suspects(photos, find_copies([photo.thumbnail for photo in photos]), scores)


def faults(pictures, scores=None):
    return [(s.source, s.kind) for s in suspects_of(pictures, scores) if s.fault]


def blurred(picture):
    return np.array(Image.fromarray(picture).filter(ImageFilter.GaussianBlur(2)))


def grey(picture):
    return np.array(Image.fromarray(picture).convert("L").convert("RGB"))


ODD = {
    "black": (lambda p: np.zeros_like(p), "one colour", "black all over"),
    "overexposed": (lambda p: np.full_like(p, 255), "one colour", "white all over"),
    "nearly one colour": (
        lambda p: np.random.default_rng(0).integers(118, 123, p.shape).astype(np.uint8),
        "one colour",
        "nearly of one colour",
    ),
    "grey": (grey, "camera", "the others are in colour"),
    "oblong": (lambda p: p[: SIDE // 2], "size", "another shape"),
    "smaller": (lambda p: resize(p, (96, 96)), "size", "96 x 96 pixels, the others 128 x 128"),
    "dark": (lambda p: (p * 0.3).astype(np.uint8), "light", "darker than the others"),
    "blurred": (blurred, "sharpness", "less sharp"),
}


@pytest.mark.parametrize("name", ODD)
def test_an_odd_photograph_is_named_alone_and_in_words(gears, name):
    alter, kind, said = ODD[name]
    pictures = [*gears, alter(make_sample("gear", 50, size=SIDE).image)]
    assert faults(pictures) == [("12", kind)]
    assert said in next(s.reason for s in suspects_of(pictures) if s.fault)


@pytest.mark.parametrize("product", ["wood", "circuit_board", "bottle_cap"])
def test_good_photographs_are_not_suspicious(product):
    pictures = [make_sample(product, seed, size=SIDE).image for seed in range(24)]
    assert suspects_of(pictures) == ()
    # Grey ones, dark ones, or oblong ones among their own kind are not either.
    for alter in (grey, ODD["dark"][0], ODD["oblong"][0]):
        assert faults([alter(picture) for picture in pictures]) == []


def test_a_defect_is_known_by_a_score_clear_of_the_rest(gears):
    scores = np.linspace(4, 6, 12)
    assert faults(gears, scores) == []
    scores[5] = 14  # 11 spreads: the longest tail of a dozen good ones
    assert faults(gears, scores) == []
    scores[[3, 7]] = 60, np.nan
    assert faults(gears, scores) == [("3", "defect")]
    assert faults(gears, np.full(12, 3.0)) == []


def test_the_gravest_come_first(gears):
    pictures = [gears[0], *gears, blurred(gears[4]), np.zeros_like(gears[0])]
    kinds = [suspect.kind for suspect in suspects_of(pictures)]
    assert kinds[0] == "one colour"
    assert kinds[-1] == "copies"
    assert kinds == sorted(kinds, key=KINDS.index)


def test_another_camera_is_known_by_what_its_file_says(gears, tmp_path):
    photos = []
    for i, picture in enumerate([*gears[:6], gears[7]]):
        exif = Image.Exif()
        exif[0x010F], exif[0x0110] = ("Acme", "A1") if i < 6 else ("Other\n<b>", "Z" * 500)
        path = tmp_path / f"{i}.jpg"
        Image.fromarray(picture).save(path, quality=95, exif=exif)
        photos.append(facts_of(path.name, picture, picture.shape[:2], camera=camera_of(path)))
    (found,) = find_suspects(photos, range(7))
    assert (found.source, found.kind) == ("6.jpg", "camera")
    assert "the others with Acme A1" in found.reason
    assert len(found.reason) < 200
    Image.fromarray(gears[0]).save(tmp_path / "plain.png")
    (tmp_path / "broken.jpg").write_bytes(b"\xff\xd8\xff\xe1nonsense")
    nameless = [tmp_path / "plain.png", tmp_path / "broken.jpg", tmp_path / "none.png", 3]
    assert [camera_of(source) for source in nameless] == [None] * 4


def test_few_photographs_accuse_nobody_but_an_empty_one(gears):
    assert faults([gears[0], blurred(gears[1]), gears[2][:64]]) == []
    assert faults([np.zeros_like(gears[0])]) == [("0", "one colour")]
    assert find_suspects([], []) == ()


# A lesson


def test_nothing_is_left_out_unasked(gears):
    photos = facts([*gears, np.zeros_like(gears[0]), gears[3]])
    kept = review(photos)
    assert (kept.kept, kept.lesson.images, kept.lesson.dropped) == (list(range(14)), 14, ())
    assert (kept.lesson.independent, kept.lesson.suspicious) == (13, ("12",))
    dropped = review(photos, drop_suspicious=True)
    assert dropped.kept == [*range(12), 13]
    assert dropped.lesson.dropped == dropped.lesson.suspicious == ("12",)
    assert (dropped.lesson.images, dropped.lesson.independent) == (13, 12)
    assert dropped.groups[3] == dropped.groups[12]


def test_dropping_all_is_refused_by_name():
    photos = facts([np.zeros((SIDE, SIDE, 3), np.uint8)] * 3)
    assert review(photos).lesson.independent == 1
    with pytest.raises(ImageError, match=r"all 3 images are suspicious.*black"):
        review(photos, drop_suspicious=True)


def test_a_lesson_is_bounded_json_whatever_the_names():
    suspects = tuple(Suspect(f"{i}\udcff.png", "size", f"it is {i}\udcff", 1.0) for i in range(3 * KEPT))
    lesson = Lesson(images=500, independent=400, suspects=suspects, dropped=("a\udcff",) * 300)
    text = json.dumps(lesson.to_dict(), ensure_ascii=False, allow_nan=False).encode()
    assert len(text) < 30_000
    read = Lesson.from_dict(json.loads(text))
    assert (len(read.suspects), len(read.dropped), read.images, read.independent) == (KEPT, KEPT, 500, 400)
    assert json.loads(text)["suspects_found"] == 3 * KEPT


# On a line


def test_what_is_dropped_by_its_score_has_taught_no_base_either(new_line, quick, pictures, monkeypatch):
    """A base that has seen an image says too little against it: who is left out is left out of both."""
    learned, genuine = [], lesson.learn_first_base

    def counted(patches, *arguments, **options):
        learned.append(len(patches))
        return genuine(patches, *arguments, **options)

    def accused(material, product, *, drop_suspicious):
        kept = range(1, len(material.sources))
        return material.take(list(kept), material.lesson, [material.copies[i] for i in kept])

    monkeypatch.setattr(lesson, "learn_first_base", counted)
    own = {"config": override(quick, {"training.base": "learn"})}
    clean = new_line(**own)
    clean.add_task("gear", pictures("gear", 5)[1:])
    monkeypatch.setattr(lesson, "_accused_by_scores", accused)
    line = new_line(**own)
    line.add_task("gear", pictures("gear", 5), drop_suspicious=True)
    assert learned == [4, 5, 4]
    image = pictures("gear", 1, first=300)[0]
    assert line.predict(image)[0].pred_score == clean.predict(image)[0].pred_score


def test_an_update_remembers_who_taught_the_base(new_line, quick, pictures, tmp_path):
    line = new_line(config=override(quick, {"training.base": "learn"}))
    line.add_task("gear", pictures("gear", 4))
    line.add_task("wood", pictures("wood", 4))
    line.update_task("gear", pictures("gear", 4, first=40))
    line.save(tmp_path / "line")
    again = Detector.load(tmp_path / "line", device="cpu")
    assert [again._line.products[name].taught_base for name in ("gear", "wood")] == [True, False]
    missed = pictures("gear", 2, first=600, kind="missing_tooth")
    again.correct_task("gear", pictures("gear", 8), missed=missed)
    assert "base" in again.info("gear").seconds  # those that have not seen half of the images


@pytest.mark.long
def test_a_line_says_and_keeps_what_was_suspicious(new_line, pictures, tmp_path):
    line = new_line()
    good = pictures("gear", 8)
    line.add_task("twelve", [good[0]] * 12)
    info = line.info("twelve")
    assert (info.images, info.independent, info.suspects[0].kind) == (12, 1, "copies")
    odd = [*good, np.zeros_like(good[0])]
    assert line.add_task("all", odd).images == 9
    assert line.info("all").suspects[0].source == "image 8"
    dropped = line.add_task("dropped", odd, drop_suspicious=True)
    assert (dropped.images, dropped.lesson.dropped) == (8, ("image 8",))
    line.add_task("clean", good)
    assert line.info("clean").suspects == ()
    same = [line.predict(good[1], task=task)[0].pred_score for task in ("dropped", "clean")]
    assert same[0] == same[1]
    line.save(tmp_path / "line")
    loaded = Detector.load(tmp_path / "line", device="cpu")
    for name in line.tasks:
        assert loaded.info(name).lesson == line.info(name).lesson
    line.remove_task("all")
    assert "all" not in line._line.lessons


def test_a_refused_lesson_leaves_the_line_as_it_was(new_line):
    line = new_line()
    with pytest.raises(ImageError, match="none to learn from"):
        line.add_task("black", [np.zeros((64, 64, 3), np.uint8)], drop_suspicious=True)
    assert line.tasks == ()


def test_an_older_line_counts_every_image(saved):
    line = Detector.load(saved, device="cpu")
    assert line.info("gear").lesson.light is not None
    line._line = replace(line._line, lessons={})  # as from a line that was saved before there were any
    info = line.info("gear")
    assert (info.independent, info.suspects, info.lesson.light) == (8, (), None)


def test_add_lists_reports_and_drops(quick, pictures, tmp_path, monkeypatch):
    class Quick(Detector):
        def __init__(self, *args, **more):
            super().__init__(*args, **{"config": quick} | more)

    monkeypatch.setattr("moleflow.detector.Detector", Quick)
    folder = tmp_path / "good"
    folder.mkdir()
    for i, picture in enumerate(pictures("gear", 8)):
        Image.fromarray(picture).save(folder / f"{i}.png")
    Image.fromarray(pictures("gear", 1)[0]).save(folder / "again.jpg", quality=90)
    Image.new("RGB", (64, 64)).save(folder / "dark<.png")

    def run(*args, code=0):
        result = CliRunner().invoke(app, [str(a) for a in args])
        assert result.exit_code == code, result.output
        return result

    line, page = tmp_path / "line", tmp_path / "report.html"
    done = run("add", line, "gear", folder, "--image-size", 64, "--report", page)
    assert "10 images, 9 independent" in done.stdout
    assert "1 suspicious image was learned from; --drop-suspicious leaves such images out" in done.stderr
    assert "dark<.png: it is black all over" in done.stderr
    assert "one more shows the same again" in done.stderr
    text = page.read_text()
    assert "Nothing was left out. --drop-suspicious would leave out 1" in text
    assert text.count("data:image/jpeg") == 2
    assert "dark&lt;.png" in text
    done = run("add", line, "cog", folder, "--drop-suspicious", "--report", page)
    assert "1 suspicious image was left out" in done.stderr
    assert "Left out, because --drop-suspicious was given: 1" in page.read_text()
    for wrong in (folder / "0.png", tmp_path / "no" / "r.html", folder):
        before = (folder / "0.png").read_bytes()
        assert "--report" in run("add", line, "third", folder, "--report", wrong, code=1).stderr
        assert (folder / "0.png").read_bytes() == before


def test_a_lesson_from_a_list_follows_what_is_left(quick, pictures, tmp_path, monkeypatch):
    learned = []

    def spy(*args, **more):
        learned.append((len(args[1]), more["groups"]))
        return learn_product(*args, **more)

    monkeypatch.setattr("moleflow.learning.lesson.learn_product", spy)
    rows = ["path,lot"]
    for i, picture in enumerate(pictures("gear", 21)):
        kelvin = 290 + np.asarray(Image.fromarray(picture).convert("L"), np.float32) / 25
        Image.fromarray(np.full_like(kelvin, 290) if i == 7 else kelvin).save(tmp_path / f"{i}.tif")
        rows.append(f"{i}.tif,{'AB'[i % 3 == 0]}")
    (tmp_path / "3.tif").write_text("no picture")
    (tmp_path / "list.csv").write_text("\n".join(rows))

    class Quick(Detector):
        def __init__(self, *args, **more):
            super().__init__(*args, **{"config": quick} | more)

    monkeypatch.setattr("moleflow.detector.Detector", Quick)
    page = tmp_path / "r.html"
    options = ["--group", "column:lot", "--drop-suspicious", "--report", page, "--image-size", 64]
    args = ["add", tmp_path / "line", "gear", tmp_path / "list.csv", *options]
    result = CliRunner().invoke(app, [str(arg) for arg in args])
    assert result.exit_code == 0, result.output
    lots = [row.rpartition(",")[2] for i, row in enumerate(rows[1:]) if i not in (3, 7)]
    assert learned == [(19, lots)]
    text = page.read_text()
    assert re.search(r"7\.tif: it is .* all over", result.stderr)
    assert "3.tif: not an image" in text
    assert text.count("<img") == 1  # in the line's light: no number in the file is from 0 to 1
    info = Detector.load(tmp_path / "line", device="cpu").info("gear")
    assert (len(info.lesson.dropped), len(info.unreadable), info.images) == (1, 1, 19)


# The report


class Balanced(HTMLParser):
    """Fails on a tag that is not closed, and lists what a page would fetch."""

    EMPTY = ("meta", "img", "line", "rect", "br")

    def __init__(self, text):
        super().__init__()
        self.open, self.fetched = [], []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.fetched += [v for k, v in attrs if k in ("src", "href") and not v.startswith("data:")]
        if tag not in self.EMPTY:
            self.open.append(tag)

    def handle_endtag(self, tag):
        if tag not in self.EMPTY:
            assert self.open.pop() == tag


def test_the_report_opens_offline_and_escapes_names(gears, tmp_path):
    page = tmp_path / "r.html"
    pictures = {"0": gears[0], "12": np.zeros_like(gears[0])}
    lesson = review(facts([*gears, pictures["12"], gears[0]])).lesson
    write_teaching_report(
        page,
        product="<b>gear",
        lesson=lesson,
        shown=pictures.get,
        unreadable=["x<y.png: damaged"],
        scores=[0.1, 0.4, 0.2, 0.9],
        threshold=2.5,
    )
    text = page.read_text()
    assert Balanced(text).fetched == []
    assert "&lt;b&gt;gear" in text
    assert "x&lt;y.png" in text
    assert "threshold 2.50" in text
    assert text.count("<img") == 2
    gone = Lesson(2, 2, (Suspect("no/such.png", "size", "it is small", 1.0),))
    write_teaching_report(page, product="gear", lesson=gone)
    assert "no longer there" in page.read_text()
    with pytest.raises(MoleFlowError, match="cannot be written"):
        write_teaching_report(tmp_path / "no" / "r.html", product="gear", lesson=gone)


@pytest.mark.parametrize(
    ("scores", "threshold"),
    [([1.0], None), ([1.0, 1.0], 1.0), ([0.0, 1.0], 46004.0), ([0.0, 1.0], -3.0), ([0.0, 1.0], float("inf"))],
)
def test_a_histogram_stays_within_its_frame(scores, threshold):
    drawn = histogram(scores, threshold)
    assert len(re.findall("<rect", drawn)) == len(set(scores))
    places = [float(x) for x in re.findall(r' x1?="(-?[\d.]+|nan|inf)"', drawn)]
    assert all(0 <= x <= 640 for x in places)
