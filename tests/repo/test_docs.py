"""Documents say what is true of the repository: paths, links, commands, and the README's Python runs."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from PIL import Image

from diffup.errors import INSTALL
from tests.helpers.stores import cell, write_store
from tests.helpers.trained import CELL

if TYPE_CHECKING:
    from diffup.data.dataset import Dataset

ROOT = Path(__file__).resolve().parents[2]
README = ROOT / "README.md"
DOCUMENTS = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), *(ROOT / "docs" / "tutorials").glob("*.md")])
BLOCK = re.compile(r"```sh\ngit clone .*?```\n", re.DOTALL)
PACKAGES = "diffup|experiments|cluster|analysis|tools|benchmarks"


def words_of(path: Path) -> str:
    """A document's text; the changelog also names what no longer exists, so it is not looked at."""
    return "" if path.name == "CHANGELOG.md" else path.read_text(encoding="utf-8")


def test_the_readme_is_short() -> None:
    assert len(README.read_text(encoding="utf-8").split()) <= 1100


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_paths_in_documents_exist(path: Path) -> None:
    pattern = rf"(?<![\w/.~-])((?:{PACKAGES}|tests|docs)/[\w/]+(?:\.\w+)?)(?![\w*{{/<])"
    found = [name for name in re.findall(pattern, words_of(path)) if not name.startswith("experiments/ID/")]
    assert not [name for name in found if not (ROOT / name).exists()]


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_modules_in_documents_exist(path: Path) -> None:
    """Commands (``python -m a.b``) and names of modules, functions and classes (``a.b.name``)."""
    missing = []
    for name in re.findall(rf"(?:python -m |`)((?:{PACKAGES})(?:\.\w+)+)(?:`|\s)", words_of(path)):
        if name.endswith(".py"):
            continue
        parts = name.split(".")
        places = [ROOT.joinpath(*parts[:n]) for n in range(len(parts), 0, -1)]
        deepest = next(n for n, place in enumerate(places) if place.is_dir() or place.with_suffix(".py").is_file())
        owner = places[deepest]
        file = owner.with_suffix(".py") if owner.with_suffix(".py").is_file() else owner / "__init__.py"
        if deepest > 2 or (deepest and not re.search(rf"\b{parts[len(parts) - deepest]}\b", file.read_text())):
            missing.append(name)
    assert not missing


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_subcommands_in_documents_exist(path: Path) -> None:
    """Those of ``python -m analysis``, ``python -m cluster`` and ``diffup``."""
    from analysis.__main__ import COMMANDS as ANALYSIS
    from cluster.__main__ import COMMANDS as CLUSTER
    from diffup.cli import COMMANDS

    known = {"python -m analysis": [*ANALYSIS], "python -m cluster": [*CLUSTER], "diffup": [*COMMANDS]}
    found = re.findall(
        r"(?:^|`)(python -m analysis|python -m cluster|diffup) (\w+)", words_of(path), flags=re.MULTILINE
    )
    assert not [(command, name) for command, name in found if name not in known[command]]


def test_every_page_installs_it_in_the_same_way() -> None:
    """The README's block on the pages that begin with an install, and the platform's line where that is needed."""
    (block,) = BLOCK.findall(README.read_text(encoding="utf-8"))
    assert INSTALL in block
    for name in ("index", "predict", "demo", "tutorials/first"):
        assert BLOCK.findall((ROOT / "docs" / f"{name}.md").read_text(encoding="utf-8")) == [block], name
    for name in ("plugins", "training", "cluster", "tracking", "analysis", "tutorials/paper"):
        assert f"`{INSTALL}`" in (ROOT / "docs" / f"{name}.md").read_text(encoding="utf-8"), name
    commands = re.findall(r"pip install (.*)", "".join(words_of(path) for path in DOCUMENTS))
    assert not [words for words in commands if "diffup[" in words], "it is on no package index"


def test_every_study_is_in_the_table() -> None:
    rows = re.findall(
        r"^\| `(\w+)` \|", (ROOT / "docs" / "training.md").read_text(encoding="utf-8"), flags=re.MULTILINE
    )
    assert sorted(rows) == sorted(path.stem for path in (ROOT / "experiments").glob("[a-z]*.py"))


def test_what_a_paper_may_input_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files and macros that documents name, of a store with one fold and the quickstart's backbones."""
    from analysis.paper import main

    monkeypatch.setattr("analysis.paper.compiled", lambda out: [])
    made = [cell(backbone=f"tiny_{name}", shots=k) for name in ("resnet", "regnet") for k in (1, 5)]
    store, out = write_store(tmp_path / "store", made), tmp_path / "paper"
    assert main(["--results", str(store), "--out", str(out), "--resamples", "20"]) == 0
    text = "".join(words_of(path) for path in DOCUMENTS)
    files, figures = (set(re.findall(rf"\\{name}\{{([^}}]+)\}}", text)) for name in ("input", "includegraphics"))
    assert {"paper/main", "paper/numbers"} <= files and figures
    assert not [name for name in files if not (tmp_path / f"{name}.tex").is_file()]
    assert not [name for name in figures if not (tmp_path / f"{name}.pdf").is_file()]
    defined = set(re.findall(r"newcommand\{(\\du[A-Za-z]+)\}", (out / "numbers.tex").read_text()))
    macros = set(re.findall(r"\\du[A-Z][A-Za-z]+", text))
    assert macros and macros <= defined


def test_the_guided_tours_name_what_is_there() -> None:
    """12 modules from a study to its result, 6 from the API to the decoder; each defines what it is said to."""
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (\d+) \| `([\w/.]+)` \| (.+) \|$", text, flags=re.MULTILINE)
    assert [int(number) for number, _, _ in rows] == [*range(1, 13), *range(1, 8)]
    for _, name, words in rows:
        defined = (ROOT / name).read_text(encoding="utf-8")
        named = re.search(r"`(\w+)`", words)
        assert named and re.search(rf"^\s*(?:def|class) {named[1]}\b", defined, flags=re.MULTILINE), (name, words)


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_links_in_documents_lead_somewhere(path: Path) -> None:
    """Files of the repository, and headings in them."""
    lost = []
    for target in re.findall(r"\]\(([^)\s]+)\)", words_of(path)):
        if target.startswith(("http://", "https://")):
            continue
        name, _, anchor = target.partition("#")
        file = (path.parent / name).resolve() if name else path
        if not file.exists() or (anchor and anchor not in _anchors(file)):
            lost.append(target)
    assert not lost


def _anchors(path: Path) -> set[str]:
    """Anchors of a document's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", path.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.slow
def test_the_readmes_python_runs(data: Dataset, results: Path, tmp_path: Path) -> None:
    """With a small checkpoint, an embedded backbone and images of our own in place of those it names."""
    block = re.search(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), flags=re.DOTALL)
    assert block and len(block[1].splitlines()) <= 12
    target = data.folds[CELL.fold][0]
    photo, cow = [image for image in data.image_ids if target in data.areas[image]][:2]
    Image.fromarray(data.image(photo)).save(tmp_path / "photo.jpg")
    Image.fromarray(data.image(cow)).save(tmp_path / "cow.jpg")
    Image.fromarray((data.mask(cow, target) == 1).astype(np.uint8)).save(tmp_path / "cow.png")
    code = block[1]
    for named, ours in (
        ('"base"', repr(str(results / CELL.key()))),
        ("vit_small_patch14_dinov2.lvd142m", "tiny_regnet"),
        *((f'"{name}"', repr(str(tmp_path / name))) for name in ("photo.jpg", "cow.jpg", "cow.png")),
    ):
        assert code.count(named) == 1, named
        code = code.replace(named, ours)
    made: dict[str, Any] = {}
    exec(compile(code, "README.md", "exec"), made)
    assert made["result"].mask.shape == data.image(photo).shape[:2]
    assert made["better"].encoder.backbone.name == "tiny_regnet"
