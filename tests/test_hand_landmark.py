from pathlib import Path

import mediapipe
import pytest
import torch
from mediapipe.python import packet_creator, packet_getter
from mediapipe.python._framework_bindings import resource_util
from torch import nn

from hamr_lib.errors import HamrError
from hamr_lib.model import hand_landmark
from hamr_lib.model.backbone import PretrainedStem

SIDE = 224  # pixels of the image that MediaPipe's network takes
# MediaPipe's own calculators, from an image to landmarks in its pixels.
GRAPH = f"""
input_stream: "image"
node {{
  calculator: "ImageToTensorCalculator" input_stream: "IMAGE:image" output_stream: "TENSORS:input"
  options {{ [mediapipe.ImageToTensorCalculatorOptions.ext] {{
    output_tensor_width: {SIDE} output_tensor_height: {SIDE}
    output_tensor_float_range {{ min: 0.0 max: 1.0 }} }} }} }}
node {{
  calculator: "InferenceCalculator" input_stream: "TENSORS:input" output_stream: "TENSORS:output"
  options {{ [mediapipe.InferenceCalculatorOptions.ext] {{
    model_path: "mediapipe/{hand_landmark.FILE}" delegate {{ xnnpack {{}} }} }} }} }}
node {{
  calculator: "SplitTensorVectorCalculator" input_stream: "output"
  output_stream: "first" output_stream: "others"
  options {{ [mediapipe.SplitVectorCalculatorOptions.ext] {{
    ranges {{ begin: 0 end: 1 }} ranges {{ begin: 1 end: 4 }} }} }} }}
node {{
  calculator: "TensorsToLandmarksCalculator" input_stream: "TENSORS:first"
  output_stream: "LANDMARKS:landmarks"
  options {{ [mediapipe.TensorsToLandmarksCalculatorOptions.ext] {{
    num_landmarks: 21 input_image_width: {SIDE} input_image_height: {SIDE} }} }} }}
"""


class Landmarks(nn.Module):
    """The whole network: our encoder and the heads that the study does not use."""

    def __init__(self):
        super().__init__()
        self.encoder = hand_landmark.encoder()
        self.heads = nn.ModuleList(nn.Linear(1152, size) for size in (1, 1, 63, 63))
        weights = hand_landmark.read_weights(hand_landmark.weights_path())
        assert len(weights) == 31 + 16 + 4
        hand_landmark.fill(self, weights)

    def forward(self, image):
        """(B, 3, 224, 224) to (B, 21, 3) landmarks in pixels."""
        return self.heads[2](self.encoder(image).mean((2, 3))).unflatten(1, (21, 3))


def mediapipes_landmarks(image):
    """(224, 224, 3) uint8 to (21, 3) landmarks in pixels, by MediaPipe."""
    resource_util.set_resource_dir(str(Path(mediapipe.__file__).parents[1]))
    graph, found = mediapipe.CalculatorGraph(graph_config=GRAPH), []
    graph.observe_output_stream("landmarks", lambda _, packet: found.append(packet))
    graph.start_run()
    packet = packet_creator.create_image_frame(image, image_format=mediapipe.ImageFormat.SRGB)
    graph.add_packet_to_input_stream("image", packet.at(1))
    graph.close_all_packet_sources()
    graph.wait_until_done()
    points = packet_getter.get_proto(found[0]).landmark
    return torch.tensor([[p.x, p.y, p.z] for p in points])


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_landmarks_are_mediapipes_own():
    generator = torch.Generator().manual_seed(0)
    network = Landmarks().eval()
    for cells in (7, 32, 224):  # smooth images and noise
        image = torch.randint(0, 256, (1, 3, cells, cells), generator=generator).float()
        image = nn.functional.interpolate(image, (SIDE, SIDE), mode="bilinear").byte()
        with torch.no_grad():
            ours = network(image.float() / 255)[0]
        theirs = mediapipes_landmarks(image[0].permute(1, 2, 0).contiguous().numpy())
        assert theirs[:, 1].std() > 5  # pixels
        torch.testing.assert_close(ours, theirs, atol=1e-3, rtol=0)


@pytest.mark.parametrize("stride, frozen, expected", [(4, 3, 24), (8, 3, 12), (4, 15, 24)])
def test_a_stem_of_every_stride_and_depth_of_freezing(stride, frozen, expected):
    torch.manual_seed(0)
    options = {"encoder": "hand_landmark", "stride": stride, "frozen": frozen, "pooled": True}
    stem = PretrainedStem(16, **options).train()
    image = torch.rand(2, 3, 96, 96)
    out, pooled = stem(image)
    assert out.shape == (2, 16, expected, expected)
    whole, x, maps = hand_landmark.encoder().eval(), image, []
    hand_landmark.fill(whole, hand_landmark.read_weights(hand_landmark.weights_path()))
    with torch.no_grad():
        for index, layer in enumerate(whole, start=-2):
            x = layer(x)
            if index in stem.taps:
                maps.append(x)
    torch.testing.assert_close(pooled, x.mean((2, 3)), rtol=1e-4, atol=1e-4)
    for ours, theirs in zip(stem.maps(image)[0], maps, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)  # sums in another order
    (out.square().mean() + pooled.square().mean()).backward()
    trained = [p for p in stem.parameters() if p.requires_grad]
    assert all(p.grad is not None and p.grad.any() for p in trained)
    assert not any(p.requires_grad for p in stem.frozen.parameters())
    assert len(stem.frozen) + len(stem.blocks) == len(whole) and len(stem.blocks) == 16 - frozen


def test_without_the_wheel_a_new_network_is_refused(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(HamrError, match="needs the package mediapipe"):
        PretrainedStem(16, encoder="hand_landmark")
    PretrainedStem(16, encoder="hand_landmark", pretrained=False)
