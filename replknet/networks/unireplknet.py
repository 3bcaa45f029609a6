"""UniRepLKNet: its configuration, its layers and the published sizes (Ding et al. 2024, arXiv:2311.15599)."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn
from torch.jit import is_scripting  # type: ignore[attr-defined]
from torch.nn.modules.module import _has_any_global_hook
from torch.utils._python_dispatch import is_in_torch_dispatch_mode

from replknet.convolution.depthwise import DepthwiseConv2d, depthwise_conv2d
from replknet.convolution.dilated import DilatedConv2d
from replknet.convolution.operators import is_recorded
from replknet.convolution.pointwise import is_hooked
from replknet.networks.blocks import DropPath
from replknet.networks.family import Configuration, Family, PublishedWeights, integers
from replknet.networks.folding import (
    assign,
    batch_norm_affine,
    embed_kernel,
    fold_norm_after,
    in_float64,
    is_foldable,
    is_foldable_norm,
    is_reparametrized,
    spread_kernel,
)
from replknet.networks.parts import LargeKernel, Mergeable, crop_weight, depthwise_layer, values_of
from replknet.networks.reparameterize import Form
from replknet.networks.skeleton import ChannelNorm, Skeleton, blocks_in, outputs_in

BRANCHES: Mapping[int, tuple[tuple[int, int], ...]] = MappingProxyType(
    {
        17: ((5, 1), (9, 2), (3, 4), (3, 5), (3, 7)),
        15: ((5, 1), (7, 2), (3, 3), (3, 5), (3, 7)),
        13: ((5, 1), (7, 2), (3, 3), (3, 4), (3, 5)),
        11: ((5, 1), (5, 2), (3, 3), (3, 4), (3, 5)),
        9: ((5, 1), (5, 2), (3, 3), (3, 4)),
        7: ((5, 1), (3, 2), (3, 3)),
    }
)
"""Side and dilation of the branches beside a large kernel, by its side."""
_PLAIN = (3, 5)
"""Kernels without branches."""
_GRN_EPS = 1e-6
_TENSORS_OF_A_BLOCK = 10


def _layout(layers: tuple[int, ...]) -> tuple[int | tuple[int, ...], ...]:
    """The published kernels of so many blocks."""
    periods: dict[tuple[int, ...], int] = {(3, 3, 18, 3): 2, (3, 3, 27, 3): 3, (2, 2, 6, 2): 1, (2, 2, 8, 2): 1}
    period = periods.get(layers)
    if period is None:
        raise ValueError(f"kernel_sizes=None: expected a kernel for each block, as layers={layers} are not published")
    return 3, 13, tuple(3 if place % period else 13 for place in range(layers[2])), 13


@dataclass(frozen=True, kw_only=True)
class UniRepLKNetConfig(Configuration):
    """Architecture of a UniRepLKNet, validated when it is made.

    Args:
        layers: Blocks in each stage.
        channels: Width of each stage, at least 4.
        kernel_sizes: Side of the depthwise kernel of each block: for each stage a sequence, or one number for all of
            its blocks. 3 and 5 are plain; 7 to 17, odd, have dilated branches. None for the published kernels of these
            `layers`.
        layer_scale: First value of the scale of each residual branch; None for no such scale.
        drop_path_rate: Probability of skipping the last residual branch; it grows linearly from 0 over the blocks.
        in_channels: Channels of the input image.
        num_classes: Outputs of the linear head; 0 builds no head, and `forward` returns pooled features.
        out_indices: Stages whose maps `forward` returns as a list; None returns logits.
        norm_intermediate_features: Give every stage a layer norm that is applied to the maps of `out_indices`.
        gradient_checkpointing: Recompute block activations in the backward pass to save memory.

    Raises:
        ValueError: If a value is out of range or the lengths differ; the message names the argument.

    References:
        Ding et al. 2024, arXiv:2311.15599.
    """

    layers: tuple[int, ...]
    channels: tuple[int, ...]
    kernel_sizes: tuple[Any, ...] = None  # type: ignore[assignment]
    layer_scale: float | None = 1e-6
    drop_path_rate: float = 0.0
    in_channels: int = 3
    num_classes: int = 1000
    out_indices: tuple[int, ...] | None = None
    norm_intermediate_features: bool = False
    gradient_checkpointing: bool = False

    def __post_init__(self) -> None:
        self.check_stages(per_stage=("layers", "channels"))
        if min(self.channels) < 4:
            raise ValueError(f"channels={self.channels}: expected at least 4 in each stage")
        sizes: Any = _layout(self.layers) if self.kernel_sizes is None else self.kernel_sizes
        if isinstance(sizes, str) or not isinstance(sizes, Iterable):
            raise ValueError(f"kernel_sizes={sizes!r}: expected a number or a sequence of numbers for each stage")
        object.__setattr__(self, "kernel_sizes", tuple(sizes))
        self.check_length("kernel_sizes")
        per_block = []
        for layers, own in zip(self.layers, self.kernel_sizes, strict=True):
            one = isinstance(own, int) and not isinstance(own, bool)
            blocks = (own,) * layers if one else integers("kernel_sizes", own)
            if len(blocks) != layers:
                raise ValueError(f"kernel_sizes={own}: expected {layers} values, one per block of the stage")
            for kernel in blocks:
                if kernel not in (*_PLAIN, *BRANCHES):
                    raise ValueError(f"kernel_sizes={kernel}: expected an odd number from 3 to 17")
            per_block.append(blocks)
        object.__setattr__(self, "kernel_sizes", tuple(per_block))
        scale = self.layer_scale
        if scale is not None and (isinstance(scale, bool) or not isinstance(scale, (int, float)) or not scale > 0):
            raise ValueError(f"layer_scale={scale!r}: expected a positive number, or None for none")
        self.check_common()

    def kernels(self, *, merged: bool) -> dict[str, str]:
        stages = [str(own[0]) if len(set(own)) == 1 else ",".join(map(str, own)) for own in self.kernel_sizes]
        return {"kernels": " | ".join(stages), "dilated branches": "merged" if merged else "of kernels of 7 and more"}

    def with_kernels(
        self, kernel_sizes: Sequence[int] | None, small_kernel: int | None
    ) -> tuple["UniRepLKNetConfig", str]:
        """Each number for all blocks of a stage."""
        if small_kernel is not None:
            raise ValueError(
                f"small_kernel={small_kernel}: a UniRepLKNet has dilated branches in its place, which go with the "
                "large kernel"
            )
        return (self if kernel_sizes is None else replace(self, kernel_sizes=tuple(kernel_sizes))), ""

    def least_size(self) -> tuple[int, float]:
        numbers: float = self.in_channels * self.channels[0] + self.channels[-1] * self.num_classes
        for width, sizes in zip(self.channels, self.kernel_sizes, strict=True):
            numbers += sum(8 * width**2 + width * size**2 for size in sizes)
        return _TENSORS_OF_A_BLOCK * sum(self.layers), numbers


class DilatedReparamBlock(LargeKernel):
    """A large depthwise convolution and parallel dilated ones, each with its batch norm; their outputs are summed.

    After `reparameterize` all of them are one biased convolution, `lk_origin`. In evaluation they are so already in
    effect: their kernels are summed in each call, from the present weights. While it trains, each batch norm needs the
    output of its own branch.
    """

    MERGES_KERNELS: ClassVar[bool] = True

    def __init__(self, channels: int, kernel_size: int) -> None:
        super().__init__()
        self.lk_origin: nn.Module = DepthwiseConv2d(channels, kernel_size)
        self.origin_bn: nn.Module = nn.BatchNorm2d(channels)
        for side, dilation in BRANCHES[kernel_size]:
            branch = DepthwiseConv2d(channels, side) if dilation == 1 else DilatedConv2d(channels, side, dilation)
            self.add_module(f"dil_conv_k{side}_{dilation}", branch)
            self.add_module(f"dil_bn_k{side}_{dilation}", nn.BatchNorm2d(channels))

    def forward(self, x: Tensor) -> Tensor:
        if not is_scripting():  # noqa: SIM102  TorchScript leaves such a branch out
            if type(x) is Tensor and self._is_one_convolution():
                return depthwise_conv2d(x, *self._summed())
        out, maps = x, x
        for count, layer in enumerate(self.children()):  # a convolution, its norm, the next one, its norm, ...
            if count % 2 == 0:
                maps = layer(x)
            else:
                maps = layer(maps)
                out = maps if count == 1 else out + maps
        return out

    def _pairs(self) -> list[tuple[Any, Any]]:
        """Each convolution with its norm, the large one first."""
        layers = list(self.children())
        return list(zip(layers[::2], layers[1::2], strict=True))

    def _is_one_convolution(self) -> bool:
        """Whether nobody could tell that the branches are not computed one by one."""
        if self.training or is_recorded() or is_in_torch_dispatch_mode() or _has_any_global_hook():  # type: ignore[no-untyped-call]
            return False
        pairs = self._pairs()
        return len(pairs) > 1 and all(
            is_foldable(conv)
            and is_foldable_norm(norm)
            and not norm.training
            and norm.running_mean is not None
            and norm.weight is not None
            and not any(is_hooked(layer) or is_reparametrized(layer) for layer in (conv, norm))
            and conv.weight.device.type in ("cpu", "cuda")
            for conv, norm in pairs
        )

    def _summed(self) -> tuple[Tensor, Tensor]:
        """Kernel and bias of the sum, with their derivatives; summed in float32 at least."""
        total: list[Tensor] = []
        dtype = torch.float32
        for conv, norm in self._pairs():
            values: Any = (conv.weight, norm.running_mean, norm.running_var, norm.weight, norm.bias)
            dtype = conv.weight.dtype
            kernel, mean, variance, scale, shift = (
                tensor if tensor.dtype is torch.float64 else tensor.float() for tensor in values
            )
            scale = scale * (variance + norm.eps).rsqrt()
            offset = -mean if conv.bias is None else conv.bias - mean
            total = _added(total, kernel * scale[:, None, None, None], shift + offset * scale, conv.dilation[0])
        return total[0].to(dtype), total[1].to(dtype)

    def reparameterize(self) -> None:
        """Replace all branches by one biased convolution. A no-op when already done.

        If a layer was replaced by another module, all stay.
        """
        self.merge_with(nn.Identity())

    def merge_with(self, after: nn.Module) -> bool:
        """Replace all branches, and a batch norm after them, by one convolution; returns whether it could."""
        pairs = self._pairs()
        if not all(is_foldable(conv) and is_foldable_norm(norm) for conv, norm in pairs):
            return False
        total: list[Tensor] = []
        for conv, norm in pairs:
            weight, bias = fold_norm_after(*values_of(conv), *batch_norm_affine(norm))
            total = _added(total, weight, bias, conv.dilation[0])
        if is_foldable_norm(after):
            total = [*fold_norm_after(total[0], total[1], *batch_norm_affine(after))]
        merged = depthwise_layer(total[0], total[1], like=self.lk_origin)
        norm = nn.Identity().train(self.origin_bn.training)
        for name in list(self._modules):
            delattr(self, name)
        self.lk_origin, self.origin_bn = merged, norm
        return True

    def changed(self) -> Iterator[nn.Module]:
        if is_foldable_norm(self.origin_bn):
            yield from self.children()

    def large_layers(self) -> list[nn.Module | None]:
        return [self.lk_origin]

    def branches(self) -> tuple[str, ...]:
        return ("dilated",) if len(self._modules) > 2 else ()

    def drop(self, branch: str) -> None:
        for name in [name for name in self._modules if name.startswith("dil_")]:
            delattr(self, name)

    def crop(self, size: int) -> None:
        """All branches are cropped: it is the crop of the merged kernel."""
        self.convolutions()
        for conv, _ in self._pairs():
            if is_foldable(conv) and isinstance(conv, nn.Conv2d):
                crop_weight(conv, size)

    def dense_kernel(self) -> Tensor:
        return in_float64(self.convolutions()[0].weight)[:, 0]


def _added(total: list[Tensor], kernel: Tensor, bias: Tensor, dilation: int) -> list[Tensor]:
    """Kernel and bias of a sum, with another branch; the first one is the largest."""
    kernel = spread_kernel(kernel, dilation)
    return [total[0] + embed_kernel(kernel, total[0].shape[-1]), total[1] + bias] if total else [kernel, bias]


class SqueezeExcite(nn.Module):
    """Each channel times a factor that is computed from the mean of all channels (Hu et al. 2018)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.down = nn.Conv2d(channels, channels // 4, 1)
        self.up = nn.Conv2d(channels // 4, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        pooled = x.mean((2, 3), keepdim=True)
        factors: Tensor = self.up(self.down(pooled).relu()).sigmoid()
        return x * factors


class GlobalResponseNorm(nn.Module):
    """Each channel of (N, H, W, C) by its share of the response of all (Woo et al. 2023); merged it has no `beta`."""

    beta: Tensor | None

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.eps = _GRN_EPS
        self.gamma = nn.Parameter(torch.zeros(1, 1, 1, channels))
        self.register_parameter("beta", nn.Parameter(torch.zeros(1, 1, 1, channels)))

    def forward(self, x: Tensor) -> Tensor:
        response = torch.linalg.vector_norm(x, dim=(1, 2), keepdim=True)
        share = response / (response.mean(-1, keepdim=True) + self.eps)
        out: Tensor = x * (self.gamma * share + 1)
        beta = self.beta
        if beta is not None:
            out = out + beta
        return out


class ToRows(nn.Module):
    """Maps (N, C, H, W) as (N, H, W, C)."""

    def forward(self, x: Tensor) -> Tensor:
        return x.permute(0, 2, 3, 1)


class ToMaps(nn.Module):
    """The reverse of `ToRows`."""

    def forward(self, x: Tensor) -> Tensor:
        return x.permute(0, 3, 1, 2)


class UniRepLKBlock(Mergeable):
    """Residual block: depthwise convolution and norm, squeeze and excitation, two linear layers with GELU and GRN."""

    MERGES_KERNELS: ClassVar[bool] = True
    gamma: Tensor | None

    def __init__(self, channels: int, kernel_size: int, drop_path: float, layer_scale: float | None) -> None:
        super().__init__()
        hidden = 4 * channels
        self.dwconv: nn.Module
        if kernel_size in BRANCHES:
            self.dwconv = DilatedReparamBlock(channels, kernel_size)
        else:
            self.dwconv = DepthwiseConv2d(channels, kernel_size)
        self.norm: nn.Module = nn.BatchNorm2d(channels)
        self.se = SqueezeExcite(channels)
        self.pwconv1 = nn.Sequential(ToRows(), nn.Linear(channels, hidden))
        self.act = nn.Sequential(nn.GELU(), GlobalResponseNorm(hidden))
        self.pwconv2 = nn.Sequential(nn.Linear(hidden, channels, bias=False), ToMaps(), nn.BatchNorm2d(channels))
        scale = None if layer_scale is None else nn.Parameter(torch.full((channels,), float(layer_scale)))
        self.register_parameter("gamma", scale)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.se(self.norm(self.dwconv(x)))
        out = self.pwconv2(self.act(self.pwconv1(out)))
        gamma = self.gamma
        if gamma is not None:
            out = out * gamma[:, None, None]
        out = x + self.drop_path(out)
        return out  # noqa: RET504  what a module returns is Any

    def reparameterize(self) -> None:
        """Merge the kernels with both of their norms, and beta, norm and scale into the second linear layer.

        It is the official merge, and leaves no batch norm. A no-op when already done.
        """
        if is_foldable_norm(self.norm):
            folded = False
            if isinstance(self.dwconv, DilatedReparamBlock):
                folded = self.dwconv.merge_with(self.norm)
            elif is_foldable(self.dwconv):
                folded = True
                assign(self.dwconv, *fold_norm_after(*values_of(self.dwconv), *batch_norm_affine(self.norm)))
            if folded:
                self.norm = nn.Identity().train(self.norm.training)
        if self._folds_output():
            linear, _, norm = cast("Any", self.pwconv2)
            response: Any = self.act[1]
            scale, shift = batch_norm_affine(norm)
            weight, bias = values_of(linear)
            if response.beta is not None:
                bias = bias + weight @ in_float64(response.beta).flatten()
                response.beta = None
            if self.gamma is not None:
                factor = in_float64(self.gamma)
                scale, shift = scale * factor, shift * factor
                self.gamma = None
            assign(linear, *fold_norm_after(weight, bias, scale, shift))
            self.pwconv2[2] = nn.Identity().train(norm.training)

    def _folds_output(self) -> bool:
        layers = (self.pwconv2, self.act)
        if any(type(part) is not nn.Sequential for part in layers) or (len(self.pwconv2), len(self.act)) != (3, 2):
            return False
        ordinary = is_foldable(self.pwconv2[0]) and type(self.pwconv2[1]) is ToMaps
        return ordinary and is_foldable_norm(self.pwconv2[2]) and type(self.act[1]) is GlobalResponseNorm

    def changed(self) -> Iterator[nn.Module]:
        own = isinstance(self.dwconv, DilatedReparamBlock) or is_foldable(self.dwconv)
        if own and is_foldable_norm(self.norm):
            yield from (self.dwconv, self.norm)
        if self._folds_output():
            yield from (self.act, self.act[1], self.pwconv2, *self.pwconv2)


class UniRepLKNet(Skeleton):
    """UniRepLKNet: large kernels with dilated branches beside them, squeeze and excitation, and deep blocks of 3x3.

    Args:
        config: The architecture.

    The input is a normalised image batch of shape (N, in_channels, H, W); stage s has stride 4 * 2**s. Merged, by
    `reparameterize` at either level, its weights have the names of the official deploy form.

    References:
        Ding et al. 2024, arXiv:2311.15599.
    """

    def __init__(self, config: UniRepLKNetConfig) -> None:
        def downsampling(stage: int) -> nn.Module:
            width = config.channels[stage]
            if stage > 0:
                return nn.Sequential(_halving(config.channels[stage - 1], width), ChannelNorm(width))
            first = width // 2
            stem = (_halving(config.in_channels, first), ChannelNorm(first), nn.GELU())
            return nn.Sequential(*stem, _halving(first, width), ChannelNorm(width))

        def block(stage: int, place: int, drop_path: float) -> nn.Module:
            kernel = config.kernel_sizes[stage][place]
            return UniRepLKBlock(config.channels[stage], kernel, drop_path, config.layer_scale)

        super().__init__(config, downsampling, block)

    @classmethod
    def owns(cls, state: Mapping[str, Tensor]) -> bool:
        return any(".pwconv1.1." in key for key in state)

    @classmethod
    def form_of(cls, state: Mapping[str, Tensor]) -> Form:
        return "training" if any(".pwconv2.2." in key for key in state) else "merged"

    @classmethod
    def infer_config(cls, state: Mapping[str, Tensor]) -> UniRepLKNetConfig | None:
        try:
            kernels = blocks_in(state, (".dwconv.lk_origin.weight", ".dwconv.weight"))
            scaled = any(key.endswith(".gamma") and ".act." not in key for key in state)
            return UniRepLKNetConfig(
                layers=tuple(map(len, kernels)),
                channels=tuple(blocks[0].shape[0] for blocks in kernels),
                kernel_sizes=tuple(tuple(kernel.shape[-1] for kernel in blocks) for blocks in kernels),
                layer_scale=1e-6 if scaled or cls.form_of(state) == "merged" else None,
                **outputs_in(state, len(kernels)),
            )
        except (KeyError, ValueError, IndexError):
            return None


def _halving(inputs: int, outputs: int) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 3, stride=2, padding=1)


def _variant(layers: tuple[int, ...], width: int) -> UniRepLKNetConfig:
    return UniRepLKNetConfig(layers=layers, channels=tuple(width * 2**stage for stage in range(4)))


def _published(architecture: str, file: str, data: str, size: int, top1: float | None) -> PublishedWeights:
    return PublishedWeights(
        architecture=architecture,
        file=f"{architecture}_{file}.pth",
        training_data=data,
        image_size=size,
        top1=top1,
        num_classes=1000 if top1 is not None else 21841,
        license="Apache-2.0",
        source="Ding et al. 2024, github.com/AILab-CVC/UniRepLKNet",
        folder="https://huggingface.co/DingXiaoH/UniRepLKNet/resolve/main/",
    )


_DEEP = (3, 3, 27, 3)
PRESETS: Mapping[str, UniRepLKNetConfig] = MappingProxyType(
    {
        "unireplknet_a": _variant((2, 2, 6, 2), 40),
        "unireplknet_f": _variant((2, 2, 6, 2), 48),
        "unireplknet_p": _variant((2, 2, 6, 2), 64),
        "unireplknet_n": _variant((2, 2, 8, 2), 80),
        "unireplknet_t": _variant((3, 3, 18, 3), 80),
        "unireplknet_s": _variant(_DEEP, 96),
        "unireplknet_b": _variant(_DEEP, 128),
        "unireplknet_l": _variant(_DEEP, 192),
        "unireplknet_xl": _variant(_DEEP, 256),
    }
)
"""The published architectures (Ding et al. 2024, Table 2)."""
_SMALL = {"a": 77.03, "f": 78.58, "p": 80.23, "n": 81.64, "t": 83.21, "s": 83.91}
_LARGE = {"s": (86.44, 224), "b": (87.40, 224), "l": (87.88, 192), "xl": (87.96, 192)}
_BOTH = "ImageNet-22K, ImageNet-1K"

FAMILY = Family(
    name="UniRepLKNet",
    network=UniRepLKNet,
    config=UniRepLKNetConfig,
    presets=PRESETS,
    published={
        **{
            f"unireplknet_{size}.in1k_224": _published(
                f"unireplknet_{size}", f"in1k_224_acc{top1:.2f}", "ImageNet-1K", 224, top1
            )
            for size, top1 in _SMALL.items()
        },
        **{
            f"unireplknet_{size}.in22k_ft_in1k_384": _published(
                f"unireplknet_{size}", f"in22k_to_in1k_384_acc{top1:.2f}", _BOTH, 384, top1
            )
            for size, (top1, _) in _LARGE.items()
        },
        **{
            f"unireplknet_{size}.in22k": _published(f"unireplknet_{size}", "in22k_pretrain", "ImageNet-22K", side, None)
            for size, (_, side) in _LARGE.items()
        },
    },
    authors="Ding et al. 2024",
    paper="2311.15599",
    origin="https://github.com/AILab-CVC/UniRepLKNet",
    license="apache-2.0",
    first_layer="downsample_layers.0.0",
    sides=(*_PLAIN, *sorted(BRANCHES)),
)
"""Accuracies and file names: the official repository, which publishes no hashes."""
