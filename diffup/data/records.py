"""One record per image: its files, its size, the area of each class; and the table that keeps them on disk."""

from __future__ import annotations

import contextlib
import json
import os
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

PART = ".part"  # the end of a file that is being written
INDEX_KEY = b"diffup.index"
COLUMNS = (
    "image_id", "image", "mask", "height", "width", "checksum", "classes", "areas", "foreground", "crowd", "split",
)  # fmt: skip
BATCH = 4096


@dataclass(frozen=True)
class Record:
    """What is known of an image without opening it.

    Attributes:
        image_id: unique in the data set.
        image: path of the image, relative to the data set's folder.
        mask: path of its label image (VOC and FSS layout), else ``""``.
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
