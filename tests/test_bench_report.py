"""The benchmark's report: complete, readable without a network, and true to the numbers it was given."""

import json
import math
import re
from html.parser import HTMLParser

import numpy as np
import pytest

from moleflow.bench.figures import NAMES
from moleflow.bench.report import Gallery, build, charts, write_report, write_sweep_report
from moleflow.bench.report.charts import Axis, Point, Series
from moleflow.bench.report.published import PRODUCTS, PUBLISHED, dataset_of, published_for
from moleflow.bench.report.trials import journey
from moleflow.bench.results import SHARES, Chain, spread, summarise
from moleflow.bench.sweep import Space
from moleflow.bench.sweep.choosing import _judged
from moleflow.config import LineConfig, override, to_dict
from moleflow.report import Card, Picture, mask_uri, number

THREE = ("bolt", "gear", "plate")
PIXEL = ("pixel_auroc", "pixel_ap", "aupro_30", "aupro_05", "aupimo")
FOUR = {  # entry: method, options, image AUROC, what is lost at every step, whether it routes, has maps
    "moleflow": ("moleflow", {}, 0.95, 0.0, True, True),
    "bank": ("bank", {}, 0.94, 0.0, True, True),
    "finetune": ("finetune", {}, 0.92, 0.08, False, True),
    "dne": ("dne", {}, 0.85, 0.02, False, False),
}


def make_results(entries=None, streams=None, seeds=(0, 1), *, steps_done=None):
    """A valid results.json and timings.json of made-up figures, put together by the bench's own code."""
    entries = FOUR if entries is None else entries
    streams = streams or {"plain": [(name,) for name in THREE]}
    chains, rng = [], np.random.default_rng(7)
    for seed in seeds:
        for stream, tasks in streams.items():
            for entry, values in entries.items():
                done = (steps_done or {}).get((entry, stream, seed), len(tasks))
                steps = [make_step(rng, tasks, k, *values[2:]) for k in range(done)]
                times = [{"learn": 3.0 + seed, "inspect_image": 0.012}] * done
                tasks_ = tuple(map(tuple, tasks))
                chains.append(Chain(entry, stream, seed, tasks_, tuple(steps), tuple(times)))
    plan = {
        "entries": {name: {"method": v[0], "options": v[1]} for name, v in entries.items()},
        "configs": {name: to_dict(override(LineConfig(), v[1])) for name, v in entries.items()},
        "streams": [
            {"name": name, "tasks": [{"products": list(task), "named": True} for task in tasks]}
            for name, tasks in streams.items()
        ],
        **{"seeds": list(seeds), "backbone": "efficientnet_lite0", "weights": None, "image_size": None},
        **{"eval_size": [224, 224], "options": {}, "leave_out": True, "threads": 1, "images": "ab12"},
    }
    results = {
        "plan": plan,
        "order": list(entries),
        "titles": {name: f"{name} title" for name in entries},
        "sources": {name: f"Paper of {v[0]}, 2020" for name, v in entries.items()},
        "routes": {name: v[4] for name, v in entries.items()},
        "runs": [chain.to_dict() for chain in chains if chain.steps],
        "summary": {name: summarise(chains, name) for name in entries},
    }
    by_entry = {
        name: {
            what: spread([t[what] for c in chains if c.entry == name for t in c.times])
            for what in ("learn", "inspect_image")
        }
        for name in entries
    }
    machine = {"processor": "x86_64", "cores": 2, "torch": "2.1.0", "threads": 1}
    times = {"command": "moleflow bench <data>", "machine": machine, "entries": by_entry}
    return json.loads(json.dumps(results)), json.loads(json.dumps(times))


def make_step(rng, tasks, k, level, lost, routes, maps):
    def figures(age, gap):
        base = level - lost * age - gap + rng.uniform(-0.02, 0.02)
        found = {name: min(1.0, base * (0.55 if name in PIXEL else 1.0)) for name in NAMES}
        return found if maps else found | dict.fromkeys(PIXEL)

    products = {}
    for age, task in enumerate(reversed(tasks[: k + 1])):
        for name in task:
            digest = "same" if not lost else f"{k} {age}"
            share = 0.97 if routes else None
            products[name] = {
                "oracle": {"figures": figures(age, 0.0), "digest": digest},
                "routed": {"figures": figures(age, 0.01 if routes else 0.0), "digest": digest},
                **dict.fromkeys(SHARES, share),
            }
    last = k == len(tasks) - 1
    own = int(2e5 if routes else 0)
    return {
        "products": products,
        "pooled": {view: figures(0, 0.05) for view in ("oracle", "routed")} if last else None,
        "rejected": dict.fromkeys(products, 0.91) if last and routes else None,
        **{"bytes": 10**6 + own * (k + 1), "shared_bytes": 10**6, "kept_bytes": 0},
        **{"numbers": 10**6 + own * (k + 1), "shared_numbers": 10**6},
    }


class Parsed(HTMLParser):
    """Text, tags and tables of a document; complains of tags that do not match."""

    VOID = ("meta", "img", "br", "line")

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.texts, self.tables, self.said = [], [], [], [], []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append("")

    def handle_endtag(self, tag):
        if tag not in self.VOID:
            assert self.open.pop() == tag

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        if "style" in self.open:
            return
        self.texts.append(data)
        if "td" in self.open or "th" in self.open:
            self.tables[-1][-1][-1] += data + " "

    @property
    def text(self):
        return " ".join(self.texts)

    def rows(self, *headers):
        """Rows by their first cell of the first table whose head has these."""
        for table in self.tables:
            head = [cell.strip() for cell in table[0]]
            if set(headers) <= set(head):
                return {
                    row[0].strip(): {h: c.strip() for h, c in zip(head, row, strict=True)}
                    for row in table[1:]
                }
        raise AssertionError(headers)


@pytest.fixture(scope="module")
def plain():
    results, times = make_results()
    text = build(results, times)
    return results, times, text, Parsed(text)


def test_every_metric_of_every_entry_stands_in_the_report(plain):
    results, _, _, parsed = plain
    cells = {word for table in parsed.tables for row in table for cell in row for word in cell.split()}
    for entry, summary in results["summary"].items():
        for view in ("oracle", "routed"):
            for metric in NAMES:
                found = summary["continual"][view][metric]["acc"]
                assert number(found["mean"]) in cells, (entry, view, metric)
                assert found["sd"] is None or number(found["sd"]) in cells
        for run in (r for r in results["runs"] if r["entry"] == entry):
            if run["seed"] == 0:
                for metric in ("image_auroc", "pixel_ap"):
                    for row in run["matrices"]["routed"][metric]:
                        assert {number(v) for v in row if v is not None} <= cells


def test_headline_has_means_spreads_isolation_and_dashes_for_what_is_not_measured(plain):
    results, _, _, parsed = plain
    rows = parsed.rows("method", "AUPRO 0.3", "AUPRO 0.05", "AUPIMO", "router gap", "isolated")
    own = results["summary"]["moleflow"]["continual"]["routed"]["image_auroc"]["acc"]
    assert rows["moleflow title"]["image AUROC"].split() == [number(own["mean"]), "±", number(own["sd"])]
    assert rows["moleflow title"]["isolated"] == "yes"
    assert rows["finetune title"]["isolated"] == "no"
    assert rows["finetune title"]["router gap"] == "–"
    assert rows["dne title"]["pixel AP"] == "–"
    assert "None" not in parsed.text
    assert not re.search(r"\bnan\b|\binf\b", parsed.text, re.IGNORECASE)


def test_tables_per_product_average_streams_and_seeds():
    streams = {"one": [("a",), ("b",)], "two": [("b",), ("a",)], "other": [("c",), ("d",)]}
    results, times = make_results(streams=streams)
    parsed = Parsed(build(results, times))
    row = parsed.rows("method", "mean", "a", "b")["bank title"]
    runs = [r for r in results["runs"] if r["entry"] == "bank" and r["stream"] in ("one", "two")]
    for name in ("a", "b"):
        values = [run["products"][name]["routed"]["image_auroc"] for run in runs]
        assert len(values) == 4
        assert row[name] == number(np.mean(values))
    assert "bank title" in parsed.rows("method", "mean", "c", "d")


def test_best_of_a_column_is_bold():
    results, times = make_results()
    text = build(results, times)
    means = {
        entry: summary["continual"]["routed"]["image_auroc"]["acc"]["mean"]
        for entry, summary in results["summary"].items()
    }
    best = max(means, key=means.get)
    for entry, value in means.items():
        row = re.search(rf'<th scope="row">{entry} title</th><td>(.*?)</td>', text)[1]
        other = re.search(
            rf'<th scope="row">{entry} title</th><td>.*?</td>.*?</tr>', text.split("At a glance")[1]
        )[0]
        assert (f"<b>{number(value)}" in other) == (entry == best), row


def test_what_is_not_complete_is_in_no_mean_and_is_said():
    results, times = make_results(steps_done={("bank", "plain", 1): 2, ("dne", "plain", 0): 1})
    parsed = Parsed(build(results, times))
    assert "bank title on plain, seed 1: 2 of 3 tasks" in parsed.text
    row = parsed.rows("method", "AUPIMO", "isolated")["bank title"]
    whole = next(r for r in results["runs"] if r["entry"] == "bank" and r["seed"] == 0)
    assert row["image AUROC"] == number(whole["continual"]["routed"]["image_auroc"]["acc"])


def test_a_run_with_nothing_finished_still_gives_a_report():
    results, times = make_results(seeds=(0,), steps_done={(e, "plain", 0): 1 for e in FOUR})
    parsed = Parsed(build(results, times))
    assert parsed.rows("method", "AUPIMO", "isolated")["moleflow title"]["isolated"] == "–"
    results, times = make_results(seeds=(0,), steps_done={(e, "plain", 0): 0 for e in FOUR})
    assert "None" not in Parsed(build(results, times)).text


def test_nothing_is_loaded_and_no_script_runs(plain):
    _, _, text, parsed = plain
    assert not re.search(r"https?:|//|@import|url\(|<script|<link", text)
    assert all(
        value.startswith("data:") for _, attrs in parsed.tags for k, value in attrs.items() if k == "src"
    )


def test_names_are_escaped_everywhere():
    bad = '<img src=x onerror="a">&'
    entries = {bad: ("one", {}, 0.9, 0.0, True, True), "other": ("two", {}, 0.8, 0.1, False, True)}
    results, times = make_results(entries, {bad: [(bad,), ("gear",)]})
    results["sources"][bad] = results["titles"][bad] = bad
    times["command"] = bad
    text = build(results, times, [Gallery(bad, (Card(bad, bad, (Picture("data:,", bad),)),))])
    text += journey([{"options": {bad: bad}, "criterion": 0.1, "oracle": 0.2}], None)
    assert "<img src=x" not in text
    tags = Parsed(text).tags
    assert not [attrs for _, attrs in tags if "onerror" in attrs]


def test_charts_are_named_for_those_who_cannot_see_them(plain):
    _, _, text, parsed = plain
    drawings = [attrs for tag, attrs in parsed.tags if tag == "svg"]
    assert len(drawings) >= 6
    assert all(attrs["role"] == "img" and attrs["aria-label"] for attrs in drawings)
    assert text.count("<svg") == len(re.findall(r"<svg[^>]*><title>[^<]+</title>", text))
    numbers = re.findall(r' (?:x|y|cx|cy|x1|x2|y1|y2|width|height)="([^"]*)"', text)
    assert numbers
    assert all(math.isfinite(float(value)) for value in numbers)


def test_improvement_is_against_the_best_rival_of_each_product(plain):
    results, _, text, _ = plain

    def figure(entry, product):
        runs = [r for r in results["runs"] if r["entry"] == entry]
        return np.mean([r["products"][product]["routed"]["image_auroc"] for r in runs])

    chart = re.search(r'<svg[^>]*aria-label="image AUROC: gain on every product".*?</svg>', text)[0]
    for product in THREE:
        gain = figure("moleflow", product) - max(figure(e, product) for e in FOUR if e != "moleflow")
        assert f"<title>{product}: {charts.signed(gain)}</title>" in chart


VARIANTS = {
    "moleflow": ("moleflow", {}, 0.95, 0.0, True, True),
    "rank 4": ("moleflow", {"flow.lora.rank": 4}, 0.93, 0.0, True, True),
    "rank 64": ("moleflow", {"flow.lora.rank": 64}, 0.94, 0.0, True, True),
    "no dia": ("moleflow", {"flow.dia": None}, 0.90, 0.0, True, True),
    "both": ("moleflow", {"flow.lora.rank": 8, "flow.dia": None}, 0.9, 0.0, True, True),
}


def test_variants_are_shown_as_paired_differences_from_the_first():
    results, times = make_results(VARIANTS, seeds=(0, 1, 2))
    parsed = Parsed(build(results, times))
    row = parsed.rows("entry", "options", "image AUROC, routed")["no dia title"]
    assert row["options"] == "flow.dia left out"
    runs = {
        name: [r["continual"]["routed"]["image_auroc"]["acc"] for r in results["runs"] if r["entry"] == name]
        for name in VARIANTS
    }
    differences = np.subtract(runs["no dia"], runs["moleflow"])
    said = row["image AUROC, routed"].split()
    assert said == [charts.signed(differences.mean()), "±", number(differences.std(ddof=1))]


def test_every_row_of_an_ablation_is_compared_with_the_whole_method():
    rows = {
        "full": ("moleflow", {}, 0.95, 0.0, True, True),
        "no DIA": ("moleflow", {"flow.dia": None}, 0.90, 0.0, True, True),
        "whole flow": ("task-separated", {"training.steps": 250}, 0.93, 0.0, True, True),
        "longer": ("task-separated", {}, 0.94, 0.0, True, True),
    }
    text = build(*make_results(rows, seeds=(0, 1, 2)))
    assert re.findall(r"Variants of [^<]*", text) == ["Variants of full title"]
    found = Parsed(text).rows("entry", "options", "image AUROC, routed")
    assert [row["options"] for row in found.values()] == [
        "the first",
        "flow.dia left out",
        "method task-separated, training.steps 250",
        "method task-separated",
    ]


def test_sensitivity_is_drawn_for_the_option_that_varies_alone():
    results, times = make_results(VARIANTS)
    text = build(results, times)
    chart = re.search(r'<svg[^>]*aria-label="image AUROC against flow.lora.rank".*?</svg>', text)[0]
    assert [x for x in ("4", "8", "16", "64") if f">{x}</text>" in chart] == ["4", "16", "64"]
    assert "against flow.dia" not in text
    assert "against the best of the others" not in text  # there is no other method


def test_order_of_entries_is_that_of_the_runs_and_not_of_sorted_json():
    results, times = make_results()
    results = json.loads(json.dumps(results, sort_keys=True))
    assert next(iter(results["plan"]["entries"])) == "bank"
    assert "moleflow title against the best of the others" in build(results, times)


def test_trials_of_a_search_show_the_best_so_far_and_the_agreement():
    criteria = [0.2, 0.5, 0.4, 0.7, 0.6]
    trials = [
        {"options": {"flow.hidden": 8 * i}, "criterion": c, "oracle": None if i == 4 else c / 2}
        for i, c in enumerate(criteria)
    ]
    text = journey(trials, 1.0)
    chart = re.search(r'<svg[^>]*aria-label="Criterion of every trial in order.*?</svg>', text)[0]
    best = [f"<title>best so far: {value:.3f}</title>" for value in np.maximum.accumulate(criteria)]
    assert re.findall(r"<title>best so far: [^<]*</title>", chart) == best
    assert "rank correlation 1.00 over 4 trials" in text
    row = Parsed(text).rows("trial", "options", "criterion", "test figure")["5"]
    assert (row["options"], row["criterion"], row["test figure"]) == ("flow.hidden 32", "0.6000", "–")


@pytest.mark.parametrize("dataset", PRODUCTS)
def test_published_figures_stand_beside_ours_for_exactly_their_products(dataset):
    products = sorted(PRODUCTS[dataset])
    results, times = make_results(streams={"s": [(p,) for p in products]}, seeds=(0,))
    parsed = Parsed(build(results, times))
    rows = parsed.rows("method", "protocol", "reference")
    assert set(rows) >= {f"{entry} title" for entry in FOUR}
    for record in PUBLISHED:
        if record.dataset == dataset:
            assert number(record.image_auroc / 100) == rows[record.method]["image AUROC"]
            assert rows[record.method]["reference"] == record.reference
    assert "published, other protocol" in parsed.text
    assert "Published FM is not one quantity" in parsed.text
    assert published_for(products[1:]) == ()


def test_every_order_has_figures_of_its_own_where_there_are_several():
    assert "Every order of its own" not in build(*make_results())
    streams = {"there": [(name,) for name in THREE], "back": [(name,) for name in reversed(THREE)]}
    results, times = make_results(streams=streams)
    parsed = Parsed(build(results, times))
    runs = [r for r in results["runs"] if (r["entry"], r["stream"]) == ("moleflow", "back")]
    found = spread([r["continual"]["routed"]["image_auroc"]["acc"] for r in runs])
    rows = parsed.rows("method", "there", "back")
    assert rows["moleflow title"]["back"].split() == [number(found["mean"]), "±", number(found["sd"])]


def test_no_published_figures_for_other_products(plain):
    assert (
        "No published figures for exactly these products are listed here: bolt, gear, plate." in plain[3].text
    )
    assert "published, other protocol" not in plain[3].text


def test_published_records_are_per_cent_and_name_their_source():
    assert dataset_of(["bottle"]) is None
    assert {len(products) for products in PRODUCTS.values()} == {15, 12, 6}
    assert len({(r.method, r.dataset) for r in PUBLISHED}) == len(PUBLISHED)
    for record in PUBLISHED:
        assert record.dataset in PRODUCTS
        assert record.reference
        values = (record.image_auroc, record.pixel_ap)
        assert all(value is None or 20 < value <= 100 for value in values)


def test_pictures_formulas_and_command_are_there(tmp_path):
    results, times = make_results()
    uri = mask_uri(np.eye(4, dtype=bool))
    cards = (Card("Missed.", "score 1.2", (Picture(uri, "image"), Picture(uri, "true defect")), "bad"),)
    path = tmp_path / "report.html"
    write_report(path, results, times, galleries=[Gallery("moleflow on gear", cards)])
    text = path.read_text(encoding="utf-8")
    parsed = Parsed(text)
    assert [p.name for p in tmp_path.iterdir()] == ["report.html"]
    assert text.count(uri) == 2
    for said in ("moleflow on gear", "moleflow bench <data>", "2.1.0", "Chaudhry", "0.05", "224 × 224"):
        assert said in parsed.text
    assert parsed.rows("method", "from", "chooses a product")["dne title"]["from"] == "Paper of dne, 2020"


def test_cost_is_per_product_also_where_a_task_has_several():
    results, times = make_results(streams={"s": [("a", "b", "c"), ("d",)]}, seeds=(0,))
    row = Parsed(build(results, times)).rows("bytes a product", "ms an image")["moleflow title"]
    assert row["bytes a product"] == "100 kB"  # two tasks added 200 kB each, over four products
    assert row["all at the end"] == "1.4 MB"
    assert row["seconds to learn a product"].split()[0] == "3.0"
    assert row["ms an image"] == "12.0"


def test_notes_stand_beside_the_paper_and_random_weights_are_marked():
    results, times = make_results()
    before = build(results, times)
    results["notes"] = {"bank": ["half the coreset"], "dne": ["random weights", "3 epochs"], "moleflow": []}
    text = build(results, times)
    rows = Parsed(text).rows("method", "from", "as run here")
    assert [rows[f"{e} title"]["as run here"] for e in FOUR] == [
        "",
        "half the coreset",
        "",
        "random weights; 3 epochs",
    ]
    assert [name for name in Parsed(text).rows("method", "isolated") if "†" in name] == ["dne title †"]
    assert "† A network" in text
    assert "†" not in before
    assert "as run here" not in before


def test_what_sets_single_flows_apart_is_said_where_there_are_any():
    results, times = make_results()
    assert "single flow" not in build(results, times)
    results["plan"]["entries"]["finetune"]["method"] = "fine-tuning"
    said = "single flow for all products (finetune title) learn, as the line does, from all good images"
    assert said in build(results, times)


# The page of a sweep

SPACE = {
    "flow.dia": [None, {"blocks": 2, "hidden": 64}],
    "flow.couplings": [2, 4, 6],
    "training.noise": {"low": 0.01, "high": 0.1, "log": True},
}


def make_found(count=24, *, oracle=True, failed=()):
    """What a sweep gives for made-up figures: the criterion follows the couplings, the oracle mostly too."""
    rng, trials = np.random.default_rng(3), []
    for i in range(count):
        couplings = SPACE["flow.couplings"][i % 3]
        options = {
            "flow.dia": SPACE["flow.dia"][i // 3 % 2],
            "flow.couplings": couplings,
            "training.noise": float(10 ** rng.uniform(-2, -1)),
        }
        criterion = None if i in failed else 0.7 + 0.03 * couplings + float(rng.uniform(-0.02, 0.02))
        test = 0.6 + 0.03 * couplings + float(rng.uniform(-0.04, 0.04))
        value = test if oracle and i not in failed else None
        own = {name: None if criterion is None else criterion for name in NAMES}
        trials.append(
            {
                "options": options,
                "criterion": criterion,
                "oracle": value,
                "figures": {"synthetic": own} | ({"oracle": dict.fromkeys(NAMES, value)} if oracle else {}),
                "seeds": [{"seed": 0, "criterion": criterion, "oracle": value}],
                "errors": ["seed 0, step 1: TrainingError: not finite"] if i in failed else [],
            }
        )
    as_is = {"flow.dia": SPACE["flow.dia"][1], "flow.couplings": 2, "training.noise": 0.3}
    flat = {"criterion": 0.5, "oracle": 0.4 if oracle else None}
    unchanged = {
        "options": as_is,
        **flat,
        "figures": {"synthetic": dict.fromkeys(NAMES, 0.5), "oracle": dict.fromkeys(NAMES, 0.4)},
        "seeds": [{"seed": 0, **flat}],
        "errors": [],
    }
    found = {
        "method": "moleflow",
        "products": list(THREE),
        "space": Space.from_dict(SPACE).to_dict(),
        "combinations": None,
        "sampler": "tpe",
        "criterion": "balanced",
        "metrics": ["image_auroc", "pixel_ap"],
        **{"learning_seeds": [0], "seed": 0, "share": 0.25, "base_options": {"training.steps": 50}},
        **{"backbone": "efficientnet_lite0", "weights": None, "image_size": [96, 128], "eval_size": None},
        "unchanged": unchanged,
        "trials": trials,
        **_judged(trials),
    }
    return json.loads(json.dumps(found))


def sweep_page(folder, found, command="moleflow sweep <data>"):
    write_sweep_report(folder / "sweep.html", found, command)
    return (folder / "sweep.html").read_text(encoding="utf-8")


def test_sweep_page_says_what_was_chosen_and_what_that_lost(tmp_path):
    found = make_found()
    text = sweep_page(tmp_path, found)
    parsed = Parsed(text)
    for said in (
        charts.signed(found["loss"]),
        number(found["best"]["oracle"]),
        number(found["rank_correlation"], 2),
        "the mean of image AUROC and pixel AP",
        "moleflow sweep <data>",
        "training.steps",
        "96 x 128",
        "every image's own size",
        "unchanged options: 0.400",
        "torch",
    ):
        assert said in parsed.text, said
    place = 1 + max(range(24), key=lambda i: found["trials"][i]["criterion"])
    ideal = 1 + max(range(24), key=lambda i: found["trials"][i]["oracle"])
    assert place != ideal
    chosen = f"chosen, best by criterion ({place})"
    tried = parsed.rows("option", "tried", "unchanged", chosen, f"best by test figure ({ideal})")
    assert tried["flow.dia"]["tried"] == "left out; blocks 2, hidden 64"
    assert tried["training.noise"]["tried"] == "0.01 to 0.1, by its logarithm"
    assert tried["flow.couplings"][chosen] == str(found["best"]["options"]["flow.couplings"])
    assert tried["training.noise"]["unchanged"] == "0.3"
    figures = parsed.rows("test figure", "image AUROC")
    assert figures["unchanged"]["test figure"] == "0.400"
    assert figures[f"best by test figure, trial {ideal}"]["test figure"] == number(
        found["best_by_oracle"]["oracle"]
    )
    assert f"<title>best by criterion: {found['best']['oracle']:.3f}</title>" in text
    assert len(parsed.rows("trial", "options", "criterion", "test figure")) == 24
    assert not re.search(r"https?:|//|@import|url\(|<script|<link", text)
    assert not re.search(r"\bnan\b|\binf\b|None", parsed.text)


def test_sweep_page_has_means_by_value_largest_effect_first(tmp_path):
    found = make_found()
    parsed = Parsed(sweep_page(tmp_path, found))
    effects = parsed.rows("option", "spread, criterion", "best value, test figure")
    assert next(iter(effects)) == "flow.couplings"
    assert effects["flow.couplings"]["best value, criterion"] == "6"
    (table,) = (t for t in parsed.tables if [c.strip() for c in t[0]][:3] == ["option", "value", "trials"])
    rows = [[cell.strip() for cell in row] for row in table[1:]]
    for value in (2, 4, 6):
        own = [t for t in found["trials"] if t["options"]["flow.couplings"] == value]
        (row,) = (r for r in rows if r[:2] == ["flow.couplings", str(value)])
        assert row[2] == "8"
        assert row[3].split()[0] == number(np.mean([t["criterion"] for t in own]))
        assert row[4].split()[0] == number(np.mean([t["oracle"] for t in own]))
    bins = [int(r[2]) for r in rows if r[0] == "training.noise"]
    assert bins == [6, 6, 6, 6]


def test_sweep_page_without_oracle_and_with_failures(tmp_path):
    parsed = Parsed(sweep_page(tmp_path, make_found(oracle=False, failed=(4, 5))))
    assert "2 of 24 trials failed" in parsed.text
    assert "trial 5" in parsed.text
    assert "The labelled test images were not looked at" in parsed.text
    assert "Lost by choosing without labels" not in parsed.text
    assert "None" not in parsed.text
    with pytest.raises(AssertionError):
        parsed.rows("spread, test figure")


def test_sweep_page_of_one_trial_and_escaped_names(tmp_path):
    bad = '<img src=x onerror="a">&'
    found = make_found(1)
    found["products"], found["trials"][0]["errors"] = [bad], [bad]
    text = sweep_page(tmp_path, found, bad)
    assert "<img src=x" not in text
    assert "chosen, best by both (1)" in Parsed(text).text
    assert "How much each option matters" not in text


# Charts


def test_points_lie_where_their_values_say():
    drawn = charts.plot("t", [Series("s", (Point(0, 1), Point(1, 3), Point(2, 2)))], Axis("x"), Axis("y"))
    places = [(float(x), float(y)) for x, y in re.findall(r'<circle cx="([\d.]+)" cy="([\d.]+)"', str(drawn))]
    (x0, y0), (x1, y1), (x2, y2) = places
    assert x1 - x0 == pytest.approx(x2 - x1, abs=0.2)
    assert y0 - y1 == pytest.approx(2 * (y0 - y2), abs=0.3)  # SVG counts downwards
    assert "</circle>" in drawn


def test_log_axis_gives_equal_room_to_equal_factors():
    points = tuple(Point(x, 0.5) for x in (10, 1000, 100000))
    drawn = charts.plot("t", [Series("s", points)], Axis("x", log=True), Axis("y"))
    first, second, third = (float(x) for x in re.findall(r'<circle cx="([\d.]+)"', str(drawn)))
    assert second - first == pytest.approx(third - second, abs=0.2)


def test_labels_of_near_points_do_not_cover_each_other():
    points = [
        Series(f"method {i}", (Point(1 + 0.01 * i, 0.9, None, f"method {i}"),), i, False) for i in range(6)
    ]
    far = Series("far", (Point(3, 0.2, None, "far"),), 6, False)
    drawn = charts.plot("t", [*points, far], Axis("x"), Axis("y"))
    found = re.findall(r'<text x="([\d.]+)" y="([\d.]+)" text-anchor="start"[^>]*>(method \d)<', str(drawn))
    boxes = [(float(x), float(y) - 11, float(x) + 0.5 * 11.5 * len(name), float(y)) for x, y, name in found]
    assert len(boxes) == 6
    assert not [1 for i, a in enumerate(boxes) for b in boxes[:i] if charts._meet(a, b)]


def test_nothing_to_draw_draws_nothing():
    assert charts.plot("t", [], Axis("x"), Axis("y")) == ""
    assert charts.bars("t", [], "y") == ""
    assert "nan" not in charts.plot("t", [Series("s", (Point(1, 0.0),))], Axis("x"), Axis("y"))
    assert "nan" not in charts.bars("t", [("a", 0.0)], "y")


def test_signs_are_written_out():
    assert [charts.signed(v) for v in (0.0123, -0.5, 0.0, -0.0001, None)] == [
        "+0.012",
        "−0.500",
        "±0.000",
        "±0.000",
        "–",
    ]
