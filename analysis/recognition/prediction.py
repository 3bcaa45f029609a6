"""What a classifier sees in image files: class names and scores."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from os import PathLike

import pandas as pd
import torch
from torch import Tensor, nn

from analysis.images.files import find_images
from analysis.images.imagenet import NUM_IMAGENET_CLASSES, imagenet_classes
from analysis.models.layers import evaluation_mode
from analysis.models.loaded import LoadedModel
from analysis.models.loading import as_loaded
from analysis.recognition.batches import batches


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


@dataclass(frozen=True, kw_only=True)
class Predictions(Sequence[Prediction]):
    """One `Prediction` for each image that could be used, in the order of the files.

    Args:
        model: Its name.
        items: The predictions.
        skipped: Files that could not be used, with the reason.
    """

    model: str
    items: tuple[Prediction, ...]
    skipped: tuple[tuple[str, str], ...] = ()

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> Prediction:  # type: ignore[override]
        return self.items[index]

    def __iter__(self) -> Iterator[Prediction]:
        return iter(self.items)

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
    images: str | PathLike[str] | Sequence[str | PathLike[str]],
    *,
    top: int = 5,
    size: int | None = None,
    batch_size: int = 8,
    num_workers: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> Predictions:
    """Classify image files.

    Args:
        model: What `load_model` returns or takes, or a module, fed with ImageNet's mean and standard deviation.
        images: Files, folders and patterns; see `find_images`.
        top: Classes for each image; fewer if the network has fewer.
        size: Side of the input in pixels, with RepLKNet's resizing; by default the model's own preparation.
        batch_size: Images in one forward pass.
        num_workers: Processes that read images; 0 reads them in this one.
        progress: Called with the number of images done and of all.

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
    if top < 1:
        raise ValueError(f"top={top}: expected at least 1")
    loaded = as_loaded(model)
    files = find_images(images)
    items: list[Prediction] = []
    skipped: list[tuple[str, str]] = []
    names: tuple[str, ...] = ()
    module, transform = loaded.module, loaded.preparation(size)
    with evaluation_mode(module), torch.no_grad():
        for batch in batches(module, files, transform, batch_size=batch_size, num_workers=num_workers):
            skipped += [(str(files[index]), reason) for index, reason in batch.skipped]
            if batch.images is not None:
                logits = classify(loaded, batch.images)
                names = names or class_names(loaded, logits.shape[1])
                scores, best = logits.double().softmax(1).topk(min(top, logits.shape[1]))
                items += [
                    Prediction(
                        image=str(files[index]),
                        indices=tuple(own.tolist()),
                        names=tuple(names[output] for output in own.tolist()),
                        scores=tuple(score.tolist()),
                    )
                    for index, own, score in zip(batch.indices, best, scores, strict=True)
                ]
            if progress is not None:
                progress(len(items) + len(skipped), len(files))
    if not items:
        raise ValueError(f"images: none of {len(files)} files is a usable image; {skipped[0][0]}: {skipped[0][1]}")
    return Predictions(model=loaded.name, items=tuple(items), skipped=tuple(skipped))


def classify(loaded: LoadedModel, images: Tensor) -> Tensor:
    """Logits, shape (N, classes).

    Raises:
        ValueError: If the model returns something else, or cannot take images of this shape.
    """
    try:
        logits = loaded.module(images)
    except RuntimeError as error:
        reason = str(error).strip().partition("\n")[0]
        raise ValueError(
            f"model: {loaded.name} cannot take images of shape {tuple(images.shape)} ({reason})"
        ) from error
    if not isinstance(logits, Tensor) or logits.ndim != 2 or len(logits) != len(images):
        what = f"shape {tuple(logits.shape)}" if isinstance(logits, Tensor) else type(logits).__name__
        raise ValueError(f"model: {loaded.name} returns {what}; expected one row of class scores for each image")
    return logits


def class_names(loaded: LoadedModel, num_outputs: int) -> tuple[str, ...]:
    """Names of a classifier's outputs: its own, those of ImageNet-1K for 1000 of them, else "class 0" and so on."""
    if loaded.classes:
        if len(loaded.classes) != num_outputs:
            raise ValueError(f"model: {loaded.name} names {len(loaded.classes)} classes and returns {num_outputs}")
        return loaded.classes
    if num_outputs == NUM_IMAGENET_CLASSES:
        return tuple(name for _, name in imagenet_classes())
    return tuple(f"class {index}" for index in range(num_outputs))
