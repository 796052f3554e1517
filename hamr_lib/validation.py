"""Checked settings: dataclasses whose values pydantic holds to their types and ranges."""

import functools
import typing
from dataclasses import fields
from typing import Annotated

import pydantic
from pydantic import AfterValidator, Field

from hamr_lib.errors import HamrError, quoted
from hamr_lib.variants import check_names

SEEDS = 2**32 - 1  # the largest


def within(default, low, high, **more):
    """A number with its default, in [low, high]; `more` as in `pydantic.Field`."""
    return Field(default, ge=low, le=high, strict=True, allow_inf_nan=False, **more)


def _check(holds, complaint):
    def checked(values):
        if not holds(values):
            raise ValueError(complaint)
        return values

    return AfterValidator(checked)


def known(names, what):
    """Hold a tuple to known names, each once."""

    def checked(values):
        try:
            check_names(values, names, what)
        except HamrError as error:  # pydantic adds where it stands
            raise ValueError(str(error)) from None
        return values

    return _several(str, AfterValidator(checked), least=0)


def _several(each, *checks, least=1):
    once = _check(lambda values: len(set(values)) == len(values), "each should be named once")
    return Annotated[tuple[each, ...], Field(min_length=least, max_length=100), *checks, once]


_STRICT = {"strict": True, "allow_inf_nan": False}
_Factor = Annotated[float, Field(ge=0, le=100, **_STRICT)]
_ordered = _check(lambda pair: pair[0] <= pair[1], "the first should be at most the second")
Interval = Annotated[tuple[_Factor, _Factor], _ordered]
Factors = _several(Annotated[float, Field(gt=0, le=1000, **_STRICT)])
Seeds = _several(Annotated[int, Field(ge=0, le=SEEDS, strict=True)])


def group(cls):
    """A frozen dataclass that pydantic checks, and whose complaints are `HamrError`s."""
    cls = pydantic.dataclasses.dataclass(frozen=True, config={"extra": "forbid"})(cls)
    checked = cls.__init__

    @functools.wraps(checked)
    def init(self, *args, **values):
        try:
            checked(self, *args, **values)
        except pydantic.ValidationError as error:
            raise told_by(error, cls, cls.__name__) from None

    cls.__init__ = init
    return cls


def told_by(error, cls, source) -> HamrError:
    """Make a `HamrError` of the first thing that pydantic complains about."""
    first = error.errors(include_url=False)[0]
    where = ".".join(str(part)[:80] for part in first["loc"])
    if first["type"] == "unexpected_keyword_argument":
        for name in first["loc"][:-1]:
            cls = typing.get_type_hints(cls)[name]
        known = ", ".join(field.name for field in fields(cls))
        return HamrError(f"{source}: unknown setting {quoted(where)} (known: {known})")
    reason = first["msg"].removeprefix("Value error, ").replace("Input should be", "expected")
    if first["type"].startswith("dataclass"):
        reason = "expected a mapping of settings"
    if first["type"] != "value_error":
        reason += f", got {quoted(first['input'])}"
    return HamrError(": ".join(part for part in (source, where, reason) if part))
