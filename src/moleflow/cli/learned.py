"""What is said of a lesson: on the screen, and on the page that --report asks for."""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import ConfigError, MoleFlowError
from .options import refuse_target
from .products import light_in_words, read_line, record_of, verdict_in
from .screen import amount, as_text, as_threshold, complain, counted, say

if TYPE_CHECKING:
    from ..detector import Detector
    from ..intake import Intake
    from ..results import TaskInfo
    from ..store import TaskRecord
    from ..verdict.changes import Flip

NAMED = 8  # images in a note on changes
SHOWN_COPIES = 5  # groups of near-copies named on the screen; the report has all
FEW = 4  # independent photographs, below which the threshold is so high that a defect hardly reaches it
ENOUGH = 15  # independent photographs of a first lesson
NOTABLE_SHARE = 0.02  # of pixels beyond the line's intensity; a band itself leaves a few in a thousand aside
NOTABLE_SQUEEZE = 2.0  # of one side against the other


def say_groups(labels: Sequence[str], rule: str) -> None:
    """How many groups a rule makes of the images to learn from."""
    sizes = Counter(labels).values()
    if len(sizes) == 1:
        complain(f"note: --group {rule} puts all images in one group, which does not show how groups differ")
    else:
        complain(f"grouped by {rule}: {len(sizes)} groups of {min(sizes)} to {max(sizes)} images")


def refuse_report(report: Path | None, line: Path, images: Sequence[Path]) -> None:
    """Say before learning where the report cannot go."""
    refuse_target(report, "--report", line=line)
    if report is None:
        return
    if report.is_dir() or not report.absolute().parent.is_dir():
        raise ConfigError(f"--report {report}: expected a file in a folder that exists")
    if report.exists() and any(report.samefile(image) for image in images if image.exists()):
        raise ConfigError(f"--report {report}: this is one of the images")


def say_learned(detector: Detector, product: str, line: Path, *, images: Sequence[Path]) -> None:
    """What was learned, in short, and all that one should look at."""
    from ..verdict.promise import as_percent

    learned, intake = detector.info(product), detector.intake
    asked = learned.false_alarm_rate
    rate = "" if asked is None else f" for {as_percent(asked, 3)} false alarms"
    taught = counted(learned.images, "good image")
    say(f"{learned.name}: version {learned.version} on {line}, learned from {taught}")
    stages = ", ".join(f"{stage} {value:.1f}" for stage, value in learned.seconds.items())
    say(f"  {sum(learned.seconds.values()):.1f} s ({stages}), {amount(learned.bytes)}")
    say(
        f"  threshold {as_threshold(learned.threshold)}{rate}, "
        f"from {counted(learned.calibration_images, f'{learned.calibration} image')}"
    )
    say(f"  {light_in_words(intake.intensity)}")
    if learned.pose is not None:
        say(f"  pose: {learned.pose}")
    _say_lesson(learned)
    for sentence in learned.promise.sentences():
        say(f"  {sentence}")
    for unreadable in learned.unreadable:
        complain(f"note: left out: {unreadable}")
    if learned.calibration_images < FEW:
        photographs = counted(learned.calibration_images, "independent photograph")
        complain(f"note: with {photographs} hardly any defect is found; give {ENOUGH} or more")
    _say_rerouted(detector, learned, line)
    _say_beyond(intake, images)
    _say_squeezed(intake, images)


def _say_rerouted(detector: Detector, learned: TaskInfo, line: Path) -> None:
    """Which products take images of which, and for a new product how to undo it.

    What learns more of a product says last how to take it back, whatever happened.
    """
    from ..routing.gaussian import WITNESSES

    others = [name for name in detector.tasks if name != learned.name]
    takes_own = others[0] if len(others) == 1 else "another product"
    for name, count in learned.rerouted.items():
        kept = max(count, min(detector.info(name).images, WITNESSES))
        share = f"{count} of {counted(kept, 'good image')}"
        taker = takes_own if name == learned.name else learned.name
        if count > kept / 2:
            complain(f"warning: most images of {name} are now taken for {taker}: {share}")
        else:
            complain(f"note: now taken for {taker}: {share} of {name}")
    if learned.rerouted and learned.changes is None:
        complain(f"note: where this is not meant: {_command('remove', line, learned.name)}")


def _command(name: str, line: Path, *more: str) -> str:
    """A command of this program as a shell takes it."""
    return shlex.join(["moleflow", name, str(line), *more])


def _say_lesson(learned: TaskInfo) -> None:
    """How many images are independent, and every one that something speaks against or that comes again."""
    lesson = learned.lesson
    if lesson.independent < lesson.images:
        taught = counted(lesson.images, "image")
        say(f"  {taught}, {lesson.independent} independent: the others show the same again")
    if lesson.suspicious:
        fate = "left out" if lesson.dropped else "learned from; --drop-suspicious leaves such images out"
        count = len(lesson.suspicious)
        complain(f"note: {count} suspicious {'image was' if count == 1 else 'images were'} {fate}:")
    for suspect in lesson.suspects:
        if suspect.fault:
            complain(f"  {suspect.source}: {suspect.reason}")
    for suspect in [s for s in lesson.suspects if not s.fault][:SHOWN_COPIES]:
        complain(f"note: {suspect.source}: {suspect.reason}")


def _say_beyond(intake: Intake, images: Sequence[Path]) -> None:
    share = intake.beyond([(path, path) for path in images])
    if share > NOTABLE_SHARE:
        complain(
            f"note: {share:.1%} of these images' pixels lie beyond the line's intensity ({intake.intensity}) "
            f"and are black or white to it; a new line can be begun with another --intensity"
        )


def _say_squeezed(intake: Intake, images: Sequence[Path]) -> None:
    from ..data.shapes import squeezed_by
    from ..intake import sizes_of

    share = squeezed_by(sizes_of([(path, path) for path in images]), intake.size)
    if intake.fit == "squeeze" and share > NOTABLE_SQUEEZE:
        complain(
            f"note: the sides of these images are squeezed by {share:.1f} to each other, to "
            f"{as_text(intake.size)}; a new line of their own would have another size"
        )


def say_changes(learned: TaskInfo, line: Path, before: str | None) -> None:
    """The threshold before, what the update made good, and how to take it back."""
    then = None if before is None else _threshold_of(line, learned.name, before)
    if then is not None:
        say(f"  threshold {as_threshold(learned.threshold)}, before it was {as_threshold(then)}")
    _say_what_changed(learned, line, before)
    if before is not None:
        say(f"  to take it back: {_command('rollback', line, learned.name, before)}")


def _say_what_changed(learned: TaskInfo, line: Path, before: str | None) -> None:
    changes = learned.changes
    if changes is None:
        return
    if changes.swallowed:
        complain(
            f"note: {len(changes.swallowed)} of the {changes.taught} images were not good to version "
            f"{before} and are learned as good ones: {_named(changes.swallowed)}"
        )
        if len(changes.swallowed) > changes.taught / 2:
            complain("note: most of them: other light, pose or material, or defects? Look at them")
    if changes.flipped:
        complain(
            f"note: of {changes.checked} remembered images {len(changes.flipped)} have another verdict now: "
            f"{_named(changes.flipped)}"
        )
    if changes.swallowed or any(flip.after == "good" for flip in changes.flipped):
        complain(f"note: if there are defects among them: moleflow rollback {line} {learned.name} {before}")


def _threshold_of(line: Path, product: str, version: str) -> float | None:
    """That of an earlier version; None where it can no longer be read."""
    from ..store import LineStore

    try:
        return verdict_in(read_line(line), LineStore(line).read_task(product, version))[0]
    except MoleFlowError:
        return None


def _named(flips: Sequence[Flip]) -> str:
    """The first few images and what was said of them."""
    shown = [f"{flip.source} ({flip.before}, now {flip.after})" for flip in flips[:NAMED]]
    return ", ".join(shown) + (f" and {len(flips) - NAMED} more" if len(flips) > NAMED else "")


def write_report(report: Path | None, detector: Detector, product: str, *, line: Path) -> None:
    """The page on a product that was learned and saved, where one was asked for."""
    if report is None:
        return
    from ..learning.report import write_teaching_report

    learned, intake = detector.info(product), detector.intake
    scores = _good_scores(record_of(read_line(line), learned.name))
    write_teaching_report(
        report,
        product=learned.name,
        lesson=learned.lesson,
        shown=lambda source: intake.shown(Path(source), Path(source)),  # with the light that the line sees
        unreadable=learned.unreadable,
        scores=scores,
        threshold=learned.threshold,
    )
    say(f"  report: {report}")


def _good_scores(record: TaskRecord) -> list[float]:
    """What the photographs that calibrated score, in the unit of the threshold."""
    from ..verdict.calibration import calibration_from_dict

    return calibration_from_dict(record.info["calibration"]).scores_of_good()
