"""The second widget of `explore_mesh`: the predictions of a run, sample by sample."""

import html
import io

import cv2
import ipywidgets as widgets
import numpy as np
from matplotlib import colormaps
from matplotlib.figure import Figure

from hamr_lib.config import load_run
from hamr_lib.data import registry
from hamr_lib.data.crops import cut
from hamr_lib.data.frame import Frame
from hamr_lib.evaluation.predict import load_predictions, predictions_path
from hamr_lib.evaluation.protocols import PIXELS
from hamr_lib.evaluation.scores import errors, main_protocol, row_means
from hamr_lib.files import ROOT
from hamr_lib.joints import FINGERS, NAMES
from hamr_lib.recovery.result import SKIN, Recovery
from hamr_lib.render import render
from hamr_lib.render.draw2d import FINGER_COLOURS, draw_skeleton
from hamr_lib.render.viewer3d import Scene
from hamr_lib.report.results import recover_sample
from hamr_lib.study import results_dir
from hamr_lib.widgets.pictures import encode

IMAGE = 320  # pixels a side of each picture
BARS = 368  # pixels a side of the errors by joint; the plot beside it needs to know

# What samples can be ordered by: a predictions dict -> (N,).
MEASURES = {
    "3-D error (mm)": lambda found: row_means(errors(found, main_protocol(found))),
    "2-D error (px)": lambda found: row_means(errors(found, PIXELS)),
    "IoU": lambda found: found["iou"],
}
ORDERS = ("worst first", "best first", "file order")


class Browser:
    """Goes through a run's predictions for its test sets, the worst or the best ones first.

    For the sample that is shown the network runs anew, for its heat maps and for what it said
    after each iteration; the numbers by which samples are ordered are those of the evaluation.
    """

    def __init__(self, profile="cpu", run="main"):
        settings, self.folder = load_run(profile, run), results_dir(profile, run)
        self.sets = {
            found.title: found.load("evaluation", settings.data)
            for found in registry.find_sets(settings).values()
        }
        choices = {"set": list(self.sets), "measure": list(MEASURES), "order": ORDERS}
        self.controls = {
            name: widgets.Dropdown(options=options, description=name)
            for name, options in choices.items()
        } | {
            "place": widgets.IntSlider(0, 0, 0, description="sample", continuous_update=False),
            "iteration": widgets.IntSlider(1, 1, 1, description="iteration"),
        }  # fmt: skip
        self._text, self._image = widgets.HTML(), widgets.Image()
        self._bars = widgets.Image(width=BARS, height=BARS)
        self._scene, self._recovered, self._quiet = None, (None, None), False
        self._plot = widgets.VBox(layout={"flex": "1 1 auto", "overflow": "hidden"})
        for name, control in self.controls.items():
            control.observe(self._reorder if name in choices else self.redraw, "value")
        self._reorder()
        self.widget = widgets.VBox([
            widgets.HBox(list(self.controls.values()), layout={"flex_flow": "row wrap"}),
            self._text, self._image, widgets.HBox([self._bars, self._plot]),
        ])  # fmt: skip

    def _reorder(self, _=None):
        title, measure, order = (self.controls[n].value for n in ("set", "measure", "order"))
        self.predictions = load_predictions(predictions_path(self.folder, title))
        self.values = MEASURES[measure](self.predictions)
        worst_first = self.values if measure == "IoU" else -self.values
        keys = worst_first, -worst_first, np.arange(len(self.values))
        # Samples without that label come last.
        self.order = np.argsort(keys[ORDERS.index(order)], kind="stable")
        self._quiet = True
        self.controls["place"].max = len(self.order) - 1
        self.controls["place"].value = 0
        self._quiet = False
        self.redraw()

    def redraw(self, _=None):
        """Draw the chosen sample after the chosen iteration."""
        if self._quiet:
            return
        title, measure = self.controls["set"].value, self.controls["measure"].value
        index = int(self.order[self.controls["place"].value])
        if self._recovered[0] != (title, index):
            sample = recover_sample(self.folder, self.sets[title], self.predictions, index)
            self._recovered = (title, index), sample
        slider, (frame, steps) = self.controls["iteration"], self._recovered[1]
        if slider.max != len(steps):
            self._quiet = True
            slider.max = slider.value = len(steps)
            self._quiet = False
        recovery = steps[slider.value - 1]
        found = {name: self.predictions[name][[index]] for name in ("true_joints_3d", "valid_3d")}
        flip = np.array([-1.0 if recovery.side == "left" else 1.0, 1, 1])
        found["joints_3d"] = (recovery.joints_3d * flip)[None]
        [joint_errors] = errors(found, main_protocol(self.predictions))
        value = f"{self.values[index]:.3g}" if np.isfinite(self.values[index]) else "no label"
        self._text.value = (
            f"<b>{html.escape(frame.key)}</b>, {frame.side} hand; {measure}: {value}. From left to "
            "right: the labels; the heat maps; the recovered joints and mesh after iteration "
            f"{slider.value}."
        )
        self._image.value, self._bars.value = encode(panels(frame, recovery)), _bars(joint_errors)
        if self._scene is None:
            self._scene = Scene(recovery.faces)
            self._plot.children = [self._scene.plot]
        self._scene.mesh.indices = recovery.faces.astype(np.uint32)
        self._scene.show(recovery.vertices, recovery.joints_3d, SKIN)


def evaluated_profile(run: str = "main") -> str | None:
    """Find the profile whose run of this name was evaluated last."""
    found = (ROOT / "results").glob(f"*/runs/{run}/predictions-*.npz")
    latest = max(found, key=lambda path: path.stat().st_mtime, default=None)
    return latest and latest.parents[2].name


def panels(frame: Frame, recovery: Recovery) -> np.ndarray:
    """Draw a crop with its labels, heat maps, joints, and mesh: (IMAGE, 4 IMAGE, 3) uint8."""
    *center, side = recovery.square
    crop = cut(frame.image, center, side, IMAGE)

    def drawn(points):
        scale = IMAGE / side
        return (points - center) * scale + (IMAGE - 1) / 2

    maps = recovery.heatmaps - recovery.heatmaps.min(axis=(1, 2), keepdims=True)
    maps = (maps / maps.max(axis=(1, 2), keepdims=True).clip(1e-12)).max(axis=0)
    warm = colormaps["magma"](cv2.resize(maps, (IMAGE, IMAGE)))[..., :3]
    heat = np.rint(0.4 * crop + 0.6 * 255 * warm).astype(np.uint8)
    # The camera of the photo's pixels in the crop units of this square.
    camera = np.array([recovery.camera[0], *(recovery.camera[1:] - center)]) * 2 / side
    mesh = render(recovery.vertices, recovery.faces, camera, IMAGE, SKIN, background=crop / 255)
    return np.hstack([
        draw_skeleton(crop, drawn(frame.joints_2d)),
        heat,
        draw_skeleton(crop, drawn(recovery.joints_2d)),
        np.rint(255 * mesh.colour.clip(0, 1)).astype(np.uint8),
    ])  # fmt: skip


def _bars(errors):
    """Error per joint (21,) millimetres as the bytes of a PNG."""
    figure = Figure(figsize=(BARS / 80, BARS / 80), layout="constrained")
    axes = figure.add_subplot()
    colours = ["#808080"] + [np.divide(FINGER_COLOURS[f], 255) for f in FINGERS for _ in range(4)]
    axes.barh(NAMES, np.nan_to_num(errors), color=colours)
    axes.invert_yaxis()
    axes.set(xlabel="error (mm)", title=f"mean {np.nanmean(errors):.1f} mm")
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=80)
    return content.getvalue()
