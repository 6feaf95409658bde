"""The line: products are added one at a time, images of any of them are inspected, nothing is forgotten."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .config import LineConfig, from_dict, to_dict
from .data.images import as_image, find_images, resize
from .errors import CalibrationError, ConfigError, ImageError, LineError, TaskError
from .features.extractor import Extractor
from .flow.expert import Base
from .product import Product, learn_product, split
from .results import Prediction, Routing, TaskInfo
from .routing.gaussian import describe
from .routing.router import Router
from .store import LineStore, TaskRecord, Transaction, check_task_name, fingerprint
from .training import learn_base

Progress = Callable[
    [str, float], None
]  # stage ("backbone", "base", "learning", "calibration") and share done

EXTRACT_BATCH = 8


@dataclass(frozen=True, eq=False)
class _Line:
    """Everything learned so far; replaced whole, never changed, so that readers in other threads are safe."""

    base: Base | None = None
    base_hash: str = ""
    products: dict[str, Product] = field(default_factory=dict)
    router: Router | None = None
    overrides: dict[str, dict[str, Any]] = field(default_factory=dict)  # verdicts changed by hand
    rerouted: dict[str, dict[str, int]] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class _Saved:
    """A product as it stands on disk."""

    version: str | None  # None once another process has removed it
    product: Product
    overrides: dict[str, Any]


class Detector:
    """Learns products one after another from good images and inspects images of any of them.

    The first product also trains the shared base, which is then frozen; every product keeps its own
    expert. Inspecting may be done from several threads at once; learning, from one at a time.

    Args:
        backbone: a preset of the backbone table, or "timm:<tag>@<layers>".
        weights: local file with the backbone's weights; None for embedded ones or timm's hub; "random"
            for seeded random ones.
        image_size: side, or (height, width), images are resized to; None for the backbone's own.
        device: "auto" takes CUDA, then MPS, then the CPU.
        seed: fixes everything random; the same seed, machine and number of threads give the same bytes.
        false_alarm_rate: share of good images that may be called defective.
        config: every other option.

    Raises:
        ConfigError: an impossible option.
        BackboneError: weights that are missing or another model's.
    """

    def __init__(
        self,
        backbone: str = "efficientnet_lite0",
        *,
        weights: str | Path | None = None,
        image_size: int | tuple[int, int] | None = None,
        device: str | torch.device | None = "auto",
        seed: int = 0,
        false_alarm_rate: float = 0.01,
        config: LineConfig | None = None,
    ) -> None:
        if not 0 < false_alarm_rate < 1:
            raise ConfigError(f"a false-alarm rate lies between 0 and 1, got {false_alarm_rate}")
        self.config = config or LineConfig()
        self.seed, self.false_alarm_rate = seed, false_alarm_rate
        self.extractor = Extractor(backbone, weights=weights, image_size=image_size, device=device, seed=seed)
        self._random_weights = str(weights) == "random"
        self.path: Path | None = None
        self._line = _Line()
        self._saved: dict[str, _Saved] = {}
        self._removed: set[str] = set()  # names of saved products removed since, also if taught again
        self._learning = threading.Lock()

    # Products

    @property
    def tasks(self) -> tuple[str, ...]:
        """Names of the products, in the order they were added."""
        return tuple(self._line.products)

    def info(self, name: str) -> TaskInfo:
        """What is known about a product; `TaskError` when there is none of this name."""
        line, product = self._line, self._product(name)
        name = check_task_name(name)
        saved = self._saved.get(name)
        rate, threshold = self._verdict(line, name)
        return TaskInfo(
            name=name,
            version=saved.version if saved and saved.product is product else None,
            images=product.images,
            calibration=product.calibration.kind,
            calibration_images=len(product.calibration.scores),
            threshold=threshold,
            false_alarm_rate=rate,
            seconds=dict(product.seconds),
            parameters=product.parameters(),
            bytes=sum(t.numel() * t.element_size() for t in product.tensors().values()),
            rerouted=dict(line.rerouted.get(name, {})),
        )

    def add_task(self, name: str, images: Any, *, progress: Progress | None = None) -> TaskInfo:
        """Learns a new product from good images; the first one also trains the base.

        Args:
            name: becomes a folder name; letters of any script, digits, inner spaces and dots.
            images: a folder, a pattern, a file, a list of paths, or arrays or tensors of images.
            progress: told the stage and the share of it that is done.

        Raises:
            TaskError: the name is unusable or taken.
            ImageError: an image is unreadable, or there is none.
            TrainingError: learning did not stay finite.

        Whatever is raised, the line is as it was before.
        """
        name = check_task_name(name)
        with self._learning:
            if name.casefold() in {known.casefold() for known in self.tasks}:
                raise TaskError(f"{name!r} is already a product of this line; update_task teaches it more")
            return self._learn(name, images, progress)

    def update_task(self, name: str, images: Any, *, progress: Progress | None = None) -> TaskInfo:
        """Learns more of a known product from new good images, as a new version; others are untouched.

        Its earlier images were not kept, but features like theirs are drawn from what was learned and
        learned again beside the new ones. The threshold follows from the new images. A saved line keeps
        the earlier version, and `moleflow rollback` returns to it. A threshold set by hand is dropped,
        because scores have a new scale. Arguments and errors as for `add_task`.
        """
        with self._learning:
            self._product(name)
            return self._learn(check_task_name(name), images, progress)

    def remove_task(self, name: str) -> None:
        """Forgets a product; `TaskError` when there is none of this name. The base stays."""
        with self._learning:
            self._product(name)
            name = check_task_name(name)
            self._line = self._with(
                _without(self._line.products, name),
                overrides=_without(self._line.overrides, name),
                rerouted=_without(self._line.rerouted, name),
            )
            if name in self._saved:
                self._removed.add(name)
                del self._saved[name]

    def set_threshold(
        self, name: str, *, false_alarm_rate: float | None = None, threshold: float | None = None
    ) -> TaskInfo:
        """Changes when a product's images are called defective, without learning.

        Args:
            name: the product.
            false_alarm_rate: share of good images that may be called defective.
            threshold: or the score itself, in the unit of `pred_score`.
        """
        product = self._product(name)
        if (false_alarm_rate is None) == (threshold is None):
            raise ConfigError("expected a false-alarm rate or a threshold, exactly one of them")
        if false_alarm_rate is not None:
            product.calibration.threshold(false_alarm_rate)
            verdict = {"false_alarm_rate": float(false_alarm_rate)}
        else:
            if threshold is None or not np.isfinite(threshold):
                raise CalibrationError(f"a threshold is a finite number, got {threshold}")
            verdict = {"threshold": float(threshold)}
        with self._learning:
            overrides = self._line.overrides | {check_task_name(name): verdict}
            self._line = replace(self._line, overrides=overrides)
        return self.info(name)

    # Inspection

    def predict(self, images: Any, *, task: str | None = None, batch_size: int = 8) -> list[Prediction]:
        """Inspects images; nobody needs to say which product they show.

        Args:
            images: as for `add_task`; products may be mixed.
            task: the product, when it is known; no routing is done then.
            batch_size: images per pass of the backbone; results do not depend on it beyond rounding.

        Raises:
            TaskError: the line knows no product, or not this one.
            ImageError: an image is unreadable, or there is none.
        """
        return list(self.stream(images, task=task, batch_size=batch_size))

    def stream(self, images: Any, *, task: str | None = None, batch_size: int = 8) -> Iterator[Prediction]:
        """As `predict`, one result after the other, for folders of any size."""
        if not isinstance(batch_size, int) or batch_size < 1:
            raise ConfigError(f"expected a batch size of at least 1, got {batch_size}")
        line = self._line
        if line.base is None or not line.products:
            raise TaskError("this line knows no product yet; teach it one with add_task")
        if task is not None:
            self._product(task)
            task = check_task_name(task)
        return self._stream(line, iter(_sources(images)), task, batch_size)

    def _stream(
        self, line: _Line, sources: Iterator[tuple[Path | int, Any]], task: str | None, batch_size: int
    ) -> Iterator[Prediction]:
        while chunk := list(islice(sources, batch_size)):
            pictures = [as_image(value, where=_where(source)) for source, value in chunk]
            features = self._features(pictures)
            for (source, _), picture, one in zip(chunk, pictures, features.split(1), strict=True):
                yield self._inspect(line, one, task, source, (picture.shape[0], picture.shape[1]))

    @torch.no_grad()
    def _inspect(
        self, line: _Line, features: Tensor, task: str | None, source: Path | int, size: tuple[int, int]
    ) -> Prediction:
        """One image's features (1, h, w, D) to its verdict.

        Images pass one by one once the backbone has seen the batch: their features fit the processor's
        cache, and what is said of an image cannot depend on its neighbours in the batch.
        """
        assert line.base is not None
        assert line.router is not None
        decision = None if task else line.router.decide(describe(features))[0]
        name = task or decision.task  # type: ignore[union-attr]
        product = line.products[name]
        maps, scores, strangeness = product.inspect(line.base, features)
        score = float(scores[0])
        if not np.isfinite(score):
            raise ImageError(f"{_where(source)}: its score is not finite ({score})")
        routing = None
        if decision is not None:
            routing = Routing(
                distance=decision.distance,
                distance_limit=line.router.limits[name],
                strangeness=float(strangeness[0]),
                strangeness_limit=product.strangeness_limit,
                margin=decision.margin,
                distances=decision.distances,
            )
        _, threshold = self._verdict(line, name)
        return Prediction(
            source=source,
            task=name,
            known=routing is None or routing.known,
            pred_score=score,
            p_value=product.calibration.p_value(score),
            threshold=threshold,
            pred_label=score > threshold,
            patch_map=maps[0].cpu().numpy(),
            image_size=size,
            routing=routing,
        )

    # On disk

    def save(self, path: str | Path | None = None) -> None:
        """Writes what changed since it was loaded or saved; a crash leaves the line as before or after.

        Products that other processes added to the same line meanwhile stay.

        Args:
            path: folder of the line; the one it came from by default.

        Raises:
            LineError: the folder holds another line, cannot be written, or nothing was learned yet.
            TaskError: another process added a product of the same name meanwhile.
        """
        if path is None and self.path is None:
            raise LineError("expected a folder to save the line to, got none: it was never saved before")
        store = LineStore(path if path is not None else self.path)  # type: ignore[arg-type]
        if self._line.base is None:
            raise LineError(f"{store.path}: nothing to save, the line has learned no product yet")
        if self.path is not None and store.exists() and store.path.resolve() == self.path:
            self._save_changes(store)
        else:
            self._save_anew(store)
        self.path = store.path.resolve()

    def _save_anew(self, store: LineStore) -> None:
        assert self._line.base is not None
        records = tuple(self._record(name) for name in self.tasks)
        store.create(
            self._settings(),
            self._line.base.state_dict(),
            fingerprint=self._line.base_hash,
            tasks=records,
        )
        self._note_saved({task.name: task.version for task in store.read(tensors=False).tasks})

    def _save_changes(self, store: LineStore) -> None:
        with store.transaction() as transaction:
            current = store.read(tensors=False)
            if current.fingerprint != self._line.base_hash:
                raise LineError(
                    f"{store.path}: expected the line this one came from, found one with another base"
                )
            on_disk = {task.name: task.version for task in current.tasks}
            for name in sorted(self._removed):
                if name in on_disk:
                    transaction.remove(name)
            versions = {name: self._save_product(transaction, name, on_disk) for name in self.tasks}
        self._note_saved(versions)

    def _save_product(
        self, transaction: Transaction, name: str, on_disk: dict[str, str | None]
    ) -> str | None:
        """Writes a product if it changed; its version, None once another process has removed it."""
        saved, product = self._saved.get(name), self._line.products[name]
        if saved is not None and saved.product is product:
            overrides = self._line.overrides.get(name, {})
            if on_disk.get(name) == saved.version and saved.overrides != overrides:
                transaction.override(name, dict.fromkeys(saved.overrides, None) | overrides)
            return saved.version if name in on_disk else None
        if saved is None and name in on_disk and name not in self._removed:
            raise TaskError(f"{name!r} was added to the line by another process meanwhile")
        return transaction.put(self._record(name), fingerprint=self._line.base_hash)

    def _note_saved(self, versions: dict[str, str | None]) -> None:
        self._removed = set()
        self._saved = {
            name: _Saved(versions[name], product, dict(self._line.overrides.get(name, {})))
            for name, product in self._line.products.items()
        }

    def _record(self, name: str) -> TaskRecord:
        product = self._line.products[name]
        rerouted = self._line.rerouted.get(name, {})
        return TaskRecord(
            name=name,
            version=None,
            tensors=product.tensors(),
            info=product.info() | {"rerouted": rerouted},
            overrides=dict(self._line.overrides.get(name, {})),
        )

    def _fingerprint(self, base: Base) -> str:
        """Of all that an expert was learned on: base, backbone and options."""
        shared = {"backbone": self.extractor.describe(), "config": to_dict(self.config)}
        text = json.dumps(shared, sort_keys=True).encode()
        return fingerprint(
            base.state_dict() | {"settings": torch.frombuffer(bytearray(text), dtype=torch.uint8)}
        )

    def _settings(self) -> dict[str, Any]:
        return {
            "backbone": self.extractor.describe(),
            "random_weights": self._random_weights,
            "seed": self.seed,
            "false_alarm_rate": self.false_alarm_rate,
            "config": to_dict(self.config),
        }

    @classmethod
    def load(
        cls,
        path: str | Path,
        *,
        weights: str | Path | None = None,
        device: str | torch.device | None = "auto",
    ) -> Detector:
        """Reads a saved line; what it says is what it said before saving, to the bit.

        Args:
            path: the line's folder.
            weights: local file with the backbone's weights, where they are not embedded.
            device: as for `Detector`.

        Raises:
            LineError: there is no line, or it is damaged or of another format.
            BackboneError: the weights are not the ones the line was learned with.
        """
        store = LineStore(path)
        record = store.read()
        settings = record.settings
        try:
            if weights is None and settings["random_weights"]:
                weights = "random"
            detector = cls(
                settings["backbone"]["name"],
                weights=weights,
                image_size=tuple(settings["backbone"]["image_size"]),
                device=device,
                seed=settings["seed"],
                false_alarm_rate=settings["false_alarm_rate"],
                config=from_dict(LineConfig, settings["config"]),
            )
            detector.extractor.check_same(settings["backbone"])
            detector._restore(record.base, record.fingerprint, record.tasks)
        except (KeyError, TypeError, RuntimeError, AttributeError) as error:
            raise LineError(
                f"{store.path}: expected a complete line, but something is missing: {error}"
            ) from error
        detector.path = store.path.resolve()
        return detector

    def _restore(self, tensors: dict[str, Tensor], base_hash: str, records: Sequence[TaskRecord]) -> None:
        base = Base(self.extractor.grid, self.extractor.dim, self.config.flow)
        base.load_state_dict(tensors)
        base = base.requires_grad_(False).eval().to(self.extractor.device)
        if self._fingerprint(base) != base_hash:
            raise LineError(
                f"expected base and settings with fingerprint {base_hash}, got {self._fingerprint(base)}"
            )
        products = {r.name: Product.from_saved(base, self.config, r.tensors, r.info) for r in records}
        self._line = self._with(
            products,
            base=base,
            base_hash=base_hash,
            overrides={r.name: dict(r.overrides) for r in records if r.overrides},
            rerouted={r.name: r.info.get("rerouted", {}) for r in records},
        )
        self._saved = {r.name: _Saved(r.version, products[r.name], dict(r.overrides)) for r in records}

    # Learning

    def _learn(self, name: str, images: Any, progress: Progress | None) -> TaskInfo:
        tell = progress or _silent
        started = time.perf_counter()
        features = self._extract(images, tell)
        seconds = {"backbone": time.perf_counter() - started}
        base, base_hash = self._line.base, self._line.base_hash
        if base is None:
            started = time.perf_counter()
            base = self._learn_base(features, tell)
            base_hash = self._fingerprint(base)
            seconds["base"] = time.perf_counter() - started
        product = learn_product(
            base,
            features,
            self.config,
            seed=self.seed,
            progress=tell,
            previous=self._line.products.get(name),
        )
        product = replace(product, seconds=seconds | product.seconds)
        before = self._line
        overrides = dict(before.overrides)
        if "threshold" in overrides.get(name, {}):
            del overrides[name]
        after = self._with(
            before.products | {name: product}, base=base, base_hash=base_hash, overrides=overrides
        )
        rerouted = before.rerouted | {name: _rerouted(before, after, name)}
        self._line = replace(after, rerouted=rerouted)
        return self.info(name)

    def _learn_base(self, features: Tensor, tell: Progress) -> Base:
        # What is held out to calibrate the first product must be unseen by the base as well.
        learn, _, _ = split(len(features), self.config, self.seed)
        return learn_base(
            features[learn],
            self.config.flow,
            self.config.training,
            seed=self.seed,
            progress=lambda share: tell("base", share),
        )

    def _extract(self, images: Any, tell: Progress) -> Tensor:
        """Features (N, h, w, D) of all images, in 16 bits, computed once and reused by every step."""
        sources = _sources(images)
        parts = []
        for start in range(0, len(sources), EXTRACT_BATCH):
            chunk = sources[start : start + EXTRACT_BATCH]
            pictures = [as_image(value, where=_where(source)) for source, value in chunk]
            parts.append(self._features(pictures).half())
            tell("backbone", min(1.0, (start + len(chunk)) / len(sources)))
        return torch.cat(parts)

    def _features(self, pictures: Sequence[np.ndarray]) -> Tensor:
        resized = [resize(picture, self.extractor.image_size) for picture in pictures]
        return self.extractor.features(self.extractor.stack(resized))

    def _with(self, products: dict[str, Product], **changes: Any) -> _Line:
        """The line with other products, and the router that goes with them."""
        statistics = {name: product.descriptors for name, product in products.items()}
        router = Router(statistics, self.config.router) if products else None
        return replace(self._line, products=products, router=router, **changes)

    def _product(self, name: str) -> Product:
        try:
            return self._line.products[check_task_name(name)]
        except KeyError:
            known = ", ".join(repr(task) for task in self.tasks) or "none"
            raise TaskError(f"{name!r} is no product of this line; known: {known}") from None

    def _verdict(self, line: _Line, name: str) -> tuple[float | None, float]:
        """The false-alarm rate a product's threshold follows from (None: set by hand), and the threshold."""
        calibration = line.products[name].calibration
        return calibration.verdict(line.overrides.get(name, {}), self.false_alarm_rate)


def _rerouted(before: _Line, after: _Line, added: str) -> dict[str, int]:
    """How many remembered good images of each older product are routed differently since `added`."""
    if before.router is None or after.router is None:
        return {}
    changed = {}
    for name, product in before.products.items():
        if name == added:
            continue
        old = [decision.task for decision in before.router.decide(product.descriptors.witnesses)]
        new = [decision.task for decision in after.router.decide(product.descriptors.witnesses)]
        count = sum(a != b for a, b in zip(old, new, strict=True))
        if count:
            changed[name] = count
    return changed


def _sources(images: Any) -> list[tuple[Path | int, Any]]:
    """What was passed in, one image at a time, each with the name it is reported under."""
    if isinstance(images, str | Path):
        return [(path, path) for path in find_images(images)]
    if isinstance(images, np.ndarray | Tensor):
        items = list(images) if images.ndim == 4 else [images]
    else:
        try:
            items = list(images)
        except TypeError:
            items = [images]
    paths = [item for item in items if isinstance(item, str | Path)]
    if items and len(paths) == len(items):
        return [(path, path) for path in find_images(paths)]
    if not items:
        raise ImageError("expected at least one image, got none")
    return list(enumerate(items))


def _where(source: Path | int) -> str:
    return f"image {source}" if isinstance(source, int) else str(source)


def _without(table: dict[str, Any], name: str) -> dict[str, Any]:
    return {key: value for key, value in table.items() if key != name}


def _silent(stage: str, share: float) -> None:
    """Progress nobody asked for."""
