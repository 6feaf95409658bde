"""The documents: their examples run, their links lead somewhere, and no public name is missing."""

from __future__ import annotations

import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest

import moleflow
from moleflow.data.factory import write_product
from moleflow.features.backbones import BACKBONES, get_backbone
from moleflow.learning import training

ROOT = Path(__file__).parents[1]
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").glob("*.md")])
LINKED = [*PAGES, ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md"]
STEPS, SIDE = 1, 32  # of a lesson, and pixels of its images
IMAGES = 2  # of each product
BLOCK = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)
FENCED = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")


def name_of(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def runnable(page: Path) -> list[tuple[int, str]]:
    """A page's python blocks, each with the line it begins at; every one of them must run."""
    text = page.read_text(encoding="utf-8")
    return [(text.count("\n", 0, found.start(1)), found[1]) for found in BLOCK.finditer(text)]


@pytest.fixture(scope="module", autouse=True)
def short_lessons() -> Any:
    """Examples run as they stand, in fewer steps on smaller images: what they find is measured elsewhere."""
    learn, row = training.fit, get_backbone("efficientnet_lite0")

    def learn_briefly(*given: Any, steps: int, **options: Any) -> float:
        return learn(*given, steps=min(steps, STEPS), **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, "fit", learn_briefly)
        patch.setitem(BACKBONES, row.name, replace(row, image_size=(SIDE, SIDE)))
        yield


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Photographs of two products, under the names the pages use."""
    folder = tmp_path_factory.mktemp("docs")
    belt = folder / "belt"
    belt.mkdir()
    for name, product in (("bottle", "bottle_cap"), ("cable", "circuit_board")):
        made = write_product(product, folder / "made", train=IMAGES, test_good=1, test_defective=1, size=96)
        good = folder / "photos" / name / "good"
        good.parent.mkdir(parents=True)
        (made / "train" / "good").rename(good)
        for image in sorted((made / "test").rglob("*.png")):
            image.rename(belt / f"{len(list(belt.iterdir())):03d}.png")
    again = write_product(
        "bottle_cap", folder / "again", train=2 * IMAGES, test_good=0, test_defective=0, size=96
    )
    for known in sorted((again / "train" / "good").iterdir())[:IMAGES]:
        known.unlink()
    (again / "train" / "good").rename(folder / "photos" / "bottle" / "new")
    faulty = write_product("bottle_cap", folder / "faulty", train=1, test_good=0, test_defective=3, size=96)
    for kind, where in (("test", "missed"), ("ground_truth", "masks")):
        (folder / where).mkdir()
        for image in sorted((faulty / kind).rglob("*.png")):
            image.rename(folder / where / image.name)
    for product in ("gear", "wood"):
        write_product(
            product, folder / "datasets" / "products", train=4, test_good=2, test_defective=2, size=64
        )
    return folder


@pytest.fixture
def shop(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder of its own for one page, with the photographs in it."""
    for name in ("photos", "belt", "datasets", "missed", "masks"):
        (tmp_path / name).symlink_to(photos / name, target_is_directory=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="module")
def press(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The saved line that pages about daily use begin with."""
    folder = tmp_path_factory.mktemp("lines") / "press"
    line = moleflow.Detector(device="cpu")
    line.add_task("bottle", photos / "photos" / "bottle" / "good")
    line.save(folder)
    return folder


@pytest.mark.parametrize("page", [page for page in PAGES if page.exists() and runnable(page)], ids=name_of)
def test_examples_run(page: Path, shop: Path, request: pytest.FixtureRequest) -> None:
    blocks = runnable(page)
    if any("lines/press" in code for _, code in blocks):
        shutil.copytree(request.getfixturevalue("press"), shop / "lines" / "press")
    names: dict[str, Any] = {"__name__": "example"}
    for line, code in blocks:
        # Blank lines in front, so that a traceback shows the page's own line numbers.
        exec(compile("\n" * line + code, str(page), "exec"), names)


def test_daily_use_has_examples() -> None:
    assert runnable(ROOT / "docs" / "teaching-and-inspecting.md")


@pytest.mark.parametrize("name", moleflow.__all__)
def test_public_name_is_documented(name: str) -> None:
    text = "\n".join(page.read_text(encoding="utf-8") for page in PAGES if page.exists())
    assert re.search(rf"(?<!\w){re.escape(name)}(?!\w)", text), f"{name} stands in no page"


@pytest.mark.parametrize("page", [page for page in LINKED if page.exists()], ids=name_of)
def test_links_resolve(page: Path) -> None:
    text = FENCED.sub("", page.read_text(encoding="utf-8"))
    broken = [target for target in LINK.findall(text) if not resolves(page, target)]
    assert not broken


def resolves(page: Path, target: str) -> bool:
    if re.match(r"[a-z]+:", target):
        return True  # the network is not asked
    place, _, anchor = unquote(target).partition("#")
    file = (page.parent / place).resolve() if place else page
    if not file.exists() or not file.is_relative_to(ROOT):
        return False
    return not anchor or anchor in anchors(file)


def anchors(page: Path) -> set[str]:
    """Headings as the names that Git forges give them."""
    text = FENCED.sub("", page.read_text(encoding="utf-8"))
    headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-") for heading in headings}
