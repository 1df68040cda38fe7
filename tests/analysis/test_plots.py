"""Figures: drawn from the numbers of the tables, and the numbers lie beside them."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from analysis.files import write_files
from analysis.plots import study as study_plots
from analysis.plots.distributions import classes_plot, episodes_plot
from analysis.plots.looks import by_cost, colour_of, style
from analysis.plots.study import cost_plot, shots_plot, steps_plot, upgrade_plot
from analysis.plotting import Plot
from analysis.results import Results, class_names, load_results
from analysis.tables.places import Task
from analysis.tables.scores import Study, studies
from analysis.tables.table import Number
from diffup.config import SampleConfig
from diffup.evaluation.metrics import per_class_iou
from diffup.grid.cell import Cell
from tests.helpers.stores import BETTER, CLIP, HOME, cell, grid, write_cell, write_store

FAST = 100
ROOT = Path(__file__).resolve().parents[2]
COSTS = {"backbone_mparams": 1.0, "encode_gflops": 2.0, "prior_gflops": 0.5, "decoder_mparams": 0.3}


def read(root: Path) -> tuple[Results, Study]:
    results = load_results(root)
    (study,) = studies(results, resamples=FAST)
    return results, study


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Results, Study]:
    steps = [cell(fold=fold, variant=f"steps_{n}", sample=SampleConfig(steps=n)) for n in (1, 4, 8) for fold in (0, 1)]
    again = [cell(fold=fold, backbone=BETTER, trained_on=BETTER, checkpoint=f"again{fold}") for fold in (0, 1)]
    cells = [*grid(), *steps, *again, *(cell(fold=fold, shots=10) for fold in (0, 1))]
    return read(write_store(tmp_path_factory.mktemp("store"), cells))


def check(plot: Plot | None, folder: Path) -> pd.DataFrame:
    """The data of a plot, whose files are what they should be."""
    assert plot is not None
    paths = write_files(folder, plot.files())
    assert {path.suffix for path in paths} == {".png", ".pdf", ".csv"}
    assert paths[0].read_bytes()[:8] == b"\x89PNG\r\n\x1a\n" and paths[1].read_bytes()[:5] == b"%PDF-"
    assert len(paths[0].read_bytes()) > 5000 and b"<svg" in plot.images["svg"]
    data = pd.read_csv(folder / f"{plot.name}.csv")
    assert len(data) == len(plot.data) > 0
    inside = (data["low"] <= data["y"] + 1e-9) & (data["y"] <= data["high"] + 1e-9)
    assert inside.all()
    return data


def test_shots(made: tuple[Results, Study], tmp_path: Path) -> None:
    """Every mark is the table's number of that backbone, method and task."""
    _, study = made
    data: Any = check(shots_plot(study), tmp_path)
    mine = next(s for s in study.methods if (s.backbone, s.variant, s.trained_on) == (HOME, "diffup", HOME))
    line: Any = data[(data["panel"] == "mask") & (data["series"] == f"{HOME}, DiffUp")].set_index("x")
    assert list(line.index) == [1, 5, 10]
    for shots in (1, 5, 10):
        number = study.number(mine, Task(shots, "mask"))
        assert isinstance(number, Number)
        assert (line.loc[shots, "y"], line.loc[shots, "low"]) == pytest.approx((number.value, number.low))
        assert line.loc[shots, "keys"].split() == list(number.keys)


GFLOPS = {HOME: 12.0, BETTER: 4.5, CLIP: 0.9}


def with_costs(study: Study) -> Study:
    return replace(study, cells=study.cells.assign(encode_gflops=study.cells["backbone"].map(GFLOPS)), scores={})


def test_upgrade_goes_from_the_cheapest_backbone_to_the_dearest(made: tuple[Results, Study], tmp_path: Path) -> None:
    data: Any = check(upgrade_plot(with_costs(made[1])), tmp_path)
    rows = {name: part["x"].tolist() for name, part in data.groupby("series")}
    assert rows == {
        f"DiffUp, trained on {HOME}": [CLIP, BETTER, HOME],
        "prior mean": [CLIP, BETTER, HOME],
        "DiffUp, re-trained": [BETTER],
    }
    assert by_cost(made[1], [HOME, BETTER, CLIP]) == [HOME, BETTER, CLIP], "without costs, the order of the tables"


def test_upgrade_joins_no_backbones_and_keeps_its_labels_inside(
    made: tuple[Results, Study], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Backbones have no order that a line could follow; their names are inside the axes, whatever their length."""
    drawn: list[Any] = []
    monkeypatch.setattr(study_plots, "finish", lambda figure, *_: drawn.append(figure))
    upgrade_plot(with_costs(made[1]))
    (figure,) = drawn
    figure.canvas.draw()
    (axes,) = figure.axes
    assert all(len(line.get_xdata()) == 1 for line in axes.lines), "a mark stands alone"
    names = [text for text in axes.texts if "GFLOPs" in text.get_text()]
    assert [name.get_text() for name in names] == [
        f"{CLIP}, 0.9 GFLOPs an image", f"{BETTER}, 4.5 GFLOPs an image",
        f"{HOME} (training backbone), 12 GFLOPs an image",
    ]  # fmt: skip
    box = axes.get_window_extent()
    for name in names:
        extent = name.get_window_extent()
        assert box.x0 <= extent.x0 and extent.x1 <= box.x1 and box.y0 <= extent.y0 and extent.y1 <= box.y1
    gains = [text.get_text() for text in axes.texts if text not in names]
    assert len(gains) == 2 and all(gain.startswith("+") for gain in gains)


def test_a_backbone_has_one_colour_and_a_method_one_mark_in_every_figure(made: tuple[Results, Study]) -> None:
    study = with_costs(made[1])
    colours = {name: colour_of(study, name) for name in (HOME, BETTER, CLIP)}
    assert len({*colours.values()}) == 3
    marks = {(m.variant, m.backbone): style(study, m) for m in study.methods if m.trained_on in ("", HOME)}
    for (variant, backbone), look in marks.items():
        assert look["color"] == colours[backbone]
        assert look["marker"] == marks.get((variant, HOME), look)["marker"]
    assert marks["diffup", HOME]["marker"] != marks["prior_mean", HOME]["marker"]
    again = next(m for m in study.methods if m.trained_on == BETTER)
    assert style(study, again)["markerfacecolor"] == "none", "the re-trained reference is hollow"
    for plot in (shots_plot(study), upgrade_plot(study)):
        assert plot is not None
        svg = plot.images["svg"].decode().lower()
        assert all(colour.lower() in svg for colour in colours.values())


def test_steps_are_those_of_the_cells(made: tuple[Results, Study], tmp_path: Path) -> None:
    data: Any = check(steps_plot(made[1]), tmp_path)
    default = SampleConfig().steps
    assert data["x"].tolist() == sorted({1, 4, 8, default}) and set(data["series"]) == {HOME}


def test_classes_are_paired_differences(made: tuple[Results, Study], tmp_path: Path) -> None:
    results, study = made
    names = class_names(results, study.counts)
    assert names == {c: f"class {c}" for c in range(8)}
    data: Any = check(classes_plot(study, names), tmp_path)
    here: Any = data[data["panel"] == HOME].set_index("x")
    expected: dict[int, float] = {}
    for fold in (0, 1):
        ours, theirs = (results.counts[cell(fold=fold, method=m).key()] for m in ("diffup", "prior_mean"))
        classes = sorted(set(ours.class_id.tolist()))
        a, b = (per_class_iou(c.class_id, c.counts[:, 0], c.counts[:, 1], classes) for c in (ours, theirs))
        expected |= {c: a[c] - b[c] for c in classes}
    assert {name: here.loc[name, "y"] for name in here.index} == {
        f"class {c}": pytest.approx(gap) for c, gap in expected.items()
    }


def test_intervals_shrink_less_than_single_episodes_pretend(made: tuple[Results, Study], tmp_path: Path) -> None:
    data: Any = check(episodes_plot(made[1]), tmp_path)
    clustered, single = (
        data[data["series"] == name].set_index("x")["y"] for name in ("by query image", "by episode (too narrow)")
    )
    assert list(clustered.index) == [25, 50, 100, 120]
    assert clustered.iloc[-1] > single.iloc[-1] and (np.diff(single) < 0).all()


def test_cost_counts_what_an_episode_takes(tmp_path: Path) -> None:
    cells = [cell(backbone=backbone, method=m) for backbone in (HOME, BETTER) for m in ("diffup", "prior_mean")]
    root = write_store(tmp_path / "store", cells)
    _, study = read(root)
    assert cost_plot(study) is None
    frame = study.cells.assign(**COSTS, decode_gflops=np.where(study.cells["trained_on"] != "", 1.5, np.nan))
    data: Any = check(cost_plot(replace(study, cells=frame, scores={})), tmp_path)
    assert data.set_index("series")["x"].to_dict() == {
        f"{backbone}, {name}": x for backbone in (HOME, BETTER) for name, x in (("DiffUp", 6.0), ("prior mean", 4.5))
    }


@pytest.mark.parametrize("cells", [[cell()], [cell(method="prior_mean")]], ids=["alone", "baseline"])
def test_a_store_of_one_cell_has_no_comparison(tmp_path: Path, cells: list[Cell]) -> None:
    for asked in cells:
        write_cell(tmp_path, asked)
    results, study = read(tmp_path)
    assert [plot(study) for plot in (shots_plot, upgrade_plot, cost_plot, steps_plot)] == [None] * 4
    assert classes_plot(study, class_names(results, study.counts)) is None


def test_the_same_results_give_the_same_bytes(made: tuple[Results, Study]) -> None:
    first, again = upgrade_plot(made[1]), upgrade_plot(made[1])
    assert first is not None and again is not None and first.images == again.images


DRAWN = (
    "import hashlib\n"
    "from analysis.plotting import canvas, finish\n"
    "with canvas(2) as (figure, axes):\n"
    "    axes[0].plot([1000.5, 2000], label='a')\n"
    "    axes[0].set_title('mIoU')\n"
    "    axes[0].legend()\n"
    "    images = finish(figure, 'x', 'y', []).images\n"
    "print(sorted((ending, hashlib.sha256(content).hexdigest()) for ending, content in images.items()))\n"
)
SETTINGS = (
    "axes.facecolor: black\nfont.family: serif\ntext.usetex: True\nsavefig.bbox: tight\nsvg.fonttype: path\n"
    "axes.formatter.use_locale: True\nbackend: TkAgg\nfigure.dpi: 300\npath.sketch: 1, 100, 2\nlines.marker: x\n"
)
HOSTILE: dict[str, tuple[str, bytes, dict[str, str]]] = {
    "working directory": ("matplotlibrc", SETTINGS.encode(), {}),
    "working directory, not text": ("matplotlibrc", b"\xff\xfe\x00", {}),
    "home": (".config/matplotlib/matplotlibrc", SETTINGS.encode(), {}),
    "MATPLOTLIBRC": ("mine.txt", SETTINGS.encode(), {"MATPLOTLIBRC": "mine.txt"}),
    "MATPLOTLIBRC, not text": ("mine.txt", b"\xff\xfe\x00", {"MATPLOTLIBRC": "mine.txt"}),
    "MATPLOTLIBRC, nonsense": ("mine.txt", b"axes: :\nno such thing\n", {"MATPLOTLIBRC": "mine.txt"}),
    "MPLCONFIGDIR": ("conf/matplotlibrc", SETTINGS.encode(), {"MPLCONFIGDIR": "conf"}),
    "a style, not text": ("conf/stylelib/mine.mplstyle", b"\xff\xfe\x00", {"MPLCONFIGDIR": "conf"}),
    "a style called classic": ("conf/stylelib/classic.mplstyle", SETTINGS.encode(), {"MPLCONFIGDIR": "conf"}),
    "no such backend": ("unused", b"", {"MPLBACKEND": "nonsense"}),
    "a backend without a display": ("unused", b"", {"MPLBACKEND": "TkAgg", "DISPLAY": ""}),
}


def drawn_elsewhere(folder: Path, **environment: str) -> str:
    """Hashes of a figure that another process draws in this folder, which is its home too."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("MPL", "MATPLOTLIB", "XDG_"))}
    env = kept | {"PYTHONPATH": str(ROOT), "HOME": str(folder)} | environment
    done = subprocess.run([sys.executable, "-c", DRAWN], cwd=folder, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> str:
    return drawn_elsewhere(tmp_path_factory.mktemp("plain"))


@pytest.mark.slow
@pytest.mark.parametrize("kind", HOSTILE)
def test_a_users_matplotlib_settings_change_nothing(kind: str, plain: str, tmp_path: Path) -> None:
    """Equal bytes of PNG, PDF and SVG, wherever the settings are, and where they would stop matplotlib's import."""
    name, content, environment = HOSTILE[kind]
    path = tmp_path / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    assert drawn_elsewhere(tmp_path, **environment) == plain


def test_settings_of_this_process_change_nothing_and_are_left_alone(made: tuple[Results, Study]) -> None:
    """As in a notebook that has matplotlib imported and set up."""
    import matplotlib

    before = upgrade_plot(made[1])
    with matplotlib.rc_context({"axes.facecolor": "black", "font.size": 30, "text.usetex": True}):
        after = upgrade_plot(made[1])
        assert (matplotlib.rcParams["axes.facecolor"], matplotlib.rcParams["font.size"]) == ("black", 30)
    assert before is not None and after is not None and before.images == after.images
