"""mIoU and FB-IoU from counts: four integers per episode, whose sums give every figure.

IoU of class c = ΣI / ΣU over all its episodes; mIoU = mean over the fold's classes; FB-IoU = mean over foreground and
background of ΣI / ΣU pooled over classes (the definitions of PANet and HSNet, which PFENet's agree with).

Edge cases of an episode: with an empty truth every predicted pixel enters the union and the class's IoU falls; with an
empty prediction the truth does; where both are empty, or every pixel is ignored, the union is 0 and the episode does
not count for the class. Sums are exact (64-bit integers): parts of a table merge in any order into the same figure.

Edge cases of a figure: a class that was never sampled, or whose union is empty in all its episodes, has no IoU (nan),
and then neither has the mean: an undefined figure is never shown as 0 or as a mean over fewer classes. The same holds
for FB-IoU where foreground or background never occur. Numpy only.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

IGNORE = 255
NAMED = 10  # classes in a message

# Histograms of pixels that `diffup.evaluation.evaluate` writes and `analysis.calibration` reads.
PROB_BINS = 50  # equal widths over probabilities, 0 to 1
MARGIN_BINS = 50  # equal widths over |p - 1/2| of the prior mean, 0 to 1/2
STD_BINS = 128  # equal ratios over standard deviations; values outside the range fall into the end bins
STD_RANGE = (0.01, 1.0)


def counts(prediction_HW: NDArray[np.bool_], truth_HW: NDArray[np.uint8]) -> tuple[int, int, int, int]:
    """Intersection and union of an episode, in pixels.

    Args:
        prediction_HW: predicted foreground, bool.
        truth_HW: 0 background, 1 foreground, 255 ignored.

    Returns:
        ``(intersection_fg, union_fg, intersection_bg, union_bg)`` over the pixels that are not ignored.

    Raises:
        ValueError: shapes differ, the prediction is not bool, or the truth holds another value.
    """
    if prediction_HW.shape != truth_HW.shape:
        raise ValueError(
            f"prediction is {prediction_HW.shape} and truth {truth_HW.shape}; resize the prediction to the truth"
        )
    if prediction_HW.dtype != np.bool_:
        raise ValueError(f"prediction must be bool, not {prediction_HW.dtype}; threshold it first")
    foreground, background = truth_HW == 1, truth_HW == 0
    positives, negatives = int(foreground.sum()), int(background.sum())
    if positives + negatives + int((truth_HW == IGNORE).sum()) != truth_HW.size:
        raise ValueError(
            f"truth holds {np.setdiff1d(truth_HW, [0, 1, IGNORE]).tolist()}; allowed are 0, 1 and {IGNORE}"
        )
    hits = int((prediction_HW & foreground).sum())
    false_alarms = int((prediction_HW & background).sum())
    return hits, positives + false_alarms, negatives - false_alarms, negatives + positives - hits


def per_class_iou(
    class_ids: ArrayLike, inter_fg: ArrayLike, union_fg: ArrayLike, classes: Sequence[int]
) -> dict[int, float]:
    """IoU of each class in percent, ΣI / ΣU · 100; nan for a class that was never sampled or whose union is empty.

    Args:
        class_ids, inter_fg, union_fg: class and foreground counts of each episode, [N].
        classes: the classes to report, i.e. those of the fold.

    Raises:
        ValueError: lengths differ, or an episode's class is not among `classes`.
    """
    ids, inter, union = _columns(class_ids, inter_fg, union_fg)
    strangers = np.setdiff1d(ids, np.asarray(classes, dtype=np.int64))
    if strangers.size:
        raise ValueError(f"episodes of classes {strangers.tolist()}, which are not among the fold's {list(classes)}")
    return {int(c): _percent(inter[ids == c].sum(), union[ids == c].sum()) for c in classes}


def miou(class_ids: ArrayLike, inter_fg: ArrayLike, union_fg: ArrayLike, classes: Sequence[int]) -> float:
    """Mean over `classes` of `per_class_iou`, in percent; nan as soon as one class has no IoU, or without classes."""
    values = list(per_class_iou(class_ids, inter_fg, union_fg, classes).values())
    return float(np.mean(values)) if values else float("nan")


def fb_iou(inter_fg: ArrayLike, union_fg: ArrayLike, inter_bg: ArrayLike, union_bg: ArrayLike) -> float:
    """Mean of foreground and background IoU in percent, each pooled over all episodes [N] and classes.

    nan if foreground or background have an empty union (e.g. without any episode).

    Raises:
        ValueError: lengths differ.
    """
    inter_f, union_f, inter_b, union_b = _columns(inter_fg, union_fg, inter_bg, union_bg)
    return (_percent(inter_f.sum(), union_f.sum()) + _percent(inter_b.sum(), union_b.sum())) / 2


def undefined(class_ids: ArrayLike, counts_N4: ArrayLike, classes: Mapping[int, str]) -> dict[str, str]:
    """Why ``miou`` or ``fb_iou`` of these episodes is undefined, by name; empty where both are defined.

    Args:
        class_ids: class of each episode, [N].
        counts_N4: `counts` of each episode.
        classes: the classes to report with their names.
    """
    inter_fg, union_fg, inter_bg, union_bg = np.asarray(counts_N4, dtype=np.int64).reshape(-1, 4).T
    ids = set(np.asarray(class_ids, dtype=np.int64).reshape(-1).tolist())
    lacking = [c for c, iou in per_class_iou(class_ids, inter_fg, union_fg, list(classes)).items() if iou != iou]
    names, why, found = labels(classes), [], {}
    for lacks, text in (
        ([c for c in lacking if c not in ids], "no episode of {}: use more episodes"),
        ([c for c in lacking if c in ids], "nothing to find and nothing found in any episode of {}"),
    ):
        if lacks:
            more = f" and {len(lacks) - NAMED} more" if len(lacks) > NAMED else ""
            listed = f"{', '.join(names[c] for c in lacks[:NAMED])}{more} ({len(lacks)} of {len(classes)} classes)"
            why.append(text.format(listed))
    if why or not classes:
        found["miou"] = "; ".join(why) or "no class to report"
    if np.isnan(fb_iou(inter_fg, union_fg, inter_bg, union_bg)):
        found["fb_iou"] = "foreground or background occur in no episode, neither in truth nor in prediction"
    return found


def labels(names: Mapping[int, str]) -> dict[int, str]:
    """Unique names of classes: where several classes share one, it gets the number, e.g. ``wren (class 3)``."""
    often = Counter(names.values())
    return {c: f"{name} (class {c})" if often[name] > 1 else name for c, name in names.items()}


def episode_ious(inter_fg: ArrayLike, union_fg: ArrayLike) -> NDArray[np.float64]:
    """IoU of each episode in [0, 1], [N]: 1 where there was nothing to find and nothing was found."""
    inter, union = _columns(inter_fg, union_fg)
    return np.divide(inter, union, out=np.ones(len(union)), where=union > 0)


def ranked(inter_fg: ArrayLike, union_fg: ArrayLike) -> dict[str, int]:
    """Positions of the ``worst``, ``median`` and ``best`` episode by IoU; of equals the first counts as the worse."""
    order = np.argsort(episode_ious(inter_fg, union_fg), kind="stable")
    if not len(order):
        raise ValueError("no episode to rank")
    return {"worst": int(order[0]), "median": int(order[len(order) // 2]), "best": int(order[-1])}


def _columns(*columns: ArrayLike) -> tuple[NDArray[np.int64], ...]:
    arrays = tuple(np.asarray(column, dtype=np.int64).reshape(-1) for column in columns)
    if len({len(array) for array in arrays}) > 1:
        raise ValueError(f"columns have {[len(array) for array in arrays]} rows; one row per episode is expected")
    return arrays


def _percent(inter: np.integer[Any], union: np.integer[Any]) -> float:
    return 100.0 * float(inter) / float(union) if union else float("nan")
