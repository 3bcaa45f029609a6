"""Networks before their training: one definition for all, whatever library they come from.

An untrained network has its own initialisation, that of the code that makes it, and batch norms that know the
statistics of its own maps. With those that a new batch norm has, mean 0 and variance 1, the branches of a new network
are far weaker than its shortcuts, and its receptive field shows the stem alone.
"""

import copy
import re
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from analysis.images.files import ImageError
from analysis.images.inputs import Images
from analysis.models.batches import inputs_for
from analysis.models.layers import evaluation_mode, run
from analysis.models.loaded import OWN, LoadedModel, place_of
from analysis.runs.texts import few
from replknet.networks.folding import copy_of, is_reparametrized

UNTRAINED = ", untrained"
"""What the name of an untrained copy ends in."""
_SMALL = 0.1
_SCALE_NAME = re.compile(r"gamma|layer_?scale|skipinit_gain|res(idual)?_?scale|\b(lambda_?\d|ls\d*|alpha)\b")
_BATCH_SIZE = 8


def untrained_copy(loaded: LoadedModel, *, seed: int = 0) -> LoadedModel:
    """The same architecture with its own initialisation, made anew by the code that made the network.

    Where that code is not known (a module or a function of the user's), every layer is initialised by its own
    `reset_parameters`. Batch norms are not calibrated yet, see `calibrated`.

    Args:
        loaded: The network.
        seed: Of the new weights.

    Returns:
        A copy; its notes name the parameters that no layer could reset and that keep their trained values.

    Raises:
        ValueError: If nothing could be initialised: a compiled program.
    """
    torch.manual_seed(seed)
    place = place_of(loaded.module)
    notes = loaded.notes
    if loaded.fresh is not None:
        module = loaded.fresh().eval().to(place.device, place.dtype)
        how = f"{OWN}, seed {seed}"
    else:
        made = [name for name, layer in loaded.module.named_modules() if is_reparametrized(layer)]
        if made:
            raise ValueError(
                f"model: {loaded.name} has weights that are made from others in every call ({', '.join(made[:3])}: "
                "pruned, weight-normed or parametrized); no layer can initialise those anew"
            )
        # The CPU's random numbers are the same on every machine.
        module = copy.deepcopy(loaded.module).to(place.device if place.is_meta else "cpu")
        kept = _reset(module)
        module.to(place.device)
        if set(kept).issuperset(name for name, _ in module.named_parameters()):
            raise ValueError(f"model: {loaded.name} has no layer that can be initialised anew; name it by its library")
        how = f"each layer's default initialisation in PyTorch, seed {seed}"
        if kept:
            notes = (*notes, f"{loaded.name}: not reset in the untrained copy: {', '.join(kept[:5])}")
    return replace(loaded, name=f"{loaded.name}{UNTRAINED}", module=module, published={}, initial=how, notes=notes)


def _reset(module: nn.Module) -> list[str]:
    """Initialise every layer; returns the names of the parameters and statistics that belong to none that can."""
    kept: list[str] = []
    for name, layer in module.named_modules():
        reset = getattr(layer, "reset_parameters", None)
        if callable(reset):
            reset()
        else:
            own = [*layer.named_parameters(recurse=False), *layer.named_buffers(recurse=False)]
            saved = layer.state_dict().keys()
            kept.extend(
                f"{name}.{key}" if name else key for key, value in own if key in saved and value.is_floating_point()
            )
    return kept


def calibrated(
    loaded: LoadedModel,
    images: Images,
    *,
    size: int | None = None,
    num_images: int = 32,
    unit_scales: bool = False,
) -> LoadedModel:
    """A copy of an untrained network whose batch norms know the statistics of its maps of some images.

    Args:
        loaded: The network.
        images: See `analysis.images.inputs.Images`.
        size: Side in pixels to which files and pictures are prepared; by default the model's own way.
        num_images: How many of them are used, evenly spread.
        unit_scales: Set the norms and layer scales that let less than a tenth of a branch through to one.

    Returns:
        The copy; its notes name those norms and scales, with the fraction of the branch that they let through.

    Raises:
        ValueError: If no image can be used.
        ForwardError: If the model cannot take such images.
    """
    loaded, inputs = inputs_for(loaded, images, size)
    module = copy_of(loaded.module)
    scales = small_scales(module)
    notes = loaded.notes
    for fraction in sorted(set(scales.values())):
        names = [name for name, value in scales.items() if value == fraction]
        more = ", ..." if len(names) > 3 else ""
        what = f"{len(names)} norms or layer scales ({', '.join(names[:3])}{more})"
        effect = f"begin at {fraction:.2g}: their branches let {100 * fraction:.2g} % through"
        outcome = "they were set to one" if unit_scales else "unit_scales=True sets them to one"
        notes = (*notes, f"{loaded.name}: {what} {effect}; {outcome}")
    if unit_scales:
        set_to_one(module, scales)
    frozen = [name for name, layer in module.named_modules() if _is_frozen(layer)]
    if frozen:
        more = ", ..." if len(frozen) > 3 else ""
        notes = (*notes, f"{loaded.name}: {', '.join(frozen[:3])}{more} keep their statistics: frozen norms")
    used = _calibrate_on(module, inputs, num_images, loaded.name)
    how = loaded.initial
    if scales and unit_scales:
        how += ", small scales set to one"
    elif scales:
        ends = dict.fromkeys(f"{100 * fraction:.2g}" for fraction in (min(scales.values()), max(scales.values())))
        how += f", {len(scales)} norms or layer scales let {' to '.join(ends)} % of their branches through"
    if used:
        how += f", batch norms calibrated on {used} images"
    return replace(loaded, module=module, initial=how, notes=notes)


def _calibrate_on(module: nn.Module, inputs: Any, num_images: int, name: str) -> int:
    """Returns the number of images used, 0 where there is nothing to calibrate."""
    if not _norms(module):
        return 0
    place, count = place_of(module), min(num_images, len(inputs))
    loaded: list[Tensor] = []
    for index in dict.fromkeys(round(i * (len(inputs) - 1) / max(count - 1, 1)) for i in range(count)):
        try:
            loaded.append(inputs.load(index).to(place.device, place.dtype))
        except ImageError:  # whatever measures it will name it
            continue
    if not loaded:
        raise ValueError(f"images: none of {len(inputs)} is a usable image")
    batches = [torch.stack(loaded[first : first + _BATCH_SIZE]) for first in range(0, len(loaded), _BATCH_SIZE)]
    calibrate(module, batches, name)
    return len(loaded)


def calibrate(module: nn.Module, batches: Iterable[Tensor], name: str = "") -> None:
    """Give batch norms the mean statistics of these batches; everything else is in evaluation mode meanwhile.

    Args:
        module: Changed in its batch norms alone.
        batches: Inputs of shape (N, C, H, W).
        name: Of the model, for messages.
    """
    norms = _norms(module)
    momenta = [norm.momentum for norm in norms]
    with evaluation_mode(module), torch.no_grad():
        try:
            for norm in norms:
                norm.reset_running_stats()
                norm.train()
            for number, batch in enumerate(batches, 1):
                for norm in norms:
                    norm.momentum = 1 / number  # the mean over all batches
                run(module, batch, name)
        finally:
            for norm, momentum in zip(norms, momenta, strict=True):
                norm.momentum = momentum


def _norms(module: nn.Module) -> list[_NormBase]:
    """Those whose statistics are of the data: batch norms, and instance norms that keep them."""
    return [layer for layer in module.modules() if isinstance(layer, _NormBase) and layer.track_running_stats]


def _is_frozen(layer: nn.Module) -> bool:
    """Whether it is a norm by statistics that no data change."""
    names = {name for name, _ in layer.named_buffers(recurse=False)}
    return {"running_mean", "running_var"} <= names and not isinstance(layer, _NormBase)


def small_scales(module: nn.Module) -> dict[str, float]:
    """Norm weights and layer scales that begin below a tenth: the fraction that they let through.

    Found by what they are: one value for each channel, the same for all, in a norm's `weight` or under a name such as
    `gamma`, `layer_scale`, `lambda_1` or `skipinit_gain`.
    """
    found = {}
    for prefix, layer in module.named_modules():
        for name, parameter in layer.named_parameters(recurse=False):
            one_each = parameter.numel() == max(parameter.shape, default=1)
            is_norm = name == "weight" and parameter.ndim == 1
            if one_each and (is_norm or _SCALE_NAME.search(f"{prefix.rpartition('.')[2]}.{name}")):
                values = parameter.detach().flatten()
                if bool((values == values[0]).all()) and abs(float(values[0])) < _SMALL:
                    found[f"{prefix}.{name}" if prefix else name] = round(abs(float(values[0])), 12)
    return found


def signs_of_no_training(loaded: LoadedModel) -> tuple[str, ...]:
    """A note on a network that is said to be trained and has `small_scales`, which a training would have moved.

    A single value is alike in all channels whatever it was trained to.
    """
    found = [name for name in small_scales(loaded.module) if loaded.module.get_parameter(name).numel() > 1]
    if loaded.initial or not found:
        return ()
    return (
        f"{loaded.name}: {len(found)} norms or layer scales ({few(found)}) have one value in all channels, below 0.1, "
        "as before a training: are these the trained weights?",
    )


def set_to_one(module: nn.Module, names: Iterable[str]) -> None:
    """Fill these parameters with ones."""
    with torch.no_grad():
        for name in names:
            module.get_parameter(name).fill_(1.0)
