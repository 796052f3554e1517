"""The blocks of a network as it runs, for drawing it (Fig. 2)."""

import torch
from torch import nn


def describe_blocks(model: nn.Module) -> list[tuple[str, tuple, int]]:
    """Run a `HAMR` on one image and describe its blocks, each member of a list, as they run.

    Returns:
        (name, shape of the output for one image, number of trained parameters) of each block.
    """
    blocks = {}  # by the module that ends them
    for part in (model.pose_module, model.regressor):
        for name, module in part.named_children():
            whole = name in ("joint_features", "layers")
            many = isinstance(module, (nn.ModuleList, nn.Sequential)) and not whole
            for i, inner in module.named_children() if many else [("", module)]:
                # The regressor takes the first of `layers` apart, so that only the last one runs.
                last = inner[-1] if name == "layers" else inner
                blocks[last] = f"{name}.{i}".rstrip("."), inner
    rows = {}  # by module: the layers run once an iteration

    def record(module, _, output):
        name, block = blocks[module]
        output = output[0] if isinstance(output, tuple) else output
        count = sum(p.numel() for p in block.parameters() if p.requires_grad)
        rows[module] = name, tuple(output.shape[1:]), count

    hooks = [module.register_forward_hook(record) for module in blocks]
    training, start = model.training, model.regressor.start
    try:
        with torch.no_grad():
            model.eval()(start.new_zeros(1, 3, model.image_size, model.image_size))
    finally:
        model.train(training)
        for hook in hooks:
            hook.remove()
    return list(rows.values())
