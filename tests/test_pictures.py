"""Published pictures: small enough, and still the same pictures."""

import base64
import io
import json

import numpy as np
import pytest
from PIL import Image

from hamr_lib.report.pictures import SCALES, shrink_notebook, shrink_png


def a_picture(noise, size=(320, 240)):
    """A smooth ramp with noise of a strength, as the bytes of a PNG."""
    x, y = np.meshgrid(np.linspace(0, 200, size[0]), np.linspace(0, 50, size[1]))
    rng = np.random.default_rng(0)
    image = (x + y)[..., None] + rng.normal(0, noise, (*x.shape, 3))
    content = io.BytesIO()
    Image.fromarray(image.clip(0, 255).astype(np.uint8)).save(content, "PNG")
    return content.getvalue()


def test_a_png_is_left_alone_where_it_is_small_and_else_fits(tmp_path):
    path = tmp_path / "figure.png"
    path.write_bytes(a_picture(20))
    before = path.read_bytes()
    shrink_png(path, limit=len(before))
    assert path.read_bytes() == before
    shrink_png(path, limit=60_000)
    assert path.stat().st_size <= 60_000
    with Image.open(path) as small:
        width, height = small.size
        found = np.asarray(small.convert("RGB").resize((8, 6), Image.Resampling.BOX), float)
    assert width / height == pytest.approx(4 / 3, rel=0.02)
    with Image.open(io.BytesIO(before)) as whole:
        expected = np.asarray(whole.resize((8, 6), Image.Resampling.BOX), float)
    assert np.abs(found - expected).max() < 12  # of 255: what 256 colours cost


def test_a_notebook_keeps_all_but_the_encoding_of_its_pictures():
    png = base64.b64encode(a_picture(20)).decode()
    data = {"image/png": [png], "text/plain": ["a figure"]}  # lines, as nbformat writes them
    outputs = [{"output_type": "display_data", "data": data}]
    notebook = {"cells": [{"cell_type": "markdown"}, {"cell_type": "code", "outputs": outputs}]}
    text = json.dumps(notebook)

    whole = json.loads(shrink_notebook(text, limit=10**6))
    changed = whole["cells"][1]["outputs"][0]["data"]
    jpeg = base64.b64decode(changed.pop("image/jpeg"))
    assert changed == {"text/plain": ["a figure"]} and len(jpeg) < len(png) * 3 / 4
    with Image.open(io.BytesIO(jpeg)) as picture:
        assert picture.size == (320, 240)

    tiny = json.loads(shrink_notebook(text, limit=1))
    jpeg = base64.b64decode(tiny["cells"][1]["outputs"][0]["data"]["image/jpeg"])
    with Image.open(io.BytesIO(jpeg)) as picture:
        assert picture.size == (320 * SCALES[-1], 240 * SCALES[-1])
