"""Open a video so that FFmpeg reads this file and nothing else.

FFmpeg goes by the content and not by the name: a text named `.mp4` may be a playlist (concat, HLS,
DASH, SDP) that makes it read other files or the network.
"""

import os
import re
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np

from hamr_lib.recovery.output import reason, shown
from hamr_lib.recovery.photo import PhotoError

CONTAINERS = {  # FFmpeg's names, and how such files begin
    "mov,mp4,m4a,3gp,3g2,mj2": rb".{4}(ftyp|moov|mdat|wide|free|skip)",
    "matroska,webm": rb"\x1a\x45\xdf\xa3",
    "avi": rb"RIFF",
    "mpeg": rb"\x00\x00\x01\xba",
    "mpegvideo": rb"\x00\x00\x01\xb3",
}
OPTIONS = "OPENCV_FFMPEG_CAPTURE_OPTIONS"


def open_video(path: str | Path) -> cv2.VideoCapture:
    """Open a video in MP4, QuickTime, Matroska, WebM, AVI or MPEG.

    Raises:
        PhotoError: for a file that cannot be read, another container, or a damaged one.
    """
    before = os.environ.get(OPTIONS)
    try:
        if not Path(path).is_file():
            raise OSError(None, "it is no file")
        with open(path, "rb") as file:
            start = file.read(16)
            for names, begin in CONTAINERS.items():
                if re.match(begin, start, re.DOTALL):
                    os.environ[OPTIONS] = f"format_whitelist;{names}|protocol_whitelist;file"
                    # By its descriptor, as a name that is not UTF-8 would end the process.
                    video = cv2.VideoCapture(f"/dev/fd/{file.fileno()}", cv2.CAP_FFMPEG)
                    if video.isOpened():
                        return video
    except (OSError, ValueError) as error:
        raise PhotoError(f"cannot read {shown(path)}: {reason(error)}") from error
    finally:
        os.environ.pop(OPTIONS, None)
        if before is not None:
            os.environ[OPTIONS] = before
    kinds = "an undamaged MP4, QuickTime, Matroska, WebM, AVI or MPEG"
    raise PhotoError(f"{shown(path)} is not a video that is read: expected {kinds}")


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
