"""Define the order of the 21 joints, and the permutations from other orders.

Everything inside the library uses one order, `NAMES`: the wrist, then thumb, index, middle, ring
and little finger, each from base to tip. Every file format that orders its joints otherwise is
translated here, on the way in and on the way out, and nowhere else.
"""

import numpy as np

FINGERS = ("thumb", "index", "middle", "ring", "little")
NAMES = ("wrist",) + tuple(
    f"{finger} {part}"
    for finger in FINGERS
    for part in (("CMC", "MCP", "IP", "tip") if finger == "thumb" else ("MCP", "PIP", "DIP", "tip"))
)
NUM_JOINTS = len(NAMES)  # 21

WRIST = 0
MIDDLE_MCP = NAMES.index("middle MCP")
RING_MCP = NAMES.index("ring MCP")
TIPS = tuple(NAMES.index(f"{finger} tip") for finger in FINGERS)
# PARENTS[j] is the parent of joint j; the wrist has none.
PARENTS = (-1,) + tuple(0 if j % 4 == 1 else j - 1 for j in range(1, NUM_JOINTS))
# (20, 2): every bone as (parent, child).
BONES = tuple((PARENTS[j], j) for j in range(1, NUM_JOINTS))

# MANO's 16 joints: wrist, then index, middle, little, ring and thumb, each base to tip. Its five
# fingertips are mesh vertices, which the hand layer appends in the order of `FINGERS`.
MANO_NAMES = ("wrist",) + tuple(
    name
    for finger in ("index", "middle", "little", "ring", "thumb")
    for name in NAMES
    if name.startswith(finger) and not name.endswith("tip")
)
MANO_PARENTS = (-1,) + tuple(0 if j % 3 == 1 else j - 1 for j in range(1, 16))
# Index into (16 MANO joints + 5 tips) for each of our 21 joints.
FROM_MANO = tuple(
    16 + FINGERS.index(name.split()[0]) if name.endswith("tip") else MANO_NAMES.index(name)
    for name in NAMES
)

# RHD, within one hand: wrist, then thumb to little, each from tip to base.
FROM_RHD = (0,) + tuple(4 * f + part for f in range(5) for part in (4, 3, 2, 1))
# The same permutation takes our order back to RHD's: it is its own inverse.

# STB: palm, then little, ring, middle, index and thumb, each from base to tip.
FROM_STB = (0,) + tuple(1 + 4 * (4 - f) + part for f in range(5) for part in range(4))
TO_STB = tuple(int(i) for i in np.argsort(FROM_STB))
