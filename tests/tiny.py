"""A small world for tests: a hand that needs no files, frames drawn by hand, tiny settings."""

import cv2
import numpy as np
import torch
from torch import nn

from hamr_lib.config import Augment, from_dict
from hamr_lib.data.frame import Frame
from hamr_lib.hand.layer import HandMesh
from hamr_lib.joints import BONES

K = np.array([[300, 0, 79.5], [0, 300, 59.5], [0, 0, 1]], np.float32)
STILL = Augment(scale=(1.0, 1.0), rotation=0.0, brightness=(1.0, 1.0), contrast=(1.0, 1.0),
                saturation=(1.0, 1.0), hue=(1.0, 1.0), noise=0.0)  # fmt: skip
BLOB = 0.01  # metres, half the side of the square that stands for a joint


def rest_joints():
    """(21, 3) metres: a flat open hand, wrist at the origin, fingers up (negative y)."""
    joints = np.zeros((21, 3), np.float32)
    for finger, degrees in enumerate((-50, -15, 0, 15, 30)):
        along = np.array([np.sin(np.radians(degrees)), -np.cos(np.radians(degrees)), 0])
        for part, reach in enumerate((0.08, 0.11, 0.135, 0.155)):
            joints[1 + 4 * finger + part] = along * reach * (0.7 if finger == 0 else 1)
    return joints


class TinyHand(nn.Module):
    """What `layer.load_hand` promises, with tetrahedra around 21 linear joints."""

    name, side = "tiny", "right"

    def __init__(self, pose_components=6, seed=0):
        super().__init__()
        self.pose_components = pose_components
        generator = torch.Generator().manual_seed(seed)

        def basis(count):
            moves = 0.005 * torch.randn(count, 21, 3, generator=generator)
            moves[:, 0] = 0
            return moves

        self.register_buffer("rest", torch.from_numpy(rest_joints()), persistent=False)
        self.register_buffer("shape", basis(10), persistent=False)
        self.register_buffer("pose", basis(pose_components), persistent=False)
        poses = torch.randn(50, pose_components, generator=generator)
        self.register_buffer("poses", poses, persistent=False)
        # Turned a little: DEODR does not smooth outlines that run exactly along an axis.
        corners = torch.tensor(
            [[1.02, 0.98, 1], [0.98, -1.02, -1], [-0.98, 1.02, -1], [-1.02, -0.98, 1]]
        )
        self.register_buffer("corners", corners * BLOB, persistent=False)
        faces = torch.tensor([[0, 1, 2], [0, 2, 3], [0, 3, 1], [1, 3, 2]])
        faces = (faces + 4 * torch.arange(21)[:, None, None]).flatten(0, 1)
        self.register_buffer("faces", faces, persistent=False)

    def forward(self, betas, global_orient, hand_pose):
        joints = (
            self.rest
            + torch.einsum("bi,ijk->bjk", betas, self.shape)
            + torch.einsum("bi,ijk->bjk", hand_pose, self.pose)
        )
        if global_orient.ndim == 3:
            joints = joints @ global_orient.transpose(1, 2)
        vertices = (joints[:, :, None] + self.corners).flatten(1, 2)
        return HandMesh(vertices, joints)

    def skeleton(self, betas, global_orient, hand_pose):
        return self(betas, global_orient, hand_pose).joints


def draw_frames(count, seed=0, size=(120, 160), side="right"):
    """`Frame`s of stick hands under a pinhole camera, masks included."""
    rng = np.random.default_rng(seed)
    frames = []
    for i in range(count):
        angle = rng.uniform(-0.8, 0.8)
        turn = np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0],
                         [0, 0, 1]])  # fmt: skip
        joints = rest_joints() @ turn.T + [rng.uniform(-0.05, 0.05), 0.06, rng.uniform(0.5, 0.7)]
        if side == "left":
            joints[:, 0] *= -1
        flat = joints @ K.T
        flat = flat[:, :2] / flat[:, 2:]
        image = rng.integers(0, 60, (*size, 3), np.uint8)
        mask = np.zeros(size, np.uint8)
        for a, b in BONES:
            ends = [tuple(int(round(v)) for v in flat[j]) for j in (a, b)]
            cv2.line(image, *ends, (220, 160, 120), 5)
        for (x, y), z in zip(flat, joints[:, 2], strict=True):  # as `TinyHand`'s mesh looks
            half = BLOB * K[0, 0] / z
            corners = [(int(round(x + s * half)), int(round(y + s * half))) for s in (-1, 1)]
            cv2.rectangle(mask, *corners, 1, cv2.FILLED)
        frames.append(
            Frame(image, side, joints.astype(np.float32), flat.astype(np.float32), K,
                  mask.astype(bool), f"drawn/{i:05d}")
        )  # fmt: skip
    return frames


def tiny_settings(model=None, **train):
    """Settings of a network that trains in moments, with changes of `model` and `train`."""
    return from_dict(
        {
            "profile": "tiny",
            "model": {"image_size": 32, "channels": 8, "maps": 21, "stacks": 1, "depth": 2,
                      "hidden": 32, "iterations": 2, "rotation": "6d", **(model or {})},
            "losses": {"silhouette_size": 16},
            "train": {"steps": 12, "batch_size": 4, "validate_every": 4, **train},
        }
    )  # fmt: skip
