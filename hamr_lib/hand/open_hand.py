"""The open hand: a parametric hand in MANO's own format, built from Anny, that needs no licence.

Anny (Apache 2.0; its shapes come from MakeHuman's CC0 targets) carries a hand of 1,609 vertices,
3,196 triangles and 21 bones. Here its people become a template with ten shape components, its
bones MANO's 16 joints, and our pose sampler a mean pose with 45 components, under the names and
shapes that MANO's files use, so that `smplx.MANO` reads one as it reads the other.

The hand's axes: wrist at the origin, y along the fingers, z to the thumb's side, the palm looking
along -x. Metres.
"""

import importlib.metadata
from pathlib import Path

import numpy as np
from scipy.optimize import nnls

from hamr_lib.errors import HamrError
from hamr_lib.files import ROOT, digest, write_aside
from hamr_lib.hand import poses
from hamr_lib.joints import FINGERS, MANO_NAMES

PEOPLE = 1000  # from which the shape components are taken
POSES = 4000  # from which the mean pose and its components are taken
BETAS = 10
SEED = 1
PARENTS = (-1, 0, 1, 2, 0, 4, 5, 0, 7, 8, 0, 10, 11, 0, 13, 14)
_KEYS = (
    "v_template",
    "shapedirs",
    "posedirs",
    "J_regressor",
    "kintree_table",
    "weights",
    "f",
    "hands_mean",
    "hands_components",
    "hands_coeffs",
    "tips",
    "shape_variance",
)


def open_hand(folder=None):
    """The right open hand in MANO's format; built on the first call (about a minute), then cached.

    Args:
        folder: where the built file lies; `data/open/hand` if None.

    Returns:
        dict of arrays, V = 1609: v_template (V, 3), shapedirs (V, 3, 10) for betas of unit
        variance, posedirs (V, 3, 135) of zeros, J_regressor (16, V) rows of sum one, non-negative
        but for the wrist's, kintree_table (2, 16), weights (V, 16), f (3196, 3), hands_mean (45,),
        hands_components (45, 45) orthonormal rows in falling order of variance, hands_coeffs
        (POSES, 45); beside MANO's own: tips (5,) fingertip vertices from thumb to little finger,
        shape_variance (10,) share of the shapes' variance that each component holds.
    """
    # The file is as good as the code that wrote it: whatever changes either makes another file.
    identity = digest(
        importlib.metadata.version("anny"),
        *(Path(path).read_text() for path in (__file__, poses.__file__)),
    )
    folder = ROOT / "data" / "open" / "hand" if folder is None else Path(folder)
    path = folder / f"open-hand-{identity}.npz"
    if not path.exists():
        print(f"building the open hand from Anny, once: {path}")
        hand = build()
        with write_aside(path) as aside:
            np.savez_compressed(aside, **hand)
    try:
        with np.load(path) as stored:
            return {key: stored[key] for key in _KEYS}
    except Exception as error:  # zip, zlib, header or key errors of a damaged file
        raise HamrError(f"{path} is damaged ({error}); remove it and it is built again") from error


def build():
    """Build the arrays that `open_hand` describes."""
    import anny

    model = anny.Anny(rig="anny-hand.R", topology="hand.R", skinning_method="lbs")
    labels = model.bone_labels
    bones = [labels.index(f"{bone}.R") for bone in poses.ANNY_BONES]
    dense = model.dense_vertex_bone_weights.numpy()
    # MANO has no metacarpals; they and what the forearm holds at the cut move with the wrist.
    others = [b for b in range(len(labels)) if b not in bones]
    weights = np.column_stack([dense[:, others].sum(1), dense[:, bones]])

    # Shapes at the model's reference pose, which is the zero of its pose parameters and of ours.
    vertices, heads = people(model, PEOPLE, SEED)
    template = vertices.mean(0)
    _, scale, basis = np.linalg.svd((vertices - template).reshape(PEOPLE, -1), full_matrices=False)
    # A component's sign is free; we let positive betas make the hand larger.
    basis *= np.where(basis @ (template - template.mean(0)).ravel() < 0, -1, 1)[:, None]
    shapedirs = (basis[:BETAS] * scale[:BETAS, None] / np.sqrt(PEOPLE - 1)).T

    rng = np.random.default_rng(SEED)
    angles = poses.sample_poses(rng, POSES)
    vectors = poses.angles_to_axis_angle(angles).reshape(POSES, 45)
    mean = vectors.mean(0)
    _, _, components = np.linalg.svd(vectors - mean, full_matrices=False)
    # A sign for these too: positive coefficients bend the fingers rather than straighten them.
    fist = poses.angles_to_axis_angle(poses.GESTURES["fist"]).ravel()
    components *= np.where(components @ (fist - mean) < 0, -1, 1)[:, None]

    return {
        "v_template": template,
        "shapedirs": shapedirs.reshape(-1, 3, BETAS),
        "posedirs": np.zeros((len(template), 3, 135)),
        "J_regressor": _regressor(model, weights),
        "kintree_table": np.array([[2**32 - 1, *PARENTS[1:]], range(16)], dtype=np.uint32),
        "weights": weights,
        "f": model.faces.numpy().astype(np.uint32),
        "hands_mean": mean,
        "hands_components": components,
        "hands_coeffs": (vectors - mean) @ components.T,
        "tips": _tips(template, heads.mean(0), weights),
        "shape_variance": scale[:BETAS] ** 2 / (scale**2).sum(),
    }


def people(model, n, seed, posed=False):
    """Hands of people drawn at random, four in five of them adults, the rest from five to ninety.

    Args:
        model: Anny's right hand.
        posed: False for the reference pose, True for a pose of its own for each.

    Returns:
        Vertices (n, V, 3) and the 16 joints in MANO's order (n, 16, 3), in metres, as Anny itself
        skins and places them.
    """
    import torch
    from anny.shape_distribution import SimpleShapeDistribution

    def double(*values):
        return torch.tensor(values, dtype=model.dtype)

    ages = torch.distributions.MixtureSameFamily(
        torch.distributions.Categorical(double(0.8, 0.2)),
        torch.distributions.Uniform(double(18, 5), double(70, 90)),
    )
    distribution = SimpleShapeDistribution(model, morphological_age_distribution=ages)
    bones = [model.bone_labels.index(f"{bone}.R") for bone in ("wrist", *poses.ANNY_BONES)]
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        _, phenotypes = distribution.sample(n)
        pose = None
        if posed:
            angles = poses.sample_poses(np.random.default_rng(seed), n)
            pose = {k: torch.as_tensor(v) for k, v in poses.anny_pose(angles, "right").items()}
        parts = []
        for start in range(0, n, 50):  # a thousand at once would take gigabytes
            part = slice(start, start + 50)
            parts.append(
                model(
                    pose_parameters=None if pose is None else {k: v[part] for k, v in pose.items()},
                    phenotype_kwargs={k: v[part] for k, v in phenotypes.items()},
                )
            )
    return (
        torch.cat([part["vertices"] for part in parts]).numpy(),
        torch.cat([part["bone_poses"][:, bones, :3, 3] for part in parts]).numpy(),
    )


def _regressor(model, weights):
    """(16, V): each joint as a weighted mean of up to 250 vertices around it.

    Fitted to people at rest and, with a third of the weight, to posed ones, so that the same row
    also finds the joint of a posed mesh, as Eq. 3 of the paper asks. Only vertices that move with
    the joint or its parent take part. Rows are non-negative except the wrist's: that joint lies at
    the very edge of the mesh, where the arm was cut off, and no mean of vertices reaches it.
    """
    rest, rest_joints = people(model, 80, SEED + 1)
    posed, posed_joints = people(model, 80, SEED + 2, posed=True)
    regressor = np.zeros((16, rest.shape[1]))
    for j in range(16):
        bones = [0] if j == 0 else [PARENTS[j], j]
        moved = np.flatnonzero(weights[:, bones].sum(1) > 0.9)
        distance = np.linalg.norm(rest[:, moved].mean(0) - rest_joints[:, j].mean(0), axis=1)
        near = moved[np.argsort(distance)[:250]]
        n = len(near)
        # Centimetres; a heavy row lets the weights sum to one; light ones spread them out.
        left = np.vstack(
            [
                100 * rest[:, near].transpose(0, 2, 1).reshape(-1, n),
                30 * posed[:, near].transpose(0, 2, 1).reshape(-1, n),
                np.full((1, n), 1000.0),
                (1.0 if j == 0 else 0.2) * np.eye(n),
            ]
        )
        right = np.concatenate(
            [
                100 * rest_joints[:, j].ravel(),
                30 * posed_joints[:, j].ravel(),
                [1000.0],
                np.zeros(n),
            ]
        )
        row = np.linalg.lstsq(left, right)[0] if j == 0 else nnls(left, right)[0]
        regressor[j, near] = row / row.sum()
    return regressor


def _tips(template, heads, weights):
    """The foremost vertex of each finger, thumb to little: (5,)."""
    tips = []
    for finger in FINGERS:
        last = max(j for j, name in enumerate(MANO_NAMES) if name.startswith(finger))
        own = np.flatnonzero(weights[:, last] > 0.9)
        tips.append(own[np.argmax((template[own] - heads[last]) @ (heads[last] - heads[last - 1]))])
    return np.array(tips)
