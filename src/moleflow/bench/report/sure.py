"""How sure the figures are: intervals around means, and gaps corrected for how many there are."""

from __future__ import annotations

from ... import report as html
from ...report import Html, joined
from ..uncertainty import FAMILY, SCOPES
from .charts import signed
from .findings import METRICS, Findings
from .tables import left


def sure(bench: Findings) -> Html:
    """The section, or nothing where no run is complete or the results hold no draws."""
    found = bench.results.get("uncertainty")
    if not found or not found["means"]:
        return Html("")
    names = [name for name in FAMILY if any(name in one for one in found["means"].values())]
    return html.section(
        "How sure the figures are",
        html.table(
            ["method", *(METRICS[name] for name in names)],
            [[bench.title(e), *(_mean(bench, e, name) for name in names)] for e in found["means"]],
            caption=f"Means with {100 * found['level']:g} % intervals: above for these products (other test "
            "images, other seeds), below for such products (Student's t over the products). Under both the "
            "standard deviation over seeds and, after the stroke, over orders.",
        ),
        _gaps(bench, names),
        html.paragraph(
            f"{found['replicates']} paired draws of images, good and defective apart, and of seeds, one less "
            "than there are of each. With few products an interval for such products is as wide as so few "
            "allow. Pixel figures under a draw are counted in bins: "
            + ", ".join(f"{METRICS[n]} off by {found['bins'].get(n, 0):.4f} at most" for n in names)
            + "."
        ),
    )


def _gaps(bench: Findings, names: list[str]) -> Html:
    found = bench.results["uncertainty"]
    if not found["gaps"]:
        return Html("")
    rows = []
    for entry, own in found["gaps"].items():
        for scope in SCOPES:
            cells = [_gap(own.get(name, {}).get(scope)) for name in names]
            rows.append([f"{bench.title(entry)}, {scope}", *cells])
    return html.table(
        [f"less {bench.title(found['first'])}", *(METRICS[name] for name in names)],
        rows,
        caption="Gaps with intervals that all hold together, within a scope, with a chance of "
        f"{100 * found['level']:g} %, and p corrected for their number (Romano and Wolf 2005; for such "
        "products Bonferroni and Holm 1979). An interval that holds 0 says nothing.",
    )


def _gap(one: dict[str, float] | None) -> Html:
    if one is None:
        return html.escaped(html.number(None))
    small = f"{signed(one['low'])} to {signed(one['high'])}, p {one['p']:.3f}"
    return _stacked(signed(one["gap"]), small)


def _mean(bench: Findings, entry: str, name: str) -> Html:
    one = bench.results["uncertainty"]["means"][entry].get(name)
    if one is None:
        return html.escaped(html.number(None))
    lines = [f"{low:.3f} to {high:.3f}" for low, high in (one[scope] for scope in SCOPES if one[scope])]
    spreads = " / ".join(html.number(one[what]) for what in ("seeds", "orders"))
    return _stacked(html.number(one["mean"]), *lines, spreads)


def _stacked(main: str, *lines: str) -> Html:
    small = [Html(f"<br><small>{html.escaped(line)}</small>") for line in lines]
    return left(joined([html.escaped(main), *small]))
