"""What a classifier sees in images: class names and scores."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from os import PathLike
from typing import Any, ClassVar

import pandas as pd
from torch import Tensor, nn

from analysis.images.imagenet import NUM_IMAGENET_CLASSES, imagenet_classes
from analysis.images.inputs import Images
from analysis.models.batches import classify, inputs_for, measure_images, split_decided
from analysis.models.loaded import LoadedModel
from analysis.recognition.labels import numbered
from analysis.runs.identity import NetworkIdentity
from analysis.runs.results import Result, ResultError
from analysis.runs.resuming import Progress, Row
from analysis.runs.settings import COUNTS, check_number


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """The best classes of one image, the best first.

    Args:
        image: Its file.
        indices: Outputs of the network.
        names: Of those classes.
        scores: Their softmax probabilities.
    """

    image: str
    indices: tuple[int, ...]
    names: tuple[str, ...]
    scores: tuple[float, ...]

    def __post_init__(self) -> None:
        if not len(self.indices) == len(self.names) == len(self.scores) > 0:
            raise ResultError(f"{self.image}: indices, names and scores differ in number, or there are none")
        if min(self.indices) < 0 or not all(0 <= score <= 1 for score in self.scores):
            raise ResultError(f"{self.image}: {self.indices}, {self.scores}: expected outputs and probabilities")


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Predictions(Result, Sequence[Prediction]):
    """One `Prediction` for each image that could be used, in the order of the files.

    Args:
        model: Its name.
        items: The predictions.
        skipped: Files that could not be used, with the reason.
        notes: What a user should know about the names.
    """

    KIND: ClassVar[str] = "predictions"

    model: str
    items: tuple[Prediction, ...]
    skipped: tuple[tuple[str, str], ...] = ()
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> Prediction:  # type: ignore[override]
        return self.items[index]

    def __iter__(self) -> Iterator[Prediction]:
        return iter(self.items)

    def headline(self) -> dict[str, Any]:
        """Model, images, and the best class of the first ones."""
        best = {item.image: item.names[0] for item in self.items[:3]}
        return {"model": self.model, "images": len(self), "skipped": len(self.skipped), "best": best}

    def table(self) -> pd.DataFrame:
        """One row for each image and rank: image, rank (from 1), class_index, class, score."""
        rows = [
            (item.image, rank + 1, item.indices[rank], item.names[rank], item.scores[rank])
            for item in self.items
            for rank in range(len(item.indices))
        ]
        return pd.DataFrame(rows, columns=["image", "rank", "class_index", "class", "score"])


def predict(
    model: LoadedModel | nn.Module | str,
    images: Images,
    *,
    top: int = 5,
    size: int | None = None,
    batch_size: int = 8,
    num_workers: int = 0,
    identity: NetworkIdentity | None = None,
    partial: str | PathLike[str] | None = None,
    keep_partial: bool = False,
    progress: Progress | None = None,
) -> Predictions:
    """Classify images.

    Args:
        model: What `load_model` returns or takes, or a module, fed with ImageNet's mean and standard deviation.
        images: Files, folders, patterns, pictures, pixels or normalised tensors; see `analysis.images.inputs.Images`.
        top: Classes for each image; fewer if the network has fewer.
        size: Side of the input in pixels, with RepLKNet's resizing; by default the model's own preparation.
        batch_size: Images in one forward pass.
        num_workers: Processes that read images; 0 reads them in this one.
        identity: What `identify` says of the module, where that is known already.
        partial: A file that keeps the state of an unfinished run; the same call goes on from there.
        keep_partial: Keep that file at the end, for a caller that has more to do before all is safe.
        progress: Called with the number of images done and of all, at the start and after each batch.

    Returns:
        A sequence with one `Prediction` for each image, which has `names` and `scores`; `table()` gives a pandas
        DataFrame, and `skipped` the files that are no images.

    Raises:
        FileNotFoundError: If a source does not exist.
        ValueError: If a value is out of range, the model is no classifier, or no file is a usable image.

    Example:
        >>> import tempfile
        >>> from analysis import SyntheticImages, save_stimuli
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = save_stimuli(SyntheticImages(kind="congruent", num_images=9), folder)
        ...     predictions = predict("replknet_nano_k31", f"{folder}/ring")
        >>> predictions[0].names[0]
        'ring'
    """
    check_number("top", top, COUNTS)
    loaded, inputs = inputs_for(model, images, size)

    def rows(batch: Tensor) -> list[Row | str]:
        logits = classify(loaded, batch)
        scores, best = logits.cpu().double().softmax(1).topk(min(top, logits.shape[1]))
        return split_decided(logits, indices=best, scores=scores, outputs=best.new_full((len(best),), logits.shape[1]))

    measured = measure_images(
        loaded,
        inputs,
        rows,
        [top],
        batch_size=batch_size,
        num_workers=num_workers,
        identity=identity,
        partial=partial,
        keep_partial=keep_partial,
        progress=progress,
    )
    names = class_names(loaded, int(measured.rows["outputs"][0]))
    items = [
        Prediction(
            image=inputs.names[number],
            indices=tuple(best.tolist()),
            names=tuple(names[output] for output in best.tolist()),
            scores=tuple(scores.tolist()),
        )
        for number, best, scores in zip(measured.used, measured.rows["indices"], measured.rows["scores"], strict=True)
    ]
    notes = class_notes(loaded, len(names))
    return Predictions(model=loaded.name, items=tuple(items), skipped=tuple(measured.skipped), notes=notes)


def class_names(loaded: LoadedModel, num_outputs: int) -> tuple[str, ...]:
    """Names of a classifier's outputs: its own, those of ImageNet-1K for 1000 of them, else "class 0" and so on."""
    if loaded.classes:
        if len(loaded.classes) != num_outputs:
            raise ValueError(f"model: {loaded.name} names {len(loaded.classes)} classes and returns {num_outputs}")
        return loaded.classes
    if num_outputs == NUM_IMAGENET_CLASSES:
        return tuple(name for _, name in imagenet_classes())
    return numbered(num_outputs)


def class_notes(loaded: LoadedModel, num_outputs: int) -> tuple[str, ...]:
    """What to tell about `class_names` that are not known to be the classifier's own."""
    if loaded.classes or loaded.published:
        return ()
    if num_outputs == NUM_IMAGENET_CLASSES:
        return (f"{loaded.name} names no classes: its {num_outputs} outputs are taken for those of ImageNet-1K",)
    return (f"{loaded.name} names no classes: its {num_outputs} outputs are told by their number",)
