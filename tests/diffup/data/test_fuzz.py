"""10,000 damaged files: each is refused by a ValueError that names the file and a remedy, or read as what it says.

Per reader: 1500 `dataset.json` and 1500 instances JSON here; 2500 pickles (1000 with a gadget), 1500 HSNet texts, 1500
PFENet image lists and 1500 PFENet class lists in ``test_fuzz_lists.py``; the same in every run. ``DIFFUP_FUZZ=N`` tries
N times as many, other ones each time.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given

from diffup.data.dataset import open_dataset
from diffup.data.spec import read_spec
from tests.helpers.coco_oracle import merged, oracle
from tests.helpers.fuzzing import (
    DOCUMENT,
    HEIGHT,
    INSTANCES,
    WIDTH,
    documents,
    fuzz,
    make_toy,
    refused,
)

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def voc(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny data set in both layouts, without ``dataset.json``."""
    return make_toy(tmp_path_factory.mktemp("toy"))


@fuzz(1500)
@given(content=documents(DOCUMENT) | documents({**DOCUMENT, "layout": "coco", "images": "images"}))
def test_a_dataset_json_is_refused_or_means_what_it_says(content: bytes, voc: Path) -> None:
    path = voc / "dataset.json"
    path.write_bytes(content)
    spec = refused(path, lambda: read_spec(path))
    if spec is None:
        return
    says = json.loads(content)
    assert (spec.name, spec.layout, list(spec.classes)) == (says["name"], says["layout"], says["classes"])
    assert [[spec.classes[c] for c in fold] for fold in spec.folds] == says["folds"]
    assert spec.ignore_index == says.get("ignore_index", 255)
    assert spec.min_area_fraction == says.get("min_area_fraction")
    dataset = refused(path, lambda: open_dataset(path, voc / "cache"), voc)
    if dataset is not None:
        for image in dataset.image_ids:
            for c in range(len(spec.classes)):
                mask = dataset.mask(image, c)
                assert mask.shape == (HEIGHT, WIDTH) and set(np.unique(mask)) <= {0, 1, 255}
                assert int((mask == 1).sum()) == dataset.areas[image].get(c, 0)


@fuzz(1500)
@given(content=documents(INSTANCES))
def test_an_instances_json_is_refused_or_gives_the_masks_of_pycocotools(content: bytes, voc: Path) -> None:
    path = voc / "dataset.json"
    path.write_text(json.dumps({**DOCUMENT, "layout": "coco", "images": "images"}))
    (voc / "instances.json").write_bytes(content)
    dataset = refused(path, lambda: open_dataset(path, voc / "cache"), voc / "instances.json")
    if dataset is None:
        return
    says = json.loads(content)
    for entry in says["images"]:
        entry |= {"id": int(entry["id"]), "height": HEIGHT, "width": WIDTH}
    for number, entry in enumerate(says["annotations"]):
        entry |= {"id": number, "image_id": int(entry["image_id"]), "category_id": int(entry["category_id"])}
    for entry in says["categories"]:
        entry["id"] = int(entry["id"])
    coco = oracle(says)
    for entry in says["images"]:
        for c, name in enumerate(dataset.classes):
            ids = {category["id"] for category in says["categories"] if category["name"] == name}
            image_id = str(Path(entry["file_name"]).with_suffix(""))
            np.testing.assert_array_equal(dataset.mask(image_id, c), merged(coco, entry["id"], ids))


# Small files that would take all memory or time

BOMBS = """
import json, pickle, resource, struct, sys, time
from pathlib import Path
folder = Path(sys.argv[1])
from diffup.data.dataset import open_dataset
from diffup.data.lists import read_hsnet_pickle, read_pfenet_classes
used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + (1 << 30), resource.RLIM_INFINITY))
nested = b")" + b"".join(b"q%c0h%ch%c\\x86" % (i, i, i) for i in range(60))
lists = {
    "memo": (read_hsnet_pickle, b"\\x80\\x02}r" + struct.pack("<I", 0x3FFFFFFF) + b"."),
    "memo in text": (read_hsnet_pickle, b"}p1000000000\\n."),
    "tuples": (read_hsnet_pickle, b"\\x80\\x02}" + nested + b"K\\x01s."),
    "long text": (read_hsnet_pickle, b"\\x80\\x04}\\x8d" + struct.pack("<Q", 1 << 40) + b"."),
    "shared": (read_hsnet_pickle, b"\\x80\\x02}(K\\x00](X\\x01\\0\\0\\0aq\\x01" + b"h\\x01" * 2_000_000 + b"eq\\x02"
               + b"".join(b"K%ch\\x02" % c for c in range(1, 80)) + b"u."),
    "brackets": (read_pfenet_classes, b"(" * 1_000_000),
    "signs": (read_pfenet_classes, b"{" + b"-" * 200_000 + b"1: []}"),
    "digits": (read_pfenet_classes, b"{0x" + b"f" * 1_000_000 + b": []}"),
}
files = {"dataset.json": b'{"name": ' + b"[" * 1_000_000}
document = json.loads((folder / "instances.json").read_text())
for name, change in {
    "brackets": None,
    "runs": {"size": [12, 16], "counts": "o" * 1_000_000},
    "far": [[0, 0, 1e300, 0, 5, 1e300]],
    "many runs": {"size": [12, 16], "counts": [0] * 300_000},
}.items():
    document["annotations"][0]["segmentation"] = change
    files[name] = b"[" * 1_000_000 if change is None else json.dumps(document).encode()
def tell(name, read):
    began = time.perf_counter()
    try:
        read()
        print(f"{name}: read")
    except ValueError:
        print(f"{name}: refused")
    assert time.perf_counter() - began < 30, name
path = folder / "list"
for name, (read, content) in lists.items():
    path.write_bytes(content)
    tell(name, lambda: read(path))
for name, content in files.items():
    (folder / ("dataset.json" if name == "dataset.json" else "instances.json")).write_bytes(content)
    if name != "dataset.json":
        (folder / "dataset.json").write_text(sys.argv[2])
    tell(name, lambda: open_dataset(folder / "dataset.json", folder / "cache"))
"""


def test_small_files_that_stand_for_gigabytes_are_refused_in_little_memory(voc: Path, tmp_path: Path) -> None:
    """Under a limit of 1 GiB more than the imports take."""
    import shutil

    folder = Path(shutil.copytree(voc, tmp_path / "toy"))
    (folder / "instances.json").write_text(json.dumps(INSTANCES))
    says = json.dumps({**DOCUMENT, "layout": "coco", "images": "images"})
    command = [sys.executable, "-c", BOMBS, str(folder), says]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr[-2000:]
    said = done.stdout.splitlines()
    assert len(said) == 13 and all(line.endswith(": refused") for line in said), done.stdout
