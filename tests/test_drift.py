"""Drift: what facts of a picture say, when a watch speaks up and when not, and the file it is kept in."""

import contextlib
import json
import multiprocessing
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage, stats
from typer.testing import CliRunner

from moleflow import Detector
from moleflow.cli import app
from moleflow.errors import LineError, TaskError
from moleflow.monitor import read_monitor
from moleflow.store import LineStore
from moleflow.store import watch as watch_module
from moleflow.verdict.drift import CHANNELS, Facts, Reference, channels_beyond, facts_of
from moleflow.verdict.watch import KEPT, REMEMBERED, Monitor, Seen, judge

TAUGHT, SESSION = 200, 25


def stream(rng, count, *, session=0.0, light=None, sharpness=None, place=0.0):
    """Facts of images of one product with jitter of their own and of sessions of 25 images."""
    sessions = np.repeat(rng.normal(size=(count // SESSION + 1, 4)), SESSION, axis=0)[:count]
    jitter = session * sessions + rng.normal(size=(count, 4))
    light = np.ones(count) if light is None else light
    sharpness = np.ones(count) if sharpness is None else sharpness
    return [
        Facts(
            light=(92 + 2 * row[0]) * lit,
            contrast=0.4 * np.exp(0.03 * row[1]),
            sharpness=0.3 * np.exp(0.05 * row[2]) * sharp,
            place=0.4 * row[3] + place,
        )
        for row, lit, sharp in zip(jitter, light, sharpness, strict=True)
    ]


def seen(facts, verdict="good"):
    return [Seen(1000.0 + i, verdict, 0.5, fact) for i, fact in enumerate(facts)]


@pytest.fixture(scope="module")
def reference():
    return Reference.fit(stream(np.random.default_rng(0), TAUGHT))


# One picture


def test_less_light_is_light_alone(pictures):
    image = pictures("wood", 1)[0]
    before, after = facts_of(image), facts_of((image * 0.8).round().astype(np.uint8))
    assert after.light == pytest.approx(0.8 * before.light, abs=1)
    assert after.contrast == pytest.approx(before.contrast, rel=0.02)
    assert after.sharpness == pytest.approx(before.sharpness, rel=0.05)


def test_blur_is_sharpness_alone(pictures):
    image = pictures("wood", 1)[0]
    blurred = ndimage.gaussian_filter(image.astype(float), (1, 1, 0)).round().astype(np.uint8)
    before, after = facts_of(image), facts_of(blurred)
    assert after.light == pytest.approx(before.light, abs=1)
    assert after.sharpness < 0.6 * before.sharpness


def test_a_cast_is_colour_alone_and_grey_has_none(pictures):
    image = pictures("wood", 1)[0]
    red, _, blue = image.astype(float).mean((0, 1))
    grey = image.mean(-1, keepdims=True)
    gains = np.array([1.1, 1.0, 0.0])
    gains[2] = (0.299 * red + 0.114 * blue - 0.299 * 1.1 * red) / (0.114 * blue)  # the grey level stays
    before, after = facts_of(image), facts_of((image * gains).round().astype(np.uint8))
    assert after.light == pytest.approx(before.light, abs=1)
    assert after.sharpness == pytest.approx(before.sharpness, rel=0.1)
    assert after.warmth > 1.2 * before.warmth
    assert facts_of((image * 0.7).astype(np.uint8)).warmth == pytest.approx(before.warmth, abs=0.01)
    plain = facts_of(np.repeat(grey, 3, axis=2).astype(np.uint8))
    assert (plain.warmth, plain.tint) == (1, 1)


def test_pose_is_told_from_where_edges_are():
    image = np.full((96, 128, 3), 40, np.uint8)
    image[30:70, 40:90] = 200
    before = facts_of(image)
    assert (before.across, before.down) == (
        pytest.approx(65 / 128, abs=0.01),
        pytest.approx(50 / 96, abs=0.01),
    )
    moved = facts_of(np.roll(image, (8, 16), (0, 1)))
    assert moved.across - before.across > 0.06
    assert moved.down - before.down > 0.04
    turned = [facts_of(np.asarray(Image.fromarray(image).rotate(a, fillcolor=(40,) * 3))) for a in (-9, 9)]
    assert turned[0].turn > before.turn + 0.02 > turned[1].turn + 0.04
    stripes = np.zeros((96, 128, 3), np.uint8)
    stripes[:, ::16] = stripes[:, 1::16] = 200
    leaning = [facts_of(np.asarray(Image.fromarray(stripes).rotate(a))).lean for a in (-9, 0, 9)]
    assert leaning[0] > leaning[1] + 0.05 > leaning[2] + 0.1
    larger = facts_of(np.asarray(Image.fromarray(image[12:-12, 16:-16]).resize((128, 96))))
    assert larger.extent > before.extent + 0.02
    dark = facts_of((image * 0.7).astype(np.uint8))
    for name in ("across", "down", "extent", "turn", "lean"):
        assert getattr(dark, name) == pytest.approx(getattr(before, name), abs=0.01), name


@pytest.mark.parametrize("shape", [(1, 1, 3), (2, 90, 3), (90, 2, 3), (64, 64, 3)])
@pytest.mark.parametrize("level", [0, 255])
def test_pictures_that_show_nothing_have_facts(shape, level):
    facts = facts_of(np.full(shape, level, np.uint8), size=(100, 50), clipped=0.25)
    told = (
        facts.light,
        facts.contrast,
        facts.sharpness,
        facts.clipped,
        facts.aspect,
        facts.warmth,
        facts.tint,
    )
    assert told == (level, 0, 0, 0.25, 0.5, 1, 1)
    assert facts.across == (pytest.approx(0.5) if min(shape[:2]) > 2 else None)


@pytest.mark.parametrize(("taught", "session"), [(8, 0.0), (40, 0.0), (40, 1.0), (200, 1.0)])
def test_good_images_lie_beyond_less_than_once_in_a_thousand(taught, session):
    rng, beyond, count = np.random.default_rng(taught), 0, 0
    for _ in range(10):
        learned = Reference.fit(stream(rng, taught, session=session))
        new = stream(rng, 400, session=session)
        beyond += sum(bool(channels_beyond(fact, learned)) for fact in new)
        count += len(new)
    assert beyond / count <= 0.001


def test_a_picture_beyond_is_named_in_words(reference):
    (found,) = channels_beyond(Facts(61.0, 0.4, 0.3, place=0.0), reference)
    assert (found.channel, found.direction) == ("light", "lower")
    assert found.spreads < -8
    low, high = (
        f"{value:.0f}" for value in (reference.norms["light"].low[0], reference.norms["light"].high[-1])
    )
    assert found.sentence == f"darker than every good image taught: mean grey 61, taught {low} to {high}"
    assert [f.channel for f in channels_beyond(Facts(92.0, 0.4, 0.1, place=9.0), reference)] == [
        "sharpness",
        "place",
    ]


def test_what_is_no_concern_is_not_found(reference):
    assert not channels_beyond(Facts(92.0, 0.4, 0.3, place=-50.0), reference)
    assert not channels_beyond(Facts(92.0, 0.4, 0.3, place=None, whole=99.0), reference)


def test_the_sensor_sets_a_floor():
    identical = Reference.fit([Facts(90.0, 0.4, 0.3)] * 12)
    assert not channels_beyond(Facts(91.5, 0.404, 0.305), identical)


def test_one_odd_image_among_the_good_sets_no_limit(reference):
    odd = [*stream(np.random.default_rng(0), TAUGHT - 1), Facts(20.0, 0.4, 0.3, place=0.0)]
    (found,) = channels_beyond(Facts(61.0, 0.4, 0.3, place=0.0), Reference.fit(odd))
    assert found.sentence.startswith("darker than nearly all good images taught")


def test_a_cast_is_found_and_a_product_taught_before_the_channel_is_silent_in_it(reference):
    taught = stream(np.random.default_rng(0), TAUGHT)
    cast = replace(taught[0], place=0.0, warmth=1.3, across=0.9)
    assert not channels_beyond(cast, reference)
    colours = 1 + 0.02 * np.random.default_rng(1).normal(size=TAUGHT)
    told = [replace(fact, warmth=warmth) for fact, warmth in zip(taught, colours, strict=True)]
    (found,) = channels_beyond(cast, Reference.fit(told))
    assert found.sentence.startswith("warmer in colour than every good image taught: red to blue 1.30")
    grey = Reference.fit([replace(fact, warmth=1.0, tint=1.0) for fact in taught])
    assert not channels_beyond(replace(taught[0], warmth=1.0, tint=1.0), grey)


def test_a_watch_from_before_a_channel_is_read():
    kept = Monitor("0001").adding(seen(stream(np.random.default_rng(2), 20))).to_dict()
    old = [i for i, name in enumerate(kept["facts"]) if name not in ("warmth", "across")]
    rows = [row[:3] + [row[3 + i] for i in old] for row in kept["seen"]]
    again = Monitor.from_dict(kept | {"facts": [kept["facts"][i] for i in old], "seen": rows})
    assert again.to_dict() == kept


def test_few_images_judge_nothing():
    assert not channels_beyond(Facts(0.0, 0.0, 0.0), Reference.fit([Facts(90.0, 0.4, 0.3)] * 3))


def test_a_reference_is_small_json_and_comes_back_to_the_bit(reference):
    text = json.dumps(reference.to_dict(), separators=(",", ":"))
    assert len(text) < 1000
    assert Reference.from_dict(json.loads(text)) == reference


def test_blocks_that_differ_widen_what_sessions_may_do():
    facts = [Facts(80.0 + 10 * (i % 4) + 0.1 * (i % 7), 0.4, 0.3) for i in range(80)]
    told = Reference.fit(facts, [i % 4 for i in range(80)]).norms["light"]
    assert told.blocks == 4
    assert told.between > 5
    mixed = Reference.fit(facts).norms["light"]  # neighbours see every session, so that blocks are alike
    assert mixed.between < told.between


# Many pictures


@pytest.mark.parametrize(("taught", "session"), [(30, 0.0), (200, 0.0), (200, 1.0)])
def test_ordinary_jitter_and_sessions_are_steady(taught, session):
    rng, steady, count = np.random.default_rng(taught), 0, 0
    for _ in range(40):
        learned = Reference.fit(stream(rng, taught, session=session))
        new = seen(stream(rng, 120, session=session))
        states = [judge(new[:end], learned).state for end in (40, 80, 120)]
        steady += states.count("steady")
        count += len(states)
    assert steady >= 0.99 * count


def test_a_lamp_that_ages_is_named_before_false_alarms_double(reference):
    # The threshold lets one good image in a hundred alarm; scores lean on light by a tenth of their
    # spread: made pictures that lost 15 % of their light alarmed no more than others.
    rng, lean, threshold = np.random.default_rng(5), 0.1, stats.norm.isf(0.01)
    for _ in range(10):
        fall = np.concatenate([np.zeros(50), np.linspace(0, 0.1, 100)])
        images = seen(stream(rng, 150, light=1 - fall))
        named = next(end for end in range(55, 151) if judge(images[:end], reference).state != "steady")
        report = judge(images[:named], reference)
        assert (report.state, report.channel) == ("moving", "light")
        assert "darker than the typical good image taught" in report.sentence
        assert 1030 <= report.since <= 1000 + named
        lost = fall[named - 1] * 92 / 2  # spreads of light
        assert stats.norm.sf(threshold - lean * lost) < 0.02
        assert judge(images, reference).state in ("moving", "moved")


def test_blur_is_named_sharpness(reference):
    rng = np.random.default_rng(6)
    softer = np.concatenate([np.ones(60), np.full(40, 0.6)])
    report = judge(seen(stream(rng, 100, sharpness=softer)), reference)
    assert (report.state, report.channel) == ("moved", "sharpness")
    assert "less sharp than every good image taught" in report.sentence
    assert abs(report.since - 1060) <= 3
    (channel,) = [row for row in report.channels if row.moved]
    assert channel.spreads < -5
    assert channel.history[0] > -2 > channel.history[-1]


def test_strange_places_in_the_usual_light_point_at_pose(reference):
    report = judge(seen(stream(np.random.default_rng(7), 60, place=3.0)), reference)
    assert report.channel == "place"
    assert "pose" in report.sentence


def test_one_defective_lot_is_no_drift():
    rng = np.random.default_rng(8)

    def with_whole(facts, whole):
        return [replace(fact, whole=whole + rng.normal()) for fact in facts]

    learned = Reference.fit(with_whole(stream(rng, TAUGHT), 0.0))
    for share in (0.3, 0.6, 0.9):
        good, bad = (with_whole(stream(rng, 60), whole) for whole in (0.0, 8.0))
        lot = [
            Seen(2000.0 + i, "defective", 9.0, bad[i])
            if (7 * i) % 10 < 10 * share
            else Seen(2000.0 + i, "good", 0.1, good[i])
            for i in range(60)
        ]
        report = judge([*seen(with_whole(stream(rng, 60), 0.0)), *lot], learned)
        assert report.state == "steady"
        assert report.channel is None
        assert "defective" in report.sentence
        assert "not like drift" in report.sentence


def test_a_drift_that_makes_everything_unknown_is_still_seen(reference):
    images = seen(stream(np.random.default_rng(9), 40, light=np.full(40, 0.6)), "unknown")
    report = judge(images, reference)
    assert (report.state, report.channel) == ("moved", "light")
    assert "is it this product at all?" in report.sentence


def test_nothing_is_said_of_too_little(reference):
    assert judge([], reference).state == "unwatched"
    assert "10 are needed" in judge(seen(stream(np.random.default_rng(1), 9)), reference).sentence
    few = Reference.fit(stream(np.random.default_rng(1), 3))
    assert "taught with 3 of the 4 images" in judge(seen(stream(np.random.default_rng(1), 50)), few).sentence
    assert "update the product" in judge(seen(stream(np.random.default_rng(1), 50)), None).sentence


# What is kept


def test_a_monitor_is_bounded_and_comes_back_to_the_bit():
    rng, monitor = np.random.default_rng(2), Monitor("0001")
    for round_ in range(30):
        verdict = "good" if round_ % 2 else "defective"
        images = seen(stream(rng, 20), verdict)
        monitor = monitor.adding(images, [(f"/belt/{round_:03d}-{i}.png", verdict) for i in range(20)])
    assert (len(monitor.seen), monitor.total, monitor.began) == (KEPT, 600, 1000.0)
    assert len(monitor.remembered) == 2 * REMEMBERED
    assert ("/belt/029-19.png", "good") in monitor.remembered
    text = json.dumps(monitor.to_dict(), separators=(",", ":"))
    assert len(text) < 25_000
    again = Monitor.from_dict(json.loads(text))
    assert again.to_dict() == monitor.to_dict()
    assert list(CHANNELS) == monitor.to_dict()["facts"]


@pytest.fixture
def store(saved):
    return LineStore(saved)


def count_up(document):
    return {"n": (document or {"n": 0})["n"] + 1}


def _count(path, times):
    store = LineStore(path)
    for _ in range(times):
        store.change_watch("wood", count_up)


def test_two_processes_lose_nothing(store):
    context = multiprocessing.get_context("fork" if os.name != "nt" else "spawn")
    writers = [context.Process(target=_count, args=(store.path, 20)) for _ in range(2)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert store.read_watch("wood") == {"n": 40}


@pytest.mark.parametrize("step", ["write_file", "make_folder", "sync_folder", "replace"])
def test_a_crash_while_writing_leaves_the_watch_as_before_or_after(store, monkeypatch, step):
    store.change_watch("wood", count_up)

    def crash(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(*((watch_module.os, step) if step == "replace" else (watch_module, step)), crash)
        with contextlib.suppress(KeyboardInterrupt):
            store.change_watch("wood", count_up)
    assert store.read_watch("wood")["n"] == (2 if step == "sync_folder" else 1)
    assert not [path for path in store.path.rglob(".tmp-*")]


def test_what_a_killed_writer_left_is_swept(store):
    (store.path / ".tmp-0123").write_bytes(b"{")
    store.change_watch("wood", count_up)
    (store.path / "watch" / "gone.json").write_bytes(b"{}")
    store.override("wood", {"false_alarm_rate": 0.02})
    assert not (store.path / ".tmp-0123").exists()
    assert [path.name for path in (store.path / "watch").iterdir()] == ["wood.json"]


def test_a_watch_goes_with_its_product_and_touches_no_version(store):
    before = store.read(tensors=False)
    for name in ("wood", "gear"):
        store.change_watch(name, count_up)
    assert [vars(task) for task in store.read(tensors=False).tasks] == [vars(task) for task in before.tasks]
    store.remove("wood")
    assert [path.name for path in (store.path / "watch").iterdir()] == ["gear.json"]
    with pytest.raises(TaskError):
        store.read_watch("wood")


@pytest.mark.skipif(os.name == "nt", reason="links as POSIX has them")
def test_a_watch_that_leads_out_of_the_line_is_refused(store, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (store.path / "watch").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    with pytest.raises(LineError, match="link"):
        store.change_watch("wood", count_up)
    assert not list((tmp_path / "elsewhere").iterdir())


@pytest.mark.parametrize("damage", [b"", b"[1]", b'{"version": "0001"}', b"\xff\xfe"])
def test_a_damaged_watch_is_named_with_the_way_out_and_forbids_no_update(loaded, pictures, damage):
    store = LineStore(loaded.path)
    store.change_watch("wood", count_up)
    (store.path / "watch" / "wood.json").write_bytes(damage)
    for use in (
        lambda: loaded.drift("wood"),
        lambda: loaded.observe(loaded.predict(pictures("wood", 1), task="wood")),
    ):
        with pytest.raises(LineError, match="--reset wood"):
            use()
    store.delete_watch("wood")
    assert loaded.drift("wood").state == "unwatched"
    store.change_watch("wood", count_up)
    (store.path / "watch" / "wood.json").write_bytes(damage)
    loaded.update_task("wood", pictures("wood", 4, first=70))
    assert loaded.info("wood").images == 12


# A line


def test_predictions_carry_facts_and_products_what_was_taught(line, pictures):
    (prediction,) = line.predict(pictures("wood", 1, first=700), task="wood")
    facts = facts_of(pictures("wood", 1, first=700)[0])
    assert replace(prediction.facts, place=None, whole=None) == facts
    assert prediction.facts.whole == prediction.whole_score
    (routed,) = line.predict(pictures("wood", 1, first=700))
    assert routed.facts.place == routed.routing.strangeness
    assert prediction.to_dict()["facts"]["light"] == facts.light
    learned = line._line.products["wood"].reference
    assert learned.images == 8
    assert set(learned.norms) == set(CHANNELS)


def test_what_is_taught_of_the_whole_is_in_the_unit_of_an_inspection(line):
    product = line._line.products["wood"]
    voice = product.calibration.whole
    taught = [voice.units(raw) for raw in voice.scores]
    assert product.reference.norms["whole"].low[0] == pytest.approx(min(taught), rel=1e-4)
    assert product.reference.norms["place"].high[-1] == pytest.approx(
        max(product.familiarity.values), rel=1e-4
    )


def narrow(pictures):
    """What many images of wood in one light would teach."""
    rng, facts = np.random.default_rng(3), facts_of(pictures("wood", 1)[0])
    return Reference.fit([replace(facts, light=facts.light + rng.normal()) for _ in range(40)])


def test_in_other_light_neither_a_defect_nor_another_product_is_told(loaded, pictures):
    store = LineStore(loaded.path)
    record = store.read_task("wood")
    store.put(replace(record, info=record.info | {"reference": narrow(pictures).to_dict()}))
    narrowed = Detector.load(store.path, device="cpu")
    narrowed.set_threshold("wood", threshold=-1e6)  # everything is defective
    dark = (pictures("wood", 1)[0] * 0.8).astype(np.uint8)
    (told,) = narrowed.predict([dark], task="wood")
    assert (told.pred_label, told.known) == (True, True)
    assert told.status == "defective"  # a conspicuous place is one in any light
    above = told.place_score - told.map_threshold
    assert replace(told, map_rise=0.99 * above).status == "defective"
    told = replace(told, map_rise=1.01 * above)  # unless all places are
    assert told.status == told.to_dict()["status"] == "drifting"
    assert told.reason.startswith("darker than every good image taught: mean grey")
    assert told.reason.endswith("so nobody can tell whether it is defective")
    (routed,) = narrowed.predict([dark])
    for far, status in ((1.0, "drifting"), (100.0, "unknown")):
        routing = replace(routed.routing, distance=far * routed.routing.distance_limit, known=False)
        strange = replace(told, known=False, routing=routing)
        assert strange.status == status
    assert replace(told, known=False).status == "unknown"
    assert replace(told, pred_label=False).status == "good"
    assert narrowed.predict(pictures("wood", 1), task="wood")[0].status == "defective"


def test_drifting_images_are_told_and_watched_as_such(saved, pictures, tmp_path, monkeypatch):
    store = LineStore(saved)
    record = store.read_task("wood")
    taught = {"reference": narrow(pictures).to_dict()}
    Image.fromarray((pictures("wood", 1)[0] * 0.8).astype(np.uint8)).save(tmp_path / "dark.png")
    store.put(replace(record, info=record.info | taught, overrides={"threshold": -1e6}))
    # A threshold so low makes every place conspicuous, which would be a defect in any light.
    monkeypatch.setattr("moleflow.results.Prediction._may_be_the_camera", True)
    told = run("predict", saved, tmp_path, "--task", "wood", "--monitor")
    assert "drifting" in told.stdout
    assert "0 of 1 defective, 0 of an unknown product, 1 drifting" in told.stderr
    (image,) = read_monitor(store, "wood", "0002").seen
    assert image.verdict == "drifting"


def test_without_findings_on_the_light_a_status_is_as_before(line, pictures):
    (told,) = line.predict(pictures("wood", 1, first=700), task="wood")
    assert told.findings == ()
    strange = replace(told, findings=channels_beyond(replace(told.facts, place=1e3), _reference(line)))
    assert [finding.channel for finding in strange.findings] == ["place"]
    assert replace(strange, pred_label=True).status == "defective"
    assert replace(strange, known=False).status == "unknown"
    for status in (replace(strange, pred_label=True), replace(strange, known=False), told):
        assert status.reason


def _reference(line):
    return line._line.products["wood"].reference


def test_a_line_from_before_drift_was_watched(loaded, pictures):
    store = LineStore(loaded.path)
    record = store.read_task("wood")
    info = {key: value for key, value in record.info.items() if key != "reference"}
    store.put(replace(record, info=info))
    old = Detector.load(store.path, device="cpu")
    old.observe(old.predict(pictures("wood", 3), task="wood"))
    assert old.drift("wood").state == "unwatched"
    assert "update" in old.drift("wood").sentence
    dark = [(picture * 0.3).astype(np.uint8) for picture in pictures("wood", 1)]
    assert old.predict(dark, task="wood")[0].status in ("good", "defective", "unknown")
    old.update_task("wood", pictures("wood", 4, first=70))
    old.save()
    assert "are needed" in old.drift("wood").sentence


def test_watching_needs_the_line_as_it_was_saved(new_line, loaded, pictures):
    unsaved = new_line()
    unsaved.add_task("wood", pictures("wood", 4))
    seen_ = unsaved.predict(pictures("wood", 1))
    for use in (lambda: unsaved.observe(seen_), lambda: unsaved.drift("wood")):
        with pytest.raises(LineError, match="save the line"):
            use()
    store = LineStore(loaded.path)
    seen_ = loaded.predict(pictures("wood", 1), task="wood")
    store.put(store.read_task("wood"))
    with pytest.raises(LineError, match="0002"):
        loaded.observe(seen_)


def test_what_could_not_be_inspected_is_not_watched(loaded, pictures, tmp_path):
    (tmp_path / "no.png").write_bytes(b"no image")
    told = loaded.predict([*pictures("wood", 2), tmp_path / "no.png"], task="wood", errors="yield")
    loaded.observe(told)
    assert len(LineStore(loaded.path).read_watch("wood")["seen"]) == 2


def test_another_version_begins_a_new_watch(loaded, pictures):
    loaded.observe(loaded.predict(pictures("wood", 3), task="wood"))
    loaded.observe(loaded.predict(pictures("wood", 2), task="wood"))
    store = LineStore(loaded.path)
    assert read_monitor(store, "wood", "0001").total == 5
    loaded.update_task("wood", pictures("wood", 4, first=70))
    loaded.save()
    assert read_monitor(store, "wood", "0002") == Monitor("0002")
    loaded.observe(loaded.predict(pictures("wood", 1), task="wood"))
    assert read_monitor(store, "wood", "0002").total == 1


def test_an_update_with_few_images_keeps_the_conditions_that_were_taught(new_line, pictures):
    line = new_line()
    line.add_task("wood", pictures("wood", 2))
    before = line._line.products["wood"].reference
    line.update_task("wood", pictures("wood", 3, first=60))
    assert line._line.products["wood"].reference == before
    line.update_task("wood", pictures("wood", 4, first=80))
    assert line._line.products["wood"].reference.images == 4


def test_an_update_names_what_it_makes_good(loaded, pictures, tmp_path):
    loaded.set_threshold("wood", threshold=-1e6)  # everything is defective
    loaded.save()
    for i, picture in enumerate(pictures("wood", 3, first=800)):
        Image.fromarray(picture).save(tmp_path / f"{i}.png")
    loaded.observe(loaded.predict(tmp_path, task="wood"))
    (tmp_path / "0.png").unlink()
    (tmp_path / "1.png").write_bytes(b"no image")
    changes = loaded.update_task("wood", pictures("wood", 4, first=70)).changes
    assert changes.taught == 4
    assert [flip.source for flip in changes.swallowed] == ["0", "1", "2", "3"]
    assert {flip.after for flip in changes.swallowed} == {"good"}
    assert changes.checked == 1
    assert [Path(flip.source).name for flip in changes.flipped] in ([], ["2.png"])
    assert loaded.info("gear").changes is None


# The command line


def run(*args, code=0):
    result = CliRunner().invoke(app, [str(a) for a in args])
    assert result.exit_code == code, result.output + repr(result.exception)
    return result


def test_a_watch_from_the_command_line(saved, pictures, tmp_path):
    usual, dark = tmp_path / "usual", tmp_path / "dark"
    for folder, light in ((usual, 1.0), (dark, 0.3)):
        folder.mkdir()
        for i, picture in enumerate(pictures("wood", 12, first=900)):
            Image.fromarray((picture * light).astype(np.uint8)).save(folder / f"{i:02d}.png")
    run("predict", saved, usual, "--task", "wood")
    assert not (saved / "watch").exists()
    assert "0 images were watched" in run("drift", saved, "wood").stdout
    run("predict", saved, usual, "--task", "wood", "--monitor")
    assert "12 images watched since" in run("drift", saved).stdout
    for _ in range(3):
        run("predict", saved, dark, "--task", "wood", "--monitor")
    shown = run("drift", saved, "wood").stdout
    assert "wood: moved: light, since about" in shown
    assert "darker than every good image taught" in shown
    assert "▁▁▁" in shown
    lines = run("drift", saved, "--json", "-").stdout.splitlines()
    reports = {report["product"]: report for report in map(json.loads, lines)}
    assert (reports["wood"]["state"], reports["wood"]["channel"]) == ("moved", "light")
    assert (reports["wood"]["total"], reports["gear"]["state"]) == (48, "unwatched")
    run("drift", saved, "wood", "--reset", "wood", code=2)
    run("drift", saved, "--reset", "wood")
    assert not (saved / "watch" / "wood.json").exists()


def test_what_was_seen_before_an_error_is_watched(saved, pictures, tmp_path):
    for i, picture in enumerate(pictures("wood", 3, first=970)):
        Image.fromarray(picture).save(tmp_path / f"{i}.png")
    (tmp_path / "3.png").write_bytes(b"no image")
    run("predict", saved, tmp_path, "--task", "wood", "--batch-size", 1, "--monitor", "--strict", code=1)
    assert read_monitor(LineStore(saved), "wood", "0001").total == 3
    run("predict", saved, tmp_path, "--task", "wood", "--monitor", code=3)
    assert read_monitor(LineStore(saved), "wood", "0001").total == 6


def test_update_says_what_it_swallows(saved, pictures, tmp_path):
    LineStore(saved).override("wood", {"threshold": -1e6})
    for i, picture in enumerate(pictures("wood", 4, first=950)):
        Image.fromarray(picture).save(tmp_path / f"{i}.png")
    told = run("update", saved, "wood", tmp_path).stderr
    assert "4 of the 4 images were not good to version 0001" in told
    assert "3.png (defective, now good)" in told
    assert f"moleflow rollback {saved} wood 0001" in told
