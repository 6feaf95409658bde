"""Which images belong together: a session, a lot, whatever tomorrow's images will differ by.

Images of one group resemble each other more than the next group will resemble them. Who calibrates on
them leaves out whole groups, so that what is promised holds for the next one.
"""

from __future__ import annotations

import itertools
import re
import statistics
import time
from bisect import bisect
from collections.abc import Mapping, Sequence
from pathlib import Path

from ..errors import ConfigError, ImageError

RULES = "auto, folder, time, column:NAME or name:REGEX"

LEAST_GAP = 600.0  # seconds without an image that end a session at least
GAP_FACTOR = 10.0  # and so many times the typical time between two images


def group_labels(
    paths: Sequence[Path], rule: str = "auto", *, columns: Sequence[Mapping[str, str]] | None = None
) -> list[str] | None:
    """A label for every image, equal for those that belong together.

    | rule | images belong together that |
    |---|---|
    | `auto` | (None is returned: whoever learns makes blocks by the order of the images) |
    | `folder` | lie in one folder; the label is its name, longer where two folders have one name |
    | `time` | were written in one session; a new one begins where nothing was written for more than ten
      minutes and more than ten times the median time between two images |
    | `column:NAME` | have one value in this column of the CSV list they came from |
    | `name:REGEX` | have one value in the first group of the expression, searched in the file's name |

    Args:
        paths: the images.
        rule: one of the above.
        columns: of each image, the other columns of its list (`Entry.columns`).

    Raises:
        ConfigError: no such rule, an unusable expression, or a column that no image has.
        ImageError: an image that the rule says nothing of.
    """
    kind, detail = parse_rule(rule)
    if kind == "folder":
        return _by_folder(paths)
    if kind == "time":
        return _by_time(paths)
    if kind == "column":
        return _by_column(paths, detail, columns or [{}] * len(paths))
    return _by_name(paths, re.compile(detail)) if kind == "name" else None


def parse_rule(rule: str) -> tuple[str, str]:
    """The kind of a rule and what stands after its colon; ConfigError where it is no rule."""
    kind, colon, detail = rule.partition(":")
    if kind not in ("column", "name"):
        if kind not in ("auto", "folder", "time") or colon:
            raise ConfigError(f"expected a grouping rule {RULES}, got {rule!r}")
    elif not detail:
        raise ConfigError(f"expected {kind}:{'NAME' if kind == 'column' else 'REGEX'}, got {rule!r}")
    elif kind == "name":
        _check_expression(detail)
    return kind, detail


def _check_expression(detail: str) -> None:
    try:
        groups = re.compile(detail).groups
    except (re.error, OverflowError, RecursionError) as error:
        raise ConfigError(f"expected name:REGEX, but {detail!r} is no regular expression: {error}") from error
    if not groups:
        raise ConfigError(f"expected a group in parentheses, as in name:^([^_]+)_, got name:{detail}")


def _by_folder(paths: Sequence[Path]) -> list[str]:
    folders = [path.absolute().parent for path in paths]
    apart = set(folders)
    depth = next(n for n in itertools.count(1) if len({f.parts[-n:] for f in apart}) == len(apart))
    return ["/".join(folder.parts[-depth:]) for folder in folders]


def _by_time(paths: Sequence[Path]) -> list[str]:
    written = [_time_of(path) for path in paths]
    starts = _session_starts([moment for moment in written if moment is not None])
    return [_session_of(moment, starts) for moment in written]


def _time_of(path: Path) -> float | None:
    try:
        return path.stat().st_mtime
    except (OSError, ValueError):
        return None  # reading it will fail by name


def _session_starts(moments: Sequence[float]) -> list[float]:
    ordered = sorted(moments)
    gaps = [later - earlier for earlier, later in itertools.pairwise(ordered)]
    longest = max(LEAST_GAP, GAP_FACTOR * statistics.median(gaps)) if gaps else LEAST_GAP
    return ordered[:1] + [moment for moment, gap in zip(ordered[1:], gaps, strict=True) if gap > longest]


def _session_of(moment: float | None, starts: Sequence[float]) -> str:
    if moment is None:
        return "unknown time"
    start = starts[bisect(starts, moment) - 1]
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(start))


def _by_column(paths: Sequence[Path], name: str, columns: Sequence[Mapping[str, str]]) -> list[str]:
    known = dict.fromkeys(key for row in columns for key in row)
    if name not in known:
        has = ", ".join(known) or "no columns: they come from no CSV list"
        raise ConfigError(f"expected a column {name!r} for the groups, the images have {has}")
    for path, row in zip(paths, columns, strict=True):
        if not row.get(name):
            raise ImageError(f"{path}: expected its group in column {name!r}, found nothing")
    return [row[name] for row in columns]


def _by_name(paths: Sequence[Path], expression: re.Pattern[str]) -> list[str]:
    labels = []
    for path in paths:
        found = expression.search(path.name)
        if found is None or not found[1]:
            raise ImageError(f"{path}: expected its group in its name, by {expression.pattern!r}")
        labels.append(found[1])
    return labels
