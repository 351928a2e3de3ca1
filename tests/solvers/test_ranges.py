"""Declared ranges: what they accept, what they say, and that OmegaConf types settings that have them."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Annotated, Any

import numpy as np
import pytest
from omegaconf import OmegaConf

from multilevel.solvers import SOLVERS, SettingError
from multilevel.solvers.ranges import (
    Above,
    AtLeast,
    AtMost,
    Below,
    Count,
    NonNegative,
    OneOf,
    Text,
    check,
    check_value,
    choices_of,
    expected,
)

Share = Annotated[float, AtLeast(0), Below(1)]
Letters = list[Annotated[str, OneOf("a", "b")]]


@dataclass
class Nested:
    limit: Count | None = None


@dataclass
class Settings:
    count: Count = 1
    share: Share = 0.5
    letters: Letters = field(default_factory=list)
    nested: Nested = field(default_factory=Nested)
    anything: Any = None


@pytest.mark.parametrize(
    ("kind", "accepted", "refused"),
    [
        (Count, [1, 2**40, np.int64(3)], [0, -1, 1.0, "1", True, None, math.nan]),
        (Count | None, [1, None], [0, False]),
        (Annotated[int | None, AtLeast(1)], [1, None], [0]),
        (NonNegative, [0, 0.0, 1, math.inf, np.float32(2)], [-1e-300, math.nan, "0", True, None]),
        (Share, [0, 0.999], [1, 1.0, -0.1]),
        (Annotated[float, Above(0), AtMost(1)], [1, 1e-300], [0, 1.0000001]),
        (Letters, [[], ["a", "b"]], [["c"], "a", None]),
        (Text, ["a"], ["", " ", None, 1]),
        (bool, [True, False], [1, "true", None]),
        (Annotated[int, OneOf(1, 3)], [1, 3], [2, True]),
    ],
)
def test_values_within_and_without(kind, accepted, refused):
    for value in accepted:
        check_value("setting", value, kind)
    for value in refused:
        with pytest.raises(SettingError, match=r"^setting: got .*; expected "):
            check_value("setting", value, kind)


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        (Count, "a whole number of at least 1"),
        (NonNegative | None, "a number of at least 0, or null"),
        (Share, "a share of at least 0 and below 1"),
        (Annotated[float, AtLeast(0), AtMost(1)], "a share from 0 to 1"),
        (list[Share], "a list, each a share of at least 0 and below 1"),
        (Letters, "some of a, b"),
        (Annotated[str | None, OneOf("a", "b")], "one of a, b, or null"),
        (Annotated[str, OneOf("a")], "a"),
        (bool, "true or false"),
    ],
)
def test_a_declared_type_in_words(kind, words):
    assert expected(kind) == words


def test_the_first_field_out_of_its_range_is_named_nested_ones_too():
    check(Settings())
    for settings, text in (
        (Settings(count=0), "x.count: got 0; expected a whole number of at least 1"),
        (Settings(share=1), "x.share: got 1; expected a share of at least 0 and below 1"),
        (Settings(letters=["a", "z"]), "x.letters: got 'z'; expected some of a, b"),
        (Settings(nested=Nested(0)), "x.nested.limit: got 0; expected a whole number of at least 1, or null"),
    ):
        with pytest.raises(SettingError) as caught:
            check(settings, "x.")
        assert str(caught.value) == text


def test_omegaconf_types_what_has_a_range():
    merged = OmegaConf.merge(OmegaConf.structured(Settings), {"count": "7", "share": 0, "letters": ["a"]})
    settings = OmegaConf.to_object(merged)
    assert (settings.count, settings.share, settings.letters) == (7, 0.0, ["a"])
    assert isinstance(settings.share, float)


def test_choices():
    assert choices_of(Letters | None) == ("a", "b")
    assert choices_of(Count) == ()


@pytest.mark.parametrize("name", list(SOLVERS))
def test_every_solver_checks_what_its_fields_declare(name):
    wrong = {"product": "none"} if "product" in SOLVERS[name].__dataclass_fields__ else {"steps": 0}
    ((setting, value),) = wrong.items()
    with pytest.raises(SettingError, match=rf"^solver\.{setting}: got {value!r}; expected "):
        SOLVERS[name](**wrong)
