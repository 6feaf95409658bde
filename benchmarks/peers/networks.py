"""The open library's models behind one interface: learn from paths, inspect a batch, say what is kept.

Its networks, its fitting and its losses are used as they are, without its trainer around them, which would
only cost time. Images are decoded and squeezed as ours are.
"""

from __future__ import annotations

import itertools
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from anomalib.models.image.efficient_ad.torch_model import EfficientAdModel
from anomalib.models.image.fastflow.loss import FastflowLoss
from anomalib.models.image.fastflow.torch_model import FastflowModel, create_fast_flow_block
from anomalib.models.image.padim.torch_model import PadimModel
from anomalib.models.image.patchcore.torch_model import PatchcoreModel
from exchange import Job, read_arrays
from PIL import Image
from torch import Tensor, nn

BATCH = 32  # of the library's data modules
CORESET = 0.1  # of the library's PatchCore
NEIGHBOURS = 9
PADIM_FEATURES = 100  # the library's number for resnet18; it has none for other small backbones
STRIDES = (1, 2, 3)  # feature indices at 4, 8 and 16 pixels, where the library takes layer1 to layer3
EFFICIENTAD_STEPS = 70_000  # of the library's configuration
SAMPLE = 4  # images that EfficientAD's statistics are taken from: they cost time and decide nothing here


class Peer(ABC):
    """One of the library's methods.

    Attributes:
        model: the library's network.
        frozen: names (beginnings) of what no product changes, and all can share.
        judged: whether its scores say anything; not with random weights.
        goes_on: whether learning another product begins from what is there, instead of replacing it.
        estimated: of what the seconds of learning were worked out; empty where they were all spent.
    """

    frozen: tuple[str, ...] = ("feature_extractor.",)
    judged = True
    goes_on = False
    estimated = ""
    model: Any  # theirs, whose parts torch's type for a module does not know

    def __init__(self, job: Job) -> None:
        self.job = job
        self.backbone = f"{job.backbone}, our weights"

    @abstractmethod
    def learn(self, paths: Sequence[str]) -> float:
        """Learns a product; the seconds that it takes."""

    @torch.no_grad()
    def inspect(self, paths: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Scores (B,) and maps (B, h, w)."""
        self.model.eval()
        said = self.model(self.pictures(paths))
        maps = said.anomaly_map
        return said.pred_score.reshape(len(paths)), maps.reshape(len(paths), *maps.shape[-2:])

    def kept(self) -> dict[str, Tensor]:
        """What belongs to the product."""
        state = self.model.state_dict()
        return {name: value for name, value in state.items() if not name.startswith(self.frozen)}

    def shared_bytes(self) -> int:
        """Bytes of what does not."""
        state = self.model.state_dict()
        return sum(value.nbytes for name, value in state.items() if name.startswith(self.frozen))

    def pictures(self, paths: Sequence[str]) -> Tensor:
        """(B, 3, size, size), as the network expects them."""
        images = torch.from_numpy(np.stack([decode(path, self.job.size) for path in paths]))
        images = images.permute(0, 3, 1, 2).float().div_(255)
        return images.sub_(self._channels(self.job.mean)).div_(self._channels(self.job.std))

    @staticmethod
    def _channels(values: Sequence[float]) -> Tensor:
        return torch.tensor(values).view(1, -1, 1, 1)


class _Fitted(Peer):
    """Features of all good images in one pass, and a fit over them."""

    def learn(self, paths: Sequence[str]) -> float:
        started = time.perf_counter()
        self.model.train()
        with torch.no_grad():
            for batch in batches(paths, BATCH):
                self.model(self.pictures(batch))
            self.fit()
        return time.perf_counter() - started

    @abstractmethod
    def fit(self) -> None: ...


class PatchCore(_Fitted):
    """A memory bank of patches, thinned to a tenth."""

    def __init__(self, job: Job) -> None:
        super().__init__(job)
        self.model = PatchcoreModel(
            layers=list(job.layers), backbone=job.backbone, pre_trained=False, num_neighbors=NEIGHBOURS
        )
        load_backbone(self.model.feature_extractor.feature_extractor, job.weights)

    def fit(self) -> None:
        self.model.subsample_embedding(CORESET)


class Padim(_Fitted):
    """A Gaussian for every place."""

    def __init__(self, job: Job) -> None:
        super().__init__(job)
        self.model = PadimModel(
            backbone=job.backbone, layers=list(STRIDES), pre_trained=False, n_features=PADIM_FEATURES
        )
        load_backbone(self.model.feature_extractor.feature_extractor, job.weights)

    def fit(self) -> None:
        self.model.fit()


class FastFlow(Peer):
    """Normalising flows over three layers, trained with the library's loss and optimiser.

    The library builds it on four backbones only. Here its flow, its normalisation, its loss and its map stand
    on ours, put together as it does it for a ResNet.
    """

    goes_on = True

    def __init__(self, job: Job) -> None:
        super().__init__(job)
        side = (job.size, job.size)
        self.model = FastflowModel(side, "resnet18", pre_trained=False)
        network = timm.create_model(job.backbone, pretrained=False, features_only=True, out_indices=STRIDES)
        load_backbone(network, job.weights)
        network.requires_grad_(False)
        layers: Any = network.feature_info  # timm's, which torch's type for a module does not know
        shapes = [
            (channels, job.size // stride, job.size // stride)
            for channels, stride in zip(layers.channels(), layers.reduction(), strict=True)
        ]
        self.model.feature_extractor = network
        self.model.norms = nn.ModuleList(nn.LayerNorm(shape) for shape in shapes)
        self.model.fast_flow_blocks = nn.ModuleList(
            create_fast_flow_block(list(shape), conv3x3_only=False, hidden_ratio=1.0, flow_steps=8)
            for shape in shapes
        )

    def learn(self, paths: Sequence[str]) -> float:
        started = time.perf_counter()
        self._train(paths, self.job.epochs)
        return time.perf_counter() - started

    def _train(self, paths: Sequence[str], epochs: int) -> None:
        pictures = torch.cat([self.pictures(batch) for batch in batches(paths, BATCH)])
        optimiser = torch.optim.Adam(self.model.parameters(), lr=1e-3, weight_decay=1e-5)
        loss = FastflowLoss()
        self.model.train()
        for _ in range(epochs):
            for rows in torch.randperm(len(pictures)).split(BATCH):
                optimiser.zero_grad()
                loss(*self.model(pictures[rows])).backward()
                optimiser.step()


class FastFlowResNet18(FastFlow):
    """As the library has it, on a backbone of which there are no weights without a network: its time only."""

    judged = goes_on = False

    def __init__(self, job: Job) -> None:
        Peer.__init__(self, job)
        self.backbone = "resnet18, random weights"
        self.model = FastflowModel((job.size, job.size), "resnet18", pre_trained=False)

    def learn(self, paths: Sequence[str]) -> float:
        started = time.perf_counter()
        self._train(paths, 1)
        self.estimated = f"{self.job.epochs} epochs, of which 1 was run"
        return (time.perf_counter() - started) * self.job.epochs


class EfficientAd(Peer):
    """Student, teacher and autoencoder. Teacher and ImageNette come from the net only, so: its time.

    The teacher is random, and drawn noise stands in the place of the pictures of ImageNette.
    """

    frozen = ("teacher.",)
    judged = False

    def __init__(self, job: Job) -> None:
        super().__init__(job)
        self.backbone = "its own, random teacher"
        self.model = EfficientAdModel()

    def pictures(self, paths: Sequence[str]) -> Tensor:
        images = np.stack([decode(path, self.job.size) for path in paths])
        return torch.from_numpy(images).permute(0, 3, 1, 2).float().div_(255)  # it normalises by itself

    def learn(self, paths: Sequence[str]) -> float:
        self._statistics(paths[:SAMPLE])
        self.model.train()
        self.model.teacher.eval()
        taught = [*self.model.student.parameters(), *self.model.ae.parameters()]
        optimiser = torch.optim.Adam(taught, lr=1e-4, weight_decay=1e-5)
        took = [
            self._step(optimiser, path) for path in itertools.islice(itertools.cycle(paths), self.job.steps)
        ]
        self._quantiles(paths[:SAMPLE])
        self.estimated = f"{EFFICIENTAD_STEPS:,} steps, of which {self.job.steps} were run"
        return float(np.median(took)) * EFFICIENTAD_STEPS

    def _step(self, optimiser: torch.optim.Optimizer, path: str) -> float:
        started = time.perf_counter()
        picture = self.pictures([path])
        losses = self.model(batch=picture, batch_imagenet=torch.rand_like(picture))
        optimiser.zero_grad()
        sum(losses).backward()
        optimiser.step()
        return time.perf_counter() - started

    @torch.no_grad()
    def _statistics(self, paths: Sequence[str]) -> None:
        seen = torch.cat([self.model.teacher(self.pictures([path])) for path in paths])
        mean, std = seen.mean((0, 2, 3), keepdim=True), seen.std((0, 2, 3), keepdim=True)
        self.model.mean_std.update({"mean": mean, "std": std})

    @torch.no_grad()
    def _quantiles(self, paths: Sequence[str]) -> None:
        self.model.eval()
        maps = [self.model.get_maps(self.pictures([path]), normalize=False) for path in paths]
        for name, kind in (("st", 0), ("ae", 1)):
            values = torch.cat([pair[kind].flatten() for pair in maps])
            levels = {f"qa_{name}": values.quantile(0.9), f"qb_{name}": values.quantile(0.995)}
            self.model.quantiles.update(levels)


PEERS: dict[str, type[Peer]] = {
    "patchcore": PatchCore,
    "padim": Padim,
    "fastflow": FastFlow,
    "fastflow-resnet18": FastFlowResNet18,
    "efficientad": EfficientAd,
}


def batches(paths: Sequence[str], size: int) -> Iterator[Sequence[str]]:
    return (paths[at : at + size] for at in range(0, len(paths), size))


def decode(path: str, size: int) -> np.ndarray:
    """(size, size, 3) uint8."""
    with Image.open(path) as image:
        scaled = image.convert("RGB").resize((size, size), Image.Resampling.BILINEAR, reducing_gap=3.0)
    return np.array(scaled)


def load_backbone(network: nn.Module, weights: str) -> None:
    """Puts our weights into a timm network; RuntimeError where one of its tensors is not among them."""
    ours = {name: torch.from_numpy(array) for name, array in read_arrays(Path(weights)).items()}
    wanted = [name for name in network.state_dict() if not name.endswith("num_batches_tracked")]
    if missing := [name for name in wanted if name not in ours]:
        raise RuntimeError(f"{weights}: expected all tensors of the backbone, {missing[:5]} are missing")
    network.load_state_dict({name: ours[name] for name in wanted}, strict=False)
