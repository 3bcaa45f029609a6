"""Every family for its share of a minute, or of half of `FUZZ_SECONDS`; `make fuzz` takes longer."""

import os
from collections.abc import Callable, Iterator
from itertools import count

import pytest

from tests.fuzz import families
from tests.fuzz.engine import FAMILIES, Arena, repeat_command, seconds_for
from tests.fuzz.reporting import COUNTS, seed_of_the_day

families.load()
_SECONDS = float(os.environ.get("FUZZ_SECONDS", "120")) / 2
"""The other half is that of `tests/faults`."""


@pytest.fixture(scope="module")
def arena() -> Iterator[Arena]:
    with Arena(seed_of_the_day()) as made:
        yield made


@pytest.mark.fuzz
@pytest.mark.parametrize("name", FAMILIES)
def test_every_case_is_right_or_refused(
    name: str, arena: Arena, record_property: Callable[[str, object], None]
) -> None:
    tally = arena.run(name, seconds=seconds_for(name, FAMILIES, _SECONDS), numbers=count())
    record_property(COUNTS, tally.row(name))
    assert not tally.wrong, "\n".join(
        f"{repeat_command(name, seed_of_the_day(), number)}\n    {text}" for number, text in tally.wrong.items()
    )
    assert tally.counts["right"] + tally.counts["refused"] > 0
