"""SLaK: its configuration, its layers and the published sizes (Liu et al. 2022, arXiv:2207.03620).

ConvNeXt with another depthwise layer: a large kernel is the sum of a tall strip, a wide strip and a small square, each
with its own batch norm. The published weights were trained sparse: they hold zeros, and are used as any others.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.jit import is_scripting  # type: ignore[attr-defined]

from replknet.convolution.depthwise import DepthwiseConv2d, depthwise_conv2d
from replknet.convolution.planning import output_time
from replknet.convolution.pointwise import takes_fast_path
from replknet.networks.blocks import ConvBN, DropPath, ReparamLargeKernelConv
from replknet.networks.family import Configuration, Family, PublishedWeights, is_int
from replknet.networks.folding import embed_kernel, in_float64
from replknet.networks.parts import LargeKernel, crop_weight
from replknet.networks.reparameterize import Form
from replknet.networks.skeleton import NORM_EPS, ChannelNorm, Skeleton, blocks_in, outputs_in

_FIRST_SCALE = 1e-6
_EXPANSION = 4
_STRIP_WIDTH = 5
_STEM_STRIDE = 4
_TENSORS_OF_A_BLOCK = 9
"""At least: with one kernel whose norm is folded."""
_LARGE_KERNEL = re.compile(r"stages\.\d+\.\d+\.large_kernel\.")


@dataclass(frozen=True, kw_only=True)
class SLaKConfig(Configuration):
    """Architecture of a SLaK, validated when it is made.

    Args:
        layers: Blocks in each stage.
        channels: Width of each stage, before `width_factor`.
        kernel_sizes: Side of the large depthwise kernel of each stage, in pixels of that stage's map; odd.
        width_factor: Times each of `channels`, truncated to an integer: `widths`. The published networks have 1.3.
        strip_width: Odd short side of the two strips that a large kernel is decomposed into, at most the smallest of
            `kernel_sizes`. None leaves the kernels whole: one square each, as in the form that runs ConvNeXt.
        small_kernel: Odd side of the parallel square kernel. None leaves the branch out; so do, as in the official
            code, stages whose kernel is not larger.
        drop_path_rate: Probability of skipping the last residual branch; it grows linearly from 0 over the blocks.
        in_channels: Channels of the input image.
        num_classes: Outputs of the linear head; 0 builds no head, and `forward` returns pooled features.
        out_indices: Stages whose maps `forward` returns as a list; None returns logits.
        norm_intermediate_features: Give every stage a layer norm (`norm0`, ...) for the maps of `out_indices`, as in
            the code for dense prediction.
        gradient_checkpointing: Recompute block activations in the backward pass to save memory.

    Raises:
        ValueError: If a value is out of range or the lengths differ; the message names the argument.

    References:
        Liu et al. 2022, arXiv:2207.03620.
    """

    layers: tuple[int, ...]
    channels: tuple[int, ...]
    kernel_sizes: tuple[int, ...]
    width_factor: float = 1.0
    strip_width: int | None = _STRIP_WIDTH
    small_kernel: int | None = 5
    drop_path_rate: float = 0.0
    in_channels: int = 3
    num_classes: int = 1000
    out_indices: tuple[int, ...] | None = None
    norm_intermediate_features: bool = False
    gradient_checkpointing: bool = False

    def __post_init__(self) -> None:
        self.check_stages(per_stage=("layers", "channels", "kernel_sizes"))
        factor = self.width_factor
        if isinstance(factor, bool) or not isinstance(factor, (int, float)) or not 0 < factor < float("inf"):
            raise ValueError(f"width_factor={factor!r}: expected a positive number")
        if min(self.widths) < 1:
            raise ValueError(f"width_factor={factor!r}: leaves no channel of a stage of width {min(self.channels)}")
        if any(size < 1 or size % 2 == 0 for size in self.kernel_sizes):
            raise ValueError(f"kernel_sizes={self.kernel_sizes}: expected odd positive integers")
        for name in ("strip_width", "small_kernel"):
            size = getattr(self, name)
            if size is not None and (not is_int(size) or size < 1 or size % 2 == 0):
                raise ValueError(f"{name}={size!r}: expected an odd positive integer or None")
        if self.strip_width is not None and self.strip_width > min(self.kernel_sizes):
            raise ValueError(
                f"strip_width={self.strip_width}: expected at most the smallest of kernel_sizes={self.kernel_sizes}, "
                "or None for kernels that are not decomposed"
            )
        self.check_common()

    @property
    def widths(self) -> tuple[int, ...]:
        return tuple(int(width * self.width_factor) for width in self.channels)

    def small_kernel_of(self, stage: int) -> int | None:
        """The parallel kernel of a stage, if it has one."""
        small = self.small_kernel
        return small if small is not None and small < self.kernel_sizes[stage] else None

    def is_like(self, other: Configuration) -> bool:
        return super().is_like(other) and isinstance(other, SLaKConfig) and self.strip_width == other.strip_width

    def kernels(self, *, merged: bool) -> dict[str, str]:
        small = "none" if self.small_kernel is None else str(self.small_kernel)
        return {
            "large kernels": "-".join(map(str, self.kernel_sizes)),
            "strips": "none" if self.strip_width is None else f"{self.strip_width} wide{', norms folded' * merged}",
            "small kernel": "merged or none" if merged and self.strip_width is None else small,
        }

    def with_kernels(self, kernel_sizes: Sequence[int] | None, small_kernel: int | None) -> tuple["SLaKConfig", str]:
        sizes = self.kernel_sizes if kernel_sizes is None else tuple(kernel_sizes)
        small = self.small_kernel if small_kernel is None else small_kernel or None
        strip, left_out = self.strip_width, []
        if kernel_sizes is not None and strip is not None and min(sizes, default=strip) < strip:
            left_out.append(f"strips as wide as {strip} do not fit, kernels are whole")
            strip = None
        if small is not None and min(sizes, default=small) <= small:
            left_out.append(f"no parallel {small}x{small} kernel beside one that is not larger")
        changed = replace(self, kernel_sizes=sizes, small_kernel=small, strip_width=strip)
        return changed, "; ".join(left_out)

    @classmethod
    def of_kernels(cls, kernel_sizes: Sequence[int], **fields: Any) -> "SLaKConfig":
        """Strips are no wider than the smallest kernel; where no kernel is longer than that, kernels are whole."""
        width = min(_STRIP_WIDTH, *kernel_sizes)
        strips = width if width < max(kernel_sizes) else None
        return super().of_kernels(kernel_sizes, strip_width=strips, **fields)

    def least_size(self) -> tuple[int, float]:
        widths = self.widths
        numbers: float = _STEM_STRIDE**2 * self.in_channels * widths[0] + widths[-1] * self.num_classes
        for layers, width, size in zip(self.layers, widths, self.kernel_sizes, strict=True):
            numbers += layers * width * (2 * _EXPANSION * width + size * (self.strip_width or size))
        return _TENSORS_OF_A_BLOCK * sum(self.layers), numbers


class StripConv(LargeKernel):
    """A large depthwise convolution in parts: a tall strip, a wide strip and a small square, which are summed.

    Each has its batch norm, which `reparameterize` folds. The parts are parallel; that the official code calls the
    strips LoRA is history. They add up to one kernel in the form of a plus: without norms and gradients, a CPU takes it
    in their place for maps so large that the plan of the convolution promises less time.
    """

    MERGES_KERNELS: ClassVar[bool] = True

    def __init__(self, channels: int, kernel_size: int, strip_width: int, small_kernel: int | None) -> None:
        super().__init__()
        self.LoRA1: ConvBN | None = ConvBN(channels, channels, (kernel_size, strip_width), groups=channels)
        self.LoRA2: ConvBN | None = ConvBN(channels, channels, (strip_width, kernel_size), groups=channels)
        self.small_conv: ConvBN | None = None
        if small_kernel is not None:
            self.small_conv = ConvBN(channels, channels, small_kernel, groups=channels)

    def forward(self, x: Tensor) -> Tensor:
        if not is_scripting():  # noqa: SIM102  TorchScript leaves such a branch out
            if takes_fast_path(self, x, (StripConv, *_FOLDED_PART * len(self.parts()))):
                return self._fast(x)
        outs: list[Tensor] = []
        if self.LoRA1 is not None:
            outs.append(self.LoRA1(x))
        if self.LoRA2 is not None:
            outs.append(self.LoRA2(x))
        if self.small_conv is not None:
            outs.append(self.small_conv(x))
        if len(outs) == 0:
            raise RuntimeError("LoRA1, LoRA2 and small_conv are None: expected one of them")
        total = outs[0]
        for out in outs[1:]:
            total = total + out
        return total

    def _fast(self, x: Tensor) -> Tensor:
        convs = [part.conv for part in self.parts()]
        size = max(side for conv in convs for side in conv.weight.shape[2:])
        whole = torch.Size((x.shape[1], 1, size, size))
        if output_time(x, whole) < sum(output_time(x, conv.weight.shape) for conv in convs):
            return depthwise_conv2d(x, *self.whole())
        total: Tensor = convs[0](x)
        for conv in convs[1:]:
            total.add_(conv(x))
        return total

    def whole(self) -> tuple[Tensor, Tensor]:
        """The one square kernel, in the form of a plus, and its bias, where the norms are folded."""
        convs = [part.conv for part in self.parts()]
        size = max(side for conv in convs for side in conv.weight.shape[2:])
        kernels = [embed_kernel(conv.weight, size) for conv in convs]
        return torch.stack(kernels).sum(0), torch.stack([conv.bias for conv in convs if conv.bias is not None]).sum(0)

    def parts(self) -> list[ConvBN]:
        """Those that there are: tall strip, wide strip and small square."""
        return [part for part in (self.LoRA1, self.LoRA2, self.small_conv) if part is not None]

    def reparameterize(self) -> None:
        """Fold the norm of every part. A no-op when already done."""
        for part in self.parts():
            if isinstance(part, ConvBN):
                part.reparameterize()

    def changed(self) -> Iterator[nn.Module]:
        for part in self.parts():
            if isinstance(part, ConvBN):
                yield from part.changed()

    def large_layers(self) -> list[nn.Module | None]:
        """Both strips."""
        strips = [strip for strip in (self.LoRA1, self.LoRA2) if strip is not None]
        return [strip.conv if isinstance(strip, ConvBN) else None for strip in strips]

    def branches(self) -> tuple[str, ...]:
        return tuple(name for name, part in _PARTS.items() if getattr(self, part) is not None)

    def drop(self, branch: str) -> None:
        setattr(self, _PARTS[branch], None)

    def crop(self, size: int) -> None:
        """The parallel small kernel stays as it is."""
        for layer in self.convolutions():
            crop_weight(layer, size)

    def dense_kernel(self) -> Tensor:
        return in_float64(self.whole()[0])[:, 0]


_PARTS = {"tall": "LoRA1", "wide": "LoRA2", "small": "small_conv"}


_FOLDED_PART = (ConvBN, DepthwiseConv2d, nn.Identity, nn.Identity)


class SLaKBlock(nn.Module):
    """Residual block round a large depthwise convolution: layer norm and two linear layers at every pixel after it."""

    def __init__(self, config: SLaKConfig, stage: int, drop_path: float) -> None:
        super().__init__()
        channels, size, small = config.widths[stage], config.kernel_sizes[stage], config.small_kernel_of(stage)
        self.large_kernel: nn.Module
        if config.strip_width is None:
            self.large_kernel = ReparamLargeKernelConv(channels, size, small)
        else:
            self.large_kernel = StripConv(channels, size, config.strip_width, small)
        self.norm = nn.LayerNorm(channels, eps=NORM_EPS)
        self.pwconv1 = nn.Linear(channels, _EXPANSION * channels)
        self.act = nn.GELU()
        self.pwconv2 = nn.Linear(_EXPANSION * channels, channels)
        self.gamma = nn.Parameter(torch.full([channels], _FIRST_SCALE))
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        rows: Tensor = self.norm(self.large_kernel(x).permute(0, 2, 3, 1))  # (N, H, W, C)
        rows = self.gamma * self.pwconv2(self.act(self.pwconv1(rows)))
        out: Tensor = x + self.drop_path(rows.permute(0, 3, 1, 2))
        return out


class SLaK(Skeleton):
    """SLaK: ConvNeXt with large depthwise kernels that are decomposed into strips.

    Args:
        config: The architecture.

    The input is a normalised image batch of shape (N, in_channels, H, W); stage s has stride 4 * 2**s, and sizes are
    rounded down. `reparameterize` folds the norms of the strips at either level.

    References:
        Liu et al. 2022, arXiv:2207.03620.
    """

    def __init__(self, config: SLaKConfig) -> None:
        def downsampling(stage: int) -> nn.Module:
            width = config.widths[stage]
            if stage == 0:
                return nn.Sequential(
                    nn.Conv2d(config.in_channels, width, _STEM_STRIDE, _STEM_STRIDE), ChannelNorm(width)
                )
            before = config.widths[stage - 1]
            return nn.Sequential(ChannelNorm(before), nn.Conv2d(before, width, 2, 2))

        super().__init__(config, downsampling, lambda stage, _, rate: SLaKBlock(config, stage, rate))

    @classmethod
    def owns(cls, state: Mapping[str, Tensor]) -> bool:
        return any(_LARGE_KERNEL.match(key) for key in state)

    @classmethod
    def form_of(cls, state: Mapping[str, Tensor]) -> Form:
        """With norms folded into each part it is the merged one: no norm is left that could be folded elsewhere."""
        biases = ("lkb_reparam.bias", "LoRA1.conv.bias", "LoRA2.conv.bias")
        return "merged" if any(key.endswith(biases) for key in state) else "training"

    @classmethod
    def infer_config(cls, state: Mapping[str, Tensor]) -> SLaKConfig | None:
        """The factor of the widths stays 1; the small kernel is None after a merge of whole kernels."""
        try:
            scales = blocks_in(state, (".gamma",))
            large = [_large_kernel(state, f"stages.{stage}.0.large_kernel.") for stage in range(len(scales))]
            smalls = [value.shape[-1] for key, value in state.items() if key.endswith("small_conv.conv.weight")]
            return SLaKConfig(
                layers=tuple(map(len, scales)),
                channels=tuple(blocks[0].shape[0] for blocks in scales),
                kernel_sizes=tuple(size for size, _ in large),
                strip_width=large[0][1],
                small_kernel=smalls[0] if smalls else None,
                **outputs_in(state, len(scales)),
            )
        except (KeyError, ValueError, IndexError):
            return None


def _large_kernel(state: Mapping[str, Tensor], prefix: str) -> tuple[int, int | None]:
    """Side of a block's large kernel, and the width of its strips, if it has any."""
    strip = state.get(f"{prefix}LoRA1.conv.weight")
    if strip is not None:
        return strip.shape[2], strip.shape[3]
    whole = "lkb_reparam" if f"{prefix}lkb_reparam.weight" in state else "lkb_origin.conv"
    return state[f"{prefix}{whole}.weight"].shape[2], None


def _preset(layers: tuple[int, ...], width: int, kernel_sizes: tuple[int, ...] = (51, 49, 47, 13)) -> SLaKConfig:
    channels = (width, 2 * width, 4 * width, 8 * width)
    return SLaKConfig(layers=layers, channels=channels, kernel_sizes=kernel_sizes, width_factor=1.3)


PRESETS: Mapping[str, SLaKConfig] = MappingProxyType(
    {
        "slak_t": _preset((3, 3, 9, 3), 96),
        "slak_s": _preset((3, 3, 27, 3), 96),
        "slak_b": _preset((3, 3, 27, 3), 128),
        "slak_l": _preset((3, 3, 27, 3), 192),
        "slak_t_31": _preset((3, 3, 9, 3), 96, (31, 29, 27, 13)),
        "slak_t_61": _preset((3, 3, 9, 3), 96, (61, 59, 57, 13)),
    }
)
"""Architectures by name: the published ones, and L, of which there is code and no weights."""


def _published(variant: str, epochs: int, top1: float, page: str) -> PublishedWeights:
    return PublishedWeights(
        architecture=variant,
        file=f"{variant}_in1k_{epochs}ep.pth",
        training_data="ImageNet-1K",
        image_size=224,
        top1=top1,
        source="Liu et al. 2022, github.com/VITA-Group/SLaK",
        page=page,
    )


_DRIVE = "https://drive.google.com/file/d"
_SURF = "https://surfdrive.surf.nl/files/index.php/s"

FAMILY = Family(
    name="SLaK",
    network=SLaK,
    config=SLaKConfig,
    presets=PRESETS,
    published={
        "slak_t.in1k_300ep": _published("slak_t", 300, 82.5, f"{_DRIVE}/1Iut2f5FMS_77jGPYoUJDQzDIXOsax1u4/view"),
        "slak_t.in1k_120ep": _published("slak_t", 120, 81.6, f"{_SURF}/WiQYWNclJ9bW5XV"),
        "slak_s.in1k_300ep": _published("slak_s", 300, 83.8, f"{_DRIVE}/1etM6KQbnlsgDAZ37adsQJ3UI8Bbv2AVe/view"),
        "slak_b.in1k_300ep": _published("slak_b", 300, 84.0, f"{_DRIVE}/1duUxUD3RSblQ6eDHd0n-u0aulwGypf1j/view"),
        "slak_t_31.in1k_120ep": _published("slak_t_31", 120, 81.5, f"{_SURF}/VXzBxFXQdlAQ7h8"),
        "slak_t_61.in1k_120ep": _published("slak_t_61", 120, 81.5, f"{_SURF}/VpR1te71NmVImJb"),
    },
    authors="Liu et al. 2022",
    paper="2207.03620",
    origin="https://github.com/VITA-Group/SLaK",
    license="mit",
    first_layer="downsample_layers.0.0",
)
"""Accuracies and addresses: the official repository, which names neither its files nor their hashes."""
