"""The network: from a crop to heat maps, joints, camera, betas and pose.

backbone    `PretrainedStem`: the first layers, with ImageNet weights
hamr        `HAMR`, `Output`, `Estimate`: the hourglass and the iterative regressor (Fig. 2, 3)
checkpoint  `save_model`, `load_model`, `pretrained`: networks on disk
"""
