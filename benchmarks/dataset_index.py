"""Opening a data set of COCO's size: the first time, from its index, and drawing episodes.

    python benchmarks/dataset_index.py [--images 120000] [--annotations 900000]

Makes a COCO-like data set in a temporary folder (small images, 80 classes of COCO's uneven sizes, polygons of 20 to 60
points, COCO's other fields), opens it twice in processes of their own and draws 20 000 ``paired`` episodes of a fold.
Real images take longer to decode the first time: some 4 ms each instead of a fraction of one.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

SIZE = (120, 160)
KINDS = 50  # different images; the rest are links to them
EPISODES = 20_000
MEASURE = """
import resource, sys, time
began = time.perf_counter()
from diffup.data.dataset import open_dataset
from diffup.episodes.sampling import make_manifest
from diffup.episodes.protocols import get_protocol
ready = time.perf_counter()
dataset = open_dataset(sys.argv[1])
opened = time.perf_counter()
print(f"{sys.argv[2]:12} imports {ready - began:5.1f} s, open {opened - ready:6.1f} s", end="")
if sys.argv[2] == "again":
    paired = get_protocol("paired")
    manifest = make_manifest(dataset, paired, 0, 5, int(sys.argv[3]), 0)
    print(f", {len(manifest.episodes)} 5-shot episodes {time.perf_counter() - opened:.1f} s", end="")
print(f", peak memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.2f} GiB")
"""


def make(folder: Path, images: int, annotations: int) -> Path:
    """The data set; returns its ``dataset.json``."""
    rng = np.random.default_rng(0)
    (folder / "images").mkdir(parents=True)
    for i in range(images):
        path = folder / "images" / f"COCO_train2014_{i:012d}.jpg"
        if i < KINDS:
            Image.fromarray(rng.integers(0, 256, (*SIZE, 3), dtype=np.uint8)).save(path, quality=30)
        else:
            os.link(folder / "images" / f"COCO_train2014_{i % KINDS:012d}.jpg", path)
    share = 1 / np.arange(1, 81)
    classes = rng.choice(80, annotations, p=share / share.sum())
    where = rng.integers(0, images, annotations)
    names = [f"class {c}" for c in range(80)]
    with (folder / "instances.json").open("w") as file:
        file.write('{"info": {}, "categories": ')
        json.dump([{"id": c + 1, "name": name, "supercategory": "thing"} for c, name in enumerate(names)], file)
        file.write(', "images": ')
        json.dump(
            [
                {
                    "id": i, "file_name": f"COCO_train2014_{i:012d}.jpg", "height": SIZE[0], "width": SIZE[1],
                    "license": 1, "date_captured": "2013-11-14 16:28:13", "coco_url": f"http://example.org/{i}",
                }
                for i in range(images)
            ],
            file,
        )  # fmt: skip
        file.write(', "annotations": [')
        for i in range(annotations):
            angle = np.linspace(0, 2 * np.pi, int(rng.integers(20, 61)), endpoint=False)
            radius = rng.uniform(8, 50)
            polygon = np.stack([80 + radius * np.cos(angle), 60 + radius * np.sin(angle)], axis=1).ravel().round(2)
            entry = {
                "segmentation": [polygon.tolist()], "area": 1234.5, "iscrowd": 0, "image_id": int(where[i]),
                "bbox": [1.0, 2.0, 3.0, 4.0], "category_id": int(classes[i]) + 1, "id": i,
            }  # fmt: skip
            file.write((", " if i else "") + json.dumps(entry))
        file.write("]}")
    folds = [names[fold::4] for fold in range(4)]
    document = {"name": "large", "layout": "coco", "classes": names, "folds": folds}
    (folder / "dataset.json").write_text(json.dumps(document))
    return folder / "dataset.json"


def main() -> None:
    """Make, open twice, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=120_000)
    parser.add_argument("--annotations", type=int, default=900_000)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = make(Path(folder) / "large", args.images, args.annotations)
        size = (path.parent / "instances.json").stat().st_size / 2**20
        print(f"{args.images} images, {args.annotations} annotations, JSON of {size:.0f} MiB, {os.cpu_count()} cores")
        env = {**os.environ, "DIFFUP_HOME": str(Path(folder) / "home")}
        for name in ("first time", "again"):
            command = [sys.executable, "-c", MEASURE, str(path), name, str(EPISODES)]
            sys.stdout.flush()
            subprocess.run(command, env=env, check=True)


if __name__ == "__main__":
    main()
