"""Training: one loop for the network and every baseline.

loop        `fit`: a run to its last step; `Run`: one step, one validation, the state that is saved
task        `Task`: what is trained, with which losses, judged by which error
schedule    the optimiser, its learning rate along the run, the average of weights
watch       `Watch` for a loss that is not finite, `Progress`
pose_prior  `lift`, `lifting_loss`: the regressor trained on synthetic 2-D keypoints
"""
