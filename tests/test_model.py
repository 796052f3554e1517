import pytest
import roma
import torch
from tiny import TinyHand
from torch.utils.flop_counter import FlopCounterMode

from hamr_lib.camera import hand_tilt, project_weak, rotate_in_plane
from hamr_lib.config import Model
from hamr_lib.errors import HamrError
from hamr_lib.model.blocks import describe_blocks
from hamr_lib.model.hamr import HAMR, rotation_from_6d
from hamr_lib.model.heatmaps import (
    cell_centres,
    heatmap_peaks,
    joint_aligned_features,
    softargmax_keypoints,
)


class Hand(TinyHand):
    """The tiny hand, its wrist away from the origin as MANO's is."""

    def forward(self, betas, global_orient, hand_pose):
        mesh = super().forward(betas, global_orient, hand_pose)
        return mesh._replace(vertices=mesh.vertices + 0.1, joints=mesh.joints + 0.1)


SMALL = dict(image_size=64, channels=8, convs=1, maps=24, depth=2, hidden=16)


def small(pose_components=6, **changes):
    torch.manual_seed(0)
    return HAMR(Model(**{**SMALL, **changes}), Hand(pose_components))


def images(batch=2, size=64):
    return torch.rand(batch, 3, size, size, generator=torch.Generator().manual_seed(1))


def test_paper_size_has_the_stated_layers_parameters_and_operations():
    model = HAMR(Model(), Hand()).to("meta").eval()
    with FlopCounterMode(display=False) as counter:
        joined, heatmaps, _ = model.pose_module(torch.empty(1, 3, 256, 256, device="meta"))
        raw = model.regressor.encoder(joined).flatten(1)
    assert [tuple(m.shape) for m in heatmaps] == [(1, 64, 64, 64)] * 2
    assert [conv[0].stride for conv in model.regressor.encoder] == 6 * [(2, 2)]
    assert raw.shape == (1, 2048)
    widths = [m.out_features for m in model.regressor.layers if isinstance(m, torch.nn.Linear)]
    assert widths == [2048, 2048, 3 + 3 + 6 + 10]
    assert [m.p for m in model.regressor.layers if isinstance(m, torch.nn.Dropout)] == [0.4, 0.4]
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert trained == pytest.approx(69.8e6, rel=0.03)
    assert counter.get_total_flops() == pytest.approx(59e9, rel=0.05)
    assert not any(isinstance(m, torch.nn.MaxPool2d) for m in model.modules())


@pytest.mark.parametrize("changes", [{}, {"mesh": False}])
def test_a_crop_turned_upright_gives_the_hand_of_the_crop(changes):
    model = small(**changes).eval()
    torch.nn.init.normal_(model.regressor.layers[-1].weight, std=0.1)
    tilt = torch.full((2,), torch.pi / 2)  # the fingers point right: a quarter turn, exact
    with torch.no_grad():
        seen = model(images().rot90(1, (2, 3)))
        [estimate], maps = seen.estimates, seen.heatmaps[-1]
        found = model.upright(images(), tilt)
        plain, same = model(images()), model.upright(images(), torch.zeros(2))
    [turned] = found.estimates
    for name in ("joints_3d", "joints_2d", "vertices"):
        if getattr(estimate, name) is not None:
            expected = rotate_in_plane(getattr(estimate, name), tilt)
            torch.testing.assert_close(getattr(turned, name), expected, atol=1e-4, rtol=1e-4)
    projected = project_weak(turned.joints_3d, turned.camera)
    torch.testing.assert_close(projected, turned.joints_2d, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(found.heatmaps[-1], maps.rot90(-1, (2, 3)), atol=1e-3, rtol=1e-3)
    if model.mesh:
        about_the_axis = roma.rotvec_to_rotmat(torch.tensor([0, 0, torch.pi / 2]))
        expected = about_the_axis @ estimate.rotation
        torch.testing.assert_close(turned.rotation, expected, atol=1e-4, rtol=0)
    torch.testing.assert_close(
        same.estimates[0].joints_3d, plain.estimates[0].joints_3d, atol=1e-4, rtol=1e-4
    )


def test_the_first_look_tells_the_tilt():
    model = small().eval()
    joints = torch.zeros(2, 21, 2)
    joints[:, 9] = torch.tensor([[0.0, -1.0], [0.5, 0.5]])  # up; right and down
    torch.testing.assert_close(hand_tilt(joints), torch.tensor([0.0, 3 * torch.pi / 4]))
    with torch.no_grad():
        tilt = hand_tilt(model(images()).estimates[-1].joints_2d)
        asked, found = model.upright(images(), tilt), model.upright(images())
    assert torch.equal(asked.estimates[0].joints_3d, found.estimates[0].joints_3d)


@pytest.mark.parametrize(
    "changes",
    [
        {"image_size": 48, "maps": 21, "stacks": 3, "iterations": 2, "convs": 2, "rotation": "6d"},
        {"pose_components": 45, "iterations": 1},
        {"mesh": False},
    ],
)
def test_shapes(changes):
    pose = changes.get("pose_components", 6)
    settings = Model(**{**SMALL, **{k: v for k, v in changes.items() if k != "pose_components"}})
    model, seen = small(**changes).eval(), images(size=settings.image_size)
    output, side = model(seen, all_iterations=True), settings.image_size // 4
    maps = [tuple(m.shape) for m in output.heatmaps]
    assert maps == [(2, settings.maps, side, side)] * settings.stacks
    assert len(output.estimates) == settings.iterations
    mesh = [(3, 3), (pose,), (10,), (84, 3)] if settings.mesh else []
    shapes = [(3,), *mesh, (21, 3), (21, 2)]
    for estimate in output.estimates:
        assert [t.shape[1:] for t in estimate if t is not None] == shapes
    torch.testing.assert_close(output.estimates[-1].joints_3d, model(seen).estimates[0].joints_3d)


@pytest.mark.parametrize("rotation", ["axis_angle", "6d"])
def test_start_is_a_plausible_camera_and_the_hand_at_rest(rotation):
    model, without = (small(rotation=rotation, mesh=mesh) for mesh in (True, False))
    estimate = model.decode(model.regressor.start[None])
    torch.testing.assert_close(estimate.camera, torch.tensor([[10.0, 0.0, 0.0]]))
    torch.testing.assert_close(estimate.rotation, torch.eye(3)[None])
    assert not estimate.hand_pose.any() and not estimate.betas.any()
    joints = without.decode(without.regressor.start[None]).joints_3d
    torch.testing.assert_close(joints, estimate.joints_3d)


def test_decoding_follows_the_paper():
    """Raw numbers -> Eq. 3 joints about the wrist, Eq. 4-5 projection, the stated rotation."""
    model = small()
    raw = torch.randn(5, 22, generator=torch.Generator().manual_seed(2))
    estimate = model.decode(raw)
    expected = torch.linalg.matrix_exp(  # the exponential map, from its definition
        torch.stack([torch.linalg.cross(r.expand(3, 3), torch.eye(3)).T for r in raw[:, 3:6]])
    )
    mesh = model.hand(raw[:, 12:], estimate.rotation, raw[:, 6:12])
    for found, wanted in (
        (estimate.rotation, expected),
        (roma.rotvec_to_rotmat(estimate.global_orient), expected),
        (torch.cat([estimate.hand_pose, estimate.betas], dim=1), raw[:, 6:]),
        (estimate.joints_3d, mesh.joints - mesh.joints[:, :1]),
        (estimate.vertices, mesh.vertices - mesh.joints[:, :1]),
        (estimate.camera[:, 1:], raw[:, 1:3]),
        (estimate.joints_2d, project_weak(estimate.joints_3d, estimate.camera)),
        (model.project(raw), estimate.joints_2d),
    ):
        torch.testing.assert_close(found, wanted, atol=1e-5, rtol=0)


def test_6d_rotation():
    numbers = torch.randn(100, 6, generator=torch.Generator().manual_seed(3), dtype=torch.double)
    R = rotation_from_6d(numbers)
    eye = torch.eye(3, dtype=torch.double).expand(100, 3, 3)
    torch.testing.assert_close(R @ R.mT, eye)
    torch.testing.assert_close(torch.linalg.det(R), torch.ones(100, dtype=torch.double))
    # The columns' lengths, and how much of the first is in the second, do not matter.
    other = torch.cat([3 * numbers[:, :3], 0.5 * numbers[:, 3:] + 2 * numbers[:, :3]], dim=1)
    # A rotation's own first two columns give it back.
    for same in (other, R[:, :, :2].mT.flatten(1)):
        torch.testing.assert_close(rotation_from_6d(same), R)
    assert rotation_from_6d(torch.zeros(1, 6)).isfinite().all()


def gaussians(centres, size, variance=2.5):
    """(N, 2) pixels as x, y -> (N, size, size), from the definition, pixel by pixel."""
    y, x = torch.meshgrid(*[torch.arange(size, dtype=torch.float64)] * 2, indexing="ij")
    return torch.stack([
        torch.exp(-((x - cx) ** 2 + (y - cy) ** 2) / (2 * variance)) for cx, cy in centres.tolist()
    ])  # fmt: skip


def test_peaks_of_gaussians_at_known_places():
    size = 32
    centres = 1 + 29 * torch.rand(21, 2, generator=torch.Generator().manual_seed(4))
    expected = (centres + 0.5) / size * 2 - 1  # crop units, from their definition
    maps = torch.zeros(1, 24, size, size)
    maps[0, :21] = gaussians(centres, size)
    pixel = 2 / size
    assert (heatmap_peaks(maps)[0] - expected).abs().max() < 0.021 * pixel
    # Logits of the same Gaussians, and any constant added to them.
    logits = maps.double().clamp_min(1e-300).log() + 7
    assert (heatmap_peaks(logits)[0] - expected).abs().max() < 1e-3 * pixel


def test_places_are_the_mean_and_the_sharpness_of_the_softmax():
    maps = torch.full((1, 21, 8, 8), -50.0)
    maps[0, :, 2, 5] = 50.0  # all in one pixel: row 2, column 5
    maps[0, 1, 2, 7] = 50.0  # or half in each of two
    maps[0, 2] = 0.0  # or everywhere
    centre = [(2 * pixel + 1) / 8 - 1 for pixel in range(8)]
    expected = [[centre[5], centre[2], 1.0], [centre[6], centre[2], 0.5], [0.0, 0.0, 1 / 64]]
    torch.testing.assert_close(softargmax_keypoints(maps)[0, :3], torch.tensor(expected))


def test_sample_reads_a_map_at_its_places():
    """A map that holds its own coordinates is read exactly, between the pixels too."""
    axis = cell_centres(8, -1.0, 1.0, torch.zeros(1))
    ramp = torch.stack([axis.expand(8, 8), axis[:, None].expand(8, 8)]).expand(3, 2, 8, 8)
    places = (torch.rand(3, 21, 2, generator=torch.Generator().manual_seed(0)) - 0.5) * 1.7
    read = joint_aligned_features(ramp, places.requires_grad_())
    torch.testing.assert_close(read, places, atol=1e-6, rtol=0)
    assert not read.requires_grad


def test_the_layers_see_keypoints_their_features_and_how_far_the_projection_is_off():
    """The first layer is taken apart; the answer is that of all at once, iteration by iteration."""
    model = small(joint_features=True).eval()
    regression = model.regressor
    joined, heatmaps, _ = model.pose_module(images())
    assert torch.equal(joined[:, -24:], heatmaps[-1])
    keypoints = softargmax_keypoints(joined[:, -24:])
    aligned = regression.joint_features(joint_aligned_features(joined[:, :-24], keypoints[..., :2]))
    found = regression(joined, None, lambda raw: raw[:, :1, None].expand(-1, 21, 2))
    last = regression.start.expand(2, -1)
    for estimate in found:
        off = last[:, :1, None] - keypoints[..., :2]
        parts = [regression.encoder(joined), keypoints, aligned, last, off]
        last = last + regression.layers(torch.cat([part.flatten(1) for part in parts], dim=1))
        torch.testing.assert_close(estimate, last)


def test_peaks_on_the_border_stay_in_the_crop():
    size = 16
    centres = torch.tensor([[0.0, 0.0], [15.0, 15.0], [-3.0, 7.0], [7.0, 20.0]]).repeat(6, 1)[:21]
    found = heatmap_peaks(gaussians(centres, size)[None])[0]
    first, last = -1 + 1 / size, 1 - 1 / size
    expected = [[first, first], [last, last], [first, -1 / size], [-1 / size, last]]
    torch.testing.assert_close(found[:4], torch.tensor(expected), atol=1e-6, rtol=0)
    flat = heatmap_peaks(torch.zeros(1, 21, size, size))
    assert flat.isfinite().all() and (flat.abs() <= 1).all()


@pytest.mark.parametrize("rotation", ["axis_angle", "6d"])
@pytest.mark.parametrize("mesh", [True, False])
def test_every_trained_parameter_gets_a_finite_gradient_under_bfloat16(rotation, mesh):
    model = small(rotation=rotation, mesh=mesh).to(memory_format=torch.channels_last)
    with torch.autocast("cpu", torch.bfloat16):
        output = model(images(4).contiguous(memory_format=torch.channels_last))
    estimate = output.estimates[-1]
    assert output.heatmaps[-1].dtype == torch.bfloat16
    assert {t.dtype for t in estimate if t is not None} == {torch.float32}
    loss = estimate.joints_3d.square().sum() + estimate.joints_2d.square().sum()
    (loss + sum(m[:, :21].float().square().sum() for m in output.heatmaps)).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name


def test_describe_tells_the_real_modules():
    model = small().train()
    rows = describe_blocks(model)
    assert model.training
    names, shapes = [name for name, *_ in rows], {name: shape for name, shape, _ in rows}
    expected = {"hourglasses.1": (8, 16, 16), "maps.1": (24, 16, 16), "encoder.3": (16, 1, 1)}
    assert expected.items() | {("layers", (22,))} <= shapes.items()
    assert names.index("hourglasses.0") < names.index("maps.0") < names.index("hourglasses.1")
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert sum(count for *_, count in rows) == trained


def test_an_image_of_the_wrong_size_is_named():
    with pytest.raises(HamrError, match="32, 32.*64, 64"):
        small()(images(size=32))
