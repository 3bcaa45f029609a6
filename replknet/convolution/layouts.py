"""Memory layouts of maps, and a fast way from one to the other.

A conversion is a transposition of pixels and channels. PyTorch copies element by element and takes up to 13 times as
long as for a plain copy (measured: 512 channels of 64 x 64). Its `channel_shuffle` transposes, in vector registers, the
channels of a channels_last map in groups; all values of some rows count as the channels of one pixel here.
"""

import torch
from torch import Tensor
from torch.jit import is_scripting  # type: ignore[attr-defined]


def layout(x: Tensor) -> torch.memory_format:
    """channels_last for maps that are so and not contiguous as well; contiguous for all others."""
    if (
        not x.is_contiguous()
        and not torch._C._are_functorch_transforms_active()  # vmap cannot tell
        and x.is_contiguous(memory_format=torch.channels_last)
    ):
        return torch.channels_last
    return torch.contiguous_format


def inference_layout(x: Tensor, training: bool) -> Tensor:
    """Maps as a network wants them: in evaluation on a CPU channels_last, for oneDNN and matrix products."""
    if not is_scripting():
        x = _inference_layout(x, training)
    return x


def _inference_layout(x: Tensor, training: bool) -> Tensor:
    if training or not x.is_cpu:
        return x
    if not torch.compiler.is_compiling() and torch._C._are_functorch_transforms_active():  # vmap cannot tell
        return x
    return x.contiguous(memory_format=torch.channels_last)


def with_layout(x: Tensor, memory_format: torch.memory_format) -> Tensor:
    """Maps (N, C, H, W) in one of the two layouts; not differentiable."""
    if x.is_contiguous(memory_format=memory_format):
        return x
    if x.is_cuda:
        return x.contiguous(memory_format=memory_format)
    if memory_format is torch.contiguous_format:
        return owned(rows_of_pixels(x).reshape(x.shape).contiguous())
    out = Output(x, memory_format)
    out.put(slice(None), x, None)
    return out.result()


def rows_of_pixels(x: Tensor) -> Tensor:
    """Maps (N, C, H, W) as (N, C, groups of rows, rows, W), with contiguous rows where they were channels_last."""
    if layout(x) is torch.contiguous_format:
        return x[:, :, None]
    if x.is_cuda:
        return x.contiguous()[:, :, None]
    num_images, channels, height, width = x.shape
    groups = _num_groups(num_images, height)
    pixels = x.permute(0, 2, 3, 1).reshape(num_images * groups, -1)
    maps = _transposed(pixels, height // groups * width)
    return maps.reshape(num_images, groups, channels, height // groups, width).transpose(1, 2)


class Output:
    """Maps that are written some channels at a time, and then get the layout of other maps."""

    def __init__(self, like: Tensor, memory_format: torch.memory_format | None = None) -> None:
        num_images, channels, height, width = self._shape = like.shape
        self._layout = memory_format or layout(like)
        self._channels_last = self._layout is torch.channels_last and not like.is_cuda
        self._groups = _num_groups(num_images, height) if self._channels_last else 1
        self._maps = like.new_empty((num_images, self._groups, channels, height // self._groups, width))

    def put(self, channels: slice, maps: Tensor, bias: Tensor | None) -> None:
        """Write maps (N, channels, H, W), adding the bias of each channel."""
        target = self._maps[:, :, channels].transpose(1, 2)
        source = maps.view(*maps.shape[:2], self._groups, -1, maps.shape[3])
        if bias is None:
            target.copy_(source)
        else:
            torch.add(source, bias[:, None, None, None], out=target)

    def result(self) -> Tensor:
        """All of them, (N, C, H, W)."""
        num_images, channels, height, width = self._shape
        if not self._channels_last:
            return owned(self._maps.reshape(self._shape)).contiguous(memory_format=self._layout)
        pixels = _transposed(self._maps.reshape(num_images * self._groups, -1), channels)
        return owned(pixels.reshape(num_images, height, width, channels).permute(0, 3, 1, 2))


def owned(view: Tensor) -> Tensor:
    """The same memory as a tensor that is no view: a result of a `Function` that is one may not be changed in place."""
    return view.new_empty(0).set_(view.untyped_storage(), view.storage_offset(), view.shape, view.stride())


def _num_groups(num_images: int, height: int) -> int:
    """Equal groups of an image's rows, so that every thread has one."""
    wanted = -(-torch.get_num_threads() // num_images)
    return next((groups for groups in range(wanted, height + 1) if height % groups == 0), 1)


def _transposed(matrices: Tensor, num_rows: int) -> Tensor:
    """Each line of `matrices` is a matrix with so many rows; the same of the transposed ones."""
    count, size = matrices.shape
    channels_last = matrices.as_strided((1, size, count, 1), (count * size, 1, size, size))
    return torch.channel_shuffle(channels_last, num_rows).permute(0, 2, 3, 1).reshape(count, size)
