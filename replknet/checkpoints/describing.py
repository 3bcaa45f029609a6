"""Which architecture a weight file or a set of weights is of."""

import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from replknet.checkpoints.naming import MOST_STAGES, stage_of, weight_form
from replknet.checkpoints.reading import CheckpointError, read_metadata
from replknet.networks import PRESETS
from replknet.networks.replknet import RepLKNetConfig

DESCRIPTION = "replknet"
"""Key of a safetensors file's metadata under which it describes its network, in JSON; "config" is the architecture."""
_TENSORS_OF_A_PAIR = 8
"""At least; with every batch norm folded it has ten, weight and bias of five convolutions."""
_SLACK = 8
_LONGEST_REASON = 300


def find_config(path: Path, state: Mapping[str, Tensor]) -> RepLKNetConfig | None:
    """The architecture of a file with these official-named weights; None if they are not a RepLKNet's.

    It is the one that the file, of safetensors, names in its metadata, else the one that the shapes say.

    Raises:
        CheckpointError: If the file describes something else than a network that it can hold.
    """
    description = read_metadata(path).get(DESCRIPTION)
    if description is None:
        return infer_config(state)
    try:
        config = RepLKNetConfig(**json.loads(description)["config"])
        if too_large := _too_large(config, state):
            raise ValueError(too_large)
    except (ArithmeticError, KeyError, RecursionError, TypeError, ValueError) as error:
        reason = str(error).partition("\n")[0][:_LONGEST_REASON]
        raise CheckpointError(f"checkpoint={str(path)!r}: its description does not fit ({reason})") from error
    return config


def _too_large(config: RepLKNetConfig, state: Mapping[str, Tensor]) -> str:
    """Why weights cannot be those of a network, whose size alone may take all time and memory; empty if they can.

    Weights of which some are missing still can, so that these are named.
    """
    pairs, stages = sum(config.layers), len(config.layers)
    if _TENSORS_OF_A_PAIR * pairs > len(state) or stages > MOST_STAGES:
        return f"{pairs} pairs of blocks in {stages} stages, and {len(state)} tensors"
    first, last = config.channels[0], config.channels[-1]
    numbers = 9 * config.in_channels * first + last * config.num_classes
    for layers, width, size in zip(config.layers, config.channels, config.kernel_sizes, strict=True):
        large, hidden = int(width * config.dw_ratio), int(width * config.ffn_ratio)
        numbers += layers * (2 * width * (large + hidden) + large * size**2)
    held = sum(value.numel() for value in state.values())
    return f"at least {numbers:.1e} numbers, and the file has {held:.1e}" if numbers > _SLACK * held else ""


def describe(state: Mapping[str, Tensor]) -> str:
    """One sentence on the architecture that official-named weights look like."""
    config = infer_config(state)
    if config is None:
        return f"The file does not look like a RepLKNet; its first keys are {', '.join(list(state)[:3])}"
    small = "merged" if weight_form(state) != "training" else str(config.small_kernel)
    outputs = f"num_classes={config.num_classes}"
    if config.out_indices is not None:
        outputs += f", a backbone without a final norm: out_indices={config.out_indices}"
    return (
        f"The file looks like {architecture_of(config)} (kernel_sizes={config.kernel_sizes}, small kernel {small}, "
        f"{outputs})"
    )


def architecture_of(config: RepLKNetConfig) -> str:
    """The name of an architecture in `PRESETS`, whatever its head, or a description."""
    shape = (config.layers, config.channels, config.kernel_sizes)
    names = [name for name, preset in PRESETS.items() if (preset.layers, preset.channels, preset.kernel_sizes) == shape]
    return names[0] if names else f"a RepLKNet with layers={config.layers}, channels={config.channels}"


def infer_config(state: Mapping[str, Tensor]) -> RepLKNetConfig | None:
    """The architecture of official-named weights, from their shapes; None if they are not a RepLKNet's.

    The drop-path rate is not in the weights and stays 0; nor is the small kernel after a merge, which then is None. Nor
    are the stages whose maps a backbone (no final norm and no head) gives: it gets all of them.
    """
    large = {}
    for key, value in state.items():
        if key.endswith(("large_kernel.lkb_origin.conv.weight", "large_kernel.lkb_reparam.weight")):
            large[key.partition(".large_kernel.")[0]] = value
    layers = Counter(map(stage_of, large))
    try:
        num_stages = len(layers)
        firsts = [f"stages.{stage}.blocks.0" for stage in range(num_stages)]
        channels = [state[f"{block}.pw1.conv.weight"].shape[1] for block in firsts]
        smalls = [
            value.shape[-1] for key, value in state.items() if key.endswith("large_kernel.small_conv.conv.weight")
        ]
        norms = [f"stages.{stage}.norm.weight" in state for stage in range(num_stages)]
        config = RepLKNetConfig(
            layers=tuple(layers[stage] for stage in range(num_stages)),
            channels=tuple(channels),
            kernel_sizes=tuple(large[block].shape[-1] for block in firsts),
            small_kernel=smalls[0] if smalls else None,
            dw_ratio=large[firsts[0]].shape[0] / channels[0],
            ffn_ratio=state["stages.0.blocks.1.pw1.conv.weight"].shape[0] / channels[0],
            in_channels=state["stem.0.conv.weight"].shape[1],
            num_classes=state["head.weight"].shape[0] if "head.weight" in state else 0,
            out_indices=None if {"norm.weight", "head.weight"} & state.keys() else tuple(range(num_stages)),
            norm_intermediate_features=all(norms),
        )
    except (ArithmeticError, KeyError, ValueError, IndexError):
        return None
    return None if _too_large(config, state) else config
