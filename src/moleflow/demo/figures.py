"""What the demo measures: from predictions to figures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..data.layouts import Product, load_mask
from ..metrics import (
    PixelScores,
    RoutingAccuracy,
    answer_of,
    average_accuracy,
    forgetting,
    image_auroc,
    router_gap,
    routing_accuracy,
)
from ..results import Prediction, TaskInfo


@dataclass(frozen=True)
class Step:
    """Predictions on the test images of all products known after one more was learned, by product."""

    oracle: dict[str, list[Prediction]]
    routed: dict[str, list[Prediction]]


@dataclass(frozen=True)
class Outcome:
    """All a run produced, before anything is computed from it."""

    products: tuple[Product, ...]
    stranger: Product
    steps: tuple[Step, ...]
    unknown: list[Prediction]
    infos: dict[str, TaskInfo]
    reloaded_identical: bool
    line_bytes: int
    device: str


@dataclass(frozen=True)
class ProductFigures:
    """What was measured on one product at the end; shares from 0 to 1."""

    name: str
    image_auroc: float
    image_auroc_routed: float
    pixel_ap: float
    aupro: float
    good: int
    false_alarms: int
    defective: int
    found: int
    routed_good: float
    routed_defective: float
    called_unknown: int
    unchanged: bool
    seconds: dict[str, float]
    bytes: int
    parameters: int
    images: int
    calibration: str
    threshold: float


@dataclass(frozen=True)
class Figures:
    """What was measured on the line; `oracle[k][j]` is the image AUROC of product j after step k."""

    oracle: list[list[float | None]]
    routed: list[list[float | None]]
    average_oracle: float
    average_routed: float
    forgetting_oracle: float
    forgetting_routed: float
    router_gap: float
    products: list[ProductFigures]
    unknown_product: str
    unknown_images: int
    unknown_found: int
    unchanged: bool
    reloaded_identical: bool
    line_bytes: int


def measure(outcome: Outcome) -> Figures:
    """All figures of a run."""
    oracle = _result_matrix(outcome.products, [step.oracle for step in outcome.steps])
    routed = _result_matrix(outcome.products, [step.routed for step in outcome.steps])
    products = [_product_figures(outcome, product) for product in outcome.products]
    return Figures(
        oracle=_listed(oracle),
        routed=_listed(routed),
        average_oracle=average_accuracy(oracle),
        average_routed=average_accuracy(routed),
        forgetting_oracle=forgetting(oracle),
        forgetting_routed=forgetting(routed),
        router_gap=router_gap(oracle, routed),
        products=products,
        unknown_product=outcome.stranger.name,
        unknown_images=len(outcome.unknown),
        unknown_found=sum(not p.known for p in outcome.unknown),
        unchanged=all(product.unchanged for product in products),
        reloaded_identical=outcome.reloaded_identical,
        line_bytes=outcome.line_bytes,
    )


def _product_figures(outcome: Outcome, product: Product) -> ProductFigures:
    name, last = product.name, outcome.steps[-1]
    oracle, routed, info = last.oracle[name], last.routed[name], outcome.infos[name]
    learned = next(step for step in outcome.steps if name in step.oracle)
    defective = [item.label == 1 for item in product.test]
    pixel_ap, aupro = _pixel_figures(product, oracle)
    arrived = _arrived(product, routed)
    return ProductFigures(
        name=name,
        image_auroc=auroc(product, oracle),
        image_auroc_routed=auroc(product, routed),
        pixel_ap=pixel_ap,
        aupro=aupro,
        good=defective.count(False),
        false_alarms=sum(p.pred_label for p, bad in zip(oracle, defective, strict=True) if not bad),
        defective=defective.count(True),
        found=sum(p.pred_label for p, bad in zip(oracle, defective, strict=True) if bad),
        routed_good=arrived.good,
        routed_defective=arrived.defective,
        called_unknown=sum(not p.known for p in routed),
        unchanged=_same(learned.oracle[name], oracle),
        seconds=dict(info.seconds),
        bytes=info.bytes,
        parameters=info.parameters,
        images=info.images,
        calibration=f"{info.calibration}, {info.calibration_images} images",
        threshold=info.threshold,
    )


def _result_matrix(products: Sequence[Product], steps: Sequence[dict[str, list[Prediction]]]) -> np.ndarray:
    a = np.full((len(products), len(products)), np.nan)
    for k, predictions in enumerate(steps):
        for j, product in enumerate(products[: k + 1]):
            a[k, j] = auroc(product, predictions[product.name])
    return a


def auroc(product: Product, predictions: Sequence[Prediction]) -> float:
    """Image AUROC of predictions on the product's test images, in their order."""
    return image_auroc([p.pred_score for p in predictions], [item.label for item in product.test])


def _pixel_figures(product: Product, predictions: Sequence[Prediction]) -> tuple[float, float]:
    with PixelScores() as pixels:
        for item, prediction in zip(product.test, predictions, strict=True):
            mask = load_mask(item, shape=prediction.image_size)
            pixels.add(prediction.anomaly_map, mask, defective=item.label == 1)
        return pixels.ap(), pixels.aupro()


def _arrived(product: Product, routed: Sequence[Prediction]) -> RoutingAccuracy:
    """An image called unknown did not arrive, however near its own product was."""
    answers = [answer_of(p.task, p.known) for p in routed]
    labels = [item.label for item in product.test]
    return routing_accuracy([product.name] * len(answers), answers, labels)[product.name]


def same_step(first: Step, second: Step) -> bool:
    """Whether all predictions, with the product given and routed, are equal to the last bit."""
    pairs = ((first.oracle, second.oracle), (first.routed, second.routed))
    return all(a.keys() == b.keys() and all(_same(a[n], b[n]) for n in a) for a, b in pairs)


def _same(first: Sequence[Prediction], second: Sequence[Prediction]) -> bool:
    """Whether verdicts, scores and maps are equal to the last bit."""
    return len(first) == len(second) and all(
        a.to_dict() == b.to_dict() and a.patch_map.tobytes() == b.patch_map.tobytes()
        for a, b in zip(first, second, strict=True)
    )


def _listed(a: np.ndarray) -> list[list[float | None]]:
    return [[None if np.isnan(value) else float(value) for value in row] for row in a]
