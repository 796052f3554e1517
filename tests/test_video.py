"""Videos: what is opened, which hand is which, smoothing over time, and upright frames."""

import os

import cv2
import numpy as np
import pytest
import torch

from hamr_lib.data.photographs import example_photographs
from hamr_lib.errors import HamrError
from hamr_lib.hand.layer import load_hand
from hamr_lib.recovery import video
from hamr_lib.recovery.detect import Detection
from hamr_lib.recovery.photo import read_photo
from hamr_lib.recovery.pipeline import load_network
from hamr_lib.recovery.video import OneEuro, Tracks, open_video, read_frames, recover_video


def detection(x, side="left", score=0.9):
    points = np.stack([x + np.arange(21.0), 50 + np.arange(21.0)], 1)
    return Detection((*points.min(0), *points.max(0)), side, score, points, np.zeros((21, 3)))


def test_hands_keep_their_numbers():
    tracks = Tracks()
    assert list(tracks([detection(0), detection(100, "right")], 0.0)) == [0, 1]
    # Two that move, in another order, and a third.
    assert list(tracks([detection(105, "right"), detection(300), detection(4)], 0.1)) == [1, 2, 0]
    # One that was lost for a moment, and one that was lost for longer.
    assert list(tracks([detection(6)], 0.4)) == [0]
    assert list(tracks([detection(6), detection(300)], 2.0)) == [3, 4]


def test_the_side_of_a_hand_is_the_one_seen_most():
    tracks = Tracks()
    sides = [tracks([detection(0, side)], 0.1 * i)[0].side for i, side in
             enumerate(("left", "left", "right", "left"))]  # fmt: skip
    assert sides == ["left"] * 4
    assert tracks([detection(0, "left")], 0.4, side="right")[0].side == "right"


def test_the_one_euro_filter_is_steady_at_rest_and_follows_motion():
    rng, step = np.random.default_rng(0), 1 / 30
    still, smooth = OneEuro(), OneEuro()
    noisy = rng.normal(0, 0.01, (200, 3))
    filtered = np.array([still(value, i * step) for i, value in enumerate(noisy)])
    assert filtered[50:].std() < 0.6 * noisy[50:].std()
    assert np.array_equal(filtered[0], noisy[0])
    # Of a ramp the lag is less than the time constant of the lowest cutoff.
    ramp = np.arange(200)[:, None] * 10 * step * np.ones(3)
    followed = np.array([smooth(value, i * step) for i, value in enumerate(ramp)])
    assert np.abs(followed - ramp)[-1].max() < 10 / (2 * np.pi * video.CUTOFF)
    # After a gap it starts anew.
    assert np.array_equal(smooth(np.zeros(3), 200 * step + 1), np.zeros(3))


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    """Twelve frames of a left hand that trembles."""
    path = tmp_path_factory.mktemp("clip") / "clip.mp4"
    left, rng = read_photo(example_photographs()[0]), np.random.default_rng(0)
    write(path, [np.roll(left, rng.integers(-2, 3, 2), (0, 1)) for _ in range(12)])
    return path


def write(path, images, codec="mp4v"):
    height, width = (n - n % 2 for n in images[0].shape[:2])
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*codec), 30, (width, height))
    assert writer.isOpened()
    for image in images:
        writer.write(np.ascontiguousarray(image[:height, :width, ::-1]))
    writer.release()


def test_a_smoothed_hand_trembles_less_and_is_one_hand(clip, tiny_checkpoint):
    network = load_network(tiny_checkpoint)
    wild, smooth = (
        [frame.hands[0] for frame in recover_video(clip, network, smoothing=smoothing)]
        for smoothing in (False, True)
    )
    assert len(wild) == len(smooth) == 12 and {hand.side for hand in smooth} == {"left"}

    def jitter(hands):
        return np.abs(np.diff([hand.joints_2d for hand in hands], axis=0)).mean()

    assert jitter(smooth) < 0.8 * jitter(wild)
    hand = smooth[-1]
    layer = load_hand(hand.hand, "left", pose_components=len(hand.hand_pose))
    numbers = (hand.betas, hand.global_orient, hand.hand_pose)
    mesh = layer(*(torch.tensor(v, dtype=torch.float32)[None] for v in numbers))
    vertices = (mesh.vertices - mesh.joints[:, :1])[0].numpy()
    np.testing.assert_allclose(vertices, hand.vertices, atol=1e-4)
    projected = hand.camera[0] * hand.joints_3d[:, :2] + hand.camera[1:]
    np.testing.assert_allclose(projected, hand.joints_2d)


def test_a_box_in_a_video(clip, tiny_checkpoint):
    frames = list(recover_video(clip, load_network(tiny_checkpoint), (10, 30, 190, 290), "left"))
    assert all(list(frame.hands) == [0] for frame in frames)


def test_a_rotated_phone_video_comes_out_upright(tmp_path):
    """MP4 keeps the pixels as they were recorded, and a matrix in `tkhd` that turns them."""
    image = np.zeros((96, 160, 3), np.uint8)
    image[:, :80] = (255, 0, 0)
    write(tmp_path / "a.mp4", [image] * 3)
    data = bytearray((tmp_path / "a.mp4").read_bytes())
    matrix = data.index(b"tkhd") + 4 + 40
    turned = [0, 1, 0, -1, 0, 0, 0, 0, 1]
    scale = [2**16, 2**16, 2**30] * 3
    numbers = np.array([n * s for n, s in zip(turned, scale, strict=True)], ">i4")
    data[matrix : matrix + 36] = numbers.tobytes()
    (tmp_path / "a.mp4").write_bytes(data)
    [first, *_] = read_frames(cv2.VideoCapture(str(tmp_path / "a.mp4"), cv2.CAP_FFMPEG), "a.mp4")
    assert first.shape == (160, 96, 3)
    # Turned clockwise, what was on the left is on top.
    assert first[:70, :, 0].mean() > 200 and first[90:, :, 0].mean() < 50


@pytest.mark.parametrize(
    "kind, codec",
    [("mp4", "mp4v"), ("mov", "mp4v"), ("avi", "MJPG"), ("mkv", "mp4v"), ("webm", "VP80")],
)
def test_each_container_is_read_whatever_its_name(tmp_path, kind, codec):
    levels = np.linspace(60, 255, 5)
    write(tmp_path / f"a.{kind}", [np.full((48, 64, 3), n, np.uint8) for n in levels], codec)
    odd = os.fsencode(tmp_path) + b"/caf\xe9 %d.mp4"  # Latin-1, and a pattern of image sequences
    os.rename(tmp_path / f"a.{kind}", odd)
    frames = list(read_frames(open_video(os.fsdecode(odd)), "a"))
    assert len(frames) == 5 and abs(frames[-1].mean() - 255) < 5


@pytest.mark.parametrize("text", [
    "ffconcat version 1.0\nfile clip.mp4\n",
    "#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nclip.mp4\n#EXT-X-ENDLIST\n",
    "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nm=video 5004 RTP/AVP 96\n",
    '<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011"></MPD>',
    "", "RIFFxxxxAVI LIST", "\x1a\x45\xdf\xa3#EXTM3U\n#EXTINF:1,\nclip.mp4\n",
    "xxxxftypisom#EXTM3U\n#EXTINF:1,\nclip.mp4\n",
])  # fmt: skip
def test_playlists_and_damaged_files_are_refused(clip, text):
    path = clip.with_name("text.mp4")
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(HamrError, match="text.mp4 is not a video that is read"):
        open_video(path)


def test_what_is_no_file_is_refused(tmp_path):
    os.mkfifo(tmp_path / "pipe.mp4")
    for name in ("pipe.mp4", "none.mp4", ".", "x" * 300, "a\0b"):
        with pytest.raises(HamrError, match="cannot read"):
            open_video(tmp_path / name)
