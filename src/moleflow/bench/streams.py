"""In which order products are learned, and which of them together: the scenarios of the bench."""

from __future__ import annotations

import reprlib
import unicodedata
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..data.layouts import MVTEC_OBJECTS, MVTEC_TEXTURES, Dataset
from ..errors import ConfigError
from .files import read_yaml
from .look_alikes import TWINS, twin_name

FIRST_TASK = ("leather", "grid", "transistor")
"""What the standard grouping of MVTec AD learns first."""


@dataclass(frozen=True)
class Task:
    """Products learned together.

    Attributes:
        products: their names, at least one, none twice.
        named: False where the stream does not say which image is of which product.
        together: False where they are learned one after the other, as in tasks of their own, and only
            inspected together. What products share is then learned from the first of them.
    """

    products: tuple[str, ...]
    named: bool = True
    together: bool = True

    def __post_init__(self) -> None:
        if not isinstance(self.products, tuple) or not all(isinstance(p, str) and p for p in self.products):
            raise ConfigError(f"a task: expected a tuple of product names, got {reprlib.repr(self.products)}")
        if not self.products:
            raise ConfigError("a task: expected at least one product, got none")
        if not isinstance(self.named, bool):
            raise ConfigError(f"a task: expected named to be true or false, got {reprlib.repr(self.named)}")
        if twice := _repeated(self.products):
            raise ConfigError(f"a task: product {twice!r} stands in it twice")


@dataclass(frozen=True)
class Stream:
    """Tasks one after the other; no product comes back.

    Attributes:
        name: as in tables and file names.
        tasks: at least one.
    """

    name: str
    tasks: tuple[Task, ...]

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not self.name.strip():
            raise ConfigError(f"a stream: expected a name, got {reprlib.repr(self.name)}")
        if not self.tasks:
            raise ConfigError(f"stream {self.name!r}: expected at least one task, got none")
        if twice := _repeated(self.products):
            raise ConfigError(
                f"stream {self.name!r}: product {twice!r} is learned twice; a product comes once"
            )

    @property
    def products(self) -> tuple[str, ...]:
        """All products in the order in which they are learned."""
        return tuple(product for task in self.tasks for product in task.products)


@dataclass(frozen=True)
class Options:
    """What a scenario leaves open.

    Attributes:
        order: products to learn, in this order; None: the scenario's own.
        seeds: of the scenario "orders", which gives one stream for each.
    """

    order: tuple[str, ...] | None = None
    seeds: tuple[int, ...] = tuple(range(5))


def at_once(name: str, products: Iterable[str]) -> Stream:
    """A stream of one task: products are learned one after the other, but inspected only when all are known.

    For methods whose products do not touch each other, where inspecting them after every lesson would tell
    nothing new.
    """
    return Stream(name, (Task(tuple(products), together=False),))


Scenario = Callable[[Sequence[str], Options], list[Stream]]


def streams_for(
    dataset: Dataset,
    scenario: str,
    *,
    order: Sequence[str] | None = None,
    seeds: Iterable[int] = Options.seeds,
) -> list[Stream]:
    """The streams of a scenario over a data set.

    `order` names the products to learn, perhaps only some of them; scenarios that fix their order refuse it.
    `seeds` are those of the random orders of "orders". Raises ConfigError for a scenario that is not in
    `SCENARIOS`, for products that the data set does not hold, and where the scenario needs other products
    or another number of them.
    """
    if scenario not in SCENARIOS:
        raise ConfigError(f"unknown scenario {scenario!r}; known are {', '.join(SCENARIOS)}")
    names = tuple(dataset.products)
    chosen = None if order is None else _found(order, dataset, "the order")
    return SCENARIOS[scenario](names, Options(chosen, tuple(seeds)))


def streams_from_yaml(path: str | Path, dataset: Dataset) -> list[Stream]:
    """The streams that a YAML file describes: one, or a list of them.

    A stream has a `name` (left out: that of the file) and `tasks`; a task is a product, a list of products,
    or `products` with `named: false` where the stream does not say which image is of which product::

        name: week 12
        tasks:
          - [bottle]
          - products: [cable, pill]
            named: false

    Raises ConfigError, with the path, for a file that cannot be read, for other keys or types, for a product
    that the data set does not hold or that comes twice, and for two streams of one name.
    """
    source = Path(path)
    content = read_yaml(source)
    try:
        return _parsed(content, source.stem, dataset)
    except ConfigError as error:
        raise ConfigError(f"{source}: {error}") from error


# Scenarios


def _singles(name: str, products: Iterable[str]) -> Stream:
    return Stream(name, tuple(Task((product,)) for product in products))


def _grouped(name: str, products: Sequence[str], sizes: Sequence[int]) -> Stream:
    ends = np.cumsum(sizes).tolist()
    groups = [tuple(products[end - size : end]) for end, size in zip(ends, sizes, strict=True)]
    return Stream(name, tuple(Task(group) for group in groups))


def _plain(products: Sequence[str], options: Options) -> list[Stream]:
    """One product after the other as the data set lists them."""
    return [_singles("plain", options.order or products)]


def _orders(products: Sequence[str], options: Options) -> list[Stream]:
    """One product after the other in random orders."""
    _fixed("orders", options)
    if not options.seeds or _repeated(options.seeds):
        raise ConfigError(f"scenario 'orders': expected different seeds, got {options.seeds}")
    return [_shuffled(f"order-{seed}", products, seed) for seed in options.seeds]


def _five_orders(products: Sequence[str], options: Options) -> list[Stream]:
    """Seeds 0 to 4, whatever the seeds asked for elsewhere."""
    _fixed("C", options)
    return [_shuffled(f"C-{seed}", products, seed) for seed in range(5)]


def _shuffled(name: str, products: Sequence[str], seed: int) -> Stream:
    # From the names in alphabetical order: how the data set lists them must not matter.
    names = sorted(products)
    return _singles(name, (names[i] for i in np.random.default_rng(seed).permutation(len(names))))


def _threes(products: Sequence[str], options: Options) -> list[Stream]:
    """Five tasks of three; MVTec AD's standard first task comes first where the data set holds it."""
    _fixed("A", options)
    _count("A", products, 15)
    return [_grouped("A", _standard(products), [3] * 5)]


def _standard(products: Sequence[str]) -> list[str]:
    first = FIRST_TASK if set(FIRST_TASK) <= set(products) else ()
    return [*first, *sorted(set(products) - set(first))]


def _fifteen(products: Sequence[str], options: Options) -> list[Stream]:
    """In alphabetical order."""
    _fixed("B", options)
    _count("B", products, 15)
    return [_singles("B", sorted(products))]


def _kinds_first(products: Sequence[str], options: Options) -> list[Stream]:
    """What a shared base learns from: a texture, an object, or the standard first task, which mixes them.

    The third stream's first task is leather, grid and transistor together; all others are single products.
    """
    _fixed("D", options)
    wanted, found = {*MVTEC_TEXTURES, *MVTEC_OBJECTS}, set(products)
    if found != wanted:
        missing, others = ", ".join(sorted(wanted - found)), ", ".join(sorted(found - wanted))
        raise ConfigError(
            "scenario 'D' must know textures from objects: expected the fifteen products of MVTec AD; "
            f"missing: {missing or 'none'}; others: {others or 'none'}"
        )
    textures, objects = sorted(MVTEC_TEXTURES), sorted(MVTEC_OBJECTS)
    return [
        _singles("D-texture-first", [*textures, *objects]),
        _singles("D-object-first", [*objects, *textures]),
        _mixed_first("D-mixed-first", _standard(products)),
    ]


def _mixed_first(name: str, products: Sequence[str]) -> Stream:
    first = len(FIRST_TASK)
    return Stream(name, (Task(tuple(products[:first])), *(Task((product,)) for product in products[first:])))


def _look_alikes(products: Sequence[str], options: Options) -> list[Stream]:
    """Every product beside a second one that is the same but for one thing; inspected when all are known."""
    names = options.order or products
    return [
        at_once(f"look-alikes-{kind}", (each for p in names for each in (p, twin_name(p, kind))))
        for kind in TWINS
    ]


def _many(products: Sequence[str], options: Options) -> list[Stream]:
    """All products, inspected when all are known: for dozens of them."""
    return [at_once("many", options.order or products)]


def _increments(name: str, *sizes: int) -> Scenario:
    """Tasks of these sizes, in alphabetical order unless an order is given."""

    def make(products: Sequence[str], options: Options) -> list[Stream]:
        ordered = options.order or sorted(products)
        _count(name, ordered, sum(sizes))
        return [_grouped(name, ordered, sizes)]

    return make


def _fixed(scenario: str, options: Options) -> None:
    if options.order is not None:
        raise ConfigError(f"scenario {scenario!r} fixes its own order; it cannot be given another")


def _count(scenario: str, products: Sequence[str], wanted: int) -> None:
    if len(products) != wanted:
        raise ConfigError(
            f"scenario {scenario!r}: expected {wanted} products, "
            f"found {len(products)} ({', '.join(products)})"
        )


SCENARIOS: dict[str, Scenario] = {
    "plain": _plain,
    "orders": _orders,
    "A": _threes,
    "B": _fifteen,
    "C": _five_orders,
    "D": _kinds_first,
    "look-alikes": _look_alikes,
    "many": _many,
    "visa": _increments("visa", *[1] * 12),
    "mpdd": _increments("mpdd", *[1] * 6),
    "14-1": _increments("14-1", 14, 1),
    "10-5": _increments("10-5", 10, 5),
    "10-1x5": _increments("10-1x5", 10, *[1] * 5),
    "3x5": _increments("3x5", *[3] * 5),
    "visa-11-1": _increments("visa-11-1", 11, 1),
    "visa-8-4": _increments("visa-8-4", 8, 4),
    "visa-8-1x4": _increments("visa-8-1x4", 8, *[1] * 4),
}
"""Scenarios by name: the data set's products and `Options` to streams. In a name like "10-1x5" the number of
products in a task comes before the number of such tasks, as where these increments were introduced (Tang et
al., An Incremental Unified Framework for Small Defect Inspection, ECCV 2024)."""


# Names and files


def _repeated(names: Iterable[Any]) -> Any:
    """The first that occurs twice, or None."""
    seen: set[Any] = set()
    return next((name for name in names if name in seen or seen.add(name)), None)  # type: ignore[func-returns-value]


def _found(names: Iterable[Any], dataset: Dataset, where: str) -> tuple[str, ...]:
    """Products of the data set by the names written; an accented letter may be spelled in two ways."""
    known = {unicodedata.normalize("NFC", name): name for name in dataset.products}
    found = []
    for name in names:
        if not isinstance(name, str):
            raise ConfigError(
                f"{where}: expected names of products, got {reprlib.repr(name)}; "
                "a name that looks like a number needs quotes"
            )
        if (key := unicodedata.normalize("NFC", name)) not in known:
            raise ConfigError(
                f"{where}: unknown product {name!r}; {dataset.root} holds {', '.join(known) or 'none'}"
            )
        found.append(known[key])
    if not found:
        raise ConfigError(f"{where}: expected at least one product, got none")
    if (twice := _repeated(found)) is not None:
        raise ConfigError(f"{where}: product {twice!r} stands in it twice")
    return tuple(found)


def _parsed(content: Any, name: str, dataset: Dataset) -> list[Stream]:
    if not isinstance(content, list):
        return [_stream(content, name, dataset)]
    if not content:
        raise ConfigError("expected at least one stream, got an empty list")
    streams = [_stream(one, f"{name}-{number}", dataset) for number, one in enumerate(content, 1)]
    if (twice := _repeated(stream.name for stream in streams)) is not None:
        raise ConfigError(f"two streams are called {twice!r}")
    return streams


def _stream(content: Any, name: str, dataset: Dataset) -> Stream:
    table = _table(content, "a stream", required="tasks", optional="name")
    tasks = table["tasks"]
    if not isinstance(tasks, list):
        raise ConfigError(f"tasks: expected a list, got {reprlib.repr(tasks)}")
    return Stream(
        table.get("name", name), tuple(_task(one, f"task {i}", dataset) for i, one in enumerate(tasks, 1))
    )


def _task(content: Any, where: str, dataset: Dataset) -> Task:
    named = True
    if isinstance(content, dict):
        content = _table(content, where, required="products", optional="named")
        content, named = content["products"], content.get("named", True)
    products = content if isinstance(content, list) else [content]
    if not isinstance(named, bool):
        raise ConfigError(f"{where}: expected named to be true or false, got {reprlib.repr(named)}")
    return Task(_found(products, dataset, where), named)


def _table(content: Any, where: str, *, required: str, optional: str) -> dict[str, Any]:
    if not isinstance(content, dict) or required not in content:
        raise ConfigError(
            f"{where}: expected the keys {required} and perhaps {optional}, got {reprlib.repr(content)}"
        )
    if unknown := [key for key in content if key not in (required, optional)]:
        raise ConfigError(f"{where}: unknown key {unknown[0]!r}; known are {required} and {optional}")
    return content
