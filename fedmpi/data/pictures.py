"""Images of any kind, converted to RGB with 8 bits per channel."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray


def as_rgb(picture: Any) -> Any:
    """An opened image as RGB, rotated as its EXIF orientation says.

    Of an animation the first frame is used. Transparent pixels become white. Grey values of 16 bits are scaled: 0
    stays 0, and 65535 (or 4095, for a TIFF of 12 bits) becomes 255. Colour profiles are not applied.

    Raises:
        ValueError: the range of the pixels is unknown, as with floating-point numbers.
    """
    from PIL import Image, ImageOps

    picture.load()
    image = ImageOps.exif_transpose(picture)
    if image.mode == "F":
        raise ValueError("its pixels are floating-point numbers of unknown range: save it with 8 or 16 bits")
    if image.mode.startswith("I"):
        return Image.fromarray(_scaled(image, picture)).convert("RGB")
    if image.has_transparency_data:
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image.convert("RGBA"))
    return image.convert("RGB")


def is_picture(path: Path) -> bool:
    """Whether a file is an image, by the end of its name, or else by what Pillow finds in it."""
    from PIL import Image, UnidentifiedImageError

    if path.suffix.lower() in _endings():
        return True
    try:
        with Image.open(path):
            return True
    except UnidentifiedImageError:
        return False


@cache
def _endings() -> set[str]:
    from PIL import Image

    return {ending for ending, kind in Image.registered_extensions().items() if kind in Image.OPEN}


def _scaled(image: Any, picture: Any) -> NDArray[np.uint8]:
    """[H, W] grey values 0..255, of an image of more than 8 bits."""
    values = np.asarray(image).astype(np.int64)
    white = _white(picture)
    if values.min() < 0 or values.max() > white:
        raise ValueError(
            f"its pixels are whole numbers from {values.min()} to {values.max()} of unknown range:"
            " save it with 8 or 16 bits"
        )
    hidden = values == image.info.get("transparency")
    if picture.format == "TIFF" and picture.tag_v2.get(_PHOTOMETRIC) == _WHITE_IS_ZERO:
        values = white - values
    values = (255 * values + white // 2) // white
    values[hidden] = 255
    return values.astype(np.uint8)


# Tags of TIFF.
_BITS, _PHOTOMETRIC = 258, 262
_WHITE_IS_ZERO = 0


def _white(picture: Any) -> int:
    """The value that stands for white."""
    if picture.format in ("PNG", "PPM", "JPEG2000"):
        return 65535
    if picture.format == "TIFF" and picture.mode.startswith("I;16"):
        return int(2 ** picture.tag_v2.get(_BITS, (16,))[0]) - 1
    return 255  # numbers of 32 bits say nothing of their range: only what fits into 8 bits is taken as it is
