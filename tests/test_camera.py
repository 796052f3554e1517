"""Cameras: round trips, and labels whose camera is known."""

import math

import pytest
import torch

from hamr_lib import camera

GENERATOR = torch.Generator().manual_seed(0)


def random_points(n=3):
    return torch.randn(n, 21, 3, generator=GENERATOR, dtype=torch.float64) * 0.05


def test_ground_truth_camera_ignores_unlabelled_joints():
    points = random_points()
    true = torch.tensor([[7.0, 0.1, -0.2]] * 3, dtype=torch.float64)
    points_2d = camera.project_weak(points, true)
    valid = torch.ones(3, 21, dtype=torch.bool)
    valid[:, 8] = False
    points[:, 8] = math.nan
    points_2d[:, 8] = math.nan
    assert torch.allclose(camera.ground_truth_camera(points, points_2d, valid), true)
    assert camera.ground_truth_camera(points, points_2d, valid & False).isnan().all()


def test_images_turn_as_points_do():
    image = torch.zeros(1, 1, 64, 64)
    image[0, 0, 20:23, 40:43] = 1.0  # a dot whose middle is the pixel (41, 21)
    angle = torch.tensor([0.7])
    grid = camera.crop_units_to_grid(torch.tensor([[[0.0, 0.0]]]), 64)
    point = torch.tensor([[[41.0, 21.0]]])
    expected = camera.rotate_in_plane(point - grid, angle) + grid
    turned = camera.turn_image(image, angle)[0, 0]
    pixel = torch.arange(64.0)
    found = torch.stack([(turned.sum(0) * pixel).sum(), (turned.sum(1) * pixel).sum()])
    torch.testing.assert_close(found / turned.sum(), expected[0, 0], atol=0.05, rtol=0)
    quarter = camera.turn_image(image, torch.tensor([math.pi / 2]))
    torch.testing.assert_close(quarter, image.rot90(-1, (2, 3)), atol=1e-5, rtol=0)


def test_crop_round_trip_and_borders():
    pixels = torch.rand(2, 21, 2, generator=GENERATOR) * 320
    center, side = torch.tensor([[100.0, 120.0], [50.0, 60.0]]), torch.tensor([80.0, 120.0])
    crop = camera.pixels_to_crop(pixels, center, side)
    assert torch.allclose(camera.crop_to_pixels(crop, center, side), pixels, atol=1e-3)
    # The outer edges of the first and last pixel of a crop drawn at 8 pixels are -1 and 1.
    edges = camera.crop_units_to_grid(torch.tensor([-1.0, 1.0]), 8)
    assert edges.tolist() == [-0.5, 7.5]


def test_rotation_is_clockwise_and_keeps_depth():
    turned = camera.rotate_in_plane(torch.tensor([[[1.0, 0.0, 3.0]]]), torch.tensor([math.pi / 2]))
    # x right, y down: a quarter turn clockwise takes "right" to "down".
    assert torch.allclose(turned, torch.tensor([[[0.0, 1.0, 3.0]]]), atol=1e-6)


def foreshortened():
    """A wrist, a thumb bone of (3, 4, 0) cm and an index bone of (6, 0, 8) cm, seen by s = 10."""
    joints = torch.zeros(1, 21, 3)
    joints[0, 1] = torch.tensor([0.03, 0.04, 0.0])
    joints[0, 5] = torch.tensor([0.06, 0.0, 0.08])
    valid = torch.zeros(1, 21, dtype=torch.bool)
    valid[0, [0, 1, 5]] = True
    return joints, camera.project_weak(joints, torch.tensor([[10.0, 0.2, -0.1]])), valid


def test_the_paper_s_scale_divides_by_full_bones_and_ours_by_projected_ones():
    joints, flat, valid = foreshortened()
    # 2-D bones: 0.5 and 0.6. 3-D bones: 0.05 and 0.10 at full length, 0.05 and 0.06 projected.
    s, tx, ty = camera.ground_truth_camera(joints, flat, valid, "full")[0].tolist()
    assert s == pytest.approx(1.1 / 0.15, rel=1e-5)
    # The mean joint: (0.03, 0.04 / 3) m, seen at (10 * 0.03 + 0.2, 0.4 / 3 - 0.1).
    assert tx == pytest.approx(0.5 - 1.1 / 0.15 * 0.03, rel=1e-5)
    assert ty == pytest.approx(0.4 / 3 - 0.1 - 1.1 / 0.15 * 0.04 / 3, rel=1e-4)
    ours = camera.ground_truth_camera(joints, flat, valid, "projected")
    assert torch.allclose(ours, torch.tensor([[10.0, 0.2, -0.1]]), atol=1e-5)


def test_the_paper_s_camera_shifts_in_metres_before_it_scales():
    s, tx, ty = camera.offset_in_metres(torch.tensor([[8.0, 0.4, -0.2]]))[0].tolist()
    assert (s, tx, ty) == pytest.approx((8.0, 0.05, -0.025))
    # A point at (0.1, 0.1): 8 (0.1 + 0.05) and 8 (0.1 - 0.025), as 8 * 0.1 + 0.4 and - 0.2.
    point = torch.tensor([[[0.1, 0.1, 0.3]]])
    seen = camera.project_weak(point, torch.tensor([[8.0, 0.4, -0.2]]))[0, 0]
    assert seen.tolist() == pytest.approx([8.0 * (0.1 + tx), 8.0 * (0.1 + ty)])
