"""PNG files of any bit depth and colour type, byte by byte: Pillow writes only some of them."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

GREY, PALETTE = 0, 3


def png(values_HW: NDArray[np.integer], depth: int, colour: int = GREY, palette: Sequence[int] = ()) -> bytes:
    """A PNG of one channel.

    Args:
        values_HW: below 2 ** depth.
        depth: bits per pixel: 1, 2, 4, 8 or 16.
        colour: `GREY` or `PALETTE`.
        palette: red, green, blue of each index.
    """

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    height, width = values_HW.shape
    rows = b""
    for row in values_HW:
        bits = "".join(format(int(value), f"0{depth}b") for value in row)
        bits += "0" * (-len(bits) % 8)
        rows += b"\0" + bytes(int(bits[i : i + 8], 2) for i in range(0, len(bits), 8))
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    colours = chunk(b"PLTE", bytes(palette)) if palette else b""
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + colours
        + chunk(b"IDAT", zlib.compress(rows))
        + chunk(b"IEND", b"")
    )
