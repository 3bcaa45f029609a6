"""Accuracy of a classifier on an image folder."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from os import PathLike
from typing import Any, ClassVar

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from analysis.images.inputs import Inputs
from analysis.images.labelled import DataError
from analysis.models.batches import classify, run_batches, split_decided
from analysis.models.layers import evaluation_mode
from analysis.models.loaded import LoadedModel, place_of
from analysis.models.loading import as_loaded
from analysis.recognition.labels import LabelledFiles, labelled_files
from analysis.recognition.prediction import class_names
from analysis.runs.identity import NetworkIdentity, describe_environment, identify
from analysis.runs.results import Result, ResultError
from analysis.runs.resuming import Progress, Row, hash_settings
from analysis.runs.texts import printable
from analysis.statistics import wilson_interval

_TOP = 5


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class EvaluationResult(Result):
    """The best classes of every image of a set.

    Args:
        model: Its name.
        classes: Names of its outputs.
        images: Names of the files, relative to the folder.
        labels: The right output for each, shape (N,).
        best: The best outputs, the best first, shape (N, 5), or fewer columns with fewer classes.
        skipped: Files that could not be used, with the reason.
        seconds: Spent in reading and classifying the images.
        published: Accuracies in percent that the publisher of the weights reports, "top1" and "top5".
        settings: Everything needed to do it again.
    """

    KIND: ClassVar[str] = "evaluation"
    PLOTS: ClassVar[Mapping[str, str]] = {
        "confusion": "analysis.recognition.plots:plot_answers",
    }

    model: str
    classes: tuple[str, ...]
    images: tuple[str, ...]
    labels: NDArray[np.int64]
    best: NDArray[np.int64]
    skipped: tuple[tuple[str, str], ...] = ()
    seconds: float
    published: Mapping[str, float] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        count, labels, best = len(self.images), self.labels, self.best
        if not count or labels.shape != (count,) or best.ndim != 2 or len(best) != count or not best.shape[1]:
            raise ResultError(f"{count} images, labels of shape {labels.shape}, best of {best.shape}: inconsistent")
        for name, outputs in (("labels", labels), ("best", best)):
            if outputs.min() < 0 or outputs.max() >= len(self.classes):
                raise ResultError(f"{name}: {outputs.min()} to {outputs.max()} of {len(self.classes)} outputs")
            outputs.flags.writeable = False
        if not 0 <= self.seconds < math.inf:
            raise ResultError(f"seconds={self.seconds}: expected a number of at least 0")

    @property
    def tops(self) -> tuple[int, ...]:
        """The numbers of best classes that tell something: 1, and 5 where more classes are and five were kept."""
        return (1, _TOP) if len(self.classes) > _TOP <= self.best.shape[1] else (1,)

    def num_correct(self, top: int = 1) -> int:
        """Images whose label is among the `top` best classes."""
        return int((self.best[:, :top] == self.labels[:, None]).any(1).sum())

    def accuracy(self, top: int = 1) -> float:
        """The share of `num_correct`, from 0 to 1."""
        return self.num_correct(top) / len(self.labels)

    def interval(self, top: int = 1, *, confidence: float = 0.95) -> tuple[float, float]:
        """Wilson's interval of an accuracy, for images that are independent draws."""
        return wilson_interval(self.num_correct(top), len(self.labels), confidence=confidence)

    @property
    def images_per_second(self) -> float:
        """Throughput of reading and classifying together."""
        return len(self.labels) / self.seconds if self.seconds > 0 else float("nan")

    def by_class(self) -> pd.DataFrame:
        """One row for each class that occurs: class_index, class, images, and top1 and top5 as of `tops`."""
        rows = []
        for index in np.unique(self.labels):
            own = self.labels == index
            hits = self.best[own] == index
            shares = [hits[:, :top].any(1).mean() for top in self.tops]
            rows.append((index, self.classes[index], int(own.sum()), *shares))
        return pd.DataFrame(rows, columns=["class_index", "class", "images", *(f"top{top}" for top in self.tops)])

    def confusion(self) -> pd.DataFrame:
        """Counts by right class (rows) and best class (columns), for the classes that occur as either."""
        present = np.unique(np.concatenate([self.labels, self.best[:, 0]]))
        names = [self.classes[index] for index in present]
        counts = np.zeros((len(present), len(present)), np.int64)
        rows, columns = np.searchsorted(present, self.labels), np.searchsorted(present, self.best[:, 0])
        np.add.at(counts, (rows, columns), 1)
        return pd.DataFrame(counts, pd.Index(names, name="right class"), pd.Index(names, name="answered"))

    def decisions(self) -> pd.DataFrame:
        """One row for each image: image, class, answer, correct, and in_top5 where `tops` has it."""
        columns = {
            "image": self.images,
            "class": [self.classes[label] for label in self.labels],
            "answer": [self.classes[answer] for answer in self.best[:, 0]],
            "correct": self.best[:, 0] == self.labels,
        }
        hits = self.best == self.labels[:, None]
        return pd.DataFrame(columns | {f"in_top{top}": hits[:, :top].any(1) for top in self.tops[1:]})

    def headline(self) -> dict[str, Any]:
        """Model, images and accuracies, as of `tops`."""
        return {
            "model": self.model,
            "images": len(self.images),
            "skipped": len(self.skipped),
            **{f"top{top}": self.accuracy(top) for top in self.tops},
        }


def num_outputs(loaded: LoadedModel) -> int:
    """How many classes a classifier tells apart, by one image of zeros."""
    reference = place_of(loaded.module)
    size = loaded.input_size or 224
    with evaluation_mode(loaded.module), torch.no_grad():
        return classify(loaded, torch.zeros(1, 3, size, size, device=reference.device, dtype=reference.dtype)).shape[1]


def check_files(loaded: LoadedModel, files: LabelledFiles, size: int | None = None) -> None:
    """Refuse a network that cannot name these images, by a black one of their size.

    Raises:
        ValueError: If none is usable, or the network takes no images of this size.
        DataError: If there is none.
    """
    place = place_of(loaded.module)
    image = Inputs(files.names, files.files, loaded.preparation(size)).first()
    with evaluation_mode(loaded.module), torch.no_grad():
        classify(loaded, torch.zeros_like(image[None], device=place.device, dtype=place.dtype))


def evaluate(
    model: LoadedModel | nn.Module | str,
    data: str | PathLike[str] | LabelledFiles,
    *,
    labels: str | PathLike[str] | None = None,
    size: int | None = None,
    batch_size: int = 16,
    num_workers: int = 0,
    identity: NetworkIdentity | None = None,
    partial: str | PathLike[str] | None = None,
    progress: Progress | None = None,
) -> EvaluationResult:
    """Classify the images of a folder and compare with their labels.

    Args:
        model: What `load_model` returns or takes, or a module, fed with ImageNet's mean and standard deviation.
        data: A folder, see `labelled_files`, or what that returns.
        labels: A CSV of file,class for a folder of another layout; see `labelled_files`.
        size: Side of the input in pixels, with RepLKNet's resizing; by default the model's own preparation.
        batch_size: Images in one forward pass.
        num_workers: Processes that read images; 0 reads them in this one.
        identity: What `identify` says of the module, where that is known already.
        partial: A file that keeps the state of an unfinished run; the same call goes on from there.
        progress: Called with the number of images done and of all, at the start and after each batch.

    Returns:
        The five best classes of each image; `accuracy()`, `interval()`, `confusion()` and `decisions()` are of them.

    Raises:
        FileNotFoundError: If a folder or file does not exist.
        ValueError: If a value is out of range, the model is no classifier, classes do not fit, or no file is usable.
    """
    loaded = as_loaded(model)
    files = data
    if not isinstance(files, LabelledFiles):
        files = labelled_files(files, class_names(loaded, num_outputs(loaded)), labels=labels)
    transform = loaded.preparation(size)
    identity = identity or identify(loaded.module)
    settings: dict[str, Any] = {
        "weights": identity.weights,
        "data": printable(files.root),
        "images": files.fingerprint,
        "classes_matched": files.rule,
        "preparation": str(transform),
        **describe_environment(place_of(loaded.module)),
    }

    def rows(images: Tensor) -> list[Row | str]:
        logits = classify(loaded, images)
        return split_decided(logits, best=logits.topk(min(_TOP, logits.shape[1])).indices)

    names = files.names
    measured = run_batches(
        loaded,
        Inputs(names, files.files, transform),
        rows,
        batch_size=batch_size,
        num_workers=num_workers,
        fingerprint=hash_settings([settings, identity.code]),
        partial=partial,
        progress=progress,
    )
    if not measured.used:
        name, reason = measured.skipped[0]
        raise DataError(f"data={str(files.root)!r}: no file is a usable image; {name}: {reason}")
    return EvaluationResult(
        model=loaded.name,
        classes=files.classes,
        images=measured.of_used(names),
        labels=np.array(measured.of_used(files.labels), np.int64),
        best=measured.stacked("best"),
        skipped=(*files.skipped, *measured.skipped),
        seconds=measured.seconds,
        published=loaded.published,
        settings=settings,
    )
