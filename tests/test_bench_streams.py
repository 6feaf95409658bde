"""Scenarios: every product exactly once, in the order and the groups that the papers' names promise."""

import unicodedata
from pathlib import Path

import pytest

from moleflow.bench.streams import FIRST_TASK, SCENARIOS, Stream, Task, streams_for, streams_from_yaml
from moleflow.data.layouts import MVTEC_OBJECTS, MVTEC_TEXTURES, Dataset, Product
from moleflow.errors import ConfigError

MVTEC = tuple(sorted((*MVTEC_TEXTURES, *MVTEC_OBJECTS)))
LETTERS = "onmlkjihgfedcba"

SHAPES = {
    "plain": (15, [[1] * 15]),
    "orders": (15, [[1] * 15] * 5),
    "A": (15, [[3] * 5]),
    "B": (15, [[1] * 15]),
    "C": (15, [[1] * 15] * 5),
    "D": (15, [[1] * 15, [1] * 15, [3, *[1] * 12]]),
    "look-alikes": (15, [[30]] * 2),
    "many": (15, [[15]]),
    "visa": (12, [[1] * 12]),
    "mpdd": (6, [[1] * 6]),
    "14-1": (15, [[14, 1]]),
    "10-5": (15, [[10, 5]]),
    "10-1x5": (15, [[10, 1, 1, 1, 1, 1]]),
    "3x5": (15, [[3] * 5]),
    "visa-11-1": (12, [[11, 1]]),
    "visa-8-4": (12, [[8, 4]]),
    "visa-8-1x4": (12, [[8, 1, 1, 1, 1]]),
}
COUNTED = [name for name in SHAPES if name not in ("plain", "orders", "C", "look-alikes", "many")]
FIXED = ["orders", "A", "B", "C", "D"]


def dataset(names):
    products = {name: Product(name, (), (), ()) for name in names}
    return Dataset("folder", Path("parts"), products, "none")


def in_order(stream):
    return list(stream.products)


def test_the_table_of_shapes_holds_every_scenario():
    assert list(SHAPES) == list(SCENARIOS)


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_every_product_comes_once_in_groups_of_the_promised_size(scenario):
    count, sizes = SHAPES[scenario]
    names = MVTEC if count == 15 else LETTERS[:count]
    streams = streams_for(dataset(names), scenario)
    assert [[len(task.products) for task in stream.tasks] for stream in streams] == sizes
    own = [[name for name in stream.products if "@" not in name] for stream in streams]  # without twins
    assert all(sorted(products) == sorted(names) for products in own)
    assert len({stream.name for stream in streams}) == len(streams)
    assert all(task.named for stream in streams for task in stream.tasks)


@pytest.mark.parametrize("scenario", COUNTED)
def test_another_number_of_products_is_refused(scenario):
    count, _ = SHAPES[scenario]
    with pytest.raises(ConfigError, match="expected"):
        streams_for(dataset(LETTERS[: count - 1]), scenario)
    if scenario != "D":
        with pytest.raises(ConfigError, match=rf"expected {count} products, found 3 \((a, b, c|a, c, b)\)"):
            streams_for(dataset("acb"), scenario)


@pytest.mark.parametrize("scenario", [s for s in SCENARIOS if s != "D"])
def test_names_that_are_nobodys_run_too(scenario):
    count, _ = SHAPES[scenario]
    factor = 2 if scenario == "look-alikes" else 1
    streams = streams_for(dataset(LETTERS[:count]), scenario)
    assert all(len(stream.products) == factor * count for stream in streams)


def test_plain_keeps_the_order_of_the_data_set():
    assert in_order(streams_for(dataset("cab"), "plain")[0]) == ["c", "a", "b"]


@pytest.mark.parametrize("names", [MVTEC, MVTEC[::-1]])
def test_standard_grouping_of_mvtec(names):
    stream = streams_for(dataset(names), "A")[0]
    assert stream.tasks[0].products == FIRST_TASK
    assert stream.products[3:] == tuple(name for name in MVTEC if name not in FIRST_TASK)


def test_alphabetical_scenarios_do_not_care_how_the_data_set_lists_its_products():
    for scenario in ("A", "B", "14-1", "3x5"):
        assert in_order(streams_for(dataset(LETTERS), scenario)[0]) == sorted(LETTERS)
    assert in_order(streams_for(dataset(MVTEC[::-1]), "B")[0]) == list(MVTEC)


def test_random_orders_come_from_their_seeds_alone():
    five = streams_for(dataset(LETTERS), "orders")
    assert [stream.name for stream in five] == [f"order-{seed}" for seed in range(5)]
    assert len({stream.products for stream in five}) == 5
    assert streams_for(dataset(LETTERS[::-1]), "orders", seeds=[3]) == [five[3]]
    of_c = streams_for(dataset(LETTERS), "C", seeds=[7])
    assert [stream.products for stream in of_c] == [stream.products for stream in five]
    for seeds in ([], [1, 1]):
        with pytest.raises(ConfigError, match="seeds"):
            streams_for(dataset(LETTERS), "orders", seeds=seeds)


def test_kinds_first():
    texture, item, mixed = streams_for(dataset(MVTEC), "D")
    assert set(texture.products[:5]) == set(item.products[-5:]) == set(MVTEC_TEXTURES)
    assert mixed.tasks[0] == Task(FIRST_TASK), "the base learns from textures and an object"
    assert set(FIRST_TASK) & set(MVTEC_TEXTURES)
    assert set(FIRST_TASK) & set(MVTEC_OBJECTS)
    assert len({stream.products[0] for stream in (texture, item, mixed)}) == 3


def test_kinds_cannot_be_guessed():
    names = [*MVTEC[:-1], "gear"]
    with pytest.raises(ConfigError, match=f"textures.*missing: {MVTEC[-1]}; others: gear"):
        streams_for(dataset(names), "D")


def test_an_order_decides_where_the_scenario_leaves_it_open():
    order = LETTERS[5:] + LETTERS[:5]
    assert in_order(streams_for(dataset(LETTERS), "plain", order="ca")[0]) == ["c", "a"]
    assert streams_for(dataset(LETTERS), "10-5", order=order)[0].tasks[1].products == tuple(LETTERS[:5])
    with pytest.raises(ConfigError, match="expected 15 products, found 2"):
        streams_for(dataset(LETTERS), "10-5", order="ca")


@pytest.mark.parametrize("scenario", FIXED)
def test_an_order_is_refused_where_the_scenario_has_its_own(scenario):
    with pytest.raises(ConfigError, match="order"):
        streams_for(dataset(MVTEC), scenario, order=MVTEC)


@pytest.mark.parametrize(
    ("order", "message"), [("xa", "unknown product 'x'.*a, b"), ("aba", "'a'.*twice"), ("", "at least one")]
)
def test_impossible_orders(order, message):
    with pytest.raises(ConfigError, match=message):
        streams_for(dataset("ab"), "plain", order=order)


def test_unknown_scenario():
    with pytest.raises(ConfigError, match=r"'E'.*plain"):
        streams_for(dataset("ab"), "E")


@pytest.mark.parametrize("products", [(), ("a", "a"), "ab", (1,), ("",)])
def test_tasks_that_cannot_be(products):
    with pytest.raises(ConfigError):
        Task(products)


def test_streams_that_cannot_be():
    a, b = Task(("a",)), Task(("b", "a"), named=False)
    assert Stream("s", (Task(("c",)), b)).products == ("c", "b", "a")
    for name, tasks in (("s", ()), ("s", (a, b)), ("", (a,)), (7, (a,))):
        with pytest.raises(ConfigError):
            Stream(name, tasks)


# Files

PARTS = ("bottle", "cable", "pill", "01")


@pytest.fixture
def read(tmp_path):
    def from_text(text, names=PARTS):
        path = tmp_path / "line.yaml"
        path.write_text(text, encoding="utf-8")
        return streams_from_yaml(path, dataset(names))

    return from_text


def test_a_stream_from_a_file(read):
    text = "name: week 12\ntasks:\n  - [bottle]\n  - products: [cable, pill]\n    named: false\n  - '01'\n"
    tasks = (Task(("bottle",)), Task(("cable", "pill"), named=False), Task(("01",)))
    assert read(text) == [Stream("week 12", tasks)]


def test_several_streams_from_a_file(read):
    one, other = read("- {tasks: [bottle]}\n- {name: back, tasks: [[pill, cable]]}\n")
    assert one == Stream("line-1", (Task(("bottle",)),))
    assert other == Stream("back", (Task(("pill", "cable")),))


def test_an_accent_may_be_spelled_in_two_ways(read):
    listed = unicodedata.normalize("NFD", "café")
    assert read("tasks: [café]", [listed])[0].products == (listed,)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "tasks"),
        ("[]", "at least one stream"),
        ("name: x", "tasks"),
        ("tasks: bottle", "expected a list"),
        ("tasks: []", "at least one task"),
        ("tasks: [[]]", "task 1: expected at least one product"),
        ("tasks: [bottle, gear]", "task 2: unknown product 'gear'.*bottle, cable, pill, 01"),
        ("tasks: [01]", "got 1; .*quotes"),
        ("tasks: [[bottle, bottle]]", "task 1: product 'bottle'.*twice"),
        ("tasks: [bottle, [pill, bottle]]", "'bottle' is learned twice"),
        ("tasks: [{products: pill, name: a}]", "task 1: unknown key 'name'"),
        ("tasks: [{named: false}]", "task 1: expected the keys products"),
        ("tasks: [{products: pill, named: 0}]", "named to be true or false, got 0"),
        ("tasks: [[[bottle]]]", r"got \['bottle'\]"),
        ("tasks: [bottle]\norder: x", "unknown key 'order'"),
        ("{name: 7, tasks: [bottle]}", "expected a name, got 7"),
        ("- {name: s, tasks: [bottle]}\n- {name: s, tasks: [pill]}", "two streams are called 's'"),
        ("tasks: [bottle", "cannot be read as YAML"),
        ("tasks: !!python/object:os.system [x]", "cannot be read as YAML"),
        ("tasks: [2024-99-99]", "cannot be read as YAML"),
        ("[" * 5000, "cannot be read as YAML"),
    ],
)
def test_what_a_file_cannot_say(read, text, message):
    with pytest.raises(ConfigError, match=rf"line\.yaml: .*{message}"):
        read(text)


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(ConfigError, match=r"missing\.yaml"):
        streams_from_yaml(tmp_path / "missing.yaml", dataset(PARTS))
