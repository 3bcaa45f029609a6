"""Accuracy of a classifier on an image folder."""

import hashlib
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from scipy import stats
from torch import nn

from analysis.models.layers import evaluation_mode
from analysis.models.loaded import LoadedModel, place_of
from analysis.models.loading import as_loaded
from analysis.recognition.batches import Batch, batches
from analysis.recognition.labels import DataError, LabelledFiles, labelled_files
from analysis.recognition.prediction import class_names, classify
from analysis.runs.identity import describe_environment, hash_weights
from analysis.runs.processes import by_first, in_turns, num_processes, rank
from analysis.runs.results import load_result, save_result
from analysis.runs.resuming import load_partial, store_partial

KIND = "evaluation"


_TOP = 5


_SECONDS_BETWEEN_PARTIALS = 20.0


@dataclass(frozen=True, kw_only=True, eq=False)
class EvaluationResult:
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

    model: str
    classes: tuple[str, ...]
    images: tuple[str, ...] = field(repr=False)
    labels: NDArray[np.int64] = field(repr=False)
    best: NDArray[np.int64] = field(repr=False)
    skipped: tuple[tuple[str, str], ...] = ()
    seconds: float
    published: Mapping[str, float] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)

    def num_correct(self, top: int = 1) -> int:
        """Images whose label is among the `top` best classes."""
        return int((self.best[:, :top] == self.labels[:, None]).any(1).sum())

    def accuracy(self, top: int = 1) -> float:
        """The share of `num_correct`, from 0 to 1."""
        return self.num_correct(top) / len(self.labels)

    def interval(self, top: int = 1, *, confidence: float = 0.95) -> tuple[float, float]:
        """Wilson's interval of an accuracy, for images that are independent draws.

        References:
            Wilson 1927, JASA 22; `scipy.stats.binomtest`.
        """
        test = stats.binomtest(self.num_correct(top), len(self.labels))
        found = test.proportion_ci(confidence_level=confidence, method="wilson")
        return float(found.low), float(found.high)

    @property
    def images_per_second(self) -> float:
        """Throughput of reading and classifying together."""
        return len(self.labels) / self.seconds if self.seconds > 0 else float("nan")

    def by_class(self) -> pd.DataFrame:
        """One row for each class that occurs: class_index, class, images, top1, top5."""
        rows = []
        for index in np.unique(self.labels):
            own = self.labels == index
            hits = self.best[own] == index
            rows.append((index, self.classes[index], int(own.sum()), hits[:, 0].mean(), hits.any(1).mean()))
        return pd.DataFrame(rows, columns=["class_index", "class", "images", "top1", "top5"])

    def confusion(self) -> pd.DataFrame:
        """Counts by right class (rows) and best class (columns), for the classes that occur as either."""
        present = np.unique(np.concatenate([self.labels, self.best[:, 0]]))
        names = [self.classes[index] for index in present]
        counts = np.zeros((len(present), len(present)), np.int64)
        rows, columns = np.searchsorted(present, self.labels), np.searchsorted(present, self.best[:, 0])
        np.add.at(counts, (rows, columns), 1)
        return pd.DataFrame(counts, pd.Index(names, name="right class"), pd.Index(names, name="answered"))

    def decisions(self) -> pd.DataFrame:
        """One row for each image: image, class, answer, correct, and whether the class is among the best five."""
        return pd.DataFrame(
            {
                "image": self.images,
                "class": [self.classes[label] for label in self.labels],
                "answer": [self.classes[answer] for answer in self.best[:, 0]],
                "correct": self.best[:, 0] == self.labels,
                "in_top5": (self.best == self.labels[:, None]).any(1),
            }
        )

    def save(self, directory: str | PathLike[str], *, overwrite: bool = False) -> None:
        """Write `result.json` and `arrays.npz`.

        Raises:
            FileExistsError: If `directory` exists and `overwrite` is false.
        """
        fields = {
            "model": self.model,
            "classes": self.classes,
            "images": self.images,
            "skipped": self.skipped,
            "seconds": self.seconds,
            "published": dict(self.published),
            "settings": dict(self.settings),
        }
        save_result(directory, KIND, fields, {"labels": self.labels, "best": self.best}, overwrite=overwrite)

    @classmethod
    def load(cls, directory: str | PathLike[str]) -> "EvaluationResult":
        """What `save` wrote.

        Raises:
            ResultError: If it is of another kind or version, or cannot be read.
        """
        fields, arrays = load_result(directory, KIND)
        return cls(
            model=fields["model"],
            classes=tuple(fields["classes"]),
            images=tuple(fields["images"]),
            labels=arrays["labels"],
            best=arrays["best"],
            skipped=tuple((name, reason) for name, reason in fields["skipped"]),
            seconds=fields["seconds"],
            published=fields["published"],
            settings=fields["settings"],
        )


def num_outputs(loaded: LoadedModel) -> int:
    """How many classes a classifier tells apart, by one image of zeros."""
    reference = place_of(loaded.module)
    size = loaded.input_size or 224
    with evaluation_mode(loaded.module), torch.no_grad():
        return classify(loaded, torch.zeros(1, 3, size, size, device=reference.device, dtype=reference.dtype)).shape[1]


def evaluate(
    model: LoadedModel | nn.Module | str,
    data: str | PathLike[str] | LabelledFiles,
    *,
    labels: str | PathLike[str] | None = None,
    size: int | None = None,
    batch_size: int = 16,
    num_workers: int = 0,
    partial: str | PathLike[str] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> EvaluationResult:
    """Classify the images of a folder and compare with their labels.

    Args:
        model: What `load_model` returns or takes, or a module, fed with ImageNet's mean and standard deviation.
        data: A folder, see `labelled_files`, or what that returns.
        labels: For a folder without sub-folders; see `labelled_files`.
        size: Side of the input in pixels, with RepLKNet's resizing; by default the model's own preparation.
        batch_size: Images in one forward pass.
        num_workers: Processes that read images; 0 reads them in this one.
        partial: A file that keeps the state of an unfinished run; the same call goes on from there.
        progress: Called with the number of images done and of all.

    Returns:
        The five best classes of each image; `accuracy()`, `interval()`, `confusion()` and `decisions()` are of them.

    Raises:
        FileNotFoundError: If a folder or file does not exist.
        ValueError: If a value is out of range, the model is no classifier, classes do not fit, or no file is usable.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size={batch_size}: expected at least 1")
    loaded = as_loaded(model)
    files = data
    if not isinstance(files, LabelledFiles):
        files = labelled_files(files, class_names(loaded, num_outputs(loaded)), labels=labels)
    transform = loaded.preparation(size)
    reference = place_of(loaded.module)
    settings: dict[str, Any] = {
        "weights": hash_weights(loaded.module),
        "data": str(files.root),
        "images": files.fingerprint,
        "classes_matched": files.rule,
        "preparation": str(transform),
        **describe_environment(reference),
    }
    fingerprint = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()
    used: list[int] = []
    skipped: list[tuple[int, str]] = []
    best: list[NDArray[np.int64]] = []
    seconds = 0.0
    state = None if partial is None else by_first(lambda: load_partial(partial, fingerprint))
    if state is not None:
        header, arrays = state
        skipped = [(int(index), reason) for index, reason in header["skipped"]]
        seconds, used, best = header["seconds"], arrays["used"].tolist(), [arrays["best"]]

    def store() -> None:
        if partial is not None and used and rank() == 0:
            header = {"fingerprint": fingerprint, "skipped": skipped, "seconds": seconds}
            store_partial(Path(partial), header, {"used": np.array(used), "best": np.concatenate(best)})

    done = len(used) + len(skipped)
    if progress is not None:
        progress(done, len(files.files))
    last_stored = began = time.monotonic()
    own = batches(
        loaded.module,
        files.files,
        transform,
        batch_size=batch_size,
        num_workers=num_workers,
        start=done,
        turn=(rank(), num_processes()),
    )

    def answer(_: int) -> tuple[Batch, NDArray[np.int64] | None]:
        """The next batch of this process, without its pixels, and the best classes of its images."""
        batch = next(own)
        if batch.images is None:
            return batch, None
        logits = classify(loaded, batch.images)
        return replace(batch, images=None), logits.topk(min(_TOP, logits.shape[1])).indices.cpu().numpy()

    try:
        with evaluation_mode(loaded.module), torch.no_grad():
            for batch, answers in in_turns(-(-(len(files.files) - done) // batch_size), answer):
                skipped += batch.skipped
                if answers is not None:
                    best.append(answers)
                    used += batch.indices
                now = time.monotonic()
                seconds, began = seconds + now - began, now
                if now - last_stored > _SECONDS_BETWEEN_PARTIALS:
                    store()
                    last_stored = now
                if progress is not None:
                    progress(len(used) + len(skipped), len(files.files))
    except KeyboardInterrupt:
        store()
        raise
    if not used:
        index, reason = skipped[0]
        raise DataError(f"data={str(files.root)!r}: no file is a usable image; {files.files[index].name}: {reason}")
    if partial is not None:
        by_first(lambda: Path(partial).unlink(missing_ok=True))
    names = [str(file.relative_to(files.root)) for file in files.files]
    return EvaluationResult(
        model=loaded.name,
        classes=files.classes,
        images=tuple(names[index] for index in used),
        labels=np.array([files.labels[index] for index in used], np.int64),
        best=np.concatenate(best),
        skipped=tuple((names[index], reason) for index, reason in skipped),
        seconds=seconds,
        published=loaded.published,
        settings=settings,
    )
