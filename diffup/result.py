"""What the Python API says of a query, and how it is shown and saved."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from diffup.data.overlay import overlay
from diffup.errors import UserError
from diffup.files import as_path, write_in_full
from diffup.support import AnyImage, to_rgb

THRESHOLD = 0.5
JPEG_QUALITY = 90
SHOWN_SIDE = 800  # pixels, of the longer side of what a notebook shows
DIGITS = 6  # of figures in files


@dataclass(frozen=True, eq=False, repr=False)
class Result:
    """What DiffUp says of one query, at the query's own size. A notebook shows it as a picture.

    Attributes:
        mask: [H, W] bool, probability > 0.5.
        probability: [H, W] float32 in [0, 1]; with several samples their mean.
        variance: [H, W] float32 > 0: UAPF's, how uncertain the priors leave a pixel; from a checkpoint that reads
            evidence, p (1 - p) of the probability p.
        predicted_iou: DQM's estimate of the mask's IoU in [0, 1]; with several samples their mean.
        spread: [H, W] float32, standard deviation of the probability over samples; None for one sample.
        image: the query, [H, W, 3] uint8 (RGB); None where it was given as features.
        prior: [H, W] float32 in [0, 1]: UAPF's mean, what the priors say before the decoder draws the mask.
    """

    mask: NDArray[np.bool_]
    probability: NDArray[np.float32]
    variance: NDArray[np.float32]
    predicted_iou: float
    spread: NDArray[np.float32] | None = None
    image: NDArray[np.uint8] | None = None
    prior: NDArray[np.float32] | None = None

    def __repr__(self) -> str:
        height, width = self.mask.shape
        return (
            f"Result({width} × {height} pixels, area {100 * self.area:.1f} %, predicted IoU {self.predicted_iou:.2f}, "
            f"mean deviation {self.mean_deviation:.2f})"
        )

    @property
    def area(self) -> float:
        """Share of the pixels that are in the mask, in [0, 1]."""
        return float(self.mask.mean())

    @property
    def mean_deviation(self) -> float:
        """Mean over the pixels of the standard deviation, the square root of `variance`."""
        return float(np.sqrt(self.variance).mean())

    def figures(self) -> dict[str, Any]:
        """The numbers that `save` writes: width, height (pixels), predicted_iou, mean_deviation and area."""
        height, width = self.mask.shape
        estimates = {"predicted_iou": self.predicted_iou, "mean_deviation": self.mean_deviation, "area": self.area}
        return {"width": width, "height": height, **{name: round(value, DIGITS) for name, value in estimates.items()}}

    def overlay(self, image: AnyImage | None = None, alpha: float = 0.35) -> Image.Image:
        """The query with the mask tinted and outlined, in a colour that the picture does not have.

        Args:
            image: the query, as `DiffUp.encode` takes images; None for the one that was segmented.
            alpha: share of the colour inside the mask, in [0, 1]; 0 leaves the contour alone.

        Raises:
            UserError: no image, one of another size than the mask, or an `alpha` out of range.
        """
        if not 0 <= alpha <= 1:
            raise UserError(f"alpha is a share from 0 to 1, not {alpha!r:.60}")
        pixels = self.image if image is None else to_rgb(image, "image")
        if pixels is None:
            raise UserError("the query was given as features, which hold no picture; pass it: overlay(image)")
        if pixels.shape[:2] != self.mask.shape:
            raise UserError(
                f"the image is {pixels.shape[0]} × {pixels.shape[1]} (H × W) and the mask {self.mask.shape[0]} × "
                f"{self.mask.shape[1]}; pass the query itself"
            )
        return overlay(pixels, self.mask, alpha)

    def save(
        self, path: str | Path, image: AnyImage | None = None, facts: Mapping[str, Any] | None = None
    ) -> dict[str, Path]:
        """Write the mask (PNG, 0 and 255), the overlay (JPEG) and `figures` (JSON), each whole or not at all.

        Args:
            path: a folder, which gets ``mask.png``, ``overlay.jpg`` and ``result.json``; or the mask's own
                ``NAME.png``, beside which ``NAME_overlay.jpg`` and ``NAME.json`` are written.
            image: as in `overlay`. Without any image no overlay is written.
            facts: further entries of the JSON.

        Returns:
            The files written: ``mask``, ``overlay`` (if there is one) and ``json``, which is written last.

        Raises:
            UserError: they can't be written, or an image of another size.
        """
        target = as_path(path, "path")
        files = {name: target / file for name, file in (("mask", "mask.png"), ("overlay", "overlay.jpg"))}
        files["json"] = target / "result.json"
        if target.suffix.lower() == ".png":
            files = saved_files(target.parent, target.name[: -len(".png")]) | {"mask": target}
        contents = {"mask": _encoded(Image.fromarray(self.mask), "PNG")}
        if image is not None or self.image is not None:
            contents["overlay"] = _encoded(self.overlay(image), "JPEG", quality=JPEG_QUALITY)
        contents["json"] = json.dumps({**(facts or {}), **self.figures()}, indent=1).encode() + b"\n"
        try:
            for name, file in files.items():
                if name in contents:
                    write_in_full(file, contents[name])
                else:
                    file.unlink(missing_ok=True)  # an earlier result's
        except OSError as error:
            raise UserError(f"{target} can't be written ({error}); choose another place or make room") from error
        return {name: file for name, file in files.items() if name in contents}

    def _repr_png_(self) -> bytes:
        """The overlay for a notebook, or the mask where there is no image."""
        shown = Image.fromarray(self.mask).convert("L") if self.image is None else self.overlay()
        shown.thumbnail((SHOWN_SIDE, SHOWN_SIDE))
        return _encoded(shown, "PNG")


def saved_files(folder: Path, name: str) -> dict[str, Path]:
    """Where `Result.save` writes to under ``folder/name.png``, by what it is, the JSON last."""
    return {
        "mask": folder / f"{name}.png",
        "overlay": folder / f"{name}_overlay.jpg",
        "json": folder / f"{name}.json",
    }


def _encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    content = io.BytesIO()
    (image.convert("L") if image.mode == "1" else image).save(content, kind, **options)
    return content.getvalue()
