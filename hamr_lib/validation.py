"""Checked settings: dataclasses whose values pydantic holds to their types and ranges."""

import functools
import typing
from dataclasses import fields, is_dataclass
from typing import Annotated

import pydantic
from pydantic import AfterValidator, Field, StrictFloat, StrictInt

from hamr_lib.errors import HamrError, quoted
from hamr_lib.variants import check_names

SEEDS = 2**32 - 1  # the largest


def within(default, low, high, **more):
    """A number with its default, in [low, high]; `more` as in `pydantic.Field`."""
    return Field(default, ge=low, le=high, strict=True, allow_inf_nan=False, **more)


def _ordered(pair):
    if pair[0] > pair[1]:
        raise ValueError("the first of two should be at most the second")
    return pair


def _distinct(values):
    if len(set(values)) < len(values):
        raise ValueError("each should be named once")
    return values


def known(names, what):
    def check(values):
        try:
            check_names(values, names, what)
        except HamrError as error:  # pydantic adds where it stands
            raise ValueError(str(error)) from None
        return _distinct(values)

    return AfterValidator(check)


def _several(kind, bounds, least, most, check):
    each = Annotated[kind, bounds]
    return Annotated[tuple[each, ...], Field(min_length=least, max_length=most), check]


_FINITE = {"allow_inf_nan": False}
Interval = _several(StrictFloat, Field(ge=0, le=100, **_FINITE), 2, 2, AfterValidator(_ordered))
_ONCE = AfterValidator(_distinct)
Factors = _several(StrictFloat, Field(gt=0, le=1000, **_FINITE), 1, 100, _ONCE)
Seeds = _several(StrictInt, Field(ge=0, le=SEEDS), 1, 100, _ONCE)


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
    above = first["loc"][:-1]
    where = ".".join(str(part)[:80] for part in first["loc"])
    if first["type"] == "unexpected_keyword_argument":
        for name in above:
            cls = typing.get_type_hints(cls)[name]
        known = ", ".join(field.name for field in fields(cls))
        return HamrError(f"{source}: unknown setting {quoted(where)} (known: {known})")
    reason = first["msg"].removeprefix("Value error, ").replace("Input should be", "expected")
    if is_dataclass(cls) and first["type"].startswith("dataclass"):
        reason = "expected a mapping of settings"
    if first["type"] != "value_error":
        reason += f", got {quoted(first['input'])}"
    return HamrError(": ".join(part for part in (source, where, reason) if part))
