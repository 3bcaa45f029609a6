"""One measurement of many items, which can be interrupted and goes on where it was."""

import hashlib
import json
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from analysis.runs.arrays import read_arrays
from analysis.runs.processes import by_first, in_turns, rank
from analysis.runs.settings import BATCHES, check_number
from analysis.runs.writing import clear_leftovers, replacing

Row = Mapping[str, NDArray[Any]]
"""What was measured on one item, by name."""
Work = Callable[[range], Mapping[int, Row | str]]
"""From the numbers of some items to the row of each, or the reason why there is none."""
Progress = Callable[[int, int], None]
"""Told the number of items that are done and of all."""
_SECONDS_BETWEEN_STORES = 2.0
_SHARE_OF_STORES = 0.05
"""Of the time, where writing the state takes long."""
_SUM = "sum of "


@dataclass
class Measured:
    """What was measured so far.

    Args:
        used: Numbers of the items that gave a row, in order.
        skipped: Name and reason of each of the others.
        rows: By name one array for each used item.
        sums: By name one array summed over the used items.
        seconds: Spent, in all turns together.
    """

    used: list[int] = field(default_factory=list)
    skipped: list[tuple[str, str]] = field(default_factory=list)
    rows: dict[str, list[NDArray[Any]]] = field(default_factory=dict)
    sums: dict[str, NDArray[Any]] = field(default_factory=dict)
    seconds: float = 0.0

    @property
    def done(self) -> int:
        """Items that were seen."""
        return len(self.used) + len(self.skipped)

    def stacked(self, name: str) -> NDArray[Any]:
        """The rows of a name, along a new first axis."""
        return np.stack(self.rows[name])

    def of_used(self, values: Sequence[Any]) -> tuple[Any, ...]:
        """Of a value for each item, those of the used ones."""
        return tuple(values[index] for index in self.used)


def measure(
    names: Sequence[str],
    work: Work,
    *,
    batch_size: int = 1,
    summed: Collection[str] = (),
    by_item: bool = False,
    fingerprint: str = "",
    partial: str | PathLike[str] | None = None,
    keep_partial: bool = False,
    progress: Progress | None = None,
) -> Measured:
    """Do `work` on all items in order, a batch at a time; in a process group, batches in turns.

    Args:
        names: Of the items, for those that are skipped.
        work: Called with batches of numbers, one after the other.
        batch_size: Items in one call.
        summed: Names of arrays that are added up, not kept for each item.
        by_item: Call `progress` after each item, though they are measured in batches.
        fingerprint: Of everything that the rows depend on.
        partial: A file that keeps what was measured, every few seconds and when something is raised. A later call with
            the same fingerprint and names goes on from there; it is removed at the end. A file that anything else has
            written or changed is replaced. Batches are the same as without an interruption: one that was stopped in the
            middle is done again.
        keep_partial: Keep that file at the end, for a caller that has more to do before all is safe.
        progress: Called at the start and after each batch.

    Raises:
        IsADirectoryError: If there is a folder in place of the file `partial`.
        ValueError: If `batch_size` is out of range.
    """
    check_number("batch_size", batch_size, BATCHES)
    if partial is not None and Path(partial).is_dir():
        raise IsADirectoryError(f"partial={str(partial)!r}: a folder, not the file of a measurement")
    found = Measured() if partial is None else by_first(lambda: _found(Path(partial), fingerprint, names))
    total, first = len(names), found.done
    if progress is not None:
        progress(first, total)
    began = stored = time.monotonic()
    seconds_to_store = 0.0
    is_stored = True

    def store() -> None:
        nonlocal stored, seconds_to_store, is_stored
        if partial is None or rank() > 0 or is_stored:
            return
        start = time.monotonic()
        _store(Path(partial), fingerprint, names, found)
        stored, is_stored = time.monotonic(), True
        seconds_to_store = stored - start

    def batch(number: int) -> Mapping[int, Row | str]:
        return work(range(number * batch_size, min((number + 1) * batch_size, total)))

    try:
        begun = first // batch_size if first < total else -(-total // batch_size)
        for rows in in_turns(-(-total // batch_size), batch, start=begun):
            now = time.monotonic()
            found.seconds, began = found.seconds + now - began, now
            new = [index for index in sorted(rows) if index >= first]
            for index in new:
                is_stored = True  # stopped in the middle of an addition, the state on disk counts, not half of the sums
                _add(found, index, rows[index], names, summed)
                is_stored = not by_item and index != new[-1]
                if progress is not None and not is_stored:
                    progress(found.done, total)
            if time.monotonic() - stored > max(_SECONDS_BETWEEN_STORES, seconds_to_store / _SHARE_OF_STORES):
                store()
    except BaseException:  # Ctrl-C, too
        store()
        raise
    if keep_partial or not found.used:
        store()
    elif partial is not None:
        by_first(lambda: Path(partial).unlink(missing_ok=True))
    return found


def _add(found: Measured, index: int, row: Row | str, names: Sequence[str], summed: Collection[str]) -> None:
    if isinstance(row, str):
        found.skipped.append((names[index], row))
        return
    for name, value in row.items():
        if name in summed:
            found.sums[name] = found.sums[name] + value if name in found.sums else value
        else:
            found.rows.setdefault(name, []).append(value)
    found.used.append(index)


def hash_settings(settings: Any) -> str:
    """SHA-256, in hexadecimal, of anything that JSON holds, in the order that it has."""
    return hashlib.sha256(json.dumps(settings).encode()).hexdigest()


def _store(path: Path, fingerprint: str, names: Sequence[str], found: Measured) -> None:
    header = {"used": found.used, "skipped": found.skipped, "seconds": found.seconds}
    arrays = {name: np.stack(rows) for name, rows in found.rows.items()}
    arrays |= {f"{_SUM}{name}": value for name, value in found.sums.items()}
    text = json.dumps(header)
    seal = _seal(fingerprint, names, text, arrays)
    with replacing(path) as temporary, temporary.open("wb") as file:
        np.savez(file, header=text, seal=seal, **arrays)  # type: ignore[arg-type]


def _found(path: Path, fingerprint: str, names: Sequence[str]) -> Measured:
    clear_leftovers(path.parent, of=path.name)
    return _load(path, fingerprint, names) or Measured()


def _load(path: Path, fingerprint: str, names: Sequence[str]) -> Measured | None:
    """What `_store` wrote, and nothing else; None without such a file of the same measurement of the same items."""
    try:
        arrays = read_arrays(path, "partial")
    except (OSError, ValueError):
        return None
    text, seal = (str(arrays.pop(name, "")) for name in ("header", "seal"))
    if seal != _seal(fingerprint, names, text, arrays):
        return None
    header: dict[str, Any] = json.loads(text)
    return Measured(
        used=header["used"],
        skipped=[(name, reason) for name, reason in header["skipped"]],
        rows={name: list(rows) for name, rows in arrays.items() if not name.startswith(_SUM)},
        sums={name.removeprefix(_SUM): value for name, value in arrays.items() if name.startswith(_SUM)},
        seconds=header["seconds"],
    )


def _seal(fingerprint: str, names: Sequence[str], header: str, arrays: Mapping[str, NDArray[Any]]) -> str:
    """SHA-256 of all that a file keeps and of what it belongs to: one that anything else has changed is not believed,
    so that nothing in it has to be checked.
    """
    digest = hashlib.sha256(json.dumps([fingerprint, list(names), header]).encode())
    for name in sorted(arrays):
        array = np.ascontiguousarray(arrays[name])
        digest.update(f"{name!r} {array.dtype.str} {array.shape}\n".encode())
        digest.update(array.data)
    return digest.hexdigest()
