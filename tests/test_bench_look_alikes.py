"""Hard routing: twins of products, varieties, and one meaning of "unknown" wherever it is counted."""

import numpy as np
import pytest

from moleflow.bench.benchmark import used
from moleflow.bench.look_alikes import TWINS, Twin, twin_of
from moleflow.bench.methods.base import Inspection
from moleflow.bench.pictures import item_image, item_mask
from moleflow.bench.plan import Plan, Variant, Work
from moleflow.bench.results import read_chains
from moleflow.bench.runner import run
from moleflow.bench.streams import streams_for
from moleflow.bench.unit import _decisions
from moleflow.data.factory import (
    PRODUCTS,
    VARIETIES,
    _maker,
    defect_kinds,
    look_alikes,
    make_sample,
    varieties,
    write_product,
)
from moleflow.data.layouts import Dataset, read_dataset
from moleflow.errors import ConfigError
from moleflow.evaluation import _figures, _Seen
from moleflow.metrics import answer_of

SIZE = 64


@pytest.fixture(scope="module")
def dataset(tmp_path_factory) -> Dataset:
    root = tmp_path_factory.mktemp("data")
    for name in ("gear", "circuit_board"):
        write_product(name, root, train=8, test_good=2, test_defective=2, size=SIZE)
    return read_dataset(root)


def test_a_mirrored_twin_is_mirrored_with_its_masks(dataset):
    product = dataset.products["gear"]
    twin = twin_of(product, "mirrored")
    assert twin.name == "gear@mirrored"
    assert {item.product for item in (*twin.train, *twin.test)} == {"gear@mirrored"}
    for before, after in zip(product.test, twin.test, strict=True):
        assert np.array_equal(item_image(after), item_image(before)[:, ::-1])
        assert np.array_equal(item_mask(after, None), item_mask(before, None)[:, ::-1])


def test_a_cast_changes_colours_alone(dataset):
    product = dataset.products["gear"]
    twin = twin_of(product, "cast")
    for before, after in zip(product.test, twin.test, strict=True):
        first, second = (item_image(item).astype(float).mean((0, 1)) for item in (before, after))
        assert second[0] > first[0]
        assert second[1] == first[1]
        assert second[2] < first[2]
        assert np.array_equal(item_mask(after, None), item_mask(before, None))


def test_no_other_twins():
    with pytest.raises(ConfigError, match="known are mirrored, cast"):
        Twin("upside-down")
    assert len({Twin(kind).key for kind in TWINS}) == len(TWINS)


def test_every_product_of_look_alikes_has_its_twin_beside_it(dataset):
    streams = streams_for(dataset, "look-alikes", order=["gear", "circuit_board"])
    assert [stream.products for stream in streams] == [
        ("gear", f"gear@{kind}", "circuit_board", f"circuit_board@{kind}") for kind in TWINS
    ]
    assert all(len(stream.tasks) == 1 for stream in streams)
    assert set(used(dataset, streams)) == {name for stream in streams for name in stream.products}


def test_look_alikes_run_on_the_bench(dataset, tmp_path):
    streams = tuple(streams_for(dataset, "look-alikes"))
    plan = Plan({"padim": Variant("padim")}, streams, (0,), image_size=(SIZE, SIZE), eval_size=(SIZE, SIZE))
    work = Work(plan, used(dataset, streams), tmp_path / "out", tmp_path / "features")
    assert run(work) == {}
    mirrored, _ = read_chains(work)
    told = mirrored.steps[-1]["products"]
    assert set(told) == set(streams[0].products)
    assert set(mirrored.steps[-1]["rejected"]) == set(told)


def test_many_products_are_inspected_once_when_all_are_known(dataset):
    (stream,) = streams_for(dataset, "many")
    assert len(stream.tasks) == 1
    assert sorted(stream.products) == sorted(dataset.products)


@pytest.mark.parametrize(("product", "other"), look_alikes())
def test_a_look_alike_has_one_detail_at_one_place(product, other):
    """The very same design drawn as both: most of the picture is equal."""
    for seed in range(3):
        designs = [_maker(name).design(np.random.default_rng(seed)) for name in (product, other)]
        first, second = (_maker(product).draw(design, SIZE).image for design in designs)
        changed = np.abs(first - second).max(axis=2) > 6 / 255
        assert 0 < changed.mean() < 0.2
    assert make_sample(other, 0, kind=defect_kinds(other)[0], size=SIZE).mask.any()


def test_the_detail_is_the_same_on_every_piece():
    gears = [_maker("gear-missing_hole").design(np.random.default_rng(seed)) for seed in range(5)]
    assert len({gear.open_holes for gear in gears}) == 1
    assert sum(gears[0].open_holes) == len(gears[0].open_holes) - 1


def test_varieties_are_different_products():
    names = varieties(len(PRODUCTS) * VARIETIES)
    assert len(set(names)) == len(names) >= 60
    assert varieties(9)[:8] == (*(f"{name}-00" for name in PRODUCTS), f"{PRODUCTS[0]}-01")
    for product in PRODUCTS:
        own = [name for name in names if name.startswith(product)]
        means = [
            np.mean([make_sample(name, seed, size=SIZE).image.astype(float) for seed in range(4)], axis=0)
            for name in own
        ]
        # Its grain alone tells brushed metal that is turned by a quarter from one that is not.
        apart = [np.abs(a - b).mean() for i, a in enumerate(means) for b in means[:i]]
        assert min(apart) > 1.5


def test_a_variety_is_drawn_anew_with_its_mask():
    good, faulty = (make_sample("gear-05", 3, kind=kind, size=SIZE) for kind in ("good", "missing_tooth"))
    changed = (good.image != faulty.image).any(axis=2)
    assert changed.any()
    assert not (changed & ~faulty.mask).any()
    with pytest.raises(ConfigError, match="a look-alike or a variety"):
        make_sample("gear-99", 0)
    with pytest.raises(ConfigError, match="a look-alike or a variety"):
        make_sample("gear-rust", 0)
    with pytest.raises(ConfigError, match="count"):
        varieties(len(PRODUCTS) * VARIETIES + 1)


def test_the_bench_and_an_evaluation_count_unknown_alike():
    """A made-up answer to every image: right and known, right but unknown, another product."""
    said = [("gear", True, 0), ("gear", False, 0), ("wood", True, 0), ("wood", False, 1), ("gear", True, 1)]
    found = [Inspection(task, known, 0.0, None) for task, known, _ in said]
    labels = [label for *_, label in said]
    bench = _decisions(found, labels, "gear", {"gear": "gear", "wood": "wood"})
    seen = [_Seen(label, 0.0, False, answer_of(task, known)) for task, known, label in said]
    figures = _figures("gear", seen, (None, None, None), routed=True)
    assert bench["routing_good"] == figures.routing_good == pytest.approx(1 / 3)
    assert bench["routing_defective"] == figures.routing_defective == 0.5
    assert bench["unknown_good"] == figures.unknown_good == pytest.approx(1 / 3)
    assert bench["unknown_defective"] == figures.unknown_defective == 0.5


def test_a_method_that_never_rejects_has_no_share_of_unknown():
    found = [Inspection("gear", None, 0.0, None), Inspection("wood", None, 0.0, None)]
    told = _decisions(found, [0, 0], "gear", {"gear": "gear", "wood": "wood"})
    assert (told["routing_good"], told["unknown_good"], told["routing_defective"]) == (0.5, None, None)
    alone = _decisions([Inspection(None, None, 0.0, None)], [0], "gear", {})
    assert alone["routing_good"] is None
