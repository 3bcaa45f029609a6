"""A cell of the kernel-size study: one network, trained and measured in a folder of its own."""

import copy
import importlib.metadata
import traceback
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

import replknet
from analysis.images.preparing import normalize
from analysis.models.complexity import inference_ms, num_macs, num_parameters
from analysis.models.files import save_network
from analysis.models.loaded import resolve_device
from analysis.models.loading import load_model
from analysis.models.precision import float32_settings
from analysis.models.untrained import calibrate
from analysis.receptive_field.measuring import effective_receptive_field
from analysis.receptive_field.result import ErfResult
from analysis.runs.identity import describe_environment, hash_weights, identify, processor_name
from analysis.runs.locking import LOCK_FILE, Lock
from analysis.runs.processes import by_first, num_processes
from analysis.runs.results import ResultError
from analysis.runs.tables import write_table
from analysis.runs.texts import parse_json, read_text
from analysis.runs.writing import clear_leftovers, plain, remove, replacing, write_json
from analysis.shape_bias.categories import MAPPING
from analysis.shape_bias.measuring import evaluate_shape_bias
from analysis.shape_bias.result import ShapeBiasResult
from analysis.study.answers import unanswered, with_answers
from analysis.study.design import ADDED, REFERENCE, Cell, Study
from analysis.study.images import StudyImages
from analysis.study.measures import STIMULI
from analysis.study.result import CellResult
from analysis.training.batches import random_state
from analysis.training.loop import accuracy, train
from analysis.training.parallel import check_division
from analysis.training.progress import Curve
from analysis.training.state import remove_state
from replknet.networks import build

_STATE = "checkpoint.pt"
_CALIBRATION_IMAGES = 256
_INFERENCE_BATCH = 32


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """A cell that is done, or why it is not."""

    cell: Cell
    result: CellResult | None
    error: str = ""
    reused: bool = False
    """It was finished before."""


def check_cells(study: Study, images: StudyImages, device: str | torch.device) -> torch.device:
    """The device of a name, on which cells can be trained, in batches that the processes can share.

    Raises:
        ValueError: If it is no such device, the images cannot be used, or a network cannot have the budget.
        FileNotFoundError: If the image folder is missing or incomplete.
    """
    images.check()
    place = resolve_device(device)
    check_division(study.recipe, place)
    for cell in study.cells():
        study.config(cell, len(images.train.classes))
    return place


def run_cell(
    study: Study,
    cell: Cell,
    images: StudyImages,
    target: Path,
    *,
    num_workers: int = 0,
    device: str | torch.device = "cpu",
    report: Callable[[int], None] = lambda done: None,
) -> Outcome:
    """Train and measure one cell in its folder, or read it if it is finished; a failure is an outcome, too.

    A finished cell that has not answered the stimuli of the study is shown them, and not trained again.

    In a process group, a failure is raised.

    Raises:
        ValueError: If the folder holds a finished cell of another study.
    """
    settings = cell_settings(study, cell, images)
    found = by_first(lambda: finished(target, settings))
    if found is not None and not unanswered(found, images):
        by_first(lambda: _tidy(target, cell))
        return Outcome(cell=cell, result=found, reused=True)
    locks: list[Lock] = []
    try:
        by_first(lambda: _lock(target, cell, locks))
        place = resolve_device(device)
        result = found or _run_cell(study, cell, images, settings, target, num_workers, place, report)
        by_first(lambda: remove_state(target / _STATE))
        result = with_answers(result, images, target, num_workers, place)
    except Exception as error:  # whatever it is, the other cells do not depend on it
        if locks:
            with suppress(OSError), replacing(target / "error.txt") as path:
                path.write_text(traceback.format_exc())
        if num_processes() > 1:
            raise  # the other processes may know nothing of it: whoever started them ends all
        return Outcome(cell=cell, result=None, error=f"{type(error).__name__}: {error}")
    finally:
        for lock in locks:
            lock.release()
    return Outcome(cell=cell, result=result, reused=found is not None)


def _tidy(target: Path, cell: Cell) -> None:
    """After a process that was killed when it had the result; what it removes last is there then."""
    if (target / LOCK_FILE).is_file():
        locks: list[Lock] = []
        with suppress(ValueError, OSError):  # somebody is about to end it, or the folder is read only
            _lock(target, cell, locks)
            remove_state(target / _STATE)
        for lock in locks:
            lock.release()


def _lock(target: Path, cell: Cell, locks: list[Lock]) -> None:
    """In the first process alone."""
    target.mkdir(parents=True, exist_ok=True)
    locks.append(Lock.on(target, f"cell {cell.name}", argument="directory"))
    clear_leftovers(target, alone=True)


def cell_settings(study: Study, cell: Cell, images: StudyImages) -> dict[str, Any]:
    """The complete recipe of a cell, as JSON holds it."""
    content = asdict(study)
    for name in ADDED:
        content.pop(name)
    named = asdict(cell)
    if cell.family == REFERENCE:  # as in studies of times when there was no other family
        named.pop("family")
    else:
        content["budget"] = study.budget
    content |= {"cell": named, "config": asdict(study.config(cell, len(images.train.classes)))}
    content["images"] = images.fingerprint
    settings: dict[str, Any] = plain(content)
    return settings


def check_folder(study: Study, directory: str | PathLike[str], images: StudyImages) -> None:
    """Refuse a folder that holds a finished cell of the same name made with other settings.

    Raises:
        ValueError: Naming the cell.
    """
    for cell in study.cells():
        finished(Path(directory) / "cells" / cell.name, cell_settings(study, cell, images))


def finished(target: Path, settings: dict[str, Any]) -> CellResult | None:
    """The result of a cell that was made with these settings; None if there is none or it is damaged."""
    try:
        found = CellResult.load(target)
    except (OSError, ResultError):
        return None
    if found.settings != settings:
        differing = [key for key in settings if found.settings.get(key) != settings[key]]
        raise ValueError(
            f"directory={str(target)!r}: holds a finished cell of another study, which differs in "
            f"{', '.join(differing)}; choose another folder"
        )
    return found


def _run_cell(
    study: Study,
    cell: Cell,
    images: StudyImages,
    settings: dict[str, Any],
    target: Path,
    num_workers: int,
    device: torch.device,
    report: Callable[[int], None],
) -> CellResult:
    by_first(lambda: _begin_cell(target, settings))
    images.make(num_workers)
    classes = images.train.classes
    network = _new_network(study, cell, len(classes)).to(device)
    untrained = _measure_erf(_calibrated_copy(network, images), images, f"{cell.name}, untrained", num_workers)
    checkpoint = target / _STATE
    training = train(
        network,
        images.train,
        images.val,
        study.recipe,
        seed=cell.seed,
        num_workers=num_workers,
        checkpoint=checkpoint,
        progress=lambda done, _: report(done),
    )
    curve = training.curve
    by_first(lambda: _save_training(target, network, classes, study, curve))
    merged = replknet.reparameterize(network, level="kernels")
    fast = replknet.reparameterize(network)
    shape_only = texture_only = float("nan")
    conflicts: dict[float, ShapeBiasResult] = {}
    if study.data is None:
        shape_only, texture_only = (accuracy(fast, images.single[kind]) for kind in ("shape-only", "texture-only"))
        loaded = replace(load_model(str(target / "network.safetensors")), module=fast, name=cell.name)
        identity = identify(fast)
        conflicts = {
            balance: evaluate_shape_bias(
                loaded, images.conflict(balance), mapping=MAPPING, batch_size=64, identity=identity
            )
            for balance in study.balances
        }
    result = CellResult(
        cell=cell,
        kernel_sizes=study.kernel_sizes(cell.kernel),
        settings=settings,
        classes=classes,
        curve=curve,
        accuracy=accuracy(fast, images.val),
        num_val=len(images.val),
        shape_only_accuracy=shape_only,
        texture_only_accuracy=texture_only,
        parameters=num_parameters(network),
        merged_parameters=num_parameters(merged),
        macs=num_macs(merged, (study.size, study.size)),
        seconds_per_step=training.seconds_per_step,
        inference_ms=inference_ms(fast, study.size, batch_size=_INFERENCE_BATCH),
        balances=tuple(conflicts),
        num_shape=tuple(conflict.num_shape for conflict in conflicts.values()),
        num_texture=tuple(conflict.num_texture for conflict in conflicts.values()),
        num_conflict=study.num_conflict if conflicts else 0,
        weights_hash=hash_weights(network),
        environment=_environment(device),
        erf=_measure_erf(network, images, cell.name, num_workers),
        untrained_erf=untrained,
        conflict=conflicts.get(0.0),
        **dict.fromkeys(STIMULI),
    )
    by_first(lambda: result.save(target, overwrite=True))
    return result


def _begin_cell(target: Path, settings: dict[str, Any]) -> None:
    record = target / "cell.json"
    if record.is_file() and not _holds(record, settings):
        for path in list(target.iterdir()):  # an unfinished cell of another study
            if path.name != LOCK_FILE:
                remove(path)
    (target / "error.txt").unlink(missing_ok=True)
    for name in STIMULI:
        remove(target / name)  # answers of a network that is about to be trained again
    write_json(record, settings)


def _holds(record: Path, settings: dict[str, Any]) -> bool:
    try:
        return bool(parse_json(read_text(record, "path")) == settings)
    except ValueError:
        return False


def _save_training(
    target: Path, network: replknet.Network, classes: tuple[str, ...], study: Study, curve: Curve
) -> None:
    save_network(
        target / "network.safetensors", network, classes=classes, input_size=study.size, training=_described(study)
    )
    with replacing(target / "curve.csv") as path:
        write_table(pd.DataFrame(asdict(curve)), path)


def _environment(device: torch.device) -> dict[str, str]:
    """Of everything that takes part in a training, with the machine."""
    versions = {}
    for name in ("replknet", "timm", "torchvision", "scipy"):
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:  # run from a folder
            versions[name] = "not installed"
    machine = {"processor": processor_name(), "threads": str(torch.get_num_threads())}
    return describe_environment(torch.zeros((), device=device)) | versions | machine | float32_settings(device)


def _described(study: Study) -> dict[str, Any]:
    """What a network's file tells of its training: enough to make the same kind of images again."""
    names = ("data", "size", "train_balance", "texture_region", "texture_scale", "erf_size")
    return {name: getattr(study, name) for name in names} | {"recipe": asdict(study.recipe)}


def _new_network(study: Study, cell: Cell, num_classes: int) -> replknet.Network:
    """With the first weights of the cell's seed."""
    with random_state(torch.device("cpu")) as seed:
        seed(cell.seed)
        return build(study.config(cell, num_classes))


def _calibrated_copy(network: replknet.Network, images: StudyImages) -> replknet.Network:
    """A copy whose batch norms know the statistics of its own maps, all else untrained."""
    copied = copy.deepcopy(network)
    device = next(network.parameters()).device
    count = min(_CALIBRATION_IMAGES, len(images.train))
    chosen = np.linspace(0, len(images.train) - 1, count).round().astype(int)
    batches = [
        normalize(torch.from_numpy(np.stack([images.train[int(i)][0] for i in part])).permute(0, 3, 1, 2)).to(device)
        for part in np.array_split(chosen, -(-count // 64))
    ]
    calibrate(copied, batches)
    return copied


def _measure_erf(network: replknet.Network, images: StudyImages, name: str, num_workers: int = 0) -> ErfResult:
    # The same map as the network's own in training form, in less time.
    return effective_receptive_field(replknet.reparameterize(network), images.erf, name=name, num_workers=num_workers)
