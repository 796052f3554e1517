"""Checked settings: dataclasses whose values pydantic holds to their types and ranges."""

import functools
from typing import Annotated, Literal

import pydantic
from pydantic import AfterValidator, Field

from hamr_lib.errors import HamrError, quoted

SEEDS = 2**32 - 1  # the largest
_STRICT = {"strict": True, "allow_inf_nan": False}


def within(default, low, high, **more):
    """A number with its default, in [low, high]; `more` as in `pydantic.Field`."""
    return Field(default, ge=low, le=high, **_STRICT, **more)


def _each_once(values):
    if len(set(values)) < len(values):
        raise ValueError(f"{quoted(values)}: expected each once")
    return values


def _ordered(pair):
    if pair[0] > pair[1]:
        raise ValueError(f"{pair}: expected the first to be at most the second")
    return pair


def several(each, least=1):
    """The type of a tuple of at least so many different values, of type `each`."""
    length = Field(min_length=least, max_length=100)
    return Annotated[tuple[each, ...], length, AfterValidator(_each_once)]


def known(names):
    """The type of a tuple of different names, each one of these."""
    return several(Literal[tuple(names)], least=0)


_Factor = Annotated[float, Field(ge=0, le=100, **_STRICT)]
Interval = Annotated[tuple[_Factor, _Factor], AfterValidator(_ordered)]
Factors = several(Annotated[float, Field(gt=0, le=1000, **_STRICT)])
Seeds = several(Annotated[int, Field(ge=0, le=SEEDS, strict=True)])


def group(cls):
    """A frozen dataclass that pydantic checks, and whose complaints are `HamrError`s."""
    cls = pydantic.dataclasses.dataclass(frozen=True, config={"extra": "forbid"})(cls)
    checked = cls.__init__

    @functools.wraps(checked)
    def init(self, *args, **values):
        try:
            checked(self, *args, **values)
        except pydantic.ValidationError as error:
            raise complaint(error, cls.__name__) from None

    cls.__init__ = init
    return cls


def complaint(error: pydantic.ValidationError, source: str) -> HamrError:
    """Make a `HamrError` of the first thing that pydantic complains about."""
    first = error.errors(include_url=False)[0]
    where = ".".join(str(part)[:80] for part in first["loc"])
    if first["type"] == "unexpected_keyword_argument":
        return HamrError(f"{source}: unknown setting {quoted(where)} (see hamr_lib/config.py)")
    reason = first["msg"].removeprefix("Value error, ").replace("Input should be", "expected")
    if first["type"].startswith("dataclass"):
        reason = "expected a mapping of settings"
    if first["type"] != "value_error":  # ours quote what they complain about
        reason += f", got {quoted(first['input'])}"
    return HamrError(": ".join(filter(None, (source, where, reason))))
