"""The frozen backbone: uint8 images in, a vector per cell of a grid and one of the whole picture out."""

import copy
import functools
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from moleflow.errors import BackboneError, ConfigError, ImageError
from moleflow.features.backbones import (
    BackboneSpec,
    Network,
    Outline,
    Weights,
    build_network,
    get_backbone,
    layer_channels,
    require_embedded,
)
from moleflow.features.folding import folded, halved
from moleflow.features.runtime import (
    Compiled,
    RuntimeName,
    check_runtime,
    compiled,
    probe,
    torch_runtime,
)
from moleflow.features.tiles import Tiled, Tiling
from moleflow.runtime.witness import Witness, rounded


@dataclass(frozen=True, eq=False)
class Features:
    """What the backbone sees of a batch.

    Attributes:
        patches: (B, h', w', D), one vector per cell of the grid.
        pooled: (B, E), mean and spread over the picture of every stage of the network, the means first.
    """

    patches: torch.Tensor
    pooled: torch.Tensor

    def __len__(self) -> int:
        return len(self.patches)

    @classmethod
    def of(cls, parts: "Sequence[Features]") -> "Features":
        """Several batches as one."""
        return cls(torch.cat([part.patches for part in parts]), torch.cat([part.pooled for part in parts]))

    def to(self, device: torch.device | str) -> "Features":
        """On another device; the very same where they are there already."""
        return Features(self.patches.to(device), self.pooled.to(device))

    def take(self, images: Sequence[int]) -> "Features":
        """Those at these positions."""
        chosen = list(images)
        return Features(self.patches[chosen], self.pooled[chosen])

    def split(self) -> "list[Features]":
        """The images of the batch one by one."""
        return [Features(*pair) for pair in zip(self.patches.split(1), self.pooled.split(1), strict=True)]


class Extractor:
    """A frozen backbone, fully determined by its row, its weights and the image size.

    Holds no state that a call changes: threads may share one and get what one thread gets.

    Attributes:
        name: the backbone's name in the table.
        weights_hash: SHA-256 over the names and bytes of all tensors that the patch features depend on.
        pooled_hash: the same over all tensors in use.
        image_size: (h, w) in pixels of the images it takes.
        tiling: the tiles that an image is seen in; None where it is seen at once.
        step: pixels that heights and widths are multiples of.
        cell: pixels of a cell of the grid.
        grid: (h', w') cells of the feature grid.
        widths: channels of each layer in a cell, side by side.
        dim: D, channels of a cell: their sum.
        pooled_dim: E, numbers that describe a picture as a whole.
        module: the whole computation in eager torch: (B, 3, h, w) values 0..255 to (B, h', w', D) and (B, E).

    Raises:
        ConfigError: an unknown backbone, device or runtime, or an image size that the backbone cannot take.
        BackboneError: weights are missing or another model's.
    """

    def __init__(
        self,
        backbone: str | BackboneSpec = "efficientnet_lite0",
        *,
        weights: Weights = None,
        image_size: int | tuple[int, int] | None = None,
        tiles: tuple[int, int] | None = None,
        device: str | torch.device | None = "cpu",
        runtime: RuntimeName = "torch",
        seed: int = 0,
    ) -> None:
        """With `tiles` (rows, columns) an image is seen in so many tiles, and `image_size` is one tile's.

        `runtime` is what computes on the processor, see `features.runtime`; other devices take torch.
        """
        self.spec = backbone if isinstance(backbone, BackboneSpec) else get_backbone(backbone)
        self.name = self.spec.name
        self.image_size = _as_pair(image_size if image_size is not None else self.spec.image_size)
        self.device = resolve_device(device)
        self._wish = check_runtime(runtime)
        packaged = self.spec.embedded and weights is None
        built = None if packaged else _finished(self.spec, weights, seed)
        outline = _packaged_outline(self.spec) if built is None else built.outline
        self.weights_hash, self.pooled_hash, self.pooled = (
            outline.patch_hash,
            outline.pooled_hash,
            outline.pooled,
        )
        self.step = _step_of(outline, self.spec, self.image_size)
        if built is not None:
            _fit_to_size(built.module.network, self.image_size)  # type: ignore[arg-type]
        self._built = built
        self.widths = self.spec.widths([outline.channels[layer] for layer in self.spec.layers])
        self.dim = sum(self.widths)
        self.pooled_dim = 2 * sum(outline.channels[layer] for layer in self.pooled)  # a mean and a spread
        self.cell = min(outline.reductions[layer] for layer in self.spec.layers)
        self._tile_grid = self._grid_of(self.image_size)
        counts = None if tiles == (1, 1) else tiles
        self.tiling = None if counts is None else Tiling.of(counts, self.image_size, self.step)
        if self.tiling is not None:
            self.image_size = self.tiling.size
        self.grid = self._grid_of(self.image_size)
        self._starting = threading.RLock()  # to start may be to build
        self._module: nn.Module | None = None
        self._running: nn.Module | None = None
        self._expected: Witness | None = None

    def _grid_of(self, size: tuple[int, int]) -> tuple[int, int]:
        """Rows and columns of patches of a picture: those of the finest layer taken."""
        return size[0] // self.cell, size[1] // self.cell

    @property
    def module(self) -> nn.Module:
        """See `Extractor`; that of embedded weights is built when it is first asked for."""
        with self._starting:
            if self._module is None:
                module = self._at_once()
                if self.tiling is not None:
                    module = Tiled(module, self.tiling, self._tile_grid).eval().to(self.device)
                self._module = module
            return self._module

    def _at_once(self) -> nn.Module:
        """What computes a picture, or a tile."""
        module = (self._built or _packaged(self.spec)).module
        return module if self.device.type == "cpu" else copy.deepcopy(module).to(self.device)

    def features(self, images: torch.Tensor) -> torch.Tensor:
        """The patch features alone, float32 (B, h', w', D); otherwise as `see`."""
        return self.see(images).patches

    def see(self, images: torch.Tensor) -> Features:
        """Features of a batch: uint8 (B, 3, h, w) RGB, to float32 on the extractor's device.

        Raises ImageError for another type or size, BackboneError where features are not those of the line
        (`expect`) or a runtime that was asked for by name cannot compute them.
        """
        expected = (3, *self.image_size)
        if images.dtype != torch.uint8 or images.ndim != 4 or tuple(images.shape[1:]) != expected:
            raise ImageError(
                f"expected uint8 images (B, {expected[0]}, {expected[1]}, {expected[2]}), "
                f"got {str(images.dtype).removeprefix('torch.')} {tuple(images.shape)}"
            )
        # Not inference_mode: its tensors cannot enter a graph, and the flow trains on what comes out here.
        with torch.no_grad():
            return Features(*self._run(images.to(self.device)))

    @property
    def runtime(self) -> str:
        """What computes the features, with its version."""
        running = self._started()
        inner = running.module if isinstance(running, Tiled) else running
        return inner.name if isinstance(inner, Compiled) else torch_runtime()

    def _run(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        running = self._started() if len(images) else self.module  # an engine may not know what nothing is
        seen: tuple[torch.Tensor, torch.Tensor] = running(images)
        return seen

    def _started(self) -> nn.Module:
        """What computes; chosen, and compared with what a line expects, when the first image comes."""
        with self._starting:
            if self._running is None:
                running: nn.Module | None = None
                if self.device.type == "cpu":
                    size = self.image_size if self.tiling is None else self.tiling.tile
                    running = compiled(self._at_once, size, identity=self._identity(), wish=self._wish)
                if running is not None and self.tiling is not None:
                    running = Tiled(running, self.tiling, self._tile_grid).eval()
                running = running or self.module
                if self._expected is not None:
                    self._expected.check(_witness(running, self.image_size, self.device))
                self._running = running
            return self._running

    def witness(self) -> dict[str, Any]:
        """What a drawn picture looks like to it, for a line to remember: mean of every channel."""
        return Witness(self.runtime, _witness(self._started(), self.image_size, self.device)).to_dict()

    def expect(self, witness: Mapping[str, Any]) -> None:
        """Has the first image refused, with BackboneError, where features are not those of this witness.

        Raises ValueError, KeyError or TypeError for what is no witness of such a backbone.
        """
        self._expected = Witness.from_dict(witness, self.dim)

    @property
    def expected(self) -> dict[str, Any] | None:
        """The witness that its features are held against; None where nothing is expected."""
        return None if self._expected is None else self._expected.to_dict()

    def stack(self, images: Sequence[np.ndarray]) -> torch.Tensor:
        """Images already resized, each uint8 (h, w, 3) RGB, as one uint8 batch (B, 3, h, w).

        Raises ImageError naming the position of an image of another type or size.
        """
        expected = (*self.image_size, 3)
        for position, image in enumerate(images):
            if image.dtype != np.uint8 or image.shape != expected:
                raise ImageError(
                    f"image {position}: expected uint8 {expected}, got {image.dtype} {tuple(image.shape)}"
                )
        batch = np.stack(images) if len(images) else np.empty((0, *expected), np.uint8)
        return torch.from_numpy(batch).permute(0, 3, 1, 2)  # already channels-last in memory

    def describe(self) -> dict[str, Any]:
        """All that determines the features, as JSON-able values; what a saved line stores."""
        tiling = self.tiling
        tiles = {} if tiling is None else {"tiles": list(tiling.counts), "tile_size": list(tiling.tile)}
        return {
            "name": self.name,
            "tag": self.spec.tag,
            "layers": list(self.spec.layers),
            "image_size": list(self.image_size),
            "mean": list(self.spec.mean),
            "std": list(self.spec.std),
            "pool": self.spec.pool,
            "norm": self.spec.norm,
            **_aggregation(self.spec),
            "weights_hash": self.weights_hash,
            "pooled": list(self.pooled),
            "pooled_hash": self.pooled_hash,
            **tiles,
        }

    def _identity(self) -> dict[str, Any]:
        """All that determines the features but the size."""
        return {
            key: value
            for key, value in self.describe().items()
            if key not in ("image_size", "tiles", "tile_size")
        }

    def check_same(self, stored: Mapping[str, Any]) -> None:
        """Raise BackboneError unless `stored`, from an earlier `describe`, describes this extractor.

        What the first format did not say of a picture as a whole is not asked for.
        """
        own = self.describe()
        if "pooled" not in stored:
            own = {key: value for key, value in own.items() if not key.startswith("pooled")}
        differing = [key for key in sorted(own.keys() | stored.keys()) if own.get(key) != stored.get(key)]
        if differing:
            shown = "; ".join(f"{key}: {stored.get(key)} stored, {own.get(key)} here" for key in differing)
            raise BackboneError(f"this is not the backbone that the line was learned with: {shown}")


def device_name(device: str | torch.device | None) -> str:
    """The device as tables name it: the card's own name where it has one."""
    found = resolve_device(device)
    return torch.cuda.get_device_name(found) if found.type == "cuda" else found.type


def resolve_device(device: str | torch.device | None) -> torch.device:
    """The device to compute on; "auto" and None pick cuda, then mps, then cpu.

    Raises ConfigError for a device that torch does not know or does not see on this machine.
    """
    if device is None or device == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        resolved = torch.device(device)
        torch.empty(0, device=resolved)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).split("\n", 1)[0]
        raise ConfigError(f"device {str(device)!r} cannot be used: {reason}") from error
    return resolved


@functools.lru_cache(maxsize=3)
def _packaged(spec: BackboneSpec) -> Network:
    """With the weights that are installed with this package: the same for every line in a process."""
    return _finished(spec, None, 0)


@functools.lru_cache(maxsize=3)
def _packaged_outline(spec: BackboneSpec) -> Outline:
    """Of the same, without building it where the row knows it."""
    if spec.outline is None:
        return _packaged(spec).outline
    require_embedded(spec)
    return spec.outline


def _finished(spec: BackboneSpec, weights: Weights, seed: int) -> Network:
    """As `build_network`, its module all that features are computed with, on the processor."""
    from timm.models import EfficientNet, ResNet

    built = build_network(spec, weights, seed=seed)
    if isinstance(built.module, EfficientNet | ResNet):
        folded(built.module)
    module = _GridFeatures(built.module, spec, built.outline.pooled).eval().requires_grad_(False)
    return replace(built, module=module.to(memory_format=torch.channels_last))


class _GridFeatures(nn.Module):
    """Normalise, run the cut network, bring the taken layers to the finest one's grid, pool all stages.

    A convolutional network sees the picture once more at half the size, for its pooled stages: deep stages
    know whole objects at the scale they were trained at, and cost no more this way than deep stages of the
    full size would.
    """

    scale: torch.Tensor
    shift: torch.Tensor

    def __init__(self, network: nn.Module, spec: BackboneSpec, pooled: tuple[int, ...]) -> None:
        super().__init__()
        self.network, self.spec, self.pooled = network, spec, pooled
        spec.widths(layer_channels(network, spec.layers))  # a mean of unequal widths is refused here
        # (x / 255 - mean) / std as one multiply-add
        mean, std = (
            torch.tensor(values, dtype=torch.float64).view(1, 3, 1, 1) for values in (spec.mean, spec.std)
        )
        self.register_buffer("scale", (1 / (255 * std)).float())
        self.register_buffer("shift", (-mean / std).float())

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        images = images.to(dtype=torch.float32, memory_format=torch.channels_last)
        images = torch.addcmul(self.shift, images, self.scale)
        layers = self.spec.layers
        if self.spec.is_transformer:
            whole = maps = self._stages(images, layers)
        else:
            maps = self._stages(images, layers)
            whole = self._stages(halved(images), self.pooled)
        maps = [self._reduced(m) for m in maps]
        grid = maps[0].shape[-2:]
        maps = [m if m.shape[-2:] == grid else F.interpolate(m, size=grid, mode="bilinear") for m in maps]
        side_by_side = self.spec.aggregation == "concatenate"
        joined = torch.cat(maps, dim=1) if side_by_side else torch.stack(maps).mean(0)
        patches = joined.permute(0, 2, 3, 1).contiguous()  # (B, h', w', D)
        means = [m.mean((2, 3), keepdim=True) for m in whole]
        spreads = [
            (m - mean).square().mean((2, 3), keepdim=True).sqrt()
            for m, mean in zip(whole, means, strict=True)
        ]
        return patches, torch.cat([*means, *spreads], dim=1).flatten(1)  # (B, h', w', D), (B, E)

    def _reduced(self, layer: torch.Tensor) -> torch.Tensor:
        """A layer (B, C, h, w) over its 3x3 neighbours where the row says so, in the row's width."""
        width = self.spec.width
        if width is None:
            if not self.spec.pool:
                return layer
            return F.avg_pool2d(layer, 3, stride=1, padding=1, count_include_pad=False)
        size = layer.shape[-2:]
        # As PatchCore: zeros around the picture, the nine values of a channel beside each other.
        values = F.unfold(layer, 3, padding=1) if self.spec.pool else layer.flatten(2)  # B,(9)C,hw
        return _averaged_to(values.transpose(1, 2), width).transpose(1, 2).unflatten(2, size)

    def _stages(self, images: torch.Tensor, layers: tuple[int, ...]) -> list[torch.Tensor]:
        maps: list[torch.Tensor] = self.network.forward_intermediates(  # type: ignore[operator]
            images,
            indices=list(layers),
            norm=self.spec.norm,
            stop_early=True,
            output_fmt="NCHW",
            intermediates_only=True,
        )
        return maps


def _averaged_to(values: torch.Tensor, width: int) -> torch.Tensor:
    """Channels (B, n, C) averaged to so many by adaptive pooling, which ONNX has no operator for."""
    if not torch.onnx.is_in_onnx_export():
        return F.adaptive_avg_pool1d(values, width)
    channels = int(values.shape[2])
    first = [i * channels // width for i in range(width)]
    last = [-(-(i + 1) * channels // width) for i in range(width)]  # the one behind it
    share = torch.tensor([1 / (end - start) for start, end in zip(first, last, strict=True)])
    pooled = torch.zeros(())
    for step in range(max(end - start for start, end in zip(first, last, strict=True))):
        inside = torch.tensor([start + step < end for start, end in zip(first, last, strict=True)])
        taken = [min(start + step, end - 1) for start, end in zip(first, last, strict=True)]
        pooled = pooled + values[..., taken] * (share * inside)
    return pooled


def _aggregation(spec: BackboneSpec) -> dict[str, Any]:
    """What `describe` says of it. Nothing of layers put side by side as they are: lines older than any other
    way, and features cached before it, say nothing either."""
    said: dict[str, Any] = {"aggregation": spec.aggregation, "width": spec.width}
    return {} if (spec.aggregation, spec.width) == ("concatenate", None) else said


@torch.no_grad()
def _witness(module: nn.Module, size: tuple[int, int], device: torch.device) -> list[float]:
    patches, _ = module(probe(size, 1).to(device))
    return rounded(patches.mean((0, 1, 2)).tolist())


def _as_pair(size: int | tuple[int, int]) -> tuple[int, int]:
    """An image size as (h, w)."""
    pair = tuple(size) if isinstance(size, tuple | list) else (size, size)
    if len(pair) != 2 or not all(isinstance(side, int) and side > 0 for side in pair):
        raise ConfigError(f"image size must be one or two positive whole numbers (height, width), got {size}")
    return pair[0], pair[1]


def _step_of(outline: Outline, spec: BackboneSpec, size: tuple[int, int]) -> int:
    """The step that sizes are multiples of; one whose layers would not align is refused."""
    step = max(outline.reductions[layer] for layer in spec.layers)
    if any(side % step for side in size):
        near = [sorted({max(step, side // step * step), -(-side // step) * step}) for side in size]
        allowed = " and ".join(" or ".join(map(str, sides)) for sides in near)
        raise ConfigError(
            f"backbone {spec.name!r} takes heights and widths in multiples of {step}, "
            f"got {size[0]}x{size[1]}; nearest allowed: {allowed}"
        )
    return step


def _fit_to_size(network: nn.Module, size: tuple[int, int]) -> None:
    """Gives a transformer the position table of this size."""
    if hasattr(network, "set_input_size"):
        network.set_input_size(img_size=size)  # type: ignore[operator]
        network.requires_grad_(False)
