"""One step of one method: learn a task, inspect everything learned so far, write what came out."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from ..config import to_dict
from ..data.layouts import Product
from ..metrics import answer_of, routing_shares
from ..routing.clusters import find_products
from . import showcase
from .figures import Examined, Figures, digest, examine, resample
from .files import DRAFT, read_json, read_state, write_json, write_state
from .methods import make
from .methods.base import Inspection, Method, PerProduct, Pictures, Setting, State
from .pictures import Shelf
from .plan import Unit, Work
from .reuse import Memory, images_path
from .streams import Task


def run_unit(work: Work, shelf: Shelf, unit: Unit) -> None:
    """Learns one task and measures everything learned so far; nothing to do where that is done already."""
    if figures_path(work, unit).exists():
        return
    begun = time.perf_counter()
    stream = work.plan.streams[unit.stream]
    task = stream.tasks[unit.step]
    folder = unit_folder(work, unit)
    folder.mkdir(parents=True, exist_ok=True)
    method = _method(work, shelf, unit)
    memory = _memory(work, unit)
    method.remember(memory)
    before: dict[str, Any] = {}
    if unit.step:
        method.restore(read_state(folder / f"state-{unit.step - 1:02}.safetensors"))
        before = read_json(folder / f"step-{unit.step - 1:02}.json")
    if method.keeps_images:
        earlier = [_taught(work, shelf, task, step)[0] for step, task in enumerate(stream.tasks[: unit.step])]
        method.remind([pictures for task in earlier for pictures in task])
    pictures, names = _taught(work, shelf, task, unit.step)
    started = time.perf_counter()
    for lesson in [pictures] if task.together else [[own] for own in pictures]:
        method.learn(lesson)
    learning = time.perf_counter() - started + memory.charged()
    experts = {**before.get("experts", {}), **names}
    known = [name for earlier in stream.tasks[: unit.step + 1] for name in earlier.products]
    last = unit.step == len(stream.tasks) - 1
    figures = _measure(work, shelf, method, known, experts, last=last)
    memory.keep()
    state = method.state()
    record = {
        "experts": experts,
        "notes": list(method.notes),
        "products": figures["products"],
        "pooled": figures["pooled"],
        "rejected": figures["rejected"],
        "bytes": state.bytes_of(),
        "shared_bytes": state.bytes_of("shared"),
        "numbers": state.numbers_of(),
        "shared_numbers": state.numbers_of("shared"),
        "kept_bytes": int(state.notes.get("kept_bytes", 0)),
    }
    write_state(folder / f"state-{unit.step:02}.safetensors", state)
    if last and unit.stream == 0 and unit.seed == work.plan.seeds[0]:
        products = [work.products[name] for name in known]
        showcase.keep(folder / "showcase.safetensors", products, figures["found"])
    write_json(
        folder / f"time-{unit.step:02}.json",
        {
            "learn": learning / len(task.products),
            "inspect_image": figures["inspect_image"],
            "unit": time.perf_counter() - begun,
        },
    )
    write_json(folder / f"step-{unit.step:02}.json", record)
    (folder / f"state-{unit.step - 1:02}.safetensors").unlink(missing_ok=True)


def unit_folder(work: Work, unit: Unit) -> Path:
    """Where the units of a chain lie."""
    stream = work.plan.streams[unit.stream]
    return work.out / "units" / unit.entry / stream.name / f"seed-{unit.seed}"


def figures_path(work: Work, unit: Unit) -> Path:
    """What a unit found; written last, so that where it is the unit is done."""
    return unit_folder(work, unit) / f"step-{unit.step:02}.json"


def _method(work: Work, shelf: Shelf, unit: Unit) -> Method:
    extractor, plan = shelf.cache.extractor, work.plan
    setting = Setting(
        grid=extractor.grid,
        channels=extractor.dim,
        image_size=extractor.image_size,
        seed=unit.seed,
        config=plan.config(unit.entry),
        backbone=plan.backbone,
        weights=plan.weights,
        weights_hash=extractor.weights_hash,
        widths=extractor.widths,
        device=extractor.device,
    )
    return make(plan.entries[unit.entry].method, setting, plan.own(unit.entry))


def _memory(work: Work, unit: Unit) -> Memory:
    """What this unit may take from others of the run: of the same options and seed."""
    config, options = work.plan.config(unit.entry), work.plan.configured(unit.entry)
    own = options.get(work.plan.entries[unit.entry].method)  # by itself: another method may have the same
    learning = {"flow": to_dict(config.flow), "training": to_dict(config.training), "seed": unit.seed}
    setting = {"config": to_dict(config), "own": own, "seed": unit.seed}
    return Memory(work.out, setting, learning)


def _taught(work: Work, shelf: Shelf, task: Task, step: int) -> tuple[list[Pictures], dict[str, str]]:
    """What the method learns in a step, and which product each of its parts is about.

    Where the stream does not say which image is of which product, the products are found in the pooled
    images; a part is about the product that most of its images are of. Only the evaluation knows that.
    """
    given = [shelf.pictures(work.products[name], "train") for name in task.products]
    if task.named or len(given) == 1:
        return given, {pictures.product: pictures.product for pictures in given}
    pool = _pooled(given)
    truth = [pictures.product for pictures in given for _ in range(len(pictures))]
    parts, names = [], {}
    for number, images in enumerate(find_products(pool.descriptors)):
        name = f"task {step + 1} part {number + 1}"
        parts.append(pool.take(images, product=name))
        of = [truth[i] for i in images]
        names[name] = max(sorted(set(of)), key=of.count)
    return parts, names


def _pooled(given: Sequence[Pictures]) -> Pictures:
    at = [(pictures, i) for pictures in given for i in range(len(pictures))]
    features = torch.cat([pictures.features for pictures in given])
    file_bytes = tuple(size for pictures in given for size in pictures.file_bytes or ())
    pooled = torch.cat([pictures.pooled for pictures in given])
    return Pictures("pool", features, lambda i, size: at[i][0].read(at[i][1], size), file_bytes, pooled)


def _measure(
    work: Work,
    shelf: Shelf,
    method: Method,
    known: Sequence[str],
    experts: Mapping[str, str],
    *,
    last: bool,
) -> dict[str, Any]:
    """Figures of every product learned so far, product given and not; pooled at the end of a stream."""
    memory = method.remembered
    assert memory is not None
    given: dict[str, list[Inspection] | None] = {}
    found: dict[str, list[Inspection]] = {}
    records, seconds = {}, 0.0
    for name in known:
        product = work.products[name]
        pictures = shelf.pictures(product, "test")
        started = time.perf_counter()
        found[name] = list(method.inspect(pictures))
        seconds += time.perf_counter() - started + memory.charged()
        given[name] = _with_product_given(method, pictures, found[name], experts)
        record: dict[str, Any] = {}
        for which, results in (("oracle", given[name]), ("routed", found[name])):
            if results is None:
                record[which] = {"figures": Figures().to_dict(), "digest": None}
                continue
            told = digest(results)
            examined = _examined(work, memory, [product], [results])
            record[which] = {"figures": examined.figures.to_dict(), "digest": told}
            if last and which == "routed":
                _keep_images(work, product, results, examined, told)
        labels = [item.label for item in product.test]
        record |= _decisions(found[name], labels, name, experts)
        records[name] = record
    pooled, rejected = None, None
    if last:
        pooled = _pooled_figures(work, memory, given, found)
        rejected = _rejections(work, shelf, method, known, experts)
    images = sum(map(len, found.values()))
    return {
        "products": records,
        "pooled": pooled,
        "rejected": rejected,
        "found": found,
        "inspect_image": seconds / max(images, 1),
    }


def _examined(
    work: Work, memory: Memory, products: Sequence[Product], results: Sequence[Sequence[Inspection]]
) -> Examined:
    """Figures of these products together; the same maps are measured once in a run."""

    def find() -> Examined:
        # Where pixels that memory does not hold are sorted: beside the results, for a system's own folder of
        # temporary files may lie in memory. Drafts by name, so that those of a killed run are cleared away.
        with TemporaryDirectory(prefix=f"{DRAFT}pixels-", dir=work.out) as spill:
            return examine(products, results, work.plan.eval_size, spill=Path(spill))

    return memory.examined([product.name for product in products], [digest(r) for r in results], find)


def _keep_images(
    work: Work, product: Product, results: Sequence[Inspection], examined: Examined, told: str
) -> None:
    """Scores of all images, and the figures under other draws of them, once for the same maps."""
    path = images_path(work.out, product.name, told)
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.exists():
        kept = resample(product, results, work.plan.eval_size, examined)
        write_state(path, State({name: torch.from_numpy(value) for name, value in kept.items()}))


def _pooled_figures(
    work: Work,
    memory: Memory,
    given: Mapping[str, list[Inspection] | None],
    found: Mapping[str, list[Inspection]],
) -> dict[str, dict[str, float | None]]:
    """Over all test images together; measured once where routing or the order of products changed nothing."""
    names = sorted(found)
    products = [work.products[name] for name in names]
    oracle = [given[name] or [] for name in names]
    figures = {"routed": _examined(work, memory, products, [found[n] for n in names]).figures.to_dict()}
    if any(results is None for results in given.values()):
        return figures | {"oracle": Figures().to_dict()}
    return figures | {"oracle": _examined(work, memory, products, oracle).figures.to_dict()}


def _with_product_given(
    method: Method, pictures: Pictures, found: list[Inspection], experts: Mapping[str, str]
) -> list[Inspection] | None:
    """The inspections again, those of images that went to another product done anew with theirs given.

    None for a product that no part of the method is about: it cannot be given.
    """
    if not method.routes:
        return found
    own = [part for part, product in experts.items() if product == pictures.product]
    if not own:
        return None
    astray = [i for i, result in enumerate(found) if result.task not in own]
    if not astray:
        return found
    again = dict(zip(astray, method.inspect(pictures.take(astray), task=own[0]), strict=True))
    return [again.get(i, result) for i, result in enumerate(found)]


def _decisions(
    found: Sequence[Inspection], labels: Sequence[int], name: str, experts: Mapping[str, str]
) -> dict[str, float | None]:
    """Shares of the good and of the defective images: routed right, called unknown, called defective.

    Routed as `moleflow evaluate` counts it: what is called unknown is sent to no product.
    """

    def alarms(label: int) -> float | None:
        chosen = [r.alarm for r, own in zip(found, labels, strict=True) if own == label]
        given = [alarm for alarm in chosen if alarm is not None]
        return sum(given) / len(given) if given else None

    answers = [None if r.task is None else answer_of(experts.get(r.task), r.known) for r in found]
    sent = routing_shares(name, answers, labels)
    # A method of one model sends nothing anywhere, and not every one that does can reject.
    missing = [
        key for key in sent if all((r.task if key.startswith("routing") else r.known) is None for r in found)
    ]
    return sent | dict.fromkeys(missing) | {"false_alarms": alarms(0), "detected": alarms(1)}


def _rejections(
    work: Work, shelf: Shelf, method: Method, known: Sequence[str], experts: Mapping[str, str]
) -> dict[str, float] | None:
    """Each product in turn taken out: the share of its test images that is then called unknown."""
    if not work.plan.leave_out or not isinstance(method, PerProduct) or len(known) < 2:
        return None
    if not method.rejects:
        return None
    shares = {}
    for name in known:
        other = method
        for part in (part for part, product in experts.items() if product == name):
            other = other.without(part)
        if not other.parts:
            continue
        seen = list(other.recognised(shelf.pictures(work.products[name], "test")))
        shares[name] = 1 - sum(seen) / max(len(seen), 1)
    return shares
