"""The station's page: its files by themselves, and the page as a person uses it in a browser (slow)."""

from __future__ import annotations

import base64
import json
import os
import re
from datetime import datetime, timedelta, timezone
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

PAGE = Path(__file__).parents[1] / "src" / "moleflow" / "station" / "page"
WORDS = {tag: json.loads((PAGE / f"words.{tag}.json").read_text("utf-8")) for tag in ("en", "ko")}
SCRIPTS = {path.name: path.read_text("utf-8") for path in sorted(PAGE.glob("*.js"))}
HTML = (PAGE / "index.html").read_text("utf-8")
CSS = (PAGE / "app.css").read_text("utf-8")

# Keys that are put together while the page runs, by what stands before the last part.
TABLES = {
    "status": ["good", "defective", "unknown", "drifting"],
    "verdict": ["good", "defective", "unknown", "drifting"],
    "mark": ["false_alarm", "missed", "wrong_product"],
    "job": ["queued", "learning", "review", "live", "cancelled", "failed", "interrupted"],
    "job.title_": ["teach", "update"],
    "teach.kind_": ["teach", "update"],
    "step": ["queued", "learning", "review", "live"],
    "nav": ["inspect", "history", "products", "teach"],
    "filter": ["product", "status", "mark", "text", "since", "until"],
    "filter.any_": ["product", "status", "mark"],
    "role": ["inspect", "teach", "admin"],
    "theme": ["auto", "light", "dark"],
    "drift": ["steady", "moving", "moved", "unwatched"],
}
OPEN = ("part.", "stage.", "channel.", "said.")  # names the library chooses; said: recognised by the sentence


def _of_tables():
    keys = set()
    for prefix, names in TABLES.items():
        joint = "" if prefix.endswith("_") else "."
        keys |= {f"{prefix}{joint}{name}" for name in names}
    return keys | {f"mark.{kind}_means" for kind in TABLES["mark"]}


def _named():
    """Keys that stand in the page as they are."""
    text = HTML + "".join(SCRIPTS.values())
    asked = set(re.findall(r'\bt\(\s*"([a-z_.]+)"', text)) | set(
        re.findall(r'data-t(?:-label)?="([a-z_.]+)"', HTML)
    )
    # Keys may pass through a variable or a helper before they are said.
    return asked | {key for key in WORDS["en"] if f'"{key}"' in text}


# Words


def test_both_languages_say_the_same():
    assert WORDS["en"].keys() == WORDS["ko"].keys()


def test_no_word_is_missing():
    assert (_named() | _of_tables()) - WORDS["en"].keys() == set()


def test_no_word_is_unused():
    known = {key for key in WORDS["en"] if key.startswith(OPEN)}
    assert WORDS["en"].keys() - known - _named() - _of_tables() == set()


@pytest.mark.parametrize("tag", WORDS)
def test_words_are_no_empty_strings_and_hold_no_markup(tag):
    for key, sentence in WORDS[tag].items():
        assert sentence.strip() == sentence != "", key
        assert not re.search(r"[<>]", sentence), key


def test_both_languages_fill_in_the_same():
    for key, sentence in WORDS["en"].items():
        names = set(re.findall(r"\{(\w+)", sentence)) - {"than"}
        told = set(re.findall(r"\{(\w+)", WORDS["ko"][key]))
        assert told <= names, key
        assert key.startswith("said.") or names == told, key


def test_korean_is_korean():
    foreign = {
        key
        for key, sentence in WORDS["ko"].items()
        if not re.search(r"[가-힣]", sentence) and re.search(r"[A-Za-z]{3}", re.sub(r"\{.*?\}", "", sentence))
    }
    assert foreign <= {"part.lora", "part.dia"}


def _photo(name, **changed):
    from moleflow.photographs.suspects import Photo

    shot = np.random.default_rng(sum(map(ord, name))).normal(120, 30, (8, 8))
    usual = {"size": (480, 640), "light": 90.0, "sharpness": 4.0, "colourfulness": 30.0, "spread": 40.0}
    return Photo(name, **(usual | {"thumbnail": shot, "camera": "A"} | changed))


def _suspicions():
    """A sentence for every way in which a photograph can be odd."""
    from moleflow.photographs.suspects import find_suspects

    rest = [_photo(f"{at}.png", light=90.0 + at % 3) for at in range(12)]
    odd = [
        {"spread": 0.0, "sharpness": 0.0, "light": 3.0},
        {"spread": 0.1, "light": 250.0},
        {"camera": "B"},
        {"camera": None, "colourfulness": 0.1},
        {"size": (480, 480)},
        {"size": (240, 320)},
        {"light": 20.0},
        {"light": 200.0},
        {"sharpness": 1.0},
        {"sharpness": 20.0},
    ]
    for changed in odd:
        photos = [*rest, _photo("odd.png", **changed)]
        yield from (found.reason for found in find_suspects(photos, range(len(photos))))
    scores = [0.1 * (at % 4) for at in range(12)] + [90.0]
    yield from (found.reason for found in find_suspects([*rest, _photo("odd.png")], range(13), scores))
    yield from (found.reason for found in find_suspects(rest, [0, 0, 2, 2, 2, *range(5, 12)]))


def _reasons():
    from moleflow.results import Prediction

    said = {
        "source": 0,
        "task": "gear",
        "p_value": 0.1,
        "threshold": 3.0,
        "whole_score": None,
        "map_threshold": 3.0,
        "patch_map": np.zeros((2, 2), np.float32),
        "image_size": (8, 8),
    }
    for known, label, place in ((True, False, 0.0), (True, True, 9.0), (True, True, 0.0), (False, True, 9.0)):
        yield Prediction(**said, known=known, pred_score=place, pred_label=label, place_score=place).reason
    lone = said | {"threshold": 1e9, "map_threshold": 1e9}
    reason = Prediction(**lone, known=True, pred_score=-1e-4, pred_label=False, place_score=-1e-4).reason
    assert reason.endswith("its score is 0.00, the threshold out of reach")
    yield reason


def _promises():
    from moleflow.verdict.promise import Promise

    for images, rate, later in (
        (40, 0.01, ((80, 3.0),)),
        (40, 0.01, ((80, 4.9),)),
        (1, 0.01, ()),
        (300, None, ()),
    ):
        yield from Promise(images, rate, 1 / (images + 1), 5.0, later).sentences()


def _swallowed():
    from moleflow.station.lesson import _not_good

    yield from map(_not_good, ("defective", "unknown", "drifting", "taken for wood"))


def test_sentences_of_the_library_are_recognised():
    """The words said.* in English are the library's own sentences, by which another language can say them."""
    wild = [
        "(.+?)".join(re.escape(part) for part in re.split(r"\{\w+\}", sentence))
        for key, sentence in WORDS["en"].items()
        if key.startswith("said.")
    ]
    told = [*_suspicions(), *_reasons(), *_promises(), *_swallowed()]
    assert len(set(told)) > 18
    assert [one for one in told if not any(re.fullmatch(pattern, one) for pattern in wild)] == []


# Files


class _Tags(HTMLParser):
    def __init__(self):
        super().__init__()
        self.tags = []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))


def _tags(text):
    parser = _Tags()
    parser.feed(text)
    return parser.tags


def test_the_page_asks_for_no_exception_from_its_policy():
    for tag, attributes in _tags(HTML):
        assert tag != "style"
        assert "style" not in attributes, tag
        assert not [name for name in attributes if name.startswith("on")], tag
        assert tag != "script" or attributes.get("src"), "a script within the page"
    for name, text in SCRIPTS.items():
        assert not re.search(
            r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|new Function", text
        ), name
        assert not re.search(r"""setAttribute\(\s*["'](style|on)""", text), name


def test_nothing_comes_from_elsewhere():
    for name, text in {"index.html": HTML, "app.css": CSS, **SCRIPTS}.items():
        found = set(re.findall(r"https?://[^\s\"')]+", text))
        assert found <= {"http://www.w3.org/2000/svg"}, name


def test_every_file_the_page_names_exists_and_none_is_left_over():
    named = {attrs.get("src") or attrs.get("href") for _, attrs in _tags(HTML)} - {None}
    files = {name.removeprefix("page/") for name in named if name.startswith("page/")}
    for name, text in SCRIPTS.items():
        imported = set(re.findall(r'from "\./([\w.]+)"', text))
        assert imported <= files, f"{name} imports what index.html does not preload"
    there = {path.name for path in PAGE.iterdir() if path.is_file()} - {"index.html", "__init__.py"}
    assert files | {"words.en.json", "words.ko.json"} == there


def test_scripts_stay_small():
    assert {name for name, text in SCRIPTS.items() if text.count("\n") > 300} == set()


def _tokens(block):
    return dict(re.findall(r"--([\w-]+):\s*(#[0-9a-f]{6})", block))


def _contrast(one, other):
    def light(colour):
        parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
        red, green, blue = (
            part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts
        )
        return 0.2126 * red + 0.7152 * green + 0.0722 * blue

    high, low = sorted((light(one), light(other)), reverse=True)
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_text_can_be_read_on_every_ground(theme):
    light, dark = CSS.split(':root[data-theme="dark"]')[:2]
    colours = _tokens(light[: light.index("}")]) | (
        _tokens(dark[: dark.index("}")]) if theme == "dark" else {}
    )
    grounds = ["ground", "surface"]
    pairs = [
        (ink, ground) for ink in ("ink", "soft", "accent", "good", "defective-ink") for ground in grounds
    ]
    pairs += [(ink, ground) for ink in ("unknown-ink", "drifting-ink") for ground in grounds]
    pairs += [("ink", "raised"), ("soft", "raised"), ("good", "good-ground"), ("ink", "warn-ground")]
    pairs += [("on-accent", "accent"), ("accent", "accent-soft"), ("ink", "accent-soft")]
    pairs += [(f"on-{status}", status) for status in ("defective", "unknown", "drifting", "working")]
    for text, ground in pairs:
        assert _contrast(colours[text], colours[ground]) >= 4.5, (theme, text, ground)
    for ground in grounds:  # the borders of what can be pressed
        assert _contrast(colours["edge"], colours[ground]) >= 3, (theme, "edge", ground)


def test_a_score_is_out_of_reach_where_the_library_says_so():
    from moleflow.verdict.promise import OUT_OF_REACH

    (said,) = re.findall(r"const OUT_OF_REACH = ([\de.]+);", SCRIPTS["format.js"])
    assert float(said) == OUT_OF_REACH


# In a browser

CHROMIUM = Path("/usr/bin/chromium")
ARGUMENTS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
    "--use-fake-device-for-media-stream",
    "--use-fake-ui-for-media-stream",
]
LOUD = {"defective": "gear-bad-2.png", "unknown": "unknown-3.png", "drifting": "gear-drift-4.png"}
NARROW = {"width": 360, "height": 740}
COUNTED = """
  window.blobs = new Set();
  const [make, drop] = [URL.createObjectURL, URL.revokeObjectURL];
  URL.createObjectURL = (blob) => {
    const address = make.call(URL, blob);
    window.blobs.add(address);
    return address;
  };
  URL.revokeObjectURL = (address) => { window.blobs.delete(address); drop.call(URL, address); };
"""


@pytest.fixture(scope="module")
def browser():
    if not CHROMIUM.exists():
        pytest.skip(f"{CHROMIUM} is not there")
    sync = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    with sync.sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=str(CHROMIUM), args=ARGUMENTS)
        yield started
        started.close()


@pytest.fixture
def station():
    from station_mock import Mock, serve

    servers = []

    def start(**options):
        server = serve(Mock(**options))
        servers.append(server)
        return server

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.fixture
def opened(browser, station):
    """Opens the page: `opened(past=0, locale="ko-KR")`; no console error may come of it.

    A browser itself notes every answer that is an error: `allowed` names those a test provokes.
    """
    contexts, said = [], []

    def open_page(
        *, locale="en-GB", viewport=None, dark=False, allowed=(), server=None, at="", script="", **options
    ):
        server = server or station(**({"past": 12} | options))
        context = browser.new_context(
            locale=locale,
            viewport=viewport or {"width": 1280, "height": 800},
            color_scheme="dark" if dark else "light",
        )
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(15_000)
        page.add_init_script(COUNTED + script)
        page.on(
            "console",
            lambda message: message.type in ("error", "warning") and said.append((message.text, allowed)),
        )
        page.on("pageerror", lambda error: said.append((str(error), allowed)))
        page.mock = server.mock
        page.base = f"http://127.0.0.1:{server.server_port}/"
        page.goto(page.base + at)
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert [text for text, allowed in said if not any(part in text for part in allowed)] == []


@pytest.fixture(scope="session")
def photographs(tmp_path_factory):
    """Files by name: `photographs("gear-bad-2.png")`; a name says what the pretended station sees in it."""
    from PIL import Image

    from station_mock import FAULTS, sample

    folder = tmp_path_factory.mktemp("photographs")

    def make(*names):
        for name in names:
            number = int(re.findall(r"\d+", name)[-1])
            product = next((known for known in FAULTS if name.startswith(known)), "wood")
            if not (folder / name).exists():
                Image.fromarray(sample(product, number, "bad" in name)[0]).resize((96, 96)).save(
                    folder / name
                )
        return [str(folder / name) for name in names]

    return make


def _inspect(page, files):
    page.wait_for_selector(".band")
    page.set_input_files("#choose-files", files)


def _band(page, status):
    page.wait_for_selector(f'.band[data-status="{status}"]')
    return page.inner_text(".band .word")


def _until(page, expression):
    """Waits for a condition; Playwright's own way evaluates text, which the page's policy forbids."""
    for _ in range(150):
        if page.evaluate(expression):
            return
        page.wait_for_timeout(100)
    raise AssertionError(f"never came true: {expression}")


def _no_sideways(page):
    wide, seen = page.evaluate("[document.documentElement.scrollWidth, innerWidth]")
    assert wide <= seen, page.url


slow = pytest.mark.slow

SHIFTS = """
  window.shifted = 0;
  new PerformanceObserver((list) => {
    for (const entry of list.getEntries()) if (!entry.hadRecentInput) window.shifted += entry.value;
  }).observe({ type: "layout-shift", buffered: true });
"""


@slow
def test_nothing_jumps(opened, photographs):
    page = opened(past=6, script=SHIFTS)
    for status, file in {"good": "gear-1.png", **LOUD}.items():
        _inspect(page, photographs(file))
        _band(page, status)
        page.wait_for_timeout(600)
    assert page.evaluate("window.shifted") < 0.05


@slow
def test_an_image_is_inspected(opened, photographs):
    page = opened()
    assert _band(page, "ready") == "Ready"
    _inspect(page, photographs("gear-bad-2.png"))
    assert _band(page, "defective") == "DEFECTIVE"
    size = page.evaluate("parseFloat(getComputedStyle(document.querySelector('.word')).fontSize)")
    assert size >= 72  # pixels: two centimetres on a usual screen, read from two metres
    assert "gear" in page.inner_text(".band")
    assert "threshold 3.50" in page.inner_text(".score")
    assert re.search(r"1 in [\d,]+ good parts scores this high", page.inner_text(".facts"))
    page.wait_for_selector(".outlines g", state="attached")
    _until(page, "document.querySelector('#announce').textContent.startsWith('defective')")
    _until(page, "document.querySelector('.photo').naturalWidth > 0")
    _until(page, "window.blobs.size === 0")  # every picture was let go


@slow
def test_an_unknown_product_is_as_loud_as_a_defect(opened, photographs):
    page = opened()
    _inspect(page, photographs("gear-bad-2.png"))
    _band(page, "defective")
    defect = page.locator(".band").bounding_box()
    _inspect(page, photographs("unknown-3.png"))
    assert _band(page, "unknown") == "UNKNOWN PRODUCT"
    assert page.locator(".band").bounding_box() == defect
    assert page.locator(".word").evaluate("(word) => word.scrollWidth <= word.clientWidth + 1")
    size = page.evaluate("parseFloat(getComputedStyle(document.querySelector('.word')).fontSize)")
    assert size >= 60


@slow
def test_of_several_images_a_defect_is_not_passed_over_and_a_bad_file_is_named(opened, photographs, tmp_path):
    page = opened(allowed=["415"])
    text = tmp_path / "notes.png"
    text.write_text("no image")
    files = photographs("gear-1.png", "gear-bad-2.png", "gear-4.png", "gear-5.png")
    _inspect(page, [files[0], str(text), *files[1:]])
    assert _band(page, "defective") == "DEFECTIVE"
    assert page.locator(".strip-list .card[data-status=failed]").count() == 1
    _inspect(page, [str(text)])
    assert _band(page, "failed") == "NOT INSPECTED"
    assert "expected an image" in page.inner_text(".facts")


@slow
def test_the_heat_map_follows_the_slider(opened, photographs):
    page = opened()
    _inspect(page, photographs("gear-bad-2.png"))
    _band(page, "defective")
    _until(page, "document.querySelector('.map').naturalWidth > 0")
    opacity = "getComputedStyle(document.querySelector('.map')).opacity"
    page.fill(".heat-slider", "0")
    assert page.evaluate(opacity) == "0"
    page.fill(".heat-slider", "100")
    assert page.evaluate(opacity) == "1"
    page.keyboard.press("h")
    _until(page, f"{opacity} === '0'")
    assert page.locator(".scale-marks").inner_text().count("3.2") == 1
    page.reload()
    assert page.input_value(".heat-slider") == "0"  # kept


@slow
def test_a_false_alarm_is_marked_and_taken_back(opened, photographs):
    page = opened()
    _inspect(page, photographs("gear-bad-2.png"))
    _band(page, "defective")
    page.click("[data-mark=false_alarm]")
    page.wait_for_selector(".marked")
    assert page.mock.inspections[-1]["mark"]["kind"] == "false_alarm"
    assert page.evaluate("document.activeElement.className").startswith("mark-undo")
    page.click(".mark-undo")
    page.wait_for_selector("[data-mark=false_alarm]")
    assert page.mock.inspections[-1]["mark"] is None
    page.click("[data-mark=wrong_product]")
    page.select_option("#right-product", "bottle_cap")
    page.click("dialog [type=submit]")
    page.wait_for_selector(".marked")
    assert page.mock.inspections[-1]["mark"]["task"] == "bottle_cap"


@slow
def test_the_past_can_be_searched(opened):
    page = opened(past=130, at="#/history")
    page.wait_for_selector(".gallery .card")
    assert page.locator(".gallery .card").count() == 48
    newest = int(page.get_attribute(".gallery .card", "data-id"))
    assert newest == len(page.mock.inspections)
    page.click("text=Show more")
    _until(page, "document.querySelectorAll('.gallery .card').length === 96")
    page.select_option("#filter-status", "unknown")
    _until(
        page, "[...document.querySelectorAll('.gallery .card')].every((c) => c.dataset.status === 'unknown')"
    )
    assert "status=unknown" in page.url
    page.fill("#filter-text", "no such name")
    page.wait_for_selector("text=No inspection fits these filters.")
    page.fill("#filter-text", "")
    page.select_option("#filter-status", "")
    page.select_option("#filter-mark", "false_alarm")
    _until(page, "document.querySelectorAll('.gallery .card').length === 1")
    page.click(".gallery .card")
    page.wait_for_selector(".marked")
    page.wait_for_selector("a[href='#/history/7']")
    page.keyboard.press("ArrowRight")
    _until(page, "location.hash === '#/history/7'")
    _until(page, "window.blobs.size === 0")


@slow
def test_a_product_is_taught_reviewed_and_live(opened, photographs):
    page = opened(at="#/teach", lesson_seconds=1.2)
    page.wait_for_selector("#product-name")
    page.click("text=Start learning")
    assert "Give the product a name first." in page.inner_text(".lesson")
    files = photographs(*[f"wood-{at}.png" for at in range(12)])
    page.set_input_files("#choose-photographs", files)
    page.wait_for_selector("text=12 photographs.")
    page.fill("#product-name", "wood")
    page.click("text=Start learning")
    page.wait_for_selector(".progress-box progress")
    page.wait_for_selector(".review")
    assert page.locator(".suspect").count() == 3
    assert "darker than the others" in page.inner_text(".review")
    assert "notes.png" in page.inner_text(".review")
    page.check(".suspect input >> nth=1")
    page.click("text=Learn again without the 1 ticked")
    page.wait_for_selector(".progress-box")
    page.wait_for_selector(".review")
    assert page.locator(".suspect").count() == 2
    page.click("text=Put it on the line")
    page.wait_for_selector("text=wood is on the line")
    assert "wood" in page.mock.products
    page.click(".outcome a:has-text('Inspect')")
    _inspect(page, photographs("wood-3.png"))
    assert _band(page, "good") == "Good"
    page.goto(page.base + "#/products")
    page.wait_for_selector(".product-name:has-text('wood')")


@slow
def test_a_lesson_is_cancelled_and_resumed(opened, photographs):
    page = opened(at="#/teach", lesson_seconds=60, allowed=["422"])
    page.wait_for_selector("#product-name")
    page.set_input_files("#choose-photographs", photographs("wood-1.png", "wood-2.png"))
    page.fill("#product-name", "a:b")
    page.click("text=Start learning")
    page.wait_for_selector(".lesson .error:has-text('cannot name a product')")
    page.fill("#product-name", "wood")
    page.click("text=Start learning")
    page.click("text=Cancel the lesson")
    page.click("dialog [type=submit]")
    page.wait_for_selector(".outcome:has-text('cancelled')")
    page.click("text=Resume")
    page.wait_for_selector(".progress-box")


@slow
def test_a_lesson_goes_on_without_what_cannot_be_read(opened, photographs):
    page = opened(at="#/teach", lesson_seconds=60)
    page.wait_for_selector("#product-name")
    page.set_input_files("#choose-photographs", photographs("wood-1.png", "wood-2.png"))
    page.fill("#product-name", "wood")
    page.click("text=Start learning")
    page.wait_for_selector(".progress-box")
    (job,) = page.mock.jobs
    job.update(state="failed", error="1 of 2 images (50.0%) cannot be read", unreadable=[1])
    page.wait_for_selector(".outcome:has-text('1 of 2 images')")
    page.click("text=Learn without the 1 that cannot be read")
    page.wait_for_selector(".progress-box:has-text('Learning from 1 image')")
    assert job["_dropped"] == [1]


@slow
def test_an_update_shows_what_it_would_change(opened):
    page = opened(past=30, at="#/products/bottle_cap", lesson_seconds=0.5)
    page.click("text=Update")
    page.wait_for_selector(".marked-box .pick")
    page.click("text=Start learning")
    page.wait_for_selector(".review .flips .card")
    assert "would become defective" in page.inner_text(".review")
    grave = page.locator("section:has(> h2:text-is('Not good so far')) .suspect")
    assert grave.count() == 2
    assert "finds it defective" in grave.nth(0).inner_text()
    assert "14 spreads stranger" in grave.nth(0).inner_text()  # a suspect as well, and shown once
    assert page.locator(".suspect").count() == 4
    grave.nth(0).locator("input").check()
    page.click("text=Learn again without the 1 ticked")
    page.wait_for_selector(".progress-box")
    page.wait_for_selector(".review .flips .card")
    assert page.locator(".suspect").count() == 3
    page.click("text=Use the update")
    page.wait_for_selector("text=The update of bottle_cap is in use")


@slow
def test_a_threshold_says_what_it_means_before_it_is_applied(opened):
    page = opened(past=40, at="#/products/gear")
    page.wait_for_selector("#rate")
    assert "1 in 100 good parts alarms" in page.inner_text(".chosen-rate")
    assert page.is_disabled("text=Apply")
    page.focus("#rate")
    for _ in range(12):
        page.keyboard.press("ArrowRight")
    page.wait_for_selector(".past:has-text('would')")
    assert page.mock.products["gear"]["threshold"] == 3.5  # nothing changed yet
    page.click("text=Apply")
    page.wait_for_selector("text=This is the threshold in force.")
    assert page.mock.products["gear"]["threshold"] < 3.5
    page.wait_for_selector(".small-chart:nth-child(4)")
    assert page.locator(".small-chart").count() == 4


@slow
def test_a_threshold_for_a_version_that_is_no_longer_in_use_is_not_applied(opened):
    page = opened(past=40, at="#/products/gear", allowed=["409"])
    gear, sent = page.mock.products["gear"], []
    shown = gear["version"]

    def updated(route):
        sent.append(route.request.post_data_json)
        gear.update(version="000009", versions=[*gear["versions"], "000009"])
        error = {"code": "other_version", "message": "'gear' changed meanwhile"}
        route.fulfill(status=409, json={"error": error})

    page.route("**/threshold", updated)
    page.focus("#rate")
    for _ in range(12):
        page.keyboard.press("ArrowRight")
    page.click("text=Apply")
    page.wait_for_selector(".threshold .error:has-text('changed meanwhile')")
    assert [one["version"] for one in sent] == [shown]
    page.wait_for_selector(".versions li:has-text('000009') .current")
    assert "1 in 100 good parts alarms" in page.inner_text(".chosen-rate")  # of the new one, as it is
    assert page.is_disabled("text=Apply")
    page.unroute("**/threshold")
    page.keyboard.press("ArrowRight")  # from the slider, where the focus is
    page.click("text=Apply")
    page.wait_for_selector("text=This is the threshold in force.")
    assert page.is_hidden(".threshold .error")


@slow
def test_a_version_is_taken_back_and_a_product_removed(opened):
    page = opened(at="#/products/gear", allowed=["404"])
    page.click("text=Go back to it")
    page.click("dialog [type=submit]")
    page.wait_for_selector(".versions li:has-text('000001') .current")
    assert page.mock.products["gear"]["version"] == "000001"
    page.click("text=Remove this product")
    assert page.is_disabled("dialog .danger")
    page.fill("#typed-name", "gea")
    assert page.is_disabled("dialog .danger")
    page.fill("#typed-name", "gear")
    page.click("dialog .danger")
    _until(page, "location.hash === '#/products'")
    assert "gear" not in page.mock.products
    page.goto(page.base + "#/products/gear")
    page.wait_for_selector(".error:has-text('knows no product')")


@slow
def test_a_token_is_asked_for_and_the_role_respected(opened, photographs):
    allowed = ["401", "403"]
    page = opened(tokens={"hush": "inspect", "root": "admin"}, allowed=allowed)
    page.fill("#token", "wrong")
    page.keyboard.press("Enter")
    page.wait_for_selector("dialog .error:has-text('not one of this station')")
    page.fill("#token", "hush")
    page.keyboard.press("Enter")
    _inspect(page, photographs("gear-1.png"))
    assert _band(page, "good") == "Good"
    assert page.evaluate("[sessionStorage.length, JSON.stringify(localStorage).includes('hush')]") == [
        1,
        False,
    ]
    assert page.is_hidden("[data-view=teach]")
    page.goto(page.base + "#/products/gear")
    page.wait_for_selector("#rate")
    for offer in ("Apply", "Go back to it", "Remove this product", "Update"):
        assert page.locator(f"main >> text={offer}").count() == 0, offer
    page.mock.tokens = {"root": "admin"}  # the token is withdrawn: the next look asks for another
    page.wait_for_selector("#token")
    page.keyboard.press("Escape")
    page.wait_for_selector("#banner:has-text('Without a token')")
    page.click("#banner button")
    page.fill("#token", "root")
    page.keyboard.press("Enter")
    page.wait_for_selector("text=Remove this product")


@slow
def test_a_lost_connection_is_said_and_mended(browser, station, opened, photographs):
    server = station(past=3)
    page = opened(server=server, allowed=["ERR_CONNECTION", "ERR_EMPTY", "ERR_INTERNET", "Failed to load"])
    _band(page, "ready")
    page.context.set_offline(True)
    _inspect(page, photographs("gear-bad-2.png"))
    page.wait_for_selector("#banner:has-text('No connection')")
    page.context.set_offline(False)
    assert _band(page, "defective") == "DEFECTIVE"  # it waited
    page.wait_for_selector("#banner", state="hidden")


@slow
@pytest.mark.parametrize("motion", ["no-preference", "reduce"])
def test_no_verdict_stands_while_the_next_part_is_judged(opened, photographs, motion):
    page = opened()
    page.emulate_media(reduced_motion=motion)
    _inspect(page, photographs("gear-1.png"))
    assert _band(page, "good") == "Good"
    page.wait_for_selector(".stage:not(.empty) .photo")
    page.mock.judging.clear()
    _inspect(page, photographs("gear-bad-2.png"))
    assert _band(page, "working") == "Inspecting…"
    assert "gear-bad-2.png" in page.inner_text(".band")
    ground = "getComputedStyle(document.querySelector('.band')).backgroundColor"
    assert page.evaluate(ground) == "rgb(59, 77, 102)"
    for old in (".photo", ".score", ".marks"):
        assert page.is_hidden(old), old
    size = page.evaluate("parseFloat(getComputedStyle(document.querySelector('.word')).fontSize)")
    assert size >= 72
    page.mock.judging.set()
    assert _band(page, "defective") == "DEFECTIVE"
    page.wait_for_selector(".photo")
    assert page.is_visible(".score")


@slow
def test_no_verdict_stands_while_the_station_is_away(opened, photographs):
    page = opened(past=2, allowed=["ERR_", "Failed to load"])
    page.check("text=Follow")
    _inspect(page, photographs("gear-1.png"))
    _band(page, "good")
    page.mock.going.clear()  # it neither answers nor refuses
    assert _band(page, "lost") == "NO CONNECTION"
    page.wait_for_selector("#banner:has-text('as long as this page stays open')")
    assert page.is_hidden(".photo")
    page.mock.going.set()
    assert _band(page, "good") == "Good"  # nothing came meanwhile: the last one, with its time and name
    page.mock.away = True  # it refuses
    assert _band(page, "lost") == "NO ANSWER"
    assert "the station is starting" in page.inner_text(".band")
    page.mock.away = False
    page.mock.inspect("gear-bad-2.png")
    assert _band(page, "defective") == "DEFECTIVE"


@slow
def test_two_verdicts_that_read_alike_are_told_apart(opened, photographs):
    page = opened()
    seen = "window.flashes = 0; addEventListener('animationstart', ({animationName}) => "
    page.evaluate(seen + "{ if (animationName === 'flash') window.flashes += 1; })")
    for n, name in enumerate(("gear-1.png", "gear-3.png"), 1):
        _inspect(page, photographs(name))
        page.wait_for_selector(f".band .which:has-text('{name}')")
        assert re.search(r"\d\d:\d\d:\d\d", page.inner_text(".band time"))
        _until(page, f"window.flashes === {n}")
        page.wait_for_timeout(500)
    page.click(".strip-list li:nth-child(2) button")
    page.wait_for_selector(".band .which:has-text('earlier')")
    assert page.evaluate("window.flashes") == 2  # what a person chose is no news


@slow
def test_a_picture_does_not_stand_beside_the_verdict_of_another(opened, photographs):
    page = opened()
    _inspect(page, photographs("gear-1.png"))
    _band(page, "good")
    page.wait_for_selector(".stage:not(.empty) .photo")
    page.route("**/image?side=1024", lambda route: None)  # the next picture never comes
    page.route("**/image?side=512", lambda route: None)
    _inspect(page, photographs("gear-bad-2.png"))
    _band(page, "defective")
    page.wait_for_selector(".photo", state="hidden")


@slow
def test_an_image_whose_answer_was_lost_is_recorded_once(opened, photographs):
    page = opened(past=0, allowed=["ERR_EMPTY"])
    page.mock.swallowed = 1
    _inspect(page, photographs("gear-bad-2.png", "gear-1.png"))
    assert _band(page, "defective") == "DEFECTIVE"
    assert sorted(one["source"] for one in page.mock.inspections) == ["gear-1.png", "gear-bad-2.png"]
    assert len(page.mock.keys) == 2
    assert all(0 < len(key) <= 64 for key in page.mock.keys)
    page.evaluate("crypto.randomUUID = undefined")  # as over plain HTTP from another machine
    _inspect(page, photographs("gear-1.png"))  # the same file again is another part
    _until(page, "document.querySelectorAll('.strip-list li').length === 3")
    assert len(page.mock.inspections) == len(page.mock.keys) == 3


@slow
def test_a_file_that_is_gone_before_it_is_sent_is_named(opened):
    page = opened(past=0)
    _band(page, "ready")
    gone = "async () => { throw new DOMException('', 'NotFoundError'); }"
    page.evaluate(f"void (Blob.prototype.arrayBuffer = {gone})")
    page.set_input_files("#choose-files", [{"name": "a.png", "mimeType": "image/png", "buffer": b"a"}])
    assert _band(page, "failed") == "NOT INSPECTED"
    assert "moved, deleted or written anew" in page.inner_text(".facts")
    assert page.is_hidden("#banner")


@slow
def test_the_newest_is_followed_whatever_the_clock_says(station, opened):
    server = station(past=0)
    for at in range(24):
        server.mock.inspect(f"gear-{at}.png")
    page = opened(server=server)
    page.check("text=Follow")
    page.wait_for_selector(".strip-list [data-id='24']")
    for at in range(24, 64, 20):  # until the strip is full
        for one in range(at, at + 20):
            page.mock.inspect(f"gear-{one}.png")
        page.wait_for_selector(f".band .which:has-text('gear-{at + 19}.png')")
    assert page.locator(".strip-list li").count() == 60
    earlier = datetime.now(timezone.utc) - timedelta(hours=1)  # the clock was put back
    page.mock.inspect("unknown-3.png", when=earlier)
    _band(page, "unknown")
    page.mock.inspect("gear-200.png", when=earlier)
    assert _band(page, "good") == "Good"
    assert page.get_attribute(".strip-list li:first-child button", "data-id") == "66"
    page.wait_for_timeout(2500)  # two more looks
    assert page.get_attribute(".band", "data-status") == "good"


@slow
def test_another_history_at_the_same_address_is_taken_for_another(opened):
    page = opened(past=0, allowed=["404"])  # a picture of the former one that is asked for just then
    for at in range(9):
        page.mock.inspect(f"gear-{at}.png")
    page.check("text=Follow")
    page.wait_for_selector(".strip-list li")
    page.click(".strip-list li button")
    _band(page, "good")
    page.mock.inspections.clear()  # a station over a fresh database: its numbers begin at 1 again
    page.mock.inspect("bottle_cap-bad-2.png")
    assert _band(page, "ready") == "Ready"
    _until(page, "document.querySelectorAll('.strip-list li').length === 1")
    page.mock.inspect("bottle_cap-bad-4.png")
    assert _band(page, "defective") == "DEFECTIVE"


@slow
def test_what_was_set_beside_the_belt_is_kept(opened):
    page = opened(past=2)
    page.check("text=Follow")
    page.select_option("#known-product", "bottle_cap")
    page.reload()
    _band(page, "ready")
    assert page.is_checked(".strip-head input")
    assert page.input_value("#known-product") == "bottle_cap"
    page.wait_for_selector(".strip-list li")
    page.mock.inspect("gear-bad-2.png")
    assert _band(page, "defective") == "DEFECTIVE"
    page.uncheck("text=Follow")
    page.reload()
    _band(page, "ready")
    assert not page.is_checked(".strip-head input")


@slow
def test_the_page_is_not_left_while_something_waits_without_a_question(opened, photographs):
    page = opened(past=0, script=SHARE)
    _band(page, "ready")
    asked = "(() => { const e = new Event('beforeunload', {cancelable: true}); return !dispatchEvent(e); })()"
    assert not page.evaluate(asked)
    page.mock.judging.clear()
    _inspect(page, photographs("gear-1.png"))
    _band(page, "working")
    assert page.evaluate(asked)
    page.mock.judging.set()
    _band(page, "good")
    assert not page.evaluate(asked)
    page.click("text=Watch a folder")
    page.wait_for_selector("text=Watching share")
    assert page.evaluate(asked)
    page.click(".state-line >> text=Stop")
    assert not page.evaluate(asked)


@slow
def test_what_is_damaged_holds_nobody_up_and_what_passes_is_waited_for(opened, photographs):
    page = opened(allowed=["503"])
    page.mock.troubles = ["line"]
    _inspect(page, photographs("gear-1.png"))
    page.wait_for_selector(".facts:has-text('the station: line')")
    page.mock.troubles = [None, "busy", "busy"]  # the second of two images, and that one alone
    _inspect(page, photographs("gear-3.png", "gear-bad-2.png"))
    assert _band(page, "defective") == "DEFECTIVE"
    assert page.mock.troubles == []


@slow
def test_a_station_that_begins_is_waited_for(station, opened):
    server = station(past=0)
    server.mock.away = True
    page = opened(server=server, allowed=["503"])
    page.wait_for_selector(".starting:has-text('the station is starting')")
    server.mock.away = False
    assert _band(page, "ready") == "Ready"


@slow
def test_it_speaks_korean(opened, photographs):
    page = opened(locale="ko-KR", viewport=NARROW, allowed=["503", "404"])
    assert _band(page, "ready") == "대기"
    assert page.get_attribute("html", "lang") == "ko"
    _inspect(page, photographs("unknown-3.png"))
    assert _band(page, "unknown") == "미등록 제품"
    assert "학습한 어떤 제품과도 다르며" in page.inner_text(".facts")
    _inspect(page, photographs("gear-drift-2.png"))
    assert _band(page, "drifting") == "조건 변화"
    assert "학습한 양품보다 어둡습니다" in page.inner_text(".facts")
    page.mock.troubles = ["line"]
    _inspect(page, photographs("gear-5.png"))
    assert _band(page, "failed") == "검사 불가"
    assert page.get_attribute(".facts .error", "lang") == "en"
    _inspect(page, photographs("gear-drift-2.png"))
    _band(page, "drifting")
    page.goto(page.base + "#/products/nothing")
    page.wait_for_selector(".error[lang=en]:has-text('knows no product')")
    page.goto(page.base + "#/products/gear")
    page.wait_for_selector(".lead:has-text('서로 다른 사진 120장')")
    page.goto(page.base + "#/inspect")
    page.click("#language")
    assert _band(page, "drifting") == "DRIFTING"
    assert page.get_attribute("html", "lang") == "en"
    page.reload()
    assert _band(page, "ready") == "Ready"  # the choice is kept


VIEWS = [
    "#/inspect",
    "#/history",
    "#/history/9",
    "#/products",
    "#/products/gear",
    "#/teach",
    "#/teach?update=gear",
]


@slow
@pytest.mark.parametrize("locale", ["en-GB", "ko-KR"])
def test_nothing_is_cut_off_on_a_narrow_screen(opened, photographs, locale):
    page = opened(locale=locale, viewport=NARROW, allowed=["ERR_INTERNET"])

    def check(status):
        _band(page, status)
        assert page.locator(".word").evaluate("(word) => word.scrollWidth <= word.clientWidth + 1")
        assert page.locator(".band").evaluate("(band) => band.scrollHeight <= band.clientHeight + 1")
        _no_sideways(page)

    for status, file in LOUD.items():
        _inspect(page, photographs(file))
        check(status)
    page.mock.judging.clear()
    _inspect(page, photographs("gear-1.png"))
    check("working")
    page.context.set_offline(True)
    check("lost")
    page.context.set_offline(False)
    page.mock.judging.set()
    check("good")
    for view in VIEWS:
        page.goto(page.base + view)
        page.wait_for_timeout(500)
        _no_sideways(page)


@slow
def test_it_is_worked_by_keyboard_alone(opened, photographs):
    page = opened(past=3)
    choosers = []
    page.on("filechooser", lambda chooser: choosers.append(chooser))
    _band(page, "ready")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.id") == "skip"
    assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    page.keyboard.press("o")
    page.wait_for_timeout(300)
    assert len(choosers) == 1
    choosers[0].set_files(photographs("gear-bad-2.png"))
    _band(page, "defective")
    for _ in range(60):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.dataset?.mark") == "false_alarm":
            break
    page.keyboard.press("Enter")
    page.wait_for_selector(".marked")
    page.keyboard.press("3")
    page.wait_for_selector(".product-name")
    page.keyboard.press("?")
    page.wait_for_selector("dialog[open]")
    page.keyboard.press("4")  # a dialog keeps the keys
    assert page.url.endswith("#/products")
    page.keyboard.press("Escape")
    page.wait_for_selector("dialog", state="detached")
    page.wait_for_timeout(60)  # as no hand is quicker
    page.keyboard.press("2")
    page.wait_for_selector(".gallery .card")
    page.keyboard.press("/")
    assert page.evaluate("document.activeElement.id") == "filter-text"
    page.keyboard.type("4?1")  # letters, no shortcuts
    assert page.input_value("#filter-text") == "4?1"


@slow
def test_a_barcode_that_is_scanned_is_no_shortcut(opened):
    page = opened(past=0)
    choosers = []
    page.on("filechooser", lambda chooser: choosers.append(chooser))
    _band(page, "ready")
    theme = page.evaluate("document.documentElement.dataset.theme")
    for code in ("4012345", "3ot/ 4", "t2"):
        # A scanner's keys come within a few milliseconds; the test's own may take longer on a busy machine.
        page.evaluate(
            """(code) => [...code].forEach(
            (key) => document.body.dispatchEvent(new KeyboardEvent("keydown", { key, bubbles: true })))""",
            code,
        )
        page.wait_for_timeout(200)
    assert "#/" not in page.url
    assert choosers == []
    assert page.evaluate("document.documentElement.dataset.theme") == theme
    page.keyboard.press("3")
    page.wait_for_selector(".product-name")


@slow
def test_a_camera_takes_pictures(opened):
    page = opened(past=0)
    _band(page, "ready")
    page.keyboard.press("c")
    _until(page, "document.querySelector('video')?.videoWidth > 0")
    _until(page, "document.activeElement.textContent.startsWith('Capture')")
    page.keyboard.press(" ")
    assert _band(page, "unknown") == "UNKNOWN PRODUCT"
    assert page.mock.inspections[-1]["source"].startswith("camera-")
    page.click("text=Close the camera")
    assert page.locator("video").count() == 0


FOLDER = """
  window.showDirectoryPicker = async () => {
    const root = await navigator.storage.getDirectory();
    return root.getDirectoryHandle("belt", { create: true });
  };
  window.put = async (name, address) => {
    const root = await navigator.storage.getDirectory();
    const folder = await root.getDirectoryHandle("belt", { create: true });
    const file = await (await folder.getFileHandle(name, { create: true })).createWritable();
    await file.write(Uint8Array.from(atob(address), (letter) => letter.charCodeAt(0)));
    await file.close();
  };
"""


@slow
def test_a_folder_is_watched(opened, photographs):
    page = opened(past=0, script=FOLDER)
    _band(page, "ready")
    old, new = (
        base64.b64encode(Path(name).read_bytes()).decode()
        for name in photographs("gear-1.png", "gear-bad-2.png")
    )
    page.evaluate("([name, data]) => put(name, data)", ["gear-1.png", old])
    page.evaluate("([name, data]) => put(name, data)", ["notes.txt", old])
    page.click("text=Watch a folder")
    page.wait_for_selector("text=Also inspect the 1 that was there")
    page.evaluate("([name, data]) => put(name, data)", ["gear-bad-2.png", new])
    assert _band(page, "defective") == "DEFECTIVE"
    assert len(page.mock.inspections) == 1
    page.click("text=Also inspect the 1")
    assert _band(page, "good") == "Good"
    page.goto(page.base + "#/products")  # it goes on while another view is open
    page.wait_for_selector(".product")
    page.evaluate("([name, data]) => put(name, data)", ["gear-7.png", old])
    page.wait_for_timeout(3500)
    assert [one["source"] for one in page.mock.inspections] == ["gear-bad-2.png", "gear-1.png", "gear-7.png"]


SHARE = """
  window.share = { files: new Map(), fails: {}, reads: {}, looks: 0, away: false };
  window.put = (name, address) => {
    const bytes = Uint8Array.from(atob(address), (letter) => letter.charCodeAt(0));
    share.files.set(name, new File([bytes], name, { lastModified: share.files.size }));
  };
  const read = (name, file) => {
    share.reads[name] = (share.reads[name] ?? 0) + 1;
    if (share.fails[name]?.includes(share.reads[name])) throw new DOMException(`no ${name}`, "NotFoundError");
    return file;
  };
  window.showDirectoryPicker = async () => ({
    name: "share",
    async *entries() {
      share.looks += 1;
      for (const [name, file] of share.files) {
        yield [name, { kind: "file", getFile: async () => read(name, file) }];
      }
      if (share.away) throw new DOMException("the share is away", "NotReadableError");
    },
  });
"""
PUT = "(files) => files.forEach(([name, data]) => put(name, data))"


def _contents(photographs, *names):
    """Files as `PUT` takes them."""
    data = [base64.b64encode(Path(path).read_bytes()).decode() for path in photographs(*names)]
    return list(zip(names, data, strict=True))


@slow
def test_a_file_that_cannot_be_read_takes_no_other_with_it(opened, photographs):
    page = opened(past=0, script=SHARE)
    _band(page, "ready")
    old, *new = _contents(photographs, "gear-1.png", "gear-3.png", "gear-5.png", "gear-7.png")
    page.evaluate("share.fails = {'gear-1.png': [1, 2], 'gear-7.png': [2]}")  # which times it cannot be read
    page.evaluate(PUT, [old])
    page.click("text=Watch a folder")
    page.wait_for_selector("text=gear-1.png cannot be read: no gear-1.png")
    page.evaluate(PUT, new)
    _until(page, "document.querySelectorAll('.strip-list li').length === 3")
    assert sorted(one["source"] for one in page.mock.inspections) == [name for name, _ in new]
    page.wait_for_selector("text=Also inspect the 1 that was there")
    assert page.locator("text=cannot be read").count() == 0


@slow
def test_what_a_share_held_before_it_dropped_is_inspected_when_it_is_back(opened, photographs):
    page = opened(past=0, script=SHARE)
    _band(page, "ready")
    page.click("text=Watch a folder")
    page.wait_for_selector("text=Watching share")
    page.evaluate("share.away = true")
    page.evaluate(PUT, _contents(photographs, "gear-1.png"))
    _until(page, "share.reads['gear-1.png'] > 1")  # once to know it and once more to see it stand still
    page.wait_for_selector("text=the share is away")
    page.evaluate("share.away = false")
    assert _band(page, "good") == "Good"
    page.wait_for_selector("text=the share is away", state="detached")


@slow
def test_what_others_send_is_followed(opened):
    page = opened(past=2)
    _band(page, "ready")
    page.check("text=Follow")
    page.wait_for_timeout(1500)
    page.mock.inspect("gear-bad-2.png")
    assert _band(page, "defective") == "DEFECTIVE"


@slow
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_axe_finds_no_serious_fault(opened, photographs, dark):
    axe = os.environ.get("MOLEFLOW_AXE")
    if not axe:
        pytest.skip("MOLEFLOW_AXE does not name axe.min.js of the npm package axe-core")
    page = opened(past=30, dark=dark, lesson_seconds=0.5)
    source = Path(axe).read_text("utf-8")

    def check(where):
        page.wait_for_timeout(700)
        # Chromium runs this for the debugger, past the page's policy.
        found = page.evaluate(source + "; axe.run().then(({violations}) => violations.map((v) => "
                              "[v.id, v.impact, v.nodes.map((n) => n.html.slice(0, 160))]))")  # fmt: skip
        assert [one for one in found if one[1] in ("serious", "critical")] == [], where

    _band(page, "ready")
    check("ready")
    for status, file in {"good": "gear-1.png", **LOUD}.items():
        _inspect(page, photographs(file))
        _band(page, status)
        check(status)
    for view in VIEWS:
        page.goto(page.base + view)
        check(view)
    page.set_input_files("#choose-photographs", photographs("wood-1.png", "wood-2.png"))
    page.click("text=Start learning")
    page.wait_for_selector(".review")
    check("review")
    page.keyboard.press("?")
    page.wait_for_selector("dialog[open]")
    check("help")
