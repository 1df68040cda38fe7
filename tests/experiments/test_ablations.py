"""Ablations: one factor a line, the base's checkpoint where only sampling changes, prior sets that act everywhere."""

from __future__ import annotations

import dataclasses
import itertools
import json
from collections import Counter
from pathlib import Path

import pytest
import torch

from analysis.tables.table import Number
from cluster.cli import run
from cluster.execution.run_cell import WorkContext, execute
from diffup.config import MAP_NAMES, PRIOR_MAPS, InputConfig, ModelConfig, SampleConfig, TrainConfig, map_indices
from diffup.data.dataset import Dataset
from diffup.data.shapes4i import generate
from diffup.grid.axes import Backbone, evaluation_cells, named_backbone, training_cell
from diffup.grid.cell import AnyCell, Cell, TrainingCell, cell_from_dict, cell_to_dict
from diffup.grid.datasets import Data
from diffup.grid.variants import VARIANTS, changes_training, effective
from diffup.models.baft import MAPS, chosen_maps
from diffup.models.batch import Batch
from diffup.models.checkpoint import load_checkpoint
from diffup.models.diffup import DiffUpNet, Segmentation
from diffup.training.recipes import Recipe, msrc15, photographs, shapes4i
from experiments import ablations
from experiments.ablations import ABLATIONS, BASE, TASKS, grid
from experiments.method_study import ablation_grid
from tests.helpers.stores import write_store

DATA = Data(name="photos", path=Path("dataset.json"), fingerprint="f" * 12)
BACKBONES = [Backbone(name=name, weights="random:0") for name in ("resnet50", "deit_tiny_patch16_224")]
RECIPES = {"photographs": photographs(), "msrc15": msrc15(), "shapes4i": shapes4i()}
TINY = Recipe(
    input=InputConfig(input_size=64, feature_grid=8),
    model=ModelConfig(decoder_grid=16, width=16),
    train=TrainConfig(steps=2, batch_size=2, max_shots=2, cue_weights=(0.5, 0.2, 0.2, 0.0)),
)


def trainings(cells: list[AnyCell]) -> dict[str, TrainingCell]:
    return {cell.key(): cell for cell in cells if isinstance(cell, TrainingCell)}


def evaluations(cells: list[AnyCell]) -> list[Cell]:
    return [cell for cell in cells if isinstance(cell, Cell)]


@pytest.mark.parametrize(("kind", "name"), [(r, n) for r in RECIPES for n in effective(ABLATIONS, RECIPES[r])])
def test_a_line_changes_one_field_of_one_configuration(kind: str, name: str) -> None:
    recipe = RECIPES[kind]
    base, found = (recipe.input, recipe.model, recipe.train, recipe.sample), recipe.changed(**ABLATIONS[name])
    changed = [
        field.name
        for one, before in zip((found.input, found.model, found.train, found.sample), base)
        for field in dataclasses.fields(before)  # type: ignore[arg-type]
        if getattr(one, field.name) != getattr(before, field.name)
    ]
    assert len(changed) == (name != BASE), changed


def test_no_two_lines_are_the_same_and_known_ones_mean_what_they_do_elsewhere() -> None:
    assert len({repr(change) for change in ABLATIONS.values()}) == len(ABLATIONS)
    assert all(ABLATIONS[name] == VARIANTS[name] for name in ABLATIONS if name in VARIANTS and name != BASE)


def test_the_grid_is_as_its_docstring_says() -> None:
    cells = grid(DATA, BACKBONES, recipe=msrc15(), folds=(0, 1), seeds=(0, 1))
    assert (len(trainings(cells)), len(evaluations(cells))) == (4 * 24, 4 * 2 * 90)
    assert len({cell.key() for cell in cells}) == len(cells)
    assert {cell.checkpoint for cell in evaluations(cells)} == set(trainings(cells))
    assert {cell.backbone for cell in trainings(cells).values()} == {"resnet50"}
    places = Counter((cell.fold, cell.train_seed, cell.backbone, cell.shots, cell.annotation, cell.variant)
                     for cell in evaluations(cells))  # fmt: skip
    assert set(places.values()) == {1}


def test_lines_that_change_sampling_alone_share_the_base_checkpoint() -> None:
    cells = grid(DATA, BACKBONES, recipe=msrc15())
    trained = trainings(cells)
    for cell in evaluations(cells):
        own = changes_training(ABLATIONS[cell.variant])
        assert trained[cell.checkpoint].variant == (cell.variant if own else BASE)
    assert {cell.variant for cell in evaluations(cells) if not changes_training(ABLATIONS[cell.variant])} == {
        BASE, "steps_1", "steps_3", "steps_4", "steps_8", "steps_16", "full_strength",
    }  # fmt: skip


def test_a_chosen_line_comes_with_the_base() -> None:
    cells = grid(DATA, BACKBONES[:1], recipe=msrc15(), variants=("steps_4",))
    assert [cell.variant for cell in cells] == [BASE] + [BASE] * len(TASKS) + ["steps_4"] * len(TASKS)


def test_cells_shared_with_the_method_study_have_its_keys() -> None:
    study = {cell.key() for cell in ablation_grid(DATA, BACKBONES[0], BACKBONES[1:], episodes=1000)}
    ours = {cell.key() for cell in grid(DATA, BACKBONES, recipe=msrc15(), folds=(0, 1), seeds=(0, 1))}
    shared = [name for name in ABLATIONS if name in VARIANTS]
    assert len(study & ours) >= 4 * len(shared) * 4  # 2 backbones × 2 tasks, 4 places


def test_a_prior_set_is_part_of_a_key_only_where_it_is_not_all() -> None:
    place = {"dataset": "d", "fold": 0, "backbone": "b", "weights": "w"}
    usual = TrainingCell(**place)  # type: ignore[arg-type]
    fewer = TrainingCell(**place, model=ModelConfig(prior_maps="max_cosine"))  # type: ignore[arg-type]
    assert usual.key() != fewer.key()
    document = cell_to_dict(usual)
    del document["model"]["prior_maps"]  # as written before there were prior sets
    assert cell_from_dict(document) == usual
    assert cell_from_dict(json.loads(json.dumps(cell_to_dict(fewer)))) == fewer


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ("cosine", "unknown map 'cosine'; there are max_cosine"),
        ("prototype_contrast+max_cosine", "write 'max_cosine\\+prototype_contrast'"),
        ("max_cosine+max_cosine", "write 'max_cosine'"),
        ("+".join(PRIOR_MAPS), "write ''"),
    ],
)
def test_one_prior_set_has_one_name(names: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ModelConfig(prior_maps=names)


def test_every_prior_set_can_be_named() -> None:
    for count in range(1, MAPS):
        for some in itertools.combinations(range(MAPS), count):
            assert map_indices("+".join(PRIOR_MAPS[i] for i in some)) == some
    assert map_indices("") == tuple(range(MAPS))
    assert len(PRIOR_MAPS) == MAPS == 2 * len(MAP_NAMES)


def test_a_model_reads_its_prior_set_and_nothing_else() -> None:
    torch.manual_seed(0)
    model = DiffUpNet(dataclasses.replace(TINY.model, prior_maps="prototype_contrast+propagated_max_cosine")).eval()
    prior, kind = torch.rand(1, 2, 3, MAPS, 8, 8), torch.zeros(1, 2, dtype=torch.long)

    def segmented(prior: torch.Tensor) -> Segmentation:
        return model.segment_priors(
            Batch(prior, prior[:, :, :, :7], kind, torch.zeros(1, 3, 16, 16)), SampleConfig(), torch.zeros(1, 16, 16)
        )

    before = segmented(prior)
    unread, read = prior.clone(), prior.clone()
    unread[:, :, :, [0, 2, 3, 5, 6, 7]] = 0.123
    read[:, :, :, 4] = torch.rand(1, 2, 3, 8, 8)
    same = segmented(unread)
    other = segmented(read)
    assert torch.equal(before.logits, same.logits) and torch.equal(before.variance, same.variance)
    assert not torch.equal(before.logits, other.logits)
    assert chosen_maps(prior, "") is prior


@pytest.mark.slow
def test_a_prior_set_trains_and_evaluates_from_the_stored_maps_of_the_base(data: Dataset, tmp_path: Path) -> None:
    backbone = named_backbone("tiny_resnet", check=False)
    place = Data(name="shapes4i", fingerprint=data.fingerprint)
    context = WorkContext(results=tmp_path, datasets={"shapes4i": str(data.root / "dataset.json")})
    tables, files = {}, list[set[str]]()
    for name in (BASE, "only_prototype", "no_propagation"):
        recipe = TINY.changed(**ABLATIONS[name])
        trained = training_cell(place, 1, backbone, recipe, variant=name)
        execute(trained, context)
        weights = load_checkpoint(tmp_path / trained.key() / "checkpoint").uapf.map_logits
        assert weights.shape[1] == len(map_indices(recipe.model.prior_maps))
        (cell,) = evaluation_cells(
            place, 1, [backbone], [(1, "mask")], config=TINY.input, episodes=6, trained=trained, variant=name,
            sample=recipe.sample,
        )  # fmt: skip
        outcome = execute(cell, context)
        assert outcome.episodes is not None
        tables[name] = outcome.episodes
        files.append({path.name for path in (tmp_path / "drawn").rglob("*.drawn")})
    assert files[0] and files[0] == files[1] == files[2], "a prior set draws no training steps of its own"
    base = tables[BASE]
    for name in ("only_prototype", "no_propagation"):
        assert (tables[name]["query"] == base["query"]).all()
        assert (tables[name]["margin_count"].map(tuple) != base["margin_count"].map(tuple)).any(), "of its own priors"
        assert (tables[name]["inter_fg"] != base["inter_fg"]).any()


def test_the_table_has_paired_differences_and_dashes(tmp_path: Path) -> None:
    cells = grid(DATA, BACKBONES, recipe=msrc15(), variants=("no_scm", "steps_16"), episodes=60)
    gap = next(c.key() for c in evaluations(cells) if c.variant == "steps_16" and c.shots == 5)
    write_store(tmp_path, evaluations(cells), missing=lambda cell: cell.key() == gap)
    made = ablations.table(tmp_path, [cell.key() for cell in cells])
    assert [column.header[0] for column in made.columns] == ["1-shot mask", "1-shot scribble", "5-shot mask"]
    rows = {row.labels: row.entries for row in made.rows}
    assert list(rows) == [(b.name, v) for b in BACKBONES for v in ("DiffUp", "no_scm", "steps_16")]
    ours, change = rows["resnet50", "DiffUp"][0], rows["resnet50", "no_scm"][0]
    assert isinstance(ours, Number) and isinstance(change, Number)
    assert not ours.difference and change.difference and change.low <= change.value <= change.high
    assert [entries[2] is None for entries in rows.values()].count(True) == 1


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--variants", "no_such"], "'no_such' is no variant; there are diffup, no_uapf"),
        (["--variants", "self_conditioning"], "changes nothing of this recipe; there are diffup, no_uapf"),
        (["--folds", "9"], "has folds 0 to 3, not 9"),
    ],
)
def test_bad_input_is_named(
    arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = generate(tmp_path / "shapes4i", images=12, progress=False)
    assert run(ablations.STUDY, ["--dataset", str(path), "--backbones", "tiny_resnet", "--dry-run", *arguments]) == 2
    assert message in capsys.readouterr().err
