"""What was compared, and the figures of all methods at a glance."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ... import report as html
from ...report import Html, joined
from ..figures import NAMES
from ..methods import METHODS
from ..methods.single import SingleFlow
from ..results import VIEWS, spread
from .findings import HEADLINE, MAIN, METRICS, Findings, Spread
from .tables import figures_table, left, yes

_UNTRAINED = (
    " † A network that the method brings along had random weights instead of trained ones: these figures say "
    "nothing of the method as published."
)


def compared(bench: Findings) -> Html:
    """What a reader has to know before any figure: the rules, the methods, the streams."""
    plan, products = bench.plan, {p for products, _ in bench.groups for p in products}
    runs = sum(run["complete"] for run in bench.results["runs"])
    size = plan["eval_size"]
    at = "the size of each image" if size is None else f"{size[0]} × {size[1]} pixels"
    heads = ["method", left("from"), "chooses a product"]
    rows: list[list[object]] = [
        [bench.title(e), left(bench.results["sources"][e]), yes(bench.results["routes"][e])]
        for e in bench.leaders
    ]
    noted = any(bench.notes(e) for e in bench.leaders)
    if noted:
        heads.insert(2, left("as run here"))
        for row, entry in zip(rows, bench.leaders, strict=True):
            row.insert(2, left("; ".join(bench.notes(entry))))
    return joined(
        [
            html.paragraph(
                "Products are learned one task after another, from good images alone; after every task all "
                f"products learned so far are inspected. Maps meet masks at {at}. Unless said otherwise a "
                "figure is routed: nobody tells the method which product an image shows. It is the mean over "
                "products at the end of a stream, and over streams; ± is the standard deviation over seeds."
            ),
            _unfinished(bench),
            html.key_figures(
                [
                    (str(len(bench.leaders)), "Methods", f"{len(bench.entries)} entries with their variants"),
                    (str(len(products)), "Products", f"streams: {len(plan['streams'])}"),
                    (str(len(plan["seeds"])), "Seeds", ", ".join(map(str, plan["seeds"]))),
                    (str(runs), "Complete runs", "each an entry on a stream with a seed"),
                ]
            ),
            html.section(
                "What was compared",
                html.table(
                    heads,
                    rows,
                    caption="All see the same cached features, orders and image sizes"
                    + (", but for what is said of a method." if noted else "."),
                ),
                html.folded(
                    f"Streams: {len(plan['streams'])}",
                    html.settings([(s["name"], _order(s)) for s in plan["streams"]]),
                ),
            ),
        ]
    )


def _unfinished(bench: Findings) -> Html:
    """A notice of the runs that did not come to their end, and of why where that is known."""
    reached = {(r["entry"], r["stream"], r["seed"]): len(r["bytes_per_task"]) for r in bench.results["runs"]}
    said = []
    for entry in bench.entries:
        for stream in bench.plan["streams"]:
            for seed in bench.plan["seeds"]:
                done, all_ = reached.get((entry, stream["name"], seed), 0), len(stream["tasks"])
                if done < all_:
                    why = bench.times.get("failed", {}).get(f"{entry}, {stream['name']}, seed {seed}", "")
                    said.append(
                        f"{bench.title(entry)} on {stream['name']}, seed {seed}: {done} of {all_} tasks"
                        + (f" ({why})" if why else "")
                    )
    return (
        html.notice("Not complete and therefore in no mean: " + "; ".join(said) + ".") if said else Html("")
    )


def _order(stream: Mapping[str, Any]) -> str:
    return " → ".join(
        " + ".join(task["products"]) + ("" if task.get("named", True) else " (not told apart)")
        for task in stream["tasks"]
    )


def headline(bench: Findings) -> Html:
    """The section with the figures of all entries, and what to bear in mind when reading them."""

    def name(entry: str) -> str:
        return bench.title(entry) + (" †" if bench.untrained(entry) else "")

    def cells(entry: str) -> list[object]:
        summary, routes = bench.summary(entry), bench.results["routes"][entry]
        return [
            *(bench.acc(entry, metric) for metric in HEADLINE),
            *(bench.acc(entry, metric, name="fm") for metric in MAIN),
            bench.acc(entry, "image_auroc", name="bwt"),
            summary["router_gap"]["image_auroc"] if routes else None,
            yes(summary["isolated"]) if summary["runs"] else None,
        ]

    further = [
        [f"{name(entry)}, {said}", *(bench.acc(entry, metric, view) for metric in NAMES)]
        for entry in bench.entries
        for view, said in zip(VIEWS, ("product given", "routed"), strict=True)
    ]
    continual = ["FM image AUROC", "FM pixel AP", "BWT image AUROC", "router gap", "isolated"]
    return html.section(
        "At a glance",
        figures_table(
            ["method", *(METRICS[metric] for metric in HEADLINE), *continual],
            [[name(entry), *cells(entry)] for entry in bench.entries],
            best=(1,) * len(HEADLINE) + (-1, -1, 1),
            caption="Higher is better; FM (forgetting) and router gap (image AUROC, product given less "
            "routed) are better when lower. Isolated: with the product given, all maps and scores stayed "
            "the same to the bit whatever was learned later. The best of a column is bold; – means that it "
            "cannot be measured: no maps, no masks, no product to choose, or no run that came to its end."
            + (_UNTRAINED if any(map(bench.untrained, bench.entries)) else ""),
        ),
        _as_meant(bench),
        _by_stream(bench),
        html.folded(
            "All metrics, product given and routed",
            figures_table(
                ["method", *(METRICS[m] for m in NAMES)],
                further,
                caption="F1-max picks its threshold by the labels.",
            ),
        ),
    )


def _by_stream(bench: Findings) -> Html:
    """Every entry on every stream: what the order of products does."""
    names = [stream["name"] for stream in bench.plan["streams"]]
    if len(names) < 2:
        return Html("")

    def on(entry: str, stream: str, metric: str, figure: str) -> Spread:
        runs = [run for run in bench.runs(entry) if run["stream"] == stream]
        return spread([run["continual"]["routed"][metric][figure] for run in runs])

    wanted = [(METRICS[m], m, "acc") for m in MAIN] + [("FM image AUROC", "image_auroc", "fm")]
    return html.folded(
        "Every order of its own",
        *(
            figures_table(
                ["method", *names],
                [
                    [bench.title(entry), *(on(entry, name, metric, figure) for name in names)]
                    for entry in bench.entries
                ],
                caption=f"{said}, routed; ± is the standard deviation over seeds.",
            )
            for said, metric, figure in wanted
        ),
    )


def _as_meant(bench: Findings) -> Html:
    """What sets rivals with a single flow apart from the line, besides how they keep what they know."""
    single = [e for e in bench.leaders if issubclass(METHODS.get(bench.method(e), object), SingleFlow)]
    if not single:
        return Html("")
    return html.paragraph(
        "Methods are compared as each is meant to be used. Those with a single flow for all products "
        f"({', '.join(bench.title(e) for e in single)}) learn, as the line does, from all good images; "
        "they have no cell Gaussians beside the flow and no calibration by position. Flow against flow, like "
        "for like, stand the entries called flow-alone."
    )
