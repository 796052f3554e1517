"""The network: from a crop to heat maps, joints, camera, betas and pose.

backbone     `PretrainedStem`: a pretrained encoder as a feature pyramid
hourglass    `PoseModule`: stem and stacked hourglass to heat maps (Section 3.3)
heatmaps     `heatmap_peaks`, `softargmax_keypoints`, `joint_aligned_features`
regressor    `Regressor`: iterative regression (Section 3.2)
hamr         `HAMR`, `Output`, `Estimate`: all of it, with the hand layer; `load_model`
checkpoint   networks on disk, checked as they are read
blocks       `describe_blocks`: the network as a table
"""
