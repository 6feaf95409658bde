"""What a method costs: memory, numbers and seconds, and what they buy."""

from __future__ import annotations

from collections.abc import Callable

from ... import report as html
from ...report import Html, number
from .charts import Axis, Point, Series, plot
from .findings import MAIN, METRICS, MOST, Findings
from .tables import amount, count, plus_minus


def cost(bench: Findings) -> Html:
    """The section on bytes, numbers and seconds, with charts of what they buy."""
    rows = []
    for entry in bench.entries:
        summary, inspect = bench.summary(entry), bench.seconds(entry, "inspect_image")["mean"]
        rows.append(
            [
                bench.title(entry),
                amount(bench.per_product(entry, "bytes")["mean"]),
                count(bench.per_product(entry, "numbers")["mean"]),
                amount(summary["shared_bytes"]["mean"]),
                count(summary["shared_numbers"]["mean"]),
                amount(summary["kept_bytes"]["mean"]),
                amount(bench.whole_bytes(entry)),
                plus_minus(bench.seconds(entry, "learn"), lambda value: number(value, 1)),
                number(None if inspect is None else 1000 * inspect, 1),
            ]
        )
    size: Callable[[str], float | None] = bench.whole_bytes
    learn: Callable[[str], float | None] = lambda entry: bench.seconds(entry, "learn")["mean"]  # noqa: E731
    charts = [
        _trade(bench, metric, cost, axis)
        for cost, axis in (
            (size, Axis("kept at the end, log scale", log=True, write=lambda v: html.amount(round(v)))),
            (learn, Axis("seconds to learn a product, log scale", log=True)),
        )
        for metric in MAIN
    ]
    return html.section(
        "What it costs",
        html.columns(*(chart for chart in charts if chart)) if any(charts) else "",
        html.table(
            [
                "method",
                "bytes a product",
                "numbers a product",
                "shared",
                "shared numbers",
                "kept images",
                "all at the end",
                "seconds to learn a product",
                "ms an image",
            ],
            rows,
            caption="At the end of a stream, mean over runs. Kept images: files that a method must have of "
            "earlier products to learn on. Seconds and ms are on the machine named below and without the "
            "backbone, whose features are cached, but with any network a method brings along; an image is "
            "inspected routed.",
        ),
    )


def _trade(bench: Findings, metric: str, cost: Callable[[str], float | None], x: Axis) -> Html:
    series = []
    for entry in bench.drawn:
        at, value = cost(entry), bench.acc(entry, metric)
        if at and value["mean"] is not None:
            span = bench.interval(entry, metric)
            point = Point(at, value["mean"], value["sd"], bench.title(entry), span)
            series.append(Series(bench.title(entry), (point,), bench.style(entry), joined=False))
    drawn = any(point.interval for one in series for point in one.points)
    level = bench.results.get("uncertainty", {}).get("level", 0)
    bars = f"{100 * level:g} % intervals over test images and seeds" if drawn else "deviations over seeds"
    title = f"{METRICS[metric]} against {x.title}"
    height = 320 if len(series) <= MOST else 320 + 10 * (len(series) - MOST)  # room for their names
    return plot(title, series, x, Axis(METRICS[metric]), caption=f"Bars: {bars}.", height=height)
