"""One loop over many items, by work whose every call is counted."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from analysis.runs.resuming import Measured, Row, hash_settings, measure

NAMES = [f"item {index}" for index in range(10)]


class Work:
    """Doubles and sums the numbers; refuses some; fails at one."""

    def __init__(self, refused: tuple[int, ...] = (2,), fails_at: int | None = None) -> None:
        self.refused, self.fails_at, self.seen = refused, fails_at, list[int]()

    def __call__(self, indices: range) -> Mapping[int, Row | str]:
        if self.fails_at in indices:
            raise RuntimeError("out of luck")
        self.seen += indices
        return {
            index: "refused" if index in self.refused else {"double": np.array(2 * index), "sum": np.full(2, index)}
            for index in indices
        }


def run(work: Work, **options: Any) -> Measured:
    return measure(NAMES, work, summed=("sum",), **options)


def test_rows_sums_and_reasons_in_order() -> None:
    found = run(Work(refused=(2, 9)), batch_size=3)
    assert found.used == [0, 1, 3, 4, 5, 6, 7, 8]
    assert found.skipped == [("item 2", "refused"), ("item 9", "refused")]
    assert found.stacked("double").tolist() == [2 * index for index in found.used]
    assert found.sums["sum"].tolist() == [34, 34]
    assert found.of_used(NAMES)[2] == "item 3"
    with pytest.raises(ValueError, match="batch_size=0"):
        run(Work(), batch_size=0)


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_whatever_stops_it_nothing_is_measured_twice(error: type[BaseException], tmp_path: Path) -> None:
    partial = tmp_path / "folder" / "state.npz"
    first = Work(fails_at=6 if error is RuntimeError else None)

    def stop(done: int, total: int) -> None:
        if error is KeyboardInterrupt and done == 6:
            raise KeyboardInterrupt

    with pytest.raises(error):
        run(first, batch_size=2, partial=partial, fingerprint="a", progress=stop)
    second, seen = Work(), list[tuple[int, int]]()
    found = run(
        second, batch_size=3, partial=partial, fingerprint="a", progress=lambda done, total: seen.append((done, total))
    )
    assert first.seen + second.seen == list(range(10))
    assert seen == [(6, 10), (9, 10), (10, 10)]
    whole = run(Work())
    assert (found.used, found.skipped) == (whole.used, whole.skipped)
    np.testing.assert_array_equal(found.stacked("double"), whole.stacked("double"))
    np.testing.assert_array_equal(found.sums["sum"], whole.sums["sum"])
    assert list(partial.parent.iterdir()) == []


def test_a_state_of_another_measurement_or_a_damaged_one_is_not_used(tmp_path: Path) -> None:
    partial = tmp_path / "state.npz"
    with pytest.raises(RuntimeError):
        run(Work(fails_at=5), partial=partial, fingerprint="a")
    other = Work()
    run(other, partial=partial, fingerprint="b")
    assert other.seen == list(range(10))
    partial.write_bytes(b"PK damaged")
    again = Work()
    run(again, partial=partial, fingerprint="a")
    assert again.seen == list(range(10))


@pytest.mark.parametrize(
    "change",
    [
        {"used": [0, 1, 3, 99]},
        {"used": [3, 1, 0]},
        {"used": [0, 0, 0]},
        {"used": [-1, 0, 1]},
        {"used": None},
        {"skipped": [["item 9", "refused"]]},
        {"skipped": 1},
        {"seconds": "x"},
        [],
        None,
        "[" * 100_000,
    ],
)
def test_a_state_whose_header_was_changed_is_begun_anew(change: Any, tmp_path: Path) -> None:
    partial = tmp_path / "state.npz"
    with pytest.raises(RuntimeError):
        run(Work(fails_at=4), partial=partial, fingerprint="a")
    with np.load(partial) as file:
        arrays = dict(file)
    header = json.loads(str(arrays["header"]))
    text = change if isinstance(change, str) else json.dumps(header | change if isinstance(change, dict) else change)
    np.savez(partial, **arrays | {"header": np.array(text)})
    again = Work()
    assert run(again, partial=partial, fingerprint="a").used == [0, 1, 3, 4, 5, 6, 7, 8, 9]
    assert again.seen == list(range(10))


@pytest.mark.parametrize("change", ["value", "shape", "dtype", "name", "missing", "more", "pipe", "items"])
def test_a_state_that_is_not_as_it_was_written_is_begun_anew(change: str, tmp_path: Path) -> None:
    partial = tmp_path / "state.npz"
    with pytest.raises(RuntimeError):
        run(Work(fails_at=5), partial=partial, fingerprint="a")
    with np.load(partial) as file:
        arrays = dict(file)
    double = arrays.pop("double")
    changed: dict[str, dict[str, Any]] = {
        "value": {"double": double + 1},
        "shape": {"double": double[:2]},
        "dtype": {"double": double.astype(np.int32)},
        "name": {"twice": double},
        "missing": {},
        "more": {"double": double, "sum of double": double},
        "items": {"double": double},
    }
    if change in changed:
        np.savez(partial, **arrays | changed[change])
    else:
        partial.unlink()
        os.mkfifo(partial)
    again = Work()
    names = NAMES[::-1] if change == "items" else NAMES
    found = measure(names, again, summed=("sum",), partial=partial, fingerprint="a")
    assert again.seen == list(range(10))
    np.testing.assert_array_equal(found.stacked("double"), run(Work()).stacked("double"))
    assert not partial.exists()
    partial.mkdir()
    with pytest.raises(IsADirectoryError, match=r"partial=.*: a folder"):
        run(Work(), partial=partial)


def test_where_nothing_can_be_used_the_reasons_are_kept(tmp_path: Path) -> None:
    partial = tmp_path / "state.npz"
    found = run(Work(refused=tuple(range(10))), partial=partial, fingerprint="a")
    assert (found.used, len(found.skipped)) == ([], 10)
    again = Work()
    assert run(again, partial=partial, fingerprint="a").skipped == found.skipped
    assert again.seen == []


def test_the_hash_of_settings_is_that_of_their_json() -> None:
    # printf '[1, "a"]' | sha256sum
    assert hash_settings((1, "a")) == "4a72386a027702c1f4fdf182d13b71437ba1606b177123eb73a11eb0bd2feeb8"
    assert hash_settings([1, "a"]) != hash_settings(["a", 1])


class Halved(dict[str, Any]):
    """A row that is interrupted after its first array was taken."""

    def items(self) -> Any:
        yield "sum", self["sum"]
        raise KeyboardInterrupt


def test_stopped_in_the_middle_of_a_batch_nothing_counts_twice(tmp_path: Path) -> None:
    work, whole = Work(), run(Work())

    def interrupted(indices: range) -> Mapping[int, Row | str]:
        rows = dict(work(indices))
        row = rows[indices[0]]
        if 6 in indices and not isinstance(row, str):
            rows[indices[0]] = Halved(row)
        return rows

    partial = tmp_path / "state.npz"
    with pytest.raises(KeyboardInterrupt):
        measure(NAMES, interrupted, summed=("sum",), partial=partial, fingerprint="a")
    found = run(Work(), partial=partial, fingerprint="a")
    assert found.used == whole.used
    np.testing.assert_array_equal(found.stacked("double"), whole.stacked("double"))
    np.testing.assert_array_equal(found.sums["sum"], whole.sums["sum"])
