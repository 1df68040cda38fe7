"""Label images: the values that were drawn, or a refusal that names the file; never other values."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from numpy.typing import NDArray
from PIL import Image

from diffup.data.dataset import open_dataset, scan_dataset
from diffup.data.labels import VOID_COLOUR, palette_faults, read_binary, read_labels
from diffup.episodes.protocols import get_protocol
from diffup.errors import UserError
from tests.helpers.folders import CLASSES, FOLDS, labels, write_image, write_json, write_voc
from tests.helpers.pngs import GREY, PALETTE, png

RED, GREEN, BLUE, BLACK, GOLD = (128, 0, 0), (0, 128, 0), (0, 0, 128), (0, 0, 0), (128, 128, 0)
anywhere = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def written(folder: Path, content: bytes | Image.Image, name: str = "mask.png", **how: object) -> Path:
    """A file of those bytes, or of that picture in the format that its name says."""
    path = folder / name
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        content.save(path, **how)  # type: ignore[arg-type]
    return path


def block(value: int, size: tuple[int, int] = (12, 16)) -> NDArray[np.uint8]:
    """A rectangle of a value on 0."""
    mask = np.zeros(size, np.uint8)
    mask[2:8, 3:12] = value
    return mask


@st.composite
def grey_values(draw: st.DrawFn) -> tuple[int, NDArray[np.integer]]:
    """A bit depth, and labels that it can hold."""
    depth = draw(st.sampled_from([1, 2, 4, 8, 16]))
    top = min(2**depth, 256) - 1
    return depth, draw(arrays.arrays(np.int64, (5, 11), elements=st.integers(0, top)))


# Index masks


@anywhere
@given(drawn=grey_values())
def test_grey_of_any_depth_gives_its_true_values(drawn: tuple[int, NDArray[np.integer]], tmp_path: Path) -> None:
    depth, values = drawn
    np.testing.assert_array_equal(read_labels(written(tmp_path, png(values, depth, GREY))).values, values)


@anywhere
@given(drawn=grey_values(), seed=st.integers(0, 99))
def test_palettes_of_any_depth_give_their_indices(
    drawn: tuple[int, NDArray[np.integer]], seed: int, tmp_path: Path
) -> None:
    depth, values = drawn
    if depth == 16:
        return
    palette = np.random.default_rng(seed).integers(0, 256, 3 * 2**depth).tolist()
    read = read_labels(written(tmp_path, png(values, depth, PALETTE, palette)))
    np.testing.assert_array_equal(read.values, values)
    assert all(read.palette[i] == tuple(palette[3 * i : 3 * i + 3]) for i in range(2**depth))


def test_sixteen_bits_hold_labels_up_to_255(tmp_path: Path) -> None:
    values = block(3).astype(np.int64)
    values[0, 0] = 300
    with pytest.raises(UserError, match="16-bit labels up to 300"):
        read_labels(written(tmp_path, png(values, 16)))


@pytest.mark.parametrize("form", ["JPEG", "WEBP", "GIF", "BMP", "TIFF"])
@pytest.mark.parametrize("reader", [read_labels, read_binary])
def test_only_png_is_trusted_whatever_the_name_says(form: str, reader: object, tmp_path: Path) -> None:
    assert callable(reader)
    Image.fromarray(block(255)).save(tmp_path / "mask.png", format=form)
    with pytest.raises(UserError, match=f"it is a {form} file.*[Ee]xport it as PNG"):
        reader(tmp_path / "mask.png")


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "LA"])
def test_colour_and_alpha_are_no_labels(mode: str, tmp_path: Path) -> None:
    path = written(tmp_path, Image.fromarray(block(1)).convert(mode))
    with pytest.raises(UserError, match=f"mode {mode}; labels need a palette or an 8-bit grey PNG"):
        read_labels(path)


def test_frames_are_no_labels(tmp_path: Path) -> None:
    frames = [Image.fromarray(block(value)) for value in (1, 2)]
    with pytest.raises(UserError, match="2 pictures"):
        read_labels(written(tmp_path, frames[0], save_all=True, append_images=frames[1:]))


def test_a_data_set_of_lossy_masks_is_refused_by_name(json_path: Path, cache: Path) -> None:
    for path in (json_path.parent / "SegmentationClass").iterdir():
        Image.open(path).convert("L").save(path, format="JPEG", quality=95)
    with pytest.raises(UserError, match=r"12 problems(.|\n)*bird_0\.png: mask is refused: it is a JPEG") as caught:
        open_dataset(json_path, cache_dir=cache)
    assert str(caught.value).count("JPEG") == 10 and "and 2 more" in str(caught.value)


# Palettes that differ


def test_a_colour_at_two_labels_is_a_problem() -> None:
    usual, other = {0: BLACK, 1: RED, 2: GREEN}, {0: BLACK, 1: GREEN, 2: RED}
    used = frozenset({0, 1})
    for palettes in ({"a": usual, "b": usual, "c": other}, {"a": usual, "c": other}):
        moved, differing = palette_faults(palettes, dict.fromkeys(palettes, used))
        assert len(moved) == 1 and moved[0].startswith(
            "c: label 1 has the colour (0, 128, 0), which is that of label 2"
        )
        assert not differing


def test_palettes_cut_to_the_colours_that_occur() -> None:
    """As PNG optimisers leave them: whether labels moved shows once another file uses both."""
    one, two, both = {0: BLACK, 1: RED}, {0: BLACK, 1: GREEN}, {0: BLACK, 1: RED, 2: GREEN}
    palettes = {"1": one, "2": two, "3": both}
    moved, differing = palette_faults(palettes, {name: frozenset(palette) for name, palette in palettes.items()})
    assert [line[:10] for line in moved] == ["2: label 1"] and not differing
    palettes.pop("3")
    moved, differing = palette_faults(palettes, {name: frozenset(palette) for name, palette in palettes.items()})
    assert not moved and differing == ["2"]


def test_other_colours_for_the_same_labels_are_only_told() -> None:
    voc, ramp = {0: BLACK, 1: RED, 2: GREEN, 3: GOLD}, {i: (i, i, i) for i in range(4)}
    palettes = {"a": voc, "b": voc, "c": ramp}
    moved, differing = palette_faults(palettes, dict.fromkeys(palettes, frozenset({0, 2, 3})))
    assert not moved and differing == ["c"]


def test_a_palette_of_one_colour_says_nothing() -> None:
    palettes = {"a": {0: BLACK, 1: RED}, "b": {0: BLACK, 1: BLACK}}
    moved, _ = palette_faults(palettes, dict.fromkeys(palettes, frozenset({0, 1})))
    assert not moved


def test_a_palette_that_was_sorted_alike_in_all_files_is_a_problem() -> None:
    files, used = ("a", "b"), frozenset({0, 1})
    moved, _ = palette_faults({name: {0: RED, 1: BLACK} for name in files}, dict.fromkeys(files, used))
    assert len(moved) == 2 and "label 0, the background, has the colour" in moved[0]
    void_at_2 = {name: {0: BLACK, 1: RED, 2: VOID_COLOUR} for name in files}
    moved, _ = palette_faults(void_at_2, dict.fromkeys(files, used | {2}))
    assert len(moved) == 2 and "a: label 2 has the colour (224, 224, 192), which is that of void" in moved[0]
    whole = {name: {0: BLACK, 1: RED, 255: VOID_COLOUR} for name in files}
    assert palette_faults(whole, dict.fromkeys(files, used | {255})) == ([], [])


@settings(deadline=None)
@given(
    order=st.permutations(range(1, 5)),
    files=st.lists(st.sets(st.integers(1, 4), min_size=1), min_size=3, max_size=6),
)
def test_any_reordered_palette_is_found_and_no_other(order: list[int], files: list[set[int]]) -> None:
    colours = [BLACK, RED, GREEN, BLUE, GOLD]
    usual = dict(enumerate(colours))
    changed = {0: BLACK} | {label: colours[order[label - 1]] for label in range(1, 5)}
    used = {f"{i}": frozenset({0, *labels}) for i, labels in enumerate(files)} | {"whole": frozenset(range(5))}
    palettes = {name: usual for name in used}
    assert palette_faults(palettes, used) == ([], [])
    used["whole too"] = frozenset(range(5))
    palettes |= {"whole too": usual, "x": changed}
    used["x"] = frozenset(range(5))
    moved, _ = palette_faults(palettes, used)
    assert bool(moved) == (order != [1, 2, 3, 4]) and all(line.startswith("x: ") for line in moved)


def test_a_data_set_with_a_reordered_palette_is_refused_by_name(json_path: Path, cache: Path) -> None:
    folder = json_path.parent / "SegmentationClass"
    for path in folder.iterdir():
        image = Image.fromarray(np.asarray(Image.open(path)))
        image.putpalette([*BLACK, *RED, *GREEN, *BLUE, *GOLD] + [0, 0, 0] * 250 + [255, 255, 255])
        image.save(path)
    assert not scan_dataset(json_path).problems
    image = Image.open(folder / "cow_1.png")
    image.putpalette([*BLACK, *GOLD, *GREEN, *BLUE, *RED] + [0, 0, 0] * 250 + [255, 255, 255])
    image.save(folder / "cow_1.png")
    with pytest.raises(UserError, match=r"cow_1\.png: label 1 has the colour .* that of label 4 in other files"):
        open_dataset(json_path, cache_dir=cache)


# 0/255 masks where labels are expected


def test_masks_of_0_and_255_alone_are_refused(json_path: Path, cache: Path) -> None:
    for path in (json_path.parent / "SegmentationClass").iterdir():
        Image.fromarray(block(255, (40, 60))).save(path)
    with pytest.raises(UserError, match=r"12 masks hold 0 and 255 alone.*value 255 is void: write the label"):
        open_dataset(json_path, cache_dir=cache)
    assert len(scan_dataset(json_path).problems) == 1


def test_some_masks_of_0_and_255_are_told(json_path: Path, cache: Path) -> None:
    Image.fromarray(block(255, (40, 60))).save(json_path.parent / "SegmentationClass" / "dog_2.png")
    with pytest.warns(UserWarning, match=r"1 of the masks hold 0 and 255, which is void, and no class: dog_2\.png"):
        open_dataset(json_path, cache_dir=cache)


def test_masks_with_classes_and_void_are_nothing_remarkable(json_path: Path) -> None:
    seen = scan_dataset(json_path)
    assert (seen.problems, seen.notes) == ([], [])


# Black-and-white masks


@anywhere
@given(
    drawn=arrays.arrays(np.bool_, (6, 9)).filter(lambda mask: bool(mask.any())),
    kind=st.sampled_from(["1", "L", "P", "RGB", "opaque", "16 bits", "2 bits", "4 bits", "antialiased"]),
)
def test_a_black_and_white_mask_is_read_whatever_its_kind(drawn: NDArray[np.bool_], kind: str, tmp_path: Path) -> None:
    grey = np.where(drawn, 255, 0).astype(np.uint8)
    if kind in ("16 bits", "2 bits", "4 bits"):
        depth = int(kind.split()[0])
        content: bytes | Image.Image = png(drawn.astype(np.int64) * (2**depth - 1), depth)
    elif kind == "opaque":
        content = Image.fromarray(grey).convert("RGBA")
    elif kind == "P":
        content = Image.fromarray(drawn.astype(np.uint8))
        content.putpalette([0, 0, 0, 255, 255, 255])
    elif kind == "antialiased":
        content = Image.fromarray(np.where(drawn, 200, 20).astype(np.uint8))
    else:
        content = Image.fromarray(grey).convert(kind)
    np.testing.assert_array_equal(read_binary(written(tmp_path, content)).values, drawn)


@pytest.mark.parametrize("value", [1, 38, 100, 127])
def test_a_mask_that_is_dark_without_being_black_is_refused(value: int, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=f"its largest value is {value}, and only pixels above 127 are the class"):
        read_binary(written(tmp_path, Image.fromarray(block(value))))


@pytest.mark.parametrize("colour", [(128, 0, 0), (255, 0, 0), (0, 200, 200)])
def test_a_coloured_mask_is_refused(colour: tuple[int, int, int], tmp_path: Path) -> None:
    picture = np.zeros((12, 16, 3), np.uint8)
    picture[2:8, 3:12] = colour
    with pytest.raises(UserError, match="it is coloured"):
        read_binary(written(tmp_path, Image.fromarray(picture)))
    indexed = Image.fromarray(block(1))
    indexed.putpalette([0, 0, 0, *colour])
    with pytest.raises(UserError, match="it is coloured"):
        read_binary(written(tmp_path, indexed))


@pytest.mark.parametrize("kind", ["RGBA", "LA", "palette"])
def test_a_mask_in_the_alpha_channel_is_refused(kind: str, tmp_path: Path) -> None:
    rgba = np.full((12, 16, 4), 255, np.uint8)
    rgba[..., 3] = block(255)
    picture = Image.fromarray(rgba)
    if kind == "palette":
        picture = Image.fromarray(block(1))
        picture.putpalette([255, 255, 255, 255, 255, 255])
        path = written(tmp_path, picture, transparency=0)
    else:
        path = written(tmp_path, picture.convert(kind))
    with pytest.raises(UserError, match="partly transparent"):
        read_binary(path)


def test_a_photograph_is_no_mask(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (30, 40), dtype=np.uint8)
    with pytest.raises(UserError, match="neither black nor white"):
        read_binary(written(tmp_path, Image.fromarray(noise)))


def fss(folder: Path, masks: list[NDArray[np.uint8]], image: str = ".jpg", mask: str = ".png") -> Path:
    """A data set in FSS layout of one class, ``dog``."""
    (folder / "dog").mkdir(parents=True)
    for i, drawn in enumerate(masks):
        write_image(folder / "dog" / f"{i}.jpg", drawn.shape)
        (folder / "dog" / f"{i}.jpg").rename(folder / "dog" / f"{i}{image}")
        buffer = io.BytesIO()
        Image.fromarray(drawn).save(buffer, format="PNG")
        (folder / "dog" / f"{i}{mask}").write_bytes(buffer.getvalue())
    return write_json(folder, layout="fss", classes=["dog"], folds=[["dog"]])


def test_masks_that_mark_nothing_or_all_are_named(tmp_path: Path, cache: Path) -> None:
    path = fss(tmp_path / "toy", [block(255), block(0), np.full((12, 16), 255, np.uint8)])
    with pytest.warns(UserWarning) as told:
        dataset = open_dataset(path, cache_dir=cache)
    said = sorted(str(warning.message) for warning in told)
    assert len(said) == 2 and "1 of the masks are black" in said[0] and "dog/1.png" in said[0]
    assert "1 of the masks are white throughout" in said[1] and "dog/2.png" in said[1]
    assert dataset.areas == {"dog/0": {0: 54}, "dog/1": {}, "dog/2": {0: 192}}


@pytest.mark.parametrize(("image", "mask"), [(".JPG", ".PNG"), (".jpeg", ".Png"), (".webp", ".png"), (".bmp", ".PNG")])
def test_suffixes_in_any_case_in_class_folders(image: str, mask: str, tmp_path: Path, cache: Path) -> None:
    path = fss(tmp_path / "toy", [block(255)] * 2, image, mask)
    assert open_dataset(path, cache_dir=cache).areas == {"dog/0": {0: 54}, "dog/1": {0: 54}}


def test_class_folders_of_one_leaf_name_are_two_classes(tmp_path: Path, cache: Path) -> None:
    for name in ("animals", "toys"):
        fss(tmp_path / "toy" / name, [block(255)] * 2)
    names = ["animals/dog", "toys/dog"]
    path = write_json(tmp_path / "toy", layout="fss", classes=names, folds=[[name] for name in names])
    found = open_dataset(path, cache_dir=cache)
    assert found.image_ids == ("animals/dog/0", "animals/dog/1", "toys/dog/0", "toys/dog/1")
    assert found.eligible(1, get_protocol("paired")) == found.image_ids[2:]


def test_two_suffixes_of_one_name_in_a_class_folder(tmp_path: Path, cache: Path) -> None:
    path = fss(tmp_path / "toy", [block(255)] * 2)
    write_image(path.parent / "dog" / "1.jpeg", (12, 16))
    with pytest.raises(UserError, match=r"dog/1\.jpeg, dog/1\.jpg: 2 images have the id 'dog/1'"):
        open_dataset(path, cache_dir=cache)


def test_images_without_masks_and_masks_without_images(tmp_path: Path, cache: Path) -> None:
    path = write_voc(tmp_path / "toy")
    Image.fromarray(labels(0, 0)).save(path.parent / "SegmentationClass" / "lone.png")
    with pytest.warns(UserWarning, match=r"1 masks have no image of their name: lone\.png"):
        open_dataset(path, cache_dir=cache)
    (path.parent / "SegmentationClass" / "dog_0.png").rename(path.parent / "SegmentationClass" / "DOG_0.tif")
    with pytest.raises(UserError, match=r"dog_0\.png: mask is missing; there is DOG_0\.tif"):
        open_dataset(path, cache_dir=cache)


@pytest.mark.parametrize("name", ["background", "__background__", "_background_", "Background", "__ignore__"])
def test_background_is_no_class(name: str, json_path: Path, cache: Path) -> None:
    write_json(json_path.parent, classes=[name, *CLASSES], folds=FOLDS)
    with pytest.raises(UserError, match=f"'classes' begins with '{name}'.*label 0 is background"):
        open_dataset(json_path, cache_dir=cache)
