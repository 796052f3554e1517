"""The widget of the notebook `recover_photo`: a photo in, the hands in it out."""

import io

import ipywidgets as widgets
from PIL import Image

from .draw import fit
from .errors import HamrError
from .explore import download_link, encode, plot_recovery
from .files import ROOT
from .recovery import read_photo, recover

WIDTH = 480  # pixels a side of the pictures


class Upload:
    """Upload a photo, see the mesh over it and in space, and take the files along.

    Args:
        checkpoint, localiser: as in `recover`.
        out: folder that the results are saved in; None takes `results/photos`.

    It shows its `widget`. On a phone the browser offers the camera in place of a file.
    """

    def __init__(self, checkpoint=None, localiser=None, out=None):
        self.checkpoint, self.localiser = checkpoint, localiser
        self.out = out or ROOT / "results" / "photos"
        self.recoveries = []
        self.file = widgets.FileUpload(accept="image/*", description="photo")
        self.side = widgets.Dropdown(options=("auto", "left", "right"), description="side")
        self.box = widgets.Text(
            placeholder="x0,y0,x1,y1 in pixels; empty: found", description="box",
            continuous_update=False,
        )  # fmt: skip
        self.message = widgets.HTML("Choose a photo with a hand.")
        self.found = widgets.VBox()
        for control in (self.file, self.side, self.box):
            control.observe(self._changed, "value")
        self.widget = widgets.VBox(
            [widgets.HBox([self.file, self.side, self.box]), self.message, self.found]
        )

    def _changed(self, _):
        if not self.file.value:
            return
        uploaded = self.file.value[0]
        self.recoveries, self.found.children = [], ()
        self.message.value = "looking for hands ..."
        try:
            self._recover(uploaded["name"], bytes(uploaded["content"]))
        except HamrError as error:
            self.message.value = f"<b>{error}</b>"

    def _recover(self, name, content):
        try:
            image = Image.open(io.BytesIO(content))
            image.load()
        except (OSError, SyntaxError, ValueError) as error:
            raise HamrError(f"{name} cannot be read as an image: {error}") from error
        photo = read_photo(image)
        box = [part for part in self.box.value.split(",") if part.strip()] or None
        self.recoveries = recover(
            photo, box, self.side.value, self.checkpoint, localiser=self.localiser
        )
        stem = name.rpartition(".")[0] or name
        rows = []
        for i, recovery in enumerate(self.recoveries, start=1):
            paths = recovery.save(self.out, stem if i == 1 else f"{stem}_hand{i}")
            links = " &nbsp; ".join(map(download_link, paths))
            overlay = widgets.Image(value=encode(fit(recovery.overlay(), WIDTH)))
            x0, y0, x1, y1 = (round(v) for v in recovery.box)
            text = f"A {recovery.side} hand in {x0},{y0},{x1},{y1}: {links}"
            rows += [widgets.HTML(text), widgets.HBox([overlay, plot_recovery(recovery)])]
        self.found.children = rows
        count = len(self.recoveries)
        self.message.value = f"{name}: {count} hand{'s' if count > 1 else ''}, saved in {self.out}"
