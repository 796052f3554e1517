"""Import packages without those of their imports that take long and serve nothing here."""

import importlib.util
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace


@contextmanager
def in_place_of(name: str, **values) -> Iterator[None]:
    """Let other modules be imported as if a module of this name held these values alone."""
    if name in sys.modules:
        yield
        return
    sys.modules[name] = SimpleNamespace(**values)
    try:
        yield
    finally:
        del sys.modules[name]


def bare_package(name: str) -> Path:
    """Make the modules of a package importable one by one, and return its folder.

    What the package itself imports waits until one of its own names is asked for.
    """
    if name not in sys.modules:
        spec = importlib.util.find_spec(name)
        package = importlib.util.module_from_spec(spec)

        def load(attribute):
            del package.__getattr__
            spec.loader.exec_module(package)
            return getattr(package, attribute)

        package.__getattr__ = load
        sys.modules[name] = package
    return Path(sys.modules[name].__file__).parent
