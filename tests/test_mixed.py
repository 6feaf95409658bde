"""Several products in one lesson: found without names, learned all or none, apart from those known."""

import numpy as np
import pytest

from moleflow import Detector
from moleflow.errors import ConfigError, ImageError, TaskError, TrainingError
from moleflow.learning import mixed

EACH = 6


@pytest.fixture(scope="module")
def heap(pictures):
    """Images of two products in turns, and which are of which."""
    images, owners = [], []
    for gear, wood in zip(pictures("gear", EACH), pictures("wood", EACH), strict=True):
        images += [gear, wood]
        owners += ["gear", "wood"]
    return images, owners


def said(line: Detector, images) -> list[tuple]:
    return [(p.task, p.status, p.pred_score, p.patch_map.tobytes()) for p in line.predict(images)]


def test_products_are_found_and_learned_as_if_they_had_been_sorted(new_line, taught_line, pictures, heap):
    images, owners = heap
    line, told = new_line(), []
    infos = line.add_tasks(images, ["gear", "wood"], found=told.append)
    assert [info.name for info in infos] == ["gear", "wood"] == list(line.tasks)
    assert [info.images for info in infos] == [EACH, EACH]
    assert told == [{n: [i for i, owner in enumerate(owners) if owner == n] for n in ("gear", "wood")}]
    sorted_before = taught_line(gear=EACH, wood=EACH)
    probe = [*pictures("gear", 2, first=500), *pictures("wood", 2, first=500)]
    assert said(line, probe) == said(sorted_before, probe)
    assert [p.task for p in line.predict(probe)] == ["gear", "gear", "wood", "wood"]


def test_products_without_names_are_numbered_past_those_that_are_taken(new_line, pictures, heap):
    line = new_line()
    line.add_task("Product-1", pictures("bottle_cap", 3))
    assert [info.name for info in line.add_tasks(heap[0])] == ["product-2", "product-3"]


def test_the_product_of_its_own_is_one(new_line, pictures):
    assert [info.images for info in new_line().add_tasks(pictures("gear", EACH))] == [EACH]


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (
            ["gear"],
            r"expected 1 products \(gear\), found 2 in the images: 6 images \(image 0, image 2, image 4, ",
        ),
        (["a", "b", "c"], "expected 3 products"),
        ("ab", "a list of names"),
        (["gear", "GEAR"], "differ in more than case, got gear, GEAR"),
        (["gear", "a/b"], "cannot name a product"),
        (["gear", "unknown"], "an image of no product"),
    ],
)
def test_names_that_do_not_fit(new_line, heap, names, message):
    line = new_line()
    with pytest.raises(TaskError, match=message):
        line.add_tasks(heap[0], names)
    assert line.tasks == ()


def test_a_known_product_is_not_learned_again(new_line, pictures, heap):
    line = new_line()
    line.add_task("cog", pictures("gear", EACH, first=100))
    before = said(line, heap[0][:2])
    with pytest.raises(TaskError, match=r"6 images \(image 0.*not to be told from cog.*update"):
        line.add_tasks(heap[0])
    with pytest.raises(TaskError, match="COG: on this line already"):
        line.add_tasks(pictures("wood", EACH), ["COG"])
    assert line.tasks == ("cog",)
    assert said(line, heap[0][:2]) == before


def test_a_few_of_something_new_are_not_said_to_be_what_the_line_knows(taught_line, pictures):
    line = taught_line(gear=EACH)
    with pytest.raises(TaskError, match=r"2 images \(image 0, image 1\): nearest to gear.*too few") as error:
        line.add_tasks(pictures("wood", 2))
    assert "update" not in str(error.value)


def test_a_product_taught_from_next_to_nothing_is_in_nobodys_way(taught_line, heap):
    assert len(taught_line(bottle_cap=2).add_tasks(heap[0])) == 2


def test_all_or_none(new_line, heap, monkeypatch):
    """Where the second product cannot be learned, the first is not on the line either."""
    line, genuine = new_line(), mixed.learn

    def learn(line, name, *arguments, **options):
        if name == "wood":
            raise TrainingError("learning did not stay finite")
        return genuine(line, name, *arguments, **options)

    monkeypatch.setattr(mixed, "learn", learn)
    with pytest.raises(TrainingError, match="wood: learning did not stay finite"):
        line.add_tasks(heap[0], ["gear", "wood"])
    assert line.tasks == ()
    assert line._line.base is None


def test_whoever_hears_what_was_found_can_refuse_it(new_line, heap):
    def refuse(found):
        assert {name: len(images) for name, images in found.items()} == {"product-1": EACH, "product-2": EACH}
        raise KeyboardInterrupt

    line = new_line()
    with pytest.raises(KeyboardInterrupt):
        line.add_tasks(heap[0], found=refuse)
    assert line.tasks == ()


def test_an_image_that_cannot_be_read_is_listed(new_line, heap, tmp_path):
    images = [*heap[0], *heap[0][:8], np.zeros((4, 4, 7), np.uint8)]
    line = new_line()
    first, second = line.add_tasks(images)
    assert (first.images, second.images) == (EACH + 4, EACH + 4)
    assert len(first.unreadable) == 1
    assert "image 20" in first.unreadable[0]
    assert second.unreadable == ()
    with pytest.raises(ImageError, match="image 20"):
        line.add_tasks(images, strict=True)


def test_groups_go_with_their_images(new_line, heap):
    images, owners = heap
    labels = [f"{owner}-{i % 3}" for i, owner in enumerate(owners)]
    line = new_line()
    line.add_tasks(images, ["gear", "wood"], groups=labels)
    alone = new_line()
    alone.add_task("gear", images[::2], groups=labels[::2])
    assert line.info("gear").threshold == alone.info("gear").threshold
    with pytest.raises(ConfigError, match="a group label for each"):
        new_line().add_tasks(images, groups=labels[1:])
    with pytest.raises(ConfigError, match="expected a pose among"):
        new_line().add_tasks(images, pose="upside down")


def test_stages_name_their_product(new_line, heap):
    stages = []
    new_line().add_tasks(heap[0], progress=lambda stage, share: stages.append((stage, share)))
    names = list(dict.fromkeys(stage for stage, _ in stages))
    assert names[0] == "finding"
    assert {"product-1: base", "product-1: learning", "product-2: learning"} <= set(names)
    assert "product-2: base" not in names
    assert all(0 <= share <= 1 for _, share in stages)
