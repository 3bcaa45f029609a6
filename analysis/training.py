"""One training recipe and one loop, the same for every network of a study.

Everything random in step k follows from the seed and k alone: an interrupted run that continues from its checkpoint
ends with the same weights, bit for bit, on the same machine with the same number of threads, and so does a run with any
number of loader processes.
"""

import hashlib
import json
import math
import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from os import PathLike
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from timm.optim import param_groups_weight_decay
from timm.scheduler import CosineLRScheduler
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.swa_utils import AveragedModel
from torch.utils.data import DataLoader, Dataset
from torchvision import datasets
from torchvision.transforms import v2

from analysis.features import evaluation_mode
from analysis.identity import hash_code, hash_weights
from analysis.images import IMAGENET_MEAN, IMAGENET_STD, ImageError, read_rgb

Augmentation = Literal["none", "flip", "flip-crop"]
AUGMENTATIONS: tuple[Augmentation, ...] = ("none", "flip", "flip-crop")
_SPLITS = {"train": ("train",), "val": ("val", "validation", "test")}
_CACHE_BYTES = 2 * 1024**3
_SECONDS_BETWEEN_CHECKPOINTS = 5.0
_NUM_EVALUATIONS = 10


class TrainingError(ValueError):
    """Training that cannot go on, such as a loss that is not finite."""


class LabelledImages(Protocol):
    """Images of one size with the number of their class."""

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes, in the order of their numbers."""
        ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> tuple[NDArray[np.uint8], int]:
        """Pixels of shape (H, W, 3) and the class."""
        ...


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Everything about a training but the network, the images and the seed.

    Args:
        steps: Updates of the weights.
        batch_size: Images in a step.
        learning_rate: Its peak, of AdamW.
        weight_decay: Of the weights of convolutions and of the head; norms and biases have none.
        warmup: Part of the steps in which the rate rises linearly from 0; it then falls along a cosine to 0.
        label_smoothing: Probability that the target gives to all classes together.
        drop_path_rate: Of the last pair of blocks; see `RepLKNetConfig`.
        augmentation: "none", "flip" (left and right, half of the time), or "flip-crop" (also moved by up to an eighth
            of the side, with mirrored borders).
        ema_decay: Use the exponential moving average of the weights with this decay at the end, after t updates at most
            (1 + t) / (10 + t), so that the first weights are soon forgotten; None for the last weights.
        max_gradient_norm: A gradient that is longer is scaled down to it.

    Raises:
        ValueError: If a value is out of range.
    """

    steps: int = 450
    batch_size: int = 64
    learning_rate: float = 8e-3
    weight_decay: float = 0.05
    warmup: float = 0.1
    label_smoothing: float = 0.1
    drop_path_rate: float = 0.0
    augmentation: Augmentation = "flip"
    ema_decay: float | None = None
    max_gradient_norm: float = 5.0

    def __post_init__(self) -> None:
        ranges: dict[str, tuple[float, float, str]] = {
            "steps": (1, math.inf, "at least 1"),
            "batch_size": (2, math.inf, "at least 2 (batch norm)"),
            "learning_rate": (1e-12, math.inf, "a positive number"),
            "weight_decay": (0, math.inf, "a number of at least 0"),
            "warmup": (0, 0.999, "a part below 1"),
            "label_smoothing": (0, 0.999, "a number in [0, 1)"),
            "drop_path_rate": (0, 0.999, "a number in [0, 1)"),
            "max_gradient_norm": (1e-12, math.inf, "a positive number"),
        }
        for name, (low, high, expected) in ranges.items():
            if not low <= getattr(self, name) <= high:
                raise ValueError(f"{name}={getattr(self, name)}: expected {expected}")
        if self.augmentation not in AUGMENTATIONS:
            raise ValueError(f"augmentation={self.augmentation!r}: expected one of {', '.join(AUGMENTATIONS)}")
        if self.ema_decay is not None and not 0 <= self.ema_decay < 1:
            raise ValueError(f"ema_decay={self.ema_decay}: expected a number in [0, 1), or None")


# Images ---------------------------------------------------------------------------------------------------------------


class FolderImages:
    """The images of one part of a folder in the usual layout, `<part>/<class>/<file>`.

    Each is resized bicubically so that its shorter side is `size`, and its middle square is taken.

    Args:
        directory: Holds `train` and one of `val`, `validation` and `test`.
        split: "train" or "val".
        size: Side in pixels.

    Raises:
        FileNotFoundError: If a folder is missing, or a class has no image.
    """

    def __init__(self, directory: str | PathLike[str], split: Literal["train", "val"], *, size: int) -> None:
        if not Path(directory).is_dir():
            raise FileNotFoundError(f"data={str(directory)!r}: no such folder")
        found = [Path(directory) / name for name in _SPLITS[split] if (Path(directory) / name).is_dir()]
        if not found:
            raise FileNotFoundError(f"data={str(directory)!r}: holds no folder {' or '.join(_SPLITS[split])}")
        try:
            self._files = datasets.ImageFolder(found[0])
        except FileNotFoundError as error:
            raise FileNotFoundError(f"data={str(found[0])!r}: {error}") from None
        self.size = size

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the sub-folders, in alphabetical order."""
        return tuple(self._files.classes)

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, index: int) -> tuple[NDArray[np.uint8], int]:
        path, label = self._files.samples[index]
        try:
            image = read_rgb(Path(path))
        except ImageError as error:
            raise TrainingError(f"data: {path}: {error}") from None
        side = min(image.size)
        left, top = (image.width - side) / 2, (image.height - side) / 2
        square = image.resize((self.size, self.size), box=(left, top, left + side, top + side), resample=3)
        return np.array(square), label

    def fingerprint(self) -> str:
        """SHA-256 of names and sizes of the files, in hexadecimal."""
        listing = [(path, os.stat(path).st_size) for path, _ in self._files.samples]  # noqa: PTH116
        root = self._files.root
        text = "\n".join(f"{os.path.relpath(path, root)} {size}" for path, size in listing)
        return hashlib.sha256(f"{self.size}\n{text}".encode()).hexdigest()


class InMemory:
    """Keeps the images that were asked for, as long as all together fit into two gigabytes."""

    def __init__(self, images: LabelledImages) -> None:
        self._images = images
        self._kept: dict[int, tuple[NDArray[np.uint8], int]] = {}
        self._fits = len(images) * images[0][0].nbytes <= _CACHE_BYTES

    @property
    def classes(self) -> tuple[str, ...]:
        return self._images.classes

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, index: int) -> tuple[NDArray[np.uint8], int]:
        item = self._kept.get(index)
        if item is None:
            item = self._images[index]
            if self._fits:
                self._kept[index] = item
        return item


def normalize(pixels: Tensor, mean: Sequence[float] = IMAGENET_MEAN, std: Sequence[float] = IMAGENET_STD) -> Tensor:
    """Pixels of shape (N, 3, H, W), uint8, as a network's input: float32, channels last in memory."""
    values = pixels.to(torch.float32, memory_format=torch.channels_last).div_(255)
    return values.sub_(torch.tensor(mean).view(-1, 1, 1)).div_(torch.tensor(std).view(-1, 1, 1))


class _Batches(Dataset[tuple[Tensor, Tensor]]):
    """The batch of every step: item k follows from the seed and k alone."""

    def __init__(self, images: LabelledImages, recipe: Recipe, seed: int) -> None:
        self.images = images
        self.recipe = recipe
        self.seed = seed

    def __len__(self) -> int:
        return self.recipe.steps

    def __getitem__(self, step: int) -> tuple[Tensor, Tensor]:
        count, size = len(self.images), self.recipe.batch_size
        positions = range(step * size, (step + 1) * size)
        # An epoch is a permutation of all images; a batch may reach into the next one.
        orders = {epoch: self._order(epoch, count) for epoch in {position // count for position in positions}}
        items = [self.images[int(orders[position // count][position % count])] for position in positions]
        pixels = [torch.from_numpy(item[0]).permute(2, 0, 1) for item in items]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(_mix(self.seed, step, "augmentation"))
            transform = _augmentation(self.recipe.augmentation, pixels[0].shape[-1])
            if transform is not None:
                pixels = [transform(image) for image in pixels]
        return torch.stack(pixels), torch.tensor([item[1] for item in items])

    def _order(self, epoch: int, count: int) -> NDArray[np.intp]:
        return np.random.default_rng((self.seed, epoch)).permutation(count)


def _augmentation(name: Augmentation, size: int) -> Callable[[Tensor], Tensor] | None:
    if name == "none":
        return None
    steps: list[nn.Module] = [v2.RandomHorizontalFlip()]
    if name == "flip-crop":
        steps.append(v2.RandomCrop(size, padding=size // 8, padding_mode="reflect"))
    transform: Callable[[Tensor], Tensor] = v2.Compose(steps)
    return transform


def _mix(*parts: object) -> int:
    """A seed that depends on every part."""
    return int.from_bytes(hashlib.sha256(repr(parts).encode()).digest()[:7])


# The loop -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Curve:
    """Learning curves: one entry for each evaluation during a training."""

    step: tuple[int, ...] = ()
    learning_rate: tuple[float, ...] = ()
    train_loss: tuple[float, ...] = ()
    """Mean over the steps since the last entry, with label smoothing."""
    train_accuracy: tuple[float, ...] = ()
    val_accuracy: tuple[float, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Training:
    """What a training left beside the weights."""

    curve: Curve
    seconds_per_step: float
    """Median, without loading the images."""


def train(
    model: nn.Module,
    images: LabelledImages,
    validation: LabelledImages,
    recipe: Recipe,
    *,
    seed: int = 0,
    num_workers: int = 0,
    checkpoint: str | PathLike[str] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Training:
    """Train a classifier in place, by AdamW with warm-up and a cosine; it is left in evaluation mode.

    Args:
        model: Takes normalised images (N, 3, H, W), gives logits (N, classes).
        images: To train on.
        validation: For the learning curve only; nothing is chosen by it.
        recipe: Everything else.
        seed: Of the order of the images, their augmentation and drop path. The caller's random state is left alone.
        num_workers: Processes that load images; without effect on the result.
        checkpoint: A file that keeps the state every few seconds. A later call with the same new model, recipe, seed
            and images continues from it. It is left there.
        progress: Called with the steps done and their total.

    Raises:
        ValueError: If the images have other classes than the validation images.
        TrainingError: If the loss is not finite, or an image cannot be read.

    References:
        Loshchilov and Hutter 2019, arXiv:1711.05101.
    """
    if images.classes != validation.classes:
        raise ValueError(f"validation: its classes {validation.classes} are not those of the images {images.classes}")
    model.train()
    model.to(memory_format=torch.channels_last)
    device = next(model.parameters()).device
    groups = param_groups_weight_decay(model, recipe.weight_decay)
    optimizer = torch.optim.AdamW(groups, lr=recipe.learning_rate, fused=True)
    schedule = CosineLRScheduler(
        optimizer,
        t_initial=recipe.steps,
        warmup_t=round(recipe.warmup * recipe.steps),
        warmup_lr_init=0.0,
        warmup_prefix=False,
        t_in_epochs=False,
    )
    average = None
    if recipe.ema_decay is not None:
        average = AveragedModel(model, multi_avg_fn=_moving_average(recipe.ema_decay), use_buffers=True)
    fingerprint = _fingerprint(model, images, recipe, seed)
    state = _resume(checkpoint, fingerprint, model, optimizer, average)
    due = {round(recipe.steps * (part + 1) / _NUM_EVALUATIONS) for part in range(_NUM_EVALUATIONS)}
    stored = time.monotonic()
    batches = _load(_Batches(images, recipe, seed), range(state["step"], recipe.steps), num_workers)
    with torch.random.fork_rng(devices=[]), torch.enable_grad():
        for step, (pixels, labels) in zip(range(state["step"], recipe.steps), batches, strict=True):
            start = time.perf_counter()
            torch.manual_seed(_mix(seed, step, "drop path"))
            schedule.step_update(step + 0.5)  # mid-step: the rate is never 0
            logits = model(normalize(pixels).to(device))
            loss = F.cross_entropy(logits, labels.to(device), label_smoothing=recipe.label_smoothing)
            if not math.isfinite(loss.item()):
                raise TrainingError(f"step {step}: the loss is {loss.item()}; try a lower learning_rate")
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_(model.parameters(), recipe.max_gradient_norm)
            optimizer.step()
            if average is not None:
                average.update_parameters(model)
            state["seconds"].append(time.perf_counter() - start)
            state["loss"].append(loss.item())
            state["correct"].append(float((logits.argmax(1) == labels.to(device)).float().mean()))
            state["step"] = step + 1
            if step + 1 in due:
                accurate = accuracy(_averaged(model, average), validation)
                row = (step + 1, optimizer.param_groups[0]["lr"], np.mean(state["loss"]), np.mean(state["correct"]))
                state["rows"].append([*map(float, row), accurate])
                state["loss"], state["correct"] = [], []
                model.train()
            if checkpoint is not None and (
                time.monotonic() - stored > _SECONDS_BETWEEN_CHECKPOINTS or step + 1 == recipe.steps
            ):
                _store(Path(checkpoint), fingerprint, model, optimizer, average, state)
                stored = time.monotonic()
            if progress is not None:
                progress(step + 1, recipe.steps)
    if average is not None:
        model.load_state_dict(average.module.state_dict())
    model.eval()
    steps, *columns = zip(*state["rows"], strict=True)
    names = ("learning_rate", "train_loss", "train_accuracy", "val_accuracy")
    curve = Curve(step=tuple(map(int, steps)), **dict(zip(names, columns, strict=True)))
    return Training(curve=curve, seconds_per_step=float(np.median(state["seconds"])))


def accuracy(
    model: nn.Module,
    images: LabelledImages,
    *,
    mean: Sequence[float] = IMAGENET_MEAN,
    std: Sequence[float] = IMAGENET_STD,
    batch_size: int = 64,
) -> float:
    """Part of the images that are named correctly; the model runs in evaluation mode, which is restored."""
    reference = next(model.parameters())
    correct = 0
    with evaluation_mode(model), torch.no_grad():
        for first in range(0, len(images), batch_size):
            items = [images[index] for index in range(first, min(first + batch_size, len(images)))]
            pixels = torch.from_numpy(np.stack([item[0] for item in items])).permute(0, 3, 1, 2)
            answers = model(normalize(pixels, mean, std).to(reference.device, reference.dtype)).argmax(1).cpu().numpy()
            correct += int((answers == np.array([item[1] for item in items])).sum())
    return correct / len(images)


def _moving_average(decay: float) -> Callable[[Any, Any, Any], None]:
    @torch.no_grad()
    def update(averages: Any, values: Any, num_averaged: Any) -> None:
        count = int(num_averaged)
        keep = min(decay, (1 + count) / (10 + count))
        for average, value in zip(averages, values, strict=True):
            if average.is_floating_point():
                average.lerp_(value, 1 - keep)
            else:
                average.copy_(value)

    return update


def _averaged(model: nn.Module, average: AveragedModel | None) -> nn.Module:
    if average is None:
        return model
    module: nn.Module = average.module
    return module


def _load(batches: _Batches, steps: Sequence[int], num_workers: int) -> Iterator[tuple[Tensor, Tensor]]:
    if num_workers == 0:
        return (batches[step] for step in steps)
    return iter(DataLoader(batches, batch_size=None, sampler=steps, num_workers=num_workers))


def _fingerprint(model: nn.Module, images: LabelledImages, recipe: Recipe, seed: int) -> str:
    """Of everything that decides the weights; of the images their number and two of them."""
    first = [hashlib.sha256(images[index][0].tobytes()).hexdigest() for index in (0, len(images) - 1)]
    network = [hash_weights(model), hash_code(model)]
    text = json.dumps([network, first, len(images), images.classes, asdict(recipe), seed], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def _resume(
    path: str | PathLike[str] | None,
    fingerprint: str,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    average: AveragedModel | None,
) -> dict[str, Any]:
    """The state of the loop; with a file of the same training, its weights are put into the arguments."""
    state: dict[str, Any] = {"step": 0, "rows": [], "loss": [], "correct": [], "seconds": []}
    if path is None or not Path(path).is_file():
        return state
    content: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    if content["fingerprint"] != fingerprint:
        return state
    model.load_state_dict(content["model"])
    optimizer.load_state_dict(content["optimizer"])
    if average is not None:
        average.load_state_dict(content["average"])
    loop: dict[str, Any] = content["loop"]
    return loop


def _store(
    path: Path,
    fingerprint: str,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    average: AveragedModel | None,
    state: dict[str, Any],
) -> None:
    """Write the state, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".new")
    content = {
        "fingerprint": fingerprint,
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "average": None if average is None else average.state_dict(),
        "loop": state,
    }
    torch.save(content, temporary)
    os.replace(temporary, path)  # noqa: PTH105
