"""The page in a Chromium: what mouse, finger and keys draw is segmented as by the Python API, on any backbone."""

from __future__ import annotations

import base64
import io
import json
import math
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from diffup import DiffUp, Support, Text
from diffup.data.dataset import Dataset
from diffup.demo.drawing import Stroke, annotations_of
from tests.helpers.browser import Browser
from tests.helpers.demos import Demo, running
from tests.helpers.fuzzing import NASTY
from tests.helpers.trained import CELL, example

pytestmark = [pytest.mark.browser, pytest.mark.slow]
CANVAS = "#du-supports canvas"
Place = tuple[float, float]


@pytest.fixture(scope="module")
def demo(results: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Demo]:
    with running(str(results / CELL.key()), tmp_path_factory.mktemp("demo")) as started:
        yield started


@pytest.fixture(scope="module")
def photos(data: Dataset, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Files of a support and a query."""
    query, support, _ = example(data)
    folder = tmp_path_factory.mktemp("photos")
    for name, pixels in (("support", support), ("query", query)):
        Image.fromarray(pixels).save(folder / f"{name}.png")
    return folder / "support.png", folder / "query.png"


@pytest.fixture
def browser(demo: Demo, require_program: Callable[[str], str]) -> Iterator[Browser]:
    """Its page is open and, in the end, has complained of nothing and asked for nothing elsewhere."""
    with Browser(require_program("chromium")) as started:
        visit(started, demo)
        yield started
        assert started.errors == []
        assert all(url.startswith((demo.address, "data:", "blob:")) for url in started.requests)
    assert demo.errors() == ""


def visit(browser: Browser, demo: Demo, *, width: int = 1400, phone: bool = False) -> None:
    browser.open(demo.address, width=width, height=844 if phone else 950, phone=phone)
    browser.wait("document.querySelectorAll('.du-canvas').length === 2 && document.querySelector('#du-segment')")


def add(browser: Browser, where: str, *paths: Path, total: int | None = None) -> None:
    """Choose files in a canvas, and wait until it shows the last."""
    browser.upload(f"#{where} input[type=file]", *paths)
    shown = f"document.querySelector('#{where} canvas')"
    browser.wait(f"!{shown}.hidden && {shown}.width > 0 && {shown}.clientWidth > 0")
    if total:
        browser.wait(f"document.querySelectorAll('#{where} .du-thumb').length === {total}")


def places(browser: Browser, fractions: list[Place], size: tuple[int, int]) -> tuple[list[Place], tuple[Place, ...]]:
    """Places in the window for fractions of the canvas, and where they are in the picture of `size`, to a tenth."""
    browser.hover(CANVAS)
    box = browser.run(f"(() => {{ const b = document.querySelector('{CANVAS}').getBoundingClientRect(); "
                      "return [b.left, b.top, b.width, b.height]; })()")  # fmt: skip
    window = [(round(box[0] + x * box[2]), round(box[1] + y * box[3])) for x, y in fractions]
    scale = size[1] / box[2], size[0] / box[3]
    tenth = [tuple(math.floor(10 * (at[i] - box[i]) * scale[i] + 0.5) / 10 for i in (0, 1)) for at in window]
    return window, tuple(tenth)


def segment(browser: Browser) -> None:
    """Press Segment and wait for both results; the old ones are taken away first."""
    browser.run("document.querySelectorAll('.du-card').forEach((each) => each.setAttribute('data-old', ''))")
    browser.click("#du-segment")
    browser.wait("document.querySelectorAll('.du-card:not([data-old])').length === 2")


def mask(browser: Browser, card: str) -> NDArray[np.bool_]:
    """The mask that a card offers to save."""
    address = browser.run(f"document.querySelector('#du-card-{card} .du-save').href")
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(address.split(",")[1])))) > 127


def choose(browser: Browser, card: str, name: str) -> None:
    """Take a backbone from a list, with the mouse, and wait for what it makes of the query."""
    browser.click(f"#du-backbone-{card} input")
    browser.wait(f"[...document.querySelectorAll('[role=option]')].some((o) => o.textContent.includes('{name}'))")
    browser.run(f"[...document.querySelectorAll('[role=option]')].forEach((o) => "
                f"o.textContent.includes('{name}') && o.setAttribute('data-wanted', ''))")  # fmt: skip
    browser.click("[role=option][data-wanted]")
    browser.wait(f"document.querySelector('#du-card-{card} .du-card').dataset.backbone === '{name}'")


def text_of(browser: Browser, selector: str) -> str:
    return str(browser.run(f"document.querySelector({json.dumps(selector)}).innerText"))


def type_into(browser: Browser, label: str, text: str) -> None:
    browser.run(f"[...document.querySelectorAll('label')].find((l) => l.textContent.includes('{label}'))"
                ".querySelector('input, textarea').focus()")  # fmt: skip
    browser.press(*text, "Tab")


SCRIBBLE = [(0.3, 0.3), (0.4, 0.35), (0.5, 0.5), (0.6, 0.55)]
OUTLINE = [(0.25, 0.25), (0.6, 0.2), (0.75, 0.5), (0.6, 0.8), (0.3, 0.7)]
DRAWINGS: dict[str, tuple[str, list[Place]]] = {
    "scribble": ("scribble", SCRIBBLE), "box": ("box", [(0.2, 0.3), (0.4, 0.5), (0.7, 0.8)]),
    "outline": ("mask", OUTLINE), "brush": ("mask", SCRIBBLE),
}  # fmt: skip


def test_mouse_drawings_are_segmented_as_the_api_does_on_every_backbone(
    browser: Browser, photos: tuple[Path, Path], model: DiffUp, data: Dataset, tmp_path: Path
) -> None:
    add(browser, "du-supports", photos[0])
    add(browser, "du-query", photos[1])
    query, support, _ = example(data)
    size, models = support.shape[:2], {"tiny_resnet": model, "tiny_regnet": model.swap_backbone("tiny_regnet")}
    pen = max(2, round(min(size) * 3 / 100))
    seen = []
    for tool, (kind, fractions) in DRAWINGS.items():
        browser.click("#du-supports [data-do=clear]")
        browser.click(f"#du-supports [data-tool={tool}]")
        window, points = places(browser, fractions, size)
        browser.drag(window)
        segment(browser)
        corners = (points[0], points[-1]) if tool == "box" else points
        drawn = annotations_of([Stroke(tool, pen, corners)], size)[kind]
        for card, (name, other) in zip("ab", models.items()):
            expected = other.segment(query, [Support(support, drawn, kind)])
            shown = mask(browser, card)
            assert shown.shape == query.shape[:2] and (shown == expected.mask).all(), (tool, name)
            assert f"{expected.predicted_iou:.2f}" in text_of(browser, f"#du-card-{card} dl")
            seen.append(shown)
    assert len({found.tobytes() for found in seen}) > 2, "all results are the same"
    choose(browser, "b", "tiny_clip")
    swapped = model.swap_backbone("tiny_clip").segment(query, [Support(support, drawn, kind)])
    assert (mask(browser, "b") == swapped.mask).all()
    assert "never seen in training" in text_of(browser, "#du-card-b") and "ms" in text_of(browser, "#du-card-b dl")
    assert "trained on it" in text_of(browser, "#du-card-a")
    browser.screenshot(tmp_path / "desktop.png", whole=True)


def test_a_class_name_is_a_cue(browser: Browser, photos: tuple[Path, Path], model: DiffUp, data: Dataset) -> None:
    add(browser, "du-query", photos[1])
    type_into(browser, "Class name", "plain green star")
    type_into(browser, "Other names", "dotted blue square, plain cyan heart")
    segment(browser)
    cue = Text("plain green star", ("dotted blue square", "plain cyan heart"))
    assert (mask(browser, "a") == model.segment(example(data)[0], [cue]).mask).all()


def test_several_supports_are_kept_apart(
    browser: Browser, photos: tuple[Path, Path], model: DiffUp, data: Dataset
) -> None:
    add(browser, "du-supports", *photos, total=2)
    add(browser, "du-query", photos[1])
    size = example(data)[0].shape[:2]
    browser.click("#du-supports [data-tool=box]")
    window, second = places(browser, [(0.2, 0.2), (0.5, 0.6)], size)
    browser.drag(window)
    segment(browser)
    assert "nothing is drawn on support 1" in text_of(browser, "#du-card-a")
    browser.click("#du-supports .du-thumb button")
    size = example(data)[1].shape[:2]
    window, first = places(browser, [(0.4, 0.3), (0.9, 0.8)], size)
    browser.drag(window)
    segment(browser)
    query, support, _ = example(data)
    cues = [
        Support(image, annotations_of([Stroke("box", 1, corners)], image.shape[:2])["box"], "box")
        for image, corners in ((support, first), (query, second))
    ]
    assert (mask(browser, "a") == model.segment(query, cues).mask).all()
    browser.click("#du-supports .du-remove")
    browser.wait("document.querySelectorAll('#du-supports .du-thumb').length === 1")
    assert browser.run("document.querySelector('#du-supports .du-note').textContent") == "Drawn: 1 × box."


def test_all_can_be_done_with_keys(browser: Browser, photos: tuple[Path, Path]) -> None:
    add(browser, "du-supports", photos[0])
    add(browser, "du-query", photos[1])

    def tab_to(condition: str) -> None:
        for _ in range(80):
            if browser.run(condition):
                return
            browser.press("Tab")
        raise AssertionError(f"the Tab key does not lead to {condition}")

    tab_to(f"document.activeElement === document.querySelector('{CANVAS}')")
    browser.press("2", " ", *["ArrowRight"] * 8, *["ArrowDown"] * 6, "Enter")
    assert text_of(browser, "#du-supports .du-note") == "Drawn: 1 × box."
    browser.press("1", " ", *["ArrowLeft"] * 5, "Escape")
    assert text_of(browser, "#du-supports .du-note") != "Drawn: 1 × scribble, 1 × box."
    browser.press("1", " ", *["ArrowLeft"] * 5, " ", "Backspace", "3", " ", *["ArrowUp"] * 5, *["ArrowLeft"] * 5, " ")
    assert text_of(browser, "#du-supports .du-note") == "Drawn: 1 × box, 1 × outline."
    tab_to("document.activeElement.closest('#du-backbone-b') && document.activeElement.tagName === 'INPUT'")
    browser.press("ArrowDown", "ArrowDown", "Enter")
    tab_to("document.activeElement === document.querySelector('#du-segment')")
    browser.press("Enter")
    browser.wait("document.querySelectorAll('.du-views').length === 2")
    assert "1 × box" in text_of(browser, "#du-card-a") and "1 × mask" in text_of(browser, "#du-card-b")


def test_a_phone_draws_with_a_finger_and_nothing_is_too_wide(
    browser: Browser, demo: Demo, photos: tuple[Path, Path], model: DiffUp, data: Dataset, tmp_path: Path
) -> None:
    visit(browser, demo, width=390, phone=True)
    add(browser, "du-supports", photos[0])
    add(browser, "du-query", photos[1])
    query, support, _ = example(data)
    window, points = places(browser, SCRIBBLE, support.shape[:2])
    browser.swipe(window)
    segment(browser)
    drawn = annotations_of(
        [Stroke("scribble", max(2, round(min(support.shape[:2]) * 3 / 100)), points)], support.shape[:2]
    )
    assert (mask(browser, "a") == model.segment(query, [Support(support, drawn["scribble"], "scribble")]).mask).all()
    assert browser.run("document.documentElement.scrollWidth") <= 390
    parts = "[...document.querySelectorAll('.du-card *, .du-canvas *')]"
    wide = f"{parts}.filter((e) => e.getBoundingClientRect().right > 391).map((e) => e.className || e.tagName)"
    assert browser.run(wide) == []
    arrow = "(e) => e.closest('.wrap').querySelector('svg').getBoundingClientRect().left"
    names = "[...document.querySelectorAll('#du-choose input[role=combobox]')]"
    end = "(e) => e.getBoundingClientRect().right - parseFloat(getComputedStyle(e).paddingRight)"
    assert browser.run(f"{names}.length === 2 && {names}.every((e) => ({end})(e) <= ({arrow})(e))")
    buttons = "[...document.querySelectorAll('#du-supports .du-tools button, #du-segment')].map((e) => e.offsetHeight)"
    assert min(browser.run(buttons)) >= 40, "too small for a finger"
    browser.screenshot(tmp_path / "phone.png", whole=True)


def test_pictures_to_show_are_chosen_without_the_server(browser: Browser) -> None:
    browser.click("#du-examples button")
    browser.wait("document.querySelectorAll('.du-views').length === 2")
    shown = (
        "[...document.querySelectorAll('#du-card-a figure')].filter((f) => f.offsetWidth).map((f) => f.dataset.view)"
    )
    assert browser.run(shown) == ["mask", "mean", "deviation"]
    asked = len(browser.requests)
    for label, left in (("Deviation", ["mask", "mean"]), ("Probability", ["mask", "mean", "probability"])):
        browser.run(f"[...document.querySelectorAll('#du-show label')].find((l) => l.textContent.includes('{label}'))"
                    ".querySelector('input').click()")  # fmt: skip
        browser.wait(f"JSON.stringify({shown}) === JSON.stringify({json.dumps(left)})")
    assert [url for url in browser.requests[asked:] if "queue/join" in url] == []


def test_a_file_that_is_no_picture_is_a_message(browser: Browser, photos: tuple[Path, Path], tmp_path: Path) -> None:
    for name, content in (("empty.png", b""), ("cut.png", photos[0].read_bytes()[:200]), ("a.svg", b"<svg/>")):
        (tmp_path / name).write_bytes(content)
        browser.upload("#du-query input[type=file]", tmp_path / name)
        browser.wait(f"document.querySelector('#du-query .du-bad')?.textContent.startsWith('{name}: ')")
    segment(browser)
    assert "add a query picture" in text_of(browser, "#du-card-a")
    (tmp_path / "large.png").write_bytes(b"\0" * 30_000_001)
    browser.upload("#du-query input[type=file]", tmp_path / "large.png")
    browser.wait("document.querySelector('#du-query .du-bad').textContent.includes('30 MB')")


def test_nothing_is_kept_in_files_or_in_the_browser(
    browser: Browser, demo: Demo, photos: tuple[Path, Path], tmp_path: Path
) -> None:
    add(browser, "du-supports", photos[0])
    add(browser, "du-query", photos[1])
    browser.drag(places(browser, SCRIBBLE, (160, 160))[0])
    segment(browser)
    assert sorted(path.name for path in demo.folder.rglob("*") if path.is_file()) == ["errors.txt"]
    visit(browser, demo)
    assert browser.run("document.querySelector('#du-supports canvas').hidden")
    kept: Any = browser.run("indexedDB.databases().then((all) => [all.length, localStorage.length, document.cookie])")
    assert kept[0] == 0 and kept[2] == "", kept


def post(address: str, content: bytes, kind: str) -> int:
    """The status that a request is answered with."""
    request = urllib.request.Request(address, content, {"Content-Type": kind})
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            assert json.loads(answer.read())["error"]
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code


def test_requests_past_the_page_leave_no_file_and_no_traceback(demo: Demo) -> None:
    """Values of any kind sent to the canvas's function, and files sent to Gradio's own upload, which the page lacks."""
    with urllib.request.urlopen(f"{demo.address}config", timeout=60) as answer:
        parts = json.loads(answer.read())["components"]
    (canvas,) = [part["id"] for part in parts if part["props"].get("elem_id") == "du-query"]
    call = {"component_id": canvas, "fn_name": "upload", "session_hash": "tests"}
    sendable = [value for value in NASTY if "\\ud800" not in repr(value) and value != 10**400]
    for value in [*sendable, *({"name": value, "data": value} for value in sendable)]:
        content = json.dumps({**call, "data": value}).encode()
        assert post(f"{demo.address}gradio_api/component_server", content, "application/json") == 200, value
    form = (
        b'--x\r\nContent-Disposition: form-data; name="files"; filename="a.png"\r\n\r\n' + b"1" * 99 + b"\r\n--x--\r\n"
    )
    assert post(f"{demo.address}gradio_api/upload", form, "multipart/form-data; boundary=x") in range(400, 500)
    assert demo.errors() == ""
    assert sorted(path.name for path in demo.folder.rglob("*") if path.is_file()) == ["errors.txt"]


def test_the_page_is_ready_in_time(demo: Demo) -> None:
    assert demo.seconds < 120, "far above the bar of 15 s, which a busy machine can't be held to"
