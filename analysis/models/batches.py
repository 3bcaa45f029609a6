"""Images through a network, in batches, resumably."""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from os import PathLike
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from analysis.images.files import ImageError
from analysis.images.inputs import Images, Inputs, as_inputs
from analysis.images.sets import ImageSet
from analysis.models.layers import evaluation_mode, missing_head, run
from analysis.models.loaded import LoadedModel, place_of
from analysis.models.loading import as_loaded
from analysis.runs.identity import NetworkIdentity, identify
from analysis.runs.processes import num_processes
from analysis.runs.resuming import Measured, Progress, Row, hash_settings, measure
from analysis.runs.settings import BATCHES, WORKERS, check_number

_Item = tuple[int, Tensor | None, str]
_WITHOUT_CLASSES = "extract_features (replknet features) keeps what such a network returns"


@dataclass(frozen=True)
class Batch:
    """Numbers of some images, those that could be used with their input, and the reasons for the others."""

    used: tuple[int, ...]
    images: Tensor | None
    skipped: Mapping[int, str]

    def pin_memory(self) -> Self:
        """As `DataLoader` asks for it: in memory that a GPU reads by itself."""
        if self.images is None or self.images.device.type != "cpu":
            return self
        return replace(self, images=self.images.pin_memory())

    def to(self, place: Tensor) -> Self:
        """On the device and in the dtype of another tensor."""
        if self.images is None:
            return self
        moved = self.images.to(place.device, non_blocking=place.device.type == "cuda")
        return replace(self, images=moved.to(place.dtype))


class _Prepared(Dataset[_Item]):
    def __init__(self, inputs: Inputs) -> None:
        self._inputs = inputs

    def __len__(self) -> int:
        return len(self._inputs)

    def __getitem__(self, index: int) -> _Item:
        try:
            return index, self._inputs.load(index), ""
        except ImageError as error:
            return index, None, str(error)


def _collate(items: Sequence[_Item]) -> Batch:
    used = [(index, image) for index, image, _ in items if image is not None]
    shapes = sorted({tuple(image.shape) for _, image in used})
    if len(shapes) > 1:
        raise ValueError(
            f"images: they have different sizes; pass input_size, or size (prepared, their shapes are {shapes})"
        )
    return Batch(
        used=tuple(index for index, _ in used),
        images=torch.stack([image for _, image in used]) if used else None,
        skipped={index: reason for index, image, reason in items if image is None},
    )


def prepared_batches(
    inputs: Inputs, numbers: Sequence[Sequence[int]], place: Tensor, *, num_workers: int = 0
) -> Iterator[Batch]:
    """Batches of these images, on the device and in the dtype of `place`.

    For a GPU each is prepared, and on its way, while the one before it is computed.
    """
    on_gpu = place.device.type == "cuda"
    loader = DataLoader(
        _Prepared(inputs),
        batch_sampler=numbers,  # type: ignore[arg-type]
        num_workers=num_workers,
        collate_fn=_collate,
        pin_memory=on_gpu,
    )
    waiting: list[Batch] = []
    try:
        for batch in loader:
            waiting.append(batch.to(place))
            if len(waiting) > on_gpu:
                yield waiting.pop(0)
    except Exception:
        yield from waiting  # what comes before the fault counts
        raise
    yield from waiting


def inputs_for(model: LoadedModel | nn.Module | str, images: Images, size: int | None) -> tuple[LoadedModel, Inputs]:
    """A model and images, each as a user gives them, prepared for each other.

    Args:
        model: What `load_model` returns or takes, or a module.
        images: An `ImageSet` gets mean and standard deviation of a loaded model, and keeps its own for a bare module.
        size: Side in pixels to which files and pictures are prepared; None for the model's own way.
    """
    loaded = as_loaded(model)
    if isinstance(images, ImageSet) and not isinstance(model, nn.Module):
        images = images.normalized_by(loaded.mean, loaded.std)
    return loaded, as_inputs(images, loaded.preparation(size))


def run_batches(
    loaded: LoadedModel,
    inputs: Inputs,
    rows: Callable[[Tensor], Sequence[Row | str]],
    *,
    batch_size: int,
    num_workers: int = 0,
    summed: Collection[str] = (),
    by_item: bool = False,
    fingerprint: str = "",
    partial: str | PathLike[str] | None = None,
    keep_partial: bool = False,
    progress: Progress | None = None,
) -> Measured:
    """Measure every image by a network in evaluation mode, without gradients of its parameters.

    Args:
        loaded: The network.
        inputs: The images.
        rows: From a batch, on the device and in the dtype of the network, to what is measured on each image, or why
            it cannot be.
        batch_size: Images in one batch.
        num_workers: Processes that prepare images; 0 prepares them in this one.
        summed: See `measure`, as the next three.
        by_item: Call `progress` after each image.
        fingerprint: Of all that the rows depend on.
        partial: The file of an unfinished measurement.
        keep_partial: See `measure`.
        progress: Called with the number of images done and of all, at the start and after each batch.

    Raises:
        ValueError: If a value is out of range, or the images of a batch differ in size.
    """
    check_number("num_workers", num_workers, WORKERS)
    check_number("batch_size", batch_size, BATCHES)
    place = place_of(loaded.module)
    batches: Iterator[Batch] | None = None

    def work(indices: range) -> Mapping[int, Row | str]:
        nonlocal batches
        if batches is None:  # from where the measurement goes on, the turns of this process
            firsts = range(indices.start, len(inputs), num_processes() * batch_size)
            own = [list(range(first, min(first + batch_size, len(inputs)))) for first in firsts]
            batches = prepared_batches(inputs, own, place, num_workers=num_workers)
        batch = next(batches)
        found: dict[int, Row | str] = dict(batch.skipped)
        if batch.images is not None:
            found.update(zip(batch.used, rows(batch.images), strict=True))
        return found

    with evaluation_mode(loaded.module), torch.no_grad():
        return measure(
            inputs.names,
            work,
            batch_size=batch_size,
            summed=summed,
            by_item=by_item,
            fingerprint=fingerprint,
            partial=partial,
            keep_partial=keep_partial,
            progress=progress,
        )


def measure_images(
    loaded: LoadedModel,
    inputs: Inputs,
    rows: Callable[[Tensor], Sequence[Row | str]],
    settings: Sequence[Any],
    *,
    identity: NetworkIdentity | None,
    partial: str | PathLike[str] | None,
    **options: Any,
) -> Measured:
    """`run_batches` of images that a user gives, of which at least one must be usable.

    Args:
        loaded: The network.
        inputs: The images.
        rows: See `run_batches`.
        settings: What the rows depend on beside the network and the images.
        identity: Of the network, where it is known already.
        partial: The file of an unfinished measurement.
        **options: Others of `run_batches`.

    Raises:
        ValueError: As `run_batches`, and if no image can be used.
    """
    inputs.first()  # refuses what is no image before anything is written
    fingerprint = ""
    if partial is not None:
        identity = identity or identify(loaded.module)
        fingerprint = hash_settings(
            [identity.weights, identity.code, str(inputs.transform), *settings, inputs.hashes()]
        )
    measured = run_batches(loaded, inputs, rows, fingerprint=fingerprint, partial=partial, **options)
    if not measured.used:
        name, reason = measured.skipped[0]
        raise ValueError(f"images: none of {len(inputs)} files is a usable image; {name}: {reason}")
    return measured


def split(**arrays: Tensor) -> list[Row]:
    """Outputs of a batch as rows: in float32 where they were in half precision."""
    plain = {
        name: (values.float() if values.dtype in (torch.bfloat16, torch.float16) else values).cpu().contiguous().numpy()
        for name, values in arrays.items()
    }
    return [dict(zip(plain, row, strict=True)) for row in zip(*plain.values(), strict=True)]


def split_decided(logits: Tensor, /, **arrays: Tensor) -> list[Row | str]:
    """`split` of what follows from logits, and the reason for the images of which these are not finite."""
    finite = logits.isfinite().all(1).tolist()
    rows = split(**arrays)
    return [row if usable else "the logits are not finite" for row, usable in zip(rows, finite, strict=True)]


def classify(loaded: LoadedModel, images: Tensor) -> Tensor:
    """Logits, shape (N, classes).

    Raises:
        ValueError: If the model returns something else, as features (`missing_head`).
        ForwardError: If it cannot take images of this shape.
    """
    logits = run(loaded.module, images, loaded.name)
    if not isinstance(logits, Tensor) or logits.ndim != 2 or logits.shape[1] < 2 or len(logits) != len(images):
        what = f"shape {tuple(logits.shape)}" if isinstance(logits, Tensor) else type(logits).__name__
        raise ValueError(
            f"model: {loaded.name} returns {what}; expected one row of two or more class scores for each image (it is "
            f"no batch of logits); {_WITHOUT_CLASSES}"
        )
    reason = "" if loaded.classes else missing_head(loaded.module, logits.shape[1])
    if reason:
        raise ValueError(
            f"model: {loaded.name} returns {logits.shape[1]} features of each image and no class scores ({reason}); "
            f"expected a classifier; {_WITHOUT_CLASSES}"
        )
    return logits
