"""The state of an unfinished training on disk.

A new state is written to a file of its own, and the one before it is kept: whenever the machine stops, one of the two
is whole.
"""

import os
from pathlib import Path
from typing import Any

from analysis.runs.writing import replacing
from replknet import CheckpointError
from replknet.checkpoints.reading import read_content
from replknet.checkpoints.writing import write_pickled


class StateError(ValueError):
    """A state that cannot be written; the one before it is kept."""


def store_state(path: Path, state: dict[str, Any]) -> None:
    """Write a state; nothing that was there is lost if that fails.

    Raises:
        StateError: If it cannot be written, for want of space or otherwise.
    """
    try:
        with replacing(path) as temporary:
            write_pickled(temporary, state)
            if path.exists():
                os.replace(path, previous_of(path))  # noqa: PTH105
    except OSError as error:
        raise StateError(
            f"checkpoint={str(path)!r}: cannot be written ({error}); the state before it is kept: "
            "the same command goes on from there"
        ) from error


def load_state(path: Path, fingerprint: str) -> tuple[dict[str, Any] | None, str]:
    """The newest state that can be read and has this fingerprint, or None; and a note where it is not the last one."""
    note = ""
    for candidate in (path, previous_of(path)):
        if not candidate.is_file():
            continue
        try:
            state = read_content(candidate)
        except CheckpointError as error:
            note = f"{candidate.name} is damaged ({error}); the one before it is used"
            continue
        if isinstance(state, dict) and state.get("fingerprint") == fingerprint:
            return state, note
        note = note or (
            f"{candidate.name} is of another network, recipe or data, or of a former version, which named the "
            "networks' code otherwise; the training begins anew"
        )
    return None, note.replace("the one before it is used", "there is no other, and the training begins anew")


def remove_state(path: Path) -> None:
    """Delete the states, once they are needed no more."""
    for file in (path, previous_of(path)):
        file.unlink(missing_ok=True)


def previous_of(path: Path) -> Path:
    """Where the state before the last one is kept."""
    return path.with_name(path.name + ".previous")
