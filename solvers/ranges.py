"""Ranges that settings declare, such as ``Annotated[int, AtLeast(1)]``, and the function that checks them."""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, fields, is_dataclass
from functools import cache, partial
from numbers import Integral, Real
from types import NoneType, UnionType
from typing import Annotated, Any, Union, get_args, get_origin, get_type_hints

from multilevel.solvers.errors import SettingError

#: The types of settings: the classes that a value must be an instance of, and the name in messages.
KINDS: dict[Any, tuple[type, str]] = {
    bool: (bool, "true or false"),
    int: (Integral, "a whole number"),
    float: (Real, "a number"),
    str: (str, "text"),
}


@dataclass(frozen=True)
class Bound:
    """A bound on a number."""

    words: str
    compare: Callable[[Any, Any], bool]
    limit: float

    def holds(self, value: Any) -> bool:
        return self.compare(value, self.limit)

    def __str__(self) -> str:
        return f"{self.words} {self.limit}"


AtLeast = partial(Bound, "of at least", operator.ge)
Above = partial(Bound, "above", operator.gt)
AtMost = partial(Bound, "at most", operator.le)
Below = partial(Bound, "below", operator.lt)


class OneOf:
    """The allowed values of a setting."""

    def __init__(self, *choices: Any) -> None:
        self.choices = choices

    def holds(self, value: Any) -> bool:
        return value in self.choices

    def __str__(self) -> str:
        return ", ".join(map(str, self.choices))


class NotBlank:
    """Text with more than spaces."""

    def holds(self, value: str) -> bool:
        return bool(value.strip())

    def __str__(self) -> str:
        return "that is not empty"


Count = Annotated[int, AtLeast(1)]
NonNegative = Annotated[float, AtLeast(0)]
PositiveNumber = Annotated[float, Above(0)]
PositiveShare = Annotated[float, Above(0), AtMost(1)]
Seed = Annotated[int, AtLeast(0), AtMost(2**32 - 1)]
Text = Annotated[str, NotBlank()]


def check(settings: Any, prefix: str = "") -> None:
    """Check every field of a settings dataclass, and of those nested in it, against its declared type and range.

    Args:
        settings: the dataclass instance.
        prefix: prefix of setting names in messages, such as ``solver.``.

    Raises:
        SettingError: the first unusable value.

    >>> @dataclass
    ... class Sizes:
    ...     width: Annotated[int, AtLeast(1)] = 8
    >>> check(Sizes(0), "model.")
    Traceback (most recent call last):
    multilevel.solvers.errors.SettingError: model.width: got 0; expected a whole number of at least 1
    """
    for name, kind in declared(settings.__class__).items():
        value = getattr(settings, name)
        if is_dataclass(value):
            check(value, f"{prefix}{name}.")
        else:
            check_value(prefix + name, value, kind)


def check_value(setting: str, value: Any, kind: Any) -> None:
    """Raise SettingError unless a value has its declared type and range.

    >>> check_value("data.mask_share", 0.2, Annotated[float, AtLeast(0), Below(1)])
    """
    for part in _misfits(value, kind):
        raise SettingError(setting, part, expected(kind))


def require(setting: str, value: Any, usable: bool, remedy: str) -> None:
    """Raise SettingError unless ``usable``, for conditions that involve other settings, which a declared range cannot
    express."""
    if not usable:
        raise SettingError(setting, value, remedy)


@cache
def declared(settings_class: Any) -> dict[str, Any]:
    """The declared type of each field, including ranges."""
    hints = get_type_hints(settings_class, include_extras=True)
    return {field.name: hints[field.name] for field in fields(settings_class)}


def expected(kind: Any) -> str:
    """Describe a declared type in words.

    >>> expected(Annotated[float | None, Above(0), Below(1)])
    'a share above 0 and below 1, or null'
    """
    kind, checks, optional = _parts(kind)
    if choices := choices_of(kind, checks):
        several = "some of " if get_origin(kind) is list else "one of "
        typed = [str(choice).lower() if isinstance(choice, bool) else str(choice) for choice in choices]
        words = (several if len(choices) > 1 else "") + ", ".join(typed)
    elif get_origin(kind) is list:
        words = f"a list, each {expected(get_args(kind)[0])}"
    else:
        share = kind is float and any(getattr(check, "limit", None) == 1 for check in checks)
        noun = "a share" if share else KINDS[kind][1] if kind in KINDS else "another value"
        bounds = [check for check in checks if getattr(check, "limit", None) != math.inf]
        if len(bounds) < len(checks):
            noun = "a finite number"
        limits = re.sub("of at least (.+) and at most", r"from \1 to", " and ".join(map(str, bounds)))
        words = f"{noun} {limits}".strip()
    return f"{words}, or null" if optional else words


def choices_of(kind: Any, checks: Iterable[Any] = ()) -> tuple[Any, ...]:
    """The allowed values of a declared type or of its list elements; empty if it names none.

    >>> choices_of(list[Annotated[str, OneOf("a", "b")]])
    ('a', 'b')
    """
    kind, declared_checks, _ = _parts(kind)
    if get_origin(kind) is list:
        return choices_of(get_args(kind)[0])
    return next((check.choices for check in (*checks, *declared_checks) if isinstance(check, OneOf)), ())


def base_type(kind: Any) -> Any:
    """A declared type without ranges and None."""
    return _parts(kind)[0]


def _parts(kind: Any) -> tuple[Any, tuple[Any, ...], bool]:
    """A declared type without ranges and None, the ranges, and whether None is allowed."""
    checks, optional = (), False
    while get_origin(kind) in (Annotated, Union, UnionType):
        if get_origin(kind) is Annotated:
            checks += kind.__metadata__
        optional |= NoneType in get_args(kind)
        kind = get_args(kind)[0]
    return kind, checks, optional


def _misfits(value: Any, kind: Any) -> Iterator[Any]:
    """The parts of a value that violate its declaration."""
    kind, checks, optional = _parts(kind)
    if value is None and optional:
        return
    if get_origin(kind) is list and isinstance(value, list | tuple):
        for element in value:
            yield from _misfits(element, get_args(kind)[0])
    elif get_origin(kind) is list or not _is_a(value, kind) or not all(check.holds(value) for check in checks):
        yield value


def _is_a(value: Any, kind: Any) -> bool:
    if kind not in KINDS:
        return True
    return isinstance(value, KINDS[kind][0]) and isinstance(value, bool) == (kind is bool)
