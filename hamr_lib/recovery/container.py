"""Open a video file so that FFmpeg reads this file and nothing else.

FFmpeg goes by the content and not by the name: a text named `.mp4` may be a playlist (concat, HLS,
DASH, SDP) that makes it read other files or the network.
"""

import os
from pathlib import Path

import cv2

from hamr_lib.errors import HamrError

# FFmpeg's names of the containers, and how their files begin: (offset, bytes).
CONTAINERS = {
    "mov": [(4, kind) for kind in (b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip")],
    "matroska": [(0, b"\x1a\x45\xdf\xa3")],
    "avi": [(0, b"RIFF")],
    "mpeg": [(0, b"\x00\x00\x01\xba")],
    "mpegvideo": [(0, b"\x00\x00\x01\xb3")],
}
_OPTIONS = "OPENCV_FFMPEG_CAPTURE_OPTIONS"


def open_video(path: str | Path) -> cv2.VideoCapture:
    """Open a video in MP4, QuickTime, Matroska, WebM, AVI or MPEG.

    Raises:
        HamrError: for a file that cannot be read, another container, or a damaged one.
    """
    path = Path(path)
    try:
        if not path.is_file():
            raise OSError(None, "it is no file")
        with open(path, "rb") as file:
            start = file.read(16)
            kinds = [
                kind
                for kind, starts in CONTAINERS.items()
                if any(start[at:].startswith(mark) for at, mark in starts)
            ]
            # By its descriptor, as a name that is not UTF-8 would end the process.
            video = _open(f"/dev/fd/{file.fileno()}", kinds[0]) if kinds else None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise HamrError(f"cannot read {os.fsencode(path)!r}: {reason}") from error
    if video is None or not video.isOpened():
        raise HamrError(
            f"{str(path)!r} is not a video that is read: expected MP4, QuickTime, Matroska, WebM, "
            "AVI or MPEG, and none that is damaged"
        )
    return video


def _open(name, kind):
    """Open by FFmpeg alone, told which container and which protocol it may use."""
    before = os.environ.get(_OPTIONS)
    names = {"mov": "mov,mp4,m4a,3gp,3g2,mj2", "matroska": "matroska,webm"}.get(kind, kind)
    os.environ[_OPTIONS] = f"format_whitelist;{names}|protocol_whitelist;file"
    try:
        return cv2.VideoCapture(name, cv2.CAP_FFMPEG)
    finally:
        del os.environ[_OPTIONS]
        if before is not None:
            os.environ[_OPTIONS] = before
