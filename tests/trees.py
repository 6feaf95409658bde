"""A small generated tree in each data set's layout, and what a folder holds."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
from PIL import Image

from moleflow.data.images import find_entries

SHAPE = (8, 6)
_count = iter(range(10**9))


def image(path: Path, *, shape: tuple[int, int] = SHAPE, seed: int | None = None) -> Path:
    """A photograph that no other call repeats, unless ``seed`` is given."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(next(_count) + 1000 if seed is None else seed)
    Image.fromarray(rng.integers(0, 255, (*shape, 3), dtype=np.uint8)).save(path)
    return path


def mask(path: Path, *, value: int = 255, rows: slice = slice(2, 4), shape: tuple[int, int] = SHAPE) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    values = np.zeros(shape, dtype=np.uint8)
    values[rows, 1:3] = value
    Image.fromarray(values).save(path)
    return path


def find_images(source, **options) -> list[Path]:
    """The paths of what `find_entries` lists."""
    return [entry.path for entry in find_entries(source, **options)]


def mvtec_tree(root: Path, product: str = "bottle") -> Path:
    for name in ("000.png", "001.PNG"):
        image(root / product / "train" / "good" / name)
    image(root / product / "test" / "good" / "000.png")
    for name in ("000.png", "001.PNG"):
        image(root / product / "test" / "scratch" / name)
    mask(root / product / "ground_truth" / "scratch" / "000_mask.png")
    mask(root / product / "ground_truth" / "scratch" / "001_mask.PNG", rows=slice(5, 6))
    (root / "license.txt").write_text("text")
    return root


def mpdd_tree(root: Path) -> Path:
    return mvtec_tree(root, "metal_plate")


def visa_tree(root: Path) -> Path:
    folder = root / "candle" / "Data"
    rows = []
    for name, split in (("0.JPG", "train"), ("1.JPG", "train"), ("2.JPG", "test")):
        image(folder / "Images" / "Normal" / name)
        rows.append(("candle", split, "normal", f"candle/Data/Images/Normal/{name}", ""))
    image(folder / "Images" / "Anomaly" / "0.JPG")
    mask(folder / "Masks" / "Anomaly" / "0.png", value=3)
    rows.append(
        ("candle", "test", "anomaly", "candle/Data/Images/Anomaly/0.JPG", "candle/Data/Masks/Anomaly/0.png")
    )
    visa_table(root, rows)
    return root


def visa_table(root: Path, rows: list[tuple[str, ...]]) -> None:
    table = root / "split_csv" / "1cls.csv"
    table.parent.mkdir(parents=True, exist_ok=True)
    with table.open("w", newline="") as file:
        csv.writer(file).writerows([("object", "split", "label", "image", "mask"), *rows])


def btad_tree(root: Path) -> Path:
    for product, end in (("01", ".bmp"), ("02", ".png"), ("03", ".BMP")):
        image(root / product / "train" / "ok" / f"0000{end}")
        image(root / product / "test" / "ok" / f"0000{end}")
        image(root / product / "test" / "ko" / f"0001{end}")
        mask(root / product / "ground_truth" / "ko" / "0001.png")
    return root


def loco_tree(root: Path) -> Path:
    product = root / "juice"
    for part in ("train", "validation", "test"):
        image(product / part / "good" / "000.png")
    for kind in ("logical_anomalies", "structural_anomalies"):
        image(product / "test" / kind / "000.png")
        mask(product / "ground_truth" / kind / "000" / "000.png", value=254, rows=slice(1, 2))
        mask(product / "ground_truth" / kind / "000" / "001.png", value=201, rows=slice(6, 7))
    return root


def mvtec2_tree(root: Path) -> Path:
    product = root / "vial"
    for part in ("train", "validation", "test_public"):
        image(product / part / "good" / "000_regular.png")
    image(product / "test_public" / "bad" / "000_regular.png")
    mask(product / "test_public" / "ground_truth" / "bad" / "000_regular_mask.png")
    image(product / "test_private" / "000_regular.png")
    return root


def real_iad_tree(root: Path) -> Path:
    folder = root / "realiad_1024" / "toy"
    for name in ("a.jpg", "b.jpg"):
        image(folder / "OK" / "S0001" / name)
    image(folder / "NG" / "AK" / "c.jpg")
    values = np.full(SHAPE, 90, dtype=np.uint8)
    values[3] = 200
    Image.fromarray(values).save(folder / "NG" / "AK" / "c.png")
    real_iad_table(
        root,
        train=[{"image_path": "OK/S0001/a.jpg", "mask_path": None, "anomaly_class": "OK"}],
        test=[
            {"image_path": "OK/S0001/b.jpg", "mask_path": None, "anomaly_class": "OK"},
            {"image_path": "NG/AK/c.jpg", "mask_path": "NG/AK/c.png", "anomaly_class": "AK"},
        ],
    )
    return root


def real_iad_table(root: Path, **content: object) -> None:
    table = root / "realiad_jsons" / "toy.json"
    table.parent.mkdir(parents=True, exist_ok=True)
    table.write_text(json.dumps({"meta": {"prefix": "toy/", "normal_class": "OK"}, **content}))


def bmad_tree(root: Path) -> Path:
    """The ways in which its sets lie: flat or deep, in both orders, in both cases, with and without masks."""
    brain = root / "Brain_AD" / "BraTS2021_slice"
    image(brain / "train" / "good" / "00003_60.png")
    for split, name in (("valid", "00025_99.png"), ("test", "00000_96.png")):
        image(brain / split / "good" / "img" / name)
        mask(brain / split / "good" / "label" / name, rows=slice(0, 0))
        image(brain / split / "Ungood" / "img" / f"1{name}")
        mask(brain / split / "Ungood" / "label" / f"1{name}", value=1)
    return root


def bmad_others(root: Path) -> Path:
    image(root / "Chest_AD" / "train" / "good" / "a.png")
    for split in ("val", "test"):
        image(root / "Chest_AD" / split / "good" / "a.png")
        image(root / "Chest_AD" / split / "Ungood" / "a.png")
    liver, resc = root / "Liver_AD" / "hist_DIY", root / "Retina_RESC_AD" / "RESC"
    image(liver / "train" / "good" / "a.png")
    image(liver / "test" / "img" / "good" / "a.png")
    image(liver / "test" / "img" / "Ungood" / "b.png")
    mask(liver / "test" / "label" / "Ungood" / "b.png")
    image(resc / "Train" / "train" / "good" / "a.png")
    image(resc / "Test" / "test" / "good" / "a.png")
    image(resc / "Test" / "test" / "ungood" / "b.png")
    mask(resc / "Test" / "test_label" / "ungood" / "b.png")
    return root


def mega_tree(root: Path) -> Path:
    places = {"Apple": "continual_ad", "bottle": "mvtec_anomaly_detection"}
    made: dict[str, dict[str, list[dict[str, object]]]] = {}
    for product, folder in places.items():
        place = f"{folder}/{product}"
        made[product] = {"train": [], "test": []}
        for split, anomaly in (("train", 0), ("train", 1), ("test", 0), ("test", 1)):
            path, mark = f"{place}/{split}{anomaly}.jpg", f"{place}/mask_{split}.png" if anomaly else ""
            image(root / path)
            if anomaly:
                mask(root / mark)
            row = {"img_path": path, "mask_path": mark, "cls_name": product, "anomaly": anomaly}
            made[product][split].append(row)
    parts = {p: {s: {p: rows} for s, rows in of_split.items()} for p, of_split in made.items()}
    mega_table(root, "scenario1_base", parts["Apple"])
    mega_table(root, "scenario1_5classes_tasks", {"task_1": parts["bottle"]})
    return root


def mega_table(root: Path, name: str, content: object) -> None:
    table = root / "meta_files" / f"{name}.json"
    table.parent.mkdir(parents=True, exist_ok=True)
    table.write_text(json.dumps(content))


def folder_tree(root: Path) -> Path:
    image(root / "lid" / "good" / "000.png")
    image(root / "lid" / "test" / "ok" / "000.png")
    image(root / "lid" / "test" / "dent" / "000.tiff")
    mask(root / "lid" / "ground_truth" / "dent" / "000.png")
    return root


TREES = {
    "mvtec-ad": (mvtec_tree, "scratch", [2, 3]),
    "mpdd": (mpdd_tree, "scratch", [2, 3]),
    "visa": (visa_tree, "anomaly", [2, 3]),
    "btad": (btad_tree, "ko", [2, 3]),
    "mvtec-loco": (loco_tree, "logical_anomalies", [1, 6]),
    "mvtec-ad-2": (mvtec2_tree, "bad", [2, 3]),
    "real-iad": (real_iad_tree, "AK", [3]),
    "bmad": (bmad_tree, "ungood", [2, 3]),
    "continual-mega": (mega_tree, "anomaly", [2, 3]),
    "folder": (folder_tree, "dent", [2, 3]),
}
