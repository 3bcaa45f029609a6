"""One training recipe and one loop, the same for every network of a study and for ImageNet.

Everything random in step k follows from the seed and k alone: an interrupted run that continues from its checkpoint
ends with the same weights, bit for bit, on the same machine with the same number of threads and processes, and so does
a run with any number of loader processes.
"""

import hashlib
import json
import math
import signal
import threading
import time
import warnings
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import AbstractContextManager, closing, contextmanager, nullcontext
from dataclasses import asdict, dataclass
from os import PathLike
from pathlib import Path
from types import FrameType
from typing import Any, Self

import numpy as np
import torch
from timm.data import Mixup
from timm.data.random_erasing import RandomErasing
from timm.optim import param_groups_layer_decay, param_groups_weight_decay
from timm.scheduler import CosineLRScheduler
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel
from torch.utils.data import DataLoader, Dataset

from analysis.distributed import copy_buffers, gather, in_turns, num_processes, rank, total
from analysis.features import evaluation_mode
from analysis.identity import hash_code, hash_weights
from analysis.images import IMAGENET_MEAN, IMAGENET_STD
from analysis.training_images import (
    LabelledImages,
    OrderedBatches,
    TrainingBatches,
    TrainingError,
    mix,
    normalize,
    seeded,
)
from analysis.training_recipe import Recipe
from analysis.training_state import load_state, store_state

_SECONDS_BETWEEN_CHECKPOINTS = 5.0
_SHARE_OF_CHECKPOINTS = 0.05
"""Of the time, where writing them takes long."""
_NUM_EVALUATIONS = 10
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)


@dataclass(frozen=True, kw_only=True)
class Curve:
    """Learning curves: one entry for each record of a training."""

    step: tuple[int, ...] = ()
    learning_rate: tuple[float, ...] = ()
    """The highest, where layers have their own."""
    train_loss: tuple[float, ...] = ()
    """Mean over the steps since the last entry, with label smoothing and mixing."""
    train_accuracy: tuple[float, ...] = ()
    """On augmented images; of mixed ones, by the class of the first."""
    val_accuracy: tuple[float, ...] = ()
    """NaN where it was not measured."""


@dataclass(frozen=True, kw_only=True)
class Training:
    """What a training left beside the weights."""

    curve: Curve
    seconds_per_step: float
    """Median, without loading the images."""
    notes: tuple[str, ...] = ()
    """What happened on the way that a user should know."""


def train(
    model: nn.Module,
    images: LabelledImages,
    validation: LabelledImages | None,
    recipe: Recipe,
    *,
    seed: int = 0,
    mean: Sequence[float] = IMAGENET_MEAN,
    std: Sequence[float] = IMAGENET_STD,
    num_workers: int = 0,
    checkpoint: str | PathLike[str] | None = None,
    stop_after: int | None = None,
    record_every: int | None = None,
    evaluate_every: int | None = None,
    progress: Callable[[int, int], None] | None = None,
    recorded: Callable[[Curve], None] | None = None,
) -> Training:
    """Train a classifier in place, by AdamW with warm-up and a cosine; it is left in evaluation mode.

    In a process group (`analysis.distributed`) every process takes an equal part of each batch, and gradients are
    averaged (DistributedDataParallel). The images and their augmentation are those of one process; batch norms see the
    process's own part, unless they are synchronised, and their running statistics are the first process's.

    Where there is a checkpoint, a signal to end (SIGINT, SIGTERM, SIGUSR1, SIGUSR2) to any process takes effect in all
    of them after the step at work, when the state has been written; a second SIGINT does at once.

    Args:
        model: Takes normalised images (N, 3, H, W), gives logits (N, classes).
        images: To train on.
        validation: For the learning curve only; nothing is chosen by it. None for none.
        recipe: Everything else.
        seed: Of the order of the images, their augmentation and drop path. The caller's random state is left alone.
        mean: Per channel, subtracted from images in [0, 1].
        std: Per channel, divided by.
        num_workers: Processes that load images; without effect on the result.
        checkpoint: A file that keeps the state every few seconds, or less often where that would take long, and the
            state before it beside it. A later call with the same new model, recipe, seed and images continues from it.
            It is left there.
        stop_after: Stop after this step, the schedule unchanged; a later call goes on from the checkpoint.
        record_every: Steps between entries of the curve; by default a tenth of all.
        evaluate_every: Steps between measurements of the validation accuracy; by default a tenth of all.
        progress: Called with the steps done and their total.
        recorded: Called with the curve after each new entry, in the first process.

    Raises:
        ValueError: If the images have other classes than the validation images, or a batch cannot be divided.
        TrainingError: If the loss is not finite, an image cannot be read, or another process is gone.
        StateError: If the checkpoint cannot be written.

    References:
        Loshchilov and Hutter 2019, arXiv:1711.05101.
    """
    if validation is not None and images.classes != validation.classes:
        raise ValueError(f"validation: its classes {validation.classes} are not those of the images {images.classes}")
    device = next(model.parameters()).device
    _check_division(recipe, device)
    model.train()
    model.to(memory_format=torch.channels_last)
    state = _State.begin(model, images, recipe, seed, None if checkpoint is None else Path(checkpoint))
    last = min(recipe.steps, stop_after or recipe.steps)
    records, evaluations = (_due(every, recipe.steps, last) for every in (record_every, evaluate_every))
    batches = TrainingBatches(images, recipe, seed, (rank(), num_processes()))
    mixing = _Mixing(recipe, len(images.classes), device)
    with (
        torch.random.fork_rng(devices=[]),
        torch.enable_grad(),
        _prepared(model, recipe, device) as network,
        _DeferredSignals(active=checkpoint is not None) as signals,
        closing(_load(batches, range(state.step, last), num_workers)) as loader,
        _lost_processes_named(),
    ):
        for step, (pixels, labels) in zip(range(state.step, last), loader, strict=True):
            start = time.perf_counter()
            torch.manual_seed(mix(seed, step, "drop path", *([rank()] if rank() else [])))
            state.schedule.step_update(step + 0.5)  # mid-step: the rate is never 0
            state.optimizer.zero_grad()
            found = torch.zeros(3, dtype=torch.float64)  # loss, share of right answers, signal
            parts = list(zip(pixels.chunk(recipe.accumulate), labels.chunk(recipe.accumulate), strict=True))
            for number, (part, answers) in enumerate(parts):
                answers = answers.to(device)
                inputs = normalize(part.to(device), mean, std)
                inputs, targets = mixing(inputs, answers, mix(seed, step, number, rank(), "mixing"))
                with _unsynchronised(network, active=number < len(parts) - 1):
                    with torch.autocast(device.type, torch.bfloat16, enabled=bool(recipe.autocast)):
                        logits = network(inputs)
                        loss = F.cross_entropy(logits, targets, label_smoothing=mixing.smoothing)
                    (loss / len(parts)).backward()  # type: ignore[no-untyped-call]
                found[0] += loss.item() / len(parts)
                found[1] += float((logits.argmax(1) == answers).double().mean()) / len(parts)
            found[2] = signals.number
            mean_loss, correct, signalled = (total(found) / num_processes()).tolist()
            if not math.isfinite(mean_loss):
                raise TrainingError(f"step {step}: the loss is {mean_loss}; try a lower learning_rate")
            nn.utils.clip_grad_norm_(model.parameters(), recipe.max_gradient_norm)
            state.optimizer.step()
            if state.average is not None:
                state.average.update_parameters(model)
            state.add(mean_loss, correct, time.perf_counter() - start)
            if step + 1 in records | evaluations:
                measured = math.nan
                if validation is not None and step + 1 in evaluations:
                    measured = accuracy(state.averaged(), validation, mean=mean, std=std, num_workers=num_workers)
                    model.train()
                state.record(measured)
                if recorded is not None and rank() == 0:
                    recorded(state.curve())
            state.store_if_due(now=signalled > 0 or step + 1 == last)
            if progress is not None:
                progress(step + 1, last)
            if signalled and step + 1 < last:
                signals.take_effect(max(gather(signals.number)))
    if state.average is not None:
        model.load_state_dict(state.average.module.state_dict())
    copy_buffers(model)
    model.eval()
    return Training(curve=state.curve(), seconds_per_step=float(np.median(state.seconds)), notes=state.notes)


def accuracy(
    model: nn.Module,
    images: LabelledImages,
    *,
    mean: Sequence[float] = IMAGENET_MEAN,
    std: Sequence[float] = IMAGENET_STD,
    batch_size: int = 64,
    num_workers: int = 0,
) -> float:
    """Part of the images that are named correctly; the model runs in evaluation mode, which is restored.

    In a process group each process takes every n-th batch, and all have the buffers of the first process afterwards.
    """
    reference = next(model.parameters())
    copy_buffers(model)
    batches = OrderedBatches(images, batch_size)
    own = range(rank(), len(batches), num_processes())
    with evaluation_mode(model), torch.no_grad(), closing(_load(batches, own, num_workers)) as loader:

        def num_correct(_: int) -> int:
            pixels, labels = next(loader)
            inputs = normalize(pixels.to(reference.device), mean, std).to(reference.dtype)
            return int((model(inputs).argmax(1).cpu() == labels).sum())

        return sum(in_turns(len(batches), num_correct)) / len(images)


def _load(
    batches: Dataset[tuple[Tensor, Tensor]], items: Sequence[int], num_workers: int
) -> Generator[tuple[Tensor, Tensor]]:
    if num_workers == 0:
        yield from (batches[item] for item in items)
        return
    yield from DataLoader(
        batches,
        batch_size=None,
        sampler=items,
        num_workers=num_workers,
        worker_init_fn=_leave_signals_to_parent,
        pin_memory=torch.cuda.is_available(),
    )


def _leave_signals_to_parent(_: int) -> None:
    """For a loader process: clusters signal all processes of a job, and a lost one would end the step at work."""
    for number in _SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def _check_division(recipe: Recipe, device: torch.device) -> None:
    pieces = num_processes() * recipe.accumulate
    if recipe.batch_size % pieces:
        raise ValueError(
            f"batch_size={recipe.batch_size}: expected a multiple of {pieces}, the processes ({num_processes()}) times "
            f"accumulate ({recipe.accumulate})"
        )
    if recipe.mixes and recipe.batch_size // pieces % 2:
        raise ValueError(
            f"batch_size={recipe.batch_size}: mixup and cutmix take an even number of images; each of {pieces} pieces "
            f"would have {recipe.batch_size // pieces}"
        )
    if recipe.sync_batch_norm and num_processes() > 1 and device.type == "cpu":
        raise ValueError("sync_batch_norm=True: PyTorch synchronises batch norms on GPUs only, not on the CPU")


def _due(every: int | None, steps: int, last: int) -> set[int]:
    """The steps after which something is done: every so many, or ten in all, and the last."""
    if every is not None and every < 1:
        raise ValueError(f"record_every, evaluate_every: {every}; expected at least 1")
    found = range(every, last, every) if every else (round(steps * k / _NUM_EVALUATIONS) for k in range(1, 10))
    return {step for step in found if 0 < step < last} | {last}


class _Mixing:
    """Random erasing, mixup and cutmix of a batch on its device, from a seed."""

    def __init__(self, recipe: Recipe, num_classes: int, device: torch.device) -> None:
        self.smoothing = 0.0 if recipe.mixes else recipe.label_smoothing
        self._erase = self._mix = None
        if recipe.random_erasing:
            self._erase = RandomErasing(recipe.random_erasing, mode="pixel", max_count=1, device=device)
        if recipe.mixes:
            self._mix = Mixup(
                recipe.mixup, recipe.cutmix, label_smoothing=recipe.label_smoothing, num_classes=num_classes
            )

    def __call__(self, images: Tensor, labels: Tensor, seed: int) -> tuple[Tensor, Tensor]:
        if self._erase is None and self._mix is None:
            return images, labels
        with seeded(seed):
            if self._erase is not None:
                images = self._erase(images)
            if self._mix is not None:
                images, labels = self._mix(images, labels)
        return images, labels


# Several processes ----------------------------------------------------------------------------------------------------


@contextmanager
def _prepared(model: nn.Module, recipe: Recipe, device: torch.device) -> Iterator[nn.Module]:
    """The model as one of several processes trains it; its batch norms are put back at the end."""
    if num_processes() == 1:
        yield model
        return
    norms = {name: layer for name, layer in model.named_modules() if isinstance(layer, nn.BatchNorm2d)}
    if recipe.sync_batch_norm:
        # The same parameters and buffers in other layers.
        nn.SyncBatchNorm.convert_sync_batchnorm(model)  # type: ignore[no-untyped-call]
    try:
        own = [torch.cuda.current_device()] if device.type == "cuda" else None
        with warnings.catch_warnings():
            # Gradients of depthwise kernels, few numbers, are copied: their axis of length 1 has another stride.
            warnings.filterwarnings("ignore", message="Grad strides do not match bucket view strides")
            yield DistributedDataParallel(model, device_ids=own)
    finally:
        for name, layer in norms.items():
            model.set_submodule(name, layer)


def _unsynchronised(network: nn.Module, *, active: bool) -> AbstractContextManager[object]:
    if active and isinstance(network, DistributedDataParallel):
        return network.no_sync()
    return nullcontext()


@contextmanager
def _lost_processes_named() -> Iterator[None]:
    """Say in words what it means when the connection breaks."""
    try:
        yield
    except RuntimeError as error:
        signs = ("gloo", "Connection closed", "Connection reset", "NCCL", "ProcessGroup")
        if num_processes() == 1 or not any(sign in str(error) for sign in signs):
            raise
        raise TrainingError(
            f"process {rank()} lost the connection to the others ({str(error).partition(chr(10))[0]}): one of them is "
            "gone; the same command continues from the last checkpoint"
        ) from error


class _DeferredSignals:
    """Signals that ask the process to end wait until the step at work is done and its state is written."""

    def __init__(self, *, active: bool) -> None:
        self.number = 0
        """The last one that came, 0 for none."""
        self._active = active and threading.current_thread() is threading.main_thread()
        self._handlers: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Self:
        if self._active:
            for number in _SIGNALS:
                handler = signal.getsignal(number)
                if handler is not signal.SIG_IGN:
                    self._handlers[number] = handler
                    signal.signal(number, self._defer)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        self._handlers.clear()

    def _defer(self, number: int, frame: FrameType | None) -> None:
        if number == self.number == signal.SIGINT:
            raise KeyboardInterrupt
        self.number = number

    def take_effect(self, number: int) -> None:
        """Let a signal, which may have come to another process, do what it would have done; mostly, that is the end."""
        self.__exit__()
        self.number = 0
        signal.raise_signal(number)
        self.__enter__()


# State ----------------------------------------------------------------------------------------------------------------


class _State:
    """Everything that changes during a training."""

    def __init__(self, model: nn.Module, recipe: Recipe, path: Path | None, fingerprint: str) -> None:
        self.model = model
        if recipe.layer_decay < 1:
            groups = param_groups_layer_decay(model, recipe.weight_decay, layer_decay=recipe.layer_decay)
        else:
            groups = param_groups_weight_decay(model, recipe.weight_decay)
        self.optimizer = torch.optim.AdamW(groups, lr=recipe.learning_rate, fused=True)
        self.schedule = CosineLRScheduler(
            self.optimizer,
            t_initial=recipe.steps,
            lr_min=recipe.minimum_rate,
            warmup_t=round(recipe.warmup * recipe.steps),
            warmup_lr_init=0.0,
            warmup_prefix=False,
            t_in_epochs=False,
        )
        self.average: AveragedModel | None = None
        if recipe.ema_decay is not None:
            self.average = AveragedModel(model, multi_avg_fn=_moving_average(recipe.ema_decay), use_buffers=True)
        self.step = 0
        self.notes: tuple[str, ...] = ()
        self.seconds: list[float] = []
        self._loss: list[float] = []
        self._correct: list[float] = []
        self._rows: list[list[float]] = []
        self._path, self._fingerprint = path, fingerprint
        self._stored, self._seconds_to_store = time.monotonic(), 0.0

    @classmethod
    def begin(cls, model: nn.Module, images: LabelledImages, recipe: Recipe, seed: int, path: Path | None) -> Self:
        """A new one, or that of the same training in a file, whose weights are put into the model."""
        state = cls(model, recipe, path, _fingerprint(model, images, recipe, seed))
        if path is None:
            return state
        content, note = load_state(path, state._fingerprint)
        state.notes = (note,) if note else ()
        steps = gather(0 if content is None else content["loop"]["step"])
        if len(set(steps)) > 1:
            raise TrainingError(
                f"checkpoint={str(path)!r}: the processes see states of different steps {sorted(set(steps))}; expected "
                "one file that all of them see"
            )
        if content is not None:
            model.load_state_dict(content["model"])
            state.optimizer.load_state_dict(content["optimizer"])
            if state.average is not None:
                state.average.load_state_dict(content["average"])
            loop = content["loop"]
            state.step, state._rows, state.seconds = loop["step"], loop["rows"], loop["seconds"]
            state._loss, state._correct = loop["loss"], loop["correct"]
        return state

    def add(self, loss: float, correct: float, seconds: float) -> None:
        """Note a step that is done."""
        self._loss.append(loss)
        self._correct.append(correct)
        self.seconds.append(seconds)
        self.step += 1

    def record(self, accurate: float) -> None:
        """Begin a new entry of the curve."""
        rate = max(group["lr"] for group in self.optimizer.param_groups)
        loss, correct = (float(np.mean(values)) for values in (self._loss, self._correct))
        self._rows.append([self.step, rate, loss, correct, accurate])
        self._loss, self._correct = [], []

    def curve(self) -> Curve:
        """All entries so far."""
        if not self._rows:
            return Curve()
        steps, *columns = zip(*self._rows, strict=True)
        names = ("learning_rate", "train_loss", "train_accuracy", "val_accuracy")
        return Curve(step=tuple(map(int, steps)), **dict(zip(names, columns, strict=True)))

    def averaged(self) -> nn.Module:
        """The network whose accuracy counts."""
        if self.average is None:
            return self.model
        module: nn.Module = self.average.module
        return module

    def store_if_due(self, *, now: bool) -> None:
        """Write the state, in the first process, if it is time to or it must be."""
        wait = max(_SECONDS_BETWEEN_CHECKPOINTS, self._seconds_to_store / _SHARE_OF_CHECKPOINTS)
        if self._path is None or rank() > 0 or not (now or time.monotonic() - self._stored > wait):
            return
        began = time.monotonic()
        loop = {"step": self.step, "rows": self._rows, "seconds": self.seconds}
        loop |= {"loss": self._loss, "correct": self._correct}
        content = {
            "fingerprint": self._fingerprint,
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "average": None if self.average is None else self.average.state_dict(),
            "loop": loop,
        }
        store_state(self._path, content)
        self._stored = time.monotonic()
        self._seconds_to_store = self._stored - began


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


def _fingerprint(model: nn.Module, images: LabelledImages, recipe: Recipe, seed: int) -> str:
    """Of everything that decides the weights; of the images their number and two of them."""
    first = [hashlib.sha256(images[index][0].tobytes()).hexdigest() for index in (0, len(images) - 1)]
    network = [hash_weights(model), hash_code(model)]
    text = json.dumps([network, first, len(images), images.classes, asdict(recipe), seed], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()
