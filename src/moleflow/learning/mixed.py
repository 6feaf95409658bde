"""Several products in one lesson: found in images that nobody has sorted, then learned one after the other.

A task of several products is split because one density cannot serve several of them; what the bench does with
an unnamed task (`bench/unit.py`) is done here with a user's images, by the same `find_products`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch

from ..config import LineConfig
from ..data.sources import Source, name_of
from ..errors import MoleFlowError, TaskError
from ..intake import check_readable, pictures_in
from ..line.record import Line
from ..results import Failure
from ..routing.clusters import LEAST_IMAGES, find_products
from ..routing.gaussian import describe
from ..store import check_new_name
from ..store.names import folded_name
from .lesson import EXTRACT_BATCH, LessonOptions, Progress, Sources, learn
from .sight import Sight, in_32_bits

Told = Callable[[Mapping[str, Sequence[Source]]], None]
"""Told which images become which product, before any is learned."""

SHOWN = 3  # images that an error names of a product


@dataclass(frozen=True)
class Found:
    """Products in a set of images.

    Attributes:
        parts: positions of each product's images, ordered by the first of them.
        unreadable: images that were left out because they could not be read, each with the reason.
    """

    parts: tuple[tuple[int, ...], ...]
    unreadable: tuple[str, ...]


def learn_mixed(
    line: Line,
    sources: Sources,
    names: Sequence[str] | None,
    *,
    taken: Collection[str],
    sight: Sight,
    config: LineConfig,
    seed: int,
    options: LessonOptions,
    found: Told | None,
    progress: Progress,
) -> tuple[Line, tuple[str, ...]]:
    """The line with every product that the images show, and their names; `line` itself does not change.

    Args:
        line, sources, sight, config, seed, options: as for `learn`.
        names: of the products, ordered by their first images, as `check_names` returns them; None: numbered.
        taken: names that none of them may have: the line's products, and those that it left out as damaged.
        found: told which images become which product; what it raises is raised.
        progress: told "finding", then the stages of `learn` with the product's name before them.

    Raises:
        TaskError: there are not as many products as names, or one of them is taken.
        ImageError, TrainingError: from `learn`, the product's name before the reason.
    """
    told = _find(line, sources, sight, options=options, tell=partial(progress, "finding"))
    chosen = _named(told.parts, sources, names, taken=taken)
    if found is not None:
        found({name: [sources[i][0] for i in part] for name, part in chosen.items()})
    for name, part in chosen.items():
        groups = None if options.groups is None else [options.groups[i] for i in part]
        try:
            line = learn(
                line,
                name,
                [sources[i] for i in part],
                sight=sight,
                config=config,
                seed=seed,
                options=replace(options, groups=groups),
                progress=partial(_of_product, progress, name),
            )
        except MoleFlowError as error:
            raise type(error)(f"{name}: {error}") from error
    if told.unreadable:  # they are of no product that anybody knows, and must be listed somewhere
        first = next(iter(chosen))
        line = replace(
            line, unreadable=line.unreadable | {first: (*told.unreadable, *line.unreadable[first])}
        )
    return line, tuple(chosen)


def check_names(names: Sequence[str]) -> tuple[str, ...]:
    """Names that each become a folder of their own; TaskError for one that cannot, or that comes twice."""
    if isinstance(names, str):
        raise TaskError(f"expected a list of names, one for each product, got the text {names!r}")
    checked = tuple(map(check_new_name, names))
    folded = [folded_name(name) for name in checked]
    if twice := [name for name, own in zip(checked, folded, strict=True) if folded.count(own) > 1]:
        raise TaskError(f"expected names that differ in more than case, got {', '.join(twice)}")
    return checked


def _of_product(progress: Progress, name: str, stage: str, share: float) -> None:
    progress(f"{name}: {stage}", share)


def _find(
    line: Line,
    sources: Sources,
    sight: Sight,
    *,
    options: LessonOptions,
    tell: Callable[[float], None],
) -> Found:
    """Parts the images by what the router sees of them, beside what it remembers of the line's products.

    By one and the same rule, two products of the images are apart and an image is of a product that the line
    knows: such a part is an error, because a known product is taught more by an update.
    """
    descriptors, positions, failures, done = [], [], [], 0
    for batch in line.intake.batches(sources, EXTRACT_BATCH, errors=options.errors):
        if pictures := pictures_in(batch):
            descriptors.append(describe(in_32_bits(sight.see(pictures)).patches))
        positions += [done + i for i, one in enumerate(batch) if not isinstance(one, Failure)]
        failures += [one for one in batch if isinstance(one, Failure)]
        done += len(batch)
        tell(done / len(sources))
    check_readable(failures, len(sources))
    count = len(positions)
    # One that was taught from next to nothing would itself be a stray, and go to whatever is nearest.
    known = {
        name: statistics.witnesses
        for name, statistics in line.products.statistics().items()
        if len(statistics.witnesses) >= LEAST_IMAGES
    }
    owners = [name for name, witnesses in known.items() for _ in witnesses]
    parts = []
    for rows in find_products(torch.cat([*descriptors, *known.values()])):
        own = [positions[row] for row in rows if row < count]
        if own and (others := dict.fromkeys(owners[row - count] for row in rows if row >= count)):
            raise TaskError(f"{_shown(own, sources)}: {_refusal(len(own), ', '.join(others))}")
        if own:
            parts.append(tuple(own))
    return Found(tuple(parts), tuple(failure.error for failure in failures))


def _refusal(count: int, others: str) -> str:
    """Why so many images, which lie with what the line knows of other products, are not learned."""
    if count < LEAST_IMAGES:  # whatever these are, they go to what is nearest
        return (
            f"nearest to {others}, which this line knows, and too few to be found as a product of their own, "
            f"which takes {LEAST_IMAGES}; predict says whether they are of it: if not, take them out, or "
            "teach them with add_task (moleflow add)"
        )
    return (
        f"not to be told from {others}, which this line knows; update_task (moleflow update) teaches that "
        "more, and add_task (moleflow add) a product of a name of its own"
    )


def _named(
    parts: Sequence[tuple[int, ...]],
    sources: Sources,
    names: Sequence[str] | None,
    *,
    taken: Collection[str],
) -> dict[str, tuple[int, ...]]:
    """The parts by name; TaskError where there are not as many names, or the line has one of them."""
    if names is None:
        names = _numbered(len(parts), taken)
    if len(names) != len(parts):
        found = "; ".join(_shown(part, sources) for part in parts)
        raise TaskError(
            f"expected {len(names)} products ({', '.join(names)}), found {len(parts)} in the images: {found}"
        )
    folded = {folded_name(name) for name in taken}
    if known := [name for name in names if folded_name(name) in folded]:
        raise TaskError(f"{', '.join(known)}: on this line already; update_task teaches a product more")
    return dict(zip(names, parts, strict=True))


def _numbered(count: int, taken: Collection[str]) -> list[str]:
    """product-1, product-2 and so on, but for names that are taken."""
    folded = {folded_name(name) for name in taken}
    numbers = (f"product-{number}" for number in range(1, count + len(folded) + 1))
    return [name for name in numbers if name not in folded][:count]


def _shown(part: Sequence[int], sources: Sources) -> str:
    """How many images, and the first of them."""
    first = ", ".join(name_of(sources[i][0]) for i in part[:SHOWN])
    more = ", ..." if len(part) > SHOWN else ""
    return f"{len(part)} image{'' if len(part) == 1 else 's'} ({first}{more})"
