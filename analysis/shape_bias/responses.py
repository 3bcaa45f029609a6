"""Raw responses as CSV, in the schema of the human data of Geirhos et al. and of toolboxes that follow it."""

from collections.abc import Sequence
from os import PathLike
from pathlib import Path

from analysis.images.files import is_hidden
from analysis.images.stimuli import parse_stimulus
from analysis.runs.settings import named_path
from analysis.runs.tables import read_table, write_rows
from analysis.runs.texts import few
from analysis.shape_bias.categories import CATEGORIES, MOST_SHOWN, NO_RESPONSE, check_categories
from analysis.shape_bias.result import ShapeBiasResult

COLUMNS = ("subj", "session", "trial", "rt", "object_response", "category", "condition", "imagename")


def read_responses(path: str | PathLike[str], *, categories: Sequence[str] | None = CATEGORIES) -> ShapeBiasResult:
    """The responses of one observer.

    The stimulus is what follows the last underscore of `imagename`; "na" (or nothing) is no response.

    Args:
        path: CSV with the columns subj, session, trial, rt, object_response, category, condition and imagename.
        categories: What the observer could answer. None takes every name: the categories are then those that the images
            show, and a response outside of them is neither shape nor texture.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: Naming file and line: a column is missing, a line is cut, a category or stimulus is unknown, an
            image was shown twice, the file holds several observers or none.
    """
    path = Path(path)
    known = None if categories is None else sorted(categories)
    observers: dict[str, None] = {}
    responses: dict[str, str] = {}
    for line, cells in read_table(path, "responses", COLUMNS):
        where = line.where
        stimulus = cells["imagename"].split("_")[-1]
        try:
            shape, _, texture, _ = parse_stimulus(stimulus)
            if known is not None:
                check_categories([stimulus], [shape], [texture], known)
        except ValueError as error:
            cut = "; is the file cut off?" if line.is_cut else ""
            raise ValueError(f"{where}: {error}{cut}") from error
        response = cells["object_response"] or NO_RESPONSE
        if response.lower() in (NO_RESPONSE, "nan"):
            response = NO_RESPONSE
        elif known is not None and response not in known:
            raise ValueError(
                f"{where}: unknown response {response!r}; expected {few(known, MOST_SHOWN)} or {NO_RESPONSE}"
            )
        if cells["category"] != shape:
            raise ValueError(f"{where}: category {cells['category']!r}, but {stimulus} shows {shape!r}")
        if stimulus in responses:
            raise ValueError(f"{where}: {stimulus} was shown before")
        responses[stimulus] = response
        observers[cells["subj"]] = None
    if len(observers) != 1:
        found = few(observers) or "none"
        raise ValueError(f"responses={str(path)!r}: expected the responses of one observer, found {found}")
    names = sorted(responses)
    parts = [parse_stimulus(name) for name in names]
    if known is None:
        known = sorted({name for shape, _, texture, _ in parts for name in (shape, texture) if name})
    return ShapeBiasResult(
        observer=next(iter(observers)),
        stimuli=tuple(names),
        shapes=tuple(part[0] for part in parts),
        shape_exemplars=tuple(part[1] for part in parts),
        textures=tuple(part[2] for part in parts),
        texture_exemplars=tuple(part[3] for part in parts),
        responses=tuple(responses[name] for name in names),
        categories=tuple(known),
        source=str(path),
    )


def read_observers(
    directory: str | PathLike[str], *, categories: Sequence[str] | None = CATEGORIES
) -> list[ShapeBiasResult]:
    """One result for each CSV file of a folder, in the order of their names; `categories` as in `read_responses`.

    Raises:
        FileNotFoundError: If there is no such folder.
        ValueError: If it holds no CSV file, one cannot be read, or two belong to the same observer.
    """
    root = named_path(directory, "humans")
    if not root.is_dir():
        raise FileNotFoundError(f"humans={str(root)!r}: no such folder")
    files = sorted(path for path in root.glob("*.csv") if not is_hidden(path.name))
    observers = [read_responses(path, categories=categories) for path in files]
    if not observers:
        raise ValueError(f"humans={str(root)!r}: holds no CSV file")
    names = [observer.observer for observer in observers]
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"humans={str(root)!r}: two files hold the responses of {twice}")
    return observers


def write_responses(result: ShapeBiasResult, path: str | PathLike[str]) -> None:
    """Write responses in the schema that `read_responses` reads; an existing file is replaced."""
    answers = enumerate(zip(result.stimuli, result.shapes, result.responses, strict=True), 1)
    rows = [
        (result.observer, 1, trial, "NaN", response, shape, 0, f"{trial:04d}_cue_dnn_0_{shape}_00_{stimulus}")
        for trial, (stimulus, shape, response) in answers
    ]
    with Path(path).open("w", newline="", encoding="utf-8", errors="backslashreplace") as file:
        write_rows(file, [COLUMNS, *rows])
