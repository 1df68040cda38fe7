"""How figures look and are written: one size of type, colours that colour-blind readers tell apart, marks for grey
print, and the same bytes from the same results.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import pandas as pd

# Okabe and Ito's colours, and marks and dashes that go with them where there is no colour.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = "osD^vPX"
DASHES = ("-", "--", ":", "-.")
RC: Any = {
    "font.size": 8.5, "axes.titlesize": 9, "axes.grid": True, "grid.color": "0.92", "grid.linewidth": 0.6,
    "axes.axisbelow": True, "axes.spines.top": False, "axes.spines.right": False, "legend.frameon": False,
    "lines.linewidth": 1.4, "lines.markersize": 4.5, "svg.hashsalt": "diffup", "svg.fonttype": "none",
    "pdf.fonttype": 42,
}  # fmt: skip
ENDINGS = ("png", "pdf")
NO_DATE = {"pdf": {"CreationDate": None}, "svg": {"Date": None}, "png": None}


@dataclass(frozen=True, eq=False)
class Plot:
    """A drawn figure.

    Attributes:
        name: file name and LaTeX label.
        caption: what it shows, with the protocol it comes from.
        data: what is drawn, a row a mark: panel, series, x, y, low, high, keys (of the cells).
        images: bytes by ending, ``png``, ``pdf`` and ``svg``.
    """

    name: str
    caption: str
    data: pd.DataFrame
    images: dict[str, bytes]

    def write(self, folder: Path) -> list[Path]:
        """Write ``<name>.png``, ``.pdf`` and ``.csv``."""
        contents = {ending: self.images[ending] for ending in ENDINGS}
        contents["csv"] = self.data.to_csv(index=False, lineterminator="\n").encode()
        paths = []
        for ending, content in contents.items():
            paths.append(folder / f"{self.name}.{ending}")
            paths[-1].write_bytes(content)
        return paths


@contextmanager
def canvas(columns: int = 1, *, width: float = 3.4, height: float = 2.8, rows: int = 1, **more: Any) -> Iterator[Any]:
    """A figure and its axes [columns] (rows × columns if there are several rows), each `width` × `height` inches."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    with matplotlib.rc_context(RC):
        figure, axes = pyplot.subplots(
            rows, columns, figsize=(width * columns, height * rows), layout="constrained", squeeze=False, **more
        )
        try:
            yield figure, axes[0] if rows == 1 else axes
        finally:
            pyplot.close(figure)


def finish(figure: Any, name: str, caption: str, marks: list[dict[str, Any]]) -> Plot:
    """The figure in every format; `marks` are rows of `Plot.data`."""
    images = {}
    for ending in (*ENDINGS, "svg"):
        buffer = BytesIO()
        figure.savefig(buffer, format=ending, dpi=160, metadata=NO_DATE[ending])
        images[ending] = buffer.getvalue()
    columns = ["panel", "series", "x", "y", "low", "high", "keys"]
    return Plot(name, caption, pd.DataFrame(marks, columns=columns), images)


def mark(
    series: str, x: object, y: float, low: float, high: float, keys: tuple[str, ...], panel: str = ""
) -> dict[str, Any]:
    """A row of `Plot.data`."""
    return {"panel": panel, "series": series, "x": x, "y": y, "low": low, "high": high, "keys": " ".join(keys)}
