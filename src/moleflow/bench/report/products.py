"""Product by product, over all products behind one threshold, and beside published figures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from ... import report as html
from ...report import Html, number
from ..results import over_seeds, spread
from .charts import bars
from .findings import HEADLINE, MAIN, METRICS, Findings
from .published import TITLES, dataset_of, published_for
from .tables import Row, by_entry, figures_table, left, narrow, plus_minus


def each_product(bench: Findings) -> Html:
    """The section with a table of products for every metric."""
    blocks: list[object] = []
    for products, streams in bench.groups:
        where = f"Mean over streams ({', '.join(streams)}) and seeds, routed."
        tables = {m: product_table(bench, products, streams, ("routed", m), where) for m in HEADLINE}
        blocks += [html.subsection(METRICS[metric], tables[metric]) for metric in MAIN]
        blocks += [html.folded(METRICS[m], tables[m]) for m in HEADLINE if m not in MAIN]
    return html.section("Product by product", *blocks)


def product_table(
    bench: Findings,
    products: Sequence[str],
    streams: Sequence[str],
    key: tuple[str, ...],
    caption: str,
    best: int = 1,
) -> Html:
    """A row for every entry, a column for every product and one for their mean; `key` as in `of_product`."""
    rows = []
    for entry in bench.entries:
        values = [bench.of_product(entry, streams, product, *key) for product in products]
        rows.append([bench.title(entry), spread(values)["mean"], *values])
    order = (best,) * (len(products) + 1)
    return narrow(
        products, lambda names: figures_table(["method", "mean", *names], rows, best=order, caption=caption)
    )


def improvement(bench: Findings) -> Html:
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
            blocks.append(html.columns(*charts))
    if not blocks:
        return Html("")
    return html.section(
        f"{bench.title(first)} against the best of the others",
        html.paragraph(
            f"For every product the routed figure of {bench.title(first)} less that of whichever other "
            f"method is best on it ({', '.join(bench.title(e) for e in rivals)}): a harder rival than any "
            "single one, upper bounds included."
        ),
        *blocks,
    )


def pooled(bench: Findings) -> Html:
    """The section on scores of all products in one ranking."""

    chosen = (*MAIN, "aupro_30")

    def cells(entry: str) -> list[object]:
        pooled = bench.summary(entry)["pooled"]["routed"]
        return [value for m in chosen for value in (bench.acc(entry, m), pooled[m])]

    return html.section(
        "One threshold for all products",
        html.paragraph(
            "Papers give the unweighted mean over products, each with scores of its own. Pooled, all images "
            "of all products stand in one ranking, as they do behind a single threshold: that needs scores "
            "which mean the same for every product. Routed, at the end of a stream."
        ),
        by_entry(
            bench,
            [f"{METRICS[m]}, {said}" for m in chosen for said in ("mean", "pooled")],
            cells,
            best=(1,) * 6,
        ),
    )


def _routed(metric: str, name: str, run: Mapping[str, Any]) -> float | None:
    value: float | None = run["continual"]["routed"][metric][name]
    return value


def beside_published(bench: Findings) -> Html:
    """The section with figures of others, where any are for exactly these products."""
    blocks: list[object] = []
    for products, streams in bench.groups:
        records = published_for(products)
        if not records:
            blocks.append(
                html.paragraph(
                    "No published figures for exactly these products are listed here: "
                    f"{', '.join(sorted(products))}."
                )
            )
            continue
        rows: list[Row] = []
        for entry in bench.leaders:
            runs = [run for run in bench.runs(entry) if run["stream"] in streams]
            own = [
                over_seeds(runs, partial(_routed, metric, name))
                for metric, name in (("image_auroc", "acc"), ("pixel_ap", "acc"), ("image_auroc", "fm"))
            ]
            rows.append(
                [bench.title(entry), left("this run"), *map(plus_minus, own), left(f"{len(runs)} runs"), ""]
            )
        for record in records:
            figures = (record.image_auroc, record.pixel_ap, record.forgetting)
            rows.append(
                [
                    record.method,
                    left(f"{'' if record.printed else 'un'}published, other protocol"),
                    *(number(None if value is None else value / 100) for value in figures),
                    left(record.protocol),
                    left(record.reference),
                ]
            )
        dataset = dataset_of(products)
        blocks.append(
            html.table(
                [
                    "method",
                    "",
                    "image AUROC",
                    "pixel AP",
                    "FM image AUROC*",
                    left("protocol"),
                    left("reference"),
                ],
                rows,
                caption=f"{TITLES[dataset] if dataset else ''}. Published figures come from other backbones, "
                "image sizes and rules and are rounded here to three digits: they show where the field "
                "stands, and a difference to them is no measurement. * Published FM is not one quantity: "
                "one paper compares two memory sizes, another joint with continual training; ours is that of "
                "Chaudhry et al. (2018).",
            )
        )
    return html.section("Beside published figures", *blocks)
