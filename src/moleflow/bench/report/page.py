"""The page of a benchmark, put together from its sections."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ... import report as html
from ...metrics import AUPIMO_BOUNDS
from ...report import Card, Html
from ..figures import AUPRO_LIMITS
from ..files import write_text
from .cost import cost
from .findings import Findings
from .kept import forgetting, routing
from .overview import compared, headline
from .products import beside_published, each_product, improvement, pooled
from .sure import sure
from .tables import flat, value_text
from .variants import worth


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
        results: as `results.collect` gives them.
        times: as `results.timings` gives them.
        galleries: pictures to show, made elsewhere.
    """
    write_text(path, build(results, times, galleries))


def build(results: Mapping[str, Any], times: Mapping[str, Any], galleries: Sequence[Gallery] = ()) -> str:
    """The whole document; sections that have nothing to show are left out."""
    bench = Findings(results, times)
    return html.page(
        "MoLE-Flow bench: methods side by side",
        compared(bench),
        headline(bench),
        sure(bench),
        each_product(bench),
        improvement(bench),
        worth(bench),
        routing(bench),
        forgetting(bench),
        cost(bench),
        pooled(bench),
        beside_published(bench),
        _galleries(galleries),
        _formulas(),
        _made(bench),
    )


def _galleries(galleries: Sequence[Gallery]) -> Html:
    if not galleries:
        return Html("")
    return html.section(
        "What it looks like",
        html.heat_scale(),
        *(html.subsection(gallery.title, html.gallery(gallery.cards)) for gallery in galleries),
    )


def _formulas() -> Html:
    low, high = (f"{bound:g}" for bound in AUPIMO_BOUNDS)
    return html.section(
        "Formulas",
        html.settings(
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


def _made(bench: Findings) -> Html:
    plan, machine = bench.plan, bench.times.get("machine", {})
    kept = ("backbone", "weights", "image_size", "eval_size", "threads", "leave_out")
    rows = [(name.replace("_", " "), value_text(plan.get(name))) for name in kept]
    rows += [("seeds", ", ".join(map(str, plan["seeds"]))), *flat(plan.get("options", {}))]
    if "images" in plan:
        rows.append(("names and sizes of images and masks, SHA-256", plan["images"]))
    first = bench.entries[0]
    options = [
        html.folded(f"All options of {bench.title(first)}", html.settings(flat(plan["configs"][first])))
    ]
    base = dict(flat(plan["configs"][first]))
    for entry in bench.entries[1:]:
        own = dict(flat(plan["configs"][entry]))
        rest = {name: own.get(name, "left out") for name in {**base, **own}}
        changed = [(name, value) for name, value in rest.items() if value != base.get(name, "left out")]
        if changed:
            options.append(html.folded(f"{bench.title(entry)}: what differs", html.settings(changed)))
    command = bench.times.get("command")
    return html.section(
        "How this was made",
        Html(f"<p><code>{html.escaped(command)}</code></p>") if command else "",
        html.columns(
            html.settings(rows, caption="The run"),
            html.settings(
                [(name, value_text(value)) for name, value in machine.items()], caption="Software and machine"
            ),
        ),
        *options,
    )
