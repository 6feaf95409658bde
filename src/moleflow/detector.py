"""The public face of a line: products are added one at a time, images of any of them are inspected."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .archive import Archive, fingerprint_of, restore
from .config import Cells, LineConfig, from_dict, to_dict
from .data.intensity import parse_intensity
from .data.sources import Source, list_sources
from .errors import CalibrationError, ConfigError, LineError, TaskError
from .features.extractor import Extractor
from .flow.expert import Base
from .inspection import inspect
from .intake import Intake, Picture
from .line import Line, rerouted_by
from .pose import Placement, Pose, thumbnail
from .pose_learning import WISHES, Wish, settle_pose
from .product import learn_product, split
from .results import Prediction, TaskInfo
from .routing.gaussian import describe
from .store import LineStore, check_task_name
from .training import learn_base

Progress = Callable[
    [str, float], None
]  # stage ("backbone", "base", "learning", "calibration") and share done

EXTRACT_BATCH = 8


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
        intensity: which of the camera's numbers is black and which white, for the life of the line: "auto"
            chooses by the first product's images; a number of bits (8, 10, 12, 14, 16), "LOW:HIGH" or
            (LOW, HIGH) says it; "full" maps each image by its type's full range.
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
        intensity: str | int | tuple[float, float] = "auto",
        config: LineConfig | None = None,
    ) -> None:
        if not 0 < false_alarm_rate < 1:
            raise ConfigError(f"a false-alarm rate lies between 0 and 1, got {false_alarm_rate}")
        self.config = config or LineConfig()
        self.seed, self.false_alarm_rate = seed, false_alarm_rate
        self.extractor = Extractor(backbone, weights=weights, image_size=image_size, device=device, seed=seed)
        self.intake = Intake(self.extractor.image_size)
        self._intensity = parse_intensity(intensity)  # what the intake is settled by, with the first product
        self._random_weights = str(weights) == "random"
        self._line = Line(false_alarm_rate)
        self._archive = Archive()
        self._learning = threading.Lock()

    # Products

    @property
    def path(self) -> Path | None:
        """The line's folder; None while it was never saved."""
        return self._archive.path

    @property
    def tasks(self) -> tuple[str, ...]:
        """Names of the products, in the order they were added."""
        return tuple(self._line.products)

    def info(self, name: str) -> TaskInfo:
        """What is known about a product; `TaskError` when there is none of this name."""
        line = self._line
        product, name = line.product(name), check_task_name(name)
        rate, threshold = line.verdict(name)
        return TaskInfo(
            name=name,
            version=self._archive.version(name, product),
            images=product.images,
            calibration=product.calibration.kind,
            calibration_images=len(product.calibration.scores),
            threshold=threshold,
            false_alarm_rate=rate,
            seconds=dict(product.seconds),
            parameters=product.parameters(),
            bytes=sum(t.numel() * t.element_size() for t in product.tensors().values()),
            rerouted=dict(line.rerouted.get(name, {})),
            pose=None if product.pose is None else product.pose.report,
        )

    def add_task(
        self, name: str, images: Any, *, pose: Wish = "auto", progress: Progress | None = None
    ) -> TaskInfo:
        """Learns a new product from good images; the first one also trains the base.

        Args:
            name: becomes a folder name; letters of any script, digits, inner spaces and dots.
            images: a folder, a pattern, a file, a list of paths, or arrays or tensors of images.
            pose: whether images are turned and moved to lie as the product's mean does: "on", "off", or
                "auto" where it helps on left-out good images.
            progress: told the stage and the share of it that is done.

        Raises:
            TaskError: the name is unusable or taken.
            ConfigError: another word for `pose`.
            ImageError: an image is unreadable, or there is none.
            TrainingError: learning did not stay finite.

        Whatever is raised, the line is as it was before.
        """
        name = check_task_name(name)
        if pose not in WISHES:
            raise ConfigError(f"expected a pose among {', '.join(WISHES)}, got {pose!r}")
        with self._learning:
            if name.casefold() in {known.casefold() for known in self.tasks}:
                raise TaskError(f"{name!r} is already a product of this line; update_task teaches it more")
            return self._learn(name, images, pose, progress)

    def update_task(self, name: str, images: Any, *, progress: Progress | None = None) -> TaskInfo:
        """Learns more of a known product from new good images, as a new version; others are untouched.

        Its earlier images were not kept, but features like theirs are drawn from what was learned and
        learned again beside the new ones. The threshold follows from the new images. A saved line keeps
        the earlier version, and `moleflow rollback` returns to it. A threshold set by hand is dropped,
        because scores have a new scale. A product that is aligned stays so, to the same mean. Arguments and
        errors as for `add_task`.
        """
        with self._learning:
            self._line.product(name)
            return self._learn(check_task_name(name), images, "off", progress)

    def remove_task(self, name: str) -> None:
        """Forgets a product; `TaskError` when there is none of this name. The base stays."""
        with self._learning:
            self._line = self._line.without(name, self.config.router)
            self._archive = self._archive.without(check_task_name(name))

    def set_threshold(
        self, name: str, *, false_alarm_rate: float | None = None, threshold: float | None = None
    ) -> TaskInfo:
        """Changes when a product's images are called defective, without learning.

        Args:
            name: the product.
            false_alarm_rate: share of good images that may be called defective.
            threshold: or the score itself, in the unit of `pred_score`.
        """
        product = self._line.product(name)
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
            self._line.product(task)
            task = check_task_name(task)
        return self._stream(line, iter(list_sources(images)), task, batch_size)

    def _stream(
        self, line: Line, sources: Iterator[tuple[Source, Any]], task: str | None, batch_size: int
    ) -> Iterator[Prediction]:
        while chunk := list(islice(sources, batch_size)):
            pictures = self.intake.read_all(chunk)
            for picture, features in zip(pictures, self._features(pictures).split(1), strict=True):
                yield inspect(line, picture, features, see=self._features, task=task)

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
        self._archive = self._archive.write(self._line, store, self._settings())

    def _settings(self) -> dict[str, Any]:
        return {
            "backbone": self.extractor.describe(),
            "random_weights": self._random_weights,
            "seed": self.seed,
            "false_alarm_rate": self.false_alarm_rate,
            "config": to_dict(self.config),
            "intake": self.intake.settings(),
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
            detector.intake = Intake.from_settings(detector.extractor.image_size, settings.get("intake"))
            detector._line, detector._archive = restore(
                record,
                store.path,
                detector.extractor,
                detector.config,
                false_alarm_rate=detector.false_alarm_rate,
            )
        except (KeyError, TypeError, RuntimeError, AttributeError) as error:
            raise LineError(
                f"{store.path}: expected a complete line, but something is missing: {error}"
            ) from error
        return detector

    # Learning

    def _learn(self, name: str, images: Any, wish: Wish, progress: Progress | None) -> TaskInfo:
        tell = progress or _silent
        started = time.perf_counter()
        sources, intake = list_sources(images), self.intake
        if self._line.base is None:
            intake = intake.settled(self._intensity, sources)
        features = self._extract(sources, intake, tell)
        seconds, routed = {"backbone": time.perf_counter() - started}, None
        started = time.perf_counter()
        previous = self._line.products.get(name)
        pose = previous.pose if previous else self._settle_pose(sources, intake, features, wish)
        if pose is not None and pose.template is not None:
            routed = describe(features)[:, None, None]  # the router meets images as they come
            features = self._extract(
                sources, intake, tell, stage="pose", place=_placing(pose), window=pose.window
            )
        if pose is not None and pose.report.degrees is not None:
            seconds["pose"] = time.perf_counter() - started
        base, base_hash = self._line.base, self._line.base_hash
        if base is None:
            started = time.perf_counter()
            base = self._learn_base(features, tell)
            base_hash = fingerprint_of(base, self.extractor, self.config)
            seconds["base"] = time.perf_counter() - started
        product = learn_product(
            base,
            features,
            self.config,
            seed=self.seed,
            progress=tell,
            previous=previous,
            routed=routed,
        )
        product = replace(product, pose=pose, seconds=seconds | product.seconds)
        before = self._line
        overrides = dict(before.overrides)
        if "threshold" in overrides.get(name, {}):
            del overrides[name]
        after = before.with_products(
            before.products | {name: product},
            self.config.router,
            base=base,
            base_hash=base_hash,
            overrides=overrides,
        )
        self.intake = intake
        self._line = replace(after, rerouted=before.rerouted | {name: rerouted_by(name, before, after)})
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

    def _settle_pose(
        self, sources: list[tuple[Source, Any]], intake: Intake, features: Tensor, wish: Wish
    ) -> Pose:
        def thumbnails(numbers: Sequence[int]) -> Tensor:
            pictures = (intake.read(*sources[number]) for number in numbers)
            return torch.stack([thumbnail(picture.pixels, picture.size) for picture in pictures])

        def see(numbers: Sequence[int], placements: Sequence[Placement], window: Tensor) -> Tensor:
            chosen = [sources[number] for number in numbers]
            return self._extract(
                chosen, intake, _silent, place=lambda number, _: placements[number], window=window
            )

        cells = self.config.scoring.cells or Cells()
        return settle_pose(wish, features, cells=cells, thumbnails=thumbnails, see=see)

    def _extract(
        self,
        sources: list[tuple[Source, Any]],
        intake: Intake,
        tell: Progress,
        *,
        stage: str = "backbone",
        place: Callable[[int, Picture], Placement | None] = lambda number, picture: None,
        window: Tensor | None = None,
    ) -> Tensor:
        """Features (N, h, w, D) of all images, in 16 bits, computed once and reused by every step.

        `place` says of an image, by number and picture, how its object lies, where it is to be aligned, and
        `window` what is kept of it then.
        """
        parts = []
        for start in range(0, len(sources), EXTRACT_BATCH):
            chunk = sources[start : start + EXTRACT_BATCH]
            pictures = [
                picture.aligned(place(start + number, picture), window)
                for number, picture in enumerate(intake.read_all(chunk))
            ]
            parts.append(self._features(pictures).half())
            tell(stage, min(1.0, (start + len(chunk)) / len(sources)))
        return torch.cat(parts)

    def _features(self, pictures: list[Picture]) -> Tensor:
        return self.extractor.features(self.extractor.stack([picture.pixels for picture in pictures]))


def _placing(pose: Pose) -> Callable[[int, Picture], Placement | None]:
    return lambda number, picture: pose.place(picture.pixels, picture.size)


def _silent(stage: str, share: float) -> None:
    """Progress nobody asked for."""
