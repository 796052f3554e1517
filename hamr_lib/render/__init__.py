"""Draw meshes: `silhouette` for the loss of Section 3.1, `render` for pictures, and for others

    seen = rasterize(vertices, faces, camera, size)       # which face each pixel sees
    image = seen.image(seen.interpolate(attributes))      # (V, C) -> (N, C) -> (H, W, C)

Cameras are weak perspective, (3,) = (s, tx, ty) in crop units, or a pinhole K (3, 3); frames and
pixel centres are those of `camera`. In an image that is not square, crop units are those of the
square of the image's width around its centre. Faces turn counterclockwise seen from outside.
"""

from hamr_lib.render.drawing import depth_map, enlarged, rasterize, render, vertex_normals
from hamr_lib.render.silhouette import silhouette

__all__ = ["depth_map", "enlarged", "rasterize", "render", "silhouette", "vertex_normals"]
