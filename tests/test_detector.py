"""The line: nothing that was learned moves, whatever is added, saved, loaded, mixed or run at once."""

import dataclasses
import json
import math
import threading
import warnings
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from moleflow import Detector, Mixer, TaskInfo
from moleflow.bench import plan
from moleflow.cli import adding
from moleflow.config import with_layers
from moleflow.errors import (
    CalibrationError,
    ConfigError,
    ImageError,
    TaskError,
)
from moleflow.results import Failure
from moleflow.store import LineStore
from moleflow.verdict.maps import image_scores
from saying import THREE, TWINS, base_tensors, by_task, said, same, snapshot, tensors

# Nothing else moved


CHANGES = {
    "add": lambda line, pictures: line.add_task("cloth", pictures("woven_cloth", 4)),
    "update": lambda line, pictures: line.update_task("wood", pictures("wood", 4, first=50)),
    "remove": lambda line, pictures: line.remove_task("wood"),
    "threshold": lambda line, pictures: line.set_threshold("wood", threshold=1.5),
}


@pytest.mark.parametrize("change", CHANGES)
def test_no_other_product_moves(loaded, probe, pictures, change):
    others = [name for name in THREE if name != "wood" or change == "add"]
    base, owned = base_tensors(loaded), {name: tensors(loaded, name) for name in others}
    spoken = by_task(loaded, probe, others)
    CHANGES[change](loaded, pictures)
    assert same(base_tensors(loaded), base)
    assert all(same(tensors(loaded, name), owned[name]) for name in others)
    assert by_task(loaded, probe, others) == spoken
    loaded.save()
    again = Detector.load(loaded.path, device="cpu")
    assert same(base_tensors(again), base)
    assert all(same(tensors(again, name), owned[name]) for name in others)
    assert by_task(again, probe, others) == spoken


@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_line_says_the_same_after_save_and_load(loaded, probe, pictures, change):
    before = snapshot(loaded, probe)
    CHANGES[change](loaded, pictures)
    changed = snapshot(loaded, probe)
    assert changed != before
    loaded.save()
    assert snapshot(Detector.load(loaded.path, device="cpu"), probe) == changed


def test_a_loaded_line_is_the_saved_one_to_the_bit(line, loaded, probe):
    assert snapshot(loaded, probe) == snapshot(line, probe)
    assert same(base_tensors(loaded), base_tensors(line))
    assert all(same(tensors(loaded, name), tensors(line, name)) for name in THREE)
    assert loaded.config == line.config
    assert (loaded.seed, loaded.false_alarm_rate) == (line.seed, line.false_alarm_rate)


@pytest.mark.long
def test_a_line_of_the_published_parts_comes_back_to_the_bit_and_is_another_line(
    new_line, quick, line, probe, pictures, tmp_path
):
    config = replace(
        quick,
        flow=replace(quick.flow, cells=None, normalisation="sphere", mixer=Mixer(kernel="full")),
        training=replace(quick.training, margin=2, tail="image", log_det_of="flow"),
    )
    published = new_line(config=config)
    for name in ("gear", "wood"):
        published.add_task(name, pictures(name, 8))
    before = snapshot(published, probe)
    published.save(tmp_path / "published")
    again = Detector.load(tmp_path / "published", device="cpu")
    assert again.config == published.config == with_layers(config, again.extractor.widths)
    assert snapshot(again, probe) == before
    again.update_task("wood", pictures("wood", 4, first=50))
    assert base_tensors(again)["mixer.change"].shape == (3, 3, 150)
    gear = probe[:1]
    assert said(published.predict(gear, task="gear")) != said(line.predict(gear, task="gear"))


def test_an_expert_depends_on_the_base_and_its_images_only(taught_line, pictures):
    short, long = taught_line(gear=4), taught_line(gear=4, bottle_cap=2)
    for detector in (short, long):
        detector.add_task("wood", pictures("wood", 4))
    assert same(tensors(short, "wood"), tensors(long, "wood"))
    images = pictures("wood", 2, first=500)
    assert said(short.predict(images, task="wood")) == said(long.predict(images, task="wood"))


def test_the_same_seed_learns_the_same_bytes(new_line, pictures):
    lines = [new_line(seed=seed) for seed in (3, 3, 4)]
    for detector in lines:
        detector.add_task("gear", pictures("gear", 2))
    first, second, other = (tensors(detector, "gear") for detector in lines)
    assert same(first, second)
    assert not same(first, other)
    assert same(base_tensors(lines[0]), base_tensors(lines[1]))


def test_learning_leaves_torchs_random_state_alone(loaded, pictures):
    state = torch.get_rng_state()
    loaded.update_task("gear", pictures("gear", 4, first=70))
    assert torch.equal(torch.get_rng_state(), state)


def test_an_update_is_calibrated_by_images_that_taught_nothing_before(saved, pictures):
    """Also after the line was saved and loaded, and what is left is learned as if it came alone."""
    mixed, alone = (Detector.load(saved, device="cpu") for _ in range(2))
    info = mixed.update_task("gear", [*pictures("gear", 3), *pictures("gear", 4, first=50)])
    assert info.unreadable == tuple(f"image {i}: it taught 'gear' before" for i in range(3))
    assert info.images == 8 + 4
    alone.update_task("gear", pictures("gear", 4, first=50))
    assert same(tensors(mixed, "gear"), tensors(alone, "gear"))
    mixed.save()
    again = Detector.load(saved, device="cpu")
    for taught in (pictures("gear", 3), pictures("gear", 2, first=52)):
        with pytest.raises(ImageError, match=r"all \d images taught 'gear' before"):
            again.update_task("gear", taught)


def test_a_product_that_is_taught_what_another_was_is_told_of_before_it_is_learned(loaded, pictures):
    same_again, half = pictures("gear", 3), [*pictures("gear", 2), *pictures("gear", 2, first=60)]
    stages = []
    with pytest.warns(UserWarning, match=r"'cog': 3 of 3 photographs taught 'gear' before"):
        loaded.add_task("cog", same_again, progress=lambda stage, _: stages.append(stage))
    assert stages  # it is learned all the same
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        loaded.add_task("half", half)


def test_an_update_learns_something(loaded, probe, pictures):
    owned, info = tensors(loaded, "wood"), loaded.info("wood")
    updated = loaded.update_task("wood", pictures("wood", 4, first=50))
    assert not same(tensors(loaded, "wood"), owned)
    assert updated.images == info.images + 4
    assert loaded.tasks == THREE


# Batches and threads


@pytest.mark.parametrize("task", [None, "gear"])
def test_a_mixed_batch_says_what_single_images_say(line, probe, task):
    together = line.predict(probe, task=task)
    alone = [line.predict(image, task=task)[0] for image in probe]
    assert [p.source for p in together] == list(range(len(probe)))
    close(together, alone)


@pytest.mark.parametrize("batch_size", [1, 2, 5, 100])
def test_the_batch_size_changes_nothing_beyond_rounding(line, probe, batch_size):
    close(line.predict(probe, batch_size=batch_size), line.predict(probe))


def close(some, others):
    """Equal up to the rounding of a backbone that sees another number of images at once."""
    assert [(p.task, p.known, p.pred_label) for p in some] == [
        (p.task, p.known, p.pred_label) for p in others
    ]
    for a, b in zip(some, others, strict=True):
        assert a.pred_score == pytest.approx(b.pred_score, rel=1e-4, abs=1e-4)
        np.testing.assert_allclose(a.patch_map, b.patch_map, rtol=1e-3, atol=1e-3)
        assert (a.routing is None) == (b.routing is None)
        if a.routing is not None:
            assert a.routing.distances == pytest.approx(b.routing.distances, rel=1e-5)


# Two cores for each of eight threads get in each other's way: the same, only slower.
@pytest.mark.parametrize("cores", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_eight_threads_say_what_one_says(line, probe, cores):
    jobs = [(probe[i % 3 :] + probe[: i % 3], (None, *THREE)[i % 4]) for i in range(24)]

    def inspect(job):
        return said(line.predict(job[0], task=job[1], batch_size=3))

    before = torch.get_num_threads()
    torch.set_num_threads(cores)
    try:
        expected = [inspect(job) for job in jobs]
        with ThreadPoolExecutor(8) as pool:
            assert list(pool.map(inspect, jobs)) == expected
    finally:
        torch.set_num_threads(before)


def test_a_stream_keeps_the_line_it_began_with(loaded, probe):
    expected = said(loaded.predict(probe, batch_size=1))
    stream = loaded.stream(probe, batch_size=1)
    first = next(stream)
    loaded.remove_task("bottle_cap")
    assert said([first, *stream]) == expected
    assert {p.task for p in loaded.predict(probe)} == {"gear", "wood"}


# Routing


def test_images_of_taught_products_are_recognised(line, pictures):
    for product in THREE:
        for prediction in line.predict(pictures(product, 3, first=700)):
            assert (prediction.task, prediction.known) == (product, True)
            assert set(prediction.routing.distances) == set(THREE)
            assert min(prediction.routing.distances, key=prediction.routing.distances.get) == product
            assert prediction.routing.margin > 1


@pytest.mark.parametrize("product", ["circuit_board", "blister_pack"])
def test_an_untaught_product_is_unknown_and_still_judged(line, pictures, product):
    for prediction in line.predict(pictures(product, 3, first=700)):
        assert prediction.known is False
        assert prediction.task in THREE
        assert prediction.routing.distance > prediction.routing.distance_limit
        assert prediction.routing.strangeness > prediction.routing.strangeness_limit
        assert set(prediction.routing.distances) == set(THREE)
        assert math.isfinite(prediction.pred_score)


def test_a_given_product_is_not_routed(line, pictures):
    (prediction,) = line.predict(pictures("circuit_board", 1), task="wood")
    assert (prediction.task, prediction.known, prediction.routing) == ("wood", True, None)


def test_what_a_new_product_does_to_the_routing_of_older_ones_is_told(taught_line, pictures):
    detector = taught_line(gear=6)
    assert detector.info("gear").rerouted == {}
    twin = detector.add_task("gear again", pictures("gear", 6))
    assert twin.rerouted
    assert set(twin.rerouted) <= {"gear", "gear again"}
    assert all(0 < count <= 6 for count in twin.rerouted.values())
    assert detector.add_task("wood", pictures("wood", 6)).rerouted == {}


# What goes in


@pytest.fixture
def folder(tmp_path, pictures):
    folder = tmp_path / "images"
    folder.mkdir()
    for i, image in enumerate(pictures("gear", 3, first=300)):
        Image.fromarray(image).save(folder / f"g{i}.png")
    return folder


INPUTS = {
    "folder": lambda folder, arrays: folder,
    "folder as text": lambda folder, arrays: str(folder),
    "pattern": lambda folder, arrays: str(folder / "g*.png"),
    "paths": lambda folder, arrays: sorted(folder.iterdir()),
    "tuple of texts": lambda folder, arrays: tuple(str(path) for path in sorted(folder.iterdir())),
    "generator of paths": lambda folder, arrays: (path for path in sorted(folder.iterdir())),
    "arrays": lambda folder, arrays: arrays,
    "generator of arrays": lambda folder, arrays: iter(arrays),
    "batch array": lambda folder, arrays: np.stack(arrays),
    "batch tensor": lambda folder, arrays: torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2),
    "tensors": lambda folder, arrays: [torch.from_numpy(a.copy()).permute(2, 0, 1) for a in arrays],
    "floats": lambda folder, arrays: [a.astype(np.float32) / 255 for a in arrays],
    "pictures": lambda folder, arrays: [Image.fromarray(a) for a in arrays],
    "paths among arrays": lambda folder, arrays: [folder / "g0.png", *arrays[1:]],
}


@pytest.mark.parametrize("kind", INPUTS)
def test_every_kind_of_input_says_the_same(line, folder, pictures, kind):
    arrays = pictures("gear", 3, first=300)
    found = line.predict(INPUTS[kind](folder, arrays))
    assert said(found) == said(line.predict(arrays))
    paths = sorted(folder.iterdir())
    sources = [str(p.source) if isinstance(p.source, str) else p.source for p in found]
    named = (
        kind not in {"arrays", "floats", "pictures", "tensors", "paths among arrays"} and "array" not in kind
    )
    assert sources == (paths if named and "tensor" not in kind else [0, 1, 2])


SINGLES = {
    "array": lambda image: image,
    "tensor": lambda image: torch.from_numpy(image.copy()).permute(2, 0, 1),
    "picture": Image.fromarray,
}


@pytest.mark.parametrize("kind", SINGLES)
def test_a_single_image_need_not_be_in_a_list(line, pictures, kind):
    (image,) = pictures("gear", 1, first=300)
    assert said(line.predict(SINGLES[kind](image))) == said(line.predict([image]))


def test_a_single_file_need_not_be_in_a_list(line, folder):
    (prediction,) = line.predict(folder / "g1.png")
    assert prediction.source == folder / "g1.png"


def test_a_link_that_leads_nowhere_stops_no_others(line, folder):
    (folder / "broken.png").symlink_to(folder / "nothing.png")
    for images in (folder, sorted(folder.iterdir())):
        found = line.predict(images, errors="yield")
        assert [one.source.name for one in found if isinstance(one, Failure)] == ["broken.png"]
        assert len(found) == 4


def test_grey_images_are_learned_and_inspected(new_line, pictures):
    grey = [image.mean(2).astype(np.uint8) for image in pictures("gear", 3)]
    detector = new_line()
    detector.add_task("grey gear", grey)
    assert all(math.isfinite(p.pred_score) for p in detector.predict(grey))
    assert said(detector.predict(grey[0])) == said(detector.predict(np.repeat(grey[0][..., None], 3, axis=2)))


def test_learning_takes_what_inspecting_takes(new_line, folder, pictures):
    from_folder, from_arrays = new_line(), new_line()
    from_folder.add_task("gear", folder)
    from_arrays.add_task("gear", iter(pictures("gear", 3, first=300)))
    assert same(tensors(from_folder, "gear"), tensors(from_arrays, "gear"))


# What comes out


def test_the_place_score_is_the_mean_of_the_highest_patches(line, probe):
    for prediction in line.predict(probe):
        patches = torch.from_numpy(prediction.patch_map)[None]
        expected = float(image_scores(patches, line.config.scoring)[0])
        assert prediction.place_score == pytest.approx(expected, rel=1e-4, abs=1e-4)


def test_the_score_is_the_mean_of_both_voices_in_units_of_good_images(line, probe):
    for prediction in line.predict(probe, task="gear"):
        good = line._line.products["gear"].calibration
        means = [
            (good.place.units(place) + good.whole.units(whole)) / 2
            for place, whole in zip(good.place.scores, good.whole.scores, strict=True)
        ]
        floor = (good.place.floor / good.place.spread + good.whole.floor / good.whole.spread) / 2
        spread = max(1.4826 * np.median(np.abs(means - np.median(means))), floor)
        mean = (prediction.place_score + prediction.whole_score) / 2
        assert prediction.pred_score == pytest.approx((mean - np.median(means)) / spread, rel=1e-6)


def test_a_line_may_do_without_the_picture_as_a_whole(new_line, quick, pictures):
    scoring = replace(quick.scoring, whole=None)
    line = new_line(config=replace(quick, scoring=scoring))
    line.add_task("gear", pictures("gear", 8))
    assert all(p.whole_score is None for p in line.predict(pictures("gear", 2, first=500)))


def test_maps_have_the_size_of_the_image(line):
    wide = Image.fromarray(np.random.default_rng(0).integers(0, 255, (50, 90, 3), np.uint8))
    (prediction,) = line.predict(wide)
    assert prediction.image_size == (50, 90)
    assert prediction.patch_map.shape == line.extractor.grid
    assert prediction.patch_map.dtype == prediction.anomaly_map.dtype == np.float32
    assert prediction.anomaly_map.shape == prediction.pred_mask.shape == (50, 90)
    assert prediction.pred_mask.dtype == np.bool_
    assert prediction.anomaly_map.max() <= prediction.patch_map.max()


def test_mask_label_and_threshold_agree(loaded, pictures):
    (image,) = pictures("circuit_board", 1)
    (prediction,) = loaded.predict(image, task="gear")
    assert prediction.pred_label is True
    assert prediction.pred_mask.any()
    np.testing.assert_array_equal(prediction.pred_mask, prediction.anomaly_map > prediction.map_threshold)
    loaded.set_threshold("gear", threshold=prediction.pred_score)
    (at_threshold,) = loaded.predict(image, task="gear")
    assert at_threshold.pred_label is False
    loaded.set_threshold("gear", threshold=1e6)
    assert not loaded.predict(image, task="gear")[0].pred_mask.any()


@pytest.mark.parametrize("task", [None, "gear"])
def test_predictions_travel_as_json(line, folder, task):
    for prediction in line.predict(folder, task=task):
        sent = json.loads(json.dumps(prediction.to_dict(), allow_nan=False))
        assert sent["pred_score"] == prediction.pred_score
        assert sent["task"] == "gear"
        assert sent["source"] == str(prediction.source)
        assert (sent["routing"] is None) == (task is not None)


def test_infinite_limits_of_a_line_of_one_image_travel_as_json(taught_line, pictures):
    detector = taught_line(gear=1)
    (prediction,) = detector.predict(pictures("wood", 1))
    assert prediction.routing.margin == math.inf
    sent = json.loads(json.dumps(prediction.to_dict(), allow_nan=False))
    assert sent["routing"]["margin"] is None


def test_results_cannot_be_changed(line, probe):
    (prediction,) = line.predict(probe[0])
    with pytest.raises(dataclasses.FrozenInstanceError):
        prediction.pred_score = 0.0


def test_progress_rises_through_the_stages(new_line, pictures):
    told = []
    new_line().add_task("gear", pictures("gear", 3), progress=lambda *stage: told.append(stage))
    assert list(dict.fromkeys(stage for stage, _ in told)) == ["backbone", "base", "learning", "calibration"]
    for stage in ("backbone", "base", "learning", "calibration"):
        shares = [share for name, share in told if name == stage]
        assert shares == sorted(shares)
        assert shares[-1] == pytest.approx(1.0)


def test_info_says_what_was_learned(line):
    info = line.info("gear")
    assert isinstance(info, TaskInfo)
    assert (info.name, info.version, info.images, info.calibration_images) == ("gear", None, 8, 8)
    assert (info.calibration, info.false_alarm_rate) == ("left-out", 0.01)
    assert set(info.seconds) == {"backbone", "base", "learning", "calibration"}
    assert set(line.info("wood").seconds) == {"backbone", "learning", "calibration"}
    held = tensors(line, "gear").values()
    assert info.parameters > sum(t.numel() for t in held)  # and good images' scores, as JSON
    assert info.bytes > sum(t.nbytes for t in held)


# Few images


@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_few_images_suffice(taught_line, pictures, count):
    detector = taught_line(gear=count)
    info = detector.info("gear")
    assert info.images == info.calibration_images == count
    assert info.calibration == ("in-sample" if count == 1 else "left-out")
    assert math.isfinite(info.threshold)
    for prediction in detector.predict(pictures("gear", 2, first=500) + pictures("wood", 1)):
        assert math.isfinite(prediction.pred_score)
        assert 0 <= prediction.p_value <= 1
        assert np.isfinite(prediction.patch_map).all()
        assert math.isfinite(prediction.routing.distance)


@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_a_whole_picture_speaks_once_there_is_something_to_compare_it_with(taught_line, pictures, count):
    line = taught_line(gear=count)
    good, other = (
        line.predict(p, task="gear")[0] for p in (*pictures("gear", 1, first=500), *pictures("wood", 1))
    )
    assert (good.whole_score is None) == (count < 4)
    assert other.pred_score > good.pred_score + 1


def test_images_that_are_all_the_same_are_learned(new_line, pictures):
    detector = new_line()
    detector.add_task("gear", pictures("gear", 1) * 4)
    assert all(np.isfinite(p.patch_map).all() for p in detector.predict(pictures("gear", 2)))


def test_black_images_come_back_to_the_bit(new_line, tmp_path):
    detector = new_line()
    images = [np.zeros((64, 64, 3), np.uint8)] * 3
    detector.add_task("dark", images)
    detector.save(tmp_path / "line")
    assert said(Detector.load(tmp_path / "line", device="cpu").predict(images)) == said(
        detector.predict(images)
    )


def test_every_image_teaches_and_calibrates(new_line, quick, pictures):
    scoring = replace(quick.scoring, single_up_to=4, blocks=4)
    info = new_line(config=replace(quick, scoring=scoring)).add_task("gear", pictures("gear", 8))
    assert (info.calibration, info.calibration_images, info.images) == ("left-out", 8, 8)


@pytest.mark.parametrize("left_out", ["cells", "flow parts"])
def test_a_line_without_some_parts_learns_and_comes_back(new_line, quick, pictures, tmp_path, left_out):
    config = replace(quick, scoring=replace(quick.scoring, cells=None))
    if left_out == "flow parts":
        config = replace(quick, flow=replace(quick.flow, dia=None, lora=None, mixer=None, whitening=None))
    detector = new_line(config=config)
    detector.add_task("gear", pictures("gear", 3))
    detector.update_task("gear", pictures("gear", 3, first=20))
    detector.save(tmp_path / "line")
    images = pictures("gear", 2, first=500)
    assert said(Detector.load(tmp_path / "line", device="cpu").predict(images)) == said(
        detector.predict(images)
    )


# Errors, after which the line is as it was


def spoiled(tmp_path, pictures):
    folder = tmp_path / "spoiled"
    folder.mkdir()
    Image.fromarray(pictures("gear", 1)[0]).save(folder / "a.png")
    (folder / "b.png").write_text("no picture")
    return folder


def empty(tmp_path, pictures):
    (tmp_path / "empty").mkdir()
    return tmp_path / "empty"


BAD_IMAGES = {
    "no image": lambda tmp_path, pictures: [],
    "empty batch": lambda tmp_path, pictures: np.zeros((0, 64, 64, 3), np.uint8),
    "empty folder": empty,
    "no such folder": lambda tmp_path, pictures: tmp_path / "nowhere",
    "text named .png": spoiled,
    "not a number": lambda tmp_path, pictures: [*pictures("gear", 2), np.full((64, 64, 3), np.nan)],
    "too bright": lambda tmp_path, pictures: np.full((64, 64, 3), 3.0),
    "two channels": lambda tmp_path, pictures: np.zeros((64, 64, 2), np.uint8),
    "no images at all": lambda tmp_path, pictures: 17,
    "nothing": lambda tmp_path, pictures: None,
}


@pytest.mark.parametrize("kind", BAD_IMAGES)
def test_bad_images_are_refused_and_nothing_is_learned(loaded, probe, pictures, tmp_path, kind):
    before = snapshot(loaded, probe[:1])
    images = BAD_IMAGES[kind](tmp_path, pictures)
    for refuse in (
        lambda: loaded.add_task("new", images),
        lambda: loaded.update_task("gear", images),
        lambda: loaded.predict(images),
    ):
        with pytest.raises(ImageError):
            refuse()
    assert snapshot(loaded, probe[:1]) == before


def test_an_unreadable_file_is_named(loaded, tmp_path, pictures):
    with pytest.raises(ImageError, match=r"b\.png"):
        loaded.add_task("new", spoiled(tmp_path, pictures))


@pytest.mark.parametrize("name", ["gear", "Gear", "GEAR"])
def test_a_taken_name_is_refused(loaded, pictures, name):
    with pytest.raises(TaskError, match="already"):
        loaded.add_task(name, pictures("wood", 1))
    assert loaded.tasks == THREE


@pytest.mark.parametrize("name", ["", " gear", "a/b", "..", "con", "Unknown", "x" * 200, "a\nb", None, 3])
def test_an_unusable_name_is_refused_before_anything_is_learned(new_line, name):
    with pytest.raises(TaskError):
        new_line().add_task(name, iter_that_must_not_be_read())


def iter_that_must_not_be_read():
    raise AssertionError("images were read")
    yield


@pytest.mark.parametrize(
    "call",
    [
        lambda line, image: line.predict(image, task="cog"),
        lambda line, image: line.stream(image, task="cog"),
        lambda line, image: line.update_task("cog", image),
        lambda line, image: line.remove_task("cog"),
        lambda line, image: line.set_threshold("cog", threshold=1.0),
        lambda line, image: line.info("cog"),
    ],
)
def test_an_unknown_product_is_refused_with_the_known_ones(loaded, pictures, call):
    with pytest.raises(TaskError, match=r"known: 'gear', 'wood', 'bottle_cap'"):
        call(loaded, pictures("gear", 1)[0])
    assert loaded.tasks == THREE


def test_a_product_is_found_by_either_spelling_of_its_accents(loaded, pictures):
    loaded.add_task("cafe\u0301", pictures("gear", 1))
    assert loaded.predict(pictures("gear", 1), task="cafe\u0301")[0].task == "caf\u00e9"


def test_an_empty_line_cannot_inspect(new_line, pictures):
    with pytest.raises(TaskError, match="add_task"):
        new_line().predict(pictures("gear", 1))


def test_a_line_whose_products_are_all_gone_learns_again(loaded, pictures, tmp_path):
    base = base_tensors(loaded)
    for name in THREE:
        loaded.remove_task(name)
    with pytest.raises(TaskError, match="no product"):
        loaded.predict(pictures("gear", 1))
    loaded.save()
    again = Detector.load(loaded.path, device="cpu")
    assert again.tasks == ()
    again.add_task("gear", pictures("gear", 2))
    assert same(base_tensors(again), base)


@pytest.mark.parametrize("rate", [0, 1, -0.5, 2, float("nan")])
def test_a_false_alarm_rate_outside_0_and_1_is_refused(new_line, line, rate):
    with pytest.raises(ConfigError, match="false-alarm rate"):
        new_line(false_alarm_rate=rate)
    with pytest.raises(CalibrationError, match="false-alarm rate"):
        line.set_threshold("gear", false_alarm_rate=rate)
    assert line.info("gear").false_alarm_rate == 0.01


@pytest.mark.parametrize("batch_size", [0, -1])
def test_a_batch_size_below_one_is_refused(line, probe, batch_size):
    with pytest.raises(ConfigError, match="batch size"):
        line.predict(probe, batch_size=batch_size)


# Thresholds


def test_a_threshold_by_rate_or_by_hand(loaded, probe):
    default = loaded.info("gear").threshold
    stricter = loaded.set_threshold("gear", false_alarm_rate=0.1)
    assert stricter.false_alarm_rate == 0.1
    assert stricter.threshold < default
    by_hand = loaded.set_threshold("gear", threshold=0.5)
    assert (by_hand.threshold, by_hand.false_alarm_rate) == (0.5, None)
    assert {p.threshold for p in loaded.predict(probe, task="gear")} == {0.5}
    assert loaded.info("wood").false_alarm_rate == 0.01


@pytest.mark.parametrize("values", [{}, {"false_alarm_rate": 0.1, "threshold": 1.0}])
def test_exactly_one_kind_of_threshold_is_asked_for(line, values):
    with pytest.raises(ConfigError, match="exactly one"):
        line.set_threshold("gear", **values)


@pytest.mark.parametrize("threshold", [float("nan"), float("inf")])
def test_a_threshold_by_hand_is_finite(line, threshold):
    with pytest.raises(CalibrationError, match="finite"):
        line.set_threshold("gear", threshold=threshold)


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"threshold": "3"}, CalibrationError),
        ({"threshold": [3.0]}, CalibrationError),
        ({"threshold": True}, CalibrationError),
        ({"false_alarm_rate": "0.1"}, CalibrationError),
    ],
)
def test_a_threshold_is_a_number(line, options, error):
    with pytest.raises(error, match="is a finite number, got"):
        line.set_threshold("gear", **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"seed": "a"}, "expected a whole number of 64 bits as seed, got 'a'"),
        ({"seed": None}, "as seed, got None"),
        ({"seed": 1.5}, "as seed, got 1.5"),
        ({"seed": True}, "as seed, got True"),
        ({"seed": 2**70}, "as seed, got"),
        ({"config": {}}, "expected a LineConfig as config, got dict"),
        ({"false_alarm_rate": None}, "a false-alarm rate is a finite number, got None"),
        ({"false_alarm_rate": "0.1"}, "a false-alarm rate is a finite number, got '0.1'"),
    ],
)
def test_what_a_line_cannot_begin_with_is_refused_at_once(new_line, options, message):
    with pytest.raises(ConfigError, match=message):
        new_line(**options)


def test_a_threshold_waits_for_a_lesson_and_is_of_no_product_that_is_gone_by_then(loaded, pictures):
    answers = []

    def late():
        with pytest.raises(TaskError, match="'wood' is no product of this line"):
            loaded.set_threshold("wood", false_alarm_rate=0.2)
        answers.append("refused")

    asking = threading.Thread(target=late)
    with loaded._learning:  # as a lesson holds it
        asking.start()
        asking.join(0.2)
        assert not answers
        loaded._line = loaded._line.without("wood", loaded.config.router)
    asking.join()
    assert answers == ["refused"]
    loaded.add_task("wood", pictures("wood", 6))
    assert loaded.info("wood").false_alarm_rate == 0.01


@pytest.mark.long
@pytest.mark.parametrize("runtime", ["torch", "auto"])
def test_whatever_mode_the_caller_computes_in_a_line_inspects_and_learns(saved, probe, pictures, runtime):
    line = Detector.load(saved, device="cpu", runtime=runtime)
    with torch.inference_mode():
        said_then = said(line.predict(probe))
        line.add_task("cog", pictures("circuit_board", 6))
    line.update_task("gear", pictures("gear", 6, first=300))
    with torch.no_grad():
        line.update_task("wood", pictures("wood", 6, first=300))
        line.add_tasks(pictures("blister_pack", 6), names=["pack"])
    assert said_then == said(Detector.load(saved, device="cpu", runtime=runtime).predict(probe))


def test_thresholds_survive_save_and_load_and_change_back(loaded):
    loaded.set_threshold("gear", threshold=1.25)
    loaded.set_threshold("wood", false_alarm_rate=0.2)
    loaded.save()
    again = Detector.load(loaded.path, device="cpu")
    assert again.info("gear").threshold == 1.25
    assert again.info("wood").false_alarm_rate == 0.2
    again.set_threshold("gear", false_alarm_rate=0.01)
    again.save()
    back = again.info("gear")
    assert Detector.load(loaded.path, device="cpu").info("gear") == replace(
        loaded.info("gear"), threshold=back.threshold, promise=back.promise, false_alarm_rate=0.01
    )


def test_an_update_drops_a_threshold_by_hand_and_keeps_a_rate(loaded, pictures):
    loaded.set_threshold("gear", threshold=1.25)
    loaded.set_threshold("wood", false_alarm_rate=0.2)
    assert loaded.update_task("gear", pictures("gear", 4, first=70)).false_alarm_rate == 0.01
    assert loaded.update_task("wood", pictures("wood", 4, first=70)).false_alarm_rate == 0.2


def test_rolling_back_returns_to_the_version_with_its_threshold(loaded, probe, pictures):
    loaded.set_threshold("gear", threshold=1.25)
    loaded.save()
    old = by_task(loaded, probe)
    assert loaded.info("gear").version == "0001"
    loaded.update_task("gear", pictures("gear", 4, first=40))
    assert loaded.info("gear").version is None
    loaded.save()
    assert loaded.info("gear").version == "0002"
    store = LineStore(loaded.path)
    assert store.versions("gear") == ["0001", "0002"]
    new = by_task(loaded, probe)
    assert new != old
    store.point("gear", "0001")
    assert by_task(Detector.load(loaded.path, device="cpu"), probe) == old
    store.point("gear", "0002")
    assert by_task(Detector.load(loaded.path, device="cpu"), probe) == new


# Names


def test_a_name_that_is_another_but_for_case_is_refused_before_learning(saved, probe):
    LineStore(saved).adopt(saved / "tasks" / "wood" / "0001", TWINS[0])
    with pytest.raises(TaskError, match="already a product"):
        Detector.load(saved, device="cpu").add_task(TWINS[1], probe)
    with pytest.raises(TaskError, match="on this line already"):
        adding._refuse_taken(LineStore(saved), TWINS[1])
    with pytest.raises(ConfigError, match="different names"):
        plan._check_folders("stream", TWINS)
