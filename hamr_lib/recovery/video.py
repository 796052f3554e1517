"""Videos: hands that keep their identity from frame to frame and are smoothed over time.

FFmpeg goes by a file's content and not by its name: a text named `.mp4` may be a playlist (concat,
HLS, DASH, SDP) that makes it read other files or the network. It is given listed containers alone.
"""

import math
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import roma
import torch
from scipy.optimize import linear_sum_assignment

from hamr_lib.joints import NAMES
from hamr_lib.model.hamr import HAMR
from hamr_lib.recovery.detect import SIDES, Detection, Detector
from hamr_lib.recovery.output import plain_name, reason, shown, whole_set
from hamr_lib.recovery.photo import PhotoError
from hamr_lib.recovery.pipeline import (
    NoHandError,
    of_side,
    recover_box,
    recover_detection,
    with_parameters,
)
from hamr_lib.recovery.result import IN_JSON, Recovery, overlay

CONTAINERS = "mov,matroska,avi,mpeg,mpegvideo"  # FFmpeg's names
OPTIONS = "OPENCV_FFMPEG_CAPTURE_OPTIONS"
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
    image: np.ndarray  # (H, W, 3) uint8 RGB
    hands: dict[int, Recovery]  # by the number of the hand, which it keeps


def open_video(path: str | Path) -> cv2.VideoCapture:
    """Open a video in MP4, QuickTime, Matroska, WebM, AVI or MPEG.

    Raises:
        PhotoError: for a file that cannot be read, another container, or a damaged one.
    """
    try:
        if not Path(path).is_file():
            raise OSError(None, "it is no file")
        os.environ[OPTIONS] = f"format_whitelist;{CONTAINERS}|protocol_whitelist;file"
        with open(path, "rb") as file:
            # By its descriptor, as a name that is not UTF-8 would end the process.
            video = cv2.VideoCapture(f"/dev/fd/{file.fileno()}", cv2.CAP_FFMPEG)
    except (OSError, ValueError) as error:
        raise PhotoError(f"cannot read {shown(path)}: {reason(error)}") from error
    finally:
        os.environ.pop(OPTIONS, None)
    if not video.isOpened():
        kinds = "an undamaged MP4, QuickTime, Matroska, WebM, AVI or MPEG"
        raise PhotoError(f"{shown(path)} is not a video that is read: expected {kinds}")
    return video


def read_frames(video: cv2.VideoCapture, name: str) -> Iterator[np.ndarray]:
    """Yield the frames of a video one after another: (H, W, 3) uint8 RGB, upright.

    Raises:
        PhotoError: for a video without a frame that OpenCV can read.
    """
    read, frame = video.read()
    if not read:
        raise PhotoError(f"{name} is not a video that OpenCV reads")
    while read:
        yield cv2.cvtColor(frame, cv2.COLOR_BGR2RGB)
        read, frame = video.read()


def recover_video(
    path: str | Path,
    model: HAMR,
    box: tuple | None = None,
    side: str = "auto",
    evidence: str = "both",
    smoothing: bool = True,
) -> Iterator[VideoFrame]:
    """Recover the hands of a video, frame by frame.

    Args:
        model: as `pipeline.load_network` gives it.
        box, side, evidence: as in `pipeline.recover`.
        smoothing: smooth camera, rotation, pose and shape of each hand over time.
    """
    video, tracks, smoothers = open_video(path), Tracks(), {}
    detector = Detector(track=True) if box is None else None
    fps = video.get(cv2.CAP_PROP_FPS)
    fps = fps if 1 <= fps <= 1000 else 30.0
    for index, image in enumerate(read_frames(video, shown(path))):
        time = index / fps
        if box is None:
            found = tracks(of_side(detector(image), side), time, side)
            hands = {n: recover_detection(model, image, f, evidence) for n, f in found.items()}
        else:
            hands = {0: recover_box(model, image, box, side, evidence)}
        if smoothing:
            for number, hand in hands.items():
                hands[number] = smoothers.setdefault(number, Smoother(model))(hand, time)
        yield VideoFrame(index, fps, image, hands)


class Tracks:
    """Gives each detection the number of the hand that it shows."""

    def __init__(self):
        self.last = {}  # number: (time, landmarks)
        self.votes = {}  # number: the sum of the scores of each side

    def __call__(
        self, detections: list[Detection], time: float, side: str = "auto"
    ) -> dict[int, Detection]:
        """Number detections; the side of each, if not given, is the one detected most."""
        old = [n for n, (then, _) in self.last.items() if time - then <= GAP]
        off = np.array([[_distance(f.landmarks, self.last[n][1]) for n in old] for f in detections])
        off = off.reshape(len(detections), len(old)).clip(max=NEAR)
        same = {i: old[k] for i, k in zip(*linear_sum_assignment(off), strict=True)
                if off[i, k] < NEAR}  # fmt: skip
        numbered = {}
        for i, found in enumerate(detections):
            number = same.get(i, len(self.votes))
            votes = self.votes.setdefault(number, dict.fromkeys(SIDES, 0.0))
            votes[found.side] += found.score
            self.last[number] = time, found.landmarks
            numbered[number] = found.as_side(max(SIDES, key=votes.get) if side == "auto" else side)
        return numbered


def _distance(a, b):
    """Mean distance of landmarks (21, 2), as a multiple of the hand's size."""
    return np.linalg.norm(a - b, axis=1).mean() / max(np.ptp(b, axis=0).max(), 1.0)


class OneEuro:
    """The one-euro filter (Casiez et al. 2012) of a vector: steadier at rest, faster in motion."""

    def __init__(self):
        self.time = self.value = self.speed = None

    def __call__(self, value: np.ndarray, time: float) -> np.ndarray:
        """Filter the value (N,) of a time, seconds, later than the last."""
        if self.time is None or time - self.time > GAP:
            self.value, self.speed = value, np.zeros_like(value)
        else:
            step = time - self.time
            speed = (value - self.value) / step
            self.speed = self.speed + _weight(SPEED, step) * (speed - self.speed)
            weight = _weight(CUTOFF + RISE * np.linalg.norm(self.speed), step)
            self.value = self.value + weight * (value - self.value)
        self.time = time
        return self.value


def _weight(cutoff, step):
    """The weight of a new value in a low-pass filter."""
    return 1 / (1 + 1 / (2 * math.pi * cutoff * step))


class Smoother:
    """Smooths one hand: its place in the photo, rotation, pose and shape each by themselves."""

    def __init__(self, model: HAMR):
        self.model, self.side = model, None

    def __call__(self, hand: Recovery, time: float) -> Recovery:
        if hand.side != self.side:  # parameters of the other side mean something else
            self.side, self.filters = hand.side, [OneEuro() for _ in range(4)]
        scale, offset = hand.camera[0], hand.camera[1:]
        rotation = roma.rotvec_to_rotmat(torch.from_numpy(hand.global_orient)).flatten().numpy()
        values = np.array([math.log(scale), *(offset / scale / STEP)]), rotation
        values += hand.hand_pose, hand.betas
        place, rotation, *values = (f(v, time) for f, v in zip(self.filters, values, strict=True))
        scale = math.exp(place[0])
        camera = np.array([scale, *(place[1:] * scale * STEP)])
        rotation = roma.special_procrustes(torch.from_numpy(rotation).view(3, 3)).numpy()
        return with_parameters(self.model, hand, camera, rotation, *values)


def save_video(
    frames: Iterable[VideoFrame],
    folder: Path,
    stem: str,
    draw: bool = True,
    keep: set | None = None,
) -> tuple[list[str], list[Path]]:
    """Write the overlay of a video as its frames come, and the numbers of each hand at the end.

    Args:
        folder: made if missing.
        stem: start of the files' names: `<stem>_overlay.mp4`, `<stem>_hand<i>.npz`.
        draw: whether the overlay is wanted.
        keep: as in `whole_set`.

    Returns:
        The side of each hand, and the paths.

    Raises:
        NoHandError: where no frame shows a hand; then nothing is written.
    """
    plain_name(stem)
    hands, video = {}, cv2.VideoWriter()
    with whole_set(folder, keep) as (aside, paths):
        try:
            for frame in frames:
                for number, hand in frame.hands.items():
                    # Without its pictures and mesh: a video's would not fit into memory.
                    row = {name: getattr(hand, name) for name in IN_JSON}
                    row |= {"frame": frame.index, "time": frame.index / frame.fps}
                    hands.setdefault(number, []).append(row | {"score": hand.score or np.nan})
                if draw:
                    picture = overlay(list(frame.hands.values()), frame.image)
                    height, width = (n - n % 2 for n in picture.shape[:2])  # as the codec asks
                    if not video.isOpened():
                        path, codec = aside / f"{stem}_overlay.mp4", video.fourcc(*"mp4v")
                        video.open(str(path), codec, frame.fps, (width, height))
                    video.write(cv2.cvtColor(picture[:height, :width], cv2.COLOR_RGB2BGR))
        finally:
            video.release()
        if not hands:
            raise NoHandError(f"no hand was found in any of its {frame.index + 1} frames")
        for i, (_, rows) in enumerate(sorted(hands.items()), start=1):
            arrays = {name: np.array([row[name] for row in rows]) for name in rows[0]}
            arrays |= {name: arrays[name][0] for name in ("hand", "checkpoint")}
            arrays |= {"joint_names": np.array(NAMES), "fps": frame.fps}
            np.savez_compressed(aside / f"{stem}_hand{i}.npz", **arrays)
    return [rows[-1]["side"] for _, rows in sorted(hands.items())], paths
