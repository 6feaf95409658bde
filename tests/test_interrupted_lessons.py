"""Lessons that are cut short: the line is as it was, and the next one sees no image twice."""

import os
import time

import pytest

from moleflow.errors import (
    TaskError,
)
from moleflow.features.extractor import Extractor
from moleflow.learning import sight
from saying import ALTERED, files, same, snapshot, tensors


@pytest.mark.parametrize("stage", ["backbone", "base", "learning", "calibration"])
@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_an_interrupted_first_product_leaves_the_line_empty(new_line, pictures, stage, error):
    detector = new_line()
    with pytest.raises(error):
        detector.add_task("gear", pictures("gear", 2), progress=raising(stage, error))
    assert detector.tasks == ()
    assert detector._line.base is None
    with pytest.raises(TaskError, match="no product"):
        detector.predict(pictures("gear", 1))


@pytest.mark.parametrize("stage", ["backbone", "learning", "calibration"])
@pytest.mark.parametrize("name", ["new", "wood"])
def test_an_interrupted_product_leaves_the_line_as_it_was(loaded, probe, pictures, stage, name):
    before = snapshot(loaded, probe)
    learn = loaded.update_task if name == "wood" else loaded.add_task
    with pytest.raises(KeyboardInterrupt):
        learn(name, pictures("wood", 4, first=30), progress=raising(stage, KeyboardInterrupt))
    assert snapshot(loaded, probe) == before
    unwritten = files(loaded.path)
    loaded.save()
    assert {k: v for k, v in files(loaded.path).items() if k != "line.json"} == {
        k: v for k, v in unwritten.items() if k != "line.json"
    }
    learn(name, pictures("wood", 4, first=30))  # the interrupted call holds nothing back


@pytest.fixture
def kept(tmp_path, monkeypatch):
    """The folder in which a lesson keeps what the backbone saw."""
    monkeypatch.setenv("MOLEFLOW_CACHE", str(tmp_path / "caches"))
    monkeypatch.setattr(sight, "LEAST_FREE", 0)
    return tmp_path / "caches" / "lessons"


@pytest.fixture
def passes(monkeypatch):
    """How many images the backbone was shown, call by call."""
    seen, see = [], Extractor.see
    monkeypatch.setattr(Extractor, "see", lambda self, images: seen.append(len(images)) or see(self, images))
    return seen


@pytest.fixture(scope="module")
def undisturbed(new_line, pictures):
    """What a lesson of ten images comes to."""
    return tensors(learned(new_line, pictures("gear", 10), pose="off"), "gear")


def learned(new_line, images, **options):
    detector = new_line()
    detector.add_task("gear", images, **options)
    return detector


@pytest.mark.parametrize(("stage", "again"), [("backbone", [2, *ALTERED]), ("learning", [])])
def test_an_interrupted_lesson_shows_the_backbone_no_image_twice(
    new_line, pictures, undisturbed, kept, passes, stage, again
):
    images = pictures("gear", 10)
    with pytest.raises(KeyboardInterrupt):
        learned(new_line, images, pose="off", progress=raising(stage, KeyboardInterrupt))
    assert list(kept.iterdir())
    passes.clear()
    resumed = learned(new_line, images, pose="off")
    assert passes == again
    assert same(tensors(resumed, "gear"), undisturbed)
    assert not list(kept.iterdir()), "a lesson that came to its end leaves nothing"


def test_of_old_files_beside_what_was_seen_only_its_own_are_deleted(new_line, pictures, kept):
    kept.mkdir(parents=True, exist_ok=True)
    old = [kept / name for name in ("photo.png", "a.features", "a.features.1f")]
    for path in old:
        path.touch()
        os.utime(path, (0, 0))
    learned(new_line, pictures("gear", 2))
    assert [path.exists() for path in old] == [True, False, False]


def test_mixed_products_that_were_interrupted_are_seen_once(new_line, pictures, kept, passes):
    images = [*pictures("gear", 6), *pictures("wood", 6)]
    with pytest.raises(KeyboardInterrupt):
        new_line().add_tasks(images, progress=raising("product-2: learning", KeyboardInterrupt))
    passes.clear()
    assert len(new_line().add_tasks(images)) == 2
    assert passes == []


@pytest.mark.parametrize("damage", [b"", b"\0" * 100, None])
def test_what_a_lesson_kept_and_was_damaged_is_seen_again(new_line, taught_line, pictures, kept, damage):
    images = pictures("gear", 4)
    with pytest.raises(KeyboardInterrupt):
        learned(new_line, images, progress=raising("learning", KeyboardInterrupt))
    for path in kept.iterdir():
        data = path.read_bytes()
        path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]) if damage is None else damage)
    assert same(tensors(learned(new_line, images), "gear"), tensors(taught_line(gear=4), "gear"))


def test_a_lesson_needs_no_place_to_keep_anything(new_line, pictures, kept, monkeypatch):
    images = pictures("gear", 4)
    monkeypatch.setattr(sight, "LEAST_FREE", 2**63)
    with pytest.raises(KeyboardInterrupt):
        learned(new_line, images, progress=raising("learning", KeyboardInterrupt))
    assert not list(kept.iterdir()), "what stays free on the disk is the line's"
    kept.rmdir()
    kept.write_bytes(b"a file in its place")
    assert learned(new_line, images).tasks == ("gear",)


def test_what_nobody_took_up_again_goes_with_the_next_lesson(new_line, pictures, kept):
    kept.mkdir(parents=True)
    old, recent = kept / "old.features", kept / "recent.features"
    for path, days in ((old, sight.KEPT_DAYS + 1), (recent, sight.KEPT_DAYS - 1)):
        path.write_bytes(b"of another lesson")
        os.utime(path, (time.time() - days * 86400,) * 2)
    learned(new_line, pictures("gear", 2))
    assert list(kept.iterdir()) == [recent]


def raising(where, error):
    def progress(stage, share):
        if stage == where and share > 0:
            raise error

    return progress
