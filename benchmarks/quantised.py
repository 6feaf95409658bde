"""What eight bits would cost an exported line, whose backbone is quantised beside itself, on real products.

    python benchmarks/quantised.py ROOT [--train 60] [--every 1] [--calibrate 24]

ROOT is a folder of labelled products. A line is taught with the first so many good images of each and
exported to ONNX. Beside it stand two copies of the export: `weights`, whose backbone has weights in 8 bits
alone, and `weights and activations`, quantised by ONNX Runtime with good images of all products, as it asks
for. Thresholds stay those of the line. Printed are, for each, image AUROC and pixel AP, product not given,
the share of test images whose product or label is not the line's, megabytes and milliseconds an image.
`moleflow export` would offer what loses less than half a point in both.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from onnxruntime.quantization import (
    CalibrationDataReader,
    QuantFormat,
    QuantType,
    quantize_static,
)
from onnxruntime.quantization.shape_inference import quant_pre_process

from moleflow import Detector
from moleflow.data.layouts import Item, load_mask, read_dataset
from moleflow.export import export_line
from moleflow.metrics import image_auroc, pixel_ap
from moleflow.runtime import Inspector
from moleflow.store.index import OWN_HASH, hash_of
from moleflow.store.tensors import sha256_of

SIZE = (256, 256)  # at which maps meet masks


def main() -> None:
    options = arguments()
    with tempfile.TemporaryDirectory() as scratch:
        here = Path(scratch)
        line, good, shown = taught(options)
        line.save(here / "line")
        agreement = export_line(here / "line", here / "floats", images=[item.path for _, item in shown[:8]])
        print(
            f"floats beside the line: {agreement.verdicts} verdicts differ, scores by {agreement.score:.0e}"
        )
        images = [
            line.intake.read(path, path).pixels for path in good[:: max(1, len(good) // options.calibrate)]
        ]
        for name, quantise in (("weights", weights_only), ("weights and activations", with_activations)):
            shutil.copytree(here / "floats", here / name)
            quantise(here / "floats" / "backbone.onnx", here / name / "backbone.onnx", images)
            rehash(here / name)
        print("\n| | I | AP | verdicts that differ | MB | ms an image |\n|---|---:|---:|---:|---:|---:|")
        first = None
        for name in ("floats", "weights", "weights and activations"):
            inspector = Inspector(here / name)
            started = time.perf_counter()
            said = inspector.predict([item.path for _, item in shown])
            took = time.perf_counter() - started
            figures = judged(shown, said)
            verdicts = [(p.task, p.pred_label) for p in said]
            first = first or verdicts
            other = np.mean([a != b for a, b in zip(first, verdicts, strict=True)])
            weight = sum(f.stat().st_size for f in (here / name).rglob("*") if f.is_file()) / 1e6
            cells = ["-" if value is None else f"{100 * value:.1f}" for value in figures]
            cells += [f"{100 * other:.1f} %", f"{weight:.1f}", f"{1e3 * took / len(shown):.0f}"]
            print(f"| {name} | {' | '.join(cells)} |", flush=True)


def taught(options: argparse.Namespace) -> tuple[Detector, list[Path], list[tuple[str, Item]]]:
    line, good, shown = Detector(device="cpu"), [], []
    for name, product in read_dataset(options.root).products.items():
        chosen = [item.path for item in product.train[: options.train]]
        line.add_task(name, chosen)
        good += chosen
        shown += [(name, item) for item in product.test[:: options.every]]
    return line, good, shown


def judged(shown: Sequence[tuple[str, Item]], said: Sequence) -> tuple[float, float | None]:
    """Mean over products of image AUROC, and of pixel AP where there are masks; None where none has any."""
    aurocs, aps = [], []
    for name in dict.fromkeys(name for name, _ in shown):
        own = [(item, p) for (of, item), p in zip(shown, said, strict=True) if of == name]
        labels = np.array([item.label for item, _ in own])
        aurocs.append(image_auroc([p.pred_score for _, p in own], labels))
        if not any(item.masks for item, _ in own):
            continue
        masks = [load_mask(item, shape=SIZE) for item, _ in own]
        if any(mask.any() for mask in masks):  # a small one may vanish at that size
            aps.append(pixel_ap([p.map_at(SIZE) for _, p in own], masks))
    return statistics.fmean(aurocs), statistics.fmean(aps) if aps else None


class Calibration(CalibrationDataReader):
    """Images one by one, as the backbone takes them."""

    def __init__(self, images: Sequence[np.ndarray]) -> None:
        self._left = iter(images)

    def get_next(self) -> dict[str, np.ndarray] | None:
        image = next(self._left, None)
        return None if image is None else {"images": np.ascontiguousarray(image.transpose(2, 0, 1)[None])}


def weights_only(source: Path, out: Path, images: Sequence[np.ndarray]) -> None:
    """Every convolution's weights in 8 bits, a step for each output channel."""
    model = onnx.load(source)
    initial = {tensor.name: tensor for tensor in model.graph.initializer}
    for node in [node for node in model.graph.node if node.op_type == "Conv"]:
        name = node.input[1]
        node.input[1] = f"{name}.floats"
        if name not in initial:  # the second look at an image, at half its size, has the same weights
            continue
        weights = onnx.numpy_helper.to_array(initial[name])
        step = np.maximum(np.abs(weights).max((1, 2, 3)) / 127, 1e-12).astype(np.float32)
        codes = np.rint(weights / step[:, None, None, None]).astype(np.int8)
        model.graph.initializer.remove(initial.pop(name))
        for suffix, values in (("codes", codes), ("step", step)):
            model.graph.initializer.append(onnx.numpy_helper.from_array(values, f"{name}.{suffix}"))
        inputs = [f"{name}.codes", f"{name}.step"]
        again = onnx.helper.make_node("DequantizeLinear", inputs, [f"{name}.floats"], axis=0)
        model.graph.node.insert(0, again)
    onnx.save(model, out)


def with_activations(source: Path, out: Path, images: Sequence[np.ndarray]) -> None:
    prepared = out.with_suffix(".prepared.onnx")
    quant_pre_process(source, prepared, skip_symbolic_shape=True)
    quantize_static(
        prepared,
        out,
        Calibration(images),
        quant_format=QuantFormat.QDQ,
        per_channel=True,
        weight_type=QuantType.QInt8,
        activation_type=QuantType.QUInt8,
        op_types_to_quantize=["Conv"],
    )
    prepared.unlink()


def rehash(folder: Path) -> None:
    """The export's list of hashes, and its own, for the backbone that stands there now, whatever it sees."""
    index = folder / "exported.json"
    told = json.loads(index.read_text())
    told["files"]["backbone.onnx"] = sha256_of((folder / "backbone.onnx").read_bytes())
    told.pop("witness", None)  # by which a backbone in 8 bits is refused
    index.write_text(json.dumps(told | {OWN_HASH: hash_of(told)}))


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("root", type=Path, help="folder of labelled products")
    parser.add_argument("--train", type=int, default=60, help="photographs a product is taught with")
    parser.add_argument("--every", type=int, default=1, help="which test images are shown")
    parser.add_argument("--calibrate", type=int, default=24, help="good images that calibrate activations")
    options = parser.parse_args()
    if min(options.train, options.every, options.calibrate) < 1:
        parser.error("expected --train, --every and --calibrate of at least 1")
    return options


if __name__ == "__main__":
    print(f"ONNX Runtime {onnxruntime.__version__}, {os.cpu_count()} cores")
    main()
