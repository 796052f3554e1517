"""Reading photographs: formats, orientation, and whatever is wrong with a file."""

import io
import os
import struct

import cv2
import numpy as np
import pillow_heif
import pytest
from PIL import Image

from hamr_lib.recovery import photo as reading
from hamr_lib.recovery.photo import PhotoError, read_photo


def photo(height=240, width=320, seed=0):
    """Smooth coloured noise, like nothing else when turned, mirrored or shifted."""
    noise = np.random.default_rng(seed).integers(0, 256, (6, 8, 3)).astype(np.uint8)
    return cv2.resize(noise, (width, height), interpolation=cv2.INTER_CUBIC)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_rotation_is_applied(tmp_path, orientation):
    """A camera stores the upright scene turned, and says in EXIF how; see the TIFF standard."""
    upright = photo(30, 40)
    mirrored, turned = upright[:, ::-1], upright[::-1, ::-1]
    stored = [upright, mirrored, turned, upright[::-1], upright.swapaxes(0, 1), np.rot90(upright),
              turned.swapaxes(0, 1), np.rot90(upright, -1)]  # fmt: skip
    image = Image.fromarray(np.ascontiguousarray(stored[orientation - 1]))
    exif = Image.Exif()
    exif[274] = orientation
    image.save(tmp_path / "a.png", exif=exif)
    np.testing.assert_array_equal(read_photo(tmp_path / "a.png"), upright)


def test_transparency_lies_on_white(tmp_path):
    pixels = np.array([[[200, 100, 0, 255]], [[200, 100, 0, 0]]], np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    assert read_photo(tmp_path / "a.png").tolist() == [[[200, 100, 0]], [[255] * 3]]
    image = Image.new("P", (2, 1))
    image.putpalette([10, 20, 30, 40, 50, 60])
    image.putdata([0, 1])
    image.save(tmp_path / "a.png", transparency=1)
    assert read_photo(tmp_path / "a.png").tolist() == [[[10, 20, 30], [255] * 3]]


@pytest.mark.parametrize("name", ["a.png", "a.tif", "a.pgm"])
def test_sixteen_bits_keep_their_upper_half(tmp_path, name):
    grey = np.array([[0, 257 * 100, 257 * 200, 65535]], np.uint16)
    if name.endswith("pgm"):
        (tmp_path / name).write_bytes(b"P5 4 1 65535\n" + grey.astype(">u2").tobytes())
    else:
        cv2.imwrite(str(tmp_path / name), grey)
    assert read_photo(tmp_path / name).tolist() == [[[level] * 3 for level in (0, 100, 200, 255)]]
    cv2.imwrite(str(tmp_path / "b.png"), grey.reshape(1, 1, 4)[..., 2::-1])  # colour
    assert read_photo(tmp_path / "b.png").tolist() == [[[0, 100, 200]]]


def test_pil_images_and_uploaded_files():
    grey = Image.fromarray(np.array([[7, 9]], np.uint8))
    assert read_photo(grey).tolist() == [[[7] * 3, [9] * 3]]
    assert read_photo(Image.new("1", (1, 1), 1)).tolist() == [[[255] * 3]]
    assert read_photo(Image.new("CMYK", (1, 1), (0, 0, 0, 0))).tolist() == [[[255] * 3]]
    content = io.BytesIO()
    Image.fromarray(photo()).save(content, "PNG")
    np.testing.assert_array_equal(read_photo(content, "mine.png"), photo())


def test_a_photo_larger_than_pillow_accepts(tmp_path, monkeypatch):
    """Pillow refuses from 179 million pixels on; phones take 200 million."""
    Image.new("1", (11, 10), 1).save(tmp_path / "huge.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 50)
    with pytest.raises(Image.DecompressionBombError):
        Image.open(tmp_path / "huge.png")
    assert read_photo(tmp_path / "huge.png").shape == (10, 11, 3)
    assert Image.MAX_IMAGE_PIXELS == 50
    for limit in ({"LARGEST": 100}, {"free_memory": lambda: 900}):
        with monkeypatch.context() as patched:
            [(name, value)] = limit.items()
            patched.setattr(reading, name, value)
            with pytest.raises(PhotoError, match="huge.png has 11 x 10 pixels"):
                read_photo(tmp_path / "huge.png")


def test_what_is_no_photo(tmp_path):
    (tmp_path / "text.jpg").write_text("not an image")
    Image.fromarray(photo()).save(tmp_path / "whole.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "whole.png").read_bytes()[:2000])
    Image.new("F", (2, 2)).save(tmp_path / "float.tif")
    # Pillow gives PostScript to Ghostscript, whatever the file is called.
    Image.fromarray(photo()).save(tmp_path / "a.eps")
    (tmp_path / "a.eps").rename(tmp_path / "script.png")
    os.mkfifo(tmp_path / "pipe.png")  # is not waited for
    for name in ("text.jpg", "cut.png", "float.tif", "script.png", "pipe.png", "none.png", ".",
                 "a" * 300 + ".png"):  # fmt: skip
        with pytest.raises(PhotoError) as raised:
            read_photo(tmp_path / name)
        assert str(raised.value).count(str(tmp_path / name)) == 1
    closed = Image.open(tmp_path / "whole.png")
    closed.close()
    values = (photo()[..., 0], photo() / 255, np.zeros((0, 4, 3), np.uint8), 3, closed,
              Image.open(tmp_path / "cut.png"), io.BytesIO(b"%!PS"))  # fmt: skip
    for value in values:
        with pytest.raises(PhotoError, match="^mine"):
            read_photo(value, "mine")
    assert not {"EPS", "DDS", "PSD", "BLP"} & set(reading.FORMATS)


@pytest.mark.parametrize("entry", [
    (271, 5, 1, b"\x08\0\0\0"),  # Make as RATIONAL
    (282, 2, 4, b"72\0\0"),  # XResolution as ASCII
    (700, 2, 4, b"<x>\0"),  # XMP as ASCII
])  # fmt: skip
def test_a_sloppy_tag_beside_the_orientation_does_not_matter(tmp_path, entry):
    """A JPEG of orientation 6 with one more EXIF entry: (tag, type, count, 4 value bytes)."""
    entries = sorted([(274, 3, 1, b"\x06\0\0\0"), entry])
    tags = b"".join(struct.pack("<HHI", *e[:3]) + e[3] for e in entries)
    body = b"Exif\0\0II*\0\x08\0\0\0" + struct.pack("<H", 2) + tags + b"\0\0\0\0"
    plain = io.BytesIO()
    Image.fromarray(photo(30, 40)).save(plain, "JPEG")
    data = plain.getvalue()
    marker = b"\xff\xe1" + struct.pack(">H", len(body) + 2)
    (tmp_path / "a.jpg").write_bytes(data[:2] + marker + body + data[2:])
    assert read_photo(tmp_path / "a.jpg").shape == (40, 30, 3)


@pytest.mark.parametrize("suffix", "jpg png webp heic avif tif bmp gif jp2".split())
def test_formats(tmp_path, suffix):
    """What is damaged is read or refused: see test_fuzz.py."""
    pillow_heif.register_heif_opener()
    path = tmp_path / f"a.{suffix}"
    Image.fromarray(photo(60, 80)).save(path, quality=95)
    assert np.abs(read_photo(path).astype(int) - photo(60, 80)).mean() < 12  # GIF has 256 colours


def test_names_that_are_not_utf_8(tmp_path):
    odd = os.path.join(os.fsencode(tmp_path), b"caf\xe9.png")
    Image.fromarray(photo()).save(tmp_path / "a.png")
    os.rename(tmp_path / "a.png", odd)
    assert read_photo(os.fsdecode(odd)).shape == (240, 320, 3)
    with open(odd, "wb") as file:
        file.write(b"no image")
    with pytest.raises(PhotoError, match="caf") as raised:
        read_photo(os.fsdecode(odd))
    str(raised.value).encode()  # can be printed
