"""The peers' own environment: made when it is missing, from the versions pinned in requirements.txt."""

from __future__ import annotations

import json
import subprocess
import sys
import venv
from pathlib import Path

HERE = Path(__file__).parent
REQUIREMENTS = HERE / "requirements.txt"

_ASK = (
    "import importlib.metadata as m, json, sys; "
    "print(json.dumps({d.metadata['Name'].lower(): d.version for d in m.distributions()}))"
)


def pinned() -> dict[str, str]:
    """Versions by package."""
    lines = REQUIREMENTS.read_text(encoding="utf-8").split()
    return dict(line.split("==") for line in lines)


def python_of(folder: Path) -> Path:
    return folder / ("Scripts" if sys.platform == "win32" else "bin") / "python"


def prepare(folder: Path) -> Path:
    """The interpreter of the environment in `folder`, which is made or completed first where it needs to be.

    It takes about 6 GB of disk where torch comes with CUDA. Raises CalledProcessError where pip fails.
    """
    python = python_of(folder)
    if not python.exists():
        print(f"making {folder}: minutes, and several GB", flush=True)
        venv.create(folder, with_pip=True)
    if missing(python):
        install = ["-m", "pip", "install", "--quiet", "--no-input", "--requirement", str(REQUIREMENTS)]
        subprocess.run([str(python), *install], check=True)
    if wrong := missing(python):
        raise SystemExit(f"{folder}: pip ran, and still lacks {', '.join(wrong)}; remove the folder")
    return python


def missing(python: Path) -> list[str]:
    """What is not installed in its pinned version; a local part of a version (+cpu) is put aside."""
    told = subprocess.run([str(python), "-c", _ASK], check=True, capture_output=True, text=True).stdout
    found = {name: version.partition("+")[0] for name, version in json.loads(told).items()}
    return [f"{name}=={version}" for name, version in pinned().items() if found.get(name) != version]
