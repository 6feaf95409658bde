"""Bases that come with the library: which line gets which, and that its first product decides nothing."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from moleflow import Detector
from moleflow.bases.shipped import FOLDER, shipped_base, write_base
from moleflow.bench.methods import make
from moleflow.bench.methods.base import Pictures, Setting
from moleflow.config import Cells, Dia, FlowConfig, LineConfig, Lora, TrainingConfig
from moleflow.data.factory import make_sample
from moleflow.features.extractor import Extractor
from moleflow.flow.expert import Base
from moleflow.learning.left_out import learn_first_base
from moleflow.learning.training import learn_common_base
from moleflow.presets import get_preset

FEW = TrainingConfig(steps=8, base_steps=8, patches=64, early_stop=False)
GRID = (3, 4)


@pytest.fixture(scope="module")
def extractor() -> Extractor:
    return Extractor("efficientnet_lite0", image_size=64)


def photographs(product: str, count: int = 5) -> list:
    return [make_sample(product, i, size=64).image for i in range(count)]


def same(one: Base, other: Base) -> bool:
    mine, others = one.state_dict(), other.state_dict()
    return mine.keys() == others.keys() and all(torch.equal(mine[name], others[name]) for name in mine)


def found(extractor: Extractor, flow: FlowConfig, **more) -> Base | None:
    return shipped_base(extractor.weights_hash, extractor.grid, extractor.dim, flow, **more)


def test_the_default_finds_one_for_its_backbone_whatever_the_size(extractor):
    base = found(extractor, LineConfig().flow)
    assert base is not None
    assert (base.position.shape[:2], base.channels) == (extractor.grid, extractor.dim)
    assert not any(p.requires_grad for p in base.parameters())
    assert not base.training
    other = shipped_base(extractor.weights_hash, (9, 5), extractor.dim, LineConfig().flow)
    assert same(base, other)
    assert any(value.abs().max() > 0.01 for value in base.state_dict().values())


@pytest.mark.parametrize(
    "own",
    [{"lora": Lora(2, 2.0)}, {"dia": None}, {"whitening": None}, {"bits": 16}, {"cells": Cells(side=2)}],
    ids=str,
)
def test_what_a_product_owns_makes_no_other_base(extractor, own):
    assert same(found(extractor, replace(FlowConfig(), **own)), found(extractor, FlowConfig()))


@pytest.mark.parametrize(
    "other",
    [{"hidden": 32}, {"couplings": 3}, {"context": None}, {"mixer": None}, {"position": 0.5}],
    ids=str,
)
def test_another_shape_of_flow_finds_none(extractor, other):
    assert found(extractor, replace(FlowConfig(), **other)) is None


def test_other_weights_and_the_original_find_none(extractor):
    flow = LineConfig().flow
    assert shipped_base("0" * 64, extractor.grid, extractor.dim, flow) is None
    random = Extractor("efficientnet_lite0", weights="random", image_size=64)
    assert found(random, flow) is None
    assert found(extractor, get_preset("layered").at(extractor.dim).flow) is None


@pytest.mark.long
def test_the_first_product_decides_nothing_for_those_after_it():
    config = LineConfig(training=FEW)
    lines = [Detector(image_size=64, device="cpu", config=config) for _ in range(2)]
    lines[0].add_task("gear", photographs("gear"))
    lines[0].add_task("wood", photographs("wood"))
    lines[1].add_task("wood", photographs("wood"))
    lines[1].add_task("gear", photographs("gear"))
    assert same(lines[0]._line.base, lines[1]._line.base)
    assert lines[0]._line.base_hash == lines[1]._line.base_hash
    assert "base" not in lines[0].info("gear").seconds
    for name in ("gear", "wood"):
        one, other = (line._line.products[name].tensors() for line in lines)
        assert all(torch.equal(one[key], other[key]) for key in one)


@pytest.mark.long
def test_lines_that_see_images_otherwise_do_not_fit_together():
    config = LineConfig(training=FEW)
    wishes = ({}, {"fit": "letterbox"}, {"intensity": (10, 200)})
    hashes = set()
    for wish in wishes:
        line = Detector(image_size=64, device="cpu", config=config, **wish)
        line.add_task("gear", photographs("gear"))
        hashes.add(line._line.base_hash)
    assert len(hashes) == len(wishes)


def test_a_base_is_learned_from_the_first_product_where_that_is_wanted():
    config = LineConfig(training=FEW)
    lines = [Detector(image_size=64, device="cpu", config=config, base="learn") for _ in range(2)]
    assert lines[0].config.training.base == "learn"
    lines[0].add_task("gear", photographs("gear"))
    lines[1].add_task("wood", photographs("wood"))
    assert not same(lines[0]._line.base, lines[1]._line.base)
    assert lines[0]._line.base_hash != lines[1]._line.base_hash
    assert "base" in lines[0].info("gear").seconds


def test_the_bench_takes_the_very_same(extractor):
    config = LineConfig(training=FEW)
    setting = Setting(
        extractor.grid, extractor.dim, (64, 64), config=config, weights_hash=extractor.weights_hash
    )
    for own, expected in ((config, True), (replace(config, training=replace(FEW, base="learn")), False)):
        method = make("moleflow", replace(setting, config=own), {})
        seen = extractor.see(extractor.stack(photographs("gear")))

        method.learn([Pictures("gear", seen.patches.half(), lambda i, size: None, pooled=seen.pooled)])
        assert same(method.base, found(extractor, config.flow)) == expected


def test_what_is_written_is_found_again_in_sixteen_bits(extractor, tmp_path):
    flow = replace(FlowConfig(), hidden=8, couplings=3)
    assert found(extractor, flow, folder=tmp_path) is None
    base = Base(extractor.grid, extractor.dim, flow)
    for parameter in base.parameters():
        torch.nn.init.normal_(parameter)
    path = write_base(tmp_path, extractor, base, how={"seed": 3})
    assert path.parent == tmp_path
    again = found(extractor, flow, folder=tmp_path)
    for name, value in base.state_dict().items():
        assert torch.equal(again.state_dict()[name], value.half().float()), name
    assert all(file.stat().st_size < 200_000 for file in FOLDER.glob("*.safetensors"))


def made_up(which: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(which)
    raw = torch.randn(12, *GRID, 8, generator=generator)
    raw[..., ::2] = raw[..., ::2].abs()
    return raw @ torch.randn(8, 8, generator=torch.Generator().manual_seed(100 + which))


def test_a_common_base_is_of_all_its_products_and_the_same_every_time():
    flow = FlowConfig(cells=Cells(side=2, rank=3, mean_side=3), hidden=16, lora=None, dia=Dia(1, 8))
    products = [made_up(0), made_up(1)]
    base = learn_common_base(products, flow, FEW, steps=30, seed=0)
    assert same(base, learn_common_base(products, flow, FEW, steps=30, seed=0))
    assert not same(base, learn_common_base(products[:1], flow, FEW, steps=30, seed=0))
    assert not same(base, learn_common_base(products, flow, FEW, steps=30, seed=1))
    assert not any(p.requires_grad for p in base.parameters())
    alone = learn_first_base(products[0], LineConfig(flow=flow, training=FEW), seed=0).final
    assert base.state_dict().keys() == alone.state_dict().keys()
