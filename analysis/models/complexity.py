"""How large a network is and how much it computes."""

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from analysis.models.layers import evaluation_mode, run
from analysis.models.loaded import LoadedModel, place_of
from analysis.models.loading import as_loaded


def num_parameters(model: LoadedModel | nn.Module | str) -> int:
    """Trainable and fixed parameters together."""
    return sum(parameter.numel() for parameter in as_loaded(model).module.parameters())


def num_macs(model: LoadedModel | nn.Module | str, size: tuple[int, int], *, in_channels: int = 3) -> int:
    """Multiply-accumulates of the convolutions and matrix products for one image.

    Args:
        model: What `load_model` returns or takes, or any module; on any device, "meta" included.
        size: Height and width of the image in pixels.
        in_channels: Channels of the image.
    """
    loaded = as_loaded(model)
    module, place = loaded.module, place_of(loaded.module)
    with evaluation_mode(module), torch.no_grad(), FlopCounterMode(display=False) as counter:
        run(module, torch.zeros(1, in_channels, *size, device=place.device, dtype=place.dtype), loaded.name)
    return int(counter.get_total_flops()) // 2
