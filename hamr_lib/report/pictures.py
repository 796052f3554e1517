"""Shrink the pictures that are published, so that a checkout stays small."""

import base64
import io
import json
from pathlib import Path

from PIL import Image

from hamr_lib.files import write_aside

NOTEBOOK, FIGURE = 1_000_000, 300_000  # bytes
SCALES = (1.0, 0.7, 0.5, 0.35, 0.25)


def shrink_notebook(text: str, limit: int = NOTEBOOK) -> str:
    """Encode the pictures of an executed notebook (its JSON) as JPEG, where that is smaller.

    Args:
        limit: bytes; where the notebook is larger, its pictures are scaled down, by four at most.
    """
    for scale in SCALES:
        notebook = json.loads(text)
        for cell in notebook["cells"]:
            for output in cell.get("outputs", ()):
                png = "".join(output.get("data", {}).get("image/png", ""))
                jpeg = png and _jpeg(base64.b64decode(png), scale)
                if jpeg and len(jpeg) < len(png):
                    del output["data"]["image/png"]
                    output["data"]["image/jpeg"] = jpeg
        shrunk = json.dumps(notebook, indent=1, ensure_ascii=False) + "\n"
        if len(shrunk.encode()) <= limit:
            break
    return shrunk


def shrink_png(path: Path, limit: int = FIGURE) -> None:
    """Rewrite a PNG of more than `limit` bytes with 256 colours, scaled down by four at most."""
    if path.stat().st_size <= limit:
        return
    with Image.open(path) as picture:
        whole = picture.convert("RGB")
    for scale in SCALES:
        content = io.BytesIO()
        _scaled(whole, scale).quantize(256).save(content, "PNG", optimize=True)
        if content.tell() <= limit:
            break
    with write_aside(path) as aside:
        aside.write_bytes(content.getvalue())


def _jpeg(png, scale):
    with Image.open(io.BytesIO(png)) as picture:
        colours = picture.convert("RGBA")
    white = Image.new("RGBA", colours.size, "white")
    content = io.BytesIO()
    flat = Image.alpha_composite(white, colours).convert("RGB")
    _scaled(flat, scale).save(content, "JPEG", quality=85, optimize=True)
    return base64.b64encode(content.getvalue()).decode()


def _scaled(picture, scale):
    size = [max(1, round(scale * side)) for side in picture.size]
    return picture if scale == 1 else picture.resize(size, Image.Resampling.LANCZOS)
