"""line.json and task.json: what a line says of itself, checked when it is read."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from importlib import metadata
from pathlib import Path
from typing import Any

from moleflow.errors import LineError, TaskError

from .files import BASE, EXPERT, INFO, TASKS, UNLISTED, VERSION, listing_of, read_bytes
from .names import check_task_name, folded_name, some_of
from .tensors import check_sha256, sha256_of

FORMAT = 2  # 2: verdicts of two voices, intake, lessons; 1 is read as well
"""Number of the folder layout below; a line with a larger one was written by a later library."""

OWN_HASH = "sha256"
"""Key of an index: a hash of all else that it says. Older ones have none."""


@dataclass(frozen=True)
class Entry:
    """A product as line.json lists it; overrides are kept per version, so that a rollback finds its own."""

    name: str
    version: str
    sha256: str
    info_sha256: str
    overrides: dict[str, dict[str, Any]]


@dataclass(frozen=True)
class Index:
    """The content of line.json.

    `removed` has the last version of every product that was taken off the line: a later one of that name is
    numbered on, so that a version never means two things.
    """

    settings: dict[str, Any]
    base_sha256: str
    fingerprint: str
    base_info: dict[str, Any]
    entries: dict[str, Entry]
    removed: dict[str, str] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """As it stands in line.json."""
        base = {"file": BASE, "sha256": self.base_sha256, "fingerprint": self.fingerprint}
        said = {
            "format": FORMAT,
            "library": library_version(),
            "settings": self.settings,
            "base": {**base, "info": self.base_info},
            "tasks": [asdict(entry) for entry in self.entries.values()],
            **({"removed": self.removed} if self.removed else {}),
        }
        return {**said, OWN_HASH: hash_of(said)}


def hash_of(index: Mapping[str, Any]) -> str:
    """SHA-256 of what an index says, but for this hash itself; the same however its text is laid out."""
    said = {name: value for name, value in index.items() if name != OWN_HASH}
    read_back = json.loads(json.dumps(said))  # whose keys are text: numbers are sorted otherwise
    return sha256_of(json.dumps(read_back, sort_keys=True).encode())


def require_own_hash(index: Mapping[str, Any], path: Path, way_out: str) -> None:
    """LineError, with the path and a way out, for an index that says something else than was written."""
    found = hash_of(index)
    expected = index.get(OWN_HASH, found)
    if found != expected:
        raise LineError(
            f"{path}: damaged or changed: expected content of SHA-256 {expected!s:.16}, found {found[:16]}; "
            f"{way_out}"
        )


def find_entry(index: Index, name: str, path: Path) -> Entry:
    """A product of the line; TaskError, with those there are, where there is none of this name."""
    if name not in index.entries:
        known = ", ".join(index.entries) or "none"
        raise TaskError(f"{path}: no product {name!r} on this line (products: {known})")
    return index.entries[name]


def entry_at(path: Path, index: Index, entry: Entry, version: str) -> Entry:
    """Return the entry for another version on disk, whole and learned on this base."""
    product = path / TASKS / entry.name
    available = usable_versions(path, entry)
    if version not in available:
        raise LineError(f"{product}: no version {version!r} (versions: {', '.join(available) or 'none'})")
    document = load_info(path, product / version, index.fingerprint)
    text = read_bytes(path, product / version / INFO)
    check_sha256(product / version / EXPERT, read_bytes(path, product / version / EXPERT), document["sha256"])
    return replace(entry, version=version, sha256=document["sha256"], info_sha256=sha256_of(text))


def with_overrides(entry: Entry, version: str, values: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """An entry's overrides with those of one version replaced."""
    others = {key: value for key, value in entry.overrides.items() if key != version}
    return {**others, version: values} if values else others


def versions_in(product: Path) -> list[str]:
    """Versions of a product on disk, the oldest first."""
    return sorted((path.name for path in listing_of(product) if VERSION.fullmatch(path.name)), key=int)


def usable_versions(path: Path, entry: Entry) -> list[str]:
    """List the versions that are in use or once were; a killed writer may have left one that never was."""
    product = path / TASKS / entry.name
    return [
        version
        for version in versions_in(product)
        if (product / version / INFO).is_file()
        and (version == entry.version or not (product / version / UNLISTED).exists())
    ]


def load_info(root: Path, folder: Path, base: str, *, sha256: str | None = None) -> dict[str, Any]:
    """Read task.json and refuse an expert of another base."""
    path = folder / INFO
    text = read_bytes(root, path)
    if sha256 is not None:
        check_sha256(path, text, sha256)
    document = parse_json(text, path)
    _check_format(document, path)
    for key, kind in (("name", str), ("base", str), ("sha256", str), ("info", dict)):
        _get(document, key, kind, path)
    if document["base"] != base:
        raise LineError(foreign_base(str(folder), base, document["base"]))
    return document


def foreign_base(what: str, expected: str, found: str) -> str:
    """Says that an expert belongs to another base."""
    return f"{what} was learned on another base: expected fingerprint {expected[:16]}, found {found[:16]}"


def parse_index(document: dict[str, Any], path: Path) -> Index:
    """line.json, checked; LineError, with the path."""
    _check_format(document, path)
    require_own_hash(document, path, f"without its key {OWN_HASH!r} it is taken as it stands")
    base = _get(document, "base", dict, path)
    if _get(base, "file", str, path) != BASE:
        raise LineError(f"{path}: expected the base in {BASE}, found {base['file']!r}")
    entries: dict[str, Entry] = {}
    folded = set()
    for item in _get(document, "tasks", list, path):
        entry = _parse_entry(item, path)
        if folded_name(entry.name) in folded:
            raise LineError(f"{path}: expected each product once, found {entry.name!r} twice")
        folded.add(folded_name(entry.name))
        entries[entry.name] = entry
    return Index(
        settings=_get(document, "settings", dict, path),
        base_sha256=_get(base, "sha256", str, path),
        fingerprint=_get(base, "fingerprint", str, path),
        base_info=_get(base, "info", dict, path),
        entries=entries,
        removed=_parse_removed(document, path),
    )


def _parse_removed(document: dict[str, Any], path: Path) -> dict[str, str]:
    removed: dict[str, str] = _get({"removed": {}, **document}, "removed", dict, path)
    for name, version in removed.items():
        if not isinstance(version, str) or not VERSION.fullmatch(version):
            raise LineError(f"{path}: expected a version like '0001' for {name!r}, found {version!r}")
    return removed


def _parse_entry(item: Any, path: Path) -> Entry:
    if not isinstance(item, dict):
        raise LineError(f"{path}: expected a product to be an object, found {item!r:.60}")
    name = _get(item, "name", str, path)
    try:
        safe = check_task_name(name) == name
    except TaskError:
        safe = False
    if not safe:
        raise LineError(f"{path}: expected names of products, found the unsafe name {name!r}")
    version = _get(item, "version", str, path)
    if not VERSION.fullmatch(version):
        raise LineError(f"{path}: expected a version like '0001' for {name!r}, found {version!r}")
    overrides = _get(item, "overrides", dict, path)
    for key in overrides:
        _get(overrides, key, dict, path)
    hashes = _get(item, "sha256", str, path), _get(item, "info_sha256", str, path)
    return Entry(name, version, *hashes, overrides)


def _check_format(document: dict[str, Any], path: Path) -> None:
    found = _get(document, "format", int, path)
    if found > FORMAT:
        writer = document.get("library", "a later version")
        raise LineError(
            f"{path}: expected format {FORMAT} or earlier, found format {found}: reading it needs moleflow "
            f"{writer} or later, this is moleflow {library_version()}"
        )
    if found < 1:
        raise LineError(f"{path}: expected a format of 1 or more, found {found}")


def _get(document: dict[str, Any], key: str, kind: type, path: Path) -> Any:
    if key not in document:
        raise LineError(f"{path}: expected the key {key!r}, found {some_of(document)}")
    value = document[key]
    if not isinstance(value, kind) or isinstance(value, bool):
        raise LineError(f"{path}: expected {key!r} to be {kind.__name__}, found {type(value).__name__}")
    return value


def parse_json(data: bytes, path: Path) -> dict[str, Any]:
    """A JSON object; LineError, with the path."""

    def refuse(constant: str) -> None:
        raise ValueError(f"{constant} is not a JSON number")

    try:
        document = json.loads(data.decode(), parse_constant=refuse)
    except (ValueError, RecursionError) as error:
        raise LineError(f"{path}: expected JSON, found {len(data)} bytes that are not: {error}") from error
    if not isinstance(document, dict):
        raise LineError(f"{path}: expected a JSON object, found {type(document).__name__}")
    return document


def dump_json(value: Any, what: str) -> bytes:
    """JSON as bytes; LineError for what JSON cannot say."""
    try:
        return (json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode()
    except (TypeError, ValueError, RecursionError) as error:
        raise LineError(f"{what} cannot be written as JSON: {error}") from error


def library_version() -> str:
    """Of this package."""
    return metadata.version("moleflow")
