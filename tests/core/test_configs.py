"""Strict configuration: what is misspelt or mistyped is an error that helps."""

import dataclasses
import pickle
from typing import Literal

import pytest

from minillm.core import configs
from minillm.core.errors import UserError


@dataclasses.dataclass(frozen=True)
class Inner:
    rate: float = 0.5
    kind: Literal["a", "b"] = "a"


@dataclasses.dataclass(frozen=True)
class Outer:
    size: int
    inner: Inner = Inner()
    windows: tuple[int | None, ...] = (None,)
    name: str | None = None


def test_nested_values_are_built_and_written_back():
    values = {"size": 3, "inner": {"rate": 1}, "windows": [4, None]}
    built = configs.build(Outer, values)
    assert built == Outer(3, Inner(1.0), (4, None))
    assert configs.build(Outer, configs.to_dict(built)) == built


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"size": 3, "windws": [1]}, ["config.windws", "did you mean config.windows"]),
        ({"size": 3, "inner": {"rat": 1}}, ["config.inner.rat", "config.inner.rate"]),
        ({}, ["config.size", "nothing"]),
        ({"size": "3"}, ["config.size", "'3' (str)", "int"]),
        ({"size": True}, ["config.size", "True (bool)"]),
        ({"size": 3, "inner": {"kind": "c"}}, ["config.inner.kind", "one of a, b"]),
        ({"size": 3, "windows": [4, "x"]}, ["config.windows[1]"]),
        ({"size": 3, "inner": 7}, ["config.inner", "a group of settings"]),
    ],
)
def test_wrong_setting_is_an_error_that_names_it(values, words):
    with pytest.raises(UserError) as caught:
        configs.build(Outer, values)
    assert all(word in str(caught.value) for word in words)


def test_error_survives_a_process_boundary():
    error = UserError(field="f", got=1, wanted=2, fix="x")
    assert str(pickle.loads(pickle.dumps(error))) == str(error) == "f: got 1; wanted 2; fix: x"
