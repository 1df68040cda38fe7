"""One record per image: where it lies, its size, the area of each class; and the table that keeps them on disk."""

from __future__ import annotations

import contextlib
import io
import json
import os
import uuid
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from PIL import Image
from tqdm import tqdm

from diffup.errors import UserError

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png")
SHOWN = 20
PART = ".part"  # the end of a file that is being written
INDEX_KEY = b"diffup.index"
COLUMNS = (
    "image_id", "image", "mask", "height", "width", "checksum", "classes", "areas", "foreground", "crowd", "split",
)  # fmt: skip
BATCH = 4096

T = TypeVar("T")


@dataclass(frozen=True)
class Record:
    """What is known of an image without opening it.

    Attributes:
        image_id: unique in the data set.
        image: path of the image, relative to the data set's folder.
        mask: path of its label image (VOC layout), else ``""``.
        height, width: in pixels.
        checksum: crc32 of the files' bytes (image, and mask where there is one).
        areas: class index → foreground pixels (> 0).
        rles: class index → compressed run lengths of foreground and of crowd (COCO layout), ``b""`` for none.
        split: ``"train"`` or ``"test"`` where the data set keeps its images apart, else ``""``.
    """

    image_id: str
    image: str
    mask: str
    height: int
    width: int
    checksum: int
    areas: dict[int, int]
    rles: dict[int, tuple[bytes, bytes]]
    split: str = ""


def read_image(path: Path) -> tuple[NDArray[np.uint8], int]:
    """Decode an image completely to RGB, uint8 [H, W, 3], and give the crc32 of the file's bytes.

    EXIF orientation is not applied: masks refer to the pixels as they are stored.

    Raises:
        UserError: missing, truncated or not an image; the message does not name the file.
    """
    try:
        content = path.read_bytes()
        with Image.open(io.BytesIO(content)) as image:
            return np.asarray(image.convert("RGB")), zlib.crc32(content)
    except FileNotFoundError:
        raise UserError("image is missing") from None
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise UserError(f"image can't be decoded ({error})") from error


def read_pair(
    image_path: Path, mask_path: Path, read_mask: Callable[[Path], tuple[NDArray[np.uint8], int]]
) -> tuple[NDArray[np.uint8], int] | str:
    """Decode an image and its label image.

    Args:
        image_path, mask_path: the two files.
        read_mask: gives labels [H, W] and the crc32 of the file's bytes; its UserErrors don't name the file.

    Returns:
        Labels, uint8 [H, W], and the crc32 of both files; or what is wrong with either of them.
    """
    try:
        image, image_crc = read_image(image_path)
    except UserError as error:
        return f"{image_path}: {error}"
    try:
        labels, mask_crc = read_mask(mask_path)
    except UserError as error:
        return f"{mask_path}: {error}"
    height, width = image.shape[:2]
    if labels.shape != (height, width):
        return (
            f"{mask_path}: mask is {labels.shape[1]}x{labels.shape[0]}, "
            f"but its image {image_path.name} is {width}x{height} (width x height)"
        )
    return labels, zlib.crc32(mask_crc.to_bytes(4, "big"), image_crc)


def relative(path: Path, root: Path) -> str:
    """A path as it is kept in a record: relative to the data set's folder, with slashes, wherever it lies."""
    return Path(os.path.relpath(path, root)).as_posix()


def fail(path: Path, problems: Sequence[str], remedy: str) -> None:
    """Raise one UserError for all problems of a data set; do nothing if there are none."""
    if problems:
        rest = f"\n  … and {len(problems) - SHOWN} more" if len(problems) > SHOWN else ""
        lines = "".join(f"\n  {problem}" for problem in problems[:SHOWN])
        files = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
        raise UserError(f"{path}: {files} with the data:{lines}{rest}\n{remedy}")


def index_all(
    items: Sequence[T], work: Callable[[T], Record | str], description: str
) -> tuple[list[Record], list[str]]:
    """Apply `work` to every item on threads (decoding releases the interpreter's lock), in order.

    Returns:
        The records, and the problems that `work` gave in place of one.
    """
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        results: Iterable[Record | str] = pool.map(work, items)
        done = list(tqdm(results, desc=description, total=len(items), unit="img", disable=None, leave=False))
    records = [result for result in done if isinstance(result, Record)]
    return records, [result for result in done if isinstance(result, str)]


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary file beside `path` to write to; it takes its place when the block ends well, and goes otherwise.

    Raises:
        OSError: the place can't be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}{PART}")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_index(path: Path, records: Sequence[Record], key: str, fingerprint: str) -> None:
    """Write the records and the data set's fingerprint as Parquet, whole or not at all.

    Raises:
        OSError: the place can't be written.
    """
    classes = [sorted(record.areas | dict.fromkeys(record.rles, 0)) for record in records]
    table = pa.table(
        {
            "image_id": pa.array([r.image_id for r in records], pa.string()),
            "image": pa.array([r.image for r in records], pa.string()),
            "mask": pa.array([r.mask for r in records], pa.string()),
            "height": pa.array([r.height for r in records], pa.int32()),
            "width": pa.array([r.width for r in records], pa.int32()),
            "checksum": pa.array([r.checksum for r in records], pa.uint32()),
            "classes": pa.array(classes, pa.list_(pa.int32())),
            "areas": pa.array(
                [[r.areas.get(c, 0) for c in ids] for r, ids in zip(records, classes)], pa.list_(pa.int64())
            ),
            "foreground": _rle_column(records, classes, 0),
            "crowd": _rle_column(records, classes, 1),
            "split": pa.array([r.split for r in records], pa.string()),
        },
        metadata={INDEX_KEY: json.dumps({"key": key, "rows": len(records), "fingerprint": fingerprint}).encode()},
    )
    with replacing(path) as temporary:
        pq.write_table(table, temporary, compression="zstd")


def _rle_column(records: Sequence[Record], classes: Sequence[Sequence[int]], which: int) -> pa.Array:
    rows = [[r.rles[c][which] for c in ids] if r.rles else [] for r, ids in zip(records, classes)]
    return pa.array(rows, pa.list_(pa.binary()))


def read_index(path: Path, key: str) -> tuple[list[Record], str] | None:
    """The records and the fingerprint that `write_index` wrote under `key`; None if there are none or can't be trusted.

    Read batch by batch: as one list of Python objects a large index would take several times its size.
    """
    try:
        with pq.ParquetFile(path) as file:
            head = json.loads((file.schema_arrow.metadata or {})[INDEX_KEY])
            if (head["key"], head["rows"]) != (key, file.metadata.num_rows):
                return None
            records = [record for batch in file.iter_batches(batch_size=BATCH) for record in _records(batch)]
            return records, str(head["fingerprint"])
    except (KeyError, TypeError, ValueError, OSError, pa.ArrowException):
        return None


def _records(batch: pa.RecordBatch) -> Iterator[Record]:
    columns = {name: batch.column(name).to_pylist() for name in batch.schema.names}
    rows = zip(*(columns[name] for name in COLUMNS), strict=True)
    for image_id, image, mask, height, width, checksum, classes, areas, foreground, crowd, split in rows:
        covered = {c: area for c, area in zip(classes, areas) if area}
        rles = dict(zip(classes, zip(foreground, crowd))) if foreground else {}
        yield Record(image_id, image, mask, height, width, checksum, covered, rles, split)
