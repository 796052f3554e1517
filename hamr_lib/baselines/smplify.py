"""SMPLify: the hand model is fitted to keypoints that a network detects in the image.

The energy of a hand is

    E = sum_j c_j rho(x_j - x_j(camera, rotation, pose, shape))
        + a (|pose|^2 + |shape|^2) + g L_geo(joints)

with rho Geman and McClure's, which a misplaced keypoint hardly pulls, c_j the confidence
of a joint, |shape|^2 a mean, and L_geo the paper's Eq. 6-7.
"""

import math
from dataclasses import replace

import roma
import torch
import torch.nn.functional as F

from hamr_lib.baselines.common import TrainedMesh
from hamr_lib.baselines.zimmermann import score_maps
from hamr_lib.evaluation.predict import output_answer
from hamr_lib.joints import NUM_JOINTS
from hamr_lib.losses import difference, geometric_loss, heatmaps_loss
from hamr_lib.model.hamr import HAMR, START_SCALE, Output
from hamr_lib.model.heatmaps import heatmap_peaks

VIEWS = 200  # directions from which the mean hand is compared with the keypoints
STARTS = 2  # views from which a fit starts; after the first stage the better goes on
APART = 0.5  # least cosine that a second start's view may not exceed with the first
STAGES = ((1.0, 30), (0.1, 30), (0.02, 40))  # weight a of the priors, and steps of Adam
GEOMETRIC = 0.2  # weight g
RATE = 0.05
ROBUST = 0.2  # crop units, from where on a joint counts as misplaced


class Joints2D(HAMR):
    """HAMR's pose module, which is trained, and its `decode`, which has nothing to train."""

    def __init__(self, settings, hand, kind):
        super().__init__(settings, hand)
        self.kind, self.start = kind, self.regressor.start
        del self.regressor

    def forward(self, image):
        """Each stack's maps of the joints."""
        return self.pose_module(image)[1]


def score(maps, kind):
    """The confidence of each joint, (B, 21) in [0, 1]: the fraction of its map near its peak."""
    maps = score_maps(maps[:, :NUM_JOINTS].float(), kind).clamp_min(0)
    near = F.avg_pool2d(maps, 5, 1, 2).amax(dim=(2, 3)) * 25
    return (near / maps.sum(dim=(2, 3)).clamp_min(1e-6)).clamp(0, 1)


def directions(count, like):
    """Rotations (count, 3, 3) whose third rows are spread evenly over the sphere."""
    index = torch.arange(count, device=like.device, dtype=like.dtype) + 0.5
    height, turn = 1 - 2 * index / count, index * math.pi * (1 + math.sqrt(5))
    ring = (1 - height.square()).sqrt()
    towards = torch.stack([ring * turn.cos(), ring * turn.sin(), height], dim=-1)
    upright = torch.tensor([0.0, 0.0, 1.0], device=like.device).expand(count, 3)  # no pole is hit
    across = F.normalize(torch.linalg.cross(upright, towards), dim=-1)
    return torch.stack([across, torch.linalg.cross(towards, across), towards], dim=1)


def first_views(rest, points, weight, count=VIEWS):
    """The rotations and cameras under which the mean hand looks most like the points.

    Every direction of view has, in closed form, its best turn in the plane, scale and shift: with
    the joints as complex numbers p and q about their means, scale and turn are the number
    sum(w conj(p) q) / sum(w |p|^2). What is left over ranks the views.

    Of rest (21, 3) metres, points (B, 21, 2) crop units and weights (B, 21) they are rotations
    (B, STARTS, 3, 3) and cameras (B, STARTS, 3), the best first.
    """
    rotations = directions(count, rest)
    weight = weight / weight.sum(dim=1, keepdim=True)  # (B, 21)
    seen = torch.einsum("kij,nj->kni", rotations[:, :2], rest)  # (count, 21, 2)
    middle = torch.einsum("bn,kni->bki", weight, seen)  # (B, count, 2)
    aim = torch.einsum("bn,bni->bi", weight, points)[:, None]
    p = torch.view_as_complex((seen[None] - middle[:, :, None]).contiguous())
    q = torch.view_as_complex((points - aim).contiguous())[:, None]
    weight = weight[:, None]
    number = (weight * p.conj() * q).sum(dim=-1) / (weight * p.abs().square()).sum(dim=-1)
    left = (weight * (q - number[..., None] * p).abs().square()).sum(dim=-1)  # (B, count)
    best, towards = left.argmin(dim=1), rotations[:, 2]
    too_close = torch.einsum("bi,ki->bk", towards[best], towards) > APART
    second = left.masked_fill(too_close, math.inf).argmin(dim=1)
    chosen = torch.stack([best, second], dim=1)
    rows = torch.arange(len(points), device=rest.device)[:, None]
    number, middle = number[rows, chosen], middle[rows, chosen]
    # Joints that all coincide (maps that say nothing yet) tell neither turn nor scale.
    number = torch.where(number.abs() > 1e-3, number, torch.full_like(number, 1e-3))
    unit = number / number.abs()
    zero, one = torch.zeros_like(unit.real), torch.ones_like(unit.real)
    plane = [unit.real, -unit.imag, zero, unit.imag, unit.real, zero, zero, zero, one]
    plane = torch.stack(plane, dim=-1).unflatten(-1, (3, 3))
    shown = torch.view_as_real(number * torch.view_as_complex(middle.contiguous()))
    cameras = torch.cat([number.abs()[..., None], aim - shown], dim=-1)
    return plane @ rotations[chosen], cameras


def fit_hand(network, points, weight):
    """Fit the hand of a network's `decode` to points (B, 21, 2), crop units: a `hamr.Estimate`."""
    count, start = len(points), network.start
    rest = network.decode(start[None]).joints_3d[0]
    rotation, camera = (found.flatten(0, 1) for found in first_views(rest, points, weight))
    raw = start.repeat(count * STARTS, 1)
    # The inverse of decode's softplus.
    raw[:, 0] = torch.expm1(camera[:, 0] / START_SCALE).clamp_min(1e-3).log()
    raw[:, 1:3] = camera[:, 1:]
    if network.rotation == "6d":
        raw[:, 3:9] = rotation[..., :2].transpose(1, 2).flatten(1)
    else:
        raw[:, 3:6] = roma.rotmat_to_rotvec(rotation)
    both = [x.repeat_interleave(STARTS, dim=0) for x in (points, weight)]
    (prior, steps), *later = STAGES
    raw = descend(network, raw, *both, prior, steps)
    left = energy(network.decode(raw), *both, prior).unflatten(0, (count, STARTS))
    raw = raw.unflatten(0, (count, STARTS))[torch.arange(count), left.argmin(dim=1)]
    for prior, steps in later:
        raw = descend(network, raw, points, weight, prior, steps)
    return network.decode(raw)


@torch.enable_grad()
def descend(network, raw, points, weight, prior, steps):
    """Raw numbers (B, N) after some steps of Adam down the energy, each hand for itself."""
    raw = raw.detach().requires_grad_()
    optimizer = torch.optim.Adam([raw], lr=RATE)
    for _ in range(steps):
        optimizer.zero_grad()
        energy(network.decode(raw), points, weight, prior).sum().backward()
        optimizer.step()
    return raw.detach()


def energy(estimate, points, weight, prior):
    """E of each hand of an `Estimate`: (B,)."""
    square = (estimate.joints_2d - points).square().sum(dim=-1)
    robust = ROBUST**2 * square / (square + ROBUST**2)
    data = (weight * robust).sum(dim=1) / ROBUST**2
    likely = estimate.hand_pose.square().sum(dim=1) + estimate.betas.square().mean(dim=1)
    bent = torch.func.vmap(lambda joints: geometric_loss(joints[None]))(estimate.joints_3d)
    return data + prior * likely + GEOMETRIC * bent


class SMPLify(TrainedMesh):
    """A hand in place of SMPL; joints from the study's own 2-D pose module, trained alone with the
    heat-map loss, for DeepCut's; a Gaussian about the mean pose in place of a mixture fitted to
    recorded poses, and Eq. 6-7 in place of the terms for elbows and knees; nothing keeps fingers
    from running through one another; weak perspective in crop units, from the two views of the mean
    hand that fit best.
    """

    name = "smplify"
    reference = "Bogo et al., ECCV 2016"
    val_metric = "joints_2d_percent"

    def build(self, settings, hand, crops):
        return Joints2D(
            replace(settings.model, maps=NUM_JOINTS), hand, settings.losses.heatmap_kind
        )

    def parts(self, network, output, batch, settings):
        weights = settings.losses
        return {"heatmap": (weights.heatmap, heatmaps_loss(output, batch, weights))}

    def error(self, network, output, batch):
        """Mean distance of the maps' peaks from the labels, (B,) percent of the crop's side."""
        valid = batch["valid_2d"]
        apart = difference(heatmap_peaks(output[-1]), batch["joints_2d"], valid).norm(dim=-1)
        return 50 * apart.sum(dim=1) / valid.sum(dim=1)  # a crop is 2 units wide

    def estimate(self, images):
        heatmaps = self.network(images)
        points, weight = heatmap_peaks(heatmaps[-1]), score(heatmaps[-1], self.network.kind)
        output = Output(heatmaps, [fit_hand(self.network, points, weight)])
        return output_answer(output, self.faces, self.mask_size)
