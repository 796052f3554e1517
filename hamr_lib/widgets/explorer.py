"""The first widget of `explore_mesh`: a hand with a slider for everything that moves it.

It shows its `widget`. Code can do all that a mouse can: set the `value` of one of the `controls`.
"""

import html

import ipywidgets as widgets
import numpy as np
import torch
from matplotlib import colormaps
from scipy.spatial.transform import Rotation

from hamr_lib.camera import crop_units_to_grid
from hamr_lib.errors import HamrError
from hamr_lib.files import ROOT
from hamr_lib.hand import anatomy, sampling
from hamr_lib.hand.layer import load_hand, upright
from hamr_lib.joints import MANO_NAMES
from hamr_lib.recovery.meshfile import SKIN, write_mesh
from hamr_lib.render import rasterize
from hamr_lib.render.draw2d import FINGER_COLOURS, draw_skeleton
from hamr_lib.render.viewer3d import Scene
from hamr_lib.widgets.pictures import download_link, encode, problem
from hamr_lib.widgets.target import descend, loss_table, loss_terms, make_target, rooted

IMAGE = 320  # pixels a side of the drawing beside the mesh
COMPONENTS = 10  # pose components with a slider: the first ones move most
UNNAMED = [f"{name} {axis}" for name in MANO_NAMES[1:] for axis in "xyz"]  # MANO's sliders
TURNS = [f"turn about {axis}" for axis in "xyz"]
SHAPE = [f"beta {i}" for i in range(10)]
PCA = [f"component {i}" for i in range(COMPONENTS)]
CAMERA = ["camera s", "camera tx", "camera ty"]
EVERY = 4  # optimiser steps between two drawings
NO_TARGET = "none"
RANDOM = [f"random hand {i}" for i in (1, 2, 3)]
TARGET = (70, 130, 220)  # colour of the target, in the plot and in the picture


class Explorer:
    """A hand with a slider for everything that moves it.

    Args:
        hand: "open", "mano" or "auto", as in `load_hand`.
        side: "left" or "right".

    Shape, pose components and camera are the numbers that the network regresses. Each joint of
    the open hand turns about its anatomical axes (`anatomy.ANGLES`, degrees); MANO's joints turn
    about the axes of the hand (axis-angle, degrees). The pose is that of the joints' sliders with
    the components' axis-angle numbers added on top.
    """

    def __init__(self, hand: str = "auto", side: str = "right"):
        self.hand = load_hand(hand, side, pose_components=45)
        principal = load_hand(self.hand.name, side, pose_components=COMPONENTS)
        self._basis = principal.layer.hand_components.numpy()  # (COMPONENTS, 45)
        self.anatomical, self._upright = self.hand.name == "open", upright(self.hand)
        self._mirror = anatomy.MIRROR if side == "left" else 1.0
        self._extra = np.zeros(45)  # pose offset of the last fit, for which there is no slider
        self._scene, self._image = Scene(self.hand.faces.numpy()), widgets.Image()
        self._image.width = self._image.height = IMAGE
        self.controls, self.target, self._quiet = {}, None, False
        tabs = {
            "View": self._view(), "Shape": self._sliders(SHAPE), "Joints": self._joints(),
            "PCA": self._sliders(PCA), "Fit": self._fit(), "Save": self._files(),
        }  # fmt: skip
        sliders = {k: c for k, c in self.controls.items() if isinstance(c, widgets.FloatSlider)}
        self.start = {name: slider.value for name, slider in sliders.items()}
        for control in self.controls.values():
            control.observe(self.redraw, "value")
        children, layout = [widgets.VBox(tab) for tab in tabs.values()], {"width": "360px"}
        shown = widgets.Tab(children, titles=tuple(tabs), layout=layout | {"height": "460px"})
        self.widget = widgets.HBox([shown, self._scene.plot, self._image])
        self.redraw()

    def _set(self, values):
        """Set controls by name, and draw once. A slider keeps a value within its range."""
        self._quiet = True
        for name, value in values.items():
            self.controls[name].value = value
        self._quiet = False
        self.redraw()

    # --- the controls ---------------------------------------------------------------------------

    def _sliders(self, names, values=0.0, low=-3.0, high=3.0, step=0.01):
        numbers = (np.broadcast_to(number, len(names)) for number in (values, low, high))
        new = {
            name: widgets.FloatSlider(
                value, min=least, max=most, step=step, description=name, readout_format=".2f",
                style={"description_width": "140px"}, layout=widgets.Layout(width="320px"),
            )
            for name, value, least, most in zip(names, *numbers, strict=True)
        }  # fmt: skip
        self.controls |= new
        return list(new.values())

    def _view(self):
        # A camera that frames the flat hand, whose pose is minus the mean pose.
        flat = -self.hand.hand_mean[None]
        joints = rooted(self.hand, torch.zeros(1, 10), torch.zeros(1, 3), flat)[1][0].numpy()
        points = joints @ self._upright.T
        scale = 1.6 / np.ptp(points[:, :2], axis=0).max()
        middle = (points[:, :2].max(0) + points[:, :2].min(0)) / 2
        sliders = self._sliders(TURNS, 0.0, -180.0, 180.0, 1.0)
        sliders += self._sliders(CAMERA, [scale, *-scale * middle], [1, -2, -2], [20, 2, 2])
        colours = ("skin", "parts", *(f"weight of {name}" for name in MANO_NAMES))
        shown = {
            "colours": widgets.Dropdown(options=colours, description="colours"),
            "wireframe": widgets.Checkbox(False, description="wireframe"),
            "skeleton": widgets.Checkbox(True, description="joints and bones"),
        }
        self.controls |= shown
        return [*sliders, *shown.values()]

    def _joints(self):
        if not self.anatomical:
            return self._sliders(UNNAMED, 0.0, -120.0, 120.0, 1.0)
        names = list(anatomy.GESTURES)
        self.gesture = widgets.Dropdown(options=names, value="relaxed", description="gesture")
        self.towards = widgets.Dropdown(options=names, value="fist", description="towards")
        self.blend = widgets.FloatSlider(0.0, min=0.0, max=1.0, step=0.01, description="by")
        for control in (self.gesture, self.towards, self.blend):
            control.observe(self._take_gesture, "value")
        angles = anatomy.GESTURES["relaxed"], anatomy.LOWER, anatomy.UPPER
        sliders = self._sliders(anatomy.ANGLES, *map(np.degrees, angles), 1.0)
        return [self.gesture, self.towards, self.blend, *sliders]

    def _fit(self):
        targets = (NO_TARGET, *(anatomy.GESTURES if self.anatomical else ()), *RANDOM)
        target = widgets.Dropdown(options=targets, description="target")
        target.observe(self._take_target, "value")
        self.controls["target"] = target
        self.steps = widgets.IntSlider(100, min=EVERY, max=400, step=EVERY, description="steps")
        self.terms = widgets.HTML()
        start = _button("fit to target", lambda: self.fit(self.steps.value))
        return [target, self.steps, widgets.HBox([start, _button("start over", self.reset)]),
                self.terms]  # fmt: skip

    def _files(self):
        self.path = widgets.Text(str(ROOT / "results" / "hand.obj"), description="file")
        self.message = widgets.HTML("OBJ or GLB, by the file's ending")
        self.code = widgets.Textarea(layout=widgets.Layout(width="320px", height="280px"))
        title = widgets.HTML("This hand as code:")
        return [self.path, _button("save", self.save), self.message, title, self.code]

    def _take_gesture(self, _):
        """Set the joints' sliders to the blend of the two gestures, and draw once."""
        if not self._quiet:
            ends = (anatomy.GESTURES[control.value] for control in (self.gesture, self.towards))
            degrees = np.degrees(anatomy.blend(*ends, self.blend.value))
            self._extra[:] = 0
            self._set(dict(zip(anatomy.ANGLES, degrees, strict=True)))

    # --- the hand -------------------------------------------------------------------------------

    def _values(self, names):
        return np.array([self.controls[name].value for name in names])

    def _pose(self, angles):
        """The pose (45,) of anatomical angles, relative to the mean pose."""
        pose = anatomy.angles_to_axis_angle(angles) * self._mirror
        return pose.ravel() - self.hand.hand_mean.numpy()

    def parameters(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return the sliders' betas (10,), global_orient (3,) and hand_pose (45,), float64.

        They are axis-angle, radians; the pose is relative to the mean pose.
        """
        turn = Rotation.from_euler("xyz", self._values(TURNS), degrees=True)
        orient = turn * Rotation.from_matrix(self._upright)
        angles = np.radians(self._values(anatomy.ANGLES if self.anatomical else UNNAMED))
        pose = self._pose(angles) if self.anatomical else angles
        pose = pose + self._values(PCA) @ self._basis + self._extra
        return self._values(SHAPE), orient.as_rotvec(), pose

    def camera(self) -> np.ndarray:
        """Return the weak-perspective camera (s, tx, ty) of the drawing, crop units."""
        return self._values(CAMERA)

    @torch.no_grad()
    def mesh(self) -> tuple[np.ndarray, np.ndarray]:
        """Return vertices (V, 3) and joints (21, 3): metres, camera frame, wrist at the origin."""
        return tuple(v[0].numpy() for v in rooted(self.hand, *_batch(self.parameters())))

    def drawing(self, vertices: np.ndarray, joints: np.ndarray) -> np.ndarray:
        """Draw silhouette, 2-D joints and the target's outline: (IMAGE, IMAGE, 3) uint8."""
        camera = self.camera()
        image = np.full((IMAGE, IMAGE, 3), 255, np.uint8)
        covered = rasterize(vertices, self.hand.faces.numpy(), camera, IMAGE).pixel
        image.reshape(-1, 3)[covered] = (190, 200, 215)
        if self.target is not None:
            image[self.target.outline] = TARGET
        flat = camera[0] * joints[:, :2] + camera[1:]
        return draw_skeleton(image, crop_units_to_grid(flat, IMAGE))

    def redraw(self, _=None) -> None:
        """Draw the hand with the sliders' values."""
        if self._quiet:
            return
        vertices, joints = self.mesh()
        self._scene.show(vertices, joints, self._colours())
        self._scene.mesh.wireframe = self.controls["wireframe"].value
        self._scene.show_skeleton(self.controls["skeleton"].value)
        self._image.value = encode(self.drawing(vertices, joints))
        betas, orient, pose = (f"torch.tensor([{v.round(5).tolist()}])" for v in self.parameters())
        self.code.value = (
            "import torch\nfrom hamr_lib import load_hand\n"
            f'hand = load_hand("{self.hand.name}", "{self.hand.side}", pose_components=45)\n'
            f"betas = {betas}\nglobal_orient = {orient}\nhand_pose = {pose}\n"
            "mesh = hand(betas, global_orient, hand_pose)"
        )
        terms = self.loss_terms()
        self.terms.value = loss_table(terms) if terms else "Choose a target to see its losses."

    def _colours(self):
        """(V, 3) or (3,) in [0, 1]."""
        wanted, weights = self.controls["colours"].value, self.hand.weights.numpy()
        if wanted == "skin":
            return SKIN
        if wanted == "parts":
            fingers = [FINGER_COLOURS[name.split()[0]] for name in MANO_NAMES[1:]]
            shade = np.array([1.0] + [1.0, 0.75, 0.5] * 5)  # darker along a finger
            parts = np.array([(178, 178, 178), *fingers]) / 255 * shade[:, None]
            return parts[weights.argmax(1)]
        joint = MANO_NAMES.index(wanted.removeprefix("weight of "))
        return colormaps["viridis"](weights[:, joint])[:, :3]

    # --- a target, and the way there ------------------------------------------------------------

    def _take_target(self, _=None):
        """Make the chosen target and draw it."""
        name = self.controls["target"].value
        self.target = None
        if name != NO_TARGET:
            self.target = make_target(self.hand, _batch(self._target(name)), IMAGE)
        shown = self.target and self.target.vertices
        self._scene.show_target(shown, self.hand.faces.numpy(), TARGET)
        self.redraw()

    def _target(self, name):
        """betas (10,), global_orient (3,), hand_pose (45,) and camera (3,) of a named target."""
        start = Rotation.from_matrix(self._upright)
        camera = np.array([self.start[name] for name in CAMERA])
        if name in anatomy.GESTURES:
            return np.zeros(10), start.as_rotvec(), self._pose(anatomy.GESTURES[name]), camera
        rng = np.random.default_rng(RANDOM.index(name))
        if self.anatomical:
            pose = self._pose(sampling.sample_poses(rng, 1)[0])
        else:
            pose = rng.normal(0, 1, COMPONENTS) @ self._basis
        turn = Rotation.from_euler("xyz", rng.uniform(-40, 40, 3), degrees=True)
        camera = camera * rng.uniform(0.8, 1.1)
        return rng.normal(0, 1, 10), (turn * start).as_rotvec(), pose, camera

    @torch.no_grad()
    def loss_terms(self) -> dict[str, float]:
        """Compute the unweighted losses against the target by name; none without a target."""
        if self.target is None:
            return {}
        now = _batch((*self.parameters(), self.camera()))
        return {k: v.item() for k, v in loss_terms(self.hand, now, self.target).items()}

    def fit(self, steps: int) -> None:
        """Minimise the weighted losses against the target, and draw the hand on the way.

        Shape, rotation and camera move their sliders. The offset of the pose has no slider: it
        stays until a gesture is chosen or `reset` is called.
        """
        if self.target is None:
            return
        sliders = self.parameters()[2] - self._extra
        level = Rotation.from_matrix(self._upright).inv()
        now = _batch((*self.parameters(), self.camera()))
        for step, found in enumerate(descend(self.hand, now, self.target, steps), start=1):
            if step % EVERY == 0 or step == steps:
                betas, orient, pose, camera = found
                self._extra = pose - sliders
                turn = (Rotation.from_rotvec(orient) * level).as_euler("xyz", degrees=True)
                values = (*betas, *turn, *camera)
                self._set(dict(zip((*SHAPE, *TURNS, *CAMERA), values, strict=True)))

    def reset(self) -> None:
        """Set everything but the target and the colours to its start value."""
        self._extra[:] = 0
        if self.anatomical:
            self.gesture.value, self.blend.value = "relaxed", 0.0
        self._set(self.start)

    def save(self) -> None:
        """Write the mesh to the path of the tab "Save": metres, camera frame."""
        try:
            write_mesh(self.path.value, self.mesh()[0], self.hand.faces.numpy())
            saved, link = html.escape(self.path.value), download_link(self.path.value)
            self.message.value = f"saved {saved}<br>{link}"
        except HamrError as error:
            self.message.value = problem(error)


def _button(text, action):
    button = widgets.Button(description=text)
    button.on_click(lambda _: action())
    return button


def _batch(arrays):
    """Arrays (n,) -> float32 tensors (1, n)."""
    return [torch.from_numpy(np.asarray(array)).float()[None] for array in arrays]
