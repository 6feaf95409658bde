"""UCAD: a key, a prompt and a memory of good patches for every product, on a frozen vision transformer."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from timm.models import VisionTransformer
from torch import Tensor, nn

from ...config import TrainingConfig, check
from ...densities.coreset import greedy_centres
from ...errors import ConfigError, TaskError
from ...features.backbones import get_backbone
from ...features.extractor import Extractor
from ...learning.training import fit
from ...verdict.maps import smooth
from .banks import Bank
from .base import Inspection, Method, Pictures, Setting, State

NEIGHBOURS = 9  # b of the re-weighting of an image's score, the entry found included
LLOYD_ROUNDS = 10
POSITION_WEIGHT = 0.5  # variance of a patch's place against that of its features, when regions are found
BATCH = 8


class Schedule(NamedTuple):
    """How prompts learn: from so many images of a product at most (None: all), so often, at such a rate."""

    images: int | None
    epochs: int
    learning_rate: float


PUBLISHED = Schedule(None, 25, 5e-4)  # of the authors' code
QUICK = Schedule(64, 5, 1e-2)  # about the same way to go, at a fraction of the cost


@dataclass(frozen=True)
class UcadOptions:
    """What UCAD needs beside the setting: it has a backbone of its own.

    Images, epochs and learning rate are those of the published schedule unless given, and those of a quick
    one for random weights, from which no schedule learns anything that is worth the time.

    Attributes:
        backbone: a transformer of the table, or timm:<tag>@<layers>; the layers of the row are not used.
        weights: local file, None for the embedded or downloaded ones, or "random".
        image_size: (h, w) in pixels; a single number is a square.
        layers: how many blocks are run; each has a prompt, and the last one gives the features.
        images: of a product at most, to learn prompts from.
        epochs: over the images for prompts; a fixed number.
        learning_rate: of the prompts.
        memory_images: of a product at most, to take key and knowledge from.
        key_size, knowledge_size: patches kept.
        regions: an image is parted into, for the contrast.
        temperature: of the contrast.
        patch: side of the square of patches that are averaged into one, for key, knowledge and inspection;
            1, none, as in the authors' published command line, which their figures come from, and not
            their class's 3.
        smoothing: sigma of the map's Gaussian in pixels of the transformer's image.
    """

    backbone: str = "vit_base_patch16"
    weights: str | None = None
    image_size: tuple[int, int] = (224, 224)
    layers: int = 6
    images: int | None = None
    epochs: int | None = None
    learning_rate: float | None = None
    memory_images: int = 256
    key_size: int = 196
    knowledge_size: int = 196
    regions: int = 8
    temperature: float = 0.5
    patch: int = 1
    smoothing: float = 4.0

    def __post_init__(self) -> None:
        counts = ("layers", "images", "epochs", "memory_images", "key_size", "knowledge_size", "regions")
        check(self, positive=(*counts, "learning_rate", "smoothing", "temperature", "patch"))
        if self.patch % 2 == 0:
            raise ConfigError(f"UcadOptions.patch: expected an odd side, got {self.patch}")
        object.__setattr__(self, "image_size", _as_pair(self.image_size))

    @property
    def schedule(self) -> Schedule:
        """What is given, and the rest by the weights."""
        given = {name: getattr(self, name) for name in Schedule._fields}
        rule = QUICK if self.weights == "random" else PUBLISHED
        return rule._replace(**{name: value for name, value in given.items() if value is not None})


@dataclass(frozen=True, eq=False)
class _Memory:
    """One product: key (K, D) and knowledge (K', D) float16, and a prompt (L, D) float32 between them."""

    key: Tensor
    prompt: Tensor
    knowledge: Tensor

    def tensors(self) -> dict[str, Tensor]:
        return {"key": self.key, "prompt": self.prompt, "knowledge": self.knowledge}


class UCAD(Method):
    """Unsupervised continual anomaly detection with contrastively-learned prompts, Liu et al., AAAI 2024.

    For every product: a key, the farthest-point coreset of frozen patch features, by which images find
    their product; a prompt, one vector for each of the first blocks, added to all tokens that enter the
    block; and knowledge, the coreset of patch features under that prompt, from which the nearest
    neighbour's distance is the score of a patch. Prompts learn to draw together the patches of one region
    of an image and to part those of different ones. Products share nothing but the frozen transformer.

    Where this departs from the paper:
        - The number of epochs is fixed. Published figures keep the best epoch on the test images and are
          higher for it.
        - Regions come from k-means over frozen features and position, not from SAM (Kirillov et al.,
          2023), which is a large network with weights of its own. They follow what the transformer
          already sees, so the contrast teaches it less than foreign regions would.
        - The last block is normalised before it is used; the authors' code takes it as it is.
        - Prompts are added to the tokens and begin at zero; the authors' code puts random ones before the
          keys and values of every block's attention.
        - Key and knowledge see at most 256 images, and keep 16 bits.
        - The image's score is re-weighted as in the paper; the authors' code leaves that out.
    """

    name = "ucad"
    title = "UCAD"
    source = (
        "Liu et al., Unsupervised Continual Anomaly Detection with Contrastively-learned Prompt, AAAI 2024"
    )
    routes = True

    def __init__(self, setting: Setting, options: UcadOptions | None = None) -> None:
        super().__init__(setting)
        self.options = options or UcadOptions()
        self._spec = replace(
            get_backbone(self.options.backbone), layers=(self.options.layers - 1,), pool=False
        )
        self._extractor: Extractor | None = None
        self._memories: dict[str, _Memory] = {}

    @property
    def notes(self) -> tuple[str, ...]:
        """What a report has to say beside this method's figures."""
        own = self.options
        notes = [
            f"{own.backbone.partition('@')[0]} at {own.image_size[0]}x{own.image_size[1]} of its own, "
            f"{own.layers} blocks",
            "regions from k-means instead of SAM",
            "prompts added and begun at zero instead of random prefixes",
            *([f"patches averaged over {own.patch}x{own.patch}"] if own.patch > 1 else []),
            _told(own.schedule) + ", none chosen on test images",
            f"key and knowledge from {own.memory_images} images at most",
        ]
        return ("random weights", *notes) if own.weights == "random" else tuple(notes)

    def learn(self, products: Sequence[Pictures]) -> None:
        """Key, prompt and knowledge of every product of the task, each by itself.

        Raises:
            BackboneError: the transformer's weights cannot be had.
            ConfigError: the backbone is no vision transformer, or has fewer blocks.
            TrainingError: learning did not stay finite.
        """
        for pictures in products:
            self._memories[pictures.product] = self._learn_one(pictures)

    @torch.no_grad()
    def inspect(self, pictures: Pictures, task: str | None = None) -> Iterator[Inspection]:
        """The product of the nearest key where none is given, then distances from its knowledge.

        Raises:
            TaskError: the product given is not known, or none is.
        """
        if not self._memories or (task is not None and task not in self._memories):
            known = ", ".join(self._memories) or "none"
            raise TaskError(f"expected a product that was learned ({known}), got {task!r}")
        extractor = self._backbone()
        sigma = self.options.smoothing * extractor.grid[0] / extractor.image_size[0]  # in patches
        for i in range(len(pictures)):
            image = self._images(pictures, [i])
            chosen = task or self._nearest_key(self._local(self._frozen(image))[0].flatten(0, 1))
            memory = self._memories[chosen]
            patches = self._local(self._prompted(image, memory.prompt))[0].flatten(0, 1)
            knowledge = Bank(memory.knowledge.float())
            found = knowledge.nearest(patches)
            score = knowledge.image_score(patches, found, NEIGHBOURS)
            patch_map = smooth(found.distance.view(1, *extractor.grid), sigma)[0].cpu().numpy()
            yield Inspection(task=chosen, known=None, score=score, patch_map=patch_map)

    def state(self) -> State:
        """All products' keys, prompts and knowledge; the transformer is the backbone and not in it."""
        tensors = {
            f"{name}/{part}": tensor.cpu()
            for name, memory in self._memories.items()
            for part, tensor in memory.tensors().items()
        }
        return State(tensors, {"products": list(self._memories)})

    def restore(self, state: State) -> None:
        """Takes up a state."""
        parts = ("key", "prompt", "knowledge")
        self._memories = {
            name: _Memory(*(state.tensors[f"{name}/{part}"].to(self.setting.device) for part in parts))
            for name in state.notes["products"]
        }

    def _learn_one(self, pictures: Pictures) -> _Memory:
        own, taught = self.options, self.options.schedule.images or len(pictures)
        order = np.random.default_rng(self.setting.seed).permutation(len(pictures))
        images = self._images(pictures, order[: max(taught, own.memory_images)].tolist())
        remembered, images = images[: own.memory_images], images[:taught]
        frozen = self._in_batches(lambda batch: self._local(self._frozen(batch)), remembered)
        key = farthest_points(frozen.flatten(0, 2), own.key_size)
        del frozen  # half a megabyte an image
        labels = self._in_batches(self._regions, images)
        prompt = self._learn_prompt(images, labels.flatten(1))
        shown = self._in_batches(lambda batch: self._local(self._prompted(batch, prompt)), remembered)
        knowledge = farthest_points(shown.flatten(0, 2), own.knowledge_size)
        return _Memory(key.half(), prompt, knowledge.half())

    def _learn_prompt(self, images: Tensor, labels: Tensor) -> Tensor:
        """Prompts (L, D) from uint8 images (N, 3, h, w) and the regions of their patches (N, P)."""
        _, epochs, rate = self.options.schedule
        size = self.options.layers, self._backbone().dim
        prompt = nn.Parameter(torch.zeros(size, device=self.setting.device))
        waiting: list[int] = []

        def step_loss(generator: torch.Generator) -> Tensor:
            if not waiting:
                waiting.extend(torch.randperm(len(images), generator=generator).tolist())
            batch = [waiting.pop() for _ in range(min(BATCH, len(waiting)))]
            return structure_loss(
                self._prompted(images[batch], prompt).flatten(1, 2), labels[batch], self.options.temperature
            )

        fit(
            [prompt],
            step_loss,
            TrainingConfig(learning_rate=rate),
            steps=epochs * math.ceil(len(images) / BATCH),
            seed=self.setting.seed,
        )
        return prompt.detach()

    def _nearest_key(self, patches: Tensor) -> str:
        """The product with the least sum, over patches (P, D), of distances from its key."""
        sums = {n: float(_distances(patches, m.key.float()).amin(1).sum()) for n, m in self._memories.items()}
        return min(sums, key=lambda name: sums[name])

    def _images(self, pictures: Pictures, chosen: Sequence[int]) -> Tensor:
        extractor = self._backbone()
        return extractor.stack([pictures.read(i, extractor.image_size) for i in chosen]).to(extractor.device)

    def _frozen(self, images: Tensor) -> Tensor:
        """Features (B, h', w', D) of uint8 images (B, 3, h, w) without prompts."""
        return self._backbone().features(images)

    def _regions(self, images: Tensor) -> Tensor:
        """Regions (B, h', w') of the patches of uint8 images (B, 3, h, w)."""
        return torch.stack(
            [find_regions(features, self.options.regions) for features in self._frozen(images)]
        )

    def _prompted(self, images: Tensor, prompt: Tensor) -> Tensor:
        """The same under a prompt (L, D): k_i = f_i(k_(i-1) + p_i); with zeros, those of `_frozen`."""
        extractor = self._backbone()
        module: Any = extractor.module
        network: Any = module.network
        tokens = network.patch_embed(torch.addcmul(module.shift, images.float(), module.scale))
        tokens = network.norm_pre(network.patch_drop(network._pos_embed(tokens)))
        for block, added in zip(network.blocks, prompt, strict=True):
            tokens = block(tokens + added)
        patches: Tensor = network.norm(tokens)[:, network.num_prefix_tokens :]
        return patches.unflatten(1, extractor.grid)

    def _local(self, features: Tensor) -> Tensor:
        """Features (B, h', w', D) averaged over squares of patches, at the border over what there is."""
        side = self.options.patch
        maps = F.avg_pool2d(
            features.permute(0, 3, 1, 2), side, stride=1, padding=side // 2, count_include_pad=False
        )
        return maps.permute(0, 2, 3, 1)

    @torch.no_grad()
    def _in_batches(self, compute: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
        return torch.cat([compute(batch) for batch in images.split(BATCH)])

    def _backbone(self) -> Extractor:
        if self._extractor is None:
            own = self.options
            # One random network for all seeds: which weights it has is no part of what is learned.
            extractor = Extractor(
                self._spec, weights=own.weights, image_size=own.image_size, device=self.setting.device
            )
            if not isinstance(extractor.module.network, VisionTransformer):
                raise ConfigError(f"UCAD: expected a vision transformer, got backbone {own.backbone!r}")
            self._extractor = extractor
        return self._extractor


def farthest_points(points: Tensor, count: int) -> Tensor:
    """A coreset by farthest-point sampling (Gonzalez 1985): at most `count` rows of points (N, D).

    Begins with the point nearest to the mean; each next one is the farthest from all taken so far. Ends
    early where nothing but copies is left.
    """
    centred = points - points.mean(0)
    first = int(centred.square().sum(1).argmin())
    return points[greedy_centres(centred, min(count, len(points)), [first])]


def find_regions(features: Tensor, count: int) -> Tensor:
    """Parts one image's patches into at most `count` regions of like features, near each other.

    K-means (Lloyd 1982) of features and position; begins with farthest points, so nothing is random.

    Args:
        features: frozen, (h, w, D).
        count: of regions.

    Returns:
        Region of every patch, (h, w) int64.
    """
    height, width, _ = features.shape
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    place = torch.stack([rows, columns], dim=-1).flatten(0, 1).float().to(features.device)
    points = torch.cat(
        [_unit_variance(features.flatten(0, 1)), POSITION_WEIGHT**0.5 * _unit_variance(place)], 1
    )
    centres = farthest_points(points, count)
    labels = _distances(points, centres).argmin(1)
    for _ in range(LLOYD_ROUNDS):
        members = F.one_hot(labels, len(centres)).float()
        sizes = members.sum(0)[:, None]
        means = (members.T @ points) / sizes.clamp_min(1)
        centres = torch.where(sizes > 0, means, centres)
        labels = _distances(points, centres).argmin(1)
    return labels.view(height, width)


def structure_loss(features: Tensor, labels: Tensor, temperature: float) -> Tensor:
    """The structure-based contrast of the authors' code, a mean over all pairs of an image's patches.

    -s of two patches of one region, exp(s) of two of different ones, with s their cosine over the
    temperature. What two regions share costs exponentially, so they are parted before any is drawn together.

    Args:
        features: (B, P, D).
        labels: region of every patch, (B, P); pairs are formed within an image only.
        temperature: of the cosine.
    """
    unit = F.normalize(features, dim=-1)
    alike = unit @ unit.transpose(1, 2) / temperature
    same = labels[:, :, None] == labels[:, None, :]
    return torch.where(same, -alike, alike.exp()).mean()


def _distances(a: Tensor, b: Tensor) -> Tensor:
    """Euclidean distances (N, M), without the short cut whose rounding makes copies differ."""
    return torch.cdist(a, b, compute_mode="donot_use_mm_for_euclid_dist")


def _unit_variance(points: Tensor) -> Tensor:
    """Points (N, D) scaled by one number to a total variance of 1; equal points to zeros."""
    centred = points - points.mean(0)
    return centred / centred.square().sum(1).mean().sqrt().clamp_min(1e-12)


def _told(schedule: Schedule) -> str:
    """The schedule in words, beside the published one where it is another."""
    images, epochs, rate = schedule
    told = f"{epochs} epochs over {'all' if images is None else f'at most {images}'} images at {rate:g}"
    return told if schedule == PUBLISHED else f"{told} instead of {_told(PUBLISHED)}"


def _as_pair(size: Any) -> tuple[int, int]:
    """An image size (h, w) of one or two numbers."""
    sides = (size, size) if isinstance(size, int) else tuple(size) if isinstance(size, tuple | list) else ()
    if len(sides) != 2 or any(isinstance(s, bool) or not isinstance(s, int) or s <= 0 for s in sides):
        raise ConfigError(f"UcadOptions.image_size: expected one or two whole numbers above 0, got {size!r}")
    return sides[0], sides[1]
