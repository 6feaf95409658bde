"""A line and its folder: what changed is written, what is there is read."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from ..config import LineConfig, to_dict
from ..errors import LineError, TaskError
from ..features.extractor import Extractor
from ..flow.expert import Base
from ..intake import Intake
from ..photographs.review import Lesson
from ..routing.router import Router
from ..store import LineRecord, LineStore, TaskRecord, Transaction, fingerprint
from ..threads import seeded
from .judges import Judge
from .product import Product, statistics_of
from .record import Line
from .shelf import Memory, Place, Shelf, Stored

ROUTER_FORMAT = 1  # of how a router follows from its products


@dataclass(frozen=True, eq=False)
class Saved:
    """A product as it stands on disk."""

    version: str | None  # None once another process has removed it
    place: Place
    overrides: dict[str, Any]


@dataclass(frozen=True, eq=False)
class Archive:
    """Which state of a line is on disk.

    Attributes:
        path: the line's folder; None while it was never saved.
        saved: products as they stand there.
        removed: names of saved products removed since, also if they were taught again.
    """

    path: Path | None = None
    saved: dict[str, Saved] = field(default_factory=dict)
    removed: frozenset[str] = frozenset()

    def version(self, line: Line, name: str) -> str | None:
        """The version under which exactly the line's product is on disk; None where it is not."""
        saved = self.saved.get(name)
        return saved.version if saved and saved.place is line.products.place(name) else None

    def without(self, name: str) -> Archive:
        """What is on disk once a product was removed from the line, though not from there."""
        if name not in self.saved:
            return self
        saved = {key: value for key, value in self.saved.items() if key != name}
        return Archive(self.path, saved, self.removed | {name})

    def write(
        self, line: Line, store: LineStore, settings: Callable[[], dict[str, Any]], config: LineConfig
    ) -> Archive:
        """Writes what is not on disk yet, a new line with its settings; a crash leaves it as before or after.

        Raises:
            LineError: the folder holds another line, cannot be written, or nothing was learned yet.
            TaskError: another process meanwhile added a product of the same name, or changed or removed one
                that was learned on here.
        """
        if line.base is None:
            raise LineError(f"{store.path}: nothing to save, the line has learned no product yet")
        if self.path is not None and store.exists() and store.path.resolve() == self.path:
            versions: Mapping[str, str | None] = self._write_changes(line, store)
        else:
            records = tuple(_record(line, name) for name in line.products)
            store.create(settings(), line.base.state_dict(), fingerprint=line.base_hash, tasks=records)
            versions = store.in_use()
        _keep_router(store, line, versions, config)
        saved = {
            name: Saved(versions.get(name), line.products.place(name), dict(line.overrides.get(name, {})))
            for name in line.products
        }
        return Archive(store.path.resolve(), saved)

    def _write_changes(self, line: Line, store: LineStore) -> dict[str, str | None]:
        with store.transaction() as transaction:
            current = store.read(tensors=False, damaged="quarantine")
            if current.fingerprint != line.base_hash:
                raise LineError(
                    f"{store.path}: expected the line this one came from, found one with another base"
                )
            on_disk = store.in_use()  # of damaged products as well: they stay as they are
            for name in sorted(self.removed):
                if name in on_disk:
                    transaction.remove(name)
            wishes = {task.name: task.overrides for task in current.tasks}
            return {
                name: self._write_product(line, transaction, name, on_disk, wishes.get(name, {}))
                for name in line.products
            }

    def _write_product(
        self,
        line: Line,
        transaction: Transaction,
        name: str,
        on_disk: dict[str, str],
        wishes: Mapping[str, Any],
    ) -> str | None:
        """Writes a product if it changed; its version, None once another process has removed it."""
        saved = self.saved.get(name)
        if saved is not None and saved.place is line.products.place(name):
            overrides = line.overrides.get(name, {})
            there = saved.version is not None and on_disk.get(name) == saved.version
            if name in on_disk and saved.overrides != overrides:
                if not there:
                    raise TaskError(
                        f"what was set for {name!r} was set for version {saved.version}, and it has version "
                        f"{on_disk[name]} by now, by another process: load the line again"
                    )
                transaction.override(name, dict.fromkeys(saved.overrides, None) | overrides)
            return saved.version if name in on_disk else None
        if saved is None and name in on_disk and name not in self.removed:
            raise TaskError(f"{name!r} was added to the line by another process meanwhile")
        if saved is not None and on_disk.get(name) != saved.version:
            found = f"has version {on_disk[name]} by now" if name in on_disk else "was removed meanwhile"
            raise TaskError(
                f"{name!r} was learned on from version {saved.version} and {found}, by another process: load "
                "the line again"
            )
        record = _record(line, name)
        nothing_set = saved is not None and record.overrides == _carried(saved.overrides)
        if nothing_set and "threshold" not in wishes:  # but perhaps a rate, by another process
            record = replace(record, overrides=dict(wishes))
        return transaction.put(record, fingerprint=line.base_hash)


def _carried(overrides: Mapping[str, Any]) -> dict[str, Any]:
    """What a new version keeps of the one before: not a threshold, for scores have a new scale."""
    return {key: value for key, value in overrides.items() if key != "threshold"}


def restore(
    record: LineRecord,
    path: Path,
    extractor: Extractor,
    config: LineConfig,
    *,
    intake: Intake,
    false_alarm_rate: float,
    asks: Judge,
    memory: int,
) -> tuple[Line, Archive]:
    """The line of a record that `LineStore.open` found at `path`, to the bit.

    Its products are made when they are needed, and as many kept as fit into `memory` bytes. Raises LineError
    where its base is another's.
    """
    with seeded(0):
        base = Base(extractor.grid, extractor.dim, config.flow)
    base.load_state_dict(record.base)
    base = base.requires_grad_(False).eval().to(extractor.device)
    # From what is written rather than from what it was read as: a later version knows more options.
    settings = record.settings
    found = fingerprint_of(base, settings["backbone"], settings["config"], settings.get("intake"))
    if found != record.fingerprint:
        raise LineError(f"expected base and settings with fingerprint {record.fingerprint}, got {found}")
    store = LineStore(path.resolve())
    places = {r.name: _stored(store, r, base, config) for r in record.tasks}
    shelf = Shelf(places, Memory(memory))
    line = Line(
        false_alarm_rate,
        intake,
        base,
        record.fingerprint,
        shelf,
        _router(store, record, shelf, config),
        overrides={r.name: dict(r.overrides) for r in record.tasks if r.overrides},
        rerouted={r.name: r.info.get("rerouted", {}) for r in record.tasks},
        unreadable={r.name: tuple(r.info.get("unreadable", ())) for r in record.tasks},
        lessons={r.name: Lesson.from_dict(r.info["lesson"]) for r in record.tasks if "lesson" in r.info},
        asks=asks,
    )
    saved = {r.name: Saved(r.version, places[r.name], dict(r.overrides)) for r in record.tasks}
    return line, Archive(store.path, saved)


def _stored(store: LineStore, task: TaskRecord, base: Base, config: LineConfig) -> Stored:
    """A product that is read from the disk when it is needed."""

    @torch.inference_mode(False)  # whoever asks first: it is kept, and may be learned on
    def read() -> Product:
        try:
            return Product.from_saved(base, config, store.read_expert(task), task.info)
        except (KeyError, TypeError, ValueError, RuntimeError, AttributeError) as error:
            raise LineError(f"{store.path}: product {task.name!r} is not complete: {error}") from error

    return Stored(read, lambda: statistics_of(store.read_expert(task)))


def _router(store: LineStore, record: LineRecord, shelf: Shelf, config: LineConfig) -> Router | None:
    """As it was kept beside the line, or computed from the products."""
    if not record.tasks:
        return None
    kept = store.read_derived(_key(record, config))
    if kept is None:
        return Router(shelf.statistics(), config.router)
    return Router.from_tensors(kept, sorted(shelf), config.router)


def _keep_router(
    store: LineStore, line: Line, versions: Mapping[str, str | None], config: LineConfig
) -> None:
    """Keeps the router beside the line, where the products on disk are the line's own.

    It follows from them, so a line that cannot be read just now is no reason to fail: all is saved.
    """
    with suppress(LineError):
        record = store.read(tensors=False, damaged="quarantine")
        if line.router is not None and {task.name: task.version for task in record.tasks} == versions:
            store.write_derived(_key(record, config), line.router.tensors())


def _key(record: LineRecord, config: LineConfig) -> str:
    """Names all that a router follows from."""
    products = sorted((task.name, task.sha256) for task in record.tasks)
    text = json.dumps([ROUTER_FORMAT, products, to_dict(config.router)], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def fingerprint_of(
    base: Base, backbone: Mapping[str, Any], config: Mapping[str, Any], intake: Mapping[str, Any] | None
) -> str:
    """Of all that an expert is learned on: base, backbone, options, fit, light, as a saved line writes them.

    Where a base is a line's own it says enough of fit and light, and lines from before there was another
    kind have nothing else.
    """
    shared: dict[str, Any] = {"backbone": backbone, "config": config}
    if intake is not None and config["training"].get("base") == "auto":
        light = {name: intake["intensity"][name] for name in ("low", "high", "depth")}
        shared["intake"] = {"fit": intake["fit"], **light}
    text = json.dumps(shared, sort_keys=True).encode()
    return fingerprint(base.state_dict() | {"settings": torch.frombuffer(bytearray(text), dtype=torch.uint8)})


def _record(line: Line, name: str) -> TaskRecord:
    product = line.products[name]
    return TaskRecord(
        name=name,
        version=None,
        tensors=product.tensors(),
        info=product.info()
        | {
            "rerouted": line.rerouted.get(name, {}),
            "unreadable": list(line.unreadable.get(name, ())),
            "lesson": line.lesson(name).to_dict(),
        },
        overrides=dict(line.overrides.get(name, {})),
    )
