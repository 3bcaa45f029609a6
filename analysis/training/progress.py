"""Everything that changes during a training, and its learning curves."""

import hashlib
import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Self

import numpy as np
import torch
from timm.optim import param_groups_layer_decay, param_groups_weight_decay
from timm.scheduler import CosineLRScheduler
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from analysis.images.labelled import LabelledImages
from analysis.runs.identity import hash_code, hash_weights
from analysis.runs.processes import gather, rank
from analysis.training.parallel import TrainingError
from analysis.training.recipe import Recipe
from analysis.training.state import load_state, store_state

_SECONDS_BETWEEN_CHECKPOINTS = 5.0
_SHARE_OF_CHECKPOINTS = 0.05
"""Of the time, where writing them takes long."""


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

    def __post_init__(self) -> None:
        lengths = {name: len(values) for name, values in asdict(self).items()}
        if len(set(lengths.values())) > 1:
            raise ValueError(f"columns of different lengths: {lengths}")


class TrainingState:
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
        self._decay = recipe.ema_decay
        self.average: AveragedModel | None = None
        if recipe.ema_decay is not None:
            self.average = AveragedModel(model)
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

    def add(self, outcomes: Sequence[tuple[float, float]]) -> None:
        """Note loss and share of right answers of the next steps."""
        for loss, correct in outcomes:
            self._loss.append(loss)
            self._correct.append(correct)

    def finish_step(self) -> None:
        """Change the weights by the gradient, and their average by these."""
        self.optimizer.step()
        if self.average is not None:
            self._update(self.average)
        self.step += 1

    @torch.no_grad()
    def _update(self, average: AveragedModel) -> None:
        """As `AveragedModel` does it itself, which reads its count back from a GPU."""
        decay = 0.0 if self._decay is None or self.step == 0 else min(self._decay, (1 + self.step) / (10 + self.step))
        floats: tuple[list[Tensor], list[Tensor]] = [], []
        for own, value in zip(_tensors(average.module), _tensors(self.model), strict=True):
            if decay and own.is_floating_point():
                floats[0].append(own)
                floats[1].append(value)
            else:
                own.copy_(value)
        if floats[0]:
            get_ema_multi_avg_fn(decay)(*floats, None)  # type: ignore[no-untyped-call]
        average.n_averaged += 1

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

    @property
    def due(self) -> bool:
        """Whether it is time that this process writes the state."""
        wait = max(_SECONDS_BETWEEN_CHECKPOINTS, self._seconds_to_store / _SHARE_OF_CHECKPOINTS)
        return self._path is not None and rank() == 0 and time.monotonic() - self._stored > wait

    def store(self) -> None:
        """Write the state, in the first process."""
        if self._path is None or rank() > 0:
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


def _tensors(model: nn.Module) -> Iterator[Tensor]:
    yield from model.parameters()
    yield from model.buffers()


def _fingerprint(model: nn.Module, images: LabelledImages, recipe: Recipe, seed: int) -> str:
    """Of everything that decides the weights; of the images their number and two of them."""
    first = [hashlib.sha256(images[index][0].tobytes()).hexdigest() for index in (0, len(images) - 1)]
    network = [hash_weights(model), hash_code(model)]
    text = json.dumps([network, first, len(images), images.classes, asdict(recipe), seed], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()
