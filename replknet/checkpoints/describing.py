"""Which architecture a weight file or a set of weights is of."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from replknet.checkpoints.reading import CheckpointError, read_metadata
from replknet.networks import ANY_FAMILY, PRESETS, family_in, family_named, family_of, weight_form
from replknet.networks.family import Configuration

DESCRIPTION = "replknet"
"""Key of a safetensors file's metadata under which it describes its network, in JSON; "config" is the architecture,
"family" its family, a RepLKNet where there is none."""
_MOST_STAGES = 100
"""Far more than there can be: each one halves the maps."""
_SLACK = 8
_LONGEST_REASON = 300


def find_config(path: Path, state: Mapping[str, Tensor]) -> Any:
    """The architecture of a file with these official-named weights; None if they are of no family.

    It is the one that the file, of safetensors, names in its metadata, else the one that the shapes say.

    Raises:
        CheckpointError: If the file describes something else than a network that it can hold.
    """
    description = read_metadata(path).get(DESCRIPTION)
    if description is None:
        return infer_config(state)
    try:
        content = json.loads(description)
        config = family_named(content.get("family", "RepLKNet")).config(**content["config"])
        if too_large := _too_large(config, state):
            raise ValueError(too_large)
    except (ArithmeticError, AttributeError, KeyError, RecursionError, TypeError, ValueError) as error:
        reason = str(error).partition("\n")[0][:_LONGEST_REASON]
        raise CheckpointError(f"checkpoint={str(path)!r}: its description does not fit ({reason})") from error
    return config


def _too_large(config: Configuration, state: Mapping[str, Tensor]) -> str:
    """Why weights cannot be those of a network, whose size alone may take all time and memory; empty if they can.

    Weights of which some are missing still can, so that these are named.
    """
    tensors, numbers = config.least_size()
    stages = len(config.layers)
    if tensors > len(state) or stages > _MOST_STAGES:
        return f"{sum(config.layers)} blocks in {stages} stages, and {len(state)} tensors"
    held = sum(value.numel() for value in state.values())
    return f"at least {numbers:.1e} numbers, and the file has {held:.1e}" if numbers > _SLACK * held else ""


def describe(state: Mapping[str, Tensor]) -> str:
    """One sentence on the architecture that official-named weights look like."""
    config = infer_config(state)
    if config is None:
        return f"The file does not look like {ANY_FAMILY}; its first keys are {', '.join(list(state)[:3])}"
    branches = list(config.kernels(merged=weight_form(state) != "training").items())[1:]
    details = [f"kernel_sizes={config.kernel_sizes}", *(f"{name} {value}" for name, value in branches)]
    details.append(f"num_classes={config.num_classes}")
    if config.out_indices is not None:
        details.append(f"a backbone without a final norm: out_indices={config.out_indices}")
    return f"The file looks like {architecture_of(config)} ({', '.join(details)})"


def architecture_of(config: Configuration) -> str:
    """The name of an architecture in `PRESETS`, whatever its head, or a description."""
    names = [name for name, preset in PRESETS.items() if config.is_like(preset)]
    kind = f"a {family_of(config).name} with layers={config.layers}, channels={config.widths}"
    return names[0] if names else kind


def infer_config(state: Mapping[str, Tensor]) -> Any:
    """The architecture of official-named weights, from their shapes; None if they are of no family.

    The drop-path rate is not in the weights and stays 0, nor is what a merge has removed.
    """
    config = family_in(state).network.infer_config(state)
    return None if config is None or _too_large(config, state) else config
