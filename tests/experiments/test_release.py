"""The release checkpoint: trained on all classes, the same bytes twice, and a folder that the API takes by itself."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from cluster.execution.run_cell import WorkContext, execute
from diffup import DiffUp, Support
from diffup.data.dataset import Dataset
from diffup.data.spec import ALL_CLASSES
from diffup.errors import UserError
from diffup.grid.axes import describe
from diffup.grid.cell import TrainingCell
from experiments.release import (
    SOURCE,
    STUDIED,
    STUDY,
    TERMS,
    Terms,
    as_studied,
    first_table,
    publish,
    release,
    terms_of,
)
from tests.helpers.trained import example, same

SMALL = ["--backbone", "tiny_resnet", "--steps", "2"]
CLOSED = Terms(text="For research alone.", figures=STUDIED)


def trained(data: Dataset, folder: Path) -> tuple[TrainingCell, Path, Path]:
    """The script's cell, run; its folder, and the data set's file."""
    path = data.root / "dataset.json"
    (cell,), files = STUDY.grid(STUDY.parse(["--dataset", str(path), "--out", str(folder / "out"), *SMALL]))
    assert isinstance(cell, TrainingCell) and files[cell.dataset] == path.resolve()
    execute(cell, WorkContext(results=folder, datasets={cell.dataset: str(path)}))
    return cell, folder / cell.key(), path


@pytest.fixture(scope="module")
def made(data: Dataset, tmp_path_factory: pytest.TempPathFactory) -> tuple[TrainingCell, Path, Path]:
    return trained(data, tmp_path_factory.mktemp("release"))


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def test_it_is_trained_on_all_classes(made: tuple[TrainingCell, Path, Path], data: Dataset) -> None:
    cell, folder, _ = made
    assert cell.fold == ALL_CLASSES and "all classes" in describe(cell)
    facts = json.loads((folder / "checkpoint" / "config.json").read_text())["facts"]
    assert facts["classes"] == list(data.classes) and facts["left_out"] == []
    assert len(facts["bank"]) == 60 == len(set(facts["bank"]) & set(data.image_ids))


def test_the_same_command_gives_the_same_bytes(
    made: tuple[TrainingCell, Path, Path], data: Dataset, tmp_path: Path
) -> None:
    _, folder, path = made
    _, other, _ = trained(data, tmp_path / "again")
    for number, source in enumerate((folder, other)):
        publish(source, tmp_path / str(number), path, TERMS["shapes4i"])
    one, two = content(tmp_path / "0"), content(tmp_path / "1")
    assert one == two
    assert sorted(one) == ["README.md", "SHA256SUMS", "bank.safetensors", "config.json", "model.safetensors"]
    for line in one["SHA256SUMS"].decode().splitlines():
        digest, name = line.split("  ")
        assert hashlib.sha256(one[name]).hexdigest() == digest


def test_images_go_along_only_where_their_terms_allow_it(
    made: tuple[TrainingCell, Path, Path], data: Dataset, tmp_path: Path
) -> None:
    _, folder, path = made
    publish(folder, tmp_path, path, TERMS["shapes4i"])
    bank = DiffUp.load(tmp_path).bank
    assert bank is not None and len(bank.pictures) == 15
    assert 0.01 < bank.objects_Nhw.float().mean() < 0.6, "labels of objects go along"
    publish(folder, tmp_path, path, CLOSED)
    assert sorted(content(tmp_path)) == ["README.md", "SHA256SUMS", "config.json", "model.safetensors"]
    model = DiffUp.load(tmp_path)
    assert model.bank is not None and model.bank.packaged and len(model.facts["bank"]) == 60


def test_weights_are_halved_and_segment_as_before(
    made: tuple[TrainingCell, Path, Path], data: Dataset, tmp_path: Path
) -> None:
    _, folder, path = made
    publish(folder, tmp_path, path, CLOSED)
    weights = load_file(tmp_path / "model.safetensors")
    assert {tensor.dtype for tensor in weights.values()} == {torch.float16}
    half, full = DiffUp.load(tmp_path), DiffUp.load(folder)
    assert {parameter.dtype for parameter in half.net.parameters()} == {torch.float32}
    query, support, mask = example(data)
    same(half.segment(query, [Support(support, mask)]), full.segment(query, [Support(support, mask)]), 5e-3)


def test_without_a_bank_it_takes_any_cues_and_with_one_it_says_something_else(
    made: tuple[TrainingCell, Path, Path], data: Dataset, tmp_path: Path
) -> None:
    _, folder, path = made
    publish(folder, tmp_path, path, CLOSED)
    model = DiffUp.load(tmp_path)
    query, support, mask = example(data)
    rows, columns = mask.nonzero()
    box = [(columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)]
    cues = [Support(support, mask), Support(support, box, "box"), Support(support, mask > 0, "scribble")]
    photographs = [data.image(i) for i in data.image_ids[:15]]
    for backbone in ("tiny_resnet", "tiny_regnet"):
        plain = model.swap_backbone(backbone)
        calibrated = model.swap_backbone(backbone, bank=photographs)
        for count in (1, 3, 12):
            given = (cues * 4)[:count]
            without, with_bank = plain.segment(query, given), calibrated.segment(query, given)
            assert np.isfinite(without.probability).all() and np.isfinite(with_bank.probability).all()
            assert np.abs(without.probability - with_bank.probability).max() > 0.01


def test_the_card_says_terms_figures_and_what_the_weights_are(
    made: tuple[TrainingCell, Path, Path], tmp_path: Path
) -> None:
    _, folder, path = made
    publish(folder, tmp_path, path, CLOSED)
    card = (tmp_path / "README.md").read_text()
    digest = hashlib.sha256((tmp_path / "model.safetensors").read_bytes()).hexdigest()
    heading, table = first_table(STUDIED)
    for text in (
        "license: other", "For research alone.", "| fold left out | none |", "| classes left out | none |",
        f"| weights | float16, sha256:{digest} |",
        "Not of this checkpoint", heading, table, "model.calibrate(images)", "| versions | ",
    ):  # fmt: skip
        assert text in card, text
    publish(folder, tmp_path, path, TERMS["shapes4i"])
    card = (tmp_path / "README.md").read_text()
    assert "license: mit" in card and "Not measured." in card and "holds 15 images" in card


def test_terms_must_be_known_before_it_is_trained(data: Dataset, tmp_path: Path) -> None:
    document = json.loads((data.root / "dataset.json").read_text())
    other = data.root / "other.json"
    other.write_text(json.dumps(document | {"name": "mine"}))
    try:
        asked = STUDY.parse(
            ["--dataset", str(other), "--out", str(tmp_path / "out"), "--results", str(tmp_path / "results"), *SMALL]
        )
        with pytest.raises(UserError, match=r"'mine' are not known.*--terms FILE"):
            release(asked)
    finally:
        other.unlink()
    assert not any(tmp_path.iterdir())
    with pytest.raises(UserError, match=r"--terms .*gone.md can't be read"):
        terms_of("mine", tmp_path / "gone.md")
    (tmp_path / "terms.md").write_text("Mine, for everybody.")
    assert terms_of("mine", tmp_path / "terms.md") == Terms(text="Mine, for everybody.")


def test_the_study_of_unseen_backbones_has_a_table() -> None:
    heading, table = first_table(STUDIED)
    assert "1-shot masks" in heading and "ResNet-50" in table and len(table.splitlines()) >= 6


def test_a_training_that_was_not_studied_has_no_figures(data: Dataset) -> None:
    where = ["--dataset", str(data.root / "dataset.json"), "--out", "out", "--backbone", "tiny_resnet"]
    (other,), _ = STUDY.grid(STUDY.parse(where))
    (short,), _ = STUDY.grid(STUDY.parse([*where, "--steps", "4"]))
    for cell, known in (
        (replace(other, backbone=SOURCE), True),
        (replace(short, backbone=SOURCE), False),
        (other, False),
    ):
        assert as_studied(cell) == known
    assert [name for name, terms in TERMS.items() if terms.figures] == ["vocmsrc20"], "the data of the study alone"


@pytest.mark.ray
def test_the_command_writes_the_folder(data: Dataset, tmp_path: Path) -> None:
    where = ["--dataset", str(data.root / "dataset.json"), "--results", str(tmp_path / "results")]
    asked = STUDY.parse([*where, "--out", str(tmp_path / "out"), "--max-concurrent", "1", *SMALL])
    assert release(asked) == 0
    assert DiffUp.load(tmp_path / "out").bank is not None
