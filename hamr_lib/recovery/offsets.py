"""Where MediaPipe's landmarks lie on the hand model: `python -m hamr_lib.recovery.offsets PROFILE`.

MediaPipe's joints are not ours: its wrist lies further towards the fingers, for example. The
offsets are constants in the frame of the bone that carries each joint. They are measured on
renderings of the training split, whose joints are known, and written to `offsets.csv`; photographs
have no part in them.
"""

import argparse
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from hamr_lib.config import load_settings
from hamr_lib.data.crops import crop_square
from hamr_lib.data.registry import find_sets
from hamr_lib.errors import HamrError
from hamr_lib.files import write_aside
from hamr_lib.hand.layer import load_hand
from hamr_lib.joints import NAMES, NUM_JOINTS, WRIST
from hamr_lib.model.hamr import HAMR
from hamr_lib.recovery import refine
from hamr_lib.recovery.detect import find_in_box
from hamr_lib.recovery.pipeline import frame_box

COUNT = 600  # renderings
ROUNDS = 10  # of the reweighted least squares
EXACT_2D, EXACT_3D = 0.005, 0.002  # crop units and metres that a model fitted to labels may be off


def measure(settings, count: int = COUNT) -> tuple[np.ndarray, int]:
    """Measure the offsets on renderings.

    Args:
        settings: `Settings`; their set in RHD's format, training split, and their hand.
        count: how many frames, evenly spaced.

    Returns:
        (21, 3) metres, and the number of hands that MediaPipe found.
    """
    options = settings.hand
    hand = load_hand(options.model, pose_components=options.pose_components)
    network = HAMR(settings.model, hand, pretrained=False).eval()  # for its hand alone
    frames = find_sets(settings)["rhd"].load("training", settings.data)
    samples = []
    for index in np.linspace(0, len(frames) - 1, min(count, len(frames))).astype(int):
        frame = frames[int(index)]
        found = find_in_box(frame.image, frame_box(frame))
        if found is not None and found.side == frame.side:
            samples.append(_sample(network, frame, found))
    if not samples:
        raise HamrError(f"MediaPipe found none of {count} hands: offsets cannot be measured")
    return solve(*(np.stack(part) for part in zip(*samples, strict=True))), len(samples)


def _sample(network, frame, found):
    """One frame: bones' turns (21, 3, 3), scale, joints and landmarks in 2-D and 3-D."""
    center, side = crop_square(frame)
    flip = np.array([-1.0 if frame.side == "left" else 1.0, 1, 1])
    to_crop = 2 / side * flip[:2]
    flat = (frame.joints_2d - center) * to_crop
    solid = (frame.joints_3d - frame.joints_3d[WRIST]) * flip
    like = network.hand.poses
    points = like.new_zeros(1, 2 * NUM_JOINTS, 2)
    points[0, NUM_JOINTS:] = torch.as_tensor(flat)
    weights = like.new_zeros(1, 2 * NUM_JOINTS)
    weights[:, NUM_JOINTS:] = EXACT_2D**-2
    seen = refine.Seen(
        points, weights, torch.as_tensor(solid[None]).to(like),
        like.new_full((1,), EXACT_3D**-2),
    )  # fmt: skip
    exact = refine.Points(network.hand, np.zeros((NUM_JOINTS, 3)))
    with torch.inference_mode():
        fitted, _ = refine.fit(network, refine.aligned(network, seen, exact), seen, exact)
        posed = fitted.betas, fitted.rotation, fitted.hand_pose
        # An offset along an axis moves the landmark along that axis of its bone.
        axes = [
            refine.Points(network.hand, np.tile(axis, (NUM_JOINTS, 1)))(*posed)[0][0]
            for axis in np.eye(3)
        ]
    turns = torch.stack([place[NUM_JOINTS:] - place[:NUM_JOINTS] for place in axes], -1)
    landmarks = (found.landmarks - center) * to_crop
    return (
        turns.double().numpy(), fitted.camera[0, 0].item(), flat, landmarks, solid,
        found.world * flip,
    )  # fmt: skip


def solve(turns, scale, flat, landmarks, solid, world):
    """The constant offsets (21, 3) that explain the landmarks best, outliers counting little.

    Args:
        turns: (N, 21, 3, 3) rotations of the bones; scale: (N,) crop units a metre.
        flat, landmarks: (N, 21, 2) crop units, joints and landmarks.
        solid, world: (N, 21, 3) metres, joints and landmarks, each about its own origin.
    """
    offsets = np.zeros((NUM_JOINTS, 3))
    off = (landmarks - flat) / scale[:, None, None]  # metres along x and y
    # The scale of 3-D landmarks means nothing: they get the spread of the joints. A scale fitted to
    # them would be too small, as fits to noisy numbers are, and smaller in each round.
    joints, sized = (x - x.mean(1, keepdims=True) for x in (solid, world))
    spread = [np.linalg.norm(x, axis=(1, 2), keepdims=True) for x in (joints, sized)]
    sized = sized * spread[0] / spread[1]
    for _ in range(ROUNDS):
        model = solid + np.einsum("njrc,jc->njr", turns, offsets)
        lifted = sized + model.mean(1, keepdims=True) - solid
        for joint in range(NUM_JOINTS):
            rows = np.concatenate([turns[:, joint, :2], turns[:, joint]], axis=1)  # (N, 5, 3)
            wanted = np.concatenate([off[:, joint], lifted[:, joint]], axis=1)  # (N, 5)
            left = wanted - rows @ offsets[joint]
            size = np.linalg.norm(left, axis=1)
            weight = 1 / np.maximum(size, np.median(size))  # Huber's
            normal = np.einsum("n,nij,nik->jk", weight, rows, rows)
            offsets[joint] = np.linalg.solve(normal, np.einsum("n,nij,ni->j", weight, rows, wanted))
    return offsets


def write(path: Path, hand: str, offsets: np.ndarray):
    """Write the table, in which other hands' rows stay."""
    table = pd.DataFrame(offsets, columns=["x", "y", "z"]).round(5)
    table.insert(0, "joint", NAMES)
    table.insert(0, "hand", hand)
    if path.is_file():
        before = pd.read_csv(path)
        table = pd.concat([before[before.hand != hand], table])
    with write_aside(path) as aside:
        table.to_csv(aside, index=False)


def main(argv=None) -> int:
    """Measure and write the offsets of a profile's hand."""
    parser = argparse.ArgumentParser(prog="python -m hamr_lib.recovery.offsets")
    parser.add_argument("profile", help="whose renderings are used")
    parser.add_argument("--count", type=int, default=COUNT, help="of renderings")
    args = parser.parse_args(argv)
    try:
        settings = load_settings(args.profile)
        offsets, found = measure(settings, args.count)
        hand = load_hand(settings.hand.model).name
        write(refine.OFFSETS, hand, offsets)
    except HamrError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    size = 1000 * np.linalg.norm(offsets, axis=1)
    print(f"offsets of the {hand} hand by {found} renderings: {size.mean():.1f} mm on average")
    return 0


if __name__ == "__main__":
    sys.exit(main())
