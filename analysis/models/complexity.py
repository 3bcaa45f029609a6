"""How large a network is, how much it computes and how long it takes."""

import time

import numpy as np
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from analysis.images.preparing import normalize
from analysis.models.layers import evaluation_mode, run
from analysis.models.loaded import LoadedModel, place_of
from analysis.models.loading import as_loaded

_NUM_TIMINGS = 9


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


def inference_ms(model: LoadedModel | nn.Module | str, size: int, *, batch_size: int = 1) -> float:
    """Milliseconds for one image: the median of nine batches, after one that warms up.

    Args:
        model: What `load_model` returns or takes, or any module.
        size: Side of the image in pixels.
        batch_size: Images in one forward pass.
    """
    loaded = as_loaded(model)
    module, place = loaded.module, place_of(loaded.module)
    batch = normalize(torch.zeros(batch_size, 3, size, size, dtype=torch.uint8)).to(place.device, place.dtype)
    stamps = []
    with evaluation_mode(module), torch.no_grad():
        for _ in range(_NUM_TIMINGS + 1):  # the first packs weights, or compiles
            run(module, batch, loaded.name)
            if place.device.type != "cpu":
                torch.accelerator.synchronize()
            stamps.append(time.perf_counter())
    return float(np.median(np.diff(stamps))) * 1000 / batch_size
