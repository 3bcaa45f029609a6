"""One training recipe and one loop, the same for every network of a study and for ImageNet.

Everything random in step k follows from the seed and k alone: an interrupted run that continues from its checkpoint
ends with the same weights, bit for bit, on the same machine with the same number of threads and processes, and so does
a run with any number of loader processes; on a GPU as far as PyTorch's own operators are deterministic.
"""

import math
from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from dataclasses import dataclass
from os import PathLike
from pathlib import Path

import numpy as np
import torch
from timm.data import Mixup
from timm.data.random_erasing import RandomErasing
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

from analysis.images.imagenet import IMAGENET_MEAN, IMAGENET_STD
from analysis.images.labelled import LabelledImages, different_classes
from analysis.images.preparing import check_normalization, normalize
from analysis.models.layers import evaluation_mode, fast_layout, run
from analysis.runs.processes import copy_buffers, gather, in_turns, num_processes, rank, total
from analysis.runs.settings import BATCHES, SEEDS, WORKERS, check_number
from analysis.runs.signals import DeferredSignals, leave_signals_to_parent
from analysis.training.batches import OrderedBatches, TrainingBatches, mix, random_state, seeded
from analysis.training.parallel import TrainingError, check_division, lost_processes_named, prepared, unsynchronised
from analysis.training.progress import Curve, TrainingState
from analysis.training.readings import Readings
from analysis.training.recipe import STEPS, Recipe

_NUM_EVALUATIONS = 10


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
        TrainingError: If the loss, the gradient or a score of a validation image is not finite, or another process is
            gone.
        DataError: If an image cannot be read.
        StateError: If the checkpoint cannot be written.

    References:
        Loshchilov and Hutter 2019, arXiv:1711.05101.
    """
    check_training(model, images, validation, recipe, mean=mean, std=std)
    check_number("seed", seed, SEEDS)
    check_number("num_workers", num_workers, WORKERS)
    for name, value in {
        "stop_after": stop_after,
        "record_every": record_every,
        "evaluate_every": evaluate_every,
    }.items():
        if value is not None:
            check_number(name, value, STEPS)
    device = next(model.parameters()).device
    layout = fast_layout(model, device)
    model.train()
    model.to(memory_format=layout)
    state = TrainingState.begin(model, images, recipe, seed, None if checkpoint is None else Path(checkpoint))
    last = min(recipe.steps, stop_after or recipe.steps)
    records, evaluations = (_due(every, recipe.steps, last) for every in (record_every, evaluate_every))
    batches = TrainingBatches(images, recipe, seed, (rank(), num_processes()))
    mixing = _Mixing(recipe, len(images.classes), device)
    readings, on_gpu = Readings(device), device.type == "cuda"
    with (
        random_state(device) as seed_all,
        torch.enable_grad(),
        prepared(model, recipe, device) as network,
        DeferredSignals(active=checkpoint is not None) as signals,
        closing(_load(batches, range(state.step, last), num_workers, device)) as loader,
        lost_processes_named(),
    ):
        for step, (pixels, labels) in zip(range(state.step, last), loader, strict=True):
            readings.start()
            seed_all(mix(seed, step, "drop path", *([rank()] if rank() else [])))
            state.schedule.step_update(step + 0.5)  # mid-step: the rate is never 0
            state.optimizer.zero_grad()
            losses, correct = [], []
            parts = list(zip(pixels.chunk(recipe.accumulate), labels.chunk(recipe.accumulate), strict=True))
            for number, (part, answers) in enumerate(parts):
                answers = answers.to(device, non_blocking=on_gpu)
                inputs = normalize(part.to(device, non_blocking=on_gpu), mean, std).contiguous(memory_format=layout)
                inputs, targets = mixing(inputs, answers, mix(seed, step, number, rank(), "mixing"))
                with unsynchronised(network, active=number < len(parts) - 1):
                    with torch.autocast(device.type, torch.bfloat16, enabled=bool(recipe.autocast)):
                        logits = network(inputs)
                        loss = F.cross_entropy(logits, targets, label_smoothing=mixing.smoothing)
                    (loss / len(parts)).backward()  # type: ignore[no-untyped-call]
                losses.append(loss)
                correct.append((logits.argmax(1) == answers).sum())
            norm = nn.utils.clip_grad_norm_(model.parameters(), recipe.max_gradient_norm)
            readings.add(step, losses, correct, len(pixels) // len(parts), norm)
            signalled, stores = total(torch.tensor([signals.number, state.due], dtype=torch.float64)).tolist()
            stores = stores or signalled or step + 1 == last
            reads = stores or readings.due or step + 1 in records | evaluations
            if reads:  # before the step has its effect, and before anything is written
                state.add(readings.outcomes())
            state.finish_step()
            readings.stop()
            if reads:
                state.seconds += readings.seconds()
            if step + 1 in records | evaluations:
                measured = math.nan
                if validation is not None and step + 1 in evaluations:
                    measured = accuracy(state.averaged(), validation, mean=mean, std=std, num_workers=num_workers)
                    model.train()
                state.record(measured)
                if recorded is not None and rank() == 0:
                    recorded(state.curve())
            if stores:
                state.store()
            if progress is not None:
                progress(step + 1, last)
            if signalled and step + 1 < last:
                signals.take_effect(max(gather(signals.number)))
    if state.average is not None:
        model.load_state_dict(state.average.module.state_dict())
    copy_buffers(model)
    model.eval()
    return Training(curve=state.curve(), seconds_per_step=float(np.median(state.seconds)), notes=state.notes)


def check_training(
    model: nn.Module,
    images: LabelledImages,
    validation: LabelledImages | None,
    recipe: Recipe,
    *,
    mean: Sequence[float] = IMAGENET_MEAN,
    std: Sequence[float] = IMAGENET_STD,
) -> None:
    """Refuse what `train` cannot do, as far as the first image and a pass through the network tell.

    Raises:
        ValueError: If the images have other classes than the validation images, a batch cannot be divided, or the
            network takes no images of this size or gives other outputs.
    """
    check_normalization(mean, std)
    difference = "" if validation is None else different_classes(images, validation)
    if difference:
        raise ValueError(f"validation: images and validation have different classes ({difference})")
    reference = next(model.parameters())
    check_division(recipe, reference.device)
    photographs = recipe.augmentation == "imagenet"
    size = (recipe.image_size, recipe.image_size) if photographs else images[0][0].shape[:2]
    with evaluation_mode(model), torch.no_grad():
        logits = run(model, reference.new_zeros(1, 3, *size))
    if not isinstance(logits, Tensor) or logits.shape != (1, len(images.classes)):
        what = f"shape {tuple(logits.shape)}" if isinstance(logits, Tensor) else type(logits).__name__
        raise ValueError(
            f"model: returns {what} for an image; expected one score for each of the {len(images.classes)} classes"
        )


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

    Raises:
        TrainingError: If the logits of an image are not finite.
    """
    check_number("batch_size", batch_size, BATCHES)
    check_normalization(mean, std)
    reference = next(model.parameters())
    copy_buffers(model)
    on_gpu = reference.device.type == "cuda"
    device, layout = reference.device, fast_layout(model, reference.device)
    batches = OrderedBatches(images, batch_size)

    def num_correct(first: int) -> int:
        """Of this process's part, read back from the device once."""
        found = torch.zeros(2, dtype=torch.int64, device=device)
        with closing(_load(batches, range(first, len(batches), num_processes()), num_workers, device)) as loader:
            for pixels, labels in loader:
                inputs = normalize(pixels.to(device, non_blocking=on_gpu), mean, std).contiguous(memory_format=layout)
                logits = model(inputs.to(reference.dtype))
                right = logits.argmax(1) == labels.to(device, non_blocking=on_gpu)
                found += torch.stack([right.sum(), (~logits.isfinite()).sum()])
        right_ones, not_finite = found.tolist()
        if not_finite:
            raise TrainingError("accuracy: the network's logits are not finite")
        return int(right_ones)

    with evaluation_mode(model), torch.no_grad():
        return sum(in_turns(num_processes(), num_correct)) / len(images)


def _load(
    batches: TrainingBatches | OrderedBatches, items: Sequence[int], num_workers: int, device: torch.device
) -> Generator[tuple[Tensor, Tensor]]:
    """Batches in order, for a GPU in memory that it reads by itself."""
    on_gpu = device.type == "cuda"
    if num_workers == 0 or batches.at_hand:
        for item in items:
            pixels, labels = batches[item]
            yield (pixels.pin_memory(), labels.pin_memory()) if on_gpu else (pixels, labels)
        return
    yield from DataLoader(
        batches,
        batch_size=None,
        sampler=items,
        num_workers=min(num_workers, max(len(items), 1)),
        worker_init_fn=leave_signals_to_parent,
        pin_memory=on_gpu,
    )


def _due(every: int | None, steps: int, last: int) -> set[int]:
    """The steps after which something is done: every so many, or ten in all, and the last."""
    found = range(every, last, every) if every else (round(steps * k / _NUM_EVALUATIONS) for k in range(1, 10))
    return {step for step in found if 0 < step < last} | {last}


class _Mixing:
    """Random erasing, mixup and cutmix of a batch on its device, from a seed."""

    def __init__(self, recipe: Recipe, num_classes: int, device: torch.device) -> None:
        self.smoothing = 0.0 if recipe.mixes else recipe.label_smoothing
        self._erase = self._mix = None
        self._device = device
        if recipe.random_erasing:
            self._erase = RandomErasing(recipe.random_erasing, mode="pixel", max_count=1, device=device)
        if recipe.mixes:
            self._mix = Mixup(
                recipe.mixup, recipe.cutmix, label_smoothing=recipe.label_smoothing, num_classes=num_classes
            )

    def __call__(self, images: Tensor, labels: Tensor, seed: int) -> tuple[Tensor, Tensor]:
        if self._erase is None and self._mix is None:
            return images, labels
        with seeded(seed, self._device):
            if self._erase is not None:
                images = self._erase(images)
            if self._mix is not None:
                images, labels = self._mix(images, labels)
        return images, labels
