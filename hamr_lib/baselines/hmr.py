"""HMR: an encoder of the whole image and iterative regression, without heat maps.

From features phi(image), starting at a mean hand, the residuals Theta_{t+1} = Theta_t +
R(phi, Theta_t) of camera, rotation, pose and shape.
"""

from hamr_lib.baselines.common import TrainedMesh, encoder_network, hamr_parts


class HMR(TrainedMesh):
    """A hand in place of SMPL; the study's encoder in place of ResNet-50, whose features are
    brought to one cell by convolutions of stride 2 in place of a mean, which drops where a hand
    lies; no adversarial prior, for there are no recorded poses to learn it from; the study's
    weights of the 2-D and 3-D losses; every sample has 3-D labels.
    """

    name = "hmr"
    reference = "Kanazawa et al., CVPR 2018"

    def build(self, settings, hand, crops):
        return encoder_network(settings, hand, iterations=3)  # as in the original

    def parts(self, *args):
        return hamr_parts(("joints_3d", "joints_2d"), *args)
