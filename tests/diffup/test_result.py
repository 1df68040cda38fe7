"""A result: its numbers, its picture, and its files."""

from __future__ import annotations

import dataclasses
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from diffup import DiffUp, Result, Support
from diffup.data.dataset import Dataset
from diffup.errors import UserError
from tests.helpers.trained import example


def made(size: tuple[int, int] = (40, 60), image: bool = True) -> Result:
    """A quarter of the picture, with a variance of 0.04 on one half and 0.16 on the other."""
    mask = np.zeros(size, bool)
    mask[: size[0] // 2, : size[1] // 2] = True
    variance = np.full(size, 0.04, np.float32)
    variance[:, size[1] // 2 :] = 0.16
    pixels = np.full((*size, 3), 120, np.uint8) if image else None
    return Result(mask, mask.astype(np.float32), variance, 0.8125, image=pixels)


def test_its_numbers_are_those_of_its_maps() -> None:
    result = made()
    assert result.area == 0.25
    assert result.mean_deviation == pytest.approx(0.3)
    assert repr(result) == "Result(60 × 40 pixels, area 25.0 %, predicted IoU 0.81, mean deviation 0.30)"


def test_a_result_keeps_the_query_it_was_given_as_an_image(model: DiffUp, data: Dataset, tmp_path: Path) -> None:
    query, support, mask = example(data)
    cues = [Support(support, mask)]
    Image.fromarray(query).save(tmp_path / "query.png")
    for given in (query, Image.fromarray(query), tmp_path / "query.png"):
        kept = model.segment(given, cues).image
        assert kept is not None and np.array_equal(kept, query)
    assert model.segment(model.encode([query])[0], cues).image is None


def test_without_an_image_the_overlay_asks_for_it_and_one_of_another_size_is_refused() -> None:
    result = made(image=False)
    with pytest.raises(UserError, match=r"given as features.*overlay\(image\)"):
        result.overlay()
    with pytest.raises(UserError, match=r"the image is 60 × 40 .* and the mask 40 × 60"):
        result.overlay(np.zeros((60, 40, 3), np.uint8))
    for alpha in (-0.1, 1.5):
        with pytest.raises(UserError, match="alpha is a share from 0 to 1"):
            made().overlay(alpha=alpha)
    assert result.overlay(np.zeros((40, 60, 3), np.uint8)).size == (60, 40)


@pytest.mark.parametrize(
    ("target", "names"),
    [
        ("out", ("out/mask.png", "out/overlay.jpg", "out/result.json")),
        ("a/cow.png", ("a/cow.png", "a/cow_overlay.jpg", "a/cow.json")),
    ],
)
def test_it_is_saved_to_a_folder_or_beside_a_mask(tmp_path: Path, target: str, names: tuple[str, ...]) -> None:
    result = made()
    files = result.save(tmp_path / target, facts={"query": "cow.jpg"})
    assert [files[kind] for kind in ("mask", "overlay", "json")] == [tmp_path / name for name in names]
    assert sorted(path for path in tmp_path.rglob("*") if path.is_file()) == sorted(files.values())
    with Image.open(files["mask"]) as mask:
        assert mask.mode == "L" and np.array_equal(np.asarray(mask), result.mask * np.uint8(255))
    with Image.open(files["overlay"]) as shown:
        assert shown.size == (60, 40)
    assert json.loads(files["json"].read_text()) == {
        "query": "cow.jpg", "width": 60, "height": 40, "predicted_iou": 0.8125, "mean_deviation": 0.3, "area": 0.25,
    }  # fmt: skip


def test_saved_again_without_an_image_no_overlay_of_another_result_stays(tmp_path: Path) -> None:
    made().save(tmp_path)
    assert set(made(image=False).save(tmp_path)) == {"mask", "json"}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mask.png", "result.json"]


def test_a_place_that_can_not_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"file/out can't be written"):
        made().save(tmp_path / "file" / "out")


@pytest.mark.parametrize("image", [True, False])
def test_a_notebook_shows_it_small(image: bool) -> None:
    shown = Image.open(io.BytesIO(made((900, 1200), image)._repr_png_()))
    assert shown.format == "PNG" and shown.size == (800, 600)
    assert (np.asarray(shown.convert("RGB"))[5, 5] != np.asarray(shown.convert("RGB"))[-5, -5]).any()


def test_snapping_follows_the_image_and_needs_it(model: DiffUp, data: Dataset) -> None:
    query, support, mask = example(data)
    cues: Any = [Support(support, mask)]
    plain, snapped = model.segment(query, cues), model.segment(query, cues, snap=True)
    assert np.abs(plain.probability - snapped.probability).max() > 0.001
    assert plain.predicted_iou == snapped.predicted_iou
    again = model.segment_batch([query, support], cues, snap=True, batch_size=2)[0]
    np.testing.assert_allclose(again.probability, snapped.probability, atol=1e-4)
    with pytest.raises(UserError, match=r"queries\[0\] are features; snap=True needs the image"):
        model.segment(model.encode([query])[0], cues, snap=True)


def test_a_result_is_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        made().predicted_iou = 1.0  # type: ignore[misc]
