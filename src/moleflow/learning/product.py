"""A product is learned from the features of its good images: densities, calibration, router statistics."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
from torch import Tensor

from ..config import LineConfig, ScoringConfig
from ..data.sources import evenly
from ..densities.correction import Correction, Defects
from ..errors import ConfigError
from ..features.extractor import Features
from ..flow.expert import Base
from ..line.product import Densities, Product, combine, density_map
from ..routing.gaussian import WITNESSES, DescriptorStatistics, describe
from ..threads import beside
from ..verdict.calibration import TwoVoices, Voice
from ..verdict.maps import PositionCalibration, image_scores, smooth, strongest
from ..verdict.unknown import ORDINARY, Familiarity
from .blocks import Blocks, make_blocks
from .left_out import (
    CoresetLeftOut,
    begin_flow,
    cells_left_out,
    correction_left_out,
    finish_flow,
    whole_left_out,
)
from .training import is_small

Progress = Callable[[str, float], None]  # stage and the share of it done, 0..1

MEMORY_LEAST, MEMORY_MOST = 32, 128  # images drawn from a product's past when it is updated


@dataclass(frozen=True, eq=False)
class Altered:
    """Good images again, as decoding and the sensor alone might have made them.

    Attributes:
        originals: position of the good image behind each.
        seen: their features.
    """

    originals: tuple[int, ...]
    seen: Features


def learn_product(
    base: Base,
    seen: Features,
    config: LineConfig,
    *,
    seed: int,
    progress: Progress = lambda stage, share: None,
    previous: Product | None = None,
    groups: Sequence[Hashable] | None = None,
    copies: Sequence[int] | None = None,
    altered: Altered | None = None,
    without: tuple[Base, Base] | None = None,
    routed: Tensor | None = None,
    defects: Defects | None = None,
) -> Product:
    """Learns a product on a frozen base from the features of its good images.

    All images teach, and all calibrate: block by block they are left out of the closed-form densities, and
    half by half of the flow, whose final form goes on from one of the halves. See docs/calibration.md.

    Args:
        base: the frozen base.
        seen: of the good images at hand.
        config: all options.
        seed: fixes initial weights, sampling and noise.
        progress: told stage and share.
        previous: what was known of the product. Its images are gone, but its densities can draw
            features like theirs, which are learned beside the new ones.
        groups: session or lot of every image, where it is known; see `make_blocks`.
        copies: number of every image's group of near-copies, where that is known.
        altered: some of the images as the sensor alone might have changed them: no spread that follows
            from the images is believed to be smaller than what that makes of a score.
        without: bases that have not seen one half of the blocks or the other, where `base` itself was
            learned from these images; see `FirstBase`.
        routed: patches (N, h, w, D) of the same images as the router sees them, where `seen` is of aligned
            ones.
        defects: known ones, whose like the product shall find; those of `previous` stay known.

    Raises:
        ConfigError: defects for a product without cells.
        TrainingError: learning did not stay finite.
    """
    started = time.perf_counter()
    blocks = make_blocks(len(seen), config.scoring, groups=groups, copies=copies)
    memory = _remembered(previous, seen, seed)
    halves = without or (base, base)
    before = None if previous is None else previous.densities.coreset
    known = None if before is None else before.patches
    images = seen.patches, memory.patches
    with beside(is_small(base.parameters())) as other:
        remembered = CoresetLeftOut(*images, known, blocks, config.scoring, seed, other)
        beginning = begin_flow(halves, *images, blocks, config, seed, partial(progress, "learning"), other)
        remembered.go_on()
        flows = finish_flow(base, beginning, *images, blocks, config, seed, met=base is halves[0])
        coreset, left_out_coreset = remembered.outcome()
    learned = time.perf_counter()
    progress("calibration", 0.0)
    cells, left_out_cells = cells_left_out(seen.patches, memory.patches, blocks, config.scoring)
    progress("calibration", 0.5)
    densities = Densities(flows.final, cells, coreset)
    others = (left_out_cells, left_out_coreset)
    left_out = [flows.left_out, *(scores for scores in others if scores is not None)]
    positions = (flows.position, *(PositionCalibration.fit(s, config.scoring) for s in left_out[1:]))
    calibrated, ordinary = calibrated_without_own(left_out, blocks, config.scoring)
    marked = _marked(base, densities, positions, config, defects)
    correction = _correction(densities, seen.patches, marked, previous)
    gaussians = densities.gaussians
    if correction is not None and gaussians is not None:
        densities = replace(densities, correction=correction)
        said = correction_left_out(correction, gaussians, seen.patches, memory.patches, blocks, marked)
        calibrated = calibrated + correction.weight * said
    whole, left_out_whole = whole_left_out(seen.pooled, memory.pooled, blocks, config.scoring)
    calibration, familiarity = _verdict(calibrated, ordinary, left_out_whole, blocks, config)
    product = Product(
        config=config,
        densities=densities,
        # Without a voice of its own it says nothing, but the next update remembers by it.
        whole=previous.whole if whole is None and previous is not None else whole,
        positions=positions,
        calibration=calibration,
        familiarity=familiarity,
        descriptors=_descriptors(
            seen.patches if routed is None else routed, config=config, previous=previous
        ),
        images=len(seen) + (previous.images if previous else 0),
    )
    if altered is not None:
        product = _floored(product, base, altered)
    progress("calibration", 1.0)
    product.seconds.update(learning=learned - started, calibration=time.perf_counter() - learned)
    return product


@torch.no_grad()
def _marked(
    base: Base,
    densities: Densities,
    positions: Sequence[PositionCalibration],
    config: LineConfig,
    defects: Defects | None,
) -> Defects | None:
    """Known defects with their patches marked.

    Where nobody says which show the defect, the strongest do, as many as the image's score is of.
    """
    if defects is None or defects.marks is not None:
        return defects
    marks = []
    for image in defects.patches.float().split(1):
        found = combine(densities.scores(base, image), positions, config.scoring)
        marks.append(strongest(smooth(found, config.scoring.smoothing), config.scoring)[0])
    return replace(defects, marks=torch.stack(marks))


def _correction(
    densities: Densities, good: Tensor, defects: Defects | None, previous: Product | None
) -> Correction | None:
    """The direction of known defects, or of those that an earlier version was shown."""
    gaussians, before = densities.gaussians, None if previous is None else previous.densities.correction
    if gaussians is None:
        if defects is not None:
            raise ConfigError("known defects correct a product by its cells, which this line leaves out")
        return None
    if defects is None:
        return None if before is None else before.measured(gaussians, good)
    return Correction.fit(gaussians, good, defects)


def calibrated_without_own(
    left_out: list[Tensor], blocks: Blocks, scoring: ScoringConfig
) -> tuple[Tensor, Tensor]:
    """Calibrated maps (n, h, w) and those of the densities alone, by positions their block had no part in.

    Its own spread would make each image look more ordinary than the next one will.
    """
    calibrated, densities = torch.empty_like(left_out[0]), torch.empty_like(left_out[0])
    for block in range(blocks.count):
        images = blocks.images_of(block)
        rest = [i for i, own in enumerate(blocks.left_out) if own != block] or images
        seen = [PositionCalibration.fit(score[rest], scoring) for score in left_out]
        own = [score[images] for score in left_out]
        calibrated[images] = combine(own, seen, scoring)
        densities[images] = density_map(own, seen, scoring)
    return calibrated, densities


def _verdict(
    calibrated: Tensor, densities: Tensor, whole: Tensor | None, blocks: Blocks, config: LineConfig
) -> tuple[TwoVoices, Familiarity]:
    """Both voices' left-out scores and the strangeness of good images, one of each group of near-copies."""
    first = list(blocks.first)
    scoring = config.scoring
    places = image_scores(smooth(calibrated, scoring.smoothing), scoring)[first]
    calibration = TwoVoices(
        Voice(_numbers(places)), None if whole is None else Voice(_numbers(whole[first])), blocks.sessions
    )
    familiarity = Familiarity(ORDINARY, (), few=config.router.false_rejection_rate)
    return calibration, replace(familiarity, values=_numbers(familiarity.of(densities[first])))


def _numbers(values: Tensor) -> tuple[float, ...]:
    """As JSON keeps them: with seven digits."""
    return tuple(float(f"{value:.7g}") for value in values.double().cpu().tolist())


def _floored(product: Product, base: Base, altered: Altered) -> Product:
    """The product with its spreads held above what decoding and the sensor alone make of a score."""
    calibration = product.calibration
    assert isinstance(calibration, TwoVoices)
    told = [product.inspect(base, one) for one in altered.seen.split()]
    place = _moved([one.place for one in told], altered) * calibration.place.spread
    calibration = replace(calibration, place=replace(calibration.place, floor=place))
    if calibration.whole is not None:
        moved = _moved([one.whole or 0.0 for one in told], altered) * calibration.whole.spread
        calibration = replace(calibration, whole=replace(calibration.whole, floor=moved))
    strange = _moved([one.strangeness for one in told], altered)
    return replace(
        product,
        calibration=calibration,
        familiarity=replace(product.familiarity, floor=strange),
    )


def _moved(values: list[float], altered: Altered) -> float:
    """Standard deviation of what is said of one picture in its versions, none of which was learned."""
    originals = np.array(altered.originals)
    groups = [np.array(values)[originals == i] for i in sorted(set(altered.originals))]
    return math.sqrt(float(np.mean([group.var() for group in groups])))


def _remembered(previous: Product | None, seen: Features, seed: int) -> Features:
    """Features like those of the earlier images, about as many as there are new ones; none without a past."""
    gaussians = None if previous is None else previous.densities.gaussians
    if previous is None or gaussians is None:
        return seen.take([])
    generator = torch.Generator().manual_seed(_seed_of_memory(seed, previous))
    count = min(previous.images, max(len(seen), MEMORY_LEAST), MEMORY_MOST)
    patches = gaussians.sample(count, generator).to(seen.patches)
    pooled = seen.pooled[:0] if previous.whole is None else previous.whole.sample(count, generator)
    return Features(patches, pooled.to(seen.pooled))


def _seed_of_memory(seed: int, previous: Product) -> int:
    """Another for every update of a product.

    What was drawn is learned, so the directions that a density keeps lie along that very noise, which drawing
    the rest takes out of them again: the same noise would come out smaller each time.
    """
    return int(np.random.SeedSequence((seed % 2**64, previous.images)).generate_state(1, np.uint64)[0])


def _descriptors(patches: Tensor, *, config: LineConfig, previous: Product | None) -> DescriptorStatistics:
    """The router's statistics, of new images and of the earlier ones it remembers descriptors of."""
    learned = describe(patches)
    held = _some(learned, WITNESSES)
    if len(learned) > 1:
        # Seen from a mean they helped to make they lie too near; a new image would lie this much farther.
        mean = learned.mean(0)
        held = mean + (held - mean) * math.sqrt((len(learned) + 1) / (len(learned) - 1))
    if previous is not None:
        old = previous.descriptors.witnesses
        share = previous.images / (previous.images + len(patches))
        kept = round(WITNESSES * min(max(share, 0.25), 0.75))
        held = torch.cat([_some(held, WITNESSES - kept), _some(old, kept)])
        earlier = previous.descriptors, previous.images
        return DescriptorStatistics.fit(learned, held, rank=config.router.rank, earlier=earlier)
    return DescriptorStatistics.fit(learned, held, rank=config.router.rank)


def _some(rows: Tensor, most: int) -> Tensor:
    """At most so many rows, evenly spread over all of them."""
    return rows[evenly(list(range(len(rows))), most)]
