"""What a method is measured against: the best that needs no training, and methods from elsewhere."""

from __future__ import annotations

from analysis.tables.places import METHODS, MethodKey, Task
from analysis.tables.scores import Study
from analysis.tables.table import defined

ONE_SHOT = Task(1, "mask")
FOREIGN = "adapter"  # `diffup.config.SampleConfig.method` of such


def main_task(study: Study) -> Task:
    """1-shot mask if it was asked for, else the first task with a shot, else the first."""
    if ONE_SHOT in study.tasks:
        return ONE_SHOT
    return next((task for task in study.tasks if task.shots), study.tasks[0])


def training_free(study: Study) -> list[MethodKey]:
    """Methods that are not trained, other than foreign ones and controls."""
    return [m for m in study.shown if not m.trained_on and not m.control and m.method != FOREIGN]


def snapped(variant: str) -> bool:
    """Whether a method's mask follows superpixels, as DiffUp's can: one side of a comparison alone shouldn't."""
    return variant.endswith("snap")


def baseline(study: Study, task: Task) -> str:
    """The variant without training or superpixels that scores best at a task, by the mean of its backbones; ``""``
    without one.

    Only those on the most backbones are compared. One for all of them, so that a figure can name it. That it is chosen
    by its score on what is tested is in its favour.
    """
    scores: dict[str, list[float]] = {}
    for method in training_free(study):
        if not snapped(method.variant) and (number := defined(study.number(method, task))):
            scores.setdefault(method.variant, []).append(number.value)
    return max(scores, key=lambda name: (len(scores[name]), sum(scores[name]) / len(scores[name])), default="")


def beside(study: Study, method: MethodKey, variant: str) -> MethodKey | None:
    """The method of this name without training on the backbone of another."""
    return next((m for m in training_free(study) if m.variant == variant and method.beside(m)), None)


def best_beside(study: Study, method: MethodKey, task: Task) -> tuple[MethodKey | None, bool]:
    """The method without training that scores best at a task on the backbone of another, and whether it beat any.

    With superpixels only where the other has them.
    """
    like = [m for m in training_free(study) if method.beside(m) and snapped(m.variant) <= snapped(method.variant)]
    rivals = {m: n.value for m in like if (n := defined(study.number(m, task)))}
    return max(rivals, key=lambda m: rivals[m], default=None), len(rivals) > 1


def foreign(study: Study) -> list[MethodKey]:
    """Methods from elsewhere."""
    return [m for m in study.shown if m.method == FOREIGN and not m.control]


def called(variant: str) -> str:
    """A method's name in tables."""
    return METHODS.get(variant, variant)
