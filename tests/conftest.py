"""What several test files share."""

import pytest


@pytest.fixture(scope="module")
def one_thread():
    """The order of sums depends on the number of threads, and small sums are faster on one."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory):
    """A network of a few thousand weights that nobody trained, as a checkpoint."""
    import torch

    from hamr_lib.config import load_settings
    from hamr_lib.hand.layer import load_hand
    from hamr_lib.model import checkpoint
    from hamr_lib.model.hamr import HAMR

    settings = load_settings("smoke")
    hand = load_hand("open", pose_components=settings.hand.pose_components)
    torch.manual_seed(3)
    network = HAMR(settings.model, hand)
    # A new network answers every image alike: one pass sets its batch normalisation for images of
    # noise, and a larger last layer makes its answers differ.
    torch.nn.init.normal_(network.regressor.layers[-1].weight, std=0.2)
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = 1.0
    coarse = torch.rand(16, 3, 6, 6)
    size = (settings.model.image_size,) * 2
    network.train()(torch.nn.functional.interpolate(coarse, size, mode="bicubic").clamp(0, 1))
    path = tmp_path_factory.mktemp("tiny") / "model.pt"
    description = checkpoint.describe(settings, "no data", hand, step=0, metrics={})
    checkpoint.save_model(path, network, description)
    return path


@pytest.fixture(scope="session")
def open_hand_data():
    """The open hand's arrays, from the project's own cache; the first use builds it."""
    from hamr_lib.hand.open_hand import open_hand

    return open_hand()


@pytest.fixture(scope="session")
def anny_hand():
    """Anny's right hand with MANO's joints, that the open hand is built from."""
    from hamr_lib.hand.rig import rigged_hand

    return rigged_hand()


@pytest.fixture(scope="session")
def browsed(tiny_checkpoint, tmp_path_factory):
    """A run that was evaluated on twelve drawn frames, half of them left hands."""
    from tiny import draw_frames

    from hamr_lib.config import load_settings
    from hamr_lib.data.crops import load_crops
    from hamr_lib.evaluation import scores
    from hamr_lib.model.hamr import load_model

    folder = tmp_path_factory.mktemp("run") / "main"
    settings = load_settings("smoke")
    frames = draw_frames(6) + draw_frames(6, seed=1, side="left")
    for i, frame in enumerate(frames):
        frame.key = f"evaluation/{i:05d}"
    crops = load_crops(frames, "browsed", settings.model.image_size, cache=folder)
    (folder / "checkpoints").mkdir(parents=True, exist_ok=True)
    (folder / "checkpoints" / "best.ckpt").write_bytes(tiny_checkpoint.read_bytes())
    model, _ = load_model(tiny_checkpoint)
    scores.evaluate_network(model, settings, folder, {("open-rhd", "evaluation"): crops})
    return folder, frames


@pytest.fixture(scope="session")
def results(tmp_path_factory):
    """The folder of a whole study's results, see `saved_results`."""
    from saved_results import SETTINGS, make_results

    folder = tmp_path_factory.mktemp("results")
    make_results(folder, SETTINGS)
    return folder
