"""Synthetic people: Anny bodies with posed arms and hands, skin, nails and clothes.

A person is drawn from a seeded generator. Both hands are posed by `poses`; labels are the skeleton's
joints and five fingertip vertices, the same points that the open hand's layer gives.
"""

import functools
from typing import NamedTuple

import numpy as np
import torch
from scipy.spatial.transform import Rotation

from ..joints import FROM_MANO
from ..poses import ANNY_BONES, anny_pose

SIDES = {"left": ".L", "right": ".R"}
# Skin from the palest to the darkest, linear RGB, after the ten tones of the Monk scale.
TONES = np.array([
    [0.92, 0.78, 0.68], [0.87, 0.68, 0.55], [0.80, 0.58, 0.43], [0.72, 0.49, 0.34],
    [0.60, 0.39, 0.25], [0.47, 0.29, 0.18], [0.34, 0.20, 0.12], [0.23, 0.13, 0.08],
    [0.15, 0.085, 0.055],
])  # fmt: skip


class Body(NamedTuple):
    """What does not change from person to person."""

    model: torch.nn.Module
    rest: np.ndarray  # (V, 3) metres, the average adult at rest: where textures are fixed
    faces: np.ndarray  # (F, 3)
    labels: list  # bone labels
    hand: dict  # side -> (V,) share of each vertex that hangs on that hand's bones
    arm: dict  # side -> (V,) metres from the wrist up the arm, at rest; infinite elsewhere
    tips: dict  # side -> five fingertip vertices
    finger: np.ndarray  # (V,) 0 palm or body, 1..15 phalanx of either hand: finger * 3 + part + 1
    blush: np.ndarray  # (V,) redness: knuckles and fingertips
    nails: np.ndarray  # (V,) bool, fingernails
    head: np.ndarray  # (V,) share of head and neck
    legs: np.ndarray  # (V,) share of hips and legs


@functools.cache
def body():
    """Anny's body and what we derive from its skeleton, once a process."""
    import anny

    model = anny.Anny()
    labels = list(model.bone_labels)
    average = {label: torch.tensor([0.5]) for label in model.phenotype_labels}
    out = model(phenotype_kwargs=average)
    rest = out["vertices"][0].numpy()
    heads = out["bone_poses"][0, :, :3, 3].numpy()
    frames = out["bone_poses"][0, :, :3, :3].numpy()
    weights = np.zeros((len(rest), len(labels)))
    np.add.at(
        weights,
        (np.arange(len(rest))[:, None], model.vertex_bone_indices.numpy()),
        model.vertex_bone_weights.numpy(),
    )
    hand, arm, tips = {}, {}, {}
    finger = np.zeros(len(rest), int)
    blush, nails = np.zeros(len(rest)), np.zeros(len(rest), bool)
    for side, end in SIDES.items():
        own = [i for i, b in enumerate(labels) if b.endswith(end)
               and b.startswith(("wrist", "finger", "metacarpal"))]
        hand[side] = weights[:, own].sum(1)
        above = [i for i, b in enumerate(labels) if b.endswith(end)
                 and b.startswith(("lowerarm", "upperarm", "shoulder"))]
        on_arm = hand[side] + weights[:, above].sum(1) > 0.5
        wrist, elbow = heads[labels.index("wrist" + end)], heads[labels.index("lowerarm01" + end)]
        shoulder = heads[labels.index("upperarm01" + end)]
        low = (wrist - rest) @ (wrist - elbow) / np.linalg.norm(wrist - elbow)
        fore = np.linalg.norm(wrist - elbow)
        high = fore + (elbow - rest) @ (elbow - shoulder) / np.linalg.norm(elbow - shoulder)
        arm[side] = np.where(on_arm, np.where(low < fore, low, np.maximum(high, fore)), np.inf)
        tips[side] = []
        for f in range(5):
            for part in range(3):
                bone = labels.index(f"finger{f + 1}-{part + 1}{end}")
                mine = weights[:, bone] > 0.5
                finger[mine] = 3 * f + part + 1
                near = np.linalg.norm(rest - heads[bone], axis=1)
                blush = np.maximum(blush, np.exp(-((near / 0.009) ** 2)) * (hand[side] > 0.5))
            bone = labels.index(f"finger{f + 1}-3{end}")
            flesh = np.flatnonzero(weights[:, bone] > 0.6)
            local = (rest[flesh] - heads[bone]) @ frames[bone]  # x flexion, y along, z palmar
            tip = flesh[local[:, 1].argmax()]
            tips[side].append(int(tip))
            length = local[:, 1].max()
            blush[flesh] = np.maximum(blush[flesh], (local[:, 1] / length).clip(0, 1) ** 3)
            width = np.abs(local[:, 0]).max()
            nail = (local[:, 2] < 0) & (local[:, 1] > 0.5 * length) & (np.abs(local[:, 0]) < 0.6 * width)
            nails[flesh[nail]] = True

    def share(*starts):
        return weights[:, [i for i, bone in enumerate(labels) if bone.startswith(starts)]].sum(1)

    head, legs = share("head", "neck", "eye"), share("upperleg", "lowerleg", "foot", "toe", "pelvis")
    faces = model.faces.numpy().astype(np.int64)
    return Body(model, rest, faces, labels, hand, arm, tips, finger, blush, nails, head, legs)


class Person(NamedTuple):
    """One posed person; world frame: x to the person's left, y backwards, z up, metres."""

    vertices: np.ndarray  # (V, 3)
    joints: dict  # side -> (21, 3), the order of `joints.NAMES`
    albedo: np.ndarray  # (V, 3) linear RGB
    grain: np.ndarray  # (V,) how strongly the texture of skin or cloth shows


def draw_identity(rng, factors):
    """Body, skin and clothes of somebody, as a dict that `pose_people` takes."""
    grown = rng.uniform() < 0.85
    body_shape = {
        "gender": rng.uniform(),
        "age": rng.uniform(0.6, 1.0) if grown else rng.uniform(0.35, 0.6),
        "muscle": rng.uniform(0.2, 0.8),
        "weight": rng.beta(3, 3),
        "height": rng.beta(3, 3),
        "proportions": rng.uniform(0.2, 0.8),
    }
    whole, share = divmod(rng.uniform(0, len(TONES) - 1), 1)
    tone = (1 - share) * TONES[int(whole)] + share * TONES[int(whole) + 1]
    tone = tone * rng.uniform(0.9, 1.1) * np.exp(rng.normal(0, 0.05, 3))
    varnish = rng.uniform(size=3) ** 2
    natural = tone * rng.uniform(1.0, 1.2) + rng.uniform(0, 0.1)
    bare, short, long = 9.0, rng.uniform(0.03, 0.5), rng.uniform(-0.01, 0.05)
    grey = rng.uniform(0.02, 0.8)  # most clothes are nearer to grey than to a paint
    return {
        "phenotype": body_shape,
        "tone": tone,
        "nail": varnish if rng.uniform() < 0.12 else natural,
        "blush": rng.uniform(0, 0.5),
        "grain": rng.uniform(0.02, 0.09),
        "sleeve": rng.choice([bare, short, long], p=[0.4, 0.3, 0.3]),
        "shirt": grey * (1 + rng.uniform(0, 0.8) * rng.uniform(-1, 1, 3)),
        "trousers": rng.uniform(0.02, 0.4) * (1 + 0.5 * rng.uniform(-1, 1, 3)),
        "weave": rng.uniform(0.0, 0.15),
    }


def draw_arm(rng):
    """The posture of one arm, as a dict of angles (radians) that means the same on both sides."""
    return {
        # Where the upper arm points: away from the body, forward, up.
        "upper": np.array([rng.uniform(0.1, 1), rng.uniform(-0.3, 1), rng.uniform(-1, 0.6)]),
        "twist": rng.uniform(-0.8, 0.8),
        "elbow": np.radians(rng.uniform(-15, 115)),
        "pronation": np.radians(rng.uniform(-70, 70)),
        "flexion": np.radians(np.clip(rng.normal(0, 22), -55, 55)),
        "deviation": np.radians(np.clip(rng.normal(0, 10), -20, 20)),
    }


def _unit(v):
    return v / np.linalg.norm(v)


def _turn(axis, angle):
    return Rotation.from_rotvec(_unit(axis) * angle).as_matrix()


@functools.cache
def _heads():
    """Bone heads of the average adult at rest: label -> (3,)."""
    b = body()
    out = b.model(phenotype_kwargs={k: torch.tensor([0.5]) for k in b.model.phenotype_labels})
    return dict(zip(b.labels, out["bone_poses"][0, :, :3, 3].numpy(), strict=True))


def _arm_pose(arm, side):
    """Bone label -> rotation about the world's axes at rest, relative to the parent."""
    end, heads = SIDES[side], _heads()
    shoulder, elbow, wrist = (heads[b + end] for b in ("upperarm01", "lowerarm01", "wrist"))
    upper, fore = _unit(elbow - shoulder), _unit(wrist - elbow)
    sign = 1.0 if side == "right" else -1.0  # a person's right is at negative x, the front at -y
    target = arm["upper"] * [-sign, -1, 1]
    turn, _ = Rotation.align_vectors(_unit(target), upper)
    bend = np.cross(upper, fore)
    index, little, middle = (heads[f"finger{f}-1{end}"] for f in (2, 5, 3))
    along, across = _unit(middle - wrist), _unit(index - little)
    return {
        "upperarm01" + end: turn.as_matrix() @ _turn(upper, sign * arm["twist"]),
        "lowerarm01" + end: _turn(bend, arm["elbow"]),
        "lowerarm02" + end: _turn(fore, sign * arm["pronation"] / 2),
        "wrist" + end: _turn(fore, sign * arm["pronation"] / 2)
        @ _turn(across, sign * arm["flexion"])
        @ _turn(np.cross(along, across), sign * arm["deviation"]),
    }


def pose_people(identities, arms, hands):
    """Put several people together at once.

    Args:
        identities: list of dicts from `draw_identity`.
        arms: for each, the postures of the left and the right arm, from `draw_arm`.
        hands: (n, 2, 22) angles of `poses`, left and right.

    Returns:
        list of `Person`.
    """
    b = body()
    n = len(identities)
    pose = torch.eye(4, dtype=b.model.dtype).repeat(n, b.model.bone_count, 1, 1)
    for s, (side, end) in enumerate(SIDES.items()):
        for bone, matrices in anny_pose(hands[:, s], side).items():
            pose[:, b.labels.index(bone)] = torch.from_numpy(matrices)
        for i in range(n):
            for bone, rotation in _arm_pose(arms[i][s], side).items():
                pose[i, b.labels.index(bone), :3, :3] = torch.from_numpy(rotation)
    phenotype = {
        name: torch.tensor([who["phenotype"][name] for who in identities], dtype=b.model.dtype)
        for name in identities[0]["phenotype"]
    }
    with torch.no_grad():
        out = b.model(pose_parameters=pose, phenotype_kwargs=phenotype)
    vertices, heads = out["vertices"].numpy(), out["bone_poses"][:, :, :3, 3].numpy()
    people = []
    for i, who in enumerate(identities):
        joints = {}
        for side, end in SIDES.items():
            bones = [b.labels.index(bone + end) for bone in ("wrist", *ANNY_BONES)]
            points = np.concatenate([heads[i, bones], vertices[i, b.tips[side]]])
            joints[side] = points[list(FROM_MANO)]
        people.append(Person(vertices[i], joints, *_appearance(who)))
    return people


def _appearance(who):
    """(V, 3) albedo and (V,) grain."""
    b = body()
    skin = who["tone"] * (1 + who["blush"] * b.blush[:, None] * [0.10, -0.28, -0.22])
    skin = np.where(b.nails[:, None], who["nail"], skin)
    along = np.minimum(b.arm["left"], b.arm["right"])  # metres up the arm; infinite on the trunk
    trunk = ~np.isfinite(along) & (b.head < 0.3)
    dressed = trunk | (np.isfinite(along) & (along > who["sleeve"]))
    cloth = np.where((b.legs > 0.5)[:, None], who["trousers"], who["shirt"])
    albedo = np.where(dressed[:, None], cloth, skin).clip(0.01, 0.95)
    return albedo, np.where(dressed, who["weave"], who["grain"])
