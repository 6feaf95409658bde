"""Presets: what they say, what follows from the number of channels, and that they reach line and bench."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from moleflow import Detector, LineConfig
from moleflow.bench.ablation import ABLATIONS, FLOW_ALONE, rows_for
from moleflow.bench.plan import Plan, Variant
from moleflow.bench.streams import Stream, Task
from moleflow.bench.sweep import Points, read_space
from moleflow.config import Cells, Coreset, FlowConfig, from_dict, override, to_dict
from moleflow.errors import ConfigError
from moleflow.flow.expert import Base, Expert
from moleflow.presets import (
    DEFAULT,
    LAYERED,
    PRESETS,
    flow_lora,
    flow_rate,
    flow_width,
    get_preset,
    layered,
)
from moleflow.sizes import total

OURS = (DEFAULT, "lean", "layered")
ORIGINALS = [name for name in PRESETS if name not in OURS]
GRID = Path(__file__).parents[1] / "benchmarks" / "deck_grid.yaml"
STREAM = Stream("a", (Task(("gear",)),))


def numbers(module):
    return sum(p.numel() for p in module.parameters())


def flow_of(preset, channels):
    base = Base((2, 2), channels, get_preset(preset).at(channels).flow)
    return base, Expert(base)


def test_our_rules_give_the_defaults_where_these_were_settled():
    assert get_preset(DEFAULT).at(152) == LineConfig()
    assert to_dict(get_preset(DEFAULT).at(152)) == to_dict(LineConfig())


@pytest.mark.parametrize("name", PRESETS)
@pytest.mark.parametrize("channels", [8, 152, 768, 3072])
def test_every_preset_is_plain_options_at_every_width(name, channels):
    config = get_preset(name).at(channels)
    assert from_dict(LineConfig, to_dict(config)) == config
    assert get_preset(name).source


def test_width_and_rank_grow_with_the_channels_and_the_rate_falls():
    widths = [flow_width(d) for d in (152, 768, 1024, 1536, 3072)]
    assert widths == [64, 144, 160, 208, 288]
    assert [flow_lora(d)["rank"] for d in (152, 768, 1536)] == [16, 36, 52]
    rates = [flow_rate(d) for d in (152, 768, 1024, 1536, 3072)]
    assert rates == sorted(rates, reverse=True)
    assert rates[1] == pytest.approx(2e-3 * 64 / 144)


def test_lean_is_the_default_with_nothing_to_learn():
    lean, whole = get_preset("lean").at(768), get_preset(DEFAULT).at(768)
    base, expert = flow_of("lean", 768)
    assert not [*base.parameters(), *expert.parameters()]
    assert expert.gaussians is not None
    assert (lean.scoring, lean.router, lean.training) == (whole.scoring, whole.router, LineConfig().training)
    assert lean.flow.cells == whole.flow.cells == Cells()
    assert lean == get_preset("lean").at(8)


def test_a_lean_line_says_what_its_closed_forms_do_and_keeps_nothing_else(
    new_line, quick, pictures, tmp_path
):
    nothing = dict.fromkeys(f"flow.{part}" for part in ("whitening", "mixer", "context", "lora", "dia"))
    line = new_line(config=override(quick, {"flow.couplings": 0, **nothing}))
    line.add_task("gear", pictures("gear", 8))
    assert set(line.info("gear").parts) == {"cells", "coreset", "whole", "router", "calibration"}
    product, base = line._line.products["gear"], line._line.base
    patches = torch.randn(2, *base.position.shape, generator=torch.Generator().manual_seed(0))
    said, _ = product.densities.scores(base, patches)
    torch.testing.assert_close(said, product.densities.gaussians(patches), rtol=1e-2, atol=1e-2)
    line.save(tmp_path / "line")
    probe = pictures("gear", 2, first=500)
    again = Detector.load(tmp_path / "line", device="cpu").predict(probe)
    assert [p.pred_score for p in again] == [p.pred_score for p in line.predict(probe)]


def test_layered_is_the_older_flow_with_cells_beside_it():
    config = get_preset("layered").at(152)
    assert (config.flow.cells, config.flow.normalisation, config.flow.statistics) == (None, "layer", True)
    assert (config.training.steps, config.training.base_steps, config.training.noise) == (500, 400, 0.3)
    assert config.scoring.cells == Cells(rank=24, bits=16)
    assert config.scoring.coreset is None
    assert config.scoring.whole == replace(LineConfig().scoring.whole, bits=16)
    assert config.flow.bits == 16
    assert get_preset("layered").at(768).flow.hidden == flow_width(768)
    _, expert = flow_of("layered", 152)
    assert expert.gaussians is None
    assert expert.statistics is not None


def test_layered_turns_a_flow_that_begins_with_cells_and_leaves_any_other():
    turned = layered(override(LineConfig(), {"flow.hidden": 8, "training.tail_weight": 0.1}))
    assert turned == override(LineConfig(), {**LAYERED, "flow.hidden": 8, "training.tail_weight": 0.1})
    assert (turned.flow.cells, turned.scoring.coreset) == (None, Coreset())
    assert layered(turned) is turned
    bare = LineConfig(flow=FlowConfig(cells=None))
    assert layered(bare) is bare
    assert layered(get_preset("deck").at(8)) == get_preset("deck").at(8)


def test_the_originals_configurations_say_what_is_published():
    deck, main, balanced, best = (get_preset(name).at(768) for name in ORIGINALS)
    said = [(c.flow.couplings, c.flow.dia.blocks, c.flow.lora.rank) for c in (deck, main, balanced, best)]
    assert said == [(8, 4, 64), (6, 2, 64), (8, 4, 64), (10, 5, 128)]
    assert [(c.training.tail_weight, c.training.tail_share) for c in (deck, main, best)] == [
        (0.55, 0.05),
        (0.7, 0.02),
        (0.55, 0.03),
    ]
    assert {c.flow.hidden for c in (deck, main, balanced, best)} == {768}
    assert {c.flow.mixer.kernel for c in (deck, main, balanced, best)} == {"full"}
    assert {(c.training.tail, c.training.log_det_of) for c in (deck, main, balanced, best)} == {
        ("image", "flow")
    }
    assert {c.flow.normalisation for c in (deck, main, balanced, best)} == {"layer"}
    assert {c.flow.statistics for c in (deck, main, balanced, best)} == {True}
    beside = {(c.flow.cells, c.scoring.cells, c.scoring.coreset) for c in (deck, main, balanced, best)}
    assert beside == {(None, None, None)}
    assert {c.training.learning_rate for c in (deck, main, balanced, best)} == {3e-4}
    assert balanced == replace(deck, scoring=replace(deck.scoring, top_least=5))
    assert get_preset("deck").at(1536).flow.dia.hidden == 1536


def test_the_decks_size_is_that_of_its_code():
    """6.1 million numbers a product, 52 % of the base: what its real configuration comes to."""
    base, expert = flow_of("deck", 768)
    assert numbers(expert) == pytest.approx(6.1e6, rel=0.01)
    assert numbers(expert) / numbers(base) == pytest.approx(0.52, abs=0.01)


def test_the_published_overhead_is_that_of_half_the_rank_without_dia():
    """10.8 % and 2 MB hold for LoRA of rank 32 by itself; its rank is 64, and there is a DIA."""
    base, expert = flow_of("deck-main", 768)
    assert numbers(expert) / numbers(base) == pytest.approx(0.415, abs=0.005)
    low_rank = sum(p.numel() for name, p in expert.adapters.named_parameters() if not name.endswith("bias"))
    assert low_rank / 2 / numbers(base) == pytest.approx(0.108, abs=0.001)
    assert 2 * low_rank / 2 == pytest.approx(1.92e6, rel=0.01)  # bytes, in 16 bits


def test_unknown_presets_are_refused():
    with pytest.raises(
        ConfigError, match="unknown preset 'dek'; known are default, lean, layered, deck, deck-main"
    ):
        get_preset("dek")
    with pytest.raises(ConfigError, match="a preset or a config"):
        Detector(image_size=64, preset="deck", config=LineConfig())


def test_a_line_stores_the_numbers_and_the_name(monkeypatch, quick, pictures, tmp_path):
    monkeypatch.setitem(PRESETS, "quick", replace(get_preset(DEFAULT), name="quick", says=quick))
    line = Detector(image_size=64, device="cpu", preset="quick")
    assert line.config == override(quick, {"flow.hidden": 64, "scoring.coreset.layers": (40, 112)})
    line.add_task("gear", pictures("gear", 4))
    line.save(tmp_path / "line")
    monkeypatch.delitem(PRESETS, "quick")
    again = Detector.load(tmp_path / "line", device="cpu")
    assert (again.preset, again.config) == ("quick", line.config)


def test_a_product_owns_all_that_is_saved_of_it(line):
    info = line.info("gear")
    parts = info.parts
    owned = {"whitening", "lora", "dia", "cells", "coreset", "whole", "router", "calibration"}
    assert owned == set(parts)
    assert info.parameters == total(parts).numbers == sum(part.numbers for part in parts.values())
    assert info.bytes == sum(part.bytes for part in parts.values())
    product = line._line.products["gear"]
    tensors = product.tensors().values()
    saved = sum(t.numel() for t in tensors)
    assert info.parameters > saved > numbers(product.densities.expert)
    assert parts["whitening"].numbers == 2 * line.extractor.dim
    low_rank = product.densities.expert.adapters.state_dict().items()
    biases = sum(value.numel() for name, value in low_rank if name.endswith("bias"))
    rows = sum(len(value) for _, value in low_rank if value.ndim == 2)
    matrices = sum(value.numel() for _, value in low_rank if value.ndim == 2)
    assert parts["lora"].numbers == matrices + rows + biases
    assert parts["lora"].bytes == matrices / 2 + 4 * rows + 2 * biases  # 4 bits, every row's step, 16 bits
    coreset, dim = product.densities.coreset, line.extractor.dim
    remembered, rank = coreset.codes.numel(), coreset.codes.shape[1]
    assert rank == line.config.scoring.coreset.rank
    axes = rank * dim
    assert parts["coreset"].numbers == remembered + 2 * rank + axes + rank + dim
    assert parts["coreset"].bytes == remembered // 2 + 4 * 2 * rank + axes + 4 * rank + 4 * dim


def test_a_plan_runs_with_its_preset_at_the_backbones_width():
    plan = Plan(
        {"moleflow": Variant("moleflow")},
        (STREAM,),
        backbone="vit_base_patch16",
        preset="deck-main",
        options={"flow.couplings": 4},
    )
    assert plan.config("moleflow") == override(get_preset("deck-main").at(768), {"flow.couplings": 4})
    assert plan.to_dict()["preset"] == "deck-main"
    plain = Plan({"moleflow": Variant("moleflow")}, (STREAM,))
    assert plain.config("moleflow") == LineConfig()
    with pytest.raises(ConfigError, match="unknown preset"):
        Plan({"moleflow": Variant("moleflow")}, (STREAM,), preset="none")


def test_the_ablation_of_the_defaults_is_as_it_was():
    assert rows_for(ABLATIONS, LineConfig()) == dict(ABLATIONS)
    assert rows_for(FLOW_ALONE, LineConfig()) == dict(FLOW_ALONE)


@pytest.mark.parametrize("table", [ABLATIONS, FLOW_ALONE], ids=["whole", "flow alone"])
@pytest.mark.parametrize("name", [DEFAULT, "layered", "deck-main"])
def test_only_a_flow_of_its_own_divides_the_steps_of_the_whole(table, name):
    whole = get_preset(name).at(768)
    for row, variant in rows_for(table, whole).items():
        if row == "whole flow per product":
            continue
        steps = override(whole, variant.options).training.steps
        begins_otherwise = whole.flow.cells is not None and "flow.normalisation" in variant.options
        assert steps == (LAYERED["training.steps"] if begins_otherwise else whole.training.steps), row


def test_every_row_of_the_defaults_is_possible_and_changes_something():
    for table in (ABLATIONS, FLOW_ALONE):
        told = [(variant.method, override(LineConfig(), variant.options)) for variant in table.values()]
        assert all(one not in told[:i] for i, one in enumerate(told))
    nothing = override(LineConfig(), ABLATIONS["no flow"].options)
    assert nothing.flow == get_preset("lean").says.flow
    cells = override(LineConfig(), ABLATIONS["cells alone"].options)
    assert (cells.flow, cells.scoring.coreset) == (nothing.flow, None)
    normalised = override(LineConfig(), ABLATIONS["flow over normalised features"].options)
    assert normalised == layered(LineConfig())


@pytest.mark.parametrize("table", [ABLATIONS, FLOW_ALONE], ids=["whole", "flow alone"])
def test_every_row_around_a_preset_changes_something(table):
    whole = get_preset("deck-main").at(768)
    rows = rows_for(table, whole)
    assert {"no DIA", "no whitening", "no LoRA", "no spatial context", "no tail loss"} <= set(rows)
    lacking = {"flow alone", "no coreset", "no feature noise", "no position calibration"}
    lacking |= {"base from the first product", "no early stop"}
    assert not (lacking | {"flow over normalised features"}) & set(rows)
    assert not {"full mixer kernel", "tail per image", "whole images"} & set(rows)
    assert not [name for name in rows if name.startswith("published")]
    assert {"on the sphere"} <= set(rows)
    learned = [(v.method, override(whole, v.options)) for v in rows.values()]
    assert all(one not in learned[:i] for i, one in enumerate(learned))
    divided = rows["whole flow per product"].options
    assert divided["training.steps"] == divided["training.base_steps"] == whole.training.steps // 2


def test_combinations_are_read_one_by_one(tmp_path):
    file = tmp_path / "points.yaml"
    file.write_text("- {flow.couplings: 12}\n- {training.learning_rate: 2e-4, flow.dia.blocks: 6}\n")
    points = read_space(file)
    assert isinstance(points, Points)
    assert (points.size, points.names) == (2, ("flow.couplings", "training.learning_rate", "flow.dia.blocks"))
    unchanged = {"flow.couplings": 2, "training.learning_rate": 1e-3, "flow.dia.blocks": 2}
    whole = points.around(unchanged)
    assert whole.points == (
        {"flow.couplings": 12, "training.learning_rate": 1e-3, "flow.dia.blocks": 2},
        {"flow.couplings": 2, "training.learning_rate": 2e-4, "flow.dia.blocks": 6},
    )
    assert whole.to_dict()["flow.couplings"] == [12, 2]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[]", "at least one combination"),
        ("- {flow.couplings: 12}\n- {flow.couplings: 12}", "combination 2: expected different"),
        ("- {flow.dia: null}\n- {flow.dia.blocks: 2}", "expected flow.dia as a whole or flow.dia.blocks"),
        ("- {flow.couplings: 4}\n- {flow.couplngs: 2}", "combination 2: no option 'flow.couplngs'"),
        ("- 3", "expected tables from options to values"),
    ],
)
def test_wrong_combinations_are_refused_with_the_file(tmp_path, text, message):
    file = tmp_path / "points.yaml"
    file.write_text(text)
    with pytest.raises(ConfigError, match=message) as caught:
        read_space(file)
    assert str(file) in str(caught.value)


def test_the_originals_grid_holds_its_runs_and_its_presets():
    points = read_space(GRID)
    assert points.size == 78
    balanced = get_preset("balanced").at(768)
    configs = [override(balanced, point) for point in points.points]
    assert len({str(config) for config in configs}) == 78
    for name in ("balanced", "deck-main", "max-image-auroc"):
        assert get_preset(name).at(768) in configs
    assert {2e-4, 3e-4} == {config.training.learning_rate for config in configs}
    assert {32, 64, 128, 256} <= {config.flow.lora.rank for config in configs if config.flow.lora}
    assert max(config.flow.dia.blocks for config in configs) == 8
    assert max(config.flow.couplings for config in configs) == 16


def test_the_options_of_a_line_with_another_backbone_are_refused_at_once():
    config = Detector(image_size=64, device="cpu").config
    assert config.scoring.coreset.layers == (40, 112)
    assert Detector(image_size=64, device="cpu", config=config).config == config
    with pytest.raises(ConfigError, match=r"Coreset\.layers: .* got \(40, 112\): is the config of a line"):
        Detector("wide_resnet50", weights="random", image_size=64, device="cpu", config=config)
