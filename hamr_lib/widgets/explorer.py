"""The widgets of the notebook `explore_mesh`.

`Explorer` is a hand with a slider for everything that moves it; `Browser` goes through what a
network predicted for a test set. Each shows its `widget`. All that a mouse can do, code can do as
well: set the `value` of one of the `controls`.
"""

import base64
import html
import io
from pathlib import Path
from types import SimpleNamespace

import cv2
import ipywidgets as widgets
import numpy as np
import torch
import trimesh
from matplotlib import colormaps
from matplotlib.figure import Figure
from scipy.spatial.transform import Rotation

from hamr_lib import losses
from hamr_lib.camera import crop_units_to_grid, project_weak
from hamr_lib.config import Losses, load_run, load_settings
from hamr_lib.data import check
from hamr_lib.data.crops import cut
from hamr_lib.errors import HamrError
from hamr_lib.evaluation.predict import load_predictions, predictions_path
from hamr_lib.evaluation.scores import errors_2d, errors_3d, main_protocol, row_means
from hamr_lib.files import ROOT
from hamr_lib.hand import poses
from hamr_lib.hand.layer import load_hand
from hamr_lib.joints import FINGERS, MANO_NAMES, MIDDLE_MCP, NAMES, WRIST
from hamr_lib.recovery.result import SKIN, recover_frame, write_mesh
from hamr_lib.render import rasterize, render, silhouette
from hamr_lib.render.draw2d import FINGER_COLOURS, draw_skeleton
from hamr_lib.render.viewer3d import Scene
from hamr_lib.study import results_dir

IMAGE = 320  # pixels a side of the drawings beside the mesh
BARS = 368  # and of the errors by joint; what stands beside a plot says how wide it is
COMPONENTS = 10  # pose components with a slider: the first ones move most
AXES = ("x", "y", "z")
MASK = 64  # pixels a side at which silhouettes are compared
RATE = 0.02  # of the gradient steps
EVERY = 4  # gradient steps between two drawings
NO_TARGET = "none"
WEIGHTS = Losses()  # the paper's
RANDOM = tuple(f"random hand {i}" for i in (1, 2, 3))
TARGET = (70, 130, 220)  # the target's colour, in the plot and in the picture


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
        self._quiet = False
        self.controls = {}
        self._scene, self._image = None, widgets.Image(width=IMAGE, height=IMAGE)
        self.which = widgets.Dropdown(options=("open", "mano"), description="hand")
        self.side = widgets.Dropdown(options=("right", "left"), description="side")
        self._problem = widgets.HTML()
        self._tabs = widgets.Tab(layout=widgets.Layout(width="360px", height="460px"))
        self._build(hand, side)
        self.which.observe(self._switch, "value")
        self.side.observe(self._switch, "value")
        self.widget = widgets.HBox([self._tabs, self._scene.plot, self._image])

    def _build(self, hand, side):
        """Take up a hand: its sliders, its mesh, and what a fit needs to know of it."""
        self.hand = load_hand(hand, side, pose_components=45)
        principal = load_hand(self.hand.name, side, pose_components=COMPONENTS)
        self._basis = principal.layer.hand_components.numpy()  # (COMPONENTS, 45)
        self.anatomical = self.hand.name == "open"
        self._upright = _upright(self.hand)
        self._extra = np.zeros(45)  # what a fit adds to the pose, for which there is no slider
        self._quiet = True
        self.which.value, self.side.value = self.hand.name, side
        self.controls = {}
        groups = {
            "View": self._view(), "Shape": self._shape(), "Joints": self._joints(),
            "PCA": self._components(), "Fit": self._fit(), "Save": self._files(),
        }  # fmt: skip
        self._tabs.children = [widgets.VBox(group) for group in groups.values()]
        self._tabs.titles = tuple(groups)
        faces = self.hand.faces.numpy()
        if self._scene is None:
            self._scene = Scene(faces)
        self._scene.mesh.indices = faces.astype(np.uint32)
        self.start = {
            name: control.value
            for name, control in self.controls.items()
            if isinstance(control, widgets.FloatSlider)
        }
        for control in self.controls.values():
            control.observe(self.redraw, "value")
        self._quiet = False
        self._take_target()

    def _switch(self, _):
        """Take up the other side or the other hand, with the sliders where they are."""
        if self._quiet:
            return
        values = {name: control.value for name, control in self.controls.items()}
        before = self.hand.name, self.hand.side
        self._problem.value = ""
        try:
            self._build(self.which.value, self.side.value)
        except HamrError as error:
            self._problem.value = f"<b>{error}</b>"
            self._quiet = True
            self.which.value, self.side.value = before
            self._quiet = False
            return
        # A target is of one hand, and the camera of one side: they begin anew.
        kept = [n for n in values if n in self.controls and not n.startswith(("camera", "target"))]
        self._quiet = True
        for name in kept:
            self.controls[name].value = values[name]
        self._quiet = False
        self.redraw()

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
        shown = [self.controls[n] for n in ("colours", "wireframe", "skeleton")]
        return [self.which, self.side, self._problem, *sliders, *shown]

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

    def _fit(self):
        targets = (*poses.GESTURES, *RANDOM) if self.anatomical else RANDOM
        target = widgets.Dropdown(options=(NO_TARGET, *targets), description="target")
        target.observe(self._take_target, "value")
        self.controls["target"] = target
        self.steps = widgets.IntSlider(100, min=EVERY, max=400, step=EVERY, description="steps")
        start = widgets.Button(description="fit to target")
        start.on_click(lambda _: self.fit(self.steps.value))
        reset = widgets.Button(description="start over")
        reset.on_click(lambda _: self.reset())
        self.terms = widgets.HTML()
        return [target, self.steps, widgets.HBox([start, reset]), self.terms]

    def _files(self):
        self.path = widgets.Text(str(ROOT / "results" / "hand.obj"), description="file")
        self.message = widgets.HTML("OBJ, PLY or GLB, by the file's ending")
        button = widgets.Button(description="save")
        button.on_click(self._save_clicked)
        self.code = widgets.Textarea(layout=widgets.Layout(width="320px", height="280px"))
        return [self.path, button, self.message, widgets.HTML("This hand as code:"), self.code]

    def _take_gesture(self, _):
        """Put the joints' sliders where the blend of the two gestures is, and draw once."""
        if self._quiet:
            return
        ends = (poses.GESTURES[control.value] for control in (self.gesture, self.towards))
        degrees = np.degrees(poses.blend(*ends, self.blend.value))
        self._quiet = True
        self._extra[:] = 0
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
        pose = pose + coefficients @ self._basis + self._extra
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
        """(IMAGE, IMAGE, 3) uint8: the projected silhouette and the 2-D joints, and the target's
        outline."""
        camera = self.camera()
        image = np.full((IMAGE, IMAGE, 3), 255, np.uint8)
        covered = rasterize(vertices, self.hand.faces.numpy(), camera, IMAGE).pixel
        image.reshape(-1, 3)[covered] = (190, 200, 215)
        if self.target:
            image[self.target["outline"]] = TARGET
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
        self.terms.value = self._terms_as_html()

    # --- a target, and the way there ------------------------------------------------------------

    def _take_target(self, _=None):
        """Make the labels of the chosen target: joints in space and on the image, and a mask."""
        name = self.controls["target"].value
        self.target = None
        if name != NO_TARGET:
            betas, orient, pose, camera = (
                torch.from_numpy(np.asarray(v)).float()[None] for v in self._target(name)
            )
            with torch.no_grad():
                mesh = self.hand(betas, orient, pose)
                vertices, joints = (v - mesh.joints[:, [WRIST]] for v in mesh[:2])
                mask = silhouette(vertices, self.hand.faces, camera, MASK)
            pixels = np.zeros((IMAGE, IMAGE), np.uint8)
            seen = rasterize(vertices[0].numpy(), self.hand.faces.numpy(), camera[0].numpy(), IMAGE)
            pixels.flat[seen.pixel] = 1
            self.target = {
                "joints_3d": joints,
                "joints_2d": project_weak(joints, camera),
                "mask": mask,
                "outline": cv2.morphologyEx(pixels, cv2.MORPH_GRADIENT, np.ones((3, 3))) > 0,
            }
        shown = vertices[0].numpy() if self.target else None
        self._scene.show_target(shown, self.hand.faces.numpy(), TARGET)
        self.redraw()

    def _target(self, name):
        """betas (10,), global_orient (3,), hand_pose (45,) and camera (3,) of a target's name."""
        mean = self.hand.hand_mean.numpy()
        flip = poses.MIRROR if self.hand.side == "left" else 1.0
        upright = Rotation.from_matrix(self._upright)
        camera = np.array([self.start[n] for n in ("camera s", "camera tx", "camera ty")])
        if name in poses.GESTURES:
            pose = poses.angles_to_axis_angle(poses.GESTURES[name]) * flip
            return np.zeros(10), upright.as_rotvec(), pose.ravel() - mean, camera
        rng = np.random.default_rng(RANDOM.index(name))
        if self.anatomical:
            pose = (poses.angles_to_axis_angle(poses.sample_poses(rng, 1)[0]) * flip).ravel() - mean
        else:
            pose = rng.normal(0, 1, COMPONENTS) @ self._basis
        turn = Rotation.from_euler("xyz", rng.uniform(-40, 40, 3), degrees=True)
        camera = camera * rng.uniform(0.8, 1.1)
        return rng.normal(0, 1, 10), (turn * upright).as_rotvec(), pose, camera

    def _losses(self, betas, orient, pose, camera):
        """The parts of Eq. 8 that need no heat maps, of (1, ...) tensors, against the target."""
        mesh = self.hand(betas, orient, pose)
        joints = mesh.joints - mesh.joints[:, [WRIST]]
        estimate = SimpleNamespace(
            vertices=mesh.vertices - mesh.joints[:, [WRIST]], camera=camera
        )  # fmt: skip
        known, target = torch.ones(1, 21, dtype=torch.bool), self.target
        flat = project_weak(joints, camera)
        return {
            "joints_3d": losses.joints_3d_loss(joints, target["joints_3d"], known),
            "joints_2d": losses.joints_2d_loss(flat, target["joints_2d"], known),
            "geometric": losses.geometric_loss(joints),
            "camera": losses.camera_loss(
                camera, target["joints_3d"], target["joints_2d"], known, scale="projected"
            ),
            "silhouette": losses.silhouette_loss(
                estimate, self.hand.faces, target["mask"], torch.ones(1, dtype=torch.bool), MASK
            ),
        }

    def _tensors(self):
        values = (*self.parameters(), self.camera())
        return [torch.from_numpy(v).float()[None] for v in values]

    def loss_terms(self):
        """What the hand loses against the target: {part: unweighted number}; empty without one."""
        if self.target is None:
            return {}
        with torch.no_grad():
            return {name: term.item() for name, term in self._losses(*self._tensors()).items()}

    def _terms_as_html(self):
        terms = self.loss_terms()
        if not terms:
            return "Choose a target, to see the losses against it and to fit the hand to it."
        rows = [(name, term, getattr(WEIGHTS, name)) for name, term in terms.items()]
        total = sum(term * weight for _, term, weight in rows)
        return (
            "<table><tr><th>loss<th>value<th>weight<th>product</tr>"
            + "".join(
                f"<tr><td>{name}<td>{term:.4g}<td>{weight:g}<td>{term * weight:.4g}</tr>"
                for name, term, weight in rows
            )
            + f"<tr><td>sum<td><td><td><b>{total:.4g}</b></tr></table>"
        )

    def fit(self, steps):
        """Walk down the gradient of the weighted losses, with the paper's weights and by Adam.

        Shape, rotation and camera move their sliders; what is added to the pose has none and stays
        until a gesture is chosen or all is started over. Every few steps the hand is drawn.
        """
        if self.target is None:
            return
        orient = Rotation.from_rotvec(self.parameters()[1])
        betas, _, pose, camera = self._tensors()
        pose_before = pose.numpy()[0].astype(float) - self._extra
        # Sizes of a step in the units of each: the camera's scale is some ten times a rotation's.
        unit = torch.tensor([10.0, 1.0, 1.0])
        walk = [torch.zeros(1, n, requires_grad=True) for n in (10, 3, 45, 3)]
        optimizer = torch.optim.Adam(walk, lr=RATE)

        def moved():
            turned = torch.from_numpy(orient.as_rotvec()).float()[None] + walk[1]
            return betas + 5 * walk[0], turned, pose + walk[2], camera + walk[3] * unit

        for step in range(1, steps + 1):
            optimizer.zero_grad()
            terms = self._losses(*moved())
            sum(getattr(WEIGHTS, name) * term for name, term in terms.items()).backward()
            optimizer.step()
            if step % EVERY == 0 or step == steps:
                with torch.no_grad():
                    self._put(*(v[0].double().numpy() for v in moved()), pose_before)

    def _put(self, betas, orient, pose, camera, pose_before):
        """Put the sliders where a fit is, and draw once."""
        self._quiet = True
        for i, value in enumerate(betas):
            self.controls[f"beta {i}"].value = np.clip(value, -3, 3)
        turn = Rotation.from_rotvec(orient) * Rotation.from_matrix(self._upright).inv()
        for axis, value in zip(AXES, turn.as_euler("xyz", degrees=True), strict=True):
            self.controls[f"turn about {axis}"].value = value
        for name, value in zip(("s", "tx", "ty"), camera, strict=True):
            control = self.controls[f"camera {name}"]
            control.value = np.clip(value, control.min, control.max)
        self._extra = pose - pose_before
        self._quiet = False
        self.redraw()

    def reset(self):
        """Put everything but the target and the colours where it was at the start."""
        self._quiet = True
        self._extra[:] = 0
        for name, value in self.start.items():
            self.controls[name].value = value
        if self.anatomical:
            self.gesture.value, self.blend.value = "relaxed", 0.0
        self._quiet = False
        self.redraw()

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
            self.message.value = f"saved {self.path.value}<br>{download_link(self.path.value)}"
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
        self._text, self._image = widgets.HTML(), widgets.Image()
        self._bars = widgets.Image(width=BARS, height=BARS)
        self._scene, self._recovered, self._quiet = None, (None, None), False
        self._plot = widgets.VBox(layout={"flex": "1 1 auto", "overflow": "hidden"})
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


def download_link(path):
    """A link by which a browser takes a file along, wherever the kernel runs."""
    path = Path(path)
    content = base64.b64encode(path.read_bytes()).decode()
    url = f"data:application/octet-stream;base64,{content}"
    name = html.escape(path.name, quote=True)
    return f'<a download="{name}" href="{url}">download {name}</a>'


def encode(image):
    """(H, W, 3) uint8 RGB as the bytes of a PNG."""
    return cv2.imencode(".png", image[..., ::-1])[1].tobytes()


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
