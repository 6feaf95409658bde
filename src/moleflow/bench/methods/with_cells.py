"""Every flow rival with what the line has beside its flow: cells, whole pictures and calibration by place."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from ...densities.whole import WholeGaussian
from ...errors import ConfigError, TrainingError
from ...features.extractor import Features
from ...flow.cells import CellGaussians
from ...learning.blocks import make_blocks
from ...learning.left_out import cells_left_out, whole_left_out
from ...learning.product import calibrated_without_own
from ...line.product import combine
from ...verdict.calibration import TwoVoices, Voice
from ...verdict.maps import PositionCalibration, image_scores, smooth
from .base import Inspection, PerProduct, Pictures, Setting, State
from .line import FALSE_ALARM_RATE, cells_of
from .single import EWC, Cached, FineTuning, Joint, LwF, Replay, SingleFlow

if TYPE_CHECKING:
    from ..reuse import Memory


@dataclass(frozen=True, eq=False)
class _Part:
    """What stands beside the flow for one product.

    Attributes:
        positions: calibration of the flow's patch scores, and of the cells'.
    """

    cells: CellGaussians
    whole: WholeGaussian | None
    positions: tuple[PositionCalibration, PositionCalibration]
    calibration: TwoVoices


class WithCells(PerProduct):
    """One flow over all products, and beside it for every product what the line puts beside an expert.

    The flow learns as its own method says and forgets as it does. Cells and whole pictures are closed forms
    of one product and stay as they are; the calibration of the flow's scores stays as it was on the day the
    product was learned, because its images are gone. Only joint training, which has them all, calibrates
    all products anew. The cells calibrate on what they say of images left out block by block, the flow on
    images it learned from: its level there is too low, which moves all scores of a product alike.
    """

    kind: ClassVar[type[SingleFlow]]

    def __init__(self, setting: Setting, **options: Any) -> None:
        super().__init__(setting)
        config = setting.config
        self.scoring = replace(config.scoring, cells=cells_of(config), coreset=None)
        if cells_of(setting.config) is None:
            raise ConfigError(f"{self.name}: expected flow.cells or scoring.cells, which were left out")
        self.single = self.kind(setting, **options)

    @property
    def notes(self) -> tuple[str, ...]:
        """Those of the flow's own method, but that it is alone, and what stands beside it."""
        alone = FineTuning(self.setting).notes
        own = tuple(note for note in self.single.notes if note not in alone)
        return (*own, "cells, whole pictures and calibration by place beside the flow, behind our router")

    def learn(self, products: Sequence[Pictures]) -> None:
        """The flow first, then what stands beside it; errors as of the flow's own method."""
        for pictures in products:
            if not len(pictures):
                raise TrainingError(f"expected good images of {pictures.product!r} to learn from, got none")
        self.single.learn(products)
        super().learn(self.single.seen if isinstance(self.single, Joint) else products)

    def remember(self, memory: Memory) -> None:
        """The flow's own method has it too, so that a flow is learned once for both rows."""
        super().remember(memory)
        self.single.remember(memory)

    def remind(self, pictures: Sequence[Pictures]) -> None:
        """Hands earlier images on to a flow that learns from them again."""
        self.single.remind(pictures)

    @torch.no_grad()
    def learn_part(self, pictures: Pictures) -> _Part:
        """Cells and whole pictures, left out block by block, and all calibrations."""
        scoring, seen = self.scoring, pictures.seen
        blocks = make_blocks(len(seen), scoring)
        cells, of_cells = cells_left_out(seen.patches, seen.patches[:0], blocks, scoring)
        assert cells is not None  # a setting without cells was refused
        assert of_cells is not None
        of_flow = torch.cat([self._flow_scores(image) for image in seen.patches.split(1)])
        positions = PositionCalibration.fit(of_flow, scoring), PositionCalibration.fit(of_cells, scoring)
        maps = smooth(calibrated_without_own([of_flow, of_cells], blocks, scoring)[0], scoring.smoothing)
        whole, of_whole = whole_left_out(seen.pooled, seen.pooled[:0], blocks, scoring)
        places = Voice(_numbers(image_scores(maps, scoring)))
        wholes = None if of_whole is None else Voice(_numbers(of_whole))
        return _Part(cells, whole, positions, TwoVoices(places, wholes, blocks.sessions))

    def inspect_part(self, part: _Part, seen: Features) -> Inspection:
        """Flow and cells in one map, map and whole picture in one score, as by the line."""
        scoring = self.scoring
        scores = [self._flow_scores(seen.patches), part.cells(seen.patches)]
        maps = smooth(combine(scores, part.positions, scoring), scoring.smoothing)
        voice = part.calibration.place
        whole = None if part.whole is None else float(part.whole(seen.pooled)[0])
        return Inspection(
            task=None,
            known=None,
            score=part.calibration.score(float(image_scores(maps, scoring)[0]), whole),
            patch_map=((maps[0] - voice.level) / voice.spread).cpu().numpy(),
            threshold=part.calibration.threshold(FALSE_ALARM_RATE),
        )

    def part_state(self, part: _Part) -> State:
        """What stands beside the flow, in the widths in which the line keeps it."""
        tensors = {f"cells.{k}": v.cpu() for k, v in part.cells.kept().items()}
        if part.whole is not None:
            tensors |= {f"whole.{k}": v for k, v in part.whole.tensors().items()}
        for i, position in enumerate(part.positions):
            tensors |= {f"position.{i}.{k}": v for k, v in position.kept().items()}
        return State(tensors, {"calibration": part.calibration.to_dict()})

    def part_from(self, state: State) -> _Part:
        """The inverse of `part_state`."""
        setting, options = self.setting, self.scoring.cells
        assert options is not None
        kept = state.named("cells.")
        cells = CellGaussians.from_kept(setting.grid, setting.channels, options, kept).to(setting.device)
        whole = state.named("whole.")
        first, second = (PositionCalibration.from_kept(state.named(f"position.{i}.")) for i in range(2))
        calibration = TwoVoices.from_dict(state.notes["calibration"])
        return _Part(
            cells, WholeGaussian.from_tensors(whole) if whole else None, (first, second), calibration
        )

    def state(self) -> State:
        """That of the flow's own method, and all parts."""
        flow, parts = self.single.state(), super().state()
        return Cached(flow.tensors | parts.tensors, {**flow.notes, **parts.notes, "flow": flow.notes})

    def restore(self, state: State) -> None:
        """The inverse of `state`."""
        shared = {k: v for k, v in state.tensors.items() if k.startswith("shared/")}
        self.single.restore(State(shared, state.notes["flow"]))
        super().restore(state)

    def _flow_scores(self, patches: Tensor) -> Tensor:
        assert self.single.flow is not None
        return self.single.flow.scores(patches)


def _numbers(values: Tensor) -> tuple[float, ...]:
    return tuple(values.double().tolist())


class FineTuningWithCells(WithCells):
    """The lower bound, with cells."""

    kind = FineTuning
    name = "fine-tuning-with-cells"
    title = "fine-tuning, with cells"
    source = FineTuning.source


class EWCWithCells(WithCells):
    """EWC with cells."""

    kind = EWC
    name = "ewc-with-cells"
    title = "EWC, with cells"
    source = EWC.source


class LwFWithCells(WithCells):
    """LwF with cells."""

    kind = LwF
    name = "lwf-with-cells"
    title = "LwF, with cells"
    source = LwF.source


class ReplayWithCells(WithCells):
    """Replay with cells."""

    kind = Replay
    name = "replay-with-cells"
    title = "replay 5 %, with cells"
    source = Replay.source


class JointWithCells(WithCells):
    """Joint training with cells."""

    kind = Joint
    name = "joint-with-cells"
    title = "joint, with cells"
    source = Joint.source
    keeps_images = True
