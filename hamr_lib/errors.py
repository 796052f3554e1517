"""The one exception a user of this library is meant to read."""

import reprlib
from collections.abc import Iterable


class HamrError(Exception):
    """Bad input, told in one sentence: the file or argument, the value, and what was expected."""


class _Quoter(reprlib.Repr):
    """`repr`, cut short; Python refuses to write an int of more than 4300 digits."""

    def repr_int(self, x, level):
        return super().repr_int(x, level) if x.bit_length() < 1000 else "a huge int"


_QUOTER = _Quoter()
_QUOTER.maxstring = _QUOTER.maxother = _QUOTER.maxlong = 100


def quoted(value: object) -> str:
    """Write a value from outside as a message may quote it: at most a few hundred characters."""
    return _QUOTER.repr(value)[:300]


def one_of(name: str, value: object, choices: Iterable[str]) -> None:
    """Refuse a value that is none of the choices."""
    if value not in tuple(choices):
        raise HamrError(f"{name}={quoted(value)}: expected one of {', '.join(choices)}")
