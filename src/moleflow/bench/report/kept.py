"""Whether images find their product, and whether anything is forgotten."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ... import report as html
from ...report import Html
from ..results import SHARES, VIEWS, mean, spread
from .charts import Axis, Point, Series, plot
from .findings import MAIN, METRICS, Findings
from .products import product_table
from .tables import by_entry, narrow

_DECISIONS = ("routed right", "called unknown")


def routing(bench: Findings) -> Html:
    """The section on finding the product of an image, and on telling that it is none of them."""

    def gaps(entry: str) -> list[object]:
        of = bench.summary(entry)["router_gap"]
        return [v for m in MAIN for v in (bench.acc(entry, m, "oracle"), bench.acc(entry, m), of[m])]

    def shares(entry: str) -> list[object]:
        summary = bench.summary(entry)
        return [*(summary["shares"][share] for share in SHARES), summary["rejected"]]

    routing = [e for e in bench.entries if bench.results["routes"][e]]
    right, unknown = ([f"{what}, {which}" for which in ("good", "defective")] for what in _DECISIONS)
    where = [(*group, f"Mean over streams ({', '.join(group[1])}) and seeds.") for group in bench.groups]
    return html.section(
        "Which product is it",
        by_entry(
            bench,
            [f"{METRICS[m]}, {said}" for m in MAIN for said in ("given", "routed", "gap")],
            gaps,
            entries=routing,
            caption="The product given against the product found by the method; the gap is what finding it "
            "costs. Methods that choose no product are left out.",
        )
        if routing
        else "",
        by_entry(
            bench,
            [*right, *unknown, "false alarms", "detected", "left out, rejected"],
            shares,
            caption="Shares of test images, mean over products. Routed right: sent to their own product "
            "and not called unknown. Left out: every product in turn is taken out, and its images should "
            "all be rejected as unknown. False alarms and detected defects: at the method's own threshold.",
        ),
        *(
            html.folded(
                f"{kind} images that found their product, product by product",
                product_table(bench, products, streams, (f"routing_{kind.lower()}",), caption, 0),
            )
            for products, streams, caption in where
            for kind in ("Good", "Defective")
        ),
    )


def forgetting(bench: Findings) -> Html:
    """The section on figures of earlier tasks after later ones, of the first stream and seed."""
    stream, seed = bench.plan["streams"][0], bench.plan["seeds"][0]
    tasks = [_task(task["products"]) for task in stream["tasks"]]
    charts = [_curves(bench, stream["name"], tasks, metric) for metric in MAIN] if len(tasks) > 1 else []
    matrices: list[Html] = []
    for entry in bench.drawn:
        run = _run(bench, entry, stream["name"], seed)
        if run is not None:
            title = f"Result matrix of {bench.title(entry)}"
            shown = html.folded if matrices else html.subsection
            matrices.append(shown(title, *(_result_matrix(run, tasks, metric) for metric in MAIN)))
    return html.section(
        "Is anything forgotten",
        html.columns(*charts) if any(charts) else "",
        by_entry(
            bench,
            [f"{n} {METRICS[m]}, {v}" for m in MAIN for n in ("FM", "BWT") for v in ("given", "routed")],
            lambda e: [bench.acc(e, m, v, n) for m in MAIN for n in ("fm", "bwt") for v in VIEWS],
            caption="FM: lower is better. BWT: below zero, later products did harm.",
        ),
        *matrices,
    )


def _run(bench: Findings, entry: str, stream: str, seed: int) -> Mapping[str, Any] | None:
    wanted = (entry, stream, seed)
    return next((r for r in bench.results["runs"] if (r["entry"], r["stream"], r["seed"]) == wanted), None)


def _curves(bench: Findings, stream: str, tasks: Sequence[str], metric: str) -> Html:
    series = []
    for entry in bench.drawn:
        runs = [run for run in bench.runs(entry) if run["stream"] == stream]
        steps = (
            [spread([_of_first(run, metric, k) for run in runs]) for k in range(len(tasks))] if runs else []
        )
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


def _of_first(run: Mapping[str, Any], metric: str, step: int) -> float | None:
    """The mean over the products of the first task after a step."""
    return mean(run["matrices"]["routed"][metric][step][: len(run["tasks"][0])])


def _result_matrix(run: Mapping[str, Any], tasks: Sequence[str], metric: str) -> Html:
    products = run["columns"]
    values = np.array(run["matrices"]["routed"][metric], dtype=np.float64).reshape(-1, len(products))
    rows = [f"after {name}" for name in tasks[: len(values)]]
    caption = (
        f"{METRICS[metric]}, routed, stream {run['stream']}, seed {run['seed']}: rows are moments, "
        "columns are what is inspected. Read a column downwards."
    )
    low = 0.5 if metric == "image_auroc" else 0.0
    return narrow(products, lambda names: html.matrix(values, rows, names, low=low, caption=caption))


def _task(products: Sequence[str]) -> str:
    return ", ".join(products) if len(products) < 4 else f"{products[0]} and {len(products) - 1} more"
