"""RepLKNet: its configuration, its layers and the published sizes (Ding et al. 2022, arXiv:2203.06717)."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType

import torch
from torch import Tensor, nn
from torch.jit import is_scripting  # type: ignore[attr-defined]
from torch.utils.checkpoint import checkpoint as recompute_in_backward

from replknet.convolution.depthwise import DepthwiseConv2d
from replknet.convolution.layouts import inference_layout
from replknet.convolution.pointwise import PointwiseConv2d, in_parts, takes_fast_path
from replknet.networks.blocks import Classifier, ConvBN, ConvFFN, RepLKBlock
from replknet.networks.reparameterize import reparameterize

torch.fx.wrap("inference_layout")  # one node of a symbolic trace, which has no devices


@dataclass(frozen=True, kw_only=True)
class RepLKNetConfig:
    """Architecture of a RepLKNet, validated when it is made.

    Args:
        layers: Pairs of one RepLK block and one ConvFFN in each stage.
        channels: Width of each stage.
        kernel_sizes: Side of the large depthwise kernel of each stage, in pixels of that stage's map; odd.
        small_kernel: Side of the parallel depthwise kernel that is merged after training; odd, not larger than any
            of `kernel_sizes`. None leaves the branch out.
        shortcut: Add the input of a RepLK block to its output, as published. False is for the ablation of that
            (guideline 2 of the paper); such a block has no drop path.
        dw_ratio: Width of the large depthwise convolution relative to its stage.
        ffn_ratio: Hidden width of a ConvFFN relative to its stage.
        drop_path_rate: Probability of skipping the last residual branch; it grows linearly from 0 over the pairs.
        in_channels: Channels of the input image.
        num_classes: Outputs of the linear head; 0 builds no head, and `forward` returns pooled features.
        out_indices: Stages whose maps `forward` returns as a list; None returns logits.
        norm_intermediate_features: Give every stage a batch norm that is applied to the maps of `out_indices`.
        gradient_checkpointing: Recompute block activations in the backward pass to save memory.

    Raises:
        ValueError: If a value is out of range or the lengths differ; the message names the argument.

    References:
        Ding et al. 2022, arXiv:2203.06717.
    """

    layers: tuple[int, ...]
    channels: tuple[int, ...]
    kernel_sizes: tuple[int, ...]
    small_kernel: int | None = 5
    shortcut: bool = True
    dw_ratio: float = 1.0
    ffn_ratio: float = 4.0
    drop_path_rate: float = 0.0
    in_channels: int = 3
    num_classes: int = 1000
    out_indices: tuple[int, ...] | None = None
    norm_intermediate_features: bool = False
    gradient_checkpointing: bool = False

    def __post_init__(self) -> None:
        for name in ("layers", "channels", "kernel_sizes", "out_indices"):
            value = getattr(self, name)
            if value is None and name == "out_indices":
                continue
            if isinstance(value, str) or not isinstance(value, Iterable) or not all(_is_int(item) for item in value):
                raise ValueError(f"{name}={value!r}: expected a sequence of integers")
            object.__setattr__(self, name, tuple(value))
        if not self.layers:
            raise ValueError(f"layers={self.layers}: expected at least one stage")
        for name in ("channels", "kernel_sizes"):
            if len(getattr(self, name)) != len(self.layers):
                raise ValueError(
                    f"{name}={getattr(self, name)}: expected {len(self.layers)} values, one per stage of "
                    f"layers={self.layers}"
                )
        for name in ("layers", "channels"):
            if min(getattr(self, name)) < 1:
                raise ValueError(f"{name}={getattr(self, name)}: expected positive integers")
        if any(size < 1 or size % 2 == 0 for size in self.kernel_sizes):
            raise ValueError(f"kernel_sizes={self.kernel_sizes}: expected odd positive integers")
        self._validate_small_kernel()
        for name in ("dw_ratio", "ffn_ratio"):
            ratio = getattr(self, name)
            if isinstance(ratio, bool) or not isinstance(ratio, (int, float)) or not 0 < ratio < float("inf"):
                raise ValueError(f"{name}={ratio!r}: expected a positive number")
            if int(min(self.channels) * ratio) < 1:
                raise ValueError(f"{name}={ratio!r}: leaves no channel of a stage of width {min(self.channels)}")
        for name in ("shortcut", "norm_intermediate_features", "gradient_checkpointing"):
            if not isinstance(getattr(self, name), bool):
                raise ValueError(f"{name}={getattr(self, name)!r}: expected True or False")
        if not isinstance(self.drop_path_rate, (int, float)) or not 0 <= self.drop_path_rate < 1:
            raise ValueError(f"drop_path_rate={self.drop_path_rate!r}: expected a number in [0, 1)")
        if not _is_int(self.in_channels) or self.in_channels < 1:
            raise ValueError(f"in_channels={self.in_channels!r}: expected a positive integer")
        if not _is_int(self.num_classes) or self.num_classes < 0:
            raise ValueError(f"num_classes={self.num_classes!r}: expected a non-negative integer (0: no head)")
        self._validate_out_indices()

    def _validate_small_kernel(self) -> None:
        small = self.small_kernel
        if small is None:
            return
        if not _is_int(small) or small < 1 or small % 2 == 0:
            raise ValueError(f"small_kernel={small!r}: expected an odd positive integer or None")
        if small > min(self.kernel_sizes):
            raise ValueError(
                f"small_kernel={small}: expected at most the smallest of kernel_sizes={self.kernel_sizes}, "
                "or None for no parallel kernel"
            )

    def _validate_out_indices(self) -> None:
        indices = self.out_indices
        if indices is None:
            return
        stages = len(self.layers)
        if not indices or list(indices) != sorted(set(indices)) or indices[0] < 0 or indices[-1] >= stages:
            raise ValueError(
                f"out_indices={indices}: expected distinct increasing stage numbers from 0 to {stages - 1}, "
                "or None for logits"
            )

    @property
    def drop_path_rates(self) -> tuple[float, ...]:
        """Drop-path probability of each pair, from 0 to `drop_path_rate`."""
        pairs = sum(self.layers)
        return tuple(self.drop_path_rate * pair / max(pairs - 1, 1) for pair in range(pairs))


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


class Stage(nn.Module):
    """A sequence of RepLK blocks and ConvFFNs of one width and one kernel size."""

    def __init__(self, config: RepLKNetConfig, stage: int) -> None:
        super().__init__()
        channels = config.channels[stage]
        first_pair = sum(config.layers[:stage])
        rates = config.drop_path_rates[first_pair : first_pair + config.layers[stage]]
        blocks: list[nn.Module] = []
        for rate in rates:
            blocks.append(
                RepLKBlock(
                    channels,
                    int(channels * config.dw_ratio),
                    config.kernel_sizes[stage],
                    config.small_kernel,
                    drop_path=rate,
                    shortcut=config.shortcut,
                )
            )
            blocks.append(ConvFFN(channels, int(channels * config.ffn_ratio), drop_path=rate))
        self.blocks = nn.ModuleList(blocks)
        self.norm = nn.BatchNorm2d(channels) if config.norm_intermediate_features else nn.Identity()
        """For the maps of `forward_intermediates` only; the next stage gets the map without it."""
        self.gradient_checkpointing = config.gradient_checkpointing

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            if is_scripting():  # noqa: SIM108  TorchScript leaves such a branch out
                x = block(x)
            else:
                x = self._run(block, x)
        return x

    def _run(self, block: nn.Module, x: Tensor) -> Tensor:
        recomputes = self.gradient_checkpointing and torch.is_grad_enabled()
        out: Tensor = recompute_in_backward(block, x, use_reentrant=False) if recomputes else block(x)
        return out


_FOLDED_STEM = (
    nn.ModuleList,
    *(ConvBN, nn.Conv2d, nn.Identity, nn.ReLU),
    *(ConvBN, DepthwiseConv2d, nn.Identity, nn.ReLU),
    *(ConvBN, PointwiseConv2d, nn.Identity, nn.ReLU),
    *(ConvBN, nn.Conv2d, nn.Identity, nn.ReLU),
)


class RepLKNet(Classifier):
    """RepLKNet: a convolutional network with a few very large depthwise kernels.

    Args:
        config: The architecture.

    The input is a normalised image batch of shape (N, in_channels, H, W); stage s has stride 4 * 2**s. Weights carry
    PyTorch's default initialisation, as in the official implementation.

    References:
        Ding et al. 2022, arXiv:2203.06717.
    """

    def __init__(self, config: RepLKNetConfig) -> None:
        super().__init__()
        self.config = config
        width = config.channels[0]
        self.stem = nn.ModuleList(
            [
                ConvBN(config.in_channels, width, 3, stride=2, activation=nn.ReLU()),
                ConvBN(width, width, 3, groups=width, activation=nn.ReLU()),
                ConvBN(width, width, 1, activation=nn.ReLU()),
                ConvBN(width, width, 3, stride=2, groups=width, activation=nn.ReLU()),
            ]
        )
        self.stages = nn.ModuleList(Stage(config, stage) for stage in range(len(config.layers)))
        self.transitions = nn.ModuleList(
            nn.Sequential(
                ConvBN(narrow, wide, 1, activation=nn.ReLU()),
                ConvBN(wide, wide, 3, stride=2, groups=wide, activation=nn.ReLU()),
            )
            for narrow, wide in zip(config.channels, config.channels[1:], strict=False)
        )
        # A backbone (maps and no head) has no final norm either: nothing would use it.
        self.norm = nn.Identity()
        if config.num_classes > 0 or config.out_indices is None:
            self.norm = nn.BatchNorm2d(config.channels[-1])
        self.head = nn.Identity()
        if config.num_classes > 0:
            self.head = nn.Linear(config.channels[-1], config.num_classes)

    def forward_intermediates(self, x: Tensor, indices: Sequence[int] | None = None) -> list[Tensor]:
        """Stage maps, before the transition to the next stage.

        Args:
            x: Normalised images, shape (N, in_channels, H, W).
            indices: Stage numbers, increasing; None for all stages.

        Returns:
            One map per index, shape (N, channels[i], H / stride, W / stride), after the stage's own norm where the
            configuration asks for normalised intermediate features.

        Raises:
            ValueError: If `indices` names a stage that does not exist, or is empty.
        """
        wanted = range(len(self.stages)) if indices is None else indices
        if len(wanted) == 0 or not set(wanted) <= set(range(len(self.stages))):
            raise ValueError(f"indices={indices}: expected stage numbers from 0 to {len(self.stages) - 1}")
        maps = []
        x = self._forward_stem(x)
        for stage in range(max(wanted) + 1):
            x = self._forward_stage(x, stage)
            if stage in wanted:
                maps.append(self.stages[stage].get_submodule("norm")(x))
        return maps

    def forward_features(self, x: Tensor) -> Tensor:
        """The last feature map before the final norm, shape (N, channels[-1], H/32, W/32) with four stages."""
        x = self._forward_stem(x)
        for index, stage in enumerate(self.stages):
            for before, transition in enumerate(self.transitions):  # TorchScript finds no module by a variable's value
                if before + 1 == index:
                    x = transition(x)
            x = stage(x)
        return x

    def forward(self, x: Tensor) -> Tensor | list[Tensor]:
        """Logits, or the list of stage maps named by `config.out_indices`."""
        if self.config.out_indices is not None:
            return self.forward_intermediates(x, self.config.out_indices)
        return self.forward_head(self.forward_features(x))

    def _forward_stem(self, x: Tensor) -> Tensor:
        x = inference_layout(x, self.training)
        if not is_scripting():  # noqa: SIM102
            if takes_fast_path(self.stem, x, _FOLDED_STEM):
                return self._fast_stem(x)
        return self._stem_of(x)

    def _fast_stem(self, x: Tensor) -> Tensor:
        # A channel of the largest maps has a quarter of the image's pixels, of four bytes each.
        return in_parts(self._stem_of, x, self.config.channels[0] * x.shape[2] * x.shape[3])

    def _stem_of(self, x: Tensor) -> Tensor:
        for layer in self.stem:
            x = layer(x)
        return x

    def _forward_stage(self, x: Tensor, stage: int) -> Tensor:
        if stage > 0:
            x = self.transitions[stage - 1](x)
        out: Tensor = self.stages[stage](x)
        return out

    def reset_classifier(self, num_classes: int) -> None:
        """Replace the head by a new one, freshly initialised; 0 removes it.

        Raises:
            ValueError: If `num_classes` is negative, or the final norm was already folded into the old head.
        """
        config = replace(self.config, num_classes=num_classes)
        if num_classes > 0 and isinstance(self.norm, nn.Identity):
            raise ValueError(
                f"num_classes={num_classes}: this network has no final norm of its own any more (folded into its old "
                "head, or built without one); reset the classifier before re-parameterising"
            )
        self.config = config
        reference = next(self.parameters())
        self.head = nn.Identity().train(self.training)
        if num_classes > 0:
            head = nn.Linear(self.config.channels[-1], num_classes, device=reference.device, dtype=reference.dtype)
            self.head = head.train(self.training)

    def switch_to_deploy(self) -> None:
        """Merge the parallel kernels and fold every batch norm, in place (`reparameterize(self, inplace=True)`)."""
        reparameterize(self, inplace=True)


def _nano(kernel_sizes: tuple[int, ...]) -> RepLKNetConfig:
    return RepLKNetConfig(
        layers=(1, 1, 2, 1), channels=(16, 32, 64, 128), kernel_sizes=kernel_sizes, small_kernel=3, num_classes=12
    )


PRESETS: Mapping[str, RepLKNetConfig] = MappingProxyType(
    {
        "replknet_31b": RepLKNetConfig(
            layers=(2, 2, 18, 2), channels=(128, 256, 512, 1024), kernel_sizes=(31, 29, 27, 13)
        ),
        "replknet_31l": RepLKNetConfig(
            layers=(2, 2, 18, 2), channels=(192, 384, 768, 1536), kernel_sizes=(31, 29, 27, 13)
        ),
        "replknet_xl": RepLKNetConfig(
            layers=(2, 2, 18, 2),
            channels=(256, 512, 1024, 2048),
            kernel_sizes=(27, 27, 27, 13),
            small_kernel=None,
            dw_ratio=1.5,
        ),
        "replknet_nano_k3": _nano((3, 3, 3, 3)),
        "replknet_nano_k31": _nano((31, 15, 7, 3)),
    }
)
"""Architectures by name: the published ones (Ding et al. 2022, Table 5 and section 4.2), and two small networks for
images of 64 pixels, whose trained weights come with the package."""
