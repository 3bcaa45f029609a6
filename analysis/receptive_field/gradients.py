"""Gradients of one unit with respect to images: in batches, where the network takes each image by itself."""

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor
from torch.autograd.graph import allow_mutation_on_saved_tensors

from analysis.models.layers import ForwardError, evaluation_mode, own_code
from analysis.models.layouts import LAST, FeatureMap
from analysis.models.loaded import LoadedModel
from analysis.receptive_field.measures import FloatArray
from analysis.receptive_field.options import GRADIENT_RULES, OUTPUT_RULES, ErfOptions

_PIXELS_ON_CPU, _PIXELS_ELSEWHERE = 8 * 224**2, 24 * 224**2
"""In a batch. Larger ones gain nothing on a CPU, where glibc hands out every map above 32 MiB as fresh pages; on a GPU
a batch takes little more memory than one image of 1024 pixels."""
_LEAK = 1e-5
"""Of a gradient, in other images: what FFTs of several images at once leave there in float32."""

_KINKS = 0.1
"""Of a gradient: what rounding changes where it turns ReLUs on and off, some 4 % in an untrained MobileNetV3."""
_DEPENDS = "the network's result for an image depends on the others in its batch"


class DependenceError(Exception):
    """Images of a batch are not independent, though two were."""


@dataclass(frozen=True, kw_only=True)
class Unit:
    """One unit of a feature map of a network.

    Args:
        loaded: The network.
        found: The feature map.
        position: Row and column.
    """

    loaded: LoadedModel
    found: FeatureMap
    position: tuple[int, int]

    def outputs(self, pixels: Tensor) -> Tensor:
        """Of a network in evaluation mode, shape (N, channels), attached to the autograd graph.

        Raises:
            ForwardError: If the network cannot take such images, or lets no gradient through.
        """
        features = self.found.of(self.loaded.module, pixels, self.loaded.name)
        if not features.requires_grad:
            raise ForwardError(
                f"model: {self.loaded.name} lets no gradient through to layer {self.found.layer or LAST!r}"
            )
        if len(features) != len(pixels):
            raise ForwardError(f"model: {self.loaded.name} returns {len(features)} maps of {len(pixels)} images")
        return features[:, :, self.position[0], self.position[1]]

    def gradient(self, target: Tensor, pixels: Tensor) -> Tensor:
        """Of the sum of `target` with respect to the pixels."""
        with own_code(self.loaded.module, pixels, self.loaded.name):
            return torch.autograd.grad(target.sum(), pixels)[0]


@dataclass(frozen=True, kw_only=True)
class Batching:
    """How images go through a network.

    Args:
        size: Images in one batch.
        layout: Of a batch in memory.
        guarded: What is written in place behind the unit may be what its gradient needs, so that PyTorch keeps copies,
            at a tenth of the time.
        note: Why there are no batches, where they were wanted.
    """

    size: int
    layout: torch.memory_format = torch.contiguous_format
    guarded: bool = True
    note: str = ""

    def kept(self) -> AbstractContextManager[object]:
        """The context of a forward pass and its gradient."""
        return allow_mutation_on_saved_tensors() if self.guarded else nullcontext()


def gradient_maps(
    unit: Unit, images: Tensor, options: ErfOptions, batching: Batching, *, check: bool = False
) -> FloatArray:
    """Gradient magnitude of a unit with respect to each of some images (N, C, H, W): shape (N, H, W), float64.

    The network must be in evaluation mode.

    Args:
        unit: The unit.
        images: On the network's device.
        options: What is measured.
        batching: How they go through the network.
        check: Compare what the batch gives for its first, middle and last image with what each gives alone: the unit's
            outputs, and of the first the gradient.

    Raises:
        DependenceError: If they differ.
    """
    with torch.enable_grad(), batching.kept():
        pixels = images.detach().clone(memory_format=batching.layout).requires_grad_(True)
        outputs = unit.outputs(pixels)
        rule_of_outputs = OUTPUT_RULES[options.output_rule]
        gradient = unit.gradient(rule_of_outputs(outputs), pixels)
        if check:
            first, *others = sorted({0, len(pixels) // 2, len(pixels) - 1})
            image = pixels[first : first + 1].detach().requires_grad_(True)
            alone = unit.outputs(image)
            _compare(outputs[first], alone[0], _tolerance(alone))
            _compare(gradient[first], unit.gradient(rule_of_outputs(alone), image)[0], _KINKS)
            for other in others:
                _compare(outputs[other], unit.outputs(pixels[other : other + 1])[0], _tolerance(alone))
    values = (gradient.cpu() if gradient.device.type == "mps" else gradient).double()  # MPS has no float64
    rule = GRADIENT_RULES[options.gradient_rule]
    values = rule(values.sum(1)) if options.sum_colors == "before" else rule(values).sum(1)
    maps = np.asarray(values.cpu().numpy(), dtype=np.float64)
    # A network may compute images together all the same, so that what is infinite in one spoils the others.
    for index in np.flatnonzero(~np.isfinite(maps).all((1, 2))) if len(maps) > 1 else ():
        maps[index] = gradient_maps(unit, images[index : index + 1], options, Batching(size=1))[0]
    return maps


def _compare(together: Tensor, alone: Tensor, tolerance: float) -> None:
    if not together.isfinite().all() or not alone.isfinite().all():  # which is measured alone
        return
    if not _norm(together - alone) <= tolerance * _norm(alone):
        raise DependenceError(_DEPENDS)


def choose_batching(unit: Unit, image: Tensor, batch_size: int | None) -> Batching:
    """As many images at a time as the network computes independently of each other.

    The gradient of the sum over a batch is that of each image only if no image depends on another one. That is tried
    out with two, and by the `check` of `gradient_maps` with the first batch: not so with batch norms without running
    statistics, with layers that stay in training mode, or with attention over a batch.

    Args:
        unit: Whose gradient is to be taken.
        image: One of the images, shape (C, H, W).
        batch_size: Images in one batch; None for what is fast at this size.
    """
    on_cpu = image.device.type == "cpu"
    pixels = image.shape[-2] * image.shape[-1]
    wanted = batch_size or max(1, (_PIXELS_ON_CPU if on_cpu else _PIXELS_ELSEWHERE) // pixels)
    if wanted == 1:
        return Batching(size=1)
    if image.dtype in (torch.float16, torch.bfloat16):
        return Batching(size=1, note="one image at a time: rounding in half precision hides whether images are mixed")
    reason = ""
    usual = Batching(size=wanted, guarded=False)
    # Channels last, in which CPUs compute convolutions, is only another order of the same pixels. On a GPU large
    # kernels have no fast way there. Autograd itself refuses what needs guarding.
    for batching in (
        *([replace(usual, layout=torch.channels_last)] if on_cpu else []),
        usual,
        replace(usual, guarded=True),
    ):
        with evaluation_mode(unit.loaded.module), batching.kept():
            reason = _dependence(unit, image, batching.layout)
        if not reason:
            return batching
    return Batching(size=1, note=f"one image at a time: {reason}")


def _dependence(unit: Unit, image: Tensor, layout: torch.memory_format) -> str:
    """How what a network makes of an image depends on one that comes before it in a batch; empty if it does not."""
    image = image.nan_to_num(0.0, 0.0, 0.0).unsqueeze(0)
    generator = torch.Generator().manual_seed(0)
    noise = torch.rand(image.shape, generator=generator).to(image)
    pair = torch.cat([2 * image.flip((-2, -1)) + noise, image]).contiguous(memory_format=layout).requires_grad_(True)
    try:
        outputs = unit.outputs(pair)[1:]
        # The sum of what a layer norm returns would be zero whatever the image.
        weights = torch.randn(outputs.shape, generator=generator).to(outputs)
        others, own = unit.gradient(outputs * weights, pair)
    except ForwardError as error:
        return f"two at once fail ({error})"
    if not own.isfinite().all() or not own.any():
        return "the first image's gradient is zero or not finite, and cannot show whether images are independent"
    return "" if _norm(others) <= min(_LEAK, _tolerance(own)) * _norm(own) else _DEPENDS


def _tolerance(values: Tensor) -> float:
    return float(torch.finfo(values.dtype).eps ** 0.5)


def _norm(values: Tensor) -> float:
    return float(torch.linalg.vector_norm(values.detach().float()))
