"""Files as people have them: a bad one among the good, folders in folders, lists, groups."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from moleflow import Detector, Failure
from moleflow.data import images as finding
from moleflow.data.groups import group_labels, parse_rule
from moleflow.data.images import find_entries
from moleflow.data.layouts import read_dataset
from moleflow.data.sources import list_sources
from moleflow.errors import ConfigError, ImageError, OnlyFoldersError
from moleflow.evaluation import evaluate
from trees import find_images

BAD = b"no picture"


def said(predictions):
    return [(p.source, p.task, p.pred_score, p.p_value, p.patch_map.tobytes()) for p in predictions]


def write(folder, images, *, first=0):
    folder.mkdir(parents=True, exist_ok=True)
    for number, image in enumerate(images, first):
        Image.fromarray(image).save(folder / f"{number:03d}.png")
    return folder


def touch(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"")


def spoil(folder, *names):
    for name in names:
        (folder / name).write_bytes(BAD)


@pytest.fixture
def belt(tmp_path, pictures):
    """Five photographs, and a name for something bad before, between and after them."""
    folder = write(tmp_path / "belt", [*pictures("gear", 3, first=800), *pictures("wood", 2, first=800)])
    spoil(folder, "000-before.png", "002-a.png", "002-b.png", "999.png")
    return folder


# One bad file among the others


@pytest.mark.parametrize("batch_size", [1, 2, 8])
def test_a_bad_image_changes_nothing_that_is_said_of_the_others(line, belt, batch_size):
    found = line.predict(belt, batch_size=batch_size, errors="yield")
    assert [p.source for p in found] == find_images(belt)
    bad = [p for p in found if isinstance(p, Failure)]
    assert [p.source.read_bytes() for p in bad] == [BAD] * 4
    assert all(str(p.source) in p.error and str(p.source) not in p.reason for p in bad)
    good = [path for path in find_images(belt) if path.read_bytes() != BAD]
    assert said(p for p in found if not isinstance(p, Failure)) == said(
        line.predict(good, batch_size=batch_size)
    )


def test_python_stops_at_a_bad_image_where_nothing_else_is_asked_for(line, belt):
    with pytest.raises(ImageError, match=r"000-before\.png"):
        line.predict(belt)
    with pytest.raises(ConfigError, match="raise"):
        line.predict(belt, errors="ignore")


def test_a_failure_is_plain_json(line, pictures, tmp_path):
    images = [pictures("gear", 1)[0], np.zeros((3, 3, 7), np.uint8)]
    good, bad = line.predict(images, errors="yield")
    assert not isinstance(good, Failure)
    assert json.loads(json.dumps(bad.to_dict())) == {"source": "1", "error": bad.error}
    assert "(3, 3, 7)" in bad.error
    assert bad.error == f"image 1: {bad.reason}"


def test_nothing_but_bad_images_is_nothing_but_failures(line, tmp_path):
    touch(tmp_path, *(f"{i}.png" for i in range(5)))
    found = line.predict(tmp_path, errors="yield", batch_size=2)
    assert [type(p) for p in found] == [Failure] * 5


def test_a_listed_file_that_is_gone_is_a_failure(line, belt):
    paths = [belt / "000.png", belt / "gone.png", belt / "001.png"]
    found = line.predict(paths, errors="yield")
    assert [isinstance(p, Failure) for p in found] == [False, True, False]
    assert "no such file" in found[1].reason


def test_a_score_that_is_not_finite_is_a_failure(line, pictures, monkeypatch):
    images = pictures("gear", 3, first=820)
    expected = said(line.predict(images, task="gear"))
    see = line.extractor.see

    def spoiled(read):
        seen = see(read)
        seen.patches[1] = float("nan")
        return seen

    monkeypatch.setattr(line.extractor, "see", spoiled)
    found = line.predict(images, task="gear", errors="yield")
    assert isinstance(found[1], Failure)
    assert "not finite" in found[1].error
    assert said([found[0], found[2]]) == [expected[0], expected[2]]
    with pytest.raises(ImageError, match="not finite"):
        line.predict(images, task="gear")


def test_a_stream_of_bad_files_does_not_wait_for_a_good_one(line, belt, monkeypatch):
    monkeypatch.setattr(line.extractor, "see", lambda read: pytest.fail("the backbone was asked"))
    assert next(line.stream(belt, errors="yield")).source.name == "000-before.png"


# Learning


@pytest.fixture
def lesson(tmp_path, pictures):
    """Nineteen photographs of cloth and a bad file: one in twenty."""
    folder = write(tmp_path / "cloth", pictures("woven_cloth", 4) * 5)
    spoil(folder, "007.png")
    return folder


@pytest.mark.long
def test_a_few_unreadable_images_are_left_out_and_listed(loaded, lesson):
    good = [path for path in find_images(lesson) if path.name != "007.png"]
    info = loaded.add_task("cloth", lesson)
    assert info.images == 19
    assert len(info.unreadable) == 1
    assert "007.png" in info.unreadable[0]
    loaded.save()
    again = Detector.load(loaded.path, device="cpu")
    assert again.info("cloth").unreadable == info.unreadable
    assert again.info("gear").unreadable == ()
    alone = Detector.load(loaded.path, device="cpu")
    alone.remove_task("cloth")
    alone.add_task("cloth", good)
    assert said(alone.predict(good[:2], task="cloth")) == said(loaded.predict(good[:2], task="cloth"))
    assert alone.info("cloth").unreadable == ()


def test_more_than_one_in_twenty_stops_the_lesson(loaded, lesson):
    spoil(lesson, "001.png", "002.png", "003.png")
    with pytest.raises(
        ImageError, match=r"4 of 20 images \(20\.0%\).*at most 5%.*001\.png.*003\.png.*\.\.\."
    ):
        loaded.add_task("cloth", lesson)
    assert "cloth" not in loaded.tasks


def test_strict_learning_refuses_any(loaded, lesson):
    for teach in (loaded.add_task, loaded.update_task):
        name = "gear" if teach == loaded.update_task else "cloth"
        with pytest.raises(ImageError, match=r"007\.png"):
            teach(name, lesson, strict=True)


@pytest.mark.long
def test_groups_keep_to_their_images_when_one_is_left_out(loaded, lesson, monkeypatch):
    given = {}

    def learn(*args, groups, **more):
        given["groups"] = groups
        raise KeyboardInterrupt

    monkeypatch.setattr("moleflow.learning.lesson.learn_product", learn)
    labels = [str(i) for i in range(20)]
    for teach, name in ((loaded.add_task, "cloth"), (loaded.update_task, "gear")):
        with pytest.raises(KeyboardInterrupt):
            teach(name, lesson, groups=labels)
        assert given["groups"] == [label for label in labels if label != "7"]
    with pytest.raises(ConfigError, match="each of 20 images, got 19"):
        loaded.add_task("cloth", lesson, groups=labels[1:])


# Evaluation


@pytest.fixture
def labelled(tmp_path, pictures):
    for product in ("gear", "blister"):
        root = tmp_path / "labelled" / product
        write(root / "train" / "good", pictures("gear", 1))
        write(root / "test" / "good", pictures("gear", 2, first=840))
        write(root / "test" / "broken", pictures("gear", 2, first=850, kind="missing_tooth"))
    return tmp_path / "labelled"


def test_unreadable_test_images_are_in_no_figure(line, labelled):
    (labelled / "gear" / "test" / "good" / "001.png").unlink()
    expected = evaluate(line, read_dataset(labelled), oracle=True)
    touch(labelled, "gear/test/good/001.png")
    with pytest.raises(ImageError, match=r"001\.png"):
        evaluate(line, read_dataset(labelled))
    told = []
    found = evaluate(
        line, read_dataset(labelled), oracle=True, errors="yield", progress=lambda *of: told.append(of)
    )
    assert [failure.source.name for failure in found.unreadable] == ["001.png"]
    assert (found.routed, found.oracle, found.images) == (expected.routed, expected.oracle, expected.images)
    assert found.images == {"gear": (1, 2)}
    assert told[-1] == (12, 12)
    json.dumps(found.to_dict(), allow_nan=False)


def test_a_product_of_unreadable_images_has_no_figures(line, labelled):
    for path in labelled.rglob("test/*/*.png"):
        path.write_bytes(BAD)
    found = evaluate(line, read_dataset(labelled), errors="yield")
    assert len(found.unreadable) == 8
    assert found.foreign == {"blister": None}
    assert found.routed.products["gear"].image_auroc is None


# Folders in folders


def names(found, root):
    return [path.relative_to(root).as_posix() for path in found]


def test_recursive_searches_folders_in_natural_order_without_hidden_ones(tmp_path):
    touch(tmp_path, "s10/1.png", "s2/10.png", "s2/9.png", "s2/deep/x.PNG", "0.png", ".h/1.png", "s2/.x.png")
    touch(tmp_path, "s2/notes.txt")
    wanted = ["0.png", "s2/9.png", "s2/10.png", "s2/deep/x.PNG", "s10/1.png"]
    assert names(find_images(tmp_path, recursive=True), tmp_path) == wanted
    assert names(find_images(tmp_path), tmp_path) == ["0.png"]


def test_a_link_to_a_folder_above_is_not_followed_for_ever(tmp_path):
    touch(tmp_path, "a/1.png", "a/b/2.png")
    try:
        (tmp_path / "a" / "b" / "up").symlink_to(tmp_path, target_is_directory=True)
        (tmp_path / "c").symlink_to(tmp_path / "a" / "b", target_is_directory=True)
    except OSError:
        pytest.skip("no links here")
    assert names(find_images(tmp_path, recursive=True), tmp_path) == ["a/1.png", "a/b/2.png"]


def test_a_folder_of_folders_names_the_way_into_them(tmp_path):
    touch(tmp_path, "a/1.png")
    with pytest.raises(OnlyFoldersError, match="--recursive"):
        find_images(tmp_path)
    (tmp_path / "b").mkdir()
    with pytest.raises(ImageError, match="no images in it"):
        find_images(tmp_path / "b", recursive=True)


def test_a_folder_that_goes_while_it_is_searched_is_named(tmp_path, monkeypatch):
    touch(tmp_path, "a/1.png", "b/2.png")
    listed = finding._listed

    def going(folder):
        found = listed(folder)
        if folder == tmp_path:
            shutil.rmtree(tmp_path / "b")
        return found

    monkeypatch.setattr(finding, "_listed", going)
    with pytest.raises(ImageError, match=r"b: cannot be listed"):
        find_images(tmp_path, recursive=True)


# Lists


def test_a_text_list_is_relative_to_its_folder(tmp_path):
    touch(tmp_path, "lists/b.png", "a.png", "lists/c d.png")
    lists = tmp_path / "lists"
    (lists / "today.TXT").write_text(
        f"\ufeff# today\r\n\r\nb.png\r\n../a.png\n  c d.png \n{tmp_path}/a.png\n"
    )
    found = find_images(lists / "today.TXT")
    assert [path.name for path in found] == ["b.png", "a.png", "c d.png", "a.png"]
    assert all(path.exists() for path in found)
    assert [source for source, _ in list_sources(str(lists / "today.TXT"))] == found
    assert [source for source, _ in list_sources([tmp_path / "a.png", lists / "today.TXT"])][1:] == found


def test_a_file_that_is_gone_is_no_pattern_however_it_is_called(tmp_path):
    (tmp_path / "img2.png").write_bytes(b"")
    gone = tmp_path / "img[2].png"
    assert [path for path, _ in list_sources([gone], errors="yield")] == [gone]
    (tmp_path / "list.txt").write_text("shift [3]/a.png")
    assert len(list_sources(tmp_path / "list.txt", errors="yield")) == 1


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_a_csv_list_keeps_its_other_columns(tmp_path, delimiter):
    touch(tmp_path, "a,b.png", "c.png")
    rows = [["Lot", " Image", "file"], ["7", '"a,b.png"', "x"], [], ["8", "c.png"]]
    (tmp_path / "l.csv").write_text("\n".join(delimiter.join(row) for row in rows))
    entries = find_entries(tmp_path / "l.csv")
    assert [entry.path.name for entry in entries] == ["a,b.png", "c.png"]
    assert [entry.columns for entry in entries] == [{"Lot": "7", "file": "x"}, {"Lot": "8", "file": ""}]


LISTS = {
    "gone.txt": ("a.png\n\ngone.png\n", r"line 3: .*gone\.png: no such file"),
    "gone.csv": ("lot,path\n1,a.png\n2,gone.png\n", r"line 3: .*gone\.png: no such file"),
    "empty.txt": ("# nothing\n\n", "names none"),
    "empty.csv": ("path\n", "names none"),
    "blank.csv": ("", "line 1: .*path or image or file, found nothing"),
    "header.csv": ("a.png,1\n", "line 1: .*path or image or file, found a.png, 1"),
    "wide.csv": ("path,lot\na.png,1\na.png,1,2\n", "line 3: expected 2 columns.*found 3"),
    "without.csv": ("path,lot\n,1\n", "line 2: expected a path"),
    "latin.txt": ("a.png\nstra\xdfe.png\n".encode("latin-1"), "line 2: expected a list in UTF-8"),
    "null.txt": ("a.png\na\0.png", "line 2: .*null"),
}


@pytest.mark.parametrize("name", LISTS)
def test_what_is_wrong_with_a_list_is_said_with_its_line(tmp_path, name):
    touch(tmp_path, "a.png")
    text, message = LISTS[name]
    (tmp_path / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ImageError, match=rf"{name}.*{message}"):
        find_images(tmp_path / name)


def test_a_list_with_a_missing_file_does_not_stop_the_rest(line, belt):
    (belt / "list.txt").write_text("000.png\ngone.png\n001.png\n")
    found = line.predict(belt / "list.txt", errors="yield")
    assert [isinstance(p, Failure) for p in found] == [False, True, False]


# Groups


def test_groups_by_folder(tmp_path):
    paths = [Path(name) for name in ("p/s1/1.png", "p/s2/1.png", "p/s1/2.png")]
    assert group_labels(paths, "folder") == ["s1", "s2", "s1"]
    twins = [Path(name) for name in ("p/s1/good/1.png", "p/s2/good/1.png", "p/top.png")]
    assert len(set(group_labels(twins, "folder"))) == 3
    assert group_labels(twins[:2], "folder") == ["s1/good", "s2/good"]


def test_groups_by_time_begin_after_long_gaps(tmp_path):
    moments = [0, 20, 45, 3600, 3630, 3640, 90000, 90010]
    touch(tmp_path, *(f"{i}.png" for i in range(8)))
    paths = [tmp_path / f"{i}.png" for i in (5, 0, 3, 1, 7, 2, 6, 4)]
    for path in paths:
        os.utime(path, (1e9, 1e9 + moments[int(path.stem)]))
    labels = dict(zip((path.stem for path in paths), group_labels(paths, "time"), strict=True))
    sessions = [[label for label in labels if labels[label] == one] for one in sorted(set(labels.values()))]
    assert [sorted(session) for session in sessions] == [["0", "1", "2"], ["3", "4", "5"], ["6", "7"]]
    assert len(group_labels([*paths, tmp_path / "gone.png"], "time")) == 9


def test_slow_cameras_have_long_sessions(tmp_path):
    touch(tmp_path, *(f"{i}.png" for i in range(9)))
    paths = find_images(tmp_path)
    for i, path in enumerate(paths):
        os.utime(path, (1e9, 1e9 + 1800 * i + 50_000 * (i > 4)))
    assert [group_labels(paths, "time").count(label) for label in set(group_labels(paths, "time"))] in (
        [5, 4],
        [4, 5],
    )


def test_groups_by_column_and_by_name():
    paths = [Path("lot7_1.png"), Path("lot8_1.png")]
    assert group_labels(paths, "name:^lot([0-9]+)_") == ["7", "8"]
    assert group_labels(paths, "column:lot", columns=[{"lot": "a"}, {"lot": "b"}]) == ["a", "b"]
    assert group_labels(paths) is None


@pytest.mark.parametrize(
    "rule", ["", "day", "folder:x", "column", "column:", "name:", "name:(", "name:abc", "Name:(a)"]
)
def test_what_is_no_rule_is_refused(rule):
    with pytest.raises(ConfigError):
        parse_rule(rule)


def test_an_image_without_its_group_is_named():
    paths = [Path("lot7_1.png"), Path("other.png")]
    with pytest.raises(ImageError, match=r"other\.png"):
        group_labels(paths, "name:lot([0-9]+)")
    with pytest.raises(ImageError, match=r"other\.png.*'lot'"):
        group_labels(paths, "column:lot", columns=[{"lot": "7"}, {"lot": ""}])
    with pytest.raises(ConfigError, match="'day' for the groups, the images have lot"):
        group_labels(paths, "column:day", columns=[{"lot": "7"}, {"lot": ""}])
    with pytest.raises(ConfigError, match="no CSV list"):
        group_labels(paths, "column:day")
