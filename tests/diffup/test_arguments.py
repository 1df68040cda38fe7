"""What callers of the Python API pass: each thing that can't be used gives one clear error that names it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from PIL import Image

from diffup import DiffUp, Support, Text
from diffup.backbones.load import load_backbone, usable_device
from diffup.errors import UserError
from tests.helpers.trained import CELL

SIZE = (40, 60)
IMAGE = np.zeros((*SIZE, 3), np.uint8)
WHOLE = Support(IMAGE, (0, 0, 60, 40), "box")
ABSENT_GPU = "cuda:99" if torch.cuda.is_available() else "cuda"
Side = st.integers(2, 3000)
Fraction = st.floats(0, 1, width=32)


def drawn(annotation: Any, kind: str) -> np.ndarray[Any, Any]:
    return Support(IMAGE, annotation, kind).drawn(SIZE)


@given(height=Side, width=Side, x=st.tuples(Fraction, Fraction), y=st.tuples(Fraction, Fraction))
def test_boxes_in_fractions_are_refused_and_their_pixels_taken(
    height: int, width: int, x: tuple[float, float], y: tuple[float, float]
) -> None:
    (x0, x1), (y0, y1) = sorted(x), sorted(y)
    assume(x0 < x1 and y0 < y1)
    with pytest.raises(UserError, match=f"multiply x by the width, {width}, and y by the height, {height}"):
        Support(IMAGE, (x0, y0, x1, y1), "box").drawn((height, width))
    pixels = (x0 * width, y0 * height, x1 * width, y1 * height)
    assume(max(pixels) > 1.5)  # what ends within the first pixel and a half can't be told apart
    assert Support(IMAGE, [pixels], "box").drawn((height, width)).any()


@given(data=st.data(), height=Side, width=Side, kind=st.sampled_from(["list", "int64", "uint8"]))
def test_no_box_in_whole_pixels_is_taken_for_fractions(data: st.DataObject, height: int, width: int, kind: str) -> None:
    most = 255 if kind == "uint8" else 3000
    x0 = data.draw(st.integers(0, min(width, most) - 1))
    y0 = data.draw(st.integers(0, min(height, most) - 1))
    x1, y1 = data.draw(st.integers(x0 + 1, min(width, most))), data.draw(st.integers(y0 + 1, min(height, most)))
    box: Any = [x0, y0, x1, y1] if kind == "list" else np.array([x0, y0, x1, y1], kind)
    found = Support(IMAGE, box, "box").drawn((height, width))
    assert found.sum() == (x1 - x0) * (y1 - y0) and found[y0:y1, x0:x1].all()


@pytest.mark.parametrize(
    ("boxes", "message"),
    [
        ([(5, 5, 30, 20), (0.4, 0.3, 0.6, 0.5)], r"box \(0\.4, 0\.3, 0\.6, 0\.5\) looks like fractions"),
        ((0.0, 0.0, 1.0, 1.0), "looks like fractions"),
        ((-0.1, 0.2, 1.1, 0.4), "looks like fractions"),
        (("1", "2", "30", "40"), "boxes holds <U2 values; pass numbers"),
        ([(1, 2, 3, 4), (1, 2)], "can't be read as one array"),
        (None, "boxes holds object values"),
        ([], "there is no box"),
        (np.zeros((4, 2)), r"rows of four numbers x0, y0, x1, y1; got float64 of shape \(4, 2\)"),
        (np.zeros((1, 2, 4)), r"of shape \(1, 2, 4\)"),
        ([True, True, True, True], "got bool"),
        ((1, 2, float("nan"), 4), "not finite"),
        ((1, 2, float("inf"), 4), "not finite"),
        ((30, 20, 10, 10), r"for x, y, width, height pass x, y, x \+ width, y \+ height"),
        ((30, 20, 30, 25), "write x0 < x1"),
        ((100, 5, 120, 25), "all of it is outside"),
        ((-30, -30, -1, -1), "all of it is outside"),
    ],
)
def test_boxes_that_mark_nothing_say_why(boxes: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        drawn(boxes, "box")


def test_the_first_pixel_is_a_box_when_written_as_integers() -> None:
    assert drawn((0, 0, 1, 1), "box").sum() == 1
    assert Support(IMAGE[:1, :1], (0.0, 0.0, 1.0, 1.0), "box").drawn((1, 1)).sum() == 1


@pytest.mark.parametrize("kind", ["mask", "scribble"])
@pytest.mark.parametrize(
    ("annotation", "message"),
    [
        (
            np.ones((60, 40), bool),
            r"shape \(60, 40\), but its image is 40 × 60 \(H × W\); it looks transposed: pass its",
        ),
        (np.ones((1, 40, 60), bool), r"shape \(1, 40, 60\).*\.squeeze\(\)"),
        (np.ones((40, 60, 1), bool), r"shape \(40, 60, 1\).*\.squeeze\(\)"),
        (np.ones((40, 60, 3), np.uint8), "it is a colour picture"),
        (np.ones((20, 30), bool), r"shape \(20, 30\), but its image is 40 × 60 .*resize"),
        (np.ones(2400, bool), r"one value for each pixel, \[H, W\]"),
        (None, "the (mask|scribble) holds object values"),
        ([["a"]], "the (mask|scribble) holds <U1 values"),
        ([[1, 0], [1]], "can't be read as one array"),
        (torch.ones(40, 60, requires_grad=True), "can't be read as one array"),
        (np.full((40, 60), 255, np.uint8), "holds values 255.*picture > 0"),
        (np.full((40, 60), 255.0), r"holds values 255\.0"),
        (np.full((40, 60), 0.3), r"holds values 0\.3.*probabilities > 0\.5"),
        (np.full((40, 60), np.nan), "holds values nan"),
        (np.full((40, 60), -1), "holds values -1"),
        (np.full((40, 60), 1j), "holds complex128 values"),
        (np.zeros((40, 60), bool), "marks no pixel of the class"),
        (np.zeros((40, 60)), "marks no pixel of the class"),
    ],
)
def test_masks_and_strokes_that_do_not_fit_say_why(kind: str, annotation: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        drawn(annotation, kind)


@pytest.mark.parametrize("dtype", [bool, np.uint8, np.int64, np.float32, np.float64])
def test_zeros_and_ones_of_every_type_are_a_mask(dtype: Any) -> None:
    mask = np.zeros(SIZE, dtype)
    mask[3:9, 4:8] = 1
    assert drawn(mask, "mask").tolist() == (mask == 1).astype(int).tolist()
    assert (drawn(mask, "scribble") == 1).sum() == 24
    assert drawn(torch.from_numpy(mask), "mask").sum() == drawn(Image.fromarray(mask == 1), "mask").sum() == 24


@pytest.mark.parametrize(
    ("name", "others", "message"),
    [
        (None, (), r"Text\.name is a name, not None \(NoneType\)"),
        (7, (), r"Text\.name is a name, not 7 \(int\)"),
        ("wren", None, r"Text\.others is a list of names, not None"),
        ("wren", ("owl", 3), r"Text\.others\[1\] is a name, not 3"),
    ],
)
def test_texts_that_are_none_are_refused(name: Any, others: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        Text(name, others)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"path_or_hub_id": None}, r"path_or_hub_id must be a path, not None \(NoneType\)"),
        ({"path_or_hub_id": 3}, r"path_or_hub_id must be a path, not 3 \(int\)"),
        ({"path_or_hub_id": b"x"}, r"path_or_hub_id must be a path, not b'x' \(bytes\)"),
        ({"path_or_hub_id": "~nobody-of-that-name/x"}, "path_or_hub_id.*write the path in full"),
        ({"backbone": torch.nn.Identity()}, "backbone 'Identity' must give three maps"),
        ({"backbone": torch.nn.Identity}, "backbone must be a name .*or a torch.nn.Module, not a type"),
        ({"backbone": 0}, "backbone must be a name .*not a int"),
        ({"backbone": ""}, "backbone name '' is incomplete"),
        ({"companion": torch.nn.Identity()}, "companion must be a name"),
        ({"companion": 0}, "companion must be a name"),
        ({"weights_dir": 3}, r"weights_dir must be a path, not 3"),
        ({"weights_dir": "~/nowhere", "backbone": "resnet18"}, "weights directory .* does not exist"),
        ({"device": ABSENT_GPU}, "device 'cuda(:99)?' can't be used .*device='cpu' always works"),
        ({"device": "gpu"}, "device 'gpu' can't be used"),
        ({"device": "meta"}, "device 'meta' can't be used"),
        ({"device": None}, "device None can't be used"),
        ({"device": 1.5}, r"device 1\.5 can't be used"),
    ],
)
def test_what_load_can_not_use_is_named(results: Path, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        DiffUp.load(**{"path_or_hub_id": results / CELL.key(), **arguments})
    assert "was trained on this backbone" not in str(caught.value)


def test_swapping_to_something_else_than_a_backbone_is_refused(model: DiffUp) -> None:
    module: Any = torch.nn.Identity()
    for attempt in (lambda: model.swap_backbone(3), lambda: load_backbone(3)):  # type: ignore[arg-type]
        with pytest.raises(UserError, match=r"given by its name.*or as a torch.nn.Module; not as a int"):
            attempt()
    with pytest.raises(UserError, match="companion must be a name"):
        model.swap_backbone("tiny_resnet", companion=module)
    with pytest.raises(UserError, match="takes a Encoder, not NoneType"):
        DiffUp(None, model.net)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m: m.encode(None), r"takes a list of images.*got a NoneType"),
        (lambda m: m.encode(IMAGE), r"takes a list of images.*got a ndarray"),
        (lambda m: m.encode(IMAGE for _ in "ab"), "got a generator"),
        (lambda m: m.encode([IMAGE], batch_size=0), "batch_size must be 1 or more, not 0"),
        (lambda m: m.segment(IMAGE, None), r"cues is a list.*got a NoneType"),
        (lambda m: m.segment(IMAGE, "wren"), r"cues is a list.*got a str"),
        (lambda m: m.segment_batch(None, []), "takes a list of queries"),
        (lambda m: m.segment(None, [WHOLE]), r"queries\[0\] is NoneType"),
        (lambda m: m.segment(IMAGE, [Support(None, (0, 0, 9, 9), "box")]), r"cues\[0\] is NoneType"),  # type: ignore[arg-type]
        (lambda m: m.segment(IMAGE, [WHOLE], steps=2.0), r"steps must be a whole number, not 2\.0 \(float\)"),
        (lambda m: m.segment(IMAGE, [WHOLE], samples=None), "samples must be a whole number"),
        (lambda m: m.segment(IMAGE, [WHOLE], seed=-1), "seed must be 0 or more, not -1"),
        (lambda m: m.segment(IMAGE, [WHOLE], seed="1"), "seed must be a whole number"),
    ],
)
def test_what_encode_and_segment_can_not_use_is_named(model: DiffUp, call: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        call(model)


def test_numpys_numbers_are_numbers(model: DiffUp) -> None:
    one = model.segment(IMAGE, [WHOLE], steps=np.int64(2), samples=np.uint8(2), seed=np.int32(3))  # type: ignore[arg-type]
    assert (one.probability == model.segment(IMAGE, [WHOLE], steps=2, samples=2, seed=3).probability).all()


def test_a_tilde_is_the_home_folder_in_every_path(
    model: DiffUp, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home, here = tmp_path / "home", tmp_path / "here"
    home.mkdir()
    here.mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.chdir(here)
    model.save("~/my/checkpoint")
    assert (home / "my/checkpoint/config.json").is_file()
    (home / "weights").mkdir()
    loaded = DiffUp.load("~/my/checkpoint", weights_dir="~/weights")
    assert loaded.swap_backbone("tiny_regnet", weights_dir=Path("~/weights")).encoder.backbone.name == "tiny_regnet"
    torch.save(load_backbone("test_resnet", "random:1")._features.model.state_dict(), home / "weights/test_resnet.pth")
    backbone = load_backbone("test_resnet", weights_dir=Path("~/weights"))
    assert backbone.weights.startswith("sha256:")
    Image.fromarray(IMAGE).save(home / "query.png")
    assert model.encode(["~/query.png"])[0].size == SIZE
    assert not list(here.iterdir()), "nothing called ~ in the working directory"


def test_a_place_that_can_not_be_written_is_named(model: DiffUp, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"file/checkpoint can't be written"):
        model.save(tmp_path / "file" / "checkpoint")
    with pytest.raises(UserError, match="folder must be a path, not None"):
        model.save(None)  # type: ignore[arg-type]


def test_a_checkpoint_without_facts_says_so(model: DiffUp, tmp_path: Path) -> None:
    model.save(tmp_path)
    config = (tmp_path / "config.json").read_text()
    (tmp_path / "config.json").write_text(config.replace('"facts"', '"fact"'))
    with pytest.raises(UserError, match="does not say how its images are to be encoded"):
        DiffUp.load(tmp_path)


def test_a_usable_device_gives_its_name() -> None:
    assert usable_device("cpu") == usable_device(torch.device("cpu")) == "cpu"


def test_points_are_discs_of_a_scribble_whose_size_follows_the_image() -> None:
    for height, width in ((480, 640), (1200, 1600), (24, 30)):
        drawn = Support(IMAGE, [(width // 3, height // 2), (0, 0)], "points").drawn((height, width))
        assert set(np.unique(drawn)) == {1, 2}, "what is not marked is unknown"
        assert drawn[height // 2, width // 3] == drawn[0, 0] == 1
        across = int((drawn[height // 2] == 1).sum())
        assert abs(across - 2 * 0.04 * (height * width) ** 0.5) <= 2
    assert (Support(IMAGE, (4.7, 3.2), "points").drawn((20, 20))[3, 4]) == 1, "a single point, between pixels"


def test_points_and_their_scribble_are_the_same_cue(model: DiffUp) -> None:
    points = Support(IMAGE, [(5, 5), (20, 12)], "points")
    strokes = Support(IMAGE, points.drawn(SIZE) == 1, "scribble")
    one, other = (model.segment(IMAGE, [cue]) for cue in (points, strokes))
    assert (one.probability == other.probability).all()


@pytest.mark.parametrize(
    ("points", "message"),
    [
        ([], "rows of two numbers"),
        ([(1, 2, 3)], "rows of two numbers"),
        ([("a", "b")], "not texts"),
        ([(10, 5), (40, 5)], r"point \(40, 5\) is not in its image, which is 40 wide and 30 high"),
        ([(-1, 5)], "is not in its image"),
        ([(float("nan"), 5)], "is not in its image"),
        ([(0.5, 0.25)], r"looks like fractions.*width, 40.*height, 30"),
        ("points.png", r"a point is two numbers x, y, not the path 'points\.png'"),
    ],
)
def test_points_that_do_not_fit_are_refused(points: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        Support(IMAGE, points, "points").drawn((30, 40))
