"""Presets: what they say, what follows from the number of channels, and that they reach line and bench."""

from dataclasses import replace
from pathlib import Path

import pytest

from moleflow import Detector, LineConfig
from moleflow.bench.ablation import ABLATIONS, FLOW_ALONE, rows_for
from moleflow.bench.plan import Plan, Variant
from moleflow.bench.streams import Stream, Task
from moleflow.bench.sweep import Points, read_space
from moleflow.config import from_dict, override, to_dict
from moleflow.errors import ConfigError
from moleflow.flow.expert import Base, Expert
from moleflow.presets import DEFAULT, PRESETS, flow_lora, flow_rate, flow_width, get_preset
from moleflow.storage import total

ORIGINALS = [name for name in PRESETS if name != DEFAULT]
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
    with pytest.raises(ConfigError, match="unknown preset 'dek'; known are default, deck, deck-main"):
        get_preset("dek")
    with pytest.raises(ConfigError, match="a preset or a config"):
        Detector(image_size=64, preset="deck", config=LineConfig())


def test_a_line_stores_the_numbers_and_the_name(monkeypatch, quick, pictures, tmp_path):
    monkeypatch.setitem(PRESETS, "quick", replace(get_preset(DEFAULT), name="quick", says=quick))
    line = Detector(image_size=64, device="cpu", preset="quick")
    assert line.config == override(quick, {"flow.hidden": 64})
    line.add_task("gear", pictures("gear", 4))
    line.save(tmp_path / "line")
    monkeypatch.delitem(PRESETS, "quick")
    again = Detector.load(tmp_path / "line", device="cpu")
    assert (again.preset, again.config) == ("quick", line.config)


def test_a_product_owns_all_that_is_saved_of_it(line):
    info = line.info("gear")
    parts = info.parts
    assert {"statistics", "whitening", "lora", "dia", "cells", "whole", "router", "calibration"} <= set(parts)
    assert info.parameters == total(parts).numbers == sum(part.numbers for part in parts.values())
    assert info.bytes == sum(part.bytes for part in parts.values())
    product = line._line.products["gear"]
    tensors = product.tensors().values()
    saved = sum(t.numel() for t in tensors)
    assert info.parameters > saved > numbers(product.densities.expert)
    assert parts["whitening"].numbers == 2 * line.extractor.dim
    assert parts["lora"].bytes == 2 * parts["lora"].numbers  # 16 bits


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
def test_every_row_around_a_preset_changes_something(table):
    whole = get_preset("deck-main").at(768)
    rows = rows_for(table, whole)
    assert {"no DIA", "no whitening", "no LoRA", "no spatial context", "no tail loss"} <= set(rows)
    assert not {"flow alone", "cells alone", "no feature noise", "no position calibration"} & set(rows)
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
