"""Random hands, and how well what two renderers draw of them agrees."""

from typing import NamedTuple

import numpy as np
import torch
from smplx.lbs import batch_rodrigues

from hamr_lib.hand.anatomy import angles_to_axis_angle
from hamr_lib.hand.layer import load_hand
from hamr_lib.hand.sampling import sample_poses
from hamr_lib.render.silhouette import silhouette

FILL = 0.85  # how far hands reach from the middle of the image to its border


class Hands(NamedTuple):
    """Random hands in the middle of the image, and what they are made of."""

    hand: torch.nn.Module
    betas: torch.Tensor  # (B, 10)
    global_orient: torch.Tensor  # (B, 3)
    hand_pose: torch.Tensor  # (B, 45)
    camera: torch.Tensor  # (B, 3)

    def vertices(self, hand_pose: torch.Tensor | None = None) -> torch.Tensor:
        """(B, V, 3) metres, with another pose if one is given."""
        pose = self.hand_pose if hand_pose is None else hand_pose
        return self.hand(self.betas, self.global_orient, pose).vertices


def random_hands(count: int, seed: int = 0) -> Hands:
    """Draw anatomical poses of the open hand, random shapes, seen from anywhere."""
    rng = np.random.default_rng(seed)
    hand = load_hand("open", pose_components=45)
    poses = torch.as_tensor(angles_to_axis_angle(sample_poses(rng, count)), dtype=torch.float32)
    turns = rng.normal(size=(count, 3))
    turns *= rng.uniform(0, np.pi, (count, 1)) / np.linalg.norm(turns, axis=1, keepdims=True)
    hands = Hands(
        hand,
        torch.as_tensor(rng.normal(size=(count, 10)), dtype=torch.float32),
        torch.as_tensor(turns, dtype=torch.float32),
        poses.reshape(count, 45) - hand.hand_mean,
        torch.zeros(count, 3),
    )
    with torch.no_grad():
        xy = hands.vertices()[..., :2]
    low, high = xy.amin(1), xy.amax(1)
    scale = 2 * FILL / (high - low).amax(1, keepdim=True)
    return hands._replace(camera=torch.cat([scale, -scale * (low + high) / 2], dim=1))


def overlap(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """IoU of the hard masks of two coverages (B, size, size): (B,)."""
    a, b = a > 0.5, b > 0.5
    return (a & b).sum((1, 2)) / (a | b).sum((1, 2))


def gradient_agreement(hands: Hands, size: int = 64) -> dict[str, torch.Tensor]:
    """Cosine between the two backends' gradients of the L1 loss against another hand's mask.

    Returns:
        dict of (B,) cosines: "camera" and "pose" (the 45 numbers).
    """
    faces = hands.hand.faces
    with torch.no_grad():
        other = hands.vertices(hands.hand_pose + 0.2 * torch.sin(torch.arange(45.0)))
        mask = silhouette(other, faces, hands.camera * 0.95 + 0.05, size, "deodr")
    gradients = {}
    for backend in ("deodr", "pytorch3d"):
        camera, pose = (t.clone().requires_grad_() for t in (hands.camera, hands.hand_pose))
        drawn = silhouette(hands.vertices(pose), faces, camera, size, backend)
        (drawn - mask).abs().mean((1, 2)).sum().backward()
        gradients[backend] = camera.grad, pose.grad
    return {
        name: torch.nn.functional.cosine_similarity(a, b)
        for name, a, b in zip(("camera", "pose"), *gradients.values(), strict=True)
    }


def fit_from_random_starts(
    vertices: torch.Tensor,
    faces: torch.Tensor,
    camera: torch.Tensor,
    backend: str,
    size: int = 32,
    steps: int = 150,
    rate: float = 0.05,
    seed: int = 0,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Fit scale, translation and rotation to masks, from starts that are far off.

    A start is up to a quarter too large or small (in the logarithm), 0.2 crop units off either way
    and 15 degrees turned about a random axis in space. Adam minimises the L1 loss at a low
    resolution, where a pixel of the outline is a larger part of the hand.

    Args:
        vertices: (B, V, 3) metres.
        faces: (F, 3).
        camera: (B, 3); fitted are hands a quarter smaller than it shows them.
        backend, size: as in `silhouette`.
        steps: of Adam, whose rate falls from `rate` to nearly nothing.
        seed: of the starts.

    Returns:
        two (B,) IoU of hard masks at 128 pixels, by DEODR: before and after.
    """
    count = len(vertices)
    generator = torch.Generator().manual_seed(seed)

    def uniform(*shape):
        return torch.rand(*shape, generator=generator) * 2 - 1

    vertices = vertices - (vertices.amin(1, keepdim=True) + vertices.amax(1, keepdim=True)) / 2
    camera = torch.cat([camera[:, :1] * 0.75, torch.zeros(count, 2)], dim=1)
    axis = torch.nn.functional.normalize(torch.randn(count, 3, generator=generator), dim=1)
    turn = axis * torch.rand(count, 1, generator=generator) * np.radians(15)
    amounts = torch.cat([0.25 * uniform(count, 1), 0.2 * uniform(count, 2), turn], dim=1)
    amounts.requires_grad_()

    def draw(amounts, size, backend):
        turned = vertices @ batch_rodrigues(amounts[:, 3:]).transpose(1, 2)
        moved = torch.cat([camera[:, :1] * amounts[:, :1].exp(), amounts[:, 1:3]], dim=1)
        return silhouette(turned, faces, moved, size, backend)

    with torch.no_grad():
        rest = torch.zeros_like(amounts)
        mask, fine = draw(rest, size, backend), draw(rest, 128, "deodr")
        before = overlap(draw(amounts, 128, "deodr"), fine)
    optimiser = torch.optim.Adam([amounts], lr=rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps, rate / 50)
    for _ in range(steps):
        optimiser.zero_grad()
        (draw(amounts, size, backend) - mask).abs().mean((1, 2)).sum().backward()
        optimiser.step()
        schedule.step()
    with torch.no_grad():
        return before, overlap(draw(amounts, 128, "deodr"), fine)
