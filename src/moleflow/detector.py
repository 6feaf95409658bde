"""The public face of a line: products are added one at a time, images of any of them are inspected."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, overload

import torch

from .config import LineConfig, a_number, a_seed, override, stored_line, to_dict, with_layers
from .data.intensity import parse_intensity
from .data.shapes import Proposal
from .data.sources import Errors, Source, list_sources
from .errors import CalibrationError, ConfigError, LineError, TaskError
from .features.backbones import BackboneSpec, stored_backbone
from .features.extractor import Extractor
from .features.runtime import RuntimeName
from .inspection import check_stream, inspect_all
from .intake import Intake
from .learning.known_defects import KnownDefects
from .learning.lesson import LessonOptions, Progress, Sources, learn, sources_of
from .learning.mixed import Told, check_names, learn_mixed
from .learning.pose import WISHES, Wish
from .learning.sight import Sight
from .line.archive import Archive, restore
from .line.beginning import Beginning, FitWish, Wishes, begin, intake_of, see_each
from .line.judges import judge_for
from .line.record import Line
from .line.shelf import MEMORY
from .monitor import observe, read_monitor
from .presets import DEFAULT, get_preset
from .results import Failure, Prediction, TaskInfo
from .sizes import total
from .store import Damaged, LineStore, check_new_name, check_task_name
from .store.names import folded_name
from .verdict.promise import promise
from .verdict.watch import Report, judge


class Detector:
    """Learns products one after another from good images and inspects images of any of them.

    All products share a base that comes with the library or, for other backbones and options, one that the
    first product trains; it never moves afterwards. Every product keeps its own expert. Inspecting may be
    done from several threads at once; learning, from one at a time.

    Args:
        backbone: a row of the backbone table by name, perhaps with other layers, "timm:<tag>@<layers>", or
            a `BackboneSpec`.
        weights: local file with the backbone's weights; None for embedded ones or timm's hub; "random"
            for seeded random ones.
        image_size: side, or (height, width), images are brought to, with `tiles` each tile of them. None for
            the backbone's own; where the first product's images are all of one oblong shape, for an oblong
            size of about as many pixels.
        smallest_defect: in pixels of the first product's images; the size is raised until such a defect
            covers about two cells of the patch grid, as far as four times the backbone's own pixels.
        fit: what becomes of images of another shape: "squeeze", "letterbox", or "auto" for what left-out
            good images speak for where the first product's images are of several shapes.
        tiles: (rows, columns) of overlapping tiles that large images are seen in.
        device: "auto" takes CUDA, then MPS, then the CPU.
        runtime: what inspects on the CPU: "torch", "onnxruntime", "openvino" (the backbone alone), or "auto"
            for the fastest that is installed and says what eager torch says; see docs/runtime.md.
        seed: fixes everything random; on the processor the same seed, machine and number of threads give the
            same bytes. CUDA adds some gradients up in another order at every run.
        false_alarm_rate: share of good images that may be called defective.
        intensity: which of the camera's numbers is black and which white, for the life of the line: "auto"
            chooses by the first product's images; a number of bits (8, 10, 12, 14, 16), "LOW:HIGH" or
            (LOW, HIGH) says it; "full" maps each image by its type's full range.
        preset: every other option, by the name of a set of them: see `moleflow.presets`. "default" without
            it.
        base: what all products share: "auto" for what comes with the library, where it has a base for the
            backbone and the options, or "learn" for one that the first product trains; by default as the
            preset has it.
        config: or the options themselves.

    Raises:
        ConfigError: an impossible option.
        BackboneError: weights that are missing or another model's.
    """

    def __init__(
        self,
        backbone: str | BackboneSpec = "efficientnet_lite0",
        *,
        weights: str | Path | None = None,
        image_size: int | tuple[int, int] | None = None,
        smallest_defect: float | None = None,
        fit: FitWish = "auto",
        tiles: tuple[int, int] | None = None,
        device: str | torch.device | None = "auto",
        runtime: RuntimeName = "auto",
        seed: int = 0,
        false_alarm_rate: float = 0.01,
        intensity: str | int | tuple[float, float] = "auto",
        preset: str | None = None,
        base: Literal["auto", "learn"] | None = None,
        config: LineConfig | None = None,
    ) -> None:
        if not 0 < a_number(false_alarm_rate, "a false-alarm rate") < 1:
            raise ConfigError(f"a false-alarm rate lies between 0 and 1, got {false_alarm_rate}")
        if config is not None and not isinstance(config, LineConfig):
            raise ConfigError(f"expected a LineConfig as config, got {type(config).__name__}")
        if preset is not None and config is not None:
            raise ConfigError("expected a preset or a config, got both")
        self.preset = None if config is not None else get_preset(preset or DEFAULT).name
        self.seed, self.false_alarm_rate = a_seed(seed), float(false_alarm_rate)
        # What extractor and intake are settled by, with the first product.
        self._wishes = Wishes(image_size, smallest_defect, fit, parse_intensity(intensity))
        self._at_size = partial(
            Extractor, backbone, weights=weights, tiles=tiles, device=device, runtime=runtime, seed=self.seed
        )
        self.extractor = self._at_size(image_size=image_size)
        self.config = with_layers(
            config or get_preset(preset or DEFAULT).at(self.extractor.dim), self.extractor.widths
        )
        _require_layers(self.config, self.extractor)
        if base is not None:
            self.config = override(self.config, {"training.base": base})
        self._settled = False
        self._random_weights = str(weights) == "random"
        asks = judge_for(self.extractor.device, runtime)
        self._line = Line(self.false_alarm_rate, intake_of(self.extractor), asks=asks)
        self._archive = Archive()
        self._damaged: dict[str, str] = {}
        self._learning = threading.Lock()
        self._saving = threading.Lock()  # line and archive go together, though a lesson is under way

    # Products

    @property
    def path(self) -> Path | None:
        """The line's folder; None while it was never saved."""
        return self._archive.path

    @property
    def intake(self) -> Intake:
        """From an image to what the backbone sees; settled with the first product."""
        return self._line.intake

    @property
    def tasks(self) -> tuple[str, ...]:
        """Names of the products, in the order they were added."""
        return tuple(self._line.products)

    @property
    def damaged(self) -> dict[str, str]:
        """Products that were left out because their files are damaged, with the reason; see `load`."""
        return dict(self._damaged)

    def settle(self, images: Any) -> Proposal:
        """Settles size, fit and intensity of a line that has learned nothing, by these images.

        The first product does so by itself; this is for who wants to know beforehand: `extractor` and
        `intake` are the line's own afterwards. Images as for `add_task`.

        Raises:
            ImageError: no image of those looked at is readable, or they hold different kinds of numbers.
            ConfigError: an intensity that is not for such images.
            LineError: the line is settled already.
        """
        with self._learning:
            if self._line.base is not None or self._settled:
                raise LineError("expected a line that has learned nothing: this one is settled already")
            begun = self._begin(list_sources(images, errors="yield"))
            self.extractor, self._line = begun.extractor, replace(self._line, intake=begun.intake)
            self._settled = True
            return begun.proposal

    def _begin(self, sources: Sequence[tuple[Source, Any]]) -> Beginning:
        return begin(self.extractor, self._wishes, sources, at_size=self._resized)

    def _resized(self, size: tuple[int, int]) -> Extractor:
        return self._at_size(image_size=size)

    def info(self, name: str) -> TaskInfo:
        """What is known about a product; `TaskError` when there is none of this name."""
        line = self._line
        product, name = line.product(name), check_task_name(name)
        rate, threshold = line.verdict(name)
        parts = product.parts()
        return TaskInfo(
            name=name,
            version=self._archive.version(line, name),
            images=product.images,
            calibration=product.calibration.kind,
            calibration_images=product.calibration.images,
            threshold=threshold,
            false_alarm_rate=rate,
            seconds=dict(product.seconds),
            parameters=total(parts).numbers,
            bytes=total(parts).bytes,
            parts=parts,
            rerouted=dict(line.rerouted.get(name, {})),
            unreadable=line.unreadable.get(name, ()),
            promise=promise(product.calibration, rate, threshold),
            lesson=line.lesson(name),
            pose=None if product.pose is None else product.pose.report,
            known_defects=product.known_defects,
            changes=line.changes.get(name),
        )

    def add_task(
        self,
        name: str,
        images: Any,
        *,
        groups: Sequence[str] | None = None,
        strict: bool = False,
        drop_suspicious: bool = False,
        pose: Wish = "auto",
        progress: Progress | None = None,
    ) -> TaskInfo:
        """Learns a new product from good images; the first one may also train the base.

        Args:
            name: becomes a folder name; letters of any script, digits, inner spaces and dots.
            images: a folder, a pattern, a file, a list of paths or a `.txt` or `.csv` file of them, or arrays
                or tensors of images.
            groups: a label for each image, shared by those that belong together, such as a session or a
                lot; see `data.groups.group_labels`.
            strict: refuse any unreadable image. Otherwise up to one in twenty is left out and listed in
                `TaskInfo.unreadable`.
            pose: whether images are turned and moved to lie as the product's mean does: "on", "off", or
                "auto" where it helps on left-out good images.
            progress: told the stage and the share of it that is done.
            drop_suspicious: leave out images that something speaks against, see `TaskInfo.suspects`;
                they are listed either way, and none is left out otherwise.

        Raises:
            TaskError: the name is unusable or taken.
            ImageError: too many images are unreadable, or there is none, or none is left.
            ConfigError: there are not as many group labels as images, or another word for `pose`.
            TrainingError: learning did not stay finite.

        Whatever is raised, the line is as it was before.
        """
        name = check_new_name(name)
        _check_pose(pose)
        with self._learning:
            if folded_name(name) in map(folded_name, self.tasks):
                raise TaskError(f"{name!r} is already a product of this line; update_task teaches it more")
            if folded_name(name) in map(folded_name, self._damaged):
                raise TaskError(f"{name!r} is on this line, damaged: roll it back or remove it")
            options = LessonOptions(groups, strict, drop_suspicious, pose)
            return self._learn(name, sources_of(images, options), options, progress)

    def add_tasks(
        self,
        images: Any,
        names: Sequence[str] | None = None,
        *,
        groups: Sequence[str] | None = None,
        strict: bool = False,
        drop_suspicious: bool = False,
        pose: Wish = "auto",
        found: Told | None = None,
        progress: Progress | None = None,
    ) -> list[TaskInfo]:
        """Finds the products that mixed good images show, and learns each as one of its own: all or none.

        Images are of one product where the router could not tell them apart. On a new line the base learns
        from the first product found. Fewer than five images are no product, but go to the nearest one.

        Args:
            images, groups, strict, drop_suspicious, pose: as for `add_task`.
            names: of the products, ordered by the first image of each; "product-1", "product-2", ... without.
            found: told which images become which product, as {name: sources}, before any is learned; what it
                raises ends the lesson.
            progress: told "finding", and then the stages of `add_task` with the product's name before them.

        Returns:
            What is known of each product, in the order of the names. Images that could not be read are listed
            with the first.

        Raises:
            TaskError: not as many products are found as there are names; a name is unusable or taken; or
                some of the images show a product that the line knows.
            ImageError, ConfigError, TrainingError: as for `add_task`.

        Whatever is raised, the line is as it was before.
        """
        wanted = None if names is None else check_names(names)
        _check_pose(pose)
        options = LessonOptions(groups, strict, drop_suspicious, pose)
        with self._learning:
            sources = sources_of(images, options)
            extractor, line = self._begun(sources)
            sight = Sight(extractor)
            with torch.inference_mode(False), torch.enable_grad():  # whatever the caller computes in
                line, added = learn_mixed(
                    line,
                    sources,
                    wanted,
                    taken=(*self.tasks, *self._damaged),
                    sight=sight,
                    config=self.config,
                    seed=self.seed,
                    options=options,
                    found=found,
                    progress=progress or _silent,
                )
            sight.forget()
            self.extractor, self._line = extractor, line
            return [self.info(name) for name in added]

    def update_task(
        self,
        name: str,
        images: Any,
        *,
        groups: Sequence[str] | None = None,
        strict: bool = False,
        drop_suspicious: bool = False,
        progress: Progress | None = None,
    ) -> TaskInfo:
        """Learns more of a known product from new good images, as a new version; others are untouched.

        Its earlier images were not kept, but features like theirs are drawn from what was learned and
        learned again beside the new ones. The threshold follows from the new images. A saved line keeps
        the earlier version, and `moleflow rollback` returns to it. A threshold set by hand is dropped,
        because scores have a new scale. A product that is aligned stays so, to the same mean. Arguments
        and errors as for `add_task`; and `CalibrationError` for fewer than four independent images, where the
        threshold follows from more so far: near-copies count as one, what taught it before as none.

        `TaskInfo.changes` lists what the version before did not call good among these images, and remembered
        images (see `observe`) whose verdict is another now: look at them, a defect may be among them.
        """
        with self._learning:
            self._line.product(name)
            options = LessonOptions(groups, strict, drop_suspicious)
            return self._learn(check_task_name(name), sources_of(images, options), options, progress)

    def correct_task(
        self,
        name: str,
        images: Any,
        *,
        missed: Any,
        masks: str | Path | None = None,
        false_alarms: Any = None,
        groups: Sequence[str] | None = None,
        strict: bool = False,
        drop_suspicious: bool = False,
        progress: Progress | None = None,
    ) -> TaskInfo:
        """Shows a product defects that it missed, as a new version; others are untouched.

        The product is learned anew from its good images, because a line keeps none, and in its map patches
        count as stranger the more they are like those of the missed defects; see docs/correcting.md. The
        threshold follows from left-out good images with that in it, so the promised rate of false alarms
        stands. A saved line keeps the earlier version, and `moleflow rollback` returns to it. A later
        `update_task` keeps what was shown. A threshold set by hand is dropped.

        Args:
            name: of the product.
            images: the good images that it was taught from, all of them; further ones may be among them.
            missed: images of defects, as `images`, also those that it was shown before: it begins anew. One
                is a beginning, five say more.
            masks: folder of masks, each named like its image, perhaps with `_mask` behind the name: what is
                not black is the defect. Without them the strongest patches of each image stand in for it.
            false_alarms: images that were called defective and are good; they teach like the others.
            groups: a label for each of the good images, false alarms behind the others.
            strict, drop_suspicious, progress: as for `add_task`.

        Raises:
            TaskError: the line knows no product of this name.
            ConfigError: the product has no cells, or far fewer good images than it was taught from.
            CalibrationError: fewer than four independent good images, and than its threshold follows from.
            ImageError: as for `add_task`; an image of a defect cannot be read; a mask is missing or empty.
        """
        with self._learning:
            self._line.product(name)
            options = LessonOptions(groups, strict, drop_suspicious)
            good = sources_of(images, options, *([] if false_alarms is None else [false_alarms]))
            defects = KnownDefects(list_sources(missed), None if masks is None else Path(masks))
            return self._learn(check_task_name(name), good, options, progress, known_defects=defects)

    def remove_task(self, name: str) -> None:
        """Forgets a product; `TaskError` when there is none of this name. The base stays."""
        with self._learning:
            line = self._line.without(name, self.config.router)
            with self._saving:
                self._line, self._archive = line, self._archive.without(check_task_name(name))

    def set_threshold(
        self, name: str, *, false_alarm_rate: float | None = None, threshold: float | None = None
    ) -> TaskInfo:
        """Changes when a product's images are called defective, without learning.

        Args:
            name: the product.
            false_alarm_rate: share of good images that may be called defective.
            threshold: or the score itself, in the unit of `pred_score`.
        """
        if (false_alarm_rate is None) == (threshold is None):
            raise ConfigError("expected a false-alarm rate or a threshold, exactly one of them")
        with self._learning:
            product = self._line.product(name)
            if false_alarm_rate is not None:
                rate = a_number(false_alarm_rate, "a false-alarm rate", CalibrationError)
                product.calibration.threshold(rate)
                verdict = {"false_alarm_rate": rate}
            else:
                verdict = {"threshold": a_number(threshold, "a threshold", CalibrationError)}
            overrides = self._line.overrides | {check_task_name(name): verdict}
            self._line = replace(self._line, overrides=overrides)
        return self.info(name)

    # Inspection

    @overload
    def predict(
        self, images: Any, *, task: str | None = ..., batch_size: int = ..., errors: Literal["raise"] = ...
    ) -> list[Prediction]: ...

    @overload
    def predict(
        self, images: Any, *, task: str | None = ..., batch_size: int = ..., errors: Literal["yield"]
    ) -> list[Prediction | Failure]: ...

    def predict(
        self, images: Any, *, task: str | None = None, batch_size: int = 8, errors: Errors = "raise"
    ) -> Any:
        """Inspects images; nobody needs to say which product they show.

        Args:
            images: as for `add_task`; products may be mixed.
            task: the product, when it is known; no routing is done then.
            batch_size: images per pass of the backbone; results do not depend on it beyond rounding.
            errors: "raise" stops at the first image that cannot be read or scored; "yield" puts a `Failure`
                in its place. What is said of the others is the same, to the bit, as without it.

        Raises:
            TaskError: the line knows no product, or not this one.
            ImageError: there is no image, or, with "raise", one is unreadable.
        """
        return list(self.stream(images, task=task, batch_size=batch_size, errors=errors))

    @overload
    def stream(
        self, images: Any, *, task: str | None = ..., batch_size: int = ..., errors: Literal["raise"] = ...
    ) -> Iterator[Prediction]: ...

    @overload
    def stream(
        self, images: Any, *, task: str | None = ..., batch_size: int = ..., errors: Literal["yield"]
    ) -> Iterator[Prediction | Failure]: ...

    def stream(
        self, images: Any, *, task: str | None = None, batch_size: int = 8, errors: Errors = "raise"
    ) -> Any:
        """As `predict`, one result after the other, for folders of any size."""
        check_stream(batch_size, errors)
        line = self._line
        if line.base is None or not line.products:
            raise TaskError("this line knows no product yet; teach it one with add_task")
        if task is not None:
            line.product(task)
            task = check_task_name(task)
        return inspect_all(
            line,
            list_sources(images, errors=errors),
            see=partial(see_each, self.extractor),
            task=task,
            batch_size=batch_size,
            errors=errors,
        )

    # Drift

    def observe(self, predictions: Iterable[Prediction | Failure]) -> None:
        """Adds inspected images to what the saved line remembers of each product's last 200.

        Kept are numbers and times, and the paths of a few images for `update_task`; see docs/drift.md.
        Other processes may do so at the same time. Images that could not be inspected are left out. A product
        that was removed or replaced since it inspected is an error.

        Raises:
            LineError: the line was not saved as it is, cannot be written, or what it remembers is damaged.
            TaskError: a product the line has no more.
        """
        taken = [one for one in predictions if not isinstance(one, Failure)]
        versions = {name: self._version(name) for name in sorted({p.task for p in taken})}
        if versions:
            observe(LineStore(self.path), versions, taken)  # type: ignore[arg-type]

    def drift(self, name: str) -> Report:
        """Whether a product's good images are moving away from those taught, by what `observe` added.

        Raises:
            LineError: the line was not saved as it is, or what it remembers is damaged.
            TaskError: there is no product of this name.
        """
        product, version = self._line.product(name), self._version(name)
        monitor = read_monitor(LineStore(self.path), check_task_name(name), version)  # type: ignore[arg-type]
        return judge(monitor.seen, product.reference)

    def _version(self, name: str) -> str:
        """Under which a product stands on disk; LineError where it does not."""
        self._line.product(name)
        version = self._archive.version(self._line, check_task_name(name))
        if version is None:
            raise LineError(f"{name!r} was not saved since it was learned: save the line first")
        return version

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
        with self._saving:
            self._archive = self._archive.write(self._line, store, self._settings, self.config)

    def _save_only(self, name: str, path: Path) -> None:
        """Writes a new line that has this product alone; this one stays as it is."""
        line = self._line.only({name}, self.config.router)
        Archive().write(line, LineStore(path), self._settings, self.config)

    def _settings(self) -> dict[str, Any]:
        return {
            "backbone": self.extractor.describe(),
            "random_weights": self._random_weights,
            "seed": self.seed,
            "false_alarm_rate": self.false_alarm_rate,
            "preset": self.preset,
            "config": to_dict(self.config),
            "intake": self.intake.settings(),
            "witness": self.extractor.witness(),
        }

    @classmethod
    def load(
        cls,
        path: str | Path,
        *,
        weights: str | Path | None = None,
        device: str | torch.device | None = "auto",
        runtime: RuntimeName = "auto",
        damaged: Damaged = "raise",
        memory: int = MEMORY,
    ) -> Detector:
        """Reads a saved line; what it says is what it said before saving, to the bit on the same runtime.

        Every file is checked now; an expert is made ready when an image first needs it.

        Args:
            path: the line's folder.
            weights: local file with the backbone's weights, where they are not embedded.
            device, runtime: as for `Detector`.
            damaged: "raise" refuses a line of which one product is damaged; "quarantine" leaves that one out,
                names it in `damaged`, and reads the others. Saving leaves it on disk as it is.
            memory: bytes that experts may fill which are ready; those unused for the longest go first. The
                files of as many experts as fit are held as well: what other processes do to the line later
                does not reach these. The others are read again when they are needed.

        Raises:
            LineError: there is no line, or it is damaged or of another format.
            BackboneError: the weights are not the ones the line was learned with.
        """
        store = LineStore(path)
        record = store.open(hold=memory, damaged=damaged)
        settings = record.settings
        try:
            if weights is None and settings["random_weights"]:
                weights = "random"
            detector = cls(
                stored_backbone(settings["backbone"]),
                weights=weights,
                image_size=_pair(settings["backbone"].get("tile_size", settings["backbone"]["image_size"])),
                tiles=_pair(settings["backbone"].get("tiles")),
                device=device,
                runtime=runtime,
                seed=settings["seed"],
                false_alarm_rate=settings["false_alarm_rate"],
                config=stored_line(settings["config"]),
            )
            detector.preset = settings.get("preset")
            detector._damaged = dict(record.damaged)
            detector.extractor.check_same(settings["backbone"])
            if "witness" in settings:
                detector.extractor.expect(settings["witness"])
            detector._line, detector._archive = restore(
                record,
                store.path,
                detector.extractor,
                detector.config,
                intake=intake_of(detector.extractor, settings.get("intake")),
                false_alarm_rate=detector.false_alarm_rate,
                asks=detector._line.asks,
                memory=memory,
            )
        except (KeyError, TypeError, ValueError, RuntimeError, AttributeError) as error:
            raise LineError(
                f"{store.path}: expected a complete line, but something is missing: {error}"
            ) from error
        return detector

    # Learning

    def _learn(
        self,
        name: str,
        sources: Sources,
        options: LessonOptions,
        progress: Progress | None,
        *,
        known_defects: KnownDefects | None = None,
    ) -> TaskInfo:
        extractor, line = self._begun(sources)
        sight = Sight(extractor)
        with torch.inference_mode(False), torch.enable_grad():  # whatever the caller computes in
            line = learn(
                line,
                name,
                sources,
                remembered=self._remembered(name),
                sight=sight,
                config=self.config,
                seed=self.seed,
                options=options,
                progress=progress or _silent,
                known_defects=known_defects,
            )
        sight.forget()
        self.extractor, self._line = extractor, line
        return self.info(name)

    def _begun(self, sources: Sequence[tuple[Source, Any]]) -> tuple[Extractor, Line]:
        """Backbone and line to learn with; of a new line as these images settle them."""
        if self._line.base is not None or self._settled:
            return self.extractor, self._line
        begun = self._begin(sources)
        return begun.extractor, replace(self._line, intake=begun.intake)

    def _remembered(self, name: str) -> list[Path]:
        """Images of a product that `observe` remembered; none where the product on disk is another.

        None either where the watch is damaged: they only say what an update changed.
        """
        version = self._archive.version(self._line, name) if name in self._line.products else None
        store = None if version is None else LineStore(self.path)  # type: ignore[arg-type]
        if version is None or store is None or name not in store.names():
            return []
        with suppress(LineError):
            return [Path(path) for path, _ in read_monitor(store, name, version).remembered]
        return []


def _require_layers(config: LineConfig, extractor: Extractor) -> None:
    """Raises ConfigError for a config that was written down for another backbone."""
    layers = None if config.scoring.coreset is None else config.scoring.coreset.layers
    if layers and sum(layers) != extractor.dim:
        raise ConfigError(
            f"Coreset.layers: expected {extractor.widths} or None with {extractor.name}, got {layers}: "
            "is the config of a line with another backbone?"
        )


def _check_pose(pose: str) -> None:
    if pose not in WISHES:
        raise ConfigError(f"expected a pose among {', '.join(WISHES)}, got {pose!r}")


def _pair(values: list[int] | None) -> tuple[int, int] | None:
    """Two numbers of a saved line's settings; None where there are none."""
    return None if values is None else (values[0], values[1])


def _silent(stage: str, share: float) -> None:
    """Progress nobody asked for."""
