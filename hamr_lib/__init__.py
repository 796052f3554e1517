"""HAMR: a hand's 3-D mesh from one RGB image.

    import hamr_lib
    hand = hamr_lib.load_hand()
    for i, recovery in enumerate(hamr_lib.recover("photo.jpg")):  # one a hand
        recovery.save("meshes", f"hand{i}")

The packages follow the data: `hand`, `data`, `synth`, `render`, `model`, `training`, `evaluation`,
`baselines`, `recovery`, `report`, `widgets`. A public name is imported when it is first asked for,
so that reading a setting does not wait for torch.
"""

from importlib import import_module

_MODULES = {
    "HAMR": "hamr_lib.model.hamr",
    "load_hand": "hamr_lib.hand.layer",
    "recover": "hamr_lib.recovery.pipeline",
}
__all__ = ["HAMR", "load_hand", "recover"]


def __getattr__(name):
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_MODULES[name]), name)
