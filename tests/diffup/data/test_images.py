"""Photographs: every depth, mode, suffix and orientation is read right, or refused by name; nothing is clipped."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import PIL
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from diffup.data.dataset import open_dataset, scan_dataset
from diffup.data.images import IMAGE_SUFFIXES, read_photo, rgb
from diffup.errors import UserError
from diffup.support import to_rgb
from tests.helpers.folders import labels, write_image, write_voc
from tests.helpers.pngs import png

anywhere = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
YCBCR_TIFF = ("YCbCr",) if int(PIL.__version__.split(".")[0]) >= 13 else ()  # Pillow 12 can't read its own
LOSSLESS = (".png", ".bmp", ".tif", ".tiff")
ORIENTATION = 0x0112


def ramp(top: int, width: int = 80, height: int = 6) -> NDArray[np.int64]:
    """Grey from 0 to `top`."""
    return np.linspace(0, top, width).round().astype(np.int64)[None].repeat(height, 0)


def oriented(path: Path, orientation: int, size: tuple[int, int] = (40, 60)) -> NDArray[np.uint8]:
    """A picture with an EXIF orientation, its pixels as they are stored."""
    stored = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    Image.fromarray(stored).save(path, exif=exif)
    return stored


# Depths and modes


@anywhere
@given(top=st.integers(4096, 65535), suffix=st.sampled_from([".png", ".tif"]))
def test_sixteen_bits_are_scaled_and_never_clipped(top: int, suffix: str, tmp_path: Path) -> None:
    values = ramp(top)
    path = tmp_path / f"deep{suffix}"
    Image.fromarray(values.astype(np.uint16)).save(path)
    read = read_photo(path).pixels
    assert read.shape == (*values.shape, 3) and (read == read[:, :, :1]).all()
    np.testing.assert_allclose(read[:, :, 0], values * 255 / 65535, atol=0.51)


@anywhere
@given(top=st.integers(1, 4095))
def test_few_bits_in_sixteen_are_refused(top: int, tmp_path: Path) -> None:
    path = tmp_path / "deep.png"
    path.write_bytes(png(ramp(top), 16))
    with pytest.raises(UserError, match=f"largest value is {top} of 65535: it would be nearly black"):
        read_photo(path)


def test_a_black_picture_of_sixteen_bits_is_black(tmp_path: Path) -> None:
    (tmp_path / "deep.png").write_bytes(png(ramp(0), 16))
    assert not read_photo(tmp_path / "deep.png").pixels.any()


def test_white_is_zero_in_sixteen_bits(tmp_path: Path) -> None:
    path = tmp_path / "deep.tif"
    Image.fromarray(ramp(65535).astype(np.uint16)).save(path, tiffinfo={262: 0})
    np.testing.assert_allclose(read_photo(path).pixels[:, :, 0], 255 - ramp(65535) / 257, atol=0.51)


@pytest.mark.parametrize(("dtype", "what"), [(np.int32, "32-bit integers"), (np.float32, "floating-point numbers")])
def test_values_without_a_range_are_refused(dtype: type, what: str, tmp_path: Path) -> None:
    picture = Image.fromarray(ramp(1000).astype(dtype))
    picture.save(tmp_path / "x.tif")
    with pytest.raises(UserError, match=f"image is refused: its pixels are {what}.*8 bits a channel"):
        read_photo(tmp_path / "x.tif")
    with pytest.raises(UserError, match=f"the query is refused: its pixels are {what}"):
        to_rgb(picture, "the query")


def test_pictures_and_paths_in_python_are_scaled_too(tmp_path: Path) -> None:
    picture = Image.fromarray(ramp(65535).astype(np.uint16))
    picture.save(tmp_path / "deep.png")
    for given_image in (picture, tmp_path / "deep.png", str(tmp_path / "deep.png")):
        assert len(np.unique(to_rgb(given_image, "the query"))) == 80


@pytest.mark.parametrize(
    ("suffix", "mode"),
    [
        *((".png", mode) for mode in ("1", "L", "LA", "P", "RGB", "RGBA")),
        *((".bmp", mode) for mode in ("1", "L", "P", "RGB", "RGBA")),
        *((".tif", mode) for mode in ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK", *YCBCR_TIFF)),
        *((".jpg", mode) for mode in ("L", "RGB", "CMYK", "YCbCr")),
        *((".webp", mode) for mode in ("L", "RGB", "RGBA")),
    ],
)
def test_every_mode_and_suffix_gives_the_picture(suffix: str, mode: str, tmp_path: Path) -> None:
    grey = Image.fromarray(ramp(255, 64, 48).astype(np.uint8)).convert("RGB")
    picture = grey.convert(mode)
    path = tmp_path / f"x{suffix}"
    picture.save(path)
    tolerance = 0 if suffix in LOSSLESS else 12
    wanted = np.asarray(picture.convert("RGB")).astype(int)
    assert np.abs(read_photo(path).pixels.astype(int) - wanted).max() <= tolerance


def test_a_tiff_in_ycbcr_is_right_or_refused(tmp_path: Path) -> None:
    picture = Image.fromarray(ramp(255, 64, 48).astype(np.uint8)).convert("RGB").convert("YCbCr")
    picture.save(tmp_path / "x.tif")
    try:
        pixels = read_photo(tmp_path / "x.tif").pixels
    except UserError:  # Pillow 12
        return
    assert np.abs(pixels.astype(int) - np.asarray(picture.convert("RGB")).astype(int)).max() == 0


@pytest.mark.parametrize("depth", [1, 2, 4, 8])
def test_grey_of_few_bits_reaches_white(depth: int, tmp_path: Path) -> None:
    path = tmp_path / "x.png"
    path.write_bytes(png(ramp(2**depth - 1), depth))
    np.testing.assert_allclose(read_photo(path).pixels[:, :, 0], ramp(2**depth - 1) * 255 / (2**depth - 1), atol=0.51)


def test_pages_and_frames_are_refused(tmp_path: Path) -> None:
    pages = [Image.fromarray(ramp(255).astype(np.uint8)), Image.fromarray(255 - ramp(255).astype(np.uint8))]
    for suffix in (".tif", ".png", ".webp"):
        pages[0].save(tmp_path / f"x{suffix}", save_all=True, append_images=pages[1:])
        with pytest.raises(UserError, match="the file holds 2 pictures"):
            read_photo(tmp_path / f"x{suffix}")


def test_a_previews_second_picture_is_none(tmp_path: Path) -> None:
    """Cameras write JPEGs with a second picture (MPO)."""
    first = Image.fromarray(np.full((8, 8, 3), 200, np.uint8))
    first.save(tmp_path / "x.jpg", format="MPO", save_all=True, append_images=[Image.new("RGB", (4, 4))])
    assert read_photo(tmp_path / "x.jpg").pixels.shape == (8, 8, 3)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data(), suffix=st.sampled_from([*IMAGE_SUFFIXES]))
def test_a_damaged_picture_is_refused_or_read(data: st.DataObject, suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"x{suffix}"
    write_image(path, (12, 16))
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(bytes(content[: data.draw(st.integers(0, len(content)))]))
    try:
        read = read_photo(path).pixels
    except UserError as error:
        assert str(error).startswith(("image can't be decoded", "image is refused"))
    else:
        assert read.dtype == np.uint8 and read.ndim == 3 and read.shape[2] == 3


def test_programs_are_not_started_for_a_file_that_is_no_photograph(tmp_path: Path) -> None:
    (tmp_path / "x.jpg").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n%%EOF\n")
    with pytest.raises(UserError, match="image is refused: a EPS file is not read"):
        read_photo(tmp_path / "x.jpg")


# Suffixes


@pytest.mark.parametrize("suffix", [*IMAGE_SUFFIXES, ".JPG", ".Png", ".TIF", ".WebP"])
def test_images_are_found_by_any_suffix(suffix: str, tmp_path: Path, cache: Path) -> None:
    path = write_voc(tmp_path / "toy")
    old = path.parent / "JPEGImages" / "dog_0.jpg"
    Image.open(old).save(old.with_suffix(suffix))
    if suffix != ".jpg":
        old.unlink()
    found = open_dataset(path, cache_dir=cache)
    assert len(found.image_ids) == 12 and found.files("dog_0")[0] == f"JPEGImages/dog_0{suffix}"


def test_what_is_not_read_is_named_and_counted(tmp_path: Path, cache: Path) -> None:
    path = write_voc(tmp_path / "toy")
    for name in ("a.heic", "b.heic", "c.gif", "._dog_0.jpg", "Thumbs.db", "dog_0.json"):
        (path.parent / "JPEGImages" / name).write_bytes(b"x")
    write_image(path.parent / "JPEGImages" / "cam1" / "x.jpg")
    with pytest.warns(UserWarning) as told:
        assert len(open_dataset(path, cache_dir=cache).image_ids) == 12
    said = sorted(str(warning.message) for warning in told)
    assert len(said) == 2 and "1 folders below it hold images that are not read: cam1" in said[0]
    assert "3 files are not read (1 .gif, 2 .heic): a.heic, b.heic, c.gif" in said[1]
    assert len(scan_dataset(path).notes) == 2


def test_an_image_of_another_suffix_is_named_where_it_is_missed(tmp_path: Path, cache: Path) -> None:
    path = write_voc(tmp_path / "toy")
    (path.parent / "JPEGImages" / "dog_0.jpg").rename(path.parent / "JPEGImages" / "dog_0.heic")
    (path.parent / "ImageSets" / "Segmentation").mkdir(parents=True)
    (path.parent / "ImageSets" / "Segmentation" / "all.txt").write_text("dog_0\ndog_1\n")
    with pytest.raises(UserError, match=r"dog_0\.jpg: image is missing; there is dog_0\.heic"):
        open_dataset(path, cache_dir=cache)


# EXIF orientation


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_pixels_stay_as_they_are_stored_unless_asked(orientation: int, suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"x{suffix}"
    stored = oriented(path, orientation)
    read = read_photo(path)
    np.testing.assert_array_equal(read.pixels, stored)
    assert read.orientation == orientation
    upright = {
        1: stored, 2: stored[:, ::-1], 3: stored[::-1, ::-1], 4: stored[::-1], 5: stored.transpose(1, 0, 2),
        6: np.rot90(stored, 3), 7: stored[::-1, ::-1].transpose(1, 0, 2), 8: np.rot90(stored),
    }  # fmt: skip
    np.testing.assert_array_equal(read_photo(path, upright=True).pixels, upright[orientation])
    np.testing.assert_array_equal(to_rgb(path, "the query"), upright[orientation])


@pytest.mark.parametrize("orientation", [0, 9, 77])
def test_an_orientation_that_is_none(orientation: int, tmp_path: Path) -> None:
    oriented(tmp_path / "x.png", orientation)
    assert read_photo(tmp_path / "x.png").orientation == 1


@pytest.mark.parametrize("orientation", range(2, 5))
def test_turned_images_are_listed_when_a_data_set_is_opened(orientation: int, tmp_path: Path, cache: Path) -> None:
    path = write_voc(tmp_path / "toy")
    for name in ("dog_0", "cow_2"):
        oriented(path.parent / "JPEGImages" / f"{name}.jpg", orientation)
    with pytest.warns(UserWarning, match=rf"2 of the images have .* cow_2\.jpg \({orientation}\), dog_0\.jpg"):
        open_dataset(path, cache_dir=cache)
    assert len(scan_dataset(path).notes) == 1


@pytest.mark.parametrize("orientation", [1, *range(5, 9)])
def test_a_quarter_turn_explains_exchanged_sizes(orientation: int, tmp_path: Path, cache: Path) -> None:
    path = write_voc(tmp_path / "toy")
    oriented(path.parent / "JPEGImages" / "dog_0.jpg", orientation, (60, 40))
    why = f"EXIF orientation {orientation} turns it" if orientation != 1 else "height and width are exchanged"
    with pytest.raises(UserError, match=rf"dog_0\.png: mask is 60x40, but its image dog_0\.jpg is 40x60.*{why}"):
        open_dataset(path, cache_dir=cache)


def test_sizes_that_no_turn_explains(tmp_path: Path, cache: Path) -> None:
    path = write_voc(tmp_path / "toy")
    Image.fromarray(labels(0, 0)[:-1]).save(path.parent / "SegmentationClass" / "dog_0.png")
    with pytest.raises(UserError) as caught:
        open_dataset(path, cache_dir=cache)
    assert "EXIF" not in str(caught.value) and "exchanged" not in str(caught.value)


def test_rgb_drops_transparency_alone() -> None:
    rgba = np.full((4, 5, 4), 90, np.uint8)
    rgba[..., 3] = 0
    assert (rgb(Image.fromarray(rgba)) == 90).all()
