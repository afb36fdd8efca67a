"""Pictures are decoded exactly: their order, channels, palette, orientation, scale and crop."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from data_sets import noise, png, small_images, write_data_set
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from everloop.envs.data.images import load_images


def decoded(root: Path, pictures: list[bytes], **options: Any) -> Any:
    """Return the images of a data set whose two splits hold these encoded pictures."""
    columns = {"image": pictures, "label": [0] * len(pictures)}
    root = write_data_set(root, {"train": columns, "test": columns}, {})
    train, test = load_images(root, **options)
    np.testing.assert_array_equal(test.inputs, train.inputs)
    return train.inputs


def saved_and_decoded(root: Path, picture: Image.Image, **options: Any) -> Any:
    """Save one picture in a folder, with Pillow's options, and return it as it is decoded."""
    for split in ("train", "test"):
        (root / split / "a").mkdir(parents=True)
        picture.save(root / split / "a" / "0.png", **options)
    return load_images(root)[0].inputs[0]


def test_pictures_of_several_chunks_keep_their_order(tmp_path: Path) -> None:
    images = noise(600, 4, 4)
    images[:, 0, 0], images[:, 0, 1] = np.arange(600) % 256, np.arange(600) // 256
    inputs = decoded(tmp_path, [png(pixels) for pixels in images])
    np.testing.assert_array_equal(inputs[..., 0], images)


@pytest.mark.parametrize("coloured", [("train", 3), ("test", 0)])
def test_one_coloured_picture_gives_all_three_channels(
    tmp_path: Path, coloured: tuple[str, int]
) -> None:
    """A grey picture then has the same value in each channel."""
    grey, colour = noise(4, 8, 8), noise(8, 8, 3)
    splits = {
        split: {"image": [png(pixels) for pixels in grey], "label": [0] * 4}
        for split in ("train", "test")
    }
    splits[coloured[0]]["image"][coloured[1]] = png(colour)
    loaded = load_images(write_data_set(tmp_path, splits, {}))
    for split, examples in zip(splits, loaded, strict=True):
        for i in range(4):
            expected = colour if (split, i) == coloured else np.dstack([grey[i]] * 3)
            np.testing.assert_array_equal(examples.inputs[i], expected)


def test_a_black_and_white_picture_becomes_grey(tmp_path: Path) -> None:
    shades = np.where(noise(6, 6, 1) > 127, 255, 0).astype(np.uint8)
    picture = Image.fromarray(shades.squeeze()).convert("1")
    np.testing.assert_array_equal(saved_and_decoded(tmp_path, picture), shades)


@pytest.mark.parametrize(("mode", "channels"), [("LA", 1), ("RGBA", 3)])
def test_transparency_is_dropped(tmp_path: Path, mode: str, channels: int) -> None:
    shades = noise(6, 6, channels)
    picture = Image.fromarray(shades.squeeze()).convert(mode)
    picture.putalpha(Image.fromarray(noise(6, 6, seed=1)))
    np.testing.assert_array_equal(saved_and_decoded(tmp_path, picture), shades)


def test_palette_indices_become_colours(tmp_path: Path) -> None:
    """Also with transparent colours, about which Pillow would warn."""
    picture = Image.fromarray(np.arange(36, dtype=np.uint8).reshape(6, 6), "L").convert("P")
    colours = noise(256, 3)
    picture.putpalette(colours.tobytes())
    image = saved_and_decoded(tmp_path, picture, transparency=bytes(range(256)))
    np.testing.assert_array_equal(image, colours[:36].reshape(6, 6, 3))


def test_a_photo_is_rotated_as_its_exif_tag_says(tmp_path: Path) -> None:
    image, tag = noise(5, 8, 3), Image.Exif()
    tag[0x0112] = 6  # the top is on the right: a quarter turn clockwise
    np.testing.assert_array_equal(
        saved_and_decoded(tmp_path, Image.fromarray(image), exif=tag), np.rot90(image, -1)
    )


@given(
    height=st.integers(1, 8),
    width=st.integers(1, 8),
    margin=st.integers(0, 4),
    upright=st.booleans(),
)
@settings(deadline=None, max_examples=15)
def test_cropping_keeps_the_middle_unchanged(
    height: int, width: int, margin: int, upright: bool, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """One side already has the target length, so nothing is scaled."""
    image = noise(height + 2 * margin * upright, width + 2 * margin * (not upright), 3)
    middle = image[margin : margin + height] if upright else image[:, margin : margin + width]
    inputs = decoded(
        tmp_path_factory.mktemp("set"), [png(image), png(middle)], size=(height, width)
    )
    np.testing.assert_array_equal(inputs, np.stack([middle, middle]))


@pytest.mark.parametrize("shape", [(32, 20), (20, 32), (40, 90), (64, 64), (7, 5)])
def test_a_picture_is_scaled_until_it_covers_the_size(
    tmp_path: Path, shape: tuple[int, int]
) -> None:
    """The left and right halves still reach the edges: no part is left blank."""
    image = np.zeros((*shape, 3), np.uint8)
    image[:, : shape[1] // 2 + shape[1] % 2] = (250, 10, 90)
    image[:, shape[1] // 2 :] = (10, 90, 250)
    inputs = decoded(tmp_path, [png(image)], size=(16, 12))
    assert inputs.shape == (1, 16, 12, 3)
    assert (inputs[0, :, 0] == (250, 10, 90)).all()
    assert (inputs[0, :, -1] == (10, 90, 250)).all()


GOOD = [png(pixels) for pixels in noise(4, 8, 8)]
TRUNCATED = [*GOOD[:2], GOOD[2][: len(GOOD[2]) // 2], GOOD[3]]
MISSING: list[Any] = [GOOD[0], None, *GOOD[2:]]
DEEP = [png(noise(8, 8).astype(np.uint16) * 256) for _ in range(4)]
UNEVEN = [png(noise(8, 8)), png(noise(8, 8)), png(noise(9, 8)), png(noise(7, 8))]


@pytest.mark.parametrize(
    ("pictures", "line"),
    [
        (TRUNCATED, r"^row 2 of train can't be read as an image \(\w+\)$"),
        ([b"GIF"] * 4, r"^row 0 of train can't be read as an image \(UnidentifiedImageError\)$"),
        (MISSING, "^row 1 of train can't be read as an image"),
        (DEEP, "^row 0 of train has the mode I;16; convert it to L or RGB$"),
        (
            UNEVEN,
            (
                r"^row 2 of train has size \(9, 8\) but the first picture has size \(8, 8\); "
                "set `size` to scale all pictures to it$"
            ),
        ),
    ],
    ids=["truncated", "not an image", "missing", "16 bits", "sizes differ"],
)
def test_a_bad_picture_is_refused_by_its_row(
    tmp_path: Path, cache: Path, pictures: list[Any], line: str
) -> None:
    """The cache then keeps nothing."""
    root = small_images(tmp_path / "set", image=pictures)
    with pytest.raises(ValueError, match=line) as caught:
        load_images(root)
    assert "\n" not in str(caught.value)
    assert not cache.exists() or list(cache.iterdir()) == []


@pytest.mark.parametrize("size", [(0, 8), (8,), (8, 8.0)])
def test_a_size_that_is_not_two_positive_integers_is_refused(
    tmp_path: Path, cache: Path, size: Any
) -> None:
    line = re.escape(f"size is {size}; it must be (height, width), each 1 or more")
    with pytest.raises(ValueError, match=f"^{line}$"):
        load_images(small_images(tmp_path / "set"), size=size)
    assert not cache.exists()
