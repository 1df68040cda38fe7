"""The one reader of photographs: any picture file as RGB, 8 bits a channel.

Nothing is clipped: grey pictures of 16 bits are scaled to 8, and pictures whose range can't be known (32-bit integers,
floats, 16-bit files that hold 12 bits or less) are refused. EXIF orientation is reported, and applied on request.
"""

from __future__ import annotations

import io
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from diffup.errors import UserError

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff")
# What a picture file may hold, whatever its suffix; left out is what Pillow hands to other programs (EPS).
FORMATS = ("JPEG", "MPO", "PNG", "WEBP", "BMP", "TIFF", "GIF", "PPM", "JPEG2000", "AVIF")
SINGLE = ("TIFF", "PNG", "WEBP", "GIF")  # formats whose further pictures in a file are not thumbnails or previews
ORIENTATION = 0x0112  # EXIF tag: 1 is upright
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_270, 7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}  # fmt: skip
DEEP = 65535  # white in 16 bits
SHALLOW = 4096  # 16-bit files below this hold 12 bits or less
BITS, SUBFILE = 258, 254  # TIFF tags: bits of each channel; 1 is a reduced copy of another picture of the file
DEPTH = 24  # place of a PNG's bit depth (IHDR, its first chunk)
POINTER = b"version https://git-lfs"
# What Pillow raises for damaged files, of all the formats above.
DAMAGE = (
    OSError, SyntaxError, ValueError, TypeError, KeyError, IndexError, EOFError, AttributeError, OverflowError,
    RuntimeError, NotImplementedError, ZeroDivisionError, struct.error, zlib.error, Image.DecompressionBombError,
)  # fmt: skip


@dataclass(frozen=True, eq=False)
class Photo:
    """A photograph that was read.

    Attributes:
        pixels: RGB, uint8 [H, W, 3].
        checksum: crc32 of the file's bytes.
        orientation: EXIF orientation of the file, 1-8; 1 where it states none.
    """

    pixels: NDArray[np.uint8]
    checksum: int
    orientation: int


def read_photo(path: Path, *, upright: bool = False) -> Photo:
    """Decode a picture file completely.

    Args:
        path: of the file; its format is taken from its content.
        upright: turn the pixels as the EXIF orientation asks; by default they stay as they are stored.

    Raises:
        UserError: missing, damaged, of several pages, or of a depth whose range is unknown; the message does not name
            the file.
    """
    return decode_photo(read_content(path, "image"), upright=upright)


def decode_photo(content: bytes, *, upright: bool = False) -> Photo:
    """`read_photo` for the bytes of a file."""
    image, orientation = decode_picture(content, "image")
    try:
        pixels = rgb(image.transpose(TURNS[orientation]) if upright and orientation != 1 else image)
        if (
            not image.mode.startswith("I") and has_16_bits(image, content) and int(pixels.max(initial=0)) < SHALLOW >> 8
        ):  # Pillow keeps the upper 8 bits
            raise UserError("a picture of 16 bits a channel that uses 12 or less, nearly black in 8; save it with 8")
    except UserError as error:
        raise UserError(f"image is refused: {error}") from None
    except DAMAGE as error:  # such as a conversion that Pillow doesn't have
        raise UserError(f"image can't be decoded ({error})") from error
    return Photo(pixels, zlib.crc32(content), orientation)


def open_picture(path: Path, what: str) -> tuple[Image.Image, bytes, int]:
    """A picture file, decoded by Pillow as it is stored, its bytes, and its EXIF orientation.

    Args:
        path: of the file.
        what: it is called in messages, ``"image"`` or ``"mask"``.

    Raises:
        UserError: missing, damaged, no picture, or several; the message does not name the file.
    """
    content = read_content(path, what)
    image, orientation = decode_picture(content, what)
    return image, content, orientation


def decode_picture(content: bytes, what: str) -> tuple[Image.Image, int]:
    """`open_picture` for the bytes of a file: the picture and its EXIF orientation."""
    try:
        image = Image.open(io.BytesIO(content))
        if image.format not in FORMATS:
            raise UserError(f"{what} is refused: a {image.format} file is not read; save it as PNG or JPEG")
        pages = _pages(image)
        if pages != 1:
            holds = f"{pages} pictures" if pages else "a preview of a picture alone, as raw files do"
            raise UserError(f"{what} is refused: the file holds {holds}; save the one that is meant by itself")
        orientation = _orientation(image)
        if image.format == "TIFF":
            image.getexif()[ORIENTATION] = 1  # Pillow turns TIFFs, and no others, as they are decoded
        image.load()
    except UserError:
        raise
    except UnidentifiedImageError:
        if content.startswith(POINTER):
            raise UserError(f"{what} can't be decoded: it is a pointer of Git LFS; run: git lfs pull") from None
        found = "is not a picture of a known format" if content else "is empty"
        raise UserError(f"{what} can't be decoded: the file {found}; get it again") from None
    except DAMAGE as error:
        raise UserError(f"{what} can't be decoded ({error})") from error
    return image, orientation


def has_16_bits(image: Image.Image, content: bytes) -> bool:
    """Whether a PNG or TIFF has 16 bits a channel, of which Pillow may have kept the upper 8."""
    if image.format == "PNG":
        return content[DEPTH] == 16
    return image.format == "TIFF" and max(getattr(image, "tag_v2", {}).get(BITS, (8,))) > 8


def read_content(path: Path, what: str) -> bytes:
    """The bytes of a file.

    Raises:
        UserError: "`what` is missing", or it can't be read; the message does not name the file.
    """
    try:
        if path.exists() and not path.is_file():  # a pipe or a device may never end
            raise UserError(f"{what} can't be read (it is not a file)")
        return path.read_bytes()
    except UserError:
        raise
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(f"{what} is missing") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{what} can't be read ({error})") from error


def _pages(image: Image.Image) -> int:
    """Pictures in a file, those that are previews or thumbnails of another left out; 0 if the first is a preview."""
    pages = int(getattr(image, "n_frames", 1)) if image.format in SINGLE else 1
    if image.format != "TIFF":
        return pages
    whole = []
    for page in range(pages):
        image.seek(page)
        whole.append(not int(getattr(image, "tag_v2", {}).get(SUBFILE, 0)) & 1)
    image.seek(0)
    return sum(whole) if whole[0] else 0


def _orientation(image: Image.Image) -> int:
    """EXIF orientation, 1-8; 1 where none or another value is stated."""
    try:
        stated = image.getexif().get(ORIENTATION, 1)
    except DAMAGE:  # damaged EXIF data; the pixels may be sound
        return 1
    return stated if isinstance(stated, int) and 1 <= stated <= 8 else 1


def rgb(image: Image.Image) -> NDArray[np.uint8]:
    """A picture as RGB, uint8 [H, W, 3]; transparency is dropped, 16 bits of grey are scaled to 8.

    Raises:
        UserError: grey values of a range that isn't known: floats, 32-bit integers, 12 bits or less in 16.
    """
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PNG"):  # Pillow before 11: I
        grey = _eight_bits(np.asarray(image).astype(np.int64))
        if image.format == "TIFF" and getattr(image, "tag_v2", {}).get(262) == 0:  # white is zero
            grey = 255 - grey
        return np.repeat(grey[:, :, None], 3, axis=2)
    if image.mode in ("I", "F"):
        kind = "32-bit integers" if image.mode == "I" else "floating-point numbers"
        raise UserError(f"its pixels are {kind}, whose range is not stated; save it with 8 bits a channel")
    return np.asarray(image.convert("RGB"))


def _eight_bits(grey_HW: NDArray[np.int64]) -> NDArray[np.uint8]:
    top = int(grey_HW.max(initial=0))
    if 0 < top < SHALLOW:
        raise UserError(
            f"a 16-bit picture whose largest value is {top} of {DEEP}: it would be nearly black in 8 bits; scale its "
            "values to the whole range, or save it with 8 bits a channel"
        )
    return ((grey_HW * 255 + DEEP // 2) // DEEP).astype(np.uint8)
