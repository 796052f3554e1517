"""Open a video so that FFmpeg reads this file and nothing else.

FFmpeg goes by the content and not by the name: a text named `.mp4` may be a playlist (concat, HLS,
DASH, SDP) that makes it read other files or the network.
"""

import os
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np

from hamr_lib.recovery.output import reason, shown
from hamr_lib.recovery.photo import PhotoError

CONTAINERS = {  # FFmpeg's names, and how such files begin: (offset, bytes)
    "mov,mp4,m4a,3gp,3g2,mj2": [
        (4, kind) for kind in (b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip")
    ],
    "matroska,webm": [(0, b"\x1a\x45\xdf\xa3")],
    "avi": [(0, b"RIFF")],
    "mpeg": [(0, b"\x00\x00\x01\xba")],
    "mpegvideo": [(0, b"\x00\x00\x01\xb3")],
}
_OPTIONS = "OPENCV_FFMPEG_CAPTURE_OPTIONS"


def open_video(path: str | Path) -> cv2.VideoCapture:
    """Open a video in MP4, QuickTime, Matroska, WebM, AVI or MPEG.

    Raises:
        PhotoError: for a file that cannot be read, another container, or a damaged one.
    """
    try:
        if not Path(path).is_file():
            raise OSError(None, "it is no file")
        with open(path, "rb") as file:
            start = file.read(16)
            for names, starts in CONTAINERS.items():
                if any(start[at:].startswith(mark) for at, mark in starts):
                    # By its descriptor, as a name that is not UTF-8 would end the process.
                    video = _open(f"/dev/fd/{file.fileno()}", names)
                    if video.isOpened():
                        return video
    except (OSError, ValueError) as error:
        raise PhotoError(f"cannot read {shown(path)}: {reason(error)}") from error
    raise PhotoError(
        f"{shown(path)} is not a video that is read: expected an undamaged MP4, QuickTime, "
        "Matroska, WebM, AVI or MPEG"
    )


def _open(name, containers):
    """Open by FFmpeg alone, told which container and which protocol it may use."""
    before = os.environ.get(_OPTIONS)
    os.environ[_OPTIONS] = f"format_whitelist;{containers}|protocol_whitelist;file"
    try:
        return cv2.VideoCapture(name, cv2.CAP_FFMPEG)
    finally:
        del os.environ[_OPTIONS]
        if before is not None:
            os.environ[_OPTIONS] = before


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
