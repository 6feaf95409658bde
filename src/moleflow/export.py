"""A line written for inspection without torch: networks, one pair of files for each product, plain JSON.

The backbone is one network. Another one holds what all products share and takes a product's own numbers as
inputs, so that a product stays as small as on its line. What was written is run beside the line it came from,
and is put in its place only where both say the same.
"""

from __future__ import annotations

import json
import math
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from .data.factory import PRODUCTS, make_sample
from .data.images import resize
from .data.sources import list_sources
from .detector import Detector
from .errors import BackboneError, ConfigError, ExportError, LineError, reason_of
from .features.extractor import Features
from .features.runtime import exported_backbone, probe
from .inspection import inspect
from .intake import Picture
from .line.beginning import see_each
from .line.network import density_network, given_of, mean_side_of, ordinary
from .line.product import ROUTER, Product
from .results import Prediction
from .runtime import Inspector
from .runtime.arrays import apart
from .runtime.engines import installed
from .runtime.line import FORMAT, INDEX, NETWORKS, Seen
from .store.files import DEBRIS, LOCK, sync_folder, sync_tree
from .store.index import OWN_HASH, hash_of, parse_json
from .store.names import folded_name
from .store.places import beside, clear, delete, left_beside, require_apart
from .store.tensors import dump_tensors, sha256_of
from .verdict.judgement import Judgement

Format = Literal["onnx", "openvino"]
ENGINE: dict[str, str] = {"onnx": "onnxruntime", "openvino": "openvino"}

TOLERANCE = 1e-3  # by which a score may differ: in spreads of good images, or as a share of a larger score
ASIDE = ".old"  # ends the name of an earlier export for the moment in which the new one takes its place
AT_ONCE = 3  # pictures of a pass, so that a network that takes no other number shows
OWN = 2  # sets of patches drawn from each product's own cells
DRAWN = 4  # pictures of each drawn product that both are shown where none are given

Progress = Callable[[str, float], None]  # stage and the share of it done, 0..1


@dataclass(frozen=True)
class Agreement:
    """How an exported line differs from the one it came from, over the same pictures.

    Attributes:
        pictures: how many were shown to both.
        features: largest difference of what both see of drawn pictures, in spreads of that.
        score, map, distance: largest differences of image scores, of maps, and of distances to products; in
            spreads of good images, of values beyond 1 as a share of them; every product was asked about all
            pictures, and about patches drawn from its own cells.
        verdicts: pictures of which both do not say the same product, label and "known".
    """

    pictures: int
    features: float
    score: float
    map: float
    distance: float
    verdicts: int

    @property
    def holds(self) -> bool:
        """Whether the export may be used in the line's place."""
        return self.verdicts == 0 and max(self.features, self.score, self.map, self.distance) <= TOLERANCE


def export_line(
    line: str | Path,
    out: str | Path,
    *,
    format: Format = "onnx",
    images: Any = None,
    weights: str | Path | None = None,
    threads: int | None = None,
    progress: Progress = lambda stage, share: None,
) -> Agreement:
    """Writes a saved line for inspection without torch, once it was seen to say the same.

    Args:
        line: folder of the saved line.
        out: folder to write; an earlier export there is replaced as a whole, and no other file.
        format: "onnx" for ONNX Runtime, or "openvino".
        images: shown to both before anything is written, as for `Detector.predict`; drawn pictures without.
        weights: local file with the backbone's weights, where they are not embedded.
        threads: of the engine that runs the export for the comparison; all by default.
        progress: told stage and share.

    Raises:
        ExportError: the line knows no product, a network cannot be written, `out` is or holds something else,
            or both do not say the same: then nothing was written.
        ConfigError: another format, or one whose engine is not installed.
        LineError: there is no line.
        BackboneError: the backbone here does not see what the line remembers.
    """
    if format not in get_args(Format):
        raise ConfigError(f"expected a format among {', '.join(get_args(Format))}, got {format!r}")
    if not installed(ENGINE[format]):
        raise ConfigError(f"format {format!r} needs {ENGINE[format]}: pip install {ENGINE[format]}")
    out = Path(out).resolve()  # a link goes on leading to the export
    require_apart(Path(line), out, ExportError)
    _refuse_other(out)
    detector = Detector.load(line, weights=weights, device="cpu", runtime="torch")
    if not detector.tasks:
        raise ExportError(f"{line}: expected a product to export, the line knows none")
    written = beside(out)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        _clear(out)
        _write(detector, written, format, progress)
        progress("comparing", 0.0)
        inspector = Inspector(written, threads=threads)
        _open(inspector)
        agreement = compare(detector, inspector, *_pictures(detector, images), progress)
        if not agreement.holds:
            raise ExportError(
                "the export does not say what the line says: features differ by up to "
                f"{agreement.features:.2g} spreads, over {agreement.pictures} pictures scores by "
                f"{agreement.score:.2g}, maps by {agreement.map:.2g}, distances by {agreement.distance:.2g}, "
                f"expected at most {TOLERANCE:g}, and {agreement.verdicts} verdicts differ. "
                "Nothing was written"
            )
        _refuse_other(out)  # a comparison takes its time: what was put there meanwhile stays as well
        _put(written, out)
    except OSError as error:
        raise ExportError(f"{out}: cannot be written: {reason_of(error)}") from error
    finally:
        shutil.rmtree(written, ignore_errors=True)
    return agreement


def _refuse_other(out: Path) -> None:
    """Refuses to put an export in the place of what is none, or of an export and something else."""
    if not out.exists():
        return
    if not out.is_dir():
        raise ExportError(f"{out}: expected a folder, found a file")
    if out.samefile("."):
        raise ExportError(f"{out}: expected a folder to replace as a whole, got the one this runs in")
    try:
        written = _written(out)
        for path in sorted(out.rglob("*")):
            name = path.relative_to(out).as_posix()
            if folded_name(name) not in written and not _left_by_a_line(name):
                raise ExportError(
                    f"{out}: expected an empty folder or an earlier export with nothing beside it, found "
                    f"{name}, which would be lost"
                )
    except OSError as error:
        raise ExportError(f"{out}: cannot be listed: {reason_of(error)}") from error


def _written(out: Path) -> set[str]:
    """What an earlier export consists of, files and their folders, as a system that ignores case has them."""
    index = out / INDEX
    if not index.is_file():
        return set()
    try:
        files = [Path(name) for name in dict(parse_json(index.read_bytes(), index)["files"])]
    except (LineError, KeyError, TypeError, ValueError) as error:
        raise ExportError(
            f"{index}: expected the files of an earlier export, found none listed; delete {out} if it is one"
        ) from error
    return {folded_name(path.as_posix()) for file in files for path in (Path(INDEX), file, *file.parents)}


def _left_by_a_line(name: str) -> bool:
    """Whether it is what the store of a line leaves, where an export was taken for one."""
    return name == LOCK or name.startswith(DEBRIS)


def _open(inspector: Inspector) -> None:
    """The export's networks and first products; a backbone that sees something else ends it here."""
    try:
        inspector.hold()
    except BackboneError as error:
        raise ExportError(
            f"the export does not say what the line says: {error}. Nothing was written"
        ) from error


def compare(
    detector: Detector,
    inspector: Inspector,
    pictures: Iterable[Picture],
    count: int,
    progress: Progress = lambda s, d: None,
) -> Agreement:
    """What both say of the same pictures, so many of them, product found and each product given."""
    ours, theirs = detector._line, inspector._line
    features, scores, maps, gaps, verdicts = _features_apart(detector, inspector), [0.0], [0.0], [0.0], 0
    for said, again in _on_their_own(detector, inspector):
        scores.append(apart(again.score, said.score))
        maps.append(apart(again.patch_map, said.patch_map))
    for number, (picture, other) in enumerate(_seen_together(inspector, pictures)):
        (own,) = see_each(detector.extractor, [picture])
        for task in (None, *detector.tasks):
            one = inspect(ours, picture, own, see=partial(see_each, detector.extractor), task=task)
            two = inspect(theirs, picture, other, see=inspector._see, task=task)
            scores.append(apart(two.pred_score, one.pred_score))
            maps.append(apart(two.patch_map, one.patch_map))
            if one.routing is not None and two.routing is not None:
                names = list(one.routing.distances)
                found, expected = ([r.distances[n] for n in names] for r in (two.routing, one.routing))
                gaps.append(apart(found, expected))
            verdicts += not _same(one, two)
        progress("comparing", (number + 1) / count)
    return Agreement(count, features, max(scores), max(maps), max(gaps), verdicts)


def _features_apart(detector: Detector, inspector: Inspector) -> float:
    """The largest difference of what both see of drawn pictures, in spreads of what eager torch sees."""
    drawn = probe(detector.extractor.image_size)
    own, other = detector.extractor.see(drawn), inspector._line.see(drawn.numpy())
    patches, pooled = (np.concatenate(part) for part in zip(*other, strict=True))
    gaps = [
        np.abs(found - expected.numpy()).max() / max(float(expected.std()), 1e-12)
        for found, expected in ((patches, own.patches), (pooled, own.pooled))
    ]
    return float(np.max(np.where(np.isfinite(gaps), gaps, np.inf)))


def _on_their_own(detector: Detector, inspector: Inspector) -> Iterator[tuple[Judgement, Judgement]]:
    """What both say to every product of patches that are its own: other pictures are foreign to it."""
    line, size = detector._line, detector.extractor.image_size
    assert line.base is not None
    pooled = detector.extractor.see(probe(size, 1)).pooled
    for name, product in line.products.items():
        for patches in ordinary(line.base, product, OWN).split(1):
            yield (
                line.judge(name, Features(patches, pooled)),
                inspector._line.judge(name, Seen(patches.numpy(), pooled.numpy())),
            )


def _seen_together(inspector: Inspector, pictures: Iterable[Picture]) -> Iterator[tuple[Picture, Any]]:
    """Each picture and what the export sees of it, a few at a time as on the belt."""
    left = iter(pictures)
    while some := list(islice(left, AT_ONCE)):
        yield from zip(some, inspector._see(some), strict=True)


def _same(one: Prediction, two: Prediction) -> bool:
    """Whether two verdicts are the same but where a score lies on its threshold."""
    on_threshold = apart(one.pred_score, one.threshold) <= TOLERANCE
    same_label = one.pred_label == two.pred_label or on_threshold
    return one.task == two.task and one.known == two.known and same_label


def _pictures(detector: Detector, images: Any) -> tuple[Iterable[Picture], int]:
    """What both are shown, one after the other, and how many."""
    if images is not None:
        sources = list_sources(images)
        return (detector.intake.read(source, value) for source, value in sources), len(sources)
    size = detector.extractor.image_size
    drawn = [
        resize(make_sample(name, seed, size=max(64, min(size))).image, size)
        for name in PRODUCTS[:3]
        for seed in range(DRAWN)
    ]
    drawn += [picture.numpy().transpose(1, 2, 0) for picture in probe(size)]
    return [Picture(number, pixels, size) for number, pixels in enumerate(drawn)], len(drawn)


def _clear(out: Path) -> None:
    """Puts an export back that a killed one has set aside, and deletes what others left beside the place."""
    aside = left_beside(out, ASIDE)
    if aside and not out.exists():
        with suppress(OSError):  # another export was faster
            aside.pop().rename(out)
    clear((*aside, *left_beside(out)), out)


def _put(written: Path, out: Path) -> None:
    """The new folder in the place of the old one; for a moment there is none."""
    sync_tree(written)
    old = beside(out, ASIDE)
    try:
        if out.exists():
            with suppress(OSError):
                os.utime(out)  # so that it counts as set aside now
            out.rename(old)
        written.rename(out)
        sync_folder(out.parent)
    except BaseException:  # an interruption, too: all is as it was
        if out.exists() and not written.exists():
            out.rename(written)
        if old.exists():
            old.rename(out)
        raise
    if old.exists():
        delete(old, beside(out))


# Writing


def _write(detector: Detector, folder: Path, format: Format, progress: Progress) -> None:
    """The whole export into a new folder."""
    line, extractor, config = detector._line, detector.extractor, detector.config
    assert line.base is not None
    assert line.router is not None
    (folder / "products").mkdir(parents=True)
    progress("networks", 0.0)
    witness = extractor.witness()  # an error where the backbone here is not the line's
    size = extractor.image_size
    backbone = _traced("backbone", partial(exported_backbone, extractor.module, probe(size)[:2]))
    _write_network(folder, "backbone", backbone, format)
    networks: dict[tuple[str, ...], str] = {}  # by the names of what a product's network takes
    entries = []
    for number, (name, product) in enumerate(line.products.items()):
        given = given_of(product, extractor.grid)
        key = tuple(sorted(given))
        if key not in networks:
            networks[key] = f"density-{len(networks)}"
            network = _traced(networks[key], partial(density_network, line.base, product, given))
            _write_network(folder, networks[key], network, format)
        _write_product(folder, name, product)
        overrides = dict(line.overrides.get(name, {}))
        entries.append({"name": name, "network": networks[key], "overrides": overrides})
        progress("networks", (number + 1) / len(line.products))
    router = line.router
    (folder / "router.safetensors").write_bytes(dump_tensors(router.arrays(), "the router"))
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    index: dict[str, Any] = {
        "format": FORMAT,
        "library": version("moleflow"),
        "engine": ENGINE[format],
        "fingerprint": line.base_hash,
        "backbone": extractor.describe(),
        "grid": list(extractor.grid),
        "cell": extractor.cell,
        "intake": line.intake.settings(),
        "witness": extractor.expected or witness,  # a line of before remembers none
        "mean_side": mean_side_of(config),
        "scoring": {"top_share": config.scoring.top_share, "top_least": config.scoring.top_least},
        "false_alarm_rate": line.false_alarm_rate,
        "router": {
            "metric": router.config.metric,
            "false_rejection_rate": router.config.false_rejection_rate,
            "names": router.names,
            "typical": router.typical,
            "limits": {n: limit if math.isfinite(limit) else None for n, limit in router.limits.items()},
        },
        "products": entries,
        "files": {path.relative_to(folder).as_posix(): sha256_of(path.read_bytes()) for path in files},
    }
    index[OWN_HASH] = hash_of(index)
    (folder / INDEX).write_text(json.dumps(index, indent=1), encoding="utf-8")


def _write_product(folder: Path, name: str, product: Product) -> None:
    """Its tensors as the line keeps them, and its calibration in plain JSON."""
    kept = {key: value for key, value in product.tensors().items() if not key.startswith(ROUTER)}
    data = dump_tensors(kept, f"product {name!r}")
    (folder / "products" / f"{name}.safetensors").write_bytes(data)
    info = product.info()
    correction = product.densities.correction
    told = {
        "calibration": info["calibration"],
        "strangeness": info["strangeness"],
        "reference": info["reference"],
        "pose": info["pose"],
        "correction_weight": 0.0 if correction is None else correction.weight,
    }
    (folder / "products" / f"{name}.json").write_text(json.dumps(told, indent=1), encoding="utf-8")


def _write_network(folder: Path, name: str, data: bytes, format: Format) -> None:
    if format == "onnx":
        (folder / f"{name}{NETWORKS['onnxruntime']}").write_bytes(data)
        return
    import openvino

    network = openvino.Core().read_model(data)
    openvino.save_model(network, folder / f"{name}{NETWORKS['openvino']}", compress_to_fp16=False)


def _traced(name: str, trace: Callable[[], bytes]) -> bytes:
    try:
        return trace()
    except Exception as error:  # of any kind: none of them says what its converter may raise
        reason = str(error).strip().split("\n", 1)[0] or type(error).__name__
        raise ExportError(f"the {name} network cannot be written: {reason}") from error
