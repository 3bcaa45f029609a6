"""Building blocks of RepLKNet, with the module names of the official checkpoints."""

from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from replknet.depthwise import DepthwiseConv2d
from replknet.folding import assign, batch_norm_affine, embed_kernel, fold_norm_after, fold_norm_before
from replknet.inference import is_hooked, is_plain, is_plain_call
from replknet.pointwise import PointwiseConv2d, pointwise


class DropPath(nn.Module):
    """Skip a residual branch, per image, with probability `rate` while training (Huang et al. 2016)."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def acts(self) -> bool:
        return self.training and self.rate > 0

    def forward(self, x: Tensor) -> Tensor:
        if not self.acts():
            return x
        keep = 1 - self.rate
        mask = torch.empty(x.shape[0], 1, 1, 1, dtype=x.dtype, device=x.device).bernoulli_(keep)
        return x * (mask / keep)

    def extra_repr(self) -> str:
        return f"rate={self.rate:.4g}"


class ConvBN(nn.Module):
    """A convolution without bias, its batch norm, and an activation."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        *,
        stride: int = 1,
        groups: int = 1,
        activation: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.conv: nn.Conv2d
        if groups == in_channels == out_channels and stride == 1:
            self.conv = DepthwiseConv2d(in_channels, kernel_size)
        elif groups == kernel_size == stride == 1:
            self.conv = PointwiseConv2d(in_channels, out_channels, bias=False)
        else:
            self.conv = nn.Conv2d(
                in_channels, out_channels, kernel_size, stride, padding=kernel_size // 2, groups=groups, bias=False
            )
        self.bn: nn.Module = nn.BatchNorm2d(out_channels)
        self.nonlinear = nn.Identity() if activation is None else activation

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        """The output, plus `residual` where it is given."""
        if is_plain_call(x) and self.fuses():
            return pointwise(x, [self.as_layer()], residual)
        out: Tensor
        if isinstance(self.bn, nn.Identity):
            out = convolve(self.conv, x, self.bn, self.nonlinear)
        else:
            out = self.nonlinear(self.bn(self.conv(x)))
        return out if residual is None else residual + out

    def fuses(self) -> bool:
        """Whether `pointwise` can compute this in a plain call."""
        conv, norm, activation = self.conv, self.bn, self.nonlinear
        return (
            isinstance(conv, PointwiseConv2d)
            and isinstance(norm, nn.Identity)
            and conv.fuses(activation)
            and not is_hooked(conv, norm, activation)
        )

    def as_layer(self) -> tuple[PointwiseConv2d, nn.Module]:
        """For `pointwise`."""
        return cast("PointwiseConv2d", self.conv), self.nonlinear

    def reparameterize(self) -> None:
        """Fold the norm: `bn` becomes an identity, `conv` gets a bias. A no-op when already done."""
        if isinstance(self.bn, _BatchNorm):
            assign(self.conv, *fold_norm_after(self.conv.weight, self.conv.bias, *batch_norm_affine(self.bn)))
            self.bn = nn.Identity()


def convolve(conv: nn.Conv2d, x: Tensor, norm: nn.Module, activation: nn.Module) -> Tensor:
    """`activation(norm(conv(x)))`; a ReLU within the convolution, or in place on what is new from it."""
    if type(activation) is nn.ReLU and is_plain(conv, x) and not is_hooked(conv, norm, activation):
        return conv.with_relu(x) if isinstance(conv, DepthwiseConv2d) else conv(x).relu_()
    out: Tensor = activation(norm(conv(x)))
    return out


class ReparamLargeKernelConv(nn.Module):
    """A large depthwise convolution and a parallel small one, each with its batch norm; their outputs are summed.

    After `reparameterize` both branches are one biased convolution, `lkb_reparam`.
    """

    def __init__(self, channels: int, kernel_size: int, small_kernel: int | None) -> None:
        super().__init__()
        self.lkb_origin: ConvBN | None = ConvBN(channels, channels, kernel_size, groups=channels)
        self.small_conv: ConvBN | None = None
        if small_kernel is not None:
            self.small_conv = ConvBN(channels, channels, small_kernel, groups=channels)
        self.lkb_reparam: nn.Conv2d | None = None

    def forward(self, x: Tensor) -> Tensor:
        branches = (self.lkb_reparam, self.lkb_origin, self.small_conv)
        outputs: list[Tensor] = [branch(x) for branch in branches if branch is not None]
        return outputs[0] if len(outputs) == 1 else outputs[0] + outputs[1]

    def reparameterize(self) -> None:
        """Replace both branches by one biased depthwise convolution. A no-op when already done."""
        large = self.lkb_origin
        if large is None:
            return
        large.reparameterize()
        weight, bias = _values(large.conv)
        if self.small_conv is not None:
            self.small_conv.reparameterize()
            small_weight, small_bias = _values(self.small_conv.conv)
            weight = weight + embed_kernel(small_weight, weight.shape[-1])
            bias = bias + small_bias
        self.lkb_reparam = large.conv
        assign(self.lkb_reparam, weight, bias)
        self.lkb_origin = None
        self.small_conv = None


def _values(conv: nn.Conv2d) -> tuple[Tensor, Tensor]:
    """Weight and bias in float64."""
    weight = conv.weight.detach().double()
    return weight, weight.new_zeros(conv.out_channels) if conv.bias is None else conv.bias.detach().double()


def fold_before(norm: nn.Module, layer: nn.Conv2d | nn.Linear) -> nn.Module:
    """Fold a batch norm into the pointwise layer after it; returns what takes its place."""
    if not isinstance(norm, _BatchNorm):
        return norm
    assign(layer, *fold_norm_before(layer.weight.detach(), layer.bias, *batch_norm_affine(norm)))
    return nn.Identity()


def add_residual(x: Tensor, last: ConvBN, drop_path: DropPath, branch: Tensor) -> Tensor:
    """`x + drop_path(last(branch))`."""
    out: Tensor = x + drop_path(last(branch)) if drop_path.acts() else last(branch, residual=x)
    return out


def fuse_both(x: Tensor, norm: nn.Module, first: ConvBN, last: ConvBN, *others: nn.Module) -> bool:
    """Whether `pointwise` can compute both 1x1 layers of a block, and nobody listens to any of its modules."""
    return (
        isinstance(norm, nn.Identity)
        and is_plain_call(x)
        and first.fuses()
        and last.fuses()
        and not is_hooked(norm, first, last, *others)
    )


class RepLKBlock(nn.Module):
    """Residual block round a large depthwise convolution: BN, 1x1, depthwise, 1x1."""

    def __init__(
        self,
        channels: int,
        dw_channels: int,
        kernel_size: int,
        small_kernel: int | None,
        drop_path: float,
        shortcut: bool = True,
    ) -> None:
        super().__init__()
        self.pw1 = ConvBN(channels, dw_channels, 1, activation=nn.ReLU())
        self.pw2 = ConvBN(dw_channels, channels, 1)
        self.large_kernel = ReparamLargeKernelConv(dw_channels, kernel_size, small_kernel)
        self.lk_nonlinear = nn.ReLU()
        self.prelkb_bn: nn.Module = nn.BatchNorm2d(channels)
        self.drop_path = DropPath(drop_path)
        self.shortcut = shortcut

    def forward(self, x: Tensor) -> Tensor:
        norm, first, large, last = self.prelkb_bn, self.pw1, self.large_kernel, self.pw2
        merged = large.lkb_reparam if isinstance(large, ReparamLargeKernelConv) else None
        if merged is not None and fuse_both(x, norm, first, last, large, self.drop_path):
            out = convolve(merged, pointwise(x, [first.as_layer()]), norm, self.lk_nonlinear)
            return pointwise(out, [last.as_layer()], x if self.shortcut else None)
        out = self.lk_nonlinear(large(first(norm(x))))
        if not self.shortcut:
            without: Tensor = last(out)
            return without
        return add_residual(x, last, self.drop_path, out)

    def reparameterize(self) -> None:
        """Merge the kernels and fold every norm of the block. A no-op when already done."""
        for part in (self.large_kernel, self.pw1, self.pw2):
            part.reparameterize()
        self.prelkb_bn = fold_before(self.prelkb_bn, self.pw1.conv)


class ConvFFN(nn.Module):
    """Residual feed-forward block of two 1x1 convolutions with GELU between them."""

    def __init__(self, channels: int, hidden_channels: int, drop_path: float) -> None:
        super().__init__()
        self.preffn_bn: nn.Module = nn.BatchNorm2d(channels)
        self.pw1 = ConvBN(channels, hidden_channels, 1, activation=nn.GELU())
        self.pw2 = ConvBN(hidden_channels, channels, 1)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        norm, first, last = self.preffn_bn, self.pw1, self.pw2
        if fuse_both(x, norm, first, last, self.drop_path):
            return pointwise(x, [first.as_layer(), last.as_layer()], residual=x)
        return add_residual(x, last, self.drop_path, first(norm(x)))

    def reparameterize(self) -> None:
        """Fold every norm of the block. A no-op when already done."""
        for part in (self.pw1, self.pw2):
            part.reparameterize()
        self.preffn_bn = fold_before(self.preffn_bn, self.pw1.conv)


class Classifier(nn.Module):
    """A network that ends in a norm, global average pooling and a linear head; a subclass sets both modules."""

    norm: nn.Module
    head: nn.Module

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Final norm, global average pooling and the linear head.

        Args:
            x: The output of `forward_features`, shape (N, C, H, W).
            pre_logits: Stop after the pooling.

        Returns:
            Logits, shape (N, num_classes); or pooled features, shape (N, C), with `pre_logits` or where there is no
            head.
        """
        pooled: Tensor = self.norm(x).mean((2, 3))
        if pre_logits:
            return pooled
        logits: Tensor = self.head(pooled)
        return logits

    def fold_final_norm(self) -> None:
        """Fold the norm into the head. Average pooling commutes with an affine map of each channel."""
        if isinstance(self.head, nn.Linear):
            self.norm = fold_before(self.norm, self.head)
