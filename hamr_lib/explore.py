"""The widgets of the notebook `explore_mesh`.

`Explorer` is a hand with a slider for everything that moves it; `Browser` goes through what a
network predicted for a test set. Each shows its `widget`. All that a mouse can do, code can do as
well: set the `value` of one of the `controls`.
"""

import io

import cv2
import ipywidgets as widgets
import numpy as np
import torch
import trimesh
from matplotlib import colormaps
from matplotlib.figure import Figure
from scipy.spatial.transform import Rotation

from . import poses
from .camera import crop_units_to_grid
from .data import check
from .data.crops import cut
from .draw import FINGER_COLOURS, draw_skeleton
from .errors import HamrError
from .evaluate import (
    errors_2d,
    errors_3d,
    load_predictions,
    main_protocol,
    predictions_path,
    row_means,
)
from .files import ROOT
from .hand import load_hand
from .joints import FINGERS, MANO_NAMES, MIDDLE_MCP, NAMES, WRIST
from .recovery import SKIN, recover_frame, write_mesh
from .render import rasterize, render
from .scene import Scene
from .settings import load_run, load_settings
from .study import results_dir

IMAGE = 320  # pixels a side of the drawings beside the mesh
COMPONENTS = 10  # pose components with a slider: the first ones move most
AXES = ("x", "y", "z")


class Explorer:
    """A hand with a slider for everything that moves it.

    Args:
        hand: "open", "mano" or "auto", as in `load_hand`.
        side: "left" or "right".

    Shape, pose components and camera are the numbers that the network regresses. Each joint of
    the open hand turns about its anatomical axes (`poses.ANGLES`, degrees); MANO's joints turn
    about the axes of the hand (axis-angle, degrees). The pose is that of the joints' sliders with
    the components' axis-angle numbers added on top.
    """

    def __init__(self, hand="auto", side="right"):
        self.hand = load_hand(hand, side, pose_components=45)
        principal = load_hand(self.hand.name, side, pose_components=COMPONENTS)
        self._basis = principal.layer.hand_components.numpy()  # (COMPONENTS, 45)
        self.anatomical = self.hand.name == "open"
        self._upright = _upright(self.hand)
        self._quiet = False
        self.controls = {}
        tabs = widgets.Tab(
            [widgets.VBox(group) for group in (
                self._view(), self._shape(), self._joints(), self._components(), self._files()
            )],
            titles=("View", "Shape", "Joints", "Components", "Save"),
            layout=widgets.Layout(width="360px", height="460px"),
        )  # fmt: skip
        self._scene = Scene(self.hand.faces.numpy())
        self._image = widgets.Image(width=IMAGE, height=IMAGE)
        for control in self.controls.values():
            control.observe(self.redraw, "value")
        self.redraw()
        self.widget = widgets.HBox([tabs, self._scene.plot, self._image])

    # --- the controls ---------------------------------------------------------------------------

    def _slider(self, name, value, low, high, step=0.01):
        slider = widgets.FloatSlider(
            value, min=low, max=high, step=step, description=name, readout_format=".2f",
            style={"description_width": "140px"}, layout=widgets.Layout(width="320px"),
        )  # fmt: skip
        self.controls[name] = slider
        return slider

    def _view(self):
        # A camera that holds the flat hand, for which the pose undoes the mean.
        flat = -self.hand.hand_mean[None]
        joints = self.hand(torch.zeros(1, 10), torch.zeros(1, 3), flat).joints[0].numpy()
        points = (joints - joints[WRIST]) @ self._upright.T
        scale = 1.6 / np.ptp(points[:, :2], axis=0).max()
        middle = (points[:, :2].max(0) + points[:, :2].min(0)) / 2
        sliders = [self._slider(f"turn about {axis}", 0.0, -180.0, 180.0, 1.0) for axis in AXES]
        sliders.append(self._slider("camera s", scale, 1.0, 20.0))
        sliders += [
            self._slider(f"camera t{axis}", -scale * offset, -2.0, 2.0)
            for axis, offset in zip(AXES, middle, strict=False)
        ]
        colours = ("skin", "parts", *(f"weight of {name}" for name in MANO_NAMES))
        self.controls["colours"] = widgets.Dropdown(options=colours, description="colours")
        self.controls["wireframe"] = widgets.Checkbox(False, description="wireframe")
        self.controls["skeleton"] = widgets.Checkbox(True, description="joints and bones")
        return sliders + [self.controls[n] for n in ("colours", "wireframe", "skeleton")]

    def _shape(self):
        return [self._slider(f"beta {i}", 0.0, -3.0, 3.0) for i in range(10)]

    def _components(self):
        return [self._slider(f"component {i}", 0.0, -3.0, 3.0) for i in range(COMPONENTS)]

    def _joints(self):
        if not self.anatomical:
            return [
                self._slider(f"{name} {axis}", 0.0, -120.0, 120.0, 1.0)
                for name in MANO_NAMES[1:]
                for axis in AXES
            ]
        names = list(poses.GESTURES)
        self.gesture = widgets.Dropdown(options=names, value="relaxed", description="gesture")
        self.towards = widgets.Dropdown(options=names, value="fist", description="towards")
        self.blend = widgets.FloatSlider(0.0, min=0.0, max=1.0, step=0.01, description="by")
        for control in (self.gesture, self.towards, self.blend):
            control.observe(self._take_gesture, "value")
        degrees = np.degrees(poses.GESTURES["relaxed"])
        limits = np.degrees([poses.LOWER, poses.UPPER]).T
        return [self.gesture, self.towards, self.blend] + [
            self._slider(name, value, low, high, 1.0)
            for name, value, (low, high) in zip(poses.ANGLES, degrees, limits, strict=True)
        ]

    def _files(self):
        self.path = widgets.Text(str(ROOT / "results" / "hand.obj"), description="file")
        self.message = widgets.HTML("OBJ, PLY or GLB, by the file's ending")
        button = widgets.Button(description="save")
        button.on_click(self._save_clicked)
        self.code = widgets.Textarea(layout=widgets.Layout(width="320px", height="280px"))
        return [self.path, button, self.message, widgets.HTML("This hand as code:"), self.code]

    def _take_gesture(self, _):
        """Put the joints' sliders where the blend of the two gestures is, and draw once."""
        ends = (poses.GESTURES[control.value] for control in (self.gesture, self.towards))
        degrees = np.degrees(poses.blend(*ends, self.blend.value))
        self._quiet = True
        for name, value in zip(poses.ANGLES, degrees, strict=True):
            self.controls[name].value = value
        self._quiet = False
        self.redraw()

    # --- the hand -------------------------------------------------------------------------------

    def _values(self, names):
        return np.array([self.controls[name].value for name in names])

    def parameters(self):
        """What the sliders say, as `load_hand(name, side, pose_components=45)` takes it.

        Returns:
            betas (10,), global_orient (3,) axis-angle, hand_pose (45,) axis-angle relative to the
            mean pose: float64 arrays.
        """
        turn = np.radians(self._values(f"turn about {axis}" for axis in AXES))
        orient = Rotation.from_euler("xyz", turn) * Rotation.from_matrix(self._upright)
        if self.anatomical:
            pose = poses.angles_to_axis_angle(np.radians(self._values(poses.ANGLES)))
            if self.hand.side == "left":
                pose = pose * poses.MIRROR
            pose = pose.ravel() - self.hand.hand_mean.numpy()
        else:
            names = (f"{name} {axis}" for name in MANO_NAMES[1:] for axis in AXES)
            pose = np.radians(self._values(names))
        coefficients = self._values(f"component {i}" for i in range(COMPONENTS))
        pose = pose + coefficients @ self._basis
        return self._values(f"beta {i}" for i in range(10)), orient.as_rotvec(), pose

    def camera(self):
        """(3,) the weak-perspective camera (s, tx, ty) of the drawing, crop units."""
        return self._values(("camera s", "camera tx", "camera ty"))

    @torch.no_grad()
    def mesh(self):
        """The hand as the sliders say: vertices (V, 3) and joints (21, 3), metres, camera frame,
        wrist at the origin."""
        numbers = (torch.from_numpy(v).float()[None] for v in self.parameters())
        mesh = self.hand(*numbers)
        root = mesh.joints[:, [WRIST]]
        return (mesh.vertices - root)[0].numpy(), (mesh.joints - root)[0].numpy()

    def drawing(self, vertices, joints):
        """(IMAGE, IMAGE, 3) uint8: the projected silhouette and the 2-D joints."""
        camera = self.camera()
        image = np.full((IMAGE, IMAGE, 3), 255, np.uint8)
        covered = rasterize(vertices, self.hand.faces.numpy(), camera, IMAGE).pixel
        image.reshape(-1, 3)[covered] = (190, 200, 215)
        flat = camera[0] * joints[:, :2] + camera[1:]
        return draw_skeleton(image, crop_units_to_grid(flat, IMAGE))

    def redraw(self, _=None):
        """Draw the hand as the sliders say it."""
        if self._quiet:
            return
        vertices, joints = self.mesh()
        self._scene.show(vertices, joints, self._colours())
        self._scene.mesh.wireframe = self.controls["wireframe"].value
        self._scene.show_skeleton(self.controls["skeleton"].value)
        self._image.value = encode(self.drawing(vertices, joints))
        self.code.value = self._as_code()

    def _colours(self):
        """(V, 3) in [0, 1]."""
        wanted = self.controls["colours"].value
        weights = self.hand.weights.numpy()
        if wanted == "skin":
            return np.tile(SKIN, (len(weights), 1))
        if wanted == "parts":
            fingers = np.array([(0.7, 0.7, 0.7)] + [
                np.divide(FINGER_COLOURS[name.split()[0]], 255) for name in MANO_NAMES[1:]
            ])  # fmt: skip
            # Along a finger the parts are told apart by how light they are.
            shade = np.array([1.0] + [1.0, 0.75, 0.5] * 5)
            return (fingers * shade[:, None])[weights.argmax(1)]
        joint = MANO_NAMES.index(wanted.removeprefix("weight of "))
        return colormaps["viridis"](weights[:, joint])[:, :3]

    def _as_code(self):
        names = ("betas", "global_orient", "hand_pose")
        lines = [
            "import torch",
            "from hamr_lib import load_hand",
            f'hand = load_hand("{self.hand.name}", "{self.hand.side}", pose_components=45)',
        ]
        for name, values in zip(names, self.parameters(), strict=True):
            lines.append(f"{name} = torch.tensor([{[round(v, 5) for v in values.tolist()]}])")
        lines.append(f"mesh = hand({', '.join(names)})")
        return "\n".join(lines)

    def save(self, path):
        """Write the mesh as OBJ, PLY or GLB, by the path's ending: metres, camera frame."""
        vertices, _ = self.mesh()
        write_mesh(path, trimesh.Trimesh(vertices, self.hand.faces.numpy(), process=False))

    def _save_clicked(self, _):
        try:
            self.save(self.path.value)
            self.message.value = f"saved {self.path.value}"
        except HamrError as error:
            self.message.value = f"<b>{error}</b>"


# What samples can be ordered by: a predictions dict -> (N,).
MEASURES = {
    "3-D error (mm)": lambda found: row_means(errors_3d(found, main_protocol(found))),
    "2-D error (px)": lambda found: row_means(errors_2d(found)),
    "IoU": lambda found: found["iou"],
}


class Browser:
    """Goes through a run's predictions for its test sets, the worst or the best ones first.

    For the sample that is shown the network runs anew, for its heat maps and for what it said
    after each iteration; the numbers by which samples are ordered are those of the evaluation.

    Args:
        profile, run: whose results to read.

    Raises:
        HamrError: where that run was not evaluated.
    """

    def __init__(self, profile="cpu", run="main"):
        settings, self.folder = load_run(profile, run), results_dir(profile, run)
        self.sets = {
            found.title: found.load("evaluation", settings.data)
            for found in check.find_sets(settings).values()
        }
        dropdown = widgets.Dropdown
        self.controls = {
            "set": dropdown(options=list(self.sets), description="set"),
            "measure": dropdown(options=list(MEASURES), description="measure"),
            "order": dropdown(options=["worst first", "best first", "file order"],
                              description="order"),
            "place": widgets.IntSlider(0, min=0, max=0, description="sample",
                                       continuous_update=False),
            "iteration": widgets.IntSlider(1, min=1, max=1, description="iteration"),
        }  # fmt: skip
        self._text, self._image, self._bars = widgets.HTML(), widgets.Image(), widgets.Image()
        self._scene, self._recovered, self._quiet = None, (None, None), False
        self._plot = widgets.VBox()
        for name in ("set", "measure", "order"):
            self.controls[name].observe(self._reorder, "value")
        for name in ("place", "iteration"):
            self.controls[name].observe(self.redraw, "value")
        self._reorder()
        self.widget = widgets.VBox([
            widgets.HBox(list(self.controls.values()), layout={"flex_flow": "row wrap"}),
            self._text, self._image, widgets.HBox([self._bars, self._plot]),
        ])  # fmt: skip

    def _reorder(self, _=None):
        title = self.controls["set"].value
        self.predictions = load_predictions(predictions_path(self.folder, title))
        measure = self.controls["measure"].value
        self.values = MEASURES[measure](self.predictions)
        # Samples without that label come last.
        worst_first = self.values if measure == "IoU" else -self.values
        keys = {"worst first": worst_first, "best first": -worst_first}
        order = self.controls["order"].value
        self.order = np.argsort(keys.get(order, np.arange(len(self.values))), kind="stable")
        self._quiet = True
        self.controls["place"].max = len(self.order) - 1
        self.controls["place"].value = 0
        self._quiet = False
        self.redraw()

    def _recover(self, index):
        """The frame of a sample and what the network makes of it."""
        frames = self.sets[self.controls["set"].value]
        frame, key = frames[index], str(self.predictions["keys"][index])
        if frame.key != key:
            raise HamrError(
                f"{self.folder}: sample {index} was {key} and is now {frame.key}: evaluate anew"
            )
        recovery = recover_frame(frame, self.folder / "checkpoints" / "best.ckpt")
        return frame, recovery

    def redraw(self, _=None):
        """Draw the chosen sample after the chosen iteration."""
        if self._quiet:
            return
        index = int(self.order[self.controls["place"].value])
        where = (self.controls["set"].value, index)
        if self._recovered[0] != where:
            self._recovered = (where, self._recover(index))
        frame, last = self._recovered[1]
        slider, steps = self.controls["iteration"], [*last.earlier, last]
        if slider.max != len(steps):
            self._quiet = True
            slider.max = slider.value = len(steps)
            self._quiet = False
        recovery = steps[slider.value - 1]
        flip = np.array([-1.0 if recovery.side == "left" else 1.0, 1, 1])
        labels = {k: self.predictions[k][[index]] for k in ("true_joints_3d", "valid_3d")}
        errors = errors_3d(
            {"joints_3d": (recovery.joints_3d * flip)[None], **labels},
            main_protocol(self.predictions),
        )[0]
        value = f"{self.values[index]:.3g}" if np.isfinite(self.values[index]) else "no label"
        self._text.value = (
            f"<b>{frame.key}</b>, {frame.side} hand; {self.controls['measure'].value}: {value}. "
            f"From left to right: the labels; the heat maps; the "
            f"recovered joints and mesh after iteration {slider.value}."
        )
        self._image.value = encode(panels(frame, recovery))
        self._bars.value = _bars(errors)
        if self._scene is None:
            self._scene = Scene(recovery.faces)
            self._plot.children = [self._scene.plot]
        self._scene.mesh.indices = recovery.faces.astype(np.uint32)
        self._scene.show(
            recovery.vertices.astype(np.float32), recovery.joints_3d,
            np.tile(SKIN, (len(recovery.vertices), 1)),
        )  # fmt: skip


def evaluated_profile(run="main"):
    """The profile whose run of this name was evaluated last; None where there is none."""
    found = (ROOT / "results").glob(f"*/runs/{run}/predictions-*.npz")
    latest = max(found, key=lambda path: path.stat().st_mtime, default=None)
    return latest and latest.parents[2].name


def evaluation_example(profile, index=0):
    """An image of the RHD format's evaluation split, real or stand-in, to try things on.

    Returns:
        its name, the image (H, W, 3) uint8, the box (4,) around its labelled joints, pixels, and
        its side.

    Raises:
        HamrError: where the set is not there (`make data` renders the stand-in).
    """
    settings = load_settings(profile)
    found = check.find_sets(settings)["rhd"]
    frame = found.load("evaluation", settings.data)[index]
    low, high = np.nanmin(frame.joints_2d, axis=0), np.nanmax(frame.joints_2d, axis=0)
    name = f"{found.title}-{frame.key.replace('/', '-')}"
    return name, frame.image, (*low.tolist(), *high.tolist()), frame.side


def plot_recovery(recovery):
    """A k3d plot of a recovered hand with its joints, seen as the camera saw it."""
    scene = Scene(recovery.faces)
    scene.show(recovery.vertices, recovery.joints_3d, np.tile(SKIN, (len(recovery.vertices), 1)))
    scene.show_skeleton(True)
    return scene.plot


def panels(frame, recovery):
    """(IMAGE, 4 IMAGE, 3) uint8: a frame's crop with labels, heat maps, joints, and mesh.

    Args:
        frame: `data.frame.Frame`.
        recovery: what was recovered from its image.
    """
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


def encode(image):
    """(H, W, 3) uint8 RGB as the bytes of a PNG."""
    return cv2.imencode(".png", image[..., ::-1])[1].tobytes()


def _bars(errors):
    """Error per joint (21,) millimetres as the bytes of a PNG."""
    figure = Figure(figsize=(4.6, 4.6), layout="constrained")
    axes = figure.add_subplot()
    colours = ["#808080"] + [np.divide(FINGER_COLOURS[f], 255) for f in FINGERS for _ in range(4)]
    axes.barh(NAMES, np.nan_to_num(errors), color=colours)
    axes.invert_yaxis()
    axes.set(xlabel="error (mm)", title=f"mean {np.nanmean(errors):.1f} mm")
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=80)
    return content.getvalue()


def _upright(hand):
    """(3, 3) rotation that shows a hand's palm to the camera with the fingers up."""
    joints = hand(torch.zeros(1, 10), torch.zeros(1, 3), torch.zeros(1, 45)).joints[0]
    joints = joints.double().numpy()
    along = joints[MIDDLE_MCP] - joints[WRIST]
    across = joints[NAMES.index("index MCP")] - joints[NAMES.index("little MCP")]
    if hand.side == "left":
        across = -across
    up = along / np.linalg.norm(along)
    side = across - up * (across @ up)
    side /= np.linalg.norm(side)
    # With its palm to the viewer, a right hand has its thumb on the right.
    return np.array([side, -up, np.cross(up, side)])
