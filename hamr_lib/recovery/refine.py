"""A hand model laid onto what is seen of a hand: heat maps, landmarks, or both.

The parameters are the camera (log scale and offset), the wrist's rotation R exp(w), the pose and
the shape. With x_k(d) the points that parameters d project to (Eq. 4), p_k where the k-th is seen,
X_l(d) and W_l the centred 3-D landmarks of the model and of MediaPipe, and m a free scale, the hand
is the least of

    E(d, m) = sum_k |x_k(d) - p_k|^2 / v_k + sum_l |X_l(d) - m W_l|^2 / SIGMA_3D^2
              + |d - d_0|^2_prior + |pose - mean|^2 / POSES^2 + |betas|^2 / BETAS^2,

found by damped Gauss-Newton (Levenberg-Marquardt) steps. d_0 is the network's estimate. The paper
has nothing of this: the evaluation sees the network alone, and `recover` ends with it.
"""

from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import roma
import torch
from torch import Tensor

from hamr_lib.joints import FROM_MANO, NAMES, NUM_JOINTS
from hamr_lib.model.hamr import NUM_BETAS, Estimate
from hamr_lib.model.heatmaps import cell_centres, heatmap_peaks

STEPS = 10
DAMPING = 1e-2  # of the first step; a share of the curvature
LEAST = 0.05  # crop units that even the sharpest heat map may be off
NEAR = 0.15  # crop units about a joint in which its map speaks for it
SIGMA_2D = 0.03  # of the hand's box that a landmark may be off
SIGMA_3D = 0.008  # metres that a landmark may be off
# How far d may be from the estimate: log scale, offset (crop units), rotation (radians); pose and
# shape in standard deviations.
CAMERA, TURN, POSE, SHAPE = 0.3, 0.5, 0.5, 1.0
OFFSETS = Path(__file__).with_name("offsets.csv")


class Seen(NamedTuple):
    """What is seen of a batch of right hands, in the crops that the network saw."""

    points: Tensor  # (B, 42, 2) crop units: joints by their heat maps, then landmarks
    weights: Tensor  # (B, 42) one over the variance along an axis, 0 where nothing is seen
    world: Tensor  # (B, 21, 3) metres, landmarks, camera frame
    world_weight: Tensor  # (B,) one over the variance, 0 without landmarks


class Points:
    """The joints of a hand layer and MediaPipe's landmarks on it, with their derivatives.

    Args:
        hand: the layer of `load_hand`.
        offsets: (21, 3) metres, from each joint to its landmark in the frame of the bone that
            carries it, at rest.
    """

    def __init__(self, hand, offsets):
        layer, order = hand.layer, list(FROM_MANO)
        means, self.shares = hand.means[: NUM_BETAS + 1].clone(), hand.shares
        if hand.joints == "kinematic":
            means[:, :16], self.shares = 0.0, self.shares.clone()
            means[:, range(16), range(16)] = hand.rest
            self.shares[:16] = torch.eye(16).to(means)
        means, shares = means[:, order], self.shares[order]
        # A landmark moves with the bone that moves most of its joint.
        moved = means.clone()
        carrier = shares.argmax(1)
        moved[0, range(NUM_JOINTS), carrier] += torch.as_tensor(offsets).to(moved)
        self.means = torch.cat([means, moved], dim=1)  # (11, 42, 16, 3)
        self.shares = torch.cat([shares, shares])  # (42, 16)
        self.rest = hand.rest  # (11, 16, 3)
        self.mean_pose = layer.pose_mean
        self.components = layer.hand_components if layer.use_pca else None
        self.parents = layer.parents.tolist()
        below = torch.eye(16)
        for bone in reversed(range(1, 16)):
            below[self.parents[bone]] += below[bone]
        self.below = below.to(means)  # (16, 16): 1 where the second hangs on the first

    def __call__(self, betas, rotation, hand_pose):
        """Points and their derivatives.

        Args:
            betas: (B, 10); rotation: (B, 3, 3); hand_pose: (B, P).

        Returns:
            points (B, 42, 3) metres, wrist joint at the origin, and slopes (B, 42, 3, 3 + P + 10):
            by a rotation vector applied after `rotation`, by pose and by shape. What MANO's pose
            blend shapes add is left out.
        """
        batch, parents = len(betas), self.parents
        pose = hand_pose if self.components is None else hand_pose @ self.components
        pose = (pose + self.mean_pose[3:]).view(-1, 3)
        local = roma.rotvec_to_rotmat(pose).view(batch, 15, 3, 3)
        shape = torch.cat([betas.new_ones(batch, 1), betas], dim=1)
        turns, where, up = [rotation], [self.rest[:, 0].expand(batch, -1, -1)], [None]
        for bone in range(1, 16):
            parent = parents[bone]
            step = self.rest[:, bone] - self.rest[:, parent]
            up.append(turns[parent])
            where.append(where[parent] + step @ turns[parent].mT)
            turns.append(turns[parent] @ local[:, bone - 1])
        turns, where = torch.stack(turns, 1), torch.stack(where, 2)  # (B, 16, 3, 3), (B, 11, 16, 3)
        # By template and shapes: each point's part that follows each bone, about that bone's joint.
        about = self.means - self.shares[..., None] * self.rest[:, None]
        about = torch.einsum("bjrc,nkjc->bnkjr", turns, about)
        total = about.sum(3) + torch.einsum("kj,bnjr->bnkr", self.shares, where)
        total = total - total[:, :, :1]
        points = torch.einsum("bn,bnkr->bkr", shape, total)

        about = torch.einsum("bn,bnkjr->bkjr", shape, about)
        where = torch.einsum("bn,bnjr->bjr", shape, where)
        # Where those parts are, seen from each bone above them.
        lever = torch.einsum("kj,bjr->bkjr", self.shares, where) + about
        lever = torch.einsum("ij,bkjr->bkir", self.below, lever) - torch.einsum(
            "ij,kj,bir->bkir", self.below, self.shares, where
        )
        lever = lever - lever[:, :1]
        # A turn w of bone i moves them by w x lever; w = (parent's turns) J(pose) d pose.
        axes = torch.stack(up[1:], 1) @ left_jacobian(pose).view(batch, 15, 3, 3)
        bends = torch.linalg.cross(
            axes.mT[:, None], lever[:, :, 1:, None]
        )  # (B, 42, 15, 3 of the axis-angle, 3)
        bends = bends.flatten(2, 3).mT
        if self.components is not None:
            bends = bends @ self.components.T
        turns, shapes = _cross_matrix(points), total[:, 1:].permute(0, 2, 3, 1)
        return points, torch.cat([turns, bends, shapes], dim=-1)


def _cross_matrix(points):
    """The matrices (..., 3, 3) that take w to w x points (..., 3)."""
    axes = torch.eye(3).to(points).expand(*points.shape, 3)
    return torch.linalg.cross(axes, points[..., None, :]).mT


def left_jacobian(rotvec):
    """J (..., 3, 3) of SO(3): exp(rotvec + d) = exp(J d) exp(rotvec) for small d."""
    angle = rotvec.norm(dim=-1)[..., None, None].clamp_min(1e-4)
    skew = _cross_matrix(rotvec).mT
    first = (1 - angle.cos()) / angle**2
    second = (angle - angle.sin()) / angle**3
    return torch.eye(3).to(rotvec) + first * skew + second * skew @ skew


def read_maps(heatmaps):
    """Where the joints' maps have their peaks, and how widely they are spread about these.

    Args:
        heatmaps: (B, M, h, h) logits, M >= 21.

    Returns:
        peaks (B, 21, 2) crop units and variances (B, 21) crop units squared, along one axis.
    """
    peaks = heatmap_peaks(heatmaps)
    axis, share = _probability(heatmaps)
    x, y = ((axis - peaks[..., None]) ** 2).unbind(2)  # (B, 21, h) each
    spread = (share.sum(2) * x).sum(-1) + (share.sum(3) * y).sum(-1)
    return peaks, spread / 2


def confidence(heatmaps, joints_2d):
    """What share of each joint's map lies within `NEAR` crop units of a place.

    Args:
        heatmaps: (B, M, h, h) logits, M >= 21; joints_2d: (B, 21, 2) crop units.

    Returns:
        (B, 21), 0 to 1.
    """
    axis, share = _probability(heatmaps)
    x, y = ((axis - joints_2d[..., None]) ** 2).unbind(2)
    near = x[:, :, None, :] + y[..., None] < NEAR**2
    return (share * near).sum((2, 3))


def _probability(heatmaps):
    """The middles of a map's cells, crop units, and its softmax (B, 21, h, h)."""
    maps = heatmaps[:, :NUM_JOINTS].float()
    return cell_centres(maps.shape[-1], -1.0, 1.0, maps), maps.flatten(2).softmax(-1).view_as(maps)


class State(NamedTuple):
    """What is fitted, of a batch of hands."""

    scale: Tensor  # (B, 1) log of the camera's, crop units a metre
    offset: Tensor  # (B, 2) crop units
    rotation: Tensor  # (B, 3, 3)
    hand_pose: Tensor  # (B, P)
    betas: Tensor  # (B, 10)
    ratio: Tensor  # (B, 1) log m, of the model's size to the 3-D landmarks'

    def moved(self, step):
        """The state after a step (B, 17 + P)."""
        pose = self.hand_pose.shape[1]
        scale, offset, turn, bend, shape, ratio = step.split([1, 2, 3, pose, NUM_BETAS, 1], 1)
        return State(
            self.scale + scale, self.offset + offset,
            roma.rotvec_to_rotmat(turn) @ self.rotation,
            self.hand_pose + bend, self.betas + shape, self.ratio + ratio,
        )  # fmt: skip

    def since(self, start):
        """(B, 17 + P): the step from another state to this one."""
        turn = roma.rotmat_to_rotvec(self.rotation @ start.rotation.mT)
        parts = [now - then for now, then in zip(self, start, strict=True)]
        parts[2] = turn
        return torch.cat(parts, 1)


def lay(network, output, evidence, landmarks=None, world=None):
    """Lay one hand onto its evidence.

    Args:
        network: `model.HAMR` with a mesh.
        output: `model.Output` (1, ...) of its crop.
        evidence: "network" (the heat maps), "landmarks" or "both".
        landmarks: (21, 2) crop units; world: (21, 3) metres, None where they are of no use.

    Returns:
        `Estimate` (1, ...).
    """
    start = output.estimates[-1]
    points = start.camera.new_zeros(1, 2 * NUM_JOINTS, 2)
    weights, solid = points[..., 0].clone(), points.new_zeros(1, NUM_JOINTS, 3)
    weight = points.new_zeros(1)
    if evidence != "landmarks":
        points[:, :NUM_JOINTS], variance = read_maps(output.heatmaps[-1])
        weights[:, :NUM_JOINTS] = 1 / (variance + LEAST**2)
    if evidence == "network":
        return fit(network, start, Seen(points, weights, solid, weight))[0]
    points[:, NUM_JOINTS:] = torch.as_tensor(landmarks)
    extent = np.ptp(landmarks, axis=0).max()
    weights[:, NUM_JOINTS:] = (SIGMA_2D * max(extent, 1e-3)) ** -2
    seen = Seen(points, weights, solid, weight)
    starts = [start] if evidence == "both" or world is None else []
    if world is not None:
        solid[:], weight[:] = torch.as_tensor(world), SIGMA_3D**-2
        starts.append(aligned(network, seen))
    seen = Seen(*(part.expand(len(starts), *part.shape[1:]) for part in seen))
    starts = Estimate(*(torch.cat(parts) for parts in zip(*starts, strict=True)))
    fitted, energy = fit(network, starts, seen)
    best = energy.argmin()
    return Estimate(*(part[best : best + 1] for part in fitted))


def aligned(network, seen, points=None):
    """An `Estimate` (1, ...) of the mean pose and shape, turned as the 3-D landmarks lie."""
    like = seen.world
    pose = network.hand.poses.to(like).mean(0, keepdim=True)
    betas, upright = like.new_zeros(1, NUM_BETAS), torch.eye(3).to(like)[None]
    place, _ = (points or model_points(network.hand))(betas, upright, pose)
    solid = place[:, NUM_JOINTS:]
    rigid = [0, *range(1, NUM_JOINTS, 4)]  # the wrist and the fingers' bases
    a, b = (x[:, rigid] - x[:, rigid].mean(1, keepdim=True) for x in (solid, seen.world))
    rotation = roma.special_procrustes(b.mT @ a)
    flat = (place @ rotation.mT)[:, NUM_JOINTS:, :2]
    spot = seen.points[:, NUM_JOINTS:]
    middle, centre = flat.mean(1, keepdim=True), spot.mean(1, keepdim=True)
    scale = ((spot - centre).norm() / (flat - middle).norm()).view(1, 1)
    camera = torch.cat([scale, centre[:, 0] - scale * middle[:, 0]], 1)
    return network.compose(camera, rotation, pose, betas)


def fit(network, starts, seen, points=None):
    """Lay hands onto what is seen of them.

    Args:
        network: `model.HAMR` with a mesh.
        starts: `Estimate` (B, ...), from which the steps begin and depart with reluctance.
        seen: `Seen` (B, ...).
        points: `Points`; None takes those with the measured offsets.

    Returns:
        `Estimate` (B, ...) with meshes, and the energies (B,), the reluctance left out.
    """
    points = points or model_points(network.hand)
    poses = network.hand.poses.to(starts.camera)
    mean, spread = poses.mean(0), poses.std(0)
    like = starts.camera
    start = State(
        like[:, :1].log(), like[:, 1:], starts.rotation, starts.hand_pose, starts.betas,
        torch.zeros_like(like[:, :1]),
    )  # fmt: skip
    free = like.new_full((1,), 1e-4)
    near = torch.cat([
        like.new_full((3,), CAMERA**-2), like.new_full((3,), TURN**-2), (POSE * spread) ** -2,
        like.new_full((NUM_BETAS,), SHAPE**-2), free,
    ])  # fmt: skip
    usual = torch.cat([like.new_zeros(6), spread**-2, like.new_ones(NUM_BETAS), free * 0])
    centre = start._replace(hand_pose=mean.expand_as(start.hand_pose), betas=0 * start.betas)

    def look(state):
        """Curvature (B, N, N), slope (B, N), energy without and with the reluctance (B,)."""
        place, slopes = points(state.betas, state.rotation, state.hand_pose)
        scale = state.scale.exp()[..., None]
        flat = scale * place[..., :2]
        off = flat + state.offset[:, None] - seen.points
        axes = torch.eye(2).to(flat).expand(*flat.shape, 2)
        none = torch.zeros_like(flat[..., None])
        along = torch.cat([flat[..., None], axes, scale[..., None] * slopes[..., :2, :], none], -1)
        weight = seen.weights[..., None].expand_as(off).flatten(1)
        curvature, slope, energy = _normal(along.flatten(1, 2), off.flatten(1), weight)

        solid, bent = place[:, NUM_JOINTS:], slopes[:, NUM_JOINTS:]
        solid, bent = solid - solid.mean(1, keepdim=True), bent - bent.mean(1, keepdim=True)
        world = state.ratio.exp()[..., None] * seen.world
        none = bent.new_zeros(*bent.shape[:3], 3)
        along = torch.cat([none, bent, -world[..., None]], -1).flatten(1, 2)
        weight = seen.world_weight[:, None].expand(-1, along.shape[1])
        parts = _normal(along, (solid - world).flatten(1), weight)
        curvature, slope, energy = curvature + parts[0], slope + parts[1], energy + parts[2]

        odd, moved = state.since(centre), state.since(start)
        energy = energy + (usual * odd**2).sum(1)
        curvature = curvature + (usual + near).diag()
        slope = slope + usual * odd + near * moved
        return curvature, slope, energy, energy + (near * moved**2).sum(1)

    state, damping = start, like.new_full((len(like), 1), DAMPING)
    curvature, slope, energy, total = look(state)
    for _ in range(STEPS):
        damped = curvature + (damping * curvature.diagonal(dim1=1, dim2=2)).diag_embed()
        tried = state.moved(-torch.linalg.solve(damped, slope))
        new = look(tried)
        better = new[3] < total
        state = State(*(_where(better, a, b) for a, b in zip(tried, state, strict=True)))
        curvature, slope, energy, total = (
            _where(better, a, b)
            for a, b in zip(new, (curvature, slope, energy, total), strict=True)
        )
        damping = torch.where(better[:, None], damping / 3, damping * 5)
    camera = torch.cat([state.scale.exp(), state.offset], 1)
    return network.compose(camera, state.rotation, state.hand_pose, state.betas), energy


def _normal(along, off, weight):
    """Curvature, slope and energy of weighted residuals (B, M) with derivatives (B, M, N)."""
    weighted = weight[..., None] * along
    slope = (weighted.mT @ off[..., None])[..., 0]
    return along.mT @ weighted, slope, (weight * off**2).sum(1)


def _where(choice, a, b):
    return torch.where(choice.view(-1, *[1] * (a.ndim - 1)), a, b)


def read_offsets(name):
    """The measured offsets (21, 3), metres, of `Points`; zeros for a hand without them."""
    offsets = np.zeros((NUM_JOINTS, 3))
    if OFFSETS.is_file():
        table = pd.read_csv(OFFSETS)
        for row in table[table.hand == name].itertuples():
            offsets[NAMES.index(row.joint)] = row.x, row.y, row.z
    return offsets


def model_points(hand):
    """`Points` of a hand layer with the measured `OFFSETS`; made once a layer."""
    if not hasattr(hand, "_points"):
        hand._points = Points(hand, read_offsets(hand.name))
    return hand._points
