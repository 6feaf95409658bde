"""An exported line: read from its folder, checked, and asked about what networks computed."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import safetensors.numpy

from ..errors import LineError, TaskError
from ..intake import Intake
from ..pose import Pose
from ..store import Damaged
from ..store.files import EXPORTED, read_bytes
from ..store.index import parse_json, require_own_hash
from ..store.names import check_task_name
from ..store.tensors import check_sha256
from ..verdict.calibration import ScoreCalibration, TwoVoices, calibration_from_dict, verdict_of
from ..verdict.drift import Reference
from ..verdict.judgement import Decision, Judgement, judged, map_threshold, nearest
from ..verdict.unknown import Familiarity
from .arrays import mean_of_highest, network_inputs, part, whole_distance
from .engines import ENGINES, Network, Running
from .witness import Witness, drawn, rounded

FORMAT = 3  # 2: spreads of places in 16 bits; 1: patches of a coreset in every channel as well
INDEX = EXPORTED
NETWORKS = {"onnxruntime": ".onnx", "openvino": ".xml"}  # what each engine reads
PRODUCTS_AT_ONCE = 64  # whose arrays stay in memory


class Seen(NamedTuple):
    """What the backbone sees of one image: patches (1, h, w, D) and pooled (1, E), float32."""

    patches: np.ndarray
    pooled: np.ndarray


def is_exported(path: str | Path) -> bool:
    """Whether a folder holds an exported line."""
    return (Path(path) / INDEX).is_file()


@dataclass(frozen=True, eq=False)
class ExportedProduct:
    """One product: its calibration, and what the network takes.

    Attributes:
        calibration, familiarity, reference, pose: as of a `Product`.
        arrays: the network's inputs beside patches.
        whole: of the picture as a whole; empty where the product has no such voice.
        network: the file of its density.
    """

    calibration: ScoreCalibration | TwoVoices
    familiarity: Familiarity
    reference: Reference | None
    pose: Pose | None
    arrays: dict[str, np.ndarray]
    whole: dict[str, np.ndarray]
    network: str

    def map_threshold(self, rate: float | None, threshold: float) -> float:
        """Score of the map, in its unit, above which a place is conspicuous."""
        return map_threshold(self.calibration, rate, threshold)


class Products(Mapping[str, ExportedProduct]):
    """The products of an exported line by name, each read from its files when it is asked for."""

    def __init__(self, line: ExportedLine) -> None:
        self._line = line
        self._read = lru_cache(maxsize=PRODUCTS_AT_ONCE)(line.read_product)

    def __getitem__(self, name: str) -> ExportedProduct:
        if name in self._line.damaged:
            raise LineError(f"{name!r} is damaged and cannot be inspected: {self._line.damaged[name]}")
        if name not in self._line.entries:
            raise KeyError(name)
        return self._read(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._line.entries)

    def __len__(self) -> int:
        return len(self._line.entries)


class ExportedLine:
    """What an export holds; every file is checked against its SHA-256 now, and again when it is read.

    Args:
        path: its folder.
        threads: of the processor.
        damaged: as of an `Inspector`.

    Raises:
        LineError: there is no exported line, it is damaged, or of a later format.
    """

    def __init__(self, path: str | Path, *, threads: int, damaged: Damaged = "raise") -> None:
        self.path, self.threads = Path(path), threads
        self.damaged: dict[str, str] = {}  # products that were left out, with the reason
        try:
            index = self.path / INDEX
            self._index = parse_json(read_bytes(self.path, index), index)
            if self._index["format"] > FORMAT:
                raise LineError(
                    f"{self.path / INDEX}: expected format {FORMAT} or earlier, got {self._index['format']}: "
                    f"it was written by moleflow {self._index['library']}"
                )
            require_own_hash(self._index, index, "export again")
            backbone = self._index["backbone"]
            self.size = int(backbone["image_size"][0]), int(backbone["image_size"][1])
            self.grid = int(self._index["grid"][0]), int(self._index["grid"][1])
            self.intake = Intake.from_settings(self.size, self._index["intake"], cell=self._index["cell"])
            self.entries = {check_task_name(entry["name"]): entry for entry in self._index["products"]}
            self.engine = str(self._index["engine"])
            if self.engine not in ENGINES:
                raise LineError(f"{self.path / INDEX}: expected an engine among {', '.join(ENGINES)}")
            # What is needed later is missed now, not in the middle of a shift.
            self._scoring = {name: self._index["scoring"][name] for name in ("top_share", "top_least")}
            self._rate = float(self._index["false_alarm_rate"])
            self._mean_side, self._files = int(self._index["mean_side"]), dict(self._index["files"])
            self._rejected = float(self._index["router"]["false_rejection_rate"])
            self._overrides = {name: dict(entry["overrides"]) for name, entry in self.entries.items()}
            self._router = _Router(self._index["router"], self._arrays("router.safetensors"))
            self._witness: Witness | None = None  # exports of before have none
            if "witness" in self._index:
                self._witness = Witness.from_dict(self._index["witness"], self._router.dim)
            self._check_files(damaged)
        except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
            raise LineError(
                f"{self.path}: expected a complete exported line, but something is missing: {error!r}"
            ) from error
        self.products = Products(self)
        self._networks: dict[str, Running] = {}

    @property
    def limits(self) -> dict[str, float]:
        """Distance, in typical ones, up to which an image is near a product, by name."""
        return self._router.limits

    def require(self, name: str) -> str:
        """The name of a product as it is written; `TaskError` when there is none."""
        name = check_task_name(name)
        if name in self.damaged:
            return name  # what is to be read of it says why it cannot be
        if name not in self.entries:
            known = ", ".join(map(repr, self.entries))
            raise TaskError(f"{name!r} is no product of this line; known: {known}")
        return name

    def hold(self) -> None:
        """Reads the backbone and as many products as stay in memory; their files may be away later.

        Raises:
            LineError: a file was damaged since the line was opened, or a network cannot be run.
            BackboneError: the backbone computes something else here.
        """
        self._network("backbone")
        for name in list(self.entries)[:PRODUCTS_AT_ONCE]:
            self._network(self.products[name].network)

    def see(self, images: np.ndarray) -> list[Seen]:
        """What the backbone sees of images uint8 (B, 3, h, w), each by itself.

        Raises:
            LineError: it cannot be read or run.
            BackboneError: it computes something else here.
        """
        patches, pooled = self._network("backbone").of_images(images)
        return [Seen(patches[i : i + 1], pooled[i : i + 1]) for i in range(len(patches))]

    def decide(self, features: Seen) -> Decision:
        """Which product one image's features are nearest to."""
        return self._router.decide(features.patches[0].mean((0, 1), dtype=np.float64))

    def judge(self, name: str, features: Seen) -> Judgement:
        """What a product says of one image's features."""
        product, scoring = self.products[name], self._scoring
        inputs = {"patches": features.patches, **product.arrays}
        maps, ordinary = self._network(product.network)(inputs)
        place = mean_of_highest(maps[0], scoring["top_share"], scoring["top_least"])
        whole = whole_distance(product.whole, features.pooled[0]) if product.whole else None
        return judged(product.calibration, maps[0], place, whole, product.familiarity.of_map(ordinary[0]))

    def verdict(self, name: str) -> tuple[float | None, float]:
        """The false-alarm rate a product's threshold follows from (None: set by hand), and the threshold."""
        return verdict_of(self.products[name].calibration, self._overrides[name], self._rate)

    def read_product(self, name: str) -> ExportedProduct:
        """A product from its two files."""
        entry = self.entries[name]
        tensors = self._arrays(f"products/{name}.safetensors")
        try:
            told = json.loads(self._bytes(f"products/{name}.json"))
            weight = float(told["correction_weight"])
            return ExportedProduct(
                calibration=calibration_from_dict(told["calibration"]),
                familiarity=Familiarity.from_dict(told["strangeness"], rate=self._rejected),
                reference=Reference.from_dict(told["reference"]) if told["reference"] else None,
                pose=Pose.from_saved(part(tensors, "pose."), told["pose"]) if told["pose"] else None,
                arrays=network_inputs(
                    tensors, self.grid, mean_side=self._mean_side, correction_weight=weight
                ),
                whole=part(tensors, "whole."),
                network=str(entry["network"]),
            )
        except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
            raise LineError(f"{self.path}: product {name!r} is incomplete: {error!r}") from error

    def _network(self, name: str) -> Running:
        """A network, opened once; the backbone is shown the picture that the line remembers."""
        if name not in self._networks:
            file, *weights = self._network_files(name)
            # The bytes that were checked are the bytes that run, whatever becomes of the files.
            data = self._bytes(file)
            network: Network = (data, self._bytes(weights[0])) if weights else data
            try:
                run = Running(self.engine, network, self.threads)
                witness = self._witness if name == "backbone" else None
                seen = None if witness is None else run({"images": drawn(self.size, 1)})[0]
            except ImportError as error:
                raise LineError(
                    f"{self.path}: this line runs on {self.engine}, which is not installed: "
                    f"pip install {self.engine}"
                ) from error
            except Exception as error:  # of any engine: none says what it may raise
                raise LineError(f"{self.path / file}: {self.engine} cannot run it: {error}") from error
            if witness is not None and seen is not None:
                witness.check(rounded(seen.mean((0, 1, 2), dtype=np.float64).tolist()))
            self._networks[name] = run
        return self._networks[name]

    def _network_files(self, name: str) -> tuple[str, ...]:
        """What it computes, and its weights where they lie beside it."""
        file = f"{name}{NETWORKS[self.engine]}"
        return (file, f"{name}.bin") if self.engine == "openvino" else (file,)

    def _check_files(self, damaged: Damaged) -> None:
        """Reads every file once: what is damaged is missed now, not when the first image needs it."""
        own = {name: self._product_files(name) for name in self.entries}
        belonging = {file for files in own.values() for file in files}
        for file in dict.fromkeys((*self._network_files("backbone"), *self._files)):
            if file not in belonging:
                self._bytes(file)
        amiss: dict[str, LineError] = {}
        for file in dict.fromkeys(file for files in own.values() for file in files):
            try:
                self._bytes(file)
            except LineError as error:
                if damaged == "raise" or self._replaced():
                    raise
                amiss[file] = error
        for name, files in own.items():
            found = next((amiss[file] for file in files if file in amiss), None)
            if found is not None:
                self.damaged[name] = str(found)
                del self.entries[name]
        if not self.entries and amiss:  # nothing is left
            raise next(iter(amiss.values()))

    def _product_files(self, name: str) -> tuple[str, ...]:
        """All that a product needs, also what it shares with others."""
        network = self._network_files(str(self.entries[name]["network"]))
        return *network, f"products/{name}.safetensors", f"products/{name}.json"

    def _arrays(self, file: str) -> dict[str, np.ndarray]:
        try:
            return safetensors.numpy.load(self._bytes(file))
        except safetensors.SafetensorError as error:
            raise LineError(f"{self.path / file}: expected safetensors: {error}") from error

    def _bytes(self, file: str) -> bytes:
        """A file, if it is the one that was written."""
        expected = self._files.get(file)
        if expected is None:
            raise LineError(f"{self.path / INDEX}: expected the SHA-256 of {file}, found none")
        try:
            data = read_bytes(self.path, self.path / file)
            check_sha256(self.path / file, data, expected)
        except LineError as error:
            if self._replaced():
                raise LineError(
                    f"{self.path}: exported anew since it was opened; open it again to go on with {file}"
                ) from error
            raise
        return data

    def _replaced(self) -> bool:
        """Whether another export lies there now."""
        try:
            now = parse_json(read_bytes(self.path, self.path / INDEX), self.path / INDEX)
        except LineError:
            return False
        return bool(now != self._index)


class _Router:
    """Distances to the products, as of `routing.router.Router`."""

    def __init__(self, told: dict[str, Any], arrays: dict[str, np.ndarray]) -> None:
        self.names, self.shared = list(told["names"]), told["metric"] == "shared"
        self.typical = {name: float(value) for name, value in told["typical"].items()}
        self.limits = {n: math.inf if value is None else float(value) for n, value in told["limits"].items()}
        self._arrays = arrays
        self.dim = int(arrays["whiten"].shape[-1])  # of a descriptor

    def decide(self, descriptor: np.ndarray) -> Decision:
        """Of one image's descriptor (D,)."""
        gaps = np.square(self._whitened(descriptor) - self._arrays["means"]).sum(-1)
        distances = np.sqrt(gaps / len(descriptor))
        cost = distances if self.shared else np.square(distances) + self._arrays["log_dets"]
        order = np.argsort(cost, kind="stable")
        return nearest(self.names, distances.tolist(), order.tolist(), self.typical)

    def _whitened(self, descriptor: np.ndarray) -> np.ndarray:
        """(1, D) with a shared metric, else (T, D)."""
        found: np.ndarray = self._arrays["whiten"] @ descriptor
        return found
