"""PFENet's and BAM's image lists, derived from a data set's annotations by their rules.

    python -m diffup.episodes.derive --dataset DIR/dataset.json --protocol pfenet --out DIR

writes for each fold what these projects read: ``{train,val}/data_list_F.txt`` (``IMAGE LABEL`` a line) and
``{train,val}/sub_class_file_list_F.txt`` (``{1-based class: [(image, label), …]}``), paths relative to the data set's
folder, images in the order of their names. The rules are those of the protocol: a class counts in an image from 2048
pixels on (PFENet), and with ``bam`` no training image has a pixel of a novel class.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath

from diffup.data.dataset import Dataset, open_dataset
from diffup.episodes.protocols import Protocol, get_protocol
from diffup.episodes.sampling import training_pools
from diffup.errors import UserError, command_line
from diffup.usage import Parser

SPLITS = ("train", "val")
PROTOCOLS = ("pfenet", "bam")

Rows = dict[int, list[tuple[str, str]]]  # class → (image, label)


def derived(dataset: Dataset, protocol: Protocol, fold: int, split: str) -> Rows:
    """Images and labels by 0-based class, in the order of the images' names.

    Args:
        dataset, protocol: any.
        fold: whose base classes make the split ``"train"``, and whose novel classes make ``"val"``.
        split: ``"train"`` or ``"val"``.

    Raises:
        UserError: no such fold or split.
    """
    if split not in SPLITS:
        raise UserError(f"split must be one of {', '.join(SPLITS)}, not {split!r}")
    if split == "train":
        pools: Mapping[int, Sequence[str]] = training_pools(dataset, fold, protocol)
    else:
        pools = {c: dataset.eligible(c, protocol) for c in dataset.novel_classes(fold)}
    return {c: [dataset.files(i) for i in pool] for c, pool in sorted(pools.items()) if pool}


def data_list(rows: Rows) -> str:
    """The text of ``data_list_F.txt``: each image once, in the order of their names."""
    pairs = sorted({pair for found in rows.values() for pair in found}, key=lambda pair: PurePosixPath(pair[0]).stem)
    return "".join(f"{image} {label}\n" for image, label in pairs)


def class_list(rows: Rows) -> str:
    """The text of ``sub_class_file_list_F.txt``."""
    return repr({c + 1: found for c, found in rows.items()}) + "\n"


def write_lists(dataset: Dataset, protocol: Protocol, out: Path) -> list[Path]:
    """Write the lists of all folds; returns the files.

    Raises:
        UserError: a name with a blank, which the lists can't hold.
        OSError: the place can't be written.
    """
    texts: dict[Path, str] = {}
    for split in SPLITS:
        for fold in range(len(dataset.folds)):
            rows = derived(dataset, protocol, fold, split)
            blank = next((part for found in rows.values() for pair in found for part in pair if " " in part), None)
            if blank:
                raise UserError(f"{dataset.name}: {blank!r} has a blank, which separates the columns of these lists")
            texts[out / split / f"data_list_{fold}.txt"] = data_list(rows)
            texts[out / split / f"sub_class_file_list_{fold}.txt"] = class_list(rows)
    for path, text in texts.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return list(texts)


def main(argv: Sequence[str] | None = None) -> int:
    """Write the lists and print their sizes; returns the exit code, 2 for anything wrong with what was asked."""
    parser = Parser(prog="python -m diffup.episodes.derive", description="PFENet's and BAM's image lists.")
    parser.add_argument("--dataset", required=True, help="a dataset.json, or a known name")
    parser.add_argument("--protocol", choices=PROTOCOLS, default=PROTOCOLS[0])
    parser.add_argument("--out", type=Path, required=True, metavar="DIR")
    args = parser.parse_args(argv)
    try:
        dataset, protocol = open_dataset(args.dataset), get_protocol(args.protocol)
        for path in write_lists(dataset, protocol, args.out):
            print(path)
    except (UserError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    for fold in range(len(dataset.folds)):
        made = [derived(dataset, protocol, fold, split) for split in SPLITS]
        images = len({pair for found in made[0].values() for pair in found})
        print(f"fold {fold}: {images} training images, {sum(map(len, made[1].values()))} pairs to test")
    return 0


if __name__ == "__main__":
    sys.exit(command_line(main))
