"""Pictures of every kind that people have: what becomes of their pixels, and which are refused."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageOps
from PIL.TiffImagePlugin import ImageFileDirectory_v2

from fedmpi.data import ImageFolder, prepared
from fedmpi.data.pictures import as_rgb, is_picture
from fedmpi.errors import BadInput

RAMP = np.linspace(0, 65535, 12 * 10).astype(np.uint16).reshape(10, 12)
RED = (200, 30, 30)


def pixels(image: Any, form: str, **options: Any) -> NDArray[np.uint8]:
    """[H, W, 3], after a file of this format has been written and read."""
    file = io.BytesIO()
    image.save(file, form, **options)
    with Image.open(file) as opened:
        return np.asarray(as_rgb(opened))


def grey(values: NDArray) -> NDArray[np.uint8]:
    """The same in each channel."""
    return np.repeat(values[..., None], 3, axis=2).astype(np.uint8)


@pytest.mark.parametrize(
    ("form", "options"),
    [("PNG", {}), ("TIFF", {}), ("TIFF", {"compression": "tiff_lzw"}), ("PPM", {}), ("JPEG2000", {})],
)
def test_sixteen_bits_are_scaled(form: str, options: dict[str, Any]) -> None:
    """Oracle: value / 65535 * 255, rounded."""
    expected = grey(np.rint(RAMP / 65535 * 255))
    assert np.array_equal(pixels(Image.fromarray(RAMP), form, **options), expected)
    assert expected[0, 0, 0] == 0
    assert expected[-1, -1, 0] == 255


def test_a_plain_text_picture_of_sixteen_bits() -> None:
    """Oracle: computed by hand."""
    with Image.open(io.BytesIO(b"P2 3 1 65535 0 32768 65535")) as opened:
        assert np.asarray(as_rgb(opened))[0, :, 0].tolist() == [0, 128, 255]


def test_white_that_is_zero_or_that_is_4095() -> None:
    """Oracle: the ramp turned round; and the values that stand for black and white in 12 bits."""
    tags = ImageFileDirectory_v2()
    tags[262] = 0
    found = pixels(Image.fromarray(RAMP), "TIFF", tiffinfo=tags)
    assert np.array_equal(found, grey(np.rint((65535 - RAMP.astype(int)) / 65535 * 255)))
    rows = bytes([0x00, 0x0F, 0xFF])  # two pixels of 12 bits: 0 and 4095
    entries = [(256, 2), (257, 1), (258, 12), (259, 1), (262, 1), (273, 8), (277, 1), (278, 1), (279, 3)]
    packed = b"".join(
        tag.to_bytes(2, "little") + b"\x04\x00\x01\x00\x00\x00" + value.to_bytes(4, "little")
        for tag, value in entries
    )
    head = b"II*\x00\x0c\x00\x00\x00" + rows + b"\x00"
    with Image.open(io.BytesIO(head + len(entries).to_bytes(2, "little") + packed + bytes(4))) as opened:
        assert opened.mode == "I;16"
        assert np.asarray(as_rgb(opened))[0, :, 0].tolist() == [0, 255]


def test_numbers_whose_range_is_not_known() -> None:
    """Oracle: the messages; what fits into 8 bits is taken as it is."""
    assert (pixels(Image.new("I", (4, 3), 128), "TIFF") == 128).all()
    for image, message in (
        (Image.new("I", (4, 3), 300), "whole numbers from 300 to 300 of unknown range"),
        (Image.new("I", (4, 3), -1), "whole numbers from -1 to -1"),
        (Image.new("F", (4, 3), 0.5), "floating-point numbers of unknown range"),
    ):
        with pytest.raises(ValueError, match=message):
            pixels(image, "TIFF")


@pytest.mark.parametrize("form", ["JPEG", "PNG", "TIFF", "WEBP"])
def test_the_way_up(form: str) -> None:
    """Oracle: the picture that was turned before it was written with the orientation that turns it back."""
    upright = Image.new("RGB", (24, 16), "black")
    upright.paste("white", (0, 0, 12, 8))  # the upper left quarter
    turns: dict[int, Callable[[Any], Any]] = {
        2: ImageOps.mirror,
        3: lambda image: image.rotate(180),
        4: ImageOps.flip,
        5: lambda image: image.transpose(Image.Transpose.TRANSPOSE),
        6: lambda image: image.transpose(Image.Transpose.ROTATE_90),
        7: lambda image: image.transpose(Image.Transpose.TRANSVERSE),
        8: lambda image: image.transpose(Image.Transpose.ROTATE_270),
    }
    for orientation, turn in turns.items():
        exif = Image.Exif()
        exif[0x0112] = orientation
        found = pixels(turn(upright), form, exif=exif)
        assert found.shape == (16, 24, 3)
        assert np.abs(found.astype(int) - np.asarray(upright)).mean() < 4, orientation


def half_hidden(mode: str) -> Any:
    """Red above, and below a red that cannot be seen."""
    image = Image.new("RGBA", (8, 8), (*RED, 255))
    image.paste((*RED, 0), (0, 4, 8, 8))
    return image.convert(mode)


@pytest.mark.parametrize(("mode", "form"), [("RGBA", "PNG"), ("LA", "PNG"), ("RGBA", "WEBP"), ("RGBA", "TIFF")])
def test_what_is_transparent_is_white(mode: str, form: str) -> None:
    """Oracle: the colours of either half."""
    found = pixels(half_hidden(mode), form, **({"lossless": True} if form == "WEBP" else {}))
    assert (found[4:] == 255).all()
    assert (found[:4] == np.asarray(half_hidden(mode).convert("RGB"))[:4]).all()


def test_a_colour_that_stands_for_transparency() -> None:
    """Oracle: white where the picture has it: in palettes, in grey values and in colours."""
    striped = np.zeros((4, 4), np.uint8)
    striped[2:] = 1
    palette = Image.fromarray(striped, "P")
    palette.putpalette([*RED, 0, 0, 255])
    for form, hidden in (("PNG", 0), ("GIF", 0), ("PNG", b"\x00\xff")):
        found = pixels(palette, form, transparency=hidden)
        assert (found[:2] == 255).all()
        assert (found[2:] == (0, 0, 255)).all()
    found = pixels(Image.new("RGB", (4, 4), RED), "PNG", transparency=RED)
    assert (found == 255).all()
    found = pixels(Image.fromarray(RAMP), "PNG", transparency=int(RAMP[3, 3]))
    assert found[3, 3].tolist() == [255] * 3
    assert found[3, 2, 0] == round(RAMP[3, 2] / 257)


def test_other_kinds() -> None:
    """Oracle: the colour, as near as the kind can show it; of animations the first frame's."""
    red = Image.new("RGB", (8, 8), RED)
    cyan_free = Image.new("CMYK", (8, 8), (0, 217, 217, 55))  # (255 - 217) * (255 - 55) / 255 = 30
    for image, form, options, expected in (
        (red.convert("L"), "PNG", {}, (81, 81, 81)),
        (red.convert("P", palette=Image.Palette.ADAPTIVE), "GIF", {}, RED),
        (Image.new("1", (8, 8), 1), "PNG", {}, (255, 255, 255)),
        (cyan_free, "JPEG", {"quality": 100, "subsampling": 0}, RED),
        (cyan_free, "TIFF", {}, RED),
        (red.convert("YCbCr"), "TIFF", {}, RED),
        (Image.new("LAB", (8, 8), (255, 128, 128)), "TIFF", {}, (255, 255, 255)),
        (red, "GIF", {"save_all": True, "append_images": [Image.new("RGB", (8, 8), "blue")]}, RED),
        (red, "TIFF", {"save_all": True, "append_images": [Image.new("RGB", (8, 8), "blue")]}, RED),
        (red, "PNG", {"save_all": True, "append_images": [Image.new("RGB", (8, 8), "blue")]}, RED),
    ):
        found = pixels(image, form, **options).astype(int)
        assert np.abs(found - expected).max() <= 2, (form, image.mode)


def test_colour_profiles_are_not_applied() -> None:
    """Oracle: the numbers in the file."""
    from PIL import ImageCms

    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()
    assert (pixels(Image.new("RGB", (8, 8), RED), "PNG", icc_profile=profile) == RED).all()


def test_what_is_taken_for_a_picture(tmp_path: Path) -> None:
    """Oracle: what was written."""
    picture = io.BytesIO()
    Image.new("L", (4, 4)).save(picture, "PNG")
    for name, content, expected in (
        ("a.png", picture.getvalue(), True),
        ("a.JPG", b"damaged", True),
        ("no ending", picture.getvalue(), True),
        ("a.dat", picture.getvalue(), True),
        ("labels.csv", b"file,label\n", False),
        ("empty", b"", False),
        ("array.npy", b"\x93NUMPY", False),
    ):
        path = tmp_path / name
        path.write_bytes(content)
        assert is_picture(path) is expected, name


def test_the_arrays_of_a_folder(tmp_path: Path) -> None:
    """Oracle: a ramp of 16 bits, and the bright end of a photograph that lies on its side; a refusal has the name."""
    ramp = np.tile(np.linspace(0, 65535, 32).astype(np.uint16), (32, 1))
    exif = Image.Exif()
    exif[0x0112] = 6
    lying = Image.new("L", (32, 32))
    lying.paste(255, (0, 0, 16, 32))
    for number in range(5):
        for name in ("ramp", "photo"):
            (tmp_path / name).mkdir(exist_ok=True)
        Image.fromarray(ramp).save(tmp_path / "ramp" / f"{number}.png")
        lying.save(tmp_path / "photo" / f"{number}.jpg", exif=exif)
    arrays = prepared.load(ImageFolder(tmp_path, 32), lambda line: None)
    photo, shown = arrays.train_x[arrays.train_y == 0][0], arrays.train_x[arrays.train_y == 1][0]
    assert np.array_equal(shown[0], np.rint(ramp / 65535 * 255))
    assert photo[0, 4].min() > 250
    assert photo[0, 28].max() < 5
    Image.new("F", (32, 32), 0.5).save(tmp_path / "ramp" / "float.tif")
    with pytest.raises(BadInput, match=r"ramp/float.tif cannot be decoded: its pixels are floating-point") as error:
        prepared.load(ImageFolder(tmp_path, 32), lambda line: None)
    assert "\n" not in str(error.value)
