"""One of several processes that train together."""

import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from analysis.runs.identity import describe_device
from analysis.runs.processes import num_processes, rank
from analysis.training.recipe import Recipe


class TrainingError(ValueError):
    """Training that cannot go on, such as a loss that is not finite."""


def check_division(recipe: Recipe, device: torch.device, processes: int | None = None) -> None:
    """Refuse a batch that so many processes, by default those at work, cannot share.

    Raises:
        ValueError: Naming the batch size, or what the device does not do.
    """
    processes = processes or num_processes()
    pieces = processes * recipe.accumulate
    if recipe.batch_size % pieces:
        raise ValueError(
            f"batch_size={recipe.batch_size}: expected a multiple of {pieces}, the processes ({processes}) times "
            f"accumulate ({recipe.accumulate})"
        )
    if recipe.mixes and recipe.batch_size // pieces % 2:
        raise ValueError(
            f"batch_size={recipe.batch_size}: mixup and cutmix take an even number of images; each of {pieces} pieces "
            f"would have {recipe.batch_size // pieces}"
        )
    if recipe.sync_batch_norm and processes > 1 and device.type == "cpu":
        raise ValueError("sync_batch_norm=True: PyTorch synchronises batch norms on GPUs only, not on the CPU")
    if recipe.autocast and not _has_bfloat16(device):
        raise ValueError(
            f"autocast={recipe.autocast!r}: {', '.join(describe_device(device).values())} does not compute with "
            "these numbers itself, and is slower with them; expected ''"
        )


def _has_bfloat16(device: torch.device) -> bool:
    """Whether a device computes in bfloat16 itself; of a GPU that another machine has, it is taken for granted."""
    if device.type == "cuda":
        if not torch.cuda.is_available():
            return True
        with torch.cuda.device(device):
            return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    with warnings.catch_warnings(action="ignore"), torch.autocast(device.type, torch.bfloat16):
        return torch.is_autocast_enabled(device.type)


@contextmanager
def prepared(model: nn.Module, recipe: Recipe, device: torch.device) -> Iterator[nn.Module]:
    """The model as one of several processes trains it; its batch norms are put back at the end."""
    if num_processes() == 1:
        yield model
        return
    norms = {name: layer for name, layer in model.named_modules() if isinstance(layer, nn.BatchNorm2d)}
    if recipe.sync_batch_norm:
        # The same parameters and buffers in other layers.
        nn.SyncBatchNorm.convert_sync_batchnorm(model)  # type: ignore[no-untyped-call]
    try:
        own = [torch.cuda.current_device()] if device.type == "cuda" else None
        with warnings.catch_warnings():
            # Gradients of depthwise kernels, few numbers, are copied: their axis of length 1 has another stride.
            warnings.filterwarnings("ignore", message="Grad strides do not match bucket view strides")
            yield DistributedDataParallel(model, device_ids=own)
    finally:
        for name, layer in norms.items():
            model.set_submodule(name, layer)


def unsynchronised(network: nn.Module, *, active: bool) -> AbstractContextManager[object]:
    if active and isinstance(network, DistributedDataParallel):
        return network.no_sync()
    return nullcontext()


@contextmanager
def lost_processes_named() -> Iterator[None]:
    """Say in words what it means when the connection breaks."""
    try:
        yield
    except RuntimeError as error:
        signs = ("gloo", "Connection closed", "Connection reset", "NCCL", "ProcessGroup")
        if num_processes() == 1 or not any(sign in str(error) for sign in signs):
            raise
        raise TrainingError(
            f"process {rank()} lost the connection to the others ({str(error).partition(chr(10))[0]}): one of them is "
            "gone; the same command continues from the last checkpoint"
        ) from error
