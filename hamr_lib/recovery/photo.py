"""Reading photographs: any common format, upright, as (H, W, 3) uint8 RGB.

Whatever is wrong with a file or an image is one `PhotoError`: Pillow and its decoders raise some
twenty kinds of exceptions for damaged files.
"""

import contextlib
import os
import stat
from pathlib import Path

import numpy as np
from PIL import Image

from hamr_lib.errors import HamrError

# The only formats that are tried, whatever a file is called: some others of Pillow's start
# programs (EPS) or are read by decoders that few people use.
FORMATS = ("JPEG", "PNG", "WEBP", "HEIF", "AVIF", "TIFF", "BMP", "GIF", "PPM", "JPEG2000")
SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".heic", ".heif", ".avif", ".tif", ".tiff", ".bmp",
            ".gif", ".ppm", ".pgm", ".jp2")  # fmt: skip
# Phones take up to 200 million pixels; a file that claims more is a mistake or a trap.
LARGEST = 2**28
BYTES = 9  # a pixel of a photo at most, while it is read
ORIENTATION = 274  # the EXIF tag
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class PhotoError(HamrError):
    """One photo is at fault; others may be fine."""


def read_photo(image, name="image"):
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
            raise PhotoError(
                f"{name}: expected an (H, W, 3) uint8 array, got {image.shape} {image.dtype}"
            )
        return np.ascontiguousarray(image)
    if isinstance(image, Image.Image):
        with _readable(name):
            return _to_rgb(image, name)
    if isinstance(image, (str, os.PathLike)):
        name = regular_file(image)
    elif not hasattr(image, "read"):
        raise PhotoError(
            f"{name}: expected a path, a PIL image or an (H, W, 3) uint8 array, got {type(image)}"
        )
    with _readable(name), open_image(image) as opened:
        return _to_rgb(opened, name)


def regular_file(path):
    """Check that a path is a file that can be read to its end; returns its name to be shown.

    Raises:
        PhotoError: for a path that is missing, a folder, a pipe or a device.
    """
    name = os.fsencode(path).decode(errors="backslashreplace")
    try:
        mode = Path(path).stat().st_mode
    except FileNotFoundError as error:
        raise PhotoError(f"{name} does not exist") from error
    except (OSError, ValueError) as error:
        raise PhotoError(f"{name} cannot be read: {_reason(error)}") from error
    if not stat.S_ISREG(mode):
        raise PhotoError(f"{name} is not a file: expected an image")
    return name


def open_image(file):
    """Open an image of one of `FORMATS` from a path or a binary file, without Pillow's own limit,
    which takes photos of phones for attacks."""
    if "HEIF" not in Image.OPEN:
        import pillow_heif  # here, since few photos need it

        pillow_heif.register_heif_opener()
    limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
    try:
        return Image.open(file, formats=FORMATS)
    finally:
        Image.MAX_IMAGE_PIXELS = limit


@contextlib.contextmanager
def _readable(name):
    """Turn whatever a damaged image raises into a `PhotoError` that names it."""
    try:
        yield
    except HamrError:
        raise
    except Image.UnidentifiedImageError as error:
        raise PhotoError(
            f"{name} is not an image of a format that is read ({', '.join(FORMATS)})"
        ) from error
    except MemoryError as error:
        raise PhotoError(f"{name} needs more memory than there is") from error
    except Exception as error:  # a damaged file can fail in any of a dozen ways
        raise PhotoError(f"{name} cannot be read as an image: {_reason(error)}") from error


def _reason(error):
    return getattr(error, "strerror", None) or str(error)[:200] or type(error).__name__


def _to_rgb(image, name):
    """A PIL image -> (H, W, 3) uint8."""
    width, height = image.size
    if width * height > LARGEST:
        raise PhotoError(f"{name} has {width} x {height} pixels: at most {LARGEST} pixels are read")
    needed, free = BYTES * width * height, free_memory()
    if needed > free:
        raise PhotoError(
            f"{name} has {width} x {height} pixels: reading them takes {needed / 1e9:.1f} GB of "
            f"memory, {free / 1e9:.1f} GB are free"
        )
    image.load()
    if image.mode == "F":
        raise PhotoError(f"{name}: expected 8 or 16 bits a channel, got floating-point numbers")
    if image.mode.startswith("I"):  # 16 bits, for which Pillow also uses its 32-bit mode
        grey = np.asarray(image)
        if grey.min() < 0 or grey.max() > 65535:
            raise PhotoError(
                f"{name}: expected 8 or 16 bits a channel, got values from {grey.min()} to "
                f"{grey.max()}"
            )
        image = Image.fromarray((grey / np.float32(257)).round().astype(np.uint8))
    turn = TURNS.get(_orientation(image))
    if turn is not None:
        image = image.transpose(turn)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGB", image.size, "white")
        white.paste(image, mask=image.getchannel("A"))
        image = white
    return np.array(image.convert("RGB"))


def _orientation(image):
    """The EXIF orientation, 1 to 8. Other tags, which may be of a wrong type, are not looked at."""
    try:
        return image.getexif().get(ORIENTATION, 1)
    except Exception:  # metadata that cannot be read say nothing, and the pixels are fine
        return 1


def free_memory():
    """Bytes of memory that a photo may take: what Linux says is available, else 8 GB."""
    try:
        with open("/proc/meminfo") as file:
            values = dict(line.split(":") for line in file)
        return 1024 * int(values["MemAvailable"].split()[0])
    except (OSError, KeyError, ValueError):
        return 8e9
