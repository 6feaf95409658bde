"""Options travel as plain JSON and come back the same; a key nobody knows is an error."""

from __future__ import annotations

import dataclasses
import json

import pytest

from moleflow.config import (
    Cells,
    Context,
    Coreset,
    Dia,
    FlowConfig,
    LineConfig,
    Lora,
    Mixer,
    RouterConfig,
    ScoringConfig,
    TrainingConfig,
    Whitening,
    Whole,
    from_dict,
    override,
    stored_line,
    to_dict,
)
from moleflow.errors import ConfigError

PARTS = {"cells": Cells, "whitening": Whitening, "mixer": Mixer, "context": Context, "lora": Lora, "dia": Dia}
LINES = {
    "defaults": LineConfig(),
    "nothing": LineConfig(
        flow=FlowConfig(**dict.fromkeys(PARTS)), scoring=ScoringConfig(coreset=None, whole=None)
    ),
    "replaced": LineConfig(
        flow=FlowConfig(
            cells=Cells(side=4, bits=16),
            position=0.0,
            bits=16,
            whitening=Whitening(scale_limit=3.0),
            mixer=Mixer(gate_limit=0.25),
            context=Context(kernel=3),
            lora=Lora(rank=4, alpha=8.0),
            dia=Dia(blocks=5),
        ),
        training=TrainingConfig(steps=7, tail_weight=0.1),
        scoring=ScoringConfig(coreset=Coreset(patches=7, weight=0.5), whole=Whole(bits=16)),
        router=RouterConfig(metric="product", rank=2),
    ),
    "cells beside": LineConfig(
        flow=FlowConfig(cells=None, normalisation="layer", statistics=True),
        scoring=ScoringConfig(cells=Cells(side=3), position_calibration=False),
    ),
    "published parts": LineConfig(
        flow=FlowConfig(cells=None, normalisation="sphere", mixer=Mixer(kernel="full")),
        training=TrainingConfig(margin=2, tail="image", log_det_of="flow"),
    ),
    **{f"without-{part}": LineConfig(flow=FlowConfig(**{part: None})) for part in PARTS},
    **{f"without-{part}": LineConfig(scoring=ScoringConfig(**{part: None})) for part in ("coreset", "whole")},
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
    assert (type(back.scoring.coreset), type(back.scoring.whole)) == (Coreset, Whole)
    beside = from_dict(LineConfig, json.loads(json.dumps(to_dict(LINES["cells beside"]))))
    assert type(beside.scoring.cells) is Cells


def test_what_is_not_given_is_the_default():
    assert from_dict(LineConfig, {}) == LineConfig()
    assert from_dict(LineConfig, {"flow": {"couplings": 5}}) == LineConfig(flow=FlowConfig(couplings=5))
    assert from_dict(LineConfig, {"flow": {"dia": {"blocks": 9}}}).flow.dia == Dia(blocks=9)
    assert from_dict(LineConfig, {"flow": {"cells": {"bits": 16}}}).flow.cells == Cells(bits=16)
    assert from_dict(LineConfig, {"scoring": {"coreset": None}}).scoring.coreset is None


def test_by_default_the_flow_begins_with_cells_and_has_a_coreset_beside_it():
    line = LineConfig()
    assert (line.flow.cells, line.scoring.cells) == (Cells(), None)
    assert (line.flow.normalisation, line.flow.statistics) == ("none", False)
    assert line.scoring.coreset == Coreset()
    assert {line.flow.cells.bits, line.scoring.coreset.bits, line.scoring.whole.bits} == {4}


@pytest.mark.parametrize(
    ("values", "owner", "key"),
    [
        ({"flows": {}}, "LineConfig", "flows"),
        ({"flow": {"coupling": 3}}, "FlowConfig", "coupling"),
        ({"flow": {"dia": {"block": 3}}}, "Dia", "block"),
        ({"scoring": {"cells": {"sides": 3}}}, "Cells", "sides"),
        ({"flow": {"cells": {"bit": 8}}}, "Cells", "bit"),
        ({"scoring": {"coreset": {"patch": 3}}}, "Coreset", "patch"),
        ({"training": {"lr": 0.1}}, "TrainingConfig", "lr"),
        ({"router": {"matric": "shared"}}, "RouterConfig", "matric"),
    ],
)
def test_an_unknown_key_is_an_error_at_every_depth(values, owner, key):
    with pytest.raises(ConfigError, match=f"{owner}: unknown option '{key}'; known are ") as caught:
        from_dict(LineConfig, values)
    kinds = (LineConfig, FlowConfig, Dia, Cells, Coreset, TrainingConfig, RouterConfig)
    for field in dataclasses.fields({kind.__name__: kind for kind in kinds}[owner]):
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


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"flow": {"cells": {"bits": 2}}}, "Cells.bits: expected one of 4, 8, 16, got 2"),
        ({"flow": {"bits": 32}}, "FlowConfig.bits: expected one of 4, 8, 16, got 32"),
        ({"scoring": {"whole": {"bits": 12}}}, "Whole.bits: expected one of 4, 8, 16, got 12"),
        ({"flow": {"bits": "8"}}, "FlowConfig.bits"),
        ({"flow": {"cells": {"side": 0}}}, "Cells.side: expected a number above 0"),
        ({"scoring": {"coreset": {"patches": 0}}}, "Coreset.patches: expected a number above 0"),
        ({"scoring": {"coreset": {"candidates": 1.5}}}, "Coreset.candidates: expected a whole number"),
        ({"scoring": {"coreset": {"rank": 0}}}, "Coreset.rank: expected a number above 0"),
        ({"scoring": {"coreset": {"weight": 0}}}, "Coreset.weight: expected a number above 0"),
        ({"scoring": {"coreset": 300}}, "Coreset: expected a table of options"),
    ],
)
def test_an_option_of_cells_and_coreset_that_cannot_be_is_an_error(values, said):
    with pytest.raises(ConfigError, match=said):
        from_dict(LineConfig, values)


@pytest.mark.parametrize(
    "changes", [{"normalisation": "layer"}, {"normalisation": "sphere"}, {"statistics": True}]
)
def test_cells_are_the_only_start_of_a_flow(changes):
    with pytest.raises(ConfigError, match="expected normalisation 'none' and no statistics"):
        FlowConfig(**changes)
    with pytest.raises(ConfigError, match="expected normalisation 'none' and no statistics"):
        from_dict(LineConfig, {"flow": changes})
    with pytest.raises(ConfigError, match="expected normalisation 'none' and no statistics"):
        override(LineConfig(), {f"flow.{name}": value for name, value in changes.items()})
    assert FlowConfig(cells=None, **changes).cells is None


def test_cells_at_both_places_are_an_error_and_at_one_of_them_are_not():
    flows, scorings = (FlowConfig(), FlowConfig(cells=None)), (ScoringConfig(), ScoringConfig(cells=Cells()))
    for flow in flows:
        for scoring in scorings:
            if flow.cells is None or scoring.cells is None:
                assert LineConfig(flow=flow, scoring=scoring).flow is flow
                continue
            with pytest.raises(ConfigError, match=r"expected one of flow.cells and scoring.cells to be left"):
                LineConfig(flow=flow, scoring=scoring)
    with pytest.raises(ConfigError, match=r"one of flow\.cells and scoring\.cells"):
        from_dict(LineConfig, {"scoring": {"cells": {}}})


# -- lines that are older than a part ----------------------------------------------------------------


def older() -> dict[str, object]:
    """What a line wrote down before its flow could begin with cells, in anything but 16 bits."""
    line = LineConfig(
        flow=FlowConfig(cells=None, normalisation="layer", statistics=True, couplings=3),
        training=TrainingConfig(steps=500, noise=0.3),
        scoring=ScoringConfig(cells=Cells(side=4), coreset=None, whole=Whole(rank=5)),
    )
    values = json.loads(json.dumps(to_dict(line)))
    del values["flow"]["cells"], values["flow"]["bits"]
    del values["scoring"]["cells"]["bits"], values["scoring"]["whole"]["bits"]
    return values


def test_a_line_older_than_cells_in_the_flow_goes_on_without_them_and_in_sixteen_bits():
    values = older()
    before = json.dumps(values)
    line = stored_line(values)
    assert (line.flow.cells, line.flow.bits) == (None, 16)
    assert line.scoring.cells == Cells(side=4, bits=16)
    assert line.scoring.whole == Whole(rank=5, bits=16)
    assert (line.flow.couplings, line.flow.normalisation, line.training.noise) == (3, "layer", 0.3)
    assert json.dumps(values) == before
    assert stored_line(json.loads(json.dumps(to_dict(line)))) == line


def test_a_coreset_older_than_its_layers_and_axes_stays_as_it_was():
    values = json.loads(json.dumps(to_dict(LineConfig())))
    del values["scoring"]["coreset"]["layers"], values["scoring"]["coreset"]["rank"]
    assert stored_line(values).scoring.coreset == Coreset(layers=(), rank=None)
    del values["scoring"]["coreset"]["bits"]
    assert stored_line(values).scoring.coreset == Coreset(layers=(), rank=None, bits=8)


@pytest.mark.parametrize("part", ["cells", "whole"])
def test_a_stored_line_without_a_part_stays_without_it(part):
    values = older()
    values["scoring"][part] = None
    assert getattr(stored_line(values).scoring, part) is None


@every_line
def test_a_line_that_says_everything_is_stored_as_it_is(line):
    assert stored_line(json.loads(json.dumps(to_dict(line)))) == line


@pytest.mark.parametrize("values", [None, 3, "flow", [1, 2]])
def test_what_is_not_a_table_is_an_error(values):
    with pytest.raises(ConfigError, match="LineConfig: expected a table of options"):
        from_dict(LineConfig, values)


def test_configs_cannot_be_changed_in_place():
    with pytest.raises(dataclasses.FrozenInstanceError):
        LineConfig().flow.couplings = 9
