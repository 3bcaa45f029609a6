"""How large a network is and how much it computes."""

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from analysis.models.layers import evaluation_mode


def num_parameters(model: nn.Module) -> int:
    """Trainable and fixed parameters together."""
    return sum(parameter.numel() for parameter in model.parameters())


def num_macs(model: nn.Module, size: tuple[int, int], *, in_channels: int = 3) -> int:
    """Multiply-accumulates of the convolutions and matrix products for one image.

    Args:
        model: On any device, "meta" included.
        size: Height and width of the image in pixels.
        in_channels: Channels of the image.
    """
    device = next(model.parameters()).device
    with evaluation_mode(model), torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(torch.zeros(1, in_channels, *size, device=device))
    return int(counter.get_total_flops()) // 2
