"""The network of HAMR: heat maps of the joints, then the hand by iterative regression.

    image -> stem -> stacked hourglass -> maps of the joints        (2-D pose module, Section 3.3)
                             |                  |
                             +---- joined ------+-> stride-2 convolutions -> fully connected,
                                                    three times over        (Section 3.2)
                                                 -> camera, rotation, pose, shape -> hand layer

At the paper's size this has 68.1 million parameters, and one image costs 61.2 GFLOP.
"""

import math
from pathlib import Path
from typing import NamedTuple

import roma
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hamr_lib.camera import hand_tilt, project_weak, rotate_in_plane, turn_image
from hamr_lib.config import Model, Settings
from hamr_lib.errors import HamrError
from hamr_lib.hand.layer import load_hand
from hamr_lib.hand.mano import NUM_BETAS
from hamr_lib.joints import NUM_JOINTS, WRIST
from hamr_lib.model import checkpoint
from hamr_lib.model.hourglass import PoseModule
from hamr_lib.model.regressor import Regressor

# Crop units a metre at which every estimate starts: the median over random poses and viewpoints
# of the open hand, in crops 1.4 times its joints' box, is 10.6.
START_SCALE = 10.0


class Estimate(NamedTuple):
    """The network's estimate of a batch of hands, camera frame, wrist at the origin.

    Without `model.mesh` there are joints and camera alone; `mesh=False` leaves out vertices.
    """

    camera: Tensor  # (B, 3) weak perspective s, tx, ty; s > 0
    rotation: Tensor | None  # (B, 3, 3) the wrist's rotation
    hand_pose: Tensor | None  # (B, P) PCA coefficients, or 45 axis-angle numbers
    betas: Tensor | None  # (B, 10) shape
    vertices: Tensor | None  # (B, V, 3) metres, root-relative
    joints_3d: Tensor  # (B, 21, 3) metres, root-relative
    joints_2d: Tensor  # (B, 21, 2) crop units, Eq. 4-5

    @property
    def global_orient(self) -> Tensor:
        """The rotation as (B, 3) axis-angle, radians, at most pi long."""
        return roma.rotmat_to_rotvec(self.rotation)

    def turned(self, angle: Tensor) -> "Estimate":
        """Turn the hands in the image plane by angles (B,), radians, clockwise as seen."""

        def turn(points):
            return None if points is None else rotate_in_plane(points, angle)

        camera = torch.cat([self.camera[:, :1], turn(self.camera[:, None, 1:])[:, 0]], dim=1)
        rotation = None if self.rotation is None else turn(self.rotation.mT).mT
        points = map(turn, (self.vertices, self.joints_3d, self.joints_2d))
        return Estimate(camera, rotation, self.hand_pose, self.betas, *points)


class Output(NamedTuple):
    """Heat maps of each stack and estimates of each iteration; the last of each is the best."""

    heatmaps: list[Tensor]  # (B, maps, h, h) each, raw; the first 21 are the joints
    estimates: list[Estimate]


class HAMR(nn.Module):
    """Hand mesh recovery from one image of a right hand.

    The regressor's estimates are raw numbers: the scale is 10 softplus(raw), the rotation by the
    exponential map or, for "6d", Gram-Schmidt; all others are used as they are.

    Args:
        hand: the layer of `load_hand`; it is not trained, nor in the state dict.
        pretrained: fill a pretrained stem with its weights; off where a checkpoint brings them.
    """

    def __init__(self, settings: Model, hand: nn.Module, pretrained: bool = True):
        super().__init__()
        self.image_size, self.mesh = settings.image_size, settings.mesh
        self.rotation = settings.rotation
        self.metrics = {}  # on training and validation images, from the checkpoint
        self.hand = hand.requires_grad_(False)
        self.pose_module = PoseModule(settings, pretrained)
        self.regressor = Regressor(settings, settings.channels + settings.maps, self._start())

    @classmethod
    def from_pretrained(
        cls, path: Path | str | None = None, device: torch.device | str = "cpu"
    ) -> "HAMR":
        """Load a checkpoint's network in evaluation mode; None takes `checkpoint.pretrained()`."""
        return load_model(checkpoint.pretrained() if path is None else path, device)[0]

    def _start(self) -> Tensor:
        """Make the estimate before the first iteration: (22,) with the paper's settings."""
        with torch.device(next(self.hand.buffers()).device):
            camera = torch.tensor([math.log(math.e - 1), 0.0, 0.0])  # softplus = 1
            identity = [0.0, 0.0, 0.0] if self.rotation == "axis_angle" else [1.0, 0, 0, 0, 1, 0]
            pose, betas = torch.zeros(self.hand.pose_components), torch.zeros(NUM_BETAS)
            if self.mesh:
                return torch.cat([camera, torch.tensor(identity), pose, betas])
            rest = self.hand(betas[None], torch.zeros(1, 3), pose[None]).joints[0]
            return torch.cat([camera, (10 * (rest - rest[WRIST])).flatten()])

    def forward(self, image: Tensor, all_iterations: bool = False) -> Output:
        """Recover the hands in a batch of images.

        Args:
            image: (B, 3, S, S) in [0, 1], crops of right hands, S = `model.image_size`.
            all_iterations: give the estimate of every iteration; the losses need the last alone.
        """
        expected = (3, self.image_size, self.image_size)
        if image.shape[1:] != expected:
            raise HamrError(f"image is {tuple(image.shape)}, expected (B, {expected})")
        joined, heatmaps, pooled = self.pose_module(image)
        raw = self.regressor(joined, pooled, self.project)
        wanted = raw if all_iterations else raw[-1:]
        with torch.autocast(image.device.type, enabled=False):
            return Output(heatmaps, [self.decode(r) for r in wanted])

    def upright(
        self, image: Tensor, tilt: Tensor | None = None, all_iterations: bool = False
    ) -> Output:
        """Recover the hands in crops that are first turned until their fingers point up.

        Args:
            image, all_iterations: as in `forward`.
            tilt: (B,) radians, as `camera.hand_tilt` gives them; None takes those of a first
                estimate.

        Returns:
            What belongs to the crops as they were given, turned back.
        """
        if tilt is None:
            tilt = hand_tilt(self(image).estimates[-1].joints_2d)
        output = self(turn_image(image, -tilt), all_iterations)
        heatmaps = [turn_image(maps, tilt, "bicubic") for maps in output.heatmaps]
        return Output(heatmaps, [estimate.turned(tilt) for estimate in output.estimates])

    def decode(self, raw: Tensor, mesh: bool = True) -> Estimate:
        """Decode the raw numbers (B, N) of an iteration; mesh=False leaves vertices out."""
        camera = torch.cat([START_SCALE * F.softplus(raw[:, :1]), raw[:, 1:3]], dim=1)
        if not self.mesh:
            joints = raw[:, 3:].unflatten(1, (NUM_JOINTS, 3)) / 10  # decimetres, of order 1
            joints = joints - joints[:, WRIST, None]
            return Estimate(camera, None, None, None, None, joints, project_weak(joints, camera))
        vector = self.rotation == "axis_angle"
        sizes = [3 if vector else 6, self.hand.pose_components, NUM_BETAS]
        turn, pose, betas = raw[:, 3:].split(sizes, dim=1)
        rotation = roma.rotvec_to_rotmat(turn) if vector else rotation_from_6d(turn)
        return self.compose(camera, rotation, pose, betas, mesh)

    def compose(
        self, camera: Tensor, rotation: Tensor, hand_pose: Tensor, betas: Tensor, mesh: bool = True
    ) -> Estimate:
        """Make an `Estimate` from its parameters; mesh=False leaves vertices out."""
        layer = self.hand if mesh else self.hand.skeleton
        found = layer(betas, rotation, hand_pose)
        vertices, joints = found if mesh else (None, found)
        vertices = vertices - joints[:, WRIST, None] if mesh else None
        joints = joints - joints[:, WRIST, None]
        flat = project_weak(joints, camera)
        return Estimate(camera, rotation, hand_pose, betas, vertices, joints, flat)

    def project(self, raw: Tensor) -> Tensor:
        """Project the joints of raw numbers (B, N): (B, 21, 2) crop units."""
        return self.decode(raw, mesh=False).joints_2d


def rotation_from_6d(numbers: Tensor) -> Tensor:
    """Orthonormalise a rotation's first two columns (Zhou et al. 2019): (B, 6) to (B, 3, 3)."""
    columns = numbers.unflatten(-1, (2, 3)).transpose(-1, -2)
    return roma.special_gramschmidt(columns, epsilon=1e-6)


def load_model(path: Path | str, device: torch.device | str = "cpu") -> tuple[HAMR, Settings]:
    """Load a trained network in evaluation mode, and the settings it was trained with.

    Raises:
        HamrError: for a file that is missing, broken, or of another network or hand.
    """
    content = checkpoint.read(path, task="hamr")
    description = content["hamr"]
    settings = checkpoint.stored_settings(path, description)
    asked = {"pose_components": settings.hand.pose_components, "joints": settings.hand.joints}
    hand = load_hand(description["hand"], **asked)
    checkpoint.check_hand(path, description, hand)
    with torch.device("meta"):  # shapes alone, until the file's weights are known to fit
        network = HAMR(settings.model, hand, pretrained=False)
    checkpoint.load_state(path, network, content["state_dict"])
    network.metrics = description["metrics"]
    network.to(device, memory_format=torch.channels_last)  # faster for one image too
    return network.eval(), settings
