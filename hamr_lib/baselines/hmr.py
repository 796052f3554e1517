"""HMR: an encoder of the whole image and iterative regression, without heat maps.

Features phi(image) of a ResNet, and from them, starting at a mean hand, the residuals
Theta_{t+1} = Theta_t + R(phi, Theta_t) of camera, rotation, pose and shape.
"""

from dataclasses import replace

from hamr_lib.baselines.common import NO_WEIGHTS, TrainedMesh, encoder_departure, encoder_network
from hamr_lib.losses import hamr_losses

ITERATIONS = 3  # as in the original


class HMR(TrainedMesh):
    """Kanazawa et al. 2018 for hands."""

    name = "hmr"
    reference = "Kanazawa et al., CVPR 2018"

    @staticmethod
    def departures(settings):
        return (
            f"A hand in place of SMPL, {encoder_departure(settings)}{NO_WEIGHTS}; no adversarial "
            "prior, for there are no recorded poses to learn it from; the study's weights of the "
            "2-D and 3-D losses; every sample has 3-D labels; weak perspective in crop units, as "
            "in the original."
        )

    def build(self, settings, hand, crops):
        return encoder_network(settings, hand, ITERATIONS)

    def losses(self, network, output, batch, settings):
        weights = replace(settings.losses, geometric=0.0, camera=0.0, heatmap=0.0, silhouette=0.0)
        return hamr_losses(output, batch, weights, network.hand.faces)
