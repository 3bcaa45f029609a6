import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest

from analysis.runs.settings import Range, check_fields, check_number, named_path


@dataclass(frozen=True, kw_only=True)
class Settings:
    """A field of every type that a setting has."""

    deep: bool = False
    count: int = 3
    share: float = 0.5
    limit: float | None = None
    name: str = ""
    kind: Literal["this", "that"] = "this"
    sides: tuple[int, ...] = (3, 5)
    place: Literal["center"] | tuple[int, int] = "center"
    file: Path | None = None
    pairs: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_fields(
            self,
            count=(1, 100, "1 to 100"),
            limit=(1e-6, math.inf, "a positive number"),
            sides=(1, 9, "numbers from 1 to 9"),
        )


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"deep": 1}, "deep=1: expected true or false"),
        ({"deep": "yes"}, "deep='yes': expected true or false"),
        ({"count": True}, "count=True: expected a whole number"),
        ({"count": 2.0}, "count=2.0: expected a whole number"),
        ({"count": "3"}, "count='3': expected a whole number"),
        ({"count": None}, "count=None: expected a whole number"),
        ({"count": 0}, "count=0: expected 1 to 100"),
        ({"count": 10**30}, f"count={10**30}: expected 1 to 100"),
        ({"share": math.nan}, "share=nan: expected a finite number"),
        ({"share": -math.inf}, "share=-inf: expected a finite number"),
        ({"share": "0.5"}, "share='0.5': expected a number"),
        ({"share": False}, "share=False: expected a number"),
        ({"limit": math.nan}, "limit=nan: expected a positive number"),
        ({"limit": 0}, "limit=0: expected a positive number"),
        ({"limit": "none"}, "limit='none': expected a number or none"),
        ({"name": 3}, "name=3: expected a text"),
        ({"kind": "other"}, "kind='other': expected one of this, that"),
        ({"kind": ["this"]}, "kind=['this']: expected one of this, that"),
        ({"sides": 3}, "sides=3: expected whole numbers"),
        ({"sides": "3,5"}, "sides='3,5': expected whole numbers"),
        ({"sides": (3, 5.5)}, "sides=(3, 5.5): expected whole numbers"),
        ({"sides": (3, 11)}, "sides=(3, 11): expected numbers from 1 to 9"),
        ({"place": (1, 2, 3)}, "place=(1, 2, 3): expected one of center or 2 whole numbers"),
        ({"place": "middle"}, "place='middle': expected one of center or 2 whole numbers"),
        ({"file": 3}, "file=3: expected a path or none"),
        ({"pairs": ["a=1"]}, "pairs=['a=1']: expected values by name"),
    ],
)
def test_another_type_or_range_is_named(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match="expected") as raised:
        Settings(**values)
    assert str(raised.value) == message


def test_what_fits_becomes_plain() -> None:
    made = Settings(
        count=np.int64(4),  # type: ignore[arg-type]
        share=1,
        limit=math.inf,
        sides=[np.int32(7), 9],  # type: ignore[arg-type]
        place=[1, 2],  # type: ignore[arg-type]
        file="a.csv",  # type: ignore[arg-type]
    )
    assert (made.count, made.share, made.limit, made.sides, made.place) == (4, 1, math.inf, (7, 9), (1, 2))
    assert {type(number) for number in (made.count, *made.sides)} == {int}


def test_one_number() -> None:
    whole: Range = (0, 9, "0 to 9")
    check_number("top", np.int64(9), whole)
    check_number("crop", 0.5, (0.0, 1.0, "a share"))
    for value in (10, -1, 0.5, True, "5", None, math.nan):
        with pytest.raises(ValueError, match=r"top=.*: expected 0 to 9"):
            check_number("top", value, whole)


def test_an_empty_path_is_not_the_current_folder() -> None:
    for empty in ("", " ", "\t"):
        with pytest.raises(ValueError, match=r"images='.*': expected a path; '\.' is the current folder"):
            named_path(empty, "images")
    assert named_path(".", "images") == Path()
    assert named_path("a/b", "images") == Path("a/b")
