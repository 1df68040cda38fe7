"""``diffup predict`` at work: the model loaded, every query segmented and saved, what is finished left alone."""

from __future__ import annotations

import dataclasses
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from diffup import DiffUp, __version__
from diffup.backbones.load import usable_device
from diffup.backbones.weights import state_hash
from diffup.commands.predict_inputs import FILES, NUMBERS, Query, Shown, find_queries, numbers
from diffup.commands.predict_options import Predict
from diffup.commands.predict_outputs import Output, checksum, claim, key_of
from diffup.data.images import read_content
from diffup.errors import UserError
from diffup.models.checkpoint import find_checkpoint
from diffup.support import Cue, Support, Text, to_rgb

UNREADABLE, INTERRUPTED = 1, 130  # exit codes


def run(asked: Predict, shown: Sequence[Shown], queries: Sequence[Query]) -> int:
    """Segment the queries; returns the exit code. What can be checked without the model is checked first.

    Raises:
        UserError: supports, text or bank that can't be used, or a folder that can't be written to.
    """
    began = time.perf_counter()
    supports = [read_support(one) for one in shown]
    bank = [] if asked.bank is None else find_queries([str(asked.bank)])
    pictures = [to_rgb(picture.path, "--bank") for picture in bank]
    model = load(asked)
    if asked.text and model.encoder.text_model is None:
        raise UserError(
            f"--text needs a model that reads text, and backbone {model.encoder.backbone.name} is none; name one with "
            "--companion, such as open_clip:ViT-B-16/openai"
        )
    model = model.calibrate(pictures) if bank else model
    features = model.encode([pixels for pixels, _ in supports])
    cues: list[Cue] = [dataclasses.replace(s, image=f) for (_, s), f in zip(supports, features, strict=True)]
    cues += [Text(asked.text)] if asked.text else []
    request = request_of(model, supports, asked)
    inputs = [Path(path).expanduser() for one in shown for path in one.files()] + [picture.path for picture in bank]
    outputs = claim(asked.out, queries, request, inputs, asked.overwrite)
    facts = facts_of(model, shown, asked)
    try:
        return Run(asked, model, cues, request, facts, time.perf_counter() - began).all(outputs)
    except KeyboardInterrupt:
        print("interrupted; the same command goes on with what is left", file=sys.stderr)
        return INTERRUPTED


def read_support(shown: Shown) -> tuple[NDArray[np.uint8], Support]:
    """The picture of a support of the command line, and its annotation, read and checked.

    Raises:
        UserError: either can't be read, or they don't fit.
    """
    pixels = to_rgb(shown.path, "--support")
    kind = shown.kind
    try:
        given: Any = shown.annotation if kind in FILES else numbers(shown.annotation, NUMBERS[kind])
        drawn = Support(pixels, given, kind).drawn((pixels.shape[0], pixels.shape[1]))
    except UserError as error:
        swapped = kind in FILES and len(np.unique(pixels)) <= 2
        hint = f"; --support {shown.path} has two values, as a mask: are the two files swapped?" if swapped else ""
        raise UserError(f"--{kind} of {shown.path}: {error}{hint}") from error
    if kind in FILES:  # as it was read, not to read it again for each query
        given = drawn == 1 if kind == "scribble" else drawn
    return pixels, Support(pixels, given, kind)


def load(asked: Predict) -> DiffUp:
    """The checkpoint on its backbone. The seam at which tests put a model that is loaded once.

    Raises:
        UserError: no such checkpoint, or a backbone or device that is not available.
    """
    find_checkpoint(asked.checkpoint)
    device = usable_device(_device() if asked.device == "auto" else asked.device)
    try:
        return DiffUp.from_pretrained(
            asked.checkpoint,
            asked.backbone,
            weights_dir=asked.weights_dir,
            device=device,
            companion=asked.companion if asked.text else "",
        )
    except UserError as error:
        hint = "" if "--weights-dir" in str(error) else ", --weights-dir DIR names a folder that holds its weights"
        raise UserError(f"{error}; --backbone NAME chooses another backbone{hint}") from error


def _device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


def request_of(model: DiffUp, supports: Sequence[tuple[NDArray[np.uint8], Support]], asked: Predict) -> dict[str, Any]:
    """All that decides the result of a query."""
    net = json.dumps([state_hash(model.net), dataclasses.asdict(model.net.config)], sort_keys=True)
    shown = []
    for pixels, support in supports:
        drawn = support.drawn((pixels.shape[0], pixels.shape[1]))
        shown.append(f"{support.kind} {checksum(drawn.tobytes())} on {checksum(pixels.tobytes())} {pixels.shape}")
    return {
        "diffup": __version__,
        "checkpoint": checksum(net.encode()),
        "encoder": model.encoder.identity,
        "supports": shown,
        "text": [asked.text, *model.encoder.config.prompts] if asked.text else [],
        "bank": "" if model.bank is None else checksum(model.bank.dumped()),
        "steps": asked.steps,
        "snap": asked.snap,
    }


def facts_of(model: DiffUp, shown: Sequence[Shown], asked: Predict) -> dict[str, Any]:
    """What a result's JSON says of its making, for people."""
    backbone = model.encoder.backbone
    return {
        "checkpoint": asked.checkpoint,
        "backbone": backbone.name,
        "weights": f"{backbone.weights} [{backbone.loaded_hash}]",
        "device": str(model.encoder.device),
        "supports": [dataclasses.asdict(one) for one in shown],
        "text": asked.text,
        "steps": asked.steps,
        "snap": asked.snap,
        "diffup": __version__,
    }


@dataclass(frozen=True, eq=False)
class Run:
    """One request on all its queries.

    Attributes:
        asked: the options.
        model, cues: what segments.
        request, facts: see `request_of` and `facts_of`.
        loading: seconds until the first query.
    """

    asked: Predict
    model: DiffUp
    cues: Sequence[Cue]
    request: dict[str, Any]
    facts: dict[str, Any]
    loading: float

    def all(self, outputs: Sequence[Output]) -> int:
        """Segment and save every query that is not finished; returns the exit code."""
        key, quiet = key_of(self.request), self.asked.quiet
        done, failed = list[dict[str, Any]](), list[dict[str, Any]]()
        with tqdm(outputs, desc="predict", unit="image", disable=True if quiet else None) as bar:
            for output in bar:
                try:
                    document = self.one(output, key)
                except Unreadable as error:
                    failed.append({"query": str(output.query.path), "error": str(error)})
                    bar.write(f"error: {error}", file=sys.stderr)
                    continue
                files = {kind: str(path) for kind, path in output.files.items()}
                done.append({**document, "files": files})
                if not quiet and not self.asked.json:
                    bar.write(_line(document, files["mask"]), file=sys.stdout)
        if self.asked.json:
            loading = round(self.loading, 3)
            told = {"out": str(self.asked.out), "loading_seconds": loading, "results": done, "failed": failed}
            print(json.dumps(told))
        if not quiet:
            print(_summary(done, failed, self.loading), file=sys.stderr)
        return UNREADABLE if failed else 0

    def one(self, output: Output, key: str) -> dict[str, Any]:
        """A query's JSON with ``finished`` (by an earlier run), made where it is not there.

        Raises:
            Unreadable: the query can't be read.
            UserError: the results can't be written.
        """
        path, began = output.query.path, time.perf_counter()
        try:
            content = checksum(read_content(path, "image"))
            if known := output.finished(key, content):
                return {**known, "finished": True}
            pixels = to_rgb(path, "query")
        except UserError as error:
            told = str(error).removeprefix("query, ")
            raise Unreadable(told if str(path) in told else f"{path}: {told}") from error
        result = self.model.segment(pixels, self.cues, steps=self.asked.steps, snap=self.asked.snap)
        facts = {
            "query": str(path),
            "query_sha256": content,
            "request_key": key,
            **self.facts,
            "seconds": round(time.perf_counter() - began, 3),
        }
        result.save(output.files["mask"], facts=facts)
        return {**facts, **result.figures(), "finished": False}


class Unreadable(UserError):
    """A query that can't be read."""


def _line(document: dict[str, Any], mask: str) -> str:
    area, iou = 100 * document["area"], document["predicted_iou"]
    return f"{mask}  area {area:.1f} %  predicted IoU {iou:.2f}{'  (finished before)' if document['finished'] else ''}"


def _summary(done: Sequence[dict[str, Any]], failed: Sequence[dict[str, Any]], loading: float) -> str:
    fresh = [document["seconds"] for document in done if not document["finished"]]
    parts = [f"{len(fresh)} segmented"]
    if len(fresh) < len(done):
        parts.append(f"{len(done) - len(fresh)} finished before")
    if failed:
        parts.append(f"{len(failed)} could not be read")
    each = f", {sum(fresh) / len(fresh):.2f} s per picture" if fresh else ""
    return f"{', '.join(parts)}{each}, {loading:.1f} s to load and to encode supports and bank"
