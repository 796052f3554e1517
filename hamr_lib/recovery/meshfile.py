"""Write meshes as OBJ and GLB, without a library that takes long to import."""

import json
import struct
from pathlib import Path

import numpy as np

from hamr_lib.errors import HamrError
from hamr_lib.files import write_aside
from hamr_lib.render import vertex_normals

SKIN = (0.80, 0.62, 0.53)
FLOAT, UINT = 5126, 5125  # glTF's numbers for float32 and uint32


def write_mesh(path: str | Path, vertices: np.ndarray, faces: np.ndarray, name="hand") -> None:
    """Write a mesh as OBJ or GLB, by the path's ending, aside and renamed.

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
    if kind == ".obj":
        text = "v %.7f %.7f %.7f\n" * len(vertices) % tuple(vertices.ravel().tolist())
        corners = tuple((faces + 1).ravel().tolist())  # OBJ counts from 1
        data = (text + "f %d %d %d\n" * len(faces) % corners).encode()
    elif kind == ".glb":
        data = _glb(vertices, faces, name)
    else:
        raise HamrError(f"{path}: expected a name that ends in .obj or .glb")
    with write_aside(path) as aside:
        aside.write_bytes(data)


def _glb(vertices, faces, name):
    """Return the bytes of a GLB file: a header, the scene as JSON, and its numbers."""
    corners, normals = faces.reshape(-1, 1).astype("<u4"), vertex_normals(vertices, faces)
    accessors, views, numbers = [], [], b""
    for array, kind, form in (
        (corners, UINT, "SCALAR"), (vertices.astype("<f4"), FLOAT, "VEC3"),
        (normals.astype("<f4"), FLOAT, "VEC3"),
    ):  # fmt: skip
        limits = {"min": array.min(0).tolist(), "max": array.max(0).tolist()}
        what = {"componentType": kind, "type": form, "count": len(array)}
        accessors.append({"bufferView": len(views), **what, **limits})
        place = {"byteOffset": len(numbers), "byteLength": array.nbytes}
        views.append({"buffer": 0, **place})
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
    chunks = struct.pack("<I4s", len(text), b"JSON") + text
    chunks += struct.pack("<I4s", len(numbers), b"BIN\0") + numbers
    return struct.pack("<4sII", b"glTF", 2, 12 + len(chunks)) + chunks
