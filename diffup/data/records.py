"""One record per image: its files, its size, the area of each class; and the table that keeps them on disk."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from diffup.files import replacing

INDEX_KEY = b"diffup.index"
SCHEMA = pa.schema(
    {
        "image_id": pa.string(),
        "image": pa.string(),
        "mask": pa.string(),
        "height": pa.int32(),
        "width": pa.int32(),
        "checksum": pa.uint32(),
        "classes": pa.list_(pa.int32()),
        "areas": pa.list_(pa.int64()),
        "foreground": pa.list_(pa.binary()),
        "crowd": pa.list_(pa.binary()),
        "split": pa.string(),
    }
)
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


def write_index(path: Path, records: Sequence[Record], key: str, fingerprint: str) -> None:
    """Write the records and the data set's fingerprint as Parquet, in full or not at all.

    Raises:
        OSError: the place can't be written.
    """
    head = {"key": key, "rows": len(records), "fingerprint": fingerprint}
    table = pa.Table.from_pylist(
        [_row(record) for record in records], SCHEMA.with_metadata({INDEX_KEY: json.dumps(head).encode()})
    )
    with replacing(path) as temporary:
        pq.write_table(table, temporary, compression="zstd")


def _row(record: Record) -> dict[str, Any]:
    """A record as a row of the table: what it holds by class as lists over the same classes."""
    classes = sorted({*record.areas, *record.rles})
    rles = [record.rles[c] for c in classes] if record.rles else []
    return {
        **vars(record),
        "classes": classes,
        "areas": [record.areas.get(c, 0) for c in classes],
        "foreground": [foreground for foreground, _ in rles],
        "crowd": [crowd for _, crowd in rles],
    }


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
    for row in batch.to_pylist():
        classes, areas, foreground, crowd = (row.pop(name) for name in ("classes", "areas", "foreground", "crowd"))
        row["areas"] = {c: area for c, area in zip(classes, areas) if area}
        row["rles"] = dict(zip(classes, zip(foreground, crowd))) if foreground else {}
        yield Record(**row)
