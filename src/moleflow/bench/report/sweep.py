"""The page of a sweep: what was tried, what was chosen without labels, and what that choice lost."""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from contextlib import suppress
from importlib import metadata
from pathlib import Path
from typing import Any

from ... import report as html
from ...report import Html, joined, number
from ..figures import NAMES
from ..files import write_text
from ..results import mean, spread
from .charts import signed
from .findings import METRICS
from .options import options_section
from .tables import Row, figures_table, flat, left, said_value
from .trials import Trial, both_values, journey


def write_sweep_report(path: Path, found: Mapping[str, Any], command: str) -> None:
    """Writes the page of a sweep, whole or not at all.

    Args:
        path: of the HTML file.
        found: as `moleflow.bench.sweep.sweep` gives it, or `sweep.json` read again.
        command: what was typed.
    """
    trials = found["trials"]
    write_text(
        path,
        html.page(
            "MoLE-Flow sweep: options chosen without labels",
            _about(found),
            _failed([found["unchanged"], *trials]),
            _key_figures(found),
            _chosen(found),
            journey(trials, found["rank_correlation"]),
            options_section(found),
            _made(found, command),
        ),
    )


def _about(found: Mapping[str, Any]) -> Html:
    share, metrics = found["share"], " and ".join(METRICS[metric] for metric in found["metrics"])
    trials, all_ = found["trials"], found["combinations"]
    if found["sampler"] == "tpe":
        drawn = (
            "each suggested from those before it by tree-structured Parzen estimators (Bergstra et al., "
            "Algorithms for Hyper-Parameter Optimization, NIPS 2011)"
        )
    else:
        drawn = "the whole grid" if all_ == len(trials) else f"drawn at random from a grid of {all_:,}"
    oracle = (
        "The test figure, the oracle, is the same mean for the same options learned from all training images "
        "and judged on the labelled test images. It is reported and chose nothing."
        if _measured(found)
        else "The labelled test images were not looked at, so how well that choice does on them is unknown."
    )
    return joined(
        [
            html.paragraph(
                f"{len(trials)} trials of {found['method']} on {len(found['products'])} products, {drawn}. "
                f"Every trial learns the products one after another from {1 - share:.0%} of their good "
                f"training images. The other {share:.0%}, as they are and with synthetic defects put into "
                "them, stand for a test set. The criterion chooses the trial: the mean of "
                f"{metrics} on these images, the product found by the method."
            ),
            html.paragraph(oracle),
        ]
    )


def _failed(trials: Sequence[Trial]) -> Html:
    """What went wrong; the first of `trials` are the unchanged options."""
    names = ["unchanged", *(f"trial {i}" for i in range(1, len(trials)))]
    errors = [(name, error) for name, t in zip(names, trials, strict=True) for error in t.get("errors", ())]
    if not errors:
        return Html("")
    count = len({name for name, _ in errors})
    return joined(
        [
            html.notice(
                f"{count} of {len(trials) - 1} trials failed in part or as a whole and lack figures."
            ),
            html.folded("What went wrong", html.settings(errors)),
        ]
    )


def _measured(found: Mapping[str, Any]) -> bool:
    return found["best_by_oracle"] is not None


def _number_of(found: Mapping[str, Any], best: str) -> int:
    """The place of the best trial by one value, counted from 1."""
    wanted = found[best]["options"]
    return next(i for i, trial in enumerate(found["trials"], 1) if trial["options"] == wanted)


def _key_figures(found: Mapping[str, Any]) -> Html:
    best, count = found["best"], len(found["trials"])
    where = f"trial {_number_of(found, 'best')} of {count}"
    before = found["unchanged"]
    tiles = [
        (number(best["criterion"]), "Criterion of the chosen trial", where),
        (number(before["criterion"]), "Criterion of the unchanged options", "what there was to beat"),
    ]
    if _measured(found):
        ideal, pairs = found["best_by_oracle"], len(both_values(found["trials"]))
        chance = mean([trial["oracle"] for trial in found["trials"]])
        tiles += [
            (
                number(best["oracle"]),
                "Test figure of the chosen trial",
                f"unchanged options: {number(before['oracle'])}, mean of all trials: {number(chance)}",
            ),
            (
                signed(found["loss"]),
                "Lost by choosing without labels",
                f"against {number(ideal['oracle'])} of trial {_number_of(found, 'best_by_oracle')}, the best",
            ),
            (
                number(found["rank_correlation"], 2),
                "Rank correlation",
                f"criterion and test figure, {pairs} trials, Spearman",
            ),
        ]
    return html.key_figures(tiles)


def _chosen(found: Mapping[str, Any]) -> Html:
    kinds = {"best": "chosen, best by criterion", "best_by_oracle": "best by test figure"}
    places = {said: _number_of(found, best) for best, said in kinds.items() if found[best] is not None}
    if len(set(places.values())) < len(places):
        places = {"chosen, best by both": _number_of(found, "best")}
    options = [found["unchanged"]["options"]]
    options += [found["trials"][place - 1]["options"] for place in places.values()]
    rows = [
        [name, left(_tried(tried)), *(left(said_value(own[name])) for own in options)]
        for name, tried in found["space"].items()
    ]
    bound = (
        "The best by test figure is known by the labels only: it bounds what a choice among these trials "
        "could give, and is no result."
    )
    return html.section(
        "What was tried and what was chosen",
        html.table(
            [
                "option",
                left("tried"),
                left("unchanged"),
                *(left(f"{said} ({place})") for said, place in places.items()),
            ],
            rows,
            caption=bound if _measured(found) else "",
        ),
        _figures(found, places, "oracle") if _measured(found) else "",
        _figures(found, places, "criterion"),
    )


def _figures(found: Mapping[str, Any], places: Mapping[str, int], value: str) -> Html:
    """All metrics behind one value, of some trials by what they are, and their means over all trials."""
    trials = found["trials"]
    side, name, images = {
        "criterion": (
            "synthetic",
            "criterion",
            "held-out training images, some with synthetic defects",
        ),
        "oracle": ("oracle", "test figure", "the labelled test images"),
    }[value]
    named = {"unchanged": found["unchanged"]}
    named |= {f"{said}, trial {place}": trials[place - 1] for said, place in places.items()}
    rows: list[Row] = [
        [
            said,
            spread([seed[value] for seed in trial["seeds"]]),
            *(trial["figures"][side][metric] for metric in NAMES),
        ]
        for said, trial in named.items()
    ]
    means = [mean([trial["figures"][side][metric] for trial in trials]) for metric in NAMES]
    rows.append(["mean of all trials", spread([trial[value] for trial in trials]), *means])
    return figures_table(
        ["", name, *(METRICS[metric] for metric in NAMES)],
        rows,
        caption=f"On {images}; ± over seeds of learning, in the last row over trials. The last row is what "
        "a choice by chance would give.",
    )


def _tried(tried: Any) -> str:
    """What a space says of one option, as text."""
    if isinstance(tried, Mapping):
        return f"{tried['low']:g} to {tried['high']:g}{', by its logarithm' if tried.get('log') else ''}"
    return "; ".join(said_value(value) for value in tried)


def _side(size: Sequence[int] | None) -> str:
    return "" if size is None else f"{size[0]} x {size[1]}"


def _made(found: Mapping[str, Any], command: str) -> Html:
    combinations = found["combinations"]
    rows = [
        ("method", found["method"]),
        ("products, in this order", ", ".join(found["products"])),
        ("trials", str(len(found["trials"]))),
        ("combinations", "a range: not countable" if combinations is None else f"{combinations:,}"),
        ("sampler", found["sampler"]),
        ("criterion", f"{found['criterion']}: {', '.join(METRICS[m] for m in found['metrics'])}"),
        ("seeds of learning", ", ".join(map(str, found["learning_seeds"]))),
        ("seed of sampler, images and defects", str(found["seed"])),
        ("training images held out", f"{found['share']:.0%}"),
        ("backbone", found["backbone"]),
        ("weights", found["weights"] or "pretrained"),
        ("image size", _side(found["image_size"]) or "the backbone's own"),
        ("maps compared at", _side(found["eval_size"]) or "every image's own size"),
        *flat(found["base_options"]),
    ]
    versions = [("python", platform.python_version())]
    for name in ("moleflow", "torch", "timm", "numpy", *(("optuna",) if found["sampler"] == "tpe" else ())):
        with suppress(metadata.PackageNotFoundError):
            versions.append((name, metadata.version(name)))
    return html.section(
        "How this was made",
        Html(f"<p><code>{html.escaped(command)}</code></p>"),
        html.columns(html.settings(rows, caption="The sweep"), html.settings(versions, caption="Software")),
    )
