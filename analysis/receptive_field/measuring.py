"""The effective receptive field: how much each input pixel moves one unit of a feature map."""

from dataclasses import asdict
from os import PathLike
from typing import Literal

import numpy as np
from torch import Tensor, nn

from analysis.images.inputs import Images, Inputs
from analysis.images.sets import ImageSet
from analysis.models.batches import inputs_for, run_batches
from analysis.models.layouts import LAST, find_feature_map
from analysis.models.loaded import LoadedModel, place_of
from analysis.receptive_field.gradients import (
    Batching,
    DependenceError,
    Unit,
    choose_batching,
    gradient_maps,
)
from analysis.receptive_field.measures import moments_about, ring_sums
from analysis.receptive_field.options import PROTOCOLS, ErfOptions, GradientRule, OutputRule, Protocol
from analysis.receptive_field.result import ErfResult
from analysis.receptive_field.theoretical import TheoreticalReceptiveField, centred_unit, field_of, unit_centers
from analysis.runs.identity import NetworkIdentity, describe_environment, identify
from analysis.runs.resuming import Measured, Progress, Row, hash_settings
from analysis.runs.settings import BATCHES, WORKERS, check_number


def effective_receptive_field(
    model: LoadedModel | nn.Module | str,
    images: Images,
    *,
    protocol: Protocol = "standard",
    layer: str | None = None,
    unit: Literal["center", "feature-center"] | tuple[int, int] | None = None,
    output_rule: OutputRule | None = None,
    gradient_rule: GradientRule | None = None,
    sum_colors: Literal["before", "after"] | None = None,
    square_center: Literal["unit", "image"] | None = None,
    grid: tuple[int, int] | None = None,
    prefix_tokens: int | None = None,
    size: int | None = None,
    name: str | None = None,
    identity: NetworkIdentity | None = None,
    batch_size: int | None = None,
    num_workers: int = 0,
    partial: str | PathLike[str] | None = None,
    progress: Progress | None = None,
) -> ErfResult:
    """Mean input gradient of one unit of a feature map, summed over its channels.

    Only the gradient with respect to the image is taken. The model is put into evaluation mode meanwhile; its mode and
    its parameters' `requires_grad` are restored, whatever happens.

    Args:
        model: What `load_model` returns or takes, or any module that takes an image batch (1, C, H, W).
        images: See `analysis.images.inputs.Images`. An `ImageSet` gets the mean and standard deviation of a loaded
            model, and keeps its own for a bare module.
        protocol: "standard" (absolute gradient of the unit nearest to the image centre) or "official" (the RepLKNet
            script, exactly).
        layer: Name of a submodule; None for the last feature map.
        unit: Replaces the protocol's choice, as do the next four; see `ErfOptions`. The result then records the
            protocol as "custom".
        output_rule: See `ErfOptions`.
        gradient_rule: See `ErfOptions`.
        sum_colors: See `ErfOptions`.
        square_center: See `ErfOptions`.
        grid: Rows and columns of units, where the layer's output does not show them: tokens of a foreign transformer.
        prefix_tokens: Tokens before those of the patches, likewise.
        size: Side in pixels to which files and pictures are prepared; by default the model's own way. Without effect
            on an `ImageSet` and on tensors.
        name: Recorded as the model's name; by default the loaded one's, or the class name of a module.
        identity: What `identify` says of the module, where that is known already.
        batch_size: Images that go through the network together, without effect but for rounding; by default some eight
            of 224 pixels on a CPU and three times as many elsewhere, of larger images fewer. A network whose result for
            an image depends on the others in its batch gets one at a time, which the result notes.
        num_workers: Processes that prepare images; 0 prepares them in this one.
        partial: A file that keeps the state of an unfinished measurement. A later call with the same model, images and
            options continues from it; it is removed at the end.
        progress: Called with the number of images done and of all, at the start and after each image.

    Returns:
        The raw mean map with one contribution curve per image.

    Raises:
        ValueError: If an option is out of range, or no image gives a finite gradient.
        LayerError: If there is no such layer or it has no spatial output.
        ForwardError: If the model cannot take such images, or lets no gradient through.

    Example:
        >>> import torch
        >>> network = nn.Conv2d(3, 1, 3, padding=1, bias=False)
        >>> _ = nn.init.ones_(network.weight)
        >>> result = effective_receptive_field(network, torch.rand(2, 3, 9, 9))
        >>> result.mean_map[4].tolist()  # a 3x3 box round the centre, three colours summed
        [0.0, 0.0, 0.0, 3.0, 3.0, 3.0, 0.0, 0.0, 0.0]
        >>> round(81 * result.area_ratio(0.99), 6)  # 99 % of its nine pixels
        8.91

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
    if batch_size is not None:
        check_number("batch_size", batch_size, BATCHES)
    check_number("num_workers", num_workers, WORKERS)
    loaded, inputs = inputs_for(model, images, size)
    module = loaded.module
    first = inputs.first()
    source = inputs.items if isinstance(inputs.items, ImageSet) else _described(inputs, loaded)
    found = find_feature_map(
        module,
        source.size,
        layer,
        grid=grid,
        prefix_tokens=prefix_tokens,
        in_channels=first.shape[0],
        name=loaded.name,
    )
    field = field_of(found)
    position, center = _place_unit(options, field, source.size)
    identity = identity or identify(module)
    settings = [
        identity.weights + identity.code,
        layer,
        asdict(options),
        source.hashes,
        source.mean,
        source.std,
        source.size,
        found.layer,
        found.layout,
        found.prefix_tokens,
        found.grid,
    ]
    place = place_of(module)

    unit_found = Unit(loaded=loaded, found=found, position=position)
    batching = choose_batching(unit_found, first.to(place.device, place.dtype), batch_size)

    def measured_by(batching: Batching) -> Measured:
        is_checked = batching.size == 1

        def rows(batch: Tensor) -> list[Row | str]:
            nonlocal is_checked
            maps = gradient_maps(unit_found, batch, options, batching, check=not is_checked and len(batch) > 1)
            is_checked |= len(batch) > 1
            return [
                {"maps": values, "rings": ring_sums(values, center), "moments": moments_about(values, center)}
                if np.isfinite(values).all()
                else "the gradient is not finite"
                for values in maps
            ]

        # All processes add up the maps in the order of the images, as one process does.
        return run_batches(
            loaded,
            inputs,
            rows,
            batch_size=batching.size,
            num_workers=num_workers,
            summed=("maps",),
            by_item=True,
            fingerprint=hash_settings([*settings, batching.size]),
            partial=partial,
            progress=progress,
        )

    try:
        measured = measured_by(batching)
    except DependenceError as error:
        batching = Batching(size=1, note=f"one image at a time: {error}")
        measured = measured_by(batching)
    if not measured.used:
        raise ValueError(f"images: none of {len(inputs)} gave a finite gradient; {': '.join(measured.skipped[0])}")
    return ErfResult(
        model=name or loaded.name,
        layer=layer or LAST,
        mean_map=measured.sums["maps"] / len(measured.used),
        ring_sums=measured.stacked("rings"),
        moments=measured.stacked("moments"),
        unit=position,
        grid=field.grid,
        center=center,
        theoretical=field.size,
        theoretical_note=field.reason,
        protocol="custom" if options != PROTOCOLS[protocol] else protocol,
        options=options,
        images=measured.of_used(source.names),
        image_hashes=measured.of_used(source.hashes),
        image_source=source.source,
        skipped=(*source.skipped, *measured.skipped),
        seed=source.seed if source is inputs.items else None,
        mean=source.mean,
        std=source.std,
        weights_hash=identity.weights,
        environment=describe_environment(place),
        initial=loaded.initial,
        batch_size=batching.size,
        batch_note=batching.note,
    )


def _described(inputs: Inputs, loaded: LoadedModel) -> ImageSet:
    """What is recorded of images that came in another way."""
    height, width = inputs.first().shape[-2:]
    prepared = inputs.transform is not None
    return ImageSet(
        source="prepared for the model" if prepared else "tensors",
        names=inputs.names,
        hashes=inputs.hashes(),
        size=(height, width),
        seed=0,
        mean=loaded.mean if prepared else (),
        std=loaded.std if prepared else (),
    )


def _place_unit(
    options: ErfOptions, field: TheoreticalReceptiveField, size: tuple[int, int]
) -> tuple[tuple[int, int], tuple[float, float]]:
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
