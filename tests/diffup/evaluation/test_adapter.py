"""Foreign methods: what they are told, what is checked of their answers, and that their identity is the cell's."""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from analysis.paper import main_markdown
from cluster.execution.run_cell import Outcome, WorkContext, execute
from cluster.planning.plan import invalid_reason
from cluster.planning.preflight import preflight
from cluster.storage.atomic import now
from cluster.storage.results import Store
from diffup.config import InputConfig, SampleConfig
from diffup.data.shapes4i import generate
from diffup.episodes.cue_source import CueSource
from diffup.episodes.episode import Episode
from diffup.evaluation import evaluate as evaluation
from diffup.evaluation.adapter import Cue, ask, function_version, load_method
from diffup.evaluation.evaluate import Evaluation
from diffup.grid.axes import OWN, adapter, evaluation_cells
from diffup.grid.cell import Cell, cell_from_dict, cell_to_dict
from diffup.grid.datasets import open_data
from experiments import foreign_method
from tests.helpers.toy import ToyDataset

EPISODE = Episode(4, 2, "2_0", ("2_1", "2_2", "2_3"))
SHAPE = (48, 64)


def source(dataset: ToyDataset | None = None) -> CueSource:
    return CueSource(dataset or ToyDataset(), InputConfig())  # type: ignore[arg-type]


def sample(function: str = "a.b:c", version: str = "1") -> SampleConfig:
    return SampleConfig(method="adapter", function=function, function_version=version)


def cell(**changes: Any) -> Cell:
    place = {"dataset": "toy", "fold": 0, "shots": 1, "annotation": "mask", "backbone": "own", "weights": "own"}
    return Cell(**{**place, "sample": sample(), **changes})


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Path]:
    """Writes ``foreign_toy.py`` where it can be imported."""
    monkeypatch.syspath_prepend(tmp_path)

    def write(text: str) -> Path:
        path = tmp_path / "foreign_toy.py"
        path.write_text(text)
        importlib.invalidate_caches()
        return path

    return write


def test_a_method_is_told_supports_and_annotations_and_no_truth() -> None:
    dataset = ToyDataset()
    seen: dict[str, Any] = {}

    def method(query: Any, supports: Any, cues: Any) -> Any:
        seen.update(query=query, supports=supports, cues=cues)
        return np.full(query.shape[:2], 0.25)

    probability = ask(method, EPISODE, "mask+box", 3, 2, source(dataset))
    assert probability.dtype == np.float32 and (probability == 0.25).all()
    assert np.array_equal(seen["query"], dataset.image("2_0"))
    assert [s.tobytes() for s in seen["supports"]] == [dataset.image(i).tobytes() for i in EPISODE.supports]
    assert [cue.kind for cue in seen["cues"]] == ["mask", "box", "mask"]
    assert np.array_equal(seen["cues"][0].annotation, dataset.mask("2_1", 2))
    assert not [cue for cue in seen["cues"] if cue.class_name or cue.names]
    assert ("2_0", 2) not in dataset.asked_pairs, "the query's mask is nobody's input"


def test_names_are_told_only_with_text_and_may_be_wrong_ones() -> None:
    seen: list[list[Cue]] = []

    def method(query: Any, supports: Any, cues: Any) -> Any:
        seen.append(cues)
        return np.zeros(query.shape[:2])

    ask(method, EPISODE, "text", 0, 3, source())
    ask(method, EPISODE, "mask+text", 1, 2, source())
    assert [(cue.kind, cue.class_name, cue.names) for cue in seen[0]] == [("text", "yellow", ToyDataset.classes)]
    assert [(cue.kind, cue.class_name) for cue in seen[1]] == [("mask", ""), ("text", "blue")]


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (np.zeros((40, 40)), r"method, episode 4 \(query 2_0\) returned shape \(40, 40\).*\(48, 64\)"),
        (np.zeros((48, 64, 1)), r"returned shape \(48, 64, 1\)"),
        (None, r"returned shape \(\)"),
        (np.full(SHAPE, 1.5), "from 1.5 to 1.5; a probability is in"),
        (np.full(SHAPE, -1.0), "from -1 to -1"),
        (np.full(SHAPE, np.nan), "from nan to nan"),
        (np.full(SHAPE, "x"), "values of type <U1"),
        (np.full(SHAPE, 1j), "values of type complex"),
    ],
)
def test_what_is_no_probability_map_is_refused(answer: Any, message: str) -> None:
    def method(query: Any, supports: Any, cues: Any) -> Any:
        return answer

    with pytest.raises(ValueError, match=message):
        ask(method, EPISODE, "mask", 1, 2, source())


def test_an_error_of_the_method_says_where_in_its_file() -> None:
    def method(query: Any, supports: Any, cues: Any) -> Any:
        return np.stack(supports[1:])  # numpy raises it

    with pytest.raises(ValueError, match="need at least one array") as raised:
        ask(method, EPISODE, "mask", 1, 2, source())
    (note,) = raised.value.__notes__
    assert note.startswith(f"method, episode 4 (query 2_0): {__file__}, line ") and note.endswith("# numpy raises it")


@pytest.mark.parametrize("answer", [np.ones(SHAPE, bool), np.ones(SHAPE, np.uint8), np.ones(SHAPE).tolist()])
def test_masks_and_lists_are_probabilities_too(answer: Any) -> None:
    assert (ask(lambda query, supports, cues: answer, EPISODE, "mask", 1, 2, source()) == 1).all()


def test_the_table_scores_what_the_method_said() -> None:
    dataset = ToyDataset()
    truths = {dataset.image(i).tobytes(): dataset.mask(i, 2) for i in dataset.pool(2)}
    what = Evaluation(
        model=None, sample=sample(), annotation="mask", shots=1, class_indices=(2, 3),
        method=lambda query, supports, cues: truths[query.tobytes()],
    )  # fmt: skip
    row = evaluation.evaluate(what, [EPISODE], source(dataset), None, progress=False).iloc[0]
    assert row["inter_fg"] == row["union_fg"] == dataset.mask("2_0", 2).sum()
    assert np.isnan(row["predicted_iou"])
    assert sum(row["prob_count"]) == SHAPE[0] * SHAPE[1]
    assert sum(row["std_count"]) == sum(row["margin_count"]) == 0


def test_the_identity_is_name_and_source(module: Callable[[str], Path]) -> None:
    module("raise RuntimeError('a plan does not run foreign code')\n")
    before = function_version("foreign_toy:f")
    assert before.startswith("sha256:")
    module("def f(query, supports, cues): return 1\n")
    after = function_version("foreign_toy:f")
    assert after != before
    assert adapter("foreign_toy:f").function_version == after
    assert adapter("foreign_toy:f", version="2.0").function_version == "2.0"
    keys = {cell(sample=s).key() for s in (sample(), sample(version="2"), sample("a.b:d"))}
    assert len(keys) == 3


def test_a_function_that_changed_since_the_plan_is_not_run(module: Callable[[str], Path]) -> None:
    module("def f(query, supports, cues): return 1\n")
    planned = function_version("foreign_toy:f")
    assert load_method("foreign_toy:f", planned)(*[None] * 3) == 1  # type: ignore[arg-type]
    module("def f(query, supports, cues): return 2\n")
    with pytest.raises(ValueError, match=r"'foreign_toy:f' has changed.*Plan the grid again"):
        load_method("foreign_toy:f", planned)
    assert callable(load_method("foreign_toy:f", "2.0"))
    with pytest.raises(ValueError, match="has changed"):
        preflight([cell(dataset="pascal5i", sample=sample("foreign_toy:f", planned))], {"pascal5i": Path("x")}, None)


@pytest.mark.parametrize(
    ("function", "message"),
    [
        ("numpy", "write it as 'package.module:name'"),
        ("a b:c", "write it as"),
        ("mymethod.py:colour", "write mymethod:colour"),
        ("methods/mymethod.py:colour", "write methods.mymethod:colour"),
        ("no_such_package.module:f", "No module named 'no_such_package'"),
        ("no_such_module:f", "there is no file of a module 'no_such_module'"),
        ("diffup.evaluation.metrics:no_such", "can't be imported: .*no_such"),
        ("diffup.evaluation.adapter:HASHED", "is a str, which can't be called"),
    ],
)
def test_functions_that_can_not_be_had_are_named(function: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_method(function, "1")


def test_cells_of_adapters_are_checked_and_survive_json() -> None:
    made = cell(annotation="mask+text")
    assert cell_from_dict(cell_to_dict(made)) == made
    assert invalid_reason(made) == "", "a foreign method reads text itself"
    assert invalid_reason(dataclasses.replace(made, sample=SampleConfig(method="prior_mean")))
    cases: list[dict[str, Any]] = [{"method": "adapter"}, {"method": "adapter", "function": "a:b"}, {"function": "a:b"}]
    for bad in cases:
        with pytest.raises(ValueError, match="go with method 'adapter'"):
            SampleConfig(**bad)
    with pytest.raises(ValueError, match="baselines have none"):
        cell(checkpoint="0" * 12)


@pytest.mark.slow
def test_the_worked_example_stands_beside_the_prior_mean(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its grid on a small shapes4i: run by the platform's own work, written to a store, read as a table."""
    path = generate(tmp_path / "shapes4i", images=8, progress=False)
    data = open_data(path, shots=5)
    monkeypatch.setattr(foreign_method, "open_data", lambda *_, **__: data)
    cells, _ = foreign_method.build(foreign_method.STUDY.parse(["--episodes", "16"]))
    assert len(cells) == 4
    store = Store(tmp_path / "results")
    context = WorkContext(results=store.root, datasets={"shapes4i": str(path)})
    outcomes: dict[str, Outcome] = {}
    for each in cells:
        assert isinstance(each, Cell)
        outcome = outcomes[f"{each.variant} {each.shots}"] = execute(each, context)
        store.write_result(
            each,
            metrics=outcome.metrics,
            provenance={**outcome.provenance, "code_hash": "x", "git_commit": ""},
            started=now(),
            episodes=outcome.episodes,
        )
    hashes = {name: outcome.provenance["manifest_hash"] for name, outcome in outcomes.items()}
    assert hashes["colour_histogram 1"] == hashes["prior_mean 1"]
    assert outcomes["colour_histogram 1"].metrics["miou"] > 20
    table = main_markdown(store.root)
    assert "colour_histogram" in table and "prior mean" in table
    again = evaluation_cells(
        data, 0, [OWN], [(1, "scribble"), (0, "text")], config=InputConfig(), episodes=4,
        sample=adapter(foreign_method.FUNCTION),
    )  # fmt: skip
    for each in again:
        assert execute(each, context).metrics["miou"] >= 0
