"""Building blocks of RepLKNet, with the module names of the official checkpoints.

A block has one forward pass; where it is folded and nobody needs what is in between, `takes_fast_path` lets it compute
the same by fewer operators. Any layer of a block may be replaced by another module.
"""

from collections.abc import Iterator
from typing import ClassVar

from torch import Tensor, nn
from torch.jit import is_scripting  # type: ignore[attr-defined]

from replknet.convolution.depthwise import DepthwiseConv2d
from replknet.convolution.pointwise import PointwiseConv2d, in_parts, multiply, takes_fast_path, to_maps, to_rows
from replknet.networks.folding import (
    assign,
    batch_norm_affine,
    embed_kernel,
    fold_norm_after,
    in_float64,
    is_foldable,
    is_foldable_norm,
)
from replknet.networks.parts import LargeKernel, Mergeable, crop_weight, fold_before, values_of


class DropPath(nn.Module):
    """Skip a residual branch, per image, with probability `rate` while training (Huang et al. 2016)."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.rate == 0:
            return x
        keep = 1 - self.rate
        mask = x.new_empty([x.shape[0], 1, 1, 1]).bernoulli_(keep)
        return x * (mask / keep)

    def extra_repr(self) -> str:
        return f"rate={self.rate:.4g}"


class ConvBN(Mergeable):
    """A convolution without bias, its batch norm, and an activation."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int],
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
            sides = (kernel_size, kernel_size) if isinstance(kernel_size, int) else kernel_size
            padding = (sides[0] // 2, sides[1] // 2)
            self.conv = nn.Conv2d(in_channels, out_channels, sides, stride, padding, groups=groups, bias=False)
        self.bn: nn.Module = nn.BatchNorm2d(out_channels)
        self.nonlinear = nn.Identity() if activation is None else activation

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.conv(x)
        if not is_scripting():  # noqa: SIM102  TorchScript leaves such a branch out
            if is_foldable(self.conv) and takes_fast_path(self, x, (ConvBN, type(self.conv), nn.Identity, nn.ReLU)):
                return out.relu_()
        out = self.nonlinear(self.bn(out))
        return out  # noqa: RET504  what a module returns is Any

    def reparameterize(self) -> None:
        """Fold the norm: `bn` becomes an identity, `conv` gets a bias. A no-op when already done."""
        if is_foldable_norm(self.bn) and is_foldable(self.conv):
            assign(self.conv, *fold_norm_after(self.conv.weight, self.conv.bias, *batch_norm_affine(self.bn)))
            self.bn = nn.Identity().train(self.bn.training)

    def changed(self) -> Iterator[nn.Module]:
        if is_foldable_norm(self.bn) and is_foldable(self.conv):
            yield from (self.conv, self.bn)


class ReparamLargeKernelConv(LargeKernel):
    """A large depthwise convolution and a parallel small one, each with its batch norm; their outputs are summed.

    After `reparameterize` both branches are one biased convolution, `lkb_reparam`.
    """

    MERGES_KERNELS: ClassVar[bool] = True

    def __init__(self, channels: int, kernel_size: int, small_kernel: int | None) -> None:
        super().__init__()
        self.lkb_origin: ConvBN | None = ConvBN(channels, channels, kernel_size, groups=channels)
        self.small_conv: ConvBN | None = None
        if small_kernel is not None:
            self.small_conv = ConvBN(channels, channels, small_kernel, groups=channels)
        self.lkb_reparam: nn.Conv2d | None = None

    def forward(self, x: Tensor) -> Tensor:
        if self.lkb_reparam is not None:
            out: Tensor = self.lkb_reparam(x)
        elif self.lkb_origin is not None:
            out = self.lkb_origin(x)
        else:
            raise RuntimeError("both lkb_reparam and lkb_origin are None: expected one of them")
        if self.small_conv is not None:
            out = out + self.small_conv(x)
        return out

    def reparameterize(self) -> None:
        """Replace both branches by one biased depthwise convolution. A no-op when already done.

        A branch that was replaced by another module stays, and so does the other one.
        """
        branches = [branch for branch in (self.lkb_origin, self.small_conv) if branch is not None]
        if not branches or not all(isinstance(branch, ConvBN) for branch in branches):
            return
        for branch in branches:
            branch.reparameterize()
        if not all(_is_one_convolution(branch) for branch in branches):
            return
        large = branches[0].conv
        weight, bias = values_of(large)
        for branch in branches[1:]:
            small_weight, small_bias = values_of(branch.conv)
            weight, bias = weight + embed_kernel(small_weight, weight.shape[-1]), bias + small_bias
        assign(large, weight, bias)
        self.lkb_reparam = large
        self.lkb_origin = None
        self.small_conv = None

    def changed(self) -> Iterator[nn.Module]:
        if self.lkb_reparam is None:
            yield from list(self.modules())[1:]

    def large_layers(self) -> list[nn.Module | None]:
        if self.lkb_origin is None:
            return [self.lkb_reparam]
        return [self.lkb_origin.conv if isinstance(self.lkb_origin, ConvBN) else None]

    def branches(self) -> tuple[str, ...]:
        return () if self.small_conv is None else ("small",)

    def drop(self, branch: str) -> None:
        self.small_conv = None

    def crop(self, size: int) -> None:
        """The parallel small kernel stays as it is."""
        for layer in self.convolutions():
            crop_weight(layer, size)

    def dense_kernel(self) -> Tensor:
        return in_float64(self.convolutions()[0].weight)[:, 0]


def _is_one_convolution(branch: ConvBN) -> bool:
    parts = (branch.bn, branch.nonlinear)
    return is_foldable(branch.conv) and all(type(part) is nn.Identity for part in parts)


class RepLKBlock(Mergeable):
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
        if not is_scripting():  # noqa: SIM102
            if takes_fast_path(self, x, _FOLDED_BLOCK):
                return self._fast(x)
        branch: Tensor = self.pw2(self.lk_nonlinear(self.large_kernel(self.pw1(self.prelkb_bn(x)))))
        if not self.shortcut:
            return branch
        out: Tensor = x + self.drop_path(branch)
        return out

    def _fast(self, x: Tensor) -> Tensor:
        rows = to_rows(x)
        maps = to_maps(multiply(rows, self.pw1.conv).relu_(), like=x)
        out = multiply(to_rows(self.large_kernel(maps).relu_()), self.pw2.conv)
        return to_maps(out.add_(rows) if self.shortcut else out, like=x)

    def reparameterize(self) -> None:
        """Merge the kernels and fold every norm of the block. A no-op when already done."""
        for part in (self.large_kernel, self.pw1, self.pw2):
            if isinstance(part, (ReparamLargeKernelConv, ConvBN)):
                part.reparameterize()
        if isinstance(self.pw1, ConvBN):
            self.prelkb_bn = fold_before(self.prelkb_bn, self.pw1.conv)

    def changed(self) -> Iterator[nn.Module]:
        return _changed_by_folding(self.prelkb_bn, self.pw1)


_FOLDED_BLOCK = (
    RepLKBlock,
    *(ConvBN, PointwiseConv2d, nn.Identity, nn.ReLU),
    *(ConvBN, PointwiseConv2d, nn.Identity, nn.Identity),
    *(ReparamLargeKernelConv, DepthwiseConv2d),
    *(nn.ReLU, nn.Identity, DropPath),
)


class ConvFFN(Mergeable):
    """Residual feed-forward block of two 1x1 convolutions with GELU between them."""

    def __init__(self, channels: int, hidden_channels: int, drop_path: float) -> None:
        super().__init__()
        self.preffn_bn: nn.Module = nn.BatchNorm2d(channels)
        self.pw1 = ConvBN(channels, hidden_channels, 1, activation=nn.GELU())
        self.pw2 = ConvBN(hidden_channels, channels, 1)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        if not is_scripting():  # noqa: SIM102
            if takes_fast_path(self, x, _FOLDED_FFN):
                return self._fast(x)
        out: Tensor = x + self.drop_path(self.pw2(self.pw1(self.preffn_bn(x))))
        return out

    def _fast(self, x: Tensor) -> Tensor:
        return to_maps(in_parts(self._of_rows, to_rows(x), 4 * self.pw1.conv.out_channels), like=x)

    def _of_rows(self, rows: Tensor) -> Tensor:
        return multiply(multiply(rows, self.pw1.conv, "gelu"), self.pw2.conv).add_(rows)

    def reparameterize(self) -> None:
        """Fold every norm of the block. A no-op when already done."""
        for part in (self.pw1, self.pw2):
            if isinstance(part, ConvBN):
                part.reparameterize()
        if isinstance(self.pw1, ConvBN):
            self.preffn_bn = fold_before(self.preffn_bn, self.pw1.conv)

    def changed(self) -> Iterator[nn.Module]:
        return _changed_by_folding(self.preffn_bn, self.pw1)


def _changed_by_folding(norm: nn.Module, layer: nn.Module) -> Iterator[nn.Module]:
    """By a norm that goes into the 1x1 convolution after it."""
    if isinstance(layer, ConvBN) and is_foldable_norm(norm) and is_foldable(layer.conv):
        yield from (norm, layer, layer.conv)


_FOLDED_FFN = (
    ConvFFN,
    nn.Identity,
    *(ConvBN, PointwiseConv2d, nn.Identity, nn.GELU),
    *(ConvBN, PointwiseConv2d, nn.Identity, nn.Identity),
    DropPath,
)
