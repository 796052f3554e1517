"""HAMR: a hand's 3-D mesh from one RGB image.

    import hamr_lib
    hand = hamr_lib.load_hand()
    for recovery in hamr_lib.recover("photo.jpg"):  # one a hand
        recovery.save("results", f"{recovery.side}-hand")

Everything else is in the modules. The two functions are imported when they are first asked for, so
that reading a setting does not wait for torch.
"""

__all__ = ["load_hand", "recover"]


def __getattr__(name):
    if name == "recover":
        from .recovery import recover as value
    elif name == "load_hand":
        from .hand import load_hand as value
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return value
