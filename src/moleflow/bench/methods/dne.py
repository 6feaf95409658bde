"""Distribution of normal embeddings (DNE): one Gaussian per product, merged into one normal density."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...config import TrainingConfig, check
from ...errors import ConfigError, TaskError, TrainingError
from ...features.extractor import Extractor
from ...learning.training import fit
from ...routing.gaussian import describe, ledoit_wolf
from ...threads import seeded
from .base import Inspection, Method, Pictures, Setting, State

HIDDEN = 128  # width of the adapter
EXTRACT_BATCH = 8
RIDGE = 1e-4  # added to a covariance, as a share of its average variance
AREA, ASPECT, JITTER = (0.02, 0.15), (0.3, 3.3), 0.1  # Li et al. 2021
SAME_WITHIN = 0.01  # share of the largest value; 16-bit rounding and other batches stay well within


@dataclass(frozen=True)
class DneOptions:
    """How the adapter learns; epochs, batch and learning rate are those of the authors' code.

    Attributes:
        epochs: over a task's pasted copies.
        batch: images of each kind in a step.
        learning_rate: of Adam, with a short rise and a cosine's fall.
        images: of a product at most that copies are made of.
        redrawn: copies drawn anew in every epoch, in turn. The authors, who learn the whole network, see all
            of them anew; here the backbone would have to look at each again, 12,800 times a product. With
            two it looks at most 356 times, and a copy is seen in 36 epochs on average.
    """

    epochs: int = 50
    batch: int = 32
    learning_rate: float = 1e-4
    images: int = 256
    redrawn: int = 2

    def __post_init__(self) -> None:
        check(self, positive=("epochs", "batch", "learning_rate", "images"), least_zero=("redrawn",))


COMMON = DneOptions()


@dataclass(frozen=True, eq=False)
class _Gaussian:
    """Normal embeddings of one product, as the head of its day made them, float32.

    Attributes:
        mean: (E,).
        root: lower Cholesky factor of the shrunk covariance, (E, E).
        images: how many it was learned from, and how many are drawn again.
    """

    mean: Tensor
    root: Tensor
    images: int

    @classmethod
    def of(cls, embeddings: Tensor) -> _Gaussian:
        """From embeddings (N, E) float64."""
        mean, root = _fit_gaussian(embeddings)
        return cls(mean.float(), root.float(), len(embeddings))

    def sample(self, generator: torch.Generator) -> Tensor:
        """As many embeddings of length 1 as there were images, (N, E) float64."""
        z = torch.randn(self.images, len(self.mean), generator=generator)
        return F.normalize((self.mean + z @ self.root.T).double(), dim=-1)


class _Head(nn.Module):
    """Pooled features with a correction that is learned, and a classifier on them.

    embedding = x / scale + adapter(standardised x). The adapter begins at zero, so learning begins where
    pretraining ended, as it does for the authors' whole network.
    """

    centre: Tensor
    spread: Tensor
    scale: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.register_buffer("centre", torch.zeros(channels))
        self.register_buffer("spread", torch.ones(channels))
        self.register_buffer("scale", torch.ones(()))
        last = nn.Linear(HIDDEN, channels)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        # The normalisation bounds what products far from the first one may do to the first step.
        self.adapter = nn.Sequential(nn.Linear(channels, HIDDEN), nn.LayerNorm(HIDDEN), nn.GELU(), last)
        self.classify = nn.Linear(channels, 2)

    def start(self, embeddings: Tensor) -> None:
        """Fixes the scale of the inputs by normal embeddings (N, D) float64 of the first task."""
        spread = embeddings.std(0, unbiased=False)
        # A channel that hardly moves on the first product must not drown the others on the next.
        spread = spread.clamp_min(max(0.1 * float(spread.mean()), 1e-6))
        self.centre.copy_(embeddings.mean(0))
        self.spread.copy_(spread)
        self.scale.copy_(embeddings.norm(dim=1).mean().clamp_min(1e-6))

    def forward(self, x: Tensor) -> Tensor:
        """Pooled features (B, D) to logits of normal and pasted (B, 2)."""
        logits: Tensor = self.classify(self._hidden(x))
        return logits

    def embed(self, x: Tensor) -> Tensor:
        """Pooled features (B, D) to embeddings of length 1, (B, D) float64 on the processor."""
        return F.normalize(self._hidden(x.to(self.centre.device)).cpu().double(), dim=-1)

    def _hidden(self, x: Tensor) -> Tensor:
        correction: Tensor = self.adapter((x - self.centre) / self.spread)
        return x / self.scale + correction


@dataclass(frozen=True, eq=False)
class _Density:
    """One Gaussian over the embeddings of all products: mean (E,) and lower Cholesky factor (E, E)."""

    mean: Tensor
    root: Tensor

    def distances(self, embeddings: Tensor) -> Tensor:
        """Mahalanobis distances (B,) of embeddings (B, E) float64."""
        centred = (embeddings - self.mean).T
        return torch.linalg.solve_triangular(self.root, centred, upper=False).norm(dim=0)


class DNE(Method):
    """Distribution of normal embeddings, Li et al., ACM MM 2022.

    A network learns to tell a task's normal images from CutPaste images of them (Li et al., CVPR 2021), and
    a Gaussian of the task's normal embeddings is left behind instead of the images. Embeddings of today and
    draws from the Gaussians of the days before make one Gaussian, and an image's score is its Mahalanobis
    distance from it: no map, no product. The network goes on changing, and embeds images of earlier
    products elsewhere than where their Gaussians lie: that is how DNE forgets. What holds it is that
    embeddings have length 1 and that the classifier on them is learned with the first task alone.

    Where this departs from the paper: the backbone is frozen and shared by all methods, and a small adapter
    on its pooled features, which begins at nothing, learns in place of the whole network. A part of the
    pasted copies is drawn anew in every epoch, instead of all. No weight decay, and no warm-up over ten
    epochs. A task of several products leaves one Gaussian each.
    """

    name = "dne"
    title = "DNE"
    source = "Li et al., Towards Continual Adaptation in Industrial Anomaly Detection, ACM MM 2022"
    localises = False

    def __init__(self, setting: Setting, options: DneOptions = COMMON) -> None:
        super().__init__(setting)
        self.options = options
        self._gaussians: dict[str, _Gaussian] = {}
        self._head: _Head | None = None
        self._density: _Density | None = None
        self._extractor: Extractor | None = None

    @property
    def notes(self) -> tuple[str, ...]:
        """How this run departs from the paper."""
        own = self.options
        return (
            f"frozen {self.setting.backbone}: an adapter on its pooled features learns alone",
            f"{own.epochs} epochs of {own.images} pasted copies at most, {own.redrawn} drawn anew in each",
        )

    def learn(self, products: Sequence[Pictures]) -> None:
        """The adapter on the task's images, then the density of embeddings and draws of all earlier ones.

        Raises:
            ConfigError: the setting's backbone is not the one the features come from.
            TrainingError: learning did not stay finite.
        """
        seed = self.setting.seed
        names = {pictures.product for pictures in products}
        good = torch.cat([pictures.descriptors for pictures in products])
        if not torch.isfinite(good).all():
            raise TrainingError(f"expected finite features of {', '.join(sorted(names))}, but some are not")
        copies = _Copies(products, self._backbone(), self.options, seed)
        head, own = self._next_head(good), self.options
        normal = good.float().to(self.setting.device)  # embeddings are the processor's

        def loss(generator: torch.Generator) -> Tensor:
            pasted = copies.batch(generator).to(normal.device)
            some = normal[torch.randint(len(normal), (len(pasted),), generator=generator)]
            labels = torch.arange(2, device=some.device).repeat_interleave(len(some))
            return F.cross_entropy(head(torch.cat([some, pasted])), labels)

        fit(
            [p for p in head.parameters() if p.requires_grad],
            loss,
            TrainingConfig(learning_rate=own.learning_rate),
            steps=own.epochs * copies.steps,
            seed=seed,
        )
        head.requires_grad_(False).eval()
        today = {pictures.product: head.embed(pictures.descriptors.float()) for pictures in products}
        generator = torch.Generator().manual_seed(seed)
        drawn = [self._gaussians[name].sample(generator) for name in sorted(set(self._gaussians) - names)]
        self._head = head
        self._density = _Density(*_fit_gaussian(torch.cat([*today.values(), *drawn])))
        self._gaussians |= {product: _Gaussian.of(embeddings) for product, embeddings in today.items()}

    @torch.no_grad()
    def inspect(self, pictures: Pictures, task: str | None = None) -> Iterator[Inspection]:
        """A score per picture; the product makes no difference, given or not.

        Raises:
            TaskError: nothing was learned yet.
        """
        if self._head is None or self._density is None:
            raise TaskError("expected a method that has learned a product, this one has learned none")
        for descriptor in pictures.descriptors.float():  # one by one: sums over a batch may round otherwise
            distance = self._density.distances(self._head.embed(descriptor[None]))
            yield Inspection(task=None, known=None, score=float(distance[0]), patch_map=None)

    def state(self) -> State:
        """The head, the merged density, and every product's Gaussian."""
        tensors: dict[str, Tensor] = {}
        if self._head is not None and self._density is not None:
            tensors |= {
                f"shared/head.{k}": v.detach().clone().cpu() for k, v in self._head.state_dict().items()
            }
            tensors |= {"shared/mean": self._density.mean, "shared/root": self._density.root}
        for name, gaussian in self._gaussians.items():
            tensors |= {f"{name}/mean": gaussian.mean, f"{name}/root": gaussian.root}
        return State(tensors, {"images": {name: g.images for name, g in self._gaussians.items()}})

    def restore(self, state: State) -> None:
        """Takes up a state."""
        tensors = state.tensors
        self._gaussians = {
            name: _Gaussian(tensors[f"{name}/mean"], tensors[f"{name}/root"], images)
            for name, images in state.notes["images"].items()
        }
        self._head, self._density = None, None
        own = {k.removeprefix("shared/head."): v for k, v in tensors.items() if k.startswith("shared/head.")}
        if own:
            self._head = _new_head(self.setting)
            self._head.load_state_dict(own)
            self._head.requires_grad_(False).eval()
            self._density = _Density(tensors["shared/mean"], tensors["shared/root"])

    def _next_head(self, good: Tensor) -> _Head:
        """A new head for the first task; then a copy of the last one, whose classifier stays as it is.

        A copy, so that a failed task changes nothing.
        """
        head = _new_head(self.setting)
        if self._head is None:
            head.start(good)
        else:
            head.load_state_dict(self._head.state_dict())
            head.classify.requires_grad_(False)
        return head

    def _backbone(self) -> Extractor:
        if self._extractor is None:
            own = self.setting
            self._extractor = Extractor(
                own.backbone, weights=own.weights, image_size=own.image_size, device=own.device
            )
        return self._extractor


class _Copies:
    """Pooled features of pasted copies of a task's images; some are made anew whenever all have been seen."""

    def __init__(
        self, products: Sequence[Pictures], extractor: Extractor, options: DneOptions, seed: int
    ) -> None:
        self._extractor, self._options = extractor, options
        self._rng = np.random.default_rng(seed)
        self._sources = []
        for pictures in products:
            _check_backbone(extractor, pictures)
            chosen = np.sort(self._rng.permutation(len(pictures))[: options.images])
            self._sources += [(pictures, int(i)) for i in chosen]
        self.features = self._made(range(len(self._sources)))
        self._turn, self._waiting = 0, list[int]()

    @property
    def steps(self) -> int:
        """Of an epoch."""
        return math.ceil(len(self._sources) / self._options.batch)

    def batch(self, generator: torch.Generator) -> Tensor:
        """Pooled features (b, D) float32 of the next copies, every one once in an epoch."""
        if not self._waiting:
            self._redraw()
            self._waiting = torch.randperm(len(self._sources), generator=generator).tolist()
        taken, self._waiting = self._waiting[: self._options.batch], self._waiting[self._options.batch :]
        return self.features[taken]

    def _redraw(self) -> None:
        count = min(self._options.redrawn, len(self._sources))
        places = [(self._turn + i) % len(self._sources) for i in range(count)]
        self._turn += count
        if places:
            self.features[places] = self._made(places)

    @torch.no_grad()
    def _made(self, places: Sequence[int]) -> Tensor:
        """New copies of some of the images, (n, D) float32."""
        size, parts = self._extractor.image_size, []
        for start in range(0, len(places), EXTRACT_BATCH):
            sources = [self._sources[place] for place in places[start : start + EXTRACT_BATCH]]
            images = [cut_paste(pictures.read(i, size), self._rng) for pictures, i in sources]
            features = self._extractor.features(self._extractor.stack(images))
            # Rounded like the cached features, lest the head learn to see the rounding.
            parts.append(describe(features.half().float()).float())
        return torch.cat(parts)


def cut_paste(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A copy of an image with one of its rectangles, slightly recoloured, put elsewhere.

    The CutPaste augmentation of Li et al. (2021): a rectangle of 2 to 15 % of the area and an aspect
    ratio between 0.3 and 3.3, with brightness and contrast changed by up to a tenth.

    Args:
        image: uint8 (h, w, 3).
        rng: source of all choices.
    """
    height, width = image.shape[:2]
    area = rng.uniform(*AREA) * height * width
    aspect = math.exp(rng.uniform(math.log(ASPECT[0]), math.log(ASPECT[1])))
    rows = min(height, max(1, round(math.sqrt(area * aspect))))
    columns = min(width, max(1, round(math.sqrt(area / aspect))))
    (top, to_top), (left, to_left) = (
        rng.integers(0, room + 1, size=2) for room in (height - rows, width - columns)
    )
    piece = image[top : top + rows, left : left + columns].astype(np.float64)
    brightness, contrast = rng.uniform(1 - JITTER, 1 + JITTER, size=2)
    recoloured = (piece - piece.mean()) * contrast + piece.mean() * brightness
    result = image.copy()
    result[to_top : to_top + rows, to_left : to_left + columns] = recoloured.round().clip(0, 255)
    return result


def _check_backbone(extractor: Extractor, pictures: Pictures) -> None:
    """Pasted images must pass through the network that the good ones went through."""
    found = extractor.features(extractor.stack([pictures.read(0, extractor.image_size)])).cpu()[0]
    cached = pictures.features[0].float().cpu()
    if found.shape != cached.shape or (found - cached).abs().max() > SAME_WITHIN * cached.abs().max():
        raise ConfigError(
            f"expected cached features {tuple(found.shape)} of backbone {extractor.name!r} for "
            f"{pictures.product!r}, got {tuple(cached.shape)} of another network or image size"
        )


def _new_head(setting: Setting) -> _Head:
    with seeded(setting.seed):
        return _Head(setting.channels).to(setting.device)


def _fit_gaussian(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Mean (D,) and lower Cholesky factor (D, D) of the shrunk covariance of rows (N, D) float64."""
    mean = rows.mean(0)
    covariance = ledoit_wolf(rows - mean)
    ridge = max(RIDGE * float(covariance.diagonal().mean()), 1e-12)
    eye = torch.eye(len(mean), dtype=rows.dtype)
    # In rows, as files keep it: products with another layout may round otherwise.
    return mean, torch.linalg.cholesky(covariance + ridge * eye).contiguous()
