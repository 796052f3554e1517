"""Training: one loop for the network and every baseline.

loop        `fit`: steps, schedule, validation, checkpoints and exact resume
pose_prior  `lift`, `lifting_loss`: the regressor trained on synthetic 2-D keypoints
"""
