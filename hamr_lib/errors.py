"""The one exception a user of this library is meant to read."""

import reprlib
from collections.abc import Iterable


class HamrError(Exception):
    """Bad input, told in one sentence: the file or argument, the value, and what was expected."""


_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = _SHORT.maxlong = 100


def quoted(value: object) -> str:
    """Write a value from outside as a message may quote it: at most a few hundred characters."""
    try:
        return _SHORT.repr(value)[:300]
    except ValueError:  # Python refuses to write an int of more than 4300 digits
        return f"a {type(value).__name__} of huge numbers"


def one_of(name: str, value: object, choices: Iterable[str]) -> None:
    """Refuse a value that is none of the choices."""
    if value not in tuple(choices):
        raise HamrError(f"{name}={quoted(value)}: expected one of {', '.join(choices)}")
