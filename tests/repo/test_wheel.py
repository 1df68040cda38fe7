"""The release: the wheel holds the library alone and segments an image without the extras, whatever is beside it.

The wheel is installed into an environment of its dependencies and nothing else; these are linked from the environment
that runs the tests, in place of a download.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
import venv
import zipfile
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parents[2]
ABSENT = ("ray", "mlflow", "pandas", "matplotlib", "open_clip")
SEGMENT = """
import sys
from importlib.util import find_spec
import numpy as np
from diffup import DiffUp, Support
from diffup.errors import UserError
assert not [name for name in sys.argv[2:] if find_spec(name)]
image = np.zeros((60, 80, 3), np.uint8)
image[20:40, 20:40] = 255
model = DiffUp.load(sys.argv[1], companion="")
assert model.segment(image, [Support(image, image[..., 0] > 0, "mask")]).mask.shape == (60, 80)
try:
    DiffUp.load(sys.argv[1])
except UserError as error:
    print(error)
"""

pytestmark = pytest.mark.slow


def run(*command: str | Path, cwd: Path, code: int = 0) -> str:
    """What a command prints."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    words = [str(word) for word in command]
    done = subprocess.run(words, cwd=cwd, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def dist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with the sdist, and the wheel that was built from it."""
    folder = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", folder, cwd=ROOT)
    return folder


def link_requirements(site: Path, distribution: str, seen: set[str]) -> None:
    """Link the installed files of what a distribution requires, without extras, and of what that requires in turn."""
    found = metadata.distribution(distribution)
    for part in {file.parts[0] for file in found.files or () if file.parts[0] not in ("..", "__pycache__")}:
        if not (site / part).exists():
            (site / part).symlink_to(Path(str(found.locate_file(part))))
    for requirement in map(Requirement, found.requires or ()):
        if requirement.name not in seen and (requirement.marker is None or requirement.marker.evaluate({"extra": ""})):
            seen.add(requirement.name)
            link_requirements(site, requirement.name, seen)


@pytest.fixture(scope="module")
def installed(dist: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of the programs of an environment with the wheel and its dependencies."""
    folder = tmp_path_factory.mktemp("clean")
    venv.create(folder)
    programs = folder / "bin"
    (wheel,) = dist.glob("*.whl")
    run(sys.executable, "-m", "pip", "--python", programs / "python", "install", "--no-deps", wheel, cwd=folder)
    (site,) = folder.glob("lib/python3*/site-packages")
    requires = [
        Requirement(text) for text in metadata.Distribution.at(next(site.glob("diffup-*.dist-info"))).requires or ()
    ]
    for requirement in requires:
        if requirement.marker is None:
            link_requirements(site, requirement.name, set())
    return programs


@pytest.fixture
def elsewhere(tmp_path: Path) -> Path:
    """A user's folder with files that have the names of our packages; none may be imported."""
    for name in ("experiments/__init__.py", "analysis/__init__.py", "cluster.py"):
        path = tmp_path / "user" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("raise RuntimeError('a file of the user was imported')")
    return tmp_path / "user"


def test_the_archives_are_complete_and_the_wheel_has_the_library_alone(dist: Path) -> None:
    (wheel,), (sdist,) = dist.glob("*.whl"), dist.glob("*.tar.gz")
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.partition("/")[0].partition("-")[0] for name in names} == {"diffup"}
    assert {"diffup/py.typed", "diffup/backbones/embedded_weights/tiny_resnet.safetensors"} <= set(names)
    with tarfile.open(sdist) as archive:
        held = {name.partition("/")[2] for name in archive.getnames()}
    tracked = run("git", "ls-files", cwd=ROOT).splitlines()
    missing = {name for name in tracked if not name.startswith(".git") and (ROOT / name).is_file()} - held
    assert missing <= {".pre-commit-config.yaml"}
    run(sys.executable, "-m", "twine", "check", "--strict", wheel, sdist, cwd=dist)


def test_an_image_is_segmented_without_the_extras(installed: Path, elsewhere: Path, results: Path) -> None:
    from tests.helpers.trained import CELL

    printed = run(installed / "python", "-c", SEGMENT, results / CELL.key(), *ABSENT, cwd=elsewhere)
    assert "open_clip is not installed; run: pip install 'diffup[clip]'" in printed


def test_what_needs_an_extra_names_it(installed: Path, elsewhere: Path) -> None:
    for code, extra in (
        ("from diffup.backbones.load import load_backbone; load_backbone('open_clip:RN50/openai')", "clip"),
        ("from diffup.episodes.episode import Manifest; Manifest.frame(None)", "platform"),
    ):
        printed = run(installed / "python", "-c", code, cwd=elsewhere, code=1)
        assert f"pip install 'diffup[{extra}]'" in printed and "UserError" in printed


def test_the_command(installed: Path, elsewhere: Path, json_path: Path) -> None:
    printed = run(installed / "diffup", "--help", cwd=elsewhere)
    assert "backbones" in printed and "Run a study" not in printed
    needs = run(installed / "diffup", "run", "quickstart", cwd=elsewhere, code=2)
    assert needs.startswith("error: diffup run needs a clone of DiffUp; run in it: pip install ")
    assert run(installed / "diffup", "--version", cwd=elsewhere).startswith("diffup 0.")
    assert "nothing is wrong" in run(installed / "diffup", "data", "verify", json_path, cwd=elsewhere)
    assert "hsnet" in run(installed / "diffup", "protocols", cwd=elsewhere)
    assert "tiny_resnet" in run(installed / "diffup", "backbones", cwd=elsewhere)
    assert "no backbone has 'nothing'" in run(installed / "diffup", "backbones", "nothing", cwd=elsewhere, code=2)
    assert "resnet50" in run(installed / "diffup", "backbones", "ResNet", cwd=elsewhere).splitlines()


@pytest.mark.parametrize(("words", "seconds"), [(("python", "-c", "import diffup"), 0.3), (("diffup", "--help"), 1.0)])
def test_it_starts_fast(words: tuple[str, ...], seconds: float, installed: Path, elsewhere: Path) -> None:
    """In seconds of the processor, which do not depend on what else the machine does."""
    before = os.times()
    run(installed / words[0], *words[1:], cwd=elsewhere)
    after = os.times()
    assert after.children_user + after.children_system - before.children_user - before.children_system < seconds
