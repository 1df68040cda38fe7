"""The release checkpoint: trained on all classes of a data set, in 16 bits, with a model card and its bank's image ids.

    python experiments/release.py --dataset vocmsrc20/dataset.json --weights-dir DIR --results DIR --out DIR

One training cell without a fold left out, from absolute evidence and with parts of objects among its classes
(`RECIPE`), about a quarter of an hour of one core; then the folder that ``DiffUp.load`` takes: ``model.safetensors``
(float16), ``config.json``, ``README.md`` and ``SHA256SUMS``. Where the terms of the data allow it,
``bank.safetensors`` holds 15 of the bank's images. The same command gives the same bytes on one machine.

There is no class left to test it on. Its card has the figures of the same recipe with a fold left out each
(docs/results/unseen.md); docs/release.md says what it holds and why.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import numpy as np
import tyro
from numpy.typing import NDArray

import diffup.checkout  # noqa: F401
from cluster.cli import DatasetOptions, Grid, Study, run_study
from cluster.launch import open_results
from cluster.options import CountOrNone, File, Name, option
from diffup.data.dataset import open_dataset
from diffup.data.spec import ALL_CLASSES
from diffup.errors import UserError, command_line
from diffup.files import write_in_full
from diffup.grid.axes import training_cell
from diffup.grid.cell import AnyCell, TrainingCell
from diffup.grid.datasets import open_data
from diffup.training.recipes import photographs

SUMS = "SHA256SUMS"
SHIPPED = 15  # images of the bank, where they may be given on
SOURCE = "resnet50"
# Who takes it may look for a sleeve or a wheel. Of whole objects it sees as many as `photographs`. `base` was made and
# measured with self-conditioning.
RECIPE = photographs().changed(model={"self_conditioning": True}, train={"parts": 0.3, "steps": 1200, "draws": 600})
STUDIED = Path(__file__).resolve().parent.parent / "docs" / "results" / "unseen.md"
PHOTOGRAPHS = """\
VOC 2012 photographs (from Flickr, under its terms) with the masks of VOC 2012 and SBD, and MSRC-v2 with the cleaned
BMVC'07 masks: for non-commercial research. None of their pixels is in this folder. Whether the terms of training images
bind trained weights is not settled: take these weights for non-commercial research, too.
"""
MADE = "Images that this project's own code draws, free to use under its licence."
CARRIED = "`bank.safetensors` holds {count} images of the bank it was trained with. "
NOT_CARRIED = """\
It was trained with a bank, images that stand for whatever else there is, and carries their ids alone. Until it gets
another one it takes a dozen photographs that come with scikit-image, two to three points of mIoU below what it reaches
with 15 photographs of yours. """
CALIBRATE = """\
Give it 15 to 60 pictures of the kind that queries are, which do *not* show the class that is looked for:
`model.calibrate(images)`. No labels are needed.
"""
NOT_MEASURED = "Not measured.\n"


@dataclass(frozen=True, kw_only=True)
class Terms:
    """Under which terms a data set is.

    Attributes:
        text: Markdown for the model card.
        licence: of weights that were trained on it, as the Hugging Face hub names it.
        images: whether a checkpoint may hold some of its images.
        figures: Markdown file whose first section is a table of the recipe on this data set, if there is one.
    """

    text: str
    licence: str = "other"
    images: bool = False
    figures: Path | None = None


TERMS = {
    "vocmsrc20": Terms(text=PHOTOGRAPHS, figures=STUDIED),
    "vocmsrc20more": Terms(text=PHOTOGRAPHS),
    "msrc15": Terms(text=PHOTOGRAPHS),
    "shapes4i": Terms(text=MADE, licence="mit", images=True),
}


@dataclass(frozen=True, kw_only=True)
class Release(DatasetOptions):
    """Options of this script."""

    episodes: tyro.conf.Suppress[CountOrNone] = None
    backbone: Name = SOURCE
    """trained on"""
    terms: File = None
    """Markdown on the terms of the data, for the card; needed for a data set that this script does not know"""
    out: Annotated[Path, *option("DIR", Path)]
    """folder of the checkpoint"""


def terms_of(name: str, file: Path | None) -> Terms:
    """The terms of a data set by its name, with the text of `file` where one is given.

    Raises:
        UserError: neither is known, or the file can't be read.
    """
    if file is None and name not in TERMS:
        raise UserError(
            f"the terms of data set {name!r} are not known here, and a checkpoint that is given on must say them: "
            f"write them to a Markdown file and pass --terms FILE"
        )
    if file is None:
        return TERMS[name]
    try:
        return replace(TERMS.get(name, Terms(text="")), text=file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--terms {file} can't be read: {error}") from error


def as_studied(cell: AnyCell) -> bool:
    """Whether the training is the one that figures are known of."""
    return isinstance(cell, TrainingCell) and cell.backbone == SOURCE and cell.train.steps == RECIPE.train.steps


def first_table(document: Path) -> tuple[str, str]:
    """Heading and table of the first section that has a table in a Markdown file.

    Raises:
        UserError: there is none.
    """
    heading, rows = "", list[str]()
    for line in document.read_text(encoding="utf-8").splitlines():
        if line.startswith("|"):
            rows.append(line)
        elif rows:
            break
        elif line.startswith("## "):
            heading = line.removeprefix("## ")
    if not rows:
        raise UserError(f"{document} has no table of figures for the model card; restore it")
    return heading, "\n".join(rows)


def notes(terms: Terms, shipped: int) -> dict[str, str]:
    """Sections of the model card, Markdown by heading."""
    figures = NOT_MEASURED
    if terms.figures is not None:
        heading, table = first_table(terms.figures)
        figures = (
            f"Not of this checkpoint, which was trained on all classes and has none left to be tested on, but with a "
            f"fold left out each, by a recipe without parts and of 800 steps; what these change is in the same "
            f"document (docs/results/{terms.figures.name}: {heading}); mIoU in %:\n\n{table}\n"
        )
    carried = CARRIED.format(count=shipped) if shipped else NOT_CARRIED
    return {"Data and terms": terms.text, "Bank": carried + CALIBRATE, "On backbones that it has not seen": figures}


def build(asked: Release) -> Grid:
    """One training cell on all classes."""
    (source,) = asked.find_backbones([asked.backbone]).values()
    data = open_data(asked.dataset, shots=1)
    return [training_cell(data, ALL_CLASSES, source, RECIPE, variant="release", seed=asked.seed)], data.files()


def publish(checkpoint: Path, out: Path, dataset: Path, terms: Terms) -> None:
    """Write the folder that is given on, from a training cell's checkpoint.

    Args:
        checkpoint: folder of the training cell, or its checkpoint.
        out: folder to write to.
        dataset: ``dataset.json`` of the training.
        terms: of the data set.

    Raises:
        UserError: a damaged checkpoint, weights that are not finite in float16, or a folder that can't be written.
    """
    import torch

    from diffup.evaluation.bank import BankImages
    from diffup.models.checkpoint import BANK, CARD, CONFIG, WEIGHTS, find_checkpoint, load_checkpoint, save_checkpoint
    from diffup.models.checkpoint import trained_with as training_of

    folder = find_checkpoint(checkpoint)
    net, facts = load_checkpoint(folder), json.loads((folder / CONFIG).read_text())["facts"]
    shipped: list[str] = facts.get("bank", [])[:SHIPPED] if terms.images else []
    facts |= {"licence": terms.licence, "notes": notes(terms, len(shipped))}
    files = [WEIGHTS, CONFIG, CARD]
    try:
        if shipped:
            images = BankImages.of([_pictured(dataset, i) for i in shipped], training_of(facts, folder)[2])
            write_in_full(out / BANK, images.dumped())
            files.append(BANK)
        else:
            (out / BANK).unlink(missing_ok=True)
        save_checkpoint(net, out, facts, torch.float16)
        sums = [f"{hashlib.sha256((out / name).read_bytes()).hexdigest()}  {name}\n" for name in sorted(files)]
        write_in_full(out / SUMS, "".join(sums).encode())
    except OSError as error:
        raise UserError(f"{out} can't be written ({error}); choose another --out or make room") from error


def _pictured(path: Path, image_id: str) -> tuple[NDArray[np.uint8], NDArray[np.bool_] | None]:
    """An image [H, W, 3] with where it shows an object of any class [H, W]."""
    dataset = open_dataset(path)
    shown = [dataset.mask(image_id, class_index) == 1 for class_index in sorted(dataset.areas[image_id])]
    return dataset.image(image_id), np.logical_or.reduce(shown) if shown else None


STUDY = Study(name="release", description=__doc__, options=Release, build=build)


def release(asked: Release) -> int:
    """Train, and write the checkpoint; returns the exit code.

    Raises:
        UserError: a user's mistake.
    """
    (cell,), files = STUDY.grid(asked)
    terms = terms_of(cell.dataset, asked.terms)  # known before it is trained
    if not as_studied(cell):
        terms = replace(terms, figures=None)
    code = run_study(STUDY, asked)
    if code or asked.run.dry_run:
        return code
    publish(open_results(asked.run, STUDY.name).root / cell.key(), asked.out, files[cell.dataset], terms)
    print(f"checkpoint  {asked.out}", flush=True)
    return code


def main(argv: Sequence[str] | None = None) -> int:
    """The command line."""
    return command_line(lambda: release(STUDY.parse(argv)))


if __name__ == "__main__":
    sys.exit(main())
