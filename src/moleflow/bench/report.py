"""The report of a benchmark: one HTML file, from the plain JSON of `results.json` and `timings.json`."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

from .. import report
from ..metrics import AUPIMO_BOUNDS
from ..report import Card, Html, joined, number
from .charts import Axis, Point, Series, bars, plot, signed
from .figures import AUPRO_LIMITS, NAMES
from .files import write_text
from .published import TITLES, dataset_of, published_for
from .results import SHARES, VIEWS, spread

Spread = Mapping[str, Any]  # mean, sd, count; as `results.spread` gives it
Row = Sequence[object]

METRICS = {
    "image_auroc": "image AUROC",
    "image_ap": "image AP",
    "image_f1_max": "image F1-max",
    "pixel_auroc": "pixel AUROC",
    "pixel_ap": "pixel AP",
    "aupro_30": f"AUPRO {AUPRO_LIMITS[0]}",
    "aupro_05": f"AUPRO {AUPRO_LIMITS[1]}",
    "aupimo": "AUPIMO",
}
MAIN = ("image_auroc", "pixel_ap")
HEADLINE = (*MAIN, "aupro_30", "aupro_05", "aupimo")
MOST = 12  # entries a chart can tell apart; with more it shows the first of each method


@dataclass(frozen=True)
class Gallery:
    """Pictures under one heading: what a method says about images of one product."""

    title: str
    cards: tuple[Card, ...]


def write_report(
    path: Path,
    results: Mapping[str, Any],
    times: Mapping[str, Any],
    *,
    galleries: Sequence[Gallery] = (),
) -> None:
    """Writes the report, whole or not at all.

    Args:
        path: of the HTML file.
        results: as `results.collect` gives them; perhaps with "trials" of a search, in their order, each
            with its options, its criterion and, where known, the test figure ("oracle") it stands for.
        times: as `results.timings` gives them.
        galleries: pictures to show, made elsewhere.
    """
    write_text(path, build(results, times, galleries))


def build(results: Mapping[str, Any], times: Mapping[str, Any], galleries: Sequence[Gallery] = ()) -> str:
    """The whole document; sections that have nothing to show are left out."""
    bench = _Bench(results, times)
    return report.page(
        "MoLE-Flow bench: methods side by side",
        _compared(bench),
        _headline(bench),
        _per_product(bench),
        _improvement(bench),
        _variants(bench),
        _trials(bench),
        _routing(bench),
        _kept(bench),
        _cost(bench),
        _pooled(bench),
        _published(bench),
        _galleries(galleries),
        _formulas(bench),
        _made(bench),
    )


@dataclass(frozen=True)
class _Bench:
    """The results with the questions that several sections ask of them."""

    results: Mapping[str, Any]
    times: Mapping[str, Any]

    @property
    def plan(self) -> Mapping[str, Any]:
        return self.results["plan"]

    @cached_property
    def entries(self) -> tuple[str, ...]:
        """In the order they were run in: JSON on disk is sorted, so the plan has lost it."""
        return tuple(dict.fromkeys([*(run["entry"] for run in self.results["runs"]), *self.plan["entries"]]))

    @cached_property
    def leaders(self) -> tuple[str, ...]:
        """The first entry of every method."""
        first: dict[str, str] = {}
        for entry in self.entries:
            first.setdefault(self.method(entry), entry)
        return tuple(first.values())

    @property
    def drawn(self) -> tuple[str, ...]:
        """The entries that stand in charts."""
        return self.entries if len(self.entries) <= MOST else self.leaders

    @cached_property
    def groups(self) -> tuple[tuple[tuple[str, ...], tuple[str, ...]], ...]:
        """Streams over the same products: the products as the first of them orders them, streams' names."""
        found: dict[frozenset[str], tuple[tuple[str, ...], list[str]]] = {}
        for stream in self.plan["streams"]:
            products = tuple(p for task in stream["tasks"] for p in task["products"])
            found.setdefault(frozenset(products), (products, []))[1].append(stream["name"])
        return tuple((products, tuple(names)) for products, names in found.values())

    def method(self, entry: str) -> str:
        return self.plan["entries"][entry]["method"]

    def title(self, entry: str) -> str:
        return self.results["titles"].get(entry, entry)

    def summary(self, entry: str) -> Mapping[str, Any]:
        return self.results["summary"][entry]

    def runs(self, entry: str) -> list[Mapping[str, Any]]:
        """Complete ones; nothing else is ever averaged."""
        return [run for run in self.results["runs"] if run["entry"] == entry and run["complete"]]

    def acc(self, entry: str, metric: str, view: str = "routed", name: str = "acc") -> Spread:
        """ACC (or BWT, FM) of an entry over its runs."""
        return self.summary(entry)["continual"][view][metric][name]

    def of_product(self, entry: str, streams: Sequence[str], product: str, *key: str) -> float | None:
        """A product's figure, such as ("routed", "pixel_ap"), averaged over streams and seeds."""
        values = []
        for run in self.runs(entry):
            if run["stream"] in streams:
                value: Any = run["products"][product]
                for part in key:
                    value = value[part]
                values.append(value)
        return spread(values)["mean"]

    def per_product(self, entry: str, key: str) -> Spread:
        """Bytes or numbers that all tasks added, divided by the number of products."""
        return spread([sum(r[f"{key}_per_task"]) / len(r["products"]) for r in self.runs(entry)])

    def whole_bytes(self, entry: str) -> float | None:
        """What has to be kept at the end of a stream, images included."""
        return spread([run["bytes"] + run["kept_bytes"] for run in self.runs(entry)])["mean"]

    def seconds(self, entry: str, what: str) -> Spread:
        """Of learning a task ("learn") or inspecting an image ("inspect_image")."""
        return self.times.get("entries", {}).get(entry, {}).get(what) or spread([])

    def style(self, entry: str) -> int:
        """Colour and mark, the same in all charts."""
        return self.drawn.index(entry)


# What was compared


def _compared(bench: _Bench) -> Html:
    plan, products = bench.plan, {p for products, _ in bench.groups for p in products}
    runs = sum(run["complete"] for run in bench.results["runs"])
    open_runs = [run for run in bench.results["runs"] if not run["complete"]]
    size = plan["eval_size"]
    at = "the size of each image" if size is None else f"{size[0]} × {size[1]} pixels"
    said = [
        f"{bench.title(run['entry'])} on {run['stream']}, seed {run['seed']}: "
        f"{len(run['bytes_per_task'])} of {len(run['tasks'])} tasks"
        for run in open_runs
    ]
    rows = [
        [bench.title(e), _left(bench.results["sources"][e]), _yes(bench.results["routes"][e])]
        for e in bench.leaders
    ]
    return joined(
        [
            report.paragraph(
                "Products are learned one task after another, from good images alone; after every task all "
                f"products learned so far are inspected. Maps meet masks at {at}. Unless said otherwise a "
                "figure is routed: nobody tells the method which product an image shows. It is the mean over "
                "tasks, and over the products of each, at the end of a stream; ± is the standard deviation "
                "over runs (streams and seeds)."
            ),
            report.notice("Not complete and therefore in no mean: " + "; ".join(said) + ".") if said else "",
            report.key_figures(
                [
                    (str(len(bench.leaders)), "Methods", f"{len(bench.entries)} entries with their variants"),
                    (str(len(products)), "Products", f"streams: {len(plan['streams'])}"),
                    (str(len(plan["seeds"])), "Seeds", ", ".join(map(str, plan["seeds"]))),
                    (str(runs), "Complete runs", "each an entry on a stream with a seed"),
                ]
            ),
            report.section(
                "What was compared",
                report.table(
                    ["method", _left("from"), "chooses a product"],
                    rows,
                    caption="All see the same cached features, orders and image sizes.",
                ),
                report.folded(
                    f"Streams: {len(plan['streams'])}",
                    report.settings([(s["name"], _order(s)) for s in plan["streams"]]),
                ),
            ),
        ]
    )


def _order(stream: Mapping[str, Any]) -> str:
    return " → ".join(
        " + ".join(task["products"]) + ("" if task.get("named", True) else " (not told apart)")
        for task in stream["tasks"]
    )


# Headline


def _headline(bench: _Bench) -> Html:
    def cells(entry: str) -> list[object]:
        summary, routes = bench.summary(entry), bench.results["routes"][entry]
        return [
            *(bench.acc(entry, metric) for metric in HEADLINE),
            *(bench.acc(entry, metric, name="fm") for metric in MAIN),
            bench.acc(entry, "image_auroc", name="bwt"),
            summary["router_gap"]["image_auroc"] if routes else None,
            _yes(summary["isolated"]) if summary["runs"] else None,
        ]

    further = [
        [f"{bench.title(entry)}, {said}", *(bench.acc(entry, metric, view) for metric in NAMES)]
        for entry in bench.entries
        for view, said in zip(VIEWS, ("product given", "routed"), strict=True)
    ]
    continual = ["FM image AUROC", "FM pixel AP", "BWT image AUROC", "router gap", "isolated"]
    return report.section(
        "At a glance",
        _by_entry(
            bench,
            [*(METRICS[metric] for metric in HEADLINE), *continual],
            cells,
            best=(1,) * len(HEADLINE) + (-1, -1, 1),
            caption="Higher is better; FM (forgetting) and router gap (image AUROC, product given less "
            "routed) are better when lower. Isolated: with the product given, all maps and scores stayed "
            "the same to the bit whatever was learned later. The best of a column is bold; – means that it "
            "cannot be measured: no maps, no masks, or no product to choose.",
        ),
        report.folded(
            "All metrics, product given and routed",
            _figures(
                ["method", *(METRICS[m] for m in NAMES)],
                further,
                caption="F1-max picks its threshold by the labels.",
            ),
        ),
    )


# Products


def _per_product(bench: _Bench) -> Html:
    blocks: list[object] = []
    for products, streams in bench.groups:
        where = f"Mean over streams ({', '.join(streams)}) and seeds, routed."
        tables = {m: _product_table(bench, products, streams, ("routed", m), where) for m in HEADLINE}
        blocks += [report.subsection(METRICS[metric], tables[metric]) for metric in MAIN]
        blocks += [report.folded(METRICS[m], tables[m]) for m in HEADLINE if m not in MAIN]
    return report.section("Product by product", *blocks)


def _product_table(
    bench: _Bench,
    products: Sequence[str],
    streams: Sequence[str],
    key: tuple[str, ...],
    caption: str,
    best: int = 1,
) -> Html:
    rows = []
    for entry in bench.entries:
        values = [bench.of_product(entry, streams, product, *key) for product in products]
        rows.append([bench.title(entry), spread(values)["mean"], *values])
    order = (best,) * (len(products) + 1)
    return _narrow(
        products, lambda names: _figures(["method", "mean", *names], rows, best=order, caption=caption)
    )


def _improvement(bench: _Bench) -> Html:
    """The first entry against the best rival of another method, product by product."""
    first, rivals = bench.entries[0], [e for e in bench.leaders if e != bench.entries[0]]
    blocks: list[object] = []
    for products, streams in bench.groups if rivals else ():
        charts = []
        for metric in MAIN:
            gains = []
            for product in products:
                own = bench.of_product(first, streams, product, "routed", metric)
                others = [bench.of_product(e, streams, product, "routed", metric) for e in rivals]
                there = [value for value in others if value is not None]
                if own is not None and there:
                    gains.append((product, own - max(there)))
            charts.append(
                bars(f"{METRICS[metric]}: gain on every product", gains, f"{METRICS[metric]}, difference")
            )
        if any(charts):
            blocks.append(report.columns(*charts))
    if not blocks:
        return Html("")
    return report.section(
        f"{bench.title(first)} against the best of the others",
        report.paragraph(
            f"For every product the routed figure of {bench.title(first)} less that of whichever other "
            f"method is best on it ({', '.join(bench.title(e) for e in rivals)}): a harder rival than any "
            "single one, upper bounds included."
        ),
        *blocks,
    )


# Variants of one method


def _variants(bench: _Bench) -> Html:
    blocks: list[object] = []
    for leader in bench.leaders:
        family = [e for e in bench.entries if bench.method(e) == bench.method(leader)]
        if len(family) > 1:
            blocks += [
                report.subsection(f"Variants of {bench.title(leader)}", _differences(bench, family)),
                *(_sensitivity(bench, family, option) for option in _lone_options(bench, family)),
            ]
    return report.section("What each option is worth", *blocks) if blocks else Html("")


def _differences(bench: _Bench, family: Sequence[str]) -> Html:
    first, columns = family[0], [(m, v) for m in (*MAIN, "aupro_30") for v in VIEWS]
    start = [_pm(bench.acc(first, metric, view)) for metric, view in columns]
    rows: list[Row] = [[bench.title(first), _left("the first"), *start, *_costs(bench, first)]]
    for entry in family[1:]:
        changed = _options(_changes(bench, first, entry))
        found = [_pm(_paired(bench, first, entry, metric, view), signed) for metric, view in columns]
        rows.append([bench.title(entry), _left(changed), *found, *_costs(bench, entry)])
    said = [f"{METRICS[m]}, {'product given' if v == 'oracle' else v}" for m, v in columns]
    return report.table(
        ["entry", _left("options"), *said, "bytes a product", "seconds a task"],
        rows,
        caption="The first row is as it is; below it are differences from it, run by run on the same stream "
        "with the same seed: mean ± standard deviation of the difference. A difference smaller than its "
        "deviation says little. Bytes and seconds are not differences.",
    )


def _costs(bench: _Bench, entry: str) -> list[object]:
    learn = bench.seconds(entry, "learn")["mean"]
    return [_amount(bench.per_product(entry, "bytes")["mean"]), number(learn, 1)]


def _paired(bench: _Bench, first: str, entry: str, metric: str, view: str) -> Spread:
    def found(name: str) -> dict[tuple[str, int], float | None]:
        return {(r["stream"], r["seed"]): r["continual"][view][metric]["acc"] for r in bench.runs(name)}

    base, other = found(first), found(entry)
    pairs = [(base[at], other[at]) for at in base if at in other]
    return spread([b - a for a, b in pairs if a is not None and b is not None])


def _changes(bench: _Bench, first: str, entry: str) -> dict[str, Any]:
    """Options in which an entry differs from the first, with its values."""
    entries = bench.plan["entries"]
    names = {**entries[first]["options"], **entries[entry]["options"]}
    values = {name: _option(bench, entry, name) for name in names}
    return {name: value for name, value in values.items() if value != _option(bench, first, name)}


def _option(bench: _Bench, entry: str, name: str) -> Any:
    value = bench.plan["configs"][entry]
    for part in name.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    return value


def _lone_options(bench: _Bench, family: Sequence[str]) -> list[str]:
    """Numeric options with three values or more among entries that differ from the first in nothing else."""
    values: dict[str, set[float]] = {}
    for entry in family[1:]:
        changed = _changes(bench, family[0], entry)
        if len(changed) == 1:
            ((name, value),) = changed.items()
            base = _option(bench, family[0], name)
            if _is_number(value) and _is_number(base):
                values.setdefault(name, {base}).add(value)
    return [name for name, found in values.items() if len(found) > 2]


def _sensitivity(bench: _Bench, family: Sequence[str], option: str) -> Html:
    chosen = [e for e in family if set(_changes(bench, family[0], e)) <= {option}]
    chosen.sort(key=lambda entry: _option(bench, entry, option))
    places = {_option(bench, entry, option): i for i, entry in enumerate(chosen)}
    charts = []
    for metric in MAIN:
        points = []
        for entry in chosen:
            found = bench.acc(entry, metric)
            if found["mean"] is not None:
                at = places[_option(bench, entry, option)]
                points.append(Point(at, found["mean"], found["sd"], bench.title(entry)))
        unnamed = tuple(Point(p.x, p.y, p.sd) for p in points)
        axis = Axis(option, places=tuple((at, f"{value:g}") for value, at in places.items()))
        charts.append(
            plot(
                f"{METRICS[metric]} against {option}",
                [Series(METRICS[metric], unnamed)] if len(points) > 1 else [],
                axis,
                Axis(METRICS[metric]),
            )
        )
    return joined([report.paragraph(f"{option}, all else unchanged"), report.columns(*charts)])


# A search


def _trials(bench: _Bench) -> Html:
    trials: Sequence[Mapping[str, Any]] = bench.results.get("trials") or ()
    if not trials:
        return Html("")
    done = [(i, t["criterion"]) for i, t in enumerate(trials, 1) if t["criterion"] is not None]
    best = np.maximum.accumulate([value for _, value in done]).tolist() if done else []
    order = plot(
        "Criterion of every trial in order, with the best so far",
        [
            Series("trial", tuple(Point(i, value) for i, value in done), 0, joined=False),
            Series("best so far", tuple(Point(i, v) for (i, _), v in zip(done, best, strict=True)), 1),
        ],
        Axis("trial"),
        Axis("criterion"),
    )
    pairs = [(t["criterion"], t.get("oracle")) for t in trials]
    both = [(a, b) for a, b in pairs if a is not None and b is not None]
    agree = _rank_correlation(both)
    scatter = plot(
        "Criterion of every trial against its test figure",
        [Series("trial", tuple(Point(a, b) for a, b in both), 0, joined=False)],
        Axis("criterion"),
        Axis("test figure"),
        caption=f"Spearman's rank correlation {number(agree, 2)} over {len(both)} trials.",
    )
    rows = [
        [i, _left(_options(t["options"])), number(t["criterion"], 4), number(t.get("oracle"), 4)]
        for i, t in enumerate(trials, 1)
    ]
    return report.section(
        "The search",
        report.paragraph(
            "The criterion (higher is better) sees no test image and no label, and it alone chose. The "
            "test figure beside it was looked at afterwards: it shows how far the criterion can be trusted."
        ),
        report.columns(order, scatter),
        report.folded(
            f"All {len(trials)} trials",
            report.table(["trial", _left("options"), "criterion", "test figure"], rows),
        ),
    )


def _rank_correlation(pairs: Sequence[tuple[float, float]]) -> float | None:
    """None where it is not defined: fewer than three pairs, or all values of one kind equal."""
    if len(pairs) < 3 or any(len(set(values)) == 1 for values in zip(*pairs, strict=True)):
        return None
    return float(stats.spearmanr(*zip(*pairs, strict=True)).statistic)


# Routing


def _routing(bench: _Bench) -> Html:
    def gaps(entry: str) -> list[object]:
        of = bench.summary(entry)["router_gap"]
        return [v for m in MAIN for v in (bench.acc(entry, m, "oracle"), bench.acc(entry, m), of[m])]

    def shares(entry: str) -> list[object]:
        summary = bench.summary(entry)
        return [*(summary["shares"][share] for share in SHARES), summary["rejected"]]

    routing = [e for e in bench.entries if bench.results["routes"][e]]
    unknown = ("called unknown, good", "called unknown, defective")
    where = [(*group, f"Mean over streams ({', '.join(group[1])}) and seeds.") for group in bench.groups]
    return report.section(
        "Which product is it",
        _by_entry(
            bench,
            [f"{METRICS[m]}, {said}" for m in MAIN for said in ("given", "routed", "gap")],
            gaps,
            entries=routing,
            caption="The product given against the product found by the method; the gap is what finding it "
            "costs. Methods that choose no product are left out.",
        )
        if routing
        else "",
        _by_entry(
            bench,
            ["found, good", "found, defective", *unknown, "false alarms", "detected", "left out, rejected"],
            shares,
            caption="Shares of test images, mean over products. Found: sent to their own product. Left out: "
            "every product in turn is taken out, and its images should all be rejected as unknown. False "
            "alarms and detected defects are at the method's own threshold.",
        ),
        *(
            report.folded(
                f"{kind} images that found their product, product by product",
                _product_table(bench, products, streams, (f"routing_{kind.lower()}",), caption, 0),
            )
            for products, streams, caption in where
            for kind in ("Good", "Defective")
        ),
    )


# Forgetting


def _kept(bench: _Bench) -> Html:
    stream, seed = bench.plan["streams"][0], bench.plan["seeds"][0]
    tasks = [_task(task["products"]) for task in stream["tasks"]]
    charts = [_curves(bench, stream["name"], tasks, metric) for metric in MAIN] if len(tasks) > 1 else []
    matrices: list[Html] = []
    for entry in bench.drawn:
        run = _run(bench, entry, stream["name"], seed)
        if run is not None:
            title = f"Result matrix of {bench.title(entry)}"
            shown = report.folded if matrices else report.subsection
            matrices.append(shown(title, *(_result_matrix(run, tasks, metric) for metric in MAIN)))
    return report.section(
        "Is anything forgotten",
        report.columns(*charts) if any(charts) else "",
        _by_entry(
            bench,
            [f"{n} {METRICS[m]}, {v}" for m in MAIN for n in ("FM", "BWT") for v in ("given", "routed")],
            lambda e: [bench.acc(e, m, v, n) for m in MAIN for n in ("fm", "bwt") for v in VIEWS],
            caption="FM: lower is better. BWT: below zero, later products did harm.",
        ),
        *matrices,
    )


def _run(bench: _Bench, entry: str, stream: str, seed: int) -> Mapping[str, Any] | None:
    wanted = (entry, stream, seed)
    return next((r for r in bench.results["runs"] if (r["entry"], r["stream"], r["seed"]) == wanted), None)


def _curves(bench: _Bench, stream: str, tasks: Sequence[str], metric: str) -> Html:
    series = []
    for entry in bench.drawn:
        runs = [run["matrices"]["routed"][metric] for run in bench.runs(entry) if run["stream"] == stream]
        steps = [spread([matrix[k][0] for matrix in runs]) for k in range(len(tasks))] if runs else []
        points = tuple(Point(k, s["mean"], s["sd"]) for k, s in enumerate(steps, 1) if s["mean"] is not None)
        if points:
            series.append(Series(bench.title(entry), points, bench.style(entry)))
    return plot(
        f"{METRICS[metric]} of the first task after every step",
        series,
        Axis("tasks learned", places=tuple((k, str(k)) for k in range(1, len(tasks) + 1))),
        Axis(METRICS[metric]),
        caption=f"{METRICS[metric]} on what was learned first ({tasks[0]}), after every task of "
        f"stream {stream}; mean and standard deviation over seeds, routed. A line that falls is forgetting.",
    )


def _result_matrix(run: Mapping[str, Any], tasks: Sequence[str], metric: str) -> Html:
    values = np.array(run["matrices"]["routed"][metric], dtype=np.float64).reshape(-1, len(tasks))
    rows = [f"after {name}" for name in tasks[: len(values)]]
    caption = (
        f"{METRICS[metric]}, routed, stream {run['stream']}, seed {run['seed']}: rows are moments, "
        "columns are what is inspected. Read a column downwards."
    )
    low = 0.5 if metric == "image_auroc" else 0.0
    return _narrow(tasks, lambda names: report.matrix(values, rows, names, low=low, caption=caption))


def _task(products: Sequence[str]) -> str:
    return ", ".join(products) if len(products) < 4 else f"{products[0]} and {len(products) - 1} more"


# Cost


def _cost(bench: _Bench) -> Html:
    rows = []
    for entry in bench.entries:
        summary, inspect = bench.summary(entry), bench.seconds(entry, "inspect_image")["mean"]
        rows.append(
            [
                bench.title(entry),
                _amount(bench.per_product(entry, "bytes")["mean"]),
                _count(bench.per_product(entry, "numbers")["mean"]),
                _amount(summary["shared_bytes"]["mean"]),
                _count(summary["shared_numbers"]["mean"]),
                _amount(summary["kept_bytes"]["mean"]),
                _amount(bench.whole_bytes(entry)),
                _pm(bench.seconds(entry, "learn"), lambda value: number(value, 1)),
                number(None if inspect is None else 1000 * inspect, 1),
            ]
        )
    size: Callable[[str], float | None] = bench.whole_bytes
    learn: Callable[[str], float | None] = lambda entry: bench.seconds(entry, "learn")["mean"]  # noqa: E731
    charts = [
        _trade(bench, metric, cost, axis)
        for cost, axis in (
            (size, Axis("kept at the end, log scale", log=True, write=lambda v: report.amount(round(v)))),
            (learn, Axis("seconds to learn a task, log scale", log=True)),
        )
        for metric in MAIN
    ]
    return report.section(
        "What it costs",
        report.columns(*(chart for chart in charts if chart)) if any(charts) else "",
        report.table(
            [
                "method",
                "bytes a product",
                "numbers a product",
                "shared",
                "shared numbers",
                "kept images",
                "all at the end",
                "seconds to learn a task",
                "ms an image",
            ],
            rows,
            caption="At the end of a stream, mean over runs. Kept images: what a method must have of earlier "
            "products to learn on, where its state does not hold it. Seconds and ms are on the machine named "
            "below and without the backbone, whose features are cached; an image is inspected routed and, "
            "where it went astray, again with its product given.",
        ),
    )


def _trade(bench: _Bench, metric: str, cost: Callable[[str], float | None], x: Axis) -> Html:
    series = []
    for entry in bench.drawn:
        at, value = cost(entry), bench.acc(entry, metric)
        if at and value["mean"] is not None:
            point = Point(at, value["mean"], value["sd"], bench.title(entry))
            series.append(Series(bench.title(entry), (point,), bench.style(entry), joined=False))
    return plot(f"{METRICS[metric]} against {x.title}", series, x, Axis(METRICS[metric]))


# Pooled


def _pooled(bench: _Bench) -> Html:
    chosen = (*MAIN, "aupro_30")

    def cells(entry: str) -> list[object]:
        pooled = bench.summary(entry)["pooled"]["routed"]
        return [value for m in chosen for value in (bench.acc(entry, m), pooled[m])]

    return report.section(
        "One threshold for all products",
        report.paragraph(
            "Papers give the unweighted mean over products, each with scores of its own. Pooled, all images "
            "of all products stand in one ranking, as they do behind a single threshold: that needs scores "
            "which mean the same for every product. Routed, at the end of a stream."
        ),
        _by_entry(
            bench,
            [f"{METRICS[m]}, {said}" for m in chosen for said in ("mean", "pooled")],
            cells,
            best=(1,) * 6,
        ),
    )


# Published


def _published(bench: _Bench) -> Html:
    blocks: list[object] = []
    for products, streams in bench.groups:
        records = published_for(products)
        if not records:
            blocks.append(
                report.paragraph(
                    f"No published figures exist for these products: {', '.join(sorted(products))}."
                )
            )
            continue
        rows: list[Row] = []
        for entry in bench.leaders:
            runs = [run for run in bench.runs(entry) if run["stream"] in streams]
            own = [
                spread([r["continual"]["routed"][metric][name] for r in runs])
                for metric, name in (("image_auroc", "acc"), ("pixel_ap", "acc"), ("image_auroc", "fm"))
            ]
            rows.append(
                [bench.title(entry), _left("this run"), *map(_pm, own), _left(f"{len(runs)} runs"), ""]
            )
        for record in records:
            figures = (record.image_auroc, record.pixel_ap, record.forgetting)
            rows.append(
                [
                    record.method,
                    _left(f"{'' if record.printed else 'un'}published, other protocol"),
                    *(number(None if value is None else value / 100) for value in figures),
                    _left(record.protocol),
                    _left(record.reference),
                ]
            )
        dataset = dataset_of(products)
        blocks.append(
            report.table(
                [
                    "method",
                    "",
                    "image AUROC",
                    "pixel AP",
                    "FM image AUROC*",
                    _left("protocol"),
                    _left("reference"),
                ],
                rows,
                caption=f"{TITLES[dataset] if dataset else ''}. Published figures come from other backbones, "
                "image sizes and rules and are rounded here to three digits: they show where the field "
                "stands, and a difference to them is no measurement. * Published FM is not one quantity: "
                "one paper compares two memory sizes, another joint with continual training; ours is that of "
                "Chaudhry et al. (2018).",
            )
        )
    return report.section("Beside published figures", *blocks)


# Pictures, formulas, how it was made


def _galleries(galleries: Sequence[Gallery]) -> Html:
    if not galleries:
        return Html("")
    return report.section(
        "What it looks like",
        *(report.subsection(gallery.title, report.gallery(gallery.cards)) for gallery in galleries),
    )


def _formulas(bench: _Bench) -> Html:
    low, high = (f"{bound:g}" for bound in AUPIMO_BOUNDS)
    return report.section(
        "Formulas",
        report.settings(
            [
                (
                    "a[k, j]",
                    "the metric on task j after task k, mean over the task's products; T tasks, counted "
                    "from 0; scores are raw: nothing is normalised per image or chosen on test images",
                ),
                ("ACC", "1/T Σⱼ a[T−1, j]: the figure of a method in a run"),
                (
                    "FM",
                    "1/(T−1) Σ over j < T−1 of (max over j ≤ l < T−1 of a[l, j] − a[T−1, j]); "
                    "Chaudhry et al., Riemannian Walk for Incremental Learning, ECCV 2018",
                ),
                (
                    "BWT",
                    "1/(T−1) Σ over j < T−1 of (a[T−1, j] − a[j, j]); "
                    "Lopez-Paz and Ranzato, Gradient Episodic Memory, NeurIPS 2017",
                ),
                ("router gap", "ACC with the product given less ACC routed"),
                ("image AUROC, AP", "image score against label, over all test images of a product"),
                (
                    "pixel AUROC, AP",
                    "all pixels of all test images of a product, good ones included, in one ranking",
                ),
                (
                    "AUPRO",
                    "mean overlap of the true regions (8-connected) against the false-positive rate of the "
                    f"background of all images, area up to a rate of {AUPRO_LIMITS[0]} or {AUPRO_LIMITS[1]} "
                    "divided by that limit; Bergmann et al., IJCV 2021",
                ),
                (
                    "AUPIMO",
                    f"overlap per defective image against false-positive rates between {low} and {high} "
                    "on good images alone, mean over images; Bertoldo et al., 2024",
                ),
            ]
        ),
    )


def _made(bench: _Bench) -> Html:
    plan, machine = bench.plan, bench.times.get("machine", {})
    kept = ("backbone", "weights", "image_size", "eval_size", "threads", "leave_out")
    rows = [(name.replace("_", " "), _plain(plan.get(name))) for name in kept]
    rows += [("seeds", ", ".join(map(str, plan["seeds"]))), *_flat(plan.get("options", {}))]
    if "images" in plan:
        rows.append(("SHA-256 of images", plan["images"]))
    first = bench.entries[0]
    options = [
        report.folded(f"All options of {bench.title(first)}", report.settings(_flat(plan["configs"][first])))
    ]
    base = dict(_flat(plan["configs"][first]))
    for entry in bench.entries[1:]:
        own = dict(_flat(plan["configs"][entry]))
        rest = {name: own.get(name, "left out") for name in {**base, **own}}
        changed = [(name, value) for name, value in rest.items() if value != base.get(name, "left out")]
        if changed:
            options.append(report.folded(f"{bench.title(entry)}: what differs", report.settings(changed)))
    command = bench.times.get("command")
    return report.section(
        "How this was made",
        Html(f"<p><code>{report.escaped(command)}</code></p>") if command else "",
        report.columns(
            report.settings(rows, caption="The run"),
            report.settings(
                [(name, _plain(value)) for name, value in machine.items()], caption="Software and machine"
            ),
        ),
        *options,
    )


# Cells


def _by_entry(
    bench: _Bench,
    heads: Sequence[str],
    cells: Callable[[str], Row],
    *,
    entries: Sequence[str] = (),
    best: Sequence[int] = (),
    caption: object = "",
) -> Html:
    """A table of figures with a row for each of these entries, or for all."""
    rows = [[bench.title(entry), *cells(entry)] for entry in entries or bench.entries]
    return _figures(["method", *heads], rows, best=best, caption=caption)


def _figures(headers: Row, rows: Sequence[Row], *, best: Sequence[int] = (), caption: object = "") -> Html:
    """A table of figures: spreads as mean ± sd, None as a dash, the best of a column bold.

    `best` has for the columns after the first 1 where high is good, -1 where low is, 0 for neither.
    """
    ways = dict(enumerate(best, 1)) if len(rows) > 1 else {}
    tops = {}
    for column, way in ways.items():
        found = [_mean_of(row[column]) for row in rows]
        there = [way * round(value, 3) for value in found if value is not None]
        if way and len(set(there)) > 1:
            tops[column] = max(there)
    body = []
    for row in rows:
        cells: list[object] = [row[0]]
        for column, value in enumerate(row[1:], 1):
            mean, cell = _mean_of(value), _cell(value)
            bold = column in tops and mean is not None and ways[column] * round(mean, 3) == tops[column]
            cells.append(Html(f"<b>{cell}</b>") if bold else cell)
        body.append(cells)
    return report.table(headers, body, caption=caption)


def _narrow(names: Sequence[str], made: Callable[[Sequence[str]], Html]) -> Html:
    """A table with many columns, made narrower: a little smaller, and its headings upright."""
    if len(names) <= 10:
        return made(names)
    turned = "writing-mode:vertical-rl;transform:rotate(180deg)"
    heads = [Html(f'<span style="{turned}">{report.escaped(name)}</span>') for name in names]
    return Html(f'<div style="zoom:0.82">{made(heads)}</div>')


def _mean_of(value: object) -> float | None:
    if isinstance(value, Mapping):
        return value["mean"]
    return value if isinstance(value, float) else None


def _cell(value: object) -> Html:
    if isinstance(value, Mapping):
        return _pm(value)
    return report.escaped(_figure(value) if value is None or isinstance(value, float) else value)


_SMALL = "color:var(--soft);font-weight:400;white-space:nowrap"


def _figure(value: float | None) -> str:
    """A figure with three digits and a true minus, which a zero has not."""
    return number(None if value is None else round(value, 3) + 0.0).replace("-", "−")


def _pm(value: Spread, write: Callable[[float | None], str] = _figure) -> Html:
    """Mean, with the standard deviation small below it where there is one."""
    text = report.escaped(write(value["mean"]))
    if value["sd"] is None:
        return text
    places = len(text.rpartition(".")[2])
    return Html(f'{text}<br><small style="{_SMALL}">± {number(value["sd"], places)}</small>')


def _left(text: object) -> Html:
    return Html(f'<div style="text-align:left;min-width:10ch">{report.escaped(text)}</div>')


def _yes(value: bool) -> str:
    return "yes" if value else "no"


def _amount(value: float | None) -> str:
    return number(None) if value is None else report.amount(round(value))


def _count(value: float | None) -> str:
    return number(None) if value is None else f"{round(value):,}"


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _plain(value: Any) -> str:
    """An option's value as text."""
    if value is None:
        return "–"
    if isinstance(value, bool):
        return _yes(value)
    if isinstance(value, Mapping):
        return _options(value)
    if isinstance(value, list | tuple):
        return " × ".join(_plain(part) for part in value)
    return value if isinstance(value, str) else json.dumps(value)


def _options(values: Mapping[str, Any]) -> str:
    """Options with their values in one line."""
    said = [f"{name} {'left out' if value is None else _plain(value)}" for name, value in values.items()]
    return ", ".join(said) or "–"


def _flat(values: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """Nested options as dotted names with their values."""
    rows: list[tuple[str, str]] = []
    for name, value in values.items():
        if isinstance(value, Mapping):
            rows += _flat(value, f"{prefix}{name}.")
        else:
            rows.append((prefix + name, "left out" if value is None else _plain(value)))
    return rows
