"""A bank that a patch is projected onto rather than looked up in, after ProCon."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from ...config import check
from ...features.extractor import Features
from ...verdict.maps import smooth
from .banks import Bank, Selection, candidates, local_patches, require_images, select
from .base import Inspection, PerProduct, Pictures, Setting, State

LEAST_TEMPERATURE = 1e-8  # of an image whose patches are all in a bank


@dataclass(frozen=True)
class ProjectionOptions(Selection):
    """Options of the banks; where the authors' code names a number, that number.

    Attributes:
        banks: selected by different seeds; the median of what they say counts.
        share: of a product's patches that each bank keeps.
        least, most: patches of a bank; the authors know no bounds.
        neighbours: patches of a bank that a patch is mixed from.
        top_share: of the patches, the highest, whose mean is the image's score.
    """

    banks: int = 5
    share: float = 0.01
    least: int = 500
    most: int = 2_000
    neighbours: int = 5
    top_share: float = 0.005

    def __post_init__(self) -> None:
        super().__post_init__()
        counts = ("banks", "least", "most", "neighbours")
        check(self, positive=counts, share=("share", "top_share"))

    def size(self, patches: int) -> int:
        """Patches that a bank keeps of so many."""
        return min(self.most, max(self.least, round(self.share * patches)))


COMMON = ProjectionOptions()


class ProjectionBanks(PerProduct):
    """Projection onto a patch's neighbours in several banks, after ProCon (Chae et al. 2026, 2607.04894).

    A patch is mixed from its nearest patches in a bank, each weighing exp(-|x - m|^2 / tau); what the mixture
    leaves of it is its score, in the median over banks. tau is the median squared distance between the
    inspected image's patches and those neighbours. Every layer of a patch is of length one. Banks differ in
    the seed of the choice and, of a product with more patches than there are candidates, in these: only then
    is a patch that one bank's stray resembles not normal yet.

    Where this departs from the authors: the bench's features and one bank over all layers, where they keep
    banks of separate DINOv2 layers; bounds on a bank's size; our router, for the paper is about one product.
    """

    name = "projection-bank"
    title = "projection bank"
    source = "after ProCon (Chae et al. 2026, arXiv 2607.04894), per product behind our router"

    def __init__(self, setting: Setting, options: ProjectionOptions = COMMON) -> None:
        super().__init__(setting)
        self.options = options

    @property
    def notes(self) -> tuple[str, ...]:
        """How this run departs from the authors'."""
        own = self.options
        kept = f"{own.banks} banks of {100 * own.share:g} % of the patches, {own.least:,} to {own.most:,}"
        return "one family of banks over all layers", kept, *own.notes(self.setting.channels)

    def learn_part(self, pictures: Pictures) -> Tensor:
        """Banks by different seeds, (B, m, D) float32 that 16 bits hold."""
        require_images(pictures)
        features, images = pictures.features, range(len(pictures))
        size = self.options.size(features.shape[0] * features.shape[1] * features.shape[2])
        banks: list[Bank] = []
        for number in range(self.options.banks):
            setting = replace(self.setting, seed=self.setting.seed + 1000 * number)
            drawn = candidates(features, images, setting, self.options.candidates)
            banks.append(select(self._of_length_one(drawn.float()).half(), size, setting, self.options))
        least = min(len(bank.patches) for bank in banks)  # selection ends early among copies
        return torch.stack([bank.patches[:least] for bank in banks])

    def inspect_part(self, part: Tensor, seen: Features) -> Inspection:
        """The smoothed median of what banks leave of every patch, and the mean of the highest."""
        x = local_patches(seen.patches, self.setting)
        flat = self._of_length_one(x.flatten(0, 2))
        residual = torch.stack([self._left(flat, bank) for bank in part]).median(0).values
        maps = smooth(residual.view(1, *x.shape[1:3]), self.setting.config.scoring.smoothing)
        top = max(1, round(self.options.top_share * maps[0].numel()))
        score = float(maps.flatten().topk(top).values.mean())
        return Inspection(task=None, known=None, score=score, patch_map=maps[0].cpu().numpy())

    def part_state(self, part: Tensor) -> State:
        """The banks, float16."""
        return State({"banks": part.half().cpu()})

    def part_from(self, state: State) -> Tensor:
        """The inverse of `part_state`."""
        return state.tensors["banks"].to(self.setting.device).float()

    def _of_length_one(self, patches: Tensor) -> Tensor:
        """Patches (n, D) with the part that each layer has of them of length one."""
        layers = patches.split(self.setting.widths or (self.setting.channels,), dim=1)
        return torch.cat([F.normalize(layer, dim=1) for layer in layers], dim=1)

    def _near(self, x: Tensor, bank: Tensor) -> tuple[Tensor, Tensor]:
        """Squared distances (n, k) of patches (n, D) from their nearest in a bank, and which these are."""
        table = torch.addmm(bank.square().sum(1), x, bank.T, alpha=-2)
        index = table.topk(min(self.options.neighbours, len(bank)), dim=1, largest=False).indices
        # The distance itself has none of the product's rounding.
        return (x[:, None] - bank[index]).square().sum(-1), index

    def _left(self, x: Tensor, bank: Tensor) -> Tensor:
        """What the mixture of a bank's nearest leaves of an image's patches (n, D), (n,)."""
        squared, index = self._near(x, bank)
        temperature = squared.median().clamp_min(LEAST_TEMPERATURE)
        weights = torch.softmax(-squared / temperature, dim=1)
        return (x - (weights[..., None] * bank[index]).sum(1)).norm(dim=1)
