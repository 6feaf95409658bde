"""The demo's report: sections made of the blocks of `moleflow.report`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from .. import report
from ..data.images import read_image
from ..data.layouts import Item, Product, load_mask
from ..maps.overlay import overlay
from ..results import Prediction
from .figures import Figures, Outcome


def build(outcome: Outcome, figures: Figures, about: dict[str, Any]) -> str:
    """The whole document."""
    return report.page(
        "MoLE-Flow demo: products learned one after another",
        report.paragraph(
            f"{len(figures.products)} made-up products were taught one at a time, each from "
            f"{figures.products[0].images} good images. After every step all products taught so far were "
            "inspected again on images not seen before, good and defective ones mixed. One more product was "
            "never taught."
        ),
        report.notice(
            "These images are drawn by a program. They show that the method runs and how it behaves; "
            "they say nothing about how well it would do on real products."
        ),
        report.key_figures(_headline(figures, about)),
        _retention_section(figures),
        _routing_section(figures),
        _detection_section(figures),
        _cost_section(figures),
        _gallery_section(outcome),
        _unknown_section(outcome, figures),
        _about_section(about),
    )


def _headline(figures: Figures, about: dict[str, Any]) -> list[tuple[str, str, str]]:
    products = figures.products
    alarms, good = sum(p.false_alarms for p in products), sum(p.good for p in products)
    found, defective = sum(p.found for p in products), sum(p.defective for p in products)
    strangers = sum(p.called_unknown for p in products)
    return [
        (f"{figures.average_oracle:.3f}", "Image AUROC, product given", "mean over all products at the end"),
        (f"{figures.average_routed:.3f}", "Image AUROC, routed", "nobody says which product it is"),
        (
            f"{figures.forgetting_oracle:.3f}",
            "Forgetting, product given",
            f"routed: {figures.forgetting_routed:.3f}",
        ),
        (yes(figures.unchanged), "Old predictions bit-identical", "maps, scores, verdicts, first and last"),
        (f"{found} of {defective}", "Defective images found", "at the default threshold"),
        (f"{alarms} of {good}", "False alarms on good images", "the threshold aims at 1 in 100"),
        (
            f"{figures.unknown_found} of {figures.unknown_images}",
            "Unknown product recognised",
            f"never taught; called unknown although taught: {strangers} of {good + defective}",
        ),
        (f"{about['seconds']:.0f} s", "Whole run", f"{about['hardware']['processors']} processors"),
    ]


def _retention_section(figures: Figures) -> report.Html:
    names = [p.name for p in figures.products]
    rows = [f"after {name}" for name in names]
    return report.section(
        "What was learned is kept",
        report.paragraph(
            "Each row is a moment in the line's life, each column a product: image AUROC on its test images. "
            "Read a column downwards: a number that falls is a product being forgotten."
        ),
        report.matrix(
            _as_matrix(figures.oracle), rows, names, caption="Product given. Coloured from 0.5 to 1."
        ),
        report.matrix(
            _as_matrix(figures.routed),
            rows,
            names,
            caption="Routed: nobody says which product it is. An image called unknown is still scored as the "
            "product it is nearest to. Coloured from 0.5 to 1.",
        ),
        report.columns(_summary_table(figures), _unchanged_table(figures)),
        report.paragraph(
            "The line was also saved, loaded and asked again, with the product given and routed. "
            f"All predictions bit-identical: {yes(figures.reloaded_identical)}."
        ),
    )


def _summary_table(figures: Figures) -> report.Html:
    means = (figures.average_oracle, figures.average_routed)
    losses = (figures.forgetting_oracle, figures.forgetting_routed)
    return report.table(
        ["", "product given", "routed"],
        [
            ["mean over products at the end", *(report.number(value, 4) for value in means)],
            ["forgetting", *(report.number(value, 4) for value in losses)],
        ],
        caption="Forgetting: the best a product ever was, less what it is in the end; mean over all products "
        "but the last.",
    )


def _unchanged_table(figures: Figures) -> report.Html:
    return report.table(
        ["product", "bit-identical"],
        [[p.name, yes(p.unchanged)] for p in figures.products[:-1]],
        caption="Predictions right after the product was learned against those at the end, product given: "
        "every map, score and verdict compared bit by bit.",
    )


def _routing_section(figures: Figures) -> report.Html:
    return report.section(
        "Which product is it",
        report.paragraph(
            "In the routed inspection the images of all products arrive mixed and without a name. An image "
            "has found its product when it was sent there and not called unknown."
        ),
        report.table(
            ["product", "good images", "defective images", "called unknown"],
            [
                [
                    p.name,
                    _share(p.routed_good, p.good),
                    _share(p.routed_defective, p.defective),
                    p.called_unknown,
                ]
                for p in figures.products
            ],
            caption="Images that found their product, after all products were learned.",
        ),
    )


def _detection_section(figures: Figures) -> report.Html:
    return report.section(
        "What is found",
        report.table(
            [
                "product",
                "image AUROC",
                "image AUROC routed",
                "pixel AP",
                "AUPRO",
                "defective found",
                "false alarms",
            ],
            [
                [
                    p.name,
                    report.number(p.image_auroc),
                    report.number(p.image_auroc_routed),
                    report.number(p.pixel_ap),
                    report.number(p.aupro),
                    f"{p.found} of {p.defective}",
                    f"{p.false_alarms} of {p.good}",
                ]
                for p in figures.products
            ],
            caption="Product given unless said otherwise; pixel figures at the size of the image. The "
            "threshold comes from good images alone and aims at one false alarm in a hundred good images: "
            "so few test images can show that it is badly off, not that it is right.",
        ),
    )


def _cost_section(figures: Figures) -> report.Html:
    stages = list(dict.fromkeys(stage for p in figures.products for stage in p.seconds))
    return report.section(
        "What a product costs",
        report.table(
            [
                "product",
                "images",
                *(f"{stage}, s" for stage in stages),
                "numbers owned",
                "on disk",
                "threshold",
            ],
            [
                [
                    p.name,
                    p.images,
                    *(report.number(p.seconds.get(stage), 1) for stage in stages),
                    f"{p.parameters:,}",
                    report.amount(p.bytes),
                    report.number(p.threshold, 2),
                ]
                for p in figures.products
            ],
            caption="The base is learned once, with the first product, and never changes. The saved line as "
            f"a whole takes {report.amount(figures.line_bytes)}. Calibration of the first product: "
            f"{figures.products[0].calibration}.",
        ),
    )


def _gallery_section(outcome: Outcome) -> report.Html:
    last = outcome.steps[-1].oracle
    return report.section(
        "What it looks like",
        report.paragraph(
            "Of each product the first good image that passed, the clearest and the faintest defect that "
            "were found, and the first false alarm and the first miss where there were any. "
            "In heat maps the photograph is grey."
        ),
        report.heat_scale(),
        *(
            report.subsection(
                product.name, report.gallery(_card(*pair) for pair in _examples(product, last[product.name]))
            )
            for product in outcome.products
        ),
    )


def _examples(product: Product, predictions: Sequence[Prediction]) -> list[tuple[Item, Prediction]]:
    """A few telling images, by rule; the same image is not shown twice."""
    groups: dict[tuple[int, bool], list[tuple[Item, Prediction]]] = {}
    for item, prediction in zip(product.test, predictions, strict=True):
        groups.setdefault((item.label, prediction.pred_label), []).append((item, prediction))
    hits = sorted(groups.get((1, True), []), key=lambda pair: -pair[1].pred_score)
    passed, alarms, misses = (groups.get(key, []) for key in ((0, False), (0, True), (1, False)))
    return [*passed[:1], *hits[:1], *hits[1:][-1:], *alarms[:1], *misses[:1]]


def _card(item: Item, prediction: Prediction) -> report.Card:
    image = read_image(item.path)
    truth = load_mask(item, shape=prediction.image_size)
    heat = overlay(report.greyed(image), prediction.anomaly_map, prediction.map_threshold)
    verdict, right = _VERDICTS[item.label, prediction.pred_label]
    kind = "good" if item.label == 0 else item.kind.replace("_", " ")
    return report.Card(
        verdict=verdict,
        remark=f"{kind}: score {prediction.pred_score:.2f}, threshold {prediction.threshold:.2f}",
        pictures=(
            report.Picture(report.photo_uri(image), "image"),
            report.Picture(report.mask_uri(truth), "true defect"),
            report.Picture(report.photo_uri(heat), "heat map"),
        ),
        tone="good" if right else "bad",
    )


_VERDICTS = {
    (0, False): ("Passed.", True),
    (0, True): ("False alarm.", False),
    (1, True): ("Found.", True),
    (1, False): ("Missed.", False),
}


def _unknown_section(outcome: Outcome, figures: Figures) -> report.Html:
    pairs = list(zip(outcome.stranger.test, outcome.unknown, strict=True))
    return report.section(
        f"A product nobody taught: {figures.unknown_product}",
        report.paragraph(
            f"{figures.unknown_found} of its {figures.unknown_images} images were called unknown; of the "
            f"{sum(p.good + p.defective for p in figures.products)} test images of taught products, "
            f"{sum(p.called_unknown for p in figures.products)} were. An image is unknown when it lies "
            "farther from the nearest product than that product's limit, and most of it also looks strange "
            "to that product's expert."
        ),
        report.gallery(_unknown_card(item, prediction) for item, prediction in _spread(pairs, 4)),
        report.folded(
            "All its images, with the distances to every product",
            _distance_table(pairs, [p.name for p in figures.products]),
        ),
    )


def _spread(pairs: Sequence[tuple[Item, Prediction]], count: int) -> list[tuple[Item, Prediction]]:
    """`count` pairs at equal steps; what was taken for a product comes first, since it is the failure."""
    ordered = sorted(pairs, key=lambda pair: not pair[1].known)
    places = np.linspace(0, len(ordered) - 1, min(count, len(ordered)))
    return [ordered[int(place)] for place in places]


def _unknown_card(item: Item, prediction: Prediction) -> report.Card:
    routing = prediction.routing
    assert routing is not None, "nobody said which product it is"
    remark = (
        f"Nearest: {prediction.task}. Distance {report.number(routing.distance, 1)} "
        f"(limit {report.number(routing.distance_limit, 1)}), "
        f"strangeness {report.number(routing.strangeness, 1)} "
        f"(limit {report.number(routing.strangeness_limit, 1)})."
    )
    return report.Card(
        verdict=f"Taken for {prediction.task}." if prediction.known else "Unknown.",
        remark=remark,
        pictures=(
            report.Picture(report.photo_uri(read_image(item.path), side=200), item.kind.replace("_", " ")),
        ),
        tone="bad" if prediction.known else "good",
    )


def _distance_table(pairs: Sequence[tuple[Item, Prediction]], names: Sequence[str]) -> report.Html:
    rows = []
    for item, prediction in pairs:
        routing = prediction.routing
        assert routing is not None, "nobody said which product it is"
        distances = (*(routing.distances.get(name) for name in names), routing.distance_limit)
        verdict = f"taken for {prediction.task}" if prediction.known else "unknown"
        rows.append(
            [f"{item.kind} {item.path.stem}", verdict, *(report.number(value, 1) for value in distances)]
        )
    return report.table(
        ["image", "answer", *names, "limit"],
        rows,
        caption="Distances in units of the product's typical good image; the limit is the nearest product's.",
    )


def _about_section(about: dict[str, Any]) -> report.Html:
    plain = {"seed": about["seed"], **about["sizes"]}
    return report.section(
        "How this was made",
        report.columns(
            report.settings(
                [*((name.replace("_", " "), value) for name, value in plain.items())], caption="The run"
            ),
            report.settings(
                [*about["versions"].items(), *about["hardware"].items()], caption="Software and machine"
            ),
        ),
        report.folded("All options of the line", report.settings(_flat(about["config"]))),
    )


def _flat(values: dict[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    rows: list[tuple[str, Any]] = []
    for name, value in values.items():
        rows += _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else [(prefix + name, value)]
    return rows


def _as_matrix(rows: list[list[float | None]]) -> np.ndarray:
    return np.array(rows, dtype=np.float64)


def _share(share: float, count: int) -> str:
    return f"{round(share * count)} of {count}" if count else "–"


def yes(value: bool) -> str:
    """A fact as a word."""
    return "yes" if value else "no"
