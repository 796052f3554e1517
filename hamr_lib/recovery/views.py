"""A hand seen several ways, which is seen better: what a network says of turned and scaled crops.

A crop that is turned a little, drawn nearer or from further away shows the same hand, and the
network errs about each in another way. Turned back, the means of its numbers are those of one hand,
and so are the means of where its maps see the joints. The paper has nothing of this, so the
evaluation sees every crop once; `recover` looks at a photo's hand in all of these ways.
"""

import dataclasses

import roma
import torch

from hamr_lib.camera import rotate_in_plane
from hamr_lib.config import Augment
from hamr_lib.data.augment import warp
from hamr_lib.data.crops import stored_size
from hamr_lib.recovery.refine import LEAST, read_maps

# Enlargement, and degrees clockwise as seen, of the views beside the crop itself.
VIEWS = ((1.11, 12.0), (0.89, -12.0), (1.0, 35.0), (1.0, -35.0))


def views_size(image_size):
    """Pixels a side of a crop that holds all views of its middle `image_size` pixels."""
    return max(
        stored_size(
            image_size,
            dataclasses.replace(Augment(), scale=(scale, scale), rotation=abs(turn), shift=0.0),
        )
        for scale, turn in VIEWS
    )


def add_views(network, output, crop):
    """What a network says of a hand from all views.

    Args:
        network: `hamr.HAMR` with a mesh.
        output: `hamr.Output` of the crop itself, of one image.
        crop: (3, S, S) uint8, S = views_size(network.image_size), whose middle it was.

    Returns:
        In the crop's own frame: the `hamr.Estimate` (1, ...), and points (1, 21, 2) and variances
        (1, 21) of the maps, as `refine.fit` takes them.
    """
    scale, degrees = torch.tensor(VIEWS, device=crop.device).unbind(1)
    angle, count = torch.deg2rad(degrees), len(VIEWS)
    nothing = crop.new_zeros(count, 21, 3).float()
    batch = {
        "image": crop.expand(count, -1, -1, -1),
        "mask": crop[:1].expand(count, -1, -1),
        "joints_2d": nothing[..., :2],
        "joints_3d": nothing,
    }
    images = warp(batch, scale, angle, scale.new_zeros(count, 2), network.image_size)["image"]
    seen = network(images)
    turned, estimate = turned_back(seen.estimates[-1], scale, angle), output.estimates[-1]
    parts = [torch.cat([getattr(estimate, name), numbers]) for name, numbers in turned.items()]
    camera, rotation, hand_pose, betas = (part.mean(0, keepdim=True) for part in parts)
    # The mean of rotations is no rotation; the one nearest to it is what is meant.
    estimate = network.compose(camera, roma.special_procrustes(rotation), hand_pose, betas)

    points, variance = read_maps(torch.cat([output.heatmaps[-1], seen.heatmaps[-1]]))
    points = torch.cat([points[:1], points_back(points[1:], scale, angle)])
    variance = torch.cat([variance[:1], variance[1:] / scale[:, None] ** 2])
    share = 1 / (variance + LEAST**2)
    points = (share[..., None] * points).sum(0) / share.sum(0)[:, None]
    # Views of one picture err alike: many of them are no surer than one.
    return estimate, points[None], (1 / share.mean(0) - LEAST**2)[None]


def points_back(points, scale, angle):
    """Points (V, N, 2) of crops warped by `augment.warp` as they lie in the crops unwarped."""
    return rotate_in_plane(points, -angle) / scale[:, None, None]


def turned_back(estimate, scale, angle):
    """Estimates (V, ...) of crops warped by `augment.warp` as they are of the crops unwarped.

    Args:
        scale, angle: (V,) enlargement and radians, as `warp` takes them.

    Returns:
        dict of camera (V, 3), rotation (V, 3, 3), hand_pose and betas (V, ...).
    """
    axis = torch.zeros(len(angle), 3, device=angle.device)
    axis[:, 2] = -angle
    back = roma.rotvec_to_rotmat(axis)
    # A joint x of the crop lies at scale * turn * x of the warped one.
    offset = (back[:, :2, :2] @ estimate.camera[:, 1:, None])[..., 0]
    camera = torch.cat([estimate.camera[:, :1], offset], dim=1) / scale[:, None]
    return {
        "camera": camera,
        "rotation": back @ estimate.rotation,
        "hand_pose": estimate.hand_pose,
        "betas": estimate.betas,
    }
