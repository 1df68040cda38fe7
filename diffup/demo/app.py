"""The Gradio page: two canvases, class name, two backbones, and a card for what each of them makes of the query."""

from __future__ import annotations

from functools import partial
from html import escape
from importlib.resources import files
from typing import Any

import gradio as gr

from diffup.backbones.registry import has_text_encoder
from diffup.demo.cards import VIEWS, card, failed, waiting
from diffup.demo.examples import EXAMPLES, Example, build
from diffup.demo.session import Session
from diffup.errors import UserError

PAGE = files("diffup.demo") / "page"
SHOWN = ["mask", "mean", "deviation"]  # at the start
START = "Add a support and draw on it, add a query, and press Segment. Or take an example."
HINTS = {"a": START, "b": "What the second backbone makes of the same pictures comes here."}  # by card
TOLD = (
    "Prior mean: how much a pixel looks like the object before the decoder draws. Deviation: how uncertain it is. "
    "Encode: the backbone's time for new pictures. Decode: that from features to the mask."
)
# Which pictures the cards show is a matter of the page alone: no call to the server.
SHOW = """(chosen) => {
  const views = %s, body = document.body.classList;
  views.forEach((view) => body.toggle("du-hide-" + view, !chosen.includes(view)));
}"""


def css() -> str:
    """Style sheet of the page."""
    return (PAGE / "style.css").read_text(encoding="utf-8")


def theme() -> gr.themes.Base:
    """Gradio's plain theme with fonts that every system has: nothing is fetched from elsewhere."""
    fonts, mono = ["system-ui", "sans-serif"], ["ui-monospace", "monospace"]
    return gr.themes.Default(font=fonts, font_mono=mono, primary_hue="blue")


def make_page(session: Session, checkpoint: str) -> gr.Blocks:
    """The page of a session.

    Args:
        session: what it works on.
        checkpoint: its name, for the head of the page.
    """
    names = session.backbones.names
    with gr.Blocks(title="DiffUp", analytics_enabled=False, fill_width=True) as page:
        _html(_head(session, checkpoint))
        with gr.Row(elem_id="du-examples"):
            _html("<b>Examples</b>")
            buttons = [gr.Button(example.label, size="sm", min_width=140) for example in EXAMPLES]
        with gr.Row():
            with gr.Column(min_width=320):
                _html("<h2>1. Support: what to look for</h2>")
                supports = _canvas(session, draw=True)
            with gr.Column(min_width=320):
                _html("<h2>2. Query: where to look</h2>")
                query = _canvas(session, draw=False)
                with gr.Row(visible=_reads_text(session)):
                    class_name = gr.Textbox(label="Class name (text cue, optional)", max_lines=1, max_length=200)
                    others = gr.Textbox(label="Other names in the picture, by commas", max_lines=1, max_length=1000)
        _html("<h2>3. Segment, and swap the backbone: same decoder, no re-training</h2>")
        with gr.Row(elem_id="du-choose"):
            chosen = [
                gr.Dropdown(names, value=names[0], label="Backbone", elem_id="du-backbone-a", min_width=240),
                gr.Dropdown(
                    names, value=names[1 % len(names)], label="Compared with", elem_id="du-backbone-b", min_width=240
                ),
            ]
            options = [(label, view) for view, label in VIEWS.items()]
            views = gr.CheckboxGroup(options, value=SHOWN, label="Show", elem_id="du-show", min_width=420)
            go = gr.Button("Segment", variant="primary", elem_id="du-segment", scale=0, min_width=160)
        _html(f'<p class="du-told">{TOLD}</p>')
        with gr.Row():
            cards = []
            for name, hint in HINTS.items():
                with gr.Column(min_width=320):
                    cards.append(_html(waiting(hint), elem_id=f"du-card-{name}", min_height=120))
        inputs = [supports, query, class_name, others]
        private: dict[str, Any] = {"api_visibility": "private"}
        one_at_a_time: dict[str, Any] = {"concurrency_id": "segment", "concurrency_limit": 1, **private}
        loaded = [
            button.click(partial(_example, session, example), None, inputs, **private)
            for button, example in zip(buttons, EXAMPLES)
        ]
        for backbone, shown, hint in zip(chosen, cards, HINTS.values()):
            call = partial(_segment, session)
            gr.on([go.click, class_name.submit, others.submit], call, [*inputs, backbone], shown, **one_at_a_time)
            for event in loaded:
                event.success(call, [*inputs, backbone], shown, **one_at_a_time)
            backbone.input(partial(_swap, session, hint), [*inputs, backbone], shown, **one_at_a_time)
        views.change(None, [views], None, js=SHOW % list(VIEWS), **private)
        page.load(None, [views], None, js=SHOW % list(VIEWS), **private)
    return page


def _head(session: Session, checkpoint: str) -> str:
    trained_on, rest = escape(session.trained_on), len(session.backbones.names) - 1
    more = f"; {rest} more to swap in" if rest else ""
    return (
        '<div class="du-head"><h1>DiffUp</h1><p>Few-shot segmentation that keeps what it learned when the backbone '
        f"changes. Checkpoint <b>{escape(checkpoint)}</b>, trained on {trained_on}{more}.</p></div>"
    )


def _html(text: str, **options: Any) -> gr.HTML:
    return gr.HTML(text, apply_default_css=False, **options)


def _canvas(session: Session, *, draw: bool) -> gr.HTML:
    prompt = "Support picture" if draw else "Query picture"
    keys = ": arrow keys move the pen, Space puts it down and lifts it, 1 to 5 choose the tool, Ctrl+Z undoes"
    return gr.HTML(
        None,
        html_template=(PAGE / "canvas.html").read_text(encoding="utf-8"),
        js_on_load=(PAGE / "canvas.js").read_text(encoding="utf-8"),
        apply_default_css=False,
        server_functions=[_uploader(session)],
        elem_id="du-supports" if draw else "du-query",
        label=prompt + keys if draw else prompt,
        draw="true" if draw else "false",
        prompt=prompt,
    )


def _reads_text(session: Session) -> bool:
    first = session.backbones.get(session.backbones.names[0])
    return first.encoder.text_model is not None or any(map(has_text_encoder, session.backbones.names))


def _segment(session: Session, supports: Any, query: Any, class_name: str, others: str, backbone: str) -> str:
    """The card of a backbone."""
    try:
        return card(session.segment(supports, query, class_name, others, backbone), session.trained_on)
    except UserError as error:
        return failed(backbone, str(error))


def _swap(session: Session, hint: str, supports: Any, query: Any, class_name: str, others: str, backbone: str) -> str:
    """The card of a backbone that was just chosen; with no pictures yet there is nothing to do but to give a hint."""
    empty = not (query or {}).get("pictures") or not ((supports or {}).get("pictures") or class_name)
    return waiting(hint) if empty else _segment(session, supports, query, class_name, others, backbone)


def _example(session: Session, example: Example) -> tuple[Any, Any, str, str]:
    return (*build(example, session.pictures), "", "")


def _uploader(session: Session) -> Any:
    """The function that the canvas calls with a file; Gradio marks it, which a method can't be."""

    def upload(payload: Any) -> dict[str, Any]:
        return session.pictures.upload(payload)

    return upload
