"""A recovered hand, laid onto its heat maps: a few steps of Gauss and Newton from an estimate.

The maps know best where joints are in the picture; the fully connected layers know what hands are
like, and how deep. With d the change of camera, rotation, pose and shape from the network's
estimate, x_j(d) the joints it projects (Eq. 4-5) and p_j where joint j's map has its peak, the hand
that both find likely is the least of

    E(d) = sum_j |x_j(d) - p_j|^2 / v_j + sum_i d_i^2 / s_i^2,

v_j being how widely the map of joint j is spread, s_i how far off we think the layers may be. The
paper has nothing of this, so the evaluation does without; `recover` ends with it.
"""

import roma
import torch

from hamr_lib.joints import NUM_JOINTS
from hamr_lib.model.hamr import NUM_BETAS
from hamr_lib.model.heatmaps import cell_centres, heatmap_peaks

STEPS = 2  # a third changes nothing that one could see
# s_i: the log of the camera's scale and its offset (crop units), the rotation (radians), pose and
# shape (of the hand model). Half or twice each of them changes next to nothing.
CAMERA, TURN, POSE, SHAPE = 0.1, 0.15, 0.3, 0.3
LEAST = 0.05  # crop units off that even the sharpest map may be


def read_maps(heatmaps):
    """Where the joints' maps have their peaks, and how widely they are spread about these.

    Args:
        heatmaps: (B, M, h, h) logits, M >= 21.

    Returns:
        peaks (B, 21, 2) crop units and variances (B, 21) crop units squared, along one axis.
    """
    peaks = heatmap_peaks(heatmaps)
    maps = heatmaps[:, :NUM_JOINTS].float()
    share = maps.flatten(2).softmax(dim=-1).view_as(maps)
    axis = cell_centres(maps.shape[-1], -1.0, 1.0, maps)
    x, y = ((axis - peaks[..., None]) ** 2).unbind(2)  # (B, 21, h) each
    spread = (share.sum(2) * x).sum(-1) + (share.sum(3) * y).sum(-1)
    return peaks, spread / 2


def fit(network, estimate, points, variance):
    """The hands nearest to the estimates whose joints lie at points of the image.

    Args:
        network: `hamr.HAMR` with a mesh.
        estimate: `hamr.Estimate` (B, ...).
        points: (B, 21, 2) crop units; variance: (B, 21) as `read_maps` gives them.

    Returns:
        `hamr.Estimate` (B, ...).
    """
    like = estimate.camera
    poses = estimate.hand_pose.shape[1]
    sizes = (1, 2, 3, poses, NUM_BETAS)
    reach = [CAMERA, CAMERA, TURN, POSE, SHAPE]
    prior = torch.cat([like.new_full((n,), s**-2) for n, s in zip(sizes, reach, strict=True)])
    weight = (1 / (variance + LEAST**2)).repeat_interleave(2, dim=1)  # (B, 42)

    def changed(change, mesh=False):
        zoom, shift, turn, bend, shape = change.split(sizes, dim=1)
        camera = torch.cat([like[:, :1] * zoom.exp(), like[:, 1:] + shift], dim=1)
        rotation = roma.rotvec_to_rotmat(turn) @ estimate.rotation
        return network.compose(
            camera, rotation, estimate.hand_pose + bend, estimate.betas + shape, mesh
        )

    def flat(change):
        return changed(change).joints_2d.flatten(1)

    ways = torch.eye(sum(sizes)).to(like)[:, None].expand(-1, len(like), -1)

    def slopes_at(change):
        along = torch.func.vmap(lambda way: torch.func.jvp(flat, (change,), (way,))[1])
        return along(ways).permute(1, 2, 0)  # (B, 42, N)

    change = like.new_zeros(len(like), sum(sizes))
    for _ in range(STEPS):
        slopes = slopes_at(change)
        left = weight * (points.flatten(1) - flat(change))
        downhill = (left[:, None] @ slopes)[:, 0] - prior * change
        curvature = slopes.mT @ (weight[..., None] * slopes) + prior.diag()
        change = change + torch.linalg.solve(curvature, downhill)
    return changed(change, mesh=True)
