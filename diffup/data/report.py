"""What a data set holds, as a document and in words: the end of ``python -m diffup.data prepare``."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

from diffup.data.dataset import Dataset
from diffup.protocols import get_protocol

SAMPLE = 5  # files whose hash is in a report, evenly spread over the names
SHOWN = 12


def describe(dataset: Dataset, expected: Mapping[str, int], warnings: Sequence[str]) -> dict[str, Any]:
    """The report: the same for the same files, wherever they lie.

    Args:
        dataset: as it was opened.
        expected: official counts.
        warnings: what is not as in the official data.

    Returns:
        Counts of images, pairs of image and class that are large enough under ``paired`` by split, fold and class,
        sha256 of a sample of the files, the fingerprint, and the warnings.
    """
    protocol = get_protocol("paired")
    images = {split: dataset.split_size(split) for split in ("train", "test")}
    warnings = [*warnings, *_counts(expected, images)]
    folds = []
    for fold in range(len(dataset.folds)):
        test = {dataset.classes[c]: len(dataset.eligible(c, protocol)) for c in dataset.novel_classes(fold)}
        train = {dataset.classes[c]: len(dataset.eligible(c, protocol, "train")) for c in dataset.base_classes(fold)}
        folds.append({"test": test, "train": train})
        short = [name for name, number in test.items() if number < 6]
        if short:
            warnings.append(f"fold {fold}: fewer than 6 test images of {', '.join(short[:SHOWN])}: too few for 5 shots")
    ids = dataset.image_ids
    chosen = [ids[round(i * (len(ids) - 1) / max(SAMPLE - 1, 1))] for i in range(min(SAMPLE, len(ids)))]
    sample = {path: _sha256(dataset, path) for i in dict.fromkeys(chosen) for path in dataset.files(i)[:1]}
    return {
        "dataset": dataset.name,
        "fingerprint": dataset.fingerprint,
        "images": {"all": len(ids), **images},
        "expected": dict(expected),
        "protocol": f"paired {protocol.hash()}",
        "pairs": folds,
        "sample_sha256": sample,
        "warnings": warnings,
    }


def _counts(expected: Mapping[str, int], images: Mapping[str, int]) -> list[str]:
    """Warnings of images by split, which are known once lists and JSONs have been read."""
    found = {"training images": images["train"], "test images": images["test"]}
    return [
        f"{found[what]} {what}; the official data have {official}"
        for what, official in expected.items()
        if what in found and found[what] != official
    ]


def _sha256(dataset: Dataset, path: str) -> str:
    return hashlib.sha256((dataset.root / path).read_bytes()).hexdigest()


def words(report: Mapping[str, Any], where: str, source: str) -> str:
    """The report for people.

    Args:
        report: of `describe`.
        where: the folder.
        source: where to get what is missing.
    """
    images = report["images"]
    lines = [
        f"{report['dataset']} is ready at {where} (fingerprint {report['fingerprint']})",
        f"images    {images['all']}: {images['train']} to train on, {images['test']} to test on",
    ]
    for number, fold in enumerate(report["pairs"]):
        test, train = fold["test"], fold["train"]
        names = ", ".join(f"{name} {count}" for name, count in list(test.items())[:SHOWN])
        more = f", … and {len(test) - SHOWN} more" if len(test) > SHOWN else ""
        lines.append(
            f"fold {number}    {sum(test.values())} pairs to test ({names}{more}); {sum(train.values())} to train on, "
            f"{len(train)} classes"
        )
    lines += [f"warning   {warning}" for warning in report["warnings"]]
    if report["warnings"]:
        lines.append(f"          what is missing can be had from {source}")
    return "\n".join(lines)
