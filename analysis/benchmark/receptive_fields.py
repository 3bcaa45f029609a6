"""Effective receptive fields of everybody's networks, beside the package openerf."""

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from analysis.benchmark.timing import Call, Case, Contender, seed_and_threads
from analysis.images.sets import load_images
from analysis.models.loading import load_model
from analysis.receptive_field.measuring import effective_receptive_field

NETWORKS = {
    "resnet50": ("layer4", "feature-center"),
    "vit_small_patch16_224": ("blocks.11", (6, 6)),
    "convnext_tiny": ("stages", "feature-center"),
}
"""Of timm: the layer of the last feature map, and the unit that openerf takes there. In the transformer it is that
before the norm, whose outputs have a sum of zero without training."""


def receptive_field(library: str, network: str, images: int, threads: int) -> Call:
    """The effective receptive field of a network of timm, untrained, at its own size: image files to a map.

    Args:
        library: "replknet" or "openerf".
        network: Of `NETWORKS`.
        images: How many.
        threads: Threads of the library.
    """
    folder = tempfile.TemporaryDirectory()
    files = _files(Path(folder.name), images)
    seed_and_threads(threads)
    loaded = load_model(f"timm:{network}", pretrained=False)
    layer, unit = NETWORKS[network]
    if library == "openerf":
        import openerf

        def theirs(_kept: object = folder) -> NDArray[Any]:
            found = openerf.compute_erf(
                loaded.module, image_dir=folder.name, target_layer=layer, device="cpu", show_progress=False
            )
            return np.asarray(found.erf_map)

        return theirs

    def ours(_kept: object = folder) -> NDArray[Any]:
        found = effective_receptive_field(
            loaded,
            files,
            layer=layer,
            unit=unit,  # type: ignore[arg-type]
            output_rule="identity",
            gradient_rule="relu",
            sum_colors="before",
        )
        return np.asarray(found.mean_map / found.mean_map.sum())

    return ours


def receptive_field_cases(images: int, threads: int) -> Iterator[Case]:
    """One case for each network; both libraries measure the same map."""
    for network in NETWORKS:
        arguments = {"network": network, "images": images, "threads": threads}
        contenders = [
            Contender(library, library, receptive_field, {**arguments, "library": library})
            for library in ("replknet", "openerf")
        ]
        yield Case({"network": network, "images": images}, contenders)


def _files(folder: Path, count: int) -> list[Path]:
    files = [folder / f"{index:04d}.png" for index in range(count)]
    generated = load_images(size=256, num_images=count)
    for index, file in enumerate(files):
        pixels = (generated.pixels(index).transpose(1, 2, 0) * 255).round().astype(np.uint8)
        Image.fromarray(pixels).save(file)
    return files
