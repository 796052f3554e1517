"""Fit the hand model to what is seen of a hand: heat maps, landmarks, or both.

A change d of the network's estimate moves the camera (log scale and offset), the wrist's rotation
(to exp(w) R), the pose and the shape. Let x_k(d) be the projected joints (Eq. 4-5), p_k where the
k-th is seen, X_k(d) the centred joints, W_k where they are in space, and m a free scale. The hand
is the least of

    E(d, m) = sum_k |x_k(d) - p_k|^2 / v_k + sum_k |X_k(d) - m W_k|^2 / sigma^2
              + |pose - mean|^2 / spread^2 + |betas|^2 + |d|^2 / near^2,

found by damped Gauss-Newton (Levenberg-Marquardt) steps. Mean and spread are those of the poses
that gave the hand's components; near is made of CAMERA, TURN, POSE and SHAPE.

p_k is the peak of a heat map, MediaPipe's landmark, or their weighted mean, which has the same
minimum as both. A landmark at a distance r from the peak has its weight divided by
1 + r^2 / (the sum of both variances), as in a Cauchy loss. W_k are likewise the network's joints,
MediaPipe's 3-D landmarks, or their weighted mean. The paper has no such fit: `recover` does it, and
the study's own tables are of the network alone.
"""

from typing import NamedTuple

import numpy as np
import roma
import torch
from torch import Tensor

from hamr_lib.hand.layer import Hand
from hamr_lib.joints import FROM_MANO, MANO_PARENTS, NUM_JOINTS
from hamr_lib.model.hamr import HAMR, NUM_BETAS, Estimate, Output
from hamr_lib.model.heatmaps import cell_centres, heatmap_peaks

STEPS = 10
DAMPING = 1e-2  # of the first step; a fraction of the curvature
SIGMA_MAP = 0.05  # crop units that even the sharpest heat map may be off
SIGMA_2D = 0.03  # of the hand's box that a landmark may be off
SIGMA_3D, SIGMA_OWN = 0.012, 0.02  # metres that a landmark, and a joint of the network, may be off
# How far d may be from zero: log scale and offset (crop units), rotation (radians); pose and shape
# in standard deviations; log m.
CAMERA, TURN, POSE, SHAPE, RATIO = 0.3, 0.5, 0.5, 1.0, 100.0
AROUND = 0.15  # crop units about a joint in which its map speaks for it
TURNS = slice(3, 6)  # where w is in d

ORDER = torch.tensor(FROM_MANO)
BELOW = torch.eye(16)  # 1 where the second bone is the first or hangs on it
for _bone in range(15, 0, -1):
    BELOW[MANO_PARENTS[_bone]] += BELOW[_bone]


class Seen(NamedTuple):
    """What is seen of a right hand, in the crop that the network saw."""

    points: Tensor  # (1, 21, 2) crop units
    weights: Tensor  # (1, 21) one over the variance along an axis
    world: Tensor  # (1, 21, 3) metres, camera frame, about the hand's centre
    world_weight: float  # one over the variance


def read_maps(heatmaps: Tensor) -> tuple[Tensor, Tensor]:
    """Find the peaks of the joints' maps, and how widely the maps spread about them.

    Args:
        heatmaps: (B, M, h, h) logits, M >= 21.

    Returns:
        peaks (B, 21, 2) crop units, and variances (B, 21) crop units squared, along one axis.
    """
    peaks = heatmap_peaks(heatmaps)
    square, probability = _distances(heatmaps, peaks)
    return peaks, (probability * square).sum((2, 3)) / 2


def confidence(heatmaps: Tensor, joints_2d: Tensor) -> Tensor:
    """Measure the fraction (B, 21) of each joint's map within `AROUND` of its (B, 21, 2) place."""
    square, probability = _distances(heatmaps, joints_2d)
    return (probability * (square < AROUND**2)).sum((2, 3))


def _distances(heatmaps, places):
    """Squared distances of a map's cells from places, and its softmax: (B, 21, h, h) both."""
    maps = heatmaps[:, :NUM_JOINTS].float()
    axis = cell_centres(maps.shape[-1], -1.0, 1.0, maps)
    x, y = ((axis - places[..., None]) ** 2).unbind(2)  # (B, 21, h)
    return x[:, :, None, :] + y[..., None], maps.flatten(2).softmax(-1).view_as(maps)


def joints_and_slopes(hand: Hand, betas: Tensor, rotation: Tensor, hand_pose: Tensor) -> tuple:
    """Compute the joints of a hand layer and their derivatives, without MANO's pose blend shapes.

    Args:
        betas (B, 10), rotation (B, 3, 3), hand_pose (B, P): of the hand.

    Returns:
        joints (B, 21, 3) metres, wrist at the origin, and slopes (B, 21, 3, 3 + P + 10): by a
        rotation vector applied after `rotation`, by pose and by shape.
    """
    layer, rest = hand.layer, hand.rest
    means, shares, batch = hand.means[: NUM_BETAS + 1], hand.shares, len(betas)
    if hand.joints == "kinematic":  # the joints about which bones turn
        one = torch.eye(16).to(means)
        means = torch.cat([one[..., None] * rest[:, None], means[:, 16:]], dim=1)
        shares = torch.cat([one, shares[16:]])
    means, shares, below = means[:, ORDER], shares[ORDER], BELOW.to(means)

    pose = hand_pose @ layer.hand_components if layer.use_pca else hand_pose
    pose = (pose + layer.pose_mean[3:]).view(-1, 3)
    local = roma.rotvec_to_rotmat(pose).view(batch, 15, 3, 3)
    turns = rotation[:, None].repeat(1, 16, 1, 1)  # (B, 16, 3, 3)
    heads = rest[:, :1].expand(batch, -1, 16, -1).clone()  # (B, 11, 16, 3)
    for k in range(3):  # a bone of each finger: 1, 4, ..., whose parent is 0, then 2, 5, ...
        bones, above = slice(k + 1, None, 3), slice(k, 13 + k, 3) if k else slice(0, 1)
        steps = rest[:, bones] - rest[:, above]
        heads[:, :, bones] = torch.einsum("bjrc,njc->bnjr", turns[:, above], steps)
        heads[:, :, bones] += heads[:, :, above]
        turns[:, bones] = turns[:, above] @ local[:, k::3]
    # By template and shapes: each joint's part that follows each bone, about that bone's head.
    about = torch.einsum("bjrc,nkjc->bnkjr", turns, means - shares[..., None] * rest[:, None])
    total = about.sum(3) + torch.einsum("kj,bnjr->bnkr", shares, heads)
    total = total - total[:, :, :1]
    shape = torch.cat([betas.new_ones(batch, 1), betas], dim=1)
    joints, about, heads = (torch.einsum("bn,bn...->b...", shape, x) for x in (total, about, heads))

    # Where those parts are, seen from each bone above them.
    lever = torch.einsum("ij,bkjr->bkir", below, shares[..., None] * heads[:, None] + about)
    lever = lever - (shares @ below.T)[..., None] * heads[:, None]
    lever = lever - lever[:, :1]
    # A turn w of a bone moves them by w x lever; w = (its parent's turn) J(pose) d pose.
    axes = turns[:, MANO_PARENTS[1:]] @ left_jacobian(pose).view(batch, 15, 3, 3)
    bends = torch.linalg.cross(axes.mT[:, None], lever[:, :, 1:, None]).flatten(2, 3).mT
    if layer.use_pca:
        bends = bends @ layer.hand_components.T
    return joints, torch.cat([_cross_matrix(joints), bends, total[:, 1:].permute(0, 2, 3, 1)], -1)


def _cross_matrix(points):
    """The matrices (..., 3, 3) that take w to w x points (..., 3)."""
    axes = torch.eye(3).to(points).expand(*points.shape, 3)
    return torch.linalg.cross(axes, points[..., None, :]).mT


def left_jacobian(rotvec: Tensor) -> Tensor:
    """Compute J (..., 3, 3) of SO(3): exp(rotvec + d) = exp(J d) exp(rotvec) for small d."""
    angle = rotvec.norm(dim=-1)[..., None, None].clamp_min(1e-4)
    skew = _cross_matrix(rotvec).mT
    first, second = (1 - angle.cos()) / angle**2, (angle - angle.sin()) / angle**3
    return torch.eye(3).to(rotvec) + first * skew + second * skew @ skew


def lay(network: HAMR, output: Output, evidence: str, landmarks=None, world=None) -> Estimate:
    """Fit one hand to its evidence.

    Args:
        network: with a mesh.
        output: (1, ...) of its crop.
        evidence: "network" (the heat maps), "landmarks" or "both".
        landmarks: array (21, 2), crop units; None with "network".
        world: array (21, 3), metres; None where they are no evidence.

    Returns:
        `Estimate` (1, ...).
    """
    start = output.estimates[-1]
    starts, joints, joint_weight = [start], centred(start.joints_3d), SIGMA_OWN**-2
    points, weights = torch.zeros_like(start.joints_2d), start.camera.new_zeros(1, NUM_JOINTS)
    if evidence != "landmarks":
        points, variance = read_maps(output.heatmaps[-1])
        weights = 1 / (variance + SIGMA_MAP**2)
    if evidence != "network":
        flat = torch.as_tensor(landmarks).to(start.camera)[None]
        variance = max(SIGMA_2D * np.ptp(landmarks, 0).max(), 1e-4) ** 2
        trust = torch.ones_like(weights)
        if evidence == "both":
            trust = 1 / (1 + (flat - points).square().sum(2) / (variance + 1 / weights))
        added, weights = trust / variance, weights + trust / variance
        points = points + (added / weights)[..., None] * (flat - points)
        if world is not None:
            solid = torch.as_tensor(world).to(start.camera)[None]
            nearby = aligned(network, flat, solid)
            if evidence == "both":
                starts.append(nearby)
            else:
                starts, joint_weight = [nearby], 0.0
            # MediaPipe does not know the hand's size.
            solid = centred(solid) * joints.norm() / centred(solid).norm()
            added = trust.mean().item() / SIGMA_3D**2
            joint_weight += added
            joints = joints + added / joint_weight * (solid - joints)
    seen = Seen(points, weights, joints, joint_weight)
    fitted, energy = fit(network, Estimate(*map(torch.cat, zip(*starts, strict=True))), seen)
    best = energy.argmin()
    return Estimate(*(part[best : best + 1] for part in fitted))


def centred(points: Tensor) -> Tensor:
    """Subtract the mean of points (B, N, ...) from each."""
    return points - points.mean(1, keepdim=True)


def aligned(network: HAMR, landmarks: Tensor, world: Tensor) -> Estimate:
    """Turn the mean pose and shape as landmarks lie: (1, 21, 2) crop units, (1, 21, 3) metres."""
    pose = network.hand.poses.to(world).mean(0, keepdim=True)
    betas, upright = world.new_zeros(1, NUM_BETAS), torch.eye(3).to(world)[None]
    joints, _ = joints_and_slopes(network.hand, betas, upright, pose)
    rigid = [0, *range(1, NUM_JOINTS, 4)]  # the wrist and the fingers' bases
    a, b = (x[:, rigid] - x[:, rigid].mean(1, keepdim=True) for x in (joints, world))
    rotation = roma.special_procrustes(b.mT @ a)
    flat = (joints @ rotation.mT)[..., :2]
    middle, centre = flat.mean(1, keepdim=True), landmarks.mean(1, keepdim=True)
    scale = ((landmarks - centre).norm() / (flat - middle).norm()).view(1, 1)
    camera = torch.cat([scale, centre[:, 0] - scale * middle[:, 0]], 1)
    return network.compose(camera, rotation, pose, betas)


def fit(network: HAMR, starts: Estimate, seen: Seen) -> tuple[Estimate, Tensor]:
    """Fit a hand to what is seen of it, from several starts.

    Args:
        network: with a mesh.
        starts: (B, ...), where the steps begin; E holds the change d from there small.

    Returns:
        `Estimate` (B, ...) with meshes, and E (B,) without its last term, |d|^2 / near^2.
    """
    change = starts.camera.new_zeros(len(starts.camera), 7 + NUM_BETAS + starts.hand_pose.shape[1])
    damping = torch.full_like(change[:, :1], DAMPING)
    poses = network.hand.poses.to(change)
    spread = torch.cat([poses.std(0), torch.ones_like(starts.betas[0])])
    near = [change.new_tensor([CAMERA] * 3 + [TURN] * 3), POSE * spread[:-NUM_BETAS],
            SHAPE * spread[-NUM_BETAS:], change.new_tensor([RATIO])]  # fmt: skip
    fixed = network.hand, starts, seen, poses.mean(0), spread, torch.cat(near)
    off, slopes = residuals(*fixed, change)
    for _ in range(STEPS):
        curvature, slope = slopes.mT @ slopes, (slopes.mT @ off[..., None])[..., 0]
        damped = curvature + (damping * curvature.diagonal(dim1=1, dim2=2)).diag_embed()
        step = -torch.linalg.solve(damped, slope)
        tried = change + step
        tried[:, TURNS] = roma.rotvec_composition([step[:, TURNS], change[:, TURNS]])
        new_off, new_slopes = residuals(*fixed, tried)
        better = (new_off.square().sum(1) < off.square().sum(1))[:, None]
        change, off = torch.where(better, tried, change), torch.where(better, new_off, off)
        slopes = torch.where(better[..., None], new_slopes, slopes)
        damping = torch.where(better, damping / 3, damping * 5)
    energy = off[:, : -change.shape[1]].square().sum(1)
    return network.compose(*moved(starts, change)[:4]), energy


def moved(starts: Estimate, change: Tensor) -> tuple[Tensor, ...]:
    """Change estimates by d (B, 7 + P + 10): camera, rotation, pose, betas, and m (B, 1)."""
    sizes = [1, 2, 3, change.shape[1] - 7 - NUM_BETAS, NUM_BETAS, 1]
    scale, offset, turn, bend, shape, ratio = change.split(sizes, dim=1)
    camera = torch.cat([starts.camera[:, :1] * scale.exp(), starts.camera[:, 1:] + offset], 1)
    rotation = roma.rotvec_to_rotmat(turn) @ starts.rotation
    return camera, rotation, starts.hand_pose + bend, starts.betas + shape, ratio.exp()


def residuals(
    hand: Hand, starts: Estimate, seen: Seen, mean: Tensor, spread: Tensor, near: Tensor,
    change: Tensor,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Compute what E squares and sums, (B, M), and its derivatives (B, M, N) by d and log m.

    The last N are those that keep the change (B, N) small. `mean` (P,) is that of the poses,
    `spread` (P + 10,) that of pose and shape, and `near` (N,) that of the change.
    """
    camera, rotation, pose, betas, ratio = moved(starts, change)
    joints, bent = joints_and_slopes(hand, betas, rotation, pose)
    batch, count = change.shape
    scaled = camera[:, None, :1] * joints[..., :2]
    solid, bent_solid = centred(joints), centred(bent)
    world = ratio[..., None] * seen.world
    weight_2d, weight_3d = seen.weights.sqrt()[..., None], seen.world_weight**0.5
    off = [
        weight_2d * (scaled + camera[:, None, 1:] - seen.points),
        weight_3d * (solid - world),
        torch.cat([pose - mean, betas], 1) / spread,
        change / near,
    ]
    flat, deep, likely, small = slopes = [change.new_zeros(*x.shape, count) for x in off]
    flat[..., 0], flat[..., 1:3] = scaled, torch.eye(2).to(change)
    flat[..., 3:-1] = camera[:, None, :1, None] * bent[:, :, :2]
    flat *= weight_2d[..., None]
    deep[..., 3:-1], deep[..., -1] = weight_3d * bent_solid, -weight_3d * world
    likely[..., 6:-1], small[:] = (1 / spread).diag(), (1 / near).diag()
    off = torch.cat([part.flatten(1) for part in off], 1)
    return off, torch.cat([part.view(batch, -1, count) for part in slopes], 1)
