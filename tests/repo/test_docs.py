"""Documents say what is true of the repository: paths, links, commands, and the README's Python runs."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from diffup import DiffUp

ROOT = Path(__file__).resolve().parents[2]
README = ROOT / "README.md"
DOCUMENTS = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])
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
def test_the_readmes_python_runs(
    model: DiffUp, results: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """With the quickstart's checkpoint replaced by a small one, and fewer images per class."""
    from diffup.data.shapes4i import generate
    from tests.helpers.trained import CELL

    block = re.search(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), flags=re.DOTALL)
    assert block and len(block[1].splitlines()) <= 12
    home = tmp_path / ".diffup"
    generate(home / "datasets" / "shapes4i-v1-60-0", images=8, progress=False)
    key = re.search(r"quickstart/(\w{12})", block[1])
    assert key
    (home / "results" / "quickstart").mkdir(parents=True)
    (home / "results" / "quickstart" / key[1]).symlink_to(results / CELL.key())
    monkeypatch.setenv("HOME", str(tmp_path))
    exec(compile(block[1], "README.md", "exec"), {})
    iou, share = map(float, capsys.readouterr().out.split())
    assert 0 <= iou <= 1 and 0 <= share <= 1


def test_the_readme_names_the_quickstarts_checkpoint() -> None:
    golden = (ROOT / "tests" / "golden" / "keys.json").read_text()
    key = re.search(r"quickstart/(\w{12})", README.read_text(encoding="utf-8"))
    assert key and f'"first": "{key[1]}"' in golden
