"""The network: from a crop to heat maps, joints, camera, betas and pose.

hand_landmark   MediaPipe's hand landmark encoder and its weights
backbone    `PretrainedStem`: a pretrained encoder as a feature pyramid
hamr        `HAMR`, `Output`, `Estimate`: the hourglass and the iterative regressor (Fig. 2, 3)
checkpoint  `save_model`, `load_model`, `pretrained`: networks on disk
"""
