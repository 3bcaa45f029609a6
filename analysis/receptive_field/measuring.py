"""The effective receptive field: how much each input pixel moves one unit of a feature map."""

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from os import PathLike
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from analysis.images.files import ImageError
from analysis.images.sets import ImageSet
from analysis.models.layers import LAST, as_nchw, evaluation_mode, feature_map, infer_layout
from analysis.receptive_field.options import (
    GRADIENT_RULES,
    OUTPUT_RULES,
    PROTOCOLS,
    ErfOptions,
    GradientRule,
    OutputRule,
    Protocol,
)
from analysis.receptive_field.result import ErfResult, FloatArray, moments_about, ring_sums
from analysis.receptive_field.theoretical import centred_unit, theoretical_receptive_field, unit_centers
from analysis.runs.identity import describe_environment, hash_code, hash_weights
from analysis.runs.processes import by_first, in_turns, rank
from analysis.runs.resuming import load_partial, store_partial


def effective_receptive_field(
    model: nn.Module,
    images: ImageSet | Tensor | Sequence[Tensor],
    *,
    protocol: Protocol = "standard",
    layer: str | None = None,
    unit: Literal["center", "feature-center"] | tuple[int, int] | None = None,
    output_rule: OutputRule | None = None,
    gradient_rule: GradientRule | None = None,
    sum_colors: Literal["before", "after"] | None = None,
    square_center: Literal["unit", "image"] | None = None,
    name: str | None = None,
    progress: Callable[[int, int], None] | None = None,
    partial: str | PathLike[str] | None = None,
) -> ErfResult:
    """Mean input gradient of one unit of a feature map, summed over its channels.

    Only the gradient with respect to the image is taken. The model is put into evaluation mode meanwhile; its mode and
    its parameters' `requires_grad` are restored, whatever happens.

    Args:
        model: Any module that takes an image batch (1, C, H, W).
        images: An `ImageSet`, or normalised images of shape (N, C, H, W) or a sequence of (C, H, W).
        protocol: "standard" (absolute gradient of the unit nearest to the image centre) or "official" (the RepLKNet
            script, exactly).
        layer: Name of a submodule; None for the last feature map.
        unit: Replaces the protocol's choice, as do the next four; see `ErfOptions`. The result then records the
            protocol as "custom".
        output_rule: See `ErfOptions`.
        gradient_rule: See `ErfOptions`.
        sum_colors: See `ErfOptions`.
        square_center: See `ErfOptions`.
        name: Recorded as the model's name; its class name by default.
        progress: Called with the number of images done and their total after each image.
        partial: A file that keeps the running state after each image. A later call with the same model, images and
            options continues from it; it is removed at the end.

    Returns:
        The raw mean map with one contribution curve per image.

    Raises:
        ValueError: If an option is out of range, or no image gives a finite gradient.
        LayerError: If there is no such layer or it has no spatial output.

    Example:
        >>> network = nn.Conv2d(3, 1, 3, padding=1, bias=False)
        >>> _ = nn.init.ones_(network.weight)
        >>> result = effective_receptive_field(network, torch.rand(2, 3, 9, 9))
        >>> result.mean_map[4].tolist()  # a 3x3 box round the centre, three colours summed
        [0.0, 0.0, 0.0, 3.0, 3.0, 3.0, 0.0, 0.0, 0.0]
        >>> result.area_ratio(0.99) == 9 / 81
        True

    References:
        Luo et al. 2016, arXiv:1701.04128; Ding et al. 2022, arXiv:2203.06717, section 4.1.
    """
    if protocol not in PROTOCOLS:
        raise ValueError(f"protocol={protocol!r}: expected one of {', '.join(PROTOCOLS)}")
    chosen = {
        "unit": unit,
        "output_rule": output_rule,
        "gradient_rule": gradient_rule,
        "sum_colors": sum_colors,
        "square_center": square_center,
    }
    changed = {key: value for key, value in chosen.items() if value is not None}
    options = ErfOptions(**(asdict(PROTOCOLS[protocol]) | changed))
    source = images if isinstance(images, ImageSet) else _as_image_set(images)
    if len(images) == 0:
        raise ValueError("images: expected at least one")
    size = source.size
    in_channels = 3 if isinstance(images, ImageSet) else images[0].shape[0]
    field = theoretical_receptive_field(model, size, layer=layer, in_channels=in_channels)
    position, center = _place_unit(options, field, size)
    weights_hash = hash_weights(model)
    fingerprint = _fingerprint(weights_hash + hash_code(model), layer, asdict(options), source, size)
    state = by_first(lambda: _State.resume(partial, fingerprint)) if partial is not None else _State(fingerprint)
    reference = next(iter(model.parameters()), torch.zeros(()))

    def measure(index: int) -> FloatArray | str:
        """The map of one image, or the reason why there is none."""
        try:
            image = images[index].to(reference.device, reference.dtype)
        except ImageError as error:  # the file was readable when it was chosen
            return str(error)
        gradient = _input_gradient(model, image, layer, position, options, field.grid)
        return gradient if np.isfinite(gradient).all() else "the gradient is not finite"

    # Processes take images in turn; all add up the maps in the order of the images, as one process does.
    for found in in_turns(len(images), measure, start=state.done):
        if isinstance(found, str):
            state.skipped.append((source.names[state.done], found))
        else:
            state.add(found, center, state.done)
        state.done += 1
        if partial is not None and rank() == 0:
            state.store(Path(partial))
        if progress is not None:
            progress(state.done, len(images))
    if not state.used:
        raise ValueError(f"images: none of {len(images)} gave a finite gradient; {state.skipped[0]}")
    result = ErfResult(
        model=name or type(model).__name__,
        layer=layer or LAST,
        mean_map=state.total / len(state.used),
        ring_sums=np.stack(state.rings),
        moments=np.stack(state.moments),
        unit=position,
        grid=field.grid,
        center=center,
        theoretical=field.size,
        theoretical_note=field.reason,
        protocol="custom" if options != PROTOCOLS[protocol] else protocol,
        options=options,
        images=tuple(source.names[index] for index in state.used),
        image_hashes=tuple(source.hashes[index] for index in state.used),
        image_source=source.source,
        skipped=(*source.skipped, *state.skipped),
        seed=source.seed if isinstance(images, ImageSet) else None,
        mean=source.mean,
        std=source.std,
        weights_hash=weights_hash,
        environment=describe_environment(reference),
    )
    if partial is not None:
        by_first(lambda: Path(partial).unlink(missing_ok=True))
    return result


def _input_gradient(
    model: nn.Module,
    image: Tensor,
    layer: str | None,
    unit: tuple[int, int],
    options: ErfOptions,
    grid: tuple[int, int],
) -> FloatArray:
    """Gradient magnitude of the unit with respect to one image of shape (C, H, W): shape (H, W), float64."""
    with evaluation_mode(model):
        pixels = image.detach().clone().unsqueeze(0).requires_grad_(True)
        _, output = feature_map(model, pixels, layer)
        layout, prefix, _ = infer_layout(output, (image.shape[1], image.shape[2]), model)
        features = as_nchw(output, layout, prefix, grid)
        target = OUTPUT_RULES[options.output_rule](features[0, :, unit[0], unit[1]]).sum()
        (gradient,) = torch.autograd.grad(target, pixels)
    values = gradient[0].double()
    rule = GRADIENT_RULES[options.gradient_rule]
    values = rule(values.sum(0)) if options.sum_colors == "before" else rule(values).sum(0)
    return np.asarray(values.cpu().numpy(), dtype=np.float64)


def _place_unit(options: ErfOptions, field: Any, size: tuple[int, int]) -> tuple[tuple[int, int], tuple[float, float]]:
    """The unit, and the centre of its squares rounded to half a pixel."""
    height, width = field.grid
    if options.unit == "center":
        unit, _ = centred_unit(field, size)
    elif options.unit == "feature-center":
        unit = (height // 2, width // 2)
    else:
        unit = (int(options.unit[0]), int(options.unit[1]))
        if len(options.unit) != 2 or not (0 <= unit[0] < height and 0 <= unit[1] < width):
            raise ValueError(f"unit={options.unit}: expected a row below {height} and a column below {width}")
    if options.square_center == "image":
        return unit, (size[0] // 2, size[1] // 2)
    rows, columns = unit_centers(field, size)
    center = [
        min(max(round(2 * value) / 2, 0.0), extent - 1.0)
        for value, extent in zip((rows[unit[0]], columns[unit[1]]), size, strict=True)
    ]
    return unit, (center[0], center[1])


def _as_image_set(images: Tensor | Sequence[Tensor]) -> ImageSet:
    """Names and hashes for images that came as tensors."""
    hashes = [hashlib.sha256(image.detach().cpu().contiguous().numpy().tobytes()).hexdigest() for image in images]
    return ImageSet(
        source="tensors",
        names=tuple(f"image-{index}" for index in range(len(hashes))),
        hashes=tuple(hashes),
        size=(images[0].shape[-2], images[0].shape[-1]) if hashes else (1, 1),
        seed=0,
        mean=(),
        std=(),
    )


def _fingerprint(
    network: str, layer: str | None, options: dict[str, Any], images: ImageSet, size: tuple[int, int]
) -> str:
    settings = [network, layer, options, images.hashes, images.mean, images.std, size]
    return hashlib.sha256(json.dumps(settings).encode()).hexdigest()


class _State:
    """Sums over the images done so far."""

    def __init__(self, fingerprint: str) -> None:
        self.fingerprint = fingerprint
        self.done = 0
        self.used: list[int] = []
        self.skipped: list[tuple[str, str]] = []
        self.total: FloatArray = np.zeros((0, 0))
        self.rings: list[FloatArray] = []
        self.moments: list[FloatArray] = []

    @classmethod
    def resume(cls, path: str | PathLike[str], fingerprint: str) -> "_State":
        """The state in a file; an empty one if there is none, or it belongs to another measurement."""
        state = cls(fingerprint)
        known = load_partial(path, fingerprint)
        if known is not None:
            header, arrays = known
            state.done, state.used = header["done"], header["used"]
            state.skipped = [(name, reason) for name, reason in header["skipped"]]
            state.total = arrays["total"]
            state.rings, state.moments = list(arrays["rings"]), list(arrays["moments"])
        return state

    def add(self, values: FloatArray, center: tuple[float, float], index: int) -> None:
        self.total = self.total + values if self.used else values
        self.rings.append(ring_sums(values, center))
        self.moments.append(moments_about(values, center))
        self.used.append(index)

    def store(self, path: Path) -> None:
        header = {name: getattr(self, name) for name in ("fingerprint", "done", "used", "skipped")}
        store_partial(path, header, {"total": self.total, "rings": self.rings, "moments": self.moments})
