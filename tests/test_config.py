"""Options travel as plain JSON and come back the same; a key nobody knows is an error."""

from __future__ import annotations

import dataclasses
import json

import pytest

from moleflow.config import (
    Cells,
    Context,
    Dia,
    FlowConfig,
    LineConfig,
    Lora,
    Mixer,
    RouterConfig,
    ScoringConfig,
    TrainingConfig,
    Whitening,
    from_dict,
    to_dict,
)
from moleflow.errors import ConfigError

PARTS = {"whitening": Whitening, "mixer": Mixer, "context": Context, "lora": Lora, "dia": Dia}
LINES = {
    "defaults": LineConfig(),
    "nothing": LineConfig(flow=FlowConfig(**dict.fromkeys(PARTS)), scoring=ScoringConfig(cells=None)),
    "replaced": LineConfig(
        flow=FlowConfig(
            normalisation="none",
            statistics=False,
            position=0.0,
            whitening=Whitening(scale_limit=3.0),
            mixer=Mixer(gate_limit=0.25),
            context=Context(kernel=3),
            lora=Lora(rank=4, alpha=8.0),
            dia=Dia(blocks=5),
        ),
        training=TrainingConfig(steps=7, tail_weight=0.1),
        scoring=ScoringConfig(cells=Cells(side=3), position_calibration=False),
        router=RouterConfig(metric="product", rank=2),
    ),
    "published parts": LineConfig(
        flow=FlowConfig(normalisation="sphere", mixer=Mixer(kernel="full")),
        training=TrainingConfig(margin=2, tail="image", log_det_of="flow"),
    ),
    **{f"without-{part}": LineConfig(flow=FlowConfig(**{part: None})) for part in PARTS},
}
every_line = pytest.mark.parametrize("line", LINES.values(), ids=LINES.keys())


@every_line
def test_dict_round_trip(line):
    assert from_dict(LineConfig, to_dict(line)) == line


@every_line
def test_json_round_trip(line):
    text = json.dumps(to_dict(line), allow_nan=False)
    back = from_dict(LineConfig, json.loads(text))
    assert back == line
    assert json.dumps(to_dict(back)) == text


def test_the_lines_above_differ_so_the_round_trip_carries_something():
    assert len({json.dumps(to_dict(line)) for line in LINES.values()}) == len(LINES)


@pytest.mark.parametrize("part", PARTS)
def test_nested_parts_come_back_as_their_class(part):
    back = from_dict(LineConfig, json.loads(json.dumps(to_dict(LINES["replaced"]))))
    assert type(getattr(back.flow, part)) is PARTS[part]
    assert type(back.scoring.cells) is Cells


def test_what_is_not_given_is_the_default():
    assert from_dict(LineConfig, {}) == LineConfig()
    assert from_dict(LineConfig, {"flow": {"couplings": 5}}) == LineConfig(flow=FlowConfig(couplings=5))
    assert from_dict(LineConfig, {"flow": {"dia": {"blocks": 9}}}).flow.dia == Dia(blocks=9)


@pytest.mark.parametrize(
    ("values", "owner", "key"),
    [
        ({"flows": {}}, "LineConfig", "flows"),
        ({"flow": {"coupling": 3}}, "FlowConfig", "coupling"),
        ({"flow": {"dia": {"block": 3}}}, "Dia", "block"),
        ({"scoring": {"cells": {"sides": 3}}}, "Cells", "sides"),
        ({"training": {"lr": 0.1}}, "TrainingConfig", "lr"),
        ({"router": {"matric": "shared"}}, "RouterConfig", "matric"),
    ],
)
def test_an_unknown_key_is_an_error_at_every_depth(values, owner, key):
    with pytest.raises(ConfigError, match=f"{owner}: unknown option '{key}'; known are ") as caught:
        from_dict(LineConfig, values)
    kind = {k.__name__: k for k in (LineConfig, FlowConfig, Dia, Cells, TrainingConfig, RouterConfig)}[owner]
    for field in dataclasses.fields(kind):
        assert field.name in str(caught.value)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"flow": {"mixer": {"kernel": "free"}}}, "Mixer.kernel: expected one of symmetric, full"),
        (
            {"flow": {"mixer": {"kernel": "full", "gate_limit": 0.6}}},
            "Mixer.gate_limit: expected at most 0.5",
        ),
        ({"flow": {"normalisation": "ball"}}, "expected one of layer, sphere, none"),
        ({"training": {"tail": "batch"}}, "TrainingConfig.tail: expected one of step, image"),
        ({"training": {"log_det_of": "dia"}}, "TrainingConfig.log_det_of: expected one of chain, flow"),
        ({"training": {"margin": -1}}, "TrainingConfig.margin: expected a number of at least 0"),
        ({"training": {"margin": 1.5}}, "TrainingConfig.margin: expected a whole number"),
    ],
)
def test_an_option_of_the_published_parts_that_cannot_be_is_an_error(values, said):
    with pytest.raises(ConfigError, match=said):
        from_dict(LineConfig, values)


@pytest.mark.parametrize("values", [None, 3, "flow", [1, 2]])
def test_what_is_not_a_table_is_an_error(values):
    with pytest.raises(ConfigError, match="LineConfig: expected a table of options"):
        from_dict(LineConfig, values)


def test_configs_cannot_be_changed_in_place():
    with pytest.raises(dataclasses.FrozenInstanceError):
        LineConfig().flow.couplings = 9
