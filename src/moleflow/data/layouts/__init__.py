"""Data sets on disk: known layouts are read into products of training, validation and test images.

Nothing is downloaded. Files are matched by stem, never by sorted position; extensions may be upper
case; hidden files and files that are no images are ignored.

Licences of the public sets: MVTec AD, MVTec LOCO, MVTec AD 2, MPDD and Real-IAD are CC BY-NC-SA 4.0
(no commercial use), VisA is CC BY 4.0, BTAD is CC BY-SA; BMAD and Continual-MEGA are made of other sets,
each under its own.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path, PurePath

from ...errors import ConfigError, DatasetError
from ..images import natural_key
from . import bmad, continual_mega, folders, real_iad, visa
from .checking import Problem, check_dataset
from .folders import any_product_has, only_names, product_folders
from .listing import holds
from .masks import load_mask, nearest
from .records import GOOD, Dataset, Item, Mask, Product, Split

__all__ = [
    "GOOD",
    "LAYOUTS",
    "MVTEC_OBJECTS",
    "MVTEC_TEXTURES",
    "Dataset",
    "Item",
    "Layout",
    "Mask",
    "Problem",
    "Product",
    "Split",
    "check_dataset",
    "load_mask",
    "nearest",
    "read_dataset",
]

MVTEC_TEXTURES = ("carpet", "grid", "leather", "tile", "wood")
MVTEC_OBJECTS = (
    *("bottle", "cable", "capsule", "hazelnut", "metal_nut", "pill", "screw", "toothbrush"),
    *("transistor", "zipper"),
)
_MVTEC = frozenset((*MVTEC_TEXTURES, *MVTEC_OBJECTS))
_MPDD = frozenset(("bracket_black", "bracket_brown", "bracket_white", "connector", "metal_plate", "tubes"))
_BTAD = frozenset(("01", "02", "03"))


@dataclass(frozen=True)
class Layout:
    """How one data set lies on disk; ``looked_for`` says in words what ``detect`` wants to see."""

    licence: str
    looked_for: str
    detect: Callable[[Path], bool]
    read: Callable[[Path], list[Product]]


_BY_NC_SA = "CC BY-NC-SA 4.0"

LAYOUTS: dict[str, Layout] = {
    "visa": Layout("CC BY 4.0", "split_csv/1cls.csv", visa.has_table, visa.read),
    "real-iad": Layout(
        _BY_NC_SA, "realiad_jsons/<product>.json", lambda root: bool(real_iad.tables(root)), real_iad.read
    ),
    "continual-mega": Layout(
        "each of its data sets' own",
        "meta_files/<scenario>_base.json beside the data sets' folders",
        lambda root: bool(continual_mega.tables(root)),
        continual_mega.read,
    ),
    "bmad": Layout(
        "each of its six sources' own, some of them for research only",
        "<organ>/[<source>/]{train/good,test/{good,Ungood}}",
        lambda root: bool(bmad.product_folders(root)),
        bmad.read,
    ),
    "mvtec-ad-2": Layout(
        _BY_NC_SA,
        "<product>/train/good and <product>/test_public/{good,bad,ground_truth}",
        any_product_has("test_public"),
        folders.read,
    ),
    "mvtec-loco": Layout(
        _BY_NC_SA,
        "<product>/train/good and <product>/test/{logical_anomalies,structural_anomalies}",
        any_product_has("test/logical_anomalies", "test/structural_anomalies"),
        folders.read,
    ),
    "btad": Layout("CC BY-SA", "{01,02,03}/train/ok", only_names(_BTAD, "train/ok"), folders.read),
    "mpdd": Layout(
        _BY_NC_SA,
        "<product>/train/good with this set's product names (connector, tubes, ...)",
        only_names(_MPDD, "train/good"),
        folders.read,
    ),
    "mvtec-ad": Layout(
        _BY_NC_SA,
        "<product>/train/good with this set's product names (bottle, cable, ...)",
        only_names(_MVTEC, "train/good"),
        folders.read,
    ),
    "folder": Layout(
        "not stated: the data's owner decides",
        "<product>/train/good or <product>/good, and perhaps test/<kind> and ground_truth/<kind>",
        lambda root: bool(product_folders(root)),
        folders.read,
    ),
}
"""Layouts by name, in the order in which they are tried."""


def read_dataset(root: str | Path, *, layout: str = "auto") -> Dataset:
    """List the images of a data set; only names are looked at, no image is opened.

    ``layout`` is a key of :data:`LAYOUTS`, or "auto" for the first that fits. Raises ConfigError for an
    unknown layout, and DatasetError where the folder does not hold what the layout promises: nothing
    recognised, a defective image without its mask among others that have one, a listed file that is
    absent, or a listed path that leads out of ``root``.
    """
    if layout != "auto" and layout not in LAYOUTS:
        raise ConfigError(f"unknown layout {layout!r}; known are auto, {', '.join(LAYOUTS)}")
    folder = Path(root)
    try:
        return _read_dataset(folder, layout)
    except OSError as error:
        raise DatasetError(f"{folder}: cannot be listed: {error}") from error


def _read_dataset(root: Path, layout: str) -> Dataset:
    if not root.is_dir():
        raise DatasetError(f"{root}: expected the folder of a data set, but there is none")
    name = _detect(root) if layout == "auto" else layout
    chosen = LAYOUTS[name]
    products = chosen.read(root)
    if not products:
        raise DatasetError(
            f"{root}: no product in layout {name!r}; looked for {chosen.looked_for}; {holds(root)}"
        )
    products.sort(key=lambda product: natural_key(PurePath(product.name)))
    return Dataset(name, root, {product.name: product for product in products}, chosen.licence)


def _detect(root: Path) -> str:
    for name, layout in LAYOUTS.items():
        if layout.detect(root):
            return name
    wanted = "".join(f"\n  {name}: {layout.looked_for}" for name, layout in LAYOUTS.items())
    raise DatasetError(f"{root}: no known layout; {holds(root)}; looked for{wanted}")
