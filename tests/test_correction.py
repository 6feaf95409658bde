"""Known defects: the direction they teach, what it changes, and what it must not."""

from __future__ import annotations

import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from moleflow import Detector
from moleflow.cli import app
from moleflow.config import Cells, ScoringConfig
from moleflow.data.factory import make_sample
from moleflow.densities.correction import Correction, Defects
from moleflow.errors import ConfigError, ImageError, TaskError
from moleflow.flow.cells import CellGaussians
from moleflow.intake import Intake
from moleflow.learning.blocks import make_blocks
from moleflow.learning.known_defects import KnownDefects, _marked, _mask_of
from moleflow.learning.left_out import correction_left_out
from moleflow.pose import Placement
from moleflow.presets import get_preset
from moleflow.verdict.maps import image_scores, strongest

GRID, CHANNELS = (6, 6), 10
CELLS = Cells(side=2, rank=4, mean_side=4, bits=16)


def good(count: int = 60, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(CHANNELS, CHANNELS, generator=torch.Generator().manual_seed(99))
    return torch.randn(count, *GRID, CHANNELS, generator=generator) @ mixing


def gaussians(features: torch.Tensor) -> CellGaussians:
    cells = CellGaussians(GRID, CHANNELS, CELLS)
    cells.fit(features)
    return cells


def correction(shift: torch.Tensor, cells: CellGaussians, features: torch.Tensor) -> Correction:
    return Correction.fit(cells, features, defects(shift, cells))


def defects(shift: torch.Tensor, cells: CellGaussians) -> Defects:
    """Five images, every patch of which shows it."""
    patches, _ = cells.unwhiten(cells.whiten(good(5, seed=3))[0] + shift)
    return Defects(patches, torch.ones(5, *GRID, dtype=torch.bool))


# -- the direction -----------------------------------------------------------------------------------


def test_it_is_the_direction_in_which_the_defects_differ():
    features = good()
    cells, shift = gaussians(features), torch.zeros(CHANNELS)
    shift[3] = 2.0
    found = correction(shift, cells, features)
    white = cells.whiten(features)[0].flatten(0, 2)
    covariance = white.T.cov(correction=0)
    ridge = 0.1 * covariance.trace() / CHANNELS * torch.eye(CHANNELS)
    differ = cells.whiten(good(5, seed=3))[0].flatten(0, 2).mean(0) + shift - white.mean(0)
    expected = torch.linalg.solve(covariance + ridge, differ)
    assert torch.cosine_similarity(found.direction, expected, dim=0) > 0.9999
    assert found.images == 5
    assert found.weight == pytest.approx(0.5 * 5 / 6)


def test_good_patches_have_mean_zero_and_spread_one_along_it():
    features = good()
    cells = gaussians(features)
    said = correction(torch.randn(CHANNELS), cells, features)(cells, features)
    assert said.shape == (60, *GRID)
    assert abs(float(said.mean())) < 1e-2
    assert float(said.std()) == pytest.approx(1, abs=1e-2)


def test_patches_like_the_defects_are_far_along_it_and_others_are_not():
    features = good()
    cells, shift = gaussians(features), torch.zeros(CHANNELS)
    shift[3] = 6.0
    found = correction(shift, cells, features)
    unseen = good(20, seed=7)
    back, _ = cells.unwhiten(cells.whiten(unseen)[0] + shift)
    assert found(cells, back).mean() > 3
    other, _ = cells.unwhiten(cells.whiten(unseen)[0] + shift.roll(2))
    assert found(cells, other).abs().mean() < 2


def test_what_is_kept_says_the_very_same():
    features = good()
    cells = gaussians(features)
    found = correction(torch.randn(CHANNELS), cells, features)
    kept = found.tensors()
    again = Correction.from_tensors(kept)
    assert torch.equal(again(cells, features), found(cells, features))
    assert again.images == 5
    assert sum(t.numel() * t.element_size() for t in kept.values()) < 3 * CHANNELS + 16
    assert torch.equal(found.to("cpu")(cells, features), found(cells, features))


def test_behind_other_cells_it_is_measured_anew():
    features, other = good(), 5 * good(seed=8)
    cells, others = gaussians(features), gaussians(other)
    found = correction(torch.randn(CHANNELS), cells, features)
    moved = found.measured(others, other)
    assert float(moved(others, other).std()) == pytest.approx(1, abs=1e-2)
    assert torch.cosine_similarity(moved.direction, found.direction, dim=0) > 0.999


def test_left_out_images_lie_along_it_where_images_never_seen_do():
    def differing(count: int, seed: int) -> torch.Tensor:
        """Images of which each has a look of its own."""
        looks = torch.randn(count, 1, 1, CHANNELS, generator=torch.Generator().manual_seed(seed))
        return looks + 0.3 * good(count, seed)

    features = differing(8, 1)
    cells = gaussians(features)
    shown = Defects(differing(3, 2), torch.ones(3, *GRID, dtype=torch.bool))
    final = Correction.fit(cells, features, shown)
    left_out = correction_left_out(
        final, cells, features, features[:0], make_blocks(8, ScoringConfig()), shown
    )
    assert abs(float(final(cells, features).mean())) < 0.1  # of those that it was told are good
    assert float(final(cells, differing(200, 3)).mean()) > 0.3
    assert float(left_out.mean()) > 0.3


def test_the_strongest_patches_are_those_that_an_images_score_is_of(quick):
    maps = torch.randn(3, 9, 9, generator=torch.Generator().manual_seed(0))
    chosen = strongest(maps, quick.scoring)
    for own, found in zip(maps, chosen, strict=True):
        assert float(own[found].mean()) == pytest.approx(float(image_scores(own[None], quick.scoring)[0]))


# -- masks -------------------------------------------------------------------------------------------


def mask_file(folder, stem: str, rows: slice, columns: slice, size=(64, 64)) -> None:
    mask = np.zeros(size, np.uint8)
    mask[rows, columns] = 255
    Image.fromarray(mask).save(folder / f"{stem}.png")


@pytest.mark.parametrize("name", ["a", "a_mask"])
def test_a_mask_marks_the_patches_under_it(tmp_path, name):
    mask_file(tmp_path, name, slice(0, 16), slice(32, 48))
    intake = Intake((64, 64))
    picture = intake.read("a.png", np.zeros((64, 64, 3), np.uint8))
    marked = _marked(_mask_of("a.png", picture, tmp_path, intake), (4, 4))
    expected = torch.zeros(1, 4, 4, dtype=torch.bool)
    expected[0, 0, 2] = True
    assert torch.equal(marked, expected)


def test_a_defect_smaller_than_a_patch_marks_one(tmp_path):
    mask_file(tmp_path, "a", slice(20, 21), slice(20, 21))
    intake = Intake((64, 64))
    picture = intake.read("a.png", np.zeros((64, 64, 3), np.uint8))
    marked = _marked(_mask_of("a.png", picture, tmp_path, intake), (4, 4))
    assert marked.sum() == 1
    assert marked[0, 1, 1]


def test_a_letterboxed_mask_lies_where_its_image_lies(tmp_path):
    mask_file(tmp_path, "a", slice(0, 32), slice(0, 32), size=(32, 64))
    intake = Intake((64, 64), fit="letterbox", cell=16)
    picture = intake.read("a.png", np.zeros((32, 64, 3), np.uint8))
    marked = _marked(_mask_of("a.png", picture, tmp_path, intake), (4, 4))[0]
    assert picture.area == (16, 0, 32, 64)
    assert marked[1:3, :2].all()
    assert not marked[[0, 3]].any()
    assert not marked[:, 2:].any()


@pytest.mark.parametrize(
    ("rows", "size", "said"),
    [(slice(0, 8), (32, 32), "for an image of"), (slice(0, 0), (64, 64), "is empty")],
)
def test_masks_that_cannot_be_are_named(tmp_path, rows, size, said):
    mask_file(tmp_path, "a", rows, slice(0, 8), size=size)
    intake = Intake((64, 64))
    picture = intake.read("a.png", np.zeros((64, 64, 3), np.uint8))
    with pytest.raises(ImageError, match=said):
        _mask_of("a.png", picture, tmp_path, intake)
    with pytest.raises(ImageError, match=r"expected one mask b\.png or b_mask\.png for b\.png, found none"):
        _mask_of("b.png", picture, tmp_path, intake)


def test_of_masks_beside_the_images_none_is_taken_for_another(tmp_path):
    photo = tmp_path / "a.png"
    Image.fromarray(np.full((64, 64, 3), 99, np.uint8)).save(photo)
    (tmp_path / "a.json").write_text("{}")
    mask_file(tmp_path, "a_mask", slice(0, 16), slice(32, 48))
    intake = Intake((64, 64))
    picture = intake.read(photo, photo)
    assert _marked(_mask_of(photo, picture, tmp_path, intake), (4, 4)).sum() == 1
    with pytest.raises(ImageError, match=r"expected one mask .*found a\.png, a_mask\.png"):
        _mask_of("elsewhere/a.jpg", picture, tmp_path, intake)


# -- a line ------------------------------------------------------------------------------------------


@pytest.fixture
def faulty(pictures):
    return pictures("gear", 3, first=600, kind="missing_tooth")


@pytest.fixture(scope="module")
def _corrected(_saved_line, pictures, tmp_path_factory):
    """That line after a correction: what a lesson leaves is never changed, only replaced."""
    line = Detector.load(
        shutil.copytree(_saved_line, tmp_path_factory.mktemp("corrected") / "line"), device="cpu"
    )
    line.correct_task(
        "gear", pictures("gear", 8), missed=pictures("gear", 3, first=600, kind="missing_tooth")
    )
    return line


@pytest.fixture
def corrected(_corrected, loaded):
    """The saved line after a correction that is not saved yet, for this test alone."""
    loaded._line = _corrected._line
    return loaded


def tensors_of(line: Detector, name: str) -> dict[str, torch.Tensor]:
    return line._line.products[name].tensors()


def test_all_but_calibration_stays_and_nothing_of_others_moves(corrected, line, saved):
    before, after = tensors_of(line, "gear"), tensors_of(corrected, "gear")
    assert set(after) - set(before) == {f"correction.{part}" for part in ("direction", "level", "images")}
    assert all(torch.equal(after[name], value) for name, value in before.items())
    for name in ("wood", "bottle_cap"):
        assert all(torch.equal(tensors_of(corrected, name)[k], v) for k, v in tensors_of(line, name).items())
    assert corrected.info("gear").known_defects == 3
    assert corrected.info("gear").parts["correction"].bytes < 400
    assert line.info("gear").known_defects == 0


def test_what_is_like_the_shown_defects_is_stranger_to_good_images_now(corrected, line, pictures):
    like = pictures("gear", 6, first=700, kind="missing_tooth")
    before = [found.p_value for found in line.predict(like, task="gear")]
    after = [found.p_value for found in corrected.predict(like, task="gear")]
    assert np.median(after) < np.median(before)
    unseen = pictures("gear", 6, first=800)
    moved = [found.pred_score for found in corrected.predict(unseen, task="gear")]
    assert all(found.status == "good" for found in corrected.predict(unseen, task="gear")), moved


def test_a_saved_correction_says_the_very_same_and_is_taken_back(corrected, saved, probe):
    told = [found.to_dict() for found in corrected.predict(probe)]
    corrected.save()
    again = Detector.load(saved, device="cpu")
    assert [found.to_dict() for found in again.predict(probe)] == told
    assert again.info("gear").known_defects == 3
    versions = sorted(path.name for path in (saved / "tasks" / "gear").iterdir())
    assert versions == ["0001", "0002"]
    result = CliRunner().invoke(app, ["rollback", str(saved), "gear", "0001"])
    assert result.exit_code == 0, result.output
    assert Detector.load(saved, device="cpu").info("gear").known_defects == 0


def test_an_update_keeps_what_was_shown_and_its_calibration(corrected, pictures, faulty):
    before = tensors_of(corrected, "gear")["correction.direction"].float()
    corrected.update_task("gear", pictures("gear", 6, first=50))
    after = tensors_of(corrected, "gear")["correction.direction"].float()
    assert torch.cosine_similarity(before, after, dim=0) > 0.99
    assert corrected.info("gear").known_defects == 3


def test_false_alarms_teach_like_the_other_good_images(loaded, pictures, faulty):
    alarms = pictures("gear", 2, first=60)
    groups = ["a"] * 4 + ["b"] * 4 + ["c"] * 2
    told = loaded.correct_task("gear", pictures("gear", 8), missed=faulty, false_alarms=alarms, groups=groups)
    assert told.images == 10
    with pytest.raises(ConfigError, match="group label for each of 10 images, got 8"):
        loaded.correct_task(
            "gear", pictures("gear", 8), missed=faulty, false_alarms=alarms, groups=groups[:8]
        )


def test_a_defect_outside_of_what_is_looked_at_is_an_error(loaded, pictures, tmp_path):
    class Away:
        window = None

        def place(self, pixels, size):
            return Placement(0.0, (0.5, 0.0))  # the left half of the image is out of the picture

    photo = tmp_path / "a.png"
    Image.fromarray(pictures("gear", 1)[0]).save(photo)
    (tmp_path / "masks").mkdir()
    mask_file(tmp_path / "masks", "a", slice(16, 32), slice(8, 24))
    known = KnownDefects([(photo, photo)], tmp_path / "masks")
    assert known.seen(None, loaded.intake, loaded.extractor).marks.any()
    with pytest.raises(ImageError, match="lies outside"):
        known.seen(Away(), loaded.intake, loaded.extractor)


def test_masks_say_where_the_defect_is(loaded, line, pictures, tmp_path):
    samples = [make_sample("gear", 600 + i, kind="missing_tooth", size=64) for i in range(3)]
    for folder in ("missed", "masks"):
        (tmp_path / folder).mkdir()
    for i, sample in enumerate(samples):
        Image.fromarray(sample.image).save(tmp_path / "missed" / f"{i}.png")
        Image.fromarray(255 * sample.mask.astype(np.uint8)).save(tmp_path / "masks" / f"{i}_mask.png")
    loaded.correct_task("gear", pictures("gear", 8), missed=tmp_path / "missed", masks=tmp_path / "masks")
    own = tensors_of(loaded, "gear")["correction.direction"]
    other = Detector.load(loaded.path, device="cpu")
    other.correct_task("gear", pictures("gear", 8), missed=tmp_path / "missed")
    assert not torch.equal(tensors_of(other, "gear")["correction.direction"], own)
    (tmp_path / "masks" / "1_mask.png").unlink()
    before = tensors_of(other, "gear")
    with pytest.raises(ImageError, match=r"1_mask\.png"):
        other.correct_task("gear", pictures("gear", 8), missed=tmp_path / "missed", masks=tmp_path / "masks")
    assert tensors_of(other, "gear").keys() == before.keys()


def test_what_cannot_be_is_refused_and_changes_nothing(loaded, pictures, faulty):
    with pytest.raises(TaskError):
        loaded.correct_task("plug", pictures("gear", 8), missed=faulty)
    with pytest.raises(ConfigError, match=r"taught from 8 good images .* got 3"):
        loaded.correct_task("gear", pictures("gear", 3), missed=faulty)
    with pytest.raises(ImageError):
        loaded.correct_task("gear", pictures("gear", 8), missed=[])
    assert loaded.info("gear").known_defects == 0


def test_a_product_without_cells_cannot_be_corrected(new_line, pictures, faulty):
    line = new_line(config=None, preset="deck")
    line.config = get_preset("deck").at(line.extractor.dim)
    flow, training = line.config.flow, line.config.training
    line.config = replace(
        line.config,
        flow=replace(flow, couplings=1, lora=None, dia=None),
        training=replace(training, steps=1, base_steps=1),
    )
    line.add_task("gear", pictures("gear", 4))
    with pytest.raises(ConfigError, match="by its cells"):
        line.correct_task("gear", pictures("gear", 4), missed=faulty)


@pytest.mark.parametrize("gone", [False, True], ids=["still-there", "gone-by-the-end"])
def test_from_a_shell(saved, tmp_path, monkeypatch, gone):
    for i in range(8):
        (tmp_path / "good").mkdir(exist_ok=True)
        Image.fromarray(make_sample("gear", i, size=64).image).save(tmp_path / "good" / f"{i}.png")
    missed = tmp_path / "missed" / "0.png"
    missed.parent.mkdir()
    Image.fromarray(make_sample("gear", 600, kind="missing_tooth", size=64).image).save(missed)
    correct = Detector.correct_task

    def learned(*args, **more):
        info = correct(*args, **more)
        if gone:
            missed.unlink()
        return info

    monkeypatch.setattr(Detector, "correct_task", learned)
    arguments = ["correct", saved, "gear", tmp_path / "good", "--missed", missed.parent]
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == 0, result.output
    assert "of 1 missed images" in result.output
    assert f"moleflow rollback {saved} gear 0001" in result.output
    assert Detector.load(saved, device="cpu").info("gear").known_defects == 1
