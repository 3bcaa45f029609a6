"""Values of JSON by the types that fields name."""

import math
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

import numpy as np
import pytest
from numpy.typing import NDArray
from typing_extensions import TypeAliasType

from analysis.runs.decoding import decoded, is_array, made


@dataclass(frozen=True)
class Point:
    x: int
    y: float = 0.5
    colour: Literal["red", "blue"] = "red"
    name: str | None = None

    def __post_init__(self) -> None:
        if self.x < 0:
            raise ValueError(f"x={self.x}: expected at least 0")


@dataclass(frozen=True)
class Shape:
    points: tuple[Point, ...]
    size: tuple[int, float]
    place: Literal["centre"] | tuple[int, int]
    open: bool
    label: str | None
    weights: Mapping[str, float] = field(default_factory=dict)
    anything: dict[str, Any] = field(default_factory=dict)


CONTENT = {"points": [{"x": 1}, {"x": 2, "y": 3, "name": "b"}], "size": [1, "NaN"], "place": [3, 4], "open": False}


def test_lists_become_tuples_objects_dataclasses_and_three_texts_numbers() -> None:
    found = made(Shape, CONTENT | {"weights": {"a": "-Infinity", "b": 1}, "anything": {"c": [None, {}]}})
    assert found.points == (Point(1), Point(2, 3, name="b"))
    assert (found.place, found.open, found.label) == ((3, 4), False, None)
    assert math.isnan(found.size[1])
    assert found.weights == {"a": -math.inf, "b": 1}
    assert found.anything == {"c": [None, {}]}
    assert made(Shape, CONTENT | {"place": "centre"}).place == "centre"
    # What Python's own copy of a dataclass holds is taken, too.
    assert made(Shape, CONTENT | {"points": (Point(1),)}).points == (Point(1),)
    # A whole number stays one: settings are hashed as they were written.
    assert isinstance(found.points[1].y, int)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"points": None}, "points=None: expected a list"),
        ({"points": {}}, "points={}: expected a list"),
        ({"points": [1]}, r"points\[0\]=1: expected an object"),
        ({"points": [{"x": 1}, {"x": True}]}, r"points\[1\]\.x=True: expected a whole number"),
        ({"points": [{"x": 1.0}]}, "whole number"),
        ({"points": [{"x": "1"}]}, "whole number"),
        ({"points": [{"x": 2**64}]}, "whole number of up to 64 bits"),
        ({"points": [{"y": 1.0}]}, r"points\[0\]\.x is missing"),
        ({"points": [{"x": 1, "z": 1}]}, "no field 'z'"),
        ({"points": [{"x": 1, "colour": "green"}]}, r"colour='green': expected one of 'red', 'blue'"),
        ({"points": [{"x": 1, "colour": ["red"]}]}, "expected one of"),
        ({"points": [{"x": 1, "y": 10**400}]}, "a number of up to 64 bits"),
        ({"points": [{"x": 1, "y": "1.0"}]}, "y='1.0': expected a number"),
        ({"points": [{"x": 1, "y": None}]}, "y=None: expected a number"),
        ({"points": [{"x": 1, "y": True}]}, "y=True: expected a number"),
        ({"points": [{"x": 1, "name": 1}]}, "name=1: expected a text"),
        ({"size": [1]}, r"size=\[1\]: expected a list of 2"),
        ({"size": [1, 2, 3]}, "a list of 2"),
        ({"size": "ab"}, "expected a list"),
        ({"place": "elsewhere"}, "place='elsewhere': expected a list"),
        ({"place": [1, 2.5]}, r"place\[1\]=2.5: expected a whole number"),
        ({"open": 1}, "open=1: expected true or false"),
        ({"open": None}, "expected true or false"),
        ({"label": []}, r"label=\[\]: expected a text"),
        ({"weights": []}, r"weights=\[\]: expected an object"),
        ({"weights": {"a": "b"}}, r"weights\.a='b': expected a number"),
        ({"anything": 1}, "anything=1: expected an object"),
        ({"label": ["x" * 10**6]}, "expected a text"),
    ],
)
def test_another_type_is_named_with_its_place(change: dict[str, Any], message: str) -> None:
    with pytest.raises(TypeError, match=message) as raised:
        made(Shape, CONTENT | change)
    assert len(str(raised.value)) < 300


def test_values_that_the_dataclass_refuses_are_its_own_error() -> None:
    with pytest.raises(ValueError, match="x=-1: expected at least 0"):
        made(Shape, CONTENT | {"points": [{"x": -1}]})


def test_arrays_have_the_kind_of_numbers_that_the_field_names() -> None:
    hint = NDArray[np.float64]
    for array in (np.zeros(2), np.zeros(2, np.float32)):
        assert decoded(array, hint, "a") is array
    for wrong in (np.zeros(2, int), np.zeros(2, bool), np.array(["a"]), [1.0], None):
        with pytest.raises(TypeError, match=r"^a(=|:)"):
            decoded(wrong, hint, "a")
    assert decoded(None, hint | None, "a") is None


Scalar = TypeVar("Scalar", bound=np.generic)
Alias = TypeAliasType("Alias", np.ndarray[Any, np.dtype[Scalar]], type_params=(Scalar,))


def test_aliases_of_arrays_are_arrays() -> None:
    """As `numpy.typing.NDArray` is from NumPy 2.5 on."""
    hint = Alias[np.float64]
    assert typing.get_origin(hint) is not np.ndarray
    assert is_array(hint)
    assert is_array(hint | None)
    assert not is_array(tuple[int, ...] | None)
    values = np.array([1.0, 2.0])
    assert decoded(values, hint) is values
    assert decoded(None, hint | None) is None
    with pytest.raises(TypeError, match=r"maps: an array of int64; expected float64"):
        decoded(np.array([1]), hint, "maps")
