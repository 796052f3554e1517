"""Videos: hands that keep their identity from frame to frame and are smoothed over time."""

import dataclasses
import math
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import roma
import torch

from hamr_lib.errors import HamrError
from hamr_lib.joints import NAMES
from hamr_lib.recovery.container import open_video
from hamr_lib.recovery.detect import SIDES, Detector
from hamr_lib.recovery.output import shown
from hamr_lib.recovery.photo import PhotoError
from hamr_lib.recovery.pipeline import (
    look_at,
    look_in_box,
    mirrored_pose,
    of_side,
    recovery_of,
)
from hamr_lib.recovery.result import Recovery, overlay

NEAR = 0.5  # of a hand's size: landmarks of the same hand in the next frame are no further away
GAP = 0.5  # seconds after which a hand that was lost is another one
STEP = 0.05  # metres that count as much as a radian when motion is smoothed
# The one-euro filter's lowest cutoff (Hz), its rise with speed (Hz per radian or `STEP` a second),
# and the cutoff of the speed (Hz).
CUTOFF, RISE, SPEED = 1.5, 1.0, 1.0


class VideoFrame(NamedTuple):
    """A frame and the hands in it."""

    index: int
    fps: float  # frames a second of the video
    time: float  # seconds
    image: np.ndarray  # (H, W, 3) uint8 RGB
    hands: dict[int, Recovery]  # by the number of the hand, which it keeps


def count_frames(path: Path) -> int:
    """How many frames a video says that it has; 1 where it does not say."""
    try:
        return max(1, int(open_video(path).get(cv2.CAP_PROP_FRAME_COUNT)))
    except (HamrError, OverflowError, ValueError):
        return 1


def read_frames(video: cv2.VideoCapture, name: str) -> Iterator[np.ndarray]:
    """The frames of a video, one after another: (H, W, 3) uint8 RGB, upright.

    Raises:
        PhotoError: for a video without a frame that OpenCV can read.
    """
    read, frame = video.read()
    if not read:
        raise PhotoError(f"{name} is not a video that OpenCV reads")
    while read:
        yield cv2.cvtColor(frame, cv2.COLOR_BGR2RGB)
        read, frame = video.read()


def rate(video: cv2.VideoCapture) -> float:
    """Frames a second; 30 where a video does not say."""
    found = video.get(cv2.CAP_PROP_FPS)
    return found if 1 <= found <= 1000 else 30.0


def recover_video(
    path, network, box=None, side="auto", evidence="both", smoothing=True
) -> Iterator[VideoFrame]:
    """Recover the hands of a video, frame by frame.

    Args:
        path: of the video.
        network: the network and its path, as `pipeline.load_network` gives them.
        box, side, evidence: as in `pipeline.recover`.
        smoothing: smooth camera, rotation, pose and shape of each hand over time.
    """
    (model, checkpoint), tracks = network, Tracks()
    detector = Detector(track=True) if box is None else None
    video = open_video(path)
    fps = rate(video)
    for index, image in enumerate(read_frames(video, shown(path))):
        time, hands = index / fps, {}
        if box is not None:
            looks = [(0, look_in_box(model, image, box, side, evidence))]
        else:
            finds = of_side(detector(image), side)
            looks = [(n, look_at(model, image, f)) for n, f in tracks(finds, time, side)]
        for number, look in looks:
            hand = recovery_of(model, image, look, checkpoint, evidence)
            if smoothing:
                smoother = tracks.smoothers.setdefault(number, Smoother(model))
                hand = smoother(hand, time)
            hands[number] = hand
        yield VideoFrame(index, fps, time, image, hands)


class Tracks:
    """Gives each find the number of the hand that it shows."""

    def __init__(self):
        self.last = {}  # number: (time, landmarks)
        self.votes, self.smoothers = {}, {}

    def __call__(self, finds, time, side="auto"):
        """List of (number, `Find`), whose side is the one as which that hand was seen most."""
        old = {n: points for n, (then, points) in self.last.items() if time - then <= GAP}
        pairs = sorted(
            (distance, i, number)
            for i, found in enumerate(finds)
            for number, points in old.items()
            if (distance := _distance(found.landmarks, points)) < NEAR
        )
        numbers = {}
        for _, i, number in pairs:
            if i not in numbers and number not in numbers.values():
                numbers[i] = number
        result = []
        for i, found in enumerate(finds):
            number = numbers.get(i, len(self.votes))
            votes = self.votes.setdefault(number, dict.fromkeys(SIDES, 0.0))
            votes[found.side] += found.score
            self.last[number] = time, found.landmarks
            seen = max(SIDES, key=votes.get) if side == "auto" else side
            result.append((number, found._replace(side=seen)))
        return result


def _distance(a, b):
    """Mean distance of landmarks (21, 2), as a multiple of the hand's size."""
    return np.linalg.norm(a - b, axis=1).mean() / max(np.ptp(b, axis=0).max(), 1.0)


class OneEuro:
    """The one-euro filter (Casiez et al. 2012) of a vector: steadier at rest, faster in motion."""

    def __init__(self):
        self.time = self.value = self.speed = None

    def __call__(self, value, time):
        """The filtered value (N,) at a time, seconds, later than the last."""
        if self.time is None or time - self.time > GAP:
            self.value, self.speed = value, np.zeros_like(value)
        else:
            step = time - self.time
            speed = (value - self.value) / step
            self.speed = self.speed + _share(SPEED, step) * (speed - self.speed)
            share = _share(CUTOFF + RISE * np.linalg.norm(self.speed), step)
            self.value = self.value + share * (value - self.value)
        self.time = time
        return self.value


def _share(cutoff, step):
    """The weight of a new value in a low-pass filter."""
    return 1 / (1 + 1 / (2 * math.pi * cutoff * step))


class Smoother:
    """Smooths the recoveries of one hand: place, rotation, pose and shape each by themselves."""

    def __init__(self, model):
        self.model, self.side = model, None
        self.filters = [OneEuro() for _ in range(4)]

    def __call__(self, hand: Recovery, time: float) -> Recovery:
        if hand.side != self.side:  # parameters of the other side mean something else
            self.side, self.filters = hand.side, [OneEuro() for _ in range(4)]
        scale, *offset = hand.camera
        matrix = roma.rotvec_to_rotmat(torch.from_numpy(hand.global_orient))
        values = (
            np.array([math.log(scale), *(np.array(offset) / scale / STEP)]),
            matrix.flatten().numpy(), hand.hand_pose, hand.betas,
        )  # fmt: skip
        place, matrix, pose, betas = (
            smooth(value, time) for smooth, value in zip(self.filters, values, strict=True)
        )
        scale = math.exp(place[0])
        camera = np.array([scale, *(place[1:] * scale * STEP)])
        rotation = roma.special_procrustes(torch.from_numpy(matrix).view(1, 3, 3))
        return posed(self.model, hand, camera, rotation[0].numpy(), pose, betas)


def posed(model, hand, camera, rotation, hand_pose, betas) -> Recovery:
    """A recovery with other parameters: camera (3,), rotation (3, 3), pose and shape."""
    flip = np.array([-1.0 if hand.side == "left" else 1.0, 1, 1])
    right = rotation * flip * flip[:, None]
    pose = mirrored_pose(hand_pose) if hand.side == "left" else hand_pose
    like = next(model.parameters())
    with torch.inference_mode():
        numbers = (
            torch.as_tensor(np.ascontiguousarray(value)).to(like)[None]
            for value in ((1.0, 0.0, 0.0), right, pose, betas)
        )
        estimate = model.compose(*numbers)
    joints, vertices = (
        part[0].double().cpu().numpy() * flip for part in (estimate.joints_3d, estimate.vertices)
    )
    return dataclasses.replace(
        hand, camera=camera, hand_pose=hand_pose, betas=betas, joints_3d=joints, vertices=vertices,
        global_orient=roma.rotmat_to_rotvec(torch.from_numpy(rotation)).numpy(),
        joints_2d=camera[0] * joints[:, :2] + camera[1:],
    )  # fmt: skip


class VideoWriter:
    """Writes the overlays of a video as they come, and the numbers of each hand at the end.

    Args:
        folder: where files are written.
        stem: start of their names.
        draw: whether the overlay is wanted.
    """

    KEYS = ("camera", "betas", "global_orient", "hand_pose", "joints_2d", "joints_3d",
            "confidence", "box")  # fmt: skip

    def __init__(self, folder: Path, stem: str, draw: bool = True):
        self.path = folder / f"{stem}_overlay.mp4" if draw else None
        self.folder, self.stem = folder, stem
        self.video, self.hands, self.fps = None, {}, None

    def add(self, frame: VideoFrame):
        """Take in a frame."""
        self.fps = frame.fps
        for number, hand in frame.hands.items():
            # Without its pictures and mesh: a video's would not fit into memory.
            small = dataclasses.replace(
                hand, photo=np.zeros((1, 1, 3), np.uint8), heatmaps=None, vertices=None
            )
            self.hands.setdefault(number, []).append((frame.index, frame.time, small))
        if self.path is None:
            return
        picture = overlay(list(frame.hands.values()), frame.image)
        height, width = (n - n % 2 for n in picture.shape[:2])  # as the codec asks
        if self.video is None:
            code = cv2.VideoWriter.fourcc(*"mp4v")
            self.video = cv2.VideoWriter(str(self.path), code, self.fps, (width, height))
        self.video.write(cv2.cvtColor(picture[:height, :width], cv2.COLOR_RGB2BGR))

    def close(self):
        """Finish the video and write `<stem>_hand<i>.npz` for each hand."""
        if self.video is not None:
            self.video.release()
        for i, number in enumerate(sorted(self.hands), start=1):
            frames, times, hands = zip(*self.hands[number], strict=True)
            arrays = {key: np.stack([getattr(hand, key) for hand in hands]) for key in self.KEYS}
            np.savez_compressed(
                self.folder / f"{self.stem}_hand{i}.npz",
                frame=np.array(frames), time=np.array(times), fps=self.fps,
                side=np.array([hand.side for hand in hands]),
                score=np.array([hand.score or np.nan for hand in hands]),
                evidence=np.array([hand.evidence for hand in hands]),
                joint_names=np.array(NAMES), hand=hands[0].hand, checkpoint=hands[0].checkpoint,
                **arrays,
            )  # fmt: skip
