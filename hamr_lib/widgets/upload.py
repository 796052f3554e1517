"""The widget of the notebook `recover_photo`: a photo in, the hands in it out."""

import base64
import html
import io
from pathlib import Path

import anywidget
import ipywidgets as widgets
import traitlets

from hamr_lib.errors import HamrError
from hamr_lib.files import ROOT
from hamr_lib.recovery.photo import read_photo
from hamr_lib.recovery.pipeline import recover
from hamr_lib.recovery.result import save_photo
from hamr_lib.render.draw2d import fit
from hamr_lib.widgets.pictures import download_link, encode, plot_recovery, problem

WIDTH = 480  # pixels a side of the pictures


class Webcam(anywidget.AnyWidget):
    """A button that takes a picture with the browser's camera, where the browser allows it.

    Attributes:
        picture: the last picture taken, a PNG as a data URL; empty before the first.
        trouble: what the browser says when it gives no camera.
    """

    _esm = Path(__file__).with_name("webcam.js")
    picture = traitlets.Unicode().tag(sync=True)
    trouble = traitlets.Unicode().tag(sync=True)


class Upload:
    """Upload a photo or take one, see the mesh over it and in space, and take the files along.

    Args:
        checkpoint, evidence: as in `recover`.
        out: folder that the results are saved in; None takes `results/photos`.

    It shows its `widget`.
    """

    def __init__(self, checkpoint=None, out=None, evidence: str = "both"):
        self.checkpoint, self.evidence = checkpoint, evidence
        self.out = out or ROOT / "results" / "photos"
        self.photo = None  # its name and content
        self.file = widgets.FileUpload(accept="image/*", description="photo")
        self.side = widgets.Dropdown(options=("auto", "left", "right"), description="side")
        empty = "x0,y0,x1,y1 in pixels; empty: detected"
        self.box = widgets.Text(placeholder=empty, description="box", continuous_update=False)
        self.webcam = Webcam()
        self.message = widgets.HTML("Choose a photo with a hand, or take one.")
        self.found = widgets.VBox()
        self.file.observe(self._uploaded, "value")
        self.webcam.observe(self._taken, "picture")
        self.webcam.observe(self._refused, "trouble")
        for control in (self.side, self.box):
            control.observe(self._changed, "value")
        controls = widgets.HBox([self.file, self.webcam, self.side, self.box])
        self.widget = widgets.VBox([controls, self.message, self.found])

    def _uploaded(self, _):
        for uploaded in self.file.value:
            self.photo = uploaded["name"], bytes(uploaded["content"])
            self._changed()

    def _taken(self, change):
        self.photo = "webcam.png", base64.b64decode(change["new"].partition(",")[2])
        self._changed()

    def _refused(self, change):
        if change["new"]:
            self.message.value = problem(f"the browser gives no camera: {change['new']}")

    def _changed(self, _=None):
        if self.photo is None:
            return
        self.found.children = ()
        self.message.value = "looking for hands ..."
        try:
            self._recover(*self.photo)
        except HamrError as error:
            self.message.value = problem(error)

    def _recover(self, name, content):
        photo = read_photo(io.BytesIO(content), name)
        box = [part for part in self.box.value.split(",") if part.strip()] or None
        hands = recover(photo, box, self.side.value, self.checkpoint, evidence=self.evidence)
        # The browser says what the file is called: no more than a name is taken from that.
        stem = Path(name.replace("\\", "/")).stem or "photo"
        paths = save_photo(hands, self.out, stem)
        rows = []
        for hand in hands:
            picture = fit(hand.overlay(), WIDTH)
            # Its size is told, as the plot beside it takes what width is left, once.
            height, width = picture.shape[:2]
            overlay = widgets.Image(value=encode(picture), width=width, height=height)
            overlay.layout.align_self = "flex-start"  # else as high as the plot beside it
            box = ",".join(f"{value:.0f}" for value in hand.box)
            text = f"A {hand.side} hand in {box}, confidence {hand.confidence.mean():.2f}"
            rows += [widgets.HTML(text), widgets.HBox([overlay, plot_recovery(hand)])]
        links = " &nbsp; ".join(map(download_link, paths))
        self.found.children = (*rows, widgets.HTML(links))
        count = f"{len(hands)} hand{'s' if len(hands) > 1 else ''}"
        self.message.value = html.escape(f"{name}: {count}, saved in {self.out}")
