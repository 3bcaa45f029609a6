"""The results that folders hold: of a run, of a single result, of a study."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from analysis.models.layouts import LAST
from analysis.receptive_field.result import ErfResult
from analysis.recognition.evaluation import EvaluationResult
from analysis.runs.folder import RUN_FILE
from analysis.runs.results import ResultError
from analysis.runs.tables import read_table
from analysis.runs.texts import parse_json, read_text
from analysis.shape_bias.comparing import common_images
from analysis.shape_bias.result import Cluster, ShapeBiasResult
from analysis.study.compared.result import NetworkResult
from analysis.study.posthoc import VariantResult
from analysis.study.record import PEOPLE, STUDY_FILE, StudyRecord, load_people, load_study
from analysis.study.result import CellResult, first_seeds

_KINDS: dict[str, Any] = {
    kind.KIND: kind for kind in (ErfResult, ShapeBiasResult, EvaluationResult, CellResult, VariantResult, NetworkResult)
}
_DEPTH = 2
"""Folders below the one that is given."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Saved:
    """What was found, each kind in the order of the folders and of the run that made it.

    Args:
        fields: Effective receptive fields, also those of cells, variants and networks.
        observers: Answers of networks, and of others that a run was given like networks.
        people: Answers of people, to the images of the observers.
        evaluations: Accuracies.
        cells: Trained networks of studies.
        variants: Of a network with cropped kernels.
        networks: Of a comparison.
        studies: Whole studies.
        energy: Of the kernels of the network with variants.
        sensitivity: Of networks to either cue.
        cluster: What the bootstrap of shape biases draws.
    """

    fields: tuple[ErfResult, ...] = ()
    observers: tuple[ShapeBiasResult, ...] = ()
    people: tuple[ShapeBiasResult, ...] = ()
    evaluations: tuple[EvaluationResult, ...] = ()
    cells: tuple[CellResult, ...] = ()
    variants: tuple[VariantResult, ...] = ()
    networks: tuple[NetworkResult, ...] = ()
    studies: tuple[StudyRecord, ...] = ()
    energy: tuple[pd.DataFrame, ...] = ()
    sensitivity: tuple[pd.DataFrame, ...] = ()
    cluster: Cluster = "two-way"

    def on_common_images(self) -> tuple[list[ShapeBiasResult], list[ShapeBiasResult]]:
        """Observers and people on the images that all of them have seen."""
        everyone = common_images([*self.observers, *self.people])
        return everyone[: len(self.observers)], everyone[len(self.observers) :]


def read_saved(directories: Sequence[str | PathLike[str]]) -> Saved:
    """Read the results of one or more folders.

    Raises:
        FileNotFoundError: If a folder does not exist.
        ResultError: If one holds no result, or a damaged one, or is one of the others or in it.
    """
    _check_apart([Path(directory).resolve() for directory in directories], directories)
    found: dict[str, list[Any]] = {item.name: [] for item in fields(Saved)}
    for directory in directories:
        path = Path(directory)
        if not path.is_dir():
            raise FileNotFoundError(f"results={str(directory)!r}: no such folder")
        before = sum(map(len, found.values()))
        _read(path, found, _DEPTH)
        if sum(map(len, found.values())) == before:
            raise ResultError(f"results={str(directory)!r}: holds no results that figures are of")
    clusters: list[Cluster] = found.pop("cluster")
    people = {person.observer: person for person in found.pop("people")}
    return Saved(
        **{name: tuple(values) for name, values in found.items()},
        people=tuple(people.values()),
        cluster=clusters[0] if clusters else "two-way",
    )


def _check_apart(places: Sequence[Path], directories: Sequence[str | PathLike[str]]) -> None:
    """Refuse results that would count twice."""
    for index, place in enumerate(places):
        if place in places[:index]:
            raise ResultError(f"results={str(directories[index])!r}: is given twice")
        around = next((other for other in places if other in place.parents), None)
        if around is not None:
            raise ResultError(
                f"results={str(directories[index])!r}: is in {directories[places.index(around)]}, which is given, too"
            )


def _read(path: Path, found: dict[str, list[Any]], depth: int) -> None:
    if (path / STUDY_FILE).is_file():
        record = load_study(path)
        if not record.results:
            raise ResultError(f"results={str(path)!r}: no cell of the study is finished")
        _add_study(record, found)
        return
    kind = _kind_of(path)
    if kind is not None:
        _ADD[kind](kind.load(path), found)
        return
    settings, order = _settings_of(path)
    own: dict[str, list[Any]] = {name: [] for name in found}
    if depth:
        for folder in sorted(path.glob("*/")):
            if not folder.name.startswith(".") and folder.name != PEOPLE:
                _read(folder, own, depth - 1)
    for name, values in own.items():
        values.sort(key=lambda value: _place(value, settings, order))
        found[name] += values
    if own["observers"]:
        _as_in_run(found, len(own["observers"]), settings)
        found["people"] += load_people(path)
    if own["networks"]:
        found["people"] += load_people(path)
    for name in ("energy", "sensitivity"):
        if (path / f"{name}.csv").is_file() and (name == "sensitivity" or own["variants"]):
            found[name].append(_table(path / f"{name}.csv"))


def _kind_of(path: Path) -> Any:
    """The class of the result in a folder; None where there is none that figures are of."""
    for place in (path, path / "measures"):
        if (place / "result.json").is_file():
            try:
                content = parse_json(read_text(place / "result.json", "results"))
            except ValueError as error:
                raise ResultError(f"results={str(path)!r}: unreadable ({error})") from error
            return _KINDS.get(str(content.get("kind"))) if isinstance(content, dict) else None
    return None


def _settings_of(path: Path) -> tuple[dict[str, Any], list[str]]:
    """What `run.json` says, and the names of the networks in order."""
    try:
        settings = parse_json(read_text(path / RUN_FILE, "results"))["settings"]
        models = [model["model"] if isinstance(model, dict) else model[0] for model in settings.get("models", [])]
        order = [*models, *(name for name, _ in settings.get("responses", [])), *settings.get("variants", [])]
    except (ValueError, OSError, KeyError, TypeError, AttributeError, IndexError):
        return {}, []
    if (path / "compare.csv").is_file():
        order = [cells["network"] for _, cells in read_table(path / "compare.csv", "results", ("network",))]
    return settings, [str(name) for name in order]


def _place(value: Any, settings: dict[str, Any], order: list[str]) -> tuple[int, int]:
    name = next((getattr(value, item) for item in ("observer", "model", "name") if hasattr(value, item)), "")
    name = value.variant.name if isinstance(value, VariantResult) else name
    at = order.index(name) if name in order else len(order)
    layers = settings.get("layers", [])
    if layers and isinstance(layers[0], list):  # of each network
        layers = layers[at] if at < len(layers) else []
    layers = [layer or LAST for layer in layers]
    layer = getattr(value, "layer", "")
    return (
        at,
        layers.index(layer) if layer in layers else len(layers),
    )


def _as_in_run(found: dict[str, list[Any]], count: int, settings: dict[str, Any]) -> None:
    """Let observers be decided as the run has done: their folders hold the images that go beyond it, too."""
    options = {name: settings[name] for name in ("aggregation", "tie", "estimator", "congruent") if name in settings}
    wanted = settings.get("categories")
    own = found["observers"][-count:]
    if wanted:
        own = [result.with_categories([name for name in wanted if name in result.categories]) for result in own]
    found["observers"][-count:] = [result.with_options(**options) for result in own]
    if "cluster" in settings:
        found["cluster"].append(settings["cluster"])


def _table(path: Path) -> pd.DataFrame:
    rows = [cells for _, cells in read_table(path, "results", ())]
    table = pd.DataFrame(rows)
    for name in table.columns:
        if name not in ("observer", "stimuli", "cluster", "resize", "mean", "std"):
            table[name] = pd.to_numeric(table[name].replace("", np.nan))
    return table


def _add_study(record: StudyRecord, found: dict[str, list[Any]]) -> None:
    found["studies"].append(record)
    found["cells"] += record.results
    found["fields"] += [replace(own.erf, model=label) for label, own in first_seeds(record.results).items()]


def _add_observer(result: ShapeBiasResult, found: dict[str, list[Any]]) -> None:
    if all(result.shapes) and any(result.textures):  # those of single cues have a figure of their own
        found["observers"].append(result)


def _add_cell(result: CellResult, found: dict[str, list[Any]]) -> None:
    found["cells"].append(result)
    found["fields"].append(replace(result.erf, model=result.cell.name))


def _add_variant(result: VariantResult, found: dict[str, list[Any]]) -> None:
    found["variants"].append(result)
    found["fields"].append(replace(result.erf, model=result.variant.name))


def _add_network(result: NetworkResult, found: dict[str, list[Any]]) -> None:
    found["networks"].append(result)
    for name, value in (
        ("fields", result.erf),
        ("observers", result.shape_bias),
        ("evaluations", result.evaluation),
    ):
        if value is not None:
            found[name].append(value)


_ADD: dict[Any, Callable[[Any, dict[str, list[Any]]], None]] = {
    ErfResult: lambda result, found: found["fields"].append(result),
    EvaluationResult: lambda result, found: found["evaluations"].append(result),
    ShapeBiasResult: _add_observer,
    CellResult: _add_cell,
    VariantResult: _add_variant,
    NetworkResult: _add_network,
}
