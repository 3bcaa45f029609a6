"""A study as it lies in its folder."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from os import PathLike
from pathlib import Path

from analysis.runs.decoding import decoded
from analysis.runs.folder import folder_names
from analysis.runs.results import ResultError
from analysis.runs.texts import parse_json, read_text
from analysis.runs.writing import replacing, write_json
from analysis.shape_bias.result import ShapeBiasResult
from analysis.study.design import Study
from analysis.study.jobs import CellState, cell_states
from analysis.study.result import CellResult

STUDY_FILE = "study.json"
PEOPLE = "people"
"""Folder of the answers of people, one result each."""


def save_people(people: Sequence[ShapeBiasResult], directory: str | PathLike[str]) -> None:
    """Write what people answered into the folder of a study, in place of what is there of others."""
    with replacing(Path(directory) / PEOPLE) as folder:
        folder.mkdir()
        for name, person in zip(folder_names([person.observer for person in people]), people, strict=True):
            person.save(folder / name)


def load_people(directory: str | PathLike[str]) -> tuple[ShapeBiasResult, ...]:
    """What `save_people` has written; nothing where it was not called.

    Raises:
        ResultError: If one is damaged.
    """
    folders = sorted((Path(directory) / PEOPLE).glob("*/"))
    return tuple(ShapeBiasResult.load(folder) for folder in folders)


def save_study(study: Study, command: str, directory: str | PathLike[str]) -> None:
    """Write `study.json`: what is done in the folder, and the command that does it."""
    Path(directory).mkdir(parents=True, exist_ok=True)
    write_json(Path(directory) / STUDY_FILE, asdict(_Saved(command=command, study=study)))


@dataclass(frozen=True, kw_only=True)
class _Saved:
    """What `study.json` holds."""

    command: str
    study: Study


@dataclass(frozen=True, kw_only=True)
class StudyRecord:
    """A study as it lies in its folder: every cell that is finished, by whichever command, and the state of all."""

    study: Study
    """Of the last command; `results` may hold more kernels and seeds."""
    command: str
    results: tuple[CellResult, ...]
    people: tuple[ShapeBiasResult, ...]
    """Their answers to the cue-conflict images."""
    states: tuple[CellState, ...]

    @property
    def kernels(self) -> list[int]:
        """Of the results."""
        return sorted({result.cell.kernel for result in self.results})

    @property
    def chance(self) -> float:
        """Accuracy of guessing; of a study with results."""
        return 1 / len(self.results[0].classes)


def load_study(directory: str | PathLike[str]) -> StudyRecord:
    """Read a study and its finished cells, in whatever state the others are.

    Raises:
        ResultError: If the folder holds no study, or a file is damaged.
    """
    study, command = read_study(directory)
    states = cell_states(study, Path(directory))
    done = [Path(directory) / "cells" / state.cell for state in states if state.state == "done"]
    results = tuple(CellResult.load(cell) for cell in sorted(done))
    people = load_people(directory)
    return StudyRecord(study=study, command=command, results=results, people=people, states=tuple(states))


def read_study(directory: str | PathLike[str]) -> tuple[Study, str]:
    """The study of a folder, and the command that does it.

    Raises:
        ResultError: If the folder holds none, or the file is damaged.
    """
    path = Path(directory) / STUDY_FILE
    if not path.is_file():
        raise ResultError(f"directory={str(directory)!r}: holds no {STUDY_FILE}, and so no study")
    try:
        found: _Saved = decoded(parse_json(read_text(path, "path")), _Saved)
    except (TypeError, ValueError, ArithmeticError, LookupError) as error:
        raise ResultError(f"{str(path)!r}: unreadable ({error})") from error
    return found.study, found.command
