"""Figures that others have published, to print beside our own: other backbones, image sizes and thresholds.

They show where the field stands. Only figures of one protocol may be subtracted from each other, and these
are of none of ours.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from ...data.layouts import MVTEC_OBJECTS, MVTEC_TEXTURES

PRODUCTS = {
    "mvtec": frozenset((*MVTEC_TEXTURES, *MVTEC_OBJECTS)),
    "visa": frozenset(
        (
            *("candle", "capsules", "cashew", "chewinggum", "fryum", "macaroni1", "macaroni2"),
            *("pcb1", "pcb2", "pcb3", "pcb4", "pipe_fryum"),
        )
    ),
    "mpdd": frozenset(
        ("bracket_black", "bracket_brown", "bracket_white", "connector", "metal_plate", "tubes")
    ),
}
"""Which products make up a data set that figures were published for."""

TITLES = {"mvtec": "MVTec AD, 15 products", "visa": "VisA, 12 products", "mpdd": "MPDD, 6 products"}


@dataclass(frozen=True)
class Published:
    """One method on one data set, means over its products, in per cent as they are printed.

    Attributes:
        method: as its authors call it.
        dataset: a key of `PRODUCTS`.
        image_auroc, pixel_ap: None where not reported.
        forgetting: of image AUROC, in points, by whichever definition the source has; 0 also where the
            source says "about zero"; None where not reported.
        protocol: what differs from products one at a time, none given at inspection.
        reference: where it stands.
        printed: False for runs that were never published.
    """

    method: str
    dataset: str
    image_auroc: float | None
    pixel_ap: float | None
    forgetting: float | None
    protocol: str
    reference: str
    printed: bool = True


_DECK = "MoLE-Flow, slides of its authors"
_RUNS = "MoLE-Flow, research runs of its authors"
_DECOFLOW = "DeCoFlow, arXiv 2606.26687"
_CADIC = "Yang et al., CADIC, arXiv 2511.08634"
_REPLAYCAD = "Hu et al., ReplayCAD, IJCAI 2025"
_UCAD = "Liu et al., UCAD, AAAI 2024"
_DNE = "Li et al., DNE, ACM MM 2022"
_PATCHCORE = "PatchCore: Roth et al., CVPR 2022"
_PROCON = "ProCon, arXiv 2607.04894"

_SELECTED = "epoch chosen on the test images"
_JOINT = "all products at once, not continual"
_LIMIT = "limit: one model per product, DINOv2-B, 392 pixels"

PUBLISHED: tuple[Published, ...] = (
    Published("MoLE-Flow", "mvtec", 98.24, 53.50, 0.0, "224 pixels", _DECK),
    Published("MoLE-Flow, WideResNet50", "mvtec", 97.90, 54.92, 0.0, "224 pixels, 3 seeds", _RUNS, False),
    Published("DeCoFlow", "mvtec", 98.40, None, 0.0, "", _DECOFLOW),
    Published("CADIC", "mvtec", 97.2, 58.4, 1.1, "", _CADIC),
    Published("DINOSaur", "mvtec", 96.8, None, 0.0, "no training, DINOv3-S", "arXiv 2605.24251"),
    Published("GCR", "mvtec", 97.8, None, 0.0, "no training, prototypes", "arXiv 2601.01856"),
    Published("ReplayCAD", "mvtec", 94.8, 53.7, 4.5, "", _REPLAYCAD),
    Published("UCAD", "mvtec", 93.0, 45.6, 1.0, _SELECTED, _UCAD),
    Published("DNE", "mvtec", 87.0, None, 11.6, "image score only", _DNE),
    Published("PatchCore, joint", "mvtec", 97.8, 59.4, None, _JOINT, _PATCHCORE),
    Published("ProCon", "mvtec", 99.7, 73.0, None, _LIMIT, _PROCON),
    Published("MoLE-Flow", "visa", 85.66, 28.78, 0.0, "224 pixels", _DECK),
    Published("MoLE-Flow, WideResNet50", "visa", 87.6, 30.4, 0.0, "224 pixels", _RUNS, False),
    Published("MoLE-Flow, ViT", "visa", 90.0, 26.6, 0.0, "224 pixels", _RUNS, False),
    Published("DeCoFlow", "visa", 93.00, None, 0.0, "", _DECOFLOW),
    Published("CADIC", "visa", 89.1, 43.8, None, "", _CADIC),
    Published("ReplayCAD", "visa", 90.3, 41.5, None, "", _REPLAYCAD),
    Published("UCAD", "visa", 87.4, 30.0, None, _SELECTED, _UCAD),
    Published("DNE", "visa", 61.0, None, None, "image score only", _DNE),
    Published("PatchCore, joint", "visa", 91.6, 44.0, None, _JOINT, _PATCHCORE),
    Published("ProCon", "visa", 99.1, 52.3, None, _LIMIT, _PROCON),
    Published("MoLE-Flow", "mpdd", 90.2, 28.9, None, "224 pixels", "MoLE-Flow, figures of its authors"),
)


def dataset_of(products: Iterable[str]) -> str | None:
    """The data set these products make up, all of them and no other; None for any other set of products."""
    names = frozenset(products)
    return next((dataset for dataset, own in PRODUCTS.items() if own == names), None)


def published_for(products: Iterable[str]) -> tuple[Published, ...]:
    """What was published for exactly these products, in the order of `PUBLISHED`; none for any others."""
    dataset = dataset_of(products)
    return tuple(record for record in PUBLISHED if record.dataset == dataset)
