"""Read photographs: any common format, upright, as (H, W, 3) uint8 RGB."""

import os
import stat
from contextlib import suppress

import numpy as np
from PIL import Image

from hamr_lib.errors import HamrError
from hamr_lib.recovery.output import reason, shown

# The only formats that are tried, whatever a file is called. Pillow gives some others to programs
# (EPS) or to decoders that few people use.
FORMATS = ("JPEG", "PNG", "WEBP", "HEIF", "AVIF", "TIFF", "BMP", "GIF", "PPM", "JPEG2000")
SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".heic", ".heif", ".avif", ".tif", ".tiff", ".bmp",
            ".gif", ".ppm", ".pgm", ".jp2")  # fmt: skip
LARGEST = 2**28  # pixels; phones take up to 200 million
BYTES = 9  # a pixel of a photo at most, while it is read
ORIENTATION = 274  # the EXIF tag
_TURN = Image.Transpose
TURNS = {2: _TURN.FLIP_LEFT_RIGHT, 3: _TURN.ROTATE_180, 4: _TURN.FLIP_TOP_BOTTOM,
         5: _TURN.TRANSPOSE, 6: _TURN.ROTATE_270, 7: _TURN.TRANSVERSE,
         8: _TURN.ROTATE_90}  # fmt: skip


class PhotoError(HamrError):
    """One photo is at fault; others may be fine."""


def read_photo(image, name: str = "image") -> np.ndarray:
    """Read an image from anywhere as (H, W, 3) uint8 RGB, upright.

    Args:
        image: a path, a binary file, a PIL image, or (H, W, 3) uint8 RGB, which is given back as
            it is. Of a file, the first frame is read and turned as its EXIF says; what is
            transparent is laid on white, 16 bits become 8, grey and palettes become colours.
        name: what errors call an image that is no path.

    Raises:
        PhotoError: naming the file or argument and what is wrong with it.
    """
    if isinstance(image, np.ndarray):
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or image.size == 0:
            found = f"{image.shape} {image.dtype}"
            raise PhotoError(f"{name}: expected an (H, W, 3) uint8 array, got {found}")
        return np.ascontiguousarray(image)
    try:
        if isinstance(image, Image.Image):
            return _to_rgb(image, name)
        if isinstance(image, (str, os.PathLike)):
            name = shown(image)
            if not stat.S_ISREG(os.stat(image).st_mode):  # a pipe would be waited for
                raise PhotoError(f"{name} is not a file: expected an image")
        elif not hasattr(image, "read"):
            raise PhotoError(f"{name}: expected a path, a PIL image or an array, got {type(image)}")
        with _open(image) as opened:
            return _to_rgb(opened, name)
    except PhotoError:
        raise
    except Image.UnidentifiedImageError as error:
        formats = ", ".join(FORMATS)
        raise PhotoError(f"{name} is not an image of a format that is read ({formats})") from error
    except Exception as error:  # Pillow and its decoders raise some twenty kinds
        raise PhotoError(f"{name} cannot be read as an image: {reason(error)}") from error


def _open(file):
    """Open an image without Pillow's own limit, which takes photos of phones for attacks."""
    if "HEIF" not in Image.OPEN:
        import pillow_heif  # here, since few photos need it

        pillow_heif.register_heif_opener()
    limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
    try:
        return Image.open(file, formats=FORMATS)
    finally:
        Image.MAX_IMAGE_PIXELS = limit


def _to_rgb(image, name):
    """A PIL image -> (H, W, 3) uint8."""
    width, height = image.size
    most = min(LARGEST, free_memory() // BYTES)
    if width * height > most:
        found = f"{width} x {height} pixels"
        raise PhotoError(f"{name} has {found}: expected at most {most}, as memory is free")
    image.load()
    turn = None
    with suppress(Exception):  # metadata that cannot be read say nothing, and the pixels are fine
        turn = TURNS.get(image.getexif().get(ORIENTATION))
    if image.mode[0] in "FI":  # 16 bits are read as 32
        grey = np.asarray(image)
        if image.mode == "F" or grey.min() < 0 or grey.max() > 65535:
            raise PhotoError(f"{name}: expected 8 or 16 bits a channel, got 32")
        image = Image.fromarray((grey / np.float32(257)).round().astype(np.uint8))
    if turn is not None:
        image = image.transpose(turn)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGB", image.size, "white")
        white.paste(image, mask=image)
        image = white
    return np.array(image if image.mode == "RGB" else image.convert("RGB"))


def free_memory() -> int:
    """Count the bytes that a photo may take: what Linux says is available, else 8 GB."""
    try:
        with open("/proc/meminfo") as file:
            values = dict(line.split(":") for line in file)
        return 1024 * int(values["MemAvailable"].split()[0])
    except (OSError, KeyError, ValueError):
        return 8 << 30
