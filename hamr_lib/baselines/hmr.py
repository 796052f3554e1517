"""HMR: an encoder of the whole image and iterative regression, without heat maps.

Features phi(image) of an encoder, and from them, starting at a mean hand, the residuals
Theta_{t+1} = Theta_t + R(phi, Theta_t) of camera, rotation, pose and shape.
"""

from dataclasses import replace

from hamr_lib.baselines.common import TrainedMesh, encoder_network
from hamr_lib.losses import hamr_losses

ITERATIONS = 3  # as in the original


class HMR(TrainedMesh):
    """Kanazawa et al. 2018 for hands."""

    name = "hmr"
    reference = "Kanazawa et al., CVPR 2018"

    @staticmethod
    def deviations(settings):
        return (
            "A hand in place of SMPL; the study's encoder in place of ResNet-50, whose features "
            "are brought to one cell by convolutions of stride 2 in place of a mean, which drops "
            "where a hand lies; no adversarial prior, for there are no recorded poses to learn it "
            "from; the study's weights of the 2-D and 3-D losses; every sample has 3-D labels."
        )

    def build(self, settings, hand, crops):
        return encoder_network(settings, hand, ITERATIONS)

    def losses(self, network, output, batch, settings):
        weights = replace(settings.losses, geometric=0.0, camera=0.0, heatmap=0.0, silhouette=0.0)
        return hamr_losses(output, batch, weights, network.hand.faces)
