"""Is there a figure without labels that ranks configurations as the labelled test images do?

    python benchmarks/criterion.py ROOT... [--drawn gear wood] [--cache DIR] [--kept FILE] [--steps 150]

Every configuration in `CONFIGURATIONS` learns each product from some of its good training images.
Candidates for a criterion look at other good training images, held out, and at what can be made of them
without a label:

- `likelihood`: of held-out patches under noise, per channel, by the flow, or by the cells that it begins
  with where nothing is learned;
- `other products`: a held-out patch against one that is 30 % another product's at the same place;
- `shuffled`: held-out patches against the same patches at other places of their picture;
- `re-lit`, `blurred`, `moved`: held-out images against themselves in another light, softer, turned and
  shifted;
- `defects`: held-out images against themselves with a synthetic defect, image AUROC; `defects, pixels`:
  pixel AP;
- `all`: the mean rank by all of these.

Each is ranked against image AUROC and pixel AP on the labelled test images: Spearman's and Kendall's
correlation over configurations within a product, the mean over products, with 95 % intervals of a
bootstrap over products, configurations and, for image AUROC, test images.

Calibration is by images held out once, where `moleflow add` leaves out every block in turn; it is the
same for all configurations. With --kept everything that was measured is kept in a file, and read from
there the next time.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import platform
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from moleflow.bases.shipped import shipped_base
from moleflow.bench.drift import Distortion
from moleflow.bench.pictures import Alteration, AlteredItem, Shelf, has_masks, item_mask
from moleflow.bench.synthetic import KINDS, SyntheticDefect
from moleflow.config import Cells, Coreset, LineConfig, ScoringConfig, Whole
from moleflow.data.factory import write_product
from moleflow.data.layouts import Item, Product, read_dataset
from moleflow.data.sources import evenly
from moleflow.densities.coreset import Candidates
from moleflow.densities.whole import WholeGaussian
from moleflow.features.cache import FeatureCache
from moleflow.features.extractor import Extractor, Features
from moleflow.flow.cells import CellGaussians
from moleflow.flow.expert import Base, Expert
from moleflow.learning.training import learn_expert
from moleflow.line.product import combine
from moleflow.metrics import pixel_ap
from moleflow.verdict.calibration import TwoVoices, Voice
from moleflow.verdict.maps import PositionCalibration, image_scores, smooth
from ranking import Agreement, agreement, areas, drawn_again, ranks

EVAL_SIZE = (128, 128)
DILUTION = 0.3  # how much of another product's patch a patch is mixed with
NOISE = 0.3  # of the likelihood, in standard deviations of a channel
COPIES = {
    "re-lit": Distortion("colour", 3),
    "blurred": Distortion("blur", 2),
    "moved": Distortion("geometry", 3),
}
CRITERIA = (
    "likelihood",
    "other products",
    "shuffled",
    *COPIES,
    "defects",
    "defects, pixels",
)
FIGURES = ("image AUROC", "pixel AP")


@dataclass(frozen=True)
class Configuration:
    """What is varied. `noise` is None where the flow learns nothing, `coreset` 0 where there is none."""

    ridge: float
    rank: int
    noise: float | None
    coreset: int
    whole: bool
    top_share: float

    def __str__(self) -> str:
        flow = "no flow" if self.noise is None else f"noise {self.noise:g}"
        whole = "whole" if self.whole else "no whole"
        return (
            f"ridge {self.ridge:g} rank {self.rank} {flow} coreset {self.coreset} {whole} "
            f"top {self.top_share:g}"
        )


LINE = LineConfig()
DEFAULT = Configuration(
    Cells().ridge,
    Cells().rank,
    LINE.training.noise,
    Coreset().patches,
    True,
    ScoringConfig().top_share,
)
CONFIGURATIONS = tuple(
    itertools.starmap(
        Configuration,
        itertools.product(
            (0.1, DEFAULT.ridge, 1.0),
            (8, DEFAULT.rank, 64),
            (None, 0.5, DEFAULT.noise),
            (0, DEFAULT.coreset),
            (True, False),
            (0.003, DEFAULT.top_share, 0.05),
        ),
    )
)


@dataclass(frozen=True)
class Found:
    """What was measured on one product, in the order of `CONFIGURATIONS`.

    Attributes:
        product: its name.
        labels: of the test images.
        scores: (configurations, images) of the test images.
        pixel_ap: on the test images; None without masks.
        criteria: every candidate's values.
    """

    product: str
    labels: list[int]
    scores: list[list[float]]
    pixel_ap: list[float] | None
    criteria: dict[str, list[float]]


def main() -> None:
    options = arguments(__doc__)
    found = measured(options)
    print_setting(options, found)
    for figure in FIGURES:
        own = [one for one in found if figure != "pixel AP" or one.pixel_ap is not None]
        if own:
            print_table(figure, own, options.draws)


def arguments(told: str | None, **more: Any) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=told, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("roots", nargs="*", type=Path, metavar="ROOT", help="folders of labelled products")
    parser.add_argument("--drawn", nargs="*", default=[], metavar="PRODUCT", help="drawn products as well")
    parser.add_argument("--cache", type=Path, help="folder for features and drawn products")
    parser.add_argument("--kept", type=Path, metavar="FILE", help="keeps what was measured, or has it")
    parser.add_argument("--learned", type=int, default=60, help="good images of each product to learn from")
    parser.add_argument("--calibrated", type=int, default=20, help="more of them, to calibrate by")
    parser.add_argument("--held", type=int, default=20, help="more of them, for the criteria")
    parser.add_argument("--tested", type=int, default=60, help="good and defective test images, each at most")
    parser.add_argument("--image-size", type=int, default=256)
    parser.add_argument("--steps", type=int, default=LINE.training.steps, help="of every flow")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--draws", type=int, default=500, help="of the bootstrap")
    for name, given in more.items():
        parser.add_argument(f"--{name}", **given)
    return parser.parse_args()


def measured(options: argparse.Namespace) -> list[Found]:
    """Everything of all products, from --kept where it is there."""
    names = ("drawn", "learned", "calibrated", "held", "tested", "image_size", "steps", "seed")
    setting = {name: getattr(options, name) for name in names}
    setting |= {
        "configurations": [str(one) for one in CONFIGURATIONS],
        "roots": list(map(str, options.roots)),
    }
    if options.kept and options.kept.exists():
        kept = json.loads(options.kept.read_text(encoding="utf-8"))
        if kept["setting"] != setting:
            raise SystemExit(f"{options.kept}: measured with other arguments; remove it or name another")
        return [Found(**one) for one in kept["found"]]
    with tempfile.TemporaryDirectory() as scratch:
        found = list(measure(options, options.cache or Path(scratch)))
    if options.kept:
        options.kept.write_text(json.dumps({"setting": setting, "found": [asdict(one) for one in found]}))
    return found


def measure(options: argparse.Namespace, cache: Path) -> Iterator[Found]:
    torch.manual_seed(options.seed)
    size = (options.image_size, options.image_size)
    extractor = Extractor(image_size=size)
    shelf = Shelf(FeatureCache(cache, extractor))
    looks = [look(shelf, product, options) for product in products(options, cache)]
    if len(looks) < 2:
        raise SystemExit("expected at least two products: one criterion compares them with each other")
    base = shipped_base(extractor.weights_hash, extractor.grid, extractor.dim, LINE.flow)
    if base is None:
        raise SystemExit(f"expected a base for {extractor.name} to come with the library, found none")
    for number, own in enumerate(looks):
        started = time.perf_counter()
        others = looks[(number + 1) % len(looks)].stacks["held"].patches
        yield Judge(own, base, others, options).found()
        print(f"{own.product}: {time.perf_counter() - started:.0f} s", flush=True)


def products(options: argparse.Namespace, cache: Path) -> Iterator[Product]:
    for root in options.roots:
        yield from read_dataset(root).products.values()
    wanted = options.learned + options.calibrated + options.held
    for name in options.drawn:
        root = cache / f"drawn-{wanted}-{options.tested}"
        if not (root / name).exists():
            write_product(
                name, root, train=wanted, test_good=options.tested, test_defective=options.tested, size=256
            )
        yield read_dataset(root).products[name]


# What is looked at


@dataclass(frozen=True, eq=False)
class Look:
    """Features of one product: what is learned, and stacks of images that are scored.

    Stacks: "calibration", "held", "tested", "defects", and those of `COPIES`.
    """

    product: str
    learned: Features
    stacks: dict[str, Features]
    labels: np.ndarray
    masks: list[np.ndarray] | None
    defect_masks: list[np.ndarray]


def look(shelf: Shelf, product: Product, options: argparse.Namespace) -> Look:
    """Images drawn at random from the training folder, in parts, and test images evenly from theirs."""
    order = np.random.default_rng(options.seed).permutation(len(product.train)).tolist()
    ends = np.cumsum([options.learned, options.calibrated, options.held]).tolist()
    if len(order) < ends[-1]:  # fewer images: in the same proportions
        ends = [round(end * len(order) / ends[-1]) for end in ends]
    learned, calibration, held = (
        [product.train[i] for i in sorted(order[a:b])] for a, b in zip([0, *ends], ends, strict=False)
    )
    tested = [
        item
        for label in (0, 1)
        for item in evenly([one for one in product.test if one.label == label], options.tested)
    ]
    kinds = itertools.cycle(KINDS)
    defects = [altered(item, SyntheticDefect(next(kinds), options.seed)) for item in held]
    copies = {name: [altered(item, change) for item in held] for name, change in COPIES.items()}
    stacks = {"calibration": calibration, "held": held, "tested": tested, "defects": defects, **copies}
    print(f"{product.name}: {', '.join(f'{len(v)} {k}' for k, v in stacks.items())}", flush=True)
    return Look(
        product.name,
        seen(shelf, product.name, learned),
        {name: seen(shelf, product.name, items) for name, items in stacks.items()},
        np.array([item.label for item in tested]),
        [item_mask(item, EVAL_SIZE) for item in tested] if has_masks(product) else None,
        [item_mask(item, EVAL_SIZE) for item in defects],
    )


def altered(item: Item, change: Alteration) -> AlteredItem:
    kind = change.kind if isinstance(change, SyntheticDefect) else item.kind
    return AlteredItem(item.path, item.product, "test", kind, alteration=change)


def seen(shelf: Shelf, name: str, items: Sequence[Item]) -> Features:
    found = shelf.pictures(Product(name, (), (), tuple(items)), "test").seen
    return Features(found.patches.float(), found.pooled)


# What a configuration says


class Judge:
    """All configurations of one product; densities are learned once for all that share them."""

    def __init__(self, look: Look, base: Base, others: Tensor, options: argparse.Namespace) -> None:
        self.look, self.base, self.steps, self.seed = look, base, options.steps, options.seed
        held = look.stacks["held"].patches
        generator = torch.Generator().manual_seed(self.seed)
        places = torch.randperm(held.shape[1] * held.shape[2], generator=generator)
        foreign = others[torch.arange(len(held)) % len(others)]
        noise = torch.randn(held.shape, generator=generator) * look.learned.patches.flatten(0, 2).std(0)
        self.patches = {name: stack.patches for name, stack in look.stacks.items()} | {
            "others": (1 - DILUTION) * held + DILUTION * foreign,
            "shuffled": held.flatten(1, 2)[:, places].reshape(held.shape),
            "noisy": held + NOISE * noise,
        }
        whole = WholeGaussian.fit(look.learned.pooled, Whole())
        self.whole = {name: whole(stack.pooled).numpy() for name, stack in look.stacks.items()}

    def found(self) -> Found:
        scores: list[np.ndarray] = []
        aps: list[float] = []
        criteria: dict[str, list[float]] = {name: [] for name in CRITERIA}
        for (ridge, rank), same in grouped(CONFIGURATIONS, "ridge", "rank"):
            cells = self._cells(ridge, rank)
            for (noise,), alike in grouped(same, "noise"):
                density, likelihood = self._density(cells, noise)
                for (patches,), last in grouped(alike, "coreset"):
                    maps = self._maps(density, patches)
                    about = {"likelihood": likelihood, **self._of_maps(maps)}
                    ap = self._pixel_ap(maps["tested"], self.look.masks) if self.look.masks else None
                    for one in last:
                        said = {name: self._scores(maps, name, one) for name in self.look.stacks}
                        scores.append(said["tested"])
                        aps += [] if ap is None else [ap]
                        told = about | {n: apart(said["held"], said[n]) for n in (*COPIES, "defects")}
                        for name in CRITERIA:
                            criteria[name].append(float(told[name]))
        return Found(
            self.look.product,
            self.look.labels.tolist(),
            [one.tolist() for one in scores],
            aps if self.look.masks else None,
            criteria,
        )

    def _cells(self, ridge: float, rank: int) -> CellGaussians:
        return CellGaussians.of(self.look.learned.patches, Cells(ridge=ridge, rank=rank))

    def _density(self, cells: CellGaussians, noise: float | None) -> tuple[dict[str, Tensor], float]:
        """Scores of every stack by the flow behind these cells, and how likely the noisy one is."""
        if noise is None:
            scores = self._all(cells)
            return scores, cells_likelihood(cells, scores["noisy"])
        training = replace(LINE.training, noise=noise, steps=self.steps)
        flow = learn_expert(self.base, self.look.learned.patches, training, seed=self.seed, cells=cells)
        return self._all(partial(self._strangeness, flow)), self._likelihood(flow)

    def _strangeness(self, flow: Expert, patches: Tensor) -> Tensor:
        return self.base.score(flow, self.base.prepare(patches))

    @torch.no_grad()
    def _likelihood(self, flow: Expert) -> float:
        """Mean log-density per patch and channel of the noisy patches."""
        base = self.base
        found = [base.log_prob(flow, base.prepare(part)) for part in self.patches["noisy"].split(4)]
        return float(torch.cat(found).mean()) / base.dim

    @cached_property
    def _remembered(self) -> dict[int, dict[str, Tensor]]:
        """By the coreset's size, distances of every stack from it."""
        learned, found = self.look.learned.patches, {}
        for patches in sorted({one.coreset for one in CONFIGURATIONS} - {0}):
            options = Coreset(patches=patches, layers=(), rank=None)  # as docs/criterion.md measured
            candidates = Candidates.of(learned, [None] * len(learned), options, seed=self.seed)
            found[patches] = self._all(candidates.coreset())
        return found

    def _maps(self, density: dict[str, Tensor], patches: int) -> dict[str, Tensor]:
        """Calibrated and smoothed maps of every stack, of the density and perhaps a coreset."""
        scoring = ScoringConfig(coreset=Coreset(patches=patches) if patches else None)
        parts = [density, self._remembered[patches]] if patches else [density]
        positions = [PositionCalibration.fit(part["calibration"], scoring) for part in parts]
        return {
            name: smooth(combine([part[name] for part in parts], positions, scoring), scoring.smoothing)
            for name in density
        }

    def _of_maps(self, maps: dict[str, Tensor]) -> dict[str, float]:
        held = maps["held"].flatten().numpy()
        return {
            "other products": apart(held, maps["others"].flatten().numpy()),
            "shuffled": apart(held, maps["shuffled"].flatten().numpy()),
            "defects, pixels": self._pixel_ap(maps["defects"], self.look.defect_masks),
        }

    def _scores(self, maps: dict[str, Tensor], name: str, one: Configuration) -> np.ndarray:
        scoring = ScoringConfig(top_share=one.top_share)
        places = {which: image_scores(maps[which], scoring).tolist() for which in ("calibration", name)}
        whole = {which: self.whole[which].tolist() for which in ("calibration", name)}
        voices = TwoVoices(
            Voice(tuple(places["calibration"])),
            Voice(tuple(whole["calibration"])) if one.whole else None,
            tuple(range(len(places["calibration"]))),
        )
        pairs = zip(places[name], whole[name], strict=True)
        return np.array([voices.score(place, own if one.whole else None) for place, own in pairs])

    def _all(self, density: Any) -> dict[str, Tensor]:
        with torch.no_grad():
            return {
                name: torch.cat([density(part) for part in stack.split(4)])
                for name, stack in self.patches.items()
            }

    def _pixel_ap(self, maps: Tensor, masks: list[np.ndarray]) -> float:
        large = F.interpolate(maps[:, None], size=EVAL_SIZE, mode="bilinear", align_corners=False)[:, 0]
        return pixel_ap(list(large.numpy()), masks)


def cells_likelihood(cells: CellGaussians, distances: Tensor) -> float:
    """Mean log-density per patch and channel of patches at these distances from the cells' means."""
    channels, rho = cells.mean.shape[-1], float(cells.noise)
    log_det = (cells.variances + rho).log().sum(1) + (channels - cells.rank) * np.log(rho)
    squared = distances.square().flatten(1)[:, cells._members]  # (n, cells, patches)
    log_prob = -0.5 * (squared + log_det[:, None] + channels * np.log(2 * np.pi))
    return float(log_prob.mean()) / channels


def apart(good: np.ndarray, other: np.ndarray) -> float:
    """AUROC of others against good ones."""
    labels = np.repeat([0, 1], [len(good), len(other)])
    return float(areas(np.concatenate([good, other])[None], labels)[0])


def grouped(
    configurations: Sequence[Configuration], *names: str
) -> Iterator[tuple[tuple[Any, ...], list[Configuration]]]:
    """Runs of configurations that share some options, in their order."""
    for key, run in itertools.groupby(configurations, lambda one: tuple(getattr(one, n) for n in names)):
        yield key, list(run)


# What comes out


def criteria_of(found: Sequence[Found]) -> dict[str, np.ndarray]:
    """Every candidate, and the mean rank by all of them, (products, configurations)."""
    table = {name: np.array([one.criteria[name] for one in found]) for name in CRITERIA}
    return table | {"all": np.mean([ranks(values) for values in table.values()], axis=0)}


def figure_of(found: Sequence[Found], figure: str) -> np.ndarray:
    """A labelled figure, (products, configurations)."""
    if figure == "pixel AP":
        return np.array([one.pixel_ap for one in found])
    return np.array([areas(np.array(one.scores), np.array(one.labels)) for one in found])


def redraw(found: Sequence[Found], rng: np.random.Generator) -> np.ndarray:
    """Image AUROC from test images drawn with replacement."""
    drawn = [(one, drawn_again(np.array(one.labels), rng)) for one in found]
    return np.array([areas(np.array(o.scores)[:, at], np.array(o.labels)[at]) for o, at in drawn])


def print_setting(options: argparse.Namespace, found: Sequence[Found]) -> None:
    print(
        f"\n{len(CONFIGURATIONS)} configurations, {len(found)} products, {options.image_size} px, "
        f"{options.steps} steps, seed {options.seed}, {options.draws} draws; "
        f"{time.strftime('%Y-%m-%d')}, {os.cpu_count()} cores, {platform.machine()}, "
        f"torch {torch.__version__}"
    )


def print_table(figure: str, found: Sequence[Found], draws: int) -> None:
    labelled = figure_of(found, figure)
    spans = ", ".join(f"{v.min():.1f}–{v.max():.1f}" for v in 100 * labelled)
    print(f"\n{figure} of {', '.join(one.product for one in found)}: {spans} over the configurations")
    print("| criterion | Spearman | Kendall | by product |\n| --- | ---: | ---: | --- |")
    again = partial(redraw, found) if figure == "image AUROC" else None
    for name, values in criteria_of(found).items():
        print(row(name, agreement(values, labelled, redrawn=again, draws=draws)), flush=True)


def row(name: str, of: Agreement) -> str:
    cells = [
        f"{value:+.2f} [{low:+.2f}, {high:+.2f}]"
        for value, (low, high) in ((of.spearman, of.spearman_interval), (of.kendall, of.kendall_interval))
    ]
    return f"| {name} | {' | '.join(cells)} | {' '.join(f'{value:+.2f}' for value in of.by_product)} |"


if __name__ == "__main__":
    main()
