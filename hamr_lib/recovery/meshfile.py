"""Write meshes as OBJ, PLY and GLB, without a library that takes long to import."""

import json
import struct
from pathlib import Path

import numpy as np

from hamr_lib.errors import HamrError
from hamr_lib.files import write_aside
from hamr_lib.render import vertex_normals

SKIN = (0.80, 0.62, 0.53)
# glTF's numbers for float32, uint32, vertex attributes, and indices.
FLOAT, UINT, ATTRIBUTE, INDEX = 5126, 5125, 34962, 34963
PLY = """\
ply
format ascii 1.0
element vertex {}
property float x
property float y
property float z
element face {}
property list uchar int vertex_indices
end_header
"""


def write_mesh(path: str | Path, vertices: np.ndarray, faces: np.ndarray, name="hand") -> None:
    """Write a mesh as OBJ, PLY or GLB, by the path's ending, aside and renamed.

    Args:
        path: the file.
        vertices: (V, 3) metres, camera frame. In a GLB they are those of a node that turns them to
            glTF's frame (y up); it has normals and a skin's material.
        faces: (F, 3) int.
        name: of that node.

    Raises:
        HamrError: for another ending, and what cannot be written.
    """
    kind = Path(path).suffix.lower()
    if kind == ".obj":  # which counts from 1
        data = _rows("v %.7f %.7f %.7f", vertices) + _rows("f %d %d %d", faces + 1)
    elif kind == ".ply":
        head = PLY.format(len(vertices), len(faces))
        data = head + _rows("%.7f %.7f %.7f", vertices) + _rows("3 %d %d %d", faces)
    elif kind == ".glb":
        data = _glb(vertices, faces, name)
    else:
        raise HamrError(f"{path}: expected a name that ends in .obj, .ply or .glb")
    with write_aside(path) as aside:
        aside.write_bytes(data if kind == ".glb" else data.encode())


def _rows(form, values):
    """Format rows of numbers as lines."""
    return f"{form}\n" * len(values) % tuple(values.ravel().tolist())


def _glb(vertices, faces, name):
    """Return the bytes of a GLB file: a header, the scene as JSON, and its numbers."""
    arrays = [
        (faces.reshape(-1, 1).astype("<u4"), UINT, "SCALAR", INDEX),
        (vertices.astype("<f4"), FLOAT, "VEC3", ATTRIBUTE),
        (vertex_normals(vertices, faces).astype("<f4"), FLOAT, "VEC3", ATTRIBUTE),
    ]
    accessors, views, numbers = [], [], b""
    for i, (array, kind, form, target) in enumerate(arrays):
        limits = {"min": array.min(0).tolist(), "max": array.max(0).tolist()}
        shape = {"count": len(array), "type": form}
        accessors.append({"bufferView": i, "componentType": kind, **shape, **limits})
        place = {"byteOffset": len(numbers), "byteLength": array.nbytes}
        views.append({"buffer": 0, "target": target, **place})
        numbers += array.tobytes()
    surface = {"baseColorFactor": [*SKIN, 1], "metallicFactor": 0, "roughnessFactor": 0.7}
    drawn = {"attributes": {"POSITION": 1, "NORMAL": 2}, "indices": 0, "material": 0}
    scene = {
        "asset": {"version": "2.0"},
        "scene": 0,
        "scenes": [{"nodes": [0]}],
        # Half a turn about x: from y down and z away to y up and z near.
        "nodes": [{"name": name, "mesh": 0, "rotation": [1, 0, 0, 0]}],
        "meshes": [{"name": name, "primitives": [drawn]}],
        "materials": [{"name": "skin", "pbrMetallicRoughness": surface}],
        "accessors": accessors,
        "bufferViews": views,
        "buffers": [{"byteLength": len(numbers)}],
    }
    text = json.dumps(scene).encode()
    text += b" " * (-len(text) % 4)
    size = 12 + 8 + len(text) + 8 + len(numbers)
    head = struct.pack("<4sII", b"glTF", 2, size) + struct.pack("<I4s", len(text), b"JSON")
    return head + text + struct.pack("<I4s", len(numbers), b"BIN\0") + numbers
