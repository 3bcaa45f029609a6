"""The kernel-size study: networks that differ in their kernels only, trained and measured alike.

Every cell, one setting of the kernels with one seed, is a folder of its own. A finished cell is read, an interrupted
one continues, and a cell that fails is reported while the others go on.
"""

import copy
import hashlib
import importlib.metadata
import json
import shutil
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from functools import cached_property
from os import PathLike
from pathlib import Path
from typing import Any, Self

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn
from torch.optim.swa_utils import update_bn

import replknet
from analysis.complexity import num_macs, num_parameters
from analysis.cue_conflict import StimulusSet, evaluate_shape_bias
from analysis.distributed import by_first, num_processes
from analysis.erf import ErfResult, effective_receptive_field
from analysis.identity import describe_environment, hash_weights, processor_name
from analysis.model_files import save_network
from analysis.models import load_model
from analysis.psychometric import PsychometricFit, fit_psychometric
from analysis.results import ResultError, load_result, save_result, write_json
from analysis.shape_bias import ShapeBiasResult
from analysis.synthetic import MAPPING, SyntheticImages, SyntheticOptions, stimulus_set
from analysis.training import Curve, accuracy, train
from analysis.training_images import FolderImages, InMemory, LabelledImages, normalize
from analysis.training_recipe import Recipe
from analysis.training_state import remove_state

_KIND = "ablation cell"
_STRIDE = 4
"""Of the first stage; each further stage doubles it."""
_CALIBRATION_IMAGES = 256
_INFERENCE_BATCH = 32
_NUM_TIMINGS = 9
Progress = Callable[[int, int, str], None]


@dataclass(frozen=True, kw_only=True)
class Study:
    """Everything that a study is made of.

    Args:
        kernels: Kernel sizes to compare, each at every stage; where a stage's map is smaller, the size is capped at
            what can meet it (twice the map's side minus 1, at least 3).
        small_kernels: Parallel kernels, 0 for none.
        shortcuts: With and without the identity shortcut of the RepLK blocks.
        num_seeds: Trainings of each setting; they differ in the first weights and in the order of the images.
        data: A folder with `train` and `val` (or `test`); None for generated images with both cues.
        size: Side of the images in pixels.
        layers: Pairs of blocks of each stage.
        channels: Width of each stage.
        recipe: The training of every cell.
        num_train: Generated images to train on.
        num_val: Generated images to measure the accuracy on.
        train_balance: Which cue of a generated training image is weakened (`SyntheticImages`): None draws it anew for
            each image; 0 leaves both cues full in all.
        texture_region: See `SyntheticOptions`.
        texture_scale: See `SyntheticOptions`.
        balances: Of the conflict images, from -1 (no texture) to 1 (no shape).
        num_conflict: Images at each balance; the same scenes at all.
        erf_size: Side in pixels of the images on which receptive fields are measured; about four times `size`.
        num_erf: Validation images, resized to it.

    Raises:
        ValueError: If a value is out of range.
    """

    kernels: tuple[int, ...] = (3, 7, 13, 31)
    small_kernels: tuple[int, ...] = (3,)
    shortcuts: tuple[bool, ...] = (True,)
    num_seeds: int = 3
    data: str | None = None
    size: int = 64
    layers: tuple[int, ...] = (1, 1, 2, 1)
    channels: tuple[int, ...] = (16, 32, 64, 128)
    recipe: Recipe = field(default_factory=Recipe)
    num_train: int = 9600
    num_val: int = 600
    train_balance: float | None = None
    texture_region: str = "image"
    texture_scale: float = 1.0
    balances: tuple[float, ...] = (-1.0, -0.75, -0.5, -0.25, 0.0, 0.25, 0.5, 0.75, 1.0)
    num_conflict: int = 264
    erf_size: int = 256
    num_erf: int = 12

    def __post_init__(self) -> None:
        for name in ("kernels", "small_kernels", "shortcuts", "balances"):
            values = getattr(self, name)
            if not values or len(set(values)) < len(values):
                raise ValueError(f"{name}={values}: expected one or more different values")
        for name in ("num_seeds", "num_train", "num_val", "num_conflict", "num_erf"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}: expected at least 1")
        if any(kernel < 3 or kernel % 2 == 0 for kernel in self.kernels):
            raise ValueError(f"kernels={self.kernels}: expected odd numbers of at least 3")
        if 0.0 not in self.balances:
            raise ValueError(f"balances={self.balances}: expected 0, both cues full, among them")
        for balance in (*self.balances, self.train_balance):
            SyntheticImages(num_images=1, balance=balance, options=self.synthetic_options)
        stride = _STRIDE * 2 ** (len(self.layers) - 1)
        if self.size < stride:
            raise ValueError(f"size={self.size}: expected at least {stride} pixels, the stride of the last stage")
        if self.recipe.augmentation == "imagenet" and self.recipe.image_size != self.size:
            raise ValueError(
                f"image_size={self.recipe.image_size}: expected {self.size}, the size of the study's images"
            )
        for cell in self.cells():
            self.config(cell, num_classes=2)

    def cells(self) -> list["Cell"]:
        """All cells, one seed after the other, so that an unfinished study has all kernels alike."""
        return [
            Cell(kernel=kernel, small_kernel=small, shortcut=shortcut, seed=seed)
            for seed in range(self.num_seeds)
            for shortcut in self.shortcuts
            for small in self.small_kernels
            for kernel in self.kernels
        ]

    def kernel_sizes(self, kernel: int) -> tuple[int, ...]:
        """The kernel of each stage after capping."""
        maps = [-(-self.size // (_STRIDE * 2**stage)) for stage in range(len(self.layers))]
        return tuple(min(kernel, max(2 * side - 1, 3)) for side in maps)

    def config(self, cell: "Cell", num_classes: int) -> replknet.RepLKNetConfig:
        """The architecture of a cell's network."""
        return replknet.RepLKNetConfig(
            layers=self.layers,
            channels=self.channels,
            kernel_sizes=self.kernel_sizes(cell.kernel),
            small_kernel=cell.small_kernel or None,
            shortcut=cell.shortcut,
            drop_path_rate=self.recipe.drop_path_rate,
            gradient_checkpointing=self.recipe.gradient_checkpointing,
            num_classes=num_classes,
        )

    @property
    def synthetic_options(self) -> SyntheticOptions:
        """Of the generated images."""
        return SyntheticOptions(
            size=self.size,
            texture_region=self.texture_region,  # type: ignore[arg-type]
            texture_scale=self.texture_scale,
        )


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One setting of the kernels with one seed."""

    kernel: int
    small_kernel: int
    shortcut: bool
    seed: int

    @property
    def name(self) -> str:
        """Of its folder."""
        shortcut = "" if self.shortcut else "_noshortcut"
        return f"k{self.kernel}_small{self.small_kernel}{shortcut}_seed{self.seed}"


PRESETS: Mapping[str, Study] = {
    "quick": Study(
        kernels=(3, 13),
        num_seeds=2,
        size=32,
        layers=(1, 1, 1, 1),
        channels=(8, 16, 24, 32),
        recipe=Recipe(steps=30, batch_size=32),
        num_train=480,
        num_val=96,
        balances=(-1.0, -0.5, 0.0, 0.5, 1.0),
        num_conflict=132,
        erf_size=128,
        num_erf=3,
    ),
    "standard": Study(),
    "full": Study(num_seeds=5, small_kernels=(3, 0), shortcuts=(True, False), recipe=Recipe(steps=2000)),
}
"""Seconds, some minutes, and some hours on two cores; "quick" shows what comes out and means nothing."""


def preset(name: str, data: str | None = None) -> Study:
    """A study by name; on an image folder it trains longer and moves the images about.

    Raises:
        ValueError: If the name is unknown.
    """
    if name not in PRESETS:
        raise ValueError(f"preset={name!r}: expected one of {', '.join(PRESETS)}")
    study = PRESETS[name]
    if data is None:
        return study
    longer = {"quick": 1, "standard": 5, "full": 5}[name]
    recipe = replace(study.recipe, steps=longer * study.recipe.steps, augmentation="flip-crop")
    return replace(study, data=data, recipe=recipe)


class StudyImages:
    """The images that all cells share; each set is made when it is first asked for."""

    def __init__(self, study: Study) -> None:
        self.study = study
        self._conflict: dict[float, StimulusSet] = {}

    def _folder(self, split: Any) -> FolderImages:
        assert self.study.data is not None
        return FolderImages(self.study.data, split, size=self.study.size)

    def _generated(self, **settings: Any) -> SyntheticImages:
        return SyntheticImages(options=self.study.synthetic_options, **settings)

    @cached_property
    def train(self) -> LabelledImages:
        study = self.study
        if study.data is not None:
            return InMemory(self._folder("train"))
        return InMemory(self._generated(num_images=study.num_train, balance=study.train_balance, seed=1))

    @cached_property
    def val(self) -> LabelledImages:
        study = self.study
        if study.data is not None:
            return InMemory(self._folder("val"))
        return InMemory(self._generated(num_images=study.num_val, balance=study.train_balance, seed=2))

    def conflict(self, balance: float) -> StimulusSet:
        """The scenes of the conflict images at one balance."""
        if balance not in self._conflict:
            images = self._generated(kind="conflict", num_images=self.study.num_conflict, balance=balance, seed=3)
            self._conflict[balance] = stimulus_set(images)
        return self._conflict[balance]

    @cached_property
    def single(self) -> dict[str, LabelledImages]:
        """Images with one cue only."""
        return {
            kind: InMemory(self._generated(kind=kind, num_images=self.study.num_val, seed=4))
            for kind in ("shape-only", "texture-only")
        }

    @cached_property
    def erf(self) -> Tensor:
        """Validation images spread over the set, resized bicubically: shape (N, 3, erf_size, erf_size), normalised."""
        count = min(self.study.num_erf, len(self.val))
        chosen = np.linspace(0, len(self.val) - 1, count).round().astype(int)
        side = self.study.erf_size
        pixels = [Image.fromarray(self.val[int(i)][0]).resize((side, side), Image.Resampling.BICUBIC) for i in chosen]
        stacked = torch.from_numpy(np.stack([np.asarray(image) for image in pixels]))
        return normalize(stacked.permute(0, 3, 1, 2)).contiguous()

    @cached_property
    def fingerprint(self) -> str:
        """Of everything that the images depend on."""
        study = self.study
        if study.data is not None:
            return self._folder("train").fingerprint() + self._folder("val").fingerprint()
        sets = [self._generated(num_images=12, balance=study.train_balance, seed=seed) for seed in (1, 2)]
        sets.append(self._generated(kind="conflict", num_images=12, seed=3))
        pixels = [images[index][0].tobytes() for images in sets for index in range(12)]
        return hashlib.sha256(b"".join(pixels)).hexdigest()

    def check(self) -> None:
        """Refuse images that cannot be studied.

        Raises:
            ValueError: If training and validation have different classes, there is only one, or there are fewer images
                than a batch takes.
            FileNotFoundError: If the image folder is missing or incomplete.
        """
        study = self.study
        if self.train.classes != self.val.classes:
            raise ValueError(f"data={study.data!r}: train has the classes {self.train.classes}, val {self.val.classes}")
        if len(self.train.classes) < 2:
            raise ValueError(f"data={study.data!r}: expected two or more classes, not {self.train.classes}")
        if study.recipe.batch_size > len(self.train):
            raise ValueError(f"batch_size={study.recipe.batch_size}: there are only {len(self.train)} training images")


@dataclass(frozen=True, kw_only=True, eq=False)
class CellResult:
    """What was measured on one trained network."""

    cell: Cell
    kernel_sizes: tuple[int, ...]
    settings: dict[str, Any]
    """The complete recipe: of two results with the same settings, one is a repeat of the other."""
    classes: tuple[str, ...]
    curve: Curve
    accuracy: float
    """On the validation images."""
    num_val: int
    shape_only_accuracy: float
    """On images without texture; NaN for a study of an image folder, as all that follows of shape bias."""
    texture_only_accuracy: float
    """On images without a figure."""
    parameters: int
    """While training."""
    merged_parameters: int
    """With the kernels merged."""
    macs: int
    """For one image of the training size, kernels merged."""
    seconds_per_step: float
    """Median of the training."""
    inference_ms: float
    """For one image, median over batches of 32, re-parameterised."""
    balances: tuple[float, ...]
    num_shape: tuple[int, ...]
    """Conflict images at each balance that were answered with their shape."""
    num_texture: tuple[int, ...]
    num_conflict: int
    """Images at each balance."""
    weights_hash: str
    environment: dict[str, str]
    erf: ErfResult
    untrained_erf: ErfResult
    """Of the same network before the training, its batch norms calibrated on training images."""
    conflict: ShapeBiasResult | None
    """On the images with both cues full."""

    @property
    def shape_bias(self) -> float:
        """S / (S + T) with both cues full; NaN for an image folder."""
        return self.conflict.shape_bias if self.conflict is not None else float("nan")

    @property
    def coverage(self) -> float:
        """(S + T) / n with both cues full."""
        return self.conflict.coverage if self.conflict is not None else float("nan")

    @cached_property
    def psychometric(self) -> PsychometricFit | None:
        """The logistic fit over all balances; None for an image folder."""
        if not self.balances:
            return None
        return fit_psychometric(self.balances, self.num_shape, self.num_texture)

    def row(self) -> dict[str, float | str | bool]:
        """Of the table of a study."""
        fit = self.psychometric
        row: dict[str, float | str | bool] = {"cell": self.cell.name, **asdict(self.cell)}
        row["kernel_sizes"] = "-".join(map(str, self.kernel_sizes))
        row |= {"accuracy": self.accuracy, "val_images": self.num_val}
        row |= {"shape_only_accuracy": self.shape_only_accuracy, "texture_only_accuracy": self.texture_only_accuracy}
        row |= {"shape_bias": self.shape_bias, "coverage": self.coverage}
        if self.conflict is not None:
            row["shape_bias_low"], row["shape_bias_high"] = self.conflict.confidence_interval(
                "image", num_resamples=2000
            )
        nothing = float("nan")
        ends = (min(self.balances), max(self.balances)) if fit else (nothing, nothing)
        # Where one cue wins at every balance, the border is the least extreme value that fits.
        row |= {
            "pse": float(np.clip(fit.pse, *ends)) if fit else nothing,
            "pse_at_border": bool(fit and np.isinf(fit.pse)),
        }
        row |= {"pse_standard_error": fit.standard_error if fit else nothing}
        row |= {"psychometric_slope": fit.slope if fit else nothing}
        for name, erf in (("erf", self.erf), ("untrained_erf", self.untrained_erf)):
            for threshold in (0.2, 0.3, 0.5, 0.99):
                row[f"{name}_area_{threshold}"] = erf.area_ratio(threshold)
            row[f"{name}_area_0.5_low"], row[f"{name}_area_0.5_high"] = erf.area_ratio_interval(0.5)
            row[f"{name}_rms_radius"] = erf.rms_radius()
        row |= {"parameters": self.parameters, "merged_parameters": self.merged_parameters, "macs": self.macs}
        row |= {"seconds_per_step": self.seconds_per_step, "inference_ms": self.inference_ms}
        return row

    def save(self, directory: str | PathLike[str]) -> None:
        """Write the result beside the network in the folder of the cell, `measures` last: it marks the cell as done."""
        directory = Path(directory)
        self.erf.save(directory / "erf", overwrite=True)
        self.untrained_erf.save(directory / "erf_untrained", overwrite=True)
        if self.conflict is not None:
            self.conflict.save(directory / "conflict", overwrite=True)
        content = {item.name: getattr(self, item.name) for item in fields(self)}
        for name in ("erf", "untrained_erf", "conflict"):
            content.pop(name)
        content |= {"cell": asdict(self.cell), "curve": asdict(self.curve)}
        save_result(directory / "measures", _KIND, content, {}, overwrite=True)

    @classmethod
    def load(cls, directory: str | PathLike[str]) -> Self:
        """Read what `save` wrote.

        Raises:
            FileNotFoundError: If the cell is not finished.
            ResultError: If a file is damaged.
        """
        directory = Path(directory)
        content, _ = load_result(directory / "measures", _KIND)
        try:
            curve = Curve(**{name: tuple(values) for name, values in content.pop("curve").items()})
            plain: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in content.items()}
            plain |= {"cell": Cell(**content["cell"]), "curve": curve}
            return cls(
                **plain,
                erf=ErfResult.load(directory / "erf"),
                untrained_erf=ErfResult.load(directory / "erf_untrained"),
                conflict=ShapeBiasResult.load(directory / "conflict") if content["balances"] else None,
            )
        except (KeyError, TypeError) as error:
            raise ResultError(f"directory={str(directory)!r}: fields do not fit ({error})") from error


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """A cell that is done, or why it is not."""

    cell: Cell
    result: CellResult | None
    error: str = ""
    reused: bool = False
    """It was finished before."""


def run_study(
    study: Study,
    directory: str | PathLike[str],
    *,
    num_workers: int = 0,
    device: str | torch.device = "cpu",
    progress: Progress | None = None,
) -> list[Outcome]:
    """Train and measure every cell that `directory/cells` does not hold yet.

    Args:
        study: What to do.
        directory: Gets `cells/<name>/` with `cell.json` (the complete recipe), `network.safetensors` (which
            `load_model` reads), `curve.csv` and the measurements.
        num_workers: Processes that load images; without effect on the results.
        device: Where networks are trained and measured; recorded with each cell.
        progress: Called with the work done, all work, and the name of the cell at work.

    Returns:
        One outcome for each cell, in the order of `study.cells()`.

    Raises:
        ValueError: If the images cannot be used, or `directory` holds a finished cell of another study.
        FileNotFoundError: If the image folder is missing or incomplete.
    """
    images = StudyImages(study)
    images.check()
    check_folder(study, directory, images)
    cells = study.cells()
    # The measurements of a cell take about as long as this many steps.
    effort = study.recipe.steps + max(study.recipe.steps // 6, 1)
    outcomes = []
    for number, cell in enumerate(cells):
        target = Path(directory) / "cells" / cell.name

        def report(done: int, start: int = number * effort, name: str = cell.name) -> None:
            if progress is not None:
                progress(start + done, len(cells) * effort, name)

        report(0)
        outcomes.append(run_cell(study, cell, images, target, num_workers=num_workers, device=device, report=report))
        report(effort)
    return outcomes


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

    In a process group, a failure is raised.

    Raises:
        ValueError: If the folder holds a finished cell of another study.
    """
    settings = cell_settings(study, cell, images)
    found = by_first(lambda: _finished(target, settings))
    if found is not None:
        return Outcome(cell=cell, result=found, reused=True)
    try:
        result = _run_cell(study, cell, images, settings, target, num_workers, torch.device(device), report)
    except Exception as error:  # whatever it is, the other cells do not depend on it
        (target / "error.txt").write_text(traceback.format_exc())
        if num_processes() > 1:
            raise  # the other processes may know nothing of it: whoever started them ends all
        return Outcome(cell=cell, result=None, error=f"{type(error).__name__}: {error}")
    return Outcome(cell=cell, result=result)


def cell_settings(study: Study, cell: Cell, images: StudyImages) -> dict[str, Any]:
    """The complete recipe of a cell, as JSON holds it."""
    content = asdict(study)
    for name in ("kernels", "small_kernels", "shortcuts", "num_seeds"):
        content.pop(name)
    content |= {"cell": asdict(cell), "config": asdict(study.config(cell, len(images.train.classes)))}
    content["images"] = images.fingerprint
    settings: dict[str, Any] = json.loads(json.dumps(content))
    return settings


def check_folder(study: Study, directory: str | PathLike[str], images: StudyImages) -> None:
    """Refuse a folder that holds a finished cell of the same name made with other settings.

    Raises:
        ValueError: Naming the cell.
    """
    for cell in study.cells():
        _finished(Path(directory) / "cells" / cell.name, cell_settings(study, cell, images))


def _finished(target: Path, settings: dict[str, Any]) -> CellResult | None:
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
    classes = images.train.classes
    network = _new_network(study, cell, len(classes)).to(device)
    untrained = _measure_erf(_calibrated_copy(network, images), images, f"{cell.name}, untrained")
    checkpoint = target / "checkpoint.pt"
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
        conflicts = {
            balance: evaluate_shape_bias(loaded, images.conflict(balance), mapping=MAPPING, batch_size=64)
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
        inference_ms=_inference_ms(fast, study.size),
        balances=tuple(conflicts),
        num_shape=tuple(conflict.num_shape for conflict in conflicts.values()),
        num_texture=tuple(conflict.num_texture for conflict in conflicts.values()),
        num_conflict=study.num_conflict if conflicts else 0,
        weights_hash=hash_weights(network),
        environment=_environment(device),
        erf=_measure_erf(network, images, cell.name),
        untrained_erf=untrained,
        conflict=conflicts.get(0.0),
    )
    by_first(lambda: result.save(target))
    by_first(lambda: remove_state(checkpoint))
    return result


def _begin_cell(target: Path, settings: dict[str, Any]) -> None:
    record = target / "cell.json"
    if record.is_file() and _read_json(record) != settings:
        shutil.rmtree(target)  # an unfinished cell of another study
    target.mkdir(parents=True, exist_ok=True)
    (target / "error.txt").unlink(missing_ok=True)
    write_json(record, settings)


def _save_training(
    target: Path, network: replknet.RepLKNet, classes: tuple[str, ...], study: Study, curve: Curve
) -> None:
    save_network(
        target / "network.safetensors", network, classes=classes, input_size=study.size, training=_described(study)
    )
    pd.DataFrame(asdict(curve)).to_csv(target / "curve.csv", index=False)


def _environment(device: torch.device) -> dict[str, str]:
    """Of everything that takes part in a training, with the machine."""
    versions = {}
    for name in ("replknet", "timm", "torchvision", "scipy"):
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:  # run from a folder
            versions[name] = "not installed"
    machine = {"processor": processor_name(), "threads": str(torch.get_num_threads())}
    return describe_environment(torch.zeros((), device=device)) | versions | machine


def _described(study: Study) -> dict[str, Any]:
    """What a network's file tells of its training: enough to make the same kind of images again."""
    names = ("data", "size", "train_balance", "texture_region", "texture_scale", "erf_size")
    return {name: getattr(study, name) for name in names} | {"recipe": asdict(study.recipe)}


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text())
    except ValueError:
        return None


def _new_network(study: Study, cell: Cell, num_classes: int) -> replknet.RepLKNet:
    """With the first weights of the cell's seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(cell.seed)
        return replknet.RepLKNet(study.config(cell, num_classes))


def _calibrated_copy(network: replknet.RepLKNet, images: StudyImages) -> replknet.RepLKNet:
    """A copy whose batch norms know the statistics of its own maps, all else untrained.

    With the statistics that a new batch norm has, 0 and 1, the branches of a new network are far weaker than its
    shortcuts, and its receptive field shows the stem alone.
    """
    copied = copy.deepcopy(network)
    device = next(network.parameters()).device
    count = min(_CALIBRATION_IMAGES, len(images.train))
    chosen = np.linspace(0, len(images.train) - 1, count).round().astype(int)
    batches = [
        normalize(torch.from_numpy(np.stack([images.train[int(i)][0] for i in part])).permute(0, 3, 1, 2)).to(device)
        for part in np.array_split(chosen, -(-count // 64))
    ]
    with torch.random.fork_rng(devices=[]):  # drop path
        update_bn(batches, copied)
    return copied


def _measure_erf(network: replknet.RepLKNet, images: StudyImages, name: str) -> ErfResult:
    # The same map as the network's own in training form, in less time.
    return effective_receptive_field(replknet.reparameterize(network), images.erf, name=name)


def _inference_ms(model: nn.Module, size: int) -> float:
    device = next(model.parameters()).device
    batch = normalize(torch.zeros(_INFERENCE_BATCH, 3, size, size, dtype=torch.uint8)).to(device)
    seconds = []
    with torch.no_grad():
        model(batch)  # packs weights
        for _ in range(_NUM_TIMINGS):
            start = time.perf_counter()
            float(model(batch).sum())  # waits for the device
            seconds.append(time.perf_counter() - start)
    return float(np.median(seconds)) * 1000 / _INFERENCE_BATCH


def study_table(results: Sequence[CellResult]) -> pd.DataFrame:
    """One row for each cell, by kernel and seed."""
    table = pd.DataFrame([result.row() for result in results])
    return table.sort_values(["shortcut", "small_kernel", "kernel", "seed"], ascending=[False, False, True, True])


def values_by_seed(table: pd.DataFrame, measure: str) -> tuple[list[int], NDArray[np.float64]]:
    """A measure of the cells of one setting but for the kernel and the seed.

    Returns:
        The kernels in order, and the values, shape (seeds, kernels), NaN for a missing cell.
    """
    wide = table.set_index(["seed", "kernel"])[measure].unstack()  # noqa: PD010
    return [int(kernel) for kernel in wide.columns], wide.to_numpy(dtype=float)
