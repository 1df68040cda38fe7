"""How figures look and are written: one font size, colours that are distinct for colour-blind readers, markers for grey
print, and the same bytes from the same results, whatever a user's matplotlib settings are.
"""

from __future__ import annotations

import math
import os
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, chdir, contextmanager
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pandas as pd

# Okabe and Ito's colours, then three of Tol's.
COLOURS = (
    "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#882255", "#44AA99", "#999933",
)  # fmt: skip
RC: Any = {
    "font.size": 8.5, "axes.titlesize": 9, "axes.grid": True, "grid.color": "0.92", "grid.linewidth": 0.6,
    "axes.axisbelow": True, "axes.spines.top": False, "axes.spines.right": False, "legend.frameon": False,
    "lines.linewidth": 1.4, "lines.markersize": 4.5, "svg.hashsalt": "diffup", "svg.fonttype": "none",
    "pdf.fonttype": 42,
}  # fmt: skip
ENDINGS = ("png", "pdf")
COLUMN = 3.4  # inches: width of a column of a paper in two columns
DPI = 200
NO_DATE = {"pdf": {"CreationDate": None}, "svg": {"Date": None}, "png": None}


@dataclass(frozen=True, eq=False)
class Plot:
    """A drawn figure.

    Attributes:
        name: file name and LaTeX label.
        caption: what it shows, with the protocol it comes from.
        data: what is drawn, one row per mark: panel, series, x, y, low, high, keys (of the cells).
        images: bytes by ending, ``png``, ``pdf`` and ``svg``.
        inches: its width, at which its text has the size of a caption.
    """

    name: str
    caption: str
    data: pd.DataFrame
    images: dict[str, bytes]
    inches: float = COLUMN

    def files(self) -> dict[str, bytes]:
        """``<name>.png``, ``.pdf`` and ``.csv``, by file name."""
        contents = {f"{self.name}.{ending}": self.images[ending] for ending in ENDINGS}
        return {**contents, f"{self.name}.csv": self.data.to_csv(index=False, lineterminator="\n").encode()}


def _matplotlib() -> tuple[Any, Any, Any]:
    """matplotlib, imported without the user's settings: a bad backend or settings file would stop the import."""
    with ExitStack() as stack:
        if "matplotlib" not in sys.modules:
            stack.enter_context(patch.dict(os.environ, MPLBACKEND="agg", MATPLOTLIBRC=os.devnull))
            if Path("matplotlibrc").is_file():  # which matplotlib prefers to $MATPLOTLIBRC
                stack.enter_context(chdir(Path(__file__).parent / "report" / "assets"))
        import matplotlib
        from matplotlib.backends import backend_agg
        from matplotlib.figure import Figure
    return matplotlib, Figure, backend_agg.FigureCanvasAgg


def _settings(defaults: Any) -> dict[str, Any]:
    """matplotlib's defaults with `RC`; backends are not among them, since `canvas` names its own."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of settings that are deprecated
        return {**{name: value for name, value in defaults.items() if not name.startswith("backend")}, **RC}


@contextmanager
def canvas(
    columns: int = 1, *, width: float = COLUMN, height: float = 2.8, rows: int = 1, **more: Any
) -> Iterator[Any]:
    """A figure and its axes [columns] (rows × columns if there are several rows), each `width` × `height` inches.

    The figure starts from matplotlib's defaults and is drawn by Agg, without pyplot: ``matplotlibrc`` files, style
    folders and ``MPLBACKEND`` have no part in it. Call `finish` within the context.
    """
    matplotlib, figure_type, canvas_type = _matplotlib()
    with matplotlib.rc_context(_settings(matplotlib.rcParamsDefault)):
        figure = figure_type(figsize=(width * columns, height * rows), layout="constrained")
        canvas_type(figure)
        axes = figure.subplots(rows, columns, squeeze=False, **more)
        yield figure, axes[0] if rows == 1 else axes


def finish(figure: Any, name: str, caption: str, marks: list[dict[str, Any]]) -> Plot:
    """The figure in every format; `marks` are rows of `Plot.data`."""
    images = {}
    for ending in (*ENDINGS, "svg"):
        buffer = BytesIO()
        figure.savefig(buffer, format=ending, dpi=DPI, metadata=NO_DATE[ending])
        images[ending] = buffer.getvalue()
    columns = ["panel", "series", "x", "y", "low", "high", "keys"]
    return Plot(name, caption, pd.DataFrame(marks, columns=columns), images, float(figure.get_size_inches()[0]))


def log_ticks(
    axes: Any, ticks: Sequence[float], low: float = -math.inf, high: float = math.inf, *, axis: str = "x"
) -> None:
    """Major ticks at those values that are within the limits, no minor ticks."""
    inside = [tick for tick in ticks if low <= tick <= high]
    getattr(axes, f"set_{axis}ticks")(inside, [f"{tick:g}" for tick in inside])
    axes.minorticks_off()


def mark(
    series: str, x: object, y: float, low: float, high: float, keys: tuple[str, ...], panel: str = ""
) -> dict[str, Any]:
    """A row of `Plot.data`."""
    return {"panel": panel, "series": series, "x": x, "y": y, "low": low, "high": high, "keys": " ".join(keys)}
