"""Adapter for foreign methods: functions `(query, supports, cues) → probability` that run on the same manifests.

The function is named in a cell (``"package.module:name"``) and imported where the cell runs, so it must be in a module
that the workers can import, not in a script's ``__main__``. It gets what DiffUp gets and nothing else: no mask of a
query, and no class name unless the annotation has text. No torch at import.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike, NDArray

from diffup.config import parse_annotation, support_kinds
from diffup.errors import UserError
from diffup.plugins import imported, source_hash

if TYPE_CHECKING:
    from diffup.episodes.cue_source import CueSource
    from diffup.episodes.episode import Episode

HASHED = "sha256:"
WHAT = "adapter function"
TOLERANCE = 1e-4  # beyond [0, 1] that rounding explains


@dataclass(frozen=True, eq=False)
class Cue:
    """What is known of the class: cue k belongs to support k; a text cue, if any, comes last.

    Attributes:
        kind: ``"mask"``, ``"box"``, ``"scribble"`` or ``"text"``.
        annotation: uint8 [H, W] of its support's size, 0 background, 1 the class (a box is filled), 2 unknown (what is
            not scribbled); None for text.
        class_name: text only: what the class is called.
        names: text only: all names that the user gives, `class_name` among them.
    """

    kind: str
    annotation: NDArray[np.uint8] | None = None
    class_name: str = ""
    names: tuple[str, ...] = ()


Method = Callable[[NDArray[np.uint8], list[NDArray[np.uint8]], list[Cue]], ArrayLike]
"""Query image, RGB uint8 [H, W, 3]; K support images likewise, of any sizes; cues. Gives a probability map [H, W]."""


def function_version(function: str) -> str:
    """``"sha256:<12 hex>"`` of the source file of `function`, found without executing it.

    Args:
        function: ``"package.module:name"``.

    Raises:
        UserError: not of that form, or no such module or file.
    """
    return HASHED + source_hash(function, WHAT)


def load_method(function: str, version: str) -> Method:
    """Import the function that a cell names.

    Args:
        function: ``"package.module:name"``.
        version: as in the cell; a hash must be that of the source file as it is now.

    Raises:
        UserError: it can't be imported, can't be called, or has changed since the cell was planned.
    """
    found = function_version(function)
    if version.startswith(HASHED) and version != found:
        raise UserError(
            f"adapter function {function!r} has changed: its file is {found}, the cell names {version}. Plan the grid "
            f"again, so that the results get a key of their own"
        )
    method: Method = imported(function, WHAT)
    return method


def ask(
    method: Method, episode: Episode, annotation: str, shots: int, prompt: int, cues: CueSource
) -> NDArray[np.float32]:
    """Segment one manifest episode with a foreign method; supports are annotated as for every other method.

    Args:
        method: the function.
        episode: what to segment.
        annotation, shots: as in the cell.
        prompt: index of the class whose name is given, if the annotation has text.
        cues: the data set and its annotations.

    Returns:
        foreground probability [H, W] at the query's size.

    Raises:
        UserError: what the function returned is no such map; episode and query are named.
    """
    dataset = cues.dataset
    kinds = support_kinds(annotation, shots)
    ids = episode.supports[: len(kinds)]
    given = [Cue(kind, cues.annotation(i, episode.class_index, kind)) for i, kind in zip(ids, kinds, strict=True)]
    if "text" in parse_annotation(annotation):
        given.append(Cue("text", None, dataset.classes[prompt], tuple(dataset.classes)))
    query = dataset.image(episode.query)
    size = query.shape[:2]
    where = f"{getattr(method, '__name__', method)}, episode {episode.index} (query {episode.query})"
    try:
        answer = np.asarray(method(query, [dataset.image(i) for i in ids], given))
    except Exception as error:
        frames = traceback.extract_tb(error.__traceback__)[1:]
        own = getattr(getattr(method, "__code__", None), "co_filename", "")
        for frame in [frame for frame in frames if frame.filename == own][-1:]:  # the last line of the method's file
            error.add_note(f"{where}: {frame.filename}, line {frame.lineno}: {frame.line}")
        raise
    if answer.shape != size:
        raise UserError(
            f"{where} returned shape {answer.shape}; it must be a probability for each pixel of the query, {size}"
        )
    if answer.dtype.kind not in "fbiu":
        raise UserError(f"{where} returned values of type {answer.dtype}; it must return numbers in [0, 1]")
    probability = answer.astype(np.float32)
    if not (np.isfinite(probability) & (probability >= -TOLERANCE) & (probability <= 1 + TOLERANCE)).all():
        low, high = float(probability.min()), float(probability.max())
        raise UserError(f"{where} returned values from {low:g} to {high:g}; a probability is in [0, 1]")
    return probability.clip(0, 1)
