"""What documentation shows of a benchmark: its tables in Markdown, its charts as SVG files of their own.

    python benchmarks/publish.py moleflow-benchmark [--charts docs/figures/rivals]

The folder is what `moleflow benchmark`, `ablate` or `sweep` wrote. The tables go to standard output; figures
are in per cent, mean over products and orders +- standard deviation over seeds. The table of intervals has
for every mean the 95 % interval for these products (other test images, other seeds) and for such products
(by Student's t), and its standard deviations over seeds and over orders, apart. The last tables hold
differences from the first row on the same orders and seeds, with intervals that hold for all comparisons of a
table together and p corrected for their number (Romano and Wolf 2005; for such products Bonferroni and Holm
1979). Of a sweep there is one table: every
trial with what it changes, its value by synthetic defects, its figures on the labelled test images, and its
differences from the unchanged options, seed by seed.
"""

from __future__ import annotations

import argparse
import html
import json
import re
from functools import partial
from pathlib import Path
from typing import Any

from moleflow.bench.report import write_report
from moleflow.bench.results import over_seeds, spread
from moleflow.bench.uncertainty import SCOPES

# A chart takes its colours from the page; on its own it stands on white.
COLOURS = {"var(--ink)": "#1c2430", "var(--soft)": "#5b6675", "var(--line)": "#d9dfe7"}
COLUMNS = {
    "I-AUROC": ("continual", "routed", "image_auroc", "acc"),
    "P-AP": ("continual", "routed", "pixel_ap", "acc"),
    "AUPRO 0.3": ("continual", "routed", "aupro_30", "acc"),
    "AUPIMO": ("continual", "routed", "aupimo", "acc"),
    "FM": ("continual", "routed", "image_auroc", "fm"),
    "routed good": ("shares", "routing_good"),
    "routed defective": ("shares", "routing_defective"),
}
DIFFERENCES = ("I-AUROC", "P-AP", "AUPRO 0.3", "AUPIMO")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("bench", type=Path, help="folder of results.json and timings.json")
    parser.add_argument("--charts", type=Path, help="folder for the SVG files")
    options = parser.parse_args()
    if (options.bench / "sweep.json").exists():
        print(trials(json.loads((options.bench / "sweep.json").read_text())))
        return
    print(tables(options.bench))
    if options.charts:
        charts(options.bench, options.charts)


def tables(bench: Path) -> str:
    """All tables of a run, under its command."""
    results, times = read(bench)
    parts = [f"`{times['command']}`\n", whole(results, times), products(results), intervals(results)]
    parts += [differences(results, scope) for scope in SCOPES]
    return "\n".join(parts)


def charts(bench: Path, folder: Path) -> None:
    """All charts of a run."""
    draw(*read(bench), folder)


def read(bench: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """What a run found, and how long it took."""
    results, times = (json.loads((bench / f"{name}.json").read_text()) for name in ("results", "timings"))
    return results, times


def whole(results: dict[str, Any], times: dict[str, Any]) -> str:
    """Every entry: means over products, forgetting, routing, bytes and seconds."""
    rows = []
    for entry in entries(results):
        of = results["summary"][entry]
        cells = [percent(inside(of, path)) for path in COLUMNS.values()]
        seconds = {what: value["mean"] for what, value in times["entries"][entry].items()}
        kept = of["kept_bytes"]["mean"] or 0
        cells += [
            f"{((of['bytes']['mean'] or 0) + kept) / 1e6:.2f}",
            f"{seconds['learn']:.0f}",
            f"{1e3 * seconds['inspect_image']:.0f}",
        ]
        rows.append([results["titles"][entry], *cells])
    return table(["", *COLUMNS, "MB in all", "s a product", "ms an image"], rows)


def products(results: dict[str, Any]) -> str:
    """Every entry and product: image AUROC and pixel AP at the end of a stream."""
    names = sorted({name for run in results["runs"] for name in run["products"]})
    rows = []
    for entry in entries(results):
        runs = [r for r in results["runs"] if r["entry"] == entry and r["complete"]]
        cells = []
        for name in names:
            for metric in ("image_auroc", "pixel_ap"):
                path = ("products", name, "routed", metric)
                cells.append(percent(over_seeds(runs, partial(inside, path=path))))
        rows.append([results["titles"][entry], *cells])
    return table(["", *(f"{name} {what}" for name in names for what in ("I-AUROC", "P-AP"))], rows)


def intervals(results: dict[str, Any]) -> str:
    """Every entry: means with both intervals, and the deviations over seeds and over orders."""
    found = results["uncertainty"]
    rows = []
    for entry, own in found["means"].items():
        cells = []
        for column in DIFFERENCES:
            one = own.get(COLUMNS[column][2])
            if one is None:
                cells += ["–"] * 4
                continue
            cells += [f"{100 * one['mean']:.1f}, {between(*one['these products'])}"]
            cells += ["–" if one["such products"] is None else between(*one["such products"])]
            cells += ["–" if one[what] is None else f"{100 * one[what]:.1f}" for what in ("seeds", "orders")]
        rows.append([results["titles"][entry], *cells])
    head = [
        f"{column}{what}"
        for column in DIFFERENCES
        for what in (", these products", ", such products", ": sd of seeds", ": sd of orders")
    ]
    level = f"{100 * found['level']:g} % intervals, {found['replicates']} draws"
    off = max((value for value in found["bins"].values()), default=0.0)
    return f"{level}; bins of pixel figures off by {100 * off:.2f} at most\n\n" + table(["", *head], rows)


def differences(results: dict[str, Any], scope: str) -> str:
    """Every entry less the first, on the same orders and seeds."""
    found = results["uncertainty"]
    rows = []
    for entry, own in found["gaps"].items():
        cells = []
        for column in DIFFERENCES:
            one = own.get(COLUMNS[column][2], {}).get(scope)
            cells.append("–" if one is None else gap(one))
        rows.append([results["titles"][entry], *cells])
    title = f"less {results['titles'][found['first']]}, {scope}"
    return table([title, *DIFFERENCES], rows)


def gap(one: dict[str, float]) -> str:
    """A difference with its interval and p; bold where the interval does not hold 0."""
    said = f"{100 * one['gap']:+.1f} {between(one['low'], one['high'], sign='+')}, p {one['p']:.3f}"
    return f"**{said}**" if one["low"] > 0 or one["high"] < 0 else said


def between(low: float, high: float, sign: str = "") -> str:
    return f"[{100 * low:{sign}.1f}, {100 * high:{sign}.1f}]"


def trials(found: dict[str, Any]) -> str:
    """Every trial, the unchanged options first: what it was judged by, and what the labels say of it."""
    unchanged = found["unchanged"]
    names = {name: name.rsplit(".", 1)[-1] for name in unchanged["options"]}
    rows = []
    for number, trial in enumerate([unchanged, *found["trials"]]):
        changed = [
            f"{names[name]} {shown(value)}"
            for name, value in trial["options"].items()
            if value != unchanged["options"][name]
        ]
        marks = [
            mark
            for mark, best in (("chosen", "best"), ("best with labels", "best_by_oracle"))
            if number and found[best] and found[best]["options"] == trial["options"]
        ]
        values = [[one[side] for one in trial["seeds"]] for side in ("criterion", "oracle")]
        less = [
            [one[side] - first[side] for one, first in zip(trial["seeds"], unchanged["seeds"], strict=True)]
            if trial[side] is not None and unchanged[side] is not None
            else [None]
            for side in ("criterion", "oracle")
        ]
        figures = [trial["figures"]["oracle"][name] for name in ("image_auroc", "pixel_ap", "aupro_30")]
        rows.append(
            [
                f"{number or 'unchanged'}" + (f" ({', '.join(marks)})" if marks else ""),
                ", ".join(changed),
                *(percent(spread(own)) for own in values),
                *(percent(spread([value])) for value in figures),
                *(percent(spread(own), sign=True) if number else "" for own in less),
            ]
        )
    head = ["trial", "what it changes", "criterion", "the same with labels", "I-AUROC", "P-AP", "AUPRO 0.3"]
    head += ["less unchanged: criterion", "with labels"]
    return table(head, rows)


def shown(value: Any) -> str:
    return f"{value['rank']}" if isinstance(value, dict) and "rank" in value else f"{value}"


def found(pattern: str, text: str) -> re.Match[str]:
    match = re.search(pattern, text)
    assert match is not None, pattern
    return match


def draw(results: dict[str, Any], times: dict[str, Any], folder: Path) -> None:
    """Every chart of the report as a file named by its title."""
    folder.mkdir(parents=True, exist_ok=True)
    page = folder / "report.html"
    write_report(page, results, times, galleries=[])
    text = page.read_text(encoding="utf-8")
    page.unlink()
    for chart in re.findall(r"<svg .*?</svg>", text, re.DOTALL):
        title = html.unescape(found(r'aria-label="([^"]*)"', chart)[1])
        name = re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-")
        for variable, colour in COLOURS.items():
            chart = chart.replace(variable, colour)
        width, height = found(r'viewBox="0 0 (\d+) (\d+)"', chart).groups()
        chart = re.sub(r' style="[^"]*"', "", chart, count=1)
        opened = (
            '<svg xmlns="http://www.w3.org/2000/svg" font-family="system-ui, sans-serif" '
            f'width="{width}" height="{height}" '
        )
        ground = f'<rect width="{width}" height="{height}" fill="#ffffff"/>'
        chart = re.sub(r">", f">{ground}", chart.replace("<svg ", opened, 1), count=1)
        (folder / f"{name}.svg").write_text(chart + "\n", encoding="utf-8")
        print(f"{folder / name}.svg: {title}")


def entries(results: dict[str, Any]) -> list[str]:
    return list(dict.fromkeys(run["entry"] for run in results["runs"]))


def inside(value: Any, path: tuple[str, ...]) -> Any:
    for key in path:
        value = value[key]
    return value


def percent(value: dict[str, Any], *, sign: bool = False) -> str:
    if value["mean"] is None:
        return "–"
    mean = f"{100 * value['mean']:{'+' if sign else ''}.1f}"
    return mean if value["sd"] is None else f"{mean} ± {100 * value['sd']:.1f}"


def table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---", *("---:" for _ in head[1:])], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


if __name__ == "__main__":
    main()
