"""Pictures that users of the page add: read in memory, kept in memory, never written to a disk."""

from __future__ import annotations

import base64
import io
import secrets
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from diffup.data.images import DAMAGE, decode_photo
from diffup.errors import UserError
from diffup.lru import ByteLRU

MOST_BYTES = 30_000_000  # of a file
MOST_PIXELS = 50_000_000  # of a picture
LONGEST_SIDE = 2048  # pixels; larger pictures are reduced
KEPT_BYTES = 1_000_000_000  # of all pictures together
GONE = "a picture is no longer kept by the server, which has been restarted or has many others; add it again"


@dataclass(frozen=True, eq=False)
class Picture:
    """A picture that the page shows.

    Attributes:
        token: its name between page and server; nobody else can guess it.
        pixels: RGB, uint8 [H, W, 3].
        reduced_from: size (H, W) of the file's picture if it was larger, else None.
    """

    token: str
    pixels: NDArray[np.uint8]
    reduced_from: tuple[int, int] | None = None

    @property
    def size(self) -> tuple[int, int]:
        """Height and width in pixels."""
        return self.pixels.shape[0], self.pixels.shape[1]

    def to_page(self) -> dict[str, Any]:
        """What the page needs to show it."""
        height, width = self.size
        note = "reduced from {1} × {0} pixels".format(*self.reduced_from) if self.reduced_from else ""
        preview = data_url(self.pixels, "JPEG")
        return {"token": self.token, "width": width, "height": height, "preview": preview, "note": note}


class Pictures:
    """The pictures of all users of a process; those not used for longest go first."""

    def __init__(self, limit_bytes: int = KEPT_BYTES) -> None:
        self._kept: ByteLRU[str, Picture] = ByteLRU(limit_bytes, lambda picture: picture.pixels.nbytes)
        self._lock = threading.Lock()

    def add(self, pixels: NDArray[np.uint8], reduced_from: tuple[int, int] | None = None) -> Picture:
        """Keep a picture."""
        with self._lock:
            picture = Picture(secrets.token_urlsafe(16), pixels, reduced_from)
            return self._kept.put(picture.token, picture)

    def get(self, token: object) -> Picture:
        """The picture of a token.

        Raises:
            UserError: there is none.
        """
        with self._lock:
            picture = self._kept.get(token) if isinstance(token, str) else None
        if picture is None:
            raise UserError(GONE)
        return picture

    def upload(self, payload: object) -> dict[str, Any]:
        """Keep the picture of a file that a user chose.

        Args:
            payload: ``{"name": …, "data": base64 of the file's bytes}``.

        Returns:
            `Picture.to_page`, or ``{"error": message}`` for a file that can't be used.
        """
        name = str(payload.get("name") or "the file") if isinstance(payload, Mapping) else "the file"
        try:
            picture = self.add(*read_upload(payload))
        except UserError as error:
            return {"error": f"{name[:80]}: {error}"}
        return picture.to_page()


def read_upload(payload: object) -> tuple[NDArray[np.uint8], tuple[int, int] | None]:
    """The picture of an uploaded file, upright, RGB, reduced to `LONGEST_SIDE`; and its size if it was larger.

    Raises:
        UserError: no picture, a damaged one, or a very large one.
    """
    data = payload.get("data") if isinstance(payload, Mapping) else None
    if not isinstance(data, str):
        raise UserError("no file arrived; choose it again")
    if len(data) * 3 // 4 > MOST_BYTES:
        raise UserError(f"files of at most {MOST_BYTES // 1_000_000} MB are taken; save it smaller")
    try:
        content = base64.b64decode(data, validate=True)
    except ValueError as error:
        raise UserError("the file did not arrive whole; choose it again") from error
    _check_size(content)
    pixels = decode_photo(content, upright=True).pixels
    height, width = pixels.shape[:2]
    if max(height, width) <= LONGEST_SIDE:
        return pixels, None
    image = Image.fromarray(pixels)
    scale = LONGEST_SIDE / max(height, width)
    size = max(1, round(width * scale)), max(1, round(height * scale))
    return np.asarray(image.resize(size, Image.Resampling.BICUBIC, reducing_gap=2.0)), (height, width)


def _check_size(content: bytes) -> None:
    """Refuse a picture too large for the page before it is decoded; any other fault is left to the decoder."""
    try:
        with Image.open(io.BytesIO(content)) as image:
            width, height = image.size
    except Image.DecompressionBombError as error:
        raise UserError(f"the picture has more than {MOST_PIXELS // 1_000_000} megapixels; save it smaller") from error
    except DAMAGE:
        return
    if width * height > MOST_PIXELS:
        raise UserError(
            f"the picture has {width} × {height} pixels; at most {MOST_PIXELS // 1_000_000} megapixels are taken, "
            "save it smaller"
        )


def data_url(image: NDArray[np.uint8] | Image.Image, kind: str) -> str:
    """A picture as an address that holds it.

    Args:
        image: RGB or grey, uint8.
        kind: ``"JPEG"`` or ``"PNG"``.
    """
    content = io.BytesIO()
    picture = image if isinstance(image, Image.Image) else Image.fromarray(image)
    picture.save(content, kind, **({"quality": 90} if kind == "JPEG" else {"compress_level": 4}))
    return f"data:image/{kind.lower()};base64,{base64.b64encode(content.getvalue()).decode()}"
