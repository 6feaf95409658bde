"""The results as Markdown: one table of means, one by product, one of what a second product costs.

A result is what `run.py` keeps of a method on a product: the record of the measuring process and the figures
that our own metrics make of its arrays, as plain JSON.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

OURS = "moleflow"
NAMES = {
    OURS: "MoLE-Flow",
    "patchcore": "PatchCore",
    "padim": "PaDiM",
    "fastflow": "FastFlow",
    "fastflow-resnet18": "FastFlow, resnet18",
    "efficientad": "EfficientAD-S",
}
NOTHING = "–"

Result = dict[str, Any]
Results = dict[str, dict[str, Result]]
"""By method, then by product, in the order in which they were learned."""


def markdown(results: Results, told: dict[str, Any]) -> str:
    """The whole document; `told` is what holds for the run: command, machine, versions, options."""
    batches = told["batches"]
    parts = [
        f"# {NAMES[OURS]} beside PatchCore, PaDiM, FastFlow and EfficientAD",
        conditions(told),
        f"## Means over {', '.join(told['products'])}",
        means(results, batches),
        "## By product",
        by_product(results, batches),
    ]
    if len(told["products"]) > 1:
        first, second = told["products"][:2]
        parts += [f"## What adding {second} to {first} takes", second_product(results, first, second)]
    return "\n\n".join([*parts, "## What to know", notes(results, told)]) + "\n"


def conditions(told: dict[str, Any]) -> str:
    loads = [load for result in told["loads"] for load in result]
    versions = ", ".join(f"{name} {version}" for name, version in told["versions"].items())
    busy = f"{min(loads):.1f} to {max(loads):.1f}" if loads else NOTHING
    return (
        f"`{told['command']}`\n\n"
        f"{told['machine']}, {told['threads']} threads, {told['date']}; load meanwhile {busy}. "
        f"Images squeezed to {told['size']} × {told['size']}, maps and masks compared at "
        f"{told['eval_size']} × {told['eval_size']}, seed {told['seed']}, medians of {told['rounds']} "
        f"rounds. {versions}."
    )


def means(results: Results, batches: Sequence[int]) -> str:
    head = [
        *("method", "backbone", "learning, s"),
        *(f"ms an image, batch {batch}" for batch in batches),
        *(f"× ours, batch {batch}" for batch in batches),
        *("kept for a product", "× ours", "kept once", "image AUROC", "pixel AP"),
    ]
    rows = []
    for method, found in results.items():
        every = list(found.values())
        if not every:
            continue
        cells = [NAMES[method], every[0]["backbone"], learning(every)]
        cells += [number(mean(every, partial(ms, batch)), 1) for batch in batches]
        cells += [ratio(results, method, partial(ms, batch)) for batch in batches]
        cells += [size(mean(every, lambda r: r["bytes"])), ratio(results, method, lambda r: r["bytes"])]
        cells += [size(every[0]["shared_bytes"])]
        cells += [number(mean(every, partial(figure, name)), 1) for name in ("I", "AP")]
        rows.append(cells)
    return grid(head, rows, words=2)


def by_product(results: Results, batches: Sequence[int]) -> str:
    head = [
        *("product", "method", "learned from", "learning, s"),
        *(f"ms an image, batch {batch}" for batch in batches),
        *("kept", "image AUROC", "pixel AP", "peak memory"),
    ]
    products = dict.fromkeys(product for found in results.values() for product in found)
    rows = []
    for product in products:
        for method, found in results.items():
            if product in found:
                one = found[product]
                cells = [product, NAMES[method], str(one["train"]), learning([one])]
                cells += [number(ms(batch, one), 1) for batch in batches]
                cells += [size(one["bytes"])]
                cells += [number(one["figures"].get(name), 1) for name in ("I", "AP")]
                rows.append([*cells, size(one["peak_bytes"])])
    return grid(head, rows, words=2)


def second_product(results: Results, first: str, second: str) -> str:
    head = ["method", "seconds", "bytes", f"image AUROC on {first} before", "after", "the first product"]
    rows = []
    for method, found in results.items():
        if first not in found or second not in found:
            continue
        one = found[second]
        before, after = found[first]["figures"].get("I"), one["figures"].get("first I")
        cells = [learning([one]), size(one["bytes"]), number(before, 1), number(after, 1)]
        rows.append([NAMES[method], *cells, fate(method, one)])
    return grid(head, rows, words=1, last=True)


def fate(method: str, result: Result) -> str:
    """What became of the first product, in words."""
    if method != OURS:
        own = "in a model of its own it stays, and someone must say which to ask"
        return f"lost where the same model is taught on; {own}" if "first I" in result["figures"] else own
    more = result["more"]
    same, routed = 100 * more["first to the bit"], 100 * more["first routed right"]
    return f"{same:.0f} % of its images say the same to the bit; {routed:.1f} % are routed right, unasked"


def notes(results: Results, told: dict[str, Any]) -> str:
    items = [
        *on_all(results, told),
        *on_export(results, told["batches"]),
        *on_peers(told),
        "“≈” marks seconds worked out from a part of the lesson.",
    ]
    if told["failed"]:
        items.append(f"Failed: {'; '.join(told['failed'])}.")
    return "\n".join(f"- {item}" for item in items)


def on_all(results: Results, told: dict[str, Any]) -> list[str]:
    used = "; ".join(f"{name} {some} of {whole}" for name, (some, whole) in told["train"].items())
    spaced = ", evenly spaced" if told["train_limit"] else ""
    return [
        "Milliseconds run from the image's file to its map: decoding, squeezing, network, map. Learning runs "
        "from the files to a product that can be inspected. Every method has a process of its own for every "
        "product.",
        f"Everybody learns from the same images: {used}{spaced}. Ours is one line that grows, and nobody "
        "tells it which product an image shows; a peer has a model for each product and is told.",
        "Image AUROC and pixel AP in per cent, by our metrics; AP pools all pixels of all test images."
        + without_masks(results),
    ]


def on_export(results: Results, batches: Sequence[int]) -> list[str]:
    found = list(results.get(OURS, {}).values())
    said = []
    for batch in batches:
        took = mean(found, partial(exported, batch))
        if took is not None:
            said.append(f"{took:,.1f} ms an image at batch {batch}")
    return [f"Ours exported to OpenVINO, without torch: {' and '.join(said)}."] if said else []


def on_peers(told: dict[str, Any]) -> list[str]:
    return [
        "The peers are the networks, fits and losses of anomalib without its trainer around them, whose "
        "time is not counted. Bytes are of what a product keeps apart from the frozen "
        "backbone; the library's own checkpoints hold the backbone once more with every product.",
        "PatchCore: coreset 0.1 and 9 neighbours, the library's defaults, on our two layers; from all images "
        f"its bank would be {bank(told)}.",
        "PaDiM: 100 random channels of our network at strides 4, 8 and 16.",
        "FastFlow: the library allows four backbones; its flows, loss and map stand on ours here. "
        f"Epochs: {told['epochs']}, in batches of 32 with Adam at 0.001. The library's tables stop early, "
        "with a patience of three epochs, by images with labels, by default those of the test; that "
        "chooses by the answers, so the number is fixed here: in a trial at 128 pixels AUROC stood still "
        f"after 80 steps, and these are {steps(told)}. The row with resnet18 is the library's own network "
        "with random weights: only its times and bytes mean anything.",
        "EfficientAD: teacher and ImageNette come from the net alone, so the teacher is random and noise "
        "stands in for the pictures; its quality is not comparable and not given. Its seconds are those of a "
        f"step, of which {told['steps']} were run, times the library's 70,000.",
    ]


def steps(told: dict[str, Any]) -> str:
    """How many FastFlow takes, from the fewest images to the most."""
    counts = [-(-used // 32) * told["epochs"] for used, _ in told["train"].values()]
    return f"{min(counts)}" if min(counts) == max(counts) else f"{min(counts)} to {max(counts)}"


def bank(told: dict[str, Any]) -> str:
    """Bytes of a memory bank of a tenth of all patches, by arithmetic."""
    patches = (told["size"] // 8) ** 2
    sizes = {
        name: int(whole * patches * 0.1) * told["bank_channels"] * 4
        for name, (_, whole) in told["train"].items()
    }
    return ", ".join(f"{size(value)} ({name})" for name, value in sizes.items())


def without_masks(results: Results) -> str:
    lacking = sorted({p for found in results.values() for p, r in found.items() if not r["masks"]})
    return f" Without masks, and so without AP: {', '.join(lacking)}." if lacking else ""


def learning(results: Sequence[Result]) -> str:
    seconds = mean(results, lambda r: r["learn_seconds"])
    if seconds is None:
        return NOTHING
    about = "≈ " if any(r["learn_estimated"] for r in results) else ""
    return f"{about}{seconds / 3600:,.1f} h" if seconds >= 7200 else f"{about}{seconds:,.1f}"


def ms(batch: int, result: Result) -> float:
    return statistics.median(result["ms"][str(batch)])


def exported(batch: int, result: Result) -> float | None:
    return result["more"].get(f"exported, batch {batch}")


def figure(name: str, result: Result) -> float | None:
    return result["figures"].get(name)


def ratio(results: Results, method: str, value: Callable[[Result], float]) -> str:
    """How many times ours, over the products that both were measured on."""
    if method == OURS:
        return "1"
    both = [product for product in results[method] if product in results.get(OURS, {})]
    theirs = mean([results[method][product] for product in both], value)
    ours = mean([results[OURS][product] for product in both], value)
    return NOTHING if theirs is None or not ours else f"{theirs / ours:.1f}"


def mean(results: Iterable[Result], value: Callable[[Result], float | None]) -> float | None:
    """Over those that have one."""
    values = [found for result in results if (found := value(result)) is not None]
    return statistics.fmean(values) if values else None


def number(value: float | None, digits: int) -> str:
    return NOTHING if value is None else f"{value:,.{digits}f}"


def size(value: float | None) -> str:
    if value is None:
        return NOTHING
    return f"{value / 1e6:,.2f} MB" if value < 1e8 else f"{value / 1e6:,.0f} MB"


def grid(head: Sequence[str], rows: Sequence[Sequence[str]], *, words: int, last: bool = False) -> str:
    """A table whose first `words` columns, and perhaps the last, hold words; the others numbers."""
    lines = ["---" if at < words or (last and at == len(head) - 1) else "---:" for at in range(len(head))]
    return "\n".join(f"| {' | '.join(row)} |" for row in (head, lines, *rows))
