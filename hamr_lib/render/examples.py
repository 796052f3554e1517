"""Random hands, to draw and to measure with."""

from typing import NamedTuple

import numpy as np
import torch

from hamr_lib.hand.anatomy import angles_to_axis_angle
from hamr_lib.hand.layer import load_hand
from hamr_lib.hand.sampling import sample_poses


class Hands(NamedTuple):
    """Hands in the middle of the image, and what they are made of."""

    hand: torch.nn.Module
    betas: torch.Tensor  # (B, 10)
    global_orient: torch.Tensor  # (B, 3)
    hand_pose: torch.Tensor  # (B, 45)
    camera: torch.Tensor  # (B, 3)

    def vertices(self, hand_pose: torch.Tensor | None = None) -> torch.Tensor:
        """Return (B, V, 3) metres, with another pose (B, 45) if one is given."""
        pose = self.hand_pose if hand_pose is None else hand_pose
        return self.hand(self.betas, self.global_orient, pose).vertices


def random_hands(count: int, seed: int = 0) -> Hands:
    """Draw anatomical poses of the open hand, random shapes, seen from anywhere."""
    rng = np.random.default_rng(seed)
    hand = load_hand("open", pose_components=45)
    poses = angles_to_axis_angle(sample_poses(rng, count)).reshape(count, 45)
    turns = rng.normal(size=(count, 3))
    turns *= rng.uniform(0, np.pi, (count, 1)) / np.linalg.norm(turns, axis=1, keepdims=True)
    betas = rng.normal(size=(count, 10))
    betas, turns, poses = (torch.as_tensor(x, dtype=torch.float32) for x in (betas, turns, poses))
    hands = Hands(hand, betas, turns, poses - hand.hand_mean, torch.zeros(count, 3))
    with torch.no_grad():
        xy = hands.vertices()[..., :2]
    low, high = xy.amin(1), xy.amax(1)
    scale = 2 * 0.85 / (high - low).amax(1, keepdim=True)  # 0.85 of the way to the border
    return hands._replace(camera=torch.cat([scale, -scale * (low + high) / 2], dim=1))
