"""Videos are opened by what they are, not by what they are called."""

import os

import cv2
import numpy as np
import pytest

from hamr_lib.errors import HamrError
from hamr_lib.recovery.container import open_video

CODECS = {"mp4": "mp4v", "mov": "mp4v", "avi": "MJPG", "mkv": "mp4v", "webm": "VP80"}


def write_video(path, frames=5):
    """Grey frames, the last one white."""
    kind = str(path).rsplit(".", 1)[-1]
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*CODECS[kind]), 5, (64, 48))
    assert writer.isOpened()
    for level in np.linspace(60, 255, frames):
        writer.write(np.full((48, 64, 3), level, np.uint8))
    writer.release()


@pytest.mark.parametrize("kind", CODECS)
def test_each_container_is_read_whatever_its_name(tmp_path, kind):
    write_video(tmp_path / f"video.{kind}")
    odd = os.fsencode(tmp_path) + b"/caf\xe9 %d.mp4"  # Latin-1, and a pattern of image sequences
    os.rename(tmp_path / f"video.{kind}", odd)
    video = open_video(os.fsdecode(odd))
    frames = [frame for _, frame in iter(video.read, (False, None))]
    assert len(frames) == 5 and abs(frames[-1].mean() - 255) < 5


@pytest.mark.parametrize("text", [
    "ffconcat version 1.0\nfile other.mp4\n",
    "#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nother.mp4\n#EXT-X-ENDLIST\n",
    "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nm=video 5004 RTP/AVP 96\n",
    '<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011"></MPD>',
    "", "RIFFxxxxAVI LIST", "\x1a\x45\xdf\xa3#EXTM3U\n#EXTINF:1,\nother.mp4\n",
    "xxxxftypisom#EXTM3U\n#EXTINF:1,\nother.mp4\n",
])  # fmt: skip
def test_playlists_and_damaged_files_are_refused(tmp_path, text):
    write_video(tmp_path / "other.mp4")
    (tmp_path / "video.mp4").write_bytes(text.encode("latin-1"))
    with pytest.raises(HamrError, match="video.mp4' is not a video that is read"):
        open_video(tmp_path / "video.mp4")


def test_what_is_no_file_is_refused(tmp_path):
    os.mkfifo(tmp_path / "pipe.mp4")
    for name in ("pipe.mp4", "none.mp4", ".", "x" * 300, "a\0b"):
        with pytest.raises(HamrError, match="cannot read"):
            open_video(tmp_path / name)
