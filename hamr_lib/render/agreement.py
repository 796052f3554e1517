"""Random hands, and how well silhouettes of them agree and can be fitted."""

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
    scale = 2 * FILL / (high - low).amax(1, keepdim=True)
    return hands._replace(camera=torch.cat([scale, -scale * (low + high) / 2], dim=1))


def overlap(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Return the IoU (B,) of the hard masks of two coverages (B, size, size)."""
    a, b = a > 0.5, b > 0.5
    return (a & b).sum((1, 2)) / (a | b).sum((1, 2))


def fit_from_random_starts(
    vertices: torch.Tensor, faces: torch.Tensor, camera: torch.Tensor, backend: str
) -> tuple[torch.Tensor, torch.Tensor]:
    """Fit scale, translation and rotation to masks, from starts that are far off.

    A start is up to a quarter too large or small (in the logarithm), 0.2 crop units off either way
    and 15 degrees turned about a random axis in space. Adam minimises the L1 loss at a low
    resolution, where a pixel of the outline is a larger part of the hand.

    Args:
        vertices: (B, V, 3) metres. faces: (F, 3).
        camera: (B, 3); fitted are hands a quarter smaller than it shows them.
        backend: as in `silhouette`.

    Returns:
        two (B,) IoU of hard masks at 128 pixels, by DEODR: before and after.
    """
    count, steps, rate = len(vertices), 150, 0.05
    generator = torch.Generator().manual_seed(0)

    def uniform(columns):
        return torch.rand(count, columns, generator=generator) * 2 - 1

    vertices = vertices - (vertices.amin(1, keepdim=True) + vertices.amax(1, keepdim=True)) / 2
    camera = torch.cat([camera[:, :1] * 0.75, torch.zeros(count, 2)], dim=1)
    axis = torch.nn.functional.normalize(torch.randn(count, 3, generator=generator), dim=1)
    turn = axis * torch.rand(count, 1, generator=generator) * np.radians(15)
    amounts = torch.cat([0.25 * uniform(1), 0.2 * uniform(2), turn], dim=1).requires_grad_()

    def draw(amounts, size=32, backend=backend):
        turned = vertices @ batch_rodrigues(amounts[:, 3:]).transpose(1, 2)
        moved = torch.cat([camera[:, :1] * amounts[:, :1].exp(), amounts[:, 1:3]], dim=1)
        return silhouette(turned, faces, moved, size, backend)

    def match():
        with torch.no_grad():
            return overlap(draw(amounts, 128, "deodr"), draw(0 * amounts, 128, "deodr"))

    mask, before = draw(0 * amounts).detach(), match()
    optimiser = torch.optim.Adam([amounts], lr=rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps, rate / 50)
    for _ in range(steps):
        optimiser.zero_grad()
        (draw(amounts) - mask).abs().mean((1, 2)).sum().backward()
        optimiser.step()
        schedule.step()
    return before, match()


def soft_silhouette(vertices, faces, camera, size: int) -> torch.Tensor:
    """Draw `render.silhouette` by PyTorch3D's own shader.

    It rasterises once, at 10 faces a pixel; our backend "pytorch3d" rasterises twice.
    """
    from pytorch3d import renderer, structures

    xy = -(camera[:, None, :1] * vertices[..., :2] + camera[:, None, 1:])
    z = vertices[..., 2:] - vertices[..., 2:].amin() + 1
    meshes = structures.Meshes(torch.cat([xy, z], dim=-1), faces.expand(len(xy), -1, -1))
    blur = float(np.log(1 / 1e-4 - 1) * renderer.BlendParams().sigma)  # as in its tutorials
    settings = renderer.RasterizationSettings(size, blur, faces_per_pixel=10)
    rasterizer = renderer.MeshRasterizer(renderer.FoVOrthographicCameras(), settings)
    return renderer.MeshRenderer(rasterizer, renderer.SoftSilhouetteShader())(meshes)[..., 3]
