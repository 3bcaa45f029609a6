"""What re-parameterisation and the study of kernels need to know of the parts of any family's networks."""

from abc import abstractmethod
from collections.abc import Iterator
from typing import TYPE_CHECKING, ClassVar

from torch import Tensor, nn

from replknet.convolution.depthwise import DepthwiseConv2d
from replknet.networks.folding import (
    assign,
    batch_norm_affine,
    fold_norm_before,
    in_float64,
    is_foldable,
    is_foldable_norm,
    is_reparametrized,
)


class Mergeable(nn.Module):
    """A part of a network that can be merged or folded by itself."""

    MERGES_KERNELS: ClassVar[bool] = False
    """Whether it belongs to the level "kernels" of `reparameterize`, the official deploy form."""

    @abstractmethod
    def reparameterize(self) -> None:
        """Fold what can be folded, in place. A no-op when already done."""

    @abstractmethod
    def changed(self) -> Iterator[nn.Module]:
        """Layers that `reparameterize` removes or gives another input, weight or output; those of its parts aside."""


class LargeKernel(Mergeable):
    """A large depthwise kernel with its parallel branches, merged or not."""

    @abstractmethod
    def large_layers(self) -> list[nn.Module | None]:
        """The layers whose weights are the large kernel; None where there is no such convolution any more."""

    @abstractmethod
    def branches(self) -> tuple[str, ...]:
        """What can be left out while it is not merged, such as "small"; layers of one network may differ in it."""

    @abstractmethod
    def drop(self, branch: str) -> None:
        """Leave out one of `branches`."""

    @abstractmethod
    def crop(self, size: int) -> None:
        """Set the taps outside the central `size` x `size` ones to zero."""

    @abstractmethod
    def dense_kernel(self) -> Tensor:
        """The kernel of a merged layer, one square for each channel, shape (C, K, K), float64."""

    def convolutions(self) -> list[nn.Conv2d]:
        """`large_layers`, each an ordinary convolution.

        Raises:
            ValueError: If one is parametrized, pruned or replaced: its kernel is then not its weight.
        """
        found = []
        for layer in self.large_layers():
            if layer is None or not is_foldable(layer) or not isinstance(layer, nn.Conv2d) or is_reparametrized(layer):
                raise ValueError(
                    "is parametrized, pruned or replaced by another module, so that its weight cannot be read or "
                    "cropped; make it a plain convolution first"
                )
            found.append(layer)
        return found


def crop_weight(layer: nn.Conv2d, size: int) -> None:
    """Set the taps of a convolution outside the central `size` x `size` positions of the map to zero, in place."""
    kept = layer.weight.new_ones(())
    for axis, (taps, dilation) in enumerate(zip(layer.weight.shape[2:], layer.dilation, strict=True)):
        inside = [int(abs(tap - taps // 2) * dilation <= size // 2) for tap in range(taps)]
        mask = layer.weight.new_tensor(inside)
        kept = kept * (mask[:, None] if axis == 0 else mask)
    layer.weight.data.mul_(kept)


def depthwise_layer(weight: Tensor, bias: Tensor, like: nn.Module) -> DepthwiseConv2d:
    """A biased depthwise layer of square kernels, in the dtype, place and mode of the weights of `like`."""
    reference = next(like.parameters())
    layer = DepthwiseConv2d(weight.shape[0], weight.shape[-1], bias=True)
    layer.to(reference.device, reference.dtype).requires_grad_(reference.requires_grad)
    assign(layer, weight, bias)
    return layer.train(like.training)


def values_of(layer: nn.Conv2d | nn.Linear) -> tuple[Tensor, Tensor]:
    """Weight and bias in float64; zeros for a bias that there is not."""
    weight = in_float64(layer.weight)
    return weight, weight.new_zeros(len(weight)) if layer.bias is None else in_float64(layer.bias)


def fold_before(norm: nn.Module, layer: nn.Module) -> nn.Module:
    """Fold a batch norm into the pointwise layer after it, if that is an ordinary one; returns what takes its place."""
    if not is_foldable_norm(norm) or not is_foldable(layer):
        return norm
    assign(layer, *fold_norm_before(layer.weight.detach(), layer.bias, *batch_norm_affine(norm)))
    return nn.Identity().train(norm.training)


class Classifier(nn.Module):
    """A network that ends in a norm, global average pooling and a linear head; a subclass sets both modules."""

    if TYPE_CHECKING:  # TorchScript would take them for attributes of its own types
        norm: nn.Module
        head: nn.Module

    def before_pooling(self, x: Tensor) -> Tensor:
        """The final norm, where a family has it before the pooling."""
        out: Tensor = self.norm(x)
        return out

    def after_pooling(self, x: Tensor) -> Tensor:
        """The final norm, where a family has it after the pooling; channels are the second axis."""
        return x

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Global average pooling with the final norm before or after it, as the family has it, and the linear head.

        Args:
            x: The output of `forward_features`, shape (N, C, H, W).
            pre_logits: Stop before the head.

        Returns:
            Logits, shape (N, num_classes); or pooled features, shape (N, C), with `pre_logits` or where there is no
            head.
        """
        pooled = self.after_pooling(self.before_pooling(x).mean((2, 3)))
        if pre_logits:
            return pooled
        logits: Tensor = self.head(pooled)
        return logits

    def folded_at_the_end(self) -> tuple[nn.Module, ...]:
        """What `fold_final_norm` is about: norm and head, or nothing where the norm is not a batch norm."""
        return (self.norm, self.head)

    def fold_final_norm(self) -> None:
        """Fold the norm into the head. Average pooling commutes with an affine map of each channel."""
        if isinstance(self.head, nn.Linear):
            self.norm = fold_before(self.norm, self.head)
