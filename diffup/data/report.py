"""What a data set holds, as a document and in words: the end of ``python -m diffup.data prepare``."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

from diffup.data.dataset import Dataset
from diffup.data.spec import PAIRED

SAMPLE = 5  # files whose hash is in a report, evenly spread over the names
SHOWN = 12


def describe(dataset: Dataset, expected: Mapping[str, int], warnings: Sequence[str]) -> dict[str, Any]:
    """The report: the same for the same files, wherever they are.

    Args:
        dataset: as it was opened.
        expected: official counts.
        warnings: what is not as in the official data.

    Returns:
        Counts of images, pairs of image and class that are large enough under ``paired`` by split, fold and class,
        sha256 of a sample of the files, the fingerprint, and the warnings.
    """
    images = {split: dataset.split_size(split) for split in ("train", "test")}
    found = {"training images": images["train"], "test images": images["test"]}
    warnings = [*warnings, *differences(found, {what: n for what, n in expected.items() if what in found})]
    folds = []
    for fold in range(len(dataset.folds)):
        test = {dataset.classes[c]: len(dataset.eligible(c, PAIRED)) for c in dataset.novel_classes(fold)}
        train = {dataset.classes[c]: len(dataset.eligible(c, PAIRED, "train")) for c in dataset.base_classes(fold)}
        folds.append({"test": test, "train": train})
        if short := [name for name, number in test.items() if number < 6]:
            warnings.append(f"fold {fold}: fewer than 6 test images of {', '.join(short[:SHOWN])}: too few for 5 shots")
    ids = dataset.image_ids
    chosen = [ids[round(i * (len(ids) - 1) / max(SAMPLE - 1, 1))] for i in range(min(SAMPLE, len(ids)))]
    sample = [dataset.files(image_id)[0] for image_id in chosen]
    return {
        "dataset": dataset.name,
        "fingerprint": dataset.fingerprint,
        "images": {"all": len(ids), **images},
        "expected": dict(expected),
        "protocol": PAIRED.name,
        "pairs": folds,
        "sample_sha256": {path: hashlib.sha256((dataset.root / path).read_bytes()).hexdigest() for path in sample},
        "warnings": warnings,
    }


def differences(found: Mapping[str, int], official: Mapping[str, int]) -> list[str]:
    """Warnings of counts that are not the official ones."""
    return [f"{found[what]} {what}; the official data have {n}" for what, n in official.items() if found[what] != n]


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
        lines.append(f"          what is missing is available from {source}")
    return "\n".join(lines)
