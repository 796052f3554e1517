"""Cameras: round trips, and Eq. 5 on labels whose camera is known."""

import math

import torch

from hamr_lib import camera

GENERATOR = torch.Generator().manual_seed(0)


def random_points(n=3):
    return torch.randn(n, 21, 3, generator=GENERATOR, dtype=torch.float64) * 0.05


def test_weak_perspective_by_hand():
    points = torch.tensor([[[0.1, -0.2, 5.0]]])
    assert torch.allclose(
        camera.project_weak(points, torch.tensor([[8.0, 0.1, 0.2]])), torch.tensor([[[0.9, -1.4]]])
    )


def test_ground_truth_camera_recovers_the_camera_that_projected():
    points = random_points()
    true = torch.tensor([[7.0, 0.1, -0.2], [9.0, 0, 0.5], [5.0, -0.3, 0]], dtype=torch.float64)
    found = camera.ground_truth_camera(points, camera.project_weak(points, true))
    assert torch.allclose(found, true)


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


def test_pinhole_by_hand():
    K = torch.tensor([[500.0, 0, 160], [0, 400, 120], [0, 0, 1]])
    points = torch.tensor([[0.1, -0.05, 0.5]])
    assert torch.allclose(camera.project_pinhole(points, K), torch.tensor([[260.0, 80.0]]))


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
