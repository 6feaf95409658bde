"""`moleflow benchmark`, `ablate` and `sweep`: methods compared on labelled data."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import ConfigError, DatasetError
from ..presets import DEFAULT
from .app import app, example
from .options import Preset, as_device, as_image_size
from .screen import complain, interruptible, new_screen, new_table, progress_on, say

if TYPE_CHECKING:
    from ..bench.plan import Unit, Variant, Work
    from ..bench.streams import Stream
    from ..data.layouts import Dataset, Product

GOES_ON = "the same command goes on where it stopped"

Data = Annotated[Path, typer.Argument(metavar="DATA", help="Folder of labelled images.")]
Layout = Annotated[str, typer.Option(help="How DATA lies on disk: auto, folder, mvtec-ad, visa, ...")]
Out = Annotated[Path, typer.Option(help="Folder for results and the report.")]
Cache = Annotated[
    Path | None,
    typer.Option(metavar="DIR", help="Folder for features; OUT/features by default."),
]
Order = Annotated[str | None, typer.Option(metavar="P,...", help="Products to learn, in this order.")]
Seeds = Annotated[str, typer.Option(metavar="N,...", help="Seeds, with commas between them.")]
Jobs = Annotated[
    int | None,
    typer.Option(min=1, help="Processes side by side; by default as many as cores, or 1 on a card."),
]
Backbone = Annotated[str, typer.Option(help="Backbone of the cached features.")]
BackboneWeights = Annotated[
    str | None, typer.Option("--weights", metavar="PATH", help='Local file with its weights, or "random".')
]
FeatureDevice = Annotated[
    str,
    typer.Option(
        "--device",
        callback=as_device,
        help="Where features are computed, methods learn and score: cpu, auto, cuda, mps.",
    ),
]
ImageSize = Annotated[str | None, typer.Option(metavar="N|HxW", help="Size images are brought to.")]
EvalSize = Annotated[
    str | None,
    typer.Option(metavar="N|HxW", help="Size at which maps meet masks; each image's own by default."),
]
Settings = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="An option, such as training.steps=200; may be repeated.",
    ),
]


@app.command(
    epilog=example(
        "moleflow benchmark datasets/mvtec --scenario B --out bench-b",
        "moleflow benchmark photos --methods moleflow,padim,memory-bank --seeds 0,1,2 --out bench",
        "moleflow benchmark photos --stream weeks.yaml --out bench-weeks",
        "moleflow benchmark datasets/visa --check",
        "moleflow benchmark --speed --out speed",
    )
)
def benchmark(
    data: Annotated[
        Path | None, typer.Argument(metavar="DATA", help="Folder of labelled images; none with --speed.")
    ] = None,
    layout: Layout = "auto",
    speed: Annotated[
        bool, typer.Option("--speed", help="Instead: what everything takes, with drawn images, in tables.")
    ] = False,
    check: Annotated[bool, typer.Option("--check", help="Only look whether DATA is in order.")] = False,
    scenario: Annotated[
        str | None, typer.Option(help="Orders: plain (the default), orders, A, B, C, D, visa, ...")
    ] = None,
    stream: Annotated[
        Path | None, typer.Option(metavar="FILE", help="A stream of tasks in YAML, instead of a scenario.")
    ] = None,
    order: Order = None,
    orders: Annotated[int, typer.Option(min=1, help="How many orders: of the scenario 'orders'.")] = 5,
    drift: Annotated[
        str | None,
        typer.Option(
            metavar="PRODUCT", help="Instead: this product under growing drift of colour, blur, pose."
        ),
    ] = None,
    methods: Annotated[
        str, typer.Option(metavar="M,...", help="Methods to compare, or all, with-cells, with-image.")
    ] = "all",
    seeds: Seeds = "0,1,2",
    out: Out = Path("moleflow-benchmark"),
    cache: Cache = None,
    jobs: Jobs = None,
    backbone: Backbone = "efficientnet_lite0",
    weights: BackboneWeights = None,
    device: FeatureDevice = "cpu",
    image_size: ImageSize = None,
    eval_size: EvalSize = None,
    preset: Preset = DEFAULT,
    settings: Settings = None,
) -> None:
    """Compare methods on DATA: every product is learned in turn, everything learned so far is tested.

    Writes report.html, results.json, results.csv and timings.json to OUT. A run that was stopped goes on
    where it was when the same command is given again. With --speed it writes speed.md and speed.json; --set
    says which tables, sizes, batches, rounds, lessons, products and wide backbones, and --device cuda has the
    wide ones on a card as well.
    """
    if speed:
        if data is not None:
            raise ConfigError(f"--speed is measured with drawn images: expected no folder, got {data}")
        _speed(out, device, settings or [])
        return
    if data is None:
        raise ConfigError("expected DATA, a folder of labelled images, got none")
    with interruptible(GOES_ON):
        dataset = _read(data, layout, () if check else (out, cache))
        if check:
            _check(dataset)
            return
        from ..bench.plan import Plan, Work

        asked = {
            "--drift": drift,
            "--stream": stream,
            "--scenario": scenario,
        }
        chosen = [option for option, value in asked.items() if value is not None]
        if len(chosen) > 1:
            raise ConfigError(f"expected one of {', '.join(asked)}, got {' and '.join(chosen)}")
        if order is not None and (drift is not None or stream is not None):
            raise ConfigError(f"--order: {chosen[0]} says already what is learned in which order")
        if drift is not None:
            streams, products = _drifts(dataset, drift)
        else:
            streams, products = _streams(dataset, scenario or "plain", stream, order, orders)
        plan = Plan(
            entries=_entries(methods),
            streams=tuple(streams),
            seeds=_numbers(seeds),
            backbone=backbone,
            weights=weights,
            image_size=_size(image_size, "--image-size"),
            eval_size=_size(eval_size, "--eval-size"),
            preset=preset,
            options=_settings(settings or []),
        )
        _run(Work(plan, products, out, cache or out / "features"), jobs, device)


@app.command(
    epilog=example(
        "moleflow ablate photos --out ablation", "moleflow ablate photos --flow-alone --out ablation-flow"
    )
)
def ablate(
    data: Data,
    layout: Layout = "auto",
    order: Order = None,
    flow_alone: Annotated[
        bool, typer.Option("--flow-alone", help="The density alone: no coreset, no whole pictures.")
    ] = False,
    only: Annotated[
        str | None, typer.Option(metavar="A,...", help="Only these rows, beside the full method.")
    ] = None,
    seeds: Seeds = "0,1,2",
    out: Out = Path("moleflow-ablation"),
    cache: Cache = None,
    jobs: Jobs = None,
    backbone: Backbone = "efficientnet_lite0",
    weights: BackboneWeights = None,
    device: FeatureDevice = "cpu",
    image_size: ImageSize = None,
    eval_size: EvalSize = None,
    preset: Preset = DEFAULT,
    settings: Settings = None,
) -> None:
    """Leave out each part of the method in turn, and say what that changes on DATA.

    A product is learned for as many steps in every row, from the same seeds. Results and resuming as with
    `benchmark`.
    """
    with interruptible(GOES_ON):
        from ..bench.ablation import ABLATIONS, FLOW_ALONE, FULL, rows_for
        from ..bench.plan import Plan, Work
        from ..bench.streams import at_once
        from ..config import override
        from ..features.backbones import channels_of
        from ..presets import get_preset

        dataset = _read(data, layout, (out, cache))
        _, products = _streams(dataset, "plain", None, order, 1)
        table = FLOW_ALONE if flow_alone else ABLATIONS
        set_options = _settings(settings or [])
        whole = override(get_preset(preset).at(channels_of(backbone)), set_options)
        table = rows_for(table, whole)
        rows = table if only is None else (FULL, *_among(only, table, "row"))
        plan = Plan(
            entries={name: table[name] for name in rows},
            streams=(at_once("ablation", products),),
            seeds=_numbers(seeds),
            backbone=backbone,
            weights=weights,
            image_size=_size(image_size, "--image-size"),
            eval_size=_size(eval_size, "--eval-size"),
            preset=preset,
            options=set_options,
        )
        _run(Work(plan, products, out, cache or out / "features"), jobs, device)


@app.command(
    epilog=example(
        "moleflow sweep photos --trials 40 --eval-size 256 --out sweep",
        "moleflow sweep photos --space options.yaml --sampler tpe --no-oracle --out sweep",
    )
)
def sweep(
    data: Data,
    layout: Layout = "auto",
    order: Order = None,
    space: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Options to try, in YAML; a set for each method by default."),
    ] = None,
    trials: Annotated[int, typer.Option(min=1, help="Combinations to try.")] = 32,
    sampler: Annotated[str, typer.Option(help="How they are chosen: grid, or tpe of Optuna.")] = "grid",
    criterion: Annotated[
        str, typer.Option(help="What the best is best at: balanced, or max_image_auroc.")
    ] = "balanced",
    method: Annotated[str, typer.Option(help="Whose options: moleflow, or a rival.")] = "moleflow",
    oracle: Annotated[
        bool, typer.Option("--oracle/--no-oracle", help="Measure the labelled test images beside it.")
    ] = True,
    seeds: Seeds = "0",
    out: Out = Path("moleflow-sweep"),
    cache: Cache = None,
    jobs: Jobs = None,
    backbone: Backbone = "efficientnet_lite0",
    weights: BackboneWeights = None,
    device: FeatureDevice = "cpu",
    image_size: ImageSize = None,
    eval_size: EvalSize = None,
    preset: Preset = DEFAULT,
    settings: Settings = None,
) -> None:
    """Search the method's options, chosen without labels: by synthetic defects in held-out good images.

    The labelled test images choose nothing. With --oracle they are measured beside it, so that the report
    can say what choosing without labels cost. Writes sweep.json and sweep.html; resumes like `benchmark`.
    """
    with interruptible(GOES_ON):
        from ..bench.files import alone
        from ..bench.report import write_sweep_report
        from ..bench.sweep import default_space, read_space
        from ..bench.sweep import sweep as search

        dataset = _read(data, layout, (out, cache))
        _, products = _streams(dataset, "plain", None, order, 1, tested=oracle)
        tried = default_space(method) if space is None else read_space(space)
        with alone(out), _bars("sweep") as (told, show):
            found = search(
                tried,
                list(products.values()),
                out,
                cache or out / "features",
                trials=trials,
                seeds=_numbers(seeds),
                sampler=sampler,  # type: ignore[arg-type]
                criterion=criterion,
                method=method,
                oracle=oracle,
                jobs=_processes(jobs, device),
                preset=preset,
                options=_settings(settings or []),
                backbone=backbone,
                weights=weights,
                image_size=_size(image_size, "--image-size"),
                eval_size=_size(eval_size, "--eval-size"),
                device=device,
                told=told,
                done=lambda done, total: show(done, total, "runs"),
            )
        write_sweep_report(out / "sweep.html", found, _command())
    _print_sweep(found)
    say(f"The report: {out / 'sweep.html'}")


def _speed(out: Path, device: str, settings: Sequence[str]) -> None:
    with interruptible(GOES_ON):
        from ..bench.speed import measure_speed, speed_options

        values = _settings(settings)
        asked = {name: int(v) if isinstance(v, float) and v.is_integer() else v for name, v in values.items()}
        options = speed_options(asked | {"device": device})
        screen = new_screen(to_stderr=True)
        with screen.status("what everything takes") as status:
            tables = len(options.tables)

            def told(name: str) -> None:
                about = f"{name}: table {options.tables.index(name) + 1} of {tables}"
                status.update(about) if screen.is_terminal else complain(about)

            path = measure_speed(options, out, command=_command(), told=told)
    for line in path.read_text(encoding="utf-8").splitlines():
        say(line)
    say(f"The tables: {path}")


def _print_sweep(found: dict[str, Any]) -> None:
    table = new_table("", "by synthetic defects", "on the labelled test images", "options", numbers=2)
    for what, name in (
        ("unchanged", "unchanged"),
        ("chosen", "best"),
        ("best with labels", "best_by_oracle"),
    ):
        trial = found[name]
        if trial is not None:
            options = ", ".join(f"{key}={value}" for key, value in trial["options"].items())
            table.add_row(what, _number(trial["criterion"]), _number(trial["oracle"]), options)
    new_screen().print(table)
    say(
        f"{len(found['trials'])} trials; lost by choosing without labels {_number(found['loss'])}, "
        f"rank correlation {_number(found['rank_correlation'])}"
    )


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


def _run(work: Work, jobs: int | None, device: str) -> None:
    from ..bench.benchmark import REPORT
    from ..bench.benchmark import benchmark as run

    total, finished = sum(1 for _ in work.plan.units()), count(1)
    with _bars("benchmark") as (told, show):
        found = run(
            work,
            command=_command(),
            jobs=_processes(jobs, device),
            device=device,
            told=told,
            done=lambda unit: show(next(finished), total, _about(work, unit)),
        )
    _print_summary(found)
    say(f"The report: {work.out / REPORT}")


def _processes(jobs: int | None, device: str) -> int:
    """What was asked for; else one for each core, but a single one where they would share a card."""
    from ..features.extractor import resolve_device

    return jobs or (os.cpu_count() if resolve_device(device).type == "cpu" else 1) or 1


def _command() -> str:
    return shlex.join(["moleflow", *sys.argv[1:]])


def _streams(
    dataset: Dataset,
    scenario: str,
    stream: Path | None,
    order: str | None,
    orders: int,
    *,
    tested: bool = True,
) -> tuple[Sequence[Stream], dict[str, Product]]:
    from ..bench.benchmark import used
    from ..bench.streams import streams_for, streams_from_yaml

    if stream is not None:
        streams = streams_from_yaml(stream, dataset)
    else:
        chosen = None if order is None else _words(order)
        streams = streams_for(dataset, scenario, order=chosen, seeds=range(orders))
    return streams, used(dataset, streams, tested=tested)


def _drifts(dataset: Dataset, product: str) -> tuple[Sequence[Stream], dict[str, Product]]:
    from ..bench.benchmark import drift_streams, used
    from ..bench.drift import DRIFTS
    from ..bench.streams import streams_for

    undrifted = used(dataset, streams_for(dataset, "plain", order=[product]))[product]
    return drift_streams(undrifted, tuple(DRIFTS))


def _entries(text: str) -> dict[str, Variant]:
    from ..bench.ablation import chosen

    return chosen(_words(text))


def _among(text: str, known: Any, what: str) -> tuple[str, ...]:
    names = _words(text)
    for name in names:
        if name not in known:
            raise ConfigError(f"unknown {what} {name!r}; known are {', '.join(known)}")
    return names


def _words(text: str) -> tuple[str, ...]:
    return tuple(dict.fromkeys(word.strip() for word in text.split(",") if word.strip()))


def _numbers(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(word) for word in _words(text))
    except ValueError:
        raise ConfigError(f"expected seeds such as 0,1,2, got {text!r}") from None


def _size(text: str | None, option: str) -> tuple[int, int] | None:
    return None if text is None else as_image_size(text, option)


def _settings(pairs: Sequence[str]) -> dict[str, Any]:
    """KEY=VALUE, the values in YAML: 200, 0.5, true, null, [224, 224], random."""
    import yaml

    from ..bench.files import number_or_same

    table = {}
    for pair in pairs:
        key, sign, value = pair.partition("=")
        if not sign or not key.strip():
            raise ConfigError(f"expected KEY=VALUE such as training.steps=200, got {pair!r}")
        try:
            table[key.strip()] = number_or_same(yaml.safe_load(value))
        except yaml.YAMLError as error:
            raise ConfigError(f"{pair!r}: expected a number, a word, true, false, null or a list") from error
    return table


def _read(data: Path, layout: str, written: Sequence[Path | None]) -> Dataset:
    """The labelled images; ConfigError where a folder that is written lies among them and would be read."""
    from ..data.layouts import read_dataset

    dataset = read_dataset(data, layout=layout)
    for folder in written:
        if folder is not None and folder.resolve().is_relative_to(data.resolve()):
            raise ConfigError(
                f"{folder}: expected a folder outside of {data}, whose folders are read as products"
            )
    return dataset


def _check(dataset: Dataset) -> None:
    from ..data.layouts import check_dataset

    table = new_table("product", "train", "good", "defective", "masks", numbers=3)
    for product in dataset.products.values():
        bad = sum(item.label for item in product.test)
        counts = len(product.train), len(product.test) - bad, bad
        table.add_row(product.name, *map(str, counts), "yes" if product.has_masks else "no")
    say(f"{dataset.root}: {dataset.layout}, {dataset.licence}")
    new_screen().print(table)
    problems = check_dataset(dataset)
    for problem in problems:
        say(str(problem))
    if problems:
        raise DatasetError(f"{dataset.root}: {len(problems)} problems")
    say("nothing wrong was found")


@contextmanager
def _bars(what: str) -> Iterator[tuple[Callable[[str, int, int], None], Callable[[int, int, str], None]]]:
    """Two functions: one is told of features, one of how much is done in all; lines where nobody watches."""
    screen = new_screen(to_stderr=True)
    if not screen.is_terminal:
        begun: set[str] = set()

        def say_features(of: str, done: int, total: int) -> None:
            if of not in begun:
                begun.add(of)
                complain(f"features of {of}: {total} images ...")

        yield say_features, lambda done, total, about: complain(f"{done} of {total}: {about}")
        return
    with progress_on(screen) as progress:
        features = progress.add_task("features", total=None, visible=False)
        whole = progress.add_task(what, total=None)

        def show_features(of: str, done: int, total: int) -> None:
            text = f"features of {of}"
            progress.update(features, description=text, completed=done, total=total, visible=done < total)

        def show(done: int, total: int, about: str) -> None:
            progress.update(whole, completed=done, total=total, description=about)

        yield show_features, show


def _about(work: Work, unit: Unit) -> str:
    stream = work.plan.streams[unit.stream]
    return f"{unit.entry}, {stream.name}, seed {unit.seed}, {' + '.join(stream.tasks[unit.step].products)}"


def _print_summary(found: dict[str, Any]) -> None:
    table = new_table(
        "method",
        "image AUROC",
        "pixel AP",
        "AUPRO",
        "FM",
        "routed right",
        "isolated",
        "kB a task",
        numbers=7,
    )
    for entry, summary in found["summary"].items():
        routed = summary["continual"]["routed"]
        right = summary["shares"]["routing_good"]["mean"], summary["shares"]["routing_defective"]["mean"]
        size = summary["bytes_per_task"]["mean"]
        table.add_row(
            found["titles"][entry],
            _pm(routed["image_auroc"]["acc"]),
            _pm(routed["pixel_ap"]["acc"]),
            _pm(routed["aupro_30"]["acc"]),
            _pm(routed["image_auroc"]["fm"]),
            "–" if None in right else f"{right[0]:.3f} / {right[1]:.3f}",
            "yes" if summary["isolated"] else "no",
            "–" if size is None else f"{size / 1e3:.0f}",
        )
    new_screen().print(table)
    say(
        "Mean over products and streams ± standard deviation over seeds; the product found by the method "
        "where it can. FM: forgetting of image AUROC. Isolated: what was learned first says the very same "
        "to the end."
    )


def _pm(spread: dict[str, Any]) -> str:
    if spread["mean"] is None:
        return "–"
    return f"{spread['mean']:.3f}" + ("" if spread["sd"] is None else f" ± {spread['sd']:.3f}")
