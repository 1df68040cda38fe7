"""What the page does with its pictures and drawings is what the Python API does with the same cues."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from diffup import DiffUp, Support, Text
from diffup.data.dataset import Dataset
from diffup.demo.cards import ANCHORS, card, failed, heat, waiting
from diffup.demo.examples import EXAMPLES, build
from diffup.demo.session import Backbones, Session
from diffup.errors import UserError
from tests.helpers.fuzzing import fuzz, junk
from tests.helpers.trained import example

BOX = {"tool": "box", "size": 1, "points": [[20, 30], [70, 90]]}
OUTLINE = {"tool": "outline", "size": 1, "points": [[20, 30], [70, 30], [70, 90], [20, 90]]}
LINE = {"tool": "scribble", "size": 5, "points": [[30, 40], [60, 80]]}


@pytest.fixture
def session(model: DiffUp) -> Session:
    names = ("tiny_resnet", "tiny_regnet", "tiny_clip")
    return Session(Backbones(model, names, model.swap_backbone), "tiny_resnet")


@pytest.fixture
def task(session: Session, data: Dataset) -> tuple[dict[str, Any], dict[str, Any]]:
    """A support that nothing is drawn on, and a query, as the canvases send them."""
    query, support, _ = example(data)
    return tuple({"pictures": [{"token": session.pictures.add(image).token}]} for image in (support, query))  # type: ignore[return-value]


def drawn(canvas: dict[str, Any], *strokes: Any) -> dict[str, Any]:
    return {"pictures": [{**picture, "strokes": list(strokes)} for picture in canvas["pictures"]]}


@pytest.mark.parametrize("backbone", ["tiny_resnet", "tiny_regnet"])
@pytest.mark.parametrize("kind", ["box", "mask", "scribble", "text"])
def test_the_page_gives_what_the_api_gives(
    session: Session, task: Any, data: Dataset, model: DiffUp, backbone: str, kind: str
) -> None:
    query, support, _ = example(data)
    strokes = {"box": [BOX], "mask": [OUTLINE], "scribble": [LINE], "text": []}[kind]
    text = "striped red ring" if kind == "text" else ""
    supports = drawn(task[0], *strokes) if strokes else None
    outcome = session.segment(supports, task[1], text, "plain green star, ", backbone)
    other = model.swap_backbone(backbone) if backbone != "tiny_resnet" else model
    ((_, kinds),) = session.drawn(supports) if supports else ((None, {}),)
    cues = [Support(support, annotation, name) for name, annotation in kinds.items()]
    expected = other.segment(query, [*cues, *([Text(text, ("plain green star",))] if text else [])])
    assert (outcome.result.mask == expected.mask).all()
    assert outcome.result.predicted_iou == expected.predicted_iou
    assert outcome.backbone == backbone
    assert outcome.cues == ("text “striped red ring”" if text else f"1 × {kind}")


def test_pictures_are_encoded_once_per_backbone(session: Session, task: Any) -> None:
    supports = drawn(task[0], BOX)
    encoded = [session.segment(supports, task[1], "", "", name).encoded for name in ("tiny_resnet", "tiny_regnet") * 2]
    assert encoded == [2, 2, 0, 0]
    again = session.segment(drawn(task[0], LINE), task[1], "", "", "tiny_resnet")
    assert again.encoded == 0 and again.decode_seconds > 0


def test_all_that_is_drawn_on_all_supports_counts(session: Session, task: Any, data: Dataset) -> None:
    two = {"pictures": drawn(task[0], BOX, BOX, LINE)["pictures"] + drawn(task[1], OUTLINE)["pictures"]}
    assert session.segment(two, task[1], "", "", "tiny_resnet").cues == "1 × scribble, 1 × box, 1 × mask"


def test_backbones_are_loaded_when_chosen_and_the_oldest_goes(model: DiffUp) -> None:
    loaded: list[str] = []

    def load(name: str) -> DiffUp:
        loaded.append(name)
        return model

    backbones = Backbones(model, ("a", "b", "c"), load, keep=2)
    for name in ("a", "b", "b", "c", "b", "a"):
        backbones.get(name)
    assert loaded == ["b", "c", "a"]
    for wrong in ("d", "", None, ["a"]):
        with pytest.raises(UserError, match="one of a, b, c"):
            backbones.get(wrong)


def test_a_backbone_without_weights_is_told_and_others_still_work(session: Session, task: Any) -> None:
    names = ("tiny_resnet", "resnet50")
    first = session.backbones.get("tiny_resnet")
    broken = Session(Backbones(first, names, first.swap_backbone), "tiny_resnet", session.pictures)
    with pytest.raises(UserError, match="resnet50"):
        broken.segment(drawn(task[0], BOX), task[1], "", "", "resnet50")
    assert broken.segment(drawn(task[0], BOX), task[1], "", "", "tiny_resnet").backbone == "tiny_resnet"


def test_what_is_missing_is_said(session: Session, task: Any) -> None:
    supports, query = task
    cases = [
        ((drawn(supports, BOX), None), "add a query picture"), ((None, query), "draw on a support picture, or write"),
        ((supports, query), "nothing is drawn on support 1"), ((drawn(supports, BOX), {"pictures": [{}]}), "no longer"),
        ((drawn(supports, {"tool": "?"}), query), "draw it again"), (({"pictures": 3}, query), "load it again"),
        (({"pictures": supports["pictures"] * 11}, query), "at most 10"),
    ]  # fmt: skip
    for canvases, message in cases:
        with pytest.raises(UserError, match=message):
            session.segment(*canvases, "", "", "tiny_resnet")


def test_a_class_name_needs_a_model_that_reads_text(results: Path, task: Any, session: Session) -> None:
    from tests.helpers.trained import CELL

    blind = DiffUp.load(results / CELL.key(), companion="")
    silent = Session(Backbones(blind, ("tiny_resnet",), blind.swap_backbone), "tiny_resnet", session.pictures)
    with pytest.raises(UserError, match=r"reads no text.*there is none here, but CLIP does"):
        silent.segment(drawn(task[0], BOX), task[1], "ring", "", "tiny_resnet")
    two = Session(Backbones(blind, ("tiny_resnet", "tiny_clip"), blind.swap_backbone), "tiny_resnet", session.pictures)
    with pytest.raises(UserError, match=r"choose one that does: tiny_clip$"):
        two.segment(drawn(task[0], BOX), task[1], "ring", "", "tiny_resnet")
    with pytest.raises(UserError, match=r"draw on a support picture$"):
        silent.segment(None, task[1], "", "", "tiny_resnet")


@pytest.mark.slow
def test_whatever_the_page_sends_is_segmented_or_refused(session: Session, task: Any) -> None:
    canvas = st.sampled_from([*task, drawn(task[0], BOX), drawn(task[0], OUTLINE, LINE)]) | junk
    nested = st.fixed_dictionaries({"pictures": st.lists(canvas | junk, max_size=2) | junk})
    text = st.sampled_from(["", "ring"]) | junk

    @fuzz(200)
    @given(canvas | nested, canvas | nested, text, text, st.sampled_from(["tiny_resnet", "tiny_regnet"]) | junk)
    def one(supports: Any, query: Any, name: Any, others: Any, backbone: Any) -> None:
        try:
            outcome = session.segment(supports, query, name, others, backbone)
        except UserError as error:
            assert str(error) and "\n" not in str(error)
            return
        assert outcome.result.mask.shape == outcome.query.size

    one()


def test_examples_can_be_segmented_as_they_are(session: Session) -> None:
    for task in EXAMPLES:
        supports, query = build(task, session.pictures)
        outcome = session.segment(supports, query, "", "", "tiny_resnet")
        kinds = [{"outline": "mask"}.get(tool, tool) for tool in task.tools]
        assert outcome.cues == f"{len(kinds)} × {kinds[0]}"
        again, _ = build(task, session.pictures)
        assert again["pictures"][0]["strokes"] == supports["pictures"][0]["strokes"]


class Page(HTMLParser):
    """Tags and attributes, and that every tag is closed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, dict(attrs)))
        if tag != "img":
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_a_card_shows_figures_and_pictures_and_escapes_names(session: Session, task: Any) -> None:
    outcome = session.segment(drawn(task[0], BOX), task[1], "<b>ring</b>", "", "tiny_regnet")
    text = card(outcome, "tiny_resnet")
    page = Page(text)
    assert "<b>ring</b>" not in text and "&lt;b&gt;ring" in text
    assert [a["data-view"] for tag, a in page.seen if tag == "figure"] == ["mask", "mean", "deviation", "probability"]
    assert all((a["src"] or "").startswith("data:image/") and a["alt"] for tag, a in page.seen if tag == "img")
    assert f"<dd>{outcome.result.predicted_iou:.2f}</dd>" in text and "never seen in training" in text
    assert "trained on it" in card(outcome, "tiny_regnet")
    assert not re.search(r'(?:src|href)="(?!data:)', text)


def test_a_message_is_text_not_html() -> None:
    for text in (failed("<x>", "no <script>"), waiting("<script>")):
        Page(text)
        assert "<script>" not in text and "<x>" not in text


def test_heat_goes_from_dark_to_bright_and_holds_its_range() -> None:
    colours = heat(np.array([[-1.0, 0.0, 0.25, 0.5, 9.0]]), 0.5)[0]
    assert colours[0].tolist() == colours[1].tolist() == list(ANCHORS[0])
    assert colours[3].tolist() == colours[4].tolist() == list(ANCHORS[-1])
    sums = heat(np.linspace(0, 1, 50)[None], 1.0)[0].sum(1).astype(int)
    assert sums[-1] > sums[25] > sums[0]
