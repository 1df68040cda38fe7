"""Which cell is next: Tune's own grid search, with cells held back until their checkpoint is trained."""

from __future__ import annotations

from typing import Any

from ray.tune.search.basic_variant import BasicVariantGenerator


class TrainedFirst(BasicVariantGenerator):
    """Grid search in the given order that respects the graph of training and evaluation cells.

    Training and evaluation thus share one Tuner and its worker processes, and no worker idles while another trains.

    Attributes:
        dropped: keys of cells that never ran because their training failed.
    """

    def __init__(self, max_concurrent: int = 0) -> None:
        """Args: max_concurrent: trials at a time; 0 = as many as the resources allow."""
        super().__init__()
        self._limit = max_concurrent
        self._held: list[Any] = []
        self._given: dict[str, str] = {}  # trial id → key, of trials in Tune's hands
        self._untrained: set[str] = set()
        self.dropped: list[str] = []

    def next_trial(self) -> Any:
        """The first trial in order that waits for nothing, or None."""
        while (trial := super().next_trial()) is not None:  # type: ignore[no-untyped-call]
            cell = trial.config["cell"]
            self._held.append(trial)
            if cell["kind"] == "train":
                self._untrained.add(cell["key"])
        if self._limit and len(self._given) >= self._limit:
            return None
        for index, trial in enumerate(self._held):
            if trial.config["cell"].get("checkpoint", "") not in self._untrained:
                self._given[trial.trial_id] = trial.config["cell"]["key"]
                return self._held.pop(index)
        return None

    def is_finished(self) -> bool:
        """Whether every cell has been handed out or dropped."""
        return bool(self._finished) and not self._held

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Release the cells that waited for a checkpoint, or drop them if there is none."""
        super().on_trial_complete(trial_id, result, error)
        key = self._given.pop(trial_id, "")
        if key not in self._untrained:
            return
        self._untrained.discard(key)
        if error or not result or result.get("status") != "finished":
            waiting = [trial for trial in self._held if trial.config["cell"].get("checkpoint", "") == key]
            self.dropped += [trial.config["cell"]["key"] for trial in waiting]
            self._held = [trial for trial in self._held if trial not in waiting]

    def save_to_dir(self, dirpath: Any, session_str: Any = "", **kwargs: Any) -> None:
        """Nothing to save: a launch is resumed from the result store, never from Tune's state."""
